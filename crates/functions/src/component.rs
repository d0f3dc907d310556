//! What the worker runs: functions, sources and sinks, and their names.

use std::fmt;

use geminga_model::validate::{
    Violation, merge_function, merge_sink, merge_source, validate_function, validate_sink,
    validate_source,
};
use geminga_model::{FunctionConfig, Secrets, SinkConfig, SourceConfig};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// The three kinds of component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Function,
    Source,
    Sink,
}

impl Kind {
    /// As it begins a sentence: `Function`.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Function => "Function",
            Self::Source => "Source",
            Self::Sink => "Sink",
        }
    }

    /// Reads `function`, `source` or `sink`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Function, Self::Source, Self::Sink]
            .into_iter()
            .find(|kind| kind.as_str() == text)
    }

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Function => "function",
            Self::Source => "source",
            Self::Sink => "sink",
        }
    }
}

/// A component's full name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ComponentId {
    pub kind: Kind,
    pub tenant: String,
    pub namespace: String,
    pub name: String,
}

impl ComponentId {
    #[must_use]
    pub fn new(
        kind: Kind,
        tenant: impl Into<String>,
        namespace: impl Into<String>,
        name: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            tenant: tenant.into(),
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// `tenant/namespace/name`.
    #[must_use]
    pub fn fqfn(&self) -> String {
        format!("{}/{}/{}", self.tenant, self.namespace, self.name)
    }
}

impl fmt::Display for ComponentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.fqfn())
    }
}

impl std::str::FromStr for ComponentId {
    type Err = ();

    /// Reads what `Display` writes.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (kind, fqfn) = text.split_once(' ').ok_or(())?;
        let mut parts = fqfn.splitn(3, '/');
        match (Kind::parse(kind), parts.next(), parts.next(), parts.next()) {
            (Some(kind), Some(tenant), Some(namespace), Some(name)) => {
                Ok(Self::new(kind, tenant, namespace, name))
            }
            _ => Err(()),
        }
    }
}

/// A component's configuration, as its owner wrote it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "config", rename_all = "lowercase")]
pub enum Component {
    Function(Box<FunctionConfig>),
    Source(Box<SourceConfig>),
    Sink(Box<SinkConfig>),
}

impl From<FunctionConfig> for Component {
    fn from(config: FunctionConfig) -> Self {
        Self::Function(Box::new(config))
    }
}

impl From<SourceConfig> for Component {
    fn from(config: SourceConfig) -> Self {
        Self::Source(Box::new(config))
    }
}

impl From<SinkConfig> for Component {
    fn from(config: SinkConfig) -> Self {
        Self::Sink(Box::new(config))
    }
}

impl From<geminga_mesh::load::Config> for Component {
    fn from(config: geminga_mesh::load::Config) -> Self {
        use geminga_mesh::load::Config;
        match config {
            Config::Function(config) => Self::Function(config),
            Config::Source(config) => Self::Source(config),
            Config::Sink(config) => Self::Sink(config),
        }
    }
}

impl Component {
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Function(_) => Kind::Function,
            Self::Source(_) => Kind::Source,
            Self::Sink(_) => Kind::Sink,
        }
    }

    /// Its full name, once there is a name.
    #[must_use]
    pub fn id(&self) -> Option<ComponentId> {
        let (tenant, namespace, name) = match self {
            Self::Function(c) => (c.tenant(), c.namespace(), c.name()),
            Self::Source(c) => (c.tenant(), c.namespace(), c.name.as_deref()),
            Self::Sink(c) => (c.tenant(), c.namespace(), c.name.as_deref()),
        };
        Some(ComponentId::new(self.kind(), tenant, namespace, name?))
    }

    #[must_use]
    pub fn parallelism(&self) -> u32 {
        match self {
            Self::Function(c) => c.parallelism(),
            Self::Source(c) => c.parallelism(),
            Self::Sink(c) => c.parallelism(),
        }
    }

    /// What is wrong with it by itself.
    #[must_use]
    pub fn violations(&self) -> Vec<Violation> {
        match self {
            Self::Function(c) => validate_function(c),
            Self::Source(c) => validate_source(c),
            Self::Sink(c) => validate_sink(c),
        }
    }

    fn secrets_mut(&mut self) -> Option<&mut Secrets> {
        match self {
            Self::Function(c) => c.secrets.as_mut(),
            Self::Source(c) => c.secrets.as_mut(),
            Self::Sink(c) => c.secrets.as_mut(),
        }
    }

    /// As it may be shown.
    #[must_use]
    pub fn masked(mut self) -> Self {
        if let Some(secrets) = self.secrets_mut() {
            *secrets = secrets.masked();
        }
        self
    }

    /// With the secrets of `stored` where it has masks.
    #[must_use]
    pub(crate) fn unmasked(mut self, stored: &Self) -> Self {
        let stored = match stored {
            Self::Function(c) => c.secrets.as_ref(),
            Self::Source(c) => c.secrets.as_ref(),
            Self::Sink(c) => c.secrets.as_ref(),
        };
        if let Some(secrets) = self.secrets_mut() {
            *secrets = secrets.unmasked(stored);
        }
        self
    }

    /// This configuration with the fields of `change` over it.
    ///
    /// # Errors
    /// What may not change, and when `change` is of another kind or changes nothing.
    pub fn merged(&self, change: &Self) -> Result<Self, Vec<Violation>> {
        match (self, change) {
            (Self::Function(stored), Self::Function(change)) => {
                merge_function(stored, change).map(Self::from)
            }
            (Self::Source(stored), Self::Source(change)) => {
                merge_source(stored, change).map(Self::from)
            }
            (Self::Sink(stored), Self::Sink(change)) => merge_sink(stored, change).map(Self::from),
            _ => Err(vec![Violation {
                field: Vec::new(),
                message: "the kind of a component can not change".to_owned(),
                help: None,
            }]),
        }
    }

    /// This configuration without some of its fields, which are as in a new one then.
    ///
    /// # Errors
    /// Names of no field, and what an update may not change. An input may go.
    pub(crate) fn without(&self, fields: &[String]) -> Result<Self, Vec<Violation>> {
        let less = match self {
            Self::Function(c) => less(&**c, fields).map(Self::from),
            Self::Source(c) => less(&**c, fields).map(Self::from),
            Self::Sink(c) => less(&**c, fields).map(Self::from),
        }?;
        let mut why = self.left_out_of(&less);
        why.retain(|it| it.field.first().is_none_or(|field| field != "inputs"));
        if why.is_empty() { Ok(less) } else { Err(why) }
    }

    /// What `less` has not, though an update can not change it.
    pub(crate) fn left_out_of(&self, less: &Self) -> Vec<Violation> {
        let left_out = less.merged(self).err().unwrap_or_default();
        let say = |left_out: Violation| Violation {
            message: format!(
                "`{}` may not be left out: an update can not change it",
                left_out.field.join(".")
            ),
            ..left_out
        };
        left_out.into_iter().map(say).collect()
    }
}
/// A configuration without some of its fields.
fn less<T: Serialize + DeserializeOwned>(
    config: &T,
    fields: &[String],
) -> Result<T, Vec<Violation>> {
    let broken = |error: serde_json::Error| Violation {
        field: Vec::new(),
        message: error.to_string(),
        help: None,
    };
    let mut all = serde_json::to_value(config).map_err(|error| vec![broken(error)])?;
    for field in fields {
        // A field that there is may be null, and one that there is not is refused.
        serde_json::from_value::<T>(json!({ field: null })).map_err(|error| vec![broken(error)])?;
        all.as_object_mut().map(|all| all.remove(field));
    }
    serde_json::from_value(all).map_err(|error| vec![broken(error)])
}
