use proptest::prelude::*;

use super::*;

const SALT: Salt = Salt(0x1234_5678_9abc_def0);

fn encoded(entries: &[Bytes], offset: u64) -> (RecordHeader, Vec<u8>) {
    let header = RecordHeader::run(LedgerId(3), EntryId(40), entries).unwrap();
    let mut bytes = header.encode().to_vec();
    if entries.len() > 1 {
        for entry in entries {
            bytes.extend((entry.len() as u32).to_le_bytes());
        }
    }
    for entry in entries {
        bytes.extend(entry);
    }
    seal(&mut bytes, SALT, offset);
    (header, bytes)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_run_comes_back_and_every_flipped_bit_is_seen(
        sizes in prop::collection::vec(0_usize..200, 1..12),
        offset in any::<u32>(),
        flip in any::<usize>(),
    ) {
        let entries: Vec<Bytes> =
            sizes.iter().enumerate().map(|(i, size)| Bytes::from(vec![i as u8; *size])).collect();
        let offset = u64::from(offset);
        let (header, mut bytes) = encoded(&entries, offset);
        let (parsed, body) = parse(&bytes, SALT, offset).unwrap();
        prop_assert_eq!(parsed, header);
        prop_assert_eq!(parsed.last(), EntryId(39 + entries.len() as i64));
        let body = &bytes[body];
        let found: Vec<&[u8]> =
            entry_ranges(&parsed, body).unwrap().into_ranges().map(|range| &body[range]).collect();
        prop_assert_eq!(found, entries.iter().map(|entry| &entry[..]).collect::<Vec<_>>());

        prop_assert_eq!(parse(&bytes, SALT, offset + 1), Err(RecordError::Header));
        prop_assert_eq!(parse(&bytes, Salt(1), offset), Err(RecordError::Header));
        prop_assert!(parse(&bytes[..bytes.len() - 1], SALT, offset).is_err());
        let bit = flip % (bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(parse(&bytes, SALT, offset).is_err());
    }

    #[test]
    fn arbitrary_bytes_are_refused_without_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        salt in any::<u64>(),
    ) {
        prop_assert!(parse(&bytes, Salt(salt), 0).is_err());
        prop_assert!(CommitHeader::parse(&bytes, Salt(salt), 0).is_err());
        prop_assert!(SegmentHeader::parse(&bytes).is_err());
    }

    /// Right checksums over wrong fields: what a bug or an attacker would write.
    #[test]
    fn sealed_garbage_does_not_panic(mut bytes in prop::collection::vec(any::<u8>(), 36..200)) {
        let body = bytes.len() - RECORD_HEADER_BYTES;
        bytes[12] = 1 + bytes[12] % 5;
        bytes[8..12].copy_from_slice(&(body as u32).to_le_bytes());
        let count = u32::from(bytes[33] % 20);
        bytes[32..36].copy_from_slice(&count.to_le_bytes());
        let checksum = crc_fast::crc32_iscsi(&bytes[RECORD_HEADER_BYTES..]);
        bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
        seal(&mut bytes, SALT, 8);
        if let Ok((header, body)) = parse(&bytes, SALT, 8)
            && header.kind == RecordKind::Run
            && let Ok(ranges) = entry_ranges(&header, &bytes[body.clone()])
        {
            for range in ranges.into_ranges() {
                prop_assert!(range.end <= body.len());
            }
        }
    }
}

#[test]
fn headers_come_back() {
    let segment = SegmentHeader {
        generation: 77,
        salt: SALT,
    };
    assert_eq!(SegmentHeader::parse(&segment.encode()), Ok(segment));
    let commit = CommitHeader {
        commit: 9,
        first_record: 100,
        records: 4,
        body_bytes: 300,
        span: 4096,
    };
    let bytes = commit.encode(SALT, 4096);
    assert_eq!(CommitHeader::parse(&bytes, SALT, 4096), Ok(commit));
    assert_eq!(
        CommitHeader::parse(&bytes, SALT, 8192),
        Err(RecordError::Header)
    );
    let short_span = CommitHeader {
        span: 339,
        ..commit
    };
    assert_eq!(
        CommitHeader::parse(&short_span.encode(SALT, 0), SALT, 0),
        Err(RecordError::Fields)
    );
}

#[test]
fn too_much_for_one_record_is_refused() {
    let entry = Bytes::from(vec![0; BODY_BYTES_MAX]);
    assert!(RecordHeader::run(LedgerId(1), EntryId(0), std::slice::from_ref(&entry)).is_some());
    assert!(RecordHeader::run(LedgerId(1), EntryId(0), &[entry, Bytes::new()]).is_none());
    assert!(RecordHeader::run(LedgerId(1), EntryId(0), &[]).is_none());
}

/// The bytes of version 1: a change here is a change of the format.
#[test]
fn golden_bytes() {
    let (_, bytes) = encoded(&[Bytes::from_static(b"ab"), Bytes::from_static(b"c")], 4136);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, include_str!("run.hex").trim());
}
