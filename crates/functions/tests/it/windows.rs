//! Windows in every language: what a function gets, what is late, what survives a restart.

use std::time::Duration;

use geminga_client::{Consumer, Message};
use geminga_functions::ComponentId;
use serde_json::{Value, json};

use crate::stage::{Stage, jar, nothing_more, numbers, receive, texts};

/// Joins what is in a window, in one language.
async fn joiner(stage: &Stage, language: &str) -> Value {
    match language {
        "bash" => json!({
            "sh": r#"process() { local IFS=+ lines; mapfile -t lines <<<"$MSG"; echo "${lines[*]}"; }"#
        }),
        "tool" => json!({"sh": "#!/usr/bin/env bash\npaste -sd+ -\n"}),
        "python" => json!({"py": r#"def process(values, context):
    assert [r.get_value() for r in context.get_window()] == values
    return "+".join(str(v) for v in values)
"#}),
        "go" => json!({"go": stage.file("main.go", GO)}),
        _ => json!({"jar": jar(&stage.file("Join.java", JAVA)).await, "className": language}),
    }
}

const GO: &str = r#"package main

import (
	"bytes"

	"github.com/apache/pulsar/pulsar-function-go/pf"
)

func process(in [][]byte) ([]byte, error) { return bytes.Join(in, []byte("+")), nil }

func main() { pf.Start(process) }
"#;

/// Both forms: Pulsar's own interface, which gives records and a context, and a plain function of values.
const JAVA: &str = r#"
import org.apache.pulsar.functions.api.*;
import java.util.*;

public class Join implements WindowFunction<String, String> {
    public String process(Collection<Record<String>> in, WindowContext context) {
        StringJoiner all = new StringJoiner("+");
        for (Record<String> one : in) {
            if (!context.getInputTopics().contains(one.getTopicName().get())) throw new IllegalStateException(one.toString());
            all.add(one.getValue());
        }
        context.incrCounter("windows", 1);
        return all.toString();
    }
}

class Plain implements java.util.function.Function<Collection<String>, String> {
    public String apply(Collection<String> in) { return String.join("+", in); }
}
"#;

/// One function with windows.
async fn windowed(
    stage: &Stage,
    code: &Value,
    name: &str,
    window: Value,
) -> (ComponentId, String, Consumer) {
    let (input, output) = (
        stage.topic(&format!("in-{name}")),
        stage.topic(&format!("out-{name}")),
    );
    let mut fields = json!({"inputs": [&input], "output": &output, "retainOrdering": true, "windowConfig": window});
    for (field, value) in code.as_object().expect("fields") {
        fields[field] = value.clone();
    }
    let out = stage.consumer(&output).await;
    let id = stage.function(name, fields).await;
    (id, input, out)
}

/// What windows answer until they have had so many messages, each as often as it is in one.
async fn until_had(out: &mut Consumer, count: usize) -> Vec<Vec<String>> {
    let mut windows: Vec<Vec<String>> = Vec::new();
    while windows.iter().map(Vec::len).sum::<usize>() < count {
        let one = texts(&receive(out, 1).await).remove(0);
        windows.push(one.split('+').map(str::to_owned).collect());
    }
    windows
}

/// Every shape of windows, by the messages' number, their arrival and their own time.
async fn every_shape(language: &str) {
    let stage = Stage::new().await;
    let code = joiner(&stage, language).await;

    let count = json!({"windowLengthCount": 3});
    let (id, input, mut out) = windowed(&stage, &code, "count", count).await;
    stage.send(&input, numbers(0..7)).await;
    assert_eq!(texts(&receive(&mut out, 2).await), ["0+1+2", "3+4+5"]);
    // The seventh is held back: it comes again, with two more it is a window.
    let restarting = stage.worker.restart_instances(&id, None).await;
    restarting.expect("restarted");
    stage.send(&input, ["7", "8"]).await;
    assert_eq!(texts(&receive(&mut out, 1).await), ["6+7+8"]);
    if language == "Join" {
        let counted = stage.worker.state_get(&id, "windows").await;
        assert_eq!(counted.expect("counted").number_value, Some(3));
    }

    let sliding = json!({"windowLengthCount": 2, "slidingIntervalCount": 1});
    let (_, input, mut out) = windowed(&stage, &code, "sliding", sliding).await;
    stage.send(&input, ["1", "2", "3"]).await;
    assert_eq!(texts(&receive(&mut out, 3).await), ["1", "1+2", "2+3"]);

    let session = json!({"sessionGapMs": 400});
    let (_, input, mut out) = windowed(&stage, &code, "session", session).await;
    stage.send(&input, ["1", "2", "3"]).await;
    assert_eq!(texts(&receive(&mut out, 1).await), ["1+2+3"]);
    stage.send(&input, ["4"]).await;
    assert_eq!(texts(&receive(&mut out, 1).await), ["4"]);

    // Each is in one window, in the order in which they came; where a window begins is the clock's matter.
    let tumbling = json!({"windowLengthDurationMs": 300});
    let (_, input, mut out) = windowed(&stage, &code, "tumbling", tumbling).await;
    stage.send(&input, ["1", "2", "3"]).await;
    assert_eq!(until_had(&mut out, 3).await.concat(), ["1", "2", "3"]);
    stage.send(&input, ["4"]).await;
    assert_eq!(until_had(&mut out, 1).await, [["4"]]);

    // Each is in as many windows as have a part of its time.
    let overlapping = json!({"windowLengthDurationMs": 600, "slidingIntervalDurationMs": 200});
    let (_, input, mut out) = windowed(&stage, &code, "overlapping", overlapping).await;
    stage.send(&input, ["1", "2"]).await;
    let windows = until_had(&mut out, 6).await;
    assert!(
        windows.iter().all(|window| window.is_sorted()),
        "{windows:?}"
    );
    let often = |text: &str| windows.iter().flatten().filter(|one| *one == text).count();
    assert_eq!([often("1"), often("2")], [3, 3], "{windows:?}");
    nothing_more(&mut out).await;

    let late = stage.topic("late");
    let mut lates = stage.consumer(&late).await;
    let own = json!({"windowLengthDurationMs": 200, "slidingIntervalDurationMs": 100, "maxLagMs": 0,
        "timestampExtractorClassName": "eventTime", "watermarkEmitIntervalMs": 10, "lateDataTopic": &late});
    let (id, input, mut out) = windowed(&stage, &code, "own", own).await;
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
    for (text, time) in [("1", 1010), ("2", 1110), ("3", 1210), ("4", 1500)] {
        send(text, time).await;
    }
    assert_eq!(texts(&receive(&mut out, 4).await), ["1", "1+2", "2+3", "3"]);
    send("5", 1050).await;
    assert_eq!(texts(&receive(&mut lates, 1).await), ["5"]);
    let status = stage.worker.status(&id).expect("there");
    assert_eq!(status.instances[0].status.num_late, Some(1));
    stage.end().await;
}

#[tokio::test]
async fn bash_gets_a_line_a_message() {
    Box::pin(every_shape("bash")).await;
}

#[tokio::test]
async fn python_gets_a_list() {
    Box::pin(every_shape("python")).await;
}

#[tokio::test]
async fn a_tool_gets_lines_on_its_input() {
    Box::pin(every_shape("tool")).await;
}

#[tokio::test]
async fn go_gets_a_slice() {
    Box::pin(every_shape("go")).await;
}

#[tokio::test]
async fn java_gets_records_and_a_context() {
    Box::pin(every_shape("Join")).await;
}

#[tokio::test]
async fn java_gets_a_collection() {
    Box::pin(every_shape("Plain")).await;
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
