//! A broker in memory behind the router.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use geminga_broker::{Broker, BrokerConfig};
use geminga_client::transport::{Connecting, Io};
use geminga_client::{Batching, Client, Connector, Message};
use geminga_functions::{Worker, WorkerConfig};
use geminga_stdx::{Clock, Tasks};
use geminga_storage::{ManagedConfig, Storage};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

use crate::client::Form;
use crate::rest::Admin;

pub(crate) struct Server {
    pub(crate) broker: Broker,
    router: Router,
    tasks: Tasks,
    worker: Option<Worker>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with(BrokerConfig::default()).await
    }

    pub(super) async fn with(config: BrokerConfig) -> Self {
        let tasks = Tasks::new();
        let storage = Storage::memory(ManagedConfig::default(), Clock::system(), &tasks)
            .await
            .unwrap();
        let broker = Broker::start(config, storage).await.unwrap();
        let address = "127.0.0.1:8080".parse().unwrap();
        let router = Admin::new(broker.clone(), address).router();
        Self {
            broker,
            router,
            tasks,
            worker: None,
        }
    }

    /// On a port of its own, with WebSockets.
    pub(super) async fn listen(&self) -> SocketAddr {
        let server = crate::Server::bind("127.0.0.1:0".parse().unwrap()).await;
        let server = server.unwrap();
        let address = server.address();
        let admin = Admin::new(self.broker.clone(), address);
        let admin = admin.with_web_sockets(self.client(), self.tasks.child());
        server.spawn(&self.tasks, admin.router());
        address
    }

    pub(super) fn router(&self) -> Router {
        self.router.clone()
    }

    /// With a worker that keeps its packages in `directory`.
    pub(super) async fn with_functions(directory: &std::path::Path) -> Self {
        Self::start().await.and_functions(directory).await
    }

    /// The same beside this broker.
    pub(super) async fn and_functions(mut self, directory: &std::path::Path) -> Self {
        let server = &mut self;
        let config = WorkerConfig {
            rights: Some(crate::function_rights(&server.broker)),
            worker_id: "c-standalone-fw-127.0.0.1-8080".to_owned(),
            url: "http://127.0.0.1:8080".to_owned(),
            functions_directory: Some(directory.join("built-in")),
            ..WorkerConfig::new(server.client(), directory)
        };
        let worker = Worker::start(config).await.unwrap();
        let address = "127.0.0.1:8080".parse().unwrap();
        let admin = Admin::new(server.broker.clone(), address).with_worker(worker.clone());
        server.router = admin.router();
        server.worker = Some(worker);
        self
    }

    pub(crate) fn client(&self) -> Client {
        let connector = Arc::new(InProcess(self.broker.clone()));
        Client::builder("pulsar://in-process")
            .connector(connector)
            .build()
    }

    /// Sends a form; the status and the reason.
    pub(super) async fn form(&self, method: &str, path: &str, form: Form) -> (u16, String) {
        self.form_as(method, path, form, None).await
    }

    /// The same by somebody who shows this token.
    pub(super) async fn form_as(
        &self,
        method: &str,
        path: &str,
        form: Form,
        token: Option<&str>,
    ) -> (u16, String) {
        let (kind, body_bytes) = form.finish().in_memory().expect("no file");
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", kind);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let response = self
            .send(request.body(Body::from(body_bytes)).unwrap())
            .await;
        let status = response.status().as_u16();
        (status, String::from_utf8(body(response).await).unwrap())
    }

    pub(super) async fn stop_functions(&self) {
        if let Some(worker) = &self.worker {
            worker.shutdown(Duration::from_secs(2)).await;
        }
    }

    pub(super) async fn raw(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Response<Body> {
        let mut request = Request::builder().method(method).uri(path);
        let body = match body {
            Some(json) => {
                request = request.header("content-type", "application/json");
                Body::from(json.to_string())
            }
            None => Body::empty(),
        };
        self.send(request.body(body).unwrap()).await
    }

    pub(super) async fn send(&self, request: Request<Body>) -> Response<Body> {
        let answer = self.router.clone().oneshot(request);
        tokio::time::timeout(Duration::from_secs(10), answer)
            .await
            .unwrap()
            .unwrap()
    }

    /// The status and the JSON of the answer; null when it has no body.
    pub(super) async fn ask(&self, method: &str, path: &str, json: Option<&Value>) -> (u16, Value) {
        let response = self.raw(method, path, json).await;
        let status = response.status().as_u16();
        let bytes = body(response).await;
        let json = if bytes.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&bytes).unwrap_or_else(|_| {
                panic!(
                    "{method} {path}: {status} {}",
                    String::from_utf8_lossy(&bytes)
                )
            })
        };
        if status >= 400 {
            assert!(
                json["reason"].is_string(),
                "{method} {path}: {status} {json}"
            );
        }
        (status, json)
    }

    pub(super) async fn text(&self, method: &str, path: &str) -> (u16, String) {
        let response = self.raw(method, path, None).await;
        let status = response.status().as_u16();
        (status, String::from_utf8(body(response).await).unwrap())
    }

    /// Null for `want`: whatever it says.
    pub(super) async fn get(&self, path: &str, status: u16, want: Value) {
        let (got, json) = self.ask("GET", path, None).await;
        assert_eq!(got, status, "GET {path}: {json}");
        if !want.is_null() {
            assert_eq!(json, want, "GET {path}");
        }
    }

    pub(super) async fn put(&self, path: &str, json: &Value, status: u16) {
        self.change("PUT", path, Some(json), status).await;
    }

    pub(super) async fn change(&self, method: &str, path: &str, json: Option<&Value>, status: u16) {
        let (got, answer) = self.ask(method, path, json).await;
        assert_eq!(got, status, "{method} {path}: {answer}");
    }

    /// Sends messages one by one; their positions.
    pub(super) async fn produce(&self, topic: &str, payloads: &[&str]) -> Vec<(i64, i64)> {
        let client = self.client();
        let producer = client
            .producer(topic)
            .batching(Batching::off())
            .build()
            .await
            .unwrap();
        let mut positions = Vec::new();
        for payload in payloads {
            let message = Message::new(payload.as_bytes().to_vec()).key(*payload);
            positions.push(producer.send(message).await.unwrap().position());
        }
        producer.close().await.unwrap();
        client.close().await;
        positions
    }

    pub(super) async fn backlog(&self, topic: &str, subscription: &str) -> u64 {
        let path = format!("/admin/v2/persistent/public/default/{topic}/stats");
        let (_, stats) = self.ask("GET", &path, None).await;
        stats["subscriptions"][subscription]["msgBacklog"]
            .as_u64()
            .unwrap()
    }
}

/// Connects the client to the broker without a socket.
struct InProcess(Broker);

impl Connector for InProcess {
    fn connect(&self, _address: &str) -> Connecting {
        let stream = self.0.connect_in_process();
        Box::pin(async move { Ok(Io::new(stream)) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tasks.cancel();
    }
}

pub(super) async fn body(response: Response<Body>) -> Vec<u8> {
    response
        .into_body()
        .collect()
        .await
        .unwrap()
        .to_bytes()
        .to_vec()
}
