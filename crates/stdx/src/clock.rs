//! Wall-clock time behind a handle, so that tests and the simulation can own it.
//! For durations inside the process use `tokio::time::Instant`, which tests can pause.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Tells the time in milliseconds since 1970. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    manual_ms: Option<Arc<AtomicU64>>,
}

impl Clock {
    /// The machine's clock.
    #[must_use]
    pub fn system() -> Self {
        Self { manual_ms: None }
    }

    /// A clock that moves only by `set_ms`.
    #[must_use]
    pub fn manual(start_ms: u64) -> Self {
        Self {
            manual_ms: Some(Arc::new(AtomicU64::new(start_ms))),
        }
    }

    /// Milliseconds since 1970; a machine clock before 1970 reads as 0.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        match &self.manual_ms {
            Some(ms) => ms.load(Ordering::Relaxed),
            None => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
        }
    }

    /// Moves a manual clock; the system clock ignores it.
    pub fn set_ms(&self, ms: u64) {
        if let Some(cell) = &self.manual_ms {
            cell.store(ms, Ordering::Relaxed);
        }
    }
}
