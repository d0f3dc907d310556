//! The clock that makes guests pause: while any guest computes, the engine's epoch moves on, and each
//! guest gives its thread up when it sees that. While none does, nothing runs.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a guest may compute before others of its thread have their turn.
const TICK: Duration = Duration::from_millis(2);

#[derive(Debug, Default)]
struct Shared {
    /// Guests that compute now.
    busy: AtomicUsize,
    asleep: AtomicBool,
    ended: AtomicBool,
}

/// The clock's thread. It ends with this value.
#[derive(Debug)]
pub(crate) struct Pulse {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Pulse {
    /// Starts the thread; `tick` moves the epoch on.
    pub(crate) fn start(tick: impl Fn() + Send + 'static) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let mine = shared.clone();
        let thread = std::thread::Builder::new()
            .name("geminga-wasm-pulse".to_owned())
            .spawn(move || beat(&mine, tick))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// `future`, whose polls keep the clock going.
    pub(crate) fn timed<F: Future>(&self, future: F) -> Timed<F> {
        Timed {
            shared: self.shared.clone(),
            wake: self.thread.as_ref().map(|thread| thread.thread().clone()),
            future: Box::pin(future),
        }
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

fn beat(shared: &Shared, tick: impl Fn()) {
    while !shared.ended.load(Ordering::SeqCst) {
        if shared.busy.load(Ordering::SeqCst) > 0 {
            std::thread::sleep(TICK);
            tick();
            continue;
        }
        shared.asleep.store(true, Ordering::SeqCst);
        // Who became busy in between has seen `asleep`, and the token of its unpark is kept.
        if shared.busy.load(Ordering::SeqCst) == 0 && !shared.ended.load(Ordering::SeqCst) {
            std::thread::park();
        }
        shared.asleep.store(false, Ordering::SeqCst);
    }
}

/// See [`Pulse::timed`].
pub(crate) struct Timed<F> {
    shared: Arc<Shared>,
    wake: Option<std::thread::Thread>,
    future: Pin<Box<F>>,
}

struct Busy<'a>(&'a Shared);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::SeqCst);
    }
}

impl<F: Future> Future for Timed<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        this.shared.busy.fetch_add(1, Ordering::SeqCst);
        let _busy = Busy(&this.shared);
        if this.shared.asleep.load(Ordering::SeqCst)
            && let Some(thread) = &this.wake
        {
            thread.unpark();
        }
        this.future.as_mut().poll(cx)
    }
}
