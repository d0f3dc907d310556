//! What a component may ask: the interface `geminga:function/context`, answered from the message in hand, from
//! the function's configuration, and by the worker.

use std::sync::Arc;

use bytes::Bytes;
use geminga_functions::runtime::{FailureKind, HostSpec};

use super::bindings::geminga::function::context::{Host, Level, Message, Output};
use super::wire::{Published, Wire};
use crate::frames;

/// What an output costs beside its payload, so that empty ones are not free.
const OUTPUT_BYTES: u64 = 64;

/// The function, and the message that it has in hand.
pub(super) struct Context {
    spec: Arc<HostSpec>,
    wire: Wire,
    block: Bytes,
    published: Vec<Published>,
    published_bytes: u64,
    exceeded: bool,
}

impl Context {
    pub(super) fn new(spec: Arc<HostSpec>, wire: Wire) -> Self {
        Self {
            spec,
            wire,
            block: Bytes::new(),
            published: Vec::new(),
            published_bytes: 0,
            exceeded: false,
        }
    }

    /// A message is in hand.
    pub(super) fn begin(&mut self, block: Bytes) {
        self.block = block;
        self.published.clear();
        self.published_bytes = 0;
    }

    /// It is done; what was published meanwhile.
    pub(super) fn end(&mut self) -> Vec<Published> {
        std::mem::take(&mut self.published)
    }

    /// The limit of ours that ended the guest.
    pub(super) fn exceeded(&self) -> Option<(FailureKind, String)> {
        let limit = self.spec.options.max_output_bytes;
        self.exceeded.then(|| {
            (
                FailureKind::Output,
                format!("more than {limit} bytes of output for one message"),
            )
        })
    }

    /// Counts an output of the message in hand, be it published or returned.
    pub(super) fn count(&mut self, bytes: usize) -> wasmtime::Result<()> {
        self.published_bytes += bytes as u64 + OUTPUT_BYTES;
        if self.published_bytes > self.spec.options.max_output_bytes {
            self.exceeded = true;
            return Err(wasmtime::Error::msg("too much output for one message"));
        }
        Ok(())
    }

    fn message(&self) -> Message {
        let mut message = Message {
            topic: String::new(),
            id: String::new(),
            key: None,
            key_is_base64: false,
            ordering_key: None,
            properties: Vec::new(),
            event_time: 0,
            publish_time: 0,
            producer: String::new(),
            sequence: 0,
            redelivery: 0,
            partition: -1,
        };
        for (name, value) in frames::pairs(&self.block) {
            match name.as_str() {
                "topic" => message.topic = value,
                "id" => message.id = value,
                "key" => message.key = Some(value),
                "key64" => {
                    message.key = Some(value);
                    message.key_is_base64 = true;
                }
                "orderingKey" => message.ordering_key = Some(value),
                "eventTime" => message.event_time = value.parse().unwrap_or(0),
                "publishTime" => message.publish_time = value.parse().unwrap_or(0),
                "producer" => message.producer = value,
                "sequence" => message.sequence = value.parse().unwrap_or(0),
                "redelivery" => message.redelivery = value.parse().unwrap_or(0),
                "partition" => message.partition = value.parse().unwrap_or(-1),
                other => {
                    if let Some(property) = other.strip_prefix("prop.") {
                        message.properties.push((property.to_owned(), value));
                    }
                }
            }
        }
        message
    }
}

/// The header block of an output.
fn block(output: &Output) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [
        ("topic", &output.topic),
        ("key", &output.key),
        ("orderingKey", &output.ordering_key),
    ] {
        if let Some(value) = value {
            frames::push(&mut block, name, value);
        }
    }
    for (name, value) in [
        ("eventTime", output.event_time),
        ("delayMs", output.delay_ms),
        ("sequence", output.sequence),
    ] {
        if let Some(value) = value {
            frames::push(&mut block, name, &value.to_string());
        }
    }
    for (name, value) in &output.properties {
        frames::push(&mut block, &format!("prop.{name}"), value);
    }
    block
}

impl Host for Context {
    async fn current(&mut self) -> wasmtime::Result<Message> {
        Ok(self.message())
    }

    async fn publish(&mut self, output: Output) -> wasmtime::Result<()> {
        let block = block(&output);
        self.count(block.len() + output.payload.len())?;
        self.published.push(Published {
            block,
            payload: output.payload,
        });
        Ok(())
    }

    async fn user_config(&mut self, key: String) -> wasmtime::Result<Option<String>> {
        let value = self.spec.user_config.get(&key);
        Ok(value.map(|value| match value.as_str() {
            Some(text) => text.to_owned(),
            None => value.to_string(),
        }))
    }

    async fn user_config_json(&mut self) -> wasmtime::Result<String> {
        Ok(serde_json::to_string(&self.spec.user_config)?)
    }

    async fn secret(&mut self, name: String) -> wasmtime::Result<Option<String>> {
        Ok(self.spec.secrets.get(&name).cloned())
    }

    async fn fact(&mut self, name: String) -> wasmtime::Result<Option<String>> {
        let spec = &self.spec;
        Ok(match name.as_str() {
            "tenant" => Some(spec.tenant.clone()),
            "namespace" => Some(spec.namespace.clone()),
            "name" => Some(spec.name.clone()),
            "functionId" => Some(spec.function_id.clone()),
            "version" => Some(spec.version.clone()),
            "cluster" => Some(spec.cluster.clone()),
            "instance" => Some(spec.instance.to_string()),
            "instances" => Some(spec.instances.to_string()),
            "output" => spec.output.clone(),
            "logTopic" => spec.log_topic.clone(),
            _ => None,
        })
    }

    async fn inputs(&mut self) -> wasmtime::Result<Vec<String>> {
        Ok(self.spec.inputs.clone())
    }

    async fn state_get(&mut self, key: String) -> wasmtime::Result<Option<Vec<u8>>> {
        Ok(self.wire.state(&key).await?.map(Vec::from))
    }

    async fn state_put(&mut self, key: String, value: Vec<u8>) -> wasmtime::Result<()> {
        let pairs = [("op", "state.put"), ("key", &*key)];
        self.wire.request(&pairs, &value).await;
        Ok(())
    }

    async fn state_delete(&mut self, key: String) -> wasmtime::Result<()> {
        let pairs = [("op", "state.delete"), ("key", &*key)];
        self.wire.request(&pairs, &[]).await;
        Ok(())
    }

    async fn state_increment(&mut self, key: String, by: i64) -> wasmtime::Result<()> {
        let by = by.to_string();
        let pairs = [("op", "state.increment"), ("key", &*key), ("by", &*by)];
        self.wire.request(&pairs, &[]).await;
        Ok(())
    }

    async fn log(&mut self, level: Level, text: String) -> wasmtime::Result<()> {
        let level = match level {
            Level::Trace => "trace",
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        };
        self.wire
            .send(b'L', &[("level", level)], text.as_bytes())
            .await;
        Ok(())
    }

    async fn metric(&mut self, name: String, value: f64) -> wasmtime::Result<()> {
        let value = value.to_string();
        self.wire
            .send(b'M', &[("name", &*name), ("value", &*value)], &[])
            .await;
        Ok(())
    }

    async fn acknowledge(&mut self, id: String) -> wasmtime::Result<()> {
        self.wire.request(&[("op", "ack"), ("id", &*id)], &[]).await;
        Ok(())
    }
}
