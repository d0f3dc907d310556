//! `geminga namespaces`: make, list and remove namespaces.

use geminga_model::NamespaceName;

use super::Global;
use super::admin::{self, failure_with_help};
use super::topics::fields_table;
use crate::failure::Outcome;
use crate::output::{self, Table};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  geminga namespaces list public")]
pub(crate) struct NamespacesArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the namespaces of a tenant
    #[command(after_help = "Example:\n  geminga namespaces list public")]
    List {
        #[arg(default_value = "public")]
        tenant: String,
    },
    /// Show the policies of a namespace
    #[command(
        visible_alias = "policies",
        after_help = "Example:\n  geminga namespaces get public/default -o yaml"
    )]
    Get {
        #[arg(value_parser = admin::parse_namespace)]
        namespace: NamespaceName,
    },
    /// Create a namespace; its tenant must exist
    #[command(after_help = "Example:\n  geminga namespaces create public/orders")]
    Create {
        #[arg(value_parser = admin::parse_namespace)]
        namespace: NamespaceName,
    },
    /// Delete a namespace
    #[command(after_help = "Example:\n  geminga namespaces delete public/orders")]
    Delete {
        #[arg(value_parser = admin::parse_namespace)]
        namespace: NamespaceName,
        /// With its topics
        #[arg(short, long)]
        force: bool,
    },
}

pub(crate) fn run(args: NamespacesArgs, global: &Global) -> Outcome {
    let format = global.format();
    let list_help =
        |tenant: &str| format!("`geminga namespaces list {tenant}` shows what there is");
    admin::with_client(global, |client| async move {
        match args.command {
            Command::List { tenant } => {
                let names = client.namespaces(&tenant).await.map_err(|error| {
                    failure_with_help(error, "`geminga tenants list` shows what there is")
                })?;
                output::print(
                    format,
                    &names,
                    |_| {
                        let mut table = Table::new(&["namespace"]);
                        names.iter().for_each(|name| table.row([name.clone()]));
                        table
                    },
                    || names.clone(),
                )
            }
            Command::Get { namespace } => {
                let policies = client
                    .namespace(&namespace)
                    .await
                    .map_err(|error| failure_with_help(error, list_help(namespace.tenant())))?;
                output::print(
                    format,
                    &policies,
                    |_| fields_table(&policies),
                    || vec![namespace.as_str().to_owned()],
                )
            }
            Command::Create { namespace } => {
                client.create_namespace(&namespace).await.map_err(|error| {
                    failure_with_help(
                        error,
                        format!("geminga tenants create {}", namespace.tenant()),
                    )
                })?;
                output::note(&format!("{namespace} created"));
                Ok(())
            }
            Command::Delete { namespace, force } => {
                client
                    .delete_namespace(&namespace, force)
                    .await
                    .map_err(|error| {
                        let not_empty = error.status() == Some(409) && !force;
                        let mut failed = failure_with_help(error, list_help(namespace.tenant()));
                        if not_empty && let Some(diagnostic) = failed.diagnostics.first_mut() {
                            diagnostic.help =
                                Some(format!("geminga namespaces delete {namespace} --force"));
                        }
                        failed
                    })?;
                output::note(&format!("{namespace} deleted"));
                Ok(())
            }
        }
    })
}
