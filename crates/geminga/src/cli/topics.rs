//! `geminga topics`: make, look at and remove topics.

use geminga_admin::client::AdminClient;
use geminga_model::{NamespaceName, TopicDomain, TopicName};
use serde_json::{Value, json};

use super::Global;
use super::admin::{self, cell, failure, failure_with_help};
use crate::failure::Outcome;
use crate::output::{self, Format, Table};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  geminga topics list public/default")]
pub(crate) struct TopicsArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the topics of a namespace
    #[command(after_help = "Example:\n  geminga topics list public/default -o json")]
    List {
        /// The namespace
        #[arg(default_value = "public/default", value_parser = admin::parse_namespace)]
        namespace: NamespaceName,
        /// Topics that are not stored, instead of those that are
        #[arg(long)]
        non_persistent: bool,
    },
    /// Create a topic without partitions
    #[command(after_help = "Example:\n  geminga topics create words")]
    Create {
        #[arg(value_parser = admin::parse_topic)]
        topic: TopicName,
        /// A property of the topic; may be repeated
        #[arg(short, long = "property", value_name = "KEY=VALUE", value_parser = admin::parse_property)]
        properties: Vec<(String, String)>,
    },
    /// Create a partitioned topic
    #[command(
        alias = "create-partitioned-topic",
        after_help = "Example:\n  geminga topics create-partitioned words --partitions 4"
    )]
    CreatePartitioned {
        #[arg(value_parser = admin::parse_topic)]
        topic: TopicName,
        /// How many partitions
        #[arg(short, long)]
        partitions: u32,
    },
    /// Give a partitioned topic more partitions
    #[command(
        alias = "update-partitioned-topic",
        after_help = "Example:\n  geminga topics update-partitioned words --partitions 8"
    )]
    UpdatePartitioned {
        #[arg(value_parser = admin::parse_topic)]
        topic: TopicName,
        /// How many partitions in all
        #[arg(short, long)]
        partitions: u32,
    },
    /// Delete a topic with its data and subscriptions
    #[command(after_help = "Example:\n  geminga topics delete words --force")]
    Delete {
        #[arg(value_parser = admin::parse_topic)]
        topic: TopicName,
        /// Close its producers and consumers first
        #[arg(short, long)]
        force: bool,
    },
    /// Show rates, sizes, publishers and subscriptions
    #[command(after_help = "Example:\n  geminga topics stats words")]
    Stats {
        #[arg(value_parser = admin::parse_topic)]
        topic: TopicName,
        /// What is in the storage, instead
        #[arg(long)]
        internal: bool,
    },
    /// Show how many partitions a topic has
    #[command(after_help = "Example:\n  geminga topics partitions words")]
    Partitions {
        #[arg(value_parser = admin::parse_topic)]
        topic: TopicName,
    },
    /// Show the id of the last message
    #[command(after_help = "Example:\n  geminga topics last-message-id words")]
    LastMessageId {
        #[arg(value_parser = admin::parse_topic)]
        topic: TopicName,
    },
    /// Seal a topic: nothing more can be published
    #[command(after_help = "Example:\n  geminga topics terminate words")]
    Terminate {
        #[arg(value_parser = admin::parse_topic)]
        topic: TopicName,
    },
    /// Close a topic; clients connect again and it is loaded from storage
    #[command(after_help = "Example:\n  geminga topics unload words")]
    Unload {
        #[arg(value_parser = admin::parse_topic)]
        topic: TopicName,
    },
}

pub(crate) fn run(args: TopicsArgs, global: &Global) -> Outcome {
    let format = global.format();
    admin::with_client(global, |client| async move {
        match args.command {
            Command::List {
                namespace,
                non_persistent,
            } => {
                let domain = if non_persistent {
                    TopicDomain::NonPersistent
                } else {
                    TopicDomain::Persistent
                };
                list(&client, domain, &namespace, format).await
            }
            Command::Create { topic, properties } => {
                let properties = properties.into_iter().collect();
                client
                    .create_topic(&topic, &properties)
                    .await
                    .map_err(failure)?;
                done(&topic, "created")
            }
            Command::CreatePartitioned { topic, partitions } => {
                client
                    .create_partitioned_topic(&topic, partitions)
                    .await
                    .map_err(failure)?;
                done(&topic, "created")
            }
            Command::UpdatePartitioned { topic, partitions } => {
                client
                    .update_partitioned_topic(&topic, partitions)
                    .await
                    .map_err(failure)?;
                done(&topic, "updated")
            }
            Command::Delete { topic, force } => {
                let result = match client.partitions(&topic).await {
                    Ok(0) => client.delete_topic(&topic, force).await,
                    Ok(_) => client.delete_partitioned_topic(&topic, force).await,
                    Err(error) => Err(error),
                };
                result.map_err(|error| failure_with_help(error, list_help(&topic)))?;
                done(&topic, "deleted")
            }
            Command::Stats { topic, internal } => stats(&client, &topic, internal, format).await,
            Command::Partitions { topic } => {
                let partitions = client
                    .partitions(&topic)
                    .await
                    .map_err(|error| failure_with_help(error, list_help(&topic)))?;
                let data = json!({ "topic": topic.as_str(), "partitions": partitions });
                one_row(format, &data, &["topic", "partitions"], &topic)
            }
            Command::LastMessageId { topic } => {
                let id = client
                    .last_message_id(&topic)
                    .await
                    .map_err(|error| failure_with_help(error, list_help(&topic)))?;
                one_row(
                    format,
                    &id,
                    &["ledgerId", "entryId", "partitionIndex", "batchIndex"],
                    &topic,
                )
            }
            Command::Terminate { topic } => {
                let id = client
                    .terminate_topic(&topic)
                    .await
                    .map_err(|error| failure_with_help(error, list_help(&topic)))?;
                one_row(format, &id, &["ledgerId", "entryId"], &topic)
            }
            Command::Unload { topic } => {
                client
                    .unload_topic(&topic)
                    .await
                    .map_err(|error| failure_with_help(error, list_help(&topic)))?;
                done(&topic, "unloaded")
            }
        }
    })
}

pub(crate) fn list_help(topic: &TopicName) -> String {
    format!(
        "`geminga topics list {}` shows what there is",
        topic.namespace_str()
    )
}

fn done(topic: &TopicName, what: &str) -> Outcome {
    output::note(&format!("{} {what}", topic.as_str()));
    Ok(())
}

fn one_row(format: Format, data: &Value, fields: &[&'static str], topic: &TopicName) -> Outcome {
    output::print(
        format,
        data,
        |_| {
            let mut table = Table::new(fields);
            table.row(fields.iter().map(|field| cell(&data[*field])));
            table
        },
        || vec![topic.as_str().to_owned()],
    )
}

/// A topic of a listing.
#[derive(Debug, PartialEq, Eq, serde::Serialize)]
struct Listed {
    topic: String,
    partitions: u32,
}

async fn list(
    client: &AdminClient,
    domain: TopicDomain,
    namespace: &NamespaceName,
    format: Format,
) -> Outcome {
    let help = format!(
        "`geminga namespaces list {}` shows what there is",
        namespace.tenant()
    );
    let (all, partitioned) = tokio::join!(
        client.topics(domain, namespace),
        client.partitioned_topics(domain, namespace)
    );
    let all = all.map_err(|error| failure_with_help(error, help))?;
    let listed = fold_partitions(&all, &partitioned.map_err(failure)?);
    output::print(
        format,
        &listed,
        |wide| {
            let mut table = Table::new(&["topic", "partitions"]);
            for topic in &listed {
                let name = parsed(&topic.topic)
                    .filter(|_| !wide)
                    .map_or_else(|| topic.topic.clone(), |name| name.short().to_owned());
                let partitions = if topic.partitions == 0 {
                    "-".to_owned()
                } else {
                    topic.partitions.to_string()
                };
                table.row([name, partitions]);
            }
            table
        },
        || listed.iter().map(|topic| topic.topic.clone()).collect(),
    )
}

fn parsed(topic: &str) -> Option<TopicName> {
    topic.parse().ok()
}

/// One row for a partitioned topic instead of one for each partition.
fn fold_partitions(all: &[String], partitioned: &[String]) -> Vec<Listed> {
    let mut listed: Vec<Listed> = partitioned
        .iter()
        .map(|topic| Listed {
            topic: topic.clone(),
            partitions: 0,
        })
        .collect();
    for topic in all {
        let parent = parsed(topic)
            .filter(|name| name.partition().is_some())
            .map(|name| name.parent());
        let row = parent.and_then(|parent| {
            listed
                .iter_mut()
                .find(|row| parsed(&row.topic).is_some_and(|name| name == parent))
        });
        match row {
            Some(row) => row.partitions += 1,
            None => listed.push(Listed {
                topic: topic.clone(),
                partitions: 0,
            }),
        }
    }
    listed.sort_by(|a, b| a.topic.cmp(&b.topic));
    listed
}

async fn stats(client: &AdminClient, topic: &TopicName, internal: bool, format: Format) -> Outcome {
    let partitions = client
        .partitions(topic)
        .await
        .map_err(|error| failure_with_help(error, list_help(topic)))?;
    let report = match (internal, partitions > 0) {
        (false, false) => "stats",
        (false, true) => "partitioned-stats",
        (true, false) => "internalStats",
        (true, true) => "partitioned-internalStats",
    };
    let stats = client
        .topic_report(topic, report)
        .await
        .map_err(|error| failure_with_help(error, list_help(topic)))?;
    output::print(
        format,
        &stats,
        |_| {
            if internal {
                fields_table(&stats)
            } else {
                stats_table(&stats)
            }
        },
        || vec![topic.as_str().to_owned()],
    )
}

/// The plain fields of a document, one a row.
pub(crate) fn fields_table(document: &Value) -> Table {
    let mut table = Table::new(&["field", "value"]);
    for (name, value) in document.as_object().into_iter().flatten() {
        table.row([name.clone(), cell(value)]);
    }
    table
}

fn stats_table(stats: &Value) -> Table {
    let mut table = Table::new(&[
        "subscription",
        "type",
        "backlog",
        "unacked",
        "rate out",
        "consumers",
    ]);
    for (name, subscription) in stats["subscriptions"].as_object().into_iter().flatten() {
        table.row([
            name.clone(),
            cell(&subscription["type"]),
            cell(&subscription["msgBacklog"]),
            cell(&subscription["unackedMessages"]),
            cell(&subscription["msgRateOut"]),
            subscription["consumers"]
                .as_array()
                .map_or(0, Vec::len)
                .to_string(),
        ]);
    }
    let mut top = Table::new(&["topic", "", "", "", "", ""]);
    for (label, field) in [
        ("messages in", "msgInCounter"),
        ("bytes in", "bytesInCounter"),
        ("messages out", "msgOutCounter"),
        ("rate in", "msgRateIn"),
        ("rate out", "msgRateOut"),
        ("stored bytes", "storageSize"),
        ("backlog bytes", "backlogSize"),
    ] {
        // What the server does not keep is not shown.
        if !stats[field].is_null() {
            top.row([label.to_owned(), cell(&stats[field])]);
        }
    }
    let publishers = stats["publishers"].as_array().map_or(0, Vec::len);
    top.row(["publishers".to_owned(), publishers.to_string()]);
    if !table.rows.is_empty() {
        top.row([String::new()]);
        top.row(table.heading.iter().map(|heading| heading.to_uppercase()));
        top.rows.extend(table.rows);
    }
    top
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_fold_into_their_topic() {
        let all = ["a", "b-partition-0", "b-partition-1", "c-partition-0"]
            .map(|t| format!("persistent://public/default/{t}"));
        let partitioned = ["persistent://public/default/b".to_owned()];
        let folded: Vec<(String, u32)> = fold_partitions(&all, &partitioned)
            .into_iter()
            .map(|row| {
                (
                    row.topic.rsplit('/').next().unwrap().to_owned(),
                    row.partitions,
                )
            })
            .collect();
        let want = [("a", 0), ("b", 2), ("c-partition-0", 0)];
        assert_eq!(folded, want.map(|(t, n)| (t.to_owned(), n)));
    }
}
