//! Keys as Pulsar's settings name them.

use geminga_proto::key::decode_base64;

/// The bytes that `file:`, `data:`, `env:`, a path or base64 stand for. The error does not tell what
/// was given: it may be the key itself.
pub fn read_key(given: &str) -> Result<Vec<u8>, &'static str> {
    if let Some(name) = given.strip_prefix("env:") {
        let value = std::env::var(name).map_err(|_| "names a variable that is not set")?;
        return read_key(&value);
    }
    if let Some(data) = given.strip_prefix("data:") {
        let (kind, data) = data.split_once(',').ok_or("is `data:` without a comma")?;
        return match kind.ends_with(";base64") {
            true => base64(data),
            false => Ok(data.as_bytes().to_vec()),
        };
    }
    if let Some(path) = given.strip_prefix("file:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        return std::fs::read(path).map_err(|_| "names a file that cannot be read");
    }
    if std::path::Path::new(given).is_file() {
        return std::fs::read(given).map_err(|_| "names a file that cannot be read");
    }
    base64(given).map_err(|_| "is neither a file that exists nor base64")
}

fn base64(text: &str) -> Result<Vec<u8>, &'static str> {
    let text = text.trim().replace('-', "+").replace('_', "/");
    decode_base64(&text).ok_or("is not base64")
}

/// A key in DER as PEM; PEM stays as it is.
pub(crate) fn pem(key: &[u8], label: &str) -> Vec<u8> {
    if key.trim_ascii_start().starts_with(b"-----BEGIN") {
        return key.to_vec();
    }
    let body = geminga_proto::key::encode_base64(key);
    let lines: Vec<&str> = body
        .as_bytes()
        .chunks(64)
        .filter_map(|line| std::str::from_utf8(line).ok())
        .collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
    .into_bytes()
}
