//! `kill -9` of a real process with a real directory: what it said was durable is there.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use geminga_stdx::Random;

use super::*;
use crate::AppendObserver;
use crate::ledger::contract::{ALL, Journal};

const DIRECTORY: &str = "GEMINGA_KILL_TEST_DIRECTORY";
const DURABILITY: &str = "GEMINGA_KILL_TEST_DURABILITY";

struct Tells;

impl AppendObserver for Tells {
    fn durable(&self, ledger: LedgerId, through: EntryId) {
        let line = format!("durable {ledger} {through}\n");
        // The parent closes the pipe when it has seen enough.
        let _ = std::io::stdout().write_all(line.as_bytes());
    }

    fn failed(&self, _: LedgerId, error: Arc<StoreError>) {
        panic!("{error}");
    }
}

fn entry(ledger: LedgerId, number: i64) -> Bytes {
    let mut data = format!("{ledger}/{number}/").into_bytes();
    data.resize(10 + (number as usize * 7919) % 700, b'.');
    data.into()
}

fn open(dir: &Path, durability: Durability) -> Arc<EmbeddedStore> {
    let config = EmbeddedConfig {
        queue_bytes_max: 64 << 10,
        ..small(durability)
    };
    EmbeddedStore::open(dir, config, Arc::new(Journal::default())).unwrap()
}

/// The process that is killed: appends for ever.
#[tokio::test]
#[ignore = "started by the test below"]
async fn child() {
    let Ok(dir) = std::env::var(DIRECTORY) else {
        return;
    };
    let os = std::env::var(DURABILITY).is_ok_and(|durability| durability == "os");
    let store = open(
        Path::new(&dir),
        if os {
            Durability::Os
        } else {
            Durability::Fsync
        },
    );
    let writer = store.create(Arc::new(Tells)).await.unwrap();
    let mut next = 0;
    loop {
        let run: Vec<Bytes> = (next..next + 3)
            .map(|number| entry(writer.id(), number))
            .collect();
        match writer.append(&run) {
            Ok(_) => next += 3,
            // More would only keep the machine busy.
            Err(AppendError::Busy) => std::thread::sleep(Duration::from_millis(1)),
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn a_killed_process_loses_nothing_that_it_said_was_durable() {
    let seed = Random::from_entropy().next_u64();
    println!("seed {seed}");
    let mut random = Random::new(seed);
    for durability in ["fsync", "os"] {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let mut known: Vec<(LedgerId, i64)> = Vec::new();
        for _ in 0..2 {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args([
                    "embedded::tests::kill::child",
                    "--exact",
                    "--ignored",
                    "--nocapture",
                ])
                .env(DIRECTORY, &data)
                .env(DURABILITY, durability)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let mut told = None;
            let wanted = 1 + random.below(60) as usize;
            let durable = lines.map_while(Result::ok).filter_map(|line| {
                let (ledger, through) = line.strip_prefix("durable ")?.split_once(' ')?;
                Some((LedgerId(ledger.parse().ok()?), through.parse().ok()?))
            });
            for pair in durable.take(wanted) {
                told = Some(pair);
            }
            child.kill().unwrap();
            child.wait().unwrap();
            known.push(told.expect("the child said something"));
            let store = match durability {
                "os" => open(&data, Durability::Os),
                _ => open(&data, Durability::Fsync),
            };
            for (ledger, through) in &known {
                let found = store.read(*ledger, EntryId(0), ALL).await.unwrap();
                assert!(
                    found.len() as i64 > *through,
                    "{ledger}: {} of {through}",
                    found.len()
                );
                assert_eq!(found.len() % 3, 0, "runs are whole");
                for (number, found) in found.iter().enumerate() {
                    assert_eq!(found.data, entry(*ledger, number as i64));
                }
            }
        }
    }
}
