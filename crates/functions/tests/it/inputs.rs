//! Inputs by name and by patterns together: each topic is read once, whatever the guarantee and the subscription.

use std::time::Duration;

use geminga_functions::{Answered, Asked, WorkerError};
use geminga_model::TopicName;
use serde_json::{Value, json};

use crate::stage::{PATIENCE, Stage, nothing_more, receive, sorted, texts};

/// A topic that is there before anybody reads it.
async fn made(stage: &Stage, topic: &str) {
    let producer = stage.client.producer(topic).build().await.expect("made");
    producer.close().await.expect("closed");
}

/// Consumers of a topic, by subscription.
async fn consumers(stage: &Stage, topic: &str) -> Vec<(String, usize)> {
    let topic: TopicName = topic.parse().expect("a topic");
    let stats = stage.broker().topic_stats(&topic).await.expect("there");
    let of = stats.subscriptions.iter();
    of.map(|(name, of)| (name.clone(), of.consumers.len()))
        .collect()
}

fn merged(fields: &Value, more: Value) -> Value {
    let mut all = fields.clone();
    for (name, value) in more.as_object().expect("fields") {
        all[name] = value.clone();
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_and_patterns_are_read_together_and_each_topic_once() {
    let stage = Stage::new().await;
    let echo = "process() { emit \"$MSG\"; }";
    for (number, (code, fields)) in [
        (echo, json!({})),
        (echo, json!({"retainOrdering": true})),
        (echo, json!({"retainKeyOrdering": true})),
        (echo, json!({"processingGuarantees": "ATMOST_ONCE"})),
        (echo, json!({"processingGuarantees": "EFFECTIVELY_ONCE"})),
        (
            "process() { emit \"$MSG\"; ack; }",
            json!({"processingGuarantees": "MANUAL"}),
        ),
        (echo, json!({"parallelism": 2})),
        (echo, json!({"parallelism": 2, "retainOrdering": true})),
    ]
    .into_iter()
    .enumerate()
    {
        let topic = |name: &str| stage.topic(&format!("{name}{number}"));
        // One topic is named and matched, one is named alone, one matches both patterns.
        let (both, alone) = (topic("a-both"), topic("named"));
        let (matched, twice) = (topic("a-matched"), topic("a-b"));
        for each in [&both, &alone, &matched, &twice] {
            made(&stage, each).await;
        }
        let of = |end: &str| format!("persistent://public/default/{end}{number}-.*");
        let given = json!({
            "sh": code, "inputs": [&both, &alone], "topicsPattern": of("a-.*"),
            "inputSpecs": {of("a-b"): {"regexPattern": true}},
            "output": topic("out"), "subscriptionPosition": "Earliest",
        });
        let id = stage
            .function(&format!("f{number}"), merged(&fields, given))
            .await;
        let mut outputs = stage.consumer(&topic("out")).await;
        for (each, name) in [
            (&both, "both"),
            (&alone, "alone"),
            (&matched, "matched"),
            (&twice, "twice"),
        ] {
            stage
                .send(each, (0..5).map(|n| format!("{name} {n}")))
                .await;
        }
        let mut got = texts(&receive(&mut outputs, 20).await);
        got.sort();
        got.dedup();
        assert_eq!(got.len(), 20, "{fields}");
        // One that comes later joins, and at once: the interval of looking is a minute.
        stage.send(&topic("a-late"), ["late"]).await;
        assert_eq!(texts(&receive(&mut outputs, 1).await), ["late"], "{fields}");
        nothing_more(&mut outputs).await;
        let instances = fields["parallelism"].as_u64().unwrap_or(1) as usize;
        for each in [&both, &alone, &matched, &twice] {
            assert_eq!(
                consumers(&stage, each).await,
                [(id.fqfn(), instances)],
                "{fields}: {each}"
            );
        }
        let (topics, _) = stage
            .worker
            .subscription(&id)
            .await
            .expect("known")
            .expect("topics");
        assert_eq!(topics.len(), 5, "{topics:?}");
        stage.worker.delete(&id).await.expect("deleted");
        for each in [&both, &alone, &matched, &twice] {
            assert!(consumers(&stage, each).await.is_empty(), "{fields}: {each}");
        }
    }
    stage.end().await;
}

/// A pattern means neither the outputs nor the letters of the function itself, whose names may match.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_function_writes_is_not_its_input_by_a_pattern() {
    let stage = Stage::new().await;
    let code = "process() { [[ $MSG != bad* ]] || return 1; log info x; emit \"<$MSG>\"; }";
    for (round, dead) in [("a", None), ("b", Some(stage.topic("b-dead")))] {
        let topic = |name: &str| stage.topic(&format!("{round}-{name}"));
        let (named, matched) = (stage.topic(&format!("named-{round}")), topic("matched"));
        let output = topic("out");
        made(&stage, &matched).await;
        let mut given = json!({
            "sh": code, "inputs": [&named], "topicsPattern": format!("persistent://public/default/{round}-.*"),
            "output": &output, "logTopic": topic("log"), "subscriptionPosition": "Earliest",
            "maxMessageRetries": 1, "retryBackoffMs": 10,
        });
        if let Some(dead) = &dead {
            given["deadLetterTopic"] = json!(dead);
        }
        let id = stage.function(round, given).await;
        let ending = id.fqfn().replace('/', "-");
        let letters = |of: &str| dead.clone().unwrap_or(format!("{of}-{ending}-DLQ"));
        let mut outputs = stage.consumer(&output).await;
        for topic in [&named, &matched] {
            stage
                .send(topic, [format!("bad {topic}"), topic.clone()])
                .await;
        }
        let mut wanted = [format!("<{named}>"), format!("<{matched}>")];
        wanted.sort();
        let mut got = texts(&receive(&mut outputs, 2).await);
        got.sort();
        assert_eq!(got, wanted);
        let mut came = Vec::new();
        for topic in [letters(&named), letters(&matched)] {
            if dead.is_some() && !came.is_empty() {
                continue;
            }
            let mut consumer = stage.consumer(&topic).await;
            let count = 1 + usize::from(dead.is_some());
            let some = receive(&mut consumer, count).await;
            for letter in &some {
                assert_eq!(letter.property("geminga.attempts"), Some("2"));
                let origin = letter.property("REAL_TOPIC").expect("its origin");
                assert_eq!(letter.payload, format!("bad {origin}"));
            }
            came.extend(texts(&some));
            nothing_more(&mut consumer).await;
        }
        let mut wanted = vec![format!("bad {named}"), format!("bad {matched}")];
        wanted.sort();
        came.sort();
        assert_eq!(came, wanted);
        nothing_more(&mut outputs).await;
        let stats = stage.worker.stats(&id).expect("stats");
        assert_eq!(stats.total.received_total, 4, "its own was not read");
        stage.worker.delete(&id).await.expect("deleted");
    }
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trigger_names_an_input_or_a_topic_that_matches() {
    let stage = Stage::new().await;
    let (named, matched) = (stage.topic("named"), stage.topic("in-matched"));
    made(&stage, &matched).await;
    let id = stage
        .function(
            "f",
            json!({
                "sh": "process() { msg_topic; emit \"$MSG of $REPLY\"; }", "inputs": [&named],
                "topicsPattern": "persistent://public/default/in-.*", "output": stage.topic("in-out"),
            }),
        )
        .await;
    let ask = |topic: Option<&String>| {
        let asked = Asked {
            topic: topic.cloned(),
            payload: "x".into(),
            limit: PATIENCE,
            ..Asked::default()
        };
        stage.worker.trigger(&id, asked)
    };
    for topic in [&named, &matched] {
        let answered = ask(Some(topic)).await.expect("answered");
        assert!(
            matches!(&answered, Answered::Output { payload, .. } if *payload == format!("x of {topic}")),
            "{answered:?}"
        );
    }
    for topic in [
        None,
        Some(stage.topic("elsewhere")),
        Some(stage.topic("in-out")),
    ] {
        let refused = ask(topic.as_ref()).await;
        assert!(
            matches!(refused, Err(WorkerError::Invalid(_))),
            "{topic:?}: {refused:?}"
        );
    }
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_takes_names_and_patterns_too() {
    let stage = Stage::new().await;
    let out = stage.directory.path().join("out.txt");
    for (round, order) in [("a", json!({})), ("b", json!({"retainOrdering": true}))] {
        let topic = |name: &str| stage.topic(&format!("{round}-{name}"));
        let (named, matched) = (stage.topic(&format!("named-{round}")), topic("matched"));
        made(&stage, &matched).await;
        let given = json!({
            "name": "sink", "sinkType": "file", "inputs": [&named], "configs": {"path": &out},
            "topicsPattern": format!("persistent://public/default/{round}-.*"), "sourceSubscriptionPosition": "Earliest",
            "inputSpecs": {&matched: {"receiverQueueSize": 5}},
        });
        let id = stage.sink(merged(&order, given)).await;
        stage.send(&named, ["named"]).await;
        stage.send(&matched, ["matched"]).await;
        stage.send(&topic("late"), ["late"]).await;
        let lines = || {
            let text = std::fs::read_to_string(&out).unwrap_or_default();
            sorted(text.lines().map(str::to_owned).collect())
        };
        stage.until("three lines", |_| lines().len() >= 3).await;
        stage.drained().await;
        assert_eq!(lines(), ["late", "named", "matched"]);
        stage.worker.delete(&id).await.expect("deleted");
        std::fs::remove_file(&out).expect("removed");
    }
    stage.end().await;
}

/// What a spec says of its schema counts for every topic that the pattern means, and for no other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_are_read_by_the_schema_of_their_input() {
    let stage = Stage::new().await;
    let (named, matched) = (stage.topic("in-named"), stage.topic("in-matched"));
    made(&stage, &matched).await;
    let code = "def process(input):\n    return type(input).__name__\n";
    let output = stage.topic("out");
    let id = stage
        .function(
            "f",
            json!({
                "py": code, "output": &output, "subscriptionPosition": "Earliest", "retainOrdering": true,
                "inputSpecs": {
                    &named: {"schemaType": "string"},
                    "persistent://public/default/in-.*": {"schemaType": "json", "regexPattern": true,
                        "schemaProperties": {"schema": r#"{"type":"record","name":"R","fields":[]}"#}},
                },
            }),
        )
        .await;
    let mut outputs = stage.consumer(&output).await;
    // One with messages, or a producer, that have no schema would refuse a reader that has, as in Pulsar.
    let late = stage.topic("in-late");
    made(&stage, &late).await;
    let joins = async {
        while consumers(&stage, &late).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let joined = tokio::time::timeout(Duration::from_secs(20), joins).await;
    assert!(joined.is_ok(), "{:?}", stage.worker.status(&id));
    for (topic, wanted) in [(&named, "str"), (&matched, "dict"), (&late, "dict")] {
        stage.send(topic, ["{\"a\": 1}"]).await;
        let got = tokio::time::timeout(Duration::from_secs(20), receive(&mut outputs, 1)).await;
        let got = got.unwrap_or_else(|_| panic!("{topic}: {:?}", stage.worker.status(&id)));
        assert_eq!(texts(&got), [wanted], "{topic}");
    }
    stage.end().await;
}
