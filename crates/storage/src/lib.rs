//! Ledgers, segment files, managed ledgers, cursors and the metadata store

pub mod disk;
pub mod wal;
