//! What is stored about transactions, and the keys it has. JSON, read by nobody else.
//!
//! | key | value |
//! |---|---|
//! | `/transactions/coordinators/<tc>` | [`Reserved`]: numbers below may have been given out |
//! | `/transactions/records/<tc>/<number>` | [`Record`]: open, or the outcome |
//! | `/transactions/topics/<ledger>/<tc>-<number>` | [`OnTopic`]: it may have messages there |
//! | `/transactions/acks/<ledger>/<encoded subscription>/<tc>-<number>/<n>` | list of `PendingAck` |
//!
//! Numbers are 16 hex digits, `<ledger>` is the topic's `tenant/namespace/persistent/encoded`.
//! The record decides what the last two mean, and goes after them. A topic's key that says
//! `aborted` needs no record any more.

use bytes::Bytes;
use geminga_model::{Position, TopicName};
use serde::{Deserialize, Serialize};

use super::TxnId;
use super::coordinator::Outcome;
use crate::error::BrokerError;
use crate::namespace::{decode, encode, ledger_name};

pub(crate) const COORDINATORS: &str = "/transactions/coordinators";
pub(crate) const RECORDS: &str = "/transactions/records";
pub(crate) const TOPICS: &str = "/transactions/topics";
pub(crate) const ACKS: &str = "/transactions/acks";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reserved {
    pub(crate) below: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) started_ms: u64,
    pub(crate) timeout_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) outcome: Option<Outcome>,
    /// Who began it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) owner: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum OnTopic {
    /// It may have entries after this one.
    Open { after: (i64, i64) },
    /// Its entries, up to this one, are nobody's.
    Aborted { last: (i64, i64) },
}

impl OnTopic {
    pub(crate) fn open(after: Position) -> OnTopic {
        OnTopic::Open {
            after: (after.ledger.0, after.entry.0),
        }
    }

    pub(crate) fn aborted(last: Position) -> OnTopic {
        OnTopic::Aborted {
            last: (last.ledger.0, last.entry.0),
        }
    }
}

pub(crate) fn coordinator_key(tc: u64) -> String {
    format!("{COORDINATORS}/{tc}")
}

pub(crate) fn record_key(txn: TxnId) -> String {
    format!("{RECORDS}/{}/{:016x}", txn.tc, txn.number)
}

pub(crate) fn topic_path(topic: &TopicName) -> String {
    [TOPICS, "/", &ledger_name(topic)].concat()
}

pub(crate) fn topic_key(topic: &TopicName, txn: TxnId) -> String {
    format!("{}/{}", topic_path(topic), short(txn))
}

pub(crate) fn topic_acks_path(topic: &TopicName) -> String {
    [ACKS, "/", &ledger_name(topic)].concat()
}

pub(crate) fn subscription_path(topic: &TopicName, subscription: &str) -> String {
    format!("{}/{}", topic_acks_path(topic), encode(subscription))
}

pub(crate) fn ack_key(topic: &TopicName, subscription: &str, txn: TxnId, n: u64) -> String {
    format!(
        "{}/{}/{n:08x}",
        subscription_path(topic, subscription),
        short(txn)
    )
}

fn short(txn: TxnId) -> String {
    format!("{}-{:016x}", txn.tc, txn.number)
}

fn parse_short(text: &str) -> Option<TxnId> {
    let (tc, number) = text.split_once('-')?;
    Some(TxnId {
        tc: tc.parse().ok()?,
        number: u64::from_str_radix(number, 16).ok()?,
    })
}

/// The transaction of a record's key.
pub(crate) fn parse_record_key(key: &str) -> Option<TxnId> {
    let (tc, number) = key
        .strip_prefix(RECORDS)?
        .strip_prefix('/')?
        .split_once('/')?;
    Some(TxnId {
        tc: tc.parse().ok()?,
        number: u64::from_str_radix(number, 16).ok()?,
    })
}

/// The topic and the transaction of a topic's key.
pub(crate) fn parse_topic_key(key: &str) -> Option<(TopicName, TxnId)> {
    let (ledger, txn) = key
        .strip_prefix(TOPICS)?
        .strip_prefix('/')?
        .rsplit_once('/')?;
    Some((parse_ledger(ledger)?, parse_short(txn)?))
}

/// The topic, the subscription and the transaction of an ack's key.
pub(crate) fn parse_ack_key(key: &str) -> Option<(TopicName, String, TxnId)> {
    let rest = key.strip_prefix(ACKS)?.strip_prefix('/')?;
    let (rest, _) = rest.rsplit_once('/')?;
    let (rest, txn) = rest.rsplit_once('/')?;
    let (ledger, subscription) = rest.rsplit_once('/')?;
    Some((
        parse_ledger(ledger)?,
        decode(subscription)?,
        parse_short(txn)?,
    ))
}

fn parse_ledger(ledger: &str) -> Option<TopicName> {
    let mut parts = ledger.splitn(4, '/');
    let (tenant, namespace) = (parts.next()?, parts.next()?);
    let (domain, local) = (parts.next()?, decode(parts.next()?)?);
    format!("{domain}://{tenant}/{namespace}/{local}")
        .parse()
        .ok()
}

pub(crate) fn json<T: Serialize>(value: &T) -> Result<Bytes, BrokerError> {
    let text = serde_json::to_vec(value);
    text.map(Bytes::from)
        .map_err(|error| BrokerError::Metadata(error.to_string()))
}

pub(crate) fn parse<T: for<'a> Deserialize<'a>>(key: &str, value: &[u8]) -> Result<T, BrokerError> {
    serde_json::from_slice(value)
        .map_err(|error| BrokerError::Metadata(format!("`{key}` cannot be read: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_back() {
        let txn = TxnId {
            tc: 3,
            number: 0xabc,
        };
        let key = record_key(txn);
        assert_eq!(key, "/transactions/records/3/0000000000000abc");
        assert_eq!(parse_record_key(&key), Some(txn));
        for name in [
            "persistent://public/default/t",
            "persistent://a/b/with space/and slash-partition-1",
        ] {
            let topic: TopicName = name.parse().unwrap();
            let key = topic_key(&topic, txn);
            assert_eq!(parse_topic_key(&key), Some((topic.clone(), txn)), "{key}");
            let key = ack_key(&topic, "s/1 %", txn, 7);
            assert_eq!(
                parse_ack_key(&key),
                Some((topic, "s/1 %".to_owned(), txn)),
                "{key}"
            );
        }
        for bad in [
            "",
            "/transactions/topics/x",
            "/transactions/acks/a/b/c/d/e/0-1",
        ] {
            assert_eq!(
                (parse_topic_key(bad), parse_ack_key(bad)),
                (None, None),
                "{bad}"
            );
        }
    }
}
