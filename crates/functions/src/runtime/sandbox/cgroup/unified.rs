//! Where groups of version 2 can be made.
//!
//! Version 2 has no processes beside groups with controllers, so the worker's own group is no place for others while it
//! is in there. Where that group was given to it (`Delegate=yes`, a container), the worker moves into a leaf of it, and
//! the groups of functions are the leaf's neighbours; elsewhere they are the neighbours of the worker's own group.
//! What can not be used is not written: a group with processes that is asked for controllers is spoilt by that.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];
/// The start of the names of the leaves that workers move into.
const LEAF: &str = "geminga-worker-";
/// How often a group is made that others take for one that its worker has left.
const TAKEN_MAX: u32 = 50;

/// Version 2: one directory for all controllers, and which of them it has.
#[derive(Debug, Clone)]
pub(super) struct Unified {
    pub(super) place: PathBuf,
    pub(super) names: Vec<String>,
    /// It is outside the worker's own group: what ends that group does not end what is made here.
    pub(super) outside: bool,
}

/// Whether a group can be made there that processes can be put into: it is tried.
pub(super) fn may_make(parent: &Path) -> bool {
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

impl Unified {
    /// For a worker that is in `path` below `root`.
    pub(super) fn find(root: &Path, path: &str, worker: u32) -> Option<Self> {
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
        let unified = |place: &Path, names, outside| Self {
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
    make_with(&own.join(format!("{LEAF}{worker}")), worker)
}

/// Makes a group, when it is not there, and puts a process into it. A worker that starts removes the groups of others
/// that nobody is in any more; that of one that starts beside it looks like them until its process is in it.
pub(super) fn make_with(place: &Path, pid: u32) -> io::Result<()> {
    // Gone before its file was opened, or after.
    const GONE: [rustix::io::Errno; 2] = [rustix::io::Errno::NOENT, rustix::io::Errno::NODEV];
    let is_gone = |error: &io::Error| {
        let number = error.raw_os_error();
        GONE.iter().any(|gone| Some(gone.raw_os_error()) == number)
    };
    let mut tries = 0;
    loop {
        match fs::create_dir(place) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        tries += 1;
        match put(place, pid) {
            Err(error) if is_gone(&error) && tries < TAKEN_MAX => {}
            known => return known,
        }
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
pub(super) fn put(place: &Path, pid: u32) -> io::Result<()> {
    use std::io::Write;
    // The kernel has made the file: where it is not, this is no group.
    let mut procs = fs::File::options()
        .write(true)
        .open(place.join("cgroup.procs"))?;
    procs.write_all(pid.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    //! Most of these ask the kernel: where no control group of version 2 can be made they say so on standard error
    //! and pass, or fail when `GEMINGA_TEST_NEEDS_CGROUP2=1` is set.

    use std::io::Write;

    use super::super::{Cgroups, GUARDS, Group};
    use super::*;

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

    /// Set to `1` where control groups of version 2 can be made: without them the tests fail then.
    const NEEDED: &str = "GEMINGA_TEST_NEEDS_CGROUP2";

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
                let why = match mounts.contains(" - cgroup2 ") {
                    true => "no control group can be made in the `cgroup2` mounts of this machine",
                    false => "this machine has no `cgroup2` mount",
                };
                let is_needed = std::env::var(NEEDED).is_ok_and(|value| value == "1");
                assert!(!is_needed, "`{NEEDED}` is 1, and {why}");
                // Not by `println`, which a test that passes keeps for itself.
                let test = std::thread::current();
                let name = test.name().unwrap_or_default();
                let _ = writeln!(io::stderr(), "NOT RUN: {name}: {why}");
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

    #[tokio::test]
    async fn a_function_and_all_that_it_starts_are_in_its_group() {
        use crate::runtime::Processes;
        use crate::runtime::contract::{Kind, function, payloads, start_among};
        let Some(real) = Real::make() else { return };
        let cgroups = Cgroups {
            unified: Some(Unified {
                place: real.0.clone(),
                names: Vec::new(),
                outside: false,
            }),
            ..Cgroups::default()
        };
        let code = "sed -n 's/^0:://p' /proc/self/cgroup; cat";
        let (directory, spec) = function(code, "f.sh");
        let processes = Processes::start_with(Some(directory.path()), cgroups).expect("guard");
        let started = start_among(processes, Kind::Spawn, directory, spec).await;
        let mut f = started.expect("starts");
        let own = real.0.file_name().expect("a name").to_string_lossy();
        for _ in 0..20 {
            let outcome = f.ask(b"input").await;
            let said = String::from_utf8_lossy(payloads(&outcome)[0]).into_owned();
            let (group, input) = said.split_once('\n').expect("two lines");
            assert!(group.contains(&format!("{own}/geminga-")), "{said}");
            assert_eq!(input, "input");
        }
        f.stop().await;
    }

    #[test]
    fn a_guard_is_outside_where_the_functions_are() {
        let Some(real) = Real::make() else { return };
        let cgroups = |outside| Cgroups {
            unified: Some(Unified {
                place: real.0.clone(),
                names: Vec::new(),
                outside,
            }),
            ..Cgroups::default()
        };
        let sleeper = Sleeper::start();
        let old = real.child(&format!("{GUARDS}old"));
        cgroups(false).put_guard("new", sleeper.0.id());
        assert!(old.exists() && !real.0.join(format!("{GUARDS}new")).exists());
        cgroups(true).put_guard("new", sleeper.0.id());
        let place = real.0.join(format!("{GUARDS}new"));
        let inside = fs::read_to_string(place.join("cgroup.procs")).expect("read");
        assert_eq!(inside.trim(), sleeper.0.id().to_string());
        assert!(!old.exists(), "a group whose guard has ended");
        drop(sleeper);
    }

    /// Each takes the other's group for one that a worker has left, in the moment before somebody is in it.
    #[test]
    fn workers_that_start_together_leave_each_other_their_groups() {
        let Some(real) = Real::make() else { return };
        let cgroups = Cgroups {
            unified: Some(Unified {
                place: real.0.clone(),
                names: Vec::new(),
                outside: true,
            }),
            ..Cgroups::default()
        };
        let start = |worker: &str| {
            let guard = Sleeper::start();
            for time in 0..200 {
                cgroups.put_guard(&format!("{worker}{time}"), guard.0.id());
                let place = real.0.join(format!("{GUARDS}{worker}{time}"));
                let inside = fs::read_to_string(place.join("cgroup.procs")).unwrap_or_default();
                assert_eq!(inside.trim(), guard.0.id().to_string(), "{worker} {time}");
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| start("a"));
            scope.spawn(|| start("b"));
        });
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
}
