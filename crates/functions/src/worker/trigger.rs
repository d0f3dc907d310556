//! Sends one message through a function and waits for what came of it.

use std::time::Duration;

use bytes::Bytes;
use geminga_client::{Client, Message, MessageId};

use crate::error::WorkerError;
use crate::instance::sink::pfn_id;
use crate::plan::{Plan, full_name};

pub(super) async fn trigger(
    client: &Client,
    plan: &Plan,
    topic: Option<&str>,
    payload: Bytes,
    limit: Duration,
) -> Result<Option<Bytes>, WorkerError> {
    let (inputs, output) = super::topics_of(plan);
    let invalid = |why: String| WorkerError::Invalid(vec![why]);
    let topic = match topic.map(full_name) {
        Some(topic) if inputs.contains(&topic) => topic,
        Some(topic) => {
            return Err(invalid(format!(
                "`{topic}` is not an input of the function"
            )));
        }
        None => match &inputs[..] {
            [only] => only.clone(),
            _ => {
                return Err(invalid(
                    "the function has several inputs: name the topic".to_owned(),
                ));
            }
        },
    };
    // The reader begins before the message is sent, so that the answer can not be missed.
    let mut reader = match &output {
        Some(output) => {
            let reader = client
                .reader(output.as_str())
                .start(MessageId::LATEST)
                .build()
                .await;
            Some(reader.map_err(WorkerError::client(format!("reading `{output}`")))?)
        }
        None => None,
    };
    let failed = || format!("writing `{topic}`");
    let producer = client
        .producer(topic.as_str())
        .build()
        .await
        .map_err(WorkerError::client(failed()))?;
    let id = producer
        .send(Message::new(payload))
        .await
        .map_err(WorkerError::client(failed()))?;
    let Some(reader) = &mut reader else {
        return Ok(None);
    };
    let wanted = id.without_batch().position();
    let answer = async {
        loop {
            let message = reader
                .next()
                .await
                .map_err(WorkerError::client("reading the output"))?;
            let said = message.property("__pfn_input_msg_id__");
            // A batch of one message is numbered by some clients and not by others.
            let matches = [id, id.without_batch()]
                .iter()
                .any(|id| id.position() == wanted && pfn_id(&id.to_string()).as_deref() == said);
            if matches {
                return Ok(Some(message.payload));
            }
        }
    };
    match tokio::time::timeout(limit, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(WorkerError::Timeout {
            what: "the function's answer",
            after_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
        }),
    }
}
