use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;

/// A variable that Cargo sets for every test.
const VARIABLE: &str = "CARGO_PKG_NAME";

fn of(secrets: Value) -> Declared {
    let secrets: Secrets = serde_json::from_value(secrets).expect("secrets");
    declared(Some(&secrets))
}

fn listed(environment: &[&str], folders: &[&Path], commands: &[&[&str]]) -> SecretRules {
    let words = |all: &[&str]| all.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    SecretRules::listed(
        words(environment),
        folders.iter().map(|folder| folder.to_path_buf()).collect(),
        commands.iter().map(|command| words(command)).collect(),
    )
    .expect("rules")
}

async fn value(secret: Value) -> Result<String, String> {
    let rules = SecretRules::everything();
    let read = rules.read(&of(json!({ "token": secret }))).await?;
    Ok(read["token"].clone())
}

#[tokio::test]
async fn each_kind_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("written");
        json!({ "file": path })
    };
    let full = "x".repeat(64 << 10);
    for (secret, want) in [
        (json!("clear"), "clear"),
        (json!({"a": 1}), r#"{"a":1}"#),
        (json!({ "env": VARIABLE }), env!("CARGO_PKG_NAME")),
        (file("one", b"in a file\n"), "in a file"),
        (file("two", b"two\nlines\n\n"), "two\nlines\n"),
        (file("none", b""), ""),
        (file("windows", b"a\r\n"), "a\r"),
        (file("full", format!("{full}\n").as_bytes()), full.as_str()),
        (json!({"command": ["printf", "%s\n", "a b", "c"]}), "a b\nc"),
        (
            json!({"command": ["sh", "-c", "cat; echo said >&2; echo done"]}),
            "done",
        ),
        // What it leaves behind holds nobody up.
        (
            json!({"command": ["sh", "-c", "sleep 60 & echo done"]}),
            "done",
        ),
    ] {
        assert_eq!(value(secret.clone()).await.as_deref(), Ok(want), "{secret}");
    }
}

#[tokio::test]
async fn what_can_not_be_read_says_what_was_tried_and_why() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("large"), "x".repeat((64 << 10) + 1)).expect("written");
    std::fs::write(path("zero"), b"hunter2\0").expect("written");
    std::fs::write(path("binary"), b"hunter2\xff").expect("written");
    let pipe = rustix::fs::mknodat(
        rustix::fs::CWD,
        path("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    );
    pipe.expect("a pipe");
    let leak = "echo hunter2; echo was hunter2 >&2; exit 3";
    let flood = "while :; do echo hunter2hunter2hunter2; done";
    for (secret, want) in [
        (
            json!({"env": "GEMINGA_NO_SUCH"}),
            "`GEMINGA_NO_SUCH` of this worker is not set: set it",
        ),
        (json!({"file": path("absent")}), "No such file"),
        (json!({"file": folder.path()}), "is not a file"),
        (json!({"file": path("pipe")}), "is not a file"),
        (json!({"file": path("large")}), "larger than 64 KiB"),
        (json!({"file": path("zero")}), "a zero byte"),
        (json!({"file": path("binary")}), "is not UTF-8"),
        (
            json!({"command": ["/no/such"]}),
            "`[\"/no/such\"]` was not run: No such file",
        ),
        (
            json!({"command": ["sh", "-c", leak]}),
            "exit status: 3: mend it, it is tried again\nwas ******",
        ),
        (
            json!({"command": ["sh", "-c", flood]}),
            "larger than 64 KiB",
        ),
        (
            json!({"command": ["printf", "hunter\\0002"]}),
            "a zero byte",
        ),
    ] {
        let said = value(secret.clone()).await.expect_err(want);
        assert!(
            said.starts_with("the secret `token` can't be read: "),
            "{said}"
        );
        assert!(said.contains(want), "{secret}: {said}");
        let without_the_command = said.replace(leak, "").replace(flood, "");
        assert!(!without_the_command.contains("hunter2"), "{said}");
    }
}

#[tokio::test]
async fn a_command_that_hangs_ends_with_all_that_it_started() {
    let folder = tempfile::tempdir().expect("a folder");
    let pid = folder.path().join("pid");
    let script = format!(
        "sleep 600 & echo $! > {0}.new; mv {0}.new {0}; wait",
        pid.display()
    );
    let words: Vec<String> = ["sh", "-c", &script].map(str::to_owned).into();
    let lives = || {
        let pid = std::fs::read_to_string(&pid).expect("it began");
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        stat.is_ok_and(|stat| !stat.contains(") Z"))
    };
    let began = Instant::now();
    let said = read::command(&words, Duration::from_secs(3)).await;
    assert!(began.elapsed() < Duration::from_secs(30));
    let said = said.expect_err("it hangs");
    assert!(said.contains("was not done after 3 s"), "{said}");
    crate::runtime::contract::until("its child is gone", || !lives()).await;
    // So it does when nobody waits for it any more.
    std::fs::remove_file(&pid).expect("removed");
    let running = read::command(&words, Duration::from_secs(600));
    tokio::select! {
        _ = running => panic!("it hangs"),
        () = crate::runtime::contract::until("it began", || pid.exists()) => {}
    }
    crate::runtime::contract::until("its child is gone too", || !lives()).await;
}

#[tokio::test]
async fn nothing_is_read_that_is_not_listed() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    for name in ["allowed", "allowed/deep", "allowed-not"] {
        std::fs::create_dir(at(name)).expect("made");
    }
    for name in ["allowed/f", "allowed/deep/f", "allowed-not/f"] {
        std::fs::write(at(name), "hunter2").expect("written");
    }
    let link = |to: &str, name: &str| {
        std::os::unix::fs::symlink(at(to), at(name)).expect("linked");
    };
    link("allowed-not/f", "allowed/out");
    link("allowed-not", "allowed/outside");
    link("allowed/deep/f", "allowed/in");
    link("allowed", "other-way");
    let rules = listed(
        &["CARGO_PKG_*", "HOME"],
        &[&at("other-way"), &at("allowed")],
        &[&["printf", "a"]],
    );
    let file = |name: &str| json!({ "file": at(name) });
    for (secret, allowed) in [
        (json!("clear"), true),
        (json!({"env": "CARGO_PKG_NAME"}), true),
        (json!({"env": "HOME"}), true),
        (json!({"env": "HOMER"}), false),
        (json!({"env": "CARGO_PKG"}), false),
        (json!({"env": "PATH"}), false),
        (file("allowed/f"), true),
        (file("allowed/deep/f"), true),
        (file("allowed/in"), true),
        (file("other-way/f"), true),
        (file("allowed-not/f"), false),
        (file("allowed/out"), false),
        (file("allowed/outside/f"), false),
        (file("allowed/../allowed/f"), false),
        (file("allowed/../allowed-not/f"), false),
        (json!({"file": "/etc/passwd"}), false),
        (json!({"file": "/no/such"}), false),
        (json!({"command": ["printf", "a"]}), true),
        (json!({"command": ["printf"]}), false),
        (json!({"command": ["printf", "a", "b"]}), false),
        (json!({"command": ["/usr/bin/printf", "a"]}), false),
    ] {
        let declared = of(json!({ "token": secret }));
        // When it is registered, and when it is read: the list may have changed, or a link.
        let checked = rules.check(declared.clone()).await;
        assert_eq!(checked.is_ok(), allowed, "{secret}: {checked:?}");
        let read = rules.read(&declared).await;
        assert_eq!(read.is_ok(), allowed, "{secret}: {read:?}");
        let nothing = SecretRules::default().check(declared.clone()).await;
        assert_eq!(nothing.is_ok(), secret == json!("clear"), "{secret}");
        assert!(SecretRules::everything().check(declared).await.is_ok());
    }
    // The file may be on another worker: what is not here is not looked for.
    let absent = of(json!({"token": file("allowed/absent")}));
    assert!(rules.check(absent.clone()).await.is_ok());
    assert!(rules.read(&absent).await.is_err());
}

#[tokio::test]
async fn a_refusal_names_the_setting_and_what_to_add() {
    let secrets = of(json!({
        "a": {"env": "DB"}, "b": {"file": "/etc/db"}, "c": {"command": ["vault", "read"]}, "d": "clear",
    }));
    let said = SecretRules::default().check(secrets).await;
    let said = said.expect_err("nothing is listed");
    let wanted = [
        (
            "`secrets.a`: functions may not read the environment variable `DB`: the operator can add `DB` to \
             `gemingaSecretsFromEnvironment`",
            "(`geminga worker --secrets-from-environment`)",
        ),
        (
            "`secrets.b`: functions may not read `/etc/db`: the operator can add its folder to `gemingaSecretsFromFolders`",
            "(`geminga worker --secrets-from-folders`)",
        ),
        (
            "`secrets.c`: functions may not run `[\"vault\",\"read\"]` for a secret: the operator can add \
             `[\"vault\",\"read\"]` to `gemingaSecretsFromCommands`",
            "(`geminga worker --secrets-from-commands`)",
        ),
    ];
    assert_eq!(said.len(), wanted.len());
    for (said, (begin, end)) in said.iter().zip(wanted) {
        assert!(said.starts_with(begin) && said.ends_with(end), "{said}");
    }
}

#[test]
fn lists_that_mean_nothing_are_refused_by_their_names() {
    let words = |words: &[&str]| {
        words
            .iter()
            .map(|&word| word.to_owned())
            .collect::<Vec<_>>()
    };
    for name in ["", "A*B", "A=b", "**"] {
        let said = SecretRules::listed(words(&[name]), vec![], vec![]).expect_err(name);
        assert!(said.contains("gemingaSecretsFromEnvironment"), "{said}");
    }
    for folder in ["", "relative", "/a/../b"] {
        let said = SecretRules::listed(vec![], vec![folder.into()], vec![]).expect_err(folder);
        assert!(said.contains("gemingaSecretsFromFolders"), "{said}");
    }
    let said = SecretRules::listed(vec![], vec![], vec![vec![]]).expect_err("no program");
    assert!(said.contains("gemingaSecretsFromCommands"), "{said}");
    assert!(SecretRules::listed(words(&["*"]), vec!["/".into()], vec![words(&["a"])]).is_ok());
}

#[tokio::test]
async fn all_secrets_together_are_bounded() {
    let command = json!({"command": ["head", "-c", "65536", "/proc/self/exe"]});
    assert!(value(command).await.is_err(), "it is no text");
    let command = json!({"command": ["sh", "-c", "printf '%65536s' x"]});
    let many = |count: usize| {
        let each = (0..count).map(|n| (format!("s{n:02}"), command.clone()));
        of(Value::Object(each.collect()))
    };
    let rules = SecretRules::everything();
    assert_eq!(rules.read(&many(16)).await.expect("read").len(), 16);
    let said = rules.read(&many(17)).await.expect_err("too much");
    assert!(
        said.contains("`s16`") && said.contains("1048576 bytes"),
        "{said}"
    );
}

#[test]
fn values_are_not_shown() {
    let mut values = SecretValues::default();
    values.insert("token".to_owned(), "hunter2".to_owned());
    let spec = HostSpec {
        secrets: values,
        ..HostSpec::default()
    };
    let debug = format!("{spec:?}");
    assert!(
        debug.contains("\"token\"") && !debug.contains("hunter2"),
        "{debug}"
    );
}
