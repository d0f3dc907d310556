//! A process a batch: many messages on its standard input, replies on its standard output.
//!
//! With `json`, replies name their message, and one that was not named is done without output.
//! With the other framings, as many records as messages belong to them in order; any other number
//! is the output of the whole batch, published with its last message. When a process fails, the messages
//! it did not reply to are run again in halves, until each that fails has failed alone; unless it says
//! that it may work later (75), or so many runs fail that it is not by some of the messages.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use geminga_stdx::Tasks;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::lanes::{Lane, Lanes};
use super::{Program, run};
use crate::runtime::body::describe_death;
use crate::runtime::options::{Framing, Options};
use crate::runtime::process::Scope;
use crate::runtime::stderr::Rate;
use crate::runtime::wire::plain::{Plain, from_json};
use crate::runtime::wire::{FromHost, WireError, verdict_of_status};
use crate::runtime::{
    Broken, Delivery, Failure, FailureKind, Host, HostSpec, Outcome, Output, Services, Verdict,
};

const BATCH: usize = 500;
/// Runs for one batch: to find a message among 500 takes 18.
const RUNS_MAX: usize = 32;

pub(super) fn start(
    program: Program,
    scope: Scope,
    spec: Arc<HostSpec>,
    services: Arc<dyn Services>,
    tasks: &Tasks,
) -> Result<Box<dyn Host>, Broken> {
    let size = spec.options.batch.unwrap_or(BATCH).max(1);
    let window = spec.options.window.unwrap_or(2 * size).max(1);
    let scope = Arc::new(scope);
    let batches = Batches {
        program,
        scope: scope.clone(),
        rate: Arc::new(Mutex::new(Rate::new(spec.options.max_stderr_bytes))),
        spec,
        services,
        size,
        ever_done: false,
        parts: Vec::new(),
        runs_left: 0,
        any_done: false,
    };
    Ok(Lanes::start(
        "function batches",
        [batches],
        window,
        scope,
        tasks,
    ))
}

/// What a run of the program came to.
struct Tried {
    outcomes: Vec<Outcome>,
    /// The run failed by some of these, and does not say by which.
    undecided: Part,
}

/// Messages to be run together, and what becomes of each if it is not found out by which of them a run failed.
type Part = Vec<(Delivery, Verdict)>;

struct Batches {
    program: Program,
    scope: Arc<Scope>,
    spec: Arc<HostSpec>,
    services: Arc<dyn Services>,
    rate: Arc<Mutex<Rate>>,
    size: usize,
    ever_done: bool,
    /// What is left of the batch, the next last.
    parts: Vec<Part>,
    /// Runs until the rest of the batch fails as it is.
    runs_left: usize,
    /// A message of it was done.
    any_done: bool,
}

impl Lane for Batches {
    async fn turn(
        &mut self,
        deliveries: &mut mpsc::Receiver<Delivery>,
    ) -> Option<Result<Vec<Outcome>, Broken>> {
        loop {
            if self.parts.is_empty() {
                let mut batch = Vec::new();
                if deliveries.recv_many(&mut batch, self.size).await == 0 {
                    return None;
                }
                self.begin(batch);
            }
            // What is decided is not held back until the rest is.
            match self.next().await {
                Ok(outcomes) if outcomes.is_empty() => {}
                said => return Some(said),
            }
        }
    }
}

impl Batches {
    fn begin(&mut self, batch: Vec<Delivery>) {
        // So many until a message has failed alone, and one more. When none of them did any message it is not by
        // one of these: something that the program needs is away.
        self.any_done = false;
        self.runs_left = batch.len().next_power_of_two().ilog2() as usize + 2;
        let part = batch.into_iter().map(|delivery| (delivery, Verdict::Done));
        self.parts.push(part.collect());
    }

    /// The next run. A batch that fails is run in halves, until the message is found that it fails by.
    async fn next(&mut self) -> Result<Vec<Outcome>, Broken> {
        let Some(part) = self.parts.pop() else {
            return Ok(Vec::new());
        };
        let batch: Vec<Delivery> = part.into_iter().map(|(delivery, _)| delivery).collect();
        let Tried {
            mut outcomes,
            mut undecided,
        } = self.one(&batch).await?;
        let is_success = |outcome: &Outcome| !matches!(outcome.verdict, Verdict::Failed(_));
        if !self.any_done && outcomes.iter().any(is_success) {
            self.any_done = true;
            self.runs_left = RUNS_MAX;
        }
        self.runs_left = self.runs_left.saturating_sub(1);
        if undecided.is_empty() {
            return Ok(outcomes);
        }
        if self.runs_left == 0 {
            let rest = std::mem::take(&mut self.parts).into_iter().rev().flatten();
            let failed = undecided.into_iter().chain(rest);
            outcomes.extend(failed.map(|(delivery, verdict)| Outcome {
                ticket: delivery.ticket,
                verdict,
                outputs: Vec::new(),
                state: Vec::new(),
                took: Duration::ZERO,
            }));
            return Ok(outcomes);
        }
        let second = undecided.split_off(undecided.len().div_ceil(2));
        self.parts
            .extend([second, undecided].into_iter().filter(|p| !p.is_empty()));
        Ok(outcomes)
    }

    async fn one(&mut self, batch: &[Delivery]) -> Result<Tried, Broken> {
        let started = Instant::now();
        let options = &self.spec.options;
        let plain = Plain::new(options);
        let mut input = Vec::new();
        let mut refused = HashMap::new();
        let mut sent = Vec::with_capacity(batch.len());
        for (index, delivery) in batch.iter().enumerate() {
            match plain.cannot_carry(&delivery.message) {
                Some(failure) => {
                    refused.insert(index, failure);
                }
                None => {
                    plain.write(index as u64, &delivery.message, &mut input);
                    sent.push(index);
                }
            }
        }
        let planned = self.program.plan(&self.scope, &self.spec, None);
        let (mut undecided, mut verdicts) = (Vec::new(), Vec::new());
        let mut results: HashMap<usize, (Verdict, Vec<Output>)> = refused
            .into_iter()
            .map(|(index, failure)| (index, (Verdict::Failed(failure), Vec::new())))
            .collect();
        if !sent.is_empty() {
            let room = self.scope.make_room(&self.spec).await;
            let _room = room.map_err(crate::runtime::private_directory)?;
            let ran = run::run(
                &self.scope,
                &self.spec,
                &self.services,
                &self.rate,
                planned,
                input,
                None,
            )
            .await?;
            if let Ok(code @ (126 | 127)) = ran.status
                && !self.ever_done
            {
                let (_, reason, _) = describe_death(Some(code), None);
                return Err(Broken::Deployment {
                    reason,
                    stderr_tail: ran.stderr_tail,
                });
            }
            let unsaid = judge(ran, options, &sent, &mut results);
            // One alone has failed.
            if sent.len() > 1 {
                for index in unsaid {
                    if let Some((verdict, _)) = results.remove(&index) {
                        verdicts.push(verdict);
                        undecided.push(index);
                    }
                }
            }
        }
        let took = started.elapsed() / u32::try_from(batch.len()).unwrap_or(1).max(1);
        // They are in order.
        let decided = |index: &usize| undecided.binary_search(index).is_err();
        let indexes = (0..batch.len()).filter(decided);
        let outcomes = indexes.map(|index| {
            let (verdict, outputs) = results
                .remove(&index)
                .unwrap_or((Verdict::Done, Vec::new()));
            self.ever_done |= !matches!(verdict, Verdict::Failed(_));
            let verdict = match verdict {
                Verdict::Done if self.spec.manual_ack => Verdict::Hold,
                other => other,
            };
            Outcome {
                ticket: batch[index].ticket,
                verdict,
                outputs,
                state: Vec::new(),
                took,
            }
        });
        Ok(Tried {
            outcomes: outcomes.collect(),
            undecided: undecided
                .iter()
                .map(|&at| batch[at].clone())
                .zip(verdicts)
                .collect(),
        })
    }
}

/// Gives each message that was sent its verdict and outputs; which of them failed only because the run did.
fn judge(
    ran: run::Ran,
    options: &Options,
    sent: &[usize],
    results: &mut HashMap<usize, (Verdict, Vec<Output>)>,
) -> Vec<usize> {
    let last_words = ran.last_words();
    let mut whole = match ran.status {
        Ok(status) => verdict_of_status(status, options.drop_exit_code, ""),
        Err(failure) => Verdict::Failed(failure),
    };
    let records = if whole == Verdict::Done || options.framing == Framing::Json {
        records(ran.printed, options)
    } else {
        Ok(Vec::new())
    };
    let mut said: HashMap<usize, (Verdict, Vec<Output>)> = HashMap::new();
    match records {
        Err(error) => whole = Verdict::Failed(Failure::new(FailureKind::User, error.to_string())),
        Ok(records) if options.framing == Framing::Json => {
            for record in records {
                match from_json(&record) {
                    Ok(FromHost::Outcome {
                        id,
                        verdict,
                        outputs,
                    }) => {
                        said.insert(
                            usize::try_from(id).unwrap_or(usize::MAX),
                            (verdict, outputs),
                        );
                    }
                    Ok(_) => {}
                    Err(error) => {
                        whole = Verdict::Failed(Failure::new(FailureKind::User, error.to_string()));
                    }
                }
            }
        }
        Ok(records) => {
            let output = |payload| Output {
                payload,
                ..Output::default()
            };
            if records.len() == sent.len() {
                for (&index, record) in sent.iter().zip(records) {
                    said.insert(index, (Verdict::Done, vec![output(record)]));
                }
            } else if let Some(&last) = sent.last()
                && !records.is_empty()
            {
                let all = records.into_iter().map(output).collect();
                said.insert(last, (Verdict::Done, all));
            }
        }
    }
    let mut unsaid = Vec::new();
    let is_of_one = matches!(&whole, Verdict::Failed(f) if f.kind != FailureKind::Temporary);
    for &index in sent {
        if is_of_one && !said.contains_key(&index) {
            unsaid.push(index);
        }
        let (mut verdict, outputs) = said
            .remove(&index)
            .unwrap_or_else(|| (whole.clone(), Vec::new()));
        if let Verdict::Failed(failure) = &mut verdict {
            last_words.add_to(failure);
            options.sandbox.explain(failure);
        }
        results.insert(index, (verdict, outputs));
    }
    unsaid
}

fn records(printed: Vec<u8>, options: &Options) -> Result<Vec<bytes::Bytes>, WireError> {
    let mut printed = printed;
    // A last line without its newline is a line.
    if options.framing != Framing::Len
        && !printed.is_empty()
        && options.framing != Framing::Nul
        && printed.last() != Some(&b'\n')
    {
        printed.push(b'\n');
    }
    let mut input = BytesMut::from(&printed[..]);
    let mut plain = Plain::new(options);
    let mut all = Vec::new();
    while let Some(record) = plain.cut(&mut input)? {
        all.push(record);
    }
    Ok(all)
}
