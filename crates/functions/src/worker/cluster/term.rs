//! Following the catalogue, and leading: one term after the other.
//!
//! What must hold: a worker leads only while it holds the exclusive producer of the catalogue's topic, and
//! after it has read all that was written before; after a term of its own it reads the topic anew.

use std::sync::atomic::Ordering;
use std::time::Duration;

use geminga_client::{Batching, Compression, MessageId, Producer, ProducerAccessMode, Reader};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::Worker;
use super::super::catalog::{self, Key, Leader, Value, View};

/// How long a worker that is not the first looks whether it could lead before it says it is ready.
const FOLLOW_AFTER: Duration = Duration::from_millis(500);

impl Worker {
    /// Follows the catalogue and leads when nobody does, for ever.
    pub(super) async fn conduct(&self, topic: &str, ready: oneshot::Sender<()>) {
        let mut ready = Some(ready);
        let mut start = Some(self.inner.catalog.read_to());
        loop {
            let followed = self.follow(topic, start.take(), &mut ready).await;
            let led = match followed {
                Ok((producer, reader)) => self.lead(producer, reader, &mut ready).await,
                Err(error) => Err(error),
            };
            self.inner.cluster.term.store(0, Ordering::Release);
            self.inner.catalog.write_by(None).await;
            if let Err(error) = led {
                tracing::warn!(%error, "the catalogue is out of reach: tried again");
            } else {
                tracing::warn!("another worker leads now");
            }
            // What runs here goes on only with a lease of the new leader.
            self.settle_soon(None);
            tokio::time::sleep(self.inner.cluster.lease / 10).await;
        }
    }

    /// Reads along until this worker is to lead.
    async fn follow(
        &self,
        topic: &str,
        start: Option<MessageId>,
        ready: &mut Option<oneshot::Sender<()>>,
    ) -> Result<(Producer, Reader), geminga_client::Error> {
        let inner = &self.inner;
        let client = &inner.config.client;
        let open = |from: MessageId| client.reader(topic).start(from).build();
        let mut reader = match start {
            Some(from) => open(from).await?,
            // After a term of its own its memory may hold what never reached the topic.
            None => {
                let mut reader = open(MessageId::EARLIEST).await?;
                let mut view = View::default();
                while reader.has_message_available().await? {
                    for message in reader.next_batch(1000).await? {
                        catalog::take(&mut view, &message);
                    }
                }
                inner.catalog.replace(view);
                self.settle_soon(None);
                reader
            }
        };
        let began = Instant::now();
        let mut attempt = Box::pin(self.stand(topic, Duration::ZERO));
        loop {
            tokio::select! {
                elected = &mut attempt => {
                    if let Some(producer) = elected {
                        drop(attempt);
                        return Ok((producer, reader));
                    }
                    if began.elapsed() > FOLLOW_AFTER
                        && let Some(ready) = ready.take()
                    {
                        self.settle(None).await;
                        let _ = ready.send(());
                    }
                    attempt = Box::pin(self.stand(topic, inner.cluster.lease / 20));
                }
                messages = reader.next_batch(1000) => {
                    let touched = inner.catalog.follow(&messages?);
                    self.settle_soon(Some(&touched));
                }
            }
        }
    }

    /// Tries to become the one that writes, after a pause.
    async fn stand(&self, topic: &str, pause: Duration) -> Option<Producer> {
        tokio::time::sleep(pause).await;
        let cluster = &self.inner.cluster;
        let is_silent = cluster.members.lock().should_take_over(Instant::now());
        let mode = if is_silent {
            // Whoever holds it is frozen or cut off: the broker closes its producer.
            ProducerAccessMode::ExclusiveWithFencing
        } else {
            ProducerAccessMode::Exclusive
        };
        let producer = self.inner.config.client.producer(topic);
        let producer = producer
            .batching(Batching::off())
            .compression(Compression::Lz4);
        match producer.access_mode(mode).build().await {
            Ok(producer) => Some(producer),
            Err(error) => {
                tracing::debug!(%error, "another worker leads");
                None
            }
        }
    }

    /// Leads until another does.
    async fn lead(
        &self,
        producer: Producer,
        mut reader: Reader,
        ready: &mut Option<oneshot::Sender<()>>,
    ) -> Result<(), geminga_client::Error> {
        let inner = &self.inner;
        let cluster = &inner.cluster;
        // Everything that was written before the producer became exclusive.
        while reader.has_message_available().await? {
            let messages = reader.next_batch(1000).await?;
            inner.catalog.follow(&messages);
        }
        reader.close().await?;
        let known = inner.catalog.read(|view| view.leader.term);
        let heard = cluster.members.lock().leader().map_or(0, |(_, term)| term);
        let leader = Leader {
            identity: cluster.identity.clone(),
            url: inner.config.url.clone(),
            term: known.max(heard) + 1,
        };
        tracing::debug!(term = leader.term, "this worker leads");
        inner.catalog.write_by(Some(producer)).await;
        cluster.members.lock().begin_term(Instant::now());
        let term = leader.term;
        if inner
            .catalog
            .put_soon(Key::Leader, Value::Leader(leader))
            .await
            .is_err()
        {
            return Ok(());
        }
        cluster.term.store(term, Ordering::Release);
        self.settle(None).await;
        cluster.dirty.store(true, Ordering::Release);
        // What belongs to nobody yet starts before the first answer.
        if let Err(error) = self.tick().await {
            tracing::warn!(%error, "not scheduled");
        }
        if let Some(ready) = ready.take() {
            self.settle(None).await;
            let _ = ready.send(());
        }
        cluster.wake.notify_one();
        while inner.catalog.is_written_here() {
            let pause = cluster.beat_every() / 4;
            let _ = tokio::time::timeout(pause, inner.catalog.confirm()).await;
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }
}
