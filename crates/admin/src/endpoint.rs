//! The endpoints of Pulsar 4.0.8, so that a request we do not serve is refused by name.
//!
//! Owns the table of paths and methods. What must hold: a path nobody knows is 404, a known path
//! with the wrong method is 405, and an endpoint that Pulsar has and Geminga has not is 501 with the
//! endpoint in the reason. Nothing is answered with a success that did nothing.

use axum::http::{Method, Uri};

use crate::error::ApiError;

/// `path METHOD,METHOD` a line; `*` stands for one segment.
const PULSAR: &str = include_str!("endpoint/pulsar.txt");

/// Why Pulsar has an endpoint and Geminga has not, by a part of its pattern; the first that fits.
const REASONS: &[(&str, &str)] = &[
    (
        "/admin/v2/non-persistent/",
        "non-persistent topics keep nothing, policies neither: set the namespace's",
    ),
    (
        "ffload",
        "entries stay on this server's disk, there is no other storage to offload them to",
    ),
    ("/shadowTopics", "a topic cannot have shadows"),
    ("/migrat", "clients are not sent to another cluster"),
    (
        "/proxy-stats/",
        "WebSockets are part of this server: see the topics' stats and `/metrics`",
    ),
    (
        "/broker-stats/mbeans",
        "this server is not a Java program: see `/metrics`",
    ),
    (
        "/broker-stats/bookieops",
        "there are no bookies, this server stores on its own disk",
    ),
    (
        "InternalStats/",
        "transactions are kept in the metadata, not in a log with ledgers of its own",
    ),
    ("/backlog", "see the topic's `stats` and `internalStats`"),
    (
        "/admin/v2/namespaces/*/*/*",
        "a bundle is a range of names and cannot be deleted: delete its topics",
    ),
    (
        "/metadata",
        "schemas are kept in the metadata, not in ledgers with positions: see `schemas get`",
    ),
    (
        "/topics/",
        "messages are sent by the binary protocol or by WebSocket",
    ),
];

/// Answers a request that no route took.
pub(crate) async fn refuse(method: Method, uri: Uri) -> ApiError {
    refusal(&method, uri.path(), false)
}

/// Answers a request whose path has a route, but not for this method.
pub(crate) async fn refuse_method(method: Method, uri: Uri) -> ApiError {
    refusal(&method, uri.path(), true)
}

fn refusal(method: &Method, path: &str, path_is_served: bool) -> ApiError {
    let known = known(path);
    let mut with_method = known.iter().filter(|(_, methods)| has(methods, method));
    if let Some((pattern, _)) = with_method.next() {
        let why = REASONS.iter().find(|(part, _)| pattern.contains(part));
        let why = why.map_or(String::new(), |(_, why)| format!(": {why}"));
        return ApiError::not_implemented(format!(
            "`{method} {path}` is not implemented by Geminga{why}"
        ));
    }
    if path_is_served || !known.is_empty() {
        return ApiError::not_allowed(format!("`{method}` is not allowed on `{path}`"));
    }
    ApiError::not_found(format!("there is no `{path}`"))
}

/// The patterns that fit a path and the methods that Pulsar has for them.
fn known(path: &str) -> Vec<(&'static str, &'static str)> {
    let wanted: Vec<&str> = path.trim_end_matches('/').split('/').collect();
    endpoints()
        .filter(|(pattern, _)| matches(pattern, &wanted))
        .collect()
}

/// All of Pulsar's: patterns, and methods with commas between.
pub(crate) fn endpoints() -> impl Iterator<Item = (&'static str, &'static str)> {
    PULSAR.lines().filter_map(|line| line.split_once(' '))
}

fn has(methods: &str, method: &Method) -> bool {
    methods.split(',').any(|known| known == method.as_str())
}

fn matches(pattern: &str, path: &[&str]) -> bool {
    let mut segments = pattern.split('/');
    path.iter().all(|have| {
        segments
            .next()
            .is_some_and(|want| want == *have || (want == "*" && !have.is_empty()))
    }) && segments.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_whether_an_endpoint_is_unknown_or_not_built() {
        for (method, path, status) in [
            ("GET", "/admin/v2/broker-stats/mbeans", 501),
            ("DELETE", "/admin/v2/broker-stats/mbeans", 405),
            ("PUT", "/admin/v2/persistent/t/n/x/offload", 501),
            ("POST", "/admin/v2/non-persistent/t/n/x/dispatchRate", 501),
            ("GET", "/ws/v2/consummer/persistent/a/b/c/d", 404),
            ("GET", "/admin/v2/bookeis/all", 404),
            ("GET", "/", 404),
            ("GET", "/admin/v2/bookies//all", 404),
        ] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let refused = refusal(&method, path, false);
            assert_eq!(refused.status.as_u16(), status, "{method} {path}");
            assert!(refused.reason.contains(path), "{refused}");
        }
        assert_eq!(
            refusal(&Method::PUT, "/admin/v2/clusters", true)
                .status
                .as_u16(),
            405
        );
    }
}
