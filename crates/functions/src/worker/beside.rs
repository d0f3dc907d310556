//! Beside Apache Pulsar's own functions workers: their topics are left alone.
//!
//! Pulsar's workers keep their functions on a topic too, `public/functions/metadata` unless they are told
//! otherwise, and their leader holds its exclusive producer. A worker of ours there would wait for ever,
//! or keep theirs from writing. What must hold: on a broker that is not Geminga this worker makes nothing
//! on a topic that is theirs, whether they have used it yet or not; a catalogue of ours stays ours.

use geminga_client::{Client, MessageId, ReceivedMessage};

use super::CATALOG_TOPIC;
use super::catalog::Key;
use crate::changelog::is_mark;
use crate::error::WorkerError;

/// What Geminga's brokers have in the version that they say.
const OWN_VERSION: &str = "geminga";

/// Refuses to keep the catalogue where Pulsar's workers keep theirs.
pub(super) async fn check(client: &Client, topic: &str) -> Result<(), WorkerError> {
    let failed = || WorkerError::client(format!("catalogue `{topic}`"));
    let version = client.server_version().await.map_err(failed())?;
    if version.contains(OWN_VERSION) {
        return Ok(());
    }
    // Reading would make it.
    let first = match client.partitions_if_exists(topic).await.map_err(failed())? {
        Some(_) => first(client, topic).await.map_err(failed())?,
        None => None,
    };
    match why_not(&version, topic, first.as_ref().map(is_ours)) {
        None => Ok(()),
        Some(why) => Err(WorkerError::PulsarsOwn {
            topic: topic.to_owned(),
            why,
        }),
    }
}

/// The oldest record of a topic. Reading leaves nothing there.
async fn first(
    client: &Client,
    topic: &str,
) -> Result<Option<ReceivedMessage>, geminga_client::Error> {
    let reader = client.reader(topic).start(MessageId::EARLIEST);
    let mut reader = reader.receiver_queue_size(1).build().await?;
    let first = match reader.has_message_available().await? {
        true => Some(reader.next().await?),
        false => None,
    };
    reader.close().await?;
    Ok(first)
}

/// Whether a record is of a catalogue of ours. Pulsar's have no key, or the name of a function alone.
fn is_ours(record: &ReceivedMessage) -> bool {
    match &record.key {
        Some(key) => Key::parse(key).is_some(),
        None => is_mark(record),
    }
}

/// Why a topic of a broker that is not Geminga is not taken, of which the first record is ours or not.
fn why_not(version: &str, topic: &str, first_is_ours: Option<bool>) -> Option<String> {
    match first_is_ours {
        Some(true) => None,
        Some(false) => Some("what it holds is theirs".to_owned()),
        None if topic == CATALOG_TOPIC => {
            Some(format!("the broker is no Geminga, it says `{version}`"))
        }
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pulsars_is_refused_and_what_is_ours_is_kept() {
        let other = "persistent://public/geminga/metadata";
        for (topic, first, refused) in [
            (CATALOG_TOPIC, None, Some("Pulsar Server4.0.8")),
            (CATALOG_TOPIC, Some(false), Some("theirs")),
            (CATALOG_TOPIC, Some(true), None),
            (other, None, None),
            (other, Some(false), Some("theirs")),
            (other, Some(true), None),
        ] {
            let why = why_not("Pulsar Server4.0.8", topic, first);
            assert_eq!(why.is_some(), refused.is_some(), "{topic} {first:?}");
            let named = refused.is_none_or(|part| why.is_some_and(|why| why.contains(part)));
            assert!(named, "{topic} {first:?}");
        }
    }
}
