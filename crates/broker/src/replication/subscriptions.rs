//! Replicated subscriptions: what is acked in one cluster is acked in the others, about a second
//! later. A consumer that goes to another cluster goes on about where it was.
//!
//! Clusters speak by markers in the topic, which replicators send on and no client sees. The way is
//! Pulsar's, so that both understand each other; `snapshots` has what it is about. Approximate by
//! nature: what was acked after the last snapshot is delivered again in the other cluster.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use geminga_model::Position;
use geminga_proto::marker::Marker;
use geminga_proto::pb::{
    ClusterMessageId, MarkersMessageIdData, ReplicatedSubscriptionsSnapshot,
    ReplicatedSubscriptionsSnapshotRequest, ReplicatedSubscriptionsSnapshotResponse,
    ReplicatedSubscriptionsUpdate,
};
use geminga_stdx::Random;
use geminga_storage::managed::{Initial, Properties};

use super::snapshots::{Next, Snapshot};
use crate::error::BrokerError;
use crate::subscription::Subscription;
use crate::topic::Topic;
use crate::topic::subscribe::{Wanted, check_name};

/// The cursor property of a subscription that is kept alike in other clusters.
pub(crate) const REPLICATED: &str = "geminga.replicated";

fn to_wire(position: Position) -> MarkersMessageIdData {
    let (ledger_id, entry_id) = position.to_wire();
    MarkersMessageIdData {
        ledger_id,
        entry_id,
    }
}

fn from_wire(id: MarkersMessageIdData) -> Position {
    Position::from_wire(id.ledger_id, id.entry_id)
}

fn places(snapshot: &Snapshot) -> Vec<ClusterMessageId> {
    let place = |(cluster, position): (&String, &Position)| ClusterMessageId {
        cluster: cluster.clone(),
        message_id: to_wire(*position),
    };
    snapshot.clusters.iter().map(place).collect()
}

impl Subscription {
    pub(crate) fn is_replicated(&self) -> bool {
        self.cursor.properties().contains_key(REPLICATED)
    }
}

impl Topic {
    /// The task of a topic that is in other clusters too.
    pub(super) async fn keep_subscriptions_alike(self: Arc<Topic>) {
        let config = &self.core.config;
        let every = config.replicated_subscriptions_snapshot_frequency_millis;
        let mut names = Random::from_entropy();
        loop {
            tokio::time::sleep(Duration::from_millis(every)).await;
            if let Err(error) = self.tell_clusters(&mut names).await {
                tracing::debug!(topic = %self.name, %error, "subscriptions are not kept alike");
            }
        }
    }

    /// Tells the others what was acked, and asks them where they are.
    async fn tell_clusters(&self, names: &mut Random) -> Result<(), BrokerError> {
        let now_ms = self.core.clock.now_ms();
        let mut markers = Vec::new();
        {
            let mut state = self.open()?;
            let mut any = false;
            for subscription in &mut state.subscriptions {
                if !subscription.durable || !subscription.is_replicated() {
                    continue;
                }
                any = true;
                let mark_delete = subscription.cursor.mark_delete();
                let Some(reached) = subscription.snapshots.reached(mark_delete) else {
                    continue;
                };
                let update = Marker::Update(ReplicatedSubscriptionsUpdate {
                    subscription_name: subscription.name.to_string(),
                    clusters: places(&reached),
                });
                markers.push(update.encode(None, now_ms));
            }
            let all_there = state.replicators.iter().all(|r| r.is_connected());
            let messages = state.counters.messages_in;
            let clusters = state.replicators.iter().map(|r| r.cluster.to_string());
            let clusters: BTreeSet<String> = clusters.collect();
            drop(state);
            let name = names.name(16);
            if any && all_there && self.begin_snapshot(&name, clusters, messages, now_ms) {
                markers.push(self.request(&name, now_ms));
            }
        }
        if markers.is_empty() {
            return Ok(());
        }
        self.ledger.prepare().await?;
        self.write_markers(&markers)
    }

    fn begin_snapshot(
        &self,
        name: &str,
        clusters: BTreeSet<String>,
        messages: u64,
        now_ms: u64,
    ) -> bool {
        let seconds = self
            .core
            .config
            .replicated_subscriptions_snapshot_timeout_seconds;
        let timeout_ms = seconds.saturating_mul(1_000);
        let mut snapshots = self.snapshots.lock();
        snapshots.begin(name, clusters, messages, now_ms, timeout_ms)
    }

    fn request(&self, name: &str, now_ms: u64) -> Bytes {
        let request = Marker::Request(ReplicatedSubscriptionsSnapshotRequest {
            snapshot_id: name.to_owned(),
            source_cluster: Some(self.core.config.cluster_name.clone()),
        });
        request.encode(None, now_ms)
    }

    fn write_markers(&self, markers: &[Bytes]) -> Result<(), BrokerError> {
        let _order = self.open()?;
        self.ledger.append(markers)?;
        Ok(())
    }

    /// A marker that came from the cluster `from`, and is at `position` here.
    pub(super) async fn marker_came(
        self: &Arc<Topic>,
        from: &str,
        block: &Bytes,
        position: Position,
    ) -> Result<(), BrokerError> {
        if !self.core.config.enable_replicated_subscriptions {
            return Ok(());
        }
        let found = Marker::decode(block);
        let found = found.map_err(|error| BrokerError::Metadata(error.to_string()))?;
        let now_ms = self.core.clock.now_ms();
        let local = &self.core.config.cluster_name;
        match found {
            Some(Marker::Request(request)) => {
                let here = ClusterMessageId {
                    cluster: local.clone(),
                    message_id: to_wire(self.ledger.durable_position()),
                };
                let response = Marker::Response(ReplicatedSubscriptionsSnapshotResponse {
                    snapshot_id: request.snapshot_id,
                    cluster: Some(here),
                });
                self.ledger.prepare().await?;
                self.write_markers(&[response.encode(Some(from), now_ms)])
            }
            Some(Marker::Response(response)) => {
                // Nobody answers for another.
                let Some(answer) = response.cluster.filter(|it| it.cluster == from) else {
                    return Ok(());
                };
                let (name, there) = (&response.snapshot_id, from_wire(answer.message_id));
                let next = {
                    let mut snapshots = self.snapshots.lock();
                    snapshots.answered(name, &answer.cluster, there, position)
                };
                self.ledger.prepare().await?;
                match next {
                    Next::Nothing => Ok(()),
                    Next::AskAgain => self.write_markers(&[self.request(name, now_ms)]),
                    Next::Complete(snapshot) => self.keep_snapshot(name, &snapshot, now_ms),
                }
            }
            Some(Marker::Update(update)) => {
                let mut places = update.clusters.iter();
                match places.find(|place| place.cluster == *local) {
                    Some(place) => {
                        let through = from_wire(place.message_id);
                        self.acked_elsewhere(&update.subscription_name, through)
                            .await
                    }
                    None => Ok(()),
                }
            }
            // Each cluster's own matter.
            Some(Marker::Snapshot(_)) | None => Ok(()),
        }
    }

    /// A snapshot is complete: it goes into the topic, where subscriptions find it when they get
    /// there, after a restart too.
    fn keep_snapshot(
        &self,
        name: &str,
        snapshot: &Snapshot,
        now_ms: u64,
    ) -> Result<(), BrokerError> {
        let marker = Marker::Snapshot(ReplicatedSubscriptionsSnapshot {
            snapshot_id: name.to_owned(),
            local_message_id: Some(to_wire(snapshot.local)),
            clusters: places(snapshot),
        });
        let local = &self.core.config.cluster_name;
        self.write_markers(&[marker.encode(Some(local), now_ms)])
    }

    /// Acks here what was acked in another cluster; makes the subscription if there is none.
    async fn acked_elsewhere(
        self: &Arc<Topic>,
        name: &str,
        through: Position,
    ) -> Result<(), BrokerError> {
        check_name(name)?;
        let is_here = self.open()?.subscription_named(name).is_some();
        if !is_here {
            let wanted = Wanted {
                name: name.into(),
                durable: true,
                initial: Initial::Earliest,
                properties: Properties::from([(REPLICATED.to_owned(), "1".to_owned())]),
                create: true,
            };
            self.ensure_subscription(&wanted).await?;
        }
        let mut state = self.open()?;
        // What an open transaction holds back is nobody's to ack yet.
        let through = through.min(state.read_limit());
        let Some(subscription) = state.subscription_named(name) else {
            return Ok(());
        };
        if !subscription.durable || subscription.cursor.mark_delete() >= through {
            return Ok(());
        }
        subscription.cursor.ack_cumulative(through, None)?;
        subscription.skipped_through(through);
        let id = subscription.id;
        self.dispatch(&mut state, id);
        Ok(())
    }

    /// Switches a durable subscription. What it has acked so far is told with the next snapshot.
    pub(crate) async fn set_replicated(&self, name: &str, on: bool) -> Result<(), BrokerError> {
        let cursor = {
            let mut state = self.open()?;
            let found = state.subscription_named(name);
            let found = found.ok_or_else(|| BrokerError::SubscriptionNotFound {
                topic: self.name.to_string(),
                subscription: name.to_owned(),
            })?;
            if found.is_replicated() == on {
                return Ok(());
            }
            found.cursor.clone()
        };
        let mut properties = cursor.properties();
        match on {
            true => properties.insert(REPLICATED.to_owned(), "1".to_owned()),
            false => properties.remove(REPLICATED),
        };
        Ok(cursor.set_properties(properties).await?)
    }
}

/// The snapshot that a marker in the topic holds.
pub(crate) fn snapshot_in(block: &Bytes) -> Option<Snapshot> {
    let Ok(Some(Marker::Snapshot(found))) = Marker::decode(block) else {
        return None;
    };
    let place = |place: ClusterMessageId| (place.cluster, from_wire(place.message_id));
    Some(Snapshot {
        local: from_wire(found.local_message_id?),
        clusters: found.clusters.into_iter().map(place).collect(),
    })
}
