//! `geminga run`: the example's answer is right, a script needs no server, and what is wrong is told.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::{geminga, text};

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples")
}

/// A copy of an example, so that a run writes nothing into the project.
fn copy(name: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let status = Command::new("cp")
        .arg("-r")
        .arg(examples().join(name))
        .arg(directory.path())
        .status()
        .expect("cp runs");
    assert!(status.success());
    directory
}

fn check(directory: &Path) -> Output {
    let script = directory.join("earthquakes/check.py");
    Command::new("python3")
        .arg(script)
        .output()
        .expect("python3 runs")
}

fn with_input(args: &[&str], input: &str) -> Output {
    use std::io::Write;
    let mut child = geminga()
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    child
        .stdin
        .take()
        .expect("a pipe")
        .write_all(input.as_bytes())
        .expect("writes");
    child.wait_with_output().expect("ends")
}

#[test]
fn the_earthquakes_give_the_right_answer() {
    let directory = copy("earthquakes");
    let ran = geminga()
        .current_dir(directory.path())
        .args(["run", "earthquakes/mesh.yaml"])
        .output()
        .expect("runs");
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    let table = text(&ran.stdout);
    assert!(
        table.starts_with("Earthquakes by region\nREGION"),
        "{table}"
    );
    assert!(
        table.contains("California             817       4.33"),
        "{table}"
    );
    assert_eq!(table.lines().count(), 14, "{table}");
    let drawn = text(&ran.stderr);
    assert!(drawn.contains("│ week   file · source │"), "{drawn}");
    assert!(
        drawn.contains("strong              1707 in         85 out"),
        "{drawn}"
    );

    let checked = check(directory.path());
    assert!(checked.status.success(), "{}", text(&checked.stderr));
    // The data of a run that went well does not stay.
    assert!(!directory.path().join(".geminga").exists());

    // The check itself can fail.
    let alerts = directory.path().join("earthquakes/out/alerts.jsonl");
    let all = std::fs::read_to_string(&alerts).expect("reads");
    let (_, rest) = all.split_once('\n').expect("lines");
    std::fs::write(&alerts, rest).expect("writes");
    assert!(!check(directory.path()).status.success());
}

#[test]
fn events_that_fail_are_given_up_and_counted() {
    let directory = copy("earthquakes");
    let script = directory.path().join("earthquakes/strong.sh");
    let mut code = std::fs::read_to_string(&script).expect("reads");
    code.push_str("\nprocess() { [[ $MSG != *Hawaii* ]] || return 65; }\n");
    std::fs::write(&script, code).expect("writes");
    let ran = geminga()
        .current_dir(directory.path())
        .args(["run", "--ephemeral", "earthquakes/mesh.yaml"])
        .output()
        .expect("runs");
    let said = text(&ran.stderr);
    assert_eq!(ran.status.code(), Some(8), "{said}");
    assert!(
        said.contains("error[G0410]: 46 events could not be processed"),
        "{said}"
    );
}

#[test]
fn a_script_takes_lines_and_gives_lines() {
    let directory = copy("exclamation");
    for file in ["exclamation.sh", "exclamation.py"] {
        let path = directory.path().join("exclamation").join(file);
        let ran = with_input(&["run", &path.display().to_string()], "hello\nwörld\n");
        assert_eq!(
            text(&ran.stdout),
            "hello!\nwörld!\n",
            "{}",
            text(&ran.stderr)
        );
        assert!(ran.status.success());
    }
    let plain = directory.path().join("reverse.sh");
    std::fs::write(&plain, "#!/bin/bash\nrev\n").expect("writes");
    let input = directory.path().join("in.txt");
    std::fs::write(&input, "abc\nxyz").expect("writes");
    let ran = geminga()
        .args(["run", "--input"])
        .args([&input, &plain])
        .output()
        .expect("runs");
    assert_eq!(text(&ran.stdout), "cba\nzyx\n", "{}", text(&ran.stderr));
}

#[test]
fn bad_scripts_are_told_by_one_error() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str, code: &str| {
        let path = directory.path().join(name);
        if !code.is_empty() {
            std::fs::write(&path, code).expect("writes");
        }
        path.display().to_string()
    };
    for (file, exit, want) in [
        (path("absent.sh", ""), 2, "error[G0313]: there is no file"),
        (path("plain", "x"), 2, "may not be executed"),
        (
            path("fails.sh", "echo 'no luck' >&2; exit 1"),
            1,
            "failed on 2 of 2 lines",
        ),
        (
            path("half.sh", "read -r line; [[ $line != b ]]"),
            8,
            "failed on 1 of 2 lines",
        ),
        (path("syntax.sh", "if then"), 1, "error[G04"),
        (path("syntax.py", "def process(:\n"), 1, "error[G0412]"),
    ] {
        let ran = with_input(&["run", &file], "a\nb\n");
        let said = text(&ran.stderr);
        assert_eq!(ran.status.code(), Some(exit), "{file}: {said}");
        assert!(said.contains(want), "{file}: {said}");
        assert_eq!(said.matches("error[").count(), 1, "{file}: {said}");
    }
}

/// Each kind of bad script: one error that says what happened and what helps, the other messages
/// processed, nothing left behind.
#[test]
fn scripts_that_misbehave_are_told_by_one_error_with_help() {
    let directory = tempfile::tempdir().expect("a directory");
    let temporary = tempfile::tempdir().expect("a directory");
    let mark = format!("geminga-test-{}", std::process::id());
    for (name, on_bad, want) in [
        ("exits", "exit 1", "status 1"),
        ("hangs", "sleep 600", "not done after 500 ms"),
        (
            "floods",
            "head -c 100000000 /dev/zero | tr '\\0' x",
            "bytes of output",
        ),
        ("forks", "sleep 600 & setsid sleep 600 & exit 1", "status 1"),
        // A warm shell runs it in a subshell, and sees a status.
        ("killed", "kill -9 $BASHPID", "signal 9|status 137"),
    ] {
        for mode in ["warm", "spawn"] {
            let script = directory.path().join(format!("{name}-{mode}.sh"));
            let code = format!(
                "export MARK={mark}\nread -r line\nif [[ $line == bad ]]; then\n{on_bad}\nfi\necho \"$line!\"\n"
            );
            std::fs::write(&script, code).expect("writes");
            let mut options = serde_json::json!({"timeoutMs": 500, "killGraceMs": 50});
            if mode == "spawn" {
                options["mode"] = "spawn".into();
            }
            let mut child = geminga()
                .env("TMPDIR", temporary.path())
                .args(["run", &script.display().to_string()])
                .args(["--custom-runtime-options", &options.to_string()])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("starts");
            std::io::Write::write_all(&mut child.stdin.take().expect("a pipe"), b"a\nbad\nb\n")
                .expect("writes");
            let ran = child.wait_with_output().expect("ends");
            let said = text(&ran.stderr);
            let about = format!("{name} {mode}: {said}");
            assert_eq!(text(&ran.stdout), "a!\nb!\n", "{about}");
            assert_eq!(ran.status.code(), Some(8), "{about}");
            assert_eq!(said.matches("error[G0410]: ").count(), 1, "{about}");
            assert!(want.split('|').any(|want| said.contains(want)), "{about}");
            assert!(said.contains("= help: "), "{about}");
            let left: Vec<_> = std::fs::read_dir(temporary.path())
                .expect("reads")
                .flatten()
                .map(|entry| entry.path())
                .collect();
            assert!(left.is_empty(), "{about}: {left:?} is left");
            assert_eq!(marked(&mark), Vec::<String>::new(), "{about}");
        }
    }
}

/// Processes that have `mark` in their environment.
fn marked(mark: &str) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").expect("reads").flatten();
    processes
        .filter(|entry| {
            std::fs::read(entry.path().join("environ"))
                .is_ok_and(|environment| text(&environment).contains(mark))
        })
        .map(|entry| entry.path().display().to_string())
        .collect()
}

#[test]
fn a_killed_run_leaves_no_directory_and_no_process_behind() {
    let directory = tempfile::tempdir().expect("a directory");
    let temporary = tempfile::tempdir().expect("a directory");
    let mark = format!("geminga-killed-{}", std::process::id());
    let script = directory.path().join("waits.sh");
    let code = format!("export MARK={mark}\nread -r line; echo running >&2; sleep 600\n");
    std::fs::write(&script, code).expect("writes");
    let mut child = geminga()
        .env("TMPDIR", temporary.path())
        .args(["run", &script.display().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut input = child.stdin.take().expect("a pipe");
    std::io::Write::write_all(&mut input, b"x\n").expect("writes");
    let mut said = std::io::BufReader::new(child.stderr.take().expect("a pipe"));
    let mut line = String::new();
    while !line.contains("running") {
        line.clear();
        let count = std::io::BufRead::read_line(&mut said, &mut line).expect("reads");
        assert!(count > 0, "it ended before the script ran");
    }
    // Not the shell has the mark, but what it starts after it said so.
    let started = std::time::Instant::now();
    while marked(&mark).is_empty() {
        assert!(
            started.elapsed() < std::time::Duration::from_secs(20),
            "nothing has the mark"
        );
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    child.kill().expect("killed by SIGKILL");
    child.wait().expect("ends");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let left = || std::fs::read_dir(temporary.path()).expect("reads").count();
    while left() > 0 || !marked(&mark).is_empty() {
        assert!(
            std::time::Instant::now() < deadline,
            "{} entries and {:?} are left",
            left(),
            marked(&mark)
        );
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn flaw_23_one_binary_is_enough_and_only_sources_are_kept() {
    let directory = copy("exclamation");
    let script = directory.path().join("exclamation/exclamation.sh");
    // Nothing but the binary and a shell: no broker, no other program of ours, no settings.
    let mut child = geminga()
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("TMPDIR", directory.path())
        .args(["run", &script.display().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    std::io::Write::write_all(&mut child.stdin.take().expect("a pipe"), b"hello\n")
        .expect("writes");
    let ran = child.wait_with_output().expect("ends");
    assert_eq!(text(&ran.stdout), "hello!\n", "{}", text(&ran.stderr));

    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let listed = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(root)
        .output()
        .expect("git runs");
    assert!(listed.status.success(), "{}", text(&listed.stderr));
    let files = text(&listed.stdout);
    assert!(files.split('\0').any(|file| file == "Cargo.toml"));
    let built = ["class", "jar", "o", "so", "exe", "pyc", "pdf", "iml", "zip"];
    for file in files.split('\0') {
        let ending = Path::new(file).extension().and_then(|e| e.to_str());
        assert!(!ending.is_some_and(|e| built.contains(&e)), "{file}");
        let folders = [
            "target/",
            ".idea/",
            ".vscode/",
            "node_modules/",
            "__pycache__/",
        ];
        assert!(
            !folders.iter().any(|folder| file.contains(folder)),
            "{file}"
        );
    }
}

#[test]
fn bad_meshes_start_nothing() {
    let directory = copy("earthquakes");
    let mesh = directory.path().join("earthquakes/mesh.yaml");
    let good = std::fs::read_to_string(&mesh).expect("reads");
    for (from, to, want) in [
        (
            "maxMessageRetry",
            "maxMesageRetry",
            "did you mean `maxMessageRetry`?",
        ),
        ("topic: alerts", "topic: quakes", "an endless loop"),
        ("strong.sh", "week.sh", "there is no file"),
        ("earliest", "early", "known values are `latest`, `earliest`"),
        (
            "name: strong",
            "name: week",
            "the name `week` is taken twice",
        ),
        ("topics: [quakes]", "topics: [quakes", "not valid YAML"),
        (
            "path: data/earthquakes.jsonl",
            "path: data/none.jsonl",
            "there is no file",
        ),
    ] {
        std::fs::write(&mesh, good.replacen(from, to, 1)).expect("writes");
        for command in [&["run"][..], &["mesh", "plan"]] {
            let ran = geminga()
                .current_dir(directory.path())
                .args(command)
                .arg("earthquakes/mesh.yaml")
                .output()
                .expect("runs");
            let said = text(&ran.stderr);
            assert_eq!(ran.status.code(), Some(2), "{to}: {said}");
            assert!(said.contains(want), "{to}: {said}");
            assert!(said.contains("--> earthquakes/mesh.yaml:"), "{to}: {said}");
            assert!(ran.stdout.is_empty());
        }
    }
}

/// Nothing is asked of a server for that, and the place is that of the field.
#[test]
fn what_the_worker_refuses_is_told_before_anything_starts() {
    let directory = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| {
        std::fs::write(directory.path().join(name), text).expect("writes");
    };
    write("f.sh", "process() { emit x; }\n");
    for (text, want) in [
        (
            "name: f\nsh: f.sh\ninputs: [in]\nexposePulsarAdminClientEnabled: true\noutputSchemaType: avro\n",
            "error[G0308]: function `f`: `exposePulsarAdminClientEnabled` is not supported: functions get no client \
             from the worker: remove it, and let the code call the admin API by itself, with an address from \
             `userConfig` and a token from `secrets`\n  --> f.yaml:4:33\n\
             error[G0308]: function `f`: `outputSchemaType: avro` is not supported: avro has a definition, and nobody \
             gives it: give the definition as `schema` in the `schemaProperties` of `customSchemaOutputs`, or give the \
             topic its schema by `pulsar-admin schemas upload`, and use auto_publish\n  --> f.yaml:5:19\n",
        ),
        (
            "name: f\nsh: f.sh\ncustomSchemaInputs:\n  in: '{\"schemaType\": \"avro\"}'\n",
            "error[G0308]: function `f`: `schemaType: avro` of input `in` is not supported: avro has a definition, \
             and nobody gives it: give the definition as `schema` in the `schemaProperties` of `inputSpecs`, or remove \
             it: payloads come as they are\n  --> f.yaml:4:7\n",
        ),
        (
            "name: s\nsinkType: table\ninputs: [in]\nprocessingGuarantees: EFFECTIVELY_ONCE\n",
            "error[G0308]: sink `s`: `processingGuarantees: EFFECTIVELY_ONCE` is not supported: what a built-in \
             connector reads or writes beside the topics is in no transaction: use ATLEAST_ONCE\n  --> f.yaml:4:23\n",
        ),
        (
            "apiVersion: compute.functionmesh.io/v1alpha1\nkind: FunctionMesh\nmetadata: {name: m}\nspec:\n  \
             sources:\n    - name: s\n      sourceType: file\n      sourceConfig: {path: f.sh, numWorkers: 2}\n      \
             output: {topic: out}\n",
            "error[G0308]: source `s`: `configs.numWorkers` is not supported: one reader keeps the lines in order: \
             remove it\n  --> f.yaml:8:46\n",
        ),
    ] {
        write("f.yaml", text);
        // Nobody listens there.
        let apply = ["mesh", "apply", "--admin-url", "http://127.0.0.1:9"];
        for command in [&["run"][..], &["mesh", "plan"], &apply] {
            let ran = geminga()
                .current_dir(directory.path())
                .args(command)
                .arg("f.yaml")
                .output()
                .expect("runs");
            assert_eq!(crate::text(&ran.stderr), want, "{command:?}");
            assert_eq!(ran.status.code(), Some(2), "{command:?}");
        }
    }
}

#[test]
fn a_plan_is_for_people_and_for_machines() {
    let mesh = examples()
        .join("earthquakes/mesh.yaml")
        .display()
        .to_string();
    let plan = geminga()
        .args(["mesh", "plan", &mesh])
        .output()
        .expect("runs");
    assert!(text(&plan.stdout).contains("function     public/default/strong"));
    let plan = geminga()
        .args(["mesh", "plan", &mesh, "-o", "json"])
        .output()
        .expect("runs");
    let plan: serde_json::Value = serde_json::from_slice(&plan.stdout).expect("JSON");
    assert_eq!(plan["name"], "earthquakes");
    assert_eq!(plan["components"].as_array().map(Vec::len), Some(6));
    assert_eq!(plan["graph"]["topics"][0]["external"], false);
}
