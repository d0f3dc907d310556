//! What happens to a message after its processing: pure decisions.

use std::time::Duration;

use bytes::Bytes;
use geminga_client::Message as Sent;
use geminga_model::ProcessingGuarantees;

use crate::plan::Policy;
use crate::runtime::wire_base64::from_base64;
use crate::runtime::{Failure, FailureKind, Message, Verdict};

/// The longest wait between two tries.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// What of a reason stands in a letter without its payload.
const BARE_REASON_CHARS: usize = 1000;

/// How often a message that has too much output is tried again where tries have no bound of their own:
/// no sink would take it, and all behind it may be waiting.
const OUTPUT_RETRIES: u32 = 2;

/// What to do with a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Outputs, then the acknowledgement as the guarantee says.
    Publish,
    /// The acknowledgement alone.
    Acknowledge,
    /// Another try after this long, jitter not included.
    Retry(Duration),
    DeadLetter,
    /// Nothing: it was acknowledged before.
    Forget,
}

/// Decides; `attempts` counts deliveries to the function, this one included.
pub(crate) fn decide(policy: &Policy, verdict: &Verdict, attempts: u32) -> Decision {
    let failure = match verdict {
        Verdict::Done | Verdict::Hold => return Decision::Publish,
        Verdict::Drop => return Decision::Acknowledge,
        Verdict::Failed(failure) => failure,
    };
    if policy.guarantee == ProcessingGuarantees::AtmostOnce {
        return Decision::Forget;
    }
    if failure.kind == FailureKind::Data {
        return Decision::DeadLetter;
    }
    let bound = failure.is_of_output().then_some(OUTPUT_RETRIES);
    match policy.retries.or(bound) {
        Some(retries) if attempts > retries => Decision::DeadLetter,
        _ => {
            let doublings = attempts.saturating_sub(1).min(20);
            Decision::Retry(
                policy
                    .retry_first
                    .saturating_mul(1 << doublings)
                    .min(RETRY_MAX),
            )
        }
    }
}

fn copy(message: &Message) -> Sent {
    let mut copy = Sent::new(message.payload.clone()).properties(message.properties.clone());
    if message.event_time > 0 {
        copy = copy.event_time(message.event_time);
    }
    with_key(copy, message.key.as_deref(), message.key_is_base64)
}

/// A message for another topic, and what is sent in its place when the whole is more than that one takes.
#[derive(Debug)]
pub(crate) struct Letter {
    pub(crate) whole: Sent,
    pub(crate) bare: Sent,
}

impl Letter {
    /// A message as it came.
    pub(crate) fn copy(message: &Message) -> Self {
        Self {
            whole: copy(message),
            bare: bare(message),
        }
    }

    /// With one more property.
    pub(crate) fn property(self, name: &str, value: &str) -> Self {
        Self {
            whole: self.whole.property(name, value),
            bare: self.bare.property(name, value),
        }
    }

    /// A message that was given up, with the reasons as properties beside its own.
    pub(crate) fn dead(message: &Message, failure: &Failure, attempts: u32) -> Self {
        let with = |letter: Sent, reason: &str| {
            let letter = letter
                .property("geminga.reason", reason)
                .property("geminga.kind", failure.kind.as_str())
                .property("geminga.attempts", attempts.to_string());
            match failure.exit_code {
                Some(code) => letter.property("geminga.exit-code", code.to_string()),
                None => letter,
            }
        };
        let mut whole = with(origin(copy(message), message), &failure.reason);
        if !failure.stderr_tail.is_empty() {
            whole = whole.property("geminga.stderr", failure.stderr_tail.clone());
        }
        let reason: String = failure.reason.chars().take(BARE_REASON_CHARS).collect();
        Self {
            whole,
            bare: with(bare(message), &reason),
        }
    }
}

/// Names where a letter's message came from.
fn origin(letter: Sent, message: &Message) -> Sent {
    letter
        .property("geminga.topic", &*message.topic)
        .property("geminga.message-id", message.id.clone())
        // The names under which Pulsar's own clients look for a letter's origin.
        .property("REAL_TOPIC", &*message.topic)
        .property("ORIGIN_MESSAGE_ID", message.id.clone())
}

/// Stands for a message of which there is no more than where it was, and how much.
fn bare(message: &Message) -> Sent {
    let left_out = format!(
        "the payload of {} bytes and {} properties: more than this topic takes",
        message.payload.len(),
        message.properties.len()
    );
    origin(Sent::new(Bytes::new()), message).property("geminga.left-out", left_out)
}

/// `message` with a key as it was received.
pub(crate) fn with_key(message: Sent, key: Option<&str>, is_base64: bool) -> Sent {
    match key {
        None => message,
        Some(key) if is_base64 => match from_base64(key) {
            Some(bytes) => message.key_bytes(&bytes),
            None => message.key(key),
        },
        Some(key) => message.key(key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(guarantee: ProcessingGuarantees, retries: Option<u32>) -> Policy {
        Policy {
            guarantee,
            retries,
            dead_letter_topic: None,
            retry_first: Duration::from_millis(100),
            ordered: false,
        }
    }

    fn failed(kind: FailureKind) -> Verdict {
        Verdict::Failed(Failure::new(kind, "x"))
    }

    #[test]
    fn retries_are_counted_and_back_off() {
        use Decision::{DeadLetter, Retry};
        let limited = policy(ProcessingGuarantees::AtleastOnce, Some(2));
        let endless = policy(ProcessingGuarantees::AtleastOnce, None);
        let none = policy(ProcessingGuarantees::AtleastOnce, Some(0));
        let ms = Duration::from_millis;
        for (policy, kind, attempts, wanted) in [
            (&limited, FailureKind::User, 1, Retry(ms(100))),
            (&limited, FailureKind::Crash, 2, Retry(ms(200))),
            (&limited, FailureKind::Timeout, 3, DeadLetter),
            (&limited, FailureKind::Data, 1, DeadLetter),
            (&endless, FailureKind::User, 1000, Retry(RETRY_MAX)),
            (&endless, FailureKind::Temporary, 3, Retry(ms(400))),
            (&endless, FailureKind::Data, 1, DeadLetter),
            (&endless, FailureKind::Limit, 1000, Retry(RETRY_MAX)),
            (&endless, FailureKind::Output, 2, Retry(ms(200))),
            (&endless, FailureKind::Output, 3, DeadLetter),
            (&none, FailureKind::Output, 1, DeadLetter),
        ] {
            assert_eq!(
                decide(policy, &failed(kind), attempts),
                wanted,
                "{kind:?} {attempts}"
            );
        }
    }

    #[test]
    fn at_most_once_never_tries_again() {
        let policy = policy(ProcessingGuarantees::AtmostOnce, Some(5));
        assert_eq!(
            decide(&policy, &failed(FailureKind::User), 1),
            Decision::Forget
        );
        assert_eq!(decide(&policy, &Verdict::Done, 1), Decision::Publish);
        assert_eq!(decide(&policy, &Verdict::Drop, 1), Decision::Acknowledge);
    }
}
