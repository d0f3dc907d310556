//! LOOKUP, PARTITIONED_METADATA and GET_TOPICS_OF_NAMESPACE.

use std::time::Duration;

use geminga_proto::pb::command_get_topics_of_namespace::Mode;
use geminga_proto::pb::command_lookup_topic_response::LookupType;
use geminga_proto::pb::command_partitioned_topic_metadata_response::LookupType as PartitionsResult;
use geminga_proto::pb::{
    CommandGetTopicsOfNamespace, CommandGetTopicsOfNamespaceResponse, CommandLookupTopic,
    CommandLookupTopicResponse, CommandPartitionedTopicMetadata,
    CommandPartitionedTopicMetadataResponse,
};

use tokio::sync::OwnedSemaphorePermit;

use super::Connection;
use crate::broker::Core;
use crate::error::BrokerError;
use crate::peer::Peer;
use crate::topic_list::{Pattern, topics_hash};

/// How often a client that reads slowly is looked at again.
const LISTING_WAIT: Duration = Duration::from_millis(20);

impl Connection {
    pub(super) fn handle_lookup(&mut self, request: CommandLookupTopic) {
        let request_id = request.request_id;
        let core = self.core.clone();
        let bound = self.peer.listener.get().cloned();
        self.request("look up a topic", async move {
            let result = core.lookup(&request, bound.as_deref()).await;
            move |connection: &mut Connection| {
                let response = match result {
                    // Its connector ignores addresses: one that it can parse is enough.
                    Ok(_) if connection.peer.is_internal => CommandLookupTopicResponse {
                        proxy_through_service_url: Some(true),
                        broker_service_url: Some("pulsar://localhost:6650".to_owned()),
                        response: Some(LookupType::Connect as i32),
                        request_id,
                        authoritative: Some(true),
                        ..CommandLookupTopicResponse::default()
                    },
                    Ok(urls) => CommandLookupTopicResponse {
                        proxy_through_service_url: Some(connection.core.is_proxied(&urls)),
                        broker_service_url_tls: urls.pulsar_ssl,
                        broker_service_url: urls.pulsar,
                        response: Some(LookupType::Connect as i32),
                        request_id,
                        authoritative: Some(true),
                        ..CommandLookupTopicResponse::default()
                    },
                    Err(reason) => CommandLookupTopicResponse {
                        response: Some(LookupType::Failed as i32),
                        request_id,
                        error: Some(reason.server_error() as i32),
                        message: Some(reason.to_string()),
                        ..CommandLookupTopicResponse::default()
                    },
                };
                connection.peer.outbox.send(response);
            }
        });
    }

    pub(super) fn handle_partitions(&mut self, request: CommandPartitionedTopicMetadata) {
        let request_id = request.request_id;
        let core = self.core.clone();
        self.request("get partition metadata", async move {
            let create = request.metadata_auto_creation_enabled.unwrap_or(true);
            let result = match core.parse_topic(&request.topic) {
                Ok(name) => core.partitions_or_create(&name, create).await,
                Err(reason) => Err(reason),
            };
            move |connection: &mut Connection| {
                let response = match result {
                    Ok(partitions) => CommandPartitionedTopicMetadataResponse {
                        partitions: Some(partitions),
                        request_id,
                        response: Some(PartitionsResult::Success as i32),
                        ..CommandPartitionedTopicMetadataResponse::default()
                    },
                    Err(reason) => CommandPartitionedTopicMetadataResponse {
                        request_id,
                        response: Some(PartitionsResult::Failed as i32),
                        error: Some(reason.server_error() as i32),
                        message: Some(reason.to_string()),
                        ..CommandPartitionedTopicMetadataResponse::default()
                    },
                };
                connection.peer.outbox.send(response);
            }
        });
    }

    pub(super) fn handle_topics(&mut self, request: CommandGetTopicsOfNamespace) {
        let request_id = request.request_id;
        let (core, peer) = (self.core.clone(), self.peer.clone());
        self.request("list topics", async move {
            let turn = core.listing_turn(&peer).await;
            let result = topics(&core, &request).await;
            move |connection: &mut Connection| {
                match result {
                    Ok(response) => connection.peer.outbox.send(response),
                    Err(reason) => connection.refuse(request_id, &reason),
                }
                drop(turn);
            }
        });
    }
}

impl Core {
    /// Waits until it may make a list of topics for that client, which holds the turn until the
    /// list is queued: a list may have millions of names, and a client may ask hundreds of times at
    /// once.
    pub(super) async fn listing_turn(&self, peer: &Peer) -> Option<OwnedSemaphorePermit> {
        loop {
            while !peer.takes_replies() && !peer.is_gone() {
                tokio::time::sleep(LISTING_WAIT).await;
            }
            let turn = self.listing.clone().acquire_owned().await;
            if peer.takes_replies() || peer.is_gone() {
                return turn.ok();
            }
        }
    }
}

async fn topics(
    core: &Core,
    request: &CommandGetTopicsOfNamespace,
) -> Result<CommandGetTopicsOfNamespaceResponse, BrokerError> {
    let namespace = core.parse_namespace(&request.namespace)?;
    let mut topics = match request.mode() {
        Mode::NonPersistent => Vec::new(),
        Mode::Persistent | Mode::All => core.user_topics(&namespace).await?,
    };
    if matches!(request.mode(), Mode::NonPersistent | Mode::All) {
        topics.extend(core.nonpersistent_topics(&namespace));
    }
    let config = &core.config;
    let pattern = request.topics_pattern.as_deref().filter(|pattern| {
        config.enable_broker_side_subscription_pattern_evaluation
            && pattern.len() <= config.subscription_pattern_max_length
    });
    let filtered = pattern.is_some();
    if let Some(pattern) = pattern {
        let pattern = Pattern::new(pattern)?;
        topics.retain(|topic| pattern.matches(topic));
    }
    let hash = topics_hash(topics.iter().map(String::as_str));
    let same = request.topics_hash.as_deref() == Some(hash.as_str());
    Ok(CommandGetTopicsOfNamespaceResponse {
        request_id: request.request_id,
        topics: if same { Vec::new() } else { topics },
        filtered: Some(filtered),
        topics_hash: Some(hash),
        changed: Some(!same),
    })
}
