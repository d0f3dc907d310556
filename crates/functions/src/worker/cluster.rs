//! Several workers on one broker: who leads, who lives, who runs what.
//!
//! The leader is who holds the exclusive producer of the catalogue's topic: the broker sees to it that
//! there is one, and refuses what a former leader still writes. Workers send beats over a
//! non-persistent topic (`membership`, `beat`); the leader (`term`) decides (`schedule`) and writes
//! assignments to the catalogue (`placing`); everybody else reads along; users ask (`roster`). What must
//! hold: a worker runs a unit only while the catalogue calls it the owner and while it leads and hears
//! itself, or holds its lease; a unit moves only after its owner let go or its lease is over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use geminga_stdx::tasks::OnError;
use geminga_stdx::{Clock, Tasks};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::catalog::{Assignment, View};
use super::membership::Members;
use super::schedule::Unit;
use super::{Entry, Inner, Worker};
use crate::component::ComponentId;
use crate::plan::{Input, Output, Plan};

mod beat;
mod placing;
mod roster;
mod term;

/// How long a start waits to learn whether this worker leads.
const START_WAIT: Duration = Duration::from_secs(10);

/// This worker among the others.
pub(crate) struct Cluster {
    pub(crate) identity: String,
    since: u64,
    lease: Duration,
    members: Mutex<Members>,
    seq: AtomicU64,
    /// The term in which it leads; 0 when it follows.
    term: AtomicU64,
    /// Something changed that the leader has to look at.
    dirty: AtomicBool,
    /// Moves are not held back: somebody asked for it.
    rebalance: AtomicBool,
    /// Packages are on their way to the others.
    shares: AtomicBool,
    /// While it follows: the others have what it has.
    shared: AtomicBool,
    /// This worker ends: it begins nothing more.
    leaving: AtomicBool,
    /// It has said so: it says nothing more.
    has_left: AtomicBool,
    placed: Mutex<BTreeMap<Unit, Instant>>,
    released: Mutex<BTreeSet<Unit>>,
    /// Components that could not be started and are looked at again.
    again: Mutex<BTreeSet<ComponentId>>,
    /// Workers that are being drained, and since when.
    draining: Mutex<BTreeMap<String, Instant>>,
    /// Wakes the beat.
    wake: Notify,
    /// Wakes the steward.
    work: Notify,
    alone: bool,
}

/// A worker as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberInfo {
    pub identity: String,
    pub worker_id: String,
    /// Its REST address; empty when it has none.
    pub url: String,
    pub leads: bool,
    pub drained: bool,
}

/// Who runs an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    Here,
    At(MemberInfo),
    Nobody,
}

/// How far the draining of a worker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainStatus {
    NotRun,
    Running,
    Success,
}

impl Cluster {
    pub(crate) fn new(identity: String, lease: Duration, alone: bool) -> Self {
        Self {
            members: Mutex::new(Members::new(identity.clone(), lease, Instant::now())),
            identity,
            since: Clock::system().now_ms(),
            lease,
            seq: AtomicU64::new(0),
            term: AtomicU64::new(u64::from(alone)),
            dirty: AtomicBool::new(false),
            rebalance: AtomicBool::new(false),
            shares: AtomicBool::new(false),
            shared: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            has_left: AtomicBool::new(false),
            placed: Mutex::default(),
            released: Mutex::default(),
            again: Mutex::default(),
            draining: Mutex::default(),
            wake: Notify::new(),
            work: Notify::new(),
            alone,
        }
    }

    pub(crate) fn leads(&self) -> bool {
        self.term.load(Ordering::Acquire) > 0
    }

    pub(crate) fn has_others(&self) -> bool {
        let members = self.members.lock();
        members
            .all()
            .any(|member| member.beat.identity != self.identity)
    }

    pub(crate) fn try_again(&self, id: &ComponentId) {
        self.again.lock().insert(id.clone());
    }

    /// This worker ends.
    pub(crate) fn go(&self) {
        self.leaving.store(true, Ordering::Release);
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    pub(crate) fn touch(&self) {
        self.dirty.store(true, Ordering::Release);
        self.wake.notify_one();
        self.work.notify_one();
    }

    fn beat_every(&self) -> Duration {
        self.lease / 5
    }
}

impl Inner {
    /// Whether this worker may run what is its own, now.
    pub(crate) fn may_run(&self) -> bool {
        !self.may_run_for().is_zero()
    }

    /// For how long it may, if nothing is heard meanwhile.
    fn may_run_for(&self) -> Duration {
        let cluster = &self.cluster;
        if cluster.is_leaving() {
            return Duration::ZERO;
        }
        if cluster.alone {
            return cluster.lease;
        }
        let members = cluster.members.lock();
        let now = Instant::now();
        match cluster.leads() {
            true => members.leadership_left(now),
            false => members.lease_left(now),
        }
    }

    /// Whether the catalogue gives an instance to this worker.
    pub(crate) fn is_mine(&self, id: &ComponentId, instance: u32) -> bool {
        if self.cluster.alone {
            return true;
        }
        self.catalog.read(|view| {
            assignment(view, id, instance)
                .is_some_and(|a| a.owner == self.cluster.identity && a.to.is_none())
        })
    }

    /// Whether a component needs files that only one machine is known to have.
    pub(crate) fn is_pinned(&self, id: &ComponentId, plan: &Plan) -> bool {
        let needs_code = plan.process.spec().is_some()
            && self.catalog.read(|view| {
                let record = view.components.get(id);
                record.is_some_and(|record| record.package.is_none())
            });
        needs_code || matches!(plan.input, Input::File(_)) || matches!(plan.output, Output::File(_))
    }

    /// All of a component has stopped here but these instances: what is on its way may go on.
    pub(crate) fn released(&self, id: &ComponentId, running: &[u32]) {
        let own = &self.cluster.identity;
        let leaving: Vec<Unit> = self.catalog.read(|view| {
            let first = Unit {
                id: id.clone(),
                instance: None,
            };
            let from = view.assignments.range(first..);
            let of = from.take_while(|(unit, _)| unit.id == *id);
            let stopped = |unit: &Unit| match unit.instance {
                Some(instance) => !running.contains(&instance),
                None => running.is_empty(),
            };
            let leaves = of.filter(|(unit, a)| a.owner == *own && a.to.is_some() && stopped(unit));
            leaves.map(|(unit, _)| unit.clone()).collect()
        });
        if !leaving.is_empty() {
            self.cluster.released.lock().extend(leaving);
            self.cluster.wake.notify_one();
            self.cluster.work.notify_one();
        }
    }
}

/// Who runs an instance, as the catalogue says.
fn assignment<'a>(view: &'a View, id: &ComponentId, instance: u32) -> Option<&'a Assignment> {
    let whole = Unit {
        id: id.clone(),
        instance: None,
    };
    view.assignments.get(&whole).or_else(|| {
        view.assignments.get(&Unit {
            instance: Some(instance),
            ..whole
        })
    })
}

impl Worker {
    /// Joins the other workers; answers when it is known whether this one leads.
    pub(crate) async fn join(&self, topic: String) {
        let (ready, is_ready) = oneshot::channel();
        let coordination = match topic.strip_prefix("persistent://") {
            Some(name) => format!("non-persistent://{name}-coordinate"),
            None => format!("non-persistent://public/functions/{topic}-coordinate"),
        };
        let tasks = &self.inner.tasks;
        let worker = self.clone();
        tasks.spawn_cancellable("worker catalogue", async move {
            worker.conduct(&topic, ready).await;
        });
        let worker = self.clone();
        tasks.spawn_cancellable("worker steward", async move { worker.steward().await });
        let worker = self.clone();
        tasks.spawn_cancellable("worker lease", async move { worker.watch_lease().await });
        let (worker, said) = (self.clone(), coordination.clone());
        tasks.spawn_cancellable("worker beat", async move { worker.beat(&said).await });
        let worker = self.clone();
        tasks.spawn_cancellable("worker membership", async move {
            worker.listen(&coordination).await;
        });
        // A worker that knows nothing yet still answers; it runs nothing without a lease.
        let _ = tokio::time::timeout(START_WAIT, is_ready).await;
    }
}

/// The name by which a worker is known as long as it has the same data.
pub(crate) fn identity(data_dir: &std::path::Path) -> std::io::Result<String> {
    let path = data_dir.join("worker-identity");
    match std::fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let name = geminga_stdx::Random::from_entropy().name(12);
    let next = data_dir.join("worker-identity.next");
    std::fs::write(&next, &name)?;
    std::fs::File::open(&next)?.sync_all()?;
    std::fs::rename(&next, &path)?;
    std::fs::File::open(data_dir)?.sync_all()?;
    Ok(name)
}

/// What ends with the worker.
pub(crate) fn spawn_end(tasks: &Tasks, entry: Arc<Entry>, grace: Duration) {
    tasks.spawn("stop", OnError::Log, async move {
        entry.crew.stop_all(grace).await;
        Ok::<(), std::convert::Infallible>(())
    });
}
