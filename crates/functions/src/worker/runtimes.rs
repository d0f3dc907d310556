//! The runtimes of this worker, by language.

use std::sync::Arc;

use geminga_stdx::Tasks;

use crate::plan::Language;
use crate::runtime::bash::Bash;
use crate::runtime::exec::Exec;
use crate::runtime::go::Go;
use crate::runtime::java::Java;
use crate::runtime::python::Python;
use crate::runtime::{Broken, Host, HostSpec, Processes, Runtime, Services};

/// One of each.
pub(crate) struct Runtimes {
    bash: Bash,
    python: Python,
    exec: Exec,
    go: Go,
    java: Java,
}

impl Runtimes {
    pub(crate) fn new(processes: Processes, tasks: Tasks) -> Self {
        Self {
            bash: Bash::new(processes.clone(), tasks.clone()),
            python: Python::new(processes.clone(), tasks.clone()),
            go: Go::new(processes.clone(), tasks.clone()),
            java: Java::new(processes.clone(), tasks.clone()),
            exec: Exec::new(processes, tasks),
        }
    }

    pub(crate) async fn start(
        &self,
        language: Language,
        spec: Arc<HostSpec>,
        services: Arc<dyn Services>,
    ) -> Result<Box<dyn Host>, Broken> {
        let runtime: &dyn Runtime = match language {
            Language::Bash => &self.bash,
            Language::Python => &self.python,
            Language::Exec => &self.exec,
            Language::Go => &self.go,
            Language::Java => &self.java,
        };
        runtime.start(spec, services).await
    }
}
