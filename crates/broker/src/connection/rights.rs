//! What becomes of producers, consumers and watchers whose client had a right and has it no longer.
//!
//! A right is asked for when something is opened; here it is asked for again, each time that what
//! was granted has changed. Who has it no longer is closed as by an unload: the client comes back,
//! and is refused.

use geminga_proto::command::NO_REQUEST;
use geminga_proto::pb::CommandCloseConsumer;

use super::Connection;
use super::consume::ConsumerSlot;
use super::produce::ProducerSlot;
use crate::auth::decision::SEE;
use crate::auth::{Action, Need};
use crate::broker::Core;

impl Core {
    /// What was granted has changed: every connection looks whether it still may.
    pub(crate) fn rights_changed(&self) {
        if !self.config.security.authorization_enabled {
            return;
        }
        for peer in self.peers() {
            // One that has ended has nothing open.
            peer.outbox.post(Box::new(|connection: &mut Connection| {
                connection.check_rights();
            }));
        }
    }
}

impl Connection {
    /// Closes what this client may have open no longer.
    pub(crate) fn check_rights(&mut self) {
        let session = &self.login.session;
        if !self.ready || session.is_internal || !self.core.config.security.authorization_enabled {
            return;
        }
        let core = self.core.clone();
        let may = |need: Need<'_>| core.security.authorize(session, &need).is_ok();
        let produce = |topic| {
            may(Need::Topic {
                topic,
                actions: &[Action::Produce],
            })
        };
        let mut barred = Vec::new();
        let mut opening = false;
        for (id, slot) in &self.producers {
            match slot {
                ProducerSlot::Open { topic, producer } if !produce(&topic.name) => {
                    barred.push((*id, topic.clone(), producer.clone()));
                }
                ProducerSlot::Open { .. } => {}
                ProducerSlot::Opening(_) => opening = true,
            }
        }
        for (id, (topic, producer)) in &self.waiting_producers {
            if !produce(&topic.name) {
                barred.push((*id, topic.clone(), producer.clone()));
            }
        }
        let mut gone = Vec::new();
        for (id, slot) in &self.consumers {
            let ConsumerSlot::Open(open) = slot else {
                opening = true;
                continue;
            };
            let name = open.topic.subscription_name(open.subscription);
            let still_may = name.is_some_and(|name| {
                may(Need::Subscription {
                    topic: &open.topic.name,
                    subscription: &name,
                })
            });
            if !still_may {
                gone.push((*id, open.clone()));
            }
        }
        self.core.watchers.keep(&self.peer, |namespace| {
            may(Need::Namespace {
                namespace,
                actions: SEE,
            })
        });
        // What is being opened was allowed before the change.
        self.rights_unsure = opening;
        for (id, topic, producer) in barred {
            tracing::info!(peer = %self.peer.address, topic = %topic.name, "may produce no longer");
            self.publish_batch();
            if self.waiting_producers.remove(&id).is_some() {
                self.producers.remove(&id);
            }
            self.producer_closed(id, producer.key);
            topic.expel(&producer);
        }
        for (id, open) in gone {
            tracing::info!(peer = %self.peer.address, topic = %open.topic.name, "may consume no longer");
            self.consumers.remove(&id);
            self.peer.outbox.send(CommandCloseConsumer {
                consumer_id: id,
                request_id: NO_REQUEST,
                assigned_broker_service_url: None,
                assigned_broker_service_url_tls: None,
            });
            open.topic.leave(open.subscription, open.key);
        }
    }

    /// Something that was being opened when rights changed is open.
    pub(crate) fn check_rights_if_unsure(&mut self) {
        if self.rights_unsure {
            self.check_rights();
        }
    }
}
