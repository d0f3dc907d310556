//! The built-in functions: what the server's `functionsDirectory` holds.

use geminga_admin::client::{AdminClient, Component};

use crate::cli::admin::cell;
use crate::cli::component::failed;
use crate::failure::Outcome;
use crate::output::{self, Format, Table};

pub(super) async fn list(client: &AdminClient, format: Format) -> Outcome {
    let functions = client
        .available_functions()
        .await
        .map_err(|error| failed(Component::Function, error))?;
    let fields = ["name", "functionClass", "description"];
    output::print(
        format,
        &functions,
        |_| {
            let mut table = Table::new(&["name", "class", "description"]);
            let row =
                |function: &serde_json::Value| fields.map(|field| cell(&function[field])).to_vec();
            table.rows = functions.iter().map(row).collect();
            table
        },
        || {
            functions
                .iter()
                .map(|function| cell(&function["name"]))
                .collect()
        },
    )
}

/// What can not be used is told, and is no failure: the rest is there.
pub(super) async fn reload(client: &AdminClient, format: Format) -> Outcome {
    let broken = client
        .reload_functions()
        .await
        .map_err(|error| failed(Component::Function, error))?;
    if format == Format::Json {
        return output::line(&serde_json::json!({ "broken": broken }).to_string());
    }
    for found in &broken {
        let parts = ["workerId", "file", "reason"].map(|field| cell(&found[field]));
        // One that does not answer names no file.
        let said: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        output::note(&format!("warning: {}", said.join(": ")));
    }
    output::note("functions reloaded");
    Ok(())
}
