//! CONNECT: who the client is, and what we tell of ourselves; and asking again when what it showed
//! has expired.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use geminga_proto::command::{NO_REQUEST, error};
use geminga_proto::pb::{
    AuthData, CommandAuthChallenge, CommandAuthResponse, CommandConnect, CommandConnected,
    FeatureFlags, ServerError,
};
use geminga_proto::{Command, PROTOCOL_VERSION};
use tokio::time::Instant;

use super::{Closed, Connection};
use crate::auth::{AuthError, Credentials, Session, need_of, refusal_of};

/// What a challenge asks for, in Pulsar's words.
const REFRESH: &[u8] = b"PulsarAuthRefresh";

/// Who the client is.
#[derive(Default)]
pub(crate) struct Login {
    pub(crate) session: Session,
    method: String,
    /// The credentials are those of the one whom a proxy speaks for.
    is_originals: bool,
    /// Whether it can be asked for new credentials.
    can_refresh: bool,
    /// It was, and has not answered.
    is_asked: bool,
    /// When the credentials end, or the wait for new ones does.
    deadline: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Login {
    pub(super) fn poll_expired(&mut self, cx: &mut Context<'_>) -> bool {
        match &mut self.deadline {
            Some(deadline) => deadline.as_mut().poll(cx) == Poll::Ready(()),
            None => false,
        }
    }

    fn wait(&mut self, time: Duration) {
        self.deadline = Some(Box::pin(tokio::time::sleep_until(Instant::now() + time)));
    }
}

/// The method that a client names; very old ones name it by a number.
fn method_of(connect: &CommandConnect) -> &str {
    match connect.auth_method_name.as_deref() {
        Some(name) if !name.is_empty() => name,
        _ => match connect.auth_method {
            Some(1) => "ycav1",
            Some(2) => "athens",
            _ => "none",
        },
    }
}

fn credentials<'a>(method: &str, data: &'a [u8]) -> Credentials<'a> {
    let text = std::str::from_utf8(data).unwrap_or_default();
    match method {
        "token" => Credentials::Token(text),
        "basic" => Credentials::Basic(text),
        "tls" => Credentials::Certificate,
        "none" => Credentials::None,
        _ => Credentials::Unknown,
    }
}

/// Opaque to clients; begins as Pulsar's does.
const SERVER_VERSION: &str = concat!("Pulsar Server4.0.8-geminga-", env!("CARGO_PKG_VERSION"));

impl Connection {
    /// The answer to a command that the client has no right to.
    pub(super) fn refusal(&self, command: &Command) -> Option<Command> {
        if !self.core.config.security.authorization_enabled {
            return None;
        }
        let session = &self.login.session;
        need_of(command)
            .each(|need| self.core.security.authorize(session, need))
            .err()
            .map(|reason| refusal_of(command, &reason))
    }

    /// Finds out who the client is.
    fn log_in(&mut self, connect: &CommandConnect) -> Result<(), AuthError> {
        let core = self.core.clone();
        let security = &core.security;
        if self.peer.is_internal {
            self.login.session.is_internal = true;
            return Ok(());
        }
        if !security.config.authentication_enabled {
            return Ok(());
        }
        let now_ms = core.clock.now_ms();
        let certificate = self.peer.certificate.get().map(String::as_str);
        let method = method_of(connect);
        let shown = credentials(method, connect.auth_data.as_deref().unwrap_or_default());
        let identity = security.authenticate(shown, certificate, now_ms)?;
        let mut original = connect.original_principal.clone();
        let (mut method, mut expires_ms) = (method, identity.expires_ms);
        if security.config.authenticate_original_auth_data
            && let Some(data) = &connect.original_auth_data
        {
            let named = connect.original_auth_method.as_deref().unwrap_or("none");
            let shown = credentials(named, data.as_bytes());
            // Its certificate, if any, stayed with the proxy.
            let behind = security.authenticate(shown, None, now_ms)?;
            // As in Pulsar: what is watched and renewed is what the one behind shows.
            (method, expires_ms) = (named, behind.expires_ms);
            original = Some(behind.role);
            self.login.is_originals = true;
        }
        self.login.session = security.session(identity.role, original)?;
        self.login.method = method.to_owned();
        let flags = connect.feature_flags.as_ref();
        self.login.can_refresh = flags.is_some_and(FeatureFlags::supports_auth_refresh);
        if let Some(at) = expires_ms {
            self.login
                .wait(Duration::from_millis(at.saturating_sub(now_ms)));
        }
        Ok(())
    }

    /// Tells the client as little as Pulsar does.
    fn not_let_in(&self, reason: AuthError) -> Closed {
        let (code, text) = match &reason {
            AuthError::Roles(_) => (ServerError::AuthorizationError, "Invalid roles."),
            _ => (ServerError::AuthenticationError, "Failed to authenticate"),
        };
        self.peer.outbox.send(error(NO_REQUEST, code, text));
        Closed::Refused(reason)
    }

    /// Asks for new credentials, once.
    pub(super) fn credentials_expired(&mut self) -> Result<(), Closed> {
        self.login.deadline = None;
        if self.login.is_asked || !self.login.can_refresh {
            return Err(Closed::Refused(AuthError::Wrong(
                "the credentials have expired",
            )));
        }
        self.login.is_asked = true;
        self.login.wait(Duration::from_secs(
            self.core
                .config
                .security
                .authentication_refresh_check_seconds,
        ));
        self.peer.outbox.send(CommandAuthChallenge {
            server_version: None,
            challenge: Some(AuthData {
                auth_method_name: Some(self.login.method.clone()),
                auth_data: Some(REFRESH.into()),
            }),
            protocol_version: Some(self.peer.protocol()),
        });
        Ok(())
    }

    pub(super) fn handle_auth_response(
        &mut self,
        response: &CommandAuthResponse,
    ) -> Result<(), Closed> {
        if !self.login.is_asked {
            return Err(self.not_let_in(AuthError::Wrong("nobody asked for credentials")));
        }
        let data = response.response.as_ref();
        let method = data
            .and_then(|data| data.auth_method_name.as_deref())
            .filter(|name| !name.is_empty())
            .unwrap_or(&self.login.method);
        let bytes = data.and_then(|data| data.auth_data.as_deref());
        let shown = credentials(method, bytes.unwrap_or_default());
        let certificate = self.peer.certificate.get().map(String::as_str);
        let certificate = certificate.filter(|_| !self.login.is_originals);
        let now_ms = self.core.clock.now_ms();
        let identity = self
            .core
            .security
            .authenticate(shown, certificate, now_ms)
            .map_err(|reason| self.not_let_in(reason))?;
        let session = &self.login.session;
        let known = match self.login.is_originals {
            true => session.principal(),
            false => session.role.as_deref(),
        };
        if known != Some(identity.role.as_str()) {
            return Err(self.not_let_in(AuthError::Wrong("the new credentials are of another")));
        }
        self.login.is_asked = false;
        self.login.deadline = None;
        if let Some(at) = identity.expires_ms {
            self.login
                .wait(Duration::from_millis(at.saturating_sub(now_ms)));
        }
        Ok(())
    }

    pub(super) fn handle_connect(&mut self, connect: &CommandConnect) -> Result<(), Closed> {
        self.log_in(connect)
            .map_err(|reason| self.not_let_in(reason))?;
        let version = connect.protocol_version().clamp(0, PROTOCOL_VERSION);
        self.peer.protocol.store(version, Ordering::Relaxed);
        let flags = connect.feature_flags.as_ref();
        let by_source = flags.is_some_and(FeatureFlags::supports_repl_dedup_by_lid_and_eid);
        self.peer.by_source.store(by_source, Ordering::Relaxed);
        // Set once: a second CONNECT is refused.
        drop(self.peer.client_version.set(connect.client_version.clone()));
        self.ready = true;
        self.core
            .metrics
            .connections_accepted
            .fetch_add(1, Ordering::Relaxed);
        let max = i32::try_from(self.core.config.max_message_size).unwrap_or(i32::MAX);
        self.peer.outbox.send(CommandConnected {
            server_version: SERVER_VERSION.to_owned(),
            protocol_version: Some(version),
            max_message_size: Some(max),
            feature_flags: Some(FeatureFlags {
                supports_topic_watchers: Some(
                    self.core
                        .config
                        .enable_broker_side_subscription_pattern_evaluation,
                ),
                supports_get_partitioned_metadata_without_auto_creation: Some(true),
                supports_repl_dedup_by_lid_and_eid: Some(true),
                ..FeatureFlags::default()
            }),
        });
        Ok(())
    }
}
