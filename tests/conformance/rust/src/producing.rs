//! Producers, batches, compression, schemas, metadata.

use futures::future::try_join_all;
use pulsar::compression::{
    Compression, CompressionLz4, CompressionSnappy, CompressionZlib, CompressionZstd,
};
use pulsar::{ProducerOptions, SubType, proto};

use crate::support::*;

tests! {
    receipts_have_rising_ids,
    batches_are_one_entry,
    every_compression,
    metadata_comes_through,
    a_schema_is_kept_and_others_refused,
    exclusive_access,
    a_name_in_use_is_refused,
    partitions_are_all_used,
    a_missing_namespace_is_refused,
}

async fn receipts_have_rising_ids() -> Outcome {
    let client = client().await?;
    let mut producer = producer(&client, &topic("ids")).await?;
    let mut last = (0, 0);
    for number in 0..20 {
        let receipt = producer
            .send_non_blocking(number.to_string())
            .await?
            .await?;
        let id = receipt.message_id.ok_or("a receipt without an id")?;
        let now = (id.ledger_id, id.entry_id + 1);
        same!(now > last, true);
        last = now;
    }
    Ok(())
}

async fn batches_are_one_entry() -> Outcome {
    let client = client().await?;
    let topic = topic("batches");
    let options = ProducerOptions {
        batch_size: Some(10),
        ..ProducerOptions::default()
    };
    let mut producer = client
        .producer()
        .with_topic(&topic)
        .with_options(options)
        .build()
        .await?;
    let mut consumer = subscribe(&client, &topic, SubType::Exclusive).await?;
    let mut sent = Vec::new();
    for number in 0..10 {
        sent.push(producer.send_non_blocking(number.to_string()).await?);
    }
    producer.send_batch().await?;
    try_join_all(sent).await?;
    let mut entries = Vec::new();
    for number in 0..10 {
        let message = next(&mut consumer).await?;
        same!(message.deserialize()?, number.to_string());
        same!(message.message_id().batch_index, Some(number));
        entries.push((
            message.message_id().ledger_id,
            message.message_id().entry_id,
        ));
        consumer.ack(&message).await?;
    }
    entries.dedup();
    same!(entries.len(), 1);
    Ok(())
}

async fn every_compression() -> Outcome {
    let client = client().await?;
    let codecs = [
        Compression::None,
        Compression::Lz4(CompressionLz4::default()),
        Compression::Zlib(CompressionZlib::default()),
        Compression::Zstd(CompressionZstd::default()),
        Compression::Snappy(CompressionSnappy::default()),
    ];
    for codec in codecs {
        for batch_size in [None, Some(2)] {
            let topic = topic("compressed");
            let options = ProducerOptions {
                compression: Some(codec.clone()),
                batch_size,
                ..ProducerOptions::default()
            };
            let mut producer = client
                .producer()
                .with_topic(&topic)
                .with_options(options)
                .build()
                .await?;
            let mut consumer = subscribe(&client, &topic, SubType::Exclusive).await?;
            let text = "again and again ".repeat(500);
            let sent = [
                producer.send_non_blocking(&text).await?,
                producer.send_non_blocking("").await?,
            ];
            if batch_size.is_some() {
                producer.send_batch().await?;
            }
            try_join_all(sent).await?;
            same!(texts(&mut consumer, 2).await?, [text, String::new()]);
        }
    }
    Ok(())
}

async fn metadata_comes_through() -> Outcome {
    let client = client().await?;
    let topic = topic("metadata");
    let mut producer = producer(&client, &topic).await?;
    let mut consumer = subscribe(&client, &topic, SubType::Exclusive).await?;
    let sent = producer
        .create_message()
        .with_content("content")
        .with_key("key")
        .with_ordering_key("order")
        .with_property("name", "value")
        .event_time(17)
        .send_non_blocking();
    sent.await?.await?;
    let message = next(&mut consumer).await?;
    same!(message.key().as_deref(), Some("key"));
    let metadata = message.metadata();
    same!(metadata.ordering_key.as_deref(), Some(&b"order"[..]));
    same!(metadata.event_time, Some(17));
    same!(metadata.properties.len(), 1);
    same!(metadata.properties[0].value, "value");
    Ok(())
}

fn record(fields: &str) -> Option<proto::Schema> {
    let definition = format!(r#"{{"type":"record","name":"R","fields":[{fields}]}}"#);
    Some(proto::Schema {
        name: "R".to_owned(),
        schema_data: definition.into_bytes(),
        r#type: proto::schema::Type::Avro as i32,
        properties: Vec::new(),
    })
}

async fn a_schema_is_kept_and_others_refused() -> Outcome {
    let client = client().await?;
    let topic = topic("schema");
    let with = |schema| ProducerOptions {
        schema,
        ..ProducerOptions::default()
    };
    let whole = record(r#"{"name":"a","type":"int"}"#);
    let other = record(r#"{"name":"a","type":"int"},{"name":"b","type":"string"}"#);
    let mut first = client
        .producer()
        .with_topic(&topic)
        .with_options(with(whole.clone()))
        .build()
        .await?;
    send(&mut first, &["x"]).await?;
    let mut consumer = subscribe(&client, &topic, SubType::Exclusive).await?;
    let kept = consumer
        .get_schema(&topic, None)
        .await?
        .ok_or("there is no schema")?;
    same!(kept.schema_data, whole.ok_or("none")?.schema_data);
    let refused = client
        .producer()
        .with_topic(&topic)
        .with_options(with(other))
        .build()
        .await;
    same!(refused.is_err(), true);
    Ok(())
}

async fn exclusive_access() -> Outcome {
    let client = client().await?;
    let topic = topic("exclusive");
    let options = ProducerOptions {
        access_mode: Some(1),
        ..ProducerOptions::default()
    };
    let mut owner = client
        .producer()
        .with_topic(&topic)
        .with_options(options)
        .build()
        .await?;
    let refused = client.producer().with_topic(&topic).build().await;
    same!(refused.is_err(), true);
    send(&mut owner, &["mine"]).await
}

async fn a_name_in_use_is_refused() -> Outcome {
    let client = client().await?;
    let topic = topic("names");
    let mut first = client
        .producer()
        .with_topic(&topic)
        .with_name("me")
        .build()
        .await?;
    let refused = client
        .producer()
        .with_topic(&topic)
        .with_name("me")
        .build()
        .await;
    same!(refused.is_err(), true);
    send(&mut first, &["x"]).await?;
    first.close().await?;
    client
        .producer()
        .with_topic(&topic)
        .with_name("me")
        .build()
        .await?;
    Ok(())
}

async fn partitions_are_all_used() -> Outcome {
    let client = client().await?;
    // made before by `run`, since this client has no admin of its own
    let topic = std::env::var("PARTITIONED_TOPIC").map_err(|_| "set PARTITIONED_TOPIC")?;
    same!(client.lookup_partitioned_topic_number(&topic).await?, 3);
    let mut consumer = subscribe(&client, &topic, SubType::Shared).await?;
    let mut producer = producer(&client, &topic).await?;
    for number in 0..12 {
        producer
            .send_non_blocking(number.to_string())
            .await?
            .await?;
    }
    let mut seen = std::collections::BTreeMap::<String, usize>::new();
    for _ in 0..12 {
        let message = next(&mut consumer).await?;
        consumer.ack(&message).await?;
        *seen.entry(message.topic.clone()).or_default() += 1;
    }
    same!(seen.values().copied().collect::<Vec<_>>(), [4, 4, 4]);
    Ok(())
}

async fn a_missing_namespace_is_refused() -> Outcome {
    let client = client().await?;
    let refused = client
        .producer()
        .with_topic("persistent://public/nowhere/t")
        .build()
        .await;
    same!(refused.is_err(), true);
    Ok(())
}
