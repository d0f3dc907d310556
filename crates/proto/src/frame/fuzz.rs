//! The fuzz target of the frame parser: whatever the bytes and however they arrive, the parser
//! gives the same frames, keeps to its limits and does not panic. `fuzz/` calls it with bytes that
//! a coverage-guided fuzzer chose, the test below with seeded ones.

use bytes::{Bytes, BytesMut};

use super::Frames;
use crate::command::Command;
use crate::message;
use crate::send::{Delivery, Send, SendReceipt};
use crate::{batch, compress, key};

const FRAME_SIZE_MAX: usize = 4096;

/// Parses `bytes` as a connection would, in pieces whose sizes come from `bytes` themselves.
///
/// # Panics
/// When the parser breaks one of its promises.
pub fn parse(bytes: &[u8]) {
    let whole = frames_of([bytes]);
    let piece = 1 + usize::from(bytes.first().copied().unwrap_or(0)) % 61;
    let pieces = frames_of(bytes.chunks(piece));
    assert_eq!(
        whole, pieces,
        "frames depend on how bytes arrive (pieces of {piece})"
    );
}

type Parsed = (Vec<(Vec<u8>, Vec<u8>)>, bool);

fn frames_of<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Parsed {
    let mut buffer = BytesMut::new();
    let mut parsed = Vec::new();
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            let Ok(mut frames) = Frames::cut(&mut buffer, FRAME_SIZE_MAX) else {
                return (parsed, false);
            };
            if frames.is_empty() {
                break;
            }
            while let Some(frame) = frames.next() {
                assert!(frame.wire_len() <= FRAME_SIZE_MAX + 4);
                command(frame.command_bytes());
                block(&frame.block_bytes());
                parsed.push((frame.command_bytes().to_vec(), frame.block().to_vec()));
            }
        }
    }
    (parsed, true)
}

fn command(bytes: &[u8]) {
    let slow = Command::decode(bytes);
    if let Ok(Some(fast)) = Send::decode(bytes) {
        let Ok(Command::Send(slow)) = slow else {
            panic!("a SEND only for the fast decoder")
        };
        assert_eq!(fast, slow.into());
    }
    _ = (SendReceipt::decode(bytes), Delivery::decode(bytes));
}

fn block(block: &Bytes) {
    _ = message::verify_checksum(block);
    let Ok(metadata) = message::decode_metadata(block) else {
        return;
    };
    if let Ok(peek) = message::peek(block) {
        _ = key::sticky_key_hash(&key::sticky_key(&peek));
        assert_eq!(peek.sequence_id, metadata.sequence_id);
        assert_eq!(peek.producer_name, metadata.producer_name);
        assert_eq!(peek.num_messages_in_batch, metadata.num_messages_in_batch);
        assert_eq!(peek.ordering_key, metadata.ordering_key.as_deref());
    }
    let Ok(payload) = message::payload(block) else {
        return;
    };
    if let Ok(payload) = compress::decompress(
        metadata.compression.unwrap_or(0),
        &payload,
        metadata.uncompressed_size() as usize,
        FRAME_SIZE_MAX,
    ) && let Some(count) = metadata.num_messages_in_batch
    {
        let mut read = 0;
        for message in batch::read(payload.clone(), count) {
            let Ok((_, bytes)) = message else { break };
            read += bytes.len();
        }
        assert!(read <= payload.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::crc32c;

    /// A small generator of our own, so that a seed gives the same bytes for ever.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0
        }

        fn below(&mut self, bound: usize) -> usize {
            (self.next() % bound as u64) as usize
        }
    }

    /// A stream of good frames, then damaged: bytes flipped, cut out, doubled.
    fn damaged_stream(random: &mut Random) -> Vec<u8> {
        let mut stream = Vec::new();
        for _ in 0..1 + random.below(4) {
            let mut out = BytesMut::new();
            let metadata = crate::pb::MessageMetadata {
                producer_name: "p".repeat(random.below(4)),
                sequence_id: random.next(),
                publish_time: random.next() >> random.below(64),
                compression: Some(random.below(5) as i32),
                uncompressed_size: Some(random.below(200) as u32),
                num_messages_in_batch: (random.below(2) == 0).then_some(random.below(5) as i32),
                partition_key: (random.below(2) == 0).then(|| "a2V5".to_owned()),
                partition_key_b64_encoded: Some(true),
                ..Default::default()
            };
            let payload: Vec<u8> = (0..random.below(100))
                .map(|_| random.next() as u8 % 4)
                .collect();
            let headers = message::encode_headers(&metadata, &payload);
            let send = Send {
                producer_id: 1,
                sequence_id: random.next(),
                num_messages: 1,
                ..Send::default()
            };
            send.encode_frame(headers.len() + payload.len(), &mut out);
            stream.extend_from_slice(&out);
            stream.extend_from_slice(&headers);
            stream.extend_from_slice(&payload);
        }
        for _ in 0..random.below(4) {
            let at = random.below(stream.len());
            match random.below(3) {
                0 => stream[at] = random.next() as u8,
                1 => stream.truncate(at.max(1)),
                _ => stream.insert(at, random.next() as u8),
            }
        }
        stream
    }

    #[test]
    fn seeded_streams_keep_the_promises() {
        let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
        let seed = number("GEMINGA_SEED");
        let first = seed.unwrap_or_else(|| u64::from(crc32c(b"frames")));
        let rounds = number("GEMINGA_FUZZ_ROUNDS").unwrap_or(if seed.is_some() { 1 } else { 3000 });
        for seed in first..first + rounds {
            let stream = damaged_stream(&mut Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1));
            let result = std::panic::catch_unwind(|| parse(&stream));
            assert!(result.is_ok(), "repeat with GEMINGA_SEED={seed}");
        }
    }
}
