//! Where keys stand in the ranges of a Key_Shared subscription.

pub(crate) use geminga_proto::hash::murmur3_32 as murmur3;

/// Where a key stands in a selector's range `first..=last`. 0 means "not set", so it becomes 1.
pub(crate) fn sticky(key: &[u8], first: u32, last: u32) -> u32 {
    let hash = murmur3(key) % (last - first + 1) + first;
    hash.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trap_13_ring_range_starts_at_one_and_zero_is_remapped() {
        for key in 0..100_000u32 {
            let key = key.to_be_bytes();
            assert!((1..=65535).contains(&sticky(&key, 1, 65535)));
            let plain = murmur3(&key) % 65536;
            assert_eq!(sticky(&key, 0, 65535), plain.max(1));
            assert_eq!(sticky(&key, 1, 65535), murmur3(&key) % 65535 + 1);
        }
    }
}
