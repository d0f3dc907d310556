//! The map behind the embedded metadata store: compact, sorted, with versions. No I/O here.

use super::{Expected, Op, Version, Versioned};
use crate::codec::{Reader, put_bytes, put_u64};
use crate::error::{MetadataError, StoreError};
use bytes::Bytes;
use std::collections::{BTreeMap, HashSet};
use std::ops::Bound;

#[derive(Debug, Default)]
pub(crate) struct Tree {
    nodes: BTreeMap<Box<str>, Node>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    value: Box<[u8]>,
    version: u64,
    created: u64,
}

impl Node {
    fn versioned(&self) -> Versioned {
        Versioned {
            value: Bytes::copy_from_slice(&self.value),
            version: Version(self.version),
            created: Version(self.created),
        }
    }
}

impl Tree {
    pub(crate) fn get(&self, key: &str) -> Option<Versioned> {
        self.nodes.get(key).map(Node::versioned)
    }

    pub(crate) fn check(&self, op: &Op) -> Result<(), MetadataError> {
        let (Op::Put { key, expected, .. } | Op::Delete { key, expected }) = op;
        let found = self.nodes.get(&**key).map(|node| Version(node.version));
        let holds = match expected {
            Expected::Any => true,
            Expected::Absent => found.is_none(),
            Expected::Is(version) => found == Some(*version),
        };
        if holds {
            return Ok(());
        }
        Err(MetadataError::Conflict {
            key: key.clone(),
            found,
        })
    }

    pub(crate) fn put(&mut self, key: &str, value: &[u8], version: u64) {
        if let Some(node) = self.nodes.get_mut(key) {
            node.value = value.into();
            node.version = version;
            return;
        }
        let node = Node {
            value: value.into(),
            version,
            created: version,
        };
        self.nodes.insert(key.into(), node);
    }

    pub(crate) fn delete(&mut self, key: &str) -> bool {
        self.nodes.remove(key).is_some()
    }

    /// The names between `path/` and the next `/`, each once, without walking whole subtrees.
    pub(crate) fn children(&self, path: &str) -> Vec<String> {
        let parent = format!("{}/", path.trim_end_matches('/'));
        let mut names: Vec<String> = Vec::new();
        let mut from = parent.clone();
        loop {
            let mut skip_to = None;
            let range = (Bound::Included(&*from), Bound::Unbounded);
            for (key, _) in self.nodes.range::<str, _>(range) {
                let Some(rest) = key.strip_prefix(&*parent) else {
                    break;
                };
                let (name, is_inner) = rest.split_once('/').map_or((rest, false), |s| (s.0, true));
                names.push(name.to_owned());
                if is_inner {
                    // '0' follows '/': the first key that is not below this child.
                    skip_to = Some(format!("{parent}{name}0"));
                    break;
                }
            }
            match skip_to {
                Some(next) => from = next,
                None => break,
            }
        }
        // A sibling such as `a.b` sorts between `a` and `a/c`.
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The creating versions of all keys with this prefix.
    pub(crate) fn created_below(&self, prefix: &str) -> HashSet<u64> {
        self.nodes
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(_, node)| node.created)
            .collect()
    }

    pub(crate) fn scan(
        &self,
        path: &str,
        after: Option<&str>,
        count_max: usize,
    ) -> Vec<(String, Versioned)> {
        let prefix = format!("{}/", path.trim_end_matches('/'));
        let start = match after {
            Some(after) if after >= &*prefix => Bound::Excluded(after),
            _ => Bound::Included(&*prefix),
        };
        self.nodes
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(&prefix))
            .take(count_max)
            .map(|(key, node)| (key.to_string(), node.versioned()))
            .collect()
    }

    /// Spells up to `count` nodes after `after`; returns the last key, or none at the end.
    pub(crate) fn encode_chunk(
        &self,
        after: Option<&str>,
        count: usize,
        out: &mut Vec<u8>,
    ) -> Option<String> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut last = None;
        for (key, node) in self
            .nodes
            .range::<str, _>((start, Bound::Unbounded))
            .take(count)
        {
            put_bytes(out, key.as_bytes());
            put_bytes(out, &node.value);
            put_u64(out, node.version);
            put_u64(out, node.created);
            last = Some(key);
        }
        last.map(|key| key.to_string())
    }

    /// Takes in what `encode_chunk` spelled; returns the highest version.
    pub(crate) fn decode_chunk(&mut self, reader: &mut Reader<'_>) -> Result<u64, StoreError> {
        let mut highest = 0;
        while !reader.is_empty() {
            let key = reader.text()?;
            let node = Node {
                value: reader.bytes()?.into(),
                version: reader.u64()?,
                created: reader.u64()?,
            };
            highest = highest.max(node.version);
            self.nodes.insert(key.into(), node);
        }
        Ok(highest)
    }
}
