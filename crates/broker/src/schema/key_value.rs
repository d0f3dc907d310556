//! KEY_VALUE schemas: two definitions in one, their types in the properties. Pure.

use std::collections::BTreeMap;

use super::type_number;

/// A half: its type's number, its definition.
pub(crate) type Half<'a> = (i32, &'a [u8]);

/// The key's and the value's definitions.
pub(crate) fn split<'a>(
    data: &'a [u8],
    properties: &BTreeMap<String, String>,
) -> Result<(Half<'a>, Half<'a>), String> {
    let (key, rest) = take(data).ok_or("the key's definition is cut off")?;
    let (value, rest) = take(rest).ok_or("the value's definition is cut off")?;
    if !rest.is_empty() {
        return Err("bytes behind the value's definition".to_owned());
    }
    let kind = |half: &str| match properties.get(&format!("{half}.schema.type")) {
        // As Pulsar: bytes, of which nothing is known.
        None => Ok(super::TYPE_NONE),
        Some(name) => type_number(name)
            .ok_or_else(|| format!("`{half}.schema.type` is `{name}`, which is no type")),
    };
    Ok(((kind("key")?, key), (kind("value")?, value)))
}

/// A length and that many bytes; a length below 0 stands for none.
fn take(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = data.split_first_chunk::<4>()?;
    let length = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(halves: [Option<&[u8]>; 2]) -> Vec<u8> {
        let mut out = Vec::new();
        for half in halves {
            let length = half.map_or(-1, |half| half.len() as i32);
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(half.unwrap_or_default());
        }
        out
    }

    proptest! {
        #[test]
        fn halves_come_back(key: Vec<u8>, value: Option<Vec<u8>>) {
            let data = written([Some(&key), value.as_deref()]);
            let (first, second) = split(&data, &BTreeMap::new()).unwrap();
            prop_assert_eq!(first.1, &key[..]);
            prop_assert_eq!(second.1, value.as_deref().unwrap_or_default());
            // A byte less or more is no pair.
            prop_assert!(split(&data[..data.len() - 1], &BTreeMap::new()).is_err());
            prop_assert!(split(&[&data[..], &[0]].concat(), &BTreeMap::new()).is_err());
        }

        #[test]
        fn any_bytes_end(data: Vec<u8>) {
            drop(split(&data, &BTreeMap::new()));
        }
    }
}
