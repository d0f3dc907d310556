//! Whether somebody waits for syncs now: then what is read from the disk is read gently.
//!
//! A sync waits behind every read that was given to the disk before it. A reader that catches up at the
//! disk's speed, with the kernel reading ahead of it, makes each commit wait for megabytes. The budget
//! while entries are being appended: one read at a time over the whole store, with
//! [`crate::disk::GENTLE_READ_BYTES`] of it under way and nothing read ahead, and after it a rest as
//! long as it took. So a commit finds at most so much before it (a quarter of a millisecond of a disk
//! that reads 1 GB/s), half of the time nothing, and readers leave time to those at the tail. Without
//! appends there is no limit. State records alone (acks of the readers themselves, say) are no appends.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, MutexGuard};

/// How long after an append the next one is reckoned with.
const RECENT: Duration = Duration::from_secs(2);
/// Shorter rests are left out: the timers are not that exact.
const REST_MIN: Duration = Duration::from_micros(200);
/// A disk that hangs for a moment does not hold readers up for as long again.
const REST_MAX: Duration = Duration::from_millis(20);

pub(super) struct Traffic {
    began: Instant,
    /// Milliseconds from `began` to the last append, and one more; 0 before the first.
    last_ms: AtomicU64,
    /// When the next read may begin.
    next: Mutex<Instant>,
}

/// A read's turn, as long as it is kept.
pub(super) struct Turn<'a> {
    next: MutexGuard<'a, Instant>,
    began: Instant,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        *self.next = now + (now - self.began).min(REST_MAX);
    }
}

impl Traffic {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            began: now,
            last_ms: AtomicU64::new(0),
            next: Mutex::new(now),
        }
    }

    /// Entries were appended.
    pub(super) fn note(&self) {
        let now = self.now_ms() + 1;
        // Mostly known already: then the line stays with all processors.
        if self.last_ms.load(Ordering::Relaxed) != now {
            self.last_ms.store(now, Ordering::Relaxed);
        }
    }

    /// A read's turn: at once when nobody appends, which is told by none.
    pub(super) async fn turn(&self) -> Option<Turn<'_>> {
        if !is_recent(self.last_ms.load(Ordering::Relaxed), self.now_ms()) {
            return None;
        }
        let next = self.next.lock().await;
        let rest = next.saturating_duration_since(Instant::now());
        if rest >= REST_MIN {
            tokio::time::sleep(rest).await;
        }
        let began = Instant::now();
        Some(Turn { next, began })
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
    }
}

fn is_recent(last_ms: u64, now_ms: u64) -> bool {
    last_ms > 0 && now_ms.saturating_sub(last_ms - 1) < RECENT.as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appends_are_reckoned_with_for_a_while() {
        let recent = RECENT.as_millis() as u64;
        assert!(!is_recent(0, 0), "there was none");
        for at in [0, 5, 1 << 40] {
            assert!(is_recent(at + 1, at));
            assert!(is_recent(at + 1, at + recent - 1));
            assert!(!is_recent(at + 1, at + recent));
        }
        assert!(
            is_recent(10, 3),
            "noted while the other looked at the clock"
        );
    }

    #[tokio::test]
    async fn reads_wait_for_their_turn_only_while_entries_are_appended() {
        let traffic = Traffic::new();
        assert!(traffic.turn().await.is_none());
        traffic.note();
        let turn = traffic.turn().await;
        assert!(turn.is_some());
        let mut next = std::pin::pin!(traffic.turn());
        let waits =
            std::future::poll_fn(|cx| std::task::Poll::Ready(next.as_mut().poll(cx).is_pending()));
        assert!(waits.await);
        drop(turn);
        let next = next.await.unwrap();
        let (began, was) = (next.began, *next.next);
        assert!(began + REST_MIN >= was, "it began before the rest was over");
    }
}
