//! How a configuration object of Pulsar becomes a Rust struct.
//!
//! Owns one macro. What must hold for every object made with it: names are Pulsar's camelCase
//! names, a field that was not given is `None` and is never written out, and a field that is not
//! known is an error. Pulsar ignores unknown fields; we do not.

/// Declares a configuration object. A field written `name: T` becomes `name: Option<T>`.
macro_rules! config_struct {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $( $(#[$field_meta:meta])* $field:ident : $ty:ty ),* $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
        pub struct $name {
            $(
                $(#[$field_meta])*
                #[serde(skip_serializing_if = "Option::is_none")]
                pub $field: Option<$ty>,
            )*
        }
    };
}

pub(crate) use config_struct;
