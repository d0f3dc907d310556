//! The status of sources and sinks: the worker counts alike for all kinds, Pulsar's documents name
//! the counts by kind. Pure.

use geminga_functions::Kind;
use serde_json::{Map, Value};

/// Worker's name, source's name, sink's name.
const NAMES: [(&str, &str, &str); 6] = [
    ("numReceived", "numReceivedFromSource", "numReadFromPulsar"),
    (
        "numUserExceptions",
        "numSourceExceptions",
        "numSinkExceptions",
    ),
    (
        "latestUserExceptions",
        "latestSourceExceptions",
        "latestSinkExceptions",
    ),
    ("numWritten", "numWritten", "numWrittenToSink"),
    ("lastInvocationTime", "lastReceivedTime", "lastReceivedTime"),
    ("numSuccessfullyProcessed", "", ""),
];

/// A status as Pulsar spells it for this kind.
pub(super) fn status(kind: Kind, status: &Value) -> Value {
    let mut status = status.clone();
    if kind != Kind::Function
        && let Some(instances) = status["instances"].as_array_mut()
    {
        for instance in instances {
            if let Some(fields) = instance["status"].as_object_mut() {
                *fields = renamed(kind, fields);
            }
        }
    }
    status
}

fn renamed(kind: Kind, fields: &Map<String, Value>) -> Map<String, Value> {
    let name = |field: &str| {
        let known = NAMES.iter().find(|(worker, ..)| *worker == field);
        match (known, kind) {
            (Some((_, source, _)), Kind::Source) => (*source).to_owned(),
            (Some((_, _, sink)), Kind::Sink) => (*sink).to_owned(),
            _ => field.to_owned(),
        }
    };
    fields
        .iter()
        .map(|(field, value)| (name(field), value.clone()))
        .filter(|(name, _)| !name.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn counts_are_named_by_kind() {
        let given = json!({ "numInstances": 1, "numRunning": 1, "instances": [{ "instanceId": 0,
            "status": { "running": true, "numReceived": 3, "numWritten": 2,
                        "numSuccessfullyProcessed": 3 } }] });
        assert_eq!(status(Kind::Function, &given), given);
        let sink = status(Kind::Sink, &given);
        let want = json!({ "running": true, "numReadFromPulsar": 3, "numWrittenToSink": 2 });
        assert_eq!(sink["instances"][0]["status"], want);
        let source = status(Kind::Source, &given);
        let want = json!({ "running": true, "numReceivedFromSource": 3, "numWritten": 2 });
        assert_eq!(source["instances"][0]["status"], want);
    }
}
