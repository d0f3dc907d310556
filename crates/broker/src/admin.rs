//! What operators do, as the REST API and the command line need it. Changes are durable when the
//! method returns.

pub(crate) mod placement;
mod schemas;
pub(crate) mod subscriptions;
mod topics;
pub(crate) mod transactions;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use geminga_model::{NamespaceName, Position, TopicName};
use geminga_storage::ReadLimits;
use geminga_storage::managed::OpenOptions;
use geminga_storage::metadata::Expected;

use crate::broker::Broker;
use crate::error::BrokerError;
use crate::lookup::ServiceUrls;
use crate::metrics::MetricsSnapshot;
use crate::namespace::{
    Partitioned, TenantInfo, decode, ledger_name, namespace_key, partitioned_key, partitioned_path,
    tenant_key,
};
use crate::policies::Policies;
use crate::topic::Topic;
use crate::topic::compaction::run::CompactionStatus;
use crate::topic::stats::{TopicInternalStats, TopicStats};

/// Where a new or moved subscription begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubscribeAt {
    Earliest,
    Latest,
    /// This entry is delivered next.
    Position(Position),
    /// The first entry published at or after this, in milliseconds since 1970.
    TimeMs(u64),
}

/// An entry as stored: for peeking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeekedEntry {
    pub position: Position,
    /// The headers-and-payload block; `geminga_proto::message` and `batch` open it.
    pub block: Bytes,
}

impl Broker {
    // Tenants

    pub async fn tenants(&self) -> Result<Vec<String>, BrokerError> {
        Ok(self.core.catalog.store.children("/tenants").await?)
    }

    pub async fn tenant(&self, tenant: &str) -> Result<TenantInfo, BrokerError> {
        let found = self.core.catalog.get(&tenant_key(tenant)).await?;
        found
            .map(|(info, _)| info)
            .ok_or_else(|| BrokerError::TenantNotFound(tenant.to_owned()))
    }

    pub async fn create_tenant(&self, tenant: &str, info: TenantInfo) -> Result<(), BrokerError> {
        NamespaceName::new(tenant, "check")
            .map_err(|error| BrokerError::PreconditionFailed(error.to_string()))?;
        let (core, tenant) = (self.core.clone(), tenant.to_owned());
        let create = async move {
            let key = tenant_key(&tenant);
            let put = core.catalog.put(&key, &info, Expected::Absent).await;
            already(put, "Tenant already exist")?;
            let grants = &core.security.grants;
            grants.set_tenant(&tenant, Some(info.admin_roles));
            Ok(())
        };
        self.core.uncancelled(create).await
    }

    pub async fn update_tenant(&self, tenant: &str, info: TenantInfo) -> Result<(), BrokerError> {
        self.tenant(tenant).await?;
        let (core, tenant) = (self.core.clone(), tenant.to_owned());
        let update = async move {
            let key = tenant_key(&tenant);
            core.catalog.put(&key, &info, Expected::Any).await?;
            let grants = &core.security.grants;
            grants.set_tenant(&tenant, Some(info.admin_roles));
            core.rights_changed();
            Ok(())
        };
        self.core.uncancelled(update).await
    }

    /// Only one without namespaces.
    pub async fn delete_tenant(&self, tenant: &str) -> Result<(), BrokerError> {
        self.tenant(tenant).await?;
        if !self.namespaces(tenant).await?.is_empty() {
            return Err(BrokerError::AlreadyExists(
                "The tenant still has active namespaces".to_owned(),
            ));
        }
        let (core, tenant) = (self.core.clone(), tenant.to_owned());
        let delete = async move {
            core.catalog.delete(&tenant_key(&tenant)).await?;
            core.security.grants.set_tenant(&tenant, None);
            Ok(())
        };
        self.core.uncancelled(delete).await
    }

    // Namespaces

    /// As `tenant/namespace`.
    pub async fn namespaces(&self, tenant: &str) -> Result<Vec<String>, BrokerError> {
        self.tenant(tenant).await?;
        let names = self
            .core
            .catalog
            .store
            .children(&format!("/namespaces/{tenant}"))
            .await?;
        Ok(names
            .into_iter()
            .map(|name| format!("{tenant}/{name}"))
            .collect())
    }

    pub async fn create_namespace(
        &self,
        namespace: &NamespaceName,
        policies: Policies,
    ) -> Result<(), BrokerError> {
        let (broker, namespace) = (self.clone(), namespace.clone());
        let create = async move { broker.create_namespace_now(&namespace, policies).await };
        self.core.uncancelled(create).await
    }

    async fn create_namespace_now(
        &self,
        namespace: &NamespaceName,
        policies: Policies,
    ) -> Result<(), BrokerError> {
        self.tenant(namespace.tenant()).await?;
        // Held until the namespace names its group: till then that could be deleted.
        let _groups = match &policies.resource_group {
            Some(group) => Some(self.lock_group(group).await?),
            None => None,
        };
        let key = namespace_key(namespace.as_str());
        let put = self
            .core
            .catalog
            .put(&key, &policies, Expected::Absent)
            .await;
        already(put, "Namespace already exists")?;
        self.core.namespace_policies_changed(namespace).await;
        Ok(())
    }

    pub async fn policies(&self, namespace: &NamespaceName) -> Result<Policies, BrokerError> {
        let found = self.core.catalog.policies(namespace.as_str()).await?;
        found
            .map(|(policies, _)| Arc::unwrap_or_clone(policies))
            .ok_or_else(|| BrokerError::NamespaceNotFound(namespace.to_string()))
    }

    /// Only one without topics, unless `force`.
    pub async fn delete_namespace(
        &self,
        namespace: &NamespaceName,
        force: bool,
    ) -> Result<(), BrokerError> {
        self.policies(namespace).await?;
        let topics = self.topics(namespace).await?;
        let partitioned = self.partitioned_topics(namespace).await?;
        let empty = topics.is_empty() && partitioned.is_empty();
        if !force && !empty {
            return Err(BrokerError::AlreadyExists(
                "Cannot delete non empty namespace".to_owned(),
            ));
        }
        for name in partitioned {
            self.delete_partitioned(&self.core.parse_topic(&name)?, true)
                .await?;
        }
        for name in self.topics(namespace).await? {
            self.delete_topic(&self.core.parse_topic(&name)?, true)
                .await?;
        }
        self.core
            .catalog
            .delete_namespace(namespace.as_str())
            .await?;
        self.core.security.grants.forget(namespace).await?;
        self.forget_quotas(namespace).await?;
        self.core.namespace_policies_changed(namespace).await;
        Ok(())
    }

    // Topics

    /// Full names, partitions one by one, sorted; without system topics.
    pub async fn topics(&self, namespace: &NamespaceName) -> Result<Vec<String>, BrokerError> {
        self.policies(namespace).await?;
        self.core.user_topics(namespace).await
    }

    /// Full names of the partitioned topics.
    pub async fn partitioned_topics(
        &self,
        namespace: &NamespaceName,
    ) -> Result<Vec<String>, BrokerError> {
        self.policies(namespace).await?;
        let found = self
            .core
            .catalog
            .scan::<Partitioned>(&partitioned_path(namespace))
            .await?;
        let name = |key: &str| {
            let mut parts = key.rsplit('/');
            let local = decode(parts.next()?)?;
            Some(format!("{}://{namespace}/{local}", parts.next()?))
        };
        Ok(found.iter().filter_map(|(key, _)| name(key)).collect())
    }

    /// Full names of the non-persistent topics that are in use.
    pub async fn nonpersistent_topics(
        &self,
        namespace: &NamespaceName,
    ) -> Result<Vec<String>, BrokerError> {
        self.policies(namespace).await?;
        Ok(self.core.nonpersistent_topics(namespace))
    }

    pub async fn create_topic(&self, name: &TopicName) -> Result<(), BrokerError> {
        self.core.check_domain(name)?;
        self.policies(&name.namespace()).await?;
        let ledger = ledger_name(name);
        if self.core.catalog.partitions(name).await?.is_some() || self.topic_exists(name).await? {
            return Err(BrokerError::AlreadyExists(
                "This topic already exists".to_owned(),
            ));
        }
        if !name.is_persistent() {
            // It is there as long as somebody uses it.
            return self.core.topic(name, true).await.map(drop);
        }
        self.core.check_room(&name.namespace(), 1).await?;
        self.core.ledgers.open(&ledger, creating()).await?;
        self.core.watchers.changed(name, true);
        Ok(())
    }

    /// Makes the partitions too.
    pub async fn create_partitioned(
        &self,
        name: &TopicName,
        partitions: u32,
        properties: BTreeMap<String, String>,
    ) -> Result<(), BrokerError> {
        self.core.check_domain(name)?;
        self.policies(&name.namespace()).await?;
        self.check_partitions(partitions)?;
        if name.partition().is_some() {
            return Err(BrokerError::PreconditionFailed(
                "Partitioned Topic Name should not contain '-partition-'".to_owned(),
            ));
        }
        if self.topic_exists(name).await? {
            return Err(BrokerError::AlreadyExists(
                "This topic already exists".to_owned(),
            ));
        }
        self.core
            .check_room(&name.namespace(), partitions as usize)
            .await?;
        self.core
            .create_partitioned(name, partitions, properties)
            .await?;
        self.create_partitions(name, 0, partitions).await
    }

    /// Only up.
    pub async fn update_partitions(
        &self,
        name: &TopicName,
        partitions: u32,
    ) -> Result<(), BrokerError> {
        self.check_partitions(partitions)?;
        let key = partitioned_key(name);
        let Some((mut stored, version)) = self.core.catalog.get::<Partitioned>(&key).await? else {
            return Err(BrokerError::AlreadyExists(
                "Topic is not partitioned topic".to_owned(),
            ));
        };
        if partitions < stored.partitions {
            return Err(BrokerError::NotAllowed(format!(
                "Number of partitions must be higher than the current {}",
                stored.partitions
            )));
        }
        let before = stored.partitions;
        stored.partitions = partitions;
        self.core
            .catalog
            .put(&key, &stored, Expected::Is(version))
            .await?;
        self.create_partitions(name, before, partitions).await
    }

    /// None for a topic that is not partitioned.
    pub async fn partitions(&self, name: &TopicName) -> Result<Option<Partitioned>, BrokerError> {
        Ok(self
            .core
            .catalog
            .get(&partitioned_key(name))
            .await?
            .map(|(found, _)| found))
    }

    /// How many partitions a client is to use, 0 for a topic without; as a lookup on the wire, it
    /// makes a missing partitioned topic where that is allowed.
    pub async fn partitions_or_create(&self, name: &TopicName) -> Result<u32, BrokerError> {
        self.core.partitions_or_create(name, true).await
    }

    /// Whether the topic (or partition) itself exists.
    pub async fn topic_exists(&self, name: &TopicName) -> Result<bool, BrokerError> {
        self.core.topic_exists(name).await
    }

    pub async fn delete_topic(&self, name: &TopicName, force: bool) -> Result<(), BrokerError> {
        if !self.topic_exists(name).await? {
            return Err(BrokerError::TopicNotFound(name.to_string()));
        }
        let topic = self.core.topic(name, false).await?;
        if !force {
            let state = topic.lock();
            if !state.producers.is_empty() || state.consumers() > 0 {
                return Err(BrokerError::PreconditionFailed(
                    "Topic has active producers/subscriptions".to_owned(),
                ));
            }
        }
        self.core.unload(&topic).await;
        if name.is_persistent() {
            self.core.ledgers.delete(&ledger_name(name)).await?;
            self.core.delete_views(name, None).await?;
        }
        self.core.transactions.forget_topic(name).await?;
        // A client may have loaded it again in between.
        if let Some(topic) = self.core.loaded_topic(name) {
            self.core.unload(&topic).await;
        }
        if name.partition().is_none() {
            self.core.schemas.forget(name).await?;
            self.core.delete_topic_policies(name).await?;
        }
        self.core.security.grants.forget_topic(name).await?;
        self.core.watchers.changed(name, false);
        Ok(())
    }

    pub async fn delete_partitioned(
        &self,
        name: &TopicName,
        force: bool,
    ) -> Result<(), BrokerError> {
        let Some(stored) = self.partitions(name).await? else {
            return Err(BrokerError::TopicNotFound(name.to_string()));
        };
        if !force {
            for partition in 0..stored.partitions {
                let Some(topic) = self.core.loaded_topic(&name.with_partition(partition)) else {
                    continue;
                };
                let state = topic.lock();
                if !state.producers.is_empty() || state.consumers() > 0 {
                    return Err(BrokerError::PreconditionFailed(
                        "Topic has active producers/subscriptions".to_owned(),
                    ));
                }
            }
        }
        for partition in 0..stored.partitions {
            match self
                .delete_topic(&name.with_partition(partition), force)
                .await
            {
                Ok(()) | Err(BrokerError::TopicNotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        self.core.security.grants.forget_topic(name).await?;
        self.core.schemas.forget(name).await?;
        self.core.delete_topic_policies(name).await?;
        self.core.catalog.delete(&partitioned_key(name)).await
    }

    pub async fn topic_stats(&self, name: &TopicName) -> Result<TopicStats, BrokerError> {
        Ok(self.existing(name).await?.stats())
    }

    pub async fn topic_internal_stats(
        &self,
        name: &TopicName,
    ) -> Result<TopicInternalStats, BrokerError> {
        Ok(self.existing(name).await?.internal_stats())
    }

    /// (-1, -1) for an empty topic; the number is the batch index of the last message, or -1.
    pub async fn last_message_id(&self, name: &TopicName) -> Result<(Position, i32), BrokerError> {
        let last = self.existing(name).await?.last_message().await?;
        Ok(last.map_or((Position::EARLIEST, -1), |(position, batch)| {
            (position, batch.map_or(-1, |size| size - 1))
        }))
    }

    /// Begins a compaction; a conflict while one is under way.
    pub async fn compact(&self, name: &TopicName) -> Result<(), BrokerError> {
        self.existing(name).await?.start_compaction()
    }

    /// What became of the last compaction.
    pub async fn compaction_status(
        &self,
        name: &TopicName,
    ) -> Result<CompactionStatus, BrokerError> {
        Ok(self.existing(name).await?.compaction_status())
    }

    /// Seals the topic and returns its last position.
    pub async fn terminate(&self, name: &TopicName) -> Result<Position, BrokerError> {
        self.existing(name).await?.terminate().await
    }

    pub async fn unload(&self, name: &TopicName) -> Result<(), BrokerError> {
        if !self.topic_exists(name).await? {
            return Err(BrokerError::TopicNotFound(name.to_string()));
        }
        if let Some(topic) = self.core.loaded_topic(name) {
            self.core.unload(&topic).await;
        }
        Ok(())
    }

    /// Deletes what is acked and not retained, now.
    pub async fn trim_topic(&self, name: &TopicName) -> Result<(), BrokerError> {
        self.existing(name).await?.trim().await
    }

    /// The addresses for a topic: those of a listener where one is named.
    pub async fn lookup(
        &self,
        name: &TopicName,
        listener: Option<&str>,
    ) -> Result<ServiceUrls, BrokerError> {
        self.core.lookup_urls(name, listener).await
    }

    /// The entry at a position.
    pub async fn entry(
        &self,
        name: &TopicName,
        position: Position,
    ) -> Result<Option<PeekedEntry>, BrokerError> {
        let topic = self.existing(name).await?;
        topic.require_persistent("Reading entries")?;
        let entries = topic
            .ledger
            .read(position, ReadLimits::new(1, usize::MAX))
            .await?;
        Ok(entries
            .into_iter()
            .find(|entry| entry.position == position)
            .map(|entry| PeekedEntry {
                position: entry.position,
                block: entry.data,
            }))
    }

    // Figures

    pub fn metrics(&self) -> MetricsSnapshot {
        let core = &self.core;
        let storage = core.ledgers.stats();
        let mut snapshot = MetricsSnapshot {
            cache_bytes: storage.cache_bytes as u64,
            cache_hits_total: storage.cache_hits,
            cache_misses_total: storage.cache_misses,
            storage_read_entries_total: storage.read_entries,
            active_connections: core.peers().len() as u64,
            publish_bytes_in_flight: core.publishing.used() as u64,
            topics: core.loaded().iter().map(|topic| topic.metrics()).collect(),
            ..MetricsSnapshot::default()
        };
        core.metrics.fill(&mut snapshot);
        snapshot
    }

    /// The stats of every topic in memory, by name; idle ones are not there.
    pub fn loaded_topic_stats(&self) -> BTreeMap<String, TopicStats> {
        let loaded = self.core.loaded();
        let stats = loaded
            .iter()
            .map(|topic| (topic.name.to_string(), topic.stats()));
        stats.collect()
    }

    /// `host:port`, as REST names brokers.
    pub fn broker_id(&self) -> String {
        self.core.broker_id()
    }

    pub(super) async fn existing(&self, name: &TopicName) -> Result<Arc<Topic>, BrokerError> {
        if !self.topic_exists(name).await? {
            return Err(BrokerError::TopicNotFound(name.to_string()));
        }
        self.core.topic(name, false).await
    }

    fn check_partitions(&self, partitions: u32) -> Result<(), BrokerError> {
        let max = self.settings().max_num_partitions_per_partitioned_topic;
        if partitions == 0 {
            return Err(BrokerError::NotAllowed(
                "Number of partitions should be more than 0".to_owned(),
            ));
        }
        if max > 0 && partitions > max {
            return Err(BrokerError::NotAllowed(format!(
                "Number of partitions should be less than or equal to {max}"
            )));
        }
        Ok(())
    }

    async fn create_partitions(
        &self,
        name: &TopicName,
        from: u32,
        to: u32,
    ) -> Result<(), BrokerError> {
        if !name.is_persistent() {
            return Ok(());
        }
        for partition in from..to {
            let partition = name.with_partition(partition);
            let ledger = ledger_name(&partition);
            if !self.core.ledgers.exists(&ledger).await? {
                self.core.ledgers.open(&ledger, creating()).await?;
                self.core.watchers.changed(&partition, true);
            }
        }
        Ok(())
    }
}

fn creating() -> OpenOptions {
    OpenOptions {
        create: true,
        ..OpenOptions::default()
    }
}

fn already(result: Result<(), BrokerError>, text: &str) -> Result<(), BrokerError> {
    result.map_err(|error| match error {
        BrokerError::AlreadyExists(_) => BrokerError::AlreadyExists(text.to_owned()),
        other => other,
    })
}
