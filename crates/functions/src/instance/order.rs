//! The line of messages in flight: things go in by number and come out in that order, each when it
//! is finished. Pure.

use std::collections::VecDeque;

/// A line of `T`s, each of which gets its `R`.
#[derive(Debug)]
pub(crate) struct Line<T, R> {
    slots: VecDeque<Option<(T, Option<R>)>>,
    /// The number of the first slot.
    base: u64,
    /// Slots that are not taken out.
    held: usize,
}

impl<T, R> Line<T, R> {
    pub(crate) fn new() -> Self {
        Self {
            slots: VecDeque::new(),
            base: 0,
            held: 0,
        }
    }

    /// Adds at the end and gives the number.
    pub(crate) fn push(&mut self, thing: T) -> u64 {
        self.slots.push_back(Some((thing, None)));
        self.held += 1;
        self.base + self.slots.len() as u64 - 1
    }

    fn slot(&mut self, number: u64) -> Option<&mut Option<(T, Option<R>)>> {
        let index = usize::try_from(number.checked_sub(self.base)?).ok()?;
        self.slots.get_mut(index)
    }

    pub(crate) fn get(&mut self, number: u64) -> Option<&T> {
        self.slot(number)?.as_ref().map(|(thing, _)| thing)
    }

    pub(crate) fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        self.slot(number)?.as_mut().map(|(thing, _)| thing)
    }

    /// Gives `number` its result. Unknown numbers are ignored.
    pub(crate) fn finish(&mut self, number: u64, result: R) {
        if let Some(Some((_, slot))) = self.slot(number) {
            *slot = Some(result);
        }
    }

    /// Forgets all results; gives what is in line, in order.
    pub(crate) fn restart(&mut self) -> impl Iterator<Item = (u64, &T)> {
        let numbers = self.base..;
        let slots = numbers.zip(self.slots.iter_mut());
        slots.filter_map(|(number, slot)| {
            let (thing, result) = slot.as_mut()?;
            *result = None;
            Some((number, &*thing))
        })
    }

    /// Takes `number` out of line: those behind it wait for it no longer.
    pub(crate) fn take_out(&mut self, number: u64) -> Option<T> {
        let (thing, _) = self.slot(number)?.take()?;
        self.held -= 1;
        Some(thing)
    }

    /// The head of the line, if it is finished.
    pub(crate) fn pop_finished(&mut self) -> Option<(T, R)> {
        while matches!(self.slots.front(), Some(None)) {
            self.slots.pop_front();
            self.base += 1;
        }
        if !matches!(self.slots.front(), Some(Some((_, Some(_))))) {
            return None;
        }
        self.base += 1;
        self.held -= 1;
        match self.slots.pop_front() {
            Some(Some((thing, Some(result)))) => Some((thing, result)),
            _ => None,
        }
    }

    /// Whether `number` has left the line, or was taken out of its head.
    pub(crate) fn is_past(&self, number: u64) -> bool {
        number < self.base
    }

    /// The number of the last one that left.
    pub(crate) fn last_out(&self) -> u64 {
        self.base.saturating_sub(1)
    }

    pub(crate) fn len(&self) -> usize {
        self.held
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.held == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_that_is_taken_out_does_not_hold_the_others() {
        let mut line = Line::new();
        let (a, b, c) = (line.push('a'), line.push('b'), line.push('c'));
        line.finish(c, 3);
        line.finish(b, 2);
        assert_eq!(line.pop_finished(), None);
        assert_eq!(line.take_out(a), Some('a'));
        assert_eq!(line.pop_finished(), Some(('b', 2)));
        assert_eq!(line.pop_finished(), Some(('c', 3)));
        assert!(line.is_empty());
    }

    #[test]
    fn a_restart_gives_all_in_line_and_forgets_their_results() {
        let mut line = Line::new();
        let (a, b, c) = (line.push('a'), line.push('b'), line.push('c'));
        line.finish(a, 1);
        line.finish(c, 3);
        assert_eq!(line.pop_finished(), Some(('a', 1)));
        let again: Vec<_> = line.restart().map(|(n, thing)| (n, *thing)).collect();
        assert_eq!(again, [(b, 'b'), (c, 'c')]);
        line.finish(b, 4);
        assert_eq!(
            (line.pop_finished(), line.pop_finished()),
            (Some(('b', 4)), None)
        );
    }

    proptest! {
        #[test]
        fn whatever_the_order_of_results_things_leave_in_the_order_they_came(order in Just((0..50_u64).collect::<Vec<_>>()).prop_shuffle()) {
            let mut line = Line::new();
            for n in 0..50 {
                prop_assert_eq!(line.push(n), n);
            }
            let mut left = Vec::new();
            for n in order {
                line.finish(n, ());
                while let Some((thing, ())) = line.pop_finished() {
                    left.push(thing);
                }
            }
            prop_assert_eq!(left, (0..50).collect::<Vec<_>>());
        }
    }
}
