//! Topic and namespace names, in all the forms that clients send.
//!
//! Rules (Pulsar 4.0): `local` means `persistent://public/default/local`; `tenant/ns/local` is persistent;
//! a partition is its parent's name with `-partition-N`, N without leading zeros. Tenants and namespaces
//! hold `[-=:.\w]+`; a local name may hold almost anything that is not blank.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

const PARTITION_SUFFIX: &str = "-partition-";
/// Longest name accepted, in bytes: what a topic costs in memory is bounded by it.
pub const NAME_BYTES_MAX: usize = 1024;

/// What is wrong with a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("topic name is empty")]
    Empty,
    #[error("name `{0}` is longer than {NAME_BYTES_MAX} bytes")]
    TooLong(String),
    #[error("topic domain `{0}` is not `persistent` or `non-persistent`")]
    Domain(String),
    #[error("topic name `{0}` is not of the form `persistent://tenant/namespace/topic`")]
    Form(String),
    #[error("`{0}` holds characters other than letters, digits and `-=:._`")]
    Characters(String),
    #[error("namespace name `{0}` is not of the form `tenant/namespace`")]
    Namespace(String),
}

/// Whether a topic is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TopicDomain {
    Persistent,
    NonPersistent,
}

impl TopicDomain {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Persistent => "persistent",
            Self::NonPersistent => "non-persistent",
        }
    }
}

impl fmt::Display for TopicDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `tenant/namespace`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespaceName {
    text: Arc<str>,
    slash: usize,
}

impl NamespaceName {
    /// # Errors
    /// When a part is empty or holds characters that Pulsar does not allow.
    pub fn new(tenant: &str, namespace: &str) -> Result<Self, NameError> {
        format!("{tenant}/{namespace}").parse()
    }

    #[must_use]
    pub fn tenant(&self) -> &str {
        &self.text[..self.slash]
    }

    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.text[self.slash + 1..]
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for NamespaceName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let Some((tenant, namespace)) = text.split_once('/') else {
            return Err(NameError::Namespace(text.to_owned()));
        };
        if text.len() > NAME_BYTES_MAX {
            return Err(NameError::TooLong(text.chars().take(64).collect()));
        }
        check_part(tenant)?;
        check_part(namespace)?;
        Ok(Self {
            text: text.into(),
            slash: tenant.len(),
        })
    }
}

impl fmt::Display for NamespaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A topic's full name. Cheap to clone; compared and shown in its full form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicName {
    /// `persistent://tenant/namespace/local`
    full: Arc<str>,
    domain: TopicDomain,
    tenant_end: u16,
    namespace_end: u16,
}

impl TopicName {
    /// # Errors
    /// When the namespace or the local name is not legal.
    pub fn new(
        domain: TopicDomain,
        namespace: &NamespaceName,
        local: &str,
    ) -> Result<Self, NameError> {
        Self::assemble(domain, namespace.tenant(), namespace.namespace(), local)
    }

    fn assemble(
        domain: TopicDomain,
        tenant: &str,
        ns: &str,
        local: &str,
    ) -> Result<Self, NameError> {
        check_part(tenant)?;
        check_part(ns)?;
        if local.trim().is_empty() {
            return Err(NameError::Empty);
        }
        let full = format!("{domain}://{tenant}/{ns}/{local}");
        if full.len() > NAME_BYTES_MAX {
            return Err(NameError::TooLong(full.chars().take(64).collect()));
        }
        let tenant_end = domain.as_str().len() + 3 + tenant.len();
        Ok(Self {
            domain,
            // Both fit: the whole name is at most NAME_BYTES_MAX long.
            tenant_end: tenant_end as u16,
            namespace_end: (tenant_end + 1 + ns.len()) as u16,
            full: full.into(),
        })
    }

    /// `persistent://tenant/namespace/local`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.full
    }

    #[must_use]
    pub fn domain(&self) -> TopicDomain {
        self.domain
    }

    #[must_use]
    pub fn is_persistent(&self) -> bool {
        self.domain == TopicDomain::Persistent
    }

    #[must_use]
    pub fn tenant(&self) -> &str {
        &self.full[self.domain.as_str().len() + 3..usize::from(self.tenant_end)]
    }

    /// The namespace's own part, without the tenant.
    #[must_use]
    pub fn namespace_part(&self) -> &str {
        &self.full[usize::from(self.tenant_end) + 1..usize::from(self.namespace_end)]
    }

    /// `tenant/namespace` as text.
    #[must_use]
    pub fn namespace_str(&self) -> &str {
        &self.full[self.domain.as_str().len() + 3..usize::from(self.namespace_end)]
    }

    #[must_use]
    pub fn namespace(&self) -> NamespaceName {
        NamespaceName {
            text: self.namespace_str().into(),
            slash: self.tenant().len(),
        }
    }

    #[must_use]
    pub fn local(&self) -> &str {
        &self.full[usize::from(self.namespace_end) + 1..]
    }

    /// The partition's number, if this names a partition. `-partition-01` names none.
    #[must_use]
    pub fn partition(&self) -> Option<u32> {
        let at = self.full.rfind(PARTITION_SUFFIX)?;
        let digits = &self.full[at + PARTITION_SUFFIX.len()..];
        let number: u32 = digits.parse().ok()?;
        // Not "+1", "01" or an empty parent.
        (number.to_string() == digits && at > usize::from(self.namespace_end) + 1).then_some(number)
    }

    /// The partitioned topic that this is a partition of; itself when it is none.
    #[must_use]
    pub fn parent(&self) -> Self {
        match self.partition() {
            None => self.clone(),
            Some(_) => {
                let at = self.full.rfind(PARTITION_SUFFIX).unwrap_or(self.full.len());
                Self {
                    full: self.full[..at].into(),
                    ..self.clone()
                }
            }
        }
    }

    /// The name of partition `number` of this topic.
    #[must_use]
    pub fn with_partition(&self, number: u32) -> Self {
        Self {
            full: format!("{}{PARTITION_SUFFIX}{number}", self.full).into(),
            ..self.clone()
        }
    }

    /// As people write it: the local name alone in `public/default`, otherwise the full name.
    #[must_use]
    pub fn short(&self) -> &str {
        if self.is_persistent() && self.namespace_str() == "public/default" {
            self.local()
        } else {
            &self.full
        }
    }
}

impl FromStr for TopicName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.trim().is_empty() {
            return Err(NameError::Empty);
        }
        let Some((domain, rest)) = text.split_once("://") else {
            let parts: Vec<&str> = text.split('/').collect();
            return match parts[..] {
                [local] => Self::assemble(TopicDomain::Persistent, "public", "default", local),
                [tenant, ns, local] => Self::assemble(TopicDomain::Persistent, tenant, ns, local),
                _ => Err(NameError::Form(text.to_owned())),
            };
        };
        let domain = match domain {
            "persistent" => TopicDomain::Persistent,
            "non-persistent" => TopicDomain::NonPersistent,
            _ => return Err(NameError::Domain(domain.to_owned())),
        };
        let mut parts = rest.splitn(3, '/');
        let (Some(tenant), Some(ns), Some(local)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(NameError::Form(text.to_owned()));
        };
        Self::assemble(domain, tenant, ns, local)
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.full)
    }
}

impl Serialize for TopicName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.full)
    }
}

impl<'de> Deserialize<'de> for TopicName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A tenant's or namespace's own name: `[-=:.\w]+`.
fn check_part(part: &str) -> Result<(), NameError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '=' | ':' | '.');
    if part.is_empty() || !part.chars().all(legal) {
        return Err(NameError::Characters(part.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_written_forms() {
        for (text, want) in [
            ("quakes", "persistent://public/default/quakes"),
            ("t/n/x", "persistent://t/n/x"),
            ("persistent://t/n/a/b c", "persistent://t/n/a/b c"),
            ("non-persistent://t/n/x", "non-persistent://t/n/x"),
        ] {
            assert_eq!(text.parse::<TopicName>().expect(text).as_str(), want);
        }
        for bad in [
            "",
            " ",
            "a/b",
            "a/b/c/d",
            "http://a/b/c",
            "persistent://a/b",
            "persistent:///n/x",
        ] {
            assert!(bad.parse::<TopicName>().is_err(), "{bad}");
        }
        assert!("x".repeat(2000).parse::<TopicName>().is_err());
    }

    #[test]
    fn parts_and_partitions() {
        let topic: TopicName = "persistent://t/n/x-partition-3".parse().expect("legal");
        assert_eq!(
            (topic.tenant(), topic.namespace_part(), topic.local()),
            ("t", "n", "x-partition-3")
        );
        assert_eq!(topic.partition(), Some(3));
        assert_eq!(topic.parent().as_str(), "persistent://t/n/x");
        assert_eq!(topic.parent().with_partition(3), topic);
        for none in [
            "x-partition-01",
            "x-partition--1",
            "x-partition-+1",
            "x",
            "-partition-1",
        ] {
            assert_eq!(
                none.parse::<TopicName>().expect(none).partition(),
                None,
                "{none}"
            );
        }
    }

    #[test]
    fn a_namespace_has_two_parts() {
        let name: NamespaceName = "public/default".parse().expect("legal");
        assert_eq!((name.tenant(), name.namespace()), ("public", "default"));
        for bad in ["public", "a/b/c", "/b", "a/", "a b/c"] {
            assert!(bad.parse::<NamespaceName>().is_err(), "{bad}");
        }
    }
}
