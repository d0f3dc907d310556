//! Which ledgers may go. Pure.

use super::ledger_list::LedgerList;

/// How long what all subscriptions have acked is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retention {
    /// None keeps for ever; zero deletes at once.
    pub time_ms: Option<u64>,
    /// None keeps any amount; zero deletes at once.
    pub size_bytes: Option<u64>,
}

impl Retention {
    /// Keeps everything.
    pub const FOREVER: Self = Self {
        time_ms: None,
        size_bytes: None,
    };
    /// Keeps nothing that is acked: Pulsar's default.
    pub const NONE: Self = Self {
        time_ms: Some(0),
        size_bytes: Some(0),
    };
}

/// How many of the first ledgers may be deleted: closed, wholly acked (`acked_below` is the lowest
/// offset that some cursor has not acked), and outside of the retention. As in Pulsar, a ledger
/// goes when it is too old or when the rest without it would still reach the size limit.
#[must_use]
pub fn trimmable(list: &LedgerList, acked_below: u64, retention: Retention, now_ms: u64) -> usize {
    let mut left = list.closed_bytes();
    let mut count = 0;
    // The last ledger stays, closed or not: it says where the topic ends.
    let last = list.ledgers.len().saturating_sub(1);
    for ledger in &list.ledgers[..last] {
        let Some(closed) = ledger.closed else { break };
        if ledger.base + closed.entries > acked_below {
            break;
        }
        left -= closed.bytes;
        let age = now_ms.saturating_sub(closed.at_ms);
        let is_expired = retention.time_ms.is_some_and(|limit| age >= limit);
        let is_over = retention.size_bytes.is_some_and(|limit| left >= limit);
        if !is_expired && !is_over && closed.entries > 0 {
            break;
        }
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::super::ledger_list::{Closed, Ledger};
    use super::*;
    use geminga_model::LedgerId;

    /// Ledgers of 10 entries and 100 bytes, closed at 1000, 2000, ...; the last one is open.
    fn list(count: u64) -> LedgerList {
        let ledgers = (0..count)
            .map(|i| Ledger {
                id: LedgerId(i as i64),
                base: i * 10,
                closed: (i + 1 < count).then_some(Closed {
                    entries: 10,
                    bytes: 100,
                    at_ms: (i + 1) * 1000,
                }),
            })
            .collect();
        LedgerList {
            ledgers,
            ..LedgerList::default()
        }
    }

    #[test]
    fn table() {
        let keep = |time_ms, size_bytes| Retention {
            time_ms,
            size_bytes,
        };
        for (acked, retention, now, wanted) in [
            (0, Retention::NONE, 9000, 0),
            (9, Retention::NONE, 9000, 0),
            (10, Retention::NONE, 9000, 1),
            (35, Retention::NONE, 9000, 3),
            (u64::MAX, Retention::NONE, 9000, 4),
            (u64::MAX, Retention::FOREVER, 90_000, 0),
            (u64::MAX, keep(Some(3000), None), 5500, 2),
            (u64::MAX, keep(Some(3000), None), 3999, 0),
            (15, keep(Some(3000), None), 5500, 1),
            (u64::MAX, keep(None, Some(200)), 5500, 2),
            (u64::MAX, keep(None, Some(201)), 5500, 1),
            (u64::MAX, keep(None, Some(1000)), 5500, 0),
            (u64::MAX, keep(Some(3500), Some(1000)), 5500, 2),
            (u64::MAX, keep(Some(90_000), Some(100)), 5500, 3),
            (u64::MAX, Retention::NONE, 0, 4),
        ] {
            let count = trimmable(&list(5), acked, retention, now);
            assert_eq!(count, wanted, "{acked} {retention:?} {now}");
        }
        assert_eq!(trimmable(&LedgerList::default(), 9, Retention::NONE, 9), 0);
    }
}
