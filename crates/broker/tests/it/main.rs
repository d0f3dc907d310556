//! The broker as a client sees it: raw frames over an in-process pipe, on a store in memory.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod auth;
mod bad_input;
mod compaction;
mod connect;
mod consume;
mod crashes;
mod dedup;
mod fuzz;
mod lookup;
mod node;
mod nonpersistent;
mod operators;
mod policies;
mod produce;
mod replication;
mod restart;
mod rights;
mod server;
mod subscriptions;
mod tls;
mod transaction_crash;
mod transactions;
mod txn;
mod wire;
