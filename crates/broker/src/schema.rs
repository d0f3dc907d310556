//! Schemas of topics, with versions.
//!
//! Kept per partitioned parent, so that all partitions share them. A definition that is already
//! known returns its version; another *type* is incompatible. New Avro and JSON definitions are
//! checked against the latest by Pulsar's default strategy, FULL (each can read what the other
//! wrote). Not checked yet: Protobuf and KeyValue definitions, which are accepted as new versions,
//! and no other strategy can be chosen.

mod avro;

use std::collections::BTreeMap;
use std::sync::Arc;

use geminga_model::TopicName;
use geminga_proto::key::{decode_base64, encode_base64};
use geminga_proto::pb;
use geminga_proto::pb::KeyValue;
use geminga_storage::metadata::Expected;
use serde::{Deserialize, Serialize};

use avro::Avro;

use crate::broker::Core;
use crate::error::BrokerError;
use crate::namespace::{Catalog, encode};
use crate::topic::Topic;

const TYPE_NONE: i32 = 0;
const TYPE_JSON: i32 = 2;
const TYPE_AVRO: i32 = 4;
const TYPE_AUTO_CONSUME: i32 = 21;
/// Versions of one topic's schema.
const VERSIONS_MAX: usize = 1_000;
const BYTES_MAX: usize = 512 << 10;

/// A schema as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredSchema {
    pub name: String,
    /// The number of the type on the wire.
    pub r#type: i32,
    /// Base64.
    data: String,
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
    pub timestamp_ms: u64,
}

impl StoredSchema {
    pub fn data(&self) -> Vec<u8> {
        // Written by us.
        decode_base64(&self.data).unwrap_or_default()
    }

    pub(crate) fn to_wire(&self) -> pb::Schema {
        let pair = |(key, value): (&String, &String)| KeyValue {
            key: key.clone(),
            value: value.clone(),
        };
        pb::Schema {
            name: self.name.clone(),
            schema_data: self.data().into(),
            r#type: self.r#type,
            properties: self.properties.iter().map(pair).collect(),
        }
    }

    fn new(schema: &pb::Schema, timestamp_ms: u64) -> StoredSchema {
        StoredSchema {
            name: schema.name.clone(),
            r#type: schema.r#type,
            data: encode_base64(&schema.schema_data),
            properties: schema
                .properties
                .iter()
                .map(|pair| (pair.key.clone(), pair.value.clone()))
                .collect(),
            timestamp_ms,
        }
    }

    /// Whether it is the same definition. JSON and Avro are compared as documents.
    fn is(&self, schema: &pb::Schema) -> bool {
        if self.r#type != schema.r#type {
            return false;
        }
        let mine = self.data();
        if mine == schema.schema_data {
            return true;
        }
        if !matches!(self.r#type, TYPE_JSON | TYPE_AVRO) {
            return false;
        }
        let parse = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).ok();
        parse(&mine).is_some_and(|mine| Some(mine) == parse(&schema.schema_data))
    }
}

impl StoredSchema {
    /// Whether each of the two can read what the other wrote.
    fn check_full(&self, schema: &pb::Schema) -> Result<(), BrokerError> {
        self.check_backward(schema)?;
        let Some((latest, new)) = self.avro_with(schema) else {
            return Ok(());
        };
        match latest.cannot_read(&new) {
            Some(reason) => Err(unable_to_read(&reason)),
            None => Ok(()),
        }
    }

    /// Whether `schema` can read what was written with this one.
    fn check_backward(&self, schema: &pb::Schema) -> Result<(), BrokerError> {
        let Some((latest, new)) = self.avro_with(schema) else {
            return Ok(());
        };
        match new.cannot_read(&latest) {
            Some(reason) => Err(unable_to_read(&reason)),
            None => Ok(()),
        }
    }

    /// Both as Avro documents, where they are. A very old JSON schema may be none.
    fn avro_with(&self, schema: &pb::Schema) -> Option<(Avro, Avro)> {
        if !matches!(self.r#type, TYPE_JSON | TYPE_AVRO) {
            return None;
        }
        Some((
            Avro::parse(&self.data())?,
            Avro::parse(&schema.schema_data)?,
        ))
    }
}

fn unable_to_read(reason: &str) -> BrokerError {
    BrokerError::IncompatibleSchema(format!("Unable to read schema: {reason}"))
}

/// The version as 8 bytes, empty for none.
pub(crate) fn version_bytes(version: Option<u64>) -> Vec<u8> {
    version
        .map(|version| version.to_be_bytes().to_vec())
        .unwrap_or_default()
}

pub(crate) struct Schemas {
    catalog: Catalog,
    /// One registration at a time: versions are given out in order.
    registering: tokio::sync::Mutex<()>,
}

impl Schemas {
    pub(crate) fn new(catalog: Catalog) -> Schemas {
        Schemas {
            catalog,
            registering: tokio::sync::Mutex::new(()),
        }
    }

    pub(crate) async fn all(
        &self,
        topic: &TopicName,
    ) -> Result<Vec<(u64, StoredSchema)>, BrokerError> {
        let path = path(topic);
        let found = self.catalog.scan::<StoredSchema>(&path).await?;
        let version = |key: &str| key.rsplit('/').next().and_then(|text| text.parse().ok());
        Ok(found
            .into_iter()
            .filter_map(|(key, schema)| Some((version(&key)?, schema)))
            .collect())
    }

    pub(crate) async fn get(
        &self,
        topic: &TopicName,
        version: Option<u64>,
    ) -> Result<Option<(u64, StoredSchema)>, BrokerError> {
        let mut all = self.all(topic).await?;
        Ok(match version {
            None => all.pop(),
            Some(version) => all.into_iter().find(|(other, _)| *other == version),
        })
    }

    pub(crate) async fn register(
        &self,
        topic: &TopicName,
        schema: &pb::Schema,
        allow_new: bool,
        now_ms: u64,
    ) -> Result<u64, BrokerError> {
        let incompatible = |text: String| Err(BrokerError::IncompatibleSchema(text));
        let _one = self.registering.lock().await;
        let all = self.all(topic).await?;
        if let Some((version, _)) = all.iter().find(|(_, known)| known.is(schema)) {
            return Ok(*version);
        }
        if let Some((_, latest)) = all.last()
            && latest.r#type != schema.r#type
        {
            return incompatible(format!(
                "Incompatible schema: exists schema type {}, new schema type {}",
                type_name(latest.r#type),
                type_name(schema.r#type)
            ));
        }
        if !allow_new && !all.is_empty() {
            return incompatible(
                "Schema not found and schema auto updating is disabled.".to_owned(),
            );
        }
        if all.len() >= VERSIONS_MAX {
            return incompatible(format!("more than {VERSIONS_MAX} versions of a schema"));
        }
        check(schema)?;
        if let Some((_, latest)) = all.last() {
            latest.check_full(schema)?;
        }
        let version = all.last().map_or(0, |(version, _)| version + 1);
        let key = format!("{}/{version:020}", path(topic));
        let stored = StoredSchema::new(schema, now_ms);
        self.catalog.put(&key, &stored, Expected::Absent).await?;
        Ok(version)
    }

    pub(crate) async fn delete(&self, topic: &TopicName) -> Result<(), BrokerError> {
        for (version, _) in self.all(topic).await? {
            self.catalog
                .delete(&format!("{}/{version:020}", path(topic)))
                .await?;
        }
        Ok(())
    }
}

/// The definition can be read at all.
fn check(schema: &pb::Schema) -> Result<(), BrokerError> {
    if schema.schema_data.len() > BYTES_MAX {
        return Err(BrokerError::IncompatibleSchema(format!(
            "schema definition is larger than {BYTES_MAX} bytes"
        )));
    }
    let readable = match schema.r#type {
        TYPE_AVRO => Avro::parse(&schema.schema_data).is_some(),
        TYPE_JSON => serde_json::from_slice::<serde_json::Value>(&schema.schema_data).is_ok(),
        _ => true,
    };
    if !readable {
        return Err(BrokerError::IncompatibleSchema(format!(
            "Invalid schema definition data for {} schema",
            type_name(schema.r#type)
        )));
    }
    Ok(())
}

fn path(topic: &TopicName) -> String {
    let parent = topic.parent();
    format!(
        "/schemas/{}/{}",
        parent.namespace_str(),
        encode(parent.local())
    )
}

/// The type's name as REST shows it.
pub fn type_name(number: i32) -> &'static str {
    const NAMES: [&str; 22] = [
        "NONE",
        "STRING",
        "JSON",
        "PROTOBUF",
        "AVRO",
        "BOOLEAN",
        "INT8",
        "INT16",
        "INT32",
        "INT64",
        "FLOAT",
        "DOUBLE",
        "DATE",
        "TIME",
        "TIMESTAMP",
        "KEY_VALUE",
        "INSTANT",
        "LOCAL_DATE",
        "LOCAL_TIME",
        "LOCAL_DATE_TIME",
        "PROTOBUF_NATIVE",
        "AUTO_CONSUME",
    ];
    usize::try_from(number)
        .ok()
        .and_then(|at| NAMES.get(at))
        .copied()
        .unwrap_or("UNKNOWN")
}

impl Core {
    /// A producer's schema: registers it; returns its version.
    pub(crate) async fn producer_schema(
        &self,
        topic: &TopicName,
        schema: Option<&pb::Schema>,
    ) -> Result<Option<u64>, BrokerError> {
        match schema.filter(|schema| schema.r#type != TYPE_NONE) {
            Some(schema) => {
                let allow_new = self.config.is_allow_auto_update_schema_enabled;
                let now_ms = self.clock.now_ms();
                self.schemas
                    .register(topic, schema, allow_new, now_ms)
                    .await
                    .map(Some)
            }
            None if self.config.is_schema_validation_enforced
                && self.schemas.get(topic, None).await?.is_some() =>
            {
                Err(BrokerError::IncompatibleSchema(
                    "Producers cannot connect or send message without a schema to topics with a \
                     schema when SchemaValidationEnforced is enabled"
                        .to_owned(),
                ))
            }
            None => Ok(None),
        }
    }

    /// A consumer's schema: added to an idle topic without one, otherwise checked.
    pub(crate) async fn consumer_schema(
        &self,
        topic: &Arc<Topic>,
        schema: Option<&pb::Schema>,
    ) -> Result<(), BrokerError> {
        let Some(schema) =
            schema.filter(|schema| !matches!(schema.r#type, TYPE_NONE | TYPE_AUTO_CONSUME))
        else {
            return Ok(());
        };
        let latest = self.schemas.get(&topic.name, None).await?;
        match latest {
            Some((_, latest)) if latest.r#type == schema.r#type => latest.check_backward(schema),
            Some((_, latest)) => Err(BrokerError::IncompatibleSchema(format!(
                "Incompatible schema: exists schema type {}, new schema type {}",
                type_name(latest.r#type),
                type_name(schema.r#type)
            ))),
            None if topic.was_never_used() => {
                let now_ms = self.clock.now_ms();
                self.schemas
                    .register(&topic.name, schema, true, now_ms)
                    .await
                    .map(drop)
            }
            None => Err(BrokerError::IncompatibleSchema(
                "Topic does not have schema to check".to_owned(),
            )),
        }
    }
}
