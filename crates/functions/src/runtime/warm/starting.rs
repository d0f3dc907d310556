//! The start of a process: it is launched, greeted, and heard until it is ready.

use std::sync::Arc;

use bytes::BytesMut;
use geminga_client::Schema;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use super::pending::Pending;
use super::{QUESTIONS_MAX, READ_MIN, Running, Warm, sleep_until, wait_stop};
use crate::runtime::Broken;
use crate::runtime::stderr::{Tail, pump};
use crate::runtime::wire::{FromHost, PROTOCOL};

enum Greeting {
    Fatal(String),
    Ended,
}

impl Warm {
    /// Starts the code once more. `None`: it was asked to stop, and had the time that the messages in hand
    /// are given; with none in hand there is nothing to start for.
    pub(super) async fn launch_unless_stopped(&mut self) -> Option<Result<Running, Broken>> {
        let (mut stop, mut stop_at) = (self.stop.take(), self.stop_at);
        let has_work = !self.queue.is_empty();
        let stopped = async {
            if stop.is_some() {
                let grace = wait_stop(&mut stop).await;
                stop = None;
                stop_at = Some(Instant::now() + grace);
            }
            let now = Instant::now();
            sleep_until(stop_at.map(|at| if has_work { at } else { now })).await;
        };
        let launched = tokio::select! {
            biased;
            launched = self.launch_ready() => Some(launched),
            () = stopped => None,
        };
        (self.stop, self.stop_at) = (stop, stop_at);
        if launched.is_none() {
            self.launch.sweep().await;
        }
        launched
    }

    pub(super) async fn launch_ready(&mut self) -> Result<Running, Broken> {
        // Nothing that is waiting was sent to this one.
        self.sent = 0;
        self.pending_state = Pending::default();
        let launched = self.launch.launch(&self.spec).await?;
        let (answering, answers) = mpsc::channel(QUESTIONS_MAX);
        let mut running = Running {
            process: launched.process,
            reader: launched.reader,
            writer: Some(launched.writer),
            codec: launched.codec,
            input: BytesMut::new(),
            piece: READ_MIN,
            out: BytesMut::new(),
            tail: Tail::default(),
            heard: Arc::new(Notify::new()),
            log_ends: Vec::new(),
            leaving: false,
            behind: false,
            hang_up_at: None,
            is_gone: false,
            answers,
            answering,
        };
        for pipe in launched.logs {
            let (end, ended) = oneshot::channel();
            let pump = pump(
                pipe,
                self.services.clone(),
                running.tail.clone(),
                running.heard.clone(),
                self.rate.clone(),
                None,
            );
            self.tasks.spawn_cancellable("function log", async move {
                pump.await;
                let _ = end.send(());
            });
            running.log_ends.push(ended);
        }
        let mut greeting = Vec::new();
        if running.codec.hello(&self.spec, &mut greeting) {
            running.out.extend_from_slice(&greeting);
            let limit = self.spec.options.start_timeout();
            let greeted = tokio::time::timeout(limit, self.greet(&mut running)).await;
            match greeted {
                Ok(Ok(())) => self.release_state(),
                Ok(Err(Greeting::Fatal(reason))) => {
                    let stderr_tail = running.last_words().await;
                    running.process.kill(self.spec.options.kill_grace()).await;
                    return Err(Broken::Deployment {
                        reason,
                        stderr_tail,
                    });
                }
                Ok(Err(Greeting::Ended)) => {
                    // It is ending, or lives on without its end.
                    let grace = self.spec.options.kill_grace();
                    let waited = tokio::time::timeout(grace, running.process.wait()).await;
                    let lives_on = waited.is_err();
                    let exit = match waited {
                        Ok(exit) => exit,
                        Err(_) => running.process.kill(grace).await,
                    };
                    let exit = exit.unwrap_or_default();
                    let stderr_tail = running.last_words().await;
                    self.launch.sweep().await;
                    if let Some((_, reason)) = exit.cause {
                        return Err(Broken::Deployment {
                            reason,
                            stderr_tail,
                        });
                    }
                    let reason = match exit.code {
                        _ if lives_on => "the code closed its end before it was ready".to_owned(),
                        Some(code) => {
                            format!("the code ended with status {code} before it was ready")
                        }
                        None => "the code was killed before it was ready".to_owned(),
                    };
                    return Err(Broken::Start {
                        reason,
                        stderr_tail,
                    });
                }
                Err(_) => {
                    running.process.kill(self.spec.options.kill_grace()).await;
                    self.launch.sweep().await;
                    let stderr_tail = running.last_words().await;
                    let reason = format!("the code was not ready after {} ms", limit.as_millis());
                    return Err(Broken::Start {
                        reason,
                        stderr_tail,
                    });
                }
            }
        }
        Ok(running)
    }

    /// Waits until it is ready. What it asks meanwhile is answered, and what it says counts.
    async fn greet(&mut self, running: &mut Running) -> Result<(), Greeting> {
        loop {
            while running.may_ask() {
                let said = running.codec.decode(&mut running.input);
                match said.map_err(|error| Greeting::Fatal(error.to_string()))? {
                    Some(FromHost::Ready { protocol, .. }) if protocol == PROTOCOL => {
                        // What it said behind this is heard before it is waited for.
                        running.behind = true;
                        return Ok(());
                    }
                    Some(FromHost::Ready { protocol, .. }) => {
                        return Err(Greeting::Fatal(format!(
                            "the host speaks protocol {protocol}, this worker {PROTOCOL}"
                        )));
                    }
                    Some(FromHost::Fatal(reason)) => return Err(Greeting::Fatal(reason)),
                    Some(FromHost::Schema { of, schema }) => {
                        // Of topics that it was not told of nobody asks.
                        for of in of.into_iter().filter(|of| self.spec.has(of)) {
                            self.services.declared(of, Schema::clone(&schema));
                        }
                    }
                    Some(said) => {
                        let taken = self.take_in(said, running).await;
                        taken.map_err(|error| Greeting::Fatal(error.to_string()))?;
                    }
                    None => break,
                }
            }
            if !running.turn().await {
                return Err(Greeting::Ended);
            }
        }
    }
}
