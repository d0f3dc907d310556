//! The buffer that a connection reads into: it grows while reads fill it, and what is cut from it is not copied.
//!
//! It knows which memory that is, so that whoever keeps a slice can be charged with all that the slice
//! keeps alive. A buffer moves only here.

use bytes::BytesMut;
use geminga_proto::FrameError;
use geminga_proto::frame::Frames;
use geminga_storage::managed::ReadBuffer;

/// First size of the read buffer; it grows while reads fill it.
const READ_FIRST: usize = 8 << 10;
const READ_MOST: usize = 256 << 10;

pub(super) struct Input {
    bytes: BytesMut,
    wanted: usize,
    /// The memory that `bytes` is the end of.
    start: usize,
    end: usize,
    /// The same, once frames were cut from it.
    known: Option<ReadBuffer>,
}

impl Input {
    pub(super) fn new() -> Self {
        let bytes = BytesMut::new();
        let start = bytes.as_ptr() as usize;
        Self {
            bytes,
            wanted: READ_FIRST,
            start,
            end: start,
            known: None,
        }
    }

    /// Where to read to.
    pub(super) fn room(&mut self) -> &mut BytesMut {
        // The rest of a buffer whose front is still referenced is used up before a new one is made.
        if self.bytes.capacity() - self.bytes.len() < self.wanted / 2 {
            let before = self.bytes.as_ptr() as usize;
            self.bytes.reserve(self.wanted);
            self.note(before);
        }
        &mut self.bytes
    }

    /// So much was read at once.
    pub(super) fn filled(&mut self, count: usize) {
        if self.bytes.len() == self.bytes.capacity() {
            self.wanted = (self.wanted * 2).min(READ_MOST);
        } else if count < self.wanted / 4 {
            self.wanted = (self.wanted / 2).max(READ_FIRST);
        }
    }

    /// Cuts the complete frames off the front, with the memory that they are in.
    pub(super) fn cut(&mut self, limit: usize) -> Result<(Frames, ReadBuffer), FrameError> {
        let place = (self.start, self.end - self.start);
        let known = self.known.take().filter(|known| known.place() == place);
        let buffer = known.unwrap_or_else(|| ReadBuffer::new(place.0, place.1));
        self.known = Some(buffer.clone());
        let before = self.bytes.as_ptr() as usize;
        let frames = Frames::cut(&mut self.bytes, limit)?;
        self.note(before + frames.remaining_bytes());
        Ok((frames, buffer))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Looks where the buffer is after a change that would have left it at `before`.
    fn note(&mut self, before: usize) {
        let start = self.bytes.as_ptr() as usize;
        let end = start + self.bytes.capacity();
        if start != before {
            // All of another piece of memory, or of the same one from its beginning. One that nobody else
            // keeps may grow elsewhere and keep a front that was read before: that much is not known.
            (self.start, self.end) = (start, end);
            self.known = None;
        } else if end > self.end {
            self.end = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use geminga_proto::frame::encode_frame_head;
    use geminga_proto::{Command, pb};
    use geminga_stdx::Random;

    use super::*;

    /// A frame with a block of so many bytes.
    fn frame(block: usize, out: &mut BytesMut) {
        let ping = Command::Ping(pb::CommandPing {});
        encode_frame_head(&ping, block, out);
        out.resize(out.len() + block, 7);
    }

    /// Reads of any size: each slice lies in the memory that it came with, and that is all that there is.
    #[test]
    fn what_is_cut_comes_with_all_the_memory_that_it_keeps() {
        let seed = match std::env::var("GEMINGA_SEED") {
            Ok(seed) => seed.parse().expect("a number"),
            Err(_) => Random::from_entropy().next_u64(),
        };
        let mut random = Random::new(seed);
        for _ in 0..20 {
            let (mut input, mut wire) = (Input::new(), BytesMut::new());
            let most = [200, 3000, 40_000, 700_000][random.below(4) as usize];
            let mut kept: Vec<(Bytes, ReadBuffer)> = Vec::new();
            for _ in 0..200 {
                while wire.len() < 300_000 {
                    frame(random.below(most) as usize, &mut wire);
                }
                let room = input.room();
                let free = room.capacity() - room.len();
                let count = (1 + random.below(free as u64) as usize).min(wire.len());
                room.extend_from_slice(&wire.split_to(count));
                input.filled(count);
                let (mut frames, buffer) = input.cut(1 << 20).expect("frames");
                while let Some(frame) = frames.next() {
                    let block = frame.block_bytes();
                    if !block.is_empty() && random.below(3) > 0 {
                        kept.push((block, buffer.clone()));
                    }
                }
                drop(frames);
                if random.below(9) == 0 {
                    kept.clear();
                }
                if input.is_empty() && random.below(9) == 0 {
                    input = Input::new();
                }
            }
            for (block, buffer) in &kept {
                let (start, bytes) = buffer.place();
                let at = block.as_ptr() as usize;
                let is_within = at >= start && at + block.len() <= start + bytes;
                assert!(is_within, "repeat with GEMINGA_SEED={seed}");
            }
            // Who is the last to keep a piece of memory may see to its end.
            drop(input);
            while let Some((block, buffer)) = kept.pop() {
                let (at, place) = (block.as_ptr() as usize, buffer.place());
                if let Ok(all) = block.try_into_mut() {
                    let end = at + all.capacity();
                    assert_eq!(end, place.0 + place.1, "repeat with GEMINGA_SEED={seed}");
                }
            }
        }
    }

    /// Small reads of one buffer, one after the other, are of one piece of memory.
    #[test]
    fn a_buffer_has_one_name_as_long_as_it_is_used() {
        let mut input = Input::new();
        let mut names: Vec<(ReadBuffer, Bytes)> = Vec::new();
        for _ in 0..30 {
            frame(1000, input.room());
            let (mut frames, buffer) = input.cut(1 << 20).expect("frames");
            let block = frames.next().expect("one").block_bytes();
            if names
                .last()
                .is_none_or(|(last, _)| last.place() != buffer.place())
            {
                names.push((buffer, block));
            }
        }
        let bytes: usize = names.iter().map(|(name, _)| name.place().1).sum();
        assert!(bytes < 3 * 30 * 1000 && names.len() < 10, "{bytes}");
    }
}
