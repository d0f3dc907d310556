//! Hot update: the code of a new version is started, and is ready, while the old one still runs. Then
//! the old one finishes what it has in hand, and the new one takes its place.
//!
//! What must hold: the two never read at once; what warms up for a version that is not wanted any more
//! ends; nothing else waits for code that is slow to start.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use geminga_stdx::Tasks;

use super::catalog::Record;
use super::supervisor::Crew;
use super::{Entry, Worker};
use crate::component::ComponentId;

/// A new version whose code is about to be ready.
pub(super) struct Warming {
    record: Record,
    crew: Crew,
    tasks: Tasks,
    is_ready: Arc<AtomicBool>,
}

impl Drop for Warming {
    fn drop(&mut self) {
        self.tasks.cancel();
    }
}

/// How a new version begins.
pub(super) enum Beginning {
    /// In the place of the old one, now.
    Now(Crew),
    /// The old one runs on until it is ready.
    Later,
}

impl Worker {
    /// How `crew` of a changed component begins, of which `here` are to run on this worker.
    pub(super) fn begin(
        &self,
        id: &ComponentId,
        record: &Record,
        crew: Crew,
        old: Option<&Entry>,
        here: Vec<u32>,
    ) -> Beginning {
        let inner = &self.inner;
        let mut all = inner.warming.lock();
        let is_here = |file: &String| inner.packages.join(file).exists();
        let can = record.package.as_ref().is_none_or(is_here) && crew.can_warm_up();
        let Some(old) = old.filter(|old| can && old.crew.runs() && !here.is_empty()) else {
            all.remove(id);
            return Beginning::Now(crew);
        };
        if let Some(warming) = all.get(id)
            && warming.record.runs_as(record)
        {
            return match warming.is_ready.load(Ordering::Acquire) {
                true => Beginning::Now(warming.crew.clone()),
                false => Beginning::Later,
            };
        }
        let tasks = inner.tasks.child();
        let is_ready = Arc::new(AtomicBool::new(false));
        let (worker, id_of, old) = (self.clone(), id.clone(), old.crew.clone());
        let (of, ready) = (crew.clone(), is_ready.clone());
        tasks.spawn_cancellable("function warms up", async move {
            of.warm_up(&worker.inner, &here, &old).await;
            ready.store(true, Ordering::Release);
            // Not in this task: what it does next ends it.
            let tasks = worker.inner.tasks.clone();
            tasks.spawn_cancellable("function is updated", async move {
                worker.settle(Some(&BTreeSet::from([id_of]))).await;
            });
        });
        let warming = Warming {
            record: record.clone(),
            crew,
            tasks,
            is_ready,
        };
        all.insert(id.clone(), warming);
        Beginning::Later
    }

    /// Waits until what runs here is what the catalogue says, `limit` at most.
    pub(super) async fn updated(&self, id: &ComponentId, limit: Duration) {
        let waits = async {
            while self.inner.warming.lock().contains_key(id) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            // It is being started.
            drop(self.inner.settling.of(id).await);
        };
        // It goes on behind the answer.
        let _ = tokio::time::timeout(limit, waits).await;
    }
}
