//! Asks a process with Pulsar's instance how it is: unary gRPC calls without arguments, over HTTP/2 on loopback.
//!
//! The crate `h2` alone, and not `tonic`: three calls whose request is five zero bytes need a frame and a
//! trailer, which are here. `tonic` would bring ten crates more, and a set of hyper's features that compiles half
//! of the graph again. `h2` is one crate more, of hyper's own people; the rest of what it needs is there already.
//!
//! What must hold: the process is user code, so whatever it answers is bounded in time and size.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use geminga_proto::instance_control::{
    Answer, FunctionStatus, HealthCheckResult, MetricsData, SERVICE,
};
use geminga_stdx::Tasks;
use h2::client::SendRequest;
use tokio::net::TcpStream;

/// Pulsar's own limit for an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Most bytes of one answer.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// Most bytes of the headers of an answer: a status and a text.
const HEAD_BYTES_MAX: u32 = 64 * 1024;
/// Before each message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// How an instance is, and what it did.
#[derive(Debug, Clone, Default)]
pub(super) struct Report {
    pub(super) healthy: bool,
    pub(super) status: FunctionStatus,
    pub(super) metrics: BTreeMap<String, f64>,
}

/// One process' service. The connection is made at the first call, and again after a failed one.
pub(super) struct Control {
    port: u16,
    open: Option<SendRequest<Bytes>>,
    tasks: Tasks,
}

impl Control {
    pub(super) fn new(port: u16, tasks: Tasks) -> Self {
        Self {
            port,
            open: None,
            tasks,
        }
    }

    /// Asks for everything. The metrics are read and not reset: others may look at them too.
    pub(super) async fn look(&mut self) -> Result<Report, String> {
        let looked = tokio::time::timeout(ANSWER_WITHIN, async {
            // The instance ends itself when nobody asks for its health.
            let health: HealthCheckResult = self.call("HealthCheck").await?;
            let status: FunctionStatus = self.call("GetFunctionStatus").await?;
            let metrics: MetricsData = self.call("GetMetrics").await?;
            Ok(Report {
                healthy: health.success,
                status,
                metrics: metrics.user_metrics,
            })
        });
        let looked = looked
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWER_WITHIN.as_secs())));
        if looked.is_err() {
            self.open = None;
        }
        looked
    }

    async fn call<A: Answer>(&mut self, method: &str) -> Result<A, String> {
        let open = match self.open.clone() {
            Some(open) => open,
            None => self.connect().await?,
        };
        let bytes = ask(open, self.port, method).await;
        let bytes = bytes.map_err(|why| format!("{method}: {why}"))?;
        message(&bytes)
            .and_then(A::read)
            .ok_or_else(|| format!("{method}: the answer is none of `InstanceControl`"))
    }

    async fn connect(&mut self) -> Result<SendRequest<Bytes>, String> {
        let said = |error: &dyn std::fmt::Display| format!("port {}: {error}", self.port);
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await;
        let stream = stream.map_err(|error| said(&error))?;
        let shaken = h2::client::Builder::new()
            .enable_push(false)
            .max_header_list_size(HEAD_BYTES_MAX)
            .handshake(stream)
            .await;
        let (open, connection) = shaken.map_err(|error| said(&error))?;
        self.tasks
            .spawn_cancellable("instance control", async move {
                // Whoever waits for an answer is told.
                let _ = connection.await;
            });
        self.open = Some(open.clone());
        Ok(open)
    }
}

async fn ask(open: SendRequest<Bytes>, port: u16, method: &str) -> Result<Bytes, String> {
    let said = |error: h2::Error| error.to_string();
    let request = http::Request::post(format!("http://127.0.0.1:{port}{SERVICE}{method}"))
        .version(http::Version::HTTP_2)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .map_err(|error| error.to_string())?;
    let mut open = open.ready().await.map_err(said)?;
    let (answer, mut body) = open.send_request(request, false).map_err(said)?;
    // An empty message.
    let sent = body.send_data(Bytes::from_static(&[0; PREFIX_BYTES]), true);
    sent.map_err(said)?;
    let (head, mut stream) = answer.await.map_err(said)?.into_parts();
    if head.status != http::StatusCode::OK {
        return Err(format!("HTTP status {}", head.status));
    }
    let mut bytes = BytesMut::new();
    while let Some(more) = stream.data().await {
        let more = more.map_err(said)?;
        let _ = stream.flow_control().release_capacity(more.len());
        if bytes.len() + more.len() > ANSWER_BYTES_MAX {
            return Err("the answer is too long".to_owned());
        }
        bytes.extend_from_slice(&more);
    }
    let trailers = stream.trailers().await.map_err(said)?;
    let of = |name: &str| {
        let value = trailers.as_ref().and_then(|trailers| trailers.get(name));
        let value = value.or_else(|| head.headers.get(name))?;
        Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    match of("grpc-status").as_deref() {
        Some("0") => Ok(bytes.freeze()),
        Some(code) => {
            let text = of("grpc-message").unwrap_or_default();
            Err(format!("gRPC status {code} {text}"))
        }
        None => Err("the answer was cut".to_owned()),
    }
}

/// The one message of an answer.
fn message(bytes: &[u8]) -> Option<&[u8]> {
    let (prefix, message) = bytes.split_at_checked(PREFIX_BYTES)?;
    let length = u32::from_be_bytes(prefix[1..].try_into().ok()?);
    (prefix[0] == 0 && message.len() == length as usize).then_some(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_one_message() {
        assert_eq!(message(&[0, 0, 0, 0, 2, 8, 1]), Some(&[8, 1][..]));
        assert_eq!(message(&[0, 0, 0, 0, 0]), Some(&[][..]));
        for bad in [
            &[][..],
            &[0, 0, 0, 0],
            &[1, 0, 0, 0, 0],
            &[0, 0, 0, 0, 2, 8],
        ] {
            assert_eq!(message(bad), None, "{bad:?}");
        }
    }
}
