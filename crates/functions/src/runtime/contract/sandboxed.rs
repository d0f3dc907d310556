//! What user code does when it means no good, and what holds it: each ends within seconds, by name, and the next message
//! is processed. What the kernel holds is tried once more without it, by the worker's own eyes. Nothing here can hurt the
//! machine when the sandbox fails: a bomb counts its own sparks, and they go out by themselves.

use std::io::{Read, Write};
use std::path::Path;

use super::super::sandbox::cgroup::Cgroups;
use super::super::sandbox::{Abilities, Files, Landlock, Network};
use super::*;

/// The layer is there, or the test says that it was not run.
fn has(layer: &str, it: bool) -> bool {
    if !it {
        // Not by `println`, which a test that passes keeps for itself.
        let _ = writeln!(std::io::stderr(), "NOT RUN: this machine has no {layer}");
    }
    it
}

/// Groups of version 2 as the kernel makes them below one that has processes: there, with limits, and closed. What a test
/// puts into them opens them.
fn closed(root: &Path) -> Cgroups {
    let own = root.join("own");
    std::fs::create_dir(&own).expect("made");
    for file in ["cgroup.controllers", "cgroup.subtree_control"] {
        std::fs::write(own.join(file), "cpu memory pids\n").expect("written");
    }
    let cgroups = Cgroups::below(root, "0::/own\n");
    assert!(cgroups.has("pids") && cgroups.has("memory"));
    cgroups
}

/// What the folder holds whose name begins like this.
fn within(folder: &Path, begin: &str) -> PathBuf {
    let entries = std::fs::read_dir(folder).expect("read").flatten();
    let mut paths = entries.map(|entry| entry.path());
    let is_it = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default();
        name.to_string_lossy().starts_with(begin)
    };
    paths.find(is_it).expect("it is there")
}

/// What holds processes here: control groups where they may be made, and nothing but the watch.
fn layers() -> Vec<(&'static str, Cgroups)> {
    let mut all = vec![("watch", Cgroups::default())];
    let kernel = Cgroups::find();
    if has("cgroup", kernel.has("pids") && kernel.has("memory")) {
        all.push(("cgroup", kernel));
    }
    all
}

async fn start(
    cgroups: Cgroups,
    kind: Kind,
    code: &str,
    change: impl Fn(&mut HostSpec),
) -> Started {
    let (directory, mut spec) = function(code, "f.sh");
    spec.options.timeout_ms = 10_000;
    spec.options.kill_grace_ms = 50;
    change(&mut spec);
    let processes = Processes::start_with(Some(directory.path()), cgroups).expect("guard");
    start_among(processes, kind, directory, spec)
        .await
        .expect("starts")
}

fn limit<'a>(outcome: &'a Outcome, named: &str) -> &'a Failure {
    let failure = failure(outcome);
    let kinds = [FailureKind::Limit, FailureKind::Output];
    assert!(kinds.contains(&failure.kind), "{failure:?}");
    assert!(failure.reason.contains(named), "{failure:?}");
    failure
}

#[tokio::test]
async fn a_fork_bomb_meets_its_limit() {
    // Two hundred sparks at most, and none burns for longer than twenty seconds.
    let code = "read -r m; [[ $m == x ]] || { echo \"$m\"; exit; }\n\
                for i in {1..200}; do sleep 20 & done; wait";
    for (layer, cgroups) in layers() {
        for kind in [Kind::Spawn, Kind::BashPlain] {
            let mut f = start(cgroups.clone(), kind, code, |spec| {
                // The shell tries again for some seconds when it can not fork.
                spec.options.timeout_ms = 3_000;
                spec.options.limits.processes = Some(40);
            })
            .await;
            let bomb = f.ask(b"x").await;
            let failure = failure(&bomb);
            assert!(
                failure.reason.contains("limits.processes"),
                "{layer} {kind:?}: {failure:?}"
            );
            assert_eq!(
                payloads(&f.ask(b"next").await),
                [b"next"],
                "{layer} {kind:?}"
            );
            f.stop().await;
        }
    }
}

#[tokio::test]
async fn what_a_function_starts_yields_to_the_worker() {
    // A thread of the start may have had its turn before the worker's.
    let code = "read -r m; sleep 0.2; echo \"$(nice) $(sh -c nice)\"";
    let own = rustix::process::getpriority_process(None).expect("known");
    let nice = (own + 5).min(19);
    for (layer, cgroups) in layers() {
        for kind in [Kind::Spawn, Kind::BashPlain] {
            let mut f = start(cgroups.clone(), kind, code, |spec| {
                spec.share.cpu = Some(1.0);
            })
            .await;
            let outcome = f.ask(b"x").await;
            let want = format!("{nice} {nice}");
            assert_eq!(payloads(&outcome), [want.as_bytes()], "{layer} {kind:?}");
            f.stop().await;
        }
    }
}

#[tokio::test]
async fn a_group_that_takes_no_process_is_not_relied_on() {
    let root = tempfile::tempdir().expect("temporary");
    let cgroups = closed(root.path());
    let code = "read -r m; [[ $m == x ]] || { echo \"$m\"; exit; }\n\
                for i in {1..60}; do sleep 20 & done; wait";
    let mut f = start(cgroups, Kind::Spawn, code, |spec| {
        spec.options.limits.processes = Some(40);
    })
    .await;
    limit(&f.ask(b"x").await, "limits.processes");
    assert_eq!(payloads(&f.ask(b"next").await), [b"next"]);
    f.stop().await;
}

/// A FIFO that nobody waits for any more when this is dropped.
struct Fifo(PathBuf);

impl Drop for Fifo {
    fn drop(&mut self) {
        let both = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&self.0);
        let removed = std::fs::remove_file(&self.0);
        drop((both, removed));
    }
}

/// Into a group of version 2 a process is put when it is there: it has done nothing by then.
#[tokio::test]
async fn a_process_begins_when_it_is_in_its_group() {
    let root = tempfile::tempdir().expect("temporary");
    let code = "echo >\"$GMG_TMP/began\"; cat";
    let mut f = start(closed(root.path()), Kind::Spawn, code, |spec| {
        spec.options.concurrency = Some(1);
    })
    .await;
    // Whoever puts a process in waits for the one who reads this.
    let procs = within(&root.path().join("own"), "geminga-").join("cgroup.procs");
    let made = std::process::Command::new("mkfifo").arg(&procs).status();
    assert!(made.expect("mkfifo runs").success());
    let private = within(&within(f._directory.path(), "geminga-"), "f-0-");
    let reader = std::thread::spawn(move || {
        // Also when this fails: whoever opens it to write would wait for ever.
        let procs = Fifo(procs);
        let environment = format!("GMG_TMP={}\0", private.display());
        let sleeps = || {
            let entries = std::fs::read_dir("/proc").expect("read").flatten();
            let mut all = entries.map(|entry| entry.path());
            all.any(|process| {
                let its = std::fs::read(process.join("environ")).unwrap_or_default();
                let stat = std::fs::read_to_string(process.join("stat")).unwrap_or_default();
                String::from_utf8_lossy(&its).contains(&environment) && stat.contains(") S ")
            })
        };
        let until = std::time::Instant::now() + std::time::Duration::from_secs(15);
        while !sleeps() {
            assert!(std::time::Instant::now() < until, "no process waits");
        }
        let began = private.join("began").exists();
        let mut put = String::new();
        let mut file = std::fs::File::open(&procs.0).expect("opened");
        file.read_to_string(&mut put).expect("read");
        (put, began)
    });
    let outcome = f.ask(b"x").await;
    let (put, began) = reader.join().expect("no panic");
    assert!(put.parse::<u32>().is_ok(), "{put}");
    assert!(!began, "it began before it was in its group");
    assert_eq!(payloads(&outcome), [b"x"]);
    f.stop().await;
}

/// Behind the gate of a group of version 2 everything is as it is without.
#[tokio::test]
async fn functions_of_every_language_begin_behind_a_gate() {
    let bash = "process() { emit \"$MSG $ODD\"; }";
    let python = "import os\ndef process(input): return input + ' ' + os.environ['ODD']";
    let java = "public class F implements java.util.function.Function<String, String> {\n\
                public String apply(String input) { return input + \" \" + System.getenv(\"ODD\"); } }";
    let spawned = "read -r m; echo \"$m $ODD\"; echo '{\"payload\":\"more\"}' >&3";
    let perl = "#!/usr/bin/perl\nmy $m = <STDIN>; chomp $m; print \"$m $ENV{ODD}\";\n\
                open(my $more, '>&=', 3); print $more '{\"payload\":\"more\"}';";
    for (kind, code, name, more) in [
        (Kind::Bash, bash, "f.sh", false),
        (Kind::Python, python, "f.py", false),
        (Kind::Java, java, "F.java", false),
        (Kind::Spawn, spawned, "f.sh", true),
        (Kind::Spawn, perl, "f.pl", true),
    ] {
        for files in [Files::All, Files::Private] {
            let root = tempfile::tempdir().expect("temporary");
            let (directory, mut spec) = function(code, name);
            spec.options
                .env
                .insert("ODD".to_owned(), "a 'b' \\ *".to_owned());
            spec.options
                .env
                .insert("odd.name".to_owned(), "c".to_owned());
            spec.options.sandbox.files = files;
            let processes = Processes::start_with(Some(directory.path()), closed(root.path()));
            let started = start_among(processes.expect("guard"), kind, directory, spec).await;
            let mut f = started.expect("starts");
            for payload in ["one", "two"] {
                let outcome = f.ask(payload.as_bytes()).await;
                let mut wanted = vec![format!("{payload} a 'b' \\ *")];
                wanted.extend(more.then(|| "more".to_owned()));
                let got = payloads(&outcome).into_iter().map(String::from_utf8_lossy);
                assert!(got.eq(wanted), "{name} {files:?}: {outcome:?}");
            }
            f.stop().await;
        }
    }
    // And what is not there is told by name.
    let root = tempfile::tempdir().expect("temporary");
    let (directory, mut spec) = function("#!/no/such/interpreter\n", "f");
    spec.options.mode = Some(Mode::Stream);
    let processes = Processes::start_with(Some(directory.path()), closed(root.path()));
    let processes = processes.expect("guard");
    let exec = Exec::new(processes, Tasks::new());
    let started = exec.start(Arc::new(spec), Arc::new(Seen::default())).await;
    let Err(Broken::Deployment { reason, .. }) = started else {
        panic!("it does not start, and that is the function's fault");
    };
    assert_eq!(reason, "`/no/such/interpreter` does not exist");
}

/// The kernel holds all but one, which got into no group and is looked at: the others are no left-overs of earlier
/// messages to the one who looks.
#[tokio::test]
async fn neighbours_of_one_that_got_into_no_group_live_on() {
    let root = tempfile::tempdir().expect("temporary");
    let code = "read -r m\n\
                if [[ $m == long ]]; then\n\
                  for i in 1 2 3 4; do sleep 60 & done; echo >\"$GMG_TMP/up\"\n\
                  until [[ -e $GMG_TMP/go ]]; do sleep 0.1; done; kill $(jobs -p)\n\
                else sleep 3; fi\n\
                echo \"$m\"";
    let mut f = start(closed(root.path()), Kind::Spawn, code, |spec| {
        spec.options.limits.processes = Some(5);
        spec.options.concurrency = Some(2);
    })
    .await;
    let procs = within(&root.path().join("own"), "geminga-").join("cgroup.procs");
    let private = within(&within(f._directory.path(), "geminga-"), "f-0-");
    std::fs::write(&procs, "").expect("written");
    f.send(text(b"long")).await;
    until("it is up", || private.join("up").exists()).await;
    std::fs::remove_file(&procs).expect("removed");
    // It is looked at for longer than those who are new are spared.
    f.send(text(b"other")).await;
    let other = f.outcomes(1).await;
    assert_eq!(payloads(&other[0]), [b"other"], "{other:?}");
    std::fs::write(private.join("go"), "").expect("written");
    let long = f.outcomes(1).await;
    assert_eq!(payloads(&long[0]), [b"long"], "{long:?}");
    f.stop().await;
}

#[tokio::test]
async fn sparks_in_sessions_of_their_own_are_found() {
    let code = "read -r m; [[ $m == x ]] || { echo \"$m\"; exit; }\n\
                for i in {1..60}; do setsid sleep 20 & done; wait";
    let mut f = start(Cgroups::default(), Kind::Spawn, code, |spec| {
        spec.options.limits.processes = Some(40);
    })
    .await;
    limit(&f.ask(b"x").await, "limits.processes");
    assert_eq!(payloads(&f.ask(b"next").await), [b"next"]);
    f.stop().await;
}

#[tokio::test]
async fn memory_of_all_processes_together_is_held() {
    let code = "read -r m; [[ $m == x ]] || { echo \"$m\"; exit; }\n\
                for i in 1 2 3 4; do python3 -c 'import time; x = bytearray(60 << 20); time.sleep(20)' & done\n\
                for i in 1 2 3 4; do wait -n || exit 1; done";
    for (layer, cgroups) in layers() {
        for kind in [Kind::Spawn, Kind::BashPlain] {
            let mut f = start(cgroups.clone(), kind, code, |spec| {
                spec.share.memory_bytes = Some(120 << 20);
            })
            .await;
            let bomb = f.ask(b"x").await;
            let failure = failure(&bomb);
            // A warm shell lives on when the kernel kills what it started: the function says that it failed.
            if layer == "watch" || kind == Kind::Spawn {
                limit(&bomb, "resources.ram");
            }
            assert!(!failure.reason.is_empty(), "{layer} {kind:?}: {failure:?}");
            assert_eq!(
                payloads(&f.ask(b"next").await),
                [b"next"],
                "{layer} {kind:?}"
            );
            f.stop().await;
        }
    }
}

#[tokio::test]
async fn a_warm_process_that_grows_is_ended_by_name() {
    let code = "def process(input):\n\
                \x20   if input == 'x':\n\
                \x20       import time; hoard = [bytearray(10 << 20) for _ in range(20)]; time.sleep(20)\n\
                \x20   return input\n";
    for (layer, cgroups) in layers() {
        let (directory, mut spec) = function(code, "f.py");
        spec.share.memory_bytes = Some(100 << 20);
        let processes = Processes::start_with(Some(directory.path()), cgroups).expect("guard");
        let started = start_among(processes, Kind::Python, directory, spec).await;
        let mut f = started.expect("starts");
        let bomb = f.ask(b"x").await;
        let failure = limit(&bomb, "resources.ram");
        assert!(failure.reason.starts_with("killed"), "{layer}: {failure:?}");
        assert_eq!(payloads(&f.ask(b"next").await), [b"next"], "{layer}");
        f.stop().await;
    }
}

#[tokio::test]
async fn a_private_directory_does_not_outgrow_its_disk() {
    let many = "read -r m; [[ $m == x ]] || { ${m%next}; cat \"$GMG_SECRETS/word\"; exit; }\n\
                for i in {1..20}; do head -c 1000000 /dev/zero >\"$GMG_TMP/$i\"; done; sleep 20";
    let one = "read -r m; [[ $m == x ]] || { ${m%next}; cat \"$GMG_SECRETS/word\"; exit; }\n\
               exec head -c 20000000 /dev/zero >\"$GMG_TMP/one\"";
    for (kind, code, named) in [
        (Kind::Spawn, many, "resources.disk"),
        (Kind::BashPlain, many, "resources.disk"),
        (Kind::Spawn, one, "larger file than allowed"),
    ] {
        let mut f = start(Cgroups::find(), kind, code, |spec| {
            spec.share.disk_bytes = Some(5_000_000);
            spec.secrets.insert("word".to_owned(), "kept".to_owned());
        })
        .await;
        limit(&f.ask(b"x").await, named);
        // Nobody is ended for what another left: it would be within a look of the watch.
        for wait in ["", "sleep 1 "] {
            let next = f.ask(format!("{wait}next").as_bytes()).await;
            assert_eq!(payloads(&next), [b"kept"], "{kind:?} {wait}: {next:?}");
        }
        f.stop().await;
    }
}

/// Each message is within the limit, and what all leave behind is not.
#[tokio::test]
async fn what_messages_leave_in_sessions_of_their_own_does_not_pile_up() {
    // What is younger than `LEFT` of the watch may belong to a message in hand.
    let code = "read -r m\n\
                [[ $m == last ]] && sleep 2.5\n\
                count() {\n\
                  n=0\n\
                  while read -r pid; do { read -r -d '' c </proc/$pid/cmdline; } 2>/dev/null && n=$((n+1)); done <\"$GMG_TMP/left\"\n\
                }\n\
                for i in 1 2 3 4 5; do\n\
                  setsid bash -c 'echo $$ >>\"$GMG_TMP/left\"; exec sleep 60' >/dev/null 2>&1 </dev/null &\n\
                  until grep -q \"^$!\" \"$GMG_TMP/left\" 2>/dev/null; do sleep 0.01; done\n\
                done\n\
                if [[ $m == last ]]; then\n\
                  for i in {1..100}; do count; (( n <= 5 )) && break; sleep 0.1; done; echo $n\n\
                else count; echo $n; fi";
    let mut f = start(Cgroups::default(), Kind::Spawn, code, |spec| {
        spec.options.limits.processes = Some(20);
        spec.options.concurrency = Some(1);
        spec.options.timeout_ms = 30_000;
    })
    .await;
    for left in [&b"5"[..], b"10", b"15"] {
        assert_eq!(payloads(&f.ask(b"x").await), [left]);
    }
    // Its own are at work for it.
    assert_eq!(payloads(&f.ask(b"last").await), [b"5"]);
    f.stop().await;
}

/// Each lane has its own processes, and its own message to be blamed.
#[tokio::test]
async fn lanes_have_their_memory_together() {
    // All are there before the first takes memory: one that is killed at once would leave the others waiting.
    let hold = "import sys, os, time, glob\n\
                up = os.environ['GMG_TMP'] + '/up.'\n\
                open(up + sys.argv[1], 'w').close()\n\
                while len(glob.glob(up + '*')) < 4: time.sleep(0.01)\n\
                x = bytearray(50 << 20)\n\
                time.sleep(3)\n";
    let code = "read -r m; python3 -c \"$PROGRAM\" \"$m\" || exit 1; echo \"$m\"";
    let mut f = start(Cgroups::default(), Kind::Spawn, code, |spec| {
        spec.share.memory_bytes = Some(150 << 20);
        spec.options.concurrency = Some(4);
        spec.options
            .env
            .insert("PROGRAM".to_owned(), hold.to_owned());
        spec.options.timeout_ms = 20_000;
    })
    .await;
    for payload in [b"1", b"2", b"3", b"4"] {
        f.send(text(payload)).await;
    }
    let outcomes = f.outcomes(4).await;
    let (failed, done): (Vec<_>, Vec<_>) = outcomes
        .iter()
        .partition(|outcome| matches!(outcome.verdict, Verdict::Failed(_)));
    for outcome in &failed {
        let failure = limit(outcome, "resources.ram");
        assert!(failure.reason.contains("other messages"), "{failure:?}");
    }
    assert!(!failed.is_empty() && !done.is_empty(), "{outcomes:?}");
    f.stop().await;
}

/// What the kernel counted is told of the message in whose time it happened.
#[tokio::test]
async fn a_limit_is_not_blamed_on_a_later_message() {
    if !has("pids cgroup", Cgroups::find().has("pids")) {
        return;
    }
    // The shell tries again after a second, and then there is room.
    let code = "read -r m; [[ $m == x ]] || exit 3\n\
                for i in {1..12}; do sleep 0.5 & done; wait; echo \"$m\"";
    let mut f = start(Cgroups::find(), Kind::Spawn, code, |spec| {
        spec.options.limits.processes = Some(8);
        spec.options.concurrency = Some(2);
    })
    .await;
    assert_eq!(payloads(&f.ask(b"x").await), [b"x"]);
    for _ in 0..2 {
        let bad = f.ask(b"bad").await;
        let failure = failure(&bad);
        assert_ne!(failure.kind, FailureKind::Limit, "{failure:?}");
        assert!(!failure.reason.contains("limits.processes"), "{failure:?}");
    }
    f.stop().await;
}

#[tokio::test]
async fn cores_are_a_quota_of_the_group() {
    if !has("cpu cgroup", Abilities::of_this_machine().cpu) {
        return;
    }
    let code = "cat >/dev/null\n\
                place=$(grep -E '^[0-9]+:cpu:|^0::' /proc/self/cgroup | grep geminga | head -1 | cut -d: -f3)\n\
                cat /sys/fs/cgroup/cpu/$place/cpu.cfs_quota_us /sys/fs/cgroup/$place/cpu.max 2>/dev/null; true";
    let mut f = start(Cgroups::find(), Kind::Spawn, code, |spec| {
        spec.share.cpu = Some(0.25);
    })
    .await;
    let outcome = f.ask(b"x").await;
    let said = String::from_utf8_lossy(payloads(&outcome)[0]).into_owned();
    assert!(said.starts_with("25000"), "{said}");
    f.stop().await;
}

#[tokio::test]
async fn a_flood_that_never_ends_is_cut_and_counted() {
    let bash = "process() { [[ $MSG == x ]] && while :; do echo flood >&2; done; emit \"$MSG\"; }";
    let spawned = "read -r m; [[ $m == x ]] || { echo \"$m\"; exit; }; yes flood >&2";
    for (kind, code) in [(Kind::Bash, bash), (Kind::Spawn, spawned)] {
        let mut f = start(Cgroups::find(), kind, code, |spec| {
            spec.options.timeout_ms = 1_000;
            spec.options.max_stderr_bytes = 10_000;
        })
        .await;
        let flood = f.ask(b"x").await;
        let failure = failure(&flood);
        assert_eq!(failure.kind, FailureKind::Timeout, "{kind:?}: {failure:?}");
        assert!(
            failure.reason.contains("bytes were too many"),
            "{kind:?}: {failure:?}"
        );
        let logged: usize = f.seen.logs.lock().iter().map(|line| line.text.len()).sum();
        assert!(logged < 60_000, "{kind:?}: {logged} bytes of logs");
        assert_eq!(payloads(&f.ask(b"next").await), [b"next"], "{kind:?}");
        f.stop().await;
    }
}

#[tokio::test]
async fn a_flood_of_output_is_cut_at_its_limit() {
    let bash = "process() { [[ $MSG == x ]] && exec yes; emit \"$MSG\"; }";
    let spawned = "read -r m; [[ $m == x ]] && exec yes; echo \"$m\"";
    for (kind, code) in [(Kind::Bash, bash), (Kind::Spawn, spawned)] {
        let mut f = start(Cgroups::find(), kind, code, |_| {}).await;
        limit(&f.ask(b"x").await, "bytes of output for one message");
        assert_eq!(payloads(&f.ask(b"next").await), [b"next"], "{kind:?}");
        f.stop().await;
    }
}

#[tokio::test]
async fn files_outside_are_out_of_reach_and_its_own_are_not() {
    let landlock = Abilities::of_this_machine().files;
    if !has("Landlock", landlock > Landlock::Nothing) {
        return;
    }
    let outside = tempfile::tempdir().expect("temporary");
    let secret = outside.path().join("secret");
    std::fs::write(&secret, "treasure").expect("written");
    let granted = tempfile::tempdir().expect("temporary");
    std::fs::write(granted.path().join("given"), "granted").expect("written");
    let code = format!(
        "cat >/dev/null\ncat {0} /etc/shadow /proc/{3}/environ /proc/{3}/root{0} 2>&1; echo x >{1}/new; ln -s / \"$GMG_TMP/r\"\n\
         cat \"$GMG_TMP/r\"{0} 2>&1; cat {2}/given; echo; echo no >{2}/given\n\
         echo mine >\"$GMG_TMP/f\" && cat \"$GMG_TMP/f\"\n\
         kill -0 {3} && echo signalled; perl -e 'truncate($ARGV[0], 0) and print \"emptied\"' {2}/given; true",
        secret.display(),
        outside.path().display(),
        granted.path().display(),
        std::process::id(),
    );
    for kind in [Kind::Spawn, Kind::BashPlain] {
        let mut f = start(Cgroups::find(), kind, &code, |spec| {
            spec.options.sandbox.files = Files::Private;
            spec.options.sandbox.required = landlock == Landlock::Signals;
            spec.options.sandbox.read = vec![granted.path().to_path_buf()];
        })
        .await;
        let outcome = f.ask(b"x").await;
        let said = String::from_utf8_lossy(payloads(&outcome)[0]).into_owned();
        let refused = said.matches("Permission denied").count();
        assert!(
            !said.contains("treasure") && !said.contains("root:") && refused >= 5,
            "{kind:?}: {said}"
        );
        assert!(said.contains("granted\nmine"), "{kind:?}: {said}");
        assert!(!outside.path().join("new").exists());
        if has("Landlock of signals", landlock >= Landlock::Signals) {
            assert!(!said.contains("signalled"), "{kind:?}: {said}");
        }
        if has("Landlock of truncation", landlock >= Landlock::Truncation) {
            assert!(!said.contains("emptied"), "{kind:?}: {said}");
            let given = std::fs::read_to_string(granted.path().join("given")).expect("read");
            assert_eq!(given, "granted", "what may be read may not be written");
        }
        f.stop().await;
    }
}

/// A private directory is the function's to write, so any name in it may lead elsewhere by now; and the worker is behind
/// no wall.
#[tokio::test]
async fn the_worker_follows_no_link_out_of_a_private_directory() {
    let outside = tempfile::tempdir().expect("temporary");
    let file = outside.path().join("ledger");
    let content = "{\"payload\":\"treasure\"}\n";
    std::fs::write(&file, content).expect("written");
    let code = format!(
        "read -r m\n\
         case $m in\n\
         link) for name in outputs control; do ln -sf {0} \"$GMG_TMP/$name-0\"; done ;;\n\
         clear) rm -rf \"$GMG_TMP\"/*; mkdir -p \"$GMG_TMP/control-0/a\" ;;\n\
         *) echo '{{\"payload\":\"more\"}}' >&3; echo \"$m\" ;;\n\
         esac",
        file.display()
    );
    let mut f = start(Cgroups::find(), Kind::Spawn, &code, |spec| {
        spec.options.sandbox.files = Files::Private;
        spec.options.concurrency = Some(1);
    })
    .await;
    for trick in [&b"link"[..], b"clear", b"link"] {
        let tricked = f.ask(trick).await;
        assert_eq!(tricked.verdict, Verdict::Done, "{tricked:?}");
        assert!(payloads(&tricked).is_empty(), "{tricked:?}");
        let kept = std::fs::read_to_string(&file).expect("read");
        assert_eq!(kept, content);
        let next = f.ask(b"next").await;
        assert_eq!(payloads(&next), [&b"next"[..], b"more"]);
    }
    f.stop().await;
    assert_eq!(std::fs::read_to_string(&file).expect("read"), content);
}

#[tokio::test]
async fn another_user_has_its_descriptors_too() {
    use std::os::unix::fs::PermissionsExt;
    if !has("root", rustix::process::geteuid().is_root()) {
        return;
    }
    for files in [Files::All, Files::Private] {
        let code = "cat >/dev/null; echo '{\"payload\":\"more\"}' >&3; id -u";
        let mut f = start(Cgroups::find(), Kind::Spawn, code, |spec| {
            let folder = spec.code.path.parent().expect("a folder");
            let open = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(folder, open).expect("set");
            spec.options.run_as = Some("65534:65534".to_owned());
            spec.options.sandbox.files = files;
        })
        .await;
        for _ in 0..2 {
            let outcome = f.ask(b"x").await;
            assert_eq!(payloads(&outcome), [&b"65534"[..], b"more"], "{outcome:?}");
        }
        f.stop().await;
    }
}

#[tokio::test]
async fn functions_of_every_language_live_behind_walls_and_a_refusal_names_them() {
    let can = Abilities::of_this_machine();
    if !has(
        "Landlock and seccomp",
        can.files == Landlock::Signals && can.network,
    ) {
        return;
    }
    let outside = tempfile::tempdir().expect("temporary");
    let secret = outside.path().join("secret");
    std::fs::write(&secret, "treasure").expect("written");
    let secret = secret.display();
    let bash = format!(
        "process() {{ [[ $MSG == x ]] && {{ cat {secret} || return 1; }}; emit \"$MSG\"; }}"
    );
    let python = format!(
        "import json, ssl\ndef process(input):\n    return open('{secret}').read() if input == 'x' else input\n"
    );
    let java = format!(
        "import java.nio.file.*;\npublic class F implements java.util.function.Function<String, String> {{\n\
         public String apply(String input) {{\n\
         try {{ return input.equals(\"x\") ? Files.readString(Path.of(\"{secret}\")) : input; }}\n\
         catch (java.io.IOException e) {{ throw new RuntimeException(e); }} }} }}"
    );
    for (kind, code, name) in [
        (Kind::Bash, bash, "f.sh"),
        (Kind::Python, python, "f.py"),
        (Kind::Java, java, "F.java"),
    ] {
        let (directory, mut spec) = function(&code, name);
        spec.options.sandbox.files = Files::Private;
        spec.options.sandbox.network = Network::None;
        spec.options.sandbox.required = true;
        let mut f = start_spec(kind, directory, spec).await.expect("starts");
        assert_eq!(payloads(&f.ask(b"before").await), [b"before"], "{kind:?}");
        let refused = f.ask(b"x").await;
        let failure = failure(&refused);
        let named = "the function is behind `sandbox.files: private` and `sandbox.network: none`";
        assert!(failure.reason.contains(named), "{kind:?}: {failure:?}");
        assert_eq!(payloads(&f.ask(b"next").await), [b"next"], "{kind:?}");
        f.stop().await;
    }
}

#[tokio::test]
async fn no_socket_of_the_network_is_made_and_pairs_are() {
    if !has("seccomp", Abilities::of_this_machine().network) {
        return;
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let port = listener.local_addr().expect("bound").port();
    let folder = tempfile::tempdir().expect("temporary");
    let logged = folder.path().join("log");
    let log = std::os::unix::net::UnixDatagram::bind(&logged).expect("bound");
    let logged = logged.display();
    let code = format!(
        "import socket, subprocess\n\
         def process(input):\n\
         \x20   said = []\n\
         \x20   for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):\n\
         \x20       for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):\n\
         \x20           try:\n\
         \x20               socket.socket(family, kind).connect(('127.0.0.1', {port}))\n\
         \x20               said.append('open')\n\
         \x20           except PermissionError:\n\
         \x20               said.append('denied')\n\
         \x20   child = subprocess.run(['bash', '-c', 'echo > /dev/tcp/127.0.0.1/{port}'], stderr=subprocess.PIPE)\n\
         \x20   said.append(str(child.returncode))\n\
         \x20   for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):\n\
         \x20       a, b = socket.socketpair(socket.AF_UNIX, kind)\n\
         \x20       a.send(b'within'); said.append(b.recv(10).decode())\n\
         \x20   try:\n\
         \x20       a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
         \x20       a.sendto(b'without', '{logged}'); said.append('open')\n\
         \x20   except PermissionError:\n\
         \x20       said.append('denied')\n\
         \x20   return ' '.join(said)\n"
    );
    let (directory, mut spec) = function(&code, "f.py");
    spec.options.sandbox.network = Network::None;
    spec.options.sandbox.required = true;
    let mut f = start_spec(Kind::Python, directory, spec)
        .await
        .expect("starts");
    assert_eq!(
        payloads(&f.ask(b"x").await),
        [b"denied denied denied denied denied denied 1 within within denied"]
    );
    log.set_nonblocking(true).expect("set");
    assert!(log.recv(&mut [0; 8]).is_err(), "somebody sent");
    listener.set_nonblocking(true).expect("set");
    assert!(listener.accept().is_err(), "somebody came through");
    f.stop().await;
}

#[tokio::test]
async fn groups_are_gone_when_their_host_is() {
    let cgroups = Cgroups::find();
    if !has("cgroup", cgroups.has("pids")) {
        return;
    }
    let code =
        "cat >/dev/null; setsid sleep 60 & cut -d: -f3 /proc/self/cgroup | grep geminga | sort -u";
    let mut f = start(cgroups.clone(), Kind::Spawn, code, |_| {}).await;
    let outcome = f.ask(b"x").await;
    let name = String::from_utf8_lossy(payloads(&outcome)[0]).into_owned();
    let name = name.trim().rsplit('/').next().expect("a name").to_owned();
    assert!(name.starts_with("geminga-"), "{name}");
    let places: Vec<_> = cgroups.parents().iter().map(|up| up.join(&name)).collect();
    assert!(places.iter().any(|place| place.exists()));
    f.stop().await;
    until("the groups are gone", || {
        !places.iter().any(|place| place.exists())
    })
    .await;
}

/// The lane that finds out ends while messages are still handed over.
#[tokio::test]
async fn code_that_does_not_run_is_told_to_whoever_hands_over_more() {
    let mut f = start(Cgroups::find(), Kind::Spawn, "exit 127", |spec| {
        spec.options.mode = Some(Mode::Batch);
        spec.options.window = Some(100_000);
    })
    .await;
    let hand_over = async {
        loop {
            let message = Arc::new(text(b"x"));
            let delivery = Delivery { ticket: 0, message };
            if let Err(broken) = f.host.deliver(vec![delivery]).await {
                return broken;
            }
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    };
    let in_time = tokio::time::timeout(std::time::Duration::from_secs(20), hand_over);
    let broken = in_time.await.expect("the lane ends");
    assert!(matches!(broken, Broken::Deployment { .. }), "{broken:?}");
}

#[tokio::test]
async fn a_message_that_hangs_takes_only_its_own_processes_along() {
    let code = "read -r m; [[ $m == x ]] && { setsid sleep 30; }; sleep 0.6; echo \"$m\"";
    let mut f = start(Cgroups::find(), Kind::Spawn, code, |spec| {
        spec.options.timeout_ms = 1_000;
        spec.options.concurrency = Some(4);
    })
    .await;
    for payload in [b"x", b"1", b"2", b"3", b"4", b"5"] {
        f.send(text(payload)).await;
    }
    let outcomes = f.outcomes(6).await;
    assert_eq!(failure(&outcomes[0]).kind, FailureKind::Timeout);
    for outcome in &outcomes[1..] {
        assert_eq!(payloads(outcome).len(), 1, "{outcome:?}");
    }
    f.stop().await;
}
