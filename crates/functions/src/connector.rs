//! The built-in connectors: ends of an instance that are not topics.

pub(crate) mod file_sink;
pub(crate) mod file_source;
pub(crate) mod table;
