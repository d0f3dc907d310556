//! The nouns of Geminga: names, ids, positions, function and mesh specs.
//!
//! Pure: no I/O, no async, no clock. Text is parsed once, at the edge, into these types.

mod config_struct;
pub mod connector;
pub mod function;
pub mod io_config;
pub mod name;
pub mod position;
pub mod secret;
pub mod validate;

pub use connector::{BatchSourceConfig, SinkConfig, SourceConfig};
pub use function::{
    FunctionConfig, ProcessingGuarantees, Resources, Runtime, SubscriptionPosition, WindowConfig,
};
pub use io_config::{BatchBuilder, CompressionType, ConsumerConfig, CryptoConfig, ProducerConfig};
pub use name::{NameError, NamespaceName, TopicDomain, TopicName};
pub use position::{EntryId, LedgerId, Position};
pub use secret::{Secret, Secrets};
