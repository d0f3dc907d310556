//! Resource groups: limits that the topics of several namespaces share.
//!
//! `/resource-groups/<name>` is a JSON of [`ResourceGroup`]; all are in memory too. A namespace names
//! its group in its policies, and each of its topics asks the group's limiters beside its own. What
//! must hold: a group that a namespace names exists, and a changed limit holds from its answer on for
//! topics that are loaded already: they keep the group, not its numbers, and whoever waits for the old
//! limit is looked at again.

use std::collections::BTreeMap;
use std::sync::Arc;

use geminga_storage::metadata::Expected;
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};

use crate::broker::Broker;
use crate::error::BrokerError;
use crate::namespace::{Catalog, decode, encode};
use crate::policies::{DispatchRate, Policies, PublishRate};
use crate::rate::Limiter;

const PATH: &str = "/resource-groups";

/// What a group may pass a second, under Pulsar's names. Unset, or 0 or less: no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ResourceGroup {
    pub publish_rate_in_msgs: Option<i64>,
    pub publish_rate_in_bytes: Option<i64>,
    pub dispatch_rate_in_msgs: Option<i64>,
    pub dispatch_rate_in_bytes: Option<i64>,
}

impl ResourceGroup {
    /// What is not given stays.
    fn over(self, before: ResourceGroup) -> ResourceGroup {
        ResourceGroup {
            publish_rate_in_msgs: self.publish_rate_in_msgs.or(before.publish_rate_in_msgs),
            publish_rate_in_bytes: self.publish_rate_in_bytes.or(before.publish_rate_in_bytes),
            dispatch_rate_in_msgs: self.dispatch_rate_in_msgs.or(before.dispatch_rate_in_msgs),
            dispatch_rate_in_bytes: self
                .dispatch_rate_in_bytes
                .or(before.dispatch_rate_in_bytes),
        }
    }
}

/// The limiters that its topics share.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) publish: Mutex<Limiter>,
    pub(crate) dispatch: Mutex<Limiter>,
}

impl Group {
    fn new(limits: ResourceGroup, now_ms: u64) -> Group {
        let (publish, dispatch) = limiters(limits, now_ms);
        Group {
            publish: Mutex::new(publish),
            dispatch: Mutex::new(dispatch),
        }
    }

    fn change(&self, limits: ResourceGroup, now_ms: u64) {
        (*self.publish.lock(), *self.dispatch.lock()) = limiters(limits, now_ms);
    }
}

fn limiters(limits: ResourceGroup, now_ms: u64) -> (Limiter, Limiter) {
    let rate = |limit: Option<i64>| limit.unwrap_or(-1);
    let publish = PublishRate {
        publish_throttling_rate_in_msg: rate(limits.publish_rate_in_msgs),
        publish_throttling_rate_in_byte: rate(limits.publish_rate_in_bytes),
    };
    let dispatch = DispatchRate {
        dispatch_throttling_rate_in_msg: rate(limits.dispatch_rate_in_msgs),
        dispatch_throttling_rate_in_byte: rate(limits.dispatch_rate_in_bytes),
        ..DispatchRate::default()
    };
    (
        Limiter::of_publish(publish, now_ms),
        Limiter::of_dispatch(dispatch, now_ms),
    )
}

pub(crate) struct Groups {
    known: RwLock<BTreeMap<String, (ResourceGroup, Arc<Group>)>>,
    /// Groups and the namespaces that name them change one at a time.
    pub(crate) changing: tokio::sync::Mutex<()>,
}

fn key(name: &str) -> String {
    format!("{PATH}/{}", encode(name))
}

impl Groups {
    pub(crate) async fn load(catalog: &Catalog, now_ms: u64) -> Result<Groups, BrokerError> {
        let stored = catalog.scan::<ResourceGroup>(PATH).await?;
        let known = stored.into_iter().filter_map(|(key, limits)| {
            let name = decode(key.rsplit('/').next()?)?;
            Some((name, (limits, Arc::new(Group::new(limits, now_ms)))))
        });
        Ok(Groups {
            known: RwLock::new(known.collect()),
            changing: tokio::sync::Mutex::new(()),
        })
    }

    pub(crate) fn get(&self, name: &str) -> Option<Arc<Group>> {
        self.known.read().get(name).map(|(_, group)| group.clone())
    }
}

impl Broker {
    pub fn resource_groups(&self) -> Vec<String> {
        self.core.groups.known.read().keys().cloned().collect()
    }

    pub fn resource_group(&self, name: &str) -> Option<ResourceGroup> {
        let known = self.core.groups.known.read();
        known.get(name).map(|(limits, _)| *limits)
    }

    /// Makes a group, or changes what is given of one.
    pub async fn put_resource_group(
        &self,
        name: &str,
        given: ResourceGroup,
    ) -> Result<(), BrokerError> {
        let (broker, name) = (self.clone(), name.to_owned());
        let change = async move { broker.put_resource_group_now(&name, given).await };
        self.core.uncancelled(change).await
    }

    async fn put_resource_group_now(
        &self,
        name: &str,
        given: ResourceGroup,
    ) -> Result<(), BrokerError> {
        let groups = &self.core.groups;
        let _one = groups.changing.lock().await;
        let limits = given.over(self.resource_group(name).unwrap_or_default());
        let key = key(name);
        self.core.catalog.put(&key, &limits, Expected::Any).await?;
        let now_ms = self.core.clock.now_ms();
        let mut known = groups.known.write();
        match known.get_mut(name) {
            Some((stored, group)) => {
                *stored = limits;
                group.change(limits, now_ms);
                let group = group.clone();
                drop(known);
                for topic in self.core.loaded() {
                    topic.group_changed(&group);
                }
            }
            None => {
                let group = Arc::new(Group::new(limits, now_ms));
                known.insert(name.to_owned(), (limits, group));
            }
        }
        Ok(())
    }

    /// One that no namespace names.
    pub async fn delete_resource_group(&self, name: &str) -> Result<(), BrokerError> {
        let (broker, name) = (self.clone(), name.to_owned());
        let change = async move { broker.delete_resource_group_now(&name).await };
        self.core.uncancelled(change).await
    }

    async fn delete_resource_group_now(&self, name: &str) -> Result<(), BrokerError> {
        let groups = &self.core.groups;
        let _one = groups.changing.lock().await;
        if self.resource_group(name).is_none() {
            return Err(BrokerError::NotFound(
                "ResourceGroup does not exist".to_owned(),
            ));
        }
        let namespaces = self.core.catalog.scan::<Policies>("/namespaces").await?;
        let uses = |policies: &Policies| policies.resource_group.as_deref() == Some(name);
        if namespaces.iter().any(|(_, policies)| uses(policies)) {
            return Err(BrokerError::PreconditionFailed(
                "ResourceGroup is in use".to_owned(),
            ));
        }
        self.core.catalog.delete(&key(name)).await?;
        groups.known.write().remove(name);
        Ok(())
    }

    /// No group changes as long as the guard is held. The group must be there.
    pub(crate) async fn lock_group(
        &self,
        name: &str,
    ) -> Result<tokio::sync::MutexGuard<'_, ()>, BrokerError> {
        let one = self.core.groups.changing.lock().await;
        match self.resource_group(name) {
            Some(_) => Ok(one),
            None => Err(BrokerError::PreconditionFailed(
                "ResourceGroup does not exist".to_owned(),
            )),
        }
    }

    /// Puts a namespace's topics under a group's limits, or under none.
    pub async fn set_resource_group(
        &self,
        namespace: &geminga_model::NamespaceName,
        name: Option<&str>,
    ) -> Result<(), BrokerError> {
        let (broker, namespace) = (self.clone(), namespace.clone());
        let name = name.map(str::to_owned);
        let change = async move {
            let _one = match &name {
                Some(name) => broker.lock_group(name).await?,
                None => broker.core.groups.changing.lock().await,
            };
            let change = |policies: &mut Policies| {
                policies.resource_group.clone_from(&name);
                Ok(())
            };
            broker.update_policies(&namespace, change).await
        };
        self.core.uncancelled(change).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_of_a_group_share_its_limit_and_hear_of_a_change() {
        let limits = |messages| ResourceGroup {
            publish_rate_in_msgs: Some(messages),
            ..ResourceGroup::default()
        };
        let group = Arc::new(Group::new(limits(10), 0));
        let of_a_topic = group.clone();
        of_a_topic.publish.lock().spend(30, 0);
        assert_eq!(group.publish.lock().allowance(0), Err(2_100));
        group.change(limits(0), 0);
        assert!(!of_a_topic.publish.lock().is_limited());
        let both = limits(5).over(ResourceGroup {
            publish_rate_in_msgs: Some(1),
            dispatch_rate_in_bytes: Some(7),
            ..ResourceGroup::default()
        });
        assert_eq!(both.publish_rate_in_msgs, Some(5));
        assert_eq!(both.dispatch_rate_in_bytes, Some(7));
    }
}
