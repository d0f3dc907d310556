//! The suite of the host protocol, run against WASI commands (built by Go) and components.

use std::path::PathBuf;
use std::sync::Arc;

use geminga_functions::runtime::*;
use geminga_stdx::Tasks;
use geminga_wasm::Wasm;

#[path = "../../functions/src/runtime/contract/cases.rs"]
mod cases;
#[path = "../../functions/src/runtime/contract/harness.rs"]
#[allow(dead_code, reason = "shared with suites that use more of it")]
mod harness;

pub(crate) use self::harness::*;

pub(crate) const ALL: [Kind; 2] = [Kind::Wasm, Kind::Component];

/// The rows of a table that are for a kind under test.
pub(crate) fn only<T, const N: usize>(
    rows: [T; N],
    kind: impl Fn(&T) -> Kind,
) -> impl Iterator<Item = T> {
    rows.into_iter().filter(move |row| ALL.contains(&kind(row)))
}

pub(crate) fn function(text: &str, name: &str) -> (tempfile::TempDir, HostSpec) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path: PathBuf = directory.path().join(name);
    std::fs::write(&path, text).expect("written");
    let spec = HostSpec {
        tenant: "public".into(),
        namespace: "default".into(),
        name: "f".into(),
        cluster: "standalone".into(),
        instances: 1,
        code: Code {
            path,
            class_name: None,
        },
        ..HostSpec::default()
    };
    (directory, spec)
}

pub(crate) async fn start_spec(
    _kind: Kind,
    directory: tempfile::TempDir,
    spec: HostSpec,
) -> Result<Started, Broken> {
    let tasks = Tasks::new();
    let seen = Arc::new(Seen::default());
    let runtime = Wasm::new(tasks.clone());
    let host = runtime.start(Arc::new(spec), seen.clone()).await?;
    Ok(Started {
        host,
        seen,
        tasks,
        _directory: directory,
        next: 0,
    })
}
