//! What is done with components: made, listed, stopped, changed, removed; connectors; runs without a
//! broker.

use std::time::Duration;

use geminga_functions::{Answered, Asked, Kind, Upload, WorkerError, run_pipe};
use geminga_model::FunctionConfig;
use serde_json::json;

use crate::stage::{Stage, nothing_more, numbers, receive, texts};

#[tokio::test]
async fn components_are_made_listed_stopped_started_and_removed() {
    let mut stage = Stage::new().await;
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let mut consumer = stage.consumer(&output).await;
    let fields =
        json!({"sh": "process() { emit \"$MSG\"; }", "inputs": [&input], "output": &output});
    let id = stage.function("f", fields.clone()).await;
    assert!(matches!(
        stage.try_function("f", fields).await,
        Err(WorkerError::Exists(_))
    ));
    assert_eq!(
        stage.worker.list(Kind::Function, "public", "default"),
        std::slice::from_ref(&id.name)
    );
    assert!(
        stage
            .worker
            .list(Kind::Sink, "public", "default")
            .is_empty()
    );

    stage
        .worker
        .stop_instances(&id, None)
        .await
        .expect("stopped");
    stage.send(&input, ["a"]).await;
    nothing_more(&mut consumer).await;
    // Stopped by hand is stopped after a restart too.
    stage.worker.shutdown(Duration::from_secs(2)).await;
    stage.another_worker().await;
    assert_eq!(stage.worker.status(&id).expect("kept").num_running, 0);
    stage
        .worker
        .start_instances(&id, Some(0))
        .await
        .expect("started");
    assert_eq!(texts(&receive(&mut consumer, 1).await), ["a"]);
    assert!(stage.worker.start_instances(&id, Some(7)).await.is_err());

    stage
        .worker
        .restart_instances(&id, None)
        .await
        .expect("restarted");
    stage.send(&input, ["b"]).await;
    assert_eq!(texts(&receive(&mut consumer, 1).await), ["b"]);

    stage.worker.delete(&id).await.expect("deleted");
    assert!(matches!(
        stage.worker.get(&id),
        Err(WorkerError::NotFound(_))
    ));
    stage.worker.shutdown(Duration::from_secs(2)).await;
    stage.another_worker().await;
    assert!(stage.worker.components().is_empty());
    stage.end().await;
}

#[tokio::test]
async fn what_can_not_be_honoured_is_refused_before_anything_is_made() {
    let stage = Stage::new().await;
    for (fields, named) in [
        (
            json!({"sh": "x", "inputs": ["a"], "exposePulsarAdminClientEnabled": true}),
            "exposePulsarAdminClientEnabled",
        ),
        (
            json!({"sh": "x", "inputs": ["a"], "windowConfig": {"maxLagMs": 2}}),
            "windowLengthCount",
        ),
        (
            json!({"exec": "/no/such/program", "inputs": ["a"]}),
            "does not exist",
        ),
        (json!({"sh": "x"}), "input"),
    ] {
        let error = stage.try_function("f", fields).await.expect_err(named);
        assert!(error.to_string().contains(named), "{error}");
    }
    assert!(stage.worker.components().is_empty());
    stage.end().await;
}

#[tokio::test]
async fn a_file_goes_through_functions_to_a_file_and_the_run_ends_by_itself() {
    let stage = Stage::new().await;
    let (lines, marked) = (stage.topic("lines"), stage.topic("marked"));
    let file = stage.file("in.txt", &(numbers(0..500).join("\n") + "\n"));
    let out = stage.directory.path().join("sub/out.txt");
    stage
        .sink(json!({"name": "sink", "sinkType": "file", "inputs": [&marked], "configs": {"path": &out}}))
        .await;
    let table = stage
        .sink(json!({"name": "table", "sinkType": "table", "inputs": [&marked], "configs": {"limit": 3}}))
        .await;
    stage
        .function(
            "mark",
            json!({"sh": "process() { emit \"$MSG!\"; }", "inputs": [&lines], "output": &marked}),
        )
        .await;
    let source = stage
        .source(json!({"name": "source", "sourceType": "file", "topicName": &lines, "configs": {"path": &file}}))
        .await;
    stage.drained().await;
    let text = std::fs::read_to_string(&out).expect("written");
    let wanted: Vec<String> = numbers(0..500).into_iter().map(|n| n + "!").collect();
    assert_eq!(text.lines().collect::<Vec<_>>(), wanted);
    let progress = stage.worker.progress();
    let of =
        |id: &geminga_functions::ComponentId| progress.iter().find(|p| p.id == *id).expect("there");
    assert_eq!(
        (of(&source).total, of(&source).written, of(&source).finished),
        (Some(500), 500, true)
    );
    assert_eq!(of(&table).processed, 500);
    assert_eq!(stage.worker.tables()[0].1.render().1.len(), 3);
    stage.end().await;
}

#[tokio::test]
async fn a_file_source_goes_on_where_it_was() {
    let mut stage = Stage::new().await;
    let topic = stage.topic("lines");
    let mut consumer = stage.consumer(&topic).await;
    let file = stage.file("in.txt", "a\nb\n");
    stage
        .source(
            json!({"name": "source", "sourceType": "file", "topicName": &topic,
            "configs": {"path": &file, "follow": true}}),
        )
        .await;
    assert_eq!(texts(&receive(&mut consumer, 2).await), ["a", "b"]);
    stage
        .until("acknowledged", |w| w.progress()[0].in_flight == 0)
        .await;
    stage.worker.shutdown(Duration::from_secs(2)).await;
    std::fs::write(&file, "a\nb\nc\nd without an end").expect("grown");
    stage.another_worker().await;
    assert_eq!(texts(&receive(&mut consumer, 1).await), ["c"]);
    nothing_more(&mut consumer).await;
    stage.end().await;
}

#[tokio::test]
async fn a_trigger_gives_the_answer_of_its_own_message() {
    let stage = Stage::new().await;
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let code =
        "process() { if [[ $MSG == bad ]]; then echo why >&2; return 1; fi; emit \"<$MSG>\"; }";
    let id = stage
        .function(
            "f",
            json!({
                "sh": code, "inputs": [&input], "output": &output,
                "maxMessageRetries": 0, "deadLetterTopic": stage.topic("dead"),
                "forwardSourceMessageProperty": false,
            }),
        )
        .await;
    stage.send(&input, numbers(0..50)).await;
    let ask = |payload: String| Asked {
        payload: payload.into(),
        key: Some("k".to_owned()),
        properties: vec![("traceparent".to_owned(), "00-1-2-01".to_owned())],
        limit: Duration::from_secs(20),
        ..Asked::default()
    };
    // Many at once, each with its own answer.
    let tasks = geminga_stdx::Tasks::new();
    let asked = (0..20).map(|n| {
        let (worker, id, asked) = (stage.worker.clone(), id.clone(), ask(format!("mine {n}")));
        let (done, answered) = tokio::sync::oneshot::channel();
        tasks.spawn_cancellable("trigger", async move {
            let _ = done.send(worker.trigger(&id, asked).await);
        });
        answered
    });
    for (n, answered) in asked.collect::<Vec<_>>().into_iter().enumerate() {
        let answered = answered.await.expect("joined").expect("answered");
        let Answered::Output {
            payload,
            key,
            properties,
        } = answered
        else {
            panic!("{answered:?}");
        };
        assert_eq!(payload, format!("<mine {n}>"));
        assert_eq!(key.as_deref(), Some("k"));
        assert!(properties.contains(&("traceparent".to_owned(), "00-1-2-01".to_owned())));
    }
    let failed = stage
        .worker
        .trigger(&id, ask("bad".to_owned()))
        .await
        .expect("answered");
    assert!(
        matches!(&failed, Answered::Failed(why) if !why.is_empty()),
        "{failed:?}"
    );
    let elsewhere = Asked {
        topic: Some("elsewhere".to_owned()),
        ..ask(String::new())
    };
    assert!(matches!(
        stage.worker.trigger(&id, elsewhere).await,
        Err(WorkerError::Invalid(_))
    ));
    stage.end().await;
}

#[tokio::test]
async fn statistics_count_and_tell_latencies() {
    let stage = Stage::new().await;
    let input = stage.topic("in");
    let code = "process() { metric size ${#MSG}; [[ $MSG != bad ]]; }";
    let id = stage
        .function(
            "f",
            json!({"sh": code, "inputs": [&input], "maxMessageRetries": 0}),
        )
        .await;
    stage.send(&input, ["good", "bad", "good"]).await;
    stage.drained().await;
    let stats = stage.worker.stats(&id).expect("stats");
    assert_eq!(stats.total.received_total, 3);
    assert_eq!(stats.total.processed_successfully_total, 2);
    assert_eq!(stats.minute.user_exceptions_total, 1);
    assert!(stats.latency_percentiles.contains_key("0.99"));
    let metrics = &stats.instances[0].metrics.user_metrics;
    for (of, wanted) in [
        ("count", 3.0),
        ("sum", 11.0),
        ("0.5", 4.0),
        ("0.9", 4.0),
        ("0.99", 4.0),
        ("0.999", 4.0),
    ] {
        assert_eq!(metrics[&format!("user_metric_size_{of}")], wanted, "{of}");
    }
    let status = stage.worker.status(&id).expect("status");
    assert!(status.instances[0].status.lag_ms.is_some());
    assert_eq!(status.instances[0].status.latest_user_exceptions.len(), 1);
    stage.end().await;
}

#[tokio::test]
async fn a_function_runs_without_a_broker_on_lines() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("mark.sh");
    std::fs::write(&path, "read -r m; [[ $m != bad ]] || exit 3; echo \"$m!\"").expect("written");
    let config: FunctionConfig = serde_json::from_value(json!({"sh": path})).expect("a config");
    let (output, read) = tokio::io::duplex(1 << 16);
    let mut read = read;
    let report = run_pipe(config, &b"one\nbad\ntwo"[..], output, None, None)
        .await
        .expect("ran");
    let mut text = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut read, &mut text)
        .await
        .expect("read");
    assert_eq!(text, "one!\ntwo!\n");
    assert_eq!((report.received, report.processed, report.lost), (3, 2, 1));
    assert!(report.failures[0].contains("status 3"), "{report:?}");

    let missing: FunctionConfig =
        serde_json::from_value(json!({"sh": "/no/such.sh"})).expect("a config");
    let error = run_pipe(missing, &b""[..], tokio::io::sink(), None, None)
        .await
        .expect_err("refused");
    assert!(error.to_string().contains("does not exist"), "{error}");
}

/// Calls share a producer and a reader, and each gets its own answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_of_a_function_share_what_they_need() {
    let stage = Stage::new().await;
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let code = "process() { [[ $MSG != bad ]] || return 1; emit \"got $MSG\"; }";
    let id = stage
        .function(
            "f",
            json!({
                "sh": code, "inputs": [&input], "output": &output,
                "maxMessageRetries": 0, "deadLetterTopic": stage.topic("dead"),
            }),
        )
        .await;
    let tasks = geminga_stdx::Tasks::new();
    let (sender, mut answers) = tokio::sync::mpsc::channel(100);
    for n in 0..100 {
        let (worker, id, sender) = (stage.worker.clone(), id.clone(), sender.clone());
        tasks.spawn_cancellable("call", async move {
            let text = if n % 10 == 0 {
                "bad".to_owned()
            } else {
                n.to_string()
            };
            let asked = Asked {
                payload: text.clone().into(),
                limit: crate::stage::PATIENCE,
                ..Asked::default()
            };
            let _ = sender.send((text, worker.trigger(&id, asked).await)).await;
        });
    }
    drop(sender);
    let mut count = 0;
    while let Some((text, answer)) = answers.recv().await {
        count += 1;
        match answer.expect("an answer") {
            Answered::Output { payload, .. } => assert_eq!(payload, format!("got {text}")),
            Answered::Failed(_) => assert_eq!(text, "bad"),
            Answered::Nothing => panic!("it has an output"),
        }
    }
    assert_eq!(count, 100);
    let topic = |text: &str| -> geminga_model::TopicName { text.parse().expect("a topic") };
    let stats = stage.broker().topic_stats(&topic(&input)).await;
    assert_eq!(stats.expect("known").publishers.len(), 1);
    let stats = stage.broker().topic_stats(&topic(&output)).await;
    assert_eq!(stats.expect("known").subscriptions.len(), 1);
    // A new version has a line of its own.
    let change: FunctionConfig =
        serde_json::from_value(json!({"output": stage.topic("other")})).expect("a config");
    stage
        .worker
        .update(&id, change.into(), None)
        .await
        .expect("updated");
    let asked = Asked {
        payload: "x".into(),
        limit: crate::stage::PATIENCE,
        ..Asked::default()
    };
    let answer = stage.worker.trigger(&id, asked).await.expect("an answer");
    assert!(matches!(answer, Answered::Output { payload, .. } if payload == "got x"));
    stage.end().await;
}

/// Both answer each message; who asked one of them gets what that one says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn functions_with_the_same_topics_answer_for_themselves() {
    let stage = Stage::new().await;
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let mut outputs = stage.consumer(&output).await;
    let mut ids = Vec::new();
    for name in ["quick", "slow"] {
        // The one that is asked is not always the first to answer.
        let wait = if name == "slow" { "sleep 0.02" } else { ":" };
        let code = format!(
            "process() {{ {wait}; if [[ $MSG == bad* ]]; then dlq {name}; return; fi; \
             msg_prop geminga.trigger || true; emit \"{name} ${{REPLY:-plain}} $MSG\"; }}"
        );
        let fields = json!({
            "sh": code, "inputs": [&input], "output": &output,
            "maxMessageRetries": 0, "deadLetterTopic": stage.topic("dead"),
        });
        ids.push((name, stage.function(name, fields).await));
    }
    let tasks = geminga_stdx::Tasks::new();
    let (sender, mut answers) = tokio::sync::mpsc::channel(100);
    for n in 0..60 {
        let (name, id) = ids[n % 2].clone();
        let (worker, sender) = (stage.worker.clone(), sender.clone());
        let text = if n % 10 < 2 {
            format!("bad {n}")
        } else {
            n.to_string()
        };
        tasks.spawn_cancellable("call", async move {
            let asked = Asked {
                payload: text.clone().into(),
                // Nobody can answer for another one by what it sends.
                properties: vec![("geminga.function".to_owned(), "a/b/c".to_owned())],
                limit: crate::stage::PATIENCE,
                ..Asked::default()
            };
            let _ = sender
                .send((name, text, worker.trigger(&id, asked).await))
                .await;
        });
    }
    drop(sender);
    let mut count = 0;
    while let Some((name, text, answer)) = answers.recv().await {
        count += 1;
        match answer.expect("an answer") {
            Answered::Output { payload, .. } => assert_eq!(payload, format!("{name} plain {text}")),
            Answered::Failed(why) => {
                assert!(
                    text.starts_with("bad") && why.contains(name),
                    "{text}: {why}"
                );
            }
            Answered::Nothing => panic!("it has an output"),
        }
    }
    assert_eq!(count, 60);
    // What nobody asked for carries no more than before.
    receive(&mut outputs, 96).await;
    stage.send(&input, ["unasked"]).await;
    for message in receive(&mut outputs, 2).await {
        let mut names: Vec<_> = message.properties.iter().map(|(name, _)| &**name).collect();
        names.sort_unstable();
        assert_eq!(names, ["__pfn_input_msg_id__", "__pfn_input_topic__"]);
    }
    stage.end().await;
}

/// The old code never answers it; the new one gets the message again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_under_way_outlives_an_update() {
    let stage = Stage::new().await;
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let begun = stage.directory.path().join("begun");
    let code = format!("process() {{ : > '{}'; sleep 60; }}", begun.display());
    let fields = json!({"sh": code, "inputs": [&input], "output": &output});
    let id = stage.function("f", fields).await;
    let tasks = geminga_stdx::Tasks::new();
    let (done, answered) = tokio::sync::oneshot::channel();
    let (worker, of) = (stage.worker.clone(), id.clone());
    tasks.spawn_cancellable("call", async move {
        let asked = Asked {
            payload: "x".into(),
            limit: crate::stage::PATIENCE,
            ..Asked::default()
        };
        let _ = done.send(worker.trigger(&of, asked).await);
    });
    stage.until("the old code has it", |_| begun.exists()).await;
    let upload = Upload::new("f.sh", b"process() { emit \"new $MSG\"; }".to_vec());
    let unchanged = FunctionConfig::default().into();
    let updated = stage.worker.update(&id, unchanged, Some(upload)).await;
    updated.expect("updated");
    let answer = answered.await.expect("asked").expect("answered");
    assert!(matches!(answer, Answered::Output { payload, .. } if payload == "new x"));
    stage.end().await;
}

/// It goes the way of outputs: with all that they may say, and with the reason in the status where it is not taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_outside_a_message_is_whole_or_told() {
    let stage = Stage::with_messages_of(20_000).await;
    let (input, late) = (stage.topic("in"), stage.topic("late"));
    let mut out = stage.consumer(&late).await;
    let code = format!(
        "import threading, time\n\
         def later(context):\n\
         \x20   while context._active: time.sleep(0.01)\n\
         \x20   conf = {{'partition_key': 'k', 'ordering_key': 'o', 'sequence_id': 77, 'event_timestamp': 5}}\n\
         \x20   context.publish('{late}', 'x' * 30000)\n\
         \x20   context.publish('{late}', 'said', properties={{'a': 'b'}}, message_conf=conf)\n\
         class F:\n\
         \x20   def process(self, input, context):\n\
         \x20       threading.Thread(target=later, args=(context,)).start()\n"
    );
    let fields = json!({"py": code, "className": "f.F", "inputs": [&input],
        "producerConfig": {"compressionType": "NONE"}});
    let id = stage.function("f", fields).await;
    stage.send(&input, ["begin"]).await;
    let got = receive(&mut out, 1).await.remove(0);
    assert_eq!(texts(std::slice::from_ref(&got)), ["said"]);
    assert_eq!(got.key.as_deref(), Some("k"));
    assert_eq!(got.ordering_key.as_deref(), Some(&b"o"[..]));
    assert_eq!((got.sequence_id, got.event_time), (77, Some(5)));
    assert_eq!(got.property("a"), Some("b"));
    let status = stage.worker.status(&id).expect("there");
    let told = &status.instances[0].status.latest_system_exceptions;
    let [one] = &told[..] else { panic!("{told:?}") };
    let why = &one.exception_string;
    assert!(why.starts_with("not published"), "{why}");
    assert!(why.contains("20000"), "{why}");
    stage.end().await;
}

/// A script says something before its first message and after its last: the first is not its first message's.
#[tokio::test]
async fn what_a_script_emits_at_its_start_and_its_end_is_published() {
    let stage = Stage::new().await;
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let mut out = stage.consumer(&output).await;
    let code = "process() { emit \"got $MSG\"; }\ntrap 'emit ends' EXIT\nemit begins\n";
    let fields = json!({"sh": code, "inputs": [&input], "output": &output, "maxMessageRetries": 0});
    let id = stage.function("f", fields).await;
    assert_eq!(texts(&receive(&mut out, 1).await), ["begins"]);
    stage.send(&input, ["x"]).await;
    assert_eq!(texts(&receive(&mut out, 1).await), ["got x"]);
    stage
        .worker
        .stop_instances(&id, None)
        .await
        .expect("stopped");
    assert_eq!(texts(&receive(&mut out, 1).await), ["ends"]);
    stage.end().await;
}

/// What a function changes and publishes in `initialize` and in `close` is kept, whatever it promises.
#[tokio::test]
async fn what_is_done_before_the_first_message_and_after_the_last_is_kept() {
    for guarantee in ["ATLEAST_ONCE", "EFFECTIVELY_ONCE"] {
        let mut stage = Stage::new().await;
        let (input, output, side) = (stage.topic("in"), stage.topic("out"), stage.topic("side"));
        let source = stage.file(
            "Gather.java",
            r#"
import org.apache.pulsar.client.api.Schema;
import org.apache.pulsar.functions.api.*;

public class Gather implements Function<String, String> {
    private final StringBuilder gathered = new StringBuilder();
    private Context context;

    private void say(String what) throws Exception {
        String side = (String) context.getUserConfigValue("side").get();
        context.newOutputMessage(side, Schema.BYTES).value(what.getBytes()).send();
    }

    public void initialize(Context given) throws Exception {
        context = given;
        context.incrCounter("started", 1);
        say("started " + context.getCounter("started") + " " + context.getCounter("ended"));
    }

    public String process(String in, Context context) {
        gathered.append(in);
        return in;
    }

    public void close() throws Exception {
        context.incrCounter("ended", 1);
        say("gathered " + gathered);
    }
}
"#,
        );
        let jar = crate::stage::jar(&source).await;
        let fields = json!({
            "jar": jar, "className": "Gather", "inputs": [&input], "output": &output,
            "processingGuarantees": guarantee, "userConfig": {"side": &side},
        });
        let id = stage.function("f", fields).await;
        let (mut out, mut said) = (stage.consumer(&output).await, stage.consumer(&side).await);
        let count = async |stage: &Stage, key: &str| {
            let value = stage.worker.state_get(&id, key).await;
            value.ok().and_then(|value| value.number_value)
        };
        assert_eq!(texts(&receive(&mut said, 1).await), ["started 1 0"]);
        stage.send(&input, ["a", "b"]).await;
        receive(&mut out, 2).await;
        stage.drained().await;
        stage.worker.shutdown(Duration::from_secs(10)).await;
        assert_eq!(texts(&receive(&mut said, 1).await), ["gathered ab"]);
        stage.another_worker().await;
        assert_eq!(
            texts(&receive(&mut said, 1).await),
            ["started 2 1"],
            "{guarantee}"
        );
        assert_eq!(count(&stage, "ended").await, Some(1), "{guarantee}");
        stage.end().await;
    }
}
