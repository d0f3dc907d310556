//! The worker's own eyes, for what the kernel does not hold: a thread looks a few times a second at the processes and
//! the private directory of each process group that has a limit, and ends those that are beyond.
//!
//! A process is found by its group, or by its mark when it has made a group of its own. One that hides from both is not
//! counted: only a control group holds that.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal};

use super::Verdict;
use crate::runtime::process::marked;

const EACH: Duration = Duration::from_millis(200);
/// Of its time the thread spends no more than this part looking.
const REST: u32 = 20;
/// How often what forks on is swept before it is left to the next look.
const SWEEPS: usize = 5;
/// Files that are looked at in one directory: a tree of more is beyond any limit.
const FILES_MAX: usize = 100_000;

/// What is looked at for one process group.
#[derive(Debug, Clone)]
pub(crate) struct Watched {
    pub(crate) private: PathBuf,
    /// Its mark.
    pub(crate) token: String,
    pub(crate) memory: Option<u64>,
    pub(crate) processes: Option<u64>,
    pub(crate) disk: Option<u64>,
    pub(crate) verdict: Verdict,
}

type Groups = Arc<Mutex<HashMap<i32, Watched>>>;

/// The thread. It starts with the first group that has to be watched, and ends with this value.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    groups: Groups,
    ended: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Watch {
    pub(crate) fn add(&self, group: i32, watched: Watched) {
        self.groups.lock().insert(group, watched);
        let mut thread = self.thread.lock();
        if let Some(thread) = &*thread {
            thread.thread().unpark();
        } else {
            let (groups, ended) = (self.groups.clone(), self.ended.clone());
            let started = std::thread::Builder::new()
                .name("geminga-watch".to_owned())
                .spawn(move || look(&groups, &ended));
            match started {
                Ok(started) => *thread = Some(started),
                Err(error) => tracing::warn!(%error, "processes are not watched"),
            }
        }
    }

    pub(crate) fn remove(&self, group: i32) {
        self.groups.lock().remove(&group);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.lock().take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

fn look(groups: &Groups, ended: &AtomicBool) {
    let mut rest = EACH;
    while !ended.load(Ordering::Relaxed) {
        let watched = groups.lock().clone();
        if watched.is_empty() {
            std::thread::park();
            continue;
        }
        std::thread::park_timeout(rest);
        let began = Instant::now();
        let wants_processes = watched
            .values()
            .any(|w| w.memory.is_some() || w.processes.is_some());
        let uses = if wants_processes {
            uses(&watched)
        } else {
            HashMap::new()
        };
        for (group, watched) in watched {
            let used = uses.get(&group).copied().unwrap_or_default();
            let disk = watched.disk.map_or(0, |_| size(&watched.private));
            if let Some(why) = beyond(&watched, used, disk) {
                watched.verdict.set(why);
                end(group, &watched.token);
            }
        }
        rest = EACH.max(began.elapsed() * REST);
    }
}

/// Kills a group, and what it started elsewhere.
fn end(group: i32, token: &str) {
    for _ in 0..SWEEPS {
        if let Some(group) = Pid::from_raw(group) {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        let marked = marked(token);
        if marked.is_empty() {
            return;
        }
        for pid in marked {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
}

/// What a process group uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Used {
    memory: u64,
    processes: u64,
}

/// The limit that is passed, in words.
fn beyond(watched: &Watched, used: Used, disk: u64) -> Option<String> {
    let over = |limit: Option<u64>, value: u64| limit.filter(|limit| value > *limit);
    if let Some(limit) = over(watched.memory, used.memory) {
        return Some(format!(
            "killed: its processes used {} bytes of memory, {limit} are allowed: raise `resources.ram`",
            used.memory
        ));
    }
    if let Some(limit) = over(watched.processes, used.processes) {
        return Some(format!(
            "killed: it has {} processes, {limit} are allowed: raise `limits.processes`",
            used.processes
        ));
    }
    over(watched.disk, disk).map(|limit| {
        format!(
            "killed: its private directory holds {disk} bytes, {limit} are allowed: raise `resources.disk`"
        )
    })
}

/// Memory and number of processes, by the group that they belong to.
fn uses(watched: &HashMap<i32, Watched>) -> HashMap<i32, Used> {
    let mut all: HashMap<i32, Used> = HashMap::new();
    let page = rustix::param::page_size() as u64;
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        if !name.as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let Some((group, pages)) = group_and_pages(&stat) else {
            continue;
        };
        let group = if watched.contains_key(&group) {
            Some(group)
        } else {
            let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            by_mark(&environment, watched)
        };
        if let Some(group) = group {
            let used = all.entry(group).or_default();
            used.memory += pages * page;
            used.processes += 1;
        }
    }
    all
}

fn by_mark(environment: &[u8], watched: &HashMap<i32, Watched>) -> Option<i32> {
    let mut lines = environment.split(|&b| b == 0);
    let mark = lines.find_map(|line| line.strip_prefix(b"GMG_SCOPE="))?;
    let mut of = watched.iter();
    of.find(|(_, w)| w.token.as_bytes() == mark)
        .map(|(group, _)| *group)
}

/// Of a line of `/proc/PID/stat`: the process group, and the resident pages.
fn group_and_pages(stat: &str) -> Option<(i32, u64)> {
    // The name may hold anything, a bracket too.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let group = fields.nth(2)?.parse().ok()?;
    let pages = fields.nth(18)?.parse().ok()?;
    Some((group, pages))
}

/// Bytes of the files below a directory.
fn size(directory: &Path) -> u64 {
    let (mut total, mut files) = (0, 0);
    let mut folders = vec![directory.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        for entry in entries {
            files += 1;
            if files > FILES_MAX {
                return u64::MAX;
            }
            // Of a link it is the link's own.
            let Ok(about) = entry.metadata() else {
                continue;
            };
            if about.is_dir() {
                folders.push(entry.path());
            } else {
                total += std::os::unix::fs::MetadataExt::blocks(&about) * 512;
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_whatever_the_process_is_called() {
        let stat = "12 (a) b (c) S 1 77 77 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 99 1000 321 18446744073709551615";
        assert_eq!(group_and_pages(stat), Some((77, 321)));
        assert_eq!(group_and_pages("12 (a"), None);
    }

    #[test]
    fn the_first_limit_that_is_passed_is_named() {
        let watched = Watched {
            private: PathBuf::new(),
            token: "a.0.0.".to_owned(),
            memory: Some(100),
            processes: Some(3),
            disk: Some(10),
            verdict: Verdict::default(),
        };
        let of = |memory, processes, disk| beyond(&watched, Used { memory, processes }, disk);
        assert_eq!(of(100, 3, 10), None);
        assert!(of(101, 9, 99).expect("over").contains("resources.ram"));
        assert!(of(1, 4, 99).expect("over").contains("limits.processes"));
        assert!(of(1, 1, 11).expect("over").contains("resources.disk"));
        let all = HashMap::from([(5, watched)]);
        assert_eq!(by_mark(b"A=1\0GMG_SCOPE=a.0.0.\0", &all), Some(5));
        assert_eq!(by_mark(b"GMG_SCOPE=a.0.1.\0", &all), None);
        assert_eq!(by_mark(b"", &all), None);
    }

    #[test]
    fn files_are_summed_and_links_not_followed() {
        let directory = tempfile::tempdir().expect("temporary");
        let inside = directory.path().join("a/b");
        std::fs::create_dir_all(&inside).expect("made");
        std::fs::write(inside.join("f"), vec![1; 100_000]).expect("written");
        std::os::unix::fs::symlink("/usr", inside.join("link")).expect("linked");
        let total = size(directory.path());
        assert!((90_000..1_000_000).contains(&total), "{total}");
    }
}
