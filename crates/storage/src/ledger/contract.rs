//! The contract of `LedgerStore`, `LedgerWriter` and `StateLog` as tests that every store runs.
//!
//! A store brings a `Harness` that opens it, and can cut its power; `check_all` runs everything.

use super::{
    AppendObserver, LedgerStore, LedgerWriter, ReadLimits, SpaceLevel, StateLog, StateMachine,
    Ticket,
};
use crate::error::{AppendError, StoreError};
use bytes::Bytes;
use geminga_model::{EntryId, LedgerId, Position};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::time::Duration;

/// One imaginary machine with one data directory.
pub(crate) trait Harness {
    type Store: LedgerStore + StateLog;
    /// Opens the directory; whatever was open before has been closed or has crashed.
    fn open(&mut self, machine: Arc<dyn StateMachine>) -> Arc<Self::Store>;
    /// Cuts the power: what was not durable may be lost, the store in hand is dead.
    fn crash(&mut self, store: Arc<Self::Store>);
    /// Publishes a checkpoint of the state machine, and waits for it.
    fn checkpoint(&mut self, store: &Self::Store);
    /// Makes the store report a level of free space.
    fn set_space(&mut self, store: &Self::Store, level: SpaceLevel);
}

/// Remembers records; a snapshot is all of them joined, so replaying twice can be told.
#[derive(Default)]
pub(crate) struct Journal {
    pub(crate) records: Mutex<Vec<Vec<u8>>>,
}

impl StateMachine for Journal {
    fn apply(&self, record: &[u8]) -> Result<(), StoreError> {
        let mut records = self.records.lock();
        if !records.iter().any(|known| known == record) {
            records.push(record.to_vec());
        }
        Ok(())
    }

    fn snapshot(&self, out: &mut dyn FnMut(&[u8])) {
        let records = self.records.lock().clone();
        for record in records {
            out(&record);
        }
    }
}

/// Remembers what it was told, and checks the order.
#[derive(Default)]
pub(crate) struct Watch {
    state: Mutex<Told>,
    changed: Condvar,
}

#[derive(Default, Clone)]
struct Told {
    through: Option<EntryId>,
    failed: u32,
}

impl AppendObserver for Watch {
    fn durable(&self, _: LedgerId, through: EntryId) {
        let mut state = self.state.lock();
        assert_eq!(state.failed, 0, "durable after failed");
        assert!(state.through < Some(through), "the watermark only rises");
        state.through = Some(through);
        self.changed.notify_all();
    }

    fn failed(&self, _: LedgerId, _: Arc<StoreError>) {
        let mut state = self.state.lock();
        state.failed += 1;
        assert_eq!(state.failed, 1, "failed is told once");
        self.changed.notify_all();
    }
}

impl Watch {
    pub(crate) fn wait(&self, through: i64) {
        let mut state = self.state.lock();
        while state.through < Some(EntryId(through)) {
            let late = self.changed.wait_for(&mut state, Duration::from_secs(20));
            assert!(!late.timed_out(), "entry {through} did not become durable");
        }
    }
}

pub(crate) const ALL: ReadLimits = ReadLimits::new(usize::MAX, usize::MAX);

fn run(prefix: &str, count: usize) -> Vec<Bytes> {
    (0..count)
        .map(|i| Bytes::from(format!("{prefix}-{i}")))
        .collect()
}

async fn data<S: LedgerStore + ?Sized>(store: &S, ledger: LedgerId, first: i64) -> Vec<Bytes> {
    let entries = store.read(ledger, EntryId(first), ALL).await.unwrap();
    for (i, entry) in entries.iter().enumerate() {
        assert_eq!(
            entry.position,
            Position::new(ledger.0, first + i as i64),
            "no gaps"
        );
    }
    entries.into_iter().map(|entry| entry.data).collect()
}

/// Everything that a store must hold.
pub(crate) async fn check_all<H: Harness>(mut new: impl FnMut() -> H) {
    order_and_read_limits(&mut new()).await;
    concurrent_appends(&mut new()).await;
    fencing(&mut new()).await;
    sealing(&mut new()).await;
    ids_are_never_reused(&mut new()).await;
    deletion(&mut new()).await;
    recovery_after_a_crash(&mut new()).await;
    what_was_recovered_stays(&mut new()).await;
    state_records(&mut new()).await;
    one_order_of_records_and_entries(&mut new()).await;
    full_disk(&mut new()).await;
}

async fn order_and_read_limits<H: Harness>(h: &mut H) {
    let store = h.open(Arc::new(Journal::default()));
    let watch = Arc::new(Watch::default());
    let writer = store.create(watch.clone()).await.unwrap();
    let mut wanted = Vec::new();
    for i in 0..50_usize {
        let entries = run(&format!("r{i}"), 1 + i % 7);
        let first = writer.append(&entries).unwrap();
        assert_eq!(first, EntryId(wanted.len() as i64), "ids are consecutive");
        wanted.extend(entries);
    }
    let empty = Bytes::new();
    writer.append(std::slice::from_ref(&empty)).unwrap();
    wanted.push(empty);
    let big = Bytes::from(vec![7; 300_000]);
    writer.append(std::slice::from_ref(&big)).unwrap();
    wanted.push(big);
    assert!(matches!(
        writer.append(&[]),
        Err(AppendError::BadRun { .. })
    ));
    watch.wait(wanted.len() as i64 - 1);
    assert_eq!(data(&*store, writer.id(), 0).await, wanted);
    assert_eq!(data(&*store, writer.id(), 13).await, wanted[13..]);
    assert_eq!(
        data(&*store, writer.id(), wanted.len() as i64).await,
        [""; 0]
    );
    let read = |first, entries, bytes| {
        let limits = ReadLimits::new(entries, bytes);
        let (store, id) = (&store, writer.id());
        async move { store.read(id, EntryId(first), limits).await.unwrap().len() }
    };
    assert_eq!(read(3, 5, usize::MAX).await, 5);
    assert_eq!(read(3, 0, 0).await, 1, "one entry is always returned");
    let last = wanted.len() as i64 - 1;
    assert_eq!(read(last, 10, 10).await, 1, "a large one too");
    let bytes = wanted[10].len() + wanted[11].len();
    assert_eq!(read(10, 100, bytes).await, 2, "the byte limit is inclusive");
    assert_eq!(read(10, 100, bytes - 1).await, 1);
    let missing = LedgerId(writer.id().0 + 1000);
    let error = store.read(missing, EntryId(0), ALL).await;
    assert!(matches!(error, Err(StoreError::NoLedger { .. })));
}

async fn concurrent_appends<H: Harness>(h: &mut H) {
    let store = h.open(Arc::new(Journal::default()));
    let watches: Vec<_> = (0..3).map(|_| Arc::new(Watch::default())).collect();
    let mut writers: Vec<Arc<dyn LedgerWriter>> = Vec::new();
    for watch in &watches {
        writers.push(store.create(watch.clone()).await.unwrap());
    }
    // Two threads share each ledger: ids stay consecutive, and each run stays together.
    std::thread::scope(|scope| {
        for thread in 0..6_usize {
            let writer = &writers[thread % 3];
            scope.spawn(move || {
                for i in 0..100_usize {
                    let text = |k| Bytes::from(format!("{thread}/{i}/{k}"));
                    let first = writer.append(&[text(0), text(1)]).unwrap();
                    assert_eq!(first.0 % 2, 0);
                }
            });
        }
    });
    for (writer, watch) in writers.iter().zip(&watches) {
        watch.wait(399);
        let found = data(&*store, writer.id(), 0).await;
        assert_eq!(found.len(), 400);
        let mut next = std::collections::HashMap::new();
        for pair in found.chunks(2) {
            let text = std::str::from_utf8(&pair[0]).unwrap();
            let mut parts = text.split('/');
            let thread = parts.next().unwrap().to_string();
            let i: u32 = parts.next().unwrap().parse().unwrap();
            assert_eq!(parts.next(), Some("0"));
            assert_eq!(pair[1], format!("{thread}/{i}/1"));
            let wanted = next.entry(thread).or_insert(0);
            assert_eq!(i, *wanted, "each thread's order is kept");
            *wanted += 1;
        }
    }
}

async fn fencing<H: Harness>(h: &mut H) {
    let store = h.open(Arc::new(Journal::default()));
    let watch = Arc::new(Watch::default());
    let writer = store.create(watch.clone()).await.unwrap();
    writer.append(&run("a", 3)).unwrap();
    watch.wait(2);
    writer.append(&run("b", 2)).unwrap();
    let end = store.recover(writer.id()).await.unwrap();
    assert!(
        end.entries == 3 || end.entries == 5,
        "a run is whole or not there"
    );
    assert!(matches!(
        writer.append(&run("c", 1)),
        Err(AppendError::Fenced { .. })
    ));
    assert_eq!(store.recover(writer.id()).await.unwrap(), end, "idempotent");
    let found = data(&*store, writer.id(), 0).await;
    assert_eq!(found.len() as u64, end.entries, "the end does not move");
    assert_eq!(
        end.bytes,
        found.iter().map(|entry| entry.len() as u64).sum::<u64>()
    );
}

async fn sealing<H: Harness>(h: &mut H) {
    let store = h.open(Arc::new(Journal::default()));
    let watch = Arc::new(Watch::default());
    let writer = store.create(watch.clone()).await.unwrap();
    writer.append(&run("a", 10)).unwrap();
    let end = writer.seal().await.unwrap();
    assert_eq!(end.last(), Some(EntryId(9)));
    assert_eq!(end.bytes, 30);
    assert!(matches!(
        writer.append(&run("b", 1)),
        Err(AppendError::Fenced { .. })
    ));
    assert_eq!(writer.seal().await.unwrap(), end);
    assert_eq!(store.recover(writer.id()).await.unwrap(), end);
    assert_eq!(data(&*store, writer.id(), 0).await.len(), 10);
    let empty = store.create(Arc::new(Watch::default())).await.unwrap();
    assert_eq!(empty.seal().await.unwrap().last(), None);
    assert!(data(&*store, empty.id(), 0).await.is_empty());
}

async fn ids_are_never_reused<H: Harness>(h: &mut H) {
    let mut last = LedgerId(-1);
    for round in 0..4 {
        let store = h.open(Arc::new(Journal::default()));
        for _ in 0..3 {
            let watch = Arc::new(Watch::default());
            let writer = store.create(watch.clone()).await.unwrap();
            assert!(writer.id() > last, "ids rise, round {round}");
            last = writer.id();
            if round % 2 == 0 {
                writer.append(&run("x", 1)).unwrap();
                watch.wait(0);
                store.delete(writer.id()).await.unwrap();
            }
        }
        h.crash(store);
    }
}

async fn deletion<H: Harness>(h: &mut H) {
    let store = h.open(Arc::new(Journal::default()));
    let (keep, gone) = (Arc::new(Watch::default()), Arc::new(Watch::default()));
    let kept = store.create(keep.clone()).await.unwrap();
    let deleted = store.create(gone.clone()).await.unwrap();
    kept.append(&run("k", 4)).unwrap();
    deleted.append(&run("d", 4)).unwrap();
    deleted.seal().await.unwrap();
    keep.wait(3);
    store.delete(deleted.id()).await.unwrap();
    store.delete(deleted.id()).await.unwrap();
    store.delete(LedgerId(99_999)).await.unwrap();
    let (kept, deleted) = (kept.id(), deleted.id());
    assert!(store.read(deleted, EntryId(0), ALL).await.is_err());
    h.crash(store);
    let store = h.open(Arc::new(Journal::default()));
    assert!(store.read(deleted, EntryId(0), ALL).await.is_err());
    assert_eq!(data(&*store, kept, 0).await, run("k", 4));
}

async fn recovery_after_a_crash<H: Harness>(h: &mut H) {
    let store = h.open(Arc::new(Journal::default()));
    let watch = Arc::new(Watch::default());
    let writer = store.create(watch.clone()).await.unwrap();
    writer.append(&run("a", 5)).unwrap();
    watch.wait(4);
    writer.append(&run("b", 3)).unwrap();
    let id = writer.id();
    h.crash(store);
    assert!(
        writer.append(&run("c", 1)).is_err(),
        "the old store is dead"
    );
    for _ in 0..2 {
        let store = h.open(Arc::new(Journal::default()));
        let end = store.recover(id).await.unwrap();
        assert!(end.entries == 5 || end.entries == 8);
        let found = data(&*store, id, 0).await;
        assert_eq!(found.len() as u64, end.entries);
        assert_eq!(found[..5], run("a", 5));
        assert_eq!(found[5..], run("b", 3)[..found.len() - 5]);
        h.crash(store);
    }
}

async fn what_was_recovered_stays<H: Harness>(h: &mut H) {
    // With appends in flight, and with a writer that nobody holds any more.
    for is_held in [true, false] {
        let store = h.open(Arc::new(Journal::default()));
        let writer = store.create(Arc::new(Watch::default())).await.unwrap();
        for i in 0..50 {
            writer.append(&run(&i.to_string(), 3)).unwrap();
        }
        let id = writer.id();
        let held = is_held.then_some(writer);
        let end = store.recover(id).await.unwrap();
        drop(held);
        assert_eq!(data(&*store, id, 0).await.len() as u64, end.entries);
        h.crash(store);
        let store = h.open(Arc::new(Journal::default()));
        assert_eq!(store.recover(id).await.unwrap(), end);
        h.crash(store);
    }
}

async fn state_records<H: Harness>(h: &mut H) {
    let text = |i: u32| Bytes::from(format!("record {i}"));
    let machine = Arc::new(Journal::default());
    let store = h.open(machine.clone());
    store.durable(Ticket(0)).await.unwrap();
    let mut tickets = Vec::new();
    for i in 0..20 {
        machine.records.lock().push(text(i).to_vec());
        tickets.push(store.append(text(i)).unwrap());
    }
    assert!(tickets.is_sorted());
    // In the wrong order, and twice.
    for ticket in [tickets[19], tickets[3], tickets[19]] {
        store.durable(ticket).await.unwrap();
    }
    h.checkpoint(&store);
    for i in 20..30 {
        machine.records.lock().push(text(i).to_vec());
        tickets.push(store.append(text(i)).unwrap());
    }
    store.durable(tickets[29]).await.unwrap();
    h.crash(store);
    for _ in 0..2 {
        let machine = Arc::new(Journal::default());
        let store = h.open(machine.clone());
        let wanted: Vec<_> = (0..30).map(|i| text(i).to_vec()).collect();
        assert_eq!(*machine.records.lock(), wanted);
        h.crash(store);
    }
}

async fn one_order_of_records_and_entries<H: Harness>(h: &mut H) {
    // A record appended before an entry is durable once the entry is, and the other way round.
    let store = h.open(Arc::new(Journal::default()));
    let watch = Arc::new(Watch::default());
    let writer = store.create(watch.clone()).await.unwrap();
    StateLog::append(&*store, Bytes::from_static(b"first")).unwrap();
    writer.append(&run("a", 1)).unwrap();
    let ticket = StateLog::append(&*store, Bytes::from_static(b"second")).unwrap();
    store.durable(ticket).await.unwrap();
    let id = writer.id();
    h.crash(store);
    let machine = Arc::new(Journal::default());
    let store = h.open(machine.clone());
    let records = machine.records.lock().clone();
    assert_eq!(records, [b"first".to_vec(), b"second".to_vec()]);
    assert_eq!(store.recover(id).await.unwrap().entries, 1);
    h.crash(store);
}

async fn full_disk<H: Harness>(h: &mut H) {
    let store = h.open(Arc::new(Journal::default()));
    let watch = Arc::new(Watch::default());
    let writer = store.create(watch.clone()).await.unwrap();
    writer.append(&run("a", 1)).unwrap();
    watch.wait(0);
    h.set_space(&store, SpaceLevel::Full);
    assert_eq!(store.space().level, SpaceLevel::Full);
    assert!(matches!(
        writer.append(&run("b", 1)),
        Err(AppendError::Full)
    ));
    let ticket = StateLog::append(&*store, Bytes::from_static(b"an ack")).unwrap();
    store.durable(ticket).await.unwrap();
    h.set_space(&store, SpaceLevel::Ample);
    assert_eq!(writer.append(&run("b", 1)).unwrap(), EntryId(1));
    watch.wait(1);
}

/// The memory store is the first that must hold it.
mod memory {
    use super::*;
    use crate::ledger::memory::{MemoryImage, MemoryStore};

    #[derive(Default)]
    struct Machine {
        image: MemoryImage,
    }

    impl Harness for Machine {
        type Store = MemoryStore;
        fn open(&mut self, machine: Arc<dyn StateMachine>) -> Arc<MemoryStore> {
            MemoryStore::start(std::mem::take(&mut self.image), machine).unwrap()
        }
        fn crash(&mut self, store: Arc<MemoryStore>) {
            self.image = store.crash(1);
        }
        fn checkpoint(&mut self, store: &MemoryStore) {
            store.checkpoint(0);
        }
        fn set_space(&mut self, store: &MemoryStore, level: SpaceLevel) {
            store.set_space(level);
        }
    }

    #[tokio::test]
    async fn holds_the_contract() {
        check_all(Machine::default).await;
    }

    #[tokio::test]
    async fn a_failed_store_tells_each_observer_once() {
        let store = Machine::default().open(Arc::new(Journal::default()));
        let watch = Arc::new(Watch::default());
        let writer = store.create(watch.clone()).await.unwrap();
        store.fail("the sync failed");
        store.fail("again");
        assert_eq!(watch.state.lock().failed, 1);
        let error = writer.append(&run("a", 1)).unwrap_err();
        assert!(matches!(error, AppendError::Stopped { .. }) && !error.is_retriable());
        assert!(store.recover(writer.id()).await.is_err());
    }
}
