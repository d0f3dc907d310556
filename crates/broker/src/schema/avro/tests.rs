use proptest::prelude::*;

use super::*;

fn avro(text: &str) -> Avro {
    Avro::parse(text.as_bytes()).unwrap_or_else(|reason| panic!("{text}: {reason}"))
}

fn record(fields: &str) -> Avro {
    avro(&format!(
        r#"{{"type":"record","name":"a.b.R","fields":[{fields}]}}"#
    ))
}

/// Reader, writer, readable: each the type of the one field of a record.
#[test]
fn resolution_of_types() {
    let numbers = ["int", "long", "float", "double"];
    for (r, reader) in numbers.iter().enumerate() {
        for (w, writer) in numbers.iter().enumerate() {
            check_types(&format!("\"{reader}\""), &format!("\"{writer}\""), w <= r);
        }
    }
    let others = ["null", "boolean", "int", "bytes", "string"];
    for reader in others {
        for writer in others {
            let readable = reader == writer
                || matches!((reader, writer), ("bytes", "string") | ("string", "bytes"));
            check_types(&format!("\"{reader}\""), &format!("\"{writer}\""), readable);
        }
    }
    let ab = r#"{"type":"enum","name":"E","symbols":["A","B"]}"#;
    let a = r#"{"type":"enum","name":"E","symbols":["A"]}"#;
    let a_or = r#"{"type":"enum","name":"E","symbols":["A"],"default":"A"}"#;
    let other = r#"{"type":"enum","name":"F","symbols":["A"]}"#;
    let alias = r#"{"type":"enum","name":"F","aliases":["E"],"symbols":["A","B"]}"#;
    let four = r#"{"type":"fixed","name":"X","size":4}"#;
    let five = r#"{"type":"fixed","name":"X","size":5}"#;
    let ints = r#"{"type":"array","items":"int"}"#;
    let longs = r#"{"type":"array","items":"long"}"#;
    let int_map = r#"{"type":"map","values":"int"}"#;
    let long_map = r#"{"type":"map","values":"long"}"#;
    let optional = r#"["null","int"]"#;
    let more = r#"["null","int","string"]"#;
    let date = r#"{"type":"int","logicalType":"date"}"#;
    let list = r#"{"type":"array","items":["null","a.b.R"]}"#;
    for (reader, writer, readable) in [
        (ab, a, true),
        (a, ab, false),
        (a_or, ab, true),
        (other, a, false),
        (alias, ab, true),
        (ab, alias, false),
        (four, four, true),
        (four, five, false),
        (longs, ints, true),
        (ints, longs, false),
        (long_map, int_map, true),
        (int_map, long_map, false),
        (ints, int_map, false),
        (optional, "\"int\"", true),
        ("\"int\"", optional, false),
        ("\"int\"", r#"["int"]"#, true),
        ("\"long\"", r#"["int","long"]"#, true),
        (more, optional, true),
        (optional, more, false),
        (r#"["null","double"]"#, "\"float\"", true),
        (date, "\"int\"", true),
        ("\"int\"", date, true),
        (list, list, true),
        (list, ints, false),
        (ints, "\"int\"", false),
    ] {
        check_types(reader, writer, readable);
    }
}

fn check_types(reader: &str, writer: &str, readable: bool) {
    let field = |kind: &str| record(&format!(r#"{{"name":"x","type":{kind}}}"#));
    let reason = field(reader).cannot_read(&field(writer));
    assert_eq!(
        reason.is_none(),
        readable,
        "{reader} reads {writer}: {reason:?}"
    );
}

#[test]
fn resolution_of_fields() {
    let x = r#"{"name":"x","type":"int"}"#;
    let y = r#"{"name":"y","type":"int"}"#;
    let xy = format!("{x},{y}");
    let defaulted = format!(r#"{x},{{"name":"y","type":"int","default":1}}"#);
    let nulled = r#"{"name":"x","type":["null","int"],"default":null}"#;
    let renamed = r#"{"name":"z","aliases":["x"],"type":"int"}"#;
    for (reader, writer, readable) in [
        (x, "", false),
        ("", x, true),
        (&xy, x, false),
        (&defaulted, x, true),
        (x, &xy, true),
        (nulled, "", true),
        (nulled, x, true),
        (renamed, x, true),
        (x, renamed, false),
    ] {
        let reason = record(reader).cannot_read(&record(writer));
        assert_eq!(
            reason.is_none(),
            readable,
            "{reader} reads {writer}: {reason:?}"
        );
    }
}

#[test]
fn names_have_namespaces() {
    let outer = |inner: &str| {
        avro(&format!(
            r#"{{"type":"record","name":"O","namespace":"n","fields":[
                {{"name":"a","type":{{"type":"record","name":"R","fields":[]}}}},
                {{"name":"b","type":{{"type":"record","name":"m.R","fields":[
                    {{"name":"x","type":"int"}}]}}}},
                {{"name":"c","type":"{inner}"}}]}}"#
        ))
    };
    // Avro compares the short names of records, but a reference is to one of them.
    assert!(outer("R").cannot_read(&outer("m.R")).is_none());
    assert!(outer("m.R").cannot_read(&outer("n.R")).is_some());
}

#[test]
fn a_failed_branch_is_not_taken_for_a_good_one() {
    let text = |kind: &str| {
        format!(
            r#"{{"name":"x","type":["null",{{"type":"record","name":"I","fields":[
                {{"name":"v","type":"{kind}"}}]}}]}},{{"name":"y","type":["null","a.b.I"]}}"#
        )
    };
    let (ints, texts) = (record(&text("int")), record(&text("string")));
    assert!(ints.cannot_read(&texts).is_some());
    let both = avro(
        r#"["null",{"type":"record","name":"I","fields":[{"name":"v","type":"int"}]},
            {"type":"array","items":"I"}]"#,
    );
    let other = avro(
        r#"["null",{"type":"record","name":"I","fields":[{"name":"v","type":"string"}]},
            {"type":"array","items":"I"}]"#,
    );
    assert!(both.cannot_read(&other).is_some());
}

#[test]
fn what_is_no_schema_is_refused() {
    for text in [
        "",
        "7",
        "{}",
        r#""unknown""#,
        r#"{"type":"record","name":"R","fields":7}"#,
        r#"{"type":"record","name":"R"}"#,
        r#"{"type":"record","fields":[]}"#,
        r#"{"type":"record","name":"R","fields":[{"name":"x","type":"int"},{"name":"x","type":"int"}]}"#,
        r#"{"type":"enum","name":"E","symbols":["A","A"]}"#,
        r#"{"type":"fixed","name":"E"}"#,
        r#"["int","int"]"#,
        r#"["int",["null"]]"#,
    ] {
        assert!(Avro::parse(text.as_bytes()).is_err(), "{text}");
    }
    let deep = format!("{}\"int\"{}", "[".repeat(100), "]".repeat(100));
    assert!(Avro::parse(deep.as_bytes()).is_err());
    assert!(Avro::parse(br#""string""#).is_ok());
}

/// Documents made to be slow: a product of unions, and more types than anybody needs.
#[test]
fn hostile_documents_end() {
    let wide: Vec<String> = (0..2_000)
        .map(|n| format!(r#"{{"type":"record","name":"R{n}","fields":[]}}"#))
        .collect();
    let other: Vec<String> = (2_000..4_000)
        .map(|n| format!(r#"{{"type":"record","name":"R{n}","fields":[]}}"#))
        .collect();
    let wide = avro(&format!("[{}]", wide.join(",")));
    let other = avro(&format!("[{}]", other.join(",")));
    assert!(wide.cannot_read(&other).is_some());
    let many = format!(
        "[{}]",
        vec![r#"{"type":"array","items":"int"}"#; 20_000].join(",")
    );
    assert!(Avro::parse(many.as_bytes()).is_err());
}

#[test]
fn comments_do_not_make_another_schema() {
    let plain = |text: &str| plain_document(serde_json::from_str(text).unwrap());
    assert_eq!(
        plain(
            r#"{"type":"record","name":"R","doc":"x","fields":[{"name":"x","type":{"type":"int"},"doc":"y"}]}"#
        ),
        plain(r#"{"type":"record","name":"R","fields":[{"name":"x","type":"int"}]}"#)
    );
    let with = r#"{"name":"x","type":"R","default":{"doc":"kept"}}"#;
    let without = r#"{"name":"x","type":"R","default":{}}"#;
    assert_ne!(plain(with), plain(without));
}

/// A schema document of some depth.
fn document() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::from("int")),
        Just(Value::from("string")),
        Just(Value::from("null")),
        Just(Value::from("R0")),
        Just(serde_json::json!({"type": "enum", "name": "E", "symbols": ["A"]})),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            inner
                .clone()
                .prop_map(|items| serde_json::json!({"type": "array", "items": items})),
            inner
                .clone()
                .prop_map(|values| serde_json::json!({"type": "map", "values": values})),
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            (0..4u8, proptest::collection::vec(inner, 0..4)).prop_map(|(n, types)| {
                let fields: Vec<Value> = types
                    .into_iter()
                    .enumerate()
                    .map(|(at, kind)| serde_json::json!({"name": format!("f{at}"), "type": kind}))
                    .collect();
                serde_json::json!({"type": "record", "name": format!("R{n}"), "fields": fields})
            }),
        ]
    })
}

proptest! {
    #[test]
    fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        drop(Avro::parse(&bytes));
    }

    #[test]
    fn what_parses_reads_itself(document in document()) {
        if let Ok(schema) = Avro::parse(document.to_string().as_bytes()) {
            prop_assert_eq!(schema.cannot_read(&schema), None);
        }
    }

    #[test]
    fn two_documents_are_compared_without_a_panic(a in document(), b in document()) {
        let (a, b) = (a.to_string(), b.to_string());
        if let (Ok(a), Ok(b)) = (Avro::parse(a.as_bytes()), Avro::parse(b.as_bytes())) {
            drop(a.cannot_read(&b));
        }
    }
}

/// Whoever may produce must not hold up everybody's schemas.
#[test]
fn large_enums_in_many_fields_are_not_compared_for_ever() {
    let symbols: Vec<String> = (0..5_000).map(|n| format!("s{n}")).collect();
    let document = |more: &str| {
        let mut symbols = symbols.clone();
        symbols.push(more.to_owned());
        let mut fields = vec![serde_json::json!({
            "name": "first",
            "type": {"type": "enum", "name": "E", "symbols": symbols, "default": "s0"},
        })];
        for n in 0..1_000 {
            fields.push(serde_json::json!({"name": format!("f{n}"), "type": "E"}));
        }
        serde_json::json!({"type": "record", "name": "R", "fields": fields}).to_string()
    };
    let (one, other) = (document("x"), document("y"));
    let one = Avro::parse(one.as_bytes()).unwrap();
    let reason = one.cannot_read(&Avro::parse(other.as_bytes()).unwrap());
    let reason = reason.expect("ten million symbols are too many");
    assert!(reason.contains("too complex"), "{reason}");
}
