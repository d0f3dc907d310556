//! Random work on topics and cursors with crashes at random points, compared with a model:
//! nothing acknowledged is lost, nothing is reordered or invented, no cursor stands past what was
//! acked, no durable ack is lost. A failure prints its seed; `GEMINGA_SEED=n` runs that one alone.
//! `GEMINGA_SEEDS=n` runs so many of them.

use super::model::{CursorModel, TopicModel, WHOLE};
use super::{ALL, Watch};
use crate::Storage;
use crate::config::ManagedConfig;
use crate::disk::faulty::FaultyDisk;
use crate::embedded::{Durability, EmbeddedConfig, EmbeddedStore};
use crate::ledger::memory::{MemoryImage, MemoryStore};
use crate::ledger::{LedgerStore, ReadLimits, StateLog};
use crate::managed::{Cursor, Initial, ManagedLedger, OpenOptions, Properties, Retention};
use crate::state::State;
use bytes::Bytes;
use geminga_model::Position;
use geminga_stdx::{Clock, Random, Tasks};
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

const NAMES: [&str; 3] = ["p/d/persistent/a", "p/d/persistent/b", "p/d/persistent/c"];
const CURSORS: [&str; 3] = ["one", "two", "three"];

/// An imaginary machine that can lose its power.
trait Machine {
    type Store: LedgerStore + StateLog;
    fn open(&mut self, state: Arc<State>) -> Arc<Self::Store>;
    /// Lets a little time pass.
    fn step(&self, store: &Self::Store, random: &mut Random);
    fn checkpoint(&self, store: &Self::Store, random: &mut Random);
    fn crash(&mut self, store: Arc<Self::Store>, random: &mut Random);
}

#[derive(Default)]
struct InMemory {
    image: MemoryImage,
}

impl Machine for InMemory {
    type Store = MemoryStore;
    fn open(&mut self, state: Arc<State>) -> Arc<MemoryStore> {
        MemoryStore::manual(std::mem::take(&mut self.image), state).unwrap()
    }
    fn step(&self, store: &MemoryStore, random: &mut Random) {
        store.step(random.below(4) as usize);
    }
    fn checkpoint(&self, store: &MemoryStore, random: &mut Random) {
        store.checkpoint(random.below(20));
    }
    fn crash(&mut self, store: Arc<MemoryStore>, random: &mut Random) {
        self.image = store.crash(random.below(4) as usize);
    }
}

struct OnDisk {
    disk: FaultyDisk,
    config: EmbeddedConfig,
}

impl OnDisk {
    fn new(seed: u64, durability: Durability) -> Self {
        let config = EmbeddedConfig {
            durability,
            log_segment_bytes: 64 << 10,
            log_segments_max: 6,
            space_low_bytes: 0,
            space_reserve_bytes: 0,
            ..EmbeddedConfig::default()
        };
        let disk = FaultyDisk::new(seed);
        Self { disk, config }
    }
}

impl Machine for OnDisk {
    type Store = EmbeddedStore;
    fn open(&mut self, state: Arc<State>) -> Arc<EmbeddedStore> {
        EmbeddedStore::open_on(Arc::new(self.disk.clone()), self.config.clone(), state).unwrap()
    }
    fn step(&self, _: &EmbeddedStore, _: &mut Random) {
        std::thread::yield_now();
    }
    fn checkpoint(&self, store: &EmbeddedStore, _: &mut Random) {
        store.checkpoint().unwrap();
    }
    fn crash(&mut self, store: Arc<EmbeddedStore>, random: &mut Random) {
        let mut faults = crate::disk::faulty::Faults::default();
        if random.one_in(2) {
            faults.power_off_after_writes = Some(0);
            self.disk.set_faults(faults);
            // Torn in the middle of a write, if one comes.
            let _ = StateLog::append(&*store, Bytes::from_static(&[3, 1]));
            std::thread::yield_now();
        }
        self.disk.power_off();
        drop(store);
        self.disk = match self.config.durability {
            Durability::Fsync => self.disk.after_crash(),
            Durability::Os => self.disk.after_kill(),
        };
    }
}

/// One loaded topic.
struct Loaded {
    topic: Arc<ManagedLedger>,
    watch: Arc<Watch>,
    cursors: BTreeMap<String, Arc<Cursor>>,
}

struct World<M: Machine> {
    machine: M,
    random: Random,
    store: Option<Arc<M::Store>>,
    storage: Option<Storage>,
    tasks: Tasks,
    loaded: BTreeMap<&'static str, Loaded>,
    models: BTreeMap<&'static str, TopicModel>,
    count: u64,
}

impl<M: Machine> World<M> {
    fn new(machine: M, seed: u64) -> Self {
        Self {
            machine,
            random: Random::new(seed),
            store: None,
            storage: None,
            tasks: Tasks::new(),
            loaded: BTreeMap::new(),
            models: BTreeMap::new(),
            count: 0,
        }
    }

    async fn start(&mut self) {
        let config = ManagedConfig {
            ledger_entries_max: 1 + self.random.below(12),
            cache_bytes_max: 4000,
            cache_copy_below_bytes: self.random.below(100) as usize,
            ..ManagedConfig::default()
        };
        let state = Arc::new(State::new());
        let store = self.machine.open(state.clone());
        self.store = Some(store.clone());
        self.tasks = Tasks::new();
        let tasks = self.tasks.clone();
        let start =
            async move { Storage::on(store, state, config, Clock::manual(1_000), &tasks).await };
        self.storage = Some(self.finish(start).await.unwrap());
        // What is known must be there.
        for name in NAMES {
            let topics = self.storage.as_ref().unwrap().topics.clone();
            let exists = topics.exists(name).await.unwrap();
            match self.models.get(name) {
                Some(model) if !exists => {
                    assert!(model.deleting, "topic {name} is lost");
                    self.models.remove(name);
                }
                Some(_) => self.load(name, true).await,
                None => assert!(!exists, "topic {name} was never made, or was deleted"),
            }
        }
    }

    /// Runs to the end, with time passing.
    async fn finish<T>(&mut self, future: impl Future<Output = T>) -> T {
        self.within(future, u64::MAX).await.expect("it ends")
    }

    /// Runs for some steps; none when it has not ended by then.
    async fn within<T>(&mut self, future: impl Future<Output = T>, steps: u64) -> Option<T> {
        tokio::pin!(future);
        for _ in 0..steps {
            tokio::select! {
                biased;
                done = &mut future => return Some(done),
                () = tokio::task::yield_now() => {}
            }
            if let Some(store) = &self.store {
                self.machine.step(store, &mut self.random);
            }
        }
        None
    }

    /// Lets a little time pass.
    async fn pass(&mut self) {
        if let Some(store) = &self.store {
            self.machine.step(store, &mut self.random);
        }
        tokio::task::yield_now().await;
    }

    /// A future's steps: mostly enough, at times so few that the crash comes in the middle.
    fn patience(&mut self) -> u64 {
        if self.random.one_in(12) {
            self.random.below(6)
        } else {
            u64::MAX
        }
    }

    async fn crash(&mut self) {
        self.confirm();
        let store = self.store.take().unwrap();
        self.tasks.cancel();
        self.loaded.clear();
        self.storage = None;
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        self.confirm();
        self.machine.crash(store, &mut self.random);
        self.start().await;
    }

    /// Takes in what the observers were told.
    fn confirm(&mut self) {
        for (name, loaded) in &self.loaded {
            if let Some(through) = loaded.watch.told.lock().through {
                self.models.get_mut(name).unwrap().confirm(through);
            }
        }
    }

    async fn load(&mut self, name: &'static str, crashed: bool) {
        let options = OpenOptions {
            create: true,
            prepare: self.random.below(2) == 0,
            ..OpenOptions::default()
        };
        let topics = self.storage.as_ref().unwrap().topics.clone();
        let topic = self.finish(async move { topics.open(name, options).await });
        let topic = topic.await.unwrap();
        let watch = Arc::new(Watch::default());
        topic.set_observer(watch.clone());
        let loaded = Loaded {
            topic,
            watch,
            cursors: BTreeMap::new(),
        };
        self.loaded.insert(name, loaded);
        self.settle(name, crashed).await;
    }

    /// Compares all with the model after a restart or a reload, and takes over what was undecided.
    /// Without a crash the cursors are as they were.
    async fn settle(&mut self, name: &'static str, crashed: bool) {
        let topic = self.loaded[name].topic.clone();
        let entries = self.finish(read_all(&topic)).await;
        let model = self.models.entry(name).or_default();
        if std::env::var_os("GEMINGA_TRACE").is_some() {
            eprintln!(
                "settle {name} crashed {crashed}: {} confirmed {} pending, list {:?}",
                model.confirmed.len(),
                model.pending.len(),
                topic.list()
            );
        }
        model.settle(entries, &topic);
        model.deleting = false;
        let mut handles = BTreeMap::new();
        let mut cursors = std::mem::take(&mut model.cursors);
        assert_eq!(topic.cursors().len(), cursors.len(), "cursors of {name}");
        for (cursor, known) in &mut cursors {
            let handle = topic.cursor(cursor).expect("a durable cursor is there");
            if crashed {
                known.settle(&handle, model);
            }
            known.check_exact(&handle, model);
            handles.insert(cursor.clone(), handle);
        }
        model.cursors = cursors;
        self.loaded.get_mut(name).unwrap().cursors = handles;
    }

    fn payload(&mut self) -> Bytes {
        self.count += 1;
        let padding = self.random.below(60) as usize;
        Bytes::from(format!("{}-{}", self.count, "x".repeat(padding)))
    }

    /// One random act. False when it was cut off, and only a crash can follow.
    async fn act(&mut self) -> bool {
        self.confirm();
        let name = NAMES[self.random.below(3) as usize];
        if !self.loaded.contains_key(name) {
            self.load(name, false).await;
            return true;
        }
        let act = self.random.below(100);
        if std::env::var_os("GEMINGA_TRACE").is_some() {
            let topic = &self.loaded[name].topic;
            eprintln!(
                "{act} on {name}: {:?} of {:?}, durable {}, list {:?}",
                self.models[name]
                    .confirmed
                    .keys()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>(),
                self.models[name].pending.len(),
                topic.durable_offset(),
                topic.list()
            );
        }
        match act {
            0..30 => self.append(name).await,
            30..62 => self.ack(name),
            62..68 => self.durable(name).await,
            68..71 => self.reset(name).await,
            71..76 => self.open_cursor(name).await,
            76 => self.delete_cursor(name).await,
            77..85 => self.read(name).await,
            85..88 => self.trim(name).await,
            88..90 => self.reload(name).await,
            90..92 => self.fence(name).await,
            92..95 => {
                let store = self.store.clone().unwrap();
                self.machine.checkpoint(&store, &mut self.random);
                true
            }
            95 => self.delete(name).await,
            96 => {
                // As the flusher does.
                let topics = self.storage.as_ref().unwrap().topics.clone();
                self.finish(async move { topics.flush().await.unwrap() })
                    .await;
                true
            }
            _ => {
                self.pass().await;
                true
            }
        }
    }

    async fn append(&mut self, name: &'static str) -> bool {
        let topic = self.loaded[name].topic.clone();
        if !topic.is_ready() {
            let patience = self.patience();
            let prepare = async { topic.prepare().await.unwrap() };
            if self.within(prepare, patience).await.is_none() {
                return false;
            }
        }
        for _ in 0..=self.random.below(4) {
            let run: Vec<_> = (0..=self.random.below(5)).map(|_| self.payload()).collect();
            // It may have failed meanwhile; the next act prepares it again.
            let Ok(mut at) = topic.append(&run) else {
                break;
            };
            for data in run {
                let model = self.models.get_mut(name).unwrap();
                assert!(
                    model.confirmed.keys().all(|known| *known < at),
                    "positions rise"
                );
                let before = model.pending.insert(at, data);
                assert!(before.is_none(), "a position is given out once");
                at = at.next_in_ledger();
            }
        }
        if self.random.one_in(3) {
            for _ in 0..20 {
                self.pass().await;
            }
        }
        true
    }

    fn cursor(&mut self, name: &str) -> Option<(String, Arc<Cursor>)> {
        let cursors = &self.loaded[name].cursors;
        let at = self.random.below(cursors.len() as u64) as usize;
        cursors
            .iter()
            .nth(at)
            .map(|(name, cursor)| (name.clone(), cursor.clone()))
    }

    fn position(&mut self, name: &str) -> Option<Position> {
        let confirmed = &self.models[name].confirmed;
        // Mostly near the beginning of what is unacked, so that things get done.
        let bound = if self.random.one_in(2) {
            12
        } else {
            confirmed.len() as u64
        };
        let first = self.models[name].acked_below();
        let near = confirmed.range(first.min(*confirmed.keys().next_back()?)..);
        let skip = self.random.below(bound) as usize;
        let found = near.map(|(at, _)| *at).nth(skip);
        found.or_else(|| confirmed.keys().nth(skip).copied())
    }

    fn ack(&mut self, name: &'static str) -> bool {
        let Some((cursor_name, cursor)) = self.cursor(name) else {
            return true;
        };
        if self.random.one_in(8) {
            // Here and there, so that the cursor's ranges become a bitmap.
            let step = 2 + self.random.below(2) as usize;
            let model = self.models.get_mut(name).unwrap();
            let scattered: Vec<_> = model.confirmed.keys().step_by(step).copied().collect();
            cursor.ack(&scattered).unwrap();
            let known = model.cursors.get_mut(&cursor_name).unwrap();
            scattered.iter().for_each(|at| known.ack(*at, WHOLE));
        }
        for _ in 0..=self.random.below(4) {
            let Some(at) = self.position(name) else {
                return true;
            };
            let kind = self.random.below(10);
            let bits = self.random.below(8) as u8;
            let model = self.models.get_mut(name).unwrap();
            let below: Vec<_> = model.confirmed.range(..at).map(|(at, _)| *at).collect();
            let known = model.cursors.get_mut(&cursor_name).unwrap();
            match kind {
                0..5 => {
                    cursor.ack(&[at]).unwrap();
                    known.ack(at, WHOLE);
                }
                5..8 => {
                    let whole = cursor.ack_batch(at, &[i64::from(!bits)], 3).unwrap();
                    known.ack(at, bits);
                    assert_eq!(whole, known.bits(at) == WHOLE);
                }
                _ => {
                    let remaining = [i64::from(!bits & WHOLE)];
                    let part = (kind == 8).then_some(&remaining[..]);
                    cursor.ack_cumulative(at, part).unwrap();
                    below.iter().for_each(|at| known.ack(*at, WHOLE));
                    known.ack(at, if part.is_some() { bits } else { WHOLE });
                }
            }
        }
        let model = &self.models[name];
        model.cursors[&cursor_name].check_exact(&cursor, model);
        true
    }

    async fn durable(&mut self, name: &'static str) -> bool {
        let Some((cursor_name, cursor)) = self.cursor(name) else {
            return true;
        };
        let before = self.models[name].cursors[&cursor_name].snapshot();
        let patience = self.patience();
        let wait = async { cursor.durable().await.unwrap() };
        if self.within(wait, patience).await.is_none() {
            return false;
        }
        let model = self.models.get_mut(name).unwrap();
        model
            .cursors
            .get_mut(&cursor_name)
            .unwrap()
            .became_durable(before);
        true
    }

    async fn reset(&mut self, name: &'static str) -> bool {
        let Some((cursor_name, cursor)) = self.cursor(name) else {
            return true;
        };
        let Some(at) = self.position(name) else {
            return true;
        };
        let model = self.models.get_mut(name).unwrap();
        let known = model.cursors.get_mut(&cursor_name).unwrap();
        known.reset(at);
        let before = known.snapshot();
        let patience = self.patience();
        let reset = async { cursor.reset(at).await.unwrap() };
        if self.within(reset, patience).await.is_none() {
            return false;
        }
        let model = self.models.get_mut(name).unwrap();
        model
            .cursors
            .get_mut(&cursor_name)
            .unwrap()
            .became_durable(before);
        model.cursors[&cursor_name].check_exact(&cursor, model);
        true
    }

    async fn open_cursor(&mut self, name: &'static str) -> bool {
        let cursor = CURSORS[self.random.below(3) as usize];
        if self.models[name].cursors.contains_key(cursor) {
            return true;
        }
        let topic = self.loaded[name].topic.clone();
        let initial = match (self.random.below(3), self.position(name)) {
            (0, _) | (_, None) => Initial::Earliest,
            (_, Some(at)) => Initial::At(at),
        };
        let start = match initial {
            Initial::At(at) => at,
            _ => Position::EARLIEST,
        };
        let open = async { topic.open_cursor(cursor, initial, Properties::new()).await };
        let handle = self.finish(open).await.unwrap();
        let model = self.models.get_mut(name).unwrap();
        let known = CursorModel::at(start);
        known.check_exact(&handle, model);
        model.cursors.insert(cursor.to_owned(), known);
        let loaded = self.loaded.get_mut(name).unwrap();
        loaded.cursors.insert(cursor.to_owned(), handle);
        true
    }

    async fn delete_cursor(&mut self, name: &'static str) -> bool {
        let Some((cursor, _)) = self.cursor(name) else {
            return true;
        };
        let topic = self.loaded[name].topic.clone();
        self.finish(async { topic.delete_cursor(&cursor).await.unwrap() })
            .await;
        self.models.get_mut(name).unwrap().cursors.remove(&cursor);
        self.loaded.get_mut(name).unwrap().cursors.remove(&cursor);
        true
    }

    async fn read(&mut self, name: &'static str) -> bool {
        let topic = self.loaded[name].topic.clone();
        let from = match (self.random.below(4), self.position(name)) {
            (0, _) | (_, None) => Position::EARLIEST,
            (1, Some(at)) => at.next_in_ledger(),
            (_, Some(at)) => at,
        };
        let limits = ReadLimits::new(
            self.random.below(9) as usize,
            self.random.below(300) as usize,
        );
        let is_any = self.models[name].confirmed.range(from..).next().is_some();
        if let Some(found) = topic.read_cached(from, limits) {
            assert_eq!(found.is_empty(), !is_any && found.is_empty());
            self.models[name].check_read(from, &found);
        }
        let found = self
            .finish(async { topic.read(from, limits).await.unwrap() })
            .await;
        assert!(
            !is_any || !found.is_empty(),
            "entries from {from} are not found"
        );
        assert!(found.len() <= limits.entries_max.max(1));
        self.models[name].check_read(from, &found);
        if let Some(at) = self.position(name) {
            let found = topic.find(move |entry| entry.position >= at);
            let found = self.finish(found).await.unwrap();
            assert_eq!(found, Some(at), "by halving");
        }
        true
    }

    async fn trim(&mut self, name: &'static str) -> bool {
        let topic = self.loaded[name].topic.clone();
        let limit = self.models[name].acked_below();
        self.models.get_mut(name).unwrap().trimming = Some(limit);
        let patience = self.patience();
        let trim = async { topic.trim(Retention::NONE).await.unwrap() };
        if self.within(trim, patience).await.is_none() {
            return false;
        }
        self.confirm();
        let model = self.models.get_mut(name).unwrap();
        let first = topic.first_position();
        if let Some((last, _)) = model.confirmed.range(..first).next_back() {
            // Without cursors everything that is closed may go.
            assert!(*last < limit, "{last} was trimmed, acked is below {limit}");
        }
        model.confirmed = model.confirmed.split_off(&first);
        model.trimming = None;
        true
    }

    /// Unloads it and loads it again, at times with appends in flight.
    async fn reload(&mut self, name: &'static str) -> bool {
        let topic = Arc::downgrade(&self.loaded.remove(name).unwrap().topic);
        // A ledger that is being rolled keeps it a little longer.
        while topic.strong_count() > 0 {
            self.pass().await;
        }
        self.load(name, false).await;
        true
    }

    /// Another writer takes the ledger over.
    async fn fence(&mut self, name: &'static str) -> bool {
        let topic = self.loaded[name].topic.clone();
        let Some(last) = topic.ledgers().last().copied() else {
            return true;
        };
        let store = self.store.clone().unwrap();
        self.finish(async { store.recover(last.id).await.unwrap() })
            .await;
        self.confirm();
        // An append finds it out, if the callback did not.
        let payload = self.payload();
        for _ in 0..30 {
            self.pass().await;
            if !topic.is_ready() {
                break;
            }
            if let Ok(at) = topic.append(std::slice::from_ref(&payload)) {
                let model = self.models.get_mut(name).unwrap();
                model.pending.insert(at, payload.clone());
            }
        }
        if topic.is_ready() {
            // It was just being rolled, and the ledger before was fenced.
            return true;
        }
        self.finish(async { topic.prepare().await.unwrap() }).await;
        self.confirm();
        self.settle_appends(name).await;
        true
    }

    /// After a failure: what was in flight is decided, the cursors are as they were.
    async fn settle_appends(&mut self, name: &'static str) {
        let topic = self.loaded[name].topic.clone();
        let entries = self.finish(read_all(&topic)).await;
        self.models.get_mut(name).unwrap().settle(entries, &topic);
    }

    async fn delete(&mut self, name: &'static str) -> bool {
        let topics = self.storage.as_ref().unwrap().topics.clone();
        self.models.get_mut(name).unwrap().deleting = true;
        let patience = self.patience();
        let delete = async move { topics.delete(name).await.unwrap() };
        if self.within(delete, patience).await.is_none() {
            return false;
        }
        self.loaded.remove(name);
        self.models.remove(name);
        true
    }
}

async fn read_all(topic: &ManagedLedger) -> Vec<crate::Entry> {
    let mut all: Vec<crate::Entry> = Vec::new();
    let mut at = Position::EARLIEST;
    loop {
        let found = topic.read(at, ALL).await.unwrap();
        let Some(last) = found.last() else { return all };
        at = topic.next(last.position);
        all.extend(found);
    }
}

/// One life of a machine: acts and crashes.
fn run<M: Machine>(machine: M, seed: u64, acts: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(Box::pin(async {
        let mut world = World::new(machine, seed);
        world.start().await;
        for _ in 0..acts {
            let goes_on = Box::pin(world.act()).await;
            if !goes_on || world.random.one_in(40) {
                Box::pin(world.crash()).await;
            }
        }
        Box::pin(world.crash()).await;
        world.tasks.cancel();
    }));
}

/// Runs the seeds, or the one that is asked for; says which one failed.
fn check<M: Machine>(seeds: u64, acts: u64, machine: impl Fn(u64) -> M) {
    let number = |name| {
        let value = std::env::var(name).ok()?;
        Some(value.parse::<u64>().expect("a number"))
    };
    let wanted = number("GEMINGA_SEED");
    let seeds = number("GEMINGA_SEEDS").unwrap_or(seeds);
    let first: u64 = Random::from_entropy().next_u64() >> 20;
    for seed in wanted.map_or(first..first + seeds, |seed| seed..seed + 1) {
        let run = || run(machine(seed), seed, acts);
        if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
            eprintln!("failed with GEMINGA_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn in_memory() {
    check(120, 250, |_| InMemory::default());
}

#[test]
fn on_a_disk_that_loses_power() {
    check(12, 200, |seed| OnDisk::new(seed, Durability::Fsync));
}

#[test]
fn in_the_page_cache_of_a_killed_process() {
    check(6, 200, |seed| OnDisk::new(seed, Durability::Os));
}
