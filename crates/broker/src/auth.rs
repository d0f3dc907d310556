//! Who a client is and what it may do.
//!
//! `token`, `basic` and `certificate` say who somebody is; `permission` says what a request needs;
//! `decision` is the one pure function that compares both with what was granted; `grants` keeps
//! that. What must hold: with authorization on, whatever no rule allows is refused; no secret is
//! logged, listed or put into an error.

pub mod basic;
mod certificate;
mod command;
mod config;
pub mod decision;
pub mod grants;
mod key;
pub mod token;

use std::sync::Arc;

use parking_lot::RwLock;

pub use config::SecurityConfig;
pub use decision::{Action, Need};
pub use key::read_key;

pub(crate) use certificate::common_name;
pub(crate) use command::{need_of, refusal_of};

use basic::Passwords;
use grants::Grants;
use token::TokenVerifier;

use crate::error::BrokerError;

/// What somebody shows.
#[derive(Clone, Copy)]
pub enum Credentials<'a> {
    None,
    Token(&'a str),
    /// `user:password`.
    Basic(&'a str),
    /// Shown while the connection was made.
    Certificate,
    /// A method that nobody here knows.
    Unknown,
}

/// Somebody who is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub role: String,
    /// Milliseconds since 1970; none = for as long as the connection lives.
    pub expires_ms: Option<u64>,
}

/// On whose behalf requests are made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Session {
    /// None where nobody asks who a client is.
    pub role: Option<String>,
    /// Whom a proxy speaks for.
    pub original: Option<String>,
    /// A part of this process.
    pub is_internal: bool,
    /// When the credentials end, in milliseconds since 1970; for sessions that outlive a request.
    pub expires_ms: Option<u64>,
}

impl Session {
    /// Whom stats and owners name.
    pub fn principal(&self) -> Option<&str> {
        self.original.as_deref().or(self.role.as_deref())
    }
}

/// Why somebody is not let in. For the log: clients are told no more than that they failed.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    #[error("no credentials were given")]
    Missing,
    #[error("the authentication method is not enabled")]
    Method,
    #[error("{0}")]
    Wrong(&'static str),
    #[error("the roles do not fit: {0}")]
    Roles(&'static str),
}

/// The rules of one broker.
pub(crate) struct Security {
    pub(crate) config: SecurityConfig,
    token: Option<TokenVerifier>,
    basic: Option<Passwords>,
    certificates: bool,
    /// May change while the broker runs.
    super_users: RwLock<Vec<String>>,
    pub(crate) grants: Arc<Grants>,
}

impl Security {
    pub(crate) fn new(config: SecurityConfig, grants: Grants) -> Result<Security, BrokerError> {
        config.check()?;
        let enabled = |name| config.authentication_enabled && config.has_provider(name);
        Ok(Security {
            token: match enabled("Token") {
                true => Some(TokenVerifier::new(&config)?),
                false => None,
            },
            basic: match enabled("Basic") {
                true => Some(Passwords::load(&config)?),
                false => None,
            },
            certificates: enabled("Tls"),
            super_users: RwLock::new(config.super_user_roles.clone()),
            grants: Arc::new(grants),
            config,
        })
    }

    pub(crate) fn set_super_users(&self, roles: Vec<String>) {
        *self.super_users.write() = roles;
    }

    /// Who shows these credentials. `certificate` is the name in the client's certificate.
    pub(crate) fn authenticate(
        &self,
        credentials: Credentials<'_>,
        certificate: Option<&str>,
        now_ms: u64,
    ) -> Result<Identity, AuthError> {
        let role = |role: &str| Identity {
            role: role.to_owned(),
            expires_ms: None,
        };
        let anonymous = self.config.anonymous_user_role.as_deref();
        match credentials {
            Credentials::Token(token) => match &self.token {
                Some(verifier) => verifier.verify(token, now_ms),
                None => anonymous.map(role).ok_or(AuthError::Method),
            },
            Credentials::Basic(pair) => match &self.basic {
                Some(passwords) => passwords.verify(pair).map(|user| role(&user)),
                None => anonymous.map(role).ok_or(AuthError::Method),
            },
            Credentials::Certificate => match certificate.filter(|_| self.certificates) {
                Some(name) => Ok(role(name)),
                None => anonymous.map(role).ok_or(AuthError::Missing),
            },
            Credentials::None | Credentials::Unknown => {
                anonymous.map(role).ok_or(AuthError::Missing)
            }
        }
    }

    /// Whom a connection or request acts for: a proxy names the one behind it.
    pub(crate) fn session(
        &self,
        role: String,
        original: Option<String>,
    ) -> Result<Session, AuthError> {
        let proxies = &self.config.proxy_roles;
        let original = original.filter(|name| !name.is_empty());
        if proxies.contains(&role) {
            match &original {
                None if self.config.authorization_enabled => {
                    return Err(AuthError::Roles("a proxy must say whom it speaks for"));
                }
                Some(name) if proxies.contains(name) => {
                    return Err(AuthError::Roles("a proxy may not speak for a proxy"));
                }
                _ => {}
            }
        } else if original.as_ref().is_some_and(|name| *name != role) {
            return Err(AuthError::Roles("only a proxy may speak for others"));
        }
        Ok(Session {
            original: original.filter(|name| *name != role),
            role: Some(role),
            is_internal: false,
            expires_ms: None,
        })
    }

    /// Whether the session may do what needs this.
    pub(crate) fn authorize(&self, session: &Session, need: &Need<'_>) -> Result<(), BrokerError> {
        if !self.config.authorization_enabled || session.is_internal {
            return Ok(());
        }
        let super_users = self.super_users.read();
        let roles = decision::Roles {
            super_users: &super_users,
            wildcards: self.config.authorization_allow_wildcards_matching,
        };
        let access = self.grants.of(need);
        let role = session.role.as_deref().unwrap_or_default();
        // A proxy may do no more than both it and the one behind it.
        let allowed = decision::decide(&roles, role, need, &access)
            && session
                .original
                .as_deref()
                .is_none_or(|original| decision::decide(&roles, original, need, &access));
        if allowed {
            return Ok(());
        }
        let who = match &session.original {
            Some(_) => "Proxy Client",
            None => "Client",
        };
        Err(BrokerError::NotAuthorized(format!(
            "{who} is not authorized to {}",
            need.verb()
        )))
    }
}
