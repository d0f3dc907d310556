//! `geminga perf produce`.

use bytes::Bytes;
use geminga_client::{Batching, Message, Producer, ProducerBuilder};
use tokio::time::{Duration, Instant};

use super::super::client;
use super::report::{Percentiles, Rates};
use super::{Global, Load};
use crate::failure::Outcome;

#[derive(Debug, clap::Args)]
pub(super) struct ProduceArgs {
    #[command(flatten)]
    load: Load,
    /// Messages a second; 0 means as fast as the window allows
    #[arg(short, long, default_value_t = 0, value_name = "N")]
    rate: u64,
    /// End after this many messages, if sooner than the time
    #[arg(short, long, value_name = "N")]
    count: Option<u64>,
    /// Wait for each receipt before the next message, and tell how long each took
    #[arg(long, conflicts_with = "rate")]
    blocking: bool,
}

pub(super) fn configure(builder: ProducerBuilder, load: &Load) -> ProducerBuilder {
    let builder = builder.window(load.window).compression(load.compression);
    if load.no_batching {
        builder.batching(Batching::off())
    } else {
        builder
    }
}

/// Payloads that do not compress away: seeded noise, shared by all messages.
pub(super) fn payload(size: usize) -> Bytes {
    let mut bytes = vec![0; size];
    geminga_stdx::Random::new(1).fill(&mut bytes);
    bytes.into()
}

pub(super) async fn run(args: ProduceArgs, global: &Global) -> Outcome {
    let failed = |error| client::failure(&error, global);
    let connection = client::client(global).await?;
    let producer = configure(connection.producer(&args.load.topic), &args.load)
        .build()
        .await
        .map_err(failed)?;
    let count = args.count.unwrap_or(u64::MAX);
    let start = Instant::now();
    let end = start + args.load.time;
    let (sent, mut latencies) = if args.blocking {
        blocking(&producer, &args.load, count, end)
            .await
            .map_err(failed)?
    } else {
        let sent = streaming(&producer, &args.load, args.rate, count, start, end)
            .await
            .map_err(failed)?;
        (sent, Vec::new())
    };
    // The clock stops when the last receipt is in.
    producer.flush().await.map_err(failed)?;
    let took = start.elapsed();
    let bytes = sent * args.load.size as u64;
    Rates::new(sent, bytes, took, Percentiles::of(&mut latencies))
        .print(global.format(), "stored")?;
    producer.close().await.map_err(failed)
}

async fn blocking(
    producer: &Producer,
    load: &Load,
    count: u64,
    end: Instant,
) -> geminga_client::Result<(u64, Vec<Duration>)> {
    let payload = payload(load.size);
    let mut latencies = Vec::new();
    while (latencies.len() as u64) < count && Instant::now() < end {
        let sent = Instant::now();
        producer.send(Message::new(payload.clone())).await?;
        latencies.push(sent.elapsed());
    }
    Ok((latencies.len() as u64, latencies))
}

async fn streaming(
    producer: &Producer,
    load: &Load,
    rate: u64,
    count: u64,
    start: Instant,
    end: Instant,
) -> geminga_client::Result<u64> {
    let payload = payload(load.size);
    let mut sent = 0_u64;
    let mut due = u64::MAX;
    while sent < count {
        // The clock is asked once in 64 messages: asking costs as much as sending.
        if sent.is_multiple_of(64) || sent >= due {
            let now = Instant::now();
            if now >= end {
                break;
            }
            if rate > 0 {
                due = (now - start).as_nanos().saturating_mul(u128::from(rate)) as u64
                    / 1_000_000_000;
                if sent >= due {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    continue;
                }
            }
        }
        producer.post(Message::new(payload.clone())).await?;
        sent += 1;
    }
    Ok(sent)
}
