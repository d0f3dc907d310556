//! Where an instance's outputs go: producers of topics, made when first needed.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use geminga_client::{
    Batching, Client, Message as Sent, MessageId, Producer, Receipt, Schema, Transaction,
};
use geminga_stdx::Clock;

use super::guarantee::{Letter, with_key};
use super::refusals::{Refusals, is_refusal};
use crate::plan::ProducerPlan;
use crate::rights::Limits;
use crate::runtime::wire_base64::base64;
use crate::runtime::{BoxFuture, Message, Output};
use crate::schema::misfit;

/// Topics that one instance may write to.
const PRODUCERS_MAX: usize = 1000;
/// Versions of schemas that are remembered; more are asked for again.
const VERSIONS_MAX: usize = 1000;
/// Outputs that may wait for their receipts where the configuration does not say: a store that takes 10 ms is
/// waited for at a million a second. What they may take is bounded by the client, 64 MiB.
const WINDOW: usize = 10_000;
/// Properties of W3C trace context.
const TRACE: [&str; 3] = ["traceparent", "tracestate", "baggage"];

/// On a message that was sent for its answer: for which function. Its outputs say whose they are then, since
/// several functions may have the same topics.
pub(crate) const TRIGGER: &str = "geminga.trigger";
/// On an output, or a dead letter, of such a message: the full name of the function that it comes from.
pub const FUNCTION: &str = "geminga.function";

/// Why outputs were not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WriteError {
    /// These outputs can not be written, whatever the sink does.
    Message(String),
    /// The same, and some of them are in the transaction.
    Spoiled(String),
    /// The sink can not go on.
    Sink(String),
}

/// Takes outputs.
pub(crate) trait Sink: Send {
    /// Why a message can not be written as it is, where the sink knows without writing it.
    fn refuses(&self, _message: &Message) -> Option<String> {
        None
    }

    /// Puts the outputs of one message on their way, waiting for room. They are durable when all
    /// receipts resolve and, where there is a [`Syncer`], after its next sync. In a transaction they
    /// are part of it, and there are no receipts: its commit waits for them.
    fn write<'a>(
        &'a mut self,
        input: &'a Message,
        outputs: Vec<Output>,
        txn: Option<&'a Transaction>,
    ) -> BoxFuture<'a, Result<Vec<Receipt>, WriteError>>;

    /// Sends a message that is given up.
    fn dead_letter<'a>(
        &'a mut self,
        topic: &'a str,
        letter: Letter,
        input: &'a Message,
        txn: Option<&'a Transaction>,
    ) -> BoxFuture<'a, Result<Vec<Receipt>, String>>;

    fn syncer(&self) -> Option<Arc<dyn Syncer>> {
        None
    }

    /// Lets go of what it has; most have nothing.
    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}

/// Makes everything written so far durable.
pub(crate) trait Syncer: Send + Sync {
    fn sync(&self) -> BoxFuture<'_, Result<(), String>>;
}

/// Producers by topic.
pub(crate) struct TopicSink {
    client: Client,
    /// Whose outputs these are: the full name.
    function: String,
    default: Option<String>,
    plan: ProducerPlan,
    forward_properties: bool,
    properties: Vec<(String, String)>,
    /// By topic; where outputs are numbered, by producer name.
    producers: HashMap<String, Typed>,
    /// What the default topic is declared to be.
    schema: Option<Arc<Schema>>,
    /// Of schemas that are not their producer's, by topic: the version that the topic has for it.
    versions: Vec<(String, Arc<Schema>, Bytes)>,
    clock: Clock,
    /// Outputs carry numbers made of their inputs' ids, for a broker that drops what it has.
    numbered: bool,
    /// What the function may write to, where somebody is asked.
    limits: Option<Limits>,
    /// What was refused before.
    refusals: Arc<Refusals>,
}

/// A producer, and what it has declared.
struct Typed {
    producer: Producer,
    schema: Option<Arc<Schema>>,
}

impl TopicSink {
    /// Connects to the default topic at once, so that a wrong one shows at the start.
    pub(crate) async fn open(
        client: Client,
        function: String,
        (default, schema): (Option<String>, Option<Schema>),
        plan: ProducerPlan,
        forward_properties: bool,
        properties: Vec<(String, String)>,
        refusals: Arc<Refusals>,
    ) -> Result<Self, geminga_client::Error> {
        let mut sink = Self {
            client,
            function,
            default,
            plan,
            forward_properties,
            properties,
            producers: HashMap::new(),
            schema: schema.map(Arc::new),
            versions: Vec::new(),
            clock: Clock::system(),
            numbered: false,
            limits: None,
            refusals,
        };
        if let Some(topic) = sink.default.clone() {
            let schema = sink.schema.clone();
            let producer = sink.build(&topic, None, schema.as_ref()).await?;
            sink.producers.insert(topic, Typed { producer, schema });
        }
        Ok(sink)
    }

    /// Writes no more than whoever registered the function may.
    pub(crate) fn limit(&mut self, limits: Option<Limits>) {
        self.limits = limits;
    }

    /// Outputs to the default topic carry numbers from now on, by which a broker with deduplication
    /// drops those that it has.
    pub(crate) fn number(&mut self) {
        self.numbered = true;
    }

    async fn build(
        &self,
        topic: &str,
        name: Option<&str>,
        schema: Option<&Arc<Schema>>,
    ) -> Result<Producer, geminga_client::Error> {
        let mut builder = self
            .client
            .producer(topic)
            .compression(self.plan.compression)
            .batching(match self.refusals.no_batches() {
                true => Batching::off(),
                false => self.plan.batching.clone(),
            })
            .window(self.plan.window.unwrap_or(WINDOW));
        if let Some(schema) = schema {
            builder = builder.schema(Schema::clone(schema));
        }
        for (name, value) in &self.properties {
            builder = builder.property(name.clone(), value.clone());
        }
        if let Some(name) = name {
            // Alone: of a batch a broker looks at the first number, and after a restart batches are others.
            // One that begins with what it has would be dropped with all that is new in it.
            builder = builder.name(name).batching(Batching::off());
        }
        builder.build().await
    }

    async fn producer(&mut self, topic: &str) -> Result<&Producer, WriteError> {
        let typed = self.named(topic, None, None).await?;
        Ok(&typed.producer)
    }

    /// The producer of a topic, or one with a name of its own. A new one declares the schema of its first message; the
    /// default topic has its own.
    async fn named(
        &mut self,
        topic: &str,
        name: Option<&str>,
        schema: Option<&Arc<Schema>>,
    ) -> Result<&Typed, WriteError> {
        if let Some(limits) = &self.limits {
            limits.may_publish(topic).map_err(WriteError::Message)?;
        }
        let key = name.unwrap_or(topic);
        if !self.producers.contains_key(key) {
            // Apart, so that the usual way, once a message, moves little memory.
            Box::pin(self.add_producer(topic, name, schema)).await?;
        }
        self.producers
            .get(key)
            .ok_or_else(|| WriteError::Sink("a producer that was just made is gone".to_owned()))
    }

    async fn add_producer(
        &mut self,
        topic: &str,
        name: Option<&str>,
        schema: Option<&Arc<Schema>>,
    ) -> Result<(), WriteError> {
        if self.producers.len() >= PRODUCERS_MAX {
            return Err(WriteError::Message(format!(
                "`{topic}` would be one of more than {PRODUCERS_MAX} output topics"
            )));
        }
        let schema = match self.default.as_deref() == Some(topic) {
            true => self.schema.clone().or_else(|| schema.cloned()),
            false => schema.cloned(),
        };
        let built = self.build(topic, name, schema.as_ref()).await;
        let producer = built.map_err(|error| {
            if error.is_retriable() {
                WriteError::Sink(error.to_string())
            } else {
                WriteError::Message(format!("output topic `{topic}`: {error}"))
            }
        })?;
        self.producers
            .insert(name.unwrap_or(topic).to_owned(), Typed { producer, schema });
        Ok(())
    }

    /// Refuses what shows before anything is sent: a schema that a topic does not take, and a payload that is no
    /// value of its schema.
    async fn check(&mut self, outputs: &[Output]) -> Result<(), WriteError> {
        for output in outputs {
            let own = output.schema.as_ref();
            let of_default = self.schema.as_ref().filter(|_| output.topic.is_none());
            let Some(schema) = own.or(of_default) else {
                continue;
            };
            let topic = match &output.topic {
                Some(topic) => crate::plan::full_name(topic),
                None => match &self.default {
                    Some(topic) => topic.clone(),
                    None => continue,
                },
            };
            if let Some(why) = misfit(schema, &output.payload) {
                return Err(WriteError::Message(format!("output to `{topic}`: {why}")));
            }
            // A producer with a name of its own is made when the message is numbered.
            if let Some(own) = own.filter(|own| self.schema.as_ref() != Some(own)) {
                let own = own.clone();
                self.version(&topic, None, &own).await?;
            }
        }
        Ok(())
    }

    /// The version that a message of a topic names, of a schema that its producer has not declared. The topic
    /// takes a schema that is new, or refuses it.
    async fn version(
        &mut self,
        topic: &str,
        name: Option<&str>,
        schema: &Arc<Schema>,
    ) -> Result<Option<Bytes>, WriteError> {
        let is = |known: &Arc<Schema>| Arc::ptr_eq(known, schema) || known == schema;
        let typed = self.named(topic, name, Some(schema)).await?;
        if typed.schema.as_ref().is_some_and(is) {
            return Ok(None);
        }
        let mut versions = self.versions.iter();
        if let Some((.., version)) = versions.find(|(name, known, _)| name == topic && is(known)) {
            return Ok(Some(version.clone()));
        }
        let registered = self.client.register_schema(topic, schema).await;
        let version = registered.map_err(|error| match error.is_retriable() {
            true => WriteError::Sink(error.to_string()),
            false => WriteError::Message(format!("schema of an output to `{topic}`: {error}")),
        })?;
        if self.versions.len() >= VERSIONS_MAX {
            self.versions.clear();
        }
        let known = (topic.to_owned(), schema.clone(), version.clone());
        self.versions.push(known);
        Ok(Some(version))
    }

    fn message(&self, input: &Message, output: Output) -> Sent {
        let mut properties =
            Vec::with_capacity(input.properties.len() + output.properties.len() + 3);
        let kept = |(name, _): &&(String, String)| {
            // A trace goes on through a function that forwards nothing else.
            (self.forward_properties || TRACE.contains(&name.as_str()))
                && !name.starts_with("__pfn_input_")
                && name != FUNCTION
                && !output.properties.iter().any(|(n, _)| n == name)
        };
        properties.extend(input.properties.iter().filter(kept).cloned());
        properties.extend(output.properties);
        if let Some(id) = &input.place {
            properties.push(("__pfn_input_topic__".to_owned(), input.topic.to_string()));
            properties.push(("__pfn_input_msg_id__".to_owned(), pfn_id(id)));
        }
        if input.triggered {
            properties.push((FUNCTION.to_owned(), self.function.clone()));
        }
        let mut message = Sent::new(output.payload).properties(properties);
        message = match &output.key {
            Some(key) => with_key(message, Some(key), output.key_is_base64),
            None => with_key(message, input.key.as_deref(), input.key_is_base64),
        };
        if let Some(time) = output
            .event_time
            .or((input.event_time > 0).then_some(input.event_time))
        {
            message = message.event_time(time);
        }
        if let Some(delay) = output.delay_ms {
            let at = self.clock.now_ms().saturating_add(delay);
            message = message.deliver_at(i64::try_from(at).unwrap_or(i64::MAX));
        }
        if let Some(key) = output.ordering_key {
            message = message.ordering_key(key.into_bytes());
        }
        if let Some(sequence) = output.sequence {
            message = message.sequence_id(sequence);
        }
        message
    }
}

/// Sends a message in no batch with others, and waits until the broker has it.
async fn post_alone(
    producer: &Producer,
    message: Sent,
    txn: Option<&Transaction>,
) -> Result<(), geminga_client::Error> {
    // What fails before is told to those who sent it.
    let _ = producer.flush().await;
    let sent = match txn {
        Some(txn) => producer.enqueue_in(txn, message).await?,
        None => producer.enqueue(message).await?,
    };
    let _ = producer.flush().await;
    sent.await.map(drop)
}

/// Sends a letter, whole where it can be.
pub(crate) async fn post_letter(
    producer: &Producer,
    letter: Letter,
    txn: Option<&Transaction>,
) -> Result<Vec<Receipt>, String> {
    let post = async |message: Sent| match txn {
        Some(txn) => producer.post_in(txn, message).await.map(|()| Vec::new()),
        None => producer.enqueue(message).await.map(|sent| vec![sent]),
    };
    let posted = match post(letter.whole).await {
        Err(geminga_client::Error::MessageTooLarge { .. }) => post(letter.bare).await,
        posted => posted,
    };
    posted.map_err(|error| error.to_string())
}

/// A message id as Pulsar's functions write it into a property: base64 of its protobuf form.
pub(crate) fn pfn_id(id: &MessageId) -> String {
    // Four fields of a tag and ten bytes at most.
    let mut bytes = [0; 44];
    let mut len = 0;
    let mut push = |byte: u8| {
        bytes[len] = byte;
        len += 1;
    };
    let mut field = |tag: u8, value: i64| {
        push(tag << 3);
        let mut rest = value.cast_unsigned();
        while rest >= 0x80 {
            push((rest as u8) | 0x80);
            rest >>= 7;
        }
        push(rest as u8);
    };
    field(1, id.ledger_id);
    field(2, id.entry_id);
    if id.partition >= 0 {
        field(3, i64::from(id.partition));
    }
    if id.batch_index >= 0 {
        field(4, i64::from(id.batch_index));
    }
    base64(&bytes[..len])
}

/// The number of an output: it grows with the input's place. 27 bits of ledger, 20 of entry, 10 of
/// the place in a batch, 6 for the outputs of one message.
fn sequence(id: &str, made: u64) -> Result<u64, WriteError> {
    let parts = || {
        let id: geminga_client::MessageId = id.parse().ok()?;
        let part =
            |value: i64, bits: u32| u64::try_from(value).ok().filter(|value| value >> bits == 0);
        let batch = i64::from(id.batch_index.max(0));
        let ledger = part(id.ledger_id, 27)?;
        let entry = part(id.entry_id, 20)?;
        let outputs = Some(made).filter(|made| made >> 6 == 0)?;
        Some((((ledger << 20 | entry) << 10) | part(batch, 10)?) << 6 | outputs)
    };
    parts().ok_or_else(|| {
        WriteError::Message(format!(
            "output {made} of message `{id}` has no number by which a broker could know it again"
        ))
    })
}

impl Sink for TopicSink {
    fn write<'a>(
        &'a mut self,
        input: &'a Message,
        outputs: Vec<Output>,
        txn: Option<&'a Transaction>,
    ) -> BoxFuture<'a, Result<Vec<Receipt>, WriteError>> {
        Box::pin(async move {
            let refused = |error| match error {
                geminga_client::Error::MessageTooLarge { .. } => {
                    WriteError::Message(error.to_string())
                }
                error if is_refusal(&error) => WriteError::Message(error.to_string()),
                error => WriteError::Sink(error.to_string()),
            };
            let alone = self.refusals.is_suspect(input) || self.refusals.are_large(&outputs);
            self.check(&outputs).await?;
            if txn.is_some() {
                // A topic that can not be written to shows before anything is in the transaction.
                for output in &outputs {
                    if let Some(topic) = &output.topic {
                        let topic = crate::plan::full_name(topic);
                        self.named(&topic, None, output.schema.as_ref()).await?;
                    }
                }
            }
            let mut posted = 0;
            let mut receipts = Vec::with_capacity(outputs.len());
            // How many outputs to the default topic this message has made.
            let mut made = 0;
            for mut output in outputs {
                let mut name = None;
                let topic = match output.topic.take() {
                    Some(topic) => crate::plan::full_name(&topic),
                    None => match &self.default {
                        Some(topic) => {
                            if self.numbered {
                                output.sequence = Some(sequence(&input.id, made)?);
                                name = Some(format!("{}-{}", self.function, input.topic));
                                made += 1;
                            }
                            topic.clone()
                        }
                        // Without an output topic the result is discarded, as in Pulsar.
                        None => continue,
                    },
                };
                // A delay may be refused too, whatever the size.
                let bytes = output.delay_ms.is_none().then_some(output.payload.len());
                let version = match output.schema.take() {
                    Some(schema) => self.version(&topic, name.as_deref(), &schema).await?,
                    None => None,
                };
                let mut message = self.message(input, output);
                if let Some(version) = version {
                    message = message.schema_version(version);
                }
                let refusals = self.refusals.clone();
                let typed = self.named(&topic, name.as_deref(), None).await?;
                let producer = &typed.producer;
                if alone {
                    if let Err(error) = post_alone(producer, message, txn).await {
                        // A transaction that a message failed in is lost.
                        let is_spoiled = posted > 0 || txn.is_some() && is_refusal(&error);
                        if is_refusal(&error) {
                            refusals.found(bytes);
                        }
                        return Err(match refused(error) {
                            WriteError::Message(why) => {
                                let why = format!("output to `{topic}`: {why}");
                                match txn.is_some() && is_spoiled {
                                    true => WriteError::Spoiled(why),
                                    false => WriteError::Message(why),
                                }
                            }
                            other => other,
                        });
                    }
                    posted += 1;
                    continue;
                }
                match txn {
                    Some(txn) => {
                        let sent = producer.post_in(txn, message).await;
                        sent.map_err(|error| match refused(error) {
                            WriteError::Message(why) if posted > 0 => WriteError::Spoiled(why),
                            other => other,
                        })?;
                        posted += 1;
                    }
                    None => receipts.push(producer.enqueue(message).await.map_err(refused)?),
                }
            }
            Ok(receipts)
        })
    }

    fn dead_letter<'a>(
        &'a mut self,
        topic: &'a str,
        letter: Letter,
        input: &'a Message,
        txn: Option<&'a Transaction>,
    ) -> BoxFuture<'a, Result<Vec<Receipt>, String>> {
        Box::pin(async move {
            let text = |error: WriteError| match error {
                WriteError::Message(why) | WriteError::Spoiled(why) | WriteError::Sink(why) => why,
            };
            let letter = match input.triggered {
                true => letter.property(FUNCTION, &self.function),
                false => letter,
            };
            let refusals = self.refusals.clone();
            let (is_suspect, is_bare) = (refusals.is_suspect(input), refusals.wants_bare(input));
            let producer = self.producer(topic).await.map_err(text)?;
            if !is_suspect && !is_bare {
                return post_letter(producer, letter, txn).await;
            }
            if !is_bare {
                match post_alone(producer, letter.whole, txn).await {
                    Err(geminga_client::Error::MessageTooLarge { .. }) => {}
                    Err(error) if is_refusal(&error) => {
                        refusals.found_letter(input);
                        if txn.is_some() {
                            // It is lost, and next time it is known.
                            return Err(error.to_string());
                        }
                    }
                    done => {
                        let done = done.map(|()| Vec::new());
                        return done.map_err(|error| error.to_string());
                    }
                }
            }
            let sent = post_alone(producer, letter.bare, txn).await;
            sent.map(|()| Vec::new()).map_err(|error| error.to_string())
        })
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            for (topic, typed) in self.producers {
                if let Err(error) = typed.producer.close().await {
                    tracing::debug!(topic, %error, "producer not closed in order");
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_grow_with_the_places_of_inputs() {
        let ids = [
            "0:0:-1",
            "0:0:-1:1",
            "0:1:-1",
            "0:1048575:3",
            "1:0:-1",
            "134217727:0:-1:1023",
        ];
        let mut before = None;
        for id in ids {
            for made in [0, 1, 63] {
                let number = sequence(id, made).expect(id);
                assert!(Some(number) > before && number <= i64::MAX as u64, "{id}");
                before = Some(number);
            }
        }
        for (id, made) in [
            ("0:1048576:-1", 0),
            ("134217728:0:-1", 0),
            ("0:0:-1", 64),
            ("line 3", 0),
        ] {
            assert!(sequence(id, made).is_err(), "{id}");
        }
    }

    #[test]
    fn an_input_id_is_written_as_pulsar_writes_it() {
        // ledger 12, entry 34, no partition, batch index 5: 08 0c 10 22 20 05
        let of = |id: &str| pfn_id(&id.parse().expect(id));
        assert_eq!(of("12:34:-1:5"), "CAwQIiAF");
        // partition 3 and a ledger that needs two bytes: 08 ac 02 10 00 18 03
        assert_eq!(of("300:0:3"), "CKwCEAAYAw==");
        // The widest there is has room.
        let most = MessageId {
            partition: i32::MAX,
            batch_index: i32::MAX,
            ..MessageId::entry(-1, -1)
        };
        assert_eq!(pfn_id(&most).len(), 48);
    }
}
