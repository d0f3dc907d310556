//! One behaviour in every language. `crates/wasm/tests` runs this file for its own kinds.

use super::*;

/// The same as a component: it tells what is asked for by its length and first letter.
const COMPONENT: &str = r#"(component
  (core module $code
    (memory (export "memory") 1)
    (global $free (mut i32) (i32.const 1024))
    (data (i32.const 0) "status 3bad data")
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (local $at i32)
      (local.set $at (i32.and (i32.add (global.get $free) (i32.const 7)) (i32.const -8)))
      (global.set $free (i32.add (local.get $at) (local.get 3)))
      (block $fits
        (br_if $fits (i32.le_u (global.get $free) (i32.mul (memory.size) (i32.const 65536))))
        (drop (memory.grow (i32.const 16))))
      (local.get $at))
    (func $result (param $kind i32) (param $case i32) (param $at i32) (param $length i32) (result i32)
      (i32.store (i32.const 64) (local.get $kind))
      (i32.store (i32.const 68) (local.get $case))
      (i32.store (i32.const 72) (local.get $at))
      (i32.store (i32.const 76) (local.get $length))
      (i32.const 64))
    (func (export "process") (param $at i32) (param $length i32) (result i32)
      (local $what i32)
      (local.set $what
        (i32.add (i32.mul (local.get $length) (i32.const 256)) (i32.load8_u (local.get $at))))
      (if (i32.eq (local.get $what) (i32.const 1126)) ;; fail
        (then (return (call $result (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 8)))))
      (if (i32.eq (local.get $what) (i32.const 866)) ;; bad
        (then (return (call $result (i32.const 1) (i32.const 1) (i32.const 8) (i32.const 8)))))
      (if (i32.eq (local.get $what) (i32.const 1124)) ;; drop
        (then (return (call $result (i32.const 1) (i32.const 3) (i32.const 0) (i32.const 0)))))
      (if (i32.eq (local.get $what) (i32.const 1128)) ;; hang
        (then (loop $for_ever (br $for_ever))))
      (if (i32.eq (local.get $what) (i32.const 868)) ;; die
        (then (unreachable)))
      (if (i32.eq (local.get $what) (i32.const 1134)) ;; none
        (then (return (call $result (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)))))
      (if (i32.eq (local.get $what) (i32.const 1382)) ;; flood
        (then
          (drop (memory.grow (i32.const 200)))
          (return (call $result (i32.const 0) (i32.const 1) (i32.const 1024) (i32.const 10000000)))))
      (i32.store8 (i32.add (local.get $at) (local.get $length)) (i32.const 33))
      (call $result (i32.const 0) (i32.const 1)
        (local.get $at) (i32.add (local.get $length) (i32.const 1))))
    (func (export "done") (param i32) (global.set $free (i32.const 1024))))
  (core instance $code (instantiate $code))
  (type $failure (variant
    (case "failed" string) (case "bad-data" string) (case "temporary" string) (case "drop")))
  (import "failure" (type $failed (eq $failure)))
  (func (export "process")
    (param "payload" (list u8)) (result (result (option (list u8)) (error $failed)))
    (canon lift (core func $code "process") (memory (core memory $code "memory"))
      (realloc (core func $code "realloc")) (post-return (core func $code "done")))))
"#;

/// The same function, `fail`, `bad`, `drop`, `hang`, `die` and `none` being asked for by the payload;
/// anything else is echoed with `!`.
fn standard(kind: Kind) -> (tempfile::TempDir, HostSpec) {
    match kind {
        Kind::Bash => function(
            r#"process() {
  case $MSG in
    fail) echo "no luck" >&2; return 3 ;;
    bad) dlq "bad data" ;;
    drop) drop ;;
    hang) sleep 600 ;;
    die) kill -9 $$ ;;
    none) ;;
    flood) while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done ;;
    *) emit "$MSG!" ;;
  esac
}"#,
            "f.sh",
        ),
        Kind::BashPlain | Kind::Spawn => function(
            r#"#!/bin/bash
message=$(cat)
case $message in
  fail) echo "no luck" >&2; exit 3 ;;
  bad) exit 65 ;;
  drop) exit 99 ;;
  hang) sleep 600 ;;
  die) kill -9 $BASHPID ;;
  none) ;;
  flood) while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done ;;
  *) echo "$message!" ;;
esac
"#,
            "f.sh",
        ),
        Kind::Python => function(
            r#"
import os, sys, time
import geminga
def process(input):
    if input == "fail":
        print("no luck", file=sys.stderr)
        raise ValueError("status 3")
    if input == "bad": raise geminga.BadData("bad data")
    if input == "drop": raise geminga.Drop()
    if input == "hang": time.sleep(600)
    if input == "die": os.kill(os.getpid(), 9)
    if input == "none": return None
    if input == "flood": return "x" * 10000000
    return f"{input}!"
"#,
            "f.py",
        ),
        Kind::Json => {
            let (directory, spec) = function(
                r#"#!/usr/bin/python3
import json, os, sys, time
for line in sys.stdin:
    m = json.loads(line)
    p, r = m["payload"], {"id": m["id"]}
    if p == "fail":
        print("no luck", file=sys.stderr, flush=True)
        r["error"] = "status 3"
    elif p == "bad": r["dlq"] = "bad data"
    elif p == "drop": r["drop"] = True
    elif p == "hang": time.sleep(600)
    elif p == "die": os.kill(os.getpid(), 9)
    elif p == "flood": r["out"] = "x" * 10000000
    elif p != "none": r["out"] = p + "!"
    print(json.dumps(r), flush=True)
"#,
                "f.py",
            );
            (directory, spec)
        }
        Kind::Go => function(
            r#"package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/apache/pulsar/pulsar-function-go/pf"
)

func process(ctx context.Context, in []byte) ([]byte, error) {
	switch string(in) {
	case "fail":
		fmt.Fprintln(os.Stderr, "no luck")
		return nil, errors.New("status 3")
	case "bad":
		return nil, fmt.Errorf("seen: %w", pf.BadData(errors.New("bad data")))
	case "drop":
		return nil, pf.ErrDrop
	case "hang":
		time.Sleep(600 * time.Second)
	case "die":
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case "none":
		return nil, nil
	case "flood":
		return []byte(strings.Repeat("x", 10000000)), nil
	}
	return append(in, '!'), nil
}

func main() { pf.Start(process) }
"#,
            "f.go",
        ),
        Kind::Wasm => function(
            r#"package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/apache/pulsar/pulsar-function-go/pf"
)

func process(ctx context.Context, in []byte) ([]byte, error) {
	switch string(in) {
	case "fail":
		fmt.Fprintln(os.Stderr, "no luck")
		return nil, errors.New("status 3")
	case "bad":
		return nil, fmt.Errorf("seen: %w", pf.BadData(errors.New("bad data")))
	case "drop":
		return nil, pf.ErrDrop
	case "hang":
		for {
		}
	case "die":
		os.Exit(137)
	case "none":
		return nil, nil
	case "flood":
		return []byte(strings.Repeat("x", 10000000)), nil
	}
	return append(in, '!'), nil
}

func main() { pf.Start(process) }
"#,
            "f.go",
        ),
        Kind::Component => function(COMPONENT, "f.wat"),
        Kind::Java => function(
            r#"
public class F implements java.util.function.Function<String, String> {
    static class BadDataException extends RuntimeException {}
    static class DropException extends RuntimeException {}
    public String apply(String in) {
        try {
            switch (in) {
                case "fail": System.err.println("no luck"); throw new IllegalStateException("status 3");
                case "bad": throw new BadDataException();
                case "drop": throw new DropException();
                case "hang": Thread.sleep(600_000);
                case "die":
                    new ProcessBuilder("kill", "-9", "" + ProcessHandle.current().pid()).start().waitFor();
                    Thread.sleep(10_000);
                case "none": return null;
                case "flood": return "x".repeat(10_000_000);
                default: return in + "!";
            }
        } catch (java.io.IOException | InterruptedException error) {
            throw new RuntimeException(error);
        }
    }
}
"#,
            "F.java",
        ),
    }
}

async fn start(kind: Kind, change: impl Fn(&mut HostSpec)) -> Started {
    let (directory, mut spec) = standard(kind);
    change(&mut spec);
    start_spec(kind, directory, spec).await.expect("starts")
}

#[tokio::test]
async fn every_message_gets_one_outcome_and_its_own_output() {
    for kind in ALL {
        let mut f = start(kind, |_| {}).await;
        for number in 0..20 {
            f.send(text(format!("m{number}").as_bytes())).await;
        }
        for (number, outcome) in f.outcomes(20).await.iter().enumerate() {
            assert_eq!(outcome.verdict, Verdict::Done, "{kind:?}");
            assert_eq!(
                payloads(outcome),
                [format!("m{number}!").as_bytes()],
                "{kind:?}"
            );
        }
        f.stop().await;
    }
}

#[tokio::test]
async fn verdicts_mean_the_same_everywhere() {
    for kind in ALL {
        let mut f = start(kind, |_| {}).await;
        let none = f.ask(b"none").await;
        assert_eq!(
            (&none.verdict, none.outputs.len()),
            (&Verdict::Done, 0),
            "{kind:?}"
        );
        let failed = f.ask(b"fail").await;
        assert_eq!(failure(&failed).kind, FailureKind::User, "{kind:?}");
        assert!(
            failure(&failed).reason.contains("status 3"),
            "{kind:?} {failed:?}"
        );
        // The component has no standard error.
        assert!(
            kind == Kind::Component || failure(&failed).stderr_tail.contains("no luck"),
            "{kind:?} {failed:?}"
        );
        assert_eq!(
            failure(&f.ask(b"bad").await).kind,
            FailureKind::Data,
            "{kind:?}"
        );
        assert_eq!(f.ask(b"drop").await.verdict, Verdict::Drop, "{kind:?}");
        f.stop().await;
    }
}

#[tokio::test]
async fn a_hanging_message_is_killed_and_the_others_are_processed() {
    for kind in ALL {
        let mut f = start(kind, |spec| {
            spec.options.timeout_ms = 400;
            spec.options.kill_grace_ms = 50;
        })
        .await;
        for payload in [&b"a"[..], b"hang", b"b"] {
            f.send(text(payload)).await;
        }
        let all = f.outcomes(3).await;
        assert_eq!(payloads(&all[0]), [b"a!"], "{kind:?}");
        assert_eq!(failure(&all[1]).kind, FailureKind::Timeout, "{kind:?}");
        assert_eq!(payloads(&all[2]), [b"b!"], "{kind:?}");
        f.stop().await;
    }
}

#[tokio::test]
async fn a_death_is_blamed_on_the_message_in_hand() {
    for kind in ALL {
        let mut f = start(kind, |_| {}).await;
        for payload in [&b"a"[..], b"die", b"b", b"c"] {
            f.send(text(payload)).await;
        }
        let all = f.outcomes(4).await;
        assert_eq!(payloads(&all[0]), [b"a!"], "{kind:?}");
        // A plain script dies in its subshell, and the shell tells its status.
        let kinds = [FailureKind::Crash, FailureKind::User];
        assert!(kinds.contains(&failure(&all[1]).kind), "{kind:?} {all:?}");
        // A trap has no exit status.
        let status = (kind != Kind::Component).then_some(137);
        assert_eq!(failure(&all[1]).exit_code, status, "{kind:?}");
        assert_eq!(payloads(&all[2]), [b"b!"], "{kind:?}");
        assert_eq!(payloads(&all[3]), [b"c!"], "{kind:?}");
        f.stop().await;
    }
}

#[tokio::test]
async fn a_flood_of_output_is_cut_off() {
    for kind in ALL {
        let mut f = start(kind, |spec| {
            spec.options.max_output_bytes = 100_000;
            spec.options.kill_grace_ms = 50;
        })
        .await;
        for payload in [&b"a"[..], b"flood", b"b"] {
            f.send(text(payload)).await;
        }
        let all = f.outcomes(3).await;
        assert_eq!(
            failure(&all[1]).kind,
            FailureKind::Output,
            "{kind:?} {:?}",
            all[1].verdict
        );
        assert_eq!(
            (payloads(&all[0]), payloads(&all[2])),
            (vec![&b"a!"[..]], vec![&b"b!"[..]])
        );
        f.stop().await;
    }
}

#[tokio::test]
async fn flaw_15_any_bytes_survive_or_are_refused_by_name() {
    let every: Vec<u8> = (0..=255).collect();
    let without_nul: Vec<u8> = (1..=255).chain(1..=40).collect();
    for (kind, code, name) in only(
        [
            (Kind::Bash, "process() { emit \"$MSG\"; }", "f.sh"),
            (Kind::BashPlain, "cat", "f.sh"),
            (Kind::Spawn, "cat", "f.sh"),
            (Kind::Python, "def process(x): return x", "f.py"),
            (
                Kind::Go,
                "package main\nimport \"github.com/apache/pulsar/pulsar-function-go/pf\"\n\
             func main() { pf.Start(func(in []byte) ([]byte, error) { return in, nil }) }\n",
                "f.go",
            ),
            (
                Kind::Wasm,
                "package main\nimport \"github.com/apache/pulsar/pulsar-function-go/pf\"\n\
             func main() { pf.Start(func(in []byte) ([]byte, error) { return in, nil }) }\n",
                "f.go",
            ),
            (
                Kind::Java,
                "public class F implements java.util.function.Function<byte[], byte[]> {\n\
             public byte[] apply(byte[] in) { return in; } }\n",
                "F.java",
            ),
        ],
        |row| row.0,
    ) {
        let (directory, spec) = function(code, name);
        let mut f = start_spec(kind, directory, spec).await.expect("starts");
        for payload in [
            &without_nul[..],
            b"a\x1fb\\n\\",
            "größe\n\n".as_bytes(),
            b"\x01\x7f\x01",
            b" * ? $(x) ` ",
        ] {
            assert_eq!(payloads(&f.ask(payload).await), [payload], "{kind:?}");
        }
        let outcome = f.ask(&every).await;
        match kind {
            Kind::Bash | Kind::BashPlain => {
                assert_eq!(failure(&outcome).kind, FailureKind::Data);
                assert!(failure(&outcome).reason.contains("NUL"));
            }
            _ => assert_eq!(payloads(&outcome), [&every[..]], "{kind:?}"),
        }
        f.stop().await;
    }
}

#[tokio::test]
async fn metadata_config_state_logs_and_outputs_reach_the_code() {
    let bash = r#"
process() {
  msg_key; local key=$REPLY
  state incr seen; state get seen || exit 9
  state put last "$MSG"
  state get last
  log WARN "saw $REPLY"
  echo "plain line" >&2
  metric size ${#MSG}
  emit -t persistent://public/default/other -k "$key" -p a=1:2 -p "b=$(msg_prop colour)" -e 77 "$(conf greeting) $MSG"
  echo "main $(secret token)"
}"#;
    let python = r#"
from pulsar import Function
class F(Function):
    def process(self, input, context):
        context.incr_counter("seen", 1)
        assert context.get_counter("seen") >= 1
        context.put_state("last", input)
        context.get_logger().warning("saw %s", context.get_state("last").decode())
        print("plain line")
        context.record_metric("size", len(input))
        context.publish("persistent://public/default/other", context.get_user_config_value("greeting") + " " + input,
            properties={"a": "1:2", "b": context.get_message_properties()["colour"]},
            message_conf={"partition_key": context.get_message_key(), "event_timestamp": 77})
        return "main " + context.get_secret("token")
"#;
    let go = r#"package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"
	log "github.com/apache/pulsar/pulsar-function-go/logutil"
	"github.com/apache/pulsar/pulsar-function-go/pf"
)

func process(ctx context.Context, in []byte) ([]byte, error) {
	fc, ok := pf.FromContext(ctx)
	if !ok {
		return nil, fmt.Errorf("no context")
	}
	if err := fc.IncrCounter("seen", 1); err != nil {
		return nil, err
	}
	if n, err := fc.GetCounter("seen"); err != nil || n < 1 {
		return nil, fmt.Errorf("seen %d %v", n, err)
	}
	if err := fc.PutState("last", in); err != nil {
		return nil, err
	}
	last, err := fc.GetState("last")
	if err != nil {
		return nil, err
	}
	log.Warnf("saw %s", last)
	fmt.Println("plain line")
	fc.RecordMetric("size", float64(len(in)))
	message := fc.GetCurrentRecord()
	greeting := fc.GetUserConfValue("greeting").(string)
	if greeting != pf.GetUserConfValue("greeting") || message.ID().EntryID() != 2 {
		return nil, fmt.Errorf("%s %s", greeting, message.ID())
	}
	out := fc.NewOutputMessage("persistent://public/default/other")
	defer out.Close()
	if _, err := out.Send(ctx, &pulsar.ProducerMessage{
		Payload:    []byte(strings.Join([]string{greeting, string(in)}, " ")),
		Key:        message.Key(),
		EventTime:  time.UnixMilli(77),
		Properties: map[string]string{"a": "1:2", "b": message.Properties()["colour"]},
	}); err != nil {
		return nil, err
	}
	secret, err := fc.GetSecretValue("token")
	if err != nil {
		return nil, err
	}
	return []byte("main " + *secret), nil
}

func main() { pf.Start(process) }
"#;
    let java = r#"
import org.apache.pulsar.functions.api.*;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
public class F implements Function<String, String> {
    private String greeting;
    public void initialize(Context context) {
        greeting = (String) context.getUserConfigValueOrDefault("greeting", "none");
    }
    public String process(String in, Context context) throws Exception {
        context.incrCounter("seen", 1);
        if (context.getCounter("seen") < 1) throw new IllegalStateException("not seen");
        context.putState("last", ByteBuffer.wrap(in.getBytes(StandardCharsets.UTF_8)));
        context.getLogger().warn("saw {}", StandardCharsets.UTF_8.decode(context.getState("last")));
        System.out.println("plain line");
        context.recordMetric("size", in.length());
        Record<?> record = context.getCurrentRecord();
        context.newOutputMessage("persistent://public/default/other", null)
            .value(greeting + " " + in).key(record.getKey().get()).eventTime(77)
            .property("a", "1:2").property("b", record.getProperties().get("colour")).send();
        return "main " + context.getSecret("token");
    }
}
"#;
    for (kind, code, name) in only(
        [
            (Kind::Bash, bash, "f.sh"),
            (Kind::Python, python, "f.py"),
            (Kind::Go, go, "f.go"),
            (Kind::Wasm, go, "f.go"),
            (Kind::Java, java, "F.java"),
        ],
        |row| row.0,
    ) {
        let (directory, mut spec) = function(code, name);
        spec.user_config
            .insert("greeting".into(), "hello\nthere".into());
        spec.secrets.insert("token".into(), "s3cret".into());
        let mut f = start_spec(kind, directory, spec).await.expect("starts");
        let message = Message {
            key: Some("k:1".into()),
            properties: vec![("colour".into(), "red\\n:x".into())],
            ..text(b"world")
        };
        f.send(message).await;
        let outcome = f.outcomes(1).await.remove(0);
        assert_eq!(
            outcome.verdict,
            Verdict::Done,
            "{kind:?} {:?}",
            f.seen.logs.lock()
        );
        assert_eq!(
            payloads(&outcome),
            [&b"main s3cret"[..], b"hello\nthere world"],
            "{kind:?}"
        );
        let other = &outcome.outputs[1];
        assert_eq!(
            other.topic.as_deref(),
            Some("persistent://public/default/other")
        );
        assert_eq!(other.key.as_deref(), Some("k:1"));
        assert_eq!(other.event_time, Some(77));
        let wanted = [
            ("a".to_owned(), "1:2".to_owned()),
            ("b".to_owned(), "red\\n:x".to_owned()),
        ];
        let mut properties = other.properties.clone();
        properties.sort();
        assert_eq!(properties, wanted);
        assert_eq!(outcome.state.len(), 2, "{kind:?}");
        assert_eq!(f.seen.state.lock()["seen"], counted(None, 1));
        assert_eq!(&f.seen.state.lock()["last"][..], b"world");
        f.until("logs", |seen| {
            let logs = seen.logs.lock();
            let has = |level, text: &str| logs.iter().any(|l| l.level == level && l.text == text);
            has(Level::Warn, "saw world") && has(Level::Info, "plain line")
        })
        .await;
        assert_eq!(*f.seen.metrics.lock(), [("size".to_owned(), 5.0)]);
        f.stop().await;
    }
}

#[tokio::test]
async fn state_of_a_failed_message_is_forgotten() {
    let bash = "process() { state put k \"$MSG\"; [[ $MSG != bad ]]; }";
    let python = r#"
def process(input, context):
    context.put_state("k", input)
    if input == "bad": raise ValueError()
"#;
    let go = r#"package main

import (
	"context"
	"errors"

	"github.com/apache/pulsar/pulsar-function-go/pf"
)

func main() {
	pf.Start(func(ctx context.Context, in []byte) error {
		fc, _ := pf.FromContext(ctx)
		if err := fc.PutState("k", in); err != nil {
			return err
		}
		if string(in) == "bad" {
			return errors.New("no")
		}
		return nil
	})
}
"#;
    let java = r#"
import org.apache.pulsar.functions.api.*;
public class F implements Function<byte[], Void> {
    public Void process(byte[] in, Context context) {
        context.putState("k", java.nio.ByteBuffer.wrap(in));
        if (new String(in).equals("bad")) throw new IllegalStateException();
        return null;
    }
}
"#;
    for (kind, code, name) in only(
        [
            (Kind::Bash, bash, "f.sh"),
            (Kind::Python, python, "f.py"),
            (Kind::Go, go, "f.go"),
            (Kind::Wasm, go, "f.go"),
            (Kind::Java, java, "F.java"),
        ],
        |row| row.0,
    ) {
        let (directory, spec) = function(code, name);
        let mut f = start_spec(kind, directory, spec).await.expect("starts");
        f.ask(b"good").await;
        let bad = f.ask(b"bad").await;
        assert!(bad.state.is_empty() && matches!(bad.verdict, Verdict::Failed(_)));
        assert_eq!(&f.seen.state.lock()["k"][..], b"good", "{kind:?}");
        f.stop().await;
    }
}

#[tokio::test]
async fn code_that_can_not_start_says_why() {
    for (kind, code, name, wanted) in only(
        [
            (Kind::Bash, "process() {", "f.sh", "syntax error"),
            (Kind::BashPlain, "if then", "f.sh", "syntax error"),
            (Kind::Python, "def process(:", "f.py", "SyntaxError"),
            (
                Kind::Python,
                "import no_such_module",
                "f.py",
                "no_such_module",
            ),
            (Kind::Python, "x = 1", "f.py", "process"),
            (Kind::Spawn, "plain text", "f", "not executable"),
            (Kind::Go, "plain text", "f", "not executable"),
            (
                Kind::Go,
                "package main\nfunc main() { undefinedName() }\n",
                "f.go",
                "undefinedName",
            ),
            (
                Kind::Go,
                "package main\nimport \"github.com/apache/pulsar/pulsar-function-go/pf\"\n\
             func main() { pf.Start(func(a, b, c int) {}) }\n",
                "f.go",
                "it takes 3 arguments, 2 at most are possible",
            ),
            (
                Kind::Wasm,
                "package main\nimport \"github.com/apache/pulsar/pulsar-function-go/pf\"\n\
             func main() { pf.Start(func(a, b, c int) {}) }\n",
                "f.go",
                "it takes 3 arguments, 2 at most are possible",
            ),
            (Kind::Wasm, "(module", "f.wat", "expected"),
            (
                Kind::Wasm,
                "plain text",
                "f",
                "neither WebAssembly nor its text",
            ),
            (Kind::Wasm, "(module)", "f.wat", "exports no `_start`"),
            (
                Kind::Wasm,
                "(module (import \"env\" \"open\" (func)) (func (export \"_start\")))",
                "f.wat",
                "env::open",
            ),
            (Kind::Component, "(component)", "f.wat", "process"),
            (
                Kind::Java,
                "public class F { }\n",
                "F.java",
                "implements neither java.util.function.Function nor",
            ),
            (
                Kind::Java,
                "public class F implements java.util.function.Supplier<F> { public F get() { return this; } \
             public F() { throw new IllegalStateException(\"broken here\"); } }\n",
                "F.java",
                "neither",
            ),
            (
                Kind::Java,
                "public class F implements java.util.function.Function<String, String> {\n\
             static String set = System.getenv(\"NOT_SET\").trim();\n\
             public String apply(String in) { return set; } }\n",
                "F.java",
                "NullPointerException",
            ),
        ],
        |row| row.0,
    ) {
        let (directory, spec) = function(code, name);
        let Err(broken) = start_spec(kind, directory, spec).await else {
            panic!("{kind:?} started {code}")
        };
        let said = format!("{broken:?}");
        assert!(said.contains(wanted), "{kind:?} {code}: {said}");
        assert!(matches!(broken, Broken::Deployment { .. }), "{said}");
    }
    let all = [
        Kind::Bash,
        Kind::Python,
        Kind::Spawn,
        Kind::Go,
        Kind::Java,
        Kind::Wasm,
    ];
    for kind in only(all, |kind| *kind) {
        let (directory, mut spec) = function("", "f.sh");
        spec.code.path = directory.path().join("missing.sh");
        let broken = start_spec(kind, directory, spec)
            .await
            .err()
            .expect("does not start");
        assert!(
            broken.to_string().contains("does not exist"),
            "{kind:?} {broken}"
        );
    }
}

#[tokio::test]
async fn a_start_that_hangs_is_given_up() {
    for (kind, code, name) in only(
        [
            (Kind::Bash, "sleep 600\nprocess() { :; }", "f.sh"),
            (Kind::Python, "import time; time.sleep(600)", "f.py"),
            (
                Kind::Go,
                "package main\nimport \"time\"\nfunc main() { time.Sleep(time.Hour) }\n",
                "f.go",
            ),
            (
                Kind::Wasm,
                "package main\nimport \"time\"\nfunc main() { time.Sleep(time.Hour) }\n",
                "f.go",
            ),
            (
                Kind::Wasm,
                "(module (func $start (loop $for_ever (br $for_ever))) (start $start) (func (export \"_start\")))",
                "f.wat",
            ),
            (
                Kind::Java,
                "public class F implements java.util.function.Function<String, String> {\n\
             public F() throws Exception { Thread.sleep(600_000); }\n\
             public String apply(String in) { return in; } }\n",
                "F.java",
            ),
        ],
        |row| row.0,
    ) {
        let (directory, mut spec) = function(code, name);
        spec.options.start_timeout_ms = 300;
        spec.options.kill_grace_ms = 50;
        let broken = start_spec(kind, directory, spec)
            .await
            .err()
            .expect("does not start");
        assert!(
            broken.to_string().contains("not ready after 300 ms"),
            "{kind:?} {broken}"
        );
    }
}
