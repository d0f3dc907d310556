//! Deduplication: which sequence ids of a producer a topic has already taken.
//!
//! Two designs were weighed. A record of the log for each run (producer, sequence id) costs the
//! publish path a second record and the log its bytes, to say what the entries say themselves: their
//! metadata has both. So nothing is written while publishing. From time to time a snapshot of the
//! table becomes the properties of the cursor `pulsar.dedup`, and that cursor moves up to the last
//! entry which the table covers; a start takes the snapshot and replays the entries after the cursor.
//!
//! What must hold, so that nothing acknowledged is ever stored twice:
//! - the cursor never stands past an entry that the snapshot does not cover: the properties are
//!   appended to the log before the acks that move it, and a crash keeps a prefix of the log. Between
//!   the two the snapshot is ahead of the cursor, and a replay onto it changes nothing;
//! - nobody publishes before the replay has reached the last entry that was ever appended, also one
//!   that an earlier life of the topic in this process still has on its way to the disk;
//! - a sequence id is a duplicate only when its entry is durable. One that is merely on its way is an
//!   error, since nobody knows yet what will become of it.
//!
//! Messages that another cluster sends on are told by their place there, and not by the names and
//! numbers of their producers: the replicator is their producer, (ledger, entry) is their sequence.
//!
//! This file is the table, without I/O; `recovery` is the shell around it.

mod recovery;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use geminga_proto::message::Peek;
use geminga_storage::managed::Properties;
use tokio::sync::Notify;

use super::publish::{Counts, Receipt};
use crate::replication::producer_name;

/// The cursor that holds the snapshot. Not a subscription.
pub(crate) const CURSOR: &str = "pulsar.dedup";

/// Least time between two snapshots that entries ask for.
const SAVE_PAUSE_MS: u64 = 100;

/// What is known of a sequence id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    New,
    /// Its entry is durable.
    Duplicate,
    /// Its entry waits for the disk.
    InFlight,
}

/// A sequence id, or the place of an entry in another cluster.
pub(crate) type Sequence = i128;

fn place(ledger: u64, entry: u64) -> Sequence {
    Sequence::from(ledger) << 64 | Sequence::from(entry)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Track {
    /// The highest sequence id that was appended.
    pushed: Sequence,
    /// The highest one that is durable.
    persisted: Sequence,
    seen_ms: u64,
}

pub(crate) struct Dedup {
    /// The name of this cluster.
    cluster: Arc<str>,
    producers: HashMap<Arc<str>, Track>,
    producers_max: usize,
    /// The table covers every entry of the topic.
    ready: bool,
    /// Entries since the last snapshot.
    unsaved: u64,
    /// A snapshot is being written.
    saving: bool,
    saved_at_ms: u64,
    /// One recovery at a time.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Told when entries became durable, if somebody waits.
    changed: Arc<Notify>,
    waiting: bool,
}

impl Dedup {
    pub(crate) fn new(cluster: &str, producers_max: usize, now_ms: u64) -> Dedup {
        Dedup {
            cluster: cluster.into(),
            producers: HashMap::new(),
            producers_max,
            ready: false,
            unsaved: 0,
            saving: false,
            saved_at_ms: now_ms,
            turn: Arc::default(),
            changed: Arc::default(),
            waiting: false,
        }
    }

    pub(crate) fn status(&self) -> &'static str {
        if self.ready { "Enabled" } else { "Recovering" }
    }

    /// The sequence id that a producer of this name goes on from, or -1.
    pub(crate) fn last_sequence_id(&self, name: &str) -> i64 {
        let known = self.producers.get(name).map(|track| track.pushed);
        // A replicator goes on from its own cursor.
        known.and_then(|last| last.try_into().ok()).unwrap_or(-1)
    }

    /// Whether entries of this producer wait for the disk.
    fn is_in_flight(&self, name: &str) -> bool {
        self.producers
            .get(name)
            .is_some_and(|track| track.pushed > track.persisted)
    }

    /// When every message of a run is new: its highest sequence id, `None` where none of it counts.
    /// An error when they have to be judged one by one.
    pub(crate) fn check(&self, name: &str, run: &[Receipt]) -> Result<Option<Sequence>, NotAllNew> {
        let track = self.producers.get(name);
        let mut last = track.map(|track| track.pushed);
        let mut highest = None;
        for receipt in run.iter().filter(|receipt| receipt.counts != Counts::No) {
            let (first, end) = receipt.sequence_ids();
            if last.is_some_and(|last| first <= last) {
                return Err(NotAllNew);
            }
            last = last.max(Some(end));
            highest = last;
        }
        Ok(highest)
    }

    pub(crate) fn judge(&self, name: &str, receipt: &Receipt) -> Verdict {
        let (first, _) = receipt.sequence_ids();
        match self.producers.get(name) {
            _ if receipt.counts == Counts::No => Verdict::New,
            Some(track) if first <= track.persisted => Verdict::Duplicate,
            Some(track) if first <= track.pushed => Verdict::InFlight,
            _ => Verdict::New,
        }
    }

    /// Entries up to this sequence id were appended.
    pub(crate) fn pushed(&mut self, name: &Arc<str>, sequence_id: Sequence, now_ms: u64) {
        if let Some(track) = self.producers.get_mut(name) {
            track.pushed = track.pushed.max(sequence_id);
            track.seen_ms = now_ms;
            return;
        }
        self.insert(
            name.clone(),
            Track {
                pushed: sequence_id,
                persisted: Sequence::MIN,
                seen_ms: now_ms,
            },
        );
    }

    /// They are durable.
    pub(crate) fn persisted(&mut self, name: &str, sequence_id: Sequence) {
        if let Some(track) = self.producers.get_mut(name) {
            track.persisted = track.persisted.max(sequence_id);
        }
    }

    /// Entries became durable. True when a snapshot is due: not more often than every few syncs,
    /// for a fast producer would write more of them than messages' worth of time they save.
    pub(crate) fn count(&mut self, entries: usize, interval: u64, now_ms: u64) -> bool {
        self.unsaved += entries as u64;
        if std::mem::take(&mut self.waiting) {
            self.changed.notify_waiters();
        }
        let rested = now_ms >= self.saved_at_ms.saturating_add(SAVE_PAUSE_MS);
        interval > 0 && self.unsaved >= interval && rested && self.may_save()
    }

    /// An entry that was found in the topic, and its place in the cluster that it came from.
    fn replay(&mut self, head: &Peek<'_>, source: Option<(u64, u64)>, now_ms: u64) {
        let is_part = head.is_chunk() && !head.is_last_chunk();
        if is_part || head.marker_type.is_some() {
            return;
        }
        // Not the publish time: a client's clock may be anything.
        if let (Some(from), Some((ledger, entry))) = (head.replicated_from, source) {
            let name = producer_name(from, &self.cluster);
            self.restore(&name, place(ledger, entry), now_ms);
        } else {
            let sequence_id =
                (head.sequence_id as i64).max(head.highest_sequence_id.unwrap_or(0) as i64);
            self.restore(head.producer_name, sequence_id.into(), now_ms);
        }
        self.unsaved += 1;
    }

    fn restore(&mut self, name: &str, sequence_id: Sequence, seen_ms: u64) {
        let found = Track {
            pushed: sequence_id,
            persisted: sequence_id,
            seen_ms,
        };
        match self.producers.get_mut(name) {
            Some(track) => {
                track.pushed = track.pushed.max(sequence_id);
                track.persisted = track.persisted.max(sequence_id);
                track.seen_ms = track.seen_ms.max(seen_ms);
            }
            None => self.insert(name.into(), found),
        }
    }

    /// Adds a producer; beyond the limit those go that were idle for longest.
    fn insert(&mut self, name: Arc<str>, track: Track) {
        if self.producers_max > 0 && self.producers.len() >= self.producers_max {
            let mut idle: Vec<u64> = self
                .producers
                .values()
                .filter(|track| track.pushed == track.persisted)
                .map(|track| track.seen_ms)
                .collect();
            // A tenth at once: with many names that each come once, the next thousand are free.
            let gone = (self.producers_max / 10).max(1).min(idle.len());
            if gone > 0 {
                let (_, last, _) = idle.select_nth_unstable(gone - 1);
                let (last, mut left) = (*last, gone);
                self.producers.retain(|_, track| {
                    let goes = left > 0 && track.seen_ms <= last && track.pushed == track.persisted;
                    left -= usize::from(goes);
                    !goes
                });
            }
        }
        self.producers.insert(name, track);
    }

    /// Forgets producers that were not seen since, unless they are connected or have entries on
    /// their way.
    fn purge(&mut self, before_ms: u64, is_connected: impl Fn(&str) -> bool) {
        self.producers.retain(|name, track| {
            track.seen_ms >= before_ms || track.pushed > track.persisted || is_connected(name)
        });
    }

    fn may_save(&self) -> bool {
        self.ready && !self.saving
    }

    /// The table as the cursor's properties: what is durable of each producer, and when it was seen.
    fn begin_save(&mut self, now_ms: u64) -> Properties {
        self.saving = true;
        self.unsaved = 0;
        self.saved_at_ms = now_ms;
        let durable = self
            .producers
            .iter()
            .filter(|(_, track)| track.persisted > Sequence::MIN);
        durable
            .map(|(name, track)| {
                let value = format!("{} {}", track.persisted, track.seen_ms);
                (name.to_string(), value)
            })
            .collect()
    }

    fn load(&mut self, properties: &Properties) {
        for (name, value) in properties {
            let mut parts = value.split(' ').map(str::parse::<Sequence>);
            if let (Some(Ok(sequence_id)), Some(Ok(seen_ms))) = (parts.next(), parts.next()) {
                self.restore(name, sequence_id, seen_ms.try_into().unwrap_or(0));
            } else {
                tracing::error!(producer = %name, value, "a saved sequence id cannot be read");
            }
        }
    }

    /// To be waited for after the lock is gone.
    fn wait(&mut self) -> tokio::sync::futures::OwnedNotified {
        self.waiting = true;
        self.changed.clone().notified_owned()
    }

    /// The topic is closed: nobody should wait for it any more.
    pub(crate) fn close(&self) {
        self.changed.notify_waiters();
    }
}

/// Some sequence ids of a run are not above what was taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotAllNew;

impl Receipt {
    /// The first and the last of the entry.
    pub(super) fn sequence_ids(&self) -> (Sequence, Sequence) {
        if self.counts == Counts::BySource {
            let place = place(self.sequence_id, self.highest_sequence_id.unwrap_or(0));
            return (place, place);
        }
        let first = self.sequence_id as i64;
        let highest = self.highest_sequence_id.map_or(first, |id| id as i64);
        (first.into(), first.max(highest).into())
    }

    /// The last of the entry, if it counts.
    pub(super) fn highest_counted(&self) -> Option<Sequence> {
        (self.counts != Counts::No).then(|| self.sequence_ids().1)
    }
}
