use proptest::prelude::*;

use super::*;
use crate::command::key_values;

fn metadata() -> impl Strategy<Value = MessageMetadata> {
    let some = |strategy: BoxedStrategy<u64>| proptest::option::of(strategy);
    (
        (
            "[a-z0-9-]{0,12}",
            any::<u64>(),
            any::<u64>(),
            some(any::<u64>().boxed()),
        ),
        proptest::option::of("\\PC{0,8}"),
        proptest::option::of(proptest::collection::vec(any::<u8>(), 0..8)),
        proptest::option::of(any::<i32>()),
        proptest::option::of(any::<i64>()),
        (
            proptest::option::of(any::<i32>()),
            proptest::option::of(0..9i32),
            any::<bool>(),
        ),
        some(any::<u64>().boxed()),
    )
        .prop_map(
            |(ids, key, ordering_key, batch, deliver_at, (marker, chunk, flag), txn)| {
                MessageMetadata {
                    producer_name: ids.0,
                    sequence_id: ids.1,
                    publish_time: ids.2,
                    highest_sequence_id: ids.3,
                    properties: key_values([("a", "1")]),
                    partition_key: key,
                    partition_key_b64_encoded: Some(flag),
                    ordering_key: ordering_key.map(Bytes::from),
                    num_messages_in_batch: batch,
                    deliver_at_time: deliver_at,
                    marker_type: marker,
                    chunk_id: chunk,
                    num_chunks_from_msg: chunk.map(|id| id + 1),
                    uuid: chunk.map(|id| format!("p-{id}")),
                    txnid_least_bits: txn,
                    event_time: txn,
                    null_value: Some(flag),
                    ..Default::default()
                }
            },
        )
}

proptest! {
    #[test]
    fn a_block_gives_back_metadata_and_payload(metadata in metadata(), payload: Vec<u8>) {
        let mut block = encode_headers(&metadata, &payload);
        block.extend_from_slice(&payload);
        let block = block.freeze();
        verify_checksum(&block).unwrap();
        prop_assert_eq!(&decode_metadata(&block).unwrap(), &metadata);
        prop_assert_eq!(&super::payload(&block).unwrap()[..], &payload[..]);

        let peek = peek(&block).unwrap();
        prop_assert_eq!(peek.producer_name, &metadata.producer_name);
        prop_assert_eq!(peek.sequence_id, metadata.sequence_id);
        prop_assert_eq!(peek.publish_time, metadata.publish_time);
        prop_assert_eq!(peek.highest_sequence_id, metadata.highest_sequence_id);
        prop_assert_eq!(peek.partition_key, metadata.partition_key.as_deref());
        prop_assert_eq!(peek.partition_key_b64_encoded, metadata.partition_key_b64_encoded());
        prop_assert_eq!(peek.ordering_key, metadata.ordering_key.as_deref());
        prop_assert_eq!(peek.num_messages_in_batch, metadata.num_messages_in_batch);
        prop_assert_eq!(peek.deliver_at_time, metadata.deliver_at_time);
        prop_assert_eq!(peek.marker_type, metadata.marker_type);
        prop_assert_eq!(peek.chunk_id, metadata.chunk_id);
        prop_assert_eq!(peek.num_chunks_from_msg, metadata.num_chunks_from_msg);
        prop_assert_eq!(peek.uuid, metadata.uuid.as_deref());
        prop_assert_eq!(peek.txnid_least_bits, metadata.txnid_least_bits);
        prop_assert_eq!(peek.event_time, metadata.event_time);
        prop_assert_eq!(peek.null_value, metadata.null_value());
        prop_assert!(peek.has_properties && !peek.has_encryption_keys);
    }

    #[test]
    fn garbage_is_an_error(bytes: Vec<u8>) {
        _ = (layout(&bytes), verify_checksum(&bytes), decode_metadata(&bytes), peek(&bytes));
        let bytes = Bytes::from(bytes);
        _ = (payload(&bytes), strip_broker_entry(&bytes), decode_broker_entry(&bytes));
    }

    #[test]
    fn one_flipped_bit_is_found(metadata in metadata(), payload: Vec<u8>, at: prop::sample::Index, bit in 0u32..8) {
        let mut block = encode_headers(&metadata, &payload);
        block.extend_from_slice(&payload);
        let at = 6 + at.index(block.len() - 6);
        block[at] ^= 1u8 << bit;
        prop_assert!(verify_checksum(&block).is_err());
    }
}

#[test]
fn a_block_without_a_checksum_is_read_too() {
    let metadata = MessageMetadata {
        producer_name: "p".into(),
        ..Default::default()
    };
    let mut block = encode_headers(&metadata, b"hello");
    block.extend_from_slice(b"hello");
    let block = block.freeze().slice(6..);
    verify_checksum(&block).unwrap();
    assert_eq!(peek(&block).unwrap().producer_name, "p");
    assert_eq!(payload(&block).unwrap(), &b"hello"[..]);
}

#[test]
fn broker_entry_metadata_goes_on_and_off() {
    let metadata = MessageMetadata {
        producer_name: "p".into(),
        ..Default::default()
    };
    let mut block = encode_headers(&metadata, b"x");
    block.extend_from_slice(b"x");
    let bare = block.freeze();
    let entry = BrokerEntryMetadata {
        broker_timestamp: Some(1_700_000_000_000),
        index: Some(42),
    };
    let mut stored = encode_broker_entry(&entry);
    stored.extend_from_slice(&bare);
    let stored = stored.freeze();
    assert_eq!(&stored[..2], [0x0e, 0x02]);
    assert_eq!(decode_broker_entry(&stored), Ok(Some(entry)));
    assert_eq!(decode_broker_entry(&bare), Ok(None));
    assert_eq!(strip_broker_entry(&stored).unwrap(), bare);
    assert_eq!(strip_broker_entry(&bare).unwrap(), bare);
    verify_checksum(&stored).unwrap();
    assert_eq!(peek(&stored).unwrap(), peek(&bare).unwrap());
}

#[test]
fn what_the_metadata_lacks_is_named() {
    assert_eq!(peek_metadata(&[]), Err(WireError::Missing("producer_name")));
    assert_eq!(
        peek_metadata(&[10, 0]),
        Err(WireError::Missing("sequence_id"))
    );
    assert_eq!(
        peek_metadata(&[10, 0, 16, 1]),
        Err(WireError::Missing("publish_time"))
    );
}

#[test]
fn a_block_gets_a_transaction_and_a_checksum_that_fits() {
    let metadata = MessageMetadata {
        producer_name: "p".to_owned(),
        sequence_id: 1,
        publish_time: 2,
        ..MessageMetadata::default()
    };
    let mut plain = encode_headers(&metadata, b"payload");
    plain.extend_from_slice(b"payload");
    let entry = BrokerEntryMetadata {
        index: Some(7),
        ..BrokerEntryMetadata::default()
    };
    let mut with_entry = encode_broker_entry(&entry);
    with_entry.extend_from_slice(&plain);
    for block in [plain.freeze(), with_entry.freeze()] {
        let named = with_transaction(&block, 3, 400).unwrap();
        verify_checksum(&named).unwrap();
        let expected = MessageMetadata {
            txnid_most_bits: Some(3),
            txnid_least_bits: Some(400),
            ..metadata.clone()
        };
        assert_eq!(decode_metadata(&named).unwrap(), expected);
        assert_eq!(payload(&named).unwrap(), "payload");
        let kept = decode_broker_entry(&named).unwrap();
        assert_eq!(kept, decode_broker_entry(&block).unwrap());
    }
    assert!(with_transaction(b"no", 1, 1).is_err());
}

#[test]
fn a_property_is_found_by_its_key() {
    let metadata = MessageMetadata {
        producer_name: "p".to_owned(),
        properties: key_values([("a", "1"), ("b", "2"), ("b", "3")]),
        ..MessageMetadata::default()
    };
    let block = encode_headers(&metadata, b"").freeze();
    for (key, value) in [("a", Some("1")), ("b", Some("2")), ("c", None)] {
        assert_eq!(property(&block, key), Ok(value), "{key}");
    }
}
