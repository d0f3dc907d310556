//! Control groups, of either version, without a library: a directory for each instance, numbers written to
//! its files, process ids to `cgroup.procs`.
//!
//! What must hold: nothing outside a directory of ours is written; a directory goes when its instance does, and
//! what still lives in it is killed; a controller that can not be used is left out, and said.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal};

use super::{PROCESSES, Share};

const ROOT: &str = "/sys/fs/cgroup";
/// A CPU share is so much of every tenth of a second.
const PERIOD_US: u64 = 100_000;
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];
/// How long what was killed may take to leave its group.
const LEAVE: Duration = Duration::from_millis(500);

/// Where this process may make groups.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cgroups {
    /// Version 2: one directory for all controllers, and which of them it has.
    unified: Option<(PathBuf, Vec<String>)>,
    /// Version 1: a directory for each controller.
    separate: Vec<(String, PathBuf)>,
}

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

    fn below(root: &Path, memberships_of_worker: &str) -> Self {
        let mut found = Self::default();
        for (controllers, path) in memberships(memberships_of_worker) {
            let path = path.trim_start_matches('/');
            if controllers.is_empty() {
                let own = root.join(path);
                // Where a group has processes, as the worker's has, its children have no controllers: its neighbours do.
                let beside = own.parent().filter(|up| up.starts_with(root));
                found.unified = unified(&own).or_else(|| unified(beside?));
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
        let unified = self.unified.iter().flat_map(|(_, names)| names);
        let separate = self.separate.iter().map(|(name, _)| name);
        unified.chain(separate).any(|name| name == controller)
    }

    /// The directories in which groups are made.
    pub(crate) fn parents(&self) -> Vec<PathBuf> {
        let unified = self.unified.iter().map(|(place, _)| place);
        let separate = self.separate.iter().map(|(_, place)| place);
        unified.chain(separate).cloned().collect()
    }

    /// A group of this name with these limits; `None` when there is no controller for any of them.
    pub(crate) fn group(&self, name: &str, share: &Share, processes: Option<u64>) -> Option<Group> {
        let mut group = Group::default();
        group.share = *share;
        if let Some((parent, names)) = &self.unified {
            let place = parent.join(name);
            if fs::create_dir(&place).is_ok() {
                for controller in names {
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

/// Whether a directory can be made there: it is tried.
fn may_make(parent: &Path) -> bool {
    let name = format!(
        "geminga-try-{}",
        geminga_stdx::Random::from_entropy().name(8)
    );
    let place = parent.join(name);
    let made = fs::create_dir(&place).is_ok();
    let _ = fs::remove_dir(&place);
    made
}

/// A directory of version 2 whose children have controllers.
fn unified(own: &Path) -> Option<(PathBuf, Vec<String>)> {
    if !own.join("cgroup.controllers").exists() {
        return None;
    }
    let control = own.join("cgroup.subtree_control");
    let given = || fs::read_to_string(&control).unwrap_or_default();
    for name in CONTROLLERS {
        if !given().split_whitespace().any(|has| has == name) {
            // Refused where it has processes of its own and is not the root.
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
    (!names.is_empty() && may_make(own)).then(|| (own.to_path_buf(), names))
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
    /// What was told already, of each counter.
    told: Mutex<(u64, u64)>,
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

    /// Puts the calling thread in, as far as that is possible.
    pub(crate) fn enter_thread(&self) {
        for place in &self.separate {
            // 0 is who writes; its number would make the kernel stop every process for a moment.
            if let Err(error) = fs::write(place.join("tasks"), "0") {
                tracing::warn!(place = %place.display(), %error, "not put into its control group");
            }
        }
    }

    /// Puts a process into the group that no thread can enter alone. What it has started by then stays outside, and is
    /// found by its mark.
    pub(crate) fn enter(&self, pid: u32) {
        if let Some(place) = &self.unified {
            match fs::write(place.join("cgroup.procs"), pid.to_string()) {
                Ok(()) => {}
                // It has ended already.
                Err(error)
                    if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
                Err(error) => {
                    tracing::warn!(place = %place.display(), %error, "not put into its control group");
                }
            }
        }
    }

    /// The limit that its processes ran into since this was asked last, when they did.
    pub(crate) fn hit(&self) -> Option<String> {
        let sum = |files: &[(&str, &str)]| -> u64 {
            let each = self.places().flat_map(|place| {
                let counts = files.iter().map(|(file, name)| count(place, file, name));
                counts.collect::<Vec<_>>()
            });
            each.sum()
        };
        let killed = sum(&[
            ("memory.events", "oom_kill"),
            ("memory.oom_control", "oom_kill"),
        ]);
        let refused = sum(&[("pids.events", "max")]);
        let (killed_before, refused_before) =
            std::mem::replace(&mut *self.told.lock(), (killed, refused));
        if let Some(memory) = self.memory.filter(|_| killed > killed_before) {
            return Some(format!(
                "killed: its processes used more than {memory} bytes of memory: {}",
                self.share.memory_advice()
            ));
        }
        let processes = self.processes.filter(|_| refused > refused_before)?;
        Some(format!(
            "its processes and threads came to {processes}, the most that is allowed: raise `limits.processes`"
        ))
    }

    /// Whether the kernel holds memory, and the number, so that nobody need look.
    pub(crate) fn holds(&self) -> (bool, bool) {
        (self.memory.is_some(), self.processes.is_some())
    }

    /// Kills all that is in it, until nothing is.
    pub(crate) fn kill(&self) {
        let until = Instant::now() + LEAVE;
        if let Some(place) = &self.unified {
            // All at once, since Linux 5.14.
            let _ = fs::write(place.join("cgroup.kill"), "1");
        }
        loop {
            let mut living = 0;
            for place in self.places() {
                for pid in members(place) {
                    living += 1;
                    let _ = rustix::process::kill_process(pid, Signal::KILL);
                }
            }
            if living == 0 || Instant::now() > until {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
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
        self.kill();
        for place in self.places() {
            // The guard tries again.
            if let Err(error) = fs::remove_dir(place) {
                tracing::debug!(place = %place.display(), %error, "a control group stays behind");
            }
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
        fs::write(slice.join("cgroup.controllers"), "cpu memory pids").expect("written");
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
        group.enter(77);
        assert_eq!(read("cgroup.procs"), "77");
        assert_eq!(group.hit(), None);
        fs::write(slice.join("g/memory.events"), "oom 1\noom_kill 1\n").expect("written");
        assert!(group.hit().expect("hit").contains("4096 bytes"));
        assert_eq!(group.hit(), None, "told once");
        fs::write(slice.join("g/pids.events"), "max 2\n").expect("written");
        assert!(group.hit().expect("hit").contains("limits.processes"));
        // Nobody has the number 77 there, so that nobody is killed when the group goes.
        fs::write(slice.join("g/cgroup.procs"), "").expect("written");
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
        group.enter_thread();
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
