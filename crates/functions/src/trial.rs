//! Runs a function over given messages, without a broker, and tells all that it did: for
//! `geminga test`.
//!
//! The instance is the one that runs on a broker; its ends record. A failed message is not tried
//! again, so that a case ends and says the same each time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use geminga_client::{Receipt, Transaction};
use geminga_model::{FunctionConfig, ProcessingGuarantees};
use geminga_stdx::Tasks;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::error::WorkerError;
use crate::instance::context::Context;
use crate::instance::guarantee::Letter;
use crate::instance::sink::{Sink, WriteError};
use crate::instance::source::{Acker, Incoming, Origin, Source};
use crate::instance::state::FunctionState;
use crate::instance::{Gauge, Instance};
use crate::pipe::{Nobody, start_host};
use crate::runtime::{
    BoxFuture, Broken, Delivery, Failure, Host, LogLine, Message, Outcome, Output, Services,
    StateChange, Verdict,
};
use crate::worker::MakeRuntime;

/// How long a function's end may take.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// A value of a function's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrialValue {
    Counter(i64),
    Bytes(Bytes),
}

/// What goes in.
#[derive(Debug, Clone, Default)]
pub struct Trial {
    pub messages: Vec<Message>,
    pub state: BTreeMap<String, TrialValue>,
}

/// What came of it. Numbers of messages count from 0.
#[derive(Debug, Clone, Default)]
pub struct TrialReport {
    /// In the order in which they would be published, each with the number of its message.
    pub outputs: Vec<(usize, Output)>,
    pub failures: Vec<(usize, Failure)>,
    pub state: BTreeMap<String, TrialValue>,
    pub logs: Vec<LogLine>,
    /// The sum of each metric of the function's own.
    pub metrics: BTreeMap<String, f64>,
}

#[derive(Default)]
struct Seen {
    outputs: Vec<(usize, Output)>,
    failures: Vec<(usize, Failure)>,
    logs: Vec<LogLine>,
}

type Shared = Arc<Mutex<Seen>>;

/// Runs `config` over `trial`.
///
/// # Errors
/// When the configuration is refused, or the code does not start or ends for good.
pub async fn run_trial(
    mut config: FunctionConfig,
    trial: Trial,
    wasm: Option<&MakeRuntime>,
) -> Result<TrialReport, WorkerError> {
    config.max_message_retries = Some(0);
    // How often something happens after a crash is no matter of a case; who acknowledges is.
    if config.guarantees() != ProcessingGuarantees::Manual {
        config.processing_guarantees = None;
    }
    let tasks = Tasks::new();
    let seen = Shared::default();
    let gauge = Arc::new(Gauge::default());
    let state = Arc::new(FunctionState::in_memory(&tasks));
    for (key, value) in trial.state {
        let change = match value {
            TrialValue::Counter(by) => StateChange::Increment(key, by),
            TrialValue::Bytes(bytes) => StateChange::Put(key, bytes),
        };
        if let Some(why) = change.refusal() {
            return Err(WorkerError::Invalid(vec![why]));
        }
        state.apply(&[change]);
    }
    let logs = seen.clone();
    let on_log = Arc::new(move |line: &LogLine| logs.lock().logs.push(line.clone()));
    let services = Arc::new(Recorder {
        context: Context::new(gauge.clone(), Some(state.clone()), Some(on_log)),
        seen: seen.clone(),
    });
    let (policy, gather, host) = start_host(config, services, &tasks, wasm).await?;
    let instance = Instance {
        source: Box::new(Given {
            messages: trial.messages,
            next: 0,
        }),
        host: Some(Box::new(Watched {
            host,
            numbers: BTreeMap::new(),
            seen: seen.clone(),
        })),
        sink: Box::new(Kept { seen: seen.clone() }),
        state: Some(state.clone()),
        once: None,
        gather,
        policy,
        limits: None,
        log: None,
        gauge: gauge.clone(),
        tasks: tasks.clone(),
    };
    let (_stop, stopped) = watch::channel(None);
    let result = instance.run(stopped).await;
    tasks.cancel();
    tasks.join(STOP_GRACE).await;
    result.map_err(|fault| {
        WorkerError::Invalid(vec![match &fault {
            crate::instance::Fault::Host(broken) => broken.text(),
            other => other.to_string(),
        }])
    })?;
    let seen = std::mem::take(&mut *seen.lock());
    let metrics = gauge.stats.snapshot().user_metrics;
    let value = |entry: crate::instance::state::Entry| {
        let number = <[u8; 8]>::try_from(&entry.value[..]).ok();
        match number.filter(|_| entry.is_counter) {
            Some(number) => TrialValue::Counter(i64::from_be_bytes(number)),
            None => TrialValue::Bytes(entry.value),
        }
    };
    let state = state.all().into_iter().map(|(key, e)| (key, value(e)));
    Ok(TrialReport {
        outputs: seen.outputs,
        failures: seen.failures,
        state: state.collect(),
        logs: seen.logs,
        metrics: metrics
            .into_iter()
            .map(|(name, metric)| (name, metric.sum))
            .collect(),
    })
}

/// Starts a function's code and ends it again: whether it could run.
///
/// # Errors
/// When the configuration is refused, or the code does not start.
pub async fn check_code(
    config: FunctionConfig,
    wasm: Option<&MakeRuntime>,
) -> Result<(), WorkerError> {
    let tasks = Tasks::new();
    let state = Arc::new(FunctionState::in_memory(&tasks));
    let services = Arc::new(Context::new(Arc::default(), Some(state), None));
    let started = start_host(config, services, &tasks, wasm).await;
    let result = match started {
        Ok((_, _, mut host)) => {
            host.stop(STOP_GRACE).await;
            Ok(())
        }
        Err(error) => Err(error),
    };
    tasks.cancel();
    tasks.join(STOP_GRACE).await;
    result
}

/// The messages of a case, then the end.
struct Given {
    messages: Vec<Message>,
    next: usize,
}

impl Source for Given {
    fn next(&mut self, max: usize) -> BoxFuture<'_, Result<Vec<Incoming>, String>> {
        Box::pin(async move {
            let end = (self.next + max).min(self.messages.len());
            let some = self.messages[self.next..end].iter().enumerate();
            let from = self.next;
            let incoming = some.map(|(index, message)| Incoming {
                message: Arc::new(Message {
                    id: format!("0:{}:-1", from + index),
                    ..message.clone()
                }),
                origin: Origin::File {
                    file: 0,
                    offset: (from + index) as u64,
                },
            });
            let incoming = incoming.collect();
            self.next = end;
            Ok(incoming)
        })
    }

    fn acker(&self) -> Arc<dyn Acker> {
        Arc::new(Nobody)
    }

    fn dead_letter_topic(&self, _message: &Message) -> Option<String> {
        Some("given up".to_owned())
    }
}

/// The number of a message of [`Given`]; a window has that of its last message.
fn number(message: &Message) -> usize {
    let id = message.window.as_ref().map_or(&message.id, |w| &w.last);
    let number = id.split(':').nth(1);
    number.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Keeps what is published.
struct Kept {
    seen: Shared,
}

impl Sink for Kept {
    fn write<'a>(
        &'a mut self,
        input: &'a Message,
        outputs: Vec<Output>,
        _txn: Option<&'a Transaction>,
    ) -> BoxFuture<'a, Result<Vec<Receipt>, WriteError>> {
        let number = number(input);
        let outputs = outputs.into_iter().map(|output| (number, output));
        self.seen.lock().outputs.extend(outputs);
        Box::pin(async { Ok(Vec::new()) })
    }

    fn dead_letter<'a>(
        &'a mut self,
        _topic: &'a str,
        _letter: Letter,
        _input: &'a Message,
        _txn: Option<&'a Transaction>,
    ) -> BoxFuture<'a, Result<Vec<Receipt>, String>> {
        // Its failure was seen where it came from.
        Box::pin(async { Ok(Vec::new()) })
    }
}

/// A host whose failures are kept.
struct Watched {
    host: Box<dyn Host>,
    numbers: BTreeMap<u64, usize>,
    seen: Shared,
}

impl Host for Watched {
    fn window(&self) -> usize {
        self.host.window()
    }

    fn deliver(&mut self, batch: Vec<Delivery>) -> BoxFuture<'_, Result<(), Broken>> {
        let numbers = batch
            .iter()
            .map(|delivery| (delivery.ticket, number(&delivery.message)));
        self.numbers.extend(numbers);
        self.host.deliver(batch)
    }

    fn outcomes(&mut self) -> BoxFuture<'_, Result<Vec<Outcome>, Broken>> {
        Box::pin(async move {
            let outcomes = self.host.outcomes().await?;
            let mut seen = self.seen.lock();
            for outcome in &outcomes {
                let number = self.numbers.remove(&outcome.ticket).unwrap_or(0);
                if let Verdict::Failed(failure) = &outcome.verdict {
                    seen.failures.push((number, failure.clone()));
                }
            }
            drop(seen);
            Ok(outcomes)
        })
    }

    fn stop(&mut self, grace: Duration) -> BoxFuture<'_, ()> {
        self.host.stop(grace)
    }
}

/// The services of an instance; what is published outside a message is kept too.
struct Recorder {
    context: Context,
    seen: Shared,
}

impl Services for Recorder {
    fn log(&self, line: LogLine) {
        self.context.log(line);
    }
    fn metric(&self, name: &str, value: f64) {
        self.context.metric(name, value);
    }
    fn state_get(&self, key: &str) -> Option<Bytes> {
        self.context.state_get(key)
    }
    fn state_apply(&self, changes: &[StateChange]) {
        self.context.state_apply(changes);
    }
    fn acknowledge(&self, message_id: &str) {
        self.context.acknowledge(message_id);
    }
    fn publish(&self, output: Output) {
        self.seen.lock().outputs.push((0, output));
    }
    fn restarted(&self, reason: &str) {
        self.context.restarted(reason);
    }
    fn ended_idle(&self, why: &str) {
        self.context.ended_idle(why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn python(text: &str) -> (tempfile::TempDir, FunctionConfig) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("f.py");
        std::fs::write(&path, text).expect("written");
        let config = FunctionConfig {
            name: Some("f".into()),
            inputs: Some(vec!["in".into()]),
            output: Some("out".into()),
            py: Some(path.display().to_string()),
            class_name: Some("f".into()),
            ..FunctionConfig::default()
        };
        (directory, config)
    }

    #[tokio::test]
    async fn everything_that_a_function_does_is_told() {
        let (_directory, config) = python(
            r#"
import geminga
class F:
    def process(self, input, context):
        if input == "bad": raise geminga.BadData("no use")
        if input == "fail": raise ValueError("not now")
        context.incr_counter("n", 1)
        context.put_state("last", input)
        context.get_logger().warning("saw %s", input)
        context.record_metric("size", len(input))
        context.publish("other", input.upper(), properties={"a": "b"})
        return input + "!"
"#,
        );
        let message = |text: &'static str| Message {
            payload: Bytes::from_static(text.as_bytes()),
            topic: "persistent://public/default/in".into(),
            key: Some("k".into()),
            ..Message::default()
        };
        let trial = Trial {
            messages: vec![message("x"), message("bad"), message("fail"), message("yy")],
            state: [("n".to_owned(), TrialValue::Counter(5))].into(),
        };
        let report = run_trial(config, trial, None).await.expect("runs");
        let outputs: Vec<_> = report
            .outputs
            .iter()
            .map(|(number, it)| (*number, it.topic.as_deref(), &it.payload[..]))
            .collect();
        let other = Some("other");
        assert_eq!(
            outputs,
            [
                (0, None, &b"x!"[..]),
                (0, other, b"X"),
                (3, None, b"yy!"),
                (3, other, b"YY")
            ]
        );
        let failures: Vec<_> = report
            .failures
            .iter()
            .map(|(number, it)| (*number, it.kind.as_str(), it.reason.as_str()))
            .collect();
        assert_eq!(
            failures,
            [
                (1, "data", "BadData: no use"),
                (2, "user", "ValueError: not now")
            ]
        );
        assert_eq!(report.state["n"], TrialValue::Counter(7));
        assert_eq!(report.state["last"], TrialValue::Bytes("yy".into()));
        assert!(report.logs.iter().any(|line| line.text == "saw x"));
        assert_eq!(report.metrics["size"], 3.0);
    }

    #[tokio::test]
    async fn windows_that_are_not_complete_at_the_end_of_a_case_are_run() {
        for (window, wanted) in [
            (r#"{"windowLengthCount":3}"#, vec![(2, "a+b+c"), (4, "d+e")]),
            (
                r#"{"windowLengthDurationMs":86400000,"timestampExtractorClassName":"eventTime"}"#,
                vec![(4, "a+b+c+d+e")],
            ),
            (r#"{"sessionGapMs":86400000}"#, vec![(4, "a+b+c+d+e")]),
        ] {
            let (_directory, mut config) =
                python("def process(values):\n    return '+'.join(values)\n");
            config.window_config = Some(serde_json::from_str(window).expect("a window"));
            let message = |text: &'static str| Message {
                payload: Bytes::from_static(text.as_bytes()),
                topic: "persistent://public/default/in".into(),
                event_time: 1000,
                ..Message::default()
            };
            let trial = Trial {
                messages: ["a", "b", "c", "d", "e"].map(message).into(),
                ..Trial::default()
            };
            let report = run_trial(config, trial, None).await.expect("runs");
            let outputs: Vec<_> = report
                .outputs
                .iter()
                .map(|(number, it)| (*number, std::str::from_utf8(&it.payload).expect("text")))
                .collect();
            assert_eq!(outputs, wanted, "{window}");
        }
    }

    #[tokio::test]
    async fn code_that_does_not_start_says_where_it_is_wrong() {
        let (_directory, config) = python("def process(input:\n");
        let said = check_code(config, None)
            .await
            .expect_err("refused")
            .to_string();
        assert!(
            said.contains("SyntaxError") && said.contains("f.py\", line 1"),
            "{said}"
        );
        let (_directory, config) = python("def process(input): return input\n");
        check_code(config, None).await.expect("starts");
    }
}
