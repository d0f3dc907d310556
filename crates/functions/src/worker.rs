//! The worker: keeps components in a catalogue, runs their instances, answers for them.
//!
//! Owns the catalogue topic, the package folder, the process guard and every instance's supervisor.
//! What must hold: an operation that answered is in the catalogue, so it survives a restart; an
//! instance that breaks is started again with growing pauses and says why; stopping ends every
//! process of user code; no two workers run the same instance (`cluster`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use geminga_client::{Client, ConsumerHandle, MessageId};
use geminga_stdx::Tasks;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::compat::Reach;
use crate::component::{Component, ComponentId, Kind};
use crate::connector::table::TableView;
use crate::error::WorkerError;
use crate::instance::state::{self, Unchanged};
use crate::plan::{Input, Plan, Process, plan};
use crate::rights::Rights;
use crate::runtime::{LogLine, Processes, StateChange, toolchain};
use crate::secret::{SecretRules, declared};

mod backlog;
mod beside;
mod builtins;
pub(crate) mod catalog;
mod change;
pub(crate) mod cluster;
mod leftovers;
pub(crate) mod membership;
pub(crate) mod package;
pub(crate) mod packages;
pub mod report;
pub(crate) mod runtimes;
pub(crate) mod schedule;
pub(crate) mod supervisor;
mod timings;
mod trigger;
mod turns;
mod warming;

pub use self::backlog::Backlogs;
pub use self::builtins::{BrokenBuiltin, FunctionDefinition};
pub use self::change::Version;
pub use self::cluster::{DrainStatus, MemberInfo, Owner};
pub use self::package::{PACKAGE_BYTES_MAX, Spool, Spooled, Upload};
pub use self::packages::{PackageMetadata, PackageName};
pub use self::timings::Timing;
pub use self::trigger::{Answered, Asked};

use self::catalog::{Catalog, Record};
use self::cluster::Cluster;
use self::report::{FunctionState, FunctionStats, FunctionStatus, Progress};
pub use self::runtimes::MakeRuntime;
use self::runtimes::Runtimes;
use self::supervisor::{Crew, Health};
use self::timings::Timings;

/// The longest wait for new instances to subscribe before `create` answers all the same.
const SUBSCRIBE_WAIT: Duration = Duration::from_secs(10);
/// How long an update that may be undone gets to start.
const PROVE_WAIT: Duration = Duration::from_secs(60);
/// Messages in flight may finish this long when a component stops.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// How long a worker counts as alive after its last word.
const LEASE: Duration = Duration::from_secs(5);
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
    /// `http://host:port` where other workers and clients reach this one; empty when they do not.
    pub url: String,
    /// How long a worker that says nothing may still be alive: what it ran goes to others then.
    pub lease: Duration,
    /// How long a change waits for its instances to subscribe before it answers all the same.
    pub subscribe_wait: Duration,
    /// How long an update that may be undone gets to start; then it is undone.
    pub prove_wait: Duration,
    /// The topic of the catalogue; `None` keeps nothing: for `run` and `localrun`.
    pub catalog_topic: Option<String>,
    /// Records that the catalogue, or the state of a function, may gather on its topic before the
    /// living ones are written anew: it bounds the topic and the time of a start.
    pub changelog_records_max: u64,
    /// The folder of the built-in functions; one that is not there is empty. `None` knows none at all.
    pub functions_directory: Option<PathBuf>,
    /// Private directories of functions; the system's temporary directory when `None`.
    pub temp_dir: Option<PathBuf>,
    pub on_log: Option<OnLog>,
    /// Who may reach what, where the broker can be asked. Without it a component reaches what the
    /// worker's client may.
    pub rights: Option<Arc<dyn Rights>>,
    /// How processes reach the broker that bring a client of their own: the runtime `compat`.
    pub reach: Option<Reach>,
    /// The WASM runtime, where the binary has one.
    pub wasm: Option<MakeRuntime>,
    /// What secrets may name on this machine.
    pub secrets: SecretRules,
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
            url: String::new(),
            lease: LEASE,
            subscribe_wait: SUBSCRIBE_WAIT,
            prove_wait: PROVE_WAIT,
            catalog_topic: Some(CATALOG_TOPIC.to_owned()),
            changelog_records_max: 10_000,
            functions_directory: None,
            temp_dir: None,
            on_log: None,
            rights: None,
            reach: None,
            wasm: None,
            secrets: SecretRules::default(),
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

/// A running worker. Cheap to clone; clones are the same worker.
#[derive(Clone)]
pub struct Worker {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: WorkerConfig,
    pub(crate) runtimes: Runtimes,
    pub(crate) tasks: Tasks,
    pub(crate) catalog: Catalog,
    pub(crate) cluster: Cluster,
    /// How long its own work takes.
    pub(crate) timings: Arc<Timings>,
    /// How long the start took.
    start_up_ms: std::sync::atomic::AtomicU64,
    packages: PathBuf,
    /// What the folder of the built-in functions held when it was read.
    builtins: Mutex<Arc<builtins::Builtins>>,
    /// What the catalogue says, with what runs of it here.
    components: Mutex<BTreeMap<ComponentId, Arc<Entry>>>,
    /// Packages that other workers can fetch.
    shared: Mutex<BTreeSet<String>>,
    /// New versions that are about to be ready.
    warming: Mutex<BTreeMap<ComponentId, warming::Warming>>,
    /// What calls of functions share.
    lines: trigger::Lines,
    /// Packages that are on their way from other workers.
    fetching: Mutex<BTreeSet<String>>,
    /// Held by each change; a worker that ends lets no more begin.
    open: tokio::sync::RwLock<()>,
    /// One change of a component at a time.
    changing: turns::Turns,
    /// One at a time writes what depends on the whole catalogue: who runs what, which packages are needed.
    /// Nobody waits for user code while he has it.
    writing: tokio::sync::Mutex<()>,
    /// One at a time makes what runs of a component follow the catalogue.
    settling: turns::Turns,
    /// What is about to wait for that.
    to_settle: Mutex<BTreeSet<ComponentId>>,
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

impl Worker {
    /// Reads the catalogue and starts what it holds.
    ///
    /// # Errors
    /// When the data directory or the catalogue topic can not be used.
    pub async fn start(config: WorkerConfig) -> Result<Self, WorkerError> {
        let began = Instant::now();
        let packages = config.data_dir.join("packages");
        std::fs::create_dir_all(&packages)
            .map_err(WorkerError::io(format!("making `{}`", packages.display())))?;
        let processes = Processes::start(config.temp_dir.as_deref())
            .map_err(WorkerError::io("starting the process guard"))?;
        let tasks = Tasks::new();
        // What a predecessor was killed over. A thread of its own: it may be a gigabyte.
        let sweeper = std::thread::Builder::new().name("geminga-sweep".to_owned());
        let swept = sweeper.spawn(|| toolchain::sweep(&toolchain::cache()));
        swept.map_err(WorkerError::io("starting a thread"))?;
        let (catalog, identity) = match &config.catalog_topic {
            Some(topic) => {
                beside::check(&config.client, topic).await?;
                let catalog =
                    Catalog::open(&config.client, topic, config.changelog_records_max).await?;
                let identity = cluster::identity(&config.data_dir)
                    .map_err(WorkerError::io("naming the worker"))?;
                (catalog, identity)
            }
            None => (Catalog::in_memory(), "local".to_owned()),
        };
        if catalog.is_kept() {
            let needed = catalog.read(catalog::View::packages_needed);
            package::sweep(&packages, &needed, Duration::ZERO);
            catalog.read(|view| leftovers::sweep(&config.data_dir, view));
        }
        let topic = config.catalog_topic.clone();
        let worker = Self {
            inner: Arc::new(Inner {
                runtimes: Runtimes::new(processes, tasks.clone(), config.wasm.as_ref()),
                cluster: Cluster::new(identity, config.lease, topic.is_none()),
                config,
                tasks,
                catalog,
                timings: Arc::default(),
                start_up_ms: std::sync::atomic::AtomicU64::new(0),
                packages,
                builtins: Mutex::default(),
                components: Mutex::default(),
                shared: Mutex::default(),
                warming: Mutex::default(),
                lines: trigger::Lines::default(),
                fetching: Mutex::default(),
                open: tokio::sync::RwLock::default(),
                changing: turns::Turns::default(),
                writing: tokio::sync::Mutex::default(),
                settling: turns::Turns::default(),
                to_settle: Mutex::default(),
            }),
        };
        worker.inner.sweep_packages();
        worker.reload_builtin_functions().await?;
        if let Some(topic) = topic {
            worker.join(topic).await;
        }
        let took = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        worker
            .inner
            .start_up_ms
            .store(took, std::sync::atomic::Ordering::Relaxed);
        Ok(worker)
    }

    fn plan(&self, record: &Record) -> Result<Plan, WorkerError> {
        let code = record
            .package
            .as_ref()
            .map(|package| self.inner.packages.join(package));
        plan(&record.component, code.as_deref()).map_err(WorkerError::Invalid)
    }

    /// Refuses a component whose secrets name what the operator does not list.
    async fn may_read(&self, component: &Component) -> Result<(), WorkerError> {
        let Component::Function(config) = component else {
            return Ok(());
        };
        let secrets = declared(config.secrets.as_ref());
        let checked = self.inner.config.secrets.check(secrets).await;
        checked.map_err(WorkerError::Invalid)
    }

    fn record(&self, id: &ComponentId) -> Result<Record, WorkerError> {
        let found = self
            .inner
            .catalog
            .read(|view| view.components.get(id).cloned());
        found.ok_or_else(|| WorkerError::NotFound(id.clone()))
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

    /// The configuration as it was given, with its secrets: what leaves the process is
    /// [`Component::masked`].
    ///
    /// # Errors
    /// When it does not exist.
    pub fn get(&self, id: &ComponentId) -> Result<Component, WorkerError> {
        Ok(self.record(id)?.component)
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

    /// The file of a component's code: its package, or the path that its configuration names.
    ///
    /// # Errors
    /// When the component does not exist, or its package can not be fetched.
    pub async fn package(&self, id: &ComponentId) -> Result<Option<PathBuf>, WorkerError> {
        let record = self.record(id)?;
        if let Some(package) = &record.package {
            self.inner.have(package).await?;
            return Ok(Some(self.inner.packages.join(package)));
        }
        Ok(match &record.component {
            Component::Function(config) => config.code().and_then(|(_, path)| {
                let path = path.strip_prefix("file://").unwrap_or(path);
                (!path.contains("://")).then(|| PathBuf::from(path))
            }),
            _ => None,
        })
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

    async fn state(&self, id: &ComponentId) -> Result<Arc<state::FunctionState>, WorkerError> {
        let entry = self.entry(id)?;
        if !self.inner.is_mine(id, 0) {
            // Another worker changes it: what was read before is old.
            entry.crew.forget_state().await;
        }
        entry.crew.state(&self.inner).await
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
        let state = self.state(id).await?;
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
        let bytes = value
            .bytes()
            .map_err(|why| WorkerError::Invalid(vec![why]))?;
        let change = StateChange::Put(value.key, bytes);
        let began = tokio::time::Instant::now();
        loop {
            let state = self.state(id).await?;
            match state.change(change.clone()).await {
                // An update took the function's place meanwhile: the new one is asked.
                Err(Unchanged::Closed) if began.elapsed() < SUBSCRIBE_WAIT => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                done => return done.map_err(|why| WorkerError::Invalid(vec![why.to_string()])),
            }
        }
    }

    /// The topics that a component reads now and its subscription on them; none for what reads no topic.
    /// Those of a pattern are partitions one by one.
    ///
    /// # Errors
    /// When it does not exist, or the broker does not say what matches.
    pub async fn subscription(
        &self,
        id: &ComponentId,
    ) -> Result<Option<(Vec<String>, String)>, WorkerError> {
        let plan = self.entry(id)?.crew.plan.clone();
        let Input::Topics(subscription) = &plan.input else {
            return Ok(None);
        };
        let mut topics = subscription.topics.clone();
        if !subscription.patterns.is_empty() {
            let selection = subscription.selection();
            let found = self.inner.config.client.topics_matching(&selection);
            let found = found.await.map_err(WorkerError::client("listing topics"))?;
            let is_named = |topic: &str| {
                let topic = topic.parse::<geminga_model::TopicName>();
                topic.is_ok_and(|topic| topics.iter().any(|name| *name == *topic.parent().as_str()))
            };
            let more: Vec<String> = found.into_iter().filter(|it| !is_named(it)).collect();
            topics.extend(more);
            topics.sort_unstable();
            topics.dedup();
        }
        Ok(Some((topics, subscription.name.clone())))
    }

    /// How long each kind of its own work took since it started.
    #[must_use]
    pub fn timings(&self) -> Vec<Timing> {
        self.inner.timings.all()
    }

    /// Milliseconds that the start took.
    #[must_use]
    pub fn start_up_ms(&self) -> u64 {
        self.inner
            .start_up_ms
            .load(std::sync::atomic::Ordering::Relaxed)
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

    /// Ends without a word to the others, as a killed process does: for tests.
    #[doc(hidden)]
    pub async fn vanish(&self) {
        self.inner.tasks.cancel();
        let entries: Vec<Arc<Entry>> = self.inner.components.lock().values().cloned().collect();
        for entry in entries {
            entry.crew.stop_all(Duration::ZERO).await;
        }
        self.inner.catalog.write_by(None).await;
    }

    /// Stops everything: messages in flight may finish within `grace`. The catalogue stays.
    pub async fn shutdown(&self, grace: Duration) {
        // Nothing is begun any more, and what others say is not answered.
        self.inner.cluster.go();
        // Changes that are under way may end; one that hangs keeps nobody.
        let none = async {
            (
                self.inner.open.write().await,
                self.inner.writing.lock().await,
            )
        };
        let _none = tokio::time::timeout(grace, none).await;
        let entries: Vec<Arc<Entry>> = self.inner.components.lock().values().cloned().collect();
        let tasks = Tasks::new();
        for entry in entries {
            cluster::spawn_end(&tasks, entry, grace);
        }
        tasks.join(grace + Duration::from_secs(2)).await;
        if let Some(topic) = &self.inner.config.catalog_topic {
            if self.inner.cluster.has_others() {
                self.leave(topic).await;
            }
            // The next one may write at once.
            self.inner.catalog.write_by(None).await;
        }
        self.inner.tasks.cancel();
        self.inner.tasks.join(Duration::from_secs(2)).await;
        self.inner.components.lock().clear();
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
        if matches!(crew.plan.process, Process::Compat(_)) {
            // It reads by itself: how far is not known here.
            let since = (*gauge.last_received.lock()).unwrap_or(instance.started());
            if since.elapsed() < QUIET {
                return false;
            }
            continue;
        }
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
        self.catalog.is_kept().then_some(())?;
        Some(self.config.data_dir.join(leftovers::places_of(id)))
    }

    pub(crate) fn is_kept(&self) -> bool {
        self.catalog.is_kept()
    }
}

/// Since when something runs.
pub(crate) type Since = Instant;

/// A path as text for messages.
pub(crate) fn shown(path: &Path) -> String {
    path.display().to_string()
}
