//! Every field of `SourceConfig` and `SinkConfig`: its effect is seen in a run, or it is refused by its name at creation. What the run finds is
//! `docs/connectors-matrix.md`; `GEMINGA_WRITE_MATRIX=1` writes it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use geminga_client::{Schema, SchemaType, ServerError};
use geminga_functions::{Component, Worker, WorkerConfig};
use geminga_model::{
    ConsumerConfig, ProducerConfig, Resources, SinkConfig, SourceConfig, TopicName,
};
use serde_json::{Value, json};

use crate::column::fields::fields;
use crate::stage::{Stage, numbers, receive, texts};

/// The fields of a configuration, those of objects within with their path.
fn all_fields(outer: Vec<&'static str>) -> Vec<String> {
    let mut all = Vec::new();
    for name in outer {
        let within = match name {
            "inputSpecs" => fields::<ConsumerConfig>(),
            "producerConfig" => fields::<ProducerConfig>(),
            "resources" => fields::<Resources>(),
            // Geminga's own note, which nobody writes.
            "mesh" => continue,
            _ => {
                all.push(name.to_owned());
                continue;
            }
        };
        all.extend(within.into_iter().map(|field| format!("{name}.{field}")));
    }
    // An alias that serde tells as a field of its own.
    all.retain(|name| !name.ends_with(".isRegexPattern"));
    all
}

/// A value for the question whether a field is refused.
fn sample(field: &str) -> Value {
    let crypto = json!({"cryptoKeyReaderClassName": "my.Reader", "encryptionKeys": ["k"]});
    let given = match field {
        "cryptoConfig" => crypto.clone(),
        "producerConfig.cryptoConfig" => crypto,
        "producerConfig.useThreadLocalProducers" | "inputSpecs.poolMessages" => json!(true),
        "inputSpecs.cryptoConfig" => crypto,
        "inputSpecs.schemaProperties" => {
            let typed = json!({"schemaType": "string", "schemaProperties": {"a": "b"}});
            return json!({"inputSpecs": {"in": typed}});
        }
        "topicToSchemaProperties" => json!({"a": "b"}),
        "inputSpecs.consumerProperties" => json!({"ackTimeoutMillis": "5"}),
        "inputSpecs.schemaType" => json!("string"),
        "topicToSerdeClassName" => json!({"in": "my.Serde"}),
        "topicToSchemaType" => json!({"in": "string"}),
        "producerConfig.batchBuilder" | "batchBuilder" => json!("KEY_BASED"),
        "batchSourceConfig" => json!({"discoveryTriggererClassName": "my.Trigger"}),
        "configs" => json!({"no-such-setting": 1}),
        "secrets" => json!({"token": "x"}),
        "resources.cpu" | "resources.ram" | "resources.disk" => json!(2),
        "negativeAckRedeliveryDelayMs" => {
            return json!({"maxMessageRetries": 1, "negativeAckRedeliveryDelayMs": 2});
        }
        "processingGuarantees" => json!("EFFECTIVELY_ONCE"),
        "parallelism" | "timeoutMs" => json!(2),
        "maxMessageRetries" => json!(1),
        "autoAck" => json!(false),
        "customRuntimeOptions" | "transformFunctionConfig" => json!("{}"),
        _ => json!("my.Thing"),
    };
    match field.split_once('.') {
        None => json!({field: given}),
        Some(("inputSpecs", inner)) => json!({"inputSpecs": {"in": {inner: given}}}),
        Some((outer, inner)) => json!({outer: {inner: given}}),
    }
}

/// One kind of component, with what was seen of it.
struct Kind {
    base: Value,
    component: fn(Value) -> Option<Component>,
    seen: BTreeSet<String>,
}

impl Kind {
    fn see(&mut self, fields: &[&str]) {
        self.seen
            .extend(fields.iter().map(|field| (*field).to_owned()));
    }

    fn word(&self, field: &str) -> &'static str {
        let seen = self.seen.contains(field);
        let mut config = self.base.clone();
        for (name, value) in sample(field).as_object().expect("fields") {
            config[name] = value.clone();
        }
        config["name"] = json!(format!("word-{}", field.replace('.', "-").to_lowercase()));
        let last = field.rsplit('.').next().unwrap_or(field);
        let named = |said: &[String]| {
            let marks = [format!("`{last}"), format!(".{last}")];
            said.iter()
                .any(|why| marks.iter().any(|mark| why.contains(mark)))
        };
        let Some(component) = (self.component)(config) else {
            return if seen { "yes" } else { "neither" };
        };
        let refused = geminga_functions::check(&component)
            .err()
            .unwrap_or_default();
        match (seen, named(&refused)) {
            (true, true) => "in part",
            (false, true) => "refused",
            (true, false) => "yes",
            (false, false) => "neither",
        }
    }
}

fn source(config: Value) -> Option<Component> {
    serde_json::from_value::<SourceConfig>(config)
        .ok()
        .map(Component::from)
}

fn sink(config: Value) -> Option<Component> {
    serde_json::from_value::<SinkConfig>(config)
        .ok()
        .map(Component::from)
}

/// What the entries of a topic are packed with, and how many messages the largest has.
async fn packing(stage: &Stage, topic: &str) -> (Option<i32>, i32) {
    let name: TopicName = topic.parse().expect("a topic");
    let entries = stage
        .broker()
        .peek(&name, "test", 100)
        .await
        .expect("peeked");
    let (mut compression, mut most) = (None, 0);
    for entry in &entries {
        let metadata = geminga_proto::message::decode_metadata(&entry.block).expect("metadata");
        compression = metadata.compression;
        most = most.max(metadata.num_messages_in_batch.unwrap_or(1));
    }
    (compression, most)
}

async fn sources(stage: &Stage) -> Kind {
    let lines = stage.file("lines", &numbers(0..40).join("\n"));
    let base = json!({"sourceType": "file", "topicName": stage.topic("base"), "configs": {"path": &lines}});
    let mut kind = Kind {
        base,
        component: source,
        seen: BTreeSet::new(),
    };
    for (at, (given, fields)) in [
        (json!({"schemaType": "string"}),
            &["schemaType", "tenant", "namespace", "name", "topicName", "sourceType", "configs"][..]),
        (json!({"producerConfig": {"compressionType": "ZSTD"}, "sourceType": null, "archive": "builtin://file"}),
            &["producerConfig.compressionType", "archive"]),
        (json!({"producerConfig": {"maxPendingMessages": 3}}), &["producerConfig.maxPendingMessages"]),
        (json!({"producerConfig": {"maxPendingMessagesAcrossPartitions": 3}}), &["producerConfig.maxPendingMessagesAcrossPartitions"]),
    ].into_iter().enumerate() {
        let topic = stage.topic(&format!("source-{at}"));
        let mut out = stage.consumer(&topic).await;
        let mut config = kind.base.clone();
        for (name, value) in given.as_object().expect("fields") {
            config[name] = value.clone();
        }
        for (name, value) in [("tenant", "public"), ("namespace", "default"), ("name", &format!("source-{at}")), ("topicName", &topic)] {
            config[name] = json!(value);
        }
        let id = stage.source(config).await;
        assert_eq!(id.fqfn(), format!("public/default/source-{at}"));
        let mut got = Vec::new();
        let (mut compression, mut most) = (None, 0);
        while got.len() < 40 {
            if got.is_empty() {
                // Before anything is acknowledged.
                got.push(out.recv().await.expect("open"));
                stage.until("all are stored", |worker| worker.status(&id).is_ok_and(|s| s.instances[0].status.num_written == 40)).await;
                (compression, most) = packing(stage, &topic).await;
            }
            got.extend(out.recv_batch(40 - got.len()).await.expect("open"));
        }
        assert_eq!(texts(&got), numbers(0..40));
        match at {
            0 => {
                assert!(got[0].schema_version.is_some(), "it names the schema");
                let schema = stage.client.schema(&topic).await.expect("answered");
                assert_eq!(schema, Some(Schema::string()));
            }
            1 => assert_eq!(compression, Some(3), "ZSTD"),
            _ => assert!(most <= 3, "{most} messages in an entry"),
        }
        kind.see(fields);
        stage.worker.delete(&id).await.expect("deleted");
    }
    cut_off(stage).await;
    kind.see(&["processingGuarantees"]);
    let logs = stage.topic("source-logs");
    let mut said = stage.consumer(&logs).await;
    let mut config = kind.base.clone();
    config["name"] = json!("logged");
    config["logTopic"] = json!(&logs);
    let id = stage.source(config).await;
    let line = receive(&mut said, 1).await.remove(0);
    assert_eq!(&line.payload[..], b"started");
    assert_eq!(line.property("fqn"), Some("public/default/logged"));
    kind.see(&["logTopic"]);
    stage.worker.delete(&id).await.expect("deleted");
    kind
}

/// What a sink can not take is tried as often, and in such pauses, as is asked for, and its log topic says so.
async fn tried_again(stage: &Stage, kind: &mut Kind) {
    let topic = |name: &str| stage.topic(&format!("sink-again-{name}"));
    let (input, dead, logs) = (topic("in"), topic("dead"), topic("logs"));
    let path = stage.directory.path().join("sink-again");
    let mut letters = stage.consumer(&dead).await;
    let mut said = stage.consumer(&logs).await;
    let mut config = kind.base.clone();
    for (name, value) in [
        ("name", json!("again")),
        ("inputs", json!([&input])),
        ("configs", json!({"path": &path})),
        ("deadLetterTopic", json!(&dead)),
        ("logTopic", json!(&logs)),
        ("maxMessageRetries", json!(2)),
        ("negativeAckRedeliveryDelayMs", json!(100)),
    ] {
        config[name] = value;
    }
    let id = stage.sink(config).await;
    let began = std::time::Instant::now();
    stage.send(&input, ["no\nline", "line"]).await;
    let letter = receive(&mut letters, 1).await.remove(0);
    // A pause of 100 ms, and one that is longer; both may be shorter by a part.
    assert!(began.elapsed() >= Duration::from_millis(150));
    assert_eq!(&letter.payload[..], b"no\nline");
    assert_eq!(letter.property("geminga.attempts"), Some("3"));
    in_file(stage, &path, "line\n").await;
    let status = stage.worker.status(&id).expect("there");
    let status = &status.instances[0].status;
    assert_eq!((status.num_retried, status.num_dead_lettered), (2, 1));
    let lines = receive(&mut said, 4).await;
    let levels: Vec<_> = lines.iter().map(|it| it.property("loglevel")).collect();
    let want = ["INFO", "WARN", "WARN", "ERROR"].map(Some);
    assert_eq!(levels, want);
    let last = String::from_utf8_lossy(&lines[3].payload).into_owned();
    assert!(
        last.contains("given up after 3 attempts") && last.contains("newline"),
        "{last}"
    );
    kind.see(&[
        "maxMessageRetries",
        "negativeAckRedeliveryDelayMs",
        "logTopic",
    ]);
    stage.worker.delete(&id).await.expect("deleted");
}

/// At most once: a file is acknowledged, and so put away, before its lines are stored; at least once it stays until then.
async fn cut_off(stage: &Stage) {
    let (client, gate) = stage.gated();
    let mut config = WorkerConfig::new(client.clone(), stage.directory.path().join("cut-off"));
    config.catalog_topic = Some(stage.topic("cut-off-catalog"));
    config.temp_dir = Some(stage.directory.path().to_path_buf());
    let worker = Worker::start(config).await.expect("worker");
    for guarantees in ["ATLEAST_ONCE", "ATMOST_ONCE"] {
        let name = guarantees.to_lowercase();
        let directory = stage.directory.path().join(&name);
        let (first, file) = (directory.join("first"), directory.join("lines"));
        // The whole file appears at once.
        let put = |file: &Path, text: &str| {
            std::fs::rename(stage.file("next", text), file).expect("moved");
        };
        std::fs::create_dir(&directory).expect("made");
        put(&first, "a\n");
        let topic = stage.topic(&name);
        let source: SourceConfig = serde_json::from_value(
            json!({"name": &name, "sourceType": "file", "topicName": &topic,
            "processingGuarantees": guarantees, "configs": {"inputDirectory": &directory}}),
        )
        .expect("a config");
        let id = worker
            .create(Component::from(source), None)
            .await
            .expect("created");
        let mut out = stage.consumer(&topic).await;
        assert_eq!(texts(&receive(&mut out, 1).await), ["a"]);
        stage.until("put away", |_| !first.exists()).await;
        gate.send_replace(false);
        put(&file, "b\n");
        if guarantees == "ATMOST_ONCE" {
            stage.until("put away unsent", |_| !file.exists()).await;
        } else {
            let received = || {
                worker.status(&id).expect("there").instances[0]
                    .status
                    .num_received
            };
            stage.until("it is read", |_| received() == 2).await;
            assert!(file.exists(), "it is not stored");
        }
        gate.send_replace(true);
        assert_eq!(texts(&receive(&mut out, 1).await), ["b"]);
        stage.until("put away", |_| !file.exists()).await;
        worker.delete(&id).await.expect("deleted");
    }
    worker.shutdown(Duration::from_secs(5)).await;
    client.close().await;
}

async fn in_file(stage: &Stage, path: &Path, wanted: &str) {
    let has = |path: &Path| std::fs::read_to_string(path).is_ok_and(|text| text == wanted);
    stage
        .until(&format!("`{wanted}` in the file"), |_| has(path))
        .await;
}

async fn sinks(stage: &Stage) -> Kind {
    let base = json!({"sinkType": "file", "inputs": [stage.topic("base-in")],
        "configs": {"path": stage.directory.path().join("base")}});
    let mut kind = Kind {
        base,
        component: sink,
        seen: BTreeSet::new(),
    };
    let (named, other) = (stage.topic("sink-named"), stage.topic("sink-other"));
    let stem = stage.topic("sink-oth");
    let pattern = format!("{}.*", stem.rsplit_once('-').expect("a name").0);
    let dead = stage.topic("sink-dead");
    let mut letters = stage.consumer(&dead).await;
    drop(stage.consumer(&named).await);
    drop(stage.consumer(&other).await);
    stage.send(&named, ["early"]).await;
    stage.send(&other, ["early"]).await;
    for (at, (given, input, kind_of, see)) in [
        (json!({"inputs": [&named], "sourceSubscriptionName": "sub", "sourceSubscriptionPosition": "Earliest", "retainOrdering": true,
            "maxMessageRetries": 0, "deadLetterTopic": &dead, "processingGuarantees": "ATMOST_ONCE", "cleanupSubscription": true}),
            &named, "Failover", &["inputs", "sourceSubscriptionName", "sourceSubscriptionPosition", "retainOrdering", "configs", "sinkType",
            "tenant", "namespace", "name", "processingGuarantees"][..]),
        (json!({"inputs": null, "topicsPattern": &pattern, "sourceSubscriptionName": "kept", "sourceSubscriptionPosition": "Earliest",
            "retainKeyOrdering": true, "sinkType": null, "archive": "builtin://file", "cleanupSubscription": false}),
            &other, "Key_Shared", &["topicsPattern", "retainKeyOrdering", "archive", "cleanupSubscription"]),
        (json!({"inputs": null, "inputSpecs": {&pattern: {"regexPattern": true, "receiverQueueSize": 3,
            "consumerProperties": {"consumerName": "my-name"}}}, "sourceSubscriptionName": "sub", "sourceSubscriptionPosition": "Earliest",
            "maxMessageRetries": 0, "deadLetterTopic": &dead, "autoAck": true}),
            &other, "Shared", &["inputSpecs.regexPattern", "inputSpecs.receiverQueueSize", "inputSpecs.consumerProperties", "deadLetterTopic"]),
    ].into_iter().enumerate() {
        let path = stage.directory.path().join(format!("sink-{at}"));
        let mut config = kind.base.clone();
        for (name, value) in given.as_object().expect("fields") {
            config[name] = value.clone();
        }
        config["tenant"] = json!("public");
        config["namespace"] = json!("default");
        config["name"] = json!(format!("sink-{at}"));
        config["configs"]["path"] = json!(&path);
        let name = config["sourceSubscriptionName"].clone();
        let name = name.as_str().expect("a name");
        let id = stage.sink(config).await;
        assert_eq!(id.fqfn(), format!("public/default/sink-{at}"));
        in_file(stage, &path, "early\n").await;
        let topic: TopicName = input.parse().expect("a topic");
        let stats = stage.broker().topic_stats(&topic).await.expect("stats");
        let stats = serde_json::to_value(stats).expect("JSON");
        let subscription = &stats["subscriptions"][name];
        assert_eq!(subscription["type"], kind_of);
        if at == 0 {
            // Acknowledged before it failed: of it there is no letter, and the next one's is the first.
            stage.send(input, ["not\nthere", "line"]).await;
            in_file(stage, &path, "early\nline\n").await;
        }
        if at == 2 {
            let consumer = &subscription["consumers"][0];
            assert_eq!(consumer["consumerName"], "my-name");
            let permits = consumer["availablePermits"].as_i64();
            assert!(permits.is_some_and(|permits| permits <= 3), "{consumer}");
            stage.send(input, ["no\nline", "line"]).await;
            let letter = receive(&mut letters, 1).await.remove(0);
            assert_eq!(&letter.payload[..], b"no\nline");
            in_file(stage, &path, "early\nline\n").await;
        }
        kind.see(see);
        stage.worker.delete(&id).await.expect("deleted");
        let stats = stage.broker().topic_stats(&topic).await.expect("stats");
        let stats = serde_json::to_value(stats).expect("JSON");
        let is_there = !stats["subscriptions"][name].is_null();
        assert_eq!(is_there, at == 1, "it is cleaned up where this is not forbidden");
    }
    // Two instances, of the sink that may have them.
    let input = stage.topic("sink-table");
    let id = stage.sink(json!({"name": "table", "sinkType": "table", "inputs": [&input], "parallelism": 2, "sourceSubscriptionName": "sub"})).await;
    let topic: TopicName = input.parse().expect("a topic");
    let stats = stage.broker().topic_stats(&topic).await.expect("stats");
    let stats = serde_json::to_value(stats).expect("JSON");
    assert_eq!(
        stats["subscriptions"]["sub"]["consumers"]
            .as_array()
            .map(Vec::len),
        Some(2)
    );
    kind.see(&["parallelism"]);
    stage.worker.delete(&id).await.expect("deleted");
    typed_sinks(stage, &mut kind).await;
    tried_again(stage, &mut kind).await;
    kind
}

/// A new topic is what its first reader says, and takes no other from then on.
async fn typed_sinks(stage: &Stage, kind: &mut Kind) {
    let (defined, named) = (stage.topic("sink-defined"), stage.topic("sink-typed"));
    let definition = r#"{"type":"record","name":"Word","fields":[]}"#;
    let properties = json!({"schema": definition, "a": "b"});
    let own = [("a".to_owned(), "b".to_owned())];
    for (given, topic, schema, see) in [
        (
            json!({"inputs": null, "inputSpecs": {&defined: {"schemaType": "avro", "schemaProperties": properties}}}),
            &defined,
            Schema::new(SchemaType::Avro, "Word", definition, own),
            &["inputSpecs.schemaType", "inputSpecs.schemaProperties"][..],
        ),
        (
            json!({"inputs": null, "topicToSchemaType": {&named: "INT64"}}),
            &named,
            Schema::of(SchemaType::Int64),
            &["topicToSchemaType"],
        ),
    ] {
        let mut config = kind.base.clone();
        for (name, value) in given.as_object().expect("fields") {
            config[name] = value.clone();
        }
        config["name"] = json!("typed");
        let id = stage.sink(config).await;
        let has = stage.client.schema(topic).await.expect("answered");
        assert_eq!(has, Some(schema));
        let other = stage.client.producer(topic).schema(Schema::string());
        let refused = other.build().await.err();
        let code = refused.and_then(|error| error.server_error());
        assert_eq!(code, Some(ServerError::IncompatibleSchema));
        kind.see(see);
        stage.worker.delete(&id).await.expect("deleted");
    }
}

#[tokio::test]
async fn each_field_is_honoured_or_refused() {
    let stage = Stage::new().await;
    let mut page = String::from(PAGE);
    let mut holes = Vec::new();
    for (title, kind, outer) in [
        ("Sources", sources(&stage).await, fields::<SourceConfig>()),
        ("Sinks", sinks(&stage).await, fields::<SinkConfig>()),
    ] {
        _ = write!(page, "\n## {title}\n\n| field | |\n|---|---|\n");
        for field in all_fields(outer) {
            let word = kind.word(&field);
            if word == "neither" {
                holes.push(format!("{title}: {field}"));
            }
            _ = writeln!(page, "| `{field}` | {word} |");
        }
    }
    assert!(
        holes.is_empty(),
        "neither seen nor refused by name: {holes:#?}"
    );
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/connectors-matrix.md");
    if std::env::var("GEMINGA_WRITE_MATRIX").is_ok() {
        std::fs::write(&path, &page).expect("written");
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        there, page,
        "docs/connectors-matrix.md is stale: GEMINGA_WRITE_MATRIX=1 writes it"
    );
    stage.end().await;
}

const PAGE: &str = "\
# Which field of sources and sinks works

Made by a test that runs the built-in connectors with each field (`crates/functions/tests/it/connectors.rs`), and looks for the field's
effect. `refused`: creation fails, and the answer names the field. `in part`: the answer names the values that are not taken. Of `parallelism`
and `processingGuarantees` the file source takes 1 and no `EFFECTIVELY_ONCE`. Of `resources` what Pulsar's workers fill in is taken (1 core,
1 GiB, 10 GiB), of `className` the connector's own, and `negativeAckRedeliveryDelayMs` goes with `maxMessageRetries`: it is the first of pauses that grow.
";

/// What is acknowledged is in the file, also when a dead letter of the same turn can not be written.
#[tokio::test]
async fn a_letter_that_fails_takes_no_lines_along() {
    let stage = Stage::new().await;
    let (input, letters) = (stage.topic("in"), stage.topic("dead"));
    let path = stage.directory.path().join("lines");
    let id = stage
        .sink(json!({"name": "lines", "sinkType": "file", "inputs": [&input], "deadLetterTopic": &letters, "maxMessageRetries": 0,
            "configs": {"path": &path}}))
        .await;
    stage.send(&input, ["not\none line"]).await;
    stage.drained().await;
    let topic: TopicName = letters.parse().expect("a topic");
    stage.broker().terminate(&topic).await.expect("ended");
    stage.send(&input, ["a", "b", "neither\none line"]).await;
    stage
        .until("it fails again and again", |worker| {
            let status = worker.status(&id).expect("status");
            status.instances[0].status.num_restarts > 1
        })
        .await;
    in_file(&stage, &path, "a\nb\n").await;
    stage.end().await;
}
