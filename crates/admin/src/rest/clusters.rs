//! `/admin/v2/clusters`: this cluster, and the others that it knows.
//!
//! What cannot be honoured of another one is refused by the name of its field. Credentials are not
//! shown: who reads them back and stores them again keeps what is stored.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use geminga_broker::ClusterData;
use serde_json::{Map, Value, json};

use super::extract::{Params, Segments};
use super::{Admin, document, done};
use crate::error::{Answer, ApiError};
use crate::request;

/// Shown in place of credentials.
const HIDDEN: &str = "*****";
const CREDENTIALS: &str = "authenticationParameters";

pub(super) fn router() -> Router<Admin> {
    Router::new()
        .route("/admin/v2/clusters", get(list))
        .route(
            "/admin/v2/clusters/{cluster}",
            get(one).put(create).post(update).delete(delete),
        )
        .route(
            "/admin/v2/clusters/{cluster}/migrate",
            get(migration).post(set_migration),
        )
        .route(
            "/admin/v2/clusters/{cluster}/peers",
            get(peers).post(set_peers),
        )
}

/// What Pulsar's client sends of what is not set: it means nothing, another value is refused.
fn is_unset(name: &str, value: &Value) -> Option<bool> {
    let unset = match name {
        "brokerClientTlsEnabled"
        | "tlsAllowInsecureConnection"
        | "brokerClientTlsEnabledWithKeyStore"
        | "migrated" => value == &Value::Bool(false),
        // The type of a store that is not there.
        "brokerClientTlsTrustStoreType" | "brokerClientTlsKeyStoreType" => true,
        "brokerClientSslFactoryPlugin" => value.as_str().is_some_and(|name| {
            name.is_empty() || name == "org.apache.pulsar.common.util.DefaultPulsarSslFactory"
        }),
        "proxyServiceUrl"
        | "proxyProtocol"
        | "brokerClientTlsTrustStore"
        | "brokerClientTlsTrustStorePassword"
        | "brokerClientTlsKeyStore"
        | "brokerClientTlsKeyStorePassword"
        | "brokerClientTrustCertsFilePath"
        | "brokerClientKeyFilePath"
        | "brokerClientCertificateFilePath"
        | "brokerClientSslFactoryPluginParams"
        | "migratedClusterUrl" => value.as_str() == Some(""),
        _ => return None,
    };
    Some(unset || value.is_null())
}

/// A cluster as clients send it.
fn read(given: Map<String, Value>) -> Answer<ClusterData> {
    let mut kept = Map::new();
    for (name, value) in given {
        match is_unset(&name, &value) {
            Some(true) => {}
            Some(false) => {
                return Err(ApiError::bad_request(format!(
                    "`{name}` cannot be honoured: other clusters are reached without TLS and \
                     without a proxy"
                )));
            }
            None if value.is_null() || value == "" => {}
            None => {
                kept.insert(name, value);
            }
        }
    }
    let data: ClusterData = request::from_json(Value::Object(kept).to_string().as_bytes())?;
    data.check().map_err(ApiError::bad_request)?;
    Ok(data)
}

fn shown(data: &ClusterData) -> Answer<Value> {
    let mut value =
        serde_json::to_value(data).map_err(|error| ApiError::internal(error.to_string()))?;
    if value.get(CREDENTIALS).is_some() {
        value[CREDENTIALS] = json!(HIDDEN);
    }
    value["brokerClientTlsEnabled"] = json!(false);
    value["tlsAllowInsecureConnection"] = json!(false);
    Ok(value)
}

async fn list(State(admin): State<Admin>) -> Answer {
    document(&admin.broker().clusters().await?)
}

/// What is known of a cluster; of this one at least its addresses.
async fn stored(admin: &Admin, cluster: &str) -> Answer<ClusterData> {
    match admin.broker().cluster(cluster).await? {
        Some(data) => Ok(data),
        None if cluster == admin.broker().config().cluster_name => Ok(ClusterData {
            service_url: Some(admin.http_url().to_owned()),
            broker_service_url: admin.broker().service_url(),
            broker_service_url_tls: admin.broker().service_url_tls(),
            ..ClusterData::default()
        }),
        None => Err(ApiError::not_found("Cluster does not exist")),
    }
}

async fn one(State(admin): State<Admin>, Segments(cluster): Segments<String>) -> Answer {
    document(&shown(&stored(&admin, &cluster).await?)?)
}

async fn create(
    State(admin): State<Admin>,
    Segments(cluster): Segments<String>,
    request: Request,
) -> Answer {
    let is_legal = |c: char| c.is_ascii_alphanumeric() || "-=:._".contains(c);
    if cluster.is_empty() || !cluster.chars().all(is_legal) || cluster == "global" {
        return Err(ApiError::precondition_failed("Cluster name is not valid"));
    }
    let data = read(request::json(request).await?)?;
    check_peers(&admin, &cluster, &data.peer_cluster_names).await?;
    admin.broker().create_cluster(&cluster, &data).await?;
    done()
}

async fn update(
    State(admin): State<Admin>,
    Segments(cluster): Segments<String>,
    request: Request,
) -> Answer {
    let mut given: Map<String, Value> = request::json(request).await?;
    let before = stored(&admin, &cluster).await?;
    if given.get(CREDENTIALS).and_then(Value::as_str) == Some(HIDDEN) {
        given.insert(
            CREDENTIALS.to_owned(),
            json!(before.authentication_parameters),
        );
    }
    let mut data = read(given)?;
    // Set by an endpoint of their own.
    if data.peer_cluster_names.is_empty() {
        data.peer_cluster_names = before.peer_cluster_names;
    }
    admin.broker().update_cluster(&cluster, &data).await?;
    done()
}

async fn delete(State(admin): State<Admin>, Segments(cluster): Segments<String>) -> Answer {
    admin.broker().delete_cluster(&cluster).await?;
    done()
}

/// Pulsar says 404 of a cluster that its clients never left.
async fn migration(State(admin): State<Admin>, Segments(cluster): Segments<String>) -> Answer {
    stored(&admin, &cluster).await?;
    document(&json!({ "migrated": false }))
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Migrating {
    #[serde(default)]
    migrated: bool,
}

async fn set_migration(
    State(admin): State<Admin>,
    Segments(cluster): Segments<String>,
    Params(params): Params<Migrating>,
) -> Answer {
    stored(&admin, &cluster).await?;
    match params.migrated {
        false => Ok(StatusCode::OK.into_response()),
        true => Err(ApiError::not_implemented(format!(
            "`migrated` of {cluster} cannot be honoured: clients are not sent to another cluster"
        ))),
    }
}

async fn peers(State(admin): State<Admin>, Segments(cluster): Segments<String>) -> Answer {
    document(&stored(&admin, &cluster).await?.peer_cluster_names)
}

async fn set_peers(
    State(admin): State<Admin>,
    Segments(cluster): Segments<String>,
    request: Request,
) -> Answer {
    let names: Option<Vec<String>> = request::json_or_none(request).await?;
    let mut data = stored(&admin, &cluster).await?;
    data.peer_cluster_names = names.unwrap_or_default();
    check_peers(&admin, &cluster, &data.peer_cluster_names).await?;
    admin.broker().update_cluster(&cluster, &data).await?;
    done()
}

async fn check_peers(admin: &Admin, cluster: &str, peers: &[String]) -> Answer<()> {
    for peer in peers {
        if peer == cluster {
            return Err(ApiError::precondition_failed(format!(
                "{cluster} itself can't be part of peer-list"
            )));
        }
        if !admin.broker().clusters().await?.contains(peer) {
            return Err(ApiError::precondition_failed(format!(
                "Peer cluster {peer} does not exist"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(json: Value) -> Answer<ClusterData> {
        match json {
            Value::Object(map) => read(map),
            _ => unreachable!("a test gives an object"),
        }
    }

    #[test]
    fn what_pulsars_client_sends_is_read_and_what_is_not_honoured_is_named() {
        let sent = json!({
            "serviceUrl": "http://b:8080", "brokerServiceUrl": "pulsar://b:6650",
            "peerClusterNames": null, "brokerClientTlsEnabled": false,
            "tlsAllowInsecureConnection": false, "brokerClientTlsTrustStoreType": "JKS",
            "brokerClientSslFactoryPlugin":
                "org.apache.pulsar.common.util.DefaultPulsarSslFactory",
            "brokerClientSslFactoryPluginParams": "", "migrated": false
        });
        let data = given(sent).unwrap();
        assert_eq!(data.broker_service_url.as_deref(), Some("pulsar://b:6650"));
        for (json, word) in [
            (
                json!({"brokerClientTlsEnabled": true}),
                "brokerClientTlsEnabled",
            ),
            (json!({"proxyServiceUrl": "pulsar://p"}), "proxyServiceUrl"),
            (json!({"brokerServiceUrl": "b:6650"}), "brokerServiceUrl"),
            (
                json!({"serviceURL": "http://b"}),
                "did you mean `serviceUrl`",
            ),
            (
                json!({"authenticationPlugin": "x.Tls"}),
                "authenticationPlugin",
            ),
        ] {
            let refused = given(json).unwrap_err();
            assert_eq!(refused.status.as_u16(), 400);
            assert!(refused.reason.contains(word), "{refused}");
        }
    }
}
