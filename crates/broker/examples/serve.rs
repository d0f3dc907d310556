//! A broker and nothing else, for measuring and for judging by official clients:
//! `cargo run --release -p geminga-broker --example serve -- [PORT] [DIR]`. Without DIR it keeps all
//! in memory; with `DURABILITY=os` it does not wait for the disk.
#![expect(clippy::print_stdout, reason = "its output is the address")]

use std::path::Path;
use std::time::Duration;

use geminga_broker::{Broker, BrokerConfig};
use geminga_stdx::{Clock, Tasks};
use geminga_storage::embedded::{Durability, EmbeddedConfig};
use geminga_storage::{ManagedConfig, Storage};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(run())
}

async fn run() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let port: u16 = args.next().map_or(Ok(0), |text| text.parse())?;
    let (tasks, clock, managed) = (Tasks::new(), Clock::system(), ManagedConfig::default());
    let storage = match args.next() {
        None => Storage::memory(managed, clock, &tasks).await?,
        Some(dir) => {
            let durability = match std::env::var("DURABILITY").as_deref() {
                Ok("os") => Durability::Os,
                _ => Durability::Fsync,
            };
            let embedded = EmbeddedConfig {
                durability,
                ..EmbeddedConfig::default()
            };
            Storage::open(Path::new(&dir), embedded, managed, clock, &tasks).await?
        }
    };
    let broker = Broker::start(BrokerConfig::default(), storage.clone()).await?;
    let address = broker.listen(([127, 0, 0, 1], port).into()).await?;
    println!("pulsar://{address}");
    tokio::signal::ctrl_c().await?;
    broker.stop(Duration::from_secs(2)).await;
    tasks.cancel();
    storage.close().await?;
    Ok(())
}
