//! Functions, sources and sinks over REST, with a real worker and a Bash script.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use axum::body::Body;
use axum::http::Request;

use super::guard::{ask, house, token};
use super::harness::{Server, body};
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
    for what in ["start", "stop", "restart"] {
        let (status, said) = server.text("POST", &at(&format!("loud/7/{what}"))).await;
        let want = "Operation not permitted: instance 7 of function public/default/loud doesn't exist: it has 1";
        assert!(status == 400 && said.contains(want), "{what}: {said}");
    }
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

/// A tenant's admin has a function publish to a topic that only its message names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_publishes_what_its_registrant_may() {
    let directory = tempfile::tempdir().unwrap();
    let server = house().await.and_functions(directory.path()).await;
    let config = json!({
        "name": "f", "inputs": ["t/n/in"], "output": "t/n/out", "sh": "f.sh",
        "subscriptionPosition": "Earliest", "maxMessageRetries": 0, "deadLetterTopic": "t/n/dead",
    });
    let code = b"process() { emit -t \"$MSG\" said; emit \"told $MSG\"; }";
    let path = "/admin/v3/functions/t/n/f";
    let send = async |method: &str, form: Form, role: &str| {
        let (kind, body) = form.finish().in_memory().expect("no file");
        let request = Request::builder().method(method).uri(path);
        let request = request
            .header("content-type", kind)
            .header("authorization", format!("Bearer {}", token(role)));
        let answer = server.send(request.body(Body::from(body)).unwrap()).await;
        answer.status().as_u16()
    };
    let form = Form::new()
        .json("functionConfig", &config.to_string())
        .file("data", "f.sh", code);
    assert_eq!(send("POST", form, "boss").await, 204);
    let trigger = async |topic: &str| {
        let request = Request::post("/functions/t/n/f")
            .header("authorization", format!("Bearer {}", token("root")));
        let answer = server
            .send(request.body(Body::from(topic.to_owned())).unwrap())
            .await;
        let status = answer.status().as_u16();
        (status, String::from_utf8(body(answer).await).unwrap())
    };
    assert_eq!(trigger("persistent://t/n/other").await.0, 200);
    let (status, why) = trigger("persistent://public/default/x").await;
    assert_eq!(status, 500, "{why}");
    let refused = "not authorized to produce to `persistent://public/default/x`";
    assert!(why.contains(refused) && why.contains("boss"), "{why}");
    // Nor does a trigger put into an input what who registered it may only read there.
    let may = "/admin/v2/namespaces/public/default/permissions/boss";
    let granted = ask(
        &server,
        "POST",
        may,
        Some(&token("root")),
        &json!(["consume"]),
    )
    .await;
    assert_eq!(granted.0, 204, "{granted:?}");
    let reading =
        json!({"name": "g", "inputs": ["public/default/x"], "output": "t/n/out", "sh": "g.sh"});
    let reader = Form::new()
        .json("functionConfig", &reading.to_string())
        .file("data", "g.sh", code);
    let (kind, form) = reader.finish().in_memory().expect("no file");
    let request = Request::post("/admin/v3/functions/t/n/g")
        .header("content-type", kind)
        .header("authorization", format!("Bearer {}", token("boss")));
    let answer = server.send(request.body(Body::from(form)).unwrap()).await;
    assert_eq!(answer.status().as_u16(), 204);
    let request = Request::post("/functions/t/n/g")
        .header("authorization", format!("Bearer {}", token("root")));
    let answer = server
        .send(request.body(Body::from("order")).unwrap())
        .await;
    assert_eq!(answer.status().as_u16(), 400);
    let why = String::from_utf8(body(answer).await).unwrap();
    assert!(why.contains(refused) && why.contains("boss"), "{why}");
    // No file of the server's becomes code, however it is called.
    std::fs::write(directory.path().join("secret.sh"), code).unwrap();
    let named =
        |path: &str| json!({"name": "f", "inputs": ["t/n/in"], "sh": path, "functionType": ""});
    for path in ["secret.sh", "../secret.sh", "/etc/hostname"] {
        let form = Form::new().json("functionConfig", &named(path).to_string());
        let status = send("PUT", form, "boss").await;
        assert_eq!(status, 401, "{path}");
    }
    for path in ["other.sh", "../secret.sh", "/etc/hostname"] {
        let mut config = named(path);
        config["name"] = json!("h");
        let (kind, form) = Form::new()
            .json("functionConfig", &config.to_string())
            .finish()
            .in_memory()
            .expect("no file");
        let request = Request::post("/admin/v3/functions/t/n/h")
            .header("content-type", kind)
            .header("authorization", format!("Bearer {}", token("boss")));
        let answer = server.send(request.body(Body::from(form)).unwrap()).await;
        assert!(
            matches!(answer.status().as_u16(), 400 | 401),
            "{path}: {}",
            answer.status()
        );
    }
    // Where that one may, whoever sends the message needs the right too: others read that topic.
    let grant = async |role: &str, actions: Value| {
        let path = format!("/admin/v2/namespaces/public/default/permissions/{role}");
        let granted = ask(&server, "POST", &path, Some(&token("root")), &actions).await;
        assert_eq!(granted.0, 204, "{granted:?}");
    };
    grant("boss", json!(["consume", "produce"])).await;
    // What was asked before is remembered for a while.
    let again = Form::new().json("functionConfig", r#"{"parallelism":2}"#);
    let (kind, form) = again.finish().in_memory().expect("no file");
    let request = Request::put("/admin/v3/functions/t/n/g")
        .header("content-type", kind)
        .header("authorization", format!("Bearer {}", token("boss")));
    let answer = server.send(request.body(Body::from(form)).unwrap()).await;
    assert_eq!(answer.status().as_u16(), 204);
    let send_by = async |path: &str, role: &str| {
        let (kind, form) = Form::new()
            .text("data", "t/n/other")
            .finish()
            .in_memory()
            .expect("no file");
        let request = Request::post(path)
            .header("content-type", kind)
            .header("authorization", format!("Bearer {}", token(role)));
        let answer = server.send(request.body(Body::from(form)).unwrap()).await;
        let status = answer.status().as_u16();
        (status, String::from_utf8(body(answer).await).unwrap())
    };
    let by_trigger = "/admin/v3/functions/t/n/g/trigger";
    for (path, role) in [("/functions/t/n/g", "maker"), (by_trigger, "coder")] {
        let (status, why) = send_by(path, role).await;
        assert!(
            status == 401 && why.contains(refused),
            "{path}: {status} {why}"
        );
    }
    grant("maker", json!(["produce"])).await;
    let request = Request::post("/functions/t/n/g")
        .header("authorization", format!("Bearer {}", token("maker")))
        .body(Body::from("persistent://t/n/other"));
    let answer = server.send(request.unwrap()).await;
    assert_eq!(answer.status().as_u16(), 200);
    // Who has only the functions of the namespace changes nothing that is beyond them.
    let elsewhere = json!({"output": "public/default/x"});
    let form = Form::new().json("functionConfig", &elsewhere.to_string());
    assert_eq!(send("PUT", form, "root").await, 204);
    let form =
        Form::new()
            .json("functionConfig", "{}")
            .file("data", "f.sh", b"process() { emit mine; }");
    assert_eq!(send("PUT", form, "coder").await, 401);
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
            bare(&config()).text("url", "http://127.0.0.1:1/x.sh"),
            "Function Package url is not valid",
        ),
        (
            bare(&config()).text("url", "https://127.0.0.1:1/x.sh"),
            "Function Package url is not valid",
        ),
        (
            bare(&config()).text("url", "builtin://echo"),
            "Built-in function 'echo' is not available",
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

/// Each way to ask for one, as Pulsar's clients and people with curl do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn built_in_functions_are_listed_made_and_read_again() {
    const BUILTINS: &str = "/admin/v3/functions/builtins";
    let directory = tempfile::tempdir().unwrap();
    let server = house().await.and_functions(directory.path()).await;
    let (root, coder, stranger) = (token("root"), token("coder"), token("stranger"));
    let reload = format!("{BUILTINS}/reload");
    let reload = async |token: &str| ask(&server, "POST", &reload, Some(token), &Value::Null).await;
    let list = async |token: &str| ask(&server, "GET", BUILTINS, Some(token), &Value::Null).await;
    assert_eq!(list(&stranger).await, (200, "[]".to_owned()));
    let folder = directory.path().join("built-in");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("loud.sh"), SCRIPT).unwrap();
    let about = "name: shout\ndescription: in capitals\nfile: loud.sh\n";
    std::fs::write(folder.join("loud.yaml"), about).unwrap();
    for role in [&coder, &stranger] {
        let (status, _) = reload(role).await;
        assert!(matches!(status, 401 | 403), "{status}");
    }
    assert_eq!(list(&coder).await.1, "[]", "nobody reloaded");
    assert_eq!(reload(&root).await, (204, String::new()));
    let (_, listed) = list(&coder).await;
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let shout = json!({"name": "shout", "description": "in capitals", "functionClass": ""});
    assert_eq!(listed, json!([shout]));

    std::fs::write(folder.join("half.nar"), "PK").unwrap();
    let (status, said) = reload(&root).await;
    let said: Value = serde_json::from_str(&said).unwrap();
    let broken = &said["broken"][0];
    assert_eq!((status, &broken["file"]), (200, &json!("half.nar")));
    assert_eq!(broken["workerId"], "c-standalone-fw-127.0.0.1-8080");
    assert!(
        broken["reason"].as_str().unwrap().contains("no zip"),
        "{said}"
    );

    let form = async |method: &str, name: &str, form: Form| {
        let path = format!("/admin/v3/functions/t/n/{name}");
        server.form_as(method, &path, form, Some(&coder)).await
    };
    let config = |more: Value| {
        let mut all =
            json!({"inputs": ["persistent://t/n/words"], "output": "persistent://t/n/shouts"});
        for (field, value) in more.as_object().unwrap() {
            all[field] = value.clone();
        }
        Form::new().json("functionConfig", &all.to_string())
    };
    for (name, sent) in [
        ("a", config(json!({"functionType": "shout"}))),
        ("b", config(json!({"jar": "builtin://shout"}))),
        (
            "c",
            config(json!({"sh": "loud.sh"})).text("url", "builtin://shout"),
        ),
        // As `pulsar-admin --function-type` sends it.
        (
            "d",
            config(json!({"functionType": "shout", "jar": "builtin://shout", "runtime": "JAVA"}))
                .text("url", "builtin://shout"),
        ),
    ] {
        assert_eq!(
            form("POST", name, sent).await,
            (204, String::new()),
            "{name}"
        );
        let path = format!("/admin/v3/functions/t/n/{name}");
        let (_, shown) = ask(&server, "GET", &path, Some(&coder), &Value::Null).await;
        let shown: Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(
            (&shown["functionType"], &shown["runtime"]),
            (&json!("shout"), &json!("BASH"))
        );
        let path = format!("{path}/download");
        let (_, code) = ask(&server, "GET", &path, Some(&coder), &Value::Null).await;
        assert_eq!(code.as_bytes(), SCRIPT);
    }
    for (sent, part) in [
        (
            config(json!({})).text("url", "builtin://shuot"),
            "Built-in function 'shuot' is not available; did you mean 'shout'?; there are: shout",
        ),
        (
            config(json!({"functionType": "shout"})).text("url", "builtin://whisper"),
            "`functionType` is 'shout', and the part `url`",
        ),
        (
            config(json!({"functionType": "shout"})).file("data", "f.sh", SCRIPT),
            "give one of the two",
        ),
    ] {
        let (status, said) = form("POST", "e", sent).await;
        assert!(status == 400 && said.contains(part), "{status} {said}");
    }
    let update = Form::new()
        .json("functionConfig", r#"{"parallelism": 2}"#)
        .text("url", "builtin://shout");
    assert_eq!(form("PUT", "a", update).await, (204, String::new()));
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packages_have_names_versions_and_metadata() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::with_functions(directory.path()).await;
    let path = |rest: &str| format!("/admin/v3/packages/function/public/default/{rest}");
    let form = |metadata: &str| {
        Form::new()
            .json("metadata", metadata)
            .file("file", "loud.sh", SCRIPT)
    };
    let metadata = r#"{"description":"d","contact":"me","createTime":0,"modificationTime":0,"properties":{"a":"b"}}"#;
    let made = server.form("POST", &path("loud/v1"), form(metadata)).await;
    assert_eq!(made, (204, String::new()));
    let again = server.form("POST", &path("loud/v1"), form(metadata)).await;
    assert!(
        again.0 == 409 && again.1.contains("already exists"),
        "{again:?}"
    );
    assert_eq!(
        server.form("POST", &path("loud/v2"), form("{}")).await.0,
        204
    );
    server
        .get(
            "/admin/v3/packages/function/public/default",
            200,
            json!(["loud"]),
        )
        .await;
    server.get(&path("loud"), 200, json!(["v1", "v2"])).await;
    let (_, said) = server.ask("GET", &path("loud/v1/metadata"), None).await;
    assert_eq!(
        (&said["description"], &said["properties"]["a"]),
        (&json!("d"), &json!("b"))
    );
    assert!(said["createTime"].as_u64() > Some(1_600_000_000_000));
    let change = json!({"description": "e"});
    let (status, _) = server
        .ask("PUT", &path("loud/v1/metadata"), Some(&change))
        .await;
    assert_eq!(status, 204);
    let (_, said) = server.ask("GET", &path("loud/v1/metadata"), None).await;
    assert_eq!(said["description"], "e");
    let (status, content) = server.text("GET", &path("loud/v1")).await;
    assert_eq!((status, content.as_bytes()), (200, SCRIPT));
    server.get(&path("loud/v9"), 404, Value::Null).await;
    server
        .get(&path("loud/v9/metadata"), 404, Value::Null)
        .await;
    server
        .get("/admin/v3/packages/thing/public/default", 412, Value::Null)
        .await;

    // A function of a package keeps its code when the package goes.
    let url = "function://public/default/loud@v1";
    let form = Form::new()
        .json("functionConfig", &config().to_string())
        .text("url", url);
    let at = format!("{BASE}/loud");
    assert_eq!(server.form("POST", &at, form).await, (204, String::new()));
    server.change("DELETE", &path("loud/v1"), None, 204).await;
    server.change("DELETE", &path("loud/v1"), None, 404).await;
    let (status, content) = server.text("GET", &format!("{at}/download")).await;
    assert_eq!((status, content.as_bytes()), (200, SCRIPT));
    let no_package = Form::new()
        .json("functionConfig", "{}")
        .text("url", "function://public/default/loud@v9");
    assert_eq!(server.form("PUT", &at, no_package).await.0, 404);

    // Files by any path, and what is built in.
    let form = Form::new()
        .text("path", "a/b.txt")
        .file("data", "b.txt", b"hello");
    assert_eq!(
        server
            .form("POST", "/admin/v3/functions/upload", form)
            .await
            .0,
        204
    );
    let (status, content) = server
        .text("GET", "/admin/v3/functions/download?path=a/b.txt")
        .await;
    assert_eq!((status, content.as_str()), (200, "hello"));
    server
        .get("/admin/v3/functions/download?path=none", 404, Value::Null)
        .await;
    server
        .change("POST", "/admin/v3/functions/builtins/reload", None, 204)
        .await;
    server
        .change("POST", "/admin/v3/sinks/reloadBuiltInSinks", None, 204)
        .await;
    let (_, fields) = server
        .ask(
            "GET",
            "/admin/v3/sources/builtinsources/file/configdefinition",
            None,
        )
        .await;
    assert_eq!(fields[0]["fieldName"], "path");
    server
        .get(
            "/admin/v3/sinks/builtinsinks/none/configdefinition",
            404,
            Value::Null,
        )
        .await;
    let (_, both) = server
        .ask("GET", "/admin/v3/functions/connectors", None)
        .await;
    assert!(
        both[0]["sourceClass"].is_string() && both[0]["sinkClass"].is_string(),
        "{both}"
    );
    server.stop_functions().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_answers_over_http() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::with_functions(directory.path()).await;
    let script = b"process() { [[ $MSG != slow ]] || sleep 5; emit \"<$MSG>\"; }" as &[u8];
    let form = Form::new()
        .json("functionConfig", &config().to_string())
        .file("data", "loud.sh", script);
    assert_eq!(
        server.form("POST", &format!("{BASE}/loud"), form).await.0,
        204
    );
    let ask = |path: &str, headers: &[(&str, &str)], body: &str| {
        let mut request = axum::http::Request::builder().method("POST").uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request
            .body(axum::body::Body::from(body.to_owned()))
            .unwrap()
    };
    let path = "/functions/public/default/loud";
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = [
        ("x-pulsar-key", "k"),
        ("traceparent", trace),
        ("x-pulsar-property-a", "1"),
    ];
    let answer = server.send(ask(path, &headers, "hello")).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["x-pulsar-key"], "k");
    assert_eq!(answer.headers()["traceparent"], trace);
    assert_eq!(answer.headers()["x-pulsar-property-a"], "1");
    let body = http_body_util::BodyExt::collect(answer.into_body())
        .await
        .unwrap();
    assert_eq!(body.to_bytes(), "<hello>");
    let slow = server
        .send(ask(path, &[("x-pulsar-timeout-ms", "200")], "slow"))
        .await;
    assert_eq!(slow.status(), 504);
    let none = server
        .send(ask("/functions/public/default/none", &[], "x"))
        .await;
    assert_eq!(none.status(), 404);
    let wrong = server
        .send(ask(path, &[("x-pulsar-timeout-ms", "soon")], "x"))
        .await;
    assert_eq!(wrong.status(), 400);

    // Who asks for the statistics gets Pulsar's objects.
    let (_, all) = server
        .ask("GET", "/admin/v2/worker-stats/functionsmetrics", None)
        .await;
    assert_eq!(all[0]["name"], "public/default/loud:0");
    let (_, all) = server
        .ask("GET", "/admin/v2/worker-stats/metrics", None)
        .await;
    let one = all
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["dimensions"]["name"] == "loud");
    assert!(
        one.unwrap()["metrics"]["pulsar_function_received_total"].is_number(),
        "{all}"
    );
    let (status, few) = server.ask("PUT", "/admin/v2/worker/rebalance", None).await;
    assert!(
        status == 400 && few["reason"] == "Too few workers (need at least 2)",
        "{few}"
    );
    let (_, drain) = server.ask("GET", "/admin/v2/worker/drain", None).await;
    assert_eq!(drain["status"], "NOT_RUN");
    server
        .get(
            "/admin/v2/worker/leader/drain?workerId=none",
            412,
            Value::Null,
        )
        .await;
    let (_, rolled) = server
        .ask("POST", &format!("{BASE}/loud/rollback"), None)
        .await;
    assert!(
        rolled["reason"]
            .as_str()
            .unwrap()
            .contains("no former version"),
        "{rolled}"
    );
    let (_, versions) = server
        .ask("GET", &format!("{BASE}/loud/versions"), None)
        .await;
    assert_eq!(
        (&versions[0]["version"], &versions[0]["current"]),
        (&json!(1), &json!(true))
    );
    server.stop_functions().await;
}

/// As pulsar-admin sends `--function-type`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_built_in_function_is_refused_by_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::with_functions(directory.path()).await;
    let config = json!({"name": "loud", "inputs": ["words"], "jar": "builtin://echo"});
    let form = Form::new().json("functionConfig", &config.to_string());
    let (status, said) = server.form("POST", &format!("{BASE}/loud"), form).await;
    assert_eq!(status, 400, "{said}");
    assert!(
        said.contains("Built-in function 'echo' is not available"),
        "{said}"
    );
    server.stop_functions().await;
}

/// A line of `/metrics`: its name, its labels, its value.
fn metric(line: &str) -> (String, BTreeMap<String, String>, f64) {
    let (series, value) = line.rsplit_once(' ').unwrap();
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    let labels = labels.trim_end_matches('}').split("\",");
    let label = |text: &str| {
        let (name, value) = text.split_once("=\"")?;
        Some((name.to_owned(), value.trim_end_matches('"').to_owned()))
    };
    let labels = labels.filter_map(label).collect();
    (name.to_owned(), labels, value.parse().unwrap())
}

/// Lines of a file go through a function that fails at one of them into a file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_metrics_are_pulsars_with_its_labels() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::with_functions(directory.path()).await;
    let (from, to) = (
        directory.path().join("from.txt"),
        directory.path().join("to.txt"),
    );
    std::fs::write(&from, "one\nbad\ntwo\n").unwrap();
    let sink = json!({
        "name": "keep", "sinkType": "file", "inputs": ["shouts"],
        "sourceSubscriptionPosition": "Earliest", "configs": {"path": to},
    });
    let function = json!({
        "name": "loud", "sh": "loud.sh", "inputs": ["words"], "output": "shouts", "maxMessageRetries": 0,
        "deadLetterTopic": "dead", "subscriptionPosition": "Earliest",
    });
    let code =
        b"process() { metric size ${#MSG}; [[ $MSG != bad ]] || return 1; emit \"${MSG^^}\"; }";
    let source = json!({
        "name": "lines", "sourceType": "file", "topicName": "words", "configs": {"path": from},
    });
    let at = |kind: &str, name: &str| format!("/admin/v3/{kind}/public/default/{name}");
    for (path, form) in [
        (
            at("sinks", "keep"),
            Form::new().json("sinkConfig", &sink.to_string()),
        ),
        (
            at("functions", "loud"),
            Form::new()
                .json("functionConfig", &function.to_string())
                .file("data", "loud.sh", code),
        ),
        (
            at("sources", "lines"),
            Form::new().json("sourceConfig", &source.to_string()),
        ),
    ] {
        assert_eq!(server.form("POST", &path, form).await, (204, String::new()));
    }
    for _ in 0..1000 {
        let (_, sink) = server.ask("GET", &at("sinks", "keep/0/status"), None).await;
        let (_, of) = server
            .ask("GET", &at("functions", "loud/0/status"), None)
            .await;
        if sink["numWrittenToSink"] == 2 && of["numUserExceptions"] == 1 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    server
        .change("POST", &at("functions", "loud/stop"), None, 204)
        .await;
    let (_, text) = server.text("GET", "/metrics/").await;
    let all: Vec<_> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(metric)
        .collect();
    let summary = |name: &str| {
        [
            name.to_owned(),
            format!("{name}_sum"),
            format!("{name}_count"),
        ]
    };
    let both = |names: &[&str]| -> Vec<String> {
        let each = names.iter();
        each.flat_map(|name| [format!("{name}_total"), format!("{name}_1min")])
            .chain(["last_invocation".to_owned()])
            .collect()
    };
    let labels = [
        "cluster",
        "fqfn",
        "instance_id",
        "name",
        "namespace",
        "tenant",
    ];
    let exactly = [
        (
            "pulsar_function_",
            [
                both(&[
                    "processed_successfully",
                    "received",
                    "system_exceptions",
                    "user_exceptions",
                ]),
                summary("process_latency_ms").to_vec(),
                summary("process_latency_ms_1min").to_vec(),
                summary("user_metric_").to_vec(),
                vec!["user_exception".to_owned()],
            ]
            .concat(),
        ),
        (
            "pulsar_source_",
            both(&[
                "received",
                "source_exceptions",
                "system_exceptions",
                "written",
            ]),
        ),
        (
            "pulsar_sink_",
            both(&[
                "received",
                "sink_exceptions",
                "system_exceptions",
                "written",
            ]),
        ),
        (
            "pulsar_function_worker_",
            [
                summary("schedule_execution_time_total_ms").to_vec(),
                summary("schedule_strategy_execution_time_ms")[1..].to_vec(),
                summary("rebalance_execution_time_total_ms")[1..].to_vec(),
                summary("rebalance_strategy_execution_time_ms")[1..].to_vec(),
                summary("drain_execution_time_total_ms")[1..].to_vec(),
                summary("start_instance_process_time_ms").to_vec(),
                summary("stop_instance_process_time_ms").to_vec(),
                [
                    "instance_count",
                    "is_leader",
                    "start_up_time_ms",
                    "total_expected_instance_count",
                    "total_function_count",
                ]
                .map(str::to_owned)
                .to_vec(),
            ]
            .concat(),
        ),
    ];
    for (prefix, names) in &exactly {
        let is_workers = |name: &str| name.starts_with("pulsar_function_worker_");
        let of_worker = is_workers(prefix);
        let mut found = BTreeSet::new();
        for (name, has, _) in &all {
            let Some(short) = name
                .strip_prefix(prefix)
                .filter(|_| is_workers(name) == of_worker)
            else {
                continue;
            };
            found.insert(short.to_owned());
            let mut wanted: Vec<&str> = if of_worker {
                vec!["cluster"]
            } else {
                labels.to_vec()
            };
            wanted.extend(["error"].iter().filter(|_| short == "user_exception"));
            wanted.extend(
                ["metric"]
                    .iter()
                    .filter(|_| short.starts_with("user_metric_")),
            );
            wanted.extend(["quantile"].iter().filter(|_| has.contains_key("quantile")));
            wanted.sort_unstable();
            assert_eq!(has.keys().collect::<Vec<_>>(), wanted, "{name}");
        }
        assert_eq!(found, names.iter().cloned().collect(), "{prefix}");
    }
    let value = |name: &str| {
        let found = all
            .iter()
            .find(|(it, has, _)| it == name && !has.contains_key("quantile"));
        found.unwrap_or_else(|| panic!("no {name}")).2
    };
    for (name, wanted) in [
        ("pulsar_source_received_total", 3.0),
        ("pulsar_source_written_total", 3.0),
        ("pulsar_source_written_1min", 3.0),
        ("pulsar_source_source_exceptions_total", 0.0),
        ("pulsar_function_received_total", 3.0),
        ("pulsar_function_received_1min", 3.0),
        ("pulsar_function_processed_successfully_total", 2.0),
        ("pulsar_function_processed_successfully_1min", 2.0),
        ("pulsar_function_user_exceptions_total", 1.0),
        ("pulsar_function_user_exceptions_1min", 1.0),
        ("pulsar_function_system_exceptions_total", 0.0),
        ("pulsar_function_process_latency_ms_count", 3.0),
        ("pulsar_function_process_latency_ms_1min_count", 3.0),
        ("pulsar_function_user_metric__sum", 9.0),
        ("pulsar_function_user_metric__count", 3.0),
        ("pulsar_sink_received_total", 2.0),
        ("pulsar_sink_written_total", 2.0),
        ("pulsar_sink_written_1min", 2.0),
        ("pulsar_sink_sink_exceptions_total", 0.0),
        ("pulsar_function_worker_total_function_count", 3.0),
        ("pulsar_function_worker_total_expected_instance_count", 3.0),
        ("pulsar_function_worker_is_leader", 1.0),
        (
            "pulsar_function_worker_start_instance_process_time_ms_count",
            3.0,
        ),
        (
            "pulsar_function_worker_stop_instance_process_time_ms_count",
            1.0,
        ),
        (
            "pulsar_function_worker_schedule_execution_time_total_ms_count",
            3.0,
        ),
        (
            "pulsar_function_worker_rebalance_execution_time_total_ms_count",
            0.0,
        ),
    ] {
        assert_eq!(value(name), wanted, "{name}");
    }
    assert!(
        value("pulsar_function_last_invocation") > 1e12,
        "in milliseconds"
    );
    for name in [
        "pulsar_function_process_latency_ms",
        "pulsar_function_process_latency_ms_1min",
    ] {
        let of = all
            .iter()
            .filter(|(it, has, _)| it == name && has.contains_key("quantile"));
        let (quantiles, values): (Vec<&str>, Vec<f64>) = of
            .map(|(_, has, value)| (has["quantile"].as_str(), *value))
            .unzip();
        assert_eq!(quantiles, ["0.5", "0.9", "0.99", "0.999"]);
        assert!(values[0] > 0.0 && values.is_sorted(), "{values:?}");
        assert!(value(&format!("{name}_sum")) >= values[3], "{values:?}");
    }
    let what = all
        .iter()
        .find(|(name, ..)| name == "pulsar_function_user_exception")
        .unwrap();
    assert!(
        what.1["error"].contains("status 1") && what.2 > 1e12,
        "{what:?}"
    );
    assert!(
        text.contains("# TYPE pulsar_function_process_latency_ms summary\n"),
        "{text}"
    );
    assert!(
        text.contains("# TYPE pulsar_function_worker_instance_count gauge\n"),
        "{text}"
    );
    server.stop_functions().await;
}

/// What waits is counted once for a component, by all of its inputs, as its status has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_components_is_a_metric() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::with_functions(directory.path()).await;
    let parts = "/admin/v2/persistent/public/default/parts/partitions";
    server.change("PUT", parts, Some(&json!(2)), 204).await;
    let function = json!({
        "name": "loud", "sh": "loud.sh", "inputs": ["words", "parts"], "topicsPattern": "public/default/more-.*",
        "subscriptionPosition": "Earliest", "parallelism": 2,
    });
    let (from, to) = (
        directory.path().join("from.txt"),
        directory.path().join("to.txt"),
    );
    std::fs::write(&from, "").unwrap();
    let sink = json!({
        "name": "keep", "sinkType": "file", "inputs": ["words"], "configs": {"path": to},
        "sourceSubscriptionPosition": "Earliest",
    });
    let source = json!({
        "name": "lines", "sourceType": "file", "topicName": "lines", "configs": {"path": from},
    });
    let function = Form::new()
        .json("functionConfig", &function.to_string())
        .file("data", "loud.sh", b"process() { :; }");
    let sink = Form::new().json("sinkConfig", &sink.to_string());
    let source = Form::new().json("sourceConfig", &source.to_string());
    server.produce("more-1", &["before"]).await;
    for (kind, name, form) in [
        ("functions", "loud", function),
        ("sinks", "keep", sink),
        ("sources", "lines", source),
    ] {
        let path = format!("/admin/v3/{kind}/public/default/{name}");
        assert_eq!(server.form("POST", &path, form).await, (204, String::new()));
    }
    for path in ["functions/public/default/loud", "sinks/public/default/keep"] {
        let path = format!("/admin/v3/{path}/stop");
        server.change("POST", &path, None, 204).await;
    }
    let read = server.backlog("more-1", "public/default/loud").await;
    server.produce("words", &["a", "b"]).await;
    server.produce("parts", &["a", "b", "c", "d"]).await;
    server.produce("more-1", &["a", "b", "c"]).await;
    server.produce("other", &["a"]).await;
    // Whoever uses a topic has it in memory; a topic that nobody uses is not counted.
    let client = server.client();
    let mut producers = Vec::new();
    for topic in ["words", "parts", "more-1"] {
        producers.push(client.producer(topic).build().await.unwrap());
    }
    let (_, text) = server.text("GET", "/metrics/").await;
    let found = text
        .lines()
        .filter(|line| line.starts_with("geminga_function_backlog{"))
        .map(metric)
        .map(|(_, labels, value)| {
            assert!(!labels.contains_key("instance_id"), "{labels:?}");
            (labels["kind"].clone(), labels["fqfn"].clone(), value)
        });
    let mut found: Vec<_> = found.collect();
    found.sort_by(|a, b| a.1.cmp(&b.1));
    let waits = 9 + read;
    let own = |kind: &str, name: &str, count: u64| {
        (
            kind.to_owned(),
            format!("public/default/{name}"),
            count as f64,
        )
    };
    let want = [own("sink", "keep", 2), own("function", "loud", waits)];
    assert_eq!(found, want);
    let status = "/admin/v3/functions/public/default/loud/status";
    let (_, status) = server.ask("GET", status, None).await;
    assert_eq!(status["backlog"], waits);
    server.stop_functions().await;
}
