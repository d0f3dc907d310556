//! Where receipts wait for their messages: a slab of slots in the producer's state. A receipt
//! costs no channel and no allocation of its own.

use std::task::{Context, Poll, Waker};

use geminga_proto::MessageId;

use crate::error::{Error, Result};

/// The slot of a message whose receipt nobody wants.
pub(super) const NO_SLOT: u32 = u32::MAX;

#[derive(Debug)]
enum Slot {
    Free,
    Waiting(Option<Waker>),
    /// Nobody waits any more; the slot is freed when its message is done.
    Abandoned,
    Done(Result<MessageId>),
}

#[derive(Debug, Default)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Slots {
    pub(super) fn insert(&mut self) -> u32 {
        match self.free.pop() {
            Some(index) => {
                self.slots[index as usize] = Slot::Waiting(None);
                index
            }
            None => {
                self.slots.push(Slot::Waiting(None));
                // The window is far below this number.
                (self.slots.len() - 1) as u32
            }
        }
    }

    /// The message is done. What is to be woken goes to `wakers`.
    pub(super) fn complete(
        &mut self,
        index: u32,
        result: impl FnOnce() -> Result<MessageId>,
        wakers: &mut Vec<Waker>,
    ) {
        if index == NO_SLOT {
            return;
        }
        let slot = &mut self.slots[index as usize];
        match slot {
            Slot::Waiting(waker) => {
                wakers.extend(waker.take());
                *slot = Slot::Done(result());
            }
            Slot::Abandoned => self.release(index),
            // Completed twice or never begun: not possible while a frame owns its slots.
            Slot::Free | Slot::Done(_) => debug_assert!(false, "slot {index} is not waited for"),
        }
    }

    /// For the receipt: its result, which frees the slot.
    pub(super) fn poll(&mut self, index: u32, cx: &mut Context<'_>) -> Poll<Result<MessageId>> {
        let slot = &mut self.slots[index as usize];
        match slot {
            Slot::Waiting(waker) => {
                match waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    None => *waker = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
            Slot::Done(_) => {
                let Slot::Done(result) = std::mem::replace(slot, Slot::Free) else {
                    return Poll::Ready(Err(Error::Closed));
                };
                self.free.push(index);
                Poll::Ready(result)
            }
            Slot::Free | Slot::Abandoned => Poll::Ready(Err(Error::Closed)),
        }
    }

    /// The receipt is dropped without its result.
    pub(super) fn abandon(&mut self, index: u32) {
        match &mut self.slots[index as usize] {
            slot @ Slot::Waiting(_) => *slot = Slot::Abandoned,
            Slot::Done(_) => self.release(index),
            Slot::Free | Slot::Abandoned => {}
        }
    }

    fn release(&mut self, index: u32) {
        self.slots[index as usize] = Slot::Free;
        self.free.push(index);
    }

    #[cfg(test)]
    fn used(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_used_again_whichever_side_ends_first() {
        let mut slots = Slots::default();
        let mut wakers = Vec::new();
        let mut cx = Context::from_waker(Waker::noop());
        let id = MessageId::entry(1, 2);
        let (waited, dropped_early, dropped_late) =
            (slots.insert(), slots.insert(), slots.insert());
        assert!(slots.poll(waited, &mut cx).is_pending());
        slots.abandon(dropped_early);
        for slot in [waited, dropped_early, dropped_late, NO_SLOT] {
            slots.complete(slot, || Ok(id), &mut wakers);
        }
        slots.abandon(dropped_late);
        assert_eq!((wakers.len(), slots.used()), (1, 1));
        assert!(matches!(slots.poll(waited, &mut cx), Poll::Ready(Ok(got)) if got == id));
        assert_eq!(slots.used(), 0);
        slots.insert();
        assert_eq!(slots.slots.len(), 3);
    }
}
