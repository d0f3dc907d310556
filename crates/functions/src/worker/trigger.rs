//! Sends messages through a function and waits for what came of each.
//!
//! The answer is found by the id of the message that was sent, which every output carries in its
//! properties; so any number of calls may be under way at once, beside other messages. Another function may
//! have the same topics: what is sent carries a mark, and an instance that sees it puts its function's name on
//! what comes of the message. Pulsar's own instances put no name there. The calls of a function share its
//! producers and one reader of its outputs, which end with the function, or when nobody calls for a while.
//!
//! What must hold: a reader begins before the first message is sent, so that no answer is missed; an
//! answer that comes before its message's id is known is kept, within bounds, while any is not known;
//! when the deletion of a function answers, nothing of its lines is on the broker.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use geminga_model::TopicName;
use parking_lot::Mutex;

use self::line::{Call, Line, Stage};
use super::Worker;
use super::supervisor::Crew;
use crate::component::ComponentId;
use crate::error::WorkerError;
use crate::plan::{Input, Plan, full_name};

mod line;

/// What the end of a function waits for theirs: its topics can be deleted then.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// A message for a function.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// The input topic; needed when there are several.
    pub topic: Option<String>,
    pub payload: Bytes,
    pub key: Option<String>,
    pub properties: Vec<(String, String)>,
    pub event_time_ms: Option<u64>,
    /// How long an answer may take, from the call on.
    pub limit: Duration,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answered {
    /// The function has no output topic: the message was taken.
    Nothing,
    /// Its first output.
    Output {
        payload: Bytes,
        key: Option<String>,
        properties: Vec<(String, String)>,
    },
    /// It failed for good: the reason in its dead letter.
    Failed(String),
}

impl Answered {
    fn len(&self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Output { payload, .. } => payload.len(),
            Self::Failed(why) => why.len(),
        }
    }
}

/// The lines to functions that are called.
#[derive(Default)]
pub(crate) struct Lines(Mutex<HashMap<ComponentId, Arc<Slot>>>);

/// A function's lines, and who makes one.
#[derive(Default)]
struct Slot {
    making: tokio::sync::Mutex<()>,
    /// The newest last; before it those whose last calls are under way.
    lines: Mutex<Vec<Weak<Line>>>,
}

impl Lines {
    /// The function is gone: so are its producers and readers, and what is under way has no answer.
    pub(crate) async fn close(&self, id: &ComponentId) {
        // Together: a line that is being made finds its place taken from it.
        let Some(slot) = self.0.lock().remove(id) else {
            return;
        };
        for line in slot.lines() {
            line.turn(Stage::Ending);
        }
        let gone = async {
            let _none_is_made = slot.making.lock().await;
            for line in slot.lines() {
                line.gone().await;
            }
        };
        let _ = tokio::time::timeout(CLOSE_LIMIT, gone).await;
    }

    /// A newer version takes the calls from now on.
    pub(crate) fn retire(&self, id: &ComponentId) {
        let slot = self.0.lock().get(id).cloned();
        for line in slot.map_or_else(Vec::new, |slot| slot.lines()) {
            line.turn(Stage::Retiring);
        }
    }

    fn slot(&self, id: &ComponentId) -> Arc<Slot> {
        let mut all = self.0.lock();
        all.retain(|_, slot| Arc::strong_count(slot) > 1 || !slot.lines().is_empty());
        all.entry(id.clone()).or_default().clone()
    }

    /// Puts a new line into its slot. One whose function was deleted meanwhile is at its end already.
    fn add(&self, slot: &Arc<Slot>, line: &Arc<Line>) {
        let all = self.0.lock();
        if !all
            .get(&line.id)
            .is_some_and(|known| Arc::ptr_eq(known, slot))
        {
            line.comes_too_late();
        }
        let mut lines = slot.lines.lock();
        lines.retain(|line| line.strong_count() > 0);
        lines.push(Arc::downgrade(line));
    }
}

impl Slot {
    /// Those that are not gone.
    fn lines(&self) -> Vec<Arc<Line>> {
        self.lines.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// The line that takes calls of a version, or of a newer one.
    fn open(&self, version: u64) -> Option<Arc<Line>> {
        let line = self.lines.lock().last()?.upgrade()?;
        (line.version >= version && line.is_open()).then_some(line)
    }
}

impl Worker {
    /// The input topic, in full, that a message for a function goes to.
    ///
    /// # Errors
    /// When there is no such function, or `named` is not one of its inputs, or left out where there are several.
    pub fn input_topic(
        &self,
        id: &ComponentId,
        named: Option<&str>,
    ) -> Result<String, WorkerError> {
        input(&self.entry(id)?.crew.plan, named)
    }

    /// Sends a message through a function and gives what came of it.
    ///
    /// # Errors
    /// When the topic is not one of its inputs, or nothing comes within the limit.
    pub async fn trigger(&self, id: &ComponentId, asked: Asked) -> Result<Answered, WorkerError> {
        let limit = asked.limit;
        let answered = async {
            loop {
                let entry = self.entry(id)?;
                let topic = input(&entry.crew.plan, asked.topic.as_deref())?;
                entry.crew.may_ask(&topic)?;
                let line = self.line(id, &entry.crew).await?;
                // It may have ended since: then there is a newer one.
                if let Some(call) = Call::begin(&line) {
                    return line.call(call, &topic, asked).await;
                }
            }
        };
        match tokio::time::timeout(limit, answered).await {
            Ok(answered) => answered,
            Err(_) => Err(WorkerError::Timeout {
                what: "the function's answer",
                after_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
            }),
        }
    }

    async fn line(&self, id: &ComponentId, crew: &Crew) -> Result<Arc<Line>, WorkerError> {
        let lines = &self.inner.lines;
        let slot = lines.slot(id);
        if let Some(line) = slot.open(crew.version()) {
            return Ok(line);
        }
        let one = slot.making.lock().await;
        if let Some(line) = slot.open(crew.version()) {
            return Ok(line);
        }
        let line = Line::open(&self.inner, crew).await?;
        lines.add(&slot, &line);
        drop(one);
        if self.entry(id).is_err() {
            // It was deleted before this had a place where that finds it.
            lines.close(id).await;
        }
        Ok(line)
    }
}

/// The input topic that is meant.
fn input(plan: &Plan, named: Option<&str>) -> Result<String, WorkerError> {
    let Input::Topics(inputs) = &plan.input else {
        return Err(WorkerError::Invalid(vec!["it reads no topic".to_owned()]));
    };
    let is_input = |name: &str| {
        let topic = name.parse::<TopicName>();
        topic.is_ok_and(|topic| inputs.selection().has(&topic).unwrap_or(false))
    };
    let why = match (named.map(full_name), &inputs.topics[..]) {
        (Some(topic), _) if is_input(&topic) => return Ok(topic),
        (None, [only]) if inputs.patterns.is_empty() => return Ok(only.clone()),
        (Some(_), _) => "Function in trigger function has unidentified topic",
        (None, []) => {
            "Function in trigger function has a pattern as its input: name a topic that matches"
        }
        (None, _) => "Function in trigger function has multiple input topics: name the topic",
    };
    Err(WorkerError::Invalid(vec![why.to_owned()]))
}
