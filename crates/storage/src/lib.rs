//! Ledgers, segment files, managed ledgers, cursors and the metadata store
