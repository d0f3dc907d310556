//! What holds processes of user code in: limits on all processes of an instance together, and walls around
//! files and the network. Every layer is the kernel's or the worker's own eyes, each is optional, and what
//! is missing on this machine is said in status.
//!
//! | layer | what for | where |
//! |---|---|---|
//! | rlimits | one process: address space, file size, open files, CPU time | everywhere |
//! | cgroup v1 or v2 | all processes together: memory, CPU share, number | where the worker may write there |
//! | the watch | the same for memory and number, and disk, a few times a second | everywhere |
//! | Landlock | files (`sandbox.files: private`) | kernel 5.13; emptying them 6.2, signals 6.12 |
//! | no capabilities | whoever is behind a wall, root too | everywhere |
//! | seccomp | sockets (`sandbox.network: none`) | x86-64 and arm64 |
//!
//! No unsafe code is needed: Landlock, seccomp and a cgroup of version 1 belong to a thread and are
//! inherited by what it starts, so a thread that is made for it puts itself in and starts the process. Into a cgroup
//! of version 2 a process is put when it is there, and it begins after that (see [`Planned`](super::process::Planned)).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};

use super::Failure;

pub(crate) mod cgroup;
mod confine;
mod machine;
pub(crate) mod watch;

use self::cgroup::Group;
pub use self::machine::Memory;

/// Processes and threads of one instance, when the options do not say: enough for a JVM, too few for a
/// fork bomb.
pub(crate) const PROCESSES: u64 = 512;

/// How much functions yield to the broker and to the worker when all want the processors, on the scale of `nice`.
const NICE: i32 = 5;
/// The same between control groups, of 100 and of 1,024: the kernel gives so much less to what is five steps nicer.
pub(crate) const WEIGHT: (&str, &str) = ("33", "341");

/// The niceness of functions: that of this process and a little more.
#[must_use]
pub fn niceness() -> i32 {
    static OWN: OnceLock<i32> = OnceLock::new();
    let own = OWN.get_or_init(|| rustix::process::getpriority_process(None).unwrap_or(0));
    (own + NICE).min(19)
}

/// The walls of a host, and the code that it must see inside.
#[derive(Debug)]
pub(crate) struct Walled {
    pub(crate) walls: Walls,
    pub(crate) code: PathBuf,
    /// It runs as another user than the worker's.
    pub(crate) changes_user: bool,
}

/// What all processes of an instance may use together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Share {
    /// Cores.
    pub cpu: Option<f64>,
    /// Half of the machine's memory when nothing is said, or of what a control group around the worker allows.
    pub memory_bytes: Option<u64>,
    /// In its private directory; also the largest file.
    pub disk_bytes: Option<u64>,
}

impl Share {
    /// The memory that its processes are held to.
    pub(crate) fn memory(&self) -> u64 {
        static HALF: OnceLock<u64> = OnceLock::new();
        self.memory_bytes.unwrap_or_else(|| {
            *HALF.get_or_init(|| Memory::now().map_or(u64::MAX >> 1, |memory| memory.all / 2))
        })
    }

    /// What to say to whoever meets that limit.
    pub(crate) fn memory_advice(&self) -> &'static str {
        match self.memory_bytes {
            Some(_) => "raise `resources.ram`",
            None => "half of this machine's, as `resources.ram` is not set",
        }
    }
}

/// Which files a process sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Files {
    /// Those of the worker's user.
    #[default]
    All,
    /// It reads the system's programs and libraries, its own code and `read`; it writes its private directory
    /// and `write`.
    Private,
}

/// Which sockets a process may make.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    #[default]
    All,
    /// None but pairs within itself.
    None,
}

/// The walls that a configuration asks for (`customRuntimeOptions: {"sandbox": {...}}`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Walls {
    pub files: Files,
    pub network: Network,
    /// Files and folders that it may read beside, with `files: private`.
    pub read: Vec<PathBuf>,
    /// And those that it may write.
    pub write: Vec<PathBuf>,
    /// Rather not start than without a wall that this machine can not put up.
    pub required: bool,
}

impl Walls {
    fn stand(&self) -> bool {
        self.files == Files::Private || self.network == Network::None
    }

    /// A refusal of the kernel's comes out of user code in its own words: says whose it may be.
    pub(crate) fn explain(&self, failure: &mut Failure) {
        const REFUSALS: [&str; 5] = [
            "ermission denied",
            "peration not permitted",
            "PermissionError",
            "AccessDeniedException",
            "EACCES",
        ];
        let met = |text: &str| REFUSALS.iter().any(|words| text.contains(words));
        if !self.stand() || !(met(&failure.reason) || met(&failure.stderr_tail)) {
            return;
        }
        let walls = [
            ("`sandbox.files: private`", self.files == Files::Private),
            ("`sandbox.network: none`", self.network == Network::None),
        ];
        let names: Vec<&str> = walls.iter().filter(|(_, is)| *is).map(|w| w.0).collect();
        failure.reason = format!(
            "{} (the function is behind {})",
            failure.reason,
            names.join(" and ")
        );
    }
}

/// What Landlock holds: each version more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Landlock {
    #[default]
    Nothing,
    /// That files are opened, made and removed.
    Files,
    /// That they are emptied.
    Truncation,
    /// That processes outside are signalled.
    Signals,
}

impl Landlock {
    /// What `sandbox.files: private` promises and this one does not hold.
    fn lets_through(self) -> &'static [&'static str] {
        const ALL: [&str; 2] = [
            "it can signal processes outside, and reach their abstract sockets (Linux 6.12 refuses that)",
            "it can empty files outside that its user may write (Linux 6.2 refuses that)",
        ];
        match self {
            Self::Nothing => &["the kernel has no Landlock"],
            Self::Files => &ALL,
            Self::Truncation => &ALL[..1],
            Self::Signals => &[],
        }
    }
}

/// What this machine can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Abilities {
    pub(crate) memory: bool,
    pub(crate) processes: bool,
    pub(crate) cpu: bool,
    pub(crate) files: Landlock,
    pub(crate) network: bool,
}

impl Abilities {
    /// Asked once a process; it makes and removes a cgroup.
    pub(crate) fn of_this_machine() -> Self {
        static KNOWN: OnceLock<Abilities> = OnceLock::new();
        *KNOWN.get_or_init(|| {
            let cgroups = cgroup::Cgroups::find();
            let can = Self {
                memory: cgroups.has("memory"),
                processes: cgroups.has("pids"),
                cpu: cgroups.has("cpu"),
                files: confine::landlock(),
                network: confine::has_seccomp(),
            };
            let by = |kernel: bool, how: &'static str, otherwise: &'static str| {
                if kernel { how } else { otherwise }
            };
            tracing::info!(
                memory = by(can.memory, "cgroup", "watched"),
                processes = by(can.processes, "cgroup", "watched"),
                cpu = by(can.cpu, "cgroup", "not held"),
                files = by(can.files > Landlock::Nothing, "landlock", "no walls"),
                network = by(can.network, "seccomp", "no walls"),
                "what holds processes of functions"
            );
            can
        })
    }
}

/// What was asked and is not, or not wholly, enforced here: one sentence each.
pub(crate) fn not_enforced(
    share: &Share,
    processes: Option<u64>,
    walls: &Walls,
    can: Abilities,
) -> Vec<String> {
    let mut all = Vec::new();
    if let Some(cpu) = share.cpu.filter(|_| !can.cpu) {
        all.push(format!(
            "`resources.cpu: {cpu}` is not enforced on this machine (no cgroup is writable): a process may use more"
        ));
    }
    if let Some(ram) = share.memory_bytes.filter(|_| !can.memory) {
        all.push(format!(
            "`resources.ram: {ram}`: no cgroup is writable on this machine, so each process is held to it by the kernel, and \
             all together by a look a few times a second"
        ));
    }
    if let Some(processes) = processes.filter(|_| !can.processes) {
        all.push(format!(
            "`limits.processes: {processes}`: no cgroup is writable on this machine, so they are counted a few times a second"
        ));
    }
    if walls.files == Files::Private {
        let through = can.files.lets_through().iter();
        all.extend(through.map(|what| {
            format!("`sandbox.files: private` is not wholly enforced on this machine: {what}")
        }));
    }
    if walls.network == Network::None && !can.network {
        all.push(
            "`sandbox.network: none` is not enforced on this machine: seccomp is not supported here".to_owned(),
        );
    }
    all
}

/// The words for a message that took too long, and what may have kept it.
pub(crate) fn not_done(timeout_ms: u64, cause: Option<String>, dropped: u64) -> String {
    let mut text = format!("not done after {timeout_ms} ms");
    if let Some(why) = cause {
        text = format!("{text}; {why}");
    }
    if dropped > 0 {
        text =
            format!("{text}; of what it printed {dropped} bytes were too many, and were dropped");
    }
    text
}

/// A limit that was met while a process ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cause {
    pub(crate) why: String,
    /// No other process of its host was there, or the worker saw that it was this one.
    pub(crate) its_own: bool,
}

/// The cause of an end that came from a limit of ours; the first one counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Verdict(Arc<Mutex<Option<String>>>);

impl Verdict {
    pub(crate) fn set(&self, why: String) {
        self.0.lock().get_or_insert(why);
    }

    pub(crate) fn take(&self) -> Option<String> {
        self.0.lock().take()
    }
}

/// Starts `command`, which becomes `program`, behind the walls and in the group, and says whether it is in the group.
///
/// # Errors
/// When it does not start, or a wall that is required can not be put up.
pub(crate) fn spawn(
    command: &mut Command,
    program: &Path,
    walled: &Walled,
    group: Option<&Group>,
    private: &Path,
) -> io::Result<(Child, bool)> {
    let confined = walled.walls.stand();
    if !confined && group.is_none_or(|group| !group.by_thread()) {
        let child = command.spawn()?;
        let inside = enter(group, &child);
        return Ok((child, inside));
    }
    let runtime = tokio::runtime::Handle::current();
    // Its own thread: what it does to itself stays with it, and with what it starts.
    let (child, inside) = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("geminga-spawn".to_owned());
        let started = thread.spawn_scoped(scope, || {
            let _inside = runtime.enter();
            let inside = group.is_none_or(Group::enter_thread);
            if confined {
                let Walled {
                    walls,
                    code,
                    changes_user,
                } = walled;
                confine::this_thread(walls, code, program, private, *changes_user)?;
            }
            Ok((command.spawn()?, inside))
        })?;
        started
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that starts processes ended")))
    })?;
    let inside = enter(group, &child) && inside;
    Ok((child, inside))
}

fn enter(group: Option<&Group>, child: &Child) -> bool {
    match (group, child.id()) {
        (Some(group), Some(pid)) => group.enter(pid),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::FailureKind;

    const NOTHING: Abilities = Abilities {
        memory: false,
        processes: false,
        cpu: false,
        files: Landlock::Nothing,
        network: false,
    };

    #[test]
    fn what_is_missing_is_said_and_what_is_there_is_not() {
        let share = Share {
            cpu: Some(0.5),
            memory_bytes: Some(1000),
            disk_bytes: Some(9),
        };
        let walls: Walls =
            serde_json::from_str(r#"{"files":"private","network":"none"}"#).expect("known");
        let said = not_enforced(&share, Some(9), &walls, NOTHING);
        assert_eq!(said.len(), 5, "{said:?}");
        let all = Abilities {
            memory: true,
            processes: true,
            cpu: true,
            files: Landlock::Signals,
            network: true,
        };
        for (files, count) in [(Landlock::Files, 2), (Landlock::Truncation, 1)] {
            let said = not_enforced(&share, Some(9), &walls, Abilities { files, ..all });
            assert_eq!(said.len(), count, "{said:?}");
            assert!(said[0].contains("signal processes outside"), "{said:?}");
        }
        assert!(not_enforced(&share, Some(9), &walls, all).is_empty());
        assert!(not_enforced(&Share::default(), None, &Walls::default(), NOTHING).is_empty());
    }

    #[test]
    fn walls_are_read_and_misspellings_refused() {
        assert!(serde_json::from_str::<Walls>(r#"{"file":"private"}"#).is_err());
        assert!(serde_json::from_str::<Walls>(r#"{"network":"some"}"#).is_err());
        let walls: Walls = serde_json::from_str("{}").expect("empty");
        assert_eq!(walls, Walls::default());
    }

    #[test]
    fn a_refusal_is_explained_where_there_are_walls() {
        let private = Walls {
            files: Files::Private,
            ..Walls::default()
        };
        for (walls, reason, tail, named) in [
            (
                &private,
                "ended with status 1",
                "cat: x: Permission denied",
                true,
            ),
            (&private, "PermissionError: [Errno 13]", "", true),
            (
                &private,
                "ended with status 1",
                "kill: (1) - Operation not permitted",
                true,
            ),
            (&private, "ended with status 1", "no such file", false),
            (&Walls::default(), "Permission denied", "", false),
        ] {
            let mut failure = Failure::new(FailureKind::User, reason);
            failure.stderr_tail = tail.to_owned();
            walls.explain(&mut failure);
            let has = failure.reason.contains("`sandbox.files: private`");
            assert_eq!(has, named, "{failure:?}");
        }
    }

    #[test]
    fn a_time_out_says_what_kept_it() {
        assert_eq!(not_done(5, None, 0), "not done after 5 ms");
        let cause = Some("too many".to_owned());
        let said = not_done(5, cause, 7);
        assert!(
            said.contains("5 ms; too many; of what it printed 7 bytes"),
            "{said}"
        );
    }

    #[test]
    fn memory_is_half_of_the_machine_unless_it_is_said() {
        assert!(Share::default().memory() > 1 << 20);
        let said = Share {
            memory_bytes: Some(5),
            ..Share::default()
        };
        assert_eq!(said.memory(), 5);
    }
}
