//! Keeps the instances of one component running: starts them, starts them again with growing pauses
//! when they break, stops them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use geminga_client::{Client, ConsumerHandle, Schema, ServerError};
use geminga_model::ProcessingGuarantees;
use geminga_stdx::tasks::OnError;
use geminga_stdx::{Backoff, Random, Tasks};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Inner;
use super::rights::Limits;
use super::timings::{Timings, Work};
use crate::changelog::Writer;
use crate::compat::{self, Compat};
use crate::component::{ComponentId, Kind};
use crate::connector::file_sink::FileEnd;
use crate::connector::file_source::FileStart;
use crate::connector::table::{TableEnd, TableView};
use crate::error::WorkerError;
use crate::instance::context::{Context, Declared};
use crate::instance::gather::Gather;
use crate::instance::once::Once;
use crate::instance::sink::{Sink, TopicSink};
use crate::instance::source::{Declaring, Source, Taken, TopicSource};
use crate::instance::state::{self, FunctionState, Taking};
use crate::instance::{Gauge, Instance};
use crate::plan::{Input, Language, Output, Plan, Process, Subscription, Typed};
use crate::runtime::{Host, HostSpec, Level, LogLine, Services};
use crate::schema;
use crate::secret::Unread;

/// How long a new version may take to start beside the one that runs.
const WARM_UP_MAX: Duration = Duration::from_secs(600);
/// Pauses between two starts of an instance that breaks.
const PAUSE_FIRST: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// An instance that ran so long has recovered: its next pause is the first again.
const RECOVERED: Duration = Duration::from_secs(10);

/// How an instance is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Health {
    Starting,
    Running,
    /// It broke and is about to be started again.
    Degraded(String),
    /// Its source has ended and everything is done.
    Finished,
    Stopped,
}

/// One instance as others see it.
pub(crate) struct Seat {
    pub(crate) gauge: Arc<Gauge>,
    pub(crate) consumer: Mutex<Option<ConsumerHandle>>,
    health: Mutex<Health>,
    started: Mutex<super::Since>,
    /// Whether it has subscribed, or failed to, once.
    subscribed: watch::Sender<bool>,
    running: Mutex<Option<Run>>,
    /// What the next run begins with.
    warm: Mutex<Option<Warm>>,
    /// Another worker has taken the instance's state: it waits in line for it.
    fenced: AtomicBool,
}

/// A host that has started and waits for its first message, while another version still runs.
struct Warm {
    ready: Ready,
    /// What it started ends with it.
    tasks: CancelOnDrop,
}

/// A host, and what it may ask for.
type Ready = (Box<dyn Host>, Arc<Context>);

/// What the two ends of an instance are opened with.
struct Asks<'a> {
    inner: &'a Arc<Inner>,
    seat: &'a Seat,
    fresh: bool,
    properties: &'a [(String, String)],
    /// Outputs carry numbers.
    numbers: bool,
}

/// Ends a group of tasks.
struct CancelOnDrop(Tasks);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

struct Run {
    stop: watch::Sender<Option<Duration>>,
    tasks: Tasks,
}

impl Seat {
    pub(crate) fn health(&self) -> Health {
        self.health.lock().clone()
    }

    pub(crate) fn started(&self) -> super::Since {
        *self.started.lock()
    }

    fn set(&self, health: Health) {
        *self.health.lock() = health;
    }
}

/// All instances of a component. Cheap to clone; clones are the same crew.
#[derive(Clone)]
pub(crate) struct Crew {
    pub(crate) id: ComponentId,
    pub(crate) plan: Arc<Plan>,
    pub(crate) taken: Arc<Taken>,
    pub(crate) table: Option<TableView>,
    version: u64,
    /// It was planned before its code was here: whose instance a Go program needs is in the program.
    is_blind: bool,
    pub(crate) made: Instant,
    timings: Arc<Timings>,
    /// What it may reach, where somebody is asked.
    limits: Option<Limits>,
    seats: Arc<Vec<Arc<Seat>>>,
    state: Arc<tokio::sync::Mutex<Option<Arc<FunctionState>>>>,
    /// Another crew is in its place, or about to be.
    is_retired: Arc<AtomicBool>,
}

impl Crew {
    pub(crate) fn new(
        id: ComponentId,
        version: u64,
        plan: Plan,
        count: u32,
        limits: Option<Limits>,
    ) -> Self {
        let table = match &plan.output {
            Output::Table(settings) => Some(TableView::new(settings.clone())),
            _ => None,
        };
        let seats = (0..count).map(|_| {
            Arc::new(Seat {
                gauge: Arc::new(Gauge::default()),
                consumer: Mutex::new(None),
                health: Mutex::new(Health::Stopped),
                started: Mutex::new(Instant::now()),
                subscribed: watch::Sender::new(false),
                running: Mutex::new(None),
                warm: Mutex::new(None),
                fenced: AtomicBool::new(false),
            })
        });
        let is_go = matches!(&plan.process, Process::Host(Language::Go, _));
        let code = plan.process.spec().map(|spec| &spec.code.path);
        Self {
            id,
            is_blind: is_go && code.is_some_and(|path| !path.exists()),
            plan: Arc::new(plan),
            taken: Arc::default(),
            table,
            version,
            made: Instant::now(),
            timings: Arc::default(),
            limits,
            seats: Arc::new(seats.collect()),
            state: Arc::default(),
            is_retired: Arc::default(),
        }
    }

    /// Where it tells how long its instances take to start and to stop.
    #[must_use]
    pub(crate) fn timed_by(self, timings: Arc<Timings>) -> Self {
        Self { timings, ..self }
    }

    /// Whether its code came after it was planned.
    pub(crate) fn sees_now(&self) -> bool {
        let code = self.plan.process.spec().map(|spec| &spec.code.path);
        self.is_blind && code.is_some_and(|path| path.exists())
    }

    /// Whether a message for it may be put into an input topic: who registered it may have had the right to read
    /// it alone.
    pub(crate) fn may_ask(&self, topic: &str) -> Result<(), WorkerError> {
        match &self.limits {
            Some(limits) => limits
                .may_publish(topic)
                .map_err(|why| WorkerError::Invalid(vec![why])),
            None => Ok(()),
        }
    }

    /// Whether Pulsar's own instance may run it, or another worker's.
    pub(crate) fn may_be_compat(&self) -> bool {
        self.is_blind || matches!(self.plan.process, Process::Compat(_))
    }

    /// Which version of the component it runs.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn len(&self) -> u32 {
        u32::try_from(self.seats.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn instances(&self) -> &[Arc<Seat>] {
        &self.seats
    }

    /// The numbers meant by `instance`: it, or all.
    pub(crate) fn numbers(
        &self,
        id: &ComponentId,
        instance: Option<u32>,
    ) -> Result<Vec<u32>, WorkerError> {
        match instance {
            None => Ok((0..self.len()).collect()),
            Some(number) if number < self.len() => Ok(vec![number]),
            Some(instance) => Err(WorkerError::NoInstance {
                id: id.clone(),
                instance,
                instances: self.len(),
            }),
        }
    }

    /// The function's state, read from its topic at first use.
    pub(crate) async fn state(&self, inner: &Inner) -> Result<Arc<FunctionState>, WorkerError> {
        let id = &self.id;
        let mut held = self.state.lock().await;
        // What somebody else writes to meanwhile is read anew.
        if let Some(state) = held.as_ref().filter(|state| !state.is_fenced()) {
            return Ok(state.clone());
        }
        if let Some(old) = held.take() {
            old.close().await;
        }
        let topic = state::topic(&id.tenant, &id.namespace, &id.name);
        let records_max = inner.config.changelog_records_max;
        let (client, failed) = (
            &inner.config.client,
            WorkerError::client(format!("state of {id}")),
        );
        let opening = async {
            // The instance itself takes that for its own, and here nobody is to take it away.
            let is_alone = self.plan.policy.guarantee == ProcessingGuarantees::EffectivelyOnce
                && client.has_transactions().await?;
            let writer = match is_alone {
                true => Writer::BesideOthers,
                false => Writer::Only,
            };
            FunctionState::open(client, &topic, records_max, writer, &inner.tasks).await
        };
        let state = Arc::new(opening.await.map_err(failed)?);
        if self.is_retired.load(Ordering::Acquire) {
            // To be read, and no more: the next crew's is to be changed.
            state.close().await;
            return Ok(state);
        }
        *held = Some(state.clone());
        Ok(state)
    }

    /// Another crew comes in its place: stops it, and lets go of the state for good.
    pub(crate) async fn retire(&self, grace: Duration) {
        self.stop_all(grace).await;
        self.is_retired.store(true, Ordering::Release);
        self.forget_state().await;
    }

    /// Lets go of the state when nothing runs here: another worker may change it from now on, or has
    /// done so. What runs here next reads it anew.
    pub(crate) async fn forget_state(&self) {
        let mut held = self.state.lock().await;
        if self.seats.iter().any(|seat| seat.running.lock().is_some()) {
            return;
        }
        if let Some(state) = held.take() {
            state.close().await;
        }
    }

    /// What an effectively-once instance has beside the others, when the broker has transactions.
    /// It takes the state away from whoever ran the instance before.
    async fn once(&self, inner: &Inner, seat: &Seat, number: u32) -> Result<Option<Once>, String> {
        if self.plan.policy.guarantee != ProcessingGuarantees::EffectivelyOnce {
            return Ok(None);
        }
        let client = &inner.config.client;
        if !client.has_transactions().await.map_err(|e| e.to_string())? {
            *seat.gauge.effectively_once.lock() = Some(
                "sequence ids, since the broker has no transactions: outputs to the output topic \
                 happen once where its namespace has deduplication; other topics and state may \
                 see a message again",
            );
            return Ok(None);
        }
        *seat.gauge.effectively_once.lock() = Some("transactions");
        let id = &self.id;
        let mut topic = state::topic(&id.tenant, &id.namespace, &id.name);
        let has_peers = self.len() > 1;
        if has_peers {
            topic = format!("{topic}-{number}");
        }
        let in_line = seat.fenced.load(Ordering::Acquire);
        if in_line {
            // Nobody is to wait for one who waits in line.
            seat.subscribed.send_replace(true);
        }
        let taking = Taking { in_line, has_peers };
        let records_max = inner.config.changelog_records_max;
        let opening = FunctionState::open_alone(client, &topic, records_max, taking, &inner.tasks);
        let state = Arc::new(opening.await.map_err(|error| format!("state: {error}"))?);
        seat.fenced.store(false, Ordering::Release);
        *self.state.lock().await = Some(state.clone());
        Ok(Some(Once::new(client.clone(), state)))
    }

    /// Whether any instance runs.
    pub(crate) fn runs(&self) -> bool {
        self.seats.iter().any(|seat| seat.running.lock().is_some())
    }

    /// Whether its code can be started before it is to run: not what sleeps until a message comes, nor
    /// what may not start at all.
    pub(crate) fn can_warm_up(&self) -> bool {
        let may = self.limits.as_ref().is_none_or(|l| l.may_start().is_ok());
        may && matches!(&self.plan.process, Process::Host(_, spec) if spec.idle.is_none())
    }

    /// Starts the hosts of these instances beside `old`, which runs on meanwhile: the code is loaded
    /// and ready when the old one is stopped. They read the state that the old one has. A host that
    /// does not start is said, and started once more in its place, as without this.
    pub(crate) async fn warm_up(&self, inner: &Arc<Inner>, numbers: &[u32], old: &Crew) {
        let state = old.state.lock().await.clone();
        let starters = Tasks::new();
        for number in numbers {
            let (crew, inner, state) = (self.clone(), inner.clone(), state.clone());
            let number = *number;
            starters.spawn_cancellable("function warms up", async move {
                let seat = &crew.seats[number as usize];
                let tasks = CancelOnDrop(inner.tasks.child());
                match crew.start_host(&inner, seat, number, state, &tasks.0).await {
                    Ok(ready) => *seat.warm.lock() = Some(Warm { ready, tasks }),
                    Err(why) => {
                        tracing::warn!(component = %crew.id, number, why, "it does not warm up");
                    }
                }
            });
        }
        // Dropped with this: a version that is not wanted any more.
        let _ends = CancelOnDrop(starters.clone());
        if !starters.join(WARM_UP_MAX).await {
            tracing::warn!(component = %self.id, "it does not warm up in time: it starts cold");
        }
    }

    /// Starts the code of an instance, with what it may ask for.
    async fn start_host(
        &self,
        inner: &Arc<Inner>,
        seat: &Seat,
        number: u32,
        state: Option<Arc<FunctionState>>,
        tasks: &Tasks,
    ) -> Result<Ready, String> {
        let plan = &self.plan;
        let Process::Host(language, spec) = &plan.process else {
            return Err("it has no code".to_owned());
        };
        let client = &inner.config.client;
        let on_log = self.on_log(inner, number);
        let mut context = Context::new(seat.gauge.clone(), state, on_log);
        if let Some(topic) = &plan.log_topic {
            context.log_to(client.clone(), topic.clone(), self.id.fqfn(), number, tasks);
        }
        if let Output::Topics { producer, .. } = &plan.output {
            // No default topic, so that it makes no producer before it is asked.
            let sink = TopicSink::open(
                client.clone(),
                self.id.fqfn(),
                (None, None),
                producer.clone(),
                false,
                self.properties(number),
                Arc::default(),
            );
            let mut sink = sink.await.map_err(|error| error.to_string())?;
            sink.limit(self.limits.clone());
            context.publish_by(sink, tasks);
        }
        context.schemas_by(client.clone(), self.taken.clone());
        let mut unread = self.unread(inner, spec, number);
        if *language == Language::Java && plan.asks_host() {
            // Its host chooses by what a topic has already, as Pulsar's does.
            unread.spec.topic_schemas = self.topic_schemas(client).await?;
            context.set_known(unread.spec.topic_schemas.keys().cloned().collect());
        }
        let context = Arc::new(context);
        let host = inner
            .runtimes
            .start(*language, unread, context.clone())
            .await;
        let host = host.map_err(|broken| super::broken_text(&broken))?;
        Ok((host, context))
    }

    /// The types of the schemas that the topics of the configuration have, of those that have one.
    async fn topic_schemas(&self, client: &Client) -> Result<BTreeMap<String, String>, String> {
        let mut topics = Vec::new();
        if let Input::Topics(subscription) = &self.plan.input {
            topics.extend(subscription.topics.iter().map(String::as_str));
        }
        if let Output::Topics { default, .. } = &self.plan.output {
            topics.extend(default.as_deref());
        }
        let mut found = BTreeMap::new();
        for topic in topics {
            let schema = client.schema(topic).await;
            let schema = schema.map_err(|error| format!("the schema of `{topic}`: {error}"))?;
            if let Some(schema) = schema {
                let kind = schema::name(schema.kind()).to_owned();
                found.insert(topic.to_owned(), kind);
            }
        }
        Ok(found)
    }

    /// Subscribes. A topic whose messages had no schema is read without one, if the class alone says it.
    async fn source(
        &self,
        client: &Client,
        subscription: &Subscription,
        properties: &[(String, String)],
        declared: &Declared,
    ) -> Result<TopicSource, geminga_client::Error> {
        let with = async |declaring: Declaring<'_>| {
            let taken = self.taken.clone();
            TopicSource::subscribe(client, subscription, properties, taken, &declaring).await
        };
        let refused = Some(ServerError::IncompatibleSchema);
        match with(Declaring::Said(declared)).await {
            Err(error) if error.server_error() == refused && !declared.inputs.is_empty() => {
                with(Declaring::Configured(declared)).await
            }
            subscribed => subscribed,
        }
    }

    /// Starts an instance that does not run.
    pub(crate) fn start(&self, inner: &Arc<Inner>, number: u32) {
        let seat = self.seats[number as usize].clone();
        let mut running = seat.running.lock();
        if running.is_some() {
            return;
        }
        let (stop, stopped) = watch::channel(None);
        let tasks = inner.tasks.child();
        seat.set(Health::Starting);
        seat.subscribed.send_replace(false);
        let crew = self.clone();
        let keeper = seat.clone();
        let inner = inner.clone();
        let group = tasks.clone();
        tasks.spawn("function instance", OnError::Log, async move {
            tokio::select! {
                () = crew.keep(&inner, &keeper, number, stopped, &group) => {}
                // It had its time: what it holds is dropped, and its process killed with it.
                () = group.cancelled() => {}
            }
            Ok::<(), std::convert::Infallible>(())
        });
        *running = Some(Run { stop, tasks });
    }

    /// Ends every instance at once: what does not end within `limit` is dropped where it stands.
    pub(crate) async fn halt(&self, limit: Duration) {
        let runs: Vec<(&Arc<Seat>, Run)> = self
            .seats
            .iter()
            .filter_map(|seat| Some((seat, seat.running.lock().take()?)))
            .collect();
        for seat in self.seats.iter() {
            drop(seat.warm.lock().take());
        }
        let until = Instant::now() + limit;
        for (_, run) in &runs {
            let _ = run.stop.send(Some(Duration::ZERO));
        }
        for (_, run) in &runs {
            run.tasks
                .join(until.saturating_duration_since(Instant::now()))
                .await;
            run.tasks.cancel();
        }
        for (seat, run) in &runs {
            // Dropped at its next await.
            run.tasks.join(limit).await;
            *seat.consumer.lock() = None;
            seat.subscribed.send_replace(true);
            seat.set(Health::Stopped);
        }
    }

    /// Stops an instance; messages in flight may finish within `grace`. Nobody may start it meanwhile.
    pub(crate) async fn stop(&self, number: u32, grace: Duration) {
        let seat = &self.seats[number as usize];
        let began = Instant::now();
        // It keeps its place meanwhile: the end of the lease is to find it.
        let tasks = seat.running.lock().as_ref().map(|run| {
            let _ = run.stop.send(Some(grace));
            run.tasks.clone()
        });
        let Some(tasks) = tasks else {
            // What was ready to run is not to.
            drop(seat.warm.lock().take());
            return;
        };
        if !tasks.join(grace * 2 + Duration::from_secs(5)).await {
            tracing::error!(component = %self.id, number, "an instance does not stop");
        }
        tasks.cancel();
        drop(seat.running.lock().take());
        seat.set(Health::Stopped);
        self.timings.add(Work::Stop, began.elapsed());
    }

    pub(crate) async fn stop_all(&self, grace: Duration) {
        // Told together, waited for one by one.
        for seat in self.seats.iter() {
            if let Some(run) = &*seat.running.lock() {
                let _ = run.stop.send(Some(grace));
            }
        }
        for number in 0..self.len() {
            self.stop(number, grace).await;
        }
    }

    pub(crate) async fn stop_these(&self, numbers: &[u32], grace: Duration) {
        for number in numbers {
            if let Some(run) = &*self.seats[*number as usize].running.lock() {
                let _ = run.stop.send(Some(grace));
            }
        }
        for number in numbers {
            self.stop(*number, grace).await;
        }
    }

    /// Resolves when every instance that runs has subscribed or failed to.
    pub(crate) async fn subscribed(&self) {
        for seat in self.seats.iter() {
            if seat.running.lock().is_none() {
                continue;
            }
            // The sender lives as long as the seat.
            let _ = seat
                .subscribed
                .subscribe()
                .wait_for(|subscribed| *subscribed)
                .await;
        }
    }

    /// Removes the subscription from its topics.
    pub(crate) async fn unsubscribe(&self, client: &Client) -> Result<(), geminga_client::Error> {
        match self.subscribe(client).await? {
            Some(source) => source.handle().unsubscribe().await,
            None => Ok(()),
        }
    }

    /// Makes the subscription, so that nothing is missed until an instance uses it.
    pub(crate) async fn subscribe_once(&self, client: &Client) {
        if let Err(error) = self.subscribe(client).await {
            tracing::warn!(component = %self.id, %error, "not subscribed yet");
        }
    }

    async fn subscribe(
        &self,
        client: &Client,
    ) -> Result<Option<TopicSource>, geminga_client::Error> {
        let Input::Topics(subscription) = &self.plan.input else {
            return Ok(None);
        };
        let plan = Subscription {
            skip_to_latest: false,
            ..subscription.clone()
        };
        // It is there for its subscription alone, which what its topics became must not stand in the way of.
        let declaring = Declaring::Nothing;
        let source = TopicSource::subscribe(client, &plan, &[], Arc::default(), &declaring).await?;
        Ok(Some(source))
    }

    async fn keep(
        &self,
        inner: &Arc<Inner>,
        seat: &Seat,
        number: u32,
        mut stop: watch::Receiver<Option<Duration>>,
        group: &Tasks,
    ) {
        let seed = Random::from_entropy().next_u64();
        let mut backoff = Backoff::new(PAUSE_FIRST, PAUSE_MAX, seed);
        let mut fresh = true;
        loop {
            let began = Instant::now();
            *seat.started.lock() = began;
            // A task group of its own: what an instance started ends with it, and when this is dropped.
            let (ready, ends) = match seat.warm.lock().take() {
                Some(warm) => (Some(warm.ready), warm.tasks),
                None => (None, CancelOnDrop(group.child())),
            };
            let tasks = &ends.0;
            let result = self
                .run_once(inner, seat, number, fresh, &stop, (tasks, ready))
                .await;
            fresh = false;
            *seat.consumer.lock() = None;
            tasks.cancel();
            tasks.join(Duration::from_secs(2)).await;
            seat.subscribed.send_replace(true);
            let why = match result {
                Ok(()) => {
                    let stopped = stop.borrow().is_some();
                    seat.set(if stopped {
                        Health::Stopped
                    } else {
                        Health::Finished
                    });
                    return;
                }
                Err(why) => why,
            };
            if began.elapsed() >= RECOVERED || seat.gauge.refusals.take_ended() {
                backoff.reset();
            }
            let pause = backoff.next_delay();
            tracing::warn!(component = %self.id, instance = number, why, ?pause, "instance broke");
            seat.gauge.stats.system_exception(why.clone());
            seat.gauge.stats.restarted();
            seat.set(Health::Degraded(why));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = stop.wait_for(Option::is_some) => {
                    seat.set(Health::Stopped);
                    return;
                }
            }
        }
    }

    /// Runs an instance once, to its end.
    async fn run_once(
        &self,
        inner: &Arc<Inner>,
        seat: &Seat,
        number: u32,
        fresh: bool,
        stop: &watch::Receiver<Option<Duration>>,
        (tasks, ready): (&Tasks, Option<Ready>),
    ) -> Result<(), String> {
        let mut stopping = stop.clone();
        let began = Instant::now();
        if let Process::Compat(compat) = &self.plan.process {
            if let Some(limits) = &self.limits {
                limits.may_start()?;
            }
            if fresh {
                // From here on nothing is missed, and it begins where the configuration says.
                let subscribed = tokio::select! {
                    subscribed = self.subscribe(&inner.config.client) => subscribed,
                    _ = stopping.wait_for(Option::is_some) => return Ok(()),
                };
                if let Some(source) = subscribed.map_err(|error| format!("subscribing: {error}"))? {
                    Box::new(source).close().await;
                }
            }
            return self
                .run_compat(inner, seat, number, compat, stop, tasks)
                .await;
        }
        let building = self.build(inner, seat, number, fresh, tasks, ready);
        let instance = tokio::select! {
            instance = building => instance?,
            _ = stopping.wait_for(Option::is_some) => return Ok(()),
        };
        seat.set(Health::Running);
        self.timings.add(Work::Start, began.elapsed());
        let state = instance.state.clone();
        let result = instance.run(stop.clone()).await;
        if state.is_some_and(|state| state.is_fenced()) {
            seat.fenced.store(true, Ordering::Release);
        }
        result.map_err(|fault| match &fault {
            crate::instance::Fault::Host(broken) => super::broken_text(broken),
            other => other.to_string(),
        })
    }

    /// Runs a process with Pulsar's own instance once, to its end.
    async fn run_compat(
        &self,
        inner: &Arc<Inner>,
        seat: &Seat,
        number: u32,
        compat: &Compat,
        stop: &watch::Receiver<Option<Duration>>,
        tasks: &Tasks,
    ) -> Result<(), String> {
        seat.subscribed.send_replace(true);
        let began = Instant::now();
        let context = Context::new(seat.gauge.clone(), None, self.on_log(inner, number));
        let mut stopping = stop.clone();
        let unread = self.unread(inner, &compat.spec, number);
        let spec = tokio::select! {
            read = unread.read() => read.map_err(|broken| super::broken_text(&broken))?,
            _ = stopping.wait_for(Option::is_some) => return Ok(()),
        };
        let job = compat::Job {
            compat,
            spec: HostSpec::clone(&spec),
            reach: inner.config.reach.as_ref(),
            processes: &inner.runtimes.processes,
            services: Arc::new(context),
            gauge: &seat.gauge,
            tasks,
        };
        let runs = || {
            seat.set(Health::Running);
            self.timings.add(Work::Start, began.elapsed());
        };
        compat::run(job, stop.clone(), runs).await
    }

    /// The code and its settings, for one instance.
    fn unread(&self, inner: &Inner, spec: &HostSpec, number: u32) -> Unread {
        Unread {
            spec: HostSpec {
                instance: number,
                cluster: inner.config.cluster.clone(),
                version: self.version.to_string(),
                function_id: format!("{:016x}", Random::from_entropy().next_u64()),
                ..spec.clone()
            },
            secrets: self.plan.secrets.clone(),
            rules: inner.config.secrets.clone(),
        }
    }

    fn on_log(&self, inner: &Inner, number: u32) -> Option<crate::instance::context::OnLog> {
        inner.config.on_log.clone().map(|on_log| {
            let id = self.id.clone();
            let call: crate::instance::context::OnLog =
                Arc::new(move |line| on_log(&id, number, line));
            call
        })
    }

    async fn open_source(
        &self,
        asks: &Asks<'_>,
        declared: &Declared,
    ) -> Result<Box<dyn Source>, String> {
        let (inner, seat) = (asks.inner, asks.seat);
        Ok(match &self.plan.input {
            Input::Topics(subscription) => {
                let client = &inner.config.client;
                let source = self.source(client, subscription, asks.properties, declared);
                let source = source
                    .await
                    .map_err(|error| format!("subscribing: {error}"))?;
                *seat.consumer.lock() = Some(source.handle());
                seat.subscribed.send_replace(true);
                Box::new(source)
            }
            Input::File(settings) => Box::new(FileStart::open(
                settings.clone(),
                inner.places(&self.id),
                seat.gauge.clone(),
            )?),
        })
    }

    async fn open_sink(
        &self,
        asks: &Asks<'_>,
        declared: &Declared,
    ) -> Result<Box<dyn Sink>, String> {
        let inner = asks.inner;
        let client = &inner.config.client;
        Ok(match &self.plan.output {
            Output::Topics {
                default,
                producer,
                forward_properties,
            } => {
                let schema = self.output_schema(client, declared).await?;
                let sink = TopicSink::open(
                    client.clone(),
                    self.id.fqfn(),
                    (default.clone(), schema),
                    producer.clone(),
                    *forward_properties,
                    asks.properties.to_vec(),
                    asks.seat.gauge.refusals.clone(),
                );
                let mut sink = sink.await.map_err(|error| format!("output: {error}"))?;
                sink.limit(self.limits.clone());
                if asks.numbers {
                    sink.number();
                }
                Box::new(sink)
            }
            Output::File(settings) => {
                // A worker that keeps its components goes on with the file after a restart.
                let begin = asks.fresh && !inner.is_kept();
                Box::new(FileEnd::open(settings, begin, client.clone())?)
            }
            Output::Table(_) => match &self.table {
                Some(table) => Box::new(TableEnd(table.clone())),
                None => return Err("no table".to_owned()),
            },
        })
    }

    /// What the output topic is declared to be.
    async fn output_schema(
        &self,
        client: &Client,
        declared: &Declared,
    ) -> Result<Option<Schema>, String> {
        let Output::Topics {
            default: Some(topic),
            producer,
            ..
        } = &self.plan.output
        else {
            return Ok(None);
        };
        Ok(match &producer.schema {
            Typed::Bytes => None,
            Typed::Schema(schema) => Some(schema.clone()),
            Typed::Host | Typed::Derived => declared.output.clone(),
            Typed::OfTopic => {
                let schema = client.schema(topic).await;
                schema.map_err(|error| format!("output: the schema of `{topic}`: {error}"))?
            }
        })
    }

    /// By which others know the producers and consumers of an instance.
    fn properties(&self, number: u32) -> Vec<(String, String)> {
        let application = match self.id.kind {
            Kind::Function => "pulsar-function",
            Kind::Source => "pulsar-source",
            Kind::Sink => "pulsar-sink",
        };
        vec![
            ("application".to_owned(), application.to_owned()),
            ("id".to_owned(), self.id.fqfn()),
            ("instance_id".to_owned(), number.to_string()),
        ]
    }

    async fn build(
        &self,
        inner: &Arc<Inner>,
        seat: &Seat,
        number: u32,
        fresh: bool,
        tasks: &Tasks,
        ready: Option<Ready>,
    ) -> Result<Instance, String> {
        if let Some(limits) = &self.limits {
            limits.may_start()?;
        }
        let client = &inner.config.client;
        let plan = &self.plan;
        let properties = self.properties(number);
        // First of all: what a predecessor does later must not count.
        let once = self.once(inner, seat, number).await?;
        let once_state = once.as_ref().map(|once| once.state.clone());
        if once_state.is_some() {
            // What was changed and not recorded is not in this state.
            seat.gauge.outside.lock().clear();
        }
        let numbers = plan.policy.guarantee == ProcessingGuarantees::EffectivelyOnce;
        let numbers = numbers && once.is_none();
        let opening = async {
            match &plan.process {
                Process::Identity | Process::Compat(_) => Ok(None),
                Process::Host(..) if once_state.is_some() => Ok(once_state),
                // Its instances are on several workers: there is no memory that they share.
                Process::Host(_, spec) if spec.options.spread => Ok(None),
                Process::Host(..) => {
                    let opened = self.state(inner).await;
                    opened.map(Some).map_err(|error| error.to_string())
                }
            }
        };
        let asks = Asks {
            inner,
            seat,
            fresh,
            properties: &properties,
            numbers,
        };
        let (source, sink): (Box<dyn Source>, Box<dyn Sink>);
        let (state, host): (Option<Arc<FunctionState>>, Option<Box<dyn Host>>);
        if plan.asks_host() {
            // It says what topics are, and so comes first. What is published from now on is not missed.
            let is_cold = fresh && ready.is_none();
            let subscribing = async {
                if is_cold {
                    self.subscribe_once(client).await;
                }
            };
            let ((), opened) = tokio::join!(subscribing, opening);
            state = opened?;
            let (started, context) = match ready {
                Some(ready) => ready,
                None => {
                    self.start_host(inner, seat, number, state.clone(), tasks)
                        .await?
                }
            };
            context.set_state(state.clone());
            host = Some(started);
            let declared = context.declared();
            let opened = tokio::join!(
                self.open_source(&asks, &declared),
                self.open_sink(&asks, &declared)
            );
            (source, sink) = (opened.0?, opened.1?);
        } else {
            // All at once: each waits for the broker's disk. Each to its end: what is published from the
            // subscription on is not missed, whatever else fails.
            let none = Declared::default();
            let opened = tokio::join!(
                self.open_source(&asks, &none),
                self.open_sink(&asks, &none),
                opening
            );
            (source, sink, state) = (opened.0?, opened.1?, opened.2?);
            host = match (&plan.process, ready) {
                (Process::Identity | Process::Compat(_), _) => None,
                (Process::Host(..), Some((host, context))) => {
                    context.set_state(state.clone());
                    Some(host)
                }
                (Process::Host(..), None) => {
                    let started = self.start_host(inner, seat, number, state.clone(), tasks);
                    let (host, context) = started.await?;
                    context.set_state(state.clone());
                    Some(host)
                }
            };
        }
        seat.subscribed.send_replace(true);
        let log = match (&plan.process, &plan.log_topic) {
            (Process::Identity, Some(topic)) => {
                Some(self.own_log(inner, seat, number, topic, tasks))
            }
            // A host has its own.
            _ => None,
        };
        Ok(Instance {
            source,
            host,
            sink,
            state,
            once,
            gather: plan.window.clone().map(Gather::new),
            policy: plan.policy.clone(),
            limits: self.limits.clone(),
            log,
            gauge: seat.gauge.clone(),
            tasks: tasks.clone(),
        })
    }

    /// The log of a connector, which has no code of its own that would say something.
    fn own_log(
        &self,
        inner: &Inner,
        seat: &Seat,
        number: u32,
        topic: &str,
        tasks: &Tasks,
    ) -> Arc<dyn Services> {
        let mut context = Context::new(seat.gauge.clone(), None, None);
        let client = inner.config.client.clone();
        context.log_to(client, topic.to_owned(), self.id.fqfn(), number, tasks);
        let (level, text) = match seat.health() {
            Health::Degraded(why) => (Level::Error, format!("started again: {why}")),
            _ => (Level::Info, "started".to_owned()),
        };
        context.log(LogLine {
            level,
            text,
            message_id: None,
        });
        Arc::new(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_go_program_that_comes_later_is_looked_at_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let program = folder.path().join("program");
        let crew = |code: &str| {
            let text = format!(r#"{{"name":"f","{code}":{program:?},"inputs":["in"]}}"#);
            let config: geminga_model::FunctionConfig =
                serde_json::from_str(&text).expect("a configuration");
            let component = config.into();
            let plan = crate::plan::plan(&component, None).expect("a plan");
            let id = component.id().expect("it has a name");
            Crew::new(id, 1, plan, 1, None)
        };
        let (before, script) = (crew("go"), crew("sh"));
        assert!(!before.sees_now());
        std::fs::write(&program, "").expect("written");
        assert!(before.sees_now());
        assert!(!script.sees_now(), "a script is a script");
        assert!(!crew("go").sees_now(), "it was seen");
    }
}
