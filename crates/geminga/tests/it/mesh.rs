//! `geminga mesh apply`, `list` and `delete` on a running server.

use std::path::Path;

use crate::server::Server;
use crate::text;

/// What a mesh command prints.
fn mesh(server: &Server, directory: &Path, args: &[&str]) -> String {
    let all: Vec<&str> = ["mesh", "--admin-url", &server.admin_url]
        .into_iter()
        .chain(args.iter().copied())
        .collect();
    let ran = server.ask(directory, &all);
    assert!(ran.status.success(), "{args:?}: {}", text(&ran.stderr));
    text(&ran.stdout) + &text(&ran.stderr)
}

/// Action and name of each step.
fn steps(printed: &str) -> Vec<(&str, &str)> {
    printed
        .lines()
        .filter(|line| line.contains("public/default/"))
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((
                words.next()?,
                words.nth(1)?.strip_prefix("public/default/")?,
            ))
        })
        .collect()
}

#[test]
fn apply_changes_what_differs_and_nothing_else() {
    let server = Server::ephemeral();
    let directory = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| {
        std::fs::write(directory.path().join(name), text).expect("writes");
    };
    let function = |name: &str, output: &str| {
        format!(
            "    - name: {name}\n      genericRuntime: {{language: bash, functionFile: {name}.sh}}\n      \
             input: {{topics: [{name}-in]}}\n      output: {{topic: {output}}}\n"
        )
    };
    let head = "apiVersion: compute.functionmesh.io/v1alpha1\nkind: FunctionMesh\n\
                metadata: {name: pair}\nspec:\n  functions:\n";
    write("a.sh", "process() { emit a; }\n");
    write("b.sh", "process() { emit b; }\n");
    write(
        "mesh.yaml",
        &format!("{head}{}{}", function("a", "x"), function("b", "y")),
    );
    let run = |args: &[&str]| mesh(&server, directory.path(), args);

    assert_eq!(
        steps(&run(&["plan", "mesh.yaml"])),
        [("create", "a"), ("create", "b")]
    );
    assert_eq!(run(&["list"]).lines().count(), 1, "a plan makes nothing");
    assert_eq!(
        steps(&run(&["apply", "mesh.yaml"])),
        [("create", "a"), ("create", "b")]
    );
    assert_eq!(
        steps(&run(&["apply", "mesh.yaml"])),
        [("unchanged", "a"), ("unchanged", "b")]
    );
    assert!(run(&["list"]).contains("pair  0        2          0"));

    write("a.sh", "process() { emit 'another a'; }\n");
    let printed = run(&["apply", "mesh.yaml"]);
    assert_eq!(steps(&printed), [("update", "a"), ("unchanged", "b")]);
    assert!(printed.contains("codeDigest"), "{printed}");
    assert_eq!(
        steps(&run(&["apply", "mesh.yaml"])),
        [("unchanged", "a"), ("unchanged", "b")]
    );

    write("mesh.yaml", &format!("{head}{}", function("b", "z")));
    let printed = run(&["plan", "mesh.yaml"]);
    assert_eq!(steps(&printed), [("update", "b"), ("delete", "a")]);
    assert!(
        printed.contains("\"persistent://public/default/y\" -> \"persistent://public/default/z\"")
    );
    assert_eq!(
        steps(&run(&["apply", "mesh.yaml"])),
        [("update", "b"), ("delete", "a")]
    );

    // What left the file goes with the mesh, though nobody applied that.
    write(
        "mesh.yaml",
        &format!("{head}{}{}", function("a", "x"), function("b", "z")),
    );
    run(&["apply", "mesh.yaml"]);
    write("mesh.yaml", &format!("{head}{}", function("b", "z")));
    let printed = run(&["delete", "mesh.yaml"]);
    assert!(printed.contains("function public/default/b deleted"));
    assert!(printed.contains("function public/default/a deleted"));
    assert!(run(&["delete", "mesh.yaml"]).contains("was not there"));
    assert_eq!(run(&["list"]).lines().count(), 1);
}

/// They say so where somebody looks for them, and a name makes a mesh of them.
#[test]
fn plain_configurations_are_of_no_mesh_until_one_is_named() {
    let server = Server::ephemeral();
    let directory = tempfile::tempdir().expect("a directory");
    for name in ["a", "b"] {
        let path = directory.path().join(format!("{name}.sh"));
        std::fs::write(path, "process() { emit x; }\n").expect("writes");
        let text =
            format!("name: {name}\nsh: {name}.sh\ninputs: [{name}-in]\noutput: {name}-out\n");
        std::fs::write(directory.path().join(format!("{name}.yaml")), text).expect("writes");
    }
    let run = |args: &[&str]| mesh(&server, directory.path(), args);

    assert_eq!(run(&["list"]).lines().count(), 1);
    run(&["apply", "a.yaml", "b.yaml"]);
    let listed = run(&["list"]);
    assert!(
        listed.contains("of no mesh: 2 functions (see `geminga functions list`)"),
        "{listed}"
    );
    // That is for people: a script gets the meshes.
    assert_eq!(
        run(&["list", "-o", "name"]).lines().next(),
        listed.lines().last()
    );

    let printed = run(&["apply", "--name", "pair", "a.yaml", "b.yaml"]);
    assert_eq!(steps(&printed), [("update", "a"), ("update", "b")]);
    assert!(run(&["list"]).contains("pair  0        2          0"));
    assert!(!run(&["list"]).contains("of no mesh"));
    // Without the name it stays where it is; with it, what left goes.
    assert_eq!(steps(&run(&["apply", "a.yaml"])), [("unchanged", "a")]);
    assert_eq!(
        steps(&run(&["apply", "--name", "pair", "a.yaml"])),
        [("unchanged", "a"), ("delete", "b")]
    );
    run(&["apply", "--name", "pair", "a.yaml", "b.yaml"]);
    let printed = run(&["delete", "--name", "pair"]);
    assert!(
        printed.contains("function public/default/a deleted"),
        "{printed}"
    );
    assert!(
        printed.contains("function public/default/b deleted"),
        "{printed}"
    );
    assert_eq!(run(&["list"]).lines().count(), 1);
    let again = [
        "mesh",
        "--admin-url",
        &server.admin_url,
        "delete",
        "--name",
        "pair",
    ];
    let again = server.ask(directory.path(), &again);
    assert_eq!(again.status.code(), Some(3));
    assert!(text(&again.stderr).contains("error[G0202]: there is no mesh `pair`"));
}

/// What is not given stays at an update: each `apply` ended with "Update contains no change", or changed the rest alone.
#[test]
fn what_left_the_file_leaves_the_server() {
    let server = Server::ephemeral();
    let directory = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| {
        std::fs::write(directory.path().join(name), text).expect("writes");
    };
    write("f.sh", "process() { emit x; }\n");
    let run = |args: &[&str]| mesh(&server, directory.path(), args);
    let config = || server.check("functions get f", 0).0;
    let base = "name: f\nsh: f.sh\noutput: out\n";
    let all = "inputSpecs: {in: {receiverQueueSize: 7}}\nuserConfig: {a: 1}\nsecrets: {token: hunter2}\nlogTopic: said\n\
               timeoutMs: 5000\nmaxMessageRetries: 3\ndeadLetterTopic: dead\n";
    write("mesh.yaml", &format!("{base}{all}"));
    run(&["apply", "mesh.yaml"]);
    let made = config();
    let gone = [
        "userConfig",
        "secrets",
        "logTopic",
        "timeoutMs",
        "maxMessageRetries",
        "deadLetterTopic",
        "receiverQueueSize",
    ];
    for field in gone {
        assert!(made.contains(field), "{field}: {made}");
    }
    // The setting alone, then the rest beside a change.
    write(
        "mesh.yaml",
        &format!("{base}{}", all.replace("userConfig: {a: 1}\n", "")),
    );
    for want in ["update", "unchanged"] {
        assert_eq!(steps(&run(&["apply", "mesh.yaml"])), [(want, "f")]);
    }
    assert!(!config().contains("userConfig"), "{}", config());
    write(
        "mesh.yaml",
        &format!("{base}inputs: [in]\nparallelism: 2\n"),
    );
    for want in ["update", "unchanged"] {
        assert_eq!(steps(&run(&["apply", "mesh.yaml"])), [(want, "f")]);
    }
    let left = config();
    for field in gone {
        assert!(!left.contains(field), "{field}: {left}");
    }
    // What may not change may not go either, and which component it is stands there.
    write("g.yaml", "name: g\nsh: f.sh\ninputs: [in]\nsubName: own\n");
    run(&["apply", "g.yaml"]);
    write("g.yaml", "name: g\nsh: f.sh\ninputs: [in]\n");
    let args = ["mesh", "--admin-url", &server.admin_url, "apply", "g.yaml"];
    let refused = server.ask(directory.path(), &args);
    let said = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("function public/default/g: "), "{said}");
    assert!(said.contains("`subName` may not be left out"), "{said}");
}

/// The first refusal ended it, and nobody learned of a second one.
#[test]
fn what_is_refused_keeps_those_waiting_that_write_for_it_alone() {
    let server = Server::ephemeral();
    let directory = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| {
        std::fs::write(directory.path().join(name), text).expect("writes");
    };
    write("f.sh", "process() { emit x; }\n");
    let function = |name: &str, more: &str| format!("name: {name}\nsh: f.sh\n{more}\n");
    let all = |more: &str| {
        [
            function("old", "inputs: [x]"),
            function("first", "inputs: [in]\noutput: a"),
            function("second", "inputs: [a]\noutput: b"),
            function("third", &format!("inputs: [b]\nsubName: s{more}")),
            function("alone", &format!("inputs: [c]\nsubName: t{more}")),
            function("other", "inputs: [d]"),
        ]
    };
    // Two exist, and what changes of them may not change.
    let [old, _, _, third, alone, _] = all("");
    write("mesh.yaml", &[old, third, alone].join("---\n"));
    mesh(
        &server,
        directory.path(),
        &["apply", "mesh.yaml", "--name", "m"],
    );
    let [_, rest @ ..] = all("2");
    write("mesh.yaml", &rest.join("---\n"));
    let args = [
        "mesh",
        "--admin-url",
        &server.admin_url,
        "apply",
        "mesh.yaml",
        "--name",
        "m",
    ];
    let ran = server.ask(directory.path(), &args);
    let (printed, said) = (text(&ran.stdout), text(&ran.stderr));
    assert_eq!(ran.status.code(), Some(8), "{printed}{said}");
    assert_eq!(
        steps(&printed),
        [
            ("skipped", "first"),
            ("skipped", "second"),
            ("refused", "third"),
            ("refused", "alone"),
            ("create", "other"),
            ("skipped", "old"),
        ]
    );
    for name in ["third", "alone"] {
        let named = format!("function public/default/{name}: ");
        assert!(said.contains(&named), "{said}");
    }
    assert!(printed.contains("function public/default/third reads what it writes"));
    let there = server.check("functions list", 0).0;
    assert!(there.contains("old") && there.contains("other"), "{there}");
    assert!(
        !there.contains("first") && !there.contains("second"),
        "{there}"
    );
}

/// It deleted what any namespace had in a mesh of that name.
#[test]
fn a_mesh_is_deleted_by_name_in_one_namespace() {
    let server = Server::ephemeral();
    let directory = tempfile::tempdir().expect("a directory");
    server.check("namespaces create public/other", 0);
    std::fs::write(directory.path().join("f.sh"), "process() { emit x; }\n").expect("writes");
    for namespace in ["default", "other"] {
        let text = format!("name: f\nnamespace: {namespace}\nsh: f.sh\ninputs: [in]\n");
        let name = format!("{namespace}.yaml");
        std::fs::write(directory.path().join(&name), text).expect("writes");
        mesh(
            &server,
            directory.path(),
            &["apply", "--name", "shop", &name],
        );
    }
    let delete = |more: &[&str], want: i32| {
        let args = [
            "mesh",
            "--admin-url",
            &server.admin_url,
            "delete",
            "--name",
            "shop",
        ];
        let args: Vec<&str> = args.iter().chain(more).copied().collect();
        let ran = server.ask(directory.path(), &args);
        let said = text(&ran.stdout) + &text(&ran.stderr);
        assert_eq!(ran.status.code(), Some(want), "{more:?}: {said}");
        said
    };
    let said = delete(&[], 2);
    assert!(said.contains("public/default, public/other"), "{said}");
    delete(&["--tenant", "strange"], 3);
    let said = delete(&["--namespace", "other"], 0);
    assert!(said.contains("function public/other/f deleted"), "{said}");
    assert!(!said.contains("public/default"), "{said}");
    let said = delete(&[], 0);
    assert!(said.contains("function public/default/f deleted"), "{said}");
}

/// One that names it as code, and one by its type: what the server fills in is no change.
#[test]
fn built_in_functions_are_made_and_stay_as_they_are() {
    let directory = tempfile::tempdir().expect("a directory");
    let folder = directory.path().join("functions");
    std::fs::create_dir(&folder).expect("made");
    let write = |name: &str, text: &str| {
        std::fs::write(directory.path().join(name), text).expect("writes");
    };
    write("functions/echo.py", "def process(x):\n    return x\n");
    write(
        "functions/echo.yaml",
        "functionClass: echo\nfile: echo.py\n",
    );
    let folder = folder.to_str().expect("text");
    let server = Server::start(&["--ephemeral", "--functions-directory", folder]);
    let run = |args: &[&str]| mesh(&server, directory.path(), args);
    let function =
        |name: &str, code: &str| format!("---\nname: {name}\ninputs: [{name}-in]\n{code}\n");
    let both = |a: &str| function("a", a) + &function("b", "functionType: echo");
    write("mesh.yaml", &both("py: builtin://echo"));
    let made = run(&["apply", "mesh.yaml"]);
    assert_eq!(steps(&made), [("create", "a"), ("create", "b")], "{made}");
    let again = run(&["apply", "mesh.yaml"]);
    assert_eq!(
        steps(&again),
        [("unchanged", "a"), ("unchanged", "b")],
        "{again}"
    );
    write("own.py", "def process(x):\n    return x + x\n");
    for code in ["py: own.py\nclassName: own", "py: builtin://echo"] {
        write("mesh.yaml", &both(code));
        let changed = run(&["apply", "mesh.yaml"]);
        assert_eq!(
            steps(&changed),
            [("update", "a"), ("unchanged", "b")],
            "{changed}"
        );
        let again = run(&["apply", "mesh.yaml"]);
        assert_eq!(
            steps(&again),
            [("unchanged", "a"), ("unchanged", "b")],
            "{again}"
        );
    }
}

/// `functions create` builds a folder of Go, `apply` refused it as a directory.
#[test]
fn a_folder_of_sources_is_built_and_compared() {
    let server = Server::ephemeral();
    let directory = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| {
        std::fs::write(directory.path().join(name), text).expect("writes");
    };
    let program = |mark: &str| {
        format!(
            "package main\n\nimport (\n\t\"context\"\n\n\t\"github.com/apache/pulsar/pulsar-function-go/pf\"\n)\n\n\
             func exclaim(ctx context.Context, in []byte) ([]byte, error) {{\n\treturn append(in, '{mark}'), nil\n}}\n\n\
             func main() {{ pf.Start(exclaim) }}\n"
        )
    };
    std::fs::create_dir(directory.path().join("loud")).expect("made");
    write("loud/main.go", &program("!"));
    write(
        "mesh.yaml",
        "name: loud\ngo: loud\ninputs: [words]\noutput: shouts\n",
    );
    let run = |args: &[&str]| mesh(&server, directory.path(), args);
    let ask = |want: &str| {
        let words = "functions trigger loud --trigger-value hello";
        assert_eq!(server.check(words, 0).0, format!("hello{want}\n"));
    };
    assert_eq!(steps(&run(&["apply", "mesh.yaml"])), [("create", "loud")]);
    ask("!");
    let again = run(&["apply", "mesh.yaml"]);
    assert_eq!(steps(&again), [("unchanged", "loud")], "{again}");
    write("loud/main.go", &program("?"));
    let changed = run(&["apply", "mesh.yaml"]);
    assert_eq!(steps(&changed), [("update", "loud")], "{changed}");
    ask("?");
}
