//! The table by itself.

use super::*;

fn receipt(first: u64, highest: Option<u64>) -> Receipt {
    Receipt {
        sequence_id: first,
        highest_sequence_id: highest,
        counts: Counts::BySequence,
    }
}

fn dedup(max: usize) -> Dedup {
    let mut dedup = Dedup::new("here", max, 0);
    dedup.ready = true;
    dedup
}

fn name(text: &str) -> Arc<str> {
    text.into()
}

#[test]
fn trap_12_only_what_is_durable_is_a_duplicate() {
    let mut dedup = dedup(10);
    let producer = name("p");
    let run = [receipt(0, None), receipt(1, Some(4)), receipt(9, None)];
    assert_eq!(dedup.check("p", &run), Ok(Some(9)), "gaps are allowed");
    dedup.pushed(&producer, 9, 1);
    assert!(dedup.is_in_flight("p"));
    assert_eq!(dedup.check("p", &[receipt(3, None)]), Err(NotAllNew));
    assert_eq!(dedup.judge("p", &receipt(3, None)), Verdict::InFlight);
    dedup.persisted("p", 4);
    assert_eq!(dedup.judge("p", &receipt(3, None)), Verdict::Duplicate);
    assert_eq!(dedup.judge("p", &receipt(5, Some(20))), Verdict::InFlight);
    dedup.persisted("p", 9);
    // A batch goes by its first id, as in Pulsar.
    assert_eq!(dedup.judge("p", &receipt(5, Some(20))), Verdict::Duplicate);
    assert_eq!(dedup.judge("p", &receipt(10, None)), Verdict::New);
    assert_eq!(dedup.judge("q", &receipt(0, None)), Verdict::New);
    assert_eq!(dedup.last_sequence_id("p"), 9);
    assert_eq!(dedup.last_sequence_id("q"), -1);
}

#[test]
fn ids_that_repeat_within_a_run_are_seen() {
    let dedup = dedup(10);
    assert_eq!(
        dedup.check("p", &[receipt(1, None), receipt(1, None)]),
        Err(NotAllNew)
    );
    assert_eq!(
        dedup.check("p", &[receipt(1, Some(5)), receipt(5, None)]),
        Err(NotAllNew)
    );
    assert_eq!(
        dedup.check("p", &[receipt(1, Some(5)), receipt(6, None)]),
        Ok(Some(6))
    );
}

#[test]
fn of_a_chunked_message_only_the_last_chunk_counts() {
    let mut dedup = dedup(10);
    let part = Receipt {
        counts: Counts::No,
        ..receipt(7, None)
    };
    assert_eq!(dedup.check("p", &[part]), Ok(None));
    assert_eq!(
        dedup.check("p", &[part, part, receipt(7, None)]),
        Ok(Some(7))
    );
    dedup.restore("p", 7, 0);
    assert_eq!(dedup.judge("p", &part), Verdict::New);
    assert_eq!(dedup.judge("p", &receipt(7, None)), Verdict::Duplicate);
}

#[test]
fn a_snapshot_has_what_is_durable_and_nothing_else() {
    let mut dedup = dedup(10);
    dedup.pushed(&name("half"), 5, 3);
    dedup.persisted("half", 2);
    dedup.pushed(&name("not"), 5, 4);
    dedup.pushed(&name("all of it"), 8, 5);
    dedup.persisted("all of it", 8);
    let snapshot = dedup.begin_save(100);
    assert!(!dedup.may_save());
    let mut again = Dedup::new("here", 10, 0);
    again.load(&snapshot);
    assert_eq!(again.last_sequence_id("half"), 2);
    assert_eq!(again.last_sequence_id("not"), -1);
    assert_eq!(again.last_sequence_id("all of it"), 8);
    assert_eq!(again.producers["all of it"].seen_ms, 5);
    // A replay onto a snapshot that has it already changes nothing.
    let head = Peek {
        producer_name: "all of it",
        sequence_id: 6,
        ..Peek::default()
    };
    again.replay(&head, None, 9);
    assert_eq!(again.last_sequence_id("all of it"), 8);
}

#[test]
fn idle_producers_are_forgotten_and_never_more_than_the_limit_kept() {
    let mut dedup = dedup(100);
    for number in 0..1_000u64 {
        let producer = name(&format!("p{number}"));
        dedup.pushed(&producer, 1, number);
        if number != 3 {
            dedup.persisted(&producer, 1);
        }
        assert!(dedup.producers.len() <= 100);
    }
    assert_eq!(dedup.last_sequence_id("p999"), 1);
    assert_eq!(dedup.last_sequence_id("p3"), 1, "it is on its way");
    assert_eq!(dedup.last_sequence_id("p0"), -1);
    dedup.purge(990, |name| name == "p980");
    let mut left: Vec<&str> = dedup.producers.keys().map(|name| &**name).collect();
    left.sort_unstable();
    assert_eq!(left.len(), 12, "{left:?}");
    assert!(left.contains(&"p3") && left.contains(&"p980") && left.contains(&"p990"));
}

#[test]
fn a_replicator_goes_by_places_in_its_source_also_after_a_restart() {
    let at = |ledger, entry| Receipt {
        sequence_id: ledger,
        highest_sequence_id: Some(entry),
        counts: Counts::BySource,
    };
    let replicator = "pulsar.repl.there-->here";
    let mut dedup = dedup(10);
    let run = [at(3, 900), at(4, 0), at(4, 1)];
    let last = dedup.check(replicator, &run).unwrap().unwrap();
    dedup.pushed(&name(replicator), last, 1);
    assert_eq!(dedup.judge(replicator, &at(4, 1)), Verdict::InFlight);
    dedup.persisted(replicator, last);
    assert_eq!(dedup.last_sequence_id(replicator), -1, "no number of ours");
    let mut again = Dedup::new("here", 10, 0);
    again.load(&dedup.begin_save(2));
    // The message's own producer has nothing to do with it.
    let head = Peek {
        producer_name: "p",
        sequence_id: 70,
        replicated_from: Some("there"),
        ..Peek::default()
    };
    again.replay(&head, Some((4, 2)), 3);
    assert_eq!(again.last_sequence_id("p"), -1);
    for (receipt, verdict) in [
        (at(3, 1_000), Verdict::Duplicate),
        (at(4, 2), Verdict::Duplicate),
        (at(4, 3), Verdict::New),
        (at(5, 0), Verdict::New),
    ] {
        assert_eq!(again.judge(replicator, &receipt), verdict, "{receipt:?}");
    }
}
