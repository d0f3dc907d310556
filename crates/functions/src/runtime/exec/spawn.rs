//! A process a message. Lanes run side by side.

use std::sync::Arc;

use geminga_stdx::Tasks;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::lanes::{Lane, Lanes};
use super::{Extra, Program, message, run};
use crate::runtime::body::describe_death;
use crate::runtime::options::{Content, Input};
use crate::runtime::process::{Scope, trim_output};
use crate::runtime::stderr::Rate;
use crate::runtime::wire::verdict_of_status;
use crate::runtime::{
    Broken, Delivery, Failure, Host, HostSpec, Message, Outcome, Output, Services, Verdict,
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
    let scope = Arc::new(scope);
    if count > 1 {
        scope.apart();
    }
    let rate = Arc::new(Mutex::new(Rate::new(spec.options.max_stderr_bytes)));
    let lane = |number| {
        Ok(Process {
            program: program.clone(),
            scope: scope.clone(),
            spec: spec.clone(),
            services: services.clone(),
            rate: rate.clone(),
            extra: Extra::new(&scope, number).map_err(crate::runtime::private_directory)?,
            ever_done: false,
        })
    };
    let lanes: Vec<Process> = (0..count).map(lane).collect::<Result<_, Broken>>()?;
    Ok(Lanes::start("function lane", lanes, window, scope, tasks))
}

struct Process {
    program: Program,
    scope: Arc<Scope>,
    spec: Arc<HostSpec>,
    services: Arc<dyn Services>,
    rate: Arc<Mutex<Rate>>,
    extra: Extra,
    ever_done: bool,
}

impl Lane for Process {
    async fn turn(
        &mut self,
        deliveries: &mut mpsc::Receiver<Delivery>,
    ) -> Option<Result<Vec<Outcome>, Broken>> {
        let delivery = deliveries.recv().await?;
        Some(self.one(&delivery).await.map(|outcome| vec![outcome]))
    }
}

impl Process {
    async fn one(&mut self, delivery: &Delivery) -> Result<Outcome, Broken> {
        let (spec, message) = (&self.spec, &delivery.message);
        let started = Instant::now();
        let room = self.scope.make_room(spec).await;
        let room = room.map_err(crate::runtime::private_directory)?;
        let restored = self.extra.restore(&self.scope);
        restored.map_err(crate::runtime::private_directory)?;
        let mut planned = self.program.plan(&self.scope, spec, Some(&self.extra));
        message::environment(&mut planned, message);
        let mut input = Vec::new();
        match spec.options.input {
            Input::Stdin => input = on_stdin(message, spec),
            Input::Arg1 => {
                use std::os::unix::ffi::OsStrExt;
                planned.arg(std::ffi::OsStr::from_bytes(&message.payload));
            }
        }
        let ran = run::run(
            &self.scope,
            spec,
            &self.services,
            &self.rate,
            planned,
            input,
            Some(message.id.clone()),
        )
        .await?;
        let extra = self.extra.take(spec.options.max_output_bytes);
        drop(room);
        if let Ok(code @ (126 | 127)) = ran.status
            && !self.ever_done
        {
            let (_, reason, _) = describe_death(Some(code), None);
            return Err(Broken::Deployment {
                reason,
                stderr_tail: ran.stderr_tail,
            });
        }
        let last_words = ran.last_words();
        let (mut verdict, mut outputs, mut state) = match self.judge(ran, extra, message) {
            Ok(judged) => judged,
            Err(failure) => (Verdict::Failed(failure), Vec::new(), Vec::new()),
        };
        if let Some(failure) = crate::runtime::unkept(&state) {
            verdict = Verdict::Failed(failure);
        }
        if let Verdict::Failed(failure) = &mut verdict {
            last_words.add_to(failure);
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
            extra.map_err(|why| Failure::new(crate::runtime::FailureKind::Output, why))?;
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
