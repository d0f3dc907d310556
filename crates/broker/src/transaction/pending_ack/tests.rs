use proptest::prelude::*;

use super::*;

const A: TxnId = TxnId { tc: 0, number: 1 };
const B: TxnId = TxnId { tc: 0, number: 2 };

fn at(entry: i64) -> Position {
    Position::new(3, entry)
}

/// Acks these messages of a batch of ten.
fn part(entry: i64, indexes: &[u32]) -> PendingAck {
    let remaining = indexes
        .iter()
        .fold(0x3ff_i64, |set, index| set & !(1 << index));
    PendingAck::part(at(entry), acked_bits(&[remaining], 10), 10)
}

fn whole(entry: i64) -> PendingAck {
    PendingAck::entry(at(entry))
}

fn through(entry: i64) -> PendingAck {
    PendingAck::cumulative(at(entry), None)
}

#[test]
fn who_is_in_the_way_of_whom() {
    let partly = PendingAck::cumulative(at(5), Some(vec![0b1100]));
    // What is there (all of A), who asks, for what, and whether it may.
    let table: [(PendingAck, TxnId, PendingAck, bool); 17] = [
        (whole(1), B, whole(2), true),
        (whole(1), B, whole(1), false),
        (whole(1), A, whole(1), false),
        (whole(1), B, part(1, &[0]), false),
        (part(1, &[0]), B, whole(1), false),
        (part(1, &[0, 1]), B, part(1, &[2]), true),
        (part(1, &[0, 1]), B, part(1, &[1, 2]), false),
        (part(1, &[0, 1]), A, part(1, &[0]), false),
        (part(1, &[0, 1]), A, part(1, &[0, 1, 2]), true),
        (part(1, &[0]), B, part(2, &[0]), true),
        (through(5), A, through(6), true),
        (through(5), A, through(5), false),
        (through(5), A, through(4), false),
        (through(5), B, through(6), false),
        (partly.clone(), A, through(5), true),
        (through(5), A, partly.clone(), false),
        (
            partly,
            A,
            PendingAck::cumulative(at(5), Some(vec![0b1000])),
            true,
        ),
    ];
    for (before, txn, ack, may) in table {
        let mut pending = PendingAcks::default();
        assert_eq!(pending.check(A, std::slice::from_ref(&before)), Ok(()));
        pending.add(A, vec![before.clone()]);
        let got = pending.check(txn, std::slice::from_ref(&ack));
        assert_eq!(got.is_ok(), may, "{before:?}, then {txn} {ack:?}");
    }
    let pending = PendingAcks::default();
    assert!(pending.check(A, &[whole(1), whole(1)]).is_err());
}

#[test]
fn what_is_left_to_deliver() {
    let mut pending = PendingAcks::default();
    pending.add(A, vec![whole(1), part(2, &[0, 1])]);
    pending.add(B, vec![part(2, &[2])]);
    assert_eq!(pending.left(at(0), 1, None), Some(None));
    assert_eq!(pending.left(at(1), 1, None), None);
    assert_eq!(
        pending.left(at(2), 10, None),
        Some(Some(vec![0b11_1111_1000]))
    );
    // The cursor has 3 to 8 already.
    assert_eq!(
        pending.left(at(2), 10, Some(vec![0b10_0000_0111])),
        Some(Some(vec![0b10_0000_0000]))
    );
    assert_eq!(pending.left(at(2), 10, Some(vec![0b111])), None);
    assert!(pending.waits(at(2), Some(2)) && !pending.waits(at(2), Some(3)));
    let (acks, records, released) = pending.take(A).unwrap();
    assert_eq!((acks.len(), records, released.len()), (2, 1, 2));
    assert_eq!(pending.left(at(1), 1, None), Some(None));
    assert_eq!(
        pending.left(at(2), 10, None),
        Some(Some(vec![0b11_1111_1011]))
    );
    pending.take(B).unwrap();
    assert!(pending.is_empty() && pending.entries.is_empty());
}

#[test]
fn a_cumulative_ack_hides_what_lies_below() {
    let mut pending = PendingAcks::default();
    pending.add(A, vec![PendingAck::cumulative(at(5), Some(vec![0b1100]))]);
    assert_eq!(pending.left(at(4), 1, None), None);
    assert_eq!(pending.left(at(5), 4, None), Some(Some(vec![0b1100])));
    assert_eq!(pending.left(at(6), 1, None), Some(None));
    assert_eq!(pending.cumulative_of(A), Some(at(5)));
    pending.take(A);
    assert_eq!(pending.left(at(4), 1, None), Some(None));
}

#[test]
fn what_was_parked_goes_back_once() {
    let mut pending = PendingAcks::default();
    pending.add(A, vec![whole(1), whole(2)]);
    pending.park(at(1), 77);
    let (_, _, released) = pending.take(A).unwrap();
    let parked: Vec<Option<u32>> = released.iter().map(|released| released.parked).collect();
    assert_eq!(parked, [Some(77), None]);
}

#[test]
fn a_stored_ack_reads_back() {
    for ack in [whole(1), part(2, &[0]), through(3)] {
        let text = serde_json::to_vec(&ack).unwrap();
        assert_eq!(serde_json::from_slice::<PendingAck>(&text).unwrap(), ack);
    }
}

proptest! {
    /// Two transactions never hold the same message, and what is left is what neither holds.
    #[test]
    fn no_message_is_held_twice(
        steps in proptest::collection::vec((0..3u64, 0..3i64, 0..1024i64, 0..5u8), 0..60)
    ) {
        let mut pending = PendingAcks::default();
        let mut holder: HashMap<(i64, u32), u64> = HashMap::new();
        for (number, entry, remaining, what) in steps {
            let txn = TxnId { tc: 0, number };
            if what == 0 {
                let had = pending.take(txn).is_some();
                prop_assert_eq!(had, holder.values().any(|held| *held == number));
                holder.retain(|_, held| *held != number);
            } else {
                let (ack, bits): (_, Vec<u32>) = if what == 1 {
                    (whole(entry), (0..10).collect())
                } else {
                    let ack = PendingAck::part(at(entry), acked_bits(&[remaining], 10), 10);
                    (ack, (0..10).filter(|bit| remaining >> bit & 1 == 0).collect())
                };
                let held = |bit: &u32| holder.get(&(entry, *bit)).copied();
                let by_other = bits.iter().filter_map(held).any(|held| held != number);
                let all_mine = bits.iter().all(|bit| held(bit) == Some(number));
                let any = (0..10).any(|bit| held(&bit).is_some());
                let may = if what == 1 { !any } else { !(by_other || any && all_mine) };
                let got = pending.check(txn, std::slice::from_ref(&ack));
                if bits.is_empty() {
                    continue;
                }
                // A whole entry held by itself is held by ten bits here.
                prop_assert_eq!(got.is_ok(), may, "{:?} {:?}", ack, holder);
                if may {
                    pending.add(txn, vec![ack]);
                    holder.extend(bits.iter().map(|bit| ((entry, *bit), number)));
                }
            }
            for entry in 0..3 {
                let free = (0..10)
                    .filter(|bit| !holder.contains_key(&(entry, *bit)))
                    .fold(0i64, |set, bit| set | 1 << bit);
                let left = pending.left(at(entry), 10, Some(vec![0x3ff]));
                prop_assert_eq!(left.flatten().map_or(0, |words| words[0]), free);
            }
        }
    }
}

/// A client says how many messages the batch has of which it acks a part.
#[test]
fn the_bits_are_as_many_as_the_batch_has() {
    assert_eq!(acked_bits(&[0b0110], 4), [0b1001]);
    assert_eq!(acked_bits(&[-1; 1_000], 70), [0, 0]);
    assert_eq!(acked_bits(&[], 65), [u64::MAX, 1]);
}
