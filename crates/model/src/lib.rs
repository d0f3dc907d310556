//! The nouns of Geminga: names, ids, positions, function and mesh specs.
//!
//! Pure: no I/O, no async, no clock. Text is parsed once, at the edge, into these types.

pub mod name;
pub mod position;

pub use name::{NameError, NamespaceName, TopicDomain, TopicName};
pub use position::{EntryId, LedgerId, Position};
