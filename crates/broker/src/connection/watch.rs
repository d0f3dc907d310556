//! WATCH_TOPIC_LIST: clients that subscribe by pattern are told of new and deleted topics.

use geminga_proto::command::success;
use geminga_proto::pb::{CommandWatchTopicList, CommandWatchTopicListClose};

use super::Connection;
use crate::error::BrokerError;
use crate::topic_list::Pattern;

impl Connection {
    pub(super) fn handle_watch(&mut self, request: CommandWatchTopicList) {
        let request_id = request.request_id;
        let config = &self.core.config;
        if !config.enable_broker_side_subscription_pattern_evaluation
            || request.topics_pattern.len() > config.subscription_pattern_max_length
        {
            let text = "Unable to create topic list watcher: topic list watching is not enabled, \
                        or the pattern is too long"
                .to_owned();
            return self.refuse(request_id, &BrokerError::NotAllowed(text));
        }
        let (core, peer) = (self.core.clone(), self.peer.clone());
        // Registered before the next command is read: that may close it.
        let begun = core
            .parse_namespace(&request.namespace)
            .and_then(|namespace| {
                let pattern = Pattern::new(&request.topics_pattern)?;
                let of = (namespace.clone(), pattern.clone());
                let key = core.watchers.begin(&peer, &request, of.0, of.1)?;
                Ok((key, namespace, pattern))
            });
        let (key, namespace, pattern) = match begun {
            Ok(begun) => begun,
            Err(reason) => return self.refuse(request_id, &reason),
        };
        self.request("watch topics", async move {
            let turn = core.listing_turn(&peer).await;
            let result = core.list_watched(key, &request, &namespace, &pattern).await;
            move |connection: &mut Connection| {
                if let Err(reason) = result {
                    connection.refuse(request_id, &reason);
                }
                drop(turn);
            }
        });
    }

    pub(super) fn handle_watch_close(&mut self, request: &CommandWatchTopicListClose) {
        self.core.watchers.remove(&self.peer, request.watcher_id);
        self.peer.outbox.send(success(request.request_id));
    }
}
