//! An effectively-once function in the face of what is no crash of its own: a predecessor's open
//! transaction, outputs that can not be written, instances beside it.

use std::time::Duration;

use geminga_broker::BrokerConfig;
use geminga_client::{Message, ReceivedMessage};
use serde_json::json;

use crate::stage::{Stage, nothing_more, numbers, receive, texts};

/// One that died left a transaction that would stand for an hour.
#[tokio::test]
async fn a_predecessors_open_transaction_is_aborted() {
    let stage = Stage::new().await;
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let mut consumer = stage.consumer(&output).await;
    let name = stage.topic("f");
    let state = format!("{name}-state-changelog");
    let txn = stage.client.transaction(Duration::from_secs(3600)).await;
    let txn = txn.expect("begun");
    let dead = stage.client.producer(&state).build().await.expect("state");
    let id = txn.id();
    let announced =
        Message::new("transaction").property("geminga.txn", format!("{}:{}", id.most, id.least));
    dead.send(announced).await.expect("sent");
    let value = Message::new("never").key("kept");
    dead.enqueue_in(&txn, value)
        .await
        .expect("taken")
        .await
        .expect("sent");
    let outputs = stage
        .client
        .producer(&output)
        .build()
        .await
        .expect("output");
    let lost = outputs.enqueue_in(&txn, Message::new("never")).await;
    lost.expect("taken").await.expect("sent");
    let code = r#"process() { state get kept; emit "$MSG $REPLY"; }"#;
    let fields = json!({"sh": code, "inputs": [&input], "output": &output,
        "processingGuarantees": "EFFECTIVELY_ONCE"});
    stage.function("f", fields).await;
    stage.send(&input, ["a"]).await;
    assert_eq!(texts(&receive(&mut consumer, 1).await), ["a "]);
    nothing_more(&mut consumer).await;
    assert!(txn.commit().await.is_err(), "it was aborted");
    stage.end().await;
}

/// The second of its three outputs is larger than the broker takes: it becomes a dead letter with
/// nothing written of it, neither outputs nor state, and those before and after it see none of it.
#[tokio::test]
async fn a_message_with_an_output_that_is_too_large_is_given_up_whole() {
    let stage = Stage::with_messages_of(100_000).await;
    for (round, outputs) in [1, 3].into_iter().enumerate() {
        let topic = |name: &str| stage.topic(&format!("{name}-{round}"));
        let (input, output) = (topic("in"), topic("out"));
        let mut out = stage.consumer(&output).await;
        let code = format!(
            r#"from pulsar import Function

class Count(Function):
    def process(self, word, context):
        context.incr_counter("n", 1)
        n = context.get_counter("n")
        if word == "large":
            for at in range({outputs}):
                context.publish("{output}", b"x" if at != {outputs} // 2 else bytes(__import__("os").urandom(200_000)))
            return None
        return "%s %d" % (word, n)
"#
        );
        let fields = json!({"py": code, "className": format!("f{round}.Count"), "inputs": [&input], "output": &output,
            "processingGuarantees": "EFFECTIVELY_ONCE"});
        let id = stage.function(&format!("f{round}"), fields).await;
        let dead = format!("{input}-{}-DLQ", id.fqfn().replace('/', "-"));
        let mut letters = stage.consumer(&dead).await;
        stage.send(&input, ["a", "b", "large", "c", "d"]).await;
        let got = texts(&receive(&mut out, 4).await);
        assert_eq!(got, ["a 1", "b 2", "c 3", "d 4"], "{outputs} outputs");
        let letter = receive(&mut letters, 1).await.remove(0);
        assert_eq!(&letter.payload[..], b"large");
        let reason = letter.property("geminga.reason").expect("a reason");
        assert!(reason.contains("over the broker's limit"), "{reason}");
        nothing_more(&mut out).await;
        stage.worker.delete(&id).await.expect("deleted");
        drop((out, letters));
    }
    stage.end().await;
}

/// Said at creation, and by the status of the one that breaks.
#[tokio::test]
async fn instances_beside_it_share_no_state() {
    let stage = Stage::new().await;
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let fields = json!({"sh": "process() { state incr n; }", "inputs": [&input], "output": &output,
        "parallelism": 2, "processingGuarantees": "EFFECTIVELY_ONCE"});
    let id = stage.function("f", fields).await;
    let status = stage.worker.status(&id).expect("there");
    let said = status.warnings.join(" ");
    assert!(said.contains("`parallelism: 2`"), "{said}");
    stage.send(&input, ["a"]).await;
    stage
        .until("degraded", |worker| {
            let status = worker.status(&id).expect("there");
            let said = format!("{:?}", status.instances);
            said.contains("needs `parallelism: 1`")
        })
        .await;
    stage.end().await;
}

/// Without transactions a broker drops what it has by numbers, and of a batch it looks at the first. After a restart the
/// outputs of the same inputs are in other batches: none of them may be dropped with what is there already.
#[tokio::test]
async fn outputs_by_numbers_are_all_there_after_a_restart() {
    let config = BrokerConfig {
        transaction_coordinator_enabled: false,
        broker_deduplication_enabled: true,
        ..BrokerConfig::default()
    };
    let stage = Stage::with(10_000, config, None).await;
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let mut out = stage.consumer(&output).await;
    let fields = json!({"sh": "process() { emit \"$MSG\"; }", "inputs": [&input], "output": &output,
        "subscriptionPosition": "Earliest", "processingGuarantees": "EFFECTIVELY_ONCE"});
    stage.send(&input, ["1", "2", "3"]).await;
    let id = stage.function("f", fields.clone()).await;
    assert_eq!(texts(&receive(&mut out, 3).await), ["1", "2", "3"]);
    // Its acknowledgements are lost with its subscription.
    stage.worker.delete(&id).await.expect("deleted");
    stage.send(&input, ["4", "5", "6", "7"]).await;
    let id = stage.function("f", fields).await;
    assert_eq!(texts(&receive(&mut out, 4).await), ["4", "5", "6", "7"]);
    nothing_more(&mut out).await;
    let status = stage.worker.status(&id).expect("status");
    let told = status.instances[0].status.effectively_once.clone();
    assert!(told.is_some_and(|told| told.starts_with("sequence ids")));
    stage.end().await;
}

/// A broker without transactions knows outputs again by their numbers, as Pulsar's does, which another worker
/// makes the same; and status says what that leaves open.
#[tokio::test]
async fn without_transactions_outputs_are_known_again_by_their_numbers() {
    let mut stage = Stage::on(BrokerConfig {
        transaction_coordinator_enabled: false,
        broker_deduplication_enabled: true,
        ..BrokerConfig::default()
    })
    .await;
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let mut consumer = stage.consumer(&output).await;
    let code = "process() { emit \"$MSG\"; }";
    let fields = json!({"sh": code, "inputs": [&input], "output": &output,
        "processingGuarantees": "EFFECTIVELY_ONCE", "subscriptionPosition": "Earliest"});
    let id = stage.function("f", fields).await;
    stage.send(&input, numbers(0..100)).await;
    let mut got = receive(&mut consumer, 100).await;
    let said = |stage: &Stage| {
        let status = stage.worker.status(&id).expect("status");
        status.instances[0].status.effectively_once.clone()
    };
    for round in 1..=2 {
        let says = said(&stage).expect("said");
        assert!(
            says.starts_with("sequence ids, since the broker has no transactions"),
            "{says}"
        );
        assert!(says.contains("state may see a message again"), "{says}");
        stage.worker.shutdown(Duration::from_secs(5)).await;
        // As if it had died with nothing acknowledged: the next begins with the first message.
        let subscription = stage.client.consumer(&input).subscription(id.fqfn());
        let reader = subscription.build().await.expect("a consumer");
        reader.handle().unsubscribe().await.expect("unsubscribed");
        stage.another_worker().await;
        stage
            .until("all came again", |w| {
                let progress = &w.progress()[0];
                progress.processed == round * 100 && progress.in_flight == 0
            })
            .await;
        let first = round as usize * 100;
        stage.send(&input, numbers(first..first + 100)).await;
        got.extend(receive(&mut consumer, 100).await);
        nothing_more(&mut consumer).await;
    }
    assert_eq!(texts(&got), numbers(0..300));
    let mut last: Option<&ReceivedMessage> = None;
    for message in &got {
        let name = format!("{}-{input}", id.fqfn());
        assert_eq!(*message.producer_name, *name);
        let grows = last.is_none_or(|last| last.sequence_id < message.sequence_id);
        assert!(grows, "{last:?} {message:?}");
        last = Some(message);
    }
    stage.end().await;
}
