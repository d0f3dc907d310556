//! `functions localrun`: a function in this process, against any broker, registered nowhere.
//!
//! The same worker as a server's, without its catalogue. The broker is the one that is named, or the
//! one that answers at the usual address, or one in this process for as long as the function runs.
//! It ends by a signal, and ends its instances first: messages in flight may finish.

use std::sync::Arc;
use std::time::Duration;

use geminga_client::Client;
use geminga_functions::{Component, SecretRules, Worker, WorkerConfig, WorkerError};
use geminga_model::FunctionConfig;
use geminga_stdx::Diagnostic;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::flags::FunctionFlags;
use crate::cli::admin::usage;
use crate::cli::component;
use crate::cli::{Global, block_on, client};
use crate::config::{DataArgs, Durability};
use crate::failure::{Exit, Failure, Outcome};
use crate::output;
use crate::serve::standalone::{Options, Standalone};

/// How long messages in flight may take when it is stopped.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// How often a function that runs is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Starts in a row that are enough to give up.
const STARTS_MAX: u64 = 5;
/// How long a broker at the usual address may take to accept a connection.
const ANSWER_USUAL: Duration = Duration::from_millis(500);
/// The same for a broker that was named.
const ANSWER_NAMED: Duration = Duration::from_secs(5);
/// The URL of a broker in this process.
const EMBEDDED: &str = "embedded";

#[derive(Debug, clap::Args)]
pub(super) struct LocalrunArgs {
    #[command(flatten)]
    flags: Box<FunctionFlags>,
    /// The broker; --service-url means the same. `embedded` is one in this process, and so is what
    /// is taken when none is named and none answers at pulsar://127.0.0.1:6650
    #[arg(long, alias = "brokerServiceUrl", value_name = "URL")]
    broker_service_url: Option<String>,
    /// How secrets are meant, by Pulsar's class: ClearTextSecretsProvider, as they stand, or
    /// EnvironmentBasedSecretsProvider, each the environment variable of its name
    #[arg(long, value_name = "CLASS", value_parser = SecretsProvider::parse)]
    secrets_provider_classname: Option<SecretsProvider>,
    /// Speak TLS: the URL begins with `pulsar+ssl://` then
    #[arg(long, hide = true, alias = "use_tls", num_args = 0..=1, default_missing_value = "true")]
    use_tls: Option<bool>,
    #[command(flatten)]
    refused: Refused,
}

/// Where the secrets of a function are, as Pulsar names it.
#[derive(Debug, Clone, Copy)]
enum SecretsProvider {
    ClearText,
    Environment,
}

impl SecretsProvider {
    /// By Pulsar's class, with or without its package.
    fn parse(class: &str) -> Result<Self, String> {
        const PACKAGE: &str = "org.apache.pulsar.functions.secretsprovider.";
        match class.strip_prefix(PACKAGE).unwrap_or(class) {
            "ClearTextSecretsProvider" => Ok(Self::ClearText),
            "EnvironmentBasedSecretsProvider" => Ok(Self::Environment),
            _ => Err(format!(
                "there are {PACKAGE}ClearTextSecretsProvider and {PACKAGE}EnvironmentBasedSecretsProvider; a \
                 secret can be read elsewhere by `{{\"command\": [..]}}` as its value"
            )),
        }
    }

    /// Puts into a configuration what the class would do.
    fn apply(self, config: &mut FunctionConfig) {
        if let (Self::Environment, Some(secrets)) = (self, &mut config.secrets) {
            for (name, value) in secrets.iter_mut() {
                *value = json!({ "env": name });
            }
        }
    }
}

/// Options of Pulsar's localrun that cannot be honoured: each is refused by its name.
#[derive(Debug, clap::Args)]
struct Refused {
    #[arg(long, hide = true)]
    web_service_url: Option<String>,
    #[arg(long, hide = true, alias = "clientAuthPlugin")]
    client_auth_plugin: Option<String>,
    #[arg(long, hide = true, alias = "clientAuthParams")]
    client_auth_params: Option<String>,
    #[arg(long, hide = true, alias = "instanceIdOffset")]
    instance_id_offset: Option<i32>,
    #[arg(long, hide = true)]
    metrics_port_start: Option<String>,
    #[arg(long, hide = true)]
    runtime: Option<String>,
    #[arg(long, hide = true)]
    secrets_provider_config: Option<String>,
    #[arg(long, hide = true, alias = "stateStorageServiceUrl")]
    state_storage_service_url: Option<String>,
}

impl Refused {
    /// Values that mean what happens anyway are fine.
    fn check(&self) -> Outcome {
        let given = [
            ("--web-service-url", self.web_service_url.is_some()),
            ("--client-auth-plugin", self.client_auth_plugin.is_some()),
            ("--client-auth-params", self.client_auth_params.is_some()),
            (
                "--instance-id-offset",
                self.instance_id_offset.is_some_and(|offset| offset != 0),
            ),
            ("--metrics-port-start", self.metrics_port_start.is_some()),
            (
                "--runtime THREAD",
                self.runtime
                    .as_deref()
                    .is_some_and(|runtime| !runtime.eq_ignore_ascii_case("process")),
            ),
            (
                "--secrets-provider-config",
                self.secrets_provider_config.is_some(),
            ),
            (
                "--state-storage-service-url",
                self.state_storage_service_url.is_some(),
            ),
        ];
        match given.iter().find(|(_, given)| *given) {
            None => Ok(()),
            Some((option, _)) => Err(usage(format!(
                "{option} cannot be honoured by localrun yet"
            ))),
        }
    }
}

pub(super) fn run(args: &LocalrunArgs, global: &Global) -> Outcome {
    args.refused.check()?;
    let mut config = args.flags.config()?;
    let typed: FunctionConfig = serde_json::from_value(Value::Object(config.clone()))
        .map_err(|error| usage(error.to_string()))?;
    let name = component::full_name(
        geminga_admin::client::Component::Function,
        &config,
        typed.name().map(str::to_owned),
    )?;
    component::set_name(&mut config, &name);
    let mut typed: FunctionConfig =
        serde_json::from_value(Value::Object(config)).map_err(|error| usage(error.to_string()))?;
    if let Some(provider) = args.secrets_provider_classname {
        provider.apply(&mut typed);
    }
    let named = args.broker_service_url.clone();
    let named = named.or_else(|| global.service_url.clone());
    let is_tls = |url: &String| url.starts_with("pulsar+ssl://");
    if args.use_tls == Some(true) && !named.as_ref().is_some_and(is_tls) {
        return Err(usage(
            "--use-tls wants a broker with TLS: give --broker-service-url pulsar+ssl://HOST:6651",
        ));
    }
    block_on(serve(typed, named, global, name.to_string()))
}

/// The broker that a URL, or none, means; with the one that was started for it.
async fn broker(named: Option<String>, global: &Global) -> Outcome<(String, Option<Standalone>)> {
    match named {
        Some(url) if url != EMBEDDED => {
            if answers(&url, ANSWER_NAMED).await {
                return Ok((url, None));
            }
            let error = Diagnostic::error("G0501", format!("can't reach the broker at {url}"))
                .help(
                    "start one with `geminga standalone`, or give `--broker-service-url embedded`",
                );
            return Err(Failure::new(Exit::Unreachable, error));
        }
        Some(_) => {}
        None => {
            let usual = global.service_url();
            if answers(usual, ANSWER_USUAL).await {
                return Ok((usual.to_owned(), None));
            }
        }
    }
    let server = Standalone::start(&Options {
        bind: std::net::Ipv4Addr::LOCALHOST.into(),
        port: 0,
        http_port: 0,
        broker: geminga_broker::BrokerConfig::default(),
        advertised_address: None,
        data: DataArgs {
            data: None,
            ephemeral: true,
            durability: Durability::default(),
        },
        worker: false,
        functions_directory: None,
        token: None,
        secrets: SecretRules::default(),
    })
    .await?;
    Ok((server.service_url(), Some(server)))
}

/// Whether somebody takes connections at one of the URL's addresses.
async fn answers(url: &str, limit: Duration) -> bool {
    let addresses = url
        .split_once("://")
        .map_or(url, |(_, addresses)| addresses);
    for address in addresses.trim_end_matches('/').split(',') {
        let connecting = tokio::net::TcpStream::connect(address);
        if let Ok(Ok(_)) = tokio::time::timeout(limit, connecting).await {
            return true;
        }
    }
    false
}

async fn serve(
    config: FunctionConfig,
    named: Option<String>,
    global: &Global,
    name: String,
) -> Outcome {
    let (url, server) = broker(named, global).await?;
    let global = Global {
        service_url: Some(url.clone()),
        ..global.clone()
    };
    let directory = std::env::temp_dir().join(format!(
        "geminga-localrun-{}-{}",
        std::process::id(),
        geminga_stdx::Random::from_entropy().name(6)
    ));
    std::fs::create_dir_all(&directory)?;
    let outcome = match client::client(&global).await {
        Ok(client) => {
            let told = match &server {
                Some(_) => format!("{url}, a broker of its own"),
                None => url,
            };
            work(config, client, &name, &told, &directory, &global).await
        }
        Err(failure) => Err(failure),
    };
    // Only copies are in it; what is left is in the system's temporary directory.
    let _ = std::fs::remove_dir_all(&directory);
    if let Some(server) = server {
        server.stop().await;
    }
    outcome
}

async fn work(
    config: FunctionConfig,
    client: Client,
    name: &str,
    url: &str,
    directory: &std::path::Path,
    global: &Global,
) -> Outcome {
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    let worker_config = WorkerConfig {
        on_log: Some(Arc::new(|id, instance, line| {
            output::note(&format!("{}:{instance} {}", id.name, line.text));
        })),
        reach: Some(client::own_reach(global)?),
        wasm: crate::serve::wasm(),
        // Whoever gives the configuration runs it.
        secrets: SecretRules::everything(),
        ..WorkerConfig::ephemeral(client, directory)
    };
    let worker = Worker::start(worker_config)
        .await
        .map_err(|error| failed(&error))?;
    let started = tokio::select! {
        started = worker.create(Component::from(config), None) => started.map(Some),
        _ = interrupt.recv() => Ok(None),
        _ = terminate.recv() => Ok(None),
    };
    let outcome = match started {
        Err(error) => Err(failed(&error)),
        Ok(None) => Ok(()),
        Ok(Some(id)) => {
            for warning in worker.status(&id).map(|s| s.warnings).unwrap_or_default() {
                output::note(&format!("warning: {warning}"));
            }
            if worker.progress().iter().all(|it| it.degraded.is_none()) {
                output::note(&format!("function {name} runs on {url}; Ctrl-C ends it"));
            }
            loop {
                tokio::select! {
                    _ = interrupt.recv() => break Ok(()),
                    _ = terminate.recv() => break Ok(()),
                    () = tokio::time::sleep(LOOK) => {
                        if let Some(failure) = broken(&worker) {
                            break Err(failure);
                        }
                    }
                }
            }
        }
    };
    worker.shutdown(STOP_GRACE).await;
    outcome
}

/// A function that breaks at every start. A server would try for ever; here somebody waits.
fn broken(worker: &Worker) -> Option<Failure> {
    let progress = worker.progress();
    let it = progress
        .iter()
        .find(|it| it.degraded.is_some() && it.restarts >= STARTS_MAX)?;
    let mut error = Diagnostic::error("G0412", format!("function `{}` cannot run", it.id.name))
        .help("mend its code and run the same command again");
    if let Some(why) = &it.degraded {
        error = error.cause(why.clone());
    }
    Some(Failure::new(Exit::Failed, error))
}

fn failed(error: &WorkerError) -> Failure {
    let mut cause = std::error::Error::source(error);
    let mut text = error.to_string();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    match error {
        WorkerError::Client { .. } => Failure::new(
            Exit::Unreachable,
            Diagnostic::error("G0501", text).help(
                "name the broker with --broker-service-url, or `embedded` for one of its own",
            ),
        ),
        WorkerError::Invalid(_) => Failure::new(
            Exit::Usage,
            Diagnostic::error("G0210", text).help("geminga functions localrun --help"),
        ),
        WorkerError::Timeout { .. } => {
            Failure::new(Exit::TimedOut, Diagnostic::error("G0503", text))
        }
        _ => Failure::new(Exit::Failed, Diagnostic::error("G0412", text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pulsars_providers_are_known_by_their_classes() {
        let with = |class: &str| {
            let config = json!({"name": "f", "secrets": {"token": "a", "other": {"file": "/b"}}});
            let mut config: FunctionConfig = serde_json::from_value(config).unwrap();
            SecretsProvider::parse(class).map(|provider| {
                provider.apply(&mut config);
                json!(config.secrets)
            })
        };
        let package = "org.apache.pulsar.functions.secretsprovider";
        let clear = json!({"token": "a", "other": {"file": "/b"}});
        let environment = json!({"token": {"env": "token"}, "other": {"env": "other"}});
        assert_eq!(
            with(&format!("{package}.ClearTextSecretsProvider")),
            Ok(clear)
        );
        assert_eq!(
            with(&format!("{package}.EnvironmentBasedSecretsProvider")),
            Ok(environment)
        );
        let said = with("my.own.Provider").unwrap_err();
        assert!(said.contains("EnvironmentBasedSecretsProvider"), "{said}");
    }
}
