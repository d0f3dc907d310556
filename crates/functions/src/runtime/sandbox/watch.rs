//! The worker's own eyes, for what the kernel does not hold: a thread looks a few times a second at the processes and
//! the private directory of each process group that has a limit, and ends those that are beyond.
//!
//! What is allowed is allowed to all processes of a host together. When they are beyond that, those that use most are
//! ended, until the rest is within: each of them may be at work on a message of its own.
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
    /// Its mark, and that of its host.
    pub(crate) token: String,
    pub(crate) scope: String,
    pub(crate) memory: Option<u64>,
    pub(crate) processes: Option<u64>,
    pub(crate) disk: Option<u64>,
    pub(crate) verdict: Verdict,
    /// Set when the private directory holds more than it may.
    pub(crate) full: Arc<AtomicBool>,
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
        if groups.lock().is_empty() {
            std::thread::park();
            continue;
        }
        std::thread::park_timeout(rest);
        let watched = groups.lock().clone();
        let began = Instant::now();
        let wants_processes = watched
            .values()
            .any(|w| w.memory.is_some() || w.processes.is_some());
        let uses = if wants_processes {
            uses(&watched)
        } else {
            HashMap::new()
        };
        let mut hosts: HashMap<&str, Vec<Member<'_>>> = HashMap::new();
        for (group, watched) in &watched {
            let used = uses.get(group).copied().unwrap_or_default();
            let member = (*group, watched, used);
            hosts.entry(&watched.scope).or_default().push(member);
        }
        for members in hosts.into_values() {
            let disk = used_disk(&members);
            for (group, watched, why) in beyond(&members, disk) {
                watched.verdict.set(why);
                if is_full(watched, disk) {
                    // Once: by the next look the directory may be another.
                    watched.full.store(true, Ordering::Relaxed);
                    groups.lock().remove(&group);
                }
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

/// A process group of a host.
type Member<'a> = (i32, &'a Watched, Used);

/// Of the process groups of one host, those that are to end, and why.
fn beyond<'a>(members: &[Member<'a>], disk: u64) -> Vec<(i32, &'a Watched, String)> {
    // It is everybody's, and gone with them.
    let full: Vec<_> = members
        .iter()
        .filter(|(_, watched, _)| is_full(watched, disk))
        .map(|&(group, watched, _)| {
            let limit = watched.disk.unwrap_or_default();
            let why = format!(
                "killed: its private directory holds {disk} bytes, {limit} are allowed: raise `resources.disk`"
            );
            (group, watched, why)
        })
        .collect();
    if !full.is_empty() {
        return full;
    }
    let memory = largest(members, |w| w.memory, |used| used.memory);
    let memory = memory.into_iter().map(|(group, watched, own, all, limit)| {
        let why = format!(
            "killed: its processes used {own} bytes of memory, {}{limit} are allowed: raise `resources.ram`",
            among(own, all)
        );
        (group, watched, why)
    });
    let number = largest(members, |w| w.processes, |used| used.processes);
    let number = number.into_iter().map(|(group, watched, own, all, limit)| {
        let why = format!(
            "killed: it has {own} processes, {}{limit} are allowed: raise `limits.processes`",
            among(own, all)
        );
        (group, watched, why)
    });
    memory.chain(number).collect()
}

/// What is in the private directory of one host.
fn used_disk(members: &[Member<'_>]) -> u64 {
    let limited = members
        .iter()
        .find(|(_, watched, _)| watched.disk.is_some());
    limited.map_or(0, |(_, watched, _)| size(&watched.private))
}

fn is_full(watched: &Watched, disk: u64) -> bool {
    watched.disk.is_some_and(|limit| disk > limit)
}

/// What its neighbours add, when there are any.
fn among(own: u64, all: u64) -> String {
    if all == own {
        String::new()
    } else {
        format!("{all} with those of other messages, ")
    }
}

/// Those that use most, down to where the rest is within the limit: each with what it uses itself, what all use, and
/// the limit.
fn largest<'a>(
    members: &[Member<'a>],
    limit: impl Fn(&Watched) -> Option<u64>,
    value: impl Fn(Used) -> u64,
) -> Vec<(i32, &'a Watched, u64, u64, u64)> {
    let mut with: Vec<_> = members
        .iter()
        .filter_map(|&(group, watched, used)| Some((group, watched, value(used), limit(watched)?)))
        .collect();
    with.sort_by_key(|(group, _, own, _)| (std::cmp::Reverse(*own), *group));
    let all: u64 = with.iter().map(|(_, _, own, _)| own).sum();
    let mut rest = all;
    let mut ends = Vec::new();
    for (group, watched, own, limit) in with {
        if rest <= limit {
            break;
        }
        rest -= own;
        ends.push((group, watched, own, all, limit));
    }
    ends
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
                // A sparse file takes less than its length, and the last block of a whole one is not its own.
                let blocks = std::os::unix::fs::MetadataExt::blocks(&about) * 512;
                total += blocks.min(about.len());
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

    fn watched(token: &str) -> Watched {
        Watched {
            private: PathBuf::new(),
            token: token.to_owned(),
            scope: "a.0.".to_owned(),
            memory: Some(100),
            processes: Some(3),
            disk: Some(10),
            verdict: Verdict::default(),
            full: Arc::default(),
        }
    }

    #[test]
    fn the_limit_that_is_passed_is_named() {
        let alone = watched("a.0.0.");
        let of = |memory, processes, disk| {
            let ends = beyond(&[(5, &alone, Used { memory, processes })], disk);
            let why: Vec<String> = ends.into_iter().map(|(_, _, why)| why).collect();
            why.join("; ")
        };
        assert_eq!(of(100, 3, 10), "");
        let memory = of(101, 3, 10);
        assert!(memory.contains("resources.ram") && !memory.contains("other messages"));
        assert!(of(1, 4, 10).contains("limits.processes"));
        assert!(of(101, 4, 11).contains("resources.disk"));
        let all = HashMap::from([(5, alone)]);
        assert_eq!(by_mark(b"A=1\0GMG_SCOPE=a.0.0.\0", &all), Some(5));
        assert_eq!(by_mark(b"GMG_SCOPE=a.0.1.\0", &all), None);
        assert_eq!(by_mark(b"", &all), None);
    }

    #[test]
    fn a_limit_is_for_all_of_a_host_and_those_who_use_most_end() {
        let all: Vec<Watched> = (0..3).map(|n| watched(&format!("a.0.{n}."))).collect();
        let of = |uses: [(u64, u64); 3], disk| {
            let with = uses.iter().zip(&all).zip(1..);
            let members: Vec<Member<'_>> = with
                .map(|((&(memory, processes), watched), group)| {
                    (group, watched, Used { memory, processes })
                })
                .collect();
            let mut ends: Vec<i32> = beyond(&members, disk).iter().map(|end| end.0).collect();
            ends.sort_unstable();
            ends.dedup();
            ends
        };
        for (uses, disk, wanted) in [
            ([(30, 1), (30, 1), (40, 1)], 10, vec![]),
            ([(30, 1), (31, 1), (40, 1)], 10, vec![3]),
            ([(90, 1), (5, 1), (80, 1)], 10, vec![1]),
            ([(101, 1), (102, 1), (103, 1)], 10, vec![1, 2, 3]),
            ([(1, 1), (1, 2), (1, 1)], 10, vec![2]),
            ([(99, 1), (1, 3), (1, 1)], 10, vec![1, 2]),
            ([(1, 1), (1, 1), (1, 1)], 11, vec![1, 2, 3]),
        ] {
            assert_eq!(of(uses, disk), wanted, "{uses:?} {disk}");
        }
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
