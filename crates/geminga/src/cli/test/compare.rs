//! What was wanted against what came: both written as YAML, and the difference of the two.
//!
//! Pure. Only what a case names is compared: what came is first cut down to that.

use std::collections::BTreeMap;

use bytes::Bytes;
use geminga_functions::runtime::{LogLine, Output};
use geminga_functions::{TrialReport, TrialValue};
use serde_json::Value as Json;

use super::cases::{Case, Expect, Payload, Wanted};

/// Unchanged lines around a change.
const CONTEXT: usize = 3;

/// Compares; `None` means that all is as wanted, else a unified difference.
pub(crate) fn difference(case: &Case, report: &TrialReport) -> Option<String> {
    let nothing = Expect::default();
    let wanted = case.expect.as_ref().unwrap_or(&nothing);
    let got = got(wanted, case, report);
    let (wanted, got) = (render(wanted), render(&got));
    (wanted != got).then(|| unified(&wanted, &got))
}

/// What should stand in the file for the case to pass, in the form that it has there.
pub(crate) fn accepted(case: &Case, report: &TrialReport) -> Vec<String> {
    let everything = Expect {
        outputs: Some(Vec::new()),
        state: (!report.state.is_empty())
            .then(|| report.state.keys().map(|key| (key.clone(), None)).collect()),
        ..Expect::default()
    };
    render(&got(
        case.expect.as_ref().unwrap_or(&everything),
        case,
        report,
    ))
}

/// What came, as far as `wanted` names it. Failures are always named.
fn got(wanted: &Expect, case: &Case, report: &TrialReport) -> Expect {
    let key_of = |number: usize| case.messages.get(number).and_then(|m| m.key.clone());
    let outputs = wanted.outputs.as_ref().map(|wanted| {
        let like = wanted.iter().map(Some).chain(std::iter::repeat(None));
        let outputs = report.outputs.iter().zip(like);
        outputs
            .map(|((number, output), like)| one(output, key_of(*number), like))
            .collect()
    });
    let state = wanted.state.as_ref().map(|wanted| {
        let now = |key: &String| (key.clone(), report.state.get(key).cloned());
        wanted.keys().map(now).collect()
    });
    let wanted_errors = wanted.errors.as_deref().unwrap_or_default();
    let like = wanted_errors
        .iter()
        .map(Some)
        .chain(std::iter::repeat(None));
    let errors: Vec<String> = report
        .failures
        .iter()
        .zip(like)
        .map(|((_, failure), like)| match like {
            // A part of it is enough: the whole may hold line numbers. What a script says of its
            // failure stands on its standard error.
            Some(part) if failure.reason.contains(part.as_str()) => part.clone(),
            Some(part) if failure.stderr_tail.contains(part.as_str()) => part.clone(),
            _ => failure.reason.lines().next().unwrap_or_default().to_owned(),
        })
        .collect();
    let logs = wanted.logs.as_ref().map(|wanted| {
        let lines: Vec<String> = report.logs.iter().map(log_line).collect();
        let mut rest = lines.iter();
        // Other lines may stand between.
        if wanted.iter().all(|one| rest.any(|line| line == one)) {
            wanted.clone()
        } else {
            lines
        }
    });
    let metrics = wanted.metrics.as_ref().map(|wanted| {
        let now = |name: &String| Some((name.clone(), *report.metrics.get(name)?));
        wanted.keys().filter_map(now).collect()
    });
    Expect {
        outputs,
        state,
        errors: (wanted.errors.is_some() || !errors.is_empty()).then_some(errors),
        logs,
        metrics,
    }
}

fn log_line(line: &LogLine) -> String {
    format!("{} {}", line.level.as_str(), line.text)
}

/// An output with the fields that `like` names; what it does not name but matters stands there too.
fn one(output: &Output, key_of_input: Option<String>, like: Option<&Wanted>) -> Wanted {
    let payload = match like.and_then(|like| like.payload.as_ref()) {
        // Equal values are written alike, whatever the order of their names.
        Some(Payload::Json(wanted)) => serde_json::from_slice(&output.payload)
            .ok()
            .map(|got| Payload::Json(if got == *wanted { wanted.clone() } else { got })),
        Some(Payload::Bytes(_)) => Some(Payload::Bytes(output.payload.clone())),
        _ => None,
    };
    let payload = payload.unwrap_or_else(|| readable(&output.payload));
    let named = |is: fn(&Wanted) -> bool| like.is_some_and(is);
    Wanted {
        payload: like
            .is_none_or(|like| like.payload.is_some())
            .then_some(payload),
        topic: if like.is_none() || named(|like| like.topic.is_some()) {
            output.topic.clone()
        } else {
            None
        },
        key: if named(|like| like.key.is_some()) {
            output.key.clone().or(key_of_input)
        } else {
            None
        },
        properties: named(|like| like.properties.is_some())
            .then(|| output.properties.iter().cloned().collect()),
        event_time: output
            .event_time
            .filter(|_| named(|like| like.event_time.is_some())),
    }
}

fn readable(bytes: &Bytes) -> Payload {
    match std::str::from_utf8(bytes) {
        Ok(text) => Payload::Text(text.to_owned()),
        Err(_) => Payload::Bytes(bytes.clone()),
    }
}

/// An expectation as lines of YAML.
fn render(expect: &Expect) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(outputs) = &expect.outputs {
        list(&mut lines, "outputs", outputs, output_lines);
    }
    if let Some(state) = &expect.state {
        map(&mut lines, "state", state, |value| match value {
            None => "null".to_owned(),
            Some(TrialValue::Counter(number)) => number.to_string(),
            Some(TrialValue::Bytes(bytes)) => match readable(bytes) {
                Payload::Text(text) => scalar(&text),
                _ => format!("{{base64: {}}}", base64(bytes)),
            },
        });
    }
    if let Some(errors) = &expect.errors {
        list(&mut lines, "errors", errors, |text| vec![scalar(text)]);
    }
    if let Some(logs) = &expect.logs {
        list(&mut lines, "logs", logs, |text| vec![scalar(text)]);
    }
    if let Some(metrics) = &expect.metrics {
        map(&mut lines, "metrics", metrics, f64::to_string);
    }
    lines
}

fn list<T>(lines: &mut Vec<String>, name: &str, items: &[T], of: impl Fn(&T) -> Vec<String>) {
    if items.is_empty() {
        lines.push(format!("{name}: []"));
        return;
    }
    lines.push(format!("{name}:"));
    for item in items {
        for (index, line) in of(item).into_iter().enumerate() {
            lines.push(format!("  {} {line}", if index == 0 { '-' } else { ' ' }));
        }
    }
}

fn map<T>(
    lines: &mut Vec<String>,
    name: &str,
    values: &BTreeMap<String, T>,
    of: impl Fn(&T) -> String,
) {
    if values.is_empty() {
        lines.push(format!("{name}: {{}}"));
        return;
    }
    lines.push(format!("{name}:"));
    for (key, value) in values {
        lines.push(format!("  {}: {}", scalar(key), of(value)));
    }
}

fn output_lines(output: &Wanted) -> Vec<String> {
    let only_text = output.topic.is_none()
        && output.key.is_none()
        && output.properties.is_none()
        && output.event_time.is_none();
    let mut lines = Vec::new();
    match &output.payload {
        Some(Payload::Text(text)) if only_text => return vec![scalar(text)],
        Some(Payload::Text(text)) => lines.push(format!("payload: {}", scalar(text))),
        Some(Payload::Json(value)) => lines.push(format!("json: {}", flow(value))),
        Some(Payload::Bytes(bytes)) => lines.push(format!("base64: {}", base64(bytes))),
        None => {}
    }
    if let Some(topic) = &output.topic {
        lines.push(format!("topic: {}", scalar(topic)));
    }
    if let Some(key) = &output.key {
        lines.push(format!("key: {}", scalar(key)));
    }
    if let Some(properties) = &output.properties {
        map(&mut lines, "properties", properties, |text| scalar(text));
    }
    if let Some(time) = output.event_time {
        lines.push(format!("eventTime: {time}"));
    }
    if lines.is_empty() {
        lines.push("{}".to_owned());
    }
    lines
}

/// JSON in one line, with blanks where YAML wants them.
fn flow(value: &Json) -> String {
    match value {
        Json::Array(items) => {
            let items: Vec<String> = items.iter().map(flow).collect();
            format!("[{}]", items.join(", "))
        }
        Json::Object(map) => {
            let entries: Vec<String> = map
                .iter()
                .map(|(key, value)| format!("{}: {}", quoted(key), flow(value)))
                .collect();
            format!("{{{}}}", entries.join(", "))
        }
        Json::String(text) => quoted(text),
        other => other.to_string(),
    }
}

fn quoted(text: &str) -> String {
    // A JSON text is a text of YAML too.
    Json::String(text.to_owned()).to_string()
}

fn base64(bytes: &[u8]) -> String {
    quoted(&geminga_functions::runtime::base64_text(bytes))
}

/// Text as YAML: plain where it can not be taken for anything else.
fn scalar(text: &str) -> String {
    let words = [
        "true", "false", "null", "yes", "no", "on", "off", "nan", "inf",
    ];
    let inner = |c: char| c.is_alphanumeric() || " _./!?'()+*-".contains(c);
    let plain = text.chars().next().is_some_and(char::is_alphabetic)
        && text.chars().all(inner)
        && !text.ends_with(' ')
        && !words.contains(&text.to_ascii_lowercase().as_str())
        && text != "y"
        && text != "n";
    if plain { text.to_owned() } else { quoted(text) }
}

/// A unified difference of two lists of lines.
fn unified(wanted: &[String], got: &[String]) -> String {
    let edits = edits(wanted, got);
    let mut text = "--- wanted\n+++ got\n".to_owned();
    let mut at = 0;
    while let Some(first) = (at..edits.len()).find(|&i| edits[i].0 != ' ') {
        let from = first.saturating_sub(CONTEXT).max(at);
        let mut last = first;
        // Changes that are close stand in one piece.
        while let Some(next) =
            (last + 1..edits.len().min(last + 2 * CONTEXT + 2)).find(|&i| edits[i].0 != ' ')
        {
            last = next;
        }
        let to = (last + 1 + CONTEXT).min(edits.len());
        let count = |range: std::ops::Range<usize>, skip: char| {
            edits[range]
                .iter()
                .filter(|(sign, _)| *sign != skip)
                .count()
        };
        text.push_str(&format!(
            "@@ -{},{} +{},{} @@\n",
            count(0..from, '+') + 1,
            count(from..to, '+'),
            count(0..from, '-') + 1,
            count(from..to, '-'),
        ));
        for (sign, line) in &edits[from..to] {
            text.push(*sign);
            text.push_str(line);
            text.push('\n');
        }
        at = to;
    }
    text
}

/// The lines of both, each with what became of it: the longest common part stays.
fn edits<'a>(wanted: &'a [String], got: &'a [String]) -> Vec<(char, &'a str)> {
    let (n, m) = (wanted.len(), got.len());
    let mut common = vec![vec![0_usize; m + 1]; n + 1];
    for i in (0..n).rev() {
        for j in (0..m).rev() {
            common[i][j] = if wanted[i] == got[j] {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    let (mut i, mut j, mut edits) = (0, 0, Vec::with_capacity(n + m));
    while i < n || j < m {
        if i < n && j < m && wanted[i] == got[j] {
            edits.push((' ', wanted[i].as_str()));
            (i, j) = (i + 1, j + 1);
        } else if i < n && (j == m || common[i + 1][j] >= common[i][j + 1]) {
            edits.push(('-', wanted[i].as_str()));
            i += 1;
        } else {
            edits.push(('+', got[j].as_str()));
            j += 1;
        }
    }
    edits
}

#[cfg(test)]
mod tests {
    use super::super::cases::of_text;
    use super::*;
    use geminga_functions::runtime::{Failure, FailureKind, Level};
    use std::path::Path;

    fn case(expect: &str) -> Case {
        let text = format!(
            "cases:\n  - name: x\n    input: {{payload: a, key: k}}\n    expect: {expect}\n"
        );
        let file = of_text(Path::new("f.test.yaml"), &text).unwrap_or_else(|e| panic!("{e}"));
        file.cases.into_iter().next().expect("one")
    }

    fn report() -> TrialReport {
        let output = |topic: Option<&str>, payload: &'static str| Output {
            topic: topic.map(str::to_owned),
            payload: payload.into(),
            properties: vec![("p".into(), "v".into())],
            ..Output::default()
        };
        let log = |level, text: &str| LogLine {
            level,
            text: text.into(),
            message_id: None,
        };
        TrialReport {
            outputs: vec![
                (0, output(None, r#"{"b": 1, "a": [2]}"#)),
                (0, output(Some("other"), "007")),
            ],
            failures: vec![(
                0,
                Failure::new(FailureKind::User, "ValueError: no use\nmore"),
            )],
            state: [("seen".to_owned(), TrialValue::Counter(3))].into(),
            logs: vec![log(Level::Info, "one"), log(Level::Warn, "two")],
            metrics: [("size".to_owned(), 1.5)].into(),
        }
    }

    #[test]
    fn only_what_is_named_is_compared() {
        for expect in [
            "{errors: [no use]}",
            "{error: ValueError, outputs: [{json: {a: [2], b: 1}}, '007']}",
            "{error: no, outputs: [{key: k}, {topic: other, properties: {p: v}}], state: {seen: 3, m: null}}",
            "{error: no, logs: [WARN two], metrics: {size: 1.5}}",
        ] {
            let case = case(expect);
            let found = difference(&case, &report());
            assert!(found.is_none(), "{expect}\n{}", found.unwrap_or_default());
        }
    }

    #[test]
    fn the_difference_is_unified() {
        let wanted = case(
            "{outputs: ['{\"b\": 1, \"a\": [2]}', '008'], state: {seen: 4}, logs: [INFO three]}",
        );
        let text = difference(&wanted, &report()).expect("differs");
        assert_eq!(
            text,
            "--- wanted\n+++ got\n@@ -1,7 +1,10 @@\n outputs:\n   - \"{\\\"b\\\": 1, \\\"a\\\": [2]}\"\n\
             -  - \"008\"\n+  - \"007\"\n state:\n-  seen: 4\n+  seen: 3\n+errors:\n+  - \"ValueError: no use\"\n logs:\n\
             -  - INFO three\n+  - INFO one\n+  - WARN two\n"
        );
        // A failure that nobody wanted is a difference even when nothing is named.
        assert!(difference(&case("{}"), &report()).is_some());
    }

    #[test]
    fn what_is_accepted_is_what_would_pass() {
        let case = case("{outputs: [{json: {}}], state: {seen: 9}}");
        let lines = accepted(&case, &report());
        assert_eq!(
            lines,
            [
                "outputs:",
                "  - json: {\"b\": 1, \"a\": [2]}",
                "  - payload: \"007\"",
                "    topic: other",
                "state:",
                "  seen: 3",
                "errors:",
                "  - \"ValueError: no use\""
            ]
        );
    }

    #[test]
    fn far_changes_stand_in_pieces_of_their_own() {
        let wanted: Vec<String> = (0..30).map(|n| n.to_string()).collect();
        let mut got = wanted.clone();
        got[2] = "x".into();
        got.remove(25);
        let text = unified(&wanted, &got);
        assert_eq!(text.matches("@@ -").count(), 2, "{text}");
        assert!(
            text.contains("@@ -1,6 +1,6 @@") && text.contains("@@ -23,7 +23,6 @@"),
            "{text}"
        );
    }

    #[test]
    fn plain_text_is_what_yaml_takes_for_text() {
        for (text, wanted) in [
            ("hello world!", "hello world!"),
            ("true", "\"true\""),
            ("1", "\"1\""),
            ("", "\"\""),
            ("a: b", "\"a: b\""),
            ("tail ", "\"tail \""),
            ("größe", "größe"),
        ] {
            assert_eq!(scalar(text), wanted);
        }
    }
}
