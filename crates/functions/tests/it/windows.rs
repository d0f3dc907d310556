//! Windows in every language: what a function gets, what is late, what survives a restart.

use std::time::Duration;

use geminga_client::Message;
use serde_json::{Value, json};

use crate::stage::{Stage, numbers, receive, texts};

/// Joins the messages of windows of three.
async fn joined(code: Value, file: Option<(&str, &str)>) {
    let stage = Stage::new().await;
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let mut fields = json!({"inputs": [&input], "output": &output, "retainOrdering": true,
        "windowConfig": {"windowLengthCount": 3}});
    for (field, value) in code.as_object().expect("fields") {
        fields[field] = value.clone();
    }
    if let Some((name, text)) = file {
        fields["go"] = json!(stage.file(name, text));
    }
    let mut out = stage.consumer(&output).await;
    let id = stage.function("f", fields).await;
    stage.send(&input, numbers(0..7)).await;
    assert_eq!(texts(&receive(&mut out, 2).await), ["0+1+2", "3+4+5"]);
    // The seventh is held back: it comes again, with two more it is a window.
    stage
        .worker
        .restart_instances(&id, None)
        .await
        .expect("restarted");
    stage.send(&input, ["7", "8"]).await;
    assert_eq!(texts(&receive(&mut out, 1).await), ["6+7+8"]);
    stage.end().await;
}

#[tokio::test]
async fn bash_gets_a_line_a_message() {
    let code =
        r#"process() { local IFS=+ lines; mapfile -t lines <<<"$MSG"; echo "${lines[*]}"; }"#;
    joined(json!({"sh": code}), None).await;
}

#[tokio::test]
async fn python_gets_a_list() {
    let code = r#"def process(values, context):
    assert [r.get_value() for r in context.get_window()] == values
    return "+".join(str(v) for v in values)
"#;
    joined(json!({"py": code}), None).await;
}

#[tokio::test]
async fn a_tool_gets_lines_on_its_input() {
    let code = r#"#!/usr/bin/env bash
paste -sd+ -
"#;
    joined(json!({"sh": code}), None).await;
}

#[tokio::test]
async fn go_gets_a_slice() {
    let code = r#"package main

import (
	"bytes"

	"github.com/apache/pulsar/pulsar-function-go/pf"
)

func process(in [][]byte) ([]byte, error) { return bytes.Join(in, []byte("+")), nil }

func main() { pf.Start(process) }
"#;
    joined(json!({}), Some(("main.go", code))).await;
}

#[tokio::test]
async fn what_is_late_goes_to_its_topic_and_event_time_cuts_the_windows() {
    let stage = Stage::new().await;
    let (input, output, late) = (stage.topic("in"), stage.topic("out"), stage.topic("late"));
    let (mut out, mut lates) = (stage.consumer(&output).await, stage.consumer(&late).await);
    let code = "def process(values, context):\n    return '%d: %s' % (context.get_window_start(), values)\n";
    let id = stage
        .function(
            "f",
            json!({"py": code, "inputs": [&input], "output": &output, "retainOrdering": true,
                "windowConfig": {"windowLengthDurationMs": 100, "timestampExtractorClassName": "eventTime",
                    "maxLagMs": 50, "watermarkEmitIntervalMs": 10, "lateDataTopic": &late}}),
        )
        .await;
    let producer = stage
        .client
        .producer(&input)
        .build()
        .await
        .expect("producer");
    let send = async |text: &str, time: u64| {
        let message = Message::new(text.as_bytes().to_vec()).event_time(time);
        producer.send(message).await.expect("sent");
    };
    for (text, time) in [("1", 1010), ("2", 1130), ("3", 1090), ("4", 1250)] {
        send(text, time).await;
    }
    // The watermark is 1200: two windows are complete.
    let got = texts(&receive(&mut out, 2).await);
    assert_eq!(got, ["1000: [1, 3]", "1100: [2]"]);
    send("5", 1199).await;
    assert_eq!(texts(&receive(&mut lates, 1).await), ["5"]);
    let status = stage.worker.status(&id).expect("there");
    assert_eq!(status.instances[0].status.num_late, Some(1));
    stage.end().await;
}

#[tokio::test]
async fn sliding_windows_and_sessions_by_time_of_arrival() {
    let stage = Stage::new().await;
    let code = "def process(values, context):\n    return '+'.join(str(v) for v in values)\n";
    let (sliding, session) = (stage.topic("sliding"), stage.topic("session"));
    for (name, output, window) in [
        (
            "a",
            &sliding,
            json!({"windowLengthCount": 2, "slidingIntervalCount": 1}),
        ),
        ("b", &session, json!({"sessionGapMs": 400})),
    ] {
        let input = stage.topic(&format!("in-{name}"));
        let mut out = stage.consumer(output).await;
        stage
            .function(
                name,
                json!({"py": code, "inputs": [&input], "output": output, "retainOrdering": true,
                    "windowConfig": window}),
            )
            .await;
        stage.send(&input, ["1", "2", "3"]).await;
        match name {
            "a" => assert_eq!(texts(&receive(&mut out, 3).await), ["1", "1+2", "2+3"]),
            _ => assert_eq!(texts(&receive(&mut out, 1).await), ["1+2+3"]),
        }
    }
    tokio::time::timeout(Duration::from_secs(20), stage.worker.drained())
        .await
        .expect("drained");
    stage.end().await;
}

#[tokio::test]
async fn a_poisoned_window_goes_to_the_dead_letters_message_by_message() {
    let stage = Stage::new().await;
    let (input, output, dead) = (stage.topic("in"), stage.topic("out"), stage.topic("dead"));
    let (mut out, mut letters) = (stage.consumer(&output).await, stage.consumer(&dead).await);
    let code = "def process(values):\n    return str(100 // min(values))\n";
    stage
        .function(
            "f",
            json!({"py": code, "inputs": [&input], "output": &output, "retainOrdering": true,
                "maxMessageRetries": 1, "retryBackoffMs": 1, "deadLetterTopic": &dead,
                "windowConfig": {"windowLengthCount": 2}}),
        )
        .await;
    stage.send(&input, ["5", "0", "10", "20"]).await;
    assert_eq!(texts(&receive(&mut out, 1).await), ["10"]);
    let given_up = receive(&mut letters, 2).await;
    assert_eq!(texts(&given_up), ["5", "0"]);
    let reason = given_up[0].property("geminga.reason").expect("a reason");
    assert!(reason.contains("ZeroDivisionError"), "{reason}");
    assert_eq!(given_up[0].property("geminga.attempts"), Some("2"));
    stage.end().await;
}

/// No try makes its output less, and tries have no bound here.
#[tokio::test]
async fn a_window_with_too_much_output_goes_to_the_dead_letters() {
    let stage = Stage::new().await;
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let mut out = stage.consumer(&output).await;
    let code = "def process(values):\n    return 'x' * 300_000 if 0 in values else str(values)\n";
    let id = stage
        .function(
            "f",
            json!({"py": code, "inputs": [&input], "output": &output, "retainOrdering": true,
                "retryBackoffMs": 1, "windowConfig": {"windowLengthCount": 2},
                "customRuntimeOptions": "{\"maxOutputBytes\": 100000}"}),
        )
        .await;
    let dead = format!("{input}-{}-DLQ", id.fqfn().replace('/', "-"));
    let mut letters = stage.consumer(&dead).await;
    stage.send(&input, ["5", "0", "10", "20"]).await;
    assert_eq!(texts(&receive(&mut out, 1).await), ["[10, 20]"]);
    let given_up = receive(&mut letters, 2).await;
    assert_eq!(texts(&given_up), ["5", "0"]);
    for letter in &given_up {
        assert_eq!(letter.property("geminga.kind"), Some("limit"));
        assert_eq!(letter.property("geminga.attempts"), Some("3"));
    }
    stage.end().await;
}
