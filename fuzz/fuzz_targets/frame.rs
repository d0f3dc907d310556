//! Whatever a peer sends: see `geminga_proto::frame::fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| geminga_proto::frame::fuzz::parse(bytes));
