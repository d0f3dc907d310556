//! How a function, a source or a sink reads from and writes to topics: `ConsumerConfig`,
//! `ProducerConfig` and `CryptoConfig`, spelled as Pulsar spells them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config_struct::config_struct;

config_struct! {
    /// How one input topic is consumed: a value of `inputSpecs`.
    #[derive(Eq)]
    pub struct ConsumerConfig {
        /// A built-in schema name or a class.
        schema_type: String,
        /// A SerDe class; excludes `schemaType`.
        serde_class_name: String,
        /// The key of `inputSpecs` is a pattern. Pulsar writes `regexPattern`, its CLI prints
        /// `isRegexPattern`; both are read, the first is written.
        #[serde(alias = "isRegexPattern")]
        regex_pattern: bool,
        /// Properties of the schema.
        schema_properties: BTreeMap<String, String>,
        /// Raw consumer settings by the client's own names.
        consumer_properties: BTreeMap<String, String>,
        /// How many messages may wait in the consumer.
        receiver_queue_size: i32,
        /// Decryption.
        crypto_config: CryptoConfig,
        /// Whether message memory is pooled. A Java matter; it changes nothing a function sees.
        pool_messages: bool,
    }
}

config_struct! {
    /// How outputs are produced.
    #[derive(Eq)]
    pub struct ProducerConfig {
        /// How many messages may wait for their receipt.
        max_pending_messages: i32,
        /// The same over all partitions of the topic.
        max_pending_messages_across_partitions: i32,
        /// One producer a thread.
        use_thread_local_producers: bool,
        /// Encryption.
        crypto_config: CryptoConfig,
        /// How batches are built.
        batch_builder: BatchBuilder,
        /// How batches are compressed.
        compression_type: CompressionType,
    }
}

config_struct! {
    /// End to end encryption of payloads.
    #[derive(Eq)]
    pub struct CryptoConfig {
        /// The class that reads the keys.
        crypto_key_reader_class_name: String,
        /// Its settings.
        crypto_key_reader_config: Map<String, Value>,
        /// Names of the keys a producer encrypts with.
        encryption_keys: Vec<String>,
        /// What a producer does when it cannot encrypt.
        producer_crypto_failure_action: ProducerCryptoFailureAction,
        /// What a consumer does when it cannot decrypt.
        consumer_crypto_failure_action: ConsumerCryptoFailureAction,
    }
}

/// How a producer groups messages into batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum BatchBuilder {
    /// By arrival.
    #[default]
    Default,
    /// A batch holds one key only, as Key_Shared consumers need it.
    KeyBased,
}

/// How a batch is compressed. The default of a function's producer is `Lz4`, as in Pulsar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum CompressionType {
    /// Not at all.
    None,
    /// LZ4 block format.
    #[default]
    Lz4,
    /// zlib.
    Zlib,
    /// Zstandard.
    Zstd,
    /// Snappy.
    Snappy,
}

/// What a producer does when a payload cannot be encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ProducerCryptoFailureAction {
    /// Refuse the message.
    #[default]
    Fail,
    /// Send it in the clear.
    Send,
}

/// What a consumer does when a payload cannot be decrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ConsumerCryptoFailureAction {
    /// Stop.
    #[default]
    Fail,
    /// Acknowledge and drop.
    Discard,
    /// Deliver the encrypted bytes.
    Consume,
}
