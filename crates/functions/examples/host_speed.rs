//! Measures the runtimes alone: messages a second in to out through one host, and cold start.
//!
//! `cargo run --release -p geminga-functions --example host_speed [-- messages]`

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use geminga_functions::runtime::bash::Bash;
use geminga_functions::runtime::exec::Exec;
use geminga_functions::runtime::options::Mode;
use geminga_functions::runtime::python::Python;
use geminga_functions::runtime::{
    Code, Delivery, HostSpec, LogLine, Message, Output, Processes, Runtime, Services, StateChange,
};
use geminga_stdx::Tasks;
use tokio::time::Instant;

struct Silent;

impl Services for Silent {
    fn log(&self, line: LogLine) {
        tracing::debug!(text = line.text);
    }
    fn metric(&self, _name: &str, _value: f64) {}
    fn state_get(&self, _key: &str) -> Option<Bytes> {
        None
    }
    fn state_apply(&self, _changes: &[StateChange]) {}
    fn acknowledge(&self, _message_id: &str) {}
    fn publish(&self, _output: Output) {}
    fn restarted(&self, _reason: &str) {}
}

#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let scale: usize = std::env::args().nth(1).map_or(Ok(1), |n| n.parse())?;
    let tasks = Tasks::new();
    let processes = Processes::start(None)?;
    let examples = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples"));
    let bash: Arc<dyn Runtime> = Arc::new(Bash::new(processes.clone(), tasks.clone()));
    let python: Arc<dyn Runtime> = Arc::new(Python::new(processes.clone(), tasks.clone()));
    let exec: Arc<dyn Runtime> = Arc::new(Exec::new(processes, tasks.clone()));
    for (name, runtime, file, mode, count) in [
        ("bash warm", &bash, "bash/exclamation_warm.sh", None, 60_000),
        (
            "bash warm, plain script",
            &bash,
            "bash/exclamation.sh",
            None,
            2_000,
        ),
        (
            "bash spawn",
            &exec,
            "bash/exclamation.sh",
            Some(Mode::Spawn),
            2_000,
        ),
        (
            "python warm",
            &python,
            "python/exclamation.py",
            None,
            600_000,
        ),
    ] {
        let mut spec = HostSpec {
            name: "speed".into(),
            instances: 1,
            code: Code {
                path: examples.join(file),
                class_name: None,
            },
            ..HostSpec::default()
        };
        spec.options.mode = mode;
        let spec = Arc::new(spec);
        // The first start resolves the interpreter and warms the page cache.
        let mut host = runtime.start(spec.clone(), Arc::new(Silent)).await?;
        host.stop(Duration::from_secs(1)).await;
        let started = Instant::now();
        let mut host = runtime.start(spec, Arc::new(Silent)).await?;
        let message = Arc::new(Message {
            topic: "persistent://public/default/in".into(),
            id: "1:2:-1".into(),
            payload: Bytes::from(vec![b'x'; 100]),
            publish_time: 1,
            ..Message::default()
        });
        host.deliver(vec![Delivery {
            ticket: 0,
            message: message.clone(),
        }])
        .await?;
        host.outcomes().await?;
        let cold = started.elapsed();
        let count = count * scale;
        let window = host.window();
        let (mut sent, mut done) = (0, 0);
        let began = Instant::now();
        while done < count {
            let room = (window - (sent - done)).min(count - sent);
            // Half a window at a time, as a consumer would hand over what has arrived.
            if room > window / 2 || (room > 0 && sent == done) {
                let batch = (sent..sent + room)
                    .map(|ticket| Delivery {
                        ticket: ticket as u64,
                        message: message.clone(),
                    })
                    .collect();
                host.deliver(batch).await?;
                sent += room;
            }
            done += host.outcomes().await?.len();
        }
        let rate = count as f64 / began.elapsed().as_secs_f64();
        println!("{name:26} {rate:10.0} msg/s   cold start to first outcome {cold:?}");
        host.stop(Duration::from_secs(1)).await;
    }
    Ok(())
}
