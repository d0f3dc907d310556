//! What says on which broker, disk or rack things are to be: failure domains, isolation policies,
//! quotas and racks. The broker keeps what one machine obeys by being one; what would need another
//! machine is refused by name.

use axum::Router;
use axum::extract::{Request, State};
use axum::routing::get;
use geminga_broker::{FailureDomain, IsolationPolicy, Policies, ResourceQuota};
use geminga_model::NamespaceName;
use serde_json::{Value, json};

use super::brokers::broker_id;
use super::bundles::find;
use super::extract::{NamespaceInPath, Params, Segments};
use super::{Admin, document, done, raw};
use crate::error::{Answer, ApiError};
use crate::request;

const NAMESPACE: &str = "/admin/v2/namespaces/{tenant}/{namespace}";

pub(super) fn router() -> Router<Admin> {
    let cluster = "/admin/v2/clusters/{cluster}";
    let isolation = format!("{cluster}/namespaceIsolationPolicies");
    let racks = "/admin/v2/bookies/racks-info";
    Router::new()
        .route(&format!("{cluster}/failureDomains"), get(domains))
        .route(
            &format!("{cluster}/failureDomains/{{name}}"),
            get(domain).post(set_domain).delete(delete_domain),
        )
        .route(&isolation, get(policies))
        .route(&format!("{isolation}/brokers"), get(brokers))
        .route(&format!("{isolation}/brokers/{{broker}}"), get(broker))
        .route(
            &format!("{isolation}/{{name}}"),
            get(policy).post(set_policy).delete(delete_policy),
        )
        .route("/admin/v2/bookies/all", get(bookies))
        .route(racks, get(no_racks))
        .route(
            &format!("{racks}/{{bookie}}"),
            get(no_rack).post(no_bookie).delete(no_rack),
        )
        .route(
            "/admin/v2/resource-quotas",
            get(default_quota).post(set_default_quota),
        )
        .route(
            "/admin/v2/resource-quotas/{tenant}/{namespace}/{bundle}",
            get(quota).post(set_quota).delete(reset_quota),
        )
        .route(
            &format!("{NAMESPACE}/antiAffinity"),
            get(group).post(set_group).delete(remove_group),
        )
        .route(
            &format!("{NAMESPACE}/persistence/bookieAffinity"),
            get(no_affinity).post(set_affinity).delete(remove_affinity),
        )
        .route(
            "/admin/v2/namespaces/{tenant}/antiAffinity/{group}",
            get(with_group),
        )
        // Where pulsar-admin asks for it, still.
        .route(
            "/admin/namespaces/{tenant}/antiAffinity/{group}",
            get(with_group),
        )
}

#[derive(serde::Deserialize)]
struct Named {
    cluster: String,
    name: String,
}

async fn domains(State(admin): State<Admin>, Segments(cluster): Segments<String>) -> Answer {
    document(&admin.broker().failure_domains(&cluster).await?)
}

async fn domain(State(admin): State<Admin>, Segments(named): Segments<Named>) -> Answer {
    let Named { cluster, name } = named;
    let mut all = admin.broker().failure_domains(&cluster).await?;
    let found = all.remove(&name);
    document(&found.ok_or_else(|| {
        ApiError::not_found(format!(
            "Domain {name} for cluster {cluster} does not exist"
        ))
    })?)
}

async fn set_domain(
    State(admin): State<Admin>,
    Segments(Named { cluster, name }): Segments<Named>,
    request: Request,
) -> Answer {
    let given: FailureDomain = request::json(request).await?;
    let broker = admin.broker();
    broker.put_failure_domain(&cluster, &name, &given).await?;
    done()
}

async fn delete_domain(
    State(admin): State<Admin>,
    Segments(Named { cluster, name }): Segments<Named>,
) -> Answer {
    match admin
        .broker()
        .delete_failure_domain(&cluster, &name)
        .await?
    {
        true => done(),
        false => Err(ApiError::not_found(format!(
            "Domain-name {name} or cluster {cluster} does not exist"
        ))),
    }
}

/// 404 for a cluster that is not known.
async fn require_cluster(admin: &Admin, cluster: &str) -> Answer<()> {
    match admin
        .broker()
        .clusters()
        .await?
        .iter()
        .any(|name| name == cluster)
    {
        true => Ok(()),
        false => Err(ApiError::not_found(format!(
            "Cluster {cluster} does not exist."
        ))),
    }
}

async fn policies(State(admin): State<Admin>, Segments(cluster): Segments<String>) -> Answer {
    require_cluster(&admin, &cluster).await?;
    let all = admin.broker().isolation_policies(&cluster).await?;
    match all.is_empty() {
        // Pulsar does so until there was one.
        true => Err(ApiError::not_found(format!(
            "NamespaceIsolationPolicies for cluster {cluster} does not exist"
        ))),
        false => document(&all),
    }
}

async fn policy(State(admin): State<Admin>, Segments(named): Segments<Named>) -> Answer {
    let Named { cluster, name } = named;
    require_cluster(&admin, &cluster).await?;
    let found = admin
        .broker()
        .isolation_policies(&cluster)
        .await?
        .remove(&name);
    document(&found.ok_or_else(|| {
        ApiError::not_found(format!(
            "NamespaceIsolationPolicies for cluster {cluster} does not exist: {name}"
        ))
    })?)
}

async fn set_policy(
    State(admin): State<Admin>,
    Segments(Named { cluster, name }): Segments<Named>,
    request: Request,
) -> Answer {
    let given: IsolationPolicy = request::json(request).await?;
    let own = broker_id(&admin);
    let broker = admin.broker();
    broker
        .put_isolation_policy(&cluster, &name, &given, &own)
        .await?;
    done()
}

async fn delete_policy(
    State(admin): State<Admin>,
    Segments(Named { cluster, name }): Segments<Named>,
) -> Answer {
    let broker = admin.broker();
    broker.delete_isolation_policy(&cluster, &name).await?;
    done()
}

/// What the policies of a cluster say of a broker.
async fn said_of(admin: &Admin, cluster: &str, broker: &str) -> Answer<Value> {
    require_cluster(admin, cluster).await?;
    let mut said = json!({ "brokerName": broker, "namespaceRegex": [], "primary": false });
    let mut namespaces: Vec<String> = Vec::new();
    for (name, policy) in admin.broker().isolation_policies(cluster).await? {
        let is_primary = policy.is_primary(broker);
        if is_primary || policy.is_secondary(broker) {
            namespaces.extend(policy.namespaces);
            said["policyName"] = json!(name);
            said["primary"] = json!(is_primary);
        }
    }
    said["namespaceRegex"] = json!(namespaces);
    Ok(said)
}

async fn brokers(State(admin): State<Admin>, Segments(cluster): Segments<String>) -> Answer {
    let own = broker_id(&admin);
    document(&[said_of(&admin, &cluster, &own).await?])
}

#[derive(serde::Deserialize)]
struct OfBroker {
    cluster: String,
    broker: String,
}

async fn broker(State(admin): State<Admin>, Segments(named): Segments<OfBroker>) -> Answer {
    document(&said_of(&admin, &named.cluster, &named.broker).await?)
}

/// The storage is in this process.
async fn bookies() -> Answer {
    document(&json!({ "bookies": [] }))
}

async fn no_racks() -> Answer {
    document(&json!({}))
}

async fn no_rack(Segments(bookie): Segments<String>) -> Answer {
    Err(ApiError::not_found(format!(
        "Bookie rack placement configuration not found: {bookie}"
    )))
}

async fn no_bookie(Segments(bookie): Segments<String>) -> Answer {
    Err(ApiError::precondition_failed(format!(
        "bookie {bookie} cannot be placed: there are no bookies, this server stores on its own disk"
    )))
}

async fn default_quota(State(admin): State<Admin>) -> Answer {
    document(&admin.broker().resource_quota(None).await?)
}

async fn given_quota(request: Request) -> Answer<ResourceQuota> {
    let quota: ResourceQuota = request::json(request).await?;
    for (name, value) in [
        ("msgRateIn", quota.msg_rate_in),
        ("msgRateOut", quota.msg_rate_out),
        ("bandwidthIn", quota.bandwidth_in),
        ("bandwidthOut", quota.bandwidth_out),
        ("memory", quota.memory),
    ] {
        if value <= 0.0 {
            return Err(ApiError::bad_request(format!("`{name}` must be above 0")));
        }
    }
    Ok(quota)
}

async fn set_default_quota(State(admin): State<Admin>, request: Request) -> Answer {
    let quota = given_quota(request).await?;
    admin.broker().set_resource_quota(None, quota).await?;
    done()
}

#[derive(serde::Deserialize)]
struct Bundle {
    bundle: String,
}

async fn check_bundle(admin: &Admin, namespace: &NamespaceName, bundle: &str) -> Answer<()> {
    find(admin, namespace, bundle).await.map(drop)
}

async fn quota(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
    Segments(Bundle { bundle }): Segments<Bundle>,
) -> Answer {
    check_bundle(&admin, &namespace, &bundle).await?;
    let of = Some((&namespace, bundle.as_str()));
    document(&admin.broker().resource_quota(of).await?)
}

async fn set_quota(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
    Segments(Bundle { bundle }): Segments<Bundle>,
    request: Request,
) -> Answer {
    let quota = given_quota(request).await?;
    check_bundle(&admin, &namespace, &bundle).await?;
    let of = Some((&namespace, bundle.as_str()));
    admin.broker().set_resource_quota(of, quota).await?;
    done()
}

async fn reset_quota(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
    Segments(Bundle { bundle }): Segments<Bundle>,
) -> Answer {
    check_bundle(&admin, &namespace, &bundle).await?;
    let broker = admin.broker();
    broker.reset_resource_quota(&namespace, &bundle).await?;
    done()
}

#[derive(serde::Deserialize)]
struct Group {
    /// The cluster stands where other paths have the tenant.
    #[serde(rename = "tenant")]
    cluster: String,
    group: String,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct OfTenant {
    /// `property` is its older name, which pulsar-admin sends.
    #[serde(alias = "property")]
    tenant: Option<String>,
}

/// The namespaces of a tenant in an anti-affinity group.
async fn with_group(
    State(admin): State<Admin>,
    Segments(Group { cluster, group }): Segments<Group>,
    Params(params): Params<OfTenant>,
) -> Answer {
    let Some(tenant) = params.tenant else {
        return Err(ApiError::bad_request("Tenant should not be null"));
    };
    if !admin.broker().clusters().await?.contains(&cluster) {
        return Err(ApiError::precondition_failed(format!(
            "Cluster {cluster} does not exist."
        )));
    }
    let mut found = Vec::new();
    for name in admin.broker().namespaces(&tenant).await? {
        let namespace = request::namespace_name_of(&name)?;
        let policies = admin.broker().policies(&namespace).await?;
        if policies.anti_affinity_group.as_deref() == Some(&group) {
            found.push(name);
        }
    }
    document(&found)
}

/// As it came: Pulsar takes the body for the name, whatever it is.
async fn set_group(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
    request: Request,
) -> Answer {
    let body = request::bytes(request).await?;
    let name = std::str::from_utf8(&body)
        .map(str::trim)
        .unwrap_or_default();
    if name.is_empty() {
        return Err(ApiError::precondition_failed(
            "the name of the group is missing",
        ));
    }
    change_group(&admin, &namespace, Some(name)).await
}

async fn remove_group(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
) -> Answer {
    change_group(&admin, &namespace, None).await
}

async fn change_group(admin: &Admin, namespace: &NamespaceName, name: Option<&str>) -> Answer {
    let change = |policies: &mut Policies| {
        policies.anti_affinity_group = name.map(str::to_owned);
        Ok(())
    };
    admin.broker().update_policies(namespace, change).await?;
    done()
}

async fn group(State(admin): State<Admin>, NamespaceInPath(namespace): NamespaceInPath) -> Answer {
    let policies = admin.broker().policies(&namespace).await?;
    match policies.anti_affinity_group {
        Some(name) => Ok(raw(name)),
        None => done(),
    }
}

async fn no_affinity(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
) -> Answer {
    admin.broker().policies(&namespace).await?;
    done()
}

async fn remove_affinity(admin: State<Admin>, namespace: NamespaceInPath) -> Answer {
    no_affinity(admin, namespace).await
}

async fn set_affinity(NamespaceInPath(namespace): NamespaceInPath) -> Answer {
    Err(ApiError::precondition_failed(format!(
        "`bookkeeperAffinityGroupPrimary` of {namespace} cannot be honoured: there are no bookies, \
         this server stores on its own disk"
    )))
}
