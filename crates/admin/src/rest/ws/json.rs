//! The JSON of the WebSocket API, as Pulsar's `org.apache.pulsar.websocket.data` has it, and what it
//! means to the client. Pure.

use std::collections::BTreeMap;

use geminga_client::{Message, MessageId, ReceivedMessage};
use geminga_proto::key::{decode_base64, encode_base64};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::request::explain;

/// `WebSocketError` of Pulsar: what stands behind `send-error:`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    Json = 3,
    Encoding = 7,
    Unknown = 8,
}

/// A message that a producer sends.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ProducerMessage {
    payload: Option<String>,
    properties: Option<BTreeMap<String, String>>,
    context: Option<String>,
    key: Option<String>,
    replication_clusters: Option<Vec<String>>,
    event_time: Option<String>,
    sequence_id: Option<u64>,
    disable_replication: bool,
    deliver_at: i64,
    deliver_after_ms: i64,
    schema_version: i64,
    key_schema: Option<String>,
    value_schema: Option<String>,
    encryption_param: Option<String>,
    compression_type: Option<String>,
    uncompressed_message_size: Option<i64>,
}

/// What a producer is told of a message.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ProducerAck {
    result: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_msg: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<String>,
    /// Always 0 in Pulsar: the code is in the result.
    error_code: i32,
    schema_version: i64,
}

impl ProducerAck {
    pub(super) fn ok(id: MessageId, context: Option<String>) -> Self {
        Self {
            result: "ok".to_owned(),
            error_msg: None,
            message_id: Some(text_of(id)),
            context,
            error_code: 0,
            schema_version: 0,
        }
    }

    pub(super) fn failed(code: Code, reason: impl Into<String>, context: Option<String>) -> Self {
        Self {
            result: format!("send-error:{}", code as i32),
            error_msg: Some(reason.into()),
            message_id: None,
            context,
            error_code: 0,
            schema_version: 0,
        }
    }

    pub(super) fn json(&self) -> String {
        to_json(self)
    }
}

/// A text that is an object: serde would take an array for one.
fn object<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    if !text.trim_start().starts_with('{') {
        return Err("the JSON is not valid: not an object".to_owned());
    }
    serde_json::from_str(text).map_err(|error| explain(&error.to_string()))
}

/// The message of a text, with its context; or the refusal.
pub(super) fn message(
    text: &str,
    now_ms: i64,
) -> Result<(Message, Option<String>), Box<ProducerAck>> {
    let given: ProducerMessage = object(text).map_err(|error| {
        // The context, where there is one: it tells the client which message this was.
        let value: Option<serde_json::Value> = serde_json::from_str(text).ok();
        let context = value.and_then(|value| value.get("context")?.as_str().map(str::to_owned));
        Box::new(ProducerAck::failed(Code::Json, error, context))
    })?;
    let context = given.context.clone();
    let fail = |code, reason: String| Box::new(ProducerAck::failed(code, reason, context.clone()));
    let encoding = |reason: &str| fail(Code::Encoding, reason.to_owned());
    for (name, is_set) in [
        ("schemaVersion", given.schema_version != 0),
        ("keySchema", given.key_schema.is_some()),
        ("valueSchema", given.value_schema.is_some()),
        ("encryptionParam", given.encryption_param.is_some()),
        ("compressionType", given.compression_type.is_some()),
        (
            "uncompressedMessageSize",
            given.uncompressed_message_size.is_some(),
        ),
    ] {
        if is_set {
            return Err(encoding(&format!("`{name}` is not honoured")));
        }
    }
    let payload = given
        .payload
        .as_deref()
        .ok_or_else(|| encoding("`payload` is missing"))?;
    let payload = decode_base64(payload)
        .ok_or_else(|| encoding("Invalid Base64 message-payload error=`payload` is not Base64"))?;
    let mut message = Message::new(payload).properties(given.properties.unwrap_or_default());
    if let Some(key) = given.key {
        message = message.key(key);
    }
    if let Some(text) = given.event_time {
        let at: Timestamp = text.parse().map_err(|_| {
            encoding(&format!(
                "Text '{text}' could not be parsed at index 0: `eventTime`"
            ))
        })?;
        let at = u64::try_from(at.as_millisecond());
        message = message.event_time(at.map_err(|_| encoding("`eventTime` is before 1970"))?);
    }
    if let Some(id) = given.sequence_id {
        message = message.sequence_id(id);
    }
    if given.deliver_at < 0 || given.deliver_after_ms < 0 {
        return Err(encoding(
            "`deliverAt` and `deliverAfterMs` must not be negative",
        ));
    }
    if given.deliver_at > 0 {
        message = message.deliver_at(given.deliver_at);
    }
    if given.deliver_after_ms > 0 {
        message = message.deliver_at(now_ms.saturating_add(given.deliver_after_ms));
    }
    if given.disable_replication {
        message = message.replicate_to(["__local__"]);
    } else if let Some(clusters) = given.replication_clusters {
        message = message.replicate_to(clusters);
    }
    Ok((message, given.context))
}

/// What a consumer or reader sends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    Ack(String),
    NegativeAck(String),
    Permit(u64),
    Unsubscribe,
    IsEndOfTopic,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ConsumerCommand {
    #[serde(rename = "type")]
    kind: Option<String>,
    message_id: Option<String>,
    permit_messages: Option<i64>,
}

/// The command of a text, or what is wrong with it.
pub(super) fn command(text: &str) -> Result<Command, String> {
    let given: ConsumerCommand = object(text)?;
    let id = || {
        given
            .message_id
            .clone()
            .ok_or_else(|| "`messageId` is missing".to_owned())
    };
    match given.kind.as_deref() {
        None | Some("ack") => Ok(Command::Ack(id()?)),
        Some("negativeAcknowledge") => Ok(Command::NegativeAck(id()?)),
        Some("unsubscribe") => Ok(Command::Unsubscribe),
        Some("isEndOfTopic") => Ok(Command::IsEndOfTopic),
        Some("permit") => match given.permit_messages {
            Some(count @ 1..) => Ok(Command::Permit(count.unsigned_abs())),
            Some(_) => Err("`permitMessages` must be above 0".to_owned()),
            None => Err("Missing required permitMessages field for 'permit' command".to_owned()),
        },
        Some(other) => Err(format!("there is no command `{other}`")),
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ConsumerMessage<'a> {
    message_id: &'a str,
    payload: String,
    properties: BTreeMap<&'a str, &'a str>,
    publish_time: String,
    redelivery_count: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    event_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
}

/// A message for a consumer or reader. `id` is its id as text.
pub(super) fn delivery(id: &str, message: &ReceivedMessage) -> String {
    let event_time = message.event_time.filter(|time| *time != 0);
    to_json(&ConsumerMessage {
        message_id: id,
        payload: encode_base64(&message.payload),
        properties: message
            .properties
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect(),
        publish_time: time(message.publish_time),
        redelivery_count: message.redelivery_count,
        event_time: event_time.map(time),
        key: message.key.as_deref(),
    })
}

pub(super) fn end_of_topic(is_end: bool) -> String {
    to_json(&serde_json::json!({ "endOfTopic": is_end }))
}

pub(super) fn text_of(id: MessageId) -> String {
    encode_base64(&id.to_bytes())
}

/// The id that a client got as text.
pub(super) fn id_of(text: &str) -> Option<MessageId> {
    MessageId::from_bytes(&decode_base64(text)?)
}

fn time(ms: u64) -> String {
    let time = i64::try_from(ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok());
    // A peer may send any number; what is no date is shown as it is.
    time.map_or_else(|| ms.to_string(), |time| time.to_string())
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("these types have only text for keys")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Texts come from anybody: any at all, and objects with the right names and any values.
        #[test]
        fn any_text_is_a_message_or_a_refusal(
            noise in "[\\[\\]{}:,\"a-z0-9. \\\\-]{0,60}",
            fields in proptest::collection::btree_map(
                "payload|context|key|properties|eventTime|sequenceId|deliverAt|deliverAfterMs|replicationClusters|type|messageId|permitMessages",
                "null|true|-?[0-9]{1,20}|[0-9]e[0-9]{1,3}|\"[a-zA-Z0-9=é:+-]{0,30}\"|\\[\\]|\\{\\}|\\{\"a\":\"b\"\\}",
                0..5,
            ),
            now_ms in any::<i64>(),
        ) {
            let pairs: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
            for text in [noise, format!("{{{}}}", pairs.join(","))] {
                if let Err(refusal) = message(&text, now_ms) {
                    let is_told = refusal.json().starts_with("{\"result\":\"send-error:");
                    prop_assert!(is_told);
                }
                _ = command(&text);
                _ = id_of(&text);
            }
        }
    }

    #[test]
    fn what_is_not_honoured_is_refused_by_name_with_its_context() {
        for (text, result, part, context) in [
            ("nope", "send-error:3", "JSON", None),
            ("[]", "send-error:3", "JSON", None),
            (
                r#"{"payload":"eA==","contxt":"c","context":"d"}"#,
                "send-error:3",
                "did you mean `context`?",
                Some("d"),
            ),
            (r#"{"context":"c"}"#, "send-error:7", "`payload`", Some("c")),
            (
                r#"{"payload":"***"}"#,
                "send-error:7",
                "Invalid Base64 message-payload",
                None,
            ),
            (
                r#"{"payload":"eA==","eventTime":"yesterday"}"#,
                "send-error:7",
                "'yesterday'",
                None,
            ),
            (
                r#"{"payload":"eA==","encryptionParam":"eA=="}"#,
                "send-error:7",
                "`encryptionParam`",
                None,
            ),
            (
                r#"{"payload":"eA==","schemaVersion":1}"#,
                "send-error:7",
                "`schemaVersion`",
                None,
            ),
            (
                r#"{"payload":"eA==","deliverAt":-1}"#,
                "send-error:7",
                "`deliverAt`",
                None,
            ),
        ] {
            let ack = message(text, 0).unwrap_err();
            assert_eq!(ack.result, result, "{text}");
            assert!(
                ack.error_msg.as_deref().unwrap().contains(part),
                "{text}: {ack:?}"
            );
            assert_eq!(ack.context.as_deref(), context, "{text}");
        }
    }

    #[test]
    fn a_message_has_all_its_parts() {
        let text = r#"{"payload":"aGk=","properties":{"a":"1"},"context":"c","key":"k",
            "replicationClusters":["x"],"eventTime":"2020-01-02T03:04:05.678Z","deliverAfterMs":5}"#;
        let (sent, context) = message(text, 100).unwrap();
        let want = Message::new("hi")
            .property("a", "1")
            .key("k")
            .replicate_to(["x"]);
        assert_eq!(sent, want.event_time(1_577_934_245_678).deliver_at(105));
        assert_eq!(context.as_deref(), Some("c"));
    }

    #[test]
    fn acks_are_written_as_pulsar_writes_them() {
        let ok = ProducerAck::ok(MessageId::entry(2322, 0), Some("c".to_owned()));
        assert_eq!(
            ok.json(),
            r#"{"result":"ok","messageId":"CJISEAA=","context":"c","errorCode":0,"schemaVersion":0}"#
        );
        let failed = ProducerAck::failed(Code::Unknown, "no", None);
        assert_eq!(
            failed.json(),
            r#"{"result":"send-error:8","errorMsg":"no","errorCode":0,"schemaVersion":0}"#
        );
        assert_eq!(id_of("CJISEAAwAA=="), Some(MessageId::entry(2322, 0)));
        assert_eq!(time(1_577_934_245_678), "2020-01-02T03:04:05.678Z");
    }

    #[test]
    fn commands() {
        let ack = |id: &str| Command::Ack(id.to_owned());
        for (text, want) in [
            (r#"{"messageId":"a"}"#, Ok(ack("a"))),
            (r#"{"type":"ack","messageId":"a"}"#, Ok(ack("a"))),
            (
                r#"{"type":"negativeAcknowledge","messageId":"a"}"#,
                Ok(Command::NegativeAck("a".to_owned())),
            ),
            (
                r#"{"type":"permit","permitMessages":7}"#,
                Ok(Command::Permit(7)),
            ),
            (r#"{"type":"unsubscribe"}"#, Ok(Command::Unsubscribe)),
            (r#"{"type":"isEndOfTopic"}"#, Ok(Command::IsEndOfTopic)),
            (r#"{"type":"permit"}"#, Err("permitMessages")),
            (
                r#"{"type":"permit","permitMessages":-7}"#,
                Err("permitMessages"),
            ),
            (r#"{"type":"what"}"#, Err("`what`")),
            ("{}", Err("`messageId`")),
            (r#"{"messageid":"a"}"#, Err("did you mean `messageId`?")),
            ("7", Err("JSON")),
        ] {
            match (command(text), want) {
                (Ok(got), Ok(want)) => assert_eq!(got, want, "{text}"),
                (Err(got), Err(part)) => assert!(got.contains(part), "{text}: {got}"),
                (got, want) => panic!("{text}: {got:?}, not {want:?}"),
            }
        }
    }
}
