//! A `multipart/form-data` body, as Pulsar's clients send functions.

use std::path::Path;

use bytes::BytesMut;
use geminga_stdx::Random;

use super::ClientError;
use super::payload::{Payload, Piece, unreadable};

/// A form under construction.
#[derive(Debug)]
pub struct Form {
    boundary: String,
    /// What is complete.
    pieces: Vec<Piece>,
    /// What comes behind it.
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
        Self::with_boundary(&format!("geminga-{}", Random::from_entropy().name(32)))
    }

    pub(super) fn with_boundary(boundary: &str) -> Self {
        Self {
            boundary: boundary.to_owned(),
            pieces: Vec::new(),
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

    /// Adds a file that is read while the form is sent.
    ///
    /// # Errors
    /// When it is not there, or is no file.
    pub async fn path(
        mut self,
        name: &str,
        file_name: &str,
        path: &Path,
    ) -> Result<Self, ClientError> {
        let about = tokio::fs::metadata(path).await;
        let about = about.map_err(unreadable(path))?;
        if !about.is_file() {
            let error = std::io::Error::other("it is not a file");
            return Err(unreadable(path)(error));
        }
        self.head(name, Some(file_name), "application/octet-stream");
        self.pieces.push(Piece::Bytes(self.body.split().freeze()));
        self.pieces.push(Piece::File {
            path: path.to_owned(),
            bytes: about.len(),
        });
        self.body.extend_from_slice(b"\r\n");
        Ok(self)
    }

    fn part(&mut self, name: &str, file_name: Option<&str>, kind: &str, content: &[u8]) {
        self.head(name, file_name, kind);
        self.body.extend_from_slice(content);
        self.body.extend_from_slice(b"\r\n");
    }

    fn head(&mut self, name: &str, file_name: Option<&str>, kind: &str) {
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
    }

    /// What is sent.
    #[must_use]
    pub fn finish(mut self) -> Payload {
        self.body
            .extend_from_slice(format!("--{}--\r\n", self.boundary).as_bytes());
        self.pieces.push(Piece::Bytes(self.body.freeze()));
        Payload {
            kind: format!("multipart/form-data; boundary={}", self.boundary),
            pieces: self.pieces,
        }
    }
}
