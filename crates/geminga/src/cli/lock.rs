//! `geminga lock`: the exact packages that a Python function's requirements come to, each with its hash.
//!
//! pip resolves and reports; nothing is installed. The worker installs the lock and nothing else.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use geminga_stdx::Diagnostic;
use serde_json::{Value, json};

use super::Global;
use crate::failure::{Exit, Failure, Outcome};
use crate::output::{self, Table};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  geminga lock my-function")]
pub(crate) struct LockArgs {
    /// The folder with requirements.txt; requirements.lock is written beside it
    #[arg(value_name = "DIR", default_value = ".")]
    directory: PathBuf,
}

pub(crate) fn run(args: &LockArgs, global: &Global) -> Outcome {
    let wanted = args.directory.join("requirements.txt");
    if !wanted.is_file() {
        let message = format!("there is no `{}`", wanted.display());
        let error = Diagnostic::error("G0310", message)
            .help("write the packages that the function needs into it, one a line");
        return Err(Failure::new(Exit::NotFound, error));
    }
    let report = resolve(&args.directory)?;
    let lines = lines(&report).map_err(|why| {
        Diagnostic::error("G0425", format!("`{}` can't be locked", wanted.display())).cause(why)
    })?;
    let path = args.directory.join("requirements.lock");
    let text = format!(
        "# By `geminga lock`. Each package that requirements.txt comes to, with its hash.\n{}\n",
        lines.join("\n")
    );
    std::fs::write(&path, text)?;
    let names: Vec<&str> = lines
        .iter()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    output::print(
        global.format(),
        &json!({"file": path.display().to_string(), "packages": names}),
        |_| {
            let mut table = Table::new(&["package"]);
            for name in &names {
                table.row([(*name).to_owned()]);
            }
            table
        },
        || names.iter().map(|name| (*name).to_owned()).collect(),
    )?;
    output::note(&format!("{} written", path.display()));
    Ok(())
}

fn resolve(directory: &Path) -> Outcome<Value> {
    let python = std::env::var_os("GEMINGA_PYTHON").unwrap_or("python3".into());
    let shown = python.to_string_lossy().into_owned();
    let ran = Command::new(&python)
        .args([
            "-m",
            "pip",
            "install",
            "--dry-run",
            "--ignore-installed",
            "--quiet",
            "--no-input",
        ])
        .args([
            "--disable-pip-version-check",
            // What the worker installs: building another archive runs code that no lock names.
            "--only-binary=:all:",
            "--report",
            "-",
            "-r",
            "requirements.txt",
        ])
        .current_dir(directory)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| {
            Diagnostic::error("G0425", format!("`{shown}` does not run"))
                .cause(error.to_string())
                .help("install Python 3 with pip, or name it in GEMINGA_PYTHON")
        })?;
    if !ran.status.success() {
        let said = String::from_utf8_lossy(&ran.stderr).trim().to_owned();
        let error = Diagnostic::error("G0425", "pip can't resolve the requirements")
            .cause(said)
            .help("only wheels are taken: `pip wheel NAME` makes one, and --find-links names its folder");
        return Err(error.into());
    }
    serde_json::from_slice(&ran.stdout).map_err(|error| {
        Diagnostic::error("G0425", "pip's report can't be read")
            .cause(error.to_string())
            .help("pip 22.2 or later writes one: python3 -m pip install --upgrade pip")
            .into()
    })
}

/// The lines of a lock, sorted, of pip's report.
fn lines(report: &Value) -> Result<Vec<String>, String> {
    let packages = report["install"]
        .as_array()
        .ok_or("the report has no packages")?;
    let mut lines = packages
        .iter()
        .map(|package| {
            let text = |value: &Value| value.as_str().map(str::to_owned);
            let name = text(&package["metadata"]["name"]).ok_or("a package without a name")?;
            let version = text(&package["metadata"]["version"])
                .ok_or_else(|| format!("`{name}` has no version"))?;
            let archive = &package["download_info"]["archive_info"];
            let old = || {
                text(&archive["hash"]).and_then(|it| it.strip_prefix("sha256=").map(str::to_owned))
            };
            let hash = text(&archive["hashes"]["sha256"])
                .or_else(old)
                .ok_or_else(|| {
                    format!("`{name}` comes from a folder or a repository: there is no hash of it")
                })?;
            Ok(format!("{name}=={version} --hash=sha256:{hash}"))
        })
        .collect::<Result<Vec<String>, String>>()?;
    lines.sort();
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_becomes_a_lock() {
        let package = |name: &str, archive: Value| json!({"metadata": {"name": name, "version": "1.2"}, "download_info": {"archive_info": archive}});
        let report = json!({"install": [
            package("b", json!({"hashes": {"sha256": "ab"}})),
            package("a", json!({"hash": "sha256=cd"})),
        ]});
        let wanted = ["a==1.2 --hash=sha256:cd", "b==1.2 --hash=sha256:ab"];
        assert_eq!(lines(&report).expect("a lock"), wanted);
        let local = json!({"install": [package("c", Value::Null)]});
        assert!(
            lines(&local)
                .expect_err("no hash")
                .contains("`c` comes from a folder")
        );
    }
}
