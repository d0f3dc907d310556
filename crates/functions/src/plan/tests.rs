//! What is honoured and what is refused, field by field.

use geminga_client::{InitialPosition, SubType};
use geminga_model::{FunctionConfig, SinkConfig, SourceConfig};

use super::function::split_flags;
use super::*;
use crate::runtime::sandbox::{Abilities, Share};

fn planned(text: &str) -> Result<Plan, Refused> {
    let config: FunctionConfig = serde_json::from_str(text).expect(text);
    plan(&config.into(), None)
}

#[test]
fn what_is_not_supported_is_refused_by_its_name() {
    for (fields, name) in [
        (
            r#""windowConfig":{"windowLengthCount":3,"timestampExtractorClassName":"my.Extractor"}"#,
            "timestampExtractorClassName",
        ),
        (
            r#""windowConfig":{"windowLengthCount":3,"slidingIntervalDurationMs":3}"#,
            "windowConfig",
        ),
        (
            r#""inputs":["a","b"],"parallelism":2,"retainOrdering":true,
               "windowConfig":{"windowLengthDurationMs":3,"timestampExtractorClassName":"eventTime"}"#,
            "parallelism",
        ),
        (
            r#""windowConfig":{"windowLengthCount":40001}"#,
            "40000 messages",
        ),
        (
            r#""exposePulsarAdminClientEnabled":true"#,
            "exposePulsarAdminClientEnabled",
        ),
        (r#""outputSchemaType":"avro""#, "outputSchemaType"),
        (r#""outputSerdeClassName":"my.Serde""#, "SerDe"),
        (
            r#""inputSpecs":{"in":{"consumerProperties":{"a":"b"}}}"#,
            "consumerProperties",
        ),
        (
            r#""customRuntimeOptions":"{\"mod\":\"spawn\"}""#,
            "customRuntimeOptions",
        ),
        (
            r#""producerConfig":{"useThreadLocalProducers":true}"#,
            "useThreadLocalProducers",
        ),
        (
            r#""inputSpecs":{"a/b/c/(":{"regexPattern":true}}"#,
            "regexPattern",
        ),
    ] {
        let inputs = match fields.starts_with(r#""inputs""#) {
            true => "",
            false => r#""inputs":["in"],"#,
        };
        let text = format!(r#"{{"name":"f","sh":"f.sh",{inputs}{fields}}}"#);
        let said = planned(&text).expect_err(name).join("; ");
        assert!(said.contains(name), "{name}: {said}");
    }
}

#[test]
fn what_is_refused_says_where_why_and_what_to_type() {
    let crypto = r#"{"cryptoKeyReaderClassName":"my.Reader","encryptionKeys":["k"]}"#;
    for (fields, said) in [
        (
            format!(r#""sh":"f.sh","producerConfig":{{"cryptoConfig":{crypto}}}"#),
            [
                "`producerConfig.cryptoConfig`",
                "a class of Java",
                "remove it",
            ],
        ),
        (
            format!(r#""sh":"f.sh","inputSpecs":{{"more":{{"cryptoConfig":{crypto}}}}}"#),
            [
                "`cryptoConfig` of input `more`",
                "a class of Java",
                "remove it",
            ],
        ),
        (
            r#""functionType":"enrich""#.to_owned(),
            ["`functionType`", "here is none", "give the code"],
        ),
        (
            r#""sh":"f.sh","functionType":"enrich""#.to_owned(),
            ["`functionType`", "other code", "give one of the two"],
        ),
    ] {
        let text = format!(r#"{{"name":"f","inputs":["in"],{fields}}}"#);
        let refused = planned(&text).expect_err(&text);
        let [one] = &refused[..] else {
            panic!("{text}: {refused:?}")
        };
        for part in said {
            assert!(one.contains(part), "{text}: {one}");
        }
    }
}

#[test]
fn settings_that_a_mode_would_pass_over_are_refused_by_their_name() {
    // A script's first line counts too.
    let script = tempfile::NamedTempFile::new().expect("a script");
    let path = script.path().display();
    for (code, options, fields, name) in [
        (
            "exec",
            r#"{"mode":"stream"}"#,
            r#""autoAck":false"#,
            "autoAck",
        ),
        (
            "exec",
            r#"{"mode":"stream","framing":"json"}"#,
            r#""processingGuarantees":"MANUAL""#,
            "processingGuarantees",
        ),
        (
            "exec",
            r#"{"mode":"batch"}"#,
            r#""autoAck":false"#,
            "autoAck",
        ),
        ("sh", r#"{"mode":"batch"}"#, r#""autoAck":false"#, "autoAck"),
        (
            "sh",
            r#"{"mode":"spawn"}"#,
            r#""runtimeFlags":"-x""#,
            "runtimeFlags",
        ),
        (
            "sh",
            r#"{"args":["a"]}"#,
            r#""maxMessageRetries":3"#,
            "args",
        ),
        (
            "exec",
            r#"{"nul":"base64"}"#,
            r#""maxMessageRetries":3"#,
            "nul",
        ),
        (
            "wasm",
            r#"{"killGraceMs":9}"#,
            r#""maxMessageRetries":3"#,
            "killGraceMs",
        ),
    ] {
        let options = serde_json::Value::from(options);
        let text = format!(
            r#"{{"name":"f","{code}":"{path}","inputs":["in"],"customRuntimeOptions":{options},{fields}}}"#
        );
        let refused = planned(&text).expect_err(&text);
        let [one] = &refused[..] else {
            panic!("{text}: {refused:?}")
        };
        assert!(one.contains(&format!("`{name}")), "{text}: {one}");
    }
    for (code, options) in [
        ("sh", "{}"),
        ("sh", r#"{"mode":"spawn"}"#),
        ("exec", "{}"),
        ("exec", r#"{"mode":"stream","framing":"host"}"#),
    ] {
        let options = serde_json::Value::from(options);
        let text = format!(
            r#"{{"name":"f","{code}":"/no/such","inputs":["in"],"customRuntimeOptions":{options},"autoAck":false}}"#
        );
        planned(&text).expect(&text);
    }
}

#[test]
fn settings_of_another_runtime_are_refused_by_their_name() {
    let code = r#""go":"f","inputs":["in"]"#;
    for (fields, name) in [
        (format!(r#"{code},"customRuntimeOptions":"{{\"mode\":\"spawn\"}}""#), "mode"),
        (format!(r#"{code},"customRuntimeOptions":"{{\"nul\":\"base64\"}}""#), "nul"),
        (r#""jar":"f.jar","inputs":["in"]"#.to_owned(), "className"),
        (
            r#""jar":"f.jar","className":"F","inputs":["in"],"customRuntimeOptions":"{\"args\":[\"x\"]}""#
                .to_owned(),
            "args",
        ),
        (format!(r#"{code},"outputTypeClassName":"my.Type""#), "outputTypeClassName"),
    ] {
        let said = planned(&format!(r#"{{"name":"f",{fields}}}"#)).expect_err(name).join("; ");
        assert!(said.contains(name), "{name}: {said}");
    }
    let java = planned(
        r#"{"name":"f","jar":"f.jar","className":"F","inputs":["in"],"outputTypeClassName":"my.Type",
            "resources":{"ram":1000}}"#,
    );
    let Process::Host(Language::Java, spec) = java.expect("accepted").process else {
        panic!()
    };
    assert_eq!(
        (spec.heap_bytes, spec.options.limits.memory_bytes),
        (Some(1000), None)
    );
    assert_eq!(spec.output_type.as_deref(), Some("my.Type"));
}

#[test]
fn resources_are_enforced_or_said_not_to_be() {
    let of = |resources: &str| {
        planned(&format!(
            r#"{{"name":"f","sh":"f.sh","inputs":["in"],"resources":{resources}}}"#
        ))
        .expect("accepted")
    };
    let plan_of = of(r#"{"ram":1000,"cpu":0.5,"disk":7}"#);
    let Process::Host(_, spec) = plan_of.process else {
        panic!()
    };
    assert_eq!(spec.options.limits.memory_bytes, Some(1000));
    let share = Share {
        cpu: Some(0.5),
        memory_bytes: Some(1000),
        disk_bytes: Some(7),
    };
    assert_eq!(spec.share, share);
    // What this machine can not do is in status: the words have a test of their own.
    let can = Abilities::of_this_machine();
    let missing = usize::from(!can.cpu) + usize::from(!can.memory);
    assert_eq!(plan_of.warnings.len(), missing, "{:?}", plan_of.warnings);
    let wasm =
        planned(r#"{"name":"f","wasm":"f.wasm","inputs":["in"],"resources":{"cpu":1,"disk":2}}"#);
    let said = wasm.expect("accepted").warnings.join("; ");
    for part in [
        "`resources.cpu: 1` is not enforced",
        "`resources.disk: 2` has no effect",
    ] {
        assert!(said.contains(part), "{said}");
    }
}

/// They were taken, and a line of the status said that they have no effect.
#[test]
fn what_would_have_no_effect_is_refused_by_name() {
    let function = |fields: &str| {
        planned(&format!(
            r#"{{"name":"f","sh":"f.sh","inputs":["in"],{fields}}}"#
        ))
    };
    let source = |fields: &str| {
        let source: SourceConfig = serde_json::from_str(&format!(
            r#"{{"name":"s","sourceType":"file","topicName":"t","configs":{{"path":"x"}},{fields}}}"#
        ))
        .expect("a source");
        plan(&source.into(), None)
    };
    let sink = |fields: &str| {
        let sink: SinkConfig = serde_json::from_str(&format!(
            r#"{{"name":"s","sinkType":"file","inputs":["in"],"configs":{{"path":"x"}},{fields}}}"#
        ))
        .expect("a sink");
        plan(&sink.into(), None)
    };
    let pool = |pools: bool| format!(r#""inputSpecs":{{"in":{{"poolMessages":{pools}}}}}"#);
    for (tried, named) in [
        (function(r#""className":"x.Y""#), "`className: x.Y`"),
        (function(&pool(true)), "`poolMessages` of input `in`"),
        (sink(&pool(true)), "`poolMessages` of input `in`"),
        (source(r#""className":"x.Y""#), "`className: x.Y`"),
        (sink(r#""className":"x.Y""#), "`className: x.Y`"),
        (source(r#""resources":{"cpu":2}"#), "`resources.cpu: 2`"),
        (sink(r#""resources":{"ram":5}"#), "`resources.ram: 5`"),
        (sink(r#""resources":{"disk":7}"#), "`resources.disk: 7`"),
        (
            source(r#""batchBuilder":"KEY_BASED""#),
            "`batchBuilder: KEY_BASED`",
        ),
        (
            source(r#""producerConfig":{"batchBuilder":"KEY_BASED"}"#),
            "`batchBuilder: KEY_BASED`",
        ),
        (
            sink(r#""negativeAckRedeliveryDelayMs":5"#),
            "`negativeAckRedeliveryDelayMs`",
        ),
        (
            sink(r#""negativeAckRedeliveryDelayMs":5,"maxMessageRetries":0"#),
            "`negativeAckRedeliveryDelayMs`",
        ),
    ] {
        let said = tried.map(drop).expect_err(named).join("; ");
        assert!(
            said.contains(named) && said.contains("is not supported"),
            "{said}"
        );
    }
    // What Pulsar's tools fill in says nothing.
    let filled = r#""resources":{"cpu":1.0,"ram":1073741824,"disk":10737418240}"#;
    for tried in [
        function(r#""className":"""#),
        function(&pool(false)),
        sink(&pool(false)),
        source(filled),
        sink(filled),
        source(r#""className":"geminga.io.FileSource","batchBuilder":"DEFAULT""#),
        sink(r#""className":"geminga.io.FileSink""#),
        sink(r#""negativeAckRedeliveryDelayMs":5,"maxMessageRetries":1"#),
    ] {
        assert_eq!(tried.expect("accepted").warnings, Vec::<String>::new());
    }
}

/// A place in a file is found by it.
#[test]
fn a_refusal_begins_with_its_field() {
    for (fields, want) in [
        (
            r#""exposePulsarAdminClientEnabled":true"#,
            &["exposePulsarAdminClientEnabled"][..],
        ),
        (
            r#""windowConfig":{"windowLengthCount":3,"timestampExtractorClassName":"my.Extractor"}"#,
            &["windowConfig", "timestampExtractorClassName"],
        ),
        (
            r#""producerConfig":{"useThreadLocalProducers":true}"#,
            &["producerConfig", "useThreadLocalProducers"],
        ),
        (r#""outputSchemaType":"avro""#, &["outputSchemaType"]),
        (
            r#""inputSpecs":{"in":{"consumerProperties":{"a.b":"c"}}}"#,
            &["inputSpecs", "in", "consumerProperties", "a", "b"],
        ),
        (
            r#""inputSpecs":{"in.1":{"schemaType":"avro"}}"#,
            &["inputSpecs", "in.1", "schemaType"],
        ),
        (
            r#""customRuntimeOptions":"{\"mod\":\"spawn\"}""#,
            &["customRuntimeOptions"],
        ),
        (
            r#""customRuntimeOptions":"{\"runtime\":\"compat\"}""#,
            &["customRuntimeOptions"],
        ),
        (
            r#""output":"o","customSchemaOutputs":{"o":"{\"poolMessages\":true}"}"#,
            &["customSchemaOutputs", "o"],
        ),
    ] {
        let text = format!(r#"{{"name":"f","sh":"f.sh","inputs":["in"],{fields}}}"#);
        let refused = planned(&text).expect_err(fields);
        assert_eq!(field(&refused[0]), want, "{refused:?}");
    }
    assert!(field("no code: give `sh`").is_empty());
}

#[test]
fn subscription_rules_are_pulsars() {
    for (fields, wanted) in [
        ("", SubType::Shared),
        (r#","retainOrdering":true"#, SubType::Failover),
        (r#","retainKeyOrdering":true"#, SubType::KeyShared),
        (
            r#","processingGuarantees":"EFFECTIVELY_ONCE""#,
            SubType::Failover,
        ),
    ] {
        let plan = planned(&format!(
            r#"{{"name":"f","sh":"f.sh","inputs":["in"]{fields}}}"#
        ))
        .expect("legal");
        let Input::Topics(subscription) = plan.input else {
            panic!()
        };
        assert_eq!(subscription.sub_type, wanted);
        assert_eq!(subscription.name, "public/default/f");
        assert_eq!(subscription.topics, ["persistent://public/default/in"]);
        assert_eq!(subscription.position, InitialPosition::Latest);
    }
}

/// As in Pulsar. What the function writes itself is not meant.
#[test]
fn names_and_patterns_are_inputs_together() {
    let plan = planned(
        r#"{"name":"f","sh":"f.sh","inputs":["in"],"topicsPattern":"in-.*","output":"in-out","logTopic":"in-log",
            "inputSpecs":{"t/n/x.*":{"regexPattern":true,"schemaType":"string"}},
            "windowConfig":{"windowLengthDurationMs":3,"timestampExtractorClassName":"eventTime"}}"#,
    )
    .expect("accepted");
    let Input::Topics(subscription) = plan.input else {
        panic!()
    };
    let selection = subscription.selection();
    assert_eq!(selection.names, ["persistent://public/default/in"]);
    assert_eq!(selection.patterns, ["in-.*", "t/n/x.*"]);
    for (topic, is_input) in [
        ("in", true),
        ("in-1-partition-3", true),
        ("t/n/xy", true),
        ("xy", false),
        ("in-out", false),
        ("in-log", false),
        ("in-1-public-default-f-DLQ", false),
        ("in-1-public-default-g-DLQ", true),
    ] {
        let topic = full_name(topic).parse().expect("a topic");
        assert_eq!(
            selection.has(&topic).expect("patterns"),
            is_input,
            "{topic}"
        );
    }
    let window = plan.window.expect("windows");
    assert_eq!(window.event_time.expect("event time").topics, 1);
    assert_eq!(
        window.named,
        [Arc::from("persistent://public/default/in")].into()
    );
}

#[test]
fn flags_split_outside_quotes() {
    assert_eq!(
        split_flags(r#" -a "b c" d''e "" "#),
        ["-a", "b c", "de", ""]
    );
}

#[test]
fn what_pulsars_instance_passes_over_is_refused_by_its_name() {
    let asked = r#""customRuntimeOptions":"{\"runtime\":\"compat\"}""#;
    let go = |fields: &str| {
        planned(&format!(
            r#"{{"name":"f","go":"f","inputs":["in"],{fields}{asked}}}"#
        ))
    };
    for (fields, name) in [
        (r#""secrets":{"a":"b"},"#, "secrets"),
        (r#""timeoutMs":5,"#, "timeoutMs"),
        (r#""skipToLatest":true,"#, "skipToLatest"),
        (r#""maxMessageRetries":3,"#, "maxMessageRetries"),
        (r#""retainKeyOrdering":true,"#, "retainKeyOrdering"),
        (r#""windowConfig":{"windowLengthCount":3},"#, "windowConfig"),
        (r#""idleTimeoutMs":5,"#, "idleTimeoutMs"),
        (r#""retryBackoffMs":5,"#, "retryBackoffMs"),
        (r#""runtimeFlags":"-x","#, "runtimeFlags"),
        (r#""maxPendingAsyncRequests":5,"#, "maxPendingAsyncRequests"),
        (r#""outputSchemaType":"string","#, "outputSchemaType"),
        (
            r#""inputSpecs":{"in":{"schemaType":"json"}},"#,
            "schemaType",
        ),
        (
            r#""inputSpecs":{"in":{"poolMessages":true}},"#,
            "poolMessages",
        ),
        (
            r#""inputSpecs":{"in":{"consumerProperties":{"readCompacted":"true"}}},"#,
            "consumerProperties",
        ),
        (r#""batchBuilder":"KEY_BASED","#, "batchBuilder"),
        (
            r#""producerConfig":{"compressionType":"ZSTD"},"#,
            "compressionType",
        ),
        (
            r#""processingGuarantees":"EFFECTIVELY_ONCE","#,
            "EFFECTIVELY_ONCE",
        ),
        (r#""processingGuarantees":"MANUAL","#, "MANUAL"),
        (r#""autoAck":false,"#, "autoAck"),
    ] {
        let said = go(fields).expect_err(name).join("; ");
        assert!(said.contains(name), "{name}: {said}");
    }
    assert!(go("").is_ok());
    // pulsar-admin sends it with every function.
    let plan = go(r#""forwardSourceMessageProperty":true,"#).expect("accepted");
    let said = plan.warnings.join("; ");
    assert!(
        said.contains("`forwardSourceMessageProperty` has no effect"),
        "{said}"
    );
    for options in [
        r#"{\"runtime\":\"compat\",\"window\":2}"#,
        r#"{\"runtime\":\"compat\",\"args\":[\"x\"]}"#,
        r#"{\"runtime\":\"compat\",\"mode\":\"stream\"}"#,
        r#"{\"runtime\":\"compat\",\"timeoutMs\":2}"#,
    ] {
        let text = format!(
            r#"{{"name":"f","go":"f","inputs":["in"],"customRuntimeOptions":"{options}"}}"#
        );
        assert!(planned(&text).is_err(), "{options}");
    }
    let script = planned(&format!(
        r#"{{"name":"f","sh":"f","inputs":["in"],{asked}}}"#
    ));
    assert!(script.expect_err("a script").join("; ").contains("compat"));
}

#[test]
fn pulsars_instance_is_told_what_the_configuration_says() {
    let plan = planned(
        r#"{"tenant":"t","namespace":"n","name":"f","jar":"f.jar","className":"a.F","output":"out","maxMessageRetries":3,
            "inputSpecs":{"in":{"schemaType":"string","receiverQueueSize":9}},"deadLetterTopic":"dead","retainKeyOrdering":true,
            "secrets":{"key":"hidden"},"userConfig":{"a":1},"timeoutMs":7,"subscriptionPosition":"Earliest",
            "producerConfig":{"compressionType":"ZSTD"},"customRuntimeOptions":"{\"runtime\":\"compat\"}"}"#,
    );
    let Process::Compat(compat) = plan.expect("accepted").process else {
        panic!()
    };
    let details = &compat.details;
    for (pointer, value) in [
        ("/className", "a.F"),
        ("/runtime", "JAVA"),
        ("/userConfig", r#"{"a":1}"#),
        ("/secretsMap", r#"{"key":""}"#),
        ("/sink/topic", "persistent://public/default/out"),
        ("/sink/producerSpec/compressionType", "ZSTD"),
        ("/source/subscriptionType", "KEY_SHARED"),
        ("/source/subscriptionName", "t/n/f"),
        ("/source/subscriptionPosition", "EARLIEST"),
        (
            "/retryDetails/deadLetterTopic",
            "persistent://public/default/dead",
        ),
    ] {
        let found = details.pointer(pointer).and_then(serde_json::Value::as_str);
        assert_eq!(found, Some(value), "{pointer}");
    }
    let input = &details["source"]["inputSpecs"]["persistent://public/default/in"];
    assert_eq!(input["receiverQueueSize"]["value"], 9);
    assert_eq!(details["source"]["negativeAckRedeliveryDelayMs"], 7);
    assert!(!details.to_string().contains("hidden"));
}

#[test]
fn a_schema_is_declared_or_refused_with_what_to_do() {
    use geminga_client::{Schema, SchemaType};
    let typed = |fields: &str| -> Result<(Typed, Typed), String> {
        let text = format!(r#"{{"name":"f","output":"out",{fields}}}"#);
        let plan = planned(&text).map_err(|refused| refused.join("; "))?;
        let (Input::Topics(input), Output::Topics { producer, .. }) = (plan.input, plan.output)
        else {
            panic!("topics")
        };
        let input = input.inputs.first().map(|it| it.schema.clone());
        Ok((input.unwrap_or_default(), producer.schema))
    };
    let int64 = Typed::Schema(Schema::of(SchemaType::Int64));
    let definition = r#"{"type":"record","name":"Q","fields":[]}"#;
    let quoted = definition.replace('"', r#"\""#);
    let twice = quoted.replace('\\', r"\\").replace(r#"\\""#, r#"\\\""#);
    let avro = Typed::Schema(Schema::new(SchemaType::Avro, "Q", definition, []));
    let python = r#""py":"f.py","className":"f.F","#;
    for (fields, input, output) in [
        (
            r#""sh":"f.sh","inputs":["in"]"#.to_owned(),
            Typed::Bytes,
            Typed::Bytes,
        ),
        (
            r#""go":"f","inputSpecs":{"in":{"schemaType":"int64"}},"outputSchemaType":"Int64""#.to_owned(),
            int64.clone(),
            int64,
        ),
        (
            r#""exec":"f","inputSpecs":{"in":{"schemaType":"AUTO_CONSUME"}},"outputSchemaType":"AUTO_PUBLISH""#
                .to_owned(),
            Typed::Bytes,
            Typed::OfTopic,
        ),
        (
            format!(
                r#""sh":"f.sh","inputSpecs":{{"in":{{"schemaType":"avro","schemaProperties":{{"schema":"{quoted}"}}}}}},
                "customSchemaOutputs":{{"out":"{{\"schemaType\":\"avro\",\"schemaProperties\":{{\"schema\":\"{twice}\"}}}}"}}"#
            ),
            avro.clone(),
            avro,
        ),
        (
            r#""jar":"f.jar","className":"F","inputs":["in"]"#.to_owned(),
            Typed::Derived,
            Typed::Derived,
        ),
        (
            r#""jar":"f.jar","className":"F","customSerdeInputs":{"in":"my.Serde"},"outputSchemaType":"avro""#
                .to_owned(),
            Typed::Bytes,
            Typed::Host,
        ),
        (
            format!(
                r#"{python}"inputSpecs":{{"in":{{"schemaType":"avro"}}}},"inputTypeClassName":"f.In",
                "outputSchemaType":"json","outputTypeClassName":"f.Out""#
            ),
            Typed::Host,
            Typed::Host,
        ),
    ] {
        assert_eq!(typed(&fields), Ok((input, output)), "{fields}");
    }
    for (fields, parts) in [
        (
            r#""sh":"f.sh","inputs":["in"],"outputSchemaType":"json""#.to_owned(),
            ["`outputSchemaType: json`", "nobody gives it", "auto_publish"],
        ),
        (
            r#""go":"f","inputSpecs":{"in":{"schemaType":"avro"}}"#.to_owned(),
            ["`schemaType: avro` of input `in`", "`schemaProperties`", "remove it"],
        ),
        (
            format!(r#"{python}"inputs":["in"],"outputSchemaType":"json""#),
            ["`outputSchemaType: json`", "`outputTypeClassName`", "pulsar.schema.Record"],
        ),
        (
            format!(r#"{python}"inputs":["in"],"outputTypeClassName":"f.Out""#),
            ["`outputTypeClassName`", "`outputSchemaType`", "remove it"],
        ),
        (
            format!(r#"{python}"inputs":["in"],"outputSchemaType":"timestamp""#),
            ["`outputSchemaType: timestamp`", "use none", "int64"],
        ),
        (
            r#""sh":"f.sh","inputs":["in"],"outputSchemaType":"jsno""#.to_owned(),
            ["`outputSchemaType: jsno`", "no such schema", "use none"],
        ),
        (
            r#""sh":"f.sh","inputs":["in"],"outputSchemaType":"my.Schema""#.to_owned(),
            ["`outputSchemaType: my.Schema`", "Java and Python", "use none"],
        ),
        (
            r#""jar":"f.jar","className":"F","inputs":["in"],"outputSchemaType":"key_value""#.to_owned(),
            ["`outputSchemaType: key_value`", "use none", "avro"],
        ),
        (
            r#""sh":"f.sh","inputSpecs":{"in":{"schemaProperties":{"a":"b"}}}"#.to_owned(),
            ["`schemaProperties` of input `in`", "`schemaType`", "give"],
        ),
        (
            r#""sh":"f.sh","inputSpecs":{"in":{"schemaType":"avro","schemaProperties":{"schema":"{"}}}"#.to_owned(),
            ["`schemaType: avro` of input `in`", "no JSON", "`schemaProperties`"],
        ),
        (
            r#""sh":"f.sh","inputs":["in"],"customSchemaOutputs":{"out":"{\"schemaProperties\":{\"a\":\"b\"}}"}"#
                .to_owned(),
            ["`customSchemaOutputs`", "without a `schemaType`", "give"],
        ),
    ] {
        let said = typed(&fields).expect_err(&fields);
        for part in parts {
            assert!(said.contains(part), "{fields}: {said}");
        }
    }
    for (fields, ok) in [
        (r#""sourceType":"file","schemaType":"auto_publish""#, true),
        (r#""sourceType":"file","schemaType":"int64""#, false),
        (r#""sourceType":"file","schemaType":"json""#, false),
    ] {
        let text = format!(r#"{{"name":"s","topicName":"t","configs":{{"path":"/f"}},{fields}}}"#);
        let config: geminga_model::SourceConfig = serde_json::from_str(&text).expect(&text);
        let said = plan(&config.into(), None)
            .err()
            .unwrap_or_default()
            .join("; ");
        assert_eq!(said.is_empty(), ok, "{fields}: {said}");
        assert!(ok || said.contains("auto_publish"), "{said}");
    }
}
