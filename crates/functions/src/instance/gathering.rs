//! The way of a window function's messages: into their windows, and windows that are complete into the line.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::commit::Commit;
use super::gather::Gather;
use super::guarantee::Letter;
use super::source::{Incoming, Origin};
use super::window::{Added, Fired};
use super::work::{Held, Work};
use super::{Fault, Instance};
use crate::runtime::{Delivery, Failure, FailureKind, Outcome, Verdict};

impl Instance {
    /// Puts messages into their windows.
    pub(super) async fn gather(&mut self, got: &[Incoming], work: &mut Work) -> Result<(), Fault> {
        let now_ms = work.clock.now_ms();
        let mut fired = Vec::new();
        let mut aside = Vec::new();
        if let Some(gather) = &mut self.gather {
            for incoming in got {
                match gather.add(now_ms, incoming, &mut fired) {
                    Added::Held => {}
                    added => aside.push((incoming, added)),
                }
            }
        }
        self.fire(fired, work);
        for (incoming, added) in aside {
            self.gauge.in_flight.fetch_add(1, Ordering::AcqRel);
            let mut commit = Commit::of(self.acknowledging_origin(incoming.origin.clone()));
            if added == Added::Late {
                self.gauge.stats.late();
                let topic = self.gather.as_ref().and_then(Gather::late_topic);
                if let Some(topic) = topic.map(str::to_owned) {
                    let letter = Letter::copy(&incoming.message);
                    let sent = self
                        .sink
                        .dead_letter(&topic, letter, &incoming.message, None);
                    commit.receipts = sent.await.map_err(Fault::Sink)?;
                }
            }
            self.commit(commit, false, work).await;
        }
        Ok(())
    }

    /// Puts complete windows in line for the function.
    fn fire(&mut self, fired: Vec<Fired<Incoming>>, work: &mut Work) {
        for window in fired {
            let Some(gather) = &self.gather else { return };
            let (message, wrong) = gather.message(&window);
            let message = Arc::new(message);
            let done = window.done.iter().map(|incoming| incoming.origin.clone());
            let parts = window.items.into_iter().map(|incoming| incoming.message);
            self.gauge.in_flight.fetch_add(1, Ordering::AcqRel);
            let ticket = work.push(Held {
                message: message.clone(),
                origin: Origin::Window(done.collect()),
                attempts: 0,
                parts: parts.collect(),
            });
            match wrong {
                Some(why) => {
                    self.refuse(ticket, why, work);
                }
                None => work.fired.push_back(Delivery { ticket, message }),
            }
        }
    }

    /// A message that can not be given to the function.
    fn refuse(&self, ticket: u64, why: String, work: &mut Work) {
        let failure = Failure::new(FailureKind::Data, why);
        self.gauge.stats.failed(&failure, Duration::ZERO);
        let outcome = Outcome {
            ticket,
            verdict: Verdict::Failed(failure),
            outputs: Vec::new(),
            state: Vec::new(),
            took: Duration::ZERO,
        };
        work.line.finish(ticket, outcome);
    }

    /// When a window may be complete. Those that the host has no room for come first.
    pub(super) fn next_tick(&self, work: &Work) -> Option<Instant> {
        if !work.fired.is_empty() {
            return None;
        }
        let at_ms = self.gather.as_ref()?.next_tick()?;
        let wait = at_ms.saturating_sub(work.clock.now_ms());
        Some(Instant::now() + Duration::from_millis(wait))
    }

    /// Hands over the windows that are complete, as far as the host has room.
    pub(super) async fn deliver_windows(&mut self, work: &mut Work) -> Result<(), Fault> {
        let mut fired = Vec::new();
        if let Some(gather) = &mut self.gather
            && work.fired.is_empty()
        {
            gather.tick(work.clock.now_ms(), &mut fired);
        }
        self.fire(fired, work);
        let room = work.window.saturating_sub(work.in_host);
        let count = room.min(work.fired.len());
        if count == 0 {
            return Ok(());
        }
        let batch = work.fired.drain(..count).collect();
        self.deliver(batch, work).await
    }
}
