//! Schemas, delayed messages and deduplication on a disk that loses what was not synced, cut off at
//! random places.
//!
//! A client registers schemas, publishes messages that are due now, in an hour or in ten, and
//! numbered messages that it sends again whenever it was not told that they are stored. Power goes
//! off during any write, or the process is killed. Checked at the end: a version that was told reads
//! back as that definition for ever; a delayed message is neither lost nor early; of the numbered
//! ones each is there once, in order.
//!
//! `GEMINGA_CRASH_SEEDS=from..to` runs other seeds.

use std::collections::{BTreeMap, BTreeSet};

use geminga_broker::BrokerConfig;
use geminga_proto::Command;
use geminga_proto::pb::command_ack::AckType;
use geminga_proto::pb::command_subscribe::SubType;
use geminga_proto::pb::*;
use geminga_stdx::{Clock, Random};
use geminga_storage::disk::faulty::{Faults, FaultyDisk};

use crate::node::{Node, without_power};
use crate::wire::{Wire, bare, metadata, subscribe};

const SCHEMAS: &str = "persistent://public/default/schemas";
const DELAYED: &str = "persistent://public/default/delayed";
const NUMBERS: &str = "persistent://public/default/numbers";
const START_MS: u64 = 1_700_000_000_000;
const HOUR_MS: u64 = 3_600_000;

/// What the client was told, or may find.
#[derive(Default)]
struct History {
    /// Version by definition.
    versions: BTreeMap<String, Vec<u8>>,
    fields: u64,
    /// When each delayed message is due, and whether it was told to be stored.
    delayed: BTreeMap<u64, (u64, bool)>,
    /// Acks of delayed messages, and whether they were told to be.
    acked: BTreeMap<u64, bool>,
    /// Numbers below were told to be stored.
    told: u64,
    /// Numbers below were sent.
    sent: u64,
}

fn config() -> BrokerConfig {
    BrokerConfig {
        broker_deduplication_enabled: true,
        broker_deduplication_entries_interval: 7,
        ..BrokerConfig::default()
    }
}

async fn start(disk: &FaultyDisk, now_ms: u64) -> Option<Node> {
    Node::start_with(disk.clone(), config(), Clock::manual(now_ms)).await
}

/// A record whose fields have defaults, so that each follows from the one before.
fn definition(fields: u64) -> String {
    let fields: Vec<String> = (0..fields)
        .map(|at| format!(r#"{{"name":"f{at}","type":"int","default":{at}}}"#))
        .collect();
    let fields = fields.join(",");
    format!(r#"{{"type":"record","name":"R","fields":[{fields}]}}"#)
}

async fn register(wire: &mut Wire, definition: &str) -> Result<Vec<u8>, String> {
    let request_id = wire.request();
    wire.send(CommandGetOrCreateSchema {
        request_id,
        topic: SCHEMAS.to_owned(),
        schema: Schema {
            name: "R".to_owned(),
            schema_data: definition.to_owned().into(),
            r#type: schema::Type::Avro as i32,
            properties: Vec::new(),
        },
        ..CommandGetOrCreateSchema::default()
    })
    .await;
    let response = wire.find(|command, _| match command {
        Command::GetOrCreateSchemaResponse(it) if it.request_id == request_id => Some(it.clone()),
        _ => None,
    });
    let response = response.await;
    match response.schema_version {
        Some(version) if response.error_code.is_none() => Ok(version.to_vec()),
        _ => Err(format!("a schema was refused: {response:?}")),
    }
}

async fn schema_of(wire: &mut Wire, version: &[u8]) -> Option<String> {
    let request_id = wire.request();
    wire.send(CommandGetSchema {
        request_id,
        topic: SCHEMAS.to_owned(),
        schema_version: Some(version.to_vec().into()),
    })
    .await;
    let response = wire.find(|command, _| match command {
        Command::GetSchemaResponse(it) if it.request_id == request_id => Some(it.clone()),
        _ => None,
    });
    let data = response.await.schema?.schema_data;
    Some(String::from_utf8(data.to_vec()).unwrap())
}

async fn stored(wire: &mut Wire, producer: u64, sequence: u64) -> Result<(), String> {
    wire.find(|command, _| match command {
        Command::SendReceipt(it) if (it.producer_id, it.sequence_id) == (producer, sequence) => {
            Some(Ok(()))
        }
        Command::SendError(error) => Some(Err(format!("a message was refused: {error:?}"))),
        _ => None,
    })
    .await
}

async fn open(wire: &mut Wire, topic: &str, id: u64) -> Result<i64, String> {
    let command = CommandProducer {
        topic: topic.to_owned(),
        producer_id: id,
        producer_name: Some("p".to_owned()),
        ..CommandProducer::default()
    };
    match wire.try_producer(command).await {
        Ok(success) => Ok(success.last_sequence_id()),
        Err(error) => Err(format!("a producer was refused: {error:?}")),
    }
}

async fn work(
    wire: &mut Wire,
    random: &mut Random,
    history: &mut History,
    count: u64,
) -> Result<(), String> {
    open(wire, SCHEMAS, 1).await?;
    let delayed = open(wire, DELAYED, 2).await?;
    let last = open(wire, NUMBERS, 3).await?;
    assert!(
        last + 1 >= history.told as i64,
        "told {}, the broker knows {last}",
        history.told
    );
    assert!(
        last < history.sent as i64,
        "sent {}, the broker knows {last}",
        history.sent
    );
    let mut next_delayed = (delayed + 1).max(history.delayed.len() as i64) as u64;
    let mut command = subscribe(9, "s", SubType::Shared);
    command.topic = DELAYED.to_owned();
    let joined = wire.try_subscribe(command).await;
    joined.map_err(|error| format!("a consumer was refused: {error:?}"))?;
    wire.flow(9, 1_000).await;
    // Whatever was not confirmed is sent again, as a client does.
    let mut next = history.told;
    for _ in 0..count {
        match random.below(5) {
            0 => {
                let definition = definition(history.fields + 1);
                let version = register(wire, &definition).await?;
                history.fields += 1;
                let before = history.versions.insert(definition, version.clone());
                assert!(before.is_none_or(|before| before == version));
            }
            1 | 2 => {
                let delay = [0, HOUR_MS, 10 * HOUR_MS][random.below(3) as usize];
                let number = next_delayed;
                next_delayed += 1;
                let metadata = MessageMetadata {
                    deliver_at_time: (delay > 0).then_some((START_MS + delay) as i64),
                    ..metadata(number)
                };
                history.delayed.insert(number, (START_MS + delay, false));
                wire.publish_with(2, metadata, number.to_string().as_bytes())
                    .await;
                stored(wire, 2, number).await?;
                history.delayed.insert(number, (START_MS + delay, true));
            }
            3 => {
                if let Some(got) = wire.arrived_any(9).await {
                    let number: u64 = got.text().parse().unwrap();
                    let due = history.delayed[&number].0;
                    assert_eq!(due, START_MS, "{number} came early");
                    history.acked.insert(number, false);
                    let ids = vec![bare(&got.id)];
                    let response = wire.try_ack(9, AckType::Individual, ids).await;
                    if response.error.is_some() {
                        return Err(format!("an ack was refused: {response:?}"));
                    }
                    history.acked.insert(number, true);
                }
            }
            _ => {
                let run = 1 + random.below(6);
                history.sent = history.sent.max(next + run);
                for number in next..next + run {
                    wire.publish(3, number, &number.to_string()).await;
                }
                for number in next..next + run {
                    stored(wire, 3, number).await?;
                    history.told = history.told.max(number + 1);
                }
                next += run;
            }
        }
    }
    Ok(())
}

async fn run(seed: u64) {
    let mut random = Random::new(seed);
    let mut disk = FaultyDisk::new(random.next_u64());
    let mut history = History::default();
    // The subscription is there from the beginning.
    let node = start(&disk, START_MS).await.expect("an empty disk");
    let mut wire = node.connect().await;
    let mut command = subscribe(9, "s", SubType::Shared);
    command.topic = DELAYED.to_owned();
    wire.subscribe(command).await;
    drop(wire);
    node.end().await;
    disk = disk.after_kill();
    for _ in 0..5 {
        let Some(node) = start(&disk, START_MS).await else {
            disk = disk.after_crash();
            continue;
        };
        disk.set_faults(Faults {
            power_off_after_writes: Some(random.below(50)),
            ..Faults::default()
        });
        let mut wire = node.connect().await;
        let mut steps = Random::new(random.next_u64());
        let count = 1 + random.below(25);
        tokio::select! {
            done = work(&mut wire, &mut steps, &mut history, count) => {
                if let Err(refusal) = done {
                    assert!(disk.is_off(), "seed {seed}: {refusal}, though the disk is well");
                }
            }
            () = without_power(disk.clone()) => {}
        }
        drop(wire);
        disk.power_off();
        node.end().await;
        disk = match random.one_in(3) {
            true => disk.after_kill(),
            false => disk.after_crash(),
        };
    }
    check(disk, &history, seed).await;
}

async fn check(disk: FaultyDisk, history: &History, seed: u64) {
    let mut disk = disk;
    let mut seen = BTreeSet::new();
    for hours in [0, 2, 20] {
        let now_ms = START_MS + hours * HOUR_MS;
        let node = start(&disk, now_ms).await.expect("the disk is well again");
        let mut wire = node.connect().await;
        check_schemas(&mut wire, history, seed).await;
        // What is due comes, and nothing that is not.
        let mut command = subscribe(9, "s", SubType::Shared);
        command.topic = DELAYED.to_owned();
        wire.subscribe(command).await;
        wire.flow(9, 1_000).await;
        let wanted: BTreeSet<u64> = history
            .delayed
            .iter()
            .filter(|(number, (due, told))| {
                *due <= now_ms
                    && *told
                    && !history.acked.contains_key(number)
                    && !seen.contains(*number)
            })
            .map(|(number, _)| *number)
            .collect();
        let mut missing = wanted.clone();
        while !missing.is_empty() {
            let got = wire.message_of(9).await;
            take(&mut wire, history, &mut seen, got, now_ms, seed).await;
            missing.retain(|number| !seen.contains(number));
        }
        while let Some(got) = wire.arrived_any(9).await {
            take(&mut wire, history, &mut seen, got, now_ms, seed).await;
        }
        if hours == 0 {
            check_numbers(&mut wire, history, seed).await;
        }
        drop(wire);
        node.end().await;
        disk = disk.after_kill();
    }
}

async fn take(
    wire: &mut Wire,
    history: &History,
    seen: &mut BTreeSet<u64>,
    got: crate::wire::Got,
    now_ms: u64,
    seed: u64,
) {
    let number: u64 = got.text().parse().unwrap();
    let (due, _) = history.delayed[&number];
    assert!(due <= now_ms, "seed {seed}: {number} came early");
    assert_ne!(
        history.acked.get(&number),
        Some(&true),
        "seed {seed}: {number} was acked"
    );
    wire.ack(9, vec![bare(&got.id)]).await;
    assert!(seen.insert(number), "seed {seed}: {number} came twice");
}

async fn check_schemas(wire: &mut Wire, history: &History, seed: u64) {
    for (definition, version) in &history.versions {
        let found = schema_of(wire, version).await;
        assert_eq!(found.as_ref(), Some(definition), "seed {seed}: {version:?}");
        assert_eq!(
            &register(wire, definition).await.unwrap(),
            version,
            "seed {seed}"
        );
    }
    let distinct: BTreeSet<_> = history.versions.values().collect();
    assert_eq!(
        distinct.len(),
        history.versions.len(),
        "seed {seed}: versions are shared"
    );
}

async fn check_numbers(wire: &mut Wire, history: &History, seed: u64) {
    let last = open(wire, NUMBERS, 3).await.unwrap();
    for number in history.told..history.sent + 1 {
        wire.publish(3, number, &number.to_string()).await;
        stored(wire, 3, number).await.unwrap();
    }
    let mut command = subscribe(8, "all", SubType::Exclusive);
    command.topic = NUMBERS.to_owned();
    wire.subscribe(command).await;
    wire.flow(8, 100_000).await;
    for number in 0..history.sent + 1 {
        let got = wire.message_of(8).await.text();
        assert_eq!(
            got,
            number.to_string(),
            "seed {seed}: told {}, known {last}",
            history.told
        );
    }
    assert!(
        wire.arrived_any(8).await.is_none(),
        "seed {seed}: more than was sent"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schemas_delays_and_numbers_outlive_crashes() {
    let seeds: Vec<u64> = match std::env::var("GEMINGA_CRASH_SEEDS") {
        Ok(range) => {
            let (from, to) = range.split_once("..").unwrap();
            (from.parse().unwrap()..to.parse().unwrap()).collect()
        }
        Err(_) => {
            let first = Random::from_entropy().next_u64() >> 16;
            (first..first + 12).collect()
        }
    };
    for seed in seeds {
        println!("GEMINGA_CRASH_SEEDS={seed}..{}", seed + 1);
        run(seed).await;
    }
}
