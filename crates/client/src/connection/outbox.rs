//! What is to be written to a connection: small things joined into one piece, large payloads as
//! they are.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::{Bytes, BytesMut};
use geminga_proto::Command;
use geminga_proto::frame::encode_command;
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Payloads up to this are copied behind their heads: a copy costs less than one more piece in
/// the write.
const COPY_MAX: usize = 8 * 1024;

/// A buffer that has grown beyond this is given back after its write.
const KEEP_BYTES: usize = 1024 * 1024;

/// Pieces in one write call.
const SLICES_MAX: usize = 64;

/// What waits for the next write.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    full: VecDeque<Piece>,
    tail: Vec<u8>,
    scratch: BytesMut,
}

#[derive(Debug)]
enum Piece {
    Joined(Vec<u8>),
    Payload(Bytes),
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        match self {
            Piece::Joined(bytes) => bytes,
            Piece::Payload(bytes) => bytes,
        }
    }
}

impl Outbox {
    fn is_empty(&self) -> bool {
        self.full.is_empty() && self.tail.is_empty()
    }

    /// Appends a command. True if the outbox was empty: then somebody has to be woken.
    pub(super) fn push_command(&mut self, command: &Command) -> bool {
        let first = self.is_empty();
        self.scratch.clear();
        encode_command(command, &mut self.scratch);
        self.tail.extend_from_slice(&self.scratch);
        first
    }

    /// Appends a frame. True if the outbox was empty.
    pub(super) fn push_frame(&mut self, head: &Bytes, payload: &Bytes) -> bool {
        let first = self.is_empty();
        self.tail.extend_from_slice(head);
        if payload.len() <= COPY_MAX {
            self.tail.extend_from_slice(payload);
        } else {
            self.full
                .push_back(Piece::Joined(std::mem::take(&mut self.tail)));
            self.full.push_back(Piece::Payload(payload.clone()));
        }
        first
    }

    /// Moves everything to `writing`, which has been written out.
    pub(super) fn take(&mut self, writing: &mut Writing) {
        debug_assert!(writing.is_empty());
        writing.pieces.append(&mut self.full);
        if !self.tail.is_empty() {
            let spare = std::mem::take(&mut writing.spare);
            let tail = std::mem::replace(&mut self.tail, spare);
            writing.pieces.push_back(Piece::Joined(tail));
        }
    }
}

/// What is being written.
#[derive(Debug, Default)]
pub(super) struct Writing {
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that are written.
    done: usize,
    /// An empty buffer to be used again.
    spare: Vec<u8>,
}

impl Writing {
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Writes some of it. Cancel-safe: nothing is written twice or forgotten.
    pub(super) async fn write(&mut self, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let written = if self.pieces.len() == 1 {
            to.write(&self.pieces[0].bytes()[self.done..]).await?
        } else {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let mut count = 0;
            for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
                let skip = if count == 0 { self.done } else { 0 };
                *slice = IoSlice::new(&piece.bytes()[skip..]);
                count += 1;
            }
            to.write_vectored(&slices[..count]).await?
        };
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.advance(written);
        Ok(())
    }

    fn advance(&mut self, written: usize) {
        self.done += written;
        while let Some(first) = self.pieces.front() {
            let len = first.bytes().len();
            if self.done < len {
                break;
            }
            self.done -= len;
            if let Some(Piece::Joined(mut bytes)) = self.pieces.pop_front()
                && bytes.capacity() <= KEEP_BYTES
            {
                bytes.clear();
                self.spare = bytes;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes a few bytes a time.
    struct Narrow(Vec<u8>, usize);

    impl AsyncWrite for Narrow {
        fn poll_write(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            bytes: &[u8],
        ) -> std::task::Poll<io::Result<usize>> {
            let count = bytes.len().min(self.1);
            self.0.extend_from_slice(&bytes[..count]);
            std::task::Poll::Ready(Ok(count))
        }

        fn poll_flush(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            std::task::Poll::Ready(Ok(()))
        }

        fn poll_shutdown(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            std::task::Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn everything_is_written_once_and_in_order() {
        let small = Bytes::from_static(b"small");
        let large = Bytes::from(vec![7u8; COPY_MAX + 1]);
        for width in [1, 3, 5000, usize::MAX] {
            let mut outbox = Outbox::default();
            let mut expected = Vec::new();
            let mut first = true;
            for payload in [&small, &large, &large, &small, &small] {
                assert_eq!(
                    outbox.push_frame(&Bytes::from_static(b"head"), payload),
                    first
                );
                first = false;
                expected.extend_from_slice(b"head");
                expected.extend_from_slice(payload);
            }
            let mut writing = Writing::default();
            outbox.take(&mut writing);
            assert!(outbox.is_empty());
            let mut to = Narrow(Vec::new(), width);
            while !writing.is_empty() {
                writing.write(&mut to).await.unwrap();
            }
            assert!(to.0 == expected, "at {width} bytes a time");
        }
    }
}
