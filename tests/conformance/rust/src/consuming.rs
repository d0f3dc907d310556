//! Subscriptions of all types, readers, seeking, redelivery, dead letters, patterns.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use futures::TryStreamExt;
use pulsar::consumer::DeadLetterPolicy;
use pulsar::{SubType, proto::MessageIdData};

use crate::support::*;

tests! {
    exclusive_is_for_one,
    shared_delivers_once,
    failover_takes_over,
    key_shared_keeps_keys_together,
    cumulative_acknowledgement,
    refused_messages_come_again,
    dead_letters,
    seeking_by_id_and_time,
    a_reader_reads_it_all,
    the_last_message_id,
    delayed_messages_wait,
    topics_by_pattern,
    unsubscribing_forgets,
    several_topics,
    stats_of_a_consumer,
}

async fn exclusive_is_for_one() -> Outcome {
    let client = client().await?;
    let topic = topic("exclusive");
    let mut consumer = subscribe(&client, &topic, SubType::Exclusive).await?;
    same!(
        subscribe(&client, &topic, SubType::Exclusive)
            .await
            .is_err(),
        true
    );
    send(&mut producer(&client, &topic).await?, &["a", "b", "c"]).await?;
    same!(texts(&mut consumer, 3).await?, ["a", "b", "c"]);
    Ok(())
}

async fn shared_delivers_once() -> Outcome {
    let client = client().await?;
    let topic = topic("shared");
    let mut one = subscribe(&client, &topic, SubType::Shared).await?;
    let mut two = subscribe(&client, &topic, SubType::Shared).await?;
    let mut producer = producer(&client, &topic).await?;
    for number in 0..40 {
        producer
            .send_non_blocking(number.to_string())
            .await?
            .await?;
    }
    let (mut seen, mut counts) = (BTreeSet::new(), [0, 0]);
    while seen.len() < 40 {
        let (at, message) = tokio::select! {
            message = next(&mut one) => (0, message?),
            message = next(&mut two) => (1, message?),
        };
        if at == 0 {
            one.ack(&message).await?
        } else {
            two.ack(&message).await?
        }
        counts[at] += 1;
        same!(seen.insert(message.deserialize()?), true);
    }
    same!(counts.iter().all(|count| *count > 5), true);
    Ok(())
}

async fn failover_takes_over() -> Outcome {
    let client = client().await?;
    let topic = topic("failover");
    let mut consumers = Vec::new();
    for name in ["a", "b"] {
        let builder = subscribing(&client, &topic, SubType::Failover).with_consumer_name(name);
        let consumer: Texts = builder.build().await?;
        consumers.push(consumer);
    }
    let mut producer = producer(&client, &topic).await?;
    send(&mut producer, &["first"]).await?;
    let (left, right) = consumers.split_at_mut(1);
    let (active, message) = tokio::select! {
        message = next(&mut left[0]) => (0, message?),
        message = next(&mut right[0]) => (1, message?),
    };
    consumers[active].ack(&message).await?;
    let mut other = consumers.remove(1 - active);
    consumers.remove(0).close().await?;
    send(&mut producer, &["second"]).await?;
    // The ack of the first may have been on its way when its consumer left.
    let message = next(&mut other).await?;
    let text = message.deserialize()?;
    same!(
        if text == "first" {
            next(&mut other).await?.deserialize()?
        } else {
            text
        },
        "second"
    );
    Ok(())
}

async fn key_shared_keeps_keys_together() -> Outcome {
    let client = client().await?;
    let topic = topic("keys");
    let mut consumers = Vec::new();
    for name in ["a", "b"] {
        let builder = subscribing(&client, &topic, SubType::KeyShared).with_consumer_name(name);
        let consumer: Texts = builder.build().await?;
        consumers.push(consumer);
    }
    let mut producer = producer(&client, &topic).await?;
    for number in 0..60 {
        let message = producer
            .create_message()
            .with_content(number.to_string())
            .with_key(format!("key-{}", number % 10));
        message.send_non_blocking().await?.await?;
    }
    let mut last = BTreeMap::<String, (usize, u32)>::new();
    let (left, right) = consumers.split_at_mut(1);
    for _ in 0..60 {
        let (at, message) = tokio::select! {
            message = next(&mut left[0]) => (0, message?),
            message = next(&mut right[0]) => (1, message?),
        };
        if at == 0 {
            left[0].ack(&message).await?
        } else {
            right[0].ack(&message).await?
        }
        let number: u32 = message.deserialize()?.parse()?;
        let key = message.key().ok_or("no key")?;
        if let Some((before, previous)) = last.insert(key, (at, number)) {
            same!(before, at);
            same!(previous < number, true);
        }
    }
    Ok(())
}

async fn cumulative_acknowledgement() -> Outcome {
    let client = client().await?;
    let topic = topic("cumulative");
    let mut consumer = subscribe(&client, &topic, SubType::Exclusive).await?;
    send(&mut producer(&client, &topic).await?, &["a", "b", "c"]).await?;
    next(&mut consumer).await?;
    let second = next(&mut consumer).await?;
    consumer.cumulative_ack(&second).await?;
    // Answered in order, so the ack has arrived when this has.
    consumer.get_last_message_id().await?;
    consumer.close().await?;
    let mut again = subscribe(&client, &topic, SubType::Exclusive).await?;
    same!(texts(&mut again, 1).await?, ["c"]);
    Ok(())
}

async fn refused_messages_come_again() -> Outcome {
    let client = client().await?;
    let topic = topic("refused");
    let builder = subscribing(&client, &topic, SubType::Shared)
        .with_unacked_message_resend_delay(Some(Duration::from_millis(100)));
    let mut consumer: Texts = builder.build().await?;
    send(&mut producer(&client, &topic).await?, &["a"]).await?;
    let first = next(&mut consumer).await?;
    consumer.nack(&first).await?;
    let again = next(&mut consumer).await?;
    same!(again.deserialize()?, "a");
    same!(again.message_id(), first.message_id());
    consumer.ack(&again).await?;
    nothing_more(&mut consumer).await
}

async fn dead_letters() -> Outcome {
    let client = client().await?;
    let (topic, dead) = (topic("letters"), topic("dead"));
    let builder = subscribing(&client, &topic, SubType::Shared)
        .with_unacked_message_resend_delay(Some(Duration::from_millis(50)))
        .with_dead_letter_policy(DeadLetterPolicy {
            max_redeliver_count: 2,
            dead_letter_topic: dead.clone(),
        });
    let mut consumer: Texts = builder.build().await?;
    let mut letters = subscribe(&client, &dead, SubType::Exclusive).await?;
    send(&mut producer(&client, &topic).await?, &["poison"]).await?;
    let mut refused = 0;
    let letter = loop {
        tokio::select! {
            message = next(&mut consumer) => {
                consumer.nack(&message?).await?;
                refused += 1;
            }
            letter = next(&mut letters) => break letter?,
        }
    };
    same!(letter.deserialize()?, "poison");
    same!((1..=3).contains(&refused), true);
    Ok(())
}

async fn seeking_by_id_and_time() -> Outcome {
    let client = client().await?;
    let topic = topic("seek");
    // This client opens a second consumer before it lets go of the first.
    let mut consumer = subscribe(&client, &topic, SubType::Failover).await?;
    let mut producer = producer(&client, &topic).await?;
    send(&mut producer, &["a", "b", "c"]).await?;
    next(&mut consumer).await?;
    let second = next(&mut consumer).await?.message_id().clone();
    consumer
        .seek(None, Some(second), None, client.clone())
        .await?;
    let here = texts(&mut consumer, 2).await?;
    same!(here, ["b", "c"]);
    tokio::time::sleep(Duration::from_millis(20)).await;
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)?
        .as_millis() as u64;
    tokio::time::sleep(Duration::from_millis(20)).await;
    send(&mut producer, &["later"]).await?;
    consumer.seek(None, None, Some(now), client.clone()).await?;
    same!(texts(&mut consumer, 1).await?, ["later"]);
    Ok(())
}

async fn a_reader_reads_it_all() -> Outcome {
    let client = client().await?;
    let topic = topic("reader");
    send(&mut producer(&client, &topic).await?, &["a", "b", "c"]).await?;
    let options = from_the_start().starting_on_message(MessageIdData {
        ledger_id: u64::MAX,
        entry_id: u64::MAX,
        ..MessageIdData::default()
    });
    let builder = client
        .reader()
        .with_topic(&topic)
        .with_consumer_name("r")
        .with_options(options);
    let mut reader = builder.into_reader::<String>().await?;
    for text in ["a", "b", "c"] {
        let message = tokio::time::timeout(Duration::from_secs(10), reader.try_next()).await??;
        same!(message.ok_or("it has ended")?.deserialize()?, text);
    }
    Ok(())
}

async fn the_last_message_id() -> Outcome {
    let client = client().await?;
    let topic = topic("last");
    let mut consumer = subscribe(&client, &topic, SubType::Exclusive).await?;
    same!(consumer.get_last_message_id().await?[0].entry_id, u64::MAX);
    let mut producer = producer(&client, &topic).await?;
    let receipt = producer
        .send_non_blocking("a")
        .await?
        .await?
        .message_id
        .ok_or("no id")?;
    let last = consumer.get_last_message_id().await?;
    same!(
        (last[0].ledger_id, last[0].entry_id),
        (receipt.ledger_id, receipt.entry_id)
    );
    Ok(())
}

async fn delayed_messages_wait() -> Outcome {
    let client = client().await?;
    let topic = topic("delayed");
    let mut consumer = subscribe(&client, &topic, SubType::Shared).await?;
    let mut producer = producer(&client, &topic).await?;
    let sent = producer
        .create_message()
        .with_content("later")
        .delay(Duration::from_millis(1500))?;
    sent.send_non_blocking().await?.await?;
    producer
        .create_message()
        .with_content("now")
        .send_non_blocking()
        .await?
        .await?;
    same!(texts(&mut consumer, 2).await?, ["now", "later"]);
    Ok(())
}

async fn topics_by_pattern() -> Outcome {
    let client = client().await?;
    let tag = format!("pattern-{}", std::process::id());
    for number in 0..3 {
        let name = format!("persistent://public/default/{tag}-{number}");
        send(&mut producer(&client, &name).await?, &[&number.to_string()]).await?;
    }
    let builder = client
        .consumer()
        .with_topic_regex(regex::Regex::new(&format!(
            "persistent://public/default/{tag}-.*"
        ))?)
        .with_lookup_namespace("public/default")
        .with_subscription("mine")
        .with_subscription_type(SubType::Exclusive)
        .with_options(from_the_start());
    let mut consumer: Texts = builder.build().await?;
    let mut found = texts(&mut consumer, 3).await?;
    found.sort();
    same!(found, ["0", "1", "2"]);
    Ok(())
}

async fn unsubscribing_forgets() -> Outcome {
    let client = client().await?;
    let topic = topic("unsubscribe");
    let mut consumer = subscribe(&client, &topic, SubType::Exclusive).await?;
    send(&mut producer(&client, &topic).await?, &["a"]).await?;
    texts(&mut consumer, 1).await?;
    consumer.unsubscribe().await?;
    let mut again = subscribe(&client, &topic, SubType::Exclusive).await?;
    same!(texts(&mut again, 1).await?, ["a"]);
    Ok(())
}

async fn several_topics() -> Outcome {
    let client = client().await?;
    let topics = [topic("many"), topic("many")];
    let builder = client
        .consumer()
        .with_topics(&topics)
        .with_subscription("mine")
        .with_subscription_type(SubType::Shared)
        .with_options(from_the_start());
    let mut consumer: Texts = builder.build().await?;
    for (topic, text) in topics.iter().zip(["a", "b"]) {
        send(&mut producer(&client, topic).await?, &[text]).await?;
    }
    let mut found = texts(&mut consumer, 2).await?;
    found.sort();
    same!(found, ["a", "b"]);
    Ok(())
}

async fn stats_of_a_consumer() -> Outcome {
    let client = client().await?;
    let topic = topic("stats");
    let mut consumer = subscribe(&client, &topic, SubType::Shared).await?;
    send(&mut producer(&client, &topic).await?, &["a", "b"]).await?;
    next(&mut consumer).await?;
    next(&mut consumer).await?;
    let stats = consumer.get_stats().await?;
    same!(stats[0].unacked_messages, Some(2));
    same!(stats[0].r#type.as_deref(), Some("Shared"));
    Ok(())
}
