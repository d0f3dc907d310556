//! The memory of this machine, as far as this process may use it: control groups may allow less than there is.

use std::fs;
use std::path::{Path, PathBuf};

use super::cgroup::memberships;

/// Where control groups are.
const GROUPS: &str = "/sys/fs/cgroup";

/// Bytes of memory for this process and what shares a limit with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// All there is.
    pub all: u64,
    /// What is free, or can be freed without loss, as files that are kept in memory.
    pub left: u64,
}

impl Memory {
    /// Reads it; `None` where the kernel does not tell, as on other systems than Linux.
    #[must_use]
    pub fn now() -> Option<Self> {
        Self::of(Path::new("/proc"), Path::new(GROUPS))
    }

    /// The smallest of what the machine and each group around this process leave.
    fn of(proc: &Path, groups: &Path) -> Option<Self> {
        let text = fs::read_to_string(proc.join("meminfo")).ok()?;
        let of_machine = Self {
            all: of_meminfo(&text, "MemTotal:")?,
            left: of_meminfo(&text, "MemAvailable:")?,
        };
        let text = fs::read_to_string(proc.join("self/cgroup")).unwrap_or_default();
        let mut memory = of_machine;
        for (controllers, path) in memberships(&text) {
            let (root, files) = match &controllers[..] {
                [] => (groups.to_owned(), &UNIFIED),
                names if names.contains(&"memory") => (groups.join("memory"), &SEPARATE),
                _ => continue,
            };
            // In a container the path may be the host's, and only the root is ours.
            for place in places(&root, path) {
                if let Some(of_group) = of_group(&place, files) {
                    memory.all = memory.all.min(of_group.all);
                    memory.left = memory.left.min(of_group.left);
                }
            }
        }
        Some(memory)
    }
}

/// What a version calls its files, and the words in `memory.stat` for what can be freed.
struct Files {
    limit: &'static str,
    used: &'static str,
    freed: [&'static str; 3],
}

const UNIFIED: Files = Files {
    limit: "memory.max",
    used: "memory.current",
    freed: ["active_file", "inactive_file", "slab_reclaimable"],
};
const SEPARATE: Files = Files {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    freed: ["total_active_file", "total_inactive_file", ""],
};

/// The group of this path, and all that it lies in.
fn places(root: &Path, path: &str) -> impl Iterator<Item = PathBuf> {
    let place = root.join(path.trim_start_matches('/'));
    let depth = place.components().count() + 1 - root.components().count();
    let places: Vec<_> = place.ancestors().take(depth).map(PathBuf::from).collect();
    places.into_iter()
}

/// `None` without a limit.
fn of_group(place: &Path, files: &Files) -> Option<Memory> {
    let number = |file: &str| -> Option<u64> {
        let text = fs::read_to_string(place.join(file)).ok()?;
        // `max` is no number.
        text.trim().parse().ok()
    };
    let (all, used) = (number(files.limit)?, number(files.used)?);
    let stat = fs::read_to_string(place.join("memory.stat")).unwrap_or_default();
    let freed: u64 = stat
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(name, _)| files.freed.contains(name))
        .filter_map(|(_, bytes)| bytes.trim().parse::<u64>().ok())
        .sum();
    let left = all.saturating_sub(used.saturating_sub(freed));
    Some(Memory { all, left })
}

fn of_meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Files under a folder, by their paths.
    fn machine(files: &[(&str, String)]) -> Option<Memory> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Memory::of(&root.path().join("proc"), &root.path().join("groups"))
    }

    fn meminfo() -> (&'static str, String) {
        let text = "MemTotal:  8388608 kB\nMemFree: 1 kB\nMemAvailable:    4194304 kB\n";
        ("proc/meminfo", text.to_owned())
    }

    #[test]
    fn without_a_limit_it_is_the_machines() {
        let memory = Memory {
            all: 8192 * MIB,
            left: 4096 * MIB,
        };
        assert_eq!(machine(&[meminfo()]), Some(memory));
        let unlimited = [
            meminfo(),
            ("proc/self/cgroup", "0::/a\n".to_owned()),
            ("groups/a/memory.max", "max\n".to_owned()),
            ("groups/a/memory.current", "5\n".to_owned()),
        ];
        assert_eq!(machine(&unlimited), Some(memory));
        assert_eq!(machine(&[]), None);
    }

    #[test]
    fn the_tightest_group_around_counts_and_kept_files_are_free() {
        let stat = format!(
            "anon 1\nactive_file {}\ninactive_file {}\nslab_reclaimable {MIB}\n",
            9 * MIB,
            20 * MIB
        );
        let unified = [
            meminfo(),
            ("proc/self/cgroup", "0::/pod/worker\n".to_owned()),
            ("groups/pod/memory.max", format!("{}\n", 512 * MIB)),
            ("groups/pod/memory.current", format!("{}\n", 400 * MIB)),
            ("groups/pod/memory.stat", stat),
            ("groups/pod/worker/memory.max", "max\n".to_owned()),
        ];
        let memory = Memory {
            all: 512 * MIB,
            left: 142 * MIB,
        };
        assert_eq!(machine(&unified), Some(memory));
        let separate = [
            meminfo(),
            (
                "proc/self/cgroup",
                "5:devices:/x\n4:memory:/of-the-host\n0::/\n".to_owned(),
            ),
            (
                "groups/memory/memory.limit_in_bytes",
                format!("{}\n", 64 * MIB),
            ),
            (
                "groups/memory/memory.usage_in_bytes",
                format!("{}\n", 63 * MIB),
            ),
            (
                "groups/memory/memory.stat",
                format!(
                    "cache 7\ntotal_inactive_file {}\ninactive_file 5\n",
                    3 * MIB
                ),
            ),
        ];
        let memory = Memory {
            all: 64 * MIB,
            left: 4 * MIB,
        };
        assert_eq!(machine(&separate), Some(memory));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_tells() {
        let memory = Memory::now().expect("Linux tells");
        assert!(memory.left > 0 && memory.left <= memory.all, "{memory:?}");
    }
}
