//! The functions that Apache publishes as examples, unmodified: the Java ones from its jar on Maven Central, the Python
//! ones from a folder that `PULSAR_PYTHON_EXAMPLES` names, since no registry has them.

use std::io::Write as _;

use super::*;

const IN: &str = "persistent://public/default/in";
const PACKAGE: &str = "org.apache.pulsar.functions.api.examples.";
/// An Avro schema with one field `value` of text.
const TEXT: &str = r#"{"type":"record","name":"R","fields":[{"name":"value","type":"string"}]}"#;

/// The jar of examples.
async fn jar() -> PathBuf {
    let folder = toolchain::cache().join("test-java-examples");
    toolchain::once(&folder, |into| async move {
        let artifact = "org.apache.pulsar:pulsar-functions-api-examples:4.0.8";
        let mut command = tokio::process::Command::new("mvn");
        command
            .args(["-q", "-B", "dependency:copy", "-Dmdep.stripVersion=true"])
            .arg(format!("-Dartifact={artifact}"))
            .arg(format!("-DoutputDirectory={}", into.display()));
        toolchain::run(&mut command, "install Maven").await
    })
    .await
    .expect("fetched");
    folder.join("pulsar-functions-api-examples.jar")
}

/// What every example is given: some ask for a setting by its name.
fn given(code: PathBuf, class: &str) -> HostSpec {
    let mut spec = HostSpec {
        tenant: "public".into(),
        namespace: "default".into(),
        name: "f".into(),
        instances: 1,
        inputs: vec![IN.into()],
        output: Some("persistent://public/default/out".into()),
        code: Code {
            path: code,
            class_name: Some(class.to_owned()),
        },
        ..HostSpec::default()
    };
    for (key, value) in [
        ("WhatToWrite", "configured"),
        ("config-key", "?"),
        ("publish-topic", "t"),
        ("topic", "t"),
    ] {
        spec.user_config.insert(key.into(), value.into());
    }
    spec.secrets.insert("username".into(), "somebody".into());
    spec
}

async fn started(kind: Kind, spec: HostSpec, what: &str) -> Started {
    let directory = tempfile::tempdir().expect("temporary");
    let started = start_spec(kind, directory, spec).await;
    started.unwrap_or_else(|broken| panic!("{what}: {broken:?}"))
}

async fn java(class: &str, change: impl Fn(&mut HostSpec)) -> Started {
    let mut spec = given(jar().await, &format!("{PACKAGE}{class}"));
    change(&mut spec);
    started(Kind::Java, spec, class).await
}

/// A message with everything that an example looks at.
fn message(payload: &[u8]) -> Message {
    Message {
        key: Some("k".into()),
        properties: vec![("p".into(), "v".into())],
        event_time: 9,
        publish_time: 8,
        producer: "somebody".into(),
        sequence: 7,
        topic: IN.into(),
        ..text(payload)
    }
}

async fn asked(f: &mut Started, payload: &[u8]) -> Outcome {
    f.send(message(payload)).await;
    f.outcomes(1).await.remove(0)
}

fn said(f: &Started) -> Vec<String> {
    f.seen.logs.lock().iter().map(|l| l.text.clone()).collect()
}

fn property<'a>(output: &'a super::Output, name: &str) -> Option<&'a str> {
    let mut properties = output.properties.iter();
    properties.find(|p| p.0 == name).map(|p| p.1.as_str())
}

/// Messages as one: a window.
fn window(messages: &[Message]) -> Message {
    let (mut head, mut body) = (Vec::new(), Vec::new());
    head.extend_from_slice(&u32::try_from(messages.len()).expect("few").to_le_bytes());
    for message in messages {
        let from = body.len();
        headers::of_message(&mut body, message);
        let block = body.len() - from;
        body.extend_from_slice(&message.payload);
        for length in [block, message.payload.len()] {
            head.extend_from_slice(&u32::try_from(length).expect("small").to_le_bytes());
        }
    }
    head.extend_from_slice(&body);
    Message {
        payload: head.into(),
        window: Some(Window {
            count: messages.len() as u64,
            start_ms: 0,
            end_ms: 1,
            last: "1:2:-1".into(),
        }),
        ..text(b"")
    }
}

#[tokio::test]
async fn java_examples_of_text_answer() {
    for (class, input, output) in [
        ("ExclamationFunction", "hello", "hello!"),
        ("JavaNativeExclamationFunction", "hello", "hello!"),
        ("JavaNativeAsyncExclamationFunction", "hello", "hello-!!"),
        ("UserConfigFunction", "x", "configured"),
        ("ConfigBasedAppendFunction", "x", "x?"),
        ("InstanceIdAppenderFunction", "x", "x0"),
        ("ConsistentlyFailingFunction", "x", "SUCCESS"),
        ("IntegerAdditionFunction", "1", "101"),
    ] {
        let mut f = java(class, |_| {}).await;
        let outcome = asked(&mut f, input.as_bytes()).await;
        assert_eq!(payloads(&outcome), [output.as_bytes()], "{class}");
        f.stop().await;
    }
    let mut f = java("HostAppenderFunction", |_| {}).await;
    let outcome = asked(&mut f, b"x").await;
    let answer = payloads(&outcome)[0];
    assert!(answer.starts_with(b"x") && answer.len() > 1, "{answer:?}");
    f.stop().await;
}

#[tokio::test]
async fn java_examples_publish_to_other_topics() {
    for (class, output, has_input_topic) in [
        ("PublishFunction", "x!", false),
        ("UserPublishFunction", "x", false),
        ("TypedMessageBuilderPublish", "x!", true),
        // It refuses messages until it was initialized.
        ("InitializableFunction", "x!", true),
        ("RecordFunction", "x!", true),
    ] {
        let mut f = java(class, |_| {}).await;
        let outcome = asked(&mut f, b"x").await;
        assert_eq!(
            payloads(&outcome),
            [output.as_bytes()],
            "{class}: {outcome:?}"
        );
        let sent = &outcome.outputs[0];
        assert_eq!(sent.topic.as_deref(), Some("t"), "{class}");
        let input = has_input_topic.then_some(IN);
        assert_eq!(property(sent, "input_topic"), input, "{class}");
        let kept = has_input_topic.then_some("v");
        assert_eq!(property(sent, "p"), kept, "{class}");
        f.stop().await;
    }
}

#[tokio::test]
async fn java_examples_log_count_and_measure() {
    let mut f = java("WordCountFunction", |_| {}).await;
    let outcome = asked(&mut f, b"to be or not to be").await;
    assert_eq!((payloads(&outcome).len(), outcome.state.len()), (0, 6));
    let state = f.seen.state.lock().clone();
    let count = |word: &str| i64::from_be_bytes(state[word][..].try_into().expect("a counter"));
    let words = ["to", "be", "or", "not"];
    assert_eq!(words.map(count), [2, 2, 1, 1]);
    f.stop().await;
    for class in ["ContextFunction", "AsyncContextFunction"] {
        let mut f = java(class, |spec| spec.inputs.push("persistent://a/b/c".into())).await;
        let outcome = asked(&mut f, b"x").await;
        assert_eq!(outcome.verdict, Verdict::Done, "{class}: {outcome:?}");
        assert_eq!(payloads(&outcome).len(), 0, "{class}");
        let line =
            format!("\"x\" has arrived on one of the following topics: {IN}, persistent://a/b/c");
        let said = said(&f);
        assert!(
            said.iter().any(|text| text.contains(&line)),
            "{class}: {said:?}"
        );
        let metrics = f.seen.metrics.lock().clone();
        assert_eq!(metrics, [("function-f-messages-received".to_owned(), 1.0)]);
        f.stop().await;
    }
    let mut f = java("LoggingFunction", |_| {}).await;
    assert_eq!(payloads(&asked(&mut f, b"x").await), [b"x!"]);
    assert_eq!(said(&f), ["x-log"]);
    f.stop().await;
    let mut f = java("UserMetricFunction", |_| {}).await;
    assert_eq!(asked(&mut f, b"four").await.verdict, Verdict::Done);
    let metrics = f.seen.metrics.lock().clone();
    assert_eq!(metrics, [("LetterCount".to_owned(), 4.0)]);
    f.stop().await;
    // By a logger of the class, and before a message came.
    let f = java("InitializableFunction", |_| {}).await;
    f.until("logged", |seen| {
        let wanted = "function initialize start";
        let logs = seen.logs.lock();
        logs.iter()
            .any(|line| line.text.ends_with(wanted) && line.level == Level::Info)
    })
    .await;
    f.stop().await;
    let mut f = java("VoidFunction", |_| {}).await;
    let outcome = asked(&mut f, b"x").await;
    assert_eq!((outcome.verdict, outcome.outputs.len()), (Verdict::Done, 0));
    f.stop().await;
}

#[tokio::test]
async fn java_examples_that_fail_say_why() {
    for (class, input, why) in [
        ("UserExceptionFunction", "x", "This wont work"),
        ("ConsistentlyFailingFunction", "FAIL", "Failed"),
        // It wants Pulsar's admin client, which this host does not have.
        (
            "CursorManagementFunction",
            "x",
            "Context.getPulsarAdmin is not supported by Geminga",
        ),
    ] {
        let mut f = java(class, |_| {}).await;
        let outcome = asked(&mut f, input.as_bytes()).await;
        let failed = failure(&outcome);
        assert_eq!(failed.kind, FailureKind::User, "{class}");
        assert!(failed.reason.contains(why), "{class}: {failed:?}");
        f.stop().await;
    }
}

#[tokio::test]
async fn java_examples_have_types_of_their_own() {
    let pair = |base: i64, derived: i32| [&base.to_be_bytes()[..], &derived.to_be_bytes()].concat();
    let one = 1_i64.to_be_bytes().to_vec();
    for (class, takes, gives, input, output) in [
        (
            "IntegerAdditionFunction",
            "ByteBufferSerDe",
            "ByteBufferSerDe",
            1_i32.to_be_bytes().to_vec(),
            101_i32.to_be_bytes().to_vec(),
        ),
        (
            "CustomObjectFunction",
            "serde.CustomObjectSerde",
            "serde.CustomObjectSerde",
            one.clone(),
            101_i64.to_be_bytes().to_vec(),
        ),
        (
            "CustomBaseToBaseFunction",
            "CustomBaseSerde",
            "CustomBaseSerde",
            one.clone(),
            101_i64.to_be_bytes().to_vec(),
        ),
        (
            "CustomBaseToDerivedFunction",
            "CustomBaseSerde",
            "CustomDerivedSerde",
            one,
            pair(101, 51),
        ),
        (
            "CustomDerivedToBaseFunction",
            "CustomDerivedSerde",
            "CustomBaseSerde",
            pair(1, 2),
            102_i64.to_be_bytes().to_vec(),
        ),
        (
            "CustomDerivedToDerivedFunction",
            "CustomDerivedSerde",
            "CustomDerivedSerde",
            pair(1, 2),
            pair(102, 152),
        ),
    ] {
        let mut f = java(class, |spec| {
            spec.input_serdes
                .insert(IN.into(), format!("{PACKAGE}{takes}"));
            spec.output_serde = Some(format!("{PACKAGE}{gives}"));
        })
        .await;
        let outcome = asked(&mut f, &input).await;
        assert_eq!(payloads(&outcome), [&output[..]], "{class}: {outcome:?}");
        f.stop().await;
    }
    let mut f = java("AvroSchemaTestFunction", |spec| {
        spec.input_schemas.insert(IN.into(), "avro".into());
        spec.output_schema = Some("avro".into());
    })
    .await;
    // Two unions with null: a number and nothing. Ten is added.
    let outcome = asked(&mut f, &[2, 2, 0]).await;
    assert_eq!(payloads(&outcome), [[2, 22, 0]], "{outcome:?}");
    f.stop().await;
}

/// A schema as the worker answers with it.
fn schema(number: u32, definition: &str) -> Bytes {
    let block = format!("name:R\ntype:{number}\n");
    let length = u32::try_from(block.len()).expect("short").to_le_bytes();
    [&length[..], block.as_bytes(), definition.as_bytes()]
        .concat()
        .into()
}

fn of_version(payload: &[u8], version: Option<u64>) -> Message {
    Message {
        schema_version: version.map(|version| Bytes::copy_from_slice(&version.to_be_bytes())),
        ..message(payload)
    }
}

/// What Pulsar calls `AUTO_CONSUME`: each message is read by the schema that it was written by.
#[tokio::test]
async fn java_examples_read_by_the_schemas_of_their_topics() {
    let mut f = java("AutoSchemaFunction", |_| {}).await;
    {
        let mut schemas = f.seen.schemas.lock();
        schemas.insert(0, Ok(schema(4, TEXT)));
        let two = r#"{"type":"record","name":"R","fields":[{"name":"n","type":"int"},{"name":"value","type":"long"}]}"#;
        schemas.insert(1, Ok(schema(4, two)));
        schemas.insert(2, Ok(schema(2, TEXT)));
        schemas.insert(3, Err("the broker is away".to_owned()));
    }
    for (payload, version, output) in [
        (&b"\x0chello!"[..], 0, "value-hello!"),
        (&[2, 14], 1, "value-7"),
        (b"\x02x", 0, "value-x"),
        (br#"{"value":"json"}"#, 2, "value-json"),
    ] {
        f.send(of_version(payload, Some(version))).await;
        let outcome = f.outcomes(1).await.remove(0);
        assert_eq!(payloads(&outcome), [output.as_bytes()], "{outcome:?}");
    }
    // The topics are not declared to be anything.
    let declared = f.seen.declared.lock().clone();
    let inputs: Vec<_> = declared
        .iter()
        .filter(|(of, _)| matches!(of, SchemaOf::Input(_)))
        .collect();
    assert!(inputs.is_empty(), "{inputs:?}");
    // Each schema was asked for once.
    assert_eq!(*f.seen.schemas_asked.lock(), [0, 1, 2]);
    // What is not of its schema is bad data; a schema that can not be had now may be there later.
    for (payload, version, kind, why) in [
        (&b"\x80"[..], 0, FailureKind::Data, "schema"),
        (b"\x02x", 3, FailureKind::Temporary, "the broker is away"),
    ] {
        f.send(of_version(payload, Some(version))).await;
        let outcome = f.outcomes(1).await.remove(0);
        let failed = failure(&outcome);
        assert_eq!(failed.kind, kind, "{failed:?}");
        assert!(failed.reason.contains(why), "{failed:?}");
    }
    f.seen.schemas.lock().insert(3, Ok(schema(4, TEXT)));
    f.send(of_version(b"\x02x", Some(3))).await;
    assert_eq!(payloads(&f.outcomes(1).await[0]), [b"value-x"]);
    f.stop().await;

    let mut f = java("MergeTopicFunction", |_| {}).await;
    f.seen.schemas.lock().insert(0, Ok(schema(4, TEXT)));
    f.send(of_version(b"\x02x", Some(0))).await;
    let outcome = f.outcomes(1).await.remove(0);
    assert_eq!(payloads(&outcome), [b"\x02x"], "{outcome:?}");
    let sent = &outcome.outputs[0];
    assert_eq!(
        sent.topic.as_deref(),
        Some("persistent://public/default/out")
    );
    assert_eq!((sent.event_time, sent.key_is_base64), (Some(9), true));
    assert_eq!(sent.key.as_deref(), Some(&*super::base64_text(b"k")));
    for (name, value) in [
        ("__original_topic", IN),
        ("__publish_time", "8"),
        ("__sequence_id", "7"),
        ("__producer_name", "somebody"),
        ("p", "v"),
    ] {
        assert_eq!(property(sent, name), Some(value), "{name}");
    }
    f.stop().await;
}

#[tokio::test]
async fn java_examples_take_windows() {
    let run = async |class: &str, inputs: &[&str]| {
        let mut f = java(class, |spec| spec.windows = true).await;
        let messages: Vec<Message> = inputs.iter().map(|i| message(i.as_bytes())).collect();
        f.send(window(&messages)).await;
        let outcome = f.outcomes(1).await.remove(0);
        (f, outcome)
    };
    for (class, inputs, output) in [
        ("AddWindowFunction", ["1", "2", "39"], "42"),
        ("CommaWindowFunction", ["a", "b", "c"], "a,b,c"),
        ("window.ContextWindowFunction", ["1", "2", "39"], "42"),
        (
            "window.UserConfigWindowFunction",
            ["a", "b", "c"],
            "configured",
        ),
    ] {
        let (f, outcome) = run(class, &inputs).await;
        assert_eq!(
            payloads(&outcome),
            [output.as_bytes()],
            "{class}: {outcome:?}"
        );
        f.stop().await;
    }
    let (f, outcome) = run("WindowDurationFunction", &["a", "b"]).await;
    let text = String::from_utf8_lossy(payloads(&outcome)[0]).into_owned();
    let at = text
        .strip_prefix("a,b:")
        .and_then(|ms| ms.parse::<u64>().ok());
    assert!(at.is_some(), "{text}");
    f.stop().await;
    let (f, outcome) = run("window.WordCountWindowFunction", &["a.b", "a"]).await;
    assert_eq!(outcome.state.len(), 3, "{outcome:?}");
    assert_eq!(f.seen.state.lock()["a"][..], 2_i64.to_be_bytes());
    f.stop().await;
    let (f, outcome) = run("window.LoggingWindowFunction", &["a", "b"]).await;
    assert_eq!(outcome.verdict, Verdict::Done, "{outcome:?}");
    let lines = said(&f);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(
        lines.iter().all(|line| line.ends_with("-window-log")),
        "{lines:?}"
    );
    f.stop().await;
    let (f, outcome) = run("window.PublishWindowFunction", &["a", "b"]).await;
    assert_eq!(outcome.outputs.len(), 1, "{outcome:?}");
    assert_eq!(outcome.outputs[0].topic.as_deref(), Some("t"));
    assert!(payloads(&outcome)[0].ends_with(b"]!"), "{outcome:?}");
    f.stop().await;
    let (f, outcome) = run("window.UserMetricWindowFunction", &["a", "b"]).await;
    assert_eq!(outcome.verdict, Verdict::Done, "{outcome:?}");
    let metrics = f.seen.metrics.lock().clone();
    let one = ("MessageEventTime".to_owned(), 9.0);
    assert_eq!(metrics, [one.clone(), one]);
    f.stop().await;
    let (f, outcome) = run("window.UserExceptionWindowFunction", &["a"]).await;
    assert!(
        failure(&outcome).reason.contains("This wont work"),
        "{outcome:?}"
    );
    f.stop().await;
}

/// A window function without windows, and a function of one message with them.
#[tokio::test]
async fn java_examples_are_not_mistaken_for_each_other() {
    for (class, windows, why) in [
        (
            "window.ContextWindowFunction",
            false,
            "it needs `windowConfig`",
        ),
        ("ExclamationFunction", true, "takes one message at a time"),
    ] {
        let mut spec = given(jar().await, &format!("{PACKAGE}{class}"));
        spec.windows = windows;
        let directory = tempfile::tempdir().expect("temporary");
        let said = start_spec(Kind::Java, directory, spec).await.err();
        let said = said.expect("refused").to_string();
        assert!(said.contains(why), "{class}: {said}");
    }
}

/// Every class of the jar that is a function is in a test above.
#[tokio::test]
async fn java_examples_are_all_here() {
    let listed = std::process::Command::new(super::java::tool("jar"))
        .arg("tf")
        .arg(jar().await)
        .output()
        .expect("a JDK is installed");
    let tests = include_str!("apache.rs");
    let mut count = 0;
    for entry in String::from_utf8_lossy(&listed.stdout).lines() {
        let Some(class) = entry.strip_suffix(".class") else {
            continue;
        };
        let name = class.rsplit('/').next().unwrap_or(class);
        // The others are types, and what reads and writes them.
        if name.ends_with("Function") {
            count += 1;
            let name = class
                .strip_prefix(&PACKAGE.replace('.', "/"))
                .unwrap_or(class);
            let name = format!("\"{}\"", name.replace('/', "."));
            assert!(tests.contains(&name), "{name} is in no test");
        }
    }
    // And `TypedMessageBuilderPublish`.
    assert_eq!(count, 39, "functions in the jar");
}

/// The outputs, or why there are none.
type Wanted = Result<&'static [&'static str], &'static str>;

/// What each of the Python examples does: file, class, input, outputs, or why it fails.
const PYTHON: &[(&str, &str, &str, Wanted)] = &[
    ("native_exclamation_function", "", "x", Ok(&["x!"])),
    ("pure_python_function_exclamation", "", "x", Ok(&["x!"])),
    ("exclamation", "Exclamation", "x", Ok(&["x!"])),
    (
        "exclamation_function",
        "ExclamationFunction",
        "x",
        Ok(&["x!"]),
    ),
    (
        "config_based_append_function",
        "ConfigBasedAppendFunction",
        "x",
        Ok(&["x?"]),
    ),
    (
        "custom_object_function",
        "CustomObjectFunction",
        "1,2",
        Ok(&["12,26"]),
    ),
    (
        "publish_function_with_message_conf",
        "PublishFunctionWithMessageConf",
        "x",
        Ok(&["x!"]),
    ),
    (
        "typed_message_builder_publish",
        "TypedMessageBuilderPublish",
        "x",
        Ok(&["x!"]),
    ),
    ("logfunction", "LogFunction", "x", Ok(&["x!"])),
    ("logging_function", "LoggingFunction", "x", Ok(&["x!"])),
    (
        "secrets_function",
        "SecretsFunction",
        "x",
        Ok(&["somebody!"]),
    ),
    ("void_function", "VoidFunction", "x", Ok(&[])),
    (
        "wordcount_function",
        "WordCountFunction",
        "a b a",
        Ok(&["a b a!"]),
    ),
    (
        "user_exception",
        "UserException",
        "x",
        Err("this will not work"),
    ),
    // It looks for a setting in the method instead of in what the method gives.
    (
        "publish_function",
        "PublishFunction",
        "x",
        Err("argument of type 'method' is not"),
    ),
];

/// `PULSAR_PYTHON_EXAMPLES` is a copy of `pulsar-functions/python-examples` of Apache's sources.
#[tokio::test]
async fn python_examples_run() {
    let Some(folder) = std::env::var_os("PULSAR_PYTHON_EXAMPLES").map(PathBuf::from) else {
        // Past what a test prints, which nobody sees.
        let _ = std::io::stderr().write_all(
            b"SKIPPED: Apache's Python examples: PULSAR_PYTHON_EXAMPLES names no folder with them\n",
        );
        return;
    };
    for (file, class, input, wanted) in PYTHON {
        let path = folder.join(format!("{file}.py"));
        assert!(path.exists(), "`{}` does not exist", path.display());
        let name = match *class {
            "" => (*file).to_owned(),
            class => format!("{file}.{class}"),
        };
        let mut spec = given(path, &name);
        if *file == "custom_object_function" {
            let serde = format!("{file}.CustomSerDe");
            spec.input_serdes.insert(IN.into(), serde.clone());
            spec.output_serde = Some(serde);
        }
        let mut f = started(Kind::Python, spec, file).await;
        let outcome = asked(&mut f, input.as_bytes()).await;
        match wanted {
            Ok(wanted) => {
                let got = payloads(&outcome);
                let wanted: Vec<&[u8]> = wanted.iter().map(|text| text.as_bytes()).collect();
                assert_eq!(got, wanted, "{file}: {outcome:?}");
            }
            Err(why) => {
                let reason = &failure(&outcome).reason;
                assert!(reason.contains(why), "{file}: {reason}");
            }
        }
        match *file {
            "logfunction" => assert_eq!(said(&f), ["x"]),
            "logging_function" => assert_eq!(said(&f), ["x-log"]),
            "wordcount_function" => {
                assert_eq!(f.seen.state.lock()["a"][..], 2_i64.to_be_bytes());
                let lines = ["The value is 1", "The value is 1", "The value is 2"];
                assert_eq!(said(&f), lines);
            }
            "typed_message_builder_publish" | "publish_function_with_message_conf" => {
                let sent = &outcome.outputs[0];
                assert_eq!(
                    (sent.topic.as_deref(), sent.key.as_deref()),
                    (Some("t"), Some("k"))
                );
                assert_eq!(property(sent, "input_topic"), Some(IN));
                assert_eq!(property(sent, "p"), Some("v"));
            }
            _ => {}
        }
        f.stop().await;
    }
    avro_example(&folder).await;
}

/// It needs `pulsar.schema`, which comes with `pulsar-client`: with it the function is called, and fails by itself, since it
/// asks its input for methods that only Java's objects have. Without it the start says what is missing.
async fn avro_example(folder: &std::path::Path) {
    let file = "avro_schema_test_function";
    let class = format!("{file}.AvroSchemaTestFunction");
    let spec = given(folder.join(format!("{file}.py")), &class);
    let installed = std::process::Command::new("python3")
        .args(["-c", "import pulsar.schema"])
        .output()
        .is_ok_and(|output| output.status.success());
    let directory = tempfile::tempdir().expect("temporary");
    match start_spec(Kind::Python, directory, spec).await {
        Ok(mut f) => {
            assert!(installed);
            let outcome = asked(&mut f, b"x").await;
            let reason = &failure(&outcome).reason;
            assert!(reason.contains("BaseValue'"), "{reason}");
            f.stop().await;
        }
        Err(broken) => {
            assert!(!installed, "{broken:?}");
            assert!(
                broken.to_string().contains("pulsar-client[avro]"),
                "{broken:?}"
            );
        }
    }
}
