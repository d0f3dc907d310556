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
