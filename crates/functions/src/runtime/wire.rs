//! How messages and outcomes travel between the worker and a warm process: one trait, a codec for
//! each form. Pure: bytes in, bytes out.
//!
//! `packed` and `shell` are the two bindings of the host protocol (`docs/host-protocol.md`);
//! `plain` are the framings for tools that know nothing of Geminga.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use geminga_client::Schema;

use super::{Failure, HostSpec, Level, Message, Output, SchemaOf, StateChange, Verdict};

pub(crate) mod packed;
pub(crate) mod plain;
pub(crate) mod shell;

/// The version in the handshake. A host that says another is refused.
pub(crate) const PROTOCOL: u32 = 1;

/// Bytes of a frame's head: kind, space, nine digits, newline.
pub(crate) const HEAD_BYTES: usize = 12;

/// What a host says.
#[derive(Debug, PartialEq)]
pub(crate) enum FromHost {
    /// The code is loaded.
    Ready {
        protocol: u32,
        language: String,
    },
    /// The code can not be used: missing, a syntax error, an exception at import.
    Fatal(String),
    /// What became of message `id`.
    Outcome {
        id: u64,
        verdict: Verdict,
        outputs: Vec<Output>,
    },
    StateGet {
        ask: u64,
        key: String,
    },
    /// What schema a topic has.
    SchemaGet {
        ask: u64,
        topic: String,
        version: Option<Bytes>,
    },
    /// A change of the state, of message `message` when the host says so, else of the next to end.
    State {
        message: Option<u64>,
        change: StateChange,
    },
    Log {
        level: Level,
        text: String,
    },
    Metric {
        name: String,
        value: String,
    },
    Publish(Output),
    /// A schema, and whose it is where outputs and inputs say no more.
    Schema {
        of: Vec<SchemaOf>,
        schema: Arc<Schema>,
    },
    Acknowledge(String),
    Pong,
    /// It ends of its own will, with no message in hand.
    Leaving,
}

/// The process does not keep to the protocol; it is replaced.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("more than {0} bytes of output for one message")]
    TooLarge(u64),
    #[error("more than {0} bytes of changes to state by one message")]
    TooMuchState(u64),
    #[error("more than {0} bytes of changes to state by the messages in hand")]
    TooMuchStateInHand(u64),
    #[error("the host broke the protocol: {0}")]
    Protocol(String),
}

/// One form of the conversation. It keeps what it must remember between calls.
pub(crate) trait Codec: Send {
    /// The greeting, or nothing when the form has none. True: the host will say `Ready`.
    fn hello(&mut self, spec: &HostSpec, out: &mut Vec<u8>) -> bool;

    /// Why this form can not carry `message`.
    fn refuses(&self, message: &Message) -> Option<Failure>;

    /// One frame of messages numbered from `first`.
    fn encode(
        &mut self,
        first: u64,
        messages: &mut dyn ExactSizeIterator<Item = &Message>,
        out: &mut Vec<u8>,
    );

    /// The answer to `StateGet` and `SchemaGet`.
    fn answer(&mut self, ask: u64, value: Option<&Bytes>, out: &mut Vec<u8>);

    /// Says why there is no answer now. Only who can ask `SchemaGet` needs to know.
    fn refuse(&mut self, _ask: u64, _why: &str, _out: &mut Vec<u8>) {}

    /// Says that nothing more will come; the pipe is closed after it.
    fn drain(&mut self, out: &mut Vec<u8>);

    /// Cuts the next thing said off the front of `input`.
    fn decode(&mut self, input: &mut BytesMut) -> Result<Option<FromHost>, WireError>;

    /// Whether an outcome arrives before the next message is begun. If not, a death or a time-out
    /// with several messages out does not tell which of them it was.
    fn precise(&self) -> bool;
}

/// Appends a frame; `body` writes what follows the head.
pub(crate) fn frame(out: &mut Vec<u8>, kind: u8, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[kind, b' ']);
    out.extend_from_slice(b"000000000\n");
    body(out);
    let length = out.len() - start - HEAD_BYTES;
    let digits = format!("{length:09}");
    out[start + 2..start + HEAD_BYTES - 1].copy_from_slice(&digits.as_bytes()[digits.len() - 9..]);
}

/// The header block of the greeting.
pub(crate) fn hello_block(spec: &HostSpec, out: &mut Vec<u8>) {
    use super::headers::{push, push_number};
    push_number(out, "protocol", u64::from(PROTOCOL));
    for (name, value) in [
        ("tenant", spec.tenant.as_str()),
        ("namespace", &spec.namespace),
        ("name", &spec.name),
        ("functionId", &spec.function_id),
        ("version", &spec.version),
        ("cluster", &spec.cluster),
        ("code", &spec.code.path.to_string_lossy()),
        ("className", spec.code.class_name.as_deref().unwrap_or("")),
        ("output", spec.output.as_deref().unwrap_or("")),
        ("outputSerde", spec.output_serde.as_deref().unwrap_or("")),
        ("outputSchema", spec.output_schema.as_deref().unwrap_or("")),
        ("logTopic", spec.log_topic.as_deref().unwrap_or("")),
        ("inputType", spec.input_type.as_deref().unwrap_or("")),
        ("outputType", spec.output_type.as_deref().unwrap_or("")),
        (
            "nul",
            match spec.options.nul {
                super::options::Nul::Refuse => "refuse",
                super::options::Nul::Base64 => "base64",
            },
        ),
        (
            "content",
            match spec.options.content {
                super::options::Content::Text => "text",
                super::options::Content::Bytes => "bytes",
            },
        ),
    ] {
        push(out, name, value);
    }
    push_number(out, "instance", u64::from(spec.instance));
    push_number(out, "instances", u64::from(spec.instances));
    push_number(out, "manualAck", u64::from(spec.manual_ack));
    push_number(out, "windows", u64::from(spec.windows));
    push_number(out, "maxOutputBytes", spec.options.max_output_bytes);
    for topic in &spec.inputs {
        push(out, "input", topic);
    }
    for (topic, class) in &spec.input_serdes {
        push(out, &format!("inputSerde.{topic}"), class);
    }
    for (topic, schema) in &spec.input_schemas {
        push(out, &format!("inputSchema.{topic}"), schema);
    }
    for (topic, kind) in &spec.topic_schemas {
        push(out, &format!("topicSchema.{topic}"), kind);
    }
    for (key, value) in &spec.user_config {
        push(out, &format!("conf.{key}"), &super::process::plain(value));
    }
    if !spec.user_config.is_empty() {
        let json = serde_json::to_string(&spec.user_config).unwrap_or_default();
        push(out, "userConfig", &json);
    }
    for (name, value) in spec.secrets.iter() {
        push(out, &format!("secret.{name}"), value);
    }
}

/// The verdict of an exit status, a shell's or a process's (`docs/host-protocol.md`).
pub(crate) fn verdict_of_status(status: i32, drop_code: i32, reason: &str) -> Verdict {
    use super::FailureKind::{Data, Temporary, User};
    let kind = match status {
        0 => return Verdict::Done,
        code if code == drop_code => return Verdict::Drop,
        75 => Temporary,
        64..=78 => Data,
        _ => User,
    };
    let reason = if reason.is_empty() {
        format!("ended with status {status}")
    } else {
        reason.to_owned()
    };
    Verdict::Failed(Failure {
        exit_code: Some(status),
        ..Failure::new(kind, reason)
    })
}
