//! The REST admin API: the server that `pulsar-admin` and our own commands speak to, and a client.
//!
//! `server` is the HTTP listener, `rest` the endpoints, `client` the other end. The paths and JSON
//! documents are Pulsar 4.0.8's; this is the only crate that knows axum.

pub mod client;
mod endpoint;
mod error;
mod multipart;
mod request;
mod rest;
pub mod server;

pub use error::ApiError;
pub use rest::{Admin, function_rights, worker_router};
pub use server::Server;
