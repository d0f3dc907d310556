//! Which topics a component may reach: it reads and writes them as the server, so whoever registers it
//! could reach with it what is not his. Asked when it is registered or changed, and by the worker when
//! it starts and publishes to topics that its configuration does not name.
//!
//! Topics of its own namespace go with the right to manage functions there, as in Pulsar; those of
//! other namespaces need a right of their own, which Pulsar does not ask for.

use std::sync::Arc;

use geminga_broker::Broker;
use geminga_broker::auth::{Action, Need, Session};
use geminga_functions::{Component, ComponentId, Registrant, Rights};
use geminga_model::TopicName;

use crate::error::{Answer, ApiError};
use crate::rest::functions::state::Functions;

const READ: &[Action] = &[Action::Consume];
const WRITE: &[Action] = &[Action::Produce];

/// The topics and patterns that the component reads and writes. What its configuration does not say
/// right is left to the worker, which refuses it.
fn named(component: &Component) -> Vec<(String, &'static [Action])> {
    let (inputs, outputs) = match component {
        Component::Function(config) => (
            config.all_inputs().unwrap_or_default(),
            vec![
                config.output.clone(),
                config.log_topic.clone(),
                config.dead_letter_topic.clone(),
                config
                    .window_config
                    .as_ref()
                    .and_then(|window| window.late_data_topic.clone()),
            ],
        ),
        Component::Source(config) => (
            Default::default(),
            vec![config.topic_name.clone(), config.log_topic.clone()],
        ),
        Component::Sink(config) => (
            config.all_inputs(),
            vec![config.dead_letter_topic.clone(), config.log_topic.clone()],
        ),
    };
    let read = inputs.into_keys().map(|topic| (topic, READ));
    let written = outputs.into_iter().flatten().map(|topic| (topic, WRITE));
    read.chain(written)
        .filter(|(topic, _)| !topic.is_empty())
        .collect()
}

/// Asks the broker of this process, for the worker.
struct OfBroker(Broker);

/// The rights that the worker beside a broker asks for.
pub fn function_rights(broker: &Broker) -> Arc<dyn Rights> {
    Arc::new(OfBroker(broker.clone()))
}

impl Rights for OfBroker {
    fn are_asked(&self) -> bool {
        self.0.asks_who()
    }

    fn may_have(
        &self,
        by: &Registrant,
        id: &ComponentId,
        component: &Component,
    ) -> Result<(), String> {
        let may = check(&self.0, &session_of(by), id, component);
        may.map_err(|error| error.reason)
    }

    fn may_publish(&self, by: &Registrant, topic: &str) -> Result<(), String> {
        let refused = || format!("not authorized to produce to `{topic}`");
        let name: TopicName = topic.parse().map_err(|_| refused())?;
        let need = Need::Topic {
            topic: &name,
            actions: WRITE,
        };
        let may = self.0.authorize(&session_of(by), &need);
        may.map_err(|_| refused())
    }
}

fn session_of(by: &Registrant) -> Session {
    Session {
        role: Some(by.role.clone()),
        original: by.original.clone(),
        ..Session::default()
    }
}

/// On whose behalf a component is registered; nobody's where nobody is asked.
pub(super) fn registrant(session: &Session) -> Option<Registrant> {
    let original = session.original.clone();
    session
        .role
        .clone()
        .map(|role| Registrant { role, original })
}

/// Refuses a component that names topics which `session` has no right to.
pub(super) fn check(
    broker: &Broker,
    session: &Session,
    id: &ComponentId,
    component: &Component,
) -> Answer<()> {
    let own = format!("{}/{}", id.tenant, id.namespace);
    for (text, actions) in named(component) {
        // A pattern begins as a name does; its slashes need no scheme.
        let topic = text.parse::<TopicName>();
        let topic = topic.or_else(|_| format!("persistent://{text}").parse::<TopicName>());
        let need = match &topic {
            Ok(topic) if topic.namespace_str() == own => continue,
            Ok(topic) if is_pattern(component, &text) => Need::Namespace {
                namespace: topic.namespace_str(),
                actions,
            },
            Ok(topic) => Need::Topic { topic, actions },
            Err(_) => Need::SuperUser,
        };
        broker.authorize(session, &need).map_err(|_| {
            let what = if actions == READ {
                "consume"
            } else {
                "produce to"
            };
            ApiError::unauthorized(format!("not authorized to {what} `{text}`"))
        })?;
    }
    Ok(())
}

/// The input that a message for a function goes to, where whoever sends it may: into a topic of another namespace
/// with the right to produce there, since others read that topic too.
pub(super) fn asked(
    functions: &Functions,
    session: &Session,
    id: &ComponentId,
    named: Option<&str>,
) -> Answer<String> {
    let input = functions.worker()?.input_topic(id, named)?;
    let Some(broker) = &functions.broker else {
        return Ok(input);
    };
    let refused = || ApiError::unauthorized(format!("not authorized to produce to `{input}`"));
    let topic: TopicName = input.parse().map_err(|_| refused())?;
    if topic.namespace_str() != format!("{}/{}", id.tenant, id.namespace) {
        let need = Need::Topic {
            topic: &topic,
            actions: WRITE,
        };
        broker.authorize(session, &need).map_err(|_| refused())?;
    }
    Ok(input)
}

/// Whether an input is a pattern: whatever its namespace will hold may match.
fn is_pattern(component: &Component, text: &str) -> bool {
    let inputs = match component {
        Component::Function(config) => config.all_inputs().unwrap_or_default(),
        Component::Source(_) => return false,
        Component::Sink(config) => config.all_inputs(),
    };
    inputs
        .get(text)
        .is_some_and(|spec| spec.regex_pattern == Some(true))
}

#[cfg(test)]
mod tests {
    use geminga_broker::auth::Credentials;
    use serde_json::{Value, json};

    use super::*;
    use crate::rest::tests::guard::{house, token};

    fn function(fields: &Value) -> Component {
        let mut config = json!({"tenant": "t", "namespace": "n", "name": "f"});
        for (name, value) in fields.as_object().unwrap() {
            config[name] = value.clone();
        }
        Component::Function(serde_json::from_value(config).unwrap())
    }

    /// `coder` may manage functions in `t/n`, and nothing else.
    #[tokio::test]
    async fn topics_of_others_are_not_reached_by_a_function() {
        let server = house().await;
        let broker = &server.broker;
        let id = ComponentId::new(geminga_functions::Kind::Function, "t", "n", "f");
        let session = |role: &str| {
            let shown = token(role);
            let shown = Credentials::Token(&shown);
            server.broker.login(shown, None, None).unwrap()
        };
        let theirs = "persistent://public/default/x";
        for (fields, allowed) in [
            (json!({"inputs": ["t/n/a"], "output": "t/n/b"}), true),
            (json!({"topicsPattern": "persistent://t/n/.*"}), true),
            (json!({"inputs": [theirs]}), false),
            (json!({"inputs": ["x"]}), false),
            (json!({"inputSpecs": {theirs: {}}}), false),
            (json!({"topicsPattern": "public/default/.*"}), false),
            (json!({"topicsPattern": "public/default/a/.*"}), false),
            (json!({"inputs": ["t/n/a"], "output": theirs}), false),
            (json!({"inputs": ["t/n/a"], "logTopic": theirs}), false),
            (
                json!({"inputs": ["t/n/a"], "deadLetterTopic": theirs}),
                false,
            ),
            (
                json!({"inputs": ["t/n/a"], "windowConfig": {"lateDataTopic": theirs}}),
                false,
            ),
        ] {
            let component = function(&fields);
            let of_coder = check(broker, &session("coder"), &id, &component);
            assert_eq!(of_coder.is_ok(), allowed, "{fields}");
            assert!(check(broker, &session("root"), &id, &component).is_ok());
        }
        let sink = json!({"tenant": "t", "namespace": "n", "name": "s", "inputs": [theirs]});
        let sink = Component::Sink(serde_json::from_value(sink).unwrap());
        assert!(check(broker, &session("coder"), &id, &sink).is_err());
        let rights = function_rights(broker);
        let by = |role: &str| registrant(&session(role)).unwrap();
        assert!(rights.are_asked() && rights.may_publish(&by("root"), theirs).is_ok());
        for topic in [theirs, "persistent://t/n/x", "no topic://"] {
            assert!(rights.may_publish(&by("coder"), topic).is_err(), "{topic}");
        }
        assert!(
            rights
                .may_publish(&by("maker"), "persistent://t/n/x")
                .is_ok()
        );
        assert!(
            rights
                .may_publish(&by("boss"), "persistent://t/n/x")
                .is_ok()
        );
        assert!(rights.may_publish(&by("boss"), theirs).is_err());
        assert!(rights.may_have(&by("coder"), &id, &sink).is_err());
        assert_eq!(registrant(&Session::default()), None);
        let source = json!({"tenant": "t", "namespace": "n", "name": "s", "topicName": theirs});
        let source = Component::Source(serde_json::from_value(source).unwrap());
        assert!(check(broker, &session("coder"), &id, &source).is_err());
    }
}
