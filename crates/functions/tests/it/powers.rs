//! What every language has of the worker: acknowledging by itself, being called once at most, forgetting state, being
//! replaced while messages flow, and giving up a message that no try can process. `crates/wasm/tests` runs these too.

use std::collections::BTreeSet;
use std::time::Duration;

use geminga_client::{Batching, Message};
use geminga_functions::runtime::go;
use geminga_functions::{ComponentId, Upload, WorkerError};
use geminga_model::FunctionConfig;
use serde_json::{Value, json};

use crate::stage::{PATIENCE, Stage, jar, nothing_more, numbers, receive, texts};

/// The same function in each: `yes` is acknowledged by itself, `bad` fails, `put`, `drop`, `both` and `look` are about
/// the state; everything else is counted, and answered with `WORD` and what came.
const BASH: &str = r#"process() {
  case $MSG in
    bad) echo "no luck" >&2; return 3 ;;
    yes) ack ;;
    put) state put k v ;;
    drop) state del k ;;
    both) state put k v; state del k; if state get k; then echo kept; else echo gone; fi; return ;;
    look) if state get k; then echo there; else echo none; fi; return ;;
    *) state incr n ;;
  esac
  echo "WORD $MSG"
}"#;

const PYTHON: &str = r#"def process(value, context):
    value = str(value)
    if value == "bad":
        raise ValueError("no luck")
    elif value == "yes":
        context.ack(context.get_message_id(), context.get_current_message_topic_name())
    elif value == "put":
        context.put_state("k", "v")
    elif value == "drop":
        context.del_counter("k")
    elif value == "both":
        context.put_state("k", "v")
        context.del_counter("k")
        return "gone" if context.get_state("k") is None else "kept"
    elif value == "look":
        return "none" if context.get_state("k") is None else "there"
    else:
        context.incr_counter("n", 1)
    return "WORD " + value
"#;

const GO: &str = r#"package main

import (
	"context"
	"errors"

	"github.com/apache/pulsar/pulsar-function-go/pf"
)

func said(fc *pf.FunctionContext, yes, no string) ([]byte, error) {
	value, err := fc.GetState("k")
	if err != nil {
		return nil, err
	}
	if value != nil {
		return []byte(yes), nil
	}
	return []byte(no), nil
}

func process(ctx context.Context, in []byte) ([]byte, error) {
	fc, _ := pf.FromContext(ctx)
	var err error
	switch string(in) {
	case "bad":
		err = errors.New("no luck")
	case "yes":
		err = fc.Ack(fc.GetCurrentRecord())
	case "put":
		err = fc.PutState("k", []byte("v"))
	case "drop":
		err = fc.DeleteState("k")
	case "both":
		if err = errors.Join(fc.PutState("k", []byte("v")), fc.DeleteState("k")); err == nil {
			return said(fc, "kept", "gone")
		}
	case "look":
		return said(fc, "there", "none")
	default:
		err = fc.IncrCounter("n", 1)
	}
	return append([]byte("WORD "), in...), err
}

func main() { pf.Start(process) }
"#;

const JAVA: &str = r#"
import org.apache.pulsar.functions.api.*;
import java.nio.ByteBuffer;

public class Power implements Function<String, String> {
    public String process(String in, Context context) throws Exception {
        switch (in) {
            case "bad": throw new IllegalArgumentException("no luck");
            case "yes": context.getCurrentRecord().ack(); break;
            case "put": context.putState("k", ByteBuffer.wrap("v".getBytes())); break;
            case "drop": context.deleteState("k"); break;
            case "both":
                context.putState("k", ByteBuffer.wrap("v".getBytes()));
                context.deleteStateAsync("k").get();
                return context.getState("k") == null ? "gone" : "kept";
            case "look": return context.getState("k") == null ? "none" : "there";
            default: context.incrCounter("n", 1);
        }
        return "WORD " + in;
    }
}
"#;

/// A process for each message: it can change the state, and reads none.
const SPAWN: &str = r#"#!/usr/bin/env bash
read -r MSG
case $MSG in
  bad) echo "no luck" >&2; exit 3 ;;
  yes) echo ack >&4 ;;
  put) echo "state put k v" >&4 ;;
  drop) echo "state del k" >&4 ;;
  *) echo "state incr n" >&4 ;;
esac
echo "WORD $MSG"
"#;

/// Where the code is, and what else its configuration says.
async fn code(stage: &Stage, language: &str, word: &str) -> Value {
    let text = |code: &str| code.replace("WORD", word);
    match language {
        "bash" => json!({"sh": text(BASH)}),
        "python" => json!({"py": text(PYTHON)}),
        "go" => json!({"go": stage.file(&format!("{word}.go"), &text(GO))}),
        "wasm" => {
            let source = stage.file(&format!("{word}.go"), &text(GO));
            json!({"wasm": go::build_wasm(&source).await.expect("Go is installed")})
        }
        "java" => {
            let folder = stage.directory.path().join(word);
            std::fs::create_dir_all(&folder).expect("made");
            let source = folder.join("Power.java");
            std::fs::write(&source, text(JAVA)).expect("written");
            json!({"jar": jar(&source).await, "className": "Power"})
        }
        _ => json!({"sh": text(SPAWN), "customRuntimeOptions": "{\"mode\":\"spawn\"}"}),
    }
}

async fn made(stage: &Stage, language: &str, name: &str, fields: Value) -> ComponentId {
    let mut all = code(stage, language, "saw").await;
    for (field, value) in fields.as_object().expect("fields") {
        all[field] = value.clone();
    }
    stage.function(name, all).await
}

/// What is not acknowledged comes again, and what is does not.
pub(crate) async fn acknowledges_by_itself(stage: Stage, language: &str) {
    let mut stage = stage;
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let mut consumer = stage.consumer(&output).await;
    let fields = json!({"inputs": [&input], "output": &output, "processingGuarantees": "MANUAL",
        "retainOrdering": true});
    made(&stage, language, "f", fields).await;
    stage.send(&input, ["yes", "no", "yes"]).await;
    let got = texts(&receive(&mut consumer, 3).await);
    assert_eq!(got, ["saw yes", "saw no", "saw yes"]);
    stage.worker.shutdown(Duration::from_secs(2)).await;
    stage.another_worker().await;
    assert_eq!(texts(&receive(&mut consumer, 1).await), ["saw no"]);
    nothing_more(&mut consumer).await;
    stage.end().await;
}

/// A message that fails is not tried again, and nobody is told of it.
pub(crate) async fn is_called_once_at_most(stage: Stage, language: &str) {
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let mut consumer = stage.consumer(&output).await;
    let fields =
        json!({"inputs": [&input], "output": &output, "processingGuarantees": "ATMOST_ONCE"});
    made(&stage, language, "f", fields).await;
    stage.send(&input, ["bad", "good"]).await;
    assert_eq!(texts(&receive(&mut consumer, 1).await), ["saw good"]);
    stage
        .until("both done", |w| {
            w.progress()[0].failed == 1 && w.progress()[0].in_flight == 0
        })
        .await;
    let progress = stage.worker.progress().remove(0);
    assert_eq!((progress.retried, progress.dead_lettered), (0, 0));
    nothing_more(&mut consumer).await;
    stage.end().await;
}

/// What is deleted is absent: for the function, for who asks, and after a restart.
pub(crate) async fn forgets_state(stage: Stage, language: &str) {
    let mut stage = stage;
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let mut consumer = stage.consumer(&output).await;
    let reads = language != "spawn";
    let fields = json!({"inputs": [&input], "output": &output, "retainOrdering": true});
    let id = made(&stage, language, "f", fields).await;
    let mut ask = async |stage: &Stage, text: &str| {
        stage.send(&input, [text]).await;
        texts(&receive(&mut consumer, 1).await).remove(0)
    };
    assert_eq!(ask(&stage, "put").await, "saw put");
    stage.drained().await;
    let kept = stage.worker.state_get(&id, "k").await.expect("there");
    assert_eq!(kept.string_value.as_deref(), Some("v"));
    if reads {
        assert_eq!(ask(&stage, "look").await, "there");
    }
    assert_eq!(ask(&stage, "drop").await, "saw drop");
    stage.drained().await;
    let gone = stage.worker.state_get(&id, "k").await;
    assert!(matches!(gone, Err(WorkerError::NoState { .. })), "{gone:?}");
    if reads {
        assert_eq!(ask(&stage, "look").await, "none");
        // In the hands of one message.
        assert_eq!(ask(&stage, "both").await, "gone");
        assert_eq!(ask(&stage, "look").await, "none");
    }
    stage.worker.shutdown(Duration::from_secs(2)).await;
    stage.another_worker().await;
    let gone = stage.worker.state_get(&id, "k").await;
    assert!(matches!(gone, Err(WorkerError::NoState { .. })), "{gone:?}");
    if reads {
        assert_eq!(ask(&stage, "look").await, "none");
    }
    stage.end().await;
}

/// One version takes the place of the other while messages flow: each is with one of them, once.
pub(crate) async fn is_replaced_under_load(stage: Stage, language: &str) {
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let mut consumer = stage.consumer(&output).await;
    let fields = json!({"inputs": [&input], "output": &output, "parallelism": 2});
    let id = made(&stage, language, "f", fields).await;
    let new = code(&stage, language, "two").await;
    let upload = match language {
        "bash" | "spawn" => Upload::new("f.sh", new["sh"].as_str().expect("code").to_owned()),
        "python" => Upload::new("f.py", new["py"].as_str().expect("code").to_owned()),
        _ => {
            let field = if language == "java" { "jar" } else { language };
            let path = std::path::Path::new(new[field].as_str().expect("a path"));
            let name = path.file_name().expect("a name").to_string_lossy();
            Upload::new(name, std::fs::read(path).expect("read"))
        }
    };
    let (worker, of) = (stage.worker.clone(), id.clone());
    let updating = geminga_stdx::Tasks::new();
    let (mut sent, mut seen) = (0, Vec::new());
    let mut upload = Some(upload);
    let mut replaced = false;
    let began = std::time::Instant::now();
    while !replaced {
        assert!(
            began.elapsed() < 4 * PATIENCE,
            "the new version never answers"
        );
        stage.send(&input, numbers(sent..sent + 20)).await;
        sent += 20;
        let some = texts(&receive(&mut consumer, 20).await);
        replaced = some.iter().any(|text| text.starts_with("two "));
        seen.extend(some);
        // The first has worked.
        if let Some(upload) = upload.take() {
            let unchanged = FunctionConfig::default().into();
            let (worker, of) = (worker.clone(), of.clone());
            updating.spawn("update", geminga_stdx::tasks::OnError::Log, async move {
                worker.update(&of, unchanged, Some(upload)).await
            });
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(updating.join(PATIENCE).await, "the update answers");
    stage.send(&input, numbers(sent..sent + 20)).await;
    sent += 20;
    seen.extend(texts(&receive(&mut consumer, 20).await));
    nothing_more(&mut consumer).await;
    assert!(seen[0].starts_with("saw "), "{seen:?}");
    let last = &seen[seen.len() - 20..];
    assert!(last.iter().all(|text| text.starts_with("two ")), "{last:?}");
    let mut got: Vec<usize> = seen
        .iter()
        .map(|text| text[4..].parse().expect("a number"))
        .collect();
    got.sort_unstable();
    assert_eq!(got, (0..sent).collect::<Vec<_>>(), "each once");
    stage.drained().await;
    let counted = stage.worker.state_get(&id, "n").await.expect("counted");
    assert_eq!(counted.number_value, Some(sent as i64));
    stage.end().await;
}

/// A message that no try can process, in every kind of subscription: the others pass, and it becomes a dead letter that
/// says why.
pub(crate) async fn gives_up_a_poison_alone(stage: Stage, code: Value, says_on_stderr: bool) {
    let kinds = [
        json!({}),
        json!({"retainOrdering": true}),
        json!({"retainKeyOrdering": true}),
        json!({"parallelism": 3}),
    ];
    for (at, kind) in kinds.iter().enumerate() {
        let topic = |name: &str| stage.topic(&format!("{name}-{at}"));
        let (input, output, dead) = (topic("in"), topic("out"), topic("dead"));
        let (mut out, mut letters) = (stage.consumer(&output).await, stage.consumer(&dead).await);
        let mut fields = json!({"inputs": [&input], "output": &output, "maxMessageRetries": 2,
            "retryBackoffMs": 1, "deadLetterTopic": &dead});
        for given in [&code, kind] {
            for (field, value) in given.as_object().expect("fields") {
                fields[field] = value.clone();
            }
        }
        let id = stage.function(&format!("f{at}"), fields).await;
        let producer = stage.client.producer(&input).batching(Batching::off());
        let producer = producer.build().await.expect("producer");
        let mut wanted = BTreeSet::new();
        for n in 0..12 {
            let text = match n {
                5 => "bad".to_owned(),
                n => format!("good-{n}"),
            };
            if n != 5 {
                wanted.insert(text.clone());
            }
            let message = Message::new(text)
                .key(format!("key-{}", n % 4))
                .property("n", n.to_string());
            producer.post(message).await.expect("sent");
        }
        producer.close().await.expect("sent");
        let got: BTreeSet<String> = texts(&receive(&mut out, 11).await).into_iter().collect();
        assert_eq!(got, wanted, "{kind}");
        let letter = receive(&mut letters, 1).await.remove(0);
        assert_eq!(
            (&letter.payload[..], letter.key.as_deref()),
            (&b"bad"[..], Some("key-1"))
        );
        assert_eq!(letter.property("geminga.attempts"), Some("3"), "{kind}");
        assert_eq!(letter.property("n"), Some("5"));
        assert!(
            letter
                .property("geminga.topic")
                .is_some_and(|topic| topic.starts_with(&input))
        );
        let reason = letter.property("geminga.reason").expect("a reason");
        let stderr = letter.property("geminga.stderr").unwrap_or_default();
        let said = match says_on_stderr {
            true => stderr,
            false => reason,
        };
        assert!(said.contains("no luck"), "{kind}: {reason}: {stderr}");
        stage.drained().await;
        let status = stage.worker.status(&id).expect("there");
        let letters: u64 = status
            .instances
            .iter()
            .map(|i| i.status.num_dead_lettered)
            .sum();
        assert_eq!(letters, 1);
        stage.worker.delete(&id).await.expect("deleted");
    }
    stage.end().await;
}
