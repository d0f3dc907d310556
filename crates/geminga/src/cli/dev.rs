//! `geminga dev`: a server and one function, for the person who writes it.
//!
//! Lines typed go into the function's first input topic, its outputs come to standard output, its log to
//! standard error. With `--watch`, what is saved is tried first, apart from the messages: only code that
//! starts takes the place of the old one, and the old one finishes what it has. What must hold: the code that
//! runs is a copy, so that a file half written or wrong never runs, not even after a crash; no event is lost by
//! a reload, since the subscription stays.

mod version;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use geminga_client::{Client, InitialPosition, SubType};
use geminga_functions::runtime::LogLine;
use geminga_functions::{Component, ComponentId, SecretRules, Worker, WorkerError};
use geminga_model::FunctionConfig;
use geminga_stdx::{Diagnostic, Random};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::version::Version;
use super::source::{self, FileAt, Source};
use super::{Global, block_on, client};
use crate::config::DataArgs;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Format};
use crate::serve::standalone::{Options, Standalone};

/// How often files and failures are looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Lines that wait for the broker.
const LINES_WAITING: usize = 100;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    geminga dev --watch\n  \
    geminga dev count.py --watch\n  \
    printf 'hello\\n' | geminga dev hello --port 0 --http-port 0")]
pub(crate) struct DevArgs {
    /// The function: a directory with a function.yaml, a configuration, or a script
    #[arg(value_name = "PATH", default_value = ".")]
    path: PathBuf,
    /// Take new code when a file is saved; what does not start is said, and the old code goes on
    #[arg(long)]
    watch: bool,
    /// The port of Pulsar's binary protocol; 0 takes a free one
    #[arg(long, default_value_t = 6650, env = "GEMINGA_PORT")]
    port: u16,
    /// The port of the admin API; 0 takes a free one
    #[arg(long, default_value_t = 8080, env = "GEMINGA_HTTP_PORT")]
    http_port: u16,
    #[command(flatten)]
    data: DataArgs,
}

pub(crate) fn run(args: DevArgs, global: &Global) -> Outcome {
    let source = Source::of(&args.path)?;
    let copies = std::env::temp_dir().join(format!(
        "geminga-dev-{}-{}",
        std::process::id(),
        Random::from_entropy().name(6)
    ));
    let outcome = block_on(serve(args, source, global, &copies));
    // Only copies are in it.
    let _ = std::fs::remove_dir_all(&copies);
    outcome
}

async fn serve(mut args: DevArgs, source: Source, global: &Global, copies: &Path) -> Outcome {
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    args.data.ephemeral |= args.data.data.is_none();
    let options = Options {
        bind: std::net::Ipv4Addr::LOCALHOST.into(),
        port: args.port,
        http_port: args.http_port,
        advertised_address: None,
        broker: geminga_broker::BrokerConfig::default(),
        data: args.data.clone(),
        worker: true,
        functions_directory: None,
        token: None,
        secrets: SecretRules::everything(),
    };
    let on_log = Arc::new(|_: &ComponentId, _: u32, line: &LogLine| {
        output::note(&format!("{} {}", line.level.as_str(), line.text));
    });
    let server = Standalone::start_with(&options, Some(on_log)).await?;
    let global = Global {
        service_url: Some(server.service_url()),
        ..global.clone()
    };
    let running = async {
        let worker = server.worker().cloned().ok_or_else(|| {
            Failure::from(Diagnostic::error(
                "G0400",
                "the functions worker did not start",
            ))
        })?;
        let mut bench = Bench {
            worker,
            client: client::client(&global).await?,
            source,
            copies: copies.to_owned(),
            kept: Vec::new(),
            data: args.data.data.clone(),
            running: None,
            tried: 0,
            told_ms: 0,
        };
        Box::pin(bench.work(&args, &server, &global)).await
    };
    let outcome = tokio::select! {
        outcome = running => outcome,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    };
    if !server.stop().await {
        output::note("warning: not everything ended in time; what was acknowledged is safe");
    }
    outcome
}

/// What runs, and what it came from.
struct Running {
    id: ComponentId,
    version: Version,
}

/// The function under work.
struct Bench {
    worker: Worker,
    client: Client,
    source: Source,
    copies: PathBuf,
    /// Copies that run or still may, oldest first.
    kept: Vec<PathBuf>,
    /// Where the server keeps its data, when it does.
    data: Option<PathBuf>,
    running: Option<Running>,
    /// Versions tried, good and bad.
    tried: u32,
    /// The newest failure that was told.
    told_ms: u64,
}

impl Bench {
    async fn work(&mut self, args: &DevArgs, server: &Standalone, global: &Global) -> Outcome {
        let mut seen = match args.watch {
            true => source::files(self.source.folder())?,
            false => Vec::new(),
        };
        match self.take().await {
            Ok(()) => {}
            Err(failure) if !args.watch => return Err(failure),
            Err(failure) => {
                say(&failure);
                output::note("waiting for a file to be saved");
            }
        }
        let (lines_in, mut lines) = mpsc::channel(LINES_WAITING);
        let reading = read_lines(lines_in);
        tokio::pin!(reading);
        let mut read_all = false;
        let mut ends = self.ends(server, args, global).await?;
        let mut tick = tokio::time::interval(LOOK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // What was saved may still be written: it is taken when it has been still for one look.
        let mut changing: Option<Vec<FileAt>> = None;
        loop {
            tokio::select! {
                () = &mut reading, if !read_all => read_all = true,
                Some(line) = lines.recv(), if ends.is_some() => {
                    if let Some(ends) = &mut ends {
                        ends.send(line, global).await?;
                    }
                }
                got = next_output(&mut ends) => {
                    for payload in got.map_err(|error| client::failure(&error, global))? {
                        output::line(&String::from_utf8_lossy(&payload))?;
                    }
                }
                _ = tick.tick() => {
                    self.tell_failures();
                    if !args.watch {
                        continue;
                    }
                    let now = source::files(self.source.folder())?;
                    if now == seen {
                        changing = None;
                    } else if changing.as_ref() == Some(&now) {
                        changing = None;
                        let names = version::changed(&seen, &now);
                        seen = now;
                        self.reload(&names).await;
                        let output = self.running.as_ref().and_then(|it| it.version.config.output.as_deref());
                        let same = |ends: &Ends| ends.output == output.map(source::full_name);
                        if !ends.as_ref().is_some_and(same) {
                            ends = self.ends(server, args, global).await?;
                        }
                    } else {
                        changing = Some(now);
                    }
                }
            }
        }
    }

    /// Makes a version of what is saved, tries it, and has it run. Of the copies only those that may
    /// run stay.
    async fn take(&mut self) -> Outcome {
        self.tried += 1;
        let folder = self.copies.join(self.tried.to_string());
        let (used, outcome) = match self.take_from(&folder).await {
            Ok(used) => (used, Ok(())),
            Err((used, failure)) => (used, Err(failure)),
        };
        let gone = match used {
            // The one before finishes what it has.
            true => {
                self.kept.push(folder);
                (self.kept.len() > 2).then(|| self.kept.remove(0))
            }
            false => Some(folder),
        };
        if let Some(gone) = gone {
            version::remove(gone).await;
        }
        outcome
    }

    /// Also says whether the copy in `folder` may be used from now on.
    async fn take_from(&mut self, folder: &Path) -> Result<bool, (bool, Failure)> {
        let unused = |failure| (false, failure);
        let version = Version::make(&self.source, folder).await.map_err(unused)?;
        if self
            .running
            .as_ref()
            .is_some_and(|it| it.version.config == version.config)
        {
            return Ok(false);
        }
        version.check().await.map_err(unused)?;
        let component = Component::from(version.config.clone());
        let refused = |error: WorkerError| {
            // Otherwise nobody knows whether it was stored.
            let used = !matches!(
                error,
                WorkerError::Invalid(_) | WorkerError::RolledBack { .. }
            );
            let text = version.as_written(&error.to_string());
            let help = match (&self.running, &self.data) {
                (None, Some(data)) => format!(
                    "what a function may not change is as `{}` has it: name another directory",
                    data.display()
                ),
                _ => "what a running function may not change needs a new start of `geminga dev`"
                    .to_owned(),
            };
            let failure = Diagnostic::error("G0412", "the new configuration is refused")
                .at(self.source.file.clone(), 0, 0)
                .cause(text)
                .help(help);
            (used, failure.into())
        };
        let id = match &self.running {
            Some(running) => {
                let id = running.id.clone();
                let updated = self.worker.replace(&id, component).await;
                updated.map_err(refused)?;
                id
            }
            None => match self.worker.create(component.clone(), None).await {
                // From an earlier start with the same data.
                Err(WorkerError::Exists(id)) => {
                    match self.worker.replace(&id, component).await {
                        Err(WorkerError::Invalid(why)) if why == ["Update contains no change"] => {}
                        updated => updated.map_err(refused)?,
                    }
                    id
                }
                created => created.map_err(refused)?,
            },
        };
        self.running = Some(Running { id, version });
        Ok(true)
    }

    async fn reload(&mut self, names: &str) {
        let began = Instant::now();
        let before = self.running.as_ref().map(|it| it.version.config.clone());
        match self.take().await {
            Ok(()) if self.running.as_ref().map(|it| &it.version.config) == before.as_ref() => {}
            Ok(()) => output::note(&format!(
                "{names} saved: version {} runs after {} ms",
                self.tried,
                began.elapsed().as_millis()
            )),
            Err(failure) => {
                say(&failure);
                output::note(match before {
                    Some(_) => "the version before goes on; nothing is lost",
                    None => "waiting for a file to be saved",
                });
            }
        }
    }

    /// Says what failed since the last look.
    fn tell_failures(&mut self) {
        let Some(running) = &self.running else {
            return;
        };
        let Ok(status) = self.worker.status(&running.id) else {
            return;
        };
        let all = status.instances.iter().flat_map(|instance| {
            let user = instance.status.latest_user_exceptions.iter();
            user.chain(&instance.status.latest_system_exceptions)
        });
        let newest = all.clone().map(|it| it.timestamp_ms).max().unwrap_or(0);
        for failure in all.filter(|it| it.timestamp_ms > self.told_ms) {
            let text = running.version.as_written(&failure.exception_string);
            output::note(&format!(
                "FAILED {}",
                text.lines().next().unwrap_or_default()
            ));
        }
        self.told_ms = self.told_ms.max(newest);
    }

    /// The topics of the function that runs, once there is one; and says where it is.
    async fn ends(
        &self,
        server: &Standalone,
        args: &DevArgs,
        global: &Global,
    ) -> Outcome<Option<Ends>> {
        let Some(running) = &self.running else {
            return Ok(None);
        };
        let config = &running.version.config;
        let ends = Ends::open(&self.client, config).await;
        let ends = ends.map_err(|error| client::failure(&error, global))?;
        let name = config.name().unwrap_or_default();
        if global.format() == Format::Json {
            output::line(
                &json!({
                    "function": name,
                    "serviceUrl": server.service_url(),
                    "adminUrl": server.admin_url(),
                    "input": ends.input,
                    "output": ends.output,
                    "pid": std::process::id(),
                })
                .to_string(),
            )?;
            return Ok(Some(ends));
        }
        let mut text = format!(
            "function {name} runs\n  clients    {}\n  admin API  {}\n  input      {}{}",
            server.service_url(),
            server.admin_url(),
            ends.input.as_deref().unwrap_or("a pattern"),
            if ends.input.is_some() {
                ", and the lines that you type"
            } else {
                ""
            },
        );
        if let Some(output) = &ends.output {
            text.push_str(&format!("\n  output     {output}, shown here"));
        }
        if args.watch {
            text.push_str(&format!(
                "\n  watched    {}",
                self.source.folder().display()
            ));
        }
        text.push_str("\n  stop it with Ctrl-C");
        output::note(&text);
        Ok(Some(ends))
    }
}

fn say(failure: &Failure) {
    for diagnostic in &failure.diagnostics {
        output::note(&diagnostic.to_string());
    }
}

/// Reads standard input to its end, line by line.
async fn read_lines(into: mpsc::Sender<Bytes>) {
    let mut lines = BufReader::new(tokio::io::stdin());
    let mut line = Vec::new();
    while matches!(lines.read_until(b'\n', &mut line).await, Ok(1..)) {
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        if into.send(std::mem::take(&mut line).into()).await.is_err() {
            return;
        }
    }
}

/// The first input of a function and its output.
struct Ends {
    input: Option<String>,
    output: Option<String>,
    producer: Option<geminga_client::Producer>,
    consumer: Option<geminga_client::Consumer>,
}

impl Ends {
    async fn open(client: &Client, config: &FunctionConfig) -> Result<Self, geminga_client::Error> {
        let inputs = config.all_inputs().unwrap_or_default();
        let input = inputs
            .iter()
            .find(|(_, spec)| spec.regex_pattern != Some(true))
            .map(|(topic, _)| source::full_name(topic));
        let output = config.output.as_deref().map(source::full_name);
        let producer = match &input {
            Some(topic) => Some(client.producer(topic).build().await?),
            None => None,
        };
        let consumer = match &output {
            Some(topic) => {
                let name = format!("geminga-dev-{}", Random::from_entropy().name(8));
                let consumer = client
                    .consumer(topic)
                    .subscription(name)
                    .durable(false)
                    .sub_type(SubType::Exclusive)
                    // What the function gave since it began, a moment ago.
                    .initial_position(InitialPosition::Latest);
                Some(consumer.build().await?)
            }
            None => None,
        };
        Ok(Self {
            input,
            output,
            producer,
            consumer,
        })
    }

    async fn send(&mut self, line: Bytes, global: &Global) -> Outcome {
        let Some(producer) = &self.producer else {
            return Ok(());
        };
        let sent = producer.post(geminga_client::Message::new(line)).await;
        sent.map_err(|error| client::failure(&error, global))
    }
}

async fn next_output(ends: &mut Option<Ends>) -> Result<Vec<Bytes>, geminga_client::Error> {
    let consumer = ends.as_mut().and_then(|ends| ends.consumer.as_mut());
    match consumer {
        Some(consumer) => {
            let messages = consumer.recv_batch(1000).await?;
            consumer.ack_many(messages.iter().map(|it| &it.id)).await?;
            Ok(messages.into_iter().map(|it| it.payload).collect())
        }
        None => std::future::pending().await,
    }
}
