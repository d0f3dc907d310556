//! What says on which broker topics are to be: failure domains, isolation policies, quotas.
//!
//! It is kept and answered. There is one broker, so that every topic is where a domain or a quota
//! wants it; an isolation policy that keeps this broker from its namespaces is refused.

use std::collections::{BTreeMap, BTreeSet};

use geminga_model::NamespaceName;
use geminga_storage::metadata::Expected;
use regex::{Regex, RegexBuilder};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::broker::Broker;
use crate::error::BrokerError;
use crate::namespace::{decode, encode};

/// Brokers that fail together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FailureDomain {
    pub brokers: BTreeSet<String>,
}

/// When the secondary brokers are used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailoverPolicy {
    pub parameters: BTreeMap<String, String>,
    /// `min_available` is the only one there is.
    pub policy_type: String,
}

/// Which brokers serve some namespaces; all are regular expressions for whole names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IsolationPolicy {
    pub namespaces: Vec<String>,
    pub primary: Vec<String>,
    #[serde(default)]
    pub secondary: Vec<String>,
    pub auto_failover_policy: FailoverPolicy,
    /// What is unloaded when the policy changes; nothing has to move here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unload_scope: Option<String>,
}

/// What the topics of a bundle are expected to take.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ResourceQuota {
    pub msg_rate_in: f64,
    pub msg_rate_out: f64,
    pub bandwidth_in: f64,
    pub bandwidth_out: f64,
    pub memory: f64,
    /// Whether a balancer may correct it.
    pub dynamic: bool,
}

impl Default for ResourceQuota {
    fn default() -> ResourceQuota {
        ResourceQuota {
            msg_rate_in: 40.0,
            msg_rate_out: 120.0,
            bandwidth_in: 100_000.0,
            bandwidth_out: 300_000.0,
            memory: 80.0,
            dynamic: true,
        }
    }
}

/// Bytes that one compiled expression may take.
const REGEX_BYTES_MAX: usize = 256 << 10;

fn expression(text: &str) -> Result<Regex, String> {
    RegexBuilder::new(&format!("^(?:{text})$"))
        .size_limit(REGEX_BYTES_MAX)
        .build()
        .map_err(|_| format!("`{text}` is no regular expression"))
}

fn any_fits(expressions: &[String], name: &str) -> bool {
    let fits = |text: &String| expression(text).is_ok_and(|regex| regex.is_match(name));
    expressions.iter().any(fits)
}

impl IsolationPolicy {
    #[must_use]
    pub fn is_primary(&self, broker: &str) -> bool {
        any_fits(&self.primary, broker)
    }

    #[must_use]
    pub fn is_secondary(&self, broker: &str) -> bool {
        any_fits(&self.secondary, broker)
    }

    /// What is wrong with it.
    fn check(&self) -> Result<(), String> {
        if self.namespaces.is_empty() || self.primary.is_empty() {
            return Err("`namespaces` and `primary` must not be empty".to_owned());
        }
        for text in [&self.namespaces, &self.primary, &self.secondary] {
            for text in text {
                expression(text)?;
            }
        }
        let failover = &self.auto_failover_policy;
        if failover.policy_type != "min_available" {
            return Err(format!(
                "`policy_type` is `min_available`, not `{}`",
                failover.policy_type
            ));
        }
        for name in ["min_limit", "usage_threshold"] {
            let value = failover.parameters.get(name);
            if value.is_none_or(|value| value.parse::<u32>().is_err()) {
                return Err(format!("`parameters` must have a number `{name}`"));
            }
        }
        match self.unload_scope.as_deref() {
            None | Some("none" | "changed" | "all_matching") => Ok(()),
            Some(other) => Err(format!("`unload_scope` cannot be `{other}`")),
        }
    }
}

fn domains(cluster: &str) -> String {
    format!("/failure-domains/{}", encode(cluster))
}

fn isolation(cluster: &str) -> String {
    format!("/isolation/{}", encode(cluster))
}

const QUOTAS: &str = "/resource-quotas";

fn quota_key(of: Option<(&NamespaceName, &str)>) -> String {
    match of {
        Some((namespace, range)) => format!("{QUOTAS}/{namespace}/{range}"),
        None => format!("{QUOTAS}/default"),
    }
}

impl Broker {
    async fn documents<T: DeserializeOwned>(
        &self,
        path: &str,
    ) -> Result<BTreeMap<String, T>, BrokerError> {
        let found = self.core.catalog.scan::<T>(path).await?;
        let named = found.into_iter().filter_map(|(key, value)| {
            let name = decode(key.rsplit('/').next()?)?;
            Some((name, value))
        });
        Ok(named.collect())
    }

    /// Whether it was there.
    async fn remove_document(&self, path: &str, name: &str) -> Result<bool, BrokerError> {
        let key = format!("{path}/{}", encode(name));
        let was_there = self.core.catalog.store.get(&key).await?.is_some();
        self.core.catalog.delete(&key).await?;
        Ok(was_there)
    }

    async fn put_document<T: Serialize>(
        &self,
        path: &str,
        name: &str,
        value: &T,
    ) -> Result<(), BrokerError> {
        let key = format!("{path}/{}", encode(name));
        self.core.catalog.put(&key, value, Expected::Any).await
    }

    pub async fn failure_domains(
        &self,
        cluster: &str,
    ) -> Result<BTreeMap<String, FailureDomain>, BrokerError> {
        self.documents(&domains(cluster)).await
    }

    /// A broker is in one domain.
    pub async fn put_failure_domain(
        &self,
        cluster: &str,
        name: &str,
        domain: &FailureDomain,
    ) -> Result<(), BrokerError> {
        self.require_known(cluster).await?;
        for (other, known) in self.failure_domains(cluster).await? {
            let shared: Vec<&String> = known.brokers.intersection(&domain.brokers).collect();
            if other != name && !shared.is_empty() {
                return Err(BrokerError::AlreadyExists(format!(
                    "{shared:?} already exists in {other}"
                )));
            }
        }
        self.put_document(&domains(cluster), name, domain).await
    }

    /// Whether it was there.
    pub async fn delete_failure_domain(
        &self,
        cluster: &str,
        name: &str,
    ) -> Result<bool, BrokerError> {
        self.remove_document(&domains(cluster), name).await
    }

    pub async fn isolation_policies(
        &self,
        cluster: &str,
    ) -> Result<BTreeMap<String, IsolationPolicy>, BrokerError> {
        self.documents(&isolation(cluster)).await
    }

    /// `broker` is this one; a policy of its cluster must let it serve.
    pub async fn put_isolation_policy(
        &self,
        cluster: &str,
        name: &str,
        policy: &IsolationPolicy,
        broker: &str,
    ) -> Result<(), BrokerError> {
        self.require_known(cluster).await?;
        policy.check().map_err(|reason| {
            BrokerError::Malformed(format!(
                "Invalid format of input policy data. policy: {name}: {reason}"
            ))
        })?;
        let is_own = cluster == self.core.config.cluster_name;
        if is_own && !policy.is_primary(broker) && !policy.is_secondary(broker) {
            return Err(BrokerError::PreconditionFailed(format!(
                "policy {name} cannot be honoured: neither `primary` nor `secondary` names {broker}, \
                 the only broker, so that nobody would serve its namespaces"
            )));
        }
        self.put_document(&isolation(cluster), name, policy).await
    }

    pub async fn delete_isolation_policy(
        &self,
        cluster: &str,
        name: &str,
    ) -> Result<(), BrokerError> {
        self.require_known(cluster).await?;
        self.remove_document(&isolation(cluster), name)
            .await
            .map(drop)
    }

    async fn require_known(&self, cluster: &str) -> Result<(), BrokerError> {
        if self.clusters().await?.iter().any(|name| name == cluster) {
            return Ok(());
        }
        Err(BrokerError::PreconditionFailed(format!(
            "Cluster {cluster} does not exist."
        )))
    }

    /// Of a bundle, or the default; the default counts where a bundle has none.
    pub async fn resource_quota(
        &self,
        of: Option<(&NamespaceName, &str)>,
    ) -> Result<ResourceQuota, BrokerError> {
        let catalog = &self.core.catalog;
        if of.is_some()
            && let Some((own, _)) = catalog.get(&quota_key(of)).await?
        {
            return Ok(own);
        }
        let found = catalog.get(&quota_key(None)).await?;
        Ok(found.map(|(quota, _)| quota).unwrap_or_default())
    }

    pub async fn set_resource_quota(
        &self,
        of: Option<(&NamespaceName, &str)>,
        quota: ResourceQuota,
    ) -> Result<(), BrokerError> {
        let catalog = &self.core.catalog;
        catalog.put(&quota_key(of), &quota, Expected::Any).await
    }

    /// Back to the default.
    pub async fn reset_resource_quota(
        &self,
        namespace: &NamespaceName,
        range: &str,
    ) -> Result<(), BrokerError> {
        let key = quota_key(Some((namespace, range)));
        self.core.catalog.delete(&key).await
    }

    pub(super) async fn forget_quotas(&self, namespace: &NamespaceName) -> Result<(), BrokerError> {
        let path = format!("{QUOTAS}/{namespace}");
        for (key, _) in self.core.catalog.scan::<ResourceQuota>(&path).await? {
            self.core.catalog.delete(&key).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_isolation_policy_is_checked_by_field() {
        let policy = |change: fn(&mut IsolationPolicy)| {
            let parameters = [("min_limit", "1"), ("usage_threshold", "80")];
            let mut policy = IsolationPolicy {
                namespaces: vec!["t/n.*".to_owned()],
                primary: vec!["host.*".to_owned()],
                secondary: vec!["other".to_owned()],
                auto_failover_policy: FailoverPolicy {
                    parameters: parameters.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
                    policy_type: "min_available".to_owned(),
                },
                unload_scope: None,
            };
            change(&mut policy);
            policy
        };
        let good = policy(|_| ());
        assert_eq!(good.check(), Ok(()));
        assert!(good.is_primary("host:8080") && !good.is_primary("a-host:8080"));
        assert!(good.is_secondary("other") && !good.is_secondary("other:8080"));
        for (policy, word) in [
            (policy(|p| p.namespaces.clear()), "`namespaces`"),
            (policy(|p| p.primary.clear()), "`primary`"),
            (policy(|p| p.primary = vec!["(".to_owned()]), "`(`"),
            (
                policy(|p| drop(p.auto_failover_policy.parameters.remove("min_limit"))),
                "`min_limit`",
            ),
            (
                policy(|p| p.auto_failover_policy.policy_type = "x".to_owned()),
                "`policy_type`",
            ),
            (
                policy(|p| p.unload_scope = Some("x".to_owned())),
                "`unload_scope`",
            ),
        ] {
            let refused = policy.check().unwrap_err();
            assert!(refused.contains(word), "{refused}");
        }
    }
}
