//! What the client itself costs: it speaks to a broker that does nothing but answer, over TCP or
//! a pipe in the process.
//!
//! `cargo run --release -p geminga-client --example throughput [tcp|pipe]`

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use geminga_client::transport::Io;
use geminga_client::{Batching, Client, Message, Pipe, SubType};
use geminga_proto::frame::{FRAME_SIZE_MAX, Frames, encode_command};
use geminga_proto::pb::command_lookup_topic_response::LookupType;
use geminga_proto::send::{Delivery, SendReceipt};
use geminga_proto::{Command, command, message, pb};
use geminga_stdx::Tasks;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

const MESSAGES: usize = 2_000_000;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let tasks = Tasks::new();
    let (client, url) = match std::env::args().nth(1).as_deref() {
        Some("pipe") => {
            let (pipe, accepted) = Pipe::new();
            let url = "pulsar://pipe:6650".to_owned();
            serve(&tasks, accepted, url.clone());
            (Client::builder(&url).connector(Arc::new(pipe)).build(), url)
        }
        _ => {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let url = format!("pulsar://{}", listener.local_addr()?);
            let (accept, accepted) = mpsc::channel(8);
            serve(&tasks, accepted, url.clone());
            tasks.spawn_cancellable("accept", async move {
                while let Ok((stream, _)) = listener.accept().await {
                    _ = stream.set_nodelay(true);
                    if accept.send(Io::new(stream)).await.is_err() {
                        return;
                    }
                }
            });
            (Client::builder(&url).build(), url)
        }
    };
    writeln!(std::io::stdout(), "{url}")?;
    let payload = Bytes::from(vec![b'x'; 100]);
    for (what, batching, window) in [
        ("one message a frame, window 1,000", Batching::off(), 1000),
        ("batched, window 1,000", Batching::default(), 1000),
        ("batched, window 10,000", Batching::default(), 10_000),
    ] {
        let producer = client
            .producer("t")
            .batching(batching)
            .window(window)
            .build()
            .await?;
        report(&format!("post, {what}"), async {
            for _ in 0..MESSAGES {
                producer.post(Message::new(payload.clone())).await?;
            }
            producer.flush().await
        })
        .await?;
        report(&format!("enqueue and receipts, {what}"), async {
            let mut receipts = std::collections::VecDeque::new();
            for _ in 0..MESSAGES {
                if receipts.len() >= window
                    && let Some(oldest) = receipts.pop_front()
                {
                    oldest.await?;
                }
                receipts.push_back(producer.enqueue(Message::new(payload.clone())).await?);
            }
            for receipt in receipts {
                receipt.await?;
            }
            Ok(())
        })
        .await?;
        producer.close().await?;
    }
    for (what, topic) in [
        ("one message a frame", "single"),
        ("100 messages a frame", "batch"),
    ] {
        let consumer = client
            .consumer(topic)
            .subscription("s")
            .sub_type(SubType::Shared);
        let mut consumer = consumer.receiver_queue_size(2000).build().await?;
        report(&format!("recv_batch and ack, {what}"), async {
            let mut received = 0;
            while received < MESSAGES {
                let messages = consumer.recv_batch(1000).await?;
                received += messages.len();
                consumer.ack_many(&messages).await?;
            }
            Ok(())
        })
        .await?;
    }
    tasks.cancel();
    Ok(())
}

async fn report(
    what: &str,
    run: impl Future<Output = geminga_client::Result<()>>,
) -> Result<(), Box<dyn std::error::Error>> {
    let (start, ticks) = (Instant::now(), cpu_ticks());
    run.await?;
    let rate = MESSAGES as f64 / start.elapsed().as_secs_f64();
    // A tick is 10 ms. The broker that only answers is in it.
    let cpu_ns = (cpu_ticks() - ticks) * 1e7 / MESSAGES as f64;
    writeln!(
        std::io::stdout(),
        "{rate:9.0}/s {cpu_ns:6.0} ns of CPU  {what}"
    )?;
    tokio::time::sleep(Duration::from_millis(10)).await;
    Ok(())
}

/// CPU time of this process, user and system.
fn cpu_ticks() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.split_whitespace().collect();
    let tick = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok());
    tick(13).unwrap_or(0.0) + tick(14).unwrap_or(0.0)
}

fn serve(tasks: &Tasks, mut accepted: mpsc::Receiver<Io>, url: String) {
    let running = tasks.clone();
    tasks.spawn_cancellable("broker", async move {
        while let Some(io) = accepted.recv().await {
            let url = url.clone();
            running.spawn_cancellable("connection", async move {
                _ = connection(io, &url).await;
            });
        }
    });
}

/// Answers everything with yes.
async fn connection(mut io: Io, url: &str) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut buffer = BytesMut::with_capacity(1 << 20);
    let mut out = BytesMut::with_capacity(1 << 20);
    let (single, batch) = blocks();
    let mut block = single.clone();
    let mut entry_id = 0;
    loop {
        if io.read.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        let mut frames = Frames::cut(&mut buffer, FRAME_SIZE_MAX)?;
        while let Some(frame) = frames.next() {
            if let Some(send) = frame.send()? {
                entry_id += 1;
                let receipt = SendReceipt {
                    producer_id: send.producer_id,
                    sequence_id: send.sequence_id,
                    highest_sequence_id: send.highest_sequence_id,
                    ledger_id: 1,
                    entry_id,
                };
                receipt.encode_frame(&mut out);
                continue;
            }
            let answer: Command = match frame.command()? {
                Command::Connect(_) => pb::CommandConnected {
                    server_version: "nothing".into(),
                    protocol_version: Some(21),
                    ..Default::default()
                }
                .into(),
                Command::PartitionedMetadata(request) => {
                    pb::CommandPartitionedTopicMetadataResponse {
                        request_id: request.request_id,
                        ..Default::default()
                    }
                    .into()
                }
                Command::Lookup(request) => pb::CommandLookupTopicResponse {
                    request_id: request.request_id,
                    broker_service_url: Some(url.to_owned()),
                    response: Some(LookupType::Connect as i32),
                    ..Default::default()
                }
                .into(),
                Command::Producer(request) => pb::CommandProducerSuccess {
                    request_id: request.request_id,
                    producer_name: "p".into(),
                    ..Default::default()
                }
                .into(),
                Command::Subscribe(request) => {
                    block = if request.topic.ends_with("batch") {
                        batch.clone()
                    } else {
                        single.clone()
                    };
                    command::success(request.request_id)
                }
                Command::Flow(flow) => {
                    let count = message::peek(&block)?.message_count();
                    for _ in 0..flow.message_permits.div_ceil(count) {
                        entry_id += 1;
                        let delivery = Delivery {
                            consumer_id: flow.consumer_id,
                            ledger_id: 1,
                            entry_id,
                            ..Delivery::default()
                        };
                        delivery.encode_frame(block.len(), &mut out);
                        out.extend_from_slice(&block);
                    }
                    continue;
                }
                Command::CloseProducer(request) => command::success(request.request_id),
                _ => continue,
            };
            encode_command(&answer, &mut out);
        }
        io.write.write_all(&out).await?;
        out.clear();
    }
}

/// An entry of one message, and one of a hundred.
fn blocks() -> (Bytes, Bytes) {
    let build = |payload: &[u8], count: Option<i32>| {
        let metadata = pb::MessageMetadata {
            producer_name: "p".into(),
            publish_time: 1_700_000_000_000,
            num_messages_in_batch: count,
            uncompressed_size: Some(payload.len() as u32),
            ..Default::default()
        };
        let mut block = message::encode_headers(&metadata, payload);
        block.extend_from_slice(payload);
        block.freeze()
    };
    let mut builder = geminga_proto::batch::Builder::default();
    for _ in 0..100 {
        builder.push(&mut pb::SingleMessageMetadata::default(), &[b'x'; 100]);
    }
    let (batch, count) = builder.finish();
    (build(&[b'x'; 100], None), build(&batch, Some(count)))
}
