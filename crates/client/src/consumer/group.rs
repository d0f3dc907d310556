//! The topics of one consumer, which share an inbox.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use geminga_model::name::TopicName;
use parking_lot::RwLock;
use tokio::sync::{oneshot, watch};

use super::handle::Target;
use super::inbox::Inbox;
use super::permits::Permits;
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
    /// Topics are added and never removed: an entry knows its topic by its number. One that was refused from the
    /// first has no entries, and gives its place to the next attempt.
    pub(super) topics: RwLock<Vec<Arc<Topic>>>,
    /// Nothing is added now. Changed under the lock of the topics.
    held: AtomicBool,
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
            held: AtomicBool::new(false),
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

    /// All topics there are: nothing is added until this is dropped.
    pub(super) fn hold(&self) -> (Vec<Arc<Topic>>, Held<'_>) {
        let topics = self.topics.write();
        self.held.store(true, Ordering::Relaxed);
        (topics.clone(), Held(self))
    }

    /// Adds topics and waits until all of them are subscribed.
    ///
    /// # Errors
    /// The first refusal.
    pub(super) async fn subscribe(&self, names: Vec<TopicName>) -> Result<()> {
        let results = self.join(names).await?;
        results.into_iter().try_for_each(|(_, result)| result)
    }

    /// Adds the topics that are not there, and tells how each fared.
    ///
    /// # Errors
    /// [`Error::Closed`] when nothing may be added: nobody would close them.
    pub(super) async fn join(&self, names: Vec<TopicName>) -> Result<Vec<(TopicName, Result<()>)>> {
        let mut opening = Vec::new();
        {
            let mut topics = self.topics.write();
            if *self.ended.borrow() || self.held.load(Ordering::Relaxed) {
                return Err(Error::Closed);
            }
            // Those that are over, by their name.
            let mut read = HashSet::new();
            let mut refused = HashMap::new();
            for (index, topic) in topics.iter().enumerate() {
                if !topic.is_over() {
                    read.insert(topic.name.clone());
                } else if topic.never_opened() {
                    refused.insert(topic.name.clone(), index);
                }
            }
            let names: Vec<_> = names
                .into_iter()
                .filter(|name| read.insert(name.clone()))
                .collect();
            let total = read.len().max(1);
            let share = QUEUE_TOTAL_MAX / total;
            let share_bytes = (self.options.queue_bytes / total) as u64;
            for name in names {
                let options = match self.options.of(&name) {
                    Some(own) => Arc::new(own),
                    None => self.options.clone(),
                };
                let queue_size = options.queue_size.min(share).max(1) as u32;
                // A message of a topic that is not persistent is lost when there is no permit for it.
                let bytes = name.is_persistent().then_some(share_bytes);
                let place = refused.remove(&name).unwrap_or(topics.len());
                let topic = Arc::new(Topic::new(
                    self.shared.clone(),
                    options,
                    self.inbox.clone(),
                    self.paused.clone(),
                    name.clone(),
                    place,
                    Permits::new(queue_size, bytes),
                ));
                let (opened, opens) = oneshot::channel();
                self.shared
                    .tasks
                    .spawn_cancellable("consumer", link::drive(topic.clone(), opened));
                match topics.get_mut(place) {
                    Some(old) => *old = topic,
                    None => topics.push(topic),
                }
                opening.push((name, opens));
            }
        }
        let mut results = Vec::with_capacity(opening.len());
        for (name, opens) in opening {
            let result = opens.await.unwrap_or(Err(Error::Closed));
            results.push((name, result));
        }
        Ok(results)
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

/// Nothing is added to a group as long as this lives.
pub(super) struct Held<'a>(&'a Group);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let _topics = self.0.topics.write();
        self.0.held.store(false, Ordering::Relaxed);
    }
}
