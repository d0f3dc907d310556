//! The guard: a tiny shell beside the worker that kills what the worker left behind.
//!
//! A child's process can not be told to die with its parent without unsafe code, so each process
//! group is written down with the guard while it lives. The guard holds the reading end of a pipe
//! whose only writer is the worker: when the worker ends, by `kill -9` too, the pipe closes, and
//! the guard kills every group still on its list, every process that carries the worker's mark in
//! its environment (those that made a session of their own), removes the private directory, and the
//! worker's control groups with all that is in them.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use std::os::unix::process::CommandExt;

use parking_lot::Mutex;

const SCRIPT: &str = r#"
trap '' INT TERM HUP QUIT
groups=' '
while read -r verb group; do
  case $verb in
    +) groups="$groups$group " ;;
    -) case $groups in *" $group "*) groups="${groups%% "$group" *} ${groups#* "$group" }" ;; esac ;;
  esac
done
for group in $groups; do kill -KILL -- "-$group" 2>/dev/null; done
for file in $(grep -l -s -F -- "GMG_SCOPE=$1." /proc/[0-9]*/environ 2>/dev/null); do
  pid=${file#/proc/}; kill -KILL "${pid%/environ}" 2>/dev/null
done
scope=$1
rm -rf -- "$2"
shift 2
for parent do
  for group in "$parent/geminga-$scope-"*; do
    [ -d "$group" ] || continue
    for try in 1 2 3 4 5; do
      while read -r pid; do kill -KILL "$pid" 2>/dev/null; done <"$group/cgroup.procs"
      rmdir -- "$group" 2>/dev/null && break
      sleep 0.05
    done
  done
done
"#;

/// The running guard. It ends with this value, or with the process.
#[derive(Debug)]
pub(crate) struct Guard {
    child: Mutex<Child>,
}

impl Guard {
    /// Starts the guard for processes marked `scope`, the directory `private`, and control groups of that name
    /// in `parents`.
    pub(crate) fn start(scope: &str, private: &Path, parents: &[PathBuf]) -> io::Result<Self> {
        let child = Command::new("/bin/sh")
            .arg("-c")
            .arg(SCRIPT)
            .arg("geminga-guard")
            .arg(scope)
            .arg(private)
            .args(parents)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        Ok(Self {
            child: Mutex::new(child),
        })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.lock().id()
    }

    pub(crate) fn add(&self, group: i32) {
        self.say('+', group);
    }

    pub(crate) fn remove(&self, group: i32) {
        self.say('-', group);
    }

    fn say(&self, verb: char, group: i32) {
        let mut child = self.child.lock();
        if let Some(pipe) = child.stdin.as_mut()
            && let Err(error) = writeln!(pipe, "{verb} {group}")
        {
            tracing::warn!(%error, "the process guard is gone");
            child.stdin = None;
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let child = self.child.get_mut();
        drop(child.stdin.take());
        // It reads end-of-file, sweeps and ends within milliseconds; waiting leaves no zombie.
        let _ = child.wait();
    }
}
