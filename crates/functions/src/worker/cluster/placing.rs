//! What the leader does so that every unit has a worker: it gives new ones away, moves some, hands on what
//! was let go of, and sees to it that packages are where they may be needed.
//!
//! What is to be done is decided in `schedule`; here it is looked up, written to the catalogue and made
//! so. What must hold: a unit moves only after its owner let go or its lease is over.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::super::Worker;
use super::super::catalog::{Assignment, Key, Value, View};
use super::super::schedule::{self, Living, Standing, Step, Unit};
use super::super::timings::Work;
use crate::component::ComponentId;
use crate::error::WorkerError;
use crate::plan::{Input, Output, Plan, Process};

/// Units that may be on their way from one worker to another at once.
const MOVES_MAX: usize = 4;
/// A unit that was moved is left alone for so many leases.
const REST_LEASES: u32 = 6;

impl Worker {
    /// Gives the units of a new or changed component to workers.
    pub(crate) async fn assign(&self, id: &ComponentId, plan: &Plan) -> Result<(), WorkerError> {
        let cluster = &self.inner.cluster;
        if cluster.alone {
            return Ok(());
        }
        let began = Instant::now();
        let placed = self.place(id, plan).await;
        self.inner.timings.add(Work::Schedule, began.elapsed());
        placed
    }

    async fn place(&self, id: &ComponentId, plan: &Plan) -> Result<(), WorkerError> {
        let cluster = &self.inner.cluster;
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
        let began = Instant::now();
        let steps = schedule::decide(&standing, &self.living(), 0);
        let took = began.elapsed();
        self.inner.timings.add(Work::ScheduleStrategy, took);
        for step in steps {
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
            if !inner.catalog.read(|view| view.components.contains_key(&id)) {
                // It is being stopped.
                continue;
            }
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

    pub(super) fn living(&self) -> Vec<Living> {
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
    pub(super) async fn tick(&self) -> Result<(), WorkerError> {
        let inner = &self.inner;
        let cluster = &inner.cluster;
        if !cluster.dirty.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let began = Instant::now();
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
        let deciding = Instant::now();
        let mut steps = schedule::decide(&standing, &living, moves);
        steps.extend(self.inherited(&standing, &living));
        let decided = deciding.elapsed();
        let worked = !steps.is_empty();
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
        self.settle_soon(Some(&touched));
        if worked {
            let (all, strategy) = match force {
                true => (Work::Rebalance, Work::RebalanceStrategy),
                false => (Work::Schedule, Work::ScheduleStrategy),
            };
            inner.timings.add(strategy, decided);
            inner.timings.add(all, began.elapsed());
        }
        if self.time_drains() {
            cluster.dirty.store(true, Ordering::Release);
        }
        // Before it is needed: the one that has it may be the next to go.
        self.begin_sharing();
        Ok(())
    }

    /// Gives the others what they may have to run, once at a time. Nothing waits for it.
    pub(super) fn begin_sharing(&self) {
        let cluster = &self.inner.cluster;
        if !cluster.has_others() || cluster.shares.swap(true, Ordering::AcqRel) {
            return;
        }
        let worker = self.clone();
        let tasks = &self.inner.tasks;
        tasks.spawn_cancellable("share packages", async move {
            let all = worker.share_all().await;
            let cluster = &worker.inner.cluster;
            // One that leads takes more in.
            cluster
                .shared
                .store(all && !cluster.leads(), Ordering::Release);
            cluster.shares.store(false, Ordering::Release);
        });
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
            let code = plan.process.spec().map(|spec| &spec.code.path);
            !is_file && code.is_some_and(|path| path.exists())
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
}

/// The units of a component, each with its weight. Instances that share state or a table in the
/// worker's memory are one unit.
fn units(id: &ComponentId, plan: &Plan, parallelism: u32) -> Vec<(Unit, u32)> {
    let spreads = match &plan.process {
        Process::Host(_, spec) => spec.options.spread,
        // They share nothing in the worker's memory.
        Process::Compat(_) => true,
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
