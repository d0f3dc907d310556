//! `geminga init`, `test` and `dev`: a template passes its own cases, a failing case says the difference, and
//! what is saved takes the place of what runs without an event lost.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::{geminga, text};

fn run(directory: &Path, words: &str, exit: i32) -> (String, String) {
    let output: Output = geminga()
        .current_dir(directory)
        .args(words.split(' '))
        .output()
        .expect("runs");
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(exit), "{words}\n{out}{err}");
    (out, err)
}

fn edit(path: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).expect("reads");
    assert!(text.contains(from), "{text}");
    // As editors do: written beside, then renamed.
    let next = path.with_extension("next~");
    std::fs::write(&next, text.replace(from, to)).expect("writes");
    let about = std::fs::metadata(path).expect("there").permissions();
    std::fs::set_permissions(&next, about).expect("set");
    std::fs::rename(&next, path).expect("renames");
}

#[test]
fn each_template_passes_its_own_cases() {
    let directory = tempfile::tempdir().expect("a directory");
    // Unoptimised, the compiler takes longer than a module may.
    let wasm = cfg!(all(feature = "wasm", not(debug_assertions))).then_some("wasm");
    for language in ["bash", "python", "go", "java", "exec"]
        .into_iter()
        .chain(wasm)
    {
        let (files, next) = run(
            directory.path(),
            &format!("init {language} my-{language}"),
            0,
        );
        assert!(
            files.contains(&format!("my-{language}/function.yaml")),
            "{files}"
        );
        assert!(
            next.contains(&format!("geminga test my-{language}")),
            "{next}"
        );
        let (out, _) = run(directory.path(), &format!("test my-{language}"), 0);
        assert!(out.ends_with("4 passed, 0 failed\n"), "{language}\n{out}");
    }
    let (_, said) = run(directory.path(), "init bash my-bash", 4);
    assert!(
        said.contains("error[G0424]") && said.contains("nothing was written"),
        "{said}"
    );
}

#[test]
fn cases_are_found_by_the_function_that_they_are_of() {
    let directory = tempfile::tempdir().expect("a directory");
    let here = directory.path();
    // A function's own output is not what its input was meant to be.
    run(here, "init bash bash", 0);
    for named in [
        "bash/function.yaml",
        "bash/function.sh",
        "bash/function.test.yaml",
    ] {
        let (out, said) = run(here, &format!("test {named}"), 0);
        assert!(out.ends_with("4 passed, 0 failed\n"), "{named}\n{out}");
        assert_eq!(said, "", "{named}");
    }
    let (_, said) = run(here, "test nothing", 2);
    assert!(
        said.contains("there is no `nothing`") && said.contains("help:"),
        "{said}"
    );
}

#[test]
fn a_case_that_fails_says_the_difference_and_may_be_accepted() {
    let directory = tempfile::tempdir().expect("a directory");
    let here = directory.path();
    run(here, "init bash f", 0);
    let cases = here.join("f/function.test.yaml");
    edit(&cases, "output: hello!", "output: goodbye!");
    edit(&cases, "state: {seen: 4}", "state: {seen: 5}");
    let (out, said) = run(here, "test --junit results.xml", 1);
    let difference =
        "        @@ -1,2 +1,2 @@\n         outputs:\n        -  - goodbye!\n        +  - hello!\n";
    assert!(out.contains(difference), "{out}");
    assert!(
        out.contains("-  seen: 5\n") && out.contains("+  seen: 4\n"),
        "{out}"
    );
    assert!(out.ends_with("2 passed, 2 failed\n"), "{out}");
    assert!(said.contains("error[G0420]: 2 of 4 cases failed"), "{said}");
    let junit = std::fs::read_to_string(here.join("results.xml")).expect("written");
    assert!(
        junit.contains("<testsuites tests=\"4\" failures=\"2\""),
        "{junit}"
    );
    let json: serde_json::Value = {
        let output = geminga()
            .current_dir(here)
            .args(["test", "-o", "json"])
            .output();
        let output = output.expect("runs");
        assert_eq!(output.status.code(), Some(1));
        serde_json::from_slice(&output.stdout).expect("JSON")
    };
    assert_eq!((&json["passed"], &json["failed"]), (&2.into(), &2.into()));
    assert_eq!(json["cases"][0]["line"], 3);

    let (_, said) = run(here, "test f --update", 0);
    assert!(said.contains("2 cases updated"), "{said}");
    let text = std::fs::read_to_string(&cases).expect("reads");
    assert!(
        text.contains("  seen: 4") && text.contains("# Cases of function.yaml"),
        "{text}"
    );
    run(here, "test", 0);
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let directory = tempfile::tempdir().expect("a directory");
    let here = directory.path();
    for (language, code, wrong, place) in [
        ("bash", "function.sh", "if true; then\n", "function.sh:"),
        ("python", "function.py", "def f(:\n", "function.py:1"),
        (
            "go",
            "main.go",
            "package main\nfunc f() { x }\n",
            "main.go:2:",
        ),
        (
            "java",
            "src/main/java/example/Exclaim.java",
            "package example; class Exclaim { int x = ; }",
            "Exclaim.java:1",
        ),
    ] {
        run(here, &format!("init {language} {language}"), 0);
        std::fs::write(here.join(language).join(code), wrong).expect("writes");
        let (_, said) = run(here, &format!("test {language}"), 1);
        assert!(
            said.contains(&format!(
                "error[G0412]: function `{language}` does not start"
            )),
            "{said}"
        );
        assert!(
            said.contains("--> ") && said.contains(place),
            "{language}\n{said}"
        );
    }
    let (_, said) = run(here, "test nowhere", 2);
    assert!(said.contains("there is no `nowhere`"), "{said}");
    std::fs::create_dir(here.join("empty")).expect("made");
    let (_, said) = run(here, "test empty", 3);
    assert!(
        said.contains("error[G0422]") && said.contains("geminga init"),
        "{said}"
    );
    std::fs::write(
        here.join("empty/x.test.yaml"),
        "cases:\n  - name: x\n    inptu: a\n",
    )
    .expect("writes");
    let (_, said) = run(here, "test empty", 2);
    assert!(
        said.contains("did you mean `input`?") && said.contains("x.test.yaml:3:5"),
        "{said}"
    );
}

/// A `geminga dev` under test.
struct Dev {
    child: Child,
    stdin: ChildStdin,
    out: Arc<Mutex<Vec<String>>>,
    said: Arc<Mutex<Vec<String>>>,
}

fn lines(from: impl std::io::Read + Send + 'static) -> Arc<Mutex<Vec<String>>> {
    let all = Arc::new(Mutex::new(Vec::new()));
    let into = all.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            into.lock().expect("no panic").push(line);
        }
    });
    all
}

impl Dev {
    fn start(here: &Path, path: &str) -> Self {
        Self::start_with(here, &[path, "--watch"])
    }

    /// Its copies are in `here/tmp`.
    fn start_with(here: &Path, words: &[&str]) -> Self {
        std::fs::create_dir_all(here.join("tmp")).expect("made");
        let mut child = geminga()
            .current_dir(here)
            .env("TMPDIR", here.join("tmp"))
            .args(["dev", "--port", "0", "--http-port", "0"])
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        Self {
            stdin: child.stdin.take().expect("a pipe"),
            out: lines(child.stdout.take().expect("a pipe")),
            said: lines(child.stderr.take().expect("a pipe")),
            child,
        }
    }

    fn send(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").expect("writes");
        self.stdin.flush().expect("flushes");
    }

    fn until(&self, what: &str, ready: impl Fn(&[String], &[String]) -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let (out, said) = (
                self.out.lock().expect("whole"),
                self.said.lock().expect("whole"),
            );
            if ready(&out, &said) {
                return;
            }
            assert!(Instant::now() < end, "never: {what}\n{out:?}\n{said:#?}");
            drop((out, said));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn said(&self, what: &str) {
        self.until(what, |_, said| said.iter().any(|line| line.contains(what)));
    }

    fn gave(&self, what: &str) {
        self.until(what, |out, _| out.iter().any(|line| line == what));
    }

    fn end(mut self) {
        let pid = self.child.id().to_string();
        let sent = std::process::Command::new("kill").arg(&pid).status();
        assert!(sent.expect("kill runs").success());
        assert!(self.child.wait().expect("ends").success());
    }
}

#[test]
fn a_save_takes_effect_and_what_is_wrong_does_not() {
    let directory = tempfile::tempdir().expect("a directory");
    let here = directory.path();
    for (language, code, from, to, wrong) in [
        (
            "bash",
            "function.sh",
            "emit \"$MSG",
            "emit \"NEW $MSG",
            "emit \"$MSG$REPLY\"\n}}\n",
        ),
        (
            "python",
            "function.py",
            "return text",
            "return 'NEW ' + text",
            "return (text",
        ),
    ] {
        run(here, &format!("init {language} {language}"), 0);
        let code = here.join(language).join(code);
        let good = std::fs::read_to_string(&code).expect("reads");
        let mut dev = Dev::start(here, language);
        dev.said("stop it with Ctrl-C");
        dev.send("one");
        dev.gave("one!");
        std::fs::write(&code, good.replace(from, wrong)).expect("writes");
        dev.said("the version before goes on");
        dev.said(&format!(
            "--> {}",
            Path::new(language)
                .join(code.file_name().expect("a name"))
                .display()
        ));
        dev.send("two");
        dev.gave("two!");
        std::fs::write(&code, &good).expect("writes");
        edit(&code, from, to);
        dev.said(" saved: version ");
        dev.send("three");
        dev.gave("NEW three!");
        assert_eq!(copies(here), 2, "the one that runs and the one before");
        dev.end();
        assert_eq!(copies(here), 0);
    }
}

/// Copies of versions that are there.
fn copies(here: &Path) -> usize {
    let folders = std::fs::read_dir(here.join("tmp")).expect("reads");
    let own = folders
        .map(|entry| entry.expect("reads").path())
        .filter(|path| path.to_string_lossy().contains("geminga-dev-"));
    own.map(|path| std::fs::read_dir(path).expect("reads").count())
        .sum()
}

#[test]
fn a_second_start_with_the_same_data_goes_on() {
    let directory = tempfile::tempdir().expect("a directory");
    let here = directory.path();
    run(here, "init bash f", 0);
    for (from, to, line, answer) in [
        ("emit", "emit", "one", "one!"),
        ("emit \"$MSG", "emit \"NEW $MSG", "two", "NEW two!"),
    ] {
        edit(&here.join("f/function.sh"), from, to);
        let mut dev = Dev::start_with(here, &["f", "--data", "data"]);
        dev.said("stop it with Ctrl-C");
        dev.send(line);
        dev.gave(answer);
        dev.end();
    }
}

#[test]
fn what_is_taken_out_of_the_file_is_in_force_no_more() {
    let directory = tempfile::tempdir().expect("a directory");
    let here = directory.path();
    run(here, "init bash f", 0);
    let config = here.join("f/function.yaml");
    edit(&config, "mark: \"!\"", "mark: \"?\"");
    let mut dev = Dev::start(here, "f");
    dev.said("stop it with Ctrl-C");
    dev.send("one");
    dev.gave("one?");
    edit(&config, "userConfig:\n  mark: \"?\"\n", "");
    dev.said(" saved: version ");
    dev.send("two");
    dev.gave("two!");
    edit(&config, "inputs: [f-in]", "inputs: [other]");
    dev.said("f-in` may not be left out");
    dev.said("needs a new start of `geminga dev`");
    dev.send("three");
    dev.gave("three!");
    dev.end();
}

#[test]
fn cases_are_found_in_a_folder_with_much_else() {
    let directory = tempfile::tempdir().expect("a directory");
    let here = directory.path();
    run(here, "init bash f", 0);
    for number in 0..6_000 {
        std::fs::write(here.join(format!("{number}")), "").expect("written");
    }
    std::os::unix::fs::symlink(here, here.join("f/again")).expect("linked");
    run(here, "test", 0);
}

#[test]
fn no_event_is_lost_by_reloads() {
    const RELOADS: usize = 5;
    const EACH: usize = 200;
    let directory = tempfile::tempdir().expect("a directory");
    let here = directory.path();
    run(here, "init python f", 0);
    let code = here.join("f/function.py");
    let mut dev = Dev::start(here, "f");
    dev.said("stop it with Ctrl-C");
    let good = std::fs::read_to_string(&code).expect("reads");
    for round in 0..RELOADS {
        for number in 0..EACH / 2 {
            dev.send(&format!("m{round}.{number}"));
        }
        let text = good.replace("return text", &format!("return 'v{round} ' + text"));
        std::fs::write(&code, text).expect("writes");
        for number in EACH / 2..EACH {
            dev.send(&format!("m{round}.{number}"));
        }
        let reloaded = |said: &[String]| {
            said.iter()
                .filter(|it| it.contains(" saved: version "))
                .count()
        };
        dev.until("reloaded", |_, said| reloaded(said) == round + 1);
    }
    let sent: std::collections::BTreeSet<String> = (0..RELOADS)
        .flat_map(|round| (0..EACH).map(move |number| format!("m{round}.{number}!")))
        .collect();
    dev.until("all events", |out, _| {
        let got = out
            .iter()
            .filter_map(|line| line.rsplit(' ').next().map(str::to_owned));
        got.collect::<std::collections::BTreeSet<_>>() == sent
    });
    dev.end();
}
