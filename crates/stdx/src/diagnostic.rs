//! An error as a person reads it: a code, what happened, where, why, and what to type.
//!
//! ```text
//! error[G0301]: unknown field `paralelism`
//!   --> mesh.yaml:12:7
//!   = cause: a Function has no field of that name
//!   = help: did you mean `parallelism`?
//! ```

use std::fmt;
use std::path::PathBuf;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Severity {
    #[default]
    Error,
    Warning,
    Note,
}

/// The place in a file; line and column count from 1, 0 means unknown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub file: PathBuf,
    pub line: usize,
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
            if self.column > 0 {
                write!(f, ":{}", self.column)?;
            }
        }
        Ok(())
    }
}

/// One message to a person. Built step by step: `Diagnostic::error("G0301", "..").at(..).cause(..).help(..)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    pub severity: Severity,
    /// `G` and four digits; `geminga explain CODE` says more.
    pub code: &'static str,
    pub message: String,
    /// Boxed: a `Result` with a diagnostic stays small.
    pub place: Option<Box<Place>>,
    pub cause: Option<String>,
    /// What to do, if possible a command that works.
    pub help: Option<String>,
}

impl Diagnostic {
    #[must_use]
    pub fn error(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            code,
            message: message.into(),
            place: None,
            cause: None,
            help: None,
        }
    }

    #[must_use]
    pub fn warning(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(code, message)
        }
    }

    #[must_use]
    pub fn note(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Note,
            ..Self::error(code, message)
        }
    }

    #[must_use]
    pub fn at(mut self, file: impl Into<PathBuf>, line: usize, column: usize) -> Self {
        self.place = Some(Box::new(Place {
            file: file.into(),
            line,
            column,
        }));
        self
    }

    #[must_use]
    pub fn cause(mut self, cause: impl Into<String>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    #[must_use]
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        write!(f, "{word}[{}]: {}", self.code, self.message)?;
        if let Some(place) = &self.place {
            write!(f, "\n  --> {place}")?;
        }
        if let Some(cause) = &self.cause {
            write!(f, "\n  = cause: {cause}")?;
        }
        if let Some(help) = &self.help {
            write!(f, "\n  = help: {help}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostic {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_what_where_why_and_what_to_type() {
        let shown = Diagnostic::error("G0301", "unknown field `paralelism`")
            .at("mesh.yaml", 12, 7)
            .cause("a Function has no field of that name")
            .help("did you mean `parallelism`?")
            .to_string();
        assert_eq!(
            shown,
            "error[G0301]: unknown field `paralelism`\n  --> mesh.yaml:12:7\n  \
             = cause: a Function has no field of that name\n  = help: did you mean `parallelism`?"
        );
    }
}
