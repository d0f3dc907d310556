//! `geminga standalone` as a process of the test's own.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Output, Stdio};

use crate::{geminga, text};

/// A server; killed with this value.
pub(crate) struct Server {
    process: Child,
    pub(crate) admin_url: String,
    pub(crate) service_url: String,
    pub(crate) admin_url_tls: Option<String>,
    pub(crate) service_url_tls: Option<String>,
}

impl Server {
    /// With its data in a temporary directory of its own.
    pub(crate) fn ephemeral() -> Self {
        Self::start(&["--ephemeral"])
    }

    pub(crate) fn on(data: &Path) -> Self {
        Self::start(&["--data", &data.display().to_string()])
    }

    pub(crate) fn start(data: &[&str]) -> Self {
        let mut process = geminga()
            .args([
                "standalone",
                "--port",
                "0",
                "--http-port",
                "0",
                "-o",
                "json",
            ])
            .args(data)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        let mut line = String::new();
        let stdout = process.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("reads");
        let ready: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        let url = |field: &str| ready[field].as_str().expect("an address").to_owned();
        let url_tls = |field: &str| ready[field].as_str().map(str::to_owned);
        Self {
            process,
            admin_url: url("adminUrl"),
            service_url: url("serviceUrl"),
            admin_url_tls: url_tls("adminUrlTls"),
            service_url_tls: url_tls("serviceUrlTls"),
        }
    }

    /// Ends it as `kill -9` does.
    pub(crate) fn kill(mut self) {
        self.process.kill().expect("kills");
        self.process.wait().expect("ends");
    }

    /// Runs a command against it.
    pub(crate) fn ask(&self, directory: &Path, args: &[&str]) -> Output {
        geminga()
            .current_dir(directory)
            .env("GEMINGA_ADMIN_URL", &self.admin_url)
            .env("GEMINGA_SERVICE_URL", &self.service_url)
            .args(args)
            .output()
            .expect("runs")
    }

    /// The same, checks its exit code, and gives what it said on both sides.
    pub(crate) fn check(&self, words: &str, exit: i32) -> (String, String) {
        let words_: Vec<&str> = words.split(' ').collect();
        let output = self.ask(Path::new("."), &words_);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(
            output.status.code(),
            Some(exit),
            "geminga {words}\n{out}{err}"
        );
        (out, err)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
