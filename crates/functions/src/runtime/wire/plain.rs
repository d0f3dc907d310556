//! Framings for tools that know nothing of Geminga: a record in, a record out, in order.
//! `line`, `nul`, `len`, and `json` with an object a line that may say more.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};
use serde_json::{Map, Value, json};

use super::shell::{base64, from_base64};
use super::{Codec, FromHost, WireError};
use crate::runtime::options::{Framing, Options};
use crate::runtime::{Failure, FailureKind, HostSpec, Message, Output, Verdict};

/// State of the conversation.
#[derive(Debug)]
pub(crate) struct Plain {
    framing: Framing,
    max: usize,
    /// The messages that were written and have no reply yet, where replies have no numbers. As many as
    /// the window is wide.
    expected: VecDeque<u64>,
    scanned: usize,
}

impl Plain {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            framing: options.framing,
            max: usize::try_from(options.max_output_bytes).unwrap_or(usize::MAX),
            expected: VecDeque::new(),
            scanned: 0,
        }
    }

    /// The bytes of one message.
    pub(crate) fn write(&self, id: u64, message: &Message, out: &mut Vec<u8>) {
        use std::io::Write;
        match self.framing {
            Framing::Json | Framing::Host => {
                // Writing to a Vec can not fail.
                let _ = serde_json::to_writer(&mut *out, &to_json(id, message));
                out.push(b'\n');
            }
            Framing::Len => {
                let _ = writeln!(out, "{}", message.payload.len());
                out.extend_from_slice(&message.payload);
            }
            Framing::Line | Framing::Nul => {
                out.extend_from_slice(&message.payload);
                out.push(self.delimiter());
            }
        }
    }

    fn delimiter(&self) -> u8 {
        if self.framing == Framing::Nul {
            0
        } else {
            b'\n'
        }
    }

    /// Why this framing can not carry `message`.
    pub(crate) fn cannot_carry(&self, message: &Message) -> Option<Failure> {
        let what = match self.framing {
            Framing::Line if message.payload.contains(&b'\n') => "a newline",
            Framing::Nul if message.payload.contains(&0) => "a NUL byte",
            _ => return None,
        };
        Some(Failure::new(
            FailureKind::Data,
            format!(
                "the payload holds {what}, which the framing uses: set `framing` to `len` or `json`"
            ),
        ))
    }

    /// Cuts the next record off the front.
    pub(crate) fn cut(&mut self, input: &mut BytesMut) -> Result<Option<Bytes>, WireError> {
        let delimiter = if self.framing == Framing::Len {
            b'\n'
        } else {
            self.delimiter()
        };
        let Some(at) = input[self.scanned..].iter().position(|&b| b == delimiter) else {
            self.scanned = input.len();
            return if input.len() > self.max {
                Err(WireError::TooLarge(self.max as u64))
            } else {
                Ok(None)
            };
        };
        let at = at + self.scanned;
        if self.framing != Framing::Len {
            self.scanned = 0;
            let record = input.split_to(at).freeze();
            input.advance(1);
            return Ok(Some(record));
        }
        let size: usize = std::str::from_utf8(&input[..at])
            .ok()
            .and_then(|digits| digits.trim().parse().ok())
            .ok_or_else(|| WireError::Protocol("a length that is not a number".to_owned()))?;
        if size > self.max {
            return Err(WireError::TooLarge(self.max as u64));
        }
        if input.len() < at + 1 + size {
            self.scanned = 0;
            return Ok(None);
        }
        self.scanned = 0;
        input.advance(at + 1);
        Ok(Some(input.split_to(size).freeze()))
    }
}

impl Codec for Plain {
    fn hello(&mut self, _spec: &HostSpec, _out: &mut Vec<u8>) -> bool {
        false
    }

    fn refuses(&self, message: &Message) -> Option<Failure> {
        self.cannot_carry(message)
    }

    fn encode(
        &mut self,
        first: u64,
        messages: &mut dyn ExactSizeIterator<Item = &Message>,
        out: &mut Vec<u8>,
    ) {
        for (id, message) in (first..).zip(messages) {
            self.write(id, message, out);
            if self.framing != Framing::Json {
                self.expected.push_back(id);
            }
        }
    }

    fn answer(&mut self, _ask: u64, _value: Option<&Bytes>, _out: &mut Vec<u8>) {}

    fn drain(&mut self, _out: &mut Vec<u8>) {}

    fn decode(&mut self, input: &mut BytesMut) -> Result<Option<FromHost>, WireError> {
        let Some(record) = self.cut(input)? else {
            return Ok(None);
        };
        if self.framing == Framing::Json {
            return from_json(&record).map(Some);
        }
        let Some(id) = self.expected.pop_front() else {
            return Err(WireError::Protocol(format!(
                "a reply to no message: {}",
                excerpt(&record)
            )));
        };
        Ok(Some(FromHost::Outcome {
            id,
            verdict: Verdict::Done,
            outputs: vec![Output {
                payload: record,
                ..Output::default()
            }],
        }))
    }

    fn precise(&self) -> bool {
        // A tool may hold replies back while it reads on.
        false
    }
}

/// A message as an object.
pub(crate) fn to_json(id: u64, message: &Message) -> Value {
    let mut object = Map::new();
    object.insert("id".into(), json!(id));
    object.insert("topic".into(), json!(&*message.topic));
    object.insert("messageId".into(), json!(message.id));
    if let Some(key) = &message.key {
        object.insert("key".into(), json!(key));
    }
    if !message.properties.is_empty() {
        let properties: Map<String, Value> = message
            .properties
            .iter()
            .map(|(name, value)| (name.clone(), json!(value)))
            .collect();
        object.insert("properties".into(), Value::Object(properties));
    }
    if message.event_time > 0 {
        object.insert("eventTime".into(), json!(message.event_time));
    }
    match std::str::from_utf8(&message.payload) {
        Ok(text) => object.insert("payload".into(), json!(text)),
        Err(_) => object.insert("payload64".into(), json!(base64(&message.payload))),
    };
    Value::Object(object)
}

/// An output as an object: `payload` or `payload64`, `topic`, `key`, `properties`, `eventTime`, `delayMs`.
/// A payload that is not text is sent as JSON.
pub(crate) fn output_from_json(value: &Value) -> Option<Output> {
    let Value::Object(object) = value else {
        return Some(Output {
            payload: json_bytes(value),
            ..Output::default()
        });
    };
    let text = |name: &str| object.get(name).and_then(Value::as_str).map(str::to_owned);
    let number = |name: &str| object.get(name).and_then(Value::as_u64);
    let payload = match (object.get("payload"), text("payload64")) {
        (Some(value), None) => json_bytes(value),
        (None, Some(encoded)) => Bytes::from(from_base64(&encoded)?),
        (None, None) => Bytes::new(),
        (Some(_), Some(_)) => return None,
    };
    Some(Output {
        topic: text("topic"),
        payload,
        key: text("key"),
        key_is_base64: false,
        properties: object
            .get("properties")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .map(|(name, value)| (name.clone(), crate::runtime::process::plain(value)))
            .collect(),
        event_time: number("eventTime"),
        delay_ms: number("delayMs"),
        ordering_key: text("orderingKey"),
        sequence: number("sequence"),
        schema: None,
    })
}

fn json_bytes(value: &Value) -> Bytes {
    match value {
        Value::String(text) => Bytes::copy_from_slice(text.as_bytes()),
        other => Bytes::from(other.to_string()),
    }
}

/// A reply: `{"id":7,"out":[..]}`, with `"ack":false` and `"error"` or `"dlq"` for a failure, or
/// `"drop":true`. `out` may also be one value.
pub(crate) fn from_json(line: &[u8]) -> Result<FromHost, WireError> {
    let bad = |why: &str| WireError::Protocol(format!("{why}: {}", excerpt(line)));
    let reply: Value = serde_json::from_slice(line).map_err(|_| bad("a reply that is not JSON"))?;
    let id = reply
        .get("id")
        .and_then(Value::as_u64)
        .ok_or_else(|| bad("a reply without `id`"))?;
    let text = |name: &str| reply.get(name).and_then(Value::as_str);
    let verdict = if let Some(reason) = text("dlq") {
        Verdict::Failed(Failure::new(FailureKind::Data, reason))
    } else if text("error").is_some() || reply.get("ack") == Some(&Value::Bool(false)) {
        Verdict::Failed(Failure::new(
            FailureKind::User,
            text("error").unwrap_or("not acknowledged"),
        ))
    } else if reply.get("drop") == Some(&Value::Bool(true)) {
        Verdict::Drop
    } else {
        Verdict::Done
    };
    let outputs = match reply.get("out") {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::Array(all)) => all.iter().map(output_from_json).collect(),
        Some(one) => output_from_json(one).map(|output| vec![output]),
    };
    let outputs = outputs.ok_or_else(|| bad("an output that is not one"))?;
    Ok(FromHost::Outcome {
        id,
        verdict,
        outputs,
    })
}

fn excerpt(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codec(framing: Framing) -> Plain {
        Plain::new(&Options {
            framing,
            max_output_bytes: 50,
            ..Options::default()
        })
    }

    #[test]
    fn each_framing_cuts_what_it_wrote() {
        for (framing, payload) in [
            (Framing::Line, &b"a b"[..]),
            (Framing::Nul, b"a\nb"),
            (Framing::Len, b"a\n\0b"),
        ] {
            let mut plain = codec(framing);
            let message = Message {
                payload: Bytes::from_static(payload),
                ..Message::default()
            };
            let mut out = Vec::new();
            plain.write(0, &message, &mut out);
            let mut input = BytesMut::from(&out[..]);
            assert_eq!(
                plain.cut(&mut input).expect("fits").as_deref(),
                Some(payload)
            );
        }
        let message = Message {
            payload: Bytes::from_static(b"a\nb"),
            ..Message::default()
        };
        assert!(codec(Framing::Line).refuses(&message).is_some());
    }

    #[test]
    fn replies_are_of_the_messages_that_were_written() {
        let mut plain = codec(Framing::Line);
        let (message, mut out) = (Message::default(), Vec::new());
        for first in [3, 5] {
            // Message 4 was refused and keeps its number.
            plain.encode(first, &mut [&message].into_iter(), &mut out);
        }
        let mut input = BytesMut::from("x\ny\nz\n");
        for expected in [3, 5] {
            let Ok(Some(FromHost::Outcome { id, .. })) = plain.decode(&mut input) else {
                panic!("no outcome")
            };
            assert_eq!(id, expected);
        }
        assert!(matches!(
            plain.decode(&mut input),
            Err(WireError::Protocol(_))
        ));
    }

    #[test]
    fn json_replies_say_what_became_of_a_message() {
        let said = |text: &str| from_json(text.as_bytes());
        let Ok(FromHost::Outcome {
            id: 3,
            verdict: Verdict::Done,
            outputs,
        }) = said(r#"{"id":3,"out":[{"payload":{"a":1},"key":"k","properties":{"n":5}},"t"]}"#)
        else {
            panic!()
        };
        assert_eq!(&outputs[0].payload[..], br#"{"a":1}"#);
        assert_eq!(outputs[0].properties, [("n".to_owned(), "5".to_owned())]);
        assert_eq!(&outputs[1].payload[..], b"t");
        for (text, kind) in [
            (r#"{"id":1,"error":"no"}"#, FailureKind::User),
            (r#"{"id":1,"ack":false}"#, FailureKind::User),
            (r#"{"id":1,"dlq":"bad"}"#, FailureKind::Data),
        ] {
            let Ok(FromHost::Outcome {
                verdict: Verdict::Failed(failure),
                ..
            }) = said(text)
            else {
                panic!("{text}")
            };
            assert_eq!(failure.kind, kind, "{text}");
        }
        assert!(said("nonsense").is_err() && said("{}").is_err());
    }

    #[test]
    fn an_endless_line_is_cut_off() {
        let mut input = BytesMut::from(&[b'x'; 60][..]);
        assert_eq!(
            codec(Framing::Line).decode(&mut input),
            Err(WireError::TooLarge(50))
        );
    }
}
