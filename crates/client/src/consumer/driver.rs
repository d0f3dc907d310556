//! How the link of a consumer's topic to its broker is opened.

use std::fmt::Display;
use std::sync::Arc;

use geminga_proto::pb::ServerError;
use geminga_proto::{Command, command, pb};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::settings::{InitialPosition, KeyShared, Options, SubType};
use super::topic::{Link, Topic};
use crate::client::Shared;
use crate::connection::Connection;
use crate::error::{Error, Result};
use crate::link::Linked;
use crate::lookup::Broker;
use crate::schema::{Schema, current_schema};

impl Linked for Topic {
    const WHAT: &'static str = "consumer";

    fn shared(&self) -> &Shared {
        &self.shared
    }

    fn topic(&self) -> &(dyn Display + Sync) {
        &self.name
    }

    fn changed(&self) -> &Notify {
        &self.changed
    }

    fn timing(&self) -> &Notify {
        &self.timing
    }

    fn tick(&self) -> Option<Instant> {
        self.tick()
    }

    fn wants_link(&self) -> Result<bool> {
        let state = self.state.lock();
        match &state.link {
            Link::Connecting => Ok(!state.seeking),
            Link::Open(_) => Ok(false),
            Link::Over(error) => Err(error.clone()),
        }
    }

    async fn open(self: &Arc<Self>) -> Result<()> {
        open_link(self).await
    }

    fn over(&self, error: Error) {
        self.over(error);
    }

    fn end(&self, error: Error) {
        self.over(error.clone());
        self.inbox.end(error);
    }
}

async fn open_link(topic: &Arc<Topic>) -> Result<()> {
    let assigned = topic.state.lock().assigned.take();
    let broker = match assigned.as_deref().and_then(Broker::assigned) {
        Some(broker) => broker,
        None => topic.shared.lookup(&topic.name).await?,
    };
    let connection = topic.shared.broker_connection(&broker, topic.id).await?;
    connection.add_consumer(topic.id, topic.clone())?;
    match subscribe(topic, &connection).await {
        Ok(_) => {
            if topic.is_over() {
                connection.remove_consumer(topic.id);
                connection.send(&close_command(topic.id, command::NO_REQUEST));
                return Err(Error::Closed);
            }
            topic.opened(connection);
            Ok(())
        }
        Err(error) => {
            connection.remove_consumer(topic.id);
            if matches!(error, Error::Timeout { .. }) {
                // The broker may still make it; it must not stand in the way of the next attempt.
                connection.send(&close_command(topic.id, command::NO_REQUEST));
            }
            Err(error)
        }
    }
}

/// With the schema, or where that is a wish alone and the topic's messages have none, without.
async fn subscribe(topic: &Topic, connection: &Arc<Connection>) -> Result<Command> {
    let options = &topic.options;
    let refused = Some(ServerError::IncompatibleSchema);
    match subscribe_as(topic, connection, options.schema.as_ref()).await {
        Err(error)
            if options.schema_optional
                && options.schema.is_some()
                && error.server_error() == refused =>
        {
            match current_schema(connection, &topic.name).await {
                Ok(None) => subscribe_as(topic, connection, None).await,
                _ => Err(error),
            }
        }
        answered => answered,
    }
}

async fn subscribe_as(
    topic: &Topic,
    connection: &Arc<Connection>,
    schema: Option<&Schema>,
) -> Result<Command> {
    let options = &topic.options;
    let start = (!options.durable).then(|| topic.start_position()).flatten();
    let epoch = topic.state.lock().epoch;
    let make = |request_id| {
        let subscribe = pb::CommandSubscribe {
            topic: topic.name.as_str().to_owned(),
            subscription: options.subscription.clone(),
            sub_type: wire_type(options.sub_type) as i32,
            consumer_id: topic.id,
            request_id,
            consumer_name: Some(options.name.clone()),
            priority_level: Some(options.priority),
            durable: Some(options.durable),
            force_topic_creation: Some(options.create_topic),
            start_message_id: start.map(|id| id.to_data()),
            metadata: command::key_values(options.properties.iter().cloned()),
            read_compacted: Some(options.read_compacted),
            initial_position: Some(match options.initial_position {
                InitialPosition::Latest => pb::command_subscribe::InitialPosition::Latest,
                InitialPosition::Earliest => pb::command_subscribe::InitialPosition::Earliest,
            } as i32),
            key_shared_meta: key_shared(options),
            subscription_properties: command::key_values(
                options.subscription_properties.iter().cloned(),
            ),
            consumer_epoch: Some(epoch),
            schema: schema.map(|schema| schema.0.clone()),
            ..Default::default()
        };
        Command::from(subscribe)
    };
    connection.request("subscribe", make).await
}

fn wire_type(sub_type: SubType) -> pb::command_subscribe::SubType {
    use pb::command_subscribe::SubType as Wire;
    match sub_type {
        SubType::Exclusive => Wire::Exclusive,
        SubType::Shared => Wire::Shared,
        SubType::Failover => Wire::Failover,
        SubType::KeyShared => Wire::KeyShared,
    }
}

fn key_shared(options: &Options) -> Option<pb::KeySharedMeta> {
    if options.sub_type != SubType::KeyShared {
        return None;
    }
    Some(match &options.key_shared {
        KeyShared::AutoSplit { allow_out_of_order } => pb::KeySharedMeta {
            key_shared_mode: pb::KeySharedMode::AutoSplit as i32,
            hash_ranges: Vec::new(),
            allow_out_of_order_delivery: Some(*allow_out_of_order),
        },
        KeyShared::Sticky { ranges } => pb::KeySharedMeta {
            key_shared_mode: pb::KeySharedMode::Sticky as i32,
            hash_ranges: ranges
                .iter()
                .map(|range| pb::IntRange {
                    start: i32::from(*range.start()),
                    end: i32::from(*range.end()),
                })
                .collect(),
            allow_out_of_order_delivery: None,
        },
    })
}

pub(super) fn close_command(consumer_id: u64, request_id: u64) -> Command {
    pb::CommandCloseConsumer {
        consumer_id,
        request_id,
        ..Default::default()
    }
    .into()
}
