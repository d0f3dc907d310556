//! How much room the disk has. Measured when files are made and when somebody asks; while it is
//! full, by every append that is refused, so that the store notices when space returns. Whoever asks
//! for each producer that comes gets what was found a moment ago: asking the file system costs as much
//! as the rest of opening one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::disk::Disk;
use crate::{Space, SpaceLevel};

/// How long it is not asked again whether there is room.
const LATELY: Duration = Duration::from_millis(20);

pub(super) struct SpaceWatch {
    disk: Arc<dyn Disk>,
    low_bytes: u64,
    reserve_bytes: u64,
    full: AtomicBool,
    /// When somebody was last told that there is room.
    asked: Mutex<Option<Instant>>,
    pub(super) used_bytes: AtomicU64,
}

impl SpaceWatch {
    pub(super) fn new(disk: Arc<dyn Disk>, low_bytes: u64, reserve_bytes: u64, used: u64) -> Self {
        Self {
            disk,
            low_bytes,
            reserve_bytes,
            full: AtomicBool::new(false),
            asked: Mutex::new(None),
            used_bytes: AtomicU64::new(used),
        }
    }

    pub(super) fn measure(&self) -> Space {
        // A disk that does not answer is no reason to refuse entries; writing will tell.
        let free_bytes = self.disk.free_bytes().unwrap_or(u64::MAX);
        let level = match free_bytes {
            free if free < self.reserve_bytes => SpaceLevel::Full,
            free if free < self.low_bytes => SpaceLevel::Low,
            _ => SpaceLevel::Ample,
        };
        let full = level == SpaceLevel::Full;
        if self.full.swap(full, Ordering::Relaxed) != full {
            match full {
                true => tracing::warn!(free_bytes, "the disk is full: entries are refused"),
                false => tracing::info!(free_bytes, "the disk has room again"),
            }
        }
        Space {
            level,
            used_bytes: self.used_bytes.load(Ordering::Relaxed),
            free_bytes,
        }
    }

    /// Whether it is full, as was found a moment ago if there was room.
    pub(super) fn is_full_lately(&self) -> bool {
        if !self.full.load(Ordering::Relaxed) {
            let now = Instant::now();
            let mut asked = self.asked.lock();
            if asked.is_some_and(|at| now - at < LATELY) {
                return false;
            }
            *asked = Some(now);
        }
        self.measure().level == SpaceLevel::Full
    }

    /// A write found no room.
    pub(super) fn note_full(&self) {
        self.full.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed) && self.measure().level == SpaceLevel::Full
    }
}
