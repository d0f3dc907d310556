//! YAML text to `Node`s: the events of the parser, each with its place, built into trees.
//!
//! Owns the meaning of plain scalars (YAML 1.2 core schema), aliases and merge keys. What must
//! hold: no input costs more than the bounds of `node`, however its aliases multiply; nothing is
//! dropped (a key twice and an unknown tag are errors).

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::path::Path;

use geminga_stdx::Diagnostic;
use serde_saphyr::granit_parser::{Event, Marker, Parser, ScalarStyle, Tag, options};

use crate::node::{DEPTH_MAX, Key, Mark, NODES_MAX, Node, Value, at};

/// Every document of a YAML text.
pub fn parse(file: &Path, text: &str) -> Result<Vec<Node>, Diagnostic> {
    // Above our own bound, so that ours is the one that speaks.
    let mut options = options! {
        flow_nesting_limit: DEPTH_MAX * 2,
        block_nesting_limit: DEPTH_MAX * 2,
    };
    options.set_emit_comments(false);
    let mut builder = Builder {
        file,
        stack: Vec::new(),
        anchors: HashMap::new(),
        nodes: 0,
    };
    let mut documents = Vec::new();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event.map_err(|error| {
            let place = mark(error.marker());
            let message = error.info().to_string();
            at(
                Diagnostic::error("G0304", format!("not valid YAML: {message}")),
                file,
                place,
            )
        })?;
        documents.extend(builder.take(event, mark(&span.start))?);
    }
    Ok(documents)
}

fn mark(marker: &Marker) -> Mark {
    Mark {
        line: marker.line().max(1),
        column: marker.col() + 1,
    }
}

/// A list or map whose end has not come yet.
struct Open {
    mark: Mark,
    anchor: usize,
    kind: Kind,
}

enum Kind {
    List(Vec<Node>),
    Map {
        entries: Vec<(Key, Node)>,
        known: HashSet<String>,
        merges: Vec<Node>,
        key: Option<Key>,
    },
}

struct Builder<'a> {
    file: &'a Path,
    stack: Vec<Open>,
    /// What an alias stands for, and how many values that is.
    anchors: HashMap<usize, (Node, usize)>,
    nodes: usize,
}

impl Builder<'_> {
    /// Takes one event; returns a document when it is whole.
    fn take(&mut self, event: Event<'_>, mark: Mark) -> Result<Option<Node>, Diagnostic> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.count(cost_of_text(&text), mark)?;
                let value = self.scalar(text, style, tag.as_deref(), mark)?;
                self.finish(Node { mark, value }, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.check_tag(tag.as_deref(), &["seq"], mark)?;
                self.open(mark, anchor, Kind::List(Vec::new()))
            }
            Event::MappingStart(_, anchor, tag) => {
                self.check_tag(tag.as_deref(), &["map"], mark)?;
                let kind = Kind::Map {
                    entries: Vec::new(),
                    known: HashSet::new(),
                    merges: Vec::new(),
                    key: None,
                };
                self.open(mark, anchor, kind)
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(mark),
            Event::Alias(id) => {
                let Some((node, size)) = self.anchors.get(&id) else {
                    return Err(self.error("G0304", "an alias stands for itself", mark));
                };
                let size = *size;
                if self.nodes.saturating_add(size) > NODES_MAX {
                    return self.count(size, mark).map(|()| None);
                }
                let mut node = node.clone();
                self.count(size, mark)?;
                // Errors point to the use, not to the definition.
                node.mark = mark;
                self.finish(node, 0)
            }
            Event::DocumentStart(..) => {
                self.anchors.clear();
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    fn error(&self, code: &'static str, message: impl Into<String>, mark: Mark) -> Diagnostic {
        at(Diagnostic::error(code, message), self.file, mark)
    }

    fn count(&mut self, nodes: usize, mark: Mark) -> Result<(), Diagnostic> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > NODES_MAX {
            let message = format!("more than {NODES_MAX} values in one file");
            let help = "aliases count as often as they are used";
            return Err(self.error("G0305", message, mark).help(help));
        }
        Ok(())
    }

    fn open(&mut self, mark: Mark, anchor: usize, kind: Kind) -> Result<Option<Node>, Diagnostic> {
        self.count(1, mark)?;
        if self.stack.len() >= DEPTH_MAX {
            let message = format!("lists and maps are nested more than {DEPTH_MAX} deep");
            return Err(self.error("G0305", message, mark));
        }
        self.stack.push(Open { mark, anchor, kind });
        Ok(None)
    }

    fn close(&mut self, mark: Mark) -> Result<Option<Node>, Diagnostic> {
        let Some(open) = self.stack.pop() else {
            return Err(self.error("G0304", "a list or map ends that never began", mark));
        };
        let value = match open.kind {
            Kind::List(items) => Value::List(items),
            Kind::Map {
                mut entries,
                mut known,
                merges,
                ..
            } => {
                for merged in merges {
                    merge(&mut entries, &mut known, merged);
                }
                Value::Map(entries)
            }
        };
        self.finish(
            Node {
                mark: open.mark,
                value,
            },
            open.anchor,
        )
    }

    /// Puts a whole value where it belongs; at the top it is the document.
    fn finish(&mut self, node: Node, anchor: usize) -> Result<Option<Node>, Diagnostic> {
        if anchor != 0 {
            // The copy that is kept counts too.
            let size = cost(&node);
            self.count(size, node.mark)?;
            self.anchors.insert(anchor, (node.clone(), size));
        }
        let file = self.file;
        let fail = |message: String, mark| Err(at(Diagnostic::error("G0304", message), file, mark));
        match self.stack.last_mut().map(|open| &mut open.kind) {
            None => return Ok(Some(node)),
            Some(Kind::List(items)) => items.push(node),
            Some(Kind::Map {
                entries,
                known,
                merges,
                key,
            }) => match key.take() {
                None => {
                    let text = match node.value {
                        Value::Text(text) => text,
                        Value::Null => "null".to_owned(),
                        Value::Bool(value) => value.to_string(),
                        Value::Int(value) => value.to_string(),
                        Value::Uint(value) => value.to_string(),
                        Value::Float(value) => value.to_string(),
                        Value::List(_) | Value::Map(_) => {
                            return fail("a key must be text".to_owned(), node.mark);
                        }
                    };
                    *key = Some(Key {
                        mark: node.mark,
                        text,
                    });
                }
                Some(key) if key.text == "<<" => match node.value {
                    Value::Map(_) => merges.push(node),
                    Value::List(items)
                        if items.iter().all(|item| matches!(item.value, Value::Map(_))) =>
                    {
                        merges.extend(items);
                    }
                    _ => return fail("`<<` takes a map or a list of maps".to_owned(), key.mark),
                },
                Some(key) => {
                    if !known.insert(key.text.clone()) {
                        return fail(format!("`{}` is given twice", key.text), key.mark);
                    }
                    entries.push((key, node));
                }
            },
        }
        Ok(None)
    }

    fn check_tag(&self, tag: Option<&Tag>, fine: &[&str], mark: Mark) -> Result<(), Diagnostic> {
        let Some(tag) = tag else { return Ok(()) };
        if fine
            .iter()
            .any(|suffix| tag.is_yaml_core_schema_tag(suffix))
        {
            return Ok(());
        }
        Err(self.error("G0304", "tags (`!name`) have no meaning here", mark))
    }

    fn scalar(
        &self,
        text: Cow<'_, str>,
        style: ScalarStyle,
        tag: Option<&Tag>,
        mark: Mark,
    ) -> Result<Value, Diagnostic> {
        if let Some(tag) = tag {
            self.check_tag(Some(tag), &["str", "int", "float", "bool", "null"], mark)?;
            if tag.is_yaml_core_schema_tag("str") {
                return Ok(Value::Text(text.into_owned()));
            }
        } else if style != ScalarStyle::Plain {
            return Ok(Value::Text(text.into_owned()));
        }
        Ok(plain(&text))
    }
}

/// The values below and including `node`; long texts count as several.
fn cost(node: &Node) -> usize {
    match &node.value {
        Value::List(items) => 1 + items.iter().map(cost).sum::<usize>(),
        Value::Map(entries) => {
            let of_entry = |(key, value): &(Key, Node)| cost_of_text(&key.text) + cost(value);
            1 + entries.iter().map(of_entry).sum::<usize>()
        }
        Value::Text(text) => cost_of_text(text),
        _ => 1,
    }
}

fn cost_of_text(text: &str) -> usize {
    1 + text.len() / 64
}

/// Adds what `merged` has and `entries` has not.
fn merge(entries: &mut Vec<(Key, Node)>, known: &mut HashSet<String>, merged: Node) {
    if let Value::Map(more) = merged.value {
        for (key, value) in more {
            if known.insert(key.text.clone()) {
                entries.push((key, value));
            }
        }
    }
}

/// What an unquoted scalar means (YAML 1.2 core schema).
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        ".nan" | ".NaN" | ".NAN" => return Value::Float(f64::NAN),
        _ => {}
    }
    let (sign, digits) = match text.as_bytes()[0] {
        b'-' => (-1.0, &text[1..]),
        b'+' => (1.0, &text[1..]),
        _ => (1.0, text),
    };
    if matches!(digits, ".inf" | ".Inf" | ".INF") {
        return Value::Float(sign * f64::INFINITY);
    }
    for (prefix, radix) in [("0x", 16), ("0o", 8)] {
        if let Some(rest) = text.strip_prefix(prefix)
            && let Ok(number) = u64::from_str_radix(rest, radix)
            && !rest.starts_with('+')
        {
            return integer(number);
        }
    }
    let numeric = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits.contains(|c: char| c.is_ascii_digit())
        && digits
            .chars()
            .all(|c| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-'));
    if numeric {
        if let Ok(number) = text.parse::<i64>() {
            return Value::Int(number);
        }
        if let Ok(number) = text.parse::<u64>() {
            return integer(number);
        }
        if let Ok(number) = text.parse::<f64>() {
            return Value::Float(number);
        }
    }
    Value::Text(text.to_owned())
}

fn integer(number: u64) -> Value {
    i64::try_from(number).map_or(Value::Uint(number), Value::Int)
}

#[cfg(test)]
mod tests;
