use clap::Parser;
use serde_json::json;

use super::*;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    flags: FunctionFlags,
}

fn config(args: &[&str]) -> Outcome<Value> {
    let line = Line::try_parse_from(std::iter::once(&"x").chain(args)).unwrap();
    line.flags.config().map(Value::Object)
}

#[test]
fn flags_become_the_fields_that_pulsar_names() {
    let made = config(&[
        "--sh",
        "r.sh",
        "--inputs",
        "a,b",
        "--output-topic",
        "out",
        "--subs-position",
        "earliest",
        "--processing-guarantees",
        "effectively_once",
        "--cpu",
        "0.5",
        "--window-length-count",
        "3",
        "--user-config",
        r#"{"k":1}"#,
        "--auto-ack",
        "--retain-ordering",
        "false",
    ]);
    assert_eq!(
        made.unwrap(),
        json!({
            "sh": "r.sh", "inputs": ["a", "b"], "subscriptionPosition": "Earliest", "output": "out",
            "processingGuarantees": "EFFECTIVELY_ONCE", "retainOrdering": false, "autoAck": true,
            "userConfig": {"k": 1}, "resources": {"cpu": 0.5},
            "windowConfig": {"windowLengthCount": 3},
        })
    );
}

#[test]
fn flags_win_over_the_file_and_a_misspelt_field_is_refused_with_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("f.yaml");
    let path = file.to_str().unwrap();
    std::fs::write(
        &file,
        "name: f\npy: old.py\nparallelism: 2\nresources: {cpu: 1, ram: 5}\n",
    )
    .unwrap();
    let made = config(&[
        "--function-config-file",
        path,
        "--sh",
        "new.sh",
        "--ram",
        "7",
    ])
    .unwrap();
    assert_eq!(
        made,
        json!({"name": "f", "parallelism": 2, "sh": "new.sh", "resources": {"cpu": 1.0, "ram": 7}})
    );
    std::fs::write(&file, "name: f\nparalelism: 2\n").unwrap();
    let refused = config(&["--function-config-file", path]).unwrap_err();
    let shown = refused.diagnostics[0].to_string();
    assert!(
        shown.contains("`paralelism`") && shown.contains("did you mean `parallelism`"),
        "{shown}"
    );
    assert!(shown.contains("f.yaml:2"), "{shown}");
    let refused = config(&["--producer-config", r#"{"compressionTyp":"LZ4"}"#]).unwrap_err();
    assert!(
        refused.diagnostics[0].message.contains("`compressionType`"),
        "{refused:?}"
    );
}

#[test]
fn the_spellings_of_pulsar_admin_are_understood() {
    let respelled = |line: &str| respell(line.split(' ').map(str::to_owned).collect()).join(" ");
    for (typed, meant) in [
        (
            "g functions create -o out -st json",
            "g functions create --output-topic out --schema-type json",
        ),
        (
            "g functions create --output=x",
            "g functions create --output-topic=x",
        ),
        ("g -o json functions list", "g -o json functions list"),
        ("g functions list -o json", "g functions list -o json"),
        (
            "g sources create -st json -o yaml",
            "g sources create --schema-type json -o yaml",
        ),
    ] {
        assert_eq!(respelled(typed), meant);
    }
}
