//! The seam between the store and the file system: everything that the embedded store reads or
//! writes goes through [`Disk`], so that tests can tear, lose, reorder and refuse writes
//! ([`faulty::FaultyDisk`]).
//!
//! What must hold: a write is durable after the `sync` of its file, or when it returns from a file
//! opened with [`Open::Log`] whose [`DiskFile::syncs_itself`] says so. A name (create, rename,
//! remove) is durable after [`Disk::sync_dir`]. The store keeps one flat directory.

mod aligned;
mod directory;
pub mod faulty;

use std::fmt;
use std::io;
use std::sync::Arc;

pub use aligned::{AlignedBuf, BLOCK_BYTES};
pub use directory::DirectoryDisk;

/// What a gentle read asks of the disk at a time. A commit waits behind one at most: of a disk that reads
/// 1 GB/s in pieces of 256 KB, a sync's p99 beside them was 1.6 times that without, with these 1.1 times.
pub const GENTLE_READ_BYTES: usize = 64 << 10;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// Existing, for reading only.
    Read,
    /// Empty and writable, replacing what had the name; durable after `sync`.
    Create,
    /// Existing, read and written in place. With `durable`, each write is durable when it returns
    /// if the file system can do that (see [`DiskFile::syncs_itself`]).
    Log { durable: bool },
}

/// A directory of files with the store's durability rules.
pub trait Disk: Send + Sync + fmt::Debug + 'static {
    fn open(&self, name: &str, how: Open) -> io::Result<Arc<dyn DiskFile>>;
    /// Every file's name and length, in no order.
    fn list(&self) -> io::Result<Vec<(String, u64)>>;
    /// Replaces `to` atomically.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
    fn sync_dir(&self) -> io::Result<()>;
    /// What an ordinary user may still write.
    fn free_bytes(&self) -> io::Result<u64>;
    /// For messages: where a file of this name is.
    fn describe(&self, name: &str) -> String;
}

/// An open file; calls take `&self` and may run in parallel.
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// Fills `buf` from `offset`; an end of file before that is `UnexpectedEof`.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// As `read_at`, while somebody waits for syncs of this disk: [`GENTLE_READ_BYTES`] are asked of it at
    /// a time and nothing that was not asked for, and the thread then rests as long as that took. A sync
    /// waits behind all that was asked for before it.
    fn read_gently_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_at(buf, offset)
    }
    /// Writes the whole of `buf`. Where the offset and the length are multiples of [`BLOCK_BYTES`]
    /// and the memory is aligned to it ([`AlignedBuf`]) it goes the fast way, past the page cache;
    /// reads do too.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    fn sync(&self) -> io::Result<()>;
    fn size(&self) -> io::Result<u64>;
    /// True if a write is durable when it returns.
    fn syncs_itself(&self) -> bool;
}
