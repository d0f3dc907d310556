//! Runs one process from start to end: input, output, standard error, limits, death.

use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::runtime::body::describe_death;
use crate::runtime::process::{Planned, Process, Scope, start_error};
use crate::runtime::sandbox::not_done;
use crate::runtime::stderr::{Rate, Tail, pump};
use crate::runtime::{Broken, Failure, FailureKind, HostSpec, Services};

/// How long pipes may stay open after the process ended: something it started holds them.
const AFTERGLOW: Duration = Duration::from_millis(200);

/// What a process said.
pub(super) struct Ran {
    pub(super) printed: Vec<u8>,
    pub(super) stderr_tail: String,
    /// Its exit status; `Err` when it was killed or hit a limit.
    pub(super) status: Result<i32, Failure>,
    /// A limit that it or one of its neighbours met meanwhile.
    met: Option<String>,
}

impl Ran {
    /// What its failure is to be told with.
    pub(super) fn last_words(&self) -> LastWords {
        LastWords {
            stderr_tail: self.stderr_tail.clone(),
            met: self.met.clone(),
        }
    }
}

/// What is said with the failure of a message, beside its reason.
pub(super) struct LastWords {
    stderr_tail: String,
    met: Option<String>,
}

impl LastWords {
    pub(super) fn add_to(&self, failure: &mut Failure) {
        failure.stderr_tail.clone_from(&self.stderr_tail);
        if let Some(met) = &self.met {
            failure.reason = format!(
                "{}; meanwhile a process of this instance, this one or another, met a limit: {met}",
                failure.reason
            );
        }
    }
}

/// Starts a program, feeds it `input`, and waits for its end.
///
/// # Errors
/// When it does not start.
pub(super) async fn run(
    scope: &Scope,
    spec: &HostSpec,
    services: &Arc<dyn Services>,
    rate: &Arc<Mutex<Rate>>,
    mut planned: Planned,
    input: Vec<u8>,
    message_id: Option<String>,
) -> Result<Ran, Broken> {
    let mut process = match scope.spawn(&mut planned, &spec.options.limits).await {
        Ok(process) => process,
        // The message, not the code, is at fault.
        Err(error) if matches!(error.kind(), std::io::ErrorKind::ArgumentListTooLong) => {
            return Ok(refused(
                "too large for the arguments and environment of a process",
            ));
        }
        Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => {
            return Ok(refused("a NUL byte can not be an argument of a process"));
        }
        Err(error) => return Err(start_error(&planned.program, &error)),
    };
    drop(planned);
    let dropped_before = rate.lock().dropped_in_all();
    let tail = Tail::default();
    let mut printed = Vec::new();
    let max = spec.options.max_output_bytes;
    let end = {
        let stdin = process.child.stdin.take();
        let stdout = process.child.stdout.take();
        let stderr = process.child.stderr.take();
        let write = async {
            if let Some(mut pipe) = stdin {
                // A process may end without reading all: that is its right.
                let _ = pipe.write_all(&input).await;
            }
        };
        let read = async {
            if let Some(pipe) = stdout {
                let _ = pipe.take(max + 1).read_to_end(&mut printed).await;
            }
            printed.len() as u64 <= max
        };
        let log = async {
            if let Some(pipe) = stderr {
                pump(
                    pipe,
                    services.clone(),
                    tail.clone(),
                    Arc::new(Notify::new()),
                    rate.clone(),
                    message_id,
                )
                .await;
            }
        };
        wait(&mut process, spec, write, read, log).await
    };
    let mut met = None;
    let status = match end {
        // What it says for itself counts.
        End::Exited(Some(status)) if says(status, spec.options.drop_exit_code) => {
            exit_code(Some(status))
        }
        End::Exited(status) => match process.cause() {
            Some(cause) if cause.its_own => {
                process.sweep();
                Err(Failure::new(FailureKind::Limit, cause.why))
            }
            cause => {
                met = cause.map(|cause| cause.why);
                exit_code(status)
            }
        },
        End::TimedOut => {
            process.kill(spec.options.kill_grace()).await;
            process.sweep();
            let dropped = rate.lock().dropped_in_all() - dropped_before;
            let cause = process.cause().map(|cause| cause.why);
            let reason = not_done(spec.options.timeout_ms, cause, dropped);
            Err(Failure::new(FailureKind::Timeout, reason))
        }
        End::TooLarge => {
            process.kill(Duration::ZERO).await;
            let reason = format!("more than {max} bytes of output for one message");
            Err(Failure::new(FailureKind::Output, reason))
        }
    };
    Ok(Ran {
        printed,
        stderr_tail: tail.take(),
        status,
        met,
    })
}

/// Whether a status is one by which a process tells what shall become of its message.
fn says(status: ExitStatus, drop_exit_code: i32) -> bool {
    status
        .code()
        .is_some_and(|code| code == drop_exit_code || matches!(code, 0 | 64..=78))
}

fn refused(reason: &str) -> Ran {
    Ran {
        printed: Vec::new(),
        stderr_tail: String::new(),
        status: Err(Failure::new(FailureKind::Data, reason)),
        met: None,
    }
}

enum End {
    Exited(Option<ExitStatus>),
    TimedOut,
    TooLarge,
}

async fn wait(
    process: &mut Process,
    spec: &HostSpec,
    write: impl Future<Output = ()>,
    read: impl Future<Output = bool>,
    log: impl Future<Output = ()>,
) -> End {
    tokio::pin!(write, read, log);
    let (mut writing, mut reading, mut logging) = (true, true, true);
    let mut exited = None;
    let mut deadline = spec.options.timeout().map(|limit| Instant::now() + limit);
    loop {
        if exited.is_some() && !reading && !logging {
            return End::Exited(exited.flatten());
        }
        tokio::select! {
            () = &mut write, if writing => writing = false,
            fits = &mut read, if reading => {
                if !fits {
                    return End::TooLarge;
                }
                reading = false;
            }
            () = &mut log, if logging => logging = false,
            status = process.wait(), if exited.is_none() => {
                exited = Some(status.ok());
                deadline = Some(Instant::now() + AFTERGLOW);
            }
            () = async { sleep_until(deadline.unwrap_or_else(Instant::now)).await }, if deadline.is_some() => {
                return match exited {
                    Some(status) => End::Exited(status),
                    None => End::TimedOut,
                };
            }
        }
    }
}

fn exit_code(status: Option<ExitStatus>) -> Result<i32, Failure> {
    use std::os::unix::process::ExitStatusExt;
    if let Some(code) = status.and_then(|s| s.code()) {
        return Ok(code);
    }
    let (kind, reason, exit_code) = describe_death(None, status.and_then(|s| s.signal()));
    Err(Failure {
        exit_code,
        ..Failure::new(kind, reason)
    })
}
