//! Beats: what this worker says of itself, what it hears of others, and what follows from it for what runs
//! here.
//!
//! What must hold: the beat and the watch over the lease wait for nothing else; when the lease is over,
//! what runs here ends at once, also what is being stopped.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use geminga_client::{Batching, Message, Producer, SubType};
use geminga_stdx::Tasks;
use geminga_stdx::tasks::OnError;
use tokio::time::Instant;

use super::super::membership::Beat;
use super::super::{Entry, Worker};

impl Worker {
    /// Says again and again that this worker lives. Waits for nothing else: others would take it for
    /// dead.
    pub(super) async fn beat(&self, topic: &str) {
        let cluster = &self.inner.cluster;
        let mut producer: Option<Producer> = None;
        let mut last = Instant::now();
        loop {
            let _ = tokio::time::timeout(cluster.beat_every(), cluster.wake.notified()).await;
            if cluster.has_left.load(Ordering::Acquire) {
                return;
            }
            let now = Instant::now();
            if cluster.leads() && now.duration_since(last) > cluster.lease {
                // This process stood still: others may have taken over. Ask the broker again.
                tracing::warn!(
                    "the worker stood still for longer than its lease: it stands for election again"
                );
                cluster.term.store(0, Ordering::Release);
                self.inner.catalog.stop_writing();
            }
            last = now;
            let lost = cluster.members.lock().expire(now);
            for identity in &lost {
                tracing::warn!(identity, "a worker is gone: what it ran goes to others");
            }
            if !lost.is_empty() {
                cluster.dirty.store(true, Ordering::Release);
                cluster.work.notify_one();
            }
            if producer.is_none() {
                let made = self.inner.config.client.producer(topic);
                let made = made.batching(Batching::off()).build();
                let made = tokio::time::timeout(cluster.lease, made).await;
                producer = made.ok().and_then(Result::ok);
            }
            let said = self.own_beat(false);
            cluster.members.lock().sent(said.seq, Instant::now());
            if let (Some(by), Ok(bytes)) = (&producer, serde_json::to_vec(&said)) {
                let posted = by.post(Message::new(bytes));
                let posted = tokio::time::timeout(cluster.beat_every(), posted).await;
                if !matches!(posted, Ok(Ok(()))) {
                    producer = None;
                }
            }
        }
    }

    /// Ends what runs here when the lease is over, whatever else this worker waits for.
    pub(super) async fn watch_lease(&self) {
        let cluster = &self.inner.cluster;
        let mut held = false;
        loop {
            let left = self.inner.may_run_for();
            let holds = !left.is_zero();
            if cluster.is_leaving() {
                // Who ends this worker ends what it runs, in its own time.
                return;
            }
            if held && !holds {
                tracing::warn!("the lease is over: what ran here ends");
                self.halt().await;
            }
            if held != holds {
                cluster.work.notify_one();
            }
            held = holds;
            let next = match holds {
                true => left.min(cluster.beat_every()),
                false => cluster.beat_every(),
            };
            tokio::time::sleep(next).await;
        }
    }

    /// Ends all instances, side by side, within less than what the leader waits longer than the lease.
    async fn halt(&self) {
        let entries: Vec<Arc<Entry>> = self.inner.components.lock().values().cloned().collect();
        let limit = self.inner.cluster.lease / 10;
        let tasks = Tasks::new();
        for entry in entries {
            tasks.spawn("halt", OnError::Log, async move {
                entry.crew.halt(limit).await;
                Ok::<(), std::convert::Infallible>(())
            });
        }
        tasks.join(limit * 3).await;
    }

    /// Does what is due: schedules when it leads, starts and stops as the lease says.
    pub(super) async fn steward(&self) {
        let cluster = &self.inner.cluster;
        let mut held = false;
        loop {
            let _ = tokio::time::timeout(cluster.beat_every(), cluster.work.notified()).await;
            if cluster.leads() {
                cluster.shared.store(false, Ordering::Release);
                if let Err(error) = self.tick().await {
                    tracing::warn!(%error, "not scheduled");
                    cluster.dirty.store(true, Ordering::Release);
                }
            } else if !cluster.shared.load(Ordering::Acquire) {
                // What it took in while it was alone and led, nobody else can share.
                self.begin_sharing();
            }
            let holds = self.inner.may_run();
            if holds != held {
                self.settle_soon(None);
            }
            held = holds;
            let again = std::mem::take(&mut *cluster.again.lock());
            if !again.is_empty() {
                self.settle_soon(Some(&again));
            }
        }
    }

    fn own_beat(&self, leaves: bool) -> Beat {
        let inner = &self.inner;
        let cluster = &inner.cluster;
        let term = cluster.term.load(Ordering::Acquire);
        // What was handed on is of no interest any more.
        let mut released = cluster.released.lock();
        released.retain(|unit| {
            let known = inner
                .catalog
                .read(|view| view.assignments.get(unit).cloned());
            known.is_some_and(|a| a.owner == cluster.identity && a.to.is_some())
        });
        Beat {
            identity: cluster.identity.clone(),
            worker_id: inner.config.worker_id.clone(),
            url: inner.config.url.clone(),
            since: cluster.since,
            seq: cluster.seq.fetch_add(1, Ordering::Relaxed),
            term: (term > 0).then_some(term),
            heard: if term > 0 {
                cluster.members.lock().echo()
            } else {
                BTreeMap::new()
            },
            released: released.iter().map(ToString::to_string).collect(),
            judged: self.judge_new(),
            leaves,
        }
    }

    /// Hears the others.
    pub(super) async fn listen(&self, topic: &str) {
        let cluster = &self.inner.cluster;
        let name = format!("geminga-worker-{}-{}", cluster.identity, cluster.since);
        loop {
            let consumer = self.inner.config.client.consumer(topic);
            let consumer = consumer
                .subscription(name.as_str())
                .sub_type(SubType::Exclusive);
            let Ok(mut consumer) = consumer.build().await else {
                tokio::time::sleep(cluster.beat_every()).await;
                continue;
            };
            cluster.wake.notify_one();
            while let Ok(message) = consumer.recv().await {
                let Ok(beat) = serde_json::from_slice::<Beat>(&message.payload) else {
                    continue;
                };
                if beat.identity == cluster.identity && beat.since == cluster.since {
                    // What it says itself comes back: so it would hear a leader.
                    let held = self.inner.may_run();
                    cluster.members.lock().heard_self(Instant::now());
                    if held != self.inner.may_run() {
                        cluster.work.notify_one();
                    }
                    continue;
                }
                self.hear(beat);
            }
        }
    }

    fn hear(&self, beat: Beat) {
        let cluster = &self.inner.cluster;
        let now = Instant::now();
        let own = cluster.term.load(Ordering::Acquire);
        if own > 0 && beat.term.is_some_and(|term| term > own) {
            cluster.term.store(0, Ordering::Release);
            self.inner.catalog.stop_writing();
        }
        let held = self.inner.may_run();
        let is_news = cluster.members.lock().heard(beat, now);
        if is_news {
            // A newcomer is answered at once: it waits for its lease.
            cluster.touch();
        }
        if held != self.inner.may_run() {
            cluster.work.notify_one();
        }
    }

    /// Tells the others that this worker goes, so that nobody waits for its lease.
    pub(crate) async fn leave(&self, topic: &str) {
        self.inner.cluster.has_left.store(true, Ordering::Release);
        let coordination = match topic.strip_prefix("persistent://") {
            Some(name) => format!("non-persistent://{name}-coordinate"),
            None => return,
        };
        let said = async {
            let producer = self.inner.config.client.producer(coordination);
            let producer = producer.batching(Batching::off()).build().await?;
            let bytes = serde_json::to_vec(&self.own_beat(true)).unwrap_or_default();
            producer.send(Message::new(bytes)).await?;
            producer.close().await
        };
        // Without it they wait a few seconds longer.
        let _ = tokio::time::timeout(Duration::from_secs(1), said).await;
    }
}
