//! Code that is not sent along: fetched over HTTP or HTTPS to disk; and files of the server, sent back.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use geminga_client::tls::trusted_by_machine;
use geminga_functions::{Upload, Worker};
use geminga_stdx::Tasks;
use http_body_util::{BodyExt, Empty};
use hyper::Uri;
use hyper::body::Frame;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::error::{Answer, ApiError};

/// How long the other side may say nothing.
const IDLE: Duration = Duration::from_secs(20);
/// How long a whole package may take.
const WHOLE: Duration = Duration::from_secs(300);

/// Fetches a package by `http` or `https`. A redirect is not followed: it would lead where nobody
/// allowed it.
pub(super) async fn fetch(worker: &Worker, url: &str) -> Answer<Upload> {
    fetch_trusting(worker, url, trusted).await
}

/// The same, with these certificates for `https`.
async fn fetch_trusting(
    worker: &Worker,
    url: &str,
    roots: impl FnOnce() -> Result<RootCertStore, String> + Send + 'static,
) -> Answer<Upload> {
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
    let fetched = async {
        let connected = tokio::time::timeout(IDLE, connect(&uri, roots)).await;
        let connected = connected.map_err(|_| refused("it does not answer".to_owned()))?;
        let stream = connected.map_err(&refused)?;
        let http = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = http.map_err(|error| refused(error.to_string()))?;
        let tasks = Tasks::new();
        // Ends with this call, however it ends.
        let _ends = CancelOnDrop(tasks.clone());
        tasks.spawn_cancellable("package connection", async move {
            // What is wrong with it shows in the answer.
            let _ = connection.await;
        });
        let authority = uri.authority().map_or("", |it| it.as_str());
        let host = authority.rsplit('@').next().unwrap_or_default();
        let path = uri.path_and_query().map_or("/", |it| it.as_str());
        let request = hyper::Request::get(path)
            .header(header::HOST, host)
            .body(Empty::<Bytes>::new())
            .map_err(|error| refused(error.to_string()))?;
        let response = tokio::time::timeout(IDLE, sender.send_request(request)).await;
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

struct CancelOnDrop(Tasks);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// A connection, with TLS or without.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn connect(
    uri: &Uri,
    roots: impl FnOnce() -> Result<RootCertStore, String> + Send + 'static,
) -> Result<Box<dyn Stream>, String> {
    let is_tls = uri.scheme_str() == Some("https");
    let host = uri.host().unwrap_or_default();
    // An address of IPv6 is in brackets.
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let stream = TcpStream::connect((host, port)).await;
    let stream = stream.map_err(|error| error.to_string())?;
    if !is_tls {
        return Ok(Box::new(stream));
    }
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| format!("`{host}` is no name of a server"))?;
    // Reads a file.
    let roots = tokio::task::spawn_blocking(roots).await;
    let roots = roots.map_err(|error| error.to_string())??;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream);
    let stream = stream.await.map_err(|error| format!("TLS: {error}"))?;
    Ok(Box::new(stream))
}

fn trusted() -> Result<RootCertStore, String> {
    trusted_by_machine().map_err(|error| error.to_string())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rest::tests::harness::Server;
    use rustls::ServerConfig;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio::io::AsyncWriteExt;
    use tokio_rustls::TlsAcceptor;

    /// Answers each connection with these bytes; its address, and its certificate in PEM.
    async fn https(answer: &'static [u8], tasks: &Tasks) -> (u16, String) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::from_pem_slice(made.signing_key.serialize_pem().as_bytes());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.unwrap())
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tasks.spawn_cancellable("https", async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // A client that does not trust it ends the handshake.
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let mut asked = [0; 1024];
                let _ = stream.read(&mut asked).await;
                let _ = stream.write_all(answer).await;
                let _ = stream.shutdown().await;
            }
        });
        (port, made.cert.pem())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_package_comes_over_tls_from_whom_the_machine_trusts() {
        let server = Server::start().await;
        let directory = tempfile::tempdir().unwrap();
        let config = geminga_functions::WorkerConfig::ephemeral(server.client(), directory.path());
        let worker = Worker::start(config).await.unwrap();
        let tasks = Tasks::new();
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ncode";
        let (port, pem) = https(answer, &tasks).await;
        let roots = move || {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(
                CertificateDer::pem_slice_iter(pem.as_bytes()).flatten(),
            );
            Ok(roots)
        };
        let url = format!("https://localhost:{port}/path/f.sh?x=y");
        let upload = fetch_trusting(&worker, &url, roots.clone()).await.unwrap();
        assert_eq!(upload.file_name, "f.sh");
        let strangers = || Ok(RootCertStore::empty());
        let refused = fetch_trusting(&worker, &url, strangers).await.unwrap_err();
        assert!(refused.reason.contains("TLS"), "{}", refused.reason);
        // It is another one than the certificate names.
        let other = format!("https://127.0.0.1:{port}/f.sh");
        let refused = fetch_trusting(&worker, &other, roots).await.unwrap_err();
        assert!(refused.reason.contains("TLS"), "{}", refused.reason);
        let moved =
            b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n";
        let (port, pem) = https(moved, &tasks).await;
        let roots = move || {
            let mut roots = RootCertStore::empty();
            let one = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
            roots.add(one).map_err(|error| error.to_string())?;
            Ok(roots)
        };
        let url = format!("https://localhost:{port}/f.sh");
        let refused = fetch_trusting(&worker, &url, roots).await.unwrap_err();
        assert!(refused.reason.contains("302"), "{}", refused.reason);
        tasks.cancel();
        worker.shutdown(Duration::from_secs(1)).await;
    }
}
