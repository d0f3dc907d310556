//! The HTTP listener: connections, their limits and their end.
//!
//! Owns the socket. What must hold: a client that sends garbage, sends slowly or reads slowly costs
//! one connection for a bounded time and disturbs nobody; an idle server does nothing.

mod patient;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use geminga_broker::Tls;
use geminga_stdx::Tasks;
use geminga_stdx::tasks::OnError;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tower::ServiceExt;

use patient::Patient;

use crate::rest::ClientCertificate;

/// Connections at once; more wait in the listen queue of the system.
const CONNECTIONS_MAX: usize = 1024;
/// How long the headers of a request may take; also how long a connection may idle between two.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a request that runs when the server is stopped may go on.
const STOP_GRACE: Duration = Duration::from_secs(1);
/// Longest request head: hyper answers 431 or 414 beyond it.
const HEAD_BYTES_MAX: usize = 32 * 1024;
/// Pause after a failed accept: out of file descriptors does not end by trying again at once.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// A bound socket.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
}

impl Server {
    /// Binds; port 0 takes a free one.
    ///
    /// # Errors
    /// When the address is not free or not ours.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `tasks` is cancelled; requests that run then are finished.
    pub fn spawn(self, tasks: &Tasks, router: Router) {
        self.spawn_with(tasks, router, None);
    }

    /// As `spawn`, with TLS.
    pub fn spawn_tls(self, tasks: &Tasks, router: Router, tls: Arc<Tls>) {
        self.spawn_with(tasks, router, Some(tls));
    }

    fn spawn_with(self, tasks: &Tasks, router: Router, tls: Option<Arc<Tls>>) {
        let connections = tasks.clone();
        tasks.spawn("admin-listener", OnError::FailOwner, async move {
            let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
            loop {
                let next = async {
                    let permit = Arc::clone(&permits).acquire_owned().await;
                    (permit, self.listener.accept().await)
                };
                let (permit, accepted) = tokio::select! {
                    () = connections.cancelled() => return Ok::<(), io::Error>(()),
                    next = next => next,
                };
                match accepted {
                    Ok((stream, _)) => {
                        let serve =
                            accepted_one(stream, router.clone(), connections.clone(), tls.clone());
                        connections.spawn("admin-connection", OnError::Log, async move {
                            serve.await;
                            drop(permit);
                            Ok::<(), io::Error>(())
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "could not accept an admin connection");
                        tokio::time::sleep(ACCEPT_BACKOFF).await;
                    }
                }
            }
        });
    }
}

async fn accepted_one(stream: TcpStream, router: Router, tasks: Tasks, tls: Option<Arc<Tls>>) {
    // Answers are small and go at once.
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else {
        return connection(stream, router, tasks, ClientCertificate::default()).await;
    };
    match tls.accept(stream).await {
        Ok((stream, name)) => connection(stream, router, tasks, ClientCertificate(name)).await,
        Err(error) => tracing::info!(%error, "no TLS connection was made"),
    }
}

async fn connection<S>(stream: S, router: Router, tasks: Tasks, certificate: ClientCertificate)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let router = router.map_request(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(certificate.clone());
        request
    });
    let serve = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(
            TokioIo::new(Patient::new(stream)),
            TowerToHyperService::new(router),
        )
        .with_upgrades();
    tokio::pin!(serve);
    let ended = tokio::select! {
        ended = &mut serve => ended,
        () = tasks.cancelled() => {
            serve.as_mut().graceful_shutdown();
            // Half a request is not waited for as long as its headers may take.
            match tokio::time::timeout(STOP_GRACE, serve).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "admin connection ended");
    }
}

#[cfg(test)]
mod tests;
