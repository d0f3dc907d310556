//! From a configuration to what an instance does. Pure, but for one look into a Go program (`compat`): a
//! field is honoured here or refused by its name; none is passed over.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use geminga_client::{
    Batching, Compression, InitialPosition, Pattern, Selection, SubType, TopicSettings,
};
use geminga_mesh::builtin::{FileSink, FileSource, TableSink};
use geminga_model::ProcessingGuarantees;

pub(crate) use self::compat::{Compat, Kind};
pub(crate) use self::schemas::Typed;
pub(crate) use self::window::{EventTime, HELD_MAX, Shape};
use crate::component::Component;
use crate::runtime::HostSpec;
use crate::secret::Declared;

mod compat;
mod connector;
mod function;
mod schemas;
#[cfg(test)]
mod tests;
mod topics;
mod window;

/// First wait before a retry, when the configuration does not say.
const RETRY_FIRST: Duration = Duration::from_millis(500);

/// What each instance of a component does.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) input: Input,
    pub(crate) process: Process,
    pub(crate) output: Output,
    pub(crate) policy: Policy,
    /// What its code gets of them is read when it starts.
    pub(crate) secrets: Declared,
    /// Messages are gathered in windows.
    pub(crate) window: Option<WindowPlan>,
    pub(crate) log_topic: Option<String>,
    pub(crate) cleanup_subscription: bool,
    /// What was accepted and is not enforced on this machine, one sentence each.
    pub(crate) warnings: Vec<String>,
}

/// Where messages come from.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    Topics(Subscription),
    File(FileSource),
}

/// How topics are consumed.
#[derive(Debug, Clone)]
pub(crate) struct Subscription {
    pub(crate) topics: Vec<String>,
    /// And all topics that match one of these.
    pub(crate) patterns: Vec<Patterned>,
    /// What the component writes: no pattern means that.
    pub(crate) own: Vec<String>,
    pub(crate) name: String,
    pub(crate) sub_type: SubType,
    pub(crate) position: InitialPosition,
    /// What single inputs have of their own.
    pub(crate) inputs: Vec<InputPlan>,
    pub(crate) skip_to_latest: bool,
}

/// An input that is a pattern.
#[derive(Debug, Clone)]
pub(crate) struct Patterned {
    pub(crate) pattern: Pattern,
    pub(crate) text: String,
    /// How its messages are read is said: under this name.
    pub(crate) input: Option<Arc<str>>,
}

impl Subscription {
    /// The topics that are read.
    pub(crate) fn selection(&self) -> Selection {
        let patterns = self.patterns.iter();
        Selection {
            names: self.topics.clone(),
            patterns: patterns.map(|it| it.text.clone()).collect(),
            except: self.own.clone(),
            except_ending: Some(dead_letter_ending(&self.name)),
        }
    }
}

/// How the names of a subscription's dead letter topics end where the configuration names none: Pulsar's.
pub(crate) fn dead_letter_ending(subscription: &str) -> String {
    // A name holds no slashes of the subscription's.
    format!("-{}-DLQ", subscription.replace('/', "-"))
}

/// What one input, a topic or a pattern, has of its own.
#[derive(Debug, Clone)]
pub(crate) struct InputPlan {
    /// As it is called in the configuration.
    pub(crate) text: String,
    pub(crate) is_pattern: bool,
    pub(crate) schema: Typed,
    /// All but the schema.
    pub(crate) settings: TopicSettings,
}

/// What makes outputs of messages.
#[derive(Debug, Clone)]
pub(crate) enum Process {
    /// The message itself is the output: connectors.
    Identity,
    Host(Language, Box<HostSpec>),
    /// Pulsar's own instance, which reads and writes topics by itself.
    Compat(Box<Compat>),
}

impl Process {
    /// The code and its settings, where there is code.
    pub(crate) fn spec(&self) -> Option<&HostSpec> {
        match self {
            Self::Identity => None,
            Self::Host(_, spec) => Some(spec),
            Self::Compat(compat) => Some(&compat.spec),
        }
    }
}

/// The runtimes of this worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Language {
    Bash,
    Python,
    Exec,
    Go,
    Java,
    Wasm,
}

impl Language {
    /// Holds a process to so many bytes of memory, in the way that suits its runtime.
    fn limit_memory(self, bytes: u64, spec: &mut HostSpec) {
        let limits = &mut spec.options.limits;
        // A JVM needs more than its heap.
        spec.share.memory_bytes = Some(match self {
            Self::Java => bytes.saturating_mul(2).saturating_add(256 << 20),
            _ => bytes,
        });
        match self {
            // Of a WASM function it is the linear memory.
            Self::Bash | Self::Python | Self::Exec | Self::Wasm => {
                limits.memory_bytes = limits.memory_bytes.or(Some(bytes));
            }
            // These reserve far more address space than they use.
            Self::Go => limits.data_bytes = limits.data_bytes.or(Some(bytes)),
            Self::Java => spec.heap_bytes = Some(bytes),
        }
    }

    /// Whether the runtime has a host of its own, and so no use for the settings of plain processes.
    fn has_host(self) -> bool {
        matches!(self, Self::Python | Self::Go | Self::Java | Self::Wasm)
    }
}

/// Where outputs go.
#[derive(Debug, Clone)]
pub(crate) enum Output {
    /// The default topic, if there is one; outputs may name others.
    Topics {
        default: Option<String>,
        producer: ProducerPlan,
        forward_properties: bool,
    },
    File(FileSink),
    Table(TableSink),
}

/// How outputs are produced.
#[derive(Debug, Clone)]
pub(crate) struct ProducerPlan {
    pub(crate) compression: Compression,
    pub(crate) batching: Batching,
    pub(crate) window: Option<usize>,
    /// What the default topic is declared to be.
    pub(crate) schema: Typed,
}

/// How messages are gathered.
#[derive(Debug, Clone)]
pub(crate) struct WindowPlan {
    pub(crate) shape: Shape,
    pub(crate) event_time: Option<EventTime>,
    /// The topics that are inputs by name: the watermark waits for each of them.
    pub(crate) named: BTreeSet<Arc<str>>,
    pub(crate) stamp: Stamp,
    pub(crate) late_topic: Option<String>,
    pub(crate) packing: Packing,
}

/// Which time of a message counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stamp {
    Arrival,
    Event,
    Publish,
    /// Milliseconds since 1970 in a property.
    Property(String),
}

/// How a window is given to a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    /// As the messages of a batch, with their headers.
    Batch,
    /// One payload a line.
    Lines,
}

/// When messages are acknowledged, tried again, given up.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    pub(crate) guarantee: ProcessingGuarantees,
    /// `None`: without end.
    pub(crate) retries: Option<u32>,
    pub(crate) dead_letter_topic: Option<String>,
    pub(crate) retry_first: Duration,
    /// A failed message keeps those after it waiting.
    pub(crate) ordered: bool,
}

/// The topics that a plan reads and writes by name.
pub(crate) fn topics_of(plan: &Plan) -> (Vec<String>, Option<String>) {
    let inputs = match &plan.input {
        Input::Topics(subscription) => subscription.topics.clone(),
        Input::File(_) => Vec::new(),
    };
    let output = match &plan.output {
        Output::Topics { default, .. } => default.clone(),
        Output::File(_) | Output::Table(_) => None,
    };
    (inputs, output)
}

/// What can not be honoured, one sentence a field, which it begins with: [`field`] reads it again.
pub(crate) type Refused = Vec<String>;

/// The field that a sentence is about: the way to it in the configuration, as far as the sentence has it.
pub(crate) fn field(sentence: &str) -> Vec<String> {
    let Some((named, rest)) = sentence
        .strip_prefix('`')
        .and_then(|rest| rest.split_once('`'))
    else {
        return Vec::new();
    };
    let name = named.split_once(": ").map_or(named, |(name, _)| name);
    let of = |what: &str| rest.strip_prefix(what)?.split('`').next();
    let way = name.split('.');
    let way: Vec<&str> = if let Some(topic) = of(" of input `") {
        // A topic's own name may have dots.
        ["inputSpecs", topic].into_iter().chain(way).collect()
    } else if rest.starts_with(" of `customRuntimeOptions`") {
        vec!["customRuntimeOptions"]
    } else if let Some(key) = of(" of topic `").or(of(" of `")) {
        vec![name, key]
    } else {
        way.collect()
    };
    way.into_iter().map(str::to_owned).collect()
}

/// Plans a component; `code` is where its code is on this machine.
pub(crate) fn plan(component: &Component, code: Option<&Path>) -> Result<Plan, Refused> {
    let mut refused: Refused = component
        .violations()
        .iter()
        .map(ToString::to_string)
        .collect();
    if !refused.is_empty() {
        return Err(refused);
    }
    let plan = match component {
        Component::Function(config) => function::function(config, code, &mut refused),
        Component::Source(config) => connector::source(config, &mut refused),
        Component::Sink(config) => connector::sink(config, &mut refused),
    };
    match plan {
        Some(plan) if refused.is_empty() => Ok(plan),
        _ => Err(refused),
    }
}

impl Plan {
    /// Whether what a topic is declared to be is for the host to say.
    pub(crate) fn asks_host(&self) -> bool {
        let of_input = match &self.input {
            Input::Topics(it) => it.inputs.iter().any(|input| input.schema.is_hosts()),
            Input::File(_) => false,
        };
        let of_output = match &self.output {
            Output::Topics {
                default, producer, ..
            } => default.is_some() && producer.schema.is_hosts(),
            Output::File(_) | Output::Table(_) => false,
        };
        matches!(self.process, Process::Host(..)) && (of_input || of_output)
    }
}

/// The full name of a topic; text that is no legal name stays as it is, for the broker to refuse.
pub(crate) fn full_name(topic: &str) -> String {
    topic
        .parse::<geminga_model::TopicName>()
        .map_or_else(|_| topic.to_owned(), |name| name.to_string())
}
