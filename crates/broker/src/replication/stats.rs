//! Figures of replication, under the names of Pulsar's stats. What is not kept is not shown.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use serde::Serialize;

use super::{Replicator, source_cluster};
use crate::metrics::ReplicatorMetrics;
use crate::time::iso;
use crate::topic::State;
use crate::topic::nonpersistent::Rate;

/// What the task notes.
#[derive(Debug, Default, Clone)]
pub(super) struct Figures {
    /// Since when there is a way; 0 = there is none.
    pub(super) connected_since_ms: u64,
    pub(super) messages_out: u64,
    pub(super) bytes_out: u64,
    pub(super) expired: u64,
    pub(super) rate_out: Rate,
    pub(super) bytes_rate_out: Rate,
    pub(super) rate_expired: Rate,
    /// When the oldest entry that the other cluster lacks was published, as far as it was read.
    pub(super) oldest_ms: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicatorStats {
    pub msg_in_count: u64,
    pub bytes_in_count: u64,
    pub msg_rate_out: f64,
    pub msg_throughput_out: f64,
    pub msg_out_count: u64,
    pub bytes_out_count: u64,
    pub msg_rate_expired: f64,
    pub msg_expired_count: u64,
    /// Entries that the other cluster has not confirmed.
    pub replication_backlog: u64,
    pub connected: bool,
    /// The age of the oldest of them.
    pub replication_delay_in_seconds: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inbound_connection: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inbound_connected_since: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outbound_connected_since: Option<String>,
}

impl Replicator {
    fn delay_seconds(&self, now_ms: u64) -> u64 {
        let oldest = self.figures.lock().oldest_ms;
        let late = oldest.filter(|_| self.is_behind());
        late.map_or(0, |oldest| now_ms.saturating_sub(oldest) / 1_000)
    }

    fn stats(&self, now_ms: u64) -> ReplicatorStats {
        let figures = self.figures.lock().clone();
        let since_ms = figures.connected_since_ms;
        ReplicatorStats {
            msg_rate_out: figures.rate_out.per_second(now_ms),
            msg_throughput_out: figures.bytes_rate_out.per_second(now_ms),
            msg_out_count: figures.messages_out,
            bytes_out_count: figures.bytes_out,
            msg_rate_expired: figures.rate_expired.per_second(now_ms),
            msg_expired_count: figures.expired,
            replication_backlog: self.cursor.backlog(),
            connected: since_ms > 0,
            replication_delay_in_seconds: self.delay_seconds(now_ms),
            outbound_connected_since: (since_ms > 0).then(|| iso(since_ms)),
            ..ReplicatorStats::default()
        }
    }
}

impl State {
    pub(crate) fn replication_stats(&self, now_ms: u64) -> BTreeMap<String, ReplicatorStats> {
        let mut all: BTreeMap<String, ReplicatorStats> = self
            .replicators
            .iter()
            .map(|replicator| (replicator.cluster.to_string(), replicator.stats(now_ms)))
            .collect();
        for producer in self.producers.values() {
            let from = source_cluster(&producer.name);
            if let Some(stats) = from.and_then(|from| all.get_mut(from)) {
                stats.msg_in_count = producer.messages_in.load(Ordering::Relaxed);
                stats.bytes_in_count = producer.bytes_in.load(Ordering::Relaxed);
                stats.inbound_connection = Some(producer.peer.address.clone());
                stats.inbound_connected_since = Some(iso(producer.connected_since_ms));
            }
        }
        all
    }

    pub(crate) fn replication_metrics(&self, now_ms: u64) -> Vec<ReplicatorMetrics> {
        let metrics = |replicator: &std::sync::Arc<Replicator>| {
            let stats = replicator.stats(now_ms);
            ReplicatorMetrics {
                cluster: replicator.cluster.to_string(),
                backlog_entries: stats.replication_backlog,
                connected: stats.connected,
                delay_seconds: stats.replication_delay_in_seconds,
                messages_out_total: stats.msg_out_count,
                bytes_out_total: stats.bytes_out_count,
                expired_total: stats.msg_expired_count,
            }
        };
        self.replicators.iter().map(metrics).collect()
    }
}
