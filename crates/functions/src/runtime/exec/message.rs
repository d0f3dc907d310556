//! A message as a spawned process sees it, and what its descriptors 3 and 4 say.

use crate::runtime::process::{Planned, variable};
use crate::runtime::wire::plain::output_from_json;
use crate::runtime::{
    Failure, FailureKind, Level, LogLine, Message, Output, Services, StateChange, Verdict,
};

/// Puts the message's facts into the environment. A value with a NUL byte can not stand there.
pub(super) fn environment(planned: &mut Planned, message: &Message) {
    let mut set = |name: &str, value: &str| {
        if !value.contains('\0') {
            planned.env(name, value);
        }
    };
    set("GMG_TOPIC", &message.topic);
    set("GMG_MESSAGE_ID", &message.id);
    set("GMG_PARTITION", &message.partition.to_string());
    set("GMG_SEQUENCE", &message.sequence.to_string());
    set("GMG_EVENT_TIME", &message.event_time.to_string());
    set("GMG_PUBLISH_TIME", &message.publish_time.to_string());
    set("GMG_PRODUCER", &message.producer);
    set("GMG_REDELIVERY", &message.redelivery.to_string());
    if let Some(key) = &message.key {
        set("GMG_KEY", key);
    }
    let mut all = serde_json::Map::new();
    for (name, value) in &message.properties {
        set(&format!("GMG_PROP_{}", variable(name)), value);
        if let Some(attribute) = name.strip_prefix("ce_") {
            set(
                &format!("CE_{}", variable(attribute).to_ascii_uppercase()),
                value,
            );
        }
        if name == "traceparent" {
            set("TRACEPARENT", value);
        }
        all.insert(name.clone(), value.clone().into());
    }
    if !all.is_empty() {
        set("GMG_PROPS", &serde_json::Value::Object(all).to_string());
    }
}

/// Descriptor 3: an output a line, as JSON.
pub(super) fn outputs(text: &[u8]) -> Result<Vec<Output>, Failure> {
    let lines = text
        .split(|&b| b == b'\n')
        .filter(|line| !line.trim_ascii().is_empty());
    lines
        .map(|line| {
            serde_json::from_slice(line)
                .ok()
                .filter(serde_json::Value::is_object)
                .and_then(|value| output_from_json(&value))
                .ok_or_else(|| {
                    let line: String = String::from_utf8_lossy(line).chars().take(80).collect();
                    Failure::new(
                        FailureKind::User,
                        format!("descriptor 3 holds no output: `{line}`"),
                    )
                })
        })
        .collect()
}

/// Descriptor 4: `ack`, `nack reason`, `dlq reason`, `drop`, `log LEVEL text`, `metric name value`,
/// `state put key value`, `state del key`, `state incr key [n]`; one a line.
pub(super) fn control(
    text: &[u8],
    message: &Message,
    services: &dyn Services,
) -> Result<(Option<Verdict>, Vec<StateChange>), Failure> {
    let mut verdict = None;
    let mut state = Vec::new();
    for line in String::from_utf8_lossy(text)
        .lines()
        .filter(|line| !line.trim().is_empty())
    {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let (first, second) = rest.split_once(' ').unwrap_or((rest, ""));
        let failed = |kind, otherwise: &str| {
            let reason = if rest.is_empty() { otherwise } else { rest };
            Some(Verdict::Failed(Failure::new(kind, reason)))
        };
        match (word, first) {
            ("ack", _) => {
                services.acknowledge(&message.id);
                verdict = Some(Verdict::Done);
            }
            ("nack", _) => verdict = failed(FailureKind::User, "not acknowledged"),
            ("dlq", _) => verdict = failed(FailureKind::Data, "refused by the function"),
            ("drop", _) => verdict = Some(Verdict::Drop),
            ("log", _) => services.log(LogLine {
                level: Level::parse(first).unwrap_or(Level::Info),
                text: second.to_owned(),
                message_id: Some(message.id.clone()),
            }),
            ("metric", _) => {
                if let Ok(value) = second.parse() {
                    services.metric(first, value);
                }
            }
            ("state", "put") => {
                let (key, value) = second.split_once(' ').unwrap_or((second, ""));
                state.push(StateChange::Put(key.to_owned(), value.to_owned().into()));
            }
            ("state", "del") => state.push(StateChange::Delete(second.to_owned())),
            ("state", "incr") => {
                let (key, by) = second.split_once(' ').unwrap_or((second, "1"));
                let by = by.trim().parse().map_err(|_| unknown(line))?;
                state.push(StateChange::Increment(key.to_owned(), by));
            }
            _ => return Err(unknown(line)),
        }
    }
    Ok((verdict, state))
}

fn unknown(line: &str) -> Failure {
    let line: String = line.chars().take(80).collect();
    Failure::new(
        FailureKind::User,
        format!("descriptor 4 holds no command: `{line}`"),
    )
}
