//! Pulsar's documents where the worker has its own words: the status of sources and sinks, whose
//! counts are named by kind; sums over workers; what is built in. Pure.

use geminga_functions::Kind;
use serde_json::{Map, Value, json};

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

/// Adds the instances of a statistic up, which came from several workers.
pub(super) fn add_up(stats: &mut Value) {
    let metrics: Vec<Value> = stats["instances"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|instance| instance["metrics"].clone())
        .collect();
    let sums = |of: &dyn Fn(&Value) -> Value| {
        let parts: Vec<Value> = metrics.iter().map(of).collect();
        let sum = |field: &str| {
            parts
                .iter()
                .filter_map(|part| part[field].as_u64())
                .sum::<u64>()
        };
        let latency = parts.iter().filter_map(|part| {
            let count = part["processedSuccessfullyTotal"].as_f64()?;
            Some((part["avgProcessLatency"].as_f64()? * count, count))
        });
        let (spent, count) = latency.fold((0.0, 0.0), |(a, b), (c, d)| (a + c, b + d));
        json!({
            "receivedTotal": sum("receivedTotal"),
            "processedSuccessfullyTotal": sum("processedSuccessfullyTotal"),
            "systemExceptionsTotal": sum("systemExceptionsTotal"),
            "userExceptionsTotal": sum("userExceptionsTotal"),
            "avgProcessLatency": if count > 0.0 { json!(spent / count) } else { Value::Null },
        })
    };
    let (total, minute) = (
        sums(&Value::clone),
        sums(&|metrics| metrics["1min"].clone()),
    );
    let last = metrics
        .iter()
        .filter_map(|metrics| metrics["lastInvocation"].as_u64())
        .max();
    if let (Some(stats), Some(total)) = (stats.as_object_mut(), total.as_object()) {
        stats.extend(total.clone());
        stats.insert("1min".to_owned(), minute);
        stats.insert("lastInvocation".to_owned(), json!(last));
        // Percentiles of different workers do not add up.
        stats.remove("latencyPercentiles");
    }
}

/// A setting of a connector: name, type, whether it is needed, default, what it means.
type Field = (&'static str, &'static str, bool, &'static str, &'static str);

const FILE_SOURCE: [Field; 11] = [
    (
        "path",
        "class java.lang.String",
        false,
        "",
        "One file, read once and kept",
    ),
    (
        "follow",
        "class java.lang.Boolean",
        false,
        "false",
        "Go on with what is appended to the file",
    ),
    (
        "inputDirectory",
        "class java.lang.String",
        false,
        "",
        "A directory whose files are read",
    ),
    (
        "recurse",
        "class java.lang.Boolean",
        false,
        "true",
        "Also the directories in it",
    ),
    (
        "keepFile",
        "class java.lang.Boolean",
        false,
        "false",
        "Leave a file that was read",
    ),
    (
        "ignoreHiddenFiles",
        "class java.lang.Boolean",
        false,
        "true",
        "Leave out names that begin with a dot",
    ),
    (
        "pollingInterval",
        "long",
        false,
        "10000",
        "Milliseconds between two looks at the directory",
    ),
    (
        "minimumFileAge",
        "long",
        false,
        "",
        "Youngest age of a file in milliseconds",
    ),
    (
        "maximumFileAge",
        "long",
        false,
        "",
        "Oldest age of a file in milliseconds",
    ),
    (
        "minimumSize",
        "int",
        false,
        "1",
        "Smallest size of a file in bytes",
    ),
    (
        "processedFileSuffix",
        "class java.lang.String",
        false,
        "",
        "The ending that a file gets when it was read",
    ),
];
const FILE_SINK: [Field; 2] = [
    (
        "path",
        "class java.lang.String",
        true,
        "",
        "The file that gets a line for each message",
    ),
    (
        "append",
        "class java.lang.Boolean",
        false,
        "false",
        "Keep what the file holds",
    ),
];
const TABLE_SINK: [Field; 5] = [
    (
        "title",
        "class java.lang.String",
        false,
        "",
        "Above the table",
    ),
    (
        "key",
        "class java.lang.String",
        false,
        "",
        "Heading of the key's column",
    ),
    (
        "columns",
        "java.util.List<java.lang.String>",
        false,
        "",
        "Members to show, in this order",
    ),
    (
        "sort",
        "class java.lang.String",
        false,
        "",
        "Column to sort by; - in front for descending",
    ),
    ("limit", "int", false, "", "Show so many rows"),
];

/// Name, what it does, class as Pulsar's tools want one, settings.
type Connector = (&'static str, &'static str, &'static str, &'static [Field]);

const SOURCES: [Connector; 1] = [(
    "file",
    "Each line of a file, or of the files of a directory, is a message",
    "geminga.io.FileSource",
    &FILE_SOURCE,
)];
const SINKS: [Connector; 2] = [
    (
        "file",
        "Each message is a line of a file",
        "geminga.io.FileSink",
        &FILE_SINK,
    ),
    (
        "table",
        "A row for each message key, the newest message wins",
        "geminga.io.TableSink",
        &TABLE_SINK,
    ),
];

fn of_kind(kind: Kind) -> &'static [Connector] {
    match kind {
        Kind::Source => &SOURCES,
        Kind::Sink => &SINKS,
        Kind::Function => &[],
    }
}

/// The `ConnectorDefinition`s of what is built in.
pub(super) fn definitions(kind: Kind) -> Vec<Value> {
    let (class, config) = match kind {
        Kind::Source => ("sourceClass", "sourceConfigClass"),
        _ => ("sinkClass", "sinkConfigClass"),
    };
    let one = |(name, description, class_name, _): &Connector| {
        json!({
            "name": name,
            "description": description,
            class: class_name,
            config: format!("{class_name}Config"),
        })
    };
    of_kind(kind).iter().map(one).collect()
}

/// The `ConfigFieldDefinition`s of a connector.
pub(super) fn fields(kind: Kind, name: &str) -> Option<Vec<Value>> {
    let (.., fields) = of_kind(kind).iter().find(|(known, ..)| *known == name)?;
    let one = |(name, of_type, required, default, help): &Field| {
        json!({
            "fieldName": name,
            "typeName": of_type,
            "attributes": {
                "required": required.to_string(),
                "defaultValue": default,
                "sensitive": "false",
                "help": help,
            },
        })
    };
    Some(fields.iter().map(one).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_connector_that_is_built_in_is_described() {
        let names = |kind| -> Vec<String> {
            let all = definitions(kind).into_iter();
            all.map(|one| one["name"].as_str().unwrap().to_owned())
                .collect()
        };
        assert_eq!(names(Kind::Source), geminga_mesh::builtin::SOURCES);
        assert_eq!(names(Kind::Sink), geminga_mesh::builtin::SINKS);
        assert!(fields(Kind::Sink, "table").is_some() && fields(Kind::Source, "table").is_none());
        // Every setting described is one that the connector reads.
        for (kind, name) in [
            (Kind::Source, "file"),
            (Kind::Sink, "file"),
            (Kind::Sink, "table"),
        ] {
            for field in fields(kind, name).unwrap() {
                let given = json!({ field["fieldName"].as_str().unwrap(): null });
                let read = match (kind, name) {
                    (Kind::Source, _) => {
                        serde_json::from_value::<geminga_mesh::builtin::FileSource>(given).map(drop)
                    }
                    (_, "file") => {
                        serde_json::from_value::<geminga_mesh::builtin::FileSink>(given).map(drop)
                    }
                    _ => {
                        serde_json::from_value::<geminga_mesh::builtin::TableSink>(given).map(drop)
                    }
                };
                assert!(read.is_ok(), "{name}: {field}");
            }
        }
    }

    #[test]
    fn instances_of_several_workers_add_up() {
        let metrics = |n: u64| {
            json!({
                "receivedTotal": n, "processedSuccessfullyTotal": n, "systemExceptionsTotal": 0,
                "userExceptionsTotal": 1, "avgProcessLatency": n as f64, "lastInvocation": n,
                "1min": { "receivedTotal": 1, "processedSuccessfullyTotal": 0, "avgProcessLatency": null },
            })
        };
        let mut stats = json!({ "instances": [
            { "instanceId": 0, "metrics": metrics(1) }, { "instanceId": 1, "metrics": metrics(3) },
        ]});
        add_up(&mut stats);
        assert_eq!(
            (&stats["receivedTotal"], &stats["userExceptionsTotal"]),
            (&json!(4), &json!(2))
        );
        assert_eq!(
            (&stats["avgProcessLatency"], &stats["lastInvocation"]),
            (&json!(2.5), &json!(3))
        );
        assert_eq!(stats["1min"]["receivedTotal"], 2);
        assert!(stats["1min"]["avgProcessLatency"].is_null());
    }

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
