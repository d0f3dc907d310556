//! The Go runtime: a program that was built with our SDK (`sdk/go`), or a source folder that is built here.
//!
//! The SDK has the module name and the interface of Pulsar's Go functions; a folder is built with a
//! `replace` line that puts it in that module's place. The folder itself is not written to: `go` gets
//! a copy of its `go.mod`. Programs speak the socket binding of the host protocol.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use geminga_stdx::Tasks;
use tokio::process::Command;

use super::body::{Launch, Speech};
use super::process::{Planned, Processes, Scope};
use super::toolchain::{cache, content_key, deployment, files, flat, once, run, sources, write};
use super::warm;
use super::{BoxFuture, Broken, Host, HostSpec, Runtime, Services};

/// The module that functions import.
const MODULE: &str = "github.com/apache/pulsar/pulsar-function-go";

/// The client, whose types are in the interface.
const CLIENT: &str = "github.com/apache/pulsar-client-go";

const SDK: &[(&str, &str)] = files![
    "../../../../sdk/go/":
    "go.mod",
    "go.sum",
    "internal/host/block.go",
    "internal/host/open_process.go",
    "internal/host/open_wasip1.go",
    "internal/host/wire.go",
    "logutil/log.go",
    "pf/context.go",
    "pf/errors.go",
    "pf/function.go",
    "pf/output.go",
    "pf/record.go",
    "pf/start.go",
    "wasip1/pulsar-client-go/go.mod",
    "wasip1/pulsar-client-go/pulsar/pulsar.go",
];

/// Starts Go functions.
#[derive(Debug, Clone)]
pub struct Go {
    processes: Processes,
    tasks: Tasks,
}

impl Go {
    #[must_use]
    pub fn new(processes: Processes, tasks: Tasks) -> Self {
        Self { processes, tasks }
    }
}

impl Runtime for Go {
    fn name(&self) -> &'static str {
        "go"
    }

    fn start(
        &self,
        spec: Arc<HostSpec>,
        services: Arc<dyn Services>,
    ) -> BoxFuture<'_, Result<Box<dyn Host>, Broken>> {
        Box::pin(async move {
            let program = if is_source(&spec.code.path) {
                build(&spec.code.path).await?
            } else {
                executable(&spec.code.path)?
            };
            let scope = self.processes.scope(&spec)?;
            warm::start(
                Arc::new(Programs { program }),
                scope,
                spec,
                services,
                &self.tasks,
            )
            .await
        })
    }
}

/// Whether code has to be built: a folder, or a file of Go.
#[must_use]
pub fn is_source(path: &Path) -> bool {
    path.is_dir() || path.extension().is_some_and(|ending| ending == "go")
}

/// The file as a program, or what is wrong with it.
pub(crate) fn executable(path: &Path) -> Result<PathBuf, Broken> {
    use std::os::unix::fs::PermissionsExt;
    let shown = path.display();
    let Ok(about) = std::fs::metadata(path) else {
        return Err(deployment(format!("`{shown}` does not exist"), ""));
    };
    if about.permissions().mode() & 0o111 == 0 {
        let reason = format!("`{shown}` is not executable: run `chmod +x {shown}`");
        return Err(deployment(reason, ""));
    }
    Ok(std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf()))
}

/// What a program is built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    /// This machine.
    Machine,
    /// A WASI command (`GOOS=wasip1 GOARCH=wasm`).
    Wasm,
}

/// Builds a folder, or one file, and gives the program; the same sources are built once.
///
/// # Errors
/// What the compiler said, or why there is none.
pub async fn build(source: &Path) -> Result<PathBuf, Broken> {
    build_for(source, Target::Machine).await
}

/// The same as a WASI command for the WASM runtime. The types of Pulsar's client are our own there: the client
/// itself does not build for WASI.
///
/// # Errors
/// What the compiler said, or why there is none.
pub async fn build_wasm(source: &Path) -> Result<PathBuf, Broken> {
    build_for(source, Target::Wasm).await
}

/// Tells changed sources from unchanged, without building them; none when they can not be read.
#[must_use]
pub fn digest(source: &Path) -> Option<String> {
    let files = read(source).ok()?;
    Some(format!("{:032x}", content_key(flat(&files))))
}

fn read(source: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>, Broken> {
    if source.is_dir() {
        return sources(source);
    }
    let name = source.file_name().map(PathBuf::from).unwrap_or_default();
    let text = std::fs::read(source)
        .map_err(|_| deployment(format!("`{}` does not exist", source.display()), ""))?;
    Ok(vec![(name, text)])
}

async fn build_for(source: &Path, target: Target) -> Result<PathBuf, Broken> {
    let files = read(source)?;
    if !files
        .iter()
        .any(|(name, _)| name.extension().is_some_and(|e| e == "go"))
    {
        let reason = format!("`{}` holds no Go source", source.display());
        return Err(deployment(reason, ""));
    }
    let sdk_key = content_key(SDK.iter().map(|(_, text)| text.as_bytes()));
    let sdk = cache().join(format!("go-sdk-{sdk_key:032x}"));
    once(&sdk, |into| async move { write(&into, SDK) }).await?;
    // Relative `replace` lines of the function mean something by where it lies.
    let is_relative = |(name, text): &(PathBuf, Vec<u8>)| {
        name == Path::new("go.mod") && String::from_utf8_lossy(text).contains("=> .")
    };
    let where_from = match files.iter().any(is_relative) {
        true => source.display().to_string(),
        false => String::new(),
    };
    let key = content_key(flat(&files).chain([where_from.as_bytes(), &sdk_key.to_le_bytes()[..]]));
    let kind = match target {
        Target::Machine => "go",
        Target::Wasm => "go-wasm",
    };
    let place = cache().join(format!("{kind}-{key:032x}"));
    once(&place, |into| async move {
        // Most functions use the client's types alone: without the client, the program is an eighth in size,
        // starts four times as fast, and nothing has to be downloaded for it.
        let light = compile(source, &files, &sdk, target, Client::Types, &into).await;
        let names_client =
            |(_, text): &(PathBuf, Vec<u8>)| String::from_utf8_lossy(text).contains(CLIENT);
        match light {
            Err(_) if target == Target::Machine && files.iter().any(names_client) => {
                compile(source, &files, &sdk, target, Client::Whole, &into).await
            }
            built => built,
        }
    })
    .await?;
    Ok(place.join(target.file()))
}

impl Target {
    const fn file(self) -> &'static str {
        match self {
            Self::Machine => "function",
            Self::Wasm => "function.wasm",
        }
    }
}

/// What stands for Pulsar's client in a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Client {
    /// The types that the interface of functions names.
    Types,
    /// The client itself, for code that connects by its own.
    Whole,
}

async fn compile(
    source: &Path,
    files: &[(PathBuf, Vec<u8>)],
    sdk: &Path,
    target: Target,
    client: Client,
    into: &Path,
) -> Result<(), Broken> {
    let failed = |error: std::io::Error| deployment(format!("`{}`: {error}", into.display()), "");
    let text_of = |wanted: &str| {
        let file = files.iter().find(|(name, _)| name == Path::new(wanted));
        file.map(|(_, text)| String::from_utf8_lossy(text).into_owned())
    };
    let own = text_of("go.mod").filter(|_| source.is_dir());
    let mut sums = text_of("go.sum").unwrap_or_default();
    for (name, text) in SDK {
        if *name == "go.sum" {
            sums.push_str(text);
        }
    }
    let mut command = Command::new("go");
    command.args(["build", "-mod=mod", "-trimpath", "-ldflags=-s -w"]);
    let folder = match &own {
        Some(text) => {
            std::fs::write(into.join("build.mod"), with_sdk(text, sdk, client)).map_err(failed)?;
            std::fs::write(into.join("build.sum"), &sums).map_err(failed)?;
            command.arg("-modfile").arg(into.join("build.mod"));
            source.to_path_buf()
        }
        None => {
            let folder = into.join("source");
            std::fs::create_dir_all(&folder).map_err(failed)?;
            for (name, text) in files {
                let path = folder.join(name);
                if let Some(parent) = path.parent() {
                    std::fs::create_dir_all(parent).map_err(failed)?;
                }
                std::fs::write(path, text).map_err(failed)?;
            }
            let text = "module function\n\ngo 1.24.0\n";
            std::fs::write(folder.join("go.mod"), with_sdk(text, sdk, client)).map_err(failed)?;
            std::fs::write(folder.join("go.sum"), &sums).map_err(failed)?;
            folder
        }
    };
    command
        .arg("-o")
        .arg(into.join(target.file()))
        .arg(".")
        .current_dir(folder)
        .env("CGO_ENABLED", "0")
        .env("GOWORK", "off");
    if target == Target::Wasm {
        command.env("GOOS", "wasip1").env("GOARCH", "wasm");
    }
    run(&mut command, "install Go, or give a program that is built").await
}

/// A `go.mod` in which our SDK stands for the module that functions import.
fn with_sdk(text: &str, sdk: &Path, client: Client) -> String {
    let mut text = text.trim_end().to_owned();
    let mentions = |line: &str, word: &str| line.contains(word) && line.contains(MODULE);
    if !text
        .lines()
        .any(|line| !line.contains("=>") && line.contains(MODULE))
    {
        text.push_str(&format!("\n\nrequire {MODULE} v0.0.0"));
    }
    // Whoever has a line of his own wants it.
    if !text.lines().any(|line| mentions(line, "=>")) {
        text.push_str(&format!("\n\nreplace {MODULE} => {}", sdk.display()));
    }
    if client == Client::Types && !text.lines().any(|l| l.contains(CLIENT) && l.contains("=>")) {
        let types = sdk.join("wasip1/pulsar-client-go");
        text.push_str(&format!("\n\nreplace {CLIENT} => {}", types.display()));
    }
    text + "\n"
}

struct Programs {
    program: PathBuf,
}

impl Launch for Programs {
    fn plan(&self, scope: &Scope, spec: &HostSpec) -> Result<(Planned, Speech), Broken> {
        let mut planned = scope.plan(&self.program, spec);
        planned.args(&spec.runtime_flags).args(&spec.options.args);
        if let Some(bytes) = spec.options.limits.data_bytes {
            // The collector works harder before the kernel says no.
            planned.env("GOMEMLIMIT", (bytes / 10 * 9).to_string());
        }
        Ok((planned, Speech::Socket))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sdk_takes_the_place_of_the_module() {
        let sdk = Path::new("/sdk");
        let replace = format!("replace {MODULE} => /sdk");
        for (given, requires) in [
            ("module f\n".to_owned(), true),
            (format!("module f\n\nrequire {MODULE} v0.0.0-2021\n"), false),
            (
                format!("module f\nrequire (\n\t{MODULE} v1.2.3\n)\n"),
                false,
            ),
        ] {
            let got = with_sdk(&given, sdk, Client::Whole);
            assert!(got.ends_with(&format!("{replace}\n")), "{got}");
            assert_eq!(
                got.contains(&format!("require {MODULE} v0.0.0\n")),
                requires,
                "{got}"
            );
        }
        let own = format!("module f\nrequire {MODULE} v0.0.0\nreplace {MODULE} => ../mine\n");
        assert_eq!(with_sdk(&own, sdk, Client::Whole), own);
        let light = with_sdk(&own, sdk, Client::Types);
        let types = format!("replace {CLIENT} => /sdk/wasip1/pulsar-client-go\n");
        assert!(light.ends_with(&types), "{light}");
        let whole = format!("{own}replace {CLIENT} => ../client\n");
        assert_eq!(with_sdk(&whole, sdk, Client::Types), whole);
    }
}
