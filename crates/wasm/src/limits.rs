//! What a guest may use, and what it is told when it wants more: growing past a limit ends it, with the
//! name of the limit, since few languages survive a refusal and none can say what it was.

use geminga_functions::runtime::{FailureKind, HostSpec};
use wasmtime::{ResourceLimiter, Trap};

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
    elements: usize,
    /// The limit that was hit.
    hit: Option<String>,
}

impl Limiter {
    pub(crate) fn new(spec: &HostSpec) -> Self {
        Self {
            memory_max: spec.options.limits.memory_bytes.unwrap_or(MEMORY_BYTES),
            memory: 0,
            elements: 0,
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
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let all = self.memory + (desired - current.min(desired)) as u64;
        if all > self.memory_max {
            let max = self.memory_max;
            return self.refuse(format!(
                "it wants {all} bytes of memory, {max} are allowed: raise `resources.ram`"
            ));
        }
        self.memory = all;
        Ok(true)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let all = self.elements.saturating_add(desired - current.min(desired));
        if all > TABLE_ELEMENTS {
            return self.refuse(format!(
                "its tables want {all} elements, {TABLE_ELEMENTS} are allowed"
            ));
        }
        self.elements = all;
        Ok(true)
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
    use super::*;

    #[test]
    fn all_memories_count_together() {
        let mut spec = HostSpec::default();
        spec.options.limits.memory_bytes = Some(1000);
        let mut limiter = Limiter::new(&spec);
        assert!(limiter.memory_growing(0, 600, None).expect("fits"));
        assert!(limiter.memory_growing(0, 400, None).expect("fits"));
        let error = limiter.memory_growing(400, 401, None).expect_err("no");
        assert!(error.to_string().contains("1001 bytes"), "{error}");
        let (kind, reason, _) = cause(&error, &limiter);
        assert_eq!(kind, FailureKind::Limit);
        assert!(reason.contains("resources.ram"), "{reason}");
    }

    #[test]
    fn tables_are_counted_too() {
        let mut limiter = Limiter::new(&HostSpec::default());
        assert!(limiter.table_growing(0, TABLE_ELEMENTS, None).is_ok());
        assert!(limiter.table_growing(0, 1, None).is_err());
    }
}
