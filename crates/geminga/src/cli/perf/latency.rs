//! `geminga perf latency`: from send to receive, at a rate.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{BufMut, BytesMut};
use geminga_client::{InitialPosition, Message, SubType};
use geminga_stdx::Tasks;
use geminga_stdx::tasks::OnError;
use tokio::time::{Duration, Instant};

use super::super::client;
use super::produce::{configure, payload};
use super::report::{Percentiles, Rates};
use super::{Global, Load};
use crate::failure::Outcome;

#[derive(Debug, clap::Args)]
pub(super) struct LatencyArgs {
    #[command(flatten)]
    load: Load,
    /// Messages a second
    #[arg(short, long, default_value_t = 1000, value_name = "N")]
    rate: u64,
}

pub(super) async fn run(args: LatencyArgs, global: &Global) -> Outcome {
    let failed = |error| client::failure(&error, global);
    let connection = client::client(global).await?;
    let mut consumer = connection
        .consumer(args.load.topic.as_str())
        .subscription(format!(
            "geminga-latency-{}",
            geminga_stdx::Random::from_entropy().name(8)
        ))
        .durable(false)
        .sub_type(SubType::Exclusive)
        .initial_position(InitialPosition::Latest)
        .build()
        .await
        .map_err(failed)?;
    let producer = configure(connection.producer(&args.load.topic), &args.load)
        .build()
        .await
        .map_err(failed)?;
    let start = Instant::now();
    let end = start + args.load.time;
    let body = payload(args.load.size.max(8));
    let rate = args.rate.max(1);
    let done = Arc::new(AtomicBool::new(false));
    let tasks = Tasks::new();
    let finished = done.clone();
    tasks.spawn("perf-latency-producer", OnError::Log, async move {
        let mut sent = 0_u64;
        let mut held_up = false;
        let result = loop {
            let now = Instant::now();
            if now >= end {
                break producer.flush().await;
            }
            let due = ((now - start).as_nanos() * u128::from(rate) / 1_000_000_000) as u64;
            while sent < due {
                // A message carries when the timer let it go; after the client held us up, when it was
                // due, so that a stall counts for all that had to wait for it.
                let at = if held_up {
                    sent as u128 * 1_000_000_000 / u128::from(rate)
                } else {
                    (now - start).as_nanos()
                };
                let mut bytes = BytesMut::with_capacity(body.len());
                bytes.put_u64(at as u64);
                bytes.extend_from_slice(&body[8..]);
                producer.post(Message::new(bytes.freeze())).await?;
                sent += 1;
            }
            held_up = now.elapsed() > Duration::from_millis(2);
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        finished.store(true, Ordering::Release);
        result
    });
    let mut latencies = Vec::new();
    let idle = Duration::from_secs(1);
    loop {
        match tokio::time::timeout(idle, consumer.recv_batch(10_000)).await {
            Ok(batch) => {
                let batch = batch.map_err(failed)?;
                let now = start.elapsed();
                for message in &batch {
                    if let Some(stamp) = message.payload.first_chunk::<8>() {
                        let due = Duration::from_nanos(u64::from_be_bytes(*stamp));
                        latencies.push(now.saturating_sub(due));
                    }
                }
                if let Some(newest) = batch.last() {
                    consumer.ack_cumulative(&newest.id).await.map_err(failed)?;
                }
            }
            Err(_) if done.load(Ordering::Acquire) => break,
            Err(_) if Instant::now() > end + Duration::from_secs(30) => break,
            Err(_) => {}
        }
    }
    let took = start.elapsed().saturating_sub(idle).min(args.load.time);
    let count = latencies.len() as u64;
    let bytes = count * args.load.size as u64;
    Rates::new(count, bytes, took, Percentiles::of(&mut latencies))
        .print(global.format(), "sent and read")?;
    consumer.close().await.map_err(failed)
}
