//! Every field of `FunctionConfig` in the runtime `compat`: the worker honours it, or Pulsar's instance is told it,
//! or it is refused by its name. What is found is `docs/functions-matrix-compat.md`.
//!
//! A field of which nothing is seen fails this test, and so does a page that says anything else
//! (`GEMINGA_WRITE_MATRIX=1` writes it). The names of the fields are those of `docs/functions-matrix.md`, whose
//! test takes them from the configuration itself.

use std::fmt::Write as _;
use std::path::PathBuf;

use geminga_model::FunctionConfig;
use serde_json::{Value, json};

use super::command::{Start, go_conf, java_flags};
use crate::plan::{Input, Kind, Plan, Process, plan};

const PAGE: &str = "\
# Which field works in Pulsar's own instance

The runtime `compat` runs [Go programs](guide/go.md#programs-with-pulsars-own-instance) and [jars](guide/java.md#in-pulsars-own-instance) in the instance that Pulsar has for them,
which reads, writes and acknowledges by itself. Made by a test (`crates/functions/src/compat/matrix.rs`) that looks at what becomes of each field.

- `yes`: Geminga's worker does it.
- `told`: the worker passes it on in Pulsar's words, and what the instance makes of it is what it makes of it on Pulsar.
- `refused`: creation fails, and the answer names the field. `in part`: the answer names what is not taken.
- `warned`: taken, since `pulsar-admin` always sends it, and without an effect, as the status says.
- `yes or warned`: enforced where the machine has control groups for the worker, or the status says that it is not.

For the other runtimes there is [a page of its own](functions-matrix.md).

| field | Go | Java |
|---|---|---|
";

fn page_of(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs")
        .join(name)
}

fn fields() -> Vec<String> {
    let page = std::fs::read_to_string(page_of("functions-matrix.md")).expect("the page");
    let name = |line: &str| Some(line.strip_prefix("| `")?.split('`').next()?.to_owned());
    page.lines().filter_map(name).collect()
}

/// Values of a field, of which none is what counts without it.
fn samples(field: &str) -> Vec<Value> {
    let input = |spec: Value| vec![json!({"inputs": null, "inputSpecs": {"in": spec}})];
    let producer = |spec: Value| vec![json!({"producerConfig": spec})];
    let crypto = json!({"cryptoKeyReaderClassName": "my.Reader", "encryptionKeys": ["k"]});
    match field {
        "inputs" => vec![json!({field: ["another"]})],
        "topicsPattern" => {
            vec![json!({"inputs": null, field: "persistent://public/default/a.*"})]
        }
        "customSerdeInputs" => vec![json!({"inputs": null, field: {"in": "my.Serde"}})],
        "customSchemaInputs" => {
            vec![json!({"inputs": null, field: {"in": "{\"schemaType\":\"string\"}"}})]
        }
        "customSchemaOutputs" => vec![json!({field: {"out": "{\"schemaType\":\"string\"}"}})],
        "inputSpecs.schemaType" => input(json!({"schemaType": "string"})),
        "inputSpecs.serdeClassName" => input(json!({"serdeClassName": "my.Serde"})),
        "inputSpecs.regexPattern" => vec![json!({"inputs": null,
            "inputSpecs": {"persistent://public/default/a.*": {"regexPattern": true}}})],
        "inputSpecs.schemaProperties" => input(json!({"schemaProperties": {"a": "b"}})),
        "inputSpecs.consumerProperties" => [
            input(json!({"consumerProperties": {"readCompacted": "true"}})),
            input(json!({"consumerProperties": {"ackTimeoutMillis": "5"}})),
        ]
        .concat(),
        "inputSpecs.receiverQueueSize" => input(json!({"receiverQueueSize": 3})),
        "inputSpecs.cryptoConfig" => input(json!({"cryptoConfig": crypto})),
        "inputSpecs.poolMessages" => input(json!({"poolMessages": true})),
        "producerConfig.maxPendingMessages" => producer(json!({"maxPendingMessages": 3})),
        "producerConfig.maxPendingMessagesAcrossPartitions" => {
            producer(json!({"maxPendingMessagesAcrossPartitions": 3}))
        }
        "producerConfig.useThreadLocalProducers" => {
            producer(json!({"useThreadLocalProducers": true}))
        }
        "producerConfig.cryptoConfig" => producer(json!({"cryptoConfig": crypto})),
        "producerConfig.batchBuilder" => producer(json!({"batchBuilder": "KEY_BASED"})),
        "producerConfig.compressionType" => producer(json!({"compressionType": "ZSTD"})),
        "batchBuilder" => vec![json!({field: "KEY_BASED"})],
        "processingGuarantees" => ["ATMOST_ONCE", "EFFECTIVELY_ONCE", "MANUAL"]
            .map(|it| json!({field: it}))
            .to_vec(),
        "outputSchemaType" => vec![json!({field: "string"})],
        // Whichever is not the default.
        "forwardSourceMessageProperty" => vec![json!({field: true}), json!({field: false})],
        "retainOrdering"
        | "retainKeyOrdering"
        | "skipToLatest"
        | "exposePulsarAdminClientEnabled" => vec![json!({field: true})],
        "cleanupSubscription" | "autoAck" => vec![json!({field: false})],
        "userConfig" | "secrets" => vec![json!({field: {"a": "b"}})],
        "maxMessageRetries" => vec![json!({field: 3})],
        "deadLetterTopic" => vec![json!({field: "dead", "maxMessageRetries": 3})],
        "subscriptionPosition" => vec![json!({field: "Earliest"})],
        "parallelism" => vec![json!({field: 2})],
        "resources.cpu" => vec![json!({"resources": {"cpu": 0.5}})],
        "resources.ram" | "resources.disk" => {
            vec![json!({"resources": {&field["resources.".len()..]: 999_000_000}})]
        }
        "windowConfig" => vec![json!({field: {"windowLengthCount": 3}})],
        "timeoutMs" | "retryBackoffMs" | "idleTimeoutMs" | "maxPendingAsyncRequests" => {
            vec![json!({field: 1500})]
        }
        "fqfn" => vec![json!({"name": null, field: "a/b/c"})],
        "customRuntimeOptions" => [
            r#"{"runtime":"compat","env":{"A":"b"}}"#,
            r#"{"runtime":"compat","window":3}"#,
        ]
        .map(|it| json!({field: it}))
        .to_vec(),
        "jar" | "py" | "go" | "sh" | "exec" | "wasm" => vec![json!({field: "another.file"})],
        _ => vec![json!({field: "my.Thing"})],
    }
}

fn config(kind: Kind, given: &Value) -> FunctionConfig {
    let mut all = json!({"name": "f", "inputs": ["in"], "output": "out",
        "customRuntimeOptions": r#"{"runtime":"compat"}"#});
    match kind {
        Kind::Go => all["go"] = json!("program"),
        Kind::Java => {
            all["jar"] = json!("f.jar");
            all["className"] = json!("a.F");
        }
    }
    for (field, value) in given.as_object().expect("fields") {
        match value.is_null() {
            true => drop(all.as_object_mut().and_then(|all| all.remove(field))),
            false => all[field] = value.clone(),
        }
    }
    serde_json::from_value(all).expect("a configuration")
}

/// What the process is told.
fn told(plan: &Plan) -> String {
    let Process::Compat(compat) = &plan.process else {
        panic!("another runtime");
    };
    let start = Start {
        service_url: "pulsar://h",
        token_file: None,
        port: 1,
        metrics_port: 2,
        spec: &compat.spec,
    };
    match compat.kind {
        Kind::Go => {
            let mut conf = go_conf(&compat.details, &start);
            // Versions that read it whole do not read more of it than what stands beside it.
            conf["functionDetails"] = Value::Null;
            conf.to_string()
        }
        Kind::Java => java_flags(&compat.details, &start).join(" "),
    }
}

/// What the worker itself makes of the configuration.
fn done(plan: &Plan) -> String {
    let spec = plan.process.spec().expect("there is code");
    let position = match &plan.input {
        Input::Topics(subscription) => subscription.position,
        Input::File(_) => panic!("a function"),
    };
    let (share, heap, code) = (spec.share, spec.heap_bytes, &spec.code.path);
    let (flags, secrets) = (&spec.runtime_flags, &plan.secrets);
    // Of these it makes nothing: they are for hosts of ours, and the one is told.
    let options = crate::runtime::Options {
        timeout_ms: 0,
        window: None,
        ..spec.options.clone()
    };
    let (instances, cleans) = (spec.instances, plan.cleanup_subscription);
    format!(
        "{position:?} {cleans} {share:?} {heap:?} {code:?} {options:?} {flags:?} {secrets:?} {instances}"
    )
}

/// One cell of the page.
fn word(kind: Kind, field: &str) -> &'static str {
    let by_default = plan(&config(kind, &json!({})).into(), None).expect("accepted");
    let name = field.rsplit('.').next().unwrap_or(field);
    let (mut refused, mut is_done, mut is_told, mut warned) = (false, false, false, false);
    if field == "runtime" {
        // Every function has it; it says the same as the code.
        let (own, other) = match kind {
            Kind::Go => ("GO", "JAVA"),
            Kind::Java => ("JAVA", "GO"),
        };
        let with = |runtime| plan(&config(kind, &json!({field: runtime})).into(), None);
        assert!(with(own).is_ok() && with(other).is_err());
        return "yes";
    }
    if field == "functionType" {
        // It is the code: a file that the worker has taken in by then.
        let given = json!({"go": null, "jar": null, "functionType": "echo", "runtime": match kind {
            Kind::Go => "GO",
            Kind::Java => "JAVA",
        }});
        let code = PathBuf::from("packages/echo.jar");
        let taken = plan(&config(kind, &given).into(), Some(&code)).expect("accepted");
        let spec = taken.process.spec().expect("there is code");
        assert_eq!(spec.code.path, code);
        return "yes";
    }
    for sample in samples(field) {
        match plan(&config(kind, &sample).into(), None) {
            Ok(plan) => {
                is_done |= done(&plan) != done(&by_default);
                is_told |= told(&plan) != told(&by_default);
                warned |= plan.warnings != by_default.warnings;
            }
            Err(said) => {
                let said = said.join("; ");
                let named =
                    said.contains(&format!("`{name}")) || said.contains(&format!(".{name}"));
                // Options are refused by their own names.
                assert!(named || field == "customRuntimeOptions", "{field}: {said}");
                refused = true;
            }
        }
    }
    match (refused, is_done, is_told) {
        (false, true, _) if field == "resources.cpu" => "yes or warned",
        (false, true, _) => "yes",
        (false, false, true) => "told",
        (true, false, false) => "refused",
        (true, ..) => "in part",
        (false, false, false) if warned => "warned",
        (false, false, false) => panic!("{field} of {kind:?}: neither seen nor refused"),
    }
}

#[test]
fn every_field_is_honoured_told_or_refused_by_its_name() {
    let mut page = String::from(PAGE);
    for field in fields() {
        let (go, java) = (word(Kind::Go, &field), word(Kind::Java, &field));
        _ = writeln!(page, "| `{field}` | {go} | {java} |");
    }
    let path = page_of("functions-matrix-compat.md");
    if std::env::var("GEMINGA_WRITE_MATRIX").is_ok() {
        std::fs::write(&path, &page).expect("written");
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == page,
        "docs/functions-matrix-compat.md is stale: GEMINGA_WRITE_MATRIX=1 writes it"
    );
}
