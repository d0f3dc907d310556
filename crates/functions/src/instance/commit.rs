//! Acknowledges messages once what came of them is durable, in the order in which they were
//! released, many at once.

use std::sync::Arc;

use geminga_client::{MessageId, Receipt};
use tokio::sync::mpsc;

use super::refusals::is_refusal;
use super::sink::Syncer;
use super::source::{Acker, Origin};
use super::state::FunctionState;
use super::{Fault, Gauge, place_of};
use crate::runtime::Message;

/// Commits taken up in one turn.
const AT_ONCE: usize = 512;

/// A message that was released.
#[derive(Debug)]
pub(crate) struct Commit {
    /// What to acknowledge; `None` when nothing is to be.
    pub(crate) origin: Option<Origin>,
    /// What must be durable before.
    pub(crate) receipts: Vec<Receipt>,
    /// How many outputs that is.
    pub(crate) written: usize,
    /// What they were made of.
    pub(crate) made_of: Option<MadeOf>,
}

/// A message that outputs were made of, without what it held: they may be on their way for long.
#[derive(Debug)]
pub(crate) enum MadeOf {
    Topic(Arc<str>, MessageId),
    /// A line of a file: what is made of it is as large, and bounded with the producer.
    Line(Arc<Message>),
    Window(String),
}

impl MadeOf {
    pub(crate) fn of(message: &Arc<Message>) -> Self {
        match message.place {
            Some(place) => Self::Topic(message.topic.clone(), place),
            None if message.window.is_some() => Self::Window(place_of(&message.topic, &message.id)),
            None => Self::Line(message.clone()),
        }
    }

    /// As [`place_of`] says it.
    pub(super) fn place(&self) -> String {
        match self {
            Self::Topic(topic, id) => place_of(topic, &id.to_string()),
            Self::Line(message) => place_of(&message.topic, &message.id),
            Self::Window(place) => place.clone(),
        }
    }
}

impl Commit {
    pub(crate) fn of(origin: Option<Origin>) -> Self {
        Self {
            origin,
            receipts: Vec::new(),
            written: 0,
            made_of: None,
        }
    }
}

/// The task's parts.
pub(crate) struct Committer {
    pub(crate) acker: Arc<dyn Acker>,
    pub(crate) syncer: Option<Arc<dyn Syncer>>,
    pub(crate) gauge: Arc<Gauge>,
    pub(crate) state: Option<Arc<FunctionState>>,
}

impl Committer {
    /// Runs until the instance lets go of its end, then acknowledges what is left.
    pub(crate) async fn run(self, mut commits: mpsc::Receiver<Commit>) -> Result<(), Fault> {
        let mut turn = Vec::new();
        while commits.recv_many(&mut turn, AT_ONCE).await > 0 {
            let mut origins = Vec::with_capacity(turn.len());
            let (count, mut written) = (turn.len(), 0);
            let mut receipts = Vec::with_capacity(turn.len());
            // How many there are up to each commit, its own with them.
            let ends: Vec<usize> = turn
                .iter_mut()
                .map(|commit| {
                    receipts.append(&mut commit.receipts);
                    receipts.len()
                })
                .collect();
            let (durable, failed) = match Receipt::all(receipts).await {
                Ok(()) => (turn.len(), None),
                Err((first, error)) => {
                    let durable = ends.partition_point(|&end| end <= first);
                    if let Some(state) = &self.state {
                        state.note(&error);
                    }
                    if is_refusal(&error) {
                        let rest = turn.iter().skip(durable);
                        let rest = rest.filter_map(|commit| commit.made_of.as_ref());
                        self.gauge.refusals.suspect(rest.map(MadeOf::place));
                    }
                    (durable, Some(Fault::Sink(error.to_string())))
                }
            };
            for commit in turn.drain(..).take(durable) {
                written += commit.written;
                if let Some(origin) = commit.origin {
                    origin.flatten(&mut origins);
                }
            }
            // Also when one failed: what was written before it is about to be acknowledged.
            if let Some(syncer) = &self.syncer
                && durable > 0
            {
                syncer.sync().await.map_err(Fault::Sink)?;
            }
            if !origins.is_empty() {
                self.acker
                    .ack(origins, false)
                    .await
                    .map_err(Fault::Acknowledge)?;
            }
            self.gauge.stats.written(written);
            if let Some(fault) = failed {
                return Err(fault);
            }
            self.gauge.out_of_flight(count);
            self.gauge.woken.notify_one();
        }
        Ok(())
    }
}
