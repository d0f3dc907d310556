//! The endpoints of Pulsar 4.0.8, so that a request we do not serve is refused by name.
//!
//! Owns the table of paths and methods. What must hold: a path nobody knows is 404, a known path
//! with the wrong method is 405, and an endpoint that Pulsar has and Geminga has not is 501 with the
//! endpoint in the reason. Nothing is answered with a success that did nothing.

use axum::http::{Method, Uri};

use crate::error::ApiError;

/// `path METHOD,METHOD` a line; `*` stands for one segment.
const PULSAR: &str = include_str!("endpoint/pulsar.txt");

/// Answers a request that no route took.
pub(crate) async fn refuse(method: Method, uri: Uri) -> ApiError {
    refusal(&method, uri.path(), false)
}

/// Answers a request whose path has a route, but not for this method.
pub(crate) async fn refuse_method(method: Method, uri: Uri) -> ApiError {
    refusal(&method, uri.path(), true)
}

fn refusal(method: &Method, path: &str, path_is_served: bool) -> ApiError {
    let methods = methods_of(path);
    if methods.iter().any(|known| *known == method.as_str()) {
        return ApiError::not_implemented(format!(
            "`{method} {path}` is not implemented by Geminga"
        ));
    }
    if path_is_served || !methods.is_empty() {
        return ApiError::not_allowed(format!("`{method}` is not allowed on `{path}`"));
    }
    ApiError::not_found(format!("there is no `{path}`"))
}

/// The methods that Pulsar has for a path.
fn methods_of(path: &str) -> Vec<&'static str> {
    let wanted: Vec<&str> = path.trim_end_matches('/').split('/').collect();
    PULSAR
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(pattern, _)| matches(pattern, &wanted))
        .flat_map(|(_, methods)| methods.split(','))
        .collect()
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
            ("GET", "/admin/v2/bookies/all", 501),
            ("DELETE", "/admin/v2/bookies/all", 405),
            ("POST", "/admin/v2/persistent/t/n/x/dispatchRate", 501),
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
