//! Outputs that a topic does not take for their size, where its own limit is below the broker's.
//!
//! A client learns of such a limit by a refusal alone, and that comes when the message has left the line. So
//! the instance begins again, and sends what is made of the messages in question one by one, waiting for the
//! answer: the one that is refused is given up, as one over the broker's limit is.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use geminga_client::{Error, ServerError};
use parking_lot::Mutex;

use super::place_of;
use crate::runtime::{Message, Output};

/// Messages that are remembered.
const SUSPECTS_MAX: usize = 1000;
/// After so many refusals for which no output was to blame it is the batches that are too large.
const UNFOUND_MAX: u32 = 2;
/// After so many, beginning again is no way to find it.
const HOPEFUL_MAX: u32 = 8;

/// Which outputs are sent alone. It outlives a run of its instance.
#[derive(Debug)]
pub(crate) struct Refusals {
    /// Messages of which an output, or the letter, may have been refused, and for how many of both that holds.
    suspects: Mutex<HashMap<String, u8>>,
    /// So many messages from now on, where they come again in their order.
    next: AtomicUsize,
    /// Outputs of so many bytes.
    least: AtomicUsize,
    /// Refusals since one was found to be of an output.
    unfound: AtomicU32,
    /// One has ended the run.
    fresh: AtomicBool,
    no_batches: AtomicBool,
    /// Messages whose letters were refused whole.
    bare: Mutex<HashSet<String>>,
}

impl Default for Refusals {
    fn default() -> Self {
        Self {
            suspects: Mutex::default(),
            next: AtomicUsize::new(0),
            least: AtomicUsize::new(usize::MAX),
            unfound: AtomicU32::new(0),
            fresh: AtomicBool::new(false),
            no_batches: AtomicBool::new(false),
            bare: Mutex::default(),
        }
    }
}

/// Whether the broker refused this message, and would refuse it again.
pub(crate) fn is_refusal(error: &Error) -> bool {
    error.server_error() == Some(ServerError::NotAllowedError)
}

impl Refusals {
    /// One of what was made of these was refused.
    pub(crate) fn suspect(&self, places: impl Iterator<Item = String>) {
        self.count();
        let mut suspects = self.suspects.lock();
        for place in places {
            if suspects.len() >= SUSPECTS_MAX {
                break;
            }
            suspects.insert(place, 2);
        }
    }

    /// One of what was made of the messages that come next was refused.
    pub(crate) fn suspect_next(&self, messages: usize) {
        self.count();
        self.next.store(messages, Ordering::Relaxed);
    }

    fn count(&self) {
        self.fresh.store(true, Ordering::Relaxed);
        if self.unfound.fetch_add(1, Ordering::Relaxed) + 1 >= UNFOUND_MAX {
            self.no_batches.store(true, Ordering::Relaxed);
        }
    }

    /// Whether what is made of a message goes alone. Asked once for its outputs, and once for its letter.
    pub(crate) fn is_suspect(&self, message: &Message) -> bool {
        let less = |next: usize| next.checked_sub(1);
        let next = &self.next;
        if next.load(Ordering::Relaxed) > 0
            && next
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
                .is_ok()
        {
            return true;
        }
        let mut suspects = self.suspects.lock();
        if suspects.is_empty() {
            return false;
        }
        let place = place_of(&message.topic, &message.id);
        let Some(left) = suspects.get_mut(&place) else {
            return false;
        };
        *left -= 1;
        if *left == 0 {
            suspects.remove(&place);
        }
        true
    }

    /// Whether these are as large as what was refused.
    pub(crate) fn are_large(&self, outputs: &[Output]) -> bool {
        let least = self.least.load(Ordering::Relaxed);
        least < usize::MAX && outputs.iter().any(|output| output.payload.len() >= least)
    }

    /// An output was refused, for its size where that is given.
    pub(crate) fn found(&self, bytes: Option<usize>) {
        if let Some(bytes) = bytes {
            self.least.fetch_min(bytes, Ordering::Relaxed);
        }
        self.unfound.store(0, Ordering::Relaxed);
    }

    /// The letter of a message was refused: it is to come without what the message held.
    pub(crate) fn found_letter(&self, message: &Message) {
        self.unfound.store(0, Ordering::Relaxed);
        let mut bare = self.bare.lock();
        if bare.len() >= SUSPECTS_MAX {
            // Others took them over long ago.
            bare.clear();
        }
        bare.insert(place_of(&message.topic, &message.id));
    }

    /// Whether the letter of a message is to come so.
    pub(crate) fn wants_bare(&self, message: &Message) -> bool {
        let bare = self.bare.lock();
        !bare.is_empty() && bare.contains(&place_of(&message.topic, &message.id))
    }

    /// Whether the run that just ended did so to find what was refused: the next one is not put off.
    pub(crate) fn take_ended(&self) -> bool {
        let unfound = self.unfound.load(Ordering::Relaxed);
        self.fresh.swap(false, Ordering::Relaxed) && unfound <= HOPEFUL_MAX
    }

    /// Whether outputs are sent one by one, and not many together.
    pub(crate) fn no_batches(&self) -> bool {
        self.no_batches.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(id: &str) -> Message {
        Message {
            topic: "t".into(),
            id: id.to_owned(),
            ..Message::default()
        }
    }

    #[test]
    fn what_may_have_been_refused_goes_alone_and_its_letter() {
        let refusals = Refusals::default();
        let [a, b] = ["0:1:-1", "0:2:-1"].map(message);
        assert!(!refusals.is_suspect(&a));
        refusals.suspect([place_of(&a.topic, &a.id)].into_iter());
        assert!(!refusals.is_suspect(&b) && !refusals.wants_bare(&a));
        refusals.found_letter(&a);
        assert!(refusals.wants_bare(&a) && !refusals.wants_bare(&b));
        assert!(refusals.is_suspect(&a) && refusals.is_suspect(&a) && !refusals.is_suspect(&a));
        refusals.suspect_next(2);
        assert!(refusals.is_suspect(&b) && refusals.is_suspect(&a) && !refusals.is_suspect(&a));
    }

    #[test]
    fn large_outputs_go_alone_and_batches_are_blamed_when_no_output_is() {
        let refusals = Refusals::default();
        let of = |bytes: usize| {
            [Output {
                payload: vec![0; bytes].into(),
                ..Output::default()
            }]
        };
        assert!(!refusals.are_large(&of(1 << 20)));
        refusals.suspect_next(1);
        refusals.found(Some(100));
        refusals.found(None);
        refusals.suspect_next(1);
        assert!(refusals.are_large(&of(100)) && !refusals.are_large(&of(99)));
        assert!(!refusals.no_batches());
        refusals.suspect_next(1);
        assert!(refusals.no_batches());
    }
}
