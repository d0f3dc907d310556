//! Whether a new version starts, on whatever worker, for those that are undone when they do not.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::component::ComponentId;
use crate::plan::Plan;
use crate::worker::membership::Judged;
use crate::worker::supervisor::{Crew, Health};
use crate::worker::{Entry, Worker};

/// New versions that one worker speaks of in a beat, the newest, and how much of why one did not start.
const JUDGED_MAX: usize = 100;
const WHY_CHARS_MAX: usize = 2000;

impl Worker {
    /// What this worker says of new versions that run here and are undone when they do not start.
    pub(crate) fn judge_new(&self) -> Vec<Judged> {
        let new_for = self.inner.config.prove_wait * 2;
        let entries: Vec<(ComponentId, Arc<Entry>)> = {
            let components = self.inner.components.lock();
            let is_new = |(_, entry): &(&ComponentId, &Arc<Entry>)| {
                undoes(&entry.crew.plan) && entry.crew.made.elapsed() < new_for
            };
            let new = components.iter().filter(is_new);
            new.map(|(id, entry)| (id.clone(), entry.clone())).collect()
        };
        let judged = entries.into_iter().filter_map(|(id, entry)| {
            let is_own = |n: &u32| self.inner.is_mine(&id, *n) && !entry.record.stopped.contains(n);
            let own: Vec<u32> = (0..entry.crew.len()).filter(is_own).collect();
            if own.is_empty() {
                return None;
            }
            let why = judge(&entry.crew, own.into_iter())?.err();
            let judged = Judged {
                id: id.to_string(),
                version: entry.record.version,
                why: why.map(|why| why.chars().take(WHY_CHARS_MAX).collect()),
            };
            Some((entry.crew.made, judged))
        });
        newest(judged.collect(), JUDGED_MAX)
    }

    /// Why an instance of a new version did not start, on whatever worker; `None` when all run.
    pub(super) async fn failed_to_start(&self, id: &ComponentId, entry: &Entry) -> Option<String> {
        let own = &self.inner.cluster.identity;
        let version = entry.record.version;
        let judged = async {
            loop {
                let mut waits = false;
                for number in 0..entry.crew.len() {
                    if entry.record.stopped.contains(&number) {
                        continue;
                    }
                    let judged = match self.runner(id, number) {
                        Some(runner) if runner == *own => {
                            judge(&entry.crew, std::iter::once(number))
                        }
                        Some(runner) => self.judged_by(&runner, id, version),
                        None => None,
                    };
                    match judged {
                        Some(Err(why)) => return Some(why),
                        Some(Ok(())) => {}
                        None => waits = true,
                    }
                }
                if !waits {
                    return None;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let judged = tokio::time::timeout(self.inner.config.prove_wait, judged);
        judged.await.unwrap_or_else(|_| Some(self.not_in_time()))
    }

    pub(super) fn not_in_time(&self) -> String {
        let limit = self.inner.config.prove_wait;
        format!("it did not start within {} s", limit.as_secs_f64())
    }
}

/// Whether an update that does not start is undone.
pub(super) fn undoes(plan: &Plan) -> bool {
    let rollback = crate::runtime::OnFailedUpdate::Rollback;
    let spec = plan.process.spec();
    spec.is_some_and(|spec| spec.options.on_failed_update == rollback)
}

/// How a version does on one worker: `None` while it is not known.
fn judge(crew: &Crew, numbers: impl Iterator<Item = u32>) -> Option<Result<(), String>> {
    let mut known = true;
    for number in numbers {
        match crew.instances()[number as usize].health() {
            Health::Degraded(why) => return Some(Err(why)),
            Health::Starting | Health::Stopped => known = false,
            Health::Running | Health::Finished => {}
        }
    }
    known.then_some(Ok(()))
}

/// The newest of what was made at these times.
fn newest<T>(mut all: Vec<(Instant, T)>, max: usize) -> Vec<T> {
    all.sort_by_key(|(made, _)| std::cmp::Reverse(*made));
    all.truncate(max);
    all.into_iter().map(|(_, what)| what).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_made_last_is_spoken_of_when_there_is_too_much() {
        let first = Instant::now();
        let made = |ms: u64| (first + Duration::from_millis(ms), ms);
        assert_eq!(newest(vec![made(1), made(3), made(0), made(2)], 2), [3, 2]);
        assert_eq!(newest(vec![made(1)], 2), [1]);
    }
}
