//! What a process with Pulsar's instance prints: lines of the function's log, and last words for its status.
//!
//! What must hold: the pipes are drained whatever comes, and what is kept of it is bounded (`runtime::stderr`).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::{Job, short};
use crate::runtime::process::Process;
use crate::runtime::stderr::{Rate, Tail, pump};
use crate::runtime::{Level, LogLine, Output, Services, StateChange};

/// What is being heard of a process.
pub(super) struct Heard {
    tail: Tail,
    ear: Arc<Ear>,
    ends: Vec<oneshot::Receiver<()>>,
}

impl Heard {
    /// What there is to say of its end: the last error that it named, and the end of what it printed, which in a
    /// virtual machine or in Go is a long trace. Waits `limit` for the rest of it.
    pub(super) async fn last_words(self, limit: Duration) -> String {
        let ends = async {
            for end in self.ends {
                // The pump says so, or is gone.
                let _ = end.await;
            }
        };
        let _ = tokio::time::timeout(limit, ends).await;
        let (error, said) = (self.ear.error.lock().take(), self.tail.take());
        let error = error.filter(|error| !said.starts_with(error.as_str()));
        let error = error.map_or(String::new(), |error| format!(": {error}"));
        match said.is_empty() {
            true => error,
            false => format!("{error}\n{said}"),
        }
    }
}

/// Makes log lines of what the process prints.
pub(super) fn listen(process: &mut Process, job: &Job<'_>) -> Heard {
    let tail = Tail::default();
    let ear = Arc::new(Ear {
        services: job.services.clone(),
        error: Mutex::default(),
    });
    let rate = Arc::new(Mutex::new(Rate::new(job.spec.options.max_stderr_bytes)));
    let heard = Arc::new(Notify::new());
    let mut ends = Vec::new();
    let mut take = |pipe: Box<dyn tokio::io::AsyncRead + Send + Unpin>| {
        let (end, ended) = oneshot::channel();
        let pump = pump(
            pipe,
            ear.clone(),
            tail.clone(),
            heard.clone(),
            rate.clone(),
            None,
        );
        job.tasks.spawn_cancellable("function log", async move {
            pump.await;
            let _ = end.send(());
        });
        ends.push(ended);
    };
    if let Some(pipe) = process.child.stdout.take() {
        take(Box::new(pipe));
    }
    if let Some(pipe) = process.child.stderr.take() {
        take(Box::new(pipe));
    }
    Heard { tail, ear, ends }
}

/// Hands lines on, and remembers the last that names an error.
struct Ear {
    services: Arc<dyn Services>,
    error: Mutex<Option<String>>,
}

/// How Go begins its last words.
const GO_ENDS: [&str; 2] = ["fatal error: ", "panic: "];

fn names_an_error(line: &LogLine) -> bool {
    line.level == Level::Error || GO_ENDS.iter().any(|begin| line.text.starts_with(begin))
}

impl Services for Ear {
    fn log(&self, line: LogLine) {
        if names_an_error(&line) {
            *self.error.lock() = Some(short(line.text.clone()));
        }
        self.services.log(line);
    }

    // An instance of Pulsar's asks for nothing.
    fn metric(&self, _name: &str, _value: f64) {}
    fn state_get(&self, _key: &str) -> Option<Bytes> {
        None
    }
    fn state_apply(&self, _changes: &[StateChange]) {}
    fn acknowledge(&self, _message_id: &str) {}
    fn publish(&self, _output: Output) {}
    fn restarted(&self, _reason: &str) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_known_by_its_level_or_by_how_go_ends() {
        for (level, text, is_error) in [
            (Level::Error, "it broke", true),
            (Level::Info, "fatal error: runtime: out of memory", true),
            (Level::Info, "panic: no", true),
            (Level::Info, "no panic: it works", false),
            (Level::Warn, "slow", false),
        ] {
            let line = LogLine {
                level,
                text: text.to_owned(),
                message_id: None,
            };
            assert_eq!(names_an_error(&line), is_error, "{text}");
        }
    }
}
