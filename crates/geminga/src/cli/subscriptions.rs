//! `geminga subscriptions`: make, move, look into and remove subscriptions.

use std::collections::BTreeMap;
use std::time::Duration;

use geminga_admin::client::{AdminClient, ClientError, MessageId};
use geminga_model::TopicName;
use serde_json::{Value, json};

use super::Global;
use super::admin::{self, cell, failure_with_help};
use super::topics::list_help;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Format, Table};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  geminga subscriptions list words")]
pub(crate) struct SubscriptionsArgs {
    #[command(subcommand)]
    command: Command,
}

/// A subscription of a topic.
#[derive(Debug, clap::Args)]
struct Target {
    #[arg(value_parser = admin::parse_topic)]
    topic: TopicName,
    /// The subscription
    subscription: String,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the subscriptions of a topic
    #[command(after_help = "Example:\n  geminga subscriptions list words -o wide")]
    List {
        #[arg(value_parser = admin::parse_topic)]
        topic: TopicName,
    },
    /// Create a durable subscription
    #[command(after_help = "Example:\n  geminga subscriptions create words audit --at earliest")]
    Create {
        #[command(flatten)]
        target: Target,
        /// Where it begins: earliest, latest or LEDGER:ENTRY
        #[arg(long, visible_alias = "messageId", default_value = "latest", value_name = "POSITION",
              value_parser = admin::parse_message_id, allow_hyphen_values = true)]
        at: MessageId,
        /// A property of the subscription; may be repeated
        #[arg(short, long = "property", value_name = "KEY=VALUE", value_parser = admin::parse_property)]
        properties: Vec<(String, String)>,
    },
    /// Delete a subscription and what it has not consumed
    #[command(
        visible_alias = "unsubscribe",
        after_help = "Example:\n  geminga subscriptions delete words audit"
    )]
    Delete {
        #[command(flatten)]
        target: Target,
        /// Close its consumers first
        #[arg(short, long)]
        force: bool,
    },
    /// Move a subscription: what lies behind the new place is delivered again
    #[command(
        visible_alias = "reset-cursor",
        after_help = "Examples:\n  geminga subscriptions reset words audit --to-time 10m\n  \
            geminga subscriptions reset words audit --to earliest"
    )]
    #[group(id = "where", required = true, multiple = false, args = ["to", "to_time"])]
    Reset {
        #[command(flatten)]
        target: Target,
        /// To a message: earliest, latest or LEDGER:ENTRY
        #[arg(long, value_name = "POSITION", value_parser = admin::parse_message_id,
              allow_hyphen_values = true)]
        to: Option<MessageId>,
        /// To the first message published since: 10m (ago), milliseconds since 1970, or RFC 3339
        #[arg(long, value_name = "TIME", value_parser = admin::parse_time)]
        to_time: Option<u64>,
    },
    /// Acknowledge the next messages without delivering them
    #[command(after_help = "Example:\n  geminga subscriptions skip words audit --count 10")]
    Skip {
        #[command(flatten)]
        target: Target,
        /// How many
        #[arg(short = 'n', long)]
        count: u32,
    },
    /// Acknowledge the whole backlog
    #[command(
        visible_alias = "clear-backlog",
        after_help = "Example:\n  geminga subscriptions clear words audit"
    )]
    Clear {
        #[command(flatten)]
        target: Target,
    },
    /// Show the next messages of the backlog without consuming them
    #[command(after_help = "Example:\n  geminga subscriptions peek words audit --count 3")]
    Peek {
        #[command(flatten)]
        target: Target,
        /// How many entries
        #[arg(short = 'n', long, default_value_t = 1)]
        count: u32,
    },
    /// Acknowledge what is older than a time
    #[command(after_help = "Example:\n  geminga subscriptions expire words audit --older-than 1h")]
    Expire {
        #[command(flatten)]
        target: Target,
        /// Age, such as 90s, 10m or 7d
        #[arg(short = 't', long, value_name = "AGE", value_parser = admin::parse_duration)]
        older_than: Duration,
    },
}

pub(crate) fn run(args: SubscriptionsArgs, global: &Global) -> Outcome {
    let format = global.format();
    admin::with_client(global, |client| async move {
        match args.command {
            Command::List { topic } => list(&client, &topic, format).await,
            Command::Create {
                target,
                at,
                properties,
            } => {
                let properties: BTreeMap<_, _> = properties.into_iter().collect();
                let Target {
                    topic,
                    subscription,
                } = &target;
                client
                    .create_subscription(topic, subscription, at, &properties)
                    .await
                    .map_err(|error| failed(error, &target))?;
                done(&target, "created")
            }
            Command::Delete { target, force } => {
                client
                    .delete_subscription(&target.topic, &target.subscription, force)
                    .await
                    .map_err(|error| failed(error, &target))?;
                done(&target, "deleted")
            }
            Command::Reset {
                target,
                to,
                to_time,
            } => {
                let Target {
                    topic,
                    subscription,
                } = &target;
                let result = match (to, to_time) {
                    (Some(id), _) => client.reset_by_id(topic, subscription, id).await,
                    (None, time) => {
                        client
                            .reset_by_time(topic, subscription, time.unwrap_or_default())
                            .await
                    }
                };
                result.map_err(|error| failed(error, &target))?;
                done(&target, "reset")
            }
            Command::Skip { target, count } => {
                client
                    .skip(&target.topic, &target.subscription, count)
                    .await
                    .map_err(|error| failed(error, &target))?;
                done(&target, "moved")
            }
            Command::Clear { target } => {
                client
                    .skip_all(&target.topic, &target.subscription)
                    .await
                    .map_err(|error| failed(error, &target))?;
                done(&target, "cleared")
            }
            Command::Peek { target, count } => peek(&client, &target, count, format).await,
            Command::Expire { target, older_than } => {
                client
                    .expire(&target.topic, &target.subscription, older_than.as_secs())
                    .await
                    .map_err(|error| failed(error, &target))?;
                done(&target, "expired")
            }
        }
    })
}

fn failed(error: ClientError, target: &Target) -> Failure {
    let topic = &target.topic;
    failure_with_help(
        error,
        format!(
            "`geminga subscriptions list {}` shows what there is",
            topic.short()
        ),
    )
}

fn done(target: &Target, what: &str) -> Outcome {
    output::note(&format!(
        "{} of {} {what}",
        target.subscription,
        target.topic.as_str()
    ));
    Ok(())
}

async fn list(client: &AdminClient, topic: &TopicName, format: Format) -> Outcome {
    let lost = |error| failure_with_help(error, list_help(topic));
    if format == Format::Name {
        let names = client.subscriptions(topic).await.map_err(lost)?;
        return output::print(format, &names, |_| Table::default(), || names.clone());
    }
    let report = match client.partitions(topic).await.map_err(lost)? {
        0 => "stats",
        _ => "partitioned-stats",
    };
    let stats = client.topic_report(topic, report).await.map_err(lost)?;
    let empty = serde_json::Map::new();
    let subscriptions = stats["subscriptions"].as_object().unwrap_or(&empty);
    output::print(
        format,
        subscriptions,
        |wide| {
            let mut heading = vec!["subscription", "type", "backlog", "consumers"];
            if wide {
                heading.extend(["unacked", "delivered", "rate out", "durable"]);
            }
            let mut table = Table::new(&heading);
            for (name, subscription) in subscriptions {
                let mut row = vec![
                    name.clone(),
                    cell(&subscription["type"]),
                    cell(&subscription["msgBacklog"]),
                    subscription["consumers"]
                        .as_array()
                        .map_or(0, Vec::len)
                        .to_string(),
                ];
                if wide {
                    let fields = [
                        "unackedMessages",
                        "msgOutCounter",
                        "msgRateOut",
                        "isDurable",
                    ];
                    row.extend(fields.map(|field| cell(&subscription[field])));
                }
                table.row(row);
            }
            table
        },
        || subscriptions.keys().cloned().collect(),
    )
}

async fn peek(client: &AdminClient, target: &Target, count: u32, format: Format) -> Outcome {
    let mut messages: Vec<Value> = Vec::new();
    for position in 1..=count {
        match client
            .peek(&target.topic, &target.subscription, position)
            .await
        {
            Ok(reply) => {
                let header = |name: &str| {
                    reply
                        .headers
                        .get(name)
                        .and_then(|value| value.to_str().ok())
                        .unwrap_or("")
                };
                let properties: Value =
                    serde_json::from_str(header("X-Pulsar-PROPERTY")).unwrap_or(Value::Null);
                messages.push(json!({
                    "id": header("X-Pulsar-Message-ID"),
                    "publishTime": header("X-Pulsar-publish-time"),
                    "key": header("X-Pulsar-partition-key"),
                    "batch": header("X-Pulsar-num-batch-message").parse::<u32>().unwrap_or(0),
                    "compression": header("X-Pulsar-compression"),
                    "bytes": reply.body.len(),
                    "properties": properties,
                    "payload": String::from_utf8_lossy(&reply.body),
                }));
            }
            // The end of the backlog.
            Err(error) if error.status() == Some(404) && position > 1 => break,
            Err(error) => return Err(failed(error, target)),
        }
    }
    output::print(
        format,
        &messages,
        |wide| {
            let mut heading = vec!["id", "published", "key", "bytes", "payload"];
            if wide {
                heading.push("properties");
            }
            let mut table = Table::new(&heading);
            for message in &messages {
                let payload: String = cell(&message["payload"])
                    .chars()
                    .map(|c| if c.is_control() { '.' } else { c })
                    .take(if wide { 400 } else { 60 })
                    .collect();
                let mut row = ["id", "publishTime", "key", "bytes"]
                    .map(|f| cell(&message[f]))
                    .to_vec();
                row.push(payload);
                if wide {
                    row.push(cell(&message["properties"]));
                }
                table.row(row);
            }
            table
        },
        || {
            messages
                .iter()
                .map(|message| cell(&message["id"]))
                .collect()
        },
    )
}
