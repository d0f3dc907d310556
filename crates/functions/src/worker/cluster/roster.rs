//! Who there is, who leads, who runs what, as users and other workers ask; and what users ask for: an even
//! load, a worker that runs nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::super::catalog::{Key, Value};
use super::super::timings::Work;
use super::super::{Entry, Worker};
use super::{DrainStatus, MemberInfo, Owner, assignment};
use crate::component::ComponentId;
use crate::error::WorkerError;

impl Worker {
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

    fn member(&self, worker_id: &str) -> Result<MemberInfo, WorkerError> {
        let mut members = self.members().into_iter();
        let member = members.find(|member| member.worker_id == worker_id);
        member.ok_or_else(|| WorkerError::NoWorker(worker_id.to_owned()))
    }

    /// Moves everything off a worker and gives it nothing more, until it begins anew.
    ///
    /// # Errors
    /// When there is no such worker, or this one does not lead.
    pub async fn drain(&self, worker_id: &str) -> Result<(), WorkerError> {
        let _one = self.inner.writing.lock().await;
        let member = self.member(worker_id)?;
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
            .put(Key::Drain(member.identity.clone()), Value::Drain(since))
            .await?;
        let cluster = &self.inner.cluster;
        cluster
            .draining
            .lock()
            .insert(member.identity, Instant::now());
        cluster.touch();
        Ok(())
    }

    /// How far the draining of a worker is.
    ///
    /// # Errors
    /// When there is no such worker.
    pub fn drain_status(&self, worker_id: &str) -> Result<DrainStatus, WorkerError> {
        let member = self.member(worker_id)?;
        Ok(self.how_drained(&member.identity))
    }

    fn how_drained(&self, identity: &str) -> DrainStatus {
        // What has its files there alone ends with it.
        let pinned: BTreeSet<ComponentId> = {
            let components = self.inner.components.lock();
            let entries = components.iter();
            let is_pinned = |(id, entry): &(&ComponentId, &Arc<Entry>)| {
                self.inner.is_pinned(id, &entry.crew.plan)
            };
            entries
                .filter(is_pinned)
                .map(|(id, _)| id.clone())
                .collect()
        };
        self.inner.catalog.read(|view| {
            if !view.drains.contains_key(identity) {
                DrainStatus::NotRun
            } else if view
                .assignments
                .iter()
                .any(|(unit, a)| a.owner == identity && !pinned.contains(&unit.id))
            {
                DrainStatus::Running
            } else {
                DrainStatus::Success
            }
        })
    }

    /// Says how long the drains took that are over. Whether any goes on.
    pub(super) fn time_drains(&self) -> bool {
        let inner = &self.inner;
        let draining = inner.cluster.draining.lock().clone();
        for (identity, since) in draining {
            let status = self.how_drained(&identity);
            if status == DrainStatus::Success {
                inner.timings.add(Work::Drain, since.elapsed());
            }
            if status != DrainStatus::Running {
                inner.cluster.draining.lock().remove(&identity);
            }
        }
        !inner.cluster.draining.lock().is_empty()
    }
}
