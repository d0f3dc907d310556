//! How a client reaches a broker: a [`Connector`] makes byte streams, over TCP, with TLS or without, or in the
//! process.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::tls::Tls;

/// The two halves of a byte stream.
pub struct Io {
    /// What the peer sends.
    pub read: Box<dyn AsyncRead + Send + Unpin>,
    /// What is sent to the peer.
    pub write: Box<dyn AsyncWrite + Send + Unpin>,
}

impl fmt::Debug for Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Io").finish_non_exhaustive()
    }
}

impl Io {
    /// From anything that reads and writes.
    pub fn new(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        let (read, write) = tokio::io::split(stream);
        Self {
            read: Box::new(read),
            write: Box::new(write),
        }
    }

    fn tcp(stream: TcpStream) -> Self {
        let (read, write) = stream.into_split();
        Self {
            read: Box::new(read),
            write: Box::new(write),
        }
    }
}

/// A connection being made.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Io>> + Send>>;

/// Makes connections to brokers.
///
/// `address` is `host:port`, from the service URL or from a lookup. A connector that reaches only
/// one broker may ignore it. Cancelling the future gives the attempt up.
pub trait Connector: Send + Sync + 'static {
    /// Begins to connect.
    fn connect(&self, address: &str) -> Connecting;
}

impl<F: Fn(&str) -> Connecting + Send + Sync + 'static> Connector for F {
    fn connect(&self, address: &str) -> Connecting {
        self(address)
    }
}

/// Connects by TCP.
#[derive(Debug, Clone)]
pub struct Tcp {
    /// How long one attempt may take.
    pub timeout: Duration,
}

impl Default for Tcp {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(10),
        }
    }
}

impl Connector for Tcp {
    fn connect(&self, address: &str) -> Connecting {
        let address = address.to_owned();
        let limit = self.timeout;
        Box::pin(async move {
            let stream = tokio::time::timeout(limit, TcpStream::connect(&address))
                .await
                .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            stream.set_nodelay(true)?;
            Ok(Io::tcp(stream))
        })
    }
}

/// Connects by TCP and speaks TLS.
#[derive(Debug, Clone)]
pub struct TcpWithTls {
    /// Whom it trusts, and who it says that it is.
    pub tls: Tls,
    /// How long one attempt may take, the handshake with it.
    pub timeout: Duration,
}

impl Connector for TcpWithTls {
    fn connect(&self, address: &str) -> Connecting {
        let address = address.to_owned();
        let (tls, limit) = (self.tls.clone(), self.timeout);
        Box::pin(async move {
            let connected = async {
                let stream = TcpStream::connect(&address).await?;
                stream.set_nodelay(true)?;
                let host = address.rsplit_once(':').map_or(&*address, |(host, _)| host);
                tls.connect(host, stream).await
            };
            let stream = tokio::time::timeout(limit, connected).await;
            Ok(Io::new(
                stream.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??,
            ))
        })
    }
}

/// Bytes that may be on their way in one direction of a pipe.
const PIPE_BYTES: usize = 1024 * 1024;

/// Connects to a broker in the same process: each connection is a pipe whose other end comes out
/// of the receiver that [`Pipe::new`] gives.
#[derive(Debug, Clone)]
pub struct Pipe {
    accept: mpsc::Sender<Io>,
}

impl Pipe {
    /// A connector, and what a broker accepts its connections from.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Io>) {
        let (accept, accepted) = mpsc::channel(16);
        (Self { accept }, accepted)
    }
}

impl Connector for Pipe {
    fn connect(&self, _address: &str) -> Connecting {
        let accept = self.accept.clone();
        Box::pin(async move {
            let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
            accept
                .send(Io::new(theirs))
                .await
                .map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
            Ok(Io::new(ours))
        })
    }
}
