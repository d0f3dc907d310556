//! Schemas that producers and consumers declare.

use geminga_client::{
    Batching, InitialPosition, Message, Schema, SchemaType, ServerError, SubType, TopicSettings,
};

use crate::broker::{receive, setup, soon};

/// A record of these fields, each with a default.
fn record(fields: &[&str]) -> Schema {
    let fields: Vec<String> = fields
        .iter()
        .map(|name| format!(r#"{{"name":"{name}","type":"int","default":0}}"#))
        .collect();
    let data = format!(
        r#"{{"type":"record","name":"Quake","fields":[{}]}}"#,
        fields.join(",")
    );
    let properties = [("__alwaysAllowNull".to_owned(), "true".to_owned())];
    Schema::new(SchemaType::Avro, "Quake", data, properties)
}

fn incompatible<T>(result: geminga_client::Result<T>) {
    let error = result.err().expect("refused");
    let code = error.server_error();
    assert_eq!(code, Some(ServerError::IncompatibleSchema), "{error}");
}

#[tokio::test]
async fn a_topic_has_the_schema_of_its_producer() {
    let (client, topic, _server) = setup("schema").await;
    assert_eq!(soon(client.schema(&topic)).await, None);
    let producer = client.producer(&topic).schema(record(&["size"]));
    let producer = soon(producer.build()).await;
    assert_eq!(soon(client.schema(&topic)).await, Some(record(&["size"])));
    // What does not suit it is refused, of either side.
    let text = client.producer(&topic).schema(Schema::string());
    incompatible(text.build().await);
    let other = client.consumer(&topic).subscription("other");
    incompatible(other.schema(Schema::of(SchemaType::Int64)).build().await);
    soon(producer.close()).await;
}

#[tokio::test]
async fn messages_name_versions_of_their_own() {
    let (client, topic, _server) = setup("versions").await;
    let mut consumer = soon(client.consumer(&topic).subscription("s").build()).await;
    // One batch a message more, however long it waits.
    let batching = Batching {
        max_delay: Some(std::time::Duration::from_secs(1)),
        ..Batching::default()
    };
    let producer = client.producer(&topic).schema(record(&["size"]));
    let producer = soon(producer.batching(batching).build()).await;
    let wider = record(&["size", "depth"]);
    let second = soon(client.register_schema(&topic, &wider)).await;
    incompatible(client.register_schema(&topic, &Schema::string()).await);
    for version in [None, Some(&second), None, None] {
        let mut message = geminga_client::Message::new("x");
        if let Some(version) = version {
            message = message.schema_version(version.clone());
        }
        soon(producer.post(message)).await;
    }
    soon(producer.flush()).await;
    let got = receive(&mut consumer, 4).await;
    let versions: Vec<_> = got.iter().map(|m| m.schema_version.clone()).collect();
    assert_eq!(versions[1], Some(second));
    assert_eq!(versions[0], versions[2]);
    assert_eq!(versions[2], versions[3]);
    assert!(versions[0].is_some() && versions[0] != versions[1]);
    assert_eq!(soon(client.schema(&topic)).await, Some(wider));
}

#[tokio::test]
async fn topics_of_one_consumer_have_settings_of_their_own() {
    let (client, topic, server) = setup("own").await;
    if server.is_none() {
        return;
    }
    let [plain, typed, more] = ["plain", "typed", "more-1"].map(|part| format!("{topic}-{part}"));
    for name in [&plain, &typed, &more] {
        soon(client.producer(name).build()).await;
    }
    let consumer = client
        .consumer([&plain, &typed, &more])
        .subscription("s")
        .sub_type(SubType::Shared)
        .initial_position(InitialPosition::Earliest)
        .topic_settings(
            &typed,
            TopicSettings {
                schema: Some(Schema::of(SchemaType::Int64)),
                name: Some("mine".to_owned()),
                queue_size: Some(7),
                ..TopicSettings::default()
            },
        )
        .topic_settings(
            geminga_client::Topics::pattern(format!("{topic}-more-.*")),
            TopicSettings {
                schema: Some(Schema::string()),
                ..TopicSettings::default()
            },
        );
    let _consumer = soon(consumer.build()).await;
    let of = |topic: String| {
        let client = client.clone();
        async move { soon(client.schema(&topic)).await.map(|s| s.kind()) }
    };
    assert_eq!(of(plain).await, None);
    assert_eq!(of(typed).await, Some(SchemaType::Int64));
    assert_eq!(of(more).await, Some(SchemaType::String));
}

#[tokio::test]
async fn a_schema_that_is_optional_gives_way_where_messages_have_none() {
    let (client, topic, _server) = setup("optional").await;
    let [plain, typed] = ["plain", "typed"].map(|part| format!("{topic}-{part}"));
    // Its producer stays: a topic in use takes no schema of a consumer.
    let producer = soon(client.producer(&plain).build()).await;
    soon(producer.send(Message::new("text"))).await;
    let numbers = client
        .producer(&typed)
        .schema(Schema::of(SchemaType::Int64));
    let _numbers = soon(numbers.build()).await;
    let reads = |topic: &String, schema_optional: bool| {
        let settings = TopicSettings {
            schema: Some(Schema::string()),
            schema_optional,
            ..TopicSettings::default()
        };
        let consumer = client.consumer(topic).subscription("s");
        let consumer = consumer.initial_position(InitialPosition::Earliest);
        consumer.topic_settings(topic, settings).build()
    };
    for (topic, optional) in [(&plain, false), (&typed, false), (&typed, true)] {
        incompatible(reads(topic, optional).await);
    }
    let mut consumer = soon(reads(&plain, true)).await;
    assert_eq!(&soon(consumer.recv()).await.payload[..], b"text");
    assert_eq!(soon(client.schema(&plain)).await, None);
}
