//! `functions localrun`: a function in this process, against any broker, registered nowhere.
//!
//! The same worker as a server's, without its catalogue. It ends by a signal, and ends its instances
//! first: messages in flight may finish.

use std::sync::Arc;
use std::time::Duration;

use geminga_client::Client;
use geminga_functions::{Component, Worker, WorkerConfig, WorkerError};
use geminga_model::FunctionConfig;
use geminga_stdx::Diagnostic;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use super::flags::FunctionFlags;
use crate::cli::admin::usage;
use crate::cli::component;
use crate::cli::{Global, block_on, client};
use crate::failure::{Exit, Failure, Outcome};
use crate::output;

/// How long messages in flight may take when it is stopped.
const STOP_GRACE: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(super) struct LocalrunArgs {
    #[command(flatten)]
    flags: Box<FunctionFlags>,
    /// The broker; --service-url means the same
    #[arg(long, alias = "brokerServiceUrl", value_name = "URL")]
    broker_service_url: Option<String>,
    #[command(flatten)]
    refused: Refused,
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
    #[arg(long, hide = true, alias = "hostname_verification_enabled", num_args = 0..=1,
          default_missing_value = "true")]
    hostname_verification_enabled: Option<bool>,
    #[arg(long, hide = true, alias = "instanceIdOffset")]
    instance_id_offset: Option<i32>,
    #[arg(long, hide = true)]
    metrics_port_start: Option<String>,
    #[arg(long, hide = true)]
    runtime: Option<String>,
    #[arg(long, hide = true)]
    secrets_provider_classname: Option<String>,
    #[arg(long, hide = true)]
    secrets_provider_config: Option<String>,
    #[arg(long, hide = true, alias = "stateStorageServiceUrl")]
    state_storage_service_url: Option<String>,
    #[arg(long, hide = true, alias = "tls_allow_insecure", num_args = 0..=1,
          default_missing_value = "true")]
    tls_allow_insecure: Option<bool>,
    #[arg(long, hide = true, alias = "tls_trust_cert_path")]
    tls_trust_cert_path: Option<String>,
    #[arg(long, hide = true, alias = "use_tls", num_args = 0..=1, default_missing_value = "true")]
    use_tls: Option<bool>,
}

impl Refused {
    /// Values that mean what happens anyway are fine.
    fn check(&self) -> Outcome {
        let given = [
            ("--web-service-url", self.web_service_url.is_some()),
            ("--client-auth-plugin", self.client_auth_plugin.is_some()),
            ("--client-auth-params", self.client_auth_params.is_some()),
            (
                "--hostname-verification-enabled",
                self.hostname_verification_enabled == Some(true),
            ),
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
                "--secrets-provider-classname",
                self.secrets_provider_classname.is_some(),
            ),
            (
                "--secrets-provider-config",
                self.secrets_provider_config.is_some(),
            ),
            (
                "--state-storage-service-url",
                self.state_storage_service_url.is_some(),
            ),
            (
                "--tls-allow-insecure",
                self.tls_allow_insecure == Some(true),
            ),
            ("--tls-trust-cert-path", self.tls_trust_cert_path.is_some()),
            ("--use-tls", self.use_tls == Some(true)),
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
    let typed: FunctionConfig =
        serde_json::from_value(Value::Object(config)).map_err(|error| usage(error.to_string()))?;
    let mut global = global.clone();
    if let Some(url) = &args.broker_service_url {
        global.service_url = Some(url.clone());
    }
    let client = client::client(&global)?;
    block_on(serve(typed, client, name.to_string()))
}

async fn serve(config: FunctionConfig, client: Client, name: String) -> Outcome {
    let directory = std::env::temp_dir().join(format!(
        "geminga-localrun-{}-{}",
        std::process::id(),
        geminga_stdx::Random::from_entropy().name(6)
    ));
    std::fs::create_dir_all(&directory)?;
    let outcome = work(config, client, &name, &directory).await;
    // Only copies are in it; what is left is in the system's temporary directory.
    let _ = std::fs::remove_dir_all(&directory);
    outcome
}

async fn work(
    config: FunctionConfig,
    client: Client,
    name: &str,
    directory: &std::path::Path,
) -> Outcome {
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    let worker_config = WorkerConfig {
        on_log: Some(Arc::new(|id, instance, line| {
            output::note(&format!("{}:{instance} {}", id.name, line.text));
        })),
        ..WorkerConfig::ephemeral(client, directory)
    };
    let worker = Worker::start(worker_config)
        .await
        .map_err(|error| failed(&error))?;
    let started = tokio::select! {
        started = worker.create(Component::from(config), None) => started.map(drop),
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    };
    if let Err(error) = started {
        worker.shutdown(STOP_GRACE).await;
        return Err(failed(&error));
    }
    output::note(&format!("function {name} runs; Ctrl-C ends it"));
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    worker.shutdown(STOP_GRACE).await;
    Ok(())
}

fn failed(error: &WorkerError) -> Failure {
    let diagnostic = Diagnostic::error("G0210", error.to_string());
    let exit = match error {
        WorkerError::Invalid(_) => Exit::Usage,
        WorkerError::Timeout { .. } => Exit::TimedOut,
        WorkerError::Client { .. } => Exit::Unreachable,
        _ => Exit::Failed,
    };
    Failure::new(exit, diagnostic)
}
