use proptest::prelude::*;
use prost_reflect::prost::Message;
use prost_reflect::prost_types::descriptor_proto::ExtensionRange;
use prost_reflect::prost_types::field_descriptor_proto::{Label, Type};
use prost_reflect::prost_types::{
    DescriptorProto, EnumDescriptorProto, EnumValueDescriptorProto, FieldDescriptorProto,
    FileDescriptorProto, FileDescriptorSet, OneofDescriptorProto,
};

use super::*;
use crate::policies::SchemaCompatibilityStrategy as Strategy;

fn same(kind: i32, one: &[u8], other: &[u8]) -> bool {
    Comparable::new(kind, one).is(other)
}

fn read(kind: i32, text: &str) -> Definition {
    Definition::read(kind, text.as_bytes(), &BTreeMap::new()).unwrap()
}

fn record(fields: &str) -> Definition {
    read(
        TYPE_AVRO,
        &format!(r#"{{"type":"record","name":"R","fields":[{fields}]}}"#),
    )
}

const X: &str = r#"{"name":"x","type":"int"}"#;
const XY: &str = r#"{"name":"x","type":"int"},{"name":"y","type":"int"}"#;
/// `y` may be left out by a writer.
const XY_DEFAULT: &str = r#"{"name":"x","type":"int"},{"name":"y","type":"int","default":0}"#;
const STRING: &str = r#"{"name":"x","type":"string"}"#;

/// Which strategies let the last of a line follow those before it.
#[test]
fn strategies() {
    use Strategy::*;
    let all = [
        AlwaysIncompatible,
        AlwaysCompatible,
        Backward,
        Forward,
        Full,
        BackwardTransitive,
        ForwardTransitive,
        FullTransitive,
    ];
    for (line, allowed) in [
        // Nothing before it.
        (&[X][..], &all[..]),
        (&[X, XY_DEFAULT], &all[1..]),
        // What is new is not always written: only the old can read the new.
        (&[X, XY], &[AlwaysCompatible, Forward, ForwardTransitive]),
        // What goes had no default: only the new can read the old.
        (&[XY, X], &[AlwaysCompatible, Backward, BackwardTransitive]),
        (&[X, STRING], &[AlwaysCompatible]),
        // Each step is good, the whole is not: y was always there, then optional, then not.
        (
            &[XY, XY_DEFAULT, X],
            &[
                AlwaysCompatible,
                Backward,
                Forward,
                Full,
                BackwardTransitive,
            ],
        ),
        // From nothing to always, by way of optional.
        (
            &[X, XY_DEFAULT, XY],
            &[AlwaysCompatible, Backward, Forward, Full, ForwardTransitive],
        ),
    ] {
        let existing: Vec<Definition> =
            line[..line.len() - 1].iter().map(|it| record(it)).collect();
        let new = record(line[line.len() - 1]);
        for strategy in all {
            let result = check_new(strategy, &new, &existing);
            assert_eq!(
                result.is_ok(),
                allowed.contains(&strategy),
                "{line:?} {strategy:?}: {result:?}"
            );
        }
    }
}

#[test]
fn consumers() {
    use Strategy::*;
    let line = [record(XY), record(XY_DEFAULT)];
    for (strategy, wanted, readable) in [
        (Full, X, true),
        (Full, STRING, false),
        (Forward, X, true),
        (ForwardTransitive, X, true),
        (Backward, XY, true),
        (BackwardTransitive, X, true),
        (FullTransitive, X, false),
        (AlwaysCompatible, STRING, true),
        (AlwaysIncompatible, XY, false),
    ] {
        let result = check_consumer(strategy, &record(wanted), &line);
        assert_eq!(
            result.is_ok(),
            readable,
            "{strategy:?} {wanted}: {result:?}"
        );
    }
}

#[test]
fn another_type_is_another_schema() {
    let json = r#"{"type":"record","name":"R","fields":[]}"#;
    let (avro, json) = (read(TYPE_AVRO, json), read(TYPE_JSON, json));
    let existing = [avro];
    assert_eq!(
        check_new(Strategy::Backward, &json, &existing).unwrap_err(),
        "Incompatible schema: exists schema type AVRO, new schema type JSON"
    );
    assert!(check_new(Strategy::AlwaysCompatible, &json, &existing).is_ok());
}

#[test]
fn definitions_are_checked() {
    let record = r#"{"type":"record","name":"R","fields":[]}"#;
    for (kind, text, valid) in [
        (TYPE_AVRO, record, true),
        (TYPE_JSON, record, true),
        (TYPE_PROTOBUF, record, true),
        (TYPE_AVRO, r#""string""#, true),
        (TYPE_AVRO, r#"["null","int"]"#, false),
        (TYPE_AVRO, "7", false),
        (TYPE_JSON, r#"{"type":"object","properties":{}}"#, true),
        (TYPE_AVRO, r#"{"type":"object","properties":{}}"#, false),
        (TYPE_JSON, "{", false),
        (TYPE_STRING, "", true),
        (TYPE_STRING, "null", true),
        (TYPE_STRING, "x", false),
        (7, "", true),
        (7, "x", false),
        (TYPE_NONE, "anything", true),
        (TYPE_PROTOBUF_NATIVE, "x", false),
        (
            TYPE_PROTOBUF_NATIVE,
            r#"{"fileDescriptorSet":"","rootMessageTypeName":"x"}"#,
            false,
        ),
        (TYPE_KEY_VALUE, "x", false),
        (21, "", false),
        (99, "", false),
        (-1, "", false),
    ] {
        let result = Definition::read(kind, text.as_bytes(), &BTreeMap::new());
        assert_eq!(result.is_ok(), valid, "{kind} {text}: {result:?}");
    }
}

fn key_value(key: (&str, &str), value: (&str, &str)) -> Result<Definition, String> {
    let mut data = Vec::new();
    for (_, text) in [key, value] {
        data.extend_from_slice(&(text.len() as u32).to_be_bytes());
        data.extend_from_slice(text.as_bytes());
    }
    let properties = [("key", key.0), ("value", value.0)]
        .map(|(half, kind)| (format!("{half}.schema.type"), kind.to_owned()));
    Definition::read(TYPE_KEY_VALUE, &data, &properties.into())
}

#[test]
fn halves_of_key_values_are_compared_apart() {
    let avro = |fields: &str| format!(r#"{{"type":"record","name":"R","fields":[{fields}]}}"#);
    let (x, xy, text) = (avro(X), avro(XY_DEFAULT), avro(STRING));
    let first = [key_value(("AVRO", &x), ("AVRO", &x)).unwrap()];
    for (key, value, compatible) in [
        (("AVRO", x.as_str()), ("AVRO", xy.as_str()), true),
        (("AVRO", &xy), ("AVRO", &x), true),
        (("AVRO", &text), ("AVRO", &x), false),
        (("AVRO", &x), ("AVRO", &text), false),
        (("JSON", &x), ("AVRO", &x), false),
        (("STRING", ""), ("AVRO", &x), false),
    ] {
        let result = check_new(Strategy::Full, &key_value(key, value).unwrap(), &first);
        assert_eq!(result.is_ok(), compatible, "{key:?} {value:?}: {result:?}");
    }
    assert!(key_value(("AVRO", "7"), ("STRING", "")).is_err());
    assert!(key_value(("NOPE", ""), ("STRING", "")).is_err());
    assert!(key_value(("KEY_VALUE", ""), ("STRING", "")).is_err());
}

fn native(root: &str, fields: &[(i32, Type)]) -> Definition {
    let field = |(number, kind): &(i32, Type)| FieldDescriptorProto {
        name: Some(format!("f{number}")),
        number: Some(*number),
        label: Some(Label::Optional as i32),
        r#type: Some(*kind as i32),
        ..FieldDescriptorProto::default()
    };
    let file = FileDescriptorProto {
        name: Some("a.proto".to_owned()),
        package: Some("p".to_owned()),
        syntax: Some("proto3".to_owned()),
        message_type: vec![DescriptorProto {
            name: Some(root.to_owned()),
            field: fields.iter().map(field).collect(),
            ..DescriptorProto::default()
        }],
        ..FileDescriptorProto::default()
    };
    let set = FileDescriptorSet { file: vec![file] };
    let text = serde_json::json!({
        "fileDescriptorSet": geminga_proto::key::encode_base64(&set.encode_to_vec()),
        "rootMessageTypeName": format!("p.{root}"),
        "rootFileDescriptorName": "a.proto",
    });
    read(TYPE_PROTOBUF_NATIVE, &text.to_string())
}

#[test]
fn native_messages() {
    let first = [native("M", &[(1, Type::Int32), (2, Type::String)])];
    for (new, compatible) in [
        (native("M", &[(1, Type::Int64), (2, Type::Bytes)]), true),
        (native("M", &[(1, Type::Int32), (3, Type::Double)]), true),
        (native("M", &[(1, Type::String), (2, Type::String)]), false),
        (native("M", &[(1, Type::Sint32), (2, Type::String)]), false),
        (native("N", &[(1, Type::Int32), (2, Type::String)]), false),
    ] {
        let result = check_new(Strategy::Full, &new, &first);
        assert_eq!(result.is_ok(), compatible, "{result:?}");
    }
}

#[test]
fn the_same_definition() {
    let one = br#"{"type":"record","name":"R","fields":[]}"#;
    let spaced = br#"{"name": "R", "doc": "x", "type": "record", "fields": []}"#;
    assert!(same(TYPE_AVRO, one, spaced));
    assert!(same(TYPE_JSON, one, spaced));
    assert!(!same(TYPE_KEY_VALUE, one, spaced));
    assert!(!same(
        TYPE_AVRO,
        one,
        br#"{"name":"S","type":"record","fields":[]}"#
    ));
}

/// A set of files in which most of what a descriptor can say is said.
fn rich() -> Vec<u8> {
    let field = |name: &str, number: i32, kind: Type| FieldDescriptorProto {
        name: Some(name.to_owned()),
        number: Some(number),
        label: Some(Label::Optional as i32),
        r#type: Some(kind as i32),
        ..FieldDescriptorProto::default()
    };
    let of = |name: &str, number: i32, kind: Type, of: &str| FieldDescriptorProto {
        type_name: Some(of.to_owned()),
        ..field(name, number, kind)
    };
    let nested = DescriptorProto {
        name: Some("Nested".to_owned()),
        field: vec![
            of("up", 1, Type::Message, ".p.M"),
            field("s", 2, Type::String),
        ],
        ..DescriptorProto::default()
    };
    let root = DescriptorProto {
        name: Some("M".to_owned()),
        field: vec![
            FieldDescriptorProto {
                default_value: Some("7".to_owned()),
                ..field("number", 1, Type::Int32)
            },
            of("nested", 2, Type::Message, ".p.M.Nested"),
            of("choice", 3, Type::Enum, ".p.E"),
            FieldDescriptorProto {
                oneof_index: Some(0),
                ..field("one", 4, Type::Bytes)
            },
            of("group", 5, Type::Group, ".p.M.Nested"),
        ],
        nested_type: vec![nested],
        oneof_decl: vec![OneofDescriptorProto {
            name: Some("o".to_owned()),
            ..OneofDescriptorProto::default()
        }],
        extension_range: vec![ExtensionRange {
            start: Some(100),
            end: Some(200),
            ..ExtensionRange::default()
        }],
        ..DescriptorProto::default()
    };
    let value = |name: &str, number: i32| EnumValueDescriptorProto {
        name: Some(name.to_owned()),
        number: Some(number),
        ..EnumValueDescriptorProto::default()
    };
    let file = FileDescriptorProto {
        name: Some("a.proto".to_owned()),
        package: Some("p".to_owned()),
        syntax: Some("proto2".to_owned()),
        message_type: vec![root],
        enum_type: vec![EnumDescriptorProto {
            name: Some("E".to_owned()),
            value: vec![value("A", 0), value("B", 1)],
            ..EnumDescriptorProto::default()
        }],
        extension: vec![FieldDescriptorProto {
            extendee: Some(".p.M".to_owned()),
            ..field("more", 100, Type::Int64)
        }],
        ..FileDescriptorProto::default()
    };
    FileDescriptorSet { file: vec![file] }.encode_to_vec()
}

fn descriptors(files: &[u8]) -> Result<Definition, String> {
    let text = serde_json::json!({
        "fileDescriptorSet": geminga_proto::key::encode_base64(files),
        "rootMessageTypeName": "p.M",
    });
    let text = text.to_string();
    Definition::read(TYPE_PROTOBUF_NATIVE, text.as_bytes(), &BTreeMap::new())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// A set that was good, with some bytes changed, repeated or left out.
    #[test]
    fn broken_descriptors_are_read_or_refused(
        changes in proptest::collection::vec((any::<u16>(), any::<u8>(), 0..3u8), 1..6),
    ) {
        let good = rich();
        let before = descriptors(&good).unwrap();
        let mut files = good;
        for (at, byte, how) in changes {
            let at = usize::from(at) % files.len();
            match how {
                0 => files[at] = byte,
                1 => files.insert(at, byte),
                _ => drop(files.remove(at)),
            }
        }
        if let Ok(after) = descriptors(&files) {
            drop(check_new(Strategy::Full, &after, &[before]));
        }
    }
}

proptest! {
    /// Definitions come from clients.
    #[test]
    fn any_definition_is_read_or_refused(
        kind in -2..30i32,
        data in proptest::collection::vec(any::<u8>(), 0..120),
        halves in proptest::option::of(("[A-Z_]{0,9}", "[A-Z_]{0,9}")),
    ) {
        let properties = halves.map(|(key, value)| {
            BTreeMap::from([("key.schema.type".to_owned(), key), ("value.schema.type".to_owned(), value)])
        });
        drop(Definition::read(kind, &data, &properties.unwrap_or_default()));
    }

    /// The set of descriptors is the only binary one.
    #[test]
    fn any_descriptors_are_read_or_refused(files in proptest::collection::vec(any::<u8>(), 0..120)) {
        let text = serde_json::json!({
            "fileDescriptorSet": geminga_proto::key::encode_base64(&files),
            "rootMessageTypeName": "p.M",
        });
        drop(Definition::read(TYPE_PROTOBUF_NATIVE, text.to_string().as_bytes(), &BTreeMap::new()));
    }
}
