//! All roles in one process: storage, broker, admin API, functions worker.
//!
//! Start order is storage, broker, worker, doors; stopping goes the other way, so that what came in is
//! finished and written before the store closes.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use geminga_broker::{Broker, BrokerConfig, BrokerError, Scheme};
use geminga_client::{Client, Connector};
use geminga_functions::worker::OnLog;
use geminga_functions::{Reach, SecretRules, Worker, WorkerConfig};
use geminga_stdx::{Clock, Diagnostic, Tasks};
use geminga_storage::{EmbeddedConfig, ManagedConfig, ManagedError, Storage, StoreError};

use crate::config::{DATA_DIR_DEFAULT, DataArgs, Durability};
use crate::failure::{Exit, Failure, Outcome, with_sources};
use crate::serve::remotes::OtherClusters;

/// What a stop may take in all.
const STOP_GRACE: Duration = Duration::from_millis(1500);

/// How to start.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) bind: IpAddr,
    /// 0 takes a free one.
    pub(crate) port: u16,
    pub(crate) http_port: u16,
    pub(crate) advertised_address: Option<String>,
    /// The broker's other settings.
    pub(crate) broker: BrokerConfig,
    pub(crate) data: DataArgs,
    /// Whether functions run here; `geminga run` brings a worker of its own.
    pub(crate) worker: bool,
    /// The built-in functions of that worker; none without it.
    pub(crate) functions_directory: Option<std::path::PathBuf>,
    /// What processes of functions show that bring a client of their own, where the broker asks who they are.
    pub(crate) token: Option<String>,
    /// What secrets of functions may name.
    pub(crate) secrets: SecretRules,
}

/// A running server.
pub(crate) struct Standalone {
    broker: Broker,
    worker: Option<Worker>,
    storage: Storage,
    tasks: Tasks,
    service: SocketAddr,
    http: SocketAddr,
    service_tls: Option<SocketAddr>,
    http_tls: Option<SocketAddr>,
    data: DataDir,
}

/// Where the data is; a temporary one goes with this value.
struct DataDir {
    path: PathBuf,
    temporary: bool,
}

impl Drop for DataDir {
    fn drop(&mut self) {
        if self.temporary {
            // Nothing in it is wanted any more; what can't be removed now is in the system's
            // temporary directory anyway.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

impl Standalone {
    pub(crate) async fn start(options: &Options) -> Outcome<Self> {
        Self::start_with(options, None).await
    }

    /// The same; `on_log` is given what functions log.
    pub(crate) async fn start_with(options: &Options, on_log: Option<OnLog>) -> Outcome<Self> {
        let data = data_dir(&options.data)?;
        let tasks = Tasks::new();
        let config = EmbeddedConfig {
            durability: match options.data.durability {
                Durability::Fsync => geminga_storage::Durability::Fsync,
                Durability::Os => geminga_storage::Durability::Os,
            },
            ..EmbeddedConfig::default()
        };
        let storage = Storage::open(
            &data.path,
            config,
            ManagedConfig::default(),
            Clock::system(),
            &tasks,
        )
        .await
        .map_err(|error| storage_failure(&error, &data.path))?;
        // The broker answers lookups over HTTP with this door's address, so the door is there first.
        let http_server = geminga_admin::Server::bind((options.bind, options.http_port).into())
            .await
            .map_err(|error| listen_failure(&error, "--http-port", options.http_port))?;
        let http = http_server.address();
        let broker_config = BrokerConfig {
            advertised_address: options
                .advertised_address
                .clone()
                .or_else(|| options.broker.advertised_address.clone()),
            web_service_address: options
                .broker
                .web_service_address
                .clone()
                .or_else(|| Some(format!("http://{}", reachable(http)))),
            ..options.broker.clone()
        };
        let security = broker_config.security.clone();
        let broker = Broker::start(broker_config, storage.clone())
            .await
            .map_err(|error| Diagnostic::error("G0107", error.to_string()))?;
        let service = broker
            .listen((options.bind, options.port).into())
            .await
            .map_err(|error| {
                let BrokerError::Listen { reason, .. } = &error else {
                    return Diagnostic::error("G0001", error.to_string()).into();
                };
                port_failure(reason, "--port", options.port)
            })?;
        broker.replicate_through(std::sync::Arc::new(OtherClusters::default()));
        let mut service_tls = None;
        if let Some(port) = security.broker_service_port_tls {
            let local = broker.listen_tls((options.bind, port).into()).await;
            service_tls =
                Some(local.map_err(|error| {
                    port_failure(&error.to_string(), "brokerServicePortTls", port)
                })?);
        }
        let worker = if options.worker {
            let (host, port) = (reachable(http).ip(), http.port());
            let cluster = broker.config().cluster_name.clone();
            let url = broker.config().web_service_address.clone();
            let config = WorkerConfig {
                // As Pulsar names a worker inside of a broker.
                worker_id: format!("c-{cluster}-fw-{host}-{port}"),
                url: url.unwrap_or_default(),
                cluster,
                on_log,
                reach: Some(Reach {
                    service_url: format!("pulsar://{}", reachable(service)),
                    token: options.token.clone(),
                }),
                wasm: crate::serve::wasm(),
                functions_directory: options.functions_directory.clone(),
                rights: Some(geminga_admin::function_rights(&broker)),
                secrets: options.secrets.clone(),
                ..WorkerConfig::new(in_process(&broker), data.path.join("functions"))
            };
            let worker = Worker::start(config).await.map_err(|error| {
                Diagnostic::error("G0400", "the functions worker did not start")
                    .cause(with_sources(&error))
            })?;
            Some(worker)
        } else {
            None
        };
        let mut admin = geminga_admin::Admin::new(broker.clone(), http);
        if broker.config().web_socket_service_enabled {
            admin = admin.with_web_sockets(in_process(&broker), tasks.clone());
        }
        if let Some(worker) = &worker {
            admin = admin.with_worker(worker.clone());
        }
        let mut http_tls = None;
        if let (Some(port), Some(tls)) = (security.web_service_port_tls, broker.tls()) {
            let server = geminga_admin::Server::bind((options.bind, port).into())
                .await
                .map_err(|error| listen_failure(&error, "webServicePortTls", port))?;
            http_tls = Some(server.address());
            server.spawn_tls(&tasks, admin.clone().router(), tls);
        }
        for bound in broker.bind_addresses() {
            let failed = |reason: String| -> Failure {
                let what = format!("can't listen on {} of `bindAddresses`", bound.address);
                Failure::new(
                    Exit::Conflict,
                    Diagnostic::error("G0101", what).cause(reason),
                )
            };
            match bound.scheme {
                Scheme::Pulsar | Scheme::PulsarSsl => {
                    let listened = broker.listen_bound(bound).await;
                    listened.map_err(|error| failed(error.to_string()))?;
                }
                Scheme::Http | Scheme::Https => {
                    let server = geminga_admin::Server::bind(bound.address).await;
                    let server = server.map_err(|error| failed(error.to_string()))?;
                    let tls = broker.tls().filter(|_| bound.scheme == Scheme::Https);
                    match tls {
                        Some(tls) => server.spawn_tls(&tasks, admin.clone().router(), tls),
                        None => server.spawn(&tasks, admin.clone().router()),
                    }
                }
            }
        }
        http_server.spawn(&tasks, admin.router());
        Ok(Self {
            broker,
            worker,
            storage,
            tasks,
            service,
            http,
            service_tls,
            http_tls,
            data,
        })
    }

    /// Its functions worker, where it has one.
    pub(crate) fn worker(&self) -> Option<&Worker> {
        self.worker.as_ref()
    }

    /// `pulsar://host:port`, as clients on this machine reach it.
    pub(crate) fn service_url(&self) -> String {
        format!("pulsar://{}", reachable(self.service))
    }

    pub(crate) fn admin_url(&self) -> String {
        format!("http://{}", reachable(self.http))
    }

    /// `pulsar+ssl://host:port`, where there is one.
    pub(crate) fn service_url_tls(&self) -> Option<String> {
        self.service_tls
            .map(|address| format!("pulsar+ssl://{}", reachable(address)))
    }

    pub(crate) fn admin_url_tls(&self) -> Option<String> {
        self.http_tls
            .map(|address| format!("https://{}", reachable(address)))
    }

    /// Whether clients must say who they are.
    pub(crate) fn asks_who(&self) -> bool {
        self.broker.asks_who()
    }

    pub(crate) fn data(&self) -> &Path {
        &self.data.path
    }

    pub(crate) fn is_exposed(&self) -> bool {
        let bound = self.broker.bind_addresses().iter();
        !self.service.ip().is_loopback()
            || bound.into_iter().any(|it| !it.address.ip().is_loopback())
    }

    /// Until an operator asks for the end.
    pub(crate) async fn shutdown_requested(&self) {
        self.broker.shutdown_requested().await;
    }

    /// Finishes what came in, writes it, and closes. False when that took too long.
    pub(crate) async fn stop(self) -> bool {
        if let Some(worker) = &self.worker {
            worker.shutdown(STOP_GRACE).await;
        }
        let mut clean = self.broker.stop(STOP_GRACE).await;
        self.tasks.cancel();
        clean &= self.tasks.join(STOP_GRACE).await;
        clean
            & matches!(
                tokio::time::timeout(STOP_GRACE, self.storage.close()).await,
                Ok(Ok(()))
            )
    }
}

/// A client whose bytes go through a pipe in this process instead of a socket.
fn in_process(broker: &Broker) -> Client {
    let broker = broker.clone();
    let connector = move |_address: &str| -> geminga_client::transport::Connecting {
        let stream = broker.connect_in_process();
        Box::pin(async move { Ok(geminga_client::transport::Io::new(stream)) })
    };
    let connector: std::sync::Arc<dyn Connector> = std::sync::Arc::new(connector);
    Client::builder("pulsar://127.0.0.1:6650")
        .connector(connector)
        .build()
}

/// An address that something on this machine can connect to.
fn reachable(address: SocketAddr) -> SocketAddr {
    if !address.ip().is_unspecified() {
        return address;
    }
    let loopback: IpAddr = match address {
        SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    };
    (loopback, address.port()).into()
}

fn data_dir(args: &DataArgs) -> Outcome<DataDir> {
    let (path, temporary) = if args.ephemeral {
        let name = format!(
            "geminga-{}-{}",
            std::process::id(),
            geminga_stdx::Random::from_entropy().name(6)
        );
        (std::env::temp_dir().join(name), true)
    } else {
        (
            args.data.clone().unwrap_or_else(|| DATA_DIR_DEFAULT.into()),
            false,
        )
    };
    std::fs::create_dir_all(&path).map_err(|error| {
        Diagnostic::error(
            "G0103",
            format!("can't make the data directory `{}`", path.display()),
        )
        .cause(error.to_string())
        .help("name another one with `--data DIR`, or try `--ephemeral`")
    })?;
    Ok(DataDir { path, temporary })
}

fn storage_failure(error: &ManagedError, path: &Path) -> Failure {
    match error {
        ManagedError::Store(error) => store_failure(error, path),
        _ => Diagnostic::error(
            "G0103",
            format!("can't use the data directory `{}`", path.display()),
        )
        .cause(with_sources(error))
        .into(),
    }
}

pub(crate) fn store_failure(error: &StoreError, path: &Path) -> Failure {
    let shown = path.display();
    match error {
        StoreError::Locked { .. } => Failure::new(
            Exit::Conflict,
            Diagnostic::error("G0102", format!("the data directory `{shown}` is in use"))
                .cause(error.to_string())
                .help("stop the other server, or name another directory with `--data DIR`"),
        ),
        StoreError::NewerFormat { .. } => {
            Diagnostic::error("G0104", format!("`{shown}` was written by a newer Geminga"))
                .cause(error.to_string())
                .help("run the newer version, or name another directory with `--data DIR`")
                .into()
        }
        StoreError::Corrupt {
            path: file,
            offset,
            what,
        } => Diagnostic::error("G0105", format!("the data is damaged: {what}"))
            .at(shown_file(path, file), 0, 0)
            .cause(format!("at offset {offset}"))
            .help(repair_command(path))
            .into(),
        StoreError::Full => Diagnostic::error("G0106", format!("no space left for `{shown}`"))
            .help("free some space, or name another directory with `--data DIR`")
            .into(),
        _ => Diagnostic::error("G0103", format!("can't use the data directory `{shown}`"))
            .cause(with_sources(error))
            .help("name another one with `--data DIR`, or try `--ephemeral`")
            .into(),
    }
}

/// Where a repaired copy would go.
pub(crate) fn beside(data: &Path) -> PathBuf {
    let mut name = data.file_name().unwrap_or_default().to_owned();
    name.push(".repaired");
    data.with_file_name(name)
}

/// What to type about damage in `data`.
pub(crate) fn repair_command(data: &Path) -> String {
    format!(
        "geminga storage repair --data {} --into {}",
        data.display(),
        beside(data).display()
    )
}

fn shown_file(dir: &Path, file: &Path) -> PathBuf {
    if file.is_absolute() {
        file.to_owned()
    } else {
        dir.join(file)
    }
}

fn listen_failure(error: &std::io::Error, flag: &str, port: u16) -> Failure {
    port_failure(&error.to_string(), flag, port)
}

fn port_failure(reason: &str, flag: &str, port: u16) -> Failure {
    Failure::new(
        Exit::Conflict,
        Diagnostic::error("G0101", format!("can't listen on port {port}"))
            .cause(reason.to_owned())
            .help(format!(
                "take another port with `{flag} PORT`; 0 takes a free one"
            )),
    )
}
