//! Geo-replication: what is published here is sent on to the same topic of other clusters.
//!
//! For each other cluster that a topic's policies name there is a cursor, `pulsar.repl.<cluster>`, and
//! while the topic is loaded a task (`run`) that reads behind the cursor, judges each entry
//! (`forward`), keeps a window of what is under way (`window`) and moves the cursor when the other
//! cluster has confirmed. How another cluster is reached is not the broker's matter: `remote` is the
//! seam. `clusters` holds what is known of them, `stats` tells how far they are. `subscriptions` keeps
//! subscriptions alike in all of them.
//!
//! What must hold:
//! - the cursor never stands past an entry that the other cluster has not confirmed and that is not
//!   one to be left out, so that nothing is lost, whatever is cut or killed;
//! - what arrived from another cluster (`replicated_from`) is never sent on: no loops;
//! - entries go out in the order in which they are stored, and each names its place here. A cluster
//!   with deduplication leaves out what it has, by that place: so nothing arrives twice.
//!
//! See `docs/adr/0004-geo-replication.md`.

mod clusters;
mod forward;
pub(crate) mod remote;
mod run;
pub(crate) mod snapshots;
pub(crate) mod stats;
pub(crate) mod subscriptions;
mod throttle;
mod window;

use std::sync::Arc;
use std::time::Duration;

use geminga_model::TopicName;
use geminga_proto::message::property;
use geminga_stdx::Tasks;
use geminga_storage::managed::{Cursor, Initial, Properties};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::broker::{Broker, Core};
use crate::config::ReplicationStart;
use crate::error::BrokerError;
use crate::policies::Policies;
use crate::topic::{State, Topic};
use remote::Remotes;
use stats::Figures;

/// Pulsar's `replicatorPrefix`.
const PREFIX: &str = "pulsar.repl.";
/// Where a message says which place it has in the cluster that it comes from.
const SOURCE_POSITION: &str = "__MSG_PROP_REPL_SOURCE_POSITION";
/// How long the end of a replicator is waited for.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// The cursor of what another cluster has.
pub(crate) fn cursor_name(cluster: &str) -> String {
    format!("{PREFIX}{cluster}")
}

/// The name of the producer by which one cluster publishes in another.
pub(crate) fn producer_name(from: &str, to: &str) -> String {
    format!("{PREFIX}{from}-->{to}")
}

/// Whether a producer of this name brings what another cluster sends on; a cursor's, whether it is
/// not a subscription's.
pub(crate) fn is_replicator(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// The cluster that a producer brings messages from.
fn source_cluster(producer: &str) -> Option<&str> {
    let rest = producer.strip_prefix(PREFIX)?;
    Some(rest.split_once("-->").map_or(rest, |(from, _)| from))
}

/// The place that a message had in the cluster it comes from.
pub(crate) fn source_position(block: &[u8]) -> Option<(u64, u64)> {
    let text = property(block, SOURCE_POSITION).ok().flatten()?;
    let (ledger, entry) = text.split_once(':')?;
    Some((ledger.parse().ok()?, entry.parse().ok()?))
}

/// One topic's way to one other cluster.
pub(crate) struct Replicator {
    pub(crate) cluster: Arc<str>,
    pub(crate) cursor: Arc<Cursor>,
    /// There may be more to read.
    wake: Notify,
    figures: Mutex<Figures>,
    tasks: Tasks,
}

impl Replicator {
    fn start(topic: &Arc<Topic>, cluster: &str, cursor: Arc<Cursor>) -> Arc<Replicator> {
        let replicator = Arc::new(Replicator {
            cluster: cluster.into(),
            cursor,
            wake: Notify::new(),
            figures: Mutex::default(),
            tasks: topic.core.tasks.child(),
        });
        let (running, topic) = (replicator.clone(), topic.clone());
        replicator
            .tasks
            .spawn_cancellable("replicator", async move { running.run(topic).await });
        replicator
    }

    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    pub(crate) fn stop(&self) {
        self.tasks.cancel();
    }

    fn is_connected(&self) -> bool {
        self.figures.lock().connected_since_ms > 0
    }

    /// Whether the other cluster lacks something.
    pub(crate) fn is_behind(&self) -> bool {
        self.cursor.backlog() > 0
    }
}

impl State {
    /// There may be more to send on.
    pub(crate) fn wake_replicators(&self) {
        for replicator in &self.replicators {
            replicator.wake();
        }
    }

    pub(crate) fn stop_replicators(&mut self) {
        for replicator in self.replicators.drain(..) {
            replicator.stop();
        }
        if let Some(tasks) = self.keeping_alike.take() {
            tasks.cancel();
        }
    }
}

impl Topic {
    /// The other clusters that the topic is to be in.
    fn remote_clusters(&self) -> Vec<String> {
        let own = &self.core.config.cluster_name;
        // What the broker keeps for itself is its own; Pulsar has other names for the same.
        if !self.is_persistent() || self.name.parent().local().starts_with("__") {
            return Vec::new();
        }
        let policies = self.policies();
        let others = policies.replication_clusters.iter();
        others.filter(|name| *name != own).cloned().collect()
    }

    /// Begins and ends replicators as the policies say. An ended one's cursor goes, or it would hold
    /// data back for ever.
    pub(crate) async fn replicate(self: &Arc<Topic>) -> Result<(), BrokerError> {
        if !self.is_persistent() {
            return Ok(());
        }
        let _turn = self.replicating.lock().await;
        let wanted = self.remote_clusters();
        let gone: Vec<Arc<Replicator>> = {
            let mut state = self.open()?;
            let is_gone = |r: &mut Arc<Replicator>| !wanted.iter().any(|name| **name == *r.cluster);
            state.replicators.extract_if(.., is_gone).collect()
        };
        for replicator in gone {
            replicator.stop();
            if !replicator.tasks.join(STOP_GRACE).await {
                tracing::warn!(topic = %self.name, cluster = &*replicator.cluster,
                    "a replicator did not end in time");
            }
        }
        let keep: Vec<String> = wanted.iter().map(|cluster| cursor_name(cluster)).collect();
        for cursor in self.ledger.cursors() {
            let name = cursor.name();
            if is_replicator(name) && !keep.iter().any(|kept| kept == name) {
                self.ledger.delete_cursor(name).await?;
            }
        }
        for cluster in &wanted {
            let has = |state: &State| state.replicators.iter().any(|r| *r.cluster == **cluster);
            if has(&*self.open()?) {
                continue;
            }
            let initial = match self.core.settings.live().replication_start_at {
                ReplicationStart::Latest => Initial::Latest,
                ReplicationStart::Earliest => Initial::Earliest,
            };
            let cursor = self
                .ledger
                .open_cursor(&cursor_name(cluster), initial, Properties::new())
                .await?;
            let replicator = Replicator::start(self, cluster, cursor);
            match self.open() {
                Ok(mut state) => state.replicators.push(replicator),
                Err(closed) => {
                    replicator.stop();
                    return Err(closed);
                }
            }
        }
        self.keep_alike(!wanted.is_empty())
    }

    /// Begins or ends the task that keeps subscriptions alike.
    fn keep_alike(self: &Arc<Topic>, wanted: bool) -> Result<(), BrokerError> {
        let wanted = wanted && self.core.config.enable_replicated_subscriptions;
        let mut state = self.open()?;
        if !wanted {
            if let Some(tasks) = state.keeping_alike.take() {
                tasks.cancel();
            }
        } else if state.keeping_alike.is_none() {
            let tasks = self.core.tasks.child();
            let topic = self.clone();
            tasks.spawn_cancellable("replicated subscriptions", topic.keep_subscriptions_alike());
            state.keeping_alike = Some(tasks);
        }
        Ok(())
    }
}

impl Core {
    /// Loads the topics that are in other clusters too: what a stop left over is sent on.
    async fn resume_replication(self: Arc<Core>) {
        let names = match self.replicated_topics().await {
            Ok(names) => names,
            Err(error) => {
                tracing::error!(%error, "replication is not resumed");
                return;
            }
        };
        for name in names {
            if let Err(error) = self.topic(&name, false).await {
                tracing::debug!(topic = %name, %error, "not loaded for replication");
            }
        }
    }

    async fn replicated_topics(&self) -> Result<Vec<TopicName>, BrokerError> {
        let own = &self.config.cluster_name;
        let goes_out = |policies: &Policies| {
            let clusters = policies.replication_clusters.as_ref();
            clusters.is_some_and(|names| names.iter().any(|name| name != own))
        };
        self.topics_where(goes_out, |own, namespace| {
            goes_out(own) || own.replication_clusters.is_none() && goes_out(namespace)
        })
        .await
    }
}

impl Broker {
    /// How other clusters are reached. Called once, by whoever puts the process together.
    pub fn replicate_through(&self, remotes: Arc<dyn Remotes>) {
        if self.core.remotes.set(remotes).is_err() {
            tracing::error!("there is a way to other clusters already");
            return;
        }
        let core = self.core.clone();
        self.core
            .tasks
            .spawn_cancellable("resume replication", core.resume_replication());
    }
}
