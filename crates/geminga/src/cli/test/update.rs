//! `--update`: what came takes the place of what was wanted, and nothing else in the file changes.
//!
//! The text is edited, not written anew, so that comments and the order of names stay. What must hold: the
//! file that is made is read again before it is written, and has the same cases.

use std::path::Path;

use super::cases::{Case, of_text};

/// Puts `expect`, as lines of YAML, into the case. An error says why this file can not be edited.
pub(crate) fn with_expect(
    path: &Path,
    text: &str,
    case: &Case,
    expect: &[String],
) -> Result<String, String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let indent = case.column - 1;
    let first = case.line - 1;
    let in_block = lines
        .get(first)
        .is_some_and(|line| line.trim_start().starts_with('-') && !line.contains('{'));
    if !in_block {
        return Err(format!(
            "case `{}` is written in one line: write its fields below each other",
            case.name
        ));
    }
    // Where the case ends: a line that stands further left.
    let ends = |line: &String| {
        let text = line.trim_start();
        !text.is_empty() && !text.starts_with('#') && line.len() - text.len() < indent
    };
    let end = (first + 1..lines.len())
        .find(|&i| ends(&lines[i]))
        .unwrap_or(lines.len());
    let pad = " ".repeat(indent);
    let key = |i: usize| {
        let body = lines[i].get(indent..).unwrap_or_default();
        let starts = lines[i]
            .get(..indent)
            .is_some_and(|before| before.trim().is_empty() || (i == first && before.trim() == "-"));
        starts && body.starts_with("expect:")
    };
    let mut new = Vec::with_capacity(expect.len() + 1);
    if expect.is_empty() {
        new.push(format!("{pad}expect: {{}}"));
    } else {
        new.push(format!("{pad}expect:"));
        new.extend(expect.iter().map(|line| format!("{pad}  {line}")));
    }
    match (first..end).find(|&i| key(i)) {
        Some(at) if at == first => {
            return Err(format!("case `{}` begins with `expect`", case.name));
        }
        Some(at) => {
            // The value goes on while lines stand further right; trailing blanks and comments stay.
            let inside = |line: &String| {
                let text = line.trim_start();
                text.is_empty() || line.len() - text.len() > indent
            };
            let mut to = at + 1;
            while to < end && inside(&lines[to]) {
                to += 1;
            }
            while to > at + 1 && lines[to - 1].trim().is_empty() {
                to -= 1;
            }
            lines.splice(at..to, new);
        }
        None => {
            let mut to = end;
            while to > first + 1 && {
                let text = lines[to - 1].trim();
                text.is_empty() || text.starts_with('#')
            } {
                to -= 1;
            }
            lines.splice(to..to, new);
        }
    }
    let mut made = lines.join("\n");
    made.push('\n');
    let names = |text: &str| -> Result<Vec<String>, String> {
        let file = of_text(path, text).map_err(|error| error.to_string())?;
        Ok(file.cases.into_iter().map(|case| case.name).collect())
    };
    if names(&made)? != names(text)? {
        return Err(format!("case `{}` can not be edited in place", case.name));
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edited(text: &str, number: usize, expect: &[&str]) -> Result<String, String> {
        let path = Path::new("f.test.yaml");
        let file = of_text(path, text).unwrap_or_else(|e| panic!("{e}"));
        let expect: Vec<String> = expect.iter().map(|&line| line.to_owned()).collect();
        with_expect(path, text, &file.cases[number], &expect)
    }

    const TEXT: &str = "# all\ncases:\n  - name: one # first\n    input: a\n    expect:\n      outputs:\n        - x\n\n  \
                        # between\n  - name: two\n    input: b\n    # why\n\n  - {name: three, input: c}\n";

    #[test]
    fn an_expectation_is_replaced_or_added_and_the_rest_stays() {
        let made = edited(TEXT, 0, &["outputs:", "  - y", "  - z"]).expect("edits");
        assert_eq!(
            made,
            TEXT.replace(
                "outputs:\n        - x\n",
                "outputs:\n        - y\n        - z\n"
            )
        );
        let made = edited(TEXT, 1, &["outputs: []"]).expect("edits");
        assert_eq!(
            made,
            TEXT.replace("input: b\n", "input: b\n    expect:\n      outputs: []\n")
        );
        let flow = "cases:\n- name: one\n  expect: {outputs: [a,\n    b]}\n  input: a\n- name: two\n  input: b\n";
        let made = edited(flow, 0, &["errors: []"]).expect("edits");
        assert_eq!(
            made,
            "cases:\n- name: one\n  expect:\n    errors: []\n  input: a\n- name: two\n  input: b\n"
        );
        assert!(edited(TEXT, 2, &["outputs: []"]).is_err());
    }
}
