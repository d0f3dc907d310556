//! A Pulsar client: lookup, producer, consumer, reader
