//! Segment files: entries of finished log segments, sorted by ledger, for reading.
//!
//! ```text
//! header, records (runs of about 64 KiB, one ledger after the other), index, footer
//! ```
//!
//! The records are the log's, salted with the file's own salt. The index has 24 bytes per ledger and 8
//! per run; it is loaded when the file is first read. A file is written once and never changed.
//! What must hold: a file counts only if the checkpoint names it.

pub mod format;
pub mod gc;
pub mod reader;
pub mod writer;

#[cfg(test)]
mod tests;
