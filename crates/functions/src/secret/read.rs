//! Reads one secret: of the environment, of a file, of a command. All of it is bounded, and no error has a value.

use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use geminga_model::Secret;
use geminga_model::secret::MASK;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::sync::Semaphore;

use super::{SecretRules, shown};

/// Most bytes of one secret.
const BYTES_MAX: usize = 64 << 10;
/// What a command may take. It stands between a function and its start.
pub(super) const COMMAND_WITHIN: Duration = Duration::from_secs(10);
/// The same for a file, which may be on another machine.
pub(super) const FILE_WITHIN: Duration = Duration::from_secs(10);
/// Commands that run at once: a thousand instances may start together.
static TURNS: Semaphore = Semaphore::const_new(8);
/// How much of what a command that failed said last is told.
const TAIL_BYTES: usize = 2 << 10;
/// Lines of its output as long as this are masked where it said them again.
const TELLING_BYTES: usize = 4;
/// What is done about an error that may pass.
const AGAIN: &str = "it is tried again";

pub(super) fn variable(name: &str) -> Result<String, String> {
    match std::env::var(name) {
        Ok(value) => text(
            value.into_bytes(),
            &format!("the environment variable `{name}`"),
        ),
        Err(std::env::VarError::NotPresent) => Err(format!(
            "the environment variable `{name}` of this worker is not set: set it where the worker is started, and \
             start it again"
        )),
        Err(std::env::VarError::NotUnicode(_)) => {
            Err(format!("the environment variable `{name}` is not UTF-8"))
        }
    }
}

/// The content of a file, if its path is allowed and what its links lead to.
pub(super) async fn file(path: &str, rules: &SecretRules) -> Result<String, String> {
    let (given, rules) = (path.to_owned(), rules.clone());
    let reading = tokio::task::spawn_blocking(move || {
        rules.may(&Secret::File(given.clone()))?;
        read_file(&given, &rules)
    });
    let bytes = match tokio::time::timeout(FILE_WITHIN, reading).await {
        Ok(Ok(read)) => read?,
        Ok(Err(_)) => return Err(format!("`{path}` was not read; {AGAIN}")),
        Err(_) => {
            let seconds = FILE_WITHIN.as_secs();
            return Err(format!("`{path}` was not read within {seconds} s; {AGAIN}"));
        }
    };
    without_newline(bytes, &format!("`{path}`"))
}

fn read_file(path: &str, rules: &SecretRules) -> Result<Vec<u8>, String> {
    let failed = |error: io::Error| {
        format!("`{path}`: {error}: put it there, for the user of this worker to read; {AGAIN}")
    };
    let real = std::fs::canonicalize(path).map_err(failed)?;
    rules.may_open(path, &real)?;
    let not_a_file = || format!("`{path}` is not a file");
    // To open what is none may do something.
    if !std::fs::metadata(&real).map_err(failed)?.is_file() {
        return Err(not_a_file());
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = rustix::fs::open(&real, flags, Mode::empty());
    let file = std::fs::File::from(file.map_err(|error| failed(error.into()))?);
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(not_a_file());
    }
    // A folder on the way may have become a link since it was looked at.
    let opened = std::fs::read_link(Path::new("/proc/self/fd").join(file.as_raw_fd().to_string()));
    if opened.map_err(failed)? != real {
        return Err(format!("`{path}` was moved while it was read; {AGAIN}"));
    }
    let mut bytes = Vec::new();
    let mut some = file.take(BYTES_MAX as u64 + 2);
    some.read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// What a command prints. It and all of its process group end within `limit`.
pub(super) async fn command(words: &[String], limit: Duration) -> Result<String, String> {
    let what = shown(words);
    let Some((program, arguments)) = words.split_first() else {
        return Err("a command without a program".to_owned());
    };
    let turn = TURNS.acquire().await;
    let _turn = turn.map_err(|_| format!("{what} was not run; {AGAIN}"))?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("{what} was not run: {error}; mend it, {AGAIN}"))?;
    let pid = child.id().and_then(|id| i32::try_from(id).ok());
    let group = Group(AtomicI32::new(pid.unwrap_or(0)));
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let printed = async {
        let bytes = head(stdout).await;
        if bytes.len() > BYTES_MAX + 1 {
            // It would wait for a reader.
            group.kill();
        }
        bytes
    };
    let ended = async {
        let status = child.wait().await;
        // What it left behind would hold its pipes open.
        group.end();
        status
    };
    let all = async { tokio::join!(printed, tail(stderr), ended) };
    let Ok((bytes, said, status)) = tokio::time::timeout(limit, all).await else {
        return Err(format!(
            "{what} was not done after {} s: mend it, {AGAIN}",
            limit.as_secs_f64()
        ));
    };
    if bytes.len() > BYTES_MAX + 1 {
        return Err(too_large(&what));
    }
    let said = match without(&said, &bytes).trim() {
        "" => String::new(),
        said => format!("\n{said}"),
    };
    match status {
        Ok(status) if status.success() => without_newline(bytes, &format!("what {what} printed")),
        Ok(status) => Err(format!(
            "{what} ended with {status}: mend it, {AGAIN}{said}"
        )),
        Err(error) => Err(format!("{what} is lost: {error}; {AGAIN}")),
    }
}

/// A process group that ends with this; 0 when it has ended, and its number may be another's.
struct Group(AtomicI32);

impl Group {
    fn kill(&self) {
        if let Some(group) = Pid::from_raw(self.0.load(Ordering::Relaxed)) {
            // It may have ended.
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
    }

    /// What is left of it, when its leader has ended.
    fn end(&self) {
        self.kill();
        self.0.store(0, Ordering::Relaxed);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The begin of what is printed, a byte more than it may be.
async fn head(from: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        // What came before an error counts.
        let _ = from
            .take(BYTES_MAX as u64 + 2)
            .read_to_end(&mut bytes)
            .await;
    }
    bytes
}

/// The end of it.
async fn tail(from: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut last = Vec::new();
    let Some(mut from) = from else { return last };
    let mut some = vec![0; TAIL_BYTES];
    while let Ok(count @ 1..) = from.read(&mut some).await {
        last.extend_from_slice(&some[..count]);
        last.drain(..last.len().saturating_sub(TAIL_BYTES));
    }
    last
}

/// What was said, without lines of what was printed: that is the secret, or a part of it.
fn without(said: &[u8], printed: &[u8]) -> String {
    let mut said = String::from_utf8_lossy(said).into_owned();
    let printed = String::from_utf8_lossy(printed);
    let lines = printed.lines().map(str::trim);
    for line in lines.filter(|line| line.len() >= TELLING_BYTES) {
        said = said.replace(line, MASK);
    }
    said
}

/// Text as an editor or `echo` leaves it: with a newline at its end, which is not of the secret.
fn without_newline(mut bytes: Vec<u8>, what: &str) -> Result<String, String> {
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    text(bytes, what)
}

fn text(bytes: Vec<u8>, what: &str) -> Result<String, String> {
    if bytes.len() > BYTES_MAX {
        return Err(too_large(what));
    }
    if bytes.contains(&0) {
        return Err(format!("{what} has a zero byte, which no secret may have"));
    }
    String::from_utf8(bytes).map_err(|_| format!("{what} is not UTF-8: keep it as base64 there"))
}

fn too_large(what: &str) -> String {
    format!("{what} is larger than {} KiB", BYTES_MAX >> 10)
}
