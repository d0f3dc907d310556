//! Logs: human lines on stderr, the level from `-v` or `GEMINGA_LOG`.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts the log. `verbose` counts the `-v`s; `default` is the level without any.
pub(crate) fn start(verbose: u8, default: &str) {
    let level = match verbose {
        0 => default,
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("GEMINGA_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    // A second start (tests in one process) keeps the first; nothing is lost.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .try_init();
}
