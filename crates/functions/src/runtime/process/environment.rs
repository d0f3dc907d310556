//! What processes of a function see as environment variables.

use std::ffi::OsString;

use crate::runtime::HostSpec;

/// What every process of a function sees. Secrets are not here: they come in private files or by
/// the host protocol.
pub(super) fn base_environment(spec: &HostSpec) -> Vec<(String, OsString)> {
    let inherited = |name: &str, otherwise: &str| {
        std::env::var_os(name).unwrap_or_else(|| OsString::from(otherwise))
    };
    let mut all: Vec<(String, OsString)> = vec![
        (
            "PATH".into(),
            inherited("PATH", "/usr/local/bin:/usr/bin:/bin"),
        ),
        ("HOME".into(), inherited("HOME", "/")),
        ("LANG".into(), inherited("LANG", "C.UTF-8")),
        ("TZ".into(), inherited("TZ", "UTC")),
    ];
    let function = function_environment(spec).into_iter();
    all.extend(function.map(|(name, value)| (name, value.into())));
    all
}

/// Who the function is and its user configuration, as environment variables.
pub(crate) fn function_environment(spec: &HostSpec) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = Vec::new();
    for (name, value) in [
        ("TENANT", spec.tenant.clone()),
        ("NAMESPACE", spec.namespace.clone()),
        ("FUNCTION", spec.name.clone()),
        ("INSTANCE", spec.instance.to_string()),
        ("INSTANCES", spec.instances.to_string()),
        ("CLUSTER", spec.cluster.clone()),
        ("VERSION", spec.version.clone()),
        ("OUTPUT_TOPIC", spec.output.clone().unwrap_or_default()),
    ] {
        all.push((format!("GMG_{name}"), value));
    }
    if !spec.user_config.is_empty() {
        let text = serde_json::to_string(&spec.user_config).unwrap_or_default();
        all.push(("GMG_USERCONFIG".into(), text));
        for (key, value) in &spec.user_config {
            all.push((format!("GMG_CONF_{}", variable(key)), plain(value)));
        }
    }
    all
}

/// Text of a setting as a shell wants it: strings bare, the rest as JSON.
pub(crate) fn plain(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `name` as the tail of an environment variable.
pub(crate) fn variable(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect()
}
