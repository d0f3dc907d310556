//! What the instances and the worker count, as Prometheus reads it, under Pulsar's names; what is ours
//! begins with `geminga_`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use geminga_functions::{Backlogs, ComponentId, Kind, Latency, Owner, Worker};
use serde_json::{Map, Value, json};

const OF_WORKER: &str = "pulsar_function_worker_";

/// Series by name, each a line.
#[derive(Default)]
struct Series {
    lines: BTreeMap<String, Vec<String>>,
    summaries: BTreeSet<String>,
}

impl Series {
    fn put(&mut self, name: &str, labels: &str, value: f64) {
        let line = format!("{name}{{{labels}}} {value}");
        self.lines.entry(name.to_owned()).or_default().push(line);
    }

    /// A summary: its quantiles, sum and count.
    fn summary(&mut self, name: &str, labels: &str, summary: &Summary<'_>) {
        self.summaries.insert(name.to_owned());
        let lines = self.lines.entry(name.to_owned()).or_default();
        for (quantile, value) in &summary.quantiles {
            lines.push(format!(
                "{name}{{{labels},quantile=\"{quantile}\"}} {value}"
            ));
        }
        lines.push(format!("{name}_sum{{{labels}}} {}", summary.sum));
        lines.push(format!("{name}_count{{{labels}}} {}", summary.count));
    }
}

struct Summary<'a> {
    quantiles: Vec<(&'a str, f64)>,
    sum: f64,
    count: f64,
}

impl<'a> Summary<'a> {
    fn of(latency: &'a Latency) -> Self {
        let all = latency.percentiles.iter();
        Self {
            quantiles: all.map(|(name, value)| (name.as_str(), *value)).collect(),
            sum: latency.sum_ms,
            count: latency.count as f64,
        }
    }
}

/// The counters of all instances that run here; with `backlogs`, which a broker has, also what waits for each
/// component, wherever it runs.
pub(crate) fn write_metrics(
    worker: &Worker,
    cluster: &str,
    backlogs: Option<&Backlogs<'_>>,
    out: &mut String,
) {
    let mut series = Series::default();
    let (mut functions, mut expected, mut running) = (0u64, 0u64, 0u64);
    for id in worker.components() {
        let (Ok(status), Ok(stats)) = (worker.status(&id), worker.stats(&id)) else {
            continue;
        };
        functions += 1;
        if let Some(waiting) = backlogs.and_then(|backlogs| worker.waiting(&id, backlogs)) {
            let kind = id.kind.as_str();
            let labels = format!("{},kind=\"{kind}\"", labels(&id, None, cluster));
            series.put("geminga_function_backlog", &labels, waiting as f64);
        }
        expected += u64::from(status.num_instances);
        let prefix = format!("pulsar_{}", id.kind.as_str());
        for (instance, counted) in status.instances.iter().zip(&stats.instances) {
            if worker.owner(&id, instance.instance_id) != Owner::Here {
                continue;
            }
            running += u64::from(instance.status.running);
            let labels = labels(&id, Some(instance.instance_id), cluster);
            let (status, counted) = (&instance.status, &counted.metrics);
            let mut put =
                |name: &str, value: f64| series.put(&format!("{prefix}_{name}"), &labels, value);
            put("received_total", status.num_received as f64);
            put("received_1min", counted.minute.received_total as f64);
            put(
                "system_exceptions_total",
                status.num_system_exceptions as f64,
            );
            put(
                "system_exceptions_1min",
                counted.minute.system_exceptions_total as f64,
            );
            put("last_invocation", status.last_invocation_time as f64);
            let of_user = match id.kind {
                Kind::Function => "user_exceptions",
                Kind::Source => "source_exceptions",
                Kind::Sink => "sink_exceptions",
            };
            put(
                &format!("{of_user}_total"),
                status.num_user_exceptions as f64,
            );
            put(
                &format!("{of_user}_1min"),
                counted.minute.user_exceptions_total as f64,
            );
            if id.kind == Kind::Function {
                put(
                    "processed_successfully_total",
                    status.num_successfully_processed as f64,
                );
                put(
                    "processed_successfully_1min",
                    counted.minute.processed_successfully_total as f64,
                );
                for (of, name) in [
                    (&counted.latency, "pulsar_function_process_latency_ms"),
                    (
                        &counted.minute_latency,
                        "pulsar_function_process_latency_ms_1min",
                    ),
                ] {
                    series.summary(name, &labels, &Summary::of(of));
                }
            } else {
                put("written_total", status.num_written as f64);
                put("written_1min", counted.minute_written as f64);
            }
            let latest = [
                (&status.latest_system_exceptions, "system_exception"),
                (
                    &status.latest_user_exceptions,
                    match id.kind {
                        Kind::Function => "user_exception",
                        Kind::Source => "source_exception",
                        Kind::Sink => "sink_exception",
                    },
                ),
            ];
            for (exceptions, name) in latest {
                // The newest alone: a label for every text would grow without end.
                if let Some(newest) = exceptions.last() {
                    let error = quoted(&newest.exception_string);
                    let labels = format!("{labels},error=\"{error}\"");
                    series.put(
                        &format!("{prefix}_{name}"),
                        &labels,
                        newest.timestamp_ms as f64,
                    );
                }
            }
            for (name, sum) in &counted.user_metrics {
                let Some(name) = name.strip_prefix("user_metric_") else {
                    continue;
                };
                let Some(name) = name.strip_suffix("_sum") else {
                    continue;
                };
                let count = counted
                    .user_metrics
                    .get(&format!("user_metric_{name}_count"));
                let quantile = |text: &'static str| {
                    let value = counted
                        .user_metrics
                        .get(&format!("user_metric_{name}_{text}"))?;
                    Some((text, *value))
                };
                let quantiles = ["0.5", "0.9", "0.99", "0.999"];
                let labels = format!("{labels},metric=\"{}\"", quoted(name));
                let summary = Summary {
                    quantiles: quantiles.into_iter().filter_map(quantile).collect(),
                    sum: *sum,
                    count: count.copied().unwrap_or_default(),
                };
                series.summary(&format!("{prefix}_user_metric_"), &labels, &summary);
            }
            for (name, value) in [
                ("geminga_function_retried_total", status.num_retried),
                (
                    "geminga_function_dead_lettered_total",
                    status.num_dead_lettered,
                ),
                ("geminga_function_written_total", status.num_written),
                ("geminga_function_restarts_total", status.num_restarts),
                ("geminga_function_in_flight", status.num_in_flight),
            ] {
                let labels = format!("{labels},kind=\"{}\"", id.kind.as_str());
                series.put(name, &labels, value as f64);
            }
            if let Some(lag) = status.lag_ms {
                let labels = format!("{labels},kind=\"{}\"", id.kind.as_str());
                series.put("geminga_function_lag_ms", &labels, lag as f64);
            }
        }
    }
    let labels = format!("cluster=\"{}\"", quoted(cluster));
    for (name, value) in [
        ("instance_count", running),
        ("total_expected_instance_count", expected),
        ("total_function_count", functions),
        ("is_leader", u64::from(worker.leads())),
        ("start_up_time_ms", worker.start_up_ms()),
    ] {
        series.put(&format!("{OF_WORKER}{name}"), &labels, value as f64);
    }
    for timing in worker.timings() {
        let summary = Summary {
            quantiles: timing.quantiles,
            sum: timing.sum_ms,
            count: timing.count as f64,
        };
        let name = format!("{OF_WORKER}{}", timing.metric);
        series.summary(&name, &labels, &summary);
    }
    for (name, lines) in series.lines {
        let kind = if series.summaries.contains(&name) {
            "summary"
        } else if name.ends_with("_total") {
            "counter"
        } else {
            "gauge"
        };
        // Writing to a string cannot fail.
        let _ = writeln!(out, "# TYPE {name} {kind}\n{}", lines.join("\n"));
    }
}

fn quoted(text: &str) -> String {
    let short: String = text
        .lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(200)
        .collect();
    short.replace('\\', "\\\\").replace('"', "\\\"")
}

/// Of an instance, or of all of them together.
fn labels(id: &ComponentId, instance: Option<u32>, cluster: &str) -> String {
    let ComponentId {
        tenant,
        namespace,
        name,
        ..
    } = id;
    let instance = instance.map(|number| format!("instance_id=\"{number}\","));
    // Names hold no quotes: they were checked when the component was made.
    format!(
        "tenant=\"{tenant}\",namespace=\"{tenant}/{namespace}\",name=\"{name}\",{}\
         cluster=\"{}\",fqfn=\"{}\"",
        instance.unwrap_or_default(),
        quoted(cluster),
        id.fqfn()
    )
}

/// The same as Pulsar's `Metrics`: one object for each set of labels.
pub(super) fn as_json(text: &str) -> Vec<Value> {
    let mut all: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((series, value)) = line.rsplit_once(' ') else {
            continue;
        };
        let Some((name, labels)) = series.split_once('{') else {
            continue;
        };
        let value: f64 = value.parse().unwrap_or_default();
        let labels = labels.trim_end_matches('}');
        all.entry(labels.to_owned())
            .or_default()
            .insert(name.to_owned(), json!(value));
    }
    all.into_iter()
        .map(|(labels, metrics)| {
            let mut dimensions = Map::new();
            for label in labels.split("\",") {
                if let Some((name, value)) = label.split_once("=\"") {
                    dimensions.insert(name.to_owned(), json!(value.trim_end_matches('"')));
                }
            }
            json!({ "metrics": metrics, "dimensions": dimensions })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_of_the_same_labels_are_one_object() {
        let text = "# TYPE a gauge\na{x=\"1\",y=\"t/n\"} 3\nb{x=\"1\",y=\"t/n\"} 4\na{x=\"2\"} 5\n";
        let want = json!([
            { "metrics": { "a": 3.0, "b": 4.0 }, "dimensions": { "x": "1", "y": "t/n" } },
            { "metrics": { "a": 5.0 }, "dimensions": { "x": "2" } },
        ]);
        assert_eq!(json!(as_json(text)), want);
        assert_eq!(quoted("say \"x\"\nmore"), "say \\\"x\\\"");
    }
}
