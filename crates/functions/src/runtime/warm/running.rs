//! A process that runs, as its task sees it: the bytes in both directions, and the answers it waits for.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{Looked, Running, sleep_until};

/// Answers waiting to be written to a process before it is heard no further: a question costs it forty
/// bytes, and an answer is as large as a value may be.
const ANSWERS_MAX_BYTES: usize = 8 * 1024 * 1024;
/// How long the last words on standard error are waited for.
const LAST_WORDS: Duration = Duration::from_millis(200);

impl Running {
    pub(super) fn may_ask(&self) -> bool {
        self.out.len() < ANSWERS_MAX_BYTES
    }

    /// Reads, writes or answers, whichever can be done first, for code that has no message in hand. False when it has
    /// closed its end.
    pub(super) async fn turn(&mut self) -> bool {
        self.input.reserve(self.piece);
        if self.is_gone {
            // What it said before is there already; who inherited its end from it is not waited for.
            let read = self.reader.read_buf(&mut self.input);
            let read = tokio::time::timeout(LAST_WORDS, read).await;
            return matches!(read, Ok(Ok(1..)));
        }
        let is_heard = self.may_ask();
        let is_ending = self.hang_up_at.is_some();
        let hangs_up = self.writer.is_some() && self.out.is_empty();
        tokio::select! {
            read = self.reader.read_buf(&mut self.input), if is_heard => return matches!(read, Ok(1..)),
            wrote = write_some(&mut self.writer, &self.out), if !self.out.is_empty() => match wrote {
                Ok(count) => drop(self.out.split_to(count)),
                // It reads no more; its end, or the time-out, says the rest.
                Err(_) => self.out.clear(),
            },
            // It never ends: this side holds a sender.
            Some((ask, looked)) = self.answers.recv() => self.answer(ask, looked),
            _ = self.process.wait(), if is_ending => {
                self.is_gone = true;
                // Nobody reads it.
                self.out.clear();
            }
            () = sleep_until(self.hang_up_at), if hangs_up => {
                if let Some(mut writer) = self.writer.take() {
                    let _ = writer.shutdown().await;
                }
            }
        }
        true
    }

    pub(super) fn answer(&mut self, ask: u64, looked: Looked) {
        let mut answer = Vec::new();
        match looked {
            Ok(value) => self.codec.answer(ask, value.as_ref(), &mut answer),
            Err(why) => self.codec.refuse(ask, &why, &mut answer),
        }
        self.out.extend_from_slice(&answer);
    }

    /// What it says last on standard error, waited for a little.
    pub(super) async fn last_words(&mut self) -> String {
        let all = async {
            for end in &mut self.log_ends {
                let _ = end.await;
            }
        };
        let _ = tokio::time::timeout(LAST_WORDS, all).await;
        self.tail.take()
    }
}

pub(super) async fn write_some(
    writer: &mut Option<Box<dyn AsyncWrite + Send + Unpin>>,
    out: &BytesMut,
) -> std::io::Result<usize> {
    match writer {
        Some(writer) => writer.write(out).await,
        None => std::future::pending().await,
    }
}
