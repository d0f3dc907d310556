//! `cargo xtask tidy`: the rules of the house that a machine can check.
//!
//! Layers and fenced libraries from `cargo metadata`; module docs, banned words and dead links from the
//! text; licences and doubled libraries from the lock. It lists the largest files, and fails on rules only.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// A crate may depend on crates of lower layers only.
const LAYERS: &[(&str, u8)] = &[
    ("geminga-stdx", 0),
    ("geminga-model", 0),
    ("geminga-proto", 1),
    ("geminga-storage", 1),
    ("geminga-mesh", 1),
    ("geminga-client", 2),
    ("geminga-broker", 3),
    ("geminga-functions", 3),
    ("geminga-admin", 4),
    ("geminga-wasm", 4),
    ("geminga", 5),
];

/// Neighbours that must not see each other although the layers would allow it: `broker` speaks to nobody's
/// client, the worker reaches a broker by the protocol alone.
const NEVER: &[(&str, &[&str])] = &[
    ("geminga-broker", &["geminga-client", "geminga-mesh"]),
    ("geminga-functions", &["geminga-storage"]),
    ("geminga-client", &["geminga-storage", "geminga-mesh"]),
];

/// Libraries that one crate alone may know.
const FENCED: &[(&str, &[&str])] = &[
    ("axum", &["geminga-admin"]),
    ("clap", &["geminga", "xtask"]),
    ("anyhow", &["geminga", "xtask"]),
    ("prost", &["geminga-proto"]),
    ("wasmtime", &["geminga-wasm"]),
    ("wasmtime-wasi", &["geminga-wasm"]),
    ("kube", &["geminga-k8s"]),
];

/// Crates that stay free of the async runtime.
const PURE: &[&str] = &["geminga-model", "geminga-mesh", "geminga-proto"];

/// Libraries that must not come in by any road: a C build, a second TLS, a second runtime.
const BANNED: &[&str] = &[
    "aws-lc-sys",
    "native-tls",
    "openssl-sys",
    "async-std",
    "serde_yaml",
    "protobuf",
];

/// One version each of these.
const SINGLE: &[&str] = &["tokio", "prost", "hyper", "zstd", "bytes", "axum", "serde"];

const LICENCES: &[&str] = &[
    "MIT",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "Unicode-3.0",
    "MPL-2.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "Unlicense",
    "BSL-1.0",
    "0BSD",
    "MIT-0",
];

/// `model` is what everything rebuilds for.
const MODEL_LINES_MAX: usize = 4000;

pub(crate) fn run(workspace: &Path) -> Result<()> {
    let metadata = metadata(workspace)?;
    let mut faults = Vec::new();
    check_layers(&metadata, &mut faults);
    check_dependencies(&metadata, &mut faults);
    check_sources(workspace, &mut faults)?;
    check_links(workspace, &mut faults)?;
    for fault in &faults {
        eprintln!("tidy: {fault}");
    }
    if faults.is_empty() {
        return Ok(());
    }
    bail!("{} fault(s)", faults.len())
}

fn metadata(workspace: &Path) -> Result<Value> {
    let output = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--filter-platform",
            "x86_64-unknown-linux-gnu",
        ])
        .current_dir(workspace)
        .output()
        .context("run cargo metadata")?;
    if !output.status.success() {
        bail!(
            "cargo metadata: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn packages(metadata: &Value) -> impl Iterator<Item = &Value> {
    metadata["packages"].as_array().into_iter().flatten()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// Layers, fences and purity, over the direct dependencies that members declare.
fn check_layers(metadata: &Value, faults: &mut Vec<String>) {
    let layers: BTreeMap<&str, u8> = LAYERS.iter().copied().collect();
    for package in packages(metadata).filter(|p| p["source"].is_null()) {
        let name = text(package, "name");
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let wanted = text(dependency, "name");
            let dev = dependency["kind"] == "dev";
            if wanted == "geminga-testkit" && !dev {
                faults.push(format!("{name}: geminga-testkit is for tests only"));
            }
            if dev {
                continue;
            }
            if let (Some(mine), Some(theirs)) = (layers.get(name), layers.get(wanted))
                && theirs >= mine
            {
                faults.push(format!(
                    "{name} (layer {mine}) depends on {wanted} (layer {theirs})"
                ));
            }
            if NEVER
                .iter()
                .any(|(who, whom)| *who == name && whom.contains(&wanted))
            {
                faults.push(format!("{name} must not depend on {wanted}"));
            }
            if let Some((_, allowed)) = FENCED.iter().find(|(library, _)| *library == wanted)
                && !allowed.contains(&name)
            {
                faults.push(format!(
                    "{name}: {wanted} belongs to {} alone",
                    allowed.join(", ")
                ));
            }
            if PURE.contains(&name) && wanted.starts_with("tokio") {
                faults.push(format!("{name} is pure: no {wanted}"));
            }
        }
    }
}

/// Bans, doubled versions and licences, over the whole graph.
fn check_dependencies(metadata: &Value, faults: &mut Vec<String>) {
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in packages(metadata) {
        let name = text(package, "name");
        versions
            .entry(name)
            .or_default()
            .insert(text(package, "version"));
        if BANNED.contains(&name) {
            faults.push(format!("{name} is banned"));
        }
        let licence = text(package, "license");
        let allowed = licence.replace(" OR ", "/").split('/').any(|choice| {
            choice
                .split(" AND ")
                .all(|part| LICENCES.contains(&part.trim_matches(|c| matches!(c, '(' | ')' | ' '))))
        });
        if !allowed {
            faults.push(format!("{name}: licence `{licence}` is not on the list"));
        }
    }
    for name in SINGLE {
        if let Some(found) = versions.get(name)
            && found.len() > 1
        {
            faults.push(format!(
                "{name} comes in {} versions: {found:?}",
                found.len()
            ));
        }
    }
}

/// Module docs, `mod.rs`, banned names, and the size of `model`.
fn check_sources(workspace: &Path, faults: &mut Vec<String>) -> Result<()> {
    let mut sizes = Vec::new();
    let mut model_lines = 0;
    for file in tracked(workspace)? {
        let shown = file.display().to_string();
        let Some(extension) = file.extension().and_then(|e| e.to_str()) else {
            continue;
        };
        if !matches!(
            extension,
            "rs" | "py" | "go" | "sh" | "md" | "toml" | "yaml" | "yml" | "bash"
        ) {
            continue;
        }
        let Ok(content) = std::fs::read_to_string(workspace.join(&file)) else {
            continue;
        };
        // Built from halves, so that this file passes its own check.
        if shown != "xtask/src/tidy.rs" && content.contains(concat!("../sha", "red")) {
            faults.push(format!("{shown}: names a folder outside the project"));
        }
        if extension != "rs" || shown.ends_with("generated.rs") {
            continue;
        }
        if shown.ends_with("/mod.rs") {
            faults.push(format!(
                "{shown}: a concept is `foo.rs` with children in `foo/`"
            ));
        }
        if !shown.ends_with("tests.rs") && !content.trim_start().starts_with("//!") {
            faults.push(format!("{shown}: begins without `//!`: what is it for?"));
        }
        let lines = content.lines().count();
        if shown.starts_with("crates/model/src/") {
            model_lines += lines;
        }
        sizes.push((lines, shown));
    }
    if model_lines > MODEL_LINES_MAX {
        faults.push(format!(
            "crates/model has {model_lines} lines; {MODEL_LINES_MAX} is the most"
        ));
    }
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    for (lines, file) in sizes.iter().take_while(|(lines, _)| *lines > 700).take(8) {
        println!("tidy: large: {file}: {lines} lines (has it become two subjects?)");
    }
    Ok(())
}

/// Links between the project's own documents.
fn check_links(workspace: &Path, faults: &mut Vec<String>) -> Result<()> {
    for file in tracked(workspace)?
        .iter()
        .filter(|f| f.extension().is_some_and(|e| e == "md"))
    {
        let content = std::fs::read_to_string(workspace.join(file)).unwrap_or_default();
        let folder = file.parent().unwrap_or(Path::new(""));
        for target in links(&content) {
            let target = target.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            if !workspace.join(folder).join(target).exists() {
                faults.push(format!("{}: dead link `{target}`", file.display()));
            }
        }
    }
    Ok(())
}

fn links(markdown: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = markdown;
    while let Some(at) = rest.find("](") {
        rest = &rest[at + 2..];
        if let Some(end) = rest.find(')')
            && !rest[..end].contains(char::is_whitespace)
        {
            found.push(&rest[..end]);
        }
    }
    found
}

fn tracked(workspace: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(workspace)
        .output()
        .context("run git ls-files")?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text
        .lines()
        .map(PathBuf::from)
        .filter(|f| workspace.join(f).is_file())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_is_tidy() {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        run(&workspace).expect("tidy");
    }

    #[test]
    fn a_layer_fault_is_found() {
        let metadata = serde_json::json!({"packages": [{"name": "geminga-proto", "source": null,
            "dependencies": [{"name": "geminga-broker", "kind": null}, {"name": "axum", "kind": null}]}]});
        let mut faults = Vec::new();
        check_layers(&metadata, &mut faults);
        assert_eq!(faults.len(), 2, "{faults:?}");
    }

    #[test]
    fn links_are_found() {
        assert_eq!(links("see [a](b.md#c) and [d](e f) and `x`"), ["b.md#c"]);
    }
}
