//! Tables and a random model of Shared and Key_Shared.

use std::collections::{BTreeSet, HashMap};

use proptest::prelude::*;

use super::super::Chunk;
use super::super::key_range::{KeyRanges, Ring};
use super::*;

const LIMITS: Limits = Limits {
    unacked_per_consumer_max: 0,
    unacked_per_subscription_max: 0,
    round_robin_messages_max: 20,
    look_ahead_per_consumer_max: 2_000,
    look_ahead_per_subscription_max: 20_000,
};

fn at(n: i64) -> Position {
    Position::new(1, n)
}

fn entry(n: i64) -> Candidate {
    Candidate {
        position: at(n),
        messages: 1,
        hash: 0,
        deliver_at_ms: 0,
        chunk: None,
    }
}

fn flow(key: u64, priority: i32) -> Flow {
    Flow::new(ConsumerKey(key), format!("c{key}").into(), priority, 0)
}

fn shared(limits: Limits) -> Shared {
    Shared::new(Routing::RoundRobin(RoundRobin::default()), limits)
}

fn key_shared(out_of_order: bool) -> Shared {
    let keys = KeyShared::new(KeyRanges::Ring(Ring::new(100)), out_of_order);
    Shared::new(Routing::Keys(keys), LIMITS)
}

fn taker(verdict: Verdict) -> Option<u64> {
    match verdict {
        Verdict::Deliver { consumer, .. } => Some(consumer.0),
        Verdict::Later => None,
    }
}

#[test]
fn only_the_chosen_consumer_is_asked_whether_it_takes_more() {
    for by_key in [false, true] {
        let mut shared = if by_key {
            key_shared(false)
        } else {
            shared(LIMITS)
        };
        for key in 0..1_000 {
            shared.add(flow(key, 0), &[]).unwrap();
            shared.add_permits(ConsumerKey(key), 10);
        }
        assert_eq!(shared.want(usize::MAX, false), Want::Tail(10_000));
        let asked = std::cell::Cell::new(0);
        let takes = |_| {
            asked.set(asked.get() + 1);
            asked.get() > 1
        };
        let candidate = Candidate {
            hash: if by_key { 17 } else { 0 },
            ..entry(0)
        };
        let verdict = shared.place_if(&candidate, 0, takes);
        // The first one does not; another only where any other will do.
        assert_eq!(taker(verdict).is_some(), !by_key);
        assert_eq!(asked.get(), if by_key { 1 } else { 2 });
        assert_eq!(shared.full.len(), 1);
        shared.refresh_writable(|_| true);
        assert!(shared.full.is_empty());
        assert_eq!(shared.ready.count, 1_000);
    }
}

#[test]
fn many_due_at_once_come_a_part_at_a_time() {
    let mut shared = shared(LIMITS);
    shared.add(flow(1, 0), &[]).unwrap();
    let count = WAKE_MAX as i64 * 2 + 5;
    for n in 0..count {
        let delayed = Candidate {
            deliver_at_ms: 10,
            ..entry(n)
        };
        shared.place(&delayed, 9);
    }
    shared.add_permits(ConsumerKey(1), u32::MAX);
    let mut left = count as usize;
    for part in [WAKE_MAX, WAKE_MAX, 5] {
        assert_eq!(shared.next_due_ms(), Some(10));
        assert!(shared.wake_due(10));
        left -= part;
        assert_eq!((shared.replay_len(), shared.delayed_len()), (part, left));
        assert_eq!(shared.next_due_ms().is_some(), part < WAKE_MAX && left > 0);
        let Want::Replay(positions) = shared.want(usize::MAX, false) else {
            panic!("they are wanted");
        };
        assert_eq!(positions.len(), part);
        for position in positions {
            let candidate = entry(position.entry.0);
            assert!(taker(shared.place(&candidate, 10)).is_some());
        }
    }
}

#[test]
fn each_pass_goes_on_to_the_next_consumer() {
    let mut shared = shared(LIMITS);
    for key in 0..3 {
        shared.add(flow(key, 0), &[]).unwrap();
        shared.add_permits(ConsumerKey(key), 100);
    }
    let mut got = Vec::new();
    for n in 0..6 {
        shared.begin();
        got.push(taker(shared.place(&entry(n), 0)).unwrap());
    }
    assert_eq!(got, [0, 1, 2, 0, 1, 2]);
}

#[test]
fn a_turn_is_twenty_messages() {
    let mut shared = shared(LIMITS);
    for key in 0..2 {
        shared.add(flow(key, 0), &[]).unwrap();
        shared.add_permits(ConsumerKey(key), 1_000);
    }
    shared.begin();
    let got: Vec<u64> = (0..60)
        .map(|n| taker(shared.place(&entry(n), 0)).unwrap())
        .collect();
    assert!(got[..20].iter().all(|key| *key == 0));
    assert!(got[20..40].iter().all(|key| *key == 1));
    assert!(got[40..].iter().all(|key| *key == 0));
}

#[test]
fn lower_priority_levels_get_only_what_higher_ones_cannot_take() {
    let mut shared = shared(LIMITS);
    shared.add(flow(1, 1), &[]).unwrap();
    shared.add(flow(0, 0), &[]).unwrap();
    shared.add_permits(ConsumerKey(0), 2);
    shared.add_permits(ConsumerKey(1), 2);
    let got: Vec<_> = (0..5).map(|n| taker(shared.place(&entry(n), 0))).collect();
    assert_eq!(got, [Some(0), Some(0), Some(1), Some(1), None]);
}

#[test]
fn trap_07_counts_rise_by_redelivery_and_not_by_disconnect() {
    let mut shared = shared(LIMITS);
    for key in 0..2 {
        shared.add(flow(key, 0), &[]).unwrap();
        shared.add_permits(ConsumerKey(key), 10);
    }
    let count = |verdict| match verdict {
        Verdict::Deliver {
            redelivery_count, ..
        } => redelivery_count,
        Verdict::Later => panic!("not delivered"),
    };
    assert_eq!(count(shared.place(&entry(0), 0)), 0);
    let holder = shared.pending_messages(at(0)).unwrap().0;
    let other = ConsumerKey(1 - holder.0);
    assert_eq!(shared.redeliver(other, Some(&[at(0)])), 0, "not its entry");
    assert_eq!(shared.redeliver(holder, Some(&[at(0)])), 1);
    assert_eq!(shared.want(10, false), Want::Replay(vec![at(0)]));
    assert_eq!(count(shared.place(&entry(0), 0)), 1);
    let holder = shared.pending_messages(at(0)).unwrap().0;
    shared.remove(holder);
    assert_eq!(
        count(shared.place(&entry(0), 0)),
        1,
        "a disconnect does not count"
    );
    let holder = shared.pending_messages(at(0)).unwrap().0;
    assert_eq!(shared.redeliver(holder, None), 1);
    assert_eq!(count(shared.place(&entry(0), 0)), 2);
}

#[test]
fn unacked_limits_block_and_unblock_at_half() {
    let mut shared = shared(Limits {
        unacked_per_subscription_max: 4,
        ..LIMITS
    });
    shared.add(flow(0, 0), &[]).unwrap();
    shared.add_permits(ConsumerKey(0), 100);
    let got = (0..10)
        .filter(|n| taker(shared.place(&entry(*n), 0)).is_some())
        .count();
    assert_eq!(got, 4);
    assert_eq!(shared.want(10, false), Want::Nothing);
    assert!(!shared.ack(at(0)));
    assert!(shared.ack(at(1)), "two left is half of four");
    assert!(matches!(shared.want(10, false), Want::Replay(_)));
    assert_eq!(shared.unacked(), 2);
}

#[test]
fn parts_of_a_batch_are_released_one_by_one() {
    let mut shared = shared(LIMITS);
    shared.add(flow(0, 0), &[]).unwrap();
    shared.add_permits(ConsumerKey(0), 3);
    shared.place(
        &Candidate {
            messages: 10,
            ..entry(0)
        },
        0,
    );
    assert_eq!(shared.flow(ConsumerKey(0)).unwrap().permits(), -7);
    shared.ack_part(at(0), 4);
    assert_eq!(shared.unacked(), 4);
    shared.ack_part(at(0), 4);
    shared.ack(at(0));
    assert_eq!(shared.unacked(), 0);
}

#[test]
fn delayed_entries_wait_for_their_time() {
    let mut shared = shared(LIMITS);
    shared.add(flow(0, 0), &[]).unwrap();
    shared.add_permits(ConsumerKey(0), 10);
    for (n, due) in [(0, 300), (1, 100), (2, 0)] {
        let verdict = shared.place(
            &Candidate {
                deliver_at_ms: due,
                ..entry(n)
            },
            50,
        );
        assert_eq!(taker(verdict).is_some(), due == 0);
    }
    assert_eq!((shared.delayed_len(), shared.next_due_ms()), (2, Some(100)));
    assert_eq!(shared.want(10, false), Want::Tail(9));
    assert!(shared.wake_due(100));
    assert_eq!(shared.want(10, false), Want::Replay(vec![at(1)]));
    let verdict = shared.place(
        &Candidate {
            deliver_at_ms: 100,
            ..entry(1)
        },
        100,
    );
    assert!(taker(verdict).is_some());
    assert!(!shared.wake_due(299));
}

#[test]
fn chunks_of_one_message_go_to_one_consumer() {
    let mut shared = shared(Limits {
        round_robin_messages_max: 1,
        ..LIMITS
    });
    for key in 0..3 {
        shared.add(flow(key, 0), &[]).unwrap();
        shared.add_permits(ConsumerKey(key), 10);
    }
    let piece = |n: i64, uuid: &str, id: i32| Candidate {
        chunk: Some(Chunk {
            uuid: uuid.into(),
            id,
            last: id == 2,
        }),
        ..entry(n)
    };
    let got: Vec<_> = [
        piece(0, "a", 0),
        piece(1, "b", 0),
        piece(2, "a", 1),
        piece(3, "b", 1),
        piece(4, "a", 2),
        piece(5, "b", 2),
        piece(6, "c", 1),
    ]
    .iter()
    .map(|piece| taker(shared.place(piece, 0)))
    .collect();
    assert_eq!(got[0], got[2]);
    assert_eq!(got[0], got[4]);
    assert_eq!(got[1], got[3]);
    assert_eq!(got[1], got[5]);
    assert_ne!(got[0], got[1]);
    assert_eq!(got[6], None, "its first piece was never seen");
}

#[test]
fn trap_13_a_hash_that_moves_is_drained_first() {
    let mut shared = key_shared(false);
    shared.add(flow(1, 0), &[]).unwrap();
    shared.add_permits(ConsumerKey(1), 100);
    shared.add_permits(ConsumerKey(2), 100);
    let by_key = |n: i64, hash: u32| Candidate { hash, ..entry(n) };
    for n in 0..50 {
        let verdict = shared.place(&by_key(n, 1 + n as u32 * 1_300), 0);
        assert_eq!(taker(verdict), Some(1));
    }
    shared.add(flow(2, 0), &[]).unwrap();
    shared.add_permits(ConsumerKey(2), 100);
    let (draining, entries) = shared.draining();
    assert!(
        draining > 5 && entries == draining as u64,
        "{draining} {entries}"
    );
    let moved: Vec<i64> = (0..50)
        .filter(|n| {
            let verdict = shared.place(&by_key(100 + n, 1 + *n as u32 * 1_300), 0);
            let got = taker(verdict);
            assert_ne!(
                got,
                Some(2),
                "hash of {n} is still out at the first consumer"
            );
            got.is_none()
        })
        .collect();
    assert_eq!(moved.len(), draining);
    assert_eq!(
        shared.want(100, false),
        Want::Tail(100),
        "nothing of the replay queue can go"
    );
    for n in &moved {
        assert!(shared.ack(at(*n)), "drained");
        assert_eq!(shared.want(1, false), Want::Replay(vec![at(100 + n)]));
        assert_eq!(
            taker(shared.place(&by_key(100 + n, 1 + *n as u32 * 1_300), 0)),
            Some(2)
        );
    }
    assert_eq!(shared.draining(), (0, 0));
}

#[test]
fn out_of_order_delivery_does_not_drain() {
    let mut shared = key_shared(true);
    shared.add(flow(1, 0), &[]).unwrap();
    shared.add_permits(ConsumerKey(1), 100);
    for n in 0..50u32 {
        shared.place(
            &Candidate {
                hash: 1 + n * 1_300,
                ..entry(n.into())
            },
            0,
        );
    }
    shared.add(flow(2, 0), &[]).unwrap();
    shared.add_permits(ConsumerKey(2), 100);
    assert_eq!(shared.draining(), (0, 0));
    let placed = (0..50u32)
        .filter_map(|n| {
            let candidate = Candidate {
                hash: 1 + n * 1_300,
                ..entry(100 + i64::from(n))
            };
            taker(shared.place(&candidate, 0))
        })
        .collect::<BTreeSet<_>>();
    assert_eq!(placed.len(), 2);
}

#[derive(Debug, Clone)]
enum Step {
    Join(u64),
    Leave(u64),
    Permits(u64, u32),
    Publish {
        key: u8,
        messages: u32,
    },
    Dispatch,
    /// The n-th oldest entry that is out.
    Ack(usize),
    Nack(usize),
    Writable(u64, bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => (0..4u64).prop_map(Step::Join),
        1 => (0..4u64).prop_map(Step::Leave),
        4 => ((0..4u64), 1..20u32).prop_map(|(key, n)| Step::Permits(key, n)),
        6 => (any::<u8>(), 1..4u32).prop_map(|(key, messages)| Step::Publish { key: key % 12, messages }),
        6 => Just(Step::Dispatch),
        6 => (0..8usize).prop_map(Step::Ack),
        2 => (0..8usize).prop_map(Step::Nack),
        1 => ((0..4u64), any::<bool>()).prop_map(|(key, on)| Step::Writable(key, on)),
    ]
}

/// Drives a dispatcher as `subscription` does and checks every delivery.
struct World {
    shared: Shared,
    in_order: bool,
    log: Vec<(u8, u32)>,
    read: usize,
    permits: HashMap<u64, i64>,
    out: HashMap<i64, u64>,
    acked: BTreeSet<i64>,
    joined: BTreeSet<u64>,
    unwritable: BTreeSet<u64>,
}

impl World {
    fn candidate(&self, n: i64) -> Candidate {
        let (key, messages) = self.log[n as usize];
        let hash = self.shared.routing_hash(&[key]);
        Candidate {
            messages,
            hash,
            ..entry(n)
        }
    }

    fn offer(&mut self, n: i64) -> bool {
        let candidate = self.candidate(n);
        let Verdict::Deliver { consumer, .. } = self.shared.place(&candidate, 0) else {
            return false;
        };
        let key = consumer.0;
        assert!(self.joined.contains(&key), "{key} is not here");
        assert!(!self.unwritable.contains(&key), "{key} is not writable");
        assert!(self.permits[&key] > 0, "no permits at {key}");
        assert!(!self.acked.contains(&n), "{n} was acked");
        assert_eq!(self.out.insert(n, key), None, "{n} is out twice");
        *self.permits.get_mut(&key).unwrap() -= i64::from(candidate.messages);
        if self.in_order {
            for (other, holder) in &self.out {
                let same = self.log[*other as usize].0 == self.log[n as usize].0;
                assert!(
                    !same || *holder == key,
                    "key of {n} is out at {holder} and {key}"
                );
            }
            for earlier in 0..n {
                let same = self.log[earlier as usize].0 == self.log[n as usize].0;
                let settled = self.acked.contains(&earlier) || self.out.contains_key(&earlier);
                assert!(!same || settled, "{n} went before {earlier}");
            }
        }
        true
    }

    fn dispatch(&mut self) {
        self.shared.begin();
        let mut past_replay = false;
        loop {
            match self.shared.want(10, past_replay) {
                Want::Nothing => break,
                Want::Replay(positions) => {
                    let mut any = false;
                    for position in positions {
                        any |= self.offer(position.entry.0);
                    }
                    past_replay = !any;
                }
                Want::Tail(max) => {
                    let end = self.log.len().min(self.read + max);
                    if end == self.read {
                        break;
                    }
                    for n in self.read..end {
                        self.offer(n as i64);
                    }
                    self.read = end;
                }
            }
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Join(key) => {
                if self.joined.insert(key) {
                    self.shared.add(flow(key, 0), &[]).unwrap();
                    self.permits.insert(key, 0);
                }
            }
            Step::Leave(key) => {
                if self.joined.remove(&key) {
                    self.shared.remove(ConsumerKey(key));
                    self.out.retain(|_, holder| *holder != key);
                    self.unwritable.remove(&key);
                }
            }
            Step::Permits(key, n) => {
                if self.joined.contains(&key) {
                    self.shared.add_permits(ConsumerKey(key), n);
                    *self.permits.get_mut(&key).unwrap() += i64::from(n);
                }
            }
            Step::Publish { key, messages } => self.log.push((key, messages)),
            Step::Dispatch => self.dispatch(),
            Step::Ack(nth) => {
                if let Some(n) = self.nth_out(nth) {
                    self.shared.ack(at(n));
                    self.out.remove(&n);
                    self.acked.insert(n);
                }
            }
            Step::Nack(nth) => {
                if let Some(n) = self.nth_out(nth) {
                    // As clients of an ordered key do: everything held goes back.
                    let holder = self.out[&n];
                    self.shared.redeliver(ConsumerKey(holder), None);
                    self.out.retain(|_, key| *key != holder);
                }
            }
            Step::Writable(key, on) => {
                if self.joined.contains(&key) {
                    self.shared.set_writable(ConsumerKey(key), on);
                    if on {
                        self.unwritable.remove(&key);
                    } else {
                        self.unwritable.insert(key);
                    }
                }
            }
        }
        let out: u64 = self
            .out
            .keys()
            .map(|n| u64::from(self.log[*n as usize].1))
            .sum();
        assert_eq!(self.shared.unacked(), out);
        let held: u64 = self.shared.consumers().iter().map(Flow::unacked).sum();
        assert_eq!(held, out);
        let mut ready = Ready::default();
        self.shared
            .consumers()
            .iter()
            .for_each(|flow| ready.add(flow));
        assert_eq!(self.shared.ready, ready, "kept up to date, not counted");
        let full: BTreeSet<u64> = self.shared.full.iter().map(|key| key.0).collect();
        assert_eq!(full, self.unwritable);
    }

    fn nth_out(&self, nth: usize) -> Option<i64> {
        let out: BTreeSet<i64> = self.out.keys().copied().collect();
        out.into_iter().nth(nth)
    }
}

fn check(shared: Shared, in_order: bool, steps: Vec<Step>) {
    let mut world = World {
        shared,
        in_order,
        log: Vec::new(),
        read: 0,
        permits: HashMap::new(),
        out: HashMap::new(),
        acked: BTreeSet::new(),
        joined: BTreeSet::new(),
        unwritable: BTreeSet::new(),
    };
    for step in steps {
        world.step(step);
    }
    // No starvation: one willing consumer drains everything.
    for key in 0..4 {
        world.step(Step::Leave(key));
    }
    world.step(Step::Join(7));
    for _ in 0..=world.log.len() {
        world.step(Step::Permits(7, 50));
        world.step(Step::Dispatch);
        while world.nth_out(0).is_some() {
            world.step(Step::Ack(0));
        }
    }
    assert_eq!(
        world.acked.len(),
        world.log.len(),
        "some entries were never delivered"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn shared_keeps_its_promises(steps in prop::collection::vec(step(), 0..120)) {
        check(shared(LIMITS), false, steps);
    }

    #[test]
    fn key_shared_keeps_its_promises(steps in prop::collection::vec(step(), 0..120)) {
        check(key_shared(false), true, steps);
    }

    #[test]
    fn key_shared_out_of_order_loses_nothing(steps in prop::collection::vec(step(), 0..120)) {
        check(key_shared(true), false, steps);
    }

    #[test]
    fn unacked_limits_lose_nothing(steps in prop::collection::vec(step(), 0..120)) {
        check(shared(Limits { unacked_per_subscription_max: 6, ..LIMITS }), false, steps);
    }
}
