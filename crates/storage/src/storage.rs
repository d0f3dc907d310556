//! The storage of one process, put together: engine, metadata, managed ledgers.

use crate::config::ManagedConfig;
use crate::embedded::{EmbeddedConfig, EmbeddedStore, Remains, Repair, RepairHost};
use crate::error::{ManagedError, StoreError};
use crate::ledger::memory::{MemoryImage, MemoryStore};
use crate::ledger::{LedgerStore, StateLog};
use crate::managed::fit::{Fitted, fit};
use crate::managed::{ManagedLedgers, Parts};
use crate::metadata::{EmbeddedMetadata, MetadataStore};
use crate::state::State;
use geminga_model::LedgerId;
use geminga_stdx::{Clock, Tasks};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Clones are the same storage.
#[derive(Clone)]
pub struct Storage {
    pub topics: ManagedLedgers,
    pub metadata: Arc<dyn MetadataStore>,
    /// None in memory.
    pub engine: Option<Arc<EmbeddedStore>>,
}

impl Storage {
    /// Opens or creates the embedded store in `dir`. Reads the log: call it once, at the start.
    pub async fn open(
        dir: &Path,
        embedded: EmbeddedConfig,
        managed: ManagedConfig,
        clock: Clock,
        tasks: &Tasks,
    ) -> Result<Self, ManagedError> {
        let state = Arc::new(State::new());
        let engine = EmbeddedStore::open(dir, embedded, state.clone())?;
        let built = Self::on(engine.clone(), state, managed, clock, tasks).await?;
        Ok(Self {
            engine: Some(engine),
            ..built
        })
    }

    /// Keeps everything in memory, for tests.
    pub async fn memory(
        managed: ManagedConfig,
        clock: Clock,
        tasks: &Tasks,
    ) -> Result<Self, ManagedError> {
        let state = Arc::new(State::new());
        let store = MemoryStore::start(MemoryImage::default(), state.clone())?;
        Self::on(store, state, managed, clock, tasks).await
    }

    /// On a store that was opened with `state`.
    pub async fn on<S: LedgerStore + StateLog>(
        store: Arc<S>,
        state: Arc<State>,
        managed: ManagedConfig,
        clock: Clock,
        tasks: &Tasks,
    ) -> Result<Self, ManagedError> {
        let metadata: Arc<dyn MetadataStore> =
            Arc::new(EmbeddedMetadata::new(state.clone(), store.clone()));
        let parts = Parts {
            store: store.clone(),
            log: store,
            state,
            metadata: metadata.clone(),
        };
        let topics = ManagedLedgers::start(parts, managed, clock, tasks).await?;
        Ok(Self {
            topics,
            metadata,
            engine: None,
        })
    }

    /// Copies what can be read of the data in `from` to `into`, which must not exist or be empty,
    /// with topics and cursors that fit what is left; only reads without `into`. `progress` is told
    /// how many bytes were read, of how many.
    pub fn repair(
        from: &Path,
        into: Option<&Path>,
        embedded: &EmbeddedConfig,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(Repair, Fitted), StoreError> {
        struct Host<'a> {
            state: &'a State,
            progress: &'a mut dyn FnMut(u64, u64),
            fitted: Fitted,
        }
        impl RepairHost for Host<'_> {
            fn progress(&mut self, done_bytes: u64, total_bytes: u64) {
                (self.progress)(done_bytes, total_bytes);
            }
            fn read(&mut self, ledgers: &BTreeMap<LedgerId, Remains>) {
                self.fitted = fit(self.state, ledgers);
            }
        }
        let state = State::new();
        let mut host = Host {
            state: &state,
            progress,
            fitted: Fitted::default(),
        };
        let repair = EmbeddedStore::repair(from, into, embedded, &state, &mut host)?;
        Ok((repair, host.fitted))
    }

    /// Writes the acks that are not written yet, and ends the engine's threads. To be called last.
    pub async fn close(&self) -> Result<(), ManagedError> {
        let flushed = self.topics.flush().await;
        if let Some(engine) = self.engine.clone() {
            // It waits for the disk and for threads.
            let _ = tokio::task::spawn_blocking(move || engine.close()).await;
        }
        flushed
    }
}
