//! Where entries wait between the connections and the consumer: one queue for all its topics.
//! Permits bound it.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use super::decode::Entry;
use crate::error::{Error, Result};

#[derive(Debug, Default)]
pub(super) struct Inbox {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: VecDeque<Entry>,
    waker: Option<Waker>,
    over: Option<Error>,
}

impl Inbox {
    /// Takes all entries of a socket read with one lock and one wake-up.
    pub(super) fn push(&self, entries: &mut Vec<Entry>) {
        let waker = {
            let mut state = self.state.lock();
            if state.over.is_some() {
                entries.clear();
                return;
            }
            state.entries.extend(entries.drain(..));
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The consumer gets this once its entries are read.
    pub(super) fn end(&self, error: Error) {
        let waker = {
            let mut state = self.state.lock();
            state.over.get_or_insert(error);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Swaps what is there into `entries`, which is empty.
    pub(super) fn poll_take(
        &self,
        entries: &mut VecDeque<Entry>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<()>> {
        let mut state = self.state.lock();
        if !state.entries.is_empty() {
            std::mem::swap(&mut state.entries, entries);
            return Poll::Ready(Ok(()));
        }
        if let Some(error) = &state.over {
            return Poll::Ready(Err(error.clone()));
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// As [`poll_take`](Inbox::poll_take), without waiting. False if there is nothing.
    pub(super) fn try_take(&self, entries: &mut VecDeque<Entry>) -> bool {
        let mut state = self.state.lock();
        std::mem::swap(&mut state.entries, entries);
        !entries.is_empty()
    }
}
