//! The table sink: rows in memory, one a key, the newest wins. Whoever runs the mesh prints it.
//!
//! It is a view and not a store: messages are acknowledged when their row is in the table.

use std::collections::BTreeMap;
use std::sync::Arc;

use geminga_client::{Receipt, Transaction};
use geminga_mesh::builtin::TableSink;
use parking_lot::Mutex;
use serde_json::Value;

use crate::instance::guarantee::Letter;
use crate::instance::sink::{Sink, WriteError};
use crate::runtime::{BoxFuture, Message, Output};

/// Rows kept; the table is for eyes.
const ROWS_MAX: usize = 100_000;

/// A table that can be looked at while it grows. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TableView {
    settings: Arc<TableSink>,
    rows: Arc<Mutex<BTreeMap<String, Value>>>,
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
            for value in rows.values() {
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
        let mut sorted: Vec<(&String, &Value)> = rows.iter().collect();
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

impl TableView {
    /// Why there is no room for a message's row.
    fn full(rows: &BTreeMap<String, Value>, key: &str) -> Option<String> {
        (rows.len() >= ROWS_MAX && !rows.contains_key(key))
            .then(|| format!("the table has {ROWS_MAX} rows"))
    }
}

/// The key of a message's row.
fn key_of(message: &Message) -> String {
    message.key.clone().unwrap_or_else(|| message.id.clone())
}

impl Sink for TableEnd {
    fn refuses(&self, message: &Message) -> Option<String> {
        TableView::full(&self.0.rows.lock(), &key_of(message))
    }

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
                let key = key_of(input);
                if let Some(why) = TableView::full(&rows, &key) {
                    return Err(WriteError::Message(why));
                }
                rows.insert(key, value);
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
            view.rows.lock().insert(key.into(), value);
        }
        let (headings, rows) = view.render();
        assert_eq!(headings, ["n", "t"]);
        assert_eq!(rows, [["10", ""], ["9", "x"]]);
    }
}
