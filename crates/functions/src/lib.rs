//! The worker: function catalogue, scheduler, instances, runtimes and language hosts
//!
//! A component is a function, a source or a sink. Each of its instances is a source of messages, a
//! host that makes outputs of them, and a sink: `instance` is that loop, `runtime` the hosts,
//! `connector` the built-in ends, `worker` what keeps components and runs them. The worker reaches
//! the broker by `geminga-client` and in no other way, so it works with any Pulsar broker.

pub(crate) mod archive;
pub(crate) mod changelog;
pub(crate) mod compat;
pub mod component;
pub(crate) mod connector;
pub mod error;
pub(crate) mod instance;
pub mod pipe;
pub(crate) mod plan;
mod rights;
pub mod runtime;
mod schema;
pub mod secret;
pub mod trial;
pub mod worker;

pub use compat::Reach;
pub use component::{Component, ComponentId, Kind};
pub use connector::table::TableView;
pub use error::WorkerError;
pub use instance::sink::FUNCTION;
pub use pipe::{PipeReport, run_pipe};
pub use rights::{Registrant, Rights};
pub use secret::SecretRules;
pub use trial::{Trial, TrialReport, TrialValue, check_code, run_trial};
pub use worker::report::{
    ExceptionInformation, FunctionState, FunctionStats, FunctionStatus, Latency, Progress,
};
pub use worker::{
    Answered, Asked, Backlogs, BrokenBuiltin, CATALOG_TOPIC, DrainStatus, FunctionDefinition,
    MakeRuntime, MemberInfo, Owner, PACKAGE_BYTES_MAX, PackageMetadata, PackageName, Spool,
    Spooled, Timing, Upload, Version, Worker, WorkerConfig,
};

/// What of a component's configuration every worker would refuse, each with the field that it is about.
#[must_use]
pub fn refusals(config: &geminga_mesh::load::Config) -> Vec<geminga_mesh::check::Refusal> {
    use geminga_model::secret::MASK;
    let refused = check(&config.clone().into()).err().unwrap_or_default();
    // Which secrets are stored already, too.
    let is_of_server = |why: &String| why.starts_with("`secrets.") && why.contains(MASK);
    let refused = refused.into_iter().filter(|why| !is_of_server(why));
    let refusal = |why: String| geminga_mesh::check::Refusal {
        field: plan::field(&why),
        why,
    };
    refused.map(refusal).collect()
}

/// Whether a worker would take a component. Of a built-in function only its server knows what it is made of: that
/// much is not checked.
///
/// # Errors
/// One sentence a field that it can not honour.
pub fn check(component: &Component) -> Result<(), Vec<String>> {
    if let Component::Function(config) = component
        && config
            .code()
            .map_or(config.function_type.is_some(), |(_, code)| {
                code.starts_with("builtin://")
            })
    {
        let said: Vec<String> = component
            .violations()
            .iter()
            .map(ToString::to_string)
            .collect();
        return match said.is_empty() {
            true => Ok(()),
            false => Err(said),
        };
    }
    plan::plan(component, None).map(drop)
}

#[cfg(test)]
mod tests {
    use geminga_mesh::load::Config;

    /// A plan asks no server.
    #[test]
    fn what_a_server_alone_knows_is_not_refused_before_it_is_asked() {
        for (fields, refused) in [
            (r#""functionType":"echo""#, 0),
            (r#""jar":"builtin://echo""#, 0),
            (r#""sh":"f.sh","secrets":{"a":"******"}"#, 0),
            (r#""sh":"f.sh","outputSchemaType":"none-such""#, 1),
        ] {
            let text = format!(r#"{{"name":"f","inputs":["in"],{fields}}}"#);
            let config = serde_json::from_str(&text).expect("a configuration");
            let found = super::refusals(&Config::Function(Box::new(config)));
            assert_eq!(found.len(), refused, "{fields}: {found:?}");
        }
    }
}
