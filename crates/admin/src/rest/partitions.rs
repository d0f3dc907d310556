//! What a request about a topic means when that is partitioned: each partition, or a refusal.

use geminga_model::TopicName;

use super::Admin;
use crate::error::{Answer, ApiError};

/// The partitions of a partitioned topic; empty when it is none.
pub(super) async fn partitions_of(admin: &Admin, topic: &TopicName) -> Answer<Vec<TopicName>> {
    if topic.partition().is_some() {
        return Ok(Vec::new());
    }
    let count = admin
        .broker()
        .partitions(topic)
        .await?
        .map_or(0, |found| found.partitions);
    Ok((0..count)
        .map(|number| topic.with_partition(number))
        .collect())
}

/// The topic, or its partitions when it is partitioned.
pub(super) async fn targets(admin: &Admin, topic: TopicName) -> Answer<Vec<TopicName>> {
    let partitions = partitions_of(admin, &topic).await?;
    Ok(if partitions.is_empty() {
        vec![topic]
    } else {
        partitions
    })
}

/// Refuses what only makes sense for one partition.
pub(super) async fn not_partitioned(admin: &Admin, topic: &TopicName, what: &str) -> Answer<()> {
    if partitions_of(admin, topic).await?.is_empty() {
        return Ok(());
    }
    Err(ApiError::not_allowed(format!(
        "{what} is not allowed on a partitioned topic: name one of its partitions, {}",
        topic.with_partition(0).as_str()
    )))
}
