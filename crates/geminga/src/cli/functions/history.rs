//! `functions versions`, `rollback` and `logs`: what was, and what is said.

use std::io::Write;

use geminga_admin::client::{AdminClient, Component};
use geminga_client::MessageId;
use geminga_stdx::Diagnostic;
use serde_json::{Value, json};

use crate::cli::component::{NameArgs, failed};
use crate::cli::{Global, client};
use crate::failure::{Exit, Failure, Outcome};
use crate::output::{self, Format, Table};

#[derive(Debug, clap::Args)]
pub(super) struct VersionsArgs {
    #[command(flatten)]
    name: NameArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct RollbackArgs {
    #[command(flatten)]
    name: NameArgs,
    /// The version to go back to; the one before when absent
    #[arg(long, value_name = "VERSION")]
    to_version: Option<u64>,
}

#[derive(Debug, clap::Args)]
pub(super) struct LogsArgs {
    #[command(flatten)]
    name: NameArgs,
    /// Go on with what comes
    #[arg(short, long)]
    follow: bool,
    /// Only what one instance says
    #[arg(long)]
    instance_id: Option<u32>,
    /// Only what is said about this message, by its id
    #[arg(long, value_name = "MESSAGE-ID")]
    event: Option<String>,
    /// Only lines of this level or worse: debug, info, warn, error
    #[arg(long, value_name = "LEVEL", value_parser = ["debug", "info", "warn", "error"])]
    level: Option<String>,
}

pub(super) async fn versions(client: &AdminClient, args: &VersionsArgs, format: Format) -> Outcome {
    let name = args.name.resolve()?;
    let path = format!("{}/versions", path_of(&name.fqfn()));
    let versions = client.document(&path).await;
    let versions = versions.map_err(|error| failed(Component::Function, error))?;
    let rows: Vec<[String; 3]> = versions
        .as_array()
        .into_iter()
        .flatten()
        .map(|version| {
            let package = version["package"].as_str().unwrap_or("-");
            let current = if version["current"] == true {
                "runs"
            } else {
                ""
            };
            [
                version["version"].to_string(),
                current.to_owned(),
                package.to_owned(),
            ]
        })
        .collect();
    output::print(
        format,
        &versions,
        |_| {
            let mut table = Table::new(&["version", "", "package"]);
            for row in &rows {
                table.row(row.clone());
            }
            table
        },
        || rows.iter().map(|row| row[0].clone()).collect(),
    )
}

pub(super) async fn roll_back(client: &AdminClient, args: &RollbackArgs) -> Outcome {
    let name = args.name.resolve()?;
    let to = args
        .to_version
        .map(|to| format!("?version={to}"))
        .unwrap_or_default();
    let path = format!("{}/rollback{to}", path_of(&name.fqfn()));
    let reply = client
        .send(geminga_admin::client::Method::POST, &path, None)
        .await;
    let reply = reply.map_err(|error| failed(Component::Function, error))?;
    let said: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    output::note(&format!(
        "function {name} is what it was before, as version {}",
        said["version"]
    ));
    Ok(())
}

fn path_of(name: &geminga_admin::client::Fqfn<'_>) -> String {
    use geminga_admin::client::segment;
    format!(
        "/admin/v3/functions/{}/{}/{}",
        segment(name.tenant),
        segment(name.namespace),
        segment(name.name)
    )
}

/// Levels from the least to the worst.
const LEVELS: [&str; 5] = ["TRACE", "DEBUG", "INFO", "WARN", "ERROR"];

fn rank(level: &str) -> usize {
    let level = level.to_ascii_uppercase();
    // CRITICAL and FATAL of some languages are as bad as it gets.
    LEVELS
        .iter()
        .position(|known| level.starts_with(known))
        .unwrap_or(LEVELS.len())
}

pub(super) async fn logs(admin: &AdminClient, args: &LogsArgs, global: &Global) -> Outcome {
    let name = args.name.resolve()?;
    let config = admin
        .component_config(Component::Function, name.fqfn())
        .await;
    let config = config.map_err(|error| failed(Component::Function, error))?;
    let Some(topic) = config["logTopic"].as_str() else {
        let what = format!("the function {name} has no log topic");
        let help = format!(
            "geminga functions update {name} --log-topic {}-logs",
            name.fqfn().name
        );
        return Err(Failure::new(
            Exit::NotFound,
            Diagnostic::error("G0202", what).help(help),
        ));
    };
    let fqfn = name.to_string();
    let wants = |property: &dyn Fn(&str) -> Option<String>| {
        let is = |name: &str, wanted: &str| property(name).as_deref() == Some(wanted);
        let instance = args.instance_id.map(|n| n.to_string());
        let worst = args.level.as_deref().map_or(0, rank);
        is("fqn", &fqfn)
            && instance.is_none_or(|n| is("instance", &n))
            && args.event.as_deref().is_none_or(|id| is("messageId", id))
            && (worst == 0 || rank(&property("loglevel").unwrap_or_default()) >= worst)
    };
    let client = client::client(global).await?;
    let failed = |error: geminga_client::Error| client::failure(&error, global);
    let reader = client
        .reader(topic)
        .start(MessageId::EARLIEST)
        .build()
        .await;
    let mut reader = reader.map_err(failed)?;
    loop {
        if !args.follow && !reader.has_message_available().await.map_err(failed)? {
            return Ok(());
        }
        let messages = tokio::select! {
            messages = reader.next_batch(1000) => messages.map_err(failed)?,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        let mut text = Vec::new();
        for message in &messages {
            let property = |name: &str| message.property(name).map(str::to_owned);
            if !wants(&property) {
                continue;
            }
            let (level, instance) = (
                property("loglevel").unwrap_or_default(),
                property("instance").unwrap_or_default(),
            );
            let said = String::from_utf8_lossy(&message.payload);
            if global.format() == Format::Json {
                let row = json!({
                    "time": message.publish_time, "level": level, "instance": instance,
                    "messageId": property("messageId"), "text": said,
                });
                writeln!(text, "{row}")?;
            } else {
                writeln!(text, "{fqfn}:{instance} {level:5} {}", said.trim_end())?;
            }
        }
        let mut out = std::io::stdout().lock();
        match out.write_all(&text).and_then(|()| out.flush()) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_have_an_order() {
        assert!(rank("debug") < rank("INFO") && rank("WARNING") < rank("ERROR"));
        assert!(rank("FATAL") > rank("ERROR") && rank("trace") == 0);
    }
}
