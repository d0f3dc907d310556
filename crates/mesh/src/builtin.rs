//! The connectors that are built in, and the settings each understands.
//!
//! The settings are read strictly when a plan is made, so that a misspelt key is found with its
//! line and not by an instance at work. The worker takes these same types.

use serde::{Deserialize, Serialize};

/// Built-in sources by name.
pub const SOURCES: [&str; 1] = ["file"];
/// Built-in sinks by name.
pub const SINKS: [&str; 2] = ["file", "table"];

/// The file source: each line of a file, or of the files of a directory, is an event.
///
/// One of `path` and `inputDirectory`. The second and the keys that follow it are Pulsar's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct FileSource {
    /// One file, read once and kept. A path that is not absolute starts at the mesh's file.
    pub path: Option<String>,
    /// Go on with what is appended; without it the source ends at the end of the file.
    pub follow: Option<bool>,
    /// A directory whose files are read.
    pub input_directory: Option<String>,
    /// Also the directories in it; true when absent.
    pub recurse: Option<bool>,
    /// Leave a file that was read; when absent it is deleted, as Pulsar does.
    pub keep_file: Option<bool>,
    /// Files whose name matches this regular expression; `[^.].*` when absent.
    pub file_filter: Option<String>,
    /// Directories whose path matches.
    pub path_filter: Option<String>,
    /// Leave out names that begin with a dot; true when absent.
    pub ignore_hidden_files: Option<bool>,
    /// Milliseconds between two looks at the directory; 10,000 when absent.
    pub polling_interval: Option<u64>,
    /// Youngest age in milliseconds.
    pub minimum_file_age: Option<u64>,
    /// Oldest age in milliseconds.
    pub maximum_file_age: Option<u64>,
    /// Smallest size in bytes; 1 when absent.
    pub minimum_size: Option<u64>,
    /// Largest size in bytes.
    pub maximum_size: Option<u64>,
    /// Readers at once; 1 when absent.
    pub num_workers: Option<u32>,
    /// A file that was read gets this ending instead of being deleted.
    pub processed_file_suffix: Option<String>,
}

/// The file sink: each event is a line of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct FileSink {
    /// The file; its directory is made when missing. A path that is not absolute starts at the
    /// mesh's file.
    pub path: Option<String>,
    /// Keep what the file holds; without it the file begins empty at each start.
    pub append: Option<bool>,
}

/// The table sink: a row for each message key, the newest event wins; printed by `geminga run`.
///
/// An event is a JSON object whose members are cells, or any text, which is one cell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TableSink {
    /// Above the table.
    pub title: Option<String>,
    /// Heading of the key's column; without it the key is no column.
    pub key: Option<String>,
    /// Members to show, in this order; all of the first event when absent.
    pub columns: Option<Vec<String>>,
    /// Column to sort by; a `-` in front for descending.
    pub sort: Option<String>,
    /// Show so many rows; all when absent.
    pub limit: Option<u32>,
}

impl FileSource {
    /// What is wrong beyond the spelling.
    pub fn check(&self) -> Result<(), &'static str> {
        match (&self.path, &self.input_directory) {
            (None, None) => Err("a file source needs a `path` or an `inputDirectory`"),
            (Some(_), Some(_)) => Err("`path` and `inputDirectory` exclude each other"),
            _ => Ok(()),
        }
    }

    /// Whether it ends by itself.
    pub fn is_bounded(&self) -> bool {
        !self.follow.unwrap_or(self.path.is_none())
    }
}

impl FileSink {
    /// What is wrong beyond the spelling.
    pub fn check(&self) -> Result<(), &'static str> {
        self.path
            .as_ref()
            .map(|_| ())
            .ok_or("a file sink needs a `path`")
    }
}
