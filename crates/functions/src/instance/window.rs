//! Which messages make a window, and when it is complete. Pure: what the clock says is told.
//!
//! Windows of time begin and end at multiples of the slide, counted from 1970, so that all instances
//! and every restart cut alike; a window holds `start <= time < end`. What must hold:
//! - A message is in every window that its time falls into, unless it came too late for all.
//! - A message is *done* with the last window that holds it, and is named once as such: only then may
//!   it be acknowledged. Until then a restart gets it again.
//! - Windows fire in the order of their ends. Empty ones do not.
//! - A message's time may be anything: a producer made it up. None breaks the arithmetic, and none
//!   that lies ahead of the clock makes late what comes after it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::plan::{EventTime, Shape};

/// The latest time that a message may have: later ones are nobody's.
const TIME_MAX: u64 = i64::MAX as u64 / 2;
/// So far ahead of the clock a message moves the watermark: clocks differ.
const AHEAD_MS: u64 = 60 * 60 * 1000;
/// Windows that one tick completes: a watermark may jump over very many.
const TICK_MAX: usize = 4;

/// A complete window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fired<T> {
    pub(crate) start_ms: u64,
    pub(crate) end_ms: u64,
    pub(crate) items: Vec<T>,
    /// In no later window.
    pub(crate) done: Vec<T>,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Added {
    Held,
    Late,
    /// It is in no window: the slide is longer than the length.
    Skipped,
}

/// The windows of one instance.
#[derive(Debug)]
pub(crate) struct Windows<T> {
    shape: Shape,
    event_time: Option<EventTime>,
    /// These must have been heard of, too.
    waits_for: BTreeSet<Arc<str>>,
    /// By count: the messages of the windows to come, oldest first.
    counted: VecDeque<(u64, T)>,
    /// Messages ever counted.
    count: u64,
    /// By time: what is held, in the order of time, then arrival.
    timed: BTreeMap<(u64, u64), T>,
    arrivals: u64,
    /// Every window that ends here or before has fired.
    fired_to: u64,
    /// Newest event time by topic.
    newest: BTreeMap<Arc<str>, u64>,
    watermark: u64,
    /// When the watermark moves next.
    emit_at: Option<u64>,
    /// Of sessions: the time of the last message of the oldest one.
    session_last: Option<u64>,
    /// No message will come any more.
    finished: bool,
}

impl<T: Clone> Windows<T> {
    pub(crate) fn new(shape: Shape, event_time: Option<EventTime>) -> Self {
        Self {
            shape,
            event_time,
            waits_for: BTreeSet::new(),
            counted: VecDeque::new(),
            count: 0,
            timed: BTreeMap::new(),
            arrivals: 0,
            fired_to: 0,
            newest: BTreeMap::new(),
            watermark: 0,
            emit_at: None,
            session_last: None,
            finished: false,
        }
    }

    /// The watermark does not move before each of these topics was heard of: others may be there, or not.
    pub(crate) fn waiting_for(self, topics: BTreeSet<Arc<str>>) -> Self {
        Self {
            waits_for: topics,
            ..self
        }
    }

    /// Messages held.
    pub(crate) fn len(&self) -> usize {
        self.counted.len() + self.timed.len()
    }

    /// Takes a message in. `time_ms` is its event time, or the time of its arrival.
    pub(crate) fn add(
        &mut self,
        now_ms: u64,
        time_ms: u64,
        topic: &Arc<str>,
        item: T,
        fired: &mut Vec<Fired<T>>,
    ) -> Added {
        if let Shape::Count { length, slide } = self.shape {
            self.count += 1;
            self.counted.push_back((time_ms, item));
            if self.count.is_multiple_of(slide as u64) {
                fired.push(self.fire_counted(length, slide));
            }
            return Added::Held;
        }
        // A clock that was set back would put it into a window that has fired.
        let time_ms = match self.event_time {
            None => time_ms.max(self.fired_to).min(TIME_MAX),
            Some(_) => time_ms,
        };
        if let Some(event_time) = self.event_time {
            if time_ms < self.watermark || time_ms > TIME_MAX {
                return Added::Late;
            }
            let ahead = event_time.lag_ms.saturating_add(AHEAD_MS);
            let newest = self.newest.entry(topic.clone()).or_default();
            *newest = (*newest).max(time_ms.min(now_ms.saturating_add(ahead)));
            let emit_at = now_ms.saturating_add(event_time.emit_ms);
            self.emit_at.get_or_insert(emit_at);
        }
        if let Shape::Time {
            length_ms,
            slide_ms,
        } = self.shape
            && last_end(time_ms, length_ms, slide_ms) <= time_ms
        {
            return Added::Skipped;
        }
        self.arrivals += 1;
        if let Shape::Session { gap_ms } = self.shape {
            self.extend_session(time_ms, gap_ms);
        }
        self.timed.insert((time_ms, self.arrivals), item);
        Added::Held
    }

    /// No message will come any more: the ticks from now on complete what there is.
    pub(crate) fn finish(&mut self) {
        self.finished = true;
    }

    /// What the clock completes, [`TICK_MAX`] windows at most: [`next_tick`](Self::next_tick) says
    /// whether there are more.
    pub(crate) fn tick(&mut self, now_ms: u64, fired: &mut Vec<Fired<T>>) {
        if self.finished {
            fired.extend(self.fire_rest());
        }
        if let Some(event_time) = self.event_time
            && self.emit_at.is_some_and(|at| at <= now_ms)
        {
            self.emit_at = None;
            let heard = self.newest.len() >= event_time.topics
                && self
                    .waits_for
                    .iter()
                    .all(|topic| self.newest.contains_key(topic));
            let newest = self.newest.values().min().filter(|_| heard);
            let watermark = newest.map_or(0, |newest| newest.saturating_sub(event_time.lag_ms));
            self.watermark = self.watermark.max(watermark);
        }
        let clock = match self.event_time {
            _ if self.finished => u64::MAX,
            None => now_ms,
            Some(_) => self.watermark,
        };
        for _ in 0..TICK_MAX {
            let Some(window) = self.fire_timed(clock) else {
                break;
            };
            fired.push(window);
        }
    }

    /// When the clock is to be told again.
    pub(crate) fn next_tick(&self) -> Option<u64> {
        let end = match self.shape {
            Shape::Count { .. } => None,
            Shape::Time { slide_ms, .. } => self.next_end(slide_ms),
            Shape::Session { gap_ms } => self.session(gap_ms).map(|(_, end)| end),
        };
        if self.finished {
            return (self.len() > 0).then_some(0);
        }
        match self.event_time {
            None => end,
            Some(_) if end.is_some_and(|end| end <= self.watermark) => Some(0),
            Some(_) => self.emit_at,
        }
    }

    /// The last window by count, as far as it came.
    fn fire_rest(&mut self) -> Option<Fired<T>> {
        let Shape::Count { length, slide } = self.shape else {
            return None;
        };
        let came = usize::try_from(self.count % slide as u64).unwrap_or(0);
        let window = match came {
            0 => 0,
            came => length.saturating_sub(slide - came),
        };
        let rest = self.fire_counted(window, window);
        self.count = 0;
        (!rest.items.is_empty()).then_some(rest)
    }

    fn fire_counted(&mut self, length: usize, slide: usize) -> Fired<T> {
        let held = self.counted.len();
        let window = self.counted.range(held.saturating_sub(length)..);
        let items: Vec<T> = window.clone().map(|(_, item)| item.clone()).collect();
        let start_ms = window.clone().map(|(time, _)| *time).min().unwrap_or(0);
        let end_ms = window.map(|(time, _)| *time).max().unwrap_or(0);
        // The next window holds `slide` new ones, and so many of these.
        let kept = length.saturating_sub(slide).min(held);
        let done = self.counted.drain(..held - kept).map(|(_, item)| item);
        Fired {
            start_ms,
            end_ms,
            items,
            done: done.collect(),
        }
    }

    /// The end of the window that fires next.
    fn next_end(&self, slide_ms: u64) -> Option<u64> {
        let ((oldest, _), _) = self.timed.first_key_value()?;
        let first = (oldest / slide_ms + 1).saturating_mul(slide_ms);
        Some(first.max(self.fired_to.saturating_add(slide_ms)))
    }

    fn fire_timed(&mut self, clock: u64) -> Option<Fired<T>> {
        match self.shape {
            Shape::Count { .. } => None,
            Shape::Time {
                length_ms,
                slide_ms,
            } => loop {
                let end_ms = self.next_end(slide_ms).filter(|end| *end <= clock)?;
                let start_ms = end_ms.saturating_sub(length_ms);
                let window = self.timed.range((start_ms, 0)..(end_ms, 0));
                let items: Vec<T> = window.map(|(_, item)| item.clone()).collect();
                self.fired_to = end_ms;
                let mut done = Vec::new();
                while let Some(entry) = self.timed.first_entry() {
                    if last_end(entry.key().0, length_ms, slide_ms) > end_ms {
                        break;
                    }
                    done.push(entry.remove());
                }
                if !items.is_empty() {
                    return Some(Fired {
                        start_ms,
                        end_ms,
                        items,
                        done,
                    });
                }
            },
            Shape::Session { gap_ms } => {
                let (last, end_ms) = self.session(gap_ms).filter(|(_, end)| *end <= clock)?;
                let rest = self.timed.split_off(&(last, u64::MAX));
                let window = std::mem::replace(&mut self.timed, rest);
                self.session_last = None;
                if let Some(((first, _), _)) = self.timed.first_key_value() {
                    let first = *first;
                    self.extend_session(first, gap_ms);
                }
                let start_ms = window.first_key_value().map_or(0, |((time, _), _)| *time);
                let items: Vec<T> = window.into_values().collect();
                Some(Fired {
                    start_ms,
                    end_ms,
                    done: items.clone(),
                    items,
                })
            }
        }
    }

    /// The time of the last message of the oldest session, and when that session is over.
    fn session(&self, gap_ms: u64) -> Option<(u64, u64)> {
        let last = self.session_last?;
        Some((last, last.saturating_add(gap_ms)))
    }

    /// A message of this time is about to come: the oldest session may begin earlier, or end later.
    fn extend_session(&mut self, time_ms: u64, gap_ms: u64) {
        let first = self.timed.first_key_value().map(|((time, _), _)| *time);
        let mut last = match (first, self.session_last) {
            // It stands alone before all others.
            (Some(first), Some(_)) if time_ms < first && first - time_ms >= gap_ms => {
                self.session_last = Some(time_ms);
                return;
            }
            (Some(_), Some(last)) if time_ms <= last => return,
            (Some(_), Some(last)) if time_ms - last >= gap_ms => return,
            _ => time_ms,
        };
        for (time, _) in self.timed.range((last, 0)..).map(|(key, _)| key) {
            if time - last >= gap_ms {
                break;
            }
            last = *time;
        }
        self.session_last = Some(last);
    }
}

/// The end of the last window that holds a time; not behind it when none does.
fn last_end(time_ms: u64, length_ms: u64, slide_ms: u64) -> u64 {
    time_ms.saturating_add(length_ms) / slide_ms * slide_ms
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn topic() -> Arc<str> {
        "t".into()
    }

    fn count(length: usize, slide: usize, messages: u64) -> Vec<Fired<u64>> {
        let mut windows = Windows::new(Shape::Count { length, slide }, None);
        let mut fired = Vec::new();
        for n in 1..=messages {
            windows.add(0, n, &topic(), n, &mut fired);
        }
        fired
    }

    /// All that the clock completes.
    fn tick<T: Clone>(windows: &mut Windows<T>, now_ms: u64, fired: &mut Vec<Fired<T>>) {
        windows.tick(now_ms, fired);
        while windows.next_tick().is_some_and(|at| at <= now_ms) {
            windows.tick(now_ms, fired);
        }
    }

    /// Times in, `items` of the windows out, with the clock told after each and `at_end` last.
    fn timed(shape: Shape, times: &[u64], at_end: u64) -> Vec<Fired<u64>> {
        let mut windows = Windows::new(shape, None);
        let mut fired = Vec::new();
        for &time in times {
            tick(&mut windows, time, &mut fired);
            windows.add(time, time, &topic(), time, &mut fired);
        }
        tick(&mut windows, at_end, &mut fired);
        fired
    }

    fn items(fired: &[Fired<u64>]) -> Vec<Vec<u64>> {
        fired.iter().map(|window| window.items.clone()).collect()
    }

    #[test]
    fn windows_by_count() {
        assert_eq!(items(&count(3, 3, 7)), [vec![1, 2, 3], vec![4, 5, 6]]);
        assert_eq!(
            items(&count(3, 1, 4)),
            [vec![1], vec![1, 2], vec![1, 2, 3], vec![2, 3, 4]]
        );
        assert_eq!(items(&count(1, 3, 7)), [vec![3], vec![6]]);
        let done: Vec<_> = count(3, 2, 8)
            .into_iter()
            .map(|window| window.done)
            .collect();
        assert_eq!(done, [vec![1], vec![2, 3], vec![4, 5], vec![6, 7]]);
    }

    #[test]
    fn windows_by_time() {
        let tumbling = Shape::Time {
            length_ms: 10,
            slide_ms: 10,
        };
        let fired = timed(tumbling, &[1, 9, 10, 35], 40);
        assert_eq!(items(&fired), [vec![1, 9], vec![10], vec![35]]);
        let spans: Vec<_> = fired.iter().map(|w| (w.start_ms, w.end_ms)).collect();
        assert_eq!(spans, [(0, 10), (10, 20), (30, 40)]);
        let sliding = Shape::Time {
            length_ms: 10,
            slide_ms: 5,
        };
        assert_eq!(
            items(&timed(sliding, &[1, 7], 20)),
            [vec![1], vec![1, 7], vec![7]]
        );
        let session = Shape::Session { gap_ms: 5 };
        assert_eq!(
            items(&timed(session, &[1, 5, 9, 14, 30], 34)),
            [vec![1, 5, 9], vec![14]]
        );
    }

    /// Of topics that match a pattern nobody knows whether there are more.
    #[test]
    fn the_watermark_waits_for_what_is_named_whatever_else_comes() {
        let shape = Shape::Time {
            length_ms: 10,
            slide_ms: 10,
        };
        let event_time = EventTime {
            lag_ms: 0,
            emit_ms: 100,
            topics: 1,
        };
        let (named, other): (Arc<str>, Arc<str>) = ("named".into(), "other".into());
        let windows = Windows::new(shape, Some(event_time));
        let mut windows = windows.waiting_for([named.clone()].into());
        let mut fired = Vec::new();
        windows.add(0, 25, &other, 25, &mut fired);
        windows.tick(100, &mut fired);
        assert_eq!(windows.add(150, 5, &named, 5, &mut fired), Added::Held);
        windows.add(150, 12, &named, 12, &mut fired);
        windows.tick(250, &mut fired);
        assert_eq!(items(&fired), [vec![5]]);
    }

    #[test]
    fn the_watermark_waits_for_all_topics_and_what_is_behind_it_is_late() {
        let shape = Shape::Time {
            length_ms: 10,
            slide_ms: 10,
        };
        let event_time = EventTime {
            lag_ms: 3,
            emit_ms: 100,
            topics: 2,
        };
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let mut windows = Windows::new(shape, Some(event_time));
        let mut fired = Vec::new();
        windows.add(0, 5, &a, 5, &mut fired);
        windows.add(0, 25, &a, 25, &mut fired);
        windows.tick(100, &mut fired);
        assert!(fired.is_empty(), "b was not heard of");
        windows.add(150, 14, &b, 14, &mut fired);
        assert_eq!(windows.next_tick(), Some(250));
        windows.tick(249, &mut fired);
        assert!(fired.is_empty(), "not yet");
        // The watermark is 14 - 3.
        windows.tick(250, &mut fired);
        assert_eq!(items(&fired), [vec![5]]);
        assert_eq!(windows.add(260, 10, &b, 10, &mut fired), Added::Late);
        assert_eq!(windows.add(260, 11, &b, 11, &mut fired), Added::Held);
        windows.add(260, 30, &b, 30, &mut fired);
        windows.tick(360, &mut fired);
        assert_eq!(items(&fired[1..]), [vec![11, 14]]);
        assert_eq!(windows.len(), 2);
    }

    #[test]
    fn a_time_that_lies_ahead_makes_nothing_late() {
        let shape = Shape::Time {
            length_ms: 1000,
            slide_ms: 1000,
        };
        let event_time = EventTime {
            lag_ms: 10,
            emit_ms: 1,
            topics: 1,
        };
        let now = 1_700_000_000_000;
        let mut windows = Windows::new(shape, Some(event_time));
        let mut fired = Vec::new();
        let year = 365 * 24 * 3_600_000;
        assert_eq!(
            windows.add(now, now + year, &topic(), 1, &mut fired),
            Added::Held
        );
        tick(&mut windows, now + 1, &mut fired);
        // The clock has moved on by what clocks may differ, and a little.
        let later = now + AHEAD_MS + 1;
        assert_eq!(
            windows.add(later, later, &topic(), 2, &mut fired),
            Added::Held
        );
        for times in [u64::MAX, TIME_MAX + 1] {
            assert_eq!(
                windows.add(later, times, &topic(), 3, &mut fired),
                Added::Late
            );
        }
        tick(&mut windows, later + 1, &mut fired);
        assert_eq!(windows.len(), 2);
    }

    #[test]
    fn the_end_completes_what_there_is() {
        for (length, slide, messages, wanted) in [
            (3, 3, 5, vec![vec![1, 2, 3], vec![4, 5]]),
            (3, 3, 3, vec![vec![1, 2, 3]]),
            (3, 2, 3, vec![vec![1, 2], vec![2, 3]]),
            (2, 4, 5, vec![vec![3, 4]]),
            (2, 4, 7, vec![vec![3, 4], vec![7]]),
        ] {
            let mut windows = Windows::new(Shape::Count { length, slide }, None);
            let mut fired = Vec::new();
            for n in 1..=messages {
                windows.add(0, n, &topic(), n, &mut fired);
            }
            windows.finish();
            tick(&mut windows, 0, &mut fired);
            assert_eq!(items(&fired), wanted, "{length} {slide}");
            assert_eq!((windows.len(), windows.next_tick()), (0, None));
        }
        let sliding = Shape::Time {
            length_ms: 100,
            slide_ms: 1,
        };
        let mut windows = Windows::new(sliding, None);
        let mut fired = Vec::new();
        windows.add(5, 5, &topic(), 5, &mut fired);
        windows.finish();
        windows.tick(6, &mut fired);
        assert_eq!(fired.len(), TICK_MAX, "a few at once");
        tick(&mut windows, 6, &mut fired);
        assert_eq!((fired.len(), windows.next_tick()), (100, None));
    }

    fn shapes() -> impl Strategy<Value = Shape> {
        prop_oneof![
            (1_u64..30, 1_u64..30).prop_map(|(length_ms, slide_ms)| Shape::Time {
                length_ms,
                slide_ms
            }),
            (1_u64..10).prop_map(|gap_ms| Shape::Session { gap_ms }),
        ]
    }

    proptest! {
        #[test]
        fn each_message_is_done_once_after_its_last_window(
            shape in shapes(),
            mut times in proptest::collection::vec(0_u64..200, 0..60),
        ) {
            times.sort_unstable();
            let mut windows = Windows::new(shape, None);
            let mut fired = Vec::new();
            let mut skipped = Vec::new();
            for (n, &time) in times.iter().enumerate() {
                tick(&mut windows, time, &mut fired);
                if windows.add(time, time, &topic(), n, &mut fired) == Added::Skipped {
                    skipped.push(n);
                }
            }
            tick(&mut windows, 1000, &mut fired);
            prop_assert_eq!(windows.len(), 0);
            let mut done: Vec<usize> = skipped.clone();
            for (at, window) in fired.iter().enumerate() {
                prop_assert!(!window.items.is_empty());
                prop_assert!(at == 0 || fired[at - 1].end_ms < window.end_ms);
                for item in &window.items {
                    prop_assert!(!done.contains(item), "in a window after it was done");
                    prop_assert!((window.start_ms..window.end_ms).contains(&times[*item]));
                }
                done.extend(&window.done);
            }
            done.sort_unstable();
            prop_assert_eq!(done, (0..times.len()).collect::<Vec<_>>());
            // As the definition has it.
            if let Shape::Time { length_ms, slide_ms } = shape {
                let mut wanted = Vec::new();
                for end in (1..=400 / slide_ms).map(|k| k * slide_ms) {
                    let inside = |n: &usize| times[*n] < end && times[*n] + length_ms >= end;
                    let inside: Vec<usize> = (0..times.len()).filter(inside).collect();
                    if !inside.is_empty() {
                        wanted.push(inside);
                    }
                }
                let got: Vec<_> = fired.iter().map(|window| window.items.clone()).collect();
                prop_assert_eq!(got, wanted);
            }
        }

        #[test]
        fn no_event_time_breaks_windows(
            shape in shapes(),
            times in proptest::collection::vec(
                prop_oneof![0_u64..60, Just(u64::MAX), Just(TIME_MAX), Just(u64::MAX / 2), any::<u64>()],
                0..40,
            ),
            lag_ms in prop_oneof![0_u64..30, Just(u64::MAX)],
        ) {
            let event_time = EventTime { lag_ms, emit_ms: 2, topics: 1 };
            let mut windows = Windows::new(shape, Some(event_time));
            let mut fired = Vec::new();
            let mut held = Vec::new();
            for (n, &time) in times.iter().enumerate() {
                // As the shell does: not all that may fire does at once.
                windows.tick(n as u64, &mut fired);
                if windows.add(n as u64, time, &topic(), n, &mut fired) == Added::Held {
                    held.push(n);
                }
                if let Shape::Session { gap_ms } = shape {
                    let mut scanned: Option<u64> = None;
                    for (time, _) in windows.timed.keys() {
                        if scanned.is_none_or(|last| time - last < gap_ms) {
                            scanned = Some(*time);
                        } else {
                            break;
                        }
                    }
                    prop_assert_eq!(windows.session_last, scanned);
                }
            }
            // Windows between two times far apart are not walked through one by one.
            windows.finish();
            tick(&mut windows, 100, &mut fired);
            prop_assert_eq!(windows.len(), 0);
            let mut done: Vec<usize> = fired.iter().flat_map(|window| window.done.clone()).collect();
            done.sort_unstable();
            prop_assert_eq!(done, held);
            for window in &fired {
                let inside = |n: &usize| (window.start_ms..window.end_ms).contains(&times[*n]);
                prop_assert!(window.items.iter().all(inside));
            }
        }

        #[test]
        fn windows_by_count_are_as_defined(length in 1_usize..12, slide in 1_usize..12, messages in 0_u64..60) {
            let fired = count(length, slide, messages);
            let mut done = Vec::new();
            for (window, end) in fired.iter().zip((1..).map(|k| k * slide as u64)) {
                let start = end.saturating_sub(length as u64) + 1;
                prop_assert_eq!(&window.items, &(start..=end).collect::<Vec<_>>());
                prop_assert!(window.items.iter().all(|item| !done.contains(item)));
                done.extend(&window.done);
            }
            prop_assert_eq!(fired.len() as u64, messages / slide as u64);
            prop_assert!(done.is_sorted());
        }
    }
}
