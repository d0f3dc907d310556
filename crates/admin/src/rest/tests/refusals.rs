//! What is refused: unknown paths, fields, parameters, names, sizes, and endpoints not built.

use axum::body::Body;
use axum::http::Request;
use serde_json::json;

use super::harness::{Server, body};

#[tokio::test]
async fn every_refusal_has_a_status_and_a_reason() {
    let server = Server::start().await;
    let topics = "/admin/v2/persistent/public/default";
    for (method, path, json, status, word) in [
        ("GET", "/", None, 404, "there is no `/`"),
        ("GET", "/admin/v2/tenantz", None, 404, "tenantz"),
        (
            "PATCH",
            "/admin/v2/tenants",
            None,
            405,
            "`PATCH` is not allowed",
        ),
        (
            "GET",
            "/admin/v2/broker-stats/mbeans",
            None,
            501,
            "not a Java program",
        ),
        (
            "PUT",
            "/admin/v2/namespaces/public/default/offloadThreshold",
            None,
            501,
            "no other storage",
        ),
        (
            "PUT",
            "/admin/v2/clusters/x",
            Some(json!({"brokerClientTlsEnabled": true})),
            400,
            "`brokerClientTlsEnabled`",
        ),
        (
            "POST",
            "/admin/v2/namespaces/public/default/replication",
            Some(json!(["standalone", "elsewhere"])),
            403,
            "Invalid cluster id: elsewhere",
        ),
        (
            "PUT",
            "/admin/v2/tenants/t",
            Some(json!({"adminRole": []})),
            400,
            "did you mean `adminRoles`",
        ),
        (
            "PUT",
            "/admin/v2/tenants/t",
            Some(json!("text")),
            400,
            "not valid",
        ),
        (
            "PUT",
            "/admin/v2/namespaces/public/x",
            Some(json!({"offload_threshold": 5})),
            400,
            "`offload_threshold`",
        ),
        (
            "DELETE",
            "/admin/v2/persistent/public/default/x?forse=true",
            None,
            400,
            "`force`",
        ),
        (
            "DELETE",
            "/admin/v2/persistent/public/default/x?force=maybe",
            None,
            400,
            "query parameter",
        ),
        (
            "GET",
            "/admin/v2/persistent/pub%20lic/default",
            None,
            412,
            "pub lic",
        ),
        (
            "GET",
            "/admin/v2/persistent/public/none",
            None,
            404,
            "Namespace does not exist",
        ),
        (
            "GET",
            "/admin/v2/persistent/public/default/%FF/stats",
            None,
            400,
            "path",
        ),
        (
            "PUT",
            "/admin/v2/persistent/public/default/x",
            Some(json!({"a": ["b"]})),
            400,
            "not valid",
        ),
        (
            "PUT",
            "/admin/v2/persistent/public/default/x/partitions",
            Some(json!("3")),
            400,
            "not valid",
        ),
        (
            "PUT",
            "/admin/v2/persistent/public/default/x/partitions",
            Some(json!(-3)),
            400,
            "not valid",
        ),
        (
            "POST",
            "/admin/v2/persistent/public/default/x/subscription/s/skip/many",
            None,
            400,
            "path",
        ),
    ] {
        let (got, answer) = server.ask(method, path, json.as_ref()).await;
        assert_eq!(got, status, "{method} {path}: {answer}");
        assert!(
            answer["reason"].as_str().unwrap().contains(word),
            "{method} {path}: {answer}"
        );
    }
    server
        .change("PUT", &format!("{topics}/x"), None, 204)
        .await;
    let place = json!({"ledgerId": 0, "entryId": 0, "batchIndex": 3});
    let (status, answer) = server
        .ask("PUT", &format!("{topics}/x/subscription/s"), Some(&place))
        .await;
    assert_eq!(status, 400);
    assert!(
        answer["reason"].as_str().unwrap().contains("`batchIndex`"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_body_that_is_too_long_is_cut_off() {
    let server = Server::start().await;
    let long = vec![b' '; crate::request::JSON_BYTES_MAX + 1];
    let request = Request::put("/admin/v2/tenants/t")
        .body(Body::from(long))
        .unwrap();
    let response = server.send(request).await;
    assert_eq!(response.status().as_u16(), 413);
    assert!(
        String::from_utf8(body(response).await)
            .unwrap()
            .contains("longer than")
    );
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_arrive_is_given_up() {
    let server = Server::start().await;
    let stuck = Body::new(Stuck);
    let request = Request::put("/admin/v2/tenants/t").body(stuck).unwrap();
    // Longer than the deadline under test; the clock is paused.
    let answer = tower::ServiceExt::oneshot(server.router(), request);
    assert_eq!(answer.await.unwrap().status().as_u16(), 408);
}

/// A body of which nothing ever comes.
struct Stuck;

impl hyper::body::Body for Stuck {
    type Data = bytes::Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<bytes::Bytes>, Self::Error>>> {
        std::task::Poll::Pending
    }
}
