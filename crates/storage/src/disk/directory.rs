//! The real disk: one directory, `std::fs` with direct I/O where the file system takes it.
//!
//! What is written in large aligned pieces goes past the page cache: it would cost a copy, the
//! pages, and a burst of writing back just when the log wants the disk. So a file is opened twice:
//! with O_DIRECT, and through the page cache for readers and for what is not aligned. A log file has
//! O_DSYNC too, so that a commit is one system call. Where O_DIRECT is refused (at open or by the
//! first use, as some file systems do) all goes through the page cache, and a log is synced by
//! `fdatasync`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{Advice, OFlags, fadvise};
use rustix::io::Errno;

use super::{BLOCK_BYTES, Disk, DiskFile, GENTLE_READ_BYTES, Open};

/// What takes less came from the page cache, and needs no rest.
const FROM_DISK_MIN: Duration = Duration::from_micros(50);
/// A disk that hangs for a moment does not hold readers up for as long again.
const REST_MAX: Duration = Duration::from_millis(20);

/// How long to leave the disk to others after a piece was read.
fn rest_after(took: Duration) -> Option<Duration> {
    (took >= FROM_DISK_MIN).then(|| took.min(REST_MAX))
}

#[derive(Debug)]
pub struct DirectoryDisk {
    path: PathBuf,
}

impl DirectoryDisk {
    /// The directory must exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Disk for DirectoryDisk {
    fn open(&self, name: &str, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.path.join(name);
        let file = match how {
            Open::Read => File::open(&path)?,
            Open::Create => File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(&path)?,
            Open::Log { .. } => File::options().read(true).write(true).open(&path)?,
        };
        let syncs = matches!(how, Open::Log { durable: true });
        let direct = match how {
            Open::Log { durable: true } => open_direct(&path, OFlags::DSYNC)?,
            Open::Create => open_direct(&path, OFlags::empty())?,
            Open::Read | Open::Log { durable: false } => None,
        };
        Ok(Arc::new(DirectoryFile {
            file,
            direct_works: AtomicBool::new(direct.is_some()),
            direct,
            syncs,
            reads_ahead: Mutex::new(true),
        }))
    }

    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if let (true, Ok(name)) = (metadata.is_file(), entry.file_name().into_string()) {
                files.push((name, metadata.len()));
            }
        }
        Ok(files)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn describe(&self, name: &str) -> String {
        self.path.join(name).display().to_string()
    }
}

/// `None` where the file system has no direct I/O.
fn open_direct(path: &Path, more: OFlags) -> io::Result<Option<File>> {
    let flags = (OFlags::DIRECT | more).bits() as i32;
    match OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(path)
    {
        Ok(file) => Ok(Some(file)),
        Err(error) if is_refusal(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_refusal(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    [Errno::INVAL, Errno::OPNOTSUPP]
        .iter()
        .any(|errno| code == Some(errno.raw_os_error()))
}

#[derive(Debug)]
struct DirectoryFile {
    file: File,
    direct: Option<File>,
    direct_works: AtomicBool,
    /// A write is durable when it returns, while `direct_works`.
    syncs: bool,
    /// Whether the kernel reads more than it is asked for, as it does until it is told not to. With
    /// disks that are set up for it that is 8 MB: as many milliseconds in which nothing is synced.
    reads_ahead: Mutex<bool>,
}

impl DirectoryFile {
    /// For memory and a place that direct I/O takes.
    fn direct(&self, buf: &[u8], offset: u64) -> Option<&File> {
        let aligned = offset.is_multiple_of(BLOCK_BYTES as u64)
            && buf.len().is_multiple_of(BLOCK_BYTES)
            && buf.as_ptr().align_offset(BLOCK_BYTES) == 0;
        self.direct
            .as_ref()
            .filter(|_| aligned && self.direct_works.load(Ordering::Relaxed))
    }

    fn read_ahead(&self, wanted: bool) {
        let mut reads_ahead = self.reads_ahead.lock();
        if *reads_ahead != wanted {
            *reads_ahead = wanted;
            let advice = if wanted {
                Advice::Normal
            } else {
                Advice::Random
            };
            // A file system that takes no advice reads as it likes.
            let _ = fadvise(&self.file, 0, None, advice);
        }
    }
}

impl DiskFile for DirectoryFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if let Some(direct) = self.direct(buf, offset) {
            match direct.read_exact_at(buf, offset) {
                Err(error) if is_refusal(&error) => {}
                other => return other,
            }
        }
        self.read_ahead(true);
        self.file.read_exact_at(buf, offset)
    }

    fn read_gently_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_ahead(false);
        let mut at = offset;
        for piece in buf.chunks_mut(GENTLE_READ_BYTES) {
            let began = Instant::now();
            self.file.read_exact_at(piece, at)?;
            at += piece.len() as u64;
            if let Some(rest) = rest_after(began.elapsed()) {
                std::thread::sleep(rest);
            }
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        if let Some(direct) = self.direct(buf, offset) {
            match direct.write_all_at(buf, offset) {
                // Nothing was written: the file system takes the flag and refuses the write.
                Err(error) if is_refusal(&error) => {
                    self.direct_works.store(false, Ordering::Relaxed);
                }
                other => return other,
            }
        } else if self.syncs_itself() {
            self.file.write_all_at(buf, offset)?;
            return self.file.sync_data();
        }
        self.file.write_all_at(buf, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn syncs_itself(&self) -> bool {
        self.syncs && self.direct_works.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::AlignedBuf;
    use super::*;

    #[test]
    fn aligned_and_other_writes_to_a_new_file_are_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let disk = DirectoryDisk::new(dir.path());
        let file = disk.open("new", Open::Create).unwrap();
        assert!(!file.syncs_itself());
        let mut whole = AlignedBuf::default();
        for byte in 0..3 * BLOCK_BYTES + 17 {
            whole.extend(&[byte as u8]);
        }
        let (blocks, tail) = whole.as_slice().split_at(3 * BLOCK_BYTES);
        file.write_at(blocks, 0).unwrap();
        file.write_at(tail, blocks.len() as u64).unwrap();
        file.sync().unwrap();
        assert_eq!(file.size().unwrap(), whole.len() as u64);
        let mut read = AlignedBuf::default();
        read.resize(whole.len());
        let (first, rest) = read.as_mut_slice().split_at_mut(2 * BLOCK_BYTES);
        file.read_at(first, 0).unwrap();
        file.read_at(rest, 2 * BLOCK_BYTES as u64).unwrap();
        assert_eq!(read.as_slice(), whole.as_slice());
        let past_the_end = file.read_at(
            &mut read.as_mut_slice()[..BLOCK_BYTES],
            3 * BLOCK_BYTES as u64,
        );
        assert_eq!(
            past_the_end.unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }

    #[test]
    fn a_log_file_is_written_in_place_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let disk = DirectoryDisk::new(dir.path());
        let mut block = AlignedBuf::default();
        block.resize(2 * BLOCK_BYTES);
        let created = disk.open("log", Open::Create).unwrap();
        created.write_at(block.as_slice(), 0).unwrap();
        created.sync().unwrap();
        disk.sync_dir().unwrap();

        for durable in [true, false] {
            let file = disk.open("log", Open::Log { durable }).unwrap();
            block.as_mut_slice().fill(7 + u8::from(durable));
            block.resize(BLOCK_BYTES);
            file.write_at(block.as_slice(), BLOCK_BYTES as u64).unwrap();
            if !file.syncs_itself() {
                file.sync().unwrap();
            }
            let mut read = vec![1; 2 * BLOCK_BYTES];
            file.read_at(&mut read, 0).unwrap();
            assert!(read[..BLOCK_BYTES].iter().all(|byte| *byte == 0));
            assert_eq!(&read[BLOCK_BYTES..], block.as_slice());
            let past_the_end = file.read_at(&mut read, 1).unwrap_err();
            assert_eq!(past_the_end.kind(), io::ErrorKind::UnexpectedEof);
        }
        assert_eq!(
            disk.list().unwrap(),
            [("log".to_owned(), 2 * BLOCK_BYTES as u64)]
        );
    }

    #[test]
    fn a_rest_is_as_long_as_the_read_but_not_without_end() {
        let us = Duration::from_micros;
        assert_eq!(rest_after(us(49)), None, "from memory");
        assert_eq!(rest_after(us(50)), Some(us(50)));
        assert_eq!(rest_after(us(700)), Some(us(700)));
        assert_eq!(rest_after(us(2_000_000)), Some(us(20_000)));
    }

    #[test]
    fn a_gentle_read_brings_the_same_in_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let disk = DirectoryDisk::new(dir.path());
        let bytes: Vec<u8> = (0..2 * GENTLE_READ_BYTES as u32 + 1000)
            .map(|n| (n % 251) as u8)
            .collect();
        std::fs::write(dir.path().join("file"), &bytes).unwrap();
        let file = disk.open("file", Open::Read).unwrap();
        for (offset, count) in [(0, bytes.len()), (77, GENTLE_READ_BYTES + 5), (3, 1)] {
            let wanted = &bytes[offset..offset + count];
            let mut read = vec![0; count];
            file.read_gently_at(&mut read, offset as u64).unwrap();
            assert_eq!(read, wanted);
            read.fill(0);
            file.read_at(&mut read, offset as u64).unwrap();
            assert_eq!(read, wanted);
        }
        let past_the_end = file.read_gently_at(&mut vec![0; bytes.len()], 1);
        assert_eq!(
            past_the_end.unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }
}
