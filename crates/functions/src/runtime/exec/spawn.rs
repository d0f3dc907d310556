//! A process a message. Lanes run side by side; messages of one key stay in one lane, so that they
//! are processed in order.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::time::Duration;

use geminga_stdx::Tasks;
use geminga_stdx::tasks::OnError;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::{Extra, Program, message, run};
use crate::runtime::options::{Content, Input};
use crate::runtime::process::{Scope, trim_output};
use crate::runtime::stderr::Rate;
use crate::runtime::wire::verdict_of_status;
use crate::runtime::{
    BoxFuture, Broken, Delivery, Failure, Host, HostSpec, Message, Outcome, Output, Services,
    Verdict,
};

/// Messages that wait in a lane beside the one in hand, so that it never idles.
const AHEAD: usize = 2;

pub(super) fn start(
    program: Program,
    scope: Scope,
    spec: Arc<HostSpec>,
    services: Arc<dyn Services>,
    tasks: &Tasks,
) -> Result<Box<dyn Host>, Broken> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let count = spec.options.concurrency.unwrap_or(cores).max(1);
    let window = spec.options.window.unwrap_or(count * (1 + AHEAD)).max(1);
    let (outcomes_in, outcomes) = mpsc::channel(window + 1);
    let (stop, stopped) = watch::channel(false);
    let scope = Arc::new(scope);
    let rate = Arc::new(Mutex::new(Rate::new(spec.options.max_stderr_bytes)));
    let mut lanes = Vec::with_capacity(count);
    for number in 0..count {
        let (sender, deliveries) = mpsc::channel(window);
        let lane = Lane {
            program: program.clone(),
            scope: scope.clone(),
            spec: spec.clone(),
            services: services.clone(),
            rate: rate.clone(),
            extra: Extra::new(&scope, number).map_err(crate::runtime::private_directory)?,
            ever_done: false,
        };
        let outcomes = outcomes_in.clone();
        let stopped = stopped.clone();
        tasks.spawn("function lane", OnError::Log, async move {
            lane.serve(deliveries, outcomes, stopped).await;
            Ok::<(), std::convert::Infallible>(())
        });
        lanes.push((sender, 0));
    }
    Ok(Box::new(SpawnHost {
        window,
        in_flight: 0,
        lanes,
        held: Vec::new(),
        outcomes,
        stop,
        broken: None,
        scope,
    }))
}

struct SpawnHost {
    window: usize,
    in_flight: usize,
    /// Each lane, and how many messages it holds.
    lanes: Vec<(mpsc::Sender<Delivery>, usize)>,
    /// Outcomes read while waiting for room.
    held: Vec<Outcome>,
    outcomes: mpsc::Receiver<Said>,
    stop: watch::Sender<bool>,
    broken: Option<Broken>,
    // Kept until the host is dropped: its end sweeps what processes left.
    scope: Arc<Scope>,
}

/// What a lane says: an outcome, or that the code can not be run at all.
type Said = Result<(usize, Outcome), Broken>;

impl SpawnHost {
    fn why(&self) -> Broken {
        self.broken.clone().unwrap_or(Broken::Stopped)
    }

    /// Remembers what a lane said. False when there is nothing more to hear.
    fn hear(&mut self, said: Option<Said>) -> bool {
        match said {
            Some(Ok((lane, outcome))) => {
                self.in_flight -= 1;
                self.lanes[lane].1 -= 1;
                self.held.push(outcome);
                true
            }
            Some(Err(why)) => {
                self.broken = Some(why);
                false
            }
            None => false,
        }
    }

    async fn more(&mut self) -> Result<(), Broken> {
        if self.broken.is_some() {
            return Err(self.why());
        }
        let said = self.outcomes.recv().await;
        if self.hear(said) {
            Ok(())
        } else {
            Err(self.why())
        }
    }
}

impl Host for SpawnHost {
    fn window(&self) -> usize {
        self.window
    }

    fn deliver(&mut self, batch: Vec<Delivery>) -> BoxFuture<'_, Result<(), Broken>> {
        Box::pin(async move {
            for delivery in batch {
                while self.in_flight >= self.window {
                    self.more().await?;
                }
                let lane = match &delivery.message.key {
                    Some(key) => {
                        let hasher = BuildHasherDefault::<DefaultHasher>::default();
                        (hasher.hash_one(key) % self.lanes.len() as u64) as usize
                    }
                    None => (0..self.lanes.len())
                        .min_by_key(|&lane| self.lanes[lane].1)
                        .unwrap_or(0),
                };
                if self.lanes[lane].0.send(delivery).await.is_err() {
                    return Err(self.why());
                }
                self.lanes[lane].1 += 1;
                self.in_flight += 1;
            }
            Ok(())
        })
    }

    fn outcomes(&mut self) -> BoxFuture<'_, Result<Vec<Outcome>, Broken>> {
        Box::pin(async move {
            if self.held.is_empty() {
                self.more().await?;
            }
            while let Ok(said) = self.outcomes.try_recv() {
                self.hear(Some(said));
            }
            Ok(std::mem::take(&mut self.held))
        })
    }

    fn stop(&mut self, grace: Duration) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let until = Instant::now() + grace;
            while self.in_flight > 0 {
                if !matches!(
                    tokio::time::timeout_at(until, self.more()).await,
                    Ok(Ok(()))
                ) {
                    break;
                }
            }
            let _ = self.stop.send(true);
            // The lanes end; their processes are dropped, and so killed with their groups.
            while let Some(said) = self.outcomes.recv().await {
                self.hear(Some(said));
            }
            self.scope.sweep();
        })
    }
}

struct Lane {
    program: Program,
    scope: Arc<Scope>,
    spec: Arc<HostSpec>,
    services: Arc<dyn Services>,
    rate: Arc<Mutex<Rate>>,
    extra: Extra,
    ever_done: bool,
}

impl Lane {
    async fn serve(
        mut self,
        mut deliveries: mpsc::Receiver<Delivery>,
        outcomes: mpsc::Sender<Said>,
        mut stopped: watch::Receiver<bool>,
    ) {
        let lane = self.number();
        loop {
            let work = async {
                let delivery = deliveries.recv().await?;
                Some(self.one(&delivery).await)
            };
            let outcome = tokio::select! {
                // An error means that the host was dropped.
                _ = stopped.wait_for(|stop| *stop) => return,
                outcome = work => outcome,
            };
            match outcome {
                None => return,
                Some(said) => {
                    let broken = said.is_err();
                    let said = said.map(|outcome| (lane, outcome));
                    if outcomes.send(said).await.is_err() || broken {
                        return;
                    }
                }
            }
        }
    }

    fn number(&self) -> usize {
        // The file's name ends in the lane's number.
        self.extra
            .outputs
            .to_string_lossy()
            .rsplit('-')
            .next()
            .and_then(|n| n.parse().ok())
            .unwrap_or(0)
    }

    async fn one(&mut self, delivery: &Delivery) -> Result<Outcome, Broken> {
        let (spec, message) = (&self.spec, &delivery.message);
        let started = Instant::now();
        let mut command = self.program.command(&self.scope, spec, Some(&self.extra));
        message::environment(&mut command, message);
        let mut input = Vec::new();
        match spec.options.input {
            Input::Stdin => input = on_stdin(message, spec),
            Input::Arg1 => {
                use std::os::unix::ffi::OsStrExt;
                command.arg(std::ffi::OsStr::from_bytes(&message.payload));
            }
        }
        let ran = run::run(
            &self.scope,
            spec,
            &self.services,
            &self.rate,
            command,
            input,
            Some(message.id.clone()),
        )
        .await?;
        let extra = self.extra.take(spec.options.max_output_bytes);
        if let Ok(code @ (126 | 127)) = ran.status
            && !self.ever_done
        {
            let (_, reason, _) = super::describe_death(Some(code), None);
            return Err(Broken::Deployment {
                reason,
                stderr_tail: ran.stderr_tail,
            });
        }
        let stderr_tail = ran.stderr_tail.clone();
        let (mut verdict, mut outputs, mut state) = match self.judge(ran, extra, message) {
            Ok(judged) => judged,
            Err(failure) => (Verdict::Failed(failure), Vec::new(), Vec::new()),
        };
        if let Verdict::Failed(failure) = &mut verdict {
            failure.stderr_tail = stderr_tail;
            self.spec.options.sandbox.explain(failure);
            outputs.clear();
            state.clear();
        } else {
            self.ever_done = true;
            self.services.state_apply(&state);
        }
        Ok(Outcome {
            ticket: delivery.ticket,
            verdict,
            outputs,
            state,
            took: started.elapsed(),
        })
    }

    fn judge(
        &self,
        ran: run::Ran,
        extra: Result<(Vec<u8>, Vec<u8>), String>,
        message: &Message,
    ) -> Result<(Verdict, Vec<Output>, Vec<crate::runtime::StateChange>), Failure> {
        let status = ran.status?;
        let options = &self.spec.options;
        let mut verdict = verdict_of_status(status, options.drop_exit_code, "");
        let (more, control) =
            extra.map_err(|why| Failure::new(crate::runtime::FailureKind::Limit, why))?;
        let (said, state) = message::control(&control, message, &*self.services)?;
        if let (Verdict::Done, Some(said)) = (&verdict, said) {
            verdict = said;
        }
        if self.spec.manual_ack && verdict == Verdict::Done {
            verdict = Verdict::Hold;
        }
        let mut outputs = Vec::new();
        if let Some(size) = trim_output(&ran.printed, options) {
            let mut printed = ran.printed;
            printed.truncate(size);
            outputs.push(Output {
                payload: printed.into(),
                ..Output::default()
            });
        }
        outputs.extend(message::outputs(&more)?);
        if matches!(verdict, Verdict::Drop) {
            outputs.clear();
        }
        Ok((verdict, outputs, state))
    }
}

/// The payload as standard input: text gets its final newline.
pub(super) fn on_stdin(message: &Message, spec: &HostSpec) -> Vec<u8> {
    let mut input = Vec::with_capacity(message.payload.len() + 1);
    input.extend_from_slice(&message.payload);
    if spec.options.content == Content::Text && std::str::from_utf8(&input).is_ok() {
        input.push(b'\n');
    }
    input
}
