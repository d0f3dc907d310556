//! The difference of what is wanted and what is there, field by field.

use std::collections::{BTreeMap, BTreeSet};

use geminga_model::secret::{self, MASK, Secret};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// A component as both sides are compared: its kind, full name and configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    pub kind: &'static str,
    pub fqfn: String,
    pub config: Value,
}

/// What shall happen to a component.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    Create,
    Update(Vec<Change>),
    Delete,
    Unchanged,
}

/// A field that changes; `null` is absent. Of secrets it has what may be shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    pub field: String,
    pub from: Value,
    pub to: Value,
}

/// A component and what shall happen to it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    pub kind: &'static str,
    pub name: String,
    pub action: Action,
    /// Secrets of what is unchanged that the server does not show: it alone can tell whether they changed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_compared: Vec<String>,
    /// Why it was not done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_done: Option<String>,
}

/// Steps in the order of `wanted`; then what is there and not wanted, which is deleted.
pub fn diff(wanted: &[State], actual: &[State]) -> Vec<Step> {
    let there: BTreeMap<(&str, &str), &State> = actual
        .iter()
        .map(|state| ((state.kind, state.fqfn.as_str()), state))
        .collect();
    let mut steps: Vec<Step> = wanted
        .iter()
        .map(|state| {
            let mut not_compared = Vec::new();
            let action = match there.get(&(state.kind, state.fqfn.as_str())) {
                None => Action::Create,
                Some(before) => match changes(&before.config, &state.config) {
                    changes if changes.is_empty() => {
                        not_compared = hidden(&before.config, &state.config);
                        Action::Unchanged
                    }
                    changes => Action::Update(changes),
                },
            };
            Step {
                kind: state.kind,
                name: state.fqfn.clone(),
                action,
                not_compared,
                not_done: None,
            }
        })
        .collect();
    let is_wanted = |there: &State| {
        wanted
            .iter()
            .any(|state| state.kind == there.kind && state.fqfn == there.fqfn)
    };
    steps.extend(
        actual
            .iter()
            .filter(|state| !is_wanted(state))
            .map(|state| Step {
                kind: state.kind,
                name: state.fqfn.clone(),
                action: Action::Delete,
                not_compared: Vec::new(),
                not_done: None,
            }),
    );
    steps
}

/// The fields that differ. An absent field equals its default: a server may have filled it in.
fn changes(from: &Value, to: &Value) -> Vec<Change> {
    let (from, to) = (whole(from), whole(to));
    let mut fields: Vec<&String> = from.keys().chain(to.keys()).collect();
    fields.sort();
    fields.dedup();
    fields
        .into_iter()
        .filter_map(|field| {
            let (before, after) = (from.get(field), to.get(field));
            if field == "secrets" {
                return secrets_change(before, after);
            }
            (!same(before, after)).then(|| Change {
                field: field.clone(),
                from: before.cloned().unwrap_or_default(),
                to: after.cloned().unwrap_or_default(),
            })
        })
        .collect()
}

/// What is known of a secret on both sides.
enum Compared {
    Same,
    Differs,
    /// It is clear text, which the server does not show.
    Hidden,
}

fn compared(before: Option<&Value>, after: Option<&Value>) -> Compared {
    match (before, after) {
        // What is stored is to stay.
        (Some(_), Some(after)) if after == MASK => Compared::Same,
        (Some(before), Some(after)) if before == MASK => match Secret::parse(after) {
            Ok(Secret::Clear(_)) => Compared::Hidden,
            _ => Compared::Differs,
        },
        (before, after) if same(before, after) => Compared::Same,
        _ => Compared::Differs,
    }
}

/// Each secret of either side, compared.
fn each_secret<'a>(
    before: Option<&'a Value>,
    after: Option<&'a Value>,
) -> impl Iterator<Item = (&'a str, Compared)> {
    let of = |side: Option<&'a Value>| side.and_then(Value::as_object);
    let (before, after) = (of(before), of(after));
    let names = before.into_iter().chain(after).flat_map(Map::keys);
    let names: BTreeSet<&str> = names.map(String::as_str).collect();
    let get = |side: Option<&'a Map<String, Value>>, name: &str| side.and_then(|it| it.get(name));
    let compare = move |name| (name, compared(get(before, name), get(after, name)));
    names.into_iter().map(compare)
}

fn secrets_change(before: Option<&Value>, after: Option<&Value>) -> Option<Change> {
    let mut all = each_secret(before, after);
    all.any(|(_, it)| matches!(it, Compared::Differs))
        .then(|| Change {
            field: "secrets".to_owned(),
            from: shown(before),
            to: shown(after),
        })
}

/// Secrets as they may be shown.
fn shown(secrets: Option<&Value>) -> Value {
    let each = |(name, value): (&String, &Value)| (name.clone(), secret::masked(value));
    secrets
        .and_then(Value::as_object)
        .map(|secrets| Value::Object(secrets.iter().map(each).collect()))
        .unwrap_or_default()
}

/// The names of the secrets of which only the server can tell whether they changed.
fn hidden(from: &Value, to: &Value) -> Vec<String> {
    each_secret(from.get("secrets"), to.get("secrets"))
        .filter(|(_, it)| matches!(it, Compared::Hidden))
        .map(|(name, _)| name.to_owned())
        .collect()
}

/// 1 and 1.0 are one number, whoever wrote them.
fn same(a: Option<&Value>, b: Option<&Value>) -> bool {
    match (a, b) {
        (Some(Value::Number(a)), Some(Value::Number(b))) => a.as_f64() == b.as_f64(),
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            a.len() == b.len() && a.iter().all(|(key, value)| same(Some(value), b.get(key)))
        }
        _ => a == b,
    }
}

/// The fields with the defaults filled in and inputs in their general form.
fn whole(config: &Value) -> Map<String, Value> {
    let mut fields = config.as_object().cloned().unwrap_or_default();
    fields.retain(|_, value| !value.is_null());
    let mut inputs = match fields.remove("inputSpecs") {
        Some(Value::Object(specs)) => specs,
        _ => Map::new(),
    };
    if let Some(Value::Array(topics)) = fields.remove("inputs") {
        for topic in topics.iter().filter_map(Value::as_str) {
            inputs.entry(topic).or_insert_with(|| json!({}));
        }
    }
    if !inputs.is_empty() {
        let full = inputs.into_iter().map(|(topic, spec)| {
            let name = topic.parse::<geminga_model::TopicName>();
            let is_pattern = spec.get("regexPattern") == Some(&Value::Bool(true));
            (
                name.ok()
                    .filter(|_| !is_pattern)
                    .map_or(topic, |name| name.to_string()),
                spec,
            )
        });
        fields.insert("inputSpecs".into(), Value::Object(full.collect()));
    }
    for field in ["output", "topicName", "logTopic", "deadLetterTopic"] {
        if let Some(Value::String(topic)) = fields.get_mut(field)
            && let Ok(name) = topic.parse::<geminga_model::TopicName>()
        {
            *topic = name.to_string();
        }
    }
    let defaults = [
        ("tenant", json!("public")),
        ("namespace", json!("default")),
        ("parallelism", json!(1)),
        ("processingGuarantees", json!("ATLEAST_ONCE")),
        ("subscriptionPosition", json!("Latest")),
        ("sourceSubscriptionPosition", json!("Latest")),
        ("retainOrdering", json!(false)),
        ("retainKeyOrdering", json!(false)),
        ("forwardSourceMessageProperty", json!(true)),
        ("autoAck", json!(true)),
        ("skipToLatest", json!(false)),
        ("cleanupSubscription", json!(true)),
        ("batchBuilder", json!("DEFAULT")),
        ("maxPendingAsyncRequests", json!(1000)),
        ("exposePulsarAdminClientEnabled", json!(false)),
        ("userConfig", json!({})),
        ("secrets", json!({})),
        ("configs", json!({})),
        (
            "resources",
            json!({"cpu": 1.0, "ram": 1_073_741_824_i64, "disk": 10_737_418_240_i64}),
        ),
    ];
    for (field, value) in defaults {
        if fields
            .get(field)
            .is_some_and(|given| same(Some(given), Some(&value)))
        {
            fields.remove(field);
        }
    }
    for field in ["runtime", "fqfn"] {
        // Follow from other fields.
        fields.remove(field);
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(kind: &'static str, name: &str, config: Value) -> State {
        State {
            kind,
            fqfn: format!("public/default/{name}"),
            config,
        }
    }

    #[test]
    fn creates_updates_deletes_and_leaves_alone() {
        let wanted = [
            state("function", "new", json!({"name": "new"})),
            state(
                "function",
                "same",
                json!({"inputs": ["a"], "py": "f.py", "output": "b"}),
            ),
            state(
                "function",
                "more",
                json!({"inputs": ["a"], "parallelism": 3}),
            ),
        ];
        let actual = [
            state(
                "function",
                "same",
                json!({
                    "tenant": "public", "namespace": "default", "py": "f.py", "runtime": "PYTHON",
                    "inputSpecs": {"persistent://public/default/a": {}}, "parallelism": 1,
                    "output": "persistent://public/default/b", "resources":
                    {"cpu": 1, "ram": 1_073_741_824_i64, "disk": 10_737_418_240_i64},
                }),
            ),
            state(
                "function",
                "more",
                json!({"inputs": ["a"], "logTopic": "l"}),
            ),
            state("sink", "more", json!({})),
        ];
        let steps = diff(&wanted, &actual);
        let actions: Vec<_> = steps
            .iter()
            .map(|step| (step.kind, step.name.as_str(), step.action.clone()))
            .collect();
        let change = |field: &str, from, to| Change {
            field: field.into(),
            from,
            to,
        };
        assert_eq!(
            actions,
            [
                ("function", "public/default/new", Action::Create),
                ("function", "public/default/same", Action::Unchanged),
                (
                    "function",
                    "public/default/more",
                    Action::Update(vec![
                        change(
                            "logTopic",
                            json!("persistent://public/default/l"),
                            Value::Null
                        ),
                        change("parallelism", Value::Null, json!(3)),
                    ])
                ),
                ("sink", "public/default/more", Action::Delete),
            ]
        );
    }

    /// Each row: what the server shows of the secrets, what is wanted, and the change or what is not compared.
    #[test]
    fn secrets_are_compared_as_far_as_they_are_shown() {
        let change = |from: Value, to: Value| {
            let field = "secrets".to_owned();
            (Action::Update(vec![Change { field, from, to }]), vec![])
        };
        let unchanged = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            (Action::Unchanged, names)
        };
        for (there, wanted, want) in [
            (json!({}), json!(null), unchanged(&[])),
            (
                json!({"a": MASK}),
                json!({"a": "hunter2"}),
                unchanged(&["a"]),
            ),
            (json!({"a": MASK}), json!({"a": MASK}), unchanged(&[])),
            (
                json!({"a": {"env": "A"}}),
                json!({"a": {"env": "A"}}),
                unchanged(&[]),
            ),
            (
                json!({"a": {"env": "A"}}),
                json!({"a": MASK}),
                unchanged(&[]),
            ),
            // Another server shows them.
            (
                json!({"a": "hunter2"}),
                json!({"a": "hunter2"}),
                unchanged(&[]),
            ),
            (
                json!({"a": "hunter1"}),
                json!({"a": "hunter2"}),
                change(json!({"a": MASK}), json!({"a": MASK})),
            ),
            (
                json!({"a": MASK, "b": MASK}),
                json!({"a": "hunter2"}),
                change(json!({"a": MASK, "b": MASK}), json!({"a": MASK})),
            ),
            (
                json!(null),
                json!({"a": "hunter2", "b": {"file": "/b"}}),
                change(json!(null), json!({"a": MASK, "b": {"file": "/b"}})),
            ),
            (
                json!({"a": {"env": "A"}}),
                json!({"a": "hunter2"}),
                change(json!({"a": {"env": "A"}}), json!({"a": MASK})),
            ),
            (
                json!({"a": MASK}),
                json!({"a": {"env": "A"}}),
                change(json!({"a": MASK}), json!({"a": {"env": "A"}})),
            ),
        ] {
            let (actual, target) = (json!({"secrets": there}), json!({"secrets": wanted}));
            let steps = diff(
                &[state("function", "f", target)],
                &[state("function", "f", actual)],
            );
            let (action, not_compared) = (steps[0].action.clone(), steps[0].not_compared.clone());
            assert_eq!((action, not_compared), want, "{there} {wanted}");
            assert!(!json!(steps).to_string().contains("hunter"), "{steps:?}");
        }
    }
}
