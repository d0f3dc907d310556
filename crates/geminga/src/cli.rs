//! The command line: what can be typed, and which module does it.
//!
//! Data goes to stdout, everything else to stderr. A command returns an `Outcome`; this module alone
//! turns it into text and an exit code.

mod admin;
mod client;
mod component;
mod connector;
mod consume;
mod dev;
mod examples;
mod explain;
mod functions;
mod init;
mod lock;
mod mesh;
mod namespaces;
mod packages;
mod perf;
mod produce;
mod run;
mod sinks;
mod source;
mod sources;
mod standalone;
mod storage;
mod subscriptions;
mod tenants;
mod test;
mod tls;
mod tokens;
mod topics;
mod worker;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use geminga_admin::client::AdminClient;

use crate::failure::{Exit, Failure, Outcome};
use crate::output::{self, Format};
use crate::telemetry;

/// Serverless event streaming in one binary.
#[derive(Debug, Parser)]
#[command(
    name = "geminga",
    version,
    about,
    disable_help_subcommand = true,
    after_help = "Examples:\n  \
        geminga run examples/earthquakes/mesh.yaml\n  \
        printf 'hello\\n' | geminga run reverse.sh\n  \
        geminga standalone --ephemeral"
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options that every command takes.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Global {
    /// The broker's address, pulsar:// or pulsar+ssl://; pulsar://127.0.0.1:6650 when left out
    #[arg(
        long,
        global = true,
        env = "GEMINGA_SERVICE_URL",
        value_name = "URL",
        help_heading = "Global options"
    )]
    pub(crate) service_url: Option<String>,
    /// The admin API's address, http:// or https://; http://127.0.0.1:8080 when left out
    #[arg(
        long,
        global = true,
        env = "GEMINGA_ADMIN_URL",
        value_name = "URL",
        help_heading = "Global options"
    )]
    pub(crate) admin_url: Option<String>,
    /// A token that says who you are: itself, `file:PATH` or `env:NAME`
    #[arg(
        long,
        global = true,
        env = "GEMINGA_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN",
        help_heading = "Global options"
    )]
    pub(crate) token: Option<String>,
    #[command(flatten)]
    pub(crate) tls: tls::TlsFlags,
    /// How data is printed
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        help_heading = "Global options"
    )]
    pub(crate) output: Option<Format>,
    /// More log lines on stderr; repeat for more
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Global options")]
    pub(crate) verbose: u8,
}

impl Global {
    /// The token to show, if any.
    pub(crate) fn token(&self) -> Outcome<Option<String>> {
        let given = self.token.as_deref().filter(|given| !given.is_empty());
        given.map(tokens::given_token).transpose()
    }

    /// A client of the admin API.
    pub(crate) fn admin_client(&self) -> Outcome<AdminClient> {
        let tls = self.tls.settings();
        let client = AdminClient::with_tls(self.admin_url(), &tls).map_err(admin::failure)?;
        Ok(match self.token()? {
            Some(token) => client.with_token(token),
            None => client,
        })
    }

    pub(crate) fn format(&self) -> Format {
        self.output.unwrap_or_default()
    }

    pub(crate) fn service_url(&self) -> &str {
        self.service_url
            .as_deref()
            .unwrap_or("pulsar://127.0.0.1:6650")
    }

    pub(crate) fn admin_url(&self) -> &str {
        self.admin_url.as_deref().unwrap_or("http://127.0.0.1:8080")
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a mesh, a configuration or a script until its input is drained
    Run(run::RunArgs),
    /// Begin a function: code, configuration and cases in a directory
    Init(init::InitArgs),
    /// Run the cases that stand beside functions, without a server
    Test(test::TestArgs),
    /// Write down the exact packages that a Python function needs
    Lock(lock::LockArgs),
    /// Run a server and one function while you write it
    Dev(dev::DevArgs),
    /// Make, look at and remove topics
    #[command(visible_alias = "topic")]
    Topics(topics::TopicsArgs),
    /// Make, move, look into and remove subscriptions
    #[command(visible_alias = "subscription")]
    Subscriptions(subscriptions::SubscriptionsArgs),
    /// Make, look at, feed, change and remove functions
    #[command(visible_alias = "function")]
    Functions(functions::FunctionsArgs),
    /// Make, look at, change and remove sources
    #[command(visible_alias = "source")]
    Sources(sources::SourcesArgs),
    /// Make, look at, change and remove sinks
    #[command(visible_alias = "sink")]
    Sinks(sinks::SinksArgs),
    /// Keep code under names and versions
    #[command(visible_alias = "package")]
    Packages(packages::PackagesArgs),
    /// Plan, apply and delete whole meshes of sources, functions and sinks
    Mesh(mesh::MeshArgs),
    /// Make, list and remove namespaces
    #[command(visible_alias = "namespace")]
    Namespaces(namespaces::NamespacesArgs),
    /// Make, list and remove tenants
    #[command(visible_alias = "tenant")]
    Tenants(tenants::TenantsArgs),
    /// Run a broker, the admin API and a functions worker in this process
    Standalone(standalone::StandaloneArgs),
    /// Run a functions worker beside a broker that runs elsewhere
    Worker(worker::WorkerArgs),
    /// Make and check keys and tokens
    #[command(visible_alias = "token")]
    Tokens(tokens::TokensArgs),
    /// Check and repair a data directory
    Storage(storage::StorageArgs),
    /// Send messages
    Produce(produce::ProduceArgs),
    /// Print messages as they come
    Consume(consume::ConsumeArgs),
    /// Measure rates and latencies
    Perf(perf::PerfArgs),
    /// Say more about an error code
    Explain(explain::ExplainArgs),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Parses the command line, runs the command, prints its error.
pub(crate) fn main() -> ExitCode {
    let parsed = examples::add(Cli::command()).try_get_matches_from(arguments());
    let cli = match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => {
            // clap prints help and version on stdout and its errors on stderr, with usage.
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::from(Exit::Usage as u8)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report(&failure);
            failure.code()
        }
    }
}

/// What was typed, in the spelling that clap can express.
fn arguments() -> Vec<std::ffi::OsString> {
    let typed: Vec<std::ffi::OsString> = std::env::args_os().collect();
    let texts: Option<Vec<String>> = typed
        .iter()
        .map(|arg| arg.to_str().map(str::to_owned))
        .collect();
    match texts {
        Some(texts) => functions::respell(texts)
            .into_iter()
            .map(Into::into)
            .collect(),
        None => typed,
    }
}

fn dispatch(cli: Cli) -> Outcome {
    let global = cli.global;
    telemetry::start(global.verbose, "warn");
    match cli.command {
        Command::Run(args) => run::run(args, &global),
        Command::Init(args) => init::run(&args, &global),
        Command::Test(args) => test::run(args, &global),
        Command::Lock(args) => lock::run(&args, &global),
        Command::Dev(args) => dev::run(args, &global),
        Command::Topics(args) => topics::run(args, &global),
        Command::Subscriptions(args) => subscriptions::run(args, &global),
        Command::Functions(args) => functions::run(args, &global),
        Command::Sources(args) => sources::run(args, &global),
        Command::Sinks(args) => sinks::run(args, &global),
        Command::Packages(args) => packages::run(args, &global),
        Command::Worker(args) => worker::run(args, &global),
        Command::Mesh(args) => mesh::run(args, &global),
        Command::Namespaces(args) => namespaces::run(args, &global),
        Command::Tenants(args) => tenants::run(args, &global),
        Command::Standalone(args) => standalone::run(args, &global),
        Command::Tokens(args) => tokens::run(args),
        Command::Storage(args) => storage::run(args, &global),
        Command::Produce(args) => produce::run(args, &global),
        Command::Consume(args) => consume::run(args, &global),
        Command::Perf(args) => perf::run(args, &global),
        Command::Explain(args) => explain::run(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "geminga", &mut script);
            output::bytes(&script)
        }
    }
}

/// Runs an async command on a runtime of its own.
pub(crate) fn block_on<T>(future: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(future);
    // What still runs (a blocked read of stdin, say) must not hold the exit.
    runtime.shutdown_background();
    outcome
}

/// Parses `NAME=VALUE`.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it as NAME=VALUE".to_owned()),
    }
}

fn report(failure: &Failure) {
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    for diagnostic in &failure.diagnostics {
        let text = diagnostic.to_string();
        if colour && diagnostic.is_error() {
            output::note(&text.replacen("error", "\x1b[1;31merror\x1b[0m", 1));
        } else {
            output::note(&text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
