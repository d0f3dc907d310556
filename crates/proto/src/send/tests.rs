use proptest::prelude::*;

use super::*;
use crate::frame::{Frames, encode_command};
use bytes::Bytes;

/// The command bytes of the single frame in `out`, which is followed by `block`.
fn command_of(mut out: BytesMut, block: &[u8]) -> Bytes {
    out.extend_from_slice(block);
    let mut frames = Frames::cut(&mut out, usize::MAX).unwrap();
    let frame = frames.next().unwrap();
    assert_eq!(frame.block(), block);
    Bytes::copy_from_slice(frame.command_bytes())
}

fn framed(command: impl Into<Command>) -> BytesMut {
    let mut out = BytesMut::new();
    encode_command(&command.into(), &mut out);
    out
}

fn id() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..300, any::<u64>(), Just(u64::MAX)]
}

proptest! {
    #[test]
    fn send_is_what_prost_makes_of_it(
        producer_id in id(), sequence_id in id(), num_messages in 1i32..2000,
        least in proptest::option::of(id()), most in proptest::option::of(id()),
        highest in proptest::option::of(id()), is_chunk: bool, marker: bool,
    ) {
        let ours = Send {
            producer_id, sequence_id, num_messages, is_chunk, marker, message_id: None,
            txnid_least_bits: least, txnid_most_bits: most, highest_sequence_id: highest,
        };
        let theirs = pb::CommandSend {
            producer_id, sequence_id,
            num_messages: (num_messages != 1).then_some(num_messages),
            txnid_least_bits: least, txnid_most_bits: most, highest_sequence_id: highest,
            is_chunk: is_chunk.then_some(true), marker: marker.then_some(true), message_id: None,
        };
        let mut out = BytesMut::new();
        ours.encode_frame(5, &mut out);
        let command = command_of(out, b"block");
        prop_assert_eq!(&command, &command_of(framed(theirs), b""));
        prop_assert_eq!(Send::decode(&command).unwrap(), Some(ours));
    }

    #[test]
    fn send_receipt_is_what_prost_makes_of_it(
        producer_id in id(), sequence_id in id(), highest in proptest::option::of(id()),
        ledger_id in id(), entry_id in id(),
    ) {
        let ours = SendReceipt {
            producer_id, sequence_id, highest_sequence_id: highest, ledger_id, entry_id,
        };
        let theirs = pb::CommandSendReceipt {
            producer_id, sequence_id, highest_sequence_id: highest,
            message_id: Some(pb::MessageIdData { ledger_id, entry_id, ..Default::default() }),
        };
        let mut out = BytesMut::new();
        ours.encode_frame(&mut out);
        let command = command_of(out, b"");
        prop_assert_eq!(&command, &command_of(framed(theirs), b""));
        prop_assert_eq!(SendReceipt::decode(&command).unwrap(), Some(ours));
    }

    #[test]
    fn message_is_what_prost_makes_of_it(
        consumer_id in id(), ledger_id in id(), entry_id in id(),
        partition in proptest::option::of(-1i32..5), redelivery_count in 0u32..3,
        ack_set in proptest::collection::vec(any::<i64>(), 0..3),
        consumer_epoch in proptest::option::of(id()),
    ) {
        let ours = Delivery {
            consumer_id, ledger_id, entry_id, partition, redelivery_count,
            ack_set: &ack_set, consumer_epoch,
        };
        let theirs = pb::CommandMessage {
            consumer_id, consumer_epoch, ack_set: ack_set.clone(),
            redelivery_count: (redelivery_count > 0).then_some(redelivery_count),
            message_id: pb::MessageIdData { ledger_id, entry_id, partition, ..Default::default() },
        };
        let mut out = BytesMut::new();
        ours.encode_frame(2, &mut out);
        let command = command_of(out, b"xy");
        prop_assert_eq!(&command, &command_of(framed(theirs), b""));
        let back = Delivery::decode(&command).unwrap();
        prop_assert_eq!(back, ack_set.is_empty().then_some(ours));
    }

    #[test]
    fn garbage_is_no_panic(bytes: Vec<u8>) {
        let with_type = |number: u8| [&[0x08, number, number << 3 | 2, bytes.len() as u8], &bytes[..]].concat();
        _ = (Send::decode(&with_type(6)), SendReceipt::decode(&with_type(7)));
        _ = (Delivery::decode(&with_type(9)), Send::decode(&bytes));
    }
}

#[test]
fn a_send_for_a_shadow_topic_keeps_its_message_id() {
    let send = pb::CommandSend {
        producer_id: 1,
        sequence_id: 2,
        message_id: Some(pb::MessageIdData {
            ledger_id: 3,
            entry_id: 4,
            ..Default::default()
        }),
        ..Default::default()
    };
    let command = command_of(framed(send), b"");
    let send = Send::decode(&command).unwrap().unwrap();
    assert_eq!((send.message_id, send.num_messages), (Some((3, 4)), 1));
}

#[test]
fn a_send_without_its_ids_is_an_error() {
    assert!(Send::decode(&[0x08, 6, 0x32, 2, 0x08, 1]).is_err());
    assert!(Send::decode(&[0x08, 6, 0x32, 0]).is_err());
    assert!(Send::decode(&[0x08, 6]).is_err());
    assert_eq!(Send::decode(&[0x08, 18, 0x92, 1, 0]), Ok(None));
}
