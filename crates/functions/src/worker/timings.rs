//! How long a worker's own work takes: placing, moving, draining, starting and stopping instances.
//!
//! Pure but for its lock; who does the work says how long it took. Since the start of the worker.

use std::time::Duration;

use parking_lot::Mutex;

use crate::instance::stats::Histogram;

/// What a worker does beside running functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// New units got a worker, or those whose worker is gone.
    Schedule,
    /// The decision alone.
    ScheduleStrategy,
    /// Units were moved because somebody asked for it.
    Rebalance,
    /// The decision alone.
    RebalanceStrategy,
    /// From the request until a worker had nothing left that another can run.
    Drain,
    /// Until an instance ran: its host, its subscription, its state.
    Start,
    /// Until an instance had stopped, what it had in flight included.
    Stop,
}

impl Work {
    const ALL: [Work; 7] = [
        Work::Schedule,
        Work::ScheduleStrategy,
        Work::Rebalance,
        Work::RebalanceStrategy,
        Work::Drain,
        Work::Start,
        Work::Stop,
    ];

    /// Pulsar's name of the metric, without the prefix of workers.
    fn metric(self) -> &'static str {
        match self {
            Work::Schedule => "schedule_execution_time_total_ms",
            Work::ScheduleStrategy => "schedule_strategy_execution_time_ms",
            Work::Rebalance => "rebalance_execution_time_total_ms",
            Work::RebalanceStrategy => "rebalance_strategy_execution_time_ms",
            Work::Drain => "drain_execution_time_total_ms",
            Work::Start => "start_instance_process_time_ms",
            Work::Stop => "stop_instance_process_time_ms",
        }
    }
}

/// How long one kind of work took.
#[derive(Debug, Clone, PartialEq)]
pub struct Timing {
    /// Pulsar's name of the metric, without `pulsar_function_worker_`.
    pub metric: &'static str,
    /// Milliseconds at 0.5, 0.9 and 1, within 6 %; none before the first time.
    pub quantiles: Vec<(&'static str, f64)>,
    /// Milliseconds of all together.
    pub sum_ms: f64,
    pub count: u64,
}

/// The times of one worker.
#[derive(Debug, Default)]
pub(crate) struct Timings([Mutex<Histogram>; 7]);

impl Timings {
    pub(crate) fn add(&self, work: Work, took: Duration) {
        self.0[work as usize].lock().add(took);
    }

    pub(crate) fn all(&self) -> Vec<Timing> {
        let one = |work: Work| {
            let times = self.0[work as usize].lock();
            let quantile = |(name, quantile)| Some((name, times.quantile_ms(quantile)?));
            let quantiles = [("0.5", 0.5), ("0.9", 0.9), ("1.0", 1.0)];
            Timing {
                metric: work.metric(),
                quantiles: quantiles.into_iter().filter_map(quantile).collect(),
                sum_ms: times.sum_ms(),
                count: times.count(),
            }
        };
        Work::ALL.into_iter().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_work_has_times_of_its_own() {
        let timings = Timings::default();
        for ms in [10, 20, 30] {
            timings.add(Work::Stop, Duration::from_millis(ms));
        }
        for timing in timings.all() {
            if timing.metric == "stop_instance_process_time_ms" {
                assert_eq!((timing.sum_ms, timing.count), (60.0, 3));
                let [(_, middle), _, (_, longest)] = timing.quantiles[..] else {
                    panic!("{timing:?}")
                };
                assert!((18.0..=20.0).contains(&middle), "{middle}");
                assert!((28.0..=30.0).contains(&longest), "{longest}");
            } else {
                assert_eq!((timing.quantiles.len(), timing.count), (0, 0), "{timing:?}");
            }
        }
    }
}
