//! What a component leaves behind when it is deleted: its state, and how far it has read its files. One that
//! is made anew under its name finds nothing of it.
//!
//! What must hold: nothing of a component that lives is forgotten, whatever ends or stands still in between. So
//! a topic is taken for this worker alone first, then the catalogue is told once more that there is no such
//! component, which it takes from its leader only, and then the topic is emptied: whoever made the component
//! elsewhere meanwhile has taken its topic back, or finds it empty anyway.

use std::collections::BTreeSet;
use std::path::Path;

use geminga_model::ProcessingGuarantees;

use super::Worker;
use super::catalog::{Key, Record, View};
use crate::changelog;
use crate::component::{Component, ComponentId, Kind};
use crate::error::WorkerError;
use crate::instance::state;

/// The topics that the state of a function is on, or was, as far as its record remembers.
fn topics(id: &ComponentId, record: &Record) -> Vec<String> {
    let topic = state::topic(&id.tenant, &id.namespace, &id.name);
    let past = record.past.iter().map(|past| &past.component);
    let alone = |component: &Component| match component {
        Component::Function(config)
            if config.processing_guarantees == Some(ProcessingGuarantees::EffectivelyOnce) =>
        {
            component.parallelism()
        }
        _ => 1,
    };
    let instances = past.chain([&record.component]).map(alone).max();
    let of_peers = (0..instances.filter(|count| *count > 1).unwrap_or(0))
        .map(|number| format!("{topic}-{number}"));
    [topic.clone()].into_iter().chain(of_peers).collect()
}

impl Worker {
    /// Forgets what a component left that is not in the catalogue, while nobody else may change it. One that
    /// `is_over` is not made anew at once.
    pub(super) async fn forget(
        &self,
        id: &ComponentId,
        record: &Record,
        is_over: bool,
    ) -> Result<(), WorkerError> {
        if !self.inner.is_kept() {
            return Ok(());
        }
        match id.kind {
            Kind::Sink => {}
            Kind::Source => {
                if self.inner.places(id).is_some_and(|places| places.exists()) {
                    self.inner
                        .catalog
                        .remove(Key::Component(id.clone()))
                        .await?;
                    self.forget_places(id);
                }
            }
            Kind::Function => {
                let client = &self.inner.config.client;
                for topic in topics(id, record) {
                    let mut refused = None;
                    let may = async {
                        let key = Key::Component(id.clone());
                        refused = self.inner.catalog.remove(key).await.err();
                        refused.is_none()
                    };
                    let emptied = Box::pin(changelog::empty(client, &topic, is_over, may)).await;
                    emptied.map_err(WorkerError::client(format!(
                        "emptying what the last {id} left on `{topic}`"
                    )))?;
                    if let Some(refused) = refused {
                        return Err(refused);
                    }
                }
            }
        }
        Ok(())
    }

    /// Forgets how far a file source is that ran here and is gone.
    pub(super) fn forget_places(&self, id: &ComponentId) {
        if id.kind != Kind::Source {
            return;
        }
        if let Some(places) = self.inner.places(id) {
            remove(&places);
        }
    }
}

/// Removes what a worker that died did not: how far file sources are that the catalogue does not know.
pub(super) fn sweep(data_dir: &Path, view: &View) {
    let sources = view.components.keys().filter(|id| id.kind == Kind::Source);
    let known: BTreeSet<String> = sources.map(places_of).collect();
    let Ok(files) = std::fs::read_dir(data_dir) else {
        return;
    };
    for file in files.flatten() {
        let name = file.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("source-") && name.ends_with(".json") && !known.contains(&*name) {
            remove(&file.path());
        }
    }
}

/// The name of the file that remembers how far a file source is.
pub(super) fn places_of(id: &ComponentId) -> String {
    format!("source-{}.json", id.fqfn().replace('/', "+"))
}

fn remove(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = super::shown(path), %error, "what a source left is not removed");
        }
        _ => {}
    }
}
