use super::*;
use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn serve() -> (SocketAddr, Tasks) {
    let tasks = Tasks::new();
    let server = Server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = server.address();
    let router = Router::new()
        .route("/ok", get(|| async { "fine" }))
        .route("/big", get(|| async { vec![b'x'; 64 << 20] }));
    server.spawn(&tasks, router);
    (address, tasks)
}

/// Sends bytes and reads until the server closes.
async fn exchange(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    // A reset instead of an end is an end as well.
    let _ = tokio::time::timeout(Duration::from_secs(20), read)
        .await
        .unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

const GOOD: &[u8] = b"GET /ok HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn garbage_and_stalled_clients_disturb_nobody() {
    let (address, tasks) = serve().await;
    // These stay open and say nothing, half a request, and take nothing of a large answer.
    let silent = TcpStream::connect(address).await.unwrap();
    let mut half = TcpStream::connect(address).await.unwrap();
    half.write_all(b"GET /ok HTTP/1.1\r\nHos").await.unwrap();
    let mut greedy = TcpStream::connect(address).await.unwrap();
    greedy
        .write_all(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();

    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(2 * HEAD_BYTES_MAX));
    let headers = format!(
        "GET /ok HTTP/1.1\r\nA: {}\r\n\r\n",
        "x".repeat(2 * HEAD_BYTES_MAX)
    );
    for (bytes, status) in [
        (
            &b"\x00\x00\x00\x0c\x00\x00\x00\x08garbage!\r\n\r\n"[..],
            "400",
        ),
        (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
            "400",
        ),
        (long.as_bytes(), "4"),
        (headers.as_bytes(), "431"),
        (
            b"GET /ok HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
            "400",
        ),
    ] {
        let answer = exchange(address, bytes).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer:.100}"
        );
        assert!(exchange(address, GOOD).await.ends_with("fine"));
    }
    drop((silent, half, greedy));
    tasks.cancel();
    assert!(
        tasks.join(Duration::from_secs(10)).await,
        "the server did not end"
    );
}

#[tokio::test]
async fn random_bytes_never_end_the_server() {
    const SEED: u64 = 0x0ad1;
    let (address, tasks) = serve().await;
    let mut random = geminga_stdx::Random::new(SEED);
    for round in 0..50 {
        let mut bytes = GOOD.to_vec();
        for _ in 0..1 + random.below(10) {
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] = random.below(256) as u8;
        }
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        let ended = tokio::time::timeout(Duration::from_secs(10), read).await;
        assert!(ended.is_ok(), "round {round} of seed {SEED}: no end");
    }
    assert!(exchange(address, GOOD).await.ends_with("fine"));
    tasks.cancel();
    assert!(
        tasks.join(Duration::from_secs(10)).await,
        "the server did not end"
    );
}

#[tokio::test]
async fn a_stop_lets_a_running_request_finish() {
    let tasks = Tasks::new();
    let server = Server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = server.address();
    let (begun, mut begins) = tokio::sync::mpsc::channel::<()>(1);
    let release = Arc::new(tokio::sync::Notify::new());
    let held = Arc::clone(&release);
    let slow = get(move || {
        let (begun, held) = (begun.clone(), Arc::clone(&held));
        async move {
            begun.send(()).await.unwrap();
            held.notified().await;
            "done"
        }
    });
    server.spawn(&tasks, Router::new().route("/slow", slow));
    let request = exchange(address, b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n");
    let stop = async {
        begins.recv().await.unwrap();
        tasks.cancel();
        release.notify_one();
    };
    let (answer, ()) = tokio::join!(request, stop);
    assert!(answer.ends_with("done"), "{answer}");
    assert!(tasks.join(Duration::from_secs(10)).await);
}
