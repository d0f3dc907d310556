//! How this process reaches other clusters, to replicate topics there: an ordinary client of them.
//!
//! The broker says what is to be sent and keeps the window; here is the way: a client for each
//! cluster, the topic made there if need be, a producer, and the check that what is confirmed is what
//! was sent.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use geminga_admin::client::AdminClient;
use geminga_broker::{
    ClusterData, Outgoing, Promise, RemoteError, RemoteProducer, RemoteTopic, Remotes,
};
use geminga_client::{Client, Connector, RawMessage, RawProducer, RawReceipt};
use geminga_model::Position;
use geminga_proto::pb;
use parking_lot::Mutex;

/// Connections to one broker of another cluster.
const CONNECTIONS: usize = 4;

fn failed(error: impl std::fmt::Display) -> RemoteError {
    RemoteError(error.to_string())
}

/// The other clusters that were reached so far.
#[derive(Default)]
pub(crate) struct OtherClusters {
    /// In place of TCP.
    connector: Option<Arc<dyn Connector>>,
    clients: Mutex<HashMap<String, (ClusterData, Client)>>,
}

impl OtherClusters {
    /// The client of a cluster; another one when it is reached in another way than before.
    fn client(&self, cluster: &str, data: &ClusterData) -> Result<Client, RemoteError> {
        let mut clients = self.clients.lock();
        if let Some((known, client)) = clients.get(cluster)
            && known == data
        {
            return Ok(client.clone());
        }
        let Some(url) = &data.broker_service_url else {
            return Err(failed(format!(
                "cluster `{cluster}` has no `brokerServiceUrl`"
            )));
        };
        let mut builder = Client::builder(url).connections_per_broker(CONNECTIONS);
        if let Some(token) = data.token().map_err(RemoteError)? {
            builder = builder.token(token);
        }
        if let Some(listener) = &data.listener_name {
            builder = builder.listener_name(listener);
        }
        if let Some(connector) = &self.connector {
            builder = builder.connector(connector.clone());
        }
        let client = builder.try_build().map_err(failed)?;
        clients.insert(cluster.to_owned(), (data.clone(), client.clone()));
        Ok(client)
    }
}

impl Remotes for OtherClusters {
    fn connect(&self, to: RemoteTopic) -> Promise<'static, Box<dyn RemoteProducer>> {
        let client = self.client(&to.cluster, &to.data);
        Box::pin(async move {
            let client = client?;
            if to.create {
                make_topic(&client, &to).await?;
            }
            let opened = client
                .raw_producer(to.topic.as_str(), &to.producer_name)
                .await;
            let producer = opened.map_err(failed)?;
            let link = Link {
                by_source: producer.goes_by_source_position(),
                producer,
                under_way: VecDeque::new(),
            };
            Ok(Box::new(link) as Box<dyn RemoteProducer>)
        })
    }
}

/// What is missing there for a topic of ours.
#[derive(Debug, PartialEq, Eq)]
enum Missing {
    Nothing,
    Topic,
    Partitioned(u32),
    /// It has fewer partitions than here.
    Partitions(u32),
}

/// `partition` and `here` are the partition to be sent and how many there are; `there` is how many
/// there are in the other cluster, 0 for a topic without, none where there is no topic.
fn missing(
    partition: Option<u32>,
    here: Option<u32>,
    there: Option<u32>,
) -> Result<Missing, RemoteError> {
    match (partition, here, there) {
        (None, _, Some(0)) => Ok(Missing::Nothing),
        (None, _, Some(count)) => Err(failed(format!(
            "the topic has {count} partitions there and none here"
        ))),
        (None, _, None) => Ok(Missing::Topic),
        // A topic that is only named like a partition.
        (Some(_), None, _) => Ok(Missing::Nothing),
        (Some(partition), Some(_), Some(there)) if partition < there => Ok(Missing::Nothing),
        (Some(_), Some(here), Some(there)) if there > 0 => Ok(Missing::Partitions(here)),
        (Some(_), Some(here), _) => Ok(Missing::Partitioned(here)),
    }
}

/// Makes what the other cluster lacks, by its admin API.
async fn make_topic(client: &Client, to: &RemoteTopic) -> Result<(), RemoteError> {
    let parent = to.topic.parent();
    let there = client.partitions_if_exists(parent.as_str()).await;
    let lacks = missing(to.topic.partition(), to.partitions, there.map_err(failed)?)?;
    if lacks == Missing::Nothing {
        return Ok(());
    }
    let Some(url) = &to.data.service_url else {
        return match lacks {
            // The producer makes it, if the other cluster lets it.
            Missing::Topic => Ok(()),
            _ => Err(failed(format!(
                "cluster `{}` has no `serviceUrl`, by which partitions are made",
                to.cluster
            ))),
        };
    };
    let mut admin = AdminClient::new(url).map_err(failed)?;
    if let Some(token) = to.data.token().map_err(RemoteError)? {
        admin = admin.with_token(token);
    }
    let made = match lacks {
        Missing::Partitioned(count) => admin.create_partitioned_topic(&parent, count).await,
        Missing::Partitions(count) => admin.update_partitioned_topic(&parent, count).await,
        Missing::Topic | Missing::Nothing => {
            admin.create_topic(&to.topic, &Default::default()).await
        }
    };
    match made {
        // Another partition's replicator was first.
        Err(error) if error.status() == Some(409) => Ok(()),
        made => made.map_err(failed),
    }
}

/// An open way to a topic.
struct Link {
    producer: RawProducer,
    /// Whether receipts name places here, and not sequence ids.
    by_source: bool,
    under_way: VecDeque<Sent>,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    position: Position,
    sequence_id: u64,
    is_marker: bool,
}

impl Sent {
    fn is_confirmed_by(self, receipt: RawReceipt, by_source: bool) -> bool {
        match by_source {
            true if self.is_marker => receipt.highest_sequence_id == Some(i64::MIN as u64),
            true => {
                let (ledger, entry) = self.position.to_wire();
                (receipt.sequence_id, receipt.highest_sequence_id) == (ledger, Some(entry))
            }
            false => receipt.sequence_id == self.sequence_id,
        }
    }
}

impl RemoteProducer for Link {
    fn send(&mut self, message: Outgoing) {
        self.under_way.push_back(Sent {
            position: message.position,
            sequence_id: message.sequence_id,
            is_marker: message.is_marker,
        });
        self.producer.send(&RawMessage {
            sequence_id: message.sequence_id,
            highest_sequence_id: message.highest_sequence_id,
            num_messages: message.num_messages,
            is_chunk: message.is_chunk,
            is_marker: message.is_marker,
            headers: message.headers,
            payload: message.payload,
        });
    }

    fn confirmed(&mut self) -> Promise<'_, usize> {
        Box::pin(async move {
            let receipts = self.producer.receipts().await.map_err(failed)?;
            for receipt in &receipts {
                let sent = self.under_way.pop_front();
                let fits = |sent: Sent| sent.is_confirmed_by(*receipt, self.by_source);
                if !sent.is_some_and(fits) {
                    return Err(failed(format!("{receipt:?} answers {sent:?}")));
                }
            }
            Ok(receipts.len())
        })
    }

    fn register_schema(&mut self, schema: pb::Schema) -> Promise<'_, Bytes> {
        Box::pin(async move { self.producer.register_schema(schema).await.map_err(failed) })
    }
}

#[cfg(test)]
mod tests;
