//! Random transactions on a disk that loses what was not synced, cut off at random places.
//!
//! A consumer reads an input and, in one transaction each, publishes to several topics and acks what
//! it read. Power goes off during any write, or the process is killed, in whatever state some
//! transactions are then. Checked at the end: of each transaction either every message is on every
//! topic, in order, and all its inputs are acked, or nothing of it is anywhere; what was confirmed
//! to the client is so; and nothing is left open or pending.
//!
//! `GEMINGA_TXN_SEEDS=from..to` runs other seeds.

use std::collections::{BTreeMap, BTreeSet};

use geminga_proto::pb::command_ack::AckType;
use geminga_proto::pb::command_subscribe::SubType;
use geminga_proto::pb::{CommandProducer, MessageIdData, TxnAction};
use geminga_stdx::Random;
use geminga_storage::disk::faulty::{Faults, FaultyDisk};

use crate::node::{Node, without_power};
use crate::wire::{Wire, bare, subscribe};

const INPUT: &str = "persistent://public/default/input";
const OUTPUTS: usize = 3;
const INPUTS: u64 = 40;
const HOUR: u64 = 3_600_000;

fn output(n: usize) -> String {
    format!("persistent://public/default/output-{n}")
}

/// What became of a transaction, as its client knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Asked(TxnAction),
    Told(TxnAction),
    Open,
}

#[derive(Debug)]
struct Attempt {
    inputs: Vec<u64>,
    /// Topic and number of each of its messages, in order.
    sent: Vec<(usize, u64)>,
    known: Known,
}

#[derive(Default)]
struct History {
    attempts: BTreeMap<u64, Attempt>,
    next_message: u64,
}

/// Works for so many transactions, or until something is refused.
async fn work(
    wire: &mut Wire,
    random: &mut Random,
    history: &mut History,
    count: u64,
) -> Result<(), String> {
    for n in 0..OUTPUTS {
        let producer = CommandProducer {
            topic: output(n),
            producer_id: n as u64,
            ..CommandProducer::default()
        };
        refused("a producer", wire.try_producer(producer).await)?;
    }
    let mut command = subscribe(9, "s", SubType::Shared);
    command.topic = INPUT.to_owned();
    refused("a consumer", wire.try_subscribe(command).await)?;
    wire.flow(9, 1_000).await;
    let mut held: Vec<(u64, MessageIdData)> = Vec::new();
    let mut open: Vec<u64> = Vec::new();
    for _ in 0..count {
        let txn = refused("a begin", wire.try_begin(HOUR).await)?;
        let mut attempt = Attempt {
            inputs: Vec::new(),
            sent: Vec::new(),
            known: Known::Open,
        };
        for _ in 0..random.below(4) {
            let topic = random.below(OUTPUTS as u64) as usize;
            let number = history.next_message;
            history.next_message += 1;
            attempt.sent.push((topic, number));
            let text = format!("{txn}:{number}");
            refused(
                "a message",
                wire.send_in(txn, topic as u64, number, &text).await,
            )?;
        }
        // What has come of the input and is nobody's yet.
        while let Some((at, id)) = wire.arrived().await {
            held.push((at, id));
        }
        for _ in 0..random.below(3) {
            let Some((at, id)) = held.pop() else { break };
            attempt.inputs.push(at);
            let acked = wire.ack_in(txn, 9, AckType::Individual, vec![id]).await;
            refused("an ack", acked)?;
        }
        history.attempts.insert(txn, attempt);
        open.push(txn);
        // Some stay open for a while, so that they overlap.
        while open.len() > random.below(4) as usize {
            let txn = open.remove(random.below(open.len() as u64) as usize);
            end(wire, random, history, txn).await?;
        }
    }
    Ok(())
}

fn refused<T, E: std::fmt::Debug>(what: &str, result: Result<T, E>) -> Result<T, String> {
    result.map_err(|error| format!("{what} was refused: {error:?}"))
}

async fn end(
    wire: &mut Wire,
    random: &mut Random,
    history: &mut History,
    txn: u64,
) -> Result<(), String> {
    let action = if random.one_in(3) {
        TxnAction::Abort
    } else {
        TxnAction::Commit
    };
    let attempt = history.attempts.get_mut(&txn).unwrap();
    attempt.known = Known::Asked(action);
    if random.one_in(8) {
        // Asked, and gone before the answer.
        wire.ask_end(txn, action).await;
        return Ok(());
    }
    refused("an end", wire.end(txn, action).await)?;
    attempt.known = Known::Told(action);
    Ok(())
}

async fn read(wire: &mut Wire, id: u64, topic: &str, name: &str) {
    let mut command = subscribe(id, name, SubType::Exclusive);
    command.topic = topic.to_owned();
    wire.subscribe(command).await;
    wire.flow(id, 100_000).await;
}

/// All that a topic has for readers.
async fn read_output(wire: &mut Wire, n: usize) -> Vec<String> {
    read(wire, n as u64, &output(n), "check").await;
    let last = bare(&wire.last_message_id(n as u64).await);
    let mut texts = Vec::new();
    if last.entry_id != u64::MAX {
        loop {
            let got = wire.message_of(n as u64).await;
            texts.push(got.text());
            if bare(&got.id) == last {
                break;
            }
        }
    }
    assert_eq!(wire.arrived_any(n as u64).await.map(|got| got.text()), None);
    texts
}

impl Wire {
    /// A MESSAGE that is here by the time a PING is answered.
    async fn arrived(&mut self) -> Option<(u64, MessageIdData)> {
        self.arrived_any(9)
            .await
            .map(|got| (got.text().parse().unwrap(), bare(&got.id)))
    }
}

async fn run(seed: u64) {
    let mut random = Random::new(seed);
    let mut disk = FaultyDisk::new(random.next_u64());
    let mut history = History::default();
    let node = Node::start(disk.clone()).await.expect("an empty disk");
    {
        let mut wire = node.connect().await;
        wire.producer(INPUT, 1, None).await;
        let mut command = subscribe(9, "s", SubType::Shared);
        command.topic = INPUT.to_owned();
        wire.subscribe(command).await;
        for n in 0..INPUTS {
            wire.publish(1, n, &n.to_string()).await;
            wire.receipt().await;
        }
    }
    node.end().await;
    disk = disk.after_kill();
    for _ in 0..4 {
        let Some(node) = Node::start(disk.clone()).await else {
            // Cut off while it started.
            disk = disk.after_crash();
            continue;
        };
        disk.set_faults(Faults {
            power_off_after_writes: Some(random.below(60)),
            ..Faults::default()
        });
        let mut wire = node.connect().await;
        let mut steps = Random::new(random.next_u64());
        let count = 1 + random.below(12);
        let working = work(&mut wire, &mut steps, &mut history, count);
        tokio::select! {
            done = working => {
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
    let node = Node::start(disk).await.expect("the disk is well again");
    let mut wire = node.connect().await;
    // What is open is aborted; what was decided stays so, whoever asks.
    for info in node.broker.slow_transactions(None, 0).await.unwrap() {
        let known = history
            .attempts
            .get(&info.number)
            .map(|attempt| attempt.known);
        assert!(
            !matches!(known, Some(Known::Told(_))),
            "seed {seed}: {info:?} is open, but {known:?}"
        );
        wire.abort(info.number).await;
    }
    let mut outputs: Vec<Vec<String>> = Vec::new();
    for n in 0..OUTPUTS {
        outputs.push(read_output(&mut wire, n).await);
    }
    let name = INPUT.parse().unwrap();
    let stats = node.broker.topic_stats(&name).await.unwrap();
    read(&mut wire, 8, INPUT, "s").await;
    let mut unacked = BTreeSet::new();
    for _ in 0..stats.subscriptions["s"].msg_backlog {
        unacked.insert(wire.message_of(8).await.text().parse::<u64>().unwrap());
    }
    assert_eq!(wire.arrived_any(8).await.map(|got| got.text()), None);
    let mut claimed: BTreeMap<u64, u64> = BTreeMap::new();
    let mut committed = BTreeSet::new();
    for (txn, attempt) in &history.attempts {
        let there: Vec<bool> = attempt
            .sent
            .iter()
            .map(|(topic, number)| outputs[*topic].contains(&format!("{txn}:{number}")))
            .collect();
        let asked = wire.end(*txn, TxnAction::Commit).await.is_ok();
        let happened = there.iter().all(|there| *there) && asked;
        if happened {
            committed.insert(*txn);
        } else {
            assert!(
                there.iter().all(|there| !there),
                "seed {seed}: {txn} happened in part: {attempt:?} {there:?}"
            );
        }
        match attempt.known {
            Known::Told(TxnAction::Commit) => {
                assert!(happened, "seed {seed}: {txn} was committed: {attempt:?}");
            }
            Known::Told(TxnAction::Abort) | Known::Asked(TxnAction::Abort) | Known::Open => {
                assert!(
                    !happened,
                    "seed {seed}: {txn} was not committed: {attempt:?}"
                );
            }
            Known::Asked(TxnAction::Commit) => {}
        }
        if happened {
            for input in &attempt.inputs {
                let other = claimed.insert(*input, *txn);
                assert_eq!(other, None, "seed {seed}: input {input} is acked twice");
            }
        }
    }
    for input in 0..INPUTS {
        assert_eq!(
            unacked.contains(&input),
            !claimed.contains_key(&input),
            "seed {seed}: input {input} is acked by {:?}; {history:?}",
            claimed.get(&input),
            history = history.attempts
        );
    }
    for (topic, texts) in outputs.iter().enumerate() {
        let numbers: Vec<u64> = texts
            .iter()
            .map(|text| text.split_once(':').unwrap().1.parse().unwrap())
            .collect();
        assert!(
            numbers.windows(2).all(|pair| pair[0] < pair[1]),
            "seed {seed}: order on {topic}: {numbers:?}"
        );
        for text in texts {
            let txn: u64 = text.split_once(':').unwrap().0.parse().unwrap();
            // One cut off before its client had noted it is the client's to know nothing of.
            if history.attempts.contains_key(&txn) {
                assert!(committed.contains(&txn), "seed {seed}: {text} of nobody");
            }
        }
        let name = output(topic).parse().unwrap();
        if node.broker.topic_exists(&name).await.unwrap() {
            let seen = node.broker.topic_transactions(&name).await.unwrap();
            assert_eq!(
                seen.ongoing, 0,
                "seed {seed}: {topic} has an open transaction"
            );
        }
    }
    let pending = node.broker.pending_transactions(&name, "s").await.unwrap();
    assert_eq!(pending, 0, "seed {seed}: acks are pending");
    drop(wire);
    node.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_happens_whole_or_not_at_all() {
    let seeds: Vec<u64> = match std::env::var("GEMINGA_TXN_SEEDS") {
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
        println!("GEMINGA_TXN_SEEDS={seed}..{}", seed + 1);
        run(seed).await;
    }
}
