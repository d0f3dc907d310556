//! Control groups, of either version, without a library: a directory for each instance, numbers written to
//! its files, process ids to `cgroup.procs`.
//!
//! What must hold: nothing outside a directory of ours is written, but for the controllers of the directory that ours
//! are made in; a directory goes when its instance does, and what still lives in it is killed; a controller that can not
//! be used is left out, and said.
//!
//! Version 2 has no processes beside groups with controllers, so the worker's own group is no place for others while it
//! is in there. Where that group was given to it (`Delegate=yes`, a container), the worker moves into a leaf of it, and
//! the groups of functions are the leaf's neighbours; elsewhere they are the neighbours of the worker's own group.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use super::{Cause, PROCESSES, Share};

const ROOT: &str = "/sys/fs/cgroup";
/// A CPU share is so much of every tenth of a second.
const PERIOD_US: u64 = 100_000;
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];
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

/// Version 2: one directory for all controllers, and which of them it has.
#[derive(Debug, Clone)]
struct Unified {
    place: PathBuf,
    names: Vec<String>,
    /// It is outside the worker's own group: what ends that group does not end what is made here.
    outside: bool,
}

/// The start of the names of groups that are not an instance's: those of workers and their guards.
const LEAF: &str = "geminga-worker-";
const GUARDS: &str = "geminga-guard-";

/// Lines of `/proc/self/cgroup`: controllers and path. Version 2's controllers are empty.
fn memberships(text: &str) -> Vec<(Vec<&str>, &str)> {
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
                found.unified = unified(root, path, std::process::id());
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
        let put = fs::create_dir(&place).and_then(|()| put(&place, pid));
        if let Err(error) = put {
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

/// Whether a group can be made there that processes can be put into: it is tried.
fn may_make(parent: &Path) -> bool {
    let name = format!(
        "geminga-try-{}",
        geminga_stdx::Random::from_entropy().name(8)
    );
    let place = parent.join(name);
    let made = fs::create_dir(&place).is_ok();
    // Of version 2: below a group that shares its controllers by threads, nothing but threads can be put.
    let whole = fs::read_to_string(place.join("cgroup.type"));
    let whole = whole.map_or(true, |kind| kind.trim() == "domain");
    let _ = fs::remove_dir(&place);
    made && whole
}

/// Where groups of version 2 may be, seen from the group that the worker is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// In it: nothing else is.
    Within,
    /// In it, when the worker has moved into a leaf.
    Leaf,
    /// Beside it.
    Beside,
}

/// `members` are who is in the worker's own group, as the kernel writes them; `given` says that whoever made the group
/// leaves it to the worker.
fn layout(is_root: bool, members: &str, worker: u32, given: bool) -> Layout {
    let mut members = members.split_whitespace();
    match (members.next(), members.next()) {
        // The root of the machine alone may have both.
        _ if is_root => Layout::Within,
        (None, _) => Layout::Within,
        (Some(first), None) if given && first == worker.to_string() => Layout::Leaf,
        _ => Layout::Beside,
    }
}

/// The directory of version 2 for groups of a worker that is in `path` below `root`.
fn unified(root: &Path, path: &str, worker: u32) -> Option<Unified> {
    let own = root.join(path);
    if !own.join("cgroup.controllers").exists() {
        return None;
    }
    let is_root = !own.join("cgroup.type").exists();
    let members = fs::read_to_string(own.join("cgroup.procs")).unwrap_or_default();
    let given = path.is_empty() || is_delegated(&own);
    let within = match layout(is_root, &members, worker, given) {
        Layout::Within => usable(&own),
        Layout::Leaf => match move_to_leaf(&own, worker) {
            Ok(()) => usable(&own),
            Err(error) => {
                tracing::debug!(own = %own.display(), %error, "the worker stays in its control group");
                None
            }
        },
        Layout::Beside => None,
    };
    let unified = |place: &Path, names, outside| Unified {
        place: place.to_path_buf(),
        names,
        outside,
    };
    if let Some(names) = within {
        return Some(unified(&own, names, false));
    }
    let beside = own.parent().filter(|up| up.starts_with(root))?;
    // A worker in its leaf is still in the group that it was given.
    let leaf = own.file_name()?.to_string_lossy().starts_with(LEAF);
    Some(unified(beside, usable(beside)?, !leaf))
}

/// Systemd marks what it leaves to others.
fn is_delegated(place: &Path) -> bool {
    ["user.delegate", "trusted.delegate"].iter().any(|name| {
        let mut value = [0_u8; 8];
        let read = rustix::fs::getxattr(place, *name, &mut value[..]);
        matches!(read, Ok(1..)) && value[0] == b'1'
    })
}

fn move_to_leaf(own: &Path, worker: u32) -> io::Result<()> {
    // Those of workers that ended here. This fails where one lives.
    for entry in fs::read_dir(own)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(LEAF) {
            let _ = fs::remove_dir(entry.path());
        }
    }
    let leaf = own.join(format!("{LEAF}{worker}"));
    match fs::create_dir(&leaf) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => put(&leaf, worker),
    }
}

/// The controllers that groups made in a directory of version 2 have; `None` when none can be made.
fn usable(place: &Path) -> Option<Vec<String>> {
    if !place.join("cgroup.controllers").exists() {
        return None;
    }
    let control = place.join("cgroup.subtree_control");
    let is_root = !place.join("cgroup.type").exists();
    let is_empty = match fs::read_to_string(place.join("cgroup.procs")) {
        Ok(members) => members.trim().is_empty(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    // Beside processes the kernel still gives the controllers that count by threads, and so makes of the whole group one
    // whose children take no process: nothing is asked of it then.
    if !is_root && !is_empty {
        return None;
    }
    let given = || fs::read_to_string(&control).unwrap_or_default();
    for name in CONTROLLERS {
        if !given().split_whitespace().any(|has| has == name) {
            let _ = fs::write(&control, format!("+{name}"));
        }
    }
    let names = given();
    let names = names
        .split_whitespace()
        .map(|name| name.trim_start_matches('+'));
    let names: Vec<String> = names
        .filter(|name| CONTROLLERS.contains(name))
        .map(str::to_owned)
        .collect();
    (!names.is_empty() && may_make(place)).then_some(names)
}

/// Puts a process into a group of version 2.
fn put(place: &Path, pid: u32) -> io::Result<()> {
    use std::io::Write;
    // The kernel has made the file: where it is not, this is no group.
    let mut procs = fs::File::options()
        .write(true)
        .open(place.join("cgroup.procs"))?;
    procs.write_all(pid.to_string().as_bytes())
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
}

const UNIFIED: Files = Files {
    memory: "memory.max",
    number: "pids.max",
    cpu: ("cpu.max", None),
};
const SEPARATE: Files = Files {
    memory: "memory.limit_in_bytes",
    number: "pids.max",
    cpu: ("cpu.cfs_quota_us", Some("cpu.cfs_period_us")),
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

    /// Puts a process into the group that no thread can enter alone. What it has started by then stays outside, and is
    /// found by its mark. False when that failed.
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
mod tests {
    use super::*;

    #[test]
    fn memberships_of_both_versions_are_read() {
        let text = "8:pids:/a\n4:memory:/b:c\n2:cpu,cpuacct:/\n0::/d\nnonsense\n";
        let wanted = vec![
            (vec!["pids"], "/a"),
            (vec!["memory"], "/b:c"),
            (vec!["cpu", "cpuacct"], "/"),
            (vec![], "/d"),
        ];
        assert_eq!(memberships(text), wanted);
    }

    /// A directory tree stands for the kernel's: what is written where is what counts.
    #[test]
    fn a_group_of_version_2_is_made_beside_the_workers_where_its_own_may_have_no_children() {
        let root = tempfile::tempdir().expect("temporary");
        let slice = root.path().join("user.slice/app.slice");
        fs::create_dir_all(slice.join("me.scope")).expect("made");
        for (file, text) in [
            ("cgroup.controllers", "cpu memory pids"),
            ("me.scope/cgroup.controllers", "cpu memory pids"),
            ("me.scope/cgroup.type", "domain\n"),
            ("me.scope/cgroup.procs", "1\n2\n"),
        ] {
            fs::write(slice.join(file), text).expect("written");
        }
        fs::write(slice.join("cgroup.subtree_control"), "memory pids cpu io\n").expect("written");
        let cgroups = Cgroups::below(root.path(), "0::/user.slice/app.slice/me.scope\n");
        assert_eq!(cgroups.parents(), std::slice::from_ref(&slice));
        assert!(cgroups.has("memory") && cgroups.has("cpu") && !cgroups.has("io"));
        let share = Share {
            cpu: Some(1.5),
            memory_bytes: Some(4096),
            disk_bytes: None,
        };
        let group = cgroups.group("g", &share, Some(7)).expect("made");
        let read = |file: &str| fs::read_to_string(slice.join("g").join(file)).expect(file);
        assert_eq!(read("memory.max"), "4096");
        assert_eq!(read("pids.max"), "7");
        assert_eq!(read("cpu.max"), "150000 100000");
        assert_eq!((group.holds(), group.by_thread()), ((true, true), false));
        assert!(!group.enter(77), "no kernel made this group");
        fs::write(slice.join("g/cgroup.procs"), "").expect("written");
        assert!(group.enter(77));
        assert_eq!(read("cgroup.procs"), "77");
        assert_eq!(read("memory.oom.group"), "1");
        group.apart();
        assert_eq!(read("memory.oom.group"), "0");
        // Nobody has the number 77 there, so that nobody is killed when the group goes.
        fs::write(slice.join("g/cgroup.procs"), "").expect("written");
    }

    #[test]
    fn where_groups_of_version_2_are_depends_on_who_is_in_the_workers_own() {
        for (is_root, members, given, wanted) in [
            (true, "1\n7\n", false, Layout::Within),
            (false, "", false, Layout::Within),
            (false, "7\n", true, Layout::Leaf),
            (false, "7\n", false, Layout::Beside),
            (false, "77\n", true, Layout::Beside),
            (false, "7\n8\n", true, Layout::Beside),
            // Who is outside the name space of the reader.
            (false, "0\n", true, Layout::Beside),
        ] {
            let found = layout(is_root, members, 7, given);
            assert_eq!(found, wanted, "{is_root} {members:?} {given}");
        }
    }

    /// The kernel gives `cpu` and `pids` to a group with processes, and then lets no process into its children.
    #[test]
    fn a_group_with_processes_is_asked_for_nothing() {
        let root = tempfile::tempdir().expect("temporary");
        let own = root.path().join("system.slice/geminga.service");
        fs::create_dir_all(&own).expect("made");
        for (file, text) in [
            ("cgroup.controllers", "cpu memory pids"),
            ("cgroup.subtree_control", ""),
            ("cgroup.type", "domain\n"),
            ("cgroup.procs", "77\n"),
        ] {
            fs::write(own.join(file), text).expect("written");
        }
        let cgroups = Cgroups::below(root.path(), "0::/system.slice/geminga.service\n");
        assert!(cgroups.parents().is_empty(), "{cgroups:?}");
        let given = fs::read_to_string(own.join("cgroup.subtree_control")).expect("read");
        assert_eq!(given, "");
    }

    /// A group of version 2 that this test may make, when the machine has such a mount.
    struct Real(PathBuf);

    impl Real {
        fn make() -> Option<Self> {
            let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
            let name = geminga_stdx::Random::from_entropy().name(8);
            let made = mounts.lines().find_map(|line| {
                let (before, after) = line.split_once(" - ")?;
                let mount = before
                    .split(' ')
                    .nth(4)
                    .filter(|_| after.starts_with("cgroup2 "))?;
                let place = Path::new(mount).join(format!("geminga-test-{name}"));
                fs::create_dir(&place).is_ok().then_some(Self(place))
            });
            if made.is_none() {
                println!("not run: no control group of version 2 can be made here");
            }
            made
        }

        fn child(&self, name: &str) -> PathBuf {
            let place = self.0.join(name);
            fs::create_dir(&place).expect("made");
            place
        }
    }

    impl Drop for Real {
        fn drop(&mut self) {
            for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(entry.path());
            }
            let _ = fs::remove_dir(&self.0);
        }
    }

    struct Sleeper(std::process::Child);

    impl Sleeper {
        fn start() -> Self {
            let started = std::process::Command::new("sleep").arg("60").spawn();
            Self(started.expect("sleep runs"))
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_group_that_takes_no_process_is_not_used_and_not_believed() {
        let Some(real) = Real::make() else { return };
        assert!(may_make(&real.0));
        let threads = real.child("threads");
        fs::write(threads.join("cgroup.type"), "threaded").expect("written");
        assert!(!may_make(&real.0), "its children take threads alone");
        let mut group = Group::default();
        group.unified = Some(real.child("g"));
        let sleeper = Sleeper::start();
        assert!(!group.enter(sleeper.0.id()));
    }

    #[test]
    fn a_worker_that_is_alone_in_what_it_was_given_moves_into_a_leaf() {
        let Some(real) = Real::make() else { return };
        let sleeper = Sleeper::start();
        let worker = sleeper.0.id();
        put(&real.0, worker).expect("put");
        let ended = real.child(&format!("{LEAF}0"));
        assert_eq!(usable(&real.0), None);
        assert!(!is_delegated(&real.0));
        let flags = rustix::fs::XattrFlags::empty();
        if rustix::fs::setxattr(&real.0, "trusted.delegate", b"1", flags).is_ok() {
            assert!(is_delegated(&real.0));
        }
        move_to_leaf(&real.0, worker).expect("moved");
        let read = |place: &Path| fs::read_to_string(place.join("cgroup.procs")).expect("read");
        assert_eq!(read(&real.0), "");
        let leaf = real.0.join(format!("{LEAF}{worker}"));
        assert_eq!(read(&leaf).trim(), worker.to_string());
        assert!(!ended.exists(), "a leaf without a worker");
        move_to_leaf(&real.0, worker).expect("a second time");
        drop(sleeper);
    }

    #[test]
    fn a_limit_is_told_of_those_in_whose_time_it_was_met() {
        let place = tempfile::tempdir().expect("temporary");
        let mut group = Group::default();
        group.unified = Some(place.path().to_path_buf());
        (group.memory, group.processes) = (Some(4096), Some(7));
        let group = Arc::new(group);
        let count = |file: &str, text: &str| {
            fs::write(place.path().join(file), text).expect("written");
        };
        let first = Stay::begin(&group);
        assert_eq!(first.met(), None);
        count("memory.events", "oom 1\noom_kill 1\n");
        let met = first.met().expect("met");
        assert!(met.why.contains("4096 bytes") && met.its_own, "{met:?}");
        assert_eq!(first.met(), Some(met), "as often as it is asked");
        drop(first);
        // Whoever comes later has nothing to do with it.
        let second = Stay::begin(&group);
        assert_eq!(second.met(), None);
        let third = Stay::begin(&group);
        count("pids.events", "max 2\n");
        for stay in [&second, &third] {
            let met = stay.met().expect("met");
            assert!(
                met.why.contains("limits.processes") && !met.its_own,
                "{met:?}"
            );
        }
        drop((second, third));
        // One that does not start was there as well: its own try may be what was refused.
        let fourth = Stay::begin(&group);
        drop(Stay::begin(&group));
        count("pids.events", "max 3\n");
        assert!(!fourth.met().expect("met").its_own);
    }

    #[test]
    fn a_group_of_version_1_is_one_for_each_controller_that_is_needed() {
        let root = tempfile::tempdir().expect("temporary");
        for name in ["memory/a", "cpu", "pids"] {
            fs::create_dir_all(root.path().join(name)).expect("made");
        }
        let cgroups = Cgroups::below(
            root.path(),
            "4:memory:/a\n2:cpu,cpuacct:/gone\n8:pids:/\n0::/\n",
        );
        let group = cgroups.group("g", &Share::default(), None).expect("made");
        let read = |file: &str| fs::read_to_string(root.path().join(file)).ok();
        assert_eq!(
            read("memory/a/g/memory.limit_in_bytes"),
            Some(Share::default().memory().to_string())
        );
        assert_eq!(read("pids/g/pids.max"), Some(PROCESSES.to_string()));
        assert!(!root.path().join("cpu/g").exists());
        assert_eq!((group.holds(), group.by_thread()), ((true, true), true));
        assert!(group.enter_thread());
        assert_eq!(read("memory/a/g/tasks").as_deref(), Some("0"));
        let none = Cgroups::below(Path::new("/nowhere"), "4:memory:/a\n0::/\n");
        assert!(none.group("g", &Share::default(), None).is_none());
    }

    #[test]
    fn counters_are_found_by_name() {
        let text = "low 0\noom 3\noom_kill 2\n";
        assert_eq!(counter(text, "oom_kill"), 2);
        assert_eq!(counter(text, "max"), 0);
    }
}
