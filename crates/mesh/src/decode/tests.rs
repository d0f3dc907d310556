use geminga_model::FunctionConfig;

use super::*;

fn read(text: &str) -> Result<FunctionConfig, String> {
    let documents = crate::node::parse(Path::new("f.yaml"), text).expect(text);
    decode_document(&documents[0]).map_err(|all| {
        all.iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n")
    })
}

#[test]
fn reads_every_kind_of_field() {
    let config = read(
        "name: f\ninputs: [a, b]\ninputSpecs: {c: {isRegexPattern: true}}\nparallelism: 2\n\
         resources: {cpu: 2, ram: 1024}\nuserConfig: {x: [1, 2.5, ~, {y: z}]}\n\
         processingGuarantees: MANUAL\nretainOrdering: true\noutput:\n",
    )
    .expect("reads");
    assert_eq!(
        serde_json::to_string(&config).expect("writes"),
        r#"{"name":"f","inputs":["a","b"],"inputSpecs":{"c":{"regexPattern":true}},"#.to_owned()
            + r#""processingGuarantees":"MANUAL","retainOrdering":true,"#
            + r#""userConfig":{"x":[1,2.5,null,{"y":"z"}]},"parallelism":2,"#
            + r#""resources":{"cpu":2.0,"ram":1024}}"#
    );
}

#[test]
fn what_is_wrong_and_where() {
    for (text, want) in [
        (
            "name: f\nparalelism: 2\n",
            "error[G0301]: unknown field `paralelism` in FunctionConfig\n  --> f.yaml:2:1\n  \
             = help: did you mean `parallelism`?",
        ),
        (
            "inptus: [a]\noutptu: b\n",
            "error[G0301]: unknown field `inptus` in FunctionConfig\n  --> f.yaml:1:1\n  \
             = help: did you mean `inputs`?\n\
             error[G0301]: unknown field `outptu` in FunctionConfig\n  --> f.yaml:2:1\n  \
             = help: did you mean `output`?",
        ),
        (
            "processingGuarantees: atleast_once\n",
            "error[G0302]: `processingGuarantees`: unknown value `atleast_once`\n  \
             --> f.yaml:1:23\n  = help: did you mean `ATLEAST_ONCE`? Known values are \
             `ATLEAST_ONCE`, `ATMOST_ONCE`, `EFFECTIVELY_ONCE`, `MANUAL`",
        ),
        (
            "inputSpecs:\n  a:\n    recieverQueueSize: 5\n",
            "error[G0301]: unknown field `recieverQueueSize` in ConsumerConfig\n  \
             --> f.yaml:3:5\n  = help: did you mean `receiverQueueSize`?",
        ),
        (
            "parallelism: two\n",
            "error[G0302]: `parallelism`: expected a whole number of at most 32 bits, found the \
             text `two`\n  --> f.yaml:1:14",
        ),
        (
            "parallelism: 99999999999\n",
            "error[G0302]: `parallelism`: expected a whole number of at most 32 bits, found \
             integer `99999999999`\n  --> f.yaml:1:14",
        ),
        (
            "name: 12\n",
            "error[G0302]: `name`: expected text, found the number 12\n  --> f.yaml:1:7\n  \
             = help: put it in quotes",
        ),
        (
            "inputs: a\n",
            "error[G0302]: `inputs`: expected a list, found the text `a`\n  --> f.yaml:1:9",
        ),
        (
            "inputs:\n  - a\n  - {b: c}\n",
            "error[G0302]: expected text, found a map\n  --> f.yaml:3:5",
        ),
        (
            "retainOrdering: yes\n",
            "error[G0302]: `retainOrdering`: expected true or false, found the text `yes`\n  \
             --> f.yaml:1:17",
        ),
        (
            "resources: 5\n",
            "error[G0302]: `resources`: expected a map, found the number 5\n  --> f.yaml:1:12",
        ),
        (
            "runtime: [a]\n",
            "error[G0302]: `runtime`: expected one of `JAVA`, `PYTHON`, `GO`, `BASH`, `EXEC`, `WASM`, found a list\n  --> f.yaml:1:10",
        ),
    ] {
        assert_eq!(read(text).expect_err(text), want, "{text}");
    }
}

#[test]
fn a_field_far_from_any_name_gets_the_list() {
    let said = read("resources: {gpu_count_per_node: 1}\n").expect_err("unknown");
    assert_eq!(
        said,
        "error[G0301]: unknown field `gpu_count_per_node` in Resources\n  --> f.yaml:1:13\n  \
         = help: known fields are `cpu`, `ram`, `disk`"
    );
}
