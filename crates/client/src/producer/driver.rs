//! How a producer's link to its broker is opened.

use std::fmt::Display;
use std::sync::Arc;

use geminga_proto::{Command, command, pb};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::state::{Core, Link};
use crate::client::Shared;
use crate::connection::Connection;
use crate::error::{Error, Result};
use crate::link::Linked;
use crate::lookup::Broker;

impl Linked for Core {
    const WHAT: &'static str = "producer";

    fn shared(&self) -> &Shared {
        &self.shared
    }

    fn topic(&self) -> &(dyn Display + Sync) {
        &self.topic
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
        match &self.state.lock().link {
            Link::Open(_) => Ok(false),
            Link::Connecting => Ok(true),
            Link::Over(error) => Err(error.clone()),
        }
    }

    async fn open(self: &Arc<Self>) -> Result<()> {
        open_link(self).await
    }

    fn over(&self, error: Error) {
        self.over(error);
    }
}

async fn open_link(core: &Arc<Core>) -> Result<()> {
    let assigned = core.state.lock().assigned.take();
    let broker = match assigned.as_deref().and_then(Broker::assigned) {
        Some(broker) => broker,
        None => core.shared.lookup(&core.topic).await?,
    };
    let connection = core.shared.broker_connection(&broker, core.id).await?;
    connection.add_producer(core.id, core.clone())?;
    let result = register(core, &connection).await;
    match result {
        Ok(success) => {
            core.linked(connection, &success);
            Ok(())
        }
        Err(error) => {
            connection.remove_producer(core.id);
            if matches!(error, Error::Timeout { .. }) {
                // The broker may still make it; it must not stand in the way of the next attempt.
                connection.send(&close_command(core.id, command::NO_REQUEST));
            }
            Err(error)
        }
    }
}

async fn register(core: &Core, connection: &Arc<Connection>) -> Result<pb::CommandProducerSuccess> {
    let options = &core.options;
    let mut id = 0;
    let make = |request_id| {
        id = request_id;
        let state = core.state.lock();
        let command = pb::CommandProducer {
            topic: core.topic.as_str().to_owned(),
            producer_id: core.id,
            request_id,
            producer_name: state.name.clone(),
            metadata: command::key_values(options.properties.iter().cloned()),
            epoch: Some(state.epoch),
            user_provided_producer_name: Some(!state.name_is_generated),
            producer_access_mode: Some(options.access_mode as i32),
            topic_epoch: state.topic_epoch,
            schema: options.schema.as_ref().map(|schema| schema.0.clone()),
            initial_subscription_name: options.initial_subscription.clone(),
            ..Default::default()
        };
        Command::from(command)
    };
    let success = producer_success(connection.request("producer", make).await?)?;
    if success.producer_ready() {
        return Ok(success);
    }
    // Another producer is the exclusive one: the same request is answered again when it is gone.
    loop {
        let again = connection.await_again(id)?;
        let success = again
            .await
            .map_err(|_| Error::Closed)?
            .and_then(producer_success)?;
        if success.producer_ready() {
            return Ok(success);
        }
    }
}

fn producer_success(answer: Command) -> Result<pb::CommandProducerSuccess> {
    match answer {
        Command::ProducerSuccess(success) => Ok(success),
        other => Err(Error::UnexpectedAnswer(other.name())),
    }
}

pub(super) fn close_command(producer_id: u64, request_id: u64) -> Command {
    pb::CommandCloseProducer {
        producer_id,
        request_id,
        ..Default::default()
    }
    .into()
}
