//! The suite that every runtime passes: one function in each language, the same questions to all.

use std::path::PathBuf;
use std::sync::Arc;

use geminga_stdx::Tasks;

use super::bash::Bash;
use super::exec::Exec;
use super::go::Go;
use super::java::Java;
use super::options::{Framing, Mode};
use super::python::Python;
use super::*;

mod apache;
mod bounds;
mod cases;
mod flaws;
mod harness;
mod java_only;
mod python_only;
mod sandboxed;
mod typed;

pub(crate) use self::harness::*;

pub(crate) const ALL: [Kind; 7] = [
    Kind::Bash,
    Kind::BashPlain,
    Kind::Python,
    Kind::Spawn,
    Kind::Json,
    Kind::Go,
    Kind::Java,
];

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
    let is_java = name.ends_with(".java");
    let path = if is_java { jar(&path, text) } else { path };
    let spec = HostSpec {
        tenant: "public".into(),
        namespace: "default".into(),
        name: "f".into(),
        cluster: "standalone".into(),
        instances: 1,
        code: Code {
            path,
            class_name: is_java.then(|| "F".to_owned()),
        },
        ..HostSpec::default()
    };
    (directory, spec)
}

/// The jar of one source file, compiled once.
fn jar(source: &std::path::Path, text: &str) -> PathBuf {
    use std::process::Command;
    let key = toolchain::content_key([text.as_bytes()]);
    let place = toolchain::cache().join(format!("test-jar-{key:032x}/f.jar"));
    if place.exists() {
        return place;
    }
    let check = |command: &mut Command| {
        let output = command.output().expect("a JDK is installed");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
    };
    // Its own runtime: a test calls this from inside of one.
    let api = std::thread::spawn(|| {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime
            .block_on(super::java::api())
            .expect("the functions API")
    });
    let api = std::env::join_paths(api.join().expect("no panic")).expect("a class path");
    let classes = source.with_extension("classes");
    let made = source.with_extension("jar");
    check(
        Command::new(super::java::tool("javac"))
            .args(["--release", "11", "-nowarn", "-proc:none", "-cp"])
            .arg(api)
            .arg("-d")
            .args([&classes, source]),
    );
    check(
        Command::new(super::java::tool("jar"))
            .arg("cf")
            .arg(&made)
            .arg("-C")
            .arg(&classes)
            .arg("."),
    );
    let folder = place.parent().expect("a parent");
    std::fs::create_dir_all(folder).expect("made");
    let next = folder.join(format!("next-{}", std::process::id()));
    std::fs::copy(&made, &next).expect("copied");
    std::fs::rename(&next, &place).expect("renamed");
    place
}

pub(crate) async fn start_spec(
    kind: Kind,
    directory: tempfile::TempDir,
    spec: HostSpec,
) -> Result<Started, Broken> {
    let processes = Processes::start(Some(directory.path())).expect("guard");
    start_among(processes, kind, directory, spec).await
}

/// The same of one that ends when nothing comes for so long.
pub(crate) async fn start_resting(
    kind: Kind,
    directory: tempfile::TempDir,
    spec: HostSpec,
    idle: Option<std::time::Duration>,
) -> Result<Started, Broken> {
    let processes = Processes::start(Some(directory.path())).expect("guard");
    start_any(processes, kind, directory, spec, idle).await
}

/// The same, held by what these processes are held by.
pub(crate) async fn start_among(
    processes: Processes,
    kind: Kind,
    directory: tempfile::TempDir,
    spec: HostSpec,
) -> Result<Started, Broken> {
    start_any(processes, kind, directory, spec, None).await
}

async fn start_any(
    processes: Processes,
    kind: Kind,
    directory: tempfile::TempDir,
    mut spec: HostSpec,
    idle: Option<std::time::Duration>,
) -> Result<Started, Broken> {
    let tasks = Tasks::new();
    let seen = Arc::new(Seen::default());
    let runtime: Arc<dyn Runtime> = match kind {
        Kind::Bash | Kind::BashPlain => Arc::new(Bash::new(processes, tasks.clone())),
        Kind::Python => Arc::new(Python::new(processes, tasks.clone())),
        Kind::Spawn | Kind::Json => Arc::new(Exec::new(processes, tasks.clone())),
        Kind::Go => Arc::new(Go::new(processes, tasks.clone())),
        Kind::Java => Arc::new(Java::new(processes, tasks.clone())),
        Kind::Wasm | Kind::Component => unreachable!("not in ALL"),
    };
    if kind == Kind::Json {
        spec.options.mode = Some(Mode::Stream);
        spec.options.framing = Framing::Json;
    }
    let host = match idle {
        Some(idle) => sleeper::start(runtime, idle, spec.into(), seen.clone(), &tasks).await?,
        None => runtime.start(Arc::new(spec), seen.clone()).await?,
    };
    Ok(Started {
        host,
        seen,
        tasks,
        _directory: directory,
        next: 0,
    })
}
