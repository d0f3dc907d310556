//! Guests that mean no good: each hurts its own message, is named, and leaves others alone. By text.

use std::sync::Arc;
use std::time::Duration;

use geminga_functions::runtime::*;
use geminga_stdx::Tasks;
use geminga_wasm::Wasm;

#[path = "../../functions/src/runtime/contract/harness.rs"]
#[allow(dead_code, reason = "shared with suites that use more of it")]
mod harness;

use self::harness::*;

struct Stage {
    runtime: Wasm,
    tasks: Tasks,
}

impl Stage {
    fn new() -> Self {
        let tasks = Tasks::new();
        Self {
            runtime: Wasm::new(tasks.clone()),
            tasks,
        }
    }

    async fn start(
        &self,
        text: &str,
        change: impl Fn(&mut HostSpec),
    ) -> Result<Started, (String, String)> {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("f.wat");
        std::fs::write(&path, text).expect("written");
        let mut spec = HostSpec {
            tenant: "public".into(),
            namespace: "default".into(),
            name: "f".into(),
            instances: 1,
            code: Code {
                path,
                class_name: None,
            },
            ..HostSpec::default()
        };
        spec.options.timeout_ms = 500;
        spec.options.kill_grace_ms = 50;
        change(&mut spec);
        let seen = Arc::new(Seen::default());
        match self.runtime.start(Arc::new(spec), seen.clone()).await {
            Ok(host) => Ok(Started {
                host,
                seen,
                tasks: self.tasks.child(),
                _directory: directory,
                next: 0,
            }),
            Err(Broken::Deployment { reason, .. }) => Err(("deployment".into(), reason)),
            Err(Broken::Start { reason, .. }) => Err(("start".into(), reason)),
            Err(Broken::Stopped) => Err(("stopped".into(), String::new())),
        }
    }
}

/// A component whose `process` is `body`; `$at` and `$length` are the payload.
fn component(memory: &str, functions: &str, body: &str) -> String {
    format!(
        r#"(component
  (core module $code
    (memory (export "memory") {memory})
    {functions}
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
    (func (export "process") (param $at i32) (param $length i32) (result i32)
      (if (i32.eq (i32.load8_u (local.get $at)) (i32.const 120)) (then {body}))
      (i32.store (i32.const 64) (i32.const 0))
      (i32.store (i32.const 68) (i32.const 1))
      (i32.store (i32.const 72) (local.get $at))
      (i32.store (i32.const 76) (local.get $length))
      (i32.const 64)))
  (core instance $code (instantiate $code))
  (type $failure (variant
    (case "failed" string) (case "bad-data" string) (case "temporary" string) (case "drop")))
  (import "failure" (type $failed (eq $failure)))
  (func (export "process")
    (param "payload" (list u8)) (result (result (option (list u8)) (error $failed)))
    (canon lift (core func $code "process") (memory (core memory $code "memory"))
      (realloc (core func $code "realloc")))))"#
    )
}

fn command(before: &str, start: &str) -> String {
    format!(
        r#"(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_prestat_get" (func $prestat (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "sock_accept" (func $accept (param i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $environ (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  {before}
  (func (export "_start") {start}))"#
    )
}

#[tokio::test]
async fn each_bomb_ends_its_own_message_and_names_its_limit() {
    let stage = Stage::new();
    for (what, functions, body, kind, named) in [
        (
            "a loop",
            "",
            "(loop $for_ever (br $for_ever))",
            FailureKind::Timeout,
            "not done after 500 ms",
        ),
        (
            "memory",
            "",
            "(loop $more (drop (memory.grow (i32.const 16))) (br $more))",
            FailureKind::Limit,
            "resources.ram",
        ),
        (
            "a table",
            "(table $t 1 funcref)",
            "(loop $more (drop (table.grow $t (ref.null func) (i32.const 100000))) (br $more))",
            FailureKind::Limit,
            "tables",
        ),
        (
            "a flood as its answer",
            "",
            "(drop (memory.grow (i32.const 119))) (i32.store (i32.const 64) (i32.const 0))
             (i32.store (i32.const 68) (i32.const 1)) (i32.store (i32.const 72) (i32.const 0))
             (i32.store (i32.const 76) (i32.const 7000000)) (return (i32.const 64))",
            FailureKind::Output,
            "bytes of output",
        ),
        (
            "recursion",
            "(func $deep (param i32) (result i32) (i32.add (call $deep (local.get 0)) (i32.const 1)))",
            "(drop (call $deep (i32.const 0)))",
            FailureKind::Limit,
            "nested too deep",
        ),
        (
            "a trap",
            "",
            "(unreachable)",
            FailureKind::Crash,
            "unreachable",
        ),
        (
            "an address outside",
            "",
            "(drop (i32.load (i32.const -8)))",
            FailureKind::Crash,
            "out of bounds",
        ),
        (
            "a division",
            "",
            "(drop (i32.div_u (i32.const 1) (i32.const 0)))",
            FailureKind::Crash,
            "divide by zero",
        ),
        (
            "a result outside",
            "",
            "(return (i32.const -4))",
            FailureKind::Crash,
            "it trapped",
        ),
    ] {
        let text = component("1", functions, body);
        let started = stage
            .start(&text, |spec| {
                spec.options.limits.memory_bytes = Some(8 << 20);
            })
            .await;
        let mut f = started.unwrap_or_else(|why| panic!("{what}: {why:?}"));
        for payload in [&b"a"[..], b"x", b"b"] {
            f.send(text_message(payload)).await;
        }
        let all = f.outcomes(3).await;
        assert_eq!(payloads(&all[0]), [b"a"], "{what}");
        assert_eq!(failure(&all[1]).kind, kind, "{what}: {:?}", all[1]);
        let reason = &failure(&all[1]).reason;
        assert!(reason.contains(named), "{what}: {reason}");
        assert_eq!(payloads(&all[2]), [b"b"], "{what}");
        f.host.stop(Duration::from_secs(2)).await;
    }
}

fn text_message(payload: &[u8]) -> Message {
    text(payload)
}

#[tokio::test]
async fn on_a_full_machine_who_grows_is_told_and_the_others_answer() {
    let tasks = Tasks::new();
    let full = || {
        Some(sandbox::Memory {
            all: 1 << 30,
            left: 50 << 20,
        })
    };
    let stage = Stage {
        runtime: Wasm::on(tasks.clone(), full),
        tasks,
    };
    // 25 MiB, a tenth of what is allowed to one.
    let text = component("1", "", "(drop (memory.grow (i32.const 400)))");
    let mut f = stage.start(&text, |_| {}).await.expect("starts");
    assert_eq!(payloads(&f.ask(b"a").await), [b"a"]);
    let failed = failure(&f.ask(b"x").await).clone();
    assert_eq!(failed.kind, FailureKind::Limit, "{}", failed.reason);
    let says = "this machine has 52428800 bytes of memory left";
    assert!(failed.reason.contains(says), "{}", failed.reason);
    assert_eq!(payloads(&f.ask(b"b").await), [b"b"]);
    f.host.stop(Duration::from_secs(2)).await;
}

#[tokio::test]
async fn memory_after_a_trap_is_fresh() {
    let stage = Stage::new();
    // `x` writes a mark and traps; every other message says whether the mark is there.
    let body = "(i32.store8 (i32.const 2048) (i32.const 7)) (unreachable)";
    let text = component("1", "", body).replace(
        "(i32.store (i32.const 76) (local.get $length))",
        "(i32.store (i32.const 76) (local.get $length))
         (i32.store8 (local.get $at) (i32.add (i32.const 48) (i32.load8_u (i32.const 2048))))",
    );
    let mut f = stage.start(&text, |_| {}).await.expect("starts");
    assert_eq!(payloads(&f.ask(b"a").await), [b"0"]);
    assert_eq!(failure(&f.ask(b"x").await).kind, FailureKind::Crash);
    assert_eq!(payloads(&f.ask(b"a").await), [b"0"]);
    f.until("the restart was told", |seen| {
        seen.restarts.lock().len() == 1
    })
    .await;
    f.host.stop(Duration::from_secs(2)).await;
}

#[tokio::test]
async fn two_that_hang_do_not_keep_a_third_waiting() {
    let stage = Stage::new();
    let text = component("1", "", "(loop $for_ever (br $for_ever))");
    let mut hanging = Vec::new();
    // More than there are threads.
    for _ in 0..8 {
        let started = stage
            .start(&text, |spec| spec.options.timeout_ms = 60_000)
            .await;
        let mut f = started.expect("starts");
        f.send(text_message(b"x")).await;
        hanging.push(f);
    }
    let mut f = stage
        .start(&text, |spec| spec.options.timeout_ms = 30_000)
        .await
        .expect("starts");
    for number in 0..50_u32 {
        assert_eq!(
            payloads(&f.ask(&number.to_le_bytes()).await),
            [number.to_le_bytes()]
        );
    }
    for mut f in hanging {
        f.host.stop(Duration::ZERO).await;
    }
    f.host.stop(Duration::from_secs(2)).await;
}

#[tokio::test]
async fn commands_that_do_not_start_say_why() {
    let stage = Stage::new();
    for (what, text, kind, named) in [
        (
            "memory that is larger than allowed",
            "(module (memory (export \"memory\") 30000) (func (export \"_start\")))".to_owned(),
            "deployment",
            "resources.ram",
        ),
        (
            "a loop in the start function",
            command("(func $s (loop $l (br $l))) (start $s)", ""),
            "start",
            "not ready after 300 ms",
        ),
        (
            "a trap in the start function",
            command("(func $s unreachable) (start $s)", ""),
            "deployment",
            "unreachable",
        ),
        (
            "a flood on standard output before it is ready",
            command(
                "",
                "(i32.store (i32.const 4) (i32.const 60000))
                 (loop $l (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))) (br $l))",
            ),
            "start",
            "not ready after 300 ms",
        ),
        (
            "garbage on the wire",
            command(
                "(data (i32.const 100) \"what is a frame?\")",
                "(i32.store (i32.const 0) (i32.const 100)) (i32.store (i32.const 4) (i32.const 16))
                 (drop (call $write (i32.const 3) (i32.const 0) (i32.const 1) (i32.const 8)))
                 (loop $l (br $l))",
            ),
            "deployment",
            "a frame without a head",
        ),
        (
            "a frame that never ends",
            command(
                "(data (i32.const 100) \"O 900000000\\0a\")",
                "(i32.store (i32.const 0) (i32.const 100)) (i32.store (i32.const 4) (i32.const 12))
                 (drop (call $write (i32.const 3) (i32.const 0) (i32.const 1) (i32.const 8)))
                 (loop $l (br $l))",
            ),
            "deployment",
            "more than 5242880 bytes",
        ),
        ("an end", command("", "(call $exit (i32.const 3))"), "start", "status 3"),
        (
            "a module that is no command",
            "(module (func (export \"process\")))".to_owned(),
            "deployment",
            "exports no `_start`",
        ),
        (
            "an import that nobody has",
            "(module (import \"env\" \"system\" (func)) (func (export \"_start\")))".to_owned(),
            "deployment",
            "env::system",
        ),
        (
            "an invalid module",
            "(module (func (export \"_start\") (i32.add)))".to_owned(),
            "deployment",
            "type mismatch",
        ),
        (
            "a component of another world",
            "(component (import \"host:evil/api\" (func)))".to_owned(),
            "deployment",
            "host:evil/api",
        ),
    ] {
        let started = stage
            .start(&text, |spec| {
                spec.options.start_timeout_ms = 300;
            })
            .await;
        let (got, reason) = started.err().unwrap_or_else(|| panic!("{what} started"));
        assert_eq!(got, kind, "{what}: {reason}");
        assert!(reason.contains(named), "{what}: {reason}");
    }
}

/// A command that asks for everything it must not have; each answer that is not an error is counted in its
/// exit status.
#[tokio::test]
async fn a_command_has_no_file_no_socket_and_no_memory_but_its_own() {
    let stage = Stage::new();
    let mut calls = String::new();
    for call in [
        "(call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0) (i64.const -1) (i64.const -1) (i32.const 0) (i32.const 8))",
        "(call $open (i32.const 4) (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0) (i64.const -1) (i64.const -1) (i32.const 0) (i32.const 8))",
        "(call $prestat (i32.const 3) (i32.const 0))",
        "(call $accept (i32.const 3) (i32.const 0) (i32.const 8))",
        "(call $read (i32.const 4) (i32.const 0) (i32.const 1) (i32.const 8))",
        "(call $write (i32.const 5) (i32.const 0) (i32.const 1) (i32.const 8))",
        "(call $write (i32.const 1) (i32.const -8) (i32.const 1) (i32.const 8))",
        "(call $write (i32.const 1) (i32.const 0) (i32.const -1) (i32.const 8))",
        "(call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const -2))",
        "(call $random (i32.const 65530) (i32.const 100))",
        "(call $random (i32.const 0) (i32.const -1))",
        "(call $environ (i32.const -4) (i32.const 0))",
        "(call $environ (i32.const 0) (i32.const 65530))",
        "(call $poll (i32.const -8) (i32.const 0) (i32.const 1) (i32.const 8))",
        "(call $poll (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 8))",
        "(call $poll (i32.const 0) (i32.const 0) (i32.const -1) (i32.const 8))",
    ] {
        calls.push_str(&format!(
            "(local.set $wrong (i32.add (local.get $wrong) (i32.eqz {call})))\n"
        ));
    }
    let start = format!(
        "(local $wrong i32) {calls} (call $exit (i32.add (i32.const 40) (local.get $wrong)))"
    );
    let (_, reason) = stage
        .start(&command("", &start), |_| {})
        .await
        .err()
        .expect("ends");
    assert!(reason.contains("status 40 before"), "{reason}");
}

#[tokio::test]
async fn an_idle_guest_stops_and_a_busy_one_is_dropped() {
    let stage = Stage::new();
    let text = component("1", "", "(loop $for_ever (br $for_ever))");
    let mut f = stage.start(&text, |_| {}).await.expect("starts");
    assert_eq!(payloads(&f.ask(b"a").await), [b"a"]);
    f.host.stop(Duration::from_secs(5)).await;
    let mut f = stage
        .start(&text, |spec| spec.options.timeout_ms = 60_000)
        .await
        .expect("starts");
    f.send(text_message(b"x")).await;
    let stopping = f.host.stop(Duration::from_millis(100));
    tokio::time::timeout(Duration::from_secs(10), stopping)
        .await
        .expect("it ends");
}
