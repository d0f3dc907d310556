//! Which partition a message goes to. Pure; all producers of a topic must agree.

use geminga_proto::hash::{java_string, murmur3_32};

use crate::message::Message;

/// How a key becomes a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HashingScheme {
    /// Java's `String.hashCode`: what Java producers use unless told otherwise.
    #[default]
    JavaString,
    /// MurmurHash3.
    Murmur3,
}

/// How messages are spread over partitions. A message with a key always goes by its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Routing {
    /// Messages without a key go to the partitions in turn.
    #[default]
    RoundRobin,
    /// Messages without a key all go to one partition, chosen once.
    SinglePartition,
    /// Everything goes to this partition, even messages with a key.
    Partition(u32),
}

/// Chooses partitions.
#[derive(Debug)]
pub(crate) struct Router {
    routing: Routing,
    hashing: HashingScheme,
    /// Where the next message without a key goes.
    next: u32,
    /// Messages without a key that still go to `next` before the turn passes on: a partition gets
    /// a run, so that round robin and batching do not fight.
    run_left: u32,
    run: u32,
}

impl Router {
    pub(crate) fn new(routing: Routing, hashing: HashingScheme, start: u32, run: u32) -> Self {
        let run = run.max(1);
        Self {
            routing,
            hashing,
            next: start,
            run_left: run,
            run,
        }
    }

    pub(crate) fn choose(&mut self, message: &Message, partitions: u32) -> u32 {
        debug_assert!(partitions > 0);
        if let Routing::Partition(partition) = self.routing {
            return partition.min(partitions - 1);
        }
        if let Some(key) = &message.key {
            let hash = match self.hashing {
                HashingScheme::JavaString => java_string(key),
                HashingScheme::Murmur3 => murmur3_32(key.as_bytes()),
            };
            return hash % partitions;
        }
        if self.routing == Routing::RoundRobin {
            if self.run_left == 0 {
                self.next = self.next.wrapping_add(1);
                self.run_left = self.run;
            }
            self.run_left -= 1;
        }
        self.next % partitions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(
        routing: Routing,
        hashing: HashingScheme,
        run: u32,
        messages: &[Message],
    ) -> Vec<u32> {
        let mut router = Router::new(routing, hashing, 0, run);
        messages
            .iter()
            .map(|message| router.choose(message, 3))
            .collect()
    }

    #[test]
    fn messages_without_a_key_take_turns_in_runs() {
        let messages = vec![Message::new("x"); 7];
        let java = HashingScheme::JavaString;
        assert_eq!(
            chosen(Routing::RoundRobin, java, 1, &messages),
            [0, 1, 2, 0, 1, 2, 0]
        );
        assert_eq!(
            chosen(Routing::RoundRobin, java, 2, &messages),
            [0, 0, 1, 1, 2, 2, 0]
        );
        assert_eq!(chosen(Routing::SinglePartition, java, 1, &messages), [0; 7]);
        assert_eq!(chosen(Routing::Partition(2), java, 1, &messages), [2; 7]);
        assert_eq!(chosen(Routing::Partition(9), java, 1, &messages), [2; 7]);
    }

    #[test]
    fn keys_go_where_other_clients_send_them() {
        let messages = ["a", "b", "hello"].map(|key| Message::new("x").key(key));
        // 97, 98 and 99162322 by Java; murmur3 of the same.
        assert_eq!(
            chosen(Routing::RoundRobin, HashingScheme::JavaString, 1, &messages),
            [1, 2, 1]
        );
        let murmur = messages
            .each_ref()
            .map(|m| murmur3_32(m.key.as_deref().unwrap().as_bytes()) % 3);
        assert_eq!(
            chosen(Routing::RoundRobin, HashingScheme::Murmur3, 1, &messages),
            murmur
        );
    }
}
