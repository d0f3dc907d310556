//! A pipe that is read in larger pieces when its writer is busy.
//!
//! A shell writes each answer by a write of its own. A reader that sleeps on the pipe is woken by each, and
//! takes the processor from the shell as often; that costs more than a small function does. So
//! a thread reads the pipe, and when answers come quickly it looks only now and then: nobody sleeps on
//! the pipe meanwhile, and the shell's write wakes nobody.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::mpsc;

/// How long a busy writer is left alone: what an answer waits at most. A pipe holds 64 KiB, a shell
/// fills a few of them meanwhile.
const GAP: Duration = Duration::from_micros(300);
const READ_BYTES: usize = 64 << 10;
/// Pieces that wait for the reader; then the thread waits, and at last the writer.
const PIECES: usize = 4;

/// The reading end.
#[derive(Debug)]
pub(super) struct Patient {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    rest: Bytes,
}

impl Patient {
    /// Takes a pipe over. Its thread ends when the pipe does, or at the first piece that nobody wants.
    ///
    /// # Errors
    /// When the pipe can not be made a blocking one, or no thread starts.
    pub(super) fn new(pipe: OwnedFd) -> io::Result<Self> {
        let flags = fcntl_getfl(&pipe)?;
        fcntl_setfl(&pipe, flags.difference(OFlags::NONBLOCK))?;
        let (pieces_in, pieces) = mpsc::channel(PIECES);
        std::thread::Builder::new()
            .name("geminga-pipe".to_owned())
            .spawn(move || read(File::from(pipe), &pieces_in))?;
        Ok(Self {
            pieces,
            rest: Bytes::new(),
        })
    }
}

fn read(mut pipe: File, pieces: &mpsc::Sender<io::Result<Bytes>>) {
    let mut buf = vec![0; READ_BYTES];
    let mut last: Option<Instant> = None;
    loop {
        let piece = match pipe.read(&mut buf) {
            Ok(0) => return,
            Ok(count) => Ok(Bytes::copy_from_slice(&buf[..count])),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Err(error),
        };
        let failed = piece.is_err();
        if pieces.blocking_send(piece).is_err() || failed {
            return;
        }
        let now = Instant::now();
        if last.is_some_and(|last| now - last < 2 * GAP) {
            std::thread::sleep(GAP);
        }
        last = Some(now);
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.rest.is_empty() {
            match ready!(self.pieces.poll_recv(cx)) {
                Some(piece) => self.rest = piece?,
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.rest.len().min(buf.remaining());
        buf.put_slice(&self.rest[..count]);
        self.rest.advance(count);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn all_that_was_written_is_read_in_order_and_then_the_end() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let mut patient = Patient::new(reader).unwrap();
        let writing = tokio::task::spawn_blocking(move || {
            let mut writer = File::from(writer);
            for number in 0..50_000_u32 {
                writer.write_all(&number.to_le_bytes()).unwrap();
            }
        });
        let mut read = Vec::new();
        patient.read_to_end(&mut read).await.unwrap();
        writing.await.unwrap();
        let numbers = read
            .chunks(4)
            .map(|four| u32::from_le_bytes(four.try_into().unwrap()));
        assert!(numbers.eq(0..50_000));
    }

    #[tokio::test]
    async fn a_writer_is_told_when_nobody_reads_any_more() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        drop(Patient::new(reader).unwrap());
        // A thread that nobody waits for: one of the runtime would keep a test that fails from ending.
        let (told, is_told) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let mut writer = File::from(writer);
            while writer.write_all(&[0; 4096]).is_ok() {}
            let _ = told.send(());
        });
        tokio::time::timeout(Duration::from_secs(30), is_told)
            .await
            .expect("the thread goes on reading")
            .unwrap();
    }
}
