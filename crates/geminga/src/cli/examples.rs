//! An example for each command whose own definition has none: those that several objects share, and those of one
//! line.

use clap::Command;

/// Commands by their way from the top, and what may be typed.
const EXAMPLES: &[(&str, &[&str])] = &[
    (
        "functions versions",
        &["geminga functions versions reverse"],
    ),
    (
        "packages upload",
        &[
            "geminga packages upload function://public/default/echo@v1 --path echo.py --description 'says it again'",
        ],
    ),
    (
        "packages download",
        &["geminga packages download function://public/default/echo@v1 --path echo.py"],
    ),
    (
        "packages list",
        &[
            "geminga packages list public/default",
            "geminga packages list public/default --type sink",
        ],
    ),
    (
        "packages list-versions",
        &["geminga packages list-versions function://public/default/echo"],
    ),
    (
        "packages get-metadata",
        &["geminga packages get-metadata function://public/default/echo@v1"],
    ),
    (
        "packages update-metadata",
        &[
            "geminga packages update-metadata function://public/default/echo@v1 --contact ops@example.com",
        ],
    ),
    (
        "packages delete",
        &["geminga packages delete function://public/default/echo@v1"],
    ),
    (
        "mesh plan",
        &[
            "geminga mesh plan mesh.yaml",
            "geminga mesh plan mesh.yaml --compare -o json",
        ],
    ),
    (
        "mesh apply",
        &[
            "geminga mesh apply mesh.yaml",
            "geminga mesh apply --name shop orders.yaml bills.yaml",
        ],
    ),
    (
        "mesh delete",
        &[
            "geminga mesh delete mesh.yaml",
            "geminga mesh delete --name shop",
        ],
    ),
    ("mesh list", &["geminga mesh list"]),
    (
        "tokens",
        &[
            "geminga tokens create-secret-key --file key",
            "geminga tokens create --secret-key file:key --subject shop --expiry-time 30d",
        ],
    ),
    (
        "tokens create-secret-key",
        &["geminga tokens create-secret-key --file key"],
    ),
    (
        "tokens create",
        &["geminga tokens create --secret-key file:key --subject shop --expiry-time 30d"],
    ),
    (
        "tokens validate",
        &["geminga tokens validate --secret-key file:key file:shop.jwt"],
    ),
    (
        "perf produce",
        &["geminga perf produce words -c 100000 --rate 10000"],
    ),
    ("perf consume", &["geminga perf consume words -c 100000"]),
    ("perf latency", &["geminga perf latency words --rate 1000"]),
    (
        "completions",
        &["geminga completions bash > ~/.local/share/bash-completion/completions/geminga"],
    ),
];

/// What functions, sources and sinks have in common.
const SHARED: &[(&str, &str)] = &[
    ("list", "--tenant acme --namespace shop"),
    ("get", "NAME -o yaml"),
    ("status", "NAME"),
    ("delete", "NAME"),
    ("start", "NAME"),
    ("stop", "NAME --instance-id 0"),
    ("restart", "acme/shop/NAME"),
];
const OBJECTS: &[(&str, &str)] = &[
    ("functions", "reverse"),
    ("sources", "quakes"),
    ("sinks", "archive"),
];

/// Gives each command that has none its example.
pub(super) fn add(command: Command) -> Command {
    let mut command = command;
    for &(path, lines) in EXAMPLES {
        let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        command = with(command, &path.split(' ').collect::<Vec<_>>(), &lines);
    }
    for &(object, name) in OBJECTS {
        for &(action, words) in SHARED {
            let line = format!("geminga {object} {action} {}", words.replace("NAME", name));
            command = with(command, &[object, action], &[line]);
        }
    }
    command
}

fn with(command: Command, path: &[&str], lines: &[String]) -> Command {
    match path {
        [] => {
            let heading = if lines.len() == 1 {
                "Example"
            } else {
                "Examples"
            };
            command.after_help(format!("{heading}:\n  {}", lines.join("\n  ")))
        }
        [first, rest @ ..] => command.mut_subcommand(first, |inner| with(inner, rest, lines)),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::super::Cli;
    use super::*;

    /// Each command's way from the top and its examples.
    fn walk(command: &Command, way: &str, found: &mut Vec<(String, String)>) {
        let examples = command.get_after_help().map(ToString::to_string);
        found.push((way.to_owned(), examples.unwrap_or_default()));
        for inner in command.get_subcommands() {
            walk(inner, &format!("{way} {}", inner.get_name()), found);
        }
    }

    /// Words as a shell would make them.
    fn words(line: &str) -> Vec<String> {
        let (mut words, mut word, mut quote, mut any) = (Vec::new(), String::new(), None, false);
        for c in line.chars() {
            match (quote, c) {
                (Some(q), c) if c == q => quote = None,
                (None, '\'' | '"') => (quote, any) = (Some(c), true),
                (None, ' ') => {
                    if any || !word.is_empty() {
                        words.push(std::mem::take(&mut word));
                    }
                    any = false;
                }
                (_, c) => word.push(c),
            }
        }
        words.push(word);
        words
    }

    #[test]
    fn each_command_has_an_example_that_it_takes() {
        let mut found = Vec::new();
        walk(&add(Cli::command()), "geminga", &mut found);
        assert!(found.len() > 80, "{}", found.len());
        let mut wrong = Vec::new();
        for (way, examples) in found {
            let mut count = 0;
            // What a shell adds is not ours.
            let commands = examples
                .lines()
                .flat_map(|line| line.split([';', '|', '&', '>']))
                .map(str::trim);
            for line in commands.filter(|line| line.starts_with("geminga ")) {
                count += 1;
                let typed = super::super::functions::respell(words(line));
                if let Err(error) = add(Cli::command()).try_get_matches_from(typed) {
                    wrong.push(format!("{way}: {line}\n{error}"));
                }
            }
            if count == 0 {
                wrong.push(format!("{way} has no example"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
