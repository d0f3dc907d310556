use super::*;

fn function(text: &str) -> FunctionConfig {
    serde_json::from_str(text).expect(text)
}

/// Each row: what is changed in a function that is well, and what is said then.
#[test]
fn each_rule_for_functions() {
    let well = r#""name":"f","inputs":["in"],"output":"out","py":"f.py""#;
    assert_eq!(validate_function(&function(&format!("{{{well}}}"))), []);
    let rows: &[(&str, &str, &str)] = &[
        (
            "",
            r#""parallelism":0"#,
            "`parallelism` must be positive, it is 0",
        ),
        (
            "",
            r#""parallelism":100000"#,
            "`parallelism` is at most 1000, it is 100000",
        ),
        (
            "",
            r#""logTopic":"persistent://a/b/""#,
            "`logTopic`: topic name is empty",
        ),
        (
            "",
            r#""inputSpecs":{"persistent://a/b/":{}}"#,
            "input topic `persistent://a/b/`: topic name is empty",
        ),
        (
            "",
            r#""timeoutMs":-1"#,
            "`timeoutMs` must be positive, it is -1",
        ),
        (
            "",
            r#""timeoutMs":5,"processingGuarantees":"ATMOST_ONCE""#,
            "a time limit needs the guarantee ATLEAST_ONCE",
        ),
        ("", r#""resources":{"cpu":0}"#, "`cpu` must be positive"),
        ("", r#""resources":{"ram":-5}"#, "`ram` must be positive"),
        (
            "",
            r#""maxMessageRetries":1,"processingGuarantees":"EFFECTIVELY_ONCE""#,
            "`maxMessageRetries` and EFFECTIVELY_ONCE do not go together",
        ),
        (
            "",
            r#""deadLetterTopic":"dead""#,
            "retries have no end, so nothing ever reaches the dead letter topic",
        ),
        (
            "",
            r#""retainOrdering":true,"retainKeyOrdering":true"#,
            "`retainOrdering` and `retainKeyOrdering` exclude each other",
        ),
        (
            "",
            r#""retainKeyOrdering":true,"processingGuarantees":"EFFECTIVELY_ONCE""#,
            "order per key and EFFECTIVELY_ONCE do not go together",
        ),
        (
            "",
            r#""autoAck":false,"processingGuarantees":"ATMOST_ONCE""#,
            "`autoAck: false` contradicts ATMOST_ONCE, which acknowledges before the call",
        ),
        ("", r#""jar":"a.jar""#, "`jar` and `py` exclude each other"),
        (
            "",
            r#""secrets":{"a":"b","token":{"evn":"X"}}"#,
            "`secrets.token`: `evn` is none of `env`, `file` and `command`",
        ),
        (
            "",
            r#""runtime":"GO""#,
            "`runtime` is go, but `py` is given",
        ),
        (
            "",
            r#""logTopic":"a/b""#,
            "`logTopic`: topic name `a/b` is not of the form `persistent://tenant/namespace/topic`",
        ),
        (
            "",
            r#""inputSpecs":{"in":{"receiverQueueSize":-1}}"#,
            "`receiverQueueSize` must not be negative",
        ),
        (
            "",
            r#""inputSpecs":{"in":{"schemaType":"JSON","serdeClassName":"x"}}"#,
            "`schemaType` and `serdeClassName` exclude each other",
        ),
        (
            "",
            r#""producerConfig":{"cryptoConfig":{"cryptoKeyReaderClassName":"k"}}"#,
            "encryption needs the names of its keys",
        ),
        ("", r#""tenant":"a b""#, "`a b` is not a legal tenant"),
        (
            "",
            r#""windowConfig":{}"#,
            "a window needs a length: `windowLengthCount` or `windowLengthDurationMs`",
        ),
        (
            "",
            r#""windowConfig":{"windowLengthCount":0}"#,
            "`windowLengthCount` must be positive",
        ),
        (
            "",
            r#""windowConfig":{"windowLengthCount":3},"processingGuarantees":"MANUAL""#,
            "a window function is ATLEAST_ONCE or ATMOST_ONCE",
        ),
        (r#""inputs":["in"],"#, "", "there is no input topic"),
        (r#","py":"f.py""#, "", "there is no code to run"),
        (
            r#""name":"f","#,
            r#""name":"f/g""#,
            "`f/g` is not a legal name",
        ),
    ];
    for (without, with, want) in rows {
        let comma = if with.is_empty() { "" } else { "," };
        let text = format!("{{{}{comma}{with}}}", well.replace(without, ""));
        let text = if without.is_empty() {
            format!("{{{well},{with}}}")
        } else {
            text
        };
        let said: Vec<_> = validate_function(&function(&text))
            .into_iter()
            .map(|v| v.message)
            .collect();
        assert_eq!(said, [*want], "{text}");
    }
}

#[test]
fn output_equals_input_by_full_name() {
    for (input, output, loops) in [
        ("a", "a", true),
        ("a", "persistent://public/default/a", true),
        ("public/default/a", "a", true),
        ("non-persistent://public/default/a", "a", false),
        ("t/n/a", "a", false),
    ] {
        let text =
            format!(r#"{{"name":"f","sh":"f.sh","inputs":["{input}"],"output":"{output}"}}"#);
        assert_eq!(
            !validate_function(&function(&text)).is_empty(),
            loops,
            "{text}"
        );
    }
}

#[test]
fn sources_and_sinks() {
    let source: SourceConfig =
        serde_json::from_str(r#"{"name":"s","parallelism":0}"#).expect("reads");
    let said: Vec<_> = validate_source(&source)
        .into_iter()
        .map(|v| v.message)
        .collect();
    assert_eq!(
        said,
        [
            "a source needs a topic to write to",
            "`parallelism` must be positive, it is 0",
            "the source does not say what it is",
        ]
    );
    let sink: SinkConfig =
        serde_json::from_str(r#"{"name":"s","sinkType":"file","negativeAckRedeliveryDelayMs":-1}"#)
            .expect("reads");
    let said: Vec<_> = validate_sink(&sink)
        .into_iter()
        .map(|v| v.message)
        .collect();
    assert_eq!(
        said,
        [
            "there is no input topic",
            "`negativeAckRedeliveryDelayMs` must not be negative"
        ]
    );
}

#[test]
fn an_update_lays_fields_over_the_stored_ones() {
    let stored = function(r#"{"name":"f","inputs":["in"],"py":"f.py","parallelism":1}"#);
    let merged = merge_function(&stored, &function(r#"{"parallelism":3,"output":"out"}"#));
    assert_eq!(
        merged,
        Ok(function(
            r#"{"name":"f","inputs":["in"],"py":"f.py","parallelism":3,"output":"out"}"#
        ))
    );
    for (change, want) in [
        (r#"{"name":"g"}"#, "`name` cannot change from `f` to `g`"),
        (
            r#"{"inputs":["in","more"]}"#,
            "Input Topics cannot be altered: input `more` cannot be added by an update",
        ),
        (
            r#"{"processingGuarantees":"MANUAL"}"#,
            "Processing Guarantees cannot be altered: `processingGuarantees` cannot change from its default to \"MANUAL\"",
        ),
    ] {
        let found = merge_function(&stored, &function(change)).expect_err(change);
        assert_eq!(found[0].message, want);
    }
}

/// pulsar-admin sends `outputSchemaType: ""` with every change.
#[test]
fn an_empty_text_says_nothing() {
    let stored = r#"{"name":"f","inputs":["in"],"py":"f.py","outputSchemaType":"string"}"#;
    let stored = function(stored);
    let change = function(r#"{"outputSchemaType":"","subName":"","logTopic":"logs"}"#);
    let merged = merge_function(&stored, &change).expect("accepted");
    assert_eq!(
        (&merged.output_schema_type, &merged.sub_name),
        (&stored.output_schema_type, &None)
    );
    assert_eq!(merged.log_topic.as_deref(), Some("logs"));
    let with = |more: &str| {
        let text = format!(r#"{{"name":"f","inputs":["in"],"py":"f.py",{more}}}"#);
        let found = validate_function(&function(&text)).into_iter();
        found.map(|v| v.message).collect::<Vec<_>>()
    };
    let serde = r#""outputSchemaType":"","outputSerdeClassName":"my.Serde""#;
    assert_eq!(with(serde), Vec::<String>::new());
    let of_input = r#""inputSpecs":{"in":{"schemaType":"","serdeClassName":"my.Serde"}}"#;
    assert_eq!(with(of_input), Vec::<String>::new());
    let said = with(r#""customSchemaInputs":{"in":"nonsense"}"#);
    assert!(
        said[0].starts_with("`customSchemaInputs` of topic `in` is not a ConsumerConfig: "),
        "{said:?}"
    );
}
