//! `geminga perf consume`.

use clap::ValueEnum;
use geminga_client::{InitialPosition, SubType};
use tokio::time::{Duration, Instant};

use super::super::client;
use super::Global;
use super::report::Rates;
use crate::failure::Outcome;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum From {
    Earliest,
    Latest,
}

#[derive(Debug, clap::Args)]
pub(super) struct ConsumeArgs {
    /// The topic
    topic: String,
    /// The subscription; a new one each time when left out
    #[arg(long)]
    subscription: Option<String>,
    /// Where a new subscription begins
    #[arg(long, value_enum, default_value = "earliest")]
    from: From,
    /// End after this many messages
    #[arg(short, long, value_name = "N")]
    count: Option<u64>,
    /// End when nothing has come for this long
    #[arg(long, default_value = "2s", value_name = "TIME",
          value_parser = geminga_stdx::size::parse_duration)]
    until_idle: Duration,
    /// Messages asked for ahead
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    queue: usize,
    /// Acknowledge nothing
    #[arg(long)]
    no_ack: bool,
}

pub(super) async fn run(args: ConsumeArgs, global: &Global) -> Outcome {
    let failed = |error| client::failure(&error, global);
    let connection = client::client(global).await?;
    let name = args.subscription.clone().unwrap_or_else(|| {
        format!(
            "geminga-perf-{}",
            geminga_stdx::Random::from_entropy().name(8)
        )
    });
    let mut consumer = connection
        .consumer(args.topic.as_str())
        .subscription(name)
        .durable(args.subscription.is_some())
        .sub_type(SubType::Exclusive)
        .receiver_queue_size(args.queue)
        .initial_position(match args.from {
            From::Earliest => InitialPosition::Earliest,
            From::Latest => InitialPosition::Latest,
        })
        .build()
        .await
        .map_err(failed)?;
    let limit = args.count.unwrap_or(u64::MAX);
    let (mut messages, mut bytes) = (0_u64, 0_u64);
    let start = Instant::now();
    let mut last = start;
    while messages < limit {
        let Ok(batch) = tokio::time::timeout(args.until_idle, consumer.recv_batch(10_000)).await
        else {
            break;
        };
        let batch = batch.map_err(failed)?;
        messages += batch.len() as u64;
        bytes += batch.iter().map(|m| m.payload.len() as u64).sum::<u64>();
        last = Instant::now();
        // Exclusive: the last one stands for all before it.
        if let (false, Some(newest)) = (args.no_ack, batch.last()) {
            consumer.ack_cumulative(&newest.id).await.map_err(failed)?;
        }
    }
    Rates::new(messages, bytes, last - start, None).print(global.format(), "read")?;
    consumer.close().await.map_err(failed)
}
