//! What happens to messages: outputs, order, guarantees, retries, state, logs.

use std::time::Duration;

use geminga_client::{Batching, Message};
use serde_json::json;

use crate::stage::{Stage, numbers, receive, sorted, texts};

#[tokio::test]
async fn outputs_carry_key_properties_and_their_origin() {
    for (field, code) in [
        ("sh", "process() { emit -p own=1 \"$MSG!\"; }"),
        (
            "py",
            "def process(input, context):\n    context.publish(context.get_output_topic(), input + '!', properties={'own': '1'})",
        ),
    ] {
        let stage = Stage::new().await;
        let (input, output) = (stage.topic("in"), stage.topic("out"));
        let mut consumer = stage.consumer(&output).await;
        stage
            .function(
                "f",
                json!({field: code, "inputs": [&input], "output": &output}),
            )
            .await;
        let producer = stage
            .client
            .producer(&input)
            .build()
            .await
            .expect("producer");
        let message = Message::new("hello")
            .key("k")
            .property("a", "b")
            .event_time(77);
        producer.send(message).await.expect("sent");
        let got = receive(&mut consumer, 1).await.remove(0);
        assert_eq!(&got.payload[..], b"hello!");
        assert_eq!((got.key.as_deref(), got.event_time), (Some("k"), Some(77)));
        assert_eq!(
            (got.property("a"), got.property("own")),
            (Some("b"), Some("1"))
        );
        assert_eq!(got.property("__pfn_input_topic__"), Some(&*input));
        assert!(got.property("__pfn_input_msg_id__").is_some());
        stage.end().await;
    }
}

#[tokio::test]
async fn order_is_kept_by_every_runtime() {
    for fields in [
        json!({"sh": "process() { emit \"$MSG\"; }", "retainOrdering": true}),
        json!({"py": "def process(input): return input"}),
        json!({"sh": "cat", "customRuntimeOptions": r#"{"mode":"spawn","concurrency":4}"#}),
    ] {
        let stage = Stage::new().await;
        let (input, output) = (stage.topic("in"), stage.topic("out"));
        let mut consumer = stage.consumer(&output).await;
        let mut fields = fields;
        fields["inputs"] = json!([&input]);
        fields["output"] = json!(&output);
        stage.function("f", fields.clone()).await;
        let count = if fields.get("customRuntimeOptions").is_some() {
            60
        } else {
            3000
        };
        stage.send(&input, numbers(0..count)).await;
        assert_eq!(
            texts(&receive(&mut consumer, count).await),
            numbers(0..count),
            "{fields}"
        );
        stage.end().await;
    }
}

#[tokio::test]
async fn parallel_instances_share_the_work_and_keep_the_order_of_keys() {
    let stage = Stage::new().await;
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let mut consumer = stage.consumer(&output).await;
    let id = stage
        .function(
            "f",
            json!({"sh": "process() { emit \"$GMG_INSTANCE $MSG\"; }", "inputs": [&input],
                "output": &output, "parallelism": 3, "retainKeyOrdering": true}),
        )
        .await;
    let producer = stage.client.producer(&input).batching(Batching::off());
    let producer = producer.build().await.expect("producer");
    for number in 0..600 {
        let message = Message::new(format!("{number}")).key(format!("k{}", number % 20));
        producer.post(message).await.expect("taken");
    }
    producer.flush().await.expect("sent");
    let got = receive(&mut consumer, 600).await;
    let mut instances = std::collections::BTreeSet::new();
    for key in 0..20 {
        let of_key: Vec<usize> = got
            .iter()
            .filter(|m| m.key.as_deref() == Some(&format!("k{key}")))
            .map(|m| {
                let text = String::from_utf8_lossy(&m.payload).into_owned();
                let (instance, number) = text.split_once(' ').expect("two words");
                instances.insert(instance.to_owned());
                number.parse().expect("a number")
            })
            .collect();
        assert_eq!(of_key.len(), 30);
        assert!(of_key.is_sorted(), "{of_key:?}");
    }
    assert!(instances.len() > 1, "{instances:?}");
    assert_eq!(stage.worker.status(&id).expect("status").num_running, 3);
    stage.end().await;
}

#[tokio::test]
async fn failures_are_retried_with_pauses_then_given_up_with_the_reason() {
    let stage = Stage::new().await;
    let (input, output, letters) = (stage.topic("in"), stage.topic("out"), stage.topic("dead"));
    let mut consumer = stage.consumer(&output).await;
    let mut dead = stage.consumer(&letters).await;
    let code = "process() {
  case $MSG in
    bad) echo 'it is broken' >&2; return 7 ;;
    never) return 65 ;;
  esac
  state incr tries; state get tries
  [[ $MSG != later || $(msg_header redelivery) == 1 ]] || return 75
  emit \"$MSG\"
}";
    stage
        .function(
            "f",
            json!({"sh": code, "inputs": [&input], "output": &output, "maxMessageRetries": 2,
                "deadLetterTopic": &letters, "retryBackoffMs": 20}),
        )
        .await;
    stage
        .send(&input, ["bad", "a", "later", "never", "b"])
        .await;
    assert_eq!(
        sorted(texts(&receive(&mut consumer, 3).await)),
        ["a", "b", "later"]
    );
    let got = receive(&mut dead, 2).await;
    let find = |text: &str| {
        got.iter()
            .find(|m| &m.payload[..] == text.as_bytes())
            .expect(text)
    };
    let bad = find("bad");
    assert_eq!(bad.property("geminga.attempts"), Some("3"));
    assert_eq!(bad.property("geminga.exit-code"), Some("7"));
    assert_eq!(bad.property("geminga.kind"), Some("user"));
    assert_eq!(bad.property("geminga.stderr"), Some("it is broken"));
    assert_eq!(bad.property("geminga.topic"), Some(&*input));
    assert!(
        bad.property("geminga.reason")
            .is_some_and(|r| r.contains("status 7"))
    );
    assert_eq!(find("never").property("geminga.attempts"), Some("1"));
    stage.drained().await;
    let progress = stage.worker.progress().remove(0);
    assert_eq!((progress.dead_lettered, progress.retried), (2, 3));
    stage.end().await;
}

#[tokio::test]
async fn in_order_a_failing_message_keeps_those_behind_it() {
    let stage = Stage::new().await;
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let mut consumer = stage.consumer(&output).await;
    let code = "process() { [[ $MSG != 3 || $(msg_header redelivery) == 2 ]] || return 1; emit \"$MSG\"; }";
    stage
        .function(
            "f",
            json!({"sh": code, "inputs": [&input], "output": &output, "retainOrdering": true,
                "retryBackoffMs": 20}),
        )
        .await;
    stage.send(&input, numbers(0..10)).await;
    assert_eq!(texts(&receive(&mut consumer, 10).await), numbers(0..10));
    stage.end().await;
}

#[tokio::test]
async fn state_survives_the_worker() {
    let mut stage = Stage::new().await;
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let mut consumer = stage.consumer(&output).await;
    let code = "
from pulsar import Function
class Count(Function):
    def process(self, input, context):
        context.incr_counter('n', 1)
        context.put_state('last', input)
        return 'n=%d' % context.get_counter('n')
";
    let id = stage
        .function(
            "count",
            json!({"py": code, "inputs": [&input], "output": &output, "className": "count.Count"}),
        )
        .await;
    stage.send(&input, ["a", "b", "c"]).await;
    assert_eq!(
        texts(&receive(&mut consumer, 3).await),
        ["n=1", "n=2", "n=3"]
    );
    stage.drained().await;
    stage.worker.shutdown(Duration::from_secs(5)).await;
    stage.another_worker().await;
    stage.send(&input, ["d"]).await;
    assert_eq!(texts(&receive(&mut consumer, 1).await), ["n=4"]);
    let counter = stage.worker.state_get(&id, "n").await.expect("there");
    assert_eq!(
        (counter.number_value, counter.string_value),
        (Some(4), None)
    );
    let last = stage.worker.state_get(&id, "last").await.expect("there");
    assert_eq!(last.string_value.as_deref(), Some("d"));
    assert!(stage.worker.state_get(&id, "none").await.is_err());
    let put = geminga_functions::FunctionState {
        key: "n".into(),
        number_value: Some(10),
        ..Default::default()
    };
    stage.worker.state_put(&id, put).await.expect("put");
    stage.send(&input, ["e"]).await;
    assert_eq!(texts(&receive(&mut consumer, 1).await), ["n=11"]);
    stage.end().await;
}

#[tokio::test]
async fn logs_reach_the_log_topic_with_their_level() {
    let stage = Stage::new().await;
    let (input, logs) = (stage.topic("in"), stage.topic("logs"));
    let mut consumer = stage.consumer(&logs).await;
    let code = "process() { echo 'WARN: from stderr' >&2; log ERROR from the library; }";
    let id = stage
        .function(
            "f",
            json!({"sh": code, "inputs": [&input], "logTopic": &logs}),
        )
        .await;
    stage.send(&input, ["x"]).await;
    let got = receive(&mut consumer, 2).await;
    let mut lines: Vec<(String, Option<&str>)> = got
        .iter()
        .map(|m| {
            (
                String::from_utf8_lossy(&m.payload).into_owned(),
                m.property("loglevel"),
            )
        })
        .collect();
    lines.sort();
    assert_eq!(
        lines,
        [
            ("from stderr".to_owned(), Some("WARN")),
            ("from the library".to_owned(), Some("ERROR"))
        ]
    );
    assert_eq!(got[0].property("fqn"), Some(&*id.fqfn()));
    assert_eq!(got[0].property("instance"), Some("0"));
    stage.end().await;
}

#[tokio::test]
async fn patterns_positions_and_names_of_subscriptions_are_honoured() {
    let stage = Stage::new().await;
    let output = stage.topic("out");
    let mut consumer = stage.consumer(&output).await;
    let (a, b) = (stage.topic("pat-a"), stage.topic("pat-b"));
    stage.send(&a, ["before"]).await;
    stage.send(&b, ["before"]).await;
    let pattern = format!("public/default/pat-.*{}", &a[a.len() - 8..]);
    stage
        .function(
            "f",
            json!({"sh": "process() { emit \"$MSG\"; }", "topicsPattern": pattern, "output": &output,
                "subscriptionPosition": "Earliest", "subName": "mine"}),
        )
        .await;
    assert_eq!(
        texts(&receive(&mut consumer, 2).await),
        ["before", "before"]
    );
    stage.send(&b, ["after"]).await;
    assert_eq!(texts(&receive(&mut consumer, 1).await), ["after"]);
    stage.end().await;
}
