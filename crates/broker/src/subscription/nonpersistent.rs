//! Delivery to the consumers of a non-persistent topic: now or never.

use geminga_proto::message::peek;
use geminga_storage::Entry;

use super::deliver::{Sender, Source, candidate};
use super::{Dispatch, Subscription};

impl Subscription {
    /// Sends each entry to the consumer whose turn it is; returns how many messages nobody took.
    pub(crate) fn offer(&mut self, source: &Source<'_>, entries: &[Entry]) -> u64 {
        self.refresh_writable();
        let Subscription {
            dispatch,
            consumers,
            counters,
            ..
        } = self;
        let mut dropped = 0;
        let mut sender = Sender::new(consumers, source);
        for entry in entries {
            let Ok(head) = peek(&entry.data) else {
                continue;
            };
            let messages = head.message_count();
            let consumer = match dispatch {
                Dispatch::None => None,
                Dispatch::Single(single) => single.ready().map(|flow| {
                    flow.spend(messages);
                    flow.key
                }),
                Dispatch::Many(many) => {
                    let hash = |key: &[u8]| many.routing_hash(key);
                    let by_key = many.routes_by_key();
                    let candidate = candidate(entry.position, &head, messages, hash, by_key);
                    many.route(&candidate, |key| sender.takes(key))
                }
            };
            match consumer {
                Some(consumer) => {
                    if !sender.send(consumer, entry, messages, 0, &[]) {
                        dispatch.stop(consumer);
                    }
                }
                None => dropped += u64::from(messages),
            }
        }
        let sent = sender.finish();
        counters.messages_out += sent.messages;
        counters.bytes_out += sent.bytes;
        if sent.messages > 0 {
            counters.last_consumed_ms = source.now_ms;
        }
        if dropped > 0 {
            counters.dropped.add(dropped, source.now_ms);
        }
        dropped
    }
}
