//! Clusters in one process, joined by links that are cut, on stores that lose power.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use geminga_broker::{Broker, BrokerConfig, Policies, TenantInfo};
use geminga_client::transport::{Connecting, Io};
use geminga_client::{Batching, Message, MessageId};
use geminga_model::TopicName;
use geminga_stdx::{Clock, Random, Tasks};
use geminga_storage::ledger::memory::{MemoryImage, MemoryStore};
use geminga_storage::{ManagedConfig, State, Storage};
use tokio::io::copy_bidirectional;

use super::*;

const TOPIC: &str = "persistent://public/default/t";
const PATIENCE: Duration = Duration::from_secs(60);

/// Who can be reached under which name, and the links that are open.
#[derive(Default)]
struct Net {
    clusters: Mutex<HashMap<String, Broker>>,
    /// From whom to whom, and how to cut it.
    links: Mutex<Vec<(String, String, Tasks)>>,
}

impl Net {
    /// How one cluster (or a client, by another name) reaches all.
    fn connector(self: &Arc<Net>, from: &str) -> Arc<dyn Connector> {
        let (net, from) = (self.clone(), from.to_owned());
        Arc::new(move |address: &str| -> Connecting {
            let to = address.split(':').next().unwrap_or_default().to_owned();
            let broker = net.clusters.lock().get(&to).cloned();
            let (net, from) = (net.clone(), from.clone());
            Box::pin(async move {
                let Some(broker) = broker else {
                    return Err(std::io::ErrorKind::ConnectionRefused.into());
                };
                let mut theirs = broker.connect_in_process();
                let (ours, mut other) = tokio::io::duplex(64 << 10);
                let link = Tasks::new();
                link.spawn_cancellable("link", async move {
                    // It ends when either side does.
                    let _ = copy_bidirectional(&mut other, &mut theirs).await;
                });
                net.links.lock().push((from, to, link));
                Ok(Io::new(ours))
            })
        })
    }

    /// Cuts what is open between two, in this direction.
    fn cut(&self, from: &str, to: &str) {
        self.links.lock().retain(|(a, b, link)| {
            let is_this = a == from && b == to;
            if is_this {
                link.cancel();
            }
            !is_this
        });
    }
}

struct Cluster {
    name: &'static str,
    net: Arc<Net>,
    store: Arc<MemoryStore>,
    broker: Broker,
    tasks: Tasks,
}

impl Cluster {
    async fn start(net: &Arc<Net>, name: &'static str, image: MemoryImage) -> Cluster {
        let state = Arc::new(State::new());
        let store = MemoryStore::start(image, state.clone()).unwrap();
        let tasks = Tasks::new();
        let storage = Storage::on(
            store.clone(),
            state,
            ManagedConfig::default(),
            Clock::system(),
            &tasks,
        );
        let config = BrokerConfig {
            cluster_name: name.to_owned(),
            broker_deduplication_enabled: true,
            replication_producer_queue_size: 20,
            ..BrokerConfig::default()
        };
        let broker = Broker::start(config, storage.await.unwrap()).await.unwrap();
        net.clusters.lock().insert(name.to_owned(), broker.clone());
        broker.replicate_through(Arc::new(OtherClusters {
            connector: Some(net.connector(name)),
            ..OtherClusters::default()
        }));
        Cluster {
            name,
            net: net.clone(),
            store,
            broker,
            tasks,
        }
    }

    /// Power loss, and a start on what was durable.
    async fn crash(&mut self) {
        self.net.clusters.lock().remove(self.name);
        let image = self.store.crash(0);
        self.tasks.cancel();
        self.broker.stop(Duration::from_millis(20)).await;
        *self = Cluster::start(&self.net, self.name, image).await;
    }

    fn client(&self) -> Client {
        Client::builder(format!("pulsar://{}:6650", self.name))
            .connector(self.net.connector(&format!("client of {}", self.name)))
            .backoff(Duration::from_millis(5), Duration::from_millis(50))
            .build()
    }

    /// Makes the others known, and the namespace one of all.
    async fn replicate_to(&self, others: &[&str]) {
        let mut all = vec![self.name.to_owned()];
        for other in others {
            let data = ClusterData {
                broker_service_url: Some(format!("pulsar://{other}:6650")),
                ..ClusterData::default()
            };
            self.broker.create_cluster(other, &data).await.unwrap();
            all.push((*other).to_owned());
        }
        let tenant = TenantInfo {
            allowed_clusters: all.clone(),
            ..TenantInfo::default()
        };
        self.broker.update_tenant("public", tenant).await.unwrap();
        let namespace = "public/default".parse().unwrap();
        self.broker
            .check_replication(&namespace, &all)
            .await
            .unwrap();
        self.broker
            .update_policies(&namespace, |policies: &mut Policies| {
                policies.replication_clusters = Some(all.clone());
                Ok(())
            })
            .await
            .unwrap();
    }

    /// Everything in the topic, by who sent it; returns when each has `count` and no more is to come.
    async fn all_of(&self, senders: &[String], count: usize) -> HashMap<String, Vec<usize>> {
        let client = self.client();
        let reader = client.reader(TOPIC).start(MessageId::EARLIEST).build();
        let mut reader = reader.await.unwrap();
        let mut got: HashMap<String, Vec<usize>> = HashMap::new();
        let wanted = senders.len() * count;
        let mut total = 0;
        let deadline = Instant::now() + PATIENCE;
        while total < wanted {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(message) = tokio::time::timeout(left, reader.next()).await else {
                let counts: Vec<_> = got.iter().map(|(who, all)| (who, all.len())).collect();
                panic!("{}: {total} of {wanted} came: {counts:?}", self.name);
            };
            let message = message.unwrap();
            let text = String::from_utf8(message.payload.to_vec()).unwrap();
            let (who, number) = text.split_once(' ').unwrap();
            got.entry(who.to_owned())
                .or_default()
                .push(number.parse().unwrap());
            total += 1;
        }
        assert!(
            !reader.has_message_available().await.unwrap(),
            "{}: more came than was sent: {got:?}",
            self.name
        );
        got
    }

    async fn backlog(&self) -> u64 {
        let topic: TopicName = TOPIC.parse().unwrap();
        let stats = self.broker.topic_stats(&topic).await.unwrap();
        stats
            .replication
            .values()
            .map(|r| r.replication_backlog)
            .sum()
    }

    /// Until all others have confirmed all.
    async fn settled(&self) {
        let deadline = Instant::now() + PATIENCE;
        while self.backlog().await > 0 {
            assert!(Instant::now() < deadline, "{} has a backlog", self.name);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn check_all(got: &HashMap<String, Vec<usize>>, senders: &[String], count: usize) {
    let expected: Vec<usize> = (0..count).collect();
    for sender in senders {
        assert_eq!(got.get(sender), Some(&expected), "of {sender}");
    }
}

fn seed() -> u64 {
    let given = std::env::var("GEMINGA_SEED").ok();
    let seed = given
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| Random::from_entropy().next_u64());
    println!("GEMINGA_SEED={seed}");
    seed
}

/// Sends numbered messages from some producers, and cuts and crashes meanwhile.
async fn send_all(clusters: &mut [Cluster], count: usize, random: &mut Random) -> Vec<String> {
    let mut senders = Vec::new();
    let mut producers = Vec::new();
    for cluster in clusters.iter() {
        for number in 0..2 {
            let name = format!("{}{number}", cluster.name);
            let batching = match number {
                0 => Batching::off(),
                _ => Batching::default(),
            };
            let client = cluster.client();
            let producer = client
                .producer(TOPIC)
                .name(&name)
                .batching(batching)
                .build()
                .await
                .unwrap();
            producers.push((client, producer));
            senders.push(name);
        }
    }
    let mut next = vec![0; producers.len()];
    while next.iter().any(|sent| *sent < count) {
        let at = random.below(producers.len() as u64) as usize;
        let burst = (random.below(15) as usize + 1).min(count - next[at]);
        for number in next[at]..next[at] + burst {
            let message = Message::new(format!("{} {number}", senders[at]));
            producers[at].1.post(message).await.unwrap();
        }
        next[at] += burst;
        let names: Vec<&str> = clusters.iter().map(|cluster| cluster.name).collect();
        let one = |random: &mut Random| names[random.below(names.len() as u64) as usize];
        if random.one_in(6) {
            let (from, to) = (one(random), one(random));
            clusters[0].net.cut(from, to);
        }
        if random.one_in(40) {
            let victim = random.below(clusters.len() as u64) as usize;
            clusters[victim].crash().await;
        }
        // Lets the others run.
        tokio::time::sleep(Duration::from_millis(random.below(5))).await;
    }
    for (_, producer) in &producers {
        tokio::time::timeout(PATIENCE, producer.flush())
            .await
            .expect("all is confirmed")
            .unwrap();
    }
    senders
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_doubled_or_reordered_whatever_is_cut_or_killed() {
    let mut random = Random::new(seed());
    let net = Arc::new(Net::default());
    let a = Cluster::start(&net, "a", MemoryImage::default()).await;
    let b = Cluster::start(&net, "b", MemoryImage::default()).await;
    a.replicate_to(&["b"]).await;
    b.replicate_to(&["a"]).await;
    let mut clusters = [a, b];
    let senders = send_all(&mut clusters, 300, &mut random).await;
    for cluster in &clusters {
        cluster.settled().await;
    }
    for cluster in &clusters {
        check_all(&cluster.all_of(&senders, 300).await, &senders, 300);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_clusters_have_the_same_and_nothing_goes_round() {
    let mut random = Random::new(seed());
    let net = Arc::new(Net::default());
    let names = ["a", "b", "c"];
    let mut clusters = Vec::new();
    for name in names {
        let cluster = Cluster::start(&net, name, MemoryImage::default()).await;
        let others: Vec<&str> = names.into_iter().filter(|n| *n != name).collect();
        cluster.replicate_to(&others).await;
        clusters.push(cluster);
    }
    let senders = send_all(&mut clusters, 60, &mut random).await;
    for cluster in &clusters {
        cluster.settled().await;
    }
    for cluster in &clusters {
        check_all(&cluster.all_of(&senders, 60).await, &senders, 60);
        let topic: TopicName = TOPIC.parse().unwrap();
        let stats = cluster.broker.topic_stats(&topic).await.unwrap();
        assert_eq!(stats.replication.len(), 2);
        // Not that they are connected: a topic that only replicators use gives up its links.
        let is_done = |r: &geminga_broker::ReplicatorStats| r.replication_backlog == 0;
        assert!(stats.replication.values().all(is_done), "{stats:?}");
    }
}

#[tokio::test]
async fn a_cluster_that_is_taken_off_holds_nothing_back() {
    let net = Arc::new(Net::default());
    let a = Cluster::start(&net, "a", MemoryImage::default()).await;
    // There is no b yet: what is sent waits.
    a.replicate_to(&["b"]).await;
    let client = a.client();
    let producer = client.producer(TOPIC).build().await.unwrap();
    for number in 0..10 {
        producer
            .send(Message::new(format!("a {number}")))
            .await
            .unwrap();
    }
    assert_eq!(a.backlog().await, 10);
    let topic: TopicName = TOPIC.parse().unwrap();
    let stats = a.broker.topic_stats(&topic).await.unwrap();
    assert!(!stats.replication["b"].connected);
    let b = Cluster::start(&net, "b", MemoryImage::default()).await;
    a.settled().await;
    let senders = ["a".to_owned()];
    check_all(&b.all_of(&senders, 10).await, &senders, 10);

    net.clusters.lock().remove("b");
    net.cut("a", "b");
    producer.send("a 10").await.unwrap();
    assert_eq!(a.backlog().await, 1);
    let namespace = "public/default".parse().unwrap();
    a.broker
        .update_policies(&namespace, |policies: &mut Policies| {
            policies.replication_clusters = None;
            Ok(())
        })
        .await
        .unwrap();
    let stats = a.broker.topic_stats(&topic).await.unwrap();
    assert!(stats.replication.is_empty(), "{stats:?}");
    assert!(stats.subscriptions.is_empty(), "{stats:?}");
}

#[test]
fn what_the_other_cluster_lacks_is_made() {
    use Missing::{Nothing, Partitioned, Partitions, Topic};
    for (partition, here, there, expected) in [
        (None, None, Some(0), Some(Nothing)),
        (None, None, None, Some(Topic)),
        (None, None, Some(3), None),
        (Some(0), None, None, Some(Nothing)),
        (Some(2), Some(3), Some(3), Some(Nothing)),
        (Some(2), Some(3), Some(5), Some(Nothing)),
        (Some(2), Some(3), Some(2), Some(Partitions(3))),
        (Some(0), Some(3), Some(2), Some(Nothing)),
        (Some(0), Some(3), None, Some(Partitioned(3))),
        (Some(0), Some(3), Some(0), Some(Partitioned(3))),
    ] {
        let found = missing(partition, here, there).ok();
        assert_eq!(found, expected, "{partition:?} {here:?} {there:?}");
    }
}

#[test]
fn a_receipt_answers_what_was_sent() {
    let sent = |is_marker| Sent {
        position: Position::new(4, 7),
        sequence_id: 70,
        is_marker,
    };
    let receipt = |sequence_id, highest_sequence_id| RawReceipt {
        sequence_id,
        highest_sequence_id,
    };
    let min = Some(i64::MIN as u64);
    for (sent, receipt, by_source, fits) in [
        (sent(false), receipt(4, Some(7)), true, true),
        (sent(false), receipt(4, Some(8)), true, false),
        (sent(false), receipt(70, None), true, false),
        (sent(true), receipt(70, min), true, true),
        (sent(false), receipt(70, min), true, false),
        (sent(false), receipt(70, None), false, true),
        (sent(false), receipt(71, None), false, false),
    ] {
        assert_eq!(
            sent.is_confirmed_by(receipt, by_source),
            fits,
            "{receipt:?}"
        );
    }
}
