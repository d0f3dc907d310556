//! The Java runtime: one JVM a host, `hosts/Host.java` in front of the user's jar.
//!
//! No class file is part of this program: the host is compiled by the user's own JDK at its first use
//! and kept in the cache. Jars written for Pulsar's functions API may leave that API out; then it
//! is taken from `GEMINGA_JAVA_LIB`, or by Maven, once. The client comes with it: the API's interfaces name
//! its types, and `Schema` does not load without it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use geminga_stdx::Tasks;
use tokio::process::Command;

use super::process::{Processes, Scope};
use super::python::on_socket;
use super::toolchain::{cache, deployment, fnv, once, run, write};
use super::warm::{self, Launch, Launched};
use super::{BoxFuture, Broken, Host, HostSpec, Runtime, Services};

const HOST: &str = include_str!("../hosts/Host.java");
/// The entry of a jar that brings the functions API itself.
const API_CLASS: &[u8] = b"org/apache/pulsar/functions/api/Context.class";
/// What Maven is asked for.
const API: &[&str] = &["pulsar-functions-api", "pulsar-client-original"];
/// Their version.
const API_VERSION: &str = "4.0.8";

/// Starts Java functions.
#[derive(Debug, Clone)]
pub struct Java {
    processes: Processes,
    tasks: Tasks,
    preparing: Arc<tokio::sync::Mutex<()>>,
}

impl Java {
    #[must_use]
    pub fn new(processes: Processes, tasks: Tasks) -> Self {
        Self {
            processes,
            tasks,
            preparing: Arc::default(),
        }
    }

    async fn prepare(&self, jar: &Path) -> Result<Machines, Broken> {
        let _one = self.preparing.lock().await;
        let bytes = std::fs::read(jar)
            .map_err(|_| deployment(format!("`{}` does not exist", jar.display()), ""))?;
        let jar = std::fs::canonicalize(jar).unwrap_or_else(|_| jar.to_path_buf());
        let mut class_path = vec![host().await?, jar];
        if !contains(&bytes, API_CLASS) {
            class_path.extend(api().await?);
        }
        let class_path = std::env::join_paths(class_path)
            .map_err(|error| deployment(format!("the class path: {error}"), ""))?;
        Ok(Machines {
            java: tool("java"),
            class_path: class_path.to_string_lossy().into_owned(),
        })
    }
}

impl Runtime for Java {
    fn name(&self) -> &'static str {
        "java"
    }

    fn start(
        &self,
        spec: Arc<HostSpec>,
        services: Arc<dyn Services>,
    ) -> BoxFuture<'_, Result<Box<dyn Host>, Broken>> {
        Box::pin(async move {
            let machines = Arc::new(self.prepare(&spec.code.path).await?);
            let scope = self
                .processes
                .scope(&spec)
                .map_err(super::private_directory)?;
            warm::start(machines, scope, spec, services, &self.tasks).await
        })
    }
}

/// A program of the JDK: that of `JAVA_HOME`, or the one on the path.
pub(super) fn tool(name: &str) -> PathBuf {
    std::env::var_os("JAVA_HOME")
        .map(|home| PathBuf::from(home).join("bin").join(name))
        .filter(|path| path.exists())
        .unwrap_or_else(|| PathBuf::from(name))
}

/// The folder of the host's classes.
async fn host() -> Result<PathBuf, Broken> {
    let place = cache().join(format!("java-host-{:032x}", fnv([HOST.as_bytes()])));
    once(&place, |into| async move {
        write(&into, &[("Host.java", HOST)])?;
        let mut command = Command::new(tool("javac"));
        command
            .args([
                "-proc:none",
                "-nowarn",
                "--release",
                "11",
                "-encoding",
                "UTF-8",
                "-d",
            ])
            .arg(&into)
            .arg(into.join("Host.java"));
        run(
            &mut command,
            "install a JDK of version 11 or later, or set `JAVA_HOME`; it compiles the host once",
        )
        .await
    })
    .await?;
    Ok(place)
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes
        .windows(wanted.len())
        .any(|window| window[0] == wanted[0] && window == wanted)
}

/// The jars of the functions API; none when nobody has them and the jar may do without.
pub(super) async fn api() -> Result<Vec<PathBuf>, Broken> {
    if let Some(folder) = std::env::var_os("GEMINGA_JAVA_LIB") {
        return jars(Path::new(&folder));
    }
    let place = cache().join(format!("java-api-{API_VERSION}"));
    let fetched = once(&place, |into| async move {
        let dependencies: String = API
            .iter()
            .map(|name| {
                format!(
                    "<dependency><groupId>org.apache.pulsar</groupId><artifactId>{name}</artifactId>\
                     <version>{API_VERSION}</version></dependency>"
                )
            })
            .collect();
        let pom = format!(
            "<project xmlns=\"http://maven.apache.org/POM/4.0.0\"><modelVersion>4.0.0</modelVersion>\
             <groupId>geminga</groupId><artifactId>api</artifactId><version>1</version>\
             <dependencies>{dependencies}</dependencies></project>"
        );
        write(&into, &[("pom.xml", &pom)])?;
        let maven = |offline: bool| {
            let mut command = Command::new("mvn");
            command
                .args(["-q", "-B", "dependency:copy-dependencies"])
                .arg("-DincludeScope=runtime")
                .arg(format!("-DoutputDirectory={}", into.display()))
                .args(offline.then_some("-o"))
                .current_dir(&into);
            command
        };
        let missing = "install Maven, which fetches Pulsar's functions API, or name a folder with it in \
                       `GEMINGA_JAVA_LIB`";
        // What is on this machine already needs no network.
        if run(&mut maven(true), missing).await.is_ok() {
            return Ok(());
        }
        run(&mut maven(false), missing).await
    })
    .await;
    match fetched {
        Ok(()) => jars(&place),
        Err(broken) => {
            // A plain java.util.function.Function does not need it; one that does says so at its start.
            tracing::warn!(%broken, "Pulsar's functions API is not there");
            Ok(Vec::new())
        }
    }
}

fn jars(folder: &Path) -> Result<Vec<PathBuf>, Broken> {
    let entries = std::fs::read_dir(folder)
        .map_err(|error| deployment(format!("`{}`: {error}", folder.display()), ""))?;
    let mut jars: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "jar"))
        .collect();
    jars.sort();
    Ok(jars)
}

struct Machines {
    java: PathBuf,
    class_path: String,
}

impl Launch for Machines {
    fn launch(&self, scope: &Scope, spec: &HostSpec, _next: u64) -> Result<Launched, Broken> {
        let mut command = scope.command(&self.java, spec);
        command.args([
            "-Xshare:auto",
            "-XX:+UseSerialGC",
            "-XX:-UsePerfData",
            "-Dfile.encoding=UTF-8",
        ]);
        if let Some(bytes) = spec.heap_bytes {
            command.arg(format!("-Xmx{bytes}"));
        }
        command
            .args(&spec.runtime_flags)
            .arg("-cp")
            .arg(&self.class_path)
            .arg("geminga.Host");
        on_socket(command, &self.java, scope, spec)
    }

    fn window(&self) -> usize {
        2048
    }

    fn frame(&self) -> usize {
        256
    }
}
