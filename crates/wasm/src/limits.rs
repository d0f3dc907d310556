//! What a guest may use, and what it is told when it wants more: growing past a limit ends it, with the
//! name of the limit, since few languages survive a refusal and none can say what it was.

use std::sync::Arc;

use geminga_functions::runtime::{FailureKind, HostSpec};
use wasmtime::{ResourceLimiter, Trap};

use crate::spare::{SMALL_BYTES, Spare};

/// Linear memory when neither `resources.ram` nor `limits.memoryBytes` says.
const MEMORY_BYTES: u64 = 256 * 1024 * 1024;
/// Elements of all tables: 8 bytes each, of the worker's memory.
const TABLE_ELEMENTS: usize = 1 << 20;
/// Core instances, memories and tables of one guest: components have several.
const PARTS: usize = 64;
/// How much of a backtrace is logged.
const WORDS_BYTES: usize = 2048;

/// Counts what all memories and tables of a guest hold.
#[derive(Debug)]
pub(crate) struct Limiter {
    memory_max: u64,
    memory: u64,
    /// What there is for all guests.
    spare: Arc<Spare>,
    elements: usize,
    /// What the last growth was allowed, until it is known whether it came to be.
    granted: (u64, usize),
    /// The limit that was hit.
    hit: Option<String>,
}

impl Limiter {
    pub(crate) fn new(spec: &HostSpec, spare: Arc<Spare>) -> Self {
        Self {
            spare,
            memory_max: spec.options.limits.memory_bytes.unwrap_or(MEMORY_BYTES),
            memory: 0,
            elements: 0,
            granted: (0, 0),
            hit: None,
        }
    }

    fn refuse(&mut self, why: String) -> wasmtime::Result<bool> {
        let error = wasmtime::Error::msg(why.clone());
        self.hit = Some(why);
        Err(error)
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.granted = (0, 0);
        // Past what the memory itself declares the guest is told no, as the standard says.
        if maximum.is_some_and(|max| desired > max) {
            return Ok(false);
        }
        let more = (desired - current.min(desired)) as u64;
        // A guest with 64-bit memories may ask for nearly 2^64 bytes more.
        let all = self.memory.saturating_add(more);
        if all > self.memory_max {
            let max = self.memory_max;
            return self.refuse(format!(
                "it wants {all} bytes of memory, {max} are allowed: raise `resources.ram`"
            ));
        }
        if all > SMALL_BYTES
            && let Err(why) = self.spare.give(more, current > 0)
        {
            return self.refuse(format!("it wants {all} bytes of memory: {why}"));
        }
        self.memory = all;
        self.granted.0 = more;
        Ok(true)
    }

    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.memory -= std::mem::take(&mut self.granted.0);
        Ok(())
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.granted = (0, 0);
        if maximum.is_some_and(|max| desired > max) {
            return Ok(false);
        }
        let more = desired - current.min(desired);
        let all = self.elements.saturating_add(more);
        if all > TABLE_ELEMENTS {
            return self.refuse(format!(
                "its tables want {all} elements, {TABLE_ELEMENTS} are allowed"
            ));
        }
        self.elements = all;
        self.granted.1 = more;
        Ok(true)
    }

    fn table_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.elements -= std::mem::take(&mut self.granted.1);
        Ok(())
    }

    fn instances(&self) -> usize {
        PARTS
    }

    fn tables(&self) -> usize {
        PARTS
    }

    fn memories(&self) -> usize {
        PARTS
    }
}

/// Why a guest ended, for its message, and the words for its log.
pub(crate) fn cause(error: &wasmtime::Error, limiter: &Limiter) -> (FailureKind, String, String) {
    let mut words = format!("{error:?}");
    if words.len() > WORDS_BYTES {
        let end = (0..=WORDS_BYTES).rev().find(|&i| words.is_char_boundary(i));
        words.truncate(end.unwrap_or(0));
    }
    let (kind, reason) = match (&limiter.hit, error.downcast_ref::<Trap>()) {
        (Some(why), _) => (FailureKind::Limit, why.clone()),
        (None, Some(Trap::StackOverflow)) => (
            FailureKind::Limit,
            "its calls are nested too deep: the stack is exhausted".to_owned(),
        ),
        (None, Some(Trap::UnreachableCodeReached)) => (
            FailureKind::Crash,
            "it trapped: unreachable code was reached (a panic, or an abort)".to_owned(),
        ),
        (None, Some(trap)) => (FailureKind::Crash, format!("it trapped: {trap}")),
        (None, None) => (FailureKind::Crash, format!("it trapped: {error:#}")),
    };
    (kind, reason, words)
}

#[cfg(test)]
mod tests {
    use geminga_functions::runtime::sandbox::Memory;

    use super::*;

    fn limiter(spec: &HostSpec) -> Limiter {
        Limiter::new(spec, Arc::new(Spare::new(|| None)))
    }

    #[test]
    fn all_memories_count_together() {
        let mut spec = HostSpec::default();
        spec.options.limits.memory_bytes = Some(1000);
        let mut limiter = limiter(&spec);
        assert!(limiter.memory_growing(0, 600, None).expect("fits"));
        assert!(limiter.memory_growing(0, 400, None).expect("fits"));
        let error = limiter.memory_growing(400, 401, None).expect_err("no");
        assert!(error.to_string().contains("1001 bytes"), "{error}");
        let (kind, reason, _) = cause(&error, &limiter);
        assert_eq!(kind, FailureKind::Limit);
        assert!(reason.contains("resources.ram"), "{reason}");
    }

    #[test]
    fn a_growth_that_wraps_is_refused_and_one_that_failed_is_not_counted() {
        let mut spec = HostSpec::default();
        spec.options.limits.memory_bytes = Some(200_000);
        let mut limiter = limiter(&spec);
        assert!(limiter.memory_growing(0, 65_536, None).expect("fits"));
        assert!(limiter.memory_growing(0, 65_536, None).expect("fits"));
        // Past the declared maximum: the guest reads -1 and goes on.
        assert!(
            !limiter
                .memory_growing(65_536, 131_072, Some(65_536))
                .expect("no fault")
        );
        assert!(limiter.memory_growing(65_536, 131_072, None).expect("fits"));
        let failed = limiter.memory_grow_failed(wasmtime::Error::msg("no room"));
        failed.expect("taken back");
        assert!(limiter.memory_growing(65_536, 131_072, None).expect("fits"));
        let wraps = limiter.memory_growing(65_536, usize::MAX - 65_535, None);
        wraps.expect_err("all of the address space");
    }

    #[test]
    fn on_a_full_machine_a_small_guest_lives_and_a_large_one_is_told() {
        let full = || {
            Some(Memory {
                all: 1 << 30,
                left: 1 << 20,
            })
        };
        let spec = HostSpec::default();
        let mut limiter = Limiter::new(&spec, Arc::new(Spare::new(full)));
        let small = SMALL_BYTES as usize;
        assert!(limiter.memory_growing(0, small, None).expect("small"));
        let error = limiter
            .memory_growing(small, small + 65_536, None)
            .expect_err("no");
        let (kind, reason, _) = cause(&error, &limiter);
        assert_eq!(kind, FailureKind::Limit);
        assert!(
            reason.contains("this machine has 1048576 bytes"),
            "{reason}"
        );
    }

    #[test]
    fn tables_are_counted_too() {
        let mut limiter = limiter(&HostSpec::default());
        assert!(limiter.table_growing(0, TABLE_ELEMENTS, None).is_ok());
        assert!(limiter.table_growing(0, 1, None).is_err());
    }
}
