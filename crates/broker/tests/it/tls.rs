//! The door with TLS: clients that never finish their handshake.

use std::time::Duration;

use geminga_broker::BrokerConfig;
use geminga_broker::auth::SecurityConfig;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::server::{Server, eventually};

/// Settings with a certificate in files, and the directory that they are in.
fn settings() -> (SecurityConfig, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (certificate, key) = (directory.path().join("cert"), directory.path().join("key"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let security = SecurityConfig {
        tls_certificate_file_path: Some(certificate),
        tls_key_file_path: Some(key),
        ..SecurityConfig::default()
    };
    (security, directory)
}

/// Whether the server has closed it.
async fn is_closed(stream: &mut TcpStream) -> bool {
    let read = stream.read_u8();
    match tokio::time::timeout(Duration::from_millis(1), read).await {
        Ok(read) => read.is_err(),
        Err(_) => false,
    }
}

#[tokio::test]
async fn handshakes_under_way_count_as_connections() {
    let (security, _directory) = settings();
    let config = BrokerConfig {
        broker_max_connections: 2,
        security,
        ..BrokerConfig::default()
    };
    let server = Server::with(config).await;
    let address = "127.0.0.1:0".parse().unwrap();
    let address = server.broker.listen_tls(address).await.unwrap();
    // They say nothing.
    let mut first = TcpStream::connect(address).await.unwrap();
    let mut second = TcpStream::connect(address).await.unwrap();
    let mut third = TcpStream::connect(address).await.unwrap();
    eventually("the third is closed", async || {
        is_closed(&mut third).await.then_some(())
    })
    .await;
    assert!(!is_closed(&mut first).await && !is_closed(&mut second).await);
}

/// Listeners that wait for somebody are no connections.
#[tokio::test]
async fn idle_listeners_do_not_count_as_connections() {
    let (security, _directory) = settings();
    let config = BrokerConfig {
        broker_max_connections: 1,
        security,
        ..BrokerConfig::default()
    };
    let server = Server::with(config).await;
    let any = "127.0.0.1:0".parse().unwrap();
    for _ in 0..2 {
        server.broker.listen_tls(any).await.unwrap();
    }
    let address = server.broker.listen(any).await.unwrap();
    // They are accepted one after the other.
    let mut first = TcpStream::connect(address).await.unwrap();
    let mut second = TcpStream::connect(address).await.unwrap();
    eventually("the second is closed", async || {
        is_closed(&mut second).await.then_some(())
    })
    .await;
    assert!(!is_closed(&mut first).await);
}

#[test]
fn certificates_of_clients_need_somebody_who_signs_them() {
    let (security, _directory) = settings();
    let config = BrokerConfig {
        security: SecurityConfig {
            authentication_enabled: true,
            authentication_providers: vec!["tls".to_owned()],
            ..security
        },
        ..BrokerConfig::default()
    };
    let started = tokio::runtime::Runtime::new().unwrap().block_on(async {
        let tasks = geminga_stdx::Tasks::new();
        let clock = geminga_stdx::Clock::system();
        let managed = geminga_storage::ManagedConfig::default();
        let storage = geminga_storage::Storage::memory(managed, clock, &tasks).await;
        geminga_broker::Broker::start(config, storage.unwrap()).await
    });
    let error = started.err().unwrap().to_string();
    assert!(error.contains("tlsTrustCertsFilePath"), "{error}");
}
