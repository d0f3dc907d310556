//! Types, SerDe classes and schemas, of which only some runtimes take all.

use geminga_client::{Schema, SchemaType};
use serde_json::json;

use super::case::{Case, keep};
use crate::stage::receive;

pub(super) async fn types(case: &mut Case<'_>) {
    let (input, output) = (case.topic("in"), case.topic("out"));
    let mut given = json!({});
    if case.runtime == "java" {
        given["inputTypeClassName"] = json!("java.lang.String");
        given["outputTypeClassName"] = json!("java.lang.String");
    }
    let serde = match case.runtime {
        "python" => Some("Echo.Marked"),
        "java" => Some("Marked"),
        _ => None,
    };
    if let Some(serde) = serde {
        given["customSerdeInputs"] = json!({&input: serde});
        given["outputSerdeClassName"] = json!(serde);
    }
    let id = case.make(given).await;
    case.stage.send(&input, ["a"]).await;
    let wanted = match serde {
        Some(_) => ">a< none none",
        None => "a none none",
    };
    assert_eq!(case.outputs(&output, 1).await, [wanted], "{}", case.runtime);
    if case.runtime == "java" {
        case.see(&["inputTypeClassName", "outputTypeClassName"]);
    }
    match case.runtime {
        "python" | "java" => case.see(&[
            "customSerdeInputs",
            "inputSpecs.serdeClassName",
            "outputSerdeClassName",
        ]),
        _ => {}
    }
    case.stage.worker.delete(&id).await.expect("deleted");
    defined(case).await;
    if case.runtime == "python" {
        records(case).await;
    }
}

/// A definition that the configuration gives: any language writes by it.
async fn defined(case: &mut Case<'_>) {
    let (input, output) = (case.topic("in"), case.topic("out"));
    let definition = r#"{"type":"record","name":"Word","fields":[]}"#;
    let properties = json!({"schema": definition, "a": "b"});
    let schema = json!({"schemaType": "json", "schemaProperties": properties}).to_string();
    let mut given = json!({"customSchemaOutputs": {&output: schema}});
    if case.runtime == "java" {
        // Its host has the definition, of the class; what is text needs none.
        let schema = json!({"schemaType": "string"}).to_string();
        given = json!({"customSchemaOutputs": {&output: schema}});
    }
    let id = case.make(given).await;
    case.stage.send(&input, ["a"]).await;
    let mut consumer = keep(case.stage, &output).await;
    assert!(receive(&mut consumer, 1).await[0].schema_version.is_some());
    let schema = case.schema(&output).await.expect("the topic has it");
    match case.runtime {
        "java" => assert_eq!(schema, Schema::string()),
        _ => {
            let properties = [("a".to_owned(), "b".to_owned())];
            let wanted = Schema::new(SchemaType::Json, "Word", definition, properties);
            assert_eq!(schema, wanted, "{}", case.runtime);
        }
    }
    case.see(&["customSchemaOutputs"]);
    case.stage.worker.delete(&id).await.expect("deleted");
}

/// A schema that is made of a class of the function.
async fn records(case: &mut Case<'_>) {
    let (input, output) = (case.topic("in"), case.topic("out"));
    let given = json!({"inputSpecs": {&input: {"schemaType": "Echo.Schema"}}, "inputTypeClassName": "Echo.Word",
        "outputSchemaType": "Echo.Schema", "outputTypeClassName": "Echo.Word"});
    let id = case.make(given).await;
    case.stage.send(&input, ["a"]).await;
    assert_eq!(case.outputs(&output, 1).await, ["}a{ none none"]);
    for topic in [&input, &output] {
        let schema = case.schema(topic).await.expect("the topic has it");
        assert_eq!((schema.kind(), schema.name()), (SchemaType::Json, "Word"));
    }
    case.see(&["inputTypeClassName", "outputTypeClassName"]);
    case.stage.worker.delete(&id).await.expect("deleted");
}
