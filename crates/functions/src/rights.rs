//! On whose behalf a component reads and writes: whoever registered it, or changed it last.
//!
//! The worker itself may reach every topic of its broker. What must hold, where the broker says who
//! may do what: a component reaches topics of its own namespace, and of others only those that its
//! registrant may reach, when it starts and whenever it writes.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::component::{Component, ComponentId};
use crate::plan::{Plan, full_name, topics_of};

/// For so long an answer counts: rights that are taken away end within it.
const KNOWN_FOR: Duration = Duration::from_secs(2);
/// Topics whose answer is remembered.
const KNOWN_MAX: usize = 1000;

/// Who registered a component.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registrant {
    pub role: String,
    /// Whom a proxy spoke for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original: Option<String>,
}

impl Registrant {
    fn name(&self) -> &str {
        self.original.as_deref().unwrap_or(&self.role)
    }
}

/// Says who may reach what. Called from tasks that must not wait.
pub trait Rights: Send + Sync {
    /// Whether anybody is asked at all.
    fn are_asked(&self) -> bool;

    /// Whether `by` may have a component that reads and writes what this one names.
    ///
    /// # Errors
    /// What it may not, in words.
    fn may_have(
        &self,
        by: &Registrant,
        id: &ComponentId,
        component: &Component,
    ) -> Result<(), String>;

    /// Whether `by` may publish to a topic.
    ///
    /// # Errors
    /// Why not, in words.
    fn may_publish(&self, by: &Registrant, topic: &str) -> Result<(), String>;
}

/// What one component may reach. Cheap to clone; clones share what they know.
#[derive(Clone)]
pub(crate) struct Limits(Arc<Limited>);

struct Limited {
    rights: Arc<dyn Rights>,
    id: ComponentId,
    component: Component,
    by: Option<Registrant>,
    /// Topics that its configuration names: looked at when it was registered and when it starts.
    named: BTreeSet<String>,
    known: Mutex<HashMap<String, Known>>,
}

/// An answer, and when it was given.
struct Known {
    at: Instant,
    answer: Result<(), String>,
}

impl Limits {
    pub(crate) fn of(
        rights: Option<&Arc<dyn Rights>>,
        id: &ComponentId,
        component: &Component,
        by: Option<&Registrant>,
        plan: &Plan,
    ) -> Option<Self> {
        let (_, output) = topics_of(plan);
        let named = [output, plan.policy.dead_letter_topic.clone()];
        Some(Self(Arc::new(Limited {
            rights: rights?.clone(),
            id: id.clone(),
            component: component.clone(),
            by: by.cloned(),
            named: named.into_iter().flatten().collect(),
            known: Mutex::default(),
        })))
    }

    /// Whether an instance may start.
    pub(crate) fn may_start(&self) -> Result<(), String> {
        let limited = &*self.0;
        match &limited.by {
            // What was registered before anybody was asked has what it names.
            None => Ok(()),
            Some(_) if !limited.rights.are_asked() => Ok(()),
            Some(by) => {
                let may = limited.rights.may_have(by, &limited.id, &limited.component);
                may.map_err(|why| format!("`{}`, who registered it, is {why}", by.name()))
            }
        }
    }

    /// Whether it may publish to a topic, which is a full name.
    pub(crate) fn may_publish(&self, topic: &str) -> Result<(), String> {
        let limited = &*self.0;
        if limited.named.contains(topic) || limited.is_own(topic) || !limited.rights.are_asked() {
            return Ok(());
        }
        let now = Instant::now();
        let mut known = limited.known.lock();
        if let Some(before) = known.get(topic)
            && now.duration_since(before.at) < KNOWN_FOR
        {
            return before.answer.clone();
        }
        let answer = match &limited.by {
            None => Err(format!(
                "not authorized to produce to `{topic}`: it is not known who registered the \
                 function; update it"
            )),
            Some(by) => limited
                .rights
                .may_publish(by, topic)
                .map_err(|why| format!("`{}`, who registered the function, is {why}", by.name())),
        };
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        let at = now;
        known.insert(
            topic.to_owned(),
            Known {
                at,
                answer: answer.clone(),
            },
        );
        answer
    }

    /// Where dead letters go that are for `topic` unless the configuration says another: there, or to a topic of
    /// that name in the component's own namespace, where it may always write. It reads namespaces that it may
    /// not write to, and a letter that is refused would hold up all behind it.
    pub(crate) fn letters(&self, topic: String) -> String {
        if self.may_publish(&topic).is_ok() {
            return topic;
        }
        let id = &self.0.id;
        let local = topic.rsplit('/').next().unwrap_or(&topic);
        format!("persistent://{}/{}/{local}", id.tenant, id.namespace)
    }
}

impl Limited {
    /// Whether a topic is of the component's own namespace.
    fn is_own(&self, topic: &str) -> bool {
        let full = full_name(topic);
        let Some((_, rest)) = full.split_once("://") else {
            return false;
        };
        let mut parts = rest.splitn(3, '/');
        (parts.next(), parts.next()) == (Some(&*self.id.tenant), Some(&*self.id.namespace))
            && parts.next().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component::Kind;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Only `good` may do anything, and only while it may.
    struct One(AtomicBool);

    impl Rights for One {
        fn are_asked(&self) -> bool {
            true
        }

        fn may_have(&self, by: &Registrant, _: &ComponentId, _: &Component) -> Result<(), String> {
            self.may_publish(by, "x")
        }

        fn may_publish(&self, by: &Registrant, topic: &str) -> Result<(), String> {
            match by.role == "good" && self.0.load(Ordering::Relaxed) {
                true => Ok(()),
                false => Err(format!("not authorized to produce to `{topic}`")),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_component_reaches_what_its_registrant_may() {
        let config: geminga_model::FunctionConfig = serde_json::from_value(serde_json::json!({
            "name": "f", "tenant": "t", "namespace": "n", "sh": "f.sh", "inputs": ["t/n/in"],
            "output": "other/space/named",
        }))
        .expect("a config");
        let component = Component::from(config);
        let plan = crate::plan::plan(&component, Some("f.sh".as_ref())).expect("a plan");
        let id = ComponentId::new(Kind::Function, "t", "n", "f");
        let one = Arc::new(One(AtomicBool::new(true)));
        let rights: Arc<dyn Rights> = one.clone();
        let limits = |by: Option<&str>| {
            let by = by.map(|role| Registrant {
                role: role.to_owned(),
                original: None,
            });
            Limits::of(Some(&rights), &id, &component, by.as_ref(), &plan).expect("asked")
        };
        let (good, bad, unknown) = (limits(Some("good")), limits(Some("bad")), limits(None));
        for (topic, of_good, of_others) in [
            ("persistent://t/n/x", true, true),
            ("non-persistent://t/n/x", true, true),
            ("persistent://other/space/named", true, true),
            ("persistent://other/space/x", true, false),
            ("persistent://t/n2/x", true, false),
            ("persistent://t/nn/x", true, false),
        ] {
            assert_eq!(good.may_publish(topic).is_ok(), of_good, "{topic}");
            assert_eq!(bad.may_publish(topic).is_ok(), of_others, "{topic}");
            assert_eq!(unknown.may_publish(topic).is_ok(), of_others, "{topic}");
        }
        assert!(good.may_start().is_ok() && unknown.may_start().is_ok());
        let letters = |limits: &Limits, topic: &str| limits.letters(topic.to_owned());
        for (topic, of_good, of_bad) in [
            (
                "persistent://t/n/in-f-DLQ",
                "persistent://t/n/in-f-DLQ",
                "persistent://t/n/in-f-DLQ",
            ),
            (
                "persistent://o/s/in-f-DLQ",
                "persistent://o/s/in-f-DLQ",
                "persistent://t/n/in-f-DLQ",
            ),
        ] {
            assert_eq!(letters(&good, topic), of_good);
            assert_eq!(letters(&bad, topic), of_bad);
        }
        let why = bad.may_start().expect_err("it may not");
        assert!(why.starts_with("`bad`, who registered it, is not"), "{why}");
        // A right that is taken away ends.
        one.0.store(false, Ordering::Relaxed);
        tokio::time::advance(KNOWN_FOR).await;
        assert!(good.may_publish("persistent://other/space/x").is_err());
        assert!(Limits::of(None, &id, &component, None, &plan).is_none());
    }
}
