//! Sends one message through a function and waits for what came of it.
//!
//! The answer is found by the id of the message that was sent, which every output carries in its
//! properties; so any number of calls may be under way at once, beside other messages.

use std::time::Duration;

use bytes::Bytes;
use geminga_client::{Client, Message, MessageId, ReceivedMessage};

use crate::error::WorkerError;
use crate::instance::sink::pfn_id;
use crate::plan::{Plan, full_name};

/// A message for a function.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// The input topic; needed when there are several.
    pub topic: Option<String>,
    pub payload: Bytes,
    pub key: Option<String>,
    pub properties: Vec<(String, String)>,
    pub event_time_ms: Option<u64>,
    /// How long an answer may take.
    pub limit: Duration,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answered {
    /// The function has no output topic: the message was taken.
    Nothing,
    /// Its first output.
    Output {
        payload: Bytes,
        key: Option<String>,
        properties: Vec<(String, String)>,
    },
    /// It failed for good: the reason in its dead letter.
    Failed(String),
}

pub(super) async fn trigger(
    client: &Client,
    plan: &Plan,
    asked: Asked,
) -> Result<Answered, WorkerError> {
    let (inputs, output) = super::topics_of(plan);
    let invalid = |why: &str| WorkerError::Invalid(vec![why.to_owned()]);
    let topic = match asked.topic.as_deref().map(full_name) {
        Some(topic) if inputs.contains(&topic) => topic,
        Some(_) => {
            return Err(invalid(
                "Function in trigger function has unidentified topic",
            ));
        }
        None => match &inputs[..] {
            [only] => only.clone(),
            _ => {
                return Err(invalid(
                    "Function in trigger function has multiple input topics: name the topic",
                ));
            }
        },
    };
    let dead_letters = plan.policy.dead_letter_topic.clone();
    let read = |topic: String| async move {
        let reader = client
            .reader(topic.as_str())
            .start(MessageId::LATEST)
            .build()
            .await;
        reader.map_err(WorkerError::client(format!("reading `{topic}`")))
    };
    // The readers begin before the message is sent, so that the answer can not be missed.
    let mut reader = match output {
        Some(output) => Some(read(output).await?),
        None => None,
    };
    let mut dead = match dead_letters.filter(|_| reader.is_some()) {
        Some(topic) => Some(read(topic).await?),
        None => None,
    };
    let failed = || format!("writing `{topic}`");
    let producer = client.producer(topic.as_str()).build().await;
    let producer = producer.map_err(WorkerError::client(failed()))?;
    let mut message = Message::new(asked.payload);
    for (name, value) in &asked.properties {
        message = message.property(name.as_str(), value.as_str());
    }
    if let Some(key) = asked.key {
        message = message.key(key);
    }
    if let Some(ms) = asked.event_time_ms {
        message = message.event_time(ms);
    }
    let sent = producer.send(message).await;
    let id = sent.map_err(WorkerError::client(failed()))?;
    let Some(reader) = &mut reader else {
        return Ok(Answered::Nothing);
    };
    let answer = async {
        loop {
            let next_dead = async {
                match &mut dead {
                    Some(dead) => dead.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                message = reader.next() => {
                    let message = message.map_err(WorkerError::client("reading the output"))?;
                    if is_of(&message, id) {
                        return Ok(Answered::Output {
                            payload: message.payload,
                            key: message.key,
                            properties: message.properties,
                        });
                    }
                }
                message = next_dead => {
                    let message = message.map_err(WorkerError::client("reading dead letters"))?;
                    let of = message.property("ORIGIN_MESSAGE_ID");
                    if [id, id.without_batch()].iter().any(|id| of == Some(&id.to_string())) {
                        let reason = message.property("geminga.reason");
                        let reason = reason.unwrap_or("the function failed");
                        return Ok(Answered::Failed(reason.to_owned()));
                    }
                }
            }
        }
    };
    match tokio::time::timeout(asked.limit, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(WorkerError::Timeout {
            what: "the function's answer",
            after_ms: u64::try_from(asked.limit.as_millis()).unwrap_or(u64::MAX),
        }),
    }
}

/// Whether a message came of the one with this id.
fn is_of(message: &ReceivedMessage, id: MessageId) -> bool {
    let said = message.property("__pfn_input_msg_id__");
    // A batch of one message is numbered by some clients and not by others.
    said.is_some()
        && [id, id.without_batch()]
            .iter()
            .any(|id| pfn_id(&id.to_string()).as_deref() == said)
}
