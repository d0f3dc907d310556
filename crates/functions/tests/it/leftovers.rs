//! What is left when components are deleted, and that those which are made anew find nothing of it.

use geminga_client::{Message, Receipt};
use geminga_functions::{ComponentId, FunctionState, Worker, WorkerError};
use geminga_model::{FunctionConfig, TopicName};
use serde_json::{Value, json};

use crate::moves::{counted, end, make};
use crate::stage::{Stage, nothing_more, receive, texts};
use crate::workers::{another, another_by, empty_stage, until};

const COUNTS: &str = "process() { state incr n; emit \"$MSG\"; }";

/// The topic that the state of a function is on.
fn state_topic(id: &ComponentId) -> String {
    format!("persistent://{}-state-changelog", id.fqfn())
}

/// Writes the count of a function that is not there any more.
async fn leave(stage: &Stage, topic: &str) {
    let producer = stage.client.producer(topic).build().await;
    let producer = producer.expect("a producer");
    let record = Message::new(9_i64.to_be_bytes().to_vec()).key("n");
    let sent: Receipt = producer
        .enqueue(record.property("geminga.counter", "1"))
        .await
        .expect("taken");
    sent.await.expect("stored");
    producer.close().await.expect("closed");
}

async fn count(worker: &Worker, id: &ComponentId) -> Option<i64> {
    worker.state_get(id, "n").await.ok()?.number_value
}

#[tokio::test]
async fn a_function_that_is_made_anew_starts_with_no_state() {
    let stage = Stage::new().await;
    for guarantee in ["ATLEAST_ONCE", "EFFECTIVELY_ONCE"] {
        let topic = |name: &str| stage.topic(&format!("{name}-{guarantee}"));
        let (input, output) = (topic("in"), topic("out"));
        let mut consumer = stage.consumer(&output).await;
        let fields = json!({"sh": COUNTS, "inputs": [&input], "output": &output,
            "processingGuarantees": guarantee});
        let id = stage.function(guarantee, fields.clone()).await;
        stage.send(&input, ["a", "b"]).await;
        assert_eq!(texts(&receive(&mut consumer, 2).await), ["a", "b"]);
        counted(&stage.worker, &id, 2).await;
        // Whatever is in its place goes on with its state.
        let more = FunctionConfig {
            user_config: Some(serde_json::from_value(json!({"a": 1})).expect("an object")),
            ..FunctionConfig::default()
        };
        let updated = stage.worker.update(&id, more.into(), None).await;
        updated.expect("updated");
        stage.send(&input, ["c"]).await;
        assert_eq!(texts(&receive(&mut consumer, 1).await), ["c"]);
        counted(&stage.worker, &id, 3).await;
        stage.worker.delete(&id).await.expect("deleted");
        let left: TopicName = state_topic(&id).parse().expect("a topic");
        let left = stage.broker().topic_stats(&left).await.expect("known");
        assert!(left.subscriptions.is_empty(), "the broker may clean it");
        stage.function(guarantee, fields.clone()).await;
        assert_eq!(count(&stage.worker, &id).await, None, "{guarantee}");
        stage.send(&input, ["d"]).await;
        assert_eq!(texts(&receive(&mut consumer, 1).await), ["d"]);
        counted(&stage.worker, &id, 1).await;
        // A worker that was killed in the middle of a deletion.
        stage.worker.delete(&id).await.expect("deleted");
        leave(&stage, &state_topic(&id)).await;
        stage.function(guarantee, fields).await;
        assert_eq!(count(&stage.worker, &id).await, None, "{guarantee}");
        stage.send(&input, ["e"]).await;
        assert_eq!(texts(&receive(&mut consumer, 1).await), ["e"]);
        counted(&stage.worker, &id, 1).await;
    }
    stage.end().await;
}

/// A leader stands still while it makes a function, and goes on when another one leads and has made it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_former_leader_forgets_nothing_of_what_lives() {
    let stage = empty_stage().await;
    let (client, gate) = stage.gated();
    let first = another_by(&stage, "a", client).await;
    assert!(first.worker.leads());
    let second = another(&stage, "b").await;
    until("both know both", || second.worker.members().len() == 2).await;
    let name = stage.topic("f");
    let name = name.rsplit('/').next().expect("a name").to_owned();
    let fields = json!({"name": name, "inputs": [stage.topic("in")]});
    leave(
        &stage,
        &format!("persistent://public/default/{name}-state-changelog"),
    )
    .await;
    gate.send_replace(false);
    let mut making = Box::pin(try_make(&first.worker, fields.clone()));
    let led = async { until("the second leads", || second.worker.leads()).await };
    tokio::select! {
        made = &mut making => panic!("made without a broker: {made:?}"),
        () = led => {}
    }
    let id = make(&second.worker, COUNTS, fields).await;
    let five = FunctionState {
        key: "n".to_owned(),
        number_value: Some(5),
        ..FunctionState::default()
    };
    second.worker.state_put(&id, five).await.expect("stored");
    gate.send_replace(true);
    let refused = making.await.expect_err("another one leads");
    assert!(
        !matches!(refused, WorkerError::Exists(_)),
        "it did not get that far"
    );
    // Read anew.
    second
        .worker
        .stop_instances(&id, None)
        .await
        .expect("stopped");
    second
        .worker
        .start_instances(&id, None)
        .await
        .expect("started");
    assert_eq!(count(&second.worker, &id).await, Some(5));
    end(stage, [first, second]).await;
}

async fn try_make(worker: &Worker, fields: Value) -> Result<ComponentId, WorkerError> {
    let mut all = json!({"sh": "f.sh"});
    for (field, value) in fields.as_object().expect("fields") {
        all[field] = value.clone();
    }
    let config: FunctionConfig = serde_json::from_value(all).expect("a config");
    let code = geminga_functions::Upload::new("f.sh", COUNTS);
    worker.create(config.into(), Some(code)).await
}

#[tokio::test]
async fn a_file_source_that_is_made_anew_reads_from_the_beginning() {
    let mut stage = Stage::new().await;
    let topic = stage.topic("lines");
    let mut consumer = stage.consumer(&topic).await;
    let file = stage.file("in.txt", "a\nb\n");
    let fields = json!({"name": "source", "sourceType": "file", "topicName": &topic,
        "configs": {"path": &file, "follow": true}});
    let places = stage.directory.path().join("worker");
    let places = places.join("source-public+default+source.json");
    for _ in 0..2 {
        let id = stage.source(fields.clone()).await;
        assert_eq!(texts(&receive(&mut consumer, 2).await), ["a", "b"]);
        stage.until("kept", |_| places.exists()).await;
        stage.worker.delete(&id).await.expect("deleted");
        let left = std::fs::read_to_string(&places).ok();
        assert_eq!(left, None);
    }
    // Two workers that were killed in the middle of a deletion: one is made anew at once, one is not.
    let known = r#"{"files":{"FILE":{"offset":4,"done":false}}}"#;
    let known = known.replace("FILE", &file.display().to_string());
    std::fs::write(&places, &known).expect("written");
    stage.source(fields).await;
    assert_eq!(texts(&receive(&mut consumer, 2).await), ["a", "b"]);
    let other = places.with_file_name("source-public+default+other.json");
    std::fs::write(&other, &known).expect("written");
    stage
        .worker
        .shutdown(std::time::Duration::from_secs(2))
        .await;
    stage.another_worker().await;
    assert!(places.exists() && !other.exists());
    nothing_more(&mut consumer).await;
    stage.end().await;
}
