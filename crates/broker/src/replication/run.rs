//! The task of a replicator: connects, streams, and begins again from the cursor when it is cut off.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use geminga_model::Position;
use geminga_proto::message::{decode_metadata, payload, peek};
use geminga_stdx::{Backoff, Random};
use geminga_storage::{Entry, ReadLimits};

use super::Replicator;
use super::forward::{LeftOut, Rules, forward, judge};
use super::producer_name;
use super::remote::{RemoteError, RemoteProducer, RemoteTopic};
use super::throttle::Throttle;
use super::window::{Confirmed, Sent, Window};
use crate::error::BrokerError;
use crate::topic::Topic;

/// Bytes under way, or read to be sent.
const WINDOW_BYTES: usize = 8 << 20;
/// One read.
const READ_ENTRIES: usize = 200;
const READ_BYTES: usize = 1 << 20;
/// Versions that a way remembers: a producer may name any.
const SCHEMAS_MAX: usize = 1_000;
/// Bytes by which another cluster names a version: 8 in Pulsar.
const SCHEMA_VERSION_BYTES_MAX: usize = 64;
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

impl From<BrokerError> for RemoteError {
    fn from(error: BrokerError) -> RemoteError {
        RemoteError(error.to_string())
    }
}

fn own(error: impl std::fmt::Display) -> RemoteError {
    RemoteError(error.to_string())
}

impl Replicator {
    pub(super) async fn run(self: Arc<Replicator>, topic: Arc<Topic>) {
        let seed = Random::from_entropy().next_u64();
        let mut backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_MAX, seed);
        loop {
            let mut progress = false;
            let result = self.once(&topic, &mut progress).await;
            self.figures.lock().connected_since_ms = 0;
            if progress {
                backoff.reset();
            }
            let cluster = &*self.cluster;
            let Err(error) = result else {
                // Without a use of its own the topic may leave memory, here and there.
                tracing::debug!(topic = %topic.name, cluster, "replication is idle");
                while !self.is_behind() && topic.lock().is_for_replicators_only() {
                    self.wake.notified().await;
                }
                backoff.reset();
                continue;
            };
            let delay = backoff.next_delay();
            tracing::warn!(topic = %topic.name, cluster, %error, ?delay, "replication waits");
            self.note_oldest(&topic).await;
            tokio::time::sleep(delay).await;
        }
    }

    /// Until the way there ends, or nobody needs it. `progress`: the other side confirmed something.
    async fn once(&self, topic: &Arc<Topic>, progress: &mut bool) -> Result<(), RemoteError> {
        let to = self.destination(topic).await?;
        let Some(remotes) = topic.core.remotes.get() else {
            return Err(own("this process has no way to other clusters"));
        };
        let remote = remotes.connect(to).await?;
        tracing::info!(topic = %topic.name, cluster = &*self.cluster, "replication runs");
        self.figures.lock().connected_since_ms = topic.core.clock.now_ms();
        let entries_max = topic.core.settings.live().replication_producer_queue_size;
        let mut stream = Stream {
            replicator: self,
            topic,
            remote,
            window: Window::new(entries_max, WINDOW_BYTES),
            read: self.cursor.mark_delete().next_in_ledger(),
            schemas: HashMap::new(),
            throttle: Throttle::default(),
        };
        let idle = Duration::from_millis(topic.core.config.geminga_topic_idle_millis.max(100));
        loop {
            // Before it is read: what comes afterwards wakes.
            let more = self.wake.notified();
            if let Some(wait_ms) = stream.fill().await? {
                // Receipts that come meanwhile are counted as soon as it goes on.
                let waiting = stream.window.waits();
                tokio::select! {
                    count = stream.remote.confirmed(), if waiting => {
                        stream.confirm(count?)?;
                        *progress = true;
                    }
                    () = tokio::time::sleep(Duration::from_millis(wait_ms)) => {}
                }
                continue;
            }
            if !stream.window.waits() {
                self.figures.lock().oldest_ms = None;
                // The other side may still end the way.
                tokio::select! {
                    () = more => {}
                    () = tokio::time::sleep(idle) => {
                        if topic.lock().is_for_replicators_only() {
                            return Ok(());
                        }
                    }
                    ended = stream.remote.confirmed() => {
                        ended?;
                        return Err(own("a receipt for nothing"));
                    }
                }
                continue;
            }
            tokio::select! {
                count = stream.remote.confirmed() => {
                    stream.confirm(count?)?;
                    *progress = true;
                }
                () = more => {}
            }
        }
    }

    async fn destination(&self, topic: &Topic) -> Result<RemoteTopic, RemoteError> {
        let core = &topic.core;
        let cluster = self.cluster.to_string();
        let data = core.cluster(&cluster).await?;
        let data = data.ok_or_else(|| own(format!("cluster `{cluster}` is not known here")))?;
        let partitions = match topic.name.partition() {
            Some(_) => core.catalog.partitions(&topic.name.parent()).await?,
            None => None,
        };
        Ok(RemoteTopic {
            producer_name: producer_name(&core.config.cluster_name, &cluster),
            cluster,
            data,
            topic: topic.name.clone(),
            partitions,
            create: core.config.create_topic_to_remote_cluster_for_replication,
        })
    }

    /// While nothing is sent, somebody may still ask how late it is.
    async fn note_oldest(&self, topic: &Topic) {
        let first = self.cursor.mark_delete().next_in_ledger();
        let read = topic.ledger.read(first, ReadLimits::new(1, 1)).await;
        let found = read.unwrap_or_default();
        let head = found.first().and_then(|entry| peek(&entry.data).ok());
        self.figures.lock().oldest_ms = head.map(|head| head.publish_time);
    }

    /// Acks what is older than a time-to-live; while there is a way, it is looked at entry by entry.
    pub(crate) fn expire_through(&self, through: Position, now_ms: u64) -> Result<(), BrokerError> {
        let before = self.cursor.backlog();
        self.cursor.ack_cumulative(through, None)?;
        let count = before.saturating_sub(self.cursor.backlog());
        let mut figures = self.figures.lock();
        figures.expired += count;
        figures.rate_expired.add(count, now_ms);
        Ok(())
    }
}

/// One way, from its opening to its end.
struct Stream<'a> {
    replicator: &'a Replicator,
    topic: &'a Arc<Topic>,
    remote: Box<dyn RemoteProducer>,
    window: Window,
    /// The next entry to read.
    read: Position,
    /// Versions of our schemas and what they are there.
    schemas: HashMap<Bytes, Option<Bytes>>,
    throttle: Throttle,
}

impl Stream<'_> {
    /// Sends until the window is full or there is no more, or until the rate says to wait: then for
    /// how many milliseconds.
    async fn fill(&mut self) -> Result<Option<u64>, RemoteError> {
        while self.window.room() > 0 {
            let now_ms = self.topic.core.clock.now_ms();
            let rate = self.topic.policies().replicator_dispatch_rate;
            let allowed = match self.throttle.allowance(rate, now_ms) {
                Ok(allowed) => allowed,
                Err(wait_ms) => return Ok(Some(wait_ms)),
            };
            let most = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
            let limits = ReadLimits::new(
                self.window
                    .room()
                    .min(READ_ENTRIES)
                    .min(most(allowed.messages)),
                self.window
                    .bytes_room()
                    .min(READ_BYTES)
                    .min(most(allowed.bytes)),
            );
            // Expired meanwhile, or skipped by an operator.
            let unread = self.replicator.cursor.mark_delete().next_in_ledger();
            self.read = self.read.max(unread);
            // What an open transaction holds back is not read yet.
            let limit = self.topic.read_limit();
            let entries = self.topic.ledger.read(self.read, limits).await;
            let entries = entries.map_err(own)?;
            let count = entries.len();
            for entry in entries {
                if entry.position > limit {
                    return Ok(None);
                }
                self.read = entry.position.next_in_ledger();
                self.take(entry).await?;
            }
            if count == 0 {
                return Ok(None);
            }
            // Millions of entries may have to be left out, one after the other.
            tokio::task::yield_now().await;
        }
        Ok(None)
    }

    async fn take(&mut self, entry: Entry) -> Result<(), RemoteError> {
        let position = entry.position;
        let now_ms = self.topic.core.clock.now_ms();
        let Ok(metadata) = decode_metadata(&entry.data) else {
            // Nobody could ever read it.
            tracing::error!(topic = %self.topic.name, %position, "not replicated: unreadable");
            return self.leave_out(position);
        };
        let is_aborted = metadata.txnid_least_bits.is_some()
            && peek(&entry.data).is_ok_and(|head| self.topic.is_aborted(position, &head));
        let ttl_ms = self
            .topic
            .policies()
            .message_ttl_seconds
            .saturating_mul(1_000);
        let rules = Rules {
            remote: &self.replicator.cluster,
            expired_before_ms: match ttl_ms {
                0 => 0,
                ttl_ms => now_ms.saturating_sub(ttl_ms),
            },
        };
        if metadata.marker_type.is_some()
            && let Some(from) = &metadata.replicated_from
            && **from == *self.replicator.cluster
        {
            // All replicators see it; that of its cluster takes it.
            let came = self.topic.marker_came(from, &entry.data, position).await;
            if let Err(error) = came {
                tracing::warn!(topic = %self.topic.name, %position, %error, "a marker is lost");
            }
        }
        let left_out = judge(&metadata, rules);
        if is_aborted || left_out.is_some() {
            if left_out == Some(LeftOut::Expired) {
                let mut figures = self.replicator.figures.lock();
                figures.expired += 1;
                figures.rate_expired.add(1, now_ms);
            }
            return self.leave_out(position);
        }
        let schema_version = match metadata.schema_version.clone() {
            Some(ours) => self.schema_there(ours).await?,
            None => None,
        };
        let sent = Sent {
            bytes: entry.data.len(),
            messages: metadata
                .num_messages_in_batch
                .map_or(1, |n| n.max(1) as u32),
            publish_ms: metadata.publish_time,
        };
        let local = &self.topic.core.config.cluster_name;
        let payload = payload(&entry.data).map_err(own)?;
        let message = forward(metadata, local, position, schema_version, payload);
        self.throttle.spend(sent.messages.into(), sent.bytes as u64);
        self.window.send(position, sent);
        self.remote.send(message);
        Ok(())
    }

    fn leave_out(&mut self, position: Position) -> Result<(), RemoteError> {
        match self.window.leave_out(position) {
            Some(through) => self.ack(through),
            None => Ok(()),
        }
    }

    fn confirm(&mut self, count: usize) -> Result<(), RemoteError> {
        let done = self.window.confirm(count);
        let Confirmed {
            through,
            messages,
            bytes,
        } = done.ok_or_else(|| own("more receipts than messages"))?;
        let now_ms = self.topic.core.clock.now_ms();
        {
            let mut figures = self.replicator.figures.lock();
            figures.messages_out += messages;
            figures.bytes_out += bytes;
            figures.rate_out.add(messages, now_ms);
            figures.bytes_rate_out.add(bytes, now_ms);
            figures.oldest_ms = self.window.oldest_ms();
        }
        through.map_or(Ok(()), |through| self.ack(through))
    }

    fn ack(&self, through: Position) -> Result<(), RemoteError> {
        let cursor = &self.replicator.cursor;
        cursor.ack_cumulative(through, None).map_err(own)
    }

    /// What a version of a schema of ours is there; there it is made if need be.
    async fn schema_there(&mut self, ours: Bytes) -> Result<Option<Bytes>, RemoteError> {
        if let Some(theirs) = self.schemas.get(&ours) {
            return Ok(theirs.clone());
        }
        let number = <[u8; 8]>::try_from(&ours[..]).map(u64::from_be_bytes);
        let schemas = &self.topic.core.schemas;
        let stored = match number {
            Ok(number) => schemas.get(&self.topic.name, Some(number)).await?,
            Err(_) => None,
        };
        let theirs = match stored {
            Some((_, schema)) => {
                let theirs = self.remote.register_schema(schema.to_wire()).await?;
                if theirs.len() > SCHEMA_VERSION_BYTES_MAX {
                    return Err(own("the other side's version of a schema is too long"));
                }
                // Not the buffer that it came in.
                Some(Bytes::copy_from_slice(&theirs))
            }
            // Deleted here: there it is bytes.
            None => None,
        };
        if self.schemas.len() >= SCHEMAS_MAX {
            self.schemas.clear();
        }
        self.schemas.insert(ours, theirs.clone());
        Ok(theirs)
    }
}
