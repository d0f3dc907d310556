//! A broker on the embedded store, over a disk that can lose power.

use std::sync::Arc;
use std::time::Duration;

use geminga_broker::{Broker, BrokerConfig};
use geminga_stdx::{Clock, Tasks};
use geminga_storage::disk::faulty::FaultyDisk;
use geminga_storage::{EmbeddedConfig, EmbeddedStore, ManagedConfig, State, Storage};

use crate::wire::Wire;

pub(crate) struct Node {
    pub(crate) broker: Broker,
    tasks: Tasks,
    engine: Arc<EmbeddedStore>,
}

impl Node {
    /// None when the disk is cut off meanwhile.
    pub(crate) async fn start(disk: FaultyDisk) -> Option<Node> {
        Node::start_with(disk, BrokerConfig::default(), Clock::system()).await
    }

    pub(crate) async fn start_with(
        disk: FaultyDisk,
        config: BrokerConfig,
        clock: Clock,
    ) -> Option<Node> {
        let state = Arc::new(State::new());
        let store = EmbeddedConfig {
            log_segment_bytes: 1 << 20,
            ..EmbeddedConfig::default()
        };
        let engine = EmbeddedStore::open_on(Arc::new(disk), store, state.clone()).ok()?;
        let tasks = Tasks::new();
        let managed = ManagedConfig::default();
        let storage = Storage::on(engine.clone(), state, managed, clock.clone(), &tasks).await;
        let broker = Broker::start_with_clock(config, storage.ok()?, clock).await;
        Some(Node {
            broker: broker.ok()?,
            tasks,
            engine,
        })
    }

    pub(crate) async fn end(self) {
        self.tasks.cancel();
        self.broker.stop(Duration::from_millis(20)).await;
        let engine = self.engine.clone();
        let closed = tokio::task::spawn_blocking(move || engine.close()).await;
        // It was cut off; what it says of that is not the question here.
        drop(closed);
    }

    pub(crate) async fn connect(&self) -> Wire {
        let mut wire = Wire::new(self.broker.connect_in_process());
        wire.handshake().await;
        wire
    }
}

/// Resolves a little after the power went off: nobody is told anything any more.
pub(crate) async fn without_power(disk: FaultyDisk) {
    while !disk.is_off() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_millis(5)).await;
}
