//! The clusters that are known here, and what is known of them.

use std::collections::BTreeMap;

use geminga_model::NamespaceName;
use geminga_storage::metadata::Expected;
use serde::{Deserialize, Serialize};

use crate::broker::{Broker, Core};
use crate::error::BrokerError;
use crate::namespace::TenantInfo;
use crate::policies::Policies;

const PATH: &str = "/clusters";
const TOKEN_PLUGIN: &str = "org.apache.pulsar.client.impl.auth.AuthenticationToken";

fn key(cluster: &str) -> String {
    format!("{PATH}/{cluster}")
}

/// How a cluster is reached, under Pulsar's names. What is not honoured is refused by
/// [`ClusterData::check`].
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ClusterData {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_url_tls: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broker_service_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broker_service_url_tls: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authentication_plugin: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authentication_parameters: Option<String>,
    /// Clusters that the same topics are never in at once.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_none")]
    pub peer_cluster_names: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener_name: Option<String>,
}

/// It may hold a token.
impl std::fmt::Debug for ClusterData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterData")
            .field("service_url", &self.service_url)
            .field("broker_service_url", &self.broker_service_url)
            .field("authentication_plugin", &self.authentication_plugin)
            .finish_non_exhaustive()
    }
}

fn or_none<'de, D>(deserializer: D) -> Result<Vec<String>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl ClusterData {
    /// The token that is shown to the cluster.
    pub fn token(&self) -> Result<Option<String>, String> {
        let given = self.authentication_parameters.as_deref().unwrap_or("");
        match self.authentication_plugin.as_deref().unwrap_or("") {
            "" if given.is_empty() => Ok(None),
            "" => Err("`authenticationParameters` needs an `authenticationPlugin`".to_owned()),
            TOKEN_PLUGIN | "token" => {
                let token = match given.strip_prefix("token:") {
                    Some(token) => token.to_owned(),
                    None => match serde_json::from_str::<BTreeMap<String, String>>(given) {
                        Ok(mut map) => map.remove("token").unwrap_or_default(),
                        Err(_) => given.to_owned(),
                    },
                };
                match token.is_empty() || token.starts_with("file:") {
                    true => Err(
                        "`authenticationParameters` must be `token:…` with the token itself"
                            .to_owned(),
                    ),
                    false => Ok(Some(token)),
                }
            }
            other => Err(format!(
                "`authenticationPlugin` `{other}` cannot be honoured: clusters are reached with a \
                 token or without"
            )),
        }
    }

    /// What cannot be honoured, by name.
    pub fn check(&self) -> Result<(), String> {
        for (name, url, schemes) in [
            ("serviceUrl", &self.service_url, ["http://"]),
            ("serviceUrlTls", &self.service_url_tls, ["https://"]),
            ("brokerServiceUrl", &self.broker_service_url, ["pulsar://"]),
            (
                "brokerServiceUrlTls",
                &self.broker_service_url_tls,
                ["pulsar+ssl://"],
            ),
        ] {
            let fits = |url: &String| schemes.iter().any(|scheme| url.starts_with(scheme));
            if url
                .as_ref()
                .is_some_and(|url| !url.is_empty() && !fits(url))
            {
                return Err(format!("`{name}` must begin with `{}`", schemes[0]));
            }
        }
        self.token().map(drop)
    }
}

impl Core {
    pub(crate) async fn cluster(&self, name: &str) -> Result<Option<ClusterData>, BrokerError> {
        let found = self.catalog.get(&key(name)).await?;
        Ok(found.map(|(data, _)| data))
    }
}

impl Broker {
    /// Their names, this one's among them.
    pub async fn clusters(&self) -> Result<Vec<String>, BrokerError> {
        let mut names = self.core.catalog.store.children(PATH).await?;
        let own = &self.core.config.cluster_name;
        if !names.contains(own) {
            names.push(own.clone());
        }
        names.sort_unstable();
        Ok(names)
    }

    /// What is stored of a cluster. Of this one there may be nothing.
    pub async fn cluster(&self, name: &str) -> Result<Option<ClusterData>, BrokerError> {
        self.core.cluster(name).await
    }

    pub async fn create_cluster(&self, name: &str, data: &ClusterData) -> Result<(), BrokerError> {
        let exists = || BrokerError::AlreadyExists("Cluster already exists".to_owned());
        if name == self.core.config.cluster_name {
            return Err(exists());
        }
        let key = key(name);
        let put = self.core.catalog.put(&key, data, Expected::Absent);
        put.await.map_err(|error| match error {
            BrokerError::AlreadyExists(_) => exists(),
            other => other,
        })
    }

    /// Takes effect for ways that are opened from now on.
    pub async fn update_cluster(&self, name: &str, data: &ClusterData) -> Result<(), BrokerError> {
        self.require_cluster(name).await?;
        self.core.catalog.put(&key(name), data, Expected::Any).await
    }

    /// One that is in use stays.
    pub async fn delete_cluster(&self, name: &str) -> Result<(), BrokerError> {
        self.require_cluster(name).await?;
        let catalog = &self.core.catalog;
        let tenants = catalog.scan::<TenantInfo>("/tenants").await?;
        let namespaces = catalog.scan::<Policies>("/namespaces").await?;
        let is_named = |names: &[String]| names.iter().any(|other| other == name);
        let in_namespace = namespaces.iter().any(|(_, policies)| {
            let names = policies.replication_clusters.as_deref();
            is_named(names.unwrap_or_default()) || is_named(&policies.allowed_clusters)
        });
        let in_tenant = tenants.iter().any(|(_, t)| is_named(&t.allowed_clusters));
        if in_namespace || in_tenant || name == self.core.config.cluster_name {
            return Err(BrokerError::PreconditionFailed(
                "Cluster not empty".to_owned(),
            ));
        }
        catalog.delete(&key(name)).await
    }

    async fn require_cluster(&self, name: &str) -> Result<(), BrokerError> {
        match name == self.core.config.cluster_name || self.core.cluster(name).await?.is_some() {
            true => Ok(()),
            false => Err(BrokerError::ClusterNotFound),
        }
    }

    /// Whether a namespace's topics may be in these clusters; an error says why not. A topic that is
    /// to be in other clusters is in this one too: else it would not be here.
    pub async fn check_replication(
        &self,
        namespace: &NamespaceName,
        clusters: &[String],
    ) -> Result<(), BrokerError> {
        let own = &self.core.config.cluster_name;
        let refuse = |text: String| Err(BrokerError::PreconditionFailed(text));
        if clusters.is_empty() {
            return refuse("ClusterIds should not be null or empty".to_owned());
        }
        if clusters.iter().any(|name| name == "global") {
            let text = "Cannot specify global in the list of replication clusters";
            return refuse(text.to_owned());
        }
        let known = self.clusters().await?;
        let forbid = |text: String| Err(BrokerError::NotPermitted(text));
        if let Some(unknown) = clusters.iter().find(|name| !known.contains(name)) {
            return forbid(format!("Invalid cluster id: {unknown}"));
        }
        if !clusters.contains(own) {
            return refuse(format!(
                "`replication_clusters` without `{own}` cannot be honoured: the topics are here"
            ));
        }
        let tenant = self.tenant(namespace.tenant()).await?;
        if let Some(other) = clusters
            .iter()
            .find(|n| !tenant.allowed_clusters.contains(n))
        {
            return forbid(format!(
                "Cluster [{other}] is not in the list of allowed clusters list for tenant [{}]",
                namespace.tenant()
            ));
        }
        let policies = self.core.catalog.policies(namespace.as_str()).await?;
        let allowed = policies.map(|(policies, _)| policies.allowed_clusters.clone());
        let allowed = allowed.filter(|allowed| !allowed.is_empty());
        if let Some(allowed) = allowed
            && let Some(other) = clusters.iter().find(|name| !allowed.contains(name))
        {
            return forbid(format!(
                "Cluster [{other}] is not in the list of allowed clusters list for namespace \
                 [{namespace}]"
            ));
        }
        for name in clusters {
            let data = self.cluster(name).await?.unwrap_or_default();
            let peer = clusters
                .iter()
                .find(|n| data.peer_cluster_names.contains(n));
            if let Some(peer) = peer {
                return Err(BrokerError::AlreadyExists(format!(
                    "{name} and {peer} are peer clusters and cannot be both in the list of \
                     replication clusters"
                )));
            }
        }
        Ok(())
    }
}

impl Broker {
    /// Says which clusters a namespace may be in; none: those that its tenant may be in.
    pub async fn set_allowed_clusters(
        &self,
        namespace: &NamespaceName,
        clusters: &[String],
    ) -> Result<(), BrokerError> {
        let used = self.policies(namespace).await?.replication_clusters;
        self.check_allowed(namespace, clusters, used.as_deref())
            .await?;
        self.update_policies(namespace, |policies| {
            policies.allowed_clusters = clusters.to_vec();
            Ok(())
        })
        .await
    }

    /// Whether a namespace may be allowed these clusters while it is in those that it uses.
    pub async fn check_allowed(
        &self,
        namespace: &NamespaceName,
        clusters: &[String],
        used: Option<&[String]>,
    ) -> Result<(), BrokerError> {
        let tenant = self.tenant(namespace.tenant()).await?;
        let mut all = clusters.iter();
        if let Some(name) = all.find(|name| !tenant.allowed_clusters.contains(name)) {
            return Err(BrokerError::NotPermitted(format!(
                "Cluster [{name}] is not in the list of allowed clusters list for tenant [{}]",
                namespace.tenant()
            )));
        }
        let own = [self.core.config.cluster_name.clone()];
        let mut used = used.unwrap_or(&own).iter();
        let missing = used.find(|name| !clusters.contains(name));
        match missing.filter(|_| !clusters.is_empty()) {
            None => Ok(()),
            Some(name) => Err(BrokerError::Malformed(format!(
                "Allowed clusters do not contain the replication cluster [{name}]. Please remove \
                 the replication cluster if the cluster is not allowed for this namespace"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(plugin: &str, parameters: &str) -> ClusterData {
        ClusterData {
            authentication_plugin: Some(plugin.to_owned()),
            authentication_parameters: Some(parameters.to_owned()),
            ..ClusterData::default()
        }
    }

    #[test]
    fn a_token_is_read_and_other_ways_are_refused_by_name() {
        for (plugin, parameters, token) in [
            ("", "", Ok(None)),
            (TOKEN_PLUGIN, "token:abc", Ok(Some("abc"))),
            (TOKEN_PLUGIN, "abc", Ok(Some("abc"))),
            ("token", r#"{"token":"abc"}"#, Ok(Some("abc"))),
            (TOKEN_PLUGIN, "", Err("authenticationParameters")),
            (TOKEN_PLUGIN, "file:///t", Err("authenticationParameters")),
            ("", "token:abc", Err("authenticationPlugin")),
            ("org.x.AuthenticationTls", "", Err("AuthenticationTls")),
        ] {
            match (data(plugin, parameters).token(), token) {
                (Ok(found), Ok(expected)) => assert_eq!(found.as_deref(), expected),
                (Err(text), Err(part)) => assert!(text.contains(part), "{text}"),
                (found, expected) => panic!("{plugin} {parameters}: {found:?}, {expected:?}"),
            }
            let shown = format!("{:?}", data(plugin, parameters));
            assert!(!shown.contains("abc"), "{shown}");
        }
    }

    #[test]
    fn urls_have_their_schemes() {
        let with = |url: &str| ClusterData {
            broker_service_url: Some(url.to_owned()),
            ..ClusterData::default()
        };
        assert!(with("pulsar://a:6650").check().is_ok());
        let text = with("http://a:8080").check().unwrap_err();
        assert!(text.contains("brokerServiceUrl"), "{text}");
    }
}
