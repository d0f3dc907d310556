//! All durable cursors of a store, of loaded topics and of idle ones: the one copy of their state.
//!
//! A `Cell` is a cursor's state with what was acked since its last record. Flushing appends that
//! as one record under the cell's lock; so the log's order is the order of the changes.

use super::ack_state::AckState;
use super::range_set::RangeSet;
use crate::codec::{Reader, put_bytes, put_u64};
use crate::error::StoreError;
use crate::ledger::{StateLog, Ticket};
use crate::state::kind;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

/// A cursor's own settings, kept with it.
pub type Properties = BTreeMap<String, String>;

/// Ranges in one record: a cursor with more writes several.
const RANGES_A_RECORD: usize = 10_000;

#[derive(Default)]
pub(crate) struct CursorTable {
    /// By topic id; a topic has few.
    topics: Mutex<HashMap<u64, Vec<Arc<Cell>>>>,
}

pub(crate) struct Cell {
    pub(crate) topic: u64,
    pub(crate) id: u64,
    pub(crate) name: Box<str>,
    /// False for a reader's cursor, which no record ever mentions.
    pub(crate) is_durable: bool,
    pub(crate) state: Mutex<CellState>,
}

#[derive(Default)]
pub(crate) struct CellState {
    /// Rises with each reset: records of an older epoch mean nothing.
    epoch: u64,
    pub(crate) acks: AckState,
    properties: Option<Box<Properties>>,
    pending: Option<Box<Pending>>,
    /// Of the last record.
    ticket: Ticket,
    pub(crate) is_deleted: bool,
    /// True while the cell is on the list of those to be flushed.
    pub(crate) is_listed: bool,
}

/// What changed since the last record.
#[derive(Default)]
struct Pending {
    ranges: RangeSet,
    batches: BTreeSet<u64>,
}

impl Cell {
    pub(crate) fn new(topic: u64, id: u64, name: &str, is_durable: bool, next: u64) -> Self {
        let state = CellState {
            epoch: id,
            acks: AckState::at(next),
            ..CellState::default()
        };
        Self {
            topic,
            id,
            name: name.into(),
            is_durable,
            state: Mutex::new(state),
        }
    }

    /// Appends what is pending, if anything. The ticket covers every change made before.
    pub(crate) fn flush(&self, log: &dyn StateLog) -> Result<Ticket, StoreError> {
        let mut state = self.state.lock();
        let Some(pending) = state.pending.take() else {
            return Ok(state.ticket);
        };
        let record = self.encode_acks(&state, &pending);
        match log.append(record.into()) {
            Ok(ticket) => {
                state.ticket = ticket;
                Ok(ticket)
            }
            Err(error) => {
                // Kept, so that no later flush claims to have written it.
                state.pending = Some(pending);
                Err(error)
            }
        }
    }

    /// Appends the whole state: when the cursor is made, and when it is reset.
    pub(crate) fn write(
        &self,
        state: &mut CellState,
        log: &dyn StateLog,
    ) -> Result<Ticket, StoreError> {
        let mut ticket = Ticket(0);
        let mut failed = None;
        self.encode_all(
            state,
            &mut |record| match log.append(record.to_vec().into()) {
                Ok(last) => ticket = last,
                Err(error) => failed = Some(error),
            },
        );
        if let Some(error) = failed {
            return Err(error);
        }
        state.pending = None;
        state.ticket = ticket;
        Ok(ticket)
    }

    fn header(&self, kind: u8, epoch: u64) -> Vec<u8> {
        let mut out = vec![kind];
        put_u64(&mut out, self.topic);
        put_u64(&mut out, self.id);
        put_u64(&mut out, epoch);
        out
    }

    fn encode_acks(&self, state: &CellState, pending: &Pending) -> Vec<u8> {
        let mut out = self.header(kind::ACKS, state.epoch);
        let next = state.acks.next();
        let ranges: Vec<_> = pending
            .ranges
            .iter()
            .filter(|range| range.end > next)
            .map(|range| range.start.max(next)..range.end)
            .collect();
        let batches: Vec<_> = pending
            .batches
            .iter()
            .filter_map(|offset| Some((*offset, &**state.acks.batches().get(offset)?)))
            .collect();
        AckState::encode(&mut out, next, &ranges, &batches);
        out
    }

    /// One record, or several for a cursor with very many ranges.
    fn encode_all(&self, state: &CellState, out: &mut dyn FnMut(&[u8])) {
        let acks = &state.acks;
        let batches: Vec<_> = acks.batches().iter().map(|(o, w)| (*o, &**w)).collect();
        // There may be millions.
        let mut ranges = acks.acked().iter();
        let mut chunk = || -> Vec<Range<u64>> { ranges.by_ref().take(RANGES_A_RECORD).collect() };
        let first = chunk();

        let mut record = self.header(kind::CURSOR, state.epoch);
        put_bytes(&mut record, self.name.as_bytes());
        put_properties(&mut record, state.properties.as_deref());
        AckState::encode(&mut record, acks.next(), &first, &[]);
        out(&record);
        loop {
            let chunk = chunk();
            if chunk.is_empty() {
                break;
            }
            let mut record = self.header(kind::ACKS, state.epoch);
            AckState::encode(&mut record, acks.next(), &chunk, &[]);
            out(&record);
        }
        for chunk in batches.chunks(256) {
            let mut record = self.header(kind::ACKS, state.epoch);
            AckState::encode(&mut record, acks.next(), &[], chunk);
            out(&record);
        }
    }

    pub(crate) fn encode_properties(&self, properties: &Properties) -> Vec<u8> {
        let mut out = vec![kind::PROPERTIES];
        put_u64(&mut out, self.topic);
        put_u64(&mut out, self.id);
        put_properties(&mut out, Some(properties));
        out
    }

    pub(crate) fn encode_deleted(&self) -> Vec<u8> {
        let mut out = vec![kind::CURSOR_DELETED];
        put_u64(&mut out, self.topic);
        put_u64(&mut out, self.id);
        out
    }
}

impl CellState {
    /// Acks a range. True when this changed anything.
    pub(crate) fn ack(&mut self, range: Range<u64>, is_durable: bool) -> bool {
        let new = self.acks.ack(range.clone());
        if new > 0 && is_durable {
            let pending = self.pending.get_or_insert_default();
            pending.ranges.insert(range);
            // What lies below `next` is said by `next` itself.
            pending.ranges.remove_below(self.acks.next());
        }
        new > 0
    }

    /// Acks a part of a batch. True when the entry is wholly acked now.
    pub(crate) fn ack_batch(&mut self, offset: u64, remaining: &[u64], is_durable: bool) -> bool {
        if self.acks.is_acked(offset) {
            return true;
        }
        let whole = self.acks.ack_batch(offset, remaining);
        if is_durable {
            let pending = self.pending.get_or_insert_default();
            if whole {
                pending.ranges.insert(offset..offset + 1);
                pending.ranges.remove_below(self.acks.next());
            } else {
                pending.batches.insert(offset);
            }
        }
        whole
    }

    pub(crate) fn is_dirty(&self) -> bool {
        self.pending.is_some()
    }

    /// Forgets all acks and stands at `next`, in a new epoch.
    pub(crate) fn reset(&mut self, next: u64, epoch: u64) {
        self.acks = AckState::at(next);
        self.epoch = epoch;
        self.pending = None;
    }

    /// Drops what lies beyond `end`, in a new epoch if there was any.
    pub(crate) fn clamp(&mut self, end: u64, epoch: impl FnOnce() -> u64) -> bool {
        let lost = self.acks.clamp(end);
        if lost {
            self.epoch = epoch();
            self.pending = None;
        }
        lost
    }

    pub(crate) fn properties(&self) -> Properties {
        self.properties.as_deref().cloned().unwrap_or_default()
    }

    pub(crate) fn set_properties(&mut self, properties: Properties) {
        self.properties = (!properties.is_empty()).then(|| Box::new(properties));
    }

    pub(crate) fn set_ticket(&mut self, ticket: Ticket) {
        self.ticket = ticket;
    }
}

fn put_properties(out: &mut Vec<u8>, properties: Option<&Properties>) {
    put_u64(out, properties.map_or(0, |all| all.len() as u64));
    for (key, value) in properties.into_iter().flatten() {
        put_bytes(out, key.as_bytes());
        put_bytes(out, value.as_bytes());
    }
}

fn read_properties(reader: &mut Reader<'_>) -> Result<Properties, StoreError> {
    let mut properties = Properties::new();
    for _ in 0..reader.count()? {
        let key = reader.text()?.to_owned();
        properties.insert(key, reader.text()?.to_owned());
    }
    Ok(properties)
}

impl CursorTable {
    pub(crate) fn of(&self, topic: u64) -> Vec<Arc<Cell>> {
        self.topics.lock().get(&topic).cloned().unwrap_or_default()
    }

    pub(crate) fn get(&self, topic: u64, name: &str) -> Option<Arc<Cell>> {
        let topics = self.topics.lock();
        let found = topics.get(&topic)?.iter().find(|cell| &*cell.name == name);
        found.cloned()
    }

    /// Adds a cursor and appends its record; if there is one of that name, that one is returned.
    pub(crate) fn create(
        &self,
        cell: Cell,
        properties: Properties,
        log: &dyn StateLog,
    ) -> Result<(Arc<Cell>, Ticket, bool), StoreError> {
        let mut topics = self.topics.lock();
        let cells = topics.entry(cell.topic).or_default();
        if let Some(known) = cells.iter().find(|known| known.name == cell.name) {
            let ticket = known.state.lock().ticket;
            return Ok((known.clone(), ticket, false));
        }
        let cell = Arc::new(cell);
        let ticket = {
            let mut state = cell.state.lock();
            state.set_properties(properties);
            cell.write(&mut state, log)?
        };
        cells.reserve_exact(1);
        cells.push(cell.clone());
        Ok((cell, ticket, true))
    }

    /// Takes a cursor out and appends that.
    pub(crate) fn delete(
        &self,
        topic: u64,
        name: &str,
        log: &dyn StateLog,
    ) -> Result<Option<Ticket>, StoreError> {
        let mut topics = self.topics.lock();
        let Some(cells) = topics.get_mut(&topic) else {
            return Ok(None);
        };
        let Some(at) = cells.iter().position(|cell| &*cell.name == name) else {
            return Ok(None);
        };
        let cell = &cells[at];
        let mut state = cell.state.lock();
        let ticket = log.append(cell.encode_deleted().into())?;
        state.is_deleted = true;
        state.pending = None;
        drop(state);
        cells.remove(at);
        if cells.is_empty() {
            topics.remove(&topic);
        }
        Ok(Some(ticket))
    }

    /// Takes all cursors of a topic out and appends that.
    pub(crate) fn delete_topic(&self, topic: u64, log: &dyn StateLog) -> Result<(), StoreError> {
        let mut topics = self.topics.lock();
        let Some(cells) = topics.get(&topic) else {
            return Ok(());
        };
        let mut out = vec![kind::TOPIC_DELETED];
        put_u64(&mut out, topic);
        log.append(out.into())?;
        for cell in cells {
            let mut state = cell.state.lock();
            state.is_deleted = true;
            state.pending = None;
        }
        topics.remove(&topic);
        Ok(())
    }

    pub(crate) fn topics(&self) -> Vec<u64> {
        self.topics.lock().keys().copied().collect()
    }

    /// Replays a record; returns the highest revision in it.
    pub(crate) fn apply(&self, kind: u8, reader: &mut Reader<'_>) -> Result<u64, StoreError> {
        let topic = reader.u64()?;
        let mut topics = self.topics.lock();
        if kind == kind::TOPIC_DELETED {
            topics.remove(&topic);
            return Ok(topic);
        }
        let id = reader.u64()?;
        let known = topics
            .get(&topic)
            .and_then(|cells| cells.iter().find(|cell| cell.id == id))
            .cloned();
        match kind {
            kind::CURSOR => {
                let epoch = reader.u64()?;
                let name = reader.text()?;
                let properties = read_properties(reader)?;
                let acks = AckState::decode(reader)?;
                let cell = known.unwrap_or_else(|| {
                    let cell = Arc::new(Cell::new(topic, id, name, true, acks.next()));
                    cell.state.lock().epoch = epoch;
                    topics.entry(topic).or_default().push(cell.clone());
                    cell
                });
                let mut state = cell.state.lock();
                state.set_properties(properties);
                if epoch > state.epoch {
                    state.epoch = epoch;
                    state.acks = acks;
                } else if epoch == state.epoch {
                    state.acks.merge(&acks);
                }
                return Ok(epoch);
            }
            kind::ACKS => {
                let epoch = reader.u64()?;
                let acks = AckState::decode(reader)?;
                if let Some(cell) = known {
                    let mut state = cell.state.lock();
                    if state.epoch == epoch {
                        state.acks.merge(&acks);
                    }
                }
                return Ok(epoch);
            }
            kind::PROPERTIES => {
                let properties = read_properties(reader)?;
                if let Some(cell) = known {
                    cell.state.lock().set_properties(properties);
                }
            }
            kind::CURSOR_DELETED => {
                if let Some(cells) = topics.get_mut(&topic) {
                    cells.retain(|cell| cell.id != id);
                    if cells.is_empty() {
                        topics.remove(&topic);
                    }
                }
            }
            _ => return Err(StoreError::bad_record("an unknown kind of state record")),
        }
        Ok(id)
    }

    pub(crate) fn snapshot(&self, out: &mut dyn FnMut(&[u8])) {
        let cells: Vec<Arc<Cell>> = self.topics.lock().values().flatten().cloned().collect();
        let mut records = Vec::new();
        for cell in cells {
            {
                let state = cell.state.lock();
                if state.is_deleted {
                    continue;
                }
                cell.encode_all(&state, &mut |record| records.push(record.to_vec()));
            }
            for record in records.drain(..) {
                out(&record);
            }
        }
    }
}
