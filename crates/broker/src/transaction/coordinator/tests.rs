use proptest::prelude::*;

use super::Outcome::{Aborted, Committed};
use super::*;

fn ready() -> Coordinator {
    let mut coordinator = Coordinator::new(0);
    coordinator.reserved(1_000_000);
    coordinator
}

fn begin(coordinator: &mut Coordinator, now_ms: u64) -> u64 {
    match coordinator.begin(now_ms, 100, 0, 10).unwrap() {
        New::Number(number) => number,
        New::Reserve(_) => panic!("numbers are reserved"),
    }
}

#[test]
fn what_an_end_is_answered() {
    // What came before, what is asked, what is answered.
    type Answer = Result<&'static str, Refusal>;
    let table: [(&[&str], Outcome, Answer); 10] = [
        (&[], Committed, Ok("begin")),
        (&[], Aborted, Ok("begin")),
        (&["commit"], Committed, Ok("under way")),
        (&["commit"], Aborted, Err(Refusal::Ended)),
        (&["abort"], Committed, Err(Refusal::Ended)),
        (&["commit", "done"], Committed, Ok("done")),
        (&["commit", "done"], Aborted, Err(Refusal::Ended)),
        (&["abort", "done"], Committed, Err(Refusal::Ended)),
        (&["abort", "done"], Aborted, Ok("done")),
        (&["commit", "failed"], Aborted, Ok("begin")),
    ];
    for (before, asked, answer) in table {
        let mut coordinator = ready();
        let number = begin(&mut coordinator, 0);
        let mut outcome = Committed;
        for step in before {
            match *step {
                "commit" => drop(coordinator.end(number, Committed)),
                "abort" => {
                    outcome = Aborted;
                    drop(coordinator.end(number, Aborted));
                }
                "done" => coordinator.ended(number, outcome),
                _ => coordinator.failed(number),
            }
        }
        let got = coordinator.end(number, asked).map(|end| match end {
            End::Begin { .. } => "begin",
            End::UnderWay => "under way",
            End::Done => "done",
        });
        assert_eq!(got, answer, "{before:?}, then {asked:?}");
    }
    assert_eq!(ready().end(7, Committed), Err(Refusal::NotFound));
}

#[test]
fn only_an_open_one_is_joined() {
    let mut coordinator = ready();
    let number = begin(&mut coordinator, 0);
    let (topic, name): (Arc<str>, Arc<str>) = ("t".into(), "s".into());
    assert_eq!(coordinator.add_partition(number, &topic), Ok(true));
    assert_eq!(coordinator.add_partition(number, &topic), Ok(false));
    let subscription = (topic.clone(), name);
    assert_eq!(
        coordinator.add_subscription(number, subscription.clone()),
        Ok(true)
    );
    let End::Begin {
        partitions,
        subscriptions,
    } = coordinator.end(number, Committed).unwrap()
    else {
        panic!("it is ours to carry out");
    };
    assert_eq!(
        (partitions, subscriptions),
        (vec![topic.clone()], vec![subscription])
    );
    assert_eq!(
        coordinator.add_partition(number, &topic),
        Err(Refusal::Ended)
    );
    assert!(!coordinator.is_deciding("t"));
    coordinator.deciding(number);
    assert!(coordinator.is_deciding("t"));
    coordinator.ended(number, Committed);
    assert!(!coordinator.is_deciding("t"));
    assert_eq!(
        coordinator.add_partition(number, &topic),
        Err(Refusal::Ended)
    );
    assert_eq!(
        coordinator.add_partition(99, &topic),
        Err(Refusal::NotFound)
    );
}

#[test]
fn numbers_are_given_out_below_what_is_stored() {
    let mut coordinator = Coordinator::new(0);
    assert_eq!(coordinator.begin(0, 1, 0, 2), Ok(New::Reserve(3)));
    coordinator.reserved(3);
    assert_eq!(begin(&mut coordinator, 0), 1);
    assert_eq!(begin(&mut coordinator, 0), 2);
    assert_eq!(coordinator.begin(0, 1, 0, 2), Ok(New::Reserve(5)));
    // After a crash: whatever was given out was below 3.
    let mut coordinator = Coordinator::new(3);
    assert_eq!(coordinator.begin(0, 1, 0, 2), Ok(New::Reserve(5)));
    coordinator.reserved(5);
    assert_eq!(begin(&mut coordinator, 0), 3);
}

#[test]
fn a_limit_counts_those_not_ended() {
    let mut coordinator = ready();
    let first = begin(&mut coordinator, 0);
    begin(&mut coordinator, 0);
    assert_eq!(coordinator.begin(0, 1, 2, 1), Err(Refusal::TooMany));
    drop(coordinator.end(first, Aborted));
    coordinator.ended(first, Aborted);
    assert!(coordinator.begin(0, 1, 2, 1).is_ok());
}

#[test]
fn time_is_up_once_and_in_order() {
    let mut coordinator = ready();
    let numbers: Vec<u64> = (0..4).map(|n| begin(&mut coordinator, n * 10)).collect();
    assert_eq!(coordinator.next_deadline_ms(), Some(100));
    assert!(coordinator.overdue(99).is_empty());
    assert_eq!(coordinator.overdue(110), numbers[..2]);
    drop(coordinator.end(numbers[0], Committed));
    assert_eq!(coordinator.overdue(110), numbers[1..2], "it is ending");
    assert_eq!(coordinator.low_watermark(), 0);
    coordinator.ended(numbers[0], Committed);
    assert_eq!(coordinator.low_watermark(), 1);
    assert_eq!(coordinator.next_deadline_ms(), Some(110));
}

#[test]
fn old_outcomes_are_forgotten_in_order_unless_needed() {
    let mut coordinator = ready();
    for _ in 0..ENDED_MAX + 3 {
        let number = begin(&mut coordinator, 0);
        drop(coordinator.end(number, Committed));
        coordinator.ended(number, Committed);
    }
    assert_eq!(coordinator.forget(|number| number == 2), [1]);
    assert_eq!(coordinator.forget(|_| false), [2, 3]);
    assert_eq!(coordinator.outcome(3), None);
    assert_eq!(coordinator.outcome(4), Some(Committed));
}

#[derive(Debug, Clone)]
enum Step {
    Begin,
    Add(usize, u8),
    End(usize, bool),
    Deciding(usize),
    Ended(usize),
    Failed(usize),
    Tick,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let at = 0..8usize;
    proptest::collection::vec(
        prop_oneof![
            2 => Just(Step::Begin),
            2 => (at.clone(), 0..4u8).prop_map(|(at, topic)| Step::Add(at, topic)),
            2 => (at.clone(), any::<bool>()).prop_map(|(at, commit)| Step::End(at, commit)),
            1 => at.clone().prop_map(Step::Deciding),
            2 => at.clone().prop_map(Step::Ended),
            1 => at.prop_map(Step::Failed),
            1 => Just(Step::Tick),
        ],
        0..120,
    )
}

proptest! {
    /// An outcome never changes, nothing joins what is ending, and what began to end is owned by
    /// exactly one caller.
    #[test]
    fn an_outcome_is_final(steps in steps()) {
        let mut coordinator = ready();
        let mut numbers = Vec::new();
        let mut decided: HashMap<u64, Outcome> = HashMap::new();
        let mut owned: HashMap<u64, Outcome> = HashMap::new();
        let mut now_ms = 0;
        for step in steps {
            let pick = |at: usize| numbers.get(at % numbers.len().max(1)).copied().unwrap_or(0);
            match step {
                Step::Begin => {
                    let number = begin(&mut coordinator, now_ms);
                    prop_assert!(numbers.last().is_none_or(|last| *last < number));
                    numbers.push(number);
                }
                Step::Add(at, topic) => {
                    let number = pick(at);
                    let added = coordinator.add_partition(number, &format!("t{topic}").into());
                    let busy = owned.contains_key(&number) || decided.contains_key(&number);
                    prop_assert_eq!(added.is_ok(), number > 0 && !busy);
                }
                Step::End(at, commit) => {
                    let number = pick(at);
                    let outcome = if commit { Committed } else { Aborted };
                    match coordinator.end(number, outcome) {
                        Ok(End::Begin { .. }) => {
                            prop_assert!(!decided.contains_key(&number));
                            prop_assert!(owned.insert(number, outcome).is_none());
                        }
                        Ok(End::UnderWay) => prop_assert_eq!(owned.get(&number), Some(&outcome)),
                        Ok(End::Done) => prop_assert_eq!(decided.get(&number), Some(&outcome)),
                        Err(Refusal::NotFound) => prop_assert_eq!(number, 0),
                        Err(_) => {
                            let known = owned.get(&number).or(decided.get(&number));
                            prop_assert!(known.is_some_and(|known| *known != outcome));
                        }
                    }
                }
                Step::Deciding(at) => {
                    if owned.contains_key(&pick(at)) {
                        coordinator.deciding(pick(at));
                    }
                }
                Step::Ended(at) => {
                    if let Some(outcome) = owned.remove(&pick(at)) {
                        coordinator.ended(pick(at), outcome);
                        decided.insert(pick(at), outcome);
                    }
                }
                Step::Failed(at) => {
                    if owned.remove(&pick(at)).is_some() {
                        coordinator.failed(pick(at));
                    }
                }
                Step::Tick => now_ms += 60,
            }
            for number in coordinator.overdue(now_ms) {
                prop_assert!(!owned.contains_key(&number) && !decided.contains_key(&number));
            }
            for (number, outcome) in &decided {
                prop_assert_eq!(coordinator.outcome(*number), Some(*outcome));
                prop_assert!(coordinator.get(*number).is_none());
            }
            let oldest = coordinator.iter().next().map(|(number, _)| number);
            prop_assert!(oldest.is_none_or(|oldest| coordinator.low_watermark() == oldest - 1));
        }
    }
}
