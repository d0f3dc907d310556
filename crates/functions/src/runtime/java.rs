//! The Java runtime: one JVM a host, `hosts/java` in front of the user's jar.
//!
//! No class file is part of this program: the host is compiled by the user's own JDK at its first use
//! and kept in the cache. Jars written for Pulsar's functions API may leave that API out; then it
//! is taken from `GEMINGA_JAVA_LIB`, or by Maven, once. The client comes with it: the API's interfaces name
//! its types, and `Schema` does not load without it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use geminga_stdx::Tasks;
use tokio::process::Command;
use tokio::sync::OnceCell;

use super::body::{Launch, Speech};
use super::process::{Planned, Processes, Scope};
use super::toolchain::{
    cache, content_key, deployment, file_key, files, flat, once, run, sources, write,
};
use super::warm;
use super::{BoxFuture, Broken, Host, HostSpec, Runtime, Services};
use crate::archive;

const HOST: &[(&str, &str)] = files![
    "../hosts/java/":
    "Blocks.java",
    "Calls.java",
    "Host.java",
    "Json.java",
    "Schemas.java",
    "TopicSchemas.java",
    "Types.java",
    "Unpack.java",
    "Values.java",
    "Wire.java",
    "Worker.java",
];
/// The entry of a jar that brings the functions API itself.
const API_CLASS: &str = "org/apache/pulsar/functions/api/Context.class";
/// What a NAR may unpack to, folders counted as files: a bound against archives that are made to fill the disk.
const FILES_MAX: u64 = 50_000;
const BYTES_MAX: u64 = 1 << 30;
/// What Maven is asked for: group, artifact, version.
const API: &[(&str, &str, &str)] = &[
    ("org.apache.pulsar", "pulsar-functions-api", "4.0.8"),
    ("org.apache.pulsar", "pulsar-client-original", "4.0.8"),
    // The client asks for several versions of it, and Maven takes one that is too old for its schemas.
    ("com.fasterxml.jackson.core", "jackson-core", "2.17.2"),
    // What a class logs by a logger of its own is to be seen.
    ("org.slf4j", "slf4j-simple", "2.0.13"),
];
/// How that writes: a line that begins with its level in brackets, as other lines on standard error are read; of
/// Pulsar's client only what is wrong.
const LOGGING: &[&str] = &[
    "-Dorg.slf4j.simpleLogger.showThreadName=false",
    "-Dorg.slf4j.simpleLogger.levelInBrackets=true",
    "-Dorg.slf4j.simpleLogger.log.org.apache.pulsar.client=warn",
];

/// Starts Java functions.
#[derive(Debug, Clone)]
pub struct Java {
    processes: Processes,
    tasks: Tasks,
}

impl Java {
    #[must_use]
    pub fn new(processes: Processes, tasks: Tasks) -> Self {
        Self { processes, tasks }
    }

    async fn prepare(jar: &Path) -> Result<Machines, Broken> {
        let jar = std::fs::canonicalize(jar)
            .map_err(|_| deployment(format!("`{}` does not exist", jar.display()), ""))?;
        let mut class_path = vec![host().await?];
        let mut has_api = brings_api(&jar).await?;
        if jar.extension().is_some_and(|ending| ending == "nar") {
            let folder = unpacked(&jar, FILES_MAX, BYTES_MAX).await?;
            let bundled = folder.join("META-INF/bundled-dependencies");
            class_path.push(folder);
            if bundled.is_dir() {
                class_path.push(bundled.clone());
                for jar in jars(&bundled)? {
                    has_api = has_api || brings_api(&jar).await?;
                    class_path.push(jar);
                }
            }
        } else {
            class_path.push(jar);
        }
        if !has_api {
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
            let jar = if is_source(&spec.code.path) {
                build(&spec.code.path).await?
            } else {
                spec.code.path.clone()
            };
            let machines = Arc::new(Self::prepare(&jar).await?);
            let scope = self.processes.scope(&spec)?;
            warm::start(machines, scope, spec, services, &self.tasks).await
        })
    }
}

/// Whether code has to be compiled: a folder, or a file of Java.
#[must_use]
pub fn is_source(path: &Path) -> bool {
    path.is_dir() || path.extension().is_some_and(|ending| ending == "java")
}

/// Tells changed sources from unchanged, without compiling them; none when they can not be read.
#[must_use]
pub fn digest(source: &Path) -> Option<String> {
    let Read {
        files, resources, ..
    } = read(source).ok()?;
    let key = content_key(flat(&files).chain(flat(&resources)));
    Some(format!("{key:032x}"))
}

/// Sources and what goes into the jar with them.
struct Read {
    root: PathBuf,
    files: Vec<(PathBuf, Vec<u8>)>,
    resources: Vec<(PathBuf, Vec<u8>)>,
}

fn read(source: &Path) -> Result<Read, Broken> {
    let (root, files) = if source.is_dir() {
        let maven = source.join("src/main/java");
        let root = if maven.is_dir() {
            maven
        } else {
            source.to_path_buf()
        };
        let files = sources(&root)?;
        (root, files)
    } else {
        let name = source.file_name().map(PathBuf::from).unwrap_or_default();
        let text = std::fs::read(source)
            .map_err(|_| deployment(format!("`{}` does not exist", source.display()), ""))?;
        let root = source.parent().unwrap_or(Path::new("")).to_path_buf();
        (root, vec![(name, text)])
    };
    let resources = source.join("src/main/resources");
    let resources = if resources.is_dir() {
        sources(&resources)?
    } else {
        Vec::new()
    };
    Ok(Read {
        root,
        files,
        resources,
    })
}

/// Compiles a file, or a folder (`src/main/java` in it, as Maven has it, or the folder itself), against
/// Pulsar's functions API and gives the jar; the same sources are compiled once. Whoever needs more than
/// that API has a build of his own, and gives its jar.
///
/// # Errors
/// What the compiler said, or why there is none.
pub async fn build(source: &Path) -> Result<PathBuf, Broken> {
    let Read {
        root,
        files,
        resources,
    } = read(source)?;
    let of_java = |(name, _): &&(PathBuf, Vec<u8>)| name.extension().is_some_and(|e| e == "java");
    let names: Vec<PathBuf> = files
        .iter()
        .filter(of_java)
        .map(|(name, _)| root.join(name))
        .collect();
    if names.is_empty() {
        let reason = format!("`{}` holds no Java source", source.display());
        return Err(deployment(reason, ""));
    }
    let compiler = compiler().await;
    let parts = flat(&files).chain(flat(&resources));
    let key = content_key(parts.chain([compiler.as_bytes()]));
    let place = cache().join(format!("java-{key:032x}"));
    once(&place, |into| async move {
        let missing = "install a JDK of version 11 or later, or set `JAVA_HOME`";
        let classes = into.join("classes");
        let api = std::env::join_paths(api().await?)
            .map_err(|error| deployment(format!("the class path: {error}"), ""))?;
        let mut javac = Command::new(tool("javac"));
        javac
            .args(["-proc:none", "-encoding", "UTF-8", "-g", "-cp"])
            .arg(&api)
            .arg("-d")
            .arg(&classes)
            .args(&names);
        run(&mut javac, missing).await?;
        let kept = |error: std::io::Error| deployment(format!("`{}`: {error}", into.display()), "");
        for (name, bytes) in &resources {
            let path = classes.join(name);
            let parent = path.parent().unwrap_or(&classes);
            std::fs::create_dir_all(parent).map_err(kept)?;
            std::fs::write(&path, bytes).map_err(kept)?;
        }
        let mut jar = Command::new(tool("jar"));
        jar.arg("cf")
            .arg(into.join("function.jar"))
            .arg("-C")
            .arg(&classes)
            .arg(".");
        run(&mut jar, missing).await
    })
    .await?;
    Ok(place.join("function.jar"))
}

/// A program of the JDK: that of `JAVA_HOME`, or the one on the path.
pub fn tool(name: &str) -> PathBuf {
    std::env::var_os("JAVA_HOME")
        .map(|home| PathBuf::from(home).join("bin").join(name))
        .filter(|path| path.exists())
        .unwrap_or_else(|| PathBuf::from(name))
}

/// Which compiler there is: what it makes runs on its own JVM and later ones, and not on an earlier one.
async fn compiler() -> &'static str {
    static COMPILER: OnceCell<String> = OnceCell::const_new();
    let asked = COMPILER.get_or_init(|| async {
        let javac = tool("javac");
        let said = Command::new(&javac).arg("-version").output().await;
        // When there is none, the compiling says so.
        let said = said.map_or_else(|_| Vec::new(), |said| [said.stdout, said.stderr].concat());
        format!(
            "{}: {}",
            javac.display(),
            String::from_utf8_lossy(&said).trim()
        )
    });
    asked.await
}

/// The folder of the host's classes.
async fn host() -> Result<PathBuf, Broken> {
    let place = cache().join(format!(
        "java-host-{:032x}",
        content_key(HOST.iter().map(|(_, text)| text.as_bytes()))
    ));
    once(&place, |into| async move {
        write(&into, HOST)?;
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
            .args(HOST.iter().map(|(name, _)| into.join(name)));
        run(
            &mut command,
            "install a JDK of version 11 or later, or set `JAVA_HOME`; it compiles the host once",
        )
        .await
    })
    .await?;
    Ok(place)
}

/// Reads a jar on a thread of its own: it may be large.
async fn reading<T: Send + 'static>(
    jar: &Path,
    read: impl FnOnce(&Path) -> std::io::Result<T> + Send + 'static,
) -> Result<T, Broken> {
    let of_jar = jar.to_owned();
    let read = tokio::task::spawn_blocking(move || read(&of_jar)).await;
    read.unwrap_or_else(|error| Err(std::io::Error::other(error)))
        .map_err(|error| deployment(format!("`{}` can not be read: {error}", jar.display()), ""))
}

/// Whether Pulsar's functions API is in it. What is no archive has none: who runs it says what it is.
async fn brings_api(jar: &Path) -> Result<bool, Broken> {
    reading(jar, |jar| {
        let file = std::fs::File::open(jar)?;
        let length = file.metadata()?.len();
        Ok(archive::holds(&file, length, API_CLASS).unwrap_or(false))
    })
    .await
}

/// The folder of a NAR's files: the JDK does not read jars inside of one.
pub(super) async fn unpacked(nar: &Path, files: u64, bytes: u64) -> Result<PathBuf, Broken> {
    let key = reading(nar, file_key).await?;
    let place = cache().join(format!("java-nar-{key:032x}"));
    let host = host().await?;
    once(&place, |into| async move {
        let mut java = Command::new(tool("java"));
        java.args(["-Xshare:auto", "-XX:+UseSerialGC", "-cp"])
            .arg(host)
            .arg("geminga.Unpack")
            .args([nar, &into])
            .args([files.to_string(), bytes.to_string()]);
        run(&mut java, "install a JDK of version 11 or later").await
    })
    .await?;
    Ok(place)
}

/// The jars of the functions API; none when nobody has them and the jar may do without.
pub async fn api() -> Result<Vec<PathBuf>, Broken> {
    if let Some(folder) = std::env::var_os("GEMINGA_JAVA_LIB") {
        return jars(Path::new(&folder));
    }
    let dependencies: String = API
        .iter()
        .map(|(group, artifact, version)| {
            format!(
                "<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>\
                 <version>{version}</version></dependency>"
            )
        })
        .collect();
    let pom = format!(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\"><modelVersion>4.0.0</modelVersion>\
         <groupId>geminga</groupId><artifactId>api</artifactId><version>1</version>\
         <dependencies>{dependencies}</dependencies></project>"
    );
    let place = cache().join(format!("java-api-{:032x}", content_key([pom.as_bytes()])));
    let fetched = once(&place, |into| async move {
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
    fn plan(&self, scope: &Scope, spec: &HostSpec) -> Result<(Planned, Speech), Broken> {
        let mut planned = scope.plan(&self.java, spec);
        planned.args([
            "-Xshare:auto",
            "-XX:+UseSerialGC",
            "-XX:-UsePerfData",
            "-Dfile.encoding=UTF-8",
        ]);
        planned.args(LOGGING);
        if let Some(bytes) = spec.heap_bytes {
            planned.arg(format!("-Xmx{bytes}"));
        }
        planned
            .args(&spec.runtime_flags)
            .arg("-cp")
            .arg(&self.class_path)
            .arg("geminga.Host");
        Ok((planned, Speech::Socket))
    }
}
