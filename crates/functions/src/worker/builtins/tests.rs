use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::DeflateEncoder;
use proptest::prelude::*;
use serde_json::json;

use super::*;

/// A zip archive of these files, as `jar` writes them; stored when `packs` is not set.
fn zip(files: &[(&str, &[u8])], packs: bool) -> Vec<u8> {
    let (mut out, mut table) = (Vec::new(), Vec::new());
    for (name, content) in files {
        let packed = match packs {
            true => {
                let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
                encoder.write_all(content).expect("packed");
                encoder.finish().expect("packed")
            }
            false => content.to_vec(),
        };
        let from = out.len() as u32;
        let method: u16 = if packs { 8 } else { 0 };
        let mut sizes = Vec::new();
        sizes.extend(0u32.to_le_bytes());
        sizes.extend((packed.len() as u32).to_le_bytes());
        sizes.extend((content.len() as u32).to_le_bytes());
        sizes.extend((name.len() as u16).to_le_bytes());
        // An extra field, which has another length in the table.
        let head = |signature: &[u8], versions: usize| {
            let mut head = signature.to_vec();
            head.extend([20, 0].repeat(versions));
            head.extend([0, 0]);
            head.extend(method.to_le_bytes());
            head.extend([0; 4]);
            head.extend(&sizes);
            head
        };
        out.extend(head(b"PK\x03\x04", 1));
        out.extend(4u16.to_le_bytes());
        out.extend(name.as_bytes());
        out.extend([0xFE, 0xCA, 0, 0]);
        out.extend(&packed);
        table.extend(head(b"PK\x01\x02", 2));
        table.extend([0; 12]);
        table.extend(from.to_le_bytes());
        table.extend(name.as_bytes());
    }
    let (from, bytes) = (out.len() as u32, table.len() as u32);
    out.extend(table);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend([(files.len() as u16).to_le_bytes(); 2].concat());
    out.extend(bytes.to_le_bytes());
    out.extend(from.to_le_bytes());
    out.extend(2u16.to_le_bytes());
    out.extend(b"hi");
    out
}

fn read(bytes: &[u8], name: &str, max: u64) -> Result<Option<Vec<u8>>, String> {
    let mut file = tempfile::tempfile().expect("temporary");
    file.write_all(bytes).expect("written");
    archive::entry(&file, bytes.len() as u64, name, max)
}

#[test]
fn a_file_of_an_archive_is_found_and_bounded() {
    let long = "z".repeat(5000);
    let files: &[(&str, &[u8])] = &[("a/b", b"first"), (ABOUT, long.as_bytes()), ("c", b"")];
    for packs in [false, true] {
        let archive = zip(files, packs);
        assert_eq!(read(&archive, "a/b", 100), Ok(Some(b"first".to_vec())));
        assert_eq!(
            read(&archive, ABOUT, 5000),
            Ok(Some(long.clone().into_bytes()))
        );
        assert_eq!(read(&archive, "c", 100), Ok(Some(Vec::new())));
        assert_eq!(read(&archive, "d", 100), Ok(None));
        let refused = read(&archive, ABOUT, 4999).expect_err("too large");
        assert!(refused.contains("4999 bytes"), "{refused}");
        for cut in [1, 10, archive.len() / 2] {
            assert!(
                read(&archive[..archive.len() - cut], "c", 9).is_err(),
                "{cut}"
            );
        }
    }
    assert!(read(b"", "c", 9).is_err());
    assert!(read(b"no archive at all", "c", 9).is_err());
}

#[test]
fn whether_an_archive_has_a_file_is_told_without_reading_it() {
    let holds = |bytes: &[u8], name: &str| {
        let mut file = tempfile::tempfile().expect("temporary");
        file.write_all(bytes).expect("written");
        archive::holds(&file, bytes.len() as u64, name)
    };
    // What a file contains is no name.
    let archive = zip(&[("a/b", b"c/d"), ("e", b"")], false);
    assert_eq!(holds(&archive, "a/b"), Ok(true));
    assert_eq!(holds(&archive, "c/d"), Ok(false));
    assert_eq!(holds(&archive, "a"), Ok(false));
    assert!(holds(b"no archive", "a").is_err());
}

/// One that says that it is small, and is not.
#[test]
fn what_unpacks_to_more_than_it_says_is_refused() {
    let mut archive = zip(&[("bomb", &[b'a'; 100_000])], true);
    let row = archive
        .windows(4)
        .rposition(|four| four == b"PK\x01\x02")
        .expect("there");
    archive[row + 24..row + 28].copy_from_slice(&10u32.to_le_bytes());
    assert!(read(&archive, "bomb", 1000).is_err());
    assert!(read(&archive, "bomb", 1_000_000).is_err());
}

proptest! {
    #[test]
    fn any_archive_is_read_or_refused(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        packs in any::<bool>(),
    ) {
        let mut archive = zip(&[("a", b"1"), (ABOUT, b"name: x"), ("b", b"2")], packs);
        for (at, byte) in changes {
            let at = at.index(archive.len());
            archive[at] = byte;
        }
        if let Ok(Some(content)) = read(&archive, ABOUT, 64) {
            prop_assert!(content.len() <= 64);
        }
    }
}

fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("temporary");
    for (name, content) in files {
        std::fs::write(folder.path().join(name), content).expect("written");
    }
    folder
}

fn broken(builtins: &Builtins) -> Vec<(String, String)> {
    let all = builtins.broken.iter();
    all.map(|broken| (broken.file.clone(), broken.reason.clone()))
        .collect()
}

#[test]
fn a_folder_holds_packages_of_pulsars_and_code_with_a_file_beside_it() {
    let about =
        b"name: enrich\ndescription: adds a field\nfunctionClass: my.Enrich\nsinkClass: my.Sink\n";
    let nar = zip(&[("META-INF/MANIFEST.MF", b"x"), (ABOUT, about)], true);
    let folder = folder(&[
        ("enrich.nar", &nar),
        ("plain.jar", b"whatever a jar is"),
        ("plain.yaml", b"functionClass: my.Plain\nfile: plain.jar\n"),
        (
            "shout.yml",
            b"name: loud\ndescription: in capitals\nfile: shout.sh\n",
        ),
        ("shout.sh", b"process() { emit x; }"),
        ("count.yaml", b"className: count.Count\nfile: count.py\n"),
        ("count.py", b""),
        ("program.yaml", b"file: program\nruntime: GO\n"),
        ("program", b""),
        (".hidden.yaml", b"no"),
        ("README", b"no"),
    ]);
    let read = Builtins::read(folder.path());
    assert_eq!(broken(&read), []);
    let found: Vec<_> = read
        .functions
        .values()
        .map(|it| {
            (
                it.definition.name.as_str(),
                it.definition.function_class.as_str(),
                it.runtime,
            )
        })
        .collect();
    let expected = [
        ("count", "count.Count", Runtime::Python),
        ("enrich", "my.Enrich", Runtime::Java),
        ("loud", "", Runtime::Bash),
        ("plain", "my.Plain", Runtime::Java),
        ("program", "", Runtime::Go),
    ];
    assert_eq!(found, expected);
    let shown = serde_json::to_value(&read.functions["enrich"].definition).expect("JSON");
    let pulsars =
        json!({"name": "enrich", "description": "adds a field", "functionClass": "my.Enrich"});
    assert_eq!(shown, pulsars);
    assert!(
        Builtins::read(&folder.path().join("none"))
            .broken
            .is_empty()
    );
    let is_a_file = Builtins::read(&folder.path().join("README"));
    assert!(
        is_a_file.broken[0].reason.contains("can not be read"),
        "{is_a_file:?}"
    );
}

#[test]
fn what_is_broken_is_named_and_disturbs_no_other() {
    let outside = folder(&[("secret.sh", b"x")]);
    let of_a_sink = zip(&[(ABOUT, b"name: x\nsinkClass: my.Sink\n")], false);
    let large = vec![b'#'; 70_000];
    let twice = zip(&[(ABOUT, b"name: good\nfunctionClass: a.B\n")], true);
    let folder = folder(&[
        ("good.yaml", b"file: good.sh"),
        ("good.sh", b"x"),
        ("a-cut.nar", b"PK\x03\x04 and no more"),
        ("b-sink.nar", &of_a_sink),
        ("c-empty.jar", &zip(&[("x", b"")], true)),
        ("d-large.yaml", &large),
        ("e-field.yaml", b"file: good.sh\nfunctionclass: x\n"),
        ("f-name.yaml", b"name: a/b\nfile: good.sh\n"),
        ("g-none.yaml", b"file: nothing.sh\n"),
        ("h-out.yaml", b"file: ../../../../../../etc/hosts\n"),
        ("i-ending.yaml", b"file: program\n"),
        ("program", b""),
        ("j-class.yaml", b"file: c-empty.jar\n"),
        ("k-runtime.yaml", b"file: good.sh\nruntime: PERL\n"),
        ("twice.nar", &twice),
        ("z-bytes.yaml", b"file: \xff\n"),
    ]);
    let link = |name: &str, to: &Path| {
        std::os::unix::fs::symlink(to, folder.path().join(name)).expect("linked");
    };
    link("l-link.nar", &outside.path().join("secret.sh"));
    link("m-linked.sh", &outside.path().join("secret.sh"));
    std::fs::write(folder.path().join("m-link.yaml"), "file: m-linked.sh").expect("written");
    link("n-loop.yaml", Path::new("n-loop.yaml"));
    std::fs::create_dir(folder.path().join("o-folder.yaml")).expect("made");
    let read = Builtins::read(folder.path());
    assert_eq!(read.functions.keys().collect::<Vec<_>>(), ["good"]);
    let expected = [
        ("a-cut.nar", "no zip archive"),
        ("b-sink.nar", "names no `functionClass`"),
        ("c-empty.jar", "has no `META-INF/services/pulsar-io.yaml`"),
        ("d-large.yaml", "more than 65536 bytes"),
        ("e-field.yaml", "functionclass"),
        ("f-name.yaml", "`name`"),
        ("g-none.yaml", "`nothing.sh` can not be read"),
        ("h-out.yaml", "outside of the folder"),
        ("i-ending.yaml", "add `runtime: GO`"),
        ("j-class.yaml", "`functionClass` is missing"),
        ("k-runtime.yaml", "PERL"),
        ("l-link.nar", "outside of the folder"),
        ("m-link.yaml", "outside of the folder"),
        ("n-loop.yaml", "can not be read"),
        ("o-folder.yaml", "is no file"),
        ("twice.nar", "`good.sh` is named `good` too"),
        ("z-bytes.yaml", "can not be read"),
    ];
    let mut found = broken(&read);
    found.sort();
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for ((file, reason), (name, part)) in found.iter().zip(expected) {
        assert!(
            file == name && reason.contains(part),
            "{name}: {file}: {reason}"
        );
        assert!(!reason.contains('\n'), "{reason}");
    }
}

#[test]
fn so_many_files_are_no_folder_of_functions() {
    let folder = tempfile::tempdir().expect("temporary");
    for n in 0..=FILES_MAX {
        std::fs::write(folder.path().join(format!("{n}.txt")), "").expect("written");
    }
    let read = Builtins::read(folder.path());
    assert!(
        read.broken[0].reason.contains("more than 1000 files"),
        "{read:?}"
    );
}

#[test]
fn each_of_pulsars_ways_to_name_one_is_understood() {
    let named = |text: serde_json::Value| {
        let mut config: FunctionConfig = serde_json::from_value(text).expect("a config");
        let found = super::named(&mut config)?;
        Ok::<_, String>((found, config))
    };
    for (given, runtime) in [
        (json!({"functionType": "x"}), None),
        (json!({"jar": "builtin://x"}), None),
        // As `pulsar-admin` sends it.
        (
            json!({"jar": "builtin://x", "functionType": "x", "runtime": "JAVA"}),
            None,
        ),
        (json!({"py": "builtin://x", "runtime": "PYTHON"}), None),
        (
            json!({"functionType": "x", "runtime": "GO"}),
            Some(Runtime::Go),
        ),
    ] {
        let (found, config) = named(given).expect("understood");
        assert_eq!(found.as_deref(), Some("x"));
        assert_eq!(config.function_type.as_deref(), Some("x"));
        assert_eq!((config.code(), config.runtime), (None, runtime));
    }
    let (found, config) = named(json!({"sh": "f.sh"})).expect("understood");
    assert_eq!((found, config.sh.as_deref()), (None, Some("f.sh")));
    for given in [
        json!({"functionType": "x", "jar": "builtin://y"}),
        json!({"functionType": "x", "sh": "f.sh"}),
    ] {
        let said = named(given.clone()).expect_err("refused");
        assert!(said.contains("give one"), "{given}: {said}");
    }
}

#[test]
fn an_unknown_name_is_told_with_the_known_ones() {
    let folder = folder(&[
        ("shout.yaml", b"file: f.sh"),
        ("whisper.yaml", b"file: f.sh"),
        ("f.sh", b""),
    ]);
    let read = Builtins::read(folder.path());
    let said = read.get("shuot").expect_err("unknown");
    let expected = "Built-in function 'shuot' is not available; did you mean 'shout'?; there are: shout, whisper";
    assert_eq!(said, expected);
    let said = Builtins::default().get("shout").expect_err("unknown");
    assert!(said.contains("`functionsDirectory` has none"), "{said}");
}
