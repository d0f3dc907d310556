//! `geminga storage`: looks for damage in a data directory, and copies what is left out of one.
//!
//! Both work on a directory that no server has open, and change nothing in it.

use std::io::IsTerminal;
use std::ops::Range;
use std::path::{Path, PathBuf};

use geminga_stdx::Diagnostic;
use geminga_storage::embedded::Repair;
use geminga_storage::managed::Fitted;
use geminga_storage::{EmbeddedConfig, Storage, StoreError};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::Global;
use crate::config::DATA_DIR_DEFAULT;
use crate::failure::{Exit, Failure, Outcome};
use crate::output::{self, Format, Table};
use crate::serve::standalone::{beside, repair_command, store_failure};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    geminga storage check --data /var/lib/geminga\n  \
    geminga storage repair --data /var/lib/geminga --into /var/lib/geminga.repaired")]
pub(crate) struct StorageArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Read everything, verify every checksum, and say what is damaged
    #[command(
        after_help = "Example:\n  geminga storage check --data /var/lib/geminga\n\n\
        The exit code is 0 when all is well and 8 when something is damaged."
    )]
    Check(DirectoryArgs),
    /// Copy what can be read into a new directory; the damaged one is not touched
    #[command(after_help = "Example:\n  \
        geminga storage repair --data /var/lib/geminga --into /var/lib/geminga.repaired\n\n\
        Every message that can be read is kept, in order, with topics, subscriptions and functions.\n\
        Messages behind a lost one move up: their ids in that ledger become smaller. The exit code is\n\
        0 when nothing was lost and 8 when something was.")]
    Repair {
        #[command(flatten)]
        from: DirectoryArgs,
        /// Where the copy goes: a directory that is empty or does not exist
        #[arg(long, value_name = "DIR")]
        into: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct DirectoryArgs {
    /// The data directory; no server may have it open
    #[arg(long, value_name = "DIR", env = "GEMINGA_DATA", default_value = DATA_DIR_DEFAULT)]
    data: PathBuf,
}

pub(crate) fn run(args: StorageArgs, global: &Global) -> Outcome {
    let (from, into) = match args.command {
        Command::Check(from) => (from.data, None),
        Command::Repair { from, into } => (from.data, Some(into)),
    };
    if let Some(into) = &into {
        refuse_inside(&from, into)?;
    }
    let bar = bar();
    let mut progress = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let config = EmbeddedConfig::default();
    let read = Storage::repair(&from, into.as_deref(), &config, &mut progress);
    bar.finish_and_clear();
    let (repair, fitted) = read.map_err(|error| failure(&error, &from, into.as_deref()))?;
    if let Some(into) = &into {
        copy_code(&from.join("functions"), &into.join("functions"))?;
    }
    show(&from, into.as_deref(), &repair, &fitted, global.format())
}

/// The copy would be read as a part of what it is a copy of.
fn refuse_inside(from: &Path, into: &Path) -> Outcome {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    if !absolute(into).starts_with(absolute(from)) {
        return Ok(());
    }
    let message = format!("`{}` is inside of the damaged directory", into.display());
    let error = Diagnostic::error("G0208", message).help(format!(
        "name one beside it: --into {}",
        beside(from).display()
    ));
    Err(Failure::new(Exit::Usage, error))
}

fn bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
    let template = "{bar:40} {percent:>3} %  {bytes}/{total_bytes}  {elapsed}";
    let style = ProgressStyle::with_template(template);
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn failure(error: &StoreError, from: &Path, into: Option<&Path>) -> Failure {
    let what = match into {
        Some(_) => "repaired",
        None => "checked",
    };
    match (error, into) {
        (StoreError::Locked { .. } | StoreError::NewerFormat { .. }, _) => {
            store_failure(error, from)
        }
        (StoreError::Full, Some(into)) => {
            let message = format!("no space left for `{}`", into.display());
            Diagnostic::error("G0106", message)
                .help("remove it, and name a directory on a disk with more room by `--into DIR`")
                .into()
        }
        _ => {
            let message = format!("`{}` can't be {what}", from.display());
            let help = match into {
                Some(_) => "`--data` names a data directory, `--into` one that is empty or missing",
                None => "`--data` names a data directory",
            };
            Diagnostic::error("G0103", message)
                .cause(crate::failure::with_sources(error))
                .help(help)
                .into()
        }
    }
}

/// The code of functions lies beside the store, one file each.
fn copy_code(from: &Path, into: &Path) -> Outcome {
    if !from.is_dir() {
        return Ok(());
    }
    let copied = copy_tree(from, into);
    copied.map_err(|error| {
        let message = format!(
            "the functions' code in `{}` can't be copied",
            from.display()
        );
        Diagnostic::error("G0103", message)
            .cause(error.to_string())
            .help(format!("copy it to `{}` yourself", into.display()))
            .into()
    })
}

fn copy_tree(from: &Path, into: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(into)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let to = into.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &to)?;
        } else {
            std::fs::copy(entry.path(), &to)?;
            std::fs::File::open(&to)?.sync_all()?;
        }
    }
    std::fs::File::open(into)?.sync_all()
}

fn show(
    from: &Path,
    into: Option<&Path>,
    repair: &Repair,
    fitted: &Fitted,
    format: Format,
) -> Outcome {
    let topic = |stored: &str| {
        geminga_broker::stored_topic_name(stored).unwrap_or_else(|| stored.to_owned())
    };
    let count = |lost: &[Range<u64>]| lost.iter().map(|it| it.end - it.start).sum::<u64>();
    let spans = |lost: &[Range<u64>]| -> Vec<String> {
        let span = |it: &Range<u64>| match it.end - it.start {
            1 => it.start.to_string(),
            _ => format!("{}-{}", it.start, it.end - 1),
        };
        lost.iter().map(span).collect()
    };
    let is_whole = repair.losses.is_empty() && fitted.losses.is_empty();
    let data = json!({
        "data": from,
        "into": into,
        "isWhole": is_whole,
        "topics": fitted.topics,
        "ledgers": repair.ledgers.len(),
        "entries": repair.entries,
        "bytes": repair.bytes,
        "damage": repair.losses.iter().map(|loss| json!({
            "file": loss.file, "offset": loss.offset, "what": loss.what,
        })).collect::<Vec<_>>(),
        "lost": fitted.losses.iter().map(|loss| json!({
            "topic": topic(&loss.topic),
            "ledger": loss.ledger.0,
            "entries": count(&loss.entries),
            "ids": spans(&loss.entries),
        })).collect::<Vec<_>>(),
        "ledgersWithoutTopic": fitted.orphans.iter().map(|it| it.0).collect::<Vec<_>>(),
    });
    let table = |_| {
        let mut table = Table::new(&["topic", "ledger", "entries lost", "which"]);
        for loss in &fitted.losses {
            table.row([
                topic(&loss.topic),
                loss.ledger.to_string(),
                count(&loss.entries).to_string(),
                spans(&loss.entries).join(" "),
            ]);
        }
        table
    };
    let names = || fitted.losses.iter().map(|it| topic(&it.topic)).collect();
    let is_table = matches!(format, Format::Table | Format::Wide);
    if !is_table || !fitted.losses.is_empty() {
        output::print(format, &data, table, names)?;
    }
    for loss in &repair.losses {
        let warning = Diagnostic::warning("G0105", &*loss.what);
        let warning = match loss.file.is_empty() {
            true => warning,
            false => warning
                .at(&loss.file, 0, 0)
                .cause(format!("at offset {}", loss.offset)),
        };
        output::note(&warning.to_string());
    }
    if !fitted.orphans.is_empty() {
        let count = fitted.orphans.len();
        output::note(&format!(
            "{count} ledgers with entries belong to no topic that can be read: they are kept, and unreachable"
        ));
    }
    output::note(&format!(
        "{} entries in {} topics can be read",
        repair.entries, fitted.topics
    ));
    if let Some(into) = into {
        output::note(&format!(
            "they are in {0}: geminga standalone --data {0}",
            into.display()
        ));
    }
    if is_whole {
        return Ok(());
    }
    let lost: u64 = fitted.losses.iter().map(|it| count(&it.entries)).sum();
    let (message, help) = match into {
        Some(into) => (
            format!("{lost} entries are lost"),
            format!(
                "keep `{}` until `{}` has shown to be enough",
                from.display(),
                into.display()
            ),
        ),
        None => (
            format!(
                "`{}` is damaged: {lost} entries can't be read",
                from.display()
            ),
            repair_command(from),
        ),
    };
    let error = Diagnostic::error("G0105", message).help(help);
    Err(Failure::new(Exit::PartlyDone, error))
}
