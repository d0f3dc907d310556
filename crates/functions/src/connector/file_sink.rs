//! The file sink: each message is a line. Lines are written as they come, and the file is synced
//! before the messages are acknowledged.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use geminga_client::{Client, Producer, Receipt, Transaction};
use geminga_mesh::builtin::FileSink;
use parking_lot::Mutex;

use crate::instance::guarantee::Letter;
use crate::instance::sink::{Sink, Syncer, WriteError, post_letter};
use crate::runtime::{BoxFuture, Message, Output};

pub(crate) struct FileEnd {
    file: Arc<Lines>,
    client: Client,
    letters: Option<(String, Producer)>,
}

#[derive(Debug)]
struct Lines {
    file: File,
    /// Lines that are not written yet.
    waiting: Mutex<Vec<u8>>,
    path: String,
}

/// Lines gathered in memory before they are written without waiting for the next sync.
const WAITING_BYTES_MAX: usize = 1024 * 1024;

impl FileEnd {
    /// Opens the file. `fresh` begins it empty, unless the settings keep what it holds.
    pub(crate) fn open(settings: &FileSink, fresh: bool, client: Client) -> Result<Self, String> {
        let path = settings.path.clone().unwrap_or_default();
        let failed = |error: std::io::Error| format!("`{path}`: {error}");
        if let Some(directory) = Path::new(&path)
            .parent()
            .filter(|d| !d.as_os_str().is_empty())
        {
            std::fs::create_dir_all(directory).map_err(failed)?;
        }
        let keep = settings.append == Some(true) || !fresh;
        let file = File::options()
            .create(true)
            .append(keep)
            .write(true)
            .truncate(!keep)
            .open(&path)
            .map_err(failed)?;
        let file = Arc::new(Lines {
            file,
            waiting: Mutex::new(Vec::new()),
            path,
        });
        Ok(Self {
            file,
            client,
            letters: None,
        })
    }
}

impl Lines {
    fn write_out(&self) -> Result<(), String> {
        let mut waiting = self.waiting.lock();
        (&self.file)
            .write_all(&waiting)
            .map_err(|error| format!("`{}`: {error}", self.path))?;
        waiting.clear();
        Ok(())
    }
}

/// Why a message is no line.
fn no_line(payload: &[u8]) -> Option<String> {
    payload
        .contains(&b'\n')
        .then(|| "a message with a newline is not one line".to_owned())
}

impl Sink for FileEnd {
    fn refuses(&self, message: &Message) -> Option<String> {
        no_line(&message.payload)
    }

    fn write<'a>(
        &'a mut self,
        _input: &'a Message,
        outputs: Vec<Output>,
        _txn: Option<&'a Transaction>,
    ) -> BoxFuture<'a, Result<Vec<Receipt>, WriteError>> {
        Box::pin(async move {
            let full = {
                let mut waiting = self.file.waiting.lock();
                for output in outputs {
                    if let Some(why) = no_line(&output.payload) {
                        return Err(WriteError::Message(why));
                    }
                    waiting.extend_from_slice(&output.payload);
                    waiting.push(b'\n');
                }
                waiting.len() > WAITING_BYTES_MAX
            };
            if full {
                self.file.write_out().map_err(WriteError::Sink)?;
            }
            Ok(Vec::new())
        })
    }

    fn dead_letter<'a>(
        &'a mut self,
        topic: &'a str,
        letter: Letter,
        _input: &'a Message,
        _txn: Option<&'a Transaction>,
    ) -> BoxFuture<'a, Result<Vec<Receipt>, String>> {
        Box::pin(async move {
            if self.letters.as_ref().is_none_or(|(name, _)| name != topic) {
                let producer = self
                    .client
                    .producer(topic)
                    .build()
                    .await
                    .map_err(|e| e.to_string())?;
                self.letters = Some((topic.to_owned(), producer));
            }
            let Some((_, producer)) = &self.letters else {
                return Ok(Vec::new());
            };
            post_letter(producer, letter, None).await
        })
    }

    fn syncer(&self) -> Option<Arc<dyn Syncer>> {
        Some(self.file.clone())
    }
}

impl Syncer for Lines {
    fn sync(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            self.write_out()?;
            let file = self.file.try_clone().map_err(|error| error.to_string())?;
            // Syncing waits for the disk: not on a thread of the runtime.
            match tokio::task::spawn_blocking(move || file.sync_data()).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(format!("`{}`: {error}", self.path)),
                Err(error) => Err(error.to_string()),
            }
        })
    }
}
