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
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use super::{BoxFuture, Broken, Delivery, Host, HostSpec, Outcome, Runtime, Services};

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
    let window = host.window();
    let (deliver, deliveries) = mpsc::channel(window.max(1));
    // Never full: each element holds an outcome, and there are at most `window` of these.
    let (outcomes_in, outcomes) = mpsc::channel(window + 1);
    let (stop, stop_asked) = oneshot::channel();
    let (ended_in, ended) = oneshot::channel();
    let keeper = Keeper {
        runtime,
        idle,
        spec,
        services,
        host: Some(host),
        in_hand: 0,
        rested_since: Instant::now(),
        deliveries,
        outcomes: outcomes_in,
    };
    tasks.spawn("function host that sleeps", OnError::Log, async move {
        let _ = ended_in.send(keeper.run(stop_asked).await);
        Ok::<(), std::convert::Infallible>(())
    });
    Ok(Box::new(Sleeper {
        window,
        permits: Semaphore::new(window),
        deliver: Some(deliver),
        outcomes,
        stop: Some(stop),
        ended: Some(ended),
        broken: None,
    }))
}

/// The handle: it keeps the window.
struct Sleeper {
    window: usize,
    permits: Semaphore,
    deliver: Option<mpsc::Sender<Vec<Delivery>>>,
    outcomes: mpsc::Receiver<Vec<Outcome>>,
    stop: Option<oneshot::Sender<Duration>>,
    ended: Option<oneshot::Receiver<Broken>>,
    broken: Option<Broken>,
}

impl Sleeper {
    async fn why(&mut self) -> Broken {
        if let Some(ended) = self.ended.take() {
            self.broken = Some(ended.await.unwrap_or(Broken::Stopped));
        }
        self.broken.clone().unwrap_or(Broken::Stopped)
    }
}

impl Host for Sleeper {
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
