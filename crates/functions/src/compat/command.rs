//! The command lines of Pulsar's instances, and the processes that come of them. What they say is made here of
//! the function's details by pure functions; the flags are Pulsar's own.

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::{Job, Reach};
use crate::plan::{Compat, Kind};
use crate::runtime::process::{Planned, Process, Scope, start_error};
use crate::runtime::toolchain::deployment;
use crate::runtime::{Broken, HostSpec, go, java};

/// Seconds between two health checks that the instance counts on; it ends itself after three without one. We
/// look far more often.
const HEALTH_INTERVAL: u32 = 30;
/// What Pulsar's worker says; the instances do not use it any more.
const BUFFERED_TUPLES: u32 = 1024;
/// The client's way of showing a token.
const TOKEN_PLUGIN: &str = "org.apache.pulsar.client.impl.auth.AuthenticationToken";
/// Where the operator has a Pulsar: its `instances/java-instance.jar` and `lib`.
const PULSAR_HOME: &str = "GEMINGA_PULSAR_HOME";
const JAVA_MAIN: &str = "org.apache.pulsar.functions.instance.JavaInstanceMain";
/// Secrets are in the environment: a command line can be read by others.
const SECRETS_PROVIDER: &str =
    "org.apache.pulsar.functions.secretsprovider.EnvironmentBasedSecretsProvider";
/// Without it log4j writes errors alone, to the log topic too.
const LOG4J: &str = r#"<Configuration status="WARN">
  <Appenders><Console name="out"><PatternLayout pattern="%p: [%c{1}] %m%n%xEx"/></Console></Appenders>
  <Loggers><Root level="info"><AppenderRef ref="out"/></Root></Loggers>
</Configuration>
"#;

/// A process that was started.
pub(super) struct Started {
    pub(super) process: Process,
    /// Its private directory.
    pub(super) scope: Scope,
    /// Where it answers `InstanceControl`.
    pub(super) port: u16,
}

/// What a start needs beside the function itself.
pub(super) struct Start<'a> {
    pub(super) service_url: &'a str,
    /// A file with the token.
    pub(super) token_file: Option<PathBuf>,
    pub(super) port: u16,
    pub(super) metrics_port: u16,
    pub(super) spec: &'a HostSpec,
}

pub(super) async fn start(job: &Job<'_>) -> Result<Started, Broken> {
    let failed = |error: std::io::Error| Broken::Start {
        reason: error.to_string(),
        stderr_tail: String::new(),
    };
    let Some(reach) = job.reach else {
        let reason =
            "this worker does not know where processes with a client of their own reach the broker";
        return Err(deployment(reason, ""));
    };
    let home = std::env::var_os(PULSAR_HOME).map(PathBuf::from);
    let mut spec = job.spec.clone();
    if job.compat.kind == Kind::Java {
        // Behind walls it still reads its own classes.
        spec.options.sandbox.read.extend(home.clone());
    }
    let spec = &spec;
    let scope = job.processes.scope(spec)?;
    let [port, metrics_port] = free_ports().map_err(failed)?;
    let begin = Start {
        service_url: &reach.service_url,
        token_file: token(reach, job.compat, &scope)?,
        port,
        metrics_port,
        spec,
    };
    let mut planned = match job.compat.kind {
        Kind::Go => {
            let mut planned = scope.plan(&go::executable(&spec.code.path)?, spec);
            let conf = go_conf(&job.compat.details, &begin);
            planned.arg("-instance-conf").arg(conf.to_string());
            if let Some(bytes) = spec.options.limits.data_bytes {
                // The collector works harder before the kernel says no.
                planned.env("GOMEMLIMIT", (bytes / 10 * 9).to_string());
            }
            planned
        }
        Kind::Java => {
            let mut planned = scope.plan(&java::tool("java"), spec);
            java_machine(&mut planned, home.as_deref(), spec, &scope)?;
            planned
                .arg(JAVA_MAIN)
                .args(java_flags(&job.compat.details, &begin))
                .envs(spec.secrets.iter());
            planned
        }
    };
    // The instances look for files beside their own folder.
    planned.folder(scope.path(""));
    let spawned = scope.spawn(&mut planned, &spec.options.limits).await;
    let process = spawned.map_err(|error| start_error(&planned.program, &error))?;
    Ok(Started {
        process,
        scope,
        port,
    })
}

/// Ports that nobody uses now. Somebody may take one before the process does: it ends then, and is started again.
fn free_ports() -> std::io::Result<[u16; 2]> {
    let one = TcpListener::bind(("127.0.0.1", 0))?;
    let other = TcpListener::bind(("127.0.0.1", 0))?;
    Ok([one.local_addr()?.port(), other.local_addr()?.port()])
}

/// The token in a private file: a command line can be read by others.
fn token(reach: &Reach, compat: &Compat, scope: &Scope) -> Result<Option<PathBuf>, Broken> {
    let Some(token) = &reach.token else {
        return Ok(None);
    };
    if !compat.authenticates {
        let reason = "the broker asks for a token, and the version of Pulsar's instance in this program shows none: \
                      build it with a newer one, or with our SDK (a source folder as `go`)";
        return Err(deployment(reason, ""));
    }
    let path = scope.path("token");
    let kept = scope
        .make(&path)
        .and_then(|mut file| file.write_all(token.as_bytes()));
    kept.map(|()| Some(path)).map_err(|error| Broken::Start {
        reason: format!("keeping the token: {error}"),
        stderr_tail: String::new(),
    })
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

/// The number of a name, as the protocol's enumerations count them.
fn number(names: &[&str], name: &str) -> usize {
    names.iter().position(|it| *it == name).unwrap_or(0)
}

/// What a Go instance is told: `-instance-conf`.
pub(super) fn go_conf(details: &Value, start: &Start<'_>) -> Value {
    let (source, sink) = (&details["source"], &details["sink"]);
    let inputs = source["inputSpecs"].as_object();
    let first = inputs.and_then(|inputs| inputs.iter().next());
    let (topic, spec) = first.map_or(("", &Value::Null), |(topic, spec)| (topic.as_str(), spec));
    let specs: Map<String, Value> = inputs
        .into_iter()
        .flatten()
        .map(|(topic, spec)| (topic.clone(), Value::String(spec.to_string())))
        .collect();
    let resources = &details["resources"];
    let mut conf = json!({
        "pulsarServiceURL": start.service_url,
        "instanceID": start.spec.instance,
        "funcID": start.spec.function_id,
        "funcVersion": start.spec.version,
        "maxBufTuples": BUFFERED_TUPLES,
        "port": start.port,
        "metricsPort": start.metrics_port,
        "clusterName": start.spec.cluster,
        "killAfterIdleMs": 0,
        "expectedHealthCheckInterval": HEALTH_INTERVAL,
        "tenant": text(details, "tenant"),
        "nameSpace": text(details, "namespace"),
        "name": text(details, "name"),
        "className": text(details, "className"),
        "logTopic": text(details, "logTopic"),
        "processingGuarantees": number(
            &["ATLEAST_ONCE", "ATMOST_ONCE", "EFFECTIVELY_ONCE", "MANUAL"],
            text(details, "processingGuarantees"),
        ),
        "secretsMap": "",
        "userConfig": text(details, "userConfig"),
        "runtime": 3,
        "autoAck": details["autoAck"],
        "parallelism": details["parallelism"],
        "subscriptionType": number(&["SHARED", "FAILOVER", "KEY_SHARED"], text(source, "subscriptionType")),
        "timeoutMs": 0,
        "subscriptionName": text(source, "subscriptionName"),
        "cleanupSubscription": source["cleanupSubscription"],
        "subscriptionPosition": number(&["LATEST", "EARLIEST"], text(source, "subscriptionPosition")),
        "sourceInputSpecs": specs,
        "sourceSpecsTopic": topic,
        "sourceSchemaType": "",
        "isRegexPatternSubscription": spec["isRegexPattern"].as_bool().unwrap_or(false),
        "receiverQueueSize": spec["receiverQueueSize"]["value"].as_i64().unwrap_or(0),
        "sinkSpecsTopic": text(sink, "topic"),
        "sinkSchemaType": "",
        "cpu": resources["cpu"],
        "ram": resources["ram"],
        "disk": resources["disk"],
        "maxMessageRetries": 0,
        "deadLetterTopic": "",
        "functionDetails": details.to_string(),
    });
    if let Some(file) = &start.token_file {
        conf["clientAuthenticationPlugin"] = TOKEN_PLUGIN.into();
        conf["clientAuthenticationParameters"] = format!("file://{}", file.display()).into();
    }
    conf
}

/// The virtual machine with Pulsar's classes.
fn java_machine(
    planned: &mut Planned,
    home: Option<&Path>,
    spec: &HostSpec,
    scope: &Scope,
) -> Result<(), Broken> {
    let instance = home.map(|home| home.join("instances/java-instance.jar"));
    let Some((home, instance)) = home.zip(instance.filter(|jar| jar.is_file())) else {
        let reason = format!(
            "the runtime `compat` of Java needs Pulsar's own instance: set `{PULSAR_HOME}` of the worker to a folder \
             of Pulsar, with `instances/java-instance.jar` and `lib`"
        );
        return Err(deployment(reason, ""));
    };
    let log4j = scope
        .file("log4j2.xml", LOG4J)
        .map_err(|error| Broken::Start {
            reason: format!("writing `log4j2.xml`: {error}"),
            stderr_tail: String::new(),
        })?;
    planned.arg("-cp").arg(instance).args([
        format!(
            "-Dpulsar.functions.instance.classpath={}/lib/*",
            home.display()
        ),
        format!("-Dlog4j.configurationFile={}", log4j.display()),
    ]);
    planned.args([
        "-Dio.netty.tryReflectionSetAccessible=true",
        "-Dorg.apache.pulsar.shade.io.netty.tryReflectionSetAccessible=true",
        "-Dio.grpc.netty.shaded.io.netty.tryReflectionSetAccessible=true",
        "--add-opens=java.base/java.nio=ALL-UNNAMED",
        "--add-opens=java.base/jdk.internal.misc=ALL-UNNAMED",
        "--add-opens=java.base/java.util.zip=ALL-UNNAMED",
        "-XX:-UsePerfData",
    ]);
    if let Some(bytes) = spec.heap_bytes {
        planned.arg(format!("-Xmx{bytes}"));
    }
    planned.args(&spec.runtime_flags);
    Ok(())
}

/// What `JavaInstanceMain` is told.
pub(super) fn java_flags(details: &Value, start: &Start<'_>) -> Vec<String> {
    let tls = start.service_url.starts_with("pulsar+ssl://").to_string();
    let pending = start.spec.options.window.unwrap_or(1000);
    let code = std::fs::canonicalize(&start.spec.code.path);
    let code = code.unwrap_or_else(|_| start.spec.code.path.clone());
    let mut flags: Vec<String> = Vec::new();
    for (flag, value) in [
        ("--jar", code.display().to_string()),
        ("--instance_id", start.spec.instance.to_string()),
        ("--function_id", start.spec.function_id.clone()),
        ("--function_version", start.spec.version.clone()),
        // It takes the quotes off again.
        ("--function_details", format!("'{details}'")),
        ("--pulsar_serviceurl", start.service_url.to_owned()),
        ("--use_tls", tls),
        ("--tls_allow_insecure", "false".to_owned()),
        ("--hostname_verification_enabled", "false".to_owned()),
        ("--max_buffered_tuples", BUFFERED_TUPLES.to_string()),
        ("--port", start.port.to_string()),
        ("--metrics_port", start.metrics_port.to_string()),
        ("--pending_async_requests", pending.to_string()),
        (
            "--expected_healthcheck_interval",
            HEALTH_INTERVAL.to_string(),
        ),
        ("--secrets_provider", SECRETS_PROVIDER.to_owned()),
        ("--cluster_name", start.spec.cluster.clone()),
    ] {
        flags.extend([flag.to_owned(), value]);
    }
    if let Some(file) = &start.token_file {
        flags.extend(["--client_auth_plugin".to_owned(), TOKEN_PLUGIN.to_owned()]);
        flags.push("--client_auth_params".to_owned());
        flags.push(format!("file://{}", file.display()));
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> HostSpec {
        HostSpec {
            instance: 2,
            function_id: "id".into(),
            version: "5".into(),
            cluster: "c".into(),
            ..HostSpec::default()
        }
    }

    fn details() -> Value {
        json!({
            "tenant": "t", "namespace": "n", "name": "f", "logTopic": "log", "userConfig": "{\"a\":1}",
            "processingGuarantees": "ATMOST_ONCE", "autoAck": true, "parallelism": 3,
            "source": {"inputSpecs": {"in": {"receiverQueueSize": {"value": 7}}, "in2": {}}, "subscriptionType": "FAILOVER",
                       "subscriptionName": "s", "subscriptionPosition": "EARLIEST", "cleanupSubscription": true},
            "sink": {"topic": "out"}, "resources": {"cpu": 1.0, "ram": 2, "disk": 3},
        })
    }

    #[test]
    fn a_go_instance_is_told_in_its_own_words() {
        let spec = spec();
        let mut start = Start {
            service_url: "pulsar://h:1",
            token_file: None,
            port: 7,
            metrics_port: 8,
            spec: &spec,
        };
        let conf = go_conf(&details(), &start);
        for (name, value) in [
            ("pulsarServiceURL", json!("pulsar://h:1")),
            ("instanceID", json!(2)),
            ("nameSpace", json!("n")),
            ("processingGuarantees", json!(1)),
            ("subscriptionType", json!(1)),
            ("subscriptionPosition", json!(1)),
            ("sourceSpecsTopic", json!("in")),
            (
                "sourceInputSpecs",
                json!({"in": "{\"receiverQueueSize\":{\"value\":7}}", "in2": "{}"}),
            ),
            ("receiverQueueSize", json!(7)),
            ("sinkSpecsTopic", json!("out")),
            ("userConfig", json!("{\"a\":1}")),
            ("metricsPort", json!(8)),
            ("ram", json!(2)),
        ] {
            assert_eq!(conf[name], value, "{name}");
        }
        assert!(conf.get("clientAuthenticationParameters").is_none());
        start.token_file = Some("/private/token".into());
        let conf = go_conf(&details(), &start);
        assert_eq!(
            conf["clientAuthenticationParameters"],
            "file:///private/token"
        );
    }

    #[test]
    fn a_java_instance_is_told_in_flags() {
        let spec = spec();
        let start = Start {
            service_url: "pulsar+ssl://h:1",
            token_file: Some("/private/token".into()),
            port: 7,
            metrics_port: 8,
            spec: &spec,
        };
        let flags = java_flags(&details(), &start);
        let value = |flag: &str| {
            let at = flags.iter().position(|it| it == flag).expect(flag);
            flags[at + 1].as_str()
        };
        assert_eq!((value("--port"), value("--use_tls")), ("7", "true"));
        assert_eq!(value("--client_auth_params"), "file:///private/token");
        let quoted = value("--function_details");
        let details: Value = serde_json::from_str(quoted.trim_matches('\'')).expect("JSON");
        assert_eq!(details["sink"]["topic"], "out");
    }
}
