//! Serverless event streaming in one binary.

fn main() {}
