//! `multipart/form-data`, cut as it arrives and bounded in every direction.
//!
//! `Splitter` decides: bytes in, events out, no I/O. What must hold for any input: it keeps no more
//! than one header block or one delimiter in memory, and it ends with an error or with `End`.

use bytes::{Buf, Bytes, BytesMut};

/// Longest header block of a part.
const HEADER_BYTES_MAX: usize = 8 * 1024;
/// Most parts of a form; the largest real one has four.
const PARTS_MAX: usize = 64;
/// Longest boundary (RFC 2046).
const BOUNDARY_BYTES_MAX: usize = 70;

/// What is wrong with a form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FormError {
    #[error("the request is not `multipart/form-data` with a boundary")]
    NotAForm,
    #[error("the headers of a part are longer than {HEADER_BYTES_MAX} bytes")]
    HeaderTooLong,
    #[error("the form has more than {PARTS_MAX} parts")]
    TooManyParts,
    #[error("a part of the form has no name")]
    NoName,
    #[error("the form ends in the middle of a part")]
    Cut,
    #[error("garbage after a boundary of the form")]
    Garbage,
}

/// What a part says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) name: String,
    pub(crate) file_name: Option<String>,
}

/// A step through a form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// A part begins.
    Part(Head),
    /// Bytes of the part that began last.
    Data(Bytes),
    /// The part is complete.
    PartEnd,
    /// The form is complete; what follows is ignored.
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Preamble,
    AfterBoundary,
    Headers,
    Body,
    Done,
}

/// Cuts a form into events.
#[derive(Debug)]
pub(crate) struct Splitter {
    delimiter: Vec<u8>,
    buffer: BytesMut,
    state: State,
    parts: usize,
}

impl Splitter {
    /// `content_type` is the header of the request.
    pub(crate) fn new(content_type: &str) -> Result<Self, FormError> {
        let boundary = boundary_of(content_type).ok_or(FormError::NotAForm)?;
        Ok(Self {
            delimiter: format!("\r\n--{boundary}").into_bytes(),
            // The first boundary need not follow a line.
            buffer: BytesMut::from(&b"\r\n"[..]),
            state: State::Preamble,
            parts: 0,
        })
    }

    /// Takes more bytes. Call `next` until it returns none before taking the next ones.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.state != State::Done {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next event, or none when more bytes are needed.
    pub(crate) fn next(&mut self) -> Result<Option<Event>, FormError> {
        loop {
            match self.state {
                State::Preamble => match find(&self.buffer, &self.delimiter) {
                    Some(at) => {
                        self.buffer.advance(at + self.delimiter.len());
                        self.state = State::AfterBoundary;
                    }
                    None => {
                        let keep = self.delimiter.len() - 1;
                        self.buffer.advance(self.buffer.len().saturating_sub(keep));
                        return Ok(None);
                    }
                },
                State::AfterBoundary => {
                    let Some(two) = self.buffer.get(..2) else {
                        return Ok(None);
                    };
                    self.state = match two {
                        b"--" => {
                            self.buffer.clear();
                            self.state = State::Done;
                            return Ok(Some(Event::End));
                        }
                        b"\r\n" => State::Headers,
                        _ => return Err(FormError::Garbage),
                    };
                    self.parts += 1;
                    if self.parts > PARTS_MAX {
                        return Err(FormError::TooManyParts);
                    }
                }
                // The line end of the boundary stays in the buffer, so that a part without
                // headers ends its header block by the same four bytes.
                State::Headers => {
                    let Some(at) = find(&self.buffer, b"\r\n\r\n") else {
                        if self.buffer.len() > HEADER_BYTES_MAX {
                            return Err(FormError::HeaderTooLong);
                        }
                        return Ok(None);
                    };
                    if at > HEADER_BYTES_MAX {
                        return Err(FormError::HeaderTooLong);
                    }
                    let head = head_of(&self.buffer[..at])?;
                    self.buffer.advance(at + 4);
                    self.state = State::Body;
                    return Ok(Some(Event::Part(head)));
                }
                State::Body => {
                    return Ok(match find(&self.buffer, &self.delimiter) {
                        Some(0) => {
                            self.buffer.advance(self.delimiter.len());
                            self.state = State::AfterBoundary;
                            Some(Event::PartEnd)
                        }
                        Some(at) => Some(Event::Data(self.buffer.split_to(at).freeze())),
                        None => {
                            let ready =
                                (self.buffer.len() + 1).saturating_sub(self.delimiter.len());
                            (ready > 0).then(|| Event::Data(self.buffer.split_to(ready).freeze()))
                        }
                    });
                }
                State::Done => return Ok(None),
            }
        }
    }

    /// Whether the bytes so far are a whole form.
    pub(crate) fn finish(&self) -> Result<(), FormError> {
        if self.state == State::Done {
            Ok(())
        } else {
            Err(FormError::Cut)
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

fn boundary_of(content_type: &str) -> Option<String> {
    let (kind, parameters) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let boundary = parameter(parameters, "boundary")?;
    (!boundary.is_empty() && boundary.len() <= BOUNDARY_BYTES_MAX).then_some(boundary)
}

fn head_of(headers: &[u8]) -> Result<Head, FormError> {
    let headers = String::from_utf8_lossy(headers);
    for line in headers.split("\r\n") {
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        if name.trim().eq_ignore_ascii_case("content-disposition") {
            let parameters = value.split_once(';').map_or("", |(_, rest)| rest);
            let name = parameter(parameters, "name").ok_or(FormError::NoName)?;
            return Ok(Head {
                name,
                file_name: parameter(parameters, "filename"),
            });
        }
    }
    Err(FormError::NoName)
}

/// The value of `name=value` or `name="value"` in a header's parameters.
fn parameter(text: &str, wanted: &str) -> Option<String> {
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ';']);
        let (name, after) = rest.split_once('=')?;
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => {
                let mut value = String::new();
                let mut end = quoted.len();
                let mut escaped = false;
                for (at, c) in quoted.char_indices() {
                    match c {
                        '\\' if !escaped => escaped = true,
                        '"' if !escaped => {
                            end = at + 1;
                            break;
                        }
                        _ => {
                            value.push(c);
                            escaped = false;
                        }
                    }
                }
                (value, &quoted[end..])
            }
            None => {
                let end = after.find(';').unwrap_or(after.len());
                (after[..end].trim().to_owned(), &after[end..])
            }
        };
        if name.trim().eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        rest = after;
    }
}

#[cfg(test)]
#[path = "multipart/tests.rs"]
mod tests;
