//! The admin API of a worker that runs by itself: who may change what.

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use geminga_functions::{Kind, Worker, WorkerConfig};
use tower::ServiceExt;

use super::harness::Server;
use crate::client::Form;
use crate::rest::worker_router;

const PATH: &str = "/admin/v3/functions/public/default/x";

async fn worker(server: &Server, directory: &std::path::Path) -> Worker {
    let config = WorkerConfig {
        url: "http://worker.example:6750".to_owned(),
        ..WorkerConfig::new(server.client(), directory)
    };
    Worker::start(config).await.unwrap()
}

/// Registers code as a page can, with a form; the status.
async fn register(router: &Router, headers: &[(&str, &str)]) -> u16 {
    let config = r#"{"name":"x","inputs":["in"],"sh":"x.sh"}"#;
    let form = Form::new()
        .json("functionConfig", config)
        .file("data", "x.sh", b"cat\n");
    let (kind, body) = form.finish().in_memory().expect("no file");
    let mut request = Request::post(PATH).header("content-type", kind);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::from(body)).unwrap();
    let answer = router.clone().oneshot(request).await.unwrap();
    answer.status().as_u16()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_web_page_registers_no_code() {
    let server = Server::start().await;
    let directory = tempfile::tempdir().unwrap();
    let worker = worker(&server, directory.path()).await;
    let open = worker_router(worker.clone(), "standalone".to_owned(), None);
    for (origin, host) in [
        ("http://evil.example", "127.0.0.1:6750"),
        ("null", "127.0.0.1:6750"),
        // A name that was made to lead here.
        ("http://evil.example:6750", "evil.example:6750"),
    ] {
        let status = register(&open, &[("origin", origin), ("host", host)]).await;
        assert_eq!(status, 403, "{origin} at {host}");
    }
    assert!(worker.list(Kind::Function, "public", "default").is_empty());
    let own = [
        ("origin", "http://worker.example:6750"),
        ("host", "worker.example:6750"),
    ];
    assert_eq!(register(&open, &own).await, 204);
    // No page asks: a program does.
    assert_eq!(register(&open, &[]).await, 400, "it exists");

    // A token that is empty is one that nobody has.
    for token in ["", "secret"] {
        let closed = worker_router(
            worker.clone(),
            "standalone".to_owned(),
            Some(token.to_owned()),
        );
        for shown in ["", "Bearer ", "Bearer wrong"] {
            let status = register(&closed, &[("authorization", shown)]).await;
            assert_eq!(status, 401, "`{shown}` for `{token}`");
        }
    }
    let closed = worker_router(
        worker.clone(),
        "standalone".to_owned(),
        Some("secret".to_owned()),
    );
    let shown = [
        ("authorization", "Bearer secret"),
        ("origin", "http://evil.example"),
    ];
    assert_eq!(register(&closed, &shown).await, 400, "it exists");
    worker.shutdown(std::time::Duration::from_secs(2)).await;
}
