//! Which settings mean something for scripts and executables: that depends on how they meet their messages.
//!
//! One table ([`TABLE`]) says it. What is not for a function's way is refused by its name, never passed over.

use std::path::Path;

use super::{Framing, Mode, Options};

/// How a script or an executable meets its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// A warm shell in front of a script.
    Shell,
    /// A process a message.
    Spawn,
    /// A warm process that knows nothing of Geminga: a record in, a record out.
    Stream,
    /// A warm process that speaks the host protocol.
    Host,
    /// A process a batch.
    Batch,
}

use Way::{Batch, Host, Shell, Spawn, Stream};

#[cfg(test)]
const ALL: [Way; 5] = [Shell, Spawn, Stream, Host, Batch];

/// A field, the ways that it is for, and whether these options give it.
type Row = (&'static str, &'static [Way], fn(&Options) -> bool);

/// Fields that are not here are for every way.
const TABLE: [Row; 10] = [
    ("framing", &[Stream, Host, Batch], |o| {
        o.framing != Framing::default()
    }),
    ("input", &[Spawn], |o| o.input != Options::default().input),
    ("content", &[Shell, Spawn, Host], |o| {
        o.content != Options::default().content
    }),
    ("nul", &[Shell, Host], |o| o.nul != Options::default().nul),
    ("emptyOutput", &[Shell, Spawn], |o| o.empty_output),
    ("args", &[Spawn, Stream, Host, Batch], |o| {
        !o.args.is_empty()
    }),
    ("startTimeoutMs", &[Shell, Host], |o| {
        o.start_timeout_ms != Options::default().start_timeout_ms
    }),
    ("batch", &[Shell, Stream, Host, Batch], |o| {
        o.batch.is_some()
    }),
    ("concurrency", &[Spawn], |o| o.concurrency.is_some()),
    // It has no program to hand batches to by the protocol.
    ("framing: host", &[Host], |o| {
        o.framing == Framing::Host && o.mode == Some(Mode::Batch)
    }),
];

impl Way {
    /// That of a script (`shell`) or an executable with these options. `None` while it is for the script's first line to
    /// say, and that is not on this machine: on a worker that has yet to fetch it, or before it is uploaded.
    pub(crate) fn of(options: &Options, shell: bool, path: &Path) -> Option<Self> {
        if shell && !matches!(options.mode, Some(Mode::Spawn | Mode::Batch)) {
            // What else stands there (a pipe) may never answer.
            if !path.is_file() {
                return None;
            }
            if super::super::bash::is_warm(options, path) {
                return Some(Shell);
            }
        }
        Some(match options.mode.unwrap_or_default() {
            Mode::Spawn => Spawn,
            Mode::Batch => Batch,
            Mode::Stream if options.framing == Framing::Host => Host,
            Mode::Stream => Stream,
        })
    }

    /// As it is said to a person.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Shell => "the warm shell",
            Spawn => "`mode: spawn`",
            Stream => "`mode: stream`",
            Host => "`mode: stream` with `framing: host`",
            Batch => "`mode: batch`",
        }
    }

    /// Whether code of this way can acknowledge by itself.
    pub(crate) const fn acknowledges(self) -> bool {
        matches!(self, Shell | Spawn | Host)
    }

    /// What is given and would be passed over, a sentence each.
    pub(crate) fn refuses(self, options: &Options) -> Vec<String> {
        let unused = TABLE
            .iter()
            .filter(|(_, ways, given)| !ways.contains(&self) && given(options));
        unused
            .map(|(field, ways, _)| {
                let ways: Vec<_> = ways.iter().map(|way| way.text()).collect();
                format!(
                    "`{field}` of `customRuntimeOptions` has no effect in {}: remove it, or use {}",
                    self.text(),
                    ways.join(" or ")
                )
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_way_has_no_use_for_is_refused_by_its_name() {
        let script = tempfile::NamedTempFile::new().expect("a script");
        for (options, shell, refused) in [
            (r#"{"args":["a"]}"#, true, "args"),
            (r#"{"framing":"json"}"#, true, "framing"),
            (r#"{"input":"arg1"}"#, true, "input"),
            (r#"{"concurrency":2}"#, true, "concurrency"),
            (r#"{"framing":"json"}"#, false, "framing"),
            (r#"{"nul":"base64"}"#, false, "nul"),
            (r#"{"batch":5}"#, false, "batch"),
            (r#"{"mode":"spawn","nul":"base64"}"#, true, "nul"),
            (r#"{"startTimeoutMs":5}"#, false, "startTimeoutMs"),
            (r#"{"mode":"stream","input":"arg1"}"#, false, "input"),
            (r#"{"mode":"stream","concurrency":2}"#, false, "concurrency"),
            (
                r#"{"mode":"stream","emptyOutput":true}"#,
                false,
                "emptyOutput",
            ),
            (r#"{"mode":"stream","content":"bytes"}"#, false, "content"),
            (r#"{"mode":"batch","input":"arg1"}"#, false, "input"),
            (
                r#"{"mode":"batch","framing":"host"}"#,
                false,
                "framing: host",
            ),
        ] {
            let parsed = Options::parse(options).expect(options);
            let way = Way::of(&parsed, shell, script.path()).expect("a way");
            let said = way.refuses(&parsed);
            let [one] = &said[..] else {
                panic!("{options}: {said:?}")
            };
            assert!(one.starts_with(&format!("`{refused}`")), "{options}: {one}");
        }
        for (options, shell) in [
            (
                r#"{"nul":"base64","content":"bytes","batch":5,"startTimeoutMs":5}"#,
                true,
            ),
            (r#"{"mode":"stream","nul":"base64"}"#, true),
            (
                r#"{"input":"arg1","concurrency":2,"args":["a"],"emptyOutput":true}"#,
                false,
            ),
            (r#"{"mode":"spawn","content":"bytes"}"#, true),
            (
                r#"{"mode":"stream","framing":"host","startTimeoutMs":5,"content":"bytes"}"#,
                false,
            ),
            (
                r#"{"mode":"batch","framing":"json","batch":5,"args":["a"]}"#,
                false,
            ),
        ] {
            let parsed = Options::parse(options).expect(options);
            let way = Way::of(&parsed, shell, script.path()).expect("a way");
            assert_eq!(way.refuses(&parsed), Vec::<String>::new(), "{options}");
        }
    }

    /// It may have a first line by which its options are right: a worker that is yet to fetch it does not refuse it.
    #[test]
    fn a_script_that_is_not_here_is_judged_by_its_mode_alone() {
        let absent = Path::new("/no/such");
        let way = |options: &str| {
            let parsed = Options::parse(options).expect(options);
            Way::of(&parsed, true, absent)
        };
        assert_eq!(way(r#"{"input":"arg1"}"#), None);
        assert_eq!(way(r#"{"mode":"stream"}"#), None);
        assert_eq!(way(r#"{"mode":"spawn"}"#), Some(Spawn));
        assert_eq!(way(r#"{"mode":"batch"}"#), Some(Batch));
    }

    /// The guide has the table as it is.
    #[test]
    fn the_guide_says_which_option_is_for_which_way() {
        let guide = include_str!("../../../../../docs/guide/bash.md");
        for (field, ways, _) in TABLE.iter().filter(|row| !row.0.contains(':')) {
            let cells = ALL.map(|way| {
                if ways.contains(&way) {
                    "yes"
                } else {
                    "refused"
                }
            });
            let row = format!("| `{field}` | {} |", cells.join(" | "));
            assert!(guide.contains(&row), "docs/guide/bash.md needs: {row}");
        }
        let cells = ALL.map(|way| if way.acknowledges() { "yes" } else { "refused" });
        let row = format!("| `autoAck: false` | {} |", cells.join(" | "));
        assert!(guide.contains(&row), "docs/guide/bash.md needs: {row}");
    }
}
