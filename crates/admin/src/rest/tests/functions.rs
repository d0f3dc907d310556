//! Functions, sources and sinks over REST, with a real worker and a Bash script.

use serde_json::{Value, json};

use super::harness::Server;
use crate::client::Form;

const BASE: &str = "/admin/v3/functions/public/default";
const SCRIPT: &[u8] = b"tr a-z A-Z\n";

fn config() -> Value {
    json!({
        "name": "loud", "inputs": ["words"], "output": "shouts", "sh": "loud.sh",
        "subscriptionPosition": "Earliest",
    })
}

fn registration(config: &Value) -> Form {
    Form::new()
        .json("functionConfig", &config.to_string())
        .file("data", "loud.sh", SCRIPT)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_is_made_used_changed_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::with_functions(directory.path()).await;
    let at = |rest: &str| format!("{BASE}/{rest}");
    let made = server
        .form("POST", &at("loud"), registration(&config()))
        .await;
    assert_eq!(made, (204, String::new()));
    let again = server
        .form("POST", &at("loud"), registration(&config()))
        .await;
    assert!(
        again.0 == 400 && again.1.contains("already exists"),
        "{again:?}"
    );
    server.get(BASE, 200, json!(["loud"])).await;
    let (_, stored) = server.ask("GET", &at("loud"), None).await;
    assert_eq!(
        (&stored["inputs"], &stored["output"]),
        (&json!(["words"]), &json!("shouts"))
    );

    let form = Form::new().text("data", "hello");
    assert_eq!(
        server.form("POST", &at("loud/trigger"), form).await,
        (200, "HELLO".to_owned())
    );
    let (_, status) = server.ask("GET", &at("loud/status"), None).await;
    assert_eq!(
        (&status["numInstances"], &status["numRunning"]),
        (&json!(1), &json!(1))
    );
    let (_, one) = server.ask("GET", &at("loud/0/status"), None).await;
    assert_eq!(one["running"], true);
    server.get(&at("loud/7/status"), 400, Value::Null).await;
    let (_, stats) = server.ask("GET", &at("loud/stats"), None).await;
    assert!(
        stats["1min"].is_object() && stats["receivedTotal"] == 1,
        "{stats}"
    );
    let (_, metrics) = server.text("GET", "/metrics/").await;
    let line = metrics
        .lines()
        .find(|l| l.starts_with("pulsar_function_received_total{"))
        .unwrap();
    assert!(
        line.contains("fqfn=\"public/default/loud\"") && line.ends_with(" 1"),
        "{line}"
    );
    let (_, assigned) = server
        .ask("GET", "/admin/v2/worker/assignments", None)
        .await;
    let own = &assigned["c-standalone-fw-127.0.0.1-8080"];
    assert_eq!(own, &json!(["public/default/loud:0"]));

    let state = Form::new().json("state", r#"{"key":"k","stringValue":"v"}"#);
    assert_eq!(server.form("POST", &at("loud/state/k"), state).await.0, 204);
    let (_, value) = server.ask("GET", &at("loud/state/k"), None).await;
    assert_eq!(value["stringValue"], "v");
    server.get(&at("loud/state/none"), 404, Value::Null).await;

    server.change("POST", &at("loud/stop"), None, 204).await;
    let (_, status) = server.ask("GET", &at("loud/status"), None).await;
    assert_eq!(status["numRunning"], 0);
    server.change("POST", &at("loud/0/start"), None, 204).await;
    let change = Form::new().json("functionConfig", r#"{"parallelism":2}"#);
    assert_eq!(
        server.form("PUT", &at("loud"), change).await,
        (204, String::new())
    );
    let (_, status) = server.ask("GET", &at("loud/status"), None).await;
    assert_eq!(status["numInstances"], 2);

    server.change("DELETE", &at("loud"), None, 204).await;
    let (_, gone) = server.ask("DELETE", &at("loud"), None).await;
    assert_eq!(gone["reason"], "Function loud doesn't exist");
    server.stop_functions().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_registrations_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::with_functions(directory.path()).await;
    let with = |field: &str, value: Value| {
        let mut config = config();
        config[field] = value;
        registration(&config)
    };
    let bare = |config: &Value| Form::new().json("functionConfig", &config.to_string());
    let path = format!("{BASE}/loud");
    for (form, word) in [
        (with("paralelism", json!(2)), "did you mean `parallelism`?"),
        (
            with("processingGuarantees", json!("atleast_once")),
            "did you mean `ATLEAST_ONCE`?",
        ),
        (with("parallelism", json!(0)), "parallelism"),
        (with("inputs", json!([])), "input"),
        (with("name", json!("other")), "`name` is `other`"),
        (bare(&config()), "Package is not provided"),
        (
            bare(&config()).text("url", "http://elsewhere/x.sh"),
            "cannot be fetched",
        ),
        (
            registration(&config()).text("url", "file:///x"),
            "`data` and `url`",
        ),
        (
            registration(&config()).text("extra", "x"),
            "unknown part `extra`",
        ),
        (
            registration(&config()).json("functionConfig", "{}"),
            "given twice",
        ),
        (
            Form::new().file("data", "x", b"x"),
            "no part `functionConfig`",
        ),
        (bare(&config()).file("data", "../../evil", b""), ""),
    ] {
        let (status, reason) = server.form("POST", &path, form).await;
        if word.is_empty() {
            // A name with a path in it is cut to its last part; nothing leaves the folder.
            assert!(!directory.path().parent().unwrap().join("evil").exists());
            assert!(status == 204 || status == 400, "{status} {reason}");
            server.ask("DELETE", &path, None).await;
            continue;
        }
        assert_eq!(status, 400, "{reason}");
        assert!(reason.contains(word), "{word}: {reason}");
    }
    let no_tenant = "/admin/v3/functions/none/default/loud";
    let (status, reason) = server
        .form("POST", no_tenant, registration(&config()))
        .await;
    assert!(
        status == 400 && reason.contains("does not exist"),
        "{status} {reason}"
    );
    let (status, _) = server.ask("POST", &path, Some(&json!({}))).await;
    assert_eq!(status, 415);
    server
        .get("/admin/v3/functions/none/default", 200, json!([]))
        .await;
    server.get(&format!("{BASE}/none"), 404, Value::Null).await;
    server.stop_functions().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sources_and_sinks_have_their_own_words() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::with_functions(directory.path()).await;
    let input = directory.path().join("in.txt");
    std::fs::write(&input, "one\ntwo\n").unwrap();
    let source = json!({
        "topicName": "lines", "sourceType": "file", "configs": { "path": input.to_str().unwrap() },
    });
    let form = Form::new()
        .json("sourceConfig", &source.to_string())
        .text("url", "builtin://file");
    let path = "/admin/v3/sources/public/default/reader";
    assert_eq!(server.form("POST", path, form).await, (204, String::new()));
    server
        .get("/admin/v3/source/public/default", 200, json!(["reader"]))
        .await;
    let (_, status) = server.ask("GET", &format!("{path}/status"), None).await;
    assert!(
        status["instances"][0]["status"]["numReceivedFromSource"].is_u64(),
        "{status}"
    );
    server
        .get("/admin/v3/sinks/public/default/reader", 404, Value::Null)
        .await;
    let (_, builtins) = server
        .ask("GET", "/admin/v3/sinks/builtinsinks", None)
        .await;
    assert!(
        builtins.as_array().is_some_and(|all| !all.is_empty()),
        "{builtins}"
    );
    server.change("DELETE", path, None, 204).await;
    server.stop_functions().await;
}

#[tokio::test]
async fn without_a_worker_it_is_503() {
    let server = Server::start().await;
    server.get(BASE, 503, Value::Null).await;
    server
        .get("/admin/v2/worker/cluster", 503, Value::Null)
        .await;
}
