//! Several `geminga worker` processes beside one `geminga standalone`, killed and frozen at random.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use geminga_stdx::Random;
use serde_json::Value;

use crate::server::Server;
use crate::{geminga, text};

const PATIENCE: Duration = Duration::from_secs(60);

struct Worker {
    process: Child,
    admin_url: String,
    id: String,
}

impl Worker {
    fn start(server: &Server, data: &Path) -> Self {
        let mut process = geminga()
            .args(["worker", "--http-port", "0", "--lease", "2", "-o", "json"])
            .args(["--service-url", &server.service_url])
            .arg("--data")
            .arg(data)
            .arg("--functions-directory")
            .arg(data.with_extension("functions"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut line = String::new();
        let stdout = process.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("reads");
        let ready: Value = serde_json::from_str(&line).expect("JSON");
        let field = |name: &str| ready[name].as_str().expect("a text").to_owned();
        Self {
            process,
            admin_url: field("adminUrl"),
            id: field("workerId"),
        }
    }

    fn signal(&self, name: &str) {
        let sent = std::process::Command::new("kill")
            .args([name, &self.process.id().to_string()])
            .status();
        assert!(sent.expect("kill runs").success());
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What a command prints, asked of one worker; empty when it fails.
fn ask(server: &Server, admin_url: &str, words: &[&str]) -> String {
    let output = geminga()
        .env("GEMINGA_ADMIN_URL", admin_url)
        .env("GEMINGA_SERVICE_URL", &server.service_url)
        .args(words)
        .output()
        .expect("runs");
    if output.status.success() {
        text(&output.stdout)
    } else {
        String::new()
    }
}

#[test]
fn workers_are_killed_and_frozen_and_nothing_is_lost() {
    let seed = std::env::var("GEMINGA_SEED")
        .ok()
        .and_then(|s| s.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| Random::from_entropy().next_u64());
    println!("GEMINGA_SEED={seed}");
    let mut random = Random::new(seed);
    let server = Server::ephemeral();
    let directory = tempfile::tempdir().expect("a directory");
    let data = |n: usize| directory.path().join(format!("w{n}"));
    let mut workers = [
        Worker::start(&server, &data(0)),
        Worker::start(&server, &data(1)),
    ];
    let script = directory.path().join("mark.sh");
    std::fs::write(&script, "process() { emit \"<$MSG>\"; }\n").expect("writes");
    let script = script.display().to_string();
    for name in ["f0", "f1", "f2"] {
        // Any worker may be asked: it sends the command on to the one that leads.
        let (input, output) = (format!("{name}-in"), format!("{name}-out"));
        let made = geminga()
            .env("GEMINGA_ADMIN_URL", &workers[0].admin_url)
            .args([
                "functions",
                "create",
                "--sh",
                &script,
                "--name",
                name,
                "--inputs",
                &input,
            ])
            .args(["--output-topic", &output, "--subs-position", "Earliest"])
            .output()
            .expect("runs");
        assert!(made.status.success(), "{}", text(&made.stderr));
        server.check(
            &format!("subscriptions create {output} judge --at earliest"),
            0,
        );
    }
    until("three workers are known to all", || {
        workers.iter().all(|worker| {
            let all = ask(
                &server,
                &worker.admin_url,
                &["functions", "status", "f0", "-o", "json"],
            );
            all.contains("\"numRunning\": 1")
        })
    });
    let mut sent: Vec<String> = Vec::new();
    for round in 0..3 {
        for n in 0..20 {
            sent.push(format!("{round}-{n}"));
        }
        for name in ["f0", "f1", "f2"] {
            let mut words = vec!["produce".to_owned(), format!("{name}-in")];
            for text in &sent[sent.len() - 20..] {
                words.extend(["-m".to_owned(), text.clone()]);
            }
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let output = server.ask(Path::new("."), &words);
            assert!(output.status.success(), "{}", text(&output.stderr));
        }
        let victim = random.below(2) as usize;
        if random.one_in(3) {
            // Frozen for longer than its lease, and awake again while another has its work.
            workers[victim].signal("-STOP");
            std::thread::sleep(Duration::from_secs(4));
            workers[victim].signal("-CONT");
        } else {
            // Gone before its successor starts, which wants its directory.
            let _ = workers[victim].process.kill();
            workers[victim].process.wait().expect("it ends");
            workers[victim] = Worker::start(&server, &data(victim));
        }
    }
    let wanted: BTreeSet<String> = sent.iter().map(|text| format!("<{text}>")).collect();
    for name in ["f0", "f1", "f2"] {
        let topic = format!("{name}-out");
        let words = [
            "consume",
            &topic,
            "--subscription",
            "judge",
            "--until-idle",
            "300ms",
        ];
        let mut seen: BTreeSet<String> = BTreeSet::new();
        until("every output is there", || {
            let output = server.ask(Path::new("."), &words);
            seen.extend(text(&output.stdout).lines().map(str::to_owned));
            seen.len() >= wanted.len()
        });
        assert_eq!(seen, wanted, "{name}");
    }
    until("each function runs once", || {
        ["f0", "f1", "f2"].iter().all(|name| {
            let said = ask(
                &server,
                &workers[0].admin_url,
                &["functions", "status", name, "-o", "json"],
            );
            let said: Value = serde_json::from_str(&said).unwrap_or_default();
            said["numRunning"] == 1
        })
    });
    let ids: BTreeSet<&str> = workers.iter().map(|worker| worker.id.as_str()).collect();
    assert_eq!(ids.len(), 2);
}

/// Whichever worker is asked, all read their folders again, and tell what of those can not be used.
#[test]
fn each_worker_reads_its_built_in_functions_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name);
    let folder = at("server.functions").display().to_string();
    let server = Server::start(&["--ephemeral", "--functions-directory", &folder]);
    let worker = Worker::start(&server, &at("worker"));
    for name in ["server", "worker"] {
        let folder = at(&format!("{name}.functions"));
        std::fs::create_dir(&folder).expect("made");
        std::fs::write(folder.join(format!("{name}.nar")), "PK").expect("written");
        std::fs::write(folder.join("f.sh"), "process() { emit x; }").expect("written");
        std::fs::write(folder.join(format!("of-{name}.yaml")), "file: f.sh").expect("written");
    }
    let reload = ["functions", "reload", "-o", "json"];
    for (url, other) in [
        (&worker.admin_url, &server.admin_url),
        (&server.admin_url, &worker.admin_url),
    ] {
        until("both are told", || {
            let said = ask(&server, url, &reload);
            said.contains("server.nar") && said.contains("worker.nar") && said.contains(&worker.id)
        });
        for url in [url, other] {
            let listed = ask(
                &server,
                url,
                &["functions", "available-functions", "-o", "name"],
            );
            let own = if *url == worker.admin_url {
                "of-worker"
            } else {
                "of-server"
            };
            assert_eq!(listed.trim(), own);
        }
    }
}
