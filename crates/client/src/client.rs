//! The client: settings, the pool of connections, and the ids that all its producers and
//! consumers share.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use geminga_model::name::TopicName;
use geminga_proto::pb;
use geminga_stdx::{Backoff, Clock, Random, Tasks};
use parking_lot::Mutex;

use crate::connection::{Connection, Hello};
use crate::consumer::{ConsumerBuilder, Selection, Topics, Wanted};
use crate::error::{Error, Result};
use crate::producer::ProducerBuilder;
use crate::reader::ReaderBuilder;
use crate::tls::{Tls, TlsSettings};
use crate::transaction::Coordinators;
use crate::transport::{Connector, Tcp, TcpWithTls};

/// Where Pulsar listens by default.
const DEFAULT_PORT: u16 = 6650;
/// The same with TLS.
const DEFAULT_PORT_TLS: u16 = 6651;

/// Speaks to a Pulsar cluster. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("addresses", &self.shared.addresses)
            .finish_non_exhaustive()
    }
}

/// Settings of a [`Client`].
#[derive(Clone)]
pub struct ClientBuilder {
    service_url: String,
    connector: Option<Arc<dyn Connector>>,
    token: Option<String>,
    tls: Option<Tls>,
    operation_timeout: Duration,
    keep_alive: Duration,
    backoff_first: Duration,
    backoff_max: Duration,
    connections_per_broker: usize,
    listener_name: Option<String>,
}

impl std::fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientBuilder")
            .field("service_url", &self.service_url)
            .finish_non_exhaustive()
    }
}

impl ClientBuilder {
    /// How connections are made; by TCP unless set.
    #[must_use]
    pub fn connector(mut self, connector: Arc<dyn Connector>) -> Self {
        self.connector = Some(connector);
        self
    }

    /// Authenticate with this token.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// How to speak TLS with a service URL of `pulsar+ssl://`; unless set, whom this machine trusts is trusted. A
    /// certificate says who this client is where no token does.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// How long a lookup, a subscription or another operation may take, attempts included; 30 s.
    #[must_use]
    pub fn operation_timeout(mut self, limit: Duration) -> Self {
        self.operation_timeout = limit;
        self
    }

    /// A connection that is silent for twice this is given up; 30 s.
    #[must_use]
    pub fn keep_alive(mut self, interval: Duration) -> Self {
        self.keep_alive = interval;
        self
    }

    /// Delays between attempts to come back grow from `first` to `max`; 100 ms to 60 s.
    #[must_use]
    pub fn backoff(mut self, first: Duration, max: Duration) -> Self {
        (self.backoff_first, self.backoff_max) = (first, max);
        self
    }

    /// Connections to one broker; 1. Producers and consumers are spread over them.
    #[must_use]
    pub fn connections_per_broker(mut self, count: usize) -> Self {
        self.connections_per_broker = count.max(1);
        self
    }

    /// The broker's listener to ask for in lookups.
    #[must_use]
    pub fn listener_name(mut self, name: impl Into<String>) -> Self {
        self.listener_name = Some(name.into());
        self
    }

    /// The client. Nothing is connected yet.
    ///
    /// # Errors
    /// When the service URL is not `pulsar://host[:port][,host[:port]]...`, or `pulsar+ssl://` in its place and
    /// nothing is trusted.
    pub fn try_build(mut self) -> Result<Client> {
        let addresses = self.addresses()?;
        Ok(Client {
            shared: Arc::new(Shared::new(self, addresses)),
        })
    }

    /// The client; a wrong service URL becomes the error of the first operation.
    #[must_use]
    pub fn build(mut self) -> Client {
        let addresses = self.addresses();
        let (addresses, error) = match addresses {
            Ok(addresses) => (addresses, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        let mut shared = Shared::new(self, addresses);
        shared.url_error = error;
        Client {
            shared: Arc::new(shared),
        }
    }

    /// The addresses of the service URL. TLS is made ready where it asks for that.
    fn addresses(&mut self) -> Result<Vec<String>> {
        let Service { addresses, is_tls } = parse_service_url(&self.service_url)?;
        match is_tls {
            false => self.tls = None,
            true if self.tls.is_some() => {}
            // A connector that somebody brings makes its own.
            true if self.connector.is_some() => {}
            true => self.tls = Some(Tls::new(&TlsSettings::default())?),
        }
        Ok(addresses)
    }
}

impl Client {
    /// Settings of a client of the brokers at `service_url`.
    pub fn builder(service_url: impl Into<String>) -> ClientBuilder {
        ClientBuilder {
            service_url: service_url.into(),
            connector: None,
            token: None,
            tls: None,
            operation_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(30),
            backoff_first: Duration::from_millis(100),
            backoff_max: Duration::from_secs(60),
            connections_per_broker: 1,
            listener_name: None,
        }
    }

    /// Connects to a broker now rather than with the first operation, and gives up after `within`.
    ///
    /// # Errors
    /// When the service URL is wrong or no broker answers in time.
    pub async fn connect(&self, within: Duration) -> Result<()> {
        let connected = self
            .shared
            .retry_for(within, || async { self.shared.any_connection().await });
        match tokio::time::timeout(within, connected).await {
            Ok(connected) => connected.map(drop),
            Err(_) => Err(Error::Timeout {
                what: "connect",
                after_ms: within.as_millis() as u64,
            }),
        }
    }

    /// What the broker that answers first calls itself, such as `Pulsar Server4.0.8`.
    ///
    /// # Errors
    /// When the service URL is wrong or no broker answers in time.
    pub async fn server_version(&self) -> Result<String> {
        let limit = self.shared.operation_timeout;
        let connection = self
            .shared
            .retry_for(limit, || async { self.shared.any_connection().await })
            .await?;
        Ok(connection.server_version().to_owned())
    }

    /// Settings of a producer to a topic, partitioned or not.
    pub fn producer(&self, topic: impl Into<String>) -> ProducerBuilder {
        ProducerBuilder::new(self.shared.clone(), topic.into())
    }

    /// Settings of a consumer of one topic, several, or a pattern ([`Topics::pattern`]).
    pub fn consumer(&self, topics: impl Into<Topics>) -> ConsumerBuilder {
        ConsumerBuilder::new(self.shared.clone(), topics.into())
    }

    /// Settings of a reader of a topic, partitioned or not.
    pub fn reader(&self, topic: impl Into<String>) -> ReaderBuilder {
        ReaderBuilder::new(self, topic.into())
    }

    /// How many partitions a topic has; 0 when it is not partitioned.
    ///
    /// # Errors
    /// When the name is wrong, the topic is missing, or no broker answers in time.
    pub async fn partitions(&self, topic: &str) -> Result<u32> {
        let topic = topic_name(topic)?;
        self.shared.partitions(&topic).await
    }

    /// The topics of a namespace (`tenant/namespace`), partitions one by one.
    ///
    /// # Errors
    /// When the namespace is missing or no broker answers in time.
    pub async fn topics_of_namespace(&self, namespace: &str) -> Result<Vec<String>> {
        let mode = pb::command_get_topics_of_namespace::Mode::All;
        self.shared.topics_of_namespace(namespace, mode, None).await
    }

    /// The topics that the patterns of a selection mean now, partitions one by one.
    ///
    /// # Errors
    /// When a pattern is none, a namespace is missing, or no broker answers in time.
    pub async fn topics_matching(&self, selection: &Selection) -> Result<Vec<String>> {
        let found = Wanted::parse(selection)?.find(&self.shared).await?;
        Ok(found.iter().map(ToString::to_string).collect())
    }

    /// Closes all connections. Producers and consumers that are still open get [`Error::Closed`].
    pub async fn close(&self) {
        self.shared.tasks.cancel();
        self.shared.tasks.join(Duration::from_secs(5)).await;
    }
}

/// What a client's producers and consumers have in common.
pub(crate) struct Shared {
    addresses: Vec<String>,
    url_error: Option<Error>,
    next_address: AtomicUsize,
    connector: Arc<dyn Connector>,
    hello: Hello,
    connections_per_broker: usize,
    pub(crate) operation_timeout: Duration,
    backoff: (Duration, Duration),
    pub(crate) listener_name: Option<String>,
    pub(crate) tasks: Tasks,
    pub(crate) clock: Clock,
    random: Mutex<Random>,
    next_id: AtomicU64,
    pool: Mutex<HashMap<Key, Slot>>,
    pub(crate) coordinators: tokio::sync::OnceCell<Arc<Coordinators>>,
}

/// Which connection: physical address, the broker behind it where that is another, number.
type Key = (String, Option<String>, usize);
type Slot = Arc<tokio::sync::Mutex<Option<Arc<Connection>>>>;

impl Drop for Shared {
    fn drop(&mut self) {
        self.tasks.cancel();
    }
}

impl Shared {
    fn new(builder: ClientBuilder, addresses: Vec<String>) -> Self {
        let tcp = Tcp::default();
        let connector: Arc<dyn Connector> = match (builder.connector, builder.tls.clone()) {
            (Some(connector), _) => connector,
            (None, None) => Arc::new(tcp),
            (None, Some(tls)) => Arc::new(TcpWithTls {
                tls,
                timeout: tcp.timeout,
            }),
        };
        // Pulsar's names of the ways to say who one is.
        let shows_certificate = builder.tls.as_ref().is_some_and(Tls::has_certificate);
        let auth_method = match &builder.token {
            Some(_) => Some("token"),
            None => shows_certificate.then_some("tls"),
        };
        Self {
            addresses,
            url_error: None,
            next_address: AtomicUsize::new(0),
            connector,
            hello: Hello {
                is_tls: builder.tls.is_some(),
                auth_method: auth_method.map(str::to_owned),
                auth_data: builder.token.map(Bytes::from),
                proxy_to_broker_url: None,
                keep_alive: builder.keep_alive,
                request_timeout: builder.operation_timeout,
            },
            connections_per_broker: builder.connections_per_broker,
            operation_timeout: builder.operation_timeout,
            backoff: (builder.backoff_first, builder.backoff_max),
            listener_name: builder.listener_name,
            tasks: Tasks::new(),
            clock: Clock::system(),
            random: Mutex::new(Random::from_entropy()),
            next_id: AtomicU64::new(1),
            pool: Mutex::default(),
            coordinators: tokio::sync::OnceCell::new(),
        }
    }

    /// An id for a producer or consumer; unique in this client, so on each of its connections too.
    pub(crate) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn new_backoff(&self) -> Backoff {
        let seed = self.random.lock().next_u64();
        Backoff::new(self.backoff.0, self.backoff.1, seed)
    }

    pub(crate) fn random_below(&self, bound: u64) -> u64 {
        self.random.lock().below(bound)
    }

    pub(crate) fn random_name(&self, length: usize) -> String {
        self.random.lock().name(length)
    }

    /// A connection to any broker of the service URL.
    pub(crate) async fn any_connection(&self) -> Result<Arc<Connection>> {
        if let Some(error) = &self.url_error {
            return Err(error.clone());
        }
        let start = self.next_address.load(Ordering::Relaxed);
        let mut last = Error::Closed;
        for i in 0..self.addresses.len() {
            let index = start.wrapping_add(i);
            let address = &self.addresses[index % self.addresses.len()];
            match self.connection(address, None, 0).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = error,
            }
            // The next attempt begins with the next address.
            self.next_address
                .store(index.wrapping_add(1), Ordering::Relaxed);
        }
        Err(last)
    }

    /// Whether brokers are spoken to with TLS.
    pub(crate) fn is_tls(&self) -> bool {
        self.hello.is_tls
    }

    /// The connection to a broker for the producer or consumer `user`, made if there is none.
    pub(crate) async fn connection(
        &self,
        address: &str,
        proxied: Option<&str>,
        user: u64,
    ) -> Result<Arc<Connection>> {
        if self.tasks.is_cancelled() {
            return Err(Error::Closed);
        }
        let number = user as usize % self.connections_per_broker;
        let key = (address.to_owned(), proxied.map(str::to_owned), number);
        let slot = self.pool.lock().entry(key).or_default().clone();
        let mut slot = slot.lock().await;
        if let Some(connection) = &*slot
            && connection.is_open()
        {
            return Ok(connection.clone());
        }
        let io = self
            .connector
            .connect(address)
            .await
            .map_err(|source| Error::Connect {
                address: address.to_owned(),
                source: Arc::new(source),
            })?;
        let hello = Hello {
            proxy_to_broker_url: proxied.map(str::to_owned),
            ..self.hello.clone()
        };
        let connection = Connection::open(io, address.to_owned(), hello, &self.tasks).await?;
        *slot = Some(connection.clone());
        Ok(connection)
    }

    /// A connection to the broker that a lookup or a broker named.
    pub(crate) async fn broker_connection(
        &self,
        broker: &crate::lookup::Broker,
        user: u64,
    ) -> Result<Arc<Connection>> {
        if broker.through_service_url {
            let index = self.next_address.load(Ordering::Relaxed) % self.addresses.len().max(1);
            if let Some(address) = self.addresses.get(index) {
                let proxied = (*address != broker.address).then_some(broker.address.as_str());
                return self.connection(address, proxied, user).await;
            }
        }
        self.connection(&broker.address, None, user).await
    }
}

pub(crate) fn topic_name(text: &str) -> Result<TopicName> {
    text.parse().map_err(|source| Error::Topic {
        topic: text.to_owned(),
        source,
    })
}

/// The `host:port` of a broker's URL.
pub(crate) fn broker_address(url: &str) -> Result<String> {
    match parse_service_url(url)?.addresses.into_iter().next() {
        Some(address) => Ok(address),
        None => Err(Error::Url {
            url: url.to_owned(),
            reason: "names no host",
        }),
    }
}

/// What a service URL names.
#[derive(Debug, PartialEq, Eq)]
struct Service {
    /// `host:port` each.
    addresses: Vec<String>,
    is_tls: bool,
}

fn parse_service_url(url: &str) -> Result<Service> {
    let error = |reason| Error::Url {
        url: url.to_owned(),
        reason,
    };
    let (hosts, is_tls) = if let Some(hosts) = url.strip_prefix("pulsar+ssl://") {
        (hosts, true)
    } else if let Some(hosts) = url.strip_prefix("pulsar://") {
        (hosts, false)
    } else {
        return Err(error("does not begin with `pulsar://` or `pulsar+ssl://`"));
    };
    let hosts = hosts.trim_end_matches('/');
    let mut addresses = Vec::new();
    for host in hosts.split(',') {
        let (name, port) = match host.rsplit_once(':') {
            // The colons of an IPv6 address stand in brackets.
            Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
            _ => (host, None),
        };
        if name.is_empty() || name.contains('/') {
            return Err(error("names no host"));
        }
        let port = match port {
            Some(port) => port
                .parse::<u16>()
                .map_err(|_| error("has a port that is no number"))?,
            None if is_tls => DEFAULT_PORT_TLS,
            None => DEFAULT_PORT,
        };
        addresses.push(format!("{name}:{port}"));
    }
    Ok(Service { addresses, is_tls })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_urls_are_read_or_refused() {
        let good: [(&str, &[&str]); 6] = [
            ("pulsar://localhost:6650", &["localhost:6650"]),
            ("pulsar://localhost/", &["localhost:6650"]),
            ("pulsar://a:1,b:2,c", &["a:1", "b:2", "c:6650"]),
            ("pulsar://[::1]:6650", &["[::1]:6650"]),
            ("pulsar+ssl://a", &["a:6651"]),
            ("pulsar+ssl://a:1,b", &["a:1", "b:6651"]),
        ];
        for (url, addresses) in good {
            let service = parse_service_url(url).unwrap();
            assert_eq!(service.addresses, addresses, "{url}");
            assert_eq!(service.is_tls, url.starts_with("pulsar+ssl"), "{url}");
        }
        for url in [
            "",
            "localhost:6650",
            "http://a",
            "pulsar://",
            "pulsar://a:x",
            "pulsar://a/b",
            "pulsar+ssl://",
        ] {
            assert!(parse_service_url(url).is_err(), "{url}");
        }
    }
}
