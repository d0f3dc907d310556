//! The warm Python runtime: one interpreter a host, `hosts/python_host.py` in front of the user's
//! module. It speaks the socket binding of the host protocol, on standard input; standard output
//! and standard error stay the function's own and become logs.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use geminga_stdx::Tasks;
use tokio::sync::OnceCell;

use super::body::{Launch, Speech};
use super::process::{Planned, Processes, Scope};
use super::toolchain::{cache, content_key, deployment, once, run, write};
use super::warm;
use super::{BoxFuture, Broken, Host, HostSpec, Runtime, Services};

const HOST: &str = include_str!("../hosts/python_host.py");
const PACKAGE: &str = include_str!("../hosts/python_package.py");

/// Starts Python functions.
#[derive(Debug, Clone)]
pub struct Python {
    processes: Processes,
    tasks: Tasks,
    interpreter: Arc<OnceCell<PathBuf>>,
}

impl Python {
    #[must_use]
    pub fn new(processes: Processes, tasks: Tasks) -> Self {
        Self {
            processes,
            tasks,
            interpreter: Arc::new(OnceCell::new()),
        }
    }

    /// The folders of a package, made ready once for the same package and interpreter; none for a plain
    /// module. A folder is used where it is, and only what its lock names is made.
    async fn folders(code: &Path, interpreter: &Path) -> Result<Option<OsString>, Broken> {
        let is_archive = code
            .extension()
            .is_some_and(|ending| ending == "zip" || ending == "whl");
        if !is_archive && !code.is_dir() {
            return Ok(None);
        }
        let shown = code.display().to_string();
        let path = code.to_path_buf();
        // A package may be large, and a folder on a slow disk.
        let read = tokio::task::spawn_blocking(move || match is_archive {
            true => std::fs::read(path).map(|bytes| vec![bytes]),
            false => parts_of_folder(&path),
        });
        let failed = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound => deployment(format!("`{shown}` does not exist"), ""),
            _ => deployment(format!("`{shown}`: {error}"), ""),
        };
        let parts = read.await.map_err(|error| failed(error.into()))?;
        let parts = parts.map_err(failed)?;
        let first = [
            PACKAGE.as_bytes(),
            interpreter.as_os_str().as_encoded_bytes(),
        ];
        let key = content_key(first.into_iter().chain(parts.iter().map(|part| &part[..])));
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

/// What `package.py` makes of a folder depends on these: where it is, which folders of modules it has, and
/// what is to be installed. Its other files are used where they are, and are not looked at.
fn parts_of_folder(folder: &Path) -> std::io::Result<Vec<Vec<u8>>> {
    let mut parts = vec![folder.as_os_str().as_encoded_bytes().to_vec()];
    let mut roots = vec![folder.to_path_buf()];
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            roots.push(path);
        }
    }
    roots.sort();
    for root in roots {
        let mut note = |path: &Path, what: Vec<u8>| {
            parts.push(path.as_os_str().as_encoded_bytes().to_vec());
            parts.push(what);
        };
        for name in ["requirements.lock", "requirements.txt"] {
            let path = root.join(name);
            if path.is_file() {
                note(&path, std::fs::read(&path)?);
            }
        }
        let (modules, wheels) = (root.join("src"), root.join("deps"));
        if modules.is_dir() {
            note(&modules, Vec::new());
        }
        if !wheels.is_dir() {
            continue;
        }
        note(&wheels, Vec::new());
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&wheels)? {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == "whl") {
                found.push(path);
            }
        }
        found.sort();
        for path in found {
            // Some are hundreds of megabytes: one that changes has another length or time.
            let about = std::fs::metadata(&path)?;
            let changed = about.modified()?.duration_since(std::time::UNIX_EPOCH);
            let changed = changed.unwrap_or_default().as_nanos();
            note(
                &path,
                [u128::from(about.len()).to_le_bytes(), changed.to_le_bytes()].concat(),
            );
        }
    }
    Ok(parts)
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
            let folders = Self::folders(&spec.code.path, &interpreter).await?;
            let scope = self.processes.scope(&spec)?;
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
    fn plan(&self, scope: &Scope, spec: &HostSpec) -> Result<(Planned, Speech), Broken> {
        let host = scope.file("python_host.py", HOST);
        let mut planned = scope.plan(&self.interpreter, spec);
        planned
            .args(&spec.runtime_flags)
            .arg(host.map_err(super::private_directory)?);
        if let Some(folders) = &self.folders {
            planned.env("GMG_PYTHON_PATH", folders);
        }
        Ok((planned, Speech::Socket))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_known_by_what_is_made_of_it_and_not_by_its_size() {
        let folder = tempfile::tempdir().expect("a directory");
        let at = |name: &str| folder.path().join(name);
        let key = || parts_of_folder(folder.path()).expect("read");
        std::fs::write(at("f.py"), "def process(value): return value").expect("written");
        let plain = key();
        // A model of a hundred gigabytes, as far as anybody looks.
        std::fs::create_dir(at("model")).expect("made");
        let model = std::fs::File::create(at("model/weights")).expect("made");
        model.set_len(100 << 30).expect("sparse");
        std::fs::write(at("f.py"), "def process(value): return value + 1").expect("written");
        assert_eq!(key(), plain);
        let mut seen = vec![plain];
        for make in [
            |at: PathBuf| std::fs::create_dir_all(at.join("src")),
            |at: PathBuf| std::fs::create_dir_all(at.join("model/src")),
            |at: PathBuf| std::fs::create_dir_all(at.join("deps")),
            |at: PathBuf| std::fs::write(at.join("deps/a.whl"), "a"),
            |at: PathBuf| std::fs::write(at.join("deps/a.whl"), "ab"),
            |at: PathBuf| std::fs::write(at.join("requirements.lock"), "a==1"),
            |at: PathBuf| std::fs::write(at.join("model/requirements.txt"), "a==1"),
        ] {
            make(folder.path().to_path_buf()).expect("made");
            let now = key();
            assert!(!seen.contains(&now), "{seen:?}");
            seen.push(now);
        }
    }
}
