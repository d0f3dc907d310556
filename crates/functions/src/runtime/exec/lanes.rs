//! The instance's side of a host whose programs run in lanes, and what all lanes do: take messages, say what
//! became of them, end when they are told to.
//!
//! What must hold: no more messages are in the lanes than the window is wide; a stop waits for those that are
//! in hand as long as its grace, then drops the lanes, and so kills their processes.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::time::Duration;

use geminga_stdx::Tasks;
use geminga_stdx::tasks::OnError;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::runtime::handle::Waiting;
use crate::runtime::process::Scope;
use crate::runtime::{BoxFuture, Broken, Delivery, Host, Outcome};

/// Runs programs, one after the other.
pub(super) trait Lane: Send + 'static {
    /// Takes messages and says what became of them, or that the code can not be run at all. `None` when
    /// there will be no more messages. May be dropped at any time.
    fn turn(
        &mut self,
        deliveries: &mut mpsc::Receiver<Delivery>,
    ) -> impl Future<Output = Option<Result<Vec<Outcome>, Broken>>> + Send;
}

/// What a lane says, with its number.
type Said = Result<(usize, Vec<Outcome>), Broken>;

pub(super) struct Lanes {
    window: usize,
    in_flight: usize,
    /// Each lane, and how many messages it holds.
    lanes: Vec<(mpsc::Sender<Delivery>, usize)>,
    /// Outcomes read while waiting for room.
    held: Vec<Outcome>,
    outcomes: mpsc::Receiver<Said>,
    waiting: Waiting,
    stop: watch::Sender<bool>,
    broken: Option<Broken>,
    // Kept until the host is dropped: its end sweeps what processes left.
    scope: Arc<Scope>,
}

impl Lanes {
    /// Messages of one key stay in one lane, so that they are processed in order.
    pub(super) fn start<L: Lane>(
        name: &'static str,
        lanes: impl IntoIterator<Item = L>,
        window: usize,
        scope: Arc<Scope>,
        tasks: &Tasks,
    ) -> Box<dyn Host> {
        let (outcomes_in, outcomes) = mpsc::channel(window + 1);
        let (stop, stopped) = watch::channel(false);
        let waiting = Waiting::none();
        let start = |(number, lane)| {
            let (sender, deliveries) = mpsc::channel(window);
            let (outcomes, stopped) = (outcomes_in.clone(), stopped.clone());
            let out = (outcomes, waiting.clone());
            tasks.spawn(name, OnError::Log, async move {
                serve(number, lane, deliveries, out, stopped).await;
                Ok::<(), std::convert::Infallible>(())
            });
            (sender, 0)
        };
        Box::new(Self {
            window,
            in_flight: 0,
            lanes: lanes.into_iter().enumerate().map(start).collect(),
            held: Vec::new(),
            outcomes,
            waiting,
            stop,
            broken: None,
            scope,
        })
    }

    fn why(&self) -> Broken {
        self.broken.clone().unwrap_or(Broken::Stopped)
    }

    /// Remembers what a lane said. False when there is nothing more to hear.
    fn hear(&mut self, said: Option<Said>) -> bool {
        match said {
            Some(Ok((lane, outcomes))) => {
                self.waiting.take(&outcomes);
                self.in_flight -= outcomes.len();
                self.lanes[lane].1 -= outcomes.len();
                self.held.extend(outcomes);
                true
            }
            Some(Err(why)) => {
                self.broken.get_or_insert(why);
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

impl Host for Lanes {
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
                    // A lane says why before it ends.
                    while let Ok(said) = self.outcomes.try_recv() {
                        self.hear(Some(said));
                    }
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
            self.scope.sweep_out().await;
        })
    }
}

async fn serve(
    number: usize,
    mut lane: impl Lane,
    mut deliveries: mpsc::Receiver<Delivery>,
    (outcomes, waiting): (mpsc::Sender<Said>, Waiting),
    mut stopped: watch::Receiver<bool>,
) {
    loop {
        let said = tokio::select! {
            // An error means that the host was dropped.
            _ = stopped.wait_for(|stop| *stop) => return,
            said = async {
                waiting.room().await;
                lane.turn(&mut deliveries).await
            } => said,
        };
        let Some(said) = said else { return };
        if let Ok(outcomes) = &said {
            waiting.add(outcomes);
        }
        let broken = said.is_err();
        let said = said.map(|outcomes| (number, outcomes));
        if outcomes.send(said).await.is_err() || broken {
            return;
        }
    }
}
