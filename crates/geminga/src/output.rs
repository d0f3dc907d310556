//! What commands print: data on stdout in the form that was asked for, all else on stderr.

use std::io::{self, Write};

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
    let mut out = io::stdout().lock();
    match format {
        Format::Table => table(false).print(&mut out)?,
        Format::Wide => table(true).print(&mut out)?,
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
    out.flush()?;
    Ok(())
}

/// One line on stdout.
pub(crate) fn line(text: &str) -> Outcome {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()?;
    Ok(())
}

/// One line on stderr; a closed stderr is nobody's loss.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}
