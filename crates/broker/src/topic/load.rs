//! A topic comes into memory on first use and leaves it when idle.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use bytes::BytesMut;
use geminga_model::{Position, TopicName};
use geminga_storage::StoreError;
use geminga_storage::managed::{ManagedLedger, TopicObserver};
use parking_lot::{Mutex, RwLock};

use super::compaction;
use super::nonpersistent::Rate;
use super::producers::Access;
use super::shared_read::SharedRead;
use super::{Counters, Life, State, Topic};
use crate::broker::Core;
use crate::error::BrokerError;
use crate::policies::store::InForce;
use crate::replication::is_replicator;
use crate::subscription::Subscription;

/// Cursors that are not subscriptions.
pub(super) const INTERNAL_CURSORS: [&str; 2] = [super::dedup::CURSOR, compaction::CURSOR];

/// What the store tells about a topic's entries, on its completion thread.
struct Observer(Weak<Topic>);

impl TopicObserver for Observer {
    fn durable(&self, through: Position) {
        self.guarded(|topic| topic.durable(through));
    }

    fn failed(&self, error: Arc<StoreError>) {
        self.guarded(|topic| topic.failed(&error.to_string()));
    }
}

impl Observer {
    /// A bug in one topic takes that topic down, and not the thread that serves all.
    fn guarded(&self, call: impl FnOnce(&Arc<Topic>)) {
        let Some(topic) = self.0.upgrade() else {
            return;
        };
        if catch_unwind(AssertUnwindSafe(|| call(&topic))).is_err() {
            tracing::error!(topic = %topic.name, "dispatch panicked; the topic is closed");
            topic.failed("dispatch panicked");
        }
    }
}

impl Topic {
    pub(crate) fn new(
        core: &Arc<Core>,
        name: TopicName,
        ledger: Arc<ManagedLedger>,
        in_force: InForce,
    ) -> Arc<Topic> {
        let now_ms = core.clock.now_ms();
        let last = ledger.last_position();
        let mut subscriptions = Vec::new();
        let cursors = ledger.cursors().into_iter();
        let cursors = cursors.filter(|cursor| {
            !INTERNAL_CURSORS.contains(&cursor.name()) && !is_replicator(cursor.name())
        });
        for (id, cursor) in (0..).zip(cursors) {
            let name = cursor.name().into();
            let begins = compaction::begin_of(&cursor.properties());
            let mut subscription = Subscription::new(id, name, cursor, true, last);
            if let Some((asked, stands)) = begins {
                subscription.begin_at(asked, stands);
            }
            subscriptions.push(subscription);
        }
        let epoch = ledger
            .properties()
            .get("topicEpoch")
            .and_then(|text| text.parse().ok());
        let topic = Arc::new(Topic {
            terminated: AtomicBool::new(ledger.is_terminated()),
            in_force: RwLock::new(in_force),
            replicating: tokio::sync::Mutex::new(()),
            snapshots: Mutex::default(),
            full_name: name.as_str().into(),
            name,
            core: core.clone(),
            shared_read: SharedRead::new(core.shared_read_used.clone()),
            state: Mutex::new(State {
                life: Life::Open,
                producers: HashMap::new(),
                access: Access::new(epoch),
                runs: VecDeque::new(),
                receipts: VecDeque::new(),
                dedup: None,
                scratch: BytesMut::new(),
                next_subscription: subscriptions.len() as u32,
                subscriptions,
                replicators: Vec::new(),
                keeping_alike: None,
                transactions: None,
                idle_since_ms: now_ms,
                inactive_since_ms: now_ms,
                quota_left: None,
                rates: None,
                counters: Counters::default(),
                view: None,
                compaction: Default::default(),
                dropped: Rate::default(),
            }),
            ledger,
        });
        if topic.is_persistent() {
            let observer = Observer(Arc::downgrade(&topic));
            topic.ledger.set_observer(Arc::new(observer));
        }
        topic.apply_policies(&mut topic.lock());
        topic
    }

    /// Whether the topic may be used; if so, it is not idle now.
    pub(crate) fn touch(&self, now_ms: u64) -> bool {
        let mut state = self.lock();
        let open = state.life == Life::Open;
        if open {
            state.idle_since_ms = now_ms;
        }
        open
    }

    /// Whether the topic may leave memory.
    pub(crate) fn is_idle_since(&self, before_ms: u64) -> bool {
        let state = self.lock();
        state.is_idle() && state.idle_since_ms <= before_ms
    }

    /// Nobody may join any more; whoever is connected is told to come back.
    pub(crate) fn close(self: &Arc<Topic>) {
        let mut state = self.lock();
        state.life = Life::Closed;
        state.stop_replicators();
        let producers: Vec<_> = state.producers.values().cloned().collect();
        for producer in producers {
            self.drop_producer(&mut state, &producer);
        }
        for subscription in &mut state.subscriptions {
            for consumer in subscription.disconnect_all() {
                super::seek::close_consumer(&consumer);
            }
            if let Some(fence) = &subscription.fence {
                fence.notify_waiters();
            }
        }
        self.release_stopped(&mut state);
        self.forget_runs(&mut state);
        if let Some(dedup) = &state.dedup {
            dedup.close();
        }
    }

    /// Closes the topic if nobody uses it.
    pub(crate) fn close_if_idle(self: &Arc<Topic>) -> bool {
        let mut state = self.lock();
        // The caller and the table of topics hold it; a third one is about to use it.
        let idle = state.is_idle() && Arc::strong_count(self) <= 2;
        if idle {
            state.life = Life::Closed;
            state.stop_replicators();
        }
        idle
    }

    /// No more entries; consumers hear of the end when they have read all.
    pub(crate) async fn terminate(self: &Arc<Topic>) -> Result<Position, BrokerError> {
        self.require_persistent("Termination")?;
        let last = self.ledger.terminate().await?;
        self.terminated.store(true, Ordering::Release);
        let mut state = self.lock();
        let producers: Vec<_> = state.producers.values().cloned().collect();
        for producer in producers {
            self.drop_producer(&mut state, &producer);
        }
        self.dispatch_all(&mut state);
        Ok(last)
    }
}
