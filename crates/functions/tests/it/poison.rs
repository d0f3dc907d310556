//! A message that no try can process, in every runtime and kind of subscription: the others pass, and it
//! becomes a dead letter that says why.

use std::collections::BTreeSet;

use geminga_broker::Policies;
use geminga_client::{Compression, Message};
use geminga_model::TopicName;
use serde_json::{Value, json};

use crate::powers::gives_up_a_poison_alone;
use crate::stage::{Stage, jar, nothing_more, receive, texts};

async fn poisoned(code: Value, says_on_stderr: bool) {
    let stage = Stage::new().await;
    let mut code = code;
    if let Some(text) = code["go"].as_str() {
        code["go"] = json!(stage.file("main.go", text));
    }
    if let Some(text) = code["jar"].as_str() {
        code["jar"] = json!(jar(&stage.file("Poison.java", text)).await);
    }
    gives_up_a_poison_alone(stage, code, says_on_stderr).await;
}

#[tokio::test]
async fn of_bash() {
    let code = r#"process() {
  [[ $MSG != bad ]] || { echo "no luck" >&2; return 3; }
  echo "$MSG"
}"#;
    poisoned(json!({"sh": code}), true).await;
}

#[tokio::test]
async fn of_a_script() {
    let code = r#"read -r MSG
[[ $MSG != bad ]] || { echo "no luck" >&2; exit 3; }
echo "$MSG"
"#;
    poisoned(
        json!({"sh": code, "customRuntimeOptions": "{\"mode\":\"spawn\"}"}),
        true,
    )
    .await;
}

/// A process that is sent one line after the other, and dies of the message.
#[tokio::test]
async fn of_a_tool_that_dies() {
    let code = r#"#!/usr/bin/env bash
while read -r MSG; do
  [[ $MSG != bad ]] || { echo "no luck" >&2; exit 3; }
  echo "$MSG"
done
"#;
    for mode in ["stream", "batch"] {
        poisoned(
            json!({"sh": code, "customRuntimeOptions": json!({"mode": mode}).to_string()}),
            true,
        )
        .await;
    }
}

/// One that answers by the message's number.
#[tokio::test]
async fn of_a_tool_that_says_it_in_json() {
    let code = r#"#!/usr/bin/env python3
import json, sys

for line in sys.stdin:
    message = json.loads(line)
    answer = {"id": message["id"], "out": message["payload"]}
    if message["payload"] == "bad":
        answer = {"id": message["id"], "error": "no luck"}
    print(json.dumps(answer), flush=True)
"#;
    for mode in ["stream", "batch"] {
        let options = json!({"mode": mode, "framing": "json"}).to_string();
        poisoned(json!({"sh": code, "customRuntimeOptions": options}), false).await;
    }
}

#[tokio::test]
async fn of_python() {
    let code = r#"def process(value):
    if value == "bad":
        raise ValueError("no luck")
    return value
"#;
    poisoned(json!({"py": code}), true).await;
}

/// The process dies of it each time.
#[tokio::test]
async fn of_python_that_dies() {
    let code = r#"import os, sys

def process(value):
    if value == "bad":
        print("no luck", file=sys.stderr, flush=True)
        os.kill(os.getpid(), 9)
    return value
"#;
    poisoned(json!({"py": code}), true).await;
}

/// Go's function, which does `at_bad` when the message is bad.
async fn poisoned_go(at_bad: &str) {
    let code = GO.replace("AT_BAD", at_bad);
    poisoned(json!({"go": code}), true).await;
}

const GO: &str = r#"package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/apache/pulsar/pulsar-function-go/pf"
)

func process(in []byte) ([]byte, error) {
	if string(in) == "bad" {
		fmt.Fprintln(os.Stderr, "no luck")
		AT_BAD
	}
	return in, nil
}

func never() error { return errors.New("bad") }

func main() { pf.Start(process) }
"#;

#[tokio::test]
async fn of_go() {
    poisoned_go("return nil, never()").await;
}

#[tokio::test]
async fn of_go_that_panics() {
    poisoned_go("panic(never())").await;
}

#[tokio::test]
async fn of_go_that_dies() {
    poisoned_go("os.Exit(3)").await;
}

async fn poisoned_java(at_bad: &str) {
    let code = JAVA.replace("AT_BAD", at_bad);
    poisoned(json!({"jar": code, "className": "Poison"}), true).await;
}

const JAVA: &str = r#"
public class Poison implements java.util.function.Function<String, String> {
    public String apply(String in) {
        if (in.equals("bad")) {
            System.err.println("no luck");
            AT_BAD;
        }
        return in;
    }
}
"#;

#[tokio::test]
async fn of_java() {
    poisoned_java("throw new IllegalArgumentException(in)").await;
}

#[tokio::test]
async fn of_java_that_dies() {
    poisoned_java("Runtime.getRuntime().halt(3)").await;
}

/// What a function publishes can not be written: its message is given up once, and neither its other
/// outputs nor its state changes are left.
#[tokio::test]
async fn of_outputs_that_no_transaction_takes() {
    let stage = Stage::new().await;
    let (input, output, other) = (stage.topic("in"), stage.topic("out"), stage.topic("other"));
    let mut out = stage.consumer(&output).await;
    let mut others = stage.consumer(&other).await;
    let code = format!(
        r#"import os
from pulsar import Function

class F(Function):
    def process(self, value, context):
        context.incr_counter("n", 1)
        if value == "nowhere":
            context.publish("persistent://nobody/is/there", "x")
        if value == "both":
            context.publish("{other}", "half")
        if value in ("both", "large"):
            return os.urandom(6 * 1024 * 1024)
        return "%s %d" % (value, context.get_counter("n"))
"#
    );
    let id = stage
        .function(
            "f",
            json!({"py": code, "className": "f.F", "inputs": [&input], "output": &output,
                "processingGuarantees": "EFFECTIVELY_ONCE",
                "producerConfig": {"compressionType": "LZ4"},
                "customRuntimeOptions": "{\"maxOutputBytes\": 16777216}"}),
        )
        .await;
    let dead = format!("{input}-{}-DLQ", id.fqfn().replace('/', "-"));
    let mut letters = stage.consumer(&dead).await;
    let values = [
        "a", "nowhere", "b", "large", "c", "both", "d", "nowhere", "both", "e",
    ];
    stage.send(&input, values).await;
    let got = texts(&receive(&mut out, 5).await);
    assert_eq!(got, ["a 1", "b 2", "c 3", "d 4", "e 5"]);
    let given_up = receive(&mut letters, 5).await;
    assert_eq!(
        texts(&given_up),
        ["nowhere", "large", "both", "nowhere", "both"]
    );
    let reason = |n: usize| given_up[n].property("geminga.reason").expect("a reason");
    assert!(reason(0).contains("nobody"), "{}", reason(0));
    for n in [1, 2] {
        assert!(
            reason(n).contains("over the broker's limit"),
            "{}",
            reason(n)
        );
    }
    stage.drained().await;
    let kept = stage.worker.state_get(&id, "n").await.expect("counted");
    assert_eq!(kept.number_value, Some(5));
    for consumer in [&mut out, &mut letters, &mut others] {
        nothing_more(consumer).await;
    }
    stage.end().await;
}

/// One message has more output than the host takes, which no try makes less: where tries have no bound it
/// is given up all the same, and those behind it go on.
async fn flooded(code: Value, options: Value) {
    let stage = Stage::new().await;
    let mut code = code;
    if let Some(text) = code["go"].as_str() {
        code["go"] = json!(stage.file("main.go", text));
    }
    if let Some(text) = code["jar"].as_str() {
        code["jar"] = json!(jar(&stage.file("Flood.java", text)).await);
    }
    let mut options = options;
    options["maxOutputBytes"] = json!(100_000);
    for guarantee in ["EFFECTIVELY_ONCE", "ATLEAST_ONCE"] {
        let topic = |name: &str| stage.topic(&format!("{name}-{guarantee}"));
        let (input, output) = (topic("in"), topic("out"));
        let mut out = stage.consumer(&output).await;
        let mut fields = json!({"inputs": [&input], "output": &output, "retryBackoffMs": 1,
            "processingGuarantees": guarantee, "customRuntimeOptions": options.to_string()});
        for (field, value) in code.as_object().expect("fields") {
            fields[field] = value.clone();
        }
        let id = stage.function(&format!("f-{guarantee}"), fields).await;
        let dead = format!("{input}-{}-DLQ", id.fqfn().replace('/', "-"));
        let mut letters = stage.consumer(&dead).await;
        stage.send(&input, ["a", "b", "bad", "c", "bad", "d"]).await;
        let mut got = texts(&receive(&mut out, 4).await);
        if guarantee == "ATLEAST_ONCE" {
            got.sort();
        }
        assert_eq!(got, ["a", "b", "c", "d"], "{guarantee}");
        for letter in receive(&mut letters, 2).await {
            assert_eq!(&letter.payload[..], b"bad", "{guarantee}");
            let property = |name: &str| letter.property(name).unwrap_or_default();
            assert_eq!(property("geminga.kind"), "limit");
            assert_eq!(property("geminga.attempts"), "3");
            let reason = property("geminga.reason");
            assert!(reason.contains("more than 100000 bytes"), "{reason}");
        }
        stage.drained().await;
        for consumer in [&mut out, &mut letters] {
            nothing_more(consumer).await;
        }
        stage.worker.delete(&id).await.expect("deleted");
    }
    stage.end().await;
}

#[tokio::test]
async fn a_flood_of_bash() {
    let code = r#"process() {
  if [[ $MSG == bad ]]; then printf '%0300000d' 0; else echo "$MSG"; fi
}"#;
    flooded(json!({"sh": code}), json!({})).await;
}

/// A process a message, a process for many, a process that is sent one after the other.
#[tokio::test]
async fn a_flood_of_a_program() {
    let code = r#"#!/usr/bin/env bash
while read -r MSG; do
  if [[ $MSG == bad ]]; then printf '%0300000d\n' 0; else echo "$MSG"; fi
done
"#;
    for mode in ["spawn", "batch", "stream"] {
        flooded(json!({"sh": code}), json!({"mode": mode})).await;
    }
}

#[tokio::test]
async fn a_flood_of_python() {
    let code = "def process(value):\n    return 'x' * 300_000 if value == 'bad' else value\n";
    flooded(json!({"py": code}), json!({})).await;
    // More than a frame of the conversation may have.
    let code = "def process(value):\n    return 'x' * 30_000_000 if value == 'bad' else value\n";
    flooded(json!({"py": code}), json!({})).await;
}

/// What is too much is a change of the state.
#[tokio::test]
async fn a_flood_of_state() {
    let code = r#"def process(value, context):
    if value == "bad":
        context.put_state("k", "x" * 300_000)
    return value
"#;
    flooded(json!({"py": code}), json!({})).await;
}

#[tokio::test]
async fn a_flood_of_go() {
    let code = r#"package main

import (
	"bytes"

	"github.com/apache/pulsar/pulsar-function-go/pf"
)

func process(in []byte) ([]byte, error) {
	if string(in) == "bad" {
		return bytes.Repeat(in, 100_000), nil
	}
	return in, nil
}

func main() { pf.Start(process) }
"#;
    flooded(json!({"go": code}), json!({})).await;
}

#[tokio::test]
async fn a_flood_of_java() {
    let code = r#"
public class Flood implements java.util.function.Function<String, String> {
    public String apply(String in) {
        return in.equals("bad") ? "x".repeat(300_000) : in;
    }
}
"#;
    flooded(json!({"jar": code, "className": "Flood"}), json!({})).await;
}

/// A letter has the reasons beside what its message had: one that is more than the topic takes is sent
/// without that.
#[tokio::test]
async fn a_letter_that_is_too_large_says_what_it_leaves_out() {
    let stage = Stage::with_messages_of(100_000).await;
    for guarantee in ["EFFECTIVELY_ONCE", "ATLEAST_ONCE"] {
        let topic = |name: &str| stage.topic(&format!("{name}-{guarantee}"));
        let (input, output) = (topic("in"), topic("out"));
        let mut out = stage.consumer(&output).await;
        let code = "def process(value):\n    return value if len(value) == 1 else 'x' * 2000\n";
        let fields = json!({"py": code, "inputs": [&input], "output": &output, "retryBackoffMs": 1,
            "processingGuarantees": guarantee, "producerConfig": {"compressionType": "NONE"},
            "customRuntimeOptions": "{\"maxOutputBytes\": 1000}"});
        let id = stage.function(&format!("f-{guarantee}"), fields).await;
        let dead = format!("{input}-{}-DLQ", id.fqfn().replace('/', "-"));
        let mut letters = stage.consumer(&dead).await;
        let crowded = Message::new(vec![b'y'; 100_000]).property("p", "z".repeat(9_500));
        let packed = Message::new(vec![b'y'; 300_000]);
        for (message, compression) in [
            (Message::new("a"), Compression::None),
            (packed, Compression::Lz4),
            (crowded, Compression::None),
            (Message::new("b"), Compression::None),
        ] {
            let producer = stage.client.producer(&input).compression(compression);
            let producer = producer.build().await.expect("producer");
            producer.send(message).await.expect("sent");
            producer.close().await.expect("closed");
        }
        let mut got = texts(&receive(&mut out, 2).await);
        got.sort();
        assert_eq!(got, ["a", "b"], "{guarantee}");
        let mut left_out = Vec::new();
        for letter in receive(&mut letters, 2).await {
            assert!(letter.payload.is_empty(), "{guarantee}");
            let property = |name: &str| letter.property(name).unwrap_or_default().to_owned();
            assert!(property("geminga.reason").contains("bytes of output"));
            assert!(property("geminga.topic").starts_with(&input));
            assert_eq!(
                property("geminga.message-id"),
                property("ORIGIN_MESSAGE_ID")
            );
            left_out.push(property("geminga.left-out"));
        }
        left_out.sort();
        let said = [
            "100000 bytes and 1 properties",
            "300000 bytes and 0 properties",
        ];
        for (left_out, said) in left_out.iter().zip(said) {
            assert!(left_out.contains(said), "{left_out:?}");
        }
        stage.drained().await;
        stage.worker.delete(&id).await.expect("deleted");
    }
    stage.end().await;
}

/// The broker says it by a refusal alone, after the message's place in line is gone: the one that has too large an
/// output becomes a dead letter, and batches that are too large are sent in pieces.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_output_beyond_its_topics_own_limit_is_given_up() {
    let stage = Stage::new().await;
    let limit = async |topic: &str, bytes: u32| {
        let topic: TopicName = topic.parse().expect("a topic");
        let change = move |policies: &mut Policies| {
            policies.max_message_size = Some(bytes);
            Ok(())
        };
        let changed = stage.broker().update_topic_policies(&topic, change).await;
        changed.expect("a limit");
    };
    // `N:text` becomes N bytes that begin with the text.
    let code =
        "process() { printf -v REPLY '%-*s' \"${MSG%%:*}\" \"${MSG#*:}\"; emit \"$REPLY\"; }";
    for (at, kind) in [
        json!({}),
        json!({"retainOrdering": true}),
        json!({"processingGuarantees": "EFFECTIVELY_ONCE"}),
    ]
    .iter()
    .enumerate()
    {
        let topic = |name: &str| stage.topic(&format!("{name}-{at}"));
        let (input, output) = (topic("in"), topic("out"));
        let mut fields = json!({"sh": code, "inputs": [&input], "output": &output,
            "producerConfig": {"compressionType": "NONE"}});
        for (field, value) in kind.as_object().expect("fields") {
            fields[field] = value.clone();
        }
        let mut out = stage.consumer(&output).await;
        let id = stage.function(&format!("f{at}"), fields).await;
        let dead = format!("{input}-{}-DLQ", id.fqfn().replace('/', "-"));
        let mut letters = stage.consumer(&dead).await;
        limit(&output, 2000).await;
        // A letter that is itself too large comes without its payload.
        limit(&dead, 1000).await;
        let mut wanted = BTreeSet::new();
        let sent = (0..120).map(|n| match n {
            40 | 80 => format!("3000:large {n}"),
            60 => format!("3000:{n} {}", "x".repeat(1500)),
            _ => {
                wanted.insert(format!("small {n}"));
                format!("100:small {n}")
            }
        });
        stage.send(&input, sent).await;
        let mut got = BTreeSet::new();
        while got.len() < wanted.len() {
            let some = texts(&receive(&mut out, 1).await);
            // At least once: what is sent again after a refusal may come again.
            got.extend(some.iter().map(|text| text.trim_end().to_owned()));
        }
        assert_eq!(got, wanted, "{kind}");
        let mut given_up = BTreeSet::new();
        while given_up.len() < 3 {
            let letter = receive(&mut letters, 1).await.remove(0);
            let reason = letter.property("geminga.reason").expect("a reason");
            assert!(reason.contains("limit of 2000 bytes"), "{kind}: {reason}");
            let is_bare = letter.property("geminga.left-out").is_some();
            given_up.insert(match is_bare {
                true => "bare".to_owned(),
                false => String::from_utf8_lossy(&letter.payload).into_owned(),
            });
        }
        let wanted = ["3000:large 40", "3000:large 80", "bare"].map(str::to_owned);
        assert_eq!(given_up, wanted.into(), "{kind}");
        stage.worker.delete(&id).await.expect("deleted");
    }
    stage.end().await;
}
