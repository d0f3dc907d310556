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

use super::handle::{Ends, Handle, Waiting};
use super::{Broken, Delivery, Host, Outcome, Runtime, Services};
use crate::secret::Unread;

/// What a host may take to fall asleep: it has nothing in hand.
const SLEEP_GRACE: Duration = Duration::from_secs(5);

/// Starts a host that sleeps after `idle` without a message.
pub(crate) async fn start(
    runtime: Arc<dyn Runtime>,
    idle: Duration,
    unread: Unread,
    services: Arc<dyn Services>,
    tasks: &Tasks,
) -> Result<Box<dyn Host>, Broken> {
    let host = runtime.start(unread.read().await?, services.clone());
    let host = host.await?;
    let window = host.window().max(1);
    let (handle, ends) = Handle::new(window);
    let Ends {
        deliveries,
        outcomes,
        waiting,
        stop,
        ended,
    } = ends;
    let keeper = Keeper {
        runtime,
        idle,
        unread,
        services,
        host: Some(host),
        in_hand: 0,
        rested_since: Instant::now(),
        deliveries,
        outcomes,
        waiting,
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
    unread: Unread,
    services: Arc<dyn Services>,
    host: Option<Box<dyn Host>>,
    in_hand: usize,
    /// When the last message ended.
    rested_since: Instant,
    deliveries: mpsc::Receiver<Vec<Delivery>>,
    outcomes: mpsc::Sender<Vec<Outcome>>,
    waiting: Waiting,
}

impl Keeper {
    async fn run(mut self, mut stop: oneshot::Receiver<Duration>) -> Broken {
        loop {
            let may_sleep = self.host.is_some() && self.in_hand == 0;
            tokio::select! {
                batch = self.deliveries.recv() => match batch {
                    Some(batch) => {
                        if self.host.is_none()
                            && let Err(broken) = self.wake(&mut stop).await
                        {
                            return broken;
                        }
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
                // What nobody takes stays with the host, which knows when to wait.
                outcomes = roomy_next(&self.waiting, &mut self.host), if self.in_hand > 0 => match outcomes {
                    Ok(outcomes) => self.hand_on(outcomes),
                    Err(broken) => return broken,
                },
                () = tokio::time::sleep_until(self.rested_since + self.idle), if may_sleep => {
                    let spec = &self.unread.spec;
                    tracing::info!(function = spec.fqfn(), instance = spec.instance, "asleep");
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

    /// Starts the host again. A stop does not wait for that: nothing is in hand.
    async fn wake(&mut self, stop: &mut oneshot::Receiver<Duration>) -> Result<(), Broken> {
        let (unread, runtime, services) = (&self.unread, &self.runtime, self.services.clone());
        let starting = async move {
            // A secret may be another by now.
            let spec = unread.read().await?;
            runtime.start(spec, services).await
        };
        tokio::select! {
            host = starting => self.host = Some(host?),
            _ = stop => return Err(Broken::Stopped),
        }
        Ok(())
    }

    async fn deliver(&mut self, batch: Vec<Delivery>) -> Result<(), Broken> {
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
        self.waiting.add(&outcomes);
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

async fn roomy_next(
    waiting: &Waiting,
    host: &mut Option<Box<dyn Host>>,
) -> Result<Vec<Outcome>, Broken> {
    waiting.room().await;
    match host {
        Some(host) => host.outcomes().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::sync::Notify;

    use super::*;
    use crate::instance::context::Context;
    use crate::runtime::{BoxFuture, HostSpec, Message};

    /// Starts once, then never again.
    #[derive(Default)]
    struct Once {
        asleep: Arc<Notify>,
        started: AtomicBool,
        again: Notify,
    }

    impl Runtime for Once {
        fn name(&self) -> &'static str {
            "once"
        }

        fn start(
            &self,
            _spec: Arc<HostSpec>,
            _services: Arc<dyn Services>,
        ) -> BoxFuture<'_, Result<Box<dyn Host>, Broken>> {
            Box::pin(async {
                if !self.started.swap(true, Ordering::Relaxed) {
                    return Ok::<Box<dyn Host>, Broken>(Box::new(Silent(self.asleep.clone())));
                }
                self.again.notify_one();
                std::future::pending().await
            })
        }
    }

    struct Silent(Arc<Notify>);

    impl Host for Silent {
        fn window(&self) -> usize {
            1
        }

        fn deliver(&mut self, _batch: Vec<Delivery>) -> BoxFuture<'_, Result<(), Broken>> {
            Box::pin(async { Ok(()) })
        }

        fn outcomes(&mut self) -> BoxFuture<'_, Result<Vec<Outcome>, Broken>> {
            Box::pin(std::future::pending())
        }

        fn stop(&mut self, _grace: Duration) -> BoxFuture<'_, ()> {
            self.0.notify_one();
            Box::pin(async {})
        }
    }

    /// Remembers the secret of each start.
    #[derive(Default)]
    struct Told {
        asleep: Arc<Notify>,
        secrets: parking_lot::Mutex<Vec<String>>,
        again: Notify,
    }

    impl Runtime for Told {
        fn name(&self) -> &'static str {
            "told"
        }

        fn start(
            &self,
            spec: Arc<HostSpec>,
            _services: Arc<dyn Services>,
        ) -> BoxFuture<'_, Result<Box<dyn Host>, Broken>> {
            self.secrets.lock().push(spec.secrets["token"].clone());
            self.again.notify_one();
            let host: Box<dyn Host> = Box::new(Silent(self.asleep.clone()));
            Box::pin(async { Ok(host) })
        }
    }

    #[tokio::test]
    async fn a_host_that_wakes_has_the_secrets_of_now() {
        let (tasks, runtime) = (Tasks::new(), Arc::new(Told::default()));
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("token");
        std::fs::write(&file, "old").expect("written");
        let secret = geminga_model::Secret::File(file.display().to_string());
        let unread = Unread {
            secrets: [("token".to_owned(), secret)].into(),
            rules: crate::secret::SecretRules::everything(),
            ..Unread::default()
        };
        let services = Arc::new(Context::new(Arc::default(), None, None));
        let started = start(runtime.clone(), Duration::ZERO, unread, services, &tasks);
        let mut host = started.await.expect("starts");
        runtime.again.notified().await;
        let wakes = async {
            runtime.asleep.notified().await;
            std::fs::write(&file, "new").expect("written");
            let delivery = Delivery {
                ticket: 0,
                message: Arc::new(Message::default()),
            };
            host.deliver(vec![delivery]).await.expect("taken");
            runtime.again.notified().await;
        };
        let limit = Duration::from_secs(20);
        tokio::time::timeout(limit, wakes).await.expect("it wakes");
        assert_eq!(*runtime.secrets.lock(), ["old", "new"]);
    }

    #[tokio::test]
    async fn a_stop_does_not_wait_for_a_host_that_wakes() {
        let (tasks, runtime) = (Tasks::new(), Arc::new(Once::default()));
        let services = Arc::new(Context::new(Arc::default(), None, None));
        let started = start(
            runtime.clone(),
            Duration::ZERO,
            Unread::default(),
            services,
            &tasks,
        );
        let mut host = started.await.expect("starts");
        let asleep_and_called = async {
            runtime.asleep.notified().await;
            let delivery = Delivery {
                ticket: 0,
                message: Arc::new(Message::default()),
            };
            host.deliver(vec![delivery]).await.expect("taken");
            runtime.again.notified().await;
        };
        let limit = Duration::from_secs(20);
        tokio::time::timeout(limit, asleep_and_called)
            .await
            .expect("woken");
        tokio::time::timeout(limit, host.stop(Duration::from_secs(60)))
            .await
            .expect("stops at once");
        assert!(tasks.join(limit).await);
    }
}
