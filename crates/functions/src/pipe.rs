//! Runs a function without a broker: lines in, lines out. `printf 'hello\n' | geminga run reverse.sh`.
//!
//! The instance is the same as on a broker; only its ends differ. Nothing is tried again unless the
//! configuration says so, since nobody else keeps the line.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use geminga_client::{Receipt, Transaction};
use geminga_model::FunctionConfig;
use geminga_stdx::Tasks;
use tokio::io::AsyncRead;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::watch;

use crate::error::WorkerError;
use crate::instance::context::Context;
use crate::instance::gather::Gather;
use crate::instance::guarantee::Letter;
use crate::instance::sink::{Sink, WriteError};
use crate::instance::source::{Acker, Incoming, Origin, Source};
use crate::instance::state::FunctionState;
use crate::instance::{Gauge, Instance};
use crate::plan::{Policy, Process, plan};
use crate::runtime::{BoxFuture, Host, LogLine, Message, Output, Processes, Services};
use crate::secret::{SecretRules, Unread};
use crate::worker::runtimes::{MakeRuntime, Runtimes};

/// What became of the lines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PipeReport {
    pub received: u64,
    pub processed: u64,
    /// Calls that failed, tries again included.
    pub failed: u64,
    /// Lines that were given up.
    pub lost: u64,
    pub written: u64,
    /// The last failures, newest last.
    pub failures: Vec<String>,
}

/// Takes the function's log lines.
pub type OnLine = Arc<dyn Fn(&LogLine) + Send + Sync>;

/// Runs `config` on the lines of `input` until it ends; `wasm` is the WASM runtime, where the binary has one.
///
/// # Errors
/// When the configuration is refused, the code does not start, or an end fails.
pub async fn run_pipe(
    mut config: FunctionConfig,
    input: impl AsyncRead + Send + Unpin + 'static,
    output: impl AsyncWrite + Send + Unpin + 'static,
    on_log: Option<OnLine>,
    wasm: Option<&MakeRuntime>,
) -> Result<PipeReport, WorkerError> {
    let tasks = Tasks::new();
    let gauge = Arc::new(Gauge::default());
    let state = Arc::new(FunctionState::in_memory(&tasks));
    let services = Arc::new(Context::new(gauge.clone(), Some(state.clone()), on_log));
    config.max_message_retries = config.max_message_retries.or(Some(0));
    let (policy, gather, host) = start_host(config, services, &tasks, wasm).await?;
    let instance = Instance {
        source: Box::new(LineSource {
            lines: Box::new(BufReader::with_capacity(256 * 1024, input)),
            line: Vec::new(),
            number: 0,
        }),
        host: Some(host),
        sink: Box::new(LineSink {
            out: Box::new(output),
            waiting: Vec::new(),
        }),
        state: Some(state),
        once: None,
        gather,
        policy,
        limits: None,
        log: None,
        gauge: gauge.clone(),
        tasks: tasks.clone(),
    };
    let (_stop, stopped) = watch::channel(None);
    let result = instance.run(stopped).await;
    tasks.cancel();
    tasks.join(Duration::from_secs(2)).await;
    result.map_err(|fault| WorkerError::Invalid(vec![fault.to_string()]))?;
    let snapshot = gauge.stats.snapshot();
    Ok(PipeReport {
        received: snapshot.total.received,
        processed: snapshot.total.processed,
        failed: snapshot.total.user_exceptions,
        lost: snapshot.dead_lettered,
        written: snapshot.written,
        failures: snapshot
            .user_exceptions
            .into_iter()
            .map(|e| e.text)
            .collect(),
    })
}

/// Plans a function that runs without a broker, and starts its code.
pub(crate) async fn start_host(
    mut config: FunctionConfig,
    services: Arc<dyn Services>,
    tasks: &Tasks,
    wasm: Option<&MakeRuntime>,
) -> Result<(Policy, Option<Gather>, Box<dyn Host>), WorkerError> {
    if config.all_inputs().is_ok_and(|inputs| inputs.is_empty()) {
        config.inputs = Some(vec!["stdin".to_owned()]);
    }
    let code = config.code().map(|(_, path)| Path::new(path).to_path_buf());
    let plan = plan(&config.into(), code.as_deref()).map_err(WorkerError::Invalid)?;
    let (language, spec) = match plan.process {
        Process::Host(language, spec) => (language, spec),
        Process::Compat(_) => {
            return Err(WorkerError::Invalid(vec![
                "a function in the runtime `compat` brings a client of its own: it needs a broker"
                    .to_owned(),
            ]));
        }
        Process::Identity => {
            return Err(WorkerError::Invalid(vec!["not a function".to_owned()]));
        }
    };
    let processes =
        Processes::start(None).map_err(WorkerError::io("starting the process guard"))?;
    // Whoever wrote the configuration runs it.
    let unread = Unread {
        spec: *spec,
        secrets: plan.secrets,
        rules: SecretRules::everything(),
    };
    let host = Runtimes::new(processes, tasks.clone(), wasm)
        .start(language, unread, services)
        .await
        .map_err(|broken| WorkerError::Invalid(vec![broken.text()]))?;
    Ok((plan.policy, plan.window.map(Gather::new), host))
}

struct LineSource {
    lines: Box<dyn AsyncBufRead + Send + Unpin>,
    /// A line that is read in part: kept, so that reading may be cancelled.
    line: Vec<u8>,
    number: u64,
}

impl Source for LineSource {
    fn next(&mut self, max: usize) -> BoxFuture<'_, Result<Vec<Incoming>, String>> {
        Box::pin(async move {
            let mut all = Vec::new();
            loop {
                let count = self
                    .lines
                    .read_until(b'\n', &mut self.line)
                    .await
                    .map_err(|error| error.to_string())?;
                if count == 0 && self.line.is_empty() {
                    return Ok(all);
                }
                let mut line = std::mem::take(&mut self.line);
                if line.last() == Some(&b'\n') {
                    line.pop();
                }
                self.number += 1;
                let message = Message {
                    topic: "stdin".into(),
                    id: format!("line {}", self.number),
                    payload: Bytes::from(line),
                    partition: -1,
                    ..Message::default()
                };
                all.push(Incoming {
                    message: Arc::new(message),
                    origin: Origin::File {
                        file: 0,
                        offset: self.number,
                    },
                });
                // One line a turn: waiting for the next may be cancelled, and would lose these.
                let more = all.len() < max && buffered(&mut self.lines).await;
                if !more {
                    return Ok(all);
                }
            }
        })
    }

    fn acker(&self) -> Arc<dyn Acker> {
        Arc::new(Nobody)
    }

    fn dead_letter_topic(&self, _message: &Message) -> Option<String> {
        Some("stderr".to_owned())
    }
}

/// Whether a whole line is in the buffer already.
async fn buffered(lines: &mut Box<dyn AsyncBufRead + Send + Unpin>) -> bool {
    let filled = std::future::poll_fn(|cx| {
        let poll = std::pin::Pin::new(&mut **lines).poll_fill_buf(cx);
        std::task::Poll::Ready(match poll {
            std::task::Poll::Ready(Ok(buffer)) => buffer.contains(&b'\n'),
            _ => false,
        })
    });
    filled.await
}

/// Acknowledges to nobody: the end of a source that nobody keeps.
pub(crate) struct Nobody;

impl Acker for Nobody {
    fn ack(&self, _origins: Vec<Origin>, _durable: bool) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }
}

struct LineSink {
    out: Box<dyn AsyncWrite + Send + Unpin>,
    waiting: Vec<u8>,
}

impl Sink for LineSink {
    fn write<'a>(
        &'a mut self,
        _input: &'a Message,
        outputs: Vec<Output>,
        _txn: Option<&'a Transaction>,
    ) -> BoxFuture<'a, Result<Vec<Receipt>, WriteError>> {
        Box::pin(async move {
            for output in outputs {
                self.waiting.extend_from_slice(&output.payload);
                self.waiting.push(b'\n');
            }
            let wrote = async {
                self.out.write_all(&self.waiting).await?;
                self.out.flush().await
            };
            let wrote = wrote.await;
            self.waiting.clear();
            wrote.map_err(|error| WriteError::Sink(error.to_string()))?;
            Ok(Vec::new())
        })
    }

    fn dead_letter<'a>(
        &'a mut self,
        _topic: &'a str,
        _letter: Letter,
        _input: &'a Message,
        _txn: Option<&'a Transaction>,
    ) -> BoxFuture<'a, Result<Vec<Receipt>, String>> {
        // The report counts it, and holds the failure.
        Box::pin(async { Ok(Vec::new()) })
    }
}
