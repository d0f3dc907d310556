//! Bundles: ranges of the hash of topic names, and what is done to the topics of one.
//!
//! A topic is not owned by its bundle here, so a namespace always has the four of Pulsar's default,
//! and cutting one is refused.

use axum::Router;
use axum::extract::State;
use axum::http::Uri;
use axum::routing::{get, post, put};
use geminga_broker::ErrorKind;
use geminga_model::{NamespaceName, TopicName};
use serde_json::{Map, Value, json};

use super::brokers::broker_id;
use super::extract::{NamespaceInPath, Params, Plain, Segments};
use super::lookup::crc32;
use super::topics::names;
use super::{Admin, document, done};
use crate::error::{Answer, ApiError};

/// Where the bundles of every namespace begin and end.
pub(super) const BOUNDARIES: [u32; 5] = [0, 0x4000_0000, 0x8000_0000, 0xc000_0000, 0xffff_ffff];

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

/// As text: `0x00000000_0x40000000`.
pub(super) fn range_text(number: usize) -> String {
    format!(
        "0x{:08x}_0x{:08x}",
        BOUNDARIES[number],
        BOUNDARIES[number + 1]
    )
}

/// The number of the bundle that a topic's name falls into.
pub(super) fn bundle_of(topic: &TopicName) -> usize {
    (crc32(topic.as_str().as_bytes()) >> 30) as usize
}

fn number_of(range: &str) -> Answer<usize> {
    let known = (0..BOUNDARIES.len() - 1).find(|number| range_text(*number) == range);
    known.ok_or_else(|| {
        ApiError::precondition_failed(format!("`{range}` is not the range of a bundle"))
    })
}

async fn topics_in(
    admin: &Admin,
    namespace: &NamespaceName,
    range: &str,
) -> Answer<Vec<TopicName>> {
    let number = number_of(range)?;
    admin.broker().policies(namespace).await?;
    let mut topics = names(admin, namespace).await?;
    topics.retain(|topic| bundle_of(topic) == number);
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
        return Err(ApiError::precondition_failed(format!(
            "`destinationBroker` {other} is not a broker of this cluster"
        )));
    }
    for topic in topics_in(&admin, &namespace, &bundle).await? {
        match admin.broker().unload(&topic).await {
            // Deleted meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            result => result?,
        }
    }
    done()
}

async fn split(
    NamespaceInPath(namespace): NamespaceInPath,
    Segments(Bundle { bundle }): Segments<Bundle>,
) -> Answer {
    number_of(&bundle)?;
    Err(ApiError::not_implemented(format!(
        "bundle {bundle} of {namespace} can't be split: topics are not placed by bundle on one broker"
    )))
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
        .map(|topic| {
            (
                topic.as_str().to_owned(),
                json!(crc32(topic.as_str().as_bytes())),
            )
        })
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
            "there is no broker `{}`",
            owner.broker
        )));
    }
    let status = json!({
        "broker_assignment": "shared", "is_controlled": false, "is_active": true
    });
    let mut all = Map::new();
    for tenant in admin.broker().tenants().await? {
        for namespace in admin.broker().namespaces(&tenant).await? {
            for number in 0..BOUNDARIES.len() - 1 {
                all.insert(
                    format!("{namespace}/{}", range_text(number)),
                    status.clone(),
                );
            }
        }
    }
    document(&all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_known_by_its_range() {
        assert_eq!(number_of("0x00000000_0x40000000"), Ok(0));
        assert_eq!(number_of("0xc0000000_0xffffffff"), Ok(3));
        for range in ["", "0x00000000_0x80000000", "0x40000000_0x40000000"] {
            assert_eq!(
                number_of(range).unwrap_err().status.as_u16(),
                412,
                "{range}"
            );
        }
    }
}
