//! A `multipart/form-data` body, as Pulsar's clients send functions.

use bytes::{Bytes, BytesMut};
use geminga_stdx::Random;

/// A form under construction.
#[derive(Debug)]
pub struct Form {
    boundary: String,
    body: BytesMut,
}

impl Default for Form {
    fn default() -> Self {
        Self::new()
    }
}

impl Form {
    #[must_use]
    pub fn new() -> Self {
        let boundary = format!("geminga-{}", Random::from_entropy().name(32));
        Self {
            boundary,
            body: BytesMut::new(),
        }
    }

    /// Adds a part of text.
    #[must_use]
    pub fn text(mut self, name: &str, text: &str) -> Self {
        self.part(name, None, "text/plain", text.as_bytes());
        self
    }

    /// Adds a part of JSON.
    #[must_use]
    pub fn json(mut self, name: &str, json: &str) -> Self {
        self.part(name, None, "application/json", json.as_bytes());
        self
    }

    /// Adds a file.
    #[must_use]
    pub fn file(mut self, name: &str, file_name: &str, content: &[u8]) -> Self {
        self.part(name, Some(file_name), "application/octet-stream", content);
        self
    }

    fn part(&mut self, name: &str, file_name: Option<&str>, kind: &str, content: &[u8]) {
        let quote = |text: &str| {
            text.replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace(['\r', '\n'], "_")
        };
        let mut head = format!(
            "--{}\r\nContent-Disposition: form-data; name=\"{}\"",
            self.boundary,
            quote(name)
        );
        if let Some(file_name) = file_name {
            head.push_str(&format!("; filename=\"{}\"", quote(file_name)));
        }
        head.push_str(&format!("\r\nContent-Type: {kind}\r\n\r\n"));
        self.body.extend_from_slice(head.as_bytes());
        self.body.extend_from_slice(content);
        self.body.extend_from_slice(b"\r\n");
    }

    /// The media type and the body.
    #[must_use]
    pub fn finish(mut self) -> (String, Bytes) {
        self.body
            .extend_from_slice(format!("--{}--\r\n", self.boundary).as_bytes());
        (
            format!("multipart/form-data; boundary={}", self.boundary),
            self.body.freeze(),
        )
    }
}
