//! Random work, random crashes, and a model of what must be there afterwards.
//!
//! Checked after every crash: what was acknowledged is there; what is there was appended, in order;
//! a run is whole or absent; entries and state records together are a prefix of what was appended;
//! deleted stays deleted. `GEMINGA_CRASH_SEEDS=from..to` runs other seeds.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use geminga_stdx::Random;

use super::*;
use crate::AppendObserver;

/// Remembers numbered records; applying one twice is harmless.
#[derive(Default)]
struct Numbers {
    seen: Mutex<BTreeSet<u64>>,
}

impl StateMachine for Numbers {
    fn apply(&self, record: &[u8]) -> Result<(), StoreError> {
        self.seen
            .lock()
            .insert(u64::from_le_bytes(record[..8].try_into().unwrap()));
        Ok(())
    }

    fn snapshot(&self, out: &mut dyn FnMut(&[u8])) {
        let seen = self.seen.lock().clone();
        for number in seen {
            out(&number.to_le_bytes());
        }
    }
}

#[derive(Default)]
struct Told {
    through: Mutex<i64>,
}

impl AppendObserver for Told {
    fn durable(&self, _: LedgerId, through: EntryId) {
        let mut told = self.through.lock();
        assert!(*told < through.0 + 1, "the watermark rises");
        *told = through.0 + 1;
    }

    fn failed(&self, _: LedgerId, _: Arc<StoreError>) {}
}

#[derive(Default)]
struct LedgerModel {
    /// The number of entries in each run, and the run's place in the order of everything.
    runs: Vec<(usize, u64)>,
    entries: Vec<Bytes>,
    told: Arc<Told>,
    delete_asked: bool,
    delete_done: bool,
}

#[derive(Default)]
struct Model {
    ledgers: BTreeMap<LedgerId, LedgerModel>,
    /// The place of each state record in the order of everything.
    states: Vec<u64>,
    states_durable: usize,
    order: u64,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum End {
    PowerLoss,
    Kill,
    Close,
}

#[test]
fn nothing_acknowledged_is_lost_and_nothing_is_invented() {
    let seeds = match std::env::var("GEMINGA_CRASH_SEEDS") {
        Ok(range) => {
            let (from, to) = range.split_once("..").unwrap();
            from.parse().unwrap()..to.parse().unwrap()
        }
        Err(_) => 0..40_u64,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    for seed in seeds {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            runtime.block_on(several_lives(seed));
        }));
        if let Err(panic) = result {
            eprintln!("repeat with GEMINGA_CRASH_SEEDS={seed}..{}", seed + 1);
            std::panic::resume_unwind(panic);
        }
    }
}

async fn several_lives(seed: u64) {
    let mut random = Random::new(seed);
    let mut model = Model::default();
    let mut disk = FaultyDisk::new(seed);
    let no_direct = random.one_in(4);
    let durability = if random.one_in(4) {
        Durability::Os
    } else {
        Durability::Fsync
    };
    let config = EmbeddedConfig {
        log_segment_bytes: 64 << 10,
        log_segments_max: 4,
        queue_bytes_max: 512 << 10,
        space_low_bytes: 0,
        space_reserve_bytes: 0,
        ..small(durability)
    };
    for _life in 0..4 {
        let machine = Arc::new(Numbers::default());
        disk.set_faults(Faults {
            no_direct,
            ..Faults::default()
        });
        let store = EmbeddedStore::open_on(Arc::new(disk.clone()), config.clone(), machine.clone());
        let store = store.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        model.check(&store, &machine).await;
        // Without the page cache's help only a kill is survived.
        let end = match (durability, random.below(4)) {
            (_, 0) => End::Close,
            (_, 1) | (Durability::Os, _) => End::Kill,
            _ => End::PowerLoss,
        };
        let mut faults = Faults {
            no_direct,
            ..Faults::default()
        };
        match random.below(8) {
            0..4 if end == End::PowerLoss => {
                faults.power_off_after_writes = Some(random.below(80));
            }
            4 if end != End::Close => faults.fail_write_after = Some(random.below(60)),
            5 if end != End::Close => faults.fail_sync_after = Some(random.below(20)),
            6 => faults.latency = Duration::from_micros(random.below(300)),
            _ => {}
        }
        disk.set_faults(faults);
        let mut writers = Vec::new();
        work(&mut random, &mut model, &store, &machine, &mut writers).await;
        disk = match end {
            End::Close => {
                store.close();
                model.all_is_durable(&store);
                drop(store);
                match durability {
                    Durability::Fsync => disk.after_crash(),
                    Durability::Os => disk.after_kill(),
                }
            }
            End::Kill => {
                disk.power_off();
                drop(store);
                disk.after_kill()
            }
            End::PowerLoss => {
                disk.power_off();
                drop(store);
                disk.after_crash()
            }
        };
    }
}

async fn work(
    random: &mut Random,
    model: &mut Model,
    store: &EmbeddedStore,
    machine: &Numbers,
    writers: &mut Vec<Arc<dyn LedgerWriter>>,
) {
    let mut tickets: Vec<(usize, Ticket)> = Vec::new();
    for _ in 0..random.below(150) {
        match random.below(20) {
            0 | 1 => {
                let told = Arc::new(Told::default());
                let Ok(writer) = store.create(told.clone()).await else {
                    return;
                };
                let new = LedgerModel {
                    told,
                    ..LedgerModel::default()
                };
                assert!(model.ledgers.insert(writer.id(), new).is_none(), "a new id");
                assert_eq!(model.ledgers.last_key_value().unwrap().0, &writer.id());
                writers.push(writer);
            }
            2..14 if !writers.is_empty() => {
                let writer = &writers[random.below(writers.len() as u64) as usize];
                let ledger = model.ledgers.get_mut(&writer.id()).unwrap();
                let size_max = [10, 500, 4000, 40_000][random.below(4) as usize];
                let mut entries = Vec::new();
                for index in 0..1 + random.below(6) as usize {
                    let number = ledger.entries.len() + index;
                    let mut data = format!("{}/{number}/", writer.id()).into_bytes();
                    data.resize(data.len() + random.below(size_max) as usize, number as u8);
                    entries.push(Bytes::from(data));
                }
                match writer.append(&entries) {
                    Ok(first) => {
                        assert_eq!(first.0 as usize, ledger.entries.len());
                        ledger.runs.push((entries.len(), model.order));
                        model.order += 1;
                        ledger.entries.extend(entries);
                    }
                    Err(AppendError::Busy) => tokio::task::yield_now().await,
                    Err(_) => return,
                }
            }
            14..17 => {
                let number = model.states.len() as u64;
                machine.seen.lock().insert(number);
                let Ok(ticket) = StateLog::append(store, number.to_le_bytes().to_vec().into())
                else {
                    machine.seen.lock().remove(&number);
                    continue;
                };
                model.states.push(model.order);
                model.order += 1;
                tickets.push((model.states.len(), ticket));
                if random.one_in(4) {
                    let (count, ticket) = tickets[random.below(tickets.len() as u64) as usize];
                    if store.durable(ticket).await.is_ok() {
                        model.states_durable = model.states_durable.max(count);
                    }
                }
            }
            17 if !model.ledgers.is_empty() && random.one_in(2) => {
                let chosen = random.below(model.ledgers.len() as u64) as usize;
                let (id, ledger) = model.ledgers.iter_mut().nth(chosen).unwrap();
                ledger.delete_asked = true;
                ledger.delete_done |= store.delete(*id).await.is_ok();
                writers.retain(|writer| writer.id() != *id);
            }
            18 => {
                let _ = store.checkpoint();
            }
            _ => {
                let chosen = random.below(model.ledgers.len().max(1) as u64) as usize;
                if let Some((id, ledger)) = model.ledgers.iter().nth(chosen)
                    && !ledger.delete_asked
                {
                    let told = *ledger.told.through.lock();
                    let first = random.below(told as u64 + 1) as i64;
                    let bytes = 1 + random.below(100_000) as usize;
                    let limits = ReadLimits::new(1 + random.below(50) as usize, bytes);
                    if let Ok(found) = store.read(*id, EntryId(first), limits).await {
                        assert!(!found.is_empty() || first == told);
                        ledger.check_entries(first as usize, &found);
                    }
                }
            }
        }
    }
}

impl LedgerModel {
    fn check_entries(&self, first: usize, found: &[Entry]) {
        for (index, entry) in found.iter().enumerate() {
            assert_eq!(entry.position.entry.0 as usize, first + index);
            assert_eq!(
                entry.data,
                self.entries[first + index],
                "{}",
                entry.position
            );
        }
    }
}

impl Model {
    fn all_is_durable(&mut self, store: &EmbeddedStore) {
        if store
            .shared
            .completion
            .durability
            .failed()
            .is_some_and(|error| !error.to_string().contains("it was closed"))
        {
            return;
        }
        self.states_durable = self.states.len();
        for ledger in self.ledgers.values().filter(|ledger| !ledger.delete_asked) {
            assert_eq!(*ledger.told.through.lock() as usize, ledger.entries.len());
        }
    }

    /// Compares with what was recovered, and goes on from there.
    async fn check(&mut self, store: &EmbeddedStore, machine: &Numbers) {
        let seen = machine.seen.lock().clone();
        let states = seen.len();
        assert!(
            seen.iter().copied().eq(0..states as u64),
            "state records are a prefix: {seen:?}"
        );
        assert!(
            states >= self.states_durable,
            "an acknowledged state record is lost"
        );
        assert!(states <= self.states.len(), "a state record is invented");
        let mut recovered_order: Option<u64> = self.states[..states].last().copied();
        let mut first_missing: u64 = self.states.get(states).copied().unwrap_or(u64::MAX);
        let mut gone = Vec::new();
        for (id, ledger) in &mut self.ledgers {
            let all = ReadLimits::new(usize::MAX, usize::MAX);
            let end = store.recover(*id).await.unwrap();
            let found = match store.read(*id, EntryId(0), all).await {
                Ok(found) => found,
                Err(StoreError::NoLedger { .. }) => Vec::new(),
                Err(error) => panic!("{error}"),
            };
            assert_eq!(found.len() as u64, end.entries, "ledger {id}");
            let bytes: usize = found.iter().map(|entry| entry.data.len()).sum();
            assert_eq!(bytes as u64, end.bytes);
            if ledger.delete_done {
                assert!(found.is_empty(), "ledger {id} was deleted");
            }
            if ledger.delete_asked && found.is_empty() {
                gone.push(*id);
                continue;
            }
            let told = *ledger.told.through.lock() as usize;
            assert!(
                found.len() >= told,
                "ledger {id}: {} of {told} acknowledged",
                found.len()
            );
            assert!(
                found.len() <= ledger.entries.len(),
                "ledger {id}: entries are invented"
            );
            ledger.check_entries(0, &found);
            let mut counted = 0;
            let mut kept = 0;
            for (count, order) in &ledger.runs {
                counted += count;
                if counted <= found.len() {
                    kept += 1;
                    recovered_order = recovered_order.max(Some(*order));
                } else {
                    first_missing = first_missing.min(*order);
                }
            }
            let whole: usize = ledger.runs[..kept].iter().map(|(count, _)| count).sum();
            assert_eq!(whole, found.len(), "ledger {id}: a run is torn");
            ledger.runs.truncate(kept);
            ledger.entries.truncate(found.len());
            *ledger.told.through.lock() = found.len() as i64;
        }
        assert!(
            recovered_order < Some(first_missing),
            "{recovered_order:?} is there and {first_missing} is not"
        );
        for id in gone {
            // Its id stays used, so the model keeps that it is gone.
            let ledger = self.ledgers.get_mut(&id).unwrap();
            ledger.delete_done = true;
            ledger.entries.clear();
            ledger.runs.clear();
            *ledger.told.through.lock() = 0;
        }
        self.states.truncate(states);
        self.states_durable = states;
    }
}
