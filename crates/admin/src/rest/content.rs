//! What a topic holds: properties, single messages, sizes; and getting rid of it.

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::{Request, State};
use axum::routing::{delete, get, post, put};
use geminga_model::Position;
use serde_json::json;

use super::extract::{InPath, Params, Plain, Segments};
use super::partitions::{not_partitioned, targets};
use super::{Admin, document, done};
use crate::error::{Answer, ApiError};
use crate::request;

/// Which topic one would be the shadow of.
const SHADOW_SOURCE: &str = "PULSAR.SHADOW_SOURCE";

pub(super) fn router() -> Router<Admin> {
    let topic = "/admin/v2/persistent/{tenant}/{namespace}/{topic}";
    let at = |rest: &str| format!("{topic}/{rest}");
    Router::new()
        .route(&at("truncate"), delete(truncate))
        .route(&at("trim"), post(trim))
        .route(&at("examinemessage"), get(examine))
        .route(&at("messageid/{time}"), get(message_id))
        .route(&at("backlogSize"), put(bytes_from))
}

async fn truncate(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Params(_): Params<Plain>,
) -> Answer {
    for topic in targets(&admin, topic).await? {
        admin.broker().truncate(&topic).await?;
    }
    done()
}

async fn trim(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Params(_): Params<Plain>,
) -> Answer {
    for topic in targets(&admin, topic).await? {
        admin.broker().trim_topic(&topic).await?;
    }
    done()
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Examined {
    #[serde(default)]
    initial_position: Option<String>,
    #[serde(default)]
    message_position: Option<u64>,
    #[serde(rename = "authoritative")]
    _authoritative: Option<bool>,
}

async fn examine(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Params(params): Params<Examined>,
) -> Answer {
    not_partitioned(&admin, &topic, "examining messages").await?;
    let from_last = match params.initial_position.as_deref() {
        None | Some("latest") => true,
        Some("earliest") => false,
        Some(other) => {
            return Err(ApiError::precondition_failed(format!(
                "`initialPosition` is `earliest` or `latest`, not `{other}`"
            )));
        }
    };
    let nth = params.message_position.unwrap_or(1);
    let entry = admin.broker().examine(&topic, nth, from_last).await?;
    super::peek::answer(entry.position, &entry.block)
}

#[derive(serde::Deserialize)]
struct Time {
    time: u64,
}

async fn message_id(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Segments(Time { time }): Segments<Time>,
    Params(_): Params<Plain>,
) -> Answer {
    not_partitioned(&admin, &topic, "a message id by time").await?;
    let position = match admin.broker().position_at(&topic, time).await? {
        Some(position) => position,
        // Pulsar answers the last one.
        None => admin.broker().last_message_id(&topic).await?.0,
    };
    document(&json!({
        "ledgerId": position.ledger.0,
        "entryId": position.entry.0,
        "partitionIndex": topic.partition().map_or(-1, i64::from),
    }))
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct From {
    ledger_id: i64,
    entry_id: i64,
    #[serde(default, rename = "partitionIndex")]
    _partition_index: Option<i64>,
}

async fn bytes_from(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Params(_): Params<Plain>,
    request: Request,
) -> Answer {
    let from: From = request::json(request).await?;
    not_partitioned(&admin, &topic, "the backlog size from a message").await?;
    let position = Position::new(from.ledger_id, from.entry_id);
    document(&admin.broker().bytes_from(&topic, position).await?)
}

pub(super) async fn properties(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Params(_): Params<Plain>,
) -> Answer {
    match admin.broker().partitions(&topic).await? {
        Some(partitioned) => document(&partitioned.properties),
        None => document(&admin.broker().topic_properties(&topic).await?),
    }
}

/// Refuses a property that asks for more than being kept.
pub(super) fn check_properties(given: Option<&BTreeMap<String, String>>) -> Answer<()> {
    match given.is_some_and(|given| given.contains_key(SHADOW_SOURCE)) {
        true => Err(ApiError::not_implemented(format!(
            "`{SHADOW_SOURCE}` cannot be honoured: a topic cannot be the shadow of another one"
        ))),
        false => Ok(()),
    }
}

pub(super) async fn put_properties(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Params(_): Params<Plain>,
    request: Request,
) -> Answer {
    let given: BTreeMap<String, String> = request::json(request).await?;
    check_properties(Some(&given))?;
    admin
        .broker()
        .change_topic_properties(&topic, given, None)
        .await?;
    done()
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Key {
    key: String,
    #[serde(rename = "authoritative")]
    _authoritative: Option<bool>,
}

pub(super) async fn remove_property(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Params(params): Params<Key>,
) -> Answer {
    admin
        .broker()
        .change_topic_properties(&topic, BTreeMap::new(), Some(params.key))
        .await?;
    done()
}
