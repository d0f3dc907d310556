//! Every field of `FunctionConfig` in every runtime: either its effect is seen in a run, or the field is
//! refused by its name at creation. What the run finds is `docs/functions-matrix.md`.
//!
//! A field that does neither fails this test, and so does a page that says anything else than the run
//! (`GEMINGA_WRITE_MATRIX=1` writes it).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use geminga_broker::Broker;
use geminga_client::{Batching, Consumer, InitialPosition, Message};
use geminga_functions::ComponentId;
use geminga_model::{ConsumerConfig, FunctionConfig, ProducerConfig, Resources, TopicName};
use serde::de::{DeserializeOwned, Deserializer, Visitor, value::Error as Nothing};
use serde_json::{Value, json};

use crate::stage::{Stage, jar, receive, texts};

/// The runtimes, each with a function that does the same: it answers with the payload, the user config's
/// `greeting` and the secret `token`, logs what it saw, fails for `bad`, and for `wait:PATH` waits until
/// there is such a file.
const RUNTIMES: [&str; 5] = ["bash", "python", "exec", "go", "java"];

const BASH: &str = r#"process() {
  [[ $MSG != bad ]] || { echo "no luck" >&2; return 1; }
  if [[ $MSG == wait:* ]]; then until [[ -e ${MSG#wait:} ]]; do sleep 0.02; done; fi
  log WARN "saw $MSG"
  local token; token=$(secret token)
  emit "$MSG $(conf greeting none) ${token:-none}"
}"#;

const PYTHON: &str = r#"import os, time
from pulsar import Function

class Echo(Function):
    def process(self, word, context):
        while isinstance(word, str) and word.startswith("wait:") and not os.path.exists(word[5:]):
            time.sleep(0.02)
        if isinstance(word, list):
            return " ".join(str(w) for w in word)
        if word == "bad":
            raise ValueError("no luck")
        context.get_logger().warning("saw %s", word)
        return "%s %s %s" % (word, context.get_user_config_value("greeting") or "none", context.get_secret("token") or "none")
"#;

const EXEC: &str = r#"#!/bin/bash
read -r MSG
[ "$MSG" != bad ] || { echo "no luck" >&2; exit 1; }
if [[ $MSG == wait:* ]]; then until [ -e "${MSG#wait:}" ]; do sleep 0.02; done; fi
echo "saw $MSG" >&2
while read -r more; do MSG="$MSG $more"; done
secret=none
[ -z "$GMG_SECRETS" ] || secret=$(cat "$GMG_SECRETS/token")
echo "$MSG ${GMG_CONF_greeting-none} $secret"
"#;

const GO: &str = r#"package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	log "github.com/apache/pulsar/pulsar-function-go/logutil"
	"github.com/apache/pulsar/pulsar-function-go/pf"
)

func process(ctx context.Context, in []byte) ([]byte, error) {
	if string(in) == "bad" {
		return nil, errors.New("no luck")
	}
	if path, waits := strings.CutPrefix(string(in), "wait:"); waits {
		for _, err := os.Stat(path); err != nil; _, err = os.Stat(path) {
			time.Sleep(20 * time.Millisecond)
		}
	}
	log.Warnf("saw %s", in)
	fc, _ := pf.FromContext(ctx)
	greeting, secret := "none", "none"
	if value, ok := fc.GetUserConfMap()["greeting"]; ok {
		greeting = fmt.Sprint(value)
	}
	if value, err := fc.GetSecretValue("token"); err == nil && value != nil {
		secret = *value
	}
	return fmt.Appendf(nil, "%s %s %s", in, greeting, secret), nil
}

func main() { pf.Start(process) }
"#;

const GO_WINDOW: &str = r#"package main

import (
	"bytes"

	"github.com/apache/pulsar/pulsar-function-go/pf"
)

func process(in [][]byte) ([]byte, error) { return bytes.Join(in, []byte(" ")), nil }

func main() { pf.Start(process) }
"#;

const JAVA: &str = r#"
import org.apache.pulsar.functions.api.*;

public class Echo implements Function<String, String> {
    public String process(String in, Context context) throws Exception {
        while (in.startsWith("wait:") && !java.nio.file.Files.exists(java.nio.file.Path.of(in.substring(5)))) Thread.sleep(20);
        if (in.equals("bad")) throw new IllegalArgumentException("no luck");
        context.getLogger().warn("saw {}", in);
        String secret = context.getSecret("token");
        return in + " " + context.getUserConfigValueOrDefault("greeting", "none") + " " + (secret == null ? "none" : secret);
    }
}

class Plain implements SerDe<String> {
    public String deserialize(byte[] in) { return new String(in); }
    public byte[] serialize(String out) { return out.getBytes(); }
}

class Window implements java.util.function.Function<java.util.Collection<String>, String> {
    public String apply(java.util.Collection<String> in) { return String.join(" ", in); }
}
"#;

/// The names of a configuration object's fields, as they are written.
pub(crate) fn fields<T: DeserializeOwned>() -> Vec<&'static str> {
    struct Names<'a>(&'a mut Vec<&'static str>);
    impl<'de> Deserializer<'de> for Names<'_> {
        type Error = Nothing;
        fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Nothing> {
            visitor.visit_map(serde::de::value::MapDeserializer::<_, Nothing>::new(
                std::iter::empty::<(&str, &str)>(),
            ))
        }
        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _name: &'static str,
            fields: &'static [&'static str],
            visitor: V,
        ) -> Result<V::Value, Nothing> {
            self.0.extend(fields);
            self.deserialize_any(visitor)
        }
        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit
            unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }
    let mut names = Vec::new();
    T::deserialize(Names(&mut names)).expect("nothing is given");
    names
}

/// Every field, those of objects within with their path.
fn all_fields() -> Vec<String> {
    let within = |path: &str, names: Vec<&str>| {
        names
            .into_iter()
            .map(|name| format!("{path}.{name}"))
            .collect::<Vec<_>>()
    };
    let mut all = Vec::new();
    for name in fields::<FunctionConfig>() {
        match name {
            "inputSpecs" => all.extend(within(name, fields::<ConsumerConfig>())),
            "producerConfig" => all.extend(within(name, fields::<ProducerConfig>())),
            "resources" => all.extend(within(name, fields::<Resources>())),
            // Geminga's own notes, which nobody writes.
            "mesh" | "codeDigest" => {}
            name => all.push(name.to_owned()),
        }
    }
    // An alias that serde tells as a field of its own.
    all.retain(|name| !name.ends_with(".isRegexPattern"));
    all
}

/// A value that a field may have, for the question whether it is refused.
fn sample(field: &str) -> Value {
    let crypto = json!({"cryptoKeyReaderClassName": "my.Reader", "encryptionKeys": ["k"]});
    match field {
        "inputSpecs.schemaProperties" => {
            json!({"inputSpecs": {"in": {"schemaProperties": {"a": "b"}}}})
        }
        "inputSpecs.consumerProperties" => {
            json!({"inputSpecs": {"in": {"consumerProperties": {"ackTimeoutMillis": "5"}}}})
        }
        "inputSpecs.cryptoConfig" => json!({"inputSpecs": {"in": {"cryptoConfig": crypto}}}),
        "inputSpecs.serdeClassName" => {
            json!({"inputSpecs": {"in": {"serdeClassName": "my.Serde"}}})
        }
        "producerConfig.cryptoConfig" => json!({"producerConfig": {"cryptoConfig": crypto}}),
        "producerConfig.useThreadLocalProducers" => {
            json!({"producerConfig": {"useThreadLocalProducers": true}})
        }
        "customSerdeInputs" => json!({"customSerdeInputs": {"in": "my.Serde"}}),
        "exposePulsarAdminClientEnabled" => json!({field: true}),
        "idleTimeoutMs" => json!({field: 1000}),
        "inputSpecs.poolMessages" => json!({"inputSpecs": {"in": {"poolMessages": true}}}),
        "resources.cpu" => json!({"resources": {"cpu": 1}}),
        "resources.disk" => json!({"resources": {"disk": 1}}),
        "jar" | "py" | "go" | "sh" | "exec" | "wasm" => json!({field: "another.file"}),
        _ => json!({field: "my.Thing"}),
    }
}

struct Case<'a> {
    stage: &'a Stage,
    runtime: &'static str,
    code: PathBuf,
    window_code: PathBuf,
    seen: BTreeSet<String>,
    number: usize,
}

impl Case<'_> {
    fn see(&mut self, fields: &[&str]) {
        self.seen
            .extend(fields.iter().map(|field| (*field).to_owned()));
    }

    fn code_field(&self) -> &'static str {
        match self.runtime {
            "bash" => "sh",
            "python" => "py",
            "java" => "jar",
            other => {
                if other == "go" {
                    "go"
                } else {
                    "exec"
                }
            }
        }
    }

    fn class(&self) -> &'static str {
        match self.runtime {
            "python" => "Echo.Echo",
            _ => "Echo",
        }
    }

    fn topic(&self, name: &str) -> String {
        self.stage
            .topic(&format!("{name}-{}-{}", self.runtime, self.number))
    }

    /// Makes a function with these fields beside the code; topics are `in` and `out` unless given.
    async fn make(&mut self, given: Value) -> ComponentId {
        let config: FunctionConfig = serde_json::from_value(self.config(given)).expect("a config");
        self.stage
            .worker
            .create(config.into(), None)
            .await
            .expect("created")
    }

    fn config(&mut self, given: Value) -> Value {
        let windows = given.get("windowConfig").is_some();
        let code = if windows {
            &self.window_code
        } else {
            &self.code
        };
        let mut all = json!({"name": format!("{}-{}", self.runtime, self.number), "output": self.topic("out"),
            self.code_field(): code});
        if matches!(self.runtime, "python" | "java") {
            all["className"] = json!(if windows && self.runtime == "java" {
                "Window"
            } else {
                self.class()
            });
        }
        if ![
            "inputs",
            "inputSpecs",
            "topicsPattern",
            "customSchemaInputs",
            "customSerdeInputs",
        ]
        .iter()
        .any(|field| given.get(field).is_some())
        {
            all["inputs"] = json!([self.topic("in")]);
        }
        for (field, value) in given.as_object().expect("fields") {
            match value.is_null() {
                true => drop(all.as_object_mut().and_then(|all| all.remove(field))),
                false => all[field] = value.clone(),
            }
        }
        self.number += 1;
        all
    }

    async fn outputs(&self, topic: &str, count: usize) -> Vec<String> {
        let mut consumer = self.stage.consumer(topic).await;
        let got = texts(&receive(&mut consumer, count).await);
        consumer.close().await.expect("closed");
        got
    }

    async fn subscription(&self, topic: &str, name: &str) -> Value {
        let broker: &Broker = self.stage.broker();
        let topic: TopicName = topic.parse().expect("a topic");
        let stats = broker.topic_stats(&topic).await.expect("stats");
        let stats = serde_json::to_value(stats).expect("JSON");
        stats["subscriptions"][name].clone()
    }

    /// The subscription's first consumer, when it has asked for so many messages: that comes after it subscribed.
    async fn permitted(&self, topic: &str, name: &str, permits: i64) -> Value {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let consumer = self.subscription(topic, name).await["consumers"][0].clone();
            if consumer["availablePermits"] == permits {
                return consumer;
            }
            assert!(
                Instant::now() < deadline,
                "no {permits} permits: {consumer}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Whether it is enforced or warned of depends on what the kernel lets the worker do.
const BY_THE_MACHINE: &str = "yes or warned";

/// Who it is, where it reads and writes, what it is given, what becomes of failures.
async fn common(case: &mut Case<'_>) {
    let (input, output) = (case.topic("in"), case.topic("out"));
    let (logs, dead) = (case.topic("logs"), case.topic("dead"));
    // Before there is a function: only `Earliest` gets it, and the topic is kept for it.
    drop(keep(case.stage, &input).await);
    case.stage.send(&input, ["early"]).await;
    let mut log_lines = keep(case.stage, &logs).await;
    let mut letters = keep(case.stage, &dead).await;
    let id = case
        .make(json!({"tenant": "public", "namespace": "default", "name": format!("common-{}", case.runtime),
            "className": case.class(), "inputs": [&input], "output": &output, "runtime": case.runtime.to_uppercase(),
            "subName": "sub-name", "subscriptionPosition": "Earliest", "logTopic": &logs,
            "userConfig": {"greeting": "hello"}, "secrets": {"token": "s3cret"}, "parallelism": 2,
            "maxMessageRetries": 1, "retryBackoffMs": 1, "deadLetterTopic": &dead,
            "processingGuarantees": "ATLEAST_ONCE", "cleanupSubscription": true,
            "outputSchemaType": "string", "forwardSourceMessageProperty": true}))
        .await;
    assert_eq!(id.fqfn(), format!("public/default/common-{}", case.runtime));
    case.see(&[
        "tenant",
        "namespace",
        "name",
        "className",
        "runtime",
        case.code_field(),
    ]);
    let producer = case
        .stage
        .client
        .producer(&input)
        .build()
        .await
        .expect("producer");
    let message = Message::new("second").key("k").property("colour", "red");
    producer.send(message).await.expect("sent");
    let mut consumer = keep(case.stage, &output).await;
    let got = receive(&mut consumer, 2).await;
    let mut words = texts(&got);
    words.sort();
    assert_eq!(
        words,
        ["early hello s3cret", "second hello s3cret"],
        "{}",
        case.runtime
    );
    case.see(&[
        "inputs",
        "output",
        "subscriptionPosition",
        "userConfig",
        "secrets",
    ]);
    let second = got
        .iter()
        .find(|m| m.payload.starts_with(b"second"))
        .expect("there");
    assert_eq!(
        (second.key.as_deref(), second.property("colour")),
        (Some("k"), Some("red"))
    );
    assert!(second.schema_version.is_some(), "the topic has the schema");
    case.see(&["forwardSourceMessageProperty", "outputSchemaType"]);
    let subscription = case.subscription(&input, "sub-name").await;
    assert_eq!(subscription["type"], "Shared");
    assert_eq!(subscription["consumers"].as_array().map(Vec::len), Some(2));
    case.see(&["subName", "parallelism", "processingGuarantees"]);
    // A runtime may say more.
    while !String::from_utf8_lossy(&receive(&mut log_lines, 1).await[0].payload).contains("saw ") {}
    case.see(&["logTopic"]);
    producer.send("bad").await.expect("sent");
    let letter = receive(&mut letters, 1).await.remove(0);
    assert_eq!(letter.property("geminga.attempts"), Some("2"), "one retry");
    let said = format!("{:?}", letter.properties);
    assert!(said.contains("no luck"), "{}: {said}", case.runtime);
    case.see(&["maxMessageRetries", "deadLetterTopic", "retryBackoffMs"]);
    producer.close().await.expect("closed");
    case.stage.worker.delete(&id).await.expect("deleted");
    assert!(
        case.subscription(&input, "sub-name").await.is_null(),
        "it is cleaned up"
    );
}

async fn keep(stage: &Stage, topic: &str) -> Consumer {
    let consumer = stage.client.consumer(topic).subscription("keep");
    let consumer = consumer.initial_position(InitialPosition::Earliest);
    consumer.build().await.expect("consumer")
}

/// Kinds of subscription, and how inputs are named.
async fn subscriptions(case: &mut Case<'_>) {
    for (fields, wanted, see) in [
        (
            json!({"retainOrdering": true, "cleanupSubscription": false}),
            "Failover",
            &["retainOrdering", "cleanupSubscription"][..],
        ),
        (
            json!({"retainKeyOrdering": true}),
            "Key_Shared",
            &["retainKeyOrdering"],
        ),
        (
            json!({"processingGuarantees": "EFFECTIVELY_ONCE"}),
            "Failover",
            &["processingGuarantees"],
        ),
    ] {
        let (input, output) = (case.topic("in"), case.topic("out"));
        let stays = fields["cleanupSubscription"] == false;
        let id = case.make(fields).await;
        case.stage.send(&input, ["a"]).await;
        assert_eq!(case.outputs(&output, 1).await, ["a none none"]);
        let subscription = case.subscription(&input, &id.fqfn()).await;
        assert_eq!(subscription["type"], wanted, "{}", case.runtime);
        case.see(see);
        case.stage.worker.delete(&id).await.expect("deleted");
        let subscription = case.subscription(&input, &id.fqfn()).await;
        assert_eq!(!subscription.is_null(), stays, "{}", case.runtime);
    }
    // The five ways to name an input; what stands in a spec.
    let pattern = format!("persistent://public/default/many-{}-.*", case.runtime);
    let many = format!("persistent://public/default/many-{}-one", case.runtime);
    drop(keep(case.stage, &many).await);
    let named = case.topic("in");
    for (fields, input, see) in [
        (
            json!({"topicsPattern": &pattern}),
            &many,
            &["topicsPattern"][..],
        ),
        (
            json!({"inputSpecs": {&pattern: {"regexPattern": true}}}),
            &many,
            &["inputSpecs.regexPattern"],
        ),
        (
            json!({"customSchemaInputs": {&named: "{\"schemaType\":\"string\"}"}}),
            &named,
            &["customSchemaInputs"],
        ),
        (
            json!({"inputSpecs": {&named: {"schemaType": "string", "receiverQueueSize": 3,
                "consumerProperties": {"consumerName": "my-name", "priorityLevel": "2"}}}}),
            &named,
            &[
                "inputSpecs.schemaType",
                "inputSpecs.receiverQueueSize",
                "inputSpecs.consumerProperties",
            ],
        ),
    ] {
        let mut given = fields.clone();
        let output = case.topic("out");
        given["output"] = json!(&output);
        let id = case.make(given).await;
        if see.len() == 3 {
            let consumer = case.permitted(input, &id.fqfn(), 3).await;
            assert_eq!(consumer["consumerName"], "my-name");
        }
        case.stage.send(input, ["a"]).await;
        assert_eq!(
            case.outputs(&output, 1).await,
            ["a none none"],
            "{} {see:?}",
            case.runtime
        );
        case.see(see);
        case.stage.worker.delete(&id).await.expect("deleted");
    }
}

/// How outputs are produced, windows, acknowledging, starts.
async fn the_rest(case: &mut Case<'_>) {
    let (input, output) = (case.topic("in"), case.topic("out"));
    drop(keep(case.stage, &output).await);
    let id = case
        .make(json!({"producerConfig": {"compressionType": "ZSTD", "batchBuilder": "KEY_BASED"}, "batchBuilder": "KEY_BASED",
            "fqfn": format!("public/default/rest-{}", case.runtime), "name": null, "retainOrdering": true}))
        .await;
    assert_eq!(id.name, format!("rest-{}", case.runtime));
    case.see(&["fqfn"]);
    let producer = case
        .stage
        .client
        .producer(&input)
        .batching(Batching::off())
        .build()
        .await
        .expect("producer");
    let text = "long ".repeat(200);
    for n in 0..40 {
        let message = Message::new(text.clone()).key(if n % 2 == 0 { "even" } else { "odd" });
        producer.post(message).await.expect("sent");
    }
    producer.close().await.expect("sent");
    assert_eq!(case.outputs(&output, 40).await.len(), 40);
    let name: TopicName = output.parse().expect("a topic");
    let entries = case
        .stage
        .broker()
        .peek(&name, "keep", 100)
        .await
        .expect("peeked");
    for entry in &entries {
        let metadata = geminga_proto::message::decode_metadata(&entry.block).expect("metadata");
        assert_eq!(metadata.compression, Some(3), "ZSTD");
        // One key a batch.
        assert!(matches!(
            metadata.partition_key.as_deref(),
            Some("even" | "odd")
        ));
    }
    case.see(&[
        "producerConfig.compressionType",
        "producerConfig.batchBuilder",
        "batchBuilder",
    ]);
    // What is pending is at most a batch: no entry holds more.
    for field in ["maxPendingMessages", "maxPendingMessagesAcrossPartitions"] {
        let (input, output) = (case.topic("in"), case.topic("out"));
        drop(keep(case.stage, &output).await);
        let id = case
            .make(json!({"producerConfig": {field: 3}, "retainOrdering": true}))
            .await;
        let producer = case.stage.client.producer(&input).build().await;
        let producer = producer.expect("producer");
        for n in 0..40 {
            producer
                .post(Message::new(n.to_string()))
                .await
                .expect("sent");
        }
        producer.close().await.expect("sent");
        assert_eq!(case.outputs(&output, 40).await.len(), 40);
        let name: TopicName = output.parse().expect("a topic");
        for entry in case
            .stage
            .broker()
            .peek(&name, "keep", 100)
            .await
            .expect("peeked")
        {
            let metadata = geminga_proto::message::decode_metadata(&entry.block).expect("metadata");
            let messages = metadata.num_messages_in_batch.unwrap_or(1);
            assert!(messages <= 3, "{messages} messages in an entry");
        }
        case.see(&[&format!("producerConfig.{field}")]);
        case.stage.worker.delete(&id).await.expect("deleted");
    }

    let (input, output) = (case.topic("in"), case.topic("out"));
    let id = case
        .make(json!({"windowConfig": {"windowLengthCount": 2}, "retainOrdering": true}))
        .await;
    case.stage.send(&input, ["a", "b"]).await;
    let got = case.outputs(&output, 1).await;
    let got = got[0].replace('\n', " ");
    assert!(got.starts_with("a b"), "{}: {got}", case.runtime);
    case.see(&["windowConfig"]);
    case.stage.worker.delete(&id).await.expect("deleted");

    // Nobody acknowledges: it stays.
    let (input, output) = (case.topic("in"), case.topic("out"));
    let id = case.make(json!({"autoAck": false})).await;
    case.stage.send(&input, ["a"]).await;
    assert_eq!(case.outputs(&output, 1).await.len(), 1);
    let subscription = case.subscription(&input, &id.fqfn()).await;
    assert_eq!(subscription["unackedMessages"], 1, "{}", case.runtime);
    case.see(&["autoAck"]);
    case.stage.worker.delete(&id).await.expect("deleted");

    // A start goes to the end, whatever is there.
    let (input, output) = (case.topic("in"), case.topic("out"));
    let id = case.make(json!({"skipToLatest": true})).await;
    case.stage
        .worker
        .stop_instances(&id, None)
        .await
        .expect("stopped");
    case.stage.send(&input, ["missed"]).await;
    case.stage
        .worker
        .start_instances(&id, None)
        .await
        .expect("started");
    case.stage
        .until("running", |worker| {
            worker
                .status(&id)
                .is_ok_and(|status| status.num_running == 1)
        })
        .await;
    case.stage.send(&input, ["taken"]).await;
    assert_eq!(case.outputs(&output, 1).await, ["taken none none"]);
    case.see(&["skipToLatest"]);
    case.stage.worker.delete(&id).await.expect("deleted");
}

/// What a process is started with, how much it gets at once, and for how long.
async fn under_way(case: &mut Case<'_>) {
    let (input, output) = (case.topic("in"), case.topic("out"));
    let gate = case
        .stage
        .directory
        .path()
        .join(format!("gate-{}", case.number));
    let flag = match case.runtime {
        "bash" => "--norc",
        "python" => "-Xutf8",
        "java" => "-Dmy.property=1",
        "go" => "-my-flag",
        _ => "",
    };
    let mut given = json!({"customRuntimeOptions": "{\"env\": {\"MY_OPTION\": \"taken\"}}",
        "resources": {"ram": 4_096_000_000_i64}, "maxPendingAsyncRequests": 2});
    if !flag.is_empty() {
        given["runtimeFlags"] = json!(flag);
    }
    let id = case.make(given).await;
    let wait = format!("wait:{}", gate.display());
    case.stage.send(&input, [wait.as_str(); 6]).await;
    let mark = format!("GMG_FUNCTION={}\0", id.name);
    let flagged = |text: &str| flag.is_empty() || text.contains(flag);
    let limited = |text: &str| text.contains("4096000000");
    case.stage
        .until("started as asked", |_| {
            let with = |name: &str| {
                processes(&mark)
                    .map(|at| read_text(&at.join(name)))
                    .collect::<String>()
            };
            let (arguments, environment) = (with("cmdline"), with("environ"));
            flagged(&arguments)
                && environment.contains("MY_OPTION=taken\0")
                && (limited(&arguments) || limited(&with("limits")))
        })
        .await;
    let received = |worker: &geminga_functions::Worker| {
        let status = worker.status(&id).expect("there");
        status.instances[0].status.num_received
    };
    case.stage
        .until("has two", |worker| received(worker) == 2)
        .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(received(&case.stage.worker), 2, "no more than it may have");
    std::fs::write(&gate, "").expect("opened");
    assert_eq!(case.outputs(&output, 6).await.len(), 6);
    case.see(&[
        "resources.ram",
        "customRuntimeOptions",
        "maxPendingAsyncRequests",
    ]);
    if !flag.is_empty() {
        case.see(&["runtimeFlags"]);
    }
    case.stage.worker.delete(&id).await.expect("deleted");

    let (input, dead) = (case.topic("in"), case.topic("dead"));
    let mut letters = keep(case.stage, &dead).await;
    let id = case
        .make(json!({"timeoutMs": 300, "maxMessageRetries": 0, "deadLetterTopic": &dead}))
        .await;
    case.stage.send(&input, ["wait:/there/is/none"]).await;
    let letter = receive(&mut letters, 1).await.remove(0);
    assert_eq!(letter.property("geminga.kind"), Some("timeout"));
    case.see(&["timeoutMs"]);
    case.stage.worker.delete(&id).await.expect("deleted");
}

/// Fields that only some runtimes take.
async fn special(case: &mut Case<'_>) {
    let (input, output) = (case.topic("in"), case.topic("out"));
    let mut given = json!({});
    if case.runtime == "java" {
        given["inputTypeClassName"] = json!("java.lang.String");
        given["outputTypeClassName"] = json!("java.lang.String");
    }
    if let Some(serde) = match case.runtime {
        "python" => Some("serde.IdentitySerDe"),
        "java" => Some("Plain"),
        _ => None,
    } {
        given["customSerdeInputs"] = json!({&input: serde});
        given["outputSerdeClassName"] = json!(serde);
    }
    let id = case.make(given).await;
    case.stage.send(&input, ["a"]).await;
    assert_eq!(
        case.outputs(&output, 1).await,
        ["a none none"],
        "{}",
        case.runtime
    );
    if case.runtime == "java" {
        case.see(&["inputTypeClassName", "outputTypeClassName"]);
    }
    match case.runtime {
        "python" | "java" => case.see(&[
            "customSerdeInputs",
            "inputSpecs.serdeClassName",
            "outputSerdeClassName",
        ]),
        _ => {}
    }
    case.stage.worker.delete(&id).await.expect("deleted");
    // It rests when nothing comes, and wakes up.
    let (input, output) = (case.topic("in"), case.topic("out"));
    let id = case.make(json!({"idleTimeoutMs": 200})).await;
    case.stage.send(&input, ["a"]).await;
    assert_eq!(case.outputs(&output, 1).await, ["a none none"]);
    let name = format!("GMG_FUNCTION={}\0", id.name);
    case.stage.until("rests", |_| !runs(&name)).await;
    case.stage.send(&input, ["b"]).await;
    assert_eq!(case.outputs(&output, 1).await, ["b none none"]);
    case.see(&["idleTimeoutMs"]);
    case.stage.worker.delete(&id).await.expect("deleted");
    let output = case.topic("out");
    let schema = json!({&output: "{\"schemaType\":\"string\"}"});
    let input = case.topic("in");
    let id = case.make(json!({"customSchemaOutputs": schema})).await;
    case.stage.send(&input, ["a"]).await;
    let mut consumer = keep(case.stage, &output).await;
    assert!(receive(&mut consumer, 1).await[0].schema_version.is_some());
    case.see(&["customSchemaOutputs"]);
    case.stage.worker.delete(&id).await.expect("deleted");
}

/// Whether any process has this in its environment.
fn runs(mark: &str) -> bool {
    processes(mark).next().is_some()
}

/// The processes with this in their environment.
pub(crate) fn processes(mark: &str) -> impl Iterator<Item = PathBuf> {
    let all = std::fs::read_dir("/proc").expect("/proc").flatten();
    all.map(|entry| entry.path())
        .filter(move |path| read_text(&path.join("environ")).contains(mark))
}

fn read_text(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

/// Whether a process is in a control group of its own.
fn in_a_group(process: &Path) -> bool {
    read_text(&process.join("cgroup")) != read_text(Path::new("/proc/self/cgroup"))
}

/// Whether no file of a process can be larger than `resources.disk` of the sample, a byte.
fn writes_no_large_file(process: &Path) -> bool {
    let limits = read_text(&process.join("limits"));
    let mut words = limits
        .lines()
        .filter_map(|line| line.strip_prefix("Max file size"));
    words
        .next()
        .is_some_and(|line| line.split_whitespace().next() == Some("1"))
}

/// Waits until the function's process is held so.
async fn held(case: &mut Case<'_>, field: &str, is_held: fn(&Path) -> bool) {
    let (input, output) = (case.topic("in"), case.topic("out"));
    let gate = case
        .stage
        .directory
        .path()
        .join(format!("gate-{}", case.number));
    let id = case.make(sample(field)).await;
    let wait = format!("wait:{}", gate.display());
    case.stage.send(&input, [wait.as_str()]).await;
    let mark = format!("GMG_FUNCTION={}\0", id.name);
    case.stage
        .until("held", |_| processes(&mark).any(|at| is_held(&at)))
        .await;
    std::fs::write(&gate, "").expect("opened");
    assert_eq!(case.outputs(&output, 1).await.len(), 1);
    case.stage.worker.delete(&id).await.expect("deleted");
}

/// Whether the status of a function with this field warns of it.
async fn is_warned_of(case: &mut Case<'_>, field: &str) -> bool {
    let Ok(config) = serde_json::from_value::<FunctionConfig>(case.config(sample(field))) else {
        return false;
    };
    let Ok(id) = case.stage.worker.create(config.into(), None).await else {
        return false;
    };
    let said = case.stage.worker.status(&id).expect("there").warnings;
    case.stage.worker.delete(&id).await.expect("deleted");
    let name = field.rsplit('.').next().unwrap_or(field);
    said.iter()
        .any(|why| why.contains(&format!("`{name}")) || why.contains(&format!(".{name}")))
}

/// Whether a field is refused, and by its name.
fn is_refused(case: &mut Case<'_>, field: &str) -> bool {
    let config = case.config(sample(field));
    // A field that takes no text is in no list of refusals.
    let Ok(config) = serde_json::from_value::<FunctionConfig>(config) else {
        return false;
    };
    let said = geminga_functions::check(&config.into())
        .err()
        .unwrap_or_default();
    let name = field.rsplit('.').next().unwrap_or(field);
    said.iter()
        .any(|reason| reason.contains(&format!("`{name}")) || reason.contains(&format!(".{name}")))
}

async fn code(stage: &Stage, runtime: &str) -> (PathBuf, PathBuf) {
    match runtime {
        "bash" => {
            let echo = stage.file("Echo.sh", BASH);
            let window = stage.file("Window.sh", "mapfile -t all; echo \"${all[*]}\"\n");
            (echo, window)
        }
        "python" => {
            let path = stage.file("Echo.py", PYTHON);
            (path.clone(), path)
        }
        "go" => {
            let (echo, window) = (
                stage.file("echo.go", GO),
                stage.file("window.go", GO_WINDOW),
            );
            (echo, window)
        }
        "exec" => {
            let path = stage.file("echo", EXEC);
            let made = Command::new("chmod").arg("+x").arg(&path).status();
            assert!(made.is_ok_and(|status| status.success()));
            (path.clone(), path)
        }
        _ => {
            let source = stage.file("Echo.java", JAVA);
            let jar = jar(&source).await;
            (jar.clone(), jar)
        }
    }
}

/// One column of the page.
async fn column(runtime: &'static str) {
    let stage = Stage::new().await;
    let (code, window_code) = code(&stage, runtime).await;
    let mut case = Case {
        stage: &stage,
        runtime,
        code,
        window_code,
        seen: BTreeSet::new(),
        number: 0,
    };
    common(&mut case).await;
    subscriptions(&mut case).await;
    the_rest(&mut case).await;
    under_way(&mut case).await;
    special(&mut case).await;
    let mut found = BTreeMap::new();
    for field in all_fields() {
        let word = match (case.seen.contains(&field), is_refused(&mut case, &field)) {
            // Some of its values only.
            (true, true) if field.ends_with("consumerProperties") => "in part",
            (true, _) => "yes",
            (false, true) => "refused",
            (false, false) if is_warned_of(&mut case, &field).await => match &*field {
                "resources.cpu" | "resources.disk" => BY_THE_MACHINE,
                _ => "warned",
            },
            (false, false) if field == "resources.cpu" => {
                held(&mut case, &field, in_a_group).await;
                BY_THE_MACHINE
            }
            (false, false) if field == "resources.disk" => {
                held(&mut case, &field, writes_no_large_file).await;
                "yes"
            }
            (false, false) => "neither seen nor refused by name",
        };
        found.insert(field, word.to_owned());
    }
    let holes: Vec<_> = found
        .iter()
        .filter(|(_, word)| word.starts_with("neither"))
        .collect();
    assert!(holes.is_empty(), "{runtime}: {holes:#?}");
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/functions-matrix.md");
    let at = RUNTIMES
        .iter()
        .position(|name| *name == runtime)
        .expect("a runtime");
    let page = {
        static ONE_AT_A_TIME: parking_lot::Mutex<()> = parking_lot::Mutex::new(());
        let _one = ONE_AT_A_TIME.lock();
        let mut table = read(&std::fs::read_to_string(&path).unwrap_or_default());
        if std::env::var("GEMINGA_WRITE_MATRIX").is_ok() {
            for (field, word) in &found {
                table.entry(field.clone()).or_default()[at].clone_from(word);
            }
            std::fs::write(&path, write(&table)).expect("written");
        }
        table
    };
    let there: BTreeMap<String, String> = page
        .into_iter()
        .map(|(field, row)| (field, row[at].clone()))
        .collect();
    assert_eq!(
        there, found,
        "docs/functions-matrix.md is stale: GEMINGA_WRITE_MATRIX=1 writes it"
    );
    stage.end().await;
}

type Table = BTreeMap<String, [String; RUNTIMES.len()]>;

fn read(page: &str) -> Table {
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    let row = |line: &str| {
        let mut cells = line
            .trim_matches('|')
            .split('|')
            .map(|cell| cell.trim().to_owned());
        let field = cells.next().unwrap_or_default();
        let mut row: [String; RUNTIMES.len()] = Default::default();
        row.iter_mut().zip(cells).for_each(|(at, cell)| *at = cell);
        (field.trim_matches('`').to_owned(), row)
    };
    rows.map(row).collect()
}

/// In the order in which the fields are declared.
fn write(table: &Table) -> String {
    let mut page = String::from(PAGE);
    for field in all_fields() {
        if let Some(row) = table.get(&field) {
            _ = writeln!(page, "| `{field}` | {} |", row.join(" | "));
        }
    }
    page
}

#[tokio::test]
async fn of_bash() {
    column("bash").await;
}

#[tokio::test]
async fn of_python() {
    column("python").await;
}

#[tokio::test]
async fn of_exec() {
    column("exec").await;
}

#[tokio::test]
async fn of_go() {
    column("go").await;
}

#[tokio::test]
async fn of_java() {
    column("java").await;
}

const PAGE: &str = "\
# Which field works where

Made by a test that runs a function of each runtime with each field (`crates/functions/tests/it/matrix.rs`), and looks for the
field's effect. `refused`: creation fails, and the answer names the field. `in part`: the answer names what is not taken. `warned`: it is
taken, since files for Pulsar and Kubernetes have it, it has no effect, and the status of the function says so and why. `yes or warned`: enforced where
the machine has control groups for the worker, or a warning. Code in Pulsar's own instance has [a page of its own](functions-matrix-compat.md).

| field | bash | python | exec | go | java |
|---|---|---|---|---|---|
";
