//! One task for each connection: reads a chunk, cuts all frames of it, handles them in order, and
//! writes what is queued. What needs the disk runs beside it and comes back as a job.
//!
//! Budget of the hot path, to be kept:
//! - a SEND costs no allocation beside the count on its slice of the read buffer, no lock beside
//!   one topic lock for a run of consecutive SENDs of one producer, and no wake-up of its own;
//! - a MESSAGE costs one head encoded into the shared buffer of the outbox and one copy (small) or
//!   one counted slice (large) of its block.
//!
//! What must hold: bad input gets Pulsar's error or a closed connection, never a panic; nobody else
//! notices. The socket is not read while too much of this connection waits for the disk.

pub(crate) mod consume;
pub(crate) mod handshake;
mod input;
pub(crate) mod lookup;
pub(crate) mod produce;
pub(crate) mod rights;
pub(crate) mod schema;
pub(crate) mod subscribe;
pub(crate) mod transaction;
pub(crate) mod watch;

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use geminga_proto::command::{error, ping, pong};
use geminga_proto::frame::{Frame, Frames, frame_size_max};
use geminga_proto::{Command, FrameError};
use geminga_storage::managed::ReadBuffer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::Instant;

use crate::broker::Core;
use crate::error::BrokerError;
use crate::peer::Peer;
use crate::producer::Producer;
use crate::topic::Topic;
use crate::topic::policy::SendLimits;
use crate::topic::publish::Batch;

use consume::ConsumerSlot;
use input::Input;
use produce::ProducerSlot;

/// Slices given to one vectored write.
const SLICES_MAX: usize = 64;
/// Bytes read before other tasks get their turn. A task that this one wakes can be run by
/// no other worker as long as it goes on, and with a client that floods, or takes what it catches up
/// with as fast as it is written, it would go on for seconds.
const READ_TURN_BYTES: usize = 128 << 10;
/// Writing is cheaper: so much takes a fifth of a millisecond.
const WRITE_TURN_BYTES: usize = 512 << 10;
/// Bytes given to one write: a socket may take megabytes, and others wait meanwhile.
const WRITE_MOST: usize = 256 << 10;
/// Requests of one connection under way beside its task.
const REQUESTS_MAX: usize = 512;

pub(crate) struct Connection {
    pub(crate) core: Arc<Core>,
    pub(crate) peer: Arc<Peer>,
    pub(crate) producers: HashMap<u64, ProducerSlot>,
    /// Producers that wait for exclusive access: in `producers` as opening.
    pub(crate) waiting_producers: HashMap<u64, (Arc<Topic>, Arc<Producer>)>,
    pub(crate) consumers: HashMap<u64, ConsumerSlot>,
    /// Producers that we closed: SENDs that were on their way are ignored for a while.
    pub(crate) recently_closed: HashMap<u64, Instant>,
    pub(crate) ready: bool,
    pub(crate) login: handshake::Login,
    pub(crate) requests: usize,
    /// Frames that wait because so many requests are under way.
    held: Frames,
    /// The memory that they are in.
    held_in: Option<ReadBuffer>,
    /// There are such, here or in the read buffer.
    behind: bool,
    pub(crate) batch: Batch,
    /// Whose turn it is when the outbox has room again.
    pub(crate) turn: usize,
    /// The topic of the batch, and what it takes.
    pub(crate) batch_topic: Option<Arc<Topic>>,
    send_limits: SendLimits,
    /// The last transaction that was found to be this client's.
    txn_checked: Option<crate::transaction::TxnId>,
    /// Rights changed while something was being opened.
    rights_unsure: bool,
    next_op: u64,
    /// A PING was sent and nothing has come since.
    silent: bool,
    /// Flush what is queued, then end.
    closing: bool,
}

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Closed {
    #[error("closed by the peer")]
    Eof,
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("no sign of life for two keep-alive intervals")]
    Silent,
    #[error("{0}")]
    Protocol(&'static str),
    #[error("closed by the broker")]
    Asked,
    #[error("not let in: {0}")]
    Refused(#[from] crate::auth::AuthError),
}

enum Event {
    Read(usize),
    Tick,
    /// The client's credentials are valid no longer.
    Expired,
    /// Jobs were taken, or so many bytes written.
    Progress(usize),
}

/// Serves a connection until it ends.
pub(crate) async fn serve<S>(core: Arc<Core>, stream: S, peer: Arc<Peer>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut connection = Connection {
        core: core.clone(),
        peer: peer.clone(),
        producers: HashMap::new(),
        waiting_producers: HashMap::new(),
        consumers: HashMap::new(),
        recently_closed: HashMap::new(),
        ready: false,
        login: handshake::Login::default(),
        requests: 0,
        held: Frames::default(),
        held_in: None,
        behind: false,
        batch: Batch::default(),
        turn: 0,
        batch_topic: None,
        send_limits: SendLimits::default(),
        txn_checked: None,
        rights_unsure: false,
        next_op: 0,
        silent: false,
        closing: false,
    };
    let reason = connection.run(stream).await;
    match &reason {
        Closed::Eof | Closed::Asked => {
            tracing::debug!(peer = %peer.address, "connection closed: {reason}");
        }
        _ => tracing::info!(peer = %peer.address, "connection closed: {reason}"),
    }
    connection.end();
}

impl Connection {
    async fn run<S>(&mut self, mut stream: S) -> Closed
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let interval = Duration::from_secs(self.core.config.keep_alive_interval_seconds);
        let mut tick = Box::pin(tokio::time::sleep(interval));
        let limit = frame_size_max(self.core.config.max_message_size);
        let mut input = Input::new();
        let mut output = Output::default();
        let (mut read, mut written) = (0, 0);
        loop {
            let event =
                poll_fn(|cx| self.poll(cx, &mut stream, &mut input, &mut output, tick.as_mut()));
            match event.await {
                Err(closed) => return closed,
                Ok(Event::Progress(count)) => {
                    self.after_write();
                    if self.behind
                        && let Err(closed) = self.handle_input(&mut input, limit)
                    {
                        self.flush_now(&mut stream, &mut output).await;
                        return closed;
                    }
                    written += count;
                }
                Ok(Event::Tick) => {
                    if !self.ready || (self.silent && !self.must_pause()) {
                        return Closed::Silent;
                    }
                    self.silent = true;
                    self.peer.outbox.send(ping());
                    self.forget_closed(interval);
                    if input.is_empty() {
                        // An idle connection keeps no large buffer from an earlier burst.
                        input = Input::new();
                    }
                    tick.as_mut().reset(Instant::now() + interval);
                }
                Ok(Event::Expired) => {
                    if let Err(closed) = self.credentials_expired() {
                        self.flush_now(&mut stream, &mut output).await;
                        return closed;
                    }
                }
                Ok(Event::Read(count)) => {
                    self.silent = false;
                    self.peer.note_life();
                    input.filled(count);
                    if let Err(closed) = self.handle_input(&mut input, limit) {
                        // What was answered before the fault still goes out, if it can at once.
                        self.flush_now(&mut stream, &mut output).await;
                        return closed;
                    }
                    read += count;
                }
            }
            if read >= READ_TURN_BYTES || written >= WRITE_TURN_BYTES {
                (read, written) = (0, 0);
                tokio::task::yield_now().await;
            }
        }
    }

    fn poll<S>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut S,
        input: &mut Input,
        output: &mut Output,
        tick: Pin<&mut tokio::time::Sleep>,
    ) -> Poll<Result<Event, Closed>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        // Jobs first: they may say that a producer or consumer is closed, and must be known before
        // the client can answer to it.
        let taken = self.peer.outbox.take(&mut output.chain, cx.waker());
        if taken.aborted {
            return Poll::Ready(Err(Closed::Asked));
        }
        self.closing |= taken.closed;
        if !taken.jobs.is_empty() {
            for job in taken.jobs {
                job(self);
            }
            return Poll::Ready(Ok(Event::Progress(0)));
        }
        match output.poll_write(cx, stream) {
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
            Poll::Ready(Ok(0)) if self.closing => return Poll::Ready(Err(Closed::Asked)),
            Poll::Ready(Ok(0)) => {}
            Poll::Ready(Ok(count)) => {
                self.peer.outbox.written(count);
                return Poll::Ready(Ok(Event::Progress(count)));
            }
            Poll::Pending => {}
        }
        if tick.poll(cx).is_ready() {
            return Poll::Ready(Ok(Event::Tick));
        }
        if self.login.poll_expired(cx) {
            return Poll::Ready(Ok(Event::Expired));
        }
        if self.closing || self.must_pause() {
            return Poll::Pending;
        }
        let read = std::pin::pin!(stream.read_buf(input.room()));
        match read.poll(cx) {
            Poll::Ready(Ok(0)) => Poll::Ready(Err(Closed::Eof)),
            Poll::Ready(Ok(count)) => Poll::Ready(Ok(Event::Read(count))),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Whether the socket should not be read now. Whoever frees the way wakes the task.
    fn must_pause(&self) -> bool {
        self.requests >= REQUESTS_MAX
            || self.peer.is_paused()
            || self.peer.must_pause()
            || self.core.publishing.is_over(&self.peer)
            || !self.peer.takes_replies()
    }

    /// Handles what was held, then what is in the buffer, as long as it may begin requests. What is
    /// left goes on when one of those ends.
    fn handle_input(&mut self, input: &mut Input, limit: usize) -> Result<(), Closed> {
        loop {
            self.behind = self.requests >= REQUESTS_MAX;
            if self.behind {
                return Ok(());
            }
            let (mut frames, mut buffer) = (std::mem::take(&mut self.held), self.held_in.take());
            if frames.is_empty() {
                let (cut, cut_from) = input.cut(limit)?;
                (frames, buffer) = (cut, Some(cut_from));
            }
            if frames.is_empty() {
                return Ok(());
            }
            self.batch.buffer.clone_from(&buffer);
            while self.requests < REQUESTS_MAX
                && let Some(frame) = frames.next()
            {
                if let Err(closed) = self.handle_frame(&frame) {
                    self.publish_batch();
                    return Err(closed);
                }
            }
            self.publish_batch();
            // Not kept when empty: it holds the whole buffer.
            if !frames.is_empty() {
                self.held = frames;
                self.held_in = buffer;
            }
        }
    }

    fn handle_frame(&mut self, frame: &Frame<'_>) -> Result<(), Closed> {
        if self.ready
            && let Some(send) = frame.send()?
        {
            return self.handle_send(&send, frame);
        }
        let command = frame.command()?;
        self.publish_batch();
        self.handle_command(command)
    }

    fn handle_command(&mut self, command: Command) -> Result<(), Closed> {
        if !self.ready {
            return match command {
                Command::Connect(connect) => self.handle_connect(&connect),
                // As Pulsar does, for those who only look whether somebody is here.
                Command::Ping(_) => {
                    self.peer.outbox.send(pong());
                    Ok(())
                }
                Command::Pong(_) => Ok(()),
                _ => Err(Closed::Protocol("a command came before CONNECT")),
            };
        }
        if let Some(refusal) = self.refusal(&command) {
            self.peer.outbox.send(refusal);
            return Ok(());
        }
        match command {
            Command::Connect(_) => return Err(Closed::Protocol("a second CONNECT")),
            Command::Ping(_) => self.peer.outbox.send(pong()),
            Command::Pong(_) => {}
            Command::PartitionedMetadata(request) => self.handle_partitions(request),
            Command::Lookup(request) => self.handle_lookup(request),
            Command::GetTopicsOfNamespace(request) => self.handle_topics(request),
            Command::WatchTopicList(request) => self.handle_watch(request),
            Command::WatchTopicListClose(request) => self.handle_watch_close(&request),
            Command::Producer(request) => self.handle_producer(request),
            Command::CloseProducer(request) => self.handle_close_producer(&request),
            Command::Subscribe(request) => self.handle_subscribe(request),
            Command::CloseConsumer(request) => self.handle_close_consumer(&request),
            Command::Unsubscribe(request) => self.handle_unsubscribe(&request),
            Command::Flow(request) => return self.handle_flow(&request),
            Command::Ack(request) => self.handle_ack(&request),
            Command::RedeliverUnacknowledgedMessages(request) => self.handle_redeliver(&request),
            Command::Seek(request) => self.handle_seek(&request),
            Command::GetLastMessageId(request) => self.handle_last_message_id(&request),
            Command::ConsumerStats(request) => self.handle_consumer_stats(&request),
            Command::GetSchema(request) => self.handle_get_schema(request),
            Command::GetOrCreateSchema(request) => self.handle_get_or_create_schema(request),
            Command::TcClientConnectRequest(request) => self.handle_tc_connect(&request),
            Command::NewTxn(request) => self.handle_new_txn(&request),
            Command::AddPartitionToTxn(request) => self.handle_add_partition(&request),
            Command::AddSubscriptionToTxn(request) => self.handle_add_subscription(&request),
            Command::EndTxn(request) => self.handle_end_txn(&request),
            Command::EndTxnOnPartition(request) => self.handle_end_on_partition(&request),
            Command::EndTxnOnSubscription(request) => self.handle_end_on_subscription(&request),
            Command::AuthResponse(response) => return self.handle_auth_response(&response),
            other => return self.handle_unsupported(&other),
        }
        Ok(())
    }

    fn handle_unsupported(&mut self, command: &Command) -> Result<(), Closed> {
        match command {
            // A type from a later version: skipped, as unknown fields are.
            Command::Unknown(number) => {
                tracing::debug!(peer = %self.peer.address, number, "unknown command skipped");
                Ok(())
            }
            _ => Err(Closed::Protocol("a command that only a broker sends")),
        }
    }

    /// Answers a request with an ERROR.
    pub(crate) fn refuse(&self, request_id: u64, reason: &BrokerError) {
        self.peer
            .outbox
            .send(error(request_id, reason.server_error(), reason.to_string()));
    }

    /// Runs a request beside the task. What it returns is done by the task.
    pub(crate) fn request<F, J>(&mut self, name: &'static str, future: F)
    where
        F: Future<Output = J> + Send + 'static,
        J: FnOnce(&mut Connection) + Send + 'static,
    {
        self.requests += 1;
        let peer = self.peer.clone();
        // Boxed: see `Tasks::spawn`.
        let future = Box::pin(future);
        self.core.tasks.spawn_cancellable(name, async move {
            let job = future.await;
            peer.outbox
                .post(Box::new(move |connection: &mut Connection| {
                    connection.requests -= 1;
                    job(connection);
                }));
        });
    }

    pub(crate) fn next_op(&mut self) -> u64 {
        self.next_op += 1;
        self.next_op
    }

    fn after_write(&mut self) {
        if self.peer.starved.load(Ordering::SeqCst)
            && self.peer.has_drained()
            && self.peer.starved.swap(false, Ordering::SeqCst)
        {
            self.resume_consumers();
        }
    }

    fn forget_closed(&mut self, interval: Duration) {
        self.recently_closed.retain(|_, at| at.elapsed() < interval);
    }

    async fn flush_now<S>(&mut self, stream: &mut S, output: &mut Output)
    where
        S: AsyncWrite + Unpin,
    {
        let all = poll_fn(|cx| {
            self.peer.outbox.take(&mut output.chain, cx.waker());
            loop {
                match output.poll_write(cx, stream) {
                    Poll::Ready(Ok(count)) if count > 0 => {}
                    other => return other.map(drop),
                }
            }
        });
        drop(tokio::time::timeout(Duration::from_millis(100), all).await);
    }

    /// The connection is gone: its producers and consumers leave.
    fn end(&mut self) {
        self.peer.set_gone();
        for job in self.peer.outbox.end() {
            job(self);
        }
        self.core.connection_ended(&self.peer);
        self.end_producers();
        self.end_consumers();
    }
}

/// Bytes taken from the outbox, on their way into the socket.
#[derive(Default)]
struct Output {
    chain: VecDeque<Bytes>,
}

impl Output {
    /// Writes as much as one call takes; 0 = there is nothing to write (and all is flushed).
    fn poll_write<S>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut S,
    ) -> Poll<std::io::Result<usize>>
    where
        S: AsyncWrite + Unpin,
    {
        if self.chain.is_empty() {
            return match Pin::new(stream).poll_flush(cx) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                _ => Poll::Ready(Ok(0)),
            };
        }
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let (mut count, mut room) = (0, WRITE_MOST);
        for (slice, bytes) in slices.iter_mut().zip(&self.chain) {
            *slice = IoSlice::new(&bytes[..bytes.len().min(room)]);
            count += 1;
            room -= slice.len();
            if room == 0 {
                break;
            }
        }
        let written = match Pin::new(stream).poll_write_vectored(cx, &slices[..count]) {
            Poll::Ready(Ok(0)) => {
                return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into()));
            }
            Poll::Ready(Ok(written)) => written,
            other => return other,
        };
        let mut left = written;
        while left > 0 {
            let Some(front) = self.chain.front_mut() else {
                break;
            };
            if front.len() > left {
                front.advance(left);
                break;
            }
            left -= front.len();
            self.chain.pop_front();
        }
        Poll::Ready(Ok(written))
    }
}
