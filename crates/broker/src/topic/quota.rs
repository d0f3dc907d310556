//! Backlog quotas: how much a topic's slowest subscription may leave unacked, and for how long.
//!
//! Looked at from time to time, when a producer comes, and when so much was published since the
//! last look that the size could be exceeded: so a fast producer is not a check ahead of its quota.

use std::sync::Arc;

use geminga_model::Position;
use geminga_storage::ReadLimits;

use super::seek::publish_time_ms;
use super::{State, Topic};
use crate::error::BrokerError;
use crate::policies::{BacklogQuota, BacklogQuotaAction, EffectivePolicies};
use crate::timers::Alarm;

/// Of the limit, what eviction leaves.
const KEPT_PERCENT: u64 = 90;

impl Topic {
    /// The first entry that some durable subscription has not acked.
    fn oldest_unacked(&self) -> Option<Position> {
        let state = self.lock();
        let durable = state.subscriptions.iter().filter(|s| s.durable);
        // Another cluster that lags holds data back as a subscription does.
        let remote = state.replicators.iter().map(|r| &r.cursor);
        let cursors = durable.map(|s| &s.cursor).chain(remote);
        let oldest = cursors
            .map(|cursor| cursor.next_unacked(cursor.mark_delete().next_in_ledger()))
            .min()?;
        (oldest <= self.ledger.durable_position()).then_some(oldest)
    }

    fn is_over_size(&self, quota: BacklogQuota) -> bool {
        let Ok(limit) = u64::try_from(quota.limit_size) else {
            return false;
        };
        let oldest = self.oldest_unacked();
        oldest.is_some_and(|oldest| self.ledger.bytes_from(oldest) >= limit)
    }

    async fn is_over_age(&self, quota: BacklogQuota) -> Result<bool, BrokerError> {
        let Some(limit) = u64::try_from(quota.limit_time).ok().filter(|n| *n > 0) else {
            return Ok(false);
        };
        let Some(oldest) = self.oldest_unacked() else {
            return Ok(false);
        };
        let entries = self
            .ledger
            .read(oldest, ReadLimits::new(1, usize::MAX))
            .await?;
        let now_ms = self.core.clock.now_ms();
        Ok(entries
            .first()
            // Clients say when they published: any number.
            .is_some_and(|entry| {
                publish_time_ms(entry).saturating_add(limit.saturating_mul(1_000)) <= now_ms
            }))
    }

    /// Whether a producer may come.
    pub(crate) async fn check_quota_for_producer(&self) -> Result<(), BrokerError> {
        let policies = self.policies();
        let refuse = |quota: BacklogQuota| {
            let text = format!(
                "Cannot create producer on topic with backlog quota exceeded: {}",
                self.name
            );
            match quota.policy {
                BacklogQuotaAction::ProducerRequestHold => Err(BrokerError::QuotaHold(text)),
                BacklogQuotaAction::ProducerException => Err(BrokerError::QuotaExceeded(text)),
                BacklogQuotaAction::ConsumerBacklogEviction => Ok(()),
            }
        };
        if self.is_over_size(policies.backlog_size) {
            refuse(policies.backlog_size)?;
        }
        if self.is_over_age(policies.backlog_age).await? {
            refuse(policies.backlog_age)?;
        }
        Ok(())
    }

    /// What the quotas ask for now.
    pub(crate) async fn enforce_quotas(self: &Arc<Topic>) -> Result<(), BrokerError> {
        let policies = self.policies();
        let size = policies.backlog_size;
        if self.is_over_size(size) {
            match size.policy {
                BacklogQuotaAction::ConsumerBacklogEviction => self.evict_by_size(size)?,
                _ => self.disconnect_producers("the backlog quota of size is exceeded"),
            }
        }
        let age = policies.backlog_age;
        if self.is_over_age(age).await? {
            match age.policy {
                BacklogQuotaAction::ConsumerBacklogEviction => {
                    let seconds = u64::try_from(age.limit_time).unwrap_or(0);
                    self.expire_all(seconds).await?;
                }
                _ => self.disconnect_producers("the backlog quota of age is exceeded"),
            }
        }
        self.arm_quota(&mut self.lock(), &policies);
        Ok(())
    }

    /// Says after how many published bytes the size must be looked at.
    pub(super) fn arm_quota(&self, state: &mut State, policies: &EffectivePolicies) {
        state.quota_left = match u64::try_from(policies.backlog_size.limit_size) {
            Ok(limit) if self.core.config.backlog_quota_check_enabled => {
                // As if all that is stored were unacked: looked at once too often, never too late.
                Some(
                    limit
                        .saturating_sub(self.ledger.size_bytes())
                        .max(limit / 10),
                )
            }
            _ => None,
        };
    }

    /// What was just made durable counts; the quota may have to be looked at.
    pub(super) fn count_for_quota(self: &Arc<Topic>, state: &mut State, bytes: u64) {
        let Some(left) = &mut state.quota_left else {
            return;
        };
        if *left > bytes {
            *left -= bytes;
            return;
        }
        // Armed again by the check. The store's thread cannot spawn; the timers' task can.
        state.quota_left = None;
        let now_ms = self.core.clock.now_ms();
        self.core
            .timers
            .set(now_ms, Arc::downgrade(self), Alarm::Quota);
    }

    pub(super) fn quota_alarm(self: &Arc<Topic>) {
        let topic = self.clone();
        self.core
            .tasks
            .spawn_cancellable("check a backlog quota", async move {
                if let Err(error) = topic.enforce_quotas().await {
                    tracing::warn!(topic = %topic.name, %error, "a backlog quota was not enforced");
                    topic.arm_quota(&mut topic.lock(), &topic.policies());
                }
            });
    }

    fn disconnect_producers(self: &Arc<Topic>, reason: &str) {
        let mut state = self.lock();
        let producers: Vec<_> = state.producers.values().cloned().collect();
        if !producers.is_empty() {
            tracing::info!(topic = %self.name, reason, "producers are disconnected");
        }
        for producer in producers {
            self.drop_producer_in_order(&mut state, &producer);
        }
    }

    fn evict_by_size(self: &Arc<Topic>, quota: BacklogQuota) -> Result<(), BrokerError> {
        let limit = u64::try_from(quota.limit_size).unwrap_or(0);
        let kept = (u128::from(limit) * u128::from(KEPT_PERCENT) / 100) as u64;
        let target = self.ledger.place_of_last_bytes(kept);
        let Some(through) = self.ledger.previous(target) else {
            return Ok(());
        };
        let mut state = self.open()?;
        let names: Vec<Arc<str>> = state
            .subscriptions
            .iter()
            .filter(|s| s.durable)
            .map(|s| s.name.clone())
            .collect();
        for name in names {
            self.skip_through(&mut state, &name, through)?;
        }
        let (through, now_ms) = (through.min(state.read_limit()), self.core.clock.now_ms());
        for replicator in &state.replicators {
            replicator.expire_through(through, now_ms)?;
        }
        Ok(())
    }
}
