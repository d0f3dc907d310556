//! The broker: starts, listens, stops; and what all its connections and topics share.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use geminga_model::{NamespaceName, TopicName};
use geminga_proto::pb::{CommandLookupTopic, CommandWatchTopicList};
use geminga_stdx::tasks::OnError;
use geminga_stdx::{Clock, Tasks};
use geminga_storage::Storage;
use geminga_storage::managed::{ManagedLedger, ManagedLedgers, OpenOptions};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore, oneshot, watch};

use crate::auth::grants::Grants;
use crate::auth::{AuthError, Credentials, Need, Security, Session};
use crate::budget::Budget;
use crate::config::{BrokerConfig, TopicType};
use crate::connection::serve;
use crate::error::BrokerError;
use crate::lookup::{BindAddress, Listeners, Scheme, ServiceUrls};
use crate::metrics::Metrics;
use crate::namespace::{Catalog, Partitioned, ledger_name, ledger_path, partitioned_key};
use crate::peer::Peer;
use crate::policies::store::PolicyCache;
use crate::replication::remote::Remotes;
use crate::resource_group::Groups;
use crate::schema::Schemas;
use crate::settings::Settings;
use crate::timers::Timers;
use crate::tls::Tls;
use crate::topic::{Life, Topic};
use crate::topic_list::{Pattern, Watchers};
use crate::transaction::Transactions;

/// Bytes in each direction of an in-process connection.
const PIPE_BYTES: usize = 1 << 20;
/// Topics loaded at one time: more than that share no more of a sync, and take memory.
const LOADS_MAX: usize = 1_024;
/// Lists of topics that are made for clients at once.
const LISTINGS_MAX: usize = 4;
/// TLS handshakes at once; further clients wait in the listen queue of the system.
const HANDSHAKES_MAX: usize = 2_048;
/// Wait after a failed accept (out of file descriptors, for example).
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A running broker. Cheap to clone; clones are the same broker.
#[derive(Clone)]
pub struct Broker {
    pub(crate) core: Arc<Core>,
    connections: Tasks,
}

pub(crate) struct Core {
    /// As the broker was started with; what may change is read in `settings`.
    pub(crate) config: BrokerConfig,
    pub(crate) settings: Settings,
    pub(crate) clock: Clock,
    /// Everything but the connections.
    pub(crate) tasks: Tasks,
    pub(crate) timers: Arc<Timers>,
    pub(crate) ledgers: ManagedLedgers,
    pub(crate) catalog: Catalog,
    pub(crate) policies: PolicyCache,
    /// Resource groups.
    pub(crate) groups: Groups,
    pub(crate) schemas: Schemas,
    pub(crate) watchers: Watchers,
    pub(crate) metrics: Metrics,
    pub(crate) publishing: Budget,
    pub(crate) transactions: Transactions,
    /// How other clusters are reached; none in a process that reaches none.
    pub(crate) remotes: OnceLock<Arc<dyn Remotes>>,
    /// Bytes read ahead for subscriptions.
    pub(crate) ahead_used: Arc<AtomicUsize>,
    /// Bytes kept of reads that several subscriptions want.
    pub(crate) shared_read_used: Arc<AtomicUsize>,
    /// Turns to load a topic.
    loading: Semaphore,
    /// Turns to list topics for clients.
    pub(crate) listing: Arc<Semaphore>,
    /// Places for TLS handshakes.
    handshakes: Arc<Semaphore>,
    /// Handshakes under way.
    shaking: Arc<AtomicUsize>,
    /// Topics that are being compacted, over unloads.
    pub(crate) compacting: Mutex<HashSet<TopicName>>,
    topics: Mutex<HashMap<TopicName, Arc<OnceCell<Arc<Topic>>>>>,
    pub(crate) empty_ledger: OnceCell<Arc<ManagedLedger>>,
    peers: Mutex<HashMap<u64, Arc<Peer>>>,
    next_id: AtomicU64,
    /// Which start of a broker here this is; makes generated names unique.
    instance: u64,
    next_producer: AtomicU64,
    service_url: OnceLock<String>,
    service_url_tls: OnceLock<String>,
    /// Whether an operator asked for the end.
    shutdown: watch::Sender<bool>,
    pub(crate) security: Security,
    tls: Option<Arc<Tls>>,
    listeners: Listeners,
    stopping: AtomicBool,
}

impl Broker {
    /// Reads what is stored and makes the broker ready; it listens to nobody yet.
    pub async fn start(config: BrokerConfig, storage: Storage) -> Result<Broker, BrokerError> {
        Broker::start_with_clock(config, storage, Clock::system()).await
    }

    pub async fn start_with_clock(
        config: BrokerConfig,
        storage: Storage,
        clock: Clock,
    ) -> Result<Broker, BrokerError> {
        config.check()?;
        let listeners = Listeners::new(&config)?;
        let catalog = Catalog::new(storage.metadata);
        catalog.create_builtins(&config.cluster_name).await?;
        let instance = catalog.next_instance().await?;
        let coordinators = match config.transaction_coordinator_enabled {
            true => catalog.coordinators().await?,
            false => 0,
        };
        let store = catalog.store.clone();
        let (transactions, unfinished) =
            Transactions::recover(store, &config, coordinators.into()).await?;
        let grants = Grants::load(catalog.clone()).await?;
        let settings = Settings::load(&catalog, config.clone()).await?;
        let live = settings.live();
        let groups = Groups::load(&catalog, clock.now_ms()).await?;
        let patience = Duration::from_secs(config.keep_alive_interval_seconds);
        let core = Arc::new(Core {
            security: Security::new(live.security.clone(), grants)?,
            groups,
            settings,
            tls: Tls::new(&config.security)?,
            publishing: crate::peer::publish_budget(live.max_message_publish_buffer_size_in_mb),
            ahead_used: Arc::new(AtomicUsize::new(0)),
            shared_read_used: Arc::new(AtomicUsize::new(0)),
            policies: PolicyCache::default(),
            schemas: Schemas::new(catalog.clone()),
            config,
            clock: clock.clone(),
            tasks: Tasks::new(),
            timers: Arc::new(Timers::default()),
            ledgers: storage.topics,
            catalog,
            watchers: Watchers::new(patience),
            transactions,
            remotes: OnceLock::new(),
            metrics: Metrics::default(),
            loading: Semaphore::new(LOADS_MAX),
            listing: Arc::new(Semaphore::new(LISTINGS_MAX)),
            handshakes: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
            shaking: Arc::default(),
            compacting: Mutex::new(HashSet::new()),
            topics: Mutex::new(HashMap::new()),
            empty_ledger: OnceCell::new(),
            peers: Mutex::new(HashMap::new()),
            next_id: AtomicU64::new(1),
            instance,
            next_producer: AtomicU64::new(0),
            service_url: OnceLock::new(),
            service_url_tls: OnceLock::new(),
            shutdown: watch::Sender::new(false),
            listeners,
            stopping: AtomicBool::new(false),
        });
        core.tasks
            .spawn_cancellable("timers", core.timers.clone().run(clock));
        let teller = core.clone();
        core.tasks
            .spawn_cancellable("topic list watchers", async move {
                teller.watchers.tell().await;
            });
        let (timer, sweeper) = (core.clone(), core.clone());
        core.tasks
            .spawn_cancellable("transaction time-outs", timer.time_out_transactions());
        core.tasks
            .spawn_cancellable("transaction sweeper", sweeper.sweep_transactions());
        if !unfinished.is_empty() {
            let finisher = core.clone();
            core.tasks
                .spawn_cancellable("take in transactions", async move {
                    for name in unfinished {
                        // Loading it is what takes them in.
                        if let Err(error) = finisher.topic(&name, false).await {
                            tracing::debug!(topic = %name, %error, "not loaded for transactions");
                        }
                    }
                });
        }
        let keeper = core.clone();
        core.tasks
            .spawn_cancellable("topic maintenance", async move { keeper.maintain().await });
        if let Some(tls) = &core.tls {
            core.tasks
                .spawn_cancellable("TLS certificates", tls.clone().watch());
        }
        Ok(Broker {
            core,
            connections: Tasks::new(),
        })
    }

    /// Listens for clients and returns the address (port 0 = a free one). The first listener's
    /// address is what lookups answer, unless `advertisedAddress` says otherwise.
    pub async fn listen(&self, address: SocketAddr) -> Result<SocketAddr, BrokerError> {
        self.listen_with(address, None, None).await
    }

    /// Listens on the address of `bindAddresses` that has Pulsar's protocol.
    pub async fn listen_bound(&self, bound: &BindAddress) -> Result<SocketAddr, BrokerError> {
        let tls = match bound.scheme {
            Scheme::PulsarSsl => Some(self.certificates()?),
            _ => None,
        };
        let listener = Arc::from(bound.listener.as_str());
        self.listen_with(bound.address, tls, Some(listener)).await
    }

    /// Further addresses to listen on.
    pub fn bind_addresses(&self) -> &[BindAddress] {
        &self.core.listeners.bind
    }

    /// As [`Broker::listen`], with TLS.
    pub async fn listen_tls(&self, address: SocketAddr) -> Result<SocketAddr, BrokerError> {
        self.listen_with(address, Some(self.certificates()?), None)
            .await
    }

    fn certificates(&self) -> Result<Arc<Tls>, BrokerError> {
        let tls = self.core.tls.clone();
        tls.ok_or_else(|| BrokerError::Tls("no certificate is set".to_owned()))
    }

    async fn listen_with(
        &self,
        address: SocketAddr,
        tls: Option<Arc<Tls>>,
        bound: Option<Arc<str>>,
    ) -> Result<SocketAddr, BrokerError> {
        let failed = |error: std::io::Error| BrokerError::Listen {
            address: address.to_string(),
            reason: error.to_string(),
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        if bound.is_none() {
            self.advertise(local, tls.is_some());
        }
        let broker = self.clone();
        self.core.tasks.spawn_cancellable("listener", async move {
            broker.accept(listener, tls, bound).await;
        });
        Ok(local)
    }

    /// The server's certificates, for other doors of this process.
    pub fn tls(&self) -> Option<Arc<Tls>> {
        self.core.tls.clone()
    }

    /// Whether clients must say who they are.
    pub fn asks_who(&self) -> bool {
        self.core.config.security.authentication_enabled
    }

    /// Who makes a request that came by another door. `original` is whom a proxy speaks for.
    pub fn login(
        &self,
        credentials: Credentials<'_>,
        certificate: Option<&str>,
        original: Option<&str>,
    ) -> Result<Session, AuthError> {
        if !self.asks_who() {
            return Ok(Session::default());
        }
        let (security, now_ms) = (&self.core.security, self.core.clock.now_ms());
        let identity = security.authenticate(credentials, certificate, now_ms)?;
        let session = security.session(identity.role, original.map(str::to_owned))?;
        Ok(Session {
            expires_ms: identity.expires_ms,
            ..session
        })
    }

    /// Whether that one may do what needs this.
    pub fn authorize(&self, session: &Session, need: &Need<'_>) -> Result<(), BrokerError> {
        self.core.security.authorize(session, need)
    }

    /// The URL that lookups answer, once the broker listens.
    pub fn service_url(&self) -> Option<String> {
        self.core.urls().pulsar
    }

    /// The same for clients with TLS.
    pub fn service_url_tls(&self) -> Option<String> {
        self.core.urls().pulsar_ssl
    }

    /// The settings of the file. What may change while the broker runs is in [`Broker::settings`].
    pub fn config(&self) -> &BrokerConfig {
        &self.core.config
    }

    /// A connection without a socket, for clients in the same process.
    pub fn connect_in_process(&self) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        self.serve(ours, (None, None), "in-process".to_owned(), true);
        theirs
    }

    /// Serves a client on a stream that somebody else accepted.
    pub fn serve_stream<S>(&self, stream: S, address: String)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.serve(stream, (None, None), address, false);
    }

    /// Asks whoever runs this broker to stop it. With a pause the topics are unloaded first, one in
    /// each: that goes on when the caller does not wait.
    pub fn request_shutdown(&self, pause: Option<Duration>) {
        let core = self.core.clone();
        let unload = async move {
            if let Some(pause) = pause {
                for topic in core.loaded() {
                    core.unload(&topic).await;
                    tokio::time::sleep(pause).await;
                }
            }
            core.shutdown.send_replace(true);
        };
        self.core.tasks.spawn_cancellable("shutdown", unload);
    }

    /// Until somebody asked for it.
    pub async fn shutdown_requested(&self) {
        // The sender lives as long as the broker.
        drop(
            self.core
                .shutdown
                .subscribe()
                .wait_for(|asked| *asked)
                .await,
        );
    }

    /// Closes everything: producers and consumers are told, what waits for the disk is confirmed,
    /// what is queued is written. False when that took longer than `grace`.
    pub async fn stop(&self, grace: Duration) -> bool {
        self.core.stopping.store(true, Ordering::Release);
        let stop = async {
            self.core.wait_for_publishes().await;
            for topic in self.core.loaded() {
                self.core.unload(&topic).await;
            }
            for peer in self.core.peers() {
                peer.outbox.close();
            }
        };
        let in_time = tokio::time::timeout(grace, stop).await.is_ok();
        let closed = self.connections.join(grace).await;
        self.connections.cancel();
        self.core.tasks.cancel();
        let joined = self.core.tasks.join(grace).await;
        tracing::info!(in_time, closed, joined, "broker stopped");
        in_time && closed && joined
    }

    fn advertise(&self, local: SocketAddr, is_tls: bool) {
        let host = match &self.core.config.advertised_address {
            Some(host) => host.clone(),
            None if local.ip().is_unspecified() => "localhost".to_owned(),
            None => match local {
                SocketAddr::V4(address) => address.ip().to_string(),
                SocketAddr::V6(address) => format!("[{}]", address.ip()),
            },
        };
        let port = local.port();
        // The first listener wins.
        drop(match is_tls {
            true => {
                let url = format!("pulsar+ssl://{host}:{port}");
                self.core.service_url_tls.set(url)
            }
            false => self.core.service_url.set(format!("pulsar://{host}:{port}")),
        });
    }

    async fn accept(&self, listener: TcpListener, tls: Option<Arc<Tls>>, bound: Option<Arc<str>>) {
        let handshakes = &self.core.handshakes;
        loop {
            let place = match &tls {
                // Never closed.
                Some(_) => handshakes.clone().acquire_owned().await.ok(),
                None => None,
            };
            let (stream, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            let max = self.core.config.broker_max_connections;
            // Who shakes hands is nearly one.
            let shaking = self.core.shaking.load(Ordering::Acquire);
            if max > 0 && self.core.peers.lock().len() + shaking >= max {
                tracing::warn!(%address, max, "refused: brokerMaxConnections is reached");
                continue;
            }
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%address, %error, "TCP_NODELAY was not set");
            }
            let tls = tls.clone().zip(place);
            self.serve_socket(stream, tls, format!("/{address}"), bound.clone());
        }
    }

    fn serve_socket(
        &self,
        stream: TcpStream,
        tls: Option<(Arc<Tls>, OwnedSemaphorePermit)>,
        address: String,
        bound: Option<Arc<str>>,
    ) {
        let Some((tls, place)) = tls else {
            return self.serve(stream, (None, bound), address, false);
        };
        let broker = self.clone();
        let shaking = Shaking::begin(&self.core.shaking);
        self.connections
            .spawn("TLS handshake", OnError::Log, async move {
                match tls.accept(stream).await {
                    Ok((stream, name)) => broker.serve(stream, (name, bound), address, false),
                    Err(error) => tracing::info!(address, %error, "no TLS connection was made"),
                }
                drop((shaking, place));
                Ok::<(), std::convert::Infallible>(())
            });
    }

    /// `certificate` is the name in the certificate that the client showed, `bound` the listener that
    /// it came by.
    fn serve<S>(
        &self,
        stream: S,
        (certificate, bound): (Option<String>, Option<Arc<str>>),
        address: String,
        is_internal: bool,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let core = self.core.clone();
        if core.stopping.load(Ordering::Acquire) {
            return;
        }
        let id = core.next_id();
        let config = &core.config;
        let peer = Peer::new(
            id,
            address,
            is_internal,
            config.geminga_outbox_bytes_max,
            config.max_pending_publish_requests_per_connection,
        );
        if let Some(name) = certificate {
            // Set here alone.
            drop(peer.certificate.set(name));
        }
        if let Some(name) = bound {
            drop(peer.listener.set(name));
        }
        core.peers.lock().insert(id, peer.clone());
        core.metrics
            .connections_created
            .fetch_add(1, Ordering::Relaxed);
        // Cancellable: one that a stop could not tell in time must not go on in a broker that is over.
        self.connections
            .spawn_cancellable("connection", serve(core, stream, peer));
    }
}

/// What a topic is wanted for.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    /// Make it when it does not exist.
    create: bool,
    /// For a producer.
    publish: bool,
}

impl Core {
    pub(crate) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn producer_name(&self) -> String {
        let number = self.next_producer.fetch_add(1, Ordering::Relaxed);
        format!("{}-{}-{number}", self.config.cluster_name, self.instance)
    }

    /// `host:port`, as REST names brokers.
    pub(crate) fn broker_id(&self) -> String {
        let url = self.service_url.get().or(self.service_url_tls.get());
        let url = url.map_or("", String::as_str);
        url.split_once("://")
            .map_or(url, |(_, host)| host)
            .to_owned()
    }

    pub(crate) fn parse_topic(&self, name: &str) -> Result<TopicName, BrokerError> {
        name.parse().map_err(|error: geminga_model::NameError| {
            BrokerError::InvalidTopicName(error.to_string())
        })
    }

    pub(crate) fn parse_namespace(&self, name: &str) -> Result<NamespaceName, BrokerError> {
        name.parse().map_err(|error: geminga_model::NameError| {
            BrokerError::InvalidTopicName(error.to_string())
        })
    }

    // Topics

    /// The loaded topic, loaded if need be, made if it may be.
    pub(crate) async fn topic(
        self: &Arc<Core>,
        name: &TopicName,
        create: bool,
    ) -> Result<Arc<Topic>, BrokerError> {
        let found = Wanted {
            create,
            publish: false,
        };
        self.topic_as(name, found).await
    }

    /// The topic for a producer: a new one is made open for appends.
    pub(crate) async fn topic_to_publish(
        self: &Arc<Core>,
        name: &TopicName,
    ) -> Result<Arc<Topic>, BrokerError> {
        let found = Wanted {
            create: true,
            publish: true,
        };
        self.topic_as(name, found).await
    }

    async fn topic_as(
        self: &Arc<Core>,
        name: &TopicName,
        wanted: Wanted,
    ) -> Result<Arc<Topic>, BrokerError> {
        if self.stopping.load(Ordering::Acquire) {
            return Err(BrokerError::NotReady("the broker is stopping".to_owned()));
        }
        loop {
            let cell = self.topics.lock().entry(name.clone()).or_default().clone();
            match cell.get_or_try_init(|| self.load(name, wanted)).await {
                Ok(topic) => {
                    // Ours first: see `close_if_idle`.
                    let topic = topic.clone();
                    if topic.touch(self.clock.now_ms()) {
                        topic.refresh_policies().await?;
                        return Ok(topic);
                    }
                    self.forget_cell(name, &cell);
                }
                Err(error) => {
                    self.forget_failed(name, &cell);
                    return Err(error);
                }
            }
        }
    }

    pub(crate) fn loaded_topic(&self, name: &TopicName) -> Option<Arc<Topic>> {
        let cell = self.topics.lock().get(name)?.clone();
        cell.get()
            .filter(|topic| topic.lock().life == Life::Open)
            .cloned()
    }

    pub(crate) fn loaded(&self) -> Vec<Arc<Topic>> {
        self.topics
            .lock()
            .values()
            .filter_map(|cell| cell.get().cloned())
            .collect()
    }

    fn forget_cell(&self, name: &TopicName, cell: &Arc<OnceCell<Arc<Topic>>>) {
        let mut topics = self.topics.lock();
        if topics
            .get(name)
            .is_some_and(|other| Arc::ptr_eq(other, cell))
        {
            topics.remove(name);
        }
    }

    /// A cell whose load failed goes, unless others wait on it: theirs may yet succeed, and there
    /// must never be two topics of one name.
    fn forget_failed(&self, name: &TopicName, cell: &Arc<OnceCell<Arc<Topic>>>) {
        let mut topics = self.topics.lock();
        // Cells are cloned under this lock only: the map's own and ours are all there are.
        if Arc::strong_count(cell) <= 2
            && cell.get().is_none()
            && topics
                .get(name)
                .is_some_and(|other| Arc::ptr_eq(other, cell))
        {
            topics.remove(name);
        }
    }

    async fn load(
        self: &Arc<Core>,
        name: &TopicName,
        wanted: Wanted,
    ) -> Result<Arc<Topic>, BrokerError> {
        let result = {
            let _turn = self.loading.acquire().await;
            // Who waits for its turn takes little memory.
            Box::pin(self.load_checked(name, wanted)).await
        };
        let counter = match &result {
            Ok(_) => &self.metrics.topic_loads,
            Err(_) => &self.metrics.topic_load_failures,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        result
    }

    async fn load_checked(
        self: &Arc<Core>,
        name: &TopicName,
        wanted: Wanted,
    ) -> Result<Arc<Topic>, BrokerError> {
        self.check_domain(name)?;
        let Wanted { create, publish } = wanted;
        if !name.is_persistent() {
            return self.load_nonpersistent(name, create).await;
        }
        let ledger_name = ledger_name(name);
        let exists = self.ledgers.exists(&ledger_name).await?;
        let create = !exists && self.may_create(name, create).await?;
        if !exists && !create {
            return Err(BrokerError::TopicNotFound(name.to_string()));
        }
        if create && let Err(error) = self.check_room(&name.namespace(), 1).await {
            return Err(match error {
                // As a client is told.
                BrokerError::PreconditionFailed(text) => BrokerError::NotAllowed(text),
                other => other,
            });
        }
        let options = OpenOptions {
            create,
            prepare: publish,
            ..OpenOptions::default()
        };
        let ledger = self.ledgers.open(&ledger_name, options).await?;
        if create {
            self.watchers.changed(name, true);
        }
        let in_force = self.effective_policies(name).await?;
        let topic = Topic::new(self, name.clone(), ledger, in_force);
        topic.begin_dedup().await?;
        topic.begin_view().await?;
        self.transactions.restore(&topic).await?;
        if let Err(error) = topic.replicate().await {
            // What was begun has a hold of the topic.
            topic.close();
            return Err(error);
        }
        Ok(topic)
    }

    pub(crate) fn check_domain(&self, name: &TopicName) -> Result<(), BrokerError> {
        if !name.is_persistent() {
            if self.config.enable_non_persistent_topics {
                return Ok(());
            }
            return Err(BrokerError::NotAllowed(format!(
                "Broker is unable to load non-persistent topic {name}"
            )));
        }
        if !self.config.enable_persistent_topics {
            return Err(BrokerError::NotAllowed(format!(
                "persistent topics are disabled: {name}"
            )));
        }
        Ok(())
    }

    /// Whether a missing topic may be made; an error says why it must not be.
    pub(crate) async fn may_create(
        &self,
        name: &TopicName,
        wanted: bool,
    ) -> Result<bool, BrokerError> {
        if let Some(partition) = name.partition()
            && let Some(count) = self.catalog.partitions(&name.parent()).await?
        {
            if partition < count {
                return Ok(true);
            }
            return Err(BrokerError::NotAllowed(format!(
                "Illegal topic partition name {name} with max allowed {count} partitions"
            )));
        }
        if self.catalog.partitions(name).await?.is_some() {
            return Err(BrokerError::NotAllowed(format!(
                "{name} is a partitioned topic: use its partitions"
            )));
        }
        let policy = self.auto_creation(name).await?;
        Ok(wanted && policy.0)
    }

    /// Whether a namespace may have so many topics more.
    pub(crate) async fn check_room(
        &self,
        namespace: &NamespaceName,
        more: usize,
    ) -> Result<(), BrokerError> {
        let policies = self.catalog.policies(namespace.as_str()).await?;
        let own = policies.and_then(|(policies, _)| policies.max_topics_per_namespace);
        let max = own.unwrap_or(self.settings.live().max_topics_per_namespace) as usize;
        if max > 0 && self.user_topics(namespace).await?.len() + more > max {
            return Err(BrokerError::PreconditionFailed(format!(
                "Exceed maximum number of topics in namespace: {max}"
            )));
        }
        Ok(())
    }

    /// Whether topics of this namespace are made on first use, and with how many partitions.
    async fn auto_creation(&self, name: &TopicName) -> Result<(bool, Option<u32>), BrokerError> {
        let Some((policies, _)) = self.catalog.policies(name.namespace_str()).await? else {
            return Err(BrokerError::NamespaceNotFound(
                name.namespace_str().to_owned(),
            ));
        };
        let config = self.settings.live();
        let own = policies.auto_topic_creation.as_ref();
        let allowed = own.map_or(config.allow_auto_topic_creation, |own| {
            own.allow_auto_topic_creation
        });
        let kind = own
            .and_then(|own| own.topic_type)
            .unwrap_or(config.allow_auto_topic_creation_type);
        let count = own
            .and_then(|own| own.default_num_partitions)
            .unwrap_or(config.default_num_partitions);
        let retry = name.local().ends_with("-DLQ") || name.local().ends_with("-RETRY");
        let partitions = (kind == TopicType::Partitioned && !retry).then_some(count);
        Ok((allowed, partitions))
    }

    /// Takes a topic out of memory; whoever is connected is told to come back.
    pub(crate) async fn unload(&self, topic: &Arc<Topic>) {
        topic.close();
        let mut topics = self.topics.lock();
        let same = |cell: &Arc<OnceCell<Arc<Topic>>>| {
            cell.get().is_some_and(|other| Arc::ptr_eq(other, topic))
        };
        if topics.get(&topic.name).is_some_and(same) {
            topics.remove(&topic.name);
        }
    }

    // Lookups

    /// `bound` is the listener that the client came by.
    pub(crate) async fn lookup(
        &self,
        request: &CommandLookupTopic,
        bound: Option<&str>,
    ) -> Result<ServiceUrls, BrokerError> {
        self.metrics.lookups.fetch_add(1, Ordering::Relaxed);
        let result = async {
            let name = self.parse_topic(&request.topic)?;
            let named = request.advertised_listener_name.as_deref();
            let named = named.filter(|name| !name.is_empty());
            self.lookup_urls(&name, named.or(bound)).await
        };
        let result = result.await;
        if result.is_err() {
            self.metrics.lookup_failures.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    pub(crate) async fn lookup_urls(
        &self,
        name: &TopicName,
        listener: Option<&str>,
    ) -> Result<ServiceUrls, BrokerError> {
        let urls = match listener {
            Some(listener) => self.listeners.of(listener).ok_or_else(|| {
                BrokerError::NotReady(format!("the broker does not have the {listener} listener"))
            })?,
            None => &self.urls(),
        };
        if self.catalog.policies(name.namespace_str()).await?.is_none() {
            return Err(BrokerError::NamespaceNotFound(
                name.namespace_str().to_owned(),
            ));
        }
        Ok(urls.clone())
    }

    /// The addresses for those who name no listener.
    pub(crate) fn urls(&self) -> ServiceUrls {
        match self.listeners.internal() {
            Some(urls) => urls.clone(),
            None => ServiceUrls {
                pulsar: self.service_url.get().cloned(),
                pulsar_ssl: self.service_url_tls.get().cloned(),
                ..ServiceUrls::default()
            },
        }
    }

    /// Whether clients are to use the address that they came by: when only clients on this machine
    /// could use the one that we know. An operator's listener is meant as it stands.
    pub(crate) fn is_proxied(&self, urls: &ServiceUrls) -> bool {
        let url = urls.pulsar.as_ref().or(urls.pulsar_ssl.as_ref());
        !urls.is_listener && url.is_some_and(|url| is_loopback(url))
    }

    /// Whether the topic (or partition) itself exists; a non-persistent one does while it is in use.
    pub(crate) async fn topic_exists(&self, name: &TopicName) -> Result<bool, BrokerError> {
        if name.is_persistent() {
            return Ok(self.ledgers.exists(&ledger_name(name)).await?);
        }
        if self.loaded_topic(name).is_some() {
            return Ok(true);
        }
        let Some(partition) = name.partition() else {
            return Ok(false);
        };
        let count = self.catalog.partitions(&name.parent()).await?;
        Ok(count.is_some_and(|count| partition < count))
    }

    /// The number of partitions, 0 for a topic without. A missing topic is made if it may be.
    pub(crate) async fn partitions_or_create(
        &self,
        name: &TopicName,
        create: bool,
    ) -> Result<u32, BrokerError> {
        if let Some(count) = self.catalog.partitions(name).await? {
            return Ok(count);
        }
        if self.topic_exists(name).await? {
            return Ok(0);
        }
        if let Some(partition) = name.partition()
            && let Some(count) = self.catalog.partitions(&name.parent()).await?
            && partition < count
        {
            return Ok(0);
        }
        let (allowed, partitions) = self.auto_creation(name).await?;
        if !create || !allowed {
            return Err(BrokerError::TopicNotFound(name.to_string()));
        }
        match partitions.filter(|_| name.partition().is_none()) {
            None => Ok(0),
            Some(count) => match self
                .create_partitioned(name, count, Default::default())
                .await
            {
                Ok(()) => Ok(count),
                // Another client was first.
                Err(BrokerError::AlreadyExists(_)) => {
                    Ok(self.catalog.partitions(name).await?.unwrap_or(0))
                }
                Err(error) => Err(error),
            },
        }
    }

    pub(crate) async fn create_partitioned(
        &self,
        name: &TopicName,
        partitions: u32,
        properties: std::collections::BTreeMap<String, String>,
    ) -> Result<(), BrokerError> {
        let value = Partitioned {
            partitions,
            properties,
        };
        let expected = geminga_storage::metadata::Expected::Absent;
        let put = self
            .catalog
            .put(&partitioned_key(name), &value, expected)
            .await;
        put.map_err(|error| match error {
            BrokerError::AlreadyExists(_) => {
                BrokerError::AlreadyExists("This topic already exists".to_owned())
            }
            other => other,
        })
    }

    /// The persistent topics of a namespace that users made, partitions one by one.
    pub(crate) async fn user_topics(
        &self,
        namespace: &NamespaceName,
    ) -> Result<Vec<String>, BrokerError> {
        let path = ledger_path(namespace);
        let names = self.ledgers.list(&path).await?;
        let mut topics: Vec<String> = names
            .iter()
            .filter_map(|name| crate::namespace::decode(name))
            .filter(|local| !local.starts_with("__"))
            .map(|local| format!("persistent://{namespace}/{local}"))
            .collect();
        topics.sort_unstable();
        Ok(topics)
    }

    /// Makes the list of a watcher, and answers its request.
    pub(crate) async fn list_watched(
        &self,
        key: u64,
        request: &CommandWatchTopicList,
        namespace: &NamespaceName,
        pattern: &Pattern,
    ) -> Result<(), BrokerError> {
        if !self.watchers.listing(key) {
            return Ok(());
        }
        match self.user_topics(namespace).await {
            Ok(mut topics) => {
                topics.retain(|topic| pattern.matches(topic));
                self.watchers.listed(key, request, topics)
            }
            Err(error) => {
                self.watchers.unlisted(key);
                Err(error)
            }
        }
    }

    /// Runs a change to its end, also when whoever asked for it goes away meanwhile: what is stored
    /// must come into force.
    pub(crate) async fn uncancelled<T: Send + 'static>(
        &self,
        change: impl Future<Output = Result<T, BrokerError>> + Send + 'static,
    ) -> Result<T, BrokerError> {
        let (tx, rx) = oneshot::channel();
        let change = Box::pin(change);
        self.tasks.spawn("change", OnError::Log, async move {
            // Nobody may wait for it any more.
            drop(tx.send(change.await));
            Ok::<(), std::convert::Infallible>(())
        });
        let gone = |_| BrokerError::Unknown("the change broke off".to_owned());
        rx.await.map_err(gone)?
    }

    // Connections

    pub(crate) fn peers(&self) -> Vec<Arc<Peer>> {
        self.peers.lock().values().cloned().collect()
    }

    pub(crate) fn connection_ended(&self, peer: &Arc<Peer>) {
        self.peers.lock().remove(&peer.id);
        self.watchers.remove_peer(peer);
        self.metrics
            .connections_closed
            .fetch_add(1, Ordering::Relaxed);
    }

    /// The connection is dead, though its task may not know it yet: takes it off the topic.
    pub(crate) fn forget_peer(&self, topic: &Arc<Topic>, peer: &Arc<Peer>) {
        let mut consumers = Vec::new();
        {
            let mut state = topic.lock();
            let dead: Vec<_> = state
                .producers
                .values()
                .filter(|producer| Arc::ptr_eq(&producer.peer, peer))
                .cloned()
                .collect();
            for producer in dead {
                topic.detach(&mut state, &producer);
            }
            for subscription in &state.subscriptions {
                for consumer in subscription.consumers() {
                    if Arc::ptr_eq(&consumer.peer, peer) {
                        consumers.push((subscription.id, consumer.key));
                    }
                }
            }
        }
        for (id, key) in consumers {
            topic.leave(id, key);
        }
    }

    async fn wait_for_publishes(&self) {
        while self.publishing.used() > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// A handshake under way; over when this is dropped.
struct Shaking(Arc<AtomicUsize>);

impl Shaking {
    fn begin(count: &Arc<AtomicUsize>) -> Shaking {
        count.fetch_add(1, Ordering::AcqRel);
        Shaking(count.clone())
    }
}

impl Drop for Shaking {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn is_loopback(url: &str) -> bool {
    let host = url.split_once("://").map_or(url, |(_, host)| host);
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}
