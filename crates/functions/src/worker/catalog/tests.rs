//! Keys, views, and records that do not arrive.

use super::*;
use crate::component::Kind;

#[test]
fn keys_are_read_as_they_are_written() {
    let id = ComponentId::new(Kind::Sink, "t", "n", "a b");
    let whole = Unit {
        id: id.clone(),
        instance: None,
    };
    let one = Unit {
        id: id.clone(),
        instance: Some(3),
    };
    for key in [
        Key::Component(id),
        Key::Package("function://t/n/p@v 1".to_owned()),
        Key::Assignment(whole),
        Key::Assignment(one),
        Key::Drain("w".to_owned()),
        Key::Leader,
    ] {
        assert_eq!(Key::parse(&key.to_string()), Some(key));
    }
    assert_eq!(Key::parse("something else"), None);
}

#[test]
fn a_view_keeps_the_newest_of_a_key_and_garbage_is_left_alone() {
    let mut view = View::default();
    assert!(view.apply("assignment sink t/n/x:*", Some(br#"{"owner":"a"}"#)));
    assert!(view.apply("assignment sink t/n/x:*", Some(br#"{"owner":"b"}"#)));
    assert!(!view.apply("assignment sink t/n/x:*", Some(b"\x08\x01")));
    assert!(!view.apply("", Some(b"x")));
    let owners: Vec<&str> = view
        .assignments
        .values()
        .map(|a| a.owner.as_str())
        .collect();
    assert_eq!(owners, ["b"]);
    assert!(view.apply("assignment sink t/n/x:*", None));
    assert_eq!(view, View::default());
    // An old record, of before there were versions.
    let old = br#"{"component":{"kind":"sink","config":{"name":"x"}},"version":7}"#;
    assert!(view.apply("sink public/default/x", Some(old)));
    let record = view.components.values().next().expect("taken");
    let next = (0..9).fold(record.clone(), |record, _| {
        record.next(record.component.clone(), None)
    });
    assert_eq!((next.version, next.past.len()), (16, PAST_MAX));
    assert_eq!(next.past[0].version, 15);
}

#[test]
fn a_view_counts_what_it_would_write() {
    let mut view = View::default();
    let config = br#"{"component":{"kind":"sink","config":{"name":"x"}},"version":7}"#;
    for (key, value) in [
        ("sink public/default/x", &config[..]),
        ("assignment sink public/default/x:*", br#"{"owner":"a"}"#),
        ("assignment sink public/default/x:1", br#"{"owner":"a"}"#),
        ("drain w", b"5"),
    ] {
        assert!(view.apply(key, Some(value)), "{key}");
        assert_eq!(view.len(), view.records().len(), "{key}");
    }
    assert_eq!(view.len(), 5);
}

/// A catalogue on a broker whose wire can be held up, and the gate (shut is `false`).
async fn gated() -> (
    Catalog,
    tokio::sync::watch::Sender<bool>,
    geminga_stdx::Tasks,
) {
    use geminga_broker::{Broker, BrokerConfig};
    use geminga_client::transport::{Connecting, Io};
    use geminga_stdx::{Clock, Tasks};
    use geminga_storage::{ManagedConfig, Storage};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let tasks = Tasks::new();
    let storage = Storage::memory(ManagedConfig::default(), Clock::system(), &tasks);
    let storage = storage.await.expect("storage");
    let broker = Broker::start(BrokerConfig::default(), storage).await;
    let broker = broker.expect("broker");
    let (gate, opened) = tokio::sync::watch::channel(true);
    let wires = tasks.clone();
    let connector = move |_: &str| -> Connecting {
        let (own, far) = tokio::io::duplex(64 * 1024);
        let (mut from_client, mut to_client) = tokio::io::split(far);
        let (mut from_broker, mut to_broker) = tokio::io::split(broker.connect_in_process());
        let mut opened = opened.clone();
        wires.spawn_cancellable("wire up", async move {
            let mut bytes = vec![0; 16 * 1024];
            while let Ok(count @ 1..) = from_client.read(&mut bytes).await {
                let is_open = opened.wait_for(|opened| *opened).await.is_ok();
                if !is_open || to_broker.write_all(&bytes[..count]).await.is_err() {
                    return;
                }
            }
        });
        wires.spawn_cancellable("wire down", async move {
            let _ = tokio::io::copy(&mut from_broker, &mut to_client).await;
        });
        Box::pin(async move { Ok(Io::new(own)) })
    };
    let client = Client::builder("pulsar://in-process:6650")
        .connector(std::sync::Arc::new(connector))
        .build();
    let topic = "persistent://public/functions/metadata";
    let catalog = Catalog::open(&client, topic, 1000).await.expect("opened");
    let producer = client.producer(topic);
    let producer = producer
        .batching(Batching::off())
        .send_timeout(std::time::Duration::from_millis(200));
    let producer = producer.build().await.expect("a producer");
    catalog.write_by(Some(producer)).await;
    (catalog, gate, tasks)
}

#[tokio::test]
async fn a_record_that_nobody_waits_for_and_that_does_not_arrive_ends_the_term() {
    let (catalog, gate, tasks) = gated().await;
    let given = |owner: &str| {
        let unit = Unit {
            id: ComponentId::new(Kind::Sink, "t", "n", "x"),
            instance: None,
        };
        let value = Value::Assignment(Assignment {
            owner: owner.to_owned(),
            to: None,
        });
        (Key::Assignment(unit), value)
    };
    let (key, value) = given("a");
    catalog.put_soon(key, value).await.expect("on its way");
    catalog.confirm().await;
    assert!(catalog.is_written_here());
    gate.send_replace(false);
    let (key, value) = given("b");
    catalog.put_soon(key, value).await.expect("on its way");
    catalog.confirm().await;
    assert!(
        !catalog.is_written_here(),
        "its view is not what the topic says"
    );
    // Nor is anything else written before the topic was read anew.
    gate.send_replace(true);
    let (key, value) = given("c");
    let refused = catalog.put(key, value).await;
    assert!(
        matches!(refused, Err(WorkerError::NotLeader)),
        "{refused:?}"
    );
    tasks.cancel();
}

#[tokio::test]
async fn a_record_whose_fate_is_not_known_ends_the_term() {
    let (catalog, gate, tasks) = gated().await;
    gate.send_replace(false);
    let sent = catalog
        .put(Key::Drain("w".to_owned()), Value::Drain(1))
        .await;
    assert!(matches!(sent, Err(WorkerError::Client { .. })), "{sent:?}");
    assert!(!catalog.is_written_here());
    gate.send_replace(true);
    tasks.cancel();
}
