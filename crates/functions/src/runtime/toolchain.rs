//! Other people's compilers: what they make of a function is kept in the user's cache directory by what
//! it was made of, so that it is made once on a machine.
//!
//! What must hold: a thing in the cache is whole, since it is made elsewhere and renamed; in one process
//! nothing is made twice at a time, and nothing waits for what it does not need; a compiler that is missing
//! or fails is an error of the deployment, with what it said; it sees none of the worker's environment but
//! what says where things are and how they are fetched.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::process::Command;

use super::Broken;

/// How long a compiler may take.
const LIMIT: Duration = Duration::from_secs(600);
/// How much of what it said is kept.
const WORDS_BYTES: usize = 8 * 1024;
/// Files and bytes of one function's sources.
const FILES_MAX: usize = 10_000;
const BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Names and texts of files of a folder, as part of this program.
macro_rules! files {
    ($folder:literal: $($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!($folder, $name)))),*]
    };
}
pub(super) use files;

/// Of the worker's environment, what compilers and package managers need. The worker's own secrets are
/// in there too.
const KEPT: &[&str] = &[
    "HOME",
    "LANG",
    "LANGUAGE",
    "LD_LIBRARY_PATH",
    "LOGNAME",
    "PATH",
    "SSH_AUTH_SOCK",
    "TEMP",
    "TMP",
    "TMPDIR",
    "TZ",
    "USER",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    // Fetching.
    "ALL_PROXY",
    "CURL_CA_BUNDLE",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NETRC",
    "NO_PROXY",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "all_proxy",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    // Go.
    "GOAUTH",
    "GOCACHE",
    "GODEBUG",
    "GOENV",
    "GOFLAGS",
    "GOINSECURE",
    "GOMODCACHE",
    "GONOPROXY",
    "GONOSUMDB",
    "GOPATH",
    "GOPRIVATE",
    "GOPROXY",
    "GOROOT",
    "GOSUMDB",
    "GOTMPDIR",
    "GOTOOLCHAIN",
    "GOVCS",
    // Java.
    "JAVA_HOME",
    "JAVA_TOOL_OPTIONS",
    "JDK_JAVAC_OPTIONS",
    "JDK_JAVA_OPTIONS",
    "M2_HOME",
    // Python.
    "PYTHONHOME",
    // Version managers, whose programs on the path look for the real ones.
    "ASDF_DATA_DIR",
    "ASDF_DIR",
    "MISE_CONFIG_DIR",
    "MISE_DATA_DIR",
    "PYENV_ROOT",
    "SDKMAN_DIR",
];
/// The same, by how they begin.
const KEPT_PREFIXES: &[&str] = &["LC_", "GIT_", "MAVEN_", "PIP_"];

fn is_kept(name: &str) -> bool {
    KEPT.contains(&name) || KEPT_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// The cache directory: `GEMINGA_CACHE`, or `geminga` in the user's.
pub(crate) fn cache() -> PathBuf {
    let named = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(own) = named("GEMINGA_CACHE") {
        return PathBuf::from(own);
    }
    let users = named("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(named("HOME")?).join(".cache")));
    users.unwrap_or_else(std::env::temp_dir).join("geminga")
}

/// Names content: the first half of its SHA-256. Whoever uploads something must not be able to make
/// it look like what somebody else will upload or build, so nothing moves between the parts either.
pub(crate) fn content_key<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u128 {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    half(hash)
}

fn half(hash: Sha256) -> u128 {
    let digest = hash.finalize();
    let half = digest.iter().take(16);
    half.fold(0, |key, byte| key << 8 | u128::from(*byte))
}

/// [`content_key`] of a file as the only part, which is read piece by piece.
///
/// # Errors
/// When it can not be read, or changes meanwhile.
pub(crate) fn file_key(path: &Path) -> io::Result<u128> {
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    let mut hash = Sha256::new();
    hash.update(length.to_le_bytes());
    let mut piece = vec![0; 256 * 1024];
    let mut left = length;
    loop {
        match io::Read::read(&mut file, &mut piece) {
            Ok(0) if left == 0 => return Ok(half(hash)),
            Ok(count) if count > 0 && count as u64 <= left => {
                hash.update(&piece[..count]);
                left -= count as u64;
            }
            Ok(_) => return Err(io::Error::other("it changed while it was read")),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

pub(crate) fn deployment(reason: impl Into<String>, said: impl Into<String>) -> Broken {
    Broken::Deployment {
        reason: reason.into(),
        stderr_tail: said.into(),
    }
}

/// Places that are being made, each with the lock of whoever makes it.
static MAKING: LazyLock<Mutex<HashMap<PathBuf, Arc<tokio::sync::Mutex<()>>>>> =
    LazyLock::new(Mutex::default);

/// Makes `place` in the cache, when it is not there, by `fill`ing a directory. Who wants the same place
/// meanwhile waits.
pub(crate) async fn once<F>(place: &Path, fill: impl FnOnce(PathBuf) -> F) -> Result<(), Broken>
where
    F: Future<Output = Result<(), Broken>>,
{
    if place.exists() {
        return Ok(());
    }
    let lock = MAKING.lock().entry(place.to_owned()).or_default().clone();
    let one = lock.lock().await;
    let made = make(place, fill).await;
    drop(one);
    // With this one and the map's, two: nobody else waits.
    let mut making = MAKING.lock();
    if Arc::strong_count(&lock) <= 2 {
        making.remove(place);
    }
    made
}

async fn make<F>(place: &Path, fill: impl FnOnce(PathBuf) -> F) -> Result<(), Broken>
where
    F: Future<Output = Result<(), Broken>>,
{
    if place.exists() {
        return Ok(());
    }
    let failed = |error: io::Error| deployment(format!("cache `{}`: {error}", place.display()), "");
    let parent = place.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(failed)?;
    let next = Next::new(parent).map_err(failed)?;
    let filled = fill(next.path.clone()).await;
    filled.and_then(|()| match std::fs::rename(&next.path, place) {
        // Somebody else was faster, with the same.
        Err(_) if place.exists() => Ok(()),
        other => other.map_err(failed),
    })
}

/// What a thing in the cache is called while it is made.
const NEXT: &str = ".next-";

/// A directory that is being filled. It is removed with this, whoever loses interest in it, if it was not renamed;
/// what a process that was killed left of it, [`sweep`] removes.
struct Next {
    path: PathBuf,
    /// Locked as long as somebody lives who fills it.
    _lock: std::fs::File,
}

impl Next {
    fn new(parent: &Path) -> io::Result<Self> {
        loop {
            let name = geminga_stdx::Random::from_entropy().name(12);
            let path = parent.join(format!("{NEXT}{name}"));
            std::fs::create_dir(&path)?;
            // A sweep may have come in between, and takes it for one that nobody fills.
            if let Some(lock) = lock(&path)
                && path.exists()
            {
                return Ok(Self { path, _lock: lock });
            }
        }
    }
}

impl Drop for Next {
    fn drop(&mut self) {
        if self.path.exists() {
            super::removal::remove_later(self.path.clone());
        }
    }
}

/// Locks a directory, unless somebody has.
fn lock(directory: &Path) -> Option<std::fs::File> {
    let file = std::fs::File::open(directory).ok()?;
    file.try_lock().ok()?;
    Some(file)
}

/// Removes what processes that are gone had begun to make in the cache.
pub(crate) fn sweep(cache: &Path) {
    let Ok(entries) = std::fs::read_dir(cache) else {
        return;
    };
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(NEXT) {
            continue;
        }
        if let Some(_lock) = lock(&entry.path())
            && let Err(error) = std::fs::remove_dir_all(entry.path())
        {
            let path = entry.path();
            tracing::warn!(path = %path.display(), %error, "what was begun in the cache is not removed");
        }
    }
}

/// Runs a compiler; `missing` says what to do when there is none.
pub(crate) async fn run(command: &mut Command, missing: &str) -> Result<(), Broken> {
    let program = command
        .as_std()
        .get_program()
        .to_string_lossy()
        .into_owned();
    let given: Vec<_> = command
        .as_std()
        .get_envs()
        .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
        .collect();
    let kept = std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_kept));
    command
        .env_clear()
        .envs(kept)
        .envs(given)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let output = match tokio::time::timeout(LIMIT, command.output()).await {
        Err(_) => {
            let reason = format!("`{program}` was not done after {} s", LIMIT.as_secs());
            return Err(deployment(reason, ""));
        }
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
            return Err(deployment(
                format!("`{program}` is not on the path: {missing}"),
                "",
            ));
        }
        Ok(Err(error)) => {
            return Err(deployment(
                format!("`{program}` did not start: {error}"),
                "",
            ));
        }
        Ok(Ok(output)) => output,
    };
    if output.status.success() {
        return Ok(());
    }
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.push_str(&String::from_utf8_lossy(&output.stderr));
    let from = said.len().saturating_sub(WORDS_BYTES);
    let from = (from..said.len()).find(|&i| said.is_char_boundary(i));
    let said = said[from.unwrap_or(0)..].trim().to_owned();
    Err(deployment(
        format!("`{program}` failed: {}", output.status),
        said,
    ))
}

/// The files below `folder` with their contents, in the order of their names; hidden ones are left out.
pub(crate) fn sources(folder: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>, Broken> {
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |error: io::Error| deployment(format!("`{path}`: {error}"), "")
    };
    let (mut files, mut bytes) = (Vec::new(), 0);
    let mut folders = vec![PathBuf::new()];
    while let Some(inside) = folders.pop() {
        let here = folder.join(&inside);
        for entry in std::fs::read_dir(&here).map_err(failed(&here))? {
            let entry = entry.map_err(failed(&here))?;
            let name = inside.join(entry.file_name());
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let about = std::fs::metadata(entry.path()).map_err(failed(&name))?;
            if about.is_dir() {
                folders.push(name);
                continue;
            }
            bytes += about.len();
            if files.len() == FILES_MAX || bytes > BYTES_MAX {
                let shown = folder.display();
                let reason = format!(
                    "`{shown}` has more than {FILES_MAX} files or {BYTES_MAX} bytes: \
                     name the folder of the function alone"
                );
                return Err(deployment(reason, ""));
            }
            let text = std::fs::read(entry.path()).map_err(failed(&name))?;
            files.push((name, text));
        }
    }
    files.sort();
    Ok(files)
}

/// Names and contents, as parts of a key.
pub(crate) fn flat(files: &[(PathBuf, Vec<u8>)]) -> impl Iterator<Item = &[u8]> {
    files
        .iter()
        .flat_map(|(name, text)| [name.as_os_str().as_encoded_bytes(), text])
}

/// Writes files into a directory.
pub(crate) fn write(into: &Path, files: &[(&str, &str)]) -> Result<(), Broken> {
    for (name, text) in files {
        let path = into.join(name);
        let written = path
            .parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| std::fs::write(&path, text));
        written.map_err(|error| deployment(format!("`{}`: {error}", path.display()), ""))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_moves_between_the_parts_of_a_key() {
        let key = |parts: &[&str]| content_key(parts.iter().map(|part| part.as_bytes()));
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
        assert_ne!(key(&["a", "", "b"]), key(&["a", "b", ""]));
        assert_eq!(key(&["a", "b"]), key(&["a", "b"]));
    }

    #[tokio::test]
    async fn a_place_is_made_once_and_others_do_not_wait_for_it() {
        let folder = tempfile::tempdir().expect("a directory");
        let (slow, quick) = (folder.path().join("slow"), folder.path().join("quick"));
        let gate = tokio::sync::Notify::new();
        let first = once(&slow, |into| {
            let gate = &gate;
            async move {
                gate.notified().await;
                std::fs::write(into.join("by"), "first").expect("written");
                Ok(())
            }
        });
        let second = once(&slow, |_| async { panic!("made twice") });
        let other = async {
            let made = once(&quick, |_| async { Ok(()) }).await;
            gate.notify_one();
            made
        };
        let (first, second, other) = tokio::join!(first, second, other);
        assert!(first.is_ok() && second.is_ok() && other.is_ok());
        assert_eq!(
            std::fs::read_to_string(slow.join("by")).ok().as_deref(),
            Some("first")
        );
        let making = MAKING.lock();
        assert!(!making.contains_key(&slow) && !making.contains_key(&quick));
    }

    #[tokio::test]
    async fn what_is_not_made_to_its_end_does_not_stay() {
        let folder = tempfile::tempdir().expect("a directory");
        let begun = || {
            let all = std::fs::read_dir(folder.path()).expect("read");
            all.flatten().map(|entry| entry.path()).collect::<Vec<_>>()
        };
        let place = folder.path().join("place");
        let mut making = Box::pin(once(&place, |into| async move {
            std::fs::write(into.join("half"), "of it").expect("written");
            std::future::pending().await
        }));
        tokio::select! {
            biased;
            _ = &mut making => panic!("made"),
            () = std::future::ready(()) => {}
        }
        // One that lives fills the one, a process that was killed left the other.
        let left = folder.path().join(".next-left");
        std::fs::create_dir_all(left.join("deep")).expect("made");
        assert_eq!(begun().len(), 2);
        sweep(folder.path());
        assert!(!left.exists());
        assert_eq!(begun().len(), 1);
        drop(making);
        let waits = async {
            while !begun().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let removed = tokio::time::timeout(Duration::from_secs(20), waits).await;
        removed.expect("it stays");
    }

    #[tokio::test]
    async fn a_compiler_sees_what_it_needs_and_no_more() {
        // Cargo has set that one for us.
        assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
        let script = r#"test "$GIVEN" = 1 && test -n "$PATH" && test -z "$CARGO_MANIFEST_DIR""#;
        let mut command = Command::new("sh");
        command.args(["-c", script]).env("GIVEN", "1");
        run(&mut command, "").await.expect("done");
        for (name, kept) in [
            ("GEMINGA_WORKER_TOKEN", false),
            ("GOOGLE_APPLICATION_CREDENTIALS", false),
            ("AWS_SECRET_ACCESS_KEY", false),
            ("PIP_INDEX_URL", true),
            ("MAVEN_OPTS", true),
            ("GOPROXY", true),
        ] {
            assert_eq!(is_kept(name), kept, "{name}");
        }
    }
}
