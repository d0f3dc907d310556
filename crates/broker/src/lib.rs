//! The broker: connections, topics, subscriptions, dispatchers, namespaces.
//!
//! Speaks the Pulsar protocol to clients over TCP or an in-process pipe ([`Broker::listen`],
//! [`Broker::connect_in_process`]) and offers operators what REST and the command line need (the
//! other methods of [`Broker`]). All state is in the storage that it is started with.
//!
//! Reading order: `connection` (one task each) -> `topic` (one lock each: publish, dispatch) ->
//! `subscription` -> `dispatcher` (pure decisions). `broker` holds them together.

mod admin;
pub mod auth;
mod broker;
mod budget;
pub mod bundle;
mod config;
mod connection;
mod consumer;
mod dispatcher;
mod error;
mod lookup;
mod metrics;
mod namespace;
mod outbox;
mod peer;
mod policies;
mod producer;
mod rate;
mod replication;
mod resource_group;
mod schema;
mod settings;
mod subscription;
mod time;
mod timers;
mod tls;
mod topic;
mod topic_list;
mod transaction;

pub use admin::placement::{FailoverPolicy, FailureDomain, IsolationPolicy, ResourceQuota};
pub use admin::subscriptions::BacklogFigures;
pub use admin::transactions::{CoordinatorStats, TopicTransactions, TransactionInfo};
pub use admin::{PeekedEntry, SubscribeAt};
pub use broker::Broker;
pub use config::{BrokerConfig, ReplicationStart, SubscriptionType, TopicType};
pub use error::{BrokerError, ErrorKind};
pub use lookup::{BindAddress, Scheme, ServiceUrls};
pub use metrics::{MetricsSnapshot, ReplicatorMetrics, SubscriptionMetrics, TopicMetrics};
pub use namespace::{Partitioned, TenantInfo, stored_topic_name};
pub use policies::{
    AutoTopicCreation, BacklogQuota, BacklogQuotaAction, BacklogQuotaType, DelayedDelivery,
    DispatchRate, EffectivePolicies, InactiveTopicDeleteMode, InactiveTopicPolicies, Persistence,
    Policies, PublishRate, Retention, SchemaAutoUpdateStrategy, SchemaCompatibilityStrategy,
    SubscribeRate,
};
pub use replication::remote::{
    ClusterData, Outgoing, Promise, RemoteError, RemoteProducer, RemoteTopic, Remotes,
};
pub use resource_group::ResourceGroup;
pub use schema::{StoredSchema, type_name as schema_type_name, type_number as schema_type_number};
pub use settings::DYNAMIC as DYNAMIC_SETTINGS;
pub use tls::Tls;
pub use topic::compaction::run::{CompactionState, CompactionStats, CompactionStatus};
pub use topic::stats::{
    CompactedLedger, ConsumerStats, CursorStats, LedgerStats, PublisherStats, ReplicatorStats,
    SubscriptionStats, TopicInternalStats, TopicStats,
};
