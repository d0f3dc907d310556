//! `geminga init`: a function to begin with, in each language, with a configuration and cases that pass.

use std::path::{Path, PathBuf};

use geminga_stdx::Diagnostic;
use serde_json::json;

use super::Global;
use crate::failure::{Exit, Failure, Outcome};
use crate::output::{self, Table};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    geminga init bash hello\n  \
    geminga init python hello && geminga test hello\n  \
    geminga init go hello && geminga dev hello --watch")]
pub(crate) struct InitArgs {
    /// The language
    #[arg(value_enum, value_name = "LANG")]
    language: Language,
    /// The directory; made when it is missing, and here when left out. The function has its name
    #[arg(value_name = "DIR", default_value = ".")]
    directory: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Language {
    Bash,
    Python,
    Go,
    Java,
    /// Go, built for WebAssembly
    Wasm,
    /// Any executable
    Exec,
}

/// A file of a template.
struct File {
    name: &'static str,
    text: &'static str,
    executable: bool,
}

const fn file(name: &'static str, text: &'static str) -> File {
    File {
        name,
        text,
        executable: false,
    }
}

macro_rules! template {
    ($path:literal) => {
        include_str!(concat!("init/templates/", $path))
    };
}

impl Language {
    /// The code first, then its configuration, then the rest.
    fn files(self) -> Vec<File> {
        let own = match self {
            Self::Bash => vec![
                file("function.sh", template!("bash/function.sh")),
                file("function.yaml", template!("bash/function.yaml")),
            ],
            Self::Python => vec![
                file("function.py", template!("python/function.py")),
                file("function.yaml", template!("python/function.yaml")),
            ],
            Self::Go => vec![
                file("main.go", template!("go/main.go")),
                file("function.yaml", template!("go/function.yaml")),
                // Under its own name, the templates would be a module of this project.
                file("go.mod", template!("go/go.mod.txt")),
            ],
            Self::Wasm => vec![
                // The same code: what it is built for is the configuration's to say.
                file("main.go", template!("go/main.go")),
                file("function.yaml", template!("wasm/function.yaml")),
                file("go.mod", template!("go/go.mod.txt")),
            ],
            Self::Java => vec![
                file(
                    "src/main/java/example/Exclaim.java",
                    template!("java/Exclaim.java"),
                ),
                file("function.yaml", template!("java/function.yaml")),
                file("pom.xml", template!("java/pom.xml")),
            ],
            Self::Exec => vec![
                File {
                    executable: true,
                    ..file("function", template!("exec/function"))
                },
                file("function.yaml", template!("exec/function.yaml")),
            ],
        };
        let shared = [
            file("function.test.yaml", template!("function.test.yaml")),
            file("README.md", template!("README.md")),
        ];
        own.into_iter().chain(shared).collect()
    }

    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Bash => ("bash", "Bash"),
            Self::Python => ("python", "Python"),
            Self::Go => ("go", "Go"),
            Self::Java => ("java", "Java"),
            Self::Wasm => ("wasm", "Go, built for WebAssembly,"),
            Self::Exec => ("exec", "any language"),
        }
    }
}

pub(crate) fn run(args: &InitArgs, global: &Global) -> Outcome {
    let directory = &args.directory;
    let name = name(directory)?;
    let files = args.language.files();
    let there: Vec<&str> = files
        .iter()
        .filter(|file| directory.join(file.name).exists())
        .map(|file| file.name)
        .collect();
    if !there.is_empty() {
        let message = format!(
            "`{}` has `{}` already",
            directory.display(),
            there.join("`, `")
        );
        let error = Diagnostic::error("G0424", message)
            .cause("nothing was written")
            .help(format!(
                "geminga init {} NEW-DIRECTORY",
                args.language.words().0
            ));
        return Err(Failure::new(Exit::Conflict, error));
    }
    let (lang, language) = args.language.words();
    for file in &files {
        let text = file
            .text
            .replace("{{name}}", &name)
            .replace("{{lang}}", lang)
            .replace("{{language}}", language)
            .replace("{{code}}", files[0].name);
        write(&directory.join(file.name), &text, file.executable)?;
    }
    let names: Vec<&str> = files.iter().map(|file| file.name).collect();
    let here = directory == Path::new(".");
    let shown = directory.display().to_string();
    let target = if here { "" } else { &shown };
    output::print(
        global.format(),
        &json!({"name": name, "directory": shown, "files": names}),
        |_| {
            let mut table = Table::new(&["file"]);
            for name in &names {
                table.row([directory
                    .join(name)
                    .components()
                    .collect::<PathBuf>()
                    .display()
                    .to_string()]);
            }
            table
        },
        || vec![name.clone()],
    )?;
    output::note(&format!(
        "next: geminga test {target}\n      geminga dev {target}{}--watch",
        if here { "" } else { " " }
    ));
    Ok(())
}

/// The function's name: that of the directory, as far as a name may be so.
fn name(directory: &Path) -> Outcome<String> {
    let whole = std::path::absolute(directory)?;
    let whole: PathBuf = whole.components().collect();
    let text = whole.file_name().unwrap_or_default().to_string_lossy();
    let legal = |c: char| {
        if c.is_ascii_alphanumeric() || "-_.".contains(c) {
            c
        } else {
            '-'
        }
    };
    let name: String = text.chars().map(legal).collect();
    let name = name.trim_matches(['-', '.']);
    Ok(if name.is_empty() {
        "function".to_owned()
    } else {
        name.to_owned()
    })
}

fn write(path: &Path, text: &str, executable: bool) -> Outcome {
    use std::os::unix::fs::PermissionsExt;
    let failed = |error: std::io::Error| {
        let message = format!("`{}` cannot be written", path.display());
        Failure::from(Diagnostic::error("G0001", message).cause(error.to_string()))
    };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    std::fs::write(path, text).map_err(failed)?;
    if executable {
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(path, mode).map_err(failed)?;
    }
    Ok(())
}
