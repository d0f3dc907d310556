//! Which entries go to another cluster, and what of their metadata changes: pure.

use bytes::Bytes;
use geminga_model::Position;
use geminga_proto::message::encode_headers;
use geminga_proto::pb::{KeyValue, MessageMetadata};

use super::SOURCE_POSITION;
use super::remote::Outgoing;

/// What an entry is judged by, beside its own metadata.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules<'a> {
    /// The other cluster.
    pub(super) remote: &'a str,
    /// What was published before this is expired; 0 = nothing is.
    pub(super) expired_before_ms: u64,
}

/// Why an entry is not sent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LeftOut {
    /// It came from another cluster, which sends it to all that shall have it.
    Foreign,
    /// Its producer named the clusters that it is for, and this one is not among them.
    NotNamed,
    /// A transaction's end, which means nothing elsewhere.
    Marker,
    Expired,
}

const TRANSACTION_MARKERS: std::ops::RangeInclusive<i32> = 20..=22;

pub(super) fn judge(metadata: &MessageMetadata, rules: Rules<'_>) -> Option<LeftOut> {
    if metadata.replicated_from.is_some() {
        return Some(LeftOut::Foreign);
    }
    let marker = metadata.marker_type;
    if marker.is_some_and(|marker| TRANSACTION_MARKERS.contains(&marker)) {
        return Some(LeftOut::Marker);
    }
    let to = &metadata.replicate_to;
    // `__local__` alone is how clients say that it stays here.
    if !to.is_empty() && !to.iter().any(|name| name == rules.remote) {
        return Some(LeftOut::NotNamed);
    }
    if marker.is_none() && metadata.publish_time < rules.expired_before_ms {
        return Some(LeftOut::Expired);
    }
    None
}

/// The message under the headers that it has in another cluster. `schema_version` is what its
/// schema is there. A transaction of ours is none there: what was committed is a message.
pub(super) fn forward(
    mut metadata: MessageMetadata,
    local: &str,
    position: Position,
    schema_version: Option<Bytes>,
    payload: Bytes,
) -> Outgoing {
    metadata.replicated_from = Some(local.to_owned());
    metadata.txnid_least_bits = None;
    metadata.txnid_most_bits = None;
    metadata.schema_version = schema_version;
    metadata
        .properties
        .retain(|pair| pair.key != SOURCE_POSITION);
    let is_marker = metadata.marker_type.is_some();
    if !is_marker {
        let (ledger, entry) = position.to_wire();
        metadata.properties.push(KeyValue {
            key: SOURCE_POSITION.to_owned(),
            value: format!("{ledger}:{entry}"),
        });
    }
    Outgoing {
        position,
        sequence_id: metadata.sequence_id,
        highest_sequence_id: metadata.highest_sequence_id,
        num_messages: metadata.num_messages_in_batch.unwrap_or(1),
        is_chunk: metadata.num_chunks_from_msg.is_some_and(|all| all > 1),
        is_marker,
        headers: encode_headers(&metadata, &payload).freeze(),
        payload,
    }
}

#[cfg(test)]
mod tests {
    use geminga_proto::command::key_values;
    use geminga_proto::message::{decode_metadata, verify_checksum};

    use super::*;
    use crate::replication::source_position;

    fn metadata() -> MessageMetadata {
        MessageMetadata {
            producer_name: "p".to_owned(),
            sequence_id: 4,
            publish_time: 1_000,
            ..MessageMetadata::default()
        }
    }

    #[test]
    fn what_is_left_out() {
        let with = |change: fn(&mut MessageMetadata)| {
            let mut metadata = metadata();
            change(&mut metadata);
            metadata
        };
        let to = |metadata: &mut MessageMetadata, names: &[&str]| {
            metadata.replicate_to = names.iter().map(|name| (*name).to_owned()).collect();
            metadata.clone()
        };
        let mut own = metadata();
        for (metadata, expired_before_ms, left_out) in [
            (metadata(), 0, None),
            (metadata(), 1_000, None),
            (metadata(), 1_001, Some(LeftOut::Expired)),
            (
                with(|m| m.replicated_from = Some("c".to_owned())),
                0,
                Some(LeftOut::Foreign),
            ),
            (with(|m| m.marker_type = Some(21)), 0, Some(LeftOut::Marker)),
            (with(|m| m.marker_type = Some(10)), 9_999, None),
            (to(&mut own, &["b", "c"]), 0, None),
            (to(&mut own, &["c"]), 0, Some(LeftOut::NotNamed)),
            (to(&mut own, &["__local__"]), 0, Some(LeftOut::NotNamed)),
        ] {
            let rules = Rules {
                remote: "b",
                expired_before_ms,
            };
            assert_eq!(judge(&metadata, rules), left_out, "{metadata:?}");
        }
    }

    #[test]
    fn a_message_names_its_cluster_and_its_place_and_no_transaction() {
        let metadata = MessageMetadata {
            properties: key_values([("a", "1"), (SOURCE_POSITION, "9:9")]),
            txnid_least_bits: Some(1),
            txnid_most_bits: Some(2),
            num_messages_in_batch: Some(3),
            schema_version: Some(Bytes::from_static(b"ours")),
            highest_sequence_id: Some(6),
            ..metadata()
        };
        let payload = Bytes::from_static(b"payload");
        let theirs = Some(Bytes::from_static(b"theirs"));
        let out = forward(metadata, "a", Position::new(3, 8), theirs.clone(), payload);
        let mut block = out.headers.to_vec();
        block.extend_from_slice(&out.payload);
        verify_checksum(&block).unwrap();
        assert_eq!(source_position(&block), Some((3, 8)));
        let there = decode_metadata(&block).unwrap();
        assert_eq!(there.replicated_from.as_deref(), Some("a"));
        assert_eq!(
            (there.txnid_least_bits, there.txnid_most_bits),
            (None, None)
        );
        assert_eq!(there.schema_version, theirs);
        assert_eq!(there.properties.len(), 2);
        assert_eq!((out.num_messages, out.highest_sequence_id), (3, Some(6)));
    }
}
