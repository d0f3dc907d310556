//! CONNECT and what we tell of ourselves.

use std::sync::atomic::Ordering;

use geminga_proto::PROTOCOL_VERSION;
use geminga_proto::pb::{CommandConnect, CommandConnected, FeatureFlags};

use super::{Closed, Connection};

/// Opaque to clients; begins as Pulsar's does.
const SERVER_VERSION: &str = concat!("Pulsar Server4.0.8-geminga-", env!("CARGO_PKG_VERSION"));

impl Connection {
    pub(super) fn handle_connect(&mut self, connect: &CommandConnect) -> Result<(), Closed> {
        let version = connect.protocol_version().clamp(0, PROTOCOL_VERSION);
        self.peer.protocol.store(version, Ordering::Relaxed);
        // Set once: a second CONNECT is refused.
        drop(self.peer.client_version.set(connect.client_version.clone()));
        self.ready = true;
        self.core
            .metrics
            .connections_accepted
            .fetch_add(1, Ordering::Relaxed);
        let max = i32::try_from(self.core.config.max_message_size).unwrap_or(i32::MAX);
        self.peer.outbox.send(CommandConnected {
            server_version: SERVER_VERSION.to_owned(),
            protocol_version: Some(version),
            max_message_size: Some(max),
            feature_flags: Some(FeatureFlags {
                supports_topic_watchers: Some(
                    self.core
                        .config
                        .enable_broker_side_subscription_pattern_evaluation,
                ),
                supports_get_partitioned_metadata_without_auto_creation: Some(true),
                // Tells what it says: deduplication by source position needs deduplication.
                supports_repl_dedup_by_lid_and_eid: Some(false),
                ..FeatureFlags::default()
            }),
        });
        Ok(())
    }
}
