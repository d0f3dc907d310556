//! What survives, against a plain model.

use std::collections::BTreeMap;

use proptest::prelude::*;

use geminga_proto::pb::EncryptionKeys;

use super::*;

#[derive(Debug, Clone)]
struct Message {
    key: Option<u8>,
    empty: bool,
}

fn message() -> impl Strategy<Value = Message> {
    (
        proptest::option::weighted(0.9, 0..5u8),
        prop::bool::weighted(0.2),
    )
        .prop_map(|(key, empty)| Message { key, empty })
}

fn metadata(codec: CompressionType) -> MessageMetadata {
    MessageMetadata {
        producer_name: "p".to_owned(),
        compression: Some(codec as i32),
        ..MessageMetadata::default()
    }
}

fn block(mut metadata: MessageMetadata, raw: Bytes) -> Bytes {
    metadata.uncompressed_size = Some(raw.len() as u32);
    let packed = compress(metadata.compression(), &raw).unwrap();
    let mut block = encode_headers(&metadata, &packed);
    block.extend_from_slice(&packed);
    block.freeze()
}

/// One message alone, or several as a batch. The payload says which message it is.
fn entry(number: i64, messages: &[Message], batch: bool, codec: CompressionType) -> Entry {
    let text = |index: usize| match messages[index].empty {
        true => Bytes::new(),
        false => Bytes::from(format!("{number} {index}")),
    };
    let key = |index: usize| messages[index].key.map(|key| key.to_string());
    let data = if batch {
        let mut builder = Builder::default();
        for index in 0..messages.len() {
            let mut single = SingleMessageMetadata {
                partition_key: key(index),
                ..SingleMessageMetadata::default()
            };
            builder.push(&mut single, &text(index));
        }
        let (raw, count) = builder.finish();
        let metadata = MessageMetadata {
            num_messages_in_batch: Some(count),
            ..metadata(codec)
        };
        block(metadata, raw)
    } else {
        let metadata = MessageMetadata {
            partition_key: key(0),
            ..metadata(codec)
        };
        block(metadata, text(0))
    };
    Entry {
        position: Position::new(1, number),
        data,
    }
}

fn survivors(entries: &[Entry], retain: bool) -> Vec<Entry> {
    let mut survivors = Survivors::new(retain, 1 << 20);
    entries.iter().for_each(|entry| survivors.note(entry));
    let keep = |entry: &Entry| {
        Some(Entry {
            position: entry.position,
            data: survivors.keep(entry)?,
        })
    };
    entries.iter().filter_map(keep).collect()
}

/// What a reader of these entries gets: (key, payload), and the ids of all.
fn read(entries: &[Entry]) -> Vec<(i64, usize, Option<String>, String)> {
    let mut out = Vec::new();
    for entry in entries {
        geminga_proto::message::verify_checksum(&entry.data).unwrap();
        let metadata = decode_metadata(&entry.data).unwrap();
        let size = metadata.uncompressed_size() as usize;
        let packed = payload(&entry.data).unwrap();
        let raw = decompress(metadata.compression() as i32, &packed, size, 1 << 20).unwrap();
        let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        let number = entry.position.entry.0;
        match metadata.num_messages_in_batch {
            None => out.push((number, 0, metadata.partition_key.clone(), text(&raw))),
            Some(count) => {
                for (index, message) in batch::read(raw, count).enumerate() {
                    let (single, payload) = message.unwrap();
                    if !single.compacted_out() {
                        out.push((number, index, single.partition_key, text(&payload)));
                    }
                }
            }
        }
    }
    out
}

proptest! {
    #[test]
    fn the_last_of_each_key_survives_with_its_id(
        entries in prop::collection::vec(
            (prop::collection::vec(message(), 1..5), any::<bool>(), 0..4i32), 0..30),
        cut in 0..30usize,
        retain: bool,
    ) {
        let entries: Vec<Entry> = (0..).zip(&entries).map(|(number, (messages, batch, codec))| {
            entry(number, messages, *batch, CompressionType::try_from(*codec).unwrap())
        }).collect();
        let all = read(&entries);
        let mut last = BTreeMap::new();
        for (number, index, key, text) in &all {
            match key {
                Some(key) if text.is_empty() => { last.remove(key); }
                Some(key) => { last.insert(key.clone(), (*number, *index)); }
                None => {}
            }
        }
        let expected: Vec<_> = all.into_iter().filter(|(number, index, key, _)| match key {
            Some(key) => last.get(key) == Some(&(*number, *index)),
            None => retain,
        }).collect();
        prop_assert_eq!(read(&survivors(&entries, retain)), expected.clone());
        // In two runs it is the same: the view, and what came after it.
        let cut = cut.min(entries.len());
        let mut again = survivors(&entries[..cut], retain);
        again.extend_from_slice(&entries[cut..]);
        prop_assert_eq!(read(&survivors(&again, retain)), expected);
    }
}

#[test]
fn all_chunks_of_the_last_message_survive_and_those_of_an_unfinished_one() {
    let chunk = |number: i64, uuid: &str, id: i32| Entry {
        position: Position::new(1, number),
        data: block(
            MessageMetadata {
                partition_key: Some("k".to_owned()),
                uuid: Some(uuid.to_owned()),
                num_chunks_from_msg: Some(2),
                total_chunk_msg_size: Some(2),
                chunk_id: Some(id),
                ..metadata(CompressionType::None)
            },
            Bytes::from_static(b"x"),
        ),
    };
    let entries = [
        chunk(0, "a", 0),
        chunk(1, "a", 1),
        chunk(2, "b", 0),
        chunk(3, "b", 1),
        chunk(4, "c", 0),
    ];
    let kept = survivors(&entries, false);
    let numbers: Vec<i64> = kept.iter().map(|entry| entry.position.entry.0).collect();
    assert_eq!(numbers, [2, 3, 4]);
}

#[test]
fn encrypted_batches_are_left_alone_and_single_messages_go_by_their_key() {
    let encrypted = |number: i64, key: &str, batch: Option<i32>| Entry {
        position: Position::new(1, number),
        data: block(
            MessageMetadata {
                partition_key: Some(key.to_owned()),
                num_messages_in_batch: batch,
                encryption_keys: vec![EncryptionKeys {
                    key: "k".to_owned(),
                    value: b"v".to_vec().into(),
                    ..EncryptionKeys::default()
                }],
                ..metadata(CompressionType::None)
            },
            Bytes::from_static(b"not to be read"),
        ),
    };
    let entries = [
        encrypted(0, "a", None),
        encrypted(1, "a", Some(2)),
        encrypted(2, "a", Some(3)),
        encrypted(3, "a", None),
    ];
    let kept = survivors(&entries, false);
    assert_eq!(kept, entries[1..]);
}

#[test]
fn what_survives_of_a_batch_is_an_ack_set() {
    let keys = |keys: &[u8]| -> Vec<Message> {
        let message = |key: &u8| Message {
            key: Some(*key),
            empty: false,
        };
        keys.iter().map(message).collect()
    };
    let numbers: Vec<u8> = (0..100).collect();
    let entries = [
        entry(0, &keys(&numbers), true, CompressionType::Zstd),
        entry(1, &keys(&numbers[..70]), true, CompressionType::None),
    ];
    let kept = survivors(&entries, false);
    let words = |at: usize| view::survivors_of(&kept[at].data, 1 << 20);
    assert_eq!(words(0), Some(vec![0, ((1_i64 << 30) - 1) << 6]));
    assert_eq!(words(1), None, "all of it");
}

#[test]
fn what_does_not_survive_is_counted() {
    let message = |key: Option<u8>, empty| Message { key, empty };
    let entries = [
        entry(0, &[message(Some(1), false)], false, CompressionType::None),
        entry(
            1,
            &[message(Some(1), false), message(Some(2), false)],
            true,
            CompressionType::Lz4,
        ),
        entry(2, &[message(None, false)], false, CompressionType::None),
        entry(3, &[message(Some(2), true)], false, CompressionType::None),
    ];
    let mut survivors = Survivors::new(false, 1 << 20);
    entries.iter().for_each(|entry| survivors.note(entry));
    assert_eq!(survivors.removed(), 4);
}

#[test]
fn where_a_subscription_began_is_read_again() {
    let mut properties = Properties::new();
    let (asked, stands) = (Position::EARLIEST, Position::new(7, 3));
    assert!(remember_begin(&mut properties, asked, stands));
    assert_eq!(begin_of(&properties), Some((asked, stands)));
    assert!(remember_begin(&mut properties, stands, stands));
    assert_eq!(begin_of(&properties), None);
}

#[test]
fn what_cannot_be_opened_stays_and_markers_go() {
    let damaged = MessageMetadata {
        num_messages_in_batch: Some(3),
        ..metadata(CompressionType::None)
    };
    let marker = MessageMetadata {
        marker_type: Some(21),
        ..metadata(CompressionType::None)
    };
    let entries: Vec<Entry> = (0..)
        .zip([damaged, marker])
        .map(|(number, metadata)| Entry {
            position: Position::new(1, number),
            data: block(metadata, Bytes::from_static(b"?")),
        })
        .collect();
    let kept = survivors(&entries, false);
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0], entries[0]);
}
