//! The object commands against `geminga standalone`: what they print, and how they fail.

use crate::server::Server;
use crate::{geminga, text};

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
            "--use-tls cannot be honoured",
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
