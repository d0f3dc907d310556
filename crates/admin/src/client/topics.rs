//! Tenants, namespaces, topics and subscriptions.

use std::collections::BTreeMap;

use geminga_model::{NamespaceName, TopicDomain, TopicName};
use hyper::Method;
use serde_json::{Value, json};

use super::{AdminClient, ClientError, Reply, answer, segment};

/// A message id as the REST API writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MessageId {
    pub ledger_id: i64,
    pub entry_id: i64,
    #[serde(default = "no_index")]
    pub partition_index: i32,
    #[serde(default = "no_index")]
    pub batch_index: i32,
}

fn no_index() -> i32 {
    -1
}

impl MessageId {
    /// Before the first message.
    pub const EARLIEST: Self = Self::new(-1, -1);
    /// After the last message.
    pub const LATEST: Self = Self::new(i64::MAX, i64::MAX);

    #[must_use]
    pub const fn new(ledger_id: i64, entry_id: i64) -> Self {
        Self {
            ledger_id,
            entry_id,
            partition_index: -1,
            batch_index: -1,
        }
    }
}

/// The path of a topic.
fn topic_path(topic: &TopicName, rest: &str) -> String {
    format!(
        "/admin/v2/{}/{}/{}/{}{rest}",
        topic.domain(),
        segment(topic.tenant()),
        segment(topic.namespace_part()),
        segment(topic.local())
    )
}

fn subscription_path(topic: &TopicName, subscription: &str, rest: &str) -> String {
    topic_path(
        topic,
        &format!("/subscription/{}{rest}", segment(subscription)),
    )
}

fn namespace_path(namespace: &NamespaceName) -> String {
    format!(
        "/admin/v2/namespaces/{}/{}",
        segment(namespace.tenant()),
        segment(namespace.namespace())
    )
}

const NO_BODY: Option<&Value> = None;

/// All of these fail when the server refuses or is not there.
#[expect(clippy::missing_errors_doc, reason = "said once, above")]
impl AdminClient {
    pub async fn clusters(&self) -> Result<Vec<String>, ClientError> {
        self.get("/admin/v2/clusters").await
    }

    pub async fn tenants(&self) -> Result<Vec<String>, ClientError> {
        self.get("/admin/v2/tenants").await
    }

    pub async fn tenant(&self, tenant: &str) -> Result<Value, ClientError> {
        self.get(&format!("/admin/v2/tenants/{}", segment(tenant)))
            .await
    }

    pub async fn create_tenant(&self, tenant: &str, info: &Value) -> Result<(), ClientError> {
        let path = format!("/admin/v2/tenants/{}", segment(tenant));
        self.change(Method::PUT, &path, Some(info)).await.map(drop)
    }

    pub async fn delete_tenant(&self, tenant: &str, force: bool) -> Result<(), ClientError> {
        let path = format!(
            "/admin/v2/tenants/{}{}",
            segment(tenant),
            force_query(force)
        );
        self.act(Method::DELETE, &path).await
    }

    pub async fn namespaces(&self, tenant: &str) -> Result<Vec<String>, ClientError> {
        self.get(&format!("/admin/v2/namespaces/{}", segment(tenant)))
            .await
    }

    pub async fn namespace(&self, namespace: &NamespaceName) -> Result<Value, ClientError> {
        self.get(&namespace_path(namespace)).await
    }

    pub async fn create_namespace(&self, namespace: &NamespaceName) -> Result<(), ClientError> {
        self.change(Method::PUT, &namespace_path(namespace), NO_BODY)
            .await
            .map(drop)
    }

    pub async fn delete_namespace(
        &self,
        namespace: &NamespaceName,
        force: bool,
    ) -> Result<(), ClientError> {
        let path = format!("{}{}", namespace_path(namespace), force_query(force));
        self.act(Method::DELETE, &path).await
    }

    /// Topics that are not partitioned, and partitions.
    pub async fn topics(
        &self,
        domain: TopicDomain,
        namespace: &NamespaceName,
    ) -> Result<Vec<String>, ClientError> {
        let (tenant, ns) = (segment(namespace.tenant()), segment(namespace.namespace()));
        self.get(&format!("/admin/v2/{domain}/{tenant}/{ns}")).await
    }

    pub async fn partitioned_topics(
        &self,
        domain: TopicDomain,
        namespace: &NamespaceName,
    ) -> Result<Vec<String>, ClientError> {
        let (tenant, ns) = (segment(namespace.tenant()), segment(namespace.namespace()));
        self.get(&format!("/admin/v2/{domain}/{tenant}/{ns}/partitioned"))
            .await
    }

    pub async fn create_topic(
        &self,
        topic: &TopicName,
        properties: &BTreeMap<String, String>,
    ) -> Result<(), ClientError> {
        let body = (!properties.is_empty()).then_some(properties);
        self.change(Method::PUT, &topic_path(topic, ""), body)
            .await
            .map(drop)
    }

    pub async fn create_partitioned_topic(
        &self,
        topic: &TopicName,
        partitions: u32,
    ) -> Result<(), ClientError> {
        self.change(
            Method::PUT,
            &topic_path(topic, "/partitions"),
            Some(&partitions),
        )
        .await
        .map(drop)
    }

    pub async fn update_partitioned_topic(
        &self,
        topic: &TopicName,
        partitions: u32,
    ) -> Result<(), ClientError> {
        self.change(
            Method::POST,
            &topic_path(topic, "/partitions"),
            Some(&partitions),
        )
        .await
        .map(drop)
    }

    /// How many partitions a topic has; 0 when it is not partitioned.
    pub async fn partitions(&self, topic: &TopicName) -> Result<u32, ClientError> {
        #[derive(serde::Deserialize)]
        struct Metadata {
            partitions: u32,
        }
        let metadata: Metadata = self.get(&topic_path(topic, "/partitions")).await?;
        Ok(metadata.partitions)
    }

    pub async fn delete_topic(&self, topic: &TopicName, force: bool) -> Result<(), ClientError> {
        self.act(Method::DELETE, &topic_path(topic, force_query(force)))
            .await
    }

    pub async fn delete_partitioned_topic(
        &self,
        topic: &TopicName,
        force: bool,
    ) -> Result<(), ClientError> {
        let rest = format!("/partitions{}", force_query(force));
        self.act(Method::DELETE, &topic_path(topic, &rest)).await
    }

    /// One of the documents of a topic: `stats`, `partitioned-stats`, `internalStats`.
    pub async fn topic_report(&self, topic: &TopicName, what: &str) -> Result<Value, ClientError> {
        self.get(&topic_path(topic, &format!("/{what}"))).await
    }

    pub async fn last_message_id(&self, topic: &TopicName) -> Result<Value, ClientError> {
        self.topic_report(topic, "lastMessageId").await
    }

    /// Seals a topic; the id of its last message.
    pub async fn terminate_topic(&self, topic: &TopicName) -> Result<Value, ClientError> {
        let path = topic_path(topic, "/terminate");
        let reply = self.change(Method::POST, &path, NO_BODY).await?;
        answer(&path, &reply.body)
    }

    pub async fn unload_topic(&self, topic: &TopicName) -> Result<(), ClientError> {
        self.act(Method::PUT, &topic_path(topic, "/unload")).await
    }

    pub async fn subscriptions(&self, topic: &TopicName) -> Result<Vec<String>, ClientError> {
        self.get(&topic_path(topic, "/subscriptions")).await
    }

    pub async fn create_subscription(
        &self,
        topic: &TopicName,
        subscription: &str,
        at: MessageId,
        properties: &BTreeMap<String, String>,
    ) -> Result<(), ClientError> {
        let mut body = json!(at);
        if !properties.is_empty() {
            body["properties"] = json!(properties);
        }
        let path = subscription_path(topic, subscription, "");
        self.change(Method::PUT, &path, Some(&body)).await.map(drop)
    }

    pub async fn delete_subscription(
        &self,
        topic: &TopicName,
        subscription: &str,
        force: bool,
    ) -> Result<(), ClientError> {
        self.act(
            Method::DELETE,
            &subscription_path(topic, subscription, force_query(force)),
        )
        .await
    }

    pub async fn reset_by_time(
        &self,
        topic: &TopicName,
        subscription: &str,
        timestamp_ms: u64,
    ) -> Result<(), ClientError> {
        let rest = format!("/resetcursor/{timestamp_ms}");
        self.act(Method::POST, &subscription_path(topic, subscription, &rest))
            .await
    }

    pub async fn reset_by_id(
        &self,
        topic: &TopicName,
        subscription: &str,
        at: MessageId,
    ) -> Result<(), ClientError> {
        let path = subscription_path(topic, subscription, "/resetcursor");
        self.change(Method::POST, &path, Some(&at)).await.map(drop)
    }

    pub async fn skip(
        &self,
        topic: &TopicName,
        subscription: &str,
        messages: u32,
    ) -> Result<(), ClientError> {
        let rest = format!("/skip/{messages}");
        self.act(Method::POST, &subscription_path(topic, subscription, &rest))
            .await
    }

    pub async fn skip_all(&self, topic: &TopicName, subscription: &str) -> Result<(), ClientError> {
        self.act(
            Method::POST,
            &subscription_path(topic, subscription, "/skip_all"),
        )
        .await
    }

    pub async fn expire(
        &self,
        topic: &TopicName,
        subscription: &str,
        older_than_seconds: u64,
    ) -> Result<(), ClientError> {
        let rest = format!("/expireMessages/{older_than_seconds}");
        self.act(Method::POST, &subscription_path(topic, subscription, &rest))
            .await
    }

    /// The entry at a position of the backlog, counted from 1; metadata is in the headers.
    pub async fn peek(
        &self,
        topic: &TopicName,
        subscription: &str,
        position: u32,
    ) -> Result<Reply, ClientError> {
        let rest = format!("/position/{position}");
        self.send(
            Method::GET,
            &subscription_path(topic, subscription, &rest),
            None,
        )
        .await
    }
}

fn force_query(force: bool) -> &'static str {
    if force { "?force=true" } else { "" }
}
