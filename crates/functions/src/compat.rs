//! The runtime `compat`: Go programs and jars that run in Pulsar's own function instance, which brings a client
//! of its own.
//!
//! Such an instance reads, writes and acknowledges by itself; the worker starts it with Pulsar's flags, asks it
//! by gRPC how it is and what it did (`control`), takes what it prints, and ends it. So the worker's own promises
//! hold here only as far as Pulsar's instance keeps them: `plan::compat` refuses the fields that it would pass
//! over. What must hold: a process that ends, or answers no more, is an error of the instance, which the
//! supervisor starts again; it ends with the worker, by the same means as every process of user code.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use geminga_stdx::Tasks;

use crate::instance::Gauge;
use crate::instance::stats::{Exception, Told, USER_METRICS};
use crate::plan::Compat;
use crate::runtime::{HostSpec, Options, Processes, Services};
use control::{Control, Report};

mod command;
mod control;
mod listen;
#[cfg(test)]
mod matrix;

/// How often a process is looked at while it starts, and then.
const LOOK_STARTING: Duration = Duration::from_millis(100);
const LOOK: Duration = Duration::from_millis(500);
/// A process that answers no health check for so long is ended.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// How long a process may take to become ready when the options do not say: a virtual machine on a busy host.
const START_WITHIN: Duration = Duration::from_secs(60);
/// Longest text of its making that is kept: an exception, a name of a metric.
const TEXT_BYTES_MAX: usize = 8 * 1024;
/// Names of its metrics that are kept, each with a sum, a count and quantiles.
const METRICS_MAX: usize = 8 * USER_METRICS;
/// Most of each count that is believed, so that no sum runs over.
const COUNT_MAX: i64 = 1 << 53;
/// The last words of a process that ended come within this.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Where a broker is, for clients outside of this process.
#[derive(Clone)]
pub struct Reach {
    pub service_url: String,
    /// Shown when the broker asks who a client is.
    pub token: Option<String>,
}

/// What one run of an instance needs.
pub(crate) struct Job<'a> {
    pub(crate) compat: &'a Compat,
    /// The code and its settings, with the instance's number.
    pub(crate) spec: HostSpec,
    pub(crate) reach: Option<&'a Reach>,
    pub(crate) processes: &'a Processes,
    pub(crate) services: Arc<dyn Services>,
    pub(crate) gauge: &'a Gauge,
    pub(crate) tasks: &'a Tasks,
}

/// Runs the process until it is told to stop; `ready` is called when it is up.
///
/// # Errors
/// Why it does not start, or ended, with its last words.
pub(crate) async fn run(
    job: Job<'_>,
    mut stop: watch::Receiver<Option<Duration>>,
    ready: impl Fn(),
) -> Result<(), String> {
    let started = command::start(&job).await.map_err(|broken| broken.text())?;
    let command::Started {
        mut process,
        scope,
        port,
    } = started;
    let heard = listen::listen(&mut process, &job);
    let mut control = Control::new(port, job.tasks.clone());
    let mut counted = Counted::default();
    let result = tokio::select! {
        status = process.wait() => Err(match status {
            Ok(status) => format!("the process ended: {status}"),
            Err(error) => format!("the process is lost: {error}"),
        }),
        why = watch_over(&mut control, &mut counted, &job, ready) => Err(why),
        _ = stop.wait_for(Option::is_some) => Ok(()),
    };
    let result = result.map_err(|why| match process.cause() {
        Some(limit) => format!("{}: {why}", limit.why),
        None => why,
    });
    let grace = (*stop.borrow()).unwrap_or(Duration::ZERO);
    if result.is_ok() {
        // What it did since the last look.
        if let Ok(Ok(report)) = tokio::time::timeout(LAST_WORDS, control.look()).await {
            counted.take(report, job.gauge);
        }
    }
    process.kill(grace.max(job.spec.options.kill_grace())).await;
    let last_words = heard.last_words(LAST_WORDS).await;
    drop(scope);
    result.map_err(|why| format!("{why}{last_words}"))
}

/// Looks at the process for ever, or until it is not well; says why.
async fn watch_over(
    control: &mut Control,
    counted: &mut Counted,
    job: &Job<'_>,
    ready: impl Fn(),
) -> String {
    let start_within = start_within(&job.spec.options);
    let (mut up, mut heard) = (false, Instant::now());
    loop {
        tokio::time::sleep(if up { LOOK } else { LOOK_STARTING }).await;
        let why = match control.look().await {
            Ok(report) if report.healthy && report.status.running => {
                heard = Instant::now();
                counted.take(report, job.gauge);
                if !up {
                    up = true;
                    ready();
                }
                continue;
            }
            // A virtual machine answers before it has loaded the function.
            Ok(report) if report.healthy && report.status.failure_exception.is_empty() && !up => {
                "it answers, and does not run the function yet".to_owned()
            }
            Ok(report) => {
                let failure = short(report.status.failure_exception.clone());
                counted.take(report, job.gauge);
                return format!("the instance does not run: {failure}");
            }
            Err(why) => short(why),
        };
        if up && heard.elapsed() > SILENCE_MAX {
            return format!("no answer to HealthCheck: {why}");
        }
        if !up && heard.elapsed() > start_within {
            let ms = start_within.as_millis();
            return format!("not ready after {ms} ms (`startTimeoutMs`): {why}");
        }
    }
}

/// A text of another's making, as long as it may be here.
fn short(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
    text
}

fn start_within(options: &Options) -> Duration {
    match options.start_timeout_ms == Options::default().start_timeout_ms {
        true => START_WITHIN,
        false => options.start_timeout(),
    }
}

/// What of a process' counts was taken in. The counts begin anew with each process; ours go on.
#[derive(Debug, Default)]
struct Counted {
    received: i64,
    processed: i64,
    user_exceptions: i64,
    system_exceptions: i64,
    busy_us: f64,
    user_until_ms: i64,
    system_until_ms: i64,
}

impl Counted {
    fn take(&mut self, report: Report, gauge: &Gauge) {
        let told = self.since(report);
        if told.received > 0 {
            *gauge.last_received.lock() = Some(Instant::now());
        }
        gauge.stats.told(told);
    }

    /// What is new in a report.
    fn since(&mut self, report: Report) -> Told {
        let status = report.status;
        let more = |before: &mut i64, now: i64| {
            let now = now.clamp(*before, COUNT_MAX);
            let new = now - *before;
            *before = now;
            u64::try_from(new).unwrap_or(0)
        };
        let system = status
            .num_system_exceptions
            .saturating_add(status.num_source_exceptions)
            .saturating_add(status.num_sink_exceptions);
        let busy_us =
            status.average_latency.max(0.0) * 1000.0 * status.num_successfully_processed as f64;
        let busy = (busy_us - self.busy_us).max(0.0);
        self.busy_us = busy_us.max(self.busy_us);
        let mut latest_system = status.latest_system_exceptions;
        latest_system.extend(status.latest_source_exceptions);
        latest_system.extend(status.latest_sink_exceptions);
        Told {
            received: more(&mut self.received, status.num_received),
            processed: more(&mut self.processed, status.num_successfully_processed),
            user_exceptions: more(&mut self.user_exceptions, status.num_user_exceptions),
            system_exceptions: more(&mut self.system_exceptions, system),
            busy: Duration::from_micros(busy as u64),
            last_invocation_ms: u64::try_from(status.last_invocation_time)
                .ok()
                .filter(|&ms| ms > 0),
            latest_user: newer(status.latest_user_exceptions, &mut self.user_until_ms),
            latest_system: newer(latest_system, &mut self.system_until_ms),
            metrics: named(report.metrics),
        }
    }
}

/// As many metrics as an instance may have.
fn named(mut metrics: BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    metrics.retain(|name, _| name.len() <= TEXT_BYTES_MAX);
    if let Some(first) = metrics.keys().nth(METRICS_MAX).cloned() {
        drop(metrics.split_off(&first));
    }
    metrics
}

/// Exceptions taken of one answer.
const EXCEPTIONS_MAX: usize = 1_000;

/// Those that came after what was seen before, the oldest first.
fn newer(
    mut list: Vec<geminga_proto::instance_control::ExceptionInformation>,
    until_ms: &mut i64,
) -> Vec<Exception> {
    list.retain(|it| it.ms_since_epoch > *until_ms);
    // An instance keeps ten; one that gives very many is not to hold a thread up.
    list.truncate(EXCEPTIONS_MAX);
    list.sort_by_key(|it| it.ms_since_epoch);
    if let Some(last) = list.last() {
        *until_ms = last.ms_since_epoch;
    }
    let one = |it: geminga_proto::instance_control::ExceptionInformation| Exception {
        text: short(it.exception_string),
        at_ms: u64::try_from(it.ms_since_epoch).unwrap_or(0),
    };
    list.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use geminga_proto::instance_control::{ExceptionInformation, FunctionStatus};

    #[test]
    fn counts_of_a_process_are_taken_in_once() {
        let report = |received, processed, latency, at_ms: &[i64]| Report {
            healthy: true,
            status: FunctionStatus {
                running: true,
                num_received: received,
                num_successfully_processed: processed,
                average_latency: latency,
                latest_user_exceptions: at_ms
                    .iter()
                    .map(|at| ExceptionInformation {
                        exception_string: at.to_string(),
                        ms_since_epoch: *at,
                    })
                    .collect(),
                ..FunctionStatus::default()
            },
            metrics: Default::default(),
        };
        let mut counted = Counted::default();
        let first = counted.since(report(10, 8, 2.0, &[5, 3]));
        assert_eq!((first.received, first.processed), (10, 8));
        assert_eq!(first.busy, Duration::from_millis(16));
        let texts = |told: &Told| {
            told.latest_user
                .iter()
                .map(|e| e.text.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(texts(&first), ["3", "5"]);
        let same = counted.since(report(10, 8, 2.0, &[5, 3]));
        assert_eq!(
            (same.received, same.processed, same.busy),
            (0, 0, Duration::ZERO)
        );
        assert!(texts(&same).is_empty());
        let more = counted.since(report(12, 10, 2.0, &[5, 9]));
        assert_eq!((more.received, more.processed), (2, 2));
        assert_eq!(texts(&more), ["9"]);
    }

    #[test]
    fn an_instance_that_lies_is_believed_within_bounds() {
        let lie = |number: i64, latency: f64| Report {
            healthy: true,
            status: FunctionStatus {
                running: true,
                num_received: number,
                num_successfully_processed: number,
                num_user_exceptions: number,
                num_system_exceptions: number,
                num_source_exceptions: number,
                num_sink_exceptions: number,
                average_latency: latency,
                last_invocation_time: number,
                latest_user_exceptions: vec![ExceptionInformation {
                    exception_string: "é".repeat(TEXT_BYTES_MAX),
                    ms_since_epoch: number,
                }],
                ..FunctionStatus::default()
            },
            metrics: (0..2 * METRICS_MAX)
                .map(|n| (n.to_string(), n as f64))
                .chain([("m".repeat(TEXT_BYTES_MAX + 1), 1.0)])
                .collect(),
        };
        let gauge = Gauge::default();
        // Again and again: each process counts from nothing.
        for _ in 0..3 {
            let mut counted = Counted::default();
            for (number, latency) in [
                (i64::MAX, f64::INFINITY),
                (i64::MIN, f64::NAN),
                (-1, -1.0),
                (i64::MAX, f64::MAX),
            ] {
                counted.take(lie(number, latency), &gauge);
            }
        }
        let known = gauge.stats.snapshot();
        assert_eq!(known.total.received, 3 << 53);
        assert_eq!(known.told_metrics.len(), METRICS_MAX);
        let longest = known.user_exceptions.iter().map(|it| it.text.len()).max();
        assert_eq!(longest, Some(TEXT_BYTES_MAX));
    }
}
