//! Backlog quotas, and how they must agree with the retention.

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::{Request, State};
use axum::routing::{get, post};
use geminga_broker::{
    BacklogQuota, BacklogQuotaAction, BacklogQuotaType, BrokerError, EffectivePolicies, Policies,
};

use super::{NAMESPACE, TOPIC, Which, change, change_topic, read};
use crate::error::Answer;
use crate::request;
use crate::rest::extract::{InPath, NamespaceInPath, Params};
use crate::rest::{Admin, document, done};

pub(super) fn routes(router: Router<Admin>) -> Router<Admin> {
    router
        .route(&format!("{NAMESPACE}/backlogQuotaMap"), get(of_namespace))
        .route(
            &format!("{NAMESPACE}/backlogQuota"),
            post(set_of_namespace).delete(remove_of_namespace),
        )
        .route(&format!("{TOPIC}/backlogQuotaMap"), get(of_topic))
        .route(
            &format!("{TOPIC}/backlogQuota"),
            post(set_of_topic).delete(remove_of_topic),
        )
        .route("/admin/v2/brokers/backlog-quota-check", get(check_now))
}

/// `BacklogQuota` as clients send it: `limit` is an old name of `limitSize`.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Given {
    #[serde(default)]
    limit: Option<i64>,
    #[serde(default)]
    limit_size: Option<i64>,
    #[serde(default)]
    limit_time: Option<i64>,
    policy: BacklogQuotaAction,
}

impl From<Given> for BacklogQuota {
    fn from(given: Given) -> BacklogQuota {
        BacklogQuota {
            limit_size: given.limit_size.or(given.limit).unwrap_or(-1),
            limit_time: given.limit_time.unwrap_or(-1),
            policy: given.policy,
        }
    }
}

impl Which {
    fn quota(&self) -> BacklogQuotaType {
        self.backlog_quota_type
            .unwrap_or(BacklogQuotaType::DestinationStorage)
    }
}

/// A quota beyond a retention that ends would never be reached by what is kept.
pub(super) fn agree(policies: &Policies) -> Result<(), BrokerError> {
    let Some(retention) = policies.retention else {
        return Ok(());
    };
    let quota = |of| policies.backlog_quotas.get(&of);
    let size_max = retention.retention_size_in_mb.saturating_mul(1 << 20);
    let time_max = retention.retention_time_in_minutes.saturating_mul(60);
    let size = quota(BacklogQuotaType::DestinationStorage).map_or(-1, |quota| quota.limit_size);
    let time = quota(BacklogQuotaType::MessageAge).map_or(-1, |quota| quota.limit_time);
    if size_max > 0 && size >= size_max || time_max > 0 && time >= time_max {
        return Err(BrokerError::PreconditionFailed(
            "Backlog Quota exceeds configured retention quota. Please increase retention quota and \
             retry"
                .to_owned(),
        ));
    }
    Ok(())
}

fn applied(all: &EffectivePolicies) -> BTreeMap<BacklogQuotaType, BacklogQuota> {
    BTreeMap::from([
        (BacklogQuotaType::DestinationStorage, all.backlog_size),
        (BacklogQuotaType::MessageAge, all.backlog_age),
    ])
}

async fn of_namespace(State(admin): State<Admin>, namespace: NamespaceInPath) -> Answer {
    document(&read(&admin, namespace).await?.backlog_quotas)
}

async fn set_of_namespace(
    State(admin): State<Admin>,
    namespace: NamespaceInPath,
    Params(which): Params<Which>,
    request: Request,
) -> Answer {
    let quota: BacklogQuota = request::json::<Given>(request).await?.into();
    change(&admin, namespace, move |policies| {
        policies.backlog_quotas.insert(which.quota(), quota);
        agree(policies)
    })
    .await
}

async fn remove_of_namespace(
    State(admin): State<Admin>,
    namespace: NamespaceInPath,
    Params(which): Params<Which>,
) -> Answer {
    change(&admin, namespace, move |policies| {
        policies.backlog_quotas.remove(&which.quota());
        Ok(())
    })
    .await
}

async fn of_topic(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Params(which): Params<Which>,
) -> Answer {
    which.check()?;
    let own = admin.broker().topic_policies(&topic).await?.backlog_quotas;
    if !which.applied {
        return document(&own);
    }
    let mut all = applied(&*admin.broker().effective_policies(&topic).await?);
    all.extend(own);
    document(&all)
}

async fn set_of_topic(
    State(admin): State<Admin>,
    topic: InPath,
    Params(which): Params<Which>,
    request: Request,
) -> Answer {
    let quota: BacklogQuota = request::json::<Given>(request).await?.into();
    let of = which.quota();
    change_topic(&admin, topic, &which, move |policies| {
        policies.backlog_quotas.insert(of, quota);
        agree(policies)
    })
    .await
}

async fn remove_of_topic(
    State(admin): State<Admin>,
    topic: InPath,
    Params(which): Params<Which>,
) -> Answer {
    let of = which.quota();
    change_topic(&admin, topic, &which, move |policies| {
        policies.backlog_quotas.remove(&of);
        Ok(())
    })
    .await
}

async fn check_now(State(admin): State<Admin>) -> Answer {
    admin.broker().run_checks().await;
    done()
}

#[cfg(test)]
mod tests {
    use super::*;
    use geminga_broker::Retention;

    #[test]
    fn a_quota_is_below_a_retention_that_ends() {
        for (size, time, size_mb, minutes, fine) in [
            (1 << 20, -1, 1, 1, false),
            ((1 << 20) - 1, 59, 1, 1, true),
            (-1, 60, 1, 1, false),
            (i64::MAX, i64::MAX, -1, -1, true),
            (5, 5, 0, 0, true),
        ] {
            let mut policies = Policies {
                retention: Some(Retention {
                    retention_time_in_minutes: minutes,
                    retention_size_in_mb: size_mb,
                }),
                ..Policies::default()
            };
            for of in [
                BacklogQuotaType::DestinationStorage,
                BacklogQuotaType::MessageAge,
            ] {
                let quota = BacklogQuota {
                    limit_size: size,
                    limit_time: time,
                    policy: BacklogQuotaAction::ProducerException,
                };
                policies.backlog_quotas.insert(of, quota);
            }
            assert_eq!(agree(&policies).is_ok(), fine, "{size} {time} {size_mb}");
        }
    }
}
