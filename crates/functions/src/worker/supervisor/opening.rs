//! What an instance is made of, opened: its source, its sink, the state, the code with what it may ask for,
//! and which schemas its topics are declared to have.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use geminga_client::{Client, Schema};
use geminga_model::ProcessingGuarantees;
use geminga_stdx::{Random, Tasks};

use super::{Crew, Health, Ready, Seat};
use crate::changelog::Writer;
use crate::component::Kind;
use crate::connector::file_sink::FileEnd;
use crate::connector::file_source::FileStart;
use crate::connector::table::TableEnd;
use crate::error::WorkerError;
use crate::instance::Instance;
use crate::instance::context::{Context, OnLog};
use crate::instance::gather::Gather;
use crate::instance::once::Once;
use crate::instance::sink::{Sink, TopicSink};
use crate::instance::source::{Declared, Declaring, Source, TopicSource};
use crate::instance::state::{self, FunctionState, Taking};
use crate::plan::{Input, Language, Output, Process, Typed};
use crate::runtime::{Host, HostSpec, Level, LogLine, Services};
use crate::schema;
use crate::secret::Unread;
use crate::worker::Inner;

/// What the two ends of an instance are opened with.
struct Asks<'a> {
    inner: &'a Arc<Inner>,
    seat: &'a Seat,
    fresh: bool,
    properties: &'a [(String, String)],
    /// Outputs carry numbers.
    numbers: bool,
}

impl Crew {
    pub(super) async fn build(
        &self,
        inner: &Arc<Inner>,
        seat: &Seat,
        number: u32,
        fresh: bool,
        tasks: &Tasks,
        ready: Option<Ready>,
    ) -> Result<Instance, String> {
        if let Some(limits) = &self.limits {
            limits.may_start()?;
        }
        let client = &inner.config.client;
        let plan = &self.plan;
        let properties = self.properties(number);
        // First of all: what a predecessor does later must not count.
        let once = self.once(inner, seat, number).await?;
        let once_state = once.as_ref().map(|once| once.state.clone());
        if once_state.is_some() {
            // What was changed and not recorded is not in this state.
            seat.gauge.outside.lock().clear();
        }
        let numbers = plan.policy.guarantee == ProcessingGuarantees::EffectivelyOnce;
        let numbers = numbers && once.is_none();
        let opening = async {
            match &plan.process {
                Process::Identity | Process::Compat(_) => Ok(None),
                Process::Host(..) if once_state.is_some() => Ok(once_state),
                // Its instances are on several workers: there is no memory that they share.
                Process::Host(_, spec) if spec.options.spread => Ok(None),
                Process::Host(..) => {
                    let opened = self.state(inner).await;
                    opened.map(Some).map_err(|error| error.to_string())
                }
            }
        };
        let asks = Asks {
            inner,
            seat,
            fresh,
            properties: &properties,
            numbers,
        };
        let (source, sink): (Box<dyn Source>, Box<dyn Sink>);
        let (state, host): (Option<Arc<FunctionState>>, Option<Box<dyn Host>>);
        if plan.asks_host() {
            // It says what topics are, and so comes first. What is published from now on is not missed.
            let is_cold = fresh && ready.is_none();
            let subscribing = async {
                if is_cold {
                    self.subscribe_once(client).await;
                }
            };
            let ((), opened) = tokio::join!(subscribing, opening);
            state = opened?;
            let (started, context) = match ready {
                Some(ready) => ready,
                None => {
                    self.start_host(inner, seat, number, state.clone(), tasks)
                        .await?
                }
            };
            context.set_state(state.clone());
            host = Some(started);
            let declared = context.declared();
            let opened = tokio::join!(
                self.open_source(&asks, &declared),
                self.open_sink(&asks, &declared)
            );
            (source, sink) = (opened.0?, opened.1?);
        } else {
            // All at once: each waits for the broker's disk. Each to its end: what is published from the
            // subscription on is not missed, whatever else fails.
            let none = Declared::default();
            let opened = tokio::join!(
                self.open_source(&asks, &none),
                self.open_sink(&asks, &none),
                opening
            );
            (source, sink, state) = (opened.0?, opened.1?, opened.2?);
            host = match (&plan.process, ready) {
                (Process::Identity | Process::Compat(_), _) => None,
                (Process::Host(..), Some((host, context))) => {
                    context.set_state(state.clone());
                    Some(host)
                }
                (Process::Host(..), None) => {
                    let started = self.start_host(inner, seat, number, state.clone(), tasks);
                    let (host, context) = started.await?;
                    context.set_state(state.clone());
                    Some(host)
                }
            };
        }
        seat.subscribed.send_replace(true);
        let log = match (&plan.process, &plan.log_topic) {
            (Process::Identity, Some(topic)) => {
                Some(self.own_log(inner, seat, number, topic, tasks))
            }
            // A host has its own.
            _ => None,
        };
        Ok(Instance {
            source,
            host,
            sink,
            state,
            once,
            gather: plan.window.clone().map(Gather::new),
            policy: plan.policy.clone(),
            limits: self.limits.clone(),
            log,
            gauge: seat.gauge.clone(),
            tasks: tasks.clone(),
        })
    }

    /// Starts the code of an instance, with what it may ask for.
    pub(super) async fn start_host(
        &self,
        inner: &Arc<Inner>,
        seat: &Seat,
        number: u32,
        state: Option<Arc<FunctionState>>,
        tasks: &Tasks,
    ) -> Result<Ready, String> {
        let plan = &self.plan;
        let Process::Host(language, spec) = &plan.process else {
            return Err("it has no code".to_owned());
        };
        let client = &inner.config.client;
        let on_log = self.on_log(inner, number);
        let mut context = Context::new(seat.gauge.clone(), state, on_log);
        if let Some(topic) = &plan.log_topic {
            context.log_to(client.clone(), topic.clone(), self.id.fqfn(), number, tasks);
        }
        if let Output::Topics {
            default, producer, ..
        } = &plan.output
        {
            // No default topic, so that it makes no producer before it is asked.
            let sink = TopicSink::open(
                client.clone(),
                self.id.fqfn(),
                (None, None),
                producer.clone(),
                false,
                self.properties(number),
                Arc::default(),
            );
            let mut sink = sink.await.map_err(|error| error.to_string())?;
            sink.limit(self.limits.clone());
            context.publish_by(sink, default.clone(), tasks);
        }
        context.schemas_by(client.clone(), self.taken.clone());
        let mut unread = self.unread(inner, spec, number);
        if *language == Language::Java && plan.asks_host() {
            // Its host chooses by what a topic has already, as Pulsar's does.
            unread.spec.topic_schemas = self.topic_schemas(client).await?;
        }
        let context = Arc::new(context);
        let host = inner
            .runtimes
            .start(*language, unread, context.clone())
            .await;
        let host = host.map_err(|broken| broken.text())?;
        Ok((host, context))
    }

    /// The function's state, read from its topic at first use.
    pub(crate) async fn state(&self, inner: &Inner) -> Result<Arc<FunctionState>, WorkerError> {
        let id = &self.id;
        let mut held = self.state.lock().await;
        // What somebody else writes to meanwhile is read anew.
        if let Some(state) = held.as_ref().filter(|state| !state.is_fenced()) {
            return Ok(state.clone());
        }
        if let Some(old) = held.take() {
            old.close().await;
        }
        let topic = state::topic(&id.tenant, &id.namespace, &id.name);
        let records_max = inner.config.changelog_records_max;
        let (client, failed) = (
            &inner.config.client,
            WorkerError::client(format!("state of {id}")),
        );
        let opening = async {
            // The instance itself takes that for its own, and here nobody is to take it away.
            let is_alone = self.plan.policy.guarantee == ProcessingGuarantees::EffectivelyOnce
                && client.has_transactions().await?;
            let writer = match is_alone {
                true => Writer::BesideOthers,
                false => Writer::Only,
            };
            FunctionState::open(client, &topic, records_max, writer, &inner.tasks).await
        };
        let state = Arc::new(opening.await.map_err(failed)?);
        if self.is_retired.load(Ordering::Acquire) {
            // To be read, and no more: the next crew's is to be changed.
            state.close().await;
            return Ok(state);
        }
        *held = Some(state.clone());
        Ok(state)
    }

    /// What an effectively-once instance has beside the others, when the broker has transactions.
    /// It takes the state away from whoever ran the instance before.
    async fn once(&self, inner: &Inner, seat: &Seat, number: u32) -> Result<Option<Once>, String> {
        if self.plan.policy.guarantee != ProcessingGuarantees::EffectivelyOnce {
            return Ok(None);
        }
        let client = &inner.config.client;
        if !client.has_transactions().await.map_err(|e| e.to_string())? {
            *seat.gauge.effectively_once.lock() = Some(
                "sequence ids, since the broker has no transactions: outputs to the output topic \
                 happen once where its namespace has deduplication; other topics and state may \
                 see a message again",
            );
            return Ok(None);
        }
        *seat.gauge.effectively_once.lock() = Some("transactions");
        let id = &self.id;
        let mut topic = state::topic(&id.tenant, &id.namespace, &id.name);
        let has_peers = self.len() > 1;
        if has_peers {
            topic = format!("{topic}-{number}");
        }
        let in_line = seat.fenced.load(Ordering::Acquire);
        if in_line {
            // Nobody is to wait for one who waits in line.
            seat.subscribed.send_replace(true);
        }
        let taking = Taking { in_line, has_peers };
        let records_max = inner.config.changelog_records_max;
        let opening = FunctionState::open_alone(client, &topic, records_max, taking, &inner.tasks);
        let state = Arc::new(opening.await.map_err(|error| format!("state: {error}"))?);
        seat.fenced.store(false, Ordering::Release);
        *self.state.lock().await = Some(state.clone());
        Ok(Some(Once::new(client.clone(), state)))
    }

    async fn open_source(
        &self,
        asks: &Asks<'_>,
        declared: &Declared,
    ) -> Result<Box<dyn Source>, String> {
        let (inner, seat) = (asks.inner, asks.seat);
        Ok(match &self.plan.input {
            Input::Topics(subscription) => {
                let client = &inner.config.client;
                let (taken, declaring) = (self.taken.clone(), Declaring::Said(declared));
                let source = TopicSource::subscribe(
                    client,
                    subscription,
                    asks.properties,
                    taken,
                    &declaring,
                );
                let source = source
                    .await
                    .map_err(|error| format!("subscribing: {error}"))?;
                *seat.consumer.lock() = Some(source.handle());
                seat.subscribed.send_replace(true);
                Box::new(source)
            }
            Input::File(settings) => Box::new(FileStart::open(
                settings.clone(),
                inner.places(&self.id),
                seat.gauge.clone(),
            )?),
        })
    }

    async fn open_sink(
        &self,
        asks: &Asks<'_>,
        declared: &Declared,
    ) -> Result<Box<dyn Sink>, String> {
        let inner = asks.inner;
        let client = &inner.config.client;
        Ok(match &self.plan.output {
            Output::Topics {
                default,
                producer,
                forward_properties,
            } => {
                let schema = self.output_schema(client, declared).await?;
                let sink = TopicSink::open(
                    client.clone(),
                    self.id.fqfn(),
                    (default.clone(), schema),
                    producer.clone(),
                    *forward_properties,
                    asks.properties.to_vec(),
                    asks.seat.gauge.refusals.clone(),
                );
                let mut sink = sink.await.map_err(|error| format!("output: {error}"))?;
                sink.limit(self.limits.clone());
                if asks.numbers {
                    sink.number();
                }
                Box::new(sink)
            }
            Output::File(settings) => {
                // A worker that keeps its components goes on with the file after a restart.
                let begin = asks.fresh && !inner.is_kept();
                Box::new(FileEnd::open(settings, begin, client.clone())?)
            }
            Output::Table(_) => match &self.table {
                Some(table) => Box::new(TableEnd(table.clone())),
                None => return Err("no table".to_owned()),
            },
        })
    }

    /// What the output topic is declared to be.
    async fn output_schema(
        &self,
        client: &Client,
        declared: &Declared,
    ) -> Result<Option<Schema>, String> {
        let Output::Topics {
            default: Some(topic),
            producer,
            ..
        } = &self.plan.output
        else {
            return Ok(None);
        };
        Ok(match &producer.schema {
            Typed::Bytes => None,
            Typed::Schema(schema) => Some(schema.clone()),
            Typed::Host | Typed::Derived => declared.output.clone(),
            Typed::OfTopic => {
                let schema = client.schema(topic).await;
                schema.map_err(|error| format!("output: the schema of `{topic}`: {error}"))?
            }
        })
    }

    /// The types of the schemas that the topics of the configuration have, of those that have one.
    async fn topic_schemas(&self, client: &Client) -> Result<BTreeMap<String, String>, String> {
        let mut topics = Vec::new();
        if let Input::Topics(subscription) = &self.plan.input {
            topics.extend(subscription.topics.iter().map(String::as_str));
        }
        if let Output::Topics { default, .. } = &self.plan.output {
            topics.extend(default.as_deref());
        }
        let mut found = BTreeMap::new();
        for topic in topics {
            let schema = client.schema(topic).await;
            let schema = schema.map_err(|error| format!("the schema of `{topic}`: {error}"))?;
            if let Some(schema) = schema {
                let kind = schema::name(schema.kind()).to_owned();
                found.insert(topic.to_owned(), kind);
            }
        }
        Ok(found)
    }

    /// By which others know the producers and consumers of an instance.
    fn properties(&self, number: u32) -> Vec<(String, String)> {
        let application = match self.id.kind {
            Kind::Function => "pulsar-function",
            Kind::Source => "pulsar-source",
            Kind::Sink => "pulsar-sink",
        };
        vec![
            ("application".to_owned(), application.to_owned()),
            ("id".to_owned(), self.id.fqfn()),
            ("instance_id".to_owned(), number.to_string()),
        ]
    }

    /// The code and its settings, for one instance.
    pub(super) fn unread(&self, inner: &Inner, spec: &HostSpec, number: u32) -> Unread {
        Unread {
            spec: HostSpec {
                instance: number,
                cluster: inner.config.cluster.clone(),
                version: self.version.to_string(),
                function_id: format!("{:016x}", Random::from_entropy().next_u64()),
                ..spec.clone()
            },
            secrets: self.plan.secrets.clone(),
            rules: inner.config.secrets.clone(),
        }
    }

    pub(super) fn on_log(&self, inner: &Inner, number: u32) -> Option<OnLog> {
        inner.config.on_log.clone().map(|on_log| {
            let id = self.id.clone();
            let call: OnLog = Arc::new(move |line| on_log(&id, number, line));
            call
        })
    }

    /// The log of a connector, which has no code of its own that would say something.
    fn own_log(
        &self,
        inner: &Inner,
        seat: &Seat,
        number: u32,
        topic: &str,
        tasks: &Tasks,
    ) -> Arc<dyn Services> {
        let mut context = Context::new(seat.gauge.clone(), None, None);
        let client = inner.config.client.clone();
        context.log_to(client, topic.to_owned(), self.id.fqfn(), number, tasks);
        let (level, text) = match seat.health() {
            Health::Degraded(why) => (Level::Error, format!("started again: {why}")),
            _ => (Level::Info, "started".to_owned()),
        };
        context.log(LogLine {
            level,
            text,
            message_id: None,
        });
        Arc::new(context)
    }
}
