//! The endpoints, asked as clients ask them, over a broker on a store in memory.

mod alone;
mod bundles;
mod functions;
pub(crate) mod guard;
pub(crate) mod harness;
mod refusals;
mod secrets;
mod served;
mod sockets;
mod transactions;

use serde_json::{Value, json};

use harness::Server;

const TOPICS: &str = "/admin/v2/persistent/public/default";

#[tokio::test]
async fn clusters_and_brokers_say_who_they_are() {
    let server = Server::start().await;
    server
        .get("/admin/v2/clusters", 200, json!(["standalone"]))
        .await;
    server
        .get("/admin/v2/clusters/elsewhere", 404, Value::Null)
        .await;
    server
        .get("/admin/v2/brokers", 200, json!(["127.0.0.1:8080"]))
        .await;
    server
        .get(
            "/admin/v2/brokers/standalone",
            200,
            json!(["127.0.0.1:8080"]),
        )
        .await;
    server
        .get(
            "/admin/v2/brokers/leaderBroker",
            200,
            json!({"serviceUrl": "http://127.0.0.1:8080", "brokerId": "127.0.0.1:8080"}),
        )
        .await;
    for path in ["/admin/v2/brokers/health", "/admin/v2/brokers/ready"] {
        assert_eq!(server.text("GET", path).await, (200, "ok".to_owned()));
    }
    let runtime = server
        .ask("GET", "/admin/v2/brokers/configuration/runtime", None)
        .await;
    assert_eq!(runtime.1["clusterName"], "standalone");
}

#[tokio::test]
async fn tenants_and_namespaces_come_and_go() {
    let server = Server::start().await;
    let info = json!({"adminRoles": ["a"], "allowedClusters": ["standalone"]});
    server.put("/admin/v2/tenants/t", &info, 204).await;
    server.put("/admin/v2/tenants/t", &info, 409).await;
    server
        .put(
            "/admin/v2/tenants/u",
            &json!({"allowedClusters": ["moon"]}),
            412,
        )
        .await;
    server
        .get("/admin/v2/tenants", 200, json!(["public", "pulsar", "t"]))
        .await;
    server.get("/admin/v2/tenants/t", 200, info).await;
    server.get("/admin/v2/tenants/none", 404, Value::Null).await;
    server
        .get("/admin/v2/namespaces/none", 404, Value::Null)
        .await;

    server
        .change("PUT", "/admin/v2/namespaces/t/n", None, 204)
        .await;
    server
        .change("PUT", "/admin/v2/namespaces/t/n", None, 409)
        .await;
    server
        .change("PUT", "/admin/v2/namespaces/none/n", None, 404)
        .await;
    server
        .get("/admin/v2/namespaces/t", 200, json!(["t/n"]))
        .await;
    let (status, policies) = server.ask("GET", "/admin/v2/namespaces/t/n", None).await;
    assert_eq!(
        (status, &policies["replication_clusters"]),
        (200, &json!(["standalone"]))
    );

    server
        .change("PUT", "/admin/v2/persistent/t/n/x", None, 204)
        .await;
    server
        .change("DELETE", "/admin/v2/namespaces/t/n", None, 409)
        .await;
    server
        .change("DELETE", "/admin/v2/tenants/t", None, 409)
        .await;
    server
        .change("DELETE", "/admin/v2/namespaces/t/n?force=true", None, 204)
        .await;
    server
        .change("DELETE", "/admin/v2/tenants/t", None, 204)
        .await;
    server
        .change("DELETE", "/admin/v2/tenants/t", None, 404)
        .await;
}

#[tokio::test]
async fn policies_are_empty_until_they_are_set() {
    let server = Server::start().await;
    let at = |rest: &str| format!("/admin/v2/namespaces/public/default/{rest}");
    let retention = json!({"retentionTimeInMinutes": 10, "retentionSizeInMB": -1});
    let auto = json!({"allowAutoTopicCreation": false});
    for (path, value) in [
        ("retention", retention),
        ("messageTTL", json!(60)),
        ("autoTopicCreation", auto),
        (
            "autoSubscriptionCreation",
            json!({"allowAutoSubscriptionCreation": false}),
        ),
    ] {
        assert_eq!(
            server.text("GET", &at(path)).await,
            (200, String::new()),
            "{path}"
        );
        server.change("POST", &at(path), Some(&value), 204).await;
        server.get(&at(path), 200, value).await;
        server.change("DELETE", &at(path), None, 204).await;
        assert_eq!(
            server.text("GET", &at(path)).await,
            (200, String::new()),
            "{path}"
        );
    }
    let lost = json!({"retentionTimeInMinutes": 0, "retentionSizeInMB": 5});
    server
        .change("POST", &at("retention"), Some(&lost), 400)
        .await;
    server
        .change("POST", &at("messageTTL"), Some(&json!(-1)), 412)
        .await;
    server
        .change("PUT", &at("property/owner/me"), None, 204)
        .await;
    server
        .get(&at("properties"), 200, json!({"owner": "me"}))
        .await;
}

#[tokio::test]
async fn topics_and_partitions_come_and_go() {
    let server = Server::start().await;
    let at = |rest: &str| format!("{TOPICS}/{rest}");
    server.change("PUT", &at("plain"), None, 204).await;
    server.change("PUT", &at("plain"), None, 409).await;
    server.change("PUT", &at("a%2Fb%20c"), None, 204).await;
    server
        .get(
            &at("plain/partitions"),
            200,
            json!({"partitions": 0, "deleted": false}),
        )
        .await;
    server.get(&at("none/partitions"), 404, Value::Null).await;
    server
        .get(
            &at("parted/partitions?checkAllowAutoCreation=true"),
            200,
            json!({"partitions": 0, "deleted": false}),
        )
        .await;

    server.put(&at("parted/partitions"), &json!(2), 204).await;
    server.put(&at("parted/partitions"), &json!(2), 409).await;
    server.put(&at("none/partitions"), &json!(0), 406).await;
    server
        .get(
            &at("parted/partitions"),
            200,
            json!({"partitions": 2, "deleted": false}),
        )
        .await;
    server
        .change("POST", &at("parted/partitions"), Some(&json!(1)), 422)
        .await;
    server
        .change("POST", &at("plain/partitions"), Some(&json!(3)), 409)
        .await;
    server
        .change("POST", &at("parted/partitions"), Some(&json!(3)), 204)
        .await;
    let name = |local: &str| format!("persistent://public/default/{local}");
    let parted = [0, 1, 2].map(|n| name(&format!("parted-partition-{n}")));
    let all = json!([
        name("a/b c"),
        parted[0],
        parted[1],
        parted[2],
        name("plain")
    ]);
    server.get(TOPICS, 200, all.clone()).await;
    server
        .get("/admin/v2/namespaces/public/default/topics", 200, all)
        .await;
    server
        .get(&at("partitioned"), 200, json!([name("parted")]))
        .await;

    server
        .get(&at("plain/partitioned-stats"), 404, Value::Null)
        .await;
    server.get(&at("parted/stats"), 404, Value::Null).await;
    server
        .change("DELETE", &at("plain/partitions"), None, 409)
        .await;
    server
        .change("DELETE", &at("none/partitions"), None, 404)
        .await;
    server.change("DELETE", &at("none"), None, 404).await;
    server
        .change("DELETE", &at("parted/partitions"), None, 204)
        .await;
    server.change("PUT", &at("plain/unload"), None, 204).await;
    // As pulsar-admin asks.
    let path = at("plain?force=false&deleteSchema=false");
    server.change("DELETE", &path, None, 204).await;
    server.get(TOPICS, 200, json!([name("a/b c")])).await;
}

#[tokio::test]
async fn subscriptions_move_and_show_their_messages() {
    let server = Server::start().await;
    let at = |rest: &str| format!("{TOPICS}/words/{rest}");
    let ids = server.produce("words", &["one", "two", "three"]).await;
    let earliest = json!({"ledgerId": -1, "entryId": -1, "partitionIndex": -1, "batchIndex": -1,
        "excluded": false, "properties": {}});
    server.put(&at("subscription/s"), &earliest, 204).await;
    server.put(&at("subscription/s"), &earliest, 409).await;
    server.get(&at("subscriptions"), 200, json!(["s"])).await;
    assert_eq!(server.backlog("words", "s").await, 3);

    let peeked = server
        .raw("GET", &at("subscription/s/position/2"), None)
        .await;
    assert_eq!(peeked.status().as_u16(), 200);
    let header = peeked.headers()["X-Pulsar-Message-ID"]
        .to_str()
        .unwrap()
        .to_owned();
    assert_eq!(header, format!("{}:{}", ids[1].0, ids[1].1));
    assert_eq!(harness::body(peeked).await, b"two");
    server
        .get(&at("subscription/s/position/4"), 404, Value::Null)
        .await;
    server
        .get(&at("subscription/s/position/0"), 400, Value::Null)
        .await;
    let path = format!("ledger/{}/entry/{}", ids[2].0, ids[2].1);
    assert_eq!(
        server.text("GET", &at(&path)).await,
        (200, "three".to_owned())
    );

    server
        .change("POST", &at("subscription/s/skip/1"), None, 204)
        .await;
    assert_eq!(server.backlog("words", "s").await, 2);
    server
        .change("POST", &at("subscription/s/skip_all"), None, 204)
        .await;
    assert_eq!(server.backlog("words", "s").await, 0);
    server
        .change("POST", &at("subscription/s/resetcursor/0"), None, 204)
        .await;
    assert_eq!(server.backlog("words", "s").await, 3);
    let mut place = json!({"ledgerId": ids[1].0, "entryId": ids[1].1});
    server
        .change("POST", &at("subscription/s/resetcursor"), Some(&place), 204)
        .await;
    assert_eq!(server.backlog("words", "s").await, 2);
    place["excluded"] = json!(true);
    server
        .change("POST", &at("subscription/s/resetcursor"), Some(&place), 204)
        .await;
    assert_eq!(server.backlog("words", "s").await, 1);
    server
        .change("POST", &at("subscription/s/expireMessages/3600"), None, 409)
        .await;
    server
        .change("POST", &at("subscription/none/skip_all"), None, 404)
        .await;

    let (_, last) = server.ask("GET", &at("lastMessageId"), None).await;
    assert_eq!(
        (&last["ledgerId"], &last["entryId"]),
        (&json!(ids[2].0), &json!(ids[2].1))
    );
    let (_, stats) = server.ask("GET", &at("stats"), None).await;
    assert_eq!(stats["msgInCounter"], 3);
    let (_, internal) = server.ask("GET", &at("internalStats"), None).await;
    assert_eq!(internal["numberOfEntries"], 3);
    let (status, end) = server.ask("POST", &at("terminate"), None).await;
    assert_eq!((status, &end["entryId"]), (200, &json!(ids[2].1)));

    server
        .change("DELETE", &at("subscription/s"), None, 204)
        .await;
    server
        .change("DELETE", &at("subscription/s"), None, 404)
        .await;
}

#[tokio::test]
async fn a_subscription_of_a_partitioned_topic_is_on_every_partition() {
    let server = Server::start().await;
    let at = |rest: &str| format!("{TOPICS}/p/{rest}");
    server.put(&at("partitions"), &json!(2), 204).await;
    server
        .put(
            &at("subscription/s"),
            &json!({"ledgerId": -1, "entryId": -1}),
            204,
        )
        .await;
    server.get(&at("subscriptions"), 200, json!(["s"])).await;
    server
        .get(
            "/admin/v2/persistent/public/default/p-partition-1/subscriptions",
            200,
            json!(["s"]),
        )
        .await;
    server.produce("p", &["a", "b", "c", "d"]).await;
    let (_, stats) = server.ask("GET", &at("partitioned-stats"), None).await;
    assert_eq!(stats["subscriptions"]["s"]["msgBacklog"], 4);
    assert_eq!(stats["msgInCounter"], 4);
    assert_eq!(stats["metadata"]["partitions"], 2);
    assert_eq!(
        stats["partitions"].as_object().map(serde_json::Map::len),
        Some(2)
    );
    server
        .change("POST", &at("subscription/s/skip/1"), None, 405)
        .await;
    server
        .change("POST", &at("subscription/s/skip_all"), None, 204)
        .await;
    let (_, stats) = server.ask("GET", &at("partitioned-stats"), None).await;
    assert_eq!(stats["subscriptions"]["s"]["msgBacklog"], 0);
    server
        .change("DELETE", &at("subscription/s"), None, 204)
        .await;
    server
        .change("DELETE", &at("subscription/s"), None, 404)
        .await;
}

#[tokio::test]
async fn schemas_have_versions() {
    let server = Server::start().await;
    let at = |rest: &str| format!("/admin/v2/schemas/public/default/words/{rest}");
    server.get(&at("schema"), 404, Value::Null).await;
    let schema = json!({"type": "JSON", "schema": "{\"type\":\"record\",\"name\":\"a\",\"fields\":[]}",
        "properties": {}});
    let (status, made) = server.ask("POST", &at("schema"), Some(&schema)).await;
    assert_eq!((status, &made), (200, &json!({"version": {"version": 0}})));
    let (_, got) = server.ask("GET", &at("schema"), None).await;
    assert_eq!(
        (&got["type"], &got["data"]),
        (&json!("JSON"), &schema["schema"])
    );
    let string = json!({"type": "STRING", "schema": "", "properties": {}});
    assert_eq!(
        server.ask("POST", &at("schema"), Some(&string)).await.0,
        409
    );
    assert_eq!(
        server.ask("POST", &at("version"), Some(&schema)).await.1,
        json!({"version": 0})
    );
    let unknown =
        json!({"type": "JSON", "schema": "{\"type\":\"record\",\"name\":\"b\",\"fields\":[]}"});
    for (schema, compatible) in [(&schema, true), (&string, false), (&unknown, false)] {
        assert_eq!(
            server.ask("POST", &at("compatibility"), Some(schema)).await,
            (
                202,
                json!({"schemaCompatibilityStrategy": "FULL", "compatibility": compatible})
            )
        );
    }
    let version = server.ask("POST", &at("version"), Some(&unknown)).await.1;
    assert_eq!(version, json!({"version": -1}));
    for invalid in [
        json!({"type": "AVRO", "schema": "7"}),
        json!({"type": "STRING", "schema": "x"}),
        json!({"type": "KEY_VALUE", "schema": "x"}),
        json!({"type": "AUTO_CONSUME", "schema": ""}),
        json!({"type": "NOPE", "schema": ""}),
    ] {
        let answer = server.ask("POST", &at("schema"), Some(&invalid)).await;
        assert_eq!(answer.0, 422, "{invalid}: {answer:?}");
    }
    // A deletion is a version of its own; another type may follow it.
    let deleted = server.ask("DELETE", &at("schema"), None).await;
    assert_eq!(deleted, (200, json!({"version": 1})));
    server.get(&at("schema/0"), 404, Value::Null).await;
    let none = json!({"getSchemaResponses": []});
    assert_eq!(server.ask("GET", &at("schemas"), None).await, (200, none));
    let made = server.ask("POST", &at("schema"), Some(&string)).await;
    assert_eq!(made, (200, json!({"version": {"version": 2}})));
    let forgotten = server.ask("DELETE", &at("schema?force=true"), None).await;
    assert_eq!(forgotten, (200, json!({"version": -1})));
    let made = server.ask("POST", &at("schema"), Some(&schema)).await;
    assert_eq!(made, (200, json!({"version": {"version": 0}})));
}

#[tokio::test]
async fn lookups_and_metrics_answer() {
    let server = Server::start().await;
    server
        .change("PUT", &format!("{TOPICS}/words"), None, 204)
        .await;
    let any = "127.0.0.1:0".parse().unwrap();
    server.broker.listen(any).await.unwrap();
    let (status, found) = server
        .ask(
            "GET",
            "/lookup/v2/topic/persistent/public/default/words",
            None,
        )
        .await;
    assert_eq!(
        (status, &found["httpUrl"]),
        (200, &json!("http://127.0.0.1:8080"))
    );
    assert!(
        found["brokerUrl"]
            .as_str()
            .unwrap()
            .starts_with("pulsar://"),
        "{found}"
    );
    let none = "/lookup/v2/topic/persistent/none/none/words";
    assert_eq!(server.ask("GET", none, None).await.0, 404);

    let redirect = server.raw("GET", "/metrics", None).await;
    assert_eq!(redirect.status().as_u16(), 302);
    assert_eq!(redirect.headers()["location"], "/metrics/");
    server.produce("words", &["one"]).await;
    let (status, metrics) = server.text("GET", "/metrics/").await;
    assert_eq!(status, 200);
    let line = metrics
        .lines()
        .find(|line| line.starts_with("pulsar_in_messages_total{"))
        .unwrap();
    assert!(
        line.contains("cluster=\"standalone\"") && line.ends_with(" 1"),
        "{line}"
    );
}

#[tokio::test]
async fn a_change_is_finished_though_its_client_went_away() {
    let server = Server::start().await;
    let path = format!("{TOPICS}/parted/partitions");
    // Polled once and dropped, as hyper does with a request whose connection closes.
    let count = json!(50);
    let mut asked = Box::pin(server.raw("PUT", &path, Some(&count)));
    let once = std::future::poll_fn(|cx| std::task::Poll::Ready(asked.as_mut().poll(cx)));
    assert!(
        once.await.is_pending(),
        "it was done at once, so this test shows nothing"
    );
    drop(asked);
    let last = format!("{TOPICS}/parted-partition-49/stats");
    let begun = std::time::Instant::now();
    while server.ask("GET", &last, None).await.0 != 200 {
        assert!(
            begun.elapsed() < std::time::Duration::from_secs(10),
            "half of it was done"
        );
        tokio::task::yield_now().await;
    }
}
