//! The page between runs: a table of fields and runtimes, of which a run makes one column.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::fields::all_fields;

/// The columns: the field `runtime` has one name for the last two, which are the two kinds of WASM.
const RUNTIMES: [&str; 7] = ["bash", "python", "exec", "go", "java", "wasm", "component"];

type Table = BTreeMap<String, [String; RUNTIMES.len()]>;

/// Compares a column with the page, or puts it there when `GEMINGA_WRITE_MATRIX` says so.
pub(super) fn check(runtime: &str, found: &BTreeMap<String, String>) {
    static ONE_AT_A_TIME: parking_lot::Mutex<()> = parking_lot::Mutex::new(());
    let _one = ONE_AT_A_TIME.lock();
    let path = path();
    let at = RUNTIMES.iter().position(|name| *name == runtime);
    let at = at.expect("a runtime of the page");
    if std::env::var("GEMINGA_WRITE_MATRIX").is_ok() {
        let mut table = read(&text(&path));
        for (field, word) in found {
            table.entry(field.clone()).or_default()[at].clone_from(word);
        }
        std::fs::write(&path, write(&table)).expect("written");
    }
    let page = text(&path);
    let table = read(&page);
    let there: BTreeMap<String, String> = table
        .iter()
        .map(|(field, row)| (field.clone(), row[at].clone()))
        .collect();
    let stale = "docs/functions-matrix.md is stale: GEMINGA_WRITE_MATRIX=1 writes it";
    assert_eq!(&there, found, "{stale}");
    assert_eq!(page, write(&table), "{stale}");
}

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/functions-matrix.md")
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn read(page: &str) -> Table {
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    let row = |line: &str| {
        let mut cells = line
            .trim_matches('|')
            .split('|')
            .map(|cell| cell.trim().to_owned());
        let field = cells.next().unwrap_or_default();
        let mut row: [String; RUNTIMES.len()] = Default::default();
        row.iter_mut().zip(cells).for_each(|(at, cell)| *at = cell);
        (field.trim_matches('`').to_owned(), row)
    };
    rows.map(row).collect()
}

/// In the order in which the fields are declared.
fn write(table: &Table) -> String {
    let mut page = String::from(PAGE);
    _ = writeln!(page, "| field | {} |", RUNTIMES.join(" | "));
    _ = writeln!(page, "|---{}|", "|---".repeat(RUNTIMES.len()));
    for field in all_fields() {
        if let Some(row) = table.get(&field) {
            _ = writeln!(page, "| `{field}` | {} |", row.join(" | "));
        }
    }
    page
}

const PAGE: &str = "\
# Which field works where

Made by tests that run a function of each runtime with each field, and look for the field's effect: of WebAssembly (`wasm` is a WASI
command, `component` a component) by `crates/wasm/tests/matrix.rs`, of the others by `crates/functions/tests/it/matrix.rs`.

- `yes`: the effect was seen.
- `refused`: creation and update fail, and the answer names the field. `in part`: the answer names what is not taken.
- `warned`: it is taken, since files for Pulsar and Kubernetes have it, it has no effect, and the status of the function says so and why.
- `yes or warned`: enforced where the machine has control groups for the worker, or a warning.

Code in Pulsar's own instance has [a page of its own](functions-matrix-compat.md), and so have [sources and sinks](connectors-matrix.md).

";
