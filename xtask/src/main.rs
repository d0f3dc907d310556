//! The build tool of this repository.

mod codegen;

use std::path::Path;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    match std::env::args().nth(1).as_deref() {
        Some("codegen") => codegen::run(&workspace),
        other => bail!(
            "unknown task `{}`; known: codegen",
            other.unwrap_or_default()
        ),
    }
}
