use proptest::prelude::*;

use super::*;
use crate::disk::faulty::FaultyDisk;

const BEGIN: Begin = Begin {
    number: 3,
    replay_record: 400,
    sorted_generation: 9,
    next_commit: 70,
};
const END: End = End {
    durable_record: 420,
    reserved_ledgers: 2048,
    last_file: 12,
};

fn write(disk: &FaultyDisk, records: usize) -> Vec<u8> {
    let mut writer = CheckpointWriter::create(disk).unwrap();
    writer.push(&Item::Begin(BEGIN));
    for record in 0..records {
        writer.push(&Item::State(&vec![record as u8; record % 300]));
        let ranges = vec![
            SortedRange {
                first: record as i64,
                file: 1,
                bytes: 9
            };
            record % 3
        ];
        let ledger = LedgerId(record as i64);
        writer.push(&Item::Ledger {
            ledger,
            entries: 5,
            bytes: 6,
            ranges,
        });
    }
    writer.push(&Item::File {
        file: 12,
        size: 1000,
        payload_bytes: 900,
    });
    let size = writer.finish(END).unwrap();
    let content = disk.content(TEMPORARY).unwrap();
    assert_eq!(content.len() as u64, size);
    content
}

fn read_all(disk: &FaultyDisk) -> Result<Vec<String>, StoreError> {
    let mut items = Vec::new();
    read(disk, TEMPORARY, |item| {
        items.push(format!("{item:?}"));
        Ok(())
    })?;
    Ok(items)
}

#[test]
fn a_checkpoint_comes_back_and_every_flipped_bit_is_seen() {
    let disk = FaultyDisk::new(1);
    let content = write(&disk, 1500);
    let items = read_all(&disk).unwrap();
    assert_eq!(items.len(), 3003);
    assert_eq!(items[0], format!("{:?}", Item::Begin(BEGIN)));
    assert_eq!(items[3002], format!("{:?}", Item::End(END)));
    assert!(content.len() > 3 * BLOCK_BYTES, "several blocks");
    for place in (0..content.len()).step_by(1009).chain([content.len() - 1]) {
        disk.flip_bit(TEMPORARY, place as u64, place as u8);
        assert!(read_all(&disk).is_err(), "byte {place}");
        disk.flip_bit(TEMPORARY, place as u64, place as u8);
    }
}

#[test]
fn a_part_of_a_checkpoint_is_none() {
    let disk = FaultyDisk::new(2);
    let content = write(&disk, 700);
    for length in (0..content.len()).step_by(5003).chain([content.len() - 1]) {
        let part = FaultyDisk::new(3);
        part.open(TEMPORARY, Open::Create)
            .unwrap()
            .write_at(&content[..length], 0)
            .unwrap();
        assert!(read_all(&part).is_err(), "{length} bytes");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn arbitrary_bytes_do_not_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_block(&bytes, 0);
        let _ = Item::parse(&bytes);
        if bytes.len() > BLOCK_HEADER_BYTES {
            // Right checksums over arbitrary items.
            let length = (bytes.len() - BLOCK_HEADER_BYTES) as u32;
            bytes[..4].copy_from_slice(&length.to_le_bytes());
            let checksum = block_checksum(0, &bytes[BLOCK_HEADER_BYTES..]);
            bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
        }
        let disk = FaultyDisk::new(0);
        disk.open(TEMPORARY, Open::Create).unwrap().write_at(&bytes, 0).unwrap();
        prop_assert!(read_all(&disk).is_err());
    }

    #[test]
    fn items_come_back(
        state in prop::collection::vec(any::<u8>(), 0..100),
        ranges in prop::collection::vec((any::<i64>(), any::<u32>(), any::<u32>()), 0..5),
    ) {
        let ranges = ranges.into_iter().map(|(first, file, bytes)| SortedRange { first, file, bytes });
        let ledger = Item::Ledger {
            ledger: LedgerId(-4),
            entries: 7,
            bytes: u64::MAX,
            ranges: ranges.collect(),
        };
        for item in [Item::State(&state), ledger] {
            let mut bytes = Vec::new();
            item.encode(&mut bytes);
            prop_assert_eq!(Item::parse(&bytes), Ok((item, bytes.len())));
        }
    }
}
