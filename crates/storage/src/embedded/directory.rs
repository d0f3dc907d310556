//! The data directory as a whole: who has it open, and which format it is in.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use rustix::fs::FlockOperation;

use crate::StoreError;
use crate::disk::{Disk, Open};

pub(super) const FORMAT_FILE: &str = "FORMAT";
const LOCK_FILE: &str = "LOCK";
const FORMAT_VERSION: u32 = 1;
const FORMAT_PREFIX: &str = "geminga storage format ";

/// Held while the store is open; the kernel lets go of it when the process ends, however it ends.
pub(super) struct DirectoryLock {
    file: File,
}

impl DirectoryLock {
    pub(super) fn take(dir: &Path) -> Result<Self, StoreError> {
        let shown = dir.display();
        match std::fs::create_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(refuse(format!(
                    "cannot create the data directory `{shown}`: {error}"
                )));
            }
            _ => {}
        }
        let file = open_lock(dir).map_err(|error| {
            refuse(format!(
                "cannot write to the data directory `{shown}`: {error}"
            ))
        })?;
        let mut held = Self::hold(file, dir)?;
        // Only for the message of who comes second: a failure takes nothing from the lock.
        let _ = held.file.set_len(0);
        let _ = held.file.rewind();
        let _ = writeln!(held.file, "{}", std::process::id());
        Ok(held)
    }

    /// For reading alone: of a directory that must exist, on a file system that may be read-only.
    pub(super) fn take_existing(dir: &Path) -> Result<Self, StoreError> {
        let shown = dir.display();
        if !dir.is_dir() {
            return Err(refuse(format!("there is no data directory `{shown}`")));
        }
        let file = open_lock(dir)
            .or_else(|_| File::open(dir))
            .map_err(|error| {
                refuse(format!("cannot read the data directory `{shown}`: {error}"))
            })?;
        Self::hold(file, dir)
    }

    fn hold(mut file: File, dir: &Path) -> Result<Self, StoreError> {
        let shown = dir.display();
        if let Err(errno) = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            let mut holder = String::new();
            // The holder writes its id a moment after it has the lock.
            let _ = file.read_to_string(&mut holder);
            if errno != rustix::io::Errno::WOULDBLOCK {
                return Err(refuse(format!(
                    "cannot lock the data directory `{shown}`: {errno}"
                )));
            }
            let reason = match holder.trim() {
                "" => format!("the data directory `{shown}` is in use by another process"),
                pid => format!("the data directory `{shown}` is in use by process {pid}"),
            };
            let reason = reason.into();
            return Err(StoreError::Locked { reason });
        }
        Ok(Self { file })
    }
}

fn open_lock(dir: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    options.open(dir.join(LOCK_FILE))
}

fn refuse(reason: String) -> StoreError {
    StoreError::CannotOpen {
        reason: reason.into(),
    }
}

/// Checks the format, or writes it into a new directory. True: the directory is new.
pub(super) fn check_format(disk: &dyn Disk, names: &[(String, u64)]) -> Result<bool, StoreError> {
    let is_old = names
        .iter()
        .any(|(name, _)| name.starts_with("checkpoint-"));
    match read_format(disk, names)? {
        Some(()) => Ok(false),
        None if is_old => Err(refuse(format!(
            "`{}` is missing or damaged",
            disk.describe(FORMAT_FILE)
        ))),
        // New, or its creator died before it was whole.
        None => write_format(disk).map(|()| true),
    }
}

/// Whether there is anything that this version could read: the format file may be what is damaged.
pub(super) fn is_store(disk: &dyn Disk, names: &[(String, u64)]) -> Result<(), StoreError> {
    let ours = |name: &str| {
        ["log-", "seg-", "checkpoint-"]
            .iter()
            .any(|it| name.starts_with(it))
    };
    if read_format(disk, names)?.is_none() && !names.iter().any(|(name, _)| ours(name)) {
        let place = disk.describe("");
        return Err(refuse(format!(
            "`{place}` is not a data directory of Geminga"
        )));
    }
    Ok(())
}

/// None: there is no format file, or it cannot be understood.
fn read_format(disk: &dyn Disk, names: &[(String, u64)]) -> Result<Option<()>, StoreError> {
    let place = disk.describe(FORMAT_FILE);
    let size = names
        .iter()
        .find(|(name, _)| name == FORMAT_FILE)
        .map(|(_, size)| *size);
    let read_failed = |error| StoreError::io(format!("cannot read `{place}`"), error);
    let mut text = vec![0; size.unwrap_or(0).min(64) as usize];
    if !text.is_empty() {
        let file = disk.open(FORMAT_FILE, Open::Read).map_err(read_failed)?;
        file.read_at(&mut text, 0).map_err(read_failed)?;
    }
    let text = String::from_utf8_lossy(&text);
    let version = text
        .strip_prefix(FORMAT_PREFIX)
        .and_then(|rest| rest.trim().parse().ok());
    match version {
        Some(FORMAT_VERSION) => Ok(Some(())),
        Some(newer) if newer > FORMAT_VERSION => Err(StoreError::NewerFormat {
            reason: format!(
                "`{place}` says format {newer}, this version of Geminga reads up to {FORMAT_VERSION}: use a newer Geminga"
            )
            .into(),
        }),
        _ => Ok(None),
    }
}

fn write_format(disk: &dyn Disk) -> Result<(), StoreError> {
    let text = format!("{FORMAT_PREFIX}{FORMAT_VERSION}\n");
    let write = || {
        let file = disk.open(FORMAT_FILE, Open::Create)?;
        file.write_at(text.as_bytes(), 0)?;
        file.sync()
    };
    write().map_err(|error| match error.kind() {
        io::ErrorKind::StorageFull => StoreError::Full,
        _ => refuse(format!(
            "cannot write `{}`: {error}",
            disk.describe(FORMAT_FILE)
        )),
    })
}
