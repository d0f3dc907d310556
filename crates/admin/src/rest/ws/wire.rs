//! One WebSocket: texts in, texts out, pings, and an end for those who say nothing.
//!
//! What must hold: `next` is cancel-safe; a peer that sends what is no text, or too much of it, is
//! told so by a close frame. A peer that takes nothing is cut off by the connection below.

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket};
use geminga_broker::BrokerConfig;
use geminga_stdx::Tasks;
use tokio::time::Instant;

use super::pass::Pass;

/// The endpoint goes away.
const GOING_AWAY: u16 = 1001;
/// Data of a kind that it does not take.
pub(super) const UNSUPPORTED: u16 = 1003;
/// The peer may not, or not any more.
const POLICY: u16 = 1008;
const TOO_BIG: u16 = 1009;
/// Something else is wrong.
pub(super) const INTERNAL: u16 = 1011;
/// What a close frame can hold.
const REASON_BYTES_MAX: usize = 120;

/// Times of one connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    idle: Option<Duration>,
    ping: Option<Duration>,
    frame_bytes: usize,
}

impl Limits {
    pub(super) fn of(config: &BrokerConfig) -> Self {
        let idle = config.web_socket_session_idle_timeout_millis;
        let ping = u64::try_from(config.web_socket_ping_duration_seconds).unwrap_or(0);
        Self {
            idle: (idle > 0).then(|| Duration::from_millis(idle)),
            ping: (ping > 0).then(|| Duration::from_secs(ping)),
            frame_bytes: config.web_socket_max_text_frame_size,
        }
    }
}

pub(super) struct Wire {
    socket: WebSocket,
    limits: Limits,
    used: Instant,
    pinged: Instant,
    tasks: Tasks,
    pass: Pass,
}

/// The peer is not there any more.
#[derive(Debug)]
pub(super) struct Gone;

impl Wire {
    pub(super) fn new(socket: WebSocket, limits: Limits, tasks: Tasks, pass: Pass) -> Self {
        let now = Instant::now();
        Self {
            socket,
            limits,
            used: now,
            pinged: now,
            tasks,
            pass,
        }
    }

    /// The next text; none when the connection is over.
    pub(super) async fn next(&mut self) -> Option<Utf8Bytes> {
        loop {
            let idle = self.limits.idle.map(|idle| self.used + idle);
            let ping = self.limits.ping.map(|ping| self.pinged + ping);
            let received = tokio::select! {
                received = self.socket.recv() => received?,
                () = self.tasks.cancelled() => {
                    self.close(GOING_AWAY, "the server stops").await;
                    return None;
                }
                () = until(idle) => {
                    self.close(GOING_AWAY, "Idle Timeout").await;
                    return None;
                }
                refusal = self.pass.ended() => {
                    self.close(POLICY, refusal).await;
                    return None;
                }
                () = until(ping) => {
                    self.pinged = Instant::now();
                    self.put(Message::Ping("PING".into())).await.ok()?;
                    continue;
                }
            };
            self.used = Instant::now();
            match received {
                Ok(Message::Text(text)) => return Some(text),
                Ok(Message::Binary(_)) => {
                    self.close(UNSUPPORTED, "only text frames are taken").await;
                    return None;
                }
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                Ok(Message::Close(_)) => return None,
                Err(error) => {
                    let text = error.to_string();
                    tracing::debug!(error = text, "a WebSocket ended");
                    // The library has no kind for this that can be told from here.
                    if text.contains("too long") || text.contains("too big") {
                        let max = self.limits.frame_bytes;
                        let reason = format!("Text message size exceeds {max} bytes");
                        self.close(TOO_BIG, &reason).await;
                    }
                    return None;
                }
            }
        }
    }

    /// When the server stops.
    pub(super) async fn stopping(&mut self) {
        self.tasks.cancelled().await;
    }

    pub(super) async fn send(&mut self, text: String) -> Result<(), Gone> {
        self.used = Instant::now();
        self.put(Message::Text(text.into())).await
    }

    async fn put(&mut self, message: Message) -> Result<(), Gone> {
        self.socket.send(message).await.map_err(|_| Gone)
    }

    pub(super) async fn close(&mut self, code: u16, reason: &str) {
        let mut end = reason.len().min(REASON_BYTES_MAX);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        let frame = CloseFrame {
            code,
            reason: reason[..end].into(),
        };
        // Gone already is as good.
        let _ = self.put(Message::Close(Some(frame))).await;
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
