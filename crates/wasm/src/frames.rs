//! The host's side of the host protocol (`docs/host-protocol.md`), as a component's adapter speaks it.
//! Pure: bytes in, bytes out. What arrives was written by the worker; a frame that is not whole is waited
//! for, anything else that is wrong ends the guest.

use bytes::{Buf, Bytes, BytesMut};

/// Kind, space, nine digits, newline.
pub(crate) const HEAD_BYTES: usize = 12;

/// A frame from the worker.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) body: Bytes,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the worker broke the protocol: {0}")]
pub(crate) struct Wrong(&'static str);

/// Cuts a frame off the front, when it is whole.
pub(crate) fn cut(input: &mut BytesMut) -> Result<Option<Frame>, Wrong> {
    let Some(head) = input.get(..HEAD_BYTES) else {
        return Ok(None);
    };
    let kind = head[0];
    let size: usize = std::str::from_utf8(&head[2..HEAD_BYTES - 1])
        .ok()
        .and_then(|digits| digits.parse().ok())
        .ok_or(Wrong("a frame without a head"))?;
    if input.len() < HEAD_BYTES + size {
        input.reserve(HEAD_BYTES + size - input.len());
        return Ok(None);
    }
    input.advance(HEAD_BYTES);
    let body = input.split_to(size).freeze();
    Ok(Some(Frame { kind, body }))
}

/// A message of a batch: its number, its header block, its payload.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Given {
    pub(crate) number: u64,
    pub(crate) block: Bytes,
    pub(crate) payload: Bytes,
}

/// The messages of a batch, in order.
pub(crate) fn batch(mut body: Bytes) -> Result<Vec<Given>, Wrong> {
    let short = Wrong("a batch that is too short");
    if body.len() < 12 {
        return Err(short);
    }
    let first = body.get_u64_le();
    let count = body.get_u32_le() as usize;
    if body.len() / 8 < count {
        return Err(short);
    }
    let mut table = body.split_to(count * 8);
    let mut all = Vec::with_capacity(count);
    for index in 0..count as u64 {
        let (block, payload) = (table.get_u32_le() as usize, table.get_u32_le() as usize);
        if body.len() < block || body.len() - block < payload {
            return Err(short);
        }
        all.push(Given {
            number: first + index,
            block: body.split_to(block),
            payload: body.split_to(payload),
        });
    }
    Ok(all)
}

/// The block and what follows it, of an answer.
pub(crate) fn block_and_rest(mut body: Bytes) -> Result<(Bytes, Bytes), Wrong> {
    let short = Wrong("a frame shorter than it says");
    if body.len() < 4 {
        return Err(short);
    }
    let size = body.get_u32_le() as usize;
    if body.len() < size {
        return Err(short);
    }
    let block = body.split_to(size);
    Ok((block, body))
}

/// Appends a frame; `body` writes what follows the head.
pub(crate) fn frame(out: &mut Vec<u8>, kind: u8, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[kind, b' ']);
    out.extend_from_slice(b"000000000\n");
    body(out);
    let digits = format!("{:09}", out.len() - start - HEAD_BYTES);
    out[start + 2..start + HEAD_BYTES - 1].copy_from_slice(&digits.as_bytes()[digits.len() - 9..]);
}

/// Appends a length in four bytes.
pub(crate) fn length(out: &mut Vec<u8>, count: usize) {
    out.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
}

/// A frame with a block and a payload.
pub(crate) fn with_block(out: &mut Vec<u8>, kind: u8, pairs: &[(&str, &str)], payload: &[u8]) {
    frame(out, kind, |out| {
        let at = out.len();
        length(out, 0);
        for (name, value) in pairs {
            push(out, name, value);
        }
        let size = u32::try_from(out.len() - at - 4).unwrap_or(u32::MAX);
        out[at..at + 4].copy_from_slice(&size.to_le_bytes());
        out.extend_from_slice(payload);
    });
}

/// Appends `name:value` and a newline, escaped as a block is.
pub(crate) fn push(out: &mut Vec<u8>, name: &str, value: &str) {
    escape(out, name, true);
    out.push(b':');
    escape(out, value, false);
    out.push(b'\n');
}

fn escape(out: &mut Vec<u8>, text: &str, name: bool) {
    for &byte in text.as_bytes() {
        match byte {
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            0 => out.extend_from_slice(b"\\000"),
            0x1f => out.extend_from_slice(b"\\037"),
            b':' if name => out.extend_from_slice(b"\\072"),
            other => out.push(other),
        }
    }
}

/// The lines of a block.
pub(crate) fn pairs(block: &[u8]) -> impl Iterator<Item = (String, String)> + '_ {
    block.split(|&byte| byte == b'\n').filter_map(|line| {
        let colon = line.iter().position(|&byte| byte == b':')?;
        Some((text(&line[..colon]), text(&line[colon + 1..])))
    })
}

fn text(bytes: &[u8]) -> String {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        match (first, tail) {
            (b'\\', [b'\\', after @ ..]) => {
                out.push(b'\\');
                rest = after;
            }
            (b'\\', [b'n', after @ ..]) => {
                out.push(b'\n');
                rest = after;
            }
            (
                b'\\',
                [
                    a @ b'0'..=b'3',
                    b @ b'0'..=b'7',
                    c @ b'0'..=b'7',
                    after @ ..,
                ],
            ) => {
                out.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
                rest = after;
            }
            _ => out.push(first),
        }
    }
    String::from_utf8(out)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_cut_into_its_messages() {
        let mut framed = Vec::new();
        frame(&mut framed, b'B', |out| {
            out.extend_from_slice(&7_u64.to_le_bytes());
            length(out, 2);
            for size in [4, 2, 0, 3] {
                length(out, size);
            }
            out.extend_from_slice(b"a:b\nhiyou");
        });
        let mut input = BytesMut::new();
        let mut cuts = 0;
        for byte in framed {
            input.extend_from_slice(&[byte]);
            if let Some(found) = cut(&mut input).expect("legal") {
                cuts += 1;
                let all = batch(found.body).expect("whole");
                assert_eq!((all[0].number, &all[0].payload[..]), (7, &b"hi"[..]));
                assert_eq!((all[1].number, &all[1].payload[..]), (8, &b"you"[..]));
                assert_eq!(
                    pairs(&all[0].block).collect::<Vec<_>>(),
                    [("a".into(), "b".into())]
                );
            }
        }
        assert_eq!(cuts, 1);
    }

    #[test]
    fn what_is_short_is_an_error_and_no_panic() {
        for size in 0..40 {
            let bytes = Bytes::from(vec![0xff; size]);
            assert!(batch(bytes.clone()).is_err());
            assert!(block_and_rest(bytes).is_err());
        }
        assert!(cut(&mut BytesMut::from(&b"B 00000000x\n"[..])).is_err());
    }

    #[test]
    fn any_text_survives_a_block() {
        let given = [("a:b\\n", "x\n\\ \u{1f}\0:ü"), ("", "")];
        let mut block = Vec::new();
        for (name, value) in given {
            push(&mut block, name, value);
        }
        let back: Vec<_> = pairs(&block).collect();
        let wanted: Vec<_> = given
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        assert_eq!(back, wanted);
    }
}
