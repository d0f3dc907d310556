//! What of a function is seen in its processes, in `/proc`.

use std::path::{Path, PathBuf};

/// The processes with this in their environment.
pub(crate) fn processes(mark: &str) -> impl Iterator<Item = PathBuf> {
    let all = std::fs::read_dir("/proc").expect("/proc").flatten();
    all.map(|entry| entry.path())
        .filter(move |path| read_text(&path.join("environ")).contains(mark))
}

pub(super) fn read_text(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

/// Whether a process is in a control group of its own.
pub(super) fn in_a_group(process: &Path) -> bool {
    read_text(&process.join("cgroup")) != read_text(Path::new("/proc/self/cgroup"))
}

/// Whether no file of a process can be larger than `resources.disk` of the sample, a byte.
pub(super) fn writes_no_large_file(process: &Path) -> bool {
    let limits = read_text(&process.join("limits"));
    let mut words = limits
        .lines()
        .filter_map(|line| line.strip_prefix("Max file size"));
    words
        .next()
        .is_some_and(|line| line.split_whitespace().next() == Some("1"))
}
