//! A look at what was created or changed: whether it starts.
//!
//! A server stores what it is given and starts it then; code that does not start is tried again and again.
//! Whoever typed the command should not have to ask for that.

use std::time::Duration;

use geminga_admin::client::{AdminClient, Component};
use geminga_stdx::Diagnostic;
use serde_json::Value;
use tokio::time::Instant;

use super::FullName;
use super::report::reason;
use crate::output;

/// How long a start is watched. Most take some milliseconds, a JVM half a second.
const WATCH: Duration = Duration::from_secs(2);
/// The first wait between two looks; it doubles.
const LOOK: Duration = Duration::from_millis(5);
const LOOK_MAX: Duration = Duration::from_millis(100);

/// How far a start is.
#[derive(Debug, PartialEq, Eq)]
enum Start {
    Done,
    Wait,
    Fails(String),
}

/// When nothing that was sent now is waited for any longer.
pub(crate) fn deadline() -> Instant {
    Instant::now() + WATCH
}

/// Says on standard error when it does not start.
pub(crate) async fn watch(client: &AdminClient, kind: Component, name: &FullName, until: Instant) {
    let mut pause = LOOK;
    loop {
        // Who may not look, or whose component went already, has the answer that it was stored.
        let Ok(status) = client
            .component_report(kind, name.fqfn(), None, "status")
            .await
        else {
            return;
        };
        match start(&status) {
            Start::Done => return,
            Start::Fails(why) => {
                let warning = Diagnostic::warning("G0412", format!("{kind} {name} does not start"))
                    .cause(why)
                    .help(format!(
                        "it is tried again with growing pauses; `geminga {kind}s update {name} ...` changes it, \
                         `geminga {kind}s status {name}` shows how it is"
                    ));
                output::note(&warning.to_string());
                return;
            }
            Start::Wait if Instant::now() >= until => {
                output::aside(&format!(
                    "it still starts: `geminga {kind}s status {name}` shows how it is"
                ));
                return;
            }
            Start::Wait => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LOOK_MAX);
            }
        }
    }
}

fn start(status: &Value) -> Start {
    let mut outcome = Start::Done;
    for instance in status["instances"].as_array().into_iter().flatten() {
        let status = &instance["status"];
        let state = status["state"].as_str().unwrap_or_default();
        let failed = status["error"]
            .as_str()
            .is_some_and(|error| !error.is_empty());
        if state != "stopped" && state != "finished" && failed && status["running"] != true {
            return Start::Fails(reason(status).unwrap_or_default());
        }
        if state == "starting" {
            outcome = Start::Wait;
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_start_is_waited_for_and_a_failure_told() {
        let one = |state: &str, running: bool, error: Option<&str>| json!({"instanceId": 0, "status": {"state": state, "running": running, "error": error}});
        for (instances, want) in [
            (vec![], Start::Done),
            (vec![one("running", true, None)], Start::Done),
            (vec![one("stopped", false, Some("old"))], Start::Done),
            (
                vec![one("running", true, None), one("starting", false, None)],
                Start::Wait,
            ),
            (
                vec![
                    one("starting", false, None),
                    one("degraded", false, Some("no module")),
                ],
                Start::Fails("no module".to_owned()),
            ),
        ] {
            assert_eq!(start(&json!({"instances": instances})), want);
        }
        // Apache Pulsar's workers name no state.
        let theirs =
            json!({"instances": [{"instanceId": 0, "status": {"running": false, "error": ""}}]});
        assert_eq!(start(&theirs), Start::Done);
    }
}
