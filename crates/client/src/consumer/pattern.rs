//! Consumers of a pattern: which topics match, and looking for new ones.
//!
//! A broker that can tells when there may be some; that is a reason to look, and the only one is the
//! interval where it can not.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use geminga_model::name::TopicName;
use geminga_proto::pb;
use geminga_proto::pb::command_get_topics_of_namespace::Mode;
use regex::Regex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::group::Group;
use super::settings::Selection;
use crate::client::Shared;
use crate::connection::Connection;
use crate::error::{Error, Result};

/// What is told within so long is looked for at once.
const GATHER: Duration = Duration::from_millis(50);
/// The longest pattern that a broker takes unless it is told otherwise, as in Pulsar.
const WATCHED_BYTES_MAX: usize = 50;
/// Who reads more topics than this by patterns is told of no new ones: a broker bounds the names that it keeps
/// for one connection, which all consumers of a client share.
const TOLD_TOPICS_MAX: usize = 10_000;

/// The longest wait before a topic that refuses is asked again, in intervals of looking.
const REFUSED_INTERVALS_MAX: u32 = 16;

/// Topics of one namespace by a regular expression on the full name of the topic, partitions
/// counted to their topic.
#[derive(Debug, Clone)]
pub struct Pattern {
    namespace: String,
    text: String,
    regex: Regex,
    mode: Mode,
}

impl Pattern {
    /// Reads `[persistent://|non-persistent://][tenant/namespace/]regex`.
    ///
    /// # Errors
    /// When it is not of that form, or the expression is none.
    pub fn parse(text: &str) -> Result<Self> {
        let error = |reason: String| Error::Pattern {
            pattern: text.to_owned(),
            reason,
        };
        let (domain, rest, mode) = match text.split_once("://") {
            Some(("persistent", rest)) => ("persistent", rest, Mode::Persistent),
            Some(("non-persistent", rest)) => ("non-persistent", rest, Mode::NonPersistent),
            Some((domain, _)) => return Err(error(format!("has an unknown domain `{domain}`"))),
            None => ("persistent", text, Mode::Persistent),
        };
        let mut parts = rest.splitn(3, '/');
        let (namespace, local) = match (parts.next(), parts.next(), parts.next()) {
            (Some(tenant), Some(namespace), Some(local)) => {
                (format!("{tenant}/{namespace}"), local)
            }
            (Some(local), None, None) => ("public/default".to_owned(), local),
            _ => {
                return Err(error(
                    "is neither `regex` nor `tenant/namespace/regex`".to_owned(),
                ));
            }
        };
        let full = format!("{domain}://{namespace}/{local}");
        let regex = Regex::new(&format!(
            "^(?:{}://{}/{local})$",
            domain,
            regex::escape(&namespace)
        ))
        .map_err(|source| error(source.to_string()))?;
        Ok(Self {
            namespace,
            text: full,
            regex,
            mode,
        })
    }

    /// Whether it means a topic, or the partition of one.
    #[must_use]
    pub fn matches(&self, topic: &TopicName) -> bool {
        self.regex.is_match(topic.parent().as_str())
    }

    /// The pattern to be told about: a broker matches names without their scheme, and takes short ones alone, so
    /// that of a long one it gets what all its topics begin with.
    fn watched(&self) -> String {
        let bare = self.text.split_once("://");
        let bare = bare.map_or(&*self.text, |(_, bare)| bare);
        if bare.len() <= WATCHED_BYTES_MAX {
            return bare.to_owned();
        }
        let local = bare.get(self.namespace.len() + 1..).unwrap_or_default();
        let is_plain = |c: &char| c.is_ascii_alphanumeric() || "-_=".contains(*c);
        let plain = local.chars().take_while(is_plain).count();
        let plain = match local[plain..].chars().next() {
            // Of alternatives each begins in its own way.
            _ if local.contains('|') => 0,
            // The character before it may be missing.
            Some('*' | '?' | '{') => plain.saturating_sub(1),
            _ => plain,
        };
        let room = (WATCHED_BYTES_MAX - ".*".len()).saturating_sub(self.namespace.len() + 1);
        format!("{}/{}.*", self.namespace, &local[..plain.min(room)])
    }

    /// The topics that match now, partitions one by one.
    async fn find(&self, shared: &Shared) -> Result<Vec<TopicName>> {
        let names = shared
            .topics_of_namespace(&self.namespace, self.mode, Some(&self.text))
            .await?;
        // The broker may have ignored the pattern. A name that is none is not ours to judge.
        let topics = names
            .iter()
            .filter_map(|name| name.parse::<TopicName>().ok());
        Ok(topics.filter(|topic| self.matches(topic)).collect())
    }
}

/// The topics that the patterns of a consumer mean.
#[derive(Debug)]
pub(crate) struct Wanted {
    patterns: Vec<Pattern>,
    except: HashSet<String>,
    except_ending: Option<String>,
}

impl Wanted {
    pub(crate) fn parse(selection: &Selection) -> Result<Self> {
        let patterns = selection.patterns.iter();
        let patterns: Result<_> = patterns.map(|text| Pattern::parse(text)).collect();
        Ok(Self {
            patterns: patterns?,
            except: selection.except.iter().cloned().collect(),
            except_ending: selection.except_ending.clone(),
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    fn has(&self, topic: &TopicName) -> bool {
        let parent = topic.parent();
        let name = parent.as_str();
        let ending = self.except_ending.as_deref();
        !self.except.contains(name) && !ending.is_some_and(|ending| name.ends_with(ending))
    }

    pub(super) fn matches(&self, topic: &TopicName) -> bool {
        self.has(topic) && self.patterns.iter().any(|pattern| pattern.matches(topic))
    }

    /// Those that there are now, partitions one by one.
    pub(crate) async fn find(&self, shared: &Shared) -> Result<Vec<TopicName>> {
        let mut found = Vec::new();
        for pattern in &self.patterns {
            found.extend(pattern.find(shared).await?);
        }
        found.retain(|topic| self.has(topic));
        Ok(found)
    }
}

/// Subscribes to new topics as they appear, as long as the consumer is open.
pub(super) fn keep_looking(wanted: Wanted, group: &Arc<Group>) {
    let interval = group.options.discovery_interval;
    let mut ended = group.ended.subscribe();
    let weak: Weak<Group> = Arc::downgrade(group);
    let shared = Arc::downgrade(&group.shared);
    let looking = async move {
        let news = Arc::new(Notify::new());
        let mut refusals = Refusals::new(interval);
        let mut watches: Vec<Option<Watch>> = wanted.patterns.iter().map(|_| None).collect();
        loop {
            let (Some(group), Some(shared)) = (weak.upgrade(), shared.upgrade()) else {
                return;
            };
            // First, so that nothing appears between a look and the first news.
            for (pattern, watch) in wanted.patterns.iter().zip(&mut watches) {
                if !watch
                    .as_ref()
                    .is_some_and(|watch| watch.connection.is_open())
                {
                    *watch = None;
                    if group.topics.read().len() <= TOLD_TOPICS_MAX {
                        *watch = Watch::begin(pattern, &shared, &news).await;
                    }
                }
            }
            let result = match wanted.find(&shared).await {
                Ok(topics) => group.join(refusals.without(topics)).await,
                Err(error) => Err(error),
            };
            match result {
                Ok(results) => refusals.take(results),
                Err(error) => {
                    let patterns: Vec<_> = wanted.patterns.iter().map(|it| &it.text).collect();
                    tracing::warn!(?patterns, %error, "cannot look for new topics");
                }
            }
            drop((group, shared));
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                () = news.notified() => tokio::time::sleep(GATHER).await,
            }
        }
    };
    group
        .shared
        .tasks
        .spawn_cancellable("topic discovery", async move {
            tokio::select! {
                () = looking => {}
                // Also when the consumer is dropped.
                _ = ended.wait_for(|ended| *ended) => {}
            }
        });
}

/// Topics that refuse the consumer, by a schema that does not fit for example: each is asked again after the
/// interval, and then ever later, whatever is told of other topics.
struct Refusals {
    interval: Duration,
    /// When to ask again, and how long was waited until then.
    of: HashMap<TopicName, (Instant, Duration)>,
}

impl Refusals {
    fn new(interval: Duration) -> Self {
        Self {
            interval,
            of: HashMap::new(),
        }
    }

    /// Those of `topics`, which are all that there are, whose time has come.
    fn without(&mut self, mut topics: Vec<TopicName>) -> Vec<TopicName> {
        if !self.of.is_empty() {
            let there: HashSet<_> = topics.iter().collect();
            self.of.retain(|topic, _| there.contains(topic));
            let now = Instant::now();
            topics.retain(|topic| self.of.get(topic).is_none_or(|(at, _)| *at <= now));
        }
        topics
    }

    /// What came of asking.
    fn take(&mut self, results: Vec<(TopicName, Result<()>)>) {
        for (topic, result) in results {
            let Err(error) = result else {
                self.of.remove(&topic);
                continue;
            };
            let longest = self.interval * REFUSED_INTERVALS_MAX;
            let waited = self.of.get(&topic).map(|(_, waited)| *waited * 2);
            let wait = waited.unwrap_or(self.interval).min(longest);
            tracing::warn!(%topic, %error, ?wait, "a topic of the pattern refuses; it is asked again");
            self.of.insert(topic, (Instant::now() + wait, wait));
        }
    }
}

/// A broker that tells of changes of a pattern's topics, until this is dropped.
struct Watch {
    connection: Arc<Connection>,
    id: u64,
}

impl Watch {
    /// None where the broker does not, or refuses: there is the interval.
    async fn begin(pattern: &Pattern, shared: &Shared, news: &Arc<Notify>) -> Option<Self> {
        if pattern.mode != Mode::Persistent {
            return None;
        }
        let connection = shared.any_connection().await.ok()?;
        if !connection.tells_of_topics() {
            return None;
        }
        let watch = Self {
            id: shared.next_id(),
            connection,
        };
        watch.connection.add_watch(watch.id, news.clone()).ok()?;
        let answer = watch.connection.request("watch topics", |request_id| {
            pb::CommandWatchTopicList {
                request_id,
                watcher_id: watch.id,
                namespace: pattern.namespace.clone(),
                topics_pattern: pattern.watched(),
                topics_hash: None,
            }
            .into()
        });
        match answer.await {
            Ok(_) => Some(watch),
            Err(error) => {
                tracing::debug!(pattern = pattern.text, %error, "not told of new topics");
                None
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.connection.remove_watch(self.id);
        // Its answer is taken and thrown away.
        let _ = self.connection.begin_request(|request_id| {
            pb::CommandWatchTopicListClose {
                request_id,
                watcher_id: self.id,
            }
            .into()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names_of_topics_and_their_partitions() {
        let pattern = Pattern::parse("persistent://public/default/in-.*").unwrap();
        assert_eq!(pattern.namespace, "public/default");
        for (topic, matches) in [
            ("persistent://public/default/in-1", true),
            ("persistent://public/default/in-1-partition-0", true),
            ("persistent://public/default/main-1", false),
            ("persistent://public/other/in-1", false),
        ] {
            assert_eq!(pattern.matches(&topic.parse().unwrap()), matches, "{topic}");
        }
        let short = Pattern::parse("t[0-9]").unwrap();
        assert!(short.matches(&"persistent://public/default/t1".parse().unwrap()));
        assert!(!short.matches(&"persistent://public/default/t12".parse().unwrap()));
    }

    #[test]
    fn what_a_pattern_does_not_mean_is_left_out() {
        let wanted = Wanted::parse(&Selection {
            patterns: vec!["in-.*".to_owned(), "x".to_owned()],
            except: vec!["persistent://public/default/in-out".to_owned()],
            except_ending: Some("-f-DLQ".to_owned()),
            ..Selection::default()
        });
        let wanted = wanted.unwrap();
        for (topic, has) in [
            ("in-1", true),
            ("in-1-partition-3", true),
            ("in-out", false),
            ("in-out-partition-0", false),
            ("in-1-f-DLQ", false),
            ("in-1-f-DLQ-partition-1", false),
            ("in-1-g-DLQ", true),
        ] {
            assert_eq!(wanted.has(&topic.parse().unwrap()), has, "{topic}");
        }
    }

    #[test]
    fn of_a_long_pattern_its_beginning_is_watched() {
        let long = "x".repeat(60);
        for (pattern, watched) in [
            ("in-.*".to_owned(), "public/default/in-.*".to_owned()),
            (
                format!("a-{long}"),
                format!("public/default/a-{}.*", "x".repeat(31)),
            ),
            (
                format!("persistent://t/n/ab-.*{long}"),
                "t/n/ab-.*".to_owned(),
            ),
            (format!("t/n/ab*{long}"), "t/n/a.*".to_owned()),
            (format!("t/n/ab+{long}"), "t/n/ab.*".to_owned()),
            (format!("t/n/ab|{long}"), "t/n/.*".to_owned()),
            (format!("t/n/(a|b){long}"), "t/n/.*".to_owned()),
        ] {
            let pattern = Pattern::parse(&pattern).unwrap();
            assert_eq!(pattern.watched(), watched);
            assert!(watched.len() <= WATCHED_BYTES_MAX);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_topic_that_refuses_is_asked_ever_later() {
        let minute = Duration::from_secs(60);
        let mut refusals = Refusals::new(minute);
        let topic: TopicName = "persistent://public/default/t".parse().unwrap();
        let other: TopicName = "persistent://public/default/other".parse().unwrap();
        let all = || vec![topic.clone(), other.clone()];
        let mut waits = Vec::new();
        for _ in 0..6 {
            assert_eq!(refusals.without(all()), all());
            refusals.take(vec![
                (topic.clone(), Err(Error::Closed)),
                (other.clone(), Ok(())),
            ]);
            let refused = Instant::now();
            while refusals.without(all()) == [other.clone()] {
                tokio::time::advance(minute).await;
            }
            waits.push(refused.elapsed().as_secs() / 60);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 16]);
        // One that was deleted and made anew is a new one.
        assert!(refusals.without(vec![other.clone()]).len() == 1);
        assert_eq!(refusals.without(all()), all());
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for text in ["http://a/b/c", "a/b", "public/default/(", "x("] {
            assert!(Pattern::parse(text).is_err(), "{text}");
        }
    }
}
