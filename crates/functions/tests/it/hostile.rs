//! Functions that mean no good beside one that works: each is contained within seconds, its status names what it did,
//! nothing of it runs any longer, and the other's messages go on meanwhile. What each does is bounded by itself, whatever
//! holds it. Walls that the kernel cannot put up, which the function's status warns of, are not tried.

use std::time::{Duration, Instant};

use geminga_functions::{ComponentId, Worker};
use serde_json::json;

use crate::column::process::processes;
use crate::stage::{Stage, nothing_more, numbers, receive, sorted, texts};

/// From the message to the name in status.
const WITHIN: Duration = Duration::from_secs(10);

fn exceptions(worker: &Worker, id: &ComponentId) -> String {
    let Ok(status) = worker.status(id) else {
        return String::new();
    };
    let instances = status.instances.iter();
    let user = instances.flat_map(|i| &i.status.latest_user_exceptions);
    user.map(|e| e.exception_string.clone())
        .collect::<Vec<_>>()
        .join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_is_contained_and_named_and_the_others_go_on() {
    let stage = Stage::new().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let port = listener.local_addr().expect("bound").port();
    let secret = stage.directory.path().join("secret");
    std::fs::write(&secret, "treasure").expect("written");
    let secret = secret.display();
    let walls = r#""sandbox":{"files":"private","network":"none"}"#;
    // Each by itself is below the limit.
    let memory = "for i in 1 2 3 4; do python3 -c 'import time; x = bytearray(60 << 20); time.sleep(20)' & done\n\
                  for i in 1 2 3 4; do wait -n || exit 1; done";
    let connect = format!("exec 3<>/dev/tcp/127.0.0.1/{port}");
    let read = format!("cat {secret}");
    let hostile = [
        (
            "forks",
            "for i in {1..200}; do sleep 20 & done; wait",
            r#""limits":{"processes":50}"#,
            "`limits.processes`",
        ),
        ("memory", memory, "", "`resources.ram`"),
        ("prints", "exec yes", "", "bytes of output for one message"),
        (
            "floods",
            "exec timeout 20 yes >&2",
            r#""maxStderrBytes":10000"#,
            "bytes were too many",
        ),
        (
            "hangs",
            "trap '' TERM; sleep 20 & wait; wait",
            "",
            "not done after 3000 ms",
        ),
        (
            "reads",
            read.as_str(),
            walls,
            "behind `sandbox.files: private`",
        ),
        (
            "connects",
            connect.as_str(),
            walls,
            "`sandbox.network: none`",
        ),
    ];
    let (good_in, good_out) = (stage.topic("good-in"), stage.topic("good-out"));
    let good =
        json!({"sh": "process() { emit \"$MSG\"; }", "inputs": [&good_in], "output": &good_out});
    stage.function("good", good).await;
    let mut consumer = stage.consumer(&good_out).await;
    let leak = stage.topic("leak");
    let mut watched = Vec::new();
    for (name, code, options, named) in hostile {
        let input = stage.topic(name);
        let options = match options {
            "" => r#"{"mode":"spawn","killGraceMs":100}"#.to_owned(),
            some => format!(r#"{{"mode":"spawn","killGraceMs":100,{some}}}"#),
        };
        let mut config = json!({
            "sh": format!("cat >/dev/null\n{code}\n"), "inputs": [&input], "timeoutMs": 3000,
            "maxMessageRetries": 0, "deadLetterTopic": stage.topic("dead"), "customRuntimeOptions": options,
        });
        if name == "memory" {
            config["resources"] = json!({"ram": 150 << 20});
        }
        if name == "reads" {
            config["output"] = json!(&leak);
        }
        let id = stage.function(name, config).await;
        let status = stage.worker.status(&id).expect("there");
        if options.contains("sandbox") && status.warnings.iter().any(|why| why.contains("`sandbox"))
        {
            println!("not run: {name}: {:?}", status.warnings);
            continue;
        }
        watched.push((name, input, id, named));
    }
    let mut leaked = stage.consumer(&leak).await;
    let began = Instant::now();
    for (_, input, ..) in &watched {
        stage.send(input, ["x"]).await;
    }
    let mut sent = 0;
    let mut slowest = Duration::ZERO;
    while !watched
        .iter()
        .all(|(_, _, id, named)| exceptions(&stage.worker, id).contains(named))
    {
        assert!(
            began.elapsed() < WITHIN,
            "{:#?}",
            watched
                .iter()
                .map(|(name, _, id, _)| (name, exceptions(&stage.worker, id)))
                .collect::<Vec<_>>()
        );
        // Meanwhile the other function answers.
        let asked = Instant::now();
        stage.send(&good_in, numbers(sent..sent + 20)).await;
        let got = sorted(texts(&receive(&mut consumer, 20).await));
        assert_eq!(got, sorted(numbers(sent..sent + 20)));
        slowest = slowest.max(asked.elapsed());
        sent += 20;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!(
        "contained and named after {:?}; meanwhile {sent} messages went through the other, 20 in at most {slowest:?}",
        began.elapsed()
    );
    assert!(sent > 0);
    listener.set_nonblocking(true).expect("set");
    assert!(listener.accept().is_err(), "somebody came through");
    nothing_more(&mut leaked).await;
    for (name, _, id, _) in &watched {
        let mark = format!("GMG_FUNCTION={}\0", id.name);
        let what = format!("the processes of {name} are gone");
        stage
            .until(&what, |_| processes(&mark).next().is_none())
            .await;
    }
    stage.end().await;
}
