//! Built-in functions: made by their name, with the code that the folder had then.

use std::path::Path;
use std::time::Duration;

use geminga_functions::{ComponentId, Upload, WorkerError};
use geminga_model::FunctionConfig;
use serde_json::{Value, json};

use crate::stage::{Stage, receive, texts};
use crate::workers::{another, empty_stage, until};

/// Puts a function in Bash into the folder that adds this to each message.
fn put(folder: &Path, name: &str, adds: &str) {
    std::fs::create_dir_all(folder).expect("made");
    let code = format!("process() {{ emit \"$MSG{adds}\"; }}");
    // As one does who replaces what is in use.
    std::fs::write(folder.join(".new"), code).expect("written");
    std::fs::rename(folder.join(".new"), folder.join(format!("{name}.sh"))).expect("renamed");
    let about = format!("description: adds {adds}\nfile: {name}.sh\n");
    std::fs::write(folder.join(format!("{name}.yaml")), about).expect("written");
}

fn config(fields: Value) -> FunctionConfig {
    serde_json::from_value(fields).expect("a config")
}

async fn answer(stage: &Stage, input: &str, output: &str, text: &str) -> String {
    let mut consumer = stage.consumer(output).await;
    stage.send(input, [text]).await;
    let got = texts(&receive(&mut consumer, 1).await).remove(0);
    consumer.close().await.expect("closed");
    got
}

fn refused(answer: Result<impl std::fmt::Debug, WorkerError>) -> String {
    match answer {
        Err(WorkerError::Invalid(why)) => why.join("; "),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_built_in_function_runs_and_changes_only_when_it_is_told_to() {
    let mut stage = Stage::new().await;
    let folder = stage.directory.path().join("functions");
    assert!(stage.worker.builtin_functions().is_empty());
    put(&folder, "mark", "!");
    std::fs::write(folder.join("half.nar"), "PK").expect("written");
    let broken = stage.worker.reload_builtin_functions().await.expect("read");
    assert_eq!(broken.len(), 1);
    assert_eq!(broken[0].file, "half.nar");
    assert_eq!(stage.worker.builtin_functions()[0].name, "mark");

    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let fields = json!({"name": "f", "inputs": [&input], "output": &output,
        "subscriptionPosition": "Earliest"});
    let with = |more: Value| {
        let mut all = fields.clone();
        for (field, value) in more.as_object().expect("fields") {
            all[field] = value.clone();
        }
        config(all).into()
    };
    for (more, code, part) in [
        (
            json!({"functionType": "makr"}),
            None,
            "did you mean 'mark'?; there are: mark",
        ),
        (
            json!({"functionType": "mark", "runtime": "PYTHON"}),
            None,
            "is bash",
        ),
        (
            json!({"functionType": "mark", "sh": "/f.sh"}),
            None,
            "give one of the two",
        ),
        (
            json!({"functionType": "mark"}),
            Some(Upload::new("f.sh", "x")),
            "is sent along",
        ),
    ] {
        let said = refused(stage.worker.create(with(more), code).await);
        assert!(said.contains(part), "{said}");
    }
    let id = stage
        .worker
        .create(with(json!({"functionType": "mark"})), None)
        .await
        .expect("created");
    assert_eq!(answer(&stage, &input, &output, "a").await, "a!");
    let shown = stage.worker.get(&id).expect("there");
    let shown = serde_json::to_value(&shown).expect("JSON")["config"].clone();
    assert_eq!(
        (&shown["functionType"], &shown["runtime"]),
        (&json!("mark"), &json!("BASH"))
    );
    assert!(shown.get("sh").is_none(), "{shown}");
    let file = stage
        .worker
        .package(&id)
        .await
        .expect("there")
        .expect("code");
    assert!(
        stage.worker.is_package(&file) && file.ends_with("mark.sh"),
        "{file:?}"
    );

    // New code in the folder, and in the worker's list: what runs stays as it is, also when it starts anew.
    put(&folder, "mark", "?");
    let asked = config(json!({"functionType": "mark"}));
    let stale = refused(stage.worker.update(&id, asked.clone().into(), None).await);
    assert!(stale.contains("reload the functions"), "{stale}");
    stage.worker.reload_builtin_functions().await.expect("read");
    stage
        .worker
        .restart_instances(&id, None)
        .await
        .expect("restarted");
    assert_eq!(answer(&stage, &input, &output, "b").await, "b!");
    let other = config(json!({"userConfig": {"a": "b"}}));
    stage
        .worker
        .update(&id, other.into(), None)
        .await
        .expect("updated");
    assert_eq!(answer(&stage, &input, &output, "c").await, "c!");
    stage
        .worker
        .update(&id, asked.clone().into(), None)
        .await
        .expect("updated");
    assert_eq!(answer(&stage, &input, &output, "d").await, "d?");
    let same = refused(stage.worker.update(&id, asked.into(), None).await);
    assert!(same.contains("no change"), "{same}");
    stage
        .worker
        .roll_back(&id, None)
        .await
        .expect("rolled back");
    assert_eq!(answer(&stage, &input, &output, "e").await, "e!");

    // Its folder may go: the code is the worker's.
    std::fs::remove_dir_all(&folder).expect("removed");
    stage.worker.shutdown(Duration::from_secs(5)).await;
    stage.another_worker().await;
    assert_eq!(answer(&stage, &input, &output, "f").await, "f!");
    let own = Upload::new("own.sh", "process() { emit \"$MSG own\"; }");
    stage
        .worker
        .update(&id, config(json!({})).into(), Some(own))
        .await
        .expect("updated");
    assert_eq!(answer(&stage, &input, &output, "g").await, "g own");
    let shown = serde_json::to_value(stage.worker.get(&id).expect("there")).expect("JSON");
    assert!(shown["config"].get("functionType").is_none(), "{shown}");
    stage.end().await;
}

/// One that was made of a file becomes a built-in one, of the same language only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_makes_a_function_a_built_in_one() {
    let stage = Stage::new().await;
    let folder = stage.directory.path().join("functions");
    put(&folder, "mark", "!");
    let code = "def process(x):\n    return x\n\nclass Other:\n    def process(self, x, context):\n        return x\n";
    std::fs::write(folder.join("count.py"), code).expect("written");
    std::fs::write(
        folder.join("count.yaml"),
        "className: count\nfile: count.py\n",
    )
    .expect("written");
    stage.worker.reload_builtin_functions().await.expect("read");
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let id = stage
        .function("own", json!({"sh": "process() { emit \"$MSG own\"; }", "inputs": [&input], "output": &output}))
        .await;
    assert_eq!(answer(&stage, &input, &output, "a").await, "a own");
    let to = |name: &str| config(json!({"jar": format!("builtin://{name}"), "runtime": "JAVA"}));
    let said = refused(stage.worker.update(&id, to("count").into(), None).await);
    assert!(said.contains("Runtime cannot be altered"), "{said}");
    stage
        .worker
        .update(&id, to("mark").into(), None)
        .await
        .expect("updated");
    assert_eq!(answer(&stage, &input, &output, "b").await, "b!");
    let id = ComponentId::new(id.kind, "public", "default", "counted");
    let made = config(json!({"name": "counted", "py": "builtin://count", "inputs": [&input]}));
    assert_eq!(
        stage
            .worker
            .create(made.into(), None)
            .await
            .expect("created"),
        id
    );
    let class = || {
        let shown = serde_json::to_value(stage.worker.get(&id).expect("there")).expect("JSON");
        shown["config"]["className"].clone()
    };
    assert_eq!(class(), "count");
    // A class that was given stays until it is taken away.
    for (change, removed, is) in [
        (json!({"className": "count.Other"}), None, "count.Other"),
        (
            json!({"py": "builtin://count", "timeoutMs": 5000}),
            None,
            "count.Other",
        ),
        (json!({"py": "builtin://count"}), Some("className"), "count"),
    ] {
        let removed: Vec<_> = removed.into_iter().map(str::to_owned).collect();
        let changed = config(change.clone()).into();
        let update = stage
            .worker
            .update_without(None, &id, changed, &removed, None);
        update
            .await
            .unwrap_or_else(|error| panic!("{change}: {error}"));
        assert_eq!(class(), is, "{change}");
    }
    stage.end().await;
}

/// The leader alone has the folder: the other worker gets the code from it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_worker_runs_what_the_leader_has_built_in() {
    let stage = empty_stage().await;
    let first = another(&stage, "a").await;
    let folder = first.directory.path().join("functions");
    put(&folder, "mark", "!");
    first.worker.reload_builtin_functions().await.expect("read");
    let second = another(&stage, "b").await;
    until("both are there", || first.worker.members().len() == 2).await;
    let mut made = Vec::new();
    for n in 0..2 {
        let (input, output) = (
            stage.topic(&format!("in-{n}")),
            stage.topic(&format!("out-{n}")),
        );
        let fields = json!({"name": format!("f{n}"), "functionType": "mark", "inputs": [&input], "output": &output,
            "subscriptionPosition": "Earliest"});
        let id = first
            .worker
            .create(config(fields).into(), None)
            .await
            .expect("created");
        made.push((id, input, output));
    }
    let runs = |id: &ComponentId| {
        second
            .worker
            .status(id)
            .is_ok_and(|status| status.num_running == 1)
    };
    until("the second runs one", || {
        made.iter().any(|(id, ..)| runs(id))
    })
    .await;
    for (_, input, output) in &made {
        assert_eq!(answer(&stage, input, output, "a").await, "a!");
    }
    for other in [&second, &first] {
        other.worker.shutdown(Duration::from_secs(1)).await;
    }
    stage.end().await;
}
