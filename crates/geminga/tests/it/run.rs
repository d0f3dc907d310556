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
