//! What user code may make the worker keep for it.

use std::sync::atomic::Ordering;

use super::*;

/// Each question of 40 bytes cost the worker a value of up to 5 MiB, without an end.
#[tokio::test]
async fn answers_that_nobody_reads_do_not_fill_the_worker() {
    let (directory, mut spec) = function(
        "import time\n\
         def process(input, context):\n\
         \x20   if input == 'flood':\n\
         \x20       for number in range(400):\n\
         \x20           context._wire.request([('ask', 1000 + number), ('op', 'state.get'), ('key', 'k')])\n\
         \x20       time.sleep(60)\n\
         \x20   if input == 'late':\n\
         \x20       for number in range(400):\n\
         \x20           context._wire.request([('ask', 1000 + number), ('op', 'state.get'), ('key', 'k')])\n\
         \x20       time.sleep(0.2)\n\
         \x20   return '%d' % len(context.get_state('k'))\n",
        "f.py",
    );
    // Long enough for a hundred megabytes on a busy machine.
    spec.options.timeout_ms = 8_000;
    let mut f = start_spec(Kind::Python, directory, spec)
        .await
        .expect("starts");
    let value = vec![b'v'; 256 * 1024];
    f.seen.state.lock().insert("k".into(), value.into());
    let asked = |f: &Started| f.seen.asked.load(Ordering::Relaxed);
    assert_eq!(failure(&f.ask(b"flood").await).kind, FailureKind::Timeout);
    // 8 MiB of them, and what the socket holds.
    assert!((32..60).contains(&asked(&f)), "{}", asked(&f));
    // Who reads at last gets all of them.
    let before = asked(&f);
    let late = f.ask(b"late").await;
    assert_eq!(payloads(&late), [b"262144"], "{late:?}");
    assert_eq!(asked(&f) - before, 401);
    f.stop().await;
}

/// While nobody took the outcomes, up to 2,048 of 5 MiB each gathered.
#[tokio::test]
async fn outcomes_that_nobody_takes_do_not_fill_the_worker() {
    const MESSAGES: u64 = 200;
    let python = "def process(input, context):\n\
                  \x20   context.record_metric('begun', 1)\n\
                  \x20   return b'x' * (1 << 20)\n";
    let shell = "echo metric begun 1 >&4; head -c 1048576 /dev/zero";
    for (kind, code, name, rests) in [
        (Kind::Python, python, "f.py", false),
        (Kind::Python, python, "f.py", true),
        (Kind::Spawn, shell, "f.sh", false),
    ] {
        let (directory, mut spec) = function(code, name);
        spec.options.timeout_ms = 3_000;
        spec.options.window = Some(1024);
        spec.options.concurrency = (kind == Kind::Spawn).then_some(2);
        let idle = rests.then(|| Duration::from_secs(60));
        let mut f = start_resting(kind, directory, spec, idle)
            .await
            .expect("starts");
        let batch = (0..MESSAGES)
            .map(|ticket| Delivery {
                ticket,
                message: Arc::new(text(b"m")),
            })
            .collect();
        f.host.deliver(batch).await.expect("delivered");
        f.until("64 MiB", |seen| seen.metrics.lock().len() >= 64)
            .await;
        // Longer than a message may take: it is the worker that waits.
        tokio::time::sleep(Duration::from_millis(3_500)).await;
        let begun = f.seen.metrics.lock().len();
        let most = if rests { 150 } else { 80 };
        assert!((64..most).contains(&begun), "{kind:?} {begun}");
        let outcomes = f.outcomes(MESSAGES as usize).await;
        for (number, outcome) in outcomes.iter().enumerate() {
            assert_eq!(outcome.ticket, number as u64);
            assert_eq!(payloads(outcome)[0].len(), 1 << 20, "{:?}", outcome.verdict);
        }
        assert_eq!(f.seen.restarts.lock().len(), 0);
        f.stop().await;
    }
}

/// Each message may change 5 MiB of state; a host that works on many at once could make the worker keep all of it.
#[tokio::test]
async fn changes_of_messages_in_hand_are_bounded_together() {
    let (directory, mut spec) = function(
        "def process(input, context):\n\
         \x20   if input != 'all': return 'ok'\n\
         \x20   for number in range(40):\n\
         \x20       context._wire.request([('op', 'state.put'), ('key', 'k'), ('message', number)], b'v' * (4 << 20))\n\
         \x20   return 'kept'\n",
        "f.py",
    );
    spec.options.window = Some(100);
    spec.options.batch = Some(100);
    let mut f = start_spec(Kind::Python, directory, spec)
        .await
        .expect("starts");
    let batch = (0..40)
        .map(|ticket| Delivery {
            ticket,
            message: Arc::new(text(if ticket == 0 { b"all" } else { b"one" })),
        })
        .collect();
    f.host.deliver(batch).await.expect("delivered");
    f.until("ended", |seen| !seen.restarts.lock().is_empty())
        .await;
    let said = f.seen.restarts.lock()[0].clone();
    assert!(said.contains("by the messages in hand"), "{said}");
    f.host.stop(Duration::ZERO).await;
    f.tasks.cancel();
}

/// The worker waited for longer than a message may take, and then killed the process that had waited for it.
#[tokio::test]
async fn a_process_that_waited_for_the_worker_is_not_late() {
    let (directory, mut spec) = function(
        "def process(input, context):\n\
         \x20   context.record_metric('begun', 1)\n\
         \x20   return b'x' * (1 << 20)\n",
        "f.py",
    );
    spec.options.timeout_ms = 1_000;
    spec.options.window = Some(1024);
    let mut f = start_spec(Kind::Python, directory, spec)
        .await
        .expect("starts");
    for _ in 0..100 {
        f.send(text(b"m")).await;
    }
    f.until("64 MiB", |seen| seen.metrics.lock().len() >= 64)
        .await;
    for _ in 0..12 {
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        let taken = f.host.outcomes().await.expect("not broken");
        // As an instance does: both reach the host's task at once.
        for _ in &taken {
            f.send(text(b"m")).await;
        }
        for outcome in taken {
            assert_eq!(outcome.verdict, Verdict::Done);
        }
    }
    assert_eq!(*f.seen.restarts.lock(), [""; 0]);
    f.host.stop(Duration::ZERO).await;
    f.tasks.cancel();
}

/// A host names topics of its own in the greeting, without an end.
#[tokio::test]
async fn schemas_of_other_topics_are_not_kept() {
    let (directory, mut spec) = function(
        r#"#!/usr/bin/env python3
import socket, struct
wire = socket.socket(fileno=0)
def send(kind, block, rest=b""):
    body = struct.pack("<I", len(block)) + block + rest
    wire.sendall(b"%c %09d\n" % (kind, len(body)) + body)
for number, of in enumerate([b"in", b"other", b"another"]):
    send(ord("S"), b"id:%d\ntype:AVRO\nof:input.%s\n" % (number, of), b"{}")
send(ord("R"), b"protocol:1\nlanguage:test\n")
while wire.recv(4096): pass
"#,
        "f.py",
    );
    spec.inputs = vec!["in".to_owned()];
    spec.options.mode = Some(Mode::Stream);
    spec.options.framing = Framing::Host;
    let f = start_spec(Kind::Spawn, directory, spec)
        .await
        .expect("starts");
    let of: Vec<_> = f
        .seen
        .declared
        .lock()
        .iter()
        .map(|(of, _)| of.clone())
        .collect();
    assert_eq!(of, [SchemaOf::Input("in".to_owned())]);
    f.stop().await;
}
