//! The forms that components are sent in: configuration, code, state, triggers.

use axum::extract::Request;
use bytes::Bytes;
use geminga_functions::{
    Component, ComponentId, FunctionState, Kind, PackageMetadata, Upload, Worker,
};
use geminga_model::{FunctionConfig, SinkConfig, SourceConfig};

use crate::error::{Answer, ApiError};
use crate::request::{self, Keep, Part};

/// What a registration or an update holds.
#[derive(Debug)]
pub(super) struct Registration {
    pub(super) component: Component,
    pub(super) upload: Option<Upload>,
    /// Where the code is instead, for what needs no upload.
    pub(super) url: Option<String>,
    pub(super) options: UpdateOptions,
}

/// How a component is updated.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct UpdateOptions {
    /// Stored credentials are to be refreshed. There are none: the worker reaches the broker by its own,
    /// so that there is nothing to refresh, and an update may consist of that.
    pub(super) update_auth_data: bool,
    /// Fields that go away, which the configuration can not say: what it does not have stays. Geminga's own.
    pub(super) remove: Vec<String>,
}

/// Reads a registration; the name in the path is the component's.
pub(super) async fn read(
    worker: &Worker,
    id: &ComponentId,
    request: Request,
) -> Answer<Registration> {
    let part = match id.kind {
        Kind::Function => "functionConfig",
        Kind::Source => "sourceConfig",
        Kind::Sink => "sinkConfig",
    };
    let mut parts = request::form(request, Some(worker), |name| match name {
        "data" => Keep::Spooled,
        _ => Keep::Text,
    })
    .await?;
    request::only_parts(&parts, &[part, "data", "url", "updateOptions"])?;
    let data = upload(&mut parts, "data");
    let find = |name: &str| parts.iter().find(|part| part.name == name);
    let options = match find("updateOptions") {
        Some(options) => request::from_json::<Option<UpdateOptions>>(&options.bytes)?,
        None => None,
    };
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
        Some(part) => Some(part.text()?.to_owned()).filter(|url| !url.is_empty()),
        None => None,
    };
    if data.is_some() && url.is_some() {
        return Err(ApiError::bad_request(
            "give one of the parts `data` and `url`",
        ));
    }
    Ok(Registration {
        component,
        upload: data,
        url,
        options: options.unwrap_or_default(),
    })
}

/// Takes the file out of a part.
fn upload(parts: &mut [Part], name: &str) -> Option<Upload> {
    let part = parts.iter_mut().find(|part| part.name == name)?;
    let file_name = part.file_name.clone();
    let spooled = part.spooled.take()?;
    Some(Upload::spooled(
        file_name.unwrap_or_else(|| "package".to_owned()),
        spooled,
    ))
}

/// A file of `part` and the text of another.
pub(super) async fn file_and_text(
    worker: &Worker,
    request: Request,
    file: &str,
    text: &str,
) -> Answer<(Upload, String)> {
    let mut parts = request::form(request, Some(worker), |name| {
        if name == file {
            Keep::Spooled
        } else {
            Keep::Text
        }
    })
    .await?;
    request::only_parts(&parts, &[file, text])?;
    let upload = upload(&mut parts, file);
    let upload =
        upload.ok_or_else(|| ApiError::bad_request(format!("the form has no part `{file}`")))?;
    let text = parts.iter().find(|part| part.name == text);
    let text = text
        .map(|part| part.text().map(str::to_owned))
        .transpose()?;
    Ok((upload, text.unwrap_or_default()))
}

/// A package and what is said of it.
pub(crate) async fn package(
    worker: &Worker,
    request: Request,
) -> Answer<(Upload, PackageMetadata)> {
    let (upload, metadata) = file_and_text(worker, request, "file", "metadata").await?;
    let metadata = if metadata.trim().is_empty() {
        PackageMetadata::default()
    } else {
        request::from_json(metadata.as_bytes())?
    };
    Ok((upload, metadata))
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
    let parts = request::form(request, None, |name| match name {
        "dataStream" | "data" => Keep::Held,
        _ => Keep::Text,
    })
    .await?;
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
    let parts = request::form(request, None, |_| Keep::Text).await?;
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
