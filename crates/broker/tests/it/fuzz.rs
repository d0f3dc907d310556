//! Random sessions, whole and damaged, against a broker that others use: nothing panics, every
//! connection ends, every question of a whole session is answered once, nothing is left behind, and
//! a witness goes on undisturbed.
//!
//! Deterministic: round `n` has the seed `n`. `GEMINGA_FUZZ_ROUNDS=100000` makes it a long run, from
//! `GEMINGA_SEED` on; a failure says which seed repeats it (with `GEMINGA_FUZZ_ROUNDS=1`).

pub(crate) mod sessions;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use geminga_proto::Command;
use geminga_proto::pb::command_subscribe::SubType;
use geminga_proto::pb::*;
use parking_lot::Mutex;

use crate::server::{Server, eventually};
use crate::wire::{TOPIC, Wire, subscribe};
use sessions::{Choices, SUBSCRIPTIONS, TOPICS, damage, piece, session};

const ROUNDS: u64 = 1_500;
const PATIENCE: Duration = Duration::from_secs(10);

fn number(variable: &str, otherwise: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap(),
        Err(_) => otherwise,
    }
}

/// Collects what panics on this thread, which all tasks of the test share.
fn watch_panics() -> Arc<Mutex<Vec<String>>> {
    let found = Arc::new(Mutex::new(Vec::new()));
    let (here, collected) = (std::thread::current().id(), found.clone());
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().id() == here {
            collected.lock().push(info.to_string());
        }
        before(info);
    }));
    found
}

#[tokio::test]
async fn random_sessions_disturb_nobody() {
    let (first, rounds) = (
        number("GEMINGA_SEED", 0),
        number("GEMINGA_FUZZ_ROUNDS", ROUNDS),
    );
    println!("rounds {first} to {}", first + rounds - 1);
    let panics = watch_panics();
    let server = Server::new().await;
    let mut witness = server.connect().await;
    witness.producer(TOPIC, 1, None).await;
    witness
        .subscribe(subscribe(1, "witness", SubType::Exclusive))
        .await;
    for seed in first..first + rounds {
        round(&server, seed).await;
        let found = panics.lock().join("\n");
        assert!(found.is_empty(), "GEMINGA_SEED={seed}: {found}");
        if seed % 16 == 0 {
            let text = seed.to_string();
            witness.publish(1, seed, &text).await;
            witness.receipt().await;
            witness.flow(1, 1).await;
            assert_eq!(witness.message().await.text(), text, "GEMINGA_SEED={seed}");
        }
    }
    nothing_is_left(&server).await;
}

async fn round(server: &Server, seed: u64) {
    let mut choices = Choices::seeded(seed);
    let commands = session(&mut choices);
    let mut pieces: Vec<_> = commands
        .iter()
        .map(|command| piece(command, &mut choices))
        .collect();
    let is_whole = seed.is_multiple_of(3);
    if !is_whole {
        for _ in 0..1 + choices.below(4) {
            damage(&mut pieces, &mut choices);
        }
    }
    let mut bytes = Vec::new();
    for piece in &pieces {
        piece.encode(&mut bytes);
    }
    if !is_whole && seed.is_multiple_of(7) {
        let cut = choices.below(bytes.len() + 1);
        bytes.truncate(cut);
    }
    let mut wire = server.connect().await;
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let (now, later) = rest.split_at((1 + choices.below(2_000)).min(rest.len()));
        wire.raw(now).await;
        rest = later;
        tokio::task::yield_now().await;
    }
    if is_whole {
        answered_once(&mut wire, &commands, seed).await;
    }
    wire.shut().await;
    let ended = tokio::time::timeout(PATIENCE, wire.raw_closed()).await;
    assert!(ended.is_ok(), "GEMINGA_SEED={seed}: it does not end");
}

/// Every request is answered once; one that opens something may be overtaken by its close.
async fn answered_once(wire: &mut Wire, commands: &[Command], seed: u64) {
    let mut due: HashMap<u64, bool> = commands
        .iter()
        .filter_map(|command| Some((asks(command)?, may_be_dropped(command))))
        .collect();
    let mut answers: HashMap<u64, usize> = HashMap::new();
    while due.values().any(|dropped| !dropped) {
        let next = tokio::time::timeout(PATIENCE, wire.poll()).await;
        let Ok(next) = next else {
            panic!("GEMINGA_SEED={seed}: not answered: {due:?} of {commands:?}");
        };
        let Some((command, _)) = next else {
            return;
        };
        let Some(request) = answers_to(&command) else {
            continue;
        };
        due.remove(&request);
        let count = answers.entry(request).or_default();
        *count += 1;
        let twice = matches!(&command, Command::ProducerSuccess(success)
            if success.producer_ready == Some(true));
        assert!(
            *count == 1 || (*count == 2 && twice),
            "GEMINGA_SEED={seed}: a second answer: {command:?}"
        );
    }
}

fn asks(command: &Command) -> Option<u64> {
    Some(match command {
        Command::Producer(c) => c.request_id,
        Command::Subscribe(c) => c.request_id,
        Command::Seek(c) => c.request_id,
        Command::CloseProducer(c) => c.request_id,
        Command::CloseConsumer(c) => c.request_id,
        Command::Unsubscribe(c) => c.request_id,
        Command::GetLastMessageId(c) => c.request_id,
        Command::ConsumerStats(c) => c.request_id,
        Command::Lookup(c) => c.request_id,
        Command::PartitionedMetadata(c) => c.request_id,
        Command::GetTopicsOfNamespace(c) => c.request_id,
        Command::WatchTopicList(c) => c.request_id,
        Command::WatchTopicListClose(c) => c.request_id,
        Command::GetSchema(c) => c.request_id,
        Command::GetOrCreateSchema(c) => c.request_id,
        Command::NewTxn(c) => c.request_id,
        Command::AddPartitionToTxn(c) => c.request_id,
        Command::AddSubscriptionToTxn(c) => c.request_id,
        Command::EndTxn(c) => c.request_id,
        Command::TcClientConnectRequest(c) => c.request_id,
        _ => return None,
    })
}

/// Not answered when a close overtakes it. A producer that waits for exclusive access has its
/// first answer at once.
fn may_be_dropped(command: &Command) -> bool {
    matches!(command, Command::Producer(_) | Command::Subscribe(_))
}

fn answers_to(command: &Command) -> Option<u64> {
    Some(match command {
        Command::Success(c) => c.request_id,
        Command::Error(c) => c.request_id,
        Command::ProducerSuccess(c) => c.request_id,
        Command::GetLastMessageIdResponse(c) => c.request_id,
        Command::ConsumerStatsResponse(c) => c.request_id,
        Command::LookupResponse(c) => c.request_id,
        Command::PartitionedMetadataResponse(c) => c.request_id,
        Command::GetTopicsOfNamespaceResponse(c) => c.request_id,
        Command::WatchTopicListSuccess(c) => c.request_id,
        Command::GetSchemaResponse(c) => c.request_id,
        Command::GetOrCreateSchemaResponse(c) => c.request_id,
        Command::NewTxnResponse(c) => c.request_id,
        Command::AddPartitionToTxnResponse(c) => c.request_id,
        Command::AddSubscriptionToTxnResponse(c) => c.request_id,
        Command::EndTxnResponse(c) => c.request_id,
        Command::TcClientConnectResponse(c) => c.request_id,
        _ => return None,
    })
}

/// All connections have ended: nobody holds a topic or a subscription any longer.
async fn nothing_is_left(server: &Server) {
    let mut last = server.connect().await;
    for (id, topic) in (0..).zip(TOPICS) {
        eventually("an exclusive producer", async || {
            let command = CommandProducer {
                topic: topic.to_owned(),
                producer_id: id,
                producer_access_mode: Some(ProducerAccessMode::Exclusive as i32),
                ..CommandProducer::default()
            };
            match last.try_producer(command).await {
                Ok(_) => Some(()),
                Err(error) if error.error == ServerError::ProducerFenced as i32 => None,
                // A schema, say.
                Err(_) => Some(()),
            }
        })
        .await;
        for (at, subscription) in (0..).zip(SUBSCRIPTIONS) {
            eventually("an exclusive consumer", async || {
                let command = CommandSubscribe {
                    topic: topic.to_owned(),
                    ..subscribe(10 * id + at, subscription, SubType::Exclusive)
                };
                match last.try_subscribe(command).await {
                    Ok(()) => Some(()),
                    Err(error) if error.error == ServerError::ConsumerBusy as i32 => None,
                    Err(_) => Some(()),
                }
            })
            .await;
        }
    }
}
