//! Tenants, namespaces and partitioned topics: what is stored about them, and the keys it has.
//!
//! | key | value |
//! |---|---|
//! | `/tenants/<tenant>` | JSON of [`TenantInfo`] |
//! | `/namespaces/<tenant>/<namespace>` | JSON of [`Policies`] |
//! | `/topic-policies/<tenant>/<namespace>/<domain>/<encoded topic>` | JSON of [`Policies`] |
//! | `/partitioned/<tenant>/<namespace>/<domain>/<encoded topic>` | JSON of [`Partitioned`] |
//! | `/schemas/<tenant>/<namespace>/<encoded topic>/<version, 20 digits>` | JSON, see `schema` |
//! | `/broker/instance` | how often a broker was started here |
//! | `/broker/settings` | see `settings` |
//! | `/resource-groups/<encoded name>` | JSON, see `resource_group` |
//! | `/failure-domains/<cluster>/<encoded name>`, `/isolation/...`, `/resource-quotas/...` | JSON, see `admin::placement` |

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use geminga_model::{NamespaceName, TopicName};
use geminga_storage::metadata::{Expected, MetadataStore, Version};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::BrokerError;
use crate::policies::Policies;
use crate::transaction::ASSIGN_TOPIC;

/// Page of a listing.
const PAGE: usize = 1_000;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TenantInfo {
    pub admin_roles: Vec<String>,
    pub allowed_clusters: Vec<String>,
}

impl Default for TenantInfo {
    fn default() -> TenantInfo {
        TenantInfo {
            admin_roles: Vec::new(),
            allowed_clusters: vec!["standalone".to_owned()],
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partitioned {
    pub partitions: u32,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
}

/// Policies of a namespace, and their version.
type Known = (Arc<Policies>, Version);

/// Typed access to the metadata store.
#[derive(Clone)]
pub(crate) struct Catalog {
    pub(crate) store: Arc<dyn MetadataStore>,
    /// Policies of namespaces as they were read last: each topic that is made asks for them, and to
    /// read a document takes longer than to find it.
    policies: Arc<Mutex<HashMap<String, Known>>>,
}

impl Catalog {
    pub(crate) fn new(store: Arc<dyn MetadataStore>) -> Catalog {
        Catalog {
            store,
            policies: Arc::default(),
        }
    }

    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        key: &str,
    ) -> Result<Option<(T, Version)>, BrokerError> {
        let Some(found) = self.store.get(key).await? else {
            return Ok(None);
        };
        Ok(Some((parse(key, &found.value)?, found.version)))
    }

    pub(crate) async fn put<T: Serialize>(
        &self,
        key: &str,
        value: &T,
        expected: Expected,
    ) -> Result<(), BrokerError> {
        let bytes = serde_json::to_vec(value)
            .map_err(|error| BrokerError::Metadata(format!("`{key}`: {error}")))?;
        self.store.put(key, Bytes::from(bytes), expected).await?;
        Ok(())
    }

    pub(crate) async fn delete(&self, key: &str) -> Result<(), BrokerError> {
        self.store.delete(key, Expected::Any).await?;
        Ok(())
    }

    /// All keys below `path` with their values.
    pub(crate) async fn scan<T: DeserializeOwned>(
        &self,
        path: &str,
    ) -> Result<Vec<(String, T)>, BrokerError> {
        let mut all = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = self.store.scan(path, after.as_deref(), PAGE).await?;
            let full = page.len() == PAGE;
            after = page.last().map(|(key, _)| key.clone());
            for (key, found) in page {
                let value = parse(&key, &found.value)?;
                all.push((key, value));
            }
            if !full {
                return Ok(all);
            }
        }
    }

    pub(crate) async fn partitions(&self, topic: &TopicName) -> Result<Option<u32>, BrokerError> {
        let found = self.get::<Partitioned>(&partitioned_key(topic)).await?;
        Ok(found.map(|(partitioned, _)| partitioned.partitions))
    }

    pub(crate) async fn delete_namespace(&self, namespace: &str) -> Result<(), BrokerError> {
        self.delete(&namespace_key(namespace)).await?;
        self.policies.lock().remove(namespace);
        Ok(())
    }

    pub(crate) async fn policies(&self, namespace: &str) -> Result<Option<Known>, BrokerError> {
        let key = namespace_key(namespace);
        let Some(found) = self.store.get(&key).await? else {
            self.policies.lock().remove(namespace);
            return Ok(None);
        };
        // Versions are never given twice, not after a deletion either.
        if let Some((policies, version)) = self.policies.lock().get(namespace)
            && *version == found.version
        {
            return Ok(Some((policies.clone(), *version)));
        }
        let policies: Arc<Policies> = Arc::new(parse(&key, &found.value)?);
        let known = (policies.clone(), found.version);
        self.policies.lock().insert(namespace.to_owned(), known);
        Ok(Some((policies, found.version)))
    }

    /// What every broker has from the first start.
    pub(crate) async fn create_builtins(&self, cluster: &str) -> Result<(), BrokerError> {
        let info = TenantInfo {
            allowed_clusters: vec![cluster.to_owned()],
            ..TenantInfo::default()
        };
        for tenant in ["public", "pulsar"] {
            let key = tenant_key(tenant);
            if self.get::<TenantInfo>(&key).await?.is_none() {
                self.put(&key, &info, Expected::Absent).await?;
            }
        }
        for namespace in ["public/default", "public/functions", "pulsar/system"] {
            let key = namespace_key(namespace);
            if self.get::<Policies>(&key).await?.is_none() {
                self.put(&key, &Policies::default(), Expected::Absent)
                    .await?;
            }
        }
        Ok(())
    }

    /// A number that no earlier start of a broker here had.
    /// How many transaction coordinators there are: the partitions of their topic, 1 at first.
    pub(crate) async fn coordinators(&self) -> Result<u32, BrokerError> {
        let name = ASSIGN_TOPIC
            .parse()
            .map_err(|error: geminga_model::NameError| {
                BrokerError::InvalidTopicName(error.to_string())
            })?;
        if let Some(count) = self.partitions(&name).await? {
            return Ok(count);
        }
        let one = Partitioned {
            partitions: 1,
            properties: BTreeMap::new(),
        };
        self.put(&partitioned_key(&name), &one, Expected::Absent)
            .await?;
        Ok(1)
    }

    pub(crate) async fn next_instance(&self) -> Result<u64, BrokerError> {
        const KEY: &str = "/broker/instance";
        let (last, expected) = match self.get::<u64>(KEY).await? {
            Some((last, version)) => (Some(last), Expected::Is(version)),
            None => (None, Expected::Absent),
        };
        let next = last.map_or(0, |last| last + 1);
        self.put(KEY, &next, expected).await?;
        Ok(next)
    }
}

fn parse<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, BrokerError> {
    serde_json::from_slice(value)
        .map_err(|error| BrokerError::Metadata(format!("`{key}` cannot be read: {error}")))
}

pub(crate) fn tenant_key(tenant: &str) -> String {
    format!("/tenants/{tenant}")
}

pub(crate) fn namespace_key(namespace: &str) -> String {
    format!("/namespaces/{namespace}")
}

pub(crate) fn partitioned_path(namespace: &NamespaceName) -> String {
    format!("/partitioned/{namespace}")
}

pub(crate) fn partitioned_key(topic: &TopicName) -> String {
    topic_path("/partitioned/", topic)
}

/// The name of a topic's managed ledger.
pub(crate) fn ledger_name(topic: &TopicName) -> String {
    topic_path("", topic)
}

/// `<prefix><tenant>/<namespace>/<domain>/<encoded topic>`.
pub(crate) fn topic_path(prefix: &str, topic: &TopicName) -> String {
    let bytes = prefix.len() + topic.as_str().len();
    let mut path = String::with_capacity(bytes);
    path.push_str(prefix);
    path.push_str(topic.namespace_str());
    path.push('/');
    path.push_str(topic.domain().as_str());
    path.push('/');
    encode_into(topic.local(), &mut path);
    path
}

/// The path below which the managed ledgers of a namespace's topics are.
pub(crate) fn ledger_path(namespace: &NamespaceName) -> String {
    format!("{namespace}/persistent")
}

/// The topic whose managed ledger has this path; none when no topic can have it.
#[must_use]
pub fn stored_topic_name(path: &str) -> Option<String> {
    let (namespace, local) = path.rsplit_once('/')?;
    let (namespace, domain) = namespace.rsplit_once('/')?;
    Some(format!("{domain}://{namespace}/{}", decode(local)?))
}

/// As in URLs (and as Pulsar's own paths are): letters, digits and `-_.*` stay.
pub(crate) fn encode(local: &str) -> String {
    let mut out = String::with_capacity(local.len());
    encode_into(local, &mut out);
    out
}

fn encode_into(local: &str, out: &mut String) {
    for byte in local.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'*' => {
                out.push(char::from(byte));
            }
            b' ' => out.push('+'),
            _ => {
                const HEX: &[u8; 16] = b"0123456789ABCDEF";
                out.push('%');
                out.push(char::from(HEX[usize::from(byte >> 4)]));
                out.push(char::from(HEX[usize::from(byte & 15)]));
            }
        }
    }
}

pub(crate) fn decode(encoded: &str) -> Option<String> {
    let mut out = Vec::with_capacity(encoded.len());
    let mut bytes = encoded.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_names_survive_their_encoding() {
        for local in ["plain", "a b", "ä/€?%", "x-partition-3", "a+b*c.d_e~"] {
            assert_eq!(decode(&encode(local)).as_deref(), Some(local));
            assert!(!encode(local).contains('/'));
        }
        let path = "shop/eu/persistent/a+b%2Fc";
        assert_eq!(
            stored_topic_name(path).as_deref(),
            Some("persistent://shop/eu/a b/c")
        );
        assert_eq!(decode("%zz"), None);
        assert_eq!(decode("%4"), None);
    }
}
