//! The commands by name: which type number carries which message.
//!
//! A `BaseCommand` on the wire is a type and one sub-message. The generated struct for it has room
//! for all 58 at once (kilobytes), so commands are decoded straight into [`Command`] and encoded
//! straight from it; the generated struct serves only for oddities and as the reference in tests.

use bytes::BufMut;
use prost::Message;

use crate::error::FrameError;
use crate::pb;
use crate::pb::*;
use crate::required;
use crate::wire::{Fields, Value, put_varint, put_varint_field, varint_len};

/// Names every command once: type number (which is also its field in `BaseCommand`), variant,
/// message, field, name on the wire.
macro_rules! commands {
    ($($number:literal => $variant:ident($message:ident, $field:ident, $name:literal),)*) => {
        /// One command with its content.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Command {
            $($variant($message),)*
            /// A type that this version does not know; Pulsar's rule is to skip it.
            Unknown(i32),
        }

        $(impl From<$message> for Command {
            fn from(message: $message) -> Self {
                Command::$variant(message)
            }
        })*

        impl Command {
            /// The name of a type number in Pulsar's words.
            pub fn name_of(number: i32) -> &'static str {
                match number {
                    $($number => $name,)*
                    _ => "UNKNOWN",
                }
            }

            /// The number in the field `type`.
            pub fn number(&self) -> i32 {
                match self {
                    $(Command::$variant(_) => $number,)*
                    Command::Unknown(number) => *number,
                }
            }

            /// Decodes the body of a known type.
            fn decode_body(number: i32, body: &[u8]) -> Result<Command, FrameError> {
                Ok(match number {
                    $($number => Command::$variant($message::decode(body)?),)*
                    _ => Command::Unknown(number),
                })
            }

            fn from_base(base: BaseCommand) -> Result<Command, FrameError> {
                match base.r#type {
                    $($number => match base.$field {
                        Some(message) => Ok(Command::$variant(message)),
                        None => Err(FrameError::MissingBody { name: $name }),
                    },)*
                    number => Ok(Command::Unknown(number)),
                }
            }

            fn body_len(&self) -> usize {
                match self {
                    $(Command::$variant(message) => message.encoded_len(),)*
                    Command::Unknown(_) => 0,
                }
            }

            fn encode_body(&self, out: &mut impl BufMut) {
                match self {
                    $(Command::$variant(message) => message.encode_raw(out),)*
                    Command::Unknown(_) => {}
                }
            }

            /// As the generated struct; for tests and for tools that print commands.
            pub fn into_base(self) -> BaseCommand {
                let number = self.number();
                let mut base = BaseCommand { r#type: number, ..BaseCommand::default() };
                match self {
                    $(Command::$variant(message) => base.$field = Some(message),)*
                    Command::Unknown(_) => {}
                }
                base
            }
        }
    };
}

commands! {
    2 => Connect(CommandConnect, connect, "CONNECT"),
    3 => Connected(CommandConnected, connected, "CONNECTED"),
    4 => Subscribe(CommandSubscribe, subscribe, "SUBSCRIBE"),
    5 => Producer(CommandProducer, producer, "PRODUCER"),
    6 => Send(CommandSend, send, "SEND"),
    7 => SendReceipt(CommandSendReceipt, send_receipt, "SEND_RECEIPT"),
    8 => SendError(CommandSendError, send_error, "SEND_ERROR"),
    9 => Message(CommandMessage, message, "MESSAGE"),
    10 => Ack(CommandAck, ack, "ACK"),
    11 => Flow(CommandFlow, flow, "FLOW"),
    12 => Unsubscribe(CommandUnsubscribe, unsubscribe, "UNSUBSCRIBE"),
    13 => Success(CommandSuccess, success, "SUCCESS"),
    14 => Error(CommandError, error, "ERROR"),
    15 => CloseProducer(CommandCloseProducer, close_producer, "CLOSE_PRODUCER"),
    16 => CloseConsumer(CommandCloseConsumer, close_consumer, "CLOSE_CONSUMER"),
    17 => ProducerSuccess(CommandProducerSuccess, producer_success, "PRODUCER_SUCCESS"),
    18 => Ping(CommandPing, ping, "PING"),
    19 => Pong(CommandPong, pong, "PONG"),
    20 => RedeliverUnacknowledgedMessages(CommandRedeliverUnacknowledgedMessages, redeliver_unacknowledged_messages, "REDELIVER_UNACKNOWLEDGED_MESSAGES"),
    21 => PartitionedMetadata(CommandPartitionedTopicMetadata, partition_metadata, "PARTITIONED_METADATA"),
    22 => PartitionedMetadataResponse(CommandPartitionedTopicMetadataResponse, partition_metadata_response, "PARTITIONED_METADATA_RESPONSE"),
    23 => Lookup(CommandLookupTopic, lookup_topic, "LOOKUP"),
    24 => LookupResponse(CommandLookupTopicResponse, lookup_topic_response, "LOOKUP_RESPONSE"),
    25 => ConsumerStats(CommandConsumerStats, consumer_stats, "CONSUMER_STATS"),
    26 => ConsumerStatsResponse(CommandConsumerStatsResponse, consumer_stats_response, "CONSUMER_STATS_RESPONSE"),
    27 => ReachedEndOfTopic(CommandReachedEndOfTopic, reached_end_of_topic, "REACHED_END_OF_TOPIC"),
    28 => Seek(CommandSeek, seek, "SEEK"),
    29 => GetLastMessageId(CommandGetLastMessageId, get_last_message_id, "GET_LAST_MESSAGE_ID"),
    30 => GetLastMessageIdResponse(CommandGetLastMessageIdResponse, get_last_message_id_response, "GET_LAST_MESSAGE_ID_RESPONSE"),
    31 => ActiveConsumerChange(CommandActiveConsumerChange, active_consumer_change, "ACTIVE_CONSUMER_CHANGE"),
    32 => GetTopicsOfNamespace(CommandGetTopicsOfNamespace, get_topics_of_namespace, "GET_TOPICS_OF_NAMESPACE"),
    33 => GetTopicsOfNamespaceResponse(CommandGetTopicsOfNamespaceResponse, get_topics_of_namespace_response, "GET_TOPICS_OF_NAMESPACE_RESPONSE"),
    34 => GetSchema(CommandGetSchema, get_schema, "GET_SCHEMA"),
    35 => GetSchemaResponse(CommandGetSchemaResponse, get_schema_response, "GET_SCHEMA_RESPONSE"),
    36 => AuthChallenge(CommandAuthChallenge, auth_challenge, "AUTH_CHALLENGE"),
    37 => AuthResponse(CommandAuthResponse, auth_response, "AUTH_RESPONSE"),
    38 => AckResponse(CommandAckResponse, ack_response, "ACK_RESPONSE"),
    39 => GetOrCreateSchema(CommandGetOrCreateSchema, get_or_create_schema, "GET_OR_CREATE_SCHEMA"),
    40 => GetOrCreateSchemaResponse(CommandGetOrCreateSchemaResponse, get_or_create_schema_response, "GET_OR_CREATE_SCHEMA_RESPONSE"),
    50 => NewTxn(CommandNewTxn, new_txn, "NEW_TXN"),
    51 => NewTxnResponse(CommandNewTxnResponse, new_txn_response, "NEW_TXN_RESPONSE"),
    52 => AddPartitionToTxn(CommandAddPartitionToTxn, add_partition_to_txn, "ADD_PARTITION_TO_TXN"),
    53 => AddPartitionToTxnResponse(CommandAddPartitionToTxnResponse, add_partition_to_txn_response, "ADD_PARTITION_TO_TXN_RESPONSE"),
    54 => AddSubscriptionToTxn(CommandAddSubscriptionToTxn, add_subscription_to_txn, "ADD_SUBSCRIPTION_TO_TXN"),
    55 => AddSubscriptionToTxnResponse(CommandAddSubscriptionToTxnResponse, add_subscription_to_txn_response, "ADD_SUBSCRIPTION_TO_TXN_RESPONSE"),
    56 => EndTxn(CommandEndTxn, end_txn, "END_TXN"),
    57 => EndTxnResponse(CommandEndTxnResponse, end_txn_response, "END_TXN_RESPONSE"),
    58 => EndTxnOnPartition(CommandEndTxnOnPartition, end_txn_on_partition, "END_TXN_ON_PARTITION"),
    59 => EndTxnOnPartitionResponse(CommandEndTxnOnPartitionResponse, end_txn_on_partition_response, "END_TXN_ON_PARTITION_RESPONSE"),
    60 => EndTxnOnSubscription(CommandEndTxnOnSubscription, end_txn_on_subscription, "END_TXN_ON_SUBSCRIPTION"),
    61 => EndTxnOnSubscriptionResponse(CommandEndTxnOnSubscriptionResponse, end_txn_on_subscription_response, "END_TXN_ON_SUBSCRIPTION_RESPONSE"),
    62 => TcClientConnectRequest(CommandTcClientConnectRequest, tc_client_connect_request, "TC_CLIENT_CONNECT_REQUEST"),
    63 => TcClientConnectResponse(CommandTcClientConnectResponse, tc_client_connect_response, "TC_CLIENT_CONNECT_RESPONSE"),
    64 => WatchTopicList(CommandWatchTopicList, watch_topic_list, "WATCH_TOPIC_LIST"),
    65 => WatchTopicListSuccess(CommandWatchTopicListSuccess, watch_topic_list_success, "WATCH_TOPIC_LIST_SUCCESS"),
    66 => WatchTopicUpdate(CommandWatchTopicUpdate, watch_topic_update, "WATCH_TOPIC_UPDATE"),
    67 => WatchTopicListClose(CommandWatchTopicListClose, watch_topic_list_close, "WATCH_TOPIC_LIST_CLOSE"),
    68 => TopicMigrated(CommandTopicMigrated, topic_migrated, "TOPIC_MIGRATED"),
}

impl Command {
    /// The name of this command in Pulsar's words, for logs and errors.
    pub fn name(&self) -> &'static str {
        Self::name_of(self.number())
    }

    /// Decodes an encoded `BaseCommand`. Fields that do not belong to its type are skipped.
    pub fn decode(bytes: &[u8]) -> Result<Command, FrameError> {
        match scan(bytes)? {
            Scan::Plain { number, body } if Self::name_of(number) != "UNKNOWN" => match body {
                Some(body) => {
                    let command = Self::decode_body(number, body)?;
                    required::check_command(number, body)?;
                    Ok(command)
                }
                None => Err(FrameError::MissingBody {
                    name: Self::name_of(number),
                }),
            },
            Scan::Plain { number, .. } => Ok(Command::Unknown(number)),
            Scan::Odd => {
                let command = Self::from_base(BaseCommand::decode(bytes)?)?;
                required::check_command(command.number(), &required::body_of(&command, bytes)?)?;
                Ok(command)
            }
        }
    }

    /// The length of this command as an encoded `BaseCommand`.
    pub fn encoded_len(&self) -> usize {
        let number = self.number() as i64 as u64;
        let mut len = 1 + varint_len(number);
        if !matches!(self, Command::Unknown(_)) {
            let body = self.body_len();
            len += varint_len(number << 3) + varint_len(body as u64) + body;
        }
        len
    }

    /// Appends this command as an encoded `BaseCommand`, without a frame around it.
    pub fn encode(&self, out: &mut impl BufMut) {
        let number = self.number() as i64 as u64;
        put_varint_field(out, 1, number);
        if !matches!(self, Command::Unknown(_)) {
            put_varint(out, number << 3 | 2);
            put_varint(out, self.body_len() as u64);
            self.encode_body(out);
        }
    }
}

/// What the top level of a `BaseCommand` holds.
pub(crate) enum Scan<'a> {
    Plain {
        number: i32,
        body: Option<&'a [u8]>,
    },
    /// Fields come twice or in an order that needs protobuf's merge rules.
    Odd,
}

/// Finds the type of a command and the bytes of its body, if they come in the usual order: the
/// type first (every client writes fields by number).
#[inline]
pub(crate) fn scan(bytes: &[u8]) -> Result<Scan<'_>, FrameError> {
    let mut fields = Fields::new(bytes);
    let number = match fields.next()? {
        Some((1, Value::Varint(number))) => number as i32,
        _ => return Ok(Scan::Odd),
    };
    let mut body = None;
    while let Some((field, value)) = fields.next()? {
        match value {
            Value::Bytes(bytes) if i64::from(field) == i64::from(number) && body.is_none() => {
                body = Some(bytes);
            }
            // A body of another type, or one that comes twice.
            _ => return Ok(Scan::Odd),
        }
    }
    Ok(Scan::Plain { number, body })
}

/// `request_id` of commands that answer no request.
pub const NO_REQUEST: u64 = u64::MAX;

/// A failure as an `ERROR` command.
pub fn error(request_id: u64, error: ServerError, message: impl Into<String>) -> Command {
    CommandError {
        request_id,
        error: error as i32,
        message: message.into(),
    }
    .into()
}

/// A plain `SUCCESS`.
pub fn success(request_id: u64) -> Command {
    CommandSuccess {
        request_id,
        schema: None,
    }
    .into()
}

/// `PING`.
pub fn ping() -> Command {
    pb::CommandPing {}.into()
}

/// `PONG`.
pub fn pong() -> Command {
    pb::CommandPong {}.into()
}

/// Pairs of text as Pulsar's list of `KeyValue`.
pub fn key_values<K: Into<String>, V: Into<String>>(
    pairs: impl IntoIterator<Item = (K, V)>,
) -> Vec<KeyValue> {
    pairs
        .into_iter()
        .map(|(key, value)| KeyValue {
            key: key.into(),
            value: value.into(),
        })
        .collect()
}

#[cfg(test)]
mod tests;
