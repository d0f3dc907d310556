//! Secrets of functions over REST: shown to nobody, kept by an update that sends the mask back.

use serde_json::{Value, json};

use super::harness::Server;
use crate::client::Form;

const PATH: &str = "/admin/v3/functions/public/default/f";

fn config(secrets: &Value) -> Form {
    let config = json!({
        "name": "f", "inputs": ["in"], "output": "out", "sh": "f.sh", "subscriptionPosition": "Earliest",
        "secrets": secrets,
    });
    let code = b"process() { local token; token=$(secret token); emit \"$MSG $token\"; }";
    Form::new()
        .json("functionConfig", &config.to_string())
        .file("data", "f.sh", code)
}

fn change(config: &Value) -> Form {
    Form::new().json("functionConfig", &config.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_masked_and_kept() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::with_functions(directory.path()).await;
    let secrets = json!({"token": "hunter2", "other": {"user": "hunter2"}});
    let made = server.form("POST", PATH, config(&secrets)).await;
    assert_eq!(made, (204, String::new()));
    let masked = json!({"token": "******", "other": "******"});
    let get = async || server.ask("GET", PATH, None).await.1;
    assert_eq!(get().await["secrets"], masked);
    let told = async || {
        let form = Form::new().text("data", "it is");
        server.form("POST", &format!("{PATH}/trigger"), form).await
    };
    assert_eq!(told().await, (200, "it is hunter2".to_owned()));
    // What was shown, changed and sent back.
    let mut shown = get().await;
    shown["userConfig"] = json!({"a": 1});
    assert_eq!(server.form("PUT", PATH, change(&shown)).await.0, 204);
    assert_eq!(told().await, (200, "it is hunter2".to_owned()));
    assert_eq!(get().await["secrets"], masked);
    let again = server.form("PUT", PATH, change(&shown)).await;
    assert!(
        again.0 == 400 && again.1.contains("Update contains no change"),
        "{again:?}"
    );
    let part = json!({"secrets": {"token": "******"}});
    assert_eq!(server.form("PUT", PATH, change(&part)).await.0, 204);
    assert_eq!(get().await["secrets"], json!({"token": "******"}));
    let new = json!({"secrets": {"token": "hunter3"}});
    assert_eq!(server.form("PUT", PATH, change(&new)).await.0, 204);
    assert_eq!(told().await, (200, "it is hunter3".to_owned()));
    for rest in ["", "/status", "/stats", "/versions"] {
        let (_, text) = server.text("GET", &format!("{PATH}{rest}")).await;
        assert!(!text.contains("hunter"), "{rest}: {text}");
    }
    server.stop_functions().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_that_can_not_be_honoured_are_refused_by_their_names() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::with_functions(directory.path()).await;
    for (secrets, words) in [
        (
            json!({"token": "******"}),
            "`secrets.token`: `******` stands for a secret",
        ),
        (json!({"token": {"evn": "A"}}), "did you mean `env`?"),
        (
            json!({"token": {"env": "PATH"}}),
            "can add `PATH` to `gemingaSecretsFromEnvironment`",
        ),
        (
            json!({"token": {"file": "/etc/passwd"}}),
            "can add its folder to `gemingaSecretsFromFolders`",
        ),
        (
            json!({"token": {"command": ["id"]}}),
            "can add `[\"id\"]` to `gemingaSecretsFromCommands`",
        ),
        (json!("hunter2"), "expected a map of secrets by name"),
    ] {
        let (status, said) = server.form("POST", PATH, config(&secrets)).await;
        // Quotes are quoted in an answer that is JSON.
        let said = said.replace("\\\"", "\"");
        assert_eq!(status, 400, "{said}");
        assert!(said.contains(words) && !said.contains("hunter2"), "{said}");
    }
    assert_eq!(server.ask("GET", PATH, None).await.0, 404);
    server.stop_functions().await;
}
