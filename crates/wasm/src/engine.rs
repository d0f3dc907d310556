//! The engine of all guests of a worker: how code is compiled, where compiled code is kept, and the
//! threads that guests run on.
//!
//! Compiled code is found by its content: in memory while any instance uses it, then in the cache
//! directory, where wasmtime names it by its own version, the settings and the content. Tenants share
//! compiled code, and nothing else: it is read-only.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use geminga_functions::runtime::body::cache_directory;
use geminga_functions::runtime::{Broken, go, sandbox};
use geminga_stdx::Tasks;
use geminga_stdx::tasks::OnError;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use wasmtime::component::Component;
use wasmtime::{Cache, CacheConfig, Config, EngineWeak, Module};

use crate::pulse::Pulse;
use crate::spare::{Look, Spare};
use crate::{command, component};

/// The largest module. Go's smallest program has 1.5 MB.
const CODE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// How long a module may take to compile.
const COMPILE_LIMIT: Duration = Duration::from_secs(60);
/// A guest's calls; and beside them, what the worker's functions that it calls need.
const STACK_BYTES: usize = 512 * 1024;
const HOST_STACK_BYTES: usize = 512 * 1024;
/// Compiled code on disk before the oldest goes.
const CACHE_BYTES: u64 = 2 * 1024 * 1024 * 1024;

/// Code that is compiled and linked: instances are made of it.
pub(crate) enum Code {
    Command(wasmtime::InstancePre<command::State>),
    Component(component::Linked<component::State>),
}

/// See the module.
pub(crate) struct Engine {
    pub(crate) engine: wasmtime::Engine,
    /// Memory for all guests.
    pub(crate) spare: Arc<Spare>,
    codes: Mutex<HashMap<[u8; 32], Weak<Code>>>,
    /// A module that takes its time does not keep others from being loaded.
    compiling: Arc<Semaphore>,
    commands: wasmtime::Linker<command::State>,
    components: wasmtime::component::Linker<component::State>,
    pulse: Pulse,
    tasks: Tasks,
    threads: Option<tokio::runtime::Runtime>,
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.tasks.cancel();
        if let Some(threads) = self.threads.take() {
            threads.shutdown_background();
        }
    }
}

fn failed(what: &str, error: impl std::fmt::Display) -> Broken {
    Broken::Start {
        reason: format!("{what}: {error:#}"),
        stderr_tail: String::new(),
    }
}

fn refused(reason: String) -> Broken {
    Broken::Deployment {
        reason,
        stderr_tail: String::new(),
    }
}

impl Engine {
    /// Makes the engine and its threads.
    pub(crate) fn start(memory: Look) -> Result<Self, Broken> {
        let mut config = Config::new();
        config
            .epoch_interruption(true)
            .max_wasm_stack(STACK_BYTES)
            .async_stack_size(STACK_BYTES + HOST_STACK_BYTES)
            .wasm_backtrace_max_frames(NonZeroUsize::new(16));
        match cache() {
            Ok(cache) => drop(config.cache(Some(cache))),
            // A read-only machine compiles at each start.
            Err(error) => tracing::warn!(%error, "compiled WASM is not kept"),
        }
        let engine =
            wasmtime::Engine::new(&config).map_err(|error| failed("the WASM engine", error))?;
        let weak: EngineWeak = engine.weak();
        let pulse = Pulse::start(move || {
            if let Some(engine) = weak.upgrade() {
                engine.increment_epoch();
            }
        })
        .map_err(|error| failed("the clock of WASM functions", error))?;
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(count)
            .thread_name("geminga-wasm")
            .on_thread_start(|| {
                // On Linux this is the calling thread's.
                let _ = rustix::process::setpriority_process(None, sandbox::niceness());
            })
            .enable_time()
            .build()
            .map_err(|error| failed("the threads of WASM functions", error))?;
        let tasks = {
            let _inside = threads.enter();
            Tasks::new()
        };
        let commands =
            command::linker(&engine).map_err(|error| failed("the WASI interface", error))?;
        let components =
            component::linker(&engine).map_err(|error| failed("the WASI interface", error))?;
        Ok(Self {
            engine,
            spare: Arc::new(Spare::new(memory)),
            codes: Mutex::default(),
            compiling: Arc::new(Semaphore::new(count.max(2))),
            commands,
            components,
            pulse,
            tasks,
            threads: Some(threads),
        })
    }

    /// Runs a guest on the threads of guests.
    pub(crate) fn spawn(&self, guest: impl Future<Output = ()> + Send + 'static) {
        let guest = self.pulse.timed(guest);
        self.tasks.spawn("wasm guest", OnError::Log, async move {
            guest.await;
            Ok::<(), std::convert::Infallible>(())
        });
    }

    /// The code of a file: a module, a component, the text of either, or sources of Go.
    pub(crate) async fn load(self: &Arc<Self>, path: &Path) -> Result<Arc<Code>, Broken> {
        let built;
        let path = if go::is_source(path) {
            built = go::build_wasm(path).await?;
            &built
        } else {
            path
        };
        let shown = path.display();
        let about =
            std::fs::metadata(path).map_err(|_| refused(format!("`{shown}` does not exist")))?;
        if about.len() > CODE_BYTES_MAX {
            return Err(refused(format!(
                "`{shown}` has {} bytes; {CODE_BYTES_MAX} is the most",
                about.len()
            )));
        }
        let bytes = std::fs::read(path).map_err(|error| refused(format!("`{shown}`: {error}")))?;
        let key: [u8; 32] = Sha256::digest(&bytes).into();
        if let Some(code) = self.codes.lock().get(&key).and_then(Weak::upgrade) {
            return Ok(code);
        }
        // The semaphore is never closed.
        let permit = self.compiling.clone().acquire_owned().await;
        if let Some(code) = self.codes.lock().get(&key).and_then(Weak::upgrade) {
            return Ok(code);
        }
        let engine = self.clone();
        let compiling = tokio::task::spawn_blocking(move || {
            let compiled = engine.compile(&bytes);
            drop(permit);
            compiled
        });
        let compiled = match tokio::time::timeout(COMPILE_LIMIT, compiling).await {
            Ok(Ok(compiled)) => compiled,
            Ok(Err(error)) => return Err(failed("the compiler", error)),
            Err(_) => {
                return Err(refused(format!(
                    "`{shown}` was not compiled after {} s",
                    COMPILE_LIMIT.as_secs()
                )));
            }
        };
        let code = Arc::new(compiled.map_err(|why| refused(format!("`{shown}` {why}")))?);
        let mut codes = self.codes.lock();
        codes.retain(|_, code| code.strong_count() > 0);
        codes.insert(key, Arc::downgrade(&code));
        Ok(code)
    }

    fn compile(&self, bytes: &[u8]) -> Result<Code, String> {
        let binary = wat::parse_bytes(bytes)
            .map_err(|error| format!("is neither WebAssembly nor its text: {error}"))?;
        let invalid = |error: wasmtime::Error| format!("can not be used: {error:#}");
        if is_component(&binary) {
            let component = Component::from_binary(&self.engine, &binary).map_err(invalid)?;
            component::link(&self.components, &component)
                .map(Code::Component)
                .map_err(invalid)
        } else {
            let module = Module::from_binary(&self.engine, &binary).map_err(invalid)?;
            command::check(&module)?;
            self.commands
                .instantiate_pre(&module)
                .map(Code::Command)
                .map_err(invalid)
        }
    }
}

/// The layer in the header's version: 0 is a module, 1 a component.
fn is_component(binary: &[u8]) -> bool {
    binary.get(..4) == Some(b"\0asm") && binary.get(6..8) == Some(&[1, 0])
}

fn cache() -> wasmtime::Result<Cache> {
    let mut config = CacheConfig::new();
    config
        .with_directory(cache_directory().join("wasm"))
        // Read far more often than written, and read before the first message.
        .with_baseline_compression_level(1)
        .with_files_total_size_soft_limit(CACHE_BYTES);
    Cache::new(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_and_components_are_told_apart() {
        let of = |text: &str| is_component(&wat::parse_str(text).expect("text"));
        assert!(of("(component)"));
        assert!(!of("(module)"));
        assert!(!is_component(b""));
        assert!(!is_component(b"#!/bin/sh"));
    }
}
