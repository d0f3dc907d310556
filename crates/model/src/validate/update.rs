//! An update: a partial configuration laid over the stored one, and what it may not change.

use serde_json::{Map, Value};

use super::Violation;
use crate::connector::{SinkConfig, SourceConfig};
use crate::function::FunctionConfig;

/// The stored function with the change laid over it.
pub fn merge_function(
    stored: &FunctionConfig,
    change: &FunctionConfig,
) -> Result<FunctionConfig, Vec<Violation>> {
    let mut found = Vec::new();
    check_same(
        "tenant",
        stored.tenant(),
        change.tenant.as_deref(),
        &mut found,
    );
    check_same(
        "namespace",
        stored.namespace(),
        change.namespace.as_deref(),
        &mut found,
    );
    check_same(
        "name",
        stored.name().unwrap_or_default(),
        change.name.as_deref(),
        &mut found,
    );
    let (old, new) = (stored.all_inputs(), change.all_inputs());
    match (old, new) {
        (Ok(old), Ok(new)) => {
            for (topic, spec) in &new {
                match old.get(topic) {
                    None => found.push(altered_input(topic)),
                    Some(before) => {
                        let is_pattern = |flag: Option<bool>| flag == Some(true);
                        if is_pattern(before.regex_pattern) != is_pattern(spec.regex_pattern) {
                            found.push(altered_input(topic));
                        }
                    }
                }
            }
        }
        (_, Err(bad)) | (Err(bad), _) => {
            found.push(Violation::new(
                &["customSchemaInputs", &bad.topic],
                bad.to_string(),
            ));
        }
    }
    let fixed = [
        "outputSerdeClassName",
        "outputSchemaType",
        "processingGuarantees",
        "retainOrdering",
        "retainKeyOrdering",
        "runtime",
        "autoAck",
        "subName",
    ];
    merge(stored, change, &fixed, found)
}

/// The stored source with the change laid over it.
pub fn merge_source(
    stored: &SourceConfig,
    change: &SourceConfig,
) -> Result<SourceConfig, Vec<Violation>> {
    let mut found = Vec::new();
    check_same(
        "tenant",
        stored.tenant(),
        change.tenant.as_deref(),
        &mut found,
    );
    check_same(
        "namespace",
        stored.namespace(),
        change.namespace.as_deref(),
        &mut found,
    );
    let name = stored.name.as_deref().unwrap_or_default();
    check_same("name", name, change.name.as_deref(), &mut found);
    if change.batch_source_config.is_some() != stored.batch_source_config.is_some()
        && change.batch_source_config.is_some()
    {
        found.push(Violation::new(
            &["batchSourceConfig"],
            "a source cannot turn into a batch source",
        ));
    }
    merge(stored, change, &["processingGuarantees"], found)
}

/// The stored sink with the change laid over it.
pub fn merge_sink(stored: &SinkConfig, change: &SinkConfig) -> Result<SinkConfig, Vec<Violation>> {
    let mut found = Vec::new();
    check_same(
        "tenant",
        stored.tenant(),
        change.tenant.as_deref(),
        &mut found,
    );
    check_same(
        "namespace",
        stored.namespace(),
        change.namespace.as_deref(),
        &mut found,
    );
    let name = stored.name.as_deref().unwrap_or_default();
    check_same("name", name, change.name.as_deref(), &mut found);
    let old = stored.all_inputs();
    for topic in change.all_inputs().keys() {
        if !old.contains_key(topic) {
            found.push(altered_input(topic));
        }
    }
    let fixed = [
        "processingGuarantees",
        "retainOrdering",
        "retainKeyOrdering",
        "autoAck",
        "sourceSubscriptionName",
    ];
    merge(stored, change, &fixed, found)
}

fn altered_input(topic: &str) -> Violation {
    Violation::new(
        &["inputs", topic],
        format!("Input Topics cannot be altered: input `{topic}` cannot be added by an update"),
    )
    .help("delete the function and create it again")
}

/// What Pulsar says, and scripts look for.
fn pulsars_words(field: &str) -> &'static str {
    match field {
        "processingGuarantees" => "Processing Guarantees cannot be altered",
        "retainOrdering" => "Retain Ordering cannot be altered",
        "retainKeyOrdering" => "Retain Key Ordering cannot be altered",
        "runtime" => "Runtime cannot be altered",
        "autoAck" => "AutoAck cannot be altered",
        "subName" | "sourceSubscriptionName" => "Subscription Name cannot be altered",
        "outputSerdeClassName" => "Output Serde mismatch",
        "outputSchemaType" => "Output Schema mismatch",
        _ => "It cannot be altered",
    }
}

fn check_same(field: &str, stored: &str, change: Option<&str>, found: &mut Vec<Violation>) {
    if let Some(change) = change
        && change != stored
    {
        let message = format!("`{field}` cannot change from `{stored}` to `{change}`");
        found.push(Violation::new(&[field], message));
    }
}

/// Field by field over the JSON form: what the change gives, replaces what is stored.
fn merge<T: serde::Serialize + serde::de::DeserializeOwned>(
    stored: &T,
    change: &T,
    fixed: &[&str],
    mut found: Vec<Violation>,
) -> Result<T, Vec<Violation>> {
    let mut merged = object(stored);
    for (field, value) in object(change) {
        // As in Pulsar: an empty text changes nothing. Clients send it for what nobody gave.
        if value.as_str() == Some("") {
            continue;
        }
        let before = merged.get(&field);
        if fixed.contains(&field.as_str()) && before != Some(&value) {
            let was = before.map_or_else(|| "its default".to_owned(), Value::to_string);
            let says = pulsars_words(&field);
            let message = format!("{says}: `{field}` cannot change from {was} to {value}");
            found.push(Violation::new(&[&field], message));
        }
        merged.insert(field, value);
    }
    if !found.is_empty() {
        return Err(found);
    }
    serde_json::from_value(Value::Object(merged))
        .map_err(|error| vec![Violation::new(&[], error.to_string())])
}

fn object<T: serde::Serialize>(config: &T) -> Map<String, Value> {
    match serde_json::to_value(config) {
        Ok(Value::Object(fields)) => fields,
        // A configuration is a struct with text keys: it always becomes an object.
        _ => Map::new(),
    }
}
