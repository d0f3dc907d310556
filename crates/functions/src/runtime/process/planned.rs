//! Programs that are about to be started: what they are given, and the gate that they start behind.
//!
//! A process is put into a control group of version 2 by the worker, when it is there already; and whatever it has
//! started by then stays outside for its whole life, where nothing holds a bomb. So where there is such a group a shell
//! is started in its place, which waits for a line on its standard input and then becomes the program: it is in the
//! group and has its limits by then. The shell costs a start less than a millisecond, and a look for what came before
//! the group would come too late for what doubles itself.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::{Child, Command};

use crate::runtime::Broken;

/// A shell, and how it is told to read nothing but a script.
type Shell = (&'static str, &'static [&'static str]);

const SHELL: Shell = ("/bin/sh", &["-c"]);
/// It hands on variables whose names no shell can use, where a smaller one drops them. With a socket as its standard
/// input it takes itself for a remote login, unless it is told not to. And it would take functions out of its
/// environment, one by the name of what stands at the gate too, unless it is privileged.
const WHOLE_SHELL: Shell = ("/bin/bash", &["--norc", "--posix", "-p", "-c"]);
/// What lets one through.
const LINE: &[u8] = b"\n";

/// A program, what it is given, and how it starts. Its output and its errors are pipes. There may be secrets in it, so it
/// is not shown.
pub(crate) struct Planned {
    pub(crate) program: PathBuf,
    arguments: Vec<OsString>,
    environment: BTreeMap<OsString, OsString>,
    folder: Option<PathBuf>,
    owner: Option<(u32, u32)>,
    input: Input,
    prelude: Option<PathBuf>,
    is_gated: bool,
}

/// The standard input.
#[derive(Default)]
enum Input {
    #[default]
    Nothing,
    Pipe,
    Socket {
        ours: OwnedFd,
        theirs: OwnedFd,
    },
}

impl Planned {
    /// With nothing in its environment. Behind the gate when `is_gated`.
    pub(super) fn new(program: &Path, owner: Option<(u32, u32)>, is_gated: bool) -> Self {
        Self {
            program: program.to_path_buf(),
            arguments: Vec::new(),
            environment: BTreeMap::new(),
            folder: None,
            owner,
            input: Input::default(),
            prelude: None,
            is_gated,
        }
    }

    pub(crate) fn arg(&mut self, argument: impl AsRef<OsStr>) -> &mut Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    pub(crate) fn args(
        &mut self,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> &mut Self {
        let arguments = arguments.into_iter();
        self.arguments
            .extend(arguments.map(|argument| argument.as_ref().to_owned()));
        self
    }

    pub(crate) fn env(&mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Self {
        let (name, value) = (name.as_ref().to_owned(), value.as_ref().to_owned());
        self.environment.insert(name, value);
        self
    }

    pub(crate) fn envs(
        &mut self,
        all: impl IntoIterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>,
    ) -> &mut Self {
        for (name, value) in all {
            self.env(name, value);
        }
        self
    }

    /// The folder that it starts in, when it is not the worker's.
    pub(crate) fn folder(&mut self, folder: PathBuf) -> &mut Self {
        self.folder = Some(folder);
        self
    }

    /// A pipe as its standard input, in place of none.
    pub(crate) fn pipe(&mut self) -> &mut Self {
        self.input = Input::Pipe;
        self
    }

    /// A socket as its standard input, whose other end is `ours`.
    pub(crate) fn socket(&mut self, ours: OwnedFd, theirs: OwnedFd) -> &mut Self {
        self.input = Input::Socket { ours, theirs };
        self
    }

    /// A script that a shell reads before it becomes the program.
    pub(crate) fn prelude(&mut self, path: &Path) -> &mut Self {
        self.prelude = Some(path.to_path_buf());
        self
    }

    /// The command. What keeps the program from starting is an error here, or when the command is started.
    pub(super) fn command(&self) -> io::Result<Command> {
        let mut command = match self.script() {
            None => Command::new(&self.program),
            Some(script) => {
                self.find()?;
                let name = self.prelude.as_deref();
                let name = name.unwrap_or(Path::new("geminga-gate"));
                let (shell, flags) = self.shell();
                let mut command = Command::new(shell);
                command.args(flags).arg(script).arg(name).arg(&self.program);
                command
            }
        };
        command
            .args(&self.arguments)
            .env_clear()
            .envs(&self.environment)
            .stdin(match &self.input {
                Input::Nothing if self.is_gated => Stdio::piped(),
                Input::Nothing => Stdio::null(),
                Input::Pipe => Stdio::piped(),
                Input::Socket { theirs, .. } => theirs.try_clone()?.into(),
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        if let Some((user, group)) = self.owner {
            command.uid(user).gid(group);
        }
        Ok(command)
    }

    /// What a shell does before it becomes the program; `None` when there is nothing to do.
    fn script(&self) -> Option<String> {
        let (gate, prelude) = (self.is_gated, self.prelude.is_some());
        let steps = [
            ("read -r _ || exit; ", gate),
            (r#". "$0"; "#, prelude),
            (r#"exec "$@""#, gate || prelude),
        ];
        let script: String = steps.iter().filter(|step| step.1).map(|it| it.0).collect();
        (!script.is_empty()).then_some(script)
    }

    fn shell(&self) -> Shell {
        let is_usual = |name: &OsString| {
            let name = name.as_bytes();
            let known = name.iter().all(|&b| b == b'_' || b.is_ascii_alphanumeric());
            known && name.first().is_some_and(|first| !first.is_ascii_digit())
        };
        let usual = self.environment.keys().all(is_usual);
        if usual || !Path::new(WHOLE_SHELL.0).exists() {
            SHELL
        } else {
            WHOLE_SHELL
        }
    }

    /// Looks for the program as starting it would: what a shell does not find it tells nobody but its own standard error.
    fn find(&self) -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let has_folder = self.program.as_os_str().as_bytes().contains(&b'/');
        let places: Vec<PathBuf> = if has_folder {
            let folder = self.folder.as_deref().unwrap_or(Path::new(""));
            vec![folder.join(&self.program)]
        } else {
            let path = self.environment.get(OsStr::new("PATH"));
            let folders = path.into_iter().flat_map(std::env::split_paths);
            folders.map(|folder| folder.join(&self.program)).collect()
        };
        let mut found = Err(io::ErrorKind::NotFound.into());
        for place in places {
            match std::fs::metadata(place) {
                Ok(about) if about.is_file() && about.permissions().mode() & 0o111 != 0 => {
                    return Ok(());
                }
                Ok(_) => found = Err(io::ErrorKind::PermissionDenied.into()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => found = Err(error),
            }
        }
        found
    }

    /// Lets what was started through the gate.
    pub(super) fn open(&self, child: &mut Child) {
        if !self.is_gated {
            return;
        }
        let opened = match &self.input {
            // Closed behind the line: there is nothing to read for the program.
            Input::Nothing => child
                .stdin
                .take()
                .map(|pipe| rustix::io::write(&pipe, LINE)),
            Input::Pipe => child
                .stdin
                .as_ref()
                .map(|pipe| rustix::io::write(pipe, LINE)),
            Input::Socket { ours, .. } => Some(rustix::io::write(ours, LINE)),
        };
        // Who has ended reads nothing: whoever waits for it hears that.
        if let Some(Err(error)) = opened {
            tracing::debug!(%error, "a process has ended before it began");
        }
    }
}

/// The error of a command that did not start, told as what the user can do about it.
pub(crate) fn start_error(program: &Path, error: &io::Error) -> Broken {
    let path = program.display();
    let reason = match error.kind() {
        io::ErrorKind::NotFound if !program.exists() && program.is_absolute() => {
            format!("`{path}` does not exist")
        }
        io::ErrorKind::NotFound => format!("`{path}` or its interpreter does not exist"),
        io::ErrorKind::PermissionDenied => {
            format!("`{path}` is not executable: run `chmod +x {path}`")
        }
        _ => {
            return Broken::Start {
                reason: format!("`{path}` did not start: {error}"),
                stderr_tail: String::new(),
            };
        }
    };
    Broken::Deployment {
        reason,
        stderr_tail: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn planned(program: &str, is_gated: bool) -> Planned {
        let mut planned = Planned::new(Path::new(program), None, is_gated);
        planned.env("PATH", "/usr/local/bin:/usr/bin:/bin");
        planned
    }

    async fn output(planned: &Planned, child: io::Result<Child>) -> String {
        let mut child = child.expect("starts");
        planned.open(&mut child);
        let output = child.wait_with_output().await.expect("ends");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[tokio::test]
    async fn what_is_behind_the_gate_begins_when_it_is_let_through() {
        use tokio::io::AsyncReadExt;
        let mut planned = planned("/bin/sh", true);
        planned.args(["-c", "echo began; cat"]).pipe();
        let mut child = planned
            .command()
            .and_then(|mut c| c.spawn())
            .expect("starts");
        let pid = child.id().expect("it runs");
        let mut stdout = child.stdout.take().expect("a pipe");
        // It sleeps: before the gate, or when it has begun.
        crate::runtime::contract::until("it waits", || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.contains("(sh) S") || stat.contains("(cat) S")
        })
        .await;
        let began = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).expect("it lives");
        assert!(began.contains("geminga-gate"), "{began}");
        planned.open(&mut child);
        let mut stdin = child.stdin.take().expect("a pipe");
        tokio::io::AsyncWriteExt::write_all(&mut stdin, b"input")
            .await
            .expect("written");
        drop(stdin);
        let mut text = String::new();
        stdout.read_to_string(&mut text).await.expect("read");
        assert_eq!(text, "began\ninput", "its input is its own");
    }

    #[tokio::test]
    async fn no_function_of_the_environment_opens_the_gate() {
        let function = "() { echo slipped; }";
        let mut planned = planned("env", true);
        planned.env("BASH_FUNC_read%%", function).pipe();
        let mut child = planned
            .command()
            .and_then(|mut command| command.spawn())
            .expect("starts");
        // It never is let through: there is nothing to read any more.
        drop(child.stdin.take());
        let ended = child.wait_with_output().await.expect("ends");
        assert_eq!(String::from_utf8_lossy(&ended.stdout), "");
        assert!(!ended.status.success());
        // Behind the gate it is the program's, as any variable.
        let child = planned.command().and_then(|mut command| command.spawn());
        let said = output(&planned, child).await;
        assert!(
            said.contains(&format!("BASH_FUNC_read%%={function}\n")),
            "{said}"
        );
        assert!(!said.contains("slipped\n"), "{said}");
    }

    #[tokio::test]
    async fn a_gate_takes_nothing_from_a_program() {
        let code = r#"printf '%s,' "$0" "$@" "$A"; env | grep '^a\.b='; cat"#;
        let mut said = Vec::new();
        for is_gated in [false, true] {
            let mut planned = planned("bash", is_gated);
            planned
                .args(["-c", code, "zero", "one two", "*", ""])
                .env("A", "\n 'quoted' \"$B\" \\ ")
                .env("a.b", "odd");
            let child = planned.command().and_then(|mut command| command.spawn());
            said.push(output(&planned, child).await);
            let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
            planned.socket(ours.try_clone().expect("another").into(), theirs.into());
            let mut child = planned
                .command()
                .and_then(|mut command| command.spawn())
                .expect("starts");
            planned.open(&mut child);
            ours.write_all(b"in\nput").expect("written");
            ours.shutdown(std::net::Shutdown::Write).expect("closed");
            said.push(output(&planned, Ok(child)).await);
            drop(planned);
            let end = ours.read(&mut [0; 8]);
            assert!(matches!(end, Ok(0)), "{is_gated} {end:?} {said:?}");
        }
        assert!(said[0].contains("zero,one two,*,,\n 'quoted'"), "{said:?}");
        assert!(said[0].ends_with("a.b=odd\n"), "{said:?}");
        assert!(said[1].ends_with("a.b=odd\nin\nput"), "{said:?}");
        assert_eq!(said[..2], said[2..]);
    }

    #[tokio::test]
    async fn a_program_that_can_not_be_started_is_told_of_as_without_a_gate() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("temporary");
        let file = |name: &str, mode: u32| {
            let path = folder.path().join(name);
            std::fs::write(&path, "#!/bin/sh\nexit 0\n").expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("set");
            path.display().to_string()
        };
        let (plain, runs) = (file("plain", 0o644), file("runs", 0o755));
        let below = format!("{plain}/f");
        let directory = folder.path().display().to_string();
        for program in [
            "/no/such", "no-such", &plain, &below, &directory, &runs, "sh",
        ] {
            let start = |is_gated| {
                let planned = planned(program, is_gated);
                let command = planned.command();
                let started = command.and_then(|mut command| command.spawn());
                started.map(drop).map_err(|error| error.kind())
            };
            assert_eq!(start(true), start(false), "{program}");
        }
    }
}
