//! Code: files in the worker's folder, named by what they hold, and on topics for other workers.
//!
//! What must hold: a file in the folder is whole, since it is written elsewhere, synced and renamed;
//! its name proves its content (SHA-256); an upload holds no memory beyond a buffer.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use geminga_client::{Batching, Client, Message, MessageId};
use geminga_stdx::Random;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::changelog::{keeper, read_one};
use crate::component::Component;
use crate::error::WorkerError;

/// Largest package.
pub const PACKAGE_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Where uploads grow, inside of the folder.
const GROWING: &str = ".growing";
/// Bytes of a package in one message.
const CHUNK_BYTES: usize = 512 * 1024;
/// Keeps a package's topic from being trimmed.
const KEEPER: &str = "geminga-package";

/// Code that comes with a request.
#[derive(Debug)]
pub struct Upload {
    /// The file's own name: it names the Python module.
    pub file_name: String,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Bytes(Bytes),
    Spooled(Spooled),
    /// It is in the folder already.
    Kept,
}

impl Upload {
    /// A package that was kept before, by its name in the folder.
    pub(crate) fn kept(file: String) -> Self {
        Self {
            file_name: file,
            content: Content::Kept,
        }
    }

    /// Code that is in memory.
    pub fn new(file_name: impl Into<String>, bytes: impl Into<Bytes>) -> Self {
        Self {
            file_name: file_name.into(),
            content: Content::Bytes(bytes.into()),
        }
    }

    /// Code that was written to disk as it arrived.
    pub fn spooled(file_name: impl Into<String>, spooled: Spooled) -> Self {
        Self {
            file_name: file_name.into(),
            content: Content::Spooled(spooled),
        }
    }
}

/// A file that grows as an upload arrives. Dropping it removes the file.
#[derive(Debug)]
pub struct Spool {
    file: tokio::fs::File,
    hasher: Sha256,
    spooled: Spooled,
}

/// A whole upload on disk. Dropping it removes the file.
#[derive(Debug)]
pub struct Spooled {
    path: PathBuf,
    hash: String,
    /// Bytes.
    pub len: u64,
}

impl Drop for Spooled {
    fn drop(&mut self) {
        // It was renamed when it was kept.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Spool {
    pub(crate) async fn new(folder: &Path) -> std::io::Result<Self> {
        let growing = folder.join(GROWING);
        tokio::fs::create_dir_all(&growing).await?;
        let path = growing.join(Random::from_entropy().name(16));
        Ok(Self {
            file: tokio::fs::File::create(&path).await?,
            hasher: Sha256::new(),
            spooled: Spooled {
                path,
                hash: String::new(),
                len: 0,
            },
        })
    }

    /// Takes more of it.
    ///
    /// # Errors
    /// When the disk does not take it, or it becomes larger than a package may be.
    pub async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.spooled.len += bytes.len() as u64;
        if self.spooled.len > PACKAGE_BYTES_MAX {
            return Err(std::io::Error::new(
                std::io::ErrorKind::FileTooLarge,
                format!("a package has at most {PACKAGE_BYTES_MAX} bytes"),
            ));
        }
        self.hasher.update(bytes);
        self.file.write_all(bytes).await
    }

    /// It is whole.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub async fn finish(mut self) -> std::io::Result<Spooled> {
        self.file.flush().await?;
        self.file.sync_all().await?;
        self.spooled.hash = hex(&self.hasher.finalize());
        Ok(self.spooled)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Keeps an upload and gives its name in the folder: `hash/file`. The same bytes are kept once.
pub(crate) async fn store(folder: &Path, upload: Upload) -> Result<String, WorkerError> {
    if matches!(upload.content, Content::Kept) {
        return Ok(upload.file_name);
    }
    let name = Path::new(&upload.file_name)
        .file_name()
        .and_then(|name| name.to_str())
        .filter(|name| !name.starts_with('.') && !name.contains('\0') && name.len() <= 200)
        .ok_or_else(|| {
            WorkerError::Invalid(vec![format!("`{}` is no file name", upload.file_name)])
        })?
        .to_owned();
    let failed = |name: &str| WorkerError::io(format!("keeping `{name}`"));
    let spooled = match upload.content {
        Content::Spooled(spooled) => spooled,
        Content::Kept => return Ok(name),
        Content::Bytes(bytes) => {
            let written = async {
                let mut spool = Spool::new(folder).await?;
                spool.write(&bytes).await?;
                spool.finish().await
            };
            written.await.map_err(failed(&name))?
        }
    };
    let folder = folder.to_owned();
    let kept = tokio::task::spawn_blocking(move || keep(&folder, &name, &spooled));
    match kept.await {
        Ok(kept) => kept.map_err(WorkerError::io("keeping a package")),
        Err(_) => Err(WorkerError::Stopping),
    }
}

fn keep(folder: &Path, name: &str, spooled: &Spooled) -> std::io::Result<String> {
    use std::os::unix::fs::PermissionsExt;
    let directory = folder.join(&spooled.hash);
    let path = directory.join(name);
    let _one = KEEPING.lock();
    if !path.exists() {
        std::fs::create_dir_all(&directory)?;
        // An executable is uploaded without its bit.
        std::fs::set_permissions(&spooled.path, std::fs::Permissions::from_mode(0o755))?;
        std::fs::rename(&spooled.path, &path)?;
        File::open(&directory)?.sync_all()?;
        File::open(folder)?.sync_all()?;
    } else {
        // It counts from now on: see `sweep`.
        File::open(&directory)?.set_modified(SystemTime::now())?;
    }
    Ok(format!("{}/{name}", spooled.hash))
}

/// Held while a package gets its place, or loses it.
static KEEPING: Mutex<()> = Mutex::new(());

/// Removes what no record names any more and nobody took in lately, and uploads that were cut. A package is taken
/// in before its record is made, and what runs of a former version may still read it: so it has to be of some age.
pub(crate) fn sweep(folder: &Path, needed: &BTreeSet<String>, age: Duration) {
    // Where it is not made, things are removed in their place.
    let _ = std::fs::create_dir_all(folder.join(GROWING));
    let is_old = |entry: &std::fs::DirEntry| {
        let changed = entry.metadata().and_then(|metadata| metadata.modified());
        changed.is_ok_and(|at| at.elapsed().is_ok_and(|passed| passed >= age))
    };
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    let hashes: BTreeSet<&str> = needed
        .iter()
        .filter_map(|name| name.split('/').next())
        .collect();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let is_needed = name.to_str().is_some_and(|name| hashes.contains(name));
        if is_needed || name == GROWING && !age.is_zero() {
            continue;
        }
        let aside = folder.join(GROWING).join(Random::from_entropy().name(16));
        let mut gone = entry.path();
        {
            let _nobody_keeps_it_meanwhile = KEEPING.lock();
            if !age.is_zero() && !is_old(&entry) {
                continue;
            }
            if name != GROWING && std::fs::rename(&gone, &aside).is_ok() {
                gone = aside;
            }
        }
        // What can not be removed now is looked at again at the next start.
        let _ = std::fs::remove_dir_all(gone);
    }
}

/// The topic of a package: one for each content.
fn topic(catalog_topic: &str, package: &str) -> String {
    let hash = package.split('/').next().unwrap_or_default();
    format!("{catalog_topic}-package-{hash}")
}

/// Puts a package on its topic, unless it is there: other workers fetch it from there.
pub(crate) async fn share(
    client: &Client,
    catalog_topic: &str,
    folder: &Path,
    package: &str,
) -> Result<(), WorkerError> {
    let topic = topic(catalog_topic, package);
    let failed = || WorkerError::client(format!("sharing the package `{package}`"));
    let io = || WorkerError::io(format!("reading the package `{package}`"));
    let mut file = tokio::fs::File::open(folder.join(package))
        .await
        .map_err(io())?;
    let len = file.metadata().await.map_err(io())?.len();
    let keeper = keeper(client, &topic, KEEPER).await.map_err(failed())?;
    let last = keeper.last_message_id().await.map_err(failed())?;
    keeper.close().await.map_err(failed())?;
    if last.entry_id >= 0 && whole(client, &topic, last).await.map_err(failed())? {
        return Ok(());
    }
    let producer = client.producer(topic.as_str()).batching(Batching::off());
    let producer = producer.build().await.map_err(failed())?;
    // A reader begins at the newest beginning: what an earlier writer left half done is passed over.
    let attempt = Random::from_entropy().name(8);
    let mut sent = 0u64;
    loop {
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut filled = 0;
        while filled < chunk.len() {
            match file.read(&mut chunk[filled..]).await.map_err(io())? {
                0 => break,
                more => filled += more,
            }
        }
        chunk.truncate(filled);
        sent += filled as u64;
        let is_last = sent >= len;
        let message = Message::new(chunk)
            .property("attempt", attempt.as_str())
            .property("last", if is_last { "true" } else { "false" });
        producer.send(message).await.map_err(failed())?;
        if is_last || filled == 0 {
            break;
        }
    }
    producer.close().await.map_err(failed())
}

/// Lets the broker delete a package's topic: nothing keeps it any more.
pub(crate) async fn unshare(
    client: &Client,
    catalog_topic: &str,
    hash: &str,
) -> Result<(), geminga_client::Error> {
    let keeper = keeper(client, &topic(catalog_topic, hash), KEEPER).await?;
    keeper.unsubscribe().await
}

/// Whether the newest message is the last of a whole package.
async fn whole(
    client: &Client,
    topic: &str,
    last: MessageId,
) -> Result<bool, geminga_client::Error> {
    let message = read_one(client, topic, last).await?;
    Ok(message.property("last") == Some("true"))
}

/// Fetches a package that another worker took in.
pub(crate) async fn fetch(
    client: &Client,
    catalog_topic: &str,
    folder: &Path,
    package: &str,
) -> Result<(), WorkerError> {
    let failed = || WorkerError::client(format!("fetching the package `{package}`"));
    let io = || WorkerError::io(format!("keeping the package `{package}`"));
    let (hash, name) = package.split_once('/').unwrap_or((package, "package"));
    let topic = topic(catalog_topic, package);
    let reader = client
        .reader(topic)
        .start(MessageId::EARLIEST)
        .receiver_queue_size(4);
    let mut reader = reader.build().await.map_err(failed())?;
    let mut growing: Option<(String, Spool)> = None;
    while reader.has_message_available().await.map_err(failed())? {
        let message = reader.next().await.map_err(failed())?;
        let attempt = message.property("attempt").unwrap_or_default();
        let mut spool = match growing.take() {
            Some((known, spool)) if known == attempt => spool,
            // Two attempts may lie between one another: each is whole by itself only if it is alone.
            _ => Spool::new(folder).await.map_err(io())?,
        };
        spool.write(&message.payload).await.map_err(io())?;
        if message.property("last") != Some("true") {
            growing = Some((attempt.to_owned(), spool));
            continue;
        }
        let spooled = spool.finish().await.map_err(io())?;
        if spooled.hash == hash {
            reader.close().await.map_err(failed())?;
            store(folder, Upload::spooled(name, spooled)).await?;
            return Ok(());
        }
    }
    Err(WorkerError::Invalid(vec![format!(
        "the package `{package}` is on no topic: the worker that took it in has not shared it"
    )]))
}

/// A local path of code as an absolute one, so that it means the same after a restart elsewhere.
pub(crate) fn with_absolute_code(component: Component) -> Component {
    let Component::Function(mut config) = component else {
        return component;
    };
    let absolute = |path: &mut Option<String>| {
        let Some(text) = path else { return };
        let plain = text.strip_prefix("file://").unwrap_or(text);
        if !plain.contains("://")
            && let Ok(found) = std::fs::canonicalize(PathBuf::from(plain))
        {
            *text = super::shown(&found);
        }
    };
    absolute(&mut config.sh);
    absolute(&mut config.py);
    absolute(&mut config.exec);
    absolute(&mut config.go);
    absolute(&mut config.jar);
    absolute(&mut config.wasm);
    Component::Function(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_same_bytes_are_kept_once_and_names_can_not_escape() {
        let folder = tempfile::tempdir().expect("temporary");
        let upload = |name: &str| Upload::new(name, "text");
        let first = store(folder.path(), upload("f.sh")).await.expect("kept");
        let again = store(folder.path(), upload("f.sh")).await.expect("kept");
        assert_eq!(again, first);
        let outside = store(folder.path(), upload("../../etc/f.sh")).await;
        assert_eq!(outside.expect("kept"), first);
        assert!(store(folder.path(), upload("..")).await.is_err());
        assert_eq!(
            std::fs::read(folder.path().join(&first)).expect("there"),
            b"text"
        );
        let sha = "982d9e3eb996f559e633f4d194def3761d909f5a3b647d1a851fead67c32c9d1";
        assert_eq!(first, format!("{sha}/f.sh"));
        let growing = std::fs::read_dir(folder.path().join(GROWING)).expect("made");
        assert_eq!(growing.count(), 0, "an upload was left behind");
        let other = store(folder.path(), Upload::new("g.sh", "other"))
            .await
            .expect("kept");
        let needed = BTreeSet::from([first.clone()]);
        let is_there = |name: &str| folder.path().join(name).exists();
        sweep(folder.path(), &needed, Duration::from_secs(60));
        assert!(is_there(&first) && is_there(&other), "it is new");
        let long_ago = SystemTime::now() - Duration::from_secs(100);
        let age = |name: &str| {
            let directory = folder.path().join(name);
            let directory = File::open(directory.parent().expect("a folder")).expect("there");
            directory.set_modified(long_ago).expect("set");
        };
        age(&first);
        age(&other);
        // Taken in again.
        store(folder.path(), Upload::new("g.sh", "other"))
            .await
            .expect("kept");
        sweep(folder.path(), &needed, Duration::from_secs(60));
        assert!(is_there(&other), "its record may be about to be made");
        age(&other);
        sweep(folder.path(), &needed, Duration::from_secs(60));
        assert!(is_there(&first) && !is_there(&other));
        sweep(folder.path(), &BTreeSet::new(), Duration::ZERO);
        assert!(!is_there(&first));
    }

    #[tokio::test]
    async fn an_upload_that_is_cut_leaves_nothing() {
        let folder = tempfile::tempdir().expect("temporary");
        let mut spool = Spool::new(folder.path()).await.expect("made");
        spool.write(b"half of").await.expect("written");
        drop(spool);
        let growing = std::fs::read_dir(folder.path().join(GROWING)).expect("made");
        assert_eq!(growing.count(), 0);
    }
}
