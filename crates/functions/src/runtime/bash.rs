//! The warm Bash runtime: one shell a host, `hosts/geminga.bash` in front of the user's script.
//!
//! Standard output is the output, as it is when the script is a process of its own; so it carries
//! the shell binding of the host protocol. A script whose first line asks for another interpreter,
//! and any script with `mode: spawn` or `batch`, is the business of `exec`.

use std::path::Path;
use std::sync::Arc;

use geminga_stdx::Tasks;

use super::body::{Launch, Speech};
use super::options::{Mode, Options};
use super::process::{Planned, Processes, Scope};
use super::warm;
use super::wire::shell::Shell;
use super::{BoxFuture, Broken, Host, HostSpec, Runtime, Services};

const HOST: &str = include_str!("../hosts/geminga.bash");
const BASH: &str = "/bin/bash";

/// Starts Bash functions.
#[derive(Debug, Clone)]
pub struct Bash {
    processes: Processes,
    tasks: Tasks,
}

impl Bash {
    #[must_use]
    pub fn new(processes: Processes, tasks: Tasks) -> Self {
        Self { processes, tasks }
    }
}

impl Runtime for Bash {
    fn name(&self) -> &'static str {
        "bash"
    }

    fn start(
        &self,
        spec: Arc<HostSpec>,
        services: Arc<dyn Services>,
    ) -> BoxFuture<'_, Result<Box<dyn Host>, Broken>> {
        Box::pin(async move {
            if !is_warm(&spec.options, &spec.code.path) {
                return super::exec::Exec::new(self.processes.clone(), self.tasks.clone())
                    .start(spec, services)
                    .await;
            }
            let scope = self.processes.scope(&spec)?;
            warm::start(Arc::new(Shells), scope, spec, services, &self.tasks).await
        })
    }
}

/// Whether a script is loaded into a warm shell, and is no business of `exec`.
pub(crate) fn is_warm(options: &Options, path: &Path) -> bool {
    matches!(options.mode, None | Some(Mode::Stream)) && !other_interpreter(path)
}

/// Whether a script's first line names something that is not a Bourne shell.
fn other_interpreter(path: &Path) -> bool {
    super::exec::shebang(path).is_some_and(|words| {
        let program = words
            .iter()
            .map(|word| word.rsplit('/').next().unwrap_or(word))
            .find(|word| *word != "env" && !word.starts_with('-'));
        !matches!(program, Some("bash" | "sh" | "dash"))
    })
}

struct Shells;

impl Launch for Shells {
    fn plan(&self, scope: &Scope, spec: &HostSpec) -> Result<(Planned, Speech), Broken> {
        let host = scope.file("geminga.bash", HOST);
        let token = geminga_stdx::Random::from_entropy().name(24);
        let mut planned = scope.plan(Path::new(BASH), spec);
        planned
            .args(["--noprofile", "--norc"])
            .args(&spec.runtime_flags)
            .arg(host.map_err(super::private_directory)?)
            .env("GMG_HOST_BINDING", "shell")
            .env("GMG_HOST_TOKEN", &token);
        let speech = Speech::Pipes {
            codec: Box::new(Shell::new(&token, spec.options.clone())),
            patient: true,
        };
        Ok((planned, speech))
    }

    fn window(&self) -> usize {
        256
    }

    fn frame(&self) -> usize {
        64
    }
}
