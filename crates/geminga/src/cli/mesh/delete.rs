//! `geminga mesh delete`: by the files of a mesh, or by its name.
//!
//! A name is not unique: each namespace may have a mesh of it. So by name alone only what lies in one
//! namespace is deleted, unless `--all` says otherwise.

use std::collections::BTreeSet;

use geminga_admin::client::{AdminClient, Component as Kind};
use geminga_mesh::plan::Plan;
use geminga_mesh::plan::diff::State;
use geminga_model::TopicName;
use geminga_stdx::Diagnostic;
use serde_json::Value;

use super::{actual, everything, kind_of, name_of, number_of, refused};
use crate::cli::component::FullName;
use crate::failure::{Exit, Failure, Outcome};
use crate::output;

/// Which part of the server a name without files means.
#[derive(Debug, clap::Args)]
pub(super) struct Part {
    /// Without files: only in this tenant
    #[arg(long, requires = "name", conflicts_with = "files")]
    tenant: Option<String>,
    /// Without files: only in namespaces of this name
    #[arg(long, requires = "name", conflicts_with = "files")]
    namespace: Option<String>,
    /// Without files: in all namespaces where the mesh has something
    #[arg(long, requires = "name", conflicts_with = "files")]
    all: bool,
}

impl Part {
    fn has(&self, name: &FullName) -> bool {
        let fits =
            |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|wanted| wanted == is);
        fits(&self.tenant, &name.tenant) && fits(&self.namespace, &name.namespace)
    }
}

/// Whether it was there.
pub(super) async fn one(client: &AdminClient, kind: Kind, name: &FullName) -> Outcome<bool> {
    match client.delete_component(kind, name.fqfn()).await {
        Ok(()) => Ok(true),
        Err(error) if error.status() == Some(404) => Ok(false),
        Err(error) => Err(refused(kind, name, error)),
    }
}

/// Writers first, so that readers see the last of what was written.
pub(super) async fn plan(client: &AdminClient, plan: &Plan) -> Outcome {
    for node in plan.graph.start_order().into_iter().rev() {
        let component = &plan.components[node];
        let kind = kind_of(component.kind());
        let name = name_of(&component.fqfn());
        let was_there = one(client, kind, &name).await?;
        let done = if was_there {
            "deleted"
        } else {
            "was not there"
        };
        output::note(&format!("{kind} {name} {done}"));
    }
    // What left the file since the last `apply` is of the mesh all the same.
    for state in actual(client, plan).await? {
        let (kind, name) = (kind_of(state.kind), name_of(&state.fqfn));
        if one(client, kind, &name).await? {
            output::note(&format!("{kind} {name} deleted"));
        }
    }
    Ok(())
}

/// Deletes a mesh of which there is no file: what writes first.
pub(super) async fn mesh(client: &AdminClient, name: &str, part: &Part) -> Outcome {
    let members: Vec<State> = everything(client)
        .await?
        .into_iter()
        .filter(|it| it.config["mesh"].as_str() == Some(name) && part.has(&name_of(&it.fqfn)))
        .collect();
    for state in chosen(name, members, part)? {
        let (kind, name) = (kind_of(state.kind), name_of(&state.fqfn));
        if one(client, kind, &name).await? {
            output::note(&format!("{kind} {name} deleted"));
        }
    }
    Ok(())
}

/// What of a mesh is deleted, in that order.
fn chosen(name: &str, mut members: Vec<State>, part: &Part) -> Outcome<Vec<State>> {
    if members.is_empty() {
        let place = match (&part.tenant, &part.namespace) {
            (None, None) => String::new(),
            (tenant, namespace) => {
                let word = |it: &Option<String>| it.clone().unwrap_or_else(|| "*".to_owned());
                format!(" in {}/{}", word(tenant), word(namespace))
            }
        };
        let error = Diagnostic::error("G0202", format!("there is no mesh `{name}`{place}"))
            .help("geminga mesh list");
        return Err(Failure::new(Exit::NotFound, error));
    }
    let places: BTreeSet<(String, String)> = members
        .iter()
        .map(|it| name_of(&it.fqfn))
        .map(|it| (it.tenant, it.namespace))
        .collect();
    if let Some((tenant, namespace)) = places.first()
        && places.len() > 1
        && !part.all
    {
        let all: Vec<_> = places.iter().map(|(t, n)| format!("{t}/{n}")).collect();
        let error = Diagnostic::error(
            "G0208",
            format!(
                "mesh `{name}` has components in {} namespaces: {}",
                all.len(),
                all.join(", ")
            ),
        )
        .help(format!(
            "`geminga mesh delete --name {name} --tenant {tenant} --namespace {namespace}` deletes those of one of \
             them, `--all` those of all"
        ));
        return Err(Failure::new(Exit::Usage, error));
    }
    members.sort_by_key(|it| number_of(it.kind));
    Ok(writers_first(members))
}

/// So that readers see the last of what was written; where they write in a circle, in the order they are in.
fn writers_first(members: Vec<State>) -> Vec<State> {
    let mut left: Vec<_> = members
        .into_iter()
        .map(|it| (written(&it.config), read(&it.config), it))
        .collect();
    let mut order = Vec::new();
    while !left.is_empty() {
        let gets_more = |at: usize| {
            let (_, reads, _) = &left[at];
            let mut others = left.iter().enumerate().filter(|(other, _)| *other != at);
            others.any(|(_, (written, ..))| written.as_ref().is_some_and(|it| reads.contains(it)))
        };
        let first = (0..left.len()).find(|at| !gets_more(*at));
        order.push(left.remove(first.unwrap_or(0)).2);
    }
    order
}

fn topic(name: &str) -> Option<String> {
    let name: TopicName = name.parse().ok()?;
    Some(name.to_string())
}

fn written(config: &Value) -> Option<String> {
    let name = config["output"].as_str().or(config["topicName"].as_str());
    name.and_then(topic)
}

/// The topics that it names; of a pattern nobody knows them.
fn read(config: &Value) -> BTreeSet<String> {
    let listed = config["inputs"].as_array().into_iter().flatten();
    let listed = listed.filter_map(Value::as_str);
    let specs = config["inputSpecs"].as_object().into_iter().flatten();
    let names = listed.chain(specs.map(|(name, _)| name.as_str()));
    names.filter_map(topic).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The order of names was that of their deletion.
    #[test]
    fn what_writes_goes_before_what_reads_it() {
        let member = |name: &str, reads: &str, writes: &str| State {
            kind: "function",
            fqfn: name.to_owned(),
            config: json!({"inputSpecs": {reads: {}}, "output": writes}),
        };
        for (members, want) in [
            (
                vec![
                    member("a", "y", "z"),
                    member("b", "x", "y"),
                    member("c", "w", "persistent://public/default/x"),
                ],
                ["c", "b", "a"],
            ),
            // In a circle, as they are.
            (
                vec![
                    member("a", "x", "z"),
                    member("b", "x", "y"),
                    member("c", "y", "x"),
                ],
                ["a", "b", "c"],
            ),
        ] {
            let order = writers_first(members);
            let names: Vec<_> = order.iter().map(|it| it.fqfn.as_str()).collect();
            assert_eq!(names, want);
        }
    }

    #[test]
    fn a_name_alone_deletes_in_one_namespace() {
        let member = |kind, fqfn: &str| State {
            kind,
            fqfn: fqfn.to_owned(),
            config: Value::Null,
        };
        let part = |all| Part {
            tenant: None,
            namespace: None,
            all,
        };
        let one = || vec![member("sink", "a/n/s"), member("function", "a/n/f")];
        let two = || vec![member("function", "a/n/f"), member("function", "b/n/f")];
        let names = |chosen: Outcome<Vec<State>>| -> Vec<String> {
            let chosen = chosen.expect("deleted").into_iter();
            chosen.map(|it| it.fqfn).collect()
        };
        assert_eq!(
            names(chosen("shop", one(), &part(false))),
            ["a/n/f", "a/n/s"]
        );
        assert_eq!(
            names(chosen("shop", two(), &part(true))),
            ["a/n/f", "b/n/f"]
        );
        let refused = chosen("shop", two(), &part(false)).expect_err("refused");
        assert_eq!(refused.exit, Exit::Usage);
        let said = refused.diagnostics[0].to_string();
        assert!(said.contains("in 2 namespaces: a/n, b/n"), "{said}");
        assert!(said.contains("--tenant a --namespace n"), "{said}");
        let none = chosen("shop", Vec::new(), &part(true)).expect_err("refused");
        assert_eq!(none.exit, Exit::NotFound);
    }
}
