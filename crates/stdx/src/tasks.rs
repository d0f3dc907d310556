//! The task tree: the one place that spawns.
//!
//! Each task has a name and says what its end does to its owner. Cancelling a `Tasks` cancels its
//! children too; `join` waits until every task of the tree has ended.

use std::future::Future;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What a task's error or panic does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// It is logged; the others go on.
    Log,
    /// It is logged and the owner's whole group is cancelled.
    FailOwner,
}

/// A group of named tasks with one way to stop them. Cheap to clone; clones are the same group.
#[derive(Debug, Clone)]
pub struct Tasks {
    cancel: CancellationToken,
    tracker: TaskTracker,
    /// Where the group was made: tasks run there also when a thread of ours that is no worker of it
    /// spawns them (the log's completion thread does).
    runtime: Option<Handle>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self {
            cancel: CancellationToken::new(),
            tracker: TaskTracker::new(),
            runtime: Handle::try_current().ok(),
        }
    }
}

impl Tasks {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A group that ends with this one, and can be cancelled alone. It is joined on its own.
    #[must_use]
    pub fn child(&self) -> Self {
        Self {
            cancel: self.cancel.child_token(),
            tracker: TaskTracker::new(),
            runtime: self.runtime.clone(),
        }
    }

    /// Runs `future` to its end; cancel does not interrupt it. It should watch `cancelled()`.
    pub fn spawn<F, E>(&self, name: &'static str, on_error: OnError, future: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::fmt::Display + Send + 'static,
    {
        // Boxed first: each wrapper would else have room for it twice, for what it captured and for
        // what it awaits, and many thousands of tasks may be under way.
        self.run(name, on_error, Box::pin(future));
    }

    fn run<F, E>(&self, name: &'static str, on_error: OnError, future: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::fmt::Display + Send + 'static,
    {
        let cancel = self.cancel.clone();
        let guard = PanicGuard {
            name,
            cancel: cancel.clone(),
            on_error,
            done: false,
        };
        let task = async move {
            let mut guard = guard;
            let result = future.await;
            guard.done = true;
            if let Err(error) = result {
                tracing::error!(task = name, %error, "task failed");
                if on_error == OnError::FailOwner {
                    cancel.cancel();
                }
            }
        };
        match &self.runtime {
            Some(runtime) => self.tracker.spawn_on(task, runtime),
            None => self.tracker.spawn(task),
        };
    }

    /// Runs `future` until it ends or the group is cancelled: it is dropped at its next await.
    pub fn spawn_cancellable<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let cancel = self.cancel.clone();
        let future = Box::pin(future);
        self.run(name, OnError::Log, async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = future => {}
            }
            Ok::<(), std::convert::Infallible>(())
        });
    }

    /// Asks every task of the tree to end.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Resolves when the group is asked to end.
    pub async fn cancelled(&self) {
        self.cancel.cancelled().await;
    }

    /// How many tasks run now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tracker.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tracker.is_empty()
    }

    /// Waits until all tasks of this group have ended, `grace` at most. False when some still ran.
    pub async fn join(&self, grace: Duration) -> bool {
        self.tracker.close();
        tokio::time::timeout(grace, self.tracker.wait())
            .await
            .is_ok()
    }
}

struct PanicGuard {
    name: &'static str,
    cancel: CancellationToken,
    on_error: OnError,
    done: bool,
}

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if !self.done && std::thread::panicking() {
            tracing::error!(task = self.name, "task panicked");
            if self.on_error == OnError::FailOwner {
                self.cancel.cancel();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_thread_outside_of_the_runtime_may_spawn() {
        let tasks = Tasks::new();
        let (tell, told) = tokio::sync::oneshot::channel();
        let other = tasks.child();
        std::thread::spawn(move || {
            other.spawn_cancellable("from outside", async move {
                tell.send(()).unwrap();
            });
        });
        told.await.unwrap();
    }

    #[tokio::test]
    async fn cancel_reaches_children_and_join_waits() {
        let tasks = Tasks::new();
        let child = tasks.child();
        child.spawn_cancellable("sleeper", std::future::pending());
        tasks.cancel();
        assert!(child.join(Duration::from_secs(5)).await);
        assert!(child.is_cancelled() && child.is_empty());
    }

    #[tokio::test]
    async fn a_panic_can_fail_the_owner() {
        let tasks = Tasks::new();
        tasks.spawn("bad", OnError::FailOwner, async {
            assert!(std::hint::black_box(false), "on purpose");
            Ok::<(), std::convert::Infallible>(())
        });
        tokio::time::timeout(Duration::from_secs(5), tasks.cancelled())
            .await
            .expect("cancelled");
    }
}
