//! What topics and cursors must hold, as plain data; the random test compares with it.

use crate::managed::{Cursor, ManagedLedger};
use bytes::Bytes;
use geminga_model::Position;
use std::collections::BTreeMap;

/// Every batch has three messages; bit 1 = acked.
pub(super) const WHOLE: u8 = 0b111;

#[derive(Default, Debug)]
pub(super) struct TopicModel {
    /// Entries that were confirmed, or found after a restart; they stay until they are trimmed.
    pub(super) confirmed: BTreeMap<Position, Bytes>,
    /// Entries that were appended and not confirmed, in order.
    pub(super) pending: BTreeMap<Position, Bytes>,
    pub(super) cursors: BTreeMap<String, CursorModel>,
    /// A trim below this was begun: what is there may be gone.
    pub(super) trimming: Option<Position>,
    /// A deletion was begun.
    pub(super) deleting: bool,
}

#[derive(Debug, Clone)]
pub(super) struct CursorModel {
    /// One for each reset that may not be durable yet; the last is what memory holds.
    epochs: Vec<Epoch>,
}

#[derive(Debug, Clone, Default)]
struct Epoch {
    /// What is acked of each entry; entries below `start` are acked wholly.
    start: Option<Position>,
    acked: BTreeMap<Position, u8>,
    /// The part of it that `durable` has confirmed.
    durable: BTreeMap<Position, u8>,
}

impl Epoch {
    fn bits(&self, map: &BTreeMap<Position, u8>, at: Position) -> u8 {
        if self.start.is_some_and(|start| at < start) {
            return WHOLE;
        }
        map.get(&at).copied().unwrap_or(0)
    }
}

impl CursorModel {
    pub(super) fn at(start: Position) -> Self {
        let start = Some(start);
        Self {
            epochs: vec![Epoch {
                start,
                ..Epoch::default()
            }],
        }
    }

    fn now(&self) -> &Epoch {
        self.epochs.last().unwrap()
    }

    pub(super) fn bits(&self, at: Position) -> u8 {
        self.now().bits(&self.now().acked, at)
    }

    pub(super) fn ack(&mut self, at: Position, bits: u8) {
        *self.epochs.last_mut().unwrap().acked.entry(at).or_default() |= bits;
    }

    /// What is in memory now.
    pub(super) fn snapshot(&self) -> (usize, BTreeMap<Position, u8>) {
        (self.epochs.len() - 1, self.now().acked.clone())
    }

    /// That is durable, and older epochs are out of the question.
    pub(super) fn became_durable(&mut self, (epoch, acked): (usize, BTreeMap<Position, u8>)) {
        for (at, bits) in acked {
            *self.epochs[epoch].durable.entry(at).or_default() |= bits;
        }
        self.epochs.drain(..epoch);
    }

    /// A reset that may or may not be found after a crash.
    pub(super) fn reset(&mut self, start: Position) {
        self.epochs.extend(Self::at(start).epochs);
    }

    /// In memory nothing is lost.
    pub(super) fn check_exact(&self, cursor: &Cursor, topic: &TopicModel) {
        for at in topic.confirmed.keys() {
            assert_eq!(
                found(cursor, *at),
                self.bits(*at),
                "{} at {at}",
                cursor.name()
            );
        }
        let unacked = |entries: &BTreeMap<Position, Bytes>| {
            entries.keys().filter(|at| self.bits(**at) != WHOLE).count() as u64
        };
        let backlog = cursor.backlog();
        let (least, more) = (unacked(&topic.confirmed), unacked(&topic.pending));
        assert!(
            (least..=least + more).contains(&backlog),
            "backlog {backlog}, not {least} to {}",
            least + more
        );
        let first = topic.confirmed.keys().find(|at| self.bits(**at) != WHOLE);
        if let Some(first) = first {
            assert_eq!(cursor.next_unacked(Position::EARLIEST), *first);
            assert!(cursor.mark_delete() < *first);
            let before = topic.confirmed.keys().rfind(|at| *at < first);
            if let Some(before) = before {
                assert_eq!(cursor.mark_delete(), *before);
            }
        }
    }

    /// After a restart: nothing that was durable is lost, nothing is acked that nobody acked.
    pub(super) fn settle(&mut self, cursor: &Cursor, topic: &TopicModel) {
        let holds = |epoch: &&Epoch| {
            topic.confirmed.keys().all(|at| {
                let (found, least) = (found(cursor, *at), epoch.bits(&epoch.durable, *at));
                let most = epoch.bits(&epoch.acked, *at);
                found & least == least && found & !most == 0
            })
        };
        let name = cursor.name();
        assert!(
            self.epochs.iter().any(|epoch| holds(&epoch)),
            "cursor {name} stands at {} with {} ranges, and that is none of {:#?}",
            cursor.mark_delete(),
            cursor.acked_ranges(),
            self.epochs,
        );
        let acked: BTreeMap<Position, u8> = topic
            .confirmed
            .keys()
            .map(|at| (*at, found(cursor, *at)))
            .collect();
        self.epochs = vec![Epoch {
            start: None,
            durable: acked.clone(),
            acked,
        }];
    }
}

/// What the cursor says of this entry.
fn found(cursor: &Cursor, at: Position) -> u8 {
    match (cursor.is_acked(at), cursor.batch_ack_set(at)) {
        (true, None) => WHOLE,
        (true, Some(_)) => panic!("{at} is acked and yet in part"),
        (false, None) => 0,
        (false, Some(set)) => WHOLE & !(set[0] as u8),
    }
}

impl TopicModel {
    pub(super) fn confirm(&mut self, through: Position) {
        let rest = self.pending.split_off(&through.next_in_ledger());
        self.confirmed.append(&mut self.pending);
        self.pending = rest;
    }

    /// What was read from `from` on is what was appended there, in order, without gaps.
    pub(super) fn check_read(&self, from: Position, found: &[crate::Entry]) {
        let all = self
            .confirmed
            .range(from..)
            .chain(self.pending.range(from..));
        for (entry, (at, data)) in found.iter().zip(all) {
            assert_eq!(
                (entry.position, &entry.data),
                (*at, data),
                "read from {from}"
            );
        }
        let known = self.confirmed.range(from..).count() + self.pending.range(from..).count();
        let more = found.get(known);
        assert!(
            more.is_none(),
            "{more:?} was found, and never appended or given up"
        );
    }

    /// After a restart: `found` is all that can be read. Confirmed entries are there, of the others
    /// a prefix; what was being trimmed may be gone.
    pub(super) fn settle(&mut self, found: Vec<crate::Entry>, topic: &ManagedLedger) {
        let first = topic.first_position();
        let gone: Vec<_> = self.confirmed.range(..first).map(|(at, _)| *at).collect();
        if let Some(last) = gone.last() {
            assert!(
                self.trimming.is_some_and(|limit| *last < limit),
                "{gone:?} are lost; {:?}",
                self.trimming
            );
        }
        self.confirmed = self.confirmed.split_off(&first);
        self.check_read(Position::EARLIEST, &found);
        assert!(
            found.len() >= self.confirmed.len(),
            "{} of {} confirmed entries are lost",
            self.confirmed.len() - found.len(),
            self.confirmed.len()
        );
        self.pending.clear();
        self.confirmed = found
            .into_iter()
            .map(|entry| (entry.position, entry.data))
            .collect();
        self.trimming = None;
    }

    /// The first position that some cursor has not acked.
    pub(super) fn acked_below(&self) -> Position {
        let unacked = |at: &Position| self.cursors.values().any(|c| c.bits(*at) != WHOLE);
        let first = self.confirmed.keys().find(|at| unacked(at));
        first.copied().unwrap_or(Position::LATEST)
    }
}
