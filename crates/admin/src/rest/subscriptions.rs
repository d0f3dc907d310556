//! Subscriptions of a topic: made, moved, emptied, looked into and removed.
//!
//! On a partitioned topic an action goes to every partition where that has a meaning, and is refused
//! where it has none.

use std::collections::{BTreeSet, HashMap};

use axum::Router;
use axum::extract::{Request, State};
use axum::routing::{get, post, put};
use geminga_broker::{ErrorKind, SubscribeAt};
use geminga_model::{Position, TopicName};

use super::extract::{Force, InPath, Named, Number, On, Params, Plain, Segments};
use super::partitions::{not_partitioned, partitions_of, targets};
use super::{Admin, document, done};
use crate::error::{Answer, ApiError};
use crate::request;

pub(super) fn router() -> Router<Admin> {
    let mut router = Router::new();
    for domain in ["persistent", "non-persistent"] {
        let topic = format!("/admin/v2/{domain}/{{tenant}}/{{namespace}}/{{topic}}");
        let one = format!("{topic}/subscription/{{subscription}}");
        router = router
            .route(&format!("{topic}/subscriptions"), get(list))
            .route(
                &format!("{topic}/all_subscription/expireMessages/{{number}}"),
                post(expire_all),
            )
            .route(&one, put(create).delete(delete))
            .route(&format!("{one}/resetcursor"), post(reset_by_id))
            .route(
                &format!("{one}/resetcursor/{{number}}"),
                post(reset_by_time),
            )
            .route(&format!("{one}/skip/{{number}}"), post(skip))
            .route(&format!("{one}/skip_all"), post(skip_all))
            .route(&format!("{one}/expireMessages/{{number}}"), post(expire))
            .route(&format!("{one}/expireMessages"), post(expire_through))
            .route(
                &format!("{one}/properties"),
                get(properties).put(set_properties),
            )
            .route(
                &format!("{one}/replicatedSubscriptionStatus"),
                get(replicated).post(set_replicated),
            )
            .route(
                &format!("{one}/position/{{number}}"),
                get(super::peek::peek),
            );
    }
    router
}

async fn list(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Params(_): Params<Plain>,
) -> Answer {
    let mut all: BTreeSet<String> = BTreeSet::new();
    for topic in targets(&admin, topic).await? {
        all.extend(admin.broker().subscriptions(&topic).await?);
    }
    document(&all)
}

/// `ResetCursorData`: where, and the properties of a new subscription.
#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Place {
    ledger_id: i64,
    entry_id: i64,
    #[serde(default)]
    partition_index: Option<i32>,
    #[serde(default)]
    batch_index: Option<i32>,
    /// Written by Pulsar's own client; a batch is an entry, of any size.
    #[serde(default, rename = "batchSize")]
    _batch_size: Option<i32>,
    /// Whether the message itself is left out.
    #[serde(default)]
    excluded: bool,
    #[serde(default)]
    properties: Option<HashMap<String, String>>,
}

impl Place {
    /// Where that is; what a whole entry cannot say is refused.
    fn at(&self, topic: &TopicName) -> Answer<SubscribeAt> {
        if let (Some(given), Some(own)) = (self.partition_index, topic.partition())
            && given >= 0
            && i64::from(given) != i64::from(own)
        {
            return Err(ApiError::precondition_failed(format!(
                "`partitionIndex` {given} is not the partition {}",
                topic.as_str()
            )));
        }
        if let Some(index) = self.batch_index.filter(|index| *index > 0) {
            return Err(ApiError::bad_request(format!(
                "`batchIndex` {index} cannot be honoured: a subscription begins at a whole entry"
            )));
        }
        let position = Position::new(self.ledger_id, self.entry_id);
        Ok(if position == Position::LATEST {
            SubscribeAt::Latest
        } else if position == Position::EARLIEST {
            SubscribeAt::Earliest
        } else if self.excluded {
            SubscribeAt::Position(position.next_in_ledger())
        } else {
            SubscribeAt::Position(position)
        })
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Creation {
    #[serde(default)]
    replicated: bool,
    #[serde(rename = "authoritative")]
    _authoritative: Option<bool>,
}

async fn create(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Segments(Named { subscription }): Segments<Named>,
    Params(params): Params<Creation>,
    request: Request,
) -> Answer {
    let place: Option<Place> = request::json_or_none(request).await?;
    let at = match &place {
        None => SubscribeAt::Latest,
        Some(place) => place.at(&topic)?,
    };
    let properties: HashMap<String, String> =
        place.and_then(|place| place.properties).unwrap_or_default();
    for topic in targets(&admin, topic).await? {
        admin
            .broker()
            .create_subscription(&topic, &subscription, at, properties.clone())
            .await?;
        if params.replicated {
            let broker = admin.broker();
            broker.set_replicated(&topic, &subscription, true).await?;
        }
    }
    done()
}

async fn delete(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Segments(Named { subscription }): Segments<Named>,
    Params(params): Params<Force>,
) -> Answer {
    for topic in having(&admin, topic, &subscription).await? {
        admin
            .broker()
            .delete_subscription(&topic, &subscription, params.force)
            .await?;
    }
    done()
}

/// The topic or those of its partitions that have the subscription; none is 404.
async fn having(admin: &Admin, topic: TopicName, subscription: &str) -> Answer<Vec<TopicName>> {
    let partitions = partitions_of(admin, &topic).await?;
    if partitions.is_empty() {
        // The broker's own answer says what is missing.
        return Ok(vec![topic]);
    }
    let mut having = Vec::new();
    for partition in partitions {
        if admin
            .broker()
            .subscriptions(&partition)
            .await?
            .iter()
            .any(|name| name == subscription)
        {
            having.push(partition);
        }
    }
    if having.is_empty() {
        return Err(ApiError::not_found(format!(
            "Subscription {subscription} not found"
        )));
    }
    Ok(having)
}

async fn reset_by_time(
    State(admin): State<Admin>,
    On {
        topic,
        subscription,
    }: On,
    Number(number): Number,
) -> Answer {
    for topic in having(&admin, topic, &subscription).await? {
        admin
            .broker()
            .reset_subscription(&topic, &subscription, SubscribeAt::TimeMs(number))
            .await?;
    }
    done()
}

async fn reset_by_id(
    State(admin): State<Admin>,
    On {
        topic,
        subscription,
    }: On,
    request: Request,
) -> Answer {
    let place: Place = request::json(request).await?;
    not_partitioned(&admin, &topic, "resetting to a message").await?;
    let at = place.at(&topic)?;
    if place
        .properties
        .as_ref()
        .is_some_and(|properties| !properties.is_empty())
    {
        return Err(ApiError::bad_request(
            "`properties` are not changed by a reset",
        ));
    }
    admin
        .broker()
        .reset_subscription(&topic, &subscription, at)
        .await?;
    done()
}

async fn skip(
    State(admin): State<Admin>,
    On {
        topic,
        subscription,
    }: On,
    Number(number): Number,
) -> Answer {
    not_partitioned(&admin, &topic, "skipping a number of messages").await?;
    admin.broker().skip(&topic, &subscription, number).await?;
    done()
}

async fn skip_all(
    State(admin): State<Admin>,
    On {
        topic,
        subscription,
    }: On,
) -> Answer {
    for topic in having(&admin, topic, &subscription).await? {
        admin.broker().skip_all(&topic, &subscription).await?;
    }
    done()
}

async fn expire(
    State(admin): State<Admin>,
    On {
        topic,
        subscription,
    }: On,
    Number(number): Number,
) -> Answer {
    let mut targets = Vec::new();
    for topic in having(&admin, topic, &subscription).await? {
        targets.push((topic, subscription.clone()));
    }
    expire_each(&admin, &targets, number).await
}

async fn expire_all(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Number(number): Number,
    Params(_): Params<Plain>,
) -> Answer {
    let mut all = Vec::new();
    for topic in targets(&admin, topic).await? {
        for subscription in admin.broker().subscriptions(&topic).await? {
            all.push((topic.clone(), subscription));
        }
    }
    expire_each(&admin, &all, number).await
}

/// A conflict, when there was nothing to expire anywhere.
async fn expire_each(admin: &Admin, targets: &[(TopicName, String)], seconds: u64) -> Answer {
    let (mut conflict, mut expired) = (None, 0);
    for (topic, subscription) in targets {
        match admin.broker().expire(topic, subscription, seconds).await {
            Ok(()) => expired += 1,
            Err(error) if error.kind() == ErrorKind::Conflict => conflict = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    match conflict {
        Some(error) if expired == 0 => Err(error.into()),
        _ => done(),
    }
}

/// Up to a message, which is expired too unless it is `excluded`.
async fn expire_through(
    State(admin): State<Admin>,
    On {
        topic,
        subscription,
    }: On,
    request: Request,
) -> Answer {
    let place: Place = request::json(request).await?;
    not_partitioned(&admin, &topic, "expiring up to a message").await?;
    let through = Position::new(place.ledger_id, place.entry_id - i64::from(place.excluded));
    admin
        .broker()
        .expire_through(&topic, &subscription, through)
        .await?;
    done()
}

/// Of a partitioned topic those of its partitions, which are changed together.
async fn properties(
    State(admin): State<Admin>,
    On {
        topic,
        subscription,
    }: On,
) -> Answer {
    let mut all = std::collections::BTreeMap::new();
    for topic in having(&admin, topic, &subscription).await? {
        let own = admin
            .broker()
            .subscription_properties(&topic, &subscription);
        all.extend(own.await?);
    }
    document(&all)
}

async fn set_properties(
    State(admin): State<Admin>,
    On {
        topic,
        subscription,
    }: On,
    request: Request,
) -> Answer {
    let given: std::collections::BTreeMap<String, String> = request::json(request).await?;
    for topic in having(&admin, topic, &subscription).await? {
        admin
            .broker()
            .set_subscription_properties(&topic, &subscription, given.clone())
            .await?;
    }
    done()
}

async fn replicated(
    State(admin): State<Admin>,
    On {
        topic,
        subscription,
    }: On,
) -> Answer {
    let mut all = std::collections::BTreeMap::new();
    for topic in having(&admin, topic, &subscription).await? {
        // 404 where it is not there.
        let is_replicated = admin.broker().is_replicated(&topic, &subscription).await?;
        all.insert(topic.as_str().to_owned(), is_replicated);
    }
    document(&all)
}

async fn set_replicated(
    State(admin): State<Admin>,
    On {
        topic,
        subscription,
    }: On,
    request: Request,
) -> Answer {
    let on = request::json::<bool>(request).await?;
    for topic in having(&admin, topic, &subscription).await? {
        let broker = admin.broker();
        broker.set_replicated(&topic, &subscription, on).await?;
    }
    done()
}
