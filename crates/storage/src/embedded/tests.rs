use std::sync::Arc;

use super::*;
use crate::SpaceLevel;
use crate::disk::faulty::{Faults, FaultyDisk};
use crate::ledger::contract::{self, Harness};

mod crash;
mod damage;
mod kill;

/// Small files, so that a test goes through many of them.
pub(super) fn small(durability: Durability) -> EmbeddedConfig {
    EmbeddedConfig {
        durability,
        log_segment_bytes: 256 << 10,
        log_segments_max: 6,
        space_low_bytes: 2 << 20,
        space_reserve_bytes: 1 << 20,
        rewrite_bytes_per_second: 1 << 30,
        ..EmbeddedConfig::default()
    }
}

struct Machine {
    disk: FaultyDisk,
    durability: Durability,
}

impl Harness for Machine {
    type Store = EmbeddedStore;

    fn open(&mut self, machine: Arc<dyn StateMachine>) -> Arc<EmbeddedStore> {
        EmbeddedStore::open_on(Arc::new(self.disk.clone()), small(self.durability), machine)
            .unwrap()
    }

    fn crash(&mut self, store: Arc<EmbeddedStore>) {
        self.disk.power_off();
        drop(store);
        self.disk = match self.durability {
            Durability::Fsync => self.disk.after_crash(),
            Durability::Os => self.disk.after_kill(),
        };
    }

    fn checkpoint(&mut self, store: &EmbeddedStore) {
        store.checkpoint().unwrap();
    }

    fn set_space(&mut self, store: &EmbeddedStore, level: SpaceLevel) {
        let used: u64 = self.disk.list().unwrap().iter().map(|(_, size)| size).sum();
        let free = match level {
            SpaceLevel::Ample => 1 << 40,
            SpaceLevel::Low => 3 << 19,
            SpaceLevel::Full => 100 << 10,
        };
        let capacity_bytes = Some(used + free);
        self.disk.set_faults(Faults {
            capacity_bytes,
            ..Faults::default()
        });
        store.space();
    }
}

#[tokio::test]
async fn the_contract_holds_after_power_loss() {
    let mut seed = 0;
    let new = || {
        seed += 1;
        Machine {
            disk: FaultyDisk::new(seed),
            durability: Durability::Fsync,
        }
    };
    contract::check_all(new).await;
}

#[tokio::test]
async fn the_contract_holds_without_direct_io() {
    let new = || {
        let disk = FaultyDisk::new(7);
        disk.set_faults(Faults {
            no_direct: true,
            ..Faults::default()
        });
        Machine {
            disk,
            durability: Durability::Fsync,
        }
    };
    contract::check_all(new).await;
}

#[tokio::test]
async fn the_contract_holds_in_the_page_cache() {
    let new = || Machine {
        disk: FaultyDisk::new(9),
        durability: Durability::Os,
    };
    contract::check_all(new).await;
}
