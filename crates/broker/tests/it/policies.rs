//! Policies: which are in force, and what they do.

use geminga_broker::{
    BacklogQuota, BacklogQuotaAction, BacklogQuotaType, BrokerConfig, DispatchRate, ErrorKind,
    InactiveTopicDeleteMode, InactiveTopicPolicies, Policies, PublishRate, Retention, SubscribeAt,
    SubscriptionType,
};
use geminga_model::TopicName;
use geminga_proto::Command;
use geminga_proto::pb::*;

use crate::server::{Server, eventually};
use crate::wire::{TOPIC, Wire, subscribe};

fn topic(name: &str) -> TopicName {
    format!("persistent://public/default/{name}")
        .parse()
        .unwrap()
}

#[tokio::test]
async fn a_topics_policies_survive_a_crash_and_go_with_the_topic() {
    let server = Server::new().await;
    let t = topic("t");
    let missing = server.broker.update_topic_policies(&t, |_| Ok(())).await;
    assert!(missing.is_err(), "the topic does not exist yet");
    server.broker.create_topic(&t).await.unwrap();
    server
        .broker
        .update_topic_policies(&t, |p| {
            p.max_producers_per_topic = Some(2);
            p.subscription_types = vec![SubscriptionType::Shared];
            Ok(())
        })
        .await
        .unwrap();
    let server = server.crash_and_restart(BrokerConfig::default()).await;
    let own = server.broker.topic_policies(&t).await.unwrap();
    assert_eq!(own.max_producers_per_topic, Some(2));
    let all = server.broker.effective_policies(&t).await.unwrap();
    assert_eq!(all.producers_max, 2);
    assert_eq!(all.subscription_types, [SubscriptionType::Shared]);
    server.broker.delete_topic(&t, false).await.unwrap();
    server.broker.create_topic(&t).await.unwrap();
    let own = server.broker.topic_policies(&t).await.unwrap();
    assert_eq!(own, Policies::default());
}

#[tokio::test]
async fn a_loaded_topic_hears_of_changes_at_both_levels() {
    let server = Server::new().await;
    let t = topic("t");
    let ttl = async || {
        let policies = server.broker.effective_policies(&t).await.unwrap();
        policies.message_ttl_seconds
    };
    server.broker.create_topic(&t).await.unwrap();
    server.broker.topic_stats(&t).await.unwrap();
    let namespace = t.namespace();
    let set = |seconds| {
        move |p: &mut Policies| {
            p.message_ttl_seconds = seconds;
            Ok(())
        }
    };
    server
        .broker
        .update_policies(&namespace, set(Some(60)))
        .await
        .unwrap();
    assert_eq!(ttl().await, 60);
    server
        .broker
        .update_topic_policies(&t, set(Some(5)))
        .await
        .unwrap();
    assert_eq!(ttl().await, 5);
    server
        .broker
        .update_topic_policies(&t, set(None))
        .await
        .unwrap();
    assert_eq!(ttl().await, 60);
}

/// Sets the policies of a topic that is made for it.
async fn with(server: &Server, set: impl Fn(&mut Policies) + Send + Sync) {
    let t: TopicName = TOPIC.parse().unwrap();
    if !server.broker.topic_exists(&t).await.unwrap() {
        server.broker.create_topic(&t).await.unwrap();
    }
    let change = move |policies: &mut Policies| {
        set(policies);
        Ok(())
    };
    server
        .broker
        .update_topic_policies(&t, change)
        .await
        .unwrap();
}

async fn subscribed(server: &Server, name: &str) {
    let t: TopicName = TOPIC.parse().unwrap();
    server
        .broker
        .create_subscription(&t, name, SubscribeAt::Earliest, Default::default())
        .await
        .unwrap();
}

async fn backlog(server: &Server, name: &str) -> u64 {
    let t: TopicName = TOPIC.parse().unwrap();
    let stats = server.broker.topic_stats(&t).await.unwrap();
    stats.subscriptions[name].msg_backlog
}

fn quota(of: BacklogQuotaType, limit: i64, policy: BacklogQuotaAction) -> impl Fn(&mut Policies) {
    move |policies| {
        let quota = BacklogQuota {
            limit_size: limit,
            limit_time: limit,
            policy,
        };
        policies.backlog_quotas.insert(of, quota);
    }
}

async fn flood(server: &Server, count: usize) -> Wire {
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, None).await;
    let text = "x".repeat(1_000);
    let texts = vec![text.as_str(); count];
    wire.publish_all(1, &texts).await;
    wire
}

fn producer(name: &str) -> CommandProducer {
    CommandProducer {
        topic: TOPIC.to_owned(),
        producer_id: 7,
        producer_name: Some(name.to_owned()),
        ..CommandProducer::default()
    }
}

#[tokio::test]
async fn a_full_backlog_refuses_producers_until_it_is_read() {
    for (of, limit, action, code) in [
        (
            BacklogQuotaType::DestinationStorage,
            10_000,
            BacklogQuotaAction::ProducerRequestHold,
            ServerError::ProducerBlockedQuotaExceededError,
        ),
        (
            BacklogQuotaType::DestinationStorage,
            10_000,
            BacklogQuotaAction::ProducerException,
            ServerError::ProducerBlockedQuotaExceededException,
        ),
        (
            BacklogQuotaType::MessageAge,
            5,
            BacklogQuotaAction::ProducerException,
            ServerError::ProducerBlockedQuotaExceededException,
        ),
    ] {
        let server = Server::new().await;
        with(&server, |_| {}).await;
        subscribed(&server, "s").await;
        let mut wire = flood(&server, 20).await;
        with(&server, quota(of, limit, action)).await;
        server.broker.run_checks().await;
        wire.find(|command, _| matches!(command, Command::CloseProducer(_)).then_some(()))
            .await;
        let refused = wire.try_producer(producer("late")).await.unwrap_err();
        assert_eq!(refused.error(), code);
        let t = TOPIC.parse().unwrap();
        server.broker.skip_all(&t, "s").await.unwrap();
        wire.try_producer(producer("late")).await.unwrap();
    }
}

#[tokio::test]
async fn a_flood_meets_its_quota_before_the_next_check() {
    let server = Server::new().await;
    let hold = BacklogQuotaAction::ProducerRequestHold;
    with(
        &server,
        quota(BacklogQuotaType::DestinationStorage, 10_000, hold),
    )
    .await;
    subscribed(&server, "s").await;
    let mut wire = flood(&server, 12).await;
    wire.find(|command, _| matches!(command, Command::CloseProducer(_)).then_some(()))
        .await;
}

#[tokio::test]
async fn eviction_leaves_the_newest_messages() {
    let server = Server::new().await;
    let evict = BacklogQuotaAction::ConsumerBacklogEviction;
    with(&server, |_| {}).await;
    subscribed(&server, "s").await;
    flood(&server, 100).await;
    with(
        &server,
        quota(BacklogQuotaType::DestinationStorage, 20_000, evict),
    )
    .await;
    server.broker.run_checks().await;
    let left = backlog(&server, "s").await;
    assert!((10..=18).contains(&left), "{left}");
    // Entries of these tests were published decades ago.
    with(&server, quota(BacklogQuotaType::MessageAge, 1, evict)).await;
    server.broker.run_checks().await;
    assert_eq!(backlog(&server, "s").await, 0);
}

#[tokio::test]
async fn messages_expire_on_a_topic_that_nobody_uses() {
    let server = Server::new().await;
    with(&server, |p| p.message_ttl_seconds = Some(1)).await;
    subscribed(&server, "s").await;
    drop(flood(&server, 5).await);
    assert_eq!(backlog(&server, "s").await, 5);
    let t = TOPIC.parse().unwrap();
    server.broker.unload(&t).await.unwrap();
    server.broker.run_checks().await;
    assert_eq!(backlog(&server, "s").await, 0);
}

#[tokio::test]
async fn an_inactive_topic_is_deleted_as_its_policy_says() {
    use InactiveTopicDeleteMode::{DeleteWhenNoSubscriptions, DeleteWhenSubscriptionsCaughtUp};
    let t: TopicName = TOPIC.parse().unwrap();
    for (mode, subscription, unread, retention, gone) in [
        (DeleteWhenNoSubscriptions, false, true, 0, true),
        (DeleteWhenNoSubscriptions, false, true, -1, false),
        (DeleteWhenNoSubscriptions, true, false, 0, false),
        (DeleteWhenSubscriptionsCaughtUp, true, false, 0, true),
        (DeleteWhenSubscriptionsCaughtUp, true, true, 0, false),
    ] {
        let server = Server::new().await;
        with(&server, |policies| {
            policies.inactive_topic = Some(InactiveTopicPolicies {
                inactive_topic_delete_mode: mode,
                max_inactive_duration_seconds: 0,
                delete_while_inactive: true,
            });
            policies.retention = Some(Retention {
                retention_time_in_minutes: retention,
                retention_size_in_mb: retention,
            });
        })
        .await;
        let wire = flood(&server, 3).await;
        if subscription {
            subscribed(&server, "s").await;
            if !unread {
                server.broker.skip_all(&t, "s").await.unwrap();
            }
        }
        server.broker.run_checks().await;
        assert!(
            server.broker.topic_exists(&t).await.unwrap(),
            "it has a producer"
        );
        drop(wire);
        eventually("the producer leaves", async || {
            let stats = server.broker.topic_stats(&t).await.unwrap();
            stats.publishers.is_empty().then_some(())
        })
        .await;
        server.broker.unload(&t).await.unwrap();
        server.broker.run_checks().await;
        let exists = server.broker.topic_exists(&t).await.unwrap();
        assert_eq!(
            exists, !gone,
            "{mode:?} {subscription} {unread} {retention}"
        );
    }
}

#[tokio::test]
async fn rates_hold_back_what_is_over_them() {
    let server = Server::new().await;
    with(&server, |policies| {
        policies.publish_rate = Some(PublishRate {
            publish_throttling_rate_in_msg: 100,
            ..PublishRate::default()
        });
        policies.subscription_dispatch_rate = Some(DispatchRate {
            dispatch_throttling_rate_in_msg: 50,
            ..DispatchRate::default()
        });
    })
    .await;
    let began = std::time::Instant::now();
    let mut wire = flood(&server, 120).await;
    // One burst is allowed; the debt of the last read is paid before the next frame is read.
    wire.producer(TOPIC, 2, None).await;
    assert!(began.elapsed() >= std::time::Duration::from_millis(200));
    let began = std::time::Instant::now();
    let mut reader = server.connect().await;
    let kind = command_subscribe::SubType::Shared;
    reader.subscribe(subscribe(1, "s", kind)).await;
    reader.flow(1, 1_000).await;
    assert_eq!(reader.texts(75).await.len(), 75);
    assert!(began.elapsed() >= std::time::Duration::from_millis(500));
}

#[tokio::test]
async fn a_namespace_takes_no_more_topics_than_its_limit() {
    let server = Server::new().await;
    let namespace = topic("a").namespace();
    server
        .broker
        .update_policies(&namespace, |p| {
            p.max_topics_per_namespace = Some(2);
            Ok(())
        })
        .await
        .unwrap();
    server.broker.create_topic(&topic("a")).await.unwrap();
    let parts = topic("parts");
    let too_many = server
        .broker
        .create_partitioned(&parts, 2, Default::default())
        .await
        .unwrap_err();
    assert_eq!(too_many.kind(), ErrorKind::PreconditionFailed);
    server.broker.create_topic(&topic("b")).await.unwrap();
    let mut wire = server.connect().await;
    let refused = wire.try_producer(producer("p")).await.unwrap_err();
    assert_eq!(refused.error(), ServerError::NotAllowedError);
}

#[tokio::test]
async fn a_truncated_topic_is_empty_and_goes_on() {
    let server = Server::new().await;
    with(&server, |_| {}).await;
    subscribed(&server, "s").await;
    let mut wire = flood(&server, 10).await;
    let t: TopicName = TOPIC.parse().unwrap();
    server.broker.truncate(&t).await.unwrap();
    let stats = server.broker.topic_internal_stats(&t).await.unwrap();
    assert_eq!((stats.number_of_entries, stats.total_size), (0, 0));
    wire.publish(1, 100, "after").await;
    wire.receipt().await;
    assert_eq!(backlog(&server, "s").await, 1);
}

/// A time that is so long that it does not fit is for ever; it is not 0, and ends no task.
#[tokio::test]
async fn times_beyond_all_numbers_are_for_ever() {
    let server = Server::new().await;
    let t = topic("t");
    server.broker.create_topic(&t).await.unwrap();
    server
        .broker
        .update_topic_policies(&t, |policies| {
            policies.inactive_topic = Some(InactiveTopicPolicies {
                inactive_topic_delete_mode: InactiveTopicDeleteMode::DeleteWhenNoSubscriptions,
                max_inactive_duration_seconds: u64::MAX,
                delete_while_inactive: true,
            });
            policies.retention = Some(Retention {
                retention_time_in_minutes: i64::MAX,
                retention_size_in_mb: i64::MAX,
            });
            let quota = BacklogQuota {
                limit_size: -1,
                limit_time: i64::MAX / 2,
                policy: BacklogQuotaAction::ProducerException,
            };
            policies
                .backlog_quotas
                .insert(BacklogQuotaType::MessageAge, quota);
            Ok(())
        })
        .await
        .unwrap();
    server.broker.run_checks().await;
    let mut wire = server.connect().await;
    let consumer = CommandSubscribe {
        topic: t.to_string(),
        ..subscribe(1, "s", command_subscribe::SubType::Shared)
    };
    wire.subscribe(consumer).await;
    wire.producer(t.as_str(), 1, None).await;
    // Published at the end of time, as its client has it.
    let metadata = MessageMetadata {
        publish_time: u64::MAX,
        ..crate::wire::metadata(1)
    };
    wire.publish_with(1, metadata, b"x").await;
    wire.receipt().await;
    server.broker.run_checks().await;
    let all = server.broker.topics(&t.namespace()).await.unwrap();
    assert!(all.contains(&t.to_string()), "{all:?}");
    assert_eq!(wire.publish_all(1, &["goes on"]).await.len(), 1);
}
