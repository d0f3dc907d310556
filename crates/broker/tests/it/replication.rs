//! The receiving end of replication, and a sending end whose other cluster is played by the test.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use geminga_broker::{
    BrokerConfig, ClusterData, Outgoing, Policies, Promise, RemoteError, RemoteProducer,
    RemoteTopic, Remotes, SubscribeAt, TenantInfo,
};
use geminga_model::TopicName;
use geminga_proto::Command;
use geminga_proto::command::key_values;
use geminga_proto::message::decode_metadata;
use geminga_proto::pb::command_subscribe::SubType;
use geminga_proto::pb::{
    CommandConnect, CommandProducer, FeatureFlags, MessageMetadata, Schema, ServerError,
};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::server::{Server, eventually};
use crate::wire::{TOPIC, Wire, metadata, subscribe};

const REPLICATOR: &str = "pulsar.repl.there-->standalone";
const MARKER: u64 = i64::MIN as u64;

async fn connect(server: &Server, by_source: bool) -> Wire {
    let mut wire = server.connect_raw();
    wire.send(CommandConnect {
        client_version: "replicator".to_owned(),
        protocol_version: Some(21),
        feature_flags: Some(FeatureFlags {
            supports_repl_dedup_by_lid_and_eid: Some(by_source),
            ..FeatureFlags::default()
        }),
        ..CommandConnect::default()
    })
    .await;
    let Command::Connected(connected) = wire.next().await.0 else {
        panic!("not let in");
    };
    let flags = connected.feature_flags.unwrap();
    assert!(flags.supports_repl_dedup_by_lid_and_eid());
    wire
}

async fn send_at(wire: &mut Wire, ledger: u64, entry: u64, text: &str) {
    let at = format!("{ledger}:{entry}");
    let metadata = MessageMetadata {
        replicated_from: Some("there".to_owned()),
        properties: key_values([("__MSG_PROP_REPL_SOURCE_POSITION", at.as_str())]),
        // Sequence ids of the message's own producer mean nothing here.
        ..metadata(1)
    };
    wire.publish_with(1, metadata, text.as_bytes()).await;
}

/// What the receipt names, and whether it was a repeat.
async fn receipt(wire: &mut Wire) -> (u64, Option<u64>, bool) {
    let receipt = wire.receipt().await;
    let is_repeat = receipt.message_id.unwrap().ledger_id == u64::MAX;
    (receipt.sequence_id, receipt.highest_sequence_id, is_repeat)
}

#[tokio::test]
async fn a_replicators_messages_are_told_by_their_place_over_restarts() {
    let config = || BrokerConfig {
        broker_deduplication_enabled: true,
        broker_deduplication_entries_interval: 3,
        max_producers_per_topic: 1,
        ..BrokerConfig::default()
    };
    let mut server = Server::with(config()).await;
    let mut consumer = server.connect().await;
    consumer.subscribe(subscribe(1, "s", SubType::Shared)).await;
    let mut local = server.connect().await;
    // The only producer that there may be; a replicator does not count.
    local.producer(TOPIC, 1, Some("p")).await;
    local.publish(1, 1, "ours").await;
    assert_eq!(receipt(&mut local).await, (1, None, false));
    let mut expected = vec!["ours".to_owned()];
    for round in 0..4u64 {
        let mut wire = connect(&server, true).await;
        wire.producer(TOPIC, 1, Some(REPLICATOR)).await;
        // Again from some way back, as after a cut; ledgers of the source change.
        for number in 0..(round + 1) * 5 {
            let (ledger, entry) = (7 + number / 4, number % 4);
            let text = format!("{number}");
            send_at(&mut wire, ledger, entry, &text).await;
            let is_repeat = number < round * 5;
            assert_eq!(receipt(&mut wire).await, (ledger, Some(entry), is_repeat));
            if !is_repeat {
                expected.push(text);
            }
        }
        server = server.crash_and_restart(config()).await;
    }
    let mut consumer = server.connect().await;
    consumer.subscribe(subscribe(1, "s", SubType::Shared)).await;
    consumer.flow(1, 1_000).await;
    assert_eq!(consumer.texts(expected.len()).await, expected);
    consumer.quiet().await;
}

#[tokio::test]
async fn markers_are_confirmed_apart_and_a_message_without_a_place_is_refused() {
    let server = Server::new().await;
    let mut wire = connect(&server, true).await;
    wire.producer(TOPIC, 1, Some(REPLICATOR)).await;
    let marker = MessageMetadata {
        marker_type: Some(10),
        replicated_from: Some("there".to_owned()),
        ..metadata(0)
    };
    wire.publish_with(1, marker, b"x").await;
    assert_eq!(receipt(&mut wire).await, (0, Some(MARKER), false));
    send_at(&mut wire, 3, 4, "message").await;
    assert_eq!(receipt(&mut wire).await, (3, Some(4), false));
    wire.publish(1, 9, "no place").await;
    let code = wire
        .find(|command, _| match command {
            Command::SendError(error) => Some(error.error),
            _ => None,
        })
        .await;
    assert_eq!(code, ServerError::PersistenceError as i32);
    // One of an older Pulsar is answered by sequence ids, and nothing is taken for a repeat.
    let mut old = connect(&server, false).await;
    old.producer(TOPIC, 1, Some("pulsar.repl.old-->standalone"))
        .await;
    for _ in 0..2 {
        old.publish(1, 5, "twice").await;
        assert_eq!(receipt(&mut old).await, (5, None, false));
    }
}

/// Another cluster, whose side the test plays.
#[derive(Default)]
struct There {
    opened: Mutex<Vec<RemoteTopic>>,
    /// Everything that came, and the schemas.
    came: Mutex<Vec<(Outgoing, MessageMetadata)>>,
    schemas: Mutex<Vec<Schema>>,
    /// Messages that are confirmed before the way breaks.
    lives: Mutex<VecDeque<usize>>,
}

struct Ways(Arc<There>);

struct Way {
    there: Arc<There>,
    left: Option<usize>,
    confirm: mpsc::Sender<()>,
    confirmed: mpsc::Receiver<()>,
}

impl Remotes for Ways {
    fn connect(&self, to: RemoteTopic) -> Promise<'static, Box<dyn RemoteProducer>> {
        let there = self.0.clone();
        Box::pin(async move {
            let left = there.lives.lock().pop_front();
            there.opened.lock().push(to);
            if left == Some(0) {
                return Err(RemoteError("nobody there".to_owned()));
            }
            let (confirm, confirmed) = mpsc::channel(10_000);
            let way = Way {
                there,
                left,
                confirm,
                confirmed,
            };
            Ok(Box::new(way) as Box<dyn RemoteProducer>)
        })
    }
}

impl RemoteProducer for Way {
    fn send(&mut self, message: Outgoing) {
        if let Some(left) = &mut self.left {
            if *left == 0 {
                return;
            }
            *left -= 1;
        }
        let mut block = message.headers.to_vec();
        block.extend_from_slice(&message.payload);
        let metadata = decode_metadata(&block).unwrap();
        self.there.came.lock().push((message, metadata));
        self.confirm.try_send(()).unwrap();
    }

    fn confirmed(&mut self) -> Promise<'_, usize> {
        Box::pin(async {
            if self.left == Some(0) && self.confirmed.is_empty() {
                return Err(RemoteError("cut".to_owned()));
            }
            self.confirmed.recv().await;
            Ok(1)
        })
    }

    fn register_schema(&mut self, schema: Schema) -> Promise<'_, Bytes> {
        let mut schemas = self.there.schemas.lock();
        schemas.push(schema);
        let version = 100 + schemas.len() as u64;
        Box::pin(async move { Ok(Bytes::copy_from_slice(&version.to_be_bytes())) })
    }
}

impl There {
    fn texts(&self) -> Vec<String> {
        let came = self.came.lock();
        let text = |m: &Outgoing| String::from_utf8(m.payload.to_vec()).unwrap();
        came.iter().map(|(message, _)| text(message)).collect()
    }
}

async fn replicated(server: &Server, there: &Arc<There>) {
    let broker = &server.broker;
    let both = vec!["standalone".to_owned(), "there".to_owned()];
    let data = ClusterData::default();
    broker.create_cluster("there", &data).await.unwrap();
    let tenant = TenantInfo {
        allowed_clusters: both.clone(),
        ..TenantInfo::default()
    };
    broker.update_tenant("public", tenant).await.unwrap();
    let namespace = "public/default".parse().unwrap();
    broker
        .update_policies(&namespace, |policies: &mut Policies| {
            policies.replication_clusters = Some(both.clone());
            Ok(())
        })
        .await
        .unwrap();
    broker.replicate_through(Arc::new(Ways(there.clone())));
}

async fn backlog(server: &Server) -> u64 {
    let topic: TopicName = TOPIC.parse().unwrap();
    let stats = server.broker.topic_stats(&topic).await.unwrap();
    stats.replication["there"].replication_backlog
}

#[tokio::test]
async fn what_was_not_confirmed_is_sent_again_and_a_restart_goes_on() {
    let there = Arc::new(There::default());
    there.lives.lock().extend([0, 3, 0, 2]);
    let mut server = Server::new().await;
    replicated(&server, &there).await;
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, Some("p")).await;
    let texts: Vec<String> = (0..10).map(|n| n.to_string()).collect();
    let all: Vec<&str> = texts.iter().map(String::as_str).collect();
    wire.publish_all(1, &all).await;
    eventually("all came", async || {
        (backlog(&server).await == 0).then_some(())
    })
    .await;
    assert_eq!(there.texts(), texts, "no way confirmed less than came");
    let opened = there.opened.lock().clone();
    assert!(opened.len() >= 5);
    assert_eq!(opened[0].producer_name, "pulsar.repl.standalone-->there");
    assert!(opened[0].create && opened[0].partitions.is_none());
    {
        let came = there.came.lock();
        let (message, metadata) = &came[4];
        assert_eq!(metadata.replicated_from.as_deref(), Some("standalone"));
        assert_eq!(
            (metadata.producer_name.as_str(), metadata.sequence_id),
            ("p", 4)
        );
        let (ledger, entry) = message.position.to_wire();
        assert_eq!(metadata.properties[0].value, format!("{ledger}:{entry}"));
    }
    // Nobody is there at a crash; what came in before goes out afterwards, though no client comes.
    there.lives.lock().extend([0, 0, 0, 0]);
    server.broker.unload(&TOPIC.parse().unwrap()).await.unwrap();
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, Some("p")).await;
    wire.publish(1, 10, "10").await;
    wire.receipt().await;
    server = server.crash_and_restart(BrokerConfig::default()).await;
    let ways = Arc::new(Ways(there.clone()));
    server.broker.replicate_through(ways);
    eventually("the last came", async || {
        there.texts().ends_with(&["10".to_owned()]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_is_not_for_the_other_cluster_is_no_backlog() {
    let there = Arc::new(There::default());
    let server = Server::new().await;
    replicated(&server, &there).await;
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, Some("p")).await;
    for (sequence, change) in (0..).zip([
        (|m: &mut MessageMetadata| m.replicate_to = vec!["__local__".to_owned()])
            as fn(&mut MessageMetadata),
        |m| m.replicated_from = Some("elsewhere".to_owned()),
        |m| m.replicate_to = vec!["other".to_owned()],
        |m| m.replicate_to = vec!["other".to_owned(), "there".to_owned()],
        |_| {},
        |m| m.replicate_to = vec!["__local__".to_owned()],
    ]) {
        let mut metadata = metadata(sequence);
        change(&mut metadata);
        wire.publish_with(1, metadata, sequence.to_string().as_bytes())
            .await;
        wire.receipt().await;
    }
    eventually("no backlog", async || {
        (backlog(&server).await == 0).then_some(())
    })
    .await;
    assert_eq!(there.texts(), ["3", "4"]);
}

#[tokio::test]
async fn schemas_are_registered_once_and_named_as_they_are_there() {
    let there = Arc::new(There::default());
    let server = Server::new().await;
    replicated(&server, &there).await;
    let mut wire = server.connect().await;
    let schema = Schema {
        name: "t".to_owned(),
        r#type: 1,
        ..Schema::default()
    };
    let success = wire.try_producer(CommandProducer {
        topic: TOPIC.to_owned(),
        producer_id: 1,
        producer_name: Some("p".to_owned()),
        schema: Some(schema.clone()),
        ..CommandProducer::default()
    });
    let version = success.await.unwrap().schema_version;
    for sequence in 0..3 {
        let metadata = MessageMetadata {
            schema_version: version.clone().filter(|_| sequence < 2),
            ..metadata(sequence)
        };
        wire.publish_with(1, metadata, b"x").await;
        wire.receipt().await;
    }
    eventually("all came", async || {
        (there.came.lock().len() == 3).then_some(())
    })
    .await;
    let schemas = there.schemas.lock();
    assert_eq!(schemas.len(), 1);
    assert_eq!(schemas[0].r#type, schema.r#type);
    let theirs = Some(Bytes::copy_from_slice(&101u64.to_be_bytes()));
    let came = there.came.lock();
    let versions: Vec<_> = came.iter().map(|(_, m)| m.schema_version.clone()).collect();
    assert_eq!(versions, [theirs.clone(), theirs, None]);
}

#[tokio::test]
async fn of_transactions_only_what_was_committed_is_sent_on() {
    let there = Arc::new(There::default());
    let server = Server::new().await;
    replicated(&server, &there).await;
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, Some("p")).await;
    let (committed, aborted) = (wire.begin(60_000).await, wire.begin(60_000).await);
    for txn in [committed, aborted] {
        wire.add_partition(txn, TOPIC).await.unwrap();
    }
    wire.publish(1, 0, "before").await;
    wire.receipt().await;
    wire.send_in(committed, 1, 1, "committed").await.unwrap();
    wire.send_in(aborted, 1, 2, "aborted").await.unwrap();
    wire.publish(1, 3, "after").await;
    wire.receipt().await;
    eventually("what is before the transactions came", async || {
        (there.texts() == ["before"]).then_some(())
    })
    .await;
    assert_eq!(backlog(&server).await, 3);
    wire.abort(aborted).await;
    wire.commit(committed).await;
    eventually("the rest came", async || {
        (backlog(&server).await == 0).then_some(())
    })
    .await;
    assert_eq!(there.texts(), ["before", "committed", "after"]);
    let came = there.came.lock();
    assert!(came.iter().all(|(_, m)| m.txnid_least_bits.is_none()));
}

#[tokio::test]
async fn what_another_cluster_lacks_is_kept_until_it_expires() {
    let there = Arc::new(There::default());
    there.lives.lock().extend([0; 1_000]);
    let server = Server::new().await;
    replicated(&server, &there).await;
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, Some("p")).await;
    // Published long ago, as far as their clock says.
    wire.publish_all(1, &["a", "b", "c"]).await;
    server.broker.run_checks().await;
    assert_eq!(backlog(&server).await, 3, "no subscription, and yet kept");
    let namespace = "public/default".parse().unwrap();
    server
        .broker
        .update_policies(&namespace, |policies: &mut Policies| {
            policies.message_ttl_seconds = Some(60);
            Ok(())
        })
        .await
        .unwrap();
    server.broker.run_checks().await;
    assert_eq!(backlog(&server).await, 0);
    let topic: TopicName = TOPIC.parse().unwrap();
    let stats = server.broker.topic_stats(&topic).await.unwrap();
    assert_eq!(stats.replication["there"].msg_expired_count, 3);
    assert!(there.came.lock().is_empty());
}

#[tokio::test]
async fn the_cursor_of_another_cluster_is_nobodys_subscription() {
    let there = Arc::new(There::default());
    let server = Server::new().await;
    replicated(&server, &there).await;
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, Some("p")).await;
    let topic: TopicName = TOPIC.parse().unwrap();
    for _ in 0..2 {
        let names = server.broker.subscriptions(&topic).await.unwrap();
        assert!(names.is_empty(), "{names:?}");
        let taken = server.broker.create_subscription(
            &topic,
            "pulsar.repl.there",
            SubscribeAt::Earliest,
            Default::default(),
        );
        let error = taken.await.unwrap_err().to_string();
        assert!(error.contains("reserved"), "{error}");
        // Loaded again, its cursors are found in the store.
        server.broker.unload(&topic).await.unwrap();
    }
}

#[tokio::test]
async fn a_topic_that_nobody_uses_gives_up_its_way_and_takes_it_up_again() {
    let there = Arc::new(There::default());
    let config = BrokerConfig {
        geminga_topic_idle_millis: 100,
        ..BrokerConfig::default()
    };
    let server = Server::with(config).await;
    replicated(&server, &there).await;
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, Some("p")).await;
    // What another cluster's replicator holds open is no use of its own.
    let mut other = connect(&server, true).await;
    other.producer(TOPIC, 1, Some(REPLICATOR)).await;
    let is_connected = async || {
        let topic: TopicName = TOPIC.parse().unwrap();
        let stats = server.broker.topic_stats(&topic).await.unwrap();
        stats.replication["there"].connected
    };
    eventually("there is a way", async || {
        is_connected().await.then_some(())
    })
    .await;
    let ways = there.opened.lock().len();
    drop(wire);
    eventually("it is given up", async || {
        (!is_connected().await).then_some(())
    })
    .await;
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, Some("p")).await;
    wire.publish(1, 0, "again").await;
    wire.receipt().await;
    eventually("it came", async || {
        (there.texts() == ["again"]).then_some(())
    })
    .await;
    assert!(there.opened.lock().len() > ways);
}

#[tokio::test]
async fn a_replicator_sends_no_faster_than_its_rate() {
    let there = Arc::new(There::default());
    let server = Server::new().await;
    replicated(&server, &there).await;
    let namespace = TOPIC.parse::<TopicName>().unwrap().namespace();
    let limit = |policies: &mut Policies| {
        policies.replicator_dispatch_rate = Some(geminga_broker::DispatchRate {
            dispatch_throttling_rate_in_msg: 20,
            ..geminga_broker::DispatchRate::default()
        });
        Ok(())
    };
    let limited = server.broker.update_policies(&namespace, limit);
    limited.await.unwrap();
    let began = std::time::Instant::now();
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, Some("p")).await;
    wire.publish_all(1, &["x"; 50]).await;
    eventually("all came", async || {
        (there.texts().len() == 50).then_some(())
    })
    .await;
    // A burst of 20, and 30 more.
    assert!(began.elapsed() >= std::time::Duration::from_millis(1_400));
}
