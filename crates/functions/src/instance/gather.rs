//! Messages of a window function: which time each has, which are late, and how a window is given to
//! a host as one message.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use super::source::Incoming;
use super::window::{Added, Fired, Windows};
use crate::plan::{HELD_MAX, Packing, Shape, Stamp, WindowPlan};
use crate::runtime::{Message, Window, headers};

/// Bytes of messages that the windows of one instance may hold.
const HELD_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Windows of time in a host at once.
const TIMED_AT_ONCE: usize = 4;
/// Bytes of the messages of one window: with all its escapes it is below what a host is told lengths in.
const WINDOW_BYTES_MAX: usize = 1024 * 1024 * 1024;

/// The windows of an instance and what is known of its messages.
pub(crate) struct Gather {
    plan: WindowPlan,
    windows: Windows<Incoming>,
    /// Of the messages held.
    bytes: usize,
}

impl Gather {
    pub(crate) fn new(plan: WindowPlan) -> Self {
        Self {
            windows: Windows::new(plan.shape, plan.event_time).waiting_for(plan.named.clone()),
            plan,
            bytes: 0,
        }
    }

    pub(crate) fn late_topic(&self) -> Option<&str> {
        self.plan.late_topic.as_deref()
    }

    /// How many messages more may come.
    pub(crate) fn room(&self) -> usize {
        match self.bytes < HELD_BYTES_MAX {
            true => HELD_MAX.saturating_sub(self.windows.len()),
            false => 0,
        }
    }

    /// How many windows may be with a host that takes so many messages: each is a copy of what it holds.
    pub(crate) fn at_once(&self, window: usize) -> usize {
        match self.plan.shape {
            Shape::Count { length, .. } => (HELD_MAX / length.max(1)).clamp(1, window),
            Shape::Time { .. } | Shape::Session { .. } => window.min(TIMED_AT_ONCE),
        }
    }

    /// How many messages may come where there is room for so many windows.
    pub(crate) fn messages_for(&self, windows: usize) -> usize {
        match self.plan.shape {
            Shape::Count { slide, .. } => windows.saturating_mul(slide),
            // They complete windows only with the clock.
            Shape::Time { .. } | Shape::Session { .. } if windows > 0 => self.room(),
            _ => 0,
        }
    }

    /// Why nothing more happens, when no message may come and none of the windows will be complete
    /// without one.
    pub(crate) fn stuck(&self) -> Option<String> {
        if self.room() > 0 || self.next_tick().is_some() {
            return None;
        }
        Some(format!(
            "the windows hold {} messages of {} bytes and none can be completed: make them shorter, or \
             `maxLagMs` smaller, or run more instances; event times ahead of the clock are waited for, too",
            self.windows.len(),
            self.bytes
        ))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.windows.len() == 0
    }

    pub(crate) fn add(
        &mut self,
        now_ms: u64,
        incoming: &Incoming,
        fired: &mut Vec<Fired<Incoming>>,
    ) -> Added {
        let message = &incoming.message;
        let time_ms = self.plan.stamp.of(message, now_ms);
        let topic = parent(&message.topic);
        let before = fired.len();
        let added = self
            .windows
            .add(now_ms, time_ms, &topic, incoming.clone(), fired);
        if added == Added::Held {
            self.bytes += message.bytes();
        }
        self.let_go(&fired[before..]);
        added
    }

    pub(crate) fn tick(&mut self, now_ms: u64, fired: &mut Vec<Fired<Incoming>>) {
        let before = fired.len();
        self.windows.tick(now_ms, fired);
        self.let_go(&fired[before..]);
    }

    fn let_go(&mut self, fired: &[Fired<Incoming>]) {
        let done = fired.iter().flat_map(|window| &window.done);
        let bytes: usize = done.map(|incoming| incoming.message.bytes()).sum();
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// No message will come any more.
    pub(crate) fn finish(&mut self) {
        self.windows.finish();
    }

    pub(crate) fn next_tick(&self) -> Option<u64> {
        self.windows.next_tick()
    }

    /// The message that stands for a window, and what is wrong with it.
    pub(crate) fn message(&self, window: &Fired<Incoming>) -> (Message, Option<String>) {
        let messages = || window.items.iter().map(|incoming| &*incoming.message);
        let bytes: usize = messages().map(Message::bytes).sum();
        let too_large = (bytes > WINDOW_BYTES_MAX).then(|| {
            format!("a window of {bytes} bytes: {WINDOW_BYTES_MAX} can be given to a function")
        });
        let payload = match self.plan.packing {
            _ if too_large.is_some() => Bytes::new(),
            Packing::Batch => pack(messages()),
            Packing::Lines => lines(messages()),
        };
        let last = window.items.last().map(|last| last.message.id.clone());
        let message = Message {
            id: format!("window {}-{}", window.start_ms, window.end_ms),
            payload,
            partition: -1,
            window: Some(Window {
                count: window.items.len() as u64,
                start_ms: window.start_ms,
                end_ms: window.end_ms,
                last: last.unwrap_or_default(),
            }),
            ..Message::default()
        };
        (message, too_large)
    }
}

impl Stamp {
    /// A message without the time that is asked for has that of its publishing.
    fn of(&self, message: &Message, now_ms: u64) -> u64 {
        let published = message.publish_time;
        match self {
            Self::Arrival => now_ms,
            Self::Publish => published,
            Self::Event if message.event_time > 0 => message.event_time,
            Self::Event => published,
            Self::Property(name) => {
                let mut properties = message.properties.iter();
                let value = properties.find(|(property, _)| property == name);
                value
                    .and_then(|(_, text)| text.parse().ok())
                    .unwrap_or(published)
            }
        }
    }
}

/// The topic of a partition.
fn parent(topic: &Arc<str>) -> Arc<str> {
    match topic.rsplit_once("-partition-") {
        Some((parent, number)) if number.bytes().all(|byte| byte.is_ascii_digit()) => parent.into(),
        _ => topic.clone(),
    }
}

/// As the messages of a batch: the count, the lengths, the blocks and payloads.
fn pack<'a>(messages: impl Iterator<Item = &'a Message> + Clone) -> Bytes {
    let mut body = Vec::new();
    let mut out = BytesMut::new();
    out.put_u32_le(u32::try_from(messages.clone().count()).unwrap_or(u32::MAX));
    for message in messages {
        let before = body.len();
        headers::of_message(&mut body, message);
        let block = body.len() - before;
        body.extend_from_slice(&message.payload);
        for length in [block, message.payload.len()] {
            out.put_u32_le(u32::try_from(length).unwrap_or(u32::MAX));
        }
    }
    out.extend_from_slice(&body);
    out.freeze()
}

/// One payload a line, with the escapes of a block's values.
fn lines<'a>(messages: impl Iterator<Item = &'a Message>) -> Bytes {
    let mut out = Vec::new();
    for message in messages {
        headers::escape_into(&mut out, &message.payload, false);
        out.push(b'\n');
    }
    // As a text file has it, but what is given to a function has no newline at its end.
    out.pop();
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(payload: &'static str, event_time: u64) -> Message {
        Message {
            topic: "t-partition-3".into(),
            id: "1:2:-1".to_owned(),
            payload: Bytes::from_static(payload.as_bytes()),
            event_time,
            publish_time: 5,
            properties: vec![("at".to_owned(), "77".to_owned())],
            ..Message::default()
        }
    }

    #[test]
    fn each_message_has_the_time_that_is_asked_for() {
        let (with, without) = (message("a", 9), message("a", 0));
        for (stamp, wanted) in [
            (Stamp::Arrival, [1, 1]),
            (Stamp::Publish, [5, 5]),
            (Stamp::Event, [9, 5]),
            (Stamp::Property("at".into()), [77, 77]),
            (Stamp::Property("other".into()), [5, 5]),
        ] {
            assert_eq!(
                [stamp.of(&with, 1), stamp.of(&without, 1)],
                wanted,
                "{stamp:?}"
            );
        }
        assert_eq!(&*parent(&with.topic), "t");
    }

    #[test]
    fn what_is_held_is_bounded_in_bytes_and_in_messages() {
        let mut gather = Gather::new(WindowPlan {
            shape: Shape::Count {
                length: 4,
                slide: 4,
            },
            event_time: None,
            named: Default::default(),
            stamp: Stamp::Arrival,
            late_topic: None,
            packing: Packing::Lines,
        });
        let large = Bytes::from(vec![b'x'; HELD_BYTES_MAX / 3]);
        let incoming = Incoming {
            message: Arc::new(Message {
                payload: large,
                ..message("", 0)
            }),
            origin: crate::instance::source::Origin::File { file: 0, offset: 0 },
        };
        let mut fired = Vec::new();
        gather.add(0, &incoming, &mut fired);
        gather.add(0, &incoming, &mut fired);
        assert_eq!((gather.room(), gather.stuck()), (HELD_MAX - 2, None));
        assert_eq!(
            [gather.at_once(2048), gather.at_once(20_000)],
            [2048, 10_000]
        );
        assert_eq!(gather.messages_for(3), 12);
        gather.add(0, &incoming, &mut fired);
        assert!(gather.room() == 0 && gather.stuck().is_some());
        // What came all the same makes the window complete.
        gather.add(0, &incoming, &mut fired);
        assert_eq!((gather.room(), gather.bytes), (HELD_MAX, 0));
        assert_eq!(fired.len(), 1);
    }

    #[test]
    fn a_window_is_packed_as_a_batch_or_as_lines() {
        let two = [message("one\n", 0), message("b\\", 0)];
        assert_eq!(&lines(two.iter())[..], b"one\\n\nb\\\\");
        let packed = pack(two.iter());
        assert_eq!(&packed[..4], 2_u32.to_le_bytes());
        let length =
            |at: usize| u32::from_le_bytes(packed[at..at + 4].try_into().expect("four")) as usize;
        let (block, payload) = (length(4), length(8));
        assert_eq!(&packed[20 + block..20 + block + payload], b"one\n");
        assert!(packed[20..].starts_with(b"topic:t-partition-3\nid:1:2:-1\n"));
        assert!(packed.ends_with(b"b\\"));
    }
}
