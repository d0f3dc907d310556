//! Functions, sources and sinks: one shape under three paths.

use std::fmt;
use std::path::PathBuf;

use bytes::Bytes;
use hyper::Method;
use serde_json::{Value, json};

use super::{AdminClient, ClientError, Form, answer, segment};

/// Which of the three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Component {
    Function,
    Source,
    Sink,
}

impl Component {
    fn path(self) -> &'static str {
        match self {
            Self::Function => "/admin/v3/functions",
            Self::Source => "/admin/v3/sources",
            Self::Sink => "/admin/v3/sinks",
        }
    }

    /// The form part that holds the configuration.
    fn part(self) -> &'static str {
        match self {
            Self::Function => "functionConfig",
            Self::Source => "sourceConfig",
            Self::Sink => "sinkConfig",
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Function => "function",
            Self::Source => "source",
            Self::Sink => "sink",
        })
    }
}

/// What becomes of a component that is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registration {
    /// It is new.
    Create,
    Update {
        /// The server is also to read its stored credentials anew. Geminga stores none.
        auth_data: bool,
    },
}

impl Registration {
    /// Of one that is there, and nothing else is asked for.
    pub const UPDATE: Self = Self::Update { auth_data: false };

    #[must_use]
    pub fn is_update(self) -> bool {
        matches!(self, Self::Update { .. })
    }
}

/// Where a component's code comes from.
#[derive(Debug, Clone, Default)]
pub enum Code {
    /// The configuration alone, as for an update that keeps the code.
    #[default]
    None,
    /// A file that is sent along, under this name.
    File { name: String, path: PathBuf },
    /// A URL, or a built-in's name as `builtin://name`.
    Url(String),
}

impl AdminClient {
    fn component(&self, kind: Component, fqfn: &Fqfn<'_>, rest: &str) -> String {
        let Fqfn {
            tenant,
            namespace,
            name,
        } = fqfn;
        let (tenant, namespace, name) = (segment(tenant), segment(namespace), segment(name));
        format!("{}/{tenant}/{namespace}/{name}{rest}", kind.path())
    }

    /// Registers (POST) or updates (PUT) a component.
    ///
    /// # Errors
    /// When the server refuses or is not there.
    pub async fn send_component(
        &self,
        kind: Component,
        how: Registration,
        name: Fqfn<'_>,
        config: &Value,
        code: Code,
    ) -> Result<(), ClientError> {
        let (method, options) = match how {
            Registration::Create => (Method::POST, None),
            Registration::Update { auth_data } => (
                Method::PUT,
                auth_data.then(|| json!({"updateAuthData": true})),
            ),
        };
        self.send_form(kind, method, name, config, options, code)
            .await
    }

    /// Updates a component (PUT). These of its fields go away, which a configuration alone can not say.
    ///
    /// # Errors
    /// When the server refuses or is not there. Another than Geminga keeps the fields.
    pub async fn update_component(
        &self,
        kind: Component,
        name: Fqfn<'_>,
        config: &Value,
        removed: &[&str],
        code: Code,
    ) -> Result<(), ClientError> {
        let options = (!removed.is_empty()).then(|| json!({"remove": removed}));
        self.send_form(kind, Method::PUT, name, config, options, code)
            .await
    }

    async fn send_form(
        &self,
        kind: Component,
        method: Method,
        name: Fqfn<'_>,
        config: &Value,
        options: Option<Value>,
        code: Code,
    ) -> Result<(), ClientError> {
        let mut form = Form::new().json(kind.part(), &config.to_string());
        match &code {
            Code::None => {}
            Code::File { name, path } => form = form.path("data", name, path).await?,
            Code::Url(url) => form = form.text("url", url),
        }
        if let Some(options) = options {
            form = form.json("updateOptions", &options.to_string());
        }
        let path = self.component(kind, &name, "");
        self.send(method, &path, Some(form.finish()))
            .await
            .map(drop)
    }

    /// The names in a namespace.
    ///
    /// # Errors
    /// When the server refuses or is not there.
    pub async fn components(
        &self,
        kind: Component,
        tenant: &str,
        namespace: &str,
    ) -> Result<Vec<String>, ClientError> {
        self.get(&format!(
            "{}/{}/{}",
            kind.path(),
            segment(tenant),
            segment(namespace)
        ))
        .await
    }

    /// What a component is configured to be.
    ///
    /// # Errors
    /// When the server refuses or is not there.
    pub async fn component_config(
        &self,
        kind: Component,
        name: Fqfn<'_>,
    ) -> Result<Value, ClientError> {
        self.get(&self.component(kind, &name, "")).await
    }

    /// `status` or `stats`, of all instances or of one.
    ///
    /// # Errors
    /// When the server refuses or is not there.
    pub async fn component_report(
        &self,
        kind: Component,
        name: Fqfn<'_>,
        instance: Option<u32>,
        report: &str,
    ) -> Result<Value, ClientError> {
        let rest = match instance {
            Some(instance) => format!("/{instance}/{report}"),
            None => format!("/{report}"),
        };
        self.get(&self.component(kind, &name, &rest)).await
    }

    /// `start`, `stop` or `restart`, all instances or one.
    ///
    /// # Errors
    /// When the server refuses or is not there.
    pub async fn component_act(
        &self,
        kind: Component,
        name: Fqfn<'_>,
        instance: Option<u32>,
        action: &str,
    ) -> Result<(), ClientError> {
        let rest = match instance {
            Some(instance) => format!("/{instance}/{action}"),
            None => format!("/{action}"),
        };
        self.act(Method::POST, &self.component(kind, &name, &rest))
            .await
    }

    /// Removes a component.
    ///
    /// # Errors
    /// When the server refuses or is not there.
    pub async fn delete_component(
        &self,
        kind: Component,
        name: Fqfn<'_>,
    ) -> Result<(), ClientError> {
        self.act(Method::DELETE, &self.component(kind, &name, ""))
            .await
    }

    /// The built-in functions: Pulsar's `FunctionDefinition`s.
    ///
    /// # Errors
    /// When the server refuses or is not there.
    pub async fn available_functions(&self) -> Result<Vec<Value>, ClientError> {
        self.get("/admin/v3/functions/builtins").await
    }

    /// Has the server read the folder of the built-in functions again: what of it can not be used, as `file`,
    /// `reason` and `workerId`.
    ///
    /// # Errors
    /// When the server refuses or is not there.
    pub async fn reload_functions(&self) -> Result<Vec<Value>, ClientError> {
        let path = "/admin/v3/functions/builtins/reload";
        let reply = self.send(Method::POST, path, None).await?;
        if reply.body.is_empty() {
            return Ok(Vec::new());
        }
        let mut said: Value = answer(path, &reply.body)?;
        Ok(said["broken"]
            .as_array_mut()
            .map(std::mem::take)
            .unwrap_or_default())
    }

    /// A value of a function's state.
    ///
    /// # Errors
    /// When there is none, or the server refuses or is not there.
    pub async fn function_state(&self, name: Fqfn<'_>, key: &str) -> Result<Value, ClientError> {
        let path = self.component(
            Component::Function,
            &name,
            &format!("/state/{}", segment(key)),
        );
        self.get(&path).await
    }

    /// Sets a value of a function's state: a `FunctionState`.
    ///
    /// # Errors
    /// When the server refuses or is not there.
    pub async fn put_function_state(
        &self,
        name: Fqfn<'_>,
        key: &str,
        state: &Value,
    ) -> Result<(), ClientError> {
        let path = self.component(
            Component::Function,
            &name,
            &format!("/state/{}", segment(key)),
        );
        let form = Form::new().json("state", &state.to_string());
        self.send(Method::POST, &path, Some(form.finish()))
            .await
            .map(drop)
    }

    /// Sends one message through a function and returns what it made of it.
    ///
    /// # Errors
    /// When the server refuses, or no output came in time.
    pub async fn trigger_function(
        &self,
        name: Fqfn<'_>,
        topic: Option<&str>,
        payload: &[u8],
    ) -> Result<Bytes, ClientError> {
        let path = self.component(Component::Function, &name, "/trigger");
        let mut form = Form::new().file("dataStream", "payload", payload);
        if let Some(topic) = topic {
            form = form.text("topic", topic);
        }
        Ok(self
            .send(Method::POST, &path, Some(form.finish()))
            .await?
            .body)
    }

    /// GET of any path as JSON, for listings that have no method of their own.
    ///
    /// # Errors
    /// When the server refuses or is not there.
    pub async fn document(&self, path: &str) -> Result<Value, ClientError> {
        let reply = self.send(Method::GET, path, None).await?;
        if reply.body.is_empty() {
            Ok(Value::Null)
        } else {
            answer(path, &reply.body)
        }
    }
}

/// A component's full name.
#[derive(Debug, Clone, Copy)]
pub struct Fqfn<'a> {
    pub tenant: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
}
