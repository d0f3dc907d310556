//! What others see of components: Pulsar's status and statistics objects, state values, progress.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::supervisor::{Crew, Health, Seat};
use crate::component::ComponentId;
use crate::instance::state::Entry;
use crate::instance::stats::{Counts, Exception, Snapshot};
use crate::runtime::wire_base64::{base64, from_base64};

/// An exception, as Pulsar shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExceptionInformation {
    pub exception_string: String,
    pub timestamp_ms: u64,
}

/// `FunctionStatus`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FunctionStatus {
    pub num_instances: u32,
    pub num_running: u32,
    pub instances: Vec<InstanceStatus>,
    /// Ours: settings that were accepted and are not enforced on this machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// One instance of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceStatus {
    pub instance_id: u32,
    pub status: InstanceStatusData,
}

/// How an instance is. Fields beyond Pulsar's come last.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct InstanceStatusData {
    pub running: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    pub num_restarts: u64,
    pub num_received: u64,
    pub num_successfully_processed: u64,
    pub num_user_exceptions: u64,
    pub latest_user_exceptions: Vec<ExceptionInformation>,
    pub num_system_exceptions: u64,
    pub latest_system_exceptions: Vec<ExceptionInformation>,
    pub average_latency: f64,
    pub last_invocation_time: u64,
    pub worker_id: String,
    /// `starting`, `running`, `degraded`, `finished` or `stopped`.
    pub state: String,
    pub num_retried: u64,
    pub num_dead_lettered: u64,
    pub num_written: u64,
    pub num_in_flight: u64,
    /// Of an effectively-once function: `transactions`, or what is not covered without them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effectively_once: Option<String>,
    /// Transactions that it has committed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_transactions: Option<u64>,
    /// Of a window function: messages that came too late.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_late: Option<u64>,
    /// How long ago the newest message had been published when it was received.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag_ms: Option<u64>,
    /// Milliseconds in user code.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub latency_percentiles: BTreeMap<String, f64>,
}

/// The same numbers in two spans of time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    pub received_total: u64,
    pub processed_successfully_total: u64,
    pub system_exceptions_total: u64,
    pub user_exceptions_total: u64,
    /// Milliseconds; null before the first message, as Pulsar writes it.
    pub avg_process_latency: Option<f64>,
}

/// `FunctionStats`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FunctionStats {
    #[serde(flatten)]
    pub total: Totals,
    #[serde(rename = "1min")]
    pub minute: Totals,
    pub last_invocation: Option<u64>,
    /// Ours: milliseconds in user code, `0.5`, `0.9`, `0.99`, `0.999`.
    pub latency_percentiles: BTreeMap<String, f64>,
    pub instances: Vec<InstanceStats>,
}

/// One instance of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceStats {
    pub instance_id: u32,
    pub metrics: InstanceMetrics,
}

/// What an instance did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceMetrics {
    #[serde(flatten)]
    pub total: Totals,
    #[serde(rename = "1min")]
    pub minute: Totals,
    pub last_invocation: Option<u64>,
    pub user_metrics: BTreeMap<String, f64>,
    pub latency_percentiles: BTreeMap<String, f64>,
    /// For Prometheus, where the instance runs.
    #[serde(skip)]
    pub latency: Latency,
    #[serde(skip)]
    pub minute_latency: Latency,
    /// Outputs that became durable in the present minute.
    #[serde(skip)]
    pub minute_written: u64,
}

/// How long messages were in user code, those that failed too.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Latency {
    /// Milliseconds by quantile; empty before the first message.
    pub percentiles: BTreeMap<String, f64>,
    /// Milliseconds of all together.
    pub sum_ms: f64,
    pub count: u64,
}

impl From<&Counts> for Latency {
    fn from(counts: &Counts) -> Self {
        Self {
            percentiles: percentiles(counts),
            sum_ms: counts.latency.sum_ms(),
            count: counts.latency.count(),
        }
    }
}

/// A value of a function's state, as REST spells it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FunctionState {
    pub key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub string_value: Option<String>,
    /// Base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub byte_value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number_value: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
}

impl FunctionState {
    /// By Pulsar's rule: a counter is a number; other text is text, and a number too when it has
    /// eight bytes; the rest is bytes.
    pub(crate) fn of(key: &str, entry: &Entry) -> Self {
        let number = <[u8; 8]>::try_from(&entry.value[..])
            .ok()
            .map(i64::from_be_bytes);
        let mut state = Self {
            key: key.to_owned(),
            number_value: number,
            version: Some(entry.version),
            ..Self::default()
        };
        if !entry.is_counter {
            match std::str::from_utf8(&entry.value) {
                Ok(text) => state.string_value = Some(text.to_owned()),
                Err(_) => state.byte_value = Some(base64(&entry.value)),
            }
        }
        state
    }

    pub(crate) fn bytes(&self) -> Result<Bytes, String> {
        match (&self.byte_value, &self.string_value, self.number_value) {
            (Some(text), _, _) if !text.is_empty() => from_base64(text)
                .map(Bytes::from)
                .ok_or_else(|| "`byteValue` is not base64".to_owned()),
            (_, Some(text), _) => Ok(Bytes::from(text.clone())),
            (_, _, Some(number)) => Ok(Bytes::copy_from_slice(&number.to_be_bytes())),
            _ => Err("one of `byteValue`, `stringValue` and `numberValue` is needed".to_owned()),
        }
    }
}

/// A component's counters, over all its instances.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    pub id: ComponentId,
    pub received: u64,
    pub processed: u64,
    pub failed: u64,
    pub retried: u64,
    pub dead_lettered: u64,
    /// Outputs that are durable.
    pub written: u64,
    pub in_flight: u64,
    /// Events a bounded source will give, when it knows.
    pub total: Option<u64>,
    /// Its bounded source has ended and all is done.
    pub finished: bool,
    pub restarts: u64,
    /// Why an instance does not run, when one does not.
    pub degraded: Option<String>,
}

const QUANTILES: [(&str, f64); 4] = [("0.5", 0.5), ("0.9", 0.9), ("0.99", 0.99), ("0.999", 0.999)];

fn percentiles(counts: &Counts) -> BTreeMap<String, f64> {
    let value = |(name, quantile): (&str, f64)| {
        Some((name.to_owned(), counts.latency.quantile_ms(quantile)?))
    };
    QUANTILES.into_iter().filter_map(value).collect()
}

fn totals(counts: &Counts) -> Totals {
    Totals {
        received_total: counts.received,
        processed_successfully_total: counts.processed,
        system_exceptions_total: counts.system_exceptions,
        user_exceptions_total: counts.user_exceptions,
        avg_process_latency: counts.latency.mean_ms(),
    }
}

fn exceptions(list: &[Exception]) -> Vec<ExceptionInformation> {
    let one = |e: &Exception| ExceptionInformation {
        exception_string: e.text.clone(),
        timestamp_ms: e.at_ms,
    };
    list.iter().map(one).collect()
}

fn word(health: &Health) -> &'static str {
    match health {
        Health::Starting => "starting",
        Health::Running => "running",
        Health::Degraded(_) => "degraded",
        Health::Finished => "finished",
        Health::Stopped => "stopped",
    }
}

fn status_of(seat: &Seat, worker_id: &str) -> InstanceStatusData {
    let health = seat.health();
    let s = seat.gauge.stats.snapshot();
    InstanceStatusData {
        running: health == Health::Running,
        error: match &health {
            Health::Degraded(why) => Some(why.clone()),
            _ => None,
        },
        num_restarts: s.restarts,
        num_received: s.total.received,
        num_successfully_processed: s.total.processed,
        num_user_exceptions: s.total.user_exceptions,
        latest_user_exceptions: exceptions(&s.user_exceptions),
        num_system_exceptions: s.total.system_exceptions,
        latest_system_exceptions: exceptions(&s.system_exceptions),
        average_latency: s.total.latency.mean_ms().unwrap_or(0.0),
        last_invocation_time: s.last_invocation_ms.unwrap_or(0),
        worker_id: worker_id.to_owned(),
        state: word(&health).to_owned(),
        num_retried: s.retried,
        num_dead_lettered: s.dead_lettered,
        num_written: s.written,
        num_in_flight: seat.gauge.in_flight.load(Ordering::Relaxed) as u64,
        effectively_once: seat.gauge.effectively_once.lock().map(str::to_owned),
        num_transactions: Some(s.transactions).filter(|&count| count > 0),
        num_late: Some(s.late).filter(|&count| count > 0),
        lag_ms: s.lag_ms,
        latency_percentiles: percentiles(&s.total),
    }
}

pub(super) fn status(crew: &Crew, worker_id: &str) -> FunctionStatus {
    let instances: Vec<InstanceStatus> = (0..)
        .zip(crew.instances())
        .map(|(instance_id, seat)| InstanceStatus {
            instance_id,
            status: status_of(seat, worker_id),
        })
        .collect();
    FunctionStatus {
        num_instances: crew.len(),
        num_running: instances.iter().map(|i| u32::from(i.status.running)).sum(),
        instances,
        warnings: crew.plan.warnings.clone(),
    }
}

pub(super) fn stats(crew: &Crew) -> FunctionStats {
    let (mut total, mut minute, mut last) = (Counts::default(), Counts::default(), None);
    let mut instances = Vec::new();
    for (instance_id, seat) in (0..).zip(crew.instances()) {
        let s: Snapshot = seat.gauge.stats.snapshot();
        total.add(&s.total);
        minute.add(&s.minute);
        last = last.max(s.last_invocation_ms);
        let mut user_metrics = s.told_metrics.clone();
        for (name, metric) in &s.user_metrics {
            user_metrics.insert(format!("user_metric_{name}_sum"), metric.sum);
            user_metrics.insert(format!("user_metric_{name}_count"), metric.count as f64);
            for (text, quantile) in QUANTILES {
                if let Some(value) = metric.quantiles.of(quantile) {
                    user_metrics.insert(format!("user_metric_{name}_{text}"), value);
                }
            }
        }
        instances.push(InstanceStats {
            instance_id,
            metrics: InstanceMetrics {
                total: totals(&s.total),
                minute: totals(&s.minute),
                last_invocation: s.last_invocation_ms,
                user_metrics,
                latency_percentiles: percentiles(&s.total),
                latency: Latency::from(&s.total),
                minute_latency: Latency::from(&s.minute),
                minute_written: s.minute.written,
            },
        });
    }
    FunctionStats {
        total: totals(&total),
        minute: totals(&minute),
        last_invocation: last,
        latency_percentiles: percentiles(&total),
        instances,
    }
}

pub(super) fn progress(id: &ComponentId, crew: &Crew) -> Progress {
    let mut progress = Progress {
        id: id.clone(),
        received: 0,
        processed: 0,
        failed: 0,
        retried: 0,
        dead_lettered: 0,
        written: 0,
        in_flight: 0,
        total: None,
        finished: crew
            .instances()
            .iter()
            .all(|seat| seat.health() == Health::Finished),
        restarts: 0,
        degraded: None,
    };
    for seat in crew.instances() {
        let s = seat.gauge.stats.snapshot();
        progress.received += s.total.received;
        progress.processed += s.total.processed;
        progress.failed += s.total.user_exceptions;
        progress.retried += s.retried;
        progress.dead_lettered += s.dead_lettered;
        progress.written += s.written;
        progress.restarts += s.restarts;
        progress.in_flight += seat.gauge.in_flight.load(Ordering::Acquire) as u64;
        let total = seat.gauge.total.load(Ordering::Relaxed);
        if total > 0 {
            progress.total = Some(progress.total.unwrap_or(0) + total);
        }
        if let Health::Degraded(why) = seat.health() {
            progress.degraded = Some(why);
        }
    }
    progress
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_values_follow_pulsars_rules() {
        let entry = |value: &'static [u8], is_counter| Entry {
            value: Bytes::from_static(value),
            is_counter,
            version: 3,
        };
        let counter = FunctionState::of("k", &entry(&[0, 0, 0, 0, 0, 0, 0, 7], true));
        assert_eq!(
            (counter.number_value, counter.string_value),
            (Some(7), None)
        );
        let text = FunctionState::of("k", &entry(b"eight by", false));
        assert!(text.number_value.is_some() && text.string_value.as_deref() == Some("eight by"));
        let bytes = FunctionState::of("k", &entry(b"\xff", false));
        assert_eq!(bytes.byte_value.as_deref(), Some("/w=="));
        assert_eq!(bytes.bytes().as_deref(), Ok(&b"\xff"[..]));
        assert!(FunctionState::default().bytes().is_err());
    }

    #[test]
    fn stats_are_spelt_as_pulsar_spells_them() {
        let json = serde_json::to_value(FunctionStats::default()).expect("writes");
        assert!(json["avgProcessLatency"].is_null() && json["1min"]["receivedTotal"] == 0);
        assert!(json.get("receivedTotal").is_some());
    }
}
