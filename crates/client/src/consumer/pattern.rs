//! Consumers of a pattern: which topics match, and looking for new ones.

use std::sync::{Arc, Weak};

use geminga_model::name::TopicName;
use geminga_proto::pb::command_get_topics_of_namespace::Mode;
use regex::Regex;

use super::group::Group;
use crate::client::Shared;
use crate::error::{Error, Result};

/// Topics of one namespace by a regular expression on the full name of the topic, partitions
/// counted to their topic.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    namespace: String,
    text: String,
    regex: Regex,
    mode: Mode,
}

impl Pattern {
    /// Reads `[persistent://|non-persistent://][tenant/namespace/]regex`.
    pub(super) fn parse(text: &str) -> Result<Self> {
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

    fn matches(&self, topic: &TopicName) -> bool {
        self.regex.is_match(topic.parent().as_str())
    }

    /// The topics that match now, partitions one by one.
    pub(super) async fn find(&self, shared: &Shared) -> Result<Vec<TopicName>> {
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

/// Subscribes to new topics as they appear, as long as the consumer is there.
pub(super) fn keep_looking(pattern: Pattern, group: &Arc<Group>) {
    let interval = group.options.discovery_interval;
    let weak: Weak<Group> = Arc::downgrade(group);
    let shared = Arc::downgrade(&group.shared);
    group
        .shared
        .tasks
        .spawn_cancellable("topic discovery", async move {
            loop {
                tokio::time::sleep(interval).await;
                let (Some(group), Some(shared)) = (weak.upgrade(), shared.upgrade()) else {
                    return;
                };
                let result = match pattern.find(&shared).await {
                    Ok(topics) => group.subscribe(topics).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = result {
                    tracing::warn!(pattern = pattern.text, %error, "cannot look for new topics");
                }
            }
        });
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
    fn what_is_no_pattern_is_refused() {
        for text in ["http://a/b/c", "a/b", "public/default/(", "x("] {
            assert!(Pattern::parse(text).is_err(), "{text}");
        }
    }
}
