//! A pipe within the process: bytes from one task to another, with room for so many and no more.
//!
//! The guest's side looks and copies without waiting, since a system call of a guest may not want to
//! wait; the worker's side is an ordinary stream.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that wait before the writer does.
pub(crate) const ROOM_BYTES: usize = 256 * 1024;
/// An empty pipe gives larger buffers back.
const KEEP_BYTES: usize = 16 * 1024;

#[derive(Debug, Default)]
struct State {
    bytes: BytesMut,
    closed: bool,
    reader: Option<Waker>,
    /// A guest may take its log several times: each copy writes in a task of its own.
    writers: Vec<Waker>,
}

impl State {
    fn wake_reader(&mut self) {
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }

    fn wake_writers(&mut self) {
        for waker in self.writers.drain(..) {
            waker.wake();
        }
    }

    /// After bytes were taken.
    fn taken(&mut self) {
        if self.bytes.is_empty() && self.bytes.capacity() > KEEP_BYTES {
            self.bytes = BytesMut::new();
        }
        if self.bytes.len() < ROOM_BYTES {
            self.wake_writers();
        }
    }
}

/// One pipe; clones are the same. One task reads.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pipe {
    state: Arc<Mutex<State>>,
}

impl Pipe {
    /// Puts bytes in, beyond the room too: who may flood waits for `room` first. False when it is closed.
    pub(crate) fn push(&self, bytes: &[u8]) -> bool {
        let mut state = self.state.lock();
        if state.closed {
            return false;
        }
        state.bytes.extend_from_slice(bytes);
        state.wake_reader();
        true
    }

    /// Nothing more will be written; what is in can still be read.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.wake_reader();
        state.wake_writers();
    }

    /// Bytes that fit now; `None` when it is closed.
    pub(crate) fn has_room(&self) -> Option<usize> {
        let state = self.state.lock();
        (!state.closed).then(|| ROOM_BYTES.saturating_sub(state.bytes.len()))
    }

    /// Bytes that can be read now; `None` at the end.
    pub(crate) fn has_bytes(&self) -> Option<usize> {
        let state = self.state.lock();
        match state.bytes.len() {
            0 if state.closed => None,
            count => Some(count),
        }
    }

    /// Copies bytes out, as many as there are and fit.
    pub(crate) fn read(&self, into: &mut [u8]) -> usize {
        let mut state = self.state.lock();
        let count = into.len().min(state.bytes.len());
        state.bytes.copy_to_slice(&mut into[..count]);
        state.taken();
        count
    }

    /// Takes all that there is.
    pub(crate) fn take(&self) -> BytesMut {
        let mut state = self.state.lock();
        let bytes = std::mem::take(&mut state.bytes);
        state.taken();
        bytes
    }

    /// Ready when there is something to read, or the end.
    pub(crate) fn poll_readable(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if !state.bytes.is_empty() || state.closed {
            return Poll::Ready(());
        }
        state.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Ready when there is room, or nobody reads.
    pub(crate) fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.bytes.len() < ROOM_BYTES || state.closed {
            return Poll::Ready(());
        }
        if !state
            .writers
            .iter()
            .any(|known| known.will_wake(cx.waker()))
        {
            state.writers.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Puts in what there is room for, or waits for room.
    pub(crate) fn poll_write(&self, cx: &Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        if self.poll_room(cx).is_pending() {
            return Poll::Pending;
        }
        let count = buf.len().min(ROOM_BYTES);
        Poll::Ready(if self.push(&buf[..count]) {
            Ok(count)
        } else {
            Err(std::io::ErrorKind::BrokenPipe.into())
        })
    }

    pub(crate) async fn readable(&self) {
        std::future::poll_fn(|cx| self.poll_readable(cx)).await;
    }

    pub(crate) async fn room(&self) {
        std::future::poll_fn(|cx| self.poll_room(cx)).await;
    }
}

/// The worker's end, for reading. Dropping it closes the pipe.
#[derive(Debug)]
pub(crate) struct ReadEnd(pub(crate) Pipe);

impl AsyncRead for ReadEnd {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let mut state = self.0.state.lock();
        if state.bytes.is_empty() && !state.closed {
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = buf.remaining().min(state.bytes.len());
        buf.put_slice(&state.bytes[..count]);
        state.bytes.advance(count);
        state.taken();
        Poll::Ready(Ok(()))
    }
}

impl Drop for ReadEnd {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// An end for writing. Dropping it closes the pipe.
#[derive(Debug)]
pub(crate) struct WriteEnd(pub(crate) Pipe);

impl AsyncWrite for WriteEnd {
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
        self.0.close();
        Poll::Ready(Ok(()))
    }
}

impl Drop for WriteEnd {
    fn drop(&mut self) {
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_writer_waits_for_room_and_all_bytes_come_in_order() {
        let pipe = Pipe::default();
        let (mut writer, mut reader) = (WriteEnd(pipe.clone()), ReadEnd(pipe));
        let given: Vec<u8> = (0..3 * ROOM_BYTES).map(|n| (n % 251) as u8).collect();
        let wanted = given.clone();
        let writing = async move {
            writer.write_all(&given).await.expect("read");
        };
        let reading = async {
            let mut read = Vec::new();
            reader.read_to_end(&mut read).await.expect("read");
            read
        };
        let ((), read) = tokio::join!(writing, reading);
        assert!(read == wanted);
    }

    #[tokio::test]
    async fn all_who_wait_for_room_go_on() {
        let pipe = Pipe::default();
        assert!(pipe.push(&vec![0; ROOM_BYTES]));
        let (tasks, woken) = (geminga_stdx::Tasks::new(), Arc::new(Mutex::new(0)));
        for _ in 0..2 {
            let (pipe, woken) = (pipe.clone(), woken.clone());
            tasks.spawn_cancellable("a writer", async move {
                pipe.room().await;
                *woken.lock() += 1;
            });
        }
        while pipe.state.lock().writers.len() < 2 {
            tokio::task::yield_now().await;
        }
        pipe.take();
        tasks.join(std::time::Duration::from_secs(5)).await;
        assert_eq!(*woken.lock(), 2);
    }

    #[tokio::test]
    async fn a_closed_pipe_gives_its_rest_and_takes_nothing() {
        let pipe = Pipe::default();
        assert!(pipe.push(b"rest"));
        pipe.close();
        assert!(!pipe.push(b"more"));
        let mut all = [0; 8];
        assert_eq!(pipe.has_bytes(), Some(4));
        assert_eq!(pipe.read(&mut all), 4);
        assert_eq!((pipe.has_bytes(), pipe.has_room()), (None, None));
    }
}
