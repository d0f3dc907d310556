//! Who may do what: one pure function. Nothing that no rule allows is allowed.

use std::collections::{BTreeMap, BTreeSet};

use geminga_model::TopicName;
use serde::{Deserialize, Serialize};

/// What can be granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    Produce,
    Consume,
    Functions,
    Sources,
    Sinks,
    Packages,
}

impl Action {
    fn verb(self) -> &'static str {
        match self {
            Action::Produce => "Produce",
            Action::Consume => "Subscribe",
            Action::Functions => "operate functions",
            Action::Sources => "operate sources",
            Action::Sinks => "operate sinks",
            Action::Packages => "operate packages",
        }
    }
}

/// Roles, and what was granted to each.
pub type RoleActions = BTreeMap<String, BTreeSet<Action>>;

/// What a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need<'a> {
    /// No more than being known.
    Known,
    SuperUser,
    TenantAdmin {
        tenant: &'a str,
    },
    /// One of these, granted on the namespace.
    Namespace {
        namespace: &'a str,
        actions: &'a [Action],
    },
    /// One of these, granted on the topic or its namespace.
    Topic {
        topic: &'a TopicName,
        actions: &'a [Action],
    },
    /// To consume with this subscription.
    Subscription {
        topic: &'a TopicName,
        subscription: &'a str,
    },
}

/// Producing or consuming: what seeing a topic needs.
pub const SEE: &[Action] = &[Action::Produce, Action::Consume];

impl Need<'_> {
    pub(crate) fn verb(&self) -> &'static str {
        match self {
            Need::Known => "do that",
            Need::SuperUser => "do what needs a super user",
            Need::TenantAdmin { .. } => "administrate the tenant",
            Need::Namespace { actions, .. } | Need::Topic { actions, .. } => match actions {
                [action] => action.verb(),
                _ => "access the topic",
            },
            Need::Subscription { .. } => Action::Consume.verb(),
        }
    }

    pub(crate) fn tenant(&self) -> Option<&str> {
        match self {
            Need::Known | Need::SuperUser => None,
            Need::TenantAdmin { tenant } => Some(tenant),
            Need::Namespace { namespace, .. } => namespace.split('/').next(),
            Need::Topic { topic, .. } | Need::Subscription { topic, .. } => {
                topic.namespace_str().split('/').next()
            }
        }
    }
}

/// What holds everywhere.
#[derive(Debug, Clone, Copy)]
pub struct Roles<'a> {
    pub super_users: &'a [String],
    /// Whether `*` at an end of a granted role stands for anything.
    pub wildcards: bool,
}

/// What was granted on the thing in question.
#[derive(Debug, Clone, Default)]
pub struct Access {
    pub tenant_admins: Vec<String>,
    pub namespace: RoleActions,
    /// On the topic itself, and on the partitioned topic that it is part of.
    pub topic: Vec<RoleActions>,
    /// Who may use the subscription; none = whoever may consume.
    pub subscription_roles: Option<BTreeSet<String>>,
    /// Subscriptions must begin with the role's name.
    pub is_prefix_mode: bool,
}

/// Whether the role may do what needs this.
pub fn decide(roles: &Roles<'_>, role: &str, need: &Need<'_>, access: &Access) -> bool {
    if role.is_empty() {
        return false;
    }
    if roles.super_users.iter().any(|name| name == role) {
        return true;
    }
    if need.tenant().is_some() && access.tenant_admins.iter().any(|name| name == role) {
        return true;
    }
    let granted = |to: &RoleActions, actions: &[Action]| {
        let mut entries = to
            .iter()
            .filter(|(name, _)| fits(name, role, roles.wildcards));
        entries.any(|(_, granted)| actions.iter().any(|action| granted.contains(action)))
    };
    let on_topic = |actions: &[Action]| {
        granted(&access.namespace, actions)
            || access.topic.iter().any(|topic| granted(topic, actions))
    };
    match need {
        Need::Known => true,
        Need::SuperUser | Need::TenantAdmin { .. } => false,
        Need::Namespace { actions, .. } => granted(&access.namespace, actions),
        Need::Topic { actions, .. } => on_topic(actions),
        Need::Subscription { subscription, .. } => {
            let of_subscription = match &access.subscription_roles {
                Some(names) => names.iter().any(|name| fits(name, role, roles.wildcards)),
                None => true,
            };
            let prefixed = !access.is_prefix_mode || subscription.starts_with(role);
            of_subscription && prefixed && on_topic(&[Action::Consume])
        }
    }
}

/// Whether a granted name means this role.
fn fits(name: &str, role: &str, wildcards: bool) -> bool {
    if name == role {
        return true;
    }
    if !wildcards {
        return false;
    }
    if let Some(start) = name.strip_suffix('*') {
        return role.starts_with(start);
    }
    name.strip_prefix('*')
        .is_some_and(|end| role.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants(all: &[(&str, &[Action])]) -> RoleActions {
        let grant = |(role, actions): &(&str, &[Action])| {
            ((*role).to_owned(), actions.iter().copied().collect())
        };
        all.iter().map(grant).collect()
    }

    /// Each line: a role, and what it may of the needs below.
    #[test]
    fn who_may_do_what() {
        let topic: TopicName = "persistent://t/n/x".parse().unwrap();
        let access = Access {
            tenant_admins: vec!["admin".to_owned()],
            namespace: grants(&[
                ("maker", &[Action::Produce]),
                ("reader", &[Action::Consume]),
                ("member", &[Action::Consume]),
                ("worker", &[Action::Functions]),
                ("team-*", &[Action::Produce]),
            ]),
            topic: vec![
                grants(&[("guest", &[Action::Produce])]),
                grants(&[("part", SEE)]),
            ],
            subscription_roles: Some(["reader".to_owned(), "guest".to_owned()].into()),
            is_prefix_mode: false,
        };
        let supers = ["root".to_owned()];
        let needs = [
            Need::Known,
            Need::SuperUser,
            Need::TenantAdmin { tenant: "t" },
            Need::Namespace {
                namespace: "t/n",
                actions: SEE,
            },
            Need::Topic {
                topic: &topic,
                actions: &[Action::Produce],
            },
            Need::Topic {
                topic: &topic,
                actions: SEE,
            },
            Need::Subscription {
                topic: &topic,
                subscription: "s",
            },
            Need::Namespace {
                namespace: "t/n",
                actions: &[Action::Functions],
            },
        ];
        for (role, wildcards, expected) in [
            ("root", false, "11111111"),
            ("admin", false, "10111111"),
            ("maker", false, "10011100"),
            ("reader", false, "10010110"),
            // May consume, but not with this subscription.
            ("member", false, "10010100"),
            ("guest", false, "10001100"),
            ("part", false, "10001100"),
            ("worker", false, "10000001"),
            ("stranger", false, "10000000"),
            ("team-a", false, "10000000"),
            ("team-a", true, "10011100"),
            ("team-*", false, "10011100"),
            ("", true, "00000000"),
        ] {
            let roles = Roles {
                super_users: &supers,
                wildcards,
            };
            let got: String = needs
                .iter()
                .map(|need| {
                    if decide(&roles, role, need, &access) {
                        '1'
                    } else {
                        '0'
                    }
                })
                .collect();
            assert_eq!(got, expected, "`{role}`, wildcards {wildcards}");
        }
    }

    #[test]
    fn subscriptions_by_prefix() {
        let topic: TopicName = "persistent://t/n/x".parse().unwrap();
        let access = Access {
            namespace: grants(&[("r", SEE)]),
            is_prefix_mode: true,
            ..Access::default()
        };
        let roles = Roles {
            super_users: &[],
            wildcards: false,
        };
        for (subscription, allowed) in [("r-1", true), ("r", true), ("s", false), ("xr", false)] {
            let need = Need::Subscription {
                topic: &topic,
                subscription,
            };
            assert_eq!(
                decide(&roles, "r", &need, &access),
                allowed,
                "{subscription}"
            );
        }
    }
}
