//! Whose turn it is on a Shared subscription.
//!
//! Consumers stand in order of priority level; a lower level is served only while no consumer of a
//! higher one is ready. Within a level they take turns of a few messages.

use std::collections::HashMap;

use super::{Candidate, ConsumerKey, Flow};

/// Chunked messages under way that are remembered. Producers may begin any number and end none; what
/// comes beyond is given out chunk by chunk.
const CHUNKED_MAX: usize = 10_000;

#[derive(Debug, Default)]
pub(crate) struct RoundRobin {
    /// Index after the consumer that had the last turn.
    next: usize,
    current: Option<usize>,
    turn_left: i64,
    /// Chunked messages under way: all pieces go to the consumer of the first.
    chunks: HashMap<Box<str>, ConsumerKey>,
}

impl RoundRobin {
    /// A new pass gives the turn to the next consumer.
    pub(crate) fn begin(&mut self) {
        self.current = None;
        self.turn_left = 0;
    }

    /// The index of the consumer that takes this entry, or none.
    pub(crate) fn choose(
        &mut self,
        consumers: &[Flow],
        candidate: &Candidate,
        turn_max: u32,
    ) -> Option<usize> {
        let Some(chunk) = &candidate.chunk else {
            return self.turn(consumers, turn_max);
        };
        let known = self.chunks.get(&chunk.uuid).copied();
        let at = match known {
            Some(key) => {
                let at = consumers.iter().position(|flow| flow.key == key)?;
                // The pieces of one message may overdraw the permits, or the message could never
                // be completed by a consumer with a short queue.
                (!consumers[at].is_blocked() && consumers[at].writable).then_some(at)?
            }
            None if chunk.id != 0 && self.chunks.len() < CHUNKED_MAX => return None,
            None => self.turn(consumers, turn_max)?,
        };
        if chunk.last {
            self.chunks.remove(&chunk.uuid);
        } else if known.is_none() && self.chunks.len() < CHUNKED_MAX {
            self.chunks.insert(chunk.uuid.clone(), consumers[at].key);
        }
        Some(at)
    }

    /// An entry of `messages` went to the consumer whose turn it is.
    pub(crate) fn spent(&mut self, messages: u32) {
        self.turn_left -= i64::from(messages);
    }

    pub(crate) fn consumers_changed(&mut self, gone: Option<ConsumerKey>) {
        self.begin();
        if let Some(gone) = gone {
            self.chunks.retain(|_, key| *key != gone);
        }
    }

    fn turn(&mut self, consumers: &[Flow], turn_max: u32) -> Option<usize> {
        if let Some(at) = self.current
            && self.turn_left > 0
            && consumers.get(at).is_some_and(Flow::is_ready)
        {
            return Some(at);
        }
        let best = consumers.iter().find(|flow| flow.is_ready())?.priority;
        let level = || (0..consumers.len()).filter(|at| consumers[*at].priority == best);
        let ready = |at: &usize| consumers[*at].is_ready();
        let at = level()
            .find(|at| *at >= self.next && ready(at))
            .or_else(|| level().find(|at| ready(at)))?;
        self.current = Some(at);
        self.next = at + 1;
        self.turn_left = i64::from(turn_max.max(1));
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use geminga_model::Position;

    use super::super::Chunk;
    use super::*;

    #[test]
    fn chunked_messages_that_never_end_are_not_remembered_for_ever() {
        let mut turns = RoundRobin::default();
        let mut consumers = vec![Flow::new(ConsumerKey(1), "c".into(), 0, 0)];
        consumers[0].add_permits(i32::MAX as u32);
        let chunk = |uuid: usize, id: i32, last: bool| Candidate {
            position: Position::new(1, 1),
            messages: 1,
            hash: 0,
            deliver_at_ms: 0,
            chunk: Some(Chunk {
                uuid: uuid.to_string().into(),
                id,
                last,
            }),
        };
        for uuid in 0..CHUNKED_MAX + 100 {
            let taken = turns.choose(&consumers, &chunk(uuid, 0, false), 1);
            assert_eq!(taken, Some(0));
        }
        assert_eq!(turns.chunks.len(), CHUNKED_MAX);
        // The rest of one that was not remembered comes too.
        let rest = chunk(CHUNKED_MAX + 50, 1, true);
        assert_eq!(turns.choose(&consumers, &rest, 1), Some(0));
        // And with room again, a chunk without its first waits for it.
        assert_eq!(turns.choose(&consumers, &chunk(0, 1, true), 1), Some(0));
        assert_eq!(turns.choose(&consumers, &rest, 1), None);
    }
}
