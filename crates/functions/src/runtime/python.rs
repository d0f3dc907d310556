//! The warm Python runtime: one interpreter a host, `hosts/python_host.py` in front of the user's
//! module. It speaks the socket binding of the host protocol, on standard input; standard output
//! and standard error stay the function's own and become logs.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use geminga_stdx::Tasks;
use tokio::sync::OnceCell;

use super::process::{Processes, Scope, start_error};
use super::toolchain::{cache, content_key, deployment, once, run, sources, write};
use super::warm::{self, Launch, Launched};
use super::wire::packed::Packed;
use super::{BoxFuture, Broken, Host, HostSpec, Runtime, Services};

const HOST: &str = include_str!("../hosts/python_host.py");
const PACKAGE: &str = include_str!("../hosts/python_package.py");

/// Starts Python functions.
#[derive(Debug, Clone)]
pub struct Python {
    processes: Processes,
    tasks: Tasks,
    interpreter: Arc<OnceCell<PathBuf>>,
    /// One environment at a time: instances of a function want the same.
    preparing: Arc<tokio::sync::Mutex<()>>,
}

impl Python {
    #[must_use]
    pub fn new(processes: Processes, tasks: Tasks) -> Self {
        Self {
            processes,
            tasks,
            interpreter: Arc::new(OnceCell::new()),
            preparing: Arc::default(),
        }
    }

    /// The folders of a package, made ready once for the same package and interpreter; none for a plain
    /// module. A folder is used where it is, and only what its lock names is made.
    async fn folders(&self, code: &Path, interpreter: &Path) -> Result<Option<OsString>, Broken> {
        let is_archive = code
            .extension()
            .is_some_and(|ending| ending == "zip" || ending == "whl");
        if !is_archive && !code.is_dir() {
            return Ok(None);
        }
        let _one = self.preparing.lock().await;
        let shown = code.display().to_string();
        let mut parts = vec![PACKAGE.as_bytes().to_vec()];
        parts.push(interpreter.as_os_str().as_encoded_bytes().to_vec());
        if is_archive {
            let bytes = std::fs::read(code)
                .map_err(|_| deployment(format!("`{shown}` does not exist"), ""))?;
            parts.push(bytes);
        } else {
            parts.push(shown.clone().into_bytes());
            let wanted = ["requirements.lock", "requirements.txt"];
            for (name, text) in sources(code)? {
                let is_wanted = wanted.iter().any(|wanted| name.ends_with(wanted));
                if is_wanted || name.extension().is_some_and(|ending| ending == "whl") {
                    parts.push(name.as_os_str().as_encoded_bytes().to_vec());
                    parts.push(text);
                }
            }
        }
        let key = content_key(parts.iter().map(|part| &part[..]));
        let place = cache().join(format!("python-{key:032x}"));
        once(&place, |into| async move {
            write(&into, &[("package.py", PACKAGE)])?;
            let mut command = tokio::process::Command::new(interpreter);
            command.arg(into.join("package.py")).arg(code).arg(&into);
            run(
                &mut command,
                "install Python 3, or name it in `GEMINGA_PYTHON`",
            )
            .await
        })
        .await?;
        let paths = std::fs::read_to_string(place.join("paths"))
            .map_err(|error| deployment(format!("`{}`: {error}", place.display()), ""))?;
        let paths = paths.lines().map(|path| place.join(path));
        let joined = std::env::join_paths(paths)
            .map_err(|error| deployment(format!("`{shown}`: {error}"), ""))?;
        Ok(Some(joined))
    }

    /// The real interpreter: a version manager's shim costs a tenth of a second at every start.
    async fn interpreter(&self) -> Result<PathBuf, Broken> {
        self.interpreter
            .get_or_try_init(|| async {
                let program = std::env::var_os("GEMINGA_PYTHON").unwrap_or("python3".into());
                let asked = tokio::process::Command::new(&program)
                    .args(["-c", "import sys; print(sys.executable)"])
                    .stdin(Stdio::null())
                    .output()
                    .await;
                match asked {
                    Ok(output) if output.status.success() => {
                        let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
                        Ok(PathBuf::from(path))
                    }
                    Ok(output) => Err(Broken::Start {
                        reason: format!("`{}` does not run", program.display()),
                        stderr_tail: String::from_utf8_lossy(&output.stderr).into_owned(),
                    }),
                    Err(_) => Err(Broken::Start {
                        reason: format!(
                            "`{}` is not on the path: install Python 3, or name it in `GEMINGA_PYTHON`",
                            program.display()
                        ),
                        stderr_tail: String::new(),
                    }),
                }
            })
            .await
            .cloned()
    }
}

impl Runtime for Python {
    fn name(&self) -> &'static str {
        "python"
    }

    fn start(
        &self,
        spec: Arc<HostSpec>,
        services: Arc<dyn Services>,
    ) -> BoxFuture<'_, Result<Box<dyn Host>, Broken>> {
        Box::pin(async move {
            let interpreter = self.interpreter().await?;
            let folders = self.folders(&spec.code.path, &interpreter).await?;
            let scope = self
                .processes
                .scope(&spec)
                .map_err(super::private_directory)?;
            let launch = Arc::new(Interpreters {
                interpreter,
                folders,
            });
            warm::start(launch, scope, spec, services, &self.tasks).await
        })
    }
}

struct Interpreters {
    interpreter: PathBuf,
    /// Where a package's modules are.
    folders: Option<OsString>,
}

impl Launch for Interpreters {
    fn launch(&self, scope: &Scope, spec: &HostSpec, _next: u64) -> Result<Launched, Broken> {
        let host = scope
            .file("python_host.py", HOST)
            .map_err(super::private_directory)?;
        let mut command = scope.command(&self.interpreter, spec);
        command.args(&spec.runtime_flags).arg(host);
        if let Some(folders) = &self.folders {
            command.env("GMG_PYTHON_PATH", folders);
        }
        on_socket(command, &self.interpreter, scope, spec)
    }

    fn window(&self) -> usize {
        2048
    }

    fn frame(&self) -> usize {
        256
    }
}

/// Starts `command` with a socket as its standard input.
pub(super) fn on_socket(
    mut command: tokio::process::Command,
    program: &std::path::Path,
    scope: &Scope,
    spec: &HostSpec,
) -> Result<Launched, Broken> {
    let failed = |error: std::io::Error| Broken::Start {
        reason: format!("no socket pair: {error}"),
        stderr_tail: String::new(),
    };
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(failed)?;
    ours.set_nonblocking(true).map_err(failed)?;
    let ours = tokio::net::UnixStream::from_std(ours).map_err(failed)?;
    command
        .env("GMG_HOST_BINDING", "socket")
        .env("GMG_HOST_FD", "0")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut process = scope
        .spawn(&mut command, &spec.options.limits)
        .map_err(|error| start_error(program, &error))?;
    let (Some(stdout), Some(stderr)) = (process.child.stdout.take(), process.child.stderr.take())
    else {
        return Err(super::no_pipes());
    };
    let (reader, writer) = ours.into_split();
    Ok(Launched {
        process: Box::new(process),
        reader: Box::new(reader),
        writer: Box::new(writer),
        logs: vec![Box::new(stdout), Box::new(stderr)],
        codec: Box::new(Packed::new(spec.options.max_output_bytes)),
    })
}
