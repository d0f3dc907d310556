//! The worker against a real broker: ours in this process, or the one in `GEMINGA_TEST_SERVICE_URL`.

mod builtins;
mod changelog;
mod column;
mod connectors;
mod each_power;
mod earthquakes;
mod exactly_once;
mod flaws;
mod hostile;
mod hosts;
mod inputs;
mod leftovers;
mod matrix;
mod moves;
mod once;
mod operation;
mod poison;
mod powers;
mod schemas;
mod secrets;
mod stage;
mod stream;
mod updates;
mod windows;
mod workers;
