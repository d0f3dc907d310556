//! What very many topics cost. Too long for each run: `cargo test -p geminga-storage -- --ignored many`.

use crate::Storage;
use crate::config::ManagedConfig;
use crate::embedded::EmbeddedConfig;
use crate::managed::{Initial, OpenOptions, Properties};
use geminga_stdx::tasks::OnError;
use geminga_stdx::{Clock, Tasks};
use std::convert::Infallible;
use std::time::Instant;

const TOPICS: usize = 100_000;
const CALLERS: usize = 256;

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = status.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute; a measurement"]
async fn many_topics_are_made_fast_and_stay_small() {
    let dir = tempfile::tempdir().unwrap();
    let open = || async {
        let (engine, managed) = (EmbeddedConfig::default(), ManagedConfig::default());
        let tasks = Tasks::new();
        let clock = Clock::system();
        Storage::open(dir.path(), engine, managed, clock, &tasks)
            .await
            .unwrap()
    };
    let storage = open().await;
    let before = resident_bytes();
    let begin = Instant::now();
    let callers = Tasks::new();
    for caller in 0..CALLERS {
        let topics = storage.topics.clone();
        callers.spawn("caller", OnError::Log, async move {
            for i in (caller..TOPICS).step_by(CALLERS) {
                let options = OpenOptions {
                    create: true,
                    ..OpenOptions::default()
                };
                let name = format!("public/default/persistent/topic-number-{i}");
                let topic = topics.open(&name, options).await.unwrap();
                if i % 2 == 0 {
                    let cursor =
                        topic.open_cursor("subscription", Initial::Latest, Properties::new());
                    cursor.await.unwrap();
                }
            }
            Ok::<(), Infallible>(())
        });
    }
    assert!(callers.join(std::time::Duration::from_secs(300)).await);
    let took = begin.elapsed();
    let each = resident_bytes().saturating_sub(before) / TOPICS;
    eprintln!(
        "{TOPICS} topics, half of them with a cursor, by {CALLERS} callers: {took:?}, {each} B each"
    );
    assert_eq!(storage.topics.stats().topics_loaded, 0);
    storage.close().await.unwrap();
    drop(storage);

    let begin = Instant::now();
    let storage = open().await;
    eprintln!("opened again in {:?}", begin.elapsed());
    let begin = Instant::now();
    for i in 0..1000 {
        let name = format!("public/default/persistent/topic-number-{}", i * 97);
        storage
            .topics
            .open(&name, OpenOptions::default())
            .await
            .unwrap();
    }
    eprintln!("loading a topic: {:?}", begin.elapsed() / 1000);
    assert_eq!(
        storage
            .topics
            .list("public/default/persistent")
            .await
            .unwrap()
            .len(),
        TOPICS
    );
    assert!(each < 1000, "{each} B a topic");
    storage.close().await.unwrap();
}
