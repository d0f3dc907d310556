//! The task beside each producer: it finds the broker, opens the link, opens it again when it
//! breaks, and looks at the clock for messages that wait too long.

use std::sync::Arc;

use geminga_proto::{Command, command, pb};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::state::{Core, Link};
use crate::connection::Connection;
use crate::error::{Error, Result};
use crate::lookup::Broker;

/// Runs until the producer is over. `opened` gets the outcome of the first opening.
pub(super) async fn drive(core: Arc<Core>, opened: oneshot::Sender<Result<()>>) {
    tokio::select! {
        () = keep_link(&core, opened) => {}
        () = watch_clock(&core) => {}
        () = core.shared.tasks.cancelled() => {
            core.over(Error::Closed);
        }
    }
}

async fn keep_link(core: &Arc<Core>, opened: oneshot::Sender<Result<()>>) {
    let mut opened = Some(opened);
    let mut backoff = core.shared.new_backoff();
    let mut deadline = Some(Instant::now() + core.shared.operation_timeout);
    loop {
        match open_link(core).await {
            Ok(()) => {
                backoff.reset();
                deadline = None;
                if let Some(opened) = opened.take() {
                    // The builder may have been dropped; then its producer is too.
                    _ = opened.send(Ok(()));
                }
                if unlinked(core).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                let delay = backoff.next_delay();
                let goes_on = match deadline {
                    Some(deadline) => error.is_retriable() && Instant::now() + delay < deadline,
                    None => error.is_retriable_after_open(),
                };
                if !goes_on || core.is_over() {
                    if opened.is_none() {
                        tracing::warn!(topic = %core.topic, %error, "producer is over");
                    }
                    core.over(error.clone());
                    if let Some(opened) = opened.take() {
                        _ = opened.send(Err(error));
                    }
                    return;
                }
                tracing::debug!(topic = %core.topic, %error, ?delay, "producer tries again");
                tokio::select! {
                    () = tokio::time::sleep(delay) => {}
                    () = over(core) => return,
                }
            }
        }
    }
}

/// Resolves when the link is to be opened again; an error when the producer is over.
async fn unlinked(core: &Core) -> Result<()> {
    loop {
        match &core.state.lock().link {
            Link::Open(_) => {}
            Link::Connecting => return Ok(()),
            Link::Over(error) => return Err(error.clone()),
        }
        core.changed.notified().await;
    }
}

async fn over(core: &Core) {
    while !core.is_over() {
        core.changed.notified().await;
    }
    // For whoever looks next.
    core.changed.notify_one();
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

async fn watch_clock(core: &Core) {
    loop {
        match core.tick() {
            Some(next) => {
                tokio::select! {
                    () = tokio::time::sleep_until(next) => {}
                    () = core.timing.notified() => {}
                }
            }
            None => core.timing.notified().await,
        }
    }
}
