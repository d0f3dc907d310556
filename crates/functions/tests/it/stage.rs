//! A broker, a client, a worker, and short ways to use them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use geminga_broker::{Broker, BrokerConfig};
use geminga_client::transport::{Connecting, Io};
use geminga_client::{Batching, Client, Consumer, InitialPosition, Message, ReceivedMessage};
use geminga_functions::{Component, ComponentId, MakeRuntime, SecretRules, Worker, WorkerConfig};
use geminga_model::{FunctionConfig, SinkConfig, SourceConfig};
use geminga_stdx::{Clock, Random, Tasks};
use geminga_storage::{ManagedConfig, Storage};
use serde_json::{Value, json};
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf,
};
use tokio::sync::watch;

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Stage {
    pub(crate) client: Client,
    pub(crate) worker: Worker,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) catalog: String,
    records_max: u64,
    wasm: Option<MakeRuntime>,
    /// What secrets may name, from the next worker on.
    pub(crate) secrets: SecretRules,
    unique: String,
    server: Option<(Broker, Tasks)>,
}

impl Stage {
    pub(crate) async fn new() -> Self {
        Self::with_changelogs_of(10_000).await
    }

    /// A worker that rewrites its changelogs after so many records.
    pub(crate) async fn with_changelogs_of(records_max: u64) -> Self {
        Self::with(records_max, BrokerConfig::default(), None).await
    }

    /// A broker that takes messages of this size.
    pub(crate) async fn with_messages_of(max_message_size: usize) -> Self {
        let config = BrokerConfig {
            max_message_size,
            ..BrokerConfig::default()
        };
        Self::with(10_000, config, None).await
    }

    /// A broker with these settings.
    pub(crate) async fn on(config: BrokerConfig) -> Self {
        Self::with(10_000, config, None).await
    }

    /// A worker that has this for functions in WebAssembly.
    #[allow(dead_code, reason = "for the tests of that runtime's crate")]
    pub(crate) async fn with_wasm(runtime: MakeRuntime) -> Self {
        Self::with(10_000, BrokerConfig::default(), Some(runtime)).await
    }

    pub(crate) async fn with(
        records_max: u64,
        config: BrokerConfig,
        wasm: Option<MakeRuntime>,
    ) -> Self {
        let unique = Random::from_entropy().name(8);
        let (client, server) = if let Ok(url) = std::env::var("GEMINGA_TEST_SERVICE_URL") {
            (Client::builder(url).build(), None)
        } else {
            let tasks = Tasks::new();
            let storage = Storage::memory(ManagedConfig::default(), Clock::system(), &tasks)
                .await
                .expect("storage");
            let broker = Broker::start(config, storage).await.expect("broker");
            let pipe = broker.clone();
            let connector = move |_: &str| -> Connecting {
                let io = Io::new(pipe.connect_in_process());
                Box::pin(async move { Ok(io) })
            };
            let client = Client::builder("pulsar://in-process:6650")
                .connector(Arc::new(connector))
                .build();
            (client, Some((broker, tasks)))
        };
        let directory = tempfile::tempdir().expect("directory");
        let catalog = format!("persistent://public/functions/metadata-{unique}");
        let secrets = SecretRules::default();
        let worker = start(
            &client,
            directory.path(),
            &catalog,
            records_max,
            (&wasm, &secrets),
        );
        let worker = worker.await;
        Self {
            client,
            worker,
            directory,
            catalog,
            records_max,
            wasm,
            secrets,
            unique,
            server,
        }
    }

    /// A client of its own, whose wire is held up while the gate is shut (`false`).
    pub(crate) fn gated(&self) -> (Client, watch::Sender<bool>) {
        let (gate, opened) = watch::channel(true);
        (self.client_by(&opened, pass), gate)
    }

    /// A client to which the broker says that it is Apache Pulsar.
    pub(crate) fn apache(&self) -> Client {
        self.client_by(&watch::channel(true).1, pass_as_apache)
    }

    /// A client of its own, to which what the broker says is passed on by `carry`.
    fn client_by<F, D>(&self, opened: &watch::Receiver<bool>, carry: D) -> Client
    where
        F: Future<Output = ()> + Send + 'static,
        D: Fn(ReadHalf<DuplexStream>, WriteHalf<DuplexStream>, watch::Receiver<bool>) -> F,
        D: Send + Sync + 'static,
    {
        let (broker, opened, tasks) = (self.broker().clone(), opened.clone(), Tasks::new());
        let connector = move |_: &str| -> Connecting {
            let (own, far) = tokio::io::duplex(64 * 1024);
            let (from_client, to_client) = tokio::io::split(far);
            let (from_broker, to_broker) = tokio::io::split(broker.connect_in_process());
            let up = pass(from_client, to_broker, opened.clone());
            let down = carry(from_broker, to_client, opened.clone());
            tasks.spawn_cancellable("wire up", up);
            tasks.spawn_cancellable("wire down", down);
            Box::pin(async move { Ok(Io::new(own)) })
        };
        Client::builder("pulsar://in-process:6650")
            .connector(Arc::new(connector))
            .build()
    }

    /// The broker, where it is in this process.
    pub(crate) fn broker(&self) -> &Broker {
        &self.server.as_ref().expect("a broker in this process").0
    }

    /// A worker on the same catalogue, after the first has gone.
    pub(crate) async fn another_worker(&mut self) {
        self.worker = start(
            &self.client,
            self.directory.path(),
            &self.catalog,
            self.records_max,
            (&self.wasm, &self.secrets),
        )
        .await;
    }

    pub(crate) fn topic(&self, name: &str) -> String {
        format!("persistent://public/default/{name}-{}", self.unique)
    }

    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    }

    pub(crate) async fn function(&self, name: &str, fields: Value) -> ComponentId {
        self.try_function(name, fields).await.expect("created")
    }

    /// A function whose `sh` or `py` holds the code itself.
    pub(crate) async fn try_function(
        &self,
        name: &str,
        fields: Value,
    ) -> Result<ComponentId, geminga_functions::WorkerError> {
        let mut all = json!({"name": format!("{name}-{}", self.unique)});
        for (field, value) in fields.as_object().expect("fields") {
            all[field] = value.clone();
        }
        for (field, ending) in [("sh", "sh"), ("py", "py")] {
            if let Some(code) = all.get(field).and_then(Value::as_str) {
                let path = self.file(&format!("{name}.{ending}"), code);
                all[field] = json!(path);
            }
        }
        let config: FunctionConfig = serde_json::from_value(all).expect("a config");
        self.worker.create(config.into(), None).await
    }

    pub(crate) async fn source(&self, fields: Value) -> ComponentId {
        let config: SourceConfig = serde_json::from_value(fields).expect("a config");
        self.worker
            .create(Component::from(config), None)
            .await
            .expect("created")
    }

    pub(crate) async fn sink(&self, fields: Value) -> ComponentId {
        let config: SinkConfig = serde_json::from_value(fields).expect("a config");
        self.worker
            .create(Component::from(config), None)
            .await
            .expect("created")
    }

    pub(crate) async fn send(
        &self,
        topic: &str,
        payloads: impl IntoIterator<Item = impl Into<String>>,
    ) {
        // A batch goes to one consumer whole: these are spread.
        let producer = self.client.producer(topic).batching(Batching::off());
        let producer = producer.build().await.expect("producer");
        for payload in payloads {
            producer
                .post(Message::new(payload.into().into_bytes()))
                .await
                .expect("taken");
        }
        producer.close().await.expect("sent");
    }

    pub(crate) async fn consumer(&self, topic: &str) -> Consumer {
        let consumer = self
            .client
            .consumer(topic)
            .subscription("test")
            .initial_position(InitialPosition::Earliest);
        consumer.build().await.expect("consumer")
    }

    pub(crate) async fn until(&self, what: &str, ready: impl Fn(&Worker) -> bool) {
        let wait = async {
            while !ready(&self.worker) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, wait).await.is_err() {
            panic!("never happened: {what}: {:#?}", self.worker.progress());
        }
    }

    pub(crate) async fn drained(&self) {
        if tokio::time::timeout(PATIENCE, self.worker.drained())
            .await
            .is_err()
        {
            panic!("never drained: {:#?}", self.worker.progress());
        }
    }

    pub(crate) async fn end(self) {
        self.worker.shutdown(Duration::from_secs(5)).await;
        self.client.close().await;
    }
}

/// Passes bytes on while the gate is open.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut opened: watch::Receiver<bool>,
) {
    let mut bytes = vec![0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        let is_open = opened.wait_for(|opened| *opened).await.is_ok();
        if !is_open || to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}

/// The same, while the broker's first word says that it is Apache Pulsar.
async fn pass_as_apache(
    mut from: ReadHalf<DuplexStream>,
    mut to: WriteHalf<DuplexStream>,
    opened: watch::Receiver<bool>,
) {
    let mut size = [0; 4];
    let mut first = Vec::new();
    if from.read_exact(&mut size).await.is_ok() {
        first.resize(u32::from_be_bytes(size) as usize, 0);
    }
    if from.read_exact(&mut first).await.is_err() {
        return;
    }
    let (own, other) = (&b"-geminga-"[..], &b"-apache0-"[..]);
    let at = first.windows(own.len()).position(|part| part == own);
    let at = at.expect("the broker says what it is");
    first[at..at + other.len()].copy_from_slice(other);
    if to.write_all(&size).await.is_ok() && to.write_all(&first).await.is_ok() {
        pass(from, to, opened).await;
    }
}

async fn start(
    client: &Client,
    directory: &Path,
    catalog: &str,
    records_max: u64,
    (wasm, secrets): (&Option<MakeRuntime>, &SecretRules),
) -> Worker {
    let mut config = WorkerConfig::new(client.clone(), directory.join("worker"));
    config.catalog_topic = Some(catalog.to_owned());
    config.changelog_records_max = records_max;
    config.temp_dir = Some(directory.to_path_buf());
    config.wasm.clone_from(wasm);
    config.secrets = secrets.clone();
    config.functions_directory = Some(directory.join("functions"));
    Worker::start(config).await.expect("worker")
}

pub(crate) async fn receive(consumer: &mut Consumer, count: usize) -> Vec<ReceivedMessage> {
    let mut all = Vec::new();
    while all.len() < count {
        let some = tokio::time::timeout(PATIENCE, consumer.recv_batch(count - all.len())).await;
        let some = some.unwrap_or_else(|_| panic!("{} of {count} messages came", all.len()));
        all.extend(some.expect("open"));
    }
    consumer.ack_many(&all).await.expect("acknowledged");
    all
}

pub(crate) fn texts(messages: &[ReceivedMessage]) -> Vec<String> {
    let text = |m: &ReceivedMessage| String::from_utf8_lossy(&m.payload).into_owned();
    messages.iter().map(text).collect()
}

/// Nothing more comes within a moment.
pub(crate) async fn nothing_more(consumer: &mut Consumer) {
    let more = tokio::time::timeout(Duration::from_millis(300), consumer.recv()).await;
    assert!(more.is_err(), "one too many: {more:?}");
}

pub(crate) fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

pub(crate) fn sorted(mut texts: Vec<String>) -> Vec<String> {
    texts.sort_by_key(|text| (text.len(), text.clone()));
    texts
}

/// Compiles one file of Java.
pub(crate) async fn jar(source: &Path) -> PathBuf {
    use geminga_functions::runtime::java::{api, tool};
    let path = std::env::join_paths(api().await.expect("the functions API")).expect("a class path");
    let (classes, made) = (
        source.with_extension("classes"),
        source.with_extension("jar"),
    );
    let mut compiling = Command::new(tool("javac"));
    compiling
        .args(["--release", "11", "-nowarn", "-proc:none", "-cp"])
        .arg(path);
    compiling.arg("-d").args([classes.as_path(), source]);
    let mut packing = Command::new(tool("jar"));
    packing
        .arg("cf")
        .arg(&made)
        .arg("-C")
        .arg(&classes)
        .arg(".");
    for mut command in [compiling, packing] {
        // The stage's worker lives on this thread: it would stand still for longer than its lease.
        let ended = tokio::task::spawn_blocking(move || command.output()).await;
        let output = ended.expect("no panic").expect("a JDK is installed");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    made
}
