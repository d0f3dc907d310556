//! Measures the WASM runtime alone: first compile, cold start, messages a second, latency of one message, and
//! what idle instances cost.
//!
//! `cargo run --release -p geminga-wasm --example wasm_speed [-- instances [file.wasm ...]]`

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use geminga_functions::runtime::{
    Code, Delivery, Host, HostSpec, LogLine, Message, Output, Runtime, Services, StateChange,
};
use geminga_stdx::Tasks;
use geminga_wasm::Wasm;

type Anything<T> = Result<T, Box<dyn std::error::Error>>;

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

fn spec(path: &Path) -> Arc<HostSpec> {
    Arc::new(HostSpec {
        name: "speed".into(),
        instances: 1,
        code: Code {
            path: path.to_path_buf(),
            class_name: None,
        },
        ..HostSpec::default()
    })
}

fn message() -> Arc<Message> {
    Arc::new(Message {
        topic: "persistent://public/default/in".into(),
        id: "1:2:-1".into(),
        payload: Bytes::from(vec![b'x'; 100]),
        publish_time: 1,
        ..Message::default()
    })
}

async fn one(host: &mut Box<dyn Host>, message: &Arc<Message>) -> Anything<()> {
    let delivery = Delivery {
        ticket: 0,
        message: message.clone(),
    };
    host.deliver(vec![delivery]).await?;
    host.outcomes().await?;
    Ok(())
}

/// Start to first outcome.
async fn cold(runtime: &Wasm, path: &Path) -> Anything<(Duration, Box<dyn Host>)> {
    let since = Instant::now();
    let mut host = runtime.start(spec(path), Arc::new(Silent)).await?;
    one(&mut host, &message()).await?;
    Ok((since.elapsed(), host))
}

fn percentile(sorted: &[Duration], part: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * part) as usize]
}

async fn rate(host: &mut Box<dyn Host>, count: usize) -> Anything<f64> {
    let (message, window) = (message(), host.window());
    let (mut sent, mut done) = (0, 0);
    let since = Instant::now();
    while done < count {
        let room = (window - (sent - done)).min(count - sent);
        // Half a window at a time, as a consumer would hand over what has arrived.
        if room > window / 2 || (room > 0 && sent == done) {
            let batch = (sent..sent + room).map(|ticket| Delivery {
                ticket: ticket as u64,
                message: message.clone(),
            });
            host.deliver(batch.collect()).await?;
            sent += room;
        }
        done += host.outcomes().await?.len();
    }
    Ok(count as f64 / since.elapsed().as_secs_f64())
}

/// Resident bytes and memory maps of this process.
fn process() -> (u64, usize) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    (kilobytes.unwrap_or(0) * 1024, maps.lines().count())
}

#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
#[tokio::main]
async fn main() -> Anything<()> {
    let mut arguments = std::env::args().skip(1);
    let instances: usize = arguments.next().map_or(Ok(1000), |n| n.parse())?;
    let mut files: Vec<PathBuf> = arguments.map(PathBuf::from).collect();
    if files.is_empty() {
        let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/wasm");
        files = vec![PathBuf::from(examples).join("upper.wat")];
    }
    for path in &files {
        println!("{}", path.display());
        let tasks = Tasks::new();
        let (first, mut host) = cold(&Wasm::new(tasks.clone()), path).await?;
        host.stop(Duration::from_secs(1)).await;
        // A second engine, as after a restart of the worker.
        let runtime = Wasm::new(tasks.clone());
        let (restarted, mut host) = cold(&runtime, path).await?;
        let mut warm = Vec::new();
        for _ in 0..20 {
            let (took, mut other) = cold(&runtime, path).await?;
            other.stop(Duration::from_secs(1)).await;
            warm.push(took);
        }
        warm.sort();
        println!(
            "  start to first outcome: {first:.1?} with whatever the cache had, {restarted:.1?} after a restart, \
             {:.2?} with the code in memory",
            percentile(&warm, 0.5)
        );
        rate(&mut host, 50_000).await?;
        println!(
            "  {:.0} msg/s of 100 bytes",
            rate(&mut host, 600_000).await?
        );
        let (mut single, given) = (Vec::new(), message());
        for _ in 0..2000 {
            let since = Instant::now();
            one(&mut host, &given).await?;
            single.push(since.elapsed());
        }
        single.sort();
        println!(
            "  one message at a time: p50 {:.0?}, p99 {:.0?}",
            percentile(&single, 0.5),
            percentile(&single, 0.99)
        );
        let (before, maps_before) = process();
        let mut all = Vec::with_capacity(instances);
        let since = Instant::now();
        for _ in 0..instances {
            all.push(cold(&runtime, path).await?.1);
        }
        let took = since.elapsed();
        let (after, maps_after) = process();
        println!(
            "  {instances} instances that answered, in {took:.1?}: {} KB and {:.1} memory maps each, {} MB in all",
            (after - before) / 1024 / instances as u64,
            (maps_after - maps_before) as f64 / instances as f64,
            after / 1024 / 1024
        );
        let since = Instant::now();
        for host in &mut all {
            one(host, &given).await?;
        }
        println!("  each answered again, in {:.1?}", since.elapsed());
        for mut host in all {
            host.stop(Duration::ZERO).await;
        }
        host.stop(Duration::from_secs(1)).await;
        tasks.cancel();
        tasks.join(Duration::from_secs(5)).await;
    }
    Ok(())
}
