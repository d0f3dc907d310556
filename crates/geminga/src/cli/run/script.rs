//! A script alone: each line of the input is a message, each output a line. No broker, no topics.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use geminga_functions::{PipeReport, WorkerError, run_pipe};
use geminga_model::FunctionConfig;
use geminga_stdx::Diagnostic;

use crate::failure::{Exit, Failure, Outcome};
use crate::output;

pub(super) async fn run(file: &Path, input: Option<&Path>, options: Option<String>) -> Outcome {
    let mut config = config(file)?;
    config.custom_runtime_options = options;
    let on_log = std::sync::Arc::new(|line: &geminga_functions::runtime::LogLine| {
        output::note(&line.text);
    });
    let out = tokio::io::stdout();
    let wasm = crate::serve::wasm();
    let report = match input {
        Some(path) => {
            let input = tokio::fs::File::open(path).await.map_err(|error| {
                let message = format!("`{}` cannot be read", path.display());
                Failure::new(
                    Exit::Usage,
                    Diagnostic::error("G0310", message).cause(error.to_string()),
                )
            })?;
            run_pipe(config, input, out, Some(on_log), wasm.as_ref()).await
        }
        None => run_pipe(config, tokio::io::stdin(), out, Some(on_log), wasm.as_ref()).await,
    };
    finish(file, report)
}

/// What kind of code a file is, by its ending and its execute bit.
pub(in crate::cli) fn config(file: &Path) -> Outcome<FunctionConfig> {
    let usage = |error: Diagnostic| Failure::new(Exit::Usage, error);
    let shown = file.display().to_string();
    let about = std::fs::metadata(file).map_err(|error| {
        usage(
            Diagnostic::error("G0313", format!("there is no file `{shown}`"))
                .cause(error.to_string())
                .help("a path is relative to the directory that the command runs in"),
        )
    })?;
    if !about.is_file() && !geminga_functions::runtime::go::is_source(file) {
        return Err(usage(Diagnostic::error(
            "G0313",
            format!("`{shown}` is not a file"),
        )));
    }
    let stem = file
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or("script");
    let mut config = FunctionConfig {
        name: Some(name(stem)),
        ..FunctionConfig::default()
    };
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("sh" | "bash") => config.sh = Some(shown),
        Some("py") => {
            config.class_name = Some(python_class(file, stem));
            config.py = Some(shown);
        }
        Some("wasm" | "wat") => config.wasm = Some(shown),
        Some("go") => config.go = Some(shown),
        _ if about.is_dir() => config.go = Some(shown),
        _ if about.permissions().mode() & 0o111 != 0 => config.exec = Some(shown),
        _ => {
            return Err(usage(
                Diagnostic::error("G0313", format!("`{shown}` may not be executed")).help(format!(
                    "chmod +x {shown}, or name it .sh, .py, .yaml or .json"
                )),
            ));
        }
    }
    Ok(config)
}

/// A legal name, however the file is called.
fn name(stem: &str) -> String {
    let legal = |c: char| {
        if c.is_ascii_alphanumeric() || "-_.".contains(c) {
            c
        } else {
            '-'
        }
    };
    stem.chars().map(legal).collect()
}

/// `module`, or `module.Class` when the file holds just one class of functions.
fn python_class(file: &Path, stem: &str) -> String {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let mut classes = text.lines().filter_map(|line| {
        let (name, bases) = line.strip_prefix("class ")?.split_once('(')?;
        bases.contains("Function").then(|| name.trim())
    });
    match (classes.next(), classes.next()) {
        (Some(class), None) => format!("{stem}.{class}"),
        _ => stem.to_owned(),
    }
}

fn finish(file: &Path, report: Result<PipeReport, WorkerError>) -> Outcome {
    let shown = file.display();
    let report = report.map_err(|error| {
        let message = format!("`{shown}` does not run");
        Failure::new(
            Exit::Failed,
            Diagnostic::error("G0412", message)
                .cause(error.to_string())
                .help("what it said last is above; mend it and run the same command again"),
        )
    })?;
    if report.lost == 0 {
        return Ok(());
    }
    let message = format!(
        "`{shown}` failed on {} of {} lines",
        report.lost, report.received
    );
    let mut error = Diagnostic::error("G0410", message).help(
        "standard error of the failed calls is above; the other lines were processed: \
         `geminga explain G0410`",
    );
    if let Some(last) = report.failures.last() {
        error = error.cause(last.clone());
    }
    let exit = if report.lost == report.received {
        Exit::Failed
    } else {
        Exit::PartlyDone
    };
    Err(Failure::new(exit, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_by_its_name_what_it_is() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).expect("writes");
            path
        };
        let script = config(&path("my reverse.sh", "")).expect("a script");
        assert_eq!(script.name.as_deref(), Some("my-reverse"));
        assert!(script.sh.is_some());
        let module = config(&path("plain.py", "def process(input): ...")).expect("a module");
        assert_eq!(module.class_name.as_deref(), Some("plain"));
        let class = config(&path("own.py", "class A(Function):\n  pass\n")).expect("a class");
        assert_eq!(class.class_name.as_deref(), Some("own.A"));
        let refused = config(&path("data.bin", "")).expect_err("not executable");
        assert!(
            refused.diagnostics[0]
                .to_string()
                .contains("may not be executed")
        );
        assert!(config(&directory.path().join("absent.sh")).is_err());
    }
}
