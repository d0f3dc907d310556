//! The build tool of this repository: `cargo xtask TASK`.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a build tool talks on the terminal"
)]

mod codegen;
mod tidy;

use std::path::Path;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    match std::env::args().nth(1).as_deref() {
        Some("codegen") => codegen::run(&workspace),
        Some("tidy") => tidy::run(&workspace),
        other => bail!(
            "unknown task `{}`; known: codegen, tidy",
            other.unwrap_or_default()
        ),
    }
}
