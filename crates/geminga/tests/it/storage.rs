//! `geminga storage`: damage in the middle of the data, from the refusal to the repaired server.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::server::Server;
use crate::{geminga, text};

const MESSAGES: usize = 40;

/// A data directory with messages on two topics, a subscription and a function, after `kill -9`.
fn filled(directory: &Path) -> PathBuf {
    let data = directory.join("data");
    let script = directory.join("loud.sh");
    std::fs::write(&script, "process() { emit \"${MSG^^}\"; }\n").expect("writes");
    let server = Server::on(&data);
    server.check("topics create words", 0);
    server.check("subscriptions create words audit --at earliest", 0);
    for number in 0..MESSAGES {
        // One command each, so that each message is an entry and a commit of its own.
        let message = format!("produce words -m word-{number:04}");
        server.check(&message, 0);
        if number == 10 {
            server.check("subscriptions skip words audit --count 5", 0);
        }
    }
    server.check("produce others -m one -m two", 0);
    let script = script.display();
    server.check(
        &format!("functions create --sh {script} --inputs in --output shouts"),
        0,
    );
    server.kill();
    data
}

/// Flips a bit of the first place in the log that holds `what`.
fn damage(data: &Path, what: &str) -> PathBuf {
    for entry in std::fs::read_dir(data).expect("lists") {
        let path = entry.expect("an entry").path();
        if !path.is_file() {
            continue;
        }
        let content = std::fs::read(&path).expect("reads");
        let found = content
            .windows(what.len())
            .position(|bytes| bytes == what.as_bytes());
        if let Some(at) = found {
            let file = std::fs::File::options().write(true).open(&path);
            let flipped = [content[at] ^ 1];
            file.and_then(|file| file.write_all_at(&flipped, at as u64))
                .expect("writes");
            return path;
        }
    }
    panic!("`{what}` is nowhere in {}", data.display());
}

fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let ran = geminga().args(args).output().expect("runs");
    (ran.status.code(), text(&ran.stdout), text(&ran.stderr))
}

#[test]
fn damage_is_refused_repaired_and_the_rest_is_read_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let data = filled(directory.path());
    let shown = data.display().to_string();
    let (code, out, err) = run(&["storage", "check", "--data", &shown, "-o", "json"]);
    assert_eq!(code, Some(0), "{err}");
    let whole: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(whole["isWhole"], true);

    let file = damage(&data, "word-0020");
    let start = |data: &str| {
        run(&[
            "standalone",
            "--data",
            data,
            "--port",
            "0",
            "--http-port",
            "0",
        ])
    };
    let (code, out, err) = start(&shown);
    assert_eq!((code, &*out), (Some(1), ""), "{err}");
    let into = format!("{shown}.repaired");
    let command = format!("geminga storage repair --data {shown} --into {into}");
    for says in [
        "error[G0105]: the data is damaged",
        &format!("--> {}", file.display()),
        "at offset ",
        &command,
    ] {
        assert!(err.contains(says), "{says}: {err}");
    }
    assert_eq!(err.matches("error[").count(), 1, "{err}");

    let (code, out, err) = run(&["storage", "check", "--data", &shown, "-o", "json"]);
    assert_eq!(code, Some(8), "{err}");
    let checked: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(checked["damage"][0]["file"], file.display().to_string());
    assert!(err.contains(&command), "{err}");
    assert!(!Path::new(&into).exists(), "a check writes nothing");

    let before: Vec<u8> = std::fs::read(&file).expect("reads");
    let (code, out, err) = run(&["storage", "repair", "--data", &shown, "--into", &into]);
    assert_eq!(code, Some(8), "{out}{err}");
    assert!(out.contains("persistent://public/default/words"), "{out}");
    assert!(err.contains("1 entries are lost"), "{err}");
    assert!(
        err.contains(&format!("geminga standalone --data {into}")),
        "{err}"
    );
    assert_eq!(std::fs::read(&file).expect("reads"), before);

    let server = Server::on(Path::new(&into));
    let read = |topic: &str, count: usize| {
        let (out, _) = server.check(&format!("consume {topic} --from earliest -n {count}"), 0);
        out.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let left: Vec<String> = (0..MESSAGES)
        .filter(|number| *number != 20)
        .map(|number| format!("word-{number:04}"))
        .collect();
    assert_eq!(read("words", MESSAGES - 1), left);
    assert_eq!(read("others", 2), ["one", "two"]);
    // The subscription is where it was: five were skipped.
    let (out, _) = server.check("subscriptions list words -o json", 0);
    assert!(out.contains(&format!("{}", MESSAGES - 1 - 5)), "{out}");
    // So is the function, with its code.
    let (out, _) = server.check("functions trigger loud --trigger-value hello", 0);
    assert_eq!(out, "HELLO\n");
    server.check("produce words -m after", 0);
    assert_eq!(
        read("words", MESSAGES).last().map(String::as_str),
        Some("after")
    );
}

#[test]
fn what_cannot_be_repaired_is_told_by_one_error() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).display().to_string();
    let data = path("data");
    let server = Server::on(Path::new(&data));
    std::fs::create_dir(path("other")).expect("makes");
    std::fs::write(path("other") + "/notes.txt", "mine").expect("writes");
    let inside = path("data/copy");
    for (from, into, exit, says) in [
        (&data, &path("into"), 4, "error[G0102]"),
        (
            &path("none"),
            &path("into"),
            1,
            "there is no data directory",
        ),
        (
            &path("other"),
            &path("into"),
            1,
            "is not a data directory of Geminga",
        ),
        (&data, &inside, 2, "is inside of the damaged directory"),
    ] {
        let (code, out, err) = run(&["storage", "repair", "--data", from, "--into", into]);
        assert_eq!((code, &*out), (Some(exit), ""), "{err}");
        assert!(err.contains(says) && err.contains("help:"), "{err}");
        assert_eq!(err.matches("error[").count(), 1, "{err}");
    }
    server.kill();
    let (code, _, err) = run(&[
        "storage",
        "repair",
        "--data",
        &data,
        "--into",
        &path("other"),
    ]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("is not empty"), "{err}");
    assert_eq!(
        std::fs::read(path("other") + "/notes.txt").expect("reads"),
        b"mine"
    );
    let (code, _, err) = run(&[
        "storage",
        "repair",
        "--data",
        &data,
        "--into",
        &path("copy"),
    ]);
    assert_eq!(code, Some(0), "{err}");
}
