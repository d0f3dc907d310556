//! `geminga packages`: code under a name and a version.

use std::path::PathBuf;

use geminga_admin::client::{Form, Method, segment};
use geminga_functions::PackageName;

use serde_json::json;

use super::Global;
use super::admin::{self, usage};
use crate::failure::Outcome;
use crate::output::{self, Table};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    geminga packages upload function://public/default/echo@v1 --path echo.py --description 'says it again'\n  \
    geminga functions create --py function://public/default/echo@v1 --classname echo --inputs words")]
pub(crate) struct PackagesArgs {
    #[command(subcommand)]
    command: Command,
}

/// `function://tenant/namespace/name@version`
#[derive(Debug, clap::Args)]
struct Package {
    /// function://tenant/namespace/name@version; also source:// and sink://
    #[arg(value_name = "PACKAGE", value_parser = parse)]
    package: PackageName,
}

#[derive(Debug, clap::Args)]
struct Said {
    /// What it is
    #[arg(short, long)]
    description: Option<String>,
    /// Whom to ask
    #[arg(short, long)]
    contact: Option<String>,
    /// name=value, also several times
    #[arg(short = 'P', long = "properties", value_parser = super::pair)]
    properties: Vec<(String, String)>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Keep a file under a name and a version
    Upload {
        #[command(flatten)]
        package: Package,
        /// The file
        #[arg(long)]
        path: PathBuf,
        #[command(flatten)]
        said: Said,
    },
    /// Write a package to a file
    Download {
        #[command(flatten)]
        package: Package,
        /// The file
        #[arg(long)]
        path: PathBuf,
    },
    /// List the packages of a namespace
    List {
        /// tenant/namespace
        namespace: String,
        /// function, source or sink
        #[arg(long, default_value = "function", value_parser = ["function", "source", "sink"])]
        r#type: String,
    },
    /// List the versions of a package
    ListVersions {
        #[command(flatten)]
        package: Package,
    },
    /// Show what is said of a package
    GetMetadata {
        #[command(flatten)]
        package: Package,
    },
    /// Say something else of a package
    UpdateMetadata {
        #[command(flatten)]
        package: Package,
        #[command(flatten)]
        said: Said,
    },
    /// Forget a package; what was made of it goes on
    Delete {
        #[command(flatten)]
        package: Package,
    },
}

fn parse(text: &str) -> Result<PackageName, String> {
    PackageName::parse(text)
        .ok_or_else(|| "expected function://tenant/namespace/name@version".to_owned())
}

fn path_of(package: &PackageName, rest: &str) -> String {
    format!(
        "/admin/v3/packages/{}/{}/{}/{}{rest}",
        package.kind.as_str(),
        segment(&package.tenant),
        segment(&package.namespace),
        segment(&package.name)
    )
}

fn versioned(package: &PackageName) -> String {
    path_of(package, &format!("/{}", segment(&package.version)))
}

fn metadata(said: &Said) -> serde_json::Value {
    let properties: serde_json::Map<String, serde_json::Value> = said
        .properties
        .iter()
        .map(|(name, value)| (name.clone(), json!(value)))
        .collect();
    json!({ "description": said.description, "contact": said.contact, "properties": properties })
}

pub(crate) fn run(args: PackagesArgs, global: &Global) -> Outcome {
    let format = global.format();
    admin::with_client(global, |client| async move {
        match args.command {
            Command::Upload {
                package,
                path,
                said,
            } => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let form = Form::new().json("metadata", &metadata(&said).to_string());
                let form = form.path("file", &name, &path).await;
                let payload = form.map_err(admin::failure)?.finish();
                let to = versioned(&package.package);
                let megabytes = payload.bytes() / 1_000_000;
                let sending = client.send(Method::POST, &to, Some(payload));
                let sent = output::patiently(sending, || format!("{megabytes} MB are sent")).await;
                sent.map_err(admin::failure)?;
                output::note(&format!("package {} uploaded", package.package));
                Ok(())
            }
            Command::Download { package, path } => {
                let got = client.download(&versioned(&package.package), &path).await;
                got.map_err(admin::failure)?;
                output::note(&format!(
                    "package {} written to {}",
                    package.package,
                    path.display()
                ));
                Ok(())
            }
            Command::List { namespace, r#type } => {
                let Some((tenant, namespace)) = namespace.split_once('/') else {
                    return Err(usage("expected TENANT/NAMESPACE"));
                };
                let path = format!(
                    "/admin/v3/packages/{type}/{}/{}",
                    segment(tenant),
                    segment(namespace)
                );
                let names: Vec<String> = client.get(&path).await.map_err(admin::failure)?;
                names_of(format, &names, "name")
            }
            Command::ListVersions { package } => {
                let path = path_of(&package.package, "");
                let versions: Vec<String> = client.get(&path).await.map_err(admin::failure)?;
                names_of(format, &versions, "version")
            }
            Command::GetMetadata { package } => {
                let path = format!("{}/metadata", versioned(&package.package));
                let metadata = client.document(&path).await.map_err(admin::failure)?;
                output::print(
                    format,
                    &metadata,
                    |_| super::topics::fields_table(&metadata),
                    || vec![package.package.to_string()],
                )
            }
            Command::UpdateMetadata { package, said } => {
                let path = format!("{}/metadata", versioned(&package.package));
                let sent = client
                    .change(Method::PUT, &path, Some(&metadata(&said)))
                    .await;
                sent.map_err(admin::failure)?;
                output::note(&format!("package {} updated", package.package));
                Ok(())
            }
            Command::Delete { package } => {
                let sent = client
                    .act(Method::DELETE, &versioned(&package.package))
                    .await;
                sent.map_err(admin::failure)?;
                output::note(&format!("package {} deleted", package.package));
                Ok(())
            }
        }
    })
}

fn names_of(format: output::Format, names: &[String], heading: &'static str) -> Outcome {
    output::print(
        format,
        &names,
        |_| {
            let mut table = Table::new(&[heading]);
            for name in names {
                table.row([name.clone()]);
            }
            table
        },
        || names.to_vec(),
    )
}
