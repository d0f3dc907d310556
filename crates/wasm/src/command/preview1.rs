//! WASI preview 1, as much of it as a function has: its arguments and environment, clocks, randomness, four
//! descriptors, and waiting on them. Every call on a file or a socket says that there is none.
//!
//! Everything that comes from the guest is an address and a length in its own memory, and is checked there;
//! an address outside is `EFAULT`. Calls that may wait give the thread up meanwhile.

use std::io::Read;
use std::task::Poll;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use wasmtime::{Caller, Error, Linker, Memory, Result};

use super::{State, WIRE};
use crate::pipe::{Pipe, ROOM_BYTES};

const MODULE: &str = "wasi_snapshot_preview1";

const OK: i32 = 0;
const EAGAIN: i32 = 6;
const EBADF: i32 = 8;
const EFAULT: i32 = 21;
const EINVAL: i32 = 28;
const EIO: i32 = 29;
const ENOSYS: i32 = 52;
const ENOTSUP: i32 = 58;
const EPIPE: i32 = 64;
const ESPIPE: i32 = 70;

const CHARACTER_DEVICE: u8 = 2;
const SOCKET_STREAM: u8 = 6;
const NONBLOCK: u16 = 4;
/// Rights of a stream: read, set flags, write, poll.
const RIGHTS: u64 = (1 << 1) | (1 << 3) | (1 << 6) | (1 << 27);
/// Pieces of one read or write, and descriptors of one wait.
const PIECES_MAX: u32 = 1024;
/// Random bytes of one call.
const RANDOM_MAX: u32 = 1 << 20;

const CLOCK: u8 = 0;
const READ: u8 = 1;
const WRITE: u8 = 2;
const SUBSCRIPTION_BYTES: u32 = 48;
const EVENT_BYTES: u32 = 32;

/// A call's result: its errno.
type Errno = std::result::Result<(), i32>;

fn errno(result: Errno) -> i32 {
    result.err().unwrap_or(OK)
}

/// The guest's memory, for as long as a call does not wait.
fn memory(caller: &mut Caller<'_, State>) -> std::result::Result<Memory, i32> {
    if let Some(memory) = caller.data().memory {
        return Ok(memory);
    }
    // A start function may call before the instance is known.
    let exported = caller.get_export("memory").and_then(|it| it.into_memory());
    exported.ok_or(EFAULT)
}

fn slice(bytes: &[u8], at: u32, count: u32) -> std::result::Result<&[u8], i32> {
    let at = at as usize;
    let end = at.checked_add(count as usize).ok_or(EFAULT)?;
    bytes.get(at..end).ok_or(EFAULT)
}

fn slice_mut(bytes: &mut [u8], at: u32, count: u32) -> std::result::Result<&mut [u8], i32> {
    let at = at as usize;
    let end = at.checked_add(count as usize).ok_or(EFAULT)?;
    bytes.get_mut(at..end).ok_or(EFAULT)
}

fn put(bytes: &mut [u8], at: u32, value: &[u8]) -> Errno {
    let count = u32::try_from(value.len()).map_err(|_| EFAULT)?;
    slice_mut(bytes, at, count)?.copy_from_slice(value);
    Ok(())
}

fn get_u32(bytes: &[u8], at: u32) -> std::result::Result<u32, i32> {
    let mut four = [0; 4];
    four.copy_from_slice(slice(bytes, at, 4)?);
    Ok(u32::from_le_bytes(four))
}

fn get_u64(bytes: &[u8], at: u32) -> std::result::Result<u64, i32> {
    let mut eight = [0; 8];
    eight.copy_from_slice(slice(bytes, at, 8)?);
    Ok(u64::from_le_bytes(eight))
}

/// Adds every function that preview 1 has.
pub(super) fn add(linker: &mut Linker<State>) -> Result<()> {
    strings(linker)?;
    clocks(linker)?;
    descriptors(linker)?;
    reading(linker)?;
    waiting(linker)?;
    files(linker)
}

fn strings(linker: &mut Linker<State>) -> Result<()> {
    fn sizes(caller: &mut Caller<'_, State>, of: &str, count: u32, size: u32) -> Errno {
        let memory = memory(caller)?;
        let (bytes, state) = memory.data_and_store_mut(caller);
        let texts = list(state, of);
        let total: usize = texts.iter().map(Vec::len).sum();
        put(bytes, count, &(texts.len() as u32).to_le_bytes())?;
        put(bytes, size, &(total as u32).to_le_bytes())
    }
    fn texts(caller: &mut Caller<'_, State>, of: &str, table: u32, buffer: u32) -> Errno {
        let memory = memory(caller)?;
        let (bytes, state) = memory.data_and_store_mut(caller);
        let mut at = buffer;
        for (index, text) in list(state, of).iter().enumerate() {
            let entry = table.checked_add(index as u32 * 4).ok_or(EFAULT)?;
            put(bytes, entry, &at.to_le_bytes())?;
            put(bytes, at, text)?;
            at = at.checked_add(text.len() as u32).ok_or(EFAULT)?;
        }
        Ok(())
    }
    fn list<'a>(state: &'a State, of: &str) -> &'a [Vec<u8>] {
        if of == "args" {
            &state.arguments
        } else {
            &state.environment
        }
    }
    for of in ["args", "environ"] {
        linker.func_wrap(
            MODULE,
            &format!("{of}_sizes_get"),
            move |mut caller: Caller<'_, State>, count: u32, size: u32| {
                errno(sizes(&mut caller, of, count, size))
            },
        )?;
        linker.func_wrap(
            MODULE,
            &format!("{of}_get"),
            move |mut caller: Caller<'_, State>, table: u32, buffer: u32| {
                errno(texts(&mut caller, of, table, buffer))
            },
        )?;
    }
    Ok(())
}

/// Nanoseconds of a clock: 0 is the time of day, 1 counts from the start.
fn now(state: &State, clock: u32) -> std::result::Result<u64, i32> {
    let elapsed = match clock {
        0 => SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default(),
        1 => state.started.elapsed(),
        _ => return Err(EINVAL),
    };
    Ok(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
}

fn clocks(linker: &mut Linker<State>) -> Result<()> {
    linker.func_wrap(
        MODULE,
        "clock_time_get",
        |mut caller: Caller<'_, State>, clock: u32, _precision: u64, at: u32| {
            errno((|| {
                let time = now(caller.data(), clock)?;
                let memory = memory(&mut caller)?;
                put(memory.data_mut(&mut caller), at, &time.to_le_bytes())
            })())
        },
    )?;
    linker.func_wrap(
        MODULE,
        "clock_res_get",
        |mut caller: Caller<'_, State>, clock: u32, at: u32| {
            errno((|| {
                now(caller.data(), clock)?;
                let memory = memory(&mut caller)?;
                put(memory.data_mut(&mut caller), at, &1_u64.to_le_bytes())
            })())
        },
    )?;
    linker.func_wrap(
        MODULE,
        "random_get",
        |mut caller: Caller<'_, State>, at: u32, count: u32| {
            errno((|| {
                if count > RANDOM_MAX {
                    return Err(EINVAL);
                }
                let memory = memory(&mut caller)?;
                let into = slice_mut(memory.data_mut(&mut caller), at, count)?;
                std::fs::File::open("/dev/urandom")
                    .and_then(|mut source| source.read_exact(into))
                    .map_err(|_| EIO)
            })())
        },
    )?;
    linker.func_wrap(
        MODULE,
        "proc_exit",
        |mut caller: Caller<'_, State>, code: i32| -> Result<()> {
            caller.data_mut().exit = Some(code);
            Err(Error::msg("it ended itself"))
        },
    )?;
    linker.func_wrap(MODULE, "proc_raise", |_signal: i32| ENOSYS)?;
    linker.func_wrap_async(MODULE, "sched_yield", |_: Caller<'_, State>, ()| {
        Box::new(async {
            tokio::task::yield_now().await;
            OK
        })
    })?;
    Ok(())
}

fn descriptors(linker: &mut Linker<State>) -> Result<()> {
    linker.func_wrap(
        MODULE,
        "fd_fdstat_get",
        |mut caller: Caller<'_, State>, fd: i32, at: u32| {
            errno((|| {
                let (kind, flags) = match fd {
                    0..=2 => (CHARACTER_DEVICE, 0),
                    WIRE if caller.data().nonblocking => (SOCKET_STREAM, NONBLOCK),
                    WIRE => (SOCKET_STREAM, 0),
                    _ => return Err(EBADF),
                };
                let mut stat = [0; 24];
                stat[0] = kind;
                stat[2..4].copy_from_slice(&flags.to_le_bytes());
                stat[8..16].copy_from_slice(&RIGHTS.to_le_bytes());
                let memory = memory(&mut caller)?;
                put(memory.data_mut(&mut caller), at, &stat)
            })())
        },
    )?;
    linker.func_wrap(
        MODULE,
        "fd_fdstat_set_flags",
        |mut caller: Caller<'_, State>, fd: i32, flags: i32| match fd {
            0..=2 => OK,
            WIRE => {
                caller.data_mut().nonblocking = flags & i32::from(NONBLOCK) != 0;
                OK
            }
            _ => EBADF,
        },
    )?;
    linker.func_wrap(
        MODULE,
        "fd_filestat_get",
        |mut caller: Caller<'_, State>, fd: i32, at: u32| {
            errno((|| {
                let mut stat = [0; 64];
                stat[16] = match fd {
                    0..=2 => CHARACTER_DEVICE,
                    WIRE => SOCKET_STREAM,
                    _ => return Err(EBADF),
                };
                let memory = memory(&mut caller)?;
                put(memory.data_mut(&mut caller), at, &stat)
            })())
        },
    )?;
    // Nothing is opened, so closing has nothing to free.
    linker.func_wrap(MODULE, "fd_close", |fd: i32| known(fd, OK))?;
    linker.func_wrap(MODULE, "fd_sync", |fd: i32| known(fd, OK))?;
    linker.func_wrap(MODULE, "fd_datasync", |fd: i32| known(fd, OK))?;
    linker.func_wrap(MODULE, "fd_fdstat_set_rights", |fd: i32, _: i64, _: i64| {
        known(fd, ENOSYS)
    })?;
    linker.func_wrap(MODULE, "fd_renumber", |fd: i32, _: i32| known(fd, ENOTSUP))?;
    linker.func_wrap(MODULE, "fd_seek", |fd: i32, _: i64, _: i32, _: i32| {
        known(fd, ESPIPE)
    })?;
    linker.func_wrap(MODULE, "fd_tell", |fd: i32, _: i32| known(fd, ESPIPE))?;
    linker.func_wrap(MODULE, "fd_advise", |fd: i32, _: i64, _: i64, _: i32| {
        known(fd, ESPIPE)
    })?;
    linker.func_wrap(MODULE, "fd_allocate", |fd: i32, _: i64, _: i64| {
        known(fd, ENOTSUP)
    })?;
    linker.func_wrap(MODULE, "fd_filestat_set_size", |fd: i32, _: i64| {
        known(fd, EINVAL)
    })?;
    linker.func_wrap(
        MODULE,
        "fd_filestat_set_times",
        |fd: i32, _: i64, _: i64, _: i32| known(fd, ENOTSUP),
    )?;
    // No directory is given: the first question ends a guest's search for them.
    linker.func_wrap(MODULE, "fd_prestat_get", |_: i32, _: i32| EBADF)?;
    linker.func_wrap(MODULE, "fd_prestat_dir_name", |_: i32, _: i32, _: i32| {
        EBADF
    })?;
    linker.func_wrap(
        MODULE,
        "fd_pread",
        |fd: i32, _: i32, _: i32, _: i64, _: i32| known(fd, ESPIPE),
    )?;
    linker.func_wrap(
        MODULE,
        "fd_pwrite",
        |fd: i32, _: i32, _: i32, _: i64, _: i32| known(fd, ESPIPE),
    )?;
    linker.func_wrap(
        MODULE,
        "fd_readdir",
        |fd: i32, _: i32, _: i32, _: i64, _: i32| known(fd, ENOTSUP),
    )?;
    Ok(())
}

fn known(fd: i32, otherwise: i32) -> i32 {
    if (0..=WIRE).contains(&fd) {
        otherwise
    } else {
        EBADF
    }
}

/// Address and length of each piece of a read or a write.
fn pieces(bytes: &[u8], at: u32, count: u32) -> std::result::Result<Vec<(u32, u32)>, i32> {
    if count > PIECES_MAX {
        return Err(EINVAL);
    }
    (0..count)
        .map(|index| {
            let entry = at.checked_add(index * 8).ok_or(EFAULT)?;
            let length = get_u32(bytes, entry.checked_add(4).ok_or(EFAULT)?)?;
            Ok((get_u32(bytes, entry)?, length))
        })
        .collect()
}

fn reading(linker: &mut Linker<State>) -> Result<()> {
    linker.func_wrap_async(
        MODULE,
        "fd_read",
        |mut caller: Caller<'_, State>, (fd, at, count, done): (i32, u32, u32, u32)| {
            Box::new(async move { errno(read(&mut caller, fd, at, count, done).await) })
        },
    )?;
    linker.func_wrap_async(
        MODULE,
        "fd_write",
        |mut caller: Caller<'_, State>, (fd, at, count, done): (i32, u32, u32, u32)| {
            Box::new(async move { errno(write(&mut caller, fd, at, count, done).await) })
        },
    )?;
    Ok(())
}

async fn read(caller: &mut Caller<'_, State>, fd: i32, at: u32, count: u32, done: u32) -> Errno {
    if fd == WIRE {
        let input = caller.data().wires.input.clone();
        if input.has_bytes() == Some(0) {
            if caller.data().nonblocking {
                return Err(EAGAIN);
            }
            input.readable().await;
        }
    } else if fd != 0 {
        return Err(EBADF);
    }
    let memory = memory(caller)?;
    let (bytes, state) = memory.data_and_store_mut(&mut *caller);
    let mut total = 0_u32;
    // Standard input is empty.
    if fd == WIRE {
        for (piece, length) in pieces(bytes, at, count)? {
            let into = slice_mut(bytes, piece, length)?;
            let read = state.wires.input.read(into);
            total += read as u32;
            if read < into.len() {
                break;
            }
        }
    }
    put(bytes, done, &total.to_le_bytes())
}

async fn write(caller: &mut Caller<'_, State>, fd: i32, at: u32, count: u32, done: u32) -> Errno {
    let wires = &caller.data().wires;
    let pipe = match fd {
        1 | 2 => wires.log.clone(),
        WIRE => wires.output.clone(),
        _ => return Err(EBADF),
    };
    if fd == WIRE && caller.data().nonblocking && pipe.has_room() == Some(0) {
        return Err(EAGAIN);
    }
    pipe.room().await;
    let memory = memory(caller)?;
    let bytes = memory.data(&*caller);
    let mut total = 0_u32;
    for (piece, length) in pieces(bytes, at, count)? {
        // More than this is for the next call: a guest that writes much waits for who reads.
        let length = length.min(ROOM_BYTES as u32 - total);
        if !pipe.push(slice(bytes, piece, length)?) {
            return Err(EPIPE);
        }
        total += length;
        if total == ROOM_BYTES as u32 {
            break;
        }
    }
    put(memory.data_mut(&mut *caller), done, &total.to_le_bytes())
}

/// One thing that a guest waits for.
struct Subscription {
    userdata: [u8; 8],
    wants: Wants,
}

enum Wants {
    /// Nanoseconds from now.
    Clock(u64),
    Read(i32),
    Write(i32),
}

fn waiting(linker: &mut Linker<State>) -> Result<()> {
    linker.func_wrap_async(
        MODULE,
        "poll_oneoff",
        |mut caller: Caller<'_, State>, (from, into, count, done): (u32, u32, u32, u32)| {
            Box::new(async move { errno(poll(&mut caller, from, into, count, done).await) })
        },
    )?;
    Ok(())
}

fn subscriptions(
    bytes: &[u8],
    state: &State,
    from: u32,
    count: u32,
) -> std::result::Result<Vec<Subscription>, i32> {
    if count == 0 || count > PIECES_MAX {
        return Err(EINVAL);
    }
    let mut all = Vec::with_capacity(count as usize);
    for index in 0..count {
        let at = from.checked_add(index * SUBSCRIPTION_BYTES).ok_or(EFAULT)?;
        // The whole entry is in memory, so the fields are.
        slice(bytes, at, SUBSCRIPTION_BYTES)?;
        let tag = slice(bytes, at + 8, 1)?[0];
        let fd = get_u32(bytes, at + 16)? as i32;
        let wants = match tag {
            CLOCK => {
                let timeout = get_u64(bytes, at + 24)?;
                let absolute = slice(bytes, at + 40, 1)?[0] & 1 == 1;
                let time = now(state, get_u32(bytes, at + 16)?)?;
                Wants::Clock(if absolute {
                    timeout.saturating_sub(time)
                } else {
                    timeout
                })
            }
            READ => Wants::Read(fd),
            WRITE => Wants::Write(fd),
            _ => return Err(EINVAL),
        };
        all.push(Subscription {
            userdata: get_u64(bytes, at)?.to_le_bytes(),
            wants,
        });
    }
    Ok(all)
}

/// An event, when what was wanted is there: its error, kind, bytes and flags.
fn event(
    wires: &crate::guest::Wires,
    wants: &Wants,
    waited: Duration,
) -> Option<(i32, u8, u64, u16)> {
    let stream = |pipe: Option<usize>, kind: u8| match pipe {
        Some(0) => None,
        Some(bytes) => Some((OK, kind, bytes as u64, 0)),
        None => Some((OK, kind, 0, 1)),
    };
    match wants {
        Wants::Clock(nanoseconds) => {
            (waited.as_nanos() >= u128::from(*nanoseconds)).then_some((OK, CLOCK, 0, 0))
        }
        Wants::Read(0) => Some((OK, READ, 0, 1)),
        Wants::Read(WIRE) => stream(wires.input.has_bytes(), READ),
        Wants::Write(1 | 2) => stream(wires.log.has_room(), WRITE),
        Wants::Write(WIRE) => stream(wires.output.has_room(), WRITE),
        Wants::Read(_) => Some((EBADF, READ, 0, 0)),
        Wants::Write(_) => Some((EBADF, WRITE, 0, 0)),
    }
}

async fn poll(
    caller: &mut Caller<'_, State>,
    from: u32,
    into: u32,
    count: u32,
    done: u32,
) -> Errno {
    let memory = memory(caller)?;
    let wanted = subscriptions(memory.data(&*caller), caller.data(), from, count)?;
    let wires = caller.data().wires.clone();
    let since = std::time::Instant::now();
    let until = wanted
        .iter()
        .filter_map(|subscription| match subscription.wants {
            Wants::Clock(nanoseconds) => Some(Duration::from_nanos(nanoseconds)),
            _ => None,
        })
        .min();
    let watched = |wanted: &Wants| -> Option<(Pipe, bool)> {
        match wanted {
            Wants::Read(WIRE) => Some((wires.input.clone(), true)),
            Wants::Write(1 | 2) => Some((wires.log.clone(), false)),
            Wants::Write(WIRE) => Some((wires.output.clone(), false)),
            _ => None,
        }
    };
    let pipes: Vec<_> = wanted.iter().filter_map(|s| watched(&s.wants)).collect();
    let events = loop {
        let waited = since.elapsed();
        let events: Vec<_> = wanted
            .iter()
            .filter_map(|s| Some((s.userdata, event(&wires, &s.wants, waited)?)))
            .collect();
        if !events.is_empty() {
            break events;
        }
        let any = std::future::poll_fn(|cx| {
            let ready = pipes.iter().any(|(pipe, reading)| {
                if *reading {
                    pipe.poll_readable(cx).is_ready()
                } else {
                    pipe.poll_room(cx).is_ready()
                }
            });
            if ready {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        });
        match until {
            Some(until) => {
                // Rounded up to a millisecond by the timer; `waited` decides.
                let _ = tokio::time::timeout(until.saturating_sub(since.elapsed()), any).await;
            }
            None => any.await,
        }
    };
    let bytes = memory.data_mut(&mut *caller);
    for (index, (userdata, (error, kind, count, flags))) in events.iter().enumerate() {
        let mut entry = [0; EVENT_BYTES as usize];
        entry[..8].copy_from_slice(userdata);
        entry[8..10].copy_from_slice(&(*error as u16).to_le_bytes());
        entry[10] = *kind;
        entry[16..24].copy_from_slice(&count.to_le_bytes());
        entry[24..26].copy_from_slice(&flags.to_le_bytes());
        let at = into.checked_add(index as u32 * EVENT_BYTES).ok_or(EFAULT)?;
        put(bytes, at, &entry)?;
    }
    put(bytes, done, &(events.len() as u32).to_le_bytes())
}

/// Paths and sockets: there are none.
fn files(linker: &mut Linker<State>) -> Result<()> {
    linker.func_wrap(MODULE, "path_create_directory", |_: i32, _: i32, _: i32| {
        EBADF
    })?;
    linker.func_wrap(
        MODULE,
        "path_filestat_get",
        |_: i32, _: i32, _: i32, _: i32, _: i32| EBADF,
    )?;
    linker.func_wrap(
        MODULE,
        "path_filestat_set_times",
        |_: i32, _: i32, _: i32, _: i32, _: i64, _: i64, _: i32| EBADF,
    )?;
    linker.func_wrap(
        MODULE,
        "path_link",
        |_: i32, _: i32, _: i32, _: i32, _: i32, _: i32, _: i32| EBADF,
    )?;
    linker.func_wrap(
        MODULE,
        "path_open",
        |_: i32, _: i32, _: i32, _: i32, _: i32, _: i64, _: i64, _: i32, _: i32| EBADF,
    )?;
    linker.func_wrap(
        MODULE,
        "path_readlink",
        |_: i32, _: i32, _: i32, _: i32, _: i32, _: i32| EBADF,
    )?;
    linker.func_wrap(MODULE, "path_remove_directory", |_: i32, _: i32, _: i32| {
        EBADF
    })?;
    linker.func_wrap(
        MODULE,
        "path_rename",
        |_: i32, _: i32, _: i32, _: i32, _: i32, _: i32| EBADF,
    )?;
    linker.func_wrap(
        MODULE,
        "path_symlink",
        |_: i32, _: i32, _: i32, _: i32, _: i32| EBADF,
    )?;
    linker.func_wrap(MODULE, "path_unlink_file", |_: i32, _: i32, _: i32| EBADF)?;
    linker.func_wrap(MODULE, "sock_accept", |_: i32, _: i32, _: i32| EBADF)?;
    linker.func_wrap(
        MODULE,
        "sock_recv",
        |_: i32, _: i32, _: i32, _: i32, _: i32, _: i32| EBADF,
    )?;
    linker.func_wrap(
        MODULE,
        "sock_send",
        |_: i32, _: i32, _: i32, _: i32, _: i32| EBADF,
    )?;
    linker.func_wrap(MODULE, "sock_shutdown", |_: i32, _: i32| EBADF)?;
    Ok(())
}
