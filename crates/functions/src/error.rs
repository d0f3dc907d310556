//! What the worker answers when it can not do what was asked.

use crate::component::ComponentId;

/// An operation of the worker failed.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error("{} {} doesn't exist", .0.kind.title(), .0.name)]
    NotFound(ComponentId),
    #[error("{} {} already exists", .0.kind.title(), .0.name)]
    Exists(ComponentId),
    #[error("instance {instance} of {id} doesn't exist: it has {instances}")]
    NoInstance {
        id: ComponentId,
        instance: u32,
        instances: u32,
    },
    /// The configuration can not be honoured.
    #[error("{}", .0.join("; "))]
    Invalid(Vec<String>),
    #[error("state key `{key}` of {id} doesn't exist")]
    NoState { id: ComponentId, key: String },
    #[error("{what} timed out after {after_ms} ms")]
    Timeout { what: &'static str, after_ms: u64 },
    #[error("{what}: {source}")]
    Client {
        what: String,
        #[source]
        source: geminga_client::Error,
    },
    #[error("{what}: {source}")]
    Io {
        what: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the worker is stopping")]
    Stopping,
    /// Another worker writes the catalogue.
    #[error("this worker does not lead: ask the leader")]
    NotLeader,
    /// Workers of another kind keep their functions there.
    #[error("`{topic}` is for Apache Pulsar's own workers: {why}")]
    PulsarsOwn { topic: String, why: String },
    #[error("there is no worker `{0}`")]
    NoWorker(String),
    #[error("Package '{0}' metadata does not exist")]
    NoPackage(String),
    #[error("Package '{0}' metadata already exists")]
    PackageExists(String),
    /// An update that did not start, and was undone.
    #[error("version {version} of {id} did not start, version {restored} runs again: {why}")]
    RolledBack {
        id: ComponentId,
        version: u64,
        restored: u64,
        why: String,
    },
}

impl WorkerError {
    pub(crate) fn client(what: impl Into<String>) -> impl FnOnce(geminga_client::Error) -> Self {
        let what = what.into();
        move |source| Self::Client { what, source }
    }

    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// Whether the same call may succeed a little later.
    #[must_use]
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Client { source, .. } => source.is_retriable(),
            Self::Timeout { .. } | Self::NotLeader => true,
            _ => false,
        }
    }
}
