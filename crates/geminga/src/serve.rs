//! The roles that a process can play, and their wiring.

pub(crate) mod remotes;
pub(crate) mod standalone;
