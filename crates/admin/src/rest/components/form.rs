//! The forms that components are sent in: configuration, code, state, triggers.

use axum::extract::Request;
use bytes::Bytes;
use geminga_functions::{Component, ComponentId, FunctionState, Kind, Upload};
use geminga_model::{FunctionConfig, SinkConfig, SourceConfig};

use crate::error::{Answer, ApiError};
use crate::request::{self, Part};

/// What a registration or an update holds.
#[derive(Debug)]
pub(super) struct Registration {
    pub(super) component: Component,
    pub(super) upload: Option<Upload>,
    /// Where the code is instead, for what needs no upload.
    pub(super) url: Option<String>,
}

/// Reads a registration; the name in the path is the component's.
pub(super) async fn read(id: &ComponentId, request: Request) -> Answer<Registration> {
    let part = match id.kind {
        Kind::Function => "functionConfig",
        Kind::Source => "sourceConfig",
        Kind::Sink => "sinkConfig",
    };
    let parts = request::form(request, |name| name == "data").await?;
    request::only_parts(&parts, &[part, "data", "url", "updateOptions"])?;
    let find = |name: &str| parts.iter().find(|part| part.name == name);
    if let Some(options) = find("updateOptions") {
        check_options(options)?;
    }
    let Some(config) = find(part) else {
        return Err(ApiError::bad_request(format!(
            "the form has no part `{part}`"
        )));
    };
    let component = match id.kind {
        Kind::Function => {
            let mut config: FunctionConfig = request::from_json(&config.bytes)?;
            config.fqfn = None;
            name(
                id,
                &mut config.tenant,
                &mut config.namespace,
                &mut config.name,
            )?;
            Component::from(config)
        }
        Kind::Source => {
            let mut config: SourceConfig = request::from_json(&config.bytes)?;
            name(
                id,
                &mut config.tenant,
                &mut config.namespace,
                &mut config.name,
            )?;
            Component::from(config)
        }
        Kind::Sink => {
            let mut config: SinkConfig = request::from_json(&config.bytes)?;
            name(
                id,
                &mut config.tenant,
                &mut config.namespace,
                &mut config.name,
            )?;
            Component::from(config)
        }
    };
    let url = match find("url") {
        Some(part) => Some(check_url(part.text()?)?),
        None => None,
    };
    let upload = match find("data") {
        Some(_) if url.is_some() => {
            return Err(ApiError::bad_request(
                "give one of the parts `data` and `url`",
            ));
        }
        Some(data) => Some(Upload {
            file_name: data
                .file_name
                .clone()
                .unwrap_or_else(|| "package".to_owned()),
            bytes: data.bytes.clone(),
        }),
        None => None,
    };
    Ok(Registration {
        component,
        upload,
        url,
    })
}

/// `updateOptions` can only ask for stored credentials to be refreshed, and there are none.
fn check_options(options: &Part) -> Answer<()> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Options {
        #[serde(default)]
        update_auth_data: bool,
    }
    let options: Option<Options> = request::from_json(&options.bytes)?;
    if options.is_some_and(|options| options.update_auth_data) {
        return Err(ApiError::bad_request("`updateAuthData` is not supported"));
    }
    Ok(())
}

/// Code that this server can reach by itself.
fn check_url(url: &str) -> Answer<String> {
    if url.starts_with("builtin://") || url.starts_with("file://") {
        return Ok(url.to_owned());
    }
    Err(ApiError::bad_request(format!(
        "`url` {url} cannot be fetched yet: send the file, or give file:// or builtin://"
    )))
}

/// A configuration without a name gets the path's; one of another name is a mistake.
fn name(
    id: &ComponentId,
    tenant: &mut Option<String>,
    namespace: &mut Option<String>,
    name: &mut Option<String>,
) -> Answer<()> {
    for (field, given, path) in [
        ("tenant", tenant, &id.tenant),
        ("namespace", namespace, &id.namespace),
        ("name", name, &id.name),
    ] {
        match given {
            Some(given) if given != path => {
                return Err(ApiError::bad_request(format!(
                    "`{field}` is `{given}` in the configuration and `{path}` in the path"
                )));
            }
            given => *given = Some(path.clone()),
        }
    }
    Ok(())
}

/// The topic and the payload of a trigger.
pub(super) async fn trigger(request: Request) -> Answer<(Option<String>, Bytes)> {
    let parts = request::form(request, |name| name == "dataStream" || name == "data").await?;
    request::only_parts(&parts, &["data", "dataStream", "topic"])?;
    let find = |name: &str| parts.iter().find(|part| part.name == name);
    let topic = match find("topic") {
        Some(part) => Some(part.text()?.to_owned()).filter(|topic| !topic.is_empty()),
        None => None,
    };
    match find("dataStream").or_else(|| find("data")) {
        Some(part) => Ok((topic, part.bytes.clone())),
        None => Err(ApiError::bad_request(
            "the form has neither `data` nor `dataStream`",
        )),
    }
}

/// A `FunctionState`, in its form.
pub(super) async fn state(request: Request) -> Answer<FunctionState> {
    let parts = request::form(request, |_| false).await?;
    request::only_parts(&parts, &["state"])?;
    match parts.first() {
        Some(part) => strict_state(&part.bytes),
        None => Err(ApiError::bad_request("the form has no part `state`")),
    }
}

fn strict_state(bytes: &[u8]) -> Answer<FunctionState> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Given {
        key: String,
        #[serde(default)]
        string_value: Option<String>,
        #[serde(default)]
        byte_value: Option<String>,
        #[serde(default)]
        number_value: Option<i64>,
        /// Written by Pulsar's client; a put is not conditional.
        #[serde(default, rename = "version")]
        _version: Option<i64>,
    }
    let Given {
        key,
        string_value,
        byte_value,
        number_value,
        ..
    } = request::from_json(bytes)?;
    Ok(FunctionState {
        key,
        string_value,
        byte_value,
        number_value,
        version: None,
    })
}
