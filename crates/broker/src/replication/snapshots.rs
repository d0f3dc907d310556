//! Which places in several clusters are the same: pure.
//!
//! A cluster asks all others where they are, by a marker in the topic, and each answers by another.
//! Whoever has acked everything up to the last answer here has also seen what each other cluster had
//! when it answered: that is a snapshot. With more than one other cluster two rounds are needed, so
//! that what one of them got late from another is covered too. As Pulsar does it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use geminga_model::Position;

/// Places that are the same: one here, and one in each other cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) local: Position,
    pub(crate) clusters: BTreeMap<String, Position>,
}

#[derive(Debug)]
struct Asked {
    started_ms: u64,
    /// Messages that had been published when it began.
    messages: u64,
    remotes: BTreeSet<String>,
    missing: BTreeSet<String>,
    answers: BTreeMap<String, Position>,
    is_second_round: bool,
}

/// What is to be done after an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Nothing,
    /// Ask once more, under the same name.
    AskAgain,
    Complete(Snapshot),
}

/// The snapshots of a topic that are being made.
#[derive(Debug, Default)]
pub(crate) struct Snapshots {
    asked: BTreeMap<String, Asked>,
    /// Messages that had been published when the last complete one began.
    covered: u64,
}

impl Snapshots {
    /// Begins one under this name, unless there is nothing new, or one is on its way.
    pub(super) fn begin(
        &mut self,
        name: &str,
        remotes: BTreeSet<String>,
        messages: u64,
        now_ms: u64,
        timeout_ms: u64,
    ) -> bool {
        self.asked
            .retain(|_, asked| asked.started_ms + timeout_ms > now_ms);
        if messages == self.covered || !self.asked.is_empty() || remotes.is_empty() {
            return false;
        }
        let asked = Asked {
            started_ms: now_ms,
            messages,
            missing: remotes.clone(),
            remotes,
            answers: BTreeMap::new(),
            is_second_round: false,
        };
        self.asked.insert(name.to_owned(), asked);
        true
    }

    /// A cluster has answered; the answer is at `local` here.
    pub(super) fn answered(
        &mut self,
        name: &str,
        cluster: &str,
        there: Position,
        local: Position,
    ) -> Next {
        let Some(asked) = self.asked.get_mut(name) else {
            // Timed out, or read a second time after a cut.
            return Next::Nothing;
        };
        if !asked.remotes.contains(cluster) {
            return Next::Nothing;
        }
        asked.answers.insert(cluster.to_owned(), there);
        asked.missing.remove(cluster);
        if !asked.missing.is_empty() {
            return Next::Nothing;
        }
        if asked.remotes.len() > 1 && !asked.is_second_round {
            asked.is_second_round = true;
            asked.missing = asked.remotes.clone();
            return Next::AskAgain;
        }
        let Some(asked) = self.asked.remove(name) else {
            return Next::Nothing;
        };
        self.covered = asked.messages;
        Next::Complete(Snapshot {
            local,
            clusters: asked.answers,
        })
    }
}

/// The snapshots that a subscription has not acked up to yet, in order.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    kept: VecDeque<Snapshot>,
}

impl Ahead {
    pub(crate) fn add(&mut self, snapshot: Snapshot, max: usize) {
        if self.kept.iter().any(|kept| kept.local == snapshot.local) {
            return;
        }
        // A subscription that was moved back comes by older ones again.
        let at = self.kept.partition_point(|s| s.local < snapshot.local);
        self.kept.insert(at, snapshot);
        if self.kept.len() > max.max(1) {
            // From the middle: the next one to be reached and the newest are worth most.
            self.kept.remove(self.kept.len() / 2);
        }
    }

    /// The last one that everything is acked up to; it and those before are forgotten.
    pub(crate) fn reached(&mut self, mark_delete: Position) -> Option<Snapshot> {
        let mut last = None;
        while self.kept.front().is_some_and(|s| s.local <= mark_delete) {
            last = self.kept.pop_front();
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(entry: i64) -> Position {
        Position::new(1, entry)
    }

    fn names(all: &[&str]) -> BTreeSet<String> {
        all.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn one_other_cluster_is_asked_once() {
        let mut snapshots = Snapshots::default();
        assert!(
            !snapshots.begin("x", names(&["b"]), 0, 0, 100),
            "no message"
        );
        assert!(snapshots.begin("x", names(&["b"]), 5, 0, 100));
        assert!(
            !snapshots.begin("y", names(&["b"]), 6, 50, 100),
            "one waits"
        );
        let next = snapshots.answered("x", "c", at(1), at(2));
        assert_eq!(next, Next::Nothing, "not asked");
        let Next::Complete(snapshot) = snapshots.answered("x", "b", at(70), at(9)) else {
            panic!("it is complete");
        };
        assert_eq!(snapshot.local, at(9));
        assert_eq!(snapshot.clusters, [("b".to_owned(), at(70))].into());
        let again = snapshots.answered("x", "b", at(70), at(9));
        assert_eq!(again, Next::Nothing, "read twice");
        assert!(
            !snapshots.begin("y", names(&["b"]), 5, 60, 100),
            "nothing new"
        );
        assert!(snapshots.begin("y", names(&["b"]), 6, 60, 100));
        // Nobody answers: another one may begin.
        assert!(snapshots.begin("z", names(&["b"]), 6, 160, 100));
        assert_eq!(snapshots.answered("y", "b", at(1), at(2)), Next::Nothing);
    }

    #[test]
    fn several_other_clusters_are_asked_twice() {
        let mut snapshots = Snapshots::default();
        assert!(snapshots.begin("x", names(&["b", "c"]), 1, 0, 100));
        assert_eq!(snapshots.answered("x", "b", at(1), at(1)), Next::Nothing);
        assert_eq!(snapshots.answered("x", "c", at(1), at(2)), Next::AskAgain);
        assert_eq!(snapshots.answered("x", "c", at(5), at(3)), Next::Nothing);
        let Next::Complete(snapshot) = snapshots.answered("x", "b", at(6), at(4)) else {
            panic!("it is complete");
        };
        assert_eq!(snapshot.local, at(4));
        let expected = [("b".to_owned(), at(6)), ("c".to_owned(), at(5))];
        assert_eq!(snapshot.clusters, expected.into());
    }

    #[test]
    fn a_subscription_keeps_some_and_gives_the_last_that_it_reached() {
        let snapshot = |entry| Snapshot {
            local: at(entry),
            clusters: BTreeMap::new(),
        };
        let mut ahead = Ahead::default();
        for entry in [20, 10, 10, 30, 40] {
            ahead.add(snapshot(entry), 3);
        }
        let kept: Vec<i64> = ahead.kept.iter().map(|s| s.local.entry.0).collect();
        assert_eq!((kept.len(), kept[0], kept[2]), (3, 10, 40));
        assert_eq!(ahead.reached(at(9)), None);
        assert_eq!(ahead.reached(at(35)).map(|s| s.local <= at(35)), Some(true));
        assert_eq!(ahead.reached(at(40)), Some(snapshot(40)));
        assert_eq!(ahead.reached(at(99)), None);
    }
}
