//! Every power of the interface `geminga:function/context`, asked for by a component written by hand.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use geminga_functions::runtime::*;
use geminga_stdx::Tasks;
use geminga_wasm::Wasm;

#[path = "../../functions/src/runtime/contract/harness.rs"]
#[allow(dead_code, reason = "shared with suites that use more of it")]
mod harness;

use self::harness::*;

/// Strings at 0..: "seen" "last" "size" "token" "greeting" "other" "a" "1:2"; the output record is at 256.
const ALL_POWERS: &str = r#"(component
  (import "geminga:function/context@1.0.0" (instance $context
    (type $level' (enum "trace" "debug" "info" "warn" "error"))
    (export "level" (type $level (eq $level')))
    (type $output' (record
      (field "topic" (option string))
      (field "payload" (list u8))
      (field "key" (option string))
      (field "ordering-key" (option string))
      (field "properties" (list (tuple string string)))
      (field "event-time" (option u64))
      (field "delay-ms" (option u64))
      (field "sequence" (option u64))))
    (export "output" (type $output (eq $output')))
    (export "publish" (func (param "output" $output)))
    (export "user-config" (func (param "key" string) (result (option string))))
    (export "user-config-json" (func (result string)))
    (export "secret" (func (param "name" string) (result (option string))))
    (export "fact" (func (param "name" string) (result (option string))))
    (export "state-get" (func (param "key" string) (result (option (list u8)))))
    (export "state-put" (func (param "key" string) (param "value" (list u8))))
    (export "state-delete" (func (param "key" string)))
    (export "state-increment" (func (param "key" string) (param "by" s64)))
    (export "log" (func (param "level" $level) (param "text" string)))
    (export "metric" (func (param "name" string) (param "value" f64)))
    (export "acknowledge" (func (param "id" string)))))
  (core module $memory
    (memory (export "memory") 1)
    (global $free (export "free") (mut i32) (i32.const 4096))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (local $at i32)
      (local.set $at (i32.and (i32.add (global.get $free) (i32.const 7)) (i32.const -8)))
      (global.set $free (i32.add (local.get $at) (local.get 3)))
      (local.get $at)))
  (core instance $memory (instantiate $memory))
  (alias core export $memory "memory" (core memory $mem))
  (alias core export $memory "realloc" (core func $realloc))
  (core func $publish (canon lower (func $context "publish") (memory $mem)))
  (core func $user-config (canon lower (func $context "user-config") (memory $mem) (realloc $realloc)))
  (core func $secret (canon lower (func $context "secret") (memory $mem) (realloc $realloc)))
  (core func $state-get (canon lower (func $context "state-get") (memory $mem) (realloc $realloc)))
  (core func $state-put (canon lower (func $context "state-put") (memory $mem)))
  (core func $state-delete (canon lower (func $context "state-delete") (memory $mem)))
  (core func $state-increment (canon lower (func $context "state-increment") (memory $mem)))
  (core func $log (canon lower (func $context "log") (memory $mem)))
  (core func $metric (canon lower (func $context "metric") (memory $mem)))
  (core func $acknowledge (canon lower (func $context "acknowledge") (memory $mem)))
  (core module $code
    (import "memory" "memory" (memory 1))
    (import "memory" "free" (global $free (mut i32)))
    (import "context" "publish" (func $publish (param i32)))
    (import "context" "user-config" (func $user-config (param i32 i32 i32)))
    (import "context" "secret" (func $secret (param i32 i32 i32)))
    (import "context" "state-get" (func $state-get (param i32 i32 i32)))
    (import "context" "state-put" (func $state-put (param i32 i32 i32 i32)))
    (import "context" "state-delete" (func $state-delete (param i32 i32)))
    (import "context" "state-increment" (func $state-increment (param i32 i32 i64)))
    (import "context" "log" (func $log (param i32 i32 i32)))
    (import "context" "metric" (func $metric (param i32 i32 f64)))
    (import "context" "acknowledge" (func $acknowledge (param i32 i32)))
    (data (i32.const 0) "seenlastsizetokengreetingothera1:2gone9:9:9")
    (func (export "process") (param $at i32) (param $length i32) (result i32)
      ;; "x" floods: outputs, until the worker has enough of them.
      (if (i32.eq (i32.load8_u (local.get $at)) (i32.const 120))
        (then (loop $more (call $publish (i32.const 256)) (br $more))))
      ;; "y" floods with changes of state.
      (if (i32.eq (i32.load8_u (local.get $at)) (i32.const 121))
        (then (loop $more
          (call $state-put (i32.const 0) (i32.const 4) (i32.const 0) (i32.const 60000)) (br $more))))
      (call $state-increment (i32.const 0) (i32.const 4) (i64.const 1))
      (call $state-put (i32.const 4) (i32.const 4) (local.get $at) (local.get $length))
      (call $state-put (i32.const 34) (i32.const 4) (local.get $at) (local.get $length))
      (call $state-delete (i32.const 34) (i32.const 4))
      (call $metric (i32.const 8) (i32.const 4) (f64.convert_i32_u (local.get $length)))
      (call $acknowledge (i32.const 38) (i32.const 5))
      ;; The value that was just put, in the log.
      (call $state-get (i32.const 4) (i32.const 4) (i32.const 128))
      (if (i32.ne (i32.load (i32.const 128)) (i32.const 1)) (then (unreachable)))
      (call $log (i32.const 3) (i32.load (i32.const 132)) (i32.load (i32.const 136)))
      ;; What was deleted is not there.
      (call $state-get (i32.const 34) (i32.const 4) (i32.const 128))
      (if (i32.ne (i32.load8_u (i32.const 128)) (i32.const 0)) (then (unreachable)))
      ;; The greeting to another topic, with key, property and event time.
      (call $user-config (i32.const 17) (i32.const 8) (i32.const 128))
      (if (i32.ne (i32.load8_u (i32.const 128)) (i32.const 1)) (then (unreachable)))
      (i32.store (i32.const 256) (i32.const 1))
      (i32.store (i32.const 260) (i32.const 25)) (i32.store (i32.const 264) (i32.const 5))
      (i32.store (i32.const 268) (i32.load (i32.const 132)))
      (i32.store (i32.const 272) (i32.load (i32.const 136)))
      (i32.store (i32.const 276) (i32.const 1))
      (i32.store (i32.const 280) (i32.const 30)) (i32.store (i32.const 284) (i32.const 1))
      (i32.store (i32.const 288) (i32.const 0))
      (i32.store (i32.const 300) (i32.const 400)) (i32.store (i32.const 304) (i32.const 1))
      (i32.store (i32.const 312) (i32.const 1)) (i64.store (i32.const 320) (i64.const 77))
      (i32.store (i32.const 328) (i32.const 0)) (i32.store (i32.const 344) (i32.const 0))
      (i32.store (i32.const 400) (i32.const 30)) (i32.store (i32.const 404) (i32.const 1))
      (i32.store (i32.const 408) (i32.const 31)) (i32.store (i32.const 412) (i32.const 3))
      (call $publish (i32.const 256))
      ;; The secret is the answer.
      (call $secret (i32.const 12) (i32.const 5) (i32.const 128))
      (i32.store (i32.const 64) (i32.const 0))
      (i32.store (i32.const 68) (i32.load8_u (i32.const 128)))
      (i32.store (i32.const 72) (i32.load (i32.const 132)))
      (i32.store (i32.const 76) (i32.load (i32.const 136)))
      (if (i32.eq (i32.load8_u (local.get $at)) (i32.const 102))
        (then (i32.store (i32.const 64) (i32.const 1)) (i32.store (i32.const 68) (i32.const 2))))
      (i32.const 64))
    (func (export "done") (param i32) (global.set $free (i32.const 4096))))
  (core instance $code (instantiate $code
    (with "memory" (instance $memory))
    (with "context" (instance
      (export "publish" (func $publish))
      (export "user-config" (func $user-config))
      (export "secret" (func $secret))
      (export "state-get" (func $state-get))
      (export "state-put" (func $state-put))
      (export "state-delete" (func $state-delete))
      (export "state-increment" (func $state-increment))
      (export "log" (func $log))
      (export "metric" (func $metric))
      (export "acknowledge" (func $acknowledge))))))
  (type $failure (variant
    (case "failed" string) (case "bad-data" string) (case "temporary" string) (case "drop")))
  (import "failure" (type $failed (eq $failure)))
  (func (export "process")
    (param "payload" (list u8)) (result (result (option (list u8)) (error $failed)))
    (canon lift (core func $code "process") (memory $mem)
      (realloc $realloc) (post-return (core func $code "done")))))"#;

async fn start() -> Started {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("f.wat");
    std::fs::write(&path, ALL_POWERS).expect("written");
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
    spec.user_config
        .insert("greeting".into(), "hello\nthere".into());
    spec.secrets.insert("token".into(), "s3cret".into());
    spec.options.max_output_bytes = 1 << 20;
    let (tasks, seen) = (Tasks::new(), Arc::new(Seen::default()));
    let runtime = Wasm::new(tasks.clone());
    let host = runtime.start(Arc::new(spec), seen.clone()).await;
    Started {
        host: host.expect("starts"),
        seen,
        tasks,
        _directory: directory,
        next: 0,
    }
}

#[tokio::test]
async fn state_outputs_configuration_secrets_logs_and_metrics_reach_the_component() {
    let mut f = start().await;
    let outcome = f.ask(b"world").await;
    assert_eq!(outcome.verdict, Verdict::Done, "{:?}", f.seen.logs.lock());
    assert_eq!(payloads(&outcome), [&b"s3cret"[..], b"hello\nthere"]);
    let other = &outcome.outputs[1];
    assert_eq!(
        (
            other.topic.as_deref(),
            other.key.as_deref(),
            other.event_time
        ),
        (Some("other"), Some("a"), Some(77))
    );
    assert_eq!(other.properties, [("a".to_owned(), "1:2".to_owned())]);
    assert_eq!(f.seen.state.lock()["seen"], counted(None, 1));
    assert_eq!(&f.seen.state.lock()["last"][..], b"world");
    assert!(!f.seen.state.lock().contains_key("gone"));
    assert_eq!(*f.seen.metrics.lock(), [("size".to_owned(), 5.0)]);
    assert_eq!(*f.seen.acks.lock(), ["9:9:9"]);
    f.until("the log", |seen| {
        let logs = seen.logs.lock();
        logs.iter()
            .any(|line| line.level == Level::Warn && line.text == "world")
    })
    .await;
    f.stop().await;
}

#[tokio::test]
async fn state_of_a_failed_message_is_forgotten() {
    let mut f = start().await;
    f.ask(b"good").await;
    let bad = f.ask(b"fail").await;
    assert_eq!(failure(&bad).kind, FailureKind::Temporary);
    assert_eq!(failure(&bad).reason, "s3cret");
    assert!(bad.state.is_empty() && bad.outputs.is_empty());
    assert_eq!(&f.seen.state.lock()["last"][..], b"good");
    assert_eq!(f.seen.state.lock()["seen"], counted(None, 1));
    f.stop().await;
}

#[tokio::test]
async fn floods_of_outputs_and_of_state_end_at_the_limit() {
    let mut f = start().await;
    for flood in [b"x", b"y"] {
        let outcome = f.ask(flood).await;
        assert_eq!(failure(&outcome).kind, FailureKind::Output, "{outcome:?}");
        assert!(failure(&outcome).reason.contains("more than 1048576 bytes"));
        assert_eq!(f.ask(b"good").await.verdict, Verdict::Done);
    }
    assert_eq!(
        f.seen.state.lock()["seen"],
        counted(Some(&Bytes::from(1_i64.to_be_bytes().to_vec())), 1)
    );
    let stopped = tokio::time::timeout(Duration::from_secs(10), f.stop()).await;
    assert!(stopped.is_ok());
}
