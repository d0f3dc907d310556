//! What the tests share.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::TryStreamExt;
use pulsar::consumer::{InitialPosition, Message};
use pulsar::{
    Consumer, ConsumerBuilder, ConsumerOptions, OperationRetryOptions, Producer, Pulsar, SubType,
    TokioExecutor,
};

pub type Outcome = Result<(), Box<dyn Error + Send + Sync>>;
pub type Given<T> = Result<T, Box<dyn Error + Send + Sync>>;
pub type Client = Pulsar<TokioExecutor>;
pub type Texts = Consumer<String, TokioExecutor>;

const PATIENCE: Duration = Duration::from_secs(15);

#[derive(Clone)]
pub struct Test {
    pub name: &'static str,
    pub run: fn() -> Pin<Box<dyn Future<Output = Outcome>>>,
}

/// Lists functions as tests.
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        pub fn tests() -> Vec<crate::support::Test> {
            vec![$(crate::support::Test { name: stringify!($name), run: || Box::pin($name()) }),*]
        }
    };
}
pub(crate) use tests;

/// Fails the test with both values.
macro_rules! same {
    ($left:expr, $right:expr) => {{
        match (&$left, &$right) {
            (left, right) if left != right => {
                return Err(format!("line {}: {left:?} instead of {right:?}", line!()).into());
            }
            _ => {}
        }
    }};
}
pub(crate) use same;

pub async fn client() -> Given<Client> {
    let url = std::env::var("SERVICE_URL").map_err(|_| "set SERVICE_URL")?;
    // By itself it asks again for ever where a name or the topic is taken.
    let retry = OperationRetryOptions {
        operation_timeout: PATIENCE,
        retry_delay: Duration::from_millis(200),
        max_retries: Some(3),
    };
    let builder = Pulsar::builder(url, TokioExecutor).with_operation_retry_options(retry);
    Ok(builder.build().await?)
}

/// A topic that nobody used before.
pub fn topic(name: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!(
        "persistent://public/default/rust-{name}-{}-{count}",
        std::process::id()
    )
}

pub async fn producer(client: &Client, topic: &str) -> Given<Producer<TokioExecutor>> {
    Ok(client.producer().with_topic(topic).build().await?)
}

pub fn from_the_start() -> ConsumerOptions {
    ConsumerOptions::default().with_initial_position(InitialPosition::Earliest)
}

pub fn subscribing(client: &Client, topic: &str, kind: SubType) -> ConsumerBuilder<TokioExecutor> {
    client
        .consumer()
        .with_topic(topic)
        .with_subscription("mine")
        .with_subscription_type(kind)
        .with_options(from_the_start())
}

pub async fn subscribe(client: &Client, topic: &str, kind: SubType) -> Given<Texts> {
    Ok(subscribing(client, topic, kind).build().await?)
}

pub async fn next(consumer: &mut Texts) -> Given<Message<String>> {
    match tokio::time::timeout(PATIENCE, consumer.try_next()).await {
        Ok(Ok(Some(message))) => Ok(message),
        Ok(Ok(None)) => Err("the consumer has ended".into()),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err("no message came".into()),
    }
}

/// Receives and acknowledges.
pub async fn texts(consumer: &mut Texts, count: usize) -> Given<Vec<String>> {
    let mut texts = Vec::new();
    for _ in 0..count {
        let message = next(consumer).await?;
        consumer.ack(&message).await?;
        texts.push(message.deserialize()?);
    }
    Ok(texts)
}

pub async fn nothing_more(consumer: &mut Texts) -> Outcome {
    match tokio::time::timeout(Duration::from_millis(300), consumer.try_next()).await {
        Err(_) => Ok(()),
        Ok(Ok(Some(message))) => Err(format!("unexpected {:?}", message.deserialize()).into()),
        Ok(other) => Err(format!("the consumer has ended: {:?}", other.err()).into()),
    }
}

pub async fn send(producer: &mut Producer<TokioExecutor>, texts: &[&str]) -> Outcome {
    for text in texts {
        producer.send_non_blocking(*text).await?.await?;
    }
    Ok(())
}
