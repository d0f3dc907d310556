//! Where compilers and interpreters say that code is wrong: file, line and column out of their words.
//!
//! Pure text, but for asking whether a file is there.

use std::path::{Path, PathBuf};

use geminga_stdx::diagnostic::Place;

/// The place that `said` names, of a file that is below `folder` or is named by its whole path.
pub(super) fn of(said: &str, folder: &Path) -> Option<Place> {
    let is_there = |file: &str| -> Option<PathBuf> {
        let path = Path::new(file.trim_start_matches("./"));
        let inside = folder.join(path);
        // Maven's layout: `javac` names files by their whole path, `go` by the path in the module.
        [inside, PathBuf::from(file)]
            .into_iter()
            .find(|path| path.is_file())
    };
    let all = said.lines().filter_map(place_of_line);
    let known: Vec<Place> = all
        .filter_map(|place| {
            let file = is_there(&place.file.to_string_lossy())?;
            Some(Place { file, ..place })
        })
        .collect();
    // Python names the innermost call last; the others name the first error first.
    let is_python = said.contains("File \"");
    let place = if is_python {
        known.last()
    } else {
        known.first()
    };
    place.cloned()
}

/// The place that one line names, whether or not it is a file of ours.
fn place_of_line(line: &str) -> Option<Place> {
    python(line)
        .or_else(|| shell(line))
        .or_else(|| colons(line))
}

/// `  File "f.py", line 3, in process`.
fn python(line: &str) -> Option<Place> {
    let rest = line.trim_start().strip_prefix("File \"")?;
    let (file, rest) = rest.split_once("\", line ")?;
    Some(Place {
        file: file.into(),
        line: number(rest)?,
        column: 0,
    })
}

/// `f.sh: line 3: syntax error`.
fn shell(line: &str) -> Option<Place> {
    let (file, rest) = line.split_once(": line ")?;
    Some(Place {
        file: file.into(),
        line: number(rest)?,
        column: 0,
    })
}

/// `main.go:3:7: undefined: x`, `F.java:3: error: ';' expected`.
fn colons(line: &str) -> Option<Place> {
    let mut from = 0;
    // A path may hold colons itself: the first that a number follows ends it.
    while let Some(at) = line[from..].find(':') {
        let at = from + at;
        let rest = &line[at + 1..];
        if let Some(number_) = number(rest).filter(|_| at > 0) {
            let after = rest.trim_start_matches(|c: char| c.is_ascii_digit());
            let column = after.strip_prefix(':').and_then(number).unwrap_or(0);
            return after.starts_with(':').then(|| Place {
                file: line[..at].trim().into(),
                line: number_,
                column,
            });
        }
        from = at + 1;
    }
    None
}

fn number(text: &str) -> Option<usize> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_language_says_it_in_its_own_way() {
        let folder = tempfile::tempdir().expect("a directory");
        for name in ["f.py", "lib.py", "f.sh", "main.go", "F.java"] {
            std::fs::write(folder.path().join(name), "").expect("writes");
        }
        let path = |name: &str| folder.path().join(name).display().to_string();
        for (said, wanted) in [
            (
                format!(
                    "SyntaxError: x\n  File \"/usr/lib/host.py\", line 9\n  File \"{}\", line 3, in f\n  \
                     File \"{}\", line 7\n    bad(\n",
                    path("f.py"),
                    path("lib.py")
                ),
                Some(("lib.py", 7, 0)),
            ),
            (
                format!(
                    "it has a syntax error\n{}: line 12: syntax error near `fi'",
                    path("f.sh")
                ),
                Some(("f.sh", 12, 0)),
            ),
            (
                "`go` failed\n# function\n./main.go:14:2: undefined: foo\n./main.go:20:1: more"
                    .to_owned(),
                Some(("main.go", 14, 2)),
            ),
            (
                format!(
                    "{}:5: error: ';' expected\n        return 1\n",
                    path("F.java")
                ),
                Some(("F.java", 5, 0)),
            ),
            ("no/such.go:3:1: x".to_owned(), None),
            ("it took 12: nothing".to_owned(), None),
        ] {
            let got = of(&said, folder.path());
            let got = got.as_ref().map(|place| {
                let name = place
                    .file
                    .file_name()
                    .expect("a name")
                    .to_str()
                    .expect("text");
                (name, place.line, place.column)
            });
            assert_eq!(got, wanted, "{said}");
        }
    }
}
