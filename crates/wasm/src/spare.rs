//! What all guests together may take of the machine's memory. Each has a limit of its own, but a hundred of them
//! come to more than there is, and then the kernel would end the whole worker.
//!
//! What guests declare and never touch costs nothing, so that it is no measure: what the machine has left is.

use std::time::{Duration, Instant};

use geminga_functions::runtime::sandbox::Memory;
use parking_lot::Mutex;

/// Below this a guest grows in any case: a function that has nothing to do starts on a full machine too.
pub(crate) const SMALL_BYTES: u64 = 16 << 20;
/// How much no guest gets: a part of the machine's memory, within bounds.
const KEPT_PART: u64 = 16;
const KEPT_MIN_BYTES: u64 = 64 << 20;
const KEPT_MAX_BYTES: u64 = 1 << 30;
/// How old a look at the machine's memory may be: it reads a file or several.
const LOOK: Duration = Duration::from_millis(100);
/// What was given counts as not yet used for so long at least, and twice as long at most.
const UNUSED: Duration = Duration::from_secs(1);

/// Looks at the machine's memory. `None` where it can not be told: then each guest has its own limit alone.
pub(crate) type Look = fn() -> Option<Memory>;

/// See the module.
#[derive(Debug)]
pub(crate) struct Spare {
    look: Look,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    at: Instant,
    memory: Option<Memory>,
    /// Given since `turned`, and in the stretch before it.
    given: [u64; 2],
    turned: Instant,
}

impl Spare {
    pub(crate) fn new(look: Look) -> Self {
        let now = Instant::now();
        Self {
            look,
            seen: Mutex::new(Seen {
                at: now,
                memory: look(),
                given: [0; 2],
                turned: now,
            }),
        }
    }

    /// Whether a guest may have `more` bytes; they count as taken when it `takes` them now.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn give(&self, more: u64, takes: bool) -> Result<(), String> {
        let mut seen = self.seen.lock();
        let now = Instant::now();
        if now.duration_since(seen.at) > LOOK {
            seen.at = now;
            seen.memory = (self.look)();
        }
        let stretch = now.duration_since(seen.turned);
        if stretch > UNUSED {
            let before = if stretch > UNUSED * 2 {
                0
            } else {
                seen.given[0]
            };
            seen.given = [0, before];
            seen.turned = now;
        }
        if let Some(memory) = seen.memory {
            let kept = (memory.all / KEPT_PART).clamp(KEPT_MIN_BYTES, KEPT_MAX_BYTES);
            let left = memory.left.saturating_sub(seen.given[0] + seen.given[1]);
            if left < kept.saturating_add(more) {
                return Err(format!(
                    "this machine has {left} bytes of memory left, and the last {kept} are not for functions"
                ));
            }
        }
        if takes {
            seen.given[0] = seen.given[0].saturating_add(more);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_last_of_the_machine_is_not_for_guests() {
        let spare = Spare::new(|| {
            Some(Memory {
                all: 2048 * MIB,
                left: 328 * MIB,
            })
        });
        // What is declared at the start is not touched yet, and counts alone.
        spare.give(150 * MIB, false).expect("there is as much");
        spare.give(150 * MIB, true).expect("and still");
        let error = spare.give(100 * MIB, true).expect_err("too much");
        assert!(error.contains(&format!("{} bytes", 178 * MIB)), "{error}");
        assert!(error.contains(&format!("last {}", 128 * MIB)), "{error}");
        spare.give(50 * MIB, true).expect("as much as is left");
        spare.give(1, true).expect_err("nothing is left");
    }

    #[test]
    fn what_the_machine_does_not_tell_bounds_nothing() {
        let spare = Spare::new(|| None);
        spare.give(u64::MAX, true).expect("no bound");
        spare.give(u64::MAX, true).expect("no bound");
    }
}
