//! What is acknowledged and not yet told to the broker, and which messages of batches are.
//!
//! The broker is told of an entry when all messages of it are acknowledged, or, with batch-index
//! acks, which are not. Pure: time and sending are the caller's.

use std::collections::HashMap;

use geminga_proto::MessageId;
use geminga_proto::pb::{CommandAck, MessageIdData, command_ack::AckType};

/// Ledger and entry.
pub(super) type Position = (i64, i64);

/// Positions in one ACK command, which keeps it well below the frame limit.
const ACK_POSITIONS_MAX: usize = 10_000;

/// Batches with some messages acknowledged that are remembered. Beyond it the oldest knowledge
/// goes: those messages are delivered again.
const BATCHES_MAX: usize = 50_000;

#[derive(Debug, Default)]
pub(super) struct Acks {
    batch_index: bool,
    individual: Vec<MessageIdData>,
    cumulative: Option<MessageIdData>,
    /// For batches with some messages acknowledged: those that are not.
    batches: HashMap<Position, Vec<u64>>,
    /// Batches of which the broker does not know the latest; only with batch-index acks.
    changed: Vec<Position>,
    /// For chunked messages, by the last chunk: the chunks before it.
    chunks: HashMap<Position, Vec<Position>>,
}

impl Acks {
    pub(super) fn new(batch_index: bool) -> Self {
        Self {
            batch_index,
            ..Self::default()
        }
    }

    /// How many positions wait to be sent.
    pub(super) fn waiting(&self) -> usize {
        self.individual.len() + self.changed.len() + usize::from(self.cumulative.is_some())
    }

    /// Remembers the chunks that make up the message that ends at `last`.
    pub(super) fn remember_chunks(&mut self, last: Position, before: Vec<Position>) {
        self.chunks.insert(last, before);
    }

    /// The chunks of a message, for redelivery.
    pub(super) fn chunks_of(&self, last: Position) -> &[Position] {
        self.chunks.get(&last).map_or(&[], Vec::as_slice)
    }

    /// One message.
    pub(super) fn ack(&mut self, id: &MessageId) {
        let position = id.position();
        if id.batch_index >= 0 && id.batch_size > 1 {
            if self.batches.len() >= BATCHES_MAX {
                self.batches.clear();
                self.changed.clear();
            }
            let unacked = self
                .batches
                .entry(position)
                .or_insert_with(|| all_bits(id.batch_size as usize));
            clear_bit(unacked, id.batch_index as usize);
            if unacked.iter().any(|&word| word != 0) {
                if self.batch_index && !self.changed.contains(&position) {
                    self.changed.push(position);
                }
                return;
            }
            self.batches.remove(&position);
            self.changed.retain(|&changed| changed != position);
        }
        for (ledger, entry) in self.chunks.remove(&position).unwrap_or_default() {
            self.individual
                .push(MessageId::entry(ledger, entry).to_data());
        }
        self.individual
            .push(id.without_batch().without_chunk().to_data());
    }

    /// All messages up to this one.
    pub(super) fn ack_cumulative(&mut self, id: &MessageId) {
        let position = id.position();
        let mut data = id.without_batch().without_chunk().to_data();
        let last_of_batch = id.batch_size <= 1 || id.batch_index + 1 >= id.batch_size;
        if id.batch_index >= 0 && !last_of_batch {
            if self.batch_index {
                let mut unacked = all_bits(id.batch_size as usize);
                (0..=id.batch_index as usize).for_each(|index| clear_bit(&mut unacked, index));
                data.ack_set = unacked.into_iter().map(|word| word as i64).collect();
                data.batch_size = Some(id.batch_size);
            } else if id.entry_id > 0 {
                // The part of the batch cannot be said; everything before it can.
                data.entry_id -= 1;
            } else {
                return;
            }
        }
        let is_newer = |old: &MessageIdData| {
            let key = |data: &MessageIdData| {
                // Fewer bits left is further.
                let left: u32 = data.ack_set.iter().map(|word| word.count_ones()).sum();
                (
                    data.ledger_id as i64,
                    data.entry_id as i64,
                    -i64::from(left),
                )
            };
            key(&data) > key(old)
        };
        if self.cumulative.as_ref().is_none_or(is_newer) {
            self.cumulative = Some(data);
        }
        self.batches.retain(|&before, _| before > position);
        self.changed.retain(|&before| before > position);
        self.chunks.retain(|&before, _| before > position);
    }

    /// Whether a message of a batch is acknowledged here; the broker may not know yet.
    pub(super) fn is_acked(&self, position: Position, batch_index: i32) -> bool {
        let Some(unacked) = self.batches.get(&position) else {
            return false;
        };
        usize::try_from(batch_index).is_ok_and(|index| !bit(unacked, index))
    }

    /// Whether any batch has messages acknowledged.
    pub(super) fn has_partial_batches(&self) -> bool {
        !self.batches.is_empty()
    }

    /// The commands that tell the broker; nothing waits afterwards.
    pub(super) fn take(&mut self, consumer_id: u64) -> Vec<CommandAck> {
        let command = |ack_type: AckType, message_id| CommandAck {
            consumer_id,
            ack_type: ack_type as i32,
            message_id,
            ..Default::default()
        };
        let mut commands = Vec::new();
        if let Some(id) = self.cumulative.take() {
            commands.push(command(AckType::Cumulative, vec![id]));
        }
        for (ledger, entry) in std::mem::take(&mut self.changed) {
            let Some(unacked) = self.batches.get(&(ledger, entry)) else {
                continue;
            };
            self.individual.push(MessageIdData {
                ack_set: unacked.iter().map(|&word| word as i64).collect(),
                ..MessageId::entry(ledger, entry).to_data()
            });
        }
        let mut individual = std::mem::take(&mut self.individual);
        while individual.len() > ACK_POSITIONS_MAX {
            let rest = individual.split_off(ACK_POSITIONS_MAX);
            commands.push(command(
                AckType::Individual,
                std::mem::replace(&mut individual, rest),
            ));
        }
        if !individual.is_empty() {
            commands.push(command(AckType::Individual, individual));
        }
        commands
    }

    /// The commands that acknowledge these in a transaction. Messages of one batch are said in one
    /// set; a batch that is all there is said as its entry.
    pub(super) fn in_transaction(
        &mut self,
        consumer_id: u64,
        ids: &[MessageId],
    ) -> Vec<CommandAck> {
        let mut said: Vec<MessageIdData> = Vec::with_capacity(ids.len());
        // Neighbours first: that is how batches come.
        let mut batch: Option<(Position, Vec<u64>, i32)> = None;
        let close = |batch: &mut Option<(Position, Vec<u64>, i32)>, said: &mut Vec<_>| {
            let Some(((ledger, entry), unacked, size)) = batch.take() else {
                return;
            };
            let mut data = MessageId::entry(ledger, entry).to_data();
            if unacked.iter().any(|&word| word != 0) {
                data.ack_set = unacked.into_iter().map(|word| word as i64).collect();
                data.batch_size = Some(size);
            }
            said.push(data);
        };
        for id in ids {
            let position = id.position();
            if id.batch_index >= 0 && id.batch_size > 1 {
                if batch.as_ref().is_none_or(|(ours, ..)| *ours != position) {
                    close(&mut batch, &mut said);
                }
                let all = || (position, all_bits(id.batch_size as usize), id.batch_size);
                let (_, unacked, _) = batch.get_or_insert_with(all);
                clear_bit(unacked, id.batch_index as usize);
                continue;
            }
            close(&mut batch, &mut said);
            for (ledger, entry) in self.chunks.remove(&position).unwrap_or_default() {
                said.push(MessageId::entry(ledger, entry).to_data());
            }
            said.push(id.without_batch().without_chunk().to_data());
        }
        close(&mut batch, &mut said);
        let commands = said.chunks(ACK_POSITIONS_MAX).map(|some| CommandAck {
            consumer_id,
            ack_type: AckType::Individual as i32,
            message_id: some.to_vec(),
            ..Default::default()
        });
        commands.collect()
    }

    /// Takes back commands that did not reach the broker.
    pub(super) fn put_back(&mut self, commands: Vec<CommandAck>) {
        for command in commands {
            if command.ack_type == AckType::Cumulative as i32 {
                if self.cumulative.is_none() {
                    self.cumulative = command.message_id.into_iter().next();
                }
            } else {
                self.individual.extend(command.message_id);
            }
        }
    }

    /// Forgets what is known of messages that will be delivered anew.
    pub(super) fn forget_deliveries(&mut self) {
        self.batches.clear();
        self.changed.clear();
        self.chunks.clear();
    }

    /// Forgets everything, as after a seek.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.batch_index);
    }
}

fn all_bits(count: usize) -> Vec<u64> {
    let mut words = vec![u64::MAX; count.div_ceil(64)];
    if let Some(last) = words.last_mut()
        && !count.is_multiple_of(64)
    {
        *last = (1 << (count % 64)) - 1;
    }
    words
}

fn clear_bit(words: &mut [u64], index: usize) {
    if let Some(word) = words.get_mut(index / 64) {
        *word &= !(1 << (index % 64));
    }
}

/// Whether a bit is set in words of Java's bit set layout.
pub(super) fn bit(words: &[u64], index: usize) -> bool {
    words
        .get(index / 64)
        .is_some_and(|word| word >> (index % 64) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(entry: i64, batch: Option<(i32, i32)>) -> MessageId {
        let (batch_index, batch_size) = batch.unwrap_or((-1, 0));
        MessageId {
            batch_index,
            batch_size,
            ..MessageId::entry(1, entry)
        }
    }

    /// Kind of ack, then entries with their sets.
    type Sent = (i32, Vec<(u64, Vec<i64>)>);

    fn sent(acks: &mut Acks) -> Vec<Sent> {
        let commands = acks.take(9).into_iter();
        commands
            .map(|command| {
                let ids = command.message_id.into_iter();
                (
                    command.ack_type,
                    ids.map(|id| (id.entry_id, id.ack_set)).collect(),
                )
            })
            .collect()
    }

    #[test]
    fn a_batch_is_acknowledged_when_all_of_it_is() {
        let mut acks = Acks::new(false);
        acks.ack(&id(0, None));
        acks.ack(&id(1, Some((0, 2))));
        assert!(acks.is_acked((1, 1), 0) && !acks.is_acked((1, 1), 1));
        assert_eq!(sent(&mut acks), [(0, vec![(0, vec![])])]);
        assert_eq!((sent(&mut acks).len(), acks.waiting()), (0, 0));
        acks.ack(&id(1, Some((1, 2))));
        assert_eq!(sent(&mut acks), [(0, vec![(1, vec![])])]);
        assert!(!acks.has_partial_batches());
    }

    #[test]
    fn a_batch_of_one_is_its_entry() {
        let mut acks = Acks::new(false);
        acks.ack(&id(3, Some((0, 1))));
        assert_eq!(sent(&mut acks), [(0, vec![(3, vec![])])]);
    }

    #[test]
    fn with_batch_index_acks_the_broker_learns_what_is_left() {
        let mut acks = Acks::new(true);
        acks.ack(&id(1, Some((0, 70))));
        acks.ack(&id(1, Some((65, 70))));
        assert_eq!(acks.waiting(), 1);
        assert_eq!(sent(&mut acks), [(0, vec![(1, vec![-2, 0b11_1101])])]);
        assert_eq!(sent(&mut acks), []);
        acks.ack_cumulative(&id(1, Some((68, 70))));
        assert_eq!(sent(&mut acks), [(1, vec![(1, vec![0, 0b10_0000])])]);
    }

    #[test]
    fn cumulative_goes_forward_and_never_beyond() {
        let mut acks = Acks::new(false);
        acks.ack_cumulative(&id(5, None));
        acks.ack_cumulative(&id(4, None));
        assert_eq!(sent(&mut acks), [(1, vec![(5, vec![])])]);
        acks.ack_cumulative(&id(7, Some((1, 3))));
        assert_eq!(sent(&mut acks), [(1, vec![(6, vec![])])]);
        acks.ack_cumulative(&id(7, Some((2, 3))));
        assert_eq!(sent(&mut acks), [(1, vec![(7, vec![])])]);
        acks.ack_cumulative(&id(0, Some((0, 3))));
        assert_eq!(sent(&mut acks), []);
    }

    #[test]
    fn all_chunks_of_a_message_are_acknowledged_with_it() {
        let mut acks = Acks::new(false);
        acks.remember_chunks((1, 4), vec![(1, 2), (1, 3)]);
        assert_eq!(acks.chunks_of((1, 4)), [(1, 2), (1, 3)]);
        acks.ack(&id(4, None));
        assert_eq!(
            sent(&mut acks),
            [(0, vec![(2, vec![]), (3, vec![]), (4, vec![])])]
        );
        assert_eq!(acks.chunks_of((1, 4)), []);
    }

    #[test]
    fn in_a_transaction_a_batch_is_said_once() {
        let mut acks = Acks::new(false);
        acks.remember_chunks((1, 4), vec![(1, 3)]);
        let ids = [
            id(0, None),
            id(1, Some((0, 3))),
            id(1, Some((2, 3))),
            id(2, Some((0, 2))),
            id(2, Some((1, 2))),
            id(4, None),
        ];
        let commands = acks.in_transaction(9, &ids);
        let said: Vec<_> = commands[0]
            .message_id
            .iter()
            .map(|id| (id.entry_id, id.ack_set.clone(), id.batch_size))
            .collect();
        let whole = |entry| (entry, vec![], None);
        let part = (1, vec![0b010], Some(3));
        assert_eq!(said, [whole(0), part, whole(2), whole(3), whole(4)]);
        assert_eq!(acks.waiting(), 0);
    }

    #[test]
    fn what_did_not_arrive_is_sent_again() {
        let mut acks = Acks::new(false);
        acks.ack(&id(1, None));
        acks.ack_cumulative(&id(0, None));
        let commands = acks.take(9);
        acks.put_back(commands);
        assert_eq!(acks.waiting(), 2);
        assert_eq!(
            sent(&mut acks),
            [(1, vec![(0, vec![])]), (0, vec![(1, vec![])])]
        );
    }
}
