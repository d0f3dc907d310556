//! What a broker's hot path costs: cut a SEND frame, decode its command, peek at its metadata,
//! slice its block. `cargo run --release -p geminga-proto --example send_decode`

use std::hint::black_box;
use std::io::Write;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use geminga_proto::frame::{FRAME_SIZE_MAX, Frames};
use geminga_proto::send::{Delivery, Send, SendReceipt};
use geminga_proto::{Command, message, pb};

const FRAMES: u64 = 500;

fn stream() -> BytesMut {
    let mut out = BytesMut::new();
    let payload = [b'x'; 100];
    for sequence_id in 0..FRAMES {
        let metadata = pb::MessageMetadata {
            producer_name: "standalone-0-17".into(),
            sequence_id,
            publish_time: 1_700_000_000_000 + sequence_id,
            uncompressed_size: Some(100),
            ..Default::default()
        };
        let headers = message::encode_headers(&metadata, &payload);
        let send = Send {
            producer_id: 3,
            sequence_id,
            num_messages: 1,
            ..Send::default()
        };
        send.encode_frame(headers.len() + payload.len(), &mut out);
        out.extend_from_slice(&headers);
        out.extend_from_slice(&payload);
    }
    out
}

/// Nanoseconds a frame: the best of several rounds.
fn measure(mut round: impl FnMut()) -> f64 {
    let mut best = Duration::MAX;
    for _ in 0..300 {
        let start = Instant::now();
        round();
        best = best.min(start.elapsed());
    }
    best.as_nanos() as f64 / FRAMES as f64
}

fn frames(bytes: &Bytes) -> Frames {
    let mut buffer = BytesMut::from(&bytes[..]);
    Frames::cut(&mut buffer, FRAME_SIZE_MAX).expect("good frames")
}

fn main() -> std::io::Result<()> {
    let bytes = stream().freeze();
    let copy = measure(|| {
        black_box(frames(&bytes));
    });
    let send = measure(|| {
        let mut frames = frames(&bytes);
        while let Some(frame) = frames.next() {
            black_box(frame.send().expect("good").expect("a SEND"));
            black_box(frame.block_bytes());
        }
    });
    let peek = measure(|| {
        let mut frames = frames(&bytes);
        while let Some(frame) = frames.next() {
            black_box(frame.send().expect("good").expect("a SEND"));
            let block = frame.block_bytes();
            black_box(message::peek(&block).expect("good"));
        }
    });
    let checked = measure(|| {
        let mut frames = frames(&bytes);
        while let Some(frame) = frames.next() {
            black_box(frame.send().expect("good").expect("a SEND"));
            let block = frame.block_bytes();
            message::verify_checksum(&block).expect("good");
            black_box(message::peek(&block).expect("good"));
        }
    });
    let generated = measure(|| {
        let mut frames = frames(&bytes);
        while let Some(frame) = frames.next() {
            black_box(Command::decode(frame.command_bytes()).expect("good"));
            let block = frame.block_bytes();
            black_box(message::decode_metadata(&block).expect("good"));
        }
    });
    let mut out = BytesMut::with_capacity(1 << 20);
    let receipt = measure(|| {
        out.clear();
        for sequence_id in 0..FRAMES {
            let receipt = SendReceipt {
                producer_id: 3,
                sequence_id,
                entry_id: sequence_id,
                ..Default::default()
            };
            receipt.encode_frame(&mut out);
        }
        black_box(&out);
    });
    let delivery = measure(|| {
        out.clear();
        for entry_id in 0..FRAMES {
            let delivery = Delivery {
                consumer_id: 3,
                ledger_id: 70_000,
                entry_id,
                ..Default::default()
            };
            delivery.encode_frame(200, &mut out);
        }
        black_box(&out);
    });
    let mut stdout = std::io::stdout().lock();
    for (what, ns) in [
        ("copy into a buffer and cut (in all below)", copy),
        ("SEND: command, block slice", send),
        ("SEND: command, block slice, metadata", peek),
        ("SEND: command, block slice, metadata, checksum", checked),
        ("the same by prost, without checksum", generated),
        ("SEND_RECEIPT encoded", receipt),
        ("MESSAGE head encoded", delivery),
    ] {
        writeln!(stdout, "{ns:6.1} ns  {what}")?;
    }
    Ok(())
}
