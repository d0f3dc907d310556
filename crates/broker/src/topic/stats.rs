//! Figures of a topic, under the names of Pulsar's stats. What is not kept is not shown.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use serde::Serialize;

use super::Topic;
use super::compaction::run::CompactionStats;
use super::nonpersistent::Rate;
use crate::metrics::TopicMetrics;
pub use crate::replication::stats::ReplicatorStats;
pub use crate::subscription::stats::{ConsumerStats, SubscriptionStats};
use crate::time::iso;

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TopicStats {
    pub bytes_in_counter: u64,
    pub msg_in_counter: u64,
    pub bytes_out_counter: u64,
    pub msg_out_counter: u64,
    pub average_msg_size: f64,
    pub msg_chunk_published: bool,
    pub storage_size: u64,
    pub publishers: Vec<PublisherStats>,
    pub waiting_publishers: usize,
    pub subscriptions: BTreeMap<String, SubscriptionStats>,
    pub replication: BTreeMap<String, ReplicatorStats>,
    pub deduplication_status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic_epoch: Option<u64>,
    pub owner_broker: String,
    /// Of a persistent topic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compaction: Option<CompactionStats>,
    /// Of a non-persistent topic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub msg_drop_rate: Option<f64>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PublisherStats {
    pub access_mode: &'static str,
    pub average_msg_size: f64,
    pub producer_id: u64,
    pub producer_name: String,
    pub address: String,
    pub connected_since: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_version: Option<String>,
    pub metadata: BTreeMap<String, String>,
    /// On a non-persistent topic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub msg_drop_rate: Option<f64>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TopicInternalStats {
    pub number_of_entries: u64,
    pub total_size: u64,
    pub last_confirmed_entry: String,
    pub current_ledger_entries: u64,
    pub current_ledger_size: u64,
    pub state: &'static str,
    /// In order; the last may still be written.
    pub ledgers: Vec<LedgerStats>,
    pub cursors: BTreeMap<String, CursorStats>,
    /// What readers of the compacted topic read first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compacted_ledger: Option<CompactedLedger>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LedgerStats {
    pub ledger_id: i64,
    pub entries: u64,
    pub size: u64,
    pub offloaded: bool,
    pub under_replicated: bool,
    /// When it was closed.
    #[serde(skip)]
    pub closed_ms: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CompactedLedger {
    pub ledger_id: i64,
    pub entries: u64,
    pub size: u64,
    pub offloaded: bool,
    pub under_replicated: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CursorStats {
    pub mark_delete_position: String,
    pub read_position: String,
    pub number_of_entries_since_first_not_acked_message: u64,
    pub total_non_contiguous_deleted_messages_range: usize,
    pub state: &'static str,
}

impl Topic {
    pub(crate) fn stats(&self) -> TopicStats {
        let now_ms = self.core.clock.now_ms();
        let drop_rate = |rate: Rate| (!self.is_persistent()).then(|| rate.per_second(now_ms));
        let state = self.lock();
        let counters = &state.counters;
        // Those of other clusters are in `replication`.
        let own = state.producers.values().filter(|p| !p.is_replicator());
        let publishers = own.map(|producer| {
            let messages = producer.messages_in.load(Ordering::Relaxed);
            let bytes = producer.bytes_in.load(Ordering::Relaxed);
            PublisherStats {
                access_mode: producer.access.as_str(),
                average_msg_size: average(bytes, messages),
                producer_id: producer.id,
                producer_name: producer.name.to_string(),
                address: producer.peer.address.clone(),
                connected_since: iso(producer.connected_since_ms),
                client_version: producer.peer.client_version.get().cloned(),
                metadata: producer.metadata.iter().cloned().collect(),
                msg_drop_rate: drop_rate(*producer.dropped.lock()),
            }
        });
        let (messages_out, bytes_out) = state.out_counters();
        TopicStats {
            bytes_in_counter: counters.bytes_in,
            msg_in_counter: counters.messages_in,
            bytes_out_counter: bytes_out,
            msg_out_counter: messages_out,
            average_msg_size: average(counters.bytes_in, counters.messages_in),
            msg_chunk_published: counters.chunks_in > 0,
            storage_size: self.ledger.size_bytes(),
            publishers: publishers.collect(),
            waiting_publishers: state.access.waiting(),
            subscriptions: state
                .subscriptions
                .iter()
                .map(|subscription| {
                    let mut stats = subscription.stats();
                    stats.msg_drop_rate = drop_rate(subscription.counters.dropped);
                    (subscription.name.to_string(), stats)
                })
                .collect(),
            replication: state.replication_stats(now_ms),
            deduplication_status: state.dedup.as_ref().map_or("Disabled", |d| d.status()),
            topic_epoch: state.access.epoch,
            owner_broker: self.core.broker_id(),
            compaction: self.is_persistent().then_some(state.compaction.last),
            msg_drop_rate: drop_rate(state.dropped),
        }
    }

    pub(crate) fn internal_stats(&self) -> TopicInternalStats {
        let state = self.lock();
        let cursors = state.subscriptions.iter().map(|subscription| {
            let cursor = &subscription.cursor;
            let stats = CursorStats {
                mark_delete_position: cursor.mark_delete().to_string(),
                read_position: subscription.read_position().to_string(),
                number_of_entries_since_first_not_acked_message: cursor.backlog(),
                total_non_contiguous_deleted_messages_range: cursor.acked_ranges(),
                state: "Open",
            };
            (subscription.name.to_string(), stats)
        });
        let first = self.ledger.first_position();
        let ledgers = self.ledger_stats();
        let current = ledgers.last().filter(|last| last.closed_ms.is_none());
        TopicInternalStats {
            current_ledger_entries: current.map_or(0, |ledger| ledger.entries),
            current_ledger_size: current.map_or(0, |ledger| ledger.size),
            number_of_entries: self
                .ledger
                .count(first, self.ledger.durable_position().next_in_ledger()),
            total_size: self.ledger.size_bytes(),
            last_confirmed_entry: self.ledger.durable_position().to_string(),
            state: if self.is_terminated() {
                "Terminated"
            } else {
                "LedgerOpened"
            },
            ledgers,
            cursors: cursors.collect(),
            compacted_ledger: state.view.as_ref().map(|view| view.figures()),
        }
    }

    fn ledger_stats(&self) -> Vec<LedgerStats> {
        let last = self.ledger.durable_position();
        let mut left = self.ledger.size_bytes();
        let stats = self.ledger.ledgers().into_iter().map(|ledger| {
            let (entries, size) = match ledger.closed {
                Some(closed) => (closed.entries, closed.bytes),
                None if last.ledger == ledger.id => (last.entry.0.unsigned_abs() + 1, left),
                None => (0, 0),
            };
            left = left.saturating_sub(size);
            LedgerStats {
                ledger_id: ledger.id.0,
                entries,
                size,
                closed_ms: ledger.closed.map(|closed| closed.at_ms),
                ..LedgerStats::default()
            }
        });
        stats.collect()
    }

    pub(crate) fn metrics(&self) -> TopicMetrics {
        let state = self.lock();
        let (messages_out, bytes_out) = state.out_counters();
        let subscriptions: Vec<_> = state.subscriptions.iter().map(|s| s.metrics()).collect();
        TopicMetrics {
            topic: self.name.to_string(),
            namespace: self.name.namespace_str().to_owned(),
            producers: state.producers.len() as u64,
            consumers: state.consumers() as u64,
            messages_in_total: state.counters.messages_in,
            bytes_in_total: state.counters.bytes_in,
            messages_out_total: messages_out,
            bytes_out_total: bytes_out,
            storage_bytes: self.ledger.size_bytes(),
            backlog_entries: subscriptions.iter().map(|s| s.backlog_entries).sum(),
            replicators: state.replication_metrics(self.core.clock.now_ms()),
            subscriptions,
        }
    }
}

impl super::State {
    fn out_counters(&self) -> (u64, u64) {
        let mut messages = self.counters.messages_out;
        let mut bytes = self.counters.bytes_out;
        for subscription in &self.subscriptions {
            messages += subscription.counters.messages_out;
            bytes += subscription.counters.bytes_out;
        }
        (messages, bytes)
    }
}

fn average(bytes: u64, messages: u64) -> f64 {
    if messages == 0 {
        0.0
    } else {
        bytes as f64 / messages as f64
    }
}
