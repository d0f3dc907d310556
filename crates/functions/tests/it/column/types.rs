//! Types, SerDe classes and schemas, of which only some runtimes take all.

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
    if let Some(serde) = match case.runtime {
        "python" => Some("serde.IdentitySerDe"),
        "java" => Some("Plain"),
        _ => None,
    } {
        given["customSerdeInputs"] = json!({&input: serde});
        given["outputSerdeClassName"] = json!(serde);
    }
    let id = case.make(given).await;
    case.stage.send(&input, ["a"]).await;
    assert_eq!(
        case.outputs(&output, 1).await,
        ["a none none"],
        "{}",
        case.runtime
    );
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
    let output = case.topic("out");
    // The schema of the output, by the other way to say it.
    let schema = json!({&output: "{\"schemaType\":\"string\"}"});
    let input = case.topic("in");
    let id = case.make(json!({"customSchemaOutputs": schema})).await;
    case.stage.send(&input, ["a"]).await;
    let mut consumer = keep(case.stage, &output).await;
    assert!(receive(&mut consumer, 1).await[0].schema_version.is_some());
    case.see(&["customSchemaOutputs"]);
    case.stage.worker.delete(&id).await.expect("deleted");
}
