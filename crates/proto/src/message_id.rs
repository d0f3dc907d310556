//! Message ids: where a message is, in the forms that clients print, store and send.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use prost::Message as _;

use crate::pb::MessageIdData;

/// The place of a message. Java peers use signed numbers, and so does the order of ids: -1 is
/// before everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MessageId {
    pub ledger_id: i64,
    pub entry_id: i64,
    /// -1 for a topic that is not a partition.
    pub partition: i32,
    /// -1 for a message that is not in a batch.
    pub batch_index: i32,
    /// Messages in the batch; 0 where not known or not in a batch. Not part of the order.
    pub batch_size: i32,
    /// Ledger and entry of the first chunk of a chunked message; the id itself is the last's.
    pub first_chunk: Option<(i64, i64)>,
}

impl MessageId {
    /// Before the first message.
    pub const EARLIEST: MessageId = MessageId::entry(-1, -1);
    /// After the last message.
    pub const LATEST: MessageId = MessageId::entry(i64::MAX, i64::MAX);

    /// The id of an entry that is no batch, in a topic that is no partition.
    pub const fn entry(ledger_id: i64, entry_id: i64) -> Self {
        Self {
            ledger_id,
            entry_id,
            partition: -1,
            batch_index: -1,
            batch_size: 0,
            first_chunk: None,
        }
    }

    /// The same entry, without the place in its batch.
    pub fn without_batch(self) -> Self {
        Self {
            batch_index: -1,
            batch_size: 0,
            ..self
        }
    }

    /// The same id, without where its chunks begin.
    pub fn without_chunk(self) -> Self {
        Self {
            first_chunk: None,
            ..self
        }
    }

    /// Ledger and entry.
    pub fn position(&self) -> (i64, i64) {
        (self.ledger_id, self.entry_id)
    }

    /// As clients store it: Java's `MessageId.toByteArray`.
    pub fn to_bytes(self) -> Vec<u8> {
        self.to_data().encode_to_vec()
    }

    /// What [`to_bytes`](Self::to_bytes) or a client wrote; none for other bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let data = MessageIdData::decode(bytes).ok()?;
        Some(Self::from(&data))
    }

    /// For a command: ledger, entry and partition, and the batch index where there is one.
    pub fn to_data(self) -> MessageIdData {
        MessageIdData {
            ledger_id: self.ledger_id as u64,
            entry_id: self.entry_id as u64,
            partition: (self.partition >= 0).then_some(self.partition),
            batch_index: (self.batch_index >= 0).then_some(self.batch_index),
            batch_size: (self.batch_size > 0).then_some(self.batch_size),
            ack_set: Vec::new(),
            first_chunk_message_id: self.first_chunk.map(|(ledger_id, entry_id)| {
                Box::new(MessageId::entry(ledger_id, entry_id).to_data())
            }),
        }
    }
}

impl From<&MessageIdData> for MessageId {
    fn from(data: &MessageIdData) -> Self {
        Self {
            ledger_id: data.ledger_id as i64,
            entry_id: data.entry_id as i64,
            partition: data.partition(),
            batch_index: data.batch_index(),
            batch_size: data.batch_size(),
            first_chunk: data
                .first_chunk_message_id
                .as_ref()
                .map(|first| (first.ledger_id as i64, first.entry_id as i64)),
        }
    }
}

impl PartialOrd for MessageId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for MessageId {
    fn cmp(&self, other: &Self) -> Ordering {
        let key = |id: &MessageId| {
            (
                id.ledger_id,
                id.entry_id,
                id.partition,
                id.batch_index,
                // What equality looks at besides the place.
                id.batch_size,
                id.first_chunk,
            )
        };
        key(self).cmp(&key(other))
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Each message of a function is told its id: the general way with numbers costs several times this.
        let mut digits = itoa::Buffer::new();
        f.write_str(digits.format(self.ledger_id))?;
        f.write_str(":")?;
        f.write_str(digits.format(self.entry_id))?;
        f.write_str(":")?;
        f.write_str(digits.format(self.partition))?;
        if self.batch_index >= 0 {
            f.write_str(":")?;
            f.write_str(digits.format(self.batch_index))?;
        }
        Ok(())
    }
}

/// Text that is not a message id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("message id `{0}` is not `ledger:entry[:partition[:batch-index]]`, `earliest` or `latest`")]
pub struct ParseMessageIdError(String);

impl FromStr for MessageId {
    type Err = ParseMessageIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "earliest" => return Ok(Self::EARLIEST),
            "latest" => return Ok(Self::LATEST),
            _ => {}
        }
        let error = || ParseMessageIdError(text.to_owned());
        let mut parts = text.split(':');
        let mut number = || {
            parts
                .next()
                .map(str::parse::<i64>)
                .transpose()
                .map_err(|_| error())
        };
        let (Some(ledger_id), Some(entry_id)) = (number()?, number()?) else {
            return Err(error());
        };
        let mut small = || match number()? {
            Some(value) => i32::try_from(value).map_err(|_| error()),
            None => Ok(-1),
        };
        let (partition, batch_index) = (small()?, small()?);
        if parts.next().is_some() {
            return Err(error());
        }
        Ok(Self {
            partition,
            batch_index,
            ..Self::entry(ledger_id, entry_id)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_goes_round() {
        for text in ["1:2:-1", "1:2:3", "1:2:-1:4", "-1:-1:-1"] {
            let id: MessageId = text.parse().unwrap();
            assert_eq!(id.to_string(), text);
        }
        assert_eq!("5:6".parse(), Ok(MessageId::entry(5, 6)));
        assert_eq!("earliest".parse(), Ok(MessageId::EARLIEST));
        assert_eq!("latest".parse(), Ok(MessageId::LATEST));
        for text in ["", "1", "a:b", "1:2:3:4:5", "1:", "1:2:99999999999"] {
            assert!(text.parse::<MessageId>().is_err(), "{text}");
        }
    }

    #[test]
    fn ids_have_pulsars_order() {
        let sorted = [
            "earliest", "0:0", "0:1", "0:1:0", "0:1:0:0", "0:1:0:1", "1:0", "latest",
        ];
        let ids: Vec<MessageId> = sorted.iter().map(|text| text.parse().unwrap()).collect();
        assert!(ids.is_sorted(), "{ids:?}");
    }

    #[test]
    fn commands_carry_ids_whole() {
        let id = MessageId {
            partition: 3,
            batch_index: 1,
            batch_size: 5,
            first_chunk: Some((1, 0)),
            ..MessageId::entry(1, 2)
        };
        assert_eq!(MessageId::from(&id.to_data()), id);
        assert_eq!(MessageId::from_bytes(&id.to_bytes()), Some(id));
        let java = [0x08, 0x92, 0x12, 0x10, 0x00, 0x30, 0x00];
        assert_eq!(
            MessageId::from_bytes(&java),
            Some(MessageId::entry(2322, 0))
        );
        assert_eq!(MessageId::from_bytes(b"nonsense"), None);
        let data = MessageId::EARLIEST.to_data();
        assert_eq!((data.ledger_id, data.partition), (u64::MAX, None));
        assert_eq!(MessageId::from(&data), MessageId::EARLIEST);
    }
}
