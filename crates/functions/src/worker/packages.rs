//! Named packages: `function://tenant/namespace/name@version`, with what is said of them. What they
//! hold is in the package folder; names and metadata are in the catalogue.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use geminga_stdx::Clock;
use serde::{Deserialize, Serialize};

use super::catalog::{Key, Value, View};
use super::package::{self, Upload};
use super::{Inner, Worker};
use crate::component::Kind;
use crate::error::WorkerError;

/// How often packages that nobody needs are looked for.
const SWEPT_EACH: Duration = Duration::from_secs(60);
/// How long nobody must have needed them: a registration takes less, and so does the end of a former version.
const UNNEEDED_FOR: Duration = Duration::from_secs(600);
/// How long the fetching of a package may take before it begins anew.
const FETCH_LIMIT: Duration = Duration::from_secs(300);
/// Packages one worker keeps by name.
const PACKAGES_MAX: usize = 100_000;

/// A package's full name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackageName {
    pub kind: Kind,
    pub tenant: String,
    pub namespace: String,
    pub name: String,
    pub version: String,
}

impl std::fmt::Display for PackageName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = self.kind.as_str();
        let Self {
            tenant,
            namespace,
            name,
            version,
            ..
        } = self;
        write!(f, "{kind}://{tenant}/{namespace}/{name}@{version}")
    }
}

impl PackageName {
    /// Reads `function://tenant/namespace/name@version`; without a version it is `latest`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once("://")?;
        let kind = Kind::parse(kind)?;
        let (path, version) = rest.split_once('@').unwrap_or((rest, "latest"));
        let mut parts = path.split('/');
        let mut part = || {
            parts
                .next()
                .filter(|part| !part.is_empty())
                .map(str::to_owned)
        };
        let (tenant, namespace, name) = (part()?, part()?, part()?);
        (parts.next().is_none() && !version.is_empty() && !version.contains('/')).then(|| Self {
            kind,
            tenant,
            namespace,
            name,
            version: version.to_owned(),
        })
    }
}

/// `PackageMetadata`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PackageMetadata {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contact: Option<String>,
    pub create_time: u64,
    pub modification_time: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub properties: Option<BTreeMap<String, String>>,
    /// Of newer clients; kept as it comes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_name: Option<String>,
}

/// What the catalogue keeps of a package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PackageRecord {
    pub(crate) file: String,
    pub(crate) metadata: PackageMetadata,
}

impl Worker {
    /// Where an upload of this worker grows.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub async fn spool(&self) -> Result<super::Spool, WorkerError> {
        super::Spool::new(&self.inner.packages)
            .await
            .map_err(WorkerError::io("taking an upload"))
    }

    /// Keeps a package under a name that is free, or, when `replace` is set, in the place of another.
    ///
    /// # Errors
    /// When the name is taken, or it can not be stored.
    pub async fn put_package(
        &self,
        name: &str,
        upload: Upload,
        metadata: PackageMetadata,
        replace: bool,
    ) -> Result<(), WorkerError> {
        let is_free = || {
            let look = |view: &View| (view.packages.contains_key(name), view.packages.len());
            let (known, count) = self.inner.catalog.read(look);
            if known && !replace {
                return Err(WorkerError::PackageExists(name.to_owned()));
            }
            if count >= PACKAGES_MAX {
                return Err(WorkerError::Invalid(vec![format!(
                    "there are {count} packages already: remove some"
                )]));
            }
            Ok(())
        };
        is_free()?;
        let file = package::store(&self.inner.packages, upload).await?;
        self.inner.have(&file).await?;
        let _one = self.inner.writing.lock().await;
        // Somebody may have been quicker.
        is_free()?;
        self.inner.share(&file).await?;
        let now = Clock::system().now_ms();
        let metadata = PackageMetadata {
            create_time: now,
            modification_time: now,
            ..metadata
        };
        let replaced = self.inner.package(name).ok().map(|record| record.file);
        let record = PackageRecord { file, metadata };
        let key = Key::Package(name.to_owned());
        self.inner
            .catalog
            .put(key, Value::Package(Box::new(record)))
            .await?;
        self.inner.drop_unneeded(&replaced.into_iter().collect());
        Ok(())
    }

    /// What is said of a package.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn package_metadata(&self, name: &str) -> Result<PackageMetadata, WorkerError> {
        Ok(self.inner.package(name)?.metadata)
    }

    /// Says something else of a package.
    ///
    /// # Errors
    /// When there is none of that name.
    pub async fn set_package_metadata(
        &self,
        name: &str,
        metadata: PackageMetadata,
    ) -> Result<(), WorkerError> {
        let _one = self.inner.writing.lock().await;
        let mut record = self.inner.package(name)?;
        record.metadata = PackageMetadata {
            create_time: record.metadata.create_time,
            modification_time: Clock::system().now_ms(),
            ..metadata
        };
        let key = Key::Package(name.to_owned());
        self.inner
            .catalog
            .put(key, Value::Package(Box::new(record)))
            .await
    }

    /// Forgets a package. Functions that were made of it keep their code.
    ///
    /// # Errors
    /// When there is none of that name.
    pub async fn delete_package(&self, name: &str) -> Result<(), WorkerError> {
        let _one = self.inner.writing.lock().await;
        let record = self.inner.package(name)?;
        self.inner
            .catalog
            .remove(Key::Package(name.to_owned()))
            .await?;
        self.inner.drop_unneeded(&BTreeSet::from([record.file]));
        Ok(())
    }

    /// A named package as the code of a component.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn named_package(&self, name: &str) -> Result<Upload, WorkerError> {
        Ok(Upload::kept(self.inner.package(name)?.file))
    }

    /// Whether a file is a package of this worker, and no other file of the machine.
    #[must_use]
    pub fn is_package(&self, file: &std::path::Path) -> bool {
        file.starts_with(&self.inner.packages)
    }

    /// The file of a package, on this machine.
    ///
    /// # Errors
    /// When there is none of that name, or it can not be fetched.
    pub async fn package_file(&self, name: &str) -> Result<PathBuf, WorkerError> {
        let record = self.inner.package(name)?;
        self.inner.have(&record.file).await?;
        Ok(self.inner.packages.join(record.file))
    }

    /// The named packages of a namespace.
    #[must_use]
    pub fn packages(&self, kind: Kind, tenant: &str, namespace: &str) -> Vec<PackageName> {
        self.inner.catalog.read(|view| {
            let names = view
                .packages
                .keys()
                .filter_map(|name| PackageName::parse(name));
            let of = |name: &PackageName| {
                name.kind == kind && name.tenant == tenant && name.namespace == namespace
            };
            names.filter(of).collect()
        })
    }
}

impl Inner {
    pub(crate) fn package(&self, name: &str) -> Result<PackageRecord, WorkerError> {
        let found = self.catalog.read(|view| view.packages.get(name).cloned());
        found.ok_or_else(|| WorkerError::NoPackage(name.to_owned()))
    }

    /// Lets other workers have a package, when there are others.
    pub(crate) async fn share(&self, file: &str) -> Result<(), WorkerError> {
        match &self.config.catalog_topic {
            Some(topic) if self.cluster.has_others() => {
                // A former leader may have taken it in.
                self.have(file).await?;
                package::share(&self.config.client, topic, &self.packages, file).await
            }
            _ => Ok(()),
        }
    }

    /// Makes sure that a package is on this machine.
    pub(crate) async fn have(&self, file: &str) -> Result<(), WorkerError> {
        if self.packages.join(file).exists() {
            return Ok(());
        }
        let Some(topic) = &self.config.catalog_topic else {
            return Ok(());
        };
        let fetched = package::fetch(&self.config.client, topic, &self.packages, file);
        match tokio::time::timeout(FETCH_LIMIT, fetched).await {
            Ok(fetched) => fetched,
            Err(_) => Err(WorkerError::Timeout {
                what: "fetching a package from another worker",
                after_ms: FETCH_LIMIT.as_millis() as u64,
            }),
        }
    }

    /// Removes packages that nobody needs any more from this machine, from time to time: of refused registrations, of
    /// former versions, of what is deleted.
    pub(crate) fn sweep_packages(self: &Arc<Self>) {
        if !self.catalog.is_kept() {
            return;
        }
        let inner = Arc::downgrade(self);
        self.tasks.spawn_cancellable("sweep packages", async move {
            loop {
                tokio::time::sleep(SWEPT_EACH).await;
                let Some(inner) = inner.upgrade() else { return };
                let needed = inner.catalog.read(View::packages_needed);
                let folder = inner.packages.clone();
                let swept = tokio::task::spawn_blocking(move || {
                    package::sweep(&folder, &needed, UNNEEDED_FOR);
                });
                if swept.await.is_err() {
                    return;
                }
            }
        });
    }

    /// Deletes what is on the topics of packages that no record names any more, when it has answered.
    pub(crate) fn drop_unneeded(self: &Arc<Self>, before: &BTreeSet<String>) {
        let Some(topic) = self.config.catalog_topic.clone() else {
            return;
        };
        let needed = self.catalog.read(View::packages_needed);
        let hash = |file: &String| file.split('/').next().unwrap_or_default().to_owned();
        let living: BTreeSet<String> = needed.iter().map(hash).collect();
        let gone: BTreeSet<String> = before
            .iter()
            .map(hash)
            .filter(|h| !living.contains(h))
            .collect();
        if gone.is_empty() {
            return;
        }
        self.shared
            .lock()
            .retain(|file| !gone.contains(&hash(file)));
        let inner = self.clone();
        self.tasks.spawn_cancellable("drop packages", async move {
            for hash in gone {
                if let Err(error) = package::unshare(&inner.config.client, &topic, &hash).await {
                    tracing::warn!(hash, %error, "a package that nobody needs stays on its topic");
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_packages_are_pulsars() {
        let name = PackageName::parse("function://t/n/p@v1").expect("a name");
        assert_eq!(name.to_string(), "function://t/n/p@v1");
        let latest = PackageName::parse("sink://t/n/p").expect("a name");
        assert_eq!(
            (latest.kind, latest.version.as_str()),
            (Kind::Sink, "latest")
        );
        for wrong in [
            "thing://t/n/p@1",
            "function://t/n",
            "function://t/n/p/q@1",
            "t/n/p@1",
            "function://t//p@1",
            "function://t/n/p@",
        ] {
            assert_eq!(PackageName::parse(wrong), None, "{wrong}");
        }
    }
}
