//! Code that is not sent along: fetched over HTTP to disk; and files of the server, sent back.

use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use geminga_functions::{Upload, Worker};
use http_body_util::{BodyExt, Empty};
use hyper::Uri;
use hyper::body::Frame;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::io::AsyncReadExt;

use crate::error::{Answer, ApiError};

/// How long the other side may say nothing.
const IDLE: Duration = Duration::from_secs(20);
/// How long a whole package may take.
const WHOLE: Duration = Duration::from_secs(300);

/// Fetches a package. A redirect is not followed: it would lead where nobody allowed it.
pub(super) async fn fetch(worker: &Worker, url: &str) -> Answer<Upload> {
    let refused = |why: String| {
        ApiError::bad_request(format!("Function Package url is not valid: `{url}`: {why}"))
    };
    let uri: Uri = url
        .parse()
        .map_err(|_| refused("it is no URL".to_owned()))?;
    let name = uri
        .path()
        .rsplit('/')
        .next()
        .filter(|name| !name.is_empty());
    let name = name.unwrap_or("package").to_owned();
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(IDLE));
    let http: legacy::Client<HttpConnector, Empty<Bytes>> =
        legacy::Client::builder(TokioExecutor::new()).build(connector);
    let fetched = async {
        let response = tokio::time::timeout(IDLE, http.get(uri)).await;
        let response = response.map_err(|_| refused("it does not answer".to_owned()))?;
        let response = response.map_err(|error| refused(error.to_string()))?;
        if !response.status().is_success() {
            return Err(refused(format!("it answers {}", response.status())));
        }
        let mut body = response.into_body();
        let mut spool = worker.spool().await?;
        loop {
            let frame = tokio::time::timeout(IDLE, body.frame()).await;
            let frame = frame.map_err(|_| refused("it stopped".to_owned()))?;
            let Some(frame) = frame else { break };
            let frame = frame.map_err(|error| refused(error.to_string()))?;
            if let Ok(bytes) = frame.into_data() {
                spool
                    .write(&bytes)
                    .await
                    .map_err(|error| refused(error.to_string()))?;
            }
        }
        let spooled = spool
            .finish()
            .await
            .map_err(|error| refused(error.to_string()))?;
        Ok(Upload::spooled(name, spooled))
    };
    match tokio::time::timeout(WHOLE, fetched).await {
        Ok(fetched) => fetched,
        Err(_) => Err(refused(format!(
            "it took longer than {} s",
            WHOLE.as_secs()
        ))),
    }
}

/// Sends a file, a piece at a time.
pub(crate) async fn stream(path: &Path) -> Answer {
    let missing = |error: std::io::Error| {
        ApiError::not_found(format!("`{}` can not be read: {error}", path.display()))
    };
    let mut file = tokio::fs::File::open(path).await.map_err(missing)?;
    let metadata = file.metadata().await.map_err(missing)?;
    if !metadata.is_file() {
        return Err(ApiError::bad_request(format!(
            "`{}` is no file",
            path.display()
        )));
    }
    let (sender, receiver) = tokio::sync::mpsc::channel::<std::io::Result<Bytes>>(2);
    geminga_stdx::Tasks::new().spawn_cancellable("download", async move {
        loop {
            let mut piece = vec![0; 64 * 1024];
            let read = file.read(&mut piece).await;
            let is_last = !matches!(read, Ok(1..));
            let piece = read.map(|length| {
                piece.truncate(length);
                Bytes::from(piece)
            });
            if piece.as_ref().is_ok_and(Bytes::is_empty)
                || sender.send(piece).await.is_err()
                || is_last
            {
                return;
            }
        }
    });
    let body = Body::new(Streamed(receiver));
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, metadata.len().to_string()),
    ];
    let response: Response = (headers, body).into_response();
    Ok(response)
}

/// A body whose pieces come one by one.
struct Streamed(tokio::sync::mpsc::Receiver<std::io::Result<Bytes>>);

impl HttpBody for Streamed {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        self.0
            .poll_recv(cx)
            .map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}
