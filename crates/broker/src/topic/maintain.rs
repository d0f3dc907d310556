//! What is done to topics from time to time: retention, expiry, leaving memory.

use std::sync::Arc;
use std::time::Duration;

use geminga_model::Position;
use geminga_storage::managed::Retention;

use super::Topic;
use crate::broker::Core;
use crate::error::BrokerError;

/// Up to so many loaded topics, each may be idle for the configured time.
const KEPT_IN_FULL: usize = 256;

/// How long a topic may be idle, in milliseconds, before it leaves memory: the less the more are
/// loaded, so that passing through many topics does not take memory for all of them at once.
fn idle_limit(configured: u64, loaded: usize) -> u64 {
    configured * KEPT_IN_FULL as u64 / loaded.max(KEPT_IN_FULL) as u64
}

impl Core {
    /// The task: one for all topics.
    pub(crate) async fn maintain(self: Arc<Core>) {
        let idle = self.config.geminga_topic_idle_millis.max(100);
        let retention = self
            .config
            .retention_check_interval_in_seconds
            .saturating_mul(1_000);
        let expiry = self
            .config
            .message_expiry_check_interval_in_minutes
            .saturating_mul(60_000);
        let longest = (idle / 2).clamp(50, 10_000);
        let mut loaded = 0;
        let (mut since_retention, mut since_expiry) = (0u64, 0u64);
        loop {
            let crowded = loaded > KEPT_IN_FULL;
            let step = Duration::from_millis(if crowded { longest.min(500) } else { longest });
            tokio::time::sleep(step).await;
            since_retention += step.as_millis() as u64;
            since_expiry += step.as_millis() as u64;
            let trim = retention > 0 && since_retention >= retention;
            let expire = expiry > 0 && since_expiry >= expiry;
            if trim {
                since_retention = 0;
            }
            if expire {
                since_expiry = 0;
            }
            let topics = self.loaded();
            loaded = topics.len();
            let idle = idle_limit(idle, loaded);
            for topic in topics {
                if expire && let Err(error) = topic.expire_by_policy().await {
                    tracing::warn!(topic = %topic.name, %error, "messages were not expired");
                }
                let before_ms = self.clock.now_ms().saturating_sub(idle);
                let leaves = topic.is_idle_since(before_ms);
                topic.maintain_dedup(leaves).await;
                if (trim || leaves)
                    && let Err(error) = topic.trim().await
                {
                    tracing::warn!(topic = %topic.name, %error, "old ledgers were not deleted");
                }
                if leaves && topic.close_if_idle() {
                    self.unload(&topic).await;
                }
            }
        }
    }
}

impl Topic {
    /// Deletes ledgers that all subscriptions have acked and retention does not keep.
    pub(crate) async fn trim(&self) -> Result<(), BrokerError> {
        let own = self.policies().retention;
        let retention = Retention {
            time_ms: u64::try_from(own.retention_time_in_minutes)
                .ok()
                .map(|minutes| minutes.saturating_mul(60_000)),
            size_bytes: u64::try_from(own.retention_size_in_mb)
                .ok()
                .map(|mib| mib.saturating_mul(1 << 20)),
        };
        self.ledger.trim(retention).await?;
        self.trim_transactions()
    }

    async fn expire_by_policy(self: &Arc<Topic>) -> Result<(), BrokerError> {
        let seconds = self.policies().message_ttl_seconds;
        if seconds == 0 {
            return Ok(());
        }
        let names: Vec<Arc<str>> = self
            .lock()
            .subscriptions
            .iter()
            .map(|s| s.name.clone())
            .collect();
        for name in names {
            self.expire(&name, seconds).await?;
        }
        Ok(())
    }

    /// Acks what is older than `seconds` for a subscription; false when there is nothing such.
    pub(crate) async fn expire(
        self: &Arc<Topic>,
        name: &str,
        seconds: u64,
    ) -> Result<bool, BrokerError> {
        let now_ms = self.core.clock.now_ms();
        let before_ms = now_ms.saturating_sub(seconds.saturating_mul(1_000));
        let first_kept = self.position_of_time(before_ms).await?;
        let through = match first_kept {
            Position::LATEST => self.ledger.durable_position(),
            kept => match self.ledger.previous(kept) {
                Some(before) => before,
                None => return Ok(false),
            },
        };
        let mut state = self.open()?;
        // What an open transaction holds back is nobody's to skip yet.
        let through = through.min(state.read_limit());
        let Some(subscription) = state.subscription_named(name) else {
            return Err(BrokerError::SubscriptionNotFound {
                topic: self.name.to_string(),
                subscription: name.to_owned(),
            });
        };
        let before = subscription.cursor.backlog();
        if subscription.cursor.mark_delete() >= through {
            return Ok(false);
        }
        subscription.cursor.ack_cumulative(through, None)?;
        subscription.skipped_through(through);
        subscription.counters.expired += before.saturating_sub(subscription.cursor.backlog());
        subscription.counters.last_expire_ms = now_ms;
        let id = subscription.id;
        self.dispatch(&mut state, id);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_topics_are_loaded_the_sooner_idle_ones_leave() {
        let cases = [
            (0, 30_000),
            (256, 30_000),
            (512, 15_000),
            (10_000, 768),
            (1_000_000, 7),
        ];
        for (loaded, limit) in cases {
            assert_eq!(idle_limit(30_000, loaded), limit, "{loaded}");
        }
    }
}
