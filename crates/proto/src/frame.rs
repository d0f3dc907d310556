//! Frames: how commands and messages follow each other on a connection.
//!
//! A frame is `total_size:u32 command_size:u32 command [block]`, big-endian, where `total_size`
//! does not count itself and `block` is the headers-and-payload block of SEND and MESSAGE (see
//! [`message`](crate::message)).
//!
//! [`Frames::cut`] takes every complete frame off the front of a read buffer at once, so that a
//! read of a thousand frames costs one split of the buffer and not a thousand. A block sliced out
//! of it shares, and keeps alive, the buffer it came in.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::command::Command;
use crate::error::FrameError;
use crate::send::Send;
use crate::{FRAME_PADDING, MAX_MESSAGE_SIZE};

pub mod fuzz;

/// The limit for [`Frames::cut`] that goes with a largest message.
pub const fn frame_size_max(message_size_max: usize) -> usize {
    message_size_max.saturating_add(FRAME_PADDING)
}

/// The limit by default.
pub const FRAME_SIZE_MAX: usize = frame_size_max(MAX_MESSAGE_SIZE);

/// A buffer grows by at most this, or by what has already arrived, ahead of a frame's bytes:
/// four bytes that announce 5 MiB do not make us allocate 5 MiB.
const GROW_AHEAD: usize = 64 * 1024;

const SIZES: usize = 8;

/// Complete frames that were cut from a read buffer.
#[derive(Debug, Clone, Default)]
pub struct Frames {
    bytes: Bytes,
    position: usize,
}

/// One frame, with its parts still as bytes.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    bytes: &'a Bytes,
    command_start: usize,
    block_start: usize,
    end: usize,
}

/// What stands at the start of some bytes.
enum Head {
    /// Fewer bytes than the frame has, and how many it has if that can be seen.
    Incomplete(Option<usize>),
    Complete {
        frame_len: usize,
        command_len: usize,
    },
}

fn head(bytes: &[u8], frame_size_max: usize) -> Result<Head, FrameError> {
    let Some((total, rest)) = bytes.split_first_chunk::<4>() else {
        return Ok(Head::Incomplete(None));
    };
    let total = u32::from_be_bytes(*total);
    if total < 4 {
        return Err(FrameError::TooShort { size: total.into() });
    }
    let total_len = total as usize;
    if total_len > frame_size_max {
        return Err(FrameError::TooLarge {
            size: total.into(),
            max: frame_size_max,
        });
    }
    let Some(command_len) = rest.first_chunk::<4>() else {
        return Ok(Head::Incomplete(Some(total_len + 4)));
    };
    let command_size = u32::from_be_bytes(*command_len);
    if command_size as usize > total_len - 4 {
        return Err(FrameError::CommandTooLarge {
            command_size: command_size.into(),
            frame_size: total_len,
        });
    }
    if rest.len() < total_len {
        return Ok(Head::Incomplete(Some(total_len + 4)));
    }
    Ok(Head::Complete {
        frame_len: total_len + 4,
        command_len: command_size as usize,
    })
}

impl Frames {
    /// Cuts all complete frames off the front of `buffer`; there may be none.
    ///
    /// What is left in `buffer` is the start of the next frame, and there is room behind it to read
    /// more. An error means that the stream cannot be followed any further; frames in front of
    /// the bad one were returned by the call before.
    pub fn cut(buffer: &mut BytesMut, frame_size_max: usize) -> Result<Frames, FrameError> {
        let mut end = 0;
        loop {
            match head(&buffer[end..], frame_size_max) {
                Ok(Head::Complete { frame_len, .. }) => end += frame_len,
                Ok(Head::Incomplete(frame_len)) => {
                    let frames = Frames {
                        bytes: buffer.split_to(end).freeze(),
                        position: 0,
                    };
                    let missing = frame_len.map_or(0, |len| len.saturating_sub(buffer.len()));
                    buffer.reserve(missing.min(buffer.len().max(GROW_AHEAD)));
                    return Ok(frames);
                }
                Err(_) if end > 0 => {
                    return Ok(Frames {
                        bytes: buffer.split_to(end).freeze(),
                        position: 0,
                    });
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The next frame.
    #[expect(
        clippy::should_implement_trait,
        reason = "a frame borrows from its frames"
    )]
    #[inline]
    pub fn next(&mut self) -> Option<Frame<'_>> {
        // All frames here were found complete by `cut`, under a limit.
        let Ok(Head::Complete {
            frame_len,
            command_len,
        }) = head(&self.bytes[self.position..], usize::MAX)
        else {
            return None;
        };
        let start = self.position;
        self.position += frame_len;
        Some(Frame {
            bytes: &self.bytes,
            command_start: start + SIZES,
            block_start: start + SIZES + command_len,
            end: start + frame_len,
        })
    }

    /// Whether no frame is left.
    pub fn is_empty(&self) -> bool {
        self.position == self.bytes.len()
    }

    /// The bytes of the frames that are left.
    pub fn remaining_bytes(&self) -> usize {
        self.bytes.len() - self.position
    }
}

impl<'a> Frame<'a> {
    /// The encoded `BaseCommand`.
    #[inline]
    pub fn command_bytes(&self) -> &'a [u8] {
        &self.bytes[self.command_start..self.block_start]
    }

    /// The type number of the command where it stands first, as every known client writes it.
    #[inline]
    pub fn command_number(&self) -> Option<i32> {
        match self.command_bytes() {
            [0x08, number, ..] if *number < 0x80 => Some(i32::from(*number)),
            _ => None,
        }
    }

    /// The command, decoded.
    pub fn command(&self) -> Result<Command, FrameError> {
        Command::decode(self.command_bytes())
    }

    /// The command if it is a SEND, without allocating.
    #[inline]
    pub fn send(&self) -> Result<Option<Send>, FrameError> {
        Send::decode(self.command_bytes())
    }

    /// What follows the command: the headers-and-payload block, or nothing.
    #[inline]
    pub fn block(&self) -> &'a [u8] {
        &self.bytes[self.block_start..self.end]
    }

    /// The headers-and-payload block as a slice that shares the read buffer.
    #[inline]
    pub fn block_bytes(&self) -> Bytes {
        self.bytes.slice(self.block_start..self.end)
    }

    /// The length of the whole frame on the wire.
    #[inline]
    pub fn wire_len(&self) -> usize {
        self.end - self.command_start + SIZES
    }
}

/// Appends the two sizes of a frame.
#[inline]
fn put_frame_sizes(out: &mut BytesMut, command_len: usize, block_len: usize) {
    debug_assert!(4 + command_len + block_len <= u32::MAX as usize);
    out.put_u32((4 + command_len + block_len) as u32);
    out.put_u32(command_len as u32);
}

/// Appends a frame without a block.
pub fn encode_command(command: &Command, out: &mut BytesMut) {
    encode_frame_head(command, 0, out);
}

/// Appends sizes and command of a frame; the caller writes `block_len` bytes after it.
///
/// For SEND and MESSAGE the encoders in [`send`](crate::send) do the same faster.
pub fn encode_frame_head(command: &Command, block_len: usize, out: &mut BytesMut) {
    let command_len = command.encoded_len();
    out.reserve(SIZES + command_len);
    put_frame_sizes(out, command_len, block_len);
    command.encode(out);
}

/// Cuts exactly one frame from the front of `buffer`, for peers that read one by one.
pub fn cut_one(
    buffer: &mut BytesMut,
    frame_size_max: usize,
) -> Result<Option<(Command, Bytes)>, FrameError> {
    let Head::Complete {
        frame_len,
        command_len,
    } = head(buffer, frame_size_max)?
    else {
        return Ok(None);
    };
    let mut frame = buffer.split_to(frame_len).freeze();
    frame.advance(SIZES);
    let command = Command::decode(&frame.split_to(command_len))?;
    Ok(Some((command, frame)))
}

#[cfg(test)]
mod tests;
