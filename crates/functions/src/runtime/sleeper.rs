//! Scale to zero: a host that ends when it has had nothing to do for a while, and starts again at its next
//! message.
//!
//! It stands between an instance and any runtime's host; the subscription stays with the instance, so nothing is
//! lost meanwhile and the first message pays for the start. What must hold: a host with a message in hand never
//! sleeps; code that does not start is said at the first start as without this, and later starts that fail end the
//! host like any death.

use std::sync::Arc;
use std::time::Duration;

use geminga_stdx::Tasks;
use geminga_stdx::tasks::OnError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::handle::{Ends, Handle};
use super::{Broken, Delivery, Host, HostSpec, Outcome, Runtime, Services};

/// What a host may take to fall asleep: it has nothing in hand.
const SLEEP_GRACE: Duration = Duration::from_secs(5);

/// Starts a host that sleeps after `idle` without a message.
pub(crate) async fn start(
    runtime: Arc<dyn Runtime>,
    idle: Duration,
    spec: Arc<HostSpec>,
    services: Arc<dyn Services>,
    tasks: &Tasks,
) -> Result<Box<dyn Host>, Broken> {
    let host = runtime.start(spec.clone(), services.clone()).await?;
    let window = host.window().max(1);
    let (handle, ends) = Handle::new(window);
    let Ends {
        deliveries,
        outcomes,
        stop,
        ended,
    } = ends;
    let keeper = Keeper {
        runtime,
        idle,
        spec,
        services,
        host: Some(host),
        in_hand: 0,
        rested_since: Instant::now(),
        deliveries,
        outcomes,
    };
    tasks.spawn("function host that sleeps", OnError::Log, async move {
        let _ = ended.send(keeper.run(stop).await);
        Ok::<(), std::convert::Infallible>(())
    });
    Ok(Box::new(handle))
}

/// The task: it has the host while there is one.
struct Keeper {
    runtime: Arc<dyn Runtime>,
    idle: Duration,
    spec: Arc<HostSpec>,
    services: Arc<dyn Services>,
    host: Option<Box<dyn Host>>,
    in_hand: usize,
    /// When the last message ended.
    rested_since: Instant,
    deliveries: mpsc::Receiver<Vec<Delivery>>,
    outcomes: mpsc::Sender<Vec<Outcome>>,
}

impl Keeper {
    async fn run(mut self, mut stop: oneshot::Receiver<Duration>) -> Broken {
        loop {
            let may_sleep = self.host.is_some() && self.in_hand == 0;
            tokio::select! {
                batch = self.deliveries.recv() => match batch {
                    Some(batch) => {
                        if let Err(broken) = self.deliver(batch).await {
                            return broken;
                        }
                    }
                    // The handle is gone: nobody wants the outcomes.
                    None => {
                        self.end(Duration::ZERO).await;
                        return Broken::Stopped;
                    }
                },
                outcomes = next(&mut self.host), if self.in_hand > 0 => match outcomes {
                    Ok(outcomes) => self.hand_on(outcomes),
                    Err(broken) => return broken,
                },
                () = tokio::time::sleep_until(self.rested_since + self.idle), if may_sleep => {
                    tracing::info!(function = self.spec.fqfn(), instance = self.spec.instance, "asleep");
                    self.end(SLEEP_GRACE).await;
                }
                grace = &mut stop => {
                    // What is in hand may finish: the inner host sees to that.
                    self.end(grace.unwrap_or(Duration::ZERO)).await;
                    return Broken::Stopped;
                }
            }
        }
    }

    async fn deliver(&mut self, batch: Vec<Delivery>) -> Result<(), Broken> {
        if self.host.is_none() {
            let (spec, services) = (self.spec.clone(), self.services.clone());
            self.host = Some(self.runtime.start(spec, services).await?);
        }
        let Some(host) = &mut self.host else {
            return Err(Broken::Stopped);
        };
        self.in_hand += batch.len();
        // It fits: the handle keeps the same window.
        host.deliver(batch).await
    }

    fn hand_on(&mut self, outcomes: Vec<Outcome>) {
        self.in_hand = self.in_hand.saturating_sub(outcomes.len());
        self.rested_since = Instant::now();
        // It fits (see `start`); when the handle is gone nobody wants it.
        let _ = self.outcomes.try_send(outcomes);
    }

    async fn end(&mut self, grace: Duration) {
        let Some(mut host) = self.host.take() else {
            return;
        };
        host.stop(grace).await;
        while self.in_hand > 0 {
            match host.outcomes().await {
                Ok(outcomes) => self.hand_on(outcomes),
                Err(_) => return,
            }
        }
    }
}

async fn next(host: &mut Option<Box<dyn Host>>) -> Result<Vec<Outcome>, Broken> {
    match host {
        Some(host) => host.outcomes().await,
        None => std::future::pending().await,
    }
}
