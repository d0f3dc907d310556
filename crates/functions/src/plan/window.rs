//! Windows: their shape and whose time counts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use geminga_model::{ConsumerConfig, FunctionConfig, TopicName, WindowConfig};

use super::{Language, Packing, Refused, Stamp, WindowPlan, full_name};

/// Messages that the windows of one instance may hold: more are left with the broker, which gives a
/// consumer no more than 50,000 that are not acknowledged.
pub(crate) const HELD_MAX: usize = 40_000;
/// How often the watermark moves, when the configuration does not say.
const EMIT_MS: u64 = 1000;

/// What a window is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// The last `length` messages, after every `slide`.
    Count { length: usize, slide: usize },
    /// All messages of `length_ms`, every `slide_ms`.
    Time { length_ms: u64, slide_ms: u64 },
    /// Messages with less than `gap_ms` between neighbours.
    Session { gap_ms: u64 },
}

/// Event time instead of the time of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EventTime {
    /// So much earlier than the newest a message may be.
    pub(crate) lag_ms: u64,
    /// The watermark moves this often.
    pub(crate) emit_ms: u64,
    /// Topics that must have been heard of before the watermark moves at all.
    pub(crate) topics: usize,
}

/// The windows of a function, if it has any.
pub(super) fn window(
    config: &FunctionConfig,
    language: Language,
    inputs: &BTreeMap<String, ConsumerConfig>,
    refused: &mut Refused,
) -> Option<WindowPlan> {
    let window = config.window_config.as_ref()?;
    let stamp = stamp(window, refused);
    let ms = |value: Option<i64>| value.and_then(|ms| u64::try_from(ms).ok());
    let count = |value: Option<i32>| value.and_then(|n| usize::try_from(n).ok());
    let shape = match (
        count(window.window_length_count),
        ms(window.window_length_duration_ms),
        ms(window.session_gap_ms),
    ) {
        (Some(length), None, None) => Shape::Count {
            length,
            slide: count(window.sliding_interval_count).unwrap_or(length),
        },
        (None, Some(length_ms), None) => Shape::Time {
            length_ms,
            slide_ms: ms(window.sliding_interval_duration_ms).unwrap_or(length_ms),
        },
        (None, None, Some(gap_ms)) => Shape::Session { gap_ms },
        // Validation has said it.
        _ => return None,
    };
    if let Shape::Count { length, slide } = shape
        && length.max(slide) > HELD_MAX
    {
        refused.push(format!(
            "`windowConfig`: an instance holds {HELD_MAX} messages at most"
        ));
    }
    let other = match shape {
        Shape::Count { .. } => window.sliding_interval_duration_ms.is_some(),
        Shape::Time { .. } => window.sliding_interval_count.is_some(),
        Shape::Session { .. } => {
            window.sliding_interval_count.is_some() || window.sliding_interval_duration_ms.is_some()
        }
    };
    if other {
        refused.push(
            "`windowConfig`: the sliding interval is of another kind than the length".to_owned(),
        );
    }
    if window.actual_window_function_class_name.is_some() {
        refused.push(
            "`windowConfig.actualWindowFunctionClassName` is the worker's own: give the class as `className`"
                .to_owned(),
        );
    }
    let by_event = stamp != Stamp::Arrival && !matches!(shape, Shape::Count { .. });
    if by_event
        && inputs.len() > 1
        && config.parallelism() > 1
        && config.retain_ordering == Some(true)
    {
        refused.push(
            "`windowConfig.timestampExtractorClassName` with `retainOrdering`, several inputs and `parallelism` \
             above 1: an instance that is given none of an input's messages would wait for its time for ever"
                .to_owned(),
        );
    }
    // Whether a pattern means any topic is not known before one has a message.
    let named = inputs
        .iter()
        .filter(|(_, spec)| spec.regex_pattern != Some(true))
        .filter_map(|(topic, _)| topic.parse::<TopicName>().ok())
        .map(|topic| Arc::from(topic.parent().as_str()));
    let named: BTreeSet<Arc<str>> = named.collect();
    Some(WindowPlan {
        shape,
        event_time: by_event.then(|| EventTime {
            lag_ms: ms(window.max_lag_ms).unwrap_or(0),
            emit_ms: ms(window.watermark_emit_interval_ms).unwrap_or(EMIT_MS),
            topics: named.len().max(1),
        }),
        named,
        stamp,
        late_topic: window.late_data_topic.as_deref().map(full_name),
        packing: match language.has_host() {
            true => Packing::Batch,
            false => Packing::Lines,
        },
    })
}

/// A class can not be asked: there is a worker, not a JVM, between the topic and the function.
fn stamp(window: &WindowConfig, refused: &mut Refused) -> Stamp {
    let Some(given) = window.timestamp_extractor_class_name.as_deref() else {
        return Stamp::Arrival;
    };
    match (given, given.strip_prefix("property:")) {
        ("eventTime", _) => Stamp::Event,
        ("publishTime", _) => Stamp::Publish,
        (_, Some(name)) if !name.is_empty() => Stamp::Property(name.to_owned()),
        _ => {
            refused.push(format!(
                "`windowConfig.timestampExtractorClassName: {given}`: it is one of `eventTime`, `publishTime` and `property:NAME`"
            ));
            Stamp::Arrival
        }
    }
}
