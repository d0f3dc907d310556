//! Every endpoint of Pulsar's API and of ours, with no, wrong, weak and right credentials.

use axum::body::Body;
use axum::http::Request;
use geminga_broker::BrokerConfig;
use geminga_broker::auth::SecurityConfig;
use geminga_broker::auth::token::{SigningKey, make};
use geminga_proto::key::encode_base64;
use serde_json::{Value, json};

use super::harness::Server;

pub(super) const SECRET: [u8; 32] = [5; 32];
const PULSAR: &str = include_str!("../../endpoint/pulsar.txt");

pub(crate) fn token(role: &str) -> String {
    make(&SigningKey::Secret(&SECRET), None, role, None).unwrap()
}

pub(crate) async fn house() -> Server {
    let security = SecurityConfig {
        authentication_enabled: true,
        authentication_providers: vec!["token".to_owned()],
        authorization_enabled: true,
        super_user_roles: vec!["root".to_owned()],
        token_secret_key: Some(format!("data:;base64,{}", encode_base64(&SECRET))),
        ..SecurityConfig::default()
    };
    let config = BrokerConfig {
        security,
        ..BrokerConfig::default()
    };
    let server = Server::with(config).await;
    let tenant = json!({"adminRoles": ["boss"], "allowedClusters": ["standalone"]});
    for (method, path, body) in [
        ("PUT", "/admin/v2/tenants/t", tenant),
        ("PUT", "/admin/v2/namespaces/t/n", json!({})),
        (
            "POST",
            "/admin/v2/namespaces/t/n/permissions/maker",
            json!(["produce"]),
        ),
        (
            "POST",
            "/admin/v2/namespaces/t/n/permissions/reader",
            json!(["consume"]),
        ),
        (
            "POST",
            "/admin/v2/namespaces/t/n/permissions/coder",
            json!(["functions"]),
        ),
    ] {
        let (status, answer) = ask(&server, method, path, Some(&token("root")), &body).await;
        assert_eq!(status, 204, "{method} {path}: {answer}");
    }
    server
}

pub(super) async fn ask(
    server: &Server,
    method: &str,
    path: &str,
    token: Option<&str>,
    body: &Value,
) -> (u16, String) {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", "application/json");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let body = match body {
        Value::Null => Body::empty(),
        body => Body::from(body.to_string()),
    };
    let response = server.send(request.body(body).unwrap()).await;
    let status = response.status().as_u16();
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await;
    (
        status,
        String::from_utf8_lossy(&bytes.unwrap()).into_owned(),
    )
}

/// A real path for each of the table's, in the tenant `t`.
fn endpoints() -> Vec<(String, String)> {
    let mut all = Vec::new();
    for line in PULSAR.lines() {
        let Some((pattern, methods)) = line.split_once(' ') else {
            continue;
        };
        let path: Vec<&str> = pattern
            .split('/')
            .map(|segment| if segment == "*" { "t" } else { segment })
            .collect();
        for method in methods.split(',') {
            all.push((method.to_owned(), path.join("/")));
        }
    }
    all
}

fn is_open(path: &str) -> bool {
    path.starts_with("/metrics") || path == "/status.html"
}

#[tokio::test]
async fn nothing_is_answered_to_nobody() {
    let server = house().await;
    let forged = make(&SigningKey::Secret(&[1; 32]), None, "root", None).unwrap();
    let expired = make(&SigningKey::Secret(&SECRET), None, "root", Some(1)).unwrap();
    let endpoints = endpoints();
    assert!(endpoints.len() > 400, "{}", endpoints.len());
    for (method, path) in &endpoints {
        if is_open(path) {
            continue;
        }
        for token in [
            None,
            Some(forged.as_str()),
            Some(&expired),
            Some("x"),
            Some(""),
        ] {
            let (status, answer) = ask(&server, method, path, token, &Value::Null).await;
            assert_eq!(status, 401, "{method} {path} {token:?}: {answer}");
            assert!(!answer.contains("stranger") && !answer.contains(&forged));
        }
    }
}

#[tokio::test]
async fn a_stranger_gets_no_further_than_what_everybody_may_see() {
    let server = house().await;
    let stranger = token("stranger");
    let mut allowed = Vec::new();
    for (method, path) in endpoints() {
        if is_open(&path) {
            continue;
        }
        let (status, _) = ask(&server, &method, &path, Some(&stranger), &Value::Null).await;
        if !matches!(status, 401 | 403) {
            allowed.push(format!("{method} {path}"));
        }
    }
    allowed.retain(|it| {
        !it.ends_with("/connectors") && !it.contains("/builtin") && !it.ends_with("brokers/ready")
    });
    assert_eq!(allowed, ["GET /admin/v2/clusters"]);
}

/// What some of the roles may do: the rest is the rules' own test.
#[tokio::test]
async fn roles_may_do_what_was_granted() {
    let server = house().await;
    let topic = "/admin/v2/persistent/t/n/x";
    let made = ask(&server, "PUT", topic, Some(&token("boss")), &Value::Null).await;
    assert_eq!(made.0, 204, "{made:?}");
    let string = json!({"type": "STRING", "schema": ""});
    for (method, path, body, allowed) in [
        // Of root, boss, maker, reader, coder.
        ("GET", "/admin/v2/tenants".to_owned(), Value::Null, "10000"),
        (
            "GET",
            "/admin/v2/namespaces/t".to_owned(),
            Value::Null,
            "11000",
        ),
        (
            "GET",
            "/admin/v2/namespaces/t/n/topics".to_owned(),
            Value::Null,
            "11110",
        ),
        ("GET", format!("{topic}/stats"), Value::Null, "11110"),
        (
            "GET",
            format!("{topic}/subscriptions"),
            Value::Null,
            "11010",
        ),
        (
            "PUT",
            format!("{topic}/subscription/s"),
            Value::Null,
            "11010",
        ),
        ("PUT", format!("{topic}/unload"), Value::Null, "11000"),
        (
            "POST",
            "/admin/v2/namespaces/t/n/retention".to_owned(),
            json!({"retentionTimeInMinutes": 1, "retentionSizeInMB": 1}),
            "11000",
        ),
        (
            "POST",
            "/admin/v2/schemas/t/n/x/schema".to_owned(),
            string,
            "11100",
        ),
        (
            "GET",
            "/lookup/v2/topic/persistent/t/n/x".to_owned(),
            Value::Null,
            "11110",
        ),
        (
            "GET",
            "/admin/v3/functions/t/n".to_owned(),
            Value::Null,
            "11001",
        ),
        (
            "GET",
            "/admin/v2/namespaces/public".to_owned(),
            Value::Null,
            "10000",
        ),
        ("GET", format!("{topic}/permissions"), Value::Null, "11000"),
    ] {
        let mut got = String::new();
        for role in ["root", "boss", "maker", "reader", "coder"] {
            let (status, _) = ask(&server, method, &path, Some(&token(role)), &body).await;
            got.push(if matches!(status, 401 | 403) {
                '0'
            } else {
                '1'
            });
        }
        assert_eq!(got, allowed, "{method} {path}");
    }
}

/// A group's limits are for super users to give: in a new namespace too.
#[tokio::test]
async fn a_tenant_makes_no_namespace_in_a_resource_group() {
    let server = house().await;
    let group = json!({"publishRateInMsgs": 1});
    let root = token("root");
    let made = ask(
        &server,
        "PUT",
        "/admin/v2/resourcegroups/g",
        Some(&root),
        &group,
    )
    .await;
    assert_eq!(made.0, 204, "{made:?}");
    for (role, namespace, group, status) in [
        ("boss", "plain", None, 204),
        ("boss", "limited", Some("g"), 403),
        ("root", "limited", Some("none"), 412),
        ("root", "limited", Some("g"), 204),
    ] {
        let path = format!("/admin/v2/namespaces/t/{namespace}");
        let body = json!({ "resource_group_name": group });
        let got = ask(&server, "PUT", &path, Some(&token(role)), &body).await;
        assert_eq!(got.0, status, "{role} {namespace} {group:?}: {got:?}");
    }
}

#[tokio::test]
async fn permissions_are_given_shown_and_taken() {
    let server = house().await;
    let root = token("root");
    let topic = "/admin/v2/persistent/t/n/x/permissions";
    let namespace = "/admin/v2/namespaces/t/n";
    let none = Value::Null;
    let give = json!(["consume", "produce"]);
    for (method, path, body, status, answer) in [
        ("POST", format!("{topic}/guest"), &give, 204, ""),
        (
            "GET",
            topic.to_owned(),
            &none,
            200,
            r#""guest":["produce","consume"]"#,
        ),
        ("DELETE", format!("{topic}/guest"), &none, 204, ""),
        ("DELETE", format!("{topic}/guest"), &none, 412, ""),
        (
            "DELETE",
            format!("{namespace}/permissions/maker"),
            &none,
            204,
            "",
        ),
        (
            "GET",
            format!("{namespace}/permissions"),
            &none,
            200,
            r#"{"coder":["functions"],"reader":["consume"]}"#,
        ),
        (
            "POST",
            format!("{namespace}/permissions/subscription/s"),
            &json!(["a", "b"]),
            204,
            "",
        ),
        (
            "DELETE",
            format!("{namespace}/permissions/s/a"),
            &none,
            204,
            "",
        ),
        (
            "GET",
            format!("{namespace}/permissions/subscription"),
            &none,
            200,
            r#"{"s":["b"]}"#,
        ),
        (
            "GET",
            format!("{namespace}/subscriptionAuthMode"),
            &none,
            200,
            r#""None""#,
        ),
        (
            "POST",
            format!("{namespace}/subscriptionAuthMode"),
            &json!("Prefix"),
            204,
            "",
        ),
        (
            "GET",
            format!("{namespace}/subscriptionAuthMode"),
            &none,
            200,
            r#""Prefix""#,
        ),
        (
            "POST",
            format!("{namespace}/permissions/x"),
            &json!(["destroy"]),
            400,
            "unknown variant",
        ),
    ] {
        let got = ask(&server, method, &path, Some(&root), body).await;
        assert_eq!(got.0, status, "{method} {path}: {got:?}");
        assert!(got.1.contains(answer), "{method} {path}: {got:?}");
    }
}
