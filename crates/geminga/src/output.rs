//! What commands print: data on stdout in the form that was asked for, all else on stderr.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;
use serde_json::Value;

use crate::failure::Outcome;

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns for people.
    #[default]
    Table,
    /// More columns.
    Wide,
    Json,
    Yaml,
    /// Names alone, one a line.
    Name,
}

/// Rows under a heading; cells are plain text.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) heading: Vec<&'static str>,
    pub(crate) rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(heading: &[&'static str]) -> Self {
        Self {
            heading: heading.to_vec(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let columns = self.heading.len();
        let mut width: Vec<usize> = self.heading.iter().map(|h| h.chars().count()).collect();
        for row in &self.rows {
            for (i, cell) in row.iter().enumerate().take(columns) {
                width[i] = width[i].max(cell.chars().count());
            }
        }
        let heading: Vec<String> = self.heading.iter().map(|h| h.to_uppercase()).collect();
        for row in std::iter::once(&heading).chain(&self.rows) {
            let mut line = String::new();
            for (i, cell) in row.iter().enumerate().take(columns) {
                line.push_str(cell);
                if i + 1 < columns {
                    line.extend(std::iter::repeat_n(
                        ' ',
                        width[i] - cell.chars().count() + 2,
                    ));
                }
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Prints `data` in the format that was asked for. `table` is called for the two table forms,
/// `name` gives the names for `-o name`.
pub(crate) fn print<T: Serialize>(
    format: Format,
    data: &T,
    table: impl FnOnce(bool) -> Table,
    names: impl FnOnce() -> Vec<String>,
) -> Outcome {
    to_stdout(|out| {
        match format {
            Format::Table => table(false).print(out)?,
            Format::Wide => table(true).print(out)?,
            Format::Name => {
                for name in names() {
                    writeln!(out, "{name}")?;
                }
            }
            Format::Json => {
                let text = serde_json::to_string_pretty(data).map_err(io::Error::other)?;
                writeln!(out, "{text}")?;
            }
            Format::Yaml => {
                let value: Value = serde_json::to_value(data).map_err(io::Error::other)?;
                let text = serde_saphyr::to_string(&value).map_err(io::Error::other)?;
                writeln!(out, "{}", text.trim_end())?;
            }
        }
        Ok(())
    })
}

/// One line on stdout.
pub(crate) fn line(text: &str) -> Outcome {
    to_stdout(|out| writeln!(out, "{text}"))
}

/// Bytes on stdout, as they are.
pub(crate) fn bytes(bytes: &[u8]) -> Outcome {
    to_stdout(|out| out.write_all(bytes))
}

/// Writes to stdout. Who reads it may have had enough, like `head`: that is no failure.
fn to_stdout(write: impl FnOnce(&mut io::StdoutLock<'_>) -> io::Result<()>) -> Outcome {
    let mut out = io::stdout().lock();
    match write(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

/// One line on stderr; a closed stderr is nobody's loss.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// One line for a person who waits; a log says the same whether something was slow or not.
pub(crate) fn aside(text: &str) {
    if io::stderr().is_terminal() {
        note(text);
    }
}

/// How long something may take before one is told what it is.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(2);

/// Waits for what is usually quick; when it is not, tells a person once what is waited for.
pub(crate) async fn patiently<F: Future>(doing: F, what: impl FnOnce() -> String) -> F::Output {
    tokio::pin!(doing);
    tokio::select! {
        biased;
        done = &mut doing => return done,
        () = tokio::time::sleep(PATIENCE) => aside(&format!("{} ...", what())),
    }
    doing.await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_what_takes_long_is_told() {
        for (ms, told) in [(0, false), (1_999, false), (2_001, true)] {
            let mut was_told = false;
            let doing = tokio::time::sleep(std::time::Duration::from_millis(ms));
            patiently(doing, || {
                was_told = true;
                "test".to_owned()
            })
            .await;
            assert_eq!(was_told, told, "{ms} ms");
        }
    }
}
