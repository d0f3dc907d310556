//! What runs user code: the two traits every runtime implements, and the plain data between them
//! and an instance.
//!
//! A [`Runtime`] starts; a [`Host`] is what it started: the user's code of one function instance,
//! ready for messages. What must hold for each (`contract.rs` is the suite):
//! - every message delivered gets exactly one [`Outcome`], or the host breaks ([`Broken`]);
//! - a host sees its messages in the order they were delivered, unless `concurrency` allows more;
//! - no code of the user outlives `stop`, a time-out, or the worker itself;
//! - user code can not make the worker wait, fill its memory, or forge another message's outcome.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use geminga_client::{MessageId, Schema};

pub use crate::secret::SecretValues;

pub mod bash;
pub mod body;
#[cfg(test)]
pub(crate) mod contract;
pub mod exec;
pub mod go;
pub(crate) mod guard;
mod handle;
pub(crate) mod headers;
pub mod java;
pub mod options;
mod pipe;
pub(crate) mod process;
pub mod python;
mod removal;
pub mod sandbox;
pub(crate) mod sleeper;
pub(crate) mod stderr;
pub(crate) mod toolchain;
pub(crate) mod warm;
pub(crate) mod wire;

pub use body::{Body, Exit, Launched, Launcher, Streams};
pub use options::{Choice, OnFailedUpdate, Options};
pub use process::Processes;
pub(crate) use process::plain;
pub(crate) use warm::incremented;
pub(crate) use wire::shell as wire_base64;

/// Standard base64 of bytes, with padding.
#[must_use]
pub fn base64_text(bytes: &[u8]) -> String {
    wire_base64::base64(bytes)
}

/// Undoes [`base64_text`]; `None` for other text.
#[must_use]
pub fn base64_bytes(text: &str) -> Option<Vec<u8>> {
    wire_base64::from_base64(text)
}

/// A boxed future, so that the traits can be used as objects.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A message on its way into a function.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// Full topic name, with the partition.
    pub topic: Arc<str>,
    /// Which input it came by, where that is a pattern with a schema or a SerDe of its own.
    pub input: Option<Arc<str>>,
    /// `ledger:entry:partition` or with `:batch-index`, as Pulsar prints it.
    pub id: String,
    /// The same as numbers, where it is a message of a topic.
    pub place: Option<MessageId>,
    pub payload: Bytes,
    pub key: Option<String>,
    /// The key is base64 of bytes, as Pulsar marks it.
    pub key_is_base64: bool,
    pub ordering_key: Option<String>,
    pub properties: Vec<(String, String)>,
    /// Milliseconds since 1970; 0 when the producer gave none.
    pub event_time: u64,
    pub publish_time: u64,
    pub producer: Arc<str>,
    pub sequence: u64,
    pub partition: i32,
    /// How often it was delivered before.
    pub redelivery: u32,
    /// Which of its topic's schemas it was written by.
    pub schema_version: Option<Bytes>,
    /// It stands for a window of messages.
    pub window: Option<Window>,
    /// Somebody waits for what comes of it: that is to say whose it is.
    pub triggered: bool,
}

impl Message {
    /// What it takes in memory, about.
    pub(crate) fn bytes(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        self.payload.len()
            + of_properties(&self.properties)
            + text(&self.key)
            + text(&self.ordering_key)
    }
}

fn of_properties(properties: &[(String, String)]) -> usize {
    let sizes = properties
        .iter()
        .map(|(name, value)| name.len() + value.len());
    sizes.sum()
}

/// What a message that stands for a window tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    pub count: u64,
    pub start_ms: u64,
    pub end_ms: u64,
    /// The id of its last message.
    pub last: String,
}

/// One message handed to a host. The caller picks `ticket`; the outcome names it.
#[derive(Debug, Clone)]
pub struct Delivery {
    pub ticket: u64,
    pub message: Arc<Message>,
}

/// A message on its way out of a function.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Output {
    /// `None` is the function's own output topic.
    pub topic: Option<String>,
    pub payload: Bytes,
    /// `None` means the input's key.
    pub key: Option<String>,
    /// The key is base64 of bytes, as Pulsar marks it.
    pub key_is_base64: bool,
    pub properties: Vec<(String, String)>,
    pub event_time: Option<u64>,
    /// Deliver not before so many milliseconds from now.
    pub delay_ms: Option<u64>,
    pub ordering_key: Option<String>,
    pub sequence: Option<u64>,
    /// What it was written by, where that is not what its topic is declared to be.
    pub schema: Option<Arc<Schema>>,
}

/// Which messages a schema of the host is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SchemaOf {
    /// Outputs that name no schema of their own.
    Output,
    /// What comes from this input, as the greeting calls it.
    Input(String),
}

impl Output {
    /// What it takes in memory, about.
    pub(crate) fn bytes(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        self.payload.len()
            + of_properties(&self.properties)
            + text(&self.topic)
            + text(&self.key)
            + text(&self.ordering_key)
    }
}

/// A change of the function's state. It becomes part of its message's commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StateChange {
    Put(String, Bytes),
    Delete(String),
    Increment(String, i64),
}

/// Bytes of a key of the state; a change of a longer one fails its message. All keys are in memory.
pub const STATE_KEY_BYTES_MAX: usize = 1024;
/// Bytes of a value of the state: it must fit into a message of the state's topic.
pub const STATE_VALUE_BYTES_MAX: usize = 4 << 20;

impl StateChange {
    pub(crate) fn key(&self) -> &str {
        match self {
            Self::Put(key, _) | Self::Delete(key) | Self::Increment(key, _) => key,
        }
    }

    /// Why it can not be kept.
    pub(crate) fn refusal(&self) -> Option<String> {
        let key = self.key();
        if key.len() > STATE_KEY_BYTES_MAX {
            let begin: String = key.chars().take(40).collect();
            let bytes = key.len();
            return Some(format!(
                "the state's key `{begin}…` has {bytes} bytes: {STATE_KEY_BYTES_MAX} at most"
            ));
        }
        match self {
            Self::Put(_, value) if value.len() > STATE_VALUE_BYTES_MAX => Some(format!(
                "the state's value of `{key}` has {} bytes: {STATE_VALUE_BYTES_MAX} at most",
                value.len()
            )),
            _ => None,
        }
    }
}

/// The failure of a message whose changes of the state can not be kept.
pub(crate) fn unkept(changes: &[StateChange]) -> Option<Failure> {
    let why = changes.iter().find_map(StateChange::refusal)?;
    Some(Failure::new(FailureKind::Data, why))
}

/// What the function said of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Processed: publish the outputs, then acknowledge.
    Done,
    /// Publish, but the function acknowledges for itself later.
    Hold,
    /// Acknowledge and publish nothing.
    Drop,
    /// Not processed: what the failure asks for.
    Failed(Failure),
}

/// What a failed message needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// The function said no, or threw: retry up to the limit, then dead letter.
    User,
    /// The data can never be processed: dead letter at once.
    Data,
    /// It may work later: retry with back-off.
    Temporary,
    /// The process died while it held the message.
    Crash,
    /// The process was killed for using too much memory, or hit another limit.
    Limit,
    /// More output, or more changes of state, than one message may have.
    Output,
    /// It took longer than the time limit.
    Timeout,
}

impl FailureKind {
    /// As it stands in properties of dead letters, in metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Data => "data",
            Self::Temporary => "temporary",
            Self::Crash => "crash",
            Self::Limit | Self::Output => "limit",
            Self::Timeout => "timeout",
        }
    }
}

/// Why a message failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Failure {
    pub kind: FailureKind,
    pub reason: String,
    pub exit_code: Option<i32>,
    /// The end of what the process wrote to standard error.
    pub stderr_tail: String,
}

impl Failure {
    pub(crate) fn is_of_output(&self) -> bool {
        self.kind == FailureKind::Output
    }

    #[must_use]
    pub fn new(kind: FailureKind, reason: impl Into<String>) -> Self {
        Self {
            kind,
            reason: reason.into(),
            exit_code: None,
            stderr_tail: String::new(),
        }
    }
}

/// What became of one delivery.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    pub ticket: u64,
    pub verdict: Verdict,
    pub outputs: Vec<Output>,
    /// Already applied in memory; still to be written to the changelog.
    pub state: Vec<StateChange>,
    /// Time in user code, as well as the runtime can tell.
    pub took: Duration,
}

/// The host can not go on: its code does not start, or died again and again.
/// Messages without an outcome were not processed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The code itself is at fault: nothing is consumed until it is changed.
    #[error("{reason}")]
    Deployment { reason: String, stderr_tail: String },
    /// Starting may work later.
    #[error("{reason}")]
    Start { reason: String, stderr_tail: String },
    #[error("the host was stopped")]
    Stopped,
}

impl Broken {
    /// What is wrong, with the last words of the code.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Deployment {
                reason,
                stderr_tail,
            }
            | Self::Start {
                reason,
                stderr_tail,
            } => with_last_words(reason, stderr_tail),
            Self::Stopped => self.to_string(),
        }
    }
}

/// A reason, and below it what was said last on standard error.
pub(crate) fn with_last_words(reason: &str, stderr_tail: &str) -> String {
    match stderr_tail.is_empty() {
        true => reason.to_owned(),
        false => format!("{reason}\n{stderr_tail}"),
    }
}

/// How a line of a log came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

impl Level {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Trace => "TRACE",
            Self::Debug => "DEBUG",
            Self::Info => "INFO",
            Self::Warn => "WARN",
            Self::Error => "ERROR",
        }
    }

    /// Any usual spelling; `None` for other text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text.to_ascii_lowercase().as_str() {
            "trace" => Self::Trace,
            "debug" => Self::Debug,
            "info" | "notice" => Self::Info,
            "warn" | "warning" => Self::Warn,
            "error" | "err" | "critical" | "fatal" | "crit" | "alert" | "emerg" => Self::Error,
            _ => return None,
        })
    }
}

/// A line that user code logged or printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    pub level: Level,
    pub text: String,
    /// The message being processed, when that is known.
    pub message_id: Option<String>,
}

/// What a host may ask of its function instance. Called from the host's task: it must not wait.
pub trait Services: Send + Sync + 'static {
    /// A line for the log topic. Never waits: what does not fit is counted and dropped.
    fn log(&self, line: LogLine);
    /// A user metric.
    fn metric(&self, name: &str, value: f64);
    /// The committed value of a key; counters are 8 bytes, big-endian.
    fn state_get(&self, key: &str) -> Option<Bytes>;
    /// Applies the changes of a processed message in memory.
    fn state_apply(&self, changes: &[StateChange]);
    /// Applies changes that are no message's, made at the start of the code or at its end, and keeps them.
    fn state_commit(&self, changes: Vec<StateChange>) {
        self.state_apply(&changes);
    }
    /// The function acknowledges a message (guarantee `MANUAL`).
    fn acknowledge(&self, message_id: &str);
    /// Publishes outside any message.
    fn publish(&self, output: Output);
    /// The schema of a topic that messages came from, as an answer of the host protocol has it: the one
    /// with this version, or the newest; `None` when the topic has none. Who has no broker knows none.
    ///
    /// # Errors
    /// Why it can not be had now.
    fn schema(
        &self,
        _topic: &str,
        _version: Option<Bytes>,
    ) -> BoxFuture<'static, Result<Option<Bytes>, String>> {
        Box::pin(async { Ok(None) })
    }
    /// What the host says of a topic: told before it is ready.
    fn declared(&self, _of: SchemaOf, _schema: Schema) {}
    /// The process was started again, and why.
    fn restarted(&self, reason: &str);
    /// It ended, or did not start again, with no message in hand that could tell why.
    fn ended_idle(&self, _why: &str) {}
}

/// Who the function is and what it is given: the runtime-level half of a `FunctionConfig`.
#[derive(Debug, Clone, Default)]
pub struct HostSpec {
    pub tenant: String,
    pub namespace: String,
    pub name: String,
    /// Changes with each start.
    pub function_id: String,
    pub version: String,
    pub cluster: String,
    pub instance: u32,
    pub instances: u32,
    pub code: Code,
    pub inputs: Vec<String>,
    pub output: Option<String>,
    pub output_serde: Option<String>,
    /// Topic to SerDe class; others are guessed as Pulsar does.
    pub input_serdes: BTreeMap<String, String>,
    /// Topic, or pattern, to schema name (`string`, `json`).
    pub input_schemas: BTreeMap<String, String>,
    pub output_schema: Option<String>,
    /// Topic to the type of the schema that it has already, for a host that goes by it (Java).
    pub topic_schemas: BTreeMap<String, String>,
    pub user_config: serde_json::Map<String, serde_json::Value>,
    pub secrets: SecretValues,
    pub log_topic: Option<String>,
    pub manual_ack: bool,
    pub options: Options,
    /// What all its processes may use together.
    pub share: sandbox::Share,
    /// Java: the type names that the configuration gives, which must be those of the class.
    pub input_type: Option<String>,
    pub output_type: Option<String>,
    /// Java: the largest heap.
    pub heap_bytes: Option<u64>,
    /// Without a message for so long, the code ends; the next message starts it again.
    pub idle: Option<std::time::Duration>,
    /// Extra arguments of the interpreter.
    pub runtime_flags: Vec<String>,
    /// Each message stands for a window.
    pub windows: bool,
}

impl HostSpec {
    /// Whether the greeting names what a schema is said to be of.
    pub(crate) fn has(&self, of: &SchemaOf) -> bool {
        match of {
            SchemaOf::Output => true,
            SchemaOf::Input(topic) => {
                self.inputs.contains(topic)
                    || self.input_schemas.contains_key(topic)
                    || self.input_serdes.contains_key(topic)
            }
        }
    }

    #[must_use]
    pub fn fqfn(&self) -> String {
        format!("{}/{}/{}", self.tenant, self.namespace, self.name)
    }
}

/// The user's code on this machine.
#[derive(Debug, Clone, Default)]
pub struct Code {
    /// The file or folder.
    pub path: PathBuf,
    /// Python: `module.Class` or `module`.
    pub class_name: Option<String>,
}

/// Starts user code of one kind.
pub trait Runtime: Send + Sync + 'static {
    /// `exec`, `bash`, `python`, `go`, `java`, `wasm`.
    fn name(&self) -> &'static str;

    /// Starts the code and waits until it is ready, or fails within the start time-out.
    ///
    /// # Errors
    /// [`Broken`], with what the process said.
    fn start(
        &self,
        spec: Arc<HostSpec>,
        services: Arc<dyn Services>,
    ) -> BoxFuture<'_, Result<Box<dyn Host>, Broken>>;
}

/// Started user code. One task uses it.
pub trait Host: Send {
    /// How many deliveries may be without an outcome at once. More are refused by waiting.
    fn window(&self) -> usize;

    /// Hands messages over. Waits while the window is full: who must not wait, or may be cancelled,
    /// hands over no more than fits.
    ///
    /// # Errors
    /// When the host is broken. Messages without an outcome were not processed.
    fn deliver(&mut self, batch: Vec<Delivery>) -> BoxFuture<'_, Result<(), Broken>>;

    /// The next outcomes, in the order in which messages ended. Cancel-safe.
    ///
    /// # Errors
    /// When the host is broken and all its outcomes were taken.
    fn outcomes(&mut self) -> BoxFuture<'_, Result<Vec<Outcome>, Broken>>;

    /// Ends the code: lets messages in flight finish within `grace`, then kills what is left.
    /// Outcomes of that time can still be taken afterwards.
    fn stop(&mut self, grace: Duration) -> BoxFuture<'_, ()>;
}

fn private_directory(error: std::io::Error) -> Broken {
    Broken::Start {
        reason: format!("no private directory: {error}"),
        stderr_tail: String::new(),
    }
}

fn no_pipes() -> Broken {
    Broken::Start {
        reason: "the process has no pipes".to_owned(),
        stderr_tail: String::new(),
    }
}
