//! Schemas of topics, with versions.
//!
//! Kept per partitioned parent, so that all partitions share them. A definition that is already
//! known returns its version; a new one must be allowed by the strategy in force (`compatibility`
//! decides). A deletion is a version without a schema: what is before it is removed, and numbers go on
//! behind it. With force, all versions go, and numbers begin anew.

mod avro;
mod compatibility;
mod key_value;
mod native;

use std::collections::BTreeMap;
use std::sync::Arc;

use geminga_model::TopicName;
use geminga_proto::key::{decode_base64, encode_base64};
use geminga_proto::pb;
use geminga_proto::pb::KeyValue;
use geminga_storage::metadata::Expected;
use serde::{Deserialize, Serialize};

use compatibility::{
    Comparable, Definition, check_consumer, check_new, compared, compared_by_consumer,
};

use crate::broker::Core;
use crate::error::BrokerError;
use crate::namespace::{Catalog, encode};
use crate::policies::SchemaCompatibilityStrategy;
use crate::topic::Topic;

const TYPE_NONE: i32 = 0;
const TYPE_STRING: i32 = 1;
const TYPE_JSON: i32 = 2;
const TYPE_PROTOBUF: i32 = 3;
const TYPE_AVRO: i32 = 4;
const TYPE_KEY_VALUE: i32 = 15;
const TYPE_PROTOBUF_NATIVE: i32 = 20;
const TYPE_AUTO_CONSUME: i32 = 21;
/// Versions of one topic's schema.
const VERSIONS_MAX: usize = 1_000;
/// Of one schema: its definition, name and properties.
const BYTES_MAX: usize = 512 << 10;
/// Of all versions of one topic's schema: they are read as a whole.
const HISTORY_BYTES_MAX: usize = 16 << 20;
/// Schemas of so many topics are read and compared at once: the rest waits, so that memory and
/// processors are left to others.
const READERS_MAX: usize = 4;

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
    /// Not a schema, but the end of those before it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    deleted: bool,
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
            properties: properties(schema),
            timestamp_ms,
            deleted: false,
        }
    }

    /// What it takes in memory.
    fn size(&self) -> usize {
        size_of(&self.name, self.data.as_bytes(), &self.properties)
    }

    fn deletion(timestamp_ms: u64) -> StoredSchema {
        StoredSchema {
            deleted: true,
            ..StoredSchema::new(&pb::Schema::default(), timestamp_ms)
        }
    }

    fn definition(&self) -> Result<Definition, BrokerError> {
        Definition::read(self.r#type, &self.data(), &self.properties)
            .map_err(BrokerError::IncompatibleSchema)
    }
}

fn properties(schema: &pb::Schema) -> BTreeMap<String, String> {
    let pair = |pair: &KeyValue| (pair.key.clone(), pair.value.clone());
    schema.properties.iter().map(pair).collect()
}

/// The version as 8 bytes, empty for none.
pub(crate) fn version_bytes(version: Option<u64>) -> Vec<u8> {
    version
        .map(|version| version.to_be_bytes().to_vec())
        .unwrap_or_default()
}

/// What a schema takes in memory.
fn size_of(name: &str, data: &[u8], properties: &BTreeMap<String, String>) -> usize {
    let pairs = properties.iter();
    let pairs: usize = pairs.map(|(key, value)| key.len() + value.len()).sum();
    name.len() + data.len() + pairs
}

/// A topic's versions, oldest first.
type Versions = Vec<(u64, StoredSchema)>;

pub(crate) struct Schemas {
    catalog: Catalog,
    /// One change at a time: versions are given out in order.
    changing: tokio::sync::Mutex<()>,
    reading: tokio::sync::Semaphore,
}

impl Schemas {
    pub(crate) fn new(catalog: Catalog) -> Schemas {
        Schemas {
            catalog,
            changing: tokio::sync::Mutex::new(()),
            reading: tokio::sync::Semaphore::new(READERS_MAX),
        }
    }

    /// A turn to read and compare: to be held as long as versions are. Whoever changes takes
    /// `changing` first.
    async fn turn(&self) -> Option<tokio::sync::SemaphorePermit<'_>> {
        // Never closed.
        self.reading.acquire().await.ok()
    }

    /// The last deletion too, and what an interrupted one has left.
    async fn history(&self, topic: &TopicName) -> Result<Versions, BrokerError> {
        let path = path(topic);
        let found = self.catalog.scan::<StoredSchema>(&path).await?;
        let version = |key: &str| key.rsplit('/').next().and_then(|text| text.parse().ok());
        Ok(found
            .into_iter()
            .filter_map(|(key, schema)| Some((version(&key)?, schema)))
            .collect())
    }

    pub(crate) async fn all(&self, topic: &TopicName) -> Result<Versions, BrokerError> {
        let _turn = self.turn().await;
        Ok(live(self.history(topic).await?))
    }

    pub(crate) async fn get(
        &self,
        topic: &TopicName,
        version: Option<u64>,
    ) -> Result<Option<(u64, StoredSchema)>, BrokerError> {
        let _turn = self.turn().await;
        let mut all = live(self.history(topic).await?);
        Ok(match version {
            None => all.pop(),
            Some(version) => all.into_iter().find(|(other, _)| *other == version),
        })
    }

    /// The version that has this definition.
    pub(crate) async fn version_of(
        &self,
        topic: &TopicName,
        schema: &pb::Schema,
    ) -> Result<Option<u64>, BrokerError> {
        let _turn = self.turn().await;
        Ok(find(&live(self.history(topic).await?), schema))
    }

    /// Whether the schema could become the next version; else why not.
    pub(crate) async fn check(
        &self,
        topic: &TopicName,
        schema: &pb::Schema,
        strategy: SchemaCompatibilityStrategy,
    ) -> Result<(), BrokerError> {
        let _turn = self.turn().await;
        let all = live(self.history(topic).await?);
        match find(&all, schema) {
            Some(_) => Ok(()),
            None => check(&all, schema, strategy),
        }
    }

    pub(crate) async fn register(
        &self,
        topic: &TopicName,
        schema: &pb::Schema,
        strategy: SchemaCompatibilityStrategy,
        now_ms: u64,
    ) -> Result<u64, BrokerError> {
        let _one = self.changing.lock().await;
        let _turn = self.turn().await;
        let history = self.history(topic).await?;
        let next = next(&history);
        let all = live(history);
        if let Some(version) = find(&all, schema) {
            return Ok(version);
        }
        if all.len() >= VERSIONS_MAX {
            return Err(BrokerError::IncompatibleSchema(format!(
                "more than {VERSIONS_MAX} versions of a schema"
            )));
        }
        check(&all, schema, strategy)?;
        let stored = StoredSchema::new(schema, now_ms);
        let bytes: usize = all.iter().map(|(_, stored)| stored.size()).sum();
        if bytes + stored.size() > HISTORY_BYTES_MAX {
            return Err(BrokerError::IncompatibleSchema(format!(
                "all versions of a schema together are larger than {HISTORY_BYTES_MAX} bytes: \
                 deleting the schema makes room"
            )));
        }
        self.add(topic, next, &stored).await?;
        Ok(next)
    }

    /// Ends the versions there are; returns the deletion's own version, none if there was nothing.
    pub(crate) async fn delete(
        &self,
        topic: &TopicName,
        now_ms: u64,
    ) -> Result<Option<u64>, BrokerError> {
        let _one = self.changing.lock().await;
        let _turn = self.turn().await;
        let history = self.history(topic).await?;
        let next = next(&history);
        let versions: Vec<u64> = history.iter().map(|(version, _)| *version).collect();
        let is_deleted = live(history).is_empty();
        if !is_deleted {
            self.add(topic, next, &StoredSchema::deletion(now_ms))
                .await?;
        }
        // From the first one on, so that nothing old comes to light again when this is interrupted;
        // the deletion stays.
        let last = if is_deleted {
            next.saturating_sub(1)
        } else {
            next
        };
        for version in versions.into_iter().filter(|version| *version < last) {
            self.catalog.delete(&key(topic, version)).await?;
        }
        Ok((!is_deleted).then_some(next))
    }

    /// Removes all versions, as if there had never been one.
    pub(crate) async fn forget(&self, topic: &TopicName) -> Result<(), BrokerError> {
        let _one = self.changing.lock().await;
        let _turn = self.turn().await;
        for (version, _) in self.history(topic).await? {
            self.catalog.delete(&key(topic, version)).await?;
        }
        Ok(())
    }

    async fn add(
        &self,
        topic: &TopicName,
        version: u64,
        schema: &StoredSchema,
    ) -> Result<(), BrokerError> {
        let key = key(topic, version);
        self.catalog.put(&key, schema, Expected::Absent).await
    }
}

/// What is behind the last deletion.
fn live(mut history: Versions) -> Versions {
    match history.iter().rposition(|(_, schema)| schema.deleted) {
        Some(deletion) => history.split_off(deletion + 1),
        None => history,
    }
}

fn next(history: &Versions) -> u64 {
    history.last().map_or(0, |(version, _)| version + 1)
}

fn find(versions: &Versions, schema: &pb::Schema) -> Option<u64> {
    // Most often it is the newest, byte by byte.
    let newest_first = || {
        let same_type = |(_, known): &&(u64, StoredSchema)| known.r#type == schema.r#type;
        versions.iter().rev().filter(same_type)
    };
    let text = encode_base64(&schema.schema_data);
    let wanted = Comparable::new(schema.r#type, &schema.schema_data);
    newest_first()
        .find(|(_, known)| known.data == text)
        .or_else(|| newest_first().find(|(_, known)| wanted.is(&known.data())))
        .map(|(version, _)| *version)
}

/// The definition of a schema that a client sent.
fn read(schema: &pb::Schema) -> Result<Definition, BrokerError> {
    let properties = properties(schema);
    if size_of(&schema.name, &schema.schema_data, &properties) > BYTES_MAX {
        return Err(BrokerError::InvalidSchema(format!(
            "schema definition is larger than {BYTES_MAX} bytes"
        )));
    }
    Definition::read(schema.r#type, &schema.schema_data, &properties)
        .map_err(BrokerError::InvalidSchema)
}

fn check(
    existing: &[(u64, StoredSchema)],
    schema: &pb::Schema,
    strategy: SchemaCompatibilityStrategy,
) -> Result<(), BrokerError> {
    let new = read(schema)?;
    // One by one: all at once would be many times what is stored.
    for (_, known) in compared(strategy, existing) {
        check_new(strategy, &new, &[known.definition()?])
            .map_err(BrokerError::IncompatibleSchema)?;
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

fn key(topic: &TopicName, version: u64) -> String {
    format!("{}/{version:020}", path(topic))
}

const TYPE_NAMES: [&str; 22] = [
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

/// The type's name as REST shows it.
pub fn type_name(number: i32) -> &'static str {
    usize::try_from(number)
        .ok()
        .and_then(|at| TYPE_NAMES.get(at))
        .copied()
        .unwrap_or("UNKNOWN")
}

/// The reverse of [`type_name`]. Bytes have no schema.
pub fn type_number(name: &str) -> Option<i32> {
    let name = if name == "BYTES" { "NONE" } else { name };
    let at = TYPE_NAMES.iter().position(|known| *known == name)?;
    i32::try_from(at).ok()
}

impl Core {
    /// A producer's schema: registers it; returns its version.
    pub(crate) async fn producer_schema(
        &self,
        topic: &TopicName,
        schema: Option<&pb::Schema>,
    ) -> Result<Option<u64>, BrokerError> {
        let rules = self.effective_policies(topic).await?.policies;
        match schema.filter(|schema| schema.r#type != TYPE_NONE) {
            Some(schema) if rules.auto_update_schema => {
                let now_ms = self.clock.now_ms();
                self.schemas
                    .register(topic, schema, rules.schema_compatibility_strategy, now_ms)
                    .await
                    .map(Some)
            }
            Some(schema) => match self.schemas.version_of(topic, schema).await? {
                Some(version) => Ok(Some(version)),
                None => Err(BrokerError::IncompatibleSchema(
                    "Schema not found and schema auto updating is disabled.".to_owned(),
                )),
            },
            None if rules.schema_validation_enforced
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
        let turn = self.schemas.turn().await;
        let all = live(self.schemas.history(&topic.name).await?);
        if all.is_empty() && topic.was_never_used() {
            drop(turn);
            return self
                .producer_schema(&topic.name, Some(schema))
                .await
                .map(drop);
        }
        let rules = self.effective_policies(&topic.name).await?.policies;
        let strategy = rules.schema_compatibility_strategy;
        if strategy == SchemaCompatibilityStrategy::AlwaysCompatible {
            return Ok(());
        }
        if all.is_empty() {
            return Err(BrokerError::IncompatibleSchema(
                "Topic does not have schema to check".to_owned(),
            ));
        }
        let wanted = read(schema)?;
        for (_, known) in compared_by_consumer(strategy, &all) {
            check_consumer(strategy, &wanted, &[known.definition()?])
                .map_err(BrokerError::IncompatibleSchema)?;
        }
        Ok(())
    }
}
