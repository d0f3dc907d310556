//! Fields that say how a function reads and writes topics.

use geminga_client::{Batching, Message, Schema, SchemaType, ServerError};
use geminga_model::TopicName;
use serde_json::json;

use super::case::{Case, keep};

/// Kinds of subscription, and how inputs are named.
pub(super) async fn subscriptions(case: &mut Case<'_>) {
    for (fields, wanted, see) in [
        (
            json!({"retainOrdering": true, "cleanupSubscription": false}),
            "Failover",
            &["retainOrdering", "cleanupSubscription"][..],
        ),
        (
            json!({"retainKeyOrdering": true}),
            "Key_Shared",
            &["retainKeyOrdering"],
        ),
        (
            json!({"processingGuarantees": "EFFECTIVELY_ONCE"}),
            "Failover",
            &["processingGuarantees"],
        ),
    ] {
        let (input, output) = (case.topic("in"), case.topic("out"));
        let stays = fields["cleanupSubscription"] == false;
        let id = case.make(fields).await;
        case.stage.send(&input, ["a"]).await;
        assert_eq!(case.outputs(&output, 1).await, ["a none none"]);
        let subscription = case.subscription(&input, &id.fqfn()).await;
        assert_eq!(subscription["type"], wanted, "{}", case.runtime);
        case.see(see);
        case.stage.worker.delete(&id).await.expect("deleted");
        let subscription = case.subscription(&input, &id.fqfn()).await;
        assert_eq!(!subscription.is_null(), stays, "{}", case.runtime);
    }
    // The five ways to name an input; what stands in a spec.
    let pattern = format!("persistent://public/default/many-{}-.*", case.runtime);
    let many = format!("persistent://public/default/many-{}-one", case.runtime);
    drop(keep(case.stage, &many).await);
    let (named, typed, beside) = (case.topic("in"), case.topic("typed"), case.topic("beside"));
    for (fields, input, see) in [
        (
            json!({"topicsPattern": &pattern}),
            &many,
            &["topicsPattern"][..],
        ),
        // As in Pulsar, beside another one.
        (
            json!({"inputs": [&beside], "topicsPattern": &pattern}),
            &many,
            &["topicsPattern"],
        ),
        (
            json!({"inputSpecs": {&pattern: {"regexPattern": true}}}),
            &many,
            &["inputSpecs.regexPattern"],
        ),
        (
            json!({"customSchemaInputs": {&typed: "{\"schemaType\":\"string\"}"}}),
            &typed,
            &["customSchemaInputs"],
        ),
        (
            json!({"inputSpecs": {&named: {"schemaType": "string", "schemaProperties": {"a": "b"}, "receiverQueueSize": 3,
                "consumerProperties": {"consumerName": "my-name", "priorityLevel": "2"}}}}),
            &named,
            &[
                "inputSpecs.schemaType",
                "inputSpecs.schemaProperties",
                "inputSpecs.receiverQueueSize",
                "inputSpecs.consumerProperties",
            ],
        ),
    ] {
        let mut given = fields.clone();
        let output = case.topic("out");
        given["output"] = json!(&output);
        let id = case.make(given).await;
        if [&named, &typed].contains(&input) {
            // A new topic is what its first reader says, and takes no other from then on.
            let schema = case.schema(input).await.expect("it has one");
            assert_eq!(schema.kind(), SchemaType::String, "{}", case.runtime);
            let has = schema.properties().any(|it| it == ("a", "b"));
            assert_eq!(has, input == &named);
            let other = case.stage.client.producer(input);
            let refused = other.schema(Schema::of(SchemaType::Int64)).build().await;
            let code = refused.err().and_then(|error| error.server_error());
            assert_eq!(code, Some(ServerError::IncompatibleSchema));
        }
        if see.len() == 4 {
            let consumer = case.permitted(input, &id.fqfn(), 3).await;
            assert_eq!(consumer["consumerName"], "my-name");
        }
        case.stage.send(input, ["a"]).await;
        assert_eq!(
            case.outputs(&output, 1).await,
            ["a none none"],
            "{} {see:?}",
            case.runtime
        );
        case.see(see);
        case.stage.worker.delete(&id).await.expect("deleted");
    }
}

/// How outputs are produced.
pub(super) async fn outputs(case: &mut Case<'_>) {
    let (input, output) = (case.topic("in"), case.topic("out"));
    drop(keep(case.stage, &output).await);
    let id = case
        .make(json!({"producerConfig": {"compressionType": "ZSTD", "batchBuilder": "KEY_BASED"}, "batchBuilder": "KEY_BASED",
            "fqfn": format!("public/default/rest-{}", case.runtime), "name": null, "retainOrdering": true}))
        .await;
    assert_eq!(id.name, format!("rest-{}", case.runtime));
    case.see(&["fqfn"]);
    let producer = case
        .stage
        .client
        .producer(&input)
        .batching(Batching::off())
        .build()
        .await
        .expect("producer");
    let text = "long ".repeat(200);
    for n in 0..40 {
        let message = Message::new(text.clone()).key(if n % 2 == 0 { "even" } else { "odd" });
        producer.post(message).await.expect("sent");
    }
    producer.close().await.expect("sent");
    assert_eq!(case.outputs(&output, 40).await.len(), 40);
    let name: TopicName = output.parse().expect("a topic");
    let entries = case
        .stage
        .broker()
        .peek(&name, "keep", 100)
        .await
        .expect("peeked");
    for entry in &entries {
        let metadata = geminga_proto::message::decode_metadata(&entry.block).expect("metadata");
        assert_eq!(metadata.compression, Some(3), "ZSTD");
        // One key a batch.
        assert!(matches!(
            metadata.partition_key.as_deref(),
            Some("even" | "odd")
        ));
    }
    case.see(&[
        "producerConfig.compressionType",
        "producerConfig.batchBuilder",
        "batchBuilder",
    ]);
    case.stage.worker.delete(&id).await.expect("deleted");
    // What is pending is at most a batch: no entry holds more.
    for field in ["maxPendingMessages", "maxPendingMessagesAcrossPartitions"] {
        let (input, output) = (case.topic("in"), case.topic("out"));
        drop(keep(case.stage, &output).await);
        let id = case
            .make(json!({"producerConfig": {field: 3}, "retainOrdering": true}))
            .await;
        let producer = case.stage.client.producer(&input).build().await;
        let producer = producer.expect("producer");
        for n in 0..40 {
            producer
                .post(Message::new(n.to_string()))
                .await
                .expect("sent");
        }
        producer.close().await.expect("sent");
        assert_eq!(case.outputs(&output, 40).await.len(), 40);
        let name: TopicName = output.parse().expect("a topic");
        for entry in case
            .stage
            .broker()
            .peek(&name, "keep", 100)
            .await
            .expect("peeked")
        {
            let metadata = geminga_proto::message::decode_metadata(&entry.block).expect("metadata");
            let messages = metadata.num_messages_in_batch.unwrap_or(1);
            assert!(messages <= 3, "{messages} messages in an entry");
        }
        case.see(&[&format!("producerConfig.{field}")]);
        case.stage.worker.delete(&id).await.expect("deleted");
    }
}

/// Windows, acknowledging, starts.
pub(super) async fn acknowledging(case: &mut Case<'_>) {
    let (input, output) = (case.topic("in"), case.topic("out"));
    let id = case
        .make(json!({"windowConfig": {"windowLengthCount": 2}, "retainOrdering": true}))
        .await;
    case.stage.send(&input, ["a", "b"]).await;
    let got = case.outputs(&output, 1).await;
    let got = got[0].replace('\n', " ");
    assert!(got.starts_with("a b"), "{}: {got}", case.runtime);
    case.see(&["windowConfig"]);
    case.stage.worker.delete(&id).await.expect("deleted");

    // Nobody acknowledges: it stays.
    let (input, output) = (case.topic("in"), case.topic("out"));
    let id = case.make(json!({"autoAck": false})).await;
    case.stage.send(&input, ["a"]).await;
    assert_eq!(case.outputs(&output, 1).await.len(), 1);
    let subscription = case.subscription(&input, &id.fqfn()).await;
    assert_eq!(subscription["unackedMessages"], 1, "{}", case.runtime);
    case.see(&["autoAck"]);
    case.stage.worker.delete(&id).await.expect("deleted");

    // A start goes to the end, whatever is there.
    let (input, output) = (case.topic("in"), case.topic("out"));
    let id = case.make(json!({"skipToLatest": true})).await;
    case.stage
        .worker
        .stop_instances(&id, None)
        .await
        .expect("stopped");
    case.stage.send(&input, ["missed"]).await;
    case.stage
        .worker
        .start_instances(&id, None)
        .await
        .expect("started");
    case.stage
        .until("running", |worker| {
            worker
                .status(&id)
                .is_ok_and(|status| status.num_running == 1)
        })
        .await;
    case.stage.send(&input, ["taken"]).await;
    assert_eq!(case.outputs(&output, 1).await, ["taken none none"]);
    case.see(&["skipToLatest"]);
    case.stage.worker.delete(&id).await.expect("deleted");
}
