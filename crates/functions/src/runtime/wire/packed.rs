//! The socket binding: frames both ways over one socket, lengths in little-endian binary.
//! For languages that can unpack a struct; Python's host uses it.
//!
//! To the host: `H` greeting, `B` batch, `A` answer, `P` ping, `D` drain.
//! From it: `R` ready, `F` fatal, `O` outcomes, `Q` question or request, `L` log, `M` metric, `S` schema, `G` pong.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use geminga_client::Schema;

use super::shell::from_base64;
use super::{Codec, FromHost, HEAD_BYTES, WireError, frame};
use crate::runtime::headers;
use crate::runtime::{
    Failure, FailureKind, HostSpec, Level, Message, Output, SchemaOf, StateChange, Verdict,
};
use crate::schema::{self, Named};

/// Verdicts as they stand in an outcome.
const DONE: u8 = 0;
const FAILED: u8 = 1;
const DATA: u8 = 2;
const TEMPORARY: u8 = 3;
const DROP: u8 = 4;
const HOLD: u8 = 5;

/// A frame carries the outcomes of up to a few megabytes beside one message at its limit.
const FRAME_ROOM_BYTES: usize = 8 * 1024 * 1024;

/// Schemas that one process may name: each is kept.
const SCHEMAS_MAX: usize = 1000;
/// Bytes of one of them, with its name and properties: definitions have some kilobytes.
const SCHEMA_MAX_BYTES: usize = 1024 * 1024;
/// Bytes of all of them, those of topics and those of outputs each.
const SCHEMAS_MAX_BYTES: usize = 8 * SCHEMA_MAX_BYTES;

/// State of the conversation: outcomes of a frame that are not handed on yet.
#[derive(Debug)]
pub(crate) struct Packed {
    pending: VecDeque<FromHost>,
    frame_bytes_max: usize,
    precise: bool,
    /// By the numbers that the host gave them.
    schemas: BTreeMap<u64, (Arc<Schema>, usize)>,
    schemas_bytes: usize,
    /// Bytes of what was said of topics: that is kept though its number is used again.
    declared_bytes: usize,
}

impl Packed {
    pub(crate) fn new(max_output_bytes: u64) -> Self {
        let max = usize::try_from(max_output_bytes).unwrap_or(usize::MAX / 2);
        Self {
            pending: VecDeque::new(),
            frame_bytes_max: max.saturating_add(FRAME_ROOM_BYTES),
            precise: false,
            schemas: BTreeMap::new(),
            schemas_bytes: 0,
            declared_bytes: 0,
        }
    }

    /// For hosts that report each message before they begin the next.
    pub(crate) fn precise_when(self, precise: bool) -> Self {
        Self { precise, ..self }
    }
}

impl Codec for Packed {
    fn hello(&mut self, spec: &HostSpec, out: &mut Vec<u8>) -> bool {
        frame(out, b'H', |out| super::hello_block(spec, out));
        true
    }

    fn refuses(&self, _message: &Message) -> Option<Failure> {
        None
    }

    fn encode(
        &mut self,
        first: u64,
        messages: &mut dyn ExactSizeIterator<Item = &Message>,
        out: &mut Vec<u8>,
    ) {
        frame(out, b'B', |out| {
            let count = messages.len();
            out.extend_from_slice(&first.to_le_bytes());
            out.extend_from_slice(&length(count));
            let table = out.len();
            out.resize(table + count * 8, 0);
            for (index, message) in messages.enumerate() {
                let start = out.len();
                headers::of_message(out, message);
                let header = length(out.len() - start);
                out.extend_from_slice(&message.payload);
                let at = table + index * 8;
                out[at..at + 4].copy_from_slice(&header);
                out[at + 4..at + 8].copy_from_slice(&length(message.payload.len()));
            }
        });
    }

    fn answer(&mut self, ask: u64, value: Option<&Bytes>, out: &mut Vec<u8>) {
        frame(out, b'A', |out| {
            let mut block = Vec::new();
            headers::push_number(&mut block, "ask", ask);
            headers::push_number(&mut block, "found", u64::from(value.is_some()));
            out.extend_from_slice(&length(block.len()));
            out.extend_from_slice(&block);
            out.extend_from_slice(value.map_or(&[][..], |v| v));
        });
    }

    fn refuse(&mut self, ask: u64, why: &str, out: &mut Vec<u8>) {
        frame(out, b'A', |out| {
            let mut block = Vec::new();
            headers::push_number(&mut block, "ask", ask);
            headers::push(&mut block, "error", why);
            out.extend_from_slice(&length(block.len()));
            out.extend_from_slice(&block);
        });
    }

    fn drain(&mut self, out: &mut Vec<u8>) {
        frame(out, b'D', |_| {});
    }

    fn decode(&mut self, input: &mut BytesMut) -> Result<Option<FromHost>, WireError> {
        loop {
            if let Some(next) = self.pending.pop_front() {
                return Ok(Some(next));
            }
            if input.len() < HEAD_BYTES {
                return Ok(None);
            }
            let (kind, size) = head(&input[..HEAD_BYTES])?;
            if size > self.frame_bytes_max {
                let limit = self.frame_bytes_max - FRAME_ROOM_BYTES;
                return Err(WireError::TooLarge(limit as u64));
            }
            if input.len() < HEAD_BYTES + size {
                input.reserve(HEAD_BYTES + size - input.len());
                return Ok(None);
            }
            input.advance(HEAD_BYTES);
            let body = input.split_to(size).freeze();
            self.frame(kind, body)?;
        }
    }

    fn precise(&self) -> bool {
        self.precise
    }
}

fn length(n: usize) -> [u8; 4] {
    u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes()
}

fn head(head: &[u8]) -> Result<(u8, usize), WireError> {
    let size = std::str::from_utf8(&head[2..HEAD_BYTES - 1])
        .ok()
        .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|digits| digits.parse().ok());
    match (head[1], head[HEAD_BYTES - 1], size) {
        (b' ', b'\n', Some(size)) => Ok((head[0], size)),
        _ => Err(broken("a frame without a head")),
    }
}

fn broken(what: &str) -> WireError {
    WireError::Protocol(what.to_owned())
}

/// Takes numbers and slices off the front, or says that the frame is short.
struct Reader(Bytes);

impl Reader {
    fn bytes(&mut self, count: usize) -> Result<Bytes, WireError> {
        if self.0.len() < count {
            return Err(broken("a frame shorter than it says"));
        }
        Ok(self.0.split_to(count))
    }

    fn u32(&mut self) -> Result<usize, WireError> {
        Ok(self.bytes(4)?.get_u32_le() as usize)
    }

    fn block_and_rest(mut self) -> Result<(Vec<(String, String)>, Bytes), WireError> {
        let size = self.u32()?;
        let block = self.bytes(size)?;
        Ok((headers::parse(&block).collect(), self.0))
    }
}

fn find<'a>(block: &'a [(String, String)], name: &str) -> &'a str {
    block
        .iter()
        .find(|(n, _)| n == name)
        .map_or("", |(_, value)| value)
}

impl Packed {
    fn frame(&mut self, kind: u8, body: Bytes) -> Result<(), WireError> {
        let body = Reader(body);
        let said = match kind {
            b'O' => return self.outcomes(body),
            b'R' => {
                let (block, _) = body.block_and_rest()?;
                FromHost::Ready {
                    protocol: find(&block, "protocol").parse().unwrap_or(0),
                    language: find(&block, "language").to_owned(),
                }
            }
            b'F' => FromHost::Fatal(lossy(&body.0)),
            b'L' => {
                let (block, text) = body.block_and_rest()?;
                FromHost::Log {
                    level: Level::parse(find(&block, "level")).unwrap_or(Level::Info),
                    text: lossy(&text),
                }
            }
            b'M' => {
                let (block, _) = body.block_and_rest()?;
                FromHost::Metric {
                    name: find(&block, "name").to_owned(),
                    value: find(&block, "value").to_owned(),
                }
            }
            b'G' => FromHost::Pong,
            b'Q' => self.request(body)?,
            b'S' => match self.schema(body)? {
                Some(said) => said,
                None => return Ok(()),
            },
            other => return Err(broken(&format!("a frame of unknown kind {other}"))),
        };
        self.pending.push_back(said);
        Ok(())
    }

    /// A schema that outputs may name from now on. One without a type, for bytes, is none.
    fn schema(&mut self, body: Reader) -> Result<Option<FromHost>, WireError> {
        let bytes = body.0.len();
        if bytes > SCHEMA_MAX_BYTES {
            return Err(broken(&format!(
                "a schema of {bytes} bytes: {SCHEMA_MAX_BYTES} at most"
            )));
        }
        let too_much = || broken(&format!("more than {SCHEMAS_MAX_BYTES} bytes of schemas"));
        let (block, data) = body.block_and_rest()?;
        let id = find(&block, "id").parse();
        let id = id.map_err(|_| broken("a schema without a number"))?;
        let Some(named) = schema::named(find(&block, "type")) else {
            return Err(broken("a schema of an unknown type"));
        };
        let before = self.schemas.remove(&id);
        self.schemas_bytes -= before.map_or(0, |(_, bytes)| bytes);
        let Named::Type(kind) = named else {
            return Ok(None);
        };
        if self.schemas.len() >= SCHEMAS_MAX {
            return Err(broken("more schemas than a host may name"));
        }
        let properties = block.iter().filter_map(|(name, value)| {
            let name = name.strip_prefix("prop.")?;
            Some((name.to_owned(), value.clone()))
        });
        // A copy: what was read with it is not kept for it.
        let data = Bytes::copy_from_slice(&data);
        let schema = Schema::new(kind, find(&block, "name"), data, properties);
        let schema = Arc::new(schema);
        self.schemas_bytes += bytes;
        if self.schemas_bytes > SCHEMAS_MAX_BYTES {
            return Err(too_much());
        }
        self.schemas.insert(id, (schema.clone(), bytes));
        let of = block.iter().filter(|(name, _)| name == "of");
        let of = of.filter_map(|(_, value)| match value.strip_prefix("input.") {
            Some(topic) => Some(SchemaOf::Input(topic.to_owned())),
            None => (value == "output").then_some(SchemaOf::Output),
        });
        let of: Vec<SchemaOf> = of.collect();
        if !of.is_empty() {
            self.declared_bytes += bytes;
            if self.declared_bytes > SCHEMAS_MAX_BYTES {
                return Err(too_much());
            }
        }
        Ok(Some(FromHost::Schema { of, schema }))
    }

    /// Fills an output from its block.
    fn to_output(&self, block: &[u8], output: &mut Output) -> Result<(), WireError> {
        let Some(id) = headers::to_output(block, output) else {
            return Ok(());
        };
        output.schema = Some(
            self.schemas
                .get(&id)
                .map(|(schema, _)| schema.clone())
                .ok_or_else(|| broken("an output of a schema that was not said"))?,
        );
        Ok(())
    }

    fn request(&self, body: Reader) -> Result<FromHost, WireError> {
        let (block, payload) = body.block_and_rest()?;
        let key = find(&block, "key").to_owned();
        let message = find(&block, "message").parse().ok();
        let state = |change| FromHost::State { message, change };
        let ask = || {
            let number = find(&block, "ask").parse();
            number.map_err(|_| broken("a question without a number"))
        };
        Ok(match find(&block, "op") {
            "state.get" => FromHost::StateGet { ask: ask()?, key },
            "schema.get" => FromHost::SchemaGet {
                ask: ask()?,
                topic: find(&block, "topic").to_owned(),
                version: match find(&block, "schemaVersion") {
                    "" => None,
                    text => Some(
                        from_base64(text)
                            .ok_or_else(|| broken("a schema version that is not base64"))?
                            .into(),
                    ),
                },
            },
            "state.put" => state(StateChange::Put(key, payload)),
            "state.delete" => state(StateChange::Delete(key)),
            "state.increment" => state(StateChange::Increment(
                key,
                find(&block, "by")
                    .parse()
                    .map_err(|_| broken("an increment that is not a number"))?,
            )),
            "ack" => FromHost::Acknowledge(find(&block, "id").to_owned()),
            "publish" => {
                let mut output = Output {
                    payload,
                    ..Output::default()
                };
                let mut text = Vec::new();
                for (name, value) in block.iter().filter(|(name, _)| name != "op") {
                    headers::push(&mut text, name, value);
                }
                self.to_output(&text, &mut output)?;
                FromHost::Publish(output)
            }
            other => return Err(broken(&format!("an unknown request `{other}`"))),
        })
    }

    fn outcomes(&mut self, mut body: Reader) -> Result<(), WireError> {
        let count = body.u32()?;
        for _ in 0..count {
            let mut fixed = body.bytes(17)?;
            let id = fixed.get_u64_le();
            let verdict = fixed.get_u8();
            let outputs_count = fixed.get_u32_le() as usize;
            let reason_size = fixed.get_u32_le() as usize;
            let reason = lossy(&body.bytes(reason_size)?);
            // Each output costs 8 bytes of frame, so the count can not ask for memory it has not sent.
            if outputs_count > body.0.len() / 8 {
                return Err(broken("more outputs than the frame holds"));
            }
            let mut outputs = Vec::with_capacity(outputs_count);
            for _ in 0..outputs_count {
                let (header_size, size) = (body.u32()?, body.u32()?);
                let block = body.bytes(header_size)?;
                let mut output = Output {
                    payload: body.bytes(size)?,
                    ..Output::default()
                };
                self.to_output(&block, &mut output)?;
                outputs.push(output);
            }
            let fail = |kind| Verdict::Failed(Failure::new(kind, reason.clone()));
            let verdict = match verdict {
                DONE => Verdict::Done,
                FAILED => fail(FailureKind::User),
                DATA => fail(FailureKind::Data),
                TEMPORARY => fail(FailureKind::Temporary),
                DROP => Verdict::Drop,
                HOLD => Verdict::Hold,
                other => return Err(broken(&format!("an unknown verdict {other}"))),
            };
            self.pending.push_back(FromHost::Outcome {
                id,
                verdict,
                outputs,
            });
        }
        Ok(())
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn garbage_is_an_error_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in "[ROQLMFGSX]") {
            let mut codec = Packed::new(1000);
            let mut input = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = codec.decode(&mut input) {}
            let mut framed = Vec::new();
            frame(&mut framed, kind.as_bytes()[0], |out| out.extend_from_slice(&bytes));
            let mut input = BytesMut::from(&framed[..]);
            while let Ok(Some(_)) = codec.decode(&mut input) {}
        }
    }

    #[test]
    fn a_frame_may_arrive_byte_by_byte() {
        let mut framed = Vec::new();
        frame(&mut framed, b'O', |out| {
            out.extend_from_slice(&1_u32.to_le_bytes());
            out.extend_from_slice(&7_u64.to_le_bytes());
            out.push(DONE);
            out.extend_from_slice(&1_u32.to_le_bytes());
            out.extend_from_slice(&0_u32.to_le_bytes());
            out.extend_from_slice(&6_u32.to_le_bytes());
            out.extend_from_slice(&2_u32.to_le_bytes());
            out.extend_from_slice(b"key:k\nhi");
        });
        let mut codec = Packed::new(1000);
        let mut input = BytesMut::new();
        let mut said = None;
        for byte in framed {
            input.extend_from_slice(&[byte]);
            said = codec.decode(&mut input).expect("legal");
        }
        let output = Output {
            payload: Bytes::from_static(b"hi"),
            key: Some("k".into()),
            ..Output::default()
        };
        assert_eq!(
            said,
            Some(FromHost::Outcome {
                id: 7,
                verdict: Verdict::Done,
                outputs: vec![output]
            })
        );
    }

    /// A question of a host, and the three answers to it.
    #[test]
    fn a_schema_is_asked_for_and_answered_or_not() {
        let ask = |block: &str| {
            let mut framed = Vec::new();
            frame(&mut framed, b'Q', |out| {
                out.extend_from_slice(&length(block.len()));
                out.extend_from_slice(block.as_bytes());
            });
            Packed::new(1000).decode(&mut BytesMut::from(&framed[..]))
        };
        let question = |version: Option<&'static [u8]>| FromHost::SchemaGet {
            ask: 5,
            topic: "t".to_owned(),
            version: version.map(Bytes::from_static),
        };
        let block = "op:schema.get\nask:5\ntopic:t\n";
        assert_eq!(ask(block), Ok(Some(question(None))));
        let one = format!("{block}schemaVersion:AAAAAAAAAAE=\n");
        let version = b"\0\0\0\0\0\0\0\x01";
        assert_eq!(ask(&one), Ok(Some(question(Some(version)))));
        assert!(ask(&format!("{block}schemaVersion:?\n")).is_err());
        let mut out = Vec::new();
        let mut codec = Packed::new(1000);
        codec.answer(5, Some(&Bytes::from_static(b"x")), &mut out);
        codec.answer(5, None, &mut out);
        codec.refuse(5, "away", &mut out);
        let wanted =
            b"A 000000019\n\x0e\0\0\0ask:5\nfound:1\nxA 000000018\n\x0e\0\0\0ask:5\nfound:0\n\
                       A 000000021\n\x11\0\0\0ask:5\nerror:away\n";
        assert_eq!(
            String::from_utf8_lossy(&out),
            String::from_utf8_lossy(wanted)
        );
    }

    #[test]
    fn an_oversize_frame_is_refused_before_it_is_read() {
        let mut codec = Packed::new(10);
        let mut input = BytesMut::from(&b"O 900000000\n"[..]);
        assert!(matches!(
            codec.decode(&mut input),
            Err(WireError::TooLarge(_))
        ));
    }

    /// A schema's frame.
    fn schema_frame(block: &str, data: &str) -> BytesMut {
        let mut framed = Vec::new();
        frame(&mut framed, b'S', |out| {
            out.extend_from_slice(&length(block.len()));
            out.extend_from_slice(block.as_bytes());
            out.extend_from_slice(data.as_bytes());
        });
        BytesMut::from(&framed[..])
    }

    #[test]
    fn schemas_are_bounded_in_bytes() {
        let large = "x".repeat(SCHEMA_MAX_BYTES - 100);
        let say = |codec: &mut Packed, number: u32, of: &str, data: &str| {
            codec.decode(&mut schema_frame(
                &format!("id:{number}\ntype:AVRO\n{of}"),
                data,
            ))
        };
        let mut codec = Packed::new(1000);
        assert!(say(&mut codec, 0, "", &"x".repeat(SCHEMA_MAX_BYTES)).is_err());
        // A number that is used again gives its room back.
        for _ in 0..20 {
            assert!(say(&mut codec, 0, "", &large).is_ok());
        }
        for number in 0..8 {
            assert!(say(&mut codec, number, "", &large).is_ok(), "{number}");
        }
        let more = say(&mut codec, 8, "", &large);
        assert!(
            matches!(&more, Err(WireError::Protocol(why)) if why.contains("8388608")),
            "{more:?}"
        );
        // What is of a topic is kept though its number is not.
        let mut codec = Packed::new(1000);
        for number in 0..8 {
            let of = format!("of:input.{number}\n");
            assert!(say(&mut codec, 0, &of, &large).is_ok(), "{number}");
        }
        assert!(say(&mut codec, 0, "of:input.8\n", &large).is_err());
    }

    /// The frame of one outcome with one output of this block.
    fn outcome_frame(block: &str) -> BytesMut {
        let mut framed = Vec::new();
        frame(&mut framed, b'O', |out| {
            out.extend_from_slice(&1_u32.to_le_bytes());
            out.extend_from_slice(&7_u64.to_le_bytes());
            out.push(DONE);
            out.extend_from_slice(&1_u32.to_le_bytes());
            out.extend_from_slice(&0_u32.to_le_bytes());
            out.extend_from_slice(&length(block.len()));
            out.extend_from_slice(&0_u32.to_le_bytes());
            out.extend_from_slice(block.as_bytes());
        });
        BytesMut::from(&framed[..])
    }

    #[test]
    fn an_output_names_a_schema_that_was_said() {
        use geminga_client::SchemaType;
        let mut codec = Packed::new(1000);
        let block = "id:3\ntype:AVRO\nname:Quake\nof:output\nof:input.in\nprop.a:b\n";
        let said = codec.decode(&mut schema_frame(block, "{}"));
        let properties = [("a".to_owned(), "b".to_owned())];
        let schema = Arc::new(Schema::new(SchemaType::Avro, "Quake", "{}", properties));
        let of = vec![SchemaOf::Output, SchemaOf::Input("in".to_owned())];
        let wanted = FromHost::Schema {
            of,
            schema: schema.clone(),
        };
        assert_eq!(said, Ok(Some(wanted)));
        let Ok(Some(FromHost::Outcome { outputs, .. })) =
            codec.decode(&mut outcome_frame("schema:3\ntopic:t\n"))
        else {
            panic!("an outcome")
        };
        assert_eq!(outputs[0].schema, Some(schema));
        assert!(codec.decode(&mut outcome_frame("schema:4\n")).is_err());
        // Bytes are no schema.
        let none = codec.decode(&mut schema_frame("id:5\ntype:BYTES\nof:output\n", ""));
        assert_eq!(none, Ok(None));
        assert!(
            codec
                .decode(&mut schema_frame("id:6\ntype:WRONG\n", ""))
                .is_err()
        );
        assert!(codec.decode(&mut schema_frame("type:AVRO\n", "")).is_err());
    }
}
