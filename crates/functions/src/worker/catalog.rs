//! The catalogue: what there is and who runs it, on a topic. The newest record of a key counts; one
//! without a value removes it.
//!
//! One worker writes, by an exclusive producer, so that the broker itself refuses what a leader
//! writes that was replaced; the others read along. What must hold: a change that answered is on the
//! topic, and the memory of a reader is a prefix of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use geminga_client::{
    Batching, Client, Message, MessageId, Producer, Receipt, ReceivedMessage, ServerError,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::packages::PackageRecord;
use super::schedule::Unit;
use crate::changelog::{Changelog, Made, Writer};
use crate::component::{Component, ComponentId};
use crate::error::WorkerError;
use crate::rights::Registrant;

/// Former versions of a component that are kept to go back to.
const PAST_MAX: usize = 5;

/// Records on their way that nobody waits for: beyond so many, the next one waits for the oldest.
const UNCONFIRMED_MAX: usize = 1000;

/// What is kept of a component.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) component: Component,
    pub(crate) version: u64,
    /// Its code in the package folder, if it was uploaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) package: Option<String>,
    /// Instances that were stopped by hand.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) stopped: BTreeSet<u32>,
    /// Who registered it, or changed it last, where that is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) by: Option<Registrant>,
    /// What it was before, the newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) past: Vec<Past>,
}

/// A former version of a component.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Past {
    pub(crate) version: u64,
    pub(crate) component: Component,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) package: Option<String>,
}

impl Record {
    pub(crate) fn new(component: Component, package: Option<String>) -> Self {
        Self {
            component,
            version: 1,
            package,
            stopped: BTreeSet::new(),
            by: None,
            past: Vec::new(),
        }
    }

    /// The next version, which remembers this one.
    pub(crate) fn next(&self, component: Component, package: Option<String>) -> Self {
        let mut past = self.past.clone();
        past.insert(
            0,
            Past {
                version: self.version,
                component: self.component.clone(),
                package: self.package.clone(),
            },
        );
        past.truncate(PAST_MAX);
        Self {
            component,
            version: self.version + 1,
            package,
            stopped: self.stopped.clone(),
            by: self.by.clone(),
            past,
        }
    }

    /// The same on behalf of somebody.
    pub(crate) fn by(mut self, by: Option<Registrant>) -> Self {
        self.by = by;
        self
    }

    /// Whether both run alike: they differ in what is stopped at most.
    pub(crate) fn runs_as(&self, other: &Self) -> bool {
        self.version == other.version
            && self.package == other.package
            && self.component == other.component
    }

    /// Every package that it or a former version needs.
    pub(crate) fn packages(&self) -> impl Iterator<Item = &str> {
        let past = self.past.iter().map(|past| &past.package);
        past.chain([&self.package]).filter_map(Option::as_deref)
    }
}

/// Who runs a unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Assignment {
    pub(crate) owner: String,
    /// Who is to run it when the owner has let go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) to: Option<String>,
}

/// Who writes the catalogue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Leader {
    pub(crate) identity: String,
    pub(crate) url: String,
    pub(crate) term: u64,
}

/// A record of any kind.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Component(Box<Record>),
    Package(Box<PackageRecord>),
    Assignment(Assignment),
    Leader(Leader),
    /// A worker that is to run nothing: when it began, in milliseconds.
    Drain(u64),
}

/// What the topic says.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct View {
    pub(crate) components: BTreeMap<ComponentId, Record>,
    pub(crate) packages: BTreeMap<String, PackageRecord>,
    pub(crate) assignments: BTreeMap<Unit, Assignment>,
    /// By worker's identity.
    pub(crate) drains: BTreeMap<String, u64>,
    pub(crate) leader: Leader,
}

/// The key of a record.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Key {
    Component(ComponentId),
    Package(String),
    Assignment(Unit),
    Drain(String),
    Leader,
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Component(id) => id.fmt(f),
            Self::Package(name) => write!(f, "package {name}"),
            Self::Assignment(unit) => write!(f, "assignment {unit}"),
            Self::Drain(identity) => write!(f, "drain {identity}"),
            Self::Leader => f.write_str("leader"),
        }
    }
}

impl Key {
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text == "leader" {
            return Some(Self::Leader);
        }
        let (kind, rest) = text.split_once(' ')?;
        Some(match kind {
            "package" => Self::Package(rest.to_owned()),
            "drain" => Self::Drain(rest.to_owned()),
            "assignment" => Self::Assignment(rest.parse().ok()?),
            _ => Self::Component(text.parse().ok()?),
        })
    }
}

impl View {
    /// Takes a record in; false when it is not understood.
    pub(crate) fn apply(&mut self, key: &str, value: Option<&[u8]>) -> bool {
        let Some(key) = Key::parse(key) else {
            return false;
        };
        let Some(bytes) = value else {
            self.remove(&key);
            return true;
        };
        let read = match key {
            Key::Component(_) => serde_json::from_slice(bytes).map(Value::Component),
            Key::Package(_) => serde_json::from_slice(bytes).map(Value::Package),
            Key::Assignment(_) => serde_json::from_slice(bytes).map(Value::Assignment),
            Key::Drain(_) => serde_json::from_slice(bytes).map(Value::Drain),
            Key::Leader => serde_json::from_slice(bytes).map(Value::Leader),
        };
        let Ok(value) = read else { return false };
        self.put(key, value);
        true
    }

    pub(crate) fn put(&mut self, key: Key, value: Value) {
        match (key, value) {
            (Key::Component(id), Value::Component(record)) => {
                self.components.insert(id, *record);
            }
            (Key::Package(name), Value::Package(record)) => {
                self.packages.insert(name, *record);
            }
            (Key::Assignment(unit), Value::Assignment(assignment)) => {
                self.assignments.insert(unit, assignment);
            }
            (Key::Drain(identity), Value::Drain(since)) => {
                self.drains.insert(identity, since);
            }
            (Key::Leader, Value::Leader(leader)) => self.leader = leader,
            // A key always comes with its own kind of value.
            _ => {}
        }
    }

    pub(crate) fn remove(&mut self, key: &Key) {
        match key {
            Key::Component(id) => drop(self.components.remove(id)),
            Key::Package(name) => drop(self.packages.remove(name)),
            Key::Assignment(unit) => drop(self.assignments.remove(unit)),
            Key::Drain(identity) => drop(self.drains.remove(identity)),
            Key::Leader => self.leader = Leader::default(),
        }
    }

    /// Every package that a component, one of its former versions, or a name needs.
    pub(crate) fn packages_needed(&self) -> BTreeSet<String> {
        let components = self.components.values().flat_map(Record::packages);
        let packages = self.packages.values().map(|package| package.file.as_str());
        components.chain(packages).map(str::to_owned).collect()
    }

    /// How many records there are.
    fn len(&self) -> usize {
        let leader = 1;
        self.components.len()
            + self.packages.len()
            + self.assignments.len()
            + self.drains.len()
            + leader
    }

    /// Every record, as it is written anew.
    fn records(&self) -> Vec<(Key, Value)> {
        let mut all = Vec::new();
        for (id, record) in &self.components {
            let value = Value::Component(Box::new(record.clone()));
            all.push((Key::Component(id.clone()), value));
        }
        for (name, record) in &self.packages {
            let value = Value::Package(Box::new(record.clone()));
            all.push((Key::Package(name.clone()), value));
        }
        for (unit, assignment) in &self.assignments {
            let value = Value::Assignment(assignment.clone());
            all.push((Key::Assignment(unit.clone()), value));
        }
        for (identity, since) in &self.drains {
            all.push((Key::Drain(identity.clone()), Value::Drain(*since)));
        }
        all.push((Key::Leader, Value::Leader(self.leader.clone())));
        all
    }
}

/// The view, and the topic that remembers it. Without a topic it is only in memory.
pub(crate) struct Catalog {
    changelog: Option<Changelog>,
    view: Mutex<View>,
    /// One record at a time, so that the topic has the order of the calls.
    writing: tokio::sync::Mutex<()>,
    /// Whether this worker is the one that writes.
    writes: AtomicBool,
    /// Records on their way that nobody waits for.
    unconfirmed: Mutex<VecDeque<Receipt>>,
}

fn message_of(key: &Key, value: &Value) -> Result<Message, WorkerError> {
    let bytes = match value {
        Value::Component(record) => serde_json::to_vec(record),
        Value::Package(record) => serde_json::to_vec(record),
        Value::Assignment(assignment) => serde_json::to_vec(assignment),
        Value::Leader(leader) => serde_json::to_vec(leader),
        Value::Drain(since) => serde_json::to_vec(since),
    };
    let bytes = bytes.map_err(|error| WorkerError::Invalid(vec![error.to_string()]))?;
    Ok(Message::new(bytes).key(key.to_string()))
}

/// Takes a message of the topic into a view; a record that is not understood is said and left.
pub(crate) fn take(view: &mut View, message: &ReceivedMessage) {
    let Some(key) = &message.key else { return };
    let value = (!message.null_value).then_some(&message.payload[..]);
    if !view.apply(key, value) {
        // Another worker's record, such as Pulsar's own: not ours to run.
        tracing::warn!(key, "record of the catalogue not understood");
    }
}

impl Catalog {
    /// One that forgets.
    pub(crate) fn in_memory() -> Self {
        Self {
            changelog: None,
            view: Mutex::default(),
            writing: tokio::sync::Mutex::default(),
            writes: AtomicBool::new(true),
            unconfirmed: Mutex::default(),
        }
    }

    /// Reads the topic; after `records_max` records it is rewritten.
    pub(crate) async fn open(
        client: &Client,
        topic: &str,
        records_max: u64,
    ) -> Result<Self, WorkerError> {
        let (mut view, mut foreign, mut read) = (View::default(), 0u64, 0u64);
        let changelog = Changelog::open(
            client,
            topic,
            Batching::off(),
            records_max,
            (Made::Now, Writer::BesideOthers),
            |message| {
                read += 1;
                let value = (!message.null_value).then_some(&message.payload[..]);
                let key = message.key.as_deref().unwrap_or_default();
                if !view.apply(key, value) {
                    foreign += 1;
                }
            },
        );
        let changelog = changelog
            .await
            .map_err(WorkerError::client(format!("catalogue `{topic}`")))?;
        if foreign > 0 {
            tracing::warn!(
                topic,
                foreign,
                read,
                "records of the catalogue not understood"
            );
        }
        Ok(Self {
            changelog: Some(changelog),
            view: Mutex::new(view),
            writing: tokio::sync::Mutex::default(),
            writes: AtomicBool::new(false),
            unconfirmed: Mutex::default(),
        })
    }

    /// Where reading along begins.
    pub(crate) fn read_to(&self) -> MessageId {
        let changelog = self.changelog.as_ref();
        changelog.map_or(MessageId::EARLIEST, Changelog::read_to)
    }

    pub(crate) fn is_kept(&self) -> bool {
        self.changelog.is_some()
    }

    pub(crate) fn is_written_here(&self) -> bool {
        self.writes.load(Ordering::Acquire)
    }

    /// Ends writing at once: the producer is closed later.
    pub(crate) fn stop_writing(&self) {
        self.writes
            .store(self.changelog.is_none(), Ordering::Release);
    }

    /// Begins or ends writing.
    pub(crate) async fn write_by(&self, producer: Option<Producer>) {
        if producer.is_none() {
            self.stop_writing();
        }
        let _in_order = self.writing.lock().await;
        let writes = producer.is_some();
        self.unconfirmed.lock().clear();
        if let Some(changelog) = &self.changelog {
            changelog.write_by(producer).await;
        }
        self.writes.store(writes, Ordering::Release);
    }

    /// Looks at the view.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&View) -> T) -> T {
        look(&self.view.lock())
    }

    /// What another worker wrote; the components that it is about.
    pub(crate) fn follow(&self, messages: &[ReceivedMessage]) -> BTreeSet<ComponentId> {
        let mut view = self.view.lock();
        let mut touched = BTreeSet::new();
        for message in messages {
            take(&mut view, message);
            match message.key.as_deref().and_then(Key::parse) {
                Some(Key::Component(id)) => drop(touched.insert(id)),
                Some(Key::Assignment(unit)) => drop(touched.insert(unit.id)),
                _ => {}
            }
        }
        touched
    }

    /// What the topic says, read anew.
    pub(crate) fn replace(&self, view: View) {
        *self.view.lock() = view;
    }

    /// Durable when it answers.
    pub(crate) async fn put(&self, key: Key, value: Value) -> Result<(), WorkerError> {
        let _in_order = self.writing.lock().await;
        self.send(message_of(&key, &value)?).await?;
        self.view.lock().put(key, value);
        self.rewrite_when_due().await;
        Ok(())
    }

    /// On its way when it answers: for what can be decided again.
    pub(crate) async fn put_soon(&self, key: Key, value: Value) -> Result<(), WorkerError> {
        let _in_order = self.writing.lock().await;
        self.check_writer()?;
        if let Some(changelog) = &self.changelog {
            let sent = changelog.enqueue(message_of(&key, &value)?).await;
            // Its order on the topic is certain already, and so is that it comes before what waits.
            // That it arrives is not: `confirm` looks.
            let receipt = sent.map_err(|error| self.failed(error))?;
            let oldest = {
                let mut unconfirmed = self.unconfirmed.lock();
                unconfirmed.push_back(receipt);
                let is_full = unconfirmed.len() > UNCONFIRMED_MAX;
                is_full.then(|| unconfirmed.pop_front()).flatten()
            };
            if let Some(oldest) = oldest {
                oldest.await.map_err(|error| self.failed(error))?;
            }
        }
        self.view.lock().put(key, value);
        self.rewrite_when_due().await;
        Ok(())
    }

    /// Looks after the records that nobody waited for. When one of them did not arrive, the view says
    /// what the topic does not: then this worker writes no more, and reads the topic anew.
    pub(crate) async fn confirm(&self) {
        std::future::poll_fn(|cx| {
            let mut unconfirmed = self.unconfirmed.lock();
            // Each stays in the queue until it is known: this may be cancelled.
            while let Some(oldest) = unconfirmed.front_mut() {
                let arrived = std::task::ready!(Pin::new(oldest).poll(cx));
                unconfirmed.pop_front();
                if let Err(error) = arrived {
                    tracing::warn!(%error, "a record of the catalogue did not arrive");
                    self.stop_writing();
                }
            }
            Poll::Ready(())
        })
        .await;
    }

    pub(crate) async fn put_component(
        &self,
        id: &ComponentId,
        record: Record,
    ) -> Result<(), WorkerError> {
        let value = Value::Component(Box::new(record));
        self.put(Key::Component(id.clone()), value).await
    }

    pub(crate) async fn remove(&self, key: Key) -> Result<(), WorkerError> {
        let _in_order = self.writing.lock().await;
        self.send(Message::tombstone().key(key.to_string())).await?;
        self.view.lock().remove(&key);
        self.rewrite_when_due().await;
        Ok(())
    }

    fn check_writer(&self) -> Result<(), WorkerError> {
        if self.is_written_here() {
            return Ok(());
        }
        Err(WorkerError::NotLeader)
    }

    /// An error of the producer; one that was replaced writes no more.
    fn failed(&self, error: geminga_client::Error) -> WorkerError {
        let fenced = [
            ServerError::ProducerFenced as i32,
            ServerError::ProducerBusy as i32,
        ];
        let is_gone = match &error {
            geminga_client::Error::Server { code, .. } => fenced.contains(code),
            geminga_client::Error::Closed => true,
            _ => false,
        };
        if matches!(
            error,
            geminga_client::Error::Timeout { .. } | geminga_client::Error::Disconnected { .. }
        ) {
            // It may be on the topic or not: that is read anew before anything else is written.
            self.stop_writing();
        }
        if is_gone {
            self.writes.store(false, Ordering::Release);
            return WorkerError::NotLeader;
        }
        WorkerError::client("writing the catalogue")(error)
    }

    async fn send(&self, message: Message) -> Result<(), WorkerError> {
        self.check_writer()?;
        let Some(changelog) = &self.changelog else {
            return Ok(());
        };
        let sent = async { changelog.enqueue(message).await?.await };
        sent.await.map(drop).map_err(|error| self.failed(error))
    }

    async fn rewrite_when_due(&self) {
        let Some(changelog) = &self.changelog else {
            return;
        };
        // At each change: the records themselves are copied when they are to be written.
        let living = self.view.lock().len();
        if !changelog.begin_rewriting(living) {
            return;
        }
        let records = self.view.lock().records();
        let rewritten = async {
            let place = changelog.place().await?;
            // Nobody changes anything meanwhile, so that they do not wait for the disk one by one.
            let mut under_way = VecDeque::new();
            for (key, value) in &records {
                // What was written once can be written again.
                if let Ok(message) = message_of(key, value) {
                    under_way.push_back(changelog.enqueue(message).await?);
                }
                if under_way.len() > UNCONFIRMED_MAX
                    && let Some(oldest) = under_way.pop_front()
                {
                    oldest.await?;
                }
            }
            for receipt in under_way {
                receipt.await?;
            }
            Ok(place)
        };
        if let Err(error) = changelog.end_rewriting(rewritten.await).await {
            tracing::warn!(%error, "catalogue not rewritten");
        }
    }
}

#[cfg(test)]
#[path = "catalog/tests.rs"]
mod tests;
