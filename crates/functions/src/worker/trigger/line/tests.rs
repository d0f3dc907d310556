//! Calls, answers and ends of a line, without a broker.

use super::super::{CLOSE_LIMIT, Lines};
use super::*;

fn line() -> Line {
    let client = Client::builder("pulsar://127.0.0.1:1").build();
    let id = "function public/default/f".parse().expect("an id");
    Line::new(id, 1, true, client)
}

fn end_at(line: &Line, stage: Stage) -> bool {
    line.calls.lock().end_at(stage).is_some()
}

#[tokio::test]
async fn a_line_that_has_decided_to_end_takes_no_more_calls() {
    for (stage, ends_busy, ends_idle) in [
        (Stage::Open, false, false),
        (Stage::Retiring, false, true),
        (Stage::Ending, true, true),
    ] {
        let line = line();
        let call = begin(&line);
        assert_eq!(end_at(&line, stage), ends_busy, "{stage:?}");
        drop(call);
        assert_eq!(end_at(&line, stage), ends_idle, "{stage:?}");
        assert_eq!(Call::begin(&line).is_none(), ends_idle, "{stage:?}");
    }
}

/// A deletion finds every line, however old; one that is made meanwhile has no place any more.
#[tokio::test]
async fn a_deletion_finds_every_line() {
    let (lines, old, new, late) = (
        Lines::default(),
        Arc::new(line()),
        Arc::new(line()),
        Arc::new(line()),
    );
    let slot = lines.slot(&old.id);
    lines.add(&slot, &old);
    lines.retire(&old.id);
    lines.add(&slot, &new);
    assert_eq!(
        (*old.stage.borrow(), *new.stage.borrow()),
        (Stage::Retiring, Stage::Open)
    );
    tokio::select! {
        biased;
        () = lines.close(&old.id) => panic!("nobody has closed them"),
        () = std::future::ready(()) => {}
    }
    assert_eq!(
        (*old.stage.borrow(), *new.stage.borrow()),
        (Stage::Ending, Stage::Ending)
    );
    lines.add(&slot, &late);
    assert_eq!(*late.stage.borrow(), Stage::Ending);
    assert!(Call::begin(&late).is_none());
    assert!(!Arc::ptr_eq(&lines.slot(&old.id), &slot));
}

/// A deletion's answer waits for it: what sends has a producer, which would be there afterwards.
#[tokio::test]
async fn a_line_is_not_gone_while_a_call_is_sending() {
    for is_sent in [true, false] {
        let line = line();
        let (mut first, second) = (begin(&line), begin(&line));
        let mut closing = std::pin::pin!(line.close([None, None], End::Deleted));
        let mut is_pending = async || {
            tokio::select! {
                biased;
                () = &mut closing => false,
                () = std::future::ready(()) => true,
            }
        };
        assert!(is_pending().await, "two are sending");
        drop(second);
        assert!(is_pending().await, "one is sending");
        assert!(*line.stage.borrow() < Stage::Gone && Call::begin(&line).is_none());
        if is_sent {
            // That nothing comes any more is known at once.
            assert_eq!(first.sent(id(1)).recv().await, None);
        } else {
            drop(first);
        }
        tokio::time::timeout(CLOSE_LIMIT, closing)
            .await
            .expect("gone");
        assert_eq!(*line.stage.borrow(), Stage::Gone);
    }
}

fn begin(line: &Line) -> Call<'_> {
    Call::begin(line).expect("open")
}

fn id(entry_id: i64) -> MessageId {
    format!("7:{entry_id}:-1").parse().expect("an id")
}

#[test]
fn an_output_of_pulsars_own_instance_names_the_same_message() {
    let keys = keys_of("2:1:-1".parse().expect("an id"));
    // As the instance for Java writes it: with a batch of no messages.
    assert!(keys.contains(&output_key("CAIQATAA")), "{keys:?}");
    assert!(!keys.contains(&output_key("CAIQAjAA")), "another entry");
    assert!(!keys.contains(&output_key("no id")));
}

/// A function that has the same topics is not asked.
#[test]
fn an_answer_is_the_functions_own() {
    let own = "public/default/f";
    let other = "public/default/g";
    for (names, is_own, is_own_if_compat) in [
        (&[own][..], true, true),
        (&[other], false, false),
        (&[other, own], true, true),
        (&[own, other], false, false),
        // Pulsar's own instances do not say it.
        (&[], false, true),
    ] {
        let names = names.iter();
        let properties = names.map(|name| (FUNCTION.to_owned(), (*name).to_owned()));
        let properties: Vec<_> = properties.collect();
        let mut line = line();
        assert_eq!(line.is_own(&properties), is_own, "{properties:?}");
        line.may_be_compat = true;
        assert_eq!(line.is_own(&properties), is_own_if_compat, "{properties:?}");
    }
}

fn failed(line: &Line, entry: i64) {
    line.answer(dead_key(&id(entry).to_string()), || {
        Answered::Failed(entry.to_string())
    });
}

#[tokio::test]
async fn an_answer_finds_its_call_whichever_comes_first() {
    let line = line();
    let (mut first, mut second) = (begin(&line), begin(&line));
    failed(&line, 2);
    let mut of_second = second.sent(id(2));
    assert_eq!(
        of_second.recv().await,
        Some(Answered::Failed("2".to_owned()))
    );
    let mut of_first = first.sent(id(1));
    failed(&line, 1);
    // The first answer is the answer.
    line.answer(dead_key(&id(1).to_string()), || Answered::Nothing);
    assert_eq!(
        of_first.recv().await,
        Some(Answered::Failed("1".to_owned()))
    );
    drop((first, second));
    failed(&line, 3);
    let calls = line.calls.lock();
    assert!(calls.waiting.is_empty() && calls.early.is_empty() && calls.sending == 0);
}

#[tokio::test]
async fn early_answers_are_bounded_and_a_line_that_ends_says_so() {
    let line = line();
    let mut call = begin(&line);
    for entry in 0..10_000 {
        failed(&line, entry);
    }
    assert_eq!(line.calls.lock().early.len(), EARLY_MAX);
    let answers = begin(&line);
    drop(answers);
    assert_eq!(line.calls.lock().sending, 1);
    line.calls.lock().ended = Some(End::Idle);
    let mut answers = call.sent(id(-5));
    assert_eq!(answers.recv().await, None);
    assert_eq!(line.calls.lock().early_bytes, 0);
}
