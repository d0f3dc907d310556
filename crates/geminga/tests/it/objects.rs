//! The object commands against `geminga standalone`: what they print, and how they fail.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;

use crate::server::Server;
use crate::{geminga, text};

/// `| head -1` made an error of it.
#[test]
fn who_reads_no_further_is_no_failure() {
    let server = Server::ephemeral();
    server.check("topics create words", 0);
    let words = [
        "topics list",
        "topics list -o name",
        "topics list -o json",
        "topics stats words -o yaml",
        "tenants list",
        "completions bash",
        "tokens create-secret-key",
    ];
    for words in words {
        let (read, write) = std::io::pipe().expect("a pipe");
        drop(read);
        let output = geminga()
            .env("GEMINGA_ADMIN_URL", &server.admin_url)
            .args(words.split(' '))
            .stdout(write)
            .stderr(Stdio::piped())
            .output()
            .expect("runs");
        let said = text(&output.stderr);
        assert_eq!(
            (output.status.code(), said.as_str()),
            (Some(0), ""),
            "{words}"
        );
    }
}

#[test]
fn topics_subscriptions_and_functions_from_the_command_line() {
    let server = Server::ephemeral();
    server.check("topics create words", 0);
    server.check("topics create words", 4);
    server.check("topics create-partitioned big --partitions 3", 0);
    server.check("topics update-partitioned big --partitions 4", 0);
    let (out, _) = server.check("topics list", 0);
    assert_eq!(out, "TOPIC  PARTITIONS\nbig    4\nwords  -\n");
    let (out, _) = server.check("topics list -o name", 0);
    assert_eq!(
        out,
        "persistent://public/default/big\npersistent://public/default/words\n"
    );

    server.check("subscriptions create words audit --at earliest", 0);
    server.check("produce words -m one -m two", 0);
    let (out, _) = server.check("subscriptions list words", 0);
    assert!(
        out.lines()
            .nth(1)
            .is_some_and(|row| row.starts_with("audit")),
        "{out}"
    );
    let (out, _) = server.check("subscriptions peek words audit", 0);
    assert!(out.contains("one"), "{out}");
    server.check("subscriptions clear words audit", 0);
    server.check("subscriptions peek words audit", 3);
    server.check("subscriptions reset words audit --to earliest", 0);
    server.check("subscriptions peek words audit", 0);
    server.check("subscriptions delete words audit", 0);

    let directory = tempfile::tempdir().expect("a directory");
    let script = directory.path().join("loud.sh");
    std::fs::write(&script, "tr a-z A-Z\n").expect("writes");
    let script = script.display();
    server.check(
        &format!("functions create --sh {script} --inputs words --output shouts"),
        0,
    );
    server.check(
        &format!("functions create --sh {script} --inputs words --output shouts"),
        4,
    );
    let (out, _) = server.check("functions list -o name", 0);
    assert_eq!(out, "loud\n");
    let (out, _) = server.check("functions trigger loud --trigger-value hello", 0);
    assert_eq!(out, "HELLO\n");
    let (out, _) = server.check("functions get loud -o json", 0);
    assert!(out.contains("\"output\": \"shouts\""), "{out}");
    // As pulsar-admin has it: nothing is stored that could be read anew, and that alone is an update.
    server.check("functions update loud --update-auth-data", 0);
    server.check("functions update loud", 1);
    server.check("functions delete loud", 0);

    server.check("tenants create acme", 0);
    server.check("namespaces create acme/shop", 0);
    let (out, _) = server.check("namespaces list acme -o name", 0);
    assert_eq!(out, "acme/shop\n");
    server.check("tenants delete acme", 4);
    server.check("namespaces delete acme/shop", 0);
    server.check("tenants delete acme", 0);
    server.check("topics delete big", 0);
    server.check("topics delete words", 0);
}

#[test]
fn what_does_not_start_is_said_with_its_whole_reason() {
    let server = Server::ephemeral();
    let directory = tempfile::tempdir().expect("a directory");
    let script = directory.path().join("loud.sh");
    let path = script.display().to_string();
    std::fs::write(&script, "process() { if; }\n").expect("writes");
    let create = format!("functions create loud --sh {path} --inputs words --output-topic shouts");
    let (_, said) = server.check(&create, 0);
    assert!(
        said.contains("function public/default/loud created"),
        "{said}"
    );
    assert!(
        said.contains("warning[G0412]: function public/default/loud does not start"),
        "{said}"
    );
    assert!(
        said.contains("loud.sh: line 1: syntax error near"),
        "{said}"
    );
    assert!(!said.contains("/packages/"), "{said}");
    let (out, _) = server.check("functions status loud", 0);
    assert!(out.contains("\ninstance 0:\n"), "{out}");
    assert!(out.contains("syntax error near unexpected token"), "{out}");
    assert!(!out.contains("/packages/"), "{out}");

    // The name stands before the flags, as everywhere else; and what is mended is not warned of.
    std::fs::write(&script, "process() { emit \"${MSG^^}\"; }\n").expect("writes");
    let (_, said) = server.check(&format!("functions update loud --sh {path}"), 0);
    assert_eq!(said, "function public/default/loud updated\n");
    let (out, _) = server.check("functions trigger loud --trigger-value hello", 0);
    assert_eq!(out, "HELLO\n");
    let (out, _) = server.check("functions stats loud", 0);
    assert!(out.starts_with("INSTANCE  RECEIVED"), "{out}");
    let (_, said) = server.check("functions logs loud", 3);
    let help = said
        .split("help: geminga ")
        .nth(1)
        .expect("a command")
        .trim();
    server.check(help, 0);
    server.check("functions logs loud", 0);
    let (out, _) = server.check("functions get loud", 0);
    assert!(
        out.contains("inputs     words\n") || out.contains("  words\n"),
        "{out}"
    );
}

/// What two instances say is one stream, of which one instance, one message or the bad news can be had alone.
#[test]
fn logs_are_followed_over_all_instances_and_by_event() {
    let server = Server::ephemeral();
    let directory = tempfile::tempdir().expect("a directory");
    let script = directory.path().join("talk.sh");
    let code =
        "process() { log INFO \"took $MSG\"; [[ $MSG != bad ]] || log ERROR 'it is bad'; }\n";
    std::fs::write(&script, code).expect("writes");
    let path = script.display();
    server.check(
        &format!(
            "functions create talk --sh {path} --inputs words --log-topic said --parallelism 2"
        ),
        0,
    );
    // One by one: a batch goes to one instance whole.
    let words = ["a", "b", "bad", "c", "d", "e"];
    for word in words {
        server.check(&format!("produce words -m {word}"), 0);
    }
    let logs = |flags: &str| -> Vec<String> {
        let (out, _) = server.check(&format!("functions logs talk{flags}"), 0);
        out.lines().map(str::to_owned).collect()
    };
    let mut all = Vec::new();
    for _ in 0..300 {
        all = logs("");
        if all.len() == words.len() + 1 {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    for word in words {
        let line = |n: u32| format!("public/default/talk:{n} INFO  took {word}");
        let said = all.contains(&line(0)) || all.contains(&line(1));
        assert!(said, "{word}: {all:?}");
    }
    let of = |wanted: &str| -> Vec<String> {
        let lines = all.iter().filter(|line| line.contains(wanted));
        lines.cloned().collect()
    };
    for n in 0..2 {
        let own = of(&format!("talk:{n} "));
        assert!(!own.is_empty(), "instance {n} said nothing: {all:?}");
        assert_eq!(logs(&format!(" --instance-id {n}")), own);
    }
    assert_eq!(logs(" --instance-id 2"), Vec::<String>::new());
    assert_eq!(logs(" --level error"), of(" ERROR "));
    assert_eq!(logs(" --level warn"), of(" ERROR "));
    assert_eq!(logs(" --level info").len(), all.len());
    let event = logs(" -o json").iter().find_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        (line["text"] == "it is bad").then(|| line["messageId"].as_str().map(str::to_owned))
    });
    let event = event.flatten().expect("the id of the message");
    let mut of_event = logs(&format!(" --event {event}"));
    of_event.sort();
    let said: Vec<&str> = of_event
        .iter()
        .map(|line| &line[line.len() - 9..])
        .collect();
    assert_eq!(said, ["it is bad", " took bad"], "{of_event:?}");
    assert_eq!(logs(" --event 99:99:-1"), Vec::<String>::new());

    let mut following = geminga()
        .args(["functions", "logs", "talk", "--follow"])
        .env("GEMINGA_ADMIN_URL", &server.admin_url)
        .env("GEMINGA_SERVICE_URL", &server.service_url)
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let lines = BufReader::new(following.stdout.take().expect("a pipe")).lines();
    let (say, said) = mpsc::channel();
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let _ = say.send(line);
        }
    });
    let next = || {
        let line = said.recv_timeout(Duration::from_secs(30));
        line.expect("it goes on")
    };
    let before: Vec<String> = all.iter().map(|_| next()).collect();
    assert_eq!(before, all);
    server.check("produce words -m later", 0);
    let later = next();
    assert!(later.ends_with(" INFO  took later"), "{later}");
    following.kill().expect("kills");
    following.wait().expect("ends");
}

#[test]
fn packages_go_from_a_file_and_into_one() {
    let server = Server::ephemeral();
    let directory = tempfile::tempdir().expect("a directory");
    let (large, back) = (
        directory.path().join("large.zip"),
        directory.path().join("back.zip"),
    );
    let content: Vec<u8> = (0..3_000_001_u32).flat_map(|n| n.to_le_bytes()).collect();
    std::fs::write(&large, &content).expect("writes");
    let name = "function://public/default/large@v1";
    server.check(
        &format!("packages upload {name} --path {}", large.display()),
        0,
    );
    server.check(
        &format!("packages download {name} --path {}", back.display()),
        0,
    );
    assert!(
        std::fs::read(&back).expect("there") == content,
        "other bytes came back"
    );
    let (_, said) = server.check(&format!("packages download {name} --path nowhere/x"), 1);
    assert!(
        said.contains("error[G0001]: `nowhere/x` cannot be written") && said.contains("help:"),
        "{said}"
    );
    let (_, said) = server.check(&format!("packages upload {name} --path nowhere"), 2);
    assert!(said.contains("`nowhere` cannot be read"), "{said}");
    let (_, said) = server.check(&format!("packages upload {name} --path ."), 1);
    assert!(said.contains("it is not a file"), "{said}");
}

#[test]
fn failures_say_what_to_type() {
    let server = Server::ephemeral();
    for (words, exit, says) in [
        (
            "topics stats nope",
            3,
            "`geminga topics list public/default` shows what there is",
        ),
        (
            "functions status nope",
            3,
            "error[G0202]: Function nope doesn't exist",
        ),
        ("namespaces create none/x", 3, "geminga tenants create none"),
        (
            "functions create --inputs a",
            2,
            "no code: give one of --sh",
        ),
        (
            "functions create --sh missing.sh --inputs a --name f",
            2,
            "error[G0401]",
        ),
        (
            "functions get --fqfn a/b",
            2,
            "not a name or tenant/namespace/name",
        ),
        (
            "functions localrun --sh x.sh --inputs a --use-tls",
            2,
            "give --broker-service-url pulsar+ssl://HOST:6651",
        ),
        (
            "functions create f --exec /bin/cat --inputs a --namespace none",
            3,
            "geminga namespaces create public/none",
        ),
        (
            "functions create f --exec /bin/cat --inputs a --parallelism 100000",
            1,
            "`parallelism` is at most 1000, it is 100000",
        ),
        (
            "functions create f --exec /bin/cat --inputs persistent://public/default/",
            1,
            "input topic `persistent://public/default/`: topic name is empty",
        ),
        (
            "functions create f --exec /bin/cat --inputs a --custom-runtime-options {\"mod\":1}",
            1,
            "did you mean `mode`?",
        ),
        (
            "functions create f --exec /bin/cat --inputs a --ram lots",
            2,
            "write it like `64MiB`",
        ),
        ("subscriptions reset words s", 2, "--to"),
        ("topics list a/b/c", 2, "b/c"),
    ] {
        let (_, err) = server.check(words, exit);
        assert!(err.contains(says), "geminga {words}\n{err}");
    }
    let output = geminga()
        .args(["topics", "list", "--admin-url", "http://127.0.0.1:1"])
        .output()
        .expect("runs");
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(6), "{err}");
    assert!(
        err.contains("start a server with `geminga standalone`"),
        "{err}"
    );
}
