//! What an instance's loop keeps between its turns: the messages in flight, and those that wait for another try.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use geminga_stdx::{Clock, Random};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::commit::Commit;
use super::once::Job;
use super::order::Line;
use super::source::Origin;
use crate::runtime::{Delivery, Message, Outcome};

/// Bytes of messages in line, from their receipt to their release: then no more are read until some have left. A
/// message that comes to an empty line always fits.
pub(super) const IN_LINE_MAX_BYTES: usize = 64 * 1024 * 1024;
/// The same where messages are gathered in windows, each of which is a copy of its messages; and the bytes of those
/// that wait outside the line for another try.
pub(super) const ASIDE_MAX_BYTES: usize = 256 * 1024 * 1024;

pub(super) struct Held {
    pub(super) message: Arc<Message>,
    pub(super) origin: Origin,
    /// Deliveries that failed, those before a restart included.
    pub(super) attempts: u32,
    /// Of a window: its messages.
    pub(super) parts: Vec<Arc<Message>>,
}

impl Held {
    /// What it takes in memory, about.
    fn bytes(&self) -> usize {
        let parts = self.parts.iter().map(|part| part.bytes());
        self.message.bytes() + parts.sum::<usize>()
    }

    /// The message for another try: it tells how many there were.
    pub(super) fn again(&self) -> Arc<Message> {
        if self.message.redelivery == self.attempts {
            return self.message.clone();
        }
        let mut message = (*self.message).clone();
        message.redelivery = self.attempts;
        Arc::new(message)
    }
}

/// What the loop keeps between its turns.
///
/// The budget of counting bytes: of each message its lengths are added up as it comes and as it leaves, in memory
/// that is the loop's own.
pub(super) struct Work {
    /// Messages come and leave by `push`, `take_out` and `pop_finished`, which count their bytes.
    pub(super) line: Line<Held, Outcome>,
    bytes_in_line: usize,
    bytes_aside: usize,
    /// By when, and a number that keeps equal times apart.
    pub(super) retries: BTreeMap<(Instant, u64), Again>,
    retry_number: u64,
    pub(super) window: usize,
    pub(super) in_host: usize,
    random: Random,
    pub(super) commits: Option<mpsc::Sender<Commit>>,
    /// The same for whole transactions.
    pub(super) epochs: Option<mpsc::Sender<Job>>,
    /// Of an effectively-once instance: a message failed, and all from it on are processed again.
    pub(super) rewind: Option<Rewind>,
    /// Windows that the host has no room for.
    pub(super) fired: VecDeque<Delivery>,
    pub(super) clock: Clock,
}

/// From which message on, and when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rewind {
    pub(super) ticket: u64,
    pub(super) at: Instant,
}

pub(super) enum Again {
    InLine(u64),
    Outside(Held),
}

impl Work {
    pub(super) fn new(
        window: usize,
        commits: mpsc::Sender<Commit>,
        epochs: mpsc::Sender<Job>,
    ) -> Self {
        Self {
            line: Line::new(),
            bytes_in_line: 0,
            bytes_aside: 0,
            retries: BTreeMap::new(),
            retry_number: 0,
            window,
            in_host: 0,
            random: Random::from_entropy(),
            commits: Some(commits),
            epochs: Some(epochs),
            rewind: None,
            fired: VecDeque::new(),
            clock: Clock::system(),
        }
    }

    /// Whether there is room for the bytes of more messages.
    pub(super) fn has_room(&self, is_gathered: bool) -> bool {
        let in_line_max = match is_gathered {
            true => ASIDE_MAX_BYTES,
            false => IN_LINE_MAX_BYTES,
        };
        self.bytes_in_line < in_line_max && self.bytes_aside < ASIDE_MAX_BYTES
    }

    /// Puts a message at the end of the line.
    pub(super) fn push(&mut self, held: Held) -> u64 {
        self.bytes_in_line += held.bytes();
        self.line.push(held)
    }

    /// Takes a message out of the line for another try: those behind it wait for it no longer.
    pub(super) fn take_out(&mut self, ticket: u64) -> Option<Held> {
        let held = self.line.take_out(ticket)?;
        self.leaves(&held);
        Some(held)
    }

    /// The head of the line, if what became of it is known.
    pub(super) fn pop_finished(&mut self) -> Option<(Held, Outcome)> {
        let (held, outcome) = self.line.pop_finished()?;
        self.leaves(&held);
        Some((held, outcome))
    }

    fn leaves(&mut self, held: &Held) {
        self.bytes_in_line = self.bytes_in_line.saturating_sub(held.bytes());
    }

    /// A pause before another try: some are shorter, so that not all come at once.
    pub(super) fn jittered(&mut self, delay: Duration) -> Duration {
        let nanos = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(nanos - self.random.below(nanos / 4))
    }

    /// The next that is to be tried again by `now`, in line.
    pub(super) fn next_due(&mut self, now: Instant) -> Option<u64> {
        let entry = self.retries.first_entry()?;
        if entry.key().0 > now {
            return None;
        }
        match entry.remove() {
            Again::InLine(ticket) => Some(ticket),
            Again::Outside(held) => {
                self.bytes_aside = self.bytes_aside.saturating_sub(held.bytes());
                Some(self.push(held))
            }
        }
    }

    /// What is to be tried again, and when.
    pub(super) fn try_again(&mut self, at: Instant, again: Again) {
        self.retry_number += 1;
        if let Again::Outside(held) = &again {
            self.bytes_aside += held.bytes();
        }
        self.retries.insert((at, self.retry_number), again);
    }

    pub(super) async fn commit(&mut self, commit: Commit) {
        if let Some(commits) = &self.commits {
            // When the committer is gone its fault is about to be seen.
            let _ = commits.send(commit).await;
        }
    }
}
