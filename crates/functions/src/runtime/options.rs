//! What `customRuntimeOptions` may say about running a process. Every field has a bounded default;
//! an unknown field is an error.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::sandbox::Walls;

mod way;

pub(crate) use way::Way;

/// How processes and messages meet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// A process a message.
    #[default]
    Spawn,
    /// One warm process.
    Stream,
    /// A process a batch.
    Batch,
}

/// How messages are told apart on a pipe.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Framing {
    /// A line in, a line out.
    #[default]
    Line,
    /// The same, ended by a NUL byte.
    Nul,
    /// A JSON object a line, both ways.
    Json,
    /// Decimal length, newline, bytes.
    Len,
    /// The host protocol (`docs/host-protocol.md`): for programs that speak it themselves.
    Host,
}

/// How a spawned process gets its message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Input {
    #[default]
    Stdin,
    /// As the first argument, as pf_runtime did. Visible in the process list and limited in size.
    Arg1,
}

/// What happens to text at the edges of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// Text gets its final newline on the way in and loses one on the way out, so that line tools
    /// work and `cat` changes nothing. Bytes that are not UTF-8 are never touched.
    #[default]
    Text,
    /// Exactly the bytes.
    Bytes,
}

/// What a shell is given when a payload holds a NUL byte, which it can not hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Nul {
    /// The message fails as bad data.
    #[default]
    Refuse,
    /// `$MSG` is base64 and `$MSG_ENCODING` says so.
    Base64,
}

/// What becomes of an update whose code does not start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailedUpdate {
    /// It stays, and is tried again: status says why it does not run.
    #[default]
    Keep,
    /// The version before it runs again, and the update is refused with the reason.
    Rollback,
}

/// Whose instance runs the code, where there is a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// Pulsar's own, which is in the Go program, or in a folder of Pulsar for Java.
    Compat,
    /// Ours.
    Native,
}

/// Limits that the kernel enforces on each process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    pub cpu_seconds: Option<u64>,
    /// Of address space.
    pub memory_bytes: Option<u64>,
    /// Of private memory that can be written: for programs that reserve more than they use.
    pub data_bytes: Option<u64>,
    pub processes: Option<u64>,
    pub open_files: Option<u64>,
    pub file_bytes: Option<u64>,
}

/// The settings of a process runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Options {
    /// Absent: Pulsar's own instance for Go programs that hold it, else ours.
    pub runtime: Option<Choice>,
    /// `bash` is warm when absent, `exec` spawns.
    pub mode: Option<Mode>,
    pub framing: Framing,
    pub input: Input,
    pub content: Content,
    pub nul: Nul,
    /// Publish an empty message when the process printed nothing.
    pub empty_output: bool,
    /// Exit status that drops a message.
    pub drop_exit_code: i32,
    /// Arguments of the executable.
    pub args: Vec<String>,
    /// Environment on top of the cleared one.
    pub env: BTreeMap<String, String>,
    /// How long one message may take; 0 is without end.
    pub timeout_ms: u64,
    /// From TERM to KILL.
    pub kill_grace_ms: u64,
    /// How long the code may take to become ready.
    pub start_timeout_ms: u64,
    /// Most bytes one message may print.
    pub max_output_bytes: u64,
    /// Most bytes a second of standard error that become logs; more is counted and dropped.
    pub max_stderr_bytes: u64,
    /// Messages in a host at once; the runtime's own choice when absent.
    pub window: Option<usize>,
    /// Messages a process in batch mode; frame size in warm modes.
    pub batch: Option<usize>,
    /// Processes at once in spawn mode; as many as the machine has cores when absent.
    pub concurrency: Option<usize>,
    pub on_failed_update: OnFailedUpdate,
    /// Its instances may be on several workers. They share no state then, and have none.
    pub spread: bool,
    pub limits: Limits,
    /// `uid` or `uid:gid` to run as; needs root.
    pub run_as: Option<String>,
    /// Walls around files and the network.
    pub sandbox: Walls,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            runtime: None,
            mode: None,
            framing: Framing::default(),
            input: Input::default(),
            content: Content::default(),
            nul: Nul::default(),
            empty_output: false,
            drop_exit_code: 99,
            args: Vec::new(),
            env: BTreeMap::new(),
            timeout_ms: 60_000,
            kill_grace_ms: 500,
            start_timeout_ms: 10_000,
            max_output_bytes: 5 * 1024 * 1024,
            max_stderr_bytes: 256 * 1024,
            window: None,
            batch: None,
            concurrency: None,
            on_failed_update: OnFailedUpdate::default(),
            spread: false,
            limits: Limits::default(),
            run_as: None,
            sandbox: Walls::default(),
        }
    }
}

impl Options {
    /// Reads the JSON text of `customRuntimeOptions`; empty text is the default.
    ///
    /// # Errors
    /// When it is not an object of known fields.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        serde_json::from_str(text)
    }

    /// The fields that were given and that a runtime with a host of its own has no use for.
    pub(crate) fn of_other_runtimes(&self) -> Vec<&'static str> {
        let none = Self::default();
        let given = [
            ("mode", !matches!(self.mode, None | Some(Mode::Stream))),
            ("framing", self.framing != none.framing),
            ("input", self.input != none.input),
            ("content", self.content != none.content),
            ("nul", self.nul != none.nul),
            ("emptyOutput", self.empty_output != none.empty_output),
            ("dropExitCode", self.drop_exit_code != none.drop_exit_code),
            ("concurrency", self.concurrency.is_some()),
        ];
        let names = given.into_iter().filter(|(_, given)| *given);
        names.map(|(name, _)| name).collect()
    }

    /// The fields that were given and that Pulsar's own instance does not know.
    pub(crate) fn of_hosts(&self) -> Vec<&'static str> {
        let none = Self::default();
        let mut names = self.of_other_runtimes();
        let given = [
            ("mode", self.mode == Some(Mode::Stream)),
            ("args", !self.args.is_empty()),
            ("timeoutMs", self.timeout_ms != none.timeout_ms),
            (
                "maxOutputBytes",
                self.max_output_bytes != none.max_output_bytes,
            ),
            ("window", self.window.is_some()),
            ("batch", self.batch.is_some()),
        ];
        names.extend(given.into_iter().filter(|it| it.1).map(|it| it.0));
        names
    }

    /// The fields that were given and that only a process of its own can be held to.
    pub(crate) fn of_processes(&self) -> Vec<&'static str> {
        let limits = &self.limits;
        let grace = Self::default().kill_grace_ms;
        let given = [
            // There is no signal that a guest could heed.
            ("killGraceMs", self.kill_grace_ms != grace),
            ("runAs", self.run_as.is_some()),
            ("sandbox", self.sandbox != Walls::default()),
            ("limits.cpuSeconds", limits.cpu_seconds.is_some()),
            ("limits.dataBytes", limits.data_bytes.is_some()),
            ("limits.processes", limits.processes.is_some()),
            ("limits.openFiles", limits.open_files.is_some()),
            ("limits.fileBytes", limits.file_bytes.is_some()),
        ];
        let names = given.into_iter().filter(|(_, given)| *given);
        names.map(|(name, _)| name).collect()
    }

    pub(crate) fn timeout(&self) -> Option<Duration> {
        (self.timeout_ms > 0).then(|| Duration::from_millis(self.timeout_ms))
    }

    pub(crate) fn kill_grace(&self) -> Duration {
        Duration::from_millis(self.kill_grace_ms)
    }

    pub(crate) fn start_timeout(&self) -> Duration {
        Duration::from_millis(self.start_timeout_ms.max(1))
    }

    /// The user and group to run as.
    pub(crate) fn run_as(&self) -> Result<Option<(u32, u32)>, String> {
        let Some(text) = &self.run_as else {
            return Ok(None);
        };
        let (user, group) = text.split_once(':').unwrap_or((text, text));
        match (user.parse(), group.parse()) {
            (Ok(user), Ok(group)) => Ok(Some((user, group))),
            _ => Err(format!(
                "`runAs` is `uid` or `uid:gid` in numbers, not `{text}`"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_options_are_errors_and_names_are_camel_case() {
        assert!(Options::parse(r#"{"timeout":1}"#).is_err());
        assert_eq!(Options::parse(" ").expect("default"), Options::default());
        let options = Options::parse(
            r#"{"mode":"batch","framing":"json","timeoutMs":5,"limits":{"memoryBytes":9}}"#,
        )
        .expect("known fields");
        assert_eq!(options.mode, Some(Mode::Batch));
        assert_eq!(options.timeout(), Some(Duration::from_millis(5)));
        assert_eq!(options.limits.memory_bytes, Some(9));
    }

    #[test]
    fn run_as_is_numbers() {
        let with = |text: &str| {
            Options {
                run_as: Some(text.into()),
                ..Options::default()
            }
            .run_as()
        };
        assert_eq!(with("1000"), Ok(Some((1000, 1000))));
        assert_eq!(with("1:2"), Ok(Some((1, 2))));
        assert!(with("nobody").is_err());
    }
}
