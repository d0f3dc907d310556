//! The client against a real broker, Geminga's or Apache Pulsar's: set `GEMINGA_TEST_SERVICE_URL`
//! (for example `pulsar://127.0.0.1:6650`). Without it these tests pass without a look; the broker's
//! and testkit's own tests run the client against Geminga in the same process.

mod broker;
