//! Serverless event streaming in one binary.
//!
//! This crate is the wiring: the command line, the configuration, the logs, and which roles run
//! together. What they do is in the crates below it.

mod cli;
mod codes;
mod config;
mod failure;
mod output;
mod serve;
mod telemetry;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    cli::main()
}
