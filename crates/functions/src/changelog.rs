//! A topic that remembers a map: the newest record of a key counts, one without a value removes it.
//!
//! Both the catalogue and the state of a function are kept so. What must hold:
//! - A broker deletes what no subscription needs. A durable one, made before the first record, keeps
//!   the topic from the start of its last rewriting on.
//! - The topic does not grow for ever: after many records the living ones are written once more,
//!   and the subscription moves to where that began. Each later record names that place, so a start
//!   reads the last record first, then from there on, and no more than that.
//! - Who holds it alone ([`Changelog::open_alone`]) has fenced whoever held it before, and has read
//!   all that was ever committed: nothing of a predecessor comes later.
//! - Of [`Writer::Only`] it is one writer's too, from the first record on: that fences whoever wrote before, and fails
//!   when somebody wrote since the topic was read. So one who stood still and was replaced writes nothing old behind
//!   what is newer.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use geminga_client::{
    Batching, Client, Compression, Consumer, Error, InitialPosition, Message, MessageId, Producer,
    ProducerAccessMode, Reader, Receipt, ReceivedMessage, Result, ServerError, SubType,
    Transaction, TransactionId,
};
use parking_lot::Mutex;

/// The subscription that keeps the broker from deleting records.
const KEEPER: &str = "geminga-changelog";
/// The property that names where the last rewriting began.
const FROM: &str = "geminga.from";

/// The property that names a transaction whose records follow.
const TXN: &str = "geminga.txn";

/// How long the transactions of a predecessor are waited for, which end by their time-out.
const PREDECESSOR: Duration = Duration::from_secs(90);
/// When nothing was read for so long, though there is more, an open transaction is in the way.
const SILENCE: Duration = Duration::from_millis(100);
/// Transactions that a holder may have open: one is being filled, one before it committed.
const OPEN_MAX: usize = 2;

/// The topic, to be written.
pub(crate) struct Changelog {
    client: Client,
    topic: String,
    batching: Batching,
    /// Made by the first record: what is there can be read while nothing can be stored. The lock
    /// keeps the records in order.
    producer: tokio::sync::Mutex<Option<Producer>>,
    /// Where a start has to begin; `None` is the topic's own beginning.
    from: Mutex<Option<MessageId>>,
    /// Records since then.
    records: AtomicU64,
    records_max: u64,
    /// The same when the last rewriting began.
    before: AtomicU64,
    /// After a rewriting that failed: there is none before so many records.
    patience: AtomicU64,
    rewriting: AtomicBool,
    /// The last record that `open` read.
    read_to: MessageId,
    writer: Writer,
    /// The topic had its end here when it was opened.
    end: MessageId,
    /// Somebody else wrote to the topic since it was read, or is its writer now.
    is_lost: AtomicBool,
}

/// When a topic that is not there is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Made {
    Now,
    /// By the first record: most functions keep no state, and their topics would be thousands.
    ByFirstRecord,
}

/// Who else writes to the topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writer {
    /// Whoever may, at any time.
    BesideOthers,
    /// Nobody, from the first record on.
    Only,
}

impl Changelog {
    /// Reads the topic to its end. `records_max` is how many records may be written before the living ones
    /// are written anew.
    pub(crate) async fn open(
        client: &Client,
        topic: &str,
        batching: Batching,
        records_max: u64,
        (made, writer): (Made, Writer),
        mut take: impl FnMut(ReceivedMessage),
    ) -> Result<Self> {
        let mut last = None;
        if made == Made::Now || exists(client, topic).await? {
            let keeper = keeper(client, topic, KEEPER).await?;
            last = Some(keeper.last_message_id().await?).filter(|last| last.entry_id >= 0);
            keeper.close().await?;
        }
        let (mut from, mut records) = (None, 0);
        let mut read_to = MessageId::EARLIEST;
        let mut end = last.unwrap_or(MessageId::EARLIEST);
        if let Some(last) = last {
            from = last_place(client, topic, last).await?;
            let mut reader = client
                .reader(topic)
                .start(from.unwrap_or(MessageId::EARLIEST))
                .start_inclusive(true)
                .build()
                .await?;
            while reader.has_message_available().await? {
                for message in reader.next_batch(1000).await? {
                    records += 1;
                    read_to = message.id;
                    if message.key.is_some() {
                        take(message);
                    }
                }
            }
            reader.close().await?;
            if read_to.position() > end.position() {
                end = read_to;
            }
        }
        Ok(Self {
            client: client.clone(),
            topic: topic.to_owned(),
            batching,
            producer: tokio::sync::Mutex::default(),
            from: Mutex::new(from),
            records: AtomicU64::new(records),
            records_max: records_max.max(1),
            before: AtomicU64::new(0),
            patience: AtomicU64::new(0),
            rewriting: AtomicBool::new(false),
            read_to,
            writer,
            end,
            is_lost: AtomicBool::new(false),
        })
    }

    /// Up to where it was read when it was opened.
    pub(crate) fn read_to(&self) -> MessageId {
        self.read_to
    }

    /// Writes by `producer` from now on; by nothing when it is none.
    pub(crate) async fn write_by(&self, producer: Option<Producer>) {
        *self.producer.lock().await = producer;
    }

    /// Takes the topic for itself: whoever had it can write no more. Then reads it up to a mark of
    /// its own, which is seen only when every transaction before it has ended. `in_line` waits until
    /// the present holder lets go, instead of fencing it.
    pub(crate) async fn open_alone(
        client: &Client,
        topic: &str,
        batching: Batching,
        records_max: u64,
        in_line: bool,
        mut take: impl FnMut(ReceivedMessage),
    ) -> Result<Self> {
        let keeper = keeper(client, topic, KEEPER).await?;
        let producer = client.producer(topic).compression(Compression::Lz4);
        let producer = producer
            .batching(batching.clone())
            .access_mode(match in_line {
                true => ProducerAccessMode::WaitForExclusive,
                false => ProducerAccessMode::ExclusiveWithFencing,
            });
        let producer = producer.build().await?;
        let last = keeper.last_message_id().await?;
        keeper.close().await?;
        let from = match last.entry_id >= 0 {
            true => last_place(client, topic, last).await?,
            false => None,
        };
        let mut changelog = Self {
            client: client.clone(),
            topic: topic.to_owned(),
            batching,
            producer: tokio::sync::Mutex::new(Some(producer)),
            from: Mutex::new(from),
            read_to: MessageId::EARLIEST,
            records: AtomicU64::new(0),
            records_max: records_max.max(1),
            before: AtomicU64::new(0),
            patience: AtomicU64::new(0),
            rewriting: AtomicBool::new(false),
            writer: Writer::Only,
            end: MessageId::EARLIEST,
            is_lost: AtomicBool::new(false),
        };
        let mark = changelog.enqueue(Message::new(&b"mark"[..])).await?.await?;
        let reading = async {
            let mut reader = client
                .reader(topic)
                // What is before the place may be gone by now; reading begins with what is left.
                .start(from.unwrap_or(MessageId::EARLIEST))
                .start_inclusive(true)
                .build()
                .await?;
            let mut announced = VecDeque::new();
            loop {
                for message in unless_silent(&mut reader, client, &mut announced).await? {
                    if message.id.position() >= mark.position() {
                        return reader.close().await;
                    }
                    changelog.records.fetch_add(1, Ordering::Relaxed);
                    if let Some(id) = message.property(TXN).and_then(transaction_id) {
                        announced.truncate(OPEN_MAX - 1);
                        announced.push_front(id);
                    }
                    if message.key.is_some() {
                        take(message);
                    }
                }
            }
        };
        tokio::time::timeout(PREDECESSOR, reading)
            .await
            .unwrap_or(Err(Error::Timeout {
                what: "the end of a predecessor's transactions",
                after_ms: PREDECESSOR.as_millis() as u64,
            }))?;
        changelog.read_to = mark;
        Ok(changelog)
    }

    /// Puts a record on its way. Records reach the topic in the order of these calls.
    pub(crate) async fn enqueue(&self, record: Message) -> Result<Receipt> {
        let record = self.counted(record);
        let mut held = self.producer.lock().await;
        let producer = match held.take() {
            Some(producer) => producer,
            None => self.begin_writing().await?,
        };
        let sent = held.insert(producer).enqueue(record).await;
        sent.inspect_err(|error| self.note(error))
    }

    /// Makes the producer, unless the topic is to be written by one alone and somebody wrote since it was read.
    async fn begin_writing(&self) -> Result<Producer> {
        let lost = || Error::Server {
            code: ServerError::ProducerFenced as i32,
            message: format!("somebody else writes to `{}` now", self.topic),
        };
        if self.is_lost() {
            return Err(lost());
        }
        // Before the first record: it keeps the topic from there on.
        let keeper = keeper(&self.client, &self.topic, KEEPER).await?;
        let producer = self.client.producer(&self.topic);
        let producer = producer.compression(Compression::Lz4);
        let producer = producer.access_mode(match self.writer {
            Writer::BesideOthers => ProducerAccessMode::Shared,
            Writer::Only => ProducerAccessMode::ExclusiveWithFencing,
        });
        let producer = producer.batching(self.batching.clone()).build().await?;
        let last = keeper.last_message_id().await?;
        keeper.close().await?;
        let is_new = last.entry_id >= 0 && last.position() > self.end.position();
        if self.writer == Writer::Only && is_new {
            self.is_lost.store(true, Ordering::Release);
            producer.close().await?;
            return Err(lost());
        }
        Ok(producer)
    }

    /// Remembers an error that says that somebody else is the topic's writer.
    pub(crate) fn note(&self, error: &Error) {
        if is_fenced(error) {
            self.is_lost.store(true, Ordering::Release);
        }
    }

    /// Whether somebody else writes to the topic now: what was read of it is old.
    pub(crate) fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Acquire)
    }

    /// The same in a transaction, of a changelog that is held alone.
    pub(crate) async fn enqueue_in(&self, txn: &Transaction, record: Message) -> Result<Receipt> {
        let record = self.counted(record);
        let held = self.producer.lock().await;
        match &*held {
            Some(producer) => {
                let sent = producer.enqueue_in(txn, record).await;
                sent.inspect_err(|error| self.note(error))
            }
            None => Err(Error::Closed),
        }
    }

    /// Names a transaction before its first record, outside of it: so a successor can abort it at once
    /// and need not wait for its time-out.
    pub(crate) async fn announce(&self, txn: &Transaction) -> Result<Receipt> {
        let record = Message::new(&b"transaction"[..]).property(TXN, id_text(txn.id()));
        self.enqueue(record).await
    }

    /// Names the place where a start has to begin.
    fn counted(&self, record: Message) -> Message {
        self.records.fetch_add(1, Ordering::Relaxed);
        let from = *self.from.lock();
        match from {
            Some(from) => record.property(FROM, from.to_string()),
            None => record,
        }
    }

    /// Whether it is time to write the `living` records anew.
    pub(crate) fn wants_rewriting(&self, living: usize) -> bool {
        // In proportion to what lives, so that the work for it is a small part of all work.
        let limit = self.records_max.max(living as u64 * 4);
        let limit = limit.max(self.patience.load(Ordering::Relaxed));
        self.records.load(Ordering::Relaxed) > limit && !self.rewriting.load(Ordering::Acquire)
    }

    /// The same, for the caller to do it: one that gets `true` has to call
    /// [`end_rewriting`](Self::end_rewriting), with what came of it.
    pub(crate) fn begin_rewriting(&self, living: usize) -> bool {
        self.wants_rewriting(living) && !self.rewriting.swap(true, Ordering::AcqRel)
    }

    fn count_anew(&self) {
        let before = self.records.swap(0, Ordering::Relaxed);
        self.before.store(before, Ordering::Relaxed);
    }

    /// Marks the place where the rewriting begins. Nothing may be enqueued meanwhile.
    pub(crate) async fn place(&self) -> Result<MessageId> {
        self.count_anew();
        self.enqueue(Message::new(&b"begin"[..])).await?.await
    }

    /// Writes records anew in a transaction of their own: all of them are behind the place, or none is.
    /// Nothing may be enqueued before it resolves; then the transaction is to be ended, and what came of
    /// that given to [`end_rewriting`](Self::end_rewriting).
    pub(crate) async fn rewrite_in(
        &self,
        txn: &Transaction,
        living: impl IntoIterator<Item = Message>,
    ) -> Result<Receipt> {
        self.count_anew();
        let place = self.enqueue_in(txn, Message::new(&b"begin"[..])).await?;
        for record in living {
            drop(self.enqueue_in(txn, record).await?);
        }
        Ok(place)
    }

    /// The living records are durable behind `place`: what is before it is not needed any more.
    pub(crate) async fn end_rewriting(&self, place: Result<MessageId>) -> Result<()> {
        let done = async {
            let place = place.inspect_err(|_| {
                // The old records stay, and there may be as many again before the next try.
                let before = self.before.swap(0, Ordering::Relaxed);
                let records = self.records.fetch_add(before, Ordering::Relaxed) + before;
                self.patience.store(records * 2, Ordering::Relaxed);
            })?;
            *self.from.lock() = Some(place);
            self.patience.store(0, Ordering::Relaxed);
            self.before.store(0, Ordering::Relaxed);
            // The last record names the place from now on.
            self.enqueue(Message::new(&b"end"[..])).await?.await?;
            let keeper = keeper(&self.client, &self.topic, KEEPER).await?;
            keeper.seek(place).await?;
            keeper.close().await
        };
        let done = done.await;
        self.rewriting.store(false, Ordering::Release);
        done
    }
}

/// Forgets what a topic remembers, when there is such a topic. `may` is asked once nobody else can write to
/// it, and nothing is forgotten when it says no. A topic that `is_over` is kept from the broker's cleaning
/// no longer.
pub(crate) async fn empty(
    client: &Client,
    topic: &str,
    is_over: bool,
    may: impl Future<Output = bool>,
) -> Result<()> {
    if !exists(client, topic).await? {
        return Ok(());
    }
    let mut records = 0_u64;
    let count = |_| records += 1;
    let opening = Changelog::open_alone(client, topic, Batching::off(), u64::MAX, false, count);
    let changelog = opening.await?;
    let may = may.await;
    if may && records > 0 {
        // A rewriting of nothing.
        let place = changelog.place().await;
        changelog.end_rewriting(place).await?;
    }
    if let Some(producer) = changelog.producer.lock().await.take() {
        producer.close().await?;
    }
    if may && is_over {
        keeper(client, topic, KEEPER).await?.unsubscribe().await?;
    }
    Ok(())
}

fn id_text(id: TransactionId) -> String {
    format!("{}:{}", id.most, id.least)
}

fn transaction_id(text: &str) -> Option<TransactionId> {
    let (most, least) = text.split_once(':')?;
    Some(TransactionId {
        most: most.parse().ok()?,
        least: least.parse().ok()?,
    })
}

/// The next records. Nobody else holds the topic: a transaction that keeps them from being read has
/// lost its owner, or one that can commit nothing any more, and is aborted.
async fn unless_silent(
    reader: &mut Reader,
    client: &Client,
    announced: &mut VecDeque<TransactionId>,
) -> Result<Vec<ReceivedMessage>> {
    let mut next = std::pin::pin!(reader.next_batch(1000));
    loop {
        tokio::select! {
            records = &mut next => return records,
            () = tokio::time::sleep(SILENCE), if !announced.is_empty() => {}
        }
        for id in announced.drain(..) {
            // Most are ended: it was the network that was silent, or the newest one that was open.
            if let Err(error) = client.abort_transaction(id).await {
                tracing::debug!(txn = %id, %error, "transaction of a predecessor not aborted");
            }
        }
    }
}

/// Whether a record without a key is one that this module writes.
pub(crate) fn is_mark(message: &ReceivedMessage) -> bool {
    let marks: [&[u8]; 4] = [b"begin", b"end", b"mark", b"transaction"];
    message.key.is_none() && marks.contains(&&message.payload[..])
}

/// Whether somebody else holds the topic now.
pub(crate) fn is_fenced(error: &Error) -> bool {
    error.server_error() == Some(ServerError::ProducerFenced)
}

async fn exists(client: &Client, topic: &str) -> Result<bool> {
    let reader = client.reader(topic).create_topic(false).build().await;
    match reader {
        Ok(reader) => reader.close().await.map(|()| true),
        Err(error) if error.server_error() == Some(ServerError::TopicNotFound) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The consumer of a subscription that is there to keep a topic from being trimmed.
pub(crate) async fn keeper(client: &Client, topic: &str, name: &str) -> Result<Consumer> {
    client
        .consumer(topic)
        .subscription(name)
        // Not Exclusive: after a crash the broker may not have noticed that the last one is gone.
        .sub_type(SubType::Failover)
        .initial_position(InitialPosition::Earliest)
        .receiver_queue_size(1)
        .build()
        .await
}

/// One message, that of this id.
pub(crate) async fn read_one(
    client: &Client,
    topic: &str,
    id: MessageId,
) -> Result<ReceivedMessage> {
    let reader = client.reader(topic).start(id).start_inclusive(true);
    let mut reader = reader.receiver_queue_size(1).build().await?;
    let message = reader.next().await?;
    reader.close().await?;
    Ok(message)
}

/// The place that the last record names.
async fn last_place(client: &Client, topic: &str, last: MessageId) -> Result<Option<MessageId>> {
    let message = read_one(client, topic, last).await?;
    Ok(message.property(FROM).and_then(|place| place.parse().ok()))
}
