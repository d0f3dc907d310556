//! The client that commands use, and how its errors look to a person.

use std::time::Duration;

use geminga_client::{Client, Error};
use geminga_stdx::Diagnostic;

use super::Global;
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
    let client = builder
        .try_build()
        .map_err(|error| failure(&error, global))?;
    let connected = client.connect(REACH_MAX).await;
    connected.map_err(|error| failure(&error, global))?;
    Ok(client)
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
                .help(
                    "start one with `geminga standalone`, or name another with `--service-url URL`",
                ),
        ),
        None => Diagnostic::error("G0502", error.to_string()).into(),
    }
}
