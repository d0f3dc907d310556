//! Several workers on one broker: who leads, who lives, who runs what.
//!
//! The leader is who holds the exclusive producer of the catalogue's topic: the broker sees to it that
//! there is one, and refuses what a former leader still writes. Workers send beats over a
//! non-persistent topic (`membership`); the leader decides (`schedule`) and writes assignments to the
//! catalogue; everybody else reads along. What must hold: a worker runs a unit only while the
//! catalogue calls it the owner and while it leads and hears itself, or holds its lease; a unit moves
//! only after its owner let go or its lease is over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use geminga_client::{
    Batching, Compression, Message, MessageId, Producer, ProducerAccessMode, Reader, SubType,
};
use geminga_stdx::Clock;
use geminga_stdx::tasks::OnError;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::catalog::{self, Assignment, Key, Leader, Value, View};
use super::membership::{Beat, Members};
use super::schedule::{self, Living, Standing, Step, Unit};
use super::{Inner, Worker};
use crate::component::ComponentId;
use crate::error::WorkerError;
use crate::plan::{Input, Output, Plan, Process};

/// Units that may be on their way from one worker to another at once.
const MOVES_MAX: usize = 4;
/// A unit that was moved is left alone for so many leases.
const REST_LEASES: u32 = 6;
/// How long a start waits to learn whether this worker leads.
const START_WAIT: Duration = Duration::from_secs(10);
/// How long a worker that is not the first looks whether it could lead before it says it is ready.
const FOLLOW_AFTER: Duration = Duration::from_millis(500);

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
    /// This worker ends: it begins nothing more.
    leaving: AtomicBool,
    /// It has said so: it says nothing more.
    has_left: AtomicBool,
    placed: Mutex<BTreeMap<Unit, Instant>>,
    released: Mutex<BTreeSet<Unit>>,
    /// Components that could not be started and are looked at again.
    again: Mutex<BTreeSet<ComponentId>>,
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
            leaving: AtomicBool::new(false),
            has_left: AtomicBool::new(false),
            placed: Mutex::default(),
            released: Mutex::default(),
            again: Mutex::default(),
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
        let needs_code = matches!(plan.process, Process::Host(..))
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
            let of = view.assignments.iter().filter(|(unit, _)| unit.id == *id);
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

/// The units of a component, each with its weight. Instances that share state or a table in the
/// worker's memory are one unit.
fn units(id: &ComponentId, plan: &Plan, parallelism: u32) -> Vec<(Unit, u32)> {
    let spreads = match &plan.process {
        Process::Host(_, spec) => spec.options.spread,
        Process::Identity => !matches!(plan.output, Output::Table(_)),
    };
    let unit = |instance| Unit {
        id: id.clone(),
        instance,
    };
    if spreads && parallelism > 1 {
        (0..parallelism).map(|n| (unit(Some(n)), 1)).collect()
    } else {
        vec![(unit(None), parallelism)]
    }
}

impl Worker {
    /// Gives the units of a new or changed component to workers.
    pub(crate) async fn assign(&self, id: &ComponentId, plan: &Plan) -> Result<(), WorkerError> {
        let cluster = &self.inner.cluster;
        if cluster.alone {
            return Ok(());
        }
        let parallelism = self.record(id)?.component.parallelism();
        let wanted = units(id, plan, parallelism);
        let known: Vec<Unit> = self.assigned_units(id);
        for unit in known
            .iter()
            .filter(|known| !wanted.iter().any(|(unit, _)| unit == *known))
        {
            self.inner
                .catalog
                .remove(Key::Assignment(unit.clone()))
                .await?;
        }
        if self.inner.is_pinned(id, plan) {
            // Only this machine is known to have its files.
            let living = self.living();
            for (unit, _) in wanted {
                let owner = self.assigned(&unit).map(|a| a.owner);
                let lives = |owner| living.iter().any(|worker| worker.name == owner);
                if !owner.is_some_and(lives) {
                    self.give(unit, &cluster.identity).await?;
                }
            }
            return Ok(());
        }
        if wanted.iter().all(|(unit, _)| known.contains(unit)) {
            return Ok(());
        }
        let drained = self
            .inner
            .catalog
            .read(|view| view.drains.contains_key(&cluster.identity));
        if !cluster.has_others() && !drained {
            let missing = wanted.into_iter().filter(|(unit, _)| !known.contains(unit));
            for (unit, _) in missing {
                self.give(unit, &cluster.identity).await?;
            }
            return Ok(());
        }
        let mut standing = self.standing();
        standing.retain(|s| s.unit.id != *id);
        standing.extend(wanted.into_iter().map(|(unit, weight)| {
            let known = self.assigned(&unit);
            Standing {
                unit,
                weight,
                owner: known.as_ref().map(|a| a.owner.clone()),
                to: known.and_then(|a| a.to),
                rests: false,
                pinned: false,
            }
        }));
        for step in schedule::decide(&standing, &self.living(), 0) {
            match step {
                // Those whose worker is gone, and units of others, are for `tick`: it knows how long
                // they were silent.
                Step::Place { unit, worker } if unit.id == *id && !known.contains(&unit) => {
                    self.give(unit, &worker).await?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn assigned(&self, unit: &Unit) -> Option<Assignment> {
        let catalog = &self.inner.catalog;
        catalog.read(|view| view.assignments.get(unit).cloned())
    }

    pub(crate) async fn unassign(&self, id: &ComponentId) -> Result<(), WorkerError> {
        for unit in self.assigned_units(id) {
            self.inner.cluster.placed.lock().remove(&unit);
            self.inner.catalog.remove(Key::Assignment(unit)).await?;
        }
        Ok(())
    }

    fn assigned_units(&self, id: &ComponentId) -> Vec<Unit> {
        let first = Unit {
            id: id.clone(),
            instance: None,
        };
        self.inner.catalog.read(|view| {
            let from = view.assignments.range(first..);
            from.map(|(unit, _)| unit)
                .take_while(|unit| unit.id == *id)
                .cloned()
                .collect()
        })
    }

    async fn give(&self, unit: Unit, worker: &str) -> Result<(), WorkerError> {
        self.inner
            .cluster
            .placed
            .lock()
            .insert(unit.clone(), Instant::now());
        let value = Value::Assignment(Assignment {
            owner: worker.to_owned(),
            to: None,
        });
        self.inner
            .catalog
            .put_soon(Key::Assignment(unit), value)
            .await
    }

    /// How all units stand.
    fn standing(&self) -> Vec<Standing> {
        let inner = &self.inner;
        let entries: Vec<_> = inner
            .components
            .lock()
            .iter()
            .map(|(id, e)| (id.clone(), e.clone()))
            .collect();
        let rest = inner.cluster.lease * REST_LEASES;
        let force = inner.cluster.rebalance.load(Ordering::Acquire);
        let placed = inner.cluster.placed.lock().clone();
        let rests = |unit: &Unit| !force && placed.get(unit).is_some_and(|at| at.elapsed() < rest);
        let mut all = Vec::new();
        for (id, entry) in entries {
            for (unit, weight) in units(&id, &entry.crew.plan, entry.crew.len()) {
                let known = self.assigned(&unit);
                all.push(Standing {
                    rests: rests(&unit),
                    pinned: inner.is_pinned(&id, &entry.crew.plan),
                    unit,
                    weight,
                    owner: known.as_ref().map(|a| a.owner.clone()),
                    to: known.and_then(|a| a.to),
                });
            }
        }
        all
    }

    fn living(&self) -> Vec<Living> {
        let drains = self.inner.catalog.read(|view| view.drains.clone());
        let living = |name: String| Living {
            accepts: !drains.contains_key(&name),
            name,
        };
        let mut names: BTreeSet<String> = BTreeSet::from([self.inner.cluster.identity.clone()]);
        let members = self.inner.cluster.members.lock();
        names.extend(members.all().map(|member| member.beat.identity.clone()));
        names.into_iter().map(living).collect()
    }

    /// The leader looks at everything and takes the next steps.
    async fn tick(&self) -> Result<(), WorkerError> {
        let inner = &self.inner;
        let cluster = &inner.cluster;
        if !cluster.dirty.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        self.end_drains().await?;
        let mut touched = self.end_moves().await?;
        let living = self.living();
        let mut standing = self.standing();
        if !cluster.members.lock().had_time(Instant::now()) {
            // A new leader does not know yet who lives: what may run somewhere is left alone.
            let known = |name: &String| living.iter().any(|worker| worker.name == *name);
            standing.retain(|s| s.owner.as_ref().is_none_or(known));
            cluster.dirty.store(true, Ordering::Release);
        }
        let force = cluster.rebalance.load(Ordering::Acquire);
        let moves = if force { usize::MAX } else { MOVES_MAX };
        let mut steps = schedule::decide(&standing, &living, moves);
        steps.extend(self.inherited(&standing, &living));
        let mut moved = false;
        for step in steps {
            match step {
                Step::Place { unit, worker } => {
                    tracing::info!(%unit, worker, "given to a worker");
                    touched.insert(unit.id.clone());
                    self.give(unit, &worker).await?;
                }
                Step::Move { unit, from, to } => {
                    tracing::info!(%unit, from, to, "moves");
                    moved = true;
                    touched.insert(unit.id.clone());
                    cluster.placed.lock().insert(unit.clone(), Instant::now());
                    let value = Value::Assignment(Assignment {
                        owner: from,
                        to: Some(to),
                    });
                    inner.catalog.put_soon(Key::Assignment(unit), value).await?;
                }
            }
        }
        if moved {
            cluster.dirty.store(true, Ordering::Release);
        } else {
            cluster.rebalance.store(false, Ordering::Release);
        }
        let resting = standing.iter().any(|s| s.rests);
        if resting || standing.iter().any(|s| s.to.is_some()) {
            cluster.dirty.store(true, Ordering::Release);
        }
        if !touched.is_empty() {
            self.settle(Some(&touched)).await;
        }
        // Before it is needed: the one that has it may be the next to go. Nothing waits for it.
        if cluster.has_others() && !cluster.shares.swap(true, Ordering::AcqRel) {
            let worker = self.clone();
            inner.tasks.spawn_cancellable("share packages", async move {
                worker.share_all().await;
                worker.inner.cluster.shares.store(false, Ordering::Release);
            });
        }
        Ok(())
    }

    /// What only its worker had the files for, which is gone, and this worker has them too: it is on
    /// the same machine, or the disk is shared.
    fn inherited(&self, standing: &[Standing], living: &[Living]) -> Vec<Step> {
        let lives = |name: &String| living.iter().any(|worker| worker.name == *name);
        let orphans = standing.iter().filter(|s| {
            s.pinned
                && s.owner.as_ref().is_some_and(|owner| !lives(owner))
                && !s.to.as_ref().is_some_and(lives)
        });
        let has_code = |id: &ComponentId| {
            let Ok(entry) = self.entry(id) else {
                return false;
            };
            let plan = &entry.crew.plan;
            let is_file =
                matches!(plan.input, Input::File(_)) || matches!(plan.output, Output::File(_));
            !is_file && matches!(&plan.process, Process::Host(_, spec) if spec.code.path.exists())
        };
        let own = &self.inner.cluster.identity;
        orphans
            .filter(|s| has_code(&s.unit.id))
            .map(|s| Step::Place {
                unit: s.unit.clone(),
                worker: own.clone(),
            })
            .collect()
    }

    /// Hands on what its owner has let go of.
    async fn end_moves(&self) -> Result<BTreeSet<ComponentId>, WorkerError> {
        let cluster = &self.inner.cluster;
        let moving: Vec<(Unit, Assignment)> = self.inner.catalog.read(|view| {
            let moving = view.assignments.iter().filter(|(_, a)| a.to.is_some());
            moving.map(|(unit, a)| (unit.clone(), a.clone())).collect()
        });
        let mut touched = BTreeSet::new();
        for (unit, assignment) in moving {
            let let_go = if assignment.owner == cluster.identity {
                cluster.released.lock().remove(&unit)
            } else {
                let members = cluster.members.lock();
                match members.get(&assignment.owner) {
                    Some(member) => member.beat.released.contains(&unit.to_string()),
                    None => members.had_time(Instant::now()),
                }
            };
            let Some(to) = assignment.to.filter(|_| let_go) else {
                continue;
            };
            touched.insert(unit.id.clone());
            let lives = self.living().iter().any(|worker| worker.name == to);
            // Whom it was meant for may have gone meanwhile: then it stays.
            let owner = if lives { to } else { assignment.owner };
            self.give(unit, &owner).await?;
        }
        Ok(touched)
    }

    /// A worker that began anew is not drained any more.
    async fn end_drains(&self) -> Result<(), WorkerError> {
        let drains = self.inner.catalog.read(|view| view.drains.clone());
        for (identity, since) in drains {
            let now = if identity == self.inner.cluster.identity {
                Some(self.inner.cluster.since)
            } else {
                let members = self.inner.cluster.members.lock();
                members.get(&identity).map(|member| member.beat.since)
            };
            if now.is_some_and(|now| now != since) {
                self.inner.catalog.remove(Key::Drain(identity)).await?;
            }
        }
        Ok(())
    }

    /// Other workers get what they may have to run. Whether they have all of it.
    async fn share_all(&self) -> bool {
        if !self.inner.cluster.has_others() {
            return false;
        }
        let mut all = true;
        for file in self.inner.catalog.read(View::packages_needed) {
            let is_here = self.inner.packages.join(&file).exists();
            if !is_here || self.inner.shared.lock().contains(&file) {
                continue;
            }
            match self.inner.share(&file).await {
                Ok(()) => drop(self.inner.shared.lock().insert(file)),
                Err(error) => {
                    tracing::warn!(file, %error, "a package is not shared: tried again");
                    self.inner.cluster.dirty.store(true, Ordering::Release);
                    all = false;
                }
            }
        }
        all
    }

    /// Whether this worker takes changes.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.inner.cluster.leads()
    }

    /// Where others reach this worker; empty when they do not.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.inner.config.url
    }

    /// This worker's own name.
    #[must_use]
    pub fn worker_id(&self) -> &str {
        &self.inner.config.worker_id
    }

    /// The REST address of the worker that takes changes, when it is another.
    #[must_use]
    pub fn leader_url(&self) -> Option<String> {
        if self.leads() {
            return None;
        }
        let leader = self.inner.catalog.read(|view| view.leader.clone());
        let members = self.inner.cluster.members.lock();
        let newest = members.leader().filter(|(_, term)| *term > leader.term);
        let url = match newest.and_then(|(identity, _)| members.get(identity)) {
            Some(member) => member.beat.url.clone(),
            None => leader.url,
        };
        Some(url).filter(|url| !url.is_empty() && *url != self.inner.config.url)
    }

    /// All living workers, this one too, by name.
    #[must_use]
    pub fn members(&self) -> Vec<MemberInfo> {
        let inner = &self.inner;
        let (drains, leader) = inner
            .catalog
            .read(|view| (view.drains.clone(), view.leader.identity.clone()));
        let own = inner.cluster.identity.clone();
        let leads = |identity: &str| {
            if inner.cluster.leads() {
                identity == own
            } else {
                identity == leader
            }
        };
        let mut all = vec![MemberInfo {
            identity: own.clone(),
            worker_id: inner.config.worker_id.clone(),
            url: inner.config.url.clone(),
            leads: leads(&own),
            drained: drains.contains_key(&own),
        }];
        let members = inner.cluster.members.lock();
        let others = members.all().filter(|member| member.beat.identity != own);
        all.extend(others.map(|member| MemberInfo {
            identity: member.beat.identity.clone(),
            worker_id: member.beat.worker_id.clone(),
            url: member.beat.url.clone(),
            leads: leads(&member.beat.identity),
            drained: drains.contains_key(&member.beat.identity),
        }));
        all.sort_by(|a, b| a.worker_id.cmp(&b.worker_id));
        all
    }

    /// Who runs an instance.
    #[must_use]
    pub fn owner(&self, id: &ComponentId, instance: u32) -> Owner {
        if self.inner.cluster.alone {
            return Owner::Here;
        }
        let known = self
            .inner
            .catalog
            .read(|view| assignment(view, id, instance).cloned());
        let Some(known) = known else {
            return Owner::Nobody;
        };
        if known.owner == self.inner.cluster.identity {
            return Owner::Here;
        }
        let found = self
            .members()
            .into_iter()
            .find(|member| member.identity == known.owner);
        found.map_or(Owner::Nobody, Owner::At)
    }

    /// Why nobody runs an instance.
    #[must_use]
    pub fn why_nobody(&self, id: &ComponentId, instance: u32) -> String {
        let owner = self
            .inner
            .catalog
            .read(|view| assignment(view, id, instance).map(|known| known.owner.clone()));
        let pinned = self
            .entry(id)
            .is_ok_and(|entry| self.inner.is_pinned(id, &entry.crew.plan));
        match owner {
            Some(owner) if pinned => format!(
                "only the worker with the identity `{owner}` has its files, and it is gone: update \
                 the component to give it to another"
            ),
            _ => "no worker runs it now".to_owned(),
        }
    }

    /// The identity of who is to run an instance now; none while it moves.
    pub(crate) fn runner(&self, id: &ComponentId, instance: u32) -> Option<String> {
        let cluster = &self.inner.cluster;
        if cluster.alone {
            return Some(cluster.identity.clone());
        }
        self.inner.catalog.read(|view| {
            let known = assignment(view, id, instance).filter(|a| a.to.is_none());
            known.map(|a| a.owner.clone())
        })
    }

    /// What another worker says of a version: `None` when it has not said yet.
    pub(crate) fn judged_by(
        &self,
        identity: &str,
        id: &ComponentId,
        version: u64,
    ) -> Option<Result<(), String>> {
        let id = id.to_string();
        let members = self.inner.cluster.members.lock();
        let judged = &members.get(identity)?.beat.judged;
        let found = judged.iter().find(|j| j.id == id && j.version == version)?;
        Some(found.why.clone().map_or(Ok(()), Err))
    }

    /// What each worker runs, as `tenant/namespace/name:instance`.
    #[must_use]
    pub fn assignments(&self) -> BTreeMap<String, Vec<String>> {
        let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for id in self.components() {
            let Ok(entry) = self.entry(&id) else { continue };
            for instance in 0..entry.crew.len() {
                let worker = match self.owner(&id, instance) {
                    Owner::Here => self.inner.config.worker_id.clone(),
                    Owner::At(member) => member.worker_id,
                    Owner::Nobody => continue,
                };
                all.entry(worker)
                    .or_default()
                    .push(format!("{}:{instance}", id.fqfn()));
            }
        }
        all
    }

    /// Makes the load even now, without the bound on moves.
    ///
    /// # Errors
    /// When there are fewer than two workers, or this one does not lead.
    pub fn rebalance(&self) -> Result<(), WorkerError> {
        if !self.leads() {
            return Err(WorkerError::NotLeader);
        }
        if self.living().iter().filter(|worker| worker.accepts).count() < 2 {
            let why = "Too few workers (need at least 2)".to_owned();
            return Err(WorkerError::Invalid(vec![why]));
        }
        self.inner.cluster.rebalance.store(true, Ordering::Release);
        self.inner.cluster.touch();
        Ok(())
    }

    /// Moves everything off a worker and gives it nothing more, until it begins anew.
    ///
    /// # Errors
    /// When there is no such worker, or this one does not lead.
    pub async fn drain(&self, worker_id: &str) -> Result<(), WorkerError> {
        let _one = self.inner.changing.lock().await;
        let members = self.members();
        let Some(member) = members
            .into_iter()
            .find(|member| member.worker_id == worker_id)
        else {
            return Err(WorkerError::NoWorker(worker_id.to_owned()));
        };
        let since = if member.identity == self.inner.cluster.identity {
            self.inner.cluster.since
        } else {
            let members = self.inner.cluster.members.lock();
            members
                .get(&member.identity)
                .map_or(0, |member| member.beat.since)
        };
        self.inner
            .catalog
            .put(Key::Drain(member.identity), Value::Drain(since))
            .await?;
        self.inner.cluster.touch();
        Ok(())
    }

    /// How far the draining of a worker is.
    ///
    /// # Errors
    /// When there is no such worker.
    pub fn drain_status(&self, worker_id: &str) -> Result<DrainStatus, WorkerError> {
        let members = self.members();
        let Some(member) = members
            .into_iter()
            .find(|member| member.worker_id == worker_id)
        else {
            return Err(WorkerError::NoWorker(worker_id.to_owned()));
        };
        // What has its files there alone ends with it.
        let pinned: BTreeSet<ComponentId> = {
            let components = self.inner.components.lock();
            let entries = components.iter();
            let is_pinned = |(id, entry): &(&ComponentId, &Arc<super::Entry>)| {
                self.inner.is_pinned(id, &entry.crew.plan)
            };
            entries
                .filter(is_pinned)
                .map(|(id, _)| id.clone())
                .collect()
        };
        Ok(self.inner.catalog.read(|view| {
            if !view.drains.contains_key(&member.identity) {
                DrainStatus::NotRun
            } else if view
                .assignments
                .iter()
                .any(|(unit, a)| a.owner == member.identity && !pinned.contains(&unit.id))
            {
                DrainStatus::Running
            } else {
                DrainStatus::Success
            }
        }))
    }

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

    /// Follows the catalogue and leads when nobody does, for ever.
    async fn conduct(&self, topic: &str, ready: oneshot::Sender<()>) {
        let mut ready = Some(ready);
        let mut start = Some(self.inner.catalog.read_to());
        loop {
            let followed = self.follow(topic, start.take(), &mut ready).await;
            let led = match followed {
                Ok((producer, reader)) => self.lead(producer, reader, &mut ready).await,
                Err(error) => Err(error),
            };
            self.inner.cluster.term.store(0, Ordering::Release);
            self.inner.catalog.write_by(None).await;
            if let Err(error) = led {
                tracing::warn!(%error, "the catalogue is out of reach: tried again");
            } else {
                tracing::warn!("another worker leads now");
            }
            // What runs here goes on only with a lease of the new leader.
            self.settle(None).await;
            tokio::time::sleep(self.inner.cluster.lease / 10).await;
        }
    }

    /// Reads along until this worker is to lead.
    async fn follow(
        &self,
        topic: &str,
        start: Option<MessageId>,
        ready: &mut Option<oneshot::Sender<()>>,
    ) -> Result<(Producer, Reader), geminga_client::Error> {
        let inner = &self.inner;
        let client = &inner.config.client;
        let open = |from: MessageId| client.reader(topic).start(from).build();
        let mut reader = match start {
            Some(from) => open(from).await?,
            // After a term of its own its memory may hold what never reached the topic.
            None => {
                let mut reader = open(MessageId::EARLIEST).await?;
                let mut view = View::default();
                while reader.has_message_available().await? {
                    for message in reader.next_batch(1000).await? {
                        catalog::take(&mut view, &message);
                    }
                }
                inner.catalog.replace(view);
                self.settle(None).await;
                reader
            }
        };
        let began = Instant::now();
        let mut attempt = Box::pin(self.stand(topic, Duration::ZERO));
        loop {
            tokio::select! {
                elected = &mut attempt => {
                    if let Some(producer) = elected {
                        drop(attempt);
                        return Ok((producer, reader));
                    }
                    if began.elapsed() > FOLLOW_AFTER
                        && let Some(ready) = ready.take()
                    {
                        self.settle(None).await;
                        let _ = ready.send(());
                    }
                    attempt = Box::pin(self.stand(topic, inner.cluster.lease / 20));
                }
                messages = reader.next_batch(1000) => {
                    let touched = inner.catalog.follow(&messages?);
                    self.settle(Some(&touched)).await;
                }
            }
        }
    }

    /// Tries to become the one that writes, after a pause.
    async fn stand(&self, topic: &str, pause: Duration) -> Option<Producer> {
        tokio::time::sleep(pause).await;
        let cluster = &self.inner.cluster;
        let is_silent = cluster.members.lock().should_take_over(Instant::now());
        let mode = if is_silent {
            // Whoever holds it is frozen or cut off: the broker closes its producer.
            ProducerAccessMode::ExclusiveWithFencing
        } else {
            ProducerAccessMode::Exclusive
        };
        let producer = self.inner.config.client.producer(topic);
        let producer = producer
            .batching(Batching::off())
            .compression(Compression::Lz4);
        match producer.access_mode(mode).build().await {
            Ok(producer) => Some(producer),
            Err(error) => {
                tracing::debug!(%error, "another worker leads");
                None
            }
        }
    }

    /// Leads until another does.
    async fn lead(
        &self,
        producer: Producer,
        mut reader: Reader,
        ready: &mut Option<oneshot::Sender<()>>,
    ) -> Result<(), geminga_client::Error> {
        let inner = &self.inner;
        let cluster = &inner.cluster;
        // Everything that was written before the producer became exclusive.
        while reader.has_message_available().await? {
            let messages = reader.next_batch(1000).await?;
            inner.catalog.follow(&messages);
        }
        reader.close().await?;
        let known = inner.catalog.read(|view| view.leader.term);
        let heard = cluster.members.lock().leader().map_or(0, |(_, term)| term);
        let leader = Leader {
            identity: cluster.identity.clone(),
            url: inner.config.url.clone(),
            term: known.max(heard) + 1,
        };
        tracing::debug!(term = leader.term, "this worker leads");
        inner.catalog.write_by(Some(producer)).await;
        cluster.members.lock().begin_term(Instant::now());
        let term = leader.term;
        if inner
            .catalog
            .put_soon(Key::Leader, Value::Leader(leader))
            .await
            .is_err()
        {
            return Ok(());
        }
        cluster.term.store(term, Ordering::Release);
        self.settle(None).await;
        cluster.dirty.store(true, Ordering::Release);
        // What belongs to nobody yet starts before the first answer.
        if let Err(error) = self.tick().await {
            tracing::warn!(%error, "not scheduled");
        }
        if let Some(ready) = ready.take() {
            let _ = ready.send(());
        }
        cluster.wake.notify_one();
        while inner.catalog.is_written_here() {
            let pause = cluster.beat_every() / 4;
            let _ = tokio::time::timeout(pause, inner.catalog.confirm()).await;
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }

    /// Says again and again that this worker lives. Waits for nothing else: others would take it for
    /// dead.
    async fn beat(&self, topic: &str) {
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
    async fn watch_lease(&self) {
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
        let entries: Vec<Arc<super::Entry>> =
            self.inner.components.lock().values().cloned().collect();
        let limit = self.inner.cluster.lease / 10;
        let tasks = geminga_stdx::Tasks::new();
        for entry in entries {
            tasks.spawn("halt", OnError::Log, async move {
                entry.crew.halt(limit).await;
                Ok::<(), std::convert::Infallible>(())
            });
        }
        tasks.join(limit * 3).await;
    }

    /// Does what is due: schedules when it leads, starts and stops as the lease says.
    async fn steward(&self) {
        let cluster = &self.inner.cluster;
        let mut held = false;
        let mut shared = false;
        loop {
            let _ = tokio::time::timeout(cluster.beat_every(), cluster.work.notified()).await;
            if cluster.leads() {
                shared = false;
                if let Err(error) = self.tick().await {
                    tracing::warn!(%error, "not scheduled");
                    cluster.dirty.store(true, Ordering::Release);
                }
            } else if !shared && cluster.has_others() {
                // What it took in while it was alone and led, nobody else can share.
                shared = self.share_all().await;
            }
            let holds = self.inner.may_run();
            if holds != held {
                self.settle(None).await;
            }
            held = holds;
            let again = std::mem::take(&mut *cluster.again.lock());
            if !again.is_empty() {
                self.settle(Some(&again)).await;
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
    async fn listen(&self, topic: &str) {
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
pub(crate) fn spawn_end(tasks: &geminga_stdx::Tasks, crew: Arc<super::Entry>, grace: Duration) {
    tasks.spawn("stop", OnError::Log, async move {
        crew.crew.stop_all(grace).await;
        Ok::<(), std::convert::Infallible>(())
    });
}
