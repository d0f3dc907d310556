//! `functions querystate` and `putstate`.

use std::time::Duration;

use geminga_admin::client::{AdminClient, ClientError, Component};
use serde_json::Value;

use crate::cli::admin::usage;
use crate::cli::component::{FullName, NameArgs, failed, json_flag};
use crate::cli::topics::fields_table;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Format};

#[derive(Debug, clap::Args)]
pub(super) struct QueryArgs {
    #[command(flatten)]
    name: NameArgs,
    /// The key
    #[arg(short, long)]
    key: String,
    /// Ask again every second
    #[arg(short, long)]
    watch: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct PutArgs {
    #[command(flatten)]
    name: NameArgs,
    /// A FunctionState as JSON: key, and stringValue, byteValue or numberValue
    #[arg(short, long, value_parser = json_flag)]
    state: Value,
}

pub(super) async fn query(client: &AdminClient, args: &QueryArgs, format: Format) -> Outcome {
    let name = args.name.resolve()?;
    loop {
        match client.function_state(name.fqfn(), &args.key).await {
            Ok(state) => {
                output::print(
                    format,
                    &state,
                    |_| fields_table(&state),
                    || vec![args.key.clone()],
                )?;
            }
            Err(error) if args.watch && error.status() == Some(404) => {}
            Err(error) => return Err(missing(&name, &args.key, error)),
        }
        if !args.watch {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// A key that is not there is not a function that is not there.
fn missing(name: &FullName, key: &str, error: ClientError) -> Failure {
    let is_key = error.to_string().starts_with("state key");
    let mut failure = failed(Component::Function, error);
    if let (true, Some(diagnostic)) = (is_key, failure.diagnostics.first_mut()) {
        let state = serde_json::json!({ "key": key, "stringValue": "..." });
        diagnostic.help = Some(format!(
            "the function puts it, or `geminga functions putstate {name} --state '{state}'`"
        ));
    }
    failure
}

pub(super) async fn put(client: &AdminClient, args: &PutArgs) -> Outcome {
    let name = args.name.resolve()?;
    let Some(key) = args.state["key"].as_str() else {
        return Err(usage("the state needs a `key`"));
    };
    client
        .put_function_state(name.fqfn(), key, &args.state)
        .await
        .map_err(|error| failed(Component::Function, error))?;
    output::note(&format!("state `{key}` of {name} set"));
    Ok(())
}
