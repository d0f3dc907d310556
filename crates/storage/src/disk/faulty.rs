//! A disk in memory that fails on demand: for the random crash tests here and in `testkit`.
//!
//! It models power loss at the granularity of a sector. A write that was not synced may be there,
//! not there, or there in part, in any order with other unsynced writes; names created, renamed or
//! removed since the last `sync_dir` survive up to some point in their order. Every choice comes
//! from the seed. [`FaultyDisk::power_off`] ends the life of a disk: from then on each operation
//! fails, and [`FaultyDisk::after_crash`] gives the disk that the next process finds.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use geminga_stdx::Random;
use parking_lot::Mutex;

use super::{Disk, DiskFile, Open};

/// What a disk promises to write as one.
const SECTOR_BYTES: usize = 512;

/// What is to go wrong. Counters count from now and are spent when they reach zero.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Power goes off during the write after this many writes: it is torn.
    pub power_off_after_writes: Option<u64>,
    /// The write after this many writes fails, and leaves some of its sectors.
    pub fail_write_after: Option<u64>,
    /// The sync after this many syncs fails; what it covered may be lost.
    pub fail_sync_after: Option<u64>,
    /// The size of the disk: writes that would grow past it fail with `StorageFull`.
    pub capacity_bytes: Option<u64>,
    /// How long each write and each sync takes.
    pub latency: Duration,
    /// The file system has no direct I/O: log files need `sync`.
    pub no_direct: bool,
}

#[derive(Clone, Debug)]
pub struct FaultyDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    random: Random,
    faults: Faults,
    off: bool,
    /// The directory as it is seen, as it is on the medium, and what changed in between.
    names: BTreeMap<String, usize>,
    names_durable: BTreeMap<String, usize>,
    changes: Vec<NameChange>,
    files: Vec<FileState>,
}

#[derive(Clone, Debug)]
enum NameChange {
    Set { name: String, file: usize },
    Rename { from: String, to: String },
    Remove { name: String },
}

#[derive(Clone, Debug, Default)]
struct FileState {
    seen: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<(u64, Vec<u8>)>,
}

impl FaultyDisk {
    pub fn new(seed: u64) -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                random: Random::new(seed),
                faults: Faults::default(),
                off: false,
                names: BTreeMap::new(),
                names_durable: BTreeMap::new(),
                changes: Vec::new(),
                files: Vec::new(),
            })),
        }
    }

    pub fn set_faults(&self, faults: Faults) {
        self.state.lock().faults = faults;
    }

    pub fn power_off(&self) {
        self.state.lock().off = true;
    }

    pub fn is_off(&self) -> bool {
        self.state.lock().off
    }

    /// What is on the medium after a power loss now. The old disk is off.
    pub fn after_crash(&self) -> FaultyDisk {
        let mut state = self.state.lock();
        state.off = true;
        let mut names = state.names_durable.clone();
        let changes = state.changes.len() as u64;
        let kept = state.random.below(changes + 1) as usize;
        for change in &state.changes[..kept] {
            change.apply(&mut names);
        }
        let mut files = std::mem::take(&mut state.files);
        for file in &mut files {
            // Writes to one sector land in order or not at all; across sectors anything goes.
            for (offset, data) in std::mem::take(&mut file.unsynced) {
                keep_some_sectors(&mut state.random, &mut file.durable, offset, &data);
            }
            file.seen = file.durable.clone();
        }
        let seed = state.random.next_u64();
        Self::restarted(seed, names, files)
    }

    /// What the next process finds after `kill -9`: all that was written, synced or not.
    pub fn after_kill(&self) -> FaultyDisk {
        let mut state = self.state.lock();
        state.off = true;
        let seed = state.random.next_u64();
        let disk = Self::restarted(seed, state.names.clone(), std::mem::take(&mut state.files));
        {
            let mut next = disk.state.lock();
            next.names_durable = std::mem::take(&mut state.names_durable);
            next.changes = std::mem::take(&mut state.changes);
        }
        disk
    }

    fn restarted(seed: u64, names: BTreeMap<String, usize>, files: Vec<FileState>) -> Self {
        let disk = Self::new(seed);
        {
            let mut next = disk.state.lock();
            next.names = names.clone();
            next.names_durable = names;
            next.files = files;
        }
        disk
    }

    /// Flips one bit of what is stored, as a decaying medium does.
    pub fn flip_bit(&self, name: &str, offset: u64, bit: u8) {
        let mut state = self.state.lock();
        let Some(&file) = state.names.get(name) else {
            return;
        };
        let file = &mut state.files[file];
        for image in [&mut file.seen, &mut file.durable] {
            if let Some(byte) = image.get_mut(offset as usize) {
                *byte ^= 1 << (bit % 8);
            }
        }
    }

    /// A file's content as it is seen now.
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.state.lock();
        state
            .names
            .get(name)
            .map(|file| state.files[*file].seen.clone())
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            Self::Set { name, file } => {
                names.insert(name.clone(), *file);
            }
            Self::Rename { from, to } => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
            Self::Remove { name } => {
                names.remove(name);
            }
        }
    }
}

fn put(image: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let (start, end) = (offset as usize, offset as usize + data.len());
    if image.len() < end {
        image.resize(end, 0);
    }
    image[start..end].copy_from_slice(data);
}

/// All, none, a prefix, or any sectors of a write.
fn keep_some_sectors(random: &mut Random, image: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let manner = random.below(4);
    let cut = random.below(data.len() as u64 / SECTOR_BYTES as u64 + 1) as usize;
    let mut at = 0;
    let mut sector = 0;
    while at < data.len() {
        let to_boundary = SECTOR_BYTES - (offset as usize + at) % SECTOR_BYTES;
        let end = data.len().min(at + to_boundary);
        let kept = match manner {
            0 => true,
            1 => false,
            2 => sector < cut,
            _ => random.below(2) == 0,
        };
        if kept {
            put(image, offset + at as u64, &data[at..end]);
        }
        at = end;
        sector += 1;
    }
}

fn spend(counter: &mut Option<u64>) -> bool {
    match counter {
        Some(0) => {
            *counter = None;
            true
        }
        Some(left) => {
            *left -= 1;
            false
        }
        None => false,
    }
}

fn power_is_off() -> io::Error {
    io::Error::other("the power is off")
}

impl State {
    fn powered(&self) -> io::Result<()> {
        if self.off {
            Err(power_is_off())
        } else {
            Ok(())
        }
    }

    fn file(&self, name: &str) -> io::Result<usize> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("no file `{name}`"));
        self.names.get(name).copied().ok_or_else(missing)
    }

    fn change(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.changes.push(change);
    }

    fn used_bytes(&self) -> u64 {
        self.names
            .values()
            .map(|file| self.files[*file].seen.len() as u64)
            .sum()
    }
}

impl Disk for FaultyDisk {
    fn open(&self, name: &str, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        state.powered()?;
        let file = match how {
            Open::Create => {
                let file = state.files.len();
                state.files.push(FileState::default());
                state.change(NameChange::Set {
                    name: name.to_owned(),
                    file,
                });
                file
            }
            Open::Read | Open::Log { .. } => state.file(name)?,
        };
        let direct = how == Open::Log { durable: true } && !state.faults.no_direct;
        Ok(Arc::new(FaultyFile {
            state: self.state.clone(),
            file,
            direct,
        }))
    }

    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let state = self.state.lock();
        state.powered()?;
        let len = |file: &usize| state.files[*file].seen.len() as u64;
        Ok(state
            .names
            .iter()
            .map(|(name, file)| (name.clone(), len(file)))
            .collect())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        state.powered()?;
        state.file(from)?;
        state.change(NameChange::Rename {
            from: from.to_owned(),
            to: to.to_owned(),
        });
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        state.powered()?;
        state.file(name)?;
        state.change(NameChange::Remove {
            name: name.to_owned(),
        });
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        state.powered()?;
        state.changes.clear();
        state.names_durable = state.names.clone();
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let state = self.state.lock();
        state.powered()?;
        let capacity = state.faults.capacity_bytes.unwrap_or(1 << 50);
        Ok(capacity.saturating_sub(state.used_bytes()))
    }

    fn describe(&self, name: &str) -> String {
        format!("memory:{name}")
    }
}

#[derive(Debug)]
struct FaultyFile {
    state: Arc<Mutex<State>>,
    file: usize,
    direct: bool,
}

impl DiskFile for FaultyFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.state.lock();
        state.powered()?;
        let Some(file) = state.files.get(self.file) else {
            return Err(power_is_off());
        };
        let end = offset.saturating_add(buf.len() as u64);
        if end > file.seen.len() as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buf.copy_from_slice(&file.seen[offset as usize..end as usize]);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let latency = self.state.lock().faults.latency;
        if !latency.is_zero() {
            std::thread::sleep(latency);
        }
        let mut guard = self.state.lock();
        let state = &mut *guard;
        state.powered()?;
        let grows = {
            let end = offset + buf.len() as u64;
            end.saturating_sub(state.files[self.file].seen.len() as u64)
        };
        let capacity = state.faults.capacity_bytes.unwrap_or(u64::MAX);
        if grows > 0 && state.used_bytes() + grows > capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let power_off = spend(&mut state.faults.power_off_after_writes);
        let failed = spend(&mut state.faults.fail_write_after);
        let file = &mut state.files[self.file];
        put(&mut file.seen, offset, buf);
        if self.direct && !power_off && !failed {
            // An older unsynced write may not land on top of this one later.
            let end = offset + buf.len() as u64;
            let overlaps =
                |(at, data): &(u64, Vec<u8>)| *at < end && offset < at + data.len() as u64;
            if file.unsynced.iter().any(overlaps) {
                for (at, data) in std::mem::take(&mut file.unsynced) {
                    put(&mut file.durable, at, &data);
                }
            }
            put(&mut file.durable, offset, buf);
        } else {
            file.unsynced.push((offset, buf.to_vec()));
        }
        if power_off {
            state.off = true;
            return Err(power_is_off());
        }
        if failed {
            return Err(io::Error::other("injected write error"));
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        state.powered()?;
        let failed = spend(&mut state.faults.fail_sync_after);
        let file = &mut state.files[self.file];
        let unsynced = std::mem::take(&mut file.unsynced);
        if failed {
            // As Linux does: the pages count as clean, and are perhaps not on the medium.
            for (offset, data) in unsynced {
                keep_some_sectors(&mut state.random, &mut file.durable, offset, &data);
            }
            return Err(io::Error::other("injected sync error"));
        }
        for (offset, data) in unsynced {
            put(&mut file.durable, offset, &data);
        }
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        let state = self.state.lock();
        state.powered()?;
        let Some(file) = state.files.get(self.file) else {
            return Err(power_is_off());
        };
        Ok(file.seen.len() as u64)
    }

    fn syncs_itself(&self) -> bool {
        self.direct
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_synced_survives_and_what_is_not_may_tear() {
        let mut torn = 0;
        for seed in 0..200 {
            let disk = FaultyDisk::new(seed);
            let file = disk.open("a", Open::Create).unwrap();
            file.write_at(&[1; 4096], 0).unwrap();
            file.sync().unwrap();
            disk.sync_dir().unwrap();
            file.write_at(&[2; 4096], 0).unwrap();
            let found = disk.after_crash().content("a").unwrap();
            assert!(file.write_at(&[3; 512], 0).is_err());
            for sector in found.chunks(SECTOR_BYTES) {
                assert!(
                    sector
                        .iter()
                        .all(|byte| *byte == sector[0] && matches!(byte, 1 | 2))
                );
            }
            torn += u32::from(found.contains(&1) && found.contains(&2));
        }
        assert!(torn > 20, "{torn} of 200 were torn");
    }

    #[test]
    fn names_need_a_directory_sync() {
        let survivors = (0..100).filter(|seed| {
            let disk = FaultyDisk::new(*seed);
            disk.open("a", Open::Create).unwrap();
            disk.after_crash().content("a").is_some()
        });
        let survivors = survivors.count();
        assert!((10..90).contains(&survivors), "{survivors}");
    }

    #[test]
    fn a_direct_write_is_durable_when_it_returns_and_a_killed_process_loses_nothing() {
        let disk = FaultyDisk::new(7);
        disk.open("log", Open::Create).unwrap();
        disk.sync_dir().unwrap();
        let log = disk.open("log", Open::Log { durable: true }).unwrap();
        log.write_at(&[5; 4096], 0).unwrap();
        let disk = disk.after_kill();
        disk.open("later", Open::Create)
            .unwrap()
            .write_at(&[1], 0)
            .unwrap();
        let disk = disk.after_kill();
        assert_eq!(disk.content("later").unwrap(), [1]);
        assert_eq!(disk.after_crash().content("log").unwrap(), [5; 4096]);
    }

    #[test]
    fn a_full_disk_and_failing_calls_say_so() {
        let disk = FaultyDisk::new(1);
        disk.set_faults(Faults {
            capacity_bytes: Some(1000),
            fail_write_after: Some(1),
            fail_sync_after: Some(0),
            ..Faults::default()
        });
        let file = disk.open("a", Open::Create).unwrap();
        file.write_at(&[0; 900], 0).unwrap();
        assert_eq!(disk.free_bytes().unwrap(), 100);
        let full = file.write_at(&[0; 101], 900).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        assert!(file.write_at(&[0; 10], 0).is_err());
        file.write_at(&[0; 10], 0).unwrap();
        assert!(file.sync().is_err());
        file.sync().unwrap();
    }
}
