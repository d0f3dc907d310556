//! JSON text to a `Node`. Our own reader because none of the known ones says where a value stands.
//!
//! What must hold: exactly JSON (RFC 8259) is accepted, no key comes twice, and the bounds of
//! `node` apply.

use std::collections::HashSet;
use std::path::Path;

use geminga_stdx::Diagnostic;

use crate::node::{DEPTH_MAX, Key, Mark, NODES_MAX, Node, Value, at};

/// The one value of a JSON text.
pub fn parse(file: &Path, text: &str) -> Result<Node, Diagnostic> {
    let mut reader = Reader {
        rest: text,
        mark: Mark { line: 1, column: 1 },
        nodes: 0,
        depth: 0,
    };
    let whole = reader.value().and_then(|node| {
        reader.blanks();
        if reader.rest.is_empty() {
            Ok(node)
        } else {
            Err(reader.expected("the end"))
        }
    });
    whole.map_err(|problem| {
        at(
            Diagnostic::error(problem.code, problem.message),
            file,
            problem.mark,
        )
    })
}

struct Problem {
    code: &'static str,
    message: String,
    mark: Mark,
}

struct Reader<'a> {
    rest: &'a str,
    mark: Mark,
    nodes: usize,
    depth: usize,
}

type Read<T> = Result<T, Problem>;

impl<'a> Reader<'a> {
    fn problem(&self, code: &'static str, message: String) -> Problem {
        Problem {
            code,
            message,
            mark: self.mark,
        }
    }

    fn expected(&self, what: &str) -> Problem {
        let message = match self.rest.chars().next() {
            None => format!("not valid JSON: the text ends where {what} should stand"),
            Some(found) => format!("not valid JSON: expected {what}, found `{found}`"),
        };
        self.problem("G0304", message)
    }

    /// Takes `bytes` bytes, which end on a character.
    fn take(&mut self, bytes: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(bytes);
        for c in taken.chars() {
            if c == '\n' {
                self.mark = Mark {
                    line: self.mark.line + 1,
                    column: 1,
                };
            } else {
                self.mark.column += 1;
            }
        }
        self.rest = rest;
        taken
    }

    fn blanks(&mut self) {
        let blank = |c: char| !matches!(c, ' ' | '\t' | '\n' | '\r');
        self.take(self.rest.find(blank).unwrap_or(self.rest.len()));
    }

    /// Whether `text` comes next; takes it.
    fn eat(&mut self, text: &str) -> bool {
        let found = self.rest.starts_with(text);
        if found {
            self.take(text.len());
        }
        found
    }

    fn value(&mut self) -> Read<Node> {
        self.blanks();
        let mark = self.mark;
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            return Err(self.problem("G0305", format!("more than {NODES_MAX} values in one file")));
        }
        let value = match self.rest.as_bytes().first() {
            Some(b'{') => self.nested(Self::map)?,
            Some(b'[') => self.nested(Self::list)?,
            Some(b'"') => Value::Text(self.text()?),
            Some(b'-' | b'0'..=b'9') => self.number()?,
            _ if self.eat("true") => Value::Bool(true),
            _ if self.eat("false") => Value::Bool(false),
            _ if self.eat("null") => Value::Null,
            _ => return Err(self.expected("a value")),
        };
        Ok(Node { mark, value })
    }

    fn nested(&mut self, read: fn(&mut Self) -> Read<Value>) -> Read<Value> {
        if self.depth >= DEPTH_MAX {
            let message = format!("lists and maps are nested more than {DEPTH_MAX} deep");
            return Err(self.problem("G0305", message));
        }
        self.depth += 1;
        self.take(1);
        self.blanks();
        let value = read(self)?;
        self.depth -= 1;
        Ok(value)
    }

    fn list(&mut self) -> Read<Value> {
        let mut items = Vec::new();
        if self.eat("]") {
            return Ok(Value::List(items));
        }
        loop {
            items.push(self.value()?);
            self.blanks();
            if self.eat("]") {
                return Ok(Value::List(items));
            }
            if !self.eat(",") {
                return Err(self.expected("`,` or `]`"));
            }
        }
    }

    fn map(&mut self) -> Read<Value> {
        let mut entries = Vec::new();
        let mut known = HashSet::new();
        if self.eat("}") {
            return Ok(Value::Map(entries));
        }
        loop {
            self.blanks();
            let mark = self.mark;
            if !self.rest.starts_with('"') {
                return Err(self.expected("a key in double quotes"));
            }
            let text = self.text()?;
            if !known.insert(text.clone()) {
                let message = format!("`{text}` is given twice");
                return Err(Problem {
                    code: "G0304",
                    message,
                    mark,
                });
            }
            self.blanks();
            if !self.eat(":") {
                return Err(self.expected("`:`"));
            }
            let value = self.value()?;
            entries.push((Key { mark, text }, value));
            self.blanks();
            if self.eat("}") {
                return Ok(Value::Map(entries));
            }
            if !self.eat(",") {
                return Err(self.expected("`,` or `}`"));
            }
        }
    }

    /// A text with its quotes; what escapes mean is serde_json's to say.
    fn text(&mut self) -> Read<String> {
        let mut escaped = false;
        let end = self
            .rest
            .char_indices()
            .skip(1)
            .find_map(|(index, c)| match c {
                _ if escaped => {
                    escaped = false;
                    None
                }
                '\\' => {
                    escaped = true;
                    None
                }
                '"' => Some(index + 1),
                _ => None,
            });
        let Some(end) = end else {
            return Err(self.problem("G0304", "not valid JSON: the text never ends".into()));
        };
        let text = serde_json::from_str(&self.rest[..end]).map_err(|_| {
            let message = "not valid JSON: a wrong escape or a control character in this text";
            self.problem("G0304", message.into())
        })?;
        self.take(end);
        Ok(text)
    }

    fn number(&mut self) -> Read<Value> {
        let part = |c: char| !(c.is_ascii_digit() || matches!(c, '-' | '+' | '.' | 'e' | 'E'));
        let end = self.rest.find(part).unwrap_or(self.rest.len());
        let text = &self.rest[..end];
        // serde_json knows what a number looks like, the standard library rounds it exactly.
        let legal = serde_json::from_str::<serde_json::Number>(text).is_ok();
        let value = match (text.parse(), text.parse(), text.parse::<f64>()) {
            (Ok(value), _, _) if legal => Value::Int(value),
            (_, Ok(value), _) if legal => Value::Uint(value),
            (_, _, Ok(value)) if legal => Value::Float(value),
            _ => return Err(self.problem("G0304", "not valid JSON: a wrong number".into())),
        };
        self.take(end);
        Ok(value)
    }
}

#[cfg(test)]
mod tests;
