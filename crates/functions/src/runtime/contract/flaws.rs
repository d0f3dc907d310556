//! Each flaw of the first Bash runtime that a runtime can have, by its number in the list: the test
//! fails when the flaw comes back. Those of delivery are in `tests/it/flaws.rs`.

use super::*;

const SHELLS: [Kind; 2] = [Kind::BashPlain, Kind::Spawn];

async fn shell(kind: Kind, code: &str) -> Started {
    let (directory, spec) = function(code, "f.sh");
    start_spec(kind, directory, spec).await.expect("starts")
}

fn example(name: &str) -> HostSpec {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/bash/");
    HostSpec {
        name: "example".into(),
        code: Code {
            path: PathBuf::from(path).join(name),
            class_name: None,
        },
        ..HostSpec::default()
    }
}

#[tokio::test]
async fn the_three_samples_run_unchanged_warm_and_spawned() {
    for kind in SHELLS {
        for (name, input, output) in [
            ("exclamation.sh", "hello wörld", "hello wörld!"),
            ("reverse.sh", "abc wörld", "dlröw cba"),
            ("wordcount.sh", " one two\nthree ", "3"),
        ] {
            let directory = tempfile::tempdir().expect("temporary");
            let mut f = start_spec(kind, directory, example(name))
                .await
                .expect("starts");
            let outcome = f.ask(input.as_bytes()).await;
            assert_eq!(payloads(&outcome), [output.as_bytes()], "{kind:?} {name}");
            f.stop().await;
        }
    }
}

#[tokio::test]
async fn flaw_07_scripts_run_in_bash_and_not_in_sh() {
    for kind in SHELLS {
        let mut f = shell(kind, "a=(x y z); read -r m; echo \"${a[1]}${m:1:2}\"").await;
        assert_eq!(payloads(&f.ask(b"abcd").await), [b"ybc"], "{kind:?}");
        f.stop().await;
    }
}

#[tokio::test]
async fn flaw_08_large_empty_and_dashed_messages_arrive_and_stay_private() {
    let code = "m=$(cat; echo x); tr '\\0' ' ' </proc/$$/cmdline >&2; echo \"${#m} ${m:0:2}\"";
    for kind in SHELLS {
        let mut f = shell(kind, code).await;
        let large = vec![b'a'; 1_000_000];
        // The newline that text is given, and the x that keeps it.
        assert_eq!(payloads(&f.ask(&large).await), [b"1000002 aa"], "{kind:?}");
        assert_eq!(payloads(&f.ask(b"").await), [b"2 \nx"], "{kind:?}");
        assert_eq!(payloads(&f.ask(b"-n").await), [b"4 -n"], "{kind:?}");
        f.ask(b"confidential").await;
        assert!(
            !f.seen
                .logs
                .lock()
                .iter()
                .any(|line| line.text.contains("confidential"))
        );
        f.stop().await;
    }
}

#[tokio::test]
async fn flaw_09_all_lines_of_the_output_arrive() {
    for kind in SHELLS {
        let mut f = shell(
            kind,
            "cat >/dev/null; for i in {1..30000}; do echo line$i; done",
        )
        .await;
        let outcome = f.ask(b"x").await;
        let lines = payloads(&outcome)[0].split(|&b| b == b'\n').count();
        assert_eq!(lines, 30_000, "{kind:?}");
        f.stop().await;
    }
}

#[tokio::test]
async fn flaw_10_a_flood_on_standard_error_neither_hangs_nor_grows() {
    for kind in SHELLS {
        let code = "cat; for i in {1..20000}; do echo 'WARN: a rather long line of noise, again and again'; done >&2";
        let mut f = shell(kind, code).await;
        assert_eq!(payloads(&f.ask(b"x").await), [b"x"], "{kind:?}");
        let bytes: usize = f.seen.logs.lock().iter().map(|line| line.text.len()).sum();
        assert!(bytes < 600_000, "{kind:?} {bytes}");
        assert!(
            f.seen
                .logs
                .lock()
                .iter()
                .any(|line| line.level == Level::Warn)
        );
        f.stop().await;
    }
}

#[tokio::test]
async fn flaw_11_failure_nothing_and_an_empty_line_are_three_things() {
    for kind in SHELLS {
        let mut f = shell(
            kind,
            "read -r m; case $m in fail) exit 1;; empty) echo;; esac",
        )
        .await;
        assert_eq!(
            failure(&f.ask(b"fail").await).exit_code,
            Some(1),
            "{kind:?}"
        );
        assert_eq!(payloads(&f.ask(b"empty").await), [b""], "{kind:?}");
        let nothing = f.ask(b"nothing").await;
        assert_eq!(
            (payloads(&nothing).len(), &nothing.verdict),
            (0, &Verdict::Done),
            "{kind:?}"
        );
        f.stop().await;
    }
}

#[tokio::test]
async fn exit_statuses_mean_what_the_contract_says() {
    for kind in [Kind::Bash, Kind::BashPlain, Kind::Spawn] {
        let code = match kind {
            // A success first: 126 and 127 before it would be a wrong deployment.
            Kind::Bash => "process() { exit \"$MSG\"; }",
            _ => "read -r m; exit \"$m\"",
        };
        let mut f = shell(kind, code).await;
        assert_eq!(f.ask(b"0").await.verdict, Verdict::Done, "{kind:?}");
        for (status, wanted) in [
            (65, FailureKind::Data),
            (78, FailureKind::Data),
            (75, FailureKind::Temporary),
            (1, FailureKind::User),
            (127, FailureKind::User),
        ] {
            let outcome = f.ask(status.to_string().as_bytes()).await;
            assert_eq!(failure(&outcome).kind, wanted, "{kind:?} {status}");
            assert_eq!(failure(&outcome).exit_code, Some(status), "{kind:?}");
        }
        assert_eq!(f.ask(b"99").await.verdict, Verdict::Drop, "{kind:?}");
        f.stop().await;
    }
}

#[tokio::test]
async fn a_command_that_is_missing_from_the_start_is_a_wrong_deployment() {
    let mut f = shell(Kind::Spawn, "no_such_command").await;
    f.send(text(b"x")).await;
    let broken = f.host.outcomes().await.expect_err("broken");
    assert!(
        matches!(&broken, Broken::Deployment { reason, stderr_tail }
        if reason.contains("127") && stderr_tail.contains("no_such_command")),
        "{broken:?}"
    );
    f.stop().await;
}

#[tokio::test]
async fn flaw_14_metadata_is_given_and_outputs_carry_theirs() {
    let code = r#"
cat >/dev/null
echo '{"topic":"t","key":"k2","properties":{"n":1},"eventTime":5,"payload":"extra"}' >&3
echo "log WARN noted" >&4
echo "state incr seen 2" >&4
echo "$GMG_KEY $GMG_PROP_a_b $GMG_MESSAGE_ID $GMG_FUNCTION $GMG_CONF_greeting"
"#;
    let (directory, mut spec) = function(code, "f.sh");
    spec.user_config.insert("greeting".into(), "hi".into());
    let mut f = start_spec(Kind::Spawn, directory, spec)
        .await
        .expect("starts");
    let message = Message {
        key: Some("k".into()),
        properties: vec![("a-b".into(), "v".into())],
        ..text(b"x")
    };
    f.send(message).await;
    let outcome = f.outcomes(1).await.remove(0);
    assert_eq!(
        payloads(&outcome),
        [&b"k v 1:2:-1 f hi"[..], b"extra"],
        "{outcome:?}"
    );
    let extra = &outcome.outputs[1];
    assert_eq!(
        (extra.topic.as_deref(), extra.key.as_deref()),
        (Some("t"), Some("k2"))
    );
    assert_eq!(extra.event_time, Some(5));
    assert_eq!(outcome.state, [StateChange::Increment("seen".into(), 2)]);
    assert!(
        f.seen
            .logs
            .lock()
            .iter()
            .any(|l| l.text == "noted" && l.level == Level::Warn)
    );
    f.stop().await;
}

#[tokio::test]
async fn a_change_of_the_state_that_can_not_be_kept_fails_its_message() {
    let long = "printf -v key 'k%.0s' {1..1025}";
    let warm = format!(
        "process() {{ {long}\n case $MSG in key) state put \"$key\" 1;; value) printf -v all '%*s' 4194305 x; \
         state put large \"$all\";; *) state put \"${{key:1}}\" 1;; esac; emit done; }}"
    );
    let mut f = shell(Kind::Bash, &warm).await;
    for (message, wanted) in [
        ("key", Some("has 1025 bytes: 1024 at most")),
        (
            "value",
            Some("the state's value of `large` has 4194305 bytes: 4194304 at most"),
        ),
        ("short", None),
    ] {
        let outcome = f.ask(message.as_bytes()).await;
        match (&outcome.verdict, wanted) {
            (Verdict::Failed(failure), Some(wanted)) => {
                assert!(failure.reason.contains(wanted), "{failure:?}");
                assert!(outcome.state.is_empty() && outcome.outputs.is_empty());
            }
            (Verdict::Done, None) => assert_eq!(outcome.state.len(), 1),
            other => panic!("{message}: {other:?}"),
        }
    }
    f.stop().await;
    let spawned = format!("#!/bin/bash\n{long}\necho \"state incr $key 2\" >&4\n");
    let (directory, spec) = function(&spawned, "f.sh");
    let mut f = start_spec(Kind::Spawn, directory, spec)
        .await
        .expect("starts");
    let outcome = f.ask(b"x").await;
    let Verdict::Failed(failure) = &outcome.verdict else {
        panic!("{outcome:?}")
    };
    assert!(failure.reason.contains("1024 at most"), "{failure:?}");
    f.stop().await;
}

#[tokio::test]
async fn flaw_16_a_message_does_not_cost_a_process() {
    // `$BASHPID` is the process that runs the code, subshells included.
    let mut f = shell(Kind::Bash, "process() { emit \"$BASHPID\"; }").await;
    for _ in 0..200 {
        f.send(text(b"x")).await;
    }
    let pids: std::collections::BTreeSet<Vec<u8>> = f
        .outcomes(200)
        .await
        .iter()
        .map(|outcome| payloads(outcome)[0].to_vec())
        .collect();
    assert_eq!(pids.len(), 1, "one shell for all messages: {pids:?}");
    f.stop().await;
    // A script that is no `process` forks once a message, from a shell that stays.
    let mut f = shell(Kind::BashPlain, "cat >/dev/null; echo \"$PPID $$\"").await;
    let first = f.ask(b"x").await;
    let second = f.ask(b"x").await;
    assert_eq!(payloads(&first), payloads(&second), "the same parent");
    f.stop().await;
}

#[tokio::test]
async fn flaw_17_messages_of_one_key_are_processed_in_order() {
    let directory = tempfile::tempdir().expect("temporary");
    let trace = directory.path().join("trace");
    let code = format!(
        "read -r m; sleep 0.0$((RANDOM % 3)); echo \"$GMG_KEY $m\" >> {}",
        trace.display()
    );
    let (code_directory, mut spec) = function(&code, "f.sh");
    spec.options.concurrency = Some(4);
    let mut f = start_spec(Kind::Spawn, code_directory, spec)
        .await
        .expect("starts");
    for number in 0..40 {
        let key = Some(format!("k{}", number % 5));
        f.send(Message {
            key,
            ..text(format!("{number:02}").as_bytes())
        })
        .await;
    }
    f.outcomes(40).await;
    f.stop().await;
    let lines = std::fs::read_to_string(trace).expect("trace");
    for key in 0..5 {
        let of_key: Vec<&str> = lines
            .lines()
            .filter(|l| l.starts_with(&format!("k{key} ")))
            .collect();
        assert_eq!(of_key.len(), 8);
        assert!(of_key.is_sorted(), "{of_key:?}");
    }
}

#[tokio::test]
async fn flaw_22_limits_hold_and_the_environment_is_clean() {
    let code = "cat >/dev/null; ulimit -n; env | grep -c '^CARGO' ; pwd >/dev/null; [[ -w $TMPDIR ]] && echo private";
    let (directory, mut spec) = function(code, "f.sh");
    spec.options.limits.open_files = Some(64);
    let mut f = start_spec(Kind::BashPlain, directory, spec)
        .await
        .expect("starts");
    assert_eq!(payloads(&f.ask(b"x").await), [b"64\n0\nprivate"]);
    f.stop().await;
}

fn alive(pid: i32) -> bool {
    // A zombie has ended: only its parent has not looked yet.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .unwrap_or("")
            .trim_start()
            .starts_with('Z')
    })
}

#[tokio::test]
async fn flaw_22_nothing_that_a_script_forked_outlives_the_host() {
    for kind in [Kind::Bash, Kind::BashPlain, Kind::Spawn] {
        let body = "sleep 600 & echo $!; setsid sleep 600 & sleep 0.1; pgrep -n -f 'sleep 600'";
        let code = match kind {
            Kind::Bash => format!("process() {{ {body}; }}"),
            _ => format!("cat >/dev/null; {body}"),
        };
        let mut f = shell(kind, &code).await;
        let outcome = f.ask(b"x").await;
        let printed = payloads(&outcome)[0].to_vec();
        let pids: Vec<i32> = std::str::from_utf8(&printed)
            .expect("text")
            .lines()
            .map(|line| line.parse().expect("a pid"))
            .collect();
        assert_eq!(pids.len(), 2, "{kind:?}");
        f.stop().await;
        until("forked processes end", || {
            !pids.iter().any(|&pid| alive(pid))
        })
        .await;
    }
}

#[tokio::test]
async fn a_worker_that_is_gone_takes_its_processes_along() {
    use std::os::unix::process::CommandExt;
    let directory = tempfile::tempdir().expect("temporary");
    let private = directory.path().join("private");
    std::fs::create_dir(&private).expect("made");
    // A directory stands for a control group of the worker's, and one for somebody else's.
    let parent = directory.path().join("groups");
    let own = parent.join("geminga-scope-of-a-test-0");
    let others = parent.join("geminga-scope-of-another-0");
    for group in [&own, &others] {
        std::fs::create_dir_all(group).expect("made");
    }
    let guard =
        crate::runtime::guard::Guard::start("scope-of-a-test", &private, &[parent]).expect("guard");
    let sleeper = |group: bool| {
        let mut command = std::process::Command::new("sleep");
        command.arg("600").env("GMG_SCOPE", "scope-of-a-test.0.");
        if group {
            command.process_group(0);
        }
        command.spawn().expect("spawned")
    };
    let (mut listed, mut hidden, mut removed) = (sleeper(true), sleeper(false), sleeper(true));
    guard.add(listed.id().cast_signed());
    guard.add(removed.id().cast_signed());
    guard.remove(removed.id().cast_signed());
    // Its pipe closes, as it does when the worker is killed.
    drop(guard);
    assert!(!listed.wait().expect("ended").success());
    assert!(!hidden.wait().expect("ended").success());
    assert!(!private.exists());
    assert!(!own.exists() && others.exists());
    let _ = removed.kill();
    let _ = removed.wait();
}

#[tokio::test]
async fn stream_and_batch_tools_get_and_give_records() {
    let cases = [
        (Mode::Stream, Framing::Line, "sed -u 's/$/!/'"),
        (Mode::Stream, Framing::Nul, "sed -uz 's/$/!/'"),
        (Mode::Batch, Framing::Line, "sed 's/$/!/'"),
        (Mode::Batch, Framing::Nul, "sed -z 's/$/!/'"),
    ];
    for (mode, framing, code) in cases {
        let (directory, mut spec) = function(code, "f.sh");
        spec.options.mode = Some(mode);
        spec.options.framing = framing;
        let mut f = start_spec(Kind::Spawn, directory, spec)
            .await
            .expect("starts");
        for number in 0..50 {
            f.send(text(format!("m{number}").as_bytes())).await;
        }
        for (number, outcome) in f.outcomes(50).await.iter().enumerate() {
            assert_eq!(
                payloads(outcome),
                [format!("m{number}!").as_bytes()],
                "{mode:?} {framing:?}"
            );
        }
        let bad = if framing == Framing::Line {
            &b"a\nb"[..]
        } else {
            b"a\0b"
        };
        assert_eq!(failure(&f.ask(bad).await).kind, FailureKind::Data);
        // The one behind it gets its own reply.
        let behind = f.ask(b"d").await;
        assert_eq!(payloads(&behind), [b"d!"], "{mode:?} {framing:?}");
        assert_eq!(f.seen.restarts.lock().len(), 0, "{mode:?} {framing:?}");
        f.stop().await;
    }
}

/// Frames that arrive while a subshell waits for an answer were gone with the subshell.
#[tokio::test]
async fn a_subshell_that_asks_for_state_loses_no_message() {
    for (kind, code) in [
        (
            Kind::BashPlain,
            "m=$(cat); state get k >/dev/null; echo \"$m $REPLY\"",
        ),
        (Kind::BashPlain, "m=$(cat); echo \"$m $(state get k)\""),
        (Kind::Bash, "process() { emit \"$MSG $(state get k)\"; }"),
        // Both ways of keeping a frame, mixed.
        (
            Kind::Bash,
            "process() { local v; if ((MSG % 2)); then state get k; v=$REPLY; else v=$(state get k); fi; emit \"$MSG $v\"; }",
        ),
    ] {
        let (directory, mut spec) = function(code, "f.sh");
        spec.options.timeout_ms = 5_000;
        // Small frames, so that many are under way.
        spec.options.batch = Some(4);
        let mut f = start_spec(kind, directory, spec).await.expect("starts");
        f.seen.state.lock().insert("k".into(), "é\n1".into());
        let batch = (0..200)
            .map(|number: u64| Delivery {
                ticket: number,
                message: Arc::new(text(number.to_string().as_bytes())),
            })
            .collect();
        f.host.deliver(batch).await.expect("delivered");
        let mut all = Vec::new();
        while all.len() < 200 {
            let some = tokio::time::timeout(Duration::from_secs(20), f.host.outcomes()).await;
            all.extend(some.expect("in time").expect("not broken"));
        }
        for (number, outcome) in all.iter().enumerate() {
            // In order too.
            assert_eq!(outcome.ticket, number as u64, "{code}");
            let expected = format!("{number} é\n1");
            assert_eq!(payloads(outcome), [expected.as_bytes()], "{code}");
        }
        assert_eq!(f.seen.restarts.lock().len(), 0, "{code}");
        f.stop().await;
    }
}

/// The end of code that closes its socket and lives on was waited for without end.
#[tokio::test]
async fn code_that_closes_its_end_before_it_is_ready_is_not_waited_for() {
    let (directory, mut spec) = function("exec 0<&- 1>&-; sleep 60", "f.sh");
    spec.options.mode = Some(Mode::Stream);
    spec.options.framing = Framing::Host;
    let started = start_spec(Kind::Spawn, directory, spec);
    let started = tokio::time::timeout(Duration::from_secs(10), started).await;
    let Err(Broken::Start { reason, .. }) = started.expect("given up in time") else {
        panic!("it is not ready")
    };
    assert_eq!(reason, "the code closed its end before it was ready");
}

/// It was: until the code was ready, or its time to start was over.
#[tokio::test]
async fn a_stop_does_not_wait_for_code_that_does_not_start_again() {
    let marks = tempfile::tempdir().expect("temporary");
    let mark = |name: &str| marks.path().join(name);
    let (first, again) = (mark("first"), mark("again"));
    let code = format!(
        "if [[ -e {0} ]]; then\n: > {1}\nsleep 600\nfi\n: > {0}\nprocess() {{ kill -9 $$; }}",
        first.display(),
        again.display()
    );
    let (directory, mut spec) = function(&code, "f.sh");
    spec.options.start_timeout_ms = 600_000;
    let mut f = start_spec(Kind::Bash, directory, spec)
        .await
        .expect("starts");
    let died = f.ask(b"x").await;
    assert!(failure(&died).reason.contains("signal"), "{died:?}");
    until("it starts again", || again.exists()).await;
    let stopped = tokio::time::timeout(Duration::from_secs(60), f.stop()).await;
    stopped.expect("it waits for the code");
}

/// Two of eight messages end the program of a batch: they alone fail. What says that it may work later fails as a whole.
#[tokio::test]
async fn a_batch_fails_by_the_messages_that_end_its_program() {
    let line = "while read -r m; do [[ $m != bad ]] || { echo no luck >&2; exit CODE; }; echo \"$m!\"; done";
    let json = "import json, sys\nfor line in sys.stdin:\n    m = json.loads(line)\n    \
                if m['payload'] == 'bad':\n        print('no luck', file=sys.stderr)\n        sys.exit(CODE)\n    \
                print(json.dumps({'id': m['id'], 'out': m['payload'] + '!'}), flush=True)\n";
    for (shebang, code, framing) in [
        ("#!/usr/bin/env bash", line, Framing::Line),
        ("#!/usr/bin/env python3", json, Framing::Json),
    ] {
        for (status, kind) in [
            ("3", FailureKind::User),
            ("65", FailureKind::Data),
            ("75", FailureKind::Temporary),
        ] {
            let code = format!("{shebang}\n{}", code.replace("CODE", status));
            let (directory, mut spec) = function(&code, "f.sh");
            spec.options.mode = Some(Mode::Batch);
            spec.options.framing = framing;
            let mut f = start_spec(Kind::Spawn, directory, spec)
                .await
                .expect("starts");
            let payloads_in = ["a", "b", "bad", "c", "d", "bad", "e", "f"];
            let deliveries = (0..).zip(payloads_in).map(|(ticket, payload)| Delivery {
                ticket,
                message: Arc::new(text(payload.as_bytes())),
            });
            f.host.deliver(deliveries.collect()).await.expect("taken");
            for (outcome, payload) in f.outcomes(8).await.iter().zip(payloads_in) {
                if payload == "bad" || kind == FailureKind::Temporary && outcome.outputs.is_empty()
                {
                    let failed = failure(outcome);
                    assert_eq!(failed.kind, kind, "{framing:?} {status}: {failed:?}");
                    assert!(failed.stderr_tail.contains("no luck"), "{failed:?}");
                } else {
                    let wanted = format!("{payload}!");
                    assert_eq!(
                        payloads(outcome),
                        [wanted.as_bytes()],
                        "{framing:?} {status}"
                    );
                }
            }
            f.stop().await;
        }
    }
}

/// A tool that sums up at its end does so.
#[tokio::test]
async fn a_tool_prints_at_its_end_and_is_waited_for() {
    let ended = tempfile::tempdir().expect("temporary");
    let file = ended.path().join("sum");
    let code = format!(
        "#!/bin/bash\nwhile read -r m; do echo \"$m!\"; done\necho sum\necho sum\nsleep 0.3\necho done >'{}'",
        file.display()
    );
    let (directory, mut spec) = function(&code, "f.sh");
    spec.options.mode = Some(Mode::Stream);
    spec.options.framing = Framing::Line;
    let mut f = start_spec(Kind::Spawn, directory, spec)
        .await
        .expect("starts");
    assert_eq!(payloads(&f.ask(b"a").await), [b"a!"]);
    f.stop().await;
    assert!(file.exists());
}

/// What the program needs is away: it was started 999 times for 500 messages, each for as long as it may take,
/// before any of them was told to have failed.
#[tokio::test]
async fn a_batch_whose_program_fails_by_itself_is_not_run_for_each_message() {
    const MESSAGES: usize = 200;
    for (code, timeout_ms, kind) in [
        ("echo . >&2; sleep 60", 300, FailureKind::Timeout),
        ("echo . >&2; exit 1", 0, FailureKind::User),
    ] {
        let (directory, mut spec) = function(&format!("#!/bin/bash\n{code}"), "f.sh");
        spec.options.mode = Some(Mode::Batch);
        spec.options.timeout_ms = timeout_ms;
        let mut f = start_spec(Kind::Spawn, directory, spec)
            .await
            .expect("starts");
        let deliveries = (0..MESSAGES as u64).map(|ticket| Delivery {
            ticket,
            message: Arc::new(text(b"m")),
        });
        f.host.deliver(deliveries.collect()).await.expect("taken");
        for (ticket, outcome) in (0..).zip(f.outcomes(MESSAGES).await) {
            assert_eq!((outcome.ticket, failure(&outcome).kind), (ticket, kind));
        }
        let runs = f.seen.logs.lock().len();
        // It may be taken up as two or three batches.
        assert!((2..=60).contains(&runs), "{runs} runs");
        f.stop().await;
    }
}

/// `docs/bash-flaws.md` names a test for each flaw, and the tests are there.
#[test]
fn every_flaw_has_its_test() {
    let table = include_str!("../../../../../docs/bash-flaws.md");
    let sources = [
        include_str!("cases.rs"),
        include_str!("flaws.rs"),
        include_str!("../../../tests/it/flaws.rs"),
        include_str!("../../../../geminga/tests/it/run.rs"),
    ];
    for flaw in 1..=24 {
        let row = table
            .lines()
            .find(|line| line.starts_with(&format!("| {flaw} |")))
            .unwrap_or_else(|| panic!("flaw {flaw} has no row"));
        let test = row.split('`').nth_back(1).expect("a test in backticks");
        assert!(
            test.contains("flaw") && test.contains(&format!("{flaw:02}")),
            "flaw {flaw}: `{test}` does not say so"
        );
        let definition = format!("fn {test}(");
        assert!(
            sources.iter().any(|source| source.contains(&definition)),
            "flaw {flaw}: there is no test `{test}`"
        );
    }
}

/// Scale to zero: without a message the process ends, and the next message starts another.
#[tokio::test]
async fn an_idle_host_sleeps_and_its_next_message_wakes_it() {
    let (directory, mut spec) = function(
        "import os\ndef process(input): return '%s %d' % (input, os.getpid())\n",
        "f.py",
    );
    spec.code.class_name = None;
    let tasks = Tasks::new();
    let processes = Processes::start(Some(directory.path())).expect("guard");
    let host = crate::runtime::sleeper::start(
        Arc::new(Python::new(processes, tasks.clone())),
        Duration::from_millis(50),
        spec.into(),
        Arc::new(Seen::default()),
        &tasks,
    )
    .await
    .expect("starts");
    let mut f = Started {
        host,
        seen: Arc::default(),
        tasks,
        _directory: directory,
        next: 0,
    };
    let mut pids = Vec::new();
    for payload in [&b"a"[..], b"b"] {
        let outcome = f.ask(payload).await;
        let text = String::from_utf8_lossy(payloads(&outcome)[0]).into_owned();
        let (word, pid) = text.split_once(' ').expect("two words");
        assert_eq!(word.as_bytes(), payload);
        let process = format!("/proc/{pid}");
        pids.push(pid.to_owned());
        until("asleep", || !std::path::Path::new(&process).exists()).await;
    }
    assert_ne!(pids[0], pids[1]);
    // Many at once, the first of which wakes it: none is lost, and their order stays.
    for number in 0..50 {
        f.send(text(format!("m{number}").as_bytes())).await;
    }
    for (number, outcome) in f.outcomes(50).await.iter().enumerate() {
        let text = String::from_utf8_lossy(payloads(outcome)[0]).into_owned();
        assert!(text.starts_with(&format!("m{number} ")), "{text}");
    }
    f.stop().await;
}

#[tokio::test]
async fn emit_reads_its_options_however_many_words_they_are() {
    // From two words on, over ten, where the count has two digits.
    let code = r#"
process() {
  local words=()
  while ((${#words[@]} < MSG)); do words+=(-p a=b); done
  emit "${words[@]}" text
  emit "${words[@]}" -- text
}"#;
    let (directory, spec) = function(code, "f.sh");
    let mut f = start_spec(Kind::Bash, directory, spec)
        .await
        .expect("starts");
    for words in 0..24 {
        let outcome = f.ask(words.to_string().as_bytes()).await;
        assert_eq!(payloads(&outcome), [b"text", b"text"], "{words}");
    }
    f.stop().await;
}

/// A script speaks before its first message and after its last.
#[tokio::test]
async fn a_script_is_heard_at_its_start_and_at_its_end() {
    let f = shell(
        Kind::Bash,
        r#"process() { emit "$MSG"; }
says() {
  state get before || REPLY=none
  state put "$1" "$REPLY"
  metric "$1" 1
  log INFO "it $1"
  emit "$1"
  emit -t elsewhere -k key -- "$1"
}
trap 'says ends' EXIT
says begins
"#,
    )
    .await;
    let seen = f.seen.clone();
    let value = |key: &str| seen.state.lock().get(key).cloned();
    assert_eq!(value("begins"), Some(Bytes::from_static(b"none")));
    seen.state.lock().insert("before".to_owned(), "now".into());
    f.stop().await;
    assert_eq!(value("ends"), Some(Bytes::from_static(b"now")));
    let metrics: Vec<String> = seen
        .metrics
        .lock()
        .iter()
        .map(|(name, _)| name.clone())
        .collect();
    assert_eq!(metrics, ["begins", "ends"]);
    let said = |output: &Output| {
        let Output {
            topic,
            key,
            payload,
            ..
        } = output;
        (topic.clone(), key.clone(), payload.clone())
    };
    let published: Vec<_> = seen.published.lock().iter().map(said).collect();
    let (elsewhere, key) = (Some("elsewhere".to_owned()), Some("key".to_owned()));
    let both = |text: &'static str| {
        let text = Bytes::from_static(text.as_bytes());
        [
            (None, None, text.clone()),
            (elsewhere.clone(), key.clone(), text),
        ]
    };
    assert_eq!(published, [both("begins"), both("ends")].concat());
}
