//! Several workers on one broker: one leads, they share the work, and when one dies the others take
//! over what it ran.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use geminga_client::{Client, Message};
use geminga_functions::{
    ComponentId, DrainStatus, Owner, Upload, Worker, WorkerConfig, WorkerError,
};
use geminga_model::FunctionConfig;
use geminga_stdx::Random;
use serde_json::json;

use crate::stage::{PATIENCE, Stage, numbers, receive, texts};

pub(crate) const LEASE: Duration = Duration::from_secs(2);

/// Waits until something is so.
pub(crate) async fn until(what: &str, is_so: impl Fn() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(
        tokio::time::timeout(PATIENCE, wait).await.is_ok(),
        "never: {what}"
    );
}

pub(crate) struct Other {
    pub(crate) worker: Worker,
    pub(crate) directory: tempfile::TempDir,
}

pub(crate) fn config(stage: &Stage, directory: PathBuf, name: &str) -> WorkerConfig {
    WorkerConfig {
        catalog_topic: Some(stage.catalog.clone()),
        worker_id: name.to_owned(),
        url: format!("http://{name}"),
        lease: LEASE,
        functions_directory: Some(directory.join("functions")),
        ..WorkerConfig::new(stage.client.clone(), directory)
    }
}

pub(crate) async fn another(stage: &Stage, name: &str) -> Other {
    another_by(stage, name, stage.client.clone()).await
}

/// One that reaches the broker by a client of its own.
pub(crate) async fn another_by(stage: &Stage, name: &str, client: Client) -> Other {
    let directory = tempfile::tempdir().expect("directory");
    let config = WorkerConfig {
        client,
        ..config(stage, directory.path().to_owned(), name)
    };
    let worker = Worker::start(config).await.expect("started");
    Other { worker, directory }
}

/// A stage whose own worker is gone: the others are started by the test.
pub(crate) async fn empty_stage() -> Stage {
    let stage = Stage::new().await;
    stage.worker.shutdown(Duration::from_secs(1)).await;
    stage
}

pub(crate) async fn uppercase(
    stage: &Stage,
    worker: &Worker,
    name: &str,
) -> (ComponentId, String, String) {
    let (input, output) = (
        stage.topic(&format!("{name}-in")),
        stage.topic(&format!("{name}-out")),
    );
    let config: FunctionConfig = serde_json::from_value(json!({
        "name": name, "sh": "f.sh", "inputs": [&input], "output": &output,
        "subscriptionPosition": "Earliest",
    }))
    .expect("a config");
    let code = Upload::new("f.sh", "process() { emit \"${MSG^^}\"; }");
    let id = worker
        .create(config.into(), Some(code))
        .await
        .expect("created");
    (id, input, output)
}

pub(crate) fn here(workers: &[&Other], ids: &[ComponentId]) -> Vec<usize> {
    let count = |other: &&Other| {
        let own = ids.iter().filter(|id| {
            other.worker.owner(id, 0) == Owner::Here
                && other
                    .worker
                    .status(id)
                    .is_ok_and(|status| status.num_running == 1)
        });
        own.count()
    };
    workers.iter().map(count).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_share_the_work_and_take_over_from_one_that_is_gone() {
    let stage = empty_stage().await;
    let first = another(&stage, "a").await;
    assert!(first.worker.leads());
    let mut functions = Vec::new();
    for n in 0..6 {
        functions.push(uppercase(&stage, &first.worker, &format!("f{n}")).await);
    }
    let ids: Vec<ComponentId> = functions.iter().map(|(id, ..)| id.clone()).collect();
    until("all run", || here(&[&first], &ids) == [6]).await;
    let second = another(&stage, "b").await;
    assert!(!second.worker.leads());
    assert_eq!(second.worker.leader_url().as_deref(), Some("http://a"));
    assert!(matches!(
        second.worker.delete(&ids[0]).await,
        Err(WorkerError::NotLeader)
    ));
    until("both know both", || {
        first.worker.members().len() == 2 && second.worker.members().len() == 2
    })
    .await;
    first.worker.rebalance().expect("asked");
    until("an even load", || here(&[&first, &second], &ids) == [3, 3]).await;
    // What moved still works, from a package that the second never got by upload.
    for (_, input, output) in &functions {
        let mut consumer = stage.consumer(output).await;
        stage.send(input, ["x"]).await;
        assert_eq!(texts(&receive(&mut consumer, 1).await), ["X"]);
    }
    // A new function goes to a worker as well, and misses nothing published after `create`.
    for name in ["g", "h"] {
        let (_, input, output) = uppercase(&stage, &first.worker, name).await;
        let mut consumer = stage.consumer(&output).await;
        stage.send(&input, ["y"]).await;
        assert_eq!(texts(&receive(&mut consumer, 1).await), ["Y"]);
    }

    // The leader dies without a word: the other leads, and runs everything.
    first.worker.vanish().await;
    until("the second leads", || second.worker.leads()).await;
    until("it runs everything", || here(&[&second], &ids) == [6]).await;
    for (_, input, output) in &functions {
        let mut consumer = stage.consumer(output).await;
        stage.send(input, ["z"]).await;
        assert_eq!(texts(&receive(&mut consumer, 1).await), ["Z"]);
    }
    assert!(second.directory.path().join("packages").exists());
    second.worker.shutdown(Duration::from_secs(2)).await;
    drop(first);
    stage.end().await;
}

/// As the guide promises: a lease and a beat of silence, and another runs what it ran a moment later. A new
/// leader has to hear for a lease who lives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_worker_ran_runs_again_within_seconds() {
    const MOMENT: Duration = Duration::from_secs(3);
    let stage = empty_stage().await;
    let first = another(&stage, "a").await;
    let second = another(&stage, "b").await;
    let third = another(&stage, "c").await;
    until("all know all", || first.worker.members().len() == 3).await;
    let mut ids = Vec::new();
    for n in 0..6 {
        ids.push(uppercase(&stage, &first.worker, &format!("f{n}")).await.0);
    }
    let even = [2, 2, 2];
    until("an even load", || {
        here(&[&first, &second, &third], &ids) == even
    })
    .await;
    let began = Instant::now();
    third.worker.vanish().await;
    until("the two run all", || {
        here(&[&first, &second], &ids).iter().sum::<usize>() == 6
    })
    .await;
    let took = began.elapsed();
    assert!(took < LEASE + LEASE / 5 + MOMENT, "{took:?}");

    let began = Instant::now();
    first.worker.vanish().await;
    until("the last runs all", || here(&[&second], &ids) == [6]).await;
    let took = began.elapsed();
    assert!(took < 2 * (LEASE + LEASE / 5) + MOMENT, "{took:?}");
    second.worker.shutdown(Duration::from_secs(2)).await;
    drop((first, third));
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_is_drained_and_comes_back() {
    let stage = empty_stage().await;
    let first = another(&stage, "a").await;
    let second = another(&stage, "b").await;
    let mut ids = Vec::new();
    for n in 0..4 {
        ids.push(uppercase(&stage, &first.worker, &format!("f{n}")).await.0);
    }
    until("an even load", || here(&[&first, &second], &ids) == [2, 2]).await;
    assert_eq!(
        first.worker.drain_status("b").expect("known"),
        DrainStatus::NotRun
    );
    assert!(matches!(
        first.worker.drain("nobody").await,
        Err(WorkerError::NoWorker(_))
    ));
    first.worker.drain("b").await.expect("asked");
    until("b is empty", || {
        first.worker.drain_status("b").expect("known") == DrainStatus::Success
    })
    .await;
    until("a runs all", || here(&[&first, &second], &ids) == [4, 0]).await;
    let count = |metric: &str| {
        let timings = first.worker.timings();
        let found = timings.into_iter().find(|timing| timing.metric == metric);
        found.expect("known").count
    };
    until("it is timed", || {
        count("drain_execution_time_total_ms") == 1
    })
    .await;
    assert!(count("schedule_strategy_execution_time_ms") >= 4);
    assert_eq!(count("rebalance_execution_time_total_ms"), 0);
    second.worker.shutdown(Duration::from_secs(2)).await;
    until("b is gone", || first.worker.members().len() == 1).await;
    let config = config(&stage, second.directory.path().to_owned(), "b");
    let again = Other {
        worker: Worker::start(config).await.expect("started"),
        directory: second.directory,
    };
    until("b is known", || first.worker.members().len() == 2).await;
    until("b is not drained any more", || {
        first.worker.drain_status("b").expect("known") == DrainStatus::NotRun
    })
    .await;
    first.worker.rebalance().expect("asked");
    until("an even load", || here(&[&first, &again], &ids) == [2, 2]).await;
    assert!(count("rebalance_execution_time_total_ms") >= 1);
    assert!(count("rebalance_strategy_execution_time_ms") >= 1);
    again.worker.shutdown(Duration::from_secs(2)).await;
    first.worker.shutdown(Duration::from_secs(2)).await;
    stage.end().await;
}

/// Workers die and come at random while messages flow: nothing is lost, and each instance runs once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_while_workers_come_and_go() {
    let seed = std::env::var("GEMINGA_SEED")
        .ok()
        .and_then(|s| s.parse().ok());
    let seed = seed.unwrap_or_else(|| Random::from_entropy().next_u64());
    println!("GEMINGA_SEED={seed}");
    let mut random = Random::new(seed);
    let stage = empty_stage().await;
    let mut living = vec![another(&stage, "w0").await, another(&stage, "w1").await];
    let (id, input, output) = uppercase(&stage, &living[0].worker, "f").await;
    let mut consumer = stage.consumer(&output).await;
    let mut dead = Vec::new();
    for round in 0..4 {
        stage
            .send(&input, numbers(round * 100..round * 100 + 100))
            .await;
        let gone = living.remove(random.below(living.len() as u64) as usize);
        if random.one_in(3) {
            gone.worker.shutdown(Duration::from_secs(2)).await;
        } else {
            gone.worker.vanish().await;
        }
        dead.push(gone);
        living.push(another(&stage, &format!("w{}", round + 2)).await);
    }
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 400 {
        seen.extend(texts(&receive(&mut consumer, 1).await));
    }
    until("one worker runs it", || {
        let running = living
            .iter()
            .filter(|other| other.worker.status(&id).is_ok_and(|s| s.num_running == 1));
        running.count() == 1 && living.iter().any(|other| other.worker.leads())
    })
    .await;
    for other in living {
        other.worker.shutdown(Duration::from_secs(2)).await;
    }
    drop(dead);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_that_does_not_start_is_undone_or_rolled_back() {
    let stage = Stage::new().await;
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let config: FunctionConfig = serde_json::from_value(json!({
        "name": "f", "sh": "f.sh", "inputs": [&input], "output": &output,
    }))
    .expect("a config");
    let code = |text: &str| Some(Upload::new("f.sh", text.to_owned()));
    let good = "process() { emit \"one $MSG\"; }";
    let id = stage
        .worker
        .create(config.into(), code(good))
        .await
        .expect("created");
    let mut consumer = stage.consumer(&output).await;
    let update = |options: &str| -> geminga_functions::Component {
        let config: FunctionConfig =
            serde_json::from_value(json!({ "customRuntimeOptions": options })).expect("a config");
        config.into()
    };
    let options = "{\"onFailedUpdate\":\"rollback\"}";
    let bad = stage
        .worker
        .update(&id, update(options), code("process() {"))
        .await;
    let error = bad.expect_err("it does not start");
    assert!(
        matches!(
            &error,
            WorkerError::RolledBack {
                version: 2,
                restored: 1,
                ..
            }
        ),
        "{error}"
    );
    stage.send(&input, ["a"]).await;
    assert_eq!(texts(&receive(&mut consumer, 1).await), ["one a"]);

    // Without the option it stays, and its owner goes back.
    let unchanged = || geminga_functions::Component::from(FunctionConfig::default());
    stage
        .worker
        .update(&id, unchanged(), code("process() {"))
        .await
        .expect("taken");
    stage.send(&input, ["b"]).await;
    let version = stage
        .worker
        .roll_back(&id, None)
        .await
        .expect("rolled back");
    assert_eq!(version, 5);
    assert_eq!(texts(&receive(&mut consumer, 1).await), ["one b"]);
    let versions: Vec<u64> = stage
        .worker
        .versions(&id)
        .expect("known")
        .iter()
        .map(|v| v.version)
        .collect();
    assert_eq!(versions, [5, 4, 3, 2, 1]);
    assert!(stage.worker.roll_back(&id, Some(99)).await.is_err());
    let same = stage.worker.update(&id, unchanged(), code(good)).await;
    assert!(
        same.expect_err("the same")
            .to_string()
            .contains("Update contains no change")
    );
    stage.end().await;
}

/// Where Pulsar's own workers keep their functions, a worker of ours makes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_topics_of_pulsars_own_workers_are_left_alone() {
    let stage = empty_stage().await;
    let directory = tempfile::tempdir().expect("directory");
    let on = |topic: &str| WorkerConfig {
        client: stage.apache(),
        catalog_topic: Some(topic.to_owned()),
        ..config(&stage, directory.path().to_owned(), "a")
    };
    // A function of theirs has no key, or the function's name alone where the topic is compacted.
    for key in [None, Some("public/default/theirs")] {
        let topic = stage.topic(&format!("metadata-{}", key.is_some()));
        let message = Message::new(&b"\x08\x01\x12\x01x"[..]);
        let message = match key {
            Some(key) => message.key(key),
            None => message,
        };
        let producer = stage.client.producer(&topic).build().await;
        let producer = producer.expect("a producer");
        producer.send(message).await.expect("sent");
        refused(&stage, on(&topic), 1).await;
    }
    // Theirs has nothing yet. Ours would be in its way.
    refused(&stage, on(geminga_functions::CATALOG_TOPIC), 0).await;
    // One of ours there goes on.
    let own = WorkerConfig {
        client: stage.client.clone(),
        ..on(geminga_functions::CATALOG_TOPIC)
    };
    let first = Worker::start(own).await.expect("started");
    uppercase(&stage, &first, "f").await;
    first.shutdown(Duration::from_secs(1)).await;
    let other = stage.topic("metadata");
    for topic in [geminga_functions::CATALOG_TOPIC, other.as_str()] {
        let worker = Worker::start(on(topic)).await.expect("started");
        assert!(worker.leads());
        worker.shutdown(Duration::from_secs(1)).await;
    }
    stage.end().await;
}

async fn refused(stage: &Stage, config: WorkerConfig, publishers: usize) {
    let topic = config.catalog_topic.clone().expect("a topic");
    let refused = Worker::start(config).await.expect_err("it is theirs");
    let is_known =
        matches!(&refused, WorkerError::PulsarsOwn { topic: which, .. } if *which == topic);
    assert!(is_known, "{refused}");
    let topic = topic.parse().expect("a topic");
    if publishers == 0 {
        let made = stage.broker().topic_stats(&topic).await;
        assert!(made.is_err(), "it was made by being looked at");
        return;
    }
    let stats = stage.broker().topic_stats(&topic).await.expect("known");
    assert!(stats.subscriptions.is_empty(), "{:?}", stats.subscriptions);
    assert_eq!(stats.publishers.len(), publishers);
}
