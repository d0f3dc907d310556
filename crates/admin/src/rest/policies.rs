//! Single policies of namespaces and of topics: `GET`, set and `DELETE` of each, at both levels.
//!
//! `table` lists the policies; the handlers here are the same for all. A policy that is not set is
//! answered as Pulsar does: 200 without a body. With `applied=true` a topic's getter answers what is
//! in force. What cannot be honoured is refused by the name of its field, and never stored.

mod fixed;
mod quotas;
mod replication;
mod table;

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, put};
use geminga_broker::{BrokerError, DispatchRate, EffectivePolicies, Policies};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::extract::{InPath, NamespaceInPath, Params, Segments};
use super::{Admin, document, document_or_empty, done};
use crate::error::{Answer, ApiError};
use crate::request;

pub(super) use table::check_all;

pub(super) const NAMESPACE: &str = "/admin/v2/namespaces/{tenant}/{namespace}";
const TOPIC: &str = "/admin/v2/persistent/{tenant}/{namespace}/{topic}";

/// One policy, and how its endpoints read, check and change it.
trait Policy: 'static {
    type Value: Serialize + DeserializeOwned + Clone + Send + Sync + 'static;
    /// The last segment of its path in a namespace and in a topic; none where it has no such.
    const OF_NAMESPACE: Option<&'static str>;
    const OF_TOPIC: Option<&'static str>;

    fn get(policies: &Policies) -> Option<Self::Value>;
    fn set(policies: &mut Policies, value: Option<Self::Value>);
    /// What is in force; none where that is nothing.
    fn applied(all: &EffectivePolicies) -> Option<Self::Value>;
    /// What a namespace's getter answers where it is not set.
    fn unset(_: &Admin) -> Option<Self::Value> {
        None
    }
    /// What a topic's getter answers where it is not set.
    fn unset_of_topic() -> Option<Self::Value> {
        None
    }
    fn check(_: &Self::Value, _: &Admin) -> Answer<()> {
        Ok(())
    }
}

pub(super) fn router() -> Router<Admin> {
    let at = |rest: &str| format!("{NAMESPACE}/{rest}");
    let router = Router::new()
        .route(
            &at("properties"),
            get(properties).put(set_properties).delete(clear_properties),
        )
        .route(&at("property/{key}"), get(property).delete(remove_property))
        .route(&at("property/{key}/{value}"), put(set_property))
        .route(&format!("{TOPIC}/messageTTL"), ttl_of_topic())
        .route(
            &format!("{TOPIC}/{{subscription}}/dispatchRate"),
            get(subscription_rate)
                .post(set_subscription_rate)
                .delete(remove_subscription_rate),
        )
        .route(&format!("{TOPIC}/policies"), delete(remove_all));
    let router = quotas::routes(router);
    let router = replication::routes(router);
    let router = fixed::routes(router);
    table::routes(router)
}

/// The endpoints of one policy.
fn routes_of<P: Policy>(mut router: Router<Admin>) -> Router<Admin> {
    if let Some(segment) = P::OF_NAMESPACE {
        // Some are set by PUT, most by POST; nothing else is meant by either.
        let methods = get(of_namespace::<P>)
            .post(set_of_namespace::<P>)
            .put(set_of_namespace::<P>)
            .delete(remove_of_namespace::<P>);
        router = router.route(&format!("{NAMESPACE}/{segment}"), methods);
    }
    if let Some(segment) = P::OF_TOPIC {
        let methods = get(of_topic::<P>)
            .post(set_of_topic::<P>)
            .put(set_of_topic::<P>)
            .delete(remove_of_topic::<P>);
        router = router.route(&format!("{TOPIC}/{segment}"), methods);
    }
    router
}

/// Parameters of a policy's endpoints.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Which {
    #[serde(rename = "authoritative")]
    _authoritative: Option<bool>,
    is_global: bool,
    applied: bool,
    backlog_quota_type: Option<geminga_broker::BacklogQuotaType>,
    #[serde(rename = "messageTTL")]
    message_ttl: Option<i64>,
}

impl Which {
    /// A topic's policy for all clusters would be a promise about clusters that there are not.
    fn check(&self) -> Answer<()> {
        if self.is_global {
            return Err(ApiError::not_implemented(
                "`isGlobal` cannot be honoured: there is one cluster",
            ));
        }
        Ok(())
    }
}

/// Changes a namespace's policies; the broker repeats it when somebody else was faster.
async fn change(
    admin: &Admin,
    NamespaceInPath(namespace): NamespaceInPath,
    change: impl Fn(&mut Policies) -> Result<(), BrokerError> + Send,
) -> Answer {
    admin.broker().update_policies(&namespace, change).await?;
    done()
}

async fn change_topic(
    admin: &Admin,
    InPath(topic): InPath,
    which: &Which,
    change: impl Fn(&mut Policies) -> Result<(), BrokerError> + Send,
) -> Answer {
    which.check()?;
    admin.broker().update_topic_policies(&topic, change).await?;
    done()
}

async fn read(admin: &Admin, NamespaceInPath(namespace): NamespaceInPath) -> Answer<Policies> {
    Ok(admin.broker().policies(&namespace).await?)
}

async fn of_namespace<P: Policy>(
    State(admin): State<Admin>,
    namespace: NamespaceInPath,
    Params(_): Params<Which>,
) -> Answer {
    let own = P::get(&read(&admin, namespace).await?);
    document_or_empty(own.or_else(|| P::unset(&admin)).as_ref())
}

async fn set_of_namespace<P: Policy>(
    State(admin): State<Admin>,
    namespace: NamespaceInPath,
    request: Request,
) -> Answer {
    let value = given::<P>(&admin, request).await?;
    change(&admin, namespace, move |policies| {
        P::set(policies, value.clone());
        quotas::agree(policies)
    })
    .await
}

async fn remove_of_namespace<P: Policy>(
    State(admin): State<Admin>,
    namespace: NamespaceInPath,
) -> Answer {
    change(&admin, namespace, |policies| {
        P::set(policies, None);
        Ok(())
    })
    .await
}

async fn of_topic<P: Policy>(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Params(which): Params<Which>,
) -> Answer {
    which.check()?;
    let own = P::get(&admin.broker().topic_policies(&topic).await?);
    let answer = match own {
        None if which.applied => P::applied(&*admin.broker().effective_policies(&topic).await?),
        own => own.or_else(P::unset_of_topic),
    };
    document_or_empty(answer.as_ref())
}

async fn set_of_topic<P: Policy>(
    State(admin): State<Admin>,
    topic: InPath,
    Params(which): Params<Which>,
    request: Request,
) -> Answer {
    let value = given::<P>(&admin, request).await?;
    change_topic(&admin, topic, &which, move |policies| {
        P::set(policies, value.clone());
        quotas::agree(policies)
    })
    .await
}

async fn remove_of_topic<P: Policy>(
    State(admin): State<Admin>,
    topic: InPath,
    Params(which): Params<Which>,
) -> Answer {
    change_topic(&admin, topic, &which, |policies| {
        P::set(policies, None);
        Ok(())
    })
    .await
}

/// The value in the body, checked; `null` or no body removes the policy.
async fn given<P: Policy>(admin: &Admin, request: Request) -> Answer<Option<P::Value>> {
    let value: Option<P::Value> = request::json_or_none(request).await?;
    if let Some(value) = &value {
        P::check(value, admin)?;
    }
    Ok(value)
}

/// A topic's TTL is set by a parameter, and else as the other policies.
fn ttl_of_topic() -> MethodRouter<Admin> {
    async fn set(
        State(admin): State<Admin>,
        topic: InPath,
        Params(which): Params<Which>,
    ) -> Answer {
        let Some(given) = which.message_ttl else {
            return Err(ApiError::bad_request("`messageTTL` is missing"));
        };
        table::MessageTtl::check(&given, &admin)?;
        change_topic(&admin, topic, &which, move |policies| {
            table::MessageTtl::set(policies, Some(given));
            Ok(())
        })
        .await
    }
    get(of_topic::<table::MessageTtl>)
        .post(set)
        .delete(remove_of_topic::<table::MessageTtl>)
}

async fn remove_all(
    State(admin): State<Admin>,
    topic: InPath,
    Params(which): Params<Which>,
) -> Answer {
    change_topic(&admin, topic, &which, |policies| {
        *policies = Policies::default();
        Ok(())
    })
    .await
}

#[derive(serde::Deserialize)]
struct Subscription {
    subscription: String,
}

async fn subscription_rate(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Segments(Subscription { subscription }): Segments<Subscription>,
    Params(which): Params<Which>,
) -> Answer {
    which.check()?;
    let own = admin.broker().topic_policies(&topic).await?;
    let own = own.dispatch_rates.get(&subscription).copied();
    let answer = match own {
        None if which.applied => {
            let all = admin.broker().effective_policies(&topic).await?;
            table::SubscriptionDispatchRate::applied(&all)
        }
        own => own,
    };
    document_or_empty(answer.as_ref())
}

async fn set_subscription_rate(
    State(admin): State<Admin>,
    topic: InPath,
    Segments(Subscription { subscription }): Segments<Subscription>,
    Params(which): Params<Which>,
    request: Request,
) -> Answer {
    let rate: DispatchRate = request::json(request).await?;
    table::SubscriptionDispatchRate::check(&rate, &admin)?;
    change_topic(&admin, topic, &which, move |policies| {
        policies.dispatch_rates.insert(subscription.clone(), rate);
        Ok(())
    })
    .await
}

async fn remove_subscription_rate(
    State(admin): State<Admin>,
    topic: InPath,
    Segments(Subscription { subscription }): Segments<Subscription>,
    Params(which): Params<Which>,
) -> Answer {
    change_topic(&admin, topic, &which, move |policies| {
        policies.dispatch_rates.remove(&subscription);
        Ok(())
    })
    .await
}

async fn properties(State(admin): State<Admin>, namespace: NamespaceInPath) -> Answer {
    document(&read(&admin, namespace).await?.properties)
}

async fn set_properties(
    State(admin): State<Admin>,
    namespace: NamespaceInPath,
    request: Request,
) -> Answer {
    let given: BTreeMap<String, String> = request::json(request).await?;
    change(&admin, namespace, move |policies| {
        policies.properties.extend(given.clone());
        Ok(())
    })
    .await
}

async fn clear_properties(State(admin): State<Admin>, namespace: NamespaceInPath) -> Answer {
    change(&admin, namespace, |policies| {
        policies.properties.clear();
        Ok(())
    })
    .await
}

#[derive(serde::Deserialize)]
struct Property {
    key: String,
    #[serde(default)]
    value: String,
}

/// Plain text, as Pulsar answers it.
async fn property(
    State(admin): State<Admin>,
    namespace: NamespaceInPath,
    Segments(property): Segments<Property>,
) -> Answer<Response> {
    let policies = read(&admin, namespace).await?;
    match policies.properties.get(&property.key) {
        Some(value) => Ok(super::text(value.clone())),
        None => Ok(axum::http::StatusCode::OK.into_response()),
    }
}

async fn set_property(
    State(admin): State<Admin>,
    namespace: NamespaceInPath,
    Segments(property): Segments<Property>,
) -> Answer {
    change(&admin, namespace, move |policies| {
        policies
            .properties
            .insert(property.key.clone(), property.value.clone());
        Ok(())
    })
    .await
}

async fn remove_property(
    State(admin): State<Admin>,
    namespace: NamespaceInPath,
    Segments(property): Segments<Property>,
) -> Answer {
    change(&admin, namespace, move |policies| {
        policies.properties.remove(&property.key);
        Ok(())
    })
    .await
}
