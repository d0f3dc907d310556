//! The formats against bytes that were recorded from others.

mod golden;
