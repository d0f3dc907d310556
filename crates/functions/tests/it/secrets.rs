//! Secrets: each form reaches the code, what may not be read is refused, and an update keeps what is masked.

use std::time::Duration;

use geminga_functions::{ComponentId, Kind, SecretRules, Worker, run_pipe};
use geminga_model::FunctionConfig;
use serde_json::{Value, json};

use crate::stage::{Stage, receive, texts};

/// A variable that Cargo sets for every test.
const VARIABLE: &str = "CARGO_PKG_NAME";
const COMMAND: [&str; 3] = ["printf", "%s\\n", "printed"];

/// A stage whose operator allows one variable, one folder and one command.
async fn stage() -> Stage {
    let mut stage = Stage::new().await;
    let folder = stage.directory.path().join("secrets");
    std::fs::create_dir(&folder).expect("made");
    let rules = SecretRules::listed(
        vec![VARIABLE.to_owned()],
        vec![folder],
        vec![COMMAND.map(str::to_owned).into()],
    );
    restart(&mut stage, rules.expect("rules")).await;
    stage
}

async fn restart(stage: &mut Stage, rules: SecretRules) {
    stage.secrets = rules;
    stage.worker.shutdown(Duration::from_secs(2)).await;
    stage.another_worker().await;
}

fn place(stage: &Stage, name: &str) -> String {
    let path = stage.directory.path().join("secrets").join(name);
    path.display().to_string()
}

fn error_of(worker: &Worker, id: &ComponentId) -> String {
    let status = worker.status(id).expect("it is there");
    status.instances[0].status.error.clone().unwrap_or_default()
}

/// A Bash function that answers each message with its secret `token`.
const TELLS: &str = "process() { local token; token=$(secret token); emit \"$token\"; }";

#[tokio::test]
async fn each_form_reaches_the_code() {
    let stage = stage().await;
    let file = place(&stage, "file");
    std::fs::write(&file, "of a file\n").expect("written");
    let secrets = json!({
        "a": "clear", "b": {"env": VARIABLE}, "c": {"file": file}, "d": {"command": COMMAND}, "e": {"x": 1},
    });
    let bash = "process() { local all= one; for one in a b c d e; do all+=\"$(secret $one),\"; done; emit \"$all\"; }";
    let python = "class F:\n    def process(self, input, context):\n        \
                  return ''.join(context.get_secret(n) + ',' for n in 'abcde')\n";
    let spawned =
        "#!/bin/sh\nfor one in a b c d e; do printf '%s,' \"$(cat \"$GMG_SECRETS/$one\")\"; done\n";
    let want = format!(
        "clear,{},of a file,printed,{{\"x\":1}},",
        env!("CARGO_PKG_NAME")
    );
    for (name, code) in [
        ("warm", json!({"sh": bash})),
        ("module", json!({"py": python, "className": "module.F"})),
        (
            "spawned",
            json!({"sh": spawned, "customRuntimeOptions": "{\"mode\":\"spawn\"}"}),
        ),
        ("asleep", json!({"sh": bash, "idleTimeoutMs": 1})),
    ] {
        let (input, output) = (stage.topic(&format!("{name}-in")), stage.topic(name));
        let mut fields = json!({"inputs": [&input], "output": &output, "secrets": secrets});
        for (field, value) in code.as_object().expect("fields") {
            fields[field] = value.clone();
        }
        let mut consumer = stage.consumer(&output).await;
        stage.function(name, fields).await;
        stage.send(&input, ["x"]).await;
        let got = receive(&mut consumer, 1).await;
        assert_eq!(texts(&got), [want.as_str()], "{name}");
    }
    // Without a server, whoever wrote the configuration runs it.
    let code = stage.file("alone.sh", TELLS);
    let config =
        json!({"name": "alone", "sh": code, "secrets": {"token": {"command": ["echo", "mine"]}}});
    let config: FunctionConfig = serde_json::from_value(config).expect("a config");
    let (output, mut printed) = tokio::io::duplex(1024);
    let report = run_pipe(config, &b"x"[..], output, None, None).await;
    assert_eq!(report.expect("runs").written, 1);
    let mut text = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut printed, &mut text)
        .await
        .expect("read");
    assert_eq!(text, "mine\n");
    stage.end().await;
}

#[tokio::test]
async fn a_masked_secret_is_kept_and_a_new_one_is_read_at_the_next_start() {
    let mut stage = stage().await;
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let file = place(&stage, "file");
    std::fs::write(&file, "first").expect("written");
    let mut consumer = stage.consumer(&output).await;
    let fields = json!({
        "sh": TELLS, "inputs": [&input], "output": &output, "secrets": {"token": "clear", "other": {"file": &file}},
    });
    let id = stage.function("f", fields).await;
    let stored = stage.worker.get(&id).expect("there");
    let masked = stored.clone().masked();
    assert_ne!(masked, stored);
    assert!(!format!("{stored:?}").contains("clear"), "{stored:?}");
    let update = async |stage: &Stage, change: Value| {
        let change: FunctionConfig = serde_json::from_value(change).expect("a config");
        let updated = stage.worker.update(&id, change.into(), None).await;
        updated.map_err(|error| error.to_string())
    };
    // What was shown, with one field changed, as `get`, an editor and `update` make it.
    let mut shown = json!(masked)["config"].clone();
    assert_eq!(
        shown["secrets"],
        json!({"token": "******", "other": {"file": &file}})
    );
    let same = update(&stage, shown.clone()).await;
    assert_eq!(same, Err("Update contains no change".to_owned()));
    shown["parallelism"] = json!(2);
    update(&stage, shown).await.expect("updated");
    assert_eq!(
        json!(stage.worker.get(&id).expect("there"))["config"]["secrets"]["token"],
        "clear"
    );
    let answer = async |stage: &Stage, consumer: &mut geminga_client::Consumer| {
        stage.send(&input, ["x"]).await;
        texts(&receive(consumer, 1).await).remove(0)
    };
    assert_eq!(answer(&stage, &mut consumer).await, "clear");
    // Nothing is kept under that name.
    let said = update(
        &stage,
        json!({"secrets": {"token": "******", "new": "******"}}),
    )
    .await;
    let said = said.expect_err("refused");
    assert!(
        said.contains("`secrets.new`: `******` stands for a secret that is stored"),
        "{said}"
    );
    // Over a restart of the worker.
    let rules = stage.secrets.clone();
    restart(&mut stage, rules).await;
    assert_eq!(answer(&stage, &mut consumer).await, "clear");
    // A file is read at each start.
    update(&stage, json!({"secrets": {"token": {"file": &file}}}))
        .await
        .expect("updated");
    assert_eq!(answer(&stage, &mut consumer).await, "first");
    std::fs::write(&file, "second").expect("written");
    stage
        .worker
        .restart_instances(&id, None)
        .await
        .expect("restarted");
    assert_eq!(answer(&stage, &mut consumer).await, "second");
    // Back to the version with clear text.
    stage
        .worker
        .roll_back(&id, None)
        .await
        .expect("rolled back");
    assert_eq!(answer(&stage, &mut consumer).await, "clear");
    let fresh = json!({"sh": TELLS, "inputs": [&input], "secrets": {"token": "******"}});
    let said = stage.try_function("g", fresh).await.expect_err("refused");
    assert!(said.to_string().contains("`secrets.token`"), "{said}");
    stage.end().await;
}

#[tokio::test]
async fn what_can_not_be_read_is_said_and_tried_again() {
    let mut stage = stage().await;
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let mut consumer = stage.consumer(&output).await;
    let file = place(&stage, "late");
    let with = |secret: Value| json!({"sh": TELLS, "inputs": [&input], "output": &output, "secrets": {"token": secret}});
    for (secret, want) in [
        (json!({"env": "HOME"}), "gemingaSecretsFromEnvironment"),
        (json!({"file": "/etc/passwd"}), "gemingaSecretsFromFolders"),
        (
            json!({"command": ["printf", "x"]}),
            "gemingaSecretsFromCommands",
        ),
        (json!({"evn": "HOME"}), "did you mean `env`?"),
        (json!({"path": "a", "key": "b"}), "Secret of Kubernetes"),
    ] {
        let said = stage.try_function("f", with(secret)).await;
        let said = said.expect_err(want).to_string();
        assert!(
            said.contains("`secrets.token`") && said.contains(want),
            "{said}"
        );
    }
    assert!(
        stage
            .worker
            .list(Kind::Function, "public", "default")
            .is_empty()
    );
    // It may be on another worker, and it may come later.
    let id = stage.function("f", with(json!({"file": &file}))).await;
    stage.send(&input, ["x"]).await;
    let why = format!("the secret `token` can't be read: `{file}`: No such file");
    stage
        .until("status says why", |worker| {
            error_of(worker, &id).starts_with(&why)
        })
        .await;
    std::fs::write(&file, "hunter2\0").expect("written");
    stage
        .until("status says what is wrong now", |worker| {
            error_of(worker, &id).contains("a zero byte")
        })
        .await;
    assert!(!error_of(&stage.worker, &id).contains("hunter2"));
    std::fs::write(&file, "it came").expect("written");
    assert_eq!(texts(&receive(&mut consumer, 1).await), ["it came"]);
    // The operator thinks better of it.
    restart(&mut stage, SecretRules::default()).await;
    stage
        .until("status names the setting", |worker| {
            error_of(worker, &id).contains("`gemingaSecretsFromFolders`")
        })
        .await;
    let change: FunctionConfig =
        serde_json::from_value(json!({"parallelism": 2})).expect("a config");
    let said = stage.worker.update(&id, change.into(), None).await;
    let said = said.expect_err("refused").to_string();
    assert!(said.contains("gemingaSecretsFromFolders"), "{said}");
    stage.end().await;
}
