//! The shell binding: for languages whose strings can not hold a NUL byte and that read well only
//! in known lengths. Bash's host uses it.
//!
//! To the host, on its standard input: frames as in the socket binding, with bodies of fields that
//! end in 0x1F. A batch has three fields a message: flag and number, header block, payload. Flag
//! `r` is the payload as it is, `e` with escapes (it holds 0x1F), both in capitals where it is not
//! UTF-8; `b` is base64 (it holds NUL).
//! From the host, on its standard output: whatever the function prints is the output of the message
//! in hand; a record is NUL, a token that only this process knows, a space, the kind, the number,
//! the count of fields, NUL, and the fields, each ended by NUL.

use bytes::{Buf, Bytes, BytesMut};

use super::{Codec, FromHost, WireError, frame, verdict_of_status};
use crate::runtime::headers;
use crate::runtime::options::{Nul, Options};
use crate::runtime::process::trim_output;
use crate::runtime::{
    Failure, FailureKind, HostSpec, Level, Message, Output, StateChange, Verdict,
};

/// Fields of one record; a message that emits more is over its limit anyway.
const FIELDS_MAX: usize = 300_000;

/// State of the conversation.
#[derive(Debug)]
pub(crate) struct Shell {
    token: Vec<u8>,
    options: Options,
    /// Printed by the message in hand.
    printed: BytesMut,
    /// Emitted by it, and how many bytes that is.
    emitted: Vec<Output>,
    emitted_bytes: usize,
    /// What it said of itself, before it ended.
    said: Option<(String, String)>,
}

impl Shell {
    pub(crate) fn new(token: &str, options: Options) -> Self {
        let mut mark = vec![0];
        mark.extend_from_slice(token.as_bytes());
        mark.push(b' ');
        Self {
            token: mark,
            options,
            printed: BytesMut::new(),
            emitted: Vec::new(),
            emitted_bytes: 0,
            said: None,
        }
    }
}

impl Codec for Shell {
    fn hello(&mut self, spec: &HostSpec, out: &mut Vec<u8>) -> bool {
        frame(out, b'H', |out| super::hello_block(spec, out));
        true
    }

    fn refuses(&self, message: &Message) -> Option<Failure> {
        (self.options.nul == Nul::Refuse && message.payload.contains(&0)).then(|| {
            Failure::new(
                FailureKind::Data,
                "the payload holds a NUL byte, which bash can not hold: set `nul: base64`, or `mode: spawn`",
            )
        })
    }

    fn encode(
        &mut self,
        first: u64,
        messages: &mut dyn ExactSizeIterator<Item = &Message>,
        out: &mut Vec<u8>,
    ) {
        use std::io::Write;
        frame(out, b'B', |out| {
            for (id, message) in (first..).zip(messages) {
                let payload = &message.payload;
                let text = std::str::from_utf8(payload).is_ok();
                let flag = match (payload.contains(&0), payload.contains(&0x1f), text) {
                    (true, _, _) => 'b',
                    (_, true, true) => 'e',
                    (_, true, false) => 'E',
                    (_, _, true) => 'r',
                    (_, _, false) => 'R',
                };
                // Writing to a Vec can not fail.
                let _ = write!(out, "{flag}{id}\x1f");
                headers::of_message(out, message);
                out.push(0x1f);
                match flag {
                    'b' => out.extend_from_slice(base64(payload).as_bytes()),
                    'e' | 'E' => headers::escape_into(out, payload, false),
                    _ => out.extend_from_slice(payload),
                }
                out.push(0x1f);
            }
        });
    }

    fn answer(&mut self, _ask: u64, value: Option<&Bytes>, out: &mut Vec<u8>) {
        frame(out, b'A', |out| match value {
            None => out.push(b'0'),
            Some(value) if value.contains(&0) => {
                out.push(b'b');
                out.extend_from_slice(base64(value).as_bytes());
            }
            Some(value) => {
                out.push(b'1');
                out.extend_from_slice(value);
            }
        });
    }

    fn drain(&mut self, out: &mut Vec<u8>) {
        frame(out, b'D', |_| {});
    }

    fn decode(&mut self, input: &mut BytesMut) -> Result<Option<FromHost>, WireError> {
        loop {
            match self.record(input)? {
                None => return Ok(None),
                // An `emit` or a verdict: remembered until the message ends.
                Some(None) => {}
                Some(said) => return Ok(said),
            }
        }
    }

    fn precise(&self) -> bool {
        true
    }
}

impl Shell {
    fn clear(&mut self) {
        self.printed.clear();
        self.emitted.clear();
        self.emitted_bytes = 0;
        self.said = None;
    }

    /// The next record, if it has arrived whole; within, what it says unless it only adds to the
    /// message in hand.
    fn record(&mut self, input: &mut BytesMut) -> Result<Option<Option<FromHost>>, WireError> {
        let max = usize::try_from(self.options.max_output_bytes).unwrap_or(usize::MAX);
        let Some(at) = find(input, &self.token) else {
            // A token may have arrived in part: keep that many bytes.
            let safe = input.len().saturating_sub(self.token.len() - 1);
            self.printed.extend_from_slice(&input[..safe]);
            input.advance(safe);
            return if self.printed.len() > max {
                Err(WireError::TooLarge(self.options.max_output_bytes))
            } else {
                Ok(None)
            };
        };
        // What stands before the record is output; from here on the input begins with the record.
        self.printed.extend_from_slice(&input[..at]);
        input.advance(at);
        if self.printed.len() > max {
            return Err(WireError::TooLarge(self.options.max_output_bytes));
        }
        let Some((fields, size)) = record(&input[self.token.len()..])? else {
            return if input.len() > max.saturating_add(1024 * 1024) {
                Err(WireError::TooLarge(self.options.max_output_bytes))
            } else {
                Ok(None)
            };
        };
        let whole = input.split_to(self.token.len() + size).freeze();
        let fields: Vec<Bytes> = fields
            .into_iter()
            .map(|(from, to)| whole.slice(self.token.len() + from..self.token.len() + to))
            .collect();
        let said = self.understand(&fields)?;
        if self.emitted_bytes > max {
            return Err(WireError::TooLarge(self.options.max_output_bytes));
        }
        Ok(Some(said))
    }
}

/// The fields of the record that `input` begins with, head first, and its size.
#[expect(
    clippy::type_complexity,
    reason = "spans of fields, and where the record ends"
)]
fn record(input: &[u8]) -> Result<Option<(Vec<(usize, usize)>, usize)>, WireError> {
    let Some(end) = input.iter().position(|&b| b == 0) else {
        return if input.len() > 200 {
            Err(broken("a record without a head"))
        } else {
            Ok(None)
        };
    };
    let head = std::str::from_utf8(&input[..end]).map_err(|_| broken("a head that is not text"))?;
    let count: usize = head
        .rsplit(' ')
        .next()
        .and_then(|n| n.parse().ok())
        .filter(|&n| n <= FIELDS_MAX)
        .ok_or_else(|| broken("a record without a count"))?;
    let mut spans = vec![(0, end)];
    let mut from = end + 1;
    for _ in 0..count {
        let Some(size) = input[from..].iter().position(|&b| b == 0) else {
            return Ok(None);
        };
        spans.push((from, from + size));
        from += size + 1;
    }
    Ok(Some((spans, from)))
}

/// Of a record's block and payload.
fn output(fields: &[Bytes]) -> Output {
    let mut output = Output {
        payload: fields.get(2).cloned().unwrap_or_default(),
        ..Output::default()
    };
    headers::to_output(fields.get(1).map_or(&[][..], |f| f), &mut output);
    output
}

impl Shell {
    fn understand(&mut self, fields: &[Bytes]) -> Result<Option<FromHost>, WireError> {
        let head = text(&fields[0]);
        let mut words = head.split(' ');
        let kind = words.next().unwrap_or("");
        // The number of an outcome is given back with its flag, as it was sent.
        let number = words.next().and_then(|n| {
            n.trim_start_matches(['r', 'e', 'R', 'E', 'b'])
                .parse::<u64>()
                .ok()
        });
        // A shell has one message in hand: the next to end is meant.
        let state = |change| FromHost::State {
            message: None,
            change,
        };
        let field =
            |index: usize| -> String { fields.get(index + 1).map(|f| text(f)).unwrap_or_default() };
        Ok(Some(match kind {
            "O" => {
                let id = number.ok_or_else(|| broken("an outcome without a number"))?;
                let outcome = self.outcome(id, field(0), field(1));
                self.clear();
                outcome?
            }
            "E" => {
                self.emitted_bytes += fields.iter().skip(1).map(Bytes::len).sum::<usize>();
                self.emitted.push(output(fields));
                return Ok(None);
            }
            "P" => FromHost::Publish(output(fields)),
            "V" => {
                self.said = Some((field(0), field(1)));
                return Ok(None);
            }
            "G" => FromHost::Pong,
            "X" => FromHost::Leaving,
            "R" => {
                // What a script prints while it is loaded belongs to no message.
                self.clear();
                FromHost::Ready {
                    protocol: field(0).parse().unwrap_or(0),
                    language: field(1),
                }
            }
            "F" => FromHost::Fatal(field(0)),
            "L" => FromHost::Log {
                level: Level::parse(&field(0)).unwrap_or(Level::Info),
                text: field(1),
            },
            "M" => FromHost::Metric {
                name: field(0),
                value: field(1),
            },
            "K" => FromHost::Acknowledge(field(0)),
            "S" => match field(0).as_str() {
                "get" => FromHost::StateGet {
                    ask: 0,
                    key: field(1),
                },
                "put" => state(StateChange::Put(
                    field(1),
                    fields.get(3).cloned().unwrap_or_default(),
                )),
                "del" => state(StateChange::Delete(field(1))),
                "incr" => state(StateChange::Increment(
                    field(1),
                    field(2)
                        .parse()
                        .map_err(|_| broken("an increment that is not a number"))?,
                )),
                other => return Err(broken(&format!("an unknown state request `{other}`"))),
            },
            other => return Err(broken(&format!("a record of unknown kind `{other}`"))),
        }))
    }

    fn outcome(&mut self, id: u64, status: String, reason: String) -> Result<FromHost, WireError> {
        // What the function said of itself counts, unless it failed afterwards.
        let (said, reason) = match self.said.take() {
            Some(said) if status == "0" || status == "hold" => said,
            _ => (status, reason),
        };
        let verdict = match said.as_str() {
            "drop" => Verdict::Drop,
            "dlq" => Verdict::Failed(Failure::new(FailureKind::Data, reason)),
            "nack" => Verdict::Failed(Failure::new(FailureKind::User, reason)),
            "hold" => Verdict::Hold,
            status => {
                let status = status.parse().map_err(|_| broken("an unknown verdict"))?;
                verdict_of_status(status, self.options.drop_exit_code, &reason)
            }
        };
        let mut outputs = Vec::new();
        if matches!(verdict, Verdict::Done | Verdict::Hold) {
            outputs = std::mem::take(&mut self.emitted);
            let printed = self.printed.split().freeze();
            // Printing nothing after emitting something is not an empty output.
            if (outputs.is_empty() || !printed.is_empty())
                && let Some(size) = trim_output(&printed, &self.options)
            {
                outputs.insert(
                    0,
                    Output {
                        payload: printed.slice(..size),
                        ..Output::default()
                    },
                );
            }
        }
        Ok(FromHost::Outcome {
            id,
            verdict,
            outputs,
        })
    }
}

fn broken(what: &str) -> WireError {
    WireError::Protocol(what.to_owned())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let first = needle[0];
    let mut from = 0;
    while let Some(at) = haystack[from..].iter().position(|&b| b == first) {
        let at = from + at;
        if haystack[at..].starts_with(needle) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

/// Standard base64 with padding.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk
            .iter()
            .chain([&0, &0])
            .take(3)
            .fold(0_u32, |word, &byte| word << 8 | u32::from(byte));
        for index in 0..4 {
            if index <= chunk.len() {
                out.push(char::from(
                    LETTERS[(word >> (18 - 6 * index)) as usize & 63],
                ));
            } else {
                out.push('=');
            }
        }
    }
    out
}

/// Undoes [`base64`]; both alphabets, with or without padding.
pub(crate) fn from_base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 3);
    let (mut word, mut bits) = (0_u32, 0);
    for byte in text.trim_end_matches('=').bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        word = word << 6 | u32::from(value);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push((word >> bits) as u8);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn said(codec: &mut Shell, bytes: &[u8]) -> Result<Vec<FromHost>, WireError> {
        let mut input = BytesMut::new();
        let mut all = Vec::new();
        for byte in bytes {
            input.extend_from_slice(&[*byte]);
            while let Some(one) = codec.decode(&mut input)? {
                all.push(one);
            }
        }
        Ok(all)
    }

    fn done(id: u64, payloads: &[&[u8]]) -> FromHost {
        FromHost::Outcome {
            id,
            verdict: Verdict::Done,
            outputs: payloads
                .iter()
                .map(|p| Output {
                    payload: Bytes::copy_from_slice(p),
                    ..Output::default()
                })
                .collect(),
        }
    }

    #[test]
    fn printed_bytes_belong_to_the_message_in_hand() {
        let mut codec = Shell::new("T0", Options::default());
        let bytes = b"one\n\0T0 O 1 2\x000\0\0\0not T0\0\0T0 E 0 2\0key:k\n\0two\0\0T0 O 2 2\x000\0\0\0T0 O 3 2\x0099\0\0";
        let all = said(&mut codec, bytes).expect("legal");
        assert_eq!(all[0], done(1, &[b"one"]));
        let FromHost::Outcome { outputs, .. } = &all[1] else {
            panic!("{all:?}")
        };
        assert_eq!(&outputs[0].payload[..], b"\0not T0\0");
        assert_eq!(
            (&outputs[1].payload[..], outputs[1].key.as_deref()),
            (&b"two"[..], Some("k"))
        );
        assert_eq!(
            all[2],
            FromHost::Outcome {
                id: 3,
                verdict: Verdict::Drop,
                outputs: vec![]
            }
        );
    }

    #[test]
    fn a_flood_without_a_record_is_cut_off() {
        let mut codec = Shell::new(
            "T0",
            Options {
                max_output_bytes: 100,
                ..Options::default()
            },
        );
        assert_eq!(
            said(&mut codec, &[b'x'; 200]),
            Err(WireError::TooLarge(100))
        );
    }

    proptest! {
        #[test]
        fn base64_round_trips(bytes in prop::collection::vec(any::<u8>(), 0..50)) {
            prop_assert_eq!(from_base64(&base64(&bytes)), Some(bytes));
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut codec = Shell::new("T", Options::default());
            let mut framed = b"\0T ".to_vec();
            framed.extend_from_slice(&bytes);
            let _ = said(&mut codec, &framed);
        }
    }
}
