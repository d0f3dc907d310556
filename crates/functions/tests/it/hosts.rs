//! Go and Java functions on a broker: retries, dead letters, the kill of a host, state.

use geminga_client::{Message, Schema, SchemaType};
use geminga_functions::Upload;
use serde_json::json;

use crate::stage::{Stage, jar, receive, sorted, texts};

const GO: &str = r#"package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/apache/pulsar/pulsar-function-go/pf"
)

func process(ctx context.Context, in []byte) ([]byte, error) {
	fc, _ := pf.FromContext(ctx)
	if string(in) == "bad" {
		return nil, errors.New("no luck")
	}
	if string(in) == "die" && fc.GetCurrentRecord().RedeliveryCount() == 0 {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	if err := fc.IncrCounter("n", 1); err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "%s of %s", in, fc.GetCurrentRecord().Key()), nil
}

func main() { pf.Start(process) }
"#;

#[tokio::test]
async fn a_go_folder_is_built_and_behaves_as_every_function() {
    let stage = Stage::new().await;
    let folder = stage.directory.path().join("function");
    std::fs::create_dir(&folder).expect("made");
    std::fs::write(folder.join("main.go"), GO).expect("written");
    // As a project for Pulsar has it, with a version of Pulsar's own.
    let module = "module example.org/f\n\ngo 1.18\n\n\
                  require github.com/apache/pulsar/pulsar-function-go v0.0.0-20231018000000-000000000000\n";
    std::fs::write(folder.join("go.mod"), module).expect("written");
    let (input, output, dead) = (stage.topic("in"), stage.topic("out"), stage.topic("dead"));
    let mut out = stage.consumer(&output).await;
    let mut letters = stage.consumer(&dead).await;
    let id = stage
        .function(
            "f",
            json!({"go": folder, "inputs": [&input], "output": &output, "maxMessageRetries": 1,
                "retryBackoffMs": 10, "deadLetterTopic": &dead}),
        )
        .await;
    let producer = stage
        .client
        .producer(&input)
        .build()
        .await
        .expect("producer");
    for payload in ["a", "bad", "die", "b"] {
        let message = Message::new(payload.as_bytes().to_vec()).key("k");
        producer.send(message).await.expect("sent");
    }
    let got = sorted(texts(&receive(&mut out, 3).await));
    assert_eq!(got, ["a of k", "b of k", "die of k"]);
    let letter = receive(&mut letters, 1).await.remove(0);
    assert_eq!(
        letter
            .property("geminga.reason")
            .map(|r| r.contains("no luck")),
        Some(true)
    );
    stage.drained().await;
    let count = stage.worker.state_get(&id, "n").await.expect("counted");
    assert_eq!(count.number_value, Some(3));
    // Nothing was written into the project.
    let after = std::fs::read_to_string(folder.join("go.mod")).expect("there");
    assert_eq!(after, module);
    assert_eq!(std::fs::read_dir(&folder).expect("there").count(), 2);
    stage.end().await;
}

#[tokio::test]
async fn a_built_program_is_uploaded_and_run() {
    let stage = Stage::new().await;
    let source = stage.file("main.go", GO);
    let program = geminga_functions::runtime::go::build(&source)
        .await
        .expect("built");
    let (input, output) = (stage.topic("in"), stage.topic("out"));
    let mut out = stage.consumer(&output).await;
    let config: geminga_model::FunctionConfig = serde_json::from_value(
        json!({"name": "uploaded", "go": "function", "inputs": [&input], "output": &output}),
    )
    .expect("a config");
    let upload = Upload::new("function", std::fs::read(program).expect("read"));
    stage
        .worker
        .create(config.into(), Some(upload))
        .await
        .expect("created");
    stage.send(&input, ["x"]).await;
    assert_eq!(texts(&receive(&mut out, 1).await), ["x of "]);
    stage.end().await;
}

/// Nobody says what the messages are but their topics: each is read by the schema that it was written by.
#[tokio::test]
async fn java_reads_by_the_schemas_of_its_topics() {
    let stage = Stage::new().await;
    let (typed, words, bytes) = (
        stage.topic("typed"),
        stage.topic("words"),
        stage.topic("bytes"),
    );
    let output = stage.topic("out");
    let code = r#"
import org.apache.pulsar.client.api.schema.*;
import org.apache.pulsar.functions.api.*;

public class Read implements Function<GenericRecord, String> {
    public String process(GenericRecord in, Context context) {
        Object own = in.getNativeObject();
        return in.getSchemaType() + " " + (own instanceof byte[] ? new String((byte[]) own) : own);
    }
}
"#;
    let jar = jar(&stage.file("Read.java", code)).await;
    let mut consumer = stage.consumer(&output).await;
    let inputs = [&typed, &words, &bytes];
    let id = stage
        .function(
            "f",
            json!({"jar": jar, "className": "Read", "inputs": inputs, "output": &output,
                "subscriptionPosition": "Earliest"}),
        )
        .await;
    let record = |more: &str| {
        let text = format!(
            r#"{{"type":"record","name":"R","fields":[{{"name":"value","type":"string"}}{more}]}}"#
        );
        Schema::new(SchemaType::Avro, "R", text, [])
    };
    let more = record(r#",{"name":"more","type":["null","int"],"default":null}"#);
    for (topic, schema, payload, wanted) in [
        (
            &typed,
            Some(record("")),
            &b"\x02x"[..],
            r#"AVRO {"value": "x"}"#,
        ),
        (
            &typed,
            Some(more),
            b"\x02y\x02\x0a",
            r#"AVRO {"value": "y", "more": 5}"#,
        ),
        (&typed, Some(record("")), b"\x02z", r#"AVRO {"value": "z"}"#),
        (&words, Some(Schema::string()), b"text", "STRING text"),
        (&bytes, None, b"raw", "BYTES raw"),
    ] {
        let mut builder = stage.client.producer(topic);
        if let Some(schema) = schema {
            builder = builder.schema(schema);
        }
        let producer = builder.build().await.expect("producer");
        producer
            .send(Message::new(payload.to_vec()))
            .await
            .expect("sent");
        producer.close().await.expect("closed");
        assert_eq!(texts(&receive(&mut consumer, 1).await), [wanted]);
    }
    // What is not of its schema can never be read.
    let dead = format!("{typed}-{}-DLQ", id.fqfn().replace('/', "-"));
    let mut letters = stage.consumer(&dead).await;
    let producer = stage.client.producer(&typed).schema(record(""));
    let producer = producer.build().await.expect("producer");
    producer.send(Message::new(vec![0x80])).await.expect("sent");
    let letter = receive(&mut letters, 1).await.remove(0);
    assert_eq!(letter.property("geminga.kind"), Some("data"));
    stage.end().await;
}
