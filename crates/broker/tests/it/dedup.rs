//! Deduplication on the wire, over restarts, and after crashes of an imaginary machine.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use geminga_broker::{Broker, BrokerConfig};
use geminga_proto::Command;
use geminga_proto::pb::command_subscribe::SubType;
use geminga_proto::pb::{CommandProducer, MessageMetadata, ServerError};
use geminga_stdx::{Clock, Random, Tasks};
use geminga_storage::disk::faulty::FaultyDisk;
use geminga_storage::{EmbeddedConfig, EmbeddedStore, ManagedConfig, State, Storage};

use crate::server::{Server, eventually};
use crate::wire::{TOPIC, Wire, metadata, subscribe};

fn config() -> BrokerConfig {
    BrokerConfig {
        broker_deduplication_enabled: true,
        broker_deduplication_entries_interval: 7,
        default_retention_time_in_minutes: -1,
        default_retention_size_in_mb: -1,
        ..BrokerConfig::default()
    }
}

async fn producer(wire: &mut Wire, id: u64, name: &str) -> i64 {
    let success = wire
        .try_producer(CommandProducer {
            topic: TOPIC.to_owned(),
            producer_id: id,
            producer_name: Some(name.to_owned()),
            ..CommandProducer::default()
        })
        .await
        .unwrap();
    success.last_sequence_id.unwrap()
}

async fn send(wire: &mut Wire, id: u64, name: &str, sequence: u64) {
    let metadata = MessageMetadata {
        producer_name: name.to_owned(),
        ..metadata(sequence)
    };
    wire.publish_with(id, metadata, format!("{name} {sequence}").as_bytes())
        .await;
}

/// The sequence id and whether it was a duplicate.
async fn receipt(wire: &mut Wire) -> (u64, bool) {
    let receipt = wire.receipt().await;
    let id = receipt.message_id.unwrap();
    let duplicate = id.ledger_id == u64::MAX;
    assert_eq!(duplicate, id.entry_id == u64::MAX);
    (receipt.sequence_id, duplicate)
}

#[tokio::test]
async fn trap_12_duplicates_get_a_receipt_without_an_id_in_order() {
    let server = Server::with(config()).await;
    let mut wire = server.connect().await;
    assert_eq!(producer(&mut wire, 1, "p").await, -1);
    for sequence in [0, 1, 5] {
        send(&mut wire, 1, "p", sequence).await;
        assert_eq!(receipt(&mut wire).await, (sequence, false));
    }
    // Old ones between new ones: each is answered in its turn.
    let sent = [3, 6, 5, 1, 7, 7 + 1, 0];
    for sequence in sent {
        send(&mut wire, 1, "p", sequence).await;
    }
    for sequence in sent {
        let duplicate = ![6, 7, 8].contains(&sequence);
        assert_eq!(receipt(&mut wire).await, (sequence, duplicate));
    }
    wire.subscribe(subscribe(1, "s", SubType::Exclusive)).await;
    wire.flow(1, 100).await;
    let texts = wire.texts(6).await;
    assert_eq!(texts, ["p 0", "p 1", "p 5", "p 6", "p 7", "p 8"]);
    wire.quiet().await;
    let stats = server
        .broker
        .topic_stats(&TOPIC.parse().unwrap())
        .await
        .unwrap();
    assert_eq!(stats.deduplication_status, "Enabled");
    assert_eq!(stats.msg_in_counter, 6);
    assert!(
        stats.subscriptions.keys().eq(["s"]),
        "the snapshot is no subscription"
    );
}

#[tokio::test]
async fn trap_12_an_id_that_waits_for_the_disk_is_an_error() {
    let server = Server::with(config()).await;
    let mut wire = server.connect().await;
    producer(&mut wire, 1, "p").await;
    server.store.hold(true, None);
    send(&mut wire, 1, "p", 4).await;
    send(&mut wire, 1, "p", 4).await;
    let error = wire
        .find(|command, _| match command {
            Command::SendError(error) => Some(error.clone()),
            _ => None,
        })
        .await;
    assert_eq!(error.error, ServerError::PersistenceError as i32);
    assert_eq!(error.sequence_id, 4);
    server.store.hold(false, None);
    assert_eq!(receipt(&mut wire).await, (4, false));
    send(&mut wire, 1, "p", 4).await;
    assert_eq!(receipt(&mut wire).await, (4, true));
}

#[tokio::test]
async fn a_successor_waits_for_what_is_on_its_way_and_goes_on_from_there() {
    for unloads in [false, true] {
        let server = Server::with(config()).await;
        let topic = TOPIC.parse().unwrap();
        let mut wire = server.connect().await;
        wire.subscribe(subscribe(1, "s", SubType::Exclusive)).await;
        producer(&mut wire, 1, "p").await;
        server.store.hold(true, None);
        send(&mut wire, 1, "p", 9).await;
        eventually("it was taken", async || {
            (server
                .broker
                .topic_stats(&topic)
                .await
                .unwrap()
                .msg_in_counter
                == 1)
                .then_some(())
        })
        .await;
        drop(wire);
        if unloads {
            server.broker.unload(&topic).await.unwrap();
        }
        let mut wire = server.connect().await;
        let store = server.store.clone();
        let (last, ()) = tokio::join!(producer(&mut wire, 1, "p"), async {
            // Long enough for a broker that does not wait to answer.
            tokio::time::sleep(Duration::from_millis(20)).await;
            store.hold(false, None);
        });
        // The next life of the topic may have fenced off what was on its way.
        assert!(last == 9 || (unloads && last == -1), "{last}");
        send(&mut wire, 1, "p", 9).await;
        assert_eq!(receipt(&mut wire).await, (9, last == 9));
        send(&mut wire, 1, "p", 10).await;
        wire.subscribe(subscribe(1, "s", SubType::Exclusive)).await;
        wire.flow(1, 10).await;
        assert_eq!(wire.texts(2).await, ["p 9", "p 10"]);
        wire.quiet().await;
    }
}

#[tokio::test]
async fn of_chunks_the_last_one_decides() {
    let server = Server::with(config()).await;
    let mut wire = server.connect().await;
    producer(&mut wire, 1, "p").await;
    for (round, duplicate) in [false, true].into_iter().enumerate() {
        for chunk in 0..3 {
            let metadata = MessageMetadata {
                uuid: Some("u".to_owned()),
                num_chunks_from_msg: Some(3),
                total_chunk_msg_size: Some(3),
                chunk_id: Some(chunk),
                ..metadata(5)
            };
            wire.publish_with(1, metadata, b"x").await;
            let expected = (5, duplicate && chunk == 2);
            assert_eq!(receipt(&mut wire).await, expected, "round {round}");
        }
    }
}

#[tokio::test]
async fn what_was_taken_is_known_after_restarts_and_unloads() {
    let mut server = Server::with(config()).await;
    let mut next = 0;
    for round in 0..6 {
        let mut wire = server.connect().await;
        assert_eq!(
            producer(&mut wire, 1, "p").await,
            next as i64 - 1,
            "round {round}"
        );
        for sequence in next..next + 10 {
            send(&mut wire, 1, "p", sequence).await;
            assert_eq!(receipt(&mut wire).await, (sequence, false));
        }
        next += 10;
        for sequence in 0..next {
            send(&mut wire, 1, "p", sequence).await;
            assert_eq!(receipt(&mut wire).await, (sequence, true));
        }
        if round % 2 == 0 {
            drop(wire);
            server.broker.unload(&TOPIC.parse().unwrap()).await.unwrap();
        } else {
            server = server.crash_and_restart(config()).await;
        }
    }
    // Switched off, the cursor no longer holds data back.
    let server = server.crash_and_restart(BrokerConfig::default()).await;
    let mut wire = server.connect().await;
    assert_eq!(producer(&mut wire, 1, "p").await, -1);
    send(&mut wire, 1, "p", 0).await;
    assert_eq!(receipt(&mut wire).await, (0, false));
}

#[tokio::test]
async fn a_policy_switches_it_while_the_topic_is_in_use() {
    let server = Server::new().await;
    let namespace = "public/default".parse().unwrap();
    let mut wire = server.connect().await;
    producer(&mut wire, 1, "p").await;
    wire.subscribe(subscribe(1, "s", SubType::Exclusive)).await;
    let mut stored = Vec::new();
    for (round, on) in [None, Some(true), Some(false), Some(true)]
        .into_iter()
        .enumerate()
    {
        server
            .broker
            .update_policies(&namespace, |p| {
                p.deduplication = on;
                Ok(())
            })
            .await
            .unwrap();
        for again in [false, true] {
            let sequence = 10 + round as u64;
            send(&mut wire, 1, "p", sequence).await;
            let duplicate = again && on == Some(true);
            assert_eq!(receipt(&mut wire).await, (sequence, duplicate), "{on:?}");
            if !duplicate {
                stored.push(format!("p {sequence}"));
            }
        }
    }
    wire.flow(1, 100).await;
    assert_eq!(wire.texts(stored.len()).await, stored);
    wire.quiet().await;
}

/// A machine whose power goes off at any point: what a client resends after it, is in the log once.
#[test]
fn after_any_crash_each_message_is_stored_once_and_in_order() {
    let seed = match std::env::var("GEMINGA_SEED") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => Random::from_entropy().next_u64(),
    };
    println!("GEMINGA_SEED={seed}");
    for round in 0..3 {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(crashes(seed.wrapping_add(round)));
    }
}

const NAMES: [&str; 3] = ["a", "b", "c"];

struct Machine {
    broker: Broker,
    store: Arc<EmbeddedStore>,
    tasks: Tasks,
}

async fn start(disk: &FaultyDisk) -> Machine {
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
        ledger_entries_max: 23,
        ack_flush_interval_ms: 1,
        ..ManagedConfig::default()
    };
    let storage = Storage::on(store.clone(), state, managed, Clock::system(), &tasks)
        .await
        .unwrap();
    let broker = Broker::start(config(), storage).await.unwrap();
    Machine {
        broker,
        store,
        tasks,
    }
}

async fn crashes(seed: u64) {
    let mut random = Random::new(seed);
    let mut disk = FaultyDisk::new(seed);
    // By producer: the next id to send, and the next one that is not yet acknowledged.
    let mut sent: BTreeMap<&str, u64> = NAMES.iter().map(|name| (*name, 0)).collect();
    let mut acked = sent.clone();
    for _ in 0..8 {
        let machine = start(&disk).await;
        let mut wire = Wire::new(machine.broker.connect_in_process());
        wire.handshake().await;
        for (id, name) in (1..).zip(NAMES) {
            let last = producer(&mut wire, id, name).await;
            assert!(
                last + 1 >= acked[name] as i64,
                "{name}: {last} of {acked:?}"
            );
            assert!(last < sent[name] as i64, "{name}: {last} of {sent:?}");
            // As clients do: again what was not acknowledged, and some that was.
            let again = acked[name].saturating_sub(random.below(5));
            for sequence in again..sent[name] {
                send(&mut wire, id, name, sequence).await;
            }
            let mut expected = again;
            while expected < sent[name] {
                let (sequence, duplicate) = receipt(&mut wire).await;
                assert_eq!(sequence, expected);
                assert_eq!(duplicate, sequence as i64 <= last, "{name} {sequence}");
                expected += 1;
            }
            acked.insert(name, sent[name]);
        }
        let wanted = random.below(60);
        let mut acks = 0;
        for _ in 0..wanted + random.below(30) {
            let at = random.below(NAMES.len() as u64) as usize;
            let next = sent.get_mut(NAMES[at]).unwrap();
            send(&mut wire, at as u64 + 1, NAMES[at], *next).await;
            *next += 1;
        }
        while acks < wanted {
            let found = wire.receipt().await;
            let name = NAMES[found.producer_id as usize - 1];
            assert_eq!(found.sequence_id, acked[name], "{name}: in order");
            acked.insert(name, found.sequence_id + 1);
            acks += 1;
        }
        disk.power_off();
        machine.tasks.cancel();
        machine.broker.stop(Duration::from_millis(20)).await;
        drop(wire);
        drop(machine.store);
        disk = if random.one_in(2) {
            disk.after_crash()
        } else {
            disk.after_kill()
        };
    }
    // All that is still owed, and then everything once, in the order of each producer.
    let machine = start(&disk).await;
    let mut wire = Wire::new(machine.broker.connect_in_process());
    wire.handshake().await;
    for (id, name) in (1..).zip(NAMES) {
        producer(&mut wire, id, name).await;
        for sequence in acked[name]..sent[name] {
            send(&mut wire, id, name, sequence).await;
            receipt(&mut wire).await;
        }
    }
    wire.subscribe(subscribe(1, "s", SubType::Exclusive)).await;
    wire.flow(1, 100_000).await;
    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    for _ in 0..sent.values().sum::<u64>() {
        let got = wire.message().await;
        let next = expected
            .entry(got.metadata.producer_name.clone())
            .or_default();
        assert_eq!(got.metadata.sequence_id, *next, "{}", got.text());
        *next += 1;
    }
    wire.quiet().await;
    machine.tasks.cancel();
    machine.broker.stop(Duration::from_millis(50)).await;
}
