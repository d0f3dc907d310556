//! What a Go program is: one with Pulsar's instance in it, one with ours, or neither.
//!
//! Both have the same module name, so the module says nothing. Pulsar's has a package `conf`, whose functions
//! stay named in a stripped program too, and which settings its version reads is in the tags of a struct there.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The package that only Pulsar's instance has, and what came into it one after the other.
const MARKS: [&[u8]; 3] = [
    b"github.com/apache/pulsar/pulsar-function-go/conf.",
    b"json:\"sourceInputSpecs\"",
    b"json:\"clientAuthenticationParameters\"",
];
const PIECE_BYTES: usize = 1 << 20;
/// At least the longest mark, less one.
const OVERLAP: usize = 64;
/// How an executable of this system begins.
const ELF: &[u8] = b"\x7fELF";

/// What the Pulsar instance in a program knows. They came one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Known {
    /// Several inputs, each with its settings.
    pub(crate) many_inputs: bool,
    /// Showing the broker who it is.
    pub(crate) authentication: bool,
}

/// What is in the program, if Pulsar's instance is in it.
pub(crate) fn pulsars(path: &Path) -> Option<Known> {
    let file = File::open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    of(file).ok()?
}

/// Reads a piece at a time: a program may be of any size.
fn of(mut program: impl Read) -> io::Result<Option<Known>> {
    let mut found = [false; MARKS.len()];
    let mut bytes = Vec::with_capacity(OVERLAP + PIECE_BYTES);
    let mut is_first = true;
    loop {
        // A mark may begin at the end of the piece before.
        bytes.drain(..bytes.len().saturating_sub(OVERLAP));
        let more = (&mut program)
            .take(PIECE_BYTES as u64)
            .read_to_end(&mut bytes)?;
        if is_first && !bytes.starts_with(ELF) {
            return Ok(None);
        }
        is_first = false;
        if more == 0 {
            break;
        }
        for (found, mark) in found.iter_mut().zip(MARKS) {
            *found = *found || holds(&bytes, mark);
        }
        if found == [true; MARKS.len()] {
            break;
        }
    }
    let [is_pulsars, many_inputs, authentication] = found;
    Ok(is_pulsars.then_some(Known {
        many_inputs,
        authentication,
    }))
}

fn holds(bytes: &[u8], wanted: &[u8]) -> bool {
    // By the last byte, as it is the rarest of these in a program: a quote or a dot after a name.
    let (Some(&last), size) = (wanted.last(), wanted.len()) else {
        return true;
    };
    let mut from = size - 1;
    while let Some(rest) = bytes.get(from..)
        && let Some(at) = rest.iter().position(|&byte| byte == last)
    {
        let end = from + at + 1;
        if &bytes[end - size..end] == wanted {
            return true;
        }
        from = end;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(program: &[u8]) -> Option<Known> {
        super::of(program).expect("read")
    }

    #[test]
    fn a_program_is_known_by_what_is_in_it() {
        let program = |parts: &[&[u8]]| [&[ELF], parts].concat().concat();
        let ours: &[u8] = b"github.com/apache/pulsar/pulsar-function-go/internal/host.Open";
        assert_eq!(of(&program(&[ours])), None);
        assert_eq!(of(MARKS[0]), None, "a text that speaks of it");
        assert_eq!(of(b""), None);
        let old = Known {
            many_inputs: false,
            authentication: false,
        };
        let package: &[u8] = b"..github.com/apache/pulsar/pulsar-function-go/conf.(*Conf).GetConf";
        assert_eq!(of(&program(&[package])), Some(old));
        let newer: &[u8] = b"\"json:\"sourceInputSpecs\" yaml:\"sourceInputSpecs\"";
        let many = Known {
            many_inputs: true,
            ..old
        };
        assert_eq!(of(&program(&[package, newer])), Some(many));
    }

    #[test]
    fn a_mark_is_found_wherever_pieces_meet() {
        for at in [0, 1, OVERLAP, MARKS[0].len() - 1, MARKS[0].len()] {
            let mut program = ELF.to_vec();
            program.resize(PIECE_BYTES - at, b'.');
            program.extend_from_slice(MARKS[0]);
            assert!(
                of(&program).is_some(),
                "{at} bytes before the end of a piece"
            );
        }
    }
}
