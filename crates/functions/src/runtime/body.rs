//! What a warm host runs, apart from how it is spoken with: a process, or a guest of a runtime that
//! lives in another crate.
//!
//! [`start`] makes a [`Host`] of anything that a [`Launcher`] starts and that speaks the host protocol
//! (`docs/host-protocol.md`) on a pair of streams. Order, time-outs, blame, restarts, state and logs are
//! the host's; a [`Body`] has only to end when it is told to, and to say how it ended.

use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use geminga_stdx::Tasks;
use tokio::io::{AsyncRead, AsyncWrite};

use super::process::{Process, Scope};
use super::warm::{self, Launch, Launched};
use super::wire::packed::Packed;
use super::{BoxFuture, Broken, FailureKind, Host, HostSpec, Services};

/// How user code ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exit {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    /// Why, when the runtime knows better than a status tells.
    pub cause: Option<(FailureKind, String)>,
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        use std::os::unix::process::ExitStatusExt;
        Self {
            code: status.code(),
            signal: status.signal(),
            cause: None,
        }
    }
}

/// Started user code.
pub trait Body: Send {
    /// Waits for its end.
    fn wait(&mut self) -> BoxFuture<'_, Option<Exit>>;

    /// Ends it: asks, waits for `grace`, then forces. Returns when it is gone.
    fn kill(&mut self, grace: Duration) -> BoxFuture<'_, Option<Exit>>;
}

impl Body for Process {
    fn wait(&mut self) -> BoxFuture<'_, Option<Exit>> {
        Box::pin(async {
            let exit = Process::wait(self).await.ok().map(Exit::from);
            exit.map(|exit| with_cause(exit, self))
        })
    }

    fn kill(&mut self, grace: Duration) -> BoxFuture<'_, Option<Exit>> {
        Box::pin(async move {
            let exit = Process::kill(self, grace).await.map(Exit::from);
            exit.map(|exit| with_cause(exit, self))
        })
    }
}

/// The limit that a process ran into, when it did not end well.
fn with_cause(exit: Exit, process: &Process) -> Exit {
    let cause = (exit.code != Some(0)).then(|| process.cause()).flatten();
    Exit { cause, ..exit }
}

/// How a kind of warm code is started.
pub trait Launcher: Send + Sync + 'static {
    /// Starts code that will first see message `next`.
    ///
    /// # Errors
    /// When it does not start.
    fn launch(&self, spec: &HostSpec, next: u64) -> Result<Launched, Broken>;

    /// Messages in flight, when the options do not say.
    fn window(&self) -> usize;

    /// Messages in one frame, when the options do not say.
    fn frame(&self) -> usize;

    /// Ends what user code left behind.
    fn sweep(&self) {}
}

/// A process runtime with the scope of its processes.
pub(super) struct Scoped {
    pub(super) launch: Arc<dyn Launch>,
    pub(super) scope: Scope,
}

impl Launcher for Scoped {
    fn launch(&self, spec: &HostSpec, next: u64) -> Result<Launched, Broken> {
        self.launch.launch(&self.scope, spec, next)
    }

    fn window(&self) -> usize {
        self.launch.window()
    }

    fn frame(&self) -> usize {
        self.launch.frame()
    }

    fn sweep(&self) {
        self.scope.sweep();
    }
}

/// The two ends of a conversation, and what is printed meanwhile.
pub struct Streams {
    /// Frames of the host.
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    /// Frames to the host.
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
    /// Its lines become logs.
    pub log: Box<dyn AsyncRead + Send + Unpin>,
}

impl Launched {
    /// Code that speaks the socket binding of the host protocol. `precise` promises that the outcome of
    /// a message is written before the next one is begun, at the latest when the code ends: then a
    /// death is blamed without trying the messages in hand again.
    #[must_use]
    pub fn new(body: Box<dyn Body>, streams: Streams, spec: &HostSpec, precise: bool) -> Self {
        Self {
            process: body,
            reader: streams.reader,
            writer: streams.writer,
            logs: vec![streams.log],
            codec: Box::new(Packed::new(spec.options.max_output_bytes).precise_when(precise)),
        }
    }
}

/// Starts the first body, waits until it is ready, and leaves it to its task.
///
/// # Errors
/// When it does not become ready.
pub async fn start(
    launcher: Arc<dyn Launcher>,
    spec: Arc<HostSpec>,
    services: Arc<dyn Services>,
    tasks: &Tasks,
) -> Result<Box<dyn Host>, Broken> {
    warm::start_any(launcher, spec, services, tasks).await
}

/// Where what was compiled for a function is kept: `GEMINGA_CACHE`, or `geminga` in the user's cache
/// directory.
#[must_use]
pub fn cache_directory() -> std::path::PathBuf {
    super::toolchain::cache()
}

/// What user code sees of its function as environment variables (`GMG_...`). Secrets are not there.
#[must_use]
pub fn environment(spec: &HostSpec) -> Vec<(String, String)> {
    super::process::function_environment(spec)
}
