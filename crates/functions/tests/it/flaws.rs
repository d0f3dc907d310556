//! Each flaw of the first Bash runtime that is one of delivery or operation, by its number in the
//! list: the test fails when the flaw comes back. Those of a single process are in the runtime's
//! own suite (`src/runtime/contract/flaws.rs`).

use std::time::Duration;

use geminga_client::ProducerAccessMode;
use serde_json::json;

use crate::stage::{Stage, nothing_more, numbers, receive, sorted, texts};

#[tokio::test]
async fn flaws_01_02_05_what_was_not_done_when_the_worker_went_is_done_by_the_next() {
    let mut stage = Stage::new().await;
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let mut consumer = stage.consumer(&output).await;
    let gate = stage.directory.path().join("gate");
    let code = format!(
        "process() {{ until [[ -e {} ]]; do sleep 0.02; done; emit \"$MSG\"; }}",
        gate.display()
    );
    stage
        .function(
            "f",
            json!({"sh": code, "inputs": [&input], "output": &output}),
        )
        .await;
    stage.send(&input, numbers(0..200)).await;
    stage
        .until("received", |w| w.progress()[0].received == 200)
        .await;
    // No grace: as near to a crash as a process can do to itself.
    stage.worker.shutdown(Duration::ZERO).await;
    nothing_more(&mut consumer).await;
    std::fs::write(gate, "").expect("opened");
    stage.another_worker().await;
    let got = sorted(texts(&receive(&mut consumer, 200).await));
    assert_eq!(got, numbers(0..200));
    stage.end().await;
}

#[tokio::test]
async fn flaw_03_a_failed_script_is_tried_again() {
    let stage = Stage::new().await;
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let mut consumer = stage.consumer(&output).await;
    let marks = stage.directory.path().display().to_string();
    let code = format!(
        "read -r m; [[ -e {marks}/seen-$m ]] || {{ touch {marks}/seen-$m; exit 1; }}; echo \"$m\""
    );
    stage
        .function(
            "f",
            json!({"sh": code, "inputs": [&input], "output": &output, "retryBackoffMs": 10}),
        )
        .await;
    stage.send(&input, numbers(0..5)).await;
    assert_eq!(
        sorted(texts(&receive(&mut consumer, 5).await)),
        numbers(0..5)
    );
    assert_eq!(stage.worker.progress()[0].retried, 5);
    stage.end().await;
}

#[tokio::test]
async fn flaw_04_more_messages_than_fit_wait_and_none_is_dropped() {
    let stage = Stage::new().await;
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let mut consumer = stage.consumer(&output).await;
    stage
        .function(
            "f",
            json!({"sh": "cat", "inputs": [&input], "output": &output,
                "customRuntimeOptions": r#"{"mode":"spawn","window":2,"concurrency":2}"#}),
        )
        .await;
    stage.send(&input, numbers(0..300)).await;
    assert_eq!(texts(&receive(&mut consumer, 300).await), numbers(0..300));
    nothing_more(&mut consumer).await;
    stage.end().await;
}

#[tokio::test]
async fn flaw_06_an_output_that_can_not_be_sent_is_not_forgotten() {
    let stage = Stage::new().await;
    let (input, letters) = (stage.topic("in"), stage.topic("dead"));
    let mut dead = stage.consumer(&letters).await;
    let code = "process() { emit -t 'persistent://no such tenant/x/y' \"$MSG\"; }";
    stage
        .function(
            "f",
            json!({"sh": code, "inputs": [&input], "maxMessageRetries": 1, "deadLetterTopic": &letters,
                "retryBackoffMs": 10}),
        )
        .await;
    stage.send(&input, ["x"]).await;
    let letter = receive(&mut dead, 1).await.remove(0);
    assert!(
        letter
            .property("geminga.reason")
            .is_some_and(|r| r.contains("no such tenant")),
        "{letter:?}"
    );
    stage.end().await;
}

#[tokio::test]
async fn flaw_12_no_output_publishes_nothing() {
    let stage = Stage::new().await;
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let mut consumer = stage.consumer(&output).await;
    let code = "read -r m; [[ $m == say ]] && echo said; exit 0";
    stage
        .function(
            "f",
            json!({"sh": code, "inputs": [&input], "output": &output}),
        )
        .await;
    stage.send(&input, ["quiet", "say", "quiet"]).await;
    stage.drained().await;
    assert_eq!(texts(&receive(&mut consumer, 1).await), ["said"]);
    nothing_more(&mut consumer).await;
    stage.end().await;
}

#[tokio::test]
async fn flaw_13_a_script_that_hangs_holds_nobody_for_ever() {
    let stage = Stage::new().await;
    let (input, output, letters) = (stage.topic("in"), stage.topic("out"), stage.topic("dead"));
    let mut consumer = stage.consumer(&output).await;
    let mut dead = stage.consumer(&letters).await;
    stage
        .function(
            "f",
            json!({"sh": "process() { [[ $MSG != hang ]] || sleep 600; emit \"$MSG\"; }", "inputs": [&input],
                "output": &output, "timeoutMs": 200, "maxMessageRetries": 0, "deadLetterTopic": &letters}),
        )
        .await;
    stage.send(&input, ["a", "hang", "b"]).await;
    assert_eq!(texts(&receive(&mut consumer, 2).await), ["a", "b"]);
    assert_eq!(
        receive(&mut dead, 1).await[0].property("geminga.kind"),
        Some("timeout")
    );
    stage.end().await;
}

#[tokio::test]
async fn flaws_18_19_instances_scale_out_by_configuration() {
    let stage = Stage::new().await;
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let mut consumer = stage.consumer(&output).await;
    let id = stage
        .function(
            "f",
            json!({"sh": "process() { sleep 0.01; emit \"$GMG_INSTANCE\"; }", "inputs": [&input],
                "output": &output, "parallelism": 2, "customRuntimeOptions": r#"{"window":4}"#}),
        )
        .await;
    stage.send(&input, numbers(0..100)).await;
    let got = texts(&receive(&mut consumer, 100).await);
    assert!(
        got.contains(&"0".to_owned()) && got.contains(&"1".to_owned()),
        "{got:?}"
    );
    let status = stage.worker.status(&id).expect("status");
    assert_eq!((status.num_instances, status.num_running), (2, 2));
    stage.end().await;
}

#[tokio::test]
async fn flaws_20_21_what_breaks_is_said_in_status_and_others_go_on() {
    let stage = Stage::new().await;
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let mut consumer = stage.consumer(&output).await;
    let bad = stage
        .function(
            "bad",
            json!({"py": "import no_such_module", "inputs": [&input]}),
        )
        .await;
    stage
        .function(
            "good",
            json!({"sh": "process() { emit \"$MSG\"; }", "inputs": [&input], "output": &output}),
        )
        .await;
    stage.send(&input, ["x"]).await;
    assert_eq!(texts(&receive(&mut consumer, 1).await), ["x"]);
    stage
        .until("degraded", |w| {
            let status = w.status(&bad).expect("status");
            let data = &status.instances[0].status;
            data.error
                .as_ref()
                .is_some_and(|e| e.contains("no_such_module"))
                && data.num_restarts > 0
        })
        .await;
    assert_eq!(stage.worker.status(&bad).expect("status").num_running, 0);
    stage.end().await;
}

/// What breaks at each start is started with growing pauses, which status tells with the reason, until it runs.
#[tokio::test]
async fn a_crash_loop_backs_off_and_says_why() {
    let stage = Stage::new().await;
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let mut consumer = stage.consumer(&output).await;
    let fields = json!({"sh": "process() { if; }", "inputs": [&input], "output": &output});
    let id = stage.function("f", fields).await;
    stage.send(&input, ["x"]).await;
    let one = |worker: &geminga_functions::Worker| {
        let mut status = worker.status(&id).expect("status");
        (status.num_running, status.instances.remove(0).status)
    };
    stage
        .until("five starts", |w| one(w).1.num_restarts >= 5)
        .await;
    let (running, status) = one(&stage.worker);
    assert_eq!((running, status.running), (0, false));
    assert_eq!(status.state, "degraded");
    let why = status.error.expect("a reason");
    assert!(why.contains("syntax error near"), "{why}");
    let known = &status.latest_system_exceptions;
    assert!(known.iter().all(|e| e.exception_string == why), "{known:?}");
    let times: Vec<u64> = known.iter().map(|e| e.timestamp_ms).collect();
    let pauses = times.windows(2).map(|pair| pair[1] - pair[0]);
    // Each is twice the one before, with up to a quarter taken off; a start takes its own time besides.
    for (pause, whole) in pauses.zip([200, 400, 800, 1600]) {
        assert!(pause >= whole * 3 / 4, "{times:?}");
    }
    stage.file("f.sh", "process() { emit \"$MSG\"; }");
    assert_eq!(texts(&receive(&mut consumer, 1).await), ["x"]);
    let (running, status) = one(&stage.worker);
    assert_eq!((running, status.error), (1, None));
    assert_eq!(status.state, "running");
    stage.end().await;
}

#[tokio::test]
async fn flaw_24_new_code_is_taken_up_without_losing_a_message() {
    let stage = Stage::new().await;
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let mut consumer = stage.consumer(&output).await;
    let id = stage
        .function("f", json!({"sh": "process() { emit \"old $MSG\"; }", "inputs": [&input], "output": &output}))
        .await;
    stage.send(&input, numbers(0..5)).await;
    assert_eq!(receive(&mut consumer, 5).await.len(), 5);
    let code = "process() { emit \"new $MSG\"; }";
    let upload = geminga_functions::Upload::new("f.sh", code);
    let unchanged = geminga_model::FunctionConfig::default().into();
    stage
        .worker
        .update(&id, unchanged, Some(upload))
        .await
        .expect("updated");
    stage.send(&input, ["5"]).await;
    assert_eq!(texts(&receive(&mut consumer, 1).await), ["new 5"]);
    stage.end().await;
}

/// A process that ended with nothing in hand was started again and again, and status told no reason.
#[tokio::test]
async fn a_process_that_ends_before_its_first_message_says_why() {
    let stage = Stage::new().await;
    let mark = stage.directory.path().join("mark").display().to_string();
    let code = format!(
        "#!/bin/bash\n[[ ! -e {mark} ]] || exec cat\n: > {mark}\necho 'no settings file' >&2\nexit 3\n"
    );
    let code = stage.file("ends", &code);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&code, mode).expect("executable");
    let id = stage
        .function(
            "f",
            json!({"exec": code, "inputs": [stage.topic("in")],
                "customRuntimeOptions": r#"{"mode":"stream"}"#}),
        )
        .await;
    stage
        .until("the reason is told", |worker| {
            let status = worker.status(&id).expect("known");
            let told = &status.instances[0].status.latest_system_exceptions;
            let mut told = told.iter().map(|told| &told.exception_string);
            told.any(|why| why.contains("status 3") && why.contains("no settings file"))
        })
        .await;
    stage.end().await;
}

/// A log topic that could not be opened when the instance began was given up.
#[tokio::test]
async fn a_log_topic_that_comes_later_gets_the_lines_that_waited() {
    let stage = Stage::new().await;
    let (input, output, logs) = (stage.topic("in"), stage.topic("out"), stage.topic("logs"));
    let (mut lines, mut outputs) = (stage.consumer(&logs).await, stage.consumer(&output).await);
    let holder = stage.client.producer(&logs);
    let holder = holder.access_mode(ProducerAccessMode::Exclusive);
    let holder = holder.build().await.expect("it is free");
    let code = "process() { log INFO \"it was $MSG\"; emit \"$MSG\"; }";
    let fields = json!({"sh": code, "inputs": [&input], "output": &output, "logTopic": &logs});
    stage.function("f", fields).await;
    stage.send(&input, ["x"]).await;
    receive(&mut outputs, 1).await;
    nothing_more(&mut lines).await;
    holder.close().await.expect("closed");
    assert_eq!(texts(&receive(&mut lines, 1).await), ["it was x"]);
    stage.end().await;
}
