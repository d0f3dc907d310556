//! What the object commands share: the admin client, how its errors read, names and times.

use std::time::Duration;

use geminga_admin::client::{AdminClient, ClientError, MessageId};
use geminga_model::{NamespaceName, TopicName};
use geminga_stdx::Diagnostic;
use serde_json::Value;

use super::{Global, block_on, tls};
use crate::failure::{Exit, Failure, Outcome};

/// Runs one command against the admin API that the global options name.
pub(crate) fn with_client<F, Fut>(global: &Global, command: F) -> Outcome
where
    F: FnOnce(AdminClient) -> Fut,
    Fut: Future<Output = Outcome>,
{
    let client = global.admin_client()?;
    block_on(command(client))
}

/// A client error as a person and a script read it.
pub(crate) fn failure(error: ClientError) -> Failure {
    let text = error.to_string();
    match error {
        ClientError::Tls(error) => tls::unusable(&error),
        ClientError::Downgraded { .. } => Failure::new(
            Exit::Failed,
            Diagnostic::error("G0213", text)
                .help("name the server that answers it with `--admin-url https://...`, or reach this one by `http://`"),
        ),
        ClientError::Url { .. } => Failure::new(
            Exit::Usage,
            Diagnostic::error("G0211", text)
                .help("--admin-url http://127.0.0.1:8080 (or set GEMINGA_ADMIN_URL)"),
        ),
        ClientError::Unreachable { url, source } => {
            let help = tls::help(&source).map(str::to_owned).unwrap_or_else(|| {
                format!("start a server with `geminga standalone`, or name another than {url} with --admin-url")
            });
            Failure::new(
                Exit::Unreachable,
                Diagnostic::error("G0201", text)
                    .cause(innermost(&source))
                    .help(help),
            )
        }
        ClientError::TimedOut { .. } => {
            Failure::new(Exit::TimedOut, Diagnostic::error("G0206", text))
        }
        ClientError::File { path, what, source } => {
            let error = Diagnostic::error("G0001", text).cause(source.to_string());
            let help = match what {
                "written" => "name a file in a directory that is there, and may be written",
                _ => "give the path of a file that this command can read",
            };
            let exit = match path.exists() || what == "written" {
                true => Exit::Failed,
                false => Exit::Usage,
            };
            Failure::new(exit, error.help(help))
        }
        ClientError::Answer { .. } => Failure::new(Exit::Failed, Diagnostic::error("G0212", text)),
        ClientError::Refused { status, reason } => {
            let (exit, code) = match status.as_u16() {
                404 => (Exit::NotFound, "G0202"),
                409 => (Exit::Conflict, "G0203"),
                401 | 403 => (Exit::NotAuthorised, "G0205"),
                408 | 504 => (Exit::TimedOut, "G0206"),
                501 => (Exit::Failed, "G0209"),
                400 | 413 | 415 | 422 => (Exit::Failed, "G0210"),
                _ => (Exit::Failed, "G0204"),
            };
            Failure::new(exit, Diagnostic::error(code, reason))
        }
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// As `failure`, and a 404 says how to find the right name.
pub(crate) fn failure_with_help(error: ClientError, help: impl Into<String>) -> Failure {
    let mut failure = failure(error);
    if failure.exit == Exit::NotFound
        && let Some(diagnostic) = failure.diagnostics.first_mut()
    {
        diagnostic.help = Some(help.into());
    }
    failure
}

/// What was typed is not of the right form.
pub(crate) fn usage(message: impl Into<String>) -> Failure {
    Failure::new(Exit::Usage, Diagnostic::error("G0208", message))
}

/// A topic as it was typed: `words`, `tenant/ns/words` or in full.
pub(crate) fn parse_topic(text: &str) -> Result<TopicName, String> {
    text.parse()
        .map_err(|error: geminga_model::NameError| error.to_string())
}

/// A namespace as it was typed: `default` alone means `public/default`.
pub(crate) fn parse_namespace(text: &str) -> Result<NamespaceName, String> {
    let full = if text.contains('/') {
        text.to_owned()
    } else {
        format!("public/{text}")
    };
    full.parse()
        .map_err(|error: geminga_model::NameError| error.to_string())
}

/// `earliest`, `latest` or `LEDGER:ENTRY`.
pub(crate) fn parse_message_id(text: &str) -> Result<MessageId, String> {
    match text {
        "earliest" => return Ok(MessageId::EARLIEST),
        "latest" => return Ok(MessageId::LATEST),
        _ => {}
    }
    let numbers: Option<Vec<i64>> = text.split(':').map(|part| part.parse().ok()).collect();
    match numbers.as_deref() {
        Some([ledger, entry]) => Ok(MessageId::new(*ledger, *entry)),
        Some([ledger, entry, partition]) => {
            let partition = i32::try_from(*partition).map_err(|_| "bad partition".to_owned())?;
            Ok(MessageId {
                partition_index: partition,
                ..MessageId::new(*ledger, *entry)
            })
        }
        _ => Err("expected `earliest`, `latest` or LEDGER:ENTRY".to_owned()),
    }
}

/// `KEY=VALUE`.
pub(crate) fn parse_property(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

/// `90`, `90s`, `10m`, `2h`, `7d`: a number alone counts seconds.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 = number
        .parse()
        .map_err(|_| "expected a number such as 90s or 10m")?;
    let seconds = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return Err(format!("`{unit}` is not one of s, m, h, d, w")),
    };
    number
        .checked_mul(seconds)
        .map(Duration::from_secs)
        .ok_or_else(|| "too long".to_owned())
}

/// A time: `10m` (ago), milliseconds since 1970, or RFC 3339. Milliseconds since 1970 come back.
pub(crate) fn parse_time(text: &str) -> Result<u64, String> {
    if text.len() >= 12 && text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().map_err(|_| "too large".to_owned());
    }
    if let Ok(ago) = parse_duration(text) {
        let ago = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
        return Ok(geminga_stdx::Clock::system().now_ms().saturating_sub(ago));
    }
    let time: jiff::Timestamp = text
        .parse()
        .map_err(|_| "expected `10m` ago, milliseconds since 1970, or 2026-01-31T12:00:00Z")?;
    u64::try_from(time.as_millisecond()).map_err(|_| "before 1970".to_owned())
}

/// A number or text of a document, for a table's cell; `-` when it is not there.
pub(crate) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() => format!("{float:.1}"),
            _ => number.to_string(),
        },
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_ids_and_durations_as_they_are_typed() {
        assert_eq!(parse_duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("10m"), Ok(Duration::from_secs(600)));
        assert!(parse_duration("10 minutes").is_err() && parse_duration("m").is_err());
        assert_eq!(parse_time("1700000000000"), Ok(1_700_000_000_000));
        assert_eq!(parse_time("1970-01-01T00:00:01Z"), Ok(1_000));
        assert!(parse_time("yesterday").is_err());
        assert!(parse_time("10m").unwrap() < geminga_stdx::Clock::system().now_ms());
        assert_eq!(parse_message_id("earliest"), Ok(MessageId::EARLIEST));
        assert_eq!(parse_message_id("3:4"), Ok(MessageId::new(3, 4)));
        assert!(parse_message_id("3").is_err() && parse_message_id("a:b").is_err());
    }
}
