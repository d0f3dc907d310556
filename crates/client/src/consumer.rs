//! Consumers: messages of one topic, of several, of all partitions, or of all topics of a pattern.
//!
//! Entries come from the connections into one inbox, whole and packed. The consumer takes all that
//! are there at once and opens them in the task that reads it, so that unpacking is not on the
//! connection's time. Permits bound what the brokers send.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::ops::Deref;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::message::ReceivedMessage;
pub(crate) use decode::Entry;
pub use handle::{ConsumerHandle, Target};
pub use pattern::Pattern;
pub(crate) use pattern::Wanted;
pub use settings::{
    ConsumerBuilder, InitialPosition, KeyShared, SeekTo, Selection, SubType, TopicSettings, Topics,
};
pub(crate) use topic::Topic;

mod acks;
mod decode;
mod driver;
mod group;
mod handle;
mod inbox;
mod pattern;
mod permits;
mod settings;
mod topic;

/// Reads messages. Everything but reading is in its [`ConsumerHandle`], to which it derefs.
///
/// Dropping it closes it.
pub struct Consumer {
    handle: ConsumerHandle,
    /// Taken from the inbox, not opened.
    entries: VecDeque<Entry>,
    /// Opened: what is left of one entry.
    ready: VecDeque<ReceivedMessage>,
    /// Where `ready` comes from; stale after a jump to another generation.
    origin: Option<(Arc<Topic>, u32)>,
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.handle.fmt(f)
    }
}

impl Deref for Consumer {
    type Target = ConsumerHandle;

    fn deref(&self) -> &ConsumerHandle {
        &self.handle
    }
}

impl Consumer {
    /// The next message. Cancel-safe: a message is not lost when the future is dropped.
    ///
    /// # Errors
    /// When the consumer is closed, or lost its place for good.
    pub async fn recv(&mut self) -> Result<ReceivedMessage> {
        loop {
            if let Some(message) = self.next_ready() {
                return Ok(message);
            }
            self.fill().await?;
        }
    }

    /// All messages that are here now, at most `max`, waiting for the first. Cancel-safe.
    ///
    /// # Errors
    /// As [`recv`](Consumer::recv).
    pub async fn recv_batch(&mut self, max: usize) -> Result<Vec<ReceivedMessage>> {
        self.recv_batch_within(max, usize::MAX).await
    }

    /// The same, and none beyond the one whose payload makes it `bytes` or more.
    ///
    /// # Errors
    /// As [`recv`](Consumer::recv).
    pub async fn recv_batch_within(
        &mut self,
        max: usize,
        bytes: usize,
    ) -> Result<Vec<ReceivedMessage>> {
        let mut messages = Vec::new();
        if max == 0 {
            return Ok(messages);
        }
        let first = self.recv().await?;
        let mut taken = first.payload.len();
        messages.push(first);
        messages.reserve(self.ready.len().min(max - 1));
        while messages.len() < max && taken < bytes {
            match self.try_recv() {
                Some(message) => {
                    taken = taken.saturating_add(message.payload.len());
                    messages.push(message);
                }
                None => break,
            }
        }
        Ok(messages)
    }

    /// The next message if it is here.
    pub fn try_recv(&mut self) -> Option<ReceivedMessage> {
        loop {
            if let Some(message) = self.next_ready() {
                return Some(message);
            }
            if self.entries.is_empty() && !self.handle.group.inbox.try_take(&mut self.entries) {
                return None;
            }
            self.open_next();
        }
    }

    /// Whether a message is here or on the broker that was not received yet.
    ///
    /// # Errors
    /// When a broker does not answer.
    pub async fn has_message_available(&self) -> Result<bool> {
        if !self.ready.is_empty() && self.is_current() {
            return Ok(true);
        }
        for topic in self.handle.group.all() {
            if topic.has_more().await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What acknowledges, refuses and seeks; for other tasks. It does not keep the consumer open.
    #[must_use]
    pub fn handle(&self) -> ConsumerHandle {
        self.handle.clone()
    }

    /// Sends what is acknowledged and closes.
    ///
    /// # Errors
    /// When a broker does not answer. It is closed then too.
    pub async fn close(self) -> Result<()> {
        let mut result = Ok(());
        for topic in self.handle.group.last() {
            if let Some(connection) = topic.over(Error::Closed) {
                let closed = connection
                    .request("close consumer", |id| driver::close_command(topic.id, id))
                    .await;
                result = result.and(closed.map(|_| ()));
            }
        }
        self.handle.group.end();
        result
    }

    fn is_current(&self) -> bool {
        self.origin
            .as_ref()
            .is_some_and(|(topic, generation)| topic.is_current(*generation))
    }

    fn next_ready(&mut self) -> Option<ReceivedMessage> {
        if self.ready.is_empty() {
            return None;
        }
        if !self.is_current() {
            self.ready.clear();
            return None;
        }
        self.ready.pop_front()
    }

    async fn fill(&mut self) -> Result<()> {
        if self.entries.is_empty() {
            let (inbox, entries) = (&self.handle.group.inbox, &mut self.entries);
            poll_fn(|cx| inbox.poll_take(entries, cx)).await?;
        }
        self.open_next();
        Ok(())
    }

    fn open_next(&mut self) {
        let Some(entry) = self.entries.pop_front() else {
            return;
        };
        let same = self.origin.take().map(|(topic, _)| topic);
        let topic = match same.filter(|topic| topic.index == entry.topic) {
            Some(topic) => topic,
            None => match self.handle.group.topics.read().get(entry.topic) {
                Some(topic) => topic.clone(),
                None => return,
            },
        };
        let ready = &mut self.ready;
        topic.open(&entry, &mut |message| ready.push_back(message));
        self.origin = Some((topic, entry.generation));
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        for topic in self.handle.group.last() {
            if let Some(connection) = topic.over(Error::Closed) {
                let none = geminga_proto::command::NO_REQUEST;
                connection.send(&driver::close_command(topic.id, none));
            }
        }
        self.handle.group.end();
    }
}
