//! `geminga run`: a mesh, a configuration or a script, now, until its input is drained.
//!
//! A mesh runs on a broker in this process, or on the one that `--service-url` names; a script
//! alone needs none: standard input goes through it line by line. What is asked for goes to stdout,
//! the graph and the progress to stderr.

mod progress;
pub(in crate::cli) mod script;
mod table;

use std::path::{Path, PathBuf};
use std::time::Duration;

use geminga_functions::{SecretRules, Worker, WorkerConfig};
use geminga_mesh::load::{Component, Config};
use geminga_mesh::plan::Plan;
use geminga_stdx::{Diagnostic, Random};
use tokio::signal::unix::{SignalKind, signal};

use self::progress::{Counts, Display};
use super::{Global, block_on, mesh};
use crate::config::{DATA_DIR_DEFAULT, DataArgs};
use crate::failure::{Exit, Failure, Outcome, with_sources};
use crate::output;
use crate::serve::standalone::{Options, Standalone};

/// How often the display is renewed and the end looked for.
const TICK: Duration = Duration::from_millis(50);
/// What the end may take.
const STOP_GRACE: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    geminga run examples/earthquakes/mesh.yaml\n  \
    geminga run --service-url pulsar://broker:6650 mesh.yaml\n  \
    printf 'hello\\n' | geminga run reverse.sh")]
pub(crate) struct RunArgs {
    /// A mesh or a configuration (.yaml, .json), or a script or executable
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Read a script's messages from this file instead of standard input, one a line
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Settings of a script's runtime, as JSON: mode, timeoutMs, limits, ...
    #[arg(long, value_name = "JSON")]
    custom_runtime_options: Option<String>,
    #[command(flatten)]
    data: DataArgs,
}

pub(crate) fn run(args: RunArgs, global: &Global) -> Outcome {
    let is_mesh = args
        .file
        .extension()
        .and_then(|extension| extension.to_str())
        .is_some_and(|extension| ["yaml", "yml", "json"].contains(&extension));
    if !is_mesh {
        return block_on(script::run(
            &args.file,
            args.input.as_deref(),
            args.custom_runtime_options,
        ));
    }
    if args.custom_runtime_options.is_some() {
        let message =
            "`--custom-runtime-options` is for scripts: a mesh has its own for each function";
        return Err(super::admin::usage(message));
    }
    if args.input.is_some() {
        let message = "`--input` is for scripts: a mesh says itself what it reads";
        return Err(super::admin::usage(message));
    }
    let plan = mesh::load(std::slice::from_ref(&args.file))?;
    output::note(&mesh::drawing(&plan));
    output::note("");
    block_on(run_mesh(plan, args.data, global))
}

/// A broker of our own, or none.
struct Broker {
    server: Option<Standalone>,
    url: String,
    /// A directory made for this run alone.
    directory: Option<PathBuf>,
}

impl Broker {
    async fn start(mut data: DataArgs, service_url: Option<String>) -> Outcome<Self> {
        if let Some(url) = service_url {
            return Ok(Self {
                server: None,
                url,
                directory: None,
            });
        }
        // Each run begins anew, so that it gives the same answer, unless it was told where its
        // data is.
        let mut directory = None;
        if data.data.is_none() && !data.ephemeral {
            let name = format!("run-{}", Random::from_entropy().name(6));
            let path = Path::new(DATA_DIR_DEFAULT).join(name);
            data.data = Some(path.clone());
            directory = Some(path);
        }
        let server = Standalone::start(&Options {
            bind: std::net::Ipv4Addr::LOCALHOST.into(),
            port: 0,
            http_port: 0,
            broker: geminga_broker::BrokerConfig::default(),
            advertised_address: None,
            data,
            worker: false,
            functions_directory: None,
            token: None,
            secrets: SecretRules::default(),
        })
        .await?;
        Ok(Self {
            url: server.service_url(),
            server: Some(server),
            directory,
        })
    }

    /// Stops it; the data of a run that went well is not needed any more.
    async fn stop(self, went_well: bool) {
        if let Some(server) = self.server
            && !server.stop().await
        {
            output::note("warning: not everything ended in time; what was acknowledged is safe");
        }
        match self.directory {
            Some(directory) if went_well => {
                let _ = std::fs::remove_dir_all(&directory);
                // Only when it is empty.
                let _ = std::fs::remove_dir(DATA_DIR_DEFAULT);
            }
            Some(directory) => output::note(&format!(
                "the data of this run is kept: geminga standalone --data {}",
                directory.display()
            )),
            None => {}
        }
    }
}

async fn run_mesh(plan: Plan, data: DataArgs, global: &Global) -> Outcome {
    let broker = Broker::start(data, global.service_url.clone()).await?;
    let ran = run_on(&plan, &broker, global).await;
    broker.stop(ran.is_ok()).await;
    ran
}

async fn run_on(plan: &Plan, broker: &Broker, global: &Global) -> Outcome {
    let global = Global {
        service_url: Some(broker.url.clone()),
        ..global.clone()
    };
    let client = super::client::client(&global).await?;
    let scratch = std::env::temp_dir().join(format!("geminga-{}", Random::from_entropy().name(8)));
    let worker_config = WorkerConfig {
        reach: Some(super::client::own_reach(&global)?),
        wasm: crate::serve::wasm(),
        // Whoever wrote the files runs them.
        secrets: SecretRules::everything(),
        ..WorkerConfig::ephemeral(client.clone(), &scratch)
    };
    let worker = Worker::start(worker_config)
        .await
        .map_err(|error| worker_failure("the worker does not start", &error))?;
    let ran = serve(plan, broker, &worker).await;
    worker.shutdown(STOP_GRACE).await;
    client.close().await;
    let _ = std::fs::remove_dir_all(&scratch);
    ran
}

async fn serve(plan: &Plan, broker: &Broker, worker: &Worker) -> Outcome {
    let is_bounded = is_bounded(plan);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let names: Vec<String> = plan
        .components
        .iter()
        .map(|it| it.name().to_owned())
        .collect();
    let mut display = Display::new(names, is_bounded);
    // Readers first: what is written later finds their subscriptions.
    for node in plan.graph.start_order() {
        let component = &plan.components[node];
        let created = worker.create(component.config.clone().into(), None);
        tokio::select! {
            created = created => created.map_err(|error| {
                let what = format!("{} `{}` does not start", component.kind(), component.name());
                worker_failure(&what, &error)
            })?,
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
        };
    }
    if !is_bounded {
        display.say(&format!("running on {}; stop it with Ctrl-C", broker.url));
    }
    let drained = async {
        match is_bounded {
            true => worker.drained().await,
            // It ends when it is told to.
            false => std::future::pending().await,
        }
    };
    tokio::pin!(drained);
    let mut tick = tokio::time::interval(TICK);
    let ended = loop {
        tokio::select! {
            () = &mut drained => break Ok(()),
            _ = interrupt.recv() => break interrupted(is_bounded),
            _ = terminate.recv() => break interrupted(is_bounded),
            _ = tick.tick() => {
                display.show(&counts(plan, worker));
                if let Some(failure) = broken(worker) {
                    break Err(failure);
                }
            }
        }
    };
    let counts = counts(plan, worker);
    display.finish(&counts);
    ended?;
    for (id, table) in worker.tables() {
        let (heading, rows) = table.render();
        let title = table.settings().title.clone().unwrap_or(id.name);
        output::line(&table::render(Some(&title), &heading, &rows))?;
    }
    let given_up: u64 = worker.progress().iter().map(|it| it.dead_lettered).sum();
    if given_up > 0 {
        let message = format!("{given_up} events could not be processed and were given up");
        let error = Diagnostic::error("G0410", message)
            .help("they are in the dead letter topics, with the reason as a property");
        return Err(Failure::new(Exit::PartlyDone, error));
    }
    Ok(())
}

/// Stopping what would go on for ever is how it ends; stopping a drain leaves it undone.
fn interrupted(is_bounded: bool) -> Outcome {
    if !is_bounded {
        return Ok(());
    }
    let error = Diagnostic::error("G0411", "stopped before the input was drained");
    Err(Failure::new(Exit::PartlyDone, error))
}

/// Whether the input comes to an end: there are sources, and each of them ends.
fn is_bounded(plan: &Plan) -> bool {
    let mut sources = plan
        .components
        .iter()
        .filter_map(|component| match &component.config {
            Config::Source(config) => Some(config.configs.clone().unwrap_or_default()),
            _ => None,
        });
    let ends = |settings| {
        // The settings were read once already, when the plan was made.
        serde_json::from_value::<geminga_mesh::builtin::FileSource>(serde_json::Value::Object(
            settings,
        ))
        .is_ok_and(|file| file.is_bounded())
    };
    plan.components
        .iter()
        .any(|component| component.kind() == "source")
        && sources.all(ends)
}

/// The counts in the order of the plan.
fn counts(plan: &Plan, worker: &Worker) -> Vec<Counts> {
    let progress = worker.progress();
    let of = |component: &Component| {
        let fqfn = component.fqfn();
        let found = progress
            .iter()
            .find(|it| it.id.fqfn() == fqfn && it.id.kind.as_str() == component.kind());
        found.map_or_else(Counts::default, |it| Counts {
            received: it.received,
            written: it.written,
            failed: it.failed,
            retried: it.retried,
            total: it.total.unwrap_or(0),
            last_error: it.degraded.clone(),
        })
    };
    plan.components.iter().map(of).collect()
}

/// Starts of a component in a row that are enough to give up.
const STARTS_MAX: u64 = 5;

/// A component that cannot run. On a server it would be tried for ever; nobody waits that long here.
fn broken(worker: &Worker) -> Option<Failure> {
    let progress = worker.progress();
    let it = progress
        .iter()
        .find(|it| it.degraded.is_some() && it.restarts >= STARTS_MAX)?;
    let message = format!("{} `{}` cannot run", it.id.kind.as_str(), it.id.name);
    let mut error = Diagnostic::error("G0412", message);
    if let Some(why) = &it.degraded {
        error = error.cause(why.clone());
    }
    Some(Failure::new(Exit::Failed, error))
}

fn worker_failure(what: &str, error: &geminga_functions::WorkerError) -> Failure {
    let exit = match error {
        geminga_functions::WorkerError::Client { .. } => Exit::Unreachable,
        geminga_functions::WorkerError::Invalid(_) => Exit::Usage,
        _ => Exit::Failed,
    };
    let cause = with_sources(error);
    Failure::new(exit, Diagnostic::error("G0412", what).cause(cause))
}
