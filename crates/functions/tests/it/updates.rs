//! Changes of functions that come together with something else: code that is slow to start, a restart,
//! the end of a lease, calls under way, a package that can not be read.

use std::path::{Path, PathBuf};
use std::time::Duration;

use geminga_client::Client;
use geminga_functions::{Asked, ComponentId, Upload, Worker, WorkerConfig, WorkerError};
use geminga_model::{FunctionConfig, TopicName};
use geminga_stdx::Tasks;
use serde_json::{Value, json};

use crate::moves::{end, make};
use crate::stage::{PATIENCE, Stage, nothing_more, numbers, receive, texts};
use crate::workers::{Other, another, another_by, config, empty_stage, here, until, uppercase};

/// Code takes its time to start.
const PATIENT: &str = r#"{"startTimeoutMs":60000}"#;

/// A worker that answers before slow code has started.
async fn hasty(stage: &Stage) -> Other {
    let directory = tempfile::tempdir().expect("directory");
    let config = WorkerConfig {
        subscribe_wait: Duration::from_millis(300),
        prove_wait: Duration::from_secs(1),
        ..config(stage, directory.path().to_owned(), "a")
    };
    let worker = Worker::start(config).await.expect("started");
    Other { worker, directory }
}

/// Code that starts when there is a file.
fn after(gate: &Path, code: &str) -> Upload {
    let wait = format!("while [ ! -e {} ]; do sleep 0.02; done", gate.display());
    Upload::new("f.sh", format!("{wait}\n{code}"))
}

/// Code that takes a message, says so by a file, and never answers.
fn stuck(begun: &Path) -> String {
    format!("process() {{ : > '{}'; sleep 600; }}", begun.display())
}

async fn update(worker: &Worker, id: &ComponentId, fields: Value, code: Upload) {
    let change: FunctionConfig = serde_json::from_value(fields).expect("a config");
    let updated = worker.update(id, change.into(), Some(code)).await;
    updated.expect("updated");
}

async fn consumers(stage: &Stage, topic: &str) -> usize {
    let topic: TopicName = topic.parse().expect("a topic");
    let stats = stage.broker().topic_stats(&topic).await.expect("known");
    let of = stats.subscriptions.values();
    of.map(|subscription| subscription.consumers.len()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_that_does_not_start_in_time_is_undone() {
    let stage = empty_stage().await;
    let first = hasty(&stage).await;
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let options = r#"{"startTimeoutMs":60000,"onFailedUpdate":"rollback"}"#;
    let id = make(
        &first.worker,
        "process() { emit \"one $MSG\"; }",
        json!({"name": "f", "inputs": [&input], "output": &output, "customRuntimeOptions": options}),
    )
    .await;
    let gate = stage.directory.path().join("go");
    let code = after(&gate, "process() { emit \"two $MSG\"; }");
    let unchanged = FunctionConfig::default().into();
    let undone = first.worker.update(&id, unchanged, Some(code)).await;
    let undone = undone.expect_err("it does not start in time");
    assert!(
        matches!(
            &undone,
            WorkerError::RolledBack {
                version: 2,
                restored: 1,
                ..
            }
        ),
        "{undone}"
    );
    // What warmed up has ended: it does not begin now.
    std::fs::write(&gate, "").expect("written");
    let mut consumer = stage.consumer(&output).await;
    stage.send(&input, numbers(0..20)).await;
    let mut seen = texts(&receive(&mut consumer, 20).await);
    seen.sort_by_key(|text| text.len());
    assert!(seen.iter().all(|text| text.starts_with("one ")), "{seen:?}");
    nothing_more(&mut consumer).await;
    let versions = first.worker.versions(&id).expect("known");
    assert_eq!(versions[0].version, 3);
    end(stage, [first]).await;
}

/// Something that goes on beside the test, until it is asked what came of it.
struct Beside<T>(tokio::sync::oneshot::Receiver<T>);

impl<T: Send + 'static> Beside<T> {
    fn begin(tasks: &Tasks, doing: impl Future<Output = T> + Send + 'static) -> Self {
        let (done, answered) = tokio::sync::oneshot::channel();
        tasks.spawn_cancellable("beside", async move {
            let _ = done.send(doing.await);
        });
        Self(answered)
    }

    fn goes_on(&mut self) -> bool {
        self.0.try_recv().is_err()
    }

    async fn end(self) -> T {
        self.0.await.expect("it ended")
    }
}

/// Everything that is done to a component.
async fn live_and_die(worker: &Worker, fields: Value) {
    let all = async {
        let id = make(worker, "process() { :; }", fields).await;
        let code = Upload::new("f.sh", "process() { : 2; }");
        update(worker, &id, json!({}), code).await;
        worker.stop_instances(&id, None).await.expect("stopped");
        worker.start_instances(&id, None).await.expect("started");
        worker
            .restart_instances(&id, None)
            .await
            .expect("restarted");
        worker.roll_back(&id, None).await.expect("back");
        worker.delete(&id).await.expect("deleted");
    };
    let all = tokio::time::timeout(PATIENCE, all).await;
    all.expect("it waits for somebody else's code");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn code_that_is_slow_to_start_holds_up_no_change_of_another() {
    let stage = empty_stage().await;
    let directory = tempfile::tempdir().expect("directory");
    let config = WorkerConfig {
        subscribe_wait: PATIENCE * 4,
        prove_wait: PATIENCE * 4,
        ..config(&stage, directory.path().to_owned(), "a")
    };
    let worker = Worker::start(config).await.expect("started");
    let first = Other { worker, directory };
    let tasks = Tasks::new();
    for (name, options) in [
        ("plain", r#"{"startTimeoutMs":300000}"#),
        (
            "undone",
            r#"{"startTimeoutMs":300000,"onFailedUpdate":"rollback"}"#,
        ),
    ] {
        let path = |what: &str| stage.directory.path().join(format!("{name}-{what}"));
        let (begun, gate) = (path("begun"), path("go"));
        let (input, other) = (stage.topic(name), stage.topic("other"));
        let fields = json!({"name": name, "inputs": [input], "customRuntimeOptions": options});
        let id = make(&first.worker, "process() { :; }", fields).await;
        let wait = format!("while [ ! -e '{}' ]; do sleep 0.02; done", gate.display());
        let code = format!(": > '{}'\n{wait}\nprocess() {{ :; }}", begun.display());
        let (worker, of) = (first.worker.clone(), id.clone());
        let mut slow = Beside::begin(&tasks, async move {
            update(&worker, &of, json!({}), Upload::new("f.sh", code)).await;
        });
        until("the new code starts", || begun.exists()).await;
        live_and_die(&first.worker, json!({"name": "b", "inputs": [other]})).await;
        assert!(slow.goes_on(), "the other had to wait");
        // Another change of its own does.
        let (worker, of) = (first.worker.clone(), id.clone());
        let mut deleting = Beside::begin(&tasks, async move { worker.delete(&of).await });
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(deleting.goes_on(), "two changes of one");
        std::fs::write(&gate, "").expect("written");
        slow.end().await;
        deleting.end().await.expect("deleted");
    }
    end(stage, [first]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn code_that_does_not_stop_holds_up_no_change_of_another() {
    let stage = empty_stage().await;
    let first = another(&stage, "a").await;
    let (input, other) = (stage.topic("in"), stage.topic("other"));
    let begun = stage.directory.path().join("begun");
    let fields = json!({"name": "f", "inputs": [&input]});
    let id = make(&first.worker, &stuck(&begun), fields).await;
    stage.send(&input, ["m"]).await;
    until("it hangs", || begun.exists()).await;
    let tasks = Tasks::new();
    let worker = first.worker.clone();
    let mut deleting = Beside::begin(&tasks, async move { worker.delete(&id).await });
    // It gets some seconds for its message.
    live_and_die(&first.worker, json!({"name": "b", "inputs": [other]})).await;
    assert!(deleting.goes_on(), "the other had to wait");
    deleting.end().await.expect("deleted");
    end(stage, [first]).await;
}

/// The restart of an old version and the beginning of the new one, at once: one of them runs then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_while_an_update_starts_leaves_one_version() {
    let stage = empty_stage().await;
    let first = hasty(&stage).await;
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let (begun, gate) = (
        stage.directory.path().join("begun"),
        stage.directory.path().join("go"),
    );
    let id = make(
        &first.worker,
        &stuck(&begun),
        json!({"name": "f", "inputs": [&input], "output": &output, "customRuntimeOptions": PATIENT}),
    )
    .await;
    stage.send(&input, ["m"]).await;
    until("the old code has it", || begun.exists()).await;
    let code = after(&gate, "process() { emit \"two $MSG\"; }");
    update(&first.worker, &id, json!({}), code).await;
    let mut restarting = Box::pin(first.worker.restart_instances(&id, None));
    tokio::select! {
        biased;
        _ = &mut restarting => panic!("the old code does not stop at once"),
        () = std::future::ready(()) => {}
    }
    // It is being stopped. Now the new one is ready.
    std::fs::write(&gate, "").expect("written");
    restarting.await.expect("restarted");
    let mut consumer = stage.consumer(&output).await;
    assert_eq!(texts(&receive(&mut consumer, 1).await), ["two m"]);
    for n in numbers(0..30) {
        stage.send(&input, [n.as_str()]).await;
        assert_eq!(
            texts(&receive(&mut consumer, 1).await),
            [format!("two {n}")]
        );
    }
    assert_eq!(consumers(&stage, &input).await, 1);
    end(stage, [first]).await;
}

/// What is being stopped when the lease ends has ended before another worker runs it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_lease_finds_what_is_being_stopped() {
    let stage = empty_stage().await;
    let (client, gate) = stage.gated();
    let first = another(&stage, "a").await;
    uppercase(&stage, &first.worker, "a").await;
    let second = another_by(&stage, "b", client).await;
    until("both know both", || first.worker.members().len() == 2).await;
    let input = stage.topic("in");
    let path = |name: &str| stage.directory.path().join(name);
    let (begun, beats) = (path("begun"), path("beats"));
    // The first that gets the message beats until it ends.
    let code = format!(
        "process() {{ [[ ! -e {0} ]] || return 0; : > {0}; while :; do echo x >> {1}; sleep 0.02; done; }}",
        begun.display(),
        beats.display()
    );
    // The lighter worker gets it.
    let id = make(
        &first.worker,
        &code,
        json!({"name": "z", "inputs": [&input]}),
    )
    .await;
    let ids = std::slice::from_ref(&id);
    until("the second runs it", || here(&[&second], ids) == [1]).await;
    stage.send(&input, ["m"]).await;
    until("it beats", || beats.exists()).await;
    let mut restarting = Box::pin(second.worker.restart_instances(&id, None));
    tokio::select! {
        biased;
        _ = &mut restarting => panic!("it does not stop at once"),
        () = std::future::ready(()) => {}
    }
    gate.send_replace(false);
    let taken_over = async {
        until("another runs it", || here(&[&first], ids) == [1]).await;
        let size = || std::fs::metadata(&beats).expect("there").len();
        let before = size();
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(size(), before, "two workers run it");
    };
    let (_, ()) = tokio::join!(restarting, taken_over);
    gate.send_replace(true);
    end(stage, [first, second]).await;
}

/// Its old version's call is under way, its new version never answers either: then it is deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_ends_the_calls_of_former_versions_too() {
    let stage = empty_stage().await;
    let first = another(&stage, "a").await;
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let begun = [1, 2].map(|n| stage.directory.path().join(format!("begun{n}")));
    let id = make(
        &first.worker,
        &stuck(&begun[0]),
        json!({"name": "f", "inputs": [&input], "output": &output}),
    )
    .await;
    let tasks = Tasks::new();
    let (done, answered) = tokio::sync::oneshot::channel();
    let (worker, of) = (first.worker.clone(), id.clone());
    tasks.spawn_cancellable("call", async move {
        let asked = Asked {
            payload: "x".into(),
            limit: PATIENCE * 2,
            ..Asked::default()
        };
        let _ = done.send(worker.trigger(&of, asked).await);
    });
    until("the old code has it", || begun[0].exists()).await;
    let code = Upload::new("f.sh", stuck(&begun[1]));
    update(&first.worker, &id, json!({}), code).await;
    until("the new code has it", || begun[1].exists()).await;
    first.worker.delete(&id).await.expect("deleted");
    let topic = |name: &str| -> TopicName { name.parse().expect("a topic") };
    let stats = stage.broker().topic_stats(&topic(&input)).await;
    assert_eq!(stats.expect("known").publishers.len(), 0);
    assert_eq!(consumers(&stage, &output).await, 0);
    let answer = answered.await.expect("asked");
    assert!(
        matches!(&answer, Err(WorkerError::NotFound(which)) if *which == id),
        "{answer:?}"
    );
    end(stage, [first]).await;
}

/// A file that nobody can read to its end, until this is dropped.
struct Endless(PathBuf);

impl Endless {
    fn new(path: PathBuf) -> Self {
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.expect("mkfifo").success());
        Self(path)
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        // Whoever waits to open it may go on, and nobody opens it again.
        let both = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&self.0);
        let removed = std::fs::remove_file(&self.0);
        drop((both, removed));
    }
}

/// A follower that shares a package, for however long, does what else is due.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_shares_packages_runs_its_own_meanwhile() {
    let stage = empty_stage().await;
    let (client, gate): (Client, _) = stage.gated();
    let first = another_by(&stage, "a", client.clone()).await;
    let other = json!({"name": "a", "inputs": [stage.topic("other")]});
    let kept = make(&first.worker, "process() { :; }", other).await;
    let package = first.worker.package(&kept).await.expect("there");
    let package = package.expect("a file");
    let folder = first.directory.path().join("packages");
    let file = package.strip_prefix(&folder).expect("in the folder");
    let directory = tempfile::tempdir().expect("directory");
    let file = directory.path().join("packages").join(file);
    std::fs::create_dir_all(file.parent().expect("a folder")).expect("made");
    let endless = Endless::new(file);
    let config = WorkerConfig {
        client,
        ..config(&stage, directory.path().to_owned(), "b")
    };
    let worker = Worker::start(config).await.expect("started");
    let second = Other { worker, directory };
    // Of the newest first, also when this fails: without its folder nobody would be let go.
    let endless = endless;
    until("both know both", || first.worker.members().len() == 2).await;
    let (id, input, output) = uppercase(&stage, &first.worker, "z").await;
    let ids = std::slice::from_ref(&id);
    until("the second runs it", || here(&[&second], ids) == [1]).await;
    // The broker is away until the lease is over; then it goes on where it was.
    gate.send_replace(false);
    until("it ends with the lease", || here(&[&second], ids) == [0]).await;
    gate.send_replace(true);
    until("it runs again", || here(&[&second], ids) == [1]).await;
    let mut consumer = stage.consumer(&output).await;
    stage.send(&input, ["x"]).await;
    assert_eq!(texts(&receive(&mut consumer, 1).await), ["X"]);
    drop(endless);
    end(stage, [first, second]).await;
}
