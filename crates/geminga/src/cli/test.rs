//! `geminga test`: the cases that stand beside functions, run without a broker.
//!
//! `NAME.test.yaml` holds the cases of `NAME.yaml`, or of the script that it names. Each case runs in a
//! fresh host with state of its own. What must hold: a case passes only when all that it names came as
//! wanted, and no message failed that was not meant to.

mod cases;
mod compare;
mod junit;
mod update;

use std::path::{Path, PathBuf};
use std::time::Duration;

use geminga_functions::runtime::Message;
use geminga_functions::{Trial, TrialReport, WorkerError, run_trial};
use geminga_model::FunctionConfig;
use geminga_stdx::Diagnostic;
use serde::Serialize;
use tokio::time::Instant;

use self::cases::{Case, CaseFile};
use super::source::{self, Source};
use super::{Global, block_on};
use crate::failure::{Exit, Failure, Outcome};
use crate::output::{self, Format, Table};

/// What a file of cases is called.
const ENDING: &str = ".test.yaml";
/// Files and folders among which cases are looked for: a whole repository may be one's argument.
const LOOKED_MAX: usize = 1_000_000;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    geminga test\n  \
    geminga test functions/count.test.yaml --junit results.xml\n  \
    geminga test --update")]
pub(crate) struct TestArgs {
    /// Files of cases, functions that have some beside them, or directories in which they are looked for;
    /// here when left out
    #[arg(value_name = "PATH", default_value = ".")]
    paths: Vec<PathBuf>,
    /// Write the results to this file too, as JUnit's XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Accept what the functions give now: write it into the cases that fail
    #[arg(long)]
    update: bool,
}

/// A case that ran.
pub(super) struct Ran {
    file: PathBuf,
    name: String,
    line: usize,
    took: Duration,
    wrong: Option<Wrong>,
}

/// Why a case failed.
enum Wrong {
    /// The difference.
    Differs(String),
    /// The function does not run.
    Broken(Box<Diagnostic>, String),
    /// It says nothing of what should come.
    Empty(String),
}

impl Wrong {
    fn summary(&self) -> &str {
        match self {
            Self::Differs(_) => "it gives something else",
            Self::Broken(diagnostic, _) => &diagnostic.message,
            Self::Empty(_) => "the case expects nothing",
        }
    }

    fn text(&self) -> &str {
        match self {
            Self::Differs(text) | Self::Broken(_, text) | Self::Empty(text) => text,
        }
    }
}

pub(crate) fn run(args: TestArgs, global: &Global) -> Outcome {
    let files = find(&args.paths)?;
    let mut all = Vec::new();
    let mut updated = 0;
    for path in &files {
        let file = cases::read(path)?;
        let config = function(&file)?;
        let (ran, accepted) = block_on(async { Ok(run_file(&file, &config).await) })?;
        if global.format() == Format::Table && !args.update {
            show(path, &ran);
        }
        if args.update {
            updated += accept(path, &accepted)?;
            show_broken(&ran);
        }
        all.extend(ran);
    }
    if let Some(path) = &args.junit {
        std::fs::write(path, junit::report(&all)).map_err(|error| {
            let message = format!("`{}` cannot be written", path.display());
            Diagnostic::error("G0001", message).cause(error.to_string())
        })?;
    }
    let broken = |ran: &Ran| matches!(ran.wrong, Some(Wrong::Broken(..)));
    if args.update {
        output::note(&format!("{updated} cases updated"));
        let broken = all.iter().filter(|ran| broken(ran)).count();
        return end(broken, all.len(), false);
    }
    let failed = all.iter().filter(|ran| ran.wrong.is_some()).count();
    print(global.format(), &all)?;
    end(
        failed,
        all.len(),
        all.iter().any(|ran| !broken(ran) && ran.wrong.is_some()),
    )
}

fn end(failed: usize, of: usize, can_update: bool) -> Outcome {
    if failed == 0 {
        return Ok(());
    }
    let mut error = Diagnostic::error("G0420", format!("{failed} of {of} cases failed"));
    if can_update {
        error =
            error.help("if what came is right, `geminga test --update` writes it into the cases");
    }
    Err(error.into())
}

/// The files of cases at some paths, each once, in order.
fn find(paths: &[PathBuf]) -> Outcome<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            let cases = source::files_called(path, ENDING, LOOKED_MAX)?;
            files.extend(cases.into_iter().map(|file| path.join(file.name)));
        } else if path.exists() {
            files.push(beside(path).unwrap_or_else(|| path.clone()));
        } else {
            let error = Diagnostic::error("G0310", format!("there is no `{}`", path.display()))
                .help("name a file of cases, the function that it is of, or a directory");
            return Err(Failure::new(Exit::Usage, error));
        }
    }
    // `./f` and `f` are one.
    for file in &mut files {
        if let Ok(plain) = file.strip_prefix(".") {
            *file = plain.to_owned();
        }
    }
    files.sort();
    files.dedup();
    if files.is_empty() {
        let places: Vec<_> = paths
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        let message = format!("no cases in `{}`", places.join("`, `"));
        let error = Diagnostic::error("G0422", message)
            .cause(format!("a file of cases is called NAME{ENDING}"))
            .help("geminga init bash hello; geminga test hello");
        return Err(Failure::new(Exit::NotFound, error));
    }
    Ok(files)
}

/// The cases that stand beside a configuration or a script, when that is what was named.
fn beside(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    if name.ends_with(ENDING) {
        return None;
    }
    let cases = path.with_file_name(format!("{}{ENDING}", path.file_stem()?.to_str()?));
    cases.is_file().then_some(cases)
}

/// The function that a file of cases is of.
fn function(file: &CaseFile) -> Outcome<FunctionConfig> {
    let directory = file.path.parent().unwrap_or(Path::new(""));
    if let Some(named) = &file.function {
        return Source::of(&directory.join(named))?.load();
    }
    let shown = file.path.file_name().unwrap_or_default().to_string_lossy();
    let stem = shown.strip_suffix(ENDING).unwrap_or(&shown);
    let beside = ["yaml", "yml", "json", "sh", "bash", "py", "go", "wasm"]
        .map(|ending| directory.join(format!("{stem}.{ending}")));
    match beside.iter().find(|path| path.exists()) {
        Some(path) => Source::of(path)?.load(),
        None => {
            let message = format!("there is no function beside `{}`", file.path.display());
            let error = Diagnostic::error("G0313", message)
                .cause(format!(
                    "neither `{stem}.yaml` nor a script of that name is there"
                ))
                .help("name it in the file: `function: FILE`");
            Err(Failure::new(Exit::Usage, error))
        }
    }
}

/// Cases with what should stand in the file for them to pass.
type Accepted<'f> = Vec<(&'f Case, Vec<String>)>;

async fn run_file<'f>(file: &'f CaseFile, config: &FunctionConfig) -> (Vec<Ran>, Accepted<'f>) {
    let mut all = Vec::new();
    let mut accepted = Vec::new();
    let mut broken: Option<(Diagnostic, String)> = None;
    for case in &file.cases {
        let began = Instant::now();
        let wrong = if let Some((diagnostic, text)) = &broken {
            // It was said once.
            Some(Wrong::Broken(Box::new(diagnostic.clone()), text.clone()))
        } else {
            let name = config.name().unwrap_or("the function");
            let running = Box::pin(run_case(case, config));
            let what = || format!("`{name}` is built, or starts");
            match output::patiently(running, what).await {
                Err(error) => {
                    let text = error.to_string();
                    let diagnostic = source::broken(config, &text);
                    broken = Some((diagnostic.clone(), text.clone()));
                    Some(Wrong::Broken(Box::new(diagnostic), text))
                }
                Ok(report) => {
                    let wrong = judge(case, &report);
                    if wrong.is_some() {
                        accepted.push((case, compare::accepted(case, &report)));
                    }
                    wrong
                }
            }
        };
        all.push(Ran {
            file: file.path.clone(),
            name: case.name.clone(),
            line: case.line,
            took: began.elapsed(),
            wrong,
        });
    }
    (all, accepted)
}

fn judge(case: &Case, report: &TrialReport) -> Option<Wrong> {
    if case.expect.is_none() {
        let mut text = "the case expects nothing; now it would be\n".to_owned();
        for line in compare::accepted(case, report) {
            text.push_str(&format!("+{line}\n"));
        }
        return Some(Wrong::Empty(text));
    }
    compare::difference(case, report).map(Wrong::Differs)
}

async fn run_case(case: &Case, config: &FunctionConfig) -> Result<TrialReport, WorkerError> {
    let mut config = config.clone();
    if !case.config.is_empty() {
        let user = config.user_config.get_or_insert_default();
        user.extend(case.config.clone());
    }
    if !case.secrets.is_empty() {
        let secrets = config.secrets.get_or_insert_default();
        secrets.extend(case.secrets.clone());
    }
    let first = config.all_inputs().ok();
    let first = first.and_then(|inputs| inputs.into_keys().next());
    let topic = |given: &Option<String>| {
        let name = given.clone().or_else(|| first.clone());
        source::full_name(&name.unwrap_or_else(|| "in".to_owned()))
    };
    let messages = case.messages.iter().map(|input| Message {
        topic: topic(&input.topic).into(),
        payload: input.payload.clone(),
        key: input.key.clone(),
        properties: input.properties.clone(),
        event_time: input.event_time,
        redelivery: input.redelivery,
        partition: -1,
        ..Message::default()
    });
    let trial = Trial {
        messages: messages.collect(),
        state: case.state.clone(),
    };
    run_trial(config, trial, crate::serve::wasm().as_ref()).await
}

/// Writes what is accepted into a file; how many cases that changed.
fn accept(path: &Path, accepted: &Accepted<'_>) -> Outcome<usize> {
    if accepted.is_empty() {
        return Ok(0);
    }
    let mut text = std::fs::read_to_string(path)?;
    // From the end, so that the lines of those before stay where they are.
    for (case, expect) in accepted.iter().rev() {
        text = update::with_expect(path, &text, case, expect).map_err(|why| {
            let message = format!("`{}` cannot be updated", path.display());
            Diagnostic::error("G0421", message)
                .at(path, case.line, case.column)
                .cause(why)
        })?;
    }
    let next = path.with_extension("yaml.next");
    std::fs::write(&next, text)?;
    std::fs::rename(&next, path)?;
    Ok(accepted.len())
}

fn show(path: &Path, all: &[Ran]) {
    let mut text = format!("{}\n", path.display());
    for ran in all {
        let mark = if ran.wrong.is_none() { "ok  " } else { "FAIL" };
        text.push_str(&format!(
            "  {mark}  {}  {} ms\n",
            ran.name,
            ran.took.as_millis()
        ));
        if let Some(Wrong::Differs(lines) | Wrong::Empty(lines)) = &ran.wrong {
            for line in lines.lines() {
                text.push_str(&format!("        {line}\n"));
            }
        }
    }
    // A closed stdout is noticed when the summary is printed.
    let _ = output::line(text.trim_end());
    show_broken(all);
}

/// Says once why a function does not run.
fn show_broken(all: &[Ran]) {
    let broken = all.iter().find_map(|ran| match &ran.wrong {
        Some(Wrong::Broken(diagnostic, _)) => Some(diagnostic),
        _ => None,
    });
    if let Some(diagnostic) = broken {
        output::note(&diagnostic.to_string());
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Result_<'a> {
    file: &'a Path,
    name: &'a str,
    line: usize,
    passed: bool,
    took_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    difference: Option<&'a str>,
}

#[derive(Serialize)]
struct Summary<'a> {
    passed: usize,
    failed: usize,
    cases: Vec<Result_<'a>>,
}

fn print(format: Format, all: &[Ran]) -> Outcome {
    let failed = all.iter().filter(|ran| ran.wrong.is_some()).count();
    let passed = all.len() - failed;
    if format == Format::Table {
        return output::line(&format!("{passed} passed, {failed} failed"));
    }
    let cases = all.iter().map(|ran| Result_ {
        file: &ran.file,
        name: &ran.name,
        line: ran.line,
        passed: ran.wrong.is_none(),
        took_ms: u64::try_from(ran.took.as_millis()).unwrap_or(u64::MAX),
        reason: ran.wrong.as_ref().map(Wrong::summary),
        difference: ran.wrong.as_ref().map(Wrong::text),
    });
    let summary = Summary {
        passed,
        failed,
        cases: cases.collect(),
    };
    let table = |_| {
        let mut table = Table::new(&["file", "line", "case", "result", "ms"]);
        for case in &summary.cases {
            table.row([
                case.file.display().to_string(),
                case.line.to_string(),
                case.name.to_owned(),
                if case.passed { "ok" } else { "FAIL" }.to_owned(),
                case.took_ms.to_string(),
            ]);
        }
        table
    };
    output::print(format, &summary, table, || {
        all.iter().map(|ran| ran.name.clone()).collect()
    })
}
