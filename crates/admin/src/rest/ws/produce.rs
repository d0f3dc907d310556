//! A session that produces: a message a text, a receipt a text, in the order of the messages.
//!
//! What must hold: no more messages are taken than the window allows, so a client that floods is
//! read as fast as the broker stores; what was taken is sent even when the client goes.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;

use geminga_client::{MessageId, Producer, Receipt};
use jiff::Timestamp;

use super::json::{Code, ProducerAck, message};
use super::wire::{Gone, Wire};

/// Bytes of contexts that wait for their receipts.
const CONTEXT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Messages under way.
#[derive(Default)]
struct Pending {
    queue: VecDeque<(Receipt, Option<String>)>,
    context_bytes: usize,
}

impl Pending {
    fn push(&mut self, receipt: Receipt, context: Option<String>) {
        self.context_bytes += context.as_ref().map_or(0, String::len);
        self.queue.push_back((receipt, context));
    }

    /// What became of the oldest. Cancel-safe.
    async fn first(&mut self) -> ProducerAck {
        let result: geminga_client::Result<MessageId> =
            poll_fn(|cx| match self.queue.front_mut() {
                Some((receipt, _)) => Pin::new(receipt).poll(cx),
                None => std::task::Poll::Pending,
            })
            .await;
        let context = self.queue.pop_front().and_then(|(_, context)| context);
        self.context_bytes -= context.as_ref().map_or(0, String::len);
        match result {
            Ok(id) => ProducerAck::ok(id, context),
            Err(error) => ProducerAck::failed(Code::Unknown, error.to_string(), context),
        }
    }
}

pub(super) async fn run(mut wire: Wire, producer: Producer, window: usize) {
    let mut pending = Pending::default();
    while turn(&mut wire, &producer, &mut pending, window)
        .await
        .is_ok()
    {}
    // Waits for what is under way; a failure has nobody left to tell.
    if let Err(error) = producer.close().await {
        tracing::debug!(%error, "messages of a WebSocket that is gone were not stored");
    }
}

async fn turn(
    wire: &mut Wire,
    producer: &Producer,
    pending: &mut Pending,
    window: usize,
) -> Result<(), Gone> {
    let has_room = pending.queue.len() < window && pending.context_bytes < CONTEXT_BYTES_MAX;
    if !has_room {
        let ack = tokio::select! {
            ack = pending.first() => ack,
            () = wire.stopping() => return Err(Gone),
        };
        return wire.send(ack.json()).await;
    }
    let text = tokio::select! {
        ack = pending.first() => return wire.send(ack.json()).await,
        text = wire.next() => text.ok_or(Gone)?,
    };
    let now_ms = Timestamp::now().as_millisecond();
    let (message, context) = match message(&text, now_ms) {
        Ok(good) => good,
        Err(refusal) => return wire.send(refusal.json()).await,
    };
    match producer.enqueue(message).await {
        Ok(receipt) => pending.push(receipt, context),
        Err(error) => {
            let ack = ProducerAck::failed(Code::Unknown, error.to_string(), context);
            return wire.send(ack.json()).await;
        }
    }
    Ok(())
}
