//! Ledgers, segment files, managed ledgers, cursors and the metadata store. Entries are opaque bytes.
//!
//! Reading order: `ledger` is the contract below (a store of ledgers, and a log for small records),
//! `disk` and `wal` are the engine behind it, `metadata` and `managed` are built on it and are what
//! the broker uses.

mod codec;
pub mod config;
pub mod disk;
pub mod embedded;
pub mod error;
pub mod ledger;
pub mod managed;
pub mod metadata;
pub mod segment;
pub mod state;
mod storage;
pub mod wal;

pub use config::ManagedConfig;
pub use embedded::{Durability, EmbeddedConfig, EmbeddedStore};
pub use error::{AppendError, ManagedError, MetadataError, StoreError};
pub use ledger::{
    AppendObserver, BoxFuture, Entry, LedgerEnd, LedgerStore, LedgerWriter, ReadLimits, Space,
    SpaceLevel, StateLog, StateMachine, Ticket,
};
pub use metadata::{EmbeddedMetadata, MetadataStore};
pub use state::State;
pub use storage::Storage;
