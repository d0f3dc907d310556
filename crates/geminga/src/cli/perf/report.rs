//! What a measurement found, for people and as JSON.

use std::time::Duration;

use serde::Serialize;

use crate::failure::Outcome;
use crate::output::{self, Format};

/// Rates of one run. Rates are per second, bytes are payload bytes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rates {
    pub(super) messages: u64,
    pub(super) seconds: f64,
    pub(super) messages_per_second: f64,
    pub(super) bytes_per_second: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) latency_ms: Option<Percentiles>,
}

/// Latencies in milliseconds.
#[derive(Debug, Serialize)]
pub(super) struct Percentiles {
    pub(super) p50: f64,
    pub(super) p95: f64,
    pub(super) p99: f64,
    pub(super) p999: f64,
    pub(super) max: f64,
}

impl Percentiles {
    /// Of these samples; `None` without any. Sorts them.
    pub(super) fn of(samples: &mut [Duration]) -> Option<Self> {
        samples.sort_unstable();
        let last = samples.len().checked_sub(1)?;
        let at = |part: f64| samples[((last as f64) * part).round() as usize].as_secs_f64() * 1e3;
        Some(Self {
            p50: at(0.5),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
            max: at(1.0),
        })
    }
}

impl Rates {
    pub(super) fn new(
        messages: u64,
        bytes: u64,
        took: Duration,
        latency: Option<Percentiles>,
    ) -> Self {
        let seconds = took.as_secs_f64().max(1e-9);
        Self {
            messages,
            seconds,
            messages_per_second: messages as f64 / seconds,
            bytes_per_second: bytes as f64 / seconds,
            latency_ms: latency,
        }
    }

    pub(super) fn print(&self, format: Format, what: &str) -> Outcome {
        if format == Format::Json {
            return output::line(&serde_json::to_string(self).map_err(std::io::Error::other)?);
        }
        let mut text = format!(
            "{} message(s) {what} in {:.2} s: {:.0} msg/s, {:.1} MB/s",
            self.messages,
            self.seconds,
            self.messages_per_second,
            self.bytes_per_second / 1e6
        );
        if let Some(l) = &self.latency_ms {
            text.push_str(&format!(
                "\nlatency ms: p50 {:.2}  p95 {:.2}  p99 {:.2}  p99.9 {:.2}  max {:.2}",
                l.p50, l.p95, l.p99, l.p999, l.max
            ));
        }
        output::line(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_known_samples() {
        let mut samples: Vec<Duration> = (0..=100).rev().map(Duration::from_millis).collect();
        let found = Percentiles::of(&mut samples).expect("samples");
        assert_eq!((found.p50, found.p99, found.max), (50.0, 99.0, 100.0));
        assert!(Percentiles::of(&mut []).is_none());
    }
}
