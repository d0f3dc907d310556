//! Each error code that the sources use is explained by `geminga explain`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::{geminga, text};

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_code_is_explained() {
    let mut files = Vec::new();
    for about in
        std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).expect("crates")
    {
        let source = about.expect("a crate").path().join("src");
        if source.is_dir() {
            sources(&source, &mut files);
        }
    }
    let mut used = BTreeSet::new();
    for file in files {
        let code = std::fs::read_to_string(file).expect("reads");
        for (at, _) in code.match_indices("\"G0") {
            let digits = code.get(at + 2..at + 6).unwrap_or_default();
            if digits.bytes().all(|byte| byte.is_ascii_digit())
                && code.get(at + 6..at + 7) == Some("\"")
            {
                used.insert(format!("G{digits}"));
            }
        }
    }
    assert!(used.len() > 30, "{used:?}");
    let all = text(&geminga().arg("explain").output().expect("runs").stdout);
    let missing: Vec<_> = used
        .iter()
        .filter(|code| !all.contains(code.as_str()))
        .collect();
    assert!(missing.is_empty(), "not explained: {missing:?}");
}
