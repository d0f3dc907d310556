//! User names and passwords from an htpasswd file: apr1, SHA-256 and SHA-512 crypt, as Pulsar reads
//! them; DES crypt is refused, it can be broken in minutes.

use std::collections::{HashMap, HashSet};

use md5::Md5;
use parking_lot::Mutex;
use sha2::{Digest, Sha256, Sha512};

use super::key::read_key;
use super::{AuthError, SecurityConfig};
use crate::error::BrokerError;

/// Bytes of a password: hashing is paid by the server.
const PASSWORD_BYTES_MAX: usize = 256;
const ROUNDS_DEFAULT: u32 = 5_000;
/// More rounds than this would let a login hold the server up.
const ROUNDS_MAX: u32 = 50_000;
const ALPHABET: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Users and their hashes.
pub struct Passwords {
    hashes: HashMap<String, Hash>,
    /// What an unknown user is checked against, so that it takes as long.
    nobody: Hash,
    /// Digests, under a key of this process, of pairs that were right: over HTTP a pair is shown with
    /// each request, and a hash is made to be slow.
    known: Mutex<HashSet<[u8; 32]>>,
    key: [u8; 32],
}

/// Pairs that are remembered.
const KNOWN_MAX: usize = 1_000;

#[derive(Clone)]
struct Hash {
    kind: Kind,
    salt: String,
    rounds: u32,
    hash: String,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// `$apr1$` and `$1$`, which differ in this word alone.
    Md5(&'static str),
    Sha256,
    Sha512,
}

impl Passwords {
    pub(crate) fn load(config: &SecurityConfig) -> Result<Passwords, BrokerError> {
        let bad = |reason| BrokerError::BadSetting {
            setting: "basicAuthConf",
            reason,
        };
        let given = config.basic_auth_conf.as_deref();
        let given = given.ok_or(bad("must be set for the basic provider"))?;
        let bytes = read_key(given).map_err(bad)?;
        let text = String::from_utf8(bytes).map_err(|_| bad("is not text"))?;
        Passwords::parse(&text).map_err(bad)
    }

    pub(crate) fn parse(text: &str) -> Result<Passwords, &'static str> {
        let mut hashes = HashMap::new();
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (user, hash) = line.split_once(':').ok_or("has a line without `:`")?;
            let hash = Hash::parse(hash).ok_or(
                "has a hash that is none of apr1 (htpasswd -m), SHA-256 (-2) and SHA-512 (-5)",
            )?;
            hashes.insert(user.to_owned(), hash);
        }
        let nobody = hashes.values().next().cloned().ok_or("names nobody")?;
        Ok(Passwords {
            hashes,
            nobody,
            known: Mutex::default(),
            key: super::token::new_secret_key().map_err(|_| "needs random bytes")?,
        })
    }

    /// The user, if the password is theirs.
    pub(crate) fn verify(&self, pair: &str) -> Result<String, AuthError> {
        let (user, password) = pair
            .split_once(':')
            .ok_or(AuthError::Wrong("user and password are not parted by `:`"))?;
        if password.len() > PASSWORD_BYTES_MAX {
            return Err(AuthError::Wrong("the password is too long"));
        }
        let digest = self.digest(pair);
        if self.known.lock().contains(&digest) {
            return Ok(user.to_owned());
        }
        let known = self.hashes.get(user);
        let hash = known.unwrap_or(&self.nobody);
        let fits = same(&hash.of(password.as_bytes()), &hash.hash);
        match fits && known.is_some() {
            true => {
                let mut known = self.known.lock();
                if known.len() >= KNOWN_MAX {
                    known.clear();
                }
                known.insert(digest);
                Ok(user.to_owned())
            }
            false => Err(AuthError::Wrong("unknown user or wrong password")),
        }
    }
}

impl Passwords {
    fn digest(&self, pair: &str) -> [u8; 32] {
        let mut digest = Sha256::new();
        digest.update(self.key);
        digest.update(pair);
        digest.update(self.key);
        digest.finalize().into()
    }
}

/// In a time that does not tell where they differ.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |d, (a, b)| d | (a ^ b)) == 0
}

impl Hash {
    fn parse(text: &str) -> Option<Hash> {
        let mut parts = text.strip_prefix('$')?.split('$');
        let kind = match parts.next()? {
            "apr1" => Kind::Md5("$apr1$"),
            "1" => Kind::Md5("$1$"),
            "5" => Kind::Sha256,
            "6" => Kind::Sha512,
            _ => return None,
        };
        let mut salt = parts.next()?;
        let mut rounds = ROUNDS_DEFAULT;
        if let Some(given) = salt.strip_prefix("rounds=") {
            rounds = given.parse().ok()?;
            salt = parts.next()?;
        }
        let hash = parts.next()?;
        if parts.next().is_some() || hash.is_empty() || !(1_000..=ROUNDS_MAX).contains(&rounds) {
            return None;
        }
        let salt_max = if matches!(kind, Kind::Md5(_)) { 8 } else { 16 };
        Some(Hash {
            kind,
            salt: salt.chars().take(salt_max).collect(),
            rounds,
            hash: hash.to_owned(),
        })
    }

    fn of(&self, password: &[u8]) -> String {
        let salt = self.salt.as_bytes();
        match self.kind {
            Kind::Md5(magic) => md5_crypt(password, salt, magic.as_bytes()),
            Kind::Sha256 => {
                let hash = sha_crypt::<Sha256>(password, salt, self.rounds);
                let mut out = String::new();
                let mut group = [0, 10, 20];
                for _ in 0..10 {
                    text_of(&mut out, group.map(|at| hash[at]), 4);
                    group = [group[2] + 1, group[0] + 1, group[1] + 1];
                }
                text_of(&mut out, [0, hash[31], hash[30]], 3);
                out
            }
            Kind::Sha512 => {
                let hash = sha_crypt::<Sha512>(password, salt, self.rounds);
                let mut out = String::new();
                let mut group = [0, 21, 42];
                for _ in 0..21 {
                    text_of(&mut out, group.map(|at| hash[at]), 4);
                    group = [group[1] + 1, group[2] + 1, group[0] + 1];
                }
                text_of(&mut out, [0, 0, hash[63]], 2);
                out
            }
        }
    }
}

/// Three bytes, the first the highest, as `count` characters from the lowest bits on.
fn text_of(out: &mut String, bytes: [u8; 3], count: usize) {
    let mut bits = u32::from(bytes[0]) << 16 | u32::from(bytes[1]) << 8 | u32::from(bytes[2]);
    for _ in 0..count {
        out.push(char::from(ALPHABET[(bits & 63) as usize]));
        bits >>= 6;
    }
}

/// The MD5 crypt of FreeBSD and Apache.
fn md5_crypt(password: &[u8], salt: &[u8], magic: &[u8]) -> String {
    let digest = |parts: &[&[u8]]| {
        let mut digest = Md5::new();
        for part in parts {
            digest.update(part);
        }
        digest.finalize()
    };
    let inner = digest(&[password, salt, password]);
    let mut first = Md5::new();
    first.update(password);
    first.update(magic);
    first.update(salt);
    for at in (0..password.len()).step_by(16) {
        first.update(&inner[..(password.len() - at).min(16)]);
    }
    let mut length = password.len();
    while length > 0 {
        match length & 1 {
            1 => first.update([0]),
            _ => first.update(&password[..1]),
        }
        length >>= 1;
    }
    let mut hash = first.finalize();
    for round in 0..1_000 {
        let mut next = Md5::new();
        let odd = round & 1 == 1;
        next.update(if odd { password } else { &hash[..] });
        if round % 3 != 0 {
            next.update(salt);
        }
        if round % 7 != 0 {
            next.update(password);
        }
        next.update(if odd { &hash[..] } else { password });
        hash = next.finalize();
    }
    let mut out = String::new();
    for [a, b, c] in [[0, 6, 12], [1, 7, 13], [2, 8, 14], [3, 9, 15], [4, 10, 5]] {
        text_of(&mut out, [hash[a], hash[b], hash[c]], 4);
    }
    text_of(&mut out, [0, 0, hash[11]], 2);
    out
}

/// The SHA crypt of Ulrich Drepper.
fn sha_crypt<D: Digest>(password: &[u8], salt: &[u8], rounds: u32) -> Vec<u8> {
    let size = <D as Digest>::output_size();
    let digest = |parts: &[&[u8]]| {
        let mut digest = D::new();
        for part in parts {
            digest.update(part);
        }
        digest.finalize().to_vec()
    };
    // The block again and again, up to a length.
    let stretched = |block: &[u8], length: usize| {
        block
            .iter()
            .copied()
            .cycle()
            .take(length)
            .collect::<Vec<u8>>()
    };
    let inner = digest(&[password, salt, password]);
    let mut first = D::new();
    first.update(password);
    first.update(salt);
    first.update(stretched(&inner, password.len()));
    let mut length = password.len();
    while length > 0 {
        match length & 1 {
            1 => first.update(&inner),
            _ => first.update(password),
        }
        length >>= 1;
    }
    let mut hash = first.finalize().to_vec();
    debug_assert_eq!(hash.len(), size);
    let mut passwords = D::new();
    for _ in 0..password.len() {
        passwords.update(password);
    }
    let p = stretched(&passwords.finalize(), password.len());
    let mut salts = D::new();
    for _ in 0..16 + usize::from(hash[0]) {
        salts.update(salt);
    }
    let s = stretched(&salts.finalize(), salt.len());
    for round in 0..rounds {
        let mut next = D::new();
        let odd = round & 1 == 1;
        next.update(if odd { &p } else { &hash });
        if round % 3 != 0 {
            next.update(&s);
        }
        if round % 7 != 0 {
            next.update(&p);
        }
        next.update(if odd { &hash } else { &p });
        hash = next.finalize().to_vec();
    }
    hash
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_file_is_read_or_refused(lines in proptest::collection::vec("[a-z]{0,3}:?\\$?(apr1|1|5|6)?\\$?(rounds=[0-9]{0,5}\\$)?[a-zé./]{0,20}\\$?[a-z]{0,4}", 0..4)) {
            if let Ok(passwords) = Passwords::parse(&lines.join("\n")) {
                prop_assert!(passwords.verify("nobody at all:x").is_err());
            }
        }

        #[test]
        fn any_text_is_no_password(pair in ".{0,100}") {
            prop_assert!(Passwords::parse(HASHES).unwrap().verify(&pair).is_err());
        }
    }

    /// Made by `openssl passwd -apr1|-1|-5|-6 -salt ...`.
    #[test]
    fn hashes_of_others_are_understood() {
        let passwords = Passwords::parse(HASHES).unwrap();
        for user in ["apr", "md5", "sha256", "sha512"] {
            let right = format!("{user}:a password: with more than sixteen");
            assert_eq!(passwords.verify(&right).unwrap(), user, "{user}");
            let wrong = passwords.verify(&format!("{user}:a password: with"));
            assert!(wrong.is_err(), "{user}");
            // Remembered, and only what was right.
            assert_eq!(passwords.verify(&right).unwrap(), user, "{user}");
            assert!(passwords.verify(&format!("{right}!")).is_err(), "{user}");
        }
        for pair in ["nobody:x", "apr", "", ":", "apr:"] {
            assert!(passwords.verify(pair).is_err(), "{pair}");
        }
    }

    #[test]
    fn weak_hashes_are_refused() {
        for file in [
            "a:rqXexS6ZhobKA",
            "a:plain",
            "a",
            "",
            "a:$2y$05$x",
            "a:$6$rounds=1$x$y",
        ] {
            assert!(Passwords::parse(file).is_err(), "{file}");
        }
    }

    const HASHES: &str = "\
        apr:$apr1$abcdefgh$pBozbFkszSWEJD5vD8GPI0\n\
        md5:$1$abcdefgh$6ZvSF65cOLDyCZJYrUV7b/\n\
        sha256:$5$saltsaltsalt$8aca/.YJq9gSe1YyZdQPKKXGzGOak/E1SXxUFjL/yr1\n\
        sha512:$6$saltsaltsalt$Mi1rkYzqQ6ruiDk03p7387pcwXWB4Oo8d0snwomjsih0eJxvbx8DxFQI5XSl47nXih14Xm5tuxKDDIByLSFLR/\n";
}
