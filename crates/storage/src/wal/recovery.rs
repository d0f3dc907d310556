//! Reads a log segment back after a crash.
//!
//! Only the last write can be torn, since one write is in flight at a time. So a commit that does
//! not verify ends the log if no later commit follows it, and is damage if one does: that is an
//! error with the file and the offset, or, for a repair, a loss that is written down.

use std::borrow::Cow;
use std::io;

use super::log_segment::{LogSegment, SEGMENT_START};
use super::record::{
    self, BODY_BYTES_MAX, COMMIT_HEADER_BYTES, CommitHeader, RecordError, RecordHeader,
};
use crate::StoreError;
use crate::disk::{Disk, DiskFile};

const WINDOW_BYTES: usize = 1 << 20;
/// A commit behind a torn one begins no further away than a commit is long.
const SEARCH_BYTES: u64 = BODY_BYTES_MAX as u64 + (2 << 20);

/// A verified record and where it is.
#[derive(Debug)]
pub struct Replayed<'a> {
    pub number: u64,
    pub header: RecordHeader,
    pub body: &'a [u8],
    pub offset: u64,
}

/// Where the log continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct LogEnd {
    pub next_commit: u64,
    pub next_record: u64,
}

/// A part of a file that could not be read, and what it held as far as is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    pub file: String,
    pub offset: u64,
    pub what: String,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// After the last good commit.
    pub end: u64,
    /// `None` if the segment holds no commit.
    pub log_end: Option<LogEnd>,
    pub commits: u64,
    pub records: u64,
    /// A last commit was begun and is not whole.
    pub torn: bool,
}

/// Reads `segment` from its start. `expected` is where the segment before it ended; `None`: any
/// number may be the first. With `losses`, damage is noted there and reading goes on behind it.
pub fn scan(
    disk: &dyn Disk,
    segment: &LogSegment,
    expected: Option<LogEnd>,
    losses: Option<&mut Vec<Loss>>,
    sink: &mut dyn FnMut(Replayed<'_>) -> Result<(), StoreError>,
) -> Result<Scan, StoreError> {
    let window = Window::new(segment.file.as_ref(), segment.size);
    scan_window(disk, segment, window, expected, losses, sink)
}

/// The same for a segment that is in memory from [`SEGMENT_START`] to the end of its commits.
pub fn scan_loaded(
    disk: &dyn Disk,
    segment: &LogSegment,
    content: &[u8],
    sink: &mut dyn FnMut(Replayed<'_>) -> Result<(), StoreError>,
) -> Result<Scan, StoreError> {
    let window = Window {
        file: segment.file.as_ref(),
        size: SEGMENT_START + content.len() as u64,
        start: SEGMENT_START,
        bytes: Cow::Borrowed(content),
    };
    scan_window(disk, segment, window, None, None, sink)
}

fn scan_window(
    disk: &dyn Disk,
    segment: &LogSegment,
    mut window: Window<'_>,
    expected: Option<LogEnd>,
    mut losses: Option<&mut Vec<Loss>>,
    sink: &mut dyn FnMut(Replayed<'_>) -> Result<(), StoreError>,
) -> Result<Scan, StoreError> {
    let read_failed = |error| {
        StoreError::io(
            format!("cannot read `{}`", disk.describe(&segment.name)),
            error,
        )
    };
    let mut result = Scan {
        end: SEGMENT_START,
        ..Scan::default()
    };
    let mut expected = expected;
    let mut at = SEGMENT_START;
    loop {
        let stop = match verify_commit(&mut window, segment, at).map_err(read_failed)? {
            Ok(header) => {
                let end = LogEnd {
                    next_commit: header.commit + 1,
                    next_record: header.first_record + u64::from(header.records),
                };
                let continues = expected.is_none_or(|expected| {
                    expected.next_commit == header.commit
                        && expected.next_record == header.first_record
                });
                if !continues && losses.is_none() {
                    let wanted = expected.map_or(0, |expected| expected.next_commit);
                    let what = format!("commit {} follows where {wanted} is due", header.commit);
                    return Err(damage(disk, segment, at, what));
                }
                let bytes = window.get(at, header.span as usize).map_err(read_failed)?;
                for replayed in records(bytes, segment, at, &header) {
                    sink(replayed)?;
                }
                expected = Some(end);
                result.log_end = expected;
                result.commits += 1;
                result.records += u64::from(header.records);
                at += u64::from(header.span);
                result.end = at;
                continue;
            }
            Err(stop) => stop,
        };
        let next = expected.map_or(0, |expected| expected.next_commit);
        let later = find_commit(&mut window, segment, at + 8, next).map_err(read_failed)?;
        let Some((later_at, later_header)) = later else {
            result.torn = stop.torn;
            return Ok(result);
        };
        let what = format!(
            "{}, and commit {} follows at {later_at}",
            stop.what, later_header.commit
        );
        match &mut losses {
            None => return Err(damage(disk, segment, stop.offset, what)),
            Some(losses) => losses.push(Loss {
                file: disk.describe(&segment.name),
                offset: stop.offset,
                what,
            }),
        }
        at = later_at;
        expected = None;
    }
}

pub fn damage(disk: &dyn Disk, segment: &LogSegment, offset: u64, what: String) -> StoreError {
    StoreError::Corrupt {
        path: disk.describe(&segment.name).into(),
        offset,
        what: what.into(),
    }
}

struct Stop {
    offset: u64,
    what: String,
    torn: bool,
}

/// Checks a commit with all its records.
fn verify_commit(
    window: &mut Window<'_>,
    segment: &LogSegment,
    at: u64,
) -> io::Result<Result<CommitHeader, Stop>> {
    if at + COMMIT_HEADER_BYTES as u64 > window.size {
        return Ok(Err(Stop {
            offset: at,
            what: "the file ends".into(),
            torn: false,
        }));
    }
    let header = match CommitHeader::parse(window.get(at, COMMIT_HEADER_BYTES)?, segment.salt, at) {
        Ok(header) if at + u64::from(header.span) <= window.size => header,
        Ok(_) => return Ok(Err(Stop::commit(at, RecordError::Fields, true))),
        Err(error) => return Ok(Err(Stop::commit(at, error, false))),
    };
    let bytes = window.get(at, header.span as usize)?;
    let mut inside = COMMIT_HEADER_BYTES;
    let end = COMMIT_HEADER_BYTES + header.body_bytes as usize;
    for _ in 0..header.records {
        let offset = at + inside as u64;
        match record::parse(&bytes[inside..end], segment.salt, offset) {
            Ok((record, _)) => inside += record.record_bytes(),
            Err(error) => {
                let what = format!("a record cannot be read: {error}");
                return Ok(Err(Stop {
                    offset,
                    what,
                    torn: true,
                }));
            }
        }
    }
    if inside != end {
        return Ok(Err(Stop::commit(at, RecordError::Fields, true)));
    }
    Ok(Ok(header))
}

impl Stop {
    fn commit(offset: u64, error: RecordError, torn: bool) -> Self {
        Self {
            offset,
            what: format!("a commit cannot be read: {error}"),
            torn,
        }
    }
}

/// The records of a commit that was verified.
fn records<'a>(
    bytes: &'a [u8],
    segment: &LogSegment,
    at: u64,
    header: &CommitHeader,
) -> impl Iterator<Item = Replayed<'a>> {
    let salt = segment.salt;
    let mut inside = COMMIT_HEADER_BYTES;
    let first = header.first_record;
    (0..u64::from(header.records)).map_while(move |index| {
        let offset = at + inside as u64;
        let header = record::parse_header(&bytes[inside..], salt, offset).ok()?;
        let body = &bytes[inside + record::RECORD_HEADER_BYTES..inside + header.record_bytes()];
        inside += header.record_bytes();
        Some(Replayed {
            number: first + index,
            header,
            body,
            offset,
        })
    })
}

/// The first commit header numbered `least` or above from `from` on, as far as one can be.
fn find_commit(
    window: &mut Window<'_>,
    segment: &LogSegment,
    from: u64,
    least: u64,
) -> io::Result<Option<(u64, CommitHeader)>> {
    let end = window.size.min(from + SEARCH_BYTES);
    let mut at = from.next_multiple_of(8);
    while at + COMMIT_HEADER_BYTES as u64 <= end {
        let bytes = (end - at).min(WINDOW_BYTES as u64) as usize;
        let chunk = window.get(at, bytes)?;
        let places = (chunk.len() - COMMIT_HEADER_BYTES) / 8 + 1;
        for place in 0..places {
            let candidate = &chunk[place * 8..];
            if !CommitHeader::has_magic(candidate) {
                continue;
            }
            let offset = at + place as u64 * 8;
            match CommitHeader::parse(candidate, segment.salt, offset) {
                Ok(header) if header.commit >= least => return Ok(Some((offset, header))),
                _ => {}
            }
        }
        at += places as u64 * 8;
    }
    Ok(None)
}

/// A file read in large pieces.
struct Window<'a> {
    file: &'a dyn DiskFile,
    size: u64,
    start: u64,
    bytes: Cow<'a, [u8]>,
}

impl<'a> Window<'a> {
    fn new(file: &'a dyn DiskFile, size: u64) -> Self {
        Self {
            file,
            size,
            start: 0,
            bytes: Cow::default(),
        }
    }

    /// The caller has checked that the range is within the file.
    fn get(&mut self, at: u64, bytes: usize) -> io::Result<&[u8]> {
        let end = self.start + self.bytes.len() as u64;
        if at < self.start || at + bytes as u64 > end {
            let wanted = (bytes as u64).max((WINDOW_BYTES as u64).min(self.size - at));
            let bytes = self.bytes.to_mut();
            bytes.resize(wanted as usize, 0);
            self.start = at;
            if let Err(error) = self.file.read_at(bytes, at) {
                bytes.clear();
                return Err(error);
            }
        }
        let inside = (at - self.start) as usize;
        Ok(&self.bytes[inside..inside + bytes])
    }
}
