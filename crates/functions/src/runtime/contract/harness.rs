//! What the suite needs of any runtime, shared with the crates that bring one of their own
//! (`crates/wasm/tests` includes this file and `cases.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use geminga_client::Schema;
use geminga_stdx::Tasks;
use parking_lot::Mutex;

use super::{
    BoxFuture, Delivery, Failure, Host, LogLine, Message, Outcome, Output, SchemaOf, Services,
    StateChange, Verdict,
};

/// What a host asked for, kept for the test to look at.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) logs: Mutex<Vec<LogLine>>,
    pub(crate) metrics: Mutex<Vec<(String, f64)>>,
    pub(crate) state: Mutex<BTreeMap<String, Bytes>>,
    /// How often a value was asked for.
    pub(crate) asked: AtomicU64,
    pub(crate) acks: Mutex<Vec<String>>,
    /// Outside any message.
    pub(crate) published: Mutex<Vec<Output>>,
    pub(crate) restarts: Mutex<Vec<String>>,
    /// The schemas of any topic, by version, or why there is none now; and which were asked for.
    pub(crate) schemas: Mutex<BTreeMap<u64, Result<Bytes, String>>>,
    pub(crate) schemas_asked: Mutex<Vec<u64>>,
    pub(crate) declared: Mutex<Vec<(SchemaOf, Schema)>>,
}

impl Services for Seen {
    fn declared(&self, of: SchemaOf, schema: Schema) {
        self.declared.lock().push((of, schema));
    }
    fn log(&self, line: LogLine) {
        self.logs.lock().push(line);
    }
    fn metric(&self, name: &str, value: f64) {
        self.metrics.lock().push((name.to_owned(), value));
    }
    fn state_get(&self, key: &str) -> Option<Bytes> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.state.lock().get(key).cloned()
    }
    fn state_apply(&self, changes: &[StateChange]) {
        let mut state = self.state.lock();
        for change in changes {
            match change {
                StateChange::Put(key, value) => drop(state.insert(key.clone(), value.clone())),
                StateChange::Delete(key) => drop(state.remove(key)),
                StateChange::Increment(key, by) => {
                    let value = counted(state.get(key), *by);
                    state.insert(key.clone(), value);
                }
            }
        }
    }
    fn acknowledge(&self, message_id: &str) {
        self.acks.lock().push(message_id.to_owned());
    }
    fn publish(&self, output: Output) {
        self.published.lock().push(output);
    }
    fn schema(
        &self,
        _topic: &str,
        version: Option<Bytes>,
    ) -> BoxFuture<'static, Result<Option<Bytes>, String>> {
        let number = version.map_or(0, |v| {
            u64::from_be_bytes(v[..].try_into().expect("8 bytes"))
        });
        self.schemas_asked.lock().push(number);
        let found = self.schemas.lock().get(&number).cloned().transpose();
        Box::pin(async { found })
    }
    fn restarted(&self, reason: &str) {
        self.restarts.lock().push(reason.to_owned());
    }
}

/// The kinds of host under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Bash,
    BashPlain,
    Python,
    Spawn,
    Json,
    Go,
    Java,
    /// A WASI command and a component: `crates/wasm` runs the suite for them.
    Wasm,
    Component,
}

/// A started function with what it needs to live.
pub(crate) struct Started {
    pub(crate) host: Box<dyn Host>,
    pub(crate) seen: Arc<Seen>,
    pub(crate) tasks: Tasks,
    pub(crate) _directory: tempfile::TempDir,
    pub(crate) next: u64,
}

impl Started {
    pub(crate) async fn send(&mut self, message: Message) -> u64 {
        let ticket = self.next;
        self.next += 1;
        self.host
            .deliver(vec![Delivery {
                ticket,
                message: Arc::new(message),
            }])
            .await
            .expect("delivered");
        ticket
    }

    pub(crate) async fn outcomes(&mut self, count: usize) -> Vec<Outcome> {
        let mut all = Vec::new();
        while all.len() < count {
            let some = tokio::time::timeout(Duration::from_secs(20), self.host.outcomes())
                .await
                .expect("an outcome in time")
                .expect("not broken");
            all.extend(some);
        }
        all.sort_by_key(|outcome| outcome.ticket);
        all
    }

    /// Sends one payload and gives what became of it.
    pub(crate) async fn ask(&mut self, payload: &[u8]) -> Outcome {
        self.send(text(payload)).await;
        self.outcomes(1).await.remove(0)
    }

    pub(crate) async fn stop(mut self) {
        self.host.stop(Duration::from_secs(5)).await;
        drop(self.host);
        self.tasks.cancel();
        assert!(self.tasks.join(Duration::from_secs(5)).await, "tasks end");
    }

    /// Waits until `ready` says so.
    pub(crate) async fn until(&self, what: &str, ready: impl Fn(&Seen) -> bool) {
        until(what, || ready(&self.seen)).await;
    }
}

pub(crate) async fn until(what: &str, ready: impl Fn() -> bool) {
    let wait = async {
        while !ready() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(15), wait).await;
    assert!(in_time.is_ok(), "never happened: {what}");
}

pub(crate) fn text(payload: &[u8]) -> Message {
    Message {
        topic: "persistent://public/default/in".into(),
        id: "1:2:-1".into(),
        payload: Bytes::copy_from_slice(payload),
        partition: -1,
        ..Message::default()
    }
}

pub(crate) fn payloads(outcome: &Outcome) -> Vec<&[u8]> {
    outcome
        .outputs
        .iter()
        .map(|output| &output.payload[..])
        .collect()
}

pub(crate) fn failure(outcome: &Outcome) -> &Failure {
    match &outcome.verdict {
        Verdict::Failed(failure) => failure,
        other => panic!("not failed: {other:?}"),
    }
}

/// A counter's value, changed.
pub(crate) fn counted(value: Option<&Bytes>, by: i64) -> Bytes {
    let now = value.map_or(0, |v| {
        i64::from_be_bytes(v[..].try_into().expect("8 bytes"))
    });
    Bytes::copy_from_slice(&(now + by).to_be_bytes())
}
