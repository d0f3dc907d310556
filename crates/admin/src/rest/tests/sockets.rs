//! WebSockets and pages of other sites: who gets in, and for how long.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::http::Request;
use geminga_broker::BrokerConfig;
use geminga_broker::auth::token::{SigningKey, make};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::guard::{SECRET, ask, house, token};
use super::harness::Server;

/// Shakes hands; the status and the connection.
async fn knock(address: SocketAddr, path: &str, headers: &str) -> (u16, TcpStream) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, stream)
}

/// The code and the reason of the close frame that comes next.
async fn closed(stream: &mut TcpStream) -> (u16, String) {
    let read = async {
        let mut head = [0; 2];
        stream.read_exact(&mut head).await.unwrap();
        assert_eq!(head[0], 0x88, "a close frame");
        let mut content = vec![0; usize::from(head[1])];
        stream.read_exact(&mut content).await.unwrap();
        let code = u16::from_be_bytes([content[0], content[1]]);
        (code, String::from_utf8(content[2..].to_vec()).unwrap())
    };
    let waited = tokio::time::timeout(Duration::from_secs(10), read).await;
    waited.expect("a close frame in time")
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

#[tokio::test]
async fn a_pattern_opens_no_subscription_of_others() {
    let server = house().await;
    let address = server.listen().await;
    let root = token("root");
    let namespace = "/admin/v2/namespaces/t/n";
    for (path, body) in [
        ("permissions/other", json!(["consume"])),
        ("permissions/subscription/s", json!(["other"])),
    ] {
        let path = format!("{namespace}/{path}");
        let made = ask(&server, "POST", &path, Some(&root), &body).await;
        assert_eq!(made.0, 204, "{made:?}");
    }
    let wanted = "topicsPattern=persistent://t/n/.*";
    for (role, subscription, expected) in [
        ("reader", "s", 403),
        ("other", "s", 101),
        ("reader", "free", 101),
        ("maker", "free", 403),
    ] {
        let path = format!("/ws/v3/consumer/{subscription}?{wanted}");
        let (status, _) = knock(address, &path, &bearer(&token(role))).await;
        assert_eq!(status, expected, "{role} {subscription}");
    }
    // What must begin with the role's name.
    let mode = format!("{namespace}/subscriptionAuthMode");
    let set = ask(&server, "POST", &mode, Some(&root), &json!("Prefix")).await;
    assert_eq!(set.0, 204, "{set:?}");
    for (subscription, expected) in [("free", 403), ("reader-1", 101)] {
        let path = format!("/ws/v3/consumer/{subscription}?{wanted}");
        let (status, _) = knock(address, &path, &bearer(&token("reader"))).await;
        assert_eq!(status, expected, "{subscription}");
    }
}

#[tokio::test]
async fn a_session_ends_with_its_token_and_with_its_right() {
    let server = house().await;
    let address = server.listen().await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let key = SigningKey::Secret(&SECRET);
    let short = make(&key, None, "maker", Some(now.as_secs() + 2)).unwrap();
    let path = "/ws/v2/producer/persistent/t/n/x";
    let (status, mut stream) = knock(address, path, &bearer(&short)).await;
    assert_eq!(status, 101);
    let end = closed(&mut stream).await;
    assert_eq!(end, (1008, "the token has expired".to_owned()));

    let (status, mut stream) = knock(address, path, &bearer(&token("maker"))).await;
    assert_eq!(status, 101);
    let right = "/admin/v2/namespaces/t/n/permissions/maker";
    let taken = ask(&server, "DELETE", right, Some(&token("root")), &json!(null)).await;
    assert_eq!(taken.0, 204, "{taken:?}");
    let end = closed(&mut stream).await;
    assert_eq!(end.0, 1008, "{end:?}");
    assert!(end.1.contains("taken back"), "{end:?}");
}

/// A page anywhere can send a form to any address that the browser reaches: it must not register a
/// function, or read a topic, at somebody's own server.
#[tokio::test]
async fn a_page_of_another_site_changes_nothing() {
    let server = Server::start().await;
    let send = async |server: &Server, method: &str, path: &str, origin: &str| {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "127.0.0.1:8080")
            .header("content-type", "text/plain")
            .header("origin", origin);
        let answer = server.send(request.body(Body::from("{}")).unwrap()).await;
        answer.status().as_u16()
    };
    let namespace = "/admin/v2/namespaces/public/new";
    for origin in ["https://evil.example", "null", "http://evil.example:8080"] {
        for (method, path) in [
            ("POST", "/admin/v3/functions/public/default/f"),
            ("PUT", namespace),
            ("DELETE", "/admin/v2/persistent/public/default/x"),
            ("GET", "/ws/v2/producer/persistent/public/default/x"),
        ] {
            let status = send(&server, method, path, origin).await;
            assert_eq!(status, 403, "{method} {path} {origin}");
        }
        // Its answer is not for the page, since nothing lets it read that.
        let status = send(&server, "GET", "/admin/v2/clusters", origin).await;
        assert_eq!(status, 200);
    }
    let own = send(&server, "PUT", namespace, "http://127.0.0.1:8080").await;
    assert_eq!(own, 204);

    let address = server.listen().await;
    let path = "/ws/v2/producer/persistent/public/default/x";
    let (status, _) = knock(address, path, "Origin: https://evil.example\r\n").await;
    assert_eq!(status, 403);
    let (status, _) = knock(address, path, &format!("Origin: http://{address}\r\n")).await;
    assert_eq!(status, 101);
    let config = BrokerConfig {
        geminga_allowed_origins: vec!["https://app.example".to_owned()],
        ..BrokerConfig::default()
    };
    let server = Server::with(config).await;
    let (status, _) = knock(
        server.listen().await,
        path,
        "Origin: https://app.example\r\n",
    )
    .await;
    assert_eq!(status, 101);
    // With a token, from anywhere: no browser adds one by itself.
    let server = house().await;
    let headers = format!("{}Origin: https://app.example\r\n", bearer(&token("maker")));
    let path = "/ws/v2/producer/persistent/t/n/x";
    let (status, _) = knock(server.listen().await, path, &headers).await;
    assert_eq!(status, 101);
}
