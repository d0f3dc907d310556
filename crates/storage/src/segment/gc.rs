//! Which segment files to remove and which to rewrite. Pure.

/// A file is rewritten when less than one part in this many is alive.
const ALIVE_PART: u64 = 4;
/// What one rewrite copies at most, and how many files it reads.
const REWRITE_BYTES_MAX: u64 = 32 << 20;
const REWRITE_FILES_MAX: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub file: u32,
    /// Payload when it was written, and what of it belongs to ledgers that exist.
    pub payload_bytes: u64,
    pub live_bytes: u64,
    /// Ledgers in it that exist: empty entries have no bytes and must be kept too.
    pub live_ranges: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    pub remove: Vec<u32>,
    /// To be copied together into one new file.
    pub rewrite: Vec<u32>,
}

pub fn choose(files: &[Usage]) -> Choice {
    let mut choice = Choice::default();
    let mut copied = 0;
    for usage in files {
        if usage.live_ranges == 0 {
            choice.remove.push(usage.file);
        } else if usage.live_bytes < usage.payload_bytes / ALIVE_PART
            && choice.rewrite.len() < REWRITE_FILES_MAX
            && copied + usage.live_bytes <= REWRITE_BYTES_MAX
        {
            copied += usage.live_bytes;
            choice.rewrite.push(usage.file);
        }
    }
    choice
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dead_go_and_the_mostly_dead_are_rewritten_together() {
        let usage = |file, payload_bytes, live_bytes, live_ranges| Usage {
            file,
            payload_bytes,
            live_bytes,
            live_ranges,
        };
        let files = [
            usage(1, 1000, 0, 0),
            usage(2, 1000, 249, 1),
            usage(3, 1000, 250, 1),
            usage(4, 1000, 0, 1),
            usage(5, 400 << 20, 32 << 20, 1),
        ];
        assert_eq!(
            choose(&files),
            Choice {
                remove: vec![1],
                rewrite: vec![2, 4]
            }
        );
    }
}
