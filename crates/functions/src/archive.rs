//! What is in a zip archive, which a jar and a NAR are: the table at its end is read, and one file when it is wanted.
//!
//! What must hold: whatever the archive says, no more is read or kept than the bounds here.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

/// Bytes of the table of what is in an archive: some hundred thousand files.
const TABLE_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// The end of the table, without and with the longest comment.
const END_BYTES: usize = 22;
const END_BYTES_MAX: u64 = END_BYTES as u64 + 0xFFFF;
const ROW_BYTES: usize = 46;
const HEADER_BYTES: usize = 30;

const END: &[u8] = b"PK\x05\x06";
const ROW: &[u8] = b"PK\x01\x02";
const HEADER: &[u8] = b"PK\x03\x04";

fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..at + 2)?.try_into().ok()?;
    Some(usize::from(u16::from_le_bytes(bytes)))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(u64::from(u32::from_le_bytes(bytes)))
}

fn part(file: &File, len: u64, from: u64, bytes: u64) -> Result<Vec<u8>, String> {
    if from.checked_add(bytes).is_none_or(|end| end > len) {
        return Err(broken());
    }
    let size = usize::try_from(bytes).map_err(|error| error.to_string())?;
    let mut part = vec![0; size];
    file.read_exact_at(&mut part, from)
        .map_err(|error| format!("it can not be read: {error}"))?;
    Ok(part)
}

fn broken() -> String {
    "it is no zip archive, or cut off".to_owned()
}

/// The content of the file of this name in an archive of `len` bytes; `None` when it is not in it.
///
/// # Errors
/// When it is no archive, or the file in it has more than `max` bytes or can not be unpacked.
pub(crate) fn entry(
    file: &File,
    len: u64,
    name: &str,
    max: u64,
) -> Result<Option<Vec<u8>>, String> {
    let table = table(file, len)?;
    let Some(row) = row(&table, name)? else {
        return Ok(None);
    };
    unpacked(file, len, row, max)
        .map(Some)
        .map_err(|error| format!("`{name}` in it: {error}"))
}

/// Whether an archive of `len` bytes has a file of this name.
///
/// # Errors
/// When it is no archive.
pub(crate) fn holds(file: &File, len: u64, name: &str) -> Result<bool, String> {
    let table = table(file, len)?;
    Ok(row(&table, name)?.is_some())
}

/// The table of what is in it.
fn table(file: &File, len: u64) -> Result<Vec<u8>, String> {
    let tail = part(
        file,
        len,
        len.saturating_sub(END_BYTES_MAX),
        len.min(END_BYTES_MAX),
    )?;
    let is_end = |at: &usize| {
        tail[*at..].starts_with(END)
            && u16_at(&tail, at + 20).is_some_and(|comment| at + END_BYTES + comment == tail.len())
    };
    let end = (0..tail.len().saturating_sub(END_BYTES - 1))
        .rev()
        .find(is_end)
        .ok_or_else(broken)?;
    let table = (u32_at(&tail, end + 12), u32_at(&tail, end + 16));
    let (Some(bytes), Some(from)) = table else {
        return Err(broken());
    };
    if bytes > TABLE_BYTES_MAX {
        return Err("it holds too many files".to_owned());
    }
    part(file, len, from, bytes)
}

/// The row of a file of this name.
fn row<'a>(table: &'a [u8], name: &str) -> Result<Option<&'a [u8]>, String> {
    let mut at = 0;
    // A table ends with its bytes: the count of large ones is elsewhere.
    while at < table.len() {
        let row = table
            .get(at..at + ROW_BYTES)
            .filter(|row| row.starts_with(ROW))
            .ok_or_else(broken)?;
        let lengths = (u16_at(row, 28), u16_at(row, 30), u16_at(row, 32));
        let (Some(own), Some(extra), Some(comment)) = lengths else {
            return Err(broken());
        };
        let begin = at + ROW_BYTES;
        let found = table.get(begin..begin + own).ok_or_else(broken)?;
        if found == name.as_bytes() {
            return Ok(Some(row));
        }
        at = begin + own + extra + comment;
    }
    Ok(None)
}

/// What a row of the table stands for.
fn unpacked(file: &File, len: u64, row: &[u8], max: u64) -> Result<Vec<u8>, String> {
    let damaged = || "the archive is damaged".to_owned();
    let too_large = || format!("it has more than {max} bytes");
    let numbers = (
        u16_at(row, 8),
        u16_at(row, 10),
        u32_at(row, 20),
        u32_at(row, 24),
        u32_at(row, 42),
    );
    let (Some(flags), Some(method), Some(packed), Some(whole), Some(from)) = numbers else {
        return Err(damaged());
    };
    if flags & 1 != 0 {
        return Err("it is encrypted".to_owned());
    }
    // Packed text is hardly longer than itself.
    if whole > max || packed > max.saturating_mul(2) {
        return Err(too_large());
    }
    let header = part(file, len, from, HEADER_BYTES as u64)?;
    let lengths = (u16_at(&header, 26), u16_at(&header, 28));
    let (Some(name), Some(extra)) = lengths else {
        return Err(damaged());
    };
    if !header.starts_with(HEADER) {
        return Err(damaged());
    }
    let from = from + (HEADER_BYTES + name + extra) as u64;
    let packed = part(file, len, from, packed)?;
    let content = match method {
        0 => packed,
        8 => {
            let mut content = Vec::new();
            flate2::read::DeflateDecoder::new(&packed[..])
                .take(max + 1)
                .read_to_end(&mut content)
                .map_err(|_| damaged())?;
            content
        }
        other => return Err(format!("it is packed by method {other}, which is not read")),
    };
    match content.len() as u64 {
        size if size > max => Err(too_large()),
        size if size != whole => Err(damaged()),
        _ => Ok(content),
    }
}
