//! Messages as REST answers: the entry's payload as the body, its metadata as headers.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use geminga_model::Position;
use geminga_proto::key::encode_base64;
use geminga_proto::message;
use geminga_proto::pb::{CompressionType, MessageMetadata};
use serde_json::{Map, Value};

use super::Admin;
use super::extract::{InPath, Number, On, Params, Plain, Segments};
use super::partitions::not_partitioned;
use crate::error::{Answer, ApiError};

/// How deep into a backlog one may look: what lies before is read too.
const DEPTH_MAX: usize = 1_000;

/// A position in the path.
#[derive(serde::Deserialize)]
pub(super) struct Place {
    ledger: i64,
    entry: i64,
}

/// The nth entry of a backlog, counted from 1.
pub(super) async fn peek(
    State(admin): State<Admin>,
    On {
        topic,
        subscription,
    }: On,
    Number(number): Number,
) -> Answer {
    not_partitioned(&admin, &topic, "peeking").await?;
    if number == 0 {
        return Err(ApiError::bad_request(
            "positions of messages are counted from 1",
        ));
    }
    let Some(count) = usize::try_from(number)
        .ok()
        .filter(|count| *count <= DEPTH_MAX)
    else {
        return Err(ApiError::precondition_failed(format!(
            "only the next {DEPTH_MAX} messages can be peeked"
        )));
    };
    let found = admin
        .broker()
        .peek_nth(&topic, &subscription, count)
        .await?;
    match found {
        Some(entry) => answer(entry.position, &entry.block),
        None => Err(ApiError::not_found("Message not found")),
    }
}

/// The entry at a position.
pub(super) async fn entry(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Segments(Place { ledger, entry }): Segments<Place>,
    Params(_): Params<Plain>,
) -> Answer {
    not_partitioned(&admin, &topic, "reading a message").await?;
    match admin
        .broker()
        .entry(&topic, Position::new(ledger, entry))
        .await?
    {
        Some(entry) => answer(entry.position, &entry.block),
        None => Err(ApiError::not_found("Message not found")),
    }
}

/// An entry as an answer.
pub(super) fn answer(position: Position, block: &Bytes) -> Answer {
    let unreadable = |error: geminga_proto::MessageError| {
        ApiError::internal(format!("the entry at {position} cannot be read: {error}"))
    };
    let broker_entry = message::decode_broker_entry(block).map_err(unreadable)?;
    let block = message::strip_broker_entry(block).map_err(unreadable)?;
    let metadata = message::decode_metadata(&block).map_err(unreadable)?;
    let payload = message::payload(&block).map_err(unreadable)?;
    let mut response = Response::new(Body::from(payload));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    let mut put = |name: &'static str, text: String| {
        // A value that HTTP cannot carry is left out rather than sent garbled.
        if let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) {
            headers.insert(name, value);
        }
    };
    put(
        "x-pulsar-message-id",
        format!("{}:{}", position.ledger.0, position.entry.0),
    );
    if let Some(entry) = broker_entry {
        if let Some(time) = entry.broker_timestamp {
            put("x-pulsar-broker-entry-metadata-timestamp", iso(time));
        }
        if let Some(index) = entry.index {
            put("x-pulsar-broker-entry-metadata-index", index.to_string());
        }
    }
    describe(&metadata, put);
    Ok(response)
}

fn describe(metadata: &MessageMetadata, mut put: impl FnMut(&'static str, String)) {
    let properties: Map<String, Value> = metadata
        .properties
        .iter()
        .map(|pair| (pair.key.clone(), Value::String(pair.value.clone())))
        .collect();
    // A single header, JSON in ASCII, as Pulsar's client reads it.
    put(
        "x-pulsar-property",
        ascii(&Value::Object(properties).to_string()),
    );
    put("x-pulsar-publish-time", iso(metadata.publish_time));
    put("x-pulsar-producer-name", metadata.producer_name.clone());
    put("x-pulsar-sequence-id", metadata.sequence_id.to_string());
    put(
        "x-pulsar-is-encrypted",
        (!metadata.encryption_keys.is_empty()).to_string(),
    );
    if let Some(time) = metadata.event_time.filter(|time| *time > 0) {
        put("x-pulsar-event-time", iso(time));
    }
    if let Some(time) = metadata
        .deliver_at_time
        .and_then(|time| u64::try_from(time).ok())
    {
        put("x-pulsar-deliver-at-time", iso(time));
    }
    if let Some(count) = metadata.num_messages_in_batch {
        put("x-pulsar-num-batch-message", count.to_string());
    }
    if let Some(compression) = metadata
        .compression
        .and_then(|number| CompressionType::try_from(number).ok())
    {
        put("x-pulsar-compression", compression.as_str_name().to_owned());
    }
    let mut optional = |name: &'static str, value: Option<String>| {
        if let Some(value) = value {
            put(name, value);
        }
    };
    let text = |number: Option<u64>| number.map(|number| number.to_string());
    let count = |number: Option<i32>| number.map(|number| number.to_string());
    optional("x-pulsar-partition-key", metadata.partition_key.clone());
    optional(
        "x-pulsar-partition-key-b64-encoded",
        metadata
            .partition_key_b64_encoded
            .map(|flag| flag.to_string()),
    );
    optional(
        "x-pulsar-null-value",
        metadata.null_value.map(|flag| flag.to_string()),
    );
    optional(
        "x-pulsar-null-partition-key",
        metadata.null_partition_key.map(|f| f.to_string()),
    );
    optional(
        "x-pulsar-uncompressed-size",
        metadata.uncompressed_size.map(|size| size.to_string()),
    );
    optional("x-pulsar-replicated-from", metadata.replicated_from.clone());
    optional("x-pulsar-encryption-algo", metadata.encryption_algo.clone());
    optional("x-pulsar-uuid", metadata.uuid.clone());
    optional(
        "x-pulsar-num-chunks-from-msg",
        count(metadata.num_chunks_from_msg),
    );
    optional(
        "x-pulsar-total-chunk-msg-size",
        count(metadata.total_chunk_msg_size),
    );
    optional("x-pulsar-chunk-id", count(metadata.chunk_id));
    optional(
        "x-pulsar-property-total-chunks",
        count(metadata.num_chunks_from_msg),
    );
    optional("x-pulsar-property-chunk-id", count(metadata.chunk_id));
    optional("x-pulsar-marker-type", count(metadata.marker_type));
    optional("x-pulsar-txnid-least-bits", text(metadata.txnid_least_bits));
    optional("x-pulsar-txnid-most-bits", text(metadata.txnid_most_bits));
    optional(
        "x-pulsar-highest-sequence-id",
        text(metadata.highest_sequence_id),
    );
    let base64 = |bytes: &Option<Bytes>| bytes.as_ref().map(|bytes| encode_base64(bytes));
    optional(
        "x-pulsar-base64-schema-version",
        base64(&metadata.schema_version),
    );
    optional(
        "x-pulsar-base64-ordering-key",
        base64(&metadata.ordering_key),
    );
    optional(
        "x-pulsar-base64-encryption-param",
        base64(&metadata.encryption_param),
    );
}

fn iso(time_ms: u64) -> String {
    let timestamp = i64::try_from(time_ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    // Milliseconds always, and an offset: the form that Pulsar's client parses.
    timestamp.map_or_else(String::new, |time| {
        time.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
    })
}

/// JSON with everything beyond ASCII escaped.
fn ascii(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_becomes_a_body_and_headers() {
        let metadata = MessageMetadata {
            producer_name: "p".to_owned(),
            sequence_id: 7,
            publish_time: 1_700_000_000_123,
            partition_key: Some("k".to_owned()),
            num_messages_in_batch: Some(2),
            properties: vec![geminga_proto::pb::KeyValue {
                key: "a".into(),
                value: "ü".into(),
            }],
            ..MessageMetadata::default()
        };
        let mut block = message::encode_headers(&metadata, b"payload");
        block.extend_from_slice(b"payload");
        let response = answer(Position::new(3, 4), &block.freeze()).unwrap();
        let header = |name: &str| response.headers()[name].to_str().unwrap();
        assert_eq!(header("X-Pulsar-Message-ID"), "3:4");
        assert_eq!(header("X-Pulsar-publish-time"), "2023-11-14T22:13:20.123Z");
        assert_eq!(header("X-Pulsar-PROPERTY"), "{\"a\":\"\\u00fc\"}");
        assert_eq!(header("X-Pulsar-num-batch-message"), "2");
        assert_eq!(header("X-Pulsar-partition-key"), "k");
        assert!(answer(Position::new(3, 4), &Bytes::from_static(b"garbage")).is_err());
    }
}
