use super::*;

fn read(text: &str) -> FunctionConfig {
    serde_json::from_str(text).expect(text)
}

#[test]
fn nothing_given_writes_nothing() {
    assert_eq!(
        serde_json::to_string(&FunctionConfig::default()).expect("writes"),
        "{}"
    );
}

#[test]
fn unknown_fields_and_enums_are_errors() {
    for bad in [
        r#"{"paralelism":1}"#,
        r#"{"processingGuarantees":"atleast_once"}"#,
        r#"{"subscriptionPosition":"earliest"}"#,
        r#"{"runtime":"python"}"#,
        r#"{"inputSpecs":{"a":{"regex":true}}}"#,
    ] {
        assert!(
            serde_json::from_str::<FunctionConfig>(bad).is_err(),
            "{bad}"
        );
    }
}

#[test]
fn a_configuration_tells_no_secret_by_accident() {
    let text = r#"{"secrets":{"a":"hunter2","b":{"env":"B"}}}"#;
    let config = read(text);
    let debug = format!("{config:?}");
    assert!(
        debug.contains("env") && !debug.contains("hunter2"),
        "{debug}"
    );
    assert_eq!(serde_json::to_string(&config).expect("writes"), text);
    let error = serde_json::from_str::<FunctionConfig>(r#"{"secrets":"hunter2"}"#);
    let said = error.expect_err("no map").to_string();
    assert!(!said.contains("hunter2"), "{said}");
}

#[test]
fn both_spellings_of_the_pattern_flag_are_read_and_one_is_written() {
    for text in [
        r#"{"inputSpecs":{"a":{"isRegexPattern":true}}}"#,
        r#"{"inputSpecs":{"a":{"regexPattern":true}}}"#,
    ] {
        assert_eq!(
            serde_json::to_string(&read(text)).expect("writes"),
            r#"{"inputSpecs":{"a":{"regexPattern":true}}}"#
        );
    }
}

#[test]
fn enums_are_spelt_as_pulsar_spells_them() {
    let text = concat!(
        r#"{"processingGuarantees":"EFFECTIVELY_ONCE","batchBuilder":"KEY_BASED","runtime":"GO","#,
        r#""subscriptionPosition":"Earliest"}"#
    );
    let config = read(text);
    assert_eq!(config.guarantees(), ProcessingGuarantees::EffectivelyOnce);
    assert_eq!(
        read(&serde_json::to_string(&config).expect("writes")),
        config
    );
}

#[test]
fn names_are_inferred() {
    for (text, want) in [
        (
            r#"{"className":"org.acme.Exclaim"}"#,
            Some("public/default/Exclaim"),
        ),
        (
            r#"{"className":"x.Y","name":"n","tenant":"t"}"#,
            Some("t/default/n"),
        ),
        (r#"{"fqfn":"t/n/f"}"#, Some("t/n/f")),
        (
            r#"{"sh":"./scripts/reverse.sh"}"#,
            Some("public/default/reverse"),
        ),
        (r#"{"inputs":["a"]}"#, None),
    ] {
        assert_eq!(read(text).fqfn().as_deref(), want, "{text}");
    }
}

#[test]
fn the_five_forms_of_input_fold_into_one() {
    let config = read(
        r#"{"inputs":["a"],"customSerdeInputs":{"b":"my.Serde"},
            "customSchemaInputs":{"c":"{\"schemaType\":\"STRING\"}"},"topicsPattern":"p/.*",
            "inputSpecs":{"a":{"receiverQueueSize":5}}}"#,
    );
    let all = config.all_inputs().expect("all legal");
    assert_eq!(all.keys().collect::<Vec<_>>(), ["a", "b", "c", "p/.*"]);
    assert_eq!(all["a"].receiver_queue_size, Some(5));
    assert_eq!(all["b"].serde_class_name.as_deref(), Some("my.Serde"));
    assert_eq!(all["c"].schema_type.as_deref(), Some("STRING"));
    assert_eq!(all["p/.*"].regex_pattern, Some(true));
    assert!(
        read(r#"{"customSchemaInputs":{"c":"{\"schema\":1}"}}"#)
            .all_inputs()
            .is_err()
    );
}

#[test]
fn auto_ack_false_means_manual() {
    assert_eq!(
        read(r#"{"autoAck":false}"#).guarantees(),
        ProcessingGuarantees::Manual
    );
    assert_eq!(read("{}").guarantees(), ProcessingGuarantees::AtleastOnce);
    assert_eq!(read(r#"{"maxMessageRetries":-1}"#).retries(), None);
    assert_eq!(read(r#"{"maxMessageRetries":3}"#).retries(), Some(3));
}
