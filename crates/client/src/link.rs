//! The task beside each producer and each topic of a consumer: it has the link to the broker opened, opened
//! again when it breaks, and looks at the clock.
//!
//! What must hold: whoever waits for the first opening is told how it went, once; after that an end is told to
//! whoever uses the thing.

use std::fmt::Display;
use std::sync::Arc;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::client::Shared;
use crate::error::{Error, Result};

/// Something that has a link to its broker.
pub(crate) trait Linked: Send + Sync + 'static {
    /// What it is called in the log.
    const WHAT: &'static str;

    fn shared(&self) -> &Shared;

    fn topic(&self) -> &(dyn Display + Sync);

    /// The link changed.
    fn changed(&self) -> &Notify;

    /// The clock is to be looked at sooner than was said.
    fn timing(&self) -> &Notify;

    /// Does what the clock asks for, and says when to look again.
    fn tick(&self) -> Option<Instant>;

    /// Whether the link is to be opened; an error when there will be none any more.
    fn wants_link(&self) -> Result<bool>;

    /// Opens the link, in one attempt.
    fn open(self: &Arc<Self>) -> impl Future<Output = Result<()>> + Send;

    /// There will be no link any more.
    fn over(&self, error: Error);

    /// The same, and whoever uses it has to be told.
    fn end(&self, error: Error) {
        self.over(error);
    }
}

/// Runs until `linked` is over. `opened` gets the outcome of the first opening.
pub(crate) async fn drive<L: Linked>(linked: Arc<L>, opened: oneshot::Sender<Result<()>>) {
    tokio::select! {
        () = keep(&linked, opened) => {}
        () = watch_clock(&*linked) => {}
        () = linked.shared().tasks.cancelled() => linked.end(Error::Closed),
    }
}

async fn keep<L: Linked>(linked: &Arc<L>, opened: oneshot::Sender<Result<()>>) {
    let mut opened = Some(opened);
    let mut backoff = linked.shared().new_backoff();
    let mut deadline = Some(Instant::now() + linked.shared().operation_timeout);
    loop {
        match linked.open().await {
            Ok(()) => {
                backoff.reset();
                deadline = None;
                if let Some(opened) = opened.take() {
                    // The builder may have been dropped; then what it made is too.
                    _ = opened.send(Ok(()));
                }
                if unlinked(&**linked).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                let delay = backoff.next_delay();
                let goes_on = match deadline {
                    Some(deadline) => error.is_retriable() && Instant::now() + delay < deadline,
                    None => error.is_retriable_after_open(),
                };
                let topic = linked.topic();
                if !goes_on || linked.wants_link().is_err() {
                    match opened.take() {
                        Some(opened) => {
                            linked.over(error.clone());
                            _ = opened.send(Err(error));
                        }
                        None => {
                            tracing::warn!(%topic, %error, "{} is over", L::WHAT);
                            linked.end(error);
                        }
                    }
                    return;
                }
                tracing::debug!(%topic, %error, ?delay, "{} tries again", L::WHAT);
                tokio::select! {
                    () = tokio::time::sleep(delay) => {}
                    () = over(&**linked) => return,
                }
            }
        }
    }
}

/// Resolves when the link is to be opened again; an error when it is over.
async fn unlinked(linked: &impl Linked) -> Result<()> {
    while !linked.wants_link()? {
        linked.changed().notified().await;
    }
    Ok(())
}

async fn over(linked: &impl Linked) {
    while linked.wants_link().is_ok() {
        linked.changed().notified().await;
    }
}

async fn watch_clock(linked: &impl Linked) {
    loop {
        match linked.tick() {
            Some(next) => {
                tokio::select! {
                    () = tokio::time::sleep_until(next) => {}
                    () = linked.timing().notified() => {}
                }
            }
            None => linked.timing().notified().await,
        }
    }
}
