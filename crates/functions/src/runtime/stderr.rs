//! Reads what user code prints and turns it into log lines, for as long as a pipe is open.
//!
//! The pipe is always drained, so that a chatty script never hangs; what goes beyond the rate is
//! counted and dropped, and the count is itself a line. The last bytes are kept for failures.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Level, LogLine, Services};

/// Bytes of standard error kept for dead letters and status.
const TAIL_BYTES: usize = 4096;
/// A longer line is cut into several.
const LINE_BYTES_MAX: usize = 8192;

/// The end of what was printed. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tail {
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl Tail {
    fn push(&self, text: &[u8]) {
        let mut bytes = self.bytes.lock();
        let text = &text[text.len().saturating_sub(TAIL_BYTES)..];
        let excess = (bytes.len() + text.len()).saturating_sub(TAIL_BYTES);
        bytes.drain(..excess);
        bytes.extend_from_slice(text);
    }

    /// The text so far; the next call starts afresh.
    pub(crate) fn take(&self) -> String {
        let bytes = std::mem::take(&mut *self.bytes.lock());
        String::from_utf8_lossy(&bytes).trim_end().to_owned()
    }
}

/// Spends bytes of a budget that is refilled each second.
#[derive(Debug)]
pub(crate) struct Rate {
    limit: u64,
    left: u64,
    since: Instant,
    dropped: u64,
    dropped_in_all: u64,
}

impl Rate {
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            limit,
            left: limit,
            since: Instant::now(),
            dropped: 0,
            dropped_in_all: 0,
        }
    }

    /// Bytes that were too many, since the start.
    pub(crate) fn dropped_in_all(&self) -> u64 {
        self.dropped_in_all
    }

    /// True when `bytes` fit. The second value is what was dropped before, once it is known.
    pub(crate) fn take(&mut self, bytes: usize) -> (bool, Option<u64>) {
        let mut told = None;
        if self.since.elapsed() >= Duration::from_secs(1) {
            self.since = Instant::now();
            self.left = self.limit;
            told = (self.dropped > 0).then(|| std::mem::take(&mut self.dropped));
        }
        let bytes = bytes as u64;
        if bytes <= self.left {
            self.left -= bytes;
            (true, told)
        } else {
            self.dropped += bytes;
            self.dropped_in_all += bytes;
            (false, told)
        }
    }
}

/// Drains `pipe` until it closes; `heard` is told of every read.
pub(crate) async fn pump(
    mut pipe: impl AsyncRead + Unpin,
    services: Arc<dyn Services>,
    tail: Tail,
    heard: Arc<Notify>,
    rate: Arc<Mutex<Rate>>,
    message_id: Option<String>,
) {
    let mut line: Vec<u8> = Vec::new();
    let mut buffer = vec![0_u8; 16 * 1024];
    let emit = |line: &[u8]| {
        let ((fits, dropped), limit) = {
            let mut rate = rate.lock();
            (rate.take(line.len() + 1), rate.limit)
        };
        if let Some(dropped) = dropped {
            services.log(LogLine {
                level: Level::Warn,
                text: format!("{dropped} bytes of output dropped: more than {limit} a second"),
                message_id: None,
            });
        }
        if fits && !line.is_empty() {
            let (level, text) = level_of(&String::from_utf8_lossy(line));
            services.log(LogLine {
                level,
                text,
                message_id: message_id.clone(),
            });
        }
    };
    loop {
        let count = match pipe.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        tail.push(&buffer[..count]);
        heard.notify_waiters();
        for part in buffer[..count].split_inclusive(|&b| b == b'\n') {
            line.extend_from_slice(part);
            if line.last() == Some(&b'\n') || line.len() >= LINE_BYTES_MAX {
                emit(line.trim_ascii_end());
                line.clear();
            }
        }
    }
    emit(line.trim_ascii_end());
}

/// Splits a level off the front: `WARN: text`, `[ERROR] text`, or syslog's `<4>text`.
pub(crate) fn level_of(line: &str) -> (Level, String) {
    let bytes = line.as_bytes();
    if let [b'<', digit @ b'0'..=b'7', b'>', ..] = bytes {
        let level = match digit {
            b'0'..=b'3' => Level::Error,
            b'4' => Level::Warn,
            b'7' => Level::Debug,
            _ => Level::Info,
        };
        return (level, line[3..].trim_start().to_owned());
    }
    let (word, rest) = if let Some(inner) = line.strip_prefix('[') {
        inner.split_once(']').unwrap_or(("", line))
    } else {
        line.split_once(':').unwrap_or(("", line))
    };
    match Level::parse(word) {
        // Only a word in capitals is meant as a level: "error: no such file" stays whole.
        Some(level) if word.chars().all(|c| c.is_ascii_uppercase()) => {
            (level, rest.trim_start().to_owned())
        }
        _ => (Level::Info, line.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_read_from_the_front() {
        for (line, level, text) in [
            ("WARN: slow", Level::Warn, "slow"),
            ("[ERROR] bad", Level::Error, "bad"),
            ("<3>bad", Level::Error, "bad"),
            ("<7>fine", Level::Debug, "fine"),
            ("error: kept", Level::Info, "error: kept"),
            ("plain: text", Level::Info, "plain: text"),
            ("[x", Level::Info, "[x"),
            ("", Level::Info, ""),
        ] {
            assert_eq!(level_of(line), (level, text.to_owned()), "{line}");
        }
    }

    #[test]
    fn the_tail_keeps_the_end() {
        let tail = Tail::default();
        tail.push(&vec![b'a'; 10_000]);
        tail.push(b"end");
        let text = tail.take();
        assert_eq!(text.len(), TAIL_BYTES);
        assert!(text.ends_with("aend"));
        assert_eq!(tail.take(), "");
    }
}
