//! Schemas: what a topic's messages are, as producers and consumers tell the broker.

use bytes::Bytes;
use geminga_model::name::TopicName;
pub use geminga_proto::pb::schema::Type as SchemaType;
use geminga_proto::pb::{self, ServerError};
use geminga_proto::{Command, command};

use crate::client::{Client, topic_name};
use crate::connection::Connection;
use crate::error::{Error, Result};

/// What a topic's messages are, as its producers and consumers tell the broker.
#[derive(Debug, Clone, PartialEq)]
pub struct Schema(pub(crate) pb::Schema);

impl Schema {
    /// A schema by its parts. `data` is what Avro, JSON and Protobuf schemas are defined by; others have none.
    #[must_use]
    pub fn new(
        kind: SchemaType,
        name: impl Into<String>,
        data: impl Into<Bytes>,
        properties: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        Self(pb::Schema {
            name: name.into(),
            schema_data: data.into(),
            r#type: kind as i32,
            properties: command::key_values(properties),
        })
    }

    /// A type that needs no definition, under the name that Pulsar's clients give it.
    #[must_use]
    pub fn of(kind: SchemaType) -> Self {
        let name = match kind {
            SchemaType::Bool => "Boolean",
            SchemaType::Int8 => "INT8",
            SchemaType::Int16 => "INT16",
            SchemaType::Int32 => "INT32",
            SchemaType::Int64 => "INT64",
            other => other.as_str_name(),
        };
        Self::new(kind, name, Bytes::new(), [])
    }

    /// Text.
    #[must_use]
    pub fn string() -> Self {
        Self::of(SchemaType::String)
    }

    /// Which kind it is; [`SchemaType::None`] for one that this client does not know.
    #[must_use]
    pub fn kind(&self) -> SchemaType {
        self.0.r#type()
    }

    /// Its name, which the broker keeps and nobody compares.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its definition; empty where its type needs none.
    #[must_use]
    pub fn data(&self) -> &Bytes {
        &self.0.schema_data
    }

    /// Its properties.
    pub fn properties(&self) -> impl Iterator<Item = (&str, &str)> {
        let pairs = self.0.properties.iter();
        pairs.map(|pair| (pair.key.as_str(), pair.value.as_str()))
    }
}

impl Client {
    /// The newest schema of a topic, of which a partitioned one has one for all its partitions. `None` where
    /// it has none, or where there is no such topic, which is not made by being asked for.
    ///
    /// # Errors
    /// When no broker answers, or it refuses.
    pub async fn schema(&self, topic: &str) -> Result<Option<Schema>> {
        let topic = topic_name(topic)?;
        let Some(count) = self.partitions_if_exists(topic.as_str()).await? else {
            return Ok(None);
        };
        let one = match count {
            0 => topic,
            _ => topic.with_partition(0),
        };
        let asked = self.shared.retry(|| async {
            let broker = self.shared.lookup(&one).await?;
            let connection = self.shared.broker_connection(&broker, 0).await?;
            current_schema(&connection, &one).await
        });
        match asked.await {
            Ok(schema) => Ok(schema.map(Schema)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The schema that a topic, or partition, has at a version, as messages name it; `None` where it has none.
    ///
    /// # Errors
    /// When no broker answers, or it refuses.
    pub async fn schema_at(&self, topic: &str, version: &Bytes) -> Result<Option<Schema>> {
        let topic = topic_name(topic)?;
        let asked = self.shared.retry(|| async {
            let broker = self.shared.lookup(&topic).await?;
            let connection = self.shared.broker_connection(&broker, 0).await?;
            schema_of(&connection, &topic, Some(version)).await
        });
        Ok(asked.await?.map(Schema))
    }

    /// The version that a topic has for a schema, which it takes where it is new. The topic must be there.
    ///
    /// # Errors
    /// When the topic does not take it (`IncompatibleSchema`), or no broker answers.
    pub async fn register_schema(&self, topic: &str, schema: &Schema) -> Result<Bytes> {
        let topic = topic_name(topic)?;
        let topics = self.shared.partitions_of(&topic).await?;
        let one = topics.first().unwrap_or(&topic);
        let registered = self.shared.retry(|| async {
            let broker = self.shared.lookup(one).await?;
            let connection = self.shared.broker_connection(&broker, 0).await?;
            register(&connection, one, schema.0.clone()).await
        });
        registered.await
    }
}

/// What the topic has now.
pub(crate) async fn current_schema(
    connection: &Connection,
    topic: &TopicName,
) -> Result<Option<pb::Schema>> {
    schema_of(connection, topic, None).await
}

/// What the topic has at a version, or now.
async fn schema_of(
    connection: &Connection,
    topic: &TopicName,
    version: Option<&Bytes>,
) -> Result<Option<pb::Schema>> {
    let request = |request_id| {
        pb::CommandGetSchema {
            request_id,
            topic: topic.as_str().to_owned(),
            schema_version: version.cloned(),
        }
        .into()
    };
    match connection.request("schema", request).await {
        Ok(Command::GetSchemaResponse(answer)) => Ok(answer.schema),
        Ok(other) => Err(Error::UnexpectedAnswer(other.name())),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The version that the topic has for a schema.
pub(crate) async fn register(
    connection: &Connection,
    topic: &TopicName,
    schema: pb::Schema,
) -> Result<Bytes> {
    let request = |request_id| {
        pb::CommandGetOrCreateSchema {
            request_id,
            topic: topic.as_str().to_owned(),
            schema,
            producer_name: None,
        }
        .into()
    };
    match connection.request("schema", request).await? {
        Command::GetOrCreateSchemaResponse(answer) => Ok(answer.schema_version.unwrap_or_default()),
        other => Err(Error::UnexpectedAnswer(other.name())),
    }
}

pub(crate) fn is_missing(error: &Error) -> bool {
    error.server_error() == Some(ServerError::TopicNotFound)
}
