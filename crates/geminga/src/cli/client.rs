//! The client that commands use, and how its errors look to a person.

use std::time::Duration;

use geminga_client::{Client, Error, Tls};
use geminga_functions::Reach;
use geminga_stdx::Diagnostic;

use super::{Global, tls};
use crate::failure::{Exit, Failure};

/// How long a broker may take to answer at all. Somebody waits: the client itself would go on for
/// as long as an operation may take.
const REACH_MAX: Duration = Duration::from_secs(5);

/// A client that is connected to the service URL of the command line.
pub(crate) async fn client(global: &Global) -> Result<Client, Failure> {
    let mut builder = Client::builder(global.service_url());
    if let Some(token) = global.token()? {
        builder = builder.token(token);
    }
    if global.service_url().starts_with("pulsar+ssl://") {
        let settings = global.tls.settings();
        builder = builder.tls(Tls::new(&settings).map_err(|error| tls::unusable(&error))?);
    }
    let client = builder
        .try_build()
        .map_err(|error| failure(&error, global))?;
    let connected = client.connect(REACH_MAX).await;
    connected.map_err(|error| failure(&error, global))?;
    Ok(client)
}

/// Where the broker of the command line is, for processes that bring a client of their own.
/// Functions of one's own see one's own token.
pub(crate) fn own_reach(global: &Global) -> Result<Reach, Failure> {
    let token = match compat_token() {
        Some(token) => Some(token),
        None => global.token()?,
    };
    Ok(Reach {
        token,
        ..reach(global)
    })
}

/// The same for functions of anybody: they see no token but what the operator gives them.
pub(crate) fn reach(global: &Global) -> Reach {
    Reach {
        service_url: global.service_url().to_owned(),
        token: compat_token(),
    }
}

/// What the operator lets user code see that brings a client of its own. A server's own rights are never shown to it.
pub(crate) fn compat_token() -> Option<String> {
    let token = std::env::var("GEMINGA_COMPAT_TOKEN").ok();
    token.filter(|token| !token.is_empty())
}

/// A client's error as a diagnostic with an exit code.
pub(crate) fn failure(error: &Error, global: &Global) -> Failure {
    use geminga_client::ServerError as Server;
    let url = global.service_url();
    match error.server_error() {
        Some(code) => {
            let exit = match code {
                Server::TopicNotFound | Server::SubscriptionNotFound => Exit::NotFound,
                Server::ConsumerBusy | Server::ProducerBusy | Server::ProducerFenced => {
                    Exit::Conflict
                }
                Server::AuthenticationError | Server::AuthorizationError => Exit::NotAuthorised,
                _ => Exit::Failed,
            };
            Failure::new(
                exit,
                Diagnostic::error("G0502", format!("the broker at {url} refused: {error}"))
                    .help("geminga explain G0502"),
            )
        }
        None if matches!(error, Error::Timeout { .. }) => Failure::new(
            Exit::TimedOut,
            Diagnostic::error("G0503", format!("no answer in time from {url}: {error}"))
                .help("is the server overloaded? try `geminga topics list`"),
        ),
        None if matches!(error, Error::Connect { .. } | Error::Disconnected { .. }) => Failure::new(
            Exit::Unreachable,
            Diagnostic::error("G0501", format!("can't reach the broker at {url}"))
                .cause(error.to_string())
                .help(tls::help(error).unwrap_or(
                    "start one with `geminga standalone`, or name another with `--service-url URL`",
                )),
        ),
        None => Diagnostic::error("G0502", error.to_string()).into(),
    }
}
