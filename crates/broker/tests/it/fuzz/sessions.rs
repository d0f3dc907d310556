//! What clients say, by chance: sessions of valid commands, and damage to them that keeps most of
//! their structure, so that it reaches further than the parser. `fuzz.rs` takes the chances from a
//! seed, `fuzz/fuzz_targets/session.rs` from a fuzzer.

use bytes::BytesMut;
use geminga_proto::message::encode_headers;
use geminga_proto::pb::*;
use geminga_proto::{Command, batch, checksum};

/// Where chances come from: a seed, or bytes while they last.
pub(crate) struct Choices<'a> {
    bytes: &'a [u8],
    state: Option<u64>,
}

#[allow(dead_code, reason = "each user takes its own way in")]
impl<'a> Choices<'a> {
    pub(crate) fn seeded(seed: u64) -> Choices<'static> {
        Choices {
            bytes: &[],
            state: Some(seed),
        }
    }

    pub(crate) fn read(bytes: &'a [u8]) -> Choices<'a> {
        Choices { bytes, state: None }
    }

    pub(crate) fn next(&mut self) -> u64 {
        if let Some(state) = &mut self.state {
            // SplitMix64.
            *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = *state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            return z ^ (z >> 31);
        }
        let (now, rest) = self.bytes.split_at(self.bytes.len().min(2));
        self.bytes = rest;
        now.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// Mostly small, sometimes where arithmetic ends.
    fn number(&mut self) -> u64 {
        match self.below(10) {
            0 => self.pick(&[
                u64::MAX,
                i64::MAX as u64,
                1 << 63,
                1 << 31,
                u64::from(u32::MAX),
            ]),
            1 => self.next(),
            _ => self.below(4) as u64,
        }
    }
}

pub(crate) const TOPICS: [&str; 5] = [
    "persistent://public/default/fuzz-0",
    "persistent://public/default/fuzz-1",
    "persistent://public/default/fuzz-2-partition-0",
    "non-persistent://public/default/fuzz-3",
    "persistent://public/default/__change_events",
];
pub(crate) const SUBSCRIPTIONS: [&str; 3] = ["a", "b", "c"];

/// One frame, open for damage.
#[derive(Clone)]
pub(crate) struct Piece {
    /// An encoded `BaseCommand`.
    command: Vec<u8>,
    /// Metadata and payload of a SEND.
    message: Option<(Vec<u8>, Vec<u8>)>,
}

impl Piece {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let mut block = Vec::new();
        if let Some((metadata, payload)) = &self.message {
            let mut covered = (metadata.len() as u32).to_be_bytes().to_vec();
            covered.extend_from_slice(metadata);
            covered.extend_from_slice(payload);
            block.extend_from_slice(&[0x0e, 0x01]);
            block.extend_from_slice(&checksum::crc32c(&covered).to_be_bytes());
            block.extend_from_slice(&covered);
        }
        let size = self.command.len() as u32;
        out.extend_from_slice(&(4 + size + block.len() as u32).to_be_bytes());
        out.extend_from_slice(&size.to_be_bytes());
        out.extend_from_slice(&self.command);
        out.extend_from_slice(&block);
    }
}

/// The commands of a session, behind the handshake, each with a request id of its own.
pub(crate) fn session(choices: &mut Choices<'_>) -> Vec<Command> {
    let count = 2 + choices.below(24);
    (0..count)
        .map(|at| command(choices, 1 + at as u64))
        .collect()
}

pub(crate) fn piece(command: &Command, choices: &mut Choices<'_>) -> Piece {
    let mut bytes = BytesMut::new();
    command.encode(&mut bytes);
    let message = matches!(command, Command::Send(_)).then(|| message(choices));
    Piece {
        command: bytes.to_vec(),
        message,
    }
}

fn topic(choices: &mut Choices<'_>) -> String {
    choices.pick(&TOPICS).to_owned()
}

fn id(choices: &mut Choices<'_>) -> MessageIdData {
    let mut ack_set = Vec::new();
    if choices.one_in(3) {
        ack_set = (0..choices.below(4))
            .map(|_| choices.number() as i64)
            .collect();
    }
    MessageIdData {
        ledger_id: choices.number(),
        entry_id: choices.number(),
        partition: choices.one_in(3).then(|| choices.number() as i32),
        batch_index: choices.one_in(3).then(|| choices.number() as i32),
        batch_size: choices.one_in(3).then(|| choices.number() as i32),
        ack_set,
        first_chunk_message_id: None,
    }
}

fn ids(choices: &mut Choices<'_>) -> Vec<MessageIdData> {
    (0..choices.below(4)).map(|_| id(choices)).collect()
}

fn pairs(choices: &mut Choices<'_>) -> Vec<KeyValue> {
    let pair = |at| KeyValue {
        key: format!("k{at}"),
        value: "v".to_owned(),
    };
    (0..choices.below(3)).map(pair).collect()
}

fn schema(choices: &mut Choices<'_>) -> Option<Schema> {
    const AVRO: &[u8] = br#"{"type":"record","name":"R","fields":[{"name":"a","type":"int"}]}"#;
    choices.one_in(3).then(|| Schema {
        name: "s".to_owned(),
        schema_data: choices
            .pick(&[AVRO, b"", b"{", &[0, 0, 0, 1, b'x', 0, 0, 0, 0]])
            .to_vec()
            .into(),
        r#type: choices.below(23) as i32,
        properties: pairs(choices),
    })
}

fn txn(choices: &mut Choices<'_>) -> (Option<u64>, Option<u64>) {
    match choices.one_in(3) {
        true => (Some(choices.number()), Some(0)),
        false => (None, None),
    }
}

fn command(choices: &mut Choices<'_>, request_id: u64) -> Command {
    let producer_id = choices.below(3) as u64;
    let consumer_id = choices.below(3) as u64;
    match choices.below(30) {
        0..=3 => CommandProducer {
            topic: topic(choices),
            producer_id,
            request_id,
            producer_name: choices.one_in(2).then(|| "named".to_owned()),
            encrypted: choices.one_in(8).then_some(true),
            metadata: pairs(choices),
            schema: schema(choices),
            epoch: Some(choices.number()),
            user_provided_producer_name: Some(choices.one_in(2)),
            producer_access_mode: Some(choices.pick(&[0, 0, 0, 0, 1, 2, 3])),
            topic_epoch: choices.one_in(4).then(|| choices.number()),
            txn_enabled: Some(choices.one_in(2)),
            initial_subscription_name: choices.one_in(4).then(|| "a".to_owned()),
        }
        .into(),
        4..=7 => CommandSubscribe {
            topic: topic(choices),
            subscription: choices.pick(&SUBSCRIPTIONS).to_owned(),
            sub_type: choices.below(4) as i32,
            consumer_id,
            request_id,
            consumer_name: choices.one_in(2).then(|| "c".to_owned()),
            priority_level: Some(choices.number() as i32),
            durable: Some(!choices.one_in(4)),
            start_message_id: choices.one_in(3).then(|| id(choices)),
            metadata: pairs(choices),
            read_compacted: Some(choices.one_in(6)),
            schema: schema(choices),
            initial_position: Some(choices.below(2) as i32),
            start_message_rollback_duration_sec: choices.one_in(6).then(|| choices.number()),
            key_shared_meta: choices.one_in(3).then(|| KeySharedMeta {
                key_shared_mode: choices.below(2) as i32,
                hash_ranges: vec![IntRange {
                    start: choices.number() as i32,
                    end: choices.pick(&[100, 65535, -1, i32::MAX]),
                }],
                allow_out_of_order_delivery: Some(choices.one_in(2)),
            }),
            consumer_epoch: choices.one_in(2).then(|| choices.number()),
            ..CommandSubscribe::default()
        }
        .into(),
        8..=13 => {
            let (txnid_least_bits, txnid_most_bits) = txn(choices);
            CommandSend {
                producer_id,
                sequence_id: choices.number(),
                num_messages: Some(choices.number() as i32),
                txnid_least_bits,
                txnid_most_bits,
                highest_sequence_id: choices.one_in(4).then(|| choices.number()),
                is_chunk: choices.one_in(4).then_some(true),
                marker: choices.one_in(8).then_some(true),
                message_id: None,
            }
            .into()
        }
        14..=15 => CommandFlow {
            consumer_id,
            message_permits: choices.pick(&[1, 2, 10, 1000, i32::MAX as u32]),
        }
        .into(),
        16..=18 => {
            let (txnid_least_bits, txnid_most_bits) = txn(choices);
            CommandAck {
                consumer_id,
                ack_type: choices.below(2) as i32,
                message_id: ids(choices),
                validation_error: choices.one_in(4).then(|| choices.below(6) as i32),
                txnid_least_bits,
                txnid_most_bits,
                request_id: choices.one_in(2).then_some(request_id),
                ..CommandAck::default()
            }
            .into()
        }
        19 => CommandRedeliverUnacknowledgedMessages {
            consumer_id,
            message_ids: ids(choices),
            consumer_epoch: choices.one_in(2).then(|| choices.number()),
        }
        .into(),
        20 => CommandSeek {
            consumer_id,
            request_id,
            message_id: choices.one_in(2).then(|| id(choices)),
            message_publish_time: choices.one_in(2).then(|| choices.number()),
        }
        .into(),
        21 => CommandCloseProducer {
            producer_id,
            request_id,
            ..CommandCloseProducer::default()
        }
        .into(),
        22 => CommandCloseConsumer {
            consumer_id,
            request_id,
            ..CommandCloseConsumer::default()
        }
        .into(),
        23 => CommandUnsubscribe {
            consumer_id,
            request_id,
            force: Some(choices.one_in(2)),
        }
        .into(),
        24..=29 => question(choices, request_id, consumer_id),
        _ => CommandPing {}.into(),
    }
}

/// Commands that change little.
fn question(choices: &mut Choices<'_>, request_id: u64, consumer_id: u64) -> Command {
    let (txnid_least_bits, txnid_most_bits) = (Some(choices.number()), Some(0));
    match choices.below(14) {
        0 => CommandGetLastMessageId {
            consumer_id,
            request_id,
        }
        .into(),
        1 => CommandConsumerStats {
            consumer_id,
            request_id,
        }
        .into(),
        2 => CommandLookupTopic {
            topic: topic(choices),
            request_id,
            advertised_listener_name: choices.one_in(4).then(|| "nobody".to_owned()),
            ..CommandLookupTopic::default()
        }
        .into(),
        3 => CommandPartitionedTopicMetadata {
            topic: topic(choices),
            request_id,
            metadata_auto_creation_enabled: Some(choices.one_in(2)),
            ..CommandPartitionedTopicMetadata::default()
        }
        .into(),
        4 => CommandGetTopicsOfNamespace {
            request_id,
            namespace: "public/default".to_owned(),
            mode: Some(choices.below(3) as i32),
            topics_pattern: choices.one_in(2).then(|| "public/default/f.*(".to_owned()),
            ..CommandGetTopicsOfNamespace::default()
        }
        .into(),
        5 => CommandWatchTopicList {
            request_id,
            watcher_id: choices.number(),
            namespace: "public/default".to_owned(),
            topics_pattern: choices
                .pick(&["public/default/f.*", "(", "(a+)+$"])
                .to_owned(),
            topics_hash: None,
        }
        .into(),
        6 => CommandWatchTopicListClose {
            request_id,
            watcher_id: choices.number(),
        }
        .into(),
        7 => CommandGetSchema {
            request_id,
            topic: topic(choices),
            schema_version: choices.one_in(2).then(|| vec![0; choices.below(10)].into()),
        }
        .into(),
        8 => CommandGetOrCreateSchema {
            request_id,
            topic: topic(choices),
            schema: schema(choices).unwrap_or_default(),
            ..CommandGetOrCreateSchema::default()
        }
        .into(),
        9 => CommandNewTxn {
            request_id,
            txn_ttl_millis: Some(choices.number()),
            tc_id: Some(choices.below(2) as u64 * choices.number()),
        }
        .into(),
        10 => CommandAddPartitionToTxn {
            request_id,
            txnid_least_bits,
            txnid_most_bits,
            partitions: vec![topic(choices)],
        }
        .into(),
        11 => CommandAddSubscriptionToTxn {
            request_id,
            txnid_least_bits,
            txnid_most_bits,
            subscription: vec![Subscription {
                topic: topic(choices),
                subscription: "a".to_owned(),
            }],
        }
        .into(),
        12 => CommandEndTxn {
            request_id,
            txnid_least_bits,
            txnid_most_bits,
            txn_action: Some(choices.below(3) as i32),
        }
        .into(),
        _ => CommandTcClientConnectRequest {
            request_id,
            tc_id: choices.number(),
        }
        .into(),
    }
}

fn message(choices: &mut Choices<'_>) -> (Vec<u8>, Vec<u8>) {
    let batch_of = choices.below(4);
    let mut metadata = MessageMetadata {
        producer_name: "p".to_owned(),
        sequence_id: choices.number(),
        publish_time: choices.number(),
        properties: pairs(choices),
        partition_key: choices.one_in(2).then(|| "a2V5".to_owned()),
        partition_key_b64_encoded: choices.one_in(3).then_some(true),
        ordering_key: choices.one_in(4).then(|| vec![1; choices.below(5)].into()),
        deliver_at_time: choices.one_in(4).then(|| choices.number() as i64),
        marker_type: choices.one_in(12).then(|| choices.below(25) as i32),
        highest_sequence_id: choices.one_in(4).then(|| choices.number()),
        null_value: choices.one_in(6).then_some(true),
        compression: choices.one_in(4).then(|| choices.below(6) as i32),
        uncompressed_size: choices.one_in(4).then(|| choices.number() as u32),
        ..MessageMetadata::default()
    };
    if choices.one_in(6) {
        metadata.uuid = Some("u".to_owned());
        metadata.num_chunks_from_msg = Some(choices.below(4) as i32);
        metadata.chunk_id = Some(choices.below(4) as i32);
        metadata.total_chunk_msg_size = Some(choices.number() as i32);
    }
    let mut payload = b"content".to_vec();
    if batch_of > 0 {
        let mut builder = batch::Builder::default();
        for _ in 0..batch_of {
            builder.push(&mut SingleMessageMetadata::default(), b"content");
        }
        let (bytes, count) = builder.finish();
        payload = bytes.to_vec();
        metadata.num_messages_in_batch = Some(match choices.one_in(4) {
            true => choices.number() as i32,
            false => count,
        });
    }
    // Behind magic, checksum and size.
    (encode_headers(&metadata, &payload)[10..].to_vec(), payload)
}

/// Breaks something.
pub(crate) fn damage(pieces: &mut Vec<Piece>, choices: &mut Choices<'_>) {
    let at = choices.below(pieces.len());
    if pieces.is_empty() {
        return;
    }
    match choices.below(8) {
        0 => drop(pieces.remove(at)),
        1 => pieces.insert(at, pieces[at].clone()),
        2 => {
            let other = choices.below(pieces.len());
            pieces.swap(at, other);
        }
        3 => match &mut pieces[at].message {
            Some((metadata, payload)) => match choices.one_in(2) {
                true => flip(payload, choices),
                false => *metadata = damaged_message(metadata, choices, 0),
            },
            None => flip(&mut pieces[at].command, choices),
        },
        4 => {
            let keep = choices.below(pieces[at].command.len() + 1);
            pieces[at].command.truncate(keep);
        }
        // The fields of the command itself are one level down.
        _ => pieces[at].command = damaged_message(&pieces[at].command, choices, 0),
    }
}

fn flip(bytes: &mut [u8], choices: &mut Choices<'_>) {
    if !bytes.is_empty() {
        let at = choices.below(bytes.len());
        bytes[at] = choices.next() as u8;
    }
}

/// A message with one field changed, doubled or left out, and all lengths right.
fn damaged_message(bytes: &[u8], choices: &mut Choices<'_>, depth: usize) -> Vec<u8> {
    let mut out = bytes.to_vec();
    let Some(fields) = fields(bytes).filter(|fields| !fields.is_empty()) else {
        flip(&mut out, choices);
        return out;
    };
    let chosen = choices.below(fields.len());
    out.clear();
    for (at, (key, value)) in fields.iter().enumerate() {
        let mut put = |value: &Value<'_>| value.put(*key, &mut out);
        if at != chosen {
            put(value);
            continue;
        }
        match (value, choices.below(6)) {
            (_, 0) => {}
            (value, 1) => {
                put(value);
                put(value);
            }
            (Value::Number(_), _) => put(&Value::Number(choices.number())),
            (Value::Bytes(inner), 2..=4) if depth < 3 => {
                put(&Value::Bytes(&damaged_message(inner, choices, depth + 1)));
            }
            (Value::Bytes(_), 5) => put(&Value::Number(choices.number())),
            (Value::Bytes(_), _) => {
                let long = vec![b'x'; choices.pick(&[0, 1, 300, 5_000])];
                put(&Value::Bytes(&long));
            }
        }
    }
    out
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl Value<'_> {
    fn put(&self, key: u64, out: &mut Vec<u8>) {
        match self {
            Value::Number(number) => {
                put_varint(key << 3, out);
                put_varint(*number, out);
            }
            Value::Bytes(bytes) => {
                put_varint(key << 3 | 2, out);
                put_varint(bytes.len() as u64, out);
                out.extend_from_slice(bytes);
            }
        }
    }
}

fn put_varint(mut number: u64, out: &mut Vec<u8>) {
    while number > 0x7f {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if *byte < 0x80 {
            return Some(number);
        }
    }
    None
}

/// The fields of a message, if it is one (of numbers and bytes).
fn fields(mut bytes: &[u8]) -> Option<Vec<(u64, Value<'_>)>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let value = match key & 7 {
            0 => Value::Number(varint(&mut bytes)?),
            2 => {
                let size = usize::try_from(varint(&mut bytes)?).ok()?;
                let (value, rest) = bytes.split_at_checked(size)?;
                bytes = rest;
                Value::Bytes(value)
            }
            _ => return None,
        };
        found.push((key >> 3, value));
    }
    Some(found)
}
