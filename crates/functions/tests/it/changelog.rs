//! The topics that remember the catalogue and the state: kept by a subscription, bounded, and read
//! again from where their last rewriting began.

use std::time::Duration;

use geminga_client::{InitialPosition, Message, ProducerAccessMode, SubType};
use geminga_functions::{ComponentId, FunctionState};
use geminga_model::FunctionConfig;
use serde_json::json;

use crate::stage::{PATIENCE, Stage, numbers, receive};

const MAX: u64 = 40;

/// Messages that the topic's keeper has not let go of.
async fn kept(stage: &Stage, topic: &str) -> usize {
    let consumer = stage
        .client
        .consumer(topic)
        .subscription("geminga-changelog");
    let mut consumer = consumer
        .sub_type(SubType::Failover)
        .initial_position(InitialPosition::Latest)
        .build()
        .await
        .expect("the subscription");
    let mut count = 0;
    while consumer.has_message_available().await.expect("asked") {
        count += consumer.recv_batch(1000).await.expect("open").len();
    }
    consumer.close().await.expect("closed");
    count
}

/// Waits until no more than so many are kept: the last cut may be under way, and what is written
/// meanwhile is behind it until the next one.
async fn kept_below(stage: &Stage, id: &ComponentId, bound: usize) {
    let topic = format!("persistent://{}-state-changelog", id.fqfn());
    let mut left = kept(stage, &topic).await;
    let wait = async {
        while left >= bound {
            let one = FunctionState {
                key: "one".to_owned(),
                string_value: Some("more".to_owned()),
                ..FunctionState::default()
            };
            let put = stage.worker.state_put(id, one).await;
            put.expect("stored");
            left = kept(stage, &topic).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, wait).await;
    assert!(waited.is_ok(), "{left} records are kept of `{topic}`");
}

async fn count_of(stage: &Stage, id: &ComponentId, key: &str) -> Option<i64> {
    stage.worker.state_get(id, key).await.ok()?.number_value
}

#[tokio::test]
async fn a_function_that_counts_for_ever_keeps_a_bounded_changelog() {
    counts_for_ever("ATLEAST_ONCE", 3).await;
}

/// The topic is written anew in transactions of its own, between those of the messages.
#[tokio::test]
async fn one_that_counts_once_does_so_too() {
    counts_for_ever("EFFECTIVELY_ONCE", 2).await;
}

async fn counts_for_ever(guarantee: &str, rounds: u32) {
    let mut stage = Stage::with_changelogs_of(MAX).await;
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let code = r#"process() {
  state incr "n$((MSG % 7))"
  state put last "$MSG"
  state put "once$MSG" x; state del "once$MSG"
  emit "$MSG"
}"#;
    let id = stage
        .function(
            "f",
            json!({"sh": code, "inputs": [&input], "output": &output, "processingGuarantees": guarantee}),
        )
        .await;
    let mut consumer = stage.consumer(&output).await;
    for round in 1..=rounds {
        stage.send(&input, numbers(0..700)).await;
        receive(&mut consumer, 700).await;
        stage.drained().await;
        for key in 0..7 {
            let count = count_of(&stage, &id, &format!("n{key}")).await;
            assert_eq!(
                count,
                Some(i64::from(100 * round)),
                "round {round}, key {key}"
            );
        }
        // 2,800 records a round were written; what a start reads does not grow with them.
        kept_below(&stage, &id, 600).await;
        stage.worker.shutdown(Duration::from_secs(5)).await;
        stage.another_worker().await;
    }
    let last = stage.worker.state_get(&id, "last").await.expect("there");
    assert_eq!(last.string_value.as_deref(), Some("699"));
    assert!(
        last.version
            .is_some_and(|version| version >= u64::from(700 * rounds)),
        "{last:?}"
    );
    assert!(stage.worker.state_get(&id, "once5").await.is_err());
    stage.end().await;
}

#[tokio::test]
async fn the_catalogue_is_kept_from_deletion_and_bounded_too() {
    let mut stage = Stage::with_changelogs_of(MAX).await;
    let input = stage.topic("in");
    let mut ids = Vec::new();
    for name in ["a", "b"] {
        let fields = json!({"sh": "cat", "inputs": [&input], "parallelism": 1});
        ids.push(stage.function(name, fields).await);
    }
    for _ in 0..MAX {
        stage
            .worker
            .stop_instances(&ids[0], None)
            .await
            .expect("stopped");
        stage
            .worker
            .start_instances(&ids[0], None)
            .await
            .expect("started");
    }
    stage.worker.delete(&ids[1]).await.expect("deleted");
    let left = kept(&stage, &stage.catalog).await;
    assert!(left as u64 <= MAX + 5, "{left} records are kept");
    stage.worker.shutdown(Duration::from_secs(2)).await;
    stage.another_worker().await;
    assert_eq!(stage.worker.components(), ids[..1]);
    stage.end().await;
}

/// A value that was taken is there, also when the function was being changed at that moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_was_put_outlives_updates() {
    for guarantee in ["ATLEAST_ONCE", "EFFECTIVELY_ONCE"] {
        let mut stage = Stage::new().await;
        let input = stage.topic("in");
        let fields = json!({"sh": "process() { :; }", "inputs": [&input], "processingGuarantees": guarantee});
        let id = stage.function("f", fields).await;
        let text = |n: u64| FunctionState {
            key: "k".to_owned(),
            string_value: Some(n.to_string()),
            ..FunctionState::default()
        };
        let updates = async {
            for n in 0..8 {
                let change: FunctionConfig =
                    serde_json::from_value(json!({"userConfig": {"n": n}})).expect("a config");
                let updated = stage.worker.update(&id, change.into(), None).await;
                updated.expect("updated");
            }
        };
        let mut updates = Box::pin(updates);
        let mut n = 0;
        loop {
            n += 1;
            let put = stage.worker.state_put(&id, text(n));
            tokio::pin!(put);
            tokio::select! {
                () = &mut updates => {
                    put.await.expect("taken");
                    break;
                }
                done = &mut put => done.expect("taken"),
            }
            let seen = stage.worker.state_get(&id, "k").await.expect("there");
            assert_eq!(seen.string_value, Some(n.to_string()), "{guarantee}");
        }
        drop(updates);
        assert!(n > 8, "{guarantee}: {n} values");
        stage.worker.shutdown(Duration::from_secs(5)).await;
        stage.another_worker().await;
        let seen = stage.worker.state_get(&id, "k").await.expect("there");
        assert_eq!(seen.string_value, Some(n.to_string()), "{guarantee}");
        stage.end().await;
    }
}

/// One who stands still beyond its lease does not know that another worker has taken its place and counts on. It
/// would write what it has in memory behind that; whether it wrote before, or begins to.
#[tokio::test]
async fn who_was_replaced_writes_nothing_old() {
    for counted_before in [0, 3] {
        let stage = Stage::new().await;
        let (input, output) = (stage.topic("in"), stage.topic("out"));
        let mut out = stage.consumer(&output).await;
        let code = "process() { state incr n 1; emit \"$MSG $REPLY\"; }";
        let id = stage
            .function(
                "f",
                json!({"sh": code, "inputs": [&input], "output": &output}),
            )
            .await;
        stage.send(&input, numbers(0..counted_before)).await;
        receive(&mut out, counted_before).await;
        // The successor counts to 100.
        let topic = format!("persistent://{}-state-changelog", id.fqfn());
        let successor = stage.client.producer(&topic);
        let successor = successor.access_mode(ProducerAccessMode::ExclusiveWithFencing);
        let successor = successor.build().await.expect("the topic is taken");
        let count = Message::new(100_i64.to_be_bytes().to_vec()).key("n");
        let count = count.property("geminga.counter", "1");
        let count = count.property("geminga.version", "100");
        successor.send(count).await.expect("counted");
        stage.send(&input, ["more"]).await;
        let wait = async {
            while count_of(&stage, &id, "n").await != Some(101) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let counted = tokio::time::timeout(PATIENCE, wait).await;
        let count = count_of(&stage, &id, "n").await;
        assert!(counted.is_ok(), "{counted_before}: {count:?}");
        // And the topic says so too.
        let stopped = stage.worker.stop_instances(&id, None).await;
        stopped.expect("stopped");
        let started = stage.worker.start_instances(&id, None).await;
        started.expect("started");
        assert_eq!(count_of(&stage, &id, "n").await, Some(101));
        stage.end().await;
    }
}
