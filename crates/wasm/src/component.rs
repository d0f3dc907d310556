//! Components of the world `geminga:function/function` (`wit/function.wit`), and the adapter in front of
//! them: it speaks the host protocol with the worker, so that a component is one more host.
//!
//! The outcome of a message is written before the next one is begun whenever the guest then ends, so blame
//! is exact. A component may import WASI 0.2; it finds no directory and no network there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use geminga_functions::runtime::{Exit, HostSpec, body};
use wasmtime::Store;
use wasmtime::component::{Component, HasSelf, Linker, ResourceTable};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use crate::engine::Engine;
use crate::frames;
use crate::guest::Wires;
use crate::limits::{Limiter, cause};

mod context;
mod wire;

use self::context::Context;
use self::wire::Wire;

/// What `bindgen!` makes of the world.
mod bindings {
    wasmtime::component::bindgen!({
        path: "wit",
        world: "function",
        imports: { default: async | trappable },
        exports: { default: async },
    });
}

pub(crate) use self::bindings::FunctionPre as Linked;
use self::bindings::{Failure, Function};

/// Handles of WASI that a guest may hold.
const HANDLES_MAX: usize = 4096;
/// A reason that is longer is cut.
const REASON_BYTES: usize = 4000;
/// Outcomes do not wait for a message that takes longer.
const FLUSH_AFTER: Duration = Duration::from_millis(3);

/// Verdicts of an outcome.
const DONE: u8 = 0;
const FAILED: u8 = 1;
const DATA: u8 = 2;
const TEMPORARY: u8 = 3;
const DROP: u8 = 4;
const HOLD: u8 = 5;

/// What belongs to one running component.
pub(crate) struct State {
    limiter: Limiter,
    context: Context,
    wasi: WasiCtx,
    table: ResourceTable,
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

/// What a component may import.
pub(crate) fn linker(engine: &wasmtime::Engine) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    Function::add_to_linker::<State, HasSelf<Context>>(&mut linker, |state| &mut state.context)?;
    Ok(linker)
}

/// Checks imports and exports.
pub(crate) fn link(
    linker: &Linker<State>,
    component: &Component,
) -> wasmtime::Result<Linked<State>> {
    Linked::new(linker.instantiate_pre(component)?)
}

/// The log as a standard stream of WASI.
struct Log(crate::pipe::Pipe);

impl wasmtime_wasi::cli::IsTerminal for Log {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl wasmtime_wasi::cli::StdoutStream for Log {
    fn async_stream(&self) -> Box<dyn tokio::io::AsyncWrite + Send + Sync> {
        Box::new(wire::Shared(self.0.clone()))
    }
}

/// Runs a component until the worker lets go.
pub(crate) async fn run(
    engine: &Engine,
    code: &Linked<State>,
    spec: &Arc<HostSpec>,
    wires: &Wires,
) -> Exit {
    let wire = Wire::new(wires.clone());
    let mut wasi = WasiCtx::builder();
    wasi.stdout(Log(wires.log.clone()))
        .stderr(Log(wires.log.clone()))
        .envs(&body::environment(spec));
    let given: Vec<_> = spec.options.env.iter().collect();
    wasi.envs(&given)
        .arg(spec.code.path.to_string_lossy())
        .args(&spec.runtime_flags)
        .args(&spec.options.args);
    let mut table = ResourceTable::new();
    table.set_max_capacity(HANDLES_MAX);
    let state = State {
        limiter: Limiter::new(spec, engine.spare.clone()),
        context: Context::new(spec.clone(), wire.clone()),
        wasi: wasi.build(),
        table,
    };
    let mut store = Store::new(&engine.engine, state);
    store.limiter(|state| &mut state.limiter);
    store.set_epoch_deadline(1);
    store.epoch_deadline_async_yield_and_update(1);
    let served = serve(&mut store, code, spec, &wire).await;
    wire.flush();
    match served {
        Ok(()) => Exit {
            code: Some(0),
            ..Exit::default()
        },
        Err(error) => {
            let (own, limiter) = (store.data().context.exceeded(), &store.data().limiter);
            let (kind, reason, words) = cause(&error, limiter);
            wires.log.push(format!("ERROR: {words}\n").as_bytes());
            Exit {
                cause: Some(own.unwrap_or((kind, reason))),
                ..Exit::default()
            }
        }
    }
}

async fn serve(
    store: &mut Store<State>,
    code: &Linked<State>,
    spec: &HostSpec,
    wire: &Wire,
) -> wasmtime::Result<()> {
    let function = code.instantiate_async(&mut *store).await?;
    let done = if spec.manual_ack { HOLD } else { DONE };
    while let Some(frame) = wire.next().await? {
        match frame.kind {
            b'H' => wire.ready(),
            b'P' => wire.pong(),
            b'D' => return Ok(()),
            b'B' => batch(store, &function, wire, frames::batch(frame.body)?, done).await?,
            // An answer that nobody waits for, or what a later worker says.
            _ => {}
        }
    }
    Ok(())
}

async fn batch(
    store: &mut Store<State>,
    function: &Function,
    wire: &Wire,
    messages: Vec<frames::Given>,
    done: u8,
) -> wasmtime::Result<()> {
    let mut since = Instant::now();
    for message in messages {
        store.data_mut().context.begin(message.block);
        let result = {
            let mut call = std::pin::pin!(function.call_process(&mut *store, &message.payload));
            match tokio::time::timeout(FLUSH_AFTER, &mut call).await {
                Ok(result) => result?,
                Err(_) => {
                    // It takes its time: those before it do not wait.
                    wire.flush();
                    call.await?
                }
            }
        };
        if let Ok(Some(own)) = &result {
            store.data_mut().context.count(own.len())?;
        }
        let published = store.data_mut().context.end();
        match result.map_err(shorten) {
            Ok(own) => wire.outcome(message.number, done, "", own.as_deref(), &published),
            Err(Failure::Failed(why)) => wire.outcome(message.number, FAILED, &why, None, &[]),
            Err(Failure::BadData(why)) => wire.outcome(message.number, DATA, &why, None, &[]),
            Err(Failure::Temporary(why)) => {
                wire.outcome(message.number, TEMPORARY, &why, None, &[]);
            }
            Err(Failure::Drop) => wire.outcome(message.number, DROP, "", None, &[]),
        }
        if wire.is_full() || since.elapsed() > FLUSH_AFTER {
            wire.flush();
            wire.room().await;
            since = Instant::now();
        }
    }
    wire.flush();
    Ok(())
}

/// A reason is a sentence: what is longer stays in the guest.
fn shorten(failure: Failure) -> Failure {
    let cut = |mut why: String| {
        if why.len() > REASON_BYTES {
            let end = (0..=REASON_BYTES).rev().find(|&i| why.is_char_boundary(i));
            why.truncate(end.unwrap_or(0));
        }
        why
    };
    match failure {
        Failure::Failed(why) => Failure::Failed(cut(why)),
        Failure::BadData(why) => Failure::BadData(cut(why)),
        Failure::Temporary(why) => Failure::Temporary(cut(why)),
        Failure::Drop => Failure::Drop,
    }
}
