use prost::Message;

use super::*;

/// One command of each kind that has an interesting body, and all others by default.
fn samples() -> Vec<Command> {
    let mut all: Vec<Command> = (0..100)
        .filter(|&number| Command::name_of(number) != "UNKNOWN")
        .filter_map(|number| Command::decode_body(number, &[]).ok())
        .collect();
    assert_eq!(all.len(), 58);
    all.push(error(7, ServerError::TopicNotFound, "no such topic"));
    all.push(success(u64::MAX));
    all.push(
        CommandSubscribe {
            topic: "persistent://public/default/t".into(),
            subscription: "s".into(),
            sub_type: command_subscribe::SubType::KeyShared as i32,
            consumer_id: 3,
            request_id: 4,
            consumer_name: Some("me".into()),
            metadata: key_values([("a", "b"), ("c", "")]),
            start_message_id: Some(MessageIdData {
                ledger_id: u64::MAX,
                entry_id: 5,
                ack_set: vec![-1, 7],
                ..Default::default()
            }),
            ..Default::default()
        }
        .into(),
    );
    all
}

#[test]
fn every_command_has_a_name_and_a_number() {
    assert_eq!(Command::name_of(6), "SEND");
    assert_eq!(Command::name_of(68), "TOPIC_MIGRATED");
    assert_eq!(base_command::Type::TopicMigrated as i32, 68);
}

#[test]
fn commands_are_encoded_as_prost_does() {
    for command in samples() {
        let mut ours = Vec::new();
        command.encode(&mut ours);
        assert_eq!(ours.len(), command.encoded_len(), "{command:?}");
        assert_eq!(
            ours,
            command.clone().into_base().encode_to_vec(),
            "{command:?}"
        );
        assert_eq!(Command::decode(&ours).unwrap(), command);
    }
}

#[test]
fn unknown_types_and_fields_are_tolerated() {
    // Type 70 with a body in field 70, which no generated struct knows.
    let bytes = [0x08, 70, 0xb2, 0x04, 2, 0x08, 1];
    assert_eq!(Command::decode(&bytes).unwrap(), Command::Unknown(70));
    // PING with an unknown field after its body.
    let bytes = [0x08, 18, 0x92, 0x01, 0, 0xf8, 0x07, 5];
    assert_eq!(Command::decode(&bytes).unwrap(), ping());
    // The body before the type.
    let bytes = [0x92, 0x01, 0, 0x08, 18];
    assert_eq!(Command::decode(&bytes).unwrap(), ping());
}

#[test]
fn a_command_without_its_body_is_an_error() {
    let error = Command::decode(&[0x08, 3]).unwrap_err();
    assert_eq!(error, FrameError::MissingBody { name: "CONNECTED" });
}

proptest::proptest! {
    #[test]
    fn garbage_is_an_error_or_a_command(bytes: Vec<u8>) {
        let ours = Command::decode(&bytes);
        if let (Ok(ours), Ok(theirs)) = (&ours, BaseCommand::decode(&bytes[..])) {
            proptest::prop_assert_eq!(ours.number(), theirs.r#type);
        }
    }
}
