//! What must hold when functions go from one worker to another and come back: their state, their
//! instances, and who owns them while nobody hears anybody.

use geminga_functions::{ComponentId, Owner, Upload, Worker, WorkerError};
use geminga_model::FunctionConfig;
use serde_json::{Value, json};

use crate::stage::{PATIENCE, Stage, numbers, receive, texts};
use crate::workers::{LEASE, Other, another, another_by, empty_stage, here, until, uppercase};

pub(crate) async fn make(worker: &Worker, code: &str, fields: Value) -> ComponentId {
    let mut all = json!({"sh": "f.sh", "subscriptionPosition": "Earliest"});
    for (field, value) in fields.as_object().expect("fields") {
        all[field] = value.clone();
    }
    let config: FunctionConfig = serde_json::from_value(all).expect("a config");
    let code = Upload::new("f.sh", code.to_owned());
    worker
        .create(config.into(), Some(code))
        .await
        .expect("created")
}

pub(crate) async fn end(stage: Stage, others: impl IntoIterator<Item = Other>) {
    for other in others {
        other
            .worker
            .shutdown(std::time::Duration::from_secs(2))
            .await;
    }
    stage.end().await;
}

/// Waits until the counter `n` of a function has a value.
pub(crate) async fn counted(worker: &Worker, id: &ComponentId, wanted: i64) {
    let mut last = None;
    let wait = async {
        while last != Some(wanted) {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            let state = worker.state_get(id, "n").await;
            last = state.ok().and_then(|state| state.number_value);
        }
    };
    let waited = tokio::time::timeout(PATIENCE, wait).await;
    assert!(waited.is_ok(), "the counter is {last:?}, not {wanted}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_that_was_elsewhere_comes_back_as_it_is_now() {
    let stage = empty_stage().await;
    let first = another(&stage, "a").await;
    // Of two of the same weight the later by name is moved.
    uppercase(&stage, &first.worker, "a").await;
    let input = stage.topic("in");
    let id = make(
        &first.worker,
        "process() { state incr n; }",
        json!({"name": "z", "inputs": [&input]}),
    )
    .await;
    stage.send(&input, numbers(0..10)).await;
    counted(&first.worker, &id, 10).await;
    let second = another(&stage, "b").await;
    until("it moves", || {
        first.worker.rebalance().is_ok() && here(&[&second], std::slice::from_ref(&id)) == [1]
    })
    .await;
    stage.send(&input, numbers(0..20)).await;
    counted(&second.worker, &id, 30).await;
    // Whoever does not run it reads what it is now, and keeps nothing of it.
    counted(&first.worker, &id, 30).await;
    stage.send(&input, numbers(0..5)).await;
    counted(&second.worker, &id, 35).await;
    // What is not acknowledged yet comes again.
    let drained = tokio::time::timeout(PATIENCE, second.worker.drained()).await;
    drained.expect("acknowledged in time");
    second.worker.vanish().await;
    until("it comes back", || {
        here(&[&first], std::slice::from_ref(&id)) == [1]
    })
    .await;
    stage.send(&input, numbers(0..1)).await;
    counted(&first.worker, &id, 36).await;
    drop(second);
    end(stage, [first]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_that_are_spread_move_one_by_one() {
    let stage = empty_stage().await;
    let first = another(&stage, "a").await;
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let id = make(
        &first.worker,
        "process() { emit \"${MSG^^}\"; }",
        json!({
            "name": "f", "inputs": [&input], "output": &output, "parallelism": 4,
            "customRuntimeOptions": "{\"spread\":true}",
        }),
    )
    .await;
    let running = |other: &Other| other.worker.status(&id).map_or(0, |s| s.num_running);
    until("all run", || running(&first) == 4).await;
    let second = another(&stage, "b").await;
    until("an even load", || {
        let _ = first.worker.rebalance();
        (running(&first), running(&second)) == (2, 2)
    })
    .await;
    let mut consumer = stage.consumer(&output).await;
    stage.send(&input, (0..20).map(|n| format!("m{n}"))).await;
    receive(&mut consumer, 20).await;
    end(stage, [second, first]).await;
}

/// The broker is away for longer than a lease: nobody is dead for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_the_broker_moves_nothing() {
    let stage = empty_stage().await;
    let (client, gate) = stage.gated();
    let first = another_by(&stage, "a", client.clone()).await;
    let second = another_by(&stage, "b", client).await;
    let mut functions = Vec::new();
    for n in 0..4 {
        functions.push(uppercase(&stage, &first.worker, &format!("f{n}")).await);
    }
    let ids: Vec<ComponentId> = functions.iter().map(|(id, ..)| id.clone()).collect();
    until("an even load", || here(&[&first, &second], &ids) == [2, 2]).await;
    let owned = |other: &Other| -> Vec<bool> {
        let is_here = |id: &ComponentId| other.worker.owner(id, 0) == Owner::Here;
        ids.iter().map(is_here).collect()
    };
    let (of_first, of_second) = (owned(&first), owned(&second));
    gate.send_replace(false);
    until("the second runs nothing without its lease", || {
        here(&[&second], &ids) == [0]
    })
    .await;
    // Time in which the leader could give all to itself.
    tokio::time::sleep(LEASE).await;
    assert_eq!(
        owned(&first),
        of_first,
        "the leader took what is not its own"
    );
    gate.send_replace(true);
    until("all run again", || here(&[&first, &second], &ids) == [2, 2]).await;
    assert_eq!((owned(&first), owned(&second)), (of_first, of_second));
    for (_, input, output) in &functions {
        let mut consumer = stage.consumer(output).await;
        stage.send(input, ["x"]).await;
        assert_eq!(texts(&receive(&mut consumer, 1).await), ["X"]);
    }
    end(stage, [second, first]).await;
}

/// The new version starts while the old one works; then each message is with one of them, once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_loses_and_doubles_nothing_and_waits_for_the_new_code() {
    let stage = Stage::new().await;
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let id = make(
        &stage.worker,
        "process() { state incr n; emit \"one $MSG\"; }",
        json!({
            "name": "f", "inputs": [&input], "output": &output, "parallelism": 2,
            "customRuntimeOptions": "{\"startTimeoutMs\":30000}",
        }),
    )
    .await;
    let gate = stage.directory.path().join("gate");
    std::fs::create_dir(&gate).expect("made");
    let wait = |word: &str| {
        format!(
            "while [ ! -e {}/{word} ]; do sleep 0.02; done",
            gate.display()
        )
    };
    let code = format!(
        "{}\nprocess() {{ state incr n; emit \"two $MSG\"; }}",
        wait("go")
    );
    let mut consumer = stage.consumer(&output).await;
    let worker = stage.worker.clone();
    let of = id.clone();
    let updating = geminga_stdx::Tasks::new();
    updating.spawn("update", geminga_stdx::tasks::OnError::Log, async move {
        let unchanged = FunctionConfig::default().into();
        worker
            .update(&of, unchanged, Some(Upload::new("f.sh", code)))
            .await
    });
    until("the update is known", || {
        stage.worker.versions(&id).is_ok_and(|v| v[0].version == 2)
    })
    .await;
    // The new code waits: the old one answers.
    let mut sent = 0;
    let mut seen = Vec::new();
    while sent < 200 {
        stage.send(&input, numbers(sent..sent + 20)).await;
        sent += 20;
        seen.extend(texts(&receive(&mut consumer, 20).await));
    }
    assert!(seen.iter().all(|text| text.starts_with("one ")), "{seen:?}");
    // Messages flow while the one takes the place of the other.
    std::fs::write(gate.join("go"), "").expect("written");
    let began = std::time::Instant::now();
    while !seen.iter().any(|text| text.starts_with("two ")) {
        assert!(
            began.elapsed() < 4 * PATIENCE,
            "the new version never answers"
        );
        stage.send(&input, numbers(sent..sent + 20)).await;
        sent += 20;
        seen.extend(texts(&receive(&mut consumer, 20).await));
    }
    assert!(updating.join(PATIENCE).await, "the update answers");
    stage.send(&input, numbers(sent..sent + 20)).await;
    seen.extend(texts(&receive(&mut consumer, 20).await));
    crate::stage::nothing_more(&mut consumer).await;
    sent += 20;
    let mut got: Vec<usize> = seen
        .iter()
        .map(|text| text[4..].parse().expect("a number"))
        .collect();
    got.sort_unstable();
    assert_eq!(got, (0..sent).collect::<Vec<_>>(), "each once");
    counted(&stage.worker, &id, sent as i64).await;
    assert!(
        seen[seen.len() - 20..]
            .iter()
            .all(|t| t.starts_with("two "))
    );
    stage.end().await;
}

/// A version that does not start is undone wherever it runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_that_does_not_start_elsewhere_is_undone() {
    let stage = empty_stage().await;
    let first = another(&stage, "a").await;
    uppercase(&stage, &first.worker, "a").await;
    let second = another(&stage, "b").await;
    until("both know both", || first.worker.members().len() == 2).await;
    // The lighter worker gets it.
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let id = make(
        &first.worker,
        "process() { emit \"one $MSG\"; }",
        json!({
            "name": "z", "inputs": [&input], "output": &output,
            "customRuntimeOptions": "{\"onFailedUpdate\":\"rollback\"}",
        }),
    )
    .await;
    until("the second runs it", || {
        here(&[&second], std::slice::from_ref(&id)) == [1]
    })
    .await;
    let update = |code: &str| {
        let code = Upload::new("f.sh", code.to_owned());
        first
            .worker
            .update(&id, FunctionConfig::default().into(), Some(code))
    };
    let undone = update("process() {").await.expect_err("it does not start");
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
    let mut consumer = stage.consumer(&output).await;
    stage.send(&input, ["a"]).await;
    assert_eq!(texts(&receive(&mut consumer, 1).await), ["one a"]);
    update("process() { emit \"two $MSG\"; }")
        .await
        .expect("it starts");
    stage.send(&input, ["b"]).await;
    assert_eq!(texts(&receive(&mut consumer, 1).await), ["two b"]);
    end(stage, [second, first]).await;
}
