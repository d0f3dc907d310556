//! The WASM runtime: functions in WebAssembly, inside the worker, with no power that was not given.
//!
//! A guest is a WASI command that speaks the host protocol on descriptor 3, or a component of the world
//! in `wit/function.wit` (`docs/adr/0007-wasm.md` says why these two). Either is a [`Body`] behind the
//! warm host of `geminga-functions`, which keeps order, time-outs, blame, restarts, state and logs, as it
//! does for a process. What must hold:
//! - a guest sees no file, no network, no other guest; after a trap its memory is never used again;
//! - a guest that does not return, recurses, grows or floods hurts its own message and nobody else: guests
//!   run on threads of their own and give them up every few milliseconds;
//! - all guests together leave the machine enough memory for the worker to live;
//! - what is compiled is kept by its content, in memory and in the cache directory.
//!
//! [`Body`]: geminga_functions::runtime::Body

use std::sync::Arc;

use geminga_functions::MakeRuntime;
use geminga_functions::runtime::sandbox::Memory;
use geminga_functions::runtime::{
    BoxFuture, Broken, Host, HostSpec, Launched, Launcher, Runtime, Services, body,
};
use geminga_stdx::Tasks;
use tokio::sync::OnceCell;

mod command;
mod component;
mod engine;
mod frames;
mod guest;
mod limits;
mod pipe;
mod pulse;
mod spare;

use crate::engine::{Code, Engine};
use crate::spare::Look;

/// For a worker's configuration.
#[must_use]
pub fn runtime() -> MakeRuntime {
    Arc::new(|tasks| Arc::new(Wasm::new(tasks)))
}

/// Starts WASM functions. The engine, with its threads, is made for the first of them.
pub struct Wasm {
    tasks: Tasks,
    memory: Look,
    engine: OnceCell<Arc<Engine>>,
}

impl std::fmt::Debug for Wasm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wasm").finish_non_exhaustive()
    }
}

impl Wasm {
    /// A runtime whose hosts' tasks are `tasks`.
    #[must_use]
    pub fn new(tasks: Tasks) -> Self {
        Self::on(tasks, Memory::now)
    }

    /// The same where the machine's memory is read by `memory`; `None` is no bound for all guests together.
    #[must_use]
    pub fn on(tasks: Tasks, memory: fn() -> Option<Memory>) -> Self {
        Self {
            tasks,
            memory,
            engine: OnceCell::new(),
        }
    }
}

impl Runtime for Wasm {
    fn name(&self) -> &'static str {
        "wasm"
    }

    fn start(
        &self,
        spec: Arc<HostSpec>,
        services: Arc<dyn Services>,
    ) -> BoxFuture<'_, Result<Box<dyn Host>, Broken>> {
        Box::pin(async move {
            let engine = self
                .engine
                .get_or_try_init(|| async { Engine::start(self.memory).map(Arc::new) })
                .await?
                .clone();
            let code = engine.load(&spec.code.path).await?;
            let launcher = Arc::new(Guests {
                engine,
                code,
                spec: spec.clone(),
            });
            body::start(launcher, spec, services, &self.tasks).await
        })
    }
}

/// The instances of one function's code.
struct Guests {
    engine: Arc<Engine>,
    code: Arc<Code>,
    spec: Arc<HostSpec>,
}

impl Launcher for Guests {
    fn launch<'a>(&'a self, _spec: &'a HostSpec) -> BoxFuture<'a, Result<Launched, Broken>> {
        let launched = guest::launch(&self.engine, &self.code, &self.spec);
        Box::pin(std::future::ready(Ok(launched)))
    }

    fn window(&self) -> usize {
        2048
    }

    fn frame(&self) -> usize {
        256
    }
}
