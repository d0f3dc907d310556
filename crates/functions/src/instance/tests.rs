//! What an instance holds while its code is slow: bounded in bytes, and nothing is lost or out of order.

use super::commit::MadeOf;
use super::sink::WriteError;
use super::source::{Acker, TAKE_MAX_BYTES};
use super::work::{ASIDE_MAX_BYTES, IN_LINE_MAX_BYTES};
use super::*;
use crate::runtime::{BoxFuture, Message};

const MIB: usize = 1024 * 1024;
/// How many messages a test has.
const COUNT: u64 = 100;

/// Messages of one size, which are one memory, then the end.
struct Many {
    payload: bytes::Bytes,
    next: u64,
    count: u64,
}

impl Source for Many {
    fn next(&mut self, max: usize) -> BoxFuture<'_, Result<Vec<Incoming>, String>> {
        // When it is asked for, and not before: it may never be.
        Box::pin(async move {
            let fits = (TAKE_MAX_BYTES / self.payload.len()).clamp(1, max) as u64;
            let end = (self.next + fits).min(self.count);
            let some = (self.next..end).map(|number| Incoming {
                message: Arc::new(Message {
                    topic: "t".into(),
                    id: number.to_string(),
                    payload: self.payload.clone(),
                    ..Message::default()
                }),
                origin: Origin::File {
                    file: 0,
                    offset: number,
                },
            });
            let some = some.collect();
            self.next = end;
            Ok(some)
        })
    }

    fn acker(&self) -> Arc<dyn Acker> {
        Arc::new(Anything)
    }

    fn dead_letter_topic(&self, _message: &Message) -> Option<String> {
        None
    }
}

struct Anything;

impl Acker for Anything {
    fn ack(&self, _origins: Vec<Origin>, _durable: bool) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }
}

/// Does with messages what the test says.
struct Told {
    delivered: mpsc::Sender<Vec<Delivery>>,
    outcomes: mpsc::Receiver<Vec<Outcome>>,
}

impl Host for Told {
    fn window(&self) -> usize {
        1000
    }

    fn deliver(&mut self, batch: Vec<Delivery>) -> BoxFuture<'_, Result<(), Broken>> {
        Box::pin(async {
            let sent = self.delivered.send(batch).await;
            sent.map_err(|_| Broken::Stopped)
        })
    }

    fn outcomes(&mut self) -> BoxFuture<'_, Result<Vec<Outcome>, Broken>> {
        Box::pin(async { self.outcomes.recv().await.ok_or(Broken::Stopped) })
    }

    fn stop(&mut self, _grace: Duration) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// Notes what it is to write the outputs of.
struct Noted(Arc<Mutex<Vec<String>>>);

impl Sink for Noted {
    fn write<'a>(
        &'a mut self,
        input: &'a Message,
        _outputs: Vec<Output>,
        _txn: Option<&'a geminga_client::Transaction>,
    ) -> BoxFuture<'a, Result<Vec<geminga_client::Receipt>, WriteError>> {
        self.0.lock().push(input.id.clone());
        Box::pin(async { Ok(Vec::new()) })
    }

    fn dead_letter<'a>(
        &'a mut self,
        _topic: &'a str,
        _letter: guarantee::Letter,
        _input: &'a Message,
        _txn: Option<&'a geminga_client::Transaction>,
    ) -> BoxFuture<'a, Result<Vec<geminga_client::Receipt>, String>> {
        Box::pin(async { Err("nothing is given up".to_owned()) })
    }
}

fn outcome(ticket: u64, verdict: Verdict) -> Outcome {
    Outcome {
        ticket,
        verdict,
        outputs: Vec::new(),
        state: Vec::new(),
        took: Duration::ZERO,
    }
}

/// Messages of `size` bytes through code that answers when it gets no more, the last first; each fails so often
/// before. Gives the most that it had at once.
async fn most_held(size: usize, count: u64, failures: u32) -> usize {
    let written = Arc::default();
    let (delivered, mut deliveries) = mpsc::channel(1000);
    let (answers, outcomes) = mpsc::channel(1000);
    let instance = Instance {
        source: Box::new(Many {
            payload: vec![0; size].into(),
            next: 0,
            count,
        }),
        host: Some(Box::new(Told {
            delivered,
            outcomes,
        })),
        sink: Box::new(Noted(Arc::clone(&written))),
        state: None,
        once: None,
        gather: None,
        policy: Policy {
            guarantee: ProcessingGuarantees::AtleastOnce,
            retries: None,
            dead_letter_topic: None,
            retry_first: Duration::from_millis(1),
            ordered: true,
        },
        limits: None,
        log: None,
        gauge: Arc::default(),
        tasks: Tasks::new(),
    };
    let (_stop, stopped) = watch::channel(None);
    let answering = async {
        let (mut done, mut most) = (0, 0);
        while done < count {
            let mut held: Vec<Delivery> = Vec::new();
            let quiet = Duration::from_millis(100);
            while let Ok(Some(batch)) = tokio::time::timeout(quiet, deliveries.recv()).await {
                held.extend(batch);
            }
            most = most.max(held.len());
            let answer = held.iter().rev().map(|delivery| {
                let fails = delivery.message.redelivery < failures;
                done += u64::from(!fails);
                let verdict = match fails {
                    true => Verdict::Failed(Failure::new(FailureKind::Temporary, "no")),
                    false => Verdict::Done,
                };
                outcome(delivery.ticket, verdict)
            });
            let answer: Vec<Outcome> = answer.collect();
            if !answer.is_empty() {
                answers.try_send(answer).expect("it waits for them");
            }
        }
        most
    };
    let limit = Duration::from_secs(60);
    let both = async { tokio::join!(instance.run(stopped), answering) };
    let (ended, most) = tokio::time::timeout(limit, both).await.expect("it goes on");
    ended.expect("it ends well");
    let in_order = (0..count).map(|number| number.to_string());
    assert_eq!(*written.lock(), in_order.collect::<Vec<_>>());
    most
}

#[tokio::test(start_paused = true)]
async fn large_inputs_are_bounded_in_bytes_small_ones_by_count_and_one_always_passes() {
    for (size, least, most) in [
        (
            5 * MIB,
            13,
            (IN_LINE_MAX_BYTES + TAKE_MAX_BYTES) / (5 * MIB),
        ),
        (100, 1000, 1000),
        (2 * IN_LINE_MAX_BYTES, 1, 1),
    ] {
        let count = if size == 100 { 3000 } else { COUNT };
        let held = most_held(size, count, 0).await;
        assert!((least..=most).contains(&held), "{held} of {size} bytes");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_tried_again_in_line_has_its_room_there() {
    let most = most_held(5 * MIB, COUNT, 1).await;
    assert!(
        most * 5 * MIB <= IN_LINE_MAX_BYTES + TAKE_MAX_BYTES,
        "{most}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_waits_outside_the_line_for_another_try_is_bounded_too() {
    let (commits, _committing) = mpsc::channel(1);
    let (epochs, _committing) = mpsc::channel(1);
    let mut work = Work::new(1000, commits, epochs);
    let held = || Held {
        message: Arc::new(Message {
            payload: bytes::Bytes::from_static(&[0; MIB]),
            ..Message::default()
        }),
        origin: Origin::File { file: 0, offset: 0 },
        attempts: 0,
        parts: Vec::new(),
    };
    let now = Instant::now();
    let mut aside = 0;
    while work.has_room(false) {
        let ticket = work.push(held());
        let again = work.take_out(ticket).expect("in line");
        work.try_again(now, Again::Outside(again));
        aside += MIB;
    }
    assert_eq!(aside, ASIDE_MAX_BYTES);
    // Its next try makes room, until the line itself is full.
    let mut in_line = 0;
    while work.next_due(now).is_some() {
        in_line += MIB;
        assert_eq!(work.has_room(false), in_line < IN_LINE_MAX_BYTES);
    }
    assert_eq!(in_line, ASIDE_MAX_BYTES);
    for ticket in 0..1000 {
        work.line.finish(ticket, outcome(ticket, Verdict::Done));
    }
    while work.pop_finished().is_some() {}
    assert!(work.has_room(false) && work.line.is_empty());
}

#[test]
fn a_message_is_known_again_without_what_it_held() {
    let message = |place: Option<&str>, id: &str, window| {
        let place: Option<geminga_client::MessageId> = place.map(|id| id.parse().expect("an id"));
        let message = Arc::new(Message {
            topic: "t".into(),
            id: place.map_or(id.to_owned(), |place| place.to_string()),
            place,
            window,
            ..Message::default()
        });
        (message.clone(), MadeOf::of(&message))
    };
    let window = crate::runtime::Window {
        count: 1,
        start_ms: 0,
        end_ms: 1,
        last: String::new(),
    };
    for (message, made_of) in [
        message(Some("1:2:-1"), "", None),
        message(Some("1:2:3:4"), "", None),
        message(None, "file:7", None),
        message(None, "window 0-1", Some(window)),
    ] {
        let place = place_of(&message.topic, &message.id);
        assert_eq!(made_of.place(), place);
        let held = Arc::strong_count(&message);
        assert_eq!(held, if message.id == "file:7" { 2 } else { 1 }, "{place}");
    }
}
