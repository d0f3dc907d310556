//! What can go wrong in the broker, and how Pulsar's clients are told.

use geminga_proto::pb::ServerError;
use geminga_storage::error::{AppendError, ManagedError, MetadataError, StoreError};
use thiserror::Error;

/// A refused or failed operation. One kind for clients, admin and the binary: each maps `kind()`.
#[derive(Debug, Clone, Error)]
pub enum BrokerError {
    #[error("setting `{setting}` {reason}")]
    BadSetting {
        setting: &'static str,
        reason: &'static str,
    },
    #[error("invalid topic name: {0}")]
    InvalidTopicName(String),
    #[error("Tenant does not exist: `{0}`")]
    TenantNotFound(String),
    #[error("Namespace does not exist: `{0}`")]
    NamespaceNotFound(String),
    #[error("Topic {0} not found")]
    TopicNotFound(String),
    #[error("Subscription {subscription} not found on {topic}")]
    SubscriptionNotFound { topic: String, subscription: String },
    #[error("Consumer not found")]
    ConsumerNotFound,
    #[error("Schema not found")]
    SchemaNotFound,
    #[error("Cluster does not exist")]
    ClusterNotFound,
    /// A document that cannot be what it says it is.
    #[error("{0}")]
    Malformed(String),
    /// Something else that an operator names.
    #[error("{0}")]
    NotFound(String),
    /// Whoever asks: what is asked for must not be.
    #[error("{0}")]
    NotPermitted(String),
    #[error("{0}")]
    AlreadyExists(String),
    /// Not now, because of what is connected or stored.
    #[error("{0}")]
    PreconditionFailed(String),
    #[error("{0}")]
    NotAllowed(String),
    #[error("{0}")]
    ProducerBusy(String),
    #[error("{0}")]
    ProducerFenced(String),
    /// The producer's client is to wait.
    #[error("{0}")]
    QuotaHold(String),
    /// The producer's client is to fail.
    #[error("{0}")]
    QuotaExceeded(String),
    #[error("{0}")]
    ConsumerBusy(String),
    #[error("{0}")]
    ConsumerAssign(String),
    #[error("{0}")]
    IncompatibleSchema(String),
    /// The definition itself cannot be read.
    #[error("{0}")]
    InvalidSchema(String),
    #[error("{0}")]
    Metadata(String),
    #[error("{0}")]
    Persistence(String),
    /// Try again, perhaps after a new lookup.
    #[error("{0}")]
    NotReady(String),
    #[error("{0} is terminated")]
    Terminated(String),
    #[error("transaction coordinator {0} is not here")]
    CoordinatorNotFound(u64),
    #[error("the transaction {0} does not exist")]
    TransactionNotFound(String),
    #[error("{0}")]
    InvalidTransaction(String),
    #[error("{0}")]
    TransactionConflict(String),
    #[error("transaction coordinator {0} has as many open transactions as it may")]
    TooManyTransactions(u64),
    #[error("{0}")]
    Unknown(String),
    /// Known, but without the right.
    #[error("{0}")]
    NotAuthorized(String),
    #[error("TLS cannot be used: {0}")]
    Tls(String),
    #[error("cannot listen on `{address}`: {reason}")]
    Listen { address: String, reason: String },
}

/// The kind of an error, for those who map it to HTTP or exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    Invalid,
    Malformed,
    /// Well-formed, but the document in it is not.
    Unprocessable,
    NotFound,
    Conflict,
    PreconditionFailed,
    NotAllowed,
    NotAuthorized,
    NotPermitted,
    Unavailable,
    Internal,
}

impl BrokerError {
    pub fn kind(&self) -> ErrorKind {
        match self {
            BrokerError::BadSetting { .. } | BrokerError::InvalidTopicName(_) => ErrorKind::Invalid,
            BrokerError::Malformed(_) => ErrorKind::Malformed,
            BrokerError::InvalidSchema(_) => ErrorKind::Unprocessable,
            BrokerError::NotAuthorized(_) => ErrorKind::NotAuthorized,
            BrokerError::NotPermitted(_) => ErrorKind::NotPermitted,
            BrokerError::TenantNotFound(_)
            | BrokerError::NamespaceNotFound(_)
            | BrokerError::TopicNotFound(_)
            | BrokerError::SubscriptionNotFound { .. }
            | BrokerError::ConsumerNotFound
            | BrokerError::CoordinatorNotFound(_)
            | BrokerError::TransactionNotFound(_)
            | BrokerError::ClusterNotFound
            | BrokerError::NotFound(_)
            | BrokerError::SchemaNotFound => ErrorKind::NotFound,
            BrokerError::AlreadyExists(_)
            | BrokerError::ProducerBusy(_)
            | BrokerError::ProducerFenced(_)
            | BrokerError::QuotaHold(_)
            | BrokerError::QuotaExceeded(_)
            | BrokerError::ConsumerBusy(_)
            | BrokerError::ConsumerAssign(_)
            | BrokerError::InvalidTransaction(_)
            | BrokerError::TransactionConflict(_)
            | BrokerError::IncompatibleSchema(_) => ErrorKind::Conflict,
            BrokerError::PreconditionFailed(_) | BrokerError::Terminated(_) => {
                ErrorKind::PreconditionFailed
            }
            BrokerError::NotAllowed(_) => ErrorKind::NotAllowed,
            BrokerError::NotReady(_) | BrokerError::TooManyTransactions(_) => {
                ErrorKind::Unavailable
            }
            BrokerError::Metadata(_)
            | BrokerError::Persistence(_)
            | BrokerError::Unknown(_)
            | BrokerError::Tls(_)
            | BrokerError::Listen { .. } => ErrorKind::Internal,
        }
    }

    /// As a client on the wire sees it.
    pub(crate) fn server_error(&self) -> ServerError {
        match self {
            BrokerError::InvalidTopicName(_) => ServerError::InvalidTopicName,
            BrokerError::TenantNotFound(_)
            | BrokerError::NamespaceNotFound(_)
            | BrokerError::TopicNotFound(_)
            | BrokerError::SchemaNotFound => ServerError::TopicNotFound,
            BrokerError::SubscriptionNotFound { .. } => ServerError::SubscriptionNotFound,
            BrokerError::ConsumerNotFound => ServerError::ConsumerNotFound,
            BrokerError::NotAllowed(_) => ServerError::NotAllowedError,
            BrokerError::ProducerBusy(_) => ServerError::ProducerBusy,
            BrokerError::QuotaHold(_) => ServerError::ProducerBlockedQuotaExceededError,
            BrokerError::QuotaExceeded(_) => ServerError::ProducerBlockedQuotaExceededException,
            BrokerError::ProducerFenced(_) => ServerError::ProducerFenced,
            BrokerError::ConsumerBusy(_) => ServerError::ConsumerBusy,
            BrokerError::ConsumerAssign(_) => ServerError::ConsumerAssignError,
            BrokerError::IncompatibleSchema(_) | BrokerError::InvalidSchema(_) => {
                ServerError::IncompatibleSchema
            }
            BrokerError::Metadata(_) | BrokerError::PreconditionFailed(_) => {
                ServerError::MetadataError
            }
            BrokerError::Persistence(_) => ServerError::PersistenceError,
            BrokerError::NotReady(_) => ServerError::ServiceNotReady,
            BrokerError::Terminated(_) => ServerError::TopicTerminatedError,
            BrokerError::CoordinatorNotFound(_) => ServerError::TransactionCoordinatorNotFound,
            BrokerError::TransactionNotFound(_) => ServerError::TransactionNotFound,
            BrokerError::InvalidTransaction(_) => ServerError::InvalidTxnStatus,
            BrokerError::TransactionConflict(_) => ServerError::TransactionConflict,
            BrokerError::TooManyTransactions(_) => ServerError::TooManyRequests,
            BrokerError::NotAuthorized(_) | BrokerError::NotPermitted(_) => {
                ServerError::AuthorizationError
            }
            BrokerError::ClusterNotFound
            | BrokerError::NotFound(_)
            | BrokerError::Malformed(_)
            | BrokerError::BadSetting { .. }
            | BrokerError::Tls(_)
            | BrokerError::AlreadyExists(_)
            | BrokerError::Unknown(_)
            | BrokerError::Listen { .. } => ServerError::UnknownError,
        }
    }
}

impl From<StoreError> for BrokerError {
    fn from(error: StoreError) -> BrokerError {
        match error {
            StoreError::Fenced { .. } => BrokerError::NotReady(error.to_string()),
            _ => BrokerError::Persistence(error.to_string()),
        }
    }
}

impl From<MetadataError> for BrokerError {
    fn from(error: MetadataError) -> BrokerError {
        match error {
            MetadataError::Store(error) => error.into(),
            MetadataError::Conflict { .. } => {
                BrokerError::AlreadyExists("Concurrent modification".to_owned())
            }
            _ => BrokerError::Metadata(error.to_string()),
        }
    }
}

impl From<ManagedError> for BrokerError {
    fn from(error: ManagedError) -> BrokerError {
        match error {
            ManagedError::NotFound { name } | ManagedError::Deleted { name } => {
                BrokerError::TopicNotFound(name.to_string())
            }
            ManagedError::Metadata(error) => error.into(),
            ManagedError::Store(error) => error.into(),
            ManagedError::Terminated => BrokerError::Terminated("the topic".to_owned()),
            _ => BrokerError::Persistence(error.to_string()),
        }
    }
}

impl From<AppendError> for BrokerError {
    fn from(error: AppendError) -> BrokerError {
        match error {
            AppendError::Terminated => BrokerError::Terminated("the topic".to_owned()),
            _ => BrokerError::Persistence(error.to_string()),
        }
    }
}
