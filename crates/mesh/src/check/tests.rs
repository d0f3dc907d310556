use super::*;
use crate::plan::plan;

/// A mesh with one function, a part of which is replaced.
fn mesh(from: &str, to: &str) -> String {
    let text = "\
apiVersion: compute.functionmesh.io/v1alpha1
kind: FunctionMesh
metadata:
  name: m
spec:
  sources:
    - name: reader
      sourceType: file
      sourceConfig:
        path: in.jsonl
      output:
        topic: events
  functions:
    - name: first
      genericRuntime: {functionFile: first.sh, language: bash}
      input:
        topics: [events]
      output:
        topic: middle
    - name: second
      python: {py: second.py}
      className: second
      input:
        topics: [middle]
      output:
        topic: done
  sinks:
    - name: writer
      sinkType: file
      sinkConfig: {path: out.jsonl}
      input:
        topics: [done]
";
    assert!(from.is_empty() || text.contains(from), "{from}");
    text.replacen(from, to, 1)
}

fn look(path: &Path) -> FileKind {
    match path.file_name().and_then(|name| name.to_str()) {
        Some("absent.sh" | "absent.jsonl") => FileKind::Missing,
        Some("folder") => FileKind::Directory,
        _ => FileKind::File,
    }
}

/// What is said of a mesh file: errors, or the warnings of a plan.
fn said(text: &str) -> String {
    said_with(text, &|_| Vec::new())
}

fn said_with(text: &str, refusals: &dyn Fn(&Config) -> Vec<Refusal>) -> String {
    let all = match plan([(Path::new("dir/m.yaml"), text)], &look, refusals) {
        Ok(plan) => plan.warnings,
        Err(found) => found,
    };
    all.iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn a_good_mesh_says_nothing() {
    assert_eq!(said(&mesh("", "")), "");
}

#[test]
fn what_is_wrong_and_where() {
    for (from, to, want) in [
        (
            "className: second",
            "clasName: second",
            "error[G0301]: unknown field `clasName` in FunctionSpec\n  --> dir/m.yaml:22:7\n  \
             = help: did you mean `className`?",
        ),
        (
            "topic: done",
            "topic: events",
            "error[G0311]: events go round in a circle for ever\n  --> dir/m.yaml:19:16\n  \
             = cause: first --middle--> second --events--> first\n  \
             = help: let one of them write to another topic",
        ),
        (
            "topic: middle",
            "topic: persistent://public/default/events",
            "error[G0307]: function `first`: `events` is both input and output: an endless loop\n  \
             --> dir/m.yaml:19:16\n  = help: write the output to another topic",
        ),
        (
            "functionFile: first.sh",
            "functionFile: absent.sh",
            "error[G0313]: function `first` has no code: there is no file `dir/absent.sh`\n  \
             --> dir/m.yaml:15:38\n  = help: a path is relative to the file that names it",
        ),
        (
            "functionFile: first.sh",
            "functionFile: folder",
            "error[G0313]: code of function `first`: `dir/folder` is a directory\n  \
             --> dir/m.yaml:15:38",
        ),
        ("py: second.py", "py: folder", ""),
        (
            "functionFile: first.sh, language: bash",
            "functionFile: folder, language: wasm",
            "",
        ),
        (
            "language: bash",
            "language: executable",
            "error[G0313]: code of function `first`: `dir/first.sh` may not be executed\n  \
             --> dir/m.yaml:15:38\n  = help: chmod +x dir/first.sh",
        ),
        (
            "path: in.jsonl",
            "path: absent.jsonl",
            "error[G0307]: source `reader`: there is no file `dir/absent.jsonl`\n  \
             --> dir/m.yaml:10:9",
        ),
        (
            "path: in.jsonl",
            "pth: in.jsonl",
            "error[G0301]: unknown field `pth` in FileSource\n  --> dir/m.yaml:10:9\n  \
             = help: did you mean `path`?",
        ),
        (
            "sourceType: file",
            "sourceType: fil",
            "error[G0309]: there is no built-in source `fil`\n  --> dir/m.yaml:8:19\n  \
             = help: did you mean `file`? Built in are file",
        ),
        (
            "name: second",
            "name: writer",
            "error[G0312]: the name `writer` is taken twice\n  --> dir/m.yaml:28:13\n  \
             = cause: a function of that name stands at dir/m.yaml:20:13\n  \
             = help: sources, functions and sinks of one namespace share their names",
        ),
        (
            "topics: [middle]",
            "topics: [midle]",
            "warning[G0314]: nothing here writes topic `midle`, which function `second` reads\n  \
             --> dir/m.yaml:24:18\n  = help: did you mean `middle`? If it comes from outside, all \
             is well",
        ),
        ("topics: [events]", "topics: [elsewhere]", ""),
        // Its own output is `done`.
        ("topics: [middle]", "topics: [don]", ""),
        (
            "className: second",
            "processingGuarantee: ATLEAST_ONCE",
            "error[G0302]: `processingGuarantee`: unknown value `ATLEAST_ONCE`\n  \
             --> dir/m.yaml:22:28\n  = help: did you mean `atleast_once`? Known values are \
             `atleast_once`, `atmost_once`, `effectively_once`, `manual`",
        ),
        (
            "className: second",
            "timeout: 0",
            "error[G0307]: function `second`: `timeoutMs` must be positive, it is 0\n  \
             --> dir/m.yaml:22:16",
        ),
        (
            "className: second",
            "secretsMap: {A: {path: p, key: k}}",
            "error[G0308]: `secretsMap` of `second` cannot be honoured here\n  \
             --> dir/m.yaml:22:7\n  = cause: it names Secrets of Kubernetes, which are not here: a plain configuration \
             has `secrets`, each {\"file\": \"/where/it/is/mounted\"}, {\"env\": \"NAME\"} or {\"command\": [..]}",
        ),
        (
            "className: second",
            "resources: {limits: {memory: lots}}",
            "error[G0308]: `resources` of `second` cannot be honoured here\n  \
             --> dir/m.yaml:22:7\n  = cause: `\"lots\"` is not a quantity such as 200m or 1Gi",
        ),
        (
            "className: second",
            "resources: {requests: {cpu: 200m}, limits: {cpu: 500m, memory: 1Gi}}",
            "",
        ),
        (
            "kind: FunctionMesh",
            "kind: FunctionMsh",
            "error[G0306]: unknown kind `FunctionMsh`\n  --> dir/m.yaml:2:7\n  \
             = help: did you mean `FunctionMesh`? known kinds are `Function`, `Source`, `Sink`, \
             `FunctionMesh`",
        ),
        (
            "v1alpha1",
            "v1",
            "error[G0306]: `apiVersion` is `compute.functionmesh.io/v1`\n  --> dir/m.yaml:1:13\n  \
             = help: write `apiVersion: compute.functionmesh.io/v1alpha1`",
        ),
        (
            "  functions:",
            "  fucntions:",
            "error[G0301]: unknown field `fucntions` in MeshSpec\n  --> dir/m.yaml:13:3\n  \
             = help: did you mean `functions`?",
        ),
        (
            "topics: [done]",
            "topic: done",
            "error[G0301]: unknown field `topic` in InputConf\n  --> dir/m.yaml:32:9\n  \
             = help: did you mean `topics`?",
        ),
        (
            "name: m",
            "nmae: m",
            "error[G0301]: unknown field `nmae` in Metadata\n  --> dir/m.yaml:4:3\n  \
             = help: did you mean `name`?",
        ),
    ] {
        assert_eq!(said(&mesh(from, to)), want, "{to}");
    }
}

#[test]
fn every_error_of_a_file_is_told() {
    let text = mesh("className: second", "clasName: second").replace("sinkType", "snkType");
    let codes: Vec<_> = said(&text)
        .lines()
        .filter(|line| line.starts_with("error"))
        .map(str::to_owned)
        .collect();
    assert_eq!(
        codes,
        [
            "error[G0301]: unknown field `clasName` in FunctionSpec",
            "error[G0301]: unknown field `snkType` in SinkSpec",
        ]
    );
}

/// Each at the best place that there is.
#[test]
fn what_the_worker_refuses_is_told_at_its_place() {
    let refuse = |of: &'static str, field: &'static [&'static str]| {
        move |config: &Config| {
            let (name, code) = match config {
                Config::Function(config) => (config.name(), config.code().map(|(_, code)| code)),
                Config::Source(config) => (config.name.as_deref(), None),
                Config::Sink(config) => (config.name.as_deref(), None),
            };
            if name != Some(of) {
                return Vec::new();
            }
            // It is asked of what would be sent.
            assert!(code.is_none_or(|code| code.starts_with("dir/")), "{code:?}");
            let field = field.iter().map(|&step| step.to_owned()).collect();
            vec![Refusal {
                field,
                why: "no".to_owned(),
            }]
        }
    };
    let whole = mesh("", "");
    let plain = "name: f\nsh: f.sh\ninputs:\n- a\n- persistent://public/default/b\ninputSpecs:\n  c:\n    poolMessages: true\n";
    for (text, name, field, want) in [
        (&*whole, "first", &["output"][..], "dir/m.yaml:19:16"),
        (&whole, "second", &["className"], "dir/m.yaml:22:18"),
        (&whole, "second", &["windowConfig"], "dir/m.yaml:20:7"),
        (
            &whole,
            "second",
            &["inputSpecs", "middle", "cryptoConfig"],
            "dir/m.yaml:24:18",
        ),
        (
            &whole,
            "second",
            &[
                "inputSpecs",
                "persistent://public/default/middle",
                "schemaType",
            ],
            "dir/m.yaml:24:18",
        ),
        (&whole, "second", &[], "dir/m.yaml:20:7"),
        (&whole, "reader", &["configs", "path"], "dir/m.yaml:10:15"),
        (&whole, "writer", &["configs", "limit"], "dir/m.yaml:30:7"),
        (
            plain,
            "f",
            &["inputSpecs", "c", "poolMessages"],
            "dir/m.yaml:8:19",
        ),
        (
            plain,
            "f",
            &["inputSpecs", "c", "schemaType"],
            "dir/m.yaml:7:3",
        ),
        (
            plain,
            "f",
            &["inputSpecs", "persistent://public/default/b"],
            "dir/m.yaml:5:3",
        ),
        (plain, "f", &["secrets"], "dir/m.yaml:1:1"),
    ] {
        let said = said_with(text, &refuse(name, field));
        let (head, place) = said.split_once("\n  --> ").expect("it has a place");
        assert!(
            head.starts_with("error[G0308]: ") && head.ends_with(&format!("`{name}`: no")),
            "{said}"
        );
        assert_eq!(place, want, "{name} {field:?}");
    }
}

#[test]
fn the_worker_is_not_asked_of_what_is_wrong_anyway() {
    let wrong = mesh("className: second", "timeout: 0");
    let said = said_with(&wrong, &|config| match config {
        Config::Function(config) if config.name() == Some("second") => panic!("asked"),
        _ => Vec::new(),
    });
    assert!(said.starts_with("error[G0307]"), "{said}");
}
