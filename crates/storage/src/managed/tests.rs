//! Tests of managed ledgers and cursors over the store in memory.

mod many;
mod model;
mod random;
mod topic;

use super::{ManagedLedger, ManagedLedgers, OpenOptions, Parts, TopicObserver};
use crate::config::ManagedConfig;
use crate::error::StoreError;
use crate::ledger::ReadLimits;
use crate::ledger::memory::{MemoryImage, MemoryStore};
use crate::metadata::EmbeddedMetadata;
use crate::state::State;
use geminga_model::Position;
use geminga_stdx::{Clock, Tasks};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::Notify;

const ALL: ReadLimits = ReadLimits::new(usize::MAX, usize::MAX);

/// One process on an imaginary machine.
struct Server {
    store: Arc<MemoryStore>,
    state: Arc<State>,
    topics: ManagedLedgers,
    tasks: Tasks,
}

impl Server {
    async fn start(image: MemoryImage, config: ManagedConfig) -> Self {
        let state = Arc::new(State::new());
        let store = MemoryStore::start(image, state.clone()).unwrap();
        Self::on(store, state, config).await
    }

    async fn on(store: Arc<MemoryStore>, state: Arc<State>, config: ManagedConfig) -> Self {
        let metadata = Arc::new(EmbeddedMetadata::new(state.clone(), store.clone()));
        let parts = Parts {
            store: store.clone(),
            log: store.clone(),
            state: state.clone(),
            metadata,
        };
        let tasks = Tasks::new();
        let topics = ManagedLedgers::start(parts, config, Clock::manual(1_000_000), &tasks)
            .await
            .unwrap();
        Self {
            store,
            state,
            topics,
            tasks,
        }
    }

    async fn open(&self, name: &str) -> Arc<ManagedLedger> {
        let options = OpenOptions {
            create: true,
            ..OpenOptions::default()
        };
        self.topics.open(name, options).await.unwrap()
    }

    fn crash(self, keep: usize) -> MemoryImage {
        let image = self.store.crash(keep);
        self.tasks.cancel();
        image
    }
}

/// Remembers what the topic told, and checks its order.
#[derive(Default)]
struct Watch {
    told: Mutex<Told>,
    changed: Notify,
}

#[derive(Default)]
struct Told {
    through: Option<Position>,
    failures: u32,
}

impl TopicObserver for Watch {
    fn durable(&self, through: Position) {
        let mut told = self.told.lock();
        assert!(told.through < Some(through), "the watermark only rises");
        told.through = Some(through);
        self.changed.notify_waiters();
    }

    fn failed(&self, _: Arc<StoreError>) {
        self.told.lock().failures += 1;
        self.changed.notify_waiters();
    }
}

impl Watch {
    async fn wait(&self, done: impl Fn(&Told) -> bool) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if done(&self.told.lock()) {
                    return;
                }
                changed.await;
            }
        };
        let limit = std::time::Duration::from_secs(20);
        tokio::time::timeout(limit, wait).await.expect("in time");
    }

    async fn durable_at(&self, position: Position) {
        self.wait(|told| told.through >= Some(position)).await;
    }
}
