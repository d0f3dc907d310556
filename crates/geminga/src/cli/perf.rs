//! `geminga perf`: load and latency, measured from a client's side.

mod consume;
mod latency;
mod produce;
mod report;

use std::time::Duration;

use geminga_client::Compression;

use super::{Global, block_on};
use crate::failure::Outcome;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    geminga perf produce load --size 100 --time 10s\n  \
    geminga perf produce load --size 100 --no-batching --window 1000\n  \
    geminga perf latency load --rate 1000 --time 10s\n  \
    geminga perf consume load --from earliest --count 1000000")]
pub(crate) struct PerfArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Send as fast as the window allows, or at a rate
    Produce(produce::ProduceArgs),
    /// Read what a topic holds, and what comes
    Consume(consume::ConsumeArgs),
    /// Send at a rate, read it back, and tell how long each message took
    Latency(latency::LatencyArgs),
}

/// What all producers here take.
#[derive(Debug, Clone, clap::Args)]
struct Load {
    /// The topic
    topic: String,
    /// Bytes a message
    #[arg(short, long, default_value_t = 100, value_name = "BYTES")]
    size: usize,
    /// One message a frame
    #[arg(long)]
    no_batching: bool,
    /// Messages that may be on their way, unacknowledged
    #[arg(short, long, default_value_t = 1000, value_name = "N")]
    window: usize,
    /// End after this long
    #[arg(short, long, default_value = "10s", value_name = "TIME",
          value_parser = geminga_stdx::size::parse_duration)]
    time: Duration,
    /// none, lz4, zlib, zstd or snappy
    #[arg(long, default_value = "none", value_parser = compression)]
    compression: Compression,
}

fn compression(text: &str) -> Result<Compression, String> {
    match text.to_ascii_lowercase().as_str() {
        "none" => Ok(Compression::None),
        "lz4" => Ok(Compression::Lz4),
        "zlib" => Ok(Compression::Zlib),
        "zstd" => Ok(Compression::Zstd),
        "snappy" => Ok(Compression::Snappy),
        _ => Err("it is one of none, lz4, zlib, zstd, snappy".to_owned()),
    }
}

pub(crate) fn run(args: PerfArgs, global: &Global) -> Outcome {
    block_on(async {
        match args.what {
            What::Produce(args) => produce::run(args, global).await,
            What::Consume(args) => consume::run(args, global).await,
            What::Latency(args) => latency::run(args, global).await,
        }
    })
}
