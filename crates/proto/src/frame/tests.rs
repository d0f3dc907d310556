use super::*;
use crate::command;

fn stream() -> BytesMut {
    let mut out = BytesMut::new();
    encode_command(&command::ping(), &mut out);
    let send = Send {
        producer_id: 1,
        sequence_id: 2,
        num_messages: 1,
        ..Send::default()
    };
    send.encode_frame(7, &mut out);
    out.extend_from_slice(b"payload");
    encode_command(&command::success(9), &mut out);
    out
}

#[test]
fn ping_has_these_bytes() {
    let mut out = BytesMut::new();
    encode_command(&command::ping(), &mut out);
    assert_eq!(&out[..], [0, 0, 0, 9, 0, 0, 0, 5, 8, 18, 0x92, 1, 0]);
}

#[test]
fn frames_come_out_as_they_went_in() {
    let mut buffer = stream();
    buffer.extend_from_slice(&[0, 0]);
    let mut frames = Frames::cut(&mut buffer, FRAME_SIZE_MAX).unwrap();
    let frame = frames.next().unwrap();
    assert_eq!(
        (frame.command().unwrap(), frame.block()),
        (command::ping(), &b""[..])
    );
    assert_eq!(frame.send(), Ok(None));
    let frame = frames.next().unwrap();
    assert_eq!(frame.send().unwrap().unwrap().sequence_id, 2);
    assert_eq!(frame.block_bytes(), &b"payload"[..]);
    assert!(!frames.is_empty());
    assert_eq!(
        frames.next().unwrap().command().unwrap(),
        command::success(9)
    );
    assert!(frames.next().is_none() && frames.is_empty());
    assert_eq!(&buffer[..], [0, 0]);
}

#[test]
fn a_block_is_a_slice_of_the_read_buffer() {
    let mut buffer = stream();
    let range = buffer.as_ptr_range();
    let mut frames = Frames::cut(&mut buffer, FRAME_SIZE_MAX).unwrap();
    frames.next();
    let block = frames.next().unwrap().block_bytes();
    assert!(range.contains(&block.as_ptr()), "the payload was copied");
}

#[test]
fn bytes_that_arrive_one_by_one_give_the_same_frames() {
    let mut buffer = BytesMut::new();
    let mut seen = 0;
    for &byte in &stream()[..] {
        buffer.put_u8(byte);
        let mut frames = Frames::cut(&mut buffer, FRAME_SIZE_MAX).unwrap();
        while frames.next().is_some() {
            seen += 1;
        }
    }
    assert_eq!((seen, buffer.len()), (3, 0));
}

#[test]
fn bad_sizes_are_errors_after_the_frames_before_them() {
    let cases: [(&[u8], FrameError); 4] = [
        (&[0, 0, 0, 3], FrameError::TooShort { size: 3 }),
        (&[0, 0, 0, 0], FrameError::TooShort { size: 0 }),
        (
            &[0, 0, 4, 1, 0, 0, 0, 5],
            FrameError::TooLarge {
                size: 1025,
                max: 1024,
            },
        ),
        (
            &[0, 0, 0, 9, 0, 0, 0, 6],
            FrameError::CommandTooLarge {
                command_size: 6,
                frame_size: 9,
            },
        ),
    ];
    for (bytes, error) in cases {
        let mut buffer = stream();
        buffer.extend_from_slice(bytes);
        let mut frames = Frames::cut(&mut buffer, 1024).unwrap();
        assert!((0..3).all(|_| frames.next().is_some()) && frames.next().is_none());
        assert_eq!(Frames::cut(&mut buffer, 1024).unwrap_err(), error);
        assert_eq!(cut_one(&mut buffer, 1024).unwrap_err(), error);
    }
}

#[test]
fn an_announced_frame_is_not_allocated_before_it_arrives() {
    let mut buffer = BytesMut::from(&[0, 0x4f, 0, 0, 0, 0, 0, 5][..]);
    assert!(Frames::cut(&mut buffer, FRAME_SIZE_MAX).unwrap().is_empty());
    assert!(buffer.capacity() <= 2 * GROW_AHEAD, "{}", buffer.capacity());
}

#[test]
fn one_by_one() {
    let mut buffer = stream();
    let (command, block) = cut_one(&mut buffer, FRAME_SIZE_MAX).unwrap().unwrap();
    assert_eq!((command, block.len()), (command::ping(), 0));
    let (command, block) = cut_one(&mut buffer, FRAME_SIZE_MAX).unwrap().unwrap();
    assert_eq!((command.name(), &block[..]), ("SEND", &b"payload"[..]));
    assert!(cut_one(&mut buffer, FRAME_SIZE_MAX).unwrap().is_some());
    assert_eq!(cut_one(&mut buffer, FRAME_SIZE_MAX).unwrap(), None);
}
