//! The table sink: rows in memory, one a key, the newest wins. Whoever runs the mesh prints it.
//!
//! It is a view and not a store: messages are acknowledged when their row is in the table, and a table that
//! is full lets go of the row that was not written for the longest time.

use std::collections::BTreeMap;
use std::sync::Arc;

use geminga_client::{Receipt, Transaction};
use geminga_mesh::builtin::TableSink;
use parking_lot::Mutex;
use serde_json::Value;

use crate::instance::guarantee::Letter;
use crate::instance::sink::{Sink, WriteError};
use crate::runtime::{BoxFuture, Message, Output};

/// Rows kept, and bytes of their messages and keys; the table is for eyes.
const ROWS_MAX: usize = 100_000;
const BYTES_MAX: usize = 64 * 1024 * 1024;

/// A table that can be looked at while it grows. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TableView {
    settings: Arc<TableSink>,
    rows: Arc<Mutex<Rows>>,
}

#[derive(Debug, Default)]
struct Rows {
    by_key: BTreeMap<String, Row>,
    /// Keys by when their row was written.
    by_age: BTreeMap<u64, String>,
    written: u64,
    bytes: usize,
    /// Rows that were let go of.
    dropped: u64,
}

#[derive(Debug)]
struct Row {
    value: Value,
    written: u64,
    bytes: usize,
}

impl Rows {
    /// Puts a row in; then lets go of the oldest ones, so that the table has at most so many rows and bytes.
    fn put(
        &mut self,
        key: String,
        value: Value,
        bytes: usize,
        (rows_max, bytes_max): (usize, usize),
    ) {
        self.remove(&key);
        self.written += 1;
        let bytes = bytes + key.len();
        self.bytes += bytes;
        self.by_age.insert(self.written, key.clone());
        let written = self.written;
        let row = Row {
            value,
            written,
            bytes,
        };
        self.by_key.insert(key, row);
        while self.by_key.len() > rows_max || self.bytes > bytes_max {
            let Some((_, oldest)) = self.by_age.pop_first() else {
                return;
            };
            self.remove(&oldest);
            if self.dropped == 0 {
                tracing::warn!(
                    rows_max,
                    bytes_max,
                    "the table is full: its oldest rows make room"
                );
            }
            self.dropped += 1;
        }
    }

    fn remove(&mut self, key: &str) {
        if let Some(row) = self.by_key.remove(key) {
            self.by_age.remove(&row.written);
            self.bytes -= row.bytes;
        }
    }
}

impl TableView {
    pub(crate) fn new(settings: TableSink) -> Self {
        Self {
            settings: Arc::new(settings),
            rows: Arc::default(),
        }
    }

    #[must_use]
    pub fn settings(&self) -> &TableSink {
        &self.settings
    }

    /// Headings and cells, sorted and cut as the settings say.
    #[must_use]
    pub fn render(&self) -> (Vec<String>, Vec<Vec<String>>) {
        let rows = self.rows.lock();
        let mut columns = self.settings.columns.clone().unwrap_or_default();
        if self.settings.columns.is_none() {
            for Row { value, .. } in rows.by_key.values() {
                for name in value
                    .as_object()
                    .into_iter()
                    .flatten()
                    .map(|(name, _)| name)
                {
                    if !columns.contains(name) {
                        columns.push(name.clone());
                    }
                }
                if !value.is_object() && columns.is_empty() {
                    columns.push("value".to_owned());
                }
            }
        }
        let mut sorted: Vec<(&String, &Value)> = rows
            .by_key
            .iter()
            .map(|(key, row)| (key, &row.value))
            .collect();
        if let Some(sort) = &self.settings.sort {
            let (name, down) = sort
                .strip_prefix('-')
                .map_or((sort.as_str(), false), |n| (n, true));
            sorted.sort_by(|(_, a), (_, b)| {
                let order = compare(a.get(name), b.get(name));
                if down { order.reverse() } else { order }
            });
        }
        if let Some(limit) = self.settings.limit {
            sorted.truncate(limit as usize);
        }
        let cells = sorted.iter().map(|(key, value)| {
            let key = self.settings.key.is_some().then(|| (*key).clone());
            let cells = columns.iter().map(|name| match value {
                Value::Object(object) => object.get(name).map_or(String::new(), cell),
                other => cell(other),
            });
            key.into_iter().chain(cells).collect()
        });
        let cells = cells.collect();
        let headings = self.settings.key.iter().cloned().chain(columns).collect();
        (headings, cells)
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        other => crate::runtime::plain(other),
    }
}

fn compare(a: Option<&Value>, b: Option<&Value>) -> std::cmp::Ordering {
    let number = |value: Option<&Value>| value.and_then(Value::as_f64);
    match (number(a), number(b)) {
        (Some(a), Some(b)) => a.total_cmp(&b),
        (Some(_), None) => std::cmp::Ordering::Greater,
        (None, Some(_)) => std::cmp::Ordering::Less,
        (None, None) => a.map(cell).cmp(&b.map(cell)),
    }
}

pub(crate) struct TableEnd(pub(crate) TableView);

impl Sink for TableEnd {
    fn write<'a>(
        &'a mut self,
        input: &'a Message,
        outputs: Vec<Output>,
        _txn: Option<&'a Transaction>,
    ) -> BoxFuture<'a, Result<Vec<Receipt>, WriteError>> {
        Box::pin(async move {
            let mut rows = self.0.rows.lock();
            for output in outputs {
                let text = String::from_utf8_lossy(&output.payload);
                let value = match serde_json::from_str::<Value>(&text) {
                    Ok(value @ Value::Object(_)) => value,
                    _ => Value::String(text.into_owned()),
                };
                let key = input.key.clone().unwrap_or_else(|| input.id.clone());
                rows.put(key, value, output.payload.len(), (ROWS_MAX, BYTES_MAX));
            }
            Ok(Vec::new())
        })
    }

    fn dead_letter<'a>(
        &'a mut self,
        topic: &'a str,
        _letter: Letter,
        _input: &'a Message,
        _txn: Option<&'a Transaction>,
    ) -> BoxFuture<'a, Result<Vec<Receipt>, String>> {
        Box::pin(async move { Err(format!("a table can not write to `{topic}`")) })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_are_sorted_by_number_and_cut() {
        let view = TableView::new(TableSink {
            columns: Some(vec!["n".into(), "t".into()]),
            sort: Some("-n".into()),
            limit: Some(2),
            ..TableSink::default()
        });
        for (key, value) in [
            ("a", json!({"n": 9, "t": "x"})),
            ("b", json!({"n": 10})),
            ("c", json!({"n": 1})),
        ] {
            let max = (ROWS_MAX, BYTES_MAX);
            view.rows.lock().put(key.into(), value, 0, max);
        }
        let (headings, rows) = view.render();
        assert_eq!(headings, ["n", "t"]);
        assert_eq!(rows, [["10", ""], ["9", "x"]]);
    }

    #[test]
    fn a_full_table_lets_go_of_its_oldest_rows() {
        let keys = |rows: &Rows| rows.by_key.keys().cloned().collect::<Vec<_>>().join(" ");
        let mut rows = Rows::default();
        for key in ["a", "b", "a", "c", "d"] {
            rows.put(key.into(), json!(1), 9, (3, 1000));
        }
        assert_eq!((keys(&rows).as_str(), rows.dropped), ("a c d", 1));
        // By bytes, with those of the keys.
        for (key, bytes) in [("a", 24), ("e", 9)] {
            rows.put(key.into(), json!(1), bytes, (100, 45));
        }
        assert_eq!((keys(&rows).as_str(), rows.bytes), ("a d e", 45));
        rows.put("f".into(), json!(1), 1000, (100, 45));
        assert_eq!((rows.by_age.len(), rows.bytes), (0, 0));
    }
}
