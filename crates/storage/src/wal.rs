//! The write-ahead log: one for all ledgers and for the state machine, so that one sync covers all
//! that arrived together.

pub mod record;

pub mod queue;

pub mod log_segment;
pub mod recovery;
pub mod writer;
