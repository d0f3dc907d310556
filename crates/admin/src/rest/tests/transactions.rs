//! The endpoints of transactions, on a broker that has none open; what open ones look like is the
//! broker's own test.

use serde_json::json;

use super::harness::Server;

#[tokio::test]
async fn coordinators_topics_and_subscriptions_answer() {
    let server = Server::start().await;
    let base = "/admin/v3/transactions";
    let get = async |path: &str| server.ask("GET", &format!("{base}/{path}"), None).await;
    let (status, all) = get("coordinators").await;
    assert_eq!((status, &all[0]["id"]), (200, &json!(0)));
    let (status, stats) = get("coordinatorStats").await;
    assert_eq!((status, &stats["0"]["state"]), (200, &json!("Ready")));
    let (status, stats) = get("coordinatorStats?coordinatorId=0").await;
    assert_eq!((status, &stats["ongoingTxnSize"]), (200, &json!(0)));
    assert_eq!(get("coordinatorStats?coordinatorId=7").await.0, 404);
    assert_eq!(get("slowTransactions/0").await, (200, json!({})));
    assert_eq!(get("transactionMetadata/0/1").await.0, 404);
    let abort = format!("{base}/abortTransaction/0/1");
    assert_eq!(server.ask("POST", &abort, None).await.0, 404);

    let topic = "/admin/v2/persistent/public/default/t";
    assert_eq!(server.ask("PUT", topic, None).await.0, 204);
    let subscription = format!("{topic}/subscription/s");
    assert_eq!(server.ask("PUT", &subscription, None).await.0, 204);
    let (status, stats) = get("transactionBufferStats/public/default/t?lowWaterMarks=true").await;
    assert_eq!((status, &stats["lowWaterMarks"]), (200, &json!({"0": 0})));
    assert_eq!(stats["totalAbortedTransactions"], 0);
    let (status, stats) = get("pendingAckStats/public/default/t/s").await;
    assert_eq!((status, &stats["ongoingTxnSize"]), (200, &json!(0)));
    let (status, state) = get("positionStatsInPendingAck/public/default/t/s/1000/0").await;
    assert_eq!((status, &state["state"]), (200, &json!("NotInPendingAck")));
    for missing in [
        "transactionInBufferStats/public/default/t/0/1",
        "transactionInPendingAckStats/public/default/t/s/0/1",
        "pendingAckStats/public/default/t/none",
        "transactionBufferStats/public/default/none",
    ] {
        assert_eq!(get(missing).await.0, 404, "{missing}");
    }

    let scale = format!("{base}/transactionCoordinator/replicas");
    assert_eq!(server.ask("POST", &scale, Some(&json!(3))).await.0, 204);
    assert_eq!(get("coordinators").await.1.as_array().unwrap().len(), 3);
    for refused in [json!(2), json!(-1)] {
        assert_eq!(
            server.ask("POST", &scale, Some(&refused)).await.0,
            412,
            "{refused}"
        );
    }
}
