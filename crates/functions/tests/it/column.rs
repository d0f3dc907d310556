//! Every field of `FunctionConfig` in one runtime: either its effect is seen in a run, or the field is refused by
//! its name at creation and update, or a status warns of it. What the runs find is `docs/functions-matrix.md`.
//!
//! A field that does nothing of these fails the run, and so does a page that says anything else than it
//! (`GEMINGA_WRITE_MATRIX=1` writes it). The crate of the WASM runtime includes this by its path, beside `stage`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use geminga_functions::{Component, ComponentId, WorkerError};
use geminga_model::FunctionConfig;
use serde_json::{Value, json};

use crate::stage::Stage;

// By their paths, since who includes this file by its path has them elsewhere.
#[path = "column/case.rs"]
mod case;
#[path = "column/code.rs"]
pub(crate) mod code;
#[path = "column/common.rs"]
mod common;
#[path = "column/fields.rs"]
pub(crate) mod fields;
#[path = "column/page.rs"]
mod page;
#[path = "column/process.rs"]
pub(crate) mod process;
#[path = "column/running.rs"]
mod running;
#[path = "column/topics.rs"]
mod topics;
#[path = "column/types.rs"]
mod types;

use self::case::Case;
use self::fields::{all_fields, sample};

/// Whether it is enforced or warned of depends on what the kernel lets the worker do.
const BY_THE_MACHINE: &str = "yes or warned";

/// One column of the page. The code is a function of `runtime` as `code` has it, and one for windows.
pub(crate) async fn column(
    stage: Stage,
    runtime: &'static str,
    (code, window_code): (PathBuf, PathBuf),
) {
    let mut case = Case {
        stage: &stage,
        runtime,
        code,
        window_code,
        seen: BTreeSet::new(),
        number: 0,
    };
    common::common(&mut case).await;
    topics::subscriptions(&mut case).await;
    topics::outputs(&mut case).await;
    topics::acknowledging(&mut case).await;
    running::running(&mut case).await;
    types::types(&mut case).await;
    // It is there to be changed.
    let base = case.make(json!({"inputs": ["in"]})).await;
    let mut found = BTreeMap::new();
    for field in all_fields() {
        found.insert(field.clone(), word(&mut case, &base, &field).await);
    }
    let holes: Vec<_> = found
        .iter()
        .filter(|(_, word)| word.starts_with("neither"))
        .collect();
    assert!(holes.is_empty(), "{runtime}: {holes:#?}");
    page::check(runtime, &found);
    stage.end().await;
}

/// What the page says of a field.
async fn word(case: &mut Case<'_>, base: &ComponentId, field: &str) -> String {
    let is_seen = case.seen.contains(field);
    let word = match (is_seen, is_refused(case, base, field).await) {
        // Some of its values only.
        (true, true) if field.ends_with("consumerProperties") => "in part",
        (true, _) => "yes",
        (false, true) => "refused",
        (false, false) if is_warned_of(case, field).await => match field {
            "resources.cpu" | "resources.disk" if !case.is_guest() => BY_THE_MACHINE,
            _ => "warned",
        },
        (false, false) if field == "resources.cpu" && !case.is_guest() => {
            running::held(case, field, process::in_a_group).await;
            BY_THE_MACHINE
        }
        (false, false) if field == "resources.disk" && !case.is_guest() => {
            running::held(case, field, process::writes_no_large_file).await;
            "yes"
        }
        (false, false) => "neither seen nor refused by name",
    };
    word.to_owned()
}

/// Whether any of these sentences names the field.
fn names(said: &[String], field: &str) -> bool {
    let name = field.rsplit('.').next().unwrap_or(field);
    said.iter()
        .any(|why| why.contains(&format!("`{name}")) || why.contains(&format!(".{name}")))
}

/// A function of these fields; none where a field takes no such value, and so is in no list of refusals.
fn component(config: Value) -> Option<Component> {
    let config: FunctionConfig = serde_json::from_value(config).ok()?;
    Some(config.into())
}

/// Whether a field is refused, and by its name: when it is checked, at creation and at update alike.
async fn is_refused(case: &mut Case<'_>, base: &ComponentId, field: &str) -> bool {
    let Some(new) = component(case.config(sample(field))) else {
        return false;
    };
    let said = geminga_functions::check(&new).err().unwrap_or_default();
    if !names(&said, field) {
        return false;
    }
    let mut change = sample(field);
    change["name"] = json!(base.name);
    let change = component(change).expect("as above");
    let worker = &case.stage.worker;
    let answers = [
        ("create", worker.create(new, None).await.err()),
        ("update", worker.update(base, change, None).await.err()),
    ];
    for (what, answer) in answers {
        let is_named = matches!(&answer, Some(WorkerError::Invalid(said)) if names(said, field));
        // Of what is taken in part, or instead of another, a change may be none, or another's refusal.
        let is_seen = case.seen.contains(field);
        assert!(
            is_named || is_seen,
            "{} {what} with `{field}`: {answer:?}",
            case.runtime
        );
    }
    true
}

/// Whether the status of a function with this field warns of it.
async fn is_warned_of(case: &mut Case<'_>, field: &str) -> bool {
    let Some(new) = component(case.config(sample(field))) else {
        return false;
    };
    let Ok(id) = case.stage.worker.create(new, None).await else {
        return false;
    };
    let said = case.stage.worker.status(&id).expect("there").warnings;
    case.stage.worker.delete(&id).await.expect("deleted");
    names(&said, field)
}
