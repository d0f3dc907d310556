//! Schemas that functions declare of their topics: by name, by a definition, by the topic's own, and by what Java
//! code says.

use geminga_client::{Message, Schema, SchemaType};
use serde_json::json;

use crate::stage::{Stage, jar, receive, texts};

const ECHO: &str = "process() { emit \"$MSG\"; }";

async fn schema(stage: &Stage, topic: &str) -> Option<Schema> {
    stage.client.schema(topic).await.expect("answered")
}

fn record(name: &str, field: &str) -> Schema {
    let data = format!(
        r#"{{"type":"record","name":"{name}","fields":[{{"name":"{field}","type":"int"}}]}}"#
    );
    Schema::new(SchemaType::Avro, name, data, [])
}

#[tokio::test]
async fn a_payload_that_is_no_value_of_its_type_is_a_dead_letter() {
    let stage = Stage::new().await;
    let [input, output, dead] = ["in", "out", "dead"].map(|name| stage.topic(name));
    let mut letters = stage.consumer(&dead).await;
    stage
        .function(
            "f",
            json!({"sh": ECHO, "inputs": [&input], "output": &output, "outputSchemaType": "INT64",
                "deadLetterTopic": &dead, "maxMessageRetries": 3}),
        )
        .await;
    assert_eq!(
        schema(&stage, &output).await,
        Some(Schema::of(SchemaType::Int64))
    );
    let mut out = stage.consumer(&output).await;
    stage.send(&input, ["5", "12345678"]).await;
    let got = receive(&mut out, 1).await;
    assert_eq!(texts(&got), ["12345678"]);
    assert!(got[0].schema_version.is_some());
    let letter = receive(&mut letters, 1).await.remove(0);
    assert_eq!(&letter.payload[..], b"5");
    let said = format!("{:?}", letter.properties);
    assert!(said.contains("no INT64, which has 8 bytes"), "{said}");
    stage.end().await;
}

#[tokio::test]
async fn what_a_topic_has_already_is_taken_or_refused() {
    let stage = Stage::new().await;
    let [input, output] = ["in", "out"].map(|name| stage.topic(name));
    let own = record("Quake", "size");
    for topic in [&input, &output] {
        let made = stage.client.producer(topic).schema(own.clone());
        drop(made.build().await.expect("a producer"));
    }
    let mut out = stage.consumer(&output).await;
    let id = stage
        .function(
            "auto",
            json!({"sh": ECHO, "inputSpecs": {&input: {"schemaType": "auto_consume"}}, "output": &output,
                "outputSchemaType": "auto_publish"}),
        )
        .await;
    stage.send(&input, ["\x02"]).await;
    let got = receive(&mut out, 1).await;
    let version = stage.client.register_schema(&output, &own).await;
    assert_eq!(got[0].schema_version, Some(version.expect("it is there")));
    stage.worker.delete(&id).await.expect("deleted");
    for (name, fields, says) in [
        (
            "wrong-output",
            json!({"inputs": [&input], "outputSchemaType": "string"}),
            "output: ",
        ),
        (
            "wrong-input",
            json!({"inputSpecs": {&input: {"schemaType": "string"}}}),
            "subscribing: ",
        ),
    ] {
        let mut all = json!({"sh": ECHO, "output": &output});
        for (field, value) in fields.as_object().expect("fields") {
            all[field] = value.clone();
        }
        let id = stage.function(name, all).await;
        stage
            .until("it says why it does not run", |worker| {
                let status = worker.status(&id).expect("there");
                let error = status.instances[0].status.error.clone();
                let error = error.unwrap_or_default();
                error.contains(says) && error.contains("IncompatibleSchema")
            })
            .await;
        // It can be deleted all the same.
        stage.worker.delete(&id).await.expect("deleted");
    }
    stage.end().await;
}

#[tokio::test]
async fn each_input_has_its_own_settings() {
    let stage = Stage::new().await;
    let [one, two, output] = ["one", "two", "out"].map(|name| stage.topic(name));
    let id = stage
        .function(
            "f",
            json!({"sh": ECHO, "output": &output, "inputSpecs": {
                &one: {"receiverQueueSize": 3, "consumerProperties": {"consumerName": "first", "priorityLevel": "2"}},
                &two: {"receiverQueueSize": 5, "schemaType": "string"}}}),
        )
        .await;
    let of = async |topic: &str, permits: i64| {
        let name: geminga_model::TopicName = topic.parse().expect("a topic");
        for _ in 0..1000 {
            let stats = stage.broker().topic_stats(&name).await.expect("stats");
            let stats = serde_json::to_value(stats).expect("JSON");
            let consumer = stats["subscriptions"][id.fqfn()]["consumers"][0].clone();
            if consumer["availablePermits"] == permits {
                return consumer;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("{topic} never had {permits} permits");
    };
    assert_eq!(of(&one, 3).await["consumerName"], "first");
    assert_ne!(of(&two, 5).await["consumerName"], "first");
    assert_eq!(schema(&stage, &one).await, None);
    assert_eq!(schema(&stage, &two).await, Some(Schema::string()));
    stage.end().await;
}

const JAVA: &str = r#"
import org.apache.pulsar.client.api.Schema;
import org.apache.pulsar.functions.api.*;

public class Code {
    public static class Quake {
        public int size;
        public String place;
    }

    static Quake quake(String text) {
        Quake quake = new Quake();
        quake.size = text.length();
        quake.place = text;
        return quake;
    }

    /** Its output is what its class says. */
    public static class Plain implements java.util.function.Function<String, Quake> {
        public Quake apply(String in) { return quake(in); }
    }

    /** Reads what the one before has written. */
    public static class Reads implements java.util.function.Function<Quake, String> {
        public String apply(Quake in) { return in.place + in.size; }
    }

    public static class Says implements Function<String, Record<Quake>> {
        static final Schema<Quake> AVRO = Schema.AVRO(Quake.class);

        public Record<Quake> process(String in, Context context) throws Exception {
            String side = (String) context.getUserConfigValue("side").get();
            if (in.equals("wrong")) context.newOutputMessage(side, Schema.BOOL).value(true).send();
            context.newOutputMessage(side, Schema.INT64).value((long) in.length()).send();
            return context.newOutputRecordBuilder(AVRO).value(quake(in)).build();
        }
    }
}
"#;

#[tokio::test]
async fn java_code_says_what_its_topics_are() {
    let stage = Stage::new().await;
    let code = jar(&stage.file("Code.java", JAVA)).await;
    let [input, middle, output, said, side, dead] =
        ["in", "middle", "out", "said", "side", "dead"].map(|name| stage.topic(name));
    for (name, class, fields) in [
        (
            "plain",
            "Code$Plain",
            json!({"inputs": [&input], "output": &middle}),
        ),
        (
            "avro",
            "Code$Plain",
            json!({"inputs": [&input], "output": &output, "outputSchemaType": "avro"}),
        ),
        (
            "says",
            "Code$Says",
            json!({"inputs": [&input], "output": &said, "userConfig": {"side": &side},
                "deadLetterTopic": &dead, "maxMessageRetries": 3}),
        ),
    ] {
        let mut all = json!({"jar": &code, "className": class});
        for (field, value) in fields.as_object().expect("fields") {
            all[field] = value.clone();
        }
        let id = stage.function(name, all).await;
        stage
            .until("it runs", |worker| {
                let status = worker.status(&id).expect("there");
                status.num_running == 1
            })
            .await;
    }
    // Text is what the class of the input says.
    assert_eq!(schema(&stage, &input).await, Some(Schema::string()));
    let json = schema(&stage, &middle).await.expect("it has one");
    assert_eq!(json.kind(), SchemaType::Json);
    assert!(
        json.data()
            .starts_with(b"{\"type\":\"record\",\"name\":\"Quake\"")
    );
    let avro = schema(&stage, &output).await.expect("it has one");
    assert_eq!((avro.kind(), avro.data()), (SchemaType::Avro, json.data()));
    let mut topics = Vec::new();
    for topic in [&middle, &output, &said, &side, &dead] {
        topics.push(stage.consumer(topic).await);
    }
    let [of_middle, of_output, of_said, of_side, of_dead] = &mut topics[..] else {
        unreachable!()
    };
    stage.send(&input, ["four"]).await;
    let plain = receive(of_middle, 1).await.remove(0);
    assert_eq!(&plain.payload[..], br#"{"size":4,"place":"four"}"#);
    let encoded = receive(of_output, 1).await.remove(0);
    assert!(encoded.schema_version.is_some());
    // What each message says of itself is declared when it comes.
    let record = receive(of_said, 1).await.remove(0);
    assert_eq!(record.payload, encoded.payload);
    assert!(record.schema_version.is_some());
    let declared = schema(&stage, &said).await.expect("it has one");
    assert_eq!(declared.kind(), SchemaType::Avro);
    let number = receive(of_side, 1).await.remove(0);
    assert_eq!(number.payload[..], 4_i64.to_be_bytes());
    assert_eq!(
        schema(&stage, &side).await,
        Some(Schema::of(SchemaType::Int64))
    );
    // One that the topic does not take fails its message, and says why.
    stage.send(&input, ["wrong"]).await;
    let letter = receive(of_dead, 1).await.remove(0);
    let why = format!("{:?}", letter.properties);
    assert!(why.contains("IncompatibleSchema"), "{why}");
    // Code that says nothing reads Avro where its topic has that.
    let read = stage.topic("read");
    let mut of_read = stage.consumer(&read).await;
    stage
        .function(
            "reads",
            json!({"jar": &code, "className": "Code$Reads", "inputs": [&output], "output": &read,
                "subscriptionPosition": "Earliest"}),
        )
        .await;
    assert_eq!(texts(&receive(&mut of_read, 1).await), ["four4"]);
    stage.end().await;
}

/// Text is what its class says, and the topic has a producer that says nothing: such a topic takes no schema.
#[tokio::test]
async fn java_reads_a_topic_of_a_pattern_that_is_made_later_without_a_schema() {
    let stage = Stage::new().await;
    let code = jar(&stage.file("Code.java", JAVA)).await;
    let (topic, output) = (stage.topic("in"), stage.topic("out"));
    let mut out = stage.consumer(&output).await;
    stage
        .function(
            "plain",
            json!({"jar": &code, "className": "Code$Plain", "topicsPattern": format!("{topic}-.*"),
                "output": &output, "subscriptionPosition": "Earliest"}),
        )
        .await;
    let later = format!("{topic}-later");
    let producer = stage.client.producer(&later).build().await.expect("made");
    producer.send(Message::new("four")).await.expect("sent");
    assert_eq!(
        texts(&receive(&mut out, 1).await),
        [r#"{"size":4,"place":"four"}"#]
    );
    assert_eq!(schema(&stage, &later).await, None);
    stage.end().await;
}
