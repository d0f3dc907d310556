//! What was granted, kept in the metadata and whole in memory, so that asking needs no wait.
//!
//! `/grants/<tenant>/<namespace>` is a JSON of [`AuthPolicies`]. What must hold: a change is durable
//! before it counts and counts before its caller is answered.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use geminga_model::{NamespaceName, TopicName};
use geminga_storage::metadata::Expected;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use super::decision::{Access, Action, Need, RoleActions};
use crate::broker::Broker;
use crate::error::BrokerError;
use crate::namespace::{Catalog, TenantInfo};

/// The grants of a namespace and all in it, as Pulsar writes them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthPolicies {
    pub namespace_auth: RoleActions,
    /// By topic.
    pub destination_auth: BTreeMap<String, RoleActions>,
    /// By subscription.
    pub subscription_auth_roles: BTreeMap<String, BTreeSet<String>>,
    /// Subscriptions must begin with the role's name. Not part of Pulsar's document.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub subscription_prefix_mode: bool,
}

pub(crate) struct Grants {
    catalog: Catalog,
    known: RwLock<Known>,
    changing: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct Known {
    tenant_admins: HashMap<String, Vec<String>>,
    namespaces: HashMap<String, Arc<AuthPolicies>>,
}

const PATH: &str = "/grants";

impl Grants {
    pub(crate) async fn load(catalog: Catalog) -> Result<Grants, BrokerError> {
        let name = |key: &str, path: &str| {
            let name = key.strip_prefix(path).unwrap_or(key);
            name.trim_start_matches('/').to_owned()
        };
        let tenants = catalog.scan::<TenantInfo>("/tenants").await?;
        let namespaces = catalog.scan::<AuthPolicies>(PATH).await?;
        let known = Known {
            tenant_admins: tenants
                .into_iter()
                .map(|(key, info)| (name(&key, "/tenants"), info.admin_roles))
                .collect(),
            namespaces: namespaces
                .into_iter()
                .map(|(key, policies)| (name(&key, PATH), Arc::new(policies)))
                .collect(),
        };
        Ok(Grants {
            catalog,
            known: RwLock::new(known),
            changing: Arc::default(),
        })
    }

    /// What counts for a need.
    pub(super) fn of(&self, need: &Need<'_>) -> Access {
        let known = self.known.read();
        let mut access = Access::default();
        let Some(tenant) = need.tenant() else {
            return access;
        };
        if let Some(admins) = known.tenant_admins.get(tenant) {
            access.tenant_admins.clone_from(admins);
        }
        let (namespace, topic) = match need {
            Need::Namespace { namespace, .. } => (*namespace, None),
            Need::Topic { topic, .. } | Need::Subscription { topic, .. } => {
                (topic.namespace_str(), Some(*topic))
            }
            _ => return access,
        };
        let Some(policies) = known.namespaces.get(namespace) else {
            return access;
        };
        access.namespace.clone_from(&policies.namespace_auth);
        access.is_prefix_mode = policies.subscription_prefix_mode;
        if let Some(topic) = topic {
            let names = [topic.to_string(), topic.parent().to_string()];
            let granted = names
                .iter()
                .filter_map(|name| policies.destination_auth.get(name));
            access.topic = granted.cloned().collect();
        }
        if let Need::Subscription { subscription, .. } = need {
            let roles = policies.subscription_auth_roles.get(*subscription);
            access.subscription_roles = roles.filter(|roles| !roles.is_empty()).cloned();
        }
        access
    }

    pub(crate) fn set_tenant(&self, tenant: &str, admins: Option<Vec<String>>) {
        let mut known = self.known.write();
        match admins {
            Some(admins) => known.tenant_admins.insert(tenant.to_owned(), admins),
            None => known.tenant_admins.remove(tenant),
        };
    }

    fn get(&self, namespace: &str) -> Arc<AuthPolicies> {
        let known = self.known.read();
        known.namespaces.get(namespace).cloned().unwrap_or_default()
    }

    /// Stores what is granted in a namespace; `changing` is held since it was read.
    async fn store(
        &self,
        namespace: &NamespaceName,
        policies: AuthPolicies,
    ) -> Result<(), BrokerError> {
        let key = format!("{PATH}/{namespace}");
        self.catalog.put(&key, &policies, Expected::Any).await?;
        let mut known = self.known.write();
        known
            .namespaces
            .insert(namespace.as_str().to_owned(), Arc::new(policies));
        Ok(())
    }

    /// The namespace is gone.
    pub(crate) async fn forget(&self, namespace: &NamespaceName) -> Result<(), BrokerError> {
        let _one = self.changing.lock().await;
        if self
            .known
            .read()
            .namespaces
            .contains_key(namespace.as_str())
        {
            self.catalog.delete(&format!("{PATH}/{namespace}")).await?;
            self.known.write().namespaces.remove(namespace.as_str());
        }
        Ok(())
    }

    /// The topic is gone.
    pub(crate) async fn forget_topic(&self, topic: &TopicName) -> Result<(), BrokerError> {
        let namespace = topic.namespace();
        let _one = self.changing.lock().await;
        let mut policies = (*self.get(namespace.as_str())).clone();
        match policies.destination_auth.remove(topic.as_str()) {
            Some(_) => self.store(&namespace, policies).await,
            None => Ok(()),
        }
    }
}

impl Broker {
    /// All that was granted in a namespace.
    pub async fn auth_policies(
        &self,
        namespace: &NamespaceName,
    ) -> Result<Arc<AuthPolicies>, BrokerError> {
        self.policies(namespace).await?;
        Ok(self.core.security.grants.get(namespace.as_str()))
    }

    /// Changes what is granted in a namespace.
    pub async fn update_auth_policies(
        &self,
        namespace: &NamespaceName,
        change: impl FnOnce(&mut AuthPolicies) + Send,
    ) -> Result<(), BrokerError> {
        self.policies(namespace).await?;
        let grants = &self.core.security.grants;
        let one = grants.changing.clone().lock_owned().await;
        let mut policies = (*grants.get(namespace.as_str())).clone();
        change(&mut policies);
        let (core, namespace) = (self.core.clone(), namespace.clone());
        let store = async move {
            let _one = one;
            core.security.grants.store(&namespace, policies).await?;
            core.rights_changed();
            Ok(())
        };
        self.core.uncancelled(store).await
    }

    /// What each role may do on a topic, by its own grants and its namespace's.
    pub async fn topic_permissions(&self, topic: &TopicName) -> Result<RoleActions, BrokerError> {
        let policies = self.auth_policies(&topic.namespace()).await?;
        let mut all = policies.namespace_auth.clone();
        if let Some(own) = policies.destination_auth.get(&topic.to_string()) {
            for (role, actions) in own {
                let known: &mut BTreeSet<Action> = all.entry(role.clone()).or_default();
                known.extend(actions);
            }
        }
        Ok(all)
    }
}
