//! Secrets of functions as people meet them: a server's lists, `get` and `update`, meshes, `localrun`.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::server::Server;
use crate::{geminga, text};

const CODE: &str = "process() { local token; token=$(secret token); emit \"$MSG $token\"; }\n";

/// What a command says on both sides; it must succeed.
fn ran(server: &Server, directory: &Path, args: &[&str]) -> String {
    let output = server.ask(directory, args);
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{args:?}: {said}");
    said
}

fn secrets_of(server: &Server, directory: &Path, name: &str) -> Value {
    let shown = ran(server, directory, &["functions", "get", name, "-o", "json"]);
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    shown["secrets"].clone()
}

#[test]
fn a_server_reads_what_it_lists_and_an_edited_configuration_keeps_what_it_masks() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name);
    let shown = |name: &str| at(name).display().to_string();
    let write = |name: &str, text: &str| std::fs::write(at(name), text).expect("writes");
    std::fs::create_dir(at("secrets")).expect("makes");
    write("secrets/token", "of a file\n");
    write("f.sh", CODE);
    write(
        "broker.conf",
        &format!("gemingaSecretsFromFolders={}\n", shown("secrets")),
    );
    let start = || Server::start(&["--config", &shown("broker.conf"), "--data", &shown("data")]);
    let server = start();
    let create = |name: &str, secrets: &Value| {
        let secrets = secrets.to_string();
        server.ask(
            directory.path(),
            &[
                "functions",
                "create",
                name,
                "--sh",
                "f.sh",
                "--inputs",
                "in",
                "--output-topic",
                "out",
                "--secrets",
                &secrets,
            ],
        )
    };
    for (secrets, want) in [
        (
            json!({"token": {"file": "/etc/passwd"}}),
            "gemingaSecretsFromFolders",
        ),
        (
            json!({"token": {"env": "PATH"}}),
            "gemingaSecretsFromEnvironment",
        ),
        (json!("hunter2"), "expected a map of secrets by name"),
        (
            json!({"token": {"fiel": "hunter2"}}),
            "did you mean `file`?",
        ),
    ] {
        let refused = create("f", &secrets);
        let said = text(&refused.stderr);
        assert!(!refused.status.success() && said.contains(want), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
    // What is no JSON is not quoted either.
    let args = [
        "functions",
        "create",
        "f",
        "--sh",
        "f.sh",
        "--inputs",
        "in",
        "--output-topic",
        "out",
        "--secrets",
        "{hunter2",
    ];
    let said = text(&server.ask(directory.path(), &args).stderr);
    assert!(
        said.contains("map of secrets") && !said.contains("hunter2"),
        "{said}"
    );

    let file = json!({"file": shown("secrets/token")});
    let made = create("f", &json!({"token": "hunter2", "other": file}));
    assert!(made.status.success(), "{}", text(&made.stderr));
    let tells = |server: &Server, want: &str| {
        let args = ["functions", "trigger", "f", "--trigger-value", "it is"];
        let said = ran(server, directory.path(), &args);
        assert_eq!(said.trim_end(), want);
    };
    tells(&server, "it is hunter2");
    let masked = json!({"token": "******", "other": file});
    assert_eq!(secrets_of(&server, directory.path(), "f"), masked);
    let table = ran(&server, directory.path(), &["functions", "get", "f"]);
    assert!(
        table.contains("token (not shown)") && table.contains("other {\"file\""),
        "{table}"
    );
    // As people edit: get, change, update.
    let mut config: Value = serde_json::from_str(&ran(
        &server,
        directory.path(),
        &["functions", "get", "f", "-o", "json"],
    ))
    .expect("JSON");
    config["parallelism"] = json!(2);
    write("f.json", &config.to_string());
    let update = [
        "functions",
        "update",
        "f",
        "--function-config-file",
        "f.json",
        "--sh",
        "f.sh",
    ];
    ran(&server, directory.path(), &update);
    tells(&server, "it is hunter2");
    server.kill();
    let server = start();
    tells(&server, "it is hunter2");
    assert_eq!(secrets_of(&server, directory.path(), "f"), masked);
    let swap = json!({"token": file}).to_string();
    ran(
        &server,
        directory.path(),
        &["functions", "update", "f", "--secrets", &swap],
    );
    tells(&server, "it is of a file");
    let conf = "gemingaSecretsFromFolders=relative\n";
    write("wrong.conf", conf);
    let wrong = shown("wrong.conf");
    let refused = geminga()
        .args(["standalone", "--ephemeral", "--config", &wrong])
        .output();
    let said = text(&refused.expect("runs").stderr);
    assert!(
        said.contains("wrong.conf:1") && said.contains("gemingaSecretsFromFolders"),
        "{said}"
    );
}

#[test]
fn a_mesh_sees_a_changed_secret_and_shows_none() {
    let server = Server::ephemeral();
    let directory = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| {
        std::fs::write(directory.path().join(name), text).expect("writes");
    };
    write("f.sh", CODE);
    let mesh = |secrets: &str, rest: &str| {
        let text =
            format!("name: f\nsh: f.sh\ninputs: [in]\noutput: out\nsecrets: {secrets}\n{rest}");
        write("f.yaml", &text);
    };
    let run = |action: &str| {
        let args = ["mesh", "--admin-url", &server.admin_url, action, "f.yaml"];
        let said = ran(&server, directory.path(), &args);
        assert!(!said.contains("hunter"), "{said}");
        said
    };
    let action = |said: &str| {
        let line = said.lines().find(|line| line.contains("public/default/f"));
        let words = line.expect("a step").split_whitespace();
        words.map(str::to_owned).next().expect("an action")
    };
    let tells = |want: &str| {
        let args = ["functions", "trigger", "f", "--trigger-value", "it is"];
        assert_eq!(ran(&server, directory.path(), &args).trim_end(), want);
    };
    let restarts = || {
        let args = ["functions", "versions", "f", "-o", "name"];
        ran(&server, directory.path(), &args)
    };
    mesh("{token: hunter2}", "");
    assert_eq!(action(&run("apply")), "create");
    tells("it is hunter2");
    // Neither a difference for ever nor a new version for nothing.
    let before = restarts();
    let planned = run("plan");
    assert!(
        planned.contains("secrets not compared, `apply` does: token"),
        "{planned}"
    );
    assert_eq!(action(&planned), "unchanged");
    assert_eq!(action(&run("apply")), "unchanged");
    assert_eq!(restarts(), before);
    mesh("{token: hunter3}", "");
    let applied = run("apply");
    assert_eq!(action(&applied), "update");
    assert!(
        applied.contains("secrets: {\"token\":\"******\"}"),
        "{applied}"
    );
    tells("it is hunter3");
    assert_eq!(action(&run("apply")), "unchanged");
    // Together with another change it is sent with the whole.
    mesh("{token: hunter4}", "parallelism: 2\n");
    assert_eq!(action(&run("apply")), "update");
    tells("it is hunter4");
    let json = ran(
        &server,
        directory.path(),
        &[
            "mesh",
            "--admin-url",
            &server.admin_url,
            "plan",
            "f.yaml",
            "-o",
            "json",
        ],
    );
    assert!(
        json.contains("\"notCompared\"") && !json.contains("hunter"),
        "{json}"
    );
}

/// A process that is killed with this value.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn localrun_knows_pulsars_secrets_providers() {
    let server = Server::ephemeral();
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("f.sh"), CODE).expect("writes");
    let package = "org.apache.pulsar.functions.secretsprovider";
    let local = |class: &str| {
        let provider = format!("{package}.{class}");
        let (input, output) = (format!("{class}-in"), format!("{class}-out"));
        let mut command = geminga();
        command
            .current_dir(directory.path())
            .env("token", "of the environment")
            .args(["functions", "localrun", "--sh", "f.sh", "--name", "f"])
            .args(["--broker-service-url", &server.service_url])
            .args(["--inputs", &input, "--output-topic", &output])
            .args([
                "--subs-position",
                "Earliest",
                "--secrets",
                r#"{"token":"clear"}"#,
            ])
            .args(["--secrets-provider-classname", &provider]);
        command
    };
    for (class, want) in [
        ("ClearTextSecretsProvider", "it is clear\n"),
        (
            "EnvironmentBasedSecretsProvider",
            "it is of the environment\n",
        ),
    ] {
        let mut running = local(class);
        let running = running.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let _running = Running(running.expect("starts"));
        let (input, output) = (format!("{class}-in"), format!("{class}-out"));
        ran(
            &server,
            directory.path(),
            &["produce", &input, "-m", "it is"],
        );
        let args = ["consume", &output, "--from", "earliest", "-n", "1"];
        assert_eq!(ran(&server, directory.path(), &args), want, "{class}");
    }
    let refused = local("OwnProvider").output().expect("runs");
    let said = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("EnvironmentBasedSecretsProvider"), "{said}");
}

#[test]
fn a_worker_by_itself_reads_what_its_flags_list() {
    let server = Server::ephemeral();
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("f.sh"), CODE).expect("writes");
    let worker = |flag: &str, value: &str| {
        let mut command = geminga();
        command
            .env("SHOP_TOKEN", "of the worker")
            .args(["worker", "--http-port", "0", "-o", "json"])
            .args(["--functions-namespace", "public/default"])
            .args(["--service-url", &server.service_url, flag, value])
            .arg("--data")
            .arg(directory.path().join("worker"));
        command
    };
    let refused = worker("--secrets-from-folders", "relative").output();
    let refused = refused.expect("runs");
    let said = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("gemingaSecretsFromFolders"), "{said}");

    let mut running = worker("--secrets-from-environment", "SHOP_*");
    let running = running.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut running = Running(running.expect("starts"));
    let mut line = String::new();
    let stdout = running.0.stdout.take().expect("a pipe");
    BufReader::new(stdout).read_line(&mut line).expect("reads");
    let ready: Value = serde_json::from_str(&line).expect("JSON");
    let url = ready["adminUrl"].as_str().expect("an address");
    let asked = |args: &[&str]| {
        let all: Vec<&str> = ["--admin-url", url]
            .into_iter()
            .chain(args.iter().copied())
            .collect();
        ran(&server, directory.path(), &all)
    };
    let secrets = r#"{"token":{"env":"SHOP_TOKEN"}}"#;
    asked(&[
        "functions",
        "create",
        "f",
        "--sh",
        "f.sh",
        "--inputs",
        "in",
        "--output-topic",
        "out",
        "--secrets",
        secrets,
    ]);
    let said = asked(&["functions", "trigger", "f", "--trigger-value", "it is"]);
    assert_eq!(said.trim_end(), "it is of the worker");
}
