//! One transaction coordinator as a state machine: calls in, decisions out; no I/O, no clock.
//!
//! A transaction is open until somebody ends it or its time is up; then it is ending, with the
//! outcome decided but not yet durable; then only its outcome is known, for a while. Numbers rise
//! and are given out below `reserved` alone, which the caller has stored before: a crash loses
//! some numbers, and none is given out twice.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

/// Outcomes that are remembered, for clients that ask again.
pub(crate) const ENDED_MAX: usize = 10_000;

/// Topics of one transaction, and subscriptions.
const PARTICIPANTS_MAX: usize = 100_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum Outcome {
    Committed,
    Aborted,
}

/// A subscription by its topic's full name and its own.
pub(crate) type SubscriptionName = (Arc<str>, Arc<str>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Open {
    /// Who began it; none where nobody asked who clients are.
    pub(crate) owner: Option<Arc<str>>,
    pub(crate) started_ms: u64,
    pub(crate) timeout_ms: u64,
    /// Full names of topics.
    pub(crate) partitions: BTreeSet<Arc<str>>,
    pub(crate) subscriptions: BTreeSet<SubscriptionName>,
    /// What it is ending with.
    pub(crate) ending: Option<Outcome>,
    /// The outcome is on its way to the disk.
    is_written: bool,
}

impl Open {
    pub(crate) fn deadline_ms(&self) -> u64 {
        self.started_ms.saturating_add(self.timeout_ms)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    NotFound,
    /// It is ending, or has ended, otherwise than asked.
    Ended,
    TooMany,
    /// It has as many topics or subscriptions as it may have.
    Full,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum New {
    Number(u64),
    /// Numbers below this must be stored as used first; then `reserved` is to be called.
    Reserve(u64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// The caller is to carry it out, and to call `ended`.
    Begin {
        partitions: Vec<Arc<str>>,
        subscriptions: Vec<SubscriptionName>,
    },
    /// Somebody carries it out.
    UnderWay,
    Done,
}

#[derive(Debug)]
pub(crate) struct Coordinator {
    next: u64,
    reserved: u64,
    open: BTreeMap<u64, Open>,
    deadlines: BTreeSet<(u64, u64)>,
    ended: HashMap<u64, Outcome>,
    ended_order: VecDeque<u64>,
    /// Those whose outcome is on its way to the disk.
    deciding: Vec<u64>,
    pub(crate) counters: Counters,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) created: u64,
    pub(crate) committed: u64,
    pub(crate) aborted: u64,
    pub(crate) timed_out: u64,
}

impl Coordinator {
    /// `reserved` as it was stored: nothing at or above it was given out.
    pub(crate) fn new(reserved: u64) -> Coordinator {
        let first = reserved.max(1);
        Coordinator {
            next: first,
            reserved: first,
            open: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            ended: HashMap::new(),
            ended_order: VecDeque::new(),
            deciding: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// Takes in what was stored of a transaction that has not ended.
    pub(crate) fn restore(&mut self, number: u64, started_ms: u64, timeout_ms: u64) {
        self.insert(number, started_ms, timeout_ms);
    }

    /// Takes in a stored outcome.
    pub(crate) fn restore_ended(&mut self, number: u64, outcome: Outcome) {
        if self.ended.insert(number, outcome).is_none() {
            self.ended_order.push_back(number);
        }
    }

    pub(crate) fn reserved(&mut self, below: u64) {
        self.reserved = self.reserved.max(below);
    }

    pub(crate) fn is_exhausted(&self) -> bool {
        self.next >= self.reserved
    }

    /// Begins a transaction. `active_max` 0 = any number.
    pub(crate) fn begin(
        &mut self,
        now_ms: u64,
        timeout_ms: u64,
        active_max: u64,
        block: u64,
    ) -> Result<New, Refusal> {
        if active_max > 0 && self.open.len() as u64 >= active_max {
            return Err(Refusal::TooMany);
        }
        if self.next >= self.reserved {
            return Ok(New::Reserve(self.next.saturating_add(block)));
        }
        let number = self.next;
        self.next += 1;
        self.insert(number, now_ms, timeout_ms);
        self.counters.created += 1;
        Ok(New::Number(number))
    }

    fn insert(&mut self, number: u64, started_ms: u64, timeout_ms: u64) {
        let open = Open {
            owner: None,
            started_ms,
            timeout_ms,
            partitions: BTreeSet::new(),
            subscriptions: BTreeSet::new(),
            ending: None,
            is_written: false,
        };
        self.deadlines.insert((open.deadline_ms(), number));
        self.open.insert(number, open);
    }

    /// Notes who began it.
    pub(crate) fn set_owner(&mut self, number: u64, owner: Option<Arc<str>>) {
        if let Some(open) = self.open.get_mut(&number) {
            open.owner = owner;
        }
    }

    /// The transaction, if more may be added to it.
    fn joinable(&mut self, number: u64) -> Result<&mut Open, Refusal> {
        if self.ended.contains_key(&number) {
            return Err(Refusal::Ended);
        }
        match self.open.get_mut(&number) {
            None => Err(Refusal::NotFound),
            Some(open) if open.ending.is_some() => Err(Refusal::Ended),
            Some(open) => Ok(open),
        }
    }

    /// Whether nothing of the transaction will ever be seen: it was aborted, or a crash took its
    /// beginning. Numbers that were not given out are of nobody.
    pub(crate) fn is_lost(&self, number: u64) -> bool {
        match (self.ended.get(&number), self.open.get(&number)) {
            (Some(outcome), _) => *outcome == Outcome::Aborted,
            (None, Some(open)) => open.ending == Some(Outcome::Aborted),
            (None, None) => number < self.next,
        }
    }

    /// False when it was known already.
    pub(crate) fn add_partition(&mut self, number: u64, topic: &Arc<str>) -> Result<bool, Refusal> {
        let open = self.joinable(number)?;
        // Not cloned for each SEND.
        if open.partitions.contains(topic) {
            return Ok(false);
        }
        if open.partitions.len() >= PARTICIPANTS_MAX {
            return Err(Refusal::Full);
        }
        Ok(open.partitions.insert(topic.clone()))
    }

    pub(crate) fn add_subscription(
        &mut self,
        number: u64,
        name: SubscriptionName,
    ) -> Result<bool, Refusal> {
        let open = self.joinable(number)?;
        if open.subscriptions.len() >= PARTICIPANTS_MAX && !open.subscriptions.contains(&name) {
            return Err(Refusal::Full);
        }
        Ok(open.subscriptions.insert(name))
    }

    pub(crate) fn end(&mut self, number: u64, outcome: Outcome) -> Result<End, Refusal> {
        match self.ended.get(&number) {
            Some(known) if *known == outcome => return Ok(End::Done),
            Some(_) => return Err(Refusal::Ended),
            None => {}
        }
        let open = self.open.get_mut(&number).ok_or(Refusal::NotFound)?;
        match open.ending {
            Some(known) if known == outcome => Ok(End::UnderWay),
            Some(_) => Err(Refusal::Ended),
            None => {
                open.ending = Some(outcome);
                self.deadlines.remove(&(open.deadline_ms(), number));
                Ok(End::Begin {
                    partitions: open.partitions.iter().cloned().collect(),
                    subscriptions: open.subscriptions.iter().cloned().collect(),
                })
            }
        }
    }

    /// From now until `ended` or `failed`, a crash decides what the outcome is.
    pub(crate) fn deciding(&mut self, number: u64) {
        if let Some(open) = self.open.get_mut(&number)
            && !std::mem::replace(&mut open.is_written, true)
        {
            self.deciding.push(number);
        }
    }

    /// Whether a topic's part in some transaction is being decided.
    pub(crate) fn is_deciding(&self, topic: &str) -> bool {
        self.deciding.iter().any(|number| {
            self.open.get(number).is_some_and(|open| {
                open.partitions.contains(topic)
                    || open.subscriptions.iter().any(|(name, _)| &**name == topic)
            })
        })
    }

    /// The outcome is durable. Returns what need not be remembered any more.
    pub(crate) fn ended(&mut self, number: u64, outcome: Outcome) {
        self.deciding.retain(|other| *other != number);
        if let Some(open) = self.open.remove(&number) {
            self.deadlines.remove(&(open.deadline_ms(), number));
        }
        match outcome {
            Outcome::Committed => self.counters.committed += 1,
            Outcome::Aborted => self.counters.aborted += 1,
        }
        self.restore_ended(number, outcome);
    }

    /// The outcome could not be stored: the transaction is open again.
    pub(crate) fn failed(&mut self, number: u64) {
        self.deciding.retain(|other| *other != number);
        if let Some(open) = self.open.get_mut(&number) {
            open.ending = None;
            open.is_written = false;
            self.deadlines.insert((open.deadline_ms(), number));
        }
    }

    /// Forgets the oldest outcomes beyond `ENDED_MAX`, but none of `keep`.
    pub(crate) fn forget(&mut self, keep: impl Fn(u64) -> bool) -> Vec<u64> {
        let mut gone = Vec::new();
        while self.ended_order.len() > ENDED_MAX {
            let Some(number) = self.ended_order.pop_front() else {
                break;
            };
            if keep(number) {
                self.ended_order.push_front(number);
                break;
            }
            self.ended.remove(&number);
            gone.push(number);
        }
        gone
    }

    pub(crate) fn outcome(&self, number: u64) -> Option<Outcome> {
        self.ended.get(&number).copied()
    }

    pub(crate) fn get(&self, number: u64) -> Option<&Open> {
        self.open.get(&number)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &Open)> {
        self.open.iter().map(|(number, open)| (*number, open))
    }

    /// The earliest time-out of those that are not ending.
    pub(crate) fn next_deadline_ms(&self) -> Option<u64> {
        self.deadlines.first().map(|(at_ms, _)| *at_ms)
    }

    /// Transactions whose time is up.
    pub(crate) fn overdue(&self, now_ms: u64) -> Vec<u64> {
        let due = self.deadlines.range(..=(now_ms, u64::MAX));
        due.map(|(_, number)| *number).collect()
    }

    /// Everything up to this number has ended.
    pub(crate) fn low_watermark(&self) -> u64 {
        let oldest = self.open.keys().next().copied();
        oldest.unwrap_or(self.next) - 1
    }

    /// The last number that was given out.
    pub(crate) fn last_number(&self) -> u64 {
        self.next - 1
    }

    pub(crate) fn active(&self) -> usize {
        self.open.len()
    }
}

#[cfg(test)]
mod tests;
