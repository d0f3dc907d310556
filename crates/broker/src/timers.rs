//! One task and one heap for all timers of the broker: delayed entries, failover delays, rates.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use geminga_stdx::Clock;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::topic::Topic;

/// What is due at a topic, or at a subscription of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Alarm {
    /// Delayed entries.
    Due(u32),
    /// The wait before a new active consumer gets messages is over.
    Failover(u32),
    /// Connections that published too fast are read again.
    Publish,
    /// Subscriptions that dispatched too fast go on.
    Dispatch,
    /// So much was published that the backlog may be over its quota.
    Quota,
}

#[derive(Default)]
pub(crate) struct Timers {
    heap: Mutex<BinaryHeap<Reverse<Entry>>>,
    earlier: Notify,
}

struct Entry {
    at_ms: u64,
    topic: Weak<Topic>,
    alarm: Alarm,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        self.at_ms == other.at_ms
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Entry) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Entry) -> std::cmp::Ordering {
        self.at_ms.cmp(&other.at_ms)
    }
}

impl Timers {
    pub(crate) fn set(&self, at_ms: u64, topic: Weak<Topic>, alarm: Alarm) {
        let mut heap = self.heap.lock();
        let first = heap.peek().is_none_or(|Reverse(entry)| at_ms < entry.at_ms);
        heap.push(Reverse(Entry {
            at_ms,
            topic,
            alarm,
        }));
        drop(heap);
        if first {
            self.earlier.notify_one();
        }
    }

    /// The task: sleeps until the next timer, and only while there is one.
    pub(crate) async fn run(self: Arc<Timers>, clock: Clock) {
        loop {
            let next_ms = self.heap.lock().peek().map(|Reverse(entry)| entry.at_ms);
            match next_ms {
                None => self.earlier.notified().await,
                Some(at_ms) => {
                    let wait = at_ms.saturating_sub(clock.now_ms());
                    if wait > 0 {
                        tokio::select! {
                            () = tokio::time::sleep(Duration::from_millis(wait)) => {}
                            () = self.earlier.notified() => continue,
                        }
                    }
                    self.fire(clock.now_ms());
                }
            }
        }
    }

    fn fire(&self, now_ms: u64) {
        loop {
            let mut heap = self.heap.lock();
            if heap
                .peek()
                .is_none_or(|Reverse(entry)| entry.at_ms > now_ms)
            {
                return;
            }
            let Some(Reverse(entry)) = heap.pop() else {
                return;
            };
            drop(heap);
            if let Some(topic) = entry.topic.upgrade() {
                topic.alarm(entry.alarm);
            }
        }
    }
}
