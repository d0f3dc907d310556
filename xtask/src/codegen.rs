//! Turns `crates/proto/pulsar/*.proto` into `crates/proto/src/generated.rs`.
//!
//! The result is committed, so that no build needs `protoc` or this step; the test below fails
//! when the two have drifted apart. protox parses the files, prost-build writes the Rust.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

const PROTO_FILES: [&str; 2] = ["pulsar.proto", "markers.proto"];

/// Writes the generated file anew.
pub(crate) fn run(workspace: &Path) -> Result<()> {
    let target = target(workspace);
    let text = generate(workspace)?;
    std::fs::write(&target, text).with_context(|| format!("cannot write `{}`", target.display()))
}

fn target(workspace: &Path) -> PathBuf {
    workspace.join("crates/proto/src/generated.rs")
}

fn generate(workspace: &Path) -> Result<String> {
    let include = workspace.join("crates/proto/pulsar");
    let descriptors = protox::compile(PROTO_FILES, [&include])
        .with_context(|| format!("cannot parse `{}`", include.display()))?;
    let mut config = prost_build::Config::new();
    config.bytes(["."]);
    config.disable_comments(["."]);
    // The key of the map is the package of the .proto files.
    let modules = config.generate(
        descriptors
            .file
            .into_iter()
            .map(|file| {
                (
                    prost_build::Module::from_protobuf_package_name(file.package()),
                    file,
                )
            })
            .collect(),
    )?;
    ensure!(modules.len() == 1, "all .proto files share one package");
    let code: String = modules.into_values().collect();
    Ok(format!(
        "// Written by `cargo xtask codegen` from crates/proto/pulsar/*.proto. Do not edit.\n\n{code}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_code_is_fresh() {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let committed = std::fs::read_to_string(target(&workspace)).unwrap();
        assert!(
            committed == generate(&workspace).unwrap(),
            "crates/proto/src/generated.rs is stale: run `cargo xtask codegen`"
        );
    }
}
