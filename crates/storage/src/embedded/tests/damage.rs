//! Damage, a full disk, failing calls, and directories that cannot be opened.

use std::sync::atomic::{AtomicU32, Ordering};

use super::super::checkpoint::checkpoint_name;
use super::super::repair::{Remains, RepairHost, repair_on};
use super::*;
use crate::disk::Open;
use crate::ledger::contract::{ALL, Journal, Watch};
use crate::segment::writer::segment_file_name;
use crate::wal::log_segment::log_file_name;
use std::collections::BTreeMap;

fn open(disk: &FaultyDisk) -> Result<Arc<EmbeddedStore>, StoreError> {
    let machine = Arc::new(Journal::default());
    EmbeddedStore::open_on(Arc::new(disk.clone()), small(Durability::Fsync), machine)
}

fn entry(ledger: LedgerId, number: usize) -> Bytes {
    let mut data = format!("{ledger}/{number}/").into_bytes();
    data.resize(1000, b'.');
    data.into()
}

/// Appends runs of ten until each ledger has `entries`, and waits until they are durable.
async fn fill(store: &EmbeddedStore, ledgers: usize, entries: usize) -> Vec<Arc<dyn LedgerWriter>> {
    let mut writers = Vec::new();
    for _ in 0..ledgers {
        let watch = Arc::new(Watch::default());
        writers.push((store.create(watch.clone()).await.unwrap(), watch));
    }
    for first in (0..entries).step_by(10) {
        for (writer, watch) in &writers {
            let run: Vec<Bytes> = (first..first + 10)
                .map(|number| entry(writer.id(), number))
                .collect();
            writer.append(&run).unwrap();
            watch.wait(first as i64 + 9);
        }
    }
    writers.into_iter().map(|(writer, _)| writer).collect()
}

async fn assert_holds(store: &EmbeddedStore, ledger: LedgerId, entries: usize) {
    let found = store.read(ledger, EntryId(0), ALL).await.unwrap();
    assert_eq!(found.len(), entries);
    for (number, found) in found.iter().enumerate() {
        assert_eq!(found.data, entry(ledger, number));
    }
}

fn corruption(result: Result<Arc<EmbeddedStore>, StoreError>) -> (String, u64, String) {
    match result.err() {
        Some(StoreError::Corrupt { path, offset, what }) => {
            (path.display().to_string(), offset, what.to_string())
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
#[expect(clippy::single_range_in_vec_init, reason = "holes are ranges")]
async fn damage_in_the_middle_of_the_log_is_an_error_and_can_be_repaired() {
    let disk = FaultyDisk::new(1);
    let store = open(&disk).unwrap();
    let writers = fill(&store, 2, 40).await;
    let (a, b) = (writers[0].id(), writers[1].id());
    drop((writers, store));
    let disk = disk.after_crash();
    let log = log_file_name(1);
    // Some commit in the middle: the run of ten that begins with entry 20 of the first ledger.
    let content = disk.content(&log).unwrap();
    let text = format!("{a}/20/");
    let at = content
        .windows(text.len())
        .position(|bytes| bytes == text.as_bytes())
        .unwrap();
    disk.flip_bit(&log, at as u64, 3);
    let (path, offset, what) = corruption(open(&disk));
    assert_eq!(path, format!("memory:{log}"));
    assert!(
        offset <= at as u64 && offset + 11_000 > at as u64,
        "{offset} {at}"
    );
    assert!(
        what.contains("content does not match") && what.contains("follows"),
        "{what}"
    );

    let (from, into): (Arc<dyn Disk>, _) = (Arc::new(disk), FaultyDisk::new(2));
    let checked = repaired(&from, None);
    let repair = repaired(&from, Some(&into));
    assert_eq!(checked.ledgers, repair.ledgers, "a check finds the same");
    // What is behind the damage moves up.
    assert_eq!((repair.ledgers.len(), repair.entries), (2, 30 + 40));
    assert_eq!(
        (&*repair.ledgers[&a].holes, repair.ledgers[&a].end),
        (&[20..30][..], 40)
    );
    assert_eq!(repair.losses.len(), 1);
    let store = open(&into.after_crash()).unwrap();
    let found = store.read(a, EntryId(0), ALL).await.unwrap();
    let wanted: Vec<Bytes> = (0..20).chain(30..40).map(|it| entry(a, it)).collect();
    let data: Vec<Bytes> = found.iter().map(|it| it.data.clone()).collect();
    assert_eq!(data, wanted);
    assert_holds(&store, b, 40).await;
    // It is a store like any other.
    let writers = fill(&store, 1, 600).await;
    assert!(writers[0].id() > b);
    assert_holds(&store, writers[0].id(), 600).await;
}

#[tokio::test]
async fn a_flipped_bit_in_the_last_commit_cannot_be_told_from_a_torn_one() {
    let disk = FaultyDisk::new(1);
    let store = open(&disk).unwrap();
    let id = fill(&store, 1, 20).await[0].id();
    drop(store);
    let disk = disk.after_crash();
    let content = disk.content(&log_file_name(1)).unwrap();
    let text = format!("{id}/19/");
    let at = content
        .windows(text.len())
        .position(|bytes| bytes == text.as_bytes())
        .unwrap();
    // What follows is the record that gives unused ledger ids back: cut it off first.
    let file = disk
        .open(&log_file_name(1), Open::Log { durable: true })
        .unwrap();
    let after = (at as u64).next_multiple_of(4096);
    file.write_at(&vec![0; 4096 * 4], after).unwrap();
    disk.flip_bit(&log_file_name(1), at as u64, 0);
    assert_holds(&open(&disk).unwrap(), id, 10).await;
}

#[tokio::test]
async fn a_missing_log_file_is_an_error() {
    let disk = FaultyDisk::new(3);
    let store = open(&disk).unwrap();
    fill(&store, 1, 100).await;
    store.checkpoint().unwrap();
    drop(store);
    let disk = disk.after_crash();
    let empty = disk.open(&log_file_name(1), Open::Create).unwrap();
    empty.write_at(&[0; 8192], 0).unwrap();
    let error = open(&disk).err().map(|error| error.to_string()).unwrap();
    assert!(
        error.contains("is missing") || error.contains("durable up to"),
        "{error}"
    );
}

#[tokio::test]
async fn segment_files_and_checkpoints_are_verified() {
    let disk = FaultyDisk::new(5);
    let store = open(&disk).unwrap();
    let writers = fill(&store, 2, 400).await;
    let (a, b) = (writers[0].id(), writers[1].id());
    wait_until(|| disk.content(&segment_file_name(1)).is_some()).await;
    store.checkpoint().unwrap();
    assert_holds(&store, a, 400).await;
    drop((writers, store));
    let disk = disk.after_crash();
    let checkpoint = (1..99)
        .rev()
        .map(checkpoint_name)
        .find(|name| disk.content(name).is_some());
    let checkpoint = checkpoint.unwrap();

    // A bit of an entry: the read fails and says where; the other ledger is as it was.
    let segment = segment_file_name(1);
    disk.flip_bit(&segment, 600, 1);
    let store = open(&disk).unwrap();
    match store.read(a, EntryId(0), ALL).await {
        Err(StoreError::Corrupt { path, offset, .. }) => {
            assert_eq!(path.display().to_string(), format!("memory:{segment}"));
            assert_eq!(offset, 32);
        }
        other => panic!("{other:?}"),
    }
    assert_holds(&store, b, 400).await;
    drop(store);
    let disk = disk.after_crash();
    let (from, into): (Arc<dyn Disk>, _) = (Arc::new(disk.clone()), FaultyDisk::new(6));
    let repair = repaired(&from, Some(&into));
    // One block is lost, and nothing else.
    let holes = &repair.ledgers[&a].holes;
    assert!(
        holes.len() == 1 && holes[0].start == 0 && holes[0].end < 100,
        "{holes:?}"
    );
    assert_eq!(repair.losses.len(), 1, "{:?}", repair.losses);
    let store = open(&into).unwrap();
    let found = store.read(a, EntryId(0), ALL).await.unwrap();
    assert_eq!(found.len() as u64, 400 - holes[0].end);
    assert_eq!(found[0].data, entry(a, holes[0].end as usize));
    assert_holds(&store, b, 400).await;
    disk.flip_bit(&segment, 600, 1);

    // The checkpoint: nothing older is used in its stead.
    disk.flip_bit(&checkpoint, 60, 1);
    let (path, offset, what) = corruption(open(&disk));
    assert_eq!((path, offset), (format!("memory:{checkpoint}"), 0));
    assert!(what.contains("checkpoint cannot be read"), "{what}");
    let into = FaultyDisk::new(7);
    let repair = repaired(&from, Some(&into));
    assert_eq!(repair.entries, 800, "{repair:?}");
    let store = open(&into).unwrap();
    assert_holds(&store, a, 400).await;
    assert_holds(&store, b, 400).await;
    disk.flip_bit(&checkpoint, 60, 1);

    // A segment file that a ledger needs.
    disk.remove(&segment).unwrap();
    let (path, _, _) = corruption(open(&disk));
    assert_eq!(path, format!("memory:{segment}"));
}

fn repaired(from: &Arc<dyn Disk>, into: Option<&FaultyDisk>) -> super::super::Repair {
    struct Told(u64, u64);
    impl RepairHost for Told {
        fn progress(&mut self, done_bytes: u64, total_bytes: u64) {
            assert!(done_bytes > self.0);
            (self.0, self.1) = (done_bytes, total_bytes);
        }
        fn read(&mut self, ledgers: &BTreeMap<LedgerId, Remains>) {
            assert_eq!(ledgers.values().map(|it| it.bytes).sum::<u64>(), self.0);
        }
    }
    let config = small(Durability::Fsync);
    let into = into.map(|into| into as &dyn Disk);
    repair_on(from, into, &config, &Journal::default(), &mut Told(0, 0)).unwrap()
}

async fn wait_until(mut condition: impl FnMut() -> bool) {
    for _ in 0..5000 {
        if condition() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    panic!("the condition did not come true");
}

#[tokio::test]
async fn log_files_are_recycled_and_dead_segment_files_go() {
    let disk = FaultyDisk::new(8);
    let store = open(&disk).unwrap();
    let count = |prefix: &str| {
        let files = disk.list().unwrap();
        files
            .into_iter()
            .filter(|(name, _)| name.starts_with(prefix))
            .count()
    };
    let mut writers = fill(&store, 4, 1000).await;
    wait_until(|| count("seg-") > 5).await;
    // A few more than the limit: a checkpoint may not wait for itself.
    assert!(count("log-") <= 10, "{}", count("log-"));
    for writer in &writers {
        assert_holds(&store, writer.id(), 1000).await;
    }
    // Three of four go: the files are mostly dead, not quite a quarter of them lives.
    let before: u64 = disk.list().unwrap().iter().map(|(_, size)| size).sum();
    let kept = writers.pop().unwrap();
    let small_one = fill(&store, 1, 10).await;
    for writer in writers.drain(..) {
        store.delete(writer.id()).await.unwrap();
        assert!(store.read(writer.id(), EntryId(0), ALL).await.is_err());
    }
    store.checkpoint().unwrap();
    assert_holds(&store, kept.id(), 1000).await;
    store.delete(kept.id()).await.unwrap();
    wait_until(|| count("seg-") <= 2).await;
    let after: u64 = disk.list().unwrap().iter().map(|(_, size)| size).sum();
    assert!(after < before / 2, "{before} -> {after}");
    assert_holds(&store, small_one[0].id(), 10).await;
}

#[tokio::test]
async fn mostly_dead_segment_files_are_rewritten() {
    let disk = FaultyDisk::new(9);
    let store = open(&disk).unwrap();
    let writers = fill(&store, 8, 200).await;
    wait_until(|| disk.content(&segment_file_name(2)).is_some()).await;
    for writer in &writers[1..] {
        store.delete(writer.id()).await.unwrap();
    }
    wait_until(|| disk.content(&segment_file_name(1)).is_none()).await;
    assert_holds(&store, writers[0].id(), 200).await;
    let id = writers[0].id();
    drop((writers, store));
    let store = open(&disk.after_crash()).unwrap();
    assert_holds(&store, id, 200).await;
    assert_eq!(store.ledgers(), [id]);
}

#[tokio::test]
async fn a_failed_write_or_sync_stops_the_store_for_good() {
    for (no_direct, sync) in [(false, false), (true, false), (true, true)] {
        let disk = FaultyDisk::new(11);
        disk.set_faults(Faults {
            no_direct,
            ..Faults::default()
        });
        let store = open(&disk).unwrap();
        let writer = fill(&store, 1, 10).await.remove(0);
        // One in use and two ready, with their headers: nobody else writes from now on.
        let is_ready = |(name, _): &(String, u64)| {
            let content = disk.content(name).unwrap_or_default();
            name.starts_with("log-") && content.iter().take(64).any(|byte| *byte != 0)
        };
        wait_until(|| disk.list().unwrap().into_iter().filter(is_ready).count() == 3).await;
        store.checkpoint().unwrap();
        let failing = store.create(Arc::new(Failing::default())).await.unwrap();
        let (id, observer) = (failing.id(), Arc::new(Failing::default()));
        drop(failing);
        let failing = store.create(observer.clone()).await.unwrap();
        assert!(failing.id() > id);
        disk.set_faults(Faults {
            no_direct,
            fail_write_after: (!sync).then_some(0),
            fail_sync_after: sync.then_some(0),
            ..Faults::default()
        });
        failing.append(&[entry(id, 0)]).unwrap();
        wait_until(|| observer.failed.load(Ordering::SeqCst) == 1).await;
        let stopped = failing.append(&[entry(id, 1)]);
        assert!(
            matches!(stopped, Err(AppendError::Stopped { .. })),
            "{stopped:?}"
        );
        let stopped = StateLog::append(&*store, Bytes::from_static(b"x"));
        assert!(
            matches!(stopped, Err(StoreError::Stopped { .. })),
            "{stopped:?}"
        );
        assert!(matches!(
            writer.append(&[entry(id, 1)]),
            Err(AppendError::Stopped { .. })
        ));
        assert!(failing.seal().await.is_err());
        // What was durable is still read.
        assert_holds(&store, writer.id(), 10).await;
        let kept = writer.id();
        drop((failing, writer, store));
        let store = open(&disk.after_crash()).unwrap();
        assert_holds(&store, kept, 10).await;
    }
}

#[derive(Default)]
struct Failing {
    failed: AtomicU32,
}

impl AppendObserver for Failing {
    fn durable(&self, _: LedgerId, _: EntryId) {}

    fn failed(&self, _: LedgerId, error: Arc<StoreError>) {
        assert!(matches!(*error, StoreError::Stopped { .. }));
        self.failed.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_full_disk_refuses_entries_and_takes_acks_until_space_returns() {
    let disk = FaultyDisk::new(13);
    let store = open(&disk).unwrap();
    let watch = Arc::new(Watch::default());
    let writer = store.create(watch.clone()).await.unwrap();
    disk.set_faults(Faults {
        capacity_bytes: Some(4 << 20),
        ..Faults::default()
    });
    let mut appended = 0;
    while appended < 20_000 {
        match writer.append(&[entry(writer.id(), appended)]) {
            Ok(_) => appended += 1,
            Err(AppendError::Busy) => tokio::task::yield_now().await,
            Err(AppendError::Full) => break,
            Err(other) => panic!("{other}"),
        }
        watch.wait(appended as i64 - 1);
    }
    assert!((1000..8000).contains(&appended), "{appended}");
    assert_eq!(store.space().level, SpaceLevel::Full);
    assert!(matches!(
        store.create(watch.clone()).await,
        Err(StoreError::Full)
    ));
    // Far more acks than the log has room for: they are checkpointed and the log recycled.
    for number in 0..500_u32 {
        let mut record = vec![0; 2000];
        record[..4].copy_from_slice(&(number % 50).to_le_bytes());
        let ticket = StateLog::append(&*store, record.into()).unwrap();
        store.durable(ticket).await.unwrap();
    }
    disk.set_faults(Faults::default());
    assert_eq!(
        writer.append(&[entry(writer.id(), appended)]).unwrap().0,
        appended as i64
    );
    watch.wait(appended as i64);
    assert_holds(&store, writer.id(), appended + 1).await;
    let id = writer.id();
    drop((writer, store));
    assert_holds(&open(&disk.after_crash()).unwrap(), id, appended + 1).await;
}

#[tokio::test]
async fn a_disk_without_any_room_does_not_hold_up_the_end() {
    let disk = FaultyDisk::new(14);
    let store = open(&disk).unwrap();
    let writer = fill(&store, 1, 10).await.remove(0);
    disk.set_faults(Faults {
        capacity_bytes: Some(1),
        ..Faults::default()
    });
    for number in 10..2000 {
        if writer.append(&[entry(writer.id(), number)]).is_err() {
            break;
        }
    }
    let id = writer.id();
    drop((writer, store));
    let store = open(&disk.after_kill()).unwrap();
    let found = store.read(id, EntryId(0), ALL).await.unwrap();
    assert!(found.len() >= 10);
}

#[test]
fn directories_that_cannot_be_opened_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let machine = || Arc::new(Journal::default());
    let refusal = |path: &Path| {
        let result = EmbeddedStore::open(path, small(Durability::Fsync), machine());
        result.err().expect("it cannot be opened")
    };
    let store = EmbeddedStore::open(&path, small(Durability::Fsync), machine()).unwrap();
    let locked = refusal(&path);
    assert!(matches!(locked, StoreError::Locked { .. }), "{locked}");
    let pid = format!("in use by process {}", std::process::id());
    assert!(locked.to_string().contains(&pid), "{locked}");
    drop(store);
    std::fs::write(path.join("FORMAT"), "geminga storage format 2\n").unwrap();
    let newer = refusal(&path);
    assert!(matches!(newer, StoreError::NewerFormat { .. }), "{newer}");
    assert!(newer.to_string().contains("format 2"), "{newer}");
    for impossible in [
        path.join("FORMAT").join("data"),
        path.join("no").join("data"),
    ] {
        let error = refusal(&impossible);
        assert!(matches!(error, StoreError::CannotOpen { .. }), "{error}");
        assert!(
            error
                .to_string()
                .contains("cannot create the data directory"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn the_durability_may_change_between_two_lives() {
    let mut disk = FaultyDisk::new(21);
    let mut ledgers = Vec::new();
    for durability in [
        Durability::Os,
        Durability::Fsync,
        Durability::Os,
        Durability::Fsync,
    ] {
        let machine = Arc::new(Journal::default());
        let store = EmbeddedStore::open_on(Arc::new(disk.clone()), small(durability), machine);
        let store = store.unwrap();
        for ledger in &ledgers {
            assert_holds(&store, *ledger, 30).await;
        }
        ledgers.push(fill(&store, 1, 30).await[0].id());
        disk.power_off();
        drop(store);
        disk = match durability {
            Durability::Os => disk.after_kill(),
            Durability::Fsync => disk.after_crash(),
        };
    }
    let store = open(&disk).unwrap();
    for ledger in &ledgers {
        assert_holds(&store, *ledger, 30).await;
    }
}
