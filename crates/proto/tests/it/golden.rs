//! What `testdata/README.md` describes.

use bytes::{Bytes, BytesMut};
use geminga_proto::frame::{FRAME_SIZE_MAX, Frames};
use geminga_proto::pb::CompressionType;
use geminga_proto::send::{Delivery, Send, SendReceipt};
use geminga_proto::{Command, batch, command, compress, message};

const SCENARIOS: [&str; 8] = [
    "batch-none",
    "batch-lz4",
    "batch-zlib",
    "batch-zstd",
    "batch-snappy",
    "single",
    "chunked",
    "consume",
];

/// A frame taken apart: command bytes, command, block.
type Cut = (Bytes, Command, Bytes);

fn frames(scenario: &str, side: &str) -> Vec<Cut> {
    let path = format!(
        "{}/testdata/{scenario}.{side}.bin",
        env!("CARGO_MANIFEST_DIR")
    );
    let mut buffer = BytesMut::from(&std::fs::read(&path).expect("a recording")[..]);
    let mut frames = Frames::cut(&mut buffer, FRAME_SIZE_MAX).expect("good frames");
    assert!(buffer.is_empty(), "{path} ends within a frame");
    let mut all = Vec::new();
    while let Some(frame) = frames.next() {
        let command = Bytes::copy_from_slice(frame.command_bytes());
        all.push((
            command,
            frame.command().expect("a good command"),
            frame.block_bytes(),
        ));
    }
    all
}

fn sends(scenario: &str) -> Vec<Cut> {
    let frames = frames(scenario, "client").into_iter();
    frames
        .filter(|(_, command, _)| matches!(command, Command::Send(_)))
        .collect()
}

#[test]
fn every_command_is_encoded_as_others_do() {
    let mut names = std::collections::BTreeSet::new();
    for scenario in SCENARIOS {
        for side in ["client", "broker"] {
            for (bytes, command, _) in frames(scenario, side) {
                let mut ours = Vec::new();
                command.encode(&mut ours);
                // The proxy wrote a number into this one with more bytes than it needs.
                if (scenario, command.name()) != ("chunked", "CONNECTED") {
                    assert_eq!(ours, bytes, "{command:?}");
                }
                assert!(!matches!(command, Command::Unknown(_)));
                names.insert(command.name());
            }
        }
    }
    for expected in [
        "CONNECT",
        "CONNECTED",
        "PRODUCER",
        "PRODUCER_SUCCESS",
        "SEND",
        "SEND_RECEIPT",
        "SUBSCRIBE",
        "SUCCESS",
        "FLOW",
        "MESSAGE",
        "ACK",
        "SEEK",
        "UNSUBSCRIBE",
        "CLOSE_PRODUCER",
        "CLOSE_CONSUMER",
        "REDELIVER_UNACKNOWLEDGED_MESSAGES",
        "PARTITIONED_METADATA",
        "PARTITIONED_METADATA_RESPONSE",
        "LOOKUP",
        "LOOKUP_RESPONSE",
        "GET_LAST_MESSAGE_ID",
        "GET_LAST_MESSAGE_ID_RESPONSE",
    ] {
        assert!(names.contains(expected), "{expected} was not recorded");
    }
}

#[test]
fn the_fast_decoders_agree_with_the_generated_ones() {
    for scenario in SCENARIOS {
        for side in ["client", "broker"] {
            for (bytes, command, block) in frames(scenario, side) {
                let mut again = BytesMut::new();
                match command {
                    Command::Send(slow) => {
                        let fast = Send::decode(&bytes).unwrap().unwrap();
                        assert_eq!(fast, slow.into());
                        // The client writes defaults that we leave out, so lengths may differ.
                        fast.encode_frame(block.len(), &mut again);
                        assert_eq!(Send::decode(&again[8..]).unwrap().unwrap(), fast);
                    }
                    Command::SendReceipt(slow) => {
                        let fast = SendReceipt::decode(&bytes).unwrap().unwrap();
                        assert_eq!(fast.sequence_id, slow.sequence_id);
                        let id = slow.message_id.unwrap();
                        assert_eq!((fast.ledger_id, fast.entry_id), (id.ledger_id, id.entry_id));
                    }
                    Command::Message(slow) => {
                        let fast = Delivery::decode(&bytes).unwrap().unwrap();
                        assert_eq!(fast.entry_id, slow.message_id.entry_id);
                        assert_eq!(fast.redelivery_count, slow.redelivery_count());
                        fast.encode_frame(block.len(), &mut again);
                        assert_eq!(Delivery::decode(&again[8..]).unwrap().unwrap(), fast);
                    }
                    _ => assert!(block.is_empty()),
                }
            }
        }
    }
}

#[test]
fn every_block_has_its_checksum_and_is_built_again_as_it_was() {
    let mut blocks = 0;
    for scenario in SCENARIOS {
        for side in ["client", "broker"] {
            for (_, _, block) in frames(scenario, side) {
                if block.is_empty() {
                    continue;
                }
                blocks += 1;
                message::verify_checksum(&block).unwrap();
                let metadata = message::decode_metadata(&block).unwrap();
                let peek = message::peek(&block).unwrap();
                assert_eq!(peek.producer_name, metadata.producer_name);
                assert_eq!(peek.sequence_id, metadata.sequence_id);
                assert_eq!(peek.publish_time, metadata.publish_time);
                let payload = message::payload(&block).unwrap();
                let mut ours = message::encode_headers(&metadata, &payload);
                ours.extend_from_slice(&payload);
                assert_eq!(ours, block);
            }
        }
    }
    assert!(blocks > 15, "{blocks}");
}

#[test]
fn batches_unpack_in_every_compression() {
    for (scenario, codec) in [
        ("batch-none", CompressionType::None),
        ("batch-lz4", CompressionType::Lz4),
        ("batch-zlib", CompressionType::Zlib),
        ("batch-zstd", CompressionType::Zstd),
        ("batch-snappy", CompressionType::Snappy),
    ] {
        let sends = sends(scenario);
        assert_eq!(sends.len(), 1, "{scenario}");
        let peek = message::peek(&sends[0].2).unwrap();
        assert_eq!(
            (peek.compression, peek.num_messages_in_batch),
            (codec as i32, Some(3))
        );
        let size = peek.uncompressed_size as usize;
        let packed = message::payload(&sends[0].2).unwrap();
        let raw = compress::decompress(peek.compression, &packed, size, size).unwrap();
        for (i, single) in batch::read(raw, 3).enumerate() {
            let (metadata, payload) = single.unwrap();
            assert_eq!(payload, format!("payload-{i}-{}", "x".repeat(100)));
            assert_eq!(metadata.partition_key, Some(format!("key-{i}")));
            assert_eq!(metadata.event_time, Some(1000 + i as u64));
            let n = i.to_string();
            let mut properties = metadata.properties;
            properties.sort_by(|a, b| a.key.cmp(&b.key));
            assert_eq!(properties, command::key_values([("empty", ""), ("n", &*n)]));
        }
    }
}

#[test]
fn single_messages_have_their_fields() {
    let sends = sends("single");
    let peeks: Vec<_> = sends
        .iter()
        .map(|(_, _, block)| message::peek(block).unwrap())
        .collect();
    assert_eq!(
        peeks
            .iter()
            .map(|peek| peek.sequence_id)
            .collect::<Vec<_>>(),
        [42, 43, 44]
    );
    assert!(
        peeks
            .iter()
            .all(|peek| peek.num_messages_in_batch.is_none())
    );
    assert_eq!(message::payload(&sends[0].2).unwrap(), "plain");
    assert_eq!(peeks[1].ordering_key, Some(&b"order"[..]));
    assert!(peeks[1].has_properties && !peeks[0].has_properties);
    assert_eq!(peeks[2].deliver_at_time, Some(1_700_000_000_000));
}

#[test]
fn chunks_make_up_the_message() {
    let mut whole = Vec::new();
    let sends = sends("chunked");
    for (i, (bytes, _, block)) in sends.iter().enumerate() {
        assert!(Send::decode(bytes).unwrap().unwrap().is_chunk);
        let peek = message::peek(block).unwrap();
        assert!(peek.is_chunk());
        assert_eq!(peek.chunk_id, Some(i as i32));
        assert_eq!(peek.num_chunks_from_msg, Some(sends.len() as i32));
        assert_eq!(peek.total_chunk_msg_size, Some(40_000));
        assert_eq!(peek.is_last_chunk(), i + 1 == sends.len());
        whole.extend_from_slice(&message::payload(block).unwrap());
    }
    assert_eq!(sends.len(), 3);
    let expected: Vec<u8> = (0..40_000u64).map(|i| (i * i % 251) as u8).collect();
    assert!(whole == expected);
}
