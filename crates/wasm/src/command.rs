//! WASI commands: programs whose `_start` runs until the worker lets go, and that speak the host protocol on
//! descriptor 3, as a host of any language does on its socket.

use std::time::Instant;

use geminga_functions::runtime::{Exit, HostSpec, body};
use wasmtime::{ExternType, InstancePre, Linker, Memory, Module, Store};

use crate::engine::Engine;
use crate::guest::Wires;
use crate::limits::{Limiter, cause};

mod preview1;

/// The descriptor of the worker's frames. 0 is empty, 1 and 2 are logs, and there are no others.
pub(crate) const WIRE: i32 = 3;

/// What belongs to one running command.
pub(crate) struct State {
    limiter: Limiter,
    wires: Wires,
    /// Set by the guest (`fd_fdstat_set_flags`): reading and writing the wire do not wait.
    nonblocking: bool,
    /// Strings with their NUL, as WASI gives them.
    arguments: Vec<Vec<u8>>,
    environment: Vec<Vec<u8>>,
    memory: Option<Memory>,
    started: Instant,
    /// It called `proc_exit`.
    exit: Option<i32>,
}

/// What a command may import.
pub(crate) fn linker(engine: &wasmtime::Engine) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    preview1::add(&mut linker)?;
    Ok(linker)
}

/// Whether a module is a command, by its exports.
pub(crate) fn check(module: &Module) -> Result<(), String> {
    let is_function = |name: &str| {
        matches!(module.get_export(name), Some(ExternType::Func(ty))
            if ty.params().len() == 0 && ty.results().len() == 0)
    };
    if is_function("_start") {
        return Ok(());
    }
    Err(
        "exports no `_start`: a function is a WASI command that speaks the host protocol, \
         or a component of the world `geminga:function/function`"
            .to_owned(),
    )
}

fn terminated(texts: impl IntoIterator<Item = String>) -> Vec<Vec<u8>> {
    let text = |text: String| {
        let mut bytes = text.into_bytes();
        bytes.retain(|&byte| byte != 0);
        bytes.push(0);
        bytes
    };
    texts.into_iter().map(text).collect()
}

/// Runs a command to its end.
pub(crate) async fn run(
    engine: &Engine,
    code: &InstancePre<State>,
    spec: &HostSpec,
    wires: &Wires,
) -> Exit {
    let own = [
        ("GMG_HOST_BINDING".to_owned(), "socket".to_owned()),
        ("GMG_HOST_FD".to_owned(), WIRE.to_string()),
    ];
    let given = spec.options.env.clone();
    let environment = body::environment(spec).into_iter().chain(own).chain(given);
    let name = spec.code.path.file_name().unwrap_or_default();
    let arguments = std::iter::once(name.to_string_lossy().into_owned())
        .chain(spec.runtime_flags.iter().cloned())
        .chain(spec.options.args.iter().cloned());
    let state = State {
        limiter: Limiter::new(spec, engine.spare.clone()),
        wires: wires.clone(),
        nonblocking: false,
        arguments: terminated(arguments),
        environment: terminated(environment.map(|(name, value)| format!("{name}={value}"))),
        memory: None,
        started: Instant::now(),
        exit: None,
    };
    let mut store = Store::new(&engine.engine, state);
    store.limiter(|state| &mut state.limiter);
    store.set_epoch_deadline(1);
    store.epoch_deadline_async_yield_and_update(1);
    match start(&mut store, code).await {
        Ok(()) => Exit {
            code: Some(0),
            ..Exit::default()
        },
        Err(_) if store.data().exit.is_some() => Exit {
            code: store.data().exit,
            ..Exit::default()
        },
        Err(error) => {
            let (kind, reason, words) = cause(&error, &store.data().limiter);
            wires.log.push(format!("ERROR: {words}\n").as_bytes());
            Exit {
                cause: Some((kind, reason)),
                ..Exit::default()
            }
        }
    }
}

async fn start(store: &mut Store<State>, code: &InstancePre<State>) -> wasmtime::Result<()> {
    let instance = code.instantiate_async(&mut *store).await?;
    store.data_mut().memory = instance.get_memory(&mut *store, "memory");
    let start = instance.get_typed_func::<(), ()>(&mut *store, "_start")?;
    start.call_async(&mut *store, ()).await
}
