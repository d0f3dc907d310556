//! The name in a client's certificate: the common name of its subject.
//!
//! The certificate has been verified before; this only finds the name. What must hold: any bytes
//! give a name or none.

/// `2.5.4.3`
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_ID: u8 = 0x06;
/// UTF8String, PrintableString, IA5String.
const TEXTS: [u8; 3] = [0x0c, 0x13, 0x16];

/// One value in DER: its tag, its content, what is behind it.
fn value(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let length = bytes
                .iter()
                .fold(0usize, |length, byte| length << 8 | usize::from(*byte));
            (length, rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

/// The content of a value with this tag, and what is behind it.
fn expect(der: &[u8], wanted: u8) -> Option<(&[u8], &[u8])> {
    let (tag, content, rest) = value(der)?;
    (tag == wanted).then_some((content, rest))
}

/// The last common name of the subject of a certificate in DER.
pub(crate) fn common_name(certificate: &[u8]) -> Option<String> {
    let (certificate, _) = expect(certificate, SEQUENCE)?;
    let (mut rest, _) = expect(certificate, SEQUENCE)?;
    // Version (optional), serial number, signature, issuer, validity: then the subject.
    if rest.first() == Some(&0xa0) {
        rest = value(rest)?.2;
    }
    for _ in 0..4 {
        rest = value(rest)?.2;
    }
    let (mut names, _) = expect(rest, SEQUENCE)?;
    let mut found = None;
    while !names.is_empty() {
        let (mut set, behind) = expect(names, SET)?;
        names = behind;
        while !set.is_empty() {
            let (pair, behind) = expect(set, SEQUENCE)?;
            set = behind;
            let (id, text) = expect(pair, OBJECT_ID)?;
            let (tag, text, _) = value(text)?;
            if id == COMMON_NAME && TEXTS.contains(&tag) {
                found = std::str::from_utf8(text).ok().map(str::to_owned);
            }
        }
    }
    found.filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn certificate(name: &str) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params
            .distinguished_name
            .push(rcgen::DnType::OrganizationName, "o");
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        let key = rcgen::KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn the_common_name_is_found() {
        for name in ["client", "a b ä"] {
            assert_eq!(common_name(&certificate(name)).as_deref(), Some(name));
        }
        assert_eq!(common_name(&certificate("")), None);
        assert_eq!(common_name(b""), None);
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(common_name(&bytes));
        }

        #[test]
        fn a_broken_certificate_ends(at in 0..400usize, byte in any::<u8>()) {
            let mut certificate = certificate("client");
            let length = certificate.len();
            certificate[at % length] = byte;
            drop(common_name(&certificate));
        }
    }
}
