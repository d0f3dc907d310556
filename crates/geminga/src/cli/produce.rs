//! `geminga produce`: messages from arguments, a file, or the lines of stdin.

use std::path::PathBuf;

use bytes::Bytes;
use geminga_client::Message;
use geminga_stdx::Diagnostic;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

use super::{Global, block_on, client};
use crate::failure::{Exit, Failure, Outcome};
use crate::output;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    geminga produce quakes -m 'hello' -k region-1 -p source=cli\n  \
    geminga produce quakes --file events.jsonl\n  \
    tail -f app.log | geminga produce logs")]
pub(crate) struct ProduceArgs {
    /// The topic, like `quakes` or `persistent://public/default/quakes`
    topic: String,
    /// A message; repeat for more. Without any, each line of stdin is a message
    #[arg(short, long = "message", value_name = "TEXT", conflicts_with = "file")]
    messages: Vec<String>,
    /// Read the messages from this file, one a line
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The key of each message
    #[arg(short, long)]
    key: Option<String>,
    /// A property of each message; repeat for more
    #[arg(short, long = "property", value_name = "NAME=VALUE", value_parser = super::pair)]
    properties: Vec<(String, String)>,
    /// The event time of each message, in milliseconds since 1970
    #[arg(long, value_name = "MS")]
    event_time: Option<u64>,
}

pub(crate) fn run(args: ProduceArgs, global: &Global) -> Outcome {
    block_on(async {
        let connection = client::client(global).await?;
        let producer = connection
            .producer(&args.topic)
            .build()
            .await
            .map_err(|error| client::failure(&error, global))?;
        let message = |payload: Bytes| {
            let mut message = Message::new(payload).properties(args.properties.clone());
            if let Some(key) = &args.key {
                message = message.key(key.clone());
            }
            if let Some(ms) = args.event_time {
                message = message.event_time(ms);
            }
            message
        };
        let mut sent = 0_u64;
        if args.messages.is_empty() {
            let input: Box<dyn AsyncRead + Unpin + Send> = match &args.file {
                Some(path) => Box::new(tokio::fs::File::open(path).await.map_err(|error| {
                    Failure::new(
                        Exit::NotFound,
                        Diagnostic::error(
                            "G0001",
                            format!("can't read `{}`: {error}", path.display()),
                        ),
                    )
                })?),
                None => Box::new(tokio::io::stdin()),
            };
            let mut lines = BufReader::with_capacity(1 << 16, input);
            let mut line = Vec::new();
            while lines.read_until(b'\n', &mut line).await? > 0 {
                if line.last() == Some(&b'\n') {
                    line.pop();
                }
                let payload = Bytes::from(std::mem::take(&mut line));
                producer
                    .post(message(payload))
                    .await
                    .map_err(|e| client::failure(&e, global))?;
                sent += 1;
            }
        } else {
            for text in &args.messages {
                let payload = Bytes::from(text.clone());
                producer
                    .post(message(payload))
                    .await
                    .map_err(|e| client::failure(&e, global))?;
                sent += 1;
            }
        }
        // Only now is everything acknowledged.
        producer
            .flush()
            .await
            .map_err(|error| client::failure(&error, global))?;
        output::note(&format!("{sent} message(s) stored in {}", args.topic));
        producer
            .close()
            .await
            .map_err(|error| client::failure(&error, global))
    })
}
