//! Figures of a subscription, under the names of Pulsar's stats.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Dispatch, Subscription};
use crate::dispatcher::{ConsumerKey, Flow};
use crate::metrics::SubscriptionMetrics;
use crate::time::iso;

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SubscriptionStats {
    pub bytes_out_counter: u64,
    pub msg_out_counter: u64,
    pub msg_backlog: u64,
    pub msg_backlog_no_delayed: u64,
    pub blocked_subscription_on_unacked_msgs: bool,
    pub msg_delayed: u64,
    pub msg_in_replay: u64,
    pub unacked_messages: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_consumer_name: Option<String>,
    pub total_msg_expired: u64,
    pub last_expire_timestamp: u64,
    pub last_consumed_flow_timestamp: u64,
    pub last_consumed_timestamp: u64,
    pub last_acked_timestamp: u64,
    pub last_mark_delete_advanced_timestamp: u64,
    pub consumers: Vec<ConsumerStats>,
    pub is_durable: bool,
    pub is_replicated: bool,
    pub durable: bool,
    pub replicated: bool,
    pub allow_out_of_order_delivery: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_shared_mode: Option<String>,
    pub draining_hashes_count: usize,
    pub draining_hashes_unacked_messages: u64,
    pub non_contiguous_deleted_messages_ranges: usize,
    pub subscription_properties: BTreeMap<String, String>,
    /// On a non-persistent topic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub msg_drop_rate: Option<f64>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConsumerStats {
    pub bytes_out_counter: u64,
    pub msg_out_counter: u64,
    pub consumer_name: String,
    pub available_permits: i64,
    pub unacked_messages: u64,
    pub avg_messages_per_entry: u64,
    pub blocked_consumer_on_unacked_msgs: bool,
    pub read_position_when_joining: String,
    pub address: String,
    pub connected_since: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_version: Option<String>,
    pub last_acked_timestamp: u64,
    pub last_consumed_timestamp: u64,
    pub last_consumed_flow_timestamp: u64,
    pub metadata: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct FlowFigures {
    pub(crate) permits: i64,
    pub(crate) unacked: u64,
    pub(crate) blocked: bool,
}

impl Subscription {
    pub(crate) fn flow_figures(&self, key: ConsumerKey) -> FlowFigures {
        let flow: Option<&Flow> = match &self.dispatch {
            Dispatch::None => None,
            Dispatch::Single(single) => single.flow(key),
            Dispatch::Many(many) => many.flow(key),
        };
        flow.map_or_else(FlowFigures::default, |flow| FlowFigures {
            permits: flow.permits(),
            unacked: flow.unacked(),
            blocked: flow.is_blocked(),
        })
    }

    pub(crate) fn metrics(&self) -> SubscriptionMetrics {
        let figures = self.many_figures();
        SubscriptionMetrics {
            subscription: self.name.to_string(),
            consumers: self.consumers.len() as u64,
            backlog_entries: self.cursor.backlog(),
            unacked_messages: figures.unacked,
            blocked_on_unacked: figures.blocked,
            delayed_entries: figures.delayed,
            replay_entries: figures.replay,
            messages_out_total: self.counters.messages_out,
            bytes_out_total: self.counters.bytes_out,
            redelivered_total: self.counters.redelivered,
            acked_total: self.counters.acked,
            expired_total: self.counters.expired,
            last_acked_ms: self.counters.last_acked_ms,
            last_consumed_ms: self.counters.last_consumed_ms,
            last_flow_ms: self.counters.last_flow_ms,
            last_mark_delete_ms: self.counters.last_mark_delete_ms,
            last_expire_ms: self.counters.last_expire_ms,
        }
    }

    pub(crate) fn stats(&self) -> SubscriptionStats {
        let figures = self.many_figures();
        let backlog = self.cursor.backlog();
        let active = self.active_consumer().and_then(|key| self.consumer(key));
        let sticky = if self.key_shared.sticky {
            "STICKY"
        } else {
            "AUTO_SPLIT"
        };
        let is_key_shared = self.kind == Some(crate::config::SubscriptionType::KeyShared);
        SubscriptionStats {
            msg_drop_rate: None,
            bytes_out_counter: self.counters.bytes_out,
            msg_out_counter: self.counters.messages_out,
            msg_backlog: backlog,
            msg_backlog_no_delayed: backlog.saturating_sub(figures.delayed),
            blocked_subscription_on_unacked_msgs: figures.blocked,
            msg_delayed: figures.delayed,
            msg_in_replay: figures.replay,
            unacked_messages: figures.unacked,
            r#type: self.kind.map(|kind| kind.as_str().to_owned()),
            active_consumer_name: active.map(|consumer| consumer.name.to_string()),
            total_msg_expired: self.counters.expired,
            last_expire_timestamp: self.counters.last_expire_ms,
            last_consumed_flow_timestamp: self.counters.last_flow_ms,
            last_consumed_timestamp: self.counters.last_consumed_ms,
            last_acked_timestamp: self.counters.last_acked_ms,
            last_mark_delete_advanced_timestamp: self.counters.last_mark_delete_ms,
            consumers: self
                .consumers
                .iter()
                .map(|consumer| self.stats_of(consumer))
                .collect(),
            is_durable: self.durable,
            is_replicated: self.is_replicated(),
            durable: self.durable,
            replicated: self.is_replicated(),
            allow_out_of_order_delivery: self.key_shared.allow_out_of_order,
            key_shared_mode: is_key_shared.then(|| sticky.to_owned()),
            draining_hashes_count: figures.draining.0,
            draining_hashes_unacked_messages: figures.draining.1,
            non_contiguous_deleted_messages_ranges: self.cursor.acked_ranges(),
            subscription_properties: self
                .cursor
                .properties()
                .into_iter()
                .filter(|(key, _)| !crate::topic::inactive::is_ours(key))
                .collect(),
        }
    }

    fn stats_of(&self, consumer: &crate::consumer::Consumer) -> ConsumerStats {
        let flow = self.flow_figures(consumer.key);
        let counters = consumer.counters.get();
        ConsumerStats {
            bytes_out_counter: counters.bytes_out,
            msg_out_counter: counters.messages_out,
            consumer_name: consumer.name.to_string(),
            available_permits: flow.permits,
            unacked_messages: flow.unacked,
            avg_messages_per_entry: counters
                .messages_out
                .checked_div(counters.entries_out)
                .unwrap_or(0),
            blocked_consumer_on_unacked_msgs: flow.blocked,
            read_position_when_joining: consumer.read_position_when_joining.to_string(),
            address: consumer.peer.address.clone(),
            connected_since: iso(consumer.connected_since_ms),
            client_version: consumer.peer.client_version.get().cloned(),
            last_acked_timestamp: counters.last_acked_ms,
            last_consumed_timestamp: counters.last_consumed_ms,
            last_consumed_flow_timestamp: counters.last_flow_ms,
            metadata: consumer.metadata.iter().cloned().collect(),
        }
    }

    fn many_figures(&self) -> ManyFigures {
        let Dispatch::Many(many) = &self.dispatch else {
            return ManyFigures::default();
        };
        ManyFigures {
            unacked: many.unacked(),
            blocked: many.is_blocked(),
            delayed: many.delayed_len() as u64,
            replay: many.replay_len() as u64,
            draining: many.draining(),
        }
    }
}

#[derive(Default)]
struct ManyFigures {
    unacked: u64,
    blocked: bool,
    delayed: u64,
    replay: u64,
    draining: (usize, u64),
}
