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

pub(super) struct Held {
    pub(super) message: Arc<Message>,
    pub(super) origin: Origin,
    /// Deliveries that failed, those before a restart included.
    pub(super) attempts: u32,
    /// Of a window: its messages.
    pub(super) parts: Vec<Arc<Message>>,
}

impl Held {
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
pub(super) struct Work {
    pub(super) line: Line<Held, Outcome>,
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

    /// A pause before another try: some are shorter, so that not all come at once.
    pub(super) fn jittered(&mut self, delay: Duration) -> Duration {
        let nanos = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(nanos - self.random.below(nanos / 4))
    }

    /// What is to be tried again, and when.
    pub(super) fn try_again(&mut self, at: Instant, again: Again) {
        self.retry_number += 1;
        self.retries.insert((at, self.retry_number), again);
    }

    pub(super) async fn commit(&mut self, commit: Commit) {
        if let Some(commits) = &self.commits {
            // When the committer is gone its fault is about to be seen.
            let _ = commits.send(commit).await;
        }
    }
}
