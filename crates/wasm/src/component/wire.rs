//! The adapter's end of the conversation: frames in, outcomes and requests out, in the order that the
//! protocol wants. Shared by the loop and by what the guest calls; never both at once.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::AsyncWrite;

use crate::frames::{self, Frame, Wrong};
use crate::guest::Wires;
use crate::pipe::Pipe;

/// Outcomes are sent when they are so many bytes.
const FLUSH_BYTES: usize = 64 * 1024;

/// An output of a message: its header block and its payload.
#[derive(Debug)]
pub(super) struct Published {
    pub(super) block: Vec<u8>,
    pub(super) payload: Vec<u8>,
}

/// See the module. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Wire {
    wires: Wires,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    input: BytesMut,
    /// Came while an answer was awaited.
    kept: VecDeque<Frame>,
    outcomes: Vec<u8>,
    count: u32,
    asked: u64,
}

impl Wire {
    pub(super) fn new(wires: Wires) -> Self {
        Self {
            wires,
            inner: Arc::default(),
        }
    }

    /// The next frame; `None` when the worker has let go.
    pub(super) async fn next(&self) -> Result<Option<Frame>, Wrong> {
        if let Some(kept) = self.inner.lock().kept.pop_front() {
            return Ok(Some(kept));
        }
        self.read().await
    }

    async fn read(&self) -> Result<Option<Frame>, Wrong> {
        loop {
            {
                let mut inner = self.inner.lock();
                if let Some(frame) = frames::cut(&mut inner.input)? {
                    return Ok(Some(frame));
                }
            }
            self.wires.input.readable().await;
            if self.wires.input.has_bytes().is_none() {
                return Ok(None);
            }
            let more = self.wires.input.take();
            let mut inner = self.inner.lock();
            if inner.input.is_empty() {
                inner.input = more;
            } else {
                inner.input.extend_from_slice(&more);
            }
        }
    }

    pub(super) fn ready(&self) {
        let mut out = Vec::new();
        let pairs = [("protocol", "1"), ("language", "wasm component")];
        frames::with_block(&mut out, b'R', &pairs, &[]);
        self.wires.output.push(&out);
    }

    pub(super) fn pong(&self) {
        let mut out = Vec::new();
        frames::frame(&mut out, b'G', |_| {});
        self.wires.output.push(&out);
    }

    /// Says what became of a message; it is sent with the next flush.
    pub(super) fn outcome(
        &self,
        number: u64,
        verdict: u8,
        reason: &str,
        own: Option<&[u8]>,
        published: &[Published],
    ) {
        let mut inner = self.inner.lock();
        inner.count += 1;
        let out = &mut inner.outcomes;
        out.extend_from_slice(&number.to_le_bytes());
        out.push(verdict);
        frames::length(out, usize::from(own.is_some()) + published.len());
        frames::length(out, reason.len());
        out.extend_from_slice(reason.as_bytes());
        let own = own.map(|payload| (&[][..], payload));
        let published = published.iter().map(|p| (&p.block[..], &p.payload[..]));
        for (block, payload) in own.into_iter().chain(published) {
            frames::length(out, block.len());
            frames::length(out, payload.len());
            out.extend_from_slice(block);
            out.extend_from_slice(payload);
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.inner.lock().outcomes.len() >= FLUSH_BYTES
    }

    /// Sends the outcomes that wait.
    pub(super) fn flush(&self) {
        let mut inner = self.inner.lock();
        if inner.count == 0 {
            return;
        }
        let mut head = Vec::with_capacity(16);
        let (count, outcomes) = (inner.count, std::mem::take(&mut inner.outcomes));
        inner.count = 0;
        drop(inner);
        frames::frame(&mut head, b'O', |out| {
            out.extend_from_slice(&count.to_le_bytes())
        });
        let digits = format!("{:09}", outcomes.len() + 4);
        head[2..frames::HEAD_BYTES - 1].copy_from_slice(&digits.as_bytes()[digits.len() - 9..]);
        head.extend_from_slice(&outcomes);
        self.wires.output.push(&head);
    }

    pub(super) async fn room(&self) {
        self.wires.output.room().await;
    }

    /// A request that needs no answer. Outcomes go first, so that the order of events stays true.
    pub(super) async fn request(&self, pairs: &[(&str, &str)], payload: &[u8]) {
        self.send(b'Q', pairs, payload).await;
    }

    /// One frame of any kind.
    pub(super) async fn send(&self, kind: u8, pairs: &[(&str, &str)], payload: &[u8]) {
        self.flush();
        // Who floods waits for who reads.
        self.room().await;
        let mut out = Vec::new();
        frames::with_block(&mut out, kind, pairs, payload);
        self.wires.output.push(&out);
    }

    /// The value of a key; other frames are kept meanwhile.
    pub(super) async fn state(&self, key: &str) -> Result<Option<Bytes>, Wrong> {
        let ask = {
            let mut inner = self.inner.lock();
            inner.asked += 1;
            inner.asked.to_string()
        };
        self.request(&[("op", "state.get"), ("ask", &ask), ("key", key)], &[])
            .await;
        while let Some(frame) = self.read().await? {
            if frame.kind != b'A' {
                self.inner.lock().kept.push_back(frame);
                continue;
            }
            let (block, value) = frames::block_and_rest(frame.body)?;
            let is = |wanted: (&str, &str)| {
                frames::pairs(&block).any(|(name, text)| (&*name, &*text) == wanted)
            };
            if is(("ask", &ask)) {
                return Ok(is(("found", "1")).then_some(value));
            }
        }
        Ok(None)
    }
}

/// A writer of a pipe that leaves it open when it goes: a guest may take its standard output several times.
pub(super) struct Shared(pub(super) Pipe);

impl AsyncWrite for Shared {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.0.poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
