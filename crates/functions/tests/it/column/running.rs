//! How a function runs: what it is started with, how much it gets at once and for how long, when it rests.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use super::case::{Case, keep};
use super::fields::sample;
use super::process::{processes, read_text};
use crate::stage::receive;

pub(super) async fn running(case: &mut Case<'_>) {
    match case.is_guest() {
        true => guest_as_asked(case).await,
        false => process_as_asked(case).await,
    }
    built_in(case).await;
    pending(case).await;
    time_out(case).await;
    match case.is_guest() {
        true => guest_rests(case).await,
        false => process_rests(case).await,
    }
}

/// Made by its name in the folder of the server: class and language are those that it has there.
async fn built_in(case: &mut Case<'_>) {
    let (input, output) = (case.topic("in"), case.topic("out"));
    let folder = case.stage.directory.path().join("functions");
    std::fs::create_dir_all(&folder).expect("made");
    let file = case.code.file_name().expect("a file").to_owned();
    std::fs::copy(&case.code, folder.join(&file)).expect("copied");
    let mut about =
        json!({"file": file.to_str(), "runtime": case.kind(), "description": "an echo"});
    if matches!(case.runtime, "python" | "java") {
        about["functionClass"] = json!(case.class());
    }
    // What is JSON is YAML too.
    std::fs::write(folder.join("echo.yaml"), about.to_string()).expect("written");
    let broken = case.stage.worker.reload_builtin_functions().await;
    assert_eq!(broken.expect("read"), []);
    let id = case
        .make(json!({case.code_field(): null, "className": null, "functionType": "echo"}))
        .await;
    case.stage.send(&input, ["built"]).await;
    assert_eq!(case.outputs(&output, 1).await, ["built none none"]);
    case.stage.worker.delete(&id).await.expect("deleted");
    case.see(&["functionType"]);
}

/// In its arguments, its environment and its limits.
async fn process_as_asked(case: &mut Case<'_>) {
    let (input, output) = (case.topic("in"), case.topic("out"));
    let gate = case.gate();
    let flag = match case.runtime {
        "bash" => "--norc",
        "python" => "-Xutf8",
        "java" => "-Dmy.property=1",
        "go" => "-my-flag",
        _ => "",
    };
    let mut given = json!({"customRuntimeOptions": "{\"env\": {\"MY_OPTION\": \"taken\"}}",
        "resources": {"ram": 4_096_000_000_i64}});
    if !flag.is_empty() {
        given["runtimeFlags"] = json!(flag);
    }
    let id = case.make(given).await;
    case.stage.send(&input, [gate.message()]).await;
    let mark = mark(&id.name);
    let flagged = |text: &str| flag.is_empty() || text.contains(flag);
    let limited = |text: &str| text.contains("4096000000");
    case.stage
        .until("started as asked", |_| {
            let with = |name: &str| {
                processes(&mark)
                    .map(|at| read_text(&at.join(name)))
                    .collect::<String>()
            };
            let (arguments, environment) = (with("cmdline"), with("environ"));
            flagged(&arguments)
                && environment.contains("MY_OPTION=taken\0")
                && (limited(&arguments) || limited(&with("limits")))
        })
        .await;
    case.open(&gate, &id).await;
    assert_eq!(case.outputs(&output, 1).await.len(), 1);
    case.see(&["resources.ram", "customRuntimeOptions"]);
    if !flag.is_empty() {
        case.see(&["runtimeFlags"]);
    }
    case.stage.worker.delete(&id).await.expect("deleted");
}

/// A guest says what it was started with, and ends when it wants more memory than it may have.
async fn guest_as_asked(case: &mut Case<'_>) {
    let (input, output, dead) = (case.topic("in"), case.topic("out"), case.topic("dead"));
    let mut letters = keep(case.stage, &dead).await;
    let given = json!({"customRuntimeOptions": "{\"env\": {\"MY_OPTION\": \"taken\"}}",
        "runtimeFlags": "-my-flag", "resources": {"ram": 64 << 20}, "maxMessageRetries": 0, "deadLetterTopic": &dead});
    let id = case.make(given).await;
    case.stage.send(&input, ["show"]).await;
    let shown = case.outputs(&output, 1).await.remove(0);
    for word in ["-my-flag", "MY_OPTION", "taken"] {
        assert!(shown.contains(word), "{}: {shown}", case.runtime);
    }
    case.see(&["customRuntimeOptions", "runtimeFlags"]);
    case.stage.send(&input, ["grow"]).await;
    let letter = receive(&mut letters, 1).await.remove(0);
    let said = format!("{:?}", letter.properties);
    assert!(
        said.contains("67108864 are allowed: raise `resources.ram`"),
        "{}: {said}",
        case.runtime
    );
    case.see(&["resources.ram"]);
    case.stage.worker.delete(&id).await.expect("deleted");
}

async fn pending(case: &mut Case<'_>) {
    let (input, output) = (case.topic("in"), case.topic("out"));
    let gate = case.gate();
    let id = case.make(json!({"maxPendingAsyncRequests": 2})).await;
    case.stage.send(&input, vec![gate.message(); 6]).await;
    let received = |worker: &geminga_functions::Worker| {
        let status = worker.status(&id).expect("there");
        status.instances[0].status.num_received
    };
    case.stage
        .until("has two", |worker| received(worker) == 2)
        .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(received(&case.stage.worker), 2, "no more than it may have");
    case.open(&gate, &id).await;
    assert_eq!(case.outputs(&output, 6).await.len(), 6);
    case.see(&["maxPendingAsyncRequests"]);
    case.stage.worker.delete(&id).await.expect("deleted");
}

async fn time_out(case: &mut Case<'_>) {
    let (input, dead) = (case.topic("in"), case.topic("dead"));
    let mut letters = keep(case.stage, &dead).await;
    let id = case
        .make(json!({"timeoutMs": 300, "maxMessageRetries": 0, "deadLetterTopic": &dead}))
        .await;
    case.stage.send(&input, ["wait:/there/is/none"]).await;
    let letter = receive(&mut letters, 1).await.remove(0);
    assert_eq!(letter.property("geminga.kind"), Some("timeout"));
    case.see(&["timeoutMs"]);
    case.stage.worker.delete(&id).await.expect("deleted");
}

/// It ends when nothing comes, and begins again.
async fn process_rests(case: &mut Case<'_>) {
    let (input, output) = (case.topic("in"), case.topic("out"));
    let id = case.make(json!({"idleTimeoutMs": 200})).await;
    case.stage.send(&input, ["a"]).await;
    assert_eq!(case.outputs(&output, 1).await, ["a none none"]);
    let mark = mark(&id.name);
    case.stage
        .until("rests", |_| processes(&mark).next().is_none())
        .await;
    case.stage.send(&input, ["b"]).await;
    assert_eq!(case.outputs(&output, 1).await, ["b none none"]);
    case.see(&["idleTimeoutMs"]);
    case.stage.worker.delete(&id).await.expect("deleted");
}

/// The same of a guest: it has forgotten what it counted.
async fn guest_rests(case: &mut Case<'_>) {
    let (input, output) = (case.topic("in"), case.topic("out"));
    let id = case.make(json!({"idleTimeoutMs": 200})).await;
    // Without a pause it goes on counting.
    case.stage.send(&input, ["count", "count"]).await;
    let mut counted = case.outputs(&output, 2).await;
    assert_eq!(counted, ["1", "2"], "{}", case.runtime);
    let deadline = Instant::now() + Duration::from_secs(20);
    while counted[0] != "1" || counted.len() > 1 {
        assert!(Instant::now() < deadline, "{}: {counted:?}", case.runtime);
        // The pause is what it rests in.
        tokio::time::sleep(Duration::from_millis(400)).await;
        case.stage.send(&input, ["count"]).await;
        counted = case.outputs(&output, 1).await;
    }
    case.see(&["idleTimeoutMs"]);
    case.stage.worker.delete(&id).await.expect("deleted");
}

/// What the environment of a function's processes has.
fn mark(function: &str) -> String {
    format!("GMG_FUNCTION={function}\0")
}

/// Waits until the function's process is held so.
pub(super) async fn held(case: &mut Case<'_>, field: &str, is_held: fn(&Path) -> bool) {
    let (input, output) = (case.topic("in"), case.topic("out"));
    let gate = case.gate();
    let id = case.make(sample(field)).await;
    case.stage.send(&input, [gate.message()]).await;
    let mark = mark(&id.name);
    case.stage
        .until("held", |_| processes(&mark).any(|at| is_held(&at)))
        .await;
    case.open(&gate, &id).await;
    assert_eq!(case.outputs(&output, 1).await.len(), 1);
    case.stage.worker.delete(&id).await.expect("deleted");
}
