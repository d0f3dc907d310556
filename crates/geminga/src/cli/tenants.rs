//! `geminga tenants`: make, list and remove tenants.

use serde_json::json;

use super::Global;
use super::admin::{self, failure, failure_with_help};
use super::topics::fields_table;
use crate::failure::Outcome;
use crate::output::{self, Table};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  geminga tenants list")]
pub(crate) struct TenantsArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the tenants
    #[command(after_help = "Example:\n  geminga tenants list -o name")]
    List,
    /// Show a tenant
    #[command(after_help = "Example:\n  geminga tenants get public")]
    Get { tenant: String },
    /// Create a tenant
    #[command(after_help = "Example:\n  geminga tenants create shop")]
    Create {
        tenant: String,
        /// Roles that may administer it, comma separated
        #[arg(short = 'r', long, value_delimiter = ',')]
        admin_roles: Vec<String>,
        /// Clusters that it may use, comma separated; this one when left out
        #[arg(short = 'c', long, value_delimiter = ',')]
        allowed_clusters: Vec<String>,
    },
    /// Delete a tenant without namespaces
    #[command(after_help = "Example:\n  geminga tenants delete shop")]
    Delete {
        tenant: String,
        /// With its namespaces
        #[arg(short, long)]
        force: bool,
    },
}

pub(crate) fn run(args: TenantsArgs, global: &Global) -> Outcome {
    const LIST_HELP: &str = "`geminga tenants list` shows what there is";
    let format = global.format();
    admin::with_client(global, |client| async move {
        match args.command {
            Command::List => {
                let names = client.tenants().await.map_err(failure)?;
                output::print(
                    format,
                    &names,
                    |_| {
                        let mut table = Table::new(&["tenant"]);
                        names.iter().for_each(|name| table.row([name.clone()]));
                        table
                    },
                    || names.clone(),
                )
            }
            Command::Get { tenant } => {
                let info = client
                    .tenant(&tenant)
                    .await
                    .map_err(|error| failure_with_help(error, LIST_HELP))?;
                output::print(
                    format,
                    &info,
                    |_| fields_table(&info),
                    || vec![tenant.clone()],
                )
            }
            Command::Create {
                tenant,
                admin_roles,
                allowed_clusters,
            } => {
                let clusters = if allowed_clusters.is_empty() {
                    client.clusters().await.map_err(failure)?
                } else {
                    allowed_clusters
                };
                let info = json!({ "adminRoles": admin_roles, "allowedClusters": clusters });
                client
                    .create_tenant(&tenant, &info)
                    .await
                    .map_err(failure)?;
                output::note(&format!("{tenant} created"));
                Ok(())
            }
            Command::Delete { tenant, force } => {
                client
                    .delete_tenant(&tenant, force)
                    .await
                    .map_err(|error| failure_with_help(error, LIST_HELP))?;
                output::note(&format!("{tenant} deleted"));
                Ok(())
            }
        }
    })
}
