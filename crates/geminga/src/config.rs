//! The settings of a server: a TOML file, then the environment, then flags; the last one wins.

mod broker_conf;
mod secrets;

use std::path::PathBuf;

use clap::{Args, ValueEnum};

pub(crate) use broker_conf::BrokerConf;
pub(crate) use secrets::SecretFlags;

/// What an acknowledgement promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Durability {
    /// On the disk: survives power loss.
    #[default]
    Fsync,
    /// In the page cache: survives the process, not the power.
    Os,
}

/// Where a server keeps its data and how safely.
#[derive(Debug, Clone, Args)]
pub(crate) struct DataArgs {
    /// The data directory; made when it is missing
    #[arg(
        long,
        value_name = "DIR",
        env = "GEMINGA_DATA",
        conflicts_with = "ephemeral"
    )]
    pub(crate) data: Option<PathBuf>,
    /// Keep data in a temporary directory that is removed at the end
    #[arg(long)]
    pub(crate) ephemeral: bool,
    /// What an acknowledgement promises
    #[arg(long, value_enum, default_value_t, env = "GEMINGA_DURABILITY")]
    pub(crate) durability: Durability,
}

/// Where the built-in functions are when nothing else is said: Pulsar's own place.
pub(crate) const FUNCTIONS_DIRECTORY_DEFAULT: &str = "./functions";

/// The directory used when none is named.
pub(crate) const DATA_DIR_DEFAULT: &str = "./.geminga";
