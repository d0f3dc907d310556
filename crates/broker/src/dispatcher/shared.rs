//! Dispatch to many consumers at once: Shared and Key_Shared.
//!
//! Owns the consumers' permits, what is out unacked (each entry at exactly one consumer), what
//! waits to be sent again with its redelivery counts, and what is not yet due.

use std::collections::HashMap;

use geminga_model::Position;

use super::delayed::Delayed;
use super::key_range::AssignError;
use super::key_shared::KeyShared;
use super::pending::{Pending, PendingTable};
use super::replay::Replay;
use super::round_robin::RoundRobin;
use super::{Candidate, ConsumerKey, Flow, Limits, Verdict, Want};

#[derive(Debug)]
pub(crate) enum Routing {
    RoundRobin(RoundRobin),
    Keys(KeyShared),
}

/// The consumers that take an entry now, and what they take.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ready {
    count: usize,
    permits: i64,
}

impl Ready {
    fn add(&mut self, flow: &Flow) {
        if flow.is_ready() {
            self.count += 1;
            self.permits += flow.permits();
        }
    }

    fn remove(&mut self, flow: &Flow) {
        if flow.is_ready() {
            self.count -= 1;
            self.permits -= flow.permits();
        }
    }
}

/// Consumers from which on the owner of a hash is remembered: with fewer it is found as fast.
const OWNERS_FROM: usize = if cfg!(test) { 2 } else { 32 };
/// Key hashes are below this.
const HASHES: usize = 1 << 16;

/// Entries that wait to be sent again, above which no delayed ones are added: they come when there
/// is room. All may be due at once.
const WAKE_MAX: usize = 20_000;

#[derive(Debug)]
pub(crate) struct Shared {
    routing: Routing,
    limits: Limits,
    /// By priority level, then in order of arrival.
    consumers: Vec<Flow>,
    index: HashMap<ConsumerKey, usize>,
    /// By key hash the place of its owner plus one, as far as it was asked for; else 0.
    owners: Vec<u16>,
    /// Kept up to date by `change`, so that no dispatch looks at all consumers.
    ready: Ready,
    /// Consumers whose connections took no more when last seen.
    full: Vec<ConsumerKey>,
    pending: PendingTable,
    replay: Replay,
    redeliveries: HashMap<Position, u32>,
    delayed: Delayed,
    unacked: u64,
    blocked: bool,
}

impl Shared {
    pub(crate) fn new(routing: Routing, limits: Limits) -> Shared {
        Shared {
            routing,
            limits,
            consumers: Vec::new(),
            index: HashMap::new(),
            owners: Vec::new(),
            ready: Ready::default(),
            full: Vec::new(),
            pending: PendingTable::default(),
            replay: Replay::default(),
            redeliveries: HashMap::new(),
            delayed: Delayed::default(),
            unacked: 0,
            blocked: false,
        }
    }

    // Consumers

    pub(crate) fn add(&mut self, flow: Flow, ranges: &[(i32, i32)]) -> Result<(), AssignError> {
        if let Routing::Keys(keys) = &mut self.routing {
            let out = self
                .pending
                .values()
                .map(|pending| (pending.hash, pending.holder));
            keys.add(flow.key, &flow.name, ranges, out)?;
        }
        let at = self
            .consumers
            .partition_point(|other| other.priority <= flow.priority);
        self.ready.add(&flow);
        self.consumers.insert(at, flow);
        self.consumers_changed(None);
        Ok(())
    }

    /// The consumer leaves; what it held is to be sent again, to others. Its going is no
    /// redelivery, so no count rises.
    pub(crate) fn remove(&mut self, key: ConsumerKey) {
        let Some(at) = self.index.get(&key).copied() else {
            return;
        };
        let flow = self.consumers.remove(at);
        self.ready.remove(&flow);
        self.full.retain(|other| *other != key);
        self.unacked -= flow.unacked();
        let replay = &mut self.replay;
        self.pending.take_if(
            |pending| pending.holder == key,
            |position, pending| replay.insert(position, pending.hash),
        );
        if let Routing::Keys(keys) = &mut self.routing {
            let out = self
                .pending
                .values()
                .map(|pending| (pending.hash, pending.holder));
            keys.remove(key, out);
        }
        self.consumers_changed(Some(key));
        self.check_unblock();
        if self.consumers.is_empty() {
            self.redeliveries.clear();
        }
    }

    pub(crate) fn flow(&self, key: ConsumerKey) -> Option<&Flow> {
        self.index.get(&key).map(|at| &self.consumers[*at])
    }

    #[cfg(test)]
    pub(crate) fn consumers(&self) -> &[Flow] {
        &self.consumers
    }

    pub(crate) fn add_permits(&mut self, key: ConsumerKey, messages: u32) {
        if let Some(at) = self.index.get(&key).copied() {
            self.change(at, |flow| flow.add_permits(messages));
        }
    }

    pub(crate) fn set_writable(&mut self, key: ConsumerKey, writable: bool) {
        let Some(at) = self.index.get(&key).copied() else {
            return;
        };
        if self.consumers[at].writable == writable {
            return;
        }
        self.change(at, |flow| flow.writable = writable);
        if writable {
            self.full.retain(|other| *other != key);
        } else {
            self.full.push(key);
        }
    }

    /// Asks again for those whose connections took no more.
    pub(crate) fn refresh_writable(&mut self, takes: impl Fn(ConsumerKey) -> bool) {
        for key in std::mem::take(&mut self.full) {
            if let Some(at) = self.index.get(&key).copied() {
                if takes(key) {
                    self.change(at, |flow| flow.writable = true);
                } else {
                    self.full.push(key);
                }
            }
        }
    }

    /// Whether any consumer takes an entry now.
    pub(crate) fn has_ready(&self) -> bool {
        !self.blocked && self.ready.count > 0
    }

    fn change<T>(&mut self, at: usize, change: impl FnOnce(&mut Flow) -> T) -> T {
        let flow = &mut self.consumers[at];
        self.ready.remove(flow);
        let result = change(flow);
        self.ready.add(flow);
        result
    }

    // Dispatch

    pub(crate) fn routing_hash(&self, key: &[u8]) -> u32 {
        match &self.routing {
            Routing::RoundRobin(_) => 0,
            Routing::Keys(keys) => keys.hash(key),
        }
    }

    pub(crate) fn routes_by_key(&self) -> bool {
        matches!(self.routing, Routing::Keys(_))
    }

    /// Begins a pass: the round robin goes on to the next consumer.
    pub(crate) fn begin(&mut self) {
        if let Routing::RoundRobin(turns) = &mut self.routing {
            turns.begin();
        }
    }

    /// What could be placed now, at most `entries_max`. With `past_replay` the replay queue is
    /// left alone (a pass over it has just placed nothing).
    pub(crate) fn want(&self, entries_max: usize, past_replay: bool) -> Want {
        if self.blocked {
            return Want::Nothing;
        }
        let permits = self.ready.permits;
        let budget = usize::try_from(permits).unwrap_or(0).min(entries_max);
        if budget == 0 {
            return Want::Nothing;
        }
        if !self.replay.is_empty() && !past_replay {
            let positions = self.replayable(budget);
            if !positions.is_empty() {
                return Want::Replay(positions);
            }
        }
        if self.routes_by_key() && self.replay.len() >= self.look_ahead_max() {
            return Want::Nothing;
        }
        Want::Tail(budget)
    }

    fn replayable(&self, budget: usize) -> Vec<Position> {
        let keys = match &self.routing {
            Routing::RoundRobin(_) => {
                return self
                    .replay
                    .iter()
                    .take(budget)
                    .map(|(position, _)| position)
                    .collect();
            }
            Routing::Keys(keys) => keys,
        };
        // What those seen so far still take, and how many consumers take anything.
        let mut left: HashMap<ConsumerKey, i64> = HashMap::new();
        let mut ready = self.ready.count;
        let mut out = Vec::new();
        for (position, hash) in self.replay.iter() {
            if out.len() >= budget || ready == 0 {
                break;
            }
            // A consumer without permits blocks all its hashes, so the order per key holds.
            let Some(owner) = keys.owner(hash) else {
                continue;
            };
            let permits = left.entry(owner).or_insert_with(|| {
                let flow = self.flow(owner).filter(|flow| flow.is_ready());
                flow.map_or(0, Flow::permits)
            });
            if *permits <= 0 {
                continue;
            }
            *permits -= 1;
            if *permits == 0 {
                ready -= 1;
            }
            out.push(position);
        }
        out
    }

    fn look_ahead_max(&self) -> usize {
        let per_consumer = self
            .limits
            .look_ahead_per_consumer_max
            .saturating_mul(self.consumers.len());
        match (per_consumer, self.limits.look_ahead_per_subscription_max) {
            (0, 0) => usize::MAX,
            (0, max) | (max, 0) => max,
            (a, b) => a.min(b),
        }
    }

    #[cfg(test)]
    pub(crate) fn place(&mut self, candidate: &Candidate, due_before_ms: u64) -> Verdict {
        self.place_if(candidate, due_before_ms, |_| true)
    }

    /// Places an entry that was read on request. Offer them in the order of their positions.
    /// `takes` tells whether a consumer's connection takes more; only the chosen one is asked.
    pub(crate) fn place_if(
        &mut self,
        candidate: &Candidate,
        due_before_ms: u64,
        takes: impl Fn(ConsumerKey) -> bool,
    ) -> Verdict {
        let Candidate {
            position,
            messages,
            hash,
            deliver_at_ms,
            ..
        } = *candidate;
        if deliver_at_ms > due_before_ms {
            self.replay.remove(position);
            self.delayed.insert(deliver_at_ms, position, hash);
            return Verdict::Later;
        }
        if self.pending.contains(position) {
            return Verdict::Later;
        }
        let waiting = self.replay.remove(position);
        let chosen = if self.blocked {
            None
        } else {
            self.choose(candidate, waiting, takes)
        };
        let Some(at) = chosen else {
            self.replay.insert(position, hash);
            return Verdict::Later;
        };
        self.change(at, |flow| {
            flow.spend(messages);
            flow.hold(messages);
        });
        let holder = self.consumers[at].key;
        self.unacked += u64::from(messages);
        let max = u64::from(self.limits.unacked_per_subscription_max);
        if max > 0 && self.unacked >= max {
            self.blocked = true;
        }
        self.pending.insert(
            position,
            Pending {
                holder,
                messages,
                hash,
            },
        );
        let redelivery_count = if self.redeliveries.is_empty() {
            0
        } else {
            self.redeliveries.get(&position).copied().unwrap_or(0)
        };
        Verdict::Deliver {
            consumer: holder,
            redelivery_count,
        }
    }

    /// The consumer of an entry that is not kept: it is neither unacked nor ever sent again.
    pub(crate) fn route(
        &mut self,
        candidate: &Candidate,
        takes: impl Fn(ConsumerKey) -> bool,
    ) -> Option<ConsumerKey> {
        self.begin();
        let at = self.choose(candidate, false, takes)?;
        self.change(at, |flow| flow.spend(candidate.messages));
        Some(self.consumers[at].key)
    }

    fn choose(
        &mut self,
        candidate: &Candidate,
        waiting: bool,
        takes: impl Fn(ConsumerKey) -> bool,
    ) -> Option<usize> {
        if candidate.chunk.is_some() {
            // Once its consumer is chosen, a chunk is not to be given to another.
            for at in 0..self.consumers.len() {
                let key = self.consumers[at].key;
                if !takes(key) {
                    self.set_writable(key, false);
                }
            }
            return self.choose_ready(candidate, waiting);
        }
        loop {
            let at = self.choose_ready(candidate, waiting)?;
            let key = self.consumers[at].key;
            if takes(key) {
                if let Routing::RoundRobin(turns) = &mut self.routing {
                    turns.spent(candidate.messages);
                }
                return Some(at);
            }
            self.set_writable(key, false);
        }
    }

    fn choose_ready(&mut self, candidate: &Candidate, waiting: bool) -> Option<usize> {
        match &mut self.routing {
            Routing::RoundRobin(turns) => {
                let turn_max = self.limits.round_robin_messages_max;
                let at = turns.choose(&self.consumers, candidate, turn_max)?;
                if candidate.chunk.is_some() {
                    turns.spent(candidate.messages);
                }
                Some(at)
            }
            Routing::Keys(keys) => {
                // Earlier entries of the key wait: this one goes behind them.
                if keys.is_in_order() && !waiting && self.replay.holds_hash(candidate.hash) {
                    return None;
                }
                if keys.is_draining(candidate.hash) {
                    return None;
                }
                let slot = candidate.hash as usize;
                let at = match self.owners.get(slot) {
                    Some(known) if *known > 0 => usize::from(*known) - 1,
                    _ => {
                        let owner = keys.owner(candidate.hash)?;
                        let at = *self.index.get(&owner)?;
                        self.remember_owner(slot, at);
                        at
                    }
                };
                self.consumers[at].is_ready().then_some(at)
            }
        }
    }

    /// The search for an owner takes the longer the more there are.
    fn remember_owner(&mut self, hash: usize, at: usize) {
        if self.consumers.len() < OWNERS_FROM {
            return;
        }
        if self.owners.is_empty() {
            self.owners = vec![0; HASHES];
        }
        if let (Some(slot), Ok(place)) = (self.owners.get_mut(hash), u16::try_from(at + 1)) {
            *slot = place;
        }
    }

    // Acks and redelivery

    /// The entry is wholly acked (or skipped). True when something may now be dispatched.
    pub(crate) fn ack(&mut self, position: Position) -> bool {
        let waited = self.replay.remove(position);
        if !self.redeliveries.is_empty() {
            self.redeliveries.remove(&position);
        }
        let Some(pending) = self.pending.remove(position) else {
            return waited;
        };
        self.release(pending, pending.messages) || waited
    }

    /// Takes an entry out that waits for a transaction, wherever it is; returns its hash, and
    /// whether something may now be dispatched.
    pub(crate) fn park(&mut self, position: Position) -> Option<(u32, bool)> {
        if let Some(hash) = self.replay.take(position) {
            return Some((hash, true));
        }
        let pending = self.pending.remove(position)?;
        Some((pending.hash, self.release(pending, pending.messages)))
    }

    /// The transaction was aborted: somebody gets the entry again.
    pub(crate) fn unpark(&mut self, position: Position, hash: u32) {
        self.replay.insert(position, hash);
        *self.redeliveries.entry(position).or_default() += 1;
    }

    /// `left` messages of the entry's batch are still to be acked.
    pub(crate) fn ack_part(&mut self, position: Position, left: u32) -> bool {
        let Some(pending) = self.pending.get_mut(position) else {
            return false;
        };
        let acked = pending.messages.saturating_sub(left);
        pending.messages -= acked;
        let holder = pending.holder;
        self.unacked -= u64::from(acked);
        let unblocked = self.release_flow(holder, acked);
        self.check_unblock() || unblocked
    }

    /// Everything up to `through` is gone (cumulative ack, skip, expiry).
    pub(crate) fn ack_through(&mut self, through: Position) {
        self.replay.remove_through(through);
        self.redeliveries.retain(|position, _| *position > through);
        while let Some(pending) = self.pending.pop_through(through) {
            self.release(pending, pending.messages);
        }
    }

    /// Messages of an entry that are out at this consumer.
    pub(crate) fn pending_messages(&self, position: Position) -> Option<(ConsumerKey, u32)> {
        self.pending
            .get(position)
            .map(|pending| (pending.holder, pending.messages))
    }

    /// The consumer wants these again, or everything it holds. Entries that it does not hold are
    /// ignored. Returns how many entries go back.
    pub(crate) fn redeliver(&mut self, key: ConsumerKey, positions: Option<&[Position]>) -> usize {
        let held = |pending: &Pending| pending.holder == key;
        let back: Vec<Position> = match positions {
            Some(positions) => positions
                .iter()
                .copied()
                .filter(|position| self.pending.get(*position).is_some_and(held))
                .collect(),
            None => self
                .pending
                .iter()
                .filter(|(_, p)| held(p))
                .map(|(at, _)| at)
                .collect(),
        };
        let mut count = 0;
        for position in back {
            let Some(pending) = self.pending.remove(position) else {
                continue;
            };
            count += 1;
            self.replay.insert(position, pending.hash);
            *self.redeliveries.entry(position).or_default() += 1;
            self.release(pending, pending.messages);
        }
        count
    }

    /// The cursor starts again from its mark-delete position: nothing is out, waiting or delayed.
    pub(crate) fn reset(&mut self) {
        self.replay.clear();
        self.delayed.clear();
        self.redeliveries.clear();
        for pending in std::mem::take(&mut self.pending).values() {
            self.release(*pending, pending.messages);
        }
    }

    // Delayed delivery

    /// Moves what is due into the replay queue; true when there was something.
    pub(crate) fn wake_due(&mut self, due_before_ms: u64) -> bool {
        let mut woken = false;
        while self.replay.len() < WAKE_MAX
            && let Some((position, hash)) = self.delayed.pop_due(due_before_ms)
        {
            self.replay.insert(position, hash);
            woken = true;
        }
        woken
    }

    /// When there is something to wake; nothing while there is no room, since who makes room
    /// dispatches.
    pub(crate) fn next_due_ms(&self) -> Option<u64> {
        let has_room = self.replay.len() < WAKE_MAX;
        self.delayed.next_ms().filter(|_| has_room)
    }

    // Figures

    pub(crate) fn unacked(&self) -> u64 {
        self.unacked
    }

    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked
    }

    pub(crate) fn delayed_len(&self) -> usize {
        self.delayed.len()
    }

    pub(crate) fn replay_len(&self) -> usize {
        self.replay.len()
    }

    pub(crate) fn draining(&self) -> (usize, u64) {
        match &self.routing {
            Routing::RoundRobin(_) => (0, 0),
            Routing::Keys(keys) => keys.draining(),
        }
    }

    fn consumers_changed(&mut self, gone: Option<ConsumerKey>) {
        self.owners = Vec::new();
        self.index = self
            .consumers
            .iter()
            .enumerate()
            .map(|(at, flow)| (flow.key, at))
            .collect();
        if let Routing::RoundRobin(turns) = &mut self.routing {
            turns.consumers_changed(gone);
        }
    }

    fn release(&mut self, pending: Pending, messages: u32) -> bool {
        self.unacked -= u64::from(messages);
        let mut progress = self.release_flow(pending.holder, messages);
        if let Routing::Keys(keys) = &mut self.routing {
            progress |= keys.released(pending.hash, pending.holder);
        }
        self.check_unblock() || progress
    }

    fn release_flow(&mut self, holder: ConsumerKey, messages: u32) -> bool {
        match self.index.get(&holder).copied() {
            Some(at) => self.change(at, |flow| flow.release(messages)),
            None => false,
        }
    }

    fn check_unblock(&mut self) -> bool {
        let max = u64::from(self.limits.unacked_per_subscription_max);
        if self.blocked && self.unacked <= max / 2 {
            self.blocked = false;
            return true;
        }
        false
    }
}

#[cfg(test)]
mod tests;
