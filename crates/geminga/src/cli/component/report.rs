//! Status, statistics and configuration of components as tables for people. `-o json` has the server's own words.

use geminga_admin::client::Component;
use geminga_model::secret::masked;
use serde_json::Value;

use crate::cli::admin::cell;
use crate::output::Table;

/// Lines of a failure that are shown below a table; `-o json` has them all.
const DETAIL_LINES: usize = 12;

pub(super) fn status_table(
    kind: Component,
    status: &Value,
    instance: Option<u32>,
    wide: bool,
) -> Table {
    let fields: &[(&'static str, &str)] = match kind {
        Component::Function => &[
            ("received", "numReceived"),
            ("succeeded", "numSuccessfullyProcessed"),
            ("failed", "numUserExceptions"),
        ],
        Component::Source => &[
            ("received", "numReceivedFromSource"),
            ("written", "numWritten"),
            ("failed", "numSourceExceptions"),
        ],
        Component::Sink => &[
            ("received", "numReadFromPulsar"),
            ("written", "numWrittenToSink"),
            ("failed", "numSinkExceptions"),
        ],
    };
    let mut heading = vec!["instance", "running"];
    heading.extend(fields.iter().map(|(heading, _)| *heading));
    heading.extend(["system errors", "restarts"]);
    if wide {
        heading.extend(["latency ms", "worker"]);
    }
    heading.push("error");
    let mut table = Table::new(&heading);
    for (id, status) in instances(status, instance, "status") {
        let mut cells = vec![id, cell(&status["running"])];
        cells.extend(fields.iter().map(|(_, field)| cell(&status[*field])));
        cells.extend(["numSystemExceptions", "numRestarts"].map(|field| cell(&status[field])));
        if wide {
            cells.extend(["averageLatency", "workerId"].map(|field| cell(&status[field])));
        }
        let error = reason(status).unwrap_or_default();
        cells.push(error.lines().next().unwrap_or_default().to_owned());
        table.row(cells);
    }
    table
}

/// What stands behind the first line of each instance's failure: the end of its standard error, say.
pub(super) fn details(status: &Value, instance: Option<u32>) -> String {
    let mut text = String::new();
    let mut said = None;
    for (id, status) in instances(status, instance, "status") {
        let Some(reason) = reason(status) else {
            continue;
        };
        // What all of them say is said once.
        if reason.lines().nth(1).is_none() || said.as_ref() == Some(&reason) {
            continue;
        }
        text.push_str(&format!("\ninstance {id}:\n"));
        let lines: Vec<&str> = reason.lines().collect();
        // The end of what was printed says most.
        let skipped = lines.len().saturating_sub(DETAIL_LINES);
        for (at, line) in lines.iter().enumerate() {
            if at == 1 && skipped > 0 {
                text.push_str(&format!("  ... {skipped} lines more\n"));
            }
            if at == 0 || at > skipped {
                text.push_str(&format!("  {line}\n"));
            }
        }
        said = Some(reason);
    }
    text.trim_end().to_owned()
}

/// Each instance's number and what is reported of it; `part` is where that is in a report of all.
fn instances<'r>(
    report: &'r Value,
    instance: Option<u32>,
    part: &'r str,
) -> Vec<(String, &'r Value)> {
    match instance {
        Some(instance) => vec![(instance.to_string(), report)],
        None => report["instances"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|instance| (cell(&instance["instanceId"]), &instance[part]))
            .collect(),
    }
}

/// Why an instance does not run, or what failed last.
pub(super) fn reason(status: &Value) -> Option<String> {
    let error = status["error"].as_str().filter(|error| !error.is_empty());
    let last = || {
        ["latestUserExceptions", "latestSystemExceptions"]
            .iter()
            .find_map(|field| status[*field].as_array()?.last()?["exceptionString"].as_str())
    };
    error.or_else(last).map(shown)
}

/// Code is called what it is called, and not by where the server keeps it.
fn shown(text: &str) -> String {
    const KEPT: &str = "/packages/";
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(KEPT) {
        let behind = &rest[at + KEPT.len()..];
        let is_kept = behind.len() > 64
            && behind.as_bytes()[..64].iter().all(u8::is_ascii_hexdigit)
            && behind.as_bytes()[64] == b'/';
        if is_kept {
            let before = &rest[..at];
            let begin = before.rfind(|c: char| c.is_whitespace() || "`'\"(:".contains(c));
            let begin = begin.map_or(0, |begin| begin + 1);
            out.push_str(&before[..begin]);
            rest = &behind[65..];
        } else {
            out.push_str(&rest[..at + KEPT.len()]);
            rest = behind;
        }
    }
    out.push_str(rest);
    out
}

/// What a function's instances did, and all of them together.
pub(crate) fn stats_table(stats: &Value, instance: Option<u32>) -> Table {
    let mut table = Table::new(&[
        "instance",
        "received",
        "succeeded",
        "failed",
        "system errors",
        "mean ms",
        "p50 ms",
        "p99 ms",
        "last minute",
        "last message",
    ]);
    let mut rows = instances(stats, instance, "metrics");
    if rows.len() != 1 {
        rows.push(("all".to_owned(), stats));
    }
    for (id, metrics) in rows {
        let latency = |value: &Value| {
            value
                .as_f64()
                .map_or("-".to_owned(), |ms| format!("{ms:.3}"))
        };
        table.row([
            id,
            cell(&metrics["receivedTotal"]),
            cell(&metrics["processedSuccessfullyTotal"]),
            cell(&metrics["userExceptionsTotal"]),
            cell(&metrics["systemExceptionsTotal"]),
            latency(&metrics["avgProcessLatency"]),
            latency(&metrics["latencyPercentiles"]["0.5"]),
            latency(&metrics["latencyPercentiles"]["0.99"]),
            cell(&metrics["1min"]["receivedTotal"]),
            time(&metrics["lastInvocation"]),
        ]);
    }
    table
}

/// Milliseconds since 1970 as a date; `-` when there is none.
fn time(value: &Value) -> String {
    let ms = value.as_i64().filter(|ms| *ms > 0);
    ms.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or("-".to_owned(), |time| time.to_string())
}

/// A configuration, a field a line. Secrets are named and not shown, but for where they are.
pub(super) fn config_table(config: &Value) -> Table {
    let mut table = Table::new(&["field", "value"]);
    for (field, value) in config.as_object().into_iter().flatten() {
        let text = match value {
            Value::Object(secrets) if field == "secrets" => {
                // Other servers answer with the secret itself.
                let each = secrets.iter().map(|(name, value)| match masked(value) {
                    Value::Object(place) => format!("{name} {}", Value::Object(place)),
                    _ => format!("{name} (not shown)"),
                });
                each.collect::<Vec<_>>().join(", ")
            }
            Value::Array(all) if all.iter().all(Value::is_string) => {
                let all: Vec<String> = all.iter().map(cell).collect();
                all.join(", ")
            }
            other => cell(other),
        };
        table.row([field.clone(), text]);
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn code_is_called_by_its_own_name() {
        let hash = "a71b31a253d07ee65e889f4f6f692e67fdd8e95406a0193483b929c142a90341";
        for (said, want) in [
            (
                format!("`/data/functions/packages/{hash}/f.sh` has a syntax error"),
                "`f.sh` has a syntax error",
            ),
            (
                format!("/d/packages/{hash}/a b.sh: line 1: near '/d/packages/{hash}/c'"),
                "a b.sh: line 1: near 'c'",
            ),
            (
                "/packages/ and /packages/abc/x".to_owned(),
                "/packages/ and /packages/abc/x",
            ),
            (String::new(), ""),
        ] {
            assert_eq!(shown(&said), want);
        }
    }

    #[test]
    fn a_failure_is_whole() {
        let long = (1..=30).map(|n| format!("line {n}\n")).collect::<String>();
        let status = json!({"instances": [
            {"instanceId": 0, "status": {"running": true, "latestUserExceptions": [
                {"exceptionString": "first"}, {"exceptionString": "user: ended with status 3\nno way"}]}},
            {"instanceId": 1, "status": {"running": false, "error": format!("boom\n{long}")}},
            {"instanceId": 2, "status": {"running": false, "error": format!("boom\n{long}")}},
            {"instanceId": 3, "status": {"running": true}},
        ]});
        let table = status_table(Component::Function, &status, None, false);
        let errors: Vec<&str> = table.rows.iter().map(|row| row[7].as_str()).collect();
        assert_eq!(errors, ["user: ended with status 3", "boom", "boom", ""]);
        let told = details(&status, None);
        assert!(
            told.starts_with("\ninstance 0:\n  user: ended with status 3\n  no way\n\ninstance 1:\n  boom\n  ... 19 lines more\n  line 20\n"),
            "{told}"
        );
        assert!(told.ends_with("  line 30"), "{told}");
        assert_eq!(details(&status["instances"][3]["status"], Some(3)), "");
    }

    #[test]
    fn statistics_have_a_line_for_each_and_for_all() {
        let metrics = json!({
            "receivedTotal": 2, "processedSuccessfullyTotal": 1, "userExceptionsTotal": 1,
            "systemExceptionsTotal": 0, "avgProcessLatency": 0.4, "1min": {"receivedTotal": 2},
            "lastInvocation": 1_700_000_000_123_u64, "latencyPercentiles": {"0.5": 0.336, "0.99": 0.5},
        });
        let row = [
            "0",
            "2",
            "1",
            "1",
            "0",
            "0.400",
            "0.336",
            "0.500",
            "2",
            "2023-11-14T22:13:20.123Z",
        ];
        assert_eq!(
            stats_table(&metrics, Some(0)).rows,
            [row.map(str::to_owned)]
        );
        let mut both = metrics.clone();
        both["instances"] = json!([
            {"instanceId": 0, "metrics": metrics}, {"instanceId": 1, "metrics": {"lastInvocation": null}},
        ]);
        let rows = stats_table(&both, None).rows;
        let first: Vec<&str> = rows.iter().map(|row| row[0].as_str()).collect();
        assert_eq!((first, rows[1][9].as_str()), (vec!["0", "1", "all"], "-"));
    }

    #[test]
    fn secrets_are_named_and_not_shown() {
        let table = config_table(
            &json!({"inputs": ["a", "b"], "secrets": {"db": {"env": "DB"}, "token": "s3cr3t"}, "parallelism": 2}),
        );
        let rows: Vec<String> = table.rows.iter().map(|row| row.join(": ")).collect();
        assert!(
            rows.contains(&r#"secrets: db {"env":"DB"}, token (not shown)"#.to_owned()),
            "{rows:?}"
        );
        assert!(
            rows.contains(&"inputs: a, b".to_owned())
                && rows.contains(&"parallelism: 2".to_owned()),
            "{rows:?}"
        );
    }
}
