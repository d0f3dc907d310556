//! What is under way to another cluster, in order: pure.
//!
//! Entries that are left out take their place among those that are sent, so that the cursor moves
//! over them only when all before them is confirmed.

use std::collections::VecDeque;

use geminga_model::Position;

#[derive(Debug)]
struct Under {
    position: Position,
    /// None for what is left out.
    sent: Option<Sent>,
}

/// What a sent entry holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) bytes: usize,
    pub(super) messages: u32,
    pub(super) publish_ms: u64,
}

#[derive(Debug)]
pub(super) struct Window {
    under: VecDeque<Under>,
    sent: usize,
    bytes: usize,
    entries_max: usize,
    bytes_max: usize,
}

/// What confirmations did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Confirmed {
    /// Everything up to here is done with.
    pub(super) through: Option<Position>,
    pub(super) messages: u64,
    pub(super) bytes: u64,
}

impl Window {
    pub(super) fn new(entries_max: usize, bytes_max: usize) -> Window {
        Window {
            under: VecDeque::new(),
            sent: 0,
            bytes: 0,
            entries_max: entries_max.max(1),
            bytes_max,
        }
    }

    /// How many entries may be read: what is left out counts, since it is held too.
    pub(super) fn room(&self) -> usize {
        match self.bytes >= self.bytes_max {
            true => 0,
            false => self.entries_max.saturating_sub(self.under.len()),
        }
    }

    pub(super) fn bytes_room(&self) -> usize {
        self.bytes_max.saturating_sub(self.bytes)
    }

    pub(super) fn waits(&self) -> bool {
        self.sent > 0
    }

    pub(super) fn send(&mut self, position: Position, sent: Sent) {
        self.sent += 1;
        self.bytes += sent.bytes;
        let sent = Some(sent);
        self.under.push_back(Under { position, sent });
    }

    /// The entry is not sent. Says how far the cursor may move.
    pub(super) fn leave_out(&mut self, position: Position) -> Option<Position> {
        if self.sent == 0 {
            return Some(position);
        }
        // One run of them is one place.
        match self.under.back_mut() {
            Some(last) if last.sent.is_none() => last.position = position,
            _ => self.under.push_back(Under {
                position,
                sent: None,
            }),
        }
        None
    }

    /// The oldest so many sent entries are confirmed. More than there are is the other side's error.
    pub(super) fn confirm(&mut self, count: usize) -> Option<Confirmed> {
        if count > self.sent {
            return None;
        }
        let mut done = Confirmed::default();
        let mut left = count;
        while let Some(first) = self.under.front() {
            match first.sent {
                Some(_) if left == 0 => break,
                Some(sent) => {
                    left -= 1;
                    self.sent -= 1;
                    self.bytes -= sent.bytes;
                    done.messages += u64::from(sent.messages);
                    done.bytes += sent.bytes as u64;
                }
                None => {}
            }
            done.through = Some(first.position);
            self.under.pop_front();
        }
        Some(done)
    }

    /// When the oldest entry under way was published.
    pub(super) fn oldest_ms(&self) -> Option<u64> {
        let sent = self.under.iter().find_map(|under| under.sent);
        sent.map(|sent| sent.publish_ms)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(entry: i64) -> Position {
        Position::new(7, entry)
    }

    const SENT: Sent = Sent {
        bytes: 10,
        messages: 2,
        publish_ms: 5,
    };

    #[test]
    fn the_cursor_moves_over_what_is_left_out_when_all_before_is_confirmed() {
        let mut window = Window::new(4, 1_000);
        assert_eq!(window.leave_out(at(0)), Some(at(0)), "nothing before it");
        window.send(at(1), SENT);
        assert_eq!(window.leave_out(at(2)), None);
        assert_eq!(window.leave_out(at(3)), None);
        window.send(at(4), SENT);
        assert_eq!(window.room(), 1);
        assert_eq!(window.oldest_ms(), Some(5));
        assert_eq!(window.confirm(3), None, "never sent");
        let done = window.confirm(1).unwrap();
        assert_eq!(done.through, Some(at(3)));
        assert_eq!((done.messages, done.bytes), (2, 10));
        assert_eq!(window.confirm(0).unwrap(), Confirmed::default());
        assert_eq!(window.confirm(1).unwrap().through, Some(at(4)));
        assert!(!window.waits() && window.bytes_room() == 1_000);
    }

    #[test]
    fn bytes_fill_it_too() {
        let mut window = Window::new(100, 15);
        window.send(at(0), SENT);
        assert_eq!(window.room(), 99);
        window.send(at(1), SENT);
        assert_eq!((window.room(), window.bytes_room()), (0, 0));
    }

    proptest! {
        #[test]
        fn the_cursor_is_never_past_what_is_not_confirmed(
            steps in proptest::collection::vec((0u8..3, 0usize..4), 0..60)
        ) {
            let mut window = Window::new(1_000, 1 << 20);
            let mut unconfirmed: VecDeque<i64> = VecDeque::new();
            let mut next = 0;
            let mut mark = -1;
            for (kind, count) in steps {
                let through = match kind {
                    0 => { window.send(at(next), SENT); unconfirmed.push_back(next); next += 1; None }
                    1 => { let through = window.leave_out(at(next)); next += 1; through }
                    _ => {
                        let done = window.confirm(count);
                        prop_assert_eq!(done.is_some(), count <= unconfirmed.len());
                        if done.is_some() { unconfirmed.drain(..count); }
                        done.and_then(|done| done.through)
                    }
                };
                if let Some(through) = through {
                    prop_assert!(through.entry.0 > mark);
                    mark = through.entry.0;
                }
                let first = unconfirmed.front().copied().unwrap_or(next);
                prop_assert_eq!(mark, first - 1);
                prop_assert_eq!(window.waits(), !unconfirmed.is_empty());
            }
        }
    }
}
