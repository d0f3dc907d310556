//! Counters and latencies of one instance. Cheap to update, read at any time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use geminga_stdx::Clock;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::quantiles::Quantiles;
use crate::runtime::Failure;

/// Exceptions that status shows.
const EXCEPTIONS: usize = 10;
/// Names of user metrics one instance may have.
pub(crate) const USER_METRICS: usize = 1000;

/// An exception as status shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exception {
    pub(crate) text: String,
    pub(crate) at_ms: u64,
}

/// Buckets of a histogram, at most.
const BUCKETS_MAX: usize = 40 * 16;

/// Latencies in buckets of a sixteenth of a power of two: 6 % wide, microseconds to hours.
#[derive(Debug, Clone, Default)]
pub(crate) struct Histogram {
    /// As many as were needed: an instance that does nothing has none.
    buckets: Vec<u64>,
    count: u64,
    sum_us: u64,
}

impl Histogram {
    pub(crate) fn add(&mut self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let index = Self::index(us).min(BUCKETS_MAX - 1);
        self.reach(index + 1);
        self.buckets[index] += 1;
        self.count += 1;
        self.sum_us = self.sum_us.saturating_add(us);
    }

    fn reach(&mut self, buckets: usize) {
        if self.buckets.len() < buckets {
            self.buckets.resize(buckets, 0);
        }
    }

    fn index(us: u64) -> usize {
        if us < 16 {
            return us as usize;
        }
        let power = us.ilog2();
        (power as usize - 3) * 16 + ((us >> (power - 4)) & 15) as usize
    }

    /// The least value that falls into a bucket.
    fn floor(index: usize) -> u64 {
        if index < 16 {
            return index as u64;
        }
        let power = index / 16 + 3;
        (16 + (index % 16) as u64) << (power - 4)
    }

    /// Milliseconds below which `quantile` of all lie; `None` when there are none.
    pub(crate) fn quantile_ms(&self, quantile: f64) -> Option<f64> {
        if self.count == 0 {
            return None;
        }
        let rank = ((self.count as f64) * quantile).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Some(Self::floor(index) as f64 / 1000.0);
            }
        }
        None
    }

    /// So many that took so long together: their mean is known, their distribution is not.
    pub(crate) fn add_mean(&mut self, count: u64, together: Duration) {
        let us = u64::try_from(together.as_micros()).unwrap_or(u64::MAX);
        self.count += count;
        self.sum_us = self.sum_us.saturating_add(us);
    }

    pub(crate) fn mean_ms(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum_us as f64 / self.count as f64 / 1000.0)
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn sum_ms(&self) -> f64 {
        self.sum_us as f64 / 1000.0
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.reach(other.buckets.len());
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
    }
}

/// Counts since the start, or of one minute.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counts {
    pub(crate) received: u64,
    pub(crate) processed: u64,
    pub(crate) user_exceptions: u64,
    pub(crate) system_exceptions: u64,
    /// Outputs that are durable.
    pub(crate) written: u64,
    pub(crate) latency: Histogram,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Self) {
        self.received += other.received;
        self.processed += other.processed;
        self.user_exceptions += other.user_exceptions;
        self.system_exceptions += other.system_exceptions;
        self.written += other.written;
        self.latency.merge(&other.latency);
    }
}

/// A metric of the function's own.
#[derive(Debug, Clone, Default)]
pub(crate) struct UserMetric {
    pub(crate) sum: f64,
    pub(crate) count: u64,
    pub(crate) quantiles: Quantiles,
}

/// What an instance that counts for itself did since it was asked before.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told {
    pub(crate) received: u64,
    pub(crate) processed: u64,
    pub(crate) user_exceptions: u64,
    pub(crate) system_exceptions: u64,
    /// In user code, for those that were processed.
    pub(crate) busy: Duration,
    pub(crate) last_invocation_ms: Option<u64>,
    pub(crate) latest_user: Vec<Exception>,
    pub(crate) latest_system: Vec<Exception>,
    /// All of them, as it names them.
    pub(crate) metrics: BTreeMap<String, f64>,
}

/// The statistics of one instance.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    clock: Clock,
    retried: AtomicU64,
    dead_lettered: AtomicU64,
    restarts: AtomicU64,
    logs_dropped: AtomicU64,
    transactions: AtomicU64,
    late: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    total: Counts,
    minute: Counts,
    minute_began: Option<Instant>,
    last_invocation_ms: Option<u64>,
    lag_ms: Option<u64>,
    user_exceptions: VecDeque<Exception>,
    system_exceptions: VecDeque<Exception>,
    user_metrics: BTreeMap<String, UserMetric>,
    told_metrics: BTreeMap<String, f64>,
}

/// A copy of the statistics.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshot {
    pub(crate) total: Counts,
    pub(crate) minute: Counts,
    pub(crate) retried: u64,
    pub(crate) written: u64,
    pub(crate) dead_lettered: u64,
    pub(crate) restarts: u64,
    pub(crate) transactions: u64,
    pub(crate) late: u64,
    pub(crate) last_invocation_ms: Option<u64>,
    /// How old the newest message was when it came.
    pub(crate) lag_ms: Option<u64>,
    pub(crate) user_exceptions: Vec<Exception>,
    pub(crate) system_exceptions: Vec<Exception>,
    pub(crate) user_metrics: BTreeMap<String, UserMetric>,
    pub(crate) told_metrics: BTreeMap<String, f64>,
}

impl Inner {
    fn each(&mut self, mut change: impl FnMut(&mut Counts)) {
        let now = Instant::now();
        let began = *self.minute_began.get_or_insert(now);
        if now.duration_since(began) >= Duration::from_secs(60) {
            self.minute = Counts::default();
            self.minute_began = Some(now);
        }
        change(&mut self.total);
        change(&mut self.minute);
    }
}

fn remember(exceptions: &mut VecDeque<Exception>, text: String, at_ms: u64) {
    if exceptions.len() == EXCEPTIONS {
        exceptions.pop_front();
    }
    exceptions.push_back(Exception { text, at_ms });
}

impl Stats {
    /// A message came too late for its windows.
    pub(crate) fn late(&self) {
        self.late.fetch_add(1, Ordering::Relaxed);
    }

    /// A transaction was committed.
    pub(crate) fn committed(&self) {
        self.transactions.fetch_add(1, Ordering::Relaxed);
    }

    /// Messages came; `published_ms` is when the newest of them was published.
    pub(crate) fn received(&self, count: usize, published_ms: Option<u64>) {
        let now = self.clock.now_ms();
        let mut inner = self.inner.lock();
        // Lines of a file have no such time.
        if let Some(published) = published_ms.filter(|&ms| ms > 0) {
            inner.lag_ms = Some(now.saturating_sub(published));
        }
        inner.each(|counts| counts.received += count as u64);
    }

    pub(crate) fn processed(&self, took: Duration) {
        let now = self.clock.now_ms();
        let mut inner = self.inner.lock();
        inner.last_invocation_ms = Some(now);
        inner.each(|counts| {
            counts.processed += 1;
            counts.latency.add(took);
        });
    }

    pub(crate) fn failed(&self, failure: &Failure, took: Duration) {
        let now = self.clock.now_ms();
        let mut inner = self.inner.lock();
        inner.last_invocation_ms = Some(now);
        inner.each(|counts| {
            counts.user_exceptions += 1;
            counts.latency.add(took);
        });
        let mut text = format!("{}: {}", failure.kind.as_str(), failure.reason);
        if !failure.stderr_tail.is_empty() {
            text.push('\n');
            text.push_str(&failure.stderr_tail);
        }
        remember(&mut inner.user_exceptions, text, now);
    }

    pub(crate) fn system_exception(&self, text: String) {
        let now = self.clock.now_ms();
        let mut inner = self.inner.lock();
        inner.each(|counts| counts.system_exceptions += 1);
        remember(&mut inner.system_exceptions, text, now);
    }

    pub(crate) fn user_metric(&self, name: &str, value: f64) {
        if !value.is_finite() {
            // It would be the sum for ever.
            return;
        }
        let mut inner = self.inner.lock();
        if !inner.user_metrics.contains_key(name) && inner.user_metrics.len() >= USER_METRICS {
            return;
        }
        let metric = inner.user_metrics.entry(name.to_owned()).or_default();
        metric.sum += value;
        metric.count += 1;
        metric.quantiles.add(value);
    }

    /// Takes in what an instance of another's making has counted.
    pub(crate) fn told(&self, told: Told) {
        let mut inner = self.inner.lock();
        inner.last_invocation_ms = inner.last_invocation_ms.max(told.last_invocation_ms);
        inner.each(|counts| {
            counts.received += told.received;
            counts.processed += told.processed;
            counts.user_exceptions += told.user_exceptions;
            counts.system_exceptions += told.system_exceptions;
            counts.latency.add_mean(told.processed, told.busy);
        });
        for exception in told.latest_user {
            remember(&mut inner.user_exceptions, exception.text, exception.at_ms);
        }
        for exception in told.latest_system {
            remember(
                &mut inner.system_exceptions,
                exception.text,
                exception.at_ms,
            );
        }
        inner.told_metrics = told.metrics;
    }

    pub(crate) fn retried(&self) {
        self.retried.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn written(&self, count: usize) {
        self.inner
            .lock()
            .each(|counts| counts.written += count as u64);
    }

    pub(crate) fn dead_lettered(&self) {
        self.dead_lettered.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn restarted(&self) {
        self.restarts.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a log line that found no room, and says how many there were before.
    pub(crate) fn log_dropped(&self) -> u64 {
        self.logs_dropped.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let inner = self.inner.lock();
        Snapshot {
            total: inner.total.clone(),
            minute: inner.minute.clone(),
            retried: self.retried.load(Ordering::Relaxed),
            written: inner.total.written,
            dead_lettered: self.dead_lettered.load(Ordering::Relaxed),
            restarts: self.restarts.load(Ordering::Relaxed),
            transactions: self.transactions.load(Ordering::Relaxed),
            late: self.late.load(Ordering::Relaxed),
            last_invocation_ms: inner.last_invocation_ms,
            lag_ms: inner.lag_ms,
            user_exceptions: inner.user_exceptions.iter().cloned().collect(),
            system_exceptions: inner.system_exceptions.iter().cloned().collect(),
            user_metrics: inner.user_metrics.clone(),
            told_metrics: inner.told_metrics.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_sixteenth() {
        let mut histogram = Histogram::default();
        for ms in 1..=1000 {
            histogram.add(Duration::from_millis(ms));
        }
        for (quantile, wanted) in [(0.5, 500.0), (0.99, 990.0), (0.999, 999.0)] {
            let got = histogram.quantile_ms(quantile).expect("some");
            assert!((got - wanted).abs() / wanted < 0.07, "{quantile}: {got}");
        }
        assert!((histogram.mean_ms().expect("some") - 500.5).abs() < 0.1);
        assert_eq!(Histogram::default().quantile_ms(0.5), None);
        for us in [0, 1, 15, 16, 17, 1000, 123_456_789] {
            assert!(Histogram::floor(Histogram::index(us)) <= us);
        }
    }
}
