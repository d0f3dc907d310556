//! One column under way: a function of one runtime on a stage, and what was seen of its fields.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use geminga_broker::Broker;
use geminga_client::{Consumer, InitialPosition, Schema};
use geminga_functions::{ComponentId, FunctionState};
use geminga_model::{FunctionConfig, TopicName};
use serde_json::{Value, json};

use crate::stage::{Stage, receive, texts};

pub(super) struct Case<'a> {
    pub(super) stage: &'a Stage,
    pub(super) runtime: &'static str,
    pub(super) code: PathBuf,
    pub(super) window_code: PathBuf,
    pub(super) seen: BTreeSet<String>,
    pub(super) number: usize,
}

impl Case<'_> {
    pub(super) fn see(&mut self, fields: &[&str]) {
        self.seen
            .extend(fields.iter().map(|field| (*field).to_owned()));
    }

    /// Whether it is a guest in WebAssembly, which is no process.
    pub(super) fn is_guest(&self) -> bool {
        matches!(self.runtime, "wasm" | "component")
    }

    /// What the configuration calls its runtime.
    pub(super) fn kind(&self) -> String {
        match self.is_guest() {
            true => "WASM".to_owned(),
            false => self.runtime.to_uppercase(),
        }
    }

    pub(super) fn code_field(&self) -> &'static str {
        match self.runtime {
            "bash" => "sh",
            "python" => "py",
            "java" => "jar",
            "wasm" | "component" => "wasm",
            other => other,
        }
    }

    /// The class in the code, where the language has some.
    pub(super) fn class(&self) -> Option<&'static str> {
        match self.runtime {
            "python" => Some("Echo.Echo"),
            "java" => Some("Echo"),
            _ => None,
        }
    }

    pub(super) fn topic(&self, name: &str) -> String {
        self.stage
            .topic(&format!("{name}-{}-{}", self.runtime, self.number))
    }

    /// Makes a function with these fields beside the code; topics are `in` and `out` unless given.
    pub(super) async fn make(&mut self, given: Value) -> ComponentId {
        let config: FunctionConfig = serde_json::from_value(self.config(given)).expect("a config");
        self.stage
            .worker
            .create(config.into(), None)
            .await
            .expect("created")
    }

    pub(super) fn config(&mut self, given: Value) -> Value {
        let windows = given.get("windowConfig").is_some();
        let code = if windows {
            &self.window_code
        } else {
            &self.code
        };
        let mut all = json!({"name": format!("{}-{}", self.runtime, self.number), "output": self.topic("out"),
            self.code_field(): code});
        if matches!(self.runtime, "python" | "java") {
            all["className"] = json!(if windows && self.runtime == "java" {
                Some("Window")
            } else {
                self.class()
            });
        }
        if ![
            "inputs",
            "inputSpecs",
            "topicsPattern",
            "customSchemaInputs",
            "customSerdeInputs",
        ]
        .iter()
        .any(|field| given.get(field).is_some())
        {
            all["inputs"] = json!([self.topic("in")]);
        }
        for (field, value) in given.as_object().expect("fields") {
            match value.is_null() {
                true => drop(all.as_object_mut().and_then(|all| all.remove(field))),
                false => all[field] = value.clone(),
            }
        }
        self.number += 1;
        all
    }

    pub(super) async fn outputs(&self, topic: &str, count: usize) -> Vec<String> {
        let mut consumer = self.stage.consumer(topic).await;
        let got = texts(&receive(&mut consumer, count).await);
        consumer.close().await.expect("closed");
        got
    }

    /// What a topic's messages are.
    pub(super) async fn schema(&self, topic: &str) -> Option<Schema> {
        self.stage.client.schema(topic).await.expect("answered")
    }

    pub(super) async fn subscription(&self, topic: &str, name: &str) -> Value {
        let broker: &Broker = self.stage.broker();
        let topic: TopicName = topic.parse().expect("a topic");
        let stats = broker.topic_stats(&topic).await.expect("stats");
        let stats = serde_json::to_value(stats).expect("JSON");
        stats["subscriptions"][name].clone()
    }

    /// The subscription's first consumer, when it has asked for so many messages: that comes after it subscribed.
    pub(super) async fn permitted(&self, topic: &str, name: &str, permits: i64) -> Value {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let consumer = self.subscription(topic, name).await["consumers"][0].clone();
            if consumer["availablePermits"] == permits {
                return consumer;
            }
            assert!(
                Instant::now() < deadline,
                "no {permits} permits: {consumer}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// What holds up a function that is told to `wait:` for it.
    pub(super) fn gate(&self) -> Gate {
        let name = format!("gate-{}", self.number);
        match self.is_guest() {
            true => Gate::State(name),
            false => Gate::File(self.stage.directory.path().join(name)),
        }
    }

    pub(super) async fn open(&self, gate: &Gate, id: &ComponentId) {
        match gate {
            Gate::File(path) => std::fs::write(path, "").expect("opened"),
            Gate::State(key) => {
                let open = FunctionState {
                    key: key.clone(),
                    string_value: Some("open".to_owned()),
                    ..FunctionState::default()
                };
                let opened = self.stage.worker.state_put(id, open).await;
                opened.expect("opened");
            }
        }
    }
}

/// A process sees a file appear; a guest, which sees none, a key of its state.
pub(super) enum Gate {
    File(PathBuf),
    State(String),
}

impl Gate {
    /// The message that waits for it.
    pub(super) fn message(&self) -> String {
        match self {
            Self::File(path) => format!("wait:{}", path.display()),
            Self::State(key) => format!("wait:{key}"),
        }
    }
}

/// A subscription that has all there is.
pub(super) async fn keep(stage: &Stage, topic: &str) -> Consumer {
    let consumer = stage.client.consumer(topic).subscription("keep");
    let consumer = consumer.initial_position(InitialPosition::Earliest);
    consumer.build().await.expect("consumer")
}
