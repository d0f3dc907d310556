//! The two key hashes of Pulsar: they decide the partition of a key on producers and the consumer
//! of a key in Key_Shared subscriptions, so they must be the same bit for bit everywhere.

/// MurmurHash3 (x86, 32 bit, seed 0), the sign bit cleared.
pub fn murmur3_32(bytes: &[u8]) -> u32 {
    murmur3_32_raw(bytes) & 0x7fff_ffff
}

fn murmur3_32_raw(bytes: &[u8]) -> u32 {
    let scramble = |block: u32| {
        block
            .wrapping_mul(0xcc9e_2d51)
            .rotate_left(15)
            .wrapping_mul(0x1b87_3593)
    };
    let mut hash = 0u32;
    let (blocks, tail) = bytes.as_chunks::<4>();
    for &block in blocks {
        hash ^= scramble(u32::from_le_bytes(block));
        hash = hash
            .rotate_left(13)
            .wrapping_mul(5)
            .wrapping_add(0xe654_6b64);
    }
    let rest = tail
        .iter()
        .rev()
        .fold(0u32, |rest, &byte| rest << 8 | u32::from(byte));
    hash ^= scramble(rest);
    hash ^= bytes.len() as u32;
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}

/// Java's `String.hashCode`, the sign bit cleared.
pub fn java_string(text: &str) -> u32 {
    let hash = text.encode_utf16().fold(0u32, |hash, unit| {
        hash.wrapping_mul(31).wrapping_add(u32::from(unit))
    });
    hash & 0x7fff_ffff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn murmur3_has_its_known_values() {
        let cases: [(&[u8], u32); 7] = [
            (b"", 0),
            (&[0xff, 0xff, 0xff, 0xff], 0x7629_3b50),
            (&[0x21, 0x43, 0x65, 0x87], 0xf55b_516b),
            (&[0x21, 0x43, 0x65], 0x7e4a_8634),
            (&[0x21, 0x43], 0xa0f7_b07a),
            (&[0x21], 0x7266_1cf4),
            (b"hello", 0x248b_fa47),
        ];
        for (bytes, hash) in cases {
            assert_eq!(murmur3_32_raw(bytes), hash, "{bytes:?}");
            assert_eq!(murmur3_32(bytes), hash & 0x7fff_ffff);
        }
    }

    #[test]
    fn java_strings_have_their_known_values() {
        let cases = [
            ("", 0),
            ("a", 97),
            ("hello", 99_162_322),
            // -1 << 31 in Java, the case that `abs` gets wrong.
            ("polygenelubricants", 0),
            // Two UTF-16 units: 0xd83d, 0xde00.
            ("\u{1f600}", 0xd83d * 31 + 0xde00),
        ];
        for (text, hash) in cases {
            assert_eq!(java_string(text), hash, "{text}");
        }
    }
}
