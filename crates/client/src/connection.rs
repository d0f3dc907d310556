//! One connection to a broker: its task, its requests, and who gets what arrives.
//!
//! The task owns both halves of the stream. It reads as much as there is, cuts all frames of it,
//! and hands runs of receipts and messages over at once, so that a socket read costs one lock and
//! one wake-up for each producer or consumer in it and not one for each message. Others write by
//! appending to the outbox; what gathers there during one write goes out with the next.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use geminga_proto::command::{self, NO_REQUEST};
use geminga_proto::frame::{Frame, Frames, frame_size_max};
use geminga_proto::pb;
use geminga_proto::send::{Delivery, SendReceipt};
use geminga_proto::{Command, MAX_MESSAGE_SIZE, PROTOCOL_VERSION};
use geminga_stdx::Tasks;
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::sync::{Notify, oneshot};

use crate::consumer::{Entry, Topic};
use crate::error::{Error, Result};
use crate::transport::Io;
use outbox::{Outbox, Writing};

mod outbox;

/// Room kept free in the read buffer.
const READ_BYTES: usize = 128 * 1024;

/// Who gets what arrives for a producer.
pub(crate) trait Producing: Send + Sync {
    /// Receipts, in order.
    fn receipts(&self, from: &Connection, receipts: &[SendReceipt]);
    /// The broker refused a message.
    fn send_failed(&self, from: &Connection, sequence: u64, error: Error);
    /// The connection is over.
    fn disconnected(&self, from: &Connection);
    /// The broker gives the topic up.
    fn closed_by_broker(&self, from: &Connection, assigned: Option<String>);
}

/// What CONNECT says about us.
#[derive(Debug, Clone)]
pub(crate) struct Hello {
    /// Of addresses that a broker names, those with TLS are meant.
    pub(crate) is_tls: bool,
    pub(crate) auth_method: Option<String>,
    pub(crate) auth_data: Option<Bytes>,
    /// The broker that a proxy should connect us to.
    pub(crate) proxy_to_broker_url: Option<String>,
    pub(crate) keep_alive: Duration,
    pub(crate) request_timeout: Duration,
}

/// An open connection.
pub(crate) struct Connection {
    address: String,
    outbox: Mutex<Outbox>,
    /// Something was put into the outbox, or the connection shall end.
    wake: Notify,
    routes: Mutex<Routes>,
    request_timeout: Duration,
    max_message_size: usize,
    is_tls: bool,
    server_version: String,
    goes_by_source_position: bool,
    tells_of_topics: bool,
    /// What a challenge of the broker is answered with.
    auth_response: Command,
}

#[derive(Default)]
struct Routes {
    /// Why the connection is over; nothing is added after that.
    over: Option<Error>,
    next_request_id: u64,
    requests: HashMap<u64, oneshot::Sender<Result<Command>>>,
    producers: HashMap<u64, Arc<dyn Producing>>,
    consumers: HashMap<u64, Arc<Topic>>,
    /// Who is told that there are other topics than before.
    watches: HashMap<u64, Arc<Notify>>,
}

impl Connection {
    /// Says hello on a fresh stream, and runs the connection in a task of `tasks`.
    pub(crate) async fn open(
        mut io: Io,
        address: String,
        hello: Hello,
        tasks: &Tasks,
    ) -> Result<Arc<Self>> {
        let limit = hello.request_timeout;
        let mut buffer = BytesMut::with_capacity(READ_BYTES);
        let connected =
            tokio::time::timeout(limit, handshake(&mut io, &mut buffer, &address, &hello))
                .await
                .map_err(|_| timeout("handshake", limit))??;
        let max_message_size = connected
            .max_message_size
            .and_then(|size| usize::try_from(size).ok())
            .unwrap_or(MAX_MESSAGE_SIZE);
        let flags = connected.feature_flags.as_ref();
        let connection = Arc::new(Self {
            address,
            outbox: Mutex::default(),
            wake: Notify::new(),
            routes: Mutex::default(),
            request_timeout: limit,
            max_message_size,
            is_tls: hello.is_tls,
            server_version: connected.server_version,
            goes_by_source_position: flags
                .is_some_and(|flags| flags.supports_repl_dedup_by_lid_and_eid()),
            tells_of_topics: flags.is_some_and(|flags| flags.supports_topic_watchers()),
            auth_response: auth_response(&hello),
        });
        let running = connection.clone();
        tasks.spawn_cancellable("client connection", async move {
            let end = Ending(running.clone());
            let error = running.run(io, buffer, hello.keep_alive).await;
            tracing::debug!(address = running.address, %error, "connection ended");
            end.0.fail(error);
        });
        Ok(connection)
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// What the broker calls itself.
    pub(crate) fn server_version(&self) -> &str {
        &self.server_version
    }

    /// The largest payload with metadata that the broker takes.
    pub(crate) fn max_message_size(&self) -> usize {
        self.max_message_size
    }

    /// Whether the broker tells repeats of a replicator by their place in the source.
    pub(crate) fn goes_by_source_position(&self) -> bool {
        self.goes_by_source_position
    }

    /// Whether the broker tells of new topics of a pattern.
    pub(crate) fn tells_of_topics(&self) -> bool {
        self.tells_of_topics
    }

    pub(crate) fn is_open(&self) -> bool {
        self.routes.lock().over.is_none()
    }

    /// Sends a command that has no answer.
    pub(crate) fn send(&self, command: &Command) {
        if self.outbox.lock().push_command(command) {
            self.wake.notify_one();
        }
    }

    /// Sends frames that are already encoded, each as a head and a payload.
    pub(crate) fn send_frames<'a>(&self, frames: impl IntoIterator<Item = (&'a Bytes, &'a Bytes)>) {
        let mut outbox = self.outbox.lock();
        let mut first = false;
        for (head, payload) in frames {
            first |= outbox.push_frame(head, payload);
        }
        drop(outbox);
        if first {
            self.wake.notify_one();
        }
    }

    /// Sends a request and waits for its answer. `make` gets the request id.
    pub(crate) async fn request(
        &self,
        what: &'static str,
        make: impl FnOnce(u64) -> Command,
    ) -> Result<Command> {
        let (id, answer) = self.begin_request(make)?;
        match tokio::time::timeout(self.request_timeout, answer).await {
            Ok(Ok(answer)) => answer,
            // The sender is dropped only when the connection is over.
            Ok(Err(_)) => Err(self.over()),
            Err(_) => {
                self.routes.lock().requests.remove(&id);
                Err(timeout(what, self.request_timeout))
            }
        }
    }

    /// Sends a request; the caller waits for the answer as it likes.
    pub(crate) fn begin_request(
        &self,
        make: impl FnOnce(u64) -> Command,
    ) -> Result<(u64, oneshot::Receiver<Result<Command>>)> {
        let (answer, answered) = oneshot::channel();
        let mut routes = self.routes.lock();
        if let Some(error) = &routes.over {
            return Err(error.clone());
        }
        let id = routes.next_request_id;
        routes.next_request_id += 1;
        routes.requests.insert(id, answer);
        drop(routes);
        self.send(&make(id));
        Ok((id, answered))
    }

    /// Waits for a second answer to a request (a producer that waits to become the exclusive one).
    pub(crate) fn await_again(&self, id: u64) -> Result<oneshot::Receiver<Result<Command>>> {
        let (answer, answered) = oneshot::channel();
        let mut routes = self.routes.lock();
        if let Some(error) = &routes.over {
            return Err(error.clone());
        }
        routes.requests.insert(id, answer);
        Ok(answered)
    }

    pub(crate) fn add_producer(&self, id: u64, producer: Arc<dyn Producing>) -> Result<()> {
        let mut routes = self.routes.lock();
        if let Some(error) = &routes.over {
            return Err(error.clone());
        }
        routes.producers.insert(id, producer);
        Ok(())
    }

    pub(crate) fn remove_producer(&self, id: u64) {
        self.routes.lock().producers.remove(&id);
    }

    pub(crate) fn add_consumer(&self, id: u64, consumer: Arc<Topic>) -> Result<()> {
        let mut routes = self.routes.lock();
        if let Some(error) = &routes.over {
            return Err(error.clone());
        }
        routes.consumers.insert(id, consumer);
        Ok(())
    }

    pub(crate) fn remove_consumer(&self, id: u64) {
        self.routes.lock().consumers.remove(&id);
    }

    /// `news` is woken when the broker tells the watch of something, and when the connection is over.
    pub(crate) fn add_watch(&self, id: u64, news: Arc<Notify>) -> Result<()> {
        let mut routes = self.routes.lock();
        if let Some(error) = &routes.over {
            return Err(error.clone());
        }
        routes.watches.insert(id, news);
        Ok(())
    }

    pub(crate) fn remove_watch(&self, id: u64) {
        self.routes.lock().watches.remove(&id);
    }

    /// Ends the connection; everyone on it gets `error`.
    pub(crate) fn fail(&self, error: Error) {
        let (requests, producers, consumers, watches) = {
            let mut routes = self.routes.lock();
            if routes.over.is_some() {
                return;
            }
            routes.over = Some(error.clone());
            (
                std::mem::take(&mut routes.requests),
                std::mem::take(&mut routes.producers),
                std::mem::take(&mut routes.consumers),
                std::mem::take(&mut routes.watches),
            )
        };
        self.wake.notify_one();
        for (_, request) in requests {
            // Nobody may wait any more.
            _ = request.send(Err(error.clone()));
        }
        for (_, producer) in producers {
            producer.disconnected(self);
        }
        for (_, consumer) in consumers {
            consumer.disconnected(self);
        }
        for (_, news) in watches {
            news.notify_one();
        }
    }

    fn over(&self) -> Error {
        self.routes.lock().over.clone().unwrap_or(Error::Closed)
    }

    fn lost(&self, reason: impl ToString) -> Error {
        Error::Disconnected {
            address: self.address.clone(),
            reason: reason.to_string(),
        }
    }

    /// Reads and writes until something ends it; gives the reason.
    async fn run(&self, mut io: Io, mut buffer: BytesMut, keep_alive: Duration) -> Error {
        let mut writing = Writing::default();
        let mut arrivals = Arrivals::default();
        let mut tick = tokio::time::interval(keep_alive);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        tick.reset();
        // Whether anything arrived since the last tick.
        let mut heard = true;
        if let Err(error) = self.process(&mut buffer, &mut arrivals) {
            return error;
        }
        loop {
            if writing.is_empty() {
                self.outbox.lock().take(&mut writing);
            }
            tokio::select! {
                result = writing.write(&mut io.write), if !writing.is_empty() => {
                    if let Err(error) = result {
                        return self.lost(error);
                    }
                }
                () = self.wake.notified(), if writing.is_empty() => {
                    if let Some(error) = &self.routes.lock().over {
                        return error.clone();
                    }
                }
                result = io.read.read_buf(&mut buffer) => {
                    match result {
                        Ok(0) => return self.lost("closed by the broker"),
                        Ok(_) => {}
                        Err(error) => return self.lost(error),
                    }
                    heard = true;
                    if let Err(error) = self.process(&mut buffer, &mut arrivals) {
                        return error;
                    }
                }
                _ = tick.tick() => {
                    if !heard {
                        return self.lost("no sign of life");
                    }
                    heard = false;
                    self.send(&command::ping());
                }
            }
        }
    }

    /// Handles all complete frames in the buffer.
    fn process(&self, buffer: &mut BytesMut, arrivals: &mut Arrivals) -> Result<()> {
        loop {
            let mut frames = Frames::cut(buffer, frame_size_max(self.max_message_size))
                .map_err(|source| self.bad_frame(source))?;
            if frames.is_empty() {
                break;
            }
            while let Some(frame) = frames.next() {
                self.arrived(&frame, arrivals)
                    .map_err(|source| self.bad_frame(source))?;
            }
            self.deliver(arrivals);
        }
        if buffer.capacity() - buffer.len() < READ_BYTES / 2 {
            buffer.reserve(READ_BYTES);
        }
        Ok(())
    }

    fn bad_frame(&self, source: geminga_proto::FrameError) -> Error {
        Error::Frame {
            address: self.address.clone(),
            source,
        }
    }

    fn arrived(
        &self,
        frame: &Frame<'_>,
        arrivals: &mut Arrivals,
    ) -> Result<(), geminga_proto::FrameError> {
        match frame.command_number() {
            Some(7) => {
                if let Some(receipt) = SendReceipt::decode(frame.command_bytes())? {
                    if arrivals.producer_id != receipt.producer_id || !arrivals.entries.is_empty() {
                        self.deliver(arrivals);
                        arrivals.producer_id = receipt.producer_id;
                    }
                    arrivals.receipts.push(receipt);
                    return Ok(());
                }
            }
            Some(9) => {
                if let Some(delivery) = Delivery::decode(frame.command_bytes())? {
                    self.entry(arrivals, Entry::new(&delivery, frame.block_bytes()));
                    return Ok(());
                }
            }
            _ => {}
        }
        let command = frame.command()?;
        if let Command::Message(message) = command {
            self.entry(arrivals, Entry::from_message(&message, frame.block_bytes()));
            return Ok(());
        }
        // What came before is handled before.
        self.deliver(arrivals);
        self.handle(command);
        Ok(())
    }

    fn entry(&self, arrivals: &mut Arrivals, entry: Entry) {
        if arrivals.consumer_id != entry.consumer_id || !arrivals.receipts.is_empty() {
            self.deliver(arrivals);
            arrivals.consumer_id = entry.consumer_id;
        }
        arrivals.entries.push(entry);
    }

    /// Hands the gathered run over.
    fn deliver(&self, arrivals: &mut Arrivals) {
        if !arrivals.receipts.is_empty() {
            let producer = self
                .routes
                .lock()
                .producers
                .get(&arrivals.producer_id)
                .cloned();
            if let Some(producer) = producer {
                producer.receipts(self, &arrivals.receipts);
            }
            arrivals.receipts.clear();
        }
        if !arrivals.entries.is_empty() {
            let consumer = self
                .routes
                .lock()
                .consumers
                .get(&arrivals.consumer_id)
                .cloned();
            if let Some(consumer) = consumer {
                consumer.arrived(self, &mut arrivals.entries);
            }
            arrivals.entries.clear();
        }
    }

    fn handle(&self, command: Command) {
        match command {
            Command::Ping(_) => self.send(&command::pong()),
            Command::Pong(_) => {}
            Command::AuthChallenge(_) => self.send(&self.auth_response),
            Command::SendReceipt(receipt) => {
                let producer = self
                    .routes
                    .lock()
                    .producers
                    .get(&receipt.producer_id)
                    .cloned();
                if let Some(producer) = producer {
                    let id = receipt.message_id.unwrap_or_default();
                    producer.receipts(
                        self,
                        &[SendReceipt {
                            producer_id: receipt.producer_id,
                            sequence_id: receipt.sequence_id,
                            highest_sequence_id: receipt.highest_sequence_id,
                            ledger_id: id.ledger_id,
                            entry_id: id.entry_id,
                        }],
                    );
                }
            }
            Command::SendError(failed) => {
                let producer = self
                    .routes
                    .lock()
                    .producers
                    .get(&failed.producer_id)
                    .cloned();
                if let Some(producer) = producer {
                    producer.send_failed(
                        self,
                        failed.sequence_id,
                        Error::server(failed.error, failed.message),
                    );
                }
            }
            Command::CloseProducer(close) => {
                let producer = self.routes.lock().producers.remove(&close.producer_id);
                if let Some(producer) = producer {
                    let to = [
                        close.assigned_broker_service_url,
                        close.assigned_broker_service_url_tls,
                    ];
                    producer.closed_by_broker(self, self.one_of(to));
                }
            }
            Command::CloseConsumer(close) => {
                let consumer = self.routes.lock().consumers.remove(&close.consumer_id);
                if let Some(consumer) = consumer {
                    let to = [
                        close.assigned_broker_service_url,
                        close.assigned_broker_service_url_tls,
                    ];
                    consumer.closed_by_broker(self, self.one_of(to));
                }
            }
            Command::ActiveConsumerChange(change) => {
                let consumer = self
                    .routes
                    .lock()
                    .consumers
                    .get(&change.consumer_id)
                    .cloned();
                if let Some(consumer) = consumer {
                    consumer.active_changed(change.is_active());
                }
            }
            Command::ReachedEndOfTopic(end) => {
                let consumer = self.routes.lock().consumers.get(&end.consumer_id).cloned();
                if let Some(consumer) = consumer {
                    consumer.reached_end();
                }
            }
            Command::WatchTopicUpdate(update) => {
                let news = self.routes.lock().watches.get(&update.watcher_id).cloned();
                if let Some(news) = news {
                    news.notify_one();
                }
            }
            Command::TopicMigrated(moved) => self.migrated(&moved),
            Command::Error(error) if error.request_id == NO_REQUEST => {
                self.fail(Error::server(error.error, error.message));
            }
            other => self.answer(other),
        }
    }

    /// The address to go to: the plain one, or the one with TLS.
    fn one_of(&self, [plain, tls]: [Option<String>; 2]) -> Option<String> {
        if self.is_tls { tls } else { plain }
    }

    fn migrated(&self, moved: &pb::CommandTopicMigrated) {
        let url = self.one_of([
            moved.broker_service_url.clone(),
            moved.broker_service_url_tls.clone(),
        ]);
        let mut routes = self.routes.lock();
        if moved.resource_type == pb::command_topic_migrated::ResourceType::Producer as i32 {
            if let Some(producer) = routes.producers.remove(&moved.resource_id) {
                drop(routes);
                producer.closed_by_broker(self, url);
            }
        } else if let Some(consumer) = routes.consumers.remove(&moved.resource_id) {
            drop(routes);
            consumer.closed_by_broker(self, url);
        }
    }

    /// Gives an answer to the request that waits for it.
    fn answer(&self, command: Command) {
        let Some((id, answer)) = outcome(command) else {
            return;
        };
        let request = self.routes.lock().requests.remove(&id);
        if let Some(request) = request {
            // The asker may have given up.
            _ = request.send(answer);
        }
    }
}

/// What has arrived and is not handed over yet: a run for one producer or one consumer.
#[derive(Default)]
struct Arrivals {
    producer_id: u64,
    receipts: Vec<SendReceipt>,
    consumer_id: u64,
    entries: Vec<Entry>,
}

/// Tells everyone on a connection that it is over, also when its task is cancelled.
struct Ending(Arc<Connection>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.fail(Error::Closed);
    }
}

fn timeout(what: &'static str, limit: Duration) -> Error {
    Error::Timeout {
        what,
        after_ms: limit.as_millis() as u64,
    }
}

async fn handshake(
    io: &mut Io,
    buffer: &mut BytesMut,
    address: &str,
    hello: &Hello,
) -> Result<pb::CommandConnected> {
    let lost = |reason: String| Error::Disconnected {
        address: address.to_owned(),
        reason,
    };
    let connect = pb::CommandConnect {
        client_version: concat!("Geminga-", env!("CARGO_PKG_VERSION")).to_owned(),
        protocol_version: Some(PROTOCOL_VERSION),
        auth_method_name: hello.auth_method.clone(),
        auth_data: hello.auth_data.clone(),
        proxy_to_broker_url: hello.proxy_to_broker_url.clone(),
        feature_flags: Some(pb::FeatureFlags {
            supports_auth_refresh: Some(true),
            supports_broker_entry_metadata: Some(true),
            supports_partial_producer: Some(true),
            supports_get_partitioned_metadata_without_auto_creation: Some(true),
            // Concerns replicators alone, whose names begin with `pulsar.repl.`.
            supports_repl_dedup_by_lid_and_eid: Some(true),
            ..Default::default()
        }),
        ..Default::default()
    };
    let mut outbox = Outbox::default();
    let mut writing = Writing::default();
    outbox.push_command(&connect.into());
    loop {
        outbox.take(&mut writing);
        while !writing.is_empty() {
            writing
                .write(&mut io.write)
                .await
                .map_err(|error| lost(error.to_string()))?;
        }
        let frame = geminga_proto::frame::cut_one(buffer, frame_size_max(MAX_MESSAGE_SIZE))
            .map_err(|source| Error::Frame {
                address: address.to_owned(),
                source,
            })?;
        match frame {
            Some((Command::Connected(connected), _)) => return Ok(connected),
            Some((Command::Error(error), _)) => {
                return Err(Error::server(error.error, error.message));
            }
            Some((Command::AuthChallenge(_), _)) => outbox.push_command(&auth_response(hello)),
            Some((Command::Ping(_), _)) => outbox.push_command(&command::pong()),
            Some((other, _)) => return Err(Error::UnexpectedAnswer(other.name())),
            None => match io.read.read_buf(buffer).await {
                Ok(0) => return Err(lost("closed by the broker".to_owned())),
                Ok(_) => continue,
                Err(error) => return Err(lost(error.to_string())),
            },
        };
    }
}

fn auth_response(hello: &Hello) -> Command {
    pb::CommandAuthResponse {
        client_version: Some(concat!("Geminga-", env!("CARGO_PKG_VERSION")).to_owned()),
        protocol_version: Some(PROTOCOL_VERSION),
        response: Some(pb::AuthData {
            auth_method_name: hello.auth_method.clone(),
            auth_data: hello.auth_data.clone(),
        }),
    }
    .into()
}

/// The request id of an answer, and whether it is good.
fn outcome(command: Command) -> Option<(u64, Result<Command>)> {
    let failed = |code: Option<i32>, message: &Option<String>| {
        code.map(|code| Error::server(code, message.clone().unwrap_or_default()))
    };
    let (id, error) = match &command {
        Command::Success(answer) => (answer.request_id, None),
        Command::ProducerSuccess(answer) => (answer.request_id, None),
        Command::Error(answer) => (
            answer.request_id,
            Some(Error::server(answer.error, answer.message.clone())),
        ),
        Command::LookupResponse(answer) => {
            (answer.request_id, failed(answer.error, &answer.message))
        }
        Command::PartitionedMetadataResponse(answer) => {
            (answer.request_id, failed(answer.error, &answer.message))
        }
        Command::GetLastMessageIdResponse(answer) => (answer.request_id, None),
        Command::GetTopicsOfNamespaceResponse(answer) => (answer.request_id, None),
        Command::WatchTopicListSuccess(answer) => (answer.request_id, None),
        Command::GetSchemaResponse(answer) => (
            answer.request_id,
            failed(answer.error_code, &answer.error_message),
        ),
        Command::GetOrCreateSchemaResponse(answer) => (
            answer.request_id,
            failed(answer.error_code, &answer.error_message),
        ),
        Command::ConsumerStatsResponse(answer) => (
            answer.request_id,
            failed(answer.error_code, &answer.error_message),
        ),
        Command::AckResponse(answer) => (answer.request_id?, failed(answer.error, &answer.message)),
        Command::TcClientConnectResponse(answer) => {
            (answer.request_id, failed(answer.error, &answer.message))
        }
        Command::NewTxnResponse(answer) => {
            (answer.request_id, failed(answer.error, &answer.message))
        }
        Command::AddPartitionToTxnResponse(answer) => {
            (answer.request_id, failed(answer.error, &answer.message))
        }
        Command::AddSubscriptionToTxnResponse(answer) => {
            (answer.request_id, failed(answer.error, &answer.message))
        }
        Command::EndTxnResponse(answer) => {
            (answer.request_id, failed(answer.error, &answer.message))
        }
        _ => {
            tracing::debug!(command = command.name(), "ignored");
            return None;
        }
    };
    Some((id, error.map_or(Ok(command), Err)))
}
