//! The roles that a process can play, and their wiring.

pub(crate) mod remotes;
pub(crate) mod standalone;

/// The WASM runtime of this binary's workers, when it was built in.
#[cfg(feature = "wasm")]
pub(crate) fn wasm() -> Option<geminga_functions::MakeRuntime> {
    Some(geminga_wasm::runtime())
}

/// This binary was built without it.
#[cfg(not(feature = "wasm"))]
pub(crate) fn wasm() -> Option<geminga_functions::MakeRuntime> {
    None
}
