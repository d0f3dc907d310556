//! What each command of the wire needs, and how each is refused. The match has no other arm: a new
//! command does not compile before it has a rule.

use geminga_model::TopicName;
use geminga_proto::Command;
use geminga_proto::command::{NO_REQUEST, error};
use geminga_proto::pb::command_lookup_topic_response::LookupType;
use geminga_proto::pb::command_partitioned_topic_metadata_response::LookupType as PartitionsResult;
use geminga_proto::pb::{
    CommandAddPartitionToTxnResponse, CommandAddSubscriptionToTxnResponse,
    CommandEndTxnOnPartitionResponse, CommandEndTxnOnSubscriptionResponse,
    CommandGetOrCreateSchemaResponse, CommandGetSchemaResponse, CommandLookupTopicResponse,
    CommandPartitionedTopicMetadataResponse,
};

use super::decision::{Action, Need, SEE};
use crate::error::BrokerError;

/// What a command needs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum CommandNeed {
    /// Acts on nothing, or on what this connection opened: that was asked for then.
    Nothing,
    /// Of these names, one of these actions.
    Topics(Vec<String>, &'static [Action]),
    /// To produce, and to consume with a subscription that is to be made.
    ProduceFor(String, String),
    /// Topics and subscriptions.
    Subscriptions(Vec<(String, String)>),
    Namespace(String),
    SuperUser,
}

const PRODUCE: &[Action] = &[Action::Produce];

pub(crate) fn need_of(command: &Command) -> CommandNeed {
    let topic = |name: &str, actions| CommandNeed::Topics(vec![name.to_owned()], actions);
    match command {
        Command::PartitionedMetadata(request) => topic(&request.topic, SEE),
        Command::Lookup(request) => topic(&request.topic, SEE),
        Command::GetSchema(request) => topic(&request.topic, SEE),
        Command::GetOrCreateSchema(request) => topic(&request.topic, PRODUCE),
        Command::Producer(request) => match request.initial_subscription_name.as_deref() {
            None | Some("") => topic(&request.topic, PRODUCE),
            Some(name) => CommandNeed::ProduceFor(request.topic.clone(), name.to_owned()),
        },
        Command::Subscribe(request) => CommandNeed::Subscriptions(vec![(
            request.topic.clone(),
            request.subscription.clone(),
        )]),
        Command::GetTopicsOfNamespace(request) => {
            CommandNeed::Namespace(request.namespace.clone())
        }
        Command::WatchTopicList(request) => CommandNeed::Namespace(request.namespace.clone()),
        Command::AddPartitionToTxn(request) => {
            CommandNeed::Topics(request.partitions.clone(), PRODUCE)
        }
        Command::AddSubscriptionToTxn(request) => {
            let pairs = request.subscription.iter();
            let pair = |it: &geminga_proto::pb::Subscription| {
                (it.topic.clone(), it.subscription.clone())
            };
            CommandNeed::Subscriptions(pairs.map(pair).collect())
        }
        // What brokers say to each other.
        Command::EndTxnOnPartition(_) | Command::EndTxnOnSubscription(_) => CommandNeed::SuperUser,
        // Of the connection itself.
        Command::Connect(_)
        | Command::Ping(_)
        | Command::Pong(_)
        | Command::AuthResponse(_)
        // On producers, consumers and watchers that the connection opened.
        | Command::Send(_)
        | Command::CloseProducer(_)
        | Command::CloseConsumer(_)
        | Command::Unsubscribe(_)
        | Command::Flow(_)
        | Command::Ack(_)
        | Command::RedeliverUnacknowledgedMessages(_)
        | Command::Seek(_)
        | Command::GetLastMessageId(_)
        | Command::ConsumerStats(_)
        | Command::WatchTopicListClose(_)
        // A transaction touches nothing before its partitions and subscriptions are added; the
        // coordinator knows whose it is.
        | Command::TcClientConnectRequest(_)
        | Command::NewTxn(_)
        | Command::EndTxn(_)
        // What only a broker sends; refused as such.
        | Command::Connected(_)
        | Command::SendReceipt(_)
        | Command::SendError(_)
        | Command::Message(_)
        | Command::Success(_)
        | Command::Error(_)
        | Command::ProducerSuccess(_)
        | Command::PartitionedMetadataResponse(_)
        | Command::LookupResponse(_)
        | Command::ConsumerStatsResponse(_)
        | Command::ReachedEndOfTopic(_)
        | Command::GetLastMessageIdResponse(_)
        | Command::ActiveConsumerChange(_)
        | Command::GetTopicsOfNamespaceResponse(_)
        | Command::GetSchemaResponse(_)
        | Command::AuthChallenge(_)
        | Command::AckResponse(_)
        | Command::GetOrCreateSchemaResponse(_)
        | Command::NewTxnResponse(_)
        | Command::AddPartitionToTxnResponse(_)
        | Command::AddSubscriptionToTxnResponse(_)
        | Command::EndTxnResponse(_)
        | Command::EndTxnOnPartitionResponse(_)
        | Command::EndTxnOnSubscriptionResponse(_)
        | Command::TcClientConnectResponse(_)
        | Command::WatchTopicListSuccess(_)
        | Command::WatchTopicUpdate(_)
        | Command::TopicMigrated(_)
        | Command::Unknown(_) => CommandNeed::Nothing,
    }
}

impl CommandNeed {
    /// Asks `check` about each of the needs. A name that is none is left to the command: it says so.
    pub(crate) fn each(
        &self,
        mut check: impl FnMut(&Need<'_>) -> Result<(), BrokerError>,
    ) -> Result<(), BrokerError> {
        let parse = |name: &str| name.parse::<TopicName>().ok();
        match self {
            CommandNeed::Nothing => Ok(()),
            CommandNeed::SuperUser => check(&Need::SuperUser),
            CommandNeed::Namespace(namespace) => check(&Need::Namespace {
                namespace,
                actions: SEE,
            }),
            CommandNeed::ProduceFor(name, subscription) => match parse(name) {
                Some(topic) => {
                    check(&Need::Topic {
                        topic: &topic,
                        actions: PRODUCE,
                    })?;
                    check(&Need::Subscription {
                        topic: &topic,
                        subscription,
                    })
                }
                None => Ok(()),
            },
            CommandNeed::Topics(names, actions) => names
                .iter()
                .filter_map(|name| parse(name))
                .try_for_each(|topic| {
                    check(&Need::Topic {
                        topic: &topic,
                        actions,
                    })
                }),
            CommandNeed::Subscriptions(pairs) => {
                pairs.iter().try_for_each(|(name, of)| match parse(name) {
                    Some(topic) => check(&Need::Subscription {
                        topic: &topic,
                        subscription: of,
                    }),
                    None => Ok(()),
                })
            }
        }
    }
}

/// The refusal of a command, in its own form.
pub(crate) fn refusal_of(command: &Command, reason: &BrokerError) -> Command {
    let (code, text) = (reason.server_error(), reason.to_string());
    let (number, message) = (Some(code as i32), Some(text.clone()));
    match command {
        Command::Lookup(request) => CommandLookupTopicResponse {
            request_id: request.request_id,
            response: Some(LookupType::Failed as i32),
            error: number,
            message,
            ..CommandLookupTopicResponse::default()
        }
        .into(),
        Command::PartitionedMetadata(request) => CommandPartitionedTopicMetadataResponse {
            request_id: request.request_id,
            response: Some(PartitionsResult::Failed as i32),
            error: number,
            message,
            ..CommandPartitionedTopicMetadataResponse::default()
        }
        .into(),
        Command::GetSchema(request) => CommandGetSchemaResponse {
            request_id: request.request_id,
            error_code: number,
            error_message: message,
            ..CommandGetSchemaResponse::default()
        }
        .into(),
        Command::GetOrCreateSchema(request) => CommandGetOrCreateSchemaResponse {
            request_id: request.request_id,
            error_code: number,
            error_message: message,
            ..CommandGetOrCreateSchemaResponse::default()
        }
        .into(),
        Command::AddPartitionToTxn(request) => CommandAddPartitionToTxnResponse {
            request_id: request.request_id,
            txnid_least_bits: request.txnid_least_bits,
            txnid_most_bits: request.txnid_most_bits,
            error: number,
            message,
        }
        .into(),
        Command::AddSubscriptionToTxn(request) => CommandAddSubscriptionToTxnResponse {
            request_id: request.request_id,
            txnid_least_bits: request.txnid_least_bits,
            txnid_most_bits: request.txnid_most_bits,
            error: number,
            message,
        }
        .into(),
        Command::EndTxnOnPartition(request) => CommandEndTxnOnPartitionResponse {
            request_id: request.request_id,
            txnid_least_bits: request.txnid_least_bits,
            txnid_most_bits: request.txnid_most_bits,
            error: number,
            message,
        }
        .into(),
        Command::EndTxnOnSubscription(request) => CommandEndTxnOnSubscriptionResponse {
            request_id: request.request_id,
            txnid_least_bits: request.txnid_least_bits,
            txnid_most_bits: request.txnid_most_bits,
            error: number,
            message,
        }
        .into(),
        Command::Producer(request) => error(request.request_id, code, text),
        Command::Subscribe(request) => error(request.request_id, code, text),
        Command::GetTopicsOfNamespace(request) => error(request.request_id, code, text),
        Command::WatchTopicList(request) => error(request.request_id, code, text),
        _ => error(NO_REQUEST, code, text),
    }
}
