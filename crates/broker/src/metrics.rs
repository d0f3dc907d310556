//! Counters of the broker, kept where things happen and read on scrape.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) connections_created: AtomicU64,
    pub(crate) connections_accepted: AtomicU64,
    pub(crate) connections_closed: AtomicU64,
    pub(crate) lookups: AtomicU64,
    pub(crate) lookup_failures: AtomicU64,
    pub(crate) topic_loads: AtomicU64,
    pub(crate) topic_load_failures: AtomicU64,
}

/// The figures of the whole broker at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct MetricsSnapshot {
    pub active_connections: u64,
    pub connections_created_total: u64,
    pub connections_accepted_total: u64,
    pub connections_closed_total: u64,
    pub lookups_total: u64,
    pub lookup_failures_total: u64,
    pub topic_loads_total: u64,
    pub topic_load_failures_total: u64,
    pub publish_bytes_in_flight: u64,
    /// Bytes of the newest entries in memory, and how reads of them fared.
    pub cache_bytes: u64,
    pub cache_hits_total: u64,
    pub cache_misses_total: u64,
    /// Entries that were read from the disk.
    pub storage_read_entries_total: u64,
    /// Topics in memory; idle ones are not.
    pub topics: Vec<TopicMetrics>,
}

/// The figures of a loaded topic.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct TopicMetrics {
    pub topic: String,
    pub namespace: String,
    pub producers: u64,
    pub consumers: u64,
    pub messages_in_total: u64,
    pub bytes_in_total: u64,
    pub messages_out_total: u64,
    pub bytes_out_total: u64,
    pub storage_bytes: u64,
    pub backlog_entries: u64,
    pub subscriptions: Vec<SubscriptionMetrics>,
    pub replicators: Vec<ReplicatorMetrics>,
}

/// A topic's way to one other cluster.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ReplicatorMetrics {
    pub cluster: String,
    pub backlog_entries: u64,
    pub connected: bool,
    pub delay_seconds: u64,
    pub messages_out_total: u64,
    pub bytes_out_total: u64,
    pub expired_total: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct SubscriptionMetrics {
    pub subscription: String,
    pub consumers: u64,
    pub backlog_entries: u64,
    pub unacked_messages: u64,
    pub blocked_on_unacked: bool,
    pub delayed_entries: u64,
    pub replay_entries: u64,
    pub messages_out_total: u64,
    pub bytes_out_total: u64,
    pub redelivered_total: u64,
    pub acked_total: u64,
    pub expired_total: u64,
    pub last_acked_ms: u64,
    pub last_consumed_ms: u64,
    pub last_flow_ms: u64,
    pub last_mark_delete_ms: u64,
    pub last_expire_ms: u64,
}

impl MetricsSnapshot {
    /// As Prometheus reads it, under Pulsar's names. Without `per_topic` the series are summed by
    /// namespace, and subscriptions are left out.
    pub fn render(&self, cluster: &str, per_topic: bool) -> String {
        let mut text = Text {
            out: String::new(),
            cluster,
        };
        let broker: [(&str, u64); 9] = [
            ("pulsar_active_connections", self.active_connections),
            (
                "pulsar_connection_created_total_count",
                self.connections_created_total,
            ),
            (
                "pulsar_connection_create_success_count",
                self.connections_accepted_total,
            ),
            (
                "pulsar_connection_closed_total_count",
                self.connections_closed_total,
            ),
            ("pulsar_broker_topics_count", self.topics.len() as u64),
            (
                "pulsar_broker_producers_count",
                self.topics.iter().map(|t| t.producers).sum(),
            ),
            (
                "pulsar_broker_consumers_count",
                self.topics.iter().map(|t| t.consumers).sum(),
            ),
            ("pulsar_broker_lookup_answers", self.lookups_total),
            ("pulsar_broker_lookup_failures", self.lookup_failures_total),
        ];
        for (name, value) in broker {
            text.metric(name, &[("", value)]);
        }
        text.metric(
            "pulsar_broker_subscriptions_count",
            &[(
                "",
                self.topics
                    .iter()
                    .map(|t| t.subscriptions.len() as u64)
                    .sum::<u64>(),
            )],
        );
        text.metric(
            "geminga_publish_bytes_in_flight",
            &[("", self.publish_bytes_in_flight)],
        );
        let storage: [(&str, u64); 4] = [
            ("geminga_storage_cache_bytes", self.cache_bytes),
            ("geminga_storage_cache_hits_total", self.cache_hits_total),
            (
                "geminga_storage_cache_misses_total",
                self.cache_misses_total,
            ),
            (
                "geminga_storage_read_entries_total",
                self.storage_read_entries_total,
            ),
        ];
        for (name, value) in storage {
            text.metric(name, &[("", value)]);
        }
        let groups = if per_topic {
            self.topics.clone()
        } else {
            self.by_namespace()
        };
        let labels: Vec<String> = groups
            .iter()
            .map(|group| match per_topic {
                true => format!(
                    ",namespace=\"{}\",topic=\"{}\"",
                    escape(&group.namespace),
                    escape(&group.topic)
                ),
                false => format!(",namespace=\"{}\"", escape(&group.namespace)),
            })
            .collect();
        let by_topic: [Series<TopicMetrics>; 9] = [
            ("pulsar_producers_count", |topic| topic.producers),
            ("pulsar_consumers_count", |topic| topic.consumers),
            ("pulsar_subscriptions_count", |topic| {
                topic.subscriptions.len() as u64
            }),
            ("pulsar_in_messages_total", |topic| topic.messages_in_total),
            ("pulsar_in_bytes_total", |topic| topic.bytes_in_total),
            ("pulsar_out_messages_total", |topic| {
                topic.messages_out_total
            }),
            ("pulsar_out_bytes_total", |topic| topic.bytes_out_total),
            ("pulsar_storage_size", |topic| topic.storage_bytes),
            ("pulsar_msg_backlog", |topic| topic.backlog_entries),
        ];
        for (name, value) in by_topic {
            let samples: Vec<(&str, u64)> = labels
                .iter()
                .zip(&groups)
                .map(|(label, g)| (label.as_str(), value(g)))
                .collect();
            text.metric(name, &samples);
        }
        if per_topic {
            self.render_subscriptions(&mut text, &labels);
            self.render_replication(&mut text, &labels);
        }
        text.out
    }

    fn render_replication(&self, text: &mut Text<'_>, labels: &[String]) {
        let values: [Series<ReplicatorMetrics>; 7] = [
            ("pulsar_replication_backlog", |r| r.backlog_entries),
            ("pulsar_replication_connected_count", |r| {
                u64::from(r.connected)
            }),
            ("pulsar_replication_disconnected_count", |r| {
                u64::from(!r.connected)
            }),
            ("pulsar_replication_delay_in_seconds", |r| r.delay_seconds),
            ("geminga_replication_messages_out_total", |r| {
                r.messages_out_total
            }),
            ("geminga_replication_bytes_out_total", |r| r.bytes_out_total),
            ("geminga_replication_expired_total", |r| r.expired_total),
        ];
        for (name, value) in values {
            let samples: Vec<(String, u64)> = labels
                .iter()
                .zip(&self.topics)
                .flat_map(|(label, topic)| {
                    topic.replicators.iter().map(move |replicator| {
                        let cluster = escape(&replicator.cluster);
                        let label = format!("{label},remote_cluster=\"{cluster}\"");
                        (label, value(replicator))
                    })
                })
                .collect();
            if samples.is_empty() {
                continue;
            }
            let samples: Vec<(&str, u64)> = samples
                .iter()
                .map(|(label, value)| (label.as_str(), *value))
                .collect();
            text.metric(name, &samples);
        }
    }

    fn render_subscriptions(&self, text: &mut Text<'_>, labels: &[String]) {
        let values: [Series<SubscriptionMetrics>; 13] = [
            ("pulsar_subscription_back_log", |s| s.backlog_entries),
            ("pulsar_subscription_delayed", |s| s.delayed_entries),
            ("pulsar_subscription_in_replay", |s| s.replay_entries),
            ("pulsar_subscription_unacked_messages", |s| {
                s.unacked_messages
            }),
            ("pulsar_subscription_blocked_on_unacked_messages", |s| {
                u64::from(s.blocked_on_unacked)
            }),
            ("pulsar_subscription_consumers_count", |s| s.consumers),
            ("pulsar_subscription_total_msg_expired", |s| s.expired_total),
            ("pulsar_subscription_last_expire_timestamp", |s| {
                s.last_expire_ms
            }),
            ("pulsar_subscription_last_acked_timestamp", |s| {
                s.last_acked_ms
            }),
            ("pulsar_subscription_last_consumed_timestamp", |s| {
                s.last_consumed_ms
            }),
            ("pulsar_subscription_last_consumed_flow_timestamp", |s| {
                s.last_flow_ms
            }),
            (
                "pulsar_subscription_last_mark_delete_advanced_timestamp",
                |s| s.last_mark_delete_ms,
            ),
            ("geminga_subscription_redelivered_total", |s| {
                s.redelivered_total
            }),
        ];
        for (name, value) in values {
            let mut lines = Vec::new();
            for (label, topic) in labels.iter().zip(&self.topics) {
                for subscription in &topic.subscriptions {
                    let name = escape(&subscription.subscription);
                    lines.push((
                        format!("{label},subscription=\"{name}\""),
                        value(subscription),
                    ));
                }
            }
            let samples: Vec<(&str, u64)> = lines
                .iter()
                .map(|(label, value)| (label.as_str(), *value))
                .collect();
            text.metric(name, &samples);
        }
    }

    fn by_namespace(&self) -> Vec<TopicMetrics> {
        let mut sums: std::collections::BTreeMap<&str, TopicMetrics> = Default::default();
        for topic in &self.topics {
            let sum = sums.entry(&topic.namespace).or_default();
            sum.namespace.clone_from(&topic.namespace);
            sum.producers += topic.producers;
            sum.consumers += topic.consumers;
            sum.messages_in_total += topic.messages_in_total;
            sum.bytes_in_total += topic.bytes_in_total;
            sum.messages_out_total += topic.messages_out_total;
            sum.bytes_out_total += topic.bytes_out_total;
            sum.storage_bytes += topic.storage_bytes;
            sum.backlog_entries += topic.backlog_entries;
            sum.subscriptions
                .extend(topic.subscriptions.iter().cloned());
            sum.replicators.extend(topic.replicators.iter().cloned());
        }
        sums.into_values().collect()
    }
}

/// A series and where its value is.
type Series<T> = (&'static str, fn(&T) -> u64);

struct Text<'a> {
    out: String,
    cluster: &'a str,
}

impl Text<'_> {
    fn metric(&mut self, name: &str, samples: &[(&str, u64)]) {
        use std::fmt::Write;
        // Writing to a String does not fail.
        let _ = writeln!(self.out, "# TYPE {name} gauge");
        for (labels, value) in samples {
            let _ = writeln!(
                self.out,
                "{name}{{cluster=\"{}\"{labels}}} {value}",
                self.cluster
            );
        }
    }
}

fn escape(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

impl Metrics {
    pub(crate) fn fill(&self, snapshot: &mut MetricsSnapshot) {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        snapshot.connections_created_total = get(&self.connections_created);
        snapshot.connections_accepted_total = get(&self.connections_accepted);
        snapshot.connections_closed_total = get(&self.connections_closed);
        snapshot.lookups_total = get(&self.lookups);
        snapshot.lookup_failures_total = get(&self.lookup_failures);
        snapshot.topic_loads_total = get(&self.topic_loads);
        snapshot.topic_load_failures_total = get(&self.topic_load_failures);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_have_pulsars_names_and_labels() {
        let topic = TopicMetrics {
            topic: "persistent://public/default/a\"b".to_owned(),
            namespace: "public/default".to_owned(),
            messages_in_total: 7,
            subscriptions: vec![SubscriptionMetrics {
                subscription: "s".to_owned(),
                backlog_entries: 3,
                ..SubscriptionMetrics::default()
            }],
            ..TopicMetrics::default()
        };
        let snapshot = MetricsSnapshot {
            topics: vec![topic.clone(), topic],
            ..MetricsSnapshot::default()
        };
        let by_topic = snapshot.render("c", true);
        let line = "pulsar_subscription_back_log{cluster=\"c\",namespace=\"public/default\",\
                    topic=\"persistent://public/default/a\\\"b\",subscription=\"s\"} 3";
        assert!(by_topic.contains(line), "{by_topic}");
        let by_namespace = snapshot.render("c", false);
        let line = "pulsar_in_messages_total{cluster=\"c\",namespace=\"public/default\"} 14";
        assert!(by_namespace.contains(line), "{by_namespace}");
        assert!(!by_namespace.contains("subscription="));
    }
}
