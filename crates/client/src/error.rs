//! What can go wrong for a user of the client.

use std::io;
use std::sync::Arc;

use geminga_model::name::NameError;
use geminga_proto::pb::ServerError;
use geminga_proto::{CompressionError, FrameError, MessageError};

use crate::transaction::TransactionId;

/// An error of the client. Cheap to clone: a lost connection gives the same error to every
/// message that it carried.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The service URL is not one.
    #[error("service url `{url}` {reason}")]
    Url {
        /// The text given.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// What is needed to speak TLS can not be used.
    #[error(transparent)]
    Tls(#[from] crate::tls::TlsError),
    /// A topic name is not legal.
    #[error("topic `{topic}`: {source}")]
    Topic {
        /// The text given.
        topic: String,
        /// What is wrong with it.
        source: NameError,
    },
    /// A pattern of topics is not a regular expression.
    #[error("pattern `{pattern}`: {reason}")]
    Pattern {
        /// The text given.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A setting of a builder cannot be honoured.
    #[error("setting `{setting}` {reason}")]
    Setting {
        /// The builder's method.
        setting: &'static str,
        /// Why not.
        reason: &'static str,
    },
    /// No connection could be made.
    #[error("cannot connect to `{address}`: {source}")]
    Connect {
        /// Host and port.
        address: String,
        /// What the system says.
        source: Arc<io::Error>,
    },
    /// The connection was lost before an answer came.
    #[error("connection to `{address}` lost: {reason}")]
    Disconnected {
        /// Host and port.
        address: String,
        /// Why.
        reason: String,
    },
    /// The peer sent something that is not Pulsar's protocol.
    #[error("bad frame from `{address}`: {source}")]
    Frame {
        /// Host and port.
        address: String,
        /// What is wrong with it.
        source: FrameError,
    },
    /// The broker sent another command than the request asks for.
    #[error("unexpected answer `{0}`")]
    UnexpectedAnswer(&'static str),
    /// The broker refused.
    #[error("{}: {message}", code_name(*code))]
    Server {
        /// Pulsar's error code.
        code: i32,
        /// The broker's words.
        message: String,
    },
    /// Something took longer than its limit.
    #[error("{what} timed out after `{after_ms}` ms")]
    Timeout {
        /// The operation.
        what: &'static str,
        /// The limit.
        after_ms: u64,
    },
    /// A lookup went from broker to broker without end.
    #[error("lookup of `{topic}` was redirected `{redirects}` times")]
    TooManyRedirects {
        /// The topic looked up.
        topic: String,
        /// How often it was sent on.
        redirects: u32,
    },
    /// A message is larger than the broker takes.
    #[error("message of `{size}` bytes is over the broker's limit of `{max}`")]
    MessageTooLarge {
        /// Payload as it would be sent, with properties and keys where it is these that are too much.
        size: usize,
        /// The limit.
        max: usize,
    },
    /// A payload could not be packed.
    #[error(transparent)]
    Compression(#[from] CompressionError),
    /// A received message could not be read.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// A message id is not one of a topic that the consumer reads.
    #[error("topic `{0}` is not one of this consumer")]
    UnknownTopic(String),
    /// The cluster has no transactions, or has them switched off.
    #[error("the broker has no transactions")]
    NoTransactions,
    /// The transaction was committed or aborted before, or is about to be.
    #[error("the transaction is over")]
    TransactionOver,
    /// The end of a transaction was asked for, and no answer could be had.
    #[error("whether the transaction `{0}` was ended is not known")]
    OutcomeUnknown(TransactionId),
    /// The producer, consumer or client was closed.
    #[error("already closed")]
    Closed,
}

/// The result of an operation of the client.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn server(code: i32, message: impl Into<String>) -> Self {
        Error::Server {
            code,
            message: message.into(),
        }
    }

    /// The broker's error code, where a broker refused.
    #[must_use]
    pub fn server_error(&self) -> Option<ServerError> {
        match self {
            Error::Server { code, .. } => ServerError::try_from(*code).ok(),
            _ => None,
        }
    }

    /// Whether the same operation may succeed a little later.
    #[must_use]
    pub fn is_retriable(&self) -> bool {
        match self {
            // Who is not trusted now will not be a little later.
            Error::Connect { source, .. } => crate::tls::Distrust::behind(&**source).is_none(),
            Error::Disconnected { .. } | Error::Timeout { .. } => true,
            Error::TooManyRedirects { .. } => true,
            Error::Server { .. } => matches!(
                self.server_error(),
                Some(
                    ServerError::ServiceNotReady
                        | ServerError::TooManyRequests
                        | ServerError::PersistenceError
                        | ServerError::MetadataError
                        | ServerError::UnknownError
                        | ServerError::ProducerBlockedQuotaExceededError
                )
            ),
            _ => false,
        }
    }

    /// Whether a producer or consumer that was open before should go on trying to come back. A name
    /// that is in use, for example, is our own old connection that the broker has not missed yet.
    pub(crate) fn is_retriable_after_open(&self) -> bool {
        self.is_retriable()
            || matches!(
                self.server_error(),
                Some(
                    ServerError::ProducerBusy
                        | ServerError::ConsumerBusy
                        | ServerError::ConsumerAssignError
                )
            )
    }
}

fn code_name(code: i32) -> &'static str {
    ServerError::try_from(code).map_or("UNKNOWN_CODE", |code| code.as_str_name())
}
