//! The release of processed messages, in order: outputs and state are written, letters sent, and the message handed
//! to the committer.

use std::sync::atomic::Ordering;
use std::time::Duration;

use geminga_client::Transaction;
use geminga_model::ProcessingGuarantees;
use tokio::time::Instant;

use super::commit::{Commit, MadeOf};
use super::guarantee::{Decision, Letter, decide};
use super::once::Once;
use super::sink::WriteError;
use super::source::Origin;
use super::work::{Held, Rewind, Work};
use super::{Fault, Instance, place_of};
use crate::runtime::{Failure, FailureKind, Level, LogLine, Message, Outcome, Verdict};

/// Messages that are remembered as refused.
const REFUSED_MAX: usize = 1000;

impl Instance {
    /// Sends what is done at the head of the line on its way.
    pub(super) async fn release(&mut self, work: &mut Work) -> Result<(), Fault> {
        // Those behind a message that was given up are processed again first.
        let is_open = |work: &Work| work.rewind.is_none_or(|r| !work.line.is_past(r.ticket));
        while is_open(work)
            && let Some((held, outcome)) = work.pop_finished()
        {
            let attempts = held.attempts + 1;
            match decide(&self.policy, &outcome.verdict, attempts) {
                Decision::Publish => self.publish(held, outcome, work).await?,
                Decision::Acknowledge => {
                    self.transaction().await?;
                    let commit = Commit::of(self.acknowledging(&held, false));
                    self.commit(commit, false, work).await;
                }
                Decision::DeadLetter => {
                    let Verdict::Failed(failure) = &outcome.verdict else {
                        continue;
                    };
                    self.dead_letter(held, failure, attempts, work).await?;
                }
                // At-most-once: it is acknowledged already. A retry was decided before.
                Decision::Forget | Decision::Retry(_) => {
                    self.commit(Commit::of(None), false, work).await;
                }
            }
        }
        Ok(())
    }

    async fn publish(
        &mut self,
        held: Held,
        outcome: Outcome,
        work: &mut Work,
    ) -> Result<(), Fault> {
        let count = outcome.outputs.len();
        let txn = self.transaction().await?;
        let mut commit = Commit::of(self.acknowledging(&held, outcome.verdict == Verdict::Hold));
        let outputs = outcome.outputs;
        let refused = self.refused(&held.message);
        let written = match refused {
            Some(why) => Err(WriteError::Message(why)),
            None => self.sink.write(&held.message, outputs, txn.as_ref()).await,
        };
        match written {
            Ok(receipts) => {
                commit.receipts = receipts;
                commit.written = count;
                commit.made_of = Some(MadeOf::of(&held.message));
            }
            Err(WriteError::Sink(why)) => return Err(Fault::Sink(why)),
            Err(WriteError::Spoiled(why)) => {
                let place = place_of(&held.message.topic, &held.message.id);
                let mut refused = self.gauge.refused.lock();
                if refused.len() >= REFUSED_MAX {
                    // Others took them over long ago.
                    refused.clear();
                }
                refused.insert(place, why.clone());
                return Err(Fault::Sink(why));
            }
            Err(WriteError::Message(why)) => {
                if txn.is_some() && !outcome.state.is_empty() {
                    // Its changes do not happen, and those after it have seen them.
                    let at = work.rewind.map_or_else(Instant::now, |rewind| rewind.at);
                    let ticket = work.line.last_out();
                    work.rewind = Some(Rewind { ticket, at });
                }
                let failure = Failure::new(FailureKind::Data, why);
                self.gauge.stats.failed(&failure, Duration::ZERO);
                return match decide(
                    &self.policy,
                    &Verdict::Failed(failure.clone()),
                    held.attempts + 1,
                ) {
                    Decision::Forget => {
                        self.commit(Commit::of(None), false, work).await;
                        Ok(())
                    }
                    _ => {
                        let attempts = held.attempts + 1;
                        self.dead_letter(held, &failure, attempts, work).await
                    }
                };
            }
        }
        let changes = !outcome.state.is_empty();
        if let Some(state) = &self.state
            && changes
        {
            match &txn {
                Some(txn) => state
                    .record_in(txn, &outcome.state)
                    .await
                    .map_err(Fault::Commit)?,
                None => {
                    let recorded = state.record(&outcome.state).await;
                    let receipts = recorded.map_err(|error| Fault::Sink(state.note(&error)))?;
                    commit.receipts.extend(receipts);
                }
            }
        }
        self.commit(commit, changes, work).await;
        Ok(())
    }

    async fn dead_letter(
        &mut self,
        held: Held,
        failure: &Failure,
        attempts: u32,
        work: &mut Work,
    ) -> Result<(), Fault> {
        let topic = self.policy.dead_letter_topic.clone().or_else(|| {
            let message = held.parts.first().unwrap_or(&held.message);
            let topic = self.source.dead_letter_topic(message)?;
            Some(match &self.limits {
                Some(limits) => limits.letters(topic),
                None => topic,
            })
        });
        let Some(topic) = topic else {
            return Err(Fault::Sink(format!("no dead-letter topic for `{failure}`")));
        };
        let txn = self.transaction().await?;
        let mut commit = Commit::of(self.acknowledging(&held, false));
        // Of a window each message is a letter.
        let whole = [held.message.clone()];
        let given_up = match held.parts.is_empty() {
            true => &whole[..],
            false => &held.parts[..],
        };
        for message in given_up {
            let reason = &failure.reason;
            let text =
                format!("given up after {attempts} attempts, and sent to `{topic}`: {reason}");
            self.tell(Level::Error, message, text);
            let letter = Letter::dead(message, failure, attempts);
            let sent = self.sink.dead_letter(&topic, letter, message, txn.as_ref());
            commit.receipts.extend(sent.await.map_err(Fault::Sink)?);
            commit.made_of = Some(MadeOf::of(message));
            self.gauge.stats.dead_lettered();
        }
        self.commit(commit, false, work).await;
        Ok(())
    }

    /// Records changes of the state that are no message's.
    pub(super) async fn record_outside(&mut self, work: &mut Work) -> Result<(), Fault> {
        let changes = std::mem::take(&mut *self.gauge.outside.lock());
        let Some(state) = self.state.clone().filter(|_| !changes.is_empty()) else {
            return Ok(());
        };
        let txn = self.transaction().await?;
        let mut commit = Commit::of(None);
        match &txn {
            Some(txn) => {
                let recorded = state.record_in(txn, &changes).await;
                recorded.map_err(Fault::Commit)?;
            }
            None => {
                let recorded = state.record(&changes).await;
                commit.receipts = recorded.map_err(|error| Fault::Sink(state.note(&error)))?;
            }
        }
        // It is waited for like a message, and counted out like one.
        self.gauge.in_flight.fetch_add(1, Ordering::AcqRel);
        self.commit(commit, true, work).await;
        Ok(())
    }

    /// The same for what the code said as it ended.
    pub(super) async fn record_last(&mut self, work: &mut Work) -> Result<(), Fault> {
        if self.gauge.outside.lock().is_empty() {
            return Ok(());
        }
        while self.once.as_ref().is_some_and(Once::is_committing) {
            self.gauge.woken.notified().await;
        }
        self.record_outside(work).await?;
        if let (Some(once), Some(epochs)) = (&mut self.once, &work.epochs) {
            once.hand_over(true, epochs).await;
        }
        Ok(())
    }

    pub(super) async fn hand_over_manual_acks(&mut self, work: &mut Work) {
        let acks = std::mem::take(&mut *self.gauge.manual_acks.lock());
        for origin in acks {
            // It was counted out of flight when it was released.
            self.gauge.in_flight.fetch_add(1, Ordering::AcqRel);
            work.commit(Commit::of(Some(origin))).await;
        }
    }

    /// A message is released: it is acknowledged with or after its effects.
    pub(super) async fn commit(&mut self, commit: Commit, changes_state: bool, work: &mut Work) {
        match &mut self.once {
            Some(once) => once.add(commit.origin, commit.written, changes_state),
            None => work.commit(commit).await,
        }
    }

    /// The transaction that effects go into; none where the guarantee needs none.
    async fn transaction(&mut self) -> Result<Option<Transaction>, Fault> {
        match &mut self.once {
            Some(once) => once.transaction().await.map(Some),
            None => Ok(None),
        }
    }

    /// What is to be acknowledged when `held` is done.
    fn acknowledging(&self, held: &Held, function_does: bool) -> Option<Origin> {
        match self.policy.guarantee {
            ProcessingGuarantees::AtmostOnce => None,
            ProcessingGuarantees::Manual if function_does => None,
            ProcessingGuarantees::Manual => {
                self.gauge.held.lock().remove(&held.message.id);
                Some(held.origin.clone())
            }
            _ => Some(held.origin.clone()),
        }
    }

    /// What is to be acknowledged of a message that was put aside.
    pub(super) fn acknowledging_origin(&self, origin: Origin) -> Option<Origin> {
        (self.policy.guarantee != ProcessingGuarantees::AtmostOnce).then_some(origin)
    }

    /// Why outputs of this message were refused before the instance began again, if they were.
    fn refused(&self, message: &Message) -> Option<String> {
        self.once.as_ref()?;
        let refused = self.gauge.refused.lock();
        if refused.is_empty() {
            return None;
        }
        refused.get(&place_of(&message.topic, &message.id)).cloned()
    }

    /// Says of a message, on the log topic, what became of it.
    pub(super) fn tell(&self, level: Level, message: &Message, text: String) {
        if let Some(log) = &self.log {
            log.log(LogLine {
                level,
                text: format!("{} of {}: {text}", message.id, message.topic),
                message_id: Some(message.id.clone()),
            });
        }
    }
}
