//! The worker's own eyes, for what the kernel does not hold: a thread looks a few times a second at the processes and
//! the private directory of each process group that has a limit, and ends those that are beyond.
//!
//! What is allowed is allowed to all processes of a host together. When they are beyond that, those that use most are
//! ended, until the rest is within: each of them may be at work on a message of its own.
//!
//! What an earlier message left in a session of its own counts as well, and is the first to end.
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
use crate::runtime::process::mark::{Mark, values};

const EACH: Duration = Duration::from_millis(200);
/// Of its time the thread spends no more than this part looking.
const REST: u32 = 20;
/// How often what forks on is swept before it is left to the next look.
const SWEEPS: usize = 5;
/// The age of a process that belongs to no message in hand: one that was just started is not known yet.
const LEFT: Duration = Duration::from_secs(2);
/// Files that are looked at in one directory: a tree of more is beyond any limit.
const FILES_MAX: usize = 100_000;

/// What is looked at for one process group. One without limits is known, so that it is not taken for what an earlier
/// message left.
#[derive(Debug, Clone)]
pub(crate) struct Watched {
    pub(crate) private: PathBuf,
    /// Its mark, and that of its host.
    pub(crate) mark: Mark,
    pub(crate) host: Mark,
    pub(crate) memory: Option<u64>,
    pub(crate) processes: Option<u64>,
    pub(crate) disk: Option<u64>,
    pub(crate) verdict: Verdict,
    /// Set when the private directory holds more than it may.
    pub(crate) full: Arc<AtomicBool>,
}

impl Watched {
    fn counts_processes(&self) -> bool {
        self.memory.is_some() || self.processes.is_some()
    }

    fn has_limits(&self) -> bool {
        self.counts_processes() || self.disk.is_some()
    }
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
        let is_looked_at = watched.has_limits();
        self.groups.lock().insert(group, watched);
        if !is_looked_at {
            return;
        }
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
        if !groups.lock().values().any(Watched::has_limits) {
            std::thread::park();
            continue;
        }
        // Whoever is added wakes it too.
        let until = Instant::now() + rest;
        while let Some(left) = until.checked_duration_since(Instant::now())
            && !ended.load(Ordering::Relaxed)
        {
            std::thread::park_timeout(left);
        }
        let watched = groups.lock().clone();
        let began = Instant::now();
        let wants_processes = watched.values().any(Watched::counts_processes);
        let mut uses = if wants_processes {
            uses(&watched)
        } else {
            Uses::default()
        };
        let mut hosts: HashMap<&Mark, Vec<Member<'_>>> = HashMap::new();
        for (group, watched) in &watched {
            let used = uses.groups.get(group).copied().unwrap_or_default();
            let member = (*group, watched, used);
            hosts.entry(&watched.host).or_default().push(member);
        }
        for (host, members) in hosts {
            let left = uses.left.remove(host).unwrap_or_default();
            if too_much(&members, &left) {
                let private = members.first().and_then(|it| it.1.private.file_name());
                tracing::warn!(
                    host = ?private.unwrap_or_default(),
                    processes = left.len(),
                    "what earlier messages left running is ended: with it the function is beyond its limits"
                );
                for (pid, _) in left {
                    let _ = rustix::process::kill_process(pid, Signal::KILL);
                }
            }
            let disk = used_disk(&members);
            for (group, watched, why) in beyond(&members, disk) {
                watched.verdict.set(why);
                if is_full(watched, disk) {
                    // Once: by the next look the directory may be another.
                    watched.full.store(true, Ordering::Relaxed);
                    groups.lock().remove(&group);
                }
                end(group, &watched.mark);
            }
        }
        rest = EACH.max(began.elapsed() * REST);
    }
}

/// Kills a group, and what it started elsewhere.
fn end(group: i32, mark: &Mark) {
    for _ in 0..SWEEPS {
        if let Some(group) = Pid::from_raw(group) {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        let marked = mark.processes();
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

/// What processes use.
#[derive(Debug, Default)]
struct Uses {
    /// By the group that they belong to.
    groups: HashMap<i32, Used>,
    /// By the mark of their host: those that no message in hand has started.
    left: HashMap<Mark, Vec<(Pid, Used)>>,
}

/// Whether what is left is too much beside those who are at work.
fn too_much(members: &[Member<'_>], left: &[(Pid, Used)]) -> bool {
    let all = || {
        left.iter()
            .map(|(_, used)| used)
            .chain(members.iter().map(|m| &m.2))
    };
    let over = |limit: Option<u64>, value: u64| limit.is_some_and(|limit| value > limit);
    let memory = members.iter().find_map(|(_, watched, _)| watched.memory);
    let number = members.iter().find_map(|(_, watched, _)| watched.processes);
    !left.is_empty()
        && (over(memory, all().map(|used| used.memory).sum())
            || over(number, all().map(|used| used.processes).sum()))
}

fn uses(watched: &HashMap<i32, Watched>) -> Uses {
    let mut all = Uses::default();
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let now = uptime.split(' ').next().and_then(|text| text.parse().ok());
    let now = Duration::from_secs_f64(now.unwrap_or(0.0));
    let ticks_per_second = rustix::param::clock_ticks_per_second().max(1);
    let page = rustix::param::page_size() as u64;
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        if !name.as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let Some(stat) = Stat::of(&stat) else {
            continue;
        };
        let whose = if watched.contains_key(&stat.group) {
            Whose::Group(stat.group)
        } else {
            let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            by_mark(&environment, watched)
        };
        let used = Used {
            memory: stat.pages * page,
            processes: 1,
        };
        match whose {
            Whose::Group(group) => {
                let sum = all.groups.entry(group).or_default();
                sum.memory += used.memory;
                sum.processes += used.processes;
            }
            Whose::Host(host) => {
                let started = stat.started_ticks.saturating_mul(1000) / ticks_per_second;
                let age = now.saturating_sub(Duration::from_millis(started));
                let pid = name.to_str().and_then(|text| text.parse().ok());
                if let Some(pid) = pid.and_then(Pid::from_raw).filter(|_| age > LEFT) {
                    all.left.entry(host).or_default().push((pid, used));
                }
            }
            Whose::Nobody => {}
        }
    }
    all
}

/// Whose a process is.
#[derive(Debug, PartialEq, Eq)]
enum Whose {
    /// Of a message in hand.
    Group(i32),
    /// Of a host, by its mark.
    Host(Mark),
    Nobody,
}

fn by_mark(environment: &[u8], watched: &HashMap<i32, Watched>) -> Whose {
    let Some(value) = values(environment).next() else {
        return Whose::Nobody;
    };
    if let Some((group, _)) = watched.iter().find(|(_, w)| w.mark.is(value)) {
        return Whose::Group(*group);
    }
    match watched.values().find(|w| w.host.begins(value)) {
        Some(watched) => Whose::Host(watched.host.clone()),
        None => Whose::Nobody,
    }
}

/// Of a line of `/proc/PID/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    group: i32,
    /// Since the start of the machine.
    started_ticks: u64,
    /// Resident.
    pages: u64,
}

impl Stat {
    fn of(line: &str) -> Option<Self> {
        // The name may hold anything, a bracket too.
        let mut fields = line.rsplit_once(')')?.1.split_whitespace();
        let group = fields.nth(2)?.parse().ok()?;
        let started_ticks = fields.nth(16)?.parse().ok()?;
        let pages = fields.nth(1)?.parse().ok()?;
        Some(Self {
            group,
            started_ticks,
            pages,
        })
    }
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
mod tests;
