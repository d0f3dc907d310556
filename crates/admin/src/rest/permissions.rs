//! Who may do what: grants on namespaces, topics and subscriptions.

use std::collections::{BTreeMap, BTreeSet};

use axum::Router;
use axum::extract::{Request, State};
use axum::routing::{delete, get, post};
use geminga_broker::auth::Action;
use geminga_broker::auth::grants::AuthPolicies;
use geminga_model::TopicName;

use super::extract::{InPath, NamespaceInPath, Segments};
use super::{Admin, document, done};
use crate::error::{Answer, ApiError};
use crate::request;

pub(super) fn router() -> Router<Admin> {
    let one = "/admin/v2/namespaces/{tenant}/{namespace}";
    let mut router = Router::new()
        .route(
            "/admin/v2/namespaces/grantPermissionsOnTopics",
            post(grant_topics),
        )
        .route(
            "/admin/v2/namespaces/revokePermissionsOnTopics",
            post(revoke_topics),
        )
        .route(&format!("{one}/permissions"), get(of_namespace))
        .route(
            &format!("{one}/permissions/subscription"),
            get(of_subscriptions),
        )
        .route(
            &format!("{one}/permissions/{{role}}"),
            post(grant).delete(revoke),
        )
        .route(
            &format!("{one}/permissions/{{first}}/{{second}}"),
            post(grant_subscription).delete(revoke_subscription),
        )
        .route(
            &format!("{one}/subscriptionAuthMode"),
            get(mode).post(set_mode),
        );
    for domain in ["persistent", "non-persistent"] {
        let topic = format!("/admin/v2/{domain}/{{tenant}}/{{namespace}}/{{topic}}/permissions");
        router = router.route(&topic, get(of_topic)).route(
            &format!("{topic}/{{role}}"),
            post(grant_topic).merge(delete(revoke_topic)),
        );
    }
    router
}

#[derive(serde::Deserialize)]
struct Role {
    role: String,
}

/// `permissions/subscription/{subscription}`, or `permissions/{subscription}/{role}`.
#[derive(serde::Deserialize)]
struct Pair {
    first: String,
    second: String,
}

async fn actions(request: Request) -> Answer<BTreeSet<Action>> {
    request::json(request).await
}

async fn of_namespace(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
) -> Answer {
    let policies = admin.broker().auth_policies(&namespace).await?;
    document(&policies.namespace_auth)
}

async fn of_subscriptions(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
) -> Answer {
    let policies = admin.broker().auth_policies(&namespace).await?;
    document(&policies.subscription_auth_roles)
}

async fn grant(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
    Segments(Role { role }): Segments<Role>,
    request: Request,
) -> Answer {
    let actions = actions(request).await?;
    admin
        .broker()
        .update_auth_policies(&namespace, |policies| {
            policies.namespace_auth.insert(role, actions);
        })
        .await?;
    done()
}

async fn revoke(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
    Segments(Role { role }): Segments<Role>,
) -> Answer {
    admin
        .broker()
        .update_auth_policies(&namespace, |policies| {
            policies.namespace_auth.remove(&role);
        })
        .await?;
    done()
}

async fn grant_subscription(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
    Segments(Pair { first, second }): Segments<Pair>,
    request: Request,
) -> Answer {
    if first != "subscription" {
        return Err(ApiError::not_allowed(
            "roles are granted at `permissions/subscription/{subscription}`",
        ));
    }
    let roles: BTreeSet<String> = request::json(request).await?;
    admin
        .broker()
        .update_auth_policies(&namespace, |policies| {
            let known = policies.subscription_auth_roles.entry(second).or_default();
            known.extend(roles);
        })
        .await?;
    done()
}

async fn revoke_subscription(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
    Segments(Pair { first, second }): Segments<Pair>,
) -> Answer {
    admin
        .broker()
        .update_auth_policies(&namespace, |policies| {
            let known = &mut policies.subscription_auth_roles;
            if let Some(roles) = known.get_mut(&first) {
                roles.remove(&second);
                if roles.is_empty() {
                    known.remove(&first);
                }
            }
        })
        .await?;
    done()
}

async fn of_topic(State(admin): State<Admin>, InPath(topic): InPath) -> Answer {
    document(&admin.broker().topic_permissions(&topic).await?)
}

async fn grant_topic(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Segments(Role { role }): Segments<Role>,
    request: Request,
) -> Answer {
    grant_one(&admin, &topic, role, actions(request).await?).await?;
    done()
}

async fn grant_one(
    admin: &Admin,
    topic: &TopicName,
    role: String,
    actions: BTreeSet<Action>,
) -> Answer<()> {
    let name = topic.to_string();
    let change = |policies: &mut AuthPolicies| {
        let grants: &mut BTreeMap<_, _> = policies.destination_auth.entry(name).or_default();
        grants.insert(role, actions);
    };
    let broker = admin.broker();
    broker
        .update_auth_policies(&topic.namespace(), change)
        .await?;
    Ok(())
}

async fn revoke_topic(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Segments(Role { role }): Segments<Role>,
) -> Answer {
    revoke_one(&admin, &topic, &role).await?;
    done()
}

async fn revoke_one(admin: &Admin, topic: &TopicName, role: &str) -> Answer<()> {
    let (name, namespace) = (topic.to_string(), topic.namespace());
    let policies = admin.broker().auth_policies(&namespace).await?;
    let known = policies.destination_auth.get(&name);
    if !known.is_some_and(|grants| grants.contains_key(role)) {
        return Err(ApiError::precondition_failed(
            "Permissions are not set at the topic level",
        ));
    }
    let change = |policies: &mut AuthPolicies| {
        if let Some(grants) = policies.destination_auth.get_mut(&name) {
            grants.remove(role);
            if grants.is_empty() {
                policies.destination_auth.remove(&name);
            }
        }
    };
    let broker = admin.broker();
    broker.update_auth_policies(&namespace, change).await?;
    Ok(())
}

/// `GrantTopicPermissionOptions`, and `Revoke..` where there are no actions.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct OnTopic {
    topic: String,
    role: String,
    #[serde(default)]
    actions: BTreeSet<Action>,
}

impl OnTopic {
    fn topic(&self) -> Answer<TopicName> {
        let name = self.topic.parse();
        name.map_err(|error: geminga_model::NameError| {
            ApiError::precondition_failed(error.to_string())
        })
    }
}

async fn grant_topics(State(admin): State<Admin>, request: Request) -> Answer {
    let all: Vec<OnTopic> = request::json(request).await?;
    for one in all {
        grant_one(&admin, &one.topic()?, one.role, one.actions).await?;
    }
    done()
}

async fn revoke_topics(State(admin): State<Admin>, request: Request) -> Answer {
    let all: Vec<OnTopic> = request::json(request).await?;
    for one in all {
        revoke_one(&admin, &one.topic()?, &one.role).await?;
    }
    done()
}

/// Whether subscriptions must begin with the role's name.
#[derive(serde::Deserialize, serde::Serialize)]
enum Mode {
    None,
    Prefix,
}

async fn mode(State(admin): State<Admin>, NamespaceInPath(namespace): NamespaceInPath) -> Answer {
    let policies = admin.broker().auth_policies(&namespace).await?;
    document(&match policies.subscription_prefix_mode {
        true => Mode::Prefix,
        false => Mode::None,
    })
}

async fn set_mode(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
    request: Request,
) -> Answer {
    let mode: Mode = request::json(request).await?;
    admin
        .broker()
        .update_auth_policies(&namespace, |policies| {
            policies.subscription_prefix_mode = matches!(mode, Mode::Prefix);
        })
        .await?;
    done()
}
