//! A broker on a store in memory, which can crash and start again from what was durable.

use std::sync::Arc;
use std::time::{Duration, Instant};

use geminga_broker::{Broker, BrokerConfig};
use geminga_stdx::{Clock, Tasks};
use geminga_storage::ledger::memory::{MemoryImage, MemoryStore};
use geminga_storage::{ManagedConfig, State, Storage};

use crate::wire::Wire;

pub(crate) struct Server {
    pub(crate) broker: Broker,
    pub(crate) store: Arc<MemoryStore>,
    tasks: Tasks,
}

impl Server {
    pub(crate) async fn new() -> Server {
        Server::with(BrokerConfig::default()).await
    }

    pub(crate) async fn with(config: BrokerConfig) -> Server {
        Server::on(MemoryImage::default(), config, ManagedConfig::default()).await
    }

    pub(crate) async fn on(
        image: MemoryImage,
        config: BrokerConfig,
        managed: ManagedConfig,
    ) -> Server {
        let state = Arc::new(State::new());
        let store = MemoryStore::start(image, state.clone()).unwrap();
        let tasks = Tasks::new();
        let storage = Storage::on(store.clone(), state, managed, Clock::system(), &tasks)
            .await
            .unwrap();
        let broker = Broker::start(config, storage).await.unwrap();
        Server {
            broker,
            store,
            tasks,
        }
    }

    pub(crate) async fn connect(&self) -> Wire {
        let mut wire = self.connect_raw();
        wire.handshake().await;
        wire
    }

    /// As a client that came by the network, and is not told of its own process.
    pub(crate) async fn connect_from_outside(&self) -> Wire {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        self.broker.serve_stream(ours, "outside".to_owned());
        let mut wire = Wire::new(theirs);
        wire.handshake().await;
        wire
    }

    pub(crate) fn connect_raw(&self) -> Wire {
        Wire::new(self.broker.connect_in_process())
    }

    /// Power loss: what was durable, and a broker on it.
    pub(crate) async fn crash_and_restart(self, config: BrokerConfig) -> Server {
        let image = self.store.crash(0);
        self.tasks.cancel();
        self.broker.stop(Duration::from_millis(50)).await;
        Server::on(image, config, ManagedConfig::default()).await
    }
}

/// Waits until `check` gives something.
pub(crate) async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(Instant::now() < deadline, "it did not happen: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
