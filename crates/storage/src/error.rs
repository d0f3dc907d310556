//! What can go wrong in storage. One small enum per boundary; every error is cheap to clone, since
//! one failure is told to many waiters.

use geminga_model::LedgerId;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// A failure of a ledger store or of its log.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The store stopped for good, for example after a failed sync. Only a new open helps.
    #[error("the store has stopped: {reason}")]
    Stopped { reason: Arc<str> },
    /// Another writer took the ledger over, or it is sealed.
    #[error("ledger `{ledger}` is fenced")]
    Fenced { ledger: LedgerId },
    #[error("ledger `{ledger}` does not exist")]
    NoLedger { ledger: LedgerId },
    /// Nothing can be stored until space returns. Retriable.
    #[error("the disk is full")]
    Full,
    /// What was read is not what was written.
    #[error("`{}` is damaged at offset {offset}: {what}", path.display())]
    Corrupt {
        path: PathBuf,
        offset: u64,
        what: Arc<str>,
    },
    /// A state record which this version cannot read.
    #[error("a state record is damaged: {what}")]
    BadRecord { what: Arc<str> },
    #[error("{context}")]
    Io {
        context: Arc<str>,
        #[source]
        source: Arc<io::Error>,
    },
    /// Another process has the directory open.
    #[error("{reason}")]
    Locked { reason: Arc<str> },
    /// A newer version wrote the directory.
    #[error("{reason}")]
    NewerFormat { reason: Arc<str> },
    /// The directory cannot be opened: it cannot be made, read or written, or is not ours.
    #[error("{reason}")]
    CannotOpen { reason: Arc<str> },
}

impl StoreError {
    /// True where the same call may succeed later on the same store.
    #[must_use]
    pub fn is_retriable(&self) -> bool {
        matches!(self, Self::Full)
    }

    pub fn stopped(reason: impl Into<Arc<str>>) -> Self {
        Self::Stopped {
            reason: reason.into(),
        }
    }

    pub fn bad_record(what: impl Into<Arc<str>>) -> Self {
        Self::BadRecord { what: what.into() }
    }

    pub fn io(context: impl Into<Arc<str>>, source: io::Error) -> Self {
        Self::Io {
            context: context.into(),
            source: Arc::new(source),
        }
    }
}

/// Why entries were not taken. Nothing of the run was stored.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// The ledger takes no more: sealed, fenced by another writer, or failed.
    #[error("ledger `{ledger}` is fenced")]
    Fenced { ledger: LedgerId },
    /// The managed ledger has no open ledger; `ManagedLedger::prepare` makes one.
    #[error("the topic has no open ledger")]
    NotReady,
    /// The topic was terminated: it never takes entries again.
    #[error("the topic is terminated")]
    Terminated,
    /// The topic was deleted.
    #[error("the topic is deleted")]
    Deleted,
    /// Below the free-space threshold. Retriable.
    #[error("the disk is full")]
    Full,
    /// More waits for the disk than may wait. Retriable.
    #[error("the log is behind by more than its limit")]
    Busy,
    /// The run is empty, or larger than one record may be.
    #[error("a run of {entries} entries and {bytes} bytes is outside of the limits")]
    BadRun { entries: usize, bytes: usize },
    #[error("the store has stopped: {reason}")]
    Stopped { reason: Arc<str> },
}

impl AppendError {
    /// True where the same call may succeed later, after `ManagedLedger::prepare` if need be.
    #[must_use]
    pub fn is_retriable(&self) -> bool {
        matches!(
            self,
            Self::Full | Self::Busy | Self::NotReady | Self::Fenced { .. }
        )
    }
}

/// A failure of the metadata store.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MetadataError {
    /// The key is not at the expected version. `found` is its version, none when it does not exist.
    #[error("`{key}` is not at the expected version")]
    Conflict {
        key: Arc<str>,
        found: Option<crate::metadata::Version>,
    },
    #[error("a metadata key, value or batch is outside of the limits: {what}")]
    TooLarge { what: &'static str },
    #[error("the watcher missed changes and must read again")]
    Lagged,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A failure of a managed ledger or a cursor.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ManagedError {
    #[error("topic `{name}` does not exist")]
    NotFound { name: Arc<str> },
    #[error("topic `{name}` is deleted")]
    Deleted { name: Arc<str> },
    #[error("cursor `{name}` does not exist")]
    NoCursor { name: Arc<str> },
    /// More holes between acks than a cursor may have; the ack was not taken.
    #[error("cursor `{name}` has reached its limit of {max} ranges of acks")]
    TooManyRanges { name: Arc<str>, max: usize },
    /// What the metadata holds about the topic cannot be read.
    #[error("the ledger list of `{name}` is damaged")]
    BadLedgerList { name: Arc<str> },
    #[error("the topic is terminated")]
    Terminated,
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error(transparent)]
    Store(#[from] StoreError),
}
