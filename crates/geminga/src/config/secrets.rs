//! What secrets of functions may name: settings of the worker inside a server, flags of one by itself.

use std::path::PathBuf;

use clap::Args;
use geminga_functions::SecretRules;
use geminga_functions::secret::{
    SECRETS_FROM_COMMANDS, SECRETS_FROM_ENVIRONMENT, SECRETS_FROM_FOLDERS,
};

/// The settings' names.
pub(super) const NAMES: [&str; 3] = [
    SECRETS_FROM_ENVIRONMENT,
    SECRETS_FROM_FOLDERS,
    SECRETS_FROM_COMMANDS,
];

/// The same as flags. Without them a secret is what stands in the configuration.
#[derive(Debug, Clone, Args)]
pub(crate) struct SecretFlags {
    /// Environment variables that secrets of functions may name, comma separated; `DB_*` for all that begin so
    #[arg(long, value_name = "NAMES", env = "GEMINGA_SECRETS_FROM_ENVIRONMENT")]
    secrets_from_environment: Option<String>,
    /// Folders whose files secrets of functions may name, comma separated
    #[arg(long, value_name = "FOLDERS", env = "GEMINGA_SECRETS_FROM_FOLDERS")]
    secrets_from_folders: Option<String>,
    /// Commands that secrets of functions may name, each word by word: [["vault","kv","get","db"]]
    #[arg(long, value_name = "JSON", env = "GEMINGA_SECRETS_FROM_COMMANDS")]
    secrets_from_commands: Option<String>,
}

impl SecretFlags {
    /// # Errors
    /// What means nothing, by the name of its setting.
    pub(crate) fn rules(&self) -> Result<SecretRules, String> {
        let given = [
            &self.secrets_from_environment,
            &self.secrets_from_folders,
            &self.secrets_from_commands,
        ];
        let mut lists = Lists::default();
        for (name, value) in NAMES.into_iter().zip(given) {
            lists.take(name, value.as_deref().unwrap_or_default())?;
        }
        lists.rules()
    }
}

/// What was listed.
#[derive(Debug, Clone, Default)]
pub(super) struct Lists {
    environment: Vec<String>,
    folders: Vec<PathBuf>,
    commands: Vec<Vec<String>>,
}

impl Lists {
    /// The value of one setting, in the place of what it was.
    pub(super) fn take(&mut self, name: &str, value: &str) -> Result<(), String> {
        let words = || value.split(',').map(str::trim).filter(|it| !it.is_empty());
        match name {
            SECRETS_FROM_ENVIRONMENT => self.environment = words().map(str::to_owned).collect(),
            SECRETS_FROM_FOLDERS => self.folders = words().map(PathBuf::from).collect(),
            _ if value.trim().is_empty() => self.commands = Vec::new(),
            _ => {
                let wrong = |_| {
                    format!(
                        "`{name}` is a JSON list of commands, each a list of its words: [[\"vault\",\"kv\",\"get\",\"db\"]]"
                    )
                };
                self.commands = serde_json::from_str(value).map_err(wrong)?;
            }
        }
        self.clone().rules().map(drop)
    }

    pub(super) fn rules(self) -> Result<SecretRules, String> {
        SecretRules::listed(self.environment, self.folders, self.commands)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_or_refused_by_their_names() {
        let flags = |environment: &str, folders: &str, commands: &str| {
            let given = |text: &str| Some(text.to_owned());
            let flags = SecretFlags {
                secrets_from_environment: given(environment),
                secrets_from_folders: given(folders),
                secrets_from_commands: given(commands),
            };
            flags.rules().map(|rules| format!("{rules:?}"))
        };
        let rules = flags("A, B_*,", "/a,/b/c", r#"[["x","y z"],["w"]]"#).expect("lists");
        for part in [
            r#"["A", "B_*"]"#,
            r#"["/a", "/b/c"]"#,
            r#"[["x", "y z"], ["w"]]"#,
        ] {
            assert!(rules.contains(part), "{rules}");
        }
        assert_eq!(
            flags("", "", "").expect("none"),
            format!("{:?}", SecretRules::default())
        );
        for (environment, folders, commands, want) in [
            ("A=B", "", "", "gemingaSecretsFromEnvironment"),
            ("", "a", "", "gemingaSecretsFromFolders"),
            ("", "", "vault kv get", "gemingaSecretsFromCommands"),
            ("", "", r#"["vault"]"#, "gemingaSecretsFromCommands"),
            ("", "", "[[]]", "gemingaSecretsFromCommands"),
        ] {
            let said = flags(environment, folders, commands).expect_err(want);
            assert!(said.contains(want), "{said}");
        }
    }
}
