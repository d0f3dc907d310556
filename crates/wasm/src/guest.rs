//! One running guest: its streams, its task, and how it ends.

use std::sync::Arc;
use std::time::Duration;

use geminga_functions::runtime::{Body, BoxFuture, Exit, FailureKind, HostSpec, Launched, Streams};
use tokio::sync::oneshot;

use crate::engine::{Code, Engine};
use crate::pipe::{Pipe, ReadEnd, WriteEnd};
use crate::{command, component};

/// What a guest speaks through.
#[derive(Debug, Clone)]
pub(crate) struct Wires {
    /// Frames to the guest.
    pub(crate) input: Pipe,
    /// Frames from it.
    pub(crate) output: Pipe,
    /// What it prints.
    pub(crate) log: Pipe,
}

/// Starts an instance of `code`.
pub(crate) fn launch(engine: &Arc<Engine>, code: &Arc<Code>, spec: &Arc<HostSpec>) -> Launched {
    let wires = Wires {
        input: Pipe::default(),
        output: Pipe::default(),
        log: Pipe::default(),
    };
    let streams = Streams {
        reader: Box::new(ReadEnd(wires.output.clone())),
        writer: Box::new(WriteEnd(wires.input.clone())),
        log: Box::new(ReadEnd(wires.log.clone())),
    };
    let (stop, stopped) = oneshot::channel::<()>();
    let (ended, exit) = oneshot::channel();
    let precise = matches!(**code, Code::Component(_));
    let task = {
        let (engine, code, spec) = (engine.clone(), code.clone(), spec.clone());
        let _closing = Closing(wires.clone());
        async move {
            let running = async {
                match &*code {
                    Code::Command(code) => command::run(&engine, code, &spec, &_closing.0).await,
                    Code::Component(code) => {
                        component::run(&engine, code, &spec, &_closing.0).await
                    }
                }
            };
            // Dropped at one of its pauses when nobody wants it any more: that is how a guest is killed.
            let exit = tokio::select! {
                _ = stopped => Exit {
                    cause: Some((FailureKind::Crash, "it was stopped".to_owned())),
                    ..Exit::default()
                },
                exit = running => exit,
            };
            // Told before the pipes close, so that who sees them close can ask.
            let _ = ended.send(exit);
        }
    };
    engine.spawn(task);
    let guest = Guest {
        stop: Some(stop),
        exit: Some(exit),
        ended: None,
    };
    Launched::new(Box::new(guest), streams, spec, precise)
}

/// Closes the guest's pipes when its task ends, in whatever way.
struct Closing(Wires);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.output.close();
        self.0.log.close();
        self.0.input.close();
    }
}

/// The worker's hold on a guest: dropping it ends the guest.
struct Guest {
    stop: Option<oneshot::Sender<()>>,
    exit: Option<oneshot::Receiver<Exit>>,
    ended: Option<Exit>,
}

impl Body for Guest {
    fn wait(&mut self) -> BoxFuture<'_, Option<Exit>> {
        Box::pin(async move {
            if let Some(exit) = &mut self.exit {
                self.ended = exit.await.ok();
                self.exit = None;
            }
            self.ended.clone()
        })
    }

    fn kill(&mut self, _grace: Duration) -> BoxFuture<'_, Option<Exit>> {
        // There is no signal that a guest could heed.
        self.stop = None;
        self.wait()
    }
}
