//! `/admin/v2/schemas`: the versions of a topic's schema.

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::{FromRequest, FromRequestParts, Request, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use geminga_broker::{StoredSchema, schema_type_name, schema_type_number};
use geminga_model::TopicName;
use geminga_proto::pb;
use serde_json::{Value, json};

use super::extract::{Force, Params, Plain, Segments};
use super::{Admin, document};
use crate::error::{Answer, ApiError};
use crate::request;

const KEY_VALUE: &str = "KEY_VALUE";

pub(super) fn router() -> Router<Admin> {
    let topic = "/admin/v2/schemas/{tenant}/{namespace}/{topic}";
    Router::new()
        .route(
            &format!("{topic}/schema"),
            get(latest).post(create).delete(delete),
        )
        .route(&format!("{topic}/schema/{{version}}"), get(one))
        .route(&format!("{topic}/schemas"), get(all))
        .route(&format!("{topic}/version"), post(version_of))
        .route(&format!("{topic}/compatibility"), post(compatibility))
}

/// The topic of a schema; schemas belong to persistent topics.
#[derive(serde::Deserialize)]
struct Named {
    tenant: String,
    namespace: String,
    topic: String,
    version: Option<u64>,
}

impl Named {
    fn topic(&self) -> Answer<TopicName> {
        let domain = geminga_model::TopicDomain::Persistent;
        request::topic(domain, &self.tenant, &self.namespace, &self.topic)
    }
}

/// `PostSchemaPayload`.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    r#type: String,
    schema: String,
    #[serde(default)]
    properties: Option<BTreeMap<String, String>>,
}

impl Given {
    fn schema(self, topic: &TopicName) -> Answer<pb::Schema> {
        let Some(number) = schema_type_number(&self.r#type) else {
            return Err(ApiError::unprocessable(format!(
                "unknown schema type `{}`",
                self.r#type
            )));
        };
        let data = if self.r#type == KEY_VALUE {
            join(&self.schema)?
        } else {
            self.schema.into_bytes()
        };
        Ok(pb::Schema {
            name: topic.local().to_owned(),
            schema_data: data.into(),
            r#type: number,
            properties: self
                .properties
                .unwrap_or_default()
                .into_iter()
                .map(|(key, value)| pb::KeyValue { key, value })
                .collect(),
        })
    }
}

/// A key-value schema, from `{"key":..,"value":..}` to two lengths and definitions.
fn join(text: &str) -> Answer<Vec<u8>> {
    let value: Value = serde_json::from_str(text).map_err(|_| {
        ApiError::unprocessable("a KEY_VALUE schema is `{\"key\":..,\"value\":..}`")
    })?;
    let mut data = Vec::new();
    for part in ["key", "value"] {
        let text = match &value[part] {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        data.extend_from_slice(&(text.len() as u32).to_be_bytes());
        data.extend_from_slice(text.as_bytes());
    }
    Ok(data)
}

/// The reverse of `join`; none when the bytes are not of that form.
fn split(data: &[u8]) -> Option<Value> {
    let mut rest = data;
    let mut take = || {
        let (length, behind) = rest.split_first_chunk::<4>()?;
        let length = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
        let text = std::str::from_utf8(behind.get(..length)?).ok()?;
        rest = behind.get(length..)?;
        Some(serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned())))
    };
    Some(json!({ "key": take()?, "value": take()? }))
}

fn shown(version: u64, schema: &StoredSchema) -> Value {
    let kind = schema_type_name(schema.r#type);
    let data = schema.data();
    let text = match split(&data).filter(|_| kind == KEY_VALUE) {
        Some(parts) => parts.to_string(),
        None => String::from_utf8_lossy(&data).into_owned(),
    };
    json!({
        "version": version,
        "type": kind,
        "timestamp": schema.timestamp_ms,
        "data": text,
        "properties": schema.properties,
    })
}

/// The versions, oldest first; of an existing namespace.
async fn versions(admin: &Admin, named: &Named) -> Answer<Vec<(u64, StoredSchema)>> {
    let topic = named.topic()?;
    admin.broker().policies(&topic.namespace()).await?;
    Ok(admin.broker().schemas(&topic).await?)
}

/// One of them.
fn found(version: Option<&(u64, StoredSchema)>) -> Answer {
    match version {
        Some((version, schema)) => document(&shown(*version, schema)),
        None => Err(ApiError::not_found("Schema not found")),
    }
}

async fn latest(
    State(admin): State<Admin>,
    Segments(named): Segments<Named>,
    Params(_): Params<Plain>,
) -> Answer {
    let versions = versions(&admin, &named).await?;
    found(versions.last())
}

async fn one(
    State(admin): State<Admin>,
    Segments(named): Segments<Named>,
    Params(_): Params<Plain>,
) -> Answer {
    let versions = versions(&admin, &named).await?;
    let wanted = versions
        .iter()
        .find(|(version, _)| Some(*version) == named.version);
    found(wanted)
}

async fn all(
    State(admin): State<Admin>,
    Segments(named): Segments<Named>,
    Params(_): Params<Plain>,
) -> Answer {
    let versions = versions(&admin, &named).await?;
    let all: Vec<Value> = versions
        .iter()
        .map(|(version, schema)| shown(*version, schema))
        .collect();
    document(&json!({ "getSchemaResponses": all }))
}

/// A schema that was sent for a topic.
struct Posted {
    topic: TopicName,
    schema: pb::Schema,
}

impl FromRequest<Admin> for Posted {
    type Rejection = ApiError;

    async fn from_request(request: Request, admin: &Admin) -> Result<Self, ApiError> {
        let (mut parts, body) = request.into_parts();
        let Segments(named) = Segments::<Named>::from_request_parts(&mut parts, admin).await?;
        Params::<Plain>::from_request_parts(&mut parts, admin).await?;
        let topic = named.topic()?;
        admin.broker().policies(&topic.namespace()).await?;
        let given: Given = request::json(Request::from_parts(parts, body)).await?;
        let schema = given.schema(&topic)?;
        Ok(Posted { topic, schema })
    }
}

async fn create(State(admin): State<Admin>, Posted { topic, schema }: Posted) -> Answer {
    let version = admin.broker().create_schema(&topic, &schema).await?;
    document(&json!({ "version": { "version": version } }))
}

async fn delete(
    State(admin): State<Admin>,
    Segments(named): Segments<Named>,
    Params(params): Params<Force>,
) -> Answer {
    let topic = named.topic()?;
    admin.broker().policies(&topic.namespace()).await?;
    let deleted = admin.broker().delete_schema(&topic, params.force).await?;
    document(&json!({ "version": or_none(deleted) }))
}

async fn version_of(State(admin): State<Admin>, Posted { topic, schema }: Posted) -> Answer {
    let version = admin.broker().schema_version(&topic, &schema).await?;
    document(&json!({ "version": or_none(version) }))
}

/// Pulsar answers 500 for what is not compatible; the document has a field for it.
async fn compatibility(State(admin): State<Admin>, Posted { topic, schema }: Posted) -> Answer {
    let (strategy, compatible) = admin.broker().is_schema_compatible(&topic, &schema).await?;
    let mut response = document(&json!({
        "schemaCompatibilityStrategy": strategy,
        "compatibility": compatible,
    }))?;
    *response.status_mut() = StatusCode::ACCEPTED;
    Ok(response)
}

/// A version as REST shows it: -1 stands for none.
fn or_none(version: Option<u64>) -> i64 {
    version
        .and_then(|version| i64::try_from(version).ok())
        .unwrap_or(-1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_value_schemas_go_both_ways() {
        let text = r#"{"key":"","value":{"type":"record"}}"#;
        let data = join(text).unwrap();
        assert_eq!(
            split(&data).unwrap(),
            serde_json::from_str::<Value>(text).unwrap()
        );
        assert_eq!(split(b"\0\0\0\x09x"), None);
    }
}
