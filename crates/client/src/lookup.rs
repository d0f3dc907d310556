//! Finding things: the partitions of a topic, the broker of a topic, the topics of a namespace.

use std::time::Duration;

use geminga_model::name::TopicName;
use geminga_proto::{Command, pb};
use tokio::time::Instant;

use crate::client::{Shared, broker_address};
use crate::error::{Error, Result};

/// Redirects followed in one lookup.
const REDIRECTS_MAX: u32 = 20;

/// The broker that owns a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Broker {
    pub(crate) address: String,
    /// It is reached through the service URL (a proxy, or a standalone that knows itself only by
    /// its loopback address).
    pub(crate) through_service_url: bool,
}

impl Broker {
    /// The broker that another broker told us to go to.
    pub(crate) fn assigned(url: &str) -> Option<Self> {
        let address = broker_address(url).ok()?;
        Some(Self {
            address,
            through_service_url: false,
        })
    }
}

impl Shared {
    /// Tries an operation until it works, fails for good, or its time is over.
    pub(crate) async fn retry<T, F: Future<Output = Result<T>>>(
        &self,
        attempt: impl FnMut() -> F,
    ) -> Result<T> {
        self.retry_for(self.operation_timeout, attempt).await
    }

    /// The same with a time of its own.
    pub(crate) async fn retry_for<T, F: Future<Output = Result<T>>>(
        &self,
        time: std::time::Duration,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T> {
        let deadline = Instant::now() + time;
        // A broker that starts refuses for a while: who doubles the delay for as long as that would
        // sleep through the second half of its time, and end with an error beside a broker that is up.
        let longest = time / 10;
        let mut backoff = self.new_backoff();
        loop {
            let error = match attempt().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let delay = backoff.next_delay().min(longest);
            if !error.is_retriable() || Instant::now() + delay >= deadline {
                return Err(error);
            }
            tracing::debug!(%error, ?delay, "trying again");
            self.sleep(delay).await?;
        }
    }

    /// Sleeps, unless the client is closed.
    pub(crate) async fn sleep(&self, delay: Duration) -> Result<()> {
        tokio::select! {
            () = tokio::time::sleep(delay) => Ok(()),
            () = self.tasks.cancelled() => Err(Error::Closed),
        }
    }

    /// The number of partitions; 0 when the topic is not partitioned.
    pub(crate) async fn partitions(&self, topic: &TopicName) -> Result<u32> {
        if topic.partition().is_some() {
            return Ok(0);
        }
        self.retry(|| async {
            let connection = self.any_connection().await?;
            let answer = connection
                .request("partition metadata", |request_id| {
                    pb::CommandPartitionedTopicMetadata {
                        topic: topic.as_str().to_owned(),
                        request_id,
                        ..Default::default()
                    }
                    .into()
                })
                .await?;
            match answer {
                Command::PartitionedMetadataResponse(answer) => Ok(answer.partitions()),
                other => Err(Error::UnexpectedAnswer(other.name())),
            }
        })
        .await
    }

    /// The topics that a producer or consumer of `topic` works on: its partitions, or itself.
    pub(crate) async fn partitions_of(&self, topic: &TopicName) -> Result<Vec<TopicName>> {
        Ok(match self.partitions(topic).await? {
            0 => vec![topic.clone()],
            count => (0..count)
                .map(|number| topic.with_partition(number))
                .collect(),
        })
    }

    /// The broker of a topic; one attempt.
    pub(crate) async fn lookup(&self, topic: &TopicName) -> Result<Broker> {
        let mut connection = self.any_connection().await?;
        let mut authoritative = false;
        for _ in 0..=REDIRECTS_MAX {
            let answer = connection
                .request("lookup", |request_id| {
                    pb::CommandLookupTopic {
                        topic: topic.as_str().to_owned(),
                        request_id,
                        authoritative: Some(authoritative),
                        advertised_listener_name: self.listener_name.clone(),
                        ..Default::default()
                    }
                    .into()
                })
                .await?;
            let Command::LookupResponse(answer) = answer else {
                return Err(Error::UnexpectedAnswer(answer.name()));
            };
            let url = match self.is_tls() {
                true => answer.broker_service_url_tls(),
                false => answer.broker_service_url(),
            };
            if self.is_tls() && url.is_empty() {
                return Err(Error::Url {
                    url: answer.broker_service_url().to_owned(),
                    reason: "is all that the broker says of itself: it names no address with TLS",
                });
            }
            let broker = Broker {
                address: broker_address(url)?,
                through_service_url: answer.proxy_through_service_url(),
            };
            if answer.response() != pb::command_lookup_topic_response::LookupType::Redirect {
                return Ok(broker);
            }
            authoritative = answer.authoritative();
            connection = self.broker_connection(&broker, 0).await?;
        }
        Err(Error::TooManyRedirects {
            topic: topic.to_string(),
            redirects: REDIRECTS_MAX,
        })
    }

    /// The topics of a namespace; `pattern` may narrow them, but the broker may ignore it.
    pub(crate) async fn topics_of_namespace(
        &self,
        namespace: &str,
        mode: pb::command_get_topics_of_namespace::Mode,
        pattern: Option<&str>,
    ) -> Result<Vec<String>> {
        self.retry(|| async {
            let connection = self.any_connection().await?;
            let answer = connection
                .request("topics of namespace", |request_id| {
                    pb::CommandGetTopicsOfNamespace {
                        request_id,
                        namespace: namespace.to_owned(),
                        mode: Some(mode as i32),
                        topics_pattern: pattern.map(str::to_owned),
                        ..Default::default()
                    }
                    .into()
                })
                .await?;
            match answer {
                Command::GetTopicsOfNamespaceResponse(answer) => Ok(answer.topics),
                other => Err(Error::UnexpectedAnswer(other.name())),
            }
        })
        .await
    }
}
