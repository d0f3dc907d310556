//! Requests that a web page makes by somebody's browser, without his knowing.
//!
//! A browser lets any page send forms and open WebSockets to any address that it can reach, and says
//! in `Origin` where the page is from. Where nobody is asked who he is, or where the browser shows a
//! certificate or password by itself, such a page would have all that the person has: with a form it
//! could register a function, which is code that runs here. What must hold: a change, or a
//! WebSocket, that a page of another site asks for is refused, unless it shows a token, which no
//! browser adds by itself, or `gemingaAllowedOrigins` names the site.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::header;

use super::Admin;
use crate::error::{Answer, ApiError};

/// `has_token` says that the request shows one.
pub(super) fn check(admin: &Admin, request: &Request, has_token: bool) -> Answer<()> {
    let is_socket = request.uri().path().starts_with("/ws/");
    if request.method().is_safe() && !is_socket {
        // A page cannot read the answer.
        return Ok(());
    }
    let text = |name: &header::HeaderName| {
        let value = request.headers().get(name);
        value.map(|value| value.to_str().unwrap_or_default())
    };
    let Some(origin) = text(&header::ORIGIN) else {
        return Ok(());
    };
    let host = text(&header::HOST).or(request.uri().authority().map(|it| it.as_str()));
    let broker = admin.broker();
    let asks_who = broker.asks_who();
    let known = known_hosts(admin);
    let allowed = &broker.config().geminga_allowed_origins;
    let is_allowed = asks_who && has_token
        || allowed.iter().any(|it| it == "*" || it == origin)
        || is_own(origin, host.unwrap_or_default(), asks_who, &known);
    match is_allowed {
        true => Ok(()),
        false => {
            tracing::warn!(
                origin,
                path = request.uri().path(),
                "refused: a page of another site"
            );
            Err(ApiError::forbidden(format!(
                "a page of `{origin}` may not ask for this; name it in `gemingaAllowedOrigins` to \
                 allow it"
            )))
        }
    }
}

/// Names by which this server is known to be reached.
fn known_hosts(admin: &Admin) -> Vec<String> {
    let config = admin.broker().config();
    let listeners = config.advertised_listeners.as_deref().unwrap_or_default();
    let urls = listeners.split(',').chain([admin.http_url()]);
    let hosts = urls.filter_map(host_of);
    let named = config.advertised_address.as_deref();
    hosts
        .chain(named.map(|it| name_of(it).to_ascii_lowercase()))
        .collect()
}

/// The host that a URL names.
pub(super) fn host_of(url: &str) -> Option<String> {
    let (_, rest) = url.split_once("://")?;
    Some(name_of(rest).to_ascii_lowercase())
}

/// Whether a page of `origin` is one of the server's own at `host`, or both are on this machine.
/// Where nobody is asked who he is, the name of the host must be known: anybody's name may be made to
/// lead to any address.
pub(super) fn is_own(origin: &str, host: &str, asks_who: bool, known: &[String]) -> bool {
    let Some((scheme, page)) = origin.split_once("://") else {
        // `null`: a page without a site of its own.
        return false;
    };
    let usual = if scheme == "https" { ":443" } else { ":80" };
    let plain = |authority: &str| {
        let lower = authority.to_ascii_lowercase();
        lower
            .strip_suffix(usual)
            .map_or(lower.clone(), str::to_owned)
    };
    if is_this_machine(name_of(page)) && is_this_machine(name_of(host)) {
        return true;
    }
    let name = name_of(host).to_ascii_lowercase();
    let is_address = name.parse::<IpAddr>().is_ok();
    plain(page) == plain(host) && (asks_who || is_address || known.contains(&name))
}

/// The host of `host:port`, without the brackets of IPv6.
fn name_of(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    authority.split([':', '/']).next().unwrap_or_default()
}

fn is_this_machine(name: &str) -> bool {
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_pages_are_ours() {
        let known = ["geminga.example".to_owned()];
        for (origin, host, open, closed) in [
            ("http://127.0.0.1:8080", "127.0.0.1:8080", true, true),
            ("http://localhost:3000", "127.0.0.1:8080", true, true),
            ("http://[::1]:3000", "localhost:8080", true, true),
            ("http://10.0.0.1:8080", "10.0.0.1:8080", true, true),
            ("http://Geminga.example", "geminga.example:80", true, true),
            ("https://geminga.example", "geminga.example:443", true, true),
            ("http://evil.example", "127.0.0.1:8080", false, false),
            ("http://evil.example:8080", "localhost:8080", false, false),
            ("http://10.0.0.1:81", "10.0.0.1:8080", false, false),
            (
                "http://localhost.evil.example",
                "localhost:8080",
                false,
                false,
            ),
            ("http://127.0.0.1.evil.example", "127.0.0.1", false, false),
            ("null", "127.0.0.1:8080", false, false),
            ("", "", false, false),
            // Its name was made to lead here.
            ("http://evil.example:8080", "evil.example:8080", false, true),
        ] {
            for (asks_who, expected) in [(false, open), (true, closed)] {
                let own = is_own(origin, host, asks_who, &known);
                assert_eq!(own, expected, "{origin} at {host}, asks {asks_who}");
            }
        }
    }
}
