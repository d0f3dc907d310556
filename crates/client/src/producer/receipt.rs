//! What becomes of a message: a receipt, and many of them waited for together.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use geminga_proto::MessageId;

use super::state::Core;
use crate::error::{Error, Result};

/// What becomes of a message: resolves to its id when the broker has it.
#[must_use = "a failure shows only here"]
pub struct Receipt {
    /// Taken when the result is.
    pub(super) core: Option<Arc<Core>>,
    pub(super) slot: u32,
}

impl Receipt {
    /// Waits for all of them, in their order. It costs less than one after the other: those of one producer that
    /// are here already are taken together.
    ///
    /// # Errors
    /// The first failure, and which of them it is of. What comes after that one is not waited for.
    pub async fn all(mut receipts: Vec<Receipt>) -> Result<(), (usize, Error)> {
        let mut done = 0;
        poll_fn(|cx| {
            while let Some(core) = receipts.get(done).and_then(|next| next.core.clone()) {
                let same = |receipt: &Receipt| matches!(&receipt.core, Some(its) if Arc::ptr_eq(its, &core));
                let run = receipts[done..].iter().take_while(|receipt| same(receipt));
                let (taken, result) = core.poll_receipts(run.map(|receipt| receipt.slot), cx);
                for receipt in &mut receipts[done..done + taken] {
                    receipt.core = None;
                }
                done += taken;
                match result {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err((done - 1, error))),
                    Poll::Ready(Ok(())) => {}
                }
            }
            // One that gave its result before has none to give.
            match done < receipts.len() {
                true => Poll::Ready(Err((done, Error::Closed))),
                false => Poll::Ready(Ok(())),
            }
        })
        .await
    }
}

impl std::fmt::Debug for Receipt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receipt")
            .field("done", &self.core.is_none())
            .finish()
    }
}

impl Future for Receipt {
    type Output = Result<MessageId>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(core) = &self.core else {
            return Poll::Ready(Err(Error::Closed));
        };
        let result = core.poll_receipt(self.slot, cx);
        if result.is_ready() {
            self.core = None;
        }
        result
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if let Some(core) = &self.core {
            core.abandon_receipt(self.slot);
        }
    }
}
