//! Any executable or script: a process a message (`spawn`), a warm process (`stream`), or a process
//! a batch (`batch`). The contract with the program is in `docs/guide/bash.md`.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use geminga_stdx::Tasks;

use super::body::{Launch, Speech};
use super::options::{Framing, Mode};
use super::process::{Planned, Processes, Scope};
use super::warm;
use super::wire::plain::Plain;
use super::{BoxFuture, Broken, Host, HostSpec, Runtime, Services};

mod batch;
mod lanes;
mod message;
mod run;
mod spawn;

/// Starts executables.
#[derive(Debug, Clone)]
pub struct Exec {
    processes: Processes,
    tasks: Tasks,
}

impl Exec {
    #[must_use]
    pub fn new(processes: Processes, tasks: Tasks) -> Self {
        Self { processes, tasks }
    }
}

impl Runtime for Exec {
    fn name(&self) -> &'static str {
        "exec"
    }

    fn start(
        &self,
        spec: Arc<HostSpec>,
        services: Arc<dyn Services>,
    ) -> BoxFuture<'_, Result<Box<dyn Host>, Broken>> {
        Box::pin(async move {
            let program = Program::of(&spec.code.path)?;
            let scope = self.processes.scope(&spec)?;
            match spec.options.mode.unwrap_or_default() {
                Mode::Spawn => spawn::start(program, scope, spec, services, &self.tasks),
                Mode::Batch => batch::start(program, scope, spec, services, &self.tasks),
                Mode::Stream => {
                    let tool = Arc::new(Tool { program });
                    warm::start(tool, scope, spec, services, &self.tasks).await
                }
            }
        })
    }
}

/// What is run: the file itself, or an interpreter with the file as its argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    pub(crate) arguments: Vec<String>,
    /// Bash reads `BASH_ENV`, so it needs no shell in front to open descriptors 3 and 4.
    pub(crate) is_bash: bool,
}

impl Program {
    /// Looks at the file: its execute bit, its first line, its name.
    fn of(path: &Path) -> Result<Self, Broken> {
        use std::os::unix::fs::PermissionsExt;
        let shown = path.display();
        let wrong = |reason: String| Broken::Deployment {
            reason,
            stderr_tail: String::new(),
        };
        let metadata =
            std::fs::metadata(path).map_err(|_| wrong(format!("`{shown}` does not exist")))?;
        if metadata.is_dir() {
            return Err(wrong(format!("`{shown}` is a directory")));
        }
        let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        let executable = metadata.permissions().mode() & 0o111 != 0;
        let shebang = shebang(&path);
        let is_script = path.extension().is_some_and(|e| e == "sh" || e == "bash");
        let text = path.to_string_lossy().into_owned();
        Ok(match shebang {
            Some(words) => {
                let is_bash = words
                    .iter()
                    .any(|word| word.rsplit('/').next() == Some("bash"));
                Self {
                    path: PathBuf::from(&words[0]),
                    arguments: [&words[1..], &[text]].concat(),
                    is_bash,
                }
            }
            None if executable && !is_script => Self {
                path,
                arguments: Vec::new(),
                is_bash: false,
            },
            None if is_script => Self {
                path: "/bin/bash".into(),
                arguments: vec![text],
                is_bash: true,
            },
            None => {
                return Err(wrong(format!(
                    "`{shown}` is not executable: run `chmod +x {shown}`"
                )));
            }
        })
    }

    /// With descriptors 3 and 4 open on `extra` when it is given.
    pub(crate) fn plan(&self, scope: &Scope, spec: &HostSpec, extra: Option<&Extra>) -> Planned {
        let mut planned = scope.plan(&self.path, spec);
        if let Some(extra) = extra {
            if self.is_bash {
                planned.env("BASH_ENV", &extra.prelude);
            } else {
                planned.prelude(&extra.prelude);
            }
            planned
                .env("GMG_FD3", &extra.outputs.path)
                .env("GMG_FD4", &extra.control.path);
        }
        planned
            .args(&self.arguments)
            .args(&spec.options.args)
            .pipe();
        planned
    }
}

/// The files behind descriptors 3 (more outputs) and 4 (control) of a spawned process.
///
/// They lie where the function may write, so their names may come to lead anywhere: the worker, which no wall
/// holds, reads and empties by its own handles only, and makes files only where there is nothing yet.
#[derive(Debug)]
pub(crate) struct Extra {
    prelude: PathBuf,
    outputs: Written,
    control: Written,
}

const PRELUDE: &str = "exec 3>>\"$GMG_FD3\" 4>>\"$GMG_FD4\"\nunset BASH_ENV GMG_FD3 GMG_FD4\n";

impl Extra {
    fn new(scope: &Scope, lane: usize) -> io::Result<Self> {
        Ok(Self {
            prelude: scope.file("prelude.sh", PRELUDE)?,
            outputs: Written::make(scope, &format!("outputs-{lane}"))?,
            control: Written::make(scope, &format!("control-{lane}"))?,
        })
    }

    /// Puts back what the function took away: it may clear its directory.
    fn restore(&mut self, scope: &Scope) -> io::Result<()> {
        scope.file("prelude.sh", PRELUDE)?;
        self.outputs.restore(scope)?;
        self.control.restore(scope)
    }

    /// What was written, up to `max` bytes of each; the files are empty afterwards.
    fn take(&mut self, max: u64) -> Result<(Vec<u8>, Vec<u8>), String> {
        let (outputs, control) = (self.outputs.take(max), self.control.take(max));
        let failed = |error: io::Error| format!("descriptor 3 or 4 can not be read: {error}");
        let fits = |text: Option<Vec<u8>>| {
            text.ok_or_else(|| format!("more than {max} bytes on descriptor 3 or 4"))
        };
        Ok((
            fits(outputs.map_err(failed)?)?,
            fits(control.map_err(failed)?)?,
        ))
    }
}

/// A file that a function writes and the worker reads.
#[derive(Debug)]
struct Written {
    path: PathBuf,
    file: File,
}

impl Written {
    fn make(scope: &Scope, name: &str) -> io::Result<Self> {
        let path = scope.path(name);
        let file = scope.make(&path)?;
        Ok(Self { path, file })
    }

    /// Makes it anew when its name leads elsewhere by now.
    fn restore(&mut self, scope: &Scope) -> io::Result<()> {
        use std::os::unix::fs::MetadataExt;
        let own = self.file.metadata()?;
        // Of a link this is the link itself, and removing does not follow one either.
        let removed = match std::fs::symlink_metadata(&self.path) {
            Ok(there) if (there.dev(), there.ino()) == (own.dev(), own.ino()) => return Ok(()),
            Ok(there) if there.is_dir() => std::fs::remove_dir_all(&self.path),
            Ok(_) => std::fs::remove_file(&self.path),
            Err(_) => Ok(()),
        };
        removed?;
        self.file = scope.make(&self.path)?;
        Ok(())
    }

    /// What it holds, or `None` when that is more than `max` bytes. It is empty afterwards.
    fn take(&mut self, max: u64) -> io::Result<Option<Vec<u8>>> {
        if self.file.metadata()?.len() == 0 {
            return Ok(Some(Vec::new()));
        }
        let mut text = Vec::new();
        self.file.rewind()?;
        (&self.file).take(max + 1).read_to_end(&mut text)?;
        self.file.set_len(0)?;
        Ok((text.len() as u64 <= max).then_some(text))
    }
}

/// The words of a script's first line.
pub(crate) fn shebang(path: &Path) -> Option<Vec<String>> {
    let mut first = [0_u8; 256];
    let count = File::open(path).ok()?.read(&mut first).ok()?;
    let line = first[..count]
        .strip_prefix(b"#!")?
        .split(|&b| b == b'\n')
        .next()?;
    let text = std::str::from_utf8(line).ok()?.trim();
    // The kernel passes everything after the interpreter as one argument.
    let (program, rest) = text.split_once([' ', '\t']).unwrap_or((text, ""));
    let mut words = vec![program.to_owned()];
    if !rest.trim().is_empty() {
        words.push(rest.trim().to_owned());
    }
    (!program.is_empty()).then_some(words)
}

/// A warm process that reads and writes records, or speaks the host protocol itself.
struct Tool {
    program: Program,
}

impl Launch for Tool {
    fn plan(&self, scope: &Scope, spec: &HostSpec) -> Result<(Planned, Speech), Broken> {
        let speech = match spec.options.framing {
            Framing::Host => Speech::Socket,
            _ => Speech::Pipes {
                codec: Box::new(Plain::new(&spec.options)),
                patient: false,
            },
        };
        Ok((self.program.plan(scope, spec, None), speech))
    }

    fn window(&self) -> usize {
        1024
    }

    fn frame(&self) -> usize {
        128
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_the_name_and_the_bit_choose_the_program() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().expect("temporary");
        let file = |name: &str, text: &str, mode: u32| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("mode");
            Program::of(&path)
        };
        let bash = file("a.sh", "echo", 0o644).expect("by its name");
        assert_eq!(
            (bash.path, bash.is_bash),
            (PathBuf::from("/bin/bash"), true)
        );
        let env = file("b", "#!/usr/bin/env bash\n", 0o644).expect("by its first line");
        assert_eq!(
            (env.path.to_str(), &env.arguments[0][..], env.is_bash),
            (Some("/usr/bin/env"), "bash", true)
        );
        assert!(!file("c", "\x7fELF", 0o755).expect("executable").is_bash);
        assert!(
            matches!(file("d", "text", 0o644), Err(Broken::Deployment { reason, .. }) if reason.contains("chmod"))
        );
        assert!(matches!(
            Program::of(Path::new("/no/such")),
            Err(Broken::Deployment { .. })
        ));
    }
}
