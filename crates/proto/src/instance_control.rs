//! What a process with Pulsar's own function instance answers over gRPC (service `proto.InstanceControl`): the
//! few messages of it, written by hand. Fields that nothing here reads are left out, as protobuf allows.

use std::collections::BTreeMap;

use prost::Message;

/// The path of the service's methods.
pub const SERVICE: &str = "/proto.InstanceControl/";

/// How an instance is, and what it has done since it started.
#[derive(Clone, PartialEq, Message)]
pub struct FunctionStatus {
    #[prost(bool, tag = "1")]
    pub running: bool,
    #[prost(string, tag = "2")]
    pub failure_exception: String,
    #[prost(int64, tag = "5")]
    pub num_successfully_processed: i64,
    #[prost(int64, tag = "6")]
    pub num_user_exceptions: i64,
    #[prost(message, repeated, tag = "7")]
    pub latest_user_exceptions: Vec<ExceptionInformation>,
    #[prost(int64, tag = "8")]
    pub num_system_exceptions: i64,
    #[prost(message, repeated, tag = "9")]
    pub latest_system_exceptions: Vec<ExceptionInformation>,
    /// Milliseconds.
    #[prost(double, tag = "12")]
    pub average_latency: f64,
    /// Milliseconds since 1970.
    #[prost(int64, tag = "13")]
    pub last_invocation_time: i64,
    #[prost(int64, tag = "17")]
    pub num_received: i64,
    #[prost(int64, tag = "18")]
    pub num_source_exceptions: i64,
    #[prost(message, repeated, tag = "19")]
    pub latest_source_exceptions: Vec<ExceptionInformation>,
    #[prost(int64, tag = "20")]
    pub num_sink_exceptions: i64,
    #[prost(message, repeated, tag = "21")]
    pub latest_sink_exceptions: Vec<ExceptionInformation>,
}

/// One of the last exceptions.
#[derive(Clone, PartialEq, Message)]
pub struct ExceptionInformation {
    #[prost(string, tag = "1")]
    pub exception_string: String,
    #[prost(int64, tag = "2")]
    pub ms_since_epoch: i64,
}

/// The function's own metrics; what else is in it is in the status too.
#[derive(Clone, PartialEq, Message)]
pub struct MetricsData {
    #[prost(btree_map = "string, double", tag = "9")]
    pub user_metrics: BTreeMap<String, f64>,
}

/// Whether the instance is well.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct HealthCheckResult {
    #[prost(bool, tag = "1")]
    pub success: bool,
}

/// An answer of the service.
pub trait Answer: Sized {
    /// `None` for bytes that are none.
    fn read(bytes: &[u8]) -> Option<Self>;
}

impl<M: Message + Default> Answer for M {
    fn read(bytes: &[u8]) -> Option<Self> {
        M::decode(bytes).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_and_unknown_fields_are_passed_over() {
        // running, 7 received (17), instance id (14, unread), one user exception.
        let mut bytes = vec![0x08, 1, 0x88, 0x01, 7, 0x72, 1, b'0', 0x30, 1];
        bytes.extend([0x3a, 6, 0x0a, 2, b'n', b'o', 0x10, 9]);
        let status = FunctionStatus::read(&bytes).expect("a status");
        assert!(status.running && status.num_received == 7 && status.num_user_exceptions == 1);
        let exception = &status.latest_user_exceptions[0];
        assert_eq!(
            (
                exception.exception_string.as_str(),
                exception.ms_since_epoch
            ),
            ("no", 9)
        );
        assert!(FunctionStatus::read(&[0xff]).is_none());
    }

    #[test]
    fn metrics_are_a_map() {
        let mut entry = vec![0x0a, 1, b'm', 0x11];
        entry.extend(2.5_f64.to_le_bytes());
        let mut bytes = vec![0x4a, u8::try_from(entry.len()).expect("short")];
        bytes.extend(entry);
        let metrics = MetricsData::read(&bytes).expect("metrics").user_metrics;
        assert_eq!(metrics.get("m"), Some(&2.5));
    }
}
