use std::sync::Arc;

use bytes::Bytes;
use geminga_model::{EntryId, LedgerId};
use geminga_stdx::Random;
use proptest::prelude::*;

use super::format::{FOOTER_BYTES, Footer, HEADER_BYTES, Index, parse_header};
use super::reader::SegmentFile;
use super::writer::{SegmentWriter, segment_file_name};
use crate::disk::faulty::FaultyDisk;
use crate::disk::{Disk, Open};
use crate::wal::record;

/// Ledgers with entries of random sizes, some of them beginning anew after a gap.
fn write(seed: u64) -> (FaultyDisk, Vec<(LedgerId, EntryId, Bytes)>) {
    let mut random = Random::new(seed);
    let disk = FaultyDisk::new(seed);
    let mut writer = SegmentWriter::create(&disk, 7).unwrap();
    let mut entries = Vec::new();
    for ledger in 0..1 + random.below(6) as i64 {
        let mut next = random.below(1000) as i64;
        for _ in 0..random.below(300) {
            let small = [0, 30, 300, 2000][random.below(4) as usize];
            let size = if random.one_in(60) { 70_000 } else { small };
            let data = Bytes::from(vec![next as u8; random.below(size + 1) as usize]);
            entries.push((LedgerId(ledger * 3), EntryId(next), data));
            next += if random.one_in(100) { 5 } else { 1 };
        }
    }
    // Alone, or in runs as the log has them: small ones, and some that stay as they are.
    let mut rest = entries.as_slice();
    while let Some((ledger, first, data)) = rest.first() {
        let follows = |at: usize| rest[at].0 == *ledger && rest[at].1.0 == first.0 + at as i64;
        let consecutive = (1..rest.len())
            .find(|at| !follows(*at))
            .unwrap_or(rest.len());
        let count = 1 + random.below(consecutive as u64) as usize;
        if count == 1 && random.one_in(2) {
            writer.push(*ledger, *first, data).unwrap();
        } else {
            let run: Vec<Bytes> = rest[..count]
                .iter()
                .map(|(.., data)| data.clone())
                .collect();
            let header = record::RecordHeader::run(*ledger, *first, &run).unwrap();
            writer.push_run(&header, &body(&run)).unwrap();
        }
        rest = &rest[count..];
    }
    let (size, ranges) = writer.finish().unwrap();
    assert_eq!(
        disk.content(&segment_file_name(7)).unwrap().len() as u64,
        size
    );
    assert_eq!(
        ranges
            .iter()
            .map(|range| range.count as usize)
            .sum::<usize>(),
        entries.len()
    );
    (disk, entries)
}

/// A run's body as the log has it.
fn body(run: &[Bytes]) -> Vec<u8> {
    let lengths = run.iter().filter(|_| run.len() > 1);
    let mut out: Vec<u8> = lengths
        .flat_map(|entry| (entry.len() as u32).to_le_bytes())
        .collect();
    run.iter().for_each(|entry| out.extend_from_slice(entry));
    out
}

fn entries_in(bytes: &Bytes, file: &SegmentFile, offset: u64) -> Vec<(EntryId, Bytes)> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let (header, body) = record::parse(&bytes[at..], file.salt, offset + at as u64).unwrap();
        let body = bytes.slice(at + body.start..at + body.end);
        let ranges = record::entry_ranges(&header, &body).unwrap().into_ranges();
        found.extend(
            (header.first.0..)
                .map(EntryId)
                .zip(ranges.map(|range| body.slice(range))),
        );
        at += header.record_bytes();
    }
    found
}

#[test]
fn what_is_written_is_found_again() {
    for seed in 0..20 {
        let (disk, entries) = write(seed);
        let file = SegmentFile::open(&disk, 7).unwrap();
        for (index, (ledger, entry, data)) in entries.iter().enumerate().step_by(7) {
            let bytes_max = 1 << (index % 20);
            let (bytes, offset) = file
                .read(*ledger, *entry, bytes_max, index % 2 == 0)
                .unwrap()
                .unwrap();
            // At least the two blocks around the entry.
            assert!(bytes.len() <= bytes_max.max(600_000), "seed {seed}");
            let found = entries_in(&bytes, &file, offset);
            let place = found.iter().position(|(found, _)| found == entry).unwrap();
            assert_eq!(&found[place].1, data);
            let rest = found[place..].iter().map(|(_, data)| data);
            assert!(
                rest.eq(entries[index..]
                    .iter()
                    .map(|(.., data)| data)
                    .take(found.len() - place))
            );
        }
        assert_eq!(
            file.read(LedgerId(1), EntryId(0), 1000, false).unwrap(),
            None
        );
        assert_eq!(
            file.read(LedgerId(0), EntryId(1 << 40), 1000, true)
                .unwrap(),
            None
        );
    }
}

/// Whatever is on the disk: an error or a file, no panic, and no more memory than the file is long.
fn open_bytes(bytes: &[u8]) {
    let disk = FaultyDisk::new(0);
    let file = disk.open(&segment_file_name(7), Open::Create).unwrap();
    file.write_at(bytes, 0).unwrap();
    if let Ok(file) = SegmentFile::open(&disk, 7) {
        for ledger in -1..4 {
            for first in [-1, 0, 5, i64::MAX] {
                let _ = file.read(LedgerId(ledger), EntryId(first), 1 << 20, true);
            }
        }
    }
}

#[test]
fn every_flipped_bit_of_header_index_and_footer_is_seen() {
    let (disk, _) = write(3);
    let good = disk.content(&segment_file_name(7)).unwrap();
    let footer = Footer::parse(&good[good.len() - FOOTER_BYTES..], good.len() as u64).unwrap();
    let places = (0..HEADER_BYTES).chain(footer.data_end as usize..good.len());
    for place in places {
        disk.flip_bit(&segment_file_name(7), place as u64, place as u8);
        assert!(SegmentFile::open(&disk, 7).is_err(), "byte {place}");
        disk.flip_bit(&segment_file_name(7), place as u64, place as u8);
    }
    assert!(SegmentFile::open(&disk, 7).is_ok());
    for length in (0..good.len()).rev().step_by(good.len() / 50) {
        open_bytes(&good[..length]);
    }
}

static GOOD: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn arbitrary_files_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        open_bytes(&bytes);
        prop_assert!(parse_header(&bytes).is_err());
    }

    /// Right checksums over arbitrary rows.
    #[test]
    fn sealed_garbage_does_not_panic(
        rows in prop::collection::vec(any::<[u8; 8]>(), 0..20),
        ledgers in 0_u32..6,
    ) {
        let good = GOOD.get_or_init(|| write(4).0.content(&segment_file_name(7)).unwrap());
        let index: Vec<u8> = rows.concat();
        let ledgers = ledgers.min(index.len() as u32 / 24);
        let footer = Footer {
            ledgers,
            blocks: (index.len() as u32 - ledgers * 24) / 8,
            data_end: 500,
            index_checksum: crc_fast::crc32_iscsi(&index),
        };
        let bytes = [&good[..500], &index, &footer.encode()].concat();
        open_bytes(&bytes);
        if let Ok(parsed) = Index::parse(&index, &footer) {
            for row in 0..parsed.ledgers.len() {
                prop_assert!(parsed.extent(row).is_some_and(|(at, bytes)| at + bytes as u64 <= 500));
            }
        }
    }
}

#[test]
fn a_disk_is_shared_by_reference() {
    // What the store relies on: an open file outlives its name.
    let (disk, entries) = write(5);
    let file = Arc::new(SegmentFile::open(&disk, 7).unwrap());
    disk.remove(&segment_file_name(7)).unwrap();
    let (ledger, entry, _) = &entries[0];
    assert!(file.read(*ledger, *entry, 1, false).unwrap().is_some());
}
