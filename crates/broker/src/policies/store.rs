//! Policies of topics in the metadata, and how loaded topics hear of changes.
//!
//! A partitioned topic has one document for all its partitions. What must hold: a change is durable
//! before it takes effect, takes effect at every loaded topic before its caller is answered, and a
//! topic that is loaded meanwhile does not keep what was read before it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use geminga_model::{NamespaceName, TopicName};
use geminga_storage::metadata::Expected;
use parking_lot::Mutex;

use super::{EffectivePolicies, Policies, effective};
use crate::broker::{Broker, Core};
use crate::error::BrokerError;
use crate::namespace::{namespace_key, topic_path};
use crate::topic::Topic;

/// Tries of a change that others come in between of.
const TRIES: usize = 10;

/// What topics without policies of their own share, by namespace.
#[derive(Default)]
pub(crate) struct PolicyCache {
    /// Rises with each change, after it is stored.
    epoch: AtomicU64,
    namespaces: Mutex<HashMap<String, Arc<EffectivePolicies>>>,
}

/// The policies in force for a loaded topic, and as of which change.
#[derive(Clone)]
pub(crate) struct InForce {
    epoch: u64,
    pub(crate) policies: Arc<EffectivePolicies>,
}

pub(crate) fn topic_policies_path(namespace: &NamespaceName) -> String {
    format!("/topic-policies/{namespace}/persistent")
}

/// The same for all partitions.
fn topic_policies_key(topic: &TopicName) -> String {
    topic_path("/topic-policies/", &topic.parent())
}

impl Core {
    /// Reads what is in force for a topic.
    pub(crate) async fn effective_policies(
        &self,
        topic: &TopicName,
    ) -> Result<InForce, BrokerError> {
        let cache = &self.policies;
        // Before anything is read: what is read is at least as new as this.
        let epoch = cache.epoch.load(Ordering::Acquire);
        let own = self.catalog.get(&topic_policies_key(topic)).await?;
        if own.is_none()
            && let Some(policies) = cache.namespaces.lock().get(topic.namespace_str())
        {
            let policies = policies.clone();
            return Ok(InForce { epoch, policies });
        }
        let namespace = self.catalog.policies(topic.namespace_str()).await?;
        let namespace = namespace.map(|(policies, _)| policies).unwrap_or_default();
        let own = own.map(|(policies, _): (Policies, _)| policies);
        let policies = Arc::new(effective(
            own.as_ref().unwrap_or(&Policies::default()),
            &namespace,
            &self.settings.live(),
        ));
        if own.is_none() {
            let mut namespaces = cache.namespaces.lock();
            if cache.epoch.load(Ordering::Acquire) == epoch {
                namespaces.insert(topic.namespace_str().to_owned(), policies.clone());
            }
        }
        Ok(InForce { epoch, policies })
    }

    /// Lets the loaded topics that a stored change affects read it.
    async fn policies_changed(&self, affected: impl Fn(&TopicName) -> bool) {
        {
            let mut namespaces = self.policies.namespaces.lock();
            self.policies.epoch.fetch_add(1, Ordering::AcqRel);
            namespaces.clear();
        }
        for topic in self.loaded() {
            if affected(&topic.name)
                && let Err(error) = topic.refresh_policies().await
            {
                // Read again at the next use of the topic.
                tracing::error!(topic = %topic.name, %error, "policies could not be read");
            }
        }
    }

    /// The broker's settings are part of all that is in force.
    pub(crate) async fn all_policies_changed(&self) {
        self.policies_changed(|_| true).await;
    }

    pub(crate) async fn namespace_policies_changed(&self, namespace: &NamespaceName) {
        self.policies_changed(|topic| topic.namespace_str() == namespace.as_str())
            .await;
    }

    /// With the topic its policies go.
    pub(crate) async fn delete_topic_policies(&self, topic: &TopicName) -> Result<(), BrokerError> {
        let key = topic_policies_key(topic);
        if self.catalog.store.get(&key).await?.is_some() {
            self.catalog.delete(&key).await?;
            let parent = topic.parent();
            self.policies_changed(|other| other.parent() == parent)
                .await;
        }
        Ok(())
    }
}

impl Topic {
    pub(crate) fn policies(&self) -> Arc<EffectivePolicies> {
        self.in_force.read().policies.clone()
    }

    /// Reads what is in force now, if it may have changed.
    pub(crate) async fn refresh_policies(self: &Arc<Topic>) -> Result<(), BrokerError> {
        let epoch = self.core.policies.epoch.load(Ordering::Acquire);
        if self.in_force.read().epoch == epoch {
            return Ok(());
        }
        let new = self.core.effective_policies(&self.name).await?;
        let changed = {
            let mut current = self.in_force.write();
            if new.epoch < current.epoch {
                return Ok(());
            }
            let changed = new.policies != current.policies;
            *current = new;
            changed
        };
        if changed {
            self.policies_changed();
            self.switch_dedup().await?;
            self.replicate().await?;
        }
        Ok(())
    }
}

impl Broker {
    /// Changes the policies of a namespace, against concurrent changes too; `change` may refuse.
    pub async fn update_policies(
        &self,
        namespace: &NamespaceName,
        change: impl Fn(&mut Policies) -> Result<(), BrokerError> + Send,
    ) -> Result<(), BrokerError> {
        let key = namespace_key(namespace.as_str());
        for attempt in 1.. {
            let found = self.core.catalog.policies(namespace.as_str()).await?;
            let (before, version) =
                found.ok_or_else(|| BrokerError::NamespaceNotFound(namespace.to_string()))?;
            let mut policies = Policies::clone(&before);
            change(&mut policies)?;
            let is_change = *before != policies;
            let (core, key, namespace) = (self.core.clone(), key.clone(), namespace.clone());
            let put = self.core.uncancelled(async move {
                let expected = Expected::Is(version);
                core.catalog.put(&key, &policies, expected).await?;
                if is_change {
                    core.namespace_policies_changed(&namespace).await;
                }
                Ok(())
            });
            match put.await {
                Err(BrokerError::AlreadyExists(_)) if attempt < TRIES => {}
                done => return done,
            }
        }
        Ok(())
    }

    /// What is set for a topic itself; its partitions share it.
    pub async fn topic_policies(&self, topic: &TopicName) -> Result<Policies, BrokerError> {
        self.require_topic(topic).await?;
        let found = self.core.catalog.get(&topic_policies_key(topic)).await?;
        Ok(found.map(|(policies, _)| policies).unwrap_or_default())
    }

    /// Changes the policies of a topic, against concurrent changes too; `change` may refuse.
    pub async fn update_topic_policies(
        &self,
        topic: &TopicName,
        change: impl Fn(&mut Policies) -> Result<(), BrokerError> + Send,
    ) -> Result<(), BrokerError> {
        let key = topic_policies_key(topic);
        let parent = topic.parent();
        for attempt in 1.. {
            self.require_topic(topic).await?;
            let found = self.core.catalog.get::<Policies>(&key).await?;
            let (mut policies, expected) = match found {
                Some((policies, version)) => (policies, Expected::Is(version)),
                None => (Policies::default(), Expected::Absent),
            };
            let before = policies.clone();
            change(&mut policies)?;
            if before == policies {
                return Ok(());
            }
            let (core, key, parent) = (self.core.clone(), key.clone(), parent.clone());
            let put = self.core.uncancelled(async move {
                if policies == Policies::default() {
                    core.catalog.store.delete(&key, expected).await?;
                } else {
                    core.catalog.put(&key, &policies, expected).await?;
                }
                core.policies_changed(|other| other.parent() == parent)
                    .await;
                Ok(())
            });
            match put.await {
                Err(BrokerError::AlreadyExists(_)) if attempt < TRIES => {}
                done => return done,
            }
        }
        Ok(())
    }

    /// What is in force for a topic.
    pub async fn effective_policies(
        &self,
        topic: &TopicName,
    ) -> Result<Arc<EffectivePolicies>, BrokerError> {
        self.require_topic(topic).await?;
        Ok(self.core.effective_policies(topic).await?.policies)
    }

    async fn require_topic(&self, topic: &TopicName) -> Result<(), BrokerError> {
        if self.core.catalog.partitions(topic).await?.is_some() || self.topic_exists(topic).await? {
            return Ok(());
        }
        Err(BrokerError::TopicNotFound(topic.to_string()))
    }
}
