use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

const UNIVERSE: u64 = 3 * WINDOW + 100;

#[derive(Debug, Clone)]
enum Step {
    Insert(u64, u64),
    /// So many, so far apart: they make bitmaps.
    Every(u64, u64, u64),
    RemoveBelow(u64),
    RemoveFrom(u64),
}

/// Near the edges of windows as often as anywhere.
fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..UNIVERSE,
        0..64_u64,
        (0..4_u64, 0..6_u64).prop_map(|(n, d)| (n * WINDOW + d).saturating_sub(3)),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(
        prop_oneof![
            8 => (offset(), 0..6_u64).prop_map(|(at, n)| Step::Insert(at, at + n)),
            2 => (offset(), 0..UNIVERSE).prop_map(|(at, n)| Step::Insert(at, at + n)),
            4 => (offset(), 2..5_u64, 0..300_u64).prop_map(|(at, by, n)| Step::Every(at, by, n)),
            1 => offset().prop_map(Step::RemoveBelow),
            1 => offset().prop_map(Step::RemoveFrom),
        ],
        0..40,
    )
}

fn apply(set: &mut RangeSet, model: &mut BTreeSet<u64>, step: &Step) -> Result<(), TestCaseError> {
    let mut insert = |range: Range<u64>| {
        let new = range.clone().filter(|x| model.insert(*x)).count() as u64;
        prop_assert_eq!(set.insert(range), new);
        Ok(())
    };
    match *step {
        Step::Insert(start, end) => insert(start..end)?,
        Step::Every(start, by, count) => {
            for n in 0..count {
                insert(start + n * by..start + n * by + 1)?;
            }
        }
        Step::RemoveBelow(at) => {
            set.remove_below(at);
            model.retain(|x| *x >= at);
        }
        Step::RemoveFrom(at) => {
            set.remove_from(at);
            model.retain(|x| *x < at);
        }
    }
    Ok(())
}

/// The model's ranges.
fn ranges(model: &BTreeSet<u64>) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for x in model {
        match ranges.last_mut() {
            Some(last) if last.end == *x => last.end = x + 1,
            _ => ranges.push(*x..x + 1),
        }
    }
    ranges
}

proptest! {
    #[test]
    fn behaves_as_a_plain_set(steps in steps(), looks in prop::collection::vec(offset(), 20)) {
        let mut set = RangeSet::default();
        let mut model = BTreeSet::new();
        for step in &steps {
            apply(&mut set, &mut model, step)?;
            prop_assert_eq!(set.covered(), model.len() as u64);
            let expected = ranges(&model);
            prop_assert_eq!(set.len(), expected.len());
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), expected);
            prop_assert_eq!(set.is_empty(), model.is_empty());
        }
        prop_assert!(set.dense.values().all(|bits| !bits.is_empty() && !bits.is_full()));
        for x in looks {
            prop_assert_eq!(set.contains(x), model.contains(&x));
            let gap = (x..).find(|y| !model.contains(y)).unwrap();
            prop_assert_eq!(set.next_gap(x), gap);
            let mut grown = set.clone();
            grown.insert(x..x + 1);
            let is_bitmap = set.dense.contains_key(&(x / WINDOW));
            prop_assert_eq!(set.would_grow(x), grown.len() > set.len() && !is_bitmap);
            let inside = model.range(x..x + 2 * WINDOW).count() as u64;
            prop_assert_eq!(set.covered_in(x..x + 2 * WINDOW), inside);
        }
        // However it came about.
        let mut same = RangeSet::default();
        for range in set.iter() {
            same.insert(range);
        }
        prop_assert_eq!(&same, &set);
    }
}

#[test]
fn a_million_acks_in_any_order_take_little_and_end_as_one_range() {
    let mut set = RangeSet::default();
    let count: u64 = 1_000_000;
    let mut heaviest = 0;
    for n in 0..count {
        // A step that has no factor in common with the count.
        let at = n * 618_033 % count;
        assert_eq!(set.insert(at..at + 1), 1);
        if n % 10_000 == 0 {
            heaviest = heaviest.max(set.weight());
        }
    }
    let most = (count / WINDOW + 1) as usize * (SPARSE_MAX + BITMAP_WEIGHT);
    assert!(heaviest <= most, "{heaviest}");
    assert!(set.iter().eq(std::iter::once(0..count)));
    assert_eq!((set.weight(), set.len()), (1, 1));
}

#[test]
fn the_largest_offsets_do_not_overflow() {
    let mut set = RangeSet::default();
    let last = u64::MAX;
    for n in 0..100 {
        set.insert(last - 2 * n - 2..last - 2 * n - 1);
    }
    assert!(set.dense.len() == 1, "a bitmap");
    assert_eq!(set.insert(last - 1..last), 1);
    assert!(set.contains(last - 1) && !set.contains(last));
    assert_eq!(set.next_gap(last - 2), last);
    set.insert(0..last);
    assert_eq!((set.covered(), set.next_gap(0)), (last, last));
    set.remove_below(last);
    assert!(set.is_empty());
}
