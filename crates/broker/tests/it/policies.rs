//! Policies: which are in force, and what they do.

use geminga_broker::{BrokerConfig, Policies, SubscriptionType};
use geminga_model::TopicName;

use crate::server::Server;

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
