//! Which fields there are, and a value for each.

use geminga_model::{ConsumerConfig, FunctionConfig, ProducerConfig, Resources};
use serde::de::{DeserializeOwned, Deserializer, Visitor, value::Error as Nothing};
use serde_json::{Value, json};

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
pub(super) fn all_fields() -> Vec<String> {
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
pub(super) fn sample(field: &str) -> Value {
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
