//! What operators change while the broker runs: settings, resource groups, rates.

use std::time::{Duration, Instant};

use geminga_broker::{
    BrokerConfig, ErrorKind, IsolationPolicy, ResourceGroup, SubscribeRate, SubscriptionType,
};
use geminga_model::{NamespaceName, TopicName};
use geminga_proto::pb::command_subscribe::SubType;
use geminga_proto::pb::{CommandCloseConsumer, ServerError};

use crate::server::{Server, eventually};
use crate::wire::{TOPIC, Wire, subscribe};

fn name(topic: &str) -> TopicName {
    topic.parse().unwrap()
}

async fn namespace(server: &Server) -> NamespaceName {
    let topic = name(TOPIC);
    if !server.broker.topic_exists(&topic).await.unwrap() {
        server.broker.create_topic(&topic).await.unwrap();
    }
    topic.namespace()
}

async fn flood(server: &Server, topic: &str, count: usize) -> Wire {
    let mut wire = server.connect().await;
    wire.producer(topic, 1, None).await;
    wire.publish_all(1, &vec!["x"; count]).await;
    wire
}

#[tokio::test]
async fn a_setting_holds_at_once_over_a_crash_and_until_it_is_removed() {
    let server = Server::new().await;
    namespace(&server).await;
    let types = async |server: &Server| {
        let all = server.broker.effective_policies(&name(TOPIC)).await;
        all.unwrap().subscription_types.clone()
    };
    // Loaded, so that it has to hear of it.
    server.broker.topic_stats(&name(TOPIC)).await.unwrap();
    let (setting, value) = ("subscriptionTypesEnabled", "Shared");
    server.broker.change_setting(setting, value).await.unwrap();
    assert_eq!(types(&server).await, [SubscriptionType::Shared]);
    let mut wire = server.connect().await;
    let refused = wire.try_subscribe(subscribe(1, "s", SubType::Exclusive));
    assert_eq!(
        refused.await.unwrap_err().error(),
        ServerError::NotAllowedError
    );
    for (setting, value) in [
        ("maxTopicsPerNamespace", "many"),
        ("maxMessageSize", "5"),
        ("defaultNumPartitions", "0"),
    ] {
        let refused = server.broker.change_setting(setting, value).await;
        let kind = refused.unwrap_err().kind();
        assert_eq!(kind, ErrorKind::PreconditionFailed, "{setting}");
    }
    let server = server.crash_and_restart(BrokerConfig::default()).await;
    assert_eq!(types(&server).await, [SubscriptionType::Shared]);
    let known = server.broker.changed_settings().await.unwrap();
    assert_eq!(known.len(), 1, "{known:?}");
    server.broker.reset_setting(setting).await.unwrap();
    let of_the_file = BrokerConfig::default().subscription_types_enabled;
    assert_eq!(types(&server).await, of_the_file);
    let server = server.crash_and_restart(BrokerConfig::default()).await;
    assert_eq!(types(&server).await, of_the_file);
}

#[tokio::test]
async fn topics_of_a_resource_group_publish_and_dispatch_no_more_than_it_may() {
    let server = Server::new().await;
    let namespace = namespace(&server).await;
    let limits = ResourceGroup {
        publish_rate_in_msgs: Some(100),
        dispatch_rate_in_msgs: Some(50),
        ..ResourceGroup::default()
    };
    server.broker.put_resource_group("g", limits).await.unwrap();
    let missing = server.broker.set_resource_group(&namespace, Some("h"));
    assert!(missing.await.is_err());
    let given = server.broker.set_resource_group(&namespace, Some("g"));
    given.await.unwrap();
    // After a crash too.
    let server = server.crash_and_restart(BrokerConfig::default()).await;
    let began = Instant::now();
    let other = format!("{TOPIC}-other");
    drop(flood(&server, TOPIC, 60).await);
    let mut wire = flood(&server, &other, 60).await;
    // One burst is allowed to both; the debt is paid before the next frame is read.
    wire.producer(&other, 2, None).await;
    assert!(began.elapsed() >= Duration::from_millis(200));
    let began = Instant::now();
    let mut reader = server.connect().await;
    for (id, topic) in [(1, TOPIC), (2, &other)] {
        let mut wanted = subscribe(id, "s", SubType::Shared);
        wanted.topic = topic.to_owned();
        reader.subscribe(wanted).await;
        reader.flow(id, 1_000).await;
    }
    assert_eq!(reader.texts(100).await.len(), 100);
    assert!(began.elapsed() >= Duration::from_millis(900));
    let in_use = server.broker.delete_resource_group("g").await.unwrap_err();
    assert_eq!(in_use.kind(), ErrorKind::PreconditionFailed);
    let taken = server.broker.set_resource_group(&namespace, None);
    taken.await.unwrap();
    server.broker.delete_resource_group("g").await.unwrap();
}

/// Who waits for the tokens of a limit that is no more would wait for an hour here.
#[tokio::test]
async fn a_raised_limit_of_a_group_lets_those_go_on_who_wait() {
    let server = Server::new().await;
    let namespace = namespace(&server).await;
    let limits = |publish, dispatch| ResourceGroup {
        publish_rate_in_bytes: Some(publish),
        dispatch_rate_in_bytes: Some(dispatch),
        ..ResourceGroup::default()
    };
    let put = async |limits| server.broker.put_resource_group("g", limits).await.unwrap();
    put(limits(1, 0)).await;
    let given = server.broker.set_resource_group(&namespace, Some("g"));
    given.await.unwrap();
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, None).await;
    let large = "x".repeat(5_000);
    wire.publish_all(1, &[large.as_str()]).await;
    put(limits(0, 1)).await;
    // Its connection is read again.
    wire.publish_all(1, &[large.as_str(); 2]).await;
    let mut reader = server.connect().await;
    reader.subscribe(subscribe(1, "s", SubType::Shared)).await;
    reader.flow(1, 1).await;
    assert_eq!(reader.texts(1).await.len(), 1);
    reader.flow(1, 1_000).await;
    put(limits(0, 1 << 30)).await;
    assert_eq!(reader.texts(2).await.len(), 2);
}

/// An HTTP client that goes away takes the future of its request with it.
#[tokio::test]
async fn a_change_that_nobody_waits_for_any_more_comes_into_force_too() {
    async fn begin(change: impl Future) {
        let mut change = std::pin::pin!(change);
        let once = std::future::poll_fn(|cx| std::task::Poll::Ready(change.as_mut().poll(cx)));
        drop(once.await);
    }
    let server = Server::new().await;
    let broker = &server.broker;
    let namespace = namespace(&server).await;
    broker.topic_stats(&name(TOPIC)).await.unwrap();
    begin(broker.change_setting("maxTopicsPerNamespace", "77")).await;
    eventually("the setting holds", async || {
        (broker.settings().max_topics_per_namespace == 77).then_some(())
    })
    .await;
    begin(broker.put_resource_group("g", ResourceGroup::default())).await;
    eventually("the group is there", async || broker.resource_group("g")).await;
    let change = broker.update_policies(&namespace, |policies| {
        policies.subscription_types = vec![SubscriptionType::Shared];
        Ok(())
    });
    begin(change).await;
    let mut wire = server.connect().await;
    let mut id = 0;
    eventually("the loaded topic has heard of it", async || {
        id += 1;
        let wanted = subscribe(id, &format!("s{id}"), SubType::Exclusive);
        wire.try_subscribe(wanted).await.err()
    })
    .await;
}

#[tokio::test]
async fn a_consumer_subscribes_no_more_often_than_it_may() {
    let server = Server::new().await;
    let namespace = namespace(&server).await;
    server
        .broker
        .update_policies(&namespace, |policies| {
            policies.subscribe_rate = Some(SubscribeRate {
                subscribe_throttling_rate_per_consumer: 2,
                // Longer than the test takes.
                rate_period_in_second: 3_600,
            });
            Ok(())
        })
        .await
        .unwrap();
    let mut wire = server.connect().await;
    for allowed in [true, true, false] {
        let mut wanted = subscribe(1, "s", SubType::Shared);
        wanted.consumer_name = Some("c".to_owned());
        match wire.try_subscribe(wanted).await {
            Ok(()) => {
                assert!(allowed);
                let request_id = wire.request();
                let close = CommandCloseConsumer {
                    consumer_id: 1,
                    request_id,
                    ..CommandCloseConsumer::default()
                };
                wire.send(close).await;
                wire.done(request_id).await.unwrap();
            }
            Err(refused) => {
                assert!(!allowed);
                assert_eq!(refused.error(), ServerError::NotAllowedError);
            }
        }
    }
    wire.subscribe(subscribe(2, "s", SubType::Shared)).await;
}

#[tokio::test]
async fn an_isolation_policy_must_let_this_broker_serve() {
    let server = Server::new().await;
    let policy = |primary: &str| -> IsolationPolicy {
        serde_json::from_value(serde_json::json!({
            "namespaces": ["public/.*"], "primary": [primary],
            "auto_failover_policy": {
                "policy_type": "min_available",
                "parameters": { "min_limit": "1", "usage_threshold": "80" },
            },
        }))
        .unwrap()
    };
    let put = async |primary: &str| {
        let policy = policy(primary);
        let broker = &server.broker;
        broker
            .put_isolation_policy("standalone", "p", &policy, "here:1")
            .await
    };
    let refused = put("there.*").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PreconditionFailed);
    put("here.*").await.unwrap();
    let server = server.crash_and_restart(BrokerConfig::default()).await;
    let all = server
        .broker
        .isolation_policies("standalone")
        .await
        .unwrap();
    assert_eq!(all["p"], policy("here.*"));
}
