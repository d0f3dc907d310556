//! Memory aligned for direct I/O, without `unsafe`: a vector that is a block too long, used from
//! its first aligned byte.

/// What direct I/O wants offsets, lengths and memory to be multiples of.
pub const BLOCK_BYTES: usize = 4096;

/// A growing byte buffer whose first byte lies on a [`BLOCK_BYTES`] boundary.
#[derive(Debug, Default)]
pub struct AlignedBuf {
    /// `memory[start..]` is the content.
    memory: Vec<u8>,
    start: usize,
}

impl AlignedBuf {
    pub fn with_capacity(bytes: usize) -> Self {
        let mut buf = Self::default();
        buf.reserve(bytes);
        buf
    }

    pub fn len(&self) -> usize {
        self.memory.len() - self.start
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Room for this many bytes in all before it must move.
    pub fn capacity(&self) -> usize {
        self.memory.capacity() - self.start
    }

    /// Removes the first `bytes`; the rest moves to the front.
    pub fn drop_front(&mut self, bytes: usize) {
        self.memory.drain(self.start..self.start + bytes);
    }

    pub fn clear(&mut self) {
        self.memory.truncate(self.start);
    }

    pub fn as_slice(&self) -> &[u8] {
        &self.memory[self.start..]
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..]
    }

    pub fn extend(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        self.memory.extend_from_slice(bytes);
    }

    /// Sets the length, with zeros where it grows.
    pub fn resize(&mut self, bytes: usize) {
        self.reserve(bytes.saturating_sub(self.len()));
        self.memory.resize(self.start + bytes, 0);
    }

    /// Makes room for `more` bytes. Moving to a larger block copies, so it at least doubles.
    pub fn reserve(&mut self, more: usize) {
        if self.memory.capacity() - self.memory.len() >= more {
            return;
        }
        let wanted = (self.len() + more).max(self.len() * 2);
        let mut memory: Vec<u8> = Vec::with_capacity(wanted + BLOCK_BYTES);
        // The block is not reallocated below: what is pushed fits its capacity.
        let start = memory.as_ptr().align_offset(BLOCK_BYTES).min(BLOCK_BYTES);
        memory.resize(start, 0);
        memory.extend_from_slice(self.as_slice());
        self.memory = memory;
        self.start = start;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_aligned_while_it_grows() {
        let mut buf = AlignedBuf::default();
        let mut plain = Vec::new();
        for step in 0..200_u32 {
            let bytes = vec![step as u8; (step as usize * 37) % 5000];
            buf.extend(&bytes);
            plain.extend_from_slice(&bytes);
            if !buf.is_empty() {
                assert_eq!(buf.as_slice().as_ptr().align_offset(BLOCK_BYTES), 0);
            }
        }
        assert_eq!(buf.as_slice(), plain);
        buf.drop_front(5000);
        plain.drain(..5000);
        assert_eq!(buf.as_slice(), plain);
        buf.resize(3);
        assert_eq!(buf.as_slice(), &plain[..3]);
        buf.clear();
        assert!(buf.is_empty());
        assert!(buf.capacity() >= plain.len());
    }
}
