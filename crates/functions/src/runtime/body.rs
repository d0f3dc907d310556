//! What a warm host runs, apart from how it is spoken with: a process, or a guest of a runtime that
//! lives in another crate.
//!
//! [`start`] makes a [`Host`](super::Host) of anything that a [`Launcher`] starts and that
//! speaks the host protocol (`docs/host-protocol.md`) on a pair of streams. Order, time-outs, blame, restarts, state and logs are
//! the host's; a [`Body`] has only to end when it is told to, and to say how it ended.

use std::os::unix::net::UnixStream;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::process::{ChildStderr, ChildStdout};

use super::pipe::Patient;
use super::process::{Planned, Process, Scope, start_error};
use super::wire::Codec;
use super::wire::packed::Packed;
use super::{BoxFuture, Broken, FailureKind, HostSpec};

/// The way in for runtimes of other crates; nothing here uses it.
pub use super::warm::start_any as start;

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
    // It is the only process of its host, so that what was met is its own.
    let cause = cause.map(|cause| (FailureKind::Limit, cause.why));
    Exit { cause, ..exit }
}

/// How a kind of warm code is started.
pub trait Launcher: Send + Sync + 'static {
    /// Starts code.
    ///
    /// # Errors
    /// When it does not start.
    fn launch<'a>(&'a self, spec: &'a HostSpec) -> BoxFuture<'a, Result<Launched, Broken>>;

    /// Messages in flight, when the options do not say.
    fn window(&self) -> usize;

    /// Messages in one frame, when the options do not say.
    fn frame(&self) -> usize;

    /// Ends what user code left behind.
    fn sweep(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// What is different from one kind of warm process to the next.
pub(crate) trait Launch: Send + Sync + 'static {
    /// What is started, and how it is spoken with.
    ///
    /// # Errors
    /// When what it needs is not there.
    fn plan(&self, scope: &Scope, spec: &HostSpec) -> Result<(Planned, Speech), Broken>;

    /// Messages in flight, when the options do not say.
    fn window(&self) -> usize {
        2048
    }
    /// Messages in one frame, when the options do not say.
    fn frame(&self) -> usize {
        256
    }
}

/// How a process is spoken with.
pub(crate) enum Speech {
    /// By the host protocol, on a socket that is its standard input. What it prints are logs.
    Socket,
    /// On its standard input and output. A patient reader is for one that writes each answer by itself.
    Pipes {
        codec: Box<dyn Codec>,
        patient: bool,
    },
}

/// A process that was just started, and the ends of its pipes.
pub struct Launched {
    pub(crate) process: Box<dyn Body>,
    pub(crate) reader: Box<dyn AsyncRead + Send + Unpin>,
    pub(crate) writer: Box<dyn AsyncWrite + Send + Unpin>,
    /// Pipes whose lines are logs.
    pub(crate) logs: Vec<Box<dyn AsyncRead + Send + Unpin>>,
    pub(crate) codec: Box<dyn Codec>,
}

/// A process runtime with the scope of its processes.
pub(super) struct Scoped {
    pub(super) launch: Arc<dyn Launch>,
    pub(super) scope: Scope,
}

impl Launcher for Scoped {
    fn launch<'a>(&'a self, spec: &'a HostSpec) -> BoxFuture<'a, Result<Launched, Broken>> {
        Box::pin(async move {
            let room = self.scope.make_room(spec).await;
            let _room = room.map_err(super::private_directory)?;
            let (planned, speech) = self.launch.plan(&self.scope, spec)?;
            match speech {
                Speech::Socket => on_socket(planned, &self.scope, spec).await,
                Speech::Pipes { codec, patient } => {
                    on_pipes(planned, codec, patient, &self.scope, spec).await
                }
            }
        })
    }

    fn window(&self) -> usize {
        self.launch.window()
    }

    fn frame(&self) -> usize {
        self.launch.frame()
    }

    fn sweep(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.scope.sweep_out())
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

/// Starts a process with a socket as its standard input.
async fn on_socket(
    mut planned: Planned,
    scope: &Scope,
    spec: &HostSpec,
) -> Result<Launched, Broken> {
    let failed = |error: std::io::Error| Broken::Start {
        reason: format!("no socket pair: {error}"),
        stderr_tail: String::new(),
    };
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    ours.set_nonblocking(true).map_err(failed)?;
    let gate = ours.try_clone().map_err(failed)?;
    let ours = tokio::net::UnixStream::from_std(ours).map_err(failed)?;
    planned
        .env("GMG_HOST_BINDING", "socket")
        .env("GMG_HOST_FD", "0")
        .socket(gate.into(), theirs.into());
    let (process, stdout, stderr) = begin(&mut planned, scope, spec).await?;
    let (reader, writer) = ours.into_split();
    Ok(Launched {
        process: Box::new(process),
        reader: Box::new(reader),
        writer: Box::new(writer),
        logs: vec![Box::new(stdout), Box::new(stderr)],
        codec: Box::new(Packed::new(spec.options.max_output_bytes)),
    })
}

/// Starts a process that is spoken with on its standard input and output.
async fn on_pipes(
    mut planned: Planned,
    codec: Box<dyn Codec>,
    patient: bool,
    scope: &Scope,
    spec: &HostSpec,
) -> Result<Launched, Broken> {
    planned.pipe();
    let (mut process, stdout, stderr) = begin(&mut planned, scope, spec).await?;
    let stdin = process.child.stdin.take().ok_or_else(super::no_pipes)?;
    let reader: Box<dyn AsyncRead + Send + Unpin> = if patient {
        let reader = stdout.into_owned_fd().and_then(Patient::new);
        Box::new(reader.map_err(|error| start_error(&planned.program, &error))?)
    } else {
        Box::new(stdout)
    };
    Ok(Launched {
        process: Box::new(process),
        reader,
        writer: Box::new(stdin),
        logs: vec![Box::new(stderr)],
        codec,
    })
}

async fn begin(
    planned: &mut Planned,
    scope: &Scope,
    spec: &HostSpec,
) -> Result<(Process, ChildStdout, ChildStderr), Broken> {
    let started = scope.spawn(planned, &spec.options.limits).await;
    let mut process = started.map_err(|error| start_error(&planned.program, &error))?;
    match (process.child.stdout.take(), process.child.stderr.take()) {
        (Some(stdout), Some(stderr)) => Ok((process, stdout, stderr)),
        _ => Err(super::no_pipes()),
    }
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

/// How a process ended, in words.
pub(crate) fn describe_death(
    code: Option<i32>,
    signal: Option<i32>,
) -> (FailureKind, String, Option<i32>) {
    const SIGKILL: i32 = 9;
    const SIGXCPU: i32 = 24;
    const SIGXFSZ: i32 = 25;
    match (code, signal) {
        (Some(126), _) => (
            FailureKind::Crash,
            "ended with status 126: a command in it is not executable".into(),
            code,
        ),
        (Some(127), _) => (
            FailureKind::Crash,
            "ended with status 127: a command in it was not found".into(),
            code,
        ),
        (Some(status), _) => (
            FailureKind::Crash,
            format!("ended with status {status}"),
            code,
        ),
        (None, Some(SIGXCPU)) => (
            FailureKind::Limit,
            "killed: it used more CPU time than allowed".into(),
            Some(128 + SIGXCPU),
        ),
        (None, Some(SIGXFSZ)) => (
            FailureKind::Limit,
            "killed: it wrote a larger file than allowed".into(),
            Some(128 + SIGXFSZ),
        ),
        (None, Some(SIGKILL)) => (
            FailureKind::Crash,
            "killed by signal 9, by hand or for want of memory".into(),
            Some(128 + SIGKILL),
        ),
        (None, Some(signal)) => (
            FailureKind::Crash,
            format!("killed by signal {signal}"),
            Some(128 + signal),
        ),
        (None, None) => (FailureKind::Crash, "ended in an unknown way".into(), None),
    }
}
