use proptest::prelude::*;

use super::*;

fn failure(text: &str) -> String {
    parse(Path::new("t.json"), text)
        .expect_err(text)
        .to_string()
}

#[test]
fn what_is_wrong_and_where() {
    for (text, want) in [
        (
            "",
            "not valid JSON: the text ends where a value should stand\n  --> t.json:1:1",
        ),
        (
            "{\n \"a\": 1,\n \"a\": 2}",
            "`a` is given twice\n  --> t.json:3:2",
        ),
        (
            "{a: 1}",
            "not valid JSON: expected a key in double quotes, found `a`\n  --> t.json:1:2",
        ),
        (
            "[1 2]",
            "not valid JSON: expected `,` or `]`, found `2`\n  --> t.json:1:4",
        ),
        ("[01]", "not valid JSON: a wrong number\n  --> t.json:1:2"),
        (
            "[\"a]",
            "not valid JSON: the text never ends\n  --> t.json:1:2",
        ),
        (
            "[] x",
            "not valid JSON: expected the end, found `x`\n  --> t.json:1:4",
        ),
        (
            r#"["\x"]"#,
            "not valid JSON: a wrong escape or a control character in this text\n  --> t.json:1:2",
        ),
    ] {
        assert_eq!(failure(text), format!("error[G0304]: {want}"), "{text}");
    }
    assert!(failure(&"[".repeat(100_000)).contains("nested more than 64 deep"));
}

fn plain(node: &Node) -> serde_json::Value {
    match &node.value {
        Value::Null => serde_json::Value::Null,
        Value::Bool(value) => (*value).into(),
        Value::Int(value) => (*value).into(),
        Value::Uint(value) => (*value).into(),
        Value::Float(value) => (*value).into(),
        Value::Text(text) => text.clone().into(),
        Value::List(items) => items.iter().map(plain).collect(),
        Value::Map(entries) => serde_json::Value::Object(
            entries
                .iter()
                .map(|(key, value)| (key.text.clone(), plain(value)))
                .collect(),
        ),
    }
}

fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<u64>().prop_map(Into::into),
        (-1e9..1e9f64).prop_map(Into::into),
        ".*".prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
            prop::collection::btree_map(".*", inner, 0..5)
                .prop_map(|map| { serde_json::Value::Object(map.into_iter().collect()) }),
        ]
    })
}

proptest! {
    #[test]
    fn reads_what_others_write(value in any_json(), pretty in any::<bool>()) {
        let text = if pretty {
            serde_json::to_string_pretty(&value)
        } else {
            serde_json::to_string(&value)
        };
        let node = parse(Path::new("t"), &text.expect("writes"));
        prop_assert_eq!(plain(&node.expect("parses")), value);
    }

    #[test]
    fn accepts_no_more_than_json(text in "[\\[\\]{}:,\"\\\\a0-9.eE+ tfnrul-]{0,30}") {
        let theirs = serde_json::from_str::<serde_json::Value>(&text).is_ok();
        // A key given twice is legal JSON, but not here.
        if parse(Path::new("t"), &text).is_ok() {
            prop_assert!(theirs, "{}", text);
        }
    }
}
