//! `geminga worker`: a functions worker by itself, beside a broker that runs elsewhere.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use geminga_functions::{Worker, WorkerConfig, WorkerError};
use geminga_stdx::{Diagnostic, Tasks};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::{Global, block_on, client};
use crate::config::{FUNCTIONS_DIRECTORY_DEFAULT, SecretFlags};
use crate::failure::{Exit, Failure, Outcome, with_sources};
use crate::output::{self, Format};

/// How long messages in flight may take when it stops.
const STOP_GRACE: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    geminga worker --service-url pulsar://127.0.0.1:6650\n  \
    geminga worker --service-url pulsar://broker:6650 --functions-namespace public/geminga --data /var/lib/worker")]
pub(crate) struct WorkerArgs {
    /// The port of its admin API; 0 takes a free one
    #[arg(long, default_value_t = 6750, env = "GEMINGA_WORKER_PORT")]
    http_port: u16,
    /// The address to listen on [default: 127.0.0.1]
    #[arg(long)]
    bind: Option<IpAddr>,
    /// The address that the other workers and clients reach it at [default: where it listens]
    #[arg(long, value_name = "HOST")]
    advertised_address: Option<String>,
    /// Where packages are kept, and the name of the worker [default: geminga-worker]
    #[arg(long, value_name = "DIR", default_value = "geminga-worker")]
    data: PathBuf,
    /// The name of the worker [default: made of the address]
    #[arg(long, value_name = "NAME")]
    worker_id: Option<String>,
    /// Where the catalogue is. All workers of one namespace share its functions. Pulsar's own workers
    /// use public/functions: on Apache Pulsar take another, which exists
    #[arg(
        long,
        value_name = "TENANT/NAMESPACE",
        default_value = "public/functions"
    )]
    functions_namespace: String,
    /// The folder of the built-in functions; the same on all workers, since the one that leads reads its own
    #[arg(
        long,
        value_name = "DIR",
        env = "GEMINGA_FUNCTIONS_DIRECTORY",
        default_value = FUNCTIONS_DIRECTORY_DEFAULT
    )]
    functions_directory: PathBuf,
    /// The name of the cluster, as functions and metrics show it
    #[arg(long, default_value = "standalone")]
    cluster: String,
    /// How long a worker that says nothing counts as alive: what it ran goes to others then
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=300))]
    lease: u64,
    /// Who shows this token may use the admin API; needed when it listens beyond this machine
    #[arg(
        long,
        env = "GEMINGA_WORKER_TOKEN",
        hide_env_values = true,
        value_parser = clap::builder::NonEmptyStringValueParser::new()
    )]
    api_token: Option<String>,
    #[command(flatten)]
    secrets: SecretFlags,
}

pub(crate) fn run(args: WorkerArgs, global: &Global) -> Outcome {
    block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let bind = args.bind.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        if !bind.is_loopback() && args.api_token.is_none() {
            return Err(Failure::new(
                Exit::Usage,
                Diagnostic::error(
                    "G0208",
                    "the admin API would be open to everybody who reaches it",
                )
                .help("give --api-token, or listen on 127.0.0.1"),
            ));
        }
        let secrets = args.secrets.rules().map_err(super::admin::usage)?;
        std::fs::create_dir_all(&args.data)?;
        let _lock = lock(&args)?;
        let server = geminga_admin::Server::bind(SocketAddr::new(bind, args.http_port)).await;
        let server = server.map_err(|error| {
            let what = format!("can't listen on port {}", args.http_port);
            let help = "take another port with `--http-port PORT`; 0 takes a free one";
            let error = Diagnostic::error("G0101", what)
                .cause(error.to_string())
                .help(help);
            Failure::new(Exit::Conflict, error)
        })?;
        let port = server.address().port();
        let host = args.advertised_address.clone().unwrap_or_else(|| {
            if bind.is_unspecified() {
                "localhost".to_owned()
            } else {
                bind.to_string()
            }
        });
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host
        };
        let worker_id = args.worker_id.clone();
        let config = WorkerConfig {
            reach: Some(client::reach(global)),
            wasm: crate::serve::wasm(),
            secrets,
            functions_directory: Some(args.functions_directory.clone()),
            cluster: args.cluster.clone(),
            worker_id: worker_id.unwrap_or_else(|| format!("c-{}-fw-{host}-{port}", args.cluster)),
            url: format!("http://{host}:{port}"),
            lease: Duration::from_secs(args.lease),
            catalog_topic: Some(format!(
                "persistent://{}/metadata",
                args.functions_namespace
            )),
            ..WorkerConfig::new(client::client(global).await?, &args.data)
        };
        let (id, url) = (config.worker_id.clone(), config.url.clone());
        let worker = Worker::start(config).await.map_err(|error| {
            let said = Diagnostic::error("G0400", "the functions worker did not start")
                .cause(with_sources(&error));
            match error {
                WorkerError::PulsarsOwn { .. } => said.help(
                    "name a namespace of its own that exists: --functions-namespace public/geminga",
                ),
                _ => said,
            }
        })?;
        let tasks = Tasks::new();
        server.spawn(
            &tasks,
            geminga_admin::worker_router(
                worker.clone(),
                args.cluster.clone(),
                args.api_token.clone(),
            ),
        );
        if global.format() == Format::Json {
            let ready = json!({ "workerId": id, "adminUrl": url, "leads": worker.leads(), "pid": std::process::id() });
            output::line(&ready.to_string())?;
        } else {
            output::note(&format!(
                "The worker {id} is ready\n  broker     {}\n  admin API  {url}\n  stop it with Ctrl-C",
                global.service_url()
            ));
        }
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        worker.shutdown(STOP_GRACE).await;
        tasks.cancel();
        tasks.join(Duration::from_secs(2)).await;
        Ok(())
    })
}

/// Two workers of one data directory would be one to the others.
fn lock(args: &WorkerArgs) -> Outcome<std::fs::File> {
    let path = args.data.join("lock");
    let file = std::fs::File::create(&path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(error) => {
            let what = format!("another worker uses `{}`", args.data.display());
            let help = "name another directory with `--data DIR`";
            let error = Diagnostic::error("G0102", what)
                .cause(error.to_string())
                .help(help);
            Err(Failure::new(Exit::Conflict, error))
        }
    }
}
