//! What is done to the topics of a bundle, and what is counted.

use serde_json::{Value, json};

use super::harness::Server;

const ONE: &str = "/admin/v2/namespaces/public/default";

#[tokio::test]
async fn a_bundle_has_the_topics_whose_names_fall_into_it() {
    let server = Server::start().await;
    let ids = server.produce("words", &["one", "two", "three"]).await;
    let topic = "/admin/v2/persistent/public/default/words";
    let earliest = json!({ "ledgerId": -1, "entryId": -1 });
    let subscription = format!("{topic}/subscription/s");
    server.put(&subscription, &earliest, 204).await;
    let place = "/lookup/v2/topic/persistent/public/default/words/bundle";
    let (_, own) = server.text("GET", place).await;
    let other = match own.as_str() {
        "0x00000000_0x40000000" => "0x40000000_0x80000000",
        _ => "0x00000000_0x40000000",
    };

    let analyze = format!("{subscription}/analyzeBacklog");
    let (status, found) = server.ask("POST", &analyze, None).await;
    assert_eq!(status, 200, "{found}");
    let (first, last) = (ids[0], ids[2]);
    assert_eq!(found["entries"], 3);
    assert_eq!(found["messages"], 3);
    assert_eq!(
        found["firstMessageId"],
        format!("{}:{}:-1", first.0, first.1)
    );
    assert_eq!(found["lastMessageId"], format!("{}:{}:-1", last.0, last.1));
    let from = json!({ "ledgerId": last.0, "entryId": last.1 });
    let (_, rest) = server.ask("POST", &analyze, Some(&from)).await;
    assert_eq!(rest["entries"], 1);

    let hashes = format!("{ONE}/{own}/topicHashPositions");
    let (_, positions) = server.ask("GET", &hashes, None).await;
    let all = positions["topicHashPositions"].as_object().unwrap();
    assert!(
        all.contains_key("persistent://public/default/words"),
        "{positions}"
    );
    let (_, stats) = server
        .ask("GET", "/admin/v2/broker-stats/topics", None)
        .await;
    let stats = &stats["public/default"][&own]["persistent"];
    assert_eq!(
        stats["persistent://public/default/words"]["msgInCounter"],
        3
    );

    for (path, method, status, backlog) in [
        (format!("{ONE}/{other}/clearBacklog"), "POST", 204, 3),
        (format!("{ONE}/{own}/clearBacklog/none"), "POST", 204, 3),
        (format!("{ONE}/{own}/unload"), "PUT", 204, 3),
        (
            format!("{ONE}/{own}/split?splitAlgorithmName=x"),
            "PUT",
            412,
            3,
        ),
        (format!("{ONE}/0x0_0x1/unload"), "PUT", 412, 3),
        (format!("{ONE}/{own}/clearBacklog/s"), "POST", 204, 0),
    ] {
        server.change(method, &path, None, status).await;
        assert_eq!(server.backlog("words", "s").await, backlog, "{path}");
    }
    // Cut in two: the topic is in one of the halves.
    server
        .change("PUT", &format!("{ONE}/{own}/split"), None, 204)
        .await;
    server
        .change("PUT", &format!("{ONE}/{own}/unload"), None, 412)
        .await;
    let (_, all) = server.ask("GET", &format!("{ONE}/bundles"), None).await;
    assert_eq!(all["numBundles"], 5, "{all}");
    let (_, own) = server.text("GET", place).await;
    let path = format!("{ONE}/{own}/unsubscribe/s");
    server.change("POST", &path, None, 204).await;
    server
        .get(&format!("{topic}/subscriptions"), 200, json!([]))
        .await;
}

#[tokio::test]
async fn what_cannot_be_set_is_removed() {
    let server = Server::start().await;
    let topic = "/admin/v2/persistent/public/default/words";
    server.change("PUT", topic, None, 204).await;
    for path in [
        format!("{ONE}/offloadDeletionLagMs"),
        format!("{topic}/offloadPolicies"),
    ] {
        server.change("DELETE", &path, None, 204).await;
        let method = if path.ends_with("Ms") { "PUT" } else { "POST" };
        server.change(method, &path, Some(&json!(1)), 501).await;
    }
    server
        .get("/admin/v2/resource-quotas", 200, Value::Null)
        .await;
    let owned = "/admin/v2/brokers/standalone/127.0.0.1:8080/ownedNamespaces";
    let (_, owned) = server.ask("GET", owned, None).await;
    assert!(
        owned["public/default/0x00000000_0x40000000"]["is_active"] == true,
        "{owned}"
    );
}
