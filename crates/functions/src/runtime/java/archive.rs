//! What a jar or a NAR is looked at for, without reading it into memory: its name in the cache, and whether it
//! brings Pulsar's functions API. Of its files only the names are read, from the list at its end.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// The record at the end of an archive: a signature, and within it the size and the place of the list.
const END: &[u8] = b"PK\x05\x06";
const END_BYTES: usize = 22;
/// The longest comment behind it.
const COMMENT_BYTES: usize = 0xffff;
/// How much is read at once.
const CHUNK_BYTES: usize = 256 * 1024;

/// Whether one of its files has this name. What is no archive has none: whoever runs it says what it is.
///
/// # Errors
/// When it can not be read.
pub(super) fn holds(path: &Path, name: &[u8]) -> io::Result<bool> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let list = list_at(&mut file, length)?;
    file.seek(SeekFrom::Start(list))?;
    contains(file, name)
}

/// Where the list of names begins; 0, and so the whole file is looked through, where it does not say.
fn list_at(file: &mut File, length: u64) -> io::Result<u64> {
    let most = (END_BYTES + COMMENT_BYTES) as u64;
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut tail = Vec::new();
    file.take(most).read_to_end(&mut tail)?;
    let end = tail.windows(END_BYTES).rposition(|it| it.starts_with(END));
    let place = end.map(|at| {
        let number = &tail[at + 16..at + 20];
        u64::from(u32::from_le_bytes([
            number[0], number[1], number[2], number[3],
        ]))
    });
    // Of more than 4 GiB, or with something in front of it, it is somewhere else.
    Ok(place
        .filter(|place| *place < length && *place != u64::from(u32::MAX))
        .unwrap_or(0))
}

fn contains(mut from: impl Read, wanted: &[u8]) -> io::Result<bool> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut kept = 0;
    loop {
        let count = match from.read(&mut chunk[kept..]) {
            Ok(0) => return Ok(false),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let there = kept + count;
        let found = chunk[..there]
            .windows(wanted.len())
            .any(|window| window[0] == wanted[0] && window == wanted);
        if found {
            return Ok(true);
        }
        // It may begin in this chunk and end in the next.
        kept = there.min(wanted.len() - 1);
        chunk.copy_within(there - kept..there, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_wherever_it_stands() {
        for length in [0, 1, CHUNK_BYTES - 3, CHUNK_BYTES, 3 * CHUNK_BYTES - 7] {
            let mut bytes = vec![b'n'; length];
            assert!(!contains(&bytes[..], b"name").expect("read"), "{length}");
            bytes.extend_from_slice(b"name and more");
            assert!(contains(&bytes[..], b"name").expect("read"), "{length}");
        }
    }

    #[test]
    fn only_the_list_of_an_archive_is_looked_through() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let archive = |place: u32| {
            let mut bytes = b"its/name in the contents; the list: a/b".to_vec();
            bytes.extend_from_slice(END);
            bytes.extend_from_slice(&[0; 12]);
            bytes.extend_from_slice(&place.to_le_bytes());
            bytes.extend_from_slice(b"\x03\0end");
            std::fs::write(file.path(), bytes).expect("written");
        };
        archive(25);
        assert!(holds(file.path(), b"a/b").expect("read"));
        assert!(!holds(file.path(), b"its/name").expect("read"));
        // One that says nothing of use is looked through from its begin.
        for place in [u32::MAX, 70_000] {
            archive(place);
            assert!(holds(file.path(), b"its/name").expect("read"), "{place}");
        }
        std::fs::write(file.path(), "short").expect("written");
        assert!(!holds(file.path(), b"its/name").expect("read"));
    }
}
