//! The end of a process: whom a death is blamed on, and how one that has nothing more to do ends.

use std::time::Duration;

use tokio::time::Instant;

use super::pending::Pending;
use super::{DEATHS_MAX, Running, Warm};
use crate::runtime::body::{Exit, describe_death};
use crate::runtime::sandbox::not_done;
use crate::runtime::wire::{WireError, verdict_of_status};
use crate::runtime::{Broken, Failure, FailureKind, HostSpec, Outcome, Verdict, with_last_words};

/// Why a conversation ended.
pub(super) enum End {
    /// The process closed its end.
    Closed,
    TimedOut,
    Misbehaved(WireError),
    /// Stop was asked, and nothing is in flight or the grace is over.
    Drained,
}

impl Warm {
    /// After a death: finds out why, blames, and says when the host can not go on.
    pub(super) async fn bury(&mut self, mut running: Running, end: End) -> Option<Broken> {
        let grace = self.spec.options.kill_grace();
        let exit = match end {
            // It closed its pipe: it is ending, or has detached itself.
            End::Closed => match tokio::time::timeout(grace, running.process.wait()).await {
                Ok(exit) => exit,
                Err(_) => running.process.kill(grace).await,
            },
            _ => running.process.kill(grace).await,
        };
        self.launch.sweep().await;
        let stderr_tail = running.last_words().await;
        self.pending_state = Pending::default();
        let leaving = running.leaving && matches!(end, End::Closed);
        let precise = running.codec.precise();
        let dropped_in_all = self.rate.lock().dropped_in_all();
        let dropped = dropped_in_all - std::mem::replace(&mut self.dropped_before, dropped_in_all);
        let failure = death(&end, exit, &self.spec, stderr_tail, dropped);
        drop(running);
        if !leaving {
            self.deaths += 1;
            self.services.restarted(&failure.reason);
        }
        let why_idle = with_last_words(&failure.reason, &failure.stderr_tail);
        if !self.ever_done
            && matches!(end, End::Closed)
            && matches!(failure.exit_code, Some(126 | 127))
        {
            return Some(Broken::Deployment {
                reason: failure.reason,
                stderr_tail: failure.stderr_tail,
            });
        }
        let held = self
            .queue
            .iter()
            .take(self.sent)
            .filter(|slot| !slot.done)
            .count();
        if held > 0 && !leaving {
            if precise || held == 1 {
                let index = self.queue.iter().position(|slot| !slot.done).unwrap_or(0);
                let verdict = match failure.exit_code.filter(|_| matches!(end, End::Closed)) {
                    Some(code) if code == self.spec.options.drop_exit_code => Verdict::Drop,
                    Some(code @ 64..=78) => match verdict_of_status(code, 0, &failure.reason) {
                        Verdict::Failed(f) => Verdict::Failed(Failure {
                            kind: f.kind,
                            ..failure
                        }),
                        other => other,
                    },
                    _ => Verdict::Failed(failure),
                };
                self.ready_outcomes.push(Outcome {
                    ticket: self.queue[index].delivery.ticket,
                    verdict,
                    outputs: Vec::new(),
                    state: Vec::new(),
                    took: self.head_since.elapsed(),
                });
                self.queue[index].done = true;
                self.pop_done();
            } else {
                self.probe = self.probe.max(self.sent);
            }
        } else if held == 0 && self.deaths >= DEATHS_MAX {
            return Some(Broken::Start {
                reason: failure.reason,
                stderr_tail: failure.stderr_tail,
            });
        } else if held == 0 && !leaving {
            self.services.ended_idle(&why_idle);
        }
        self.hand_on();
        None
    }

    /// Ends a process that has nothing more to do. What it says meanwhile counts.
    pub(super) async fn drain(&mut self, mut running: Running) {
        let mut last = Vec::new();
        running.codec.drain(&mut last);
        // Who is told so may have questions yet; others know by the end of their input.
        let is_told = !last.is_empty();
        running.out.extend_from_slice(&last);
        let grace = self
            .stop_at
            .map_or(Duration::ZERO, |at| {
                at.saturating_duration_since(Instant::now())
            })
            .max(self.spec.options.kill_grace());
        let mut ended = false;
        if self.queue.is_empty() {
            let over = Instant::now() + grace;
            running.hang_up_at =
                Some(Instant::now() + if is_told { grace / 2 } else { Duration::ZERO });
            let heard = async {
                if is_told {
                    return self.hear_out(&mut running).await;
                }
                // What a tool prints at its end is no message's.
                while running.turn().await {
                    running.input.clear();
                }
                Ok(())
            };
            let heard = tokio::time::timeout_at(over, heard).await;
            if let Ok(Err(error)) = &heard {
                tracing::warn!(function = self.spec.fqfn(), %error, "at its end");
            }
            if matches!(heard, Ok(Ok(()))) {
                running.writer = None;
                let gone = tokio::time::timeout_at(over, running.process.wait());
                ended = gone.await.is_ok();
            }
            self.release_state();
        }
        if !ended {
            running.process.kill(self.spec.options.kill_grace()).await;
        }
        self.launch.sweep().await;
        running.last_words().await;
    }

    /// Hears what code says that ends, until it closes its end.
    async fn hear_out(&mut self, running: &mut Running) -> Result<(), WireError> {
        loop {
            self.hear(running).await?;
            if !running.turn().await {
                return self.hear(running).await;
            }
        }
    }
}

/// What a death says of the message that was in hand.
fn death(
    end: &End,
    exit: Option<Exit>,
    spec: &HostSpec,
    stderr_tail: String,
    dropped: u64,
) -> Failure {
    let exit = exit.unwrap_or_default();
    let (kind, reason, exit_code) = match end {
        End::TimedOut => (
            FailureKind::Timeout,
            not_done(
                spec.options.timeout_ms,
                exit.cause.map(|met| met.1),
                dropped,
            ),
            None,
        ),
        End::Misbehaved(
            error @ (WireError::TooLarge(_)
            | WireError::TooMuchState(_)
            | WireError::TooMuchStateInHand(_)),
        ) => (FailureKind::Output, error.to_string(), None),
        End::Misbehaved(error) => (FailureKind::Crash, error.to_string(), None),
        End::Closed | End::Drained => match exit.cause {
            Some((kind, reason)) => (kind, reason, exit.code),
            None => describe_death(exit.code, exit.signal),
        },
    };
    let mut failure = Failure {
        kind,
        reason,
        exit_code,
        stderr_tail,
    };
    spec.options.sandbox.explain(&mut failure);
    failure
}
