//! Every endpoint of Pulsar's is there, or says by name why it is not.

use axum::http::Method;
use serde_json::{Value, json};

use super::harness::{Server, body};
use crate::endpoint;

/// Those of functions and packages need a worker.
fn is_of_the_broker(pattern: &str) -> bool {
    let words = [
        "/functions",
        "/sinks",
        "/sources",
        "/sink/",
        "/source/",
        "/packages",
        "/worker",
    ];
    !words.iter().any(|word| pattern.contains(word))
}

#[tokio::test]
async fn every_endpoint_is_served_or_says_why_not() {
    let server = Server::start().await;
    let mut without_reason = Vec::new();
    for (pattern, methods) in endpoint::endpoints().filter(|(path, _)| is_of_the_broker(path)) {
        let path = pattern.replace('*', "1");
        for method in methods.split(',') {
            assert!(method.parse::<Method>().is_ok(), "{pattern} {method}");
            let response = server.raw(method, &path, None).await;
            let status = response.status().as_u16();
            let answer = String::from_utf8(body(response).await).unwrap();
            assert_ne!(status, 500, "{method} {path}: {answer}");
            if status == 501 {
                let said = "is not implemented by Geminga";
                if answer.contains(said) && !answer.contains(&format!("{said}: ")) {
                    without_reason.push(format!("{method} {path}"));
                }
            }
        }
    }
    assert_eq!(without_reason, [""; 0]);
}

#[tokio::test]
async fn a_shutdown_goes_on_when_who_asked_for_it_does_not_wait() {
    let server = Server::start().await;
    for number in 0..3 {
        let topic = format!("persistent://public/default/t{number}");
        server.produce(&topic, &["x"]).await;
    }
    let all = server.broker.loaded_topic_stats().len();
    let path = "/admin/v2/brokers/shutdown?maxConcurrentUnloadPerSec=10";
    let fewer = async {
        while server.broker.loaded_topic_stats().len() == all {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        (status, _) = server.ask("POST", path, None) => assert_eq!(status, 200),
        () = fewer => {}
    }
    let asked = server.broker.shutdown_requested();
    let deadline = std::time::Duration::from_secs(10);
    tokio::time::timeout(deadline, asked).await.unwrap();
    assert!(server.broker.loaded_topic_stats().is_empty());
}

#[tokio::test]
async fn settings_change_while_the_broker_runs() {
    let server = Server::start().await;
    let at = "/admin/v2/brokers/configuration";
    let (_, names) = server.ask("GET", at, None).await;
    assert!(
        names
            .as_array()
            .unwrap()
            .contains(&json!("maxTopicsPerNamespace"))
    );
    let set = |name: &str, value: &str| format!("{at}/{name}/{value}");
    for (method, path, status, word) in [
        (
            "POST",
            set("maxMessageSize", "1"),
            412,
            "Can't update non-dynamic",
        ),
        (
            "DELETE",
            format!("{at}/maxMessageSize"),
            412,
            "Can't delete non-dynamic",
        ),
        (
            "POST",
            set("maxTopicsPerNamespace", "many"),
            412,
            "a number",
        ),
        ("POST", set("subscriptionTypesEnabled", "Nope"), 412, "Nope"),
        ("POST", set("maxTopicsPerNamespace", "1"), 200, ""),
        (
            "POST",
            set("subscriptionTypesEnabled", "Shared,Failover"),
            200,
            "",
        ),
        (
            "POST",
            set("dispatchThrottlingRatePerTopicInMsg", "7"),
            200,
            "",
        ),
    ] {
        let (got, answer) = server.text(method, &path).await;
        assert_eq!(got, status, "{method} {path}: {answer}");
        assert!(answer.contains(word), "{answer}");
    }
    let values = format!("{at}/values");
    let want = json!({
        "maxTopicsPerNamespace": "1", "subscriptionTypesEnabled": "Shared,Failover",
        "dispatchThrottlingRatePerTopicInMsg": "7",
    });
    server.get(&values, 200, want).await;
    let (_, runtime) = server.ask("GET", &format!("{at}/runtime"), None).await;
    assert_eq!(runtime["maxTopicsPerNamespace"], "1");

    let topics = "/admin/v2/persistent/public/default";
    server
        .change("PUT", &format!("{topics}/one"), None, 204)
        .await;
    server
        .change("PUT", &format!("{topics}/two"), None, 412)
        .await;
    let applied = |policy: &str| format!("{topics}/one/{policy}?applied=true");
    let (_, rate) = server.ask("GET", &applied("dispatchRate"), None).await;
    assert_eq!(rate["dispatchThrottlingRateInMsg"], 7);
    server
        .get(
            &applied("subscriptionTypesEnabled"),
            200,
            json!(["Shared", "Failover"]),
        )
        .await;
    for name in [
        "maxTopicsPerNamespace",
        "dispatchThrottlingRatePerTopicInMsg",
    ] {
        server
            .change("DELETE", &format!("{at}/{name}"), None, 200)
            .await;
    }
    server
        .change("PUT", &format!("{topics}/two"), None, 204)
        .await;
    let (_, rate) = server.ask("GET", &applied("dispatchRate"), None).await;
    assert_eq!(rate["dispatchThrottlingRateInMsg"], 0);
    server
        .get(
            &values,
            200,
            json!({ "subscriptionTypesEnabled": "Shared,Failover" }),
        )
        .await;
}

#[tokio::test]
async fn placement_is_kept_and_answered() {
    let server = Server::start().await;
    let cluster = "/admin/v2/clusters/standalone";
    let domains = format!("{cluster}/failureDomains");
    let own = json!({ "brokers": ["127.0.0.1:8080"] });
    server.get(&domains, 200, json!({})).await;
    server.get(&format!("{domains}/d"), 404, Value::Null).await;
    for (method, name, body, status) in [
        ("POST", "d", Some(&own), 204),
        ("POST", "e", Some(&own), 409),
        ("GET", "d", None, 200),
        ("DELETE", "d", None, 204),
        ("DELETE", "d", None, 404),
    ] {
        server
            .change(method, &format!("{domains}/{name}"), body, status)
            .await;
    }
    let nowhere = "/admin/v2/clusters/nowhere/failureDomains/d";
    server.change("POST", nowhere, Some(&own), 412).await;

    let isolation = format!("{cluster}/namespaceIsolationPolicies");
    let policy = |primary: &str| {
        json!({
            "namespaces": ["public/.*"], "primary": [primary], "secondary": [],
            "auto_failover_policy": {
                "policy_type": "min_available",
                "parameters": { "min_limit": "1", "usage_threshold": "80" },
            },
        })
    };
    server.get(&isolation, 404, Value::Null).await;
    for (name, body, status) in [
        ("p", policy("127.*"), 204),
        ("far", policy("10.*"), 412),
        ("bad", policy("("), 400),
    ] {
        server
            .change("POST", &format!("{isolation}/{name}"), Some(&body), status)
            .await;
    }
    server
        .get(&isolation, 200, json!({ "p": policy("127.*") }))
        .await;
    server
        .get(
            &format!("{isolation}/brokers"),
            200,
            json!([{
                "brokerName": "127.0.0.1:8080", "policyName": "p",
                "namespaceRegex": ["public/.*"], "primary": true,
            }]),
        )
        .await;
    server
        .change("DELETE", &format!("{isolation}/p"), None, 204)
        .await;

    let quotas = "/admin/v2/resource-quotas";
    let (_, mut quota) = server.ask("GET", quotas, None).await;
    assert_eq!(quota["msgRateIn"], 40.0);
    quota["msgRateIn"] = json!(50.0);
    let of_bundle = format!("{quotas}/public/default/0x00000000_0x40000000");
    server.change("POST", &of_bundle, Some(&quota), 204).await;
    server.get(&of_bundle, 200, quota).await;
    server.change("DELETE", &of_bundle, None, 204).await;
    let (_, quota) = server.ask("GET", &of_bundle, None).await;
    assert_eq!(quota["msgRateIn"], 40.0);
    let no_bundle = format!("{quotas}/public/default/0x00000000_0x10000000");
    server.get(&no_bundle, 412, Value::Null).await;

    let group = "/admin/v2/namespaces/public/default/antiAffinity";
    server.change("POST", group, Some(&json!("g")), 204).await;
    for path in [
        "/admin/v2/namespaces/standalone/antiAffinity/%22g%22?tenant=public",
        "/admin/namespaces/standalone/antiAffinity/%22g%22?property=public",
    ] {
        server.get(path, 200, json!(["public/default"])).await;
    }

    server
        .get("/admin/v2/bookies/all", 200, json!({ "bookies": [] }))
        .await;
    let rack = "/admin/v2/bookies/racks-info/x:1?group=g";
    server
        .change("POST", rack, Some(&json!({ "rack": "r" })), 412)
        .await;
}

#[tokio::test]
async fn a_resource_group_is_in_use_until_no_namespace_names_it() {
    let server = Server::start().await;
    let groups = "/admin/v2/resourcegroups";
    let mine = format!("{groups}/g");
    let of_namespace = "/admin/v2/namespaces/public/default/resourcegroup";
    server.get(&mine, 404, Value::Null).await;
    server
        .put(&mine, &json!({ "publishRateInMsgs": 10 }), 204)
        .await;
    server
        .put(&mine, &json!({ "dispatchRateInBytes": 1000 }), 204)
        .await;
    server.put(&mine, &json!({ "publishRate": 1 }), 400).await;
    let want = json!({
        "publishRateInMsgs": 10, "publishRateInBytes": -1,
        "dispatchRateInMsgs": -1, "dispatchRateInBytes": 1000,
    });
    server.get(&mine, 200, want).await;
    server.get(groups, 200, json!(["g"])).await;
    for (method, path, status) in [
        ("POST", format!("{of_namespace}/none"), 412),
        ("POST", format!("{of_namespace}/g"), 204),
        ("DELETE", mine.clone(), 412),
        ("DELETE", of_namespace.to_owned(), 204),
        ("DELETE", mine.clone(), 204),
        ("DELETE", mine, 404),
    ] {
        server.change(method, &path, None, status).await;
    }
}

#[tokio::test]
async fn single_policies_are_kept_at_both_levels() {
    let server = Server::start().await;
    let namespace = "/admin/v2/namespaces/public/default";
    let topic = "/admin/v2/persistent/public/default/x";
    server.change("PUT", topic, None, 204).await;
    let rate = json!({ "subscribeThrottlingRatePerConsumer": 3, "ratePeriodInSecond": 30 });
    let dispatch = json!({
        "dispatchThrottlingRateInMsg": 5, "dispatchThrottlingRateInByte": 6,
        "relativeToPublishRate": false, "ratePeriodInSecond": 1,
    });
    for (name, value) in [
        ("subscribeRate", &rate),
        ("replicatorDispatchRate", &dispatch),
        ("deduplicationSnapshotInterval", &json!(60)),
    ] {
        for level in [namespace, topic] {
            let path = format!("{level}/{name}");
            server.get(&path, 200, Value::Null).await;
            server.change("POST", &path, Some(value), 204).await;
            server.get(&path, 200, value.clone()).await;
            server.change("DELETE", &path, None, 204).await;
            server.get(&path, 200, Value::Null).await;
        }
    }
    for level in [namespace, topic] {
        let path = format!("{level}/dispatcherPauseOnAckStatePersistent");
        server.get(&path, 200, json!(false)).await;
        server.change("POST", &path, None, 204).await;
        server.get(&path, 200, json!(true)).await;
        server.change("DELETE", &path, None, 204).await;
        let filter = json!({ "entryFilterNames": "nope" });
        server
            .change("POST", &format!("{level}/entryFilters"), Some(&filter), 400)
            .await;
    }
    for (method, path, body, status) in [
        ("POST", "allowedClusters", json!(["standalone"]), 200),
        ("POST", "allowedClusters", json!(["elsewhere"]), 403),
        ("POST", "replication", json!(["standalone"]), 204),
        (
            "PUT",
            "schemaAutoUpdateCompatibilityStrategy",
            json!("Backward"),
            204,
        ),
        ("PUT", "offloadThreshold", json!(5), 501),
        ("POST", "migration", json!(true), 501),
        ("POST", "migration", json!(false), 204),
    ] {
        server
            .change(method, &format!("{namespace}/{path}"), Some(&body), status)
            .await;
    }
    server
        .get(
            &format!("{namespace}/allowedClusters"),
            200,
            json!(["standalone"]),
        )
        .await;
    server
        .get(
            &format!("{topic}/schemaCompatibilityStrategy?applied=true"),
            200,
            json!("BACKWARD"),
        )
        .await;
    let enforced = format!("{topic}/schemaValidationEnforced");
    server.get(&enforced, 200, json!(false)).await;
    let shadow = json!({ "PULSAR.SHADOW_SOURCE": topic });
    server
        .put("/admin/v2/persistent/public/default/y", &shadow, 501)
        .await;
    let (_, info) = server
        .ask("GET", &format!("{topic}/internal-info"), None)
        .await;
    assert!(info["ledgers"].is_array(), "{info}");
}
