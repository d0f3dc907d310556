//! Lists of topics as clients that subscribe by pattern see them: filtered, hashed, watched.

use std::collections::BTreeSet;
use std::sync::Arc;

use geminga_model::{NamespaceName, TopicName};
use geminga_proto::checksum::crc32c;
use geminga_proto::pb::{CommandWatchTopicListSuccess, CommandWatchTopicUpdate};
use parking_lot::Mutex;
use regex::Regex;

use crate::error::BrokerError;
use crate::peer::Peer;

/// Watchers of one connection.
const WATCHERS_PER_PEER_MAX: usize = 1_000;
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
}

struct Watcher {
    peer: Arc<Peer>,
    id: u64,
    namespace: NamespaceName,
    pattern: Pattern,
    topics: BTreeSet<String>,
}

impl Watchers {
    /// Registers a watcher and answers its request. `topics` are those that exist now; `list` is
    /// called with the lock held, so that no change falls between.
    pub(crate) fn add(
        &self,
        peer: &Arc<Peer>,
        request: &geminga_proto::pb::CommandWatchTopicList,
        namespace: NamespaceName,
        pattern: Pattern,
        topics: Vec<String>,
    ) -> Result<(), BrokerError> {
        let mut all = self.all.lock();
        if all
            .iter()
            .filter(|watcher| Arc::ptr_eq(&watcher.peer, peer))
            .count()
            >= WATCHERS_PER_PEER_MAX
        {
            return Err(BrokerError::NotAllowed(
                "too many topic list watchers".to_owned(),
            ));
        }
        all.retain(|watcher| {
            !(watcher.id == request.watcher_id && Arc::ptr_eq(&watcher.peer, peer))
        });
        let topics: BTreeSet<String> = topics
            .into_iter()
            .filter(|topic| pattern.matches(topic))
            .collect();
        let hash = topics_hash(topics.iter().map(String::as_str));
        let same = request.topics_hash.as_deref() == Some(hash.as_str());
        peer.outbox.send(CommandWatchTopicListSuccess {
            request_id: request.request_id,
            watcher_id: request.watcher_id,
            topic: if same {
                Vec::new()
            } else {
                topics.iter().cloned().collect()
            },
            topics_hash: hash,
        });
        all.push(Watcher {
            peer: peer.clone(),
            id: request.watcher_id,
            namespace,
            pattern,
            topics,
        });
        Ok(())
    }

    pub(crate) fn remove(&self, peer: &Arc<Peer>, id: u64) {
        self.all
            .lock()
            .retain(|watcher| watcher.id != id || !Arc::ptr_eq(&watcher.peer, peer));
    }

    pub(crate) fn remove_peer(&self, peer: &Arc<Peer>) {
        self.all
            .lock()
            .retain(|watcher| !Arc::ptr_eq(&watcher.peer, peer));
    }

    /// A topic was made or deleted.
    pub(crate) fn changed(&self, topic: &TopicName, exists: bool) {
        if !topic.is_persistent() {
            return;
        }
        for watcher in self.all.lock().iter_mut() {
            if watcher.namespace.as_str() != topic.namespace_str()
                || !watcher.pattern.matches(topic.as_str())
            {
                continue;
            }
            let name = topic.as_str().to_owned();
            let news = match exists {
                true => watcher.topics.insert(name.clone()),
                false => watcher.topics.remove(&name),
            };
            if news {
                let (new_topics, deleted_topics) = match exists {
                    true => (vec![name], Vec::new()),
                    false => (Vec::new(), vec![name]),
                };
                watcher.peer.outbox.send(CommandWatchTopicUpdate {
                    watcher_id: watcher.id,
                    new_topics,
                    deleted_topics,
                    topics_hash: topics_hash(watcher.topics.iter().map(String::as_str)),
                });
            }
        }
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
