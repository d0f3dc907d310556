//! Deduplication's dealings with the log: recovery before the first producer, snapshots, the switch.

use std::sync::Arc;

use geminga_model::Position;
use geminga_proto::message::peek;
use geminga_storage::managed::{Initial, Properties};
use geminga_storage::{Entry, ReadLimits};
use tokio::sync::futures::OwnedNotified;

use super::{CURSOR, Dedup};
use crate::error::BrokerError;
use crate::replication::source_position;
use crate::topic::{Life, State, Topic};

/// One read of the replay.
const REPLAY: ReadLimits = ReadLimits {
    entries_max: 1_000,
    bytes_max: 4 << 20,
};

enum Replay {
    More,
    Wait(OwnedNotified),
    Done,
}

impl Topic {
    /// What a loaded topic begins with. A cursor from when deduplication was on would hold data back.
    pub(crate) async fn begin_dedup(&self) -> Result<(), BrokerError> {
        if !self.is_persistent() {
            return Ok(());
        }
        if self.policies().deduplication {
            self.lock().dedup = Some(Box::new(self.new_dedup()));
        } else if self.ledger.cursor(CURSOR).is_some() {
            self.ledger.delete_cursor(CURSOR).await?;
        }
        Ok(())
    }

    fn new_dedup(&self) -> Dedup {
        let max = self
            .core
            .config
            .broker_deduplication_max_number_of_producers;
        Dedup::new(
            &self.core.config.cluster_name,
            max,
            self.core.clock.now_ms(),
        )
    }

    /// Switches a loaded topic as its policies say. What is published from then on counts.
    pub(crate) async fn switch_dedup(self: &Arc<Topic>) -> Result<(), BrokerError> {
        loop {
            let enabled = self.policies().deduplication && self.is_persistent();
            let is_on = self.open()?.dedup.is_some();
            if enabled && !is_on {
                self.ledger
                    .open_cursor(CURSOR, Initial::Latest, Properties::new())
                    .await?;
                let mut dedup = self.new_dedup();
                dedup.ready = true;
                self.open()?.dedup.get_or_insert_with(|| Box::new(dedup));
            } else if !enabled && is_on {
                if let Some(dedup) = self.open()?.dedup.take() {
                    dedup.close();
                }
                self.ledger.delete_cursor(CURSOR).await?;
            }
            // They may have changed again meanwhile.
            if self.policies().deduplication == enabled || !self.is_persistent() {
                return Ok(());
            }
        }
    }

    /// What a producer of this name goes on from; -1 where nothing is known.
    pub(crate) fn last_sequence_id(&self, name: &str) -> i64 {
        let state = self.lock();
        state
            .dedup
            .as_ref()
            .map_or(-1, |dedup| dedup.last_sequence_id(name))
    }

    /// Returns when a producer of this name may come: the table covers all that was ever appended,
    /// and nothing of that name waits for the disk (so its last sequence id is one that stays).
    /// To be called when the ledger is open for appends.
    pub(crate) async fn dedup_ready(self: &Arc<Topic>, name: &str) -> Result<(), BrokerError> {
        let turn = match &self.open()?.dedup {
            None => return Ok(()),
            Some(dedup) if dedup.ready && !dedup.is_in_flight(name) => return Ok(()),
            Some(dedup) => dedup.turn.clone(),
        };
        let _turn = turn.lock().await;
        self.recover_dedup().await?;
        loop {
            let settled = match &mut self.open()?.dedup {
                Some(dedup) if dedup.is_in_flight(name) => dedup.wait(),
                _ => return Ok(()),
            };
            settled.await;
        }
    }

    async fn recover_dedup(self: &Arc<Topic>) -> Result<(), BrokerError> {
        if self.open()?.dedup.as_ref().is_none_or(|dedup| dedup.ready) {
            return Ok(());
        }
        let cursor = self
            .ledger
            .open_cursor(CURSOR, Initial::Latest, Properties::new())
            .await?;
        let target = self.ledger.last_position();
        let mut from = cursor.mark_delete().next_in_ledger();
        if let Some(dedup) = &mut self.open()?.dedup {
            dedup.load(&cursor.properties());
        }
        loop {
            let entries = self.ledger.read(from, REPLAY).await?;
            match self.replay(&entries, &mut from, target)? {
                Replay::More => {}
                Replay::Wait(changed) => changed.await,
                Replay::Done => return Ok(()),
            }
        }
    }

    fn replay(
        &self,
        entries: &[Entry],
        from: &mut Position,
        target: Position,
    ) -> Result<Replay, BrokerError> {
        let now_ms = self.core.clock.now_ms();
        let mut state = self.open()?;
        let Some(dedup) = &mut state.dedup else {
            return Ok(Replay::Done);
        };
        for entry in entries {
            *from = entry.position.next_in_ledger();
            // One that cannot be read is never delivered either.
            if let Ok(head) = peek(&entry.data) {
                let source = head
                    .replicated_from
                    .and_then(|_| source_position(&entry.data));
                dedup.replay(&head, source, now_ms);
            }
        }
        if !entries.is_empty() {
            return Ok(Replay::More);
        }
        // Entries of an earlier life of the topic may be on their way to the disk. Asked for first,
        // so that none becomes durable in between unnoticed.
        let changed = dedup.wait();
        if self.ledger.durable_position() < target {
            return Ok(Replay::Wait(changed));
        }
        if self.ledger.count(*from, Position::LATEST) > 0 {
            return Ok(Replay::More);
        }
        dedup.ready = true;
        self.purge_dedup(&mut state, now_ms);
        Ok(Replay::Done)
    }

    fn purge_dedup(&self, state: &mut State, now_ms: u64) {
        let minutes = self
            .core
            .config
            .broker_deduplication_producer_inactivity_timeout_minutes;
        let State {
            dedup, producers, ..
        } = state;
        if let Some(dedup) = dedup {
            let before_ms = now_ms.saturating_sub(minutes.saturating_mul(60_000));
            dedup.purge(before_ms, |name| producers.contains_key(name));
        }
    }

    /// Writes a snapshot beside the caller. `through` is durable, and the table covers it.
    pub(in crate::topic) fn save_dedup(self: &Arc<Topic>, state: &mut State, through: Position) {
        let now_ms = self.core.clock.now_ms();
        let Some(dedup) = &mut state.dedup else {
            return;
        };
        let snapshot = dedup.begin_save(now_ms);
        let topic = self.clone();
        self.core
            .tasks
            .spawn_cancellable("save sequence ids", async move {
                topic.write_dedup(snapshot, through).await;
            });
    }

    async fn write_dedup(&self, snapshot: Properties, through: Position) {
        if let Some(cursor) = self.ledger.cursor(CURSOR) {
            // In this order: see the head of `dedup`.
            let written = match cursor.set_properties(snapshot).await {
                Ok(()) => cursor.ack_cumulative(through, None),
                Err(error) => Err(error),
            };
            if let Err(error) = written {
                tracing::warn!(topic = %self.name, %error, "sequence ids were not saved");
            }
        }
        if let Some(dedup) = &mut self.lock().dedup {
            dedup.saving = false;
        }
    }

    /// From time to time, and before the topic leaves memory (`now`).
    pub(crate) async fn maintain_dedup(self: &Arc<Topic>, now: bool) {
        let config = &self.core.config;
        let interval_s: u64 = config.broker_deduplication_snapshot_interval_seconds.into();
        let interval_ms = u64::saturating_mul(interval_s, 1_000);
        let now_ms = self.core.clock.now_ms();
        let (snapshot, through) = {
            let mut state = self.lock();
            let due = match &state.dedup {
                Some(dedup) if dedup.may_save() && state.life == Life::Open => {
                    let passed = now_ms.saturating_sub(dedup.saved_at_ms);
                    now || (interval_ms > 0 && passed >= interval_ms)
                }
                _ => false,
            };
            // While runs wait for the disk, the end of what is durable may be ahead of the table.
            if !due || !state.runs.is_empty() {
                return;
            }
            self.purge_dedup(&mut state, now_ms);
            let through = self.ledger.durable_position();
            match &mut state.dedup {
                Some(dedup) if dedup.unsaved > 0 => (dedup.begin_save(now_ms), through),
                _ => return,
            }
        };
        self.write_dedup(snapshot, through).await;
    }
}
