//! The file source: each line of a file, or of the files of a directory, is a message.
//!
//! It remembers how far each file is done (every line before is durable in its topic), in a small
//! file of the worker that is replaced whole; so it goes on there after a restart, and a line may
//! come twice after a crash but is never left out. A file that shrank is begun again.
//!
//! How many lines there are is for a progress bar alone: they are counted beside, and no message waits for that.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use geminga_mesh::builtin::FileSource;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::instance::Gauge;
use crate::instance::source::{Acker, Incoming, Origin, Source, TAKE_MAX_BYTES};
use crate::runtime::{BoxFuture, Message};

/// A line longer than this is an error: memory is bounded.
const LINE_BYTES_MAX: u64 = 5 * 1024 * 1024;
/// How often a followed file is looked at.
const FOLLOW: Duration = Duration::from_millis(100);

/// How far a file is done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    offset: u64,
    /// Read to its end and put away.
    done: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Places {
    files: BTreeMap<PathBuf, Place>,
}

struct Reading {
    number: usize,
    path: PathBuf,
    lines: BufReader<File>,
    offset: u64,
    line: u64,
}

pub(crate) struct FileStart {
    settings: FileSource,
    shared: Arc<Shared>,
    gauge: Arc<Gauge>,
    waiting: VecDeque<PathBuf>,
    reading: Option<Reading>,
    looked: bool,
}

struct Shared {
    /// Where places are kept; `None` forgets them.
    store: Option<PathBuf>,
    places: Mutex<Places>,
    /// Files by the number in an origin, with the end of each once it was reached.
    files: Mutex<Vec<(PathBuf, Option<u64>)>>,
    settings: FileSource,
}

impl FileStart {
    pub(crate) fn open(
        settings: FileSource,
        store: Option<PathBuf>,
        gauge: Arc<Gauge>,
    ) -> Result<Self, String> {
        if let Some(path) = &settings.path {
            File::open(path).map_err(|error| format!("`{path}`: {error}"))?;
        }
        let places = store
            .as_ref()
            .and_then(|path| std::fs::read(path).ok())
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        let shared = Arc::new(Shared {
            store,
            places: Mutex::new(places),
            files: Mutex::new(Vec::new()),
            settings: settings.clone(),
        });
        Ok(Self {
            settings,
            shared,
            gauge,
            waiting: VecDeque::new(),
            reading: None,
            looked: false,
        })
    }

    /// The files to read now.
    fn look(&mut self) -> Result<(), String> {
        if let Some(path) = &self.settings.path {
            if !self.looked {
                self.waiting.push_back(PathBuf::from(path));
            }
        } else if let Some(directory) = &self.settings.input_directory {
            let mut found = Vec::new();
            list(Path::new(directory), &self.settings, &mut found)
                .map_err(|error| format!("`{directory}`: {error}"))?;
            found.sort();
            let known = self.shared.files.lock();
            let places = self.shared.places.lock();
            self.waiting = found
                .into_iter()
                .filter(|path| {
                    !known.iter().any(|(name, _)| name == path)
                        && !places.files.get(path).is_some_and(|place| place.done)
                })
                .collect();
        }
        self.looked = true;
        if self.settings.is_bounded() {
            self.count();
        }
        Ok(())
    }

    /// Counts the lines that are to come, on a thread of its own for as long as this source is there.
    fn count(&self) {
        let places = self.shared.places.lock();
        let from = |path: &PathBuf| places.files.get(path).map_or(0, |place| place.offset);
        let files = self.waiting.iter().map(|path| (path.clone(), from(path)));
        let files: Vec<_> = files.collect();
        let (shared, gauge) = (Arc::downgrade(&self.shared), self.gauge.clone());
        tokio::task::spawn_blocking(move || {
            let counts = files
                .iter()
                .map(|(path, offset)| count_lines(path, *offset, &shared));
            // What can not be read says so when its turn comes.
            let total = counts.filter_map(Result::ok).sum();
            if shared.strong_count() > 0 {
                gauge.total.fetch_add(total, Ordering::Relaxed);
            }
        });
    }

    fn open_next(&mut self) -> Result<bool, String> {
        let Some(path) = self.waiting.pop_front() else {
            return Ok(false);
        };
        let failed = |error: std::io::Error| format!("`{}`: {error}", path.display());
        let mut file = File::open(&path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        let place = self
            .shared
            .places
            .lock()
            .files
            .get(&path)
            .cloned()
            .unwrap_or_default();
        let offset = if place.offset > size { 0 } else { place.offset };
        file.seek(SeekFrom::Start(offset)).map_err(failed)?;
        let mut files = self.shared.files.lock();
        files.push((path.clone(), None));
        let number = files.len() - 1;
        self.reading = Some(Reading {
            number,
            path,
            lines: BufReader::with_capacity(256 * 1024, file),
            offset,
            line: 0,
        });
        Ok(true)
    }

    fn read(&mut self, max: usize) -> Result<Vec<Incoming>, String> {
        let Some(reading) = &mut self.reading else {
            return Ok(Vec::new());
        };
        let mut all = Vec::new();
        let topic: Arc<str> = format!("file://{}", reading.path.display()).into();
        let producer: Arc<str> = "file".into();
        let name = reading
            .path
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default();
        let end = reading.offset.saturating_add(TAKE_MAX_BYTES as u64);
        while all.len() < max && reading.offset < end {
            let mut line = Vec::new();
            let limited = &mut std::io::Read::take(&mut reading.lines, LINE_BYTES_MAX + 1);
            let count = limited
                .read_until(b'\n', &mut line)
                .map_err(|error| format!("`{}`: {error}", reading.path.display()))?;
            if count as u64 > LINE_BYTES_MAX {
                return Err(format!(
                    "`{}`: a line of more than {LINE_BYTES_MAX} bytes at byte {}",
                    reading.path.display(),
                    reading.offset
                ));
            }
            let whole = line.last() == Some(&b'\n');
            if count == 0 || (!whole && self.settings.follow == Some(true)) {
                // A line that is still being written is read again when it is whole.
                if count > 0 {
                    reading
                        .lines
                        .seek(SeekFrom::Start(reading.offset))
                        .map_err(|error| format!("`{}`: {error}", reading.path.display()))?;
                }
                break;
            }
            reading.offset += count as u64;
            reading.line += 1;
            if whole {
                line.pop();
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
            }
            let message = Message {
                topic: topic.clone(),
                id: format!("{}:{}", reading.path.display(), reading.offset),
                payload: line.into(),
                properties: vec![
                    ("fileName".to_owned(), name.clone()),
                    ("lineNumber".to_owned(), reading.line.to_string()),
                ],
                producer: producer.clone(),
                partition: -1,
                ..Message::default()
            };
            all.push(Incoming {
                message: Arc::new(message),
                origin: Origin::File {
                    file: reading.number,
                    offset: reading.offset,
                },
            });
        }
        Ok(all)
    }
}

impl Source for FileStart {
    fn next(&mut self, max: usize) -> BoxFuture<'_, Result<Vec<Incoming>, String>> {
        Box::pin(async move {
            loop {
                let got = self.read(max)?;
                if !got.is_empty() {
                    return Ok(got);
                }
                if self.settings.path.is_some()
                    && self.settings.follow == Some(true)
                    && self.reading.is_some()
                {
                    tokio::time::sleep(FOLLOW).await;
                    continue;
                }
                if let Some(reading) = self.reading.take() {
                    self.shared.finished(reading.number, reading.offset)?;
                }
                if self.open_next()? {
                    continue;
                }
                if self.looked && self.settings.is_bounded() {
                    return Ok(Vec::new());
                }
                if self.looked {
                    let wait = self.settings.polling_interval.unwrap_or(10_000);
                    tokio::time::sleep(Duration::from_millis(wait)).await;
                }
                self.look()?;
            }
        })
    }

    fn acker(&self) -> Arc<dyn Acker> {
        self.shared.clone()
    }

    fn dead_letter_topic(&self, _message: &Message) -> Option<String> {
        None
    }
}

impl Shared {
    /// A file was read to its end; it is put away once all of it is acknowledged.
    fn finished(&self, number: usize, end: u64) -> Result<(), String> {
        let path = {
            let mut files = self.files.lock();
            files[number].1 = Some(end);
            files[number].0.clone()
        };
        let done = self
            .places
            .lock()
            .files
            .get(&path)
            .map_or(0, |place| place.offset);
        if done >= end {
            self.put_away(&path)?;
        }
        Ok(())
    }

    fn put_away(&self, path: &Path) -> Result<(), String> {
        if self.settings.path.is_some() {
            return Ok(());
        }
        self.places
            .lock()
            .files
            .entry(path.to_path_buf())
            .or_default()
            .done = true;
        let result = if let Some(suffix) = &self.settings.processed_file_suffix {
            let mut renamed = path.as_os_str().to_owned();
            renamed.push(suffix);
            std::fs::rename(path, renamed)
        } else if self.settings.keep_file == Some(true) {
            Ok(())
        } else {
            std::fs::remove_file(path)
        };
        result.map_err(|error| format!("`{}`: {error}", path.display()))
    }

    fn save(&self) -> Result<(), String> {
        let Some(store) = &self.store else {
            return Ok(());
        };
        let bytes = serde_json::to_vec(&*self.places.lock()).map_err(|error| error.to_string())?;
        let next = store.with_extension("next");
        let write = || -> std::io::Result<()> {
            use std::io::Write;
            let mut file = File::create(&next)?;
            file.write_all(&bytes)?;
            file.sync_data()?;
            std::fs::rename(&next, store)
        };
        write().map_err(|error| format!("`{}`: {error}", store.display()))
    }
}

impl Acker for Shared {
    fn ack(&self, origins: Vec<Origin>, _durable: bool) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            // They come in order: the last of each file is how far it is done.
            let mut last: BTreeMap<usize, u64> = BTreeMap::new();
            for origin in origins {
                if let Origin::File { file, offset } = origin {
                    last.insert(file, offset);
                }
            }
            for (number, offset) in last {
                let (path, end) = self.files.lock()[number].clone();
                self.places
                    .lock()
                    .files
                    .entry(path.clone())
                    .or_default()
                    .offset = offset;
                if end.is_some_and(|end| offset >= end) {
                    self.put_away(&path)?;
                }
            }
            self.save()
        })
    }
}

fn list(directory: &Path, settings: &FileSource, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        if hidden && settings.ignore_hidden_files.unwrap_or(true) {
            continue;
        }
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            if settings.recurse.unwrap_or(true) {
                list(&entry.path(), settings, found)?;
            }
            continue;
        }
        let put_away = settings
            .processed_file_suffix
            .as_ref()
            .is_some_and(|suffix| {
                entry
                    .file_name()
                    .to_string_lossy()
                    .ends_with(suffix.as_str())
            });
        let age = metadata
            .modified()
            .ok()
            .and_then(|at| SystemTime::now().duration_since(at).ok())
            .map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        let fits = metadata.len() >= settings.minimum_size.unwrap_or(1)
            && settings
                .maximum_size
                .is_none_or(|max| metadata.len() <= max)
            && age >= settings.minimum_file_age.unwrap_or(0)
            && settings.maximum_file_age.is_none_or(|max| age <= max);
        if metadata.is_file() && fits && !put_away {
            found.push(entry.path());
        }
    }
    Ok(())
}

/// The lines behind `offset`; of a file that shrank, all.
fn count_lines(path: &Path, offset: u64, wanted: &Weak<Shared>) -> std::io::Result<u64> {
    let mut file = File::open(path)?;
    if offset <= file.metadata()?.len() {
        file.seek(SeekFrom::Start(offset))?;
    }
    let mut file = BufReader::with_capacity(256 * 1024, file);
    let (mut count, mut last) = (0, b'\n');
    while wanted.strong_count() > 0 {
        let buffer = file.fill_buf()?;
        let Some(&end) = buffer.last() else { break };
        last = end;
        count += buffer.iter().filter(|&&b| b == b'\n').count() as u64;
        let size = buffer.len();
        file.consume(size);
    }
    Ok(count + u64::from(last != b'\n'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All of the directory was counted on the runtime's thread before its first line.
    #[test]
    fn lines_come_before_they_are_counted() {
        let directory = tempfile::tempdir().unwrap();
        let (read, store) = (
            directory.path().join("in"),
            directory.path().join("places.json"),
        );
        std::fs::create_dir(&read).unwrap();
        std::fs::write(read.join("a"), "1\n2\n3\n").unwrap();
        std::fs::write(read.join("b"), "4\n5").unwrap();
        let mut places = Places::default();
        let done = Place {
            offset: 2,
            done: false,
        };
        places.files.insert(read.join("a"), done);
        std::fs::write(&store, serde_json::to_vec(&places).unwrap()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let settings = FileSource {
            input_directory: Some(read.display().to_string()),
            follow: Some(false),
            ..FileSource::default()
        };
        runtime.block_on(async {
            // Nothing else is counted while this has the only thread.
            let (go, gone) = std::sync::mpsc::channel::<()>();
            tokio::task::spawn_blocking(move || gone.recv());
            let gauge = Arc::new(Gauge::default());
            let mut source = FileStart::open(settings, Some(store), gauge.clone()).unwrap();
            let mut lines = Vec::new();
            loop {
                let got = source.next(10).await.unwrap();
                if got.is_empty() {
                    break;
                }
                lines.extend(got.into_iter().map(|it| it.message.payload.clone()));
            }
            assert_eq!(lines, ["2", "3", "4", "5"]);
            let counted = || gauge.total.load(Ordering::Relaxed);
            assert_eq!(counted(), 0);
            go.send(()).unwrap();
            let until = std::time::Instant::now() + Duration::from_secs(10);
            while counted() != 4 {
                assert!(std::time::Instant::now() < until, "{}", counted());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    }
}
