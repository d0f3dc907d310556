//! Processes of user code: how they are started, limited, killed, and found when they hide.
//!
//! Owns the guard and the private directory of this worker. Every process gets its own process
//! group, a cleared environment and a private temporary directory; dropping a [`Process`] kills
//! its group. Nothing here needs unsafe code: limits of one process are put on it by `prlimit` right after
//! it starts and before it is given a message; those of all together, and the walls, are the sandbox's.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal};
use tokio::process::Child;
use tokio::sync::{RwLock, RwLockReadGuard};

use super::guard::Guard;
use super::options::{Limits, Options};
use super::removal::remove_later;
use super::sandbox::cgroup::{Cgroups, Group, Stay};
use super::sandbox::watch::{Watch, Watched};
use super::sandbox::{self, Cause, PROCESSES, Share, Verdict, Walled};
use super::{Broken, HostSpec};

mod environment;
mod folder;
pub(crate) mod mark;
mod planned;

use self::environment::base_environment;
pub(crate) use self::environment::{function_environment, plain, variable};
use self::folder::{SECRETS, file_name, furnish, make_new, make_private, make_whole, set_mode};
use self::mark::Mark;
pub(crate) use self::planned::{Planned, start_error};

/// The worker's processes. Cheap to clone; the last clone takes the guard and the directory along.
#[derive(Debug, Clone)]
pub struct Processes {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    // Dropped first: it sweeps and removes the directory.
    guard: Guard,
    /// The worker's part of all marks, and of the names of its control groups.
    scope: String,
    private: PathBuf,
    next: AtomicU64,
    cgroups: Cgroups,
    watch: Watch,
}

impl Processes {
    /// Starts the guard and makes the private directory under `parent` (the system's temporary
    /// directory when `None`).
    ///
    /// # Errors
    /// When the directory can not be made or `/bin/sh` does not start.
    pub fn start(parent: Option<&Path>) -> io::Result<Self> {
        Self::start_with(parent, Cgroups::find())
    }

    /// The same, with the control groups that are given: none of them is for tests.
    pub(crate) fn start_with(parent: Option<&Path>, cgroups: Cgroups) -> io::Result<Self> {
        let scope = geminga_stdx::Random::from_entropy().name(20);
        let parent = parent.map_or_else(std::env::temp_dir, Path::to_path_buf);
        let private = parent.join(format!("geminga-{scope}"));
        make_private(&private)?;
        let guard = Guard::start(&scope, &private, &cgroups.parents())?;
        cgroups.put_guard(&scope, guard.id());
        Ok(Self {
            inner: Arc::new(Inner {
                guard,
                scope,
                private,
                next: AtomicU64::new(0),
                cgroups,
                watch: Watch::default(),
            }),
        })
    }

    /// A name and a directory for one host: its processes can be found by the one, and keep their
    /// files in the other.
    ///
    /// # Errors
    /// When its private directory can not be made.
    pub(crate) fn scope(&self, spec: &HostSpec) -> Result<Scope, Broken> {
        self.make_scope(spec).map_err(super::private_directory)
    }

    fn make_scope(&self, spec: &HostSpec) -> io::Result<Scope> {
        let number = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let directory = self.inner.private.join(format!(
            "{}-{}-{number}",
            file_name(&spec.name),
            spec.instance
        ));
        let owner = spec.options.run_as().ok().flatten();
        if owner.is_some() {
            // The way there must be passable for the other user.
            set_mode(&self.inner.private, 0o711)?;
        }
        furnish(&directory, spec, owner)?;
        let name = format!("geminga-{}-{number}", self.inner.scope);
        let processes = spec.options.limits.processes;
        let group = self.inner.cgroups.group(&name, &spec.share, processes);
        Ok(Scope {
            processes: self.clone(),
            mark: Mark::of_host(&self.inner.scope),
            directory,
            share: spec.share,
            walls: Walled {
                walls: spec.options.sandbox.clone(),
                code: spec.code.path.clone(),
                changes_user: spec.options.run_as.is_some(),
            },
            owner,
            group: group.map(Arc::new),
            full: Arc::default(),
            room: RwLock::default(),
            next: AtomicU64::new(0),
        })
    }
}

/// What marks and holds the processes of one host. Dropping it kills all that carry the mark.
#[derive(Debug)]
pub(crate) struct Scope {
    processes: Processes,
    mark: Mark,
    directory: PathBuf,
    share: Share,
    walls: Walled,
    /// Whom its processes run as, when that is not the worker's user.
    owner: Option<(u32, u32)>,
    group: Option<Arc<Group>>,
    /// The private directory holds more than it may.
    full: Arc<AtomicBool>,
    /// Messages in hand share it, and its replacement is alone.
    room: RwLock<()>,
    next: AtomicU64,
}

impl Scope {
    /// A file of ours in the private directory, written at its first use. Lanes that want it at once find all of it.
    pub(crate) fn file(&self, name: &str, text: &str) -> io::Result<PathBuf> {
        let path = self.path(name);
        // Whatever is there now is the function's own: it reads it behind its own walls.
        if std::fs::symlink_metadata(&path).is_err() {
            let next = self.next.fetch_add(1, Ordering::Relaxed);
            make_whole(&path, text, &self.beside(&format!("{name}.{next}")))?;
        }
        Ok(path)
    }

    /// Next to the private directory, where no function writes.
    fn beside(&self, name: &str) -> PathBuf {
        let mut path = self.directory.clone().into_os_string();
        path.push(".");
        path.push(name);
        path.into()
    }

    /// Where a file of this name is in the private directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A new file for the function to write and the worker to read.
    pub(crate) fn make(&self, path: &Path) -> io::Result<File> {
        let file = make_new(path, 0o600)?;
        if let Some((user, group)) = self.owner {
            std::os::unix::fs::fchown(&file, Some(user), Some(group))?;
        }
        Ok(file)
    }

    /// A program with the cleared environment and the limits' user.
    pub(crate) fn plan(&self, program: &Path, spec: &HostSpec) -> Planned {
        let is_gated = self.group.as_ref().is_some_and(|it| it.is_entered_late());
        let mut planned = Planned::new(program, self.owner, is_gated);
        planned
            .envs(base_environment(spec))
            .env("TMPDIR", &self.directory)
            .env("GMG_TMP", &self.directory)
            .envs((!spec.secrets.is_empty()).then(|| ("GMG_SECRETS", self.directory.join(SECRETS))))
            .envs(&spec.options.env);
        planned
    }

    /// Gives the host a new private directory when its own was found to hold more than it may: what is left in there
    /// would be the end of whoever comes next. It stays in its place as long as what is returned is kept, so waiting
    /// for those who use it now may take as long as a message.
    pub(crate) async fn make_room(&self, spec: &HostSpec) -> io::Result<RwLockReadGuard<'_, ()>> {
        if self.full.load(Ordering::Relaxed) {
            let alone = self.room.write().await;
            self.replace_if_full(spec)?;
            return Ok(alone.downgrade());
        }
        Ok(self.room.read().await)
    }

    fn replace_if_full(&self, spec: &HostSpec) -> io::Result<()> {
        if !self.full.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        let aside = self.beside(&next.to_string());
        let moved = match std::fs::rename(&self.directory, &aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        let made = moved.and_then(|()| furnish(&self.directory, spec, self.owner));
        if made.is_err() {
            self.full.store(true, Ordering::Relaxed);
        }
        remove_later(aside);
        made
    }

    /// For hosts with several processes at once, each for a message of its own: the kernel shall not take them all for
    /// the memory of one.
    pub(crate) fn apart(&self) {
        if let Some(group) = &self.group {
            group.apart();
        }
    }

    /// Starts it, puts the limits on it, and tells the guard. Where the group is full it waits for those who
    /// leave: what was killed a moment ago counts until it is gone.
    pub(crate) async fn spawn(
        &self,
        planned: &mut Planned,
        limits: &Limits,
    ) -> io::Result<Process> {
        for _ in 0..FULL_TRIES {
            match self.try_spawn(planned, limits) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(FULL_PAUSE).await;
                }
                known => return known,
            }
        }
        self.try_spawn(planned, limits)
    }

    fn try_spawn(&self, planned: &mut Planned, limits: &Limits) -> io::Result<Process> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mark = self.mark.process(number);
        let (name, value) = mark.variable();
        planned.env(name, value);
        let share = &self.share;
        let fills = share.disk_bytes.is_some() && limits.file_bytes.is_none();
        let group = self.group.as_deref();
        let stay = self.group.as_ref().map(Stay::begin);
        let mut command = planned.command()?;
        let program = &planned.program;
        let (child, inside) =
            sandbox::spawn(&mut command, program, &self.walls, group, &self.directory)?;
        let pid = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .unwrap_or(0);
        self.processes.inner.guard.add(pid);
        let mut process = Process {
            child,
            group: pid,
            processes: self.processes.clone(),
            stay,
            verdict: Verdict::default(),
            mark,
            full: fills.then(|| self.full.clone()),
        };
        // A group holds only what is in it.
        let holding = group.filter(|_| inside);
        let (memory, count) = holding.map_or((false, false), Group::holds);
        put_limits(pid, limits, share.disk_bytes, count);
        // All threads that it has by now; later ones are as nice as who started them.
        if let Some(all) = Pid::from_raw(pid) {
            let _ = rustix::process::setpriority_pgrp(Some(all), sandbox::niceness());
        }
        // Where memory is short, the kernel takes a function before the worker.
        let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE);
        // What the kernel does not hold is looked at. Of the others it is known whose they are.
        let watched = Watched {
            private: self.directory.clone(),
            mark: process.mark.clone(),
            host: self.mark.clone(),
            memory: (!memory).then(|| share.memory()),
            processes: (!count).then(|| limits.processes.unwrap_or(PROCESSES)),
            disk: share.disk_bytes,
            verdict: process.verdict.clone(),
            full: self.full.clone(),
        };
        self.processes.inner.watch.add(pid, watched);
        planned.open(&mut process.child);
        Ok(process)
    }

    /// Kills every process of this host, in whatever session it hides, and does not look whether it is gone.
    fn sweep(&self) {
        if let Some(group) = &self.group {
            group.kill();
        }
        self.mark.sweep();
    }

    /// The same, until nothing lives in the group.
    pub(crate) async fn sweep_out(&self) {
        if let Some(group) = &self.group {
            group.kill_all().await;
        }
        self.mark.sweep();
    }
}

/// How often a process is tried to be started in a group that is full, and the pause between.
const FULL_TRIES: u32 = 40;
const FULL_PAUSE: Duration = Duration::from_millis(50);
/// How gladly the kernel kills a process for want of memory: from -1000 to 1000.
const OOM_SCORE: &str = "500";

impl Drop for Scope {
    fn drop(&mut self) {
        self.sweep();
        // Its name is free at once.
        let aside = self.beside("gone");
        match std::fs::rename(&self.directory, &aside) {
            Ok(()) => remove_later(aside),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => remove_later(self.directory.clone()),
        }
    }
}

fn put_limits(pid: i32, limits: &Limits, disk_bytes: Option<u64>, counted: bool) {
    let Some(pid) = Pid::from_raw(pid) else {
        return;
    };
    for (resource, value) in [
        (Resource::Cpu, limits.cpu_seconds),
        (Resource::As, limits.memory_bytes),
        (Resource::Data, limits.data_bytes),
        // It counts all processes of the user: where the function's own are counted, those alone are meant.
        (Resource::Nproc, limits.processes.filter(|_| !counted)),
        (Resource::Nofile, limits.open_files),
        (Resource::Fsize, limits.file_bytes.or(disk_bytes)),
    ] {
        if let Some(value) = value {
            let limit = Rlimit {
                current: Some(value),
                maximum: Some(value),
            };
            if let Err(error) = rustix::process::prlimit(Some(pid), resource, limit) {
                tracing::warn!(?resource, value, %error, "limit not set");
            }
        }
    }
    // A crash of user code must not write a core file into its folder.
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let _ = rustix::process::prlimit(Some(pid), Resource::Core, none);
}

/// A process of user code with its group.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) child: Child,
    group: i32,
    processes: Processes,
    /// Its time in the group of its host.
    stay: Option<Stay>,
    verdict: Verdict,
    mark: Mark,
    /// Whether the private directory is full: where one file may be as large as all of it.
    full: Option<Arc<AtomicBool>>,
}

/// The signal of a process that writes a larger file than it may.
const XFSZ: i32 = 25;

impl Process {
    /// A file that came to its limit leaves no room for whoever comes next.
    fn note(&self, status: io::Result<ExitStatus>) -> io::Result<ExitStatus> {
        use std::os::unix::process::ExitStatusExt;
        let is_full = |status: &ExitStatus| {
            // Or what it had started, as a shell tells it.
            status.signal() == Some(XFSZ) || status.code() == Some(128 + XFSZ)
        };
        if let (Some(full), Ok(true)) = (&self.full, status.as_ref().map(is_full)) {
            full.store(true, Ordering::Relaxed);
        }
        status
    }

    /// The limit of all processes together that ended it, or kept it from its work.
    pub(crate) fn cause(&self) -> Option<Cause> {
        match self.verdict.take() {
            Some(why) => Some(Cause { why, its_own: true }),
            None => self.stay.as_ref()?.met(),
        }
    }

    /// Kills what it started, in whatever session it hides.
    pub(crate) fn sweep(&self) {
        self.mark.sweep();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(group) = Pid::from_raw(self.group) {
            let _ = rustix::process::kill_process_group(group, signal);
        }
    }

    /// TERM to the group, `grace`, then KILL. Returns when the leader is gone.
    pub(crate) async fn kill(&mut self, grace: Duration) -> Option<ExitStatus> {
        self.signal(Signal::TERM);
        if let Ok(status) = tokio::time::timeout(grace, self.child.wait()).await {
            self.signal(Signal::KILL);
            return self.note(status).ok();
        }
        self.signal(Signal::KILL);
        let status = self.child.wait().await;
        self.note(status).ok()
    }

    /// Waits for the end of the leader, then kills what it left in its group.
    pub(crate) async fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait().await;
        self.signal(Signal::KILL);
        self.note(status)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        self.processes.inner.watch.remove(self.group);
        self.processes.inner.guard.remove(self.group);
    }
}

/// Text at the edge of a process, as `content` says (see [`super::options::Content`]).
pub(crate) fn trim_output(bytes: &[u8], options: &Options) -> Option<usize> {
    use super::options::Content;
    if bytes.is_empty() {
        return options.empty_output.then_some(0);
    }
    if options.content == Content::Text
        && bytes.last() == Some(&b'\n')
        && std::str::from_utf8(bytes).is_ok()
    {
        return Some(bytes.len() - 1);
    }
    Some(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_of_ours_is_not_written_through_a_link() {
        let directory = tempfile::tempdir().expect("temporary");
        let processes = Processes::start_with(Some(directory.path()), Cgroups::default());
        let scope = processes.expect("guard").scope(&HostSpec::default());
        let scope = scope.expect("made");
        let outside = directory.path().join("outside");
        for name in ["host", "host-again"] {
            std::os::unix::fs::symlink(&outside, scope.path(name)).expect("linked");
            scope.file(name, "text").expect("it is there");
            assert!(scope.make(&scope.path(name)).is_err());
            assert!(!outside.exists());
        }
        let path = scope.file("other", "text").expect("written");
        scope.file("other", "changed").expect("it is there");
        assert_eq!(std::fs::read(path).expect("read"), b"text");
    }

    #[tokio::test]
    async fn lanes_that_want_a_file_at_once_find_all_of_it() {
        let directory = tempfile::tempdir().expect("temporary");
        let processes = Processes::start_with(Some(directory.path()), Cgroups::default());
        let scope = processes.expect("guard").scope(&HostSpec::default());
        let scope = scope.expect("made");
        let text = "x".repeat(4 << 20);
        for round in 0..20 {
            let name = format!("host-{round}");
            std::thread::scope(|lanes| {
                for _ in 0..4 {
                    lanes.spawn(|| {
                        let path = scope.file(&name, &text).expect("made");
                        let found = std::fs::metadata(path).expect("there").len();
                        assert_eq!(found, text.len() as u64, "{name}");
                    });
                }
            });
        }
        let beside = scope.directory.parent().expect("a folder");
        assert_eq!(std::fs::read_dir(beside).expect("read").count(), 1);
    }

    /// A million files in it held up one of the broker's threads for seconds.
    #[tokio::test]
    async fn the_end_of_a_host_does_not_wait_for_its_files() {
        let directory = tempfile::tempdir().expect("temporary");
        let processes = Processes::start_with(Some(directory.path()), Cgroups::default());
        let processes = processes.expect("guard");
        let fill = |folder: &Path| {
            std::fs::create_dir_all(folder).expect("made");
            for number in 0..40_000 {
                std::fs::write(folder.join(number.to_string()), "").expect("written");
            }
        };
        // What this thread works, not what it waits: the machine may be busy.
        let worked = || {
            let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("read");
            let nanos = text.split(' ').next().and_then(|first| first.parse().ok());
            Duration::from_nanos(nanos.expect("a number"))
        };
        let other = directory.path().join("other");
        fill(&other);
        let begun = worked();
        std::fs::remove_dir_all(&other).expect("removed");
        let removing = worked() - begun;
        let scope = processes.scope(&HostSpec::default()).expect("made");
        let beside = scope.directory.parent().expect("a folder").to_owned();
        fill(&scope.path("many"));
        let begun = worked();
        drop(scope);
        let dropping = worked() - begun;
        assert!(dropping < removing / 2, "{dropping:?} of {removing:?}");
        // It is removed all the same.
        let gone = || std::fs::read_dir(&beside).expect("read").count() == 0;
        crate::runtime::contract::until("removed", gone).await;
    }

    #[test]
    fn output_loses_one_newline_of_text_and_nothing_else() {
        let text = Options::default();
        assert_eq!(trim_output(b"", &text), None);
        assert_eq!(trim_output(b"\n", &text), Some(0));
        assert_eq!(trim_output(b"a\n\n", &text), Some(2));
        assert_eq!(trim_output(b"a", &text), Some(1));
        assert_eq!(trim_output(b"\xff\n", &text), Some(2));
        let empty = Options {
            empty_output: true,
            ..Options::default()
        };
        assert_eq!(trim_output(b"", &empty), Some(0));
    }
}
