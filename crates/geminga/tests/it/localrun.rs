//! `geminga functions localrun`: on a named broker, on one of its own, and when it can not run.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use crate::server::Server;
use crate::{geminga, text};

/// A `functions localrun` that has said that it runs.
struct Local {
    child: Child,
    /// What it said, and where its broker is.
    said: String,
    service_url: String,
}

impl Local {
    fn start(words: &str) -> Self {
        let mut child = geminga()
            .args(["functions", "localrun"])
            .args(words.split(' '))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut said = String::new();
        while !said.contains(" runs on ") {
            let count = lines.read_line(&mut said).expect("reads");
            assert!(count > 0, "localrun {words} ended: {said}");
        }
        // Its log goes on: somebody has to read it.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        let url = said.split(" runs on ").nth(1).expect("an address");
        let end = url.find([';', ',']).expect("the address ends");
        let service_url = url[..end].to_owned();
        Self {
            child,
            said,
            service_url,
        }
    }

    /// Sends one message in and gives what comes out.
    fn through(&self, input: &str, output: &str, message: &str) -> String {
        let run = |words: &[&str]| {
            let ran = geminga()
                .env("GEMINGA_SERVICE_URL", &self.service_url)
                .args(words)
                .output()
                .expect("runs");
            assert!(ran.status.success(), "{words:?}: {}", text(&ran.stderr));
            text(&ran.stdout)
        };
        run(&["produce", input, "-m", message]);
        run(&["consume", output, "--from", "earliest", "-n", "1"])
    }

    /// Ends it by SIGTERM, as a service manager does.
    fn end(mut self) {
        let pid = self.child.id().to_string();
        let sent = std::process::Command::new("kill").arg(&pid).status();
        assert!(sent.expect("kill runs").success());
        assert!(self.child.wait().expect("ends").success());
    }
}

#[test]
fn localrun_runs_a_function_on_a_named_broker_and_registers_nothing() {
    let server = Server::ephemeral();
    let directory = tempfile::tempdir().expect("a directory");
    let script = directory.path().join("loud.sh");
    std::fs::write(&script, "tr a-z A-Z\n").expect("writes");
    let script = script.display();
    let local = Local::start(&format!(
        "--broker-service-url {} --sh {script} --inputs said --output shouted --parallelism 2 --processing-guarantees EFFECTIVELY_ONCE",
        server.service_url
    ));
    assert_eq!(local.service_url, server.service_url);
    let warned = |line: &str| line.starts_with("warning: ") && line.contains("`parallelism: 2`");
    assert!(local.said.lines().any(warned), "{}", local.said);
    assert_eq!(local.through("said", "shouted", "hello"), "HELLO\n");
    let (out, _) = server.check("functions list -o name", 0);
    assert_eq!(out, "", "localrun registers nothing");
    local.end();
}

#[test]
fn localrun_brings_a_broker_of_its_own() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("count.py");
    std::fs::write(
        &file,
        "class Count:\n    def process(self, input, context):\n        \
         context.incr_counter('n', 1)\n        return '%s %d' % (input, context.get_counter('n'))\n",
    )
    .expect("writes");
    let local = Local::start(&format!(
        "--broker-service-url embedded --py {} --classname count.Count --inputs a --output-topic b",
        file.display()
    ));
    assert!(local.said.contains("a broker of its own"), "{}", local.said);
    assert_eq!(local.through("a", "b", "word"), "word 1\n");
    local.end();
}

#[test]
fn localrun_of_code_that_does_not_start_ends_with_its_reason() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("bad.py");
    std::fs::write(&file, "import no_such_module\n").expect("writes");
    let file = file.display().to_string();
    for (broker, code, exit, want) in [
        (
            "embedded",
            file.as_str(),
            1,
            "error[G0412]: function `bad` cannot run",
        ),
        ("embedded", "absent.py", 2, "error[G0210]: "),
        ("pulsar://127.0.0.1:1", file.as_str(), 6, "error[G0501]: "),
    ] {
        let ran = geminga()
            .args(["functions", "localrun", "--inputs", "a", "--name", "bad"])
            .args(["--broker-service-url", broker, "--py", code])
            .output()
            .expect("runs");
        let said = text(&ran.stderr);
        assert_eq!(ran.status.code(), Some(exit), "{code} on {broker}: {said}");
        assert!(said.contains(want) && said.contains("= help: "), "{said}");
        assert_eq!(said.matches("error[").count(), 1, "{said}");
    }
}
