//! The runtimes of this worker, by language.

use std::sync::Arc;

use geminga_stdx::Tasks;

use crate::plan::Language;
use crate::runtime::bash::Bash;
use crate::runtime::exec::Exec;
use crate::runtime::go::Go;
use crate::runtime::java::Java;
use crate::runtime::python::Python;
use crate::runtime::{Broken, Host, Processes, Runtime, Services, sleeper};
use crate::secret::Unread;

/// Makes a runtime that lives in another crate, whose hosts' tasks are the worker's.
pub type MakeRuntime = Arc<dyn Fn(Tasks) -> Arc<dyn Runtime> + Send + Sync>;

/// One of each.
pub(crate) struct Runtimes {
    wasm: Option<Arc<dyn Runtime>>,
    bash: Bash,
    python: Python,
    exec: Exec,
    go: Go,
    java: Java,
    tasks: Tasks,
    pub(crate) processes: Processes,
}

impl Runtimes {
    pub(crate) fn new(processes: Processes, tasks: Tasks, wasm: Option<&MakeRuntime>) -> Self {
        Self {
            wasm: wasm.map(|make| make(tasks.clone())),
            bash: Bash::new(processes.clone(), tasks.clone()),
            python: Python::new(processes.clone(), tasks.clone()),
            go: Go::new(processes.clone(), tasks.clone()),
            java: Java::new(processes.clone(), tasks.clone()),
            exec: Exec::new(processes.clone(), tasks.clone()),
            processes,
            tasks,
        }
    }

    pub(crate) async fn start(
        &self,
        language: Language,
        unread: Unread,
        services: Arc<dyn Services>,
    ) -> Result<Box<dyn Host>, Broken> {
        let runtime: Arc<dyn Runtime> = match language {
            Language::Bash => Arc::new(self.bash.clone()),
            Language::Python => Arc::new(self.python.clone()),
            Language::Exec => Arc::new(self.exec.clone()),
            Language::Go => Arc::new(self.go.clone()),
            Language::Java => Arc::new(self.java.clone()),
            Language::Wasm => match &self.wasm {
                Some(runtime) => runtime.clone(),
                None => {
                    return Err(Broken::Deployment {
                        reason: "this worker was built without the WASM runtime (feature `wasm`)"
                            .to_owned(),
                        stderr_tail: String::new(),
                    });
                }
            },
        };
        if let Some(idle) = unread.spec.idle {
            return sleeper::start(runtime, idle, unread, services, &self.tasks).await;
        }
        runtime.start(unread.read().await?, services).await
    }
}
