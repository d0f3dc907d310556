//! What changes components: create, update, roll back, delete, stop, start.
//!
//! The leader writes the change to the catalogue first, then makes what runs follow it (`settle`);
//! the other workers read the same and do the same. So there is one way from "it is so" to "it runs".
//!
//! What must hold: two changes of a component do not overlap, from the first look at it to the answer; and
//! who waits for code to start, to stop or to subscribe holds nothing that a change of another one needs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use geminga_stdx::tasks::OnError;
use tokio::sync::RwLockReadGuard;

use self::judging::undoes;
use super::catalog::{Key, Record};
use super::package::{self, Upload};
use super::supervisor::Crew;
use super::turns::Turn;
use super::warming::Beginning;
use super::{Entry, STOP_GRACE, Worker};
use crate::component::{Component, ComponentId};
use crate::error::WorkerError;
use crate::plan::Plan;
use crate::rights::{Limits, Registrant};

mod judging;

/// Tries to remove a subscription that another worker may still use.
const UNSUBSCRIBE_TRIES: u32 = 40;

/// How long the answer of a deletion waits until what is left is removed.
const FORGET_MAX: Duration = Duration::from_secs(10);

/// A version of a component.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Version {
    pub version: u64,
    /// It is the one that runs.
    pub current: bool,
    /// The package, by content.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub package: Option<String>,
    #[serde(skip)]
    pub config: Component,
}

impl Worker {
    /// Makes a component and starts it; answers when it is in the catalogue and its instances have
    /// subscribed, or after a while if they can not.
    ///
    /// # Errors
    /// When it exists, or its configuration can not be honoured.
    pub async fn create(
        &self,
        component: Component,
        code: Option<Upload>,
    ) -> Result<ComponentId, WorkerError> {
        self.create_by(None, component, code).await
    }

    /// The same on behalf of somebody: it reaches what he may.
    ///
    /// # Errors
    /// As of [`create`](Self::create).
    pub async fn create_by(
        &self,
        by: Option<Registrant>,
        mut component: Component,
        mut code: Option<Upload>,
    ) -> Result<ComponentId, WorkerError> {
        let id = component
            .id()
            .ok_or_else(|| WorkerError::Invalid(vec!["`name` is missing".to_owned()]))?;
        let _own = self.change(&id).await;
        if self
            .inner
            .catalog
            .read(|view| view.components.contains_key(&id))
        {
            return Err(WorkerError::Exists(id));
        }
        if let Some(builtin) = self.resolve(&mut component, code.is_some())? {
            builtin.fill(&id, &mut component);
            code = Some(builtin.code(&self.inner.packages).await?);
        }
        self.may_read(&component).await?;
        let component = package::with_absolute_code(component);
        let package = self.keep(code).await?;
        let record = Record::new(component, package).by(by);
        self.store(&id, record).await?;
        Ok(id)
    }

    async fn keep(&self, code: Option<Upload>) -> Result<Option<String>, WorkerError> {
        let Some(upload) = code else { return Ok(None) };
        let file = package::store(&self.inner.packages, upload).await?;
        Ok(Some(file))
    }

    /// Waits for the change of a component that is under way.
    async fn change(&self, id: &ComponentId) -> (RwLockReadGuard<'_, ()>, Turn) {
        let open = self.inner.open.read().await;
        (open, self.inner.changing.of(id).await)
    }

    /// Puts a checked record into the catalogue, gives its units to workers, and waits for those
    /// that run here to subscribe. The entry is an older one when the new version still warms up.
    async fn store(&self, id: &ComponentId, record: Record) -> Result<Arc<Entry>, WorkerError> {
        if let Some(file) = &record.package {
            // A former leader may have taken it in.
            self.inner.have(file).await?;
        }
        let plan = self.plan(&record)?;
        if let Some(spec) = plan.process.spec()
            && !spec.code.path.exists()
        {
            return Err(WorkerError::Invalid(vec![format!(
                "`{}` does not exist",
                spec.code.path.display()
            )]));
        }
        for warning in &plan.warnings {
            tracing::warn!(component = %id, "{warning}");
        }
        let before = self.record(id).ok();
        if before.is_none() {
            self.forget(id, &record, false).await?;
        }
        self.write(id, before.as_ref(), record, &plan).await?;
        self.settle(Some(&BTreeSet::from([id.clone()]))).await;
        let config = &self.inner.config;
        let limit = match undoes(&plan) {
            true => config.prove_wait,
            false => config.subscribe_wait,
        };
        self.updated(id, limit).await;
        let entry = self.entry(id)?;
        let instances = 0..entry.crew.len();
        if instances.into_iter().any(|n| !self.inner.is_mine(id, n)) {
            // What is published from now on is not missed, though they start elsewhere.
            entry.crew.subscribe_once(&config.client).await;
        }
        let _ = tokio::time::timeout(config.subscribe_wait, entry.crew.subscribed()).await;
        Ok(entry)
    }

    /// Puts a record into the catalogue and gives its units to workers.
    async fn write(
        &self,
        id: &ComponentId,
        before: Option<&Record>,
        record: Record,
        plan: &Plan,
    ) -> Result<(), WorkerError> {
        let _one = self.inner.writing.lock().await;
        if let Some(file) = &record.package
            && before.is_none_or(|before| before.package.as_ref() != Some(file))
        {
            self.inner.share(file).await?;
        }
        self.inner.catalog.put_component(id, record).await?;
        if let Some(before) = before {
            let before = before.packages().map(str::to_owned).collect();
            self.inner.drop_unneeded(&before);
        }
        self.assign(id, plan).await
    }

    /// Changes a component: `change` holds the new fields alone. Instances are started anew.
    ///
    /// # Errors
    /// What may not change, what can not be honoured, and when nothing changes.
    pub async fn update(
        &self,
        id: &ComponentId,
        change: Component,
        code: Option<Upload>,
    ) -> Result<(), WorkerError> {
        self.update_by(None, id, change, code).await
    }

    /// The same on behalf of somebody: from now on it reaches what he may, and no more.
    ///
    /// # Errors
    /// As of [`update`](Self::update).
    pub async fn update_by(
        &self,
        by: Option<Registrant>,
        id: &ComponentId,
        change: Component,
        code: Option<Upload>,
    ) -> Result<(), WorkerError> {
        self.update_without(by, id, change, &[], code).await
    }

    /// The same, and of these fields it has from now on what a new component has: a change alone can
    /// not say that one goes.
    ///
    /// # Errors
    /// As of [`update`](Self::update); and names of no field.
    pub async fn update_without(
        &self,
        by: Option<Registrant>,
        id: &ComponentId,
        change: Component,
        removed: &[String],
        mut code: Option<Upload>,
    ) -> Result<(), WorkerError> {
        let _own = self.change(id).await;
        let record = self.record(id)?;
        let stored = &record.component;
        let mut change = change.unmasked(stored);
        let mut builtin = self.resolve(&mut change, code.is_some())?;
        if let Some(builtin) = &mut builtin {
            builtin.fits(stored)?;
            builtin.keep_class(stored, removed);
        }
        let mut component = match stored.merged(&change) {
            Ok(merged) => merged,
            // New code with the same configuration is a change too.
            Err(_) if code.is_some() && (change == *stored || is_empty(&change)) => stored.clone(),
            Err(violations) => {
                let texts = violations.iter().map(ToString::to_string);
                return Err(WorkerError::Invalid(texts.collect()));
            }
        };
        if !removed.is_empty() {
            component = component.without(removed).map_err(|why| {
                WorkerError::Invalid(why.iter().map(ToString::to_string).collect())
            })?;
        }
        match (builtin, &mut component) {
            (Some(builtin), component) => {
                builtin.fill(id, component);
                code = Some(builtin.code(&self.inner.packages).await?);
            }
            // It is made of something else from now on.
            (None, Component::Function(config)) if code.is_some() => {
                let was_builtin = config.function_type.take().is_some();
                // Its language was that of the built-in function, and is that of the code now.
                if was_builtin && config.code().is_some() {
                    config.runtime = None;
                }
            }
            _ => {}
        }
        self.change_to(id, record, by, component, code).await
    }

    /// Puts a component in the place of the stored one, whole: what it leaves out is as in a new one.
    ///
    /// # Errors
    /// What may not change (so it may not be left out either), what can not be honoured, and when
    /// nothing changes.
    pub async fn replace(&self, id: &ComponentId, component: Component) -> Result<(), WorkerError> {
        let _own = self.change(id).await;
        let record = self.record(id)?;
        let stored = &record.component;
        let component = component.unmasked(stored);
        let mut why = stored.merged(&component).err().unwrap_or_default();
        for left_out in stored.left_out_of(&component) {
            if !why.iter().any(|known| known.field == left_out.field) {
                why.push(left_out);
            }
        }
        if !why.is_empty() {
            let texts = why.iter().map(ToString::to_string);
            return Err(WorkerError::Invalid(texts.collect()));
        }
        self.change_to(id, record, None, component, None).await
    }

    async fn change_to(
        &self,
        id: &ComponentId,
        record: Record,
        by: Option<Registrant>,
        component: Component,
        code: Option<Upload>,
    ) -> Result<(), WorkerError> {
        self.may_read(&component).await?;
        let component = package::with_absolute_code(component);
        let code = self.keep(code).await?;
        if component == record.component && (code.is_none() || code == record.package) {
            return Err(WorkerError::Invalid(vec![
                "Update contains no change".to_owned(),
            ]));
        }
        let package = code.or_else(|| record.package.clone());
        let next = record.next(component, package).by(by);
        // Refused before the old one is touched.
        let plan = self.plan(&next)?;
        let version = next.version;
        let entry = self.store(id, next).await?;
        if !undoes(&plan) {
            return Ok(());
        }
        let failed = match entry.record.version == version {
            true => self.failed_to_start(id, &entry).await,
            // Its code still warms up here: the entry is the old one's, which runs well.
            false => Some(self.not_in_time()),
        };
        if let Some(why) = failed {
            let restored = record.version;
            let now = self.record(id)?;
            self.store(
                id,
                now.next(record.component.clone(), record.package.clone())
                    .by(record.by.clone()),
            )
            .await?;
            return Err(WorkerError::RolledBack {
                id: id.clone(),
                version,
                restored,
                why,
            });
        }
        Ok(())
    }

    /// Goes back to a former version, the one before when none is named: it becomes a new version.
    ///
    /// # Errors
    /// When there is no such version any more, or it can not be honoured now.
    pub async fn roll_back(&self, id: &ComponentId, to: Option<u64>) -> Result<u64, WorkerError> {
        self.roll_back_by(None, id, to).await
    }

    /// The same on behalf of somebody.
    ///
    /// # Errors
    /// As of [`roll_back`](Self::roll_back).
    pub async fn roll_back_by(
        &self,
        by: Option<Registrant>,
        id: &ComponentId,
        to: Option<u64>,
    ) -> Result<u64, WorkerError> {
        let _own = self.change(id).await;
        let record = self.record(id)?;
        let past = match to {
            None => record.past.first(),
            Some(version) => record.past.iter().find(|past| past.version == version),
        };
        let Some(past) = past else {
            let known: Vec<String> = record.past.iter().map(|p| p.version.to_string()).collect();
            let known = if known.is_empty() {
                "none".to_owned()
            } else {
                known.join(", ")
            };
            let wanted = to.map_or_else(|| "former version".to_owned(), |v| format!("version {v}"));
            return Err(WorkerError::Invalid(vec![format!(
                "there is no {wanted} of {id} to go back to; kept are: {known}"
            )]));
        };
        self.may_read(&past.component).await?;
        let next = record
            .next(past.component.clone(), past.package.clone())
            .by(by);
        let version = next.version;
        self.store(id, next).await?;
        Ok(version)
    }

    /// The version that runs and those that are kept to go back to, the newest first.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn versions(&self, id: &ComponentId) -> Result<Vec<Version>, WorkerError> {
        let record = self.record(id)?;
        let mut versions = vec![Version {
            version: record.version,
            current: true,
            package: record.package.clone(),
            config: record.component.clone(),
        }];
        versions.extend(record.past.iter().map(|past| Version {
            version: past.version,
            current: false,
            package: past.package.clone(),
            config: past.component.clone(),
        }));
        Ok(versions)
    }

    /// Removes a component with its state, and its subscription unless it says otherwise.
    ///
    /// # Errors
    /// When it does not exist, or the catalogue can not be written.
    pub async fn delete(&self, id: &ComponentId) -> Result<(), WorkerError> {
        let _own = self.change(id).await;
        let record = self.record(id)?;
        let before = record.packages().map(str::to_owned).collect();
        let entry = self.entry(id).ok();
        let elsewhere = entry
            .as_ref()
            .is_some_and(|entry| (0..entry.crew.len()).any(|n| !self.inner.is_mine(id, n)));
        self.erase(id, &before).await?;
        self.settle(Some(&BTreeSet::from([id.clone()]))).await;
        let forgotten = self.forget(id, &record, true);
        let forgotten = tokio::time::timeout(FORGET_MAX, forgotten).await;
        let why = match forgotten {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("it takes too long".to_owned()),
        };
        if let Some(why) = why {
            tracing::warn!(component = %id, why, "what it left stays until one of its name is made");
        }
        let Some(entry) = entry.filter(|entry| entry.crew.plan.cleanup_subscription) else {
            return Ok(());
        };
        if !elsewhere {
            if let Err(error) = entry.crew.unsubscribe(&self.inner.config.client).await {
                tracing::warn!(component = %id, %error, "subscription not removed");
            }
            return Ok(());
        }
        // The worker that ran it has to let go first.
        let (client, id) = (self.inner.config.client.clone(), id.clone());
        self.inner
            .tasks
            .spawn("unsubscribe", OnError::Log, async move {
                for _ in 0..UNSUBSCRIBE_TRIES {
                    match entry.crew.unsubscribe(&client).await {
                        Ok(()) => return Ok(()),
                        Err(error) => tracing::debug!(component = %id, %error, "not yet"),
                    }
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                tracing::warn!(component = %id, "subscription not removed: somebody uses it");
                Ok::<(), std::convert::Infallible>(())
            });
        Ok(())
    }

    /// Takes a component out of the catalogue.
    async fn erase(
        &self,
        id: &ComponentId,
        packages: &BTreeSet<String>,
    ) -> Result<(), WorkerError> {
        let _one = self.inner.writing.lock().await;
        let key = Key::Component(id.clone());
        self.inner.catalog.remove(key).await?;
        self.unassign(id).await?;
        self.inner.drop_unneeded(packages);
        Ok(())
    }

    /// Starts one instance, or all. What runs goes on.
    ///
    /// # Errors
    /// When the component or the instance does not exist.
    pub async fn start_instances(
        &self,
        id: &ComponentId,
        instance: Option<u32>,
    ) -> Result<(), WorkerError> {
        self.set_stopped(id, instance, false).await
    }

    /// Stops one instance, or all. They stay stopped after a restart of the worker.
    ///
    /// # Errors
    /// When the component or the instance does not exist.
    pub async fn stop_instances(
        &self,
        id: &ComponentId,
        instance: Option<u32>,
    ) -> Result<(), WorkerError> {
        self.set_stopped(id, instance, true).await
    }

    async fn set_stopped(
        &self,
        id: &ComponentId,
        instance: Option<u32>,
        stopped: bool,
    ) -> Result<(), WorkerError> {
        let _own = self.change(id).await;
        let entry = self.entry(id)?;
        let mut record = self.record(id)?;
        let before = record.stopped.clone();
        for number in entry.crew.numbers(id, instance)? {
            if stopped {
                record.stopped.insert(number);
            } else {
                record.stopped.remove(&number);
            }
        }
        if record.stopped != before {
            self.inner.catalog.put_component(id, record).await?;
        }
        self.settle(Some(&BTreeSet::from([id.clone()]))).await;
        Ok(())
    }

    /// Stops and starts one instance, or all, of those that run here. What was stopped by hand stays
    /// so.
    ///
    /// # Errors
    /// When the component or the instance does not exist.
    pub async fn restart_instances(
        &self,
        id: &ComponentId,
        instance: Option<u32>,
    ) -> Result<(), WorkerError> {
        let _own = self.change(id).await;
        // No other version takes their place meanwhile.
        let _settles = self.inner.settling.of(id).await;
        let entry = self.entry(id)?;
        let mut numbers = entry.crew.numbers(id, instance)?;
        let is_own = |n: &u32| self.inner.is_mine(id, *n) && !entry.record.stopped.contains(n);
        numbers.retain(|n| self.inner.may_run() && is_own(n));
        entry.crew.stop_these(&numbers, STOP_GRACE).await;
        for number in numbers {
            // The lease may be over by now: then it starts with the next one.
            if self.inner.may_run() {
                entry.crew.start(&self.inner, number);
            }
        }
        Ok(())
    }

    /// Makes what runs here follow the catalogue: of these components, or of all. Each for itself: one that
    /// takes its time to stop holds up no other.
    pub(crate) async fn settle(&self, ids: Option<&BTreeSet<ComponentId>>) {
        let ids = ids.cloned().unwrap_or_else(|| self.all_ids());
        if ids.len() == 1 {
            for id in &ids {
                self.settle_one(id, self.inner.settling.of(id).await).await;
            }
            return;
        }
        let tasks = self.inner.tasks.child();
        for id in ids {
            let worker = self.clone();
            tasks.spawn_cancellable("component settles", async move {
                let turn = worker.inner.settling.of(&id).await;
                worker.settle_one(&id, turn).await;
            });
        }
        tasks.join(Duration::MAX).await;
    }

    /// The same behind the answer, for who has other things to do than to wait for code that does not stop.
    pub(crate) fn settle_soon(&self, ids: Option<&BTreeSet<ComponentId>>) {
        let ids = ids.cloned().unwrap_or_else(|| self.all_ids());
        for id in ids {
            // One that has not begun will see what the catalogue says by then.
            if !self.inner.to_settle.lock().insert(id.clone()) {
                continue;
            }
            let worker = self.clone();
            let tasks = &self.inner.tasks;
            tasks.spawn_cancellable("component settles", async move {
                let turn = worker.inner.settling.of(&id).await;
                worker.inner.to_settle.lock().remove(&id);
                worker.settle_one(&id, turn).await;
            });
        }
    }

    fn all_ids(&self) -> BTreeSet<ComponentId> {
        let mut all: BTreeSet<ComponentId> = self.inner.components.lock().keys().cloned().collect();
        let catalog = &self.inner.catalog;
        all.extend(catalog.read(|view| view.components.keys().cloned().collect::<Vec<_>>()));
        all
    }

    async fn settle_one(&self, id: &ComponentId, _turn: Turn) {
        let inner = &self.inner;
        if inner.cluster.is_leaving() {
            // Who ends this worker ends what it runs.
            return;
        }
        let may_run = inner.may_run();
        let record = inner.catalog.read(|view| view.components.get(id).cloned());
        let known = inner.components.lock().get(id).cloned();
        let Some(record) = record else {
            if let Some(entry) = known {
                drop(inner.warming.lock().remove(id));
                entry.crew.stop_all(STOP_GRACE).await;
                inner.components.lock().remove(id);
                self.forget_places(id);
                inner.lines.close(id).await;
            }
            return;
        };
        let entry = match known {
            Some(entry) if entry.record == record && !entry.crew.sees_now() => entry,
            Some(entry) if entry.record.runs_as(&record) && !entry.crew.sees_now() => {
                Arc::new(Entry {
                    record,
                    crew: entry.crew.clone(),
                })
            }
            known => {
                let plan = match self.plan(&record) {
                    Ok(plan) => plan,
                    // It was accepted by an older release: say so, and keep it for its owner.
                    Err(error) => {
                        tracing::error!(component = %id, %error, "not started");
                        // What runs is not what the catalogue says any more.
                        if let Some(old) = known {
                            old.crew.stop_all(STOP_GRACE).await;
                            old.crew.forget_state().await;
                        }
                        inner.released(id, &[]);
                        return;
                    }
                };
                let parallelism = record.component.parallelism();
                let rights = inner.config.rights.as_ref();
                let limits = Limits::of(rights, id, &record.component, record.by.as_ref(), &plan);
                let crew = Crew::new(id.clone(), record.version, plan, parallelism, limits)
                    .timed_by(inner.timings.clone());
                let mine =
                    |n: &u32| may_run && inner.is_mine(id, *n) && !record.stopped.contains(n);
                let here = (0..parallelism).filter(mine).collect();
                let crew = match self.begin(id, &record, crew, known.as_deref(), here) {
                    Beginning::Now(crew) => crew,
                    Beginning::Later => {
                        if let Some(old) = known {
                            // What is not to run here at all does not wait.
                            let (run, rest): (Vec<u32>, Vec<u32>) =
                                (0..old.crew.len()).partition(mine);
                            old.crew.stop_these(&rest, STOP_GRACE).await;
                            inner.released(id, &run);
                        }
                        return;
                    }
                };
                if let Some(old) = known {
                    old.crew.retire(STOP_GRACE).await;
                    inner.lines.retire(id);
                }
                Arc::new(Entry { record, crew })
            }
        };
        inner.components.lock().insert(id.clone(), entry.clone());
        drop(inner.warming.lock().remove(id));
        let mine = |number: u32| {
            may_run && inner.is_mine(id, number) && !entry.record.stopped.contains(&number)
        };
        let (run, rest): (Vec<u32>, Vec<u32>) = (0..entry.crew.len()).partition(|n| mine(*n));
        entry.crew.stop_these(&rest, STOP_GRACE).await;
        entry.crew.forget_state().await;
        inner.released(id, &run);
        if run.is_empty() {
            return;
        }
        if let Some(package) = &entry.record.package
            && !inner.packages.join(package).exists()
        {
            self.fetch_for(id, package);
            return;
        }
        for number in run {
            // The lease may be over by now.
            if inner.may_run() {
                entry.crew.start(inner, number);
            }
        }
    }

    /// Fetches a package and looks at its component again: nothing else waits for that.
    fn fetch_for(&self, id: &ComponentId, package: &str) {
        let inner = self.inner.clone();
        if !inner.fetching.lock().insert(package.to_owned()) {
            // Its components are looked at again when it is here.
            inner.cluster.try_again(id);
            return;
        }
        let (id, package) = (id.clone(), package.to_owned());
        let tasks = inner.tasks.clone();
        tasks.spawn_cancellable("fetch a package", async move {
            let fetched = inner.have(&package).await;
            inner.fetching.lock().remove(&package);
            inner.cluster.try_again(&id);
            match fetched {
                // Now, and not with the next beat.
                Ok(()) => inner.cluster.touch(),
                Err(error) => {
                    tracing::warn!(component = %id, %error, "its package is not here: tried again");
                }
            }
        });
    }
}

fn is_empty(component: &Component) -> bool {
    match component {
        Component::Function(c) => **c == geminga_model::FunctionConfig::default(),
        Component::Source(c) => **c == geminga_model::SourceConfig::default(),
        Component::Sink(c) => **c == geminga_model::SinkConfig::default(),
    }
}
