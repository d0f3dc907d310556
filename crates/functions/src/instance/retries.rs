//! What is decided about a processed message: it waits for its release, or is tried again, in line or outside it,
//! or all from it on are processed again.

use std::time::Duration;

use tokio::time::Instant;

use super::guarantee::{Decision, decide};
use super::work::{Again, Held, Rewind, Work};
use super::{Fault, Instance, context};
use crate::runtime::{Delivery, Failure, FailureKind, Level, Outcome, Verdict};

/// How long a message is remembered as failing when it comes back from the broker.
const RETRY_MAX: Duration = Duration::from_secs(60);

impl Instance {
    /// Decides about a processed message: it is tried again, or waits in line for its release.
    pub(super) fn settle(&mut self, mut outcome: Outcome, work: &mut Work) {
        let ticket = outcome.ticket;
        if work.rewind.is_some_and(|rewind| ticket > rewind.ticket) {
            // What it saw of the state lacks the failed message's changes.
            return;
        }
        if self.state.is_none() && !outcome.state.is_empty() {
            outcome.outputs.clear();
            outcome.verdict = Verdict::Failed(Failure::new(FailureKind::Data, context::NO_STATE));
        }
        if let Verdict::Failed(failure) = &outcome.verdict {
            self.gauge.stats.failed(failure, outcome.took);
            let held = work.line.get(ticket);
            let attempts = held.map_or(1, |held| held.attempts + 1);
            if let Decision::Retry(delay) = decide(&self.policy, &outcome.verdict, attempts) {
                if let Some(held) = held {
                    let reason = &failure.reason;
                    let text =
                        format!("not taken at attempt {attempts}, and tried again: {reason}");
                    self.tell(Level::Warn, &held.message, text);
                }
                let delay = work.jittered(delay);
                let at = Instant::now() + delay.min(RETRY_MAX);
                self.gauge.stats.retried();
                if self.once.is_some() {
                    if let Some(held) = work.line.get_mut(ticket) {
                        held.attempts = attempts;
                    }
                    work.rewind = Some(Rewind { ticket, at });
                    return;
                }
                let again = if self.policy.ordered {
                    if let Some(held) = work.line.get_mut(ticket) {
                        held.attempts = attempts;
                    }
                    Again::InLine(ticket)
                } else {
                    match work.take_out(ticket) {
                        Some(held) => Again::Outside(Held { attempts, ..held }),
                        None => return,
                    }
                };
                work.try_again(at, again);
                return;
            }
        } else {
            self.gauge.stats.processed(outcome.took);
        }
        work.line.finish(ticket, outcome);
    }

    /// Processes all from a failed message on again, on the state before it, once nothing of theirs is
    /// with the host. So the state changes in the order in which messages are released.
    pub(super) async fn rewind(&mut self, work: &mut Work) -> Result<(), Fault> {
        let Some(rewind) = work.rewind else {
            return Ok(());
        };
        if work.in_host > 0 || rewind.at > Instant::now() {
            return Ok(());
        }
        work.rewind = None;
        if let Some(state) = &self.state {
            state.rewind();
        }
        let again = work.line.restart().map(|(ticket, held)| Delivery {
            ticket,
            message: held.again(),
        });
        let batch: Vec<_> = again.collect();
        if batch.is_empty() {
            return Ok(());
        }
        self.deliver(batch, work).await
    }

    pub(super) async fn retry_due(&mut self, work: &mut Work) -> Result<(), Fault> {
        let now = Instant::now();
        let mut batch = Vec::new();
        while work.in_host + batch.len() < work.window
            && let Some(ticket) = work.next_due(now)
        {
            if let Some(held) = work.line.get(ticket) {
                batch.push(Delivery {
                    ticket,
                    message: held.again(),
                });
            }
        }
        if batch.is_empty() {
            // The host is full; its next outcome makes room.
            return Ok(());
        }
        self.deliver(batch, work).await
    }
}
