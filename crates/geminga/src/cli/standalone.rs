//! `geminga standalone`: the whole server in one process, until a signal ends it.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::{Global, block_on};
use crate::config::{BrokerConf, DataArgs, FUNCTIONS_DIRECTORY_DEFAULT};
use crate::failure::Outcome;
use crate::output::{self, Format};
use crate::serve::standalone::{Options, Standalone};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    geminga standalone\n  \
    geminga standalone --ephemeral --port 0 --http-port 0 -o json\n  \
    geminga standalone --data /var/lib/geminga --bind 0.0.0.0 --advertised-address broker.example")]
pub(crate) struct StandaloneArgs {
    /// Settings of the broker, as in Pulsar's broker.conf; flags go before them
    #[arg(long, value_name = "FILE", env = "GEMINGA_CONFIG")]
    config: Option<PathBuf>,
    /// The port of Pulsar's binary protocol; 0 takes a free one [default: 6650]
    #[arg(long, env = "GEMINGA_PORT")]
    port: Option<u16>,
    /// The port of the admin API; 0 takes a free one [default: 8080]
    #[arg(long, env = "GEMINGA_HTTP_PORT")]
    http_port: Option<u16>,
    /// The address to listen on [default: 127.0.0.1]
    #[arg(long, env = "GEMINGA_BIND")]
    bind: Option<IpAddr>,
    /// The host name that clients are told to connect to
    #[arg(long, value_name = "HOST", env = "GEMINGA_ADVERTISED_ADDRESS")]
    advertised_address: Option<String>,
    /// The folder of the built-in functions, functionsDirectory in the file [default: ./functions]
    #[arg(long, value_name = "DIR", env = "GEMINGA_FUNCTIONS_DIRECTORY")]
    functions_directory: Option<PathBuf>,
    #[command(flatten)]
    data: DataArgs,
}

pub(crate) fn run(args: StandaloneArgs, global: &Global) -> Outcome {
    block_on(async {
        let conf = match &args.config {
            Some(path) => BrokerConf::read(path)?,
            None => BrokerConf::default(),
        };
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let options = Options {
            bind: args.bind.or(conf.bind).unwrap_or(loopback),
            port: args.port.or(conf.port).unwrap_or(6650),
            http_port: args.http_port.or(conf.http_port).unwrap_or(8080),
            advertised_address: args.advertised_address,
            broker: conf.broker,
            data: args.data,
            worker: true,
            functions_directory: Some(
                args.functions_directory
                    .or(conf.functions_directory)
                    .unwrap_or_else(|| FUNCTIONS_DIRECTORY_DEFAULT.into()),
            ),
            token: super::client::compat_token(),
            secrets: conf.secrets,
        };
        let durability = options.data.durability;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let server = Standalone::start(&options).await?;
        if global.format() == Format::Json {
            output::line(
                &json!({
                    "serviceUrl": server.service_url(),
                    "adminUrl": server.admin_url(),
                    "serviceUrlTls": server.service_url_tls(),
                    "adminUrlTls": server.admin_url_tls(),
                    "data": server.data(),
                    "durability": format!("{durability:?}").to_lowercase(),
                    "pid": std::process::id(),
                })
                .to_string(),
            )?;
        } else {
            output::note(&format!(
                "Geminga {} is ready\n  clients    {}\n  admin API  {}\n  data       {}{}\n  stop it with Ctrl-C",
                env!("CARGO_PKG_VERSION"),
                server.service_url(),
                server.admin_url(),
                server.data().display(),
                if options.data.ephemeral {
                    ", removed at the end"
                } else {
                    ""
                },
            ));
        }
        if server.is_exposed() && !server.asks_who() {
            output::note(
                "warning: THIS SERVER LISTENS BEYOND THIS MACHINE, AND ANYBODY WHO REACHES IT MAY USE IT: \
                 set authenticationEnabled and authorizationEnabled in a file for `--config`",
            );
        }
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            // `brokers shutdown`.
            () = server.shutdown_requested() => {}
        }
        if !server.stop().await {
            output::note("warning: not everything ended in time; what was acknowledged is safe");
        }
        Ok(())
    })
}
