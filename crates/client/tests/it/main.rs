//! The client as its users see it.
//!
//! `producing` and `consuming` run against a fake broker that a test plays step by step. `broker`
//! runs against a real one, Geminga's or Apache Pulsar's, where `GEMINGA_TEST_SERVICE_URL` names it
//! (for example `pulsar://127.0.0.1:6650`); without it those tests pass without a look.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

mod broker;
mod consuming;
mod fake;
mod producing;
