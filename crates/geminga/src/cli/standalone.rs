//! `geminga standalone`: the whole server in one process, until a signal ends it.

use std::net::IpAddr;

use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::{Global, block_on};
use crate::config::DataArgs;
use crate::failure::Outcome;
use crate::output::{self, Format};
use crate::serve::standalone::{Options, Standalone};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    geminga standalone\n  \
    geminga standalone --ephemeral --port 0 --http-port 0 -o json\n  \
    geminga standalone --data /var/lib/geminga --bind 0.0.0.0 --advertised-address broker.example")]
pub(crate) struct StandaloneArgs {
    /// The port of Pulsar's binary protocol; 0 takes a free one
    #[arg(long, default_value_t = 6650, env = "GEMINGA_PORT")]
    port: u16,
    /// The port of the admin API; 0 takes a free one
    #[arg(long, default_value_t = 8080, env = "GEMINGA_HTTP_PORT")]
    http_port: u16,
    /// The address to listen on
    #[arg(long, default_value = "127.0.0.1", env = "GEMINGA_BIND")]
    bind: IpAddr,
    /// The host name that clients are told to connect to
    #[arg(long, value_name = "HOST", env = "GEMINGA_ADVERTISED_ADDRESS")]
    advertised_address: Option<String>,
    #[command(flatten)]
    data: DataArgs,
}

pub(crate) fn run(args: StandaloneArgs, global: &Global) -> Outcome {
    block_on(async {
        let options = Options {
            bind: args.bind,
            port: args.port,
            http_port: args.http_port,
            advertised_address: args.advertised_address,
            data: args.data,
            worker: true,
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
        if server.is_exposed() {
            output::note(
                "warning: this server listens beyond this machine, and anybody who reaches it may use it: \
                 authentication is not part of this version",
            );
        }
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if !server.stop().await {
            output::note("warning: not everything ended in time; what was acknowledged is safe");
        }
        Ok(())
    })
}
