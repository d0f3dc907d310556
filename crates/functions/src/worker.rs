//! The worker: keeps components in a catalogue, runs their instances, answers for them.
//!
//! Owns the catalogue topic, the package folder, the process guard and every instance's supervisor.
//! What must hold: an operation that answered is in the catalogue, so it survives a restart; an
//! instance that breaks is started again with growing pauses and says why; stopping ends every
//! process of user code.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use geminga_client::{Client, ConsumerHandle, MessageId};
use geminga_stdx::Tasks;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::component::{Component, ComponentId, Kind};
use crate::connector::table::TableView;
use crate::error::WorkerError;
use crate::plan::{Input, Output, Plan, Process, plan};
use crate::runtime::{Broken, LogLine, Processes, StateChange};

pub(crate) mod catalog;
pub(crate) mod package;
pub mod report;
pub(crate) mod runtimes;
pub(crate) mod supervisor;
mod trigger;

use self::catalog::{Catalog, Record};
use self::report::{FunctionState, FunctionStats, FunctionStatus, Progress};
use self::runtimes::Runtimes;
use self::supervisor::{Crew, Health};

/// The longest wait for new instances to subscribe before `create` answers all the same.
const SUBSCRIBE_WAIT: Duration = Duration::from_secs(10);
/// Messages in flight may finish this long when a component stops.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// Where no position tells, a component counts as caught up after so long without a message.
const QUIET: Duration = Duration::from_secs(2);

/// Where the catalogue lives when the configuration does not say: Pulsar's own place for it.
pub const CATALOG_TOPIC: &str = "persistent://public/functions/metadata";

/// Takes log lines of all components, beside their log topics.
pub type OnLog = Arc<dyn Fn(&ComponentId, u32, &LogLine) + Send + Sync>;

/// What a worker needs.
#[derive(Clone)]
pub struct WorkerConfig {
    /// How it reaches the broker: by TCP or by a pipe in the process.
    pub client: Client,
    /// Packages, and how far file sources are.
    pub data_dir: PathBuf,
    /// Name of the cluster, as functions see it.
    pub cluster: String,
    pub worker_id: String,
    /// The topic of the catalogue; `None` keeps nothing: for `run` and `localrun`.
    pub catalog_topic: Option<String>,
    /// Records that the catalogue, or the state of a function, may gather on its topic before the
    /// living ones are written anew: it bounds the topic and the time of a start.
    pub changelog_records_max: u64,
    /// Private directories of functions; the system's temporary directory when `None`.
    pub temp_dir: Option<PathBuf>,
    pub on_log: Option<OnLog>,
}

impl WorkerConfig {
    /// A worker that keeps its components.
    #[must_use]
    pub fn new(client: Client, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            client,
            data_dir: data_dir.into(),
            cluster: "standalone".to_owned(),
            worker_id: "geminga".to_owned(),
            catalog_topic: Some(CATALOG_TOPIC.to_owned()),
            changelog_records_max: 10_000,
            temp_dir: None,
            on_log: None,
        }
    }

    /// A worker that forgets its components when it ends.
    #[must_use]
    pub fn ephemeral(client: Client, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            catalog_topic: None,
            ..Self::new(client, data_dir)
        }
    }
}

/// Code that comes with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// The file's own name: it names the Python module.
    pub file_name: String,
    pub bytes: Bytes,
}

/// A running worker. Cheap to clone; clones are the same worker.
#[derive(Clone)]
pub struct Worker {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: WorkerConfig,
    pub(crate) runtimes: Runtimes,
    pub(crate) tasks: Tasks,
    catalog: Option<Catalog>,
    packages: PathBuf,
    components: Mutex<BTreeMap<ComponentId, Arc<Entry>>>,
    /// One change at a time: the catalogue and what runs stay one.
    changing: tokio::sync::Mutex<()>,
}

/// A component and its instances.
pub(crate) struct Entry {
    pub(crate) record: Record,
    pub(crate) crew: Crew,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker")
            .field("worker_id", &self.inner.config.worker_id)
            .finish_non_exhaustive()
    }
}

/// What is wrong with code that does not start, with its last words.
pub(crate) fn broken_text(broken: &Broken) -> String {
    match broken {
        Broken::Deployment {
            reason,
            stderr_tail,
        }
        | Broken::Start {
            reason,
            stderr_tail,
        } if !stderr_tail.is_empty() => {
            format!("{reason}\n{stderr_tail}")
        }
        other => other.to_string(),
    }
}

impl Worker {
    /// Reads the catalogue and starts what it holds.
    ///
    /// # Errors
    /// When the data directory or the catalogue topic can not be used.
    pub async fn start(config: WorkerConfig) -> Result<Self, WorkerError> {
        let packages = config.data_dir.join("packages");
        std::fs::create_dir_all(&packages)
            .map_err(WorkerError::io(format!("making `{}`", packages.display())))?;
        let processes = Processes::start(config.temp_dir.as_deref())
            .map_err(WorkerError::io("starting the process guard"))?;
        let tasks = Tasks::new();
        let (catalog, records) = match &config.catalog_topic {
            Some(topic) => {
                let (catalog, records) =
                    Catalog::open(&config.client, topic, config.changelog_records_max).await?;
                (Some(catalog), records)
            }
            None => (None, Vec::new()),
        };
        let worker = Self {
            inner: Arc::new(Inner {
                runtimes: Runtimes::new(processes, tasks.clone()),
                config,
                tasks,
                catalog,
                packages,
                components: Mutex::default(),
                changing: tokio::sync::Mutex::new(()),
            }),
        };
        for record in records {
            let Some(id) = record.component.id() else {
                continue;
            };
            match worker.plan(&record) {
                Ok(plan) => {
                    worker.put(id, record, plan).await;
                }
                // It was accepted by an older release: say so, and keep it for its owner to change.
                Err(error) => tracing::error!(component = %id, %error, "not started"),
            }
        }
        Ok(worker)
    }

    fn plan(&self, record: &Record) -> Result<Plan, WorkerError> {
        let code = record
            .package
            .as_ref()
            .map(|package| self.inner.packages.join(package));
        plan(&record.component, code.as_deref()).map_err(WorkerError::Invalid)
    }

    async fn put(&self, id: ComponentId, record: Record, plan: Plan) -> Arc<Entry> {
        let crew = Crew::new(
            &self.inner,
            id.clone(),
            record.version,
            plan,
            record.component.parallelism(),
        );
        let stopped = record.stopped.clone();
        let entry = Arc::new(Entry { record, crew });
        self.inner.components.lock().insert(id, entry.clone());
        for instance in 0..entry.crew.len() {
            if !stopped.contains(&instance) {
                entry.crew.start(&self.inner, instance);
            }
        }
        entry
    }

    fn entry(&self, id: &ComponentId) -> Result<Arc<Entry>, WorkerError> {
        let components = self.inner.components.lock();
        components
            .get(id)
            .cloned()
            .ok_or_else(|| WorkerError::NotFound(id.clone()))
    }

    /// Checks a component as `create` would, and changes nothing.
    ///
    /// # Errors
    /// Every field that can not be honoured.
    pub fn check(component: &Component) -> Result<(), WorkerError> {
        plan(component, None)
            .map(|_| ())
            .map_err(WorkerError::Invalid)
    }

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
        let _one = self.inner.changing.lock().await;
        let id = component
            .id()
            .ok_or_else(|| WorkerError::Invalid(vec!["`name` is missing".to_owned()]))?;
        if self.inner.components.lock().contains_key(&id) {
            return Err(WorkerError::Exists(id));
        }
        let record = Record {
            component: package::with_absolute_code(component),
            version: 1,
            package: None,
            stopped: BTreeSet::new(),
        };
        self.store(id.clone(), record, code).await?;
        Ok(id)
    }

    async fn store(
        &self,
        id: ComponentId,
        mut record: Record,
        code: Option<Upload>,
    ) -> Result<(), WorkerError> {
        if let Some(upload) = code {
            record.package = Some(package::store(&self.inner.packages, &upload)?);
        }
        let plan = self.plan(&record)?;
        if let Process::Host(_, spec) = &plan.process
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
        if let Some(catalog) = &self.inner.catalog {
            catalog.put(&id, &record).await?;
        }
        let entry = self.put(id, record, plan).await;
        let _ = tokio::time::timeout(SUBSCRIBE_WAIT, entry.crew.subscribed()).await;
        Ok(())
    }

    /// Changes a component: `change` holds the new fields alone. Instances are started anew.
    ///
    /// # Errors
    /// What may not change, and what can not be honoured.
    pub async fn update(
        &self,
        id: &ComponentId,
        change: Component,
        code: Option<Upload>,
    ) -> Result<(), WorkerError> {
        let _one = self.inner.changing.lock().await;
        let entry = self.entry(id)?;
        let texts = |violations: Vec<geminga_model::validate::Violation>| {
            WorkerError::Invalid(violations.iter().map(ToString::to_string).collect())
        };
        let stored = &entry.record.component;
        let component = match stored.merged(&change) {
            Ok(merged) => merged,
            // New code with the same configuration is a change too.
            Err(_) if code.is_some() && (change == *stored || is_empty(&change)) => stored.clone(),
            Err(violations) => return Err(texts(violations)),
        };
        let record = Record {
            component: package::with_absolute_code(component),
            version: entry.record.version + 1,
            package: entry.record.package.clone(),
            stopped: entry.record.stopped.clone(),
        };
        // Refused before the old one is touched.
        self.plan(&record)?;
        entry.crew.stop_all(STOP_GRACE).await;
        self.store(id.clone(), record, code).await
    }

    /// Removes a component, and its subscription unless it says otherwise.
    ///
    /// # Errors
    /// When it does not exist, or the catalogue can not be written.
    pub async fn delete(&self, id: &ComponentId) -> Result<(), WorkerError> {
        let _one = self.inner.changing.lock().await;
        let entry = self.entry(id)?;
        if let Some(catalog) = &self.inner.catalog {
            catalog.remove(id).await?;
        }
        entry.crew.stop_all(STOP_GRACE).await;
        self.inner.components.lock().remove(id);
        if entry.crew.plan.cleanup_subscription {
            entry.crew.unsubscribe(&self.inner.config.client).await;
        }
        Ok(())
    }

    /// The configuration as it was given.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn get(&self, id: &ComponentId) -> Result<Component, WorkerError> {
        Ok(self.entry(id)?.record.component.clone())
    }

    /// Names of a namespace's components of a kind.
    #[must_use]
    pub fn list(&self, kind: Kind, tenant: &str, namespace: &str) -> Vec<String> {
        let components = self.inner.components.lock();
        let of =
            |id: &&ComponentId| id.kind == kind && id.tenant == tenant && id.namespace == namespace;
        components
            .keys()
            .filter(of)
            .map(|id| id.name.clone())
            .collect()
    }

    /// All components.
    #[must_use]
    pub fn components(&self) -> Vec<ComponentId> {
        self.inner.components.lock().keys().cloned().collect()
    }

    /// The package file of a component that was uploaded.
    ///
    /// # Errors
    /// When the component does not exist.
    pub fn package(&self, id: &ComponentId) -> Result<Option<PathBuf>, WorkerError> {
        let entry = self.entry(id)?;
        Ok(entry
            .record
            .package
            .as_ref()
            .map(|p| self.inner.packages.join(p)))
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

    /// Stops and starts one instance, or all.
    ///
    /// # Errors
    /// When the component or the instance does not exist.
    pub async fn restart_instances(
        &self,
        id: &ComponentId,
        instance: Option<u32>,
    ) -> Result<(), WorkerError> {
        let _one = self.inner.changing.lock().await;
        let entry = self.entry(id)?;
        for number in entry.crew.numbers(id, instance)? {
            entry.crew.stop(number, STOP_GRACE).await;
            entry.crew.start(&self.inner, number);
        }
        Ok(())
    }

    async fn set_stopped(
        &self,
        id: &ComponentId,
        instance: Option<u32>,
        stopped: bool,
    ) -> Result<(), WorkerError> {
        let _one = self.inner.changing.lock().await;
        let entry = self.entry(id)?;
        let numbers = entry.crew.numbers(id, instance)?;
        let mut record = entry.record.clone();
        for number in &numbers {
            if stopped {
                record.stopped.insert(*number);
            } else {
                record.stopped.remove(number);
            }
        }
        if record.stopped != entry.record.stopped {
            if let Some(catalog) = &self.inner.catalog {
                catalog.put(id, &record).await?;
            }
            let entry = Arc::new(Entry {
                record,
                crew: entry.crew.clone(),
            });
            self.inner.components.lock().insert(id.clone(), entry);
        }
        for number in numbers {
            if stopped {
                entry.crew.stop(number, STOP_GRACE).await;
            } else {
                entry.crew.start(&self.inner, number);
            }
        }
        Ok(())
    }

    /// How the instances are: Pulsar's `FunctionStatus`.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn status(&self, id: &ComponentId) -> Result<FunctionStatus, WorkerError> {
        let entry = self.entry(id)?;
        Ok(report::status(&entry.crew, &self.inner.config.worker_id))
    }

    /// What the instances did: Pulsar's `FunctionStats`.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn stats(&self, id: &ComponentId) -> Result<FunctionStats, WorkerError> {
        Ok(report::stats(&self.entry(id)?.crew))
    }

    /// A value of a function's state.
    ///
    /// # Errors
    /// When the function or the key does not exist.
    pub async fn state_get(
        &self,
        id: &ComponentId,
        key: &str,
    ) -> Result<FunctionState, WorkerError> {
        let entry = self.entry(id)?;
        let state = entry.crew.state(&self.inner).await?;
        let value = state.get(key).ok_or_else(|| WorkerError::NoState {
            id: id.clone(),
            key: key.to_owned(),
        })?;
        Ok(FunctionState::of(key, &value))
    }

    /// Sets a value of a function's state; durable when it answers.
    ///
    /// # Errors
    /// When the function does not exist, the value is none, or the broker does not take it.
    pub async fn state_put(
        &self,
        id: &ComponentId,
        value: FunctionState,
    ) -> Result<(), WorkerError> {
        let entry = self.entry(id)?;
        let state = entry.crew.state(&self.inner).await?;
        let bytes = value
            .bytes()
            .map_err(|why| WorkerError::Invalid(vec![why]))?;
        state
            .change(StateChange::Put(value.key, bytes))
            .await
            .map_err(|why| WorkerError::Invalid(vec![why]))
    }

    /// Sends `payload` through a function and gives what came of it; `None` when the function has
    /// no output topic.
    ///
    /// # Errors
    /// When the topic is not one of its inputs, or nothing comes within `limit`.
    pub async fn trigger(
        &self,
        id: &ComponentId,
        topic: Option<&str>,
        payload: Bytes,
        limit: Duration,
    ) -> Result<Option<Bytes>, WorkerError> {
        let entry = self.entry(id)?;
        trigger::trigger(
            &self.inner.config.client,
            &entry.crew.plan,
            topic,
            payload,
            limit,
        )
        .await
    }

    /// Counters of every component, cheap enough for a progress bar.
    #[must_use]
    pub fn progress(&self) -> Vec<Progress> {
        let components = self.inner.components.lock();
        components
            .iter()
            .map(|(id, entry)| report::progress(id, &entry.crew))
            .collect()
    }

    /// The tables that sinks of type `table` keep.
    #[must_use]
    pub fn tables(&self) -> Vec<(ComponentId, TableView)> {
        let components = self.inner.components.lock();
        let table = |(id, entry): (&ComponentId, &Arc<Entry>)| {
            Some((id.clone(), entry.crew.table.clone()?))
        };
        components.iter().filter_map(table).collect()
    }

    /// Whether nothing is left to do: bounded sources have ended, every subscription is read to its
    /// end, and nothing is in flight. Never true while an unbounded source runs.
    pub async fn is_drained(&self) -> bool {
        let before = self.activity();
        let entries: Vec<Arc<Entry>> = self.inner.components.lock().values().cloned().collect();
        for entry in entries {
            if !caught_up(&entry.crew).await {
                return false;
            }
        }
        // Nothing moved while they were asked one after the other.
        before == self.activity()
    }

    /// Waits until [`is_drained`](Self::is_drained).
    pub async fn drained(&self) {
        while !self.is_drained().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn activity(&self) -> Vec<(u64, u64)> {
        let count = |p: Progress| (p.received + p.retried, p.written + p.in_flight);
        self.progress().into_iter().map(count).collect()
    }

    /// Stops everything: messages in flight may finish within `grace`. The catalogue stays.
    pub async fn shutdown(&self, grace: Duration) {
        let _one = self.inner.changing.lock().await;
        let entries: Vec<Arc<Entry>> = self.inner.components.lock().values().cloned().collect();
        let tasks = Tasks::new();
        for entry in entries {
            tasks.spawn("stop", geminga_stdx::tasks::OnError::Log, async move {
                entry.crew.stop_all(grace).await;
                Ok::<(), std::convert::Infallible>(())
            });
        }
        tasks.join(grace + Duration::from_secs(2)).await;
        self.inner.tasks.cancel();
        self.inner.tasks.join(Duration::from_secs(2)).await;
        self.inner.components.lock().clear();
    }
}

fn is_empty(component: &Component) -> bool {
    match component {
        Component::Function(c) => **c == geminga_model::FunctionConfig::default(),
        Component::Source(c) => **c == geminga_model::SourceConfig::default(),
        Component::Sink(c) => **c == geminga_model::SinkConfig::default(),
    }
}

async fn caught_up(crew: &Crew) -> bool {
    for instance in crew.instances() {
        let gauge = &instance.gauge;
        if gauge.in_flight.load(std::sync::atomic::Ordering::Acquire) > 0 {
            return false;
        }
        match instance.health() {
            Health::Finished | Health::Stopped => continue,
            Health::Starting | Health::Degraded(_) => return false,
            Health::Running => {}
        }
        let handle = instance.consumer.lock().clone();
        let Some(handle) = handle else {
            // A source that runs has more to give.
            return false;
        };
        if !at_end(crew, &handle).await {
            let since = (*gauge.last_received.lock()).unwrap_or(instance.started());
            if since.elapsed() < QUIET {
                return false;
            }
        }
    }
    true
}

/// Whether the newest message of each topic was taken by some instance.
async fn at_end(crew: &Crew, handle: &ConsumerHandle) -> bool {
    let Ok(last) = handle.last_message_ids().await else {
        return false;
    };
    last.iter().all(|(topic, id): &(String, MessageId)| {
        id.entry_id < 0 || crew.taken.has(topic, id) == Some(true)
    })
}

impl Inner {
    pub(crate) fn places(&self, id: &ComponentId) -> Option<PathBuf> {
        self.catalog.as_ref()?;
        let name = id.fqfn().replace('/', "+");
        Some(self.config.data_dir.join(format!("source-{name}.json")))
    }

    pub(crate) fn is_kept(&self) -> bool {
        self.catalog.is_some()
    }
}

/// The topics that a plan reads and writes by name.
pub(crate) fn topics_of(plan: &Plan) -> (Vec<String>, Option<String>) {
    let inputs = match &plan.input {
        Input::Topics(subscription) => subscription.topics.clone(),
        Input::File(_) => Vec::new(),
    };
    let output = match &plan.output {
        Output::Topics { default, .. } => default.clone(),
        Output::File(_) | Output::Table(_) => None,
    };
    (inputs, output)
}

/// Since when something runs.
pub(crate) type Since = Instant;

/// A path as text for messages.
pub(crate) fn shown(path: &Path) -> String {
    path.display().to_string()
}
