//! Compaction: what readers of the compacted topic see, and crashes at any point of a run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use geminga_broker::{Broker, BrokerConfig, CompactionState};
use geminga_proto::pb::command_subscribe::{InitialPosition, SubType};
use geminga_proto::pb::{CommandSubscribe, MessageIdData, ServerError};
use geminga_stdx::{Clock, Random, Tasks};
use geminga_storage::disk::faulty::FaultyDisk;
use geminga_storage::managed::ManagedLedgers;
use geminga_storage::{EmbeddedConfig, EmbeddedStore, ManagedConfig, State, Storage};

use crate::server::{Server, eventually};
use crate::wire::{Got, TOPIC, Wire, subscribe};

fn compacted(id: u64, name: &str) -> CommandSubscribe {
    CommandSubscribe {
        read_compacted: Some(true),
        durable: Some(false),
        start_message_id: Some(MessageIdData {
            ledger_id: u64::MAX,
            entry_id: u64::MAX,
            ..MessageIdData::default()
        }),
        ..subscribe(id, name, SubType::Exclusive)
    }
}

async fn send(wire: &mut Wire, sequence: &mut u64, key: &str, text: &str) {
    wire.publish_key(1, *sequence, key, text).await;
    wire.receipt().await;
    *sequence += 1;
}

async fn compact(broker: &Broker) {
    let name = TOPIC.parse().unwrap();
    broker.compact(&name).await.unwrap();
    eventually("it is compacted", async || {
        let status = broker.compaction_status(&name).await.unwrap();
        assert_ne!(
            status.status,
            CompactionState::Error,
            "{}",
            status.last_error
        );
        (status.status == CompactionState::Success).then_some(())
    })
    .await;
}

fn pairs(got: &[Got]) -> Vec<(String, String)> {
    got.iter()
        .map(|got| (got.metadata.partition_key().to_owned(), got.text()))
        .collect()
}

async fn messages(wire: &mut Wire, consumer: u64, count: usize) -> Vec<Got> {
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(wire.message_of(consumer).await);
    }
    all
}

#[tokio::test]
async fn readers_see_the_last_of_each_key_and_then_the_log() {
    let mut server = Server::new().await;
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, None).await;
    let mut sequence = 0;
    for (key, text) in [
        ("a", "1"),
        ("b", "1"),
        ("a", "2"),
        ("c", "1"),
        ("b", ""),
        ("d", "1"),
    ] {
        send(&mut wire, &mut sequence, key, text).await;
    }
    compact(&server.broker).await;
    send(&mut wire, &mut sequence, "a", "3").await;
    let text = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        let own = |(key, text): &(&str, &str)| ((*key).to_owned(), (*text).to_owned());
        pairs.iter().map(own).collect()
    };
    let expected = text(&[("a", "2"), ("c", "1"), ("d", "1"), ("a", "3")]);
    for restarts in [false, true] {
        if restarts {
            server = server.crash_and_restart(BrokerConfig::default()).await;
            wire = server.connect().await;
        }
        wire.subscribe(compacted(1, "r")).await;
        wire.flow(1, 2).await;
        let mut got = messages(&mut wire, 1, 2).await;
        wire.flow(1, 100).await;
        got.extend(messages(&mut wire, 1, 2).await);
        assert_eq!(pairs(&got), expected);
        let entries: Vec<u64> = got.iter().map(|got| got.id.entry_id).collect();
        assert_eq!(entries, [2, 3, 5, 6], "ids are those of the topic");
        wire.quiet().await;
        // Who does not ask for it sees everything.
        let whole = CommandSubscribe {
            read_compacted: None,
            ..compacted(2, "whole")
        };
        wire.subscribe(whole).await;
        wire.flow(2, 100).await;
        assert_eq!(messages(&mut wire, 2, 7).await.len(), 7);
        drop(wire);
        wire = server.connect().await;
    }
    // A second run begins with the view of the first.
    wire.producer(TOPIC, 1, None).await;
    send(&mut wire, &mut sequence, "c", "").await;
    send(&mut wire, &mut sequence, "e", "1").await;
    compact(&server.broker).await;
    wire.subscribe(compacted(1, "r")).await;
    wire.flow(1, 100).await;
    let got = messages(&mut wire, 1, 3).await;
    assert_eq!(pairs(&got), text(&[("d", "1"), ("a", "3"), ("e", "1")]));
    wire.quiet().await;
    assert!(
        !server
            .broker
            .subscriptions(&TOPIC.parse().unwrap())
            .await
            .unwrap()
            .contains(&"__compaction".to_owned())
    );
}

#[tokio::test]
async fn the_view_outlives_the_entries_that_it_was_made_of() {
    let managed = ManagedConfig {
        ledger_entries_max: 4,
        ..ManagedConfig::default()
    };
    let server = Server::on(Default::default(), BrokerConfig::default(), managed).await;
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, None).await;
    let mut sequence = 0;
    for n in 0..40 {
        send(
            &mut wire,
            &mut sequence,
            &(n % 3).to_string(),
            &n.to_string(),
        )
        .await;
    }
    compact(&server.broker).await;
    let name = TOPIC.parse().unwrap();
    eventually("the log is trimmed", async || {
        server.broker.trim_topic(&name).await.unwrap();
        let stats = server.broker.topic_internal_stats(&name).await.unwrap();
        (stats.number_of_entries < 10).then_some(())
    })
    .await;
    wire.subscribe(compacted(1, "r")).await;
    wire.flow(1, 100).await;
    let got = messages(&mut wire, 1, 3).await;
    let texts: Vec<String> = got.iter().map(Got::text).collect();
    assert_eq!(texts, ["37", "38", "39"]);
    wire.quiet().await;
    // A durable one has begun there too, and goes on where it acked.
    let durable = CommandSubscribe {
        durable: None,
        start_message_id: None,
        initial_position: Some(InitialPosition::Earliest as i32),
        ..compacted(2, "durable")
    };
    wire.subscribe(durable.clone()).await;
    wire.flow(2, 100).await;
    assert_eq!(messages(&mut wire, 2, 3).await.len(), 3);
    // And the last message id is one that comes.
    let last = wire.last_message_id(1).await;
    assert_eq!(
        (last.ledger_id, last.entry_id),
        (got[2].id.ledger_id, got[2].id.entry_id)
    );
    let stats = server.broker.topic_internal_stats(&name).await.unwrap();
    assert_eq!(stats.compacted_ledger.unwrap().entries, 3);
    assert!(!stats.cursors.contains_key("__compaction"));
    let stats = server.broker.topic_stats(&name).await.unwrap();
    let last = stats.compaction.unwrap();
    assert_eq!(last.last_compaction_removed_event_count, 37);
    assert!(last.last_compaction_succeed_timestamp > 0);
    assert_eq!(last.last_compaction_failed_timestamp, 0);
    // It acked nothing: after a restart it begins again where it had begun.
    let server = server.crash_and_restart(BrokerConfig::default()).await;
    let mut wire = server.connect().await;
    wire.subscribe(durable).await;
    wire.flow(2, 100).await;
    assert_eq!(messages(&mut wire, 2, 3).await.len(), 3);
}

#[tokio::test]
async fn the_cursor_of_the_compaction_is_nobodys_subscription() {
    let server = Server::new().await;
    let mut wire = server.connect().await;
    let refused = wire
        .try_subscribe(subscribe(1, "__compaction", SubType::Exclusive))
        .await;
    assert_eq!(refused.unwrap_err().error(), ServerError::NotAllowedError);
}

#[tokio::test]
async fn a_policy_begins_it() {
    let config = BrokerConfig {
        broker_service_compaction_monitor_interval_in_seconds: 1,
        geminga_topic_idle_millis: 200,
        ..BrokerConfig::default()
    };
    let server = Server::with(config).await;
    let namespace = "public/default".parse().unwrap();
    server
        .broker
        .update_policies(&namespace, |p| {
            p.compaction_threshold = Some(100);
            Ok(())
        })
        .await
        .unwrap();
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, None).await;
    let mut sequence = 0;
    for n in 0..10 {
        send(&mut wire, &mut sequence, "k", &n.to_string()).await;
    }
    let name = TOPIC.parse().unwrap();
    eventually("it began by itself", async || {
        let status = server.broker.compaction_status(&name).await.unwrap();
        (status.status == CompactionState::Success).then_some(())
    })
    .await;
    wire.subscribe(compacted(1, "r")).await;
    wire.flow(1, 100).await;
    assert_eq!(wire.message_of(1).await.text(), "9");
    wire.quiet().await;
}

/// A machine whose power goes off at any point of a run: the view is the old one or the new one.
#[test]
fn after_any_crash_the_view_is_whole() {
    let seed = match std::env::var("GEMINGA_SEED") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => Random::from_entropy().next_u64(),
    };
    println!("GEMINGA_SEED={seed}");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(crashes(seed));
}

async fn start(disk: &FaultyDisk) -> (Broker, Arc<EmbeddedStore>, Tasks, ManagedLedgers) {
    let config_of_store = EmbeddedConfig {
        log_segment_bytes: 64 << 10,
        space_low_bytes: 0,
        space_reserve_bytes: 0,
        ..EmbeddedConfig::default()
    };
    let state = Arc::new(State::new());
    let store =
        EmbeddedStore::open_on(Arc::new(disk.clone()), config_of_store, state.clone()).unwrap();
    let tasks = Tasks::new();
    let managed = ManagedConfig {
        ledger_entries_max: 17,
        ack_flush_interval_ms: 1,
        ..ManagedConfig::default()
    };
    let storage = Storage::on(store.clone(), state, managed, Clock::system(), &tasks)
        .await
        .unwrap();
    let ledgers = storage.topics.clone();
    let broker = Broker::start(BrokerConfig::default(), storage)
        .await
        .unwrap();
    (broker, store, tasks, ledgers)
}

async fn crashes(seed: u64) {
    let mut random = Random::new(seed);
    let mut disk = FaultyDisk::new(seed);
    let mut model: BTreeMap<String, String> = BTreeMap::new();
    let mut sequence = 0;
    for round in 0..12u64 {
        let (broker, store, tasks, ledgers) = start(&disk).await;
        let name = TOPIC.parse().unwrap();
        let mut wire = Wire::new(broker.connect_in_process());
        wire.handshake().await;
        wire.producer(TOPIC, 1, None).await;
        // All there was, and a last one that says so.
        send(&mut wire, &mut sequence, "end", &round.to_string()).await;
        wire.subscribe(compacted(1, "r")).await;
        wire.flow(1, 100_000).await;
        let mut seen: BTreeMap<String, String> = BTreeMap::new();
        let mut last = 0;
        loop {
            let got = wire.message_of(1).await;
            let place = (got.id.ledger_id << 32) + got.id.entry_id + 1;
            assert!(place > last, "in order and once");
            last = place;
            let (key, text) = (got.metadata.partition_key().to_owned(), got.text());
            if key == "end" {
                if text == round.to_string() {
                    break;
                }
            } else if text.is_empty() {
                seen.remove(&key);
            } else {
                seen.insert(key, text);
            }
        }
        assert_eq!(seen, model, "round {round}");
        for _ in 0..20 + random.below(40) {
            let key = random.below(12).to_string();
            let text = match random.one_in(4) {
                true => String::new(),
                false => sequence.to_string(),
            };
            send(&mut wire, &mut sequence, &key, &text).await;
            match text.is_empty() {
                true => model.remove(&key),
                false => model.insert(key, text),
            };
        }
        broker.compact(&name).await.unwrap();
        if random.one_in(3) {
            compact_ends(&broker).await;
            let views = ledgers.list("public/default/compacted/t").await.unwrap();
            assert_eq!(views.len(), 1, "what crashed runs left is gone: {views:?}");
            broker.trim_topic(&name).await.unwrap();
        } else {
            tokio::time::sleep(Duration::from_micros(random.below(8_000))).await;
        }
        disk.power_off();
        tasks.cancel();
        broker.stop(Duration::from_millis(20)).await;
        drop(wire);
        drop(store);
        disk = match random.one_in(2) {
            true => disk.after_crash(),
            false => disk.after_kill(),
        };
    }
}

async fn compact_ends(broker: &Broker) {
    let name = TOPIC.parse().unwrap();
    eventually("it is compacted", async || {
        let status = broker.compaction_status(&name).await.unwrap();
        (status.status == CompactionState::Success).then_some(())
    })
    .await;
}
