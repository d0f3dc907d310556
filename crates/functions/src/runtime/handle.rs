//! The instance's side of a host that is a task: it keeps the window, and learns why the task ended.

use std::time::Duration;

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::{BoxFuture, Broken, Delivery, Host, Outcome, StateChange};

/// Bytes of outcomes that wait for the instance before a host makes no more: an instance waits for its topics and
/// its disk, and a window of the largest outputs would be ten gigabytes. One outcome more fits always.
const WAITING_MAX_BYTES: usize = 64 * 1024 * 1024;

/// How many bytes of outcomes a host has that nobody took yet.
#[derive(Debug, Clone)]
pub(super) struct Waiting(Arc<watch::Sender<usize>>);

impl Waiting {
    pub(super) fn none() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }

    pub(super) fn add(&self, outcomes: &[Outcome]) {
        let bytes = weight(outcomes);
        self.0.send_modify(|waiting| *waiting += bytes);
    }

    pub(super) fn take(&self, outcomes: &[Outcome]) {
        let bytes = weight(outcomes);
        self.0
            .send_modify(|waiting| *waiting = waiting.saturating_sub(bytes));
    }

    /// Whether more may be made.
    pub(super) fn has_room(&self) -> bool {
        *self.0.borrow() < WAITING_MAX_BYTES
    }

    pub(super) async fn room(&self) {
        let mut waiting = self.0.subscribe();
        // This value keeps the channel open.
        let _ = waiting.wait_for(|bytes| *bytes < WAITING_MAX_BYTES).await;
    }
}

/// What outcomes take in memory, about.
fn weight(outcomes: &[Outcome]) -> usize {
    let of_state = |change: &StateChange| match change {
        StateChange::Put(key, value) => key.len() + value.len(),
        StateChange::Delete(key) | StateChange::Increment(key, _) => key.len(),
    };
    let of = |outcome: &Outcome| {
        let outputs: usize = outcome.outputs.iter().map(super::Output::bytes).sum();
        outputs + outcome.state.iter().map(of_state).sum::<usize>()
    };
    outcomes.iter().map(of).sum()
}

/// What the task has of it.
pub(super) struct Ends {
    pub(super) deliveries: mpsc::Receiver<Vec<Delivery>>,
    /// Never full: each element holds an outcome, and there are at most as many as the window is wide.
    pub(super) outcomes: mpsc::Sender<Vec<Outcome>>,
    /// To be told of each outcome before it is handed over.
    pub(super) waiting: Waiting,
    /// The grace that whoever stops the host gives.
    pub(super) stop: oneshot::Receiver<Duration>,
    pub(super) ended: oneshot::Sender<Broken>,
}

pub(super) struct Handle {
    window: usize,
    permits: Semaphore,
    deliver: Option<mpsc::Sender<Vec<Delivery>>>,
    outcomes: mpsc::Receiver<Vec<Outcome>>,
    waiting: Waiting,
    stop: Option<oneshot::Sender<Duration>>,
    ended: Option<oneshot::Receiver<Broken>>,
    broken: Option<Broken>,
}

impl Handle {
    /// For a host that takes so many messages at once, at least one.
    pub(super) fn new(window: usize) -> (Self, Ends) {
        let (deliver, deliveries) = mpsc::channel(window);
        let (outcomes_in, outcomes) = mpsc::channel(window + 1);
        let (stop, stop_asked) = oneshot::channel();
        let (ended_in, ended) = oneshot::channel();
        let waiting = Waiting::none();
        let handle = Self {
            window,
            permits: Semaphore::new(window),
            deliver: Some(deliver),
            outcomes,
            waiting: waiting.clone(),
            stop: Some(stop),
            ended: Some(ended),
            broken: None,
        };
        let ends = Ends {
            deliveries,
            outcomes: outcomes_in,
            waiting,
            stop: stop_asked,
            ended: ended_in,
        };
        (handle, ends)
    }

    async fn why(&mut self) -> Broken {
        if let Some(ended) = self.ended.take() {
            self.broken = Some(ended.await.unwrap_or(Broken::Stopped));
        }
        self.broken.clone().unwrap_or(Broken::Stopped)
    }
}

impl Host for Handle {
    fn window(&self) -> usize {
        self.window
    }

    fn deliver(&mut self, mut batch: Vec<Delivery>) -> BoxFuture<'_, Result<(), Broken>> {
        Box::pin(async move {
            while !batch.is_empty() {
                let rest = batch.split_off(batch.len().min(self.window));
                let count = u32::try_from(batch.len()).unwrap_or(u32::MAX);
                // The semaphore is never closed.
                if let Ok(permits) = self.permits.acquire_many(count).await {
                    permits.forget();
                }
                let sent = match &self.deliver {
                    Some(deliver) => deliver.send(batch).await.is_ok(),
                    None => false,
                };
                if !sent {
                    return Err(self.why().await);
                }
                batch = rest;
            }
            Ok(())
        })
    }

    fn outcomes(&mut self) -> BoxFuture<'_, Result<Vec<Outcome>, Broken>> {
        Box::pin(async move {
            match self.outcomes.recv().await {
                Some(outcomes) => {
                    self.waiting.take(&outcomes);
                    self.permits.add_permits(outcomes.len());
                    Ok(outcomes)
                }
                None => Err(self.why().await),
            }
        })
    }

    fn stop(&mut self, grace: Duration) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if let Some(stop) = self.stop.take() {
                let _ = stop.send(grace);
            }
            self.why().await;
            self.deliver = None;
        })
    }
}
