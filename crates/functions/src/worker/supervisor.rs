//! Keeps the instances of one component running: starts them, starts them again with growing pauses
//! when they break, stops them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use geminga_client::{Client, ConsumerHandle};
use geminga_stdx::tasks::OnError;
use geminga_stdx::{Backoff, Random, Tasks};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Inner;
use super::timings::{Timings, Work};
use crate::compat;
use crate::component::ComponentId;
use crate::connector::table::TableView;
use crate::error::WorkerError;
use crate::instance::Gauge;
use crate::instance::context::Context;
use crate::instance::source::{Declaring, Source, Taken, TopicSource};
use crate::instance::state::FunctionState;
use crate::plan::{Compat, Input, Language, Output, Plan, Process, Subscription};
use crate::rights::Limits;
use crate::runtime::{Host, HostSpec};

mod opening;

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
            crate::instance::Fault::Host(broken) => broken.text(),
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
            read = unread.read() => read.map_err(|broken| broken.text())?,
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
