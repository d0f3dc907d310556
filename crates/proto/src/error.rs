//! What can be wrong with bytes from a peer, one enum per operation.
//!
//! All of them mean that the peer (or the disk) gave us something that is not Pulsar's format.

/// The byte stream of a connection cannot be cut into commands any more: close it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("frame of `{size}` bytes is over the limit of `{max}`")]
    TooLarge { size: u64, max: usize },
    #[error("frame of `{size}` bytes is too short to hold a command")]
    TooShort { size: u64 },
    #[error("command of `{command_size}` bytes does not fit in its frame of `{frame_size}`")]
    CommandTooLarge {
        command_size: u64,
        frame_size: usize,
    },
    #[error("malformed command")]
    Malformed(#[from] prost::DecodeError),
    #[error("malformed command: {0}")]
    Wire(#[from] WireError),
    #[error("command of type `{name}` lacks its body")]
    MissingBody { name: &'static str },
    #[error("field `{field}` of `{message}` is required")]
    MissingField { message: &'static str, field: u32 },
}

/// The protobuf encoding itself is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("truncated")]
    Truncated,
    #[error("varint of more than ten bytes")]
    VarintTooLong,
    #[error("wire type `{0}` is not one")]
    WireType(u8),
    #[error("field number zero")]
    FieldZero,
    #[error("required field `{0}` is missing")]
    Missing(&'static str),
    #[error("text is not utf-8")]
    NotUtf8,
}

/// The headers-and-payload block of a message is broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    #[error("message of `{len}` bytes is too short for its headers")]
    TooShort { len: usize },
    #[error("metadata of `{size}` bytes does not fit in a message of `{len}`")]
    MetadataTooLarge { size: u64, len: usize },
    #[error("malformed metadata: {0}")]
    Wire(#[from] WireError),
    #[error("malformed metadata")]
    Malformed(#[from] prost::DecodeError),
    #[error("negative payload size `{0}` in a batch")]
    NegativeSize(i32),
    #[error("batch of `{expected}` messages ends after `{found}`")]
    BatchTooShort { expected: i32, found: i32 },
    #[error(transparent)]
    Compression(#[from] CompressionError),
    #[error(transparent)]
    Checksum(#[from] ChecksumError),
}

/// The checksum in a message is not the checksum of the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("checksum `{expected:#010x}` in the message, `{actual:#010x}` by its bytes")]
pub struct ChecksumError {
    pub expected: u32,
    pub actual: u32,
}

/// A payload could not be compressed or decompressed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompressionError {
    #[error("uncompressed size `{size}` is over the limit of `{max}`")]
    TooLarge { size: usize, max: usize },
    #[error("compression type `{0}` is not known")]
    UnknownType(i32),
    #[error("payload unpacks to `{actual}` bytes instead of `{expected}`")]
    WrongSize { expected: usize, actual: usize },
    #[error("broken {codec} data: {reason}")]
    Broken { codec: &'static str, reason: String },
}
