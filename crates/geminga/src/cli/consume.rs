//! `geminga consume`: messages to stdout, one a line, or as JSON.

use std::io::Write;
use std::time::Duration;

use clap::ValueEnum;
use geminga_client::{InitialPosition, ReceivedMessage, SubType};
use serde_json::json;

use super::{Global, block_on, client};
use crate::failure::Outcome;
use crate::output::{self, Format};

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Type {
    Exclusive,
    Shared,
    Failover,
    KeyShared,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum From {
    Earliest,
    Latest,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    geminga consume quakes --from earliest -n 10\n  \
    geminga consume quakes -s audit --type shared\n  \
    geminga consume quakes --from earliest --until-idle 1s -o json | head")]
pub(crate) struct ConsumeArgs {
    /// The topic, like `quakes` or `persistent://public/default/quakes`
    topic: String,
    /// The subscription, which keeps the place; without it nothing is kept
    #[arg(short, long)]
    subscription: Option<String>,
    /// The subscription's type
    #[arg(short = 't', long = "type", value_enum, default_value = "exclusive")]
    sub_type: Type,
    /// Where a new subscription begins
    #[arg(long, value_enum, default_value = "latest")]
    from: From,
    /// End after this many messages
    #[arg(short = 'n', long, value_name = "N")]
    count: Option<u64>,
    /// End when nothing has come for this long
    #[arg(long, value_name = "TIME", value_parser = geminga_stdx::size::parse_duration)]
    until_idle: Option<Duration>,
}

pub(crate) fn run(args: ConsumeArgs, global: &Global) -> Outcome {
    block_on(async {
        let failed = |error| client::failure(&error, global);
        let connection = client::client(global).await?;
        let mut builder = connection
            .consumer(args.topic.as_str())
            .sub_type(match args.sub_type {
                Type::Exclusive => SubType::Exclusive,
                Type::Shared => SubType::Shared,
                Type::Failover => SubType::Failover,
                Type::KeyShared => SubType::KeyShared,
            })
            .initial_position(match args.from {
                From::Earliest => InitialPosition::Earliest,
                From::Latest => InitialPosition::Latest,
            });
        builder = match &args.subscription {
            Some(name) => builder.subscription(name.clone()),
            None => {
                let name = format!(
                    "geminga-consume-{}",
                    geminga_stdx::Random::from_entropy().name(8)
                );
                builder.subscription(name).durable(false)
            }
        };
        let mut consumer = builder.build().await.map_err(failed)?;
        let mut left = args.count.unwrap_or(u64::MAX);
        while left > 0 {
            let max = usize::try_from(left).unwrap_or(usize::MAX).min(1000);
            let next = consumer.recv_batch(max);
            let messages = match args.until_idle {
                None => tokio::select! {
                    messages = next => messages.map_err(failed)?,
                    _ = tokio::signal::ctrl_c() => break,
                },
                Some(limit) => match tokio::time::timeout(limit, next).await {
                    Ok(messages) => messages.map_err(failed)?,
                    Err(_) => break,
                },
            };
            left -= messages.len() as u64;
            if !print(&messages, global.format())? {
                break;
            }
            // Printed, so done: a closed pipe before this leaves them to be delivered again.
            consumer
                .ack_many(messages.iter().map(|m| &m.id))
                .await
                .map_err(failed)?;
        }
        consumer.close().await.map_err(failed)
    })
}

/// Prints messages; false when the reader of stdout has gone.
fn print(messages: &[ReceivedMessage], format: Format) -> Outcome<bool> {
    let mut text = Vec::new();
    for message in messages {
        match format {
            Format::Json | Format::Yaml => {
                let payload = match std::str::from_utf8(&message.payload) {
                    Ok(payload) => ("payload", payload.to_owned()),
                    Err(_) => (
                        "payload64",
                        geminga_proto::key::encode_base64(&message.payload),
                    ),
                };
                let properties: serde_json::Map<String, serde_json::Value> = message
                    .properties
                    .iter()
                    .map(|(k, v)| (k.clone(), v.clone().into()))
                    .collect();
                let mut row = json!({
                    "topic": message.topic.as_ref(),
                    "id": message.id.to_string(),
                    "publishTime": message.publish_time,
                });
                if let Some(key) = &message.key {
                    row["key"] = key.clone().into();
                }
                if let Some(ms) = message.event_time {
                    row["eventTime"] = ms.into();
                }
                if !properties.is_empty() {
                    row["properties"] = properties.into();
                }
                row[payload.0] = payload.1.into();
                writeln!(text, "{row}")?;
            }
            Format::Table | Format::Name => {
                text.extend_from_slice(&message.payload);
                text.push(b'\n');
            }
            Format::Wide => {
                let key = message.key.as_deref().unwrap_or("-");
                write!(text, "{}\t{key}\t", message.id)?;
                text.extend_from_slice(&message.payload);
                text.push(b'\n');
            }
        }
    }
    let mut out = std::io::stdout().lock();
    match out.write_all(&text).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            output::note("stdout was closed: the last messages are not acknowledged");
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}
