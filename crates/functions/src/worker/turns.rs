//! Who is next: changes of one component go one after the other, and changes of two do not wait for each
//! other.
//!
//! What must hold: components that nobody changes cost nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

use crate::component::ComponentId;

/// A lock for each component that somebody holds or waits for, in the order of asking.
#[derive(Default)]
pub(super) struct Turns(Mutex<Locks>);

#[derive(Default)]
struct Locks {
    by_id: BTreeMap<ComponentId, Arc<tokio::sync::Mutex<()>>>,
    /// With so many, those that nobody has are let go. In proportion to what is left then: a worker that starts has
    /// thousands at a time, and must not look through all for each.
    look_at: usize,
}

/// So few are kept, whoever has them.
const LOOK_MIN: usize = 16;

/// It is somebody's turn until this is dropped.
pub(super) type Turn = OwnedMutexGuard<()>;

impl Turns {
    pub(super) async fn of(&self, id: &ComponentId) -> Turn {
        let own = {
            let mut all = self.0.lock();
            if all.by_id.len() >= all.look_at {
                // Who holds one, or waits for it, has a reference of his own.
                all.by_id.retain(|_, lock| Arc::strong_count(lock) > 1);
                all.look_at = LOOK_MIN.max(all.by_id.len() * 2);
            }
            all.by_id.entry(id.clone()).or_default().clone()
        };
        own.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component::Kind;

    fn id(name: &str) -> ComponentId {
        ComponentId {
            kind: Kind::Function,
            tenant: "t".to_owned(),
            namespace: "n".to_owned(),
            name: name.to_owned(),
        }
    }

    #[tokio::test]
    async fn one_waits_for_its_own_kind_alone_and_leaves_nothing() {
        let turns = Turns::default();
        let first = turns.of(&id("a")).await;
        let own = id("a");
        let mut second = Box::pin(turns.of(&own));
        tokio::select! {
            biased;
            _ = &mut second => panic!("two at once"),
            () = std::future::ready(()) => {}
        }
        drop(turns.of(&id("b")).await);
        drop(first);
        drop(second.await);
        for n in 0..1000 {
            drop(turns.of(&id(&format!("c{n}"))).await);
        }
        assert!(turns.0.lock().by_id.len() <= LOOK_MIN);
    }
}
