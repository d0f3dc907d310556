//! Lists of topics as clients that subscribe by pattern see them: filtered, hashed, watched.
//!
//! What must hold: a watcher hears its list first, then each change that lasted, in order; what one
//! connection makes us keep is bounded by its limits or, for its one watcher, by the topics that
//! there are. News for a client that has much to read waits, merged, and goes when there is room;
//! only a client that takes nothing at all for a keep-alive interval is closed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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
#[derive(Clone)]
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
pub(crate) struct Watchers {
    all: Mutex<Vec<Watcher>>,
    /// Some have news.
    news: Notify,
    next_key: AtomicU64,
    /// How long a client may take nothing while there is news for it.
    patience: Duration,
    /// Names of all watchers of one connection.
    names_per_peer_max: usize,
}

struct Watcher {
    peer: Arc<Peer>,
    /// The client's number for it.
    id: u64,
    /// Ours: a client may give a number again.
    key: u64,
    namespace: NamespaceName,
    pattern: Pattern,
    stage: Stage,
    /// Names that it will have when it is listed.
    names_coming: usize,
    topics: BTreeSet<String>,
    /// What it was not told yet: a topic, and whether there is one now.
    news: BTreeMap<String, bool>,
    /// Its news waits for room since then, when so many bytes had been written to it.
    held: Option<(Instant, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Its list is not begun: what changes will be in it.
    Waiting,
    /// Its list is being made: what changes is kept.
    Listing,
    /// Its request is answered.
    Listed,
}

/// What became of the news for one watcher.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    /// There is none left.
    All,
    /// It waits until there is room for it.
    Later,
    /// The client reads nothing.
    Closed,
}

impl Watchers {
    pub(crate) fn new(patience: Duration) -> Watchers {
        Watchers {
            all: Mutex::default(),
            news: Notify::new(),
            next_key: AtomicU64::new(0),
            patience,
            names_per_peer_max: NAMES_PER_PEER_MAX,
        }
    }

    /// Registers a watcher, and returns its key. `listing` must follow, then `listed` or `unlisted`.
    pub(crate) fn begin(
        &self,
        peer: &Arc<Peer>,
        request: &CommandWatchTopicList,
        namespace: NamespaceName,
        pattern: Pattern,
    ) -> Result<u64, BrokerError> {
        let mut all = self.all.lock();
        if peer.is_gone() {
            // Nobody would ever take it off.
            return Err(BrokerError::NotReady("the connection is gone".to_owned()));
        }
        all.retain(|watcher| !watcher.is(peer, request.watcher_id));
        let own = all
            .iter()
            .filter(|watcher| Arc::ptr_eq(&watcher.peer, peer));
        if own.count() >= WATCHERS_PER_PEER_MAX {
            return Err(too_many());
        }
        let key = self.next_key.fetch_add(1, Ordering::Relaxed);
        all.push(Watcher {
            peer: peer.clone(),
            id: request.watcher_id,
            key,
            namespace,
            pattern,
            stage: Stage::Waiting,
            names_coming: 0,
            topics: BTreeSet::new(),
            news: BTreeMap::new(),
            held: None,
        });
        Ok(key)
    }

    /// What changes from now on is kept for the watcher. False when it is closed.
    pub(crate) fn listing(&self, key: u64) -> bool {
        let mut all = self.all.lock();
        let found = all.iter_mut().find(|watcher| watcher.key == key);
        found.is_some_and(|watcher| {
            watcher.stage = Stage::Listing;
            true
        })
    }

    /// Answers the request of a watcher. `topics` are those that match, of those that there were at
    /// some time since `listing`. Others wait for the lock, so the work is done outside.
    pub(crate) fn listed(
        &self,
        key: u64,
        request: &CommandWatchTopicList,
        topics: Vec<String>,
    ) -> Result<(), BrokerError> {
        let Some(peer) = self.reserve(key, topics.len())? else {
            // Closed meanwhile.
            return Ok(());
        };
        let topics = BTreeSet::from_iter(topics);
        let hash = topics_hash(topics.iter().map(String::as_str));
        let same = request.topics_hash.as_deref() == Some(hash.as_str());
        peer.outbox.send(CommandWatchTopicListSuccess {
            request_id: request.request_id,
            watcher_id: request.watcher_id,
            topic: match same {
                true => Vec::new(),
                false => topics.iter().cloned().collect(),
            },
            topics_hash: hash,
        });
        let mut all = self.all.lock();
        if let Some(watcher) = all.iter_mut().find(|watcher| watcher.key == key) {
            watcher.stage = Stage::Listed;
            watcher.names_coming = 0;
            watcher.topics = topics;
            for (topic, exists) in std::mem::take(&mut watcher.news) {
                watcher.note(&topic, exists);
            }
            if !watcher.news.is_empty() {
                self.news.notify_one();
            }
        }
        Ok(())
    }

    /// Takes off a watcher whose list cannot be made.
    pub(crate) fn unlisted(&self, key: u64) {
        self.all.lock().retain(|watcher| watcher.key != key);
    }

    /// Room for the names of a watcher, and whose it is; none when it is not there any more.
    fn reserve(&self, key: u64, names: usize) -> Result<Option<Arc<Peer>>, BrokerError> {
        let mut all = self.all.lock();
        let Some(at) = all.iter().position(|watcher| watcher.key == key) else {
            return Ok(None);
        };
        let peer = all[at].peer.clone();
        let others = all
            .iter()
            .filter(|watcher| Arc::ptr_eq(&watcher.peer, &peer))
            .map(|watcher| watcher.topics.len() + watcher.names_coming);
        let others: usize = others.sum();
        // However many topics there are, one watcher may have them all.
        if others > 0 && others + names > self.names_per_peer_max {
            all.swap_remove(at);
            return Err(too_many());
        }
        all[at].names_coming = names;
        Ok(Some(peer))
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

    /// Topics come after the lists too. Clients whose watchers then have more names than we keep for one
    /// connection are closed, but for those that have only one watcher: they come back, and a watcher
    /// too many is refused.
    fn close_greedy(&self, all: &mut Vec<Watcher>) {
        let mut kept: HashMap<*const Peer, (usize, usize)> = HashMap::new();
        for watcher in all.iter() {
            let (watchers, names) = kept.entry(Arc::as_ptr(&watcher.peer)).or_default();
            *watchers += 1;
            *names += watcher.topics.len().max(watcher.names_coming) + watcher.news.len();
        }
        kept.retain(|_, (watchers, names)| *watchers > 1 && *names > self.names_per_peer_max);
        all.retain(|watcher| {
            let Some((_, names)) = kept.get_mut(&Arc::as_ptr(&watcher.peer)) else {
                return true;
            };
            // Said once.
            if std::mem::take(names) > 0 {
                tracing::info!(peer = %watcher.peer.address, "closed: it watches too many topics");
                watcher.peer.outbox.abort();
            }
            false
        });
    }

    /// The task that tells them. Each message has a hash over all names, so what happens within a
    /// short time is told at once; with very many names that time is longer.
    pub(crate) async fn tell(&self) {
        loop {
            self.news.notified().await;
            let began = Instant::now();
            let mut any_later = false;
            {
                let mut all = self.all.lock();
                self.close_greedy(&mut all);
                all.retain_mut(|watcher| {
                    let told = watcher.tell(began, self.patience);
                    any_later |= told == Told::Later;
                    told != Told::Closed
                });
            }
            tokio::time::sleep(TELL_EVERY.max(began.elapsed() * 10)).await;
            if any_later {
                self.news.notify_one();
            }
        }
    }
}

fn too_many() -> BrokerError {
    BrokerError::NotAllowed("too many topic list watchers, or topics that they watch".to_owned())
}

impl Watcher {
    fn is(&self, peer: &Arc<Peer>, id: u64) -> bool {
        self.id == id && Arc::ptr_eq(&self.peer, peer)
    }

    fn note(&mut self, topic: &str, exists: bool) {
        match self.stage {
            Stage::Waiting => return,
            Stage::Listing => {
                // The last word on each.
                self.news.insert(topic.to_owned(), exists);
                return;
            }
            Stage::Listed => {}
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

    /// Tells what is new, when there is room.
    fn tell(&mut self, now: Instant, patience: Duration) -> Told {
        if self.news.is_empty() || self.stage != Stage::Listed {
            return Told::All;
        }
        if !self.peer.takes_replies() {
            let written = self.peer.outbox.written_bytes();
            let since = match self.held {
                Some((since, before)) if before == written => since,
                _ => now,
            };
            self.held = Some((since, written));
            if now.duration_since(since) < patience {
                return Told::Later;
            }
            tracing::info!(peer = %self.peer.address, "closed: it reads no news of topics");
            self.peer.outbox.abort();
            return Told::Closed;
        }
        self.held = None;
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
        Told::All
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use std::task::Waker;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn topic(number: usize) -> String {
        format!("persistent://public/default/t{number}")
    }

    fn request(watcher_id: u64) -> CommandWatchTopicList {
        CommandWatchTopicList {
            watcher_id,
            ..CommandWatchTopicList::default()
        }
    }

    /// A watcher of everything that was told of so many topics.
    fn watch(
        watchers: &Watchers,
        peer: &Arc<Peer>,
        id: u64,
        topics: usize,
    ) -> Result<u64, BrokerError> {
        let namespace = "public/default".parse().unwrap();
        let pattern = Pattern::new(".*").unwrap();
        let key = watchers.begin(peer, &request(id), namespace, pattern)?;
        assert!(watchers.listing(key));
        watchers.listed(key, &request(id), (0..topics).map(topic).collect())?;
        Ok(key)
    }

    fn tell(watchers: &Watchers, now: Instant) -> Told {
        watchers.all.lock()[0].tell(now, PATIENCE)
    }

    /// What the connection's task would do: bytes that it wrote, and whether it is to end.
    fn write(peer: &Peer, bytes_max: usize) -> (usize, bool) {
        let taken = peer.outbox.take(&mut VecDeque::new(), Waker::noop());
        let bytes = peer.outbox.queued_bytes().min(bytes_max);
        peer.outbox.written(bytes);
        (bytes, taken.aborted)
    }

    #[tokio::test(start_paused = true)]
    async fn news_waits_for_a_client_that_has_much_to_read() {
        let watchers = Watchers::new(PATIENCE);
        let peer = Peer::new(1, "client".to_owned(), false, 1_000, 0);
        watch(&watchers, &peer, 1, 100).unwrap();
        assert!(!peer.takes_replies());
        watchers.changed(&topic(100).parse().unwrap(), true);
        // It reads slowly, and for longer than the time in which it must read something.
        let mut now = Instant::now();
        while !peer.takes_replies() {
            assert_eq!(tell(&watchers, now), Told::Later);
            now += PATIENCE / 2;
            assert_eq!(write(&peer, 100), (100, false));
        }
        write(&peer, usize::MAX);
        assert_eq!(tell(&watchers, now), Told::All);
        assert!(write(&peer, usize::MAX).0 > 0, "the news");
        assert_eq!(tell(&watchers, now), Told::All);
        assert_eq!(write(&peer, usize::MAX), (0, false), "nothing twice");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_closed() {
        let watchers = Watchers::new(PATIENCE);
        let peer = Peer::new(1, "client".to_owned(), false, 1_000, 0);
        watch(&watchers, &peer, 1, 100).unwrap();
        watchers.changed(&topic(100).parse().unwrap(), true);
        let now = Instant::now();
        assert_eq!(tell(&watchers, now), Told::Later);
        assert_eq!(tell(&watchers, now + PATIENCE / 2), Told::Later);
        assert_eq!(tell(&watchers, now + PATIENCE), Told::Closed);
        assert!(write(&peer, 0).1);
    }

    #[test]
    fn the_lists_of_one_connection_are_bounded_together() {
        let watchers = Watchers {
            names_per_peer_max: 10,
            ..Watchers::new(PATIENCE)
        };
        let peer = |id| Peer::new(id, "client".to_owned(), false, 1 << 20, 0);
        let (one, other) = (peer(1), peer(2));
        watch(&watchers, &one, 1, 12).unwrap();
        watch(&watchers, &other, 1, 4).unwrap();
        watch(&watchers, &other, 2, 4).unwrap();
        for (peer, topics) in [(&one, 1), (&other, 3)] {
            let refused = watch(&watchers, peer, 3, topics).unwrap_err();
            assert!(matches!(refused, BrokerError::NotAllowed(_)), "{refused}");
        }
        assert_eq!(watchers.all.lock().len(), 3, "none is left of the refused");
        watch(&watchers, &other, 3, 2).unwrap();
        // The same number again takes the place of the first.
        watch(&watchers, &other, 2, 4).unwrap();
    }

    #[test]
    fn what_comes_after_the_lists_is_bounded_too() {
        let watchers = Watchers {
            names_per_peer_max: 10,
            ..Watchers::new(PATIENCE)
        };
        let peer = |id| Peer::new(id, "client".to_owned(), false, 1 << 20, 0);
        let (one, greedy) = (peer(1), peer(2));
        watch(&watchers, &one, 1, 4).unwrap();
        watch(&watchers, &greedy, 1, 4).unwrap();
        watch(&watchers, &greedy, 2, 4).unwrap();
        let close = || watchers.close_greedy(&mut watchers.all.lock());
        close();
        assert_eq!(watchers.all.lock().len(), 3, "8 names are few enough");
        for number in 4..20 {
            watchers.changed(&topic(number).parse().unwrap(), true);
        }
        close();
        assert_eq!(watchers.all.lock().len(), 1);
        assert!(write(&greedy, 0).1);
        assert!(!write(&one, 0).1, "one watcher may have them all");
    }

    #[test]
    fn a_watcher_hears_its_list_and_then_what_changed_meanwhile() {
        let watchers = Watchers::new(PATIENCE);
        let peer = Peer::new(1, "client".to_owned(), false, 1 << 20, 0);
        let namespace: NamespaceName = "public/default".parse().unwrap();
        let pattern = Pattern::new(".*").unwrap();
        let key = watchers
            .begin(&peer, &request(1), namespace, pattern)
            .unwrap();
        let changed = |number, exists| watchers.changed(&topic(number).parse().unwrap(), exists);
        changed(0, true);
        assert!(watchers.listing(key));
        changed(1, true);
        changed(2, true);
        changed(3, false);
        changed(4, false);
        let listed = [0, 1, 3].map(topic).to_vec();
        watchers.listed(key, &request(1), listed).unwrap();
        let all = watchers.all.lock();
        let left: Vec<_> = all[0].topics.iter().cloned().collect();
        assert_eq!(left, [0, 1, 2].map(topic));
        let news: Vec<_> = all[0].news.clone().into_iter().collect();
        assert_eq!(news, [(topic(2), true), (topic(3), false)]);
    }

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
