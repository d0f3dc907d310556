//! `geminga functions`: make, look at, feed, change and remove functions.

mod builtins;
mod flags;
mod history;
mod localrun;
mod state;

use std::path::PathBuf;

use geminga_admin::client::{AdminClient, Code, Component, Registration};
use geminga_functions::runtime::Broken;
use geminga_model::{FunctionConfig, Runtime};
use geminga_stdx::Diagnostic;
use serde_json::Value;

use super::Global;
use super::admin::{self, usage};
use super::component::{self, Action, InstanceArgs, NameArgs, Prepared, failed};
use crate::failure::{Failure, Outcome};
use crate::output;

use flags::FunctionFlags;
pub(crate) use flags::respell;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
        geminga functions create --sh reverse.sh --inputs words --output-topic reversed\n  \
        geminga functions status reverse")]
pub(crate) struct FunctionsArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Create a function from flags, a file, or both
    #[command(after_help = "Examples:\n  \
            geminga functions create --sh reverse.sh --inputs words --output-topic reversed\n  \
            geminga functions create --py count.py --classname count.Count --inputs words\n  \
            geminga functions create --function-type exclaim --inputs words --output-topic loud\n  \
            geminga functions create --function-config-file count.yaml")]
    Create(Box<FunctionFlags>),
    /// Change a function: what is not given stays
    #[command(after_help = "Example:\n  geminga functions update reverse --parallelism 4")]
    Update {
        #[command(flatten)]
        flags: Box<FunctionFlags>,
        /// Have stored credentials read anew; Geminga stores none, so that an update may consist of this alone
        #[arg(long)]
        update_auth_data: bool,
    },
    /// Run a function in this process, without a server's worker
    #[command(after_help = "Example:\n  \
            geminga functions localrun --sh reverse.sh --inputs words --output-topic reversed \
            --broker-service-url pulsar://127.0.0.1:6650")]
    Localrun(localrun::LocalrunArgs),
    /// Show counts and latencies
    #[command(after_help = "Example:\n  geminga functions stats reverse -o json")]
    Stats(InstanceArgs),
    /// Read a value of a function's state
    #[command(after_help = "Example:\n  geminga functions querystate count --key words")]
    Querystate(state::QueryArgs),
    /// Set a value of a function's state
    #[command(after_help = "Example:\n  geminga functions putstate count \
            --state '{\"key\":\"words\",\"numberValue\":7}'")]
    Putstate(state::PutArgs),
    /// Send one message through a function and print what it makes of it
    #[command(after_help = "Example:\n  geminga functions trigger reverse --trigger-value hello")]
    Trigger(TriggerArgs),
    /// List the version that runs and those to go back to
    Versions(history::VersionsArgs),
    /// Go back to a former version, code and configuration
    #[command(after_help = "Example:\n  geminga functions rollback reverse")]
    Rollback(history::RollbackArgs),
    /// Print what all instances say, from the function's log topic
    #[command(after_help = "Example:\n  geminga functions logs reverse --follow --level warn")]
    Logs(history::LogsArgs),
    /// List the built-in functions: those in the server's functionsDirectory
    #[command(after_help = "Example:\n  geminga functions available-functions")]
    AvailableFunctions,
    /// Have the server read its functionsDirectory again; what runs keeps its code
    #[command(after_help = "Example:\n  geminga functions reload")]
    Reload,
    #[command(flatten)]
    Action(Action),
}

#[derive(Debug, clap::Args)]
struct TriggerArgs {
    #[command(flatten)]
    name: NameArgs,
    /// The message as text
    #[arg(long, alias = "triggerValue", conflicts_with = "trigger_file")]
    trigger_value: Option<String>,
    /// The message as a file
    #[arg(long, alias = "triggerFile")]
    trigger_file: Option<std::path::PathBuf>,
    /// The input topic; needed when there are several
    #[arg(long)]
    topic: Option<String>,
}

pub(crate) fn run(args: FunctionsArgs, global: &Global) -> Outcome {
    let format = global.format();
    let command = match args.command {
        Command::Localrun(args) => return localrun::run(&args, global),
        command => command,
    };
    admin::with_client(global, |client| async move {
        let kind = Component::Function;
        match command {
            Command::Localrun(_) => Err(usage("localrun asks no server")),
            Command::Create(flags) => {
                let prepared = prepare(&flags, false).await?;
                component::send(&client, kind, Registration::Create, prepared).await
            }
            Command::Update {
                flags,
                update_auth_data,
            } => {
                let how = Registration::Update {
                    auth_data: update_auth_data,
                };
                component::send(&client, kind, how, prepare(&flags, true).await?).await
            }
            Command::Stats(args) => {
                let name = args.name.resolve()?;
                let stats = client
                    .component_report(kind, name.fqfn(), args.instance_id, "stats")
                    .await
                    .map_err(|error| failed(kind, error))?;
                output::print(
                    format,
                    &stats,
                    |_| component::report::stats_table(&stats, args.instance_id),
                    || vec![name.to_string()],
                )
            }
            Command::Querystate(args) => state::query(&client, &args, format).await,
            Command::Putstate(args) => state::put(&client, &args).await,
            Command::Trigger(args) => trigger(&client, &args).await,
            Command::Versions(args) => history::versions(&client, &args, format).await,
            Command::Rollback(args) => history::roll_back(&client, &args).await,
            Command::Logs(args) => history::logs(&client, &args, global).await,
            Command::AvailableFunctions => builtins::list(&client, format).await,
            Command::Reload => builtins::reload(&client, format).await,
            Command::Action(action) => component::act(&client, kind, action, format).await,
        }
    })
}

/// Flags and file made ready to be sent.
async fn prepare(flags: &FunctionFlags, update: bool) -> Outcome<Prepared> {
    let kind = Component::Function;
    let mut config = flags.config()?;
    let typed: FunctionConfig = serde_json::from_value(Value::Object(config.clone()))
        .map_err(|error| usage(error.to_string()))?;
    let codes = ["jar", "py", "go", "sh", "exec", "wasm", "functionType"];
    let given: Vec<&str> = codes
        .into_iter()
        .filter(|field| config.contains_key(*field))
        .collect();
    let code = match given[..] {
        [] if update => Code::None,
        [] => {
            return Err(usage(
                "no code: give one of --sh, --exec, --py, --go, --jar, --wasm, --function-type",
            ));
        }
        ["functionType"] => Code::Url(format!(
            "builtin://{}",
            typed.function_type.as_deref().unwrap_or_default()
        )),
        [_] => match typed.code() {
            Some((runtime, path)) => code(runtime, path).await?,
            None => component::code("")?,
        },
        [first, second, ..] => {
            return Err(usage(format!(
                "`{first}` and `{second}` are both given: give one of them"
            )));
        }
    };
    let name = component::full_name(kind, &config, typed.name().map(str::to_owned))?;
    component::set_name(&mut config, &name);
    Ok(Prepared {
        name,
        config: Value::Object(config),
        code,
    })
}

/// What is sent along for a function's code: sources in Go and Java are built here, all else is sent as it is.
pub(super) async fn code(runtime: Runtime, path: &str) -> Outcome<Code> {
    use geminga_functions::runtime::{go, java};
    let file = std::path::Path::new(path);
    match runtime {
        Runtime::Go if go::is_source(file) => go_program(path, false).await,
        Runtime::Wasm if go::is_source(file) => go_program(path, true).await,
        Runtime::Java if java::is_source(file) => java_jar(path).await,
        _ => component::code(path),
    }
}

/// Builds Go sources here, so that the server needs no compiler.
async fn go_program(source: &str, wasm: bool) -> Outcome<Code> {
    use geminga_functions::runtime::go;
    let path = std::path::Path::new(source);
    let building = async {
        match wasm {
            true => go::build_wasm(path).await,
            false => go::build(path).await,
        }
    };
    let built = output::patiently(building, || format!("`{source}` is built")).await;
    built_code(source, "function", built)
}

/// Compiles Java sources here, so that the server needs no compiler.
async fn java_jar(source: &str) -> Outcome<Code> {
    let building = geminga_functions::runtime::java::build(std::path::Path::new(source));
    let built = output::patiently(building, || format!("`{source}` is compiled")).await;
    built_code(source, "function.jar", built)
}

fn built_code(source: &str, name: &str, built: Result<PathBuf, Broken>) -> Outcome<Code> {
    let program = built.map_err(|broken| {
        let mut error = Diagnostic::error("G0412", format!("`{source}` was not built"))
            .help("mend what the compiler says and run the same command again");
        error = match broken {
            Broken::Deployment {
                reason,
                stderr_tail,
            }
            | Broken::Start {
                reason,
                stderr_tail,
            } => error.cause(format!("{reason}\n{stderr_tail}").trim_end().to_owned()),
            Broken::Stopped => error,
        };
        Failure::new(crate::failure::Exit::Usage, error)
    })?;
    Ok(Code::File {
        name: name.to_owned(),
        path: program,
    })
}

async fn trigger(client: &AdminClient, args: &TriggerArgs) -> Outcome {
    let name = args.name.resolve()?;
    let payload = match (&args.trigger_value, &args.trigger_file) {
        (Some(text), _) => text.clone().into_bytes(),
        (None, Some(path)) => std::fs::read(path).map_err(Failure::from)?,
        (None, None) => return Err(usage("give --trigger-value or --trigger-file")),
    };
    let answer = client
        .trigger_function(name.fqfn(), args.topic.as_deref(), &payload)
        .await
        .map_err(|error| failed(Component::Function, error))?;
    output::line(&String::from_utf8_lossy(&answer))
}

#[cfg(test)]
mod tests;
