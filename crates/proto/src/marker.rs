//! Markers: what clusters tell each other in the topic itself, about replicated subscriptions. No
//! client ever sees one.

use bytes::Bytes;
use prost::Message;

use crate::error::MessageError;
use crate::message::{encode_headers, payload, peek};
use crate::pb::{
    MarkerType, MessageMetadata, ReplicatedSubscriptionsSnapshot,
    ReplicatedSubscriptionsSnapshotRequest, ReplicatedSubscriptionsSnapshotResponse,
    ReplicatedSubscriptionsUpdate,
};

/// The producer's name that Pulsar gives to markers.
const PRODUCER: &str = "pulsar.marker";

/// A marker about replicated subscriptions.
#[derive(Debug, Clone, PartialEq)]
pub enum Marker {
    Request(ReplicatedSubscriptionsSnapshotRequest),
    Response(ReplicatedSubscriptionsSnapshotResponse),
    Snapshot(ReplicatedSubscriptionsSnapshot),
    Update(ReplicatedSubscriptionsUpdate),
}

impl Marker {
    fn kind(&self) -> MarkerType {
        match self {
            Marker::Request(_) => MarkerType::ReplicatedSubscriptionSnapshotRequest,
            Marker::Response(_) => MarkerType::ReplicatedSubscriptionSnapshotResponse,
            Marker::Snapshot(_) => MarkerType::ReplicatedSubscriptionSnapshot,
            Marker::Update(_) => MarkerType::ReplicatedSubscriptionUpdate,
        }
    }

    /// Whether a message with this `marker_type` is one of these.
    pub fn is_one(marker_type: i32) -> bool {
        let first = MarkerType::ReplicatedSubscriptionSnapshotRequest as i32;
        let last = MarkerType::ReplicatedSubscriptionUpdate as i32;
        (first..=last).contains(&marker_type)
    }

    /// The block to be stored. `only` is the one cluster that it is for.
    pub fn encode(&self, only: Option<&str>, now_ms: u64) -> Bytes {
        let metadata = MessageMetadata {
            producer_name: PRODUCER.to_owned(),
            sequence_id: 0,
            publish_time: now_ms,
            marker_type: Some(self.kind() as i32),
            replicate_to: only.map(str::to_owned).into_iter().collect(),
            ..MessageMetadata::default()
        };
        let content = match self {
            Marker::Request(content) => content.encode_to_vec(),
            Marker::Response(content) => content.encode_to_vec(),
            Marker::Snapshot(content) => content.encode_to_vec(),
            Marker::Update(content) => content.encode_to_vec(),
        };
        let mut block = encode_headers(&metadata, &content);
        block.extend_from_slice(&content);
        block.freeze()
    }

    /// The marker in a block; none in what is no marker, or another one.
    pub fn decode(block: &Bytes) -> Result<Option<Marker>, MessageError> {
        let Some(kind) = peek(block)?.marker_type else {
            return Ok(None);
        };
        let content = payload(block)?;
        Ok(match MarkerType::try_from(kind) {
            Ok(MarkerType::ReplicatedSubscriptionSnapshotRequest) => {
                Some(Marker::Request(Message::decode(content)?))
            }
            Ok(MarkerType::ReplicatedSubscriptionSnapshotResponse) => {
                Some(Marker::Response(Message::decode(content)?))
            }
            Ok(MarkerType::ReplicatedSubscriptionSnapshot) => {
                Some(Marker::Snapshot(Message::decode(content)?))
            }
            Ok(MarkerType::ReplicatedSubscriptionUpdate) => {
                Some(Marker::Update(Message::decode(content)?))
            }
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{decode_metadata, verify_checksum};
    use crate::pb::{ClusterMessageId, MarkersMessageIdData};

    #[test]
    fn markers_are_written_and_read() {
        let place = ClusterMessageId {
            cluster: "b".to_owned(),
            message_id: MarkersMessageIdData {
                ledger_id: 3,
                entry_id: 9,
            },
        };
        let all = [
            Marker::Request(ReplicatedSubscriptionsSnapshotRequest {
                snapshot_id: "x".to_owned(),
                source_cluster: Some("a".to_owned()),
            }),
            Marker::Response(ReplicatedSubscriptionsSnapshotResponse {
                snapshot_id: "x".to_owned(),
                cluster: Some(place.clone()),
            }),
            Marker::Snapshot(ReplicatedSubscriptionsSnapshot {
                snapshot_id: "x".to_owned(),
                local_message_id: Some(place.message_id),
                clusters: vec![place.clone()],
            }),
            Marker::Update(ReplicatedSubscriptionsUpdate {
                subscription_name: "s".to_owned(),
                clusters: vec![place],
            }),
        ];
        for (number, marker) in (10..).zip(&all) {
            for only in [None, Some("b")] {
                let block = marker.encode(only, 77);
                verify_checksum(&block).unwrap();
                let metadata = decode_metadata(&block).unwrap();
                assert_eq!(metadata.marker_type, Some(number));
                assert!(Marker::is_one(number));
                assert_eq!(metadata.replicate_to.first().map(String::as_str), only);
                assert_eq!(metadata.publish_time, 77);
                assert_eq!(Marker::decode(&block).unwrap().as_ref(), Some(marker));
            }
        }
        assert!(!Marker::is_one(21) && !Marker::is_one(9));
    }

    #[test]
    fn what_is_no_marker_is_none_and_garbage_is_an_error() {
        let metadata = MessageMetadata {
            producer_name: "p".to_owned(),
            ..MessageMetadata::default()
        };
        let mut block = encode_headers(&metadata, b"x");
        block.extend_from_slice(b"x");
        assert_eq!(Marker::decode(&block.freeze()).unwrap(), None);
        assert!(Marker::decode(&Bytes::from_static(b"garbage")).is_err());
        let bad = MessageMetadata {
            marker_type: Some(13),
            ..metadata
        };
        let mut block = encode_headers(&bad, b"\xff\xff");
        block.extend_from_slice(b"\xff\xff");
        assert!(Marker::decode(&block.freeze()).is_err());
    }
}
