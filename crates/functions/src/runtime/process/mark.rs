//! Marks: a variable in the environment by which the processes of a function are found, in whatever session they hide.
//!
//! A host's mark begins with its worker's name, and a process's with its host's; each part ends in a dot. Whoever has a
//! mark in its environment is counted, and killed, with that host's processes: so a function must not be able to guess
//! the mark of another, and no mark is shown in a log or in status.

use std::fmt;

use rustix::process::{Pid, Signal};

const VARIABLE: &str = "GMG_SCOPE";

/// What the environment of one process, or of all processes of a host, has in [`VARIABLE`] or begins with there.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Mark(String);

impl Mark {
    /// A host's, which nobody can guess. Every process of a worker knows the worker's part of it.
    pub(super) fn of_host(worker: &str) -> Self {
        let own = geminga_stdx::Random::from_entropy().name(24);
        Self(format!("{worker}.{own}."))
    }

    /// That of the host's process of this number.
    pub(super) fn process(&self, number: u64) -> Self {
        Self(format!("{}{number}.", self.0))
    }

    pub(super) fn variable(&self) -> (&'static str, &str) {
        (VARIABLE, &self.0)
    }

    /// Whether what an environment has is this mark, or one that begins with it.
    pub(crate) fn begins(&self, value: &[u8]) -> bool {
        value.starts_with(self.0.as_bytes())
    }

    /// Whether what an environment has is this mark.
    pub(crate) fn is(&self, value: &[u8]) -> bool {
        value == self.0.as_bytes()
    }

    /// The processes whose mark begins like this.
    pub(crate) fn processes(&self) -> Vec<Pid> {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                let pid = entry.file_name().to_str()?.parse().ok()?;
                let environment = std::fs::read(entry.path().join("environ")).ok()?;
                let mut values = values(&environment);
                Pid::from_raw(pid).filter(|_| values.any(|value| self.begins(value)))
            })
            .collect()
    }

    /// Kills them.
    pub(crate) fn sweep(&self) {
        for pid in self.processes() {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
}

/// What an environment has as marks.
pub(crate) fn values(environment: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = environment.split(|&b| b == 0);
    lines.filter_map(|line| line.strip_prefix(VARIABLE.as_bytes())?.strip_prefix(b"="))
}

/// It is not shown.
impl fmt::Debug for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mark")
    }
}

#[cfg(test)]
impl Mark {
    pub(crate) fn of(text: &str) -> Self {
        Self(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_knows_its_own_mark_and_can_not_tell_that_of_another() {
        let (own, other) = (Mark::of_host("worker"), Mark::of_host("worker"));
        let seen = own.process(3);
        let seen = seen.variable().1;
        assert!(own.begins(seen.as_bytes()) && !own.is(seen.as_bytes()));
        assert!(own.process(3).is(seen.as_bytes()));
        // As hosts and their processes are numbered, and with its own part in their place.
        let (worker, rest) = seen.split_once('.').expect("parts");
        let (part, _) = rest.split_once('.').expect("parts");
        assert!(part.len() >= 24, "{part}");
        let numbers = (0..1000).map(|number| number.to_string());
        for part in numbers.chain([part.to_owned(), String::new()]) {
            let guess = format!("{worker}.{part}.0.");
            assert!(!other.begins(guess.as_bytes()), "{guess}");
        }
        assert!(!format!("{own:?}").contains(part));
    }

    #[test]
    fn marks_are_read_where_they_stand() {
        let found: Vec<&[u8]> =
            values(b"A=GMG_SCOPE=x\0GMG_SCOPE=a\0GMG_SCOPES=b\0GMG_SCOPE=").collect();
        assert_eq!(found, [&b"a"[..], b""]);
    }
}
