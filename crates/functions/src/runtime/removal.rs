//! The removal of directories that nobody waits for.

use std::path::PathBuf;

/// Removes a directory on a thread of its own: there may be a million files in it. A private one is below what the
/// guard removes, so that it goes with the worker at the latest.
pub(super) fn remove_later(directory: PathBuf) {
    let remove = std::thread::Builder::new().name("geminga-remove".to_owned());
    if let Err(error) = remove.spawn(move || std::fs::remove_dir_all(directory)) {
        tracing::warn!(%error, "a directory stays for now");
    }
}
