//! What a request carries: bytes in memory, and files that are read while they are sent.
//!
//! What must hold: a file is never in memory as a whole, and exactly as many of its bytes are sent as were
//! announced. A payload may be sent again, to where a server says: its files are opened anew then.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame, SizeHint};
use tokio::fs::File;
use tokio::io::{AsyncRead, ReadBuf};

use super::ClientError;

/// How much of a file is read at once.
const PIECE_BYTES: usize = 256 * 1024;

/// A body and its media type.
#[derive(Debug, Clone, Default)]
pub struct Payload {
    pub(super) kind: String,
    pub(super) pieces: Vec<Piece>,
}

#[derive(Debug, Clone)]
pub(super) enum Piece {
    Bytes(Bytes),
    File { path: PathBuf, bytes: u64 },
}

impl Piece {
    fn bytes(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { bytes, .. } => *bytes,
        }
    }
}

impl Payload {
    /// Of bytes alone.
    pub fn new(kind: impl Into<String>, bytes: impl Into<Bytes>) -> Self {
        Self {
            kind: kind.into(),
            pieces: vec![Piece::Bytes(bytes.into())],
        }
    }

    /// How long it is.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().map(Piece::bytes).sum()
    }

    /// The media type and the body, when no file is in it.
    #[must_use]
    pub fn in_memory(self) -> Option<(String, Bytes)> {
        let mut all = BytesMut::new();
        for piece in self.pieces {
            match piece {
                Piece::Bytes(bytes) => all.extend_from_slice(&bytes),
                Piece::File { .. } => return None,
            }
        }
        Some((self.kind, all.freeze()))
    }

    /// Ready to be sent.
    pub(super) async fn open(&self) -> Result<Sending, ClientError> {
        let mut pieces = VecDeque::new();
        for piece in &self.pieces {
            pieces.push_back(match piece {
                Piece::Bytes(bytes) => Open::Bytes(bytes.clone()),
                Piece::File { path, bytes } => Open::File {
                    file: File::open(path).await.map_err(unreadable(path))?,
                    left: *bytes,
                },
            });
        }
        Ok(Sending {
            pieces,
            left: self.bytes(),
        })
    }
}

/// A file that cannot be read, as an error.
pub(super) fn unreadable(path: &Path) -> impl Fn(io::Error) -> ClientError + '_ {
    move |source| ClientError::File {
        path: path.to_owned(),
        what: "read",
        source,
    }
}

/// A payload that is being sent.
#[derive(Default)]
pub(super) struct Sending {
    pieces: VecDeque<Open>,
    left: u64,
}

enum Open {
    Bytes(Bytes),
    File { file: File, left: u64 },
}

impl Body for Sending {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        loop {
            let next = match self.pieces.front_mut() {
                None => return Poll::Ready(None),
                Some(Open::Bytes(bytes)) => std::mem::take(bytes),
                Some(Open::File { left: 0, .. }) => Bytes::new(),
                Some(Open::File { file, left }) => {
                    let most = usize::try_from(*left).unwrap_or(PIECE_BYTES);
                    let mut buffer = vec![0; most.min(PIECE_BYTES)];
                    let mut read = ReadBuf::new(&mut buffer);
                    if let Err(error) = ready!(Pin::new(file).poll_read(context, &mut read)) {
                        return Poll::Ready(Some(Err(error)));
                    }
                    let count = read.filled().len();
                    if count == 0 {
                        let error = io::Error::from(io::ErrorKind::UnexpectedEof);
                        return Poll::Ready(Some(Err(error)));
                    }
                    *left -= count as u64;
                    buffer.truncate(count);
                    Bytes::from(buffer)
                }
            };
            if next.is_empty() || matches!(self.pieces.front(), Some(Open::Bytes(_))) {
                self.pieces.pop_front();
            }
            if !next.is_empty() {
                self.left -= next.len() as u64;
                return Poll::Ready(Some(Ok(Frame::data(next))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::super::Form;
    use super::*;

    async fn sent(payload: &Payload) -> Result<Bytes, io::Error> {
        let sending = payload.open().await.expect("opens");
        assert_eq!(sending.size_hint().exact(), Some(payload.bytes()));
        Ok(sending.collect().await?.to_bytes())
    }

    #[tokio::test]
    async fn a_file_is_sent_as_it_is_twice_and_one_that_shrank_is_an_error() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("f.zip");
        for size in [0, 1, PIECE_BYTES - 1, PIECE_BYTES, 3 * PIECE_BYTES + 7] {
            let content: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            std::fs::write(&path, &content).expect("writes");
            let streamed = Form::new().json("metadata", "{}").text("a", "b");
            let streamed = streamed.path("file", "f.zip", &path).await.expect("there");
            let streamed = streamed.finish();
            let whole = streamed.kind.split_once("boundary=").expect("a form").1;
            let whole = Form::with_boundary(whole)
                .json("metadata", "{}")
                .text("a", "b")
                .file("file", "f.zip", &content)
                .finish();
            let whole = whole.in_memory().expect("no file").1;
            for _ in 0..2 {
                assert_eq!(sent(&streamed).await.expect("sends"), whole, "{size}");
            }
            assert!(streamed.clone().in_memory().is_none());
            std::fs::write(&path, &content[..size / 2]).expect("writes");
            assert_eq!(sent(&streamed).await.is_err(), size > 0, "{size}");
        }
        let gone = Form::new().path("file", "x", Path::new("/nowhere/x")).await;
        let said = gone.expect_err("not there").to_string();
        assert_eq!(said, "`/nowhere/x` cannot be read");
    }
}
