//! The build tool of this repository.

fn main() {}
