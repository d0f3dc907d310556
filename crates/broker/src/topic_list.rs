//! Lists of topics as clients that subscribe by pattern see them: filtered, hashed, watched.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use geminga_model::{NamespaceName, TopicName};
use geminga_proto::checksum::crc32c;
use geminga_proto::pb::{
    CommandWatchTopicList, CommandWatchTopicListSuccess, CommandWatchTopicUpdate,
};
use parking_lot::Mutex;
use regex::Regex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::error::BrokerError;
use crate::peer::Peer;

/// Watchers of one connection.
const WATCHERS_PER_PEER_MAX: usize = 1_000;
/// Names of all watchers of one connection.
const NAMES_PER_PEER_MAX: usize = 2_000_000;
/// The least time between two messages to one watcher.
const TELL_EVERY: Duration = Duration::from_millis(10);
/// Bytes that one compiled pattern may take.
const PATTERN_BYTES_MAX: usize = 256 << 10;

/// A topics pattern: matched against the whole name without its scheme and partition number.
pub(crate) struct Pattern(Regex);

impl Pattern {
    pub(crate) fn new(pattern: &str) -> Result<Pattern, BrokerError> {
        let bare = pattern.split_once("://").map_or(pattern, |(_, rest)| rest);
        regex::RegexBuilder::new(&format!("^(?:{bare})$"))
            .size_limit(PATTERN_BYTES_MAX)
            .build()
            .map(Pattern)
            .map_err(|_| BrokerError::InvalidTopicName(format!("bad topics pattern `{pattern}`")))
    }

    pub(crate) fn matches(&self, topic: &str) -> bool {
        let Ok(name) = topic.parse::<TopicName>() else {
            return false;
        };
        let parent = name.parent();
        let bare = parent.as_str();
        self.0
            .is_match(bare.split_once("://").map_or(bare, |(_, rest)| rest))
    }
}

/// CRC32C of the sorted names joined by commas, its bytes in little-endian order as hex.
pub(crate) fn topics_hash<'a>(topics: impl Iterator<Item = &'a str>) -> String {
    let mut sorted: Vec<&str> = topics.collect();
    sorted.sort_unstable();
    format!("{:08x}", crc32c(sorted.join(",").as_bytes()).swap_bytes())
}

/// Everyone who watches lists of topics.
#[derive(Default)]
pub(crate) struct Watchers {
    all: Mutex<Vec<Watcher>>,
    /// Some have news.
    news: Notify,
}

struct Watcher {
    peer: Arc<Peer>,
    id: u64,
    namespace: NamespaceName,
    pattern: Pattern,
    /// Its request is answered.
    is_listed: bool,
    topics: BTreeSet<String>,
    /// What it was not told yet: a topic, and whether there is one now.
    news: BTreeMap<String, bool>,
}

impl Watchers {
    /// Registers a watcher: what changes from now on is kept for it. `listed` must follow.
    pub(crate) fn begin(
        &self,
        peer: &Arc<Peer>,
        request: &CommandWatchTopicList,
        namespace: NamespaceName,
        pattern: Pattern,
    ) -> Result<(), BrokerError> {
        let mut all = self.all.lock();
        if peer.is_gone() {
            // Nobody would ever take it off.
            return Err(BrokerError::NotReady("the connection is gone".to_owned()));
        }
        all.retain(|watcher| !watcher.is(peer, request.watcher_id));
        let own = all
            .iter()
            .filter(|watcher| Arc::ptr_eq(&watcher.peer, peer));
        let (count, names) = own.fold((0, 0), |(count, names), watcher| {
            (count + 1, names + watcher.topics.len())
        });
        if count >= WATCHERS_PER_PEER_MAX || names > NAMES_PER_PEER_MAX {
            return Err(BrokerError::NotAllowed(
                "too many topic list watchers".to_owned(),
            ));
        }
        all.push(Watcher {
            peer: peer.clone(),
            id: request.watcher_id,
            namespace,
            pattern,
            is_listed: false,
            topics: BTreeSet::new(),
            news: BTreeMap::new(),
        });
        Ok(())
    }

    /// Answers the request of a watcher. `topics` are those that there were at some time since it was
    /// registered.
    pub(crate) fn listed(
        &self,
        peer: &Arc<Peer>,
        request: &CommandWatchTopicList,
        topics: Vec<String>,
    ) {
        let mut all = self.all.lock();
        let mut own = all.iter_mut();
        let found = own.find(|watcher| watcher.is(peer, request.watcher_id) && !watcher.is_listed);
        let Some(watcher) = found else {
            // Closed meanwhile.
            return;
        };
        watcher.is_listed = true;
        let matching = topics.into_iter().filter(|it| watcher.pattern.matches(it));
        watcher.topics = matching.collect();
        for (topic, exists) in std::mem::take(&mut watcher.news) {
            match exists {
                true => watcher.topics.insert(topic),
                false => watcher.topics.remove(&topic),
            };
        }
        let hash = topics_hash(watcher.topics.iter().map(String::as_str));
        let same = request.topics_hash.as_deref() == Some(hash.as_str());
        peer.outbox.send(CommandWatchTopicListSuccess {
            request_id: request.request_id,
            watcher_id: request.watcher_id,
            topic: match same {
                true => Vec::new(),
                false => watcher.topics.iter().cloned().collect(),
            },
            topics_hash: hash,
        });
    }

    pub(crate) fn remove(&self, peer: &Arc<Peer>, id: u64) {
        self.all.lock().retain(|watcher| !watcher.is(peer, id));
    }

    pub(crate) fn remove_peer(&self, peer: &Arc<Peer>) {
        self.all
            .lock()
            .retain(|watcher| !Arc::ptr_eq(&watcher.peer, peer));
    }

    /// Takes off those of a client that may not see their namespaces any more.
    pub(crate) fn keep(&self, peer: &Arc<Peer>, may_see: impl Fn(&str) -> bool) {
        self.all.lock().retain(|watcher| {
            !Arc::ptr_eq(&watcher.peer, peer) || may_see(watcher.namespace.as_str())
        });
    }

    /// A topic was made or deleted.
    pub(crate) fn changed(&self, topic: &TopicName, exists: bool) {
        if !topic.is_persistent() {
            return;
        }
        let mut any = false;
        for watcher in self.all.lock().iter_mut() {
            if watcher.namespace.as_str() == topic.namespace_str()
                && watcher.pattern.matches(topic.as_str())
            {
                watcher.note(topic.as_str(), exists);
                any = true;
            }
        }
        if any {
            self.news.notify_one();
        }
    }

    /// The task that tells them. Each message has a hash over all names, so what happens within a
    /// short time is told at once; with very many names that time is longer.
    pub(crate) async fn tell(&self) {
        loop {
            self.news.notified().await;
            let began = Instant::now();
            self.all.lock().retain_mut(Watcher::tell);
            tokio::time::sleep(TELL_EVERY.max(began.elapsed() * 10)).await;
        }
    }
}

impl Watcher {
    fn is(&self, peer: &Arc<Peer>, id: u64) -> bool {
        self.id == id && Arc::ptr_eq(&self.peer, peer)
    }

    fn note(&mut self, topic: &str, exists: bool) {
        if !self.is_listed {
            // The last word on each.
            self.news.insert(topic.to_owned(), exists);
            return;
        }
        let is_change = match exists {
            true => self.topics.insert(topic.to_owned()),
            false => self.topics.remove(topic),
        };
        // What came and went meanwhile was never there.
        if is_change && self.news.remove(topic).is_none() {
            self.news.insert(topic.to_owned(), exists);
        }
    }

    /// Tells what is new; false for a client that does not read what it is told.
    fn tell(&mut self) -> bool {
        if self.news.is_empty() || !self.is_listed {
            return true;
        }
        if !self.peer.takes_replies() {
            tracing::info!(peer = %self.peer.address, "closed: it reads no news of topics");
            self.peer.outbox.abort();
            return false;
        }
        let (new, deleted): (Vec<_>, Vec<_>) = std::mem::take(&mut self.news)
            .into_iter()
            .partition(|(_, exists)| *exists);
        let names = |pairs: Vec<(String, bool)>| pairs.into_iter().map(|(name, _)| name).collect();
        self.peer.outbox.send(CommandWatchTopicUpdate {
            watcher_id: self.id,
            new_topics: names(new),
            deleted_topics: names(deleted),
            topics_hash: topics_hash(self.topics.iter().map(String::as_str)),
        });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trap_17_hash_is_of_sorted_names_in_little_endian_hex() {
        let hash = topics_hash(["b", "a"].into_iter());
        assert_eq!(hash, topics_hash(["a", "b"].into_iter()));
        let bytes = crc32c(b"a,b").to_le_bytes();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hash, hex);
        assert_eq!(topics_hash(std::iter::empty()), "00000000");
    }

    #[test]
    fn trap_17_patterns_see_no_scheme_and_no_partition() {
        let cases = [
            (
                "public/default/a.*",
                "persistent://public/default/abc",
                true,
            ),
            (
                "persistent://public/default/a.*",
                "persistent://public/default/abc",
                true,
            ),
            (
                "public/default/abc",
                "persistent://public/default/abc-partition-7",
                true,
            ),
            ("public/default/b", "persistent://public/default/abc", false),
            ("default/abc", "persistent://public/default/abc", false),
        ];
        for (pattern, topic, matches) in cases {
            assert_eq!(
                Pattern::new(pattern).unwrap().matches(topic),
                matches,
                "{pattern} {topic}"
            );
        }
        assert!(Pattern::new("a(").is_err());
    }
}
