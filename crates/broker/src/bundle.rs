//! Bundles: the ranges of the hash of topic names that a namespace is cut into. Pure.
//!
//! On one broker a topic is not placed by its bundle. A bundle is still what an operator unloads,
//! empties or counts at once, and what the next broker would take over, so cuts are kept.
//!
//! What must hold: boundaries rise, the first is 0 and the last `0xffffffff`; every hash is in one
//! bundle.

use geminga_model::TopicName;
use serde::{Deserialize, Serialize};

/// Bundles of one namespace.
pub const BUNDLES_MAX: usize = 4_096;

/// The cuts of a namespace, as Pulsar writes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Written", try_from = "Written")]
pub struct Bundles {
    boundaries: Vec<u32>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[derive(Default)]
struct Written {
    boundaries: Vec<String>,
    num_bundles: i64,
}

impl From<Bundles> for Written {
    fn from(bundles: Bundles) -> Written {
        Written {
            boundaries: bundles.boundaries.iter().map(|at| text(*at)).collect(),
            num_bundles: i64::try_from(bundles.len()).unwrap_or(i64::MAX),
        }
    }
}

impl TryFrom<Written> for Bundles {
    type Error = String;

    /// Boundaries where they are given, else so many of equal size; neither: the default.
    fn try_from(written: Written) -> Result<Bundles, String> {
        if written.boundaries.is_empty() {
            return match usize::try_from(written.num_bundles) {
                Ok(0) => Ok(Bundles::default()),
                Ok(count) if count <= BUNDLES_MAX => Ok(Bundles::equal(count)),
                _ => Err(format!(
                    "`numBundles` must be between 1 and {BUNDLES_MAX}, not {}",
                    written.num_bundles
                )),
            };
        }
        let boundaries: Option<Vec<u32>> = written.boundaries.iter().map(|at| read(at)).collect();
        let boundaries = boundaries.ok_or("`boundaries` are numbers like `0x40000000`")?;
        let rises = boundaries.windows(2).all(|pair| pair[0] < pair[1]);
        let (first, last) = (boundaries.first().copied(), boundaries.last().copied());
        if !rises || first != Some(0) || last != Some(u32::MAX) {
            return Err("`boundaries` must rise from `0x00000000` to `0xffffffff`".to_owned());
        }
        match boundaries.len() <= BUNDLES_MAX + 1 {
            true => Ok(Bundles { boundaries }),
            false => Err(format!("there may be {BUNDLES_MAX} bundles")),
        }
    }
}

impl Default for Bundles {
    fn default() -> Bundles {
        Bundles::equal(4)
    }
}

/// How a bundle is cut in two or more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Split {
    /// In the middle of its range.
    Range,
    /// So that both halves have as many of these hashes.
    Topics(Vec<u32>),
    /// Here; what is not inside of the range is left out.
    At(Vec<u32>),
}

impl Bundles {
    /// So many of about the same size.
    fn equal(count: usize) -> Bundles {
        let count = count.max(1) as u64;
        let step = u64::from(u32::MAX) / count;
        // Pulsar's steps: of powers of two they are round numbers.
        let step = if count.is_power_of_two() {
            (1 << 32) / count
        } else {
            step
        };
        let mut boundaries: Vec<u32> = (0..count)
            .map(|number| u32::try_from(number * step).unwrap_or(u32::MAX))
            .collect();
        boundaries.push(u32::MAX);
        Bundles { boundaries }
    }

    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Bundles::default()
    }

    #[expect(clippy::len_without_is_empty, reason = "there is always one")]
    #[must_use]
    pub fn len(&self) -> usize {
        self.boundaries.len() - 1
    }

    /// As text: `0x00000000_0x40000000`.
    #[must_use]
    pub fn range(&self, number: usize) -> String {
        let (low, high) = (self.boundaries[number], self.boundaries[number + 1]);
        format!("{}_{}", text(low), text(high))
    }

    pub fn ranges(&self) -> impl Iterator<Item = String> {
        (0..self.len()).map(|number| self.range(number))
    }

    /// The number of the bundle with this hash.
    #[must_use]
    pub fn of_hash(&self, hash: u32) -> usize {
        let behind = self.boundaries.partition_point(|at| *at <= hash);
        // The last boundary belongs to the last bundle.
        behind.saturating_sub(1).min(self.len() - 1)
    }

    #[must_use]
    pub fn of(&self, topic: &TopicName) -> usize {
        self.of_hash(hash(topic))
    }

    /// The number of the bundle with this range; an error as Pulsar says it.
    pub fn number(&self, range: &str) -> Result<usize, String> {
        let (low, high) = range
            .split_once('_')
            .and_then(|(low, high)| Some((read(low)?, read(high)?)))
            .ok_or_else(|| format!("Invalid format of bundle `{range}`"))?;
        let number = self.of_hash(low);
        if self.boundaries[number] != low {
            return Err(format!("Invalid lower boundary for bundle {range}"));
        }
        if self.boundaries[number + 1] != high {
            return Err(format!(
                "Invalid upper boundary for bundle {range}. Expected upper boundary of {}",
                self.range(number)
            ));
        }
        Ok(number)
    }

    /// Cuts a bundle. One that cannot be cut so stays whole.
    pub fn split(&mut self, number: usize, how: &Split) -> Result<(), String> {
        let (low, high) = (self.boundaries[number], self.boundaries[number + 1]);
        let mut cuts = match how {
            Split::Range => vec![low + (high - low).div_ceil(2)],
            Split::Topics(hashes) => {
                let mut inside = hashes.clone();
                inside.retain(|hash| self.of_hash(*hash) == number);
                inside.sort_unstable();
                let half = inside.len() / 2;
                match half {
                    0 => Vec::new(),
                    _ => vec![inside[half - 1] / 2 + inside[half] / 2 + 1],
                }
            }
            Split::At(places) => places.clone(),
        };
        cuts.retain(|at| low < *at && *at < high);
        cuts.sort_unstable();
        cuts.dedup();
        if self.len() + cuts.len() > BUNDLES_MAX {
            return Err(format!("a namespace has at most {BUNDLES_MAX} bundles"));
        }
        self.boundaries.splice(number + 1..number + 1, cuts);
        Ok(())
    }
}

/// Where a topic's name is in the range: CRC-32 (IEEE).
#[must_use]
pub fn hash(topic: &TopicName) -> u32 {
    crc32(topic.as_str().as_bytes())
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                (crc >> 1) ^ 0xedb8_8320
            } else {
                crc >> 1
            };
        }
    }
    !crc
}

fn text(boundary: u32) -> String {
    format!("0x{boundary:08x}")
}

fn read(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("0x")?;
    let are_digits = digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    u32::from_str_radix(digits, 16).ok().filter(|_| are_digits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(json: &str) -> Result<Bundles, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    fn shown(bundles: &Bundles) -> String {
        let ranges: Vec<String> = bundles.ranges().collect();
        ranges.join(" ")
    }

    #[test]
    fn bundles_are_read_as_pulsar_writes_them() {
        for (json, ranges) in [
            (
                "{}",
                "0x00000000_0x40000000 0x40000000_0x80000000 0x80000000_0xc0000000 \
                 0xc0000000_0xffffffff",
            ),
            (r#"{"numBundles":1}"#, "0x00000000_0xffffffff"),
            (
                r#"{"numBundles":5}"#,
                "0x00000000_0x33333333 0x33333333_0x66666666 0x66666666_0x99999999 \
                 0x99999999_0xcccccccc 0xcccccccc_0xffffffff",
            ),
            (
                r#"{"boundaries":["0x00000000","0x10000000","0xffffffff"],"numBundles":2}"#,
                "0x00000000_0x10000000 0x10000000_0xffffffff",
            ),
        ] {
            let bundles = cut(json).unwrap();
            assert_eq!(shown(&bundles), ranges, "{json}");
            let again = serde_json::to_string(&bundles).unwrap();
            assert_eq!(cut(&again).unwrap(), bundles);
        }
        for (json, word) in [
            (r#"{"numBundles":-1}"#, "numBundles"),
            (r#"{"numBundles":5000}"#, "numBundles"),
            (r#"{"boundaries":["0x10000000","0xffffffff"]}"#, "must rise"),
            (r#"{"boundaries":["0x00000000","0x1"]}"#, "numbers like"),
            (r#"{"bundles":3}"#, "bundles"),
        ] {
            let refused = cut(json).unwrap_err();
            assert!(refused.contains(word), "{refused}");
        }
    }

    #[test]
    fn a_bundle_is_named_by_its_range_and_cut() {
        let mut bundles = Bundles::default();
        assert_eq!(bundles.number("0xc0000000_0xffffffff"), Ok(3));
        for (range, word) in [
            (
                "0x00000000_0x80000000",
                "Expected upper boundary of 0x00000000_0x40000000",
            ),
            ("0x10000000_0x40000000", "lower boundary"),
            ("all", "format"),
        ] {
            let refused = bundles.number(range).unwrap_err();
            assert!(refused.contains(word), "{refused}");
        }
        bundles.split(0, &Split::Range).unwrap();
        assert_eq!(bundles.range(1), "0x20000000_0x40000000");
        bundles
            .split(5 - 1, &Split::At(vec![1, 0xd000_0000]))
            .unwrap();
        assert_eq!(bundles.range(5), "0xd0000000_0xffffffff");
        bundles
            .split(0, &Split::Topics(vec![0x10, 0x20, 0x30, 0x40]))
            .unwrap();
        assert_eq!(bundles.range(0), "0x00000000_0x00000029");
        let before = bundles.clone();
        bundles.split(0, &Split::Topics(vec![5])).unwrap();
        assert_eq!(bundles, before, "one topic cannot be halved");
    }

    #[test]
    fn the_hash_is_the_known_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    proptest! {
        #[test]
        fn every_hash_is_in_one_bundle(count in 1usize..40, cuts in prop::collection::vec(any::<u32>(), 0..20), hash in any::<u32>()) {
            let mut bundles = Bundles::equal(count);
            for at in cuts {
                let number = bundles.of_hash(at);
                bundles.split(number, &Split::At(vec![at])).unwrap();
            }
            let within = |n: usize| {
                let (low, high) = (bundles.boundaries[n], bundles.boundaries[n + 1]);
                low <= hash && (hash < high || hash == u32::MAX && high == u32::MAX)
            };
            prop_assert_eq!((0..bundles.len()).filter(|n| within(*n)).count(), 1);
            prop_assert!(within(bundles.of_hash(hash)));
        }
    }
}
