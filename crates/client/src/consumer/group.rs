//! The topics of one consumer, which share an inbox.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use geminga_model::name::TopicName;
use parking_lot::RwLock;
use tokio::sync::{oneshot, watch};

use super::handle::Target;
use super::inbox::Inbox;
use super::settings::Options;
use super::topic::Topic;
use crate::client::Shared;
use crate::error::{Error, Result};
use crate::link;

/// Messages that wait in all topics of a consumer together.
const QUEUE_TOTAL_MAX: usize = 50_000;

/// All topics of one consumer.
pub(super) struct Group {
    pub(super) shared: Arc<Shared>,
    pub(super) options: Arc<Options>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) paused: Arc<AtomicBool>,
    /// Topics are added and never removed: an entry knows its topic by its number.
    pub(super) topics: RwLock<Vec<Arc<Topic>>>,
    /// Nothing is added any more.
    pub(super) ended: watch::Sender<bool>,
}

impl Group {
    pub(super) fn new(shared: Arc<Shared>, options: Options) -> Self {
        Self {
            shared,
            options: Arc::new(options),
            inbox: Arc::default(),
            paused: Arc::default(),
            topics: RwLock::default(),
            ended: watch::Sender::new(false),
        }
    }

    /// All topics there will ever be: nothing is added from now on.
    pub(super) fn last(&self) -> Vec<Arc<Topic>> {
        let topics = self.topics.write();
        self.ended.send_replace(true);
        topics.clone()
    }

    /// Whoever reads learns that it is closed.
    pub(super) fn end(&self) {
        self.ended.send_replace(true);
        self.inbox.end(Error::Closed);
    }

    /// Adds topics and waits until all of them are subscribed.
    pub(super) async fn subscribe(&self, names: Vec<TopicName>) -> Result<()> {
        let mut opening = Vec::new();
        {
            let mut topics = self.topics.write();
            if *self.ended.borrow() {
                // Nobody would close them.
                return Err(Error::Closed);
            }
            let total = (topics.len() + names.len()).max(1);
            let share = QUEUE_TOTAL_MAX / total;
            for name in names {
                if topics
                    .iter()
                    .any(|topic| topic.name == name && !topic.is_over())
                {
                    continue;
                }
                let options = match self.options.of(&name) {
                    Some(own) => Arc::new(own),
                    None => self.options.clone(),
                };
                let queue_size = options.queue_size.min(share).max(1) as u32;
                let topic = Arc::new(Topic::new(
                    self.shared.clone(),
                    options,
                    self.inbox.clone(),
                    self.paused.clone(),
                    name,
                    topics.len(),
                    queue_size,
                ));
                let (opened, opens) = oneshot::channel();
                self.shared
                    .tasks
                    .spawn_cancellable("consumer", link::drive(topic.clone(), opened));
                topics.push(topic);
                opening.push(opens);
            }
        }
        for opens in opening {
            opens.await.map_err(|_| Error::Closed)??;
        }
        Ok(())
    }

    pub(super) fn all(&self) -> Vec<Arc<Topic>> {
        self.topics.read().clone()
    }

    /// The topic of a message.
    pub(super) fn topic(&self, target: &Target<'_>) -> Result<Arc<Topic>> {
        let topics = self.topics.read();
        let found = match (target.topic, &topics[..]) {
            (_, [only]) => Some(only),
            (Some(name), topics) => topics
                .iter()
                .rev()
                .find(|topic| topic.name.as_str() == name),
            // The partition tells them apart, if all topics are partitions of one.
            (None, topics) => {
                let mut same = topics.iter().filter(|topic| {
                    topic.name.partition().map_or(-1, |number| number as i32) == target.id.partition
                });
                same.next().filter(|_| same.next().is_none())
            }
        };
        found
            .cloned()
            .ok_or_else(|| Error::UnknownTopic(target.topic.unwrap_or("?").to_owned()))
    }
}
