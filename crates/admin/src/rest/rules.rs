//! What each request of the admin API needs: a pure function of its method and path.
//!
//! What must hold: a path that no line names needs a super user, so that an endpoint without a rule
//! is closed and not open.

use axum::http::{Method, StatusCode};
use geminga_broker::auth::decision::SEE;
use geminga_broker::auth::{Action, Need};
use geminga_model::{NamespaceName, TopicDomain, TopicName};

/// What a request needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Nothing: probes.
    Open,
    /// As `authenticateMetricsEndpoint` says.
    Metrics,
    Known,
    SuperUser,
    Tenant(String),
    Namespace(String, &'static [Action]),
    Topic(TopicName, &'static [Action]),
    Subscription(TopicName, String),
}

/// What a request needs, and the status of the refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Guarded {
    pub(crate) rule: Rule,
    pub(crate) refused: StatusCode,
}

impl Rule {
    /// As the broker decides on it; none where nobody is asked.
    pub(crate) fn need(&self) -> Option<Need<'_>> {
        Some(match self {
            Rule::Open => return None,
            Rule::Metrics | Rule::Known => Need::Known,
            Rule::SuperUser => Need::SuperUser,
            Rule::Tenant(tenant) => Need::TenantAdmin { tenant },
            Rule::Namespace(namespace, actions) => Need::Namespace { namespace, actions },
            Rule::Topic(topic, actions) => Need::Topic { topic, actions },
            Rule::Subscription(topic, subscription) => Need::Subscription {
                topic,
                subscription,
            },
        })
    }
}

pub(super) const PRODUCE: &[Action] = &[Action::Produce];
pub(super) const CONSUME: &[Action] = &[Action::Consume];

/// The rule of a request.
pub(crate) fn rule(method: &Method, path: &str) -> Guarded {
    let decoded: Option<Vec<String>> = path
        .strip_prefix('/')
        .map(|path| path.trim_end_matches('/').split('/').map(decode).collect())
        .unwrap_or_default();
    let segments = decoded.unwrap_or_default();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let closed = || unauthorized(Rule::SuperUser);
    match segments.as_slice() {
        ["status.html"] => unauthorized(Rule::Open),
        ["metrics"] => unauthorized(Rule::Metrics),
        ["admin", "v2", rest @ ..] => v2(method, rest),
        ["admin", "v3", rest @ ..] => components(method, rest),
        [
            "lookup",
            "v2",
            "topic" | "destination",
            domain,
            t,
            n,
            name,
            ..,
        ] => on_topic(domain, t, n, name, |topic| Rule::Topic(topic, SEE)),
        // A call is a message for the function: who may produce there, or runs functions there.
        ["functions", t, n, _] => unauthorized(Rule::Namespace(
            format!("{t}/{n}"),
            &[Action::Functions, Action::Produce],
        )),
        ["topics", domain, t, n, name, ..] => {
            on_topic(domain, t, n, name, |topic| Rule::Topic(topic, PRODUCE))
        }
        ["ws", version, rest @ ..] => web_socket(version, rest),
        _ => closed(),
    }
}

/// A name with slashes may be written with them.
fn web_socket(version: &str, path: &[&str]) -> Guarded {
    let guarded = match (version, path) {
        ("v2", ["producer", domain, t, n, name @ ..]) => {
            on_topic(domain, t, n, &name.join("/"), |topic| {
                Rule::Topic(topic, PRODUCE)
            })
        }
        ("v2", ["reader", domain, t, n, name @ ..]) => {
            on_topic(domain, t, n, &name.join("/"), |topic| {
                Rule::Topic(topic, CONSUME)
            })
        }
        ("v2", ["consumer", domain, t, n, name @ .., subscription]) => {
            let subscription = (*subscription).to_owned();
            on_topic(domain, t, n, &name.join("/"), |topic| {
                Rule::Subscription(topic, subscription)
            })
        }
        // The endpoint asks for each of the topics in the parameters.
        ("v3", ["consumer", _]) => forbidden(Rule::Known),
        _ => forbidden(Rule::SuperUser),
    };
    forbidden(guarded.rule)
}

fn unauthorized(rule: Rule) -> Guarded {
    Guarded {
        rule,
        refused: StatusCode::UNAUTHORIZED,
    }
}

/// Pulsar's answer for operations on namespaces, and for policies.
fn forbidden(rule: Rule) -> Guarded {
    Guarded {
        rule,
        refused: StatusCode::FORBIDDEN,
    }
}

/// A rule of a topic. What is no topic's name is refused by the endpoint; nobody but a super user
/// gets as far.
fn on_topic(
    domain: &str,
    tenant: &str,
    namespace: &str,
    local: &str,
    rule: impl FnOnce(TopicName) -> Rule,
) -> Guarded {
    let domain = match domain {
        "persistent" => TopicDomain::Persistent,
        "non-persistent" => TopicDomain::NonPersistent,
        _ => return unauthorized(Rule::SuperUser),
    };
    let name = NamespaceName::new(tenant, namespace)
        .ok()
        .and_then(|namespace| TopicName::new(domain, &namespace, local).ok());
    unauthorized(name.map_or(Rule::SuperUser, rule))
}

fn v2(method: &Method, path: &[&str]) -> Guarded {
    let is_get = method == Method::GET;
    let tenant = |tenant: &str| Rule::Tenant(tenant.to_owned());
    let see = |t: &str, n: &str| Rule::Namespace(format!("{t}/{n}"), SEE);
    match path {
        ["clusters"] if is_get => unauthorized(Rule::Known),
        ["brokers", "ready"] if is_get => unauthorized(Rule::Known),
        ["tenants", t] if is_get => unauthorized(tenant(t)),
        ["namespaces", t] if is_get => unauthorized(tenant(t)),
        [
            "namespaces",
            "grantPermissionsOnTopics" | "revokePermissionsOnTopics",
        ] => unauthorized(Rule::SuperUser),
        // There the first is a cluster.
        ["namespaces", _, "antiAffinity", _] if is_get => unauthorized(Rule::SuperUser),
        // A group's limits are for super users to give and to take.
        ["namespaces", _, _, "resourcegroup", ..] if !is_get => forbidden(Rule::SuperUser),
        ["namespaces", t, n, "topics"] if is_get => forbidden(see(t, n)),
        // What an operator limits, a tenant does not lift.
        ["namespaces", _, _, "publishRate" | "delayedDelivery"] if !is_get => {
            unauthorized(Rule::SuperUser)
        }
        // A bundle goes by the same rule as the namespace.
        ["namespaces", _, _, "unload"] | ["namespaces", _, _, _, "unload" | "split"] => {
            unauthorized(Rule::SuperUser)
        }
        ["namespaces", t, _, ..] => forbidden(tenant(t)),
        ["persistent" | "non-persistent", t, n] if is_get => forbidden(see(t, n)),
        ["persistent" | "non-persistent", t, n, "partitioned"] if is_get => forbidden(see(t, n)),
        ["persistent" | "non-persistent", t, _] => unauthorized(tenant(t)),
        [
            domain @ ("persistent" | "non-persistent"),
            t,
            n,
            name,
            rest @ ..,
        ] => topic(method, (domain, t, n, name), rest),
        ["schemas", t, n, name, rest @ ..] => {
            let needed = match rest {
                // As Pulsar: whoever may produce may add versions, and not take them away.
                ["schema"] if method == Method::DELETE => return unauthorized(tenant(t)),
                ["compatibility"] if method == Method::POST => return unauthorized(tenant(t)),
                ["schema" | "schemas" | "metadata"] | ["schema", _] if is_get => SEE,
                ["version"] if method == Method::POST => SEE,
                ["schema"] if method == Method::POST => PRODUCE,
                _ => return unauthorized(Rule::SuperUser),
            };
            on_topic("persistent", t, n, name, |topic| Rule::Topic(topic, needed))
        }
        ["functions" | "sources" | "sinks", ..] => components(method, path),
        ["worker", "connectors"] if is_get => unauthorized(Rule::Known),
        _ => unauthorized(Rule::SuperUser),
    }
}

/// The address of a topic: domain, tenant, namespace, local name.
type Address<'a> = (&'a str, &'a str, &'a str, &'a str);

fn topic(method: &Method, (domain, t, n, name): Address<'_>, path: &[&str]) -> Guarded {
    let is_get = method == Method::GET;
    let topic = |actions| on_topic(domain, t, n, name, |topic| Rule::Topic(topic, actions));
    let tenant = Rule::Tenant(t.to_owned());
    match path {
        [
            "stats"
            | "internalStats"
            | "internal-info"
            | "partitioned-stats"
            | "partitioned-internalStats"
            | "partitions"
            | "properties",
        ] if is_get => topic(SEE),
        ["subscriptions" | "lastMessageId" | "examinemessage"] if is_get => topic(CONSUME),
        ["messageid", _] | ["ledger", _, "entry", _] if is_get => topic(CONSUME),
        ["backlogSize"] if method == Method::PUT => topic(CONSUME),
        ["all_subscription", ..] => topic(CONSUME),
        ["subscription", subscription, ..] => {
            let subscription = (*subscription).to_owned();
            on_topic(domain, t, n, name, |topic| {
                Rule::Subscription(topic, subscription)
            })
        }
        []
        | [
            "partitions"
            | "properties"
            | "terminate"
            | "compaction"
            | "offload"
            | "unload"
            | "truncate"
            | "trim"
            | "permissions"
            | "transaction"
            | "createMissedPartitions",
            ..,
        ] => unauthorized(tenant),
        // Policies.
        _ => forbidden(tenant),
    }
}

/// Functions, sources, sinks, packages.
fn components(method: &Method, path: &[&str]) -> Guarded {
    let on = |t: &str, n: &str, actions| unauthorized(Rule::Namespace(format!("{t}/{n}"), actions));
    match path {
        [
            "functions" | "sources" | "sinks" | "source" | "sink",
            "connectors" | "builtins" | "builtinsources" | "builtinsinks",
        ] if method == Method::GET => unauthorized(Rule::Known),
        [
            "sources" | "source",
            "builtinsources",
            _,
            "configdefinition",
        ]
        | ["sinks" | "sink", "builtinsinks", _, "configdefinition"]
            if method == Method::GET =>
        {
            unauthorized(Rule::Known)
        }
        ["functions", "upload" | "download"]
        | ["functions", "builtins", "reload"]
        | ["functions", "leader", _, _, _]
        | ["sources" | "source", "reloadBuiltInSources"]
        | ["sinks" | "sink", "reloadBuiltInSinks"] => unauthorized(Rule::SuperUser),
        ["functions" | "function", t, n, ..] => on(t, n, &[Action::Functions]),
        ["sources" | "source", t, n, ..] => on(t, n, &[Action::Sources]),
        ["sinks" | "sink", t, n, ..] => on(t, n, &[Action::Sinks]),
        ["packages", _, t, n, ..] => on(t, n, &[Action::Packages]),
        _ => unauthorized(Rule::SuperUser),
    }
}

/// A segment of a path, as the router decodes it too; none for what is no text.
pub(super) fn decode(segment: &str) -> Option<String> {
    let mut out = Vec::with_capacity(segment.len());
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                let digits = std::str::from_utf8(&digits).ok()?;
                out.push(u8::from_str_radix(digits, 16).ok()?);
            }
            other => out.push(other),
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_paths() {
        let topic: TopicName = "persistent://t/n/x".parse().unwrap();
        let slashed: TopicName = "persistent://t/n/a/b".parse().unwrap();
        let tenant = Rule::Tenant("t".to_owned());
        let see = Rule::Namespace("t/n".to_owned(), SEE);
        let at = |rest: &str| format!("/admin/v2/persistent/t/n/x{rest}");
        for (method, path, rule, refused) in [
            ("GET", "/metrics/".to_owned(), Rule::Metrics, 401),
            ("GET", "/admin/v2/clusters".to_owned(), Rule::Known, 401),
            (
                "PUT",
                "/admin/v2/clusters/c".to_owned(),
                Rule::SuperUser,
                401,
            ),
            ("GET", "/admin/v2/tenants".to_owned(), Rule::SuperUser, 401),
            (
                "PUT",
                "/admin/v2/tenants/t".to_owned(),
                Rule::SuperUser,
                401,
            ),
            (
                "GET",
                "/admin/v2/namespaces/t/n/topics".to_owned(),
                see.clone(),
                403,
            ),
            (
                "PUT",
                "/admin/v2/namespaces/t/n".to_owned(),
                tenant.clone(),
                403,
            ),
            (
                "POST",
                "/admin/v2/namespaces/t/n/permissions/r".to_owned(),
                tenant.clone(),
                403,
            ),
            ("GET", "/admin/v2/persistent/t/n".to_owned(), see, 403),
            ("PUT", at(""), tenant.clone(), 401),
            ("GET", at("/stats"), Rule::Topic(topic.clone(), SEE), 401),
            ("POST", at("/stats"), tenant.clone(), 403),
            (
                "GET",
                at("/subscriptions"),
                Rule::Topic(topic.clone(), CONSUME),
                401,
            ),
            (
                "POST",
                at("/subscription/s/skip_all"),
                Rule::Subscription(topic.clone(), "s".to_owned()),
                401,
            ),
            ("POST", at("/retention"), tenant.clone(), 403),
            ("GET", at("/retention"), tenant.clone(), 403),
            ("PUT", at("/unload"), tenant, 401),
            (
                "GET",
                "/admin/v2/persistent/t/n/a%2Fb/stats".to_owned(),
                Rule::Topic(slashed, SEE),
                401,
            ),
            (
                "GET",
                "/admin/v2/persistent/t/n/%zz/stats".to_owned(),
                Rule::SuperUser,
                401,
            ),
            (
                "POST",
                "/admin/v2/schemas/t/n/x/schema".to_owned(),
                Rule::Topic(topic.clone(), PRODUCE),
                401,
            ),
            (
                "DELETE",
                "/admin/v2/schemas/t/n/x/schema".to_owned(),
                Rule::Tenant("t".to_owned()),
                401,
            ),
            (
                "POST",
                "/admin/v2/namespaces/t/n/publishRate".to_owned(),
                Rule::SuperUser,
                401,
            ),
            (
                "PUT",
                "/admin/v2/namespaces/t/n/0x00000000_0xffffffff/unload".to_owned(),
                Rule::SuperUser,
                401,
            ),
            (
                "PUT",
                "/admin/v2/namespaces/t/n/0x00000000_0xffffffff/split".to_owned(),
                Rule::SuperUser,
                401,
            ),
            (
                "GET",
                "/lookup/v2/topic/persistent/t/n/x".to_owned(),
                Rule::Topic(topic, SEE),
                401,
            ),
            (
                "POST",
                "/admin/v3/functions/t/n/f".to_owned(),
                Rule::Namespace("t/n".to_owned(), &[Action::Functions]),
                401,
            ),
            (
                "POST",
                "/admin/v3/sinks/t/n/f".to_owned(),
                Rule::Namespace("t/n".to_owned(), &[Action::Sinks]),
                401,
            ),
            (
                "POST",
                "/functions/t/n/f".to_owned(),
                Rule::Namespace("t/n".to_owned(), &[Action::Functions, Action::Produce]),
                401,
            ),
            (
                "GET",
                "/admin/v3/source/t/n/s/0/status".to_owned(),
                Rule::Namespace("t/n".to_owned(), &[Action::Sources]),
                401,
            ),
            (
                "POST",
                "/admin/v3/packages/function/t/n/p/v1".to_owned(),
                Rule::Namespace("t/n".to_owned(), &[Action::Packages]),
                401,
            ),
            (
                "POST",
                "/admin/v3/functions/t/n/f/rollback".to_owned(),
                Rule::Namespace("t/n".to_owned(), &[Action::Functions]),
                401,
            ),
            (
                "POST",
                "/admin/v3/functions/upload".to_owned(),
                Rule::SuperUser,
                401,
            ),
            (
                "PUT",
                "/admin/v2/worker/rebalance".to_owned(),
                Rule::SuperUser,
                401,
            ),
            (
                "GET",
                "/admin/v3/sources/builtinsources/file/configdefinition".to_owned(),
                Rule::Known,
                401,
            ),
            ("GET", "/what/ever".to_owned(), Rule::SuperUser, 401),
            ("GET", "/".to_owned(), Rule::SuperUser, 401),
            (
                "GET",
                "//admin/v2/clusters".to_owned(),
                Rule::SuperUser,
                401,
            ),
        ] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let got = super::rule(&method, &path);
            assert_eq!(got.rule, rule, "{method} {path}");
            assert_eq!(got.refused.as_u16(), refused, "{method} {path}");
        }
    }
}
