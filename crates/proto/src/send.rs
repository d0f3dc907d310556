//! The commands of the hot path by hand: SEND, SEND_RECEIPT and MESSAGE.
//!
//! They are decoded and encoded for every frame, without allocating. For each the bytes are the
//! same as prost's (tests compare them), and whatever is unusual in a SEND goes to prost.

use bytes::BytesMut;
use prost::Message;

use crate::command::{Command, Scan, scan};
use crate::error::{FrameError, WireError};
use crate::pb;
use crate::wire::{Fields, Scratch, Value, put_varint_field, varint_field_len, varint_len};

/// The content of a SEND command.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Send {
    pub producer_id: u64,
    pub sequence_id: u64,
    /// 1 where the client does not say.
    pub num_messages: i32,
    pub txnid_least_bits: Option<u64>,
    pub txnid_most_bits: Option<u64>,
    /// The last sequence id of a batch.
    pub highest_sequence_id: Option<u64>,
    pub is_chunk: bool,
    pub marker: bool,
    /// Ledger and entry id, on shadow topics only.
    pub message_id: Option<(u64, u64)>,
}

const SEND: i32 = 6;
const SEND_RECEIPT: u8 = 7;
const MESSAGE: u8 = 9;

impl Send {
    /// The content if the command is a SEND, else `None`.
    #[inline]
    pub fn decode(command: &[u8]) -> Result<Option<Send>, FrameError> {
        match scan(command)? {
            Scan::Plain {
                number: SEND,
                body: Some(body),
            } => Ok(Some(Send::decode_body(body)?)),
            Scan::Plain {
                number: SEND,
                body: None,
            } => Err(FrameError::MissingBody { name: "SEND" }),
            Scan::Plain { .. } => Ok(None),
            Scan::Odd => match Command::decode(command)? {
                Command::Send(send) => Ok(Some(send.into())),
                _ => Ok(None),
            },
        }
    }

    #[inline]
    fn decode_body(body: &[u8]) -> Result<Send, FrameError> {
        let mut fields = Fields::new(body);
        let mut send = Send {
            num_messages: 1,
            ..Send::default()
        };
        let mut seen = 0u8;
        while let Some(field) = fields.next()? {
            match field {
                (1, Value::Varint(id)) => {
                    send.producer_id = id;
                    seen |= 1;
                }
                (2, Value::Varint(id)) => {
                    send.sequence_id = id;
                    seen |= 2;
                }
                (3, Value::Varint(count)) => send.num_messages = count as i32,
                (4, Value::Varint(bits)) => send.txnid_least_bits = Some(bits),
                (5, Value::Varint(bits)) => send.txnid_most_bits = Some(bits),
                (6, Value::Varint(id)) => send.highest_sequence_id = Some(id),
                (7, Value::Varint(flag)) => send.is_chunk = flag != 0,
                (8, Value::Varint(flag)) => send.marker = flag != 0,
                // A message id, or a known field of a wrong type: rare enough for prost.
                (1..=9, _) => return Ok(pb::CommandSend::decode(body)?.into()),
                _ => {}
            }
        }
        match seen {
            3 => Ok(send),
            2 => Err(WireError::Missing("producer_id").into()),
            _ => Err(WireError::Missing("sequence_id").into()),
        }
    }

    fn body_len(&self) -> usize {
        let optional = |value: Option<u64>| value.map_or(0, varint_field_len);
        varint_field_len(self.producer_id)
            + varint_field_len(self.sequence_id)
            + if self.num_messages == 1 {
                0
            } else {
                varint_field_len(self.num_messages as u64)
            }
            + optional(self.txnid_least_bits)
            + optional(self.txnid_most_bits)
            + optional(self.highest_sequence_id)
            + 2 * usize::from(self.is_chunk)
            + 2 * usize::from(self.marker)
    }

    /// Appends the head of a SEND frame: sizes and command. The caller writes the `block_len` bytes
    /// of the headers-and-payload block after it. A message id is not written; clients have none.
    #[inline]
    pub fn encode_frame(&self, block_len: usize, out: &mut BytesMut) {
        let mut head = begin(SEND as u8, self.body_len(), block_len);
        head.field(1, self.producer_id);
        head.field(2, self.sequence_id);
        if self.num_messages != 1 {
            head.field(3, self.num_messages as u64);
        }
        for (number, value) in [
            (4, self.txnid_least_bits),
            (5, self.txnid_most_bits),
            (6, self.highest_sequence_id),
        ] {
            if let Some(value) = value {
                head.field(number, value);
            }
        }
        if self.is_chunk {
            head.field(7, 1);
        }
        if self.marker {
            head.field(8, 1);
        }
        out.extend_from_slice(head.as_slice());
    }
}

/// Sizes, type and body's head of a frame whose body follows.
#[inline]
fn begin(number: u8, body_len: usize, block_len: usize) -> Scratch {
    let command_len = 3 + varint_len(body_len as u64) + body_len;
    debug_assert!(4 + command_len + block_len <= u32::MAX as usize);
    let mut head = Scratch::new();
    head.u32((4 + command_len + block_len) as u32);
    head.u32(command_len as u32);
    head.byte(0x08);
    head.byte(number);
    head.byte(number << 3 | 2);
    head.varint(body_len as u64);
    head
}

impl From<pb::CommandSend> for Send {
    fn from(send: pb::CommandSend) -> Self {
        Self {
            producer_id: send.producer_id,
            sequence_id: send.sequence_id,
            num_messages: send.num_messages(),
            txnid_least_bits: send.txnid_least_bits,
            txnid_most_bits: send.txnid_most_bits,
            highest_sequence_id: send.highest_sequence_id,
            is_chunk: send.is_chunk(),
            marker: send.marker(),
            message_id: send.message_id.map(|id| (id.ledger_id, id.entry_id)),
        }
    }
}

/// The content of a SEND_RECEIPT command.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SendReceipt {
    pub producer_id: u64,
    pub sequence_id: u64,
    /// As in the SEND that it answers.
    pub highest_sequence_id: Option<u64>,
    pub ledger_id: u64,
    pub entry_id: u64,
}

impl SendReceipt {
    /// Appends the whole frame.
    #[inline]
    pub fn encode_frame(&self, out: &mut BytesMut) {
        let id_len = varint_field_len(self.ledger_id) + varint_field_len(self.entry_id);
        let body_len = varint_field_len(self.producer_id)
            + varint_field_len(self.sequence_id)
            + 1
            + varint_len(id_len as u64)
            + id_len
            + self.highest_sequence_id.map_or(0, varint_field_len);
        let mut head = begin(SEND_RECEIPT, body_len, 0);
        head.field(1, self.producer_id);
        head.field(2, self.sequence_id);
        head.byte(3 << 3 | 2);
        head.varint(id_len as u64);
        head.field(1, self.ledger_id);
        head.field(2, self.entry_id);
        if let Some(highest) = self.highest_sequence_id {
            head.field(4, highest);
        }
        out.extend_from_slice(head.as_slice());
    }

    /// The content if the command is a SEND_RECEIPT in its usual form, else `None`.
    #[inline]
    pub fn decode(command: &[u8]) -> Result<Option<SendReceipt>, FrameError> {
        let Scan::Plain {
            number: 7,
            body: Some(body),
        } = scan(command)?
        else {
            return Ok(None);
        };
        let mut receipt = SendReceipt {
            ledger_id: u64::MAX,
            entry_id: u64::MAX,
            ..Self::default()
        };
        let mut fields = Fields::new(body);
        while let Some(field) = fields.next()? {
            match field {
                (1, Value::Varint(id)) => receipt.producer_id = id,
                (2, Value::Varint(id)) => receipt.sequence_id = id,
                (3, Value::Bytes(id)) => {
                    (receipt.ledger_id, receipt.entry_id, _) = decode_message_id(id)?;
                }
                (4, Value::Varint(id)) => receipt.highest_sequence_id = Some(id),
                (1..=4, _) => return Ok(None),
                _ => {}
            }
        }
        Ok(Some(receipt))
    }
}

fn decode_message_id(bytes: &[u8]) -> Result<(u64, u64, Option<i32>), WireError> {
    let (mut ledger_id, mut entry_id, mut partition) = (None, None, None);
    let mut fields = Fields::new(bytes);
    while let Some(field) = fields.next()? {
        match field {
            (1, Value::Varint(id)) => ledger_id = Some(id),
            (2, Value::Varint(id)) => entry_id = Some(id),
            (3, Value::Varint(index)) => partition = Some(index as i32),
            _ => {}
        }
    }
    Ok((
        ledger_id.ok_or(WireError::Missing("ledger_id"))?,
        entry_id.ok_or(WireError::Missing("entry_id"))?,
        partition,
    ))
}

/// The content of a MESSAGE command.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Delivery<'a> {
    pub consumer_id: u64,
    pub ledger_id: u64,
    pub entry_id: u64,
    /// Left out of the frame where `None`; readers then see -1.
    pub partition: Option<i32>,
    pub redelivery_count: u32,
    /// Words of the set of messages that are still unacknowledged; empty for all of them.
    pub ack_set: &'a [i64],
    pub consumer_epoch: Option<u64>,
}

impl Delivery<'_> {
    /// Appends the head of a MESSAGE frame: sizes and command. The caller writes the `block_len`
    /// bytes of the stored block after it.
    #[inline]
    pub fn encode_frame(&self, block_len: usize, out: &mut BytesMut) {
        let partition = self.partition.map(|index| i64::from(index) as u64);
        let id_len = varint_field_len(self.ledger_id)
            + varint_field_len(self.entry_id)
            + partition.map_or(0, varint_field_len);
        let redelivered = self.redelivery_count > 0;
        let body_len = varint_field_len(self.consumer_id)
            + 1
            + varint_len(id_len as u64)
            + id_len
            + if redelivered {
                varint_field_len(self.redelivery_count.into())
            } else {
                0
            }
            + self
                .ack_set
                .iter()
                .map(|&word| varint_field_len(word as u64))
                .sum::<usize>()
            + self.consumer_epoch.map_or(0, varint_field_len);
        let mut head = begin(MESSAGE, body_len, block_len);
        head.field(1, self.consumer_id);
        head.byte(2 << 3 | 2);
        head.varint(id_len as u64);
        head.field(1, self.ledger_id);
        head.field(2, self.entry_id);
        if let Some(partition) = partition {
            head.field(3, partition);
        }
        if redelivered {
            head.field(3, self.redelivery_count.into());
        }
        out.extend_from_slice(head.as_slice());
        // As long as a batch has messages, so not on the stack.
        for &word in self.ack_set {
            put_varint_field(out, 4, word as u64);
        }
        if let Some(epoch) = self.consumer_epoch {
            put_varint_field(out, 5, epoch);
        }
    }

    /// The content if the command is a MESSAGE without an ack set, else `None`.
    #[inline]
    pub fn decode(command: &[u8]) -> Result<Option<Delivery<'static>>, FrameError> {
        let Scan::Plain {
            number: 9,
            body: Some(body),
        } = scan(command)?
        else {
            return Ok(None);
        };
        let mut delivery = Delivery::default();
        let mut seen = 0u8;
        let mut fields = Fields::new(body);
        while let Some(field) = fields.next()? {
            match field {
                (1, Value::Varint(id)) => {
                    delivery.consumer_id = id;
                    seen |= 1;
                }
                (2, Value::Bytes(id)) => {
                    (delivery.ledger_id, delivery.entry_id, delivery.partition) =
                        decode_message_id(id)?;
                    seen |= 2;
                }
                (3, Value::Varint(count)) => delivery.redelivery_count = count as u32,
                (5, Value::Varint(epoch)) => delivery.consumer_epoch = Some(epoch),
                (1..=5, _) => return Ok(None),
                _ => {}
            }
        }
        // Whatever lacks a required field is an error that prost words.
        Ok((seen == 3).then_some(delivery))
    }
}

#[cfg(test)]
mod tests;
