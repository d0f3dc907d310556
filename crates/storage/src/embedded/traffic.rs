//! Whether somebody waits for syncs now: then what is read from the disk is read gently.
//!
//! A sync waits behind every read that was given to the disk before it. A reader that catches up at the
//! disk's speed, with the kernel reading ahead of it, makes each commit wait for megabytes. The budget
//! while entries are being appended: one large read at a time over the whole store and [`SMALL_READS`]
//! small ones, in pieces of [`GENTLE_READ_BYTES`] with nothing read ahead, and after each piece a rest as
//! long as it took ([`crate::disk::DiskFile::read_gently_at`]). So a commit finds a piece of each before
//! it at most, mostly one or none, and readers leave time to those at the tail. Without appends there is
//! no limit.
//! State records alone (acks of the readers themselves, say) are no appends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::ReadLimits;
use crate::disk::GENTLE_READ_BYTES;

/// How long after an append the next one is reckoned with.
const RECENT: Duration = Duration::from_secs(2);
/// Small reads at a time, while entries are appended.
const SMALL_READS: usize = 4;

pub(super) struct Traffic {
    began: Instant,
    /// Milliseconds from `began` to the last append, and one more; 0 before the first.
    last_ms: AtomicU64,
    /// Turns of large reads.
    large: Arc<Semaphore>,
    /// And of small ones: a search by halves, say, would stand behind those who catch up at each step.
    small: Arc<Semaphore>,
}

/// How a read is to be done, and its turn as long as this is kept.
pub(super) struct Gait {
    pub(super) gently: bool,
    _turn: Option<OwnedSemaphorePermit>,
}

impl Traffic {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            last_ms: AtomicU64::new(0),
            large: Arc::new(Semaphore::new(1)),
            small: Arc::new(Semaphore::new(SMALL_READS)),
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

    /// Waits for the turn of a read, where one is needed.
    pub(super) async fn gait(&self, limits: ReadLimits) -> Gait {
        let gently = is_recent(self.last_ms.load(Ordering::Relaxed), self.now_ms());
        let is_small = limits.entries_max <= 1 || limits.bytes_max <= GENTLE_READ_BYTES;
        let turns = if is_small { &self.small } else { &self.large };
        let turn = match gently {
            // It is never closed.
            true => turns.clone().acquire_owned().await.ok(),
            false => None,
        };
        Gait {
            gently,
            _turn: turn,
        }
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
    async fn large_reads_take_turns_only_while_entries_are_appended() {
        let traffic = Traffic::new();
        let (large, small) = (ReadLimits::new(100, 1 << 20), ReadLimits::new(1, 1 << 20));
        assert!(!traffic.gait(large).await.gently);
        traffic.note();
        let turn = traffic.gait(large).await;
        assert!(turn.gently);
        let mut turns = Vec::new();
        for _ in 0..SMALL_READS {
            turns.push(traffic.gait(small).await);
        }
        assert!(turns.iter().all(|gait| gait.gently), "beside the large one");
        let mut too_many = std::pin::pin!(traffic.gait(small));
        let waits = std::future::poll_fn(|cx| {
            std::task::Poll::Ready(too_many.as_mut().poll(cx).is_pending())
        });
        assert!(waits.await);
        turns.clear();
        assert!(too_many.await.gently);
        let mut next = std::pin::pin!(traffic.gait(large));
        let waits =
            std::future::poll_fn(|cx| std::task::Poll::Ready(next.as_mut().poll(cx).is_pending()));
        assert!(waits.await);
        drop(turn);
        assert!(next.await.gently);
    }
}
