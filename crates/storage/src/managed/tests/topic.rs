//! What a topic does, case by case.

use super::*;
use crate::error::{AppendError, ManagedError};
use crate::managed::{Initial, Properties, Retention};
use bytes::Bytes;

fn run(first: usize, count: usize) -> Vec<Bytes> {
    (first..first + count)
        .map(|i| Bytes::from(format!("entry {i}")))
        .collect()
}

fn small_ledgers() -> ManagedConfig {
    ManagedConfig {
        ledger_entries_max: 10,
        ..ManagedConfig::default()
    }
}

async fn texts(topic: &ManagedLedger, from: Position) -> Vec<Bytes> {
    let mut all = Vec::new();
    let mut at = from;
    loop {
        let entries = topic
            .read(at, ReadLimits::new(7, usize::MAX))
            .await
            .unwrap();
        let Some(last) = entries.last() else {
            return all;
        };
        at = topic.next(last.position);
        all.extend(entries.into_iter().map(|entry| entry.data));
    }
}

/// Appends one by one, waiting for each, and so over several ledgers.
async fn fill(topic: &ManagedLedger, watch: &Watch, first: usize, count: usize) -> Vec<Position> {
    topic.prepare().await.unwrap();
    let mut positions = Vec::new();
    for i in first..first + count {
        let position = topic.append(&run(i, 1)).unwrap();
        watch.durable_at(position).await;
        positions.push(position);
    }
    positions
}

async fn watched(server: &Server, name: &str) -> (Arc<ManagedLedger>, Arc<Watch>) {
    let topic = server.open(name).await;
    let watch = Arc::new(Watch::default());
    topic.set_observer(watch.clone());
    (topic, watch)
}

#[tokio::test]
async fn appends_roll_over_ledgers_and_are_read_back() {
    let server = Server::start(MemoryImage::default(), small_ledgers()).await;
    let (topic, watch) = watched(&server, "t").await;
    assert!(matches!(
        topic.append(&run(0, 1)),
        Err(AppendError::NotReady)
    ));
    assert_eq!(topic.last_position(), Position::EARLIEST);
    assert!(texts(&topic, Position::EARLIEST).await.is_empty());
    let positions = fill(&topic, &watch, 0, 95).await;
    assert!(positions.is_sorted());
    assert!(topic.ledgers().len() > 3, "it rolled");
    assert_eq!(texts(&topic, Position::EARLIEST).await, run(0, 95));
    assert_eq!(texts(&topic, positions[33]).await, run(33, 62));
    assert!(texts(&topic, Position::LATEST).await.is_empty());
    assert_eq!(topic.first_position(), positions[0]);
    assert_eq!(topic.last_position(), positions[94]);
    assert_eq!(topic.durable_position(), positions[94]);
    assert_eq!(topic.count(positions[3], positions[90]), 87);
    assert_eq!(topic.count(Position::EARLIEST, Position::LATEST), 95);
    assert_eq!(topic.entries(), 95);
    assert_eq!(
        topic.size_bytes(),
        run(0, 95).iter().map(|e| e.len() as u64).sum::<u64>()
    );
    for pair in positions.windows(2) {
        assert_eq!(topic.next(pair[0]), pair[1]);
        assert_eq!(topic.previous(pair[1]), Some(pair[0]));
    }
    assert_eq!(topic.previous(positions[0]), None);
    // From the cache: the same.
    let cached = topic.read_cached(positions[20], ALL).unwrap();
    assert_eq!(cached, topic.read(positions[20], ALL).await.unwrap());
    assert_eq!(topic.read_cached(Position::LATEST, ALL).unwrap(), []);
    // By halving.
    for i in [0, 1, 50, 94] {
        let wanted = positions[i];
        let found = topic
            .find(move |entry| entry.position >= wanted)
            .await
            .unwrap();
        assert_eq!(found, Some(wanted));
    }
    assert_eq!(topic.find(|_| false).await.unwrap(), None);

    // Unloaded and loaded again: the same, but for the cache.
    drop(topic);
    // A task of its own may hold it for a moment.
    let gone = async {
        while server.topics.stats().topics_loaded > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    };
    let gone = tokio::time::timeout(std::time::Duration::from_secs(20), gone).await;
    gone.expect("nothing keeps it");
    assert_eq!(server.topics.stats().cache_bytes, 0);
    let topic = server.open("t").await;
    assert_eq!(topic.last_position(), positions[94]);
    assert_eq!(topic.read_cached(positions[20], ALL), None);
    assert_eq!(texts(&topic, Position::EARLIEST).await, run(0, 95));
    assert_eq!(
        topic.size_bytes(),
        run(0, 95).iter().map(|e| e.len() as u64).sum::<u64>()
    );
}

#[tokio::test]
async fn opening_and_preparing_again_and_again_leaves_no_empty_ledgers() {
    let server = Server::start(MemoryImage::default(), small_ledgers()).await;
    for round in 0..5 {
        let (topic, watch) = watched(&server, "t").await;
        topic.prepare().await.unwrap();
        topic.prepare().await.unwrap();
        assert!(topic.ledgers().len() <= 2);
        if round == 3 {
            fill(&topic, &watch, 0, 2).await;
        }
    }
    let topic = server.open("t").await;
    assert_eq!(texts(&topic, Position::EARLIEST).await, run(0, 2));
}

#[tokio::test]
async fn cursors_ack_and_survive_a_crash() {
    let server = Server::start(MemoryImage::default(), small_ledgers()).await;
    let (topic, watch) = watched(&server, "t").await;
    let at = fill(&topic, &watch, 0, 40).await;
    let properties = Properties::from([("a".to_owned(), "b".to_owned())]);
    let cursor = topic
        .open_cursor("sub", Initial::Earliest, properties.clone())
        .await
        .unwrap();
    assert_eq!(cursor.mark_delete(), Position::new(at[0].ledger.0, -1));
    assert_eq!(cursor.backlog(), 40);
    cursor.ack_cumulative(at[9], None).unwrap();
    assert_eq!(cursor.mark_delete(), at[9]);
    cursor
        .ack(&[at[12], at[13], at[30], Position::new(999, 0)])
        .unwrap();
    assert_eq!((cursor.backlog(), cursor.acked_ranges()), (27, 2));
    assert_eq!(cursor.next_unacked(Position::EARLIEST), at[10]);
    assert_eq!(cursor.next_unacked(at[12]), at[14]);
    assert!(!cursor.ack_batch(at[10], &[0b0110], 4).unwrap());
    assert!(!cursor.ack_batch(at[10], &[0b1100], 4).unwrap());
    assert_eq!(cursor.batch_ack_set(at[10]), Some(vec![0b0100]));
    assert!(!cursor.ack_batch(at[20], &[-1], 3).unwrap());
    assert_eq!(cursor.batch_ack_set(at[20]), Some(vec![0b111]));
    cursor.ack_cumulative(Position::LATEST, None).unwrap();
    assert_eq!(cursor.mark_delete(), at[9], "beyond the end is passed over");
    cursor.durable().await.unwrap();
    let latest = topic
        .open_cursor("late", Initial::Latest, Properties::new())
        .await
        .unwrap();
    assert_eq!((latest.backlog(), latest.mark_delete()), (0, at[39]));
    let middle = topic
        .open_cursor("mid", Initial::At(at[5]), Properties::new())
        .await
        .unwrap();
    assert_eq!((middle.backlog(), middle.mark_delete()), (35, at[4]));
    let reader = topic.open_reader_cursor(Initial::At(at[38]));
    reader.ack(&[at[38]]).unwrap();
    assert_eq!(reader.backlog(), 1);
    topic.delete_cursor("mid").await.unwrap();
    assert!(matches!(
        middle.ack(&at),
        Err(ManagedError::NoCursor { .. })
    ));
    assert!(topic.delete_cursor("mid").await.is_err());

    let image = server.crash(0);
    let server = Server::start(image, small_ledgers()).await;
    let topic = server.open("t").await;
    assert_eq!(topic.cursors().len(), 2);
    let cursor = topic.cursor("sub").unwrap();
    assert_eq!(cursor.mark_delete(), at[9]);
    assert_eq!((cursor.backlog(), cursor.acked_ranges()), (27, 2));
    assert_eq!(cursor.batch_ack_set(at[10]), Some(vec![0b0100]));
    assert_eq!(cursor.properties(), properties);
    assert!(cursor.ack_batch(at[10], &[0], 4).unwrap());
    assert_eq!(cursor.mark_delete(), at[10]);
    cursor.ack(&at[..12]).unwrap();
    assert_eq!(cursor.mark_delete(), at[13], "over what was acked before");
    // Back and forth.
    cursor.reset(at[2]).await.unwrap();
    assert_eq!((cursor.mark_delete(), cursor.backlog()), (at[1], 38));
    cursor.ack(&[at[2]]).unwrap();
    cursor.reset(Position::LATEST).await.unwrap();
    assert_eq!((cursor.mark_delete(), cursor.backlog()), (at[39], 0));
    cursor.reset(Position::EARLIEST).await.unwrap();
    cursor.ack(&[at[1]]).unwrap();
    cursor.durable().await.unwrap();
    let image = server.crash(0);
    let server = Server::start(image, small_ledgers()).await;
    let cursor = server.open("t").await.cursor("sub").unwrap();
    assert_eq!((cursor.backlog(), cursor.acked_ranges()), (39, 1));
}

#[tokio::test]
async fn acks_without_a_receipt_are_written_soon() {
    let config = ManagedConfig {
        ack_flush_interval_ms: 5,
        ..ManagedConfig::default()
    };
    let server = Server::start(MemoryImage::default(), config.clone()).await;
    let (topic, watch) = watched(&server, "t").await;
    let at = fill(&topic, &watch, 0, 9).await;
    let cursor = topic
        .open_cursor("sub", Initial::Earliest, Properties::new())
        .await
        .unwrap();
    cursor.ack(&at[..5]).unwrap();
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while cursor.cell.state.lock().is_dirty() {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    server.topics.flush().await.unwrap();
    let image = server.crash(usize::MAX);
    let server = Server::start(image, config).await;
    assert_eq!(server.open("t").await.cursor("sub").unwrap().backlog(), 4);
}

#[tokio::test]
async fn trimming_deletes_what_all_cursors_passed() {
    let server = Server::start(MemoryImage::default(), small_ledgers()).await;
    let (topic, watch) = watched(&server, "t").await;
    let at = fill(&topic, &watch, 0, 60).await;
    let one = topic
        .open_cursor("one", Initial::Earliest, Properties::new())
        .await
        .unwrap();
    let two = topic
        .open_cursor("two", Initial::Latest, Properties::new())
        .await
        .unwrap();
    assert_eq!(topic.trim(Retention::NONE).await.unwrap(), 0);
    one.ack_cumulative(at[45], None).unwrap();
    assert_eq!(topic.trim(Retention::FOREVER).await.unwrap(), 0);
    let before = topic.ledgers();
    let trimmed = topic.trim(Retention::NONE).await.unwrap();
    assert!(trimmed > 0);
    let first = topic.first_position();
    assert!(first > at[0] && first <= at[46]);
    let skipped = at.iter().position(|position| *position == first).unwrap();
    assert_eq!(
        texts(&topic, Position::EARLIEST).await,
        run(skipped, 60 - skipped)
    );
    assert_eq!(topic.entries(), (60 - skipped) as u64);
    assert_eq!((one.backlog(), two.backlog()), (14, 0));
    assert!(one.is_acked(at[0]) && one.is_acked(at[45]) && !one.is_acked(at[46]));
    let gone = before[0].id;
    let error = server
        .topics
        .store()
        .read(gone, geminga_model::EntryId(0), ALL)
        .await;
    assert!(error.is_err(), "the ledger is deleted");
    one.reset(Position::EARLIEST).await.unwrap();
    assert_eq!(one.mark_delete(), Position::new(first.ledger.0, -1));
    let reader = topic.open_reader_cursor(Initial::Earliest);
    assert_eq!(reader.backlog(), topic.entries());

    let image = server.crash(0);
    let server = Server::start(image, small_ledgers()).await;
    let topic = server.open("t").await;
    assert_eq!(
        texts(&topic, Position::EARLIEST).await,
        run(skipped, 60 - skipped)
    );
    assert_eq!(
        topic.cursor("one").unwrap().backlog(),
        (60 - skipped) as u64
    );
}

#[tokio::test]
async fn a_failed_store_is_told_once_and_a_fenced_topic_goes_on() {
    let server = Server::start(MemoryImage::default(), small_ledgers()).await;
    let (topic, watch) = watched(&server, "t").await;
    let at = fill(&topic, &watch, 0, 3).await;
    // Another writer takes the ledger over.
    server.topics.store().recover(at[0].ledger).await.unwrap();
    watch.wait(|told| told.failures == 1).await;
    assert!(matches!(
        topic.append(&run(3, 1)),
        Err(AppendError::NotReady)
    ));
    fill(&topic, &watch, 3, 3).await;
    assert_eq!(texts(&topic, Position::EARLIEST).await, run(0, 6));
    // The store dies.
    server.store.fail("the sync failed");
    assert_eq!(watch.told.lock().failures, 2);
    assert!(topic.append(&run(6, 1)).is_err());
    assert!(topic.prepare().await.is_err());
    assert_eq!(watch.told.lock().failures, 2);
}

#[tokio::test]
async fn a_terminated_topic_takes_nothing_more() {
    let server = Server::start(MemoryImage::default(), small_ledgers()).await;
    let (topic, watch) = watched(&server, "t").await;
    let at = fill(&topic, &watch, 0, 3).await;
    topic.append(&run(3, 1)).unwrap();
    let last = topic.terminate().await.unwrap();
    assert_eq!(last, at[2].next_in_ledger());
    assert_eq!(topic.terminate().await.unwrap(), last);
    assert!(matches!(
        topic.append(&run(4, 1)),
        Err(AppendError::Terminated)
    ));
    assert!(matches!(
        topic.prepare().await,
        Err(ManagedError::Terminated)
    ));
    let image = server.crash(0);
    let server = Server::start(image, small_ledgers()).await;
    let topic = server.open("t").await;
    assert!(topic.is_terminated());
    assert!(matches!(
        topic.append(&run(4, 1)),
        Err(AppendError::Terminated)
    ));
    assert_eq!(texts(&topic, Position::EARLIEST).await, run(0, 4));
}

#[tokio::test]
async fn topics_are_listed_deleted_and_made_again() {
    let server = Server::start(MemoryImage::default(), small_ledgers()).await;
    let missing = server
        .topics
        .open("p/d/persistent/a", OpenOptions::default())
        .await;
    assert!(matches!(missing, Err(ManagedError::NotFound { .. })));
    let (topic, watch) = watched(&server, "p/d/persistent/a").await;
    fill(&topic, &watch, 0, 15).await;
    topic
        .open_cursor("sub", Initial::Latest, Properties::new())
        .await
        .unwrap();
    topic.set_property("k", "v").await.unwrap();
    server.open("p/d/persistent/b").await;
    assert_eq!(
        server.topics.list("p/d/persistent").await.unwrap(),
        ["a", "b"]
    );
    assert!(Arc::ptr_eq(&topic, &server.open("p/d/persistent/a").await));
    let ledgers = topic.ledgers();
    server.topics.delete("p/d/persistent/a").await.unwrap();
    assert!(server.topics.delete("p/d/persistent/a").await.is_err());
    assert!(!server.topics.exists("p/d/persistent/a").await.unwrap());
    assert!(matches!(
        topic.append(&run(0, 1)),
        Err(AppendError::Deleted)
    ));
    for ledger in ledgers {
        let read = server
            .topics
            .store()
            .read(ledger.id, geminga_model::EntryId(0), ALL);
        assert!(read.await.is_err());
    }
    let again = server.open("p/d/persistent/a").await;
    assert!(again.cursors().is_empty() && again.entries() == 0);
    assert_eq!(again.properties(), Properties::new());
    let intents = server
        .topics
        .metadata()
        .children(super::super::factory::DELETIONS);
    assert!(intents.await.unwrap().is_empty());
    drop((topic, again));
    let image = server.crash(0);
    let server = Server::start(image, small_ledgers()).await;
    let again = server.open("p/d/persistent/a").await;
    assert!(again.cursors().is_empty() && again.entries() == 0);
}

#[tokio::test]
async fn interrupted_deletions_are_finished() {
    let server = Server::start(MemoryImage::default(), small_ledgers()).await;
    let (topic, watch) = watched(&server, "t").await;
    let at = fill(&topic, &watch, 0, 3).await;
    topic
        .open_cursor("sub", Initial::Latest, Properties::new())
        .await
        .unwrap();
    // As a crash between the metadata's change and the rest leaves it.
    let intent = topic.deletion(&[at[0].ledger], crate::metadata::Version(0));
    let delete = crate::metadata::Op::Delete {
        key: super::super::factory::key("t").into(),
        expected: crate::metadata::Expected::Any,
    };
    server
        .topics
        .metadata()
        .commit(vec![intent, delete])
        .await
        .unwrap();
    let image = server.crash(0);
    let server = Server::start(image, small_ledgers()).await;
    let read = server
        .topics
        .store()
        .read(at[0].ledger, geminga_model::EntryId(0), ALL);
    assert!(read.await.is_err());
    assert!(server.state.cursors.topics().is_empty(), "no orphans");
}

#[tokio::test]
async fn the_cache_keeps_to_its_budget() {
    let config = ManagedConfig {
        cache_bytes_max: 200_000,
        ..ManagedConfig::default()
    };
    let server = Server::start(MemoryImage::default(), config).await;
    let mut topics = Vec::new();
    for i in 0..10 {
        let topic = server.open(&format!("t{i}")).await;
        topic.prepare().await.unwrap();
        topics.push(topic);
    }
    let entry = Bytes::from(vec![1; 1000]);
    let mut last = Position::EARLIEST;
    for i in 0..2000 {
        last = topics[i * 7 % 10]
            .append(&[entry.clone(), entry.clone()])
            .unwrap();
        assert!(server.topics.stats().cache_bytes < 210_000);
    }
    let stats = server.topics.stats();
    assert!(
        stats.cache_bytes > 50_000 && stats.cache_evicted_bytes > 1_000_000,
        "{stats:?}"
    );
    let topic = &topics[1999 * 7 % 10];
    let watch = Arc::new(Watch::default());
    topic.set_observer(watch.clone());
    let position = topic.append(&[entry]).unwrap();
    watch.durable_at(position).await;
    assert!(topic.read_cached(last, ALL).is_some(), "the newest stay");
    drop(topics);
    assert_eq!(server.topics.stats().cache_bytes, 0);
}

#[tokio::test]
async fn a_new_ledgers_entries_wait_for_those_of_the_ledger_before() {
    use crate::ledger::AppendObserver;
    use crate::managed::append::LedgerObserver;
    use geminga_model::{EntryId, LedgerId};

    let server = Server::start(MemoryImage::default(), small_ledgers()).await;
    let (topic, watch) = watched(&server, "t").await;
    let generation = topic.appender.lock().generation;
    let ledger = |id, base| {
        let observer = LedgerObserver::new(Arc::downgrade(&topic), generation, base);
        move |through| observer.durable(LedgerId(id), EntryId(through))
    };
    let (first, second, third) = (ledger(1, 0), ledger(2, 4), ledger(3, 6));
    let through = || watch.told.lock().through;
    second(0);
    third(2);
    assert_eq!(through(), None);
    first(1);
    assert_eq!(
        (through(), topic.durable_offset()),
        (Some(Position::new(1, 1)), 2)
    );
    first(3);
    assert_eq!(
        (through(), topic.durable_offset()),
        (Some(Position::new(2, 0)), 5)
    );
    second(1);
    assert_eq!(
        (through(), topic.durable_offset()),
        (Some(Position::new(3, 2)), 9)
    );
    // A generation that was given up means nothing any more.
    topic.fail(generation, Arc::new(StoreError::stopped("test")));
    third(3);
    assert_eq!(topic.durable_offset(), 9);
    assert_eq!(watch.told.lock().failures, 1);
}

#[tokio::test]
async fn acks_that_could_not_be_written_are_never_called_durable() {
    let server = Server::start(MemoryImage::default(), small_ledgers()).await;
    let (topic, watch) = watched(&server, "t").await;
    let at = fill(&topic, &watch, 0, 9).await;
    let cursor = topic
        .open_cursor("sub", Initial::Earliest, Properties::new())
        .await
        .unwrap();
    server.store.fail("the sync failed");
    cursor.ack(&at[..3]).unwrap();
    for _ in 0..2 {
        assert!(cursor.durable().await.is_err());
    }
    assert!(server.topics.flush().await.is_err());
    assert!(cursor.durable().await.is_err());
}

#[tokio::test]
async fn a_cursor_refuses_more_holes_than_it_may_have() {
    let config = ManagedConfig {
        cursor_ranges_max: 3,
        ..ManagedConfig::default()
    };
    let server = Server::start(MemoryImage::default(), config).await;
    let (topic, watch) = watched(&server, "t").await;
    let at = fill(&topic, &watch, 0, 20).await;
    let cursor = topic
        .open_cursor("sub", Initial::Earliest, Properties::new())
        .await
        .unwrap();
    cursor.ack(&[at[2], at[4], at[6]]).unwrap();
    let refused = cursor.ack(&[at[8], at[5]]);
    assert!(matches!(
        refused,
        Err(ManagedError::TooManyRanges { max: 3, .. })
    ));
    assert!(
        !cursor.is_acked(at[8]) && cursor.is_acked(at[5]),
        "one that merges is taken"
    );
    cursor.ack(&[at[0], at[1]]).unwrap();
    assert_eq!(cursor.mark_delete(), at[2]);
    cursor.ack(&[at[8]]).unwrap();
}

/// Whoever acks says how many messages a batch has: each such part may be 128 KiB large.
#[tokio::test]
async fn large_parts_of_batches_count_for_many_holes() {
    let config = ManagedConfig {
        cursor_ranges_max: 100,
        ..ManagedConfig::default()
    };
    let server = Server::start(MemoryImage::default(), config).await;
    let (topic, watch) = watched(&server, "t").await;
    let at = fill(&topic, &watch, 0, 60).await;
    let cursor = topic
        .open_cursor("sub", Initial::Earliest, Properties::new())
        .await
        .unwrap();
    // Zeros at the end take no room.
    for position in &at[..30] {
        let mut left = [0; 10_000];
        left[0] = 1;
        assert!(!cursor.ack_batch(*position, &left, 0).unwrap());
    }
    assert_eq!(cursor.batch_ack_set(at[0]), Some(vec![1]));
    assert!(!cursor.ack_batch(at[30], &[-1; 10_000], u32::MAX).unwrap());
    let refused = cursor.ack_batch(at[31], &[1], 2).unwrap_err();
    assert!(matches!(
        refused,
        ManagedError::TooManyRanges { max: 100, .. }
    ));
    cursor.ack(&at[30..31]).unwrap();
    assert!(!cursor.ack_batch(at[31], &[1], 2).unwrap());
}

#[tokio::test]
async fn a_topic_is_made_and_open_for_appends_with_one_change() {
    let server = Server::start(MemoryImage::default(), small_ledgers()).await;
    let options = OpenOptions {
        create: true,
        prepare: true,
        ..OpenOptions::default()
    };
    let name = "p/d/persistent/made";
    let topic = server.topics.open(name, options.clone()).await.unwrap();
    assert!(topic.is_ready());
    let stored = server
        .topics
        .metadata()
        .get(&crate::managed::factory::key(name))
        .await
        .unwrap();
    let stored = stored.unwrap();
    assert_eq!(stored.created, stored.version, "it was written once");
    let watch = Arc::new(Watch::default());
    topic.set_observer(watch.clone());
    let positions = fill(&topic, &watch, 0, 9).await;
    assert_eq!(positions[0].entry.0, 0);
    let before = texts(&topic, Position::EARLIEST).await;
    assert_eq!(before.len(), 9);
    drop(topic);

    let image = server.crash(usize::MAX);
    let server = Server::start(image, small_ledgers()).await;
    let topic = server.topics.open(name, options).await.unwrap();
    assert!(!topic.is_ready(), "it was there before");
    assert_eq!(texts(&topic, Position::EARLIEST).await, before);
}
