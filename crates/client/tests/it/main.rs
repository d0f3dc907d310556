//! The client as its users see it.
//!
//! `producing` and `consuming` run against a fake broker that a test plays step by step. `broker`
//! runs against our own in this process, or, where `GEMINGA_TEST_SERVICE_URL` names one (for example
//! `pulsar://127.0.0.1:6650`), against that: so the same tests judge the client with Apache Pulsar.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

mod broker;
mod consuming;
mod fake;
mod producing;
mod schemas;
mod transactions;
