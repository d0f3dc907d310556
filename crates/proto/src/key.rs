//! The key by which a Key_Shared subscription keeps messages together.

use std::borrow::Cow;

use crate::hash::murmur3_32;
use crate::message::Peek;

/// How many hash slots there are; a sticky hash is in `1..65536`.
pub const HASH_RANGE: u32 = 65_536;

/// The bytes of a message's key: the ordering key, else the partition key, else something that
/// spreads messages without a key.
pub fn sticky_key<'a>(metadata: &Peek<'a>) -> Cow<'a, [u8]> {
    if let Some(key) = metadata.ordering_key {
        return key.into();
    }
    if let Some(key) = metadata.partition_key {
        return match metadata
            .partition_key_b64_encoded
            .then(|| decode_base64(key))
            .flatten()
        {
            Some(bytes) => bytes.into(),
            None => key.as_bytes().into(),
        };
    }
    if metadata.producer_name.is_empty() {
        return b"NONE_KEY"[..].into();
    }
    format!("{}-{}", metadata.producer_name, metadata.sequence_id)
        .into_bytes()
        .into()
}

/// The slot of a key. Zero means "no hash" in Pulsar, so it is never a result.
pub fn sticky_key_hash(key: &[u8]) -> u32 {
    (murmur3_32(key) % HASH_RANGE).max(1)
}

/// Standard base64, padded or not; `None` if it is not that.
pub fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=');
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut count) = (0u32, 0);
    for byte in text.bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    (text.len() % 4 != 1).then_some(bytes)
}

/// Standard base64 with padding.
pub fn encode_base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            if i <= chunk.len() {
                let index = bits >> (18 - 6 * i) & 63;
                text.push(char::from(ALPHABET[index as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_key_there_is_counts() {
        let peek = Peek {
            producer_name: "p",
            sequence_id: 7,
            ..Peek::default()
        };
        let cases: [(Peek<'_>, &[u8]); 6] = [
            (
                Peek {
                    ordering_key: Some(b"o"),
                    partition_key: Some("k"),
                    ..peek
                },
                b"o",
            ),
            (
                Peek {
                    partition_key: Some("k"),
                    ..peek
                },
                b"k",
            ),
            (
                Peek {
                    partition_key: Some("a2V5"),
                    partition_key_b64_encoded: true,
                    ..peek
                },
                b"key",
            ),
            (
                Peek {
                    partition_key: Some("!"),
                    partition_key_b64_encoded: true,
                    ..peek
                },
                b"!",
            ),
            (peek, b"p-7"),
            (Peek::default(), b"NONE_KEY"),
        ];
        for (peek, key) in cases {
            assert_eq!(&sticky_key(&peek)[..], key);
        }
    }

    #[test]
    fn a_hash_is_never_zero_and_never_too_large() {
        assert_eq!(sticky_key_hash(b""), 1);
        for i in 0..10_000u32 {
            let hash = sticky_key_hash(&i.to_le_bytes());
            assert!((1..HASH_RANGE).contains(&hash));
        }
    }

    #[test]
    fn base64_has_its_known_values() {
        let cases = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
        ];
        for (raw, text) in cases {
            assert_eq!(encode_base64(raw.as_bytes()), text);
            assert_eq!(decode_base64(text).as_deref(), Some(raw.as_bytes()));
        }
        assert_eq!(decode_base64("Zg"), Some(b"f".to_vec()));
        assert_eq!(decode_base64("Z"), None);
        assert_eq!(decode_base64("Z m8"), None);
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decode_base64(&encode_base64(&all)), Some(all));
    }
}
