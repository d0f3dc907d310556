//! The suite that every runtime passes: one function in each language, the same questions to all.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use geminga_stdx::Tasks;
use parking_lot::Mutex;

use super::bash::Bash;
use super::exec::Exec;
use super::go::Go;
use super::java::Java;
use super::options::{Framing, Mode};
use super::python::Python;
use super::warm::incremented;
use super::*;

mod cases;
mod flaws;
mod java_only;
mod python_only;
mod typed;

/// What a host asked for, kept for the test to look at.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) logs: Mutex<Vec<LogLine>>,
    pub(crate) metrics: Mutex<Vec<(String, f64)>>,
    pub(crate) state: Mutex<BTreeMap<String, Bytes>>,
    pub(crate) acks: Mutex<Vec<String>>,
    pub(crate) restarts: Mutex<Vec<String>>,
}

impl Services for Seen {
    fn log(&self, line: LogLine) {
        self.logs.lock().push(line);
    }
    fn metric(&self, name: &str, value: f64) {
        self.metrics.lock().push((name.to_owned(), value));
    }
    fn state_get(&self, key: &str) -> Option<Bytes> {
        self.state.lock().get(key).cloned()
    }
    fn state_apply(&self, changes: &[StateChange]) {
        let mut state = self.state.lock();
        for change in changes {
            match change {
                StateChange::Put(key, value) => drop(state.insert(key.clone(), value.clone())),
                StateChange::Delete(key) => drop(state.remove(key)),
                StateChange::Increment(key, by) => {
                    let value = incremented(state.get(key), *by);
                    state.insert(key.clone(), value);
                }
            }
        }
    }
    fn acknowledge(&self, message_id: &str) {
        self.acks.lock().push(message_id.to_owned());
    }
    fn publish(&self, _output: Output) {}
    fn restarted(&self, reason: &str) {
        self.restarts.lock().push(reason.to_owned());
    }
}

/// The kinds of host under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Bash,
    BashPlain,
    Python,
    Spawn,
    Json,
    Go,
    Java,
}

pub(crate) const ALL: [Kind; 7] = [
    Kind::Bash,
    Kind::BashPlain,
    Kind::Python,
    Kind::Spawn,
    Kind::Json,
    Kind::Go,
    Kind::Java,
];

/// A started function with what it needs to live.
pub(crate) struct Started {
    pub(crate) host: Box<dyn Host>,
    pub(crate) seen: Arc<Seen>,
    pub(crate) tasks: Tasks,
    _directory: tempfile::TempDir,
    next: u64,
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
    mut spec: HostSpec,
) -> Result<Started, Broken> {
    let tasks = Tasks::new();
    let processes = Processes::start(Some(directory.path())).expect("guard");
    let seen = Arc::new(Seen::default());
    let runtime: Box<dyn Runtime> = match kind {
        Kind::Bash | Kind::BashPlain => Box::new(Bash::new(processes, tasks.clone())),
        Kind::Python => Box::new(Python::new(processes, tasks.clone())),
        Kind::Spawn | Kind::Json => Box::new(Exec::new(processes, tasks.clone())),
        Kind::Go => Box::new(Go::new(processes, tasks.clone())),
        Kind::Java => Box::new(Java::new(processes, tasks.clone())),
    };
    if kind == Kind::Json {
        spec.options.mode = Some(Mode::Stream);
        spec.options.framing = Framing::Json;
    }
    let host = runtime.start(Arc::new(spec), seen.clone()).await?;
    Ok(Started {
        host,
        seen,
        tasks,
        _directory: directory,
        next: 0,
    })
}

impl Started {
    pub(crate) async fn send(&mut self, message: Message) -> u64 {
        let ticket = self.next;
        self.next += 1;
        self.host
            .deliver(vec![Delivery {
                ticket,
                message: Arc::new(message),
            }])
            .await
            .expect("delivered");
        ticket
    }

    pub(crate) async fn outcomes(&mut self, count: usize) -> Vec<Outcome> {
        let mut all = Vec::new();
        while all.len() < count {
            let some = tokio::time::timeout(Duration::from_secs(20), self.host.outcomes())
                .await
                .expect("an outcome in time")
                .expect("not broken");
            all.extend(some);
        }
        all.sort_by_key(|outcome| outcome.ticket);
        all
    }

    /// Sends one payload and gives what became of it.
    pub(crate) async fn ask(&mut self, payload: &[u8]) -> Outcome {
        self.send(text(payload)).await;
        self.outcomes(1).await.remove(0)
    }

    pub(crate) async fn stop(mut self) {
        self.host.stop(Duration::from_secs(5)).await;
        drop(self.host);
        self.tasks.cancel();
        assert!(self.tasks.join(Duration::from_secs(5)).await, "tasks end");
    }

    /// Waits until `ready` says so.
    pub(crate) async fn until(&self, what: &str, ready: impl Fn(&Seen) -> bool) {
        until(what, || ready(&self.seen)).await;
    }
}

pub(crate) async fn until(what: &str, ready: impl Fn() -> bool) {
    let wait = async {
        while !ready() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(15), wait).await;
    assert!(in_time.is_ok(), "never happened: {what}");
}

pub(crate) fn text(payload: &[u8]) -> Message {
    Message {
        topic: "persistent://public/default/in".into(),
        id: "1:2:-1".into(),
        payload: Bytes::copy_from_slice(payload),
        partition: -1,
        ..Message::default()
    }
}

pub(crate) fn payloads(outcome: &Outcome) -> Vec<&[u8]> {
    outcome
        .outputs
        .iter()
        .map(|output| &output.payload[..])
        .collect()
}

pub(crate) fn failure(outcome: &Outcome) -> &Failure {
    match &outcome.verdict {
        Verdict::Failed(failure) => failure,
        other => panic!("not failed: {other:?}"),
    }
}
