//! Bundles: what is done to those topics of a namespace whose names hash into one range.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::Uri;
use axum::routing::{get, post, put};
use geminga_broker::bundle::{self, Bundles, Split};
use geminga_broker::{BrokerError, ErrorKind, Policies};
use geminga_model::{NamespaceName, TopicName};
use serde_json::{Map, Value, json};

use super::brokers::broker_id;
use super::extract::{NamespaceInPath, Params, Plain, Segments};
use super::topics::names;
use super::{Admin, document, done};
use crate::error::{Answer, ApiError};
use crate::request;

pub(super) fn router() -> Router<Admin> {
    let one = "/admin/v2/namespaces/{tenant}/{namespace}/{bundle}";
    Router::new()
        .route(&format!("{one}/unload"), put(unload))
        .route(&format!("{one}/split"), put(split))
        .route(&format!("{one}/clearBacklog"), post(clear_backlog))
        .route(
            &format!("{one}/clearBacklog/{{subscription}}"),
            post(clear_backlog_of),
        )
        .route(
            &format!("{one}/unsubscribe/{{subscription}}"),
            post(unsubscribe),
        )
        .route(&format!("{one}/topicHashPositions"), get(hash_positions))
        .route(
            "/admin/v2/brokers/{cluster}/{broker}/ownedNamespaces",
            get(owned),
        )
}

#[derive(serde::Deserialize)]
struct Bundle {
    bundle: String,
}

#[derive(serde::Deserialize)]
struct Subscription {
    subscription: String,
}

/// The cuts of a namespace, and the number of the bundle with this range.
pub(super) async fn find(
    admin: &Admin,
    namespace: &NamespaceName,
    range: &str,
) -> Answer<(Bundles, usize)> {
    let bundles = admin.broker().policies(namespace).await?.bundles;
    let number = bundles.number(range);
    let number = number.map_err(ApiError::precondition_failed)?;
    Ok((bundles, number))
}

async fn topics_in(
    admin: &Admin,
    namespace: &NamespaceName,
    range: &str,
) -> Answer<Vec<TopicName>> {
    let (bundles, number) = find(admin, namespace, range).await?;
    let mut topics = names(admin, namespace).await?;
    topics.retain(|topic| bundles.of(topic) == number);
    Ok(topics)
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Unloading {
    #[serde(rename = "authoritative")]
    _authoritative: Option<bool>,
    #[serde(rename = "destinationBroker")]
    destination: Option<String>,
}

async fn unload(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
    Segments(Bundle { bundle }): Segments<Bundle>,
    Params(params): Params<Unloading>,
) -> Answer {
    let own = broker_id(&admin);
    if let Some(other) = params
        .destination
        .filter(|name| !name.is_empty() && *name != own)
    {
        return Err(ApiError::conflict(format!(
            "Not allowed unload namespace bundle to inactive destination broker {other}"
        )));
    }
    let topics = topics_in(&admin, &namespace, &bundle).await?;
    unload_each(&admin, &topics).await?;
    done()
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Splitting {
    #[serde(rename = "authoritative")]
    _authoritative: Option<bool>,
    /// Whether the new bundles are unloaded at once.
    #[serde(default)]
    unload: bool,
    #[serde(default)]
    split_algorithm_name: String,
}

const ALGORITHMS: &str =
    "range_equally_divide, topic_count_equally_divide, specified_positions_divide";

async fn split(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
    Segments(Bundle { bundle }): Segments<Bundle>,
    Params(params): Params<Splitting>,
    request: Request,
) -> Answer {
    let places: Option<Vec<u32>> = request::json_or_none(request).await?;
    let (bundles, number) = match bundle.as_str() {
        "LARGEST" => largest(&admin, &namespace).await?,
        range => find(&admin, &namespace, range).await?,
    };
    let range = bundles.range(number);
    let topics = topics_in(&admin, &namespace, &range).await?;
    let how = match params.split_algorithm_name.as_str() {
        "" | "range_equally_divide" => Split::Range,
        "topic_count_equally_divide" => Split::Topics(topics.iter().map(bundle::hash).collect()),
        "specified_positions_divide" => {
            let places = places.filter(|places| !places.is_empty());
            Split::At(places.ok_or_else(|| {
                ApiError::precondition_failed(
                    "With specified_positions_divide split algorithm, splitBoundaries must not be \
                     empty",
                )
            })?)
        }
        _ => {
            return Err(ApiError::precondition_failed(format!(
                "Unsupported namespace bundle split algorithm, supported algorithms are \
                 [{ALGORITHMS}]"
            )));
        }
    };
    let change = |policies: &mut Policies| {
        // Cut by somebody else meanwhile: as if he had been first.
        let refused = BrokerError::PreconditionFailed;
        let number = policies.bundles.number(&range).map_err(refused)?;
        policies.bundles.split(number, &how).map_err(refused)
    };
    admin.broker().update_policies(&namespace, change).await?;
    if params.unload {
        unload_each(&admin, &topics).await?;
    }
    done()
}

/// The bundle with the most topics.
async fn largest(admin: &Admin, namespace: &NamespaceName) -> Answer<(Bundles, usize)> {
    let bundles = admin.broker().policies(namespace).await?.bundles;
    let mut counts = vec![0_usize; bundles.len()];
    for topic in names(admin, namespace).await? {
        counts[bundles.of(&topic)] += 1;
    }
    // The first of those that have as many.
    let most = counts.iter().max().copied().unwrap_or(0);
    let number = counts.iter().position(|count| *count == most);
    Ok((bundles, number.unwrap_or(0)))
}

async fn unload_each(admin: &Admin, topics: &[TopicName]) -> Answer<()> {
    for topic in topics {
        match admin.broker().unload(topic).await {
            // Deleted meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            result => result?,
        }
    }
    Ok(())
}

async fn clear_backlog(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
    Segments(Bundle { bundle }): Segments<Bundle>,
    Params(_): Params<Plain>,
) -> Answer {
    for topic in topics_in(&admin, &namespace, &bundle).await? {
        for subscription in admin.broker().subscriptions(&topic).await? {
            admin.broker().skip_all(&topic, &subscription).await?;
        }
    }
    done()
}

/// The topics of a bundle that have a subscription.
async fn having(
    admin: &Admin,
    namespace: &NamespaceName,
    range: &str,
    subscription: &str,
) -> Answer<Vec<TopicName>> {
    let mut having = Vec::new();
    for topic in topics_in(admin, namespace, range).await? {
        let all = admin.broker().subscriptions(&topic).await?;
        if all.iter().any(|name| name == subscription) {
            having.push(topic);
        }
    }
    Ok(having)
}

async fn clear_backlog_of(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
    Segments(Bundle { bundle }): Segments<Bundle>,
    Segments(Subscription { subscription }): Segments<Subscription>,
    Params(_): Params<Plain>,
) -> Answer {
    for topic in having(&admin, &namespace, &bundle, &subscription).await? {
        admin.broker().skip_all(&topic, &subscription).await?;
    }
    done()
}

async fn unsubscribe(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
    Segments(Bundle { bundle }): Segments<Bundle>,
    Segments(Subscription { subscription }): Segments<Subscription>,
    Params(_): Params<Plain>,
) -> Answer {
    for topic in having(&admin, &namespace, &bundle, &subscription).await? {
        admin
            .broker()
            .delete_subscription(&topic, &subscription, false)
            .await?;
    }
    done()
}

/// `?topics=a&topics=b`: those topics; all of the bundle without it.
async fn hash_positions(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
    Segments(Bundle { bundle }): Segments<Bundle>,
    uri: Uri,
) -> Answer {
    let mut topics = topics_in(&admin, &namespace, &bundle).await?;
    let mut wanted = Vec::new();
    for pair in uri.query().unwrap_or_default().split('&') {
        match pair.split_once('=') {
            Some(("topics", names)) => {
                let names = super::rules::decode(names)
                    .ok_or_else(|| ApiError::bad_request("`topics` is not text"))?;
                wanted.extend(
                    names
                        .split(',')
                        .filter(|name| !name.is_empty())
                        .map(str::to_owned),
                );
            }
            None if pair.is_empty() => {}
            _ => return Err(ApiError::bad_request(format!("unknown parameter `{pair}`"))),
        }
    }
    if !wanted.is_empty() {
        topics.retain(|topic| wanted.iter().any(|name| name == topic.as_str()));
    }
    let positions: Map<String, Value> = topics
        .iter()
        .map(|topic| (topic.as_str().to_owned(), json!(bundle::hash(topic))))
        .collect();
    document(&json!({
        "namespace": namespace.to_string(),
        "bundle": bundle,
        "topicHashPositions": positions,
    }))
}

#[derive(serde::Deserialize)]
struct Owner {
    cluster: String,
    broker: String,
}

/// All of them: there is no other broker.
async fn owned(State(admin): State<Admin>, Segments(owner): Segments<Owner>) -> Answer {
    if owner.cluster != admin.broker().config().cluster_name {
        return Err(ApiError::not_found("Cluster does not exist"));
    }
    if owner.broker != broker_id(&admin) {
        return Err(ApiError::not_found(format!(
            "Broker id '{}' not found in available brokers.",
            owner.broker
        )));
    }
    let status = json!({
        "broker_assignment": "shared", "is_controlled": false, "is_active": true
    });
    let mut all = Map::new();
    for tenant in admin.broker().tenants().await? {
        for namespace in admin.broker().namespaces(&tenant).await? {
            let name = request::namespace_name_of(&namespace)?;
            for range in admin.broker().policies(&name).await?.bundles.ranges() {
                all.insert(format!("{namespace}/{range}"), status.clone());
            }
        }
    }
    document(&all)
}
