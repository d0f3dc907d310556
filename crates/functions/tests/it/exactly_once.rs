//! Words counted once each, whatever is killed: host, worker and broker are processes of their own,
//! killed at random; a worker that is only paused wakes up when its successor is at work.
//!
//! The answer is that of one run in order without a crash: the same outputs in the same order on two
//! topics, and the same state. A run prints its seed; `GEMINGA_SEED` repeats its choices,
//! `GEMINGA_EVENTS` and `GEMINGA_KILLS` make it longer. What was measured so is in
//! `docs/functions-exactly-once.md`.

#![expect(clippy::print_stderr, reason = "a run tells its seed and how it goes")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use geminga_broker::{Broker, BrokerConfig};
use geminga_client::{Batching, Client, InitialPosition, Message, MessageId, Reader};
use geminga_functions::{ComponentId, Kind, Worker, WorkerConfig};
use geminga_model::FunctionConfig;
use geminga_stdx::{Clock, Random, Tasks};
use geminga_storage::{EmbeddedConfig, ManagedConfig, Storage};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::stage::jar;

const ROLE: &str = "GEMINGA_EXACTLY_ROLE";
const WORDS: u64 = 40;
const INPUT: &str = "persistent://public/default/words";
const OUTPUT: &str = "persistent://public/default/counts";
/// Every tenth of a word goes here too.
const TENTHS: &str = "persistent://public/default/tenths";

const BASH: &str = r#"process() {
  local n=0
  if state get "n-$MSG"; then n=$REPLY; fi
  n=$((n + 1))
  state put "n-$MSG" "$n"
  state incr "$MSG"
  emit "$MSG $n"
  if ((n % 10 == 0)); then emit -t persistent://public/default/tenths "$MSG $n"; fi
}"#;

const PYTHON: &str = r#"from pulsar import Function

class Count(Function):
    def process(self, word, context):
        context.incr_counter(word, 1)
        n = context.get_counter(word)
        if n % 10 == 0:
            context.publish("persistent://public/default/tenths", f"{word} {n}")
        return f"{word} {n}"
"#;

const GO: &str = r#"package main

import (
	"context"
	"fmt"

	"github.com/apache/pulsar/pulsar-function-go/pf"
)

func process(ctx context.Context, in []byte) ([]byte, error) {
	fc, _ := pf.FromContext(ctx)
	if err := fc.IncrCounter(string(in), 1); err != nil {
		return nil, err
	}
	n, err := fc.GetCounter(string(in))
	return fmt.Appendf(nil, "%s %d", in, n), err
}

func main() { pf.Start(process) }
"#;

const JAVA: &str = r#"
import org.apache.pulsar.client.api.Schema;
import org.apache.pulsar.functions.api.*;

public class Count implements Function<String, String> {
    public String process(String word, Context context) throws Exception {
        context.incrCounter(word, 1);
        long n = context.getCounter(word);
        if (n % 10 == 0) {
            context.newOutputMessage("persistent://public/default/tenths", Schema.STRING).value(word + " " + n).sendAsync();
        }
        return word + " " + n;
    }
}
"#;

/// What is counted with: the file, its code, further settings, and what it keeps.
struct Counter {
    file: &'static str,
    code: &'static str,
    fields: Value,
    has_state: bool,
    has_tenths: bool,
}

/// Runs as the broker or the worker of a test in another process.
#[tokio::test]
async fn role_of_another_process() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let read = |name: &str| std::env::var(name).expect(name);
    let directory = PathBuf::from(read("GEMINGA_EXACTLY_DIR"));
    let port: u16 = read("GEMINGA_EXACTLY_PORT").parse().expect("a port");
    match &*role {
        "broker" => broker(&directory, port).await,
        _ => {
            let worker = worker(&directory.join(role), port).await;
            let config = read("GEMINGA_EXACTLY_CONFIG");
            let config: FunctionConfig = serde_json::from_str(&config).expect("a config");
            // There already, after the first start.
            _ = worker.create(config.into(), None).await;
            std::future::pending::<()>().await;
        }
    }
}

async fn broker(directory: &Path, port: u16) {
    let tasks = Tasks::new();
    let data = directory.join("broker");
    let storage = Storage::open(
        &data,
        EmbeddedConfig::default(),
        ManagedConfig::default(),
        Clock::system(),
        &tasks,
    );
    let config = BrokerConfig {
        keep_alive_interval_seconds: 2,
        ..BrokerConfig::default()
    };
    let broker = Broker::start(config, storage.await.expect("storage"))
        .await
        .expect("broker");
    broker
        .listen(([127, 0, 0, 1], port).into())
        .await
        .expect("listens");
    std::future::pending::<()>().await;
}

fn client(port: u16) -> Client {
    Client::builder(format!("pulsar://127.0.0.1:{port}"))
        .backoff(Duration::from_millis(20), Duration::from_millis(500))
        .keep_alive(Duration::from_secs(2))
        .build()
}

async fn worker(directory: &Path, port: u16) -> Worker {
    loop {
        let mut config = WorkerConfig::new(client(port), directory);
        config.catalog_topic = Some("persistent://public/functions/exactly".to_owned());
        config.changelog_records_max = 500;
        match Worker::start(config).await {
            Ok(worker) => return worker,
            // The broker is being killed, too.
            Err(error) => eprintln!("worker: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The processes of one run.
struct Run {
    directory: tempfile::TempDir,
    port: u16,
    config: String,
    broker: Child,
    worker: Child,
    /// Workers that there were.
    workers: usize,
    /// One that was paused.
    zombie: Option<Child>,
}

impl Run {
    fn start(&self, role: &str) -> Child {
        spawn(role, self.directory.path(), self.port, &self.config)
    }

    fn kill(child: &mut Child) {
        child.kill().expect("killed");
        child.wait().expect("ended");
    }

    /// A host of the present worker, if one runs.
    fn host(&self) -> Option<u32> {
        let mut parents = BTreeMap::new();
        for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|n| n.parse::<u32>().ok())
            else {
                continue;
            };
            let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else {
                continue;
            };
            let parent = stat
                .rsplit(") ")
                .next()
                .and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
            parents.insert(pid, parent.unwrap_or(0));
        }
        let below = |mut pid: u32| loop {
            match parents.get(&pid) {
                Some(&parent) if parent == self.worker.id() => return true,
                Some(&parent) if parent > 1 => pid = parent,
                _ => return false,
            }
        };
        let is_host = |pid: &u32| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.windows(13).any(|part| part == b"GMG_FUNCTION=")
        };
        parents
            .keys()
            .copied()
            .find(|pid| below(*pid) && is_host(pid))
    }

    fn strike(&mut self, random: &mut Random) -> &'static str {
        if let Some(mut zombie) = self.zombie.take() {
            Self::kill(&mut zombie);
        }
        match random.below(8) {
            0..3 => match self.host() {
                Some(pid) => {
                    signal("-KILL", pid);
                    "host"
                }
                None => "no host",
            },
            3..5 => {
                Self::kill(&mut self.worker);
                self.worker = self.start(&format!("worker-{}", self.workers));
                "worker"
            }
            5..7 => {
                Self::kill(&mut self.broker);
                self.broker = self.start("broker");
                "broker"
            }
            _ => {
                signal("-STOP", self.worker.id());
                self.workers += 1;
                let successor = self.start(&format!("worker-{}", self.workers));
                self.zombie = Some(std::mem::replace(&mut self.worker, successor));
                "pause"
            }
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let zombie = self.zombie.as_mut();
        for child in [&mut self.broker, &mut self.worker]
            .into_iter()
            .chain(zombie)
        {
            _ = child.kill();
            _ = child.wait();
        }
    }
}

fn signal(name: &str, pid: u32) {
    let sent = Command::new("kill").args([name, &pid.to_string()]).status();
    // It may have ended by itself a moment ago.
    assert!(sent.is_ok(), "there is no kill: {sent:?}");
}

fn spawn(role: &str, directory: &Path, port: u16, config: &str) -> Child {
    Command::new(std::env::current_exe().expect("this program"))
        .args([
            "--exact",
            "exactly_once::role_of_another_process",
            "--nocapture",
        ])
        .env(ROLE, role)
        .env("GEMINGA_EXACTLY_DIR", directory)
        .env("GEMINGA_EXACTLY_PORT", port.to_string())
        .env("GEMINGA_EXACTLY_CONFIG", config)
        .stdout(Stdio::null())
        .spawn()
        .expect("starts")
}

fn number(name: &str, otherwise: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().expect(name),
        Err(_) => otherwise,
    }
}

async fn reader(client: &Client, topic: &str) -> Reader {
    // Keeps the topic from being trimmed.
    let keeper = client.consumer(topic).subscription("keep");
    let keeper = keeper.initial_position(InitialPosition::Earliest).build();
    keeper.await.expect("kept").close().await.expect("closed");
    let reader = client.reader(topic).start(MessageId::EARLIEST).build();
    reader.await.expect("reader")
}

async fn count(counter: Counter) {
    let seed = number("GEMINGA_SEED", Random::from_entropy().next_u64());
    let (events, kills) = (number("GEMINGA_EVENTS", 1500), number("GEMINGA_KILLS", 4));
    eprintln!(
        "{}: GEMINGA_SEED={seed} GEMINGA_EVENTS={events} GEMINGA_KILLS={kills}",
        counter.file
    );
    let mut random = Random::new(seed);
    let directory = tempfile::tempdir().expect("directory");
    let mut code = directory.path().join(counter.file);
    std::fs::write(&code, counter.code).expect("written");
    if counter.file.ends_with(".java") {
        code = jar(&code).await;
    }
    let mut config = json!({"name": "count", "inputs": [INPUT], "output": OUTPUT,
        "subscriptionPosition": "Earliest", "processingGuarantees": "EFFECTIVELY_ONCE"});
    for (field, value) in counter.fields.as_object().expect("fields") {
        config[field] = match value == "CODE" {
            true => json!(code),
            false => value.clone(),
        };
    }
    let port = std::net::TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .port();
    let config = config.to_string();
    let broker = spawn("broker", directory.path(), port, &config);
    let client = client(port);
    client
        .connect(Duration::from_secs(30))
        .await
        .expect("a broker");
    let mut outputs = reader(&client, OUTPUT).await;
    let mut tenths = reader(&client, TENTHS).await;
    drop(reader(&client, INPUT).await);

    // The answer: what one run in order would make of the words.
    let (mut expected, mut expected_tenths) = (Vec::new(), Vec::new());
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let batching = Batching {
        max_messages: 1 + usize::try_from(random.below(200)).expect("small"),
        ..Batching::default()
    };
    let input = client.producer(INPUT).batching(batching).build();
    let input = input.await.expect("producer");
    for _ in 0..events {
        let word = format!("w{}", random.below(WORDS));
        let n = counts.entry(word.clone()).or_default();
        *n += 1;
        let text = match counter.has_state {
            true => format!("{word} {n}"),
            false => word.clone(),
        };
        if n.is_multiple_of(10) {
            expected_tenths.push(text.clone());
        }
        expected.push(text);
        input.post(Message::new(word)).await.expect("taken");
    }
    input.close().await.expect("sent");

    let worker = spawn("worker-0", directory.path(), port, &config);
    let mut run = Run {
        directory,
        port,
        config,
        broker,
        worker,
        workers: 0,
        zombie: None,
    };
    let mut strikes: Vec<u64> = (0..kills).map(|_| random.below(events)).collect();
    strikes.sort_unstable();
    let mut strikes = strikes.into_iter().peekable();
    let began = Instant::now();
    let deadline = began + Duration::from_secs(90 + events / 200 + kills * 25);
    let mut got = 0;
    while got < expected.len() {
        let batch = tokio::time::timeout_at(deadline, outputs.next_batch(1000)).await;
        let batch = batch.unwrap_or_else(|_| panic!("seed {seed}: {got} of {events} came"));
        for message in batch.expect("open") {
            let text = String::from_utf8_lossy(&message.payload).into_owned();
            assert_eq!(Some(&text), expected.get(got), "seed {seed}: output {got}");
            got += 1;
        }
        while strikes.next_if(|at| *at <= got as u64).is_some() {
            let what = run.strike(&mut random);
            eprintln!(
                "{:7.1} s: {got} of {events}, {what}",
                began.elapsed().as_secs_f64()
            );
            if what == "pause" {
                // Long enough for the successor to take over.
                tokio::time::sleep(Duration::from_secs(6)).await;
                signal("-CONT", run.zombie.as_ref().expect("paused").id());
            }
        }
    }
    eprintln!("{:7.1} s: all outputs", began.elapsed().as_secs_f64());
    if counter.has_tenths {
        for (at, wanted) in expected_tenths.iter().enumerate() {
            let message = tokio::time::timeout_at(deadline, tenths.next()).await;
            let message = message.expect("in time").expect("open");
            let text = String::from_utf8_lossy(&message.payload).into_owned();
            assert_eq!(&text, wanted, "seed {seed}: tenth {at}");
        }
    }
    // What is not committed by now must never be: the last holder reads what there is.
    run.zombie.take().iter_mut().for_each(Run::kill);
    Run::kill(&mut run.worker);
    if counter.has_state {
        let last = self::worker(&run.directory.path().join("last"), port).await;
        let id = ComponentId::new(Kind::Function, "public", "default", "count");
        loop {
            let status = last.status(&id).expect("there");
            if status.num_running == 1 {
                break;
            }
            assert!(Instant::now() < deadline, "seed {seed}: {status:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for (word, wanted) in &counts {
            let value = last
                .state_get(&id, word)
                .await
                .expect("counted")
                .number_value;
            assert_eq!(
                value,
                i64::try_from(*wanted).ok(),
                "seed {seed}: state of {word}"
            );
        }
        last.shutdown(Duration::from_secs(5)).await;
    }
    for reader in [&mut outputs, &mut tenths] {
        let more = tokio::time::timeout(Duration::from_millis(500), reader.next()).await;
        assert!(more.is_err(), "seed {seed}: one too many: {more:?}");
    }
}

#[tokio::test]
async fn bash_counts_each_word_once() {
    count(Counter {
        file: "count.sh",
        code: BASH,
        fields: json!({"sh": "CODE"}),
        has_state: true,
        has_tenths: true,
    })
    .await;
}

#[tokio::test]
async fn python_counts_each_word_once() {
    count(Counter {
        file: "count.py",
        code: PYTHON,
        fields: json!({"py": "CODE", "className": "count.Count"}),
        has_state: true,
        has_tenths: true,
    })
    .await;
}

#[tokio::test]
async fn go_counts_each_word_once() {
    count(Counter {
        file: "main.go",
        code: GO,
        fields: json!({"go": "CODE"}),
        has_state: true,
        has_tenths: false,
    })
    .await;
}

#[tokio::test]
async fn java_counts_each_word_once() {
    count(Counter {
        file: "Count.java",
        code: JAVA,
        fields: json!({"jar": "CODE", "className": "Count"}),
        has_state: true,
        has_tenths: true,
    })
    .await;
}

#[tokio::test]
async fn a_tool_gets_each_word_once() {
    count(Counter {
        file: "cat.sh",
        code: "exec cat\n",
        fields: json!({"exec": "/bin/cat", "customRuntimeOptions": "{\"mode\":\"stream\"}"}),
        has_state: false,
        has_tenths: false,
    })
    .await;
}
