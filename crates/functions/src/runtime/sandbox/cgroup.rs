//! Control groups, of either version, without a library: a directory for each instance, numbers written to
//! its files, process ids to `cgroup.procs`.
//!
//! What must hold: nothing outside a directory of ours is written, but for the controllers of the directory that ours
//! are made in; a directory goes when its instance does, and what still lives in it is killed; a controller that can not
//! be used is left out, and said.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use self::unified::{Unified, make_with, may_make, put};
use super::{Cause, PROCESSES, Share, WEIGHT};

mod unified;

const ROOT: &str = "/sys/fs/cgroup";
/// A CPU share is so much of every tenth of a second.
const PERIOD_US: u64 = 100_000;
/// How long what was killed may take to leave its group, and how often that is looked at.
const LEAVE: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_millis(1);

/// Where this process may make groups.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cgroups {
    unified: Option<Unified>,
    /// Version 1: a directory for each controller.
    separate: Vec<(String, PathBuf)>,
}

/// The start of the names of groups that have guards of workers in them.
const GUARDS: &str = "geminga-guard-";

/// Lines of `/proc/self/cgroup`: controllers and path. Version 2's controllers are empty.
pub(super) fn memberships(text: &str) -> Vec<(Vec<&str>, &str)> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let names = controllers.split(',').filter(|name| !name.is_empty());
            Some((names.collect(), path))
        })
        .collect()
}

impl Cgroups {
    /// Looks where the worker itself is, and tries.
    pub(crate) fn find() -> Self {
        let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::below(Path::new(ROOT), &text)
    }

    pub(crate) fn below(root: &Path, memberships_of_worker: &str) -> Self {
        let mut found = Self::default();
        for (controllers, path) in memberships(memberships_of_worker) {
            let path = path.trim_start_matches('/');
            if controllers.is_empty() {
                found.unified = Unified::find(root, path, std::process::id());
            }
            for name in controllers {
                if matches!(name, "memory" | "cpu" | "pids") {
                    let mount = root.join(name);
                    let own = [mount.join(path), mount];
                    if let Some(own) = own.iter().find(|own| may_make(own)) {
                        found.separate.push((name.to_owned(), own.clone()));
                    }
                }
            }
        }
        found
    }

    pub(crate) fn has(&self, controller: &str) -> bool {
        let unified = self.unified.iter().flat_map(|unified| &unified.names);
        let separate = self.separate.iter().map(|(name, _)| name);
        unified.chain(separate).any(|name| name == controller)
    }

    /// The directories in which groups are made.
    pub(crate) fn parents(&self) -> Vec<PathBuf> {
        let unified = self.unified.iter().map(|unified| &unified.place);
        let separate = self.separate.iter().map(|(_, place)| place);
        unified.chain(separate).cloned().collect()
    }

    /// Where groups are outside the worker's own, its guard must be too: who kills the whole of the worker's group, as
    /// `systemctl kill` does, must leave one that ends the functions.
    pub(crate) fn put_guard(&self, scope: &str, pid: u32) {
        let Some(unified) = self.unified.as_ref().filter(|unified| unified.outside) else {
            return;
        };
        let entries = fs::read_dir(&unified.place).into_iter().flatten().flatten();
        for entry in entries {
            // A guard can not remove the group that it is in. This fails where one lives.
            if entry.file_name().to_string_lossy().starts_with(GUARDS) {
                let _ = fs::remove_dir(entry.path());
            }
        }
        let place = unified.place.join(format!("{GUARDS}{scope}"));
        if let Err(error) = make_with(&place, pid) {
            tracing::warn!(place = %place.display(), %error, "the process guard stays in the worker's control group");
        }
    }

    /// A group of this name with these limits; `None` when there is no controller for any of them.
    pub(crate) fn group(&self, name: &str, share: &Share, processes: Option<u64>) -> Option<Group> {
        let mut group = Group::default();
        group.share = *share;
        if let Some(unified) = &self.unified {
            let place = unified.place.join(name);
            if fs::create_dir(&place).is_ok() {
                for controller in &unified.names {
                    group.limit(&place, controller, &UNIFIED, processes);
                }
                group.unified = Some(place);
            }
        }
        for (controller, parent) in &self.separate {
            if controller == "cpu" && share.cpu.is_none() {
                continue;
            }
            let place = parent.join(name);
            if fs::create_dir(&place).is_ok() {
                group.limit(&place, controller, &SEPARATE, processes);
                group.separate.push(place);
            }
        }
        (group.unified.is_some() || !group.separate.is_empty()).then_some(group)
    }
}

/// The group of one instance. Dropping it kills what is left and removes it.
#[derive(Debug, Default)]
pub(crate) struct Group {
    unified: Option<PathBuf>,
    separate: Vec<PathBuf>,
    share: Share,
    /// What was set, for the words of an end.
    memory: Option<u64>,
    processes: Option<u64>,
    /// Processes of ours in it now, and how often one was to be started in it.
    living: AtomicU64,
    begun: AtomicU64,
    /// That a process could not be put in was said.
    warned: AtomicBool,
}

/// The files of a version.
struct Files {
    memory: &'static str,
    number: &'static str,
    /// The quota, and the period where it has a file of its own.
    cpu: (&'static str, Option<&'static str>),
    /// Its part when all want the processors.
    weight: (&'static str, &'static str),
}

const UNIFIED: Files = Files {
    memory: "memory.max",
    number: "pids.max",
    cpu: ("cpu.max", None),
    weight: ("cpu.weight", WEIGHT.0),
};
const SEPARATE: Files = Files {
    memory: "memory.limit_in_bytes",
    number: "pids.max",
    cpu: ("cpu.cfs_quota_us", Some("cpu.cfs_period_us")),
    weight: ("cpu.shares", WEIGHT.1),
};

impl Group {
    fn limit(&mut self, place: &Path, controller: &str, files: &Files, processes: Option<u64>) {
        let set = |file: &str, text: String| fs::write(place.join(file), text).is_ok();
        match controller {
            "memory" => {
                let bytes = self.share.memory();
                if set(files.memory, bytes.to_string()) {
                    self.memory = Some(bytes);
                }
                if files.memory == UNIFIED.memory {
                    // What is swapped out would not count; and one that is killed takes the others along.
                    set("memory.swap.max", "0".to_owned());
                    set("memory.oom.group", "1".to_owned());
                }
            }
            "cpu" => {
                let (weight, part) = files.weight;
                set(weight, part.to_owned());
                if let Some(cores) = self.share.cpu {
                    let quota = ((cores * PERIOD_US as f64) as u64).max(1000);
                    match files.cpu {
                        (file, Some(period)) => {
                            set(period, PERIOD_US.to_string());
                            set(file, quota.to_string());
                        }
                        (file, None) => {
                            set(file, format!("{quota} {PERIOD_US}"));
                        }
                    }
                }
            }
            "pids" => {
                let most = processes.unwrap_or(PROCESSES);
                if set(files.number, most.to_string()) {
                    self.processes = Some(most);
                }
            }
            _ => {}
        }
    }

    fn places(&self) -> impl Iterator<Item = &PathBuf> {
        self.unified.iter().chain(&self.separate)
    }

    /// Whether a thread alone can enter it: then no moment passes outside.
    pub(crate) fn by_thread(&self) -> bool {
        !self.separate.is_empty()
    }

    /// Whether a process can enter it only when it is there: then it must not begin before that.
    pub(crate) fn is_entered_late(&self) -> bool {
        self.unified.is_some()
    }

    /// Puts the calling thread in. False when that failed somewhere: then nothing is held.
    pub(crate) fn enter_thread(&self) -> bool {
        let mut inside = true;
        for place in &self.separate {
            // 0 is who writes; its number would make the kernel stop every process for a moment.
            let put = fs::write(place.join("tasks"), "0");
            inside &= put.map_err(|error| self.warn(place, &error)).is_ok();
        }
        inside
    }

    /// Puts a process into the group that no thread can enter alone. What it has started by then would stay outside:
    /// it is to wait for this. False when that failed.
    pub(crate) fn enter(&self, pid: u32) -> bool {
        let Some(place) = &self.unified else {
            return true;
        };
        match put(place, pid) {
            Ok(()) => true,
            // It has ended already.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
                true
            }
            Err(error) => {
                self.warn(place, &error);
                false
            }
        }
    }

    /// Once: there may be a process for every message.
    fn warn(&self, place: &Path, error: &io::Error) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                place = %place.display(),
                %error,
                "processes can not be put into their control group: what they use together is looked at a few times a \
                 second, and their CPU is not held"
            );
        }
    }

    /// Lets the kernel take one process for want of memory, where it takes all otherwise.
    pub(crate) fn apart(&self) {
        if let Some(place) = self.unified.as_ref().filter(|_| self.memory.is_some()) {
            let _ = fs::write(place.join("memory.oom.group"), "0");
        }
    }

    /// How often a limit was met in it.
    fn counts(&self) -> Counts {
        let sum =
            |file: &str, name: &str| -> u64 { self.places().map(|at| count(at, file, name)).sum() };
        Counts {
            killed: sum("memory.events", "oom_kill") + sum("memory.oom_control", "oom_kill"),
            refused: sum("pids.events", "max"),
        }
    }

    /// Whether the kernel holds memory, and the number, so that nobody need look.
    pub(crate) fn holds(&self) -> (bool, bool) {
        (self.memory.is_some(), self.processes.is_some())
    }

    /// Kills all that is in it. What forks on may leave some behind.
    pub(crate) fn kill(&self) {
        kill(&self.places().cloned().collect::<Vec<_>>());
    }

    /// The same, until nothing is, for a moment at most.
    pub(crate) async fn kill_all(&self) {
        let places: Vec<PathBuf> = self.places().cloned().collect();
        let until = Instant::now() + LEAVE;
        while kill(&places) > 0 && Instant::now() < until {
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// What the kernel counts of a group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    /// Processes that it killed for want of memory.
    killed: u64,
    /// Processes that it did not start.
    refused: u64,
}

/// The time of one process in the group of its host: what is met in that time may be its doing.
#[derive(Debug)]
pub(crate) struct Stay {
    group: Arc<Group>,
    before: Counts,
    /// Among all that began in the group, when nobody else was there.
    alone: Option<u64>,
}

impl Stay {
    /// Before the process is started: what keeps it from that is met by those who are there.
    pub(crate) fn begin(group: &Arc<Group>) -> Self {
        let number = group.begun.fetch_add(1, Ordering::Relaxed) + 1;
        let others = group.living.fetch_add(1, Ordering::Relaxed);
        Self {
            before: group.counts(),
            alone: (others == 0).then_some(number),
            group: group.clone(),
        }
    }

    /// The limit that was met in this time.
    pub(crate) fn met(&self) -> Option<Cause> {
        let (group, now) = (&self.group, self.group.counts());
        let memory = group.memory.filter(|_| now.killed > self.before.killed);
        let processes = group.processes;
        let processes = processes.filter(|_| now.refused > self.before.refused);
        let why = match (memory, processes) {
            (Some(memory), _) => format!(
                "killed: its processes used more than {memory} bytes of memory: {}",
                group.share.memory_advice()
            ),
            (None, Some(processes)) => format!(
                "its processes and threads came to {processes}, the most that is allowed: raise `limits.processes`"
            ),
            (None, None) => return None,
        };
        let last = group.begun.load(Ordering::Relaxed);
        Some(Cause {
            why,
            its_own: self.alone == Some(last),
        })
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.group.living.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Kills who is there, once each, and says how many they were.
fn kill(places: &[PathBuf]) -> usize {
    let mut living = 0;
    for place in places {
        // All at once, since Linux 5.14. A file of version 2, which is not made where it is not.
        let _ = fs::File::options()
            .write(true)
            .open(place.join("cgroup.kill"))
            .and_then(|mut file| io::Write::write_all(&mut file, b"1"));
        for pid in members(place) {
            living += 1;
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
    living
}

/// Removes groups; false when one stays behind.
fn remove(places: &[PathBuf]) -> bool {
    let gone = |place: &PathBuf| match fs::remove_dir(place) {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    // Each of them is tried.
    places.iter().filter(|place| !gone(place)).count() == 0
}

fn members(place: &Path) -> Vec<Pid> {
    let text = fs::read_to_string(place.join("cgroup.procs")).unwrap_or_default();
    let ids = text.lines().filter_map(|line| line.parse().ok());
    ids.filter_map(Pid::from_raw).collect()
}

/// A counter of a file of `name number` lines.
fn count(place: &Path, file: &str, name: &str) -> u64 {
    let text = fs::read_to_string(place.join(file)).unwrap_or_default();
    counter(&text, name)
}

fn counter(text: &str, name: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(key, _)| *key == name)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

impl Drop for Group {
    fn drop(&mut self) {
        let places: Vec<PathBuf> = self.places().cloned().collect();
        kill(&places);
        if remove(&places) {
            return;
        }
        // Who was killed takes a moment to leave, and whoever drops a host must not wait for that. What this thread does
        // not see the end of is the guard's.
        let thread = std::thread::Builder::new().name("geminga-leave".to_owned());
        let waits = thread.spawn(move || {
            let until = Instant::now() + LEAVE;
            while Instant::now() < until {
                std::thread::sleep(LOOK);
                kill(&places);
                if remove(&places) {
                    return;
                }
            }
            tracing::debug!(?places, "a control group stays behind");
        });
        if let Err(error) = waits {
            tracing::debug!(%error, "a control group stays behind");
        }
    }
}

#[cfg(test)]
mod tests;
