//! After a repair: ledger lists and cursors are made to fit what is left of the ledgers.
//!
//! Offsets count a topic's entries without gaps, so an entry that is gone takes its offset with it:
//! closed ledgers get their new ends, and every cursor's acks move up over the holes. A cursor that
//! did not, would stand past messages that nobody has seen.

use super::factory::{TOPICS, key};
use super::ledger_list::LedgerList;
use crate::embedded::Remains;
use crate::state::State;
use geminga_model::LedgerId;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// What a topic lost of one ledger: entries, by the numbers that they had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicLoss {
    /// `tenant/namespace/persistent/encoded-local-name`
    pub topic: String,
    pub ledger: LedgerId,
    pub entries: Vec<Range<u64>>,
}

/// What the state says of the ledgers that a repair found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fitted {
    pub topics: u64,
    pub losses: Vec<TopicLoss>,
    /// Ledgers with entries that no topic names.
    pub orphans: Vec<LedgerId>,
}

/// Makes the topics and cursors in `state` fit.
pub(crate) fn fit(state: &State, ledgers: &BTreeMap<LedgerId, Remains>) -> Fitted {
    let mut fitted = Fitted::default();
    let mut named = BTreeSet::new();
    let topics = state.tree.read().scan(TOPICS, None, usize::MAX);
    for (path, found) in topics {
        let Ok(mut list) = LedgerList::decode(&found.value) else {
            // Opening the topic says so; nothing of it can be mended here.
            continue;
        };
        fitted.topics += 1;
        named.extend(list.ledgers.iter().map(|ledger| ledger.id));
        let (offsets, lost) = fit_list(&mut list, ledgers);
        if lost.is_empty() {
            continue;
        }
        let value = list.encode();
        state.tree.write().put(&path, &value, found.version.0);
        for cell in state.cursors.of(found.created.0) {
            let mut cell = cell.state.lock();
            cell.acks = cell.acks.without(&offsets);
        }
        let topic = path.strip_prefix(&key("")).unwrap_or(&path).to_owned();
        let losses = lost.into_iter().map(|(ledger, entries)| TopicLoss {
            topic: topic.clone(),
            ledger,
            entries,
        });
        fitted.losses.extend(losses);
    }
    let orphans = ledgers
        .iter()
        .filter(|(id, remains)| remains.entries > 0 && !named.contains(*id));
    fitted.orphans = orphans.map(|(id, _)| *id).collect();
    fitted
}

type Holes = Vec<Range<u64>>;

/// Gives the offsets that are gone, and for each ledger its entries that are.
fn fit_list(
    list: &mut LedgerList,
    ledgers: &BTreeMap<LedgerId, Remains>,
) -> (Holes, Vec<(LedgerId, Holes)>) {
    let (mut offsets, mut lost) = (Holes::new(), Vec::new());
    let nothing = Remains::default();
    let mut base = list.base;
    for ledger in &mut list.ledgers {
        let remains = ledgers.get(&ledger.id).unwrap_or(&nothing);
        // How many there were: a closed ledger knows it.
        let had = ledger.closed.map_or(remains.end, |closed| closed.entries);
        let mut remains = remains.clone();
        remains.holes.retain(|hole| hole.start < had);
        if remains.end < had {
            remains.lose(remains.end..had);
        }
        if let Some(closed) = &mut ledger.closed
            && !remains.holes.is_empty()
        {
            let gone: u64 = remains.holes.iter().map(|hole| hole.end - hole.start).sum();
            closed.entries = had.saturating_sub(gone);
            closed.bytes = remains.bytes;
        }
        let here = remains.holes.iter();
        offsets.extend(here.map(|hole| base + hole.start..base + hole.end));
        if !remains.holes.is_empty() {
            lost.push((ledger.id, remains.holes));
        }
        base += had;
    }
    (offsets, lost)
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "holes are ranges")]
mod tests {
    use super::*;
    use crate::managed::ledger_list::{Closed, Ledger};

    fn ledger(id: i64, closed: Option<u64>) -> Ledger {
        Ledger {
            id: LedgerId(id),
            base: 0,
            closed: closed.map(|entries| Closed {
                entries,
                bytes: entries * 10,
                at_ms: 1,
            }),
        }
    }

    fn remains(end: u64, holes: &[Range<u64>]) -> Remains {
        let entries = end - holes.iter().map(|hole| hole.end - hole.start).sum::<u64>();
        Remains {
            entries,
            bytes: entries * 10,
            holes: holes.to_vec(),
            end,
        }
    }

    #[test]
    fn a_list_gets_the_ends_that_are_left() {
        let mut list = LedgerList {
            ledgers: vec![
                ledger(3, Some(100)),
                ledger(5, Some(50)),
                ledger(8, Some(20)),
                ledger(9, None),
            ],
            base: 1000,
            ..LedgerList::default()
        };
        let ledgers = BTreeMap::from([
            // A hole in the middle, and its end is gone too.
            (LedgerId(3), remains(80, &[10..20])),
            // Whole.
            (LedgerId(5), remains(50, &[])),
            // Nothing of ledger 8 was found.
            (LedgerId(9), remains(7, &[2..3])),
        ]);
        let (offsets, lost) = fit_list(&mut list, &ledgers);
        assert_eq!(
            lost,
            [
                (LedgerId(3), vec![10..20, 80..100]),
                (LedgerId(8), vec![0..20]),
                (LedgerId(9), vec![2..3]),
            ]
        );
        assert_eq!(offsets, [1010..1020, 1080..1100, 1150..1170, 1172..1173]);
        let list = LedgerList::decode(&list.encode()).unwrap();
        let entries: Vec<_> = list
            .ledgers
            .iter()
            .map(|it| (it.base, it.closed.map(|closed| closed.entries)))
            .collect();
        assert_eq!(
            entries,
            [
                (1000, Some(70)),
                (1070, Some(50)),
                (1120, Some(0)),
                (1120, None)
            ]
        );
    }

    #[test]
    fn a_whole_list_stays_as_it_is() {
        let mut list = LedgerList {
            ledgers: vec![ledger(3, Some(100)), ledger(5, None)],
            ..LedgerList::default()
        };
        let before = list.clone();
        let ledgers = BTreeMap::from([
            (LedgerId(3), remains(100, &[])),
            (LedgerId(5), remains(4, &[])),
        ]);
        assert_eq!(fit_list(&mut list, &ledgers), (vec![], vec![]));
        assert_eq!(list, before);
    }
}
