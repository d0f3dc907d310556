//! What a WebSocket's user was let in with, looked at again while the session lasts.
//!
//! A session outlives its handshake: the token may end meanwhile, and rights may be taken back. What
//! must hold: a session goes on for no longer than `CHECK_EVERY` after either.

use std::time::Duration;

use axum::http::{Method, StatusCode};
use geminga_broker::Broker;
use geminga_broker::auth::Session;
use jiff::Timestamp;
use tokio::time::Instant;

use crate::error::{Answer, ApiError};
use crate::rest::rules::{Rule, rule};

const CHECK_EVERY: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 5_000 });

pub(super) struct Pass {
    broker: Broker,
    session: Session,
    /// What the session needs.
    rules: Vec<Rule>,
    /// When the token ends.
    ends: Option<Instant>,
    next_check: Instant,
}

impl Pass {
    /// Of a user who was let in at `path`.
    pub(super) fn new(broker: Broker, session: Session, path: &str) -> Self {
        let now = Instant::now();
        let now_ms = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0);
        let left = |at_ms: u64| Duration::from_millis(at_ms.saturating_sub(now_ms));
        Self {
            ends: session.expires_ms.map(|at_ms| now + left(at_ms)),
            next_check: now + CHECK_EVERY,
            rules: vec![rule(&Method::GET, path).rule],
            broker,
            session,
        }
    }

    /// Adds what the session needs beyond its path; an error when the user may not.
    pub(super) fn require(&mut self, rule: Rule) -> Answer<()> {
        if let Some(need) = rule.need() {
            let allowed = self.broker.authorize(&self.session, &need);
            allowed.map_err(|error| ApiError {
                status: StatusCode::FORBIDDEN,
                reason: error.to_string(),
            })?;
        }
        self.rules.push(rule);
        Ok(())
    }

    /// Resolves when the session may not go on, with the reason. Cancel-safe.
    pub(super) async fn ended(&mut self) -> &'static str {
        loop {
            let at = self
                .ends
                .map_or(self.next_check, |end| end.min(self.next_check));
            tokio::time::sleep_until(at).await;
            if self.ends.is_some_and(|end| end <= at) {
                return "the token has expired";
            }
            self.next_check = Instant::now() + CHECK_EVERY;
            let mut needs = self.rules.iter().filter_map(Rule::need);
            if needs.any(|need| self.broker.authorize(&self.session, &need).is_err()) {
                return "the right to this was taken back";
            }
        }
    }
}
