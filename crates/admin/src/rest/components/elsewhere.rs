//! Other workers of the cluster: changes go to the one that leads, and what an instance knows is
//! asked of the worker that runs it.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use geminga_functions::{ComponentId, Kind, MemberInfo, Owner, Worker};
use geminga_stdx::Tasks;
use hyper::Method;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::super::functions::state::Functions;
use crate::client::{ASKED_BY_WORKER, AdminClient};
use crate::error::{Answer, ApiError};
use crate::request::discard;

/// How long other workers may take to say how their instances are.
const ASK_LIMIT: Duration = Duration::from_secs(5);

/// Who has to answer a request.
#[derive(Debug, PartialEq, Eq)]
enum Decides {
    Anyone,
    Leader,
    /// Who runs the first instance, and so holds the state.
    Runner(ComponentId),
}

/// Sends a request on, as Pulsar does, when another worker has to answer it.
pub(crate) async fn to_who_decides(
    State(functions): State<Functions>,
    request: Request,
    next: Next,
) -> Response {
    let Some(worker) = &functions.worker else {
        return next.run(request).await;
    };
    let url = match decides(request.method(), request.uri(), request.headers()) {
        Decides::Anyone => None,
        Decides::Leader if worker.leads() => None,
        Decides::Leader => match worker.leader_url() {
            Some(url) => Some(url),
            None => {
                let why = "Leader not yet ready. Please retry again";
                return ApiError::unavailable(why).into_response();
            }
        },
        Decides::Runner(id) => match worker.owner(&id, 0) {
            Owner::At(member) => Some(member.url),
            Owner::Here | Owner::Nobody => None,
        },
    };
    let Some(url) = url.filter(|url| !url.is_empty()) else {
        return next.run(request).await;
    };
    let path = request
        .uri()
        .path_and_query()
        .map_or("/", |path| path.as_str());
    let to = HeaderValue::from_str(&format!("{url}{path}"));
    discard(request.into_body()).await;
    match to {
        Ok(to) => (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, to)]).into_response(),
        Err(_) => ApiError::internal("the leader has no address").into_response(),
    }
}

fn decides(method: &Method, uri: &Uri, headers: &HeaderMap) -> Decides {
    let segments: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
    match segments.as_slice() {
        ["admin", "v3", "functions", t, n, name, "state", _] => {
            let decode = |text: &str| super::super::rules::decode(text).unwrap_or_default();
            Decides::Runner(ComponentId::new(
                Kind::Function,
                decode(t),
                decode(n),
                decode(name),
            ))
        }
        _ if method.is_safe() => Decides::Anyone,
        // Messages go through topics: whoever is asked can send them.
        ["admin", "v3", "functions", _, _, _, "trigger"] | ["functions", ..] => Decides::Anyone,
        [.., "reload" | "reloadBuiltInSources" | "reloadBuiltInSinks"] => Decides::Anyone,
        [.., "restart"] if headers.contains_key(ASKED_BY_WORKER) => Decides::Anyone,
        _ => Decides::Leader,
    }
}

fn client(url: &str, headers: &HeaderMap) -> Option<AdminClient> {
    let client = AdminClient::new(url).ok()?;
    Some(client.for_worker(headers.get(header::AUTHORIZATION).cloned()))
}

fn path_of(id: &ComponentId, rest: &str) -> String {
    let segment = crate::client::segment;
    let base = match id.kind {
        Kind::Function => "functions",
        Kind::Source => "sources",
        Kind::Sink => "sinks",
    };
    format!(
        "/admin/v3/{base}/{}/{}/{}/{rest}",
        segment(&id.tenant),
        segment(&id.namespace),
        segment(&id.name)
    )
}

/// Puts into a report what other workers say of the instances that they run. Whether there were any.
pub(super) async fn fill(
    worker: &Worker,
    headers: &HeaderMap,
    id: &ComponentId,
    report: &str,
    whole: &mut Value,
) -> bool {
    let mut any = false;
    // One that is asked by a worker says what it knows: two that each believe in the other would ask
    // for ever.
    if headers.contains_key(ASKED_BY_WORKER) {
        return any;
    }
    let part = if report == "stats" {
        "metrics"
    } else {
        "status"
    };
    let mut asked: BTreeMap<String, MemberInfo> = BTreeMap::new();
    let mut instances = Vec::new();
    for instance in whole["instances"].as_array_mut().into_iter().flatten() {
        let number = instance["instanceId"].as_u64();
        let Some(number) = number.and_then(|n| u32::try_from(n).ok()) else {
            continue;
        };
        match worker.owner(id, number) {
            Owner::Here => {}
            Owner::Nobody => {
                if report == "status" {
                    instance["status"]["error"] = json!(worker.why_nobody(id, number));
                    instance["status"]["workerId"] = json!("");
                }
            }
            Owner::At(member) => {
                instances.push((instance, member.clone()));
                asked.entry(member.url.clone()).or_insert(member);
            }
        }
    }
    let path = path_of(id, report);
    let said = ask_each(Method::GET, asked.into_values(), headers, &path).await;
    for (instance, member) in &mut instances {
        any = true;
        let all = said.get(&member.url).map(|said| &said["instances"]);
        let mut own = all.and_then(Value::as_array).into_iter().flatten();
        let own = own.find(|said| said["instanceId"] == instance["instanceId"]);
        match own.map(|own| own[part].clone()) {
            Some(own) => instance[part] = own,
            None if report == "status" => {
                let why = format!("the worker {} does not answer", member.worker_id);
                instance["status"]["running"] = json!(false);
                instance["status"]["error"] = json!(why);
                instance["status"]["workerId"] = json!(member.worker_id);
            }
            None => {}
        }
    }
    any
}

/// What each of these workers says, by its address: all are asked at once.
async fn ask_each(
    method: Method,
    members: impl Iterator<Item = MemberInfo>,
    headers: &HeaderMap,
    path: &str,
) -> BTreeMap<String, Value> {
    let (sender, mut answers) = mpsc::channel(64);
    let tasks = Tasks::new();
    for member in members {
        let Some(client) = client(&member.url, headers) else {
            continue;
        };
        let (sender, path, method) = (sender.clone(), path.to_owned(), method.clone());
        tasks.spawn_cancellable("ask a worker", async move {
            if let Ok(reply) = client.send(method, &path, None).await {
                let said = serde_json::from_slice(&reply.body).unwrap_or_default();
                // Nobody waits for it any more when the time is over.
                let _ = sender.send((member.url, said)).await;
            }
        });
    }
    drop(sender);
    let mut said = BTreeMap::new();
    let all = async {
        while let Some((url, answer)) = answers.recv().await {
            said.insert(url, answer);
        }
    };
    let _ = tokio::time::timeout(ASK_LIMIT, all).await;
    tasks.cancel();
    said
}

/// Has the other workers read their folders of built-in functions again: what of those can not be used, and
/// which worker did not answer.
pub(super) async fn reload(worker: &Worker, headers: &HeaderMap) -> Vec<Value> {
    if headers.contains_key(ASKED_BY_WORKER) {
        return Vec::new();
    }
    let own = worker.worker_id();
    let others = worker.members().into_iter();
    let others: Vec<_> = others.filter(|member| member.worker_id != own).collect();
    let path = "/admin/v3/functions/builtins/reload";
    let mut said = ask_each(Method::POST, others.iter().cloned(), headers, path).await;
    let mut broken = Vec::new();
    for member in others {
        match said.remove(&member.url) {
            Some(mut said) => {
                broken.extend(
                    said["broken"]
                        .as_array_mut()
                        .into_iter()
                        .flat_map(std::mem::take),
                );
            }
            None => broken.push(json!({
                "workerId": member.worker_id, "file": "", "reason": "the worker does not answer",
            })),
        }
    }
    broken
}

/// Has the instances restarted that other workers run.
pub(super) async fn restart(
    worker: &Worker,
    headers: &HeaderMap,
    uri: &Uri,
    id: &ComponentId,
    instance: Option<u32>,
) -> Answer<()> {
    if headers.contains_key(ASKED_BY_WORKER) {
        return Ok(());
    }
    let count = worker.status(id)?.num_instances;
    let wanted = (0..count).filter(|n| instance.is_none_or(|wanted| wanted == *n));
    for number in wanted {
        let Owner::At(member) = worker.owner(id, number) else {
            continue;
        };
        let path = path_of(id, &format!("{number}/restart"));
        let asked = async {
            let client = client(&member.url, headers)
                .ok_or_else(|| format!("the worker {} has no address", member.worker_id))?;
            client
                .act(Method::POST, &path)
                .await
                .map_err(|error| error.to_string())
        };
        match tokio::time::timeout(ASK_LIMIT * 4, asked).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => return Err(ApiError::unavailable(why)),
            Err(_) => {
                let why = format!("`{uri}`: the worker {} does not answer", member.worker_id);
                return Err(ApiError::unavailable(why));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_the_leaders_and_state_is_the_runners() {
        let at = |method: &str, path: &str| {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            decides(&method, &path.parse().unwrap(), &HeaderMap::new())
        };
        let base = "/admin/v3/functions/t/n/f";
        for (method, rest) in [
            ("POST", ""),
            ("PUT", ""),
            ("DELETE", ""),
            ("POST", "/stop"),
            ("POST", "/0/start"),
            ("POST", "/restart"),
            ("POST", "/rollback"),
        ] {
            assert_eq!(
                at(method, &format!("{base}{rest}")),
                Decides::Leader,
                "{method} {rest}"
            );
        }
        for (method, rest) in [("GET", ""), ("GET", "/status"), ("POST", "/trigger")] {
            assert_eq!(
                at(method, &format!("{base}{rest}")),
                Decides::Anyone,
                "{method} {rest}"
            );
        }
        assert_eq!(at("POST", "/functions/t/n/f"), Decides::Anyone);
        assert_eq!(
            at("POST", "/admin/v3/packages/function/t/n/p/1"),
            Decides::Leader
        );
        let id = ComponentId::new(Kind::Function, "t", "n", "f g");
        assert_eq!(
            at("GET", "/admin/v3/functions/t/n/f%20g/state/k"),
            Decides::Runner(id)
        );
    }
}
