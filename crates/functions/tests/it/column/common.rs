//! Who a function is, where it reads and writes, what it is given, what becomes of failures.

use geminga_client::{Message, Schema};
use serde_json::json;

use super::case::{Case, keep};
use crate::stage::{receive, texts};

/// Who it is, where it reads and writes, what it is given, what becomes of failures.
pub(super) async fn common(case: &mut Case<'_>) {
    let (input, output) = (case.topic("in"), case.topic("out"));
    let (logs, dead) = (case.topic("logs"), case.topic("dead"));
    // Before there is a function: only `Earliest` gets it, and the topic is kept for it.
    drop(keep(case.stage, &input).await);
    case.stage.send(&input, ["early"]).await;
    let mut log_lines = keep(case.stage, &logs).await;
    let mut letters = keep(case.stage, &dead).await;
    let id = case
        .make(json!({"tenant": "public", "namespace": "default", "name": format!("common-{}", case.runtime),
            "className": case.class(), "inputs": [&input], "output": &output, "runtime": case.kind(),
            "subName": "sub-name", "subscriptionPosition": "Earliest", "logTopic": &logs,
            "userConfig": {"greeting": "hello"}, "secrets": {"token": "s3cret"}, "parallelism": 2,
            "maxMessageRetries": 1, "retryBackoffMs": 1, "deadLetterTopic": &dead,
            "processingGuarantees": "ATLEAST_ONCE", "cleanupSubscription": true,
            "outputSchemaType": "string", "forwardSourceMessageProperty": true}))
        .await;
    assert_eq!(id.fqfn(), format!("public/default/common-{}", case.runtime));
    case.see(&["tenant", "namespace", "name", "runtime", case.code_field()]);
    if matches!(case.runtime, "python" | "java") {
        case.see(&["className"]);
    }
    let producer = case
        .stage
        .client
        .producer(&input)
        .build()
        .await
        .expect("producer");
    let message = Message::new("second").key("k").property("colour", "red");
    producer.send(message).await.expect("sent");
    let mut consumer = keep(case.stage, &output).await;
    let got = receive(&mut consumer, 2).await;
    let mut words = texts(&got);
    words.sort();
    assert_eq!(
        words,
        ["early hello s3cret", "second hello s3cret"],
        "{}",
        case.runtime
    );
    case.see(&[
        "inputs",
        "output",
        "subscriptionPosition",
        "userConfig",
        "secrets",
    ]);
    let second = got
        .iter()
        .find(|m| m.payload.starts_with(b"second"))
        .expect("there");
    assert_eq!(
        (second.key.as_deref(), second.property("colour")),
        (Some("k"), Some("red"))
    );
    assert!(second.schema_version.is_some(), "it names the schema");
    assert_eq!(case.schema(&output).await, Some(Schema::string()));
    case.see(&["forwardSourceMessageProperty", "outputSchemaType"]);
    // One instance may have taken both before the other was ready.
    let mut subscription = case.subscription(&input, "sub-name").await;
    for _ in 0..1000 {
        if subscription["consumers"].as_array().map(Vec::len) == Some(2) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        subscription = case.subscription(&input, "sub-name").await;
    }
    assert_eq!(subscription["type"], "Shared");
    assert_eq!(subscription["consumers"].as_array().map(Vec::len), Some(2));
    case.see(&["subName", "parallelism", "processingGuarantees"]);
    // A runtime may say more.
    while !String::from_utf8_lossy(&receive(&mut log_lines, 1).await[0].payload).contains("saw ") {}
    case.see(&["logTopic"]);
    producer.send("bad").await.expect("sent");
    let letter = receive(&mut letters, 1).await.remove(0);
    assert_eq!(letter.property("geminga.attempts"), Some("2"), "one retry");
    let said = format!("{:?}", letter.properties);
    assert!(said.contains("no luck"), "{}: {said}", case.runtime);
    case.see(&["maxMessageRetries", "deadLetterTopic", "retryBackoffMs"]);
    producer.close().await.expect("closed");
    case.stage.worker.delete(&id).await.expect("deleted");
    assert!(
        case.subscription(&input, "sub-name").await.is_null(),
        "it is cleaned up"
    );
}
