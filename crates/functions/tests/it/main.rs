//! The worker against a real broker: ours in this process, or the one in `GEMINGA_TEST_SERVICE_URL`.

mod changelog;
mod earthquakes;
mod flaws;
mod hosts;
mod operation;
mod stage;
mod stream;
mod workers;
