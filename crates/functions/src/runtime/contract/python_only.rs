//! Python packages: zip, wheel, folder, and an environment made of a lock.

use super::*;

/// Makes files in a directory by Python, since its library writes zips.
fn make(directory: &std::path::Path, script: &str) {
    let made = std::process::Command::new("python3")
        .args(["-c", script])
        .current_dir(directory)
        .output()
        .expect("python3 runs");
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{said}");
}

/// A wheel `greet` with one function, and a lock that names it by its hash.
const WHEEL: &str = r#"
import base64, hashlib, os, zipfile
def wheel(folder, word):
    os.makedirs(folder, exist_ok=True)
    files = {
        "greet.py": "def greet(name): return '%s ' + name\n" % word,
        "greet-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: greet\nVersion: 1.0\n",
        "greet-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += "%s,sha256=%s,%d\n" % (name, digest, len(text))
    files["greet-1.0.dist-info/RECORD"] = record + "greet-1.0.dist-info/RECORD,,\n"
    path = folder + "/greet-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as out:
        for name, text in files.items():
            out.writestr(zipfile.ZipInfo(name), text)
    return hashlib.sha256(open(path, "rb").read()).hexdigest()
def function(path):
    open(path, "w").write("import greet\ndef process(input): return greet.greet(input)\n")
"#;

async fn start(directory: tempfile::TempDir, code: &str) -> Result<Started, Broken> {
    let spec = HostSpec {
        tenant: "public".into(),
        namespace: "default".into(),
        name: "f".into(),
        instances: 1,
        code: Code {
            path: directory.path().join(code),
            class_name: Some("f".into()),
        },
        ..HostSpec::default()
    };
    start_spec(Kind::Python, directory, spec).await
}

#[tokio::test]
async fn a_zip_brings_its_wheels() {
    let directory = tempfile::tempdir().expect("a directory");
    let script = format!(
        "{WHEEL}
wheel('func/deps', 'zip')
os.makedirs('func/src')
function('func/src/f.py')
open('func/requirements.txt', 'w').write('greet\\n')
with zipfile.ZipFile('func.zip', 'w') as out:
    for name in ('func/deps/greet-1.0-py3-none-any.whl', 'func/src/f.py', 'func/requirements.txt'):
        out.write(name)
"
    );
    make(directory.path(), &script);
    let mut f = start(directory, "func.zip").await.expect("starts");
    assert_eq!(payloads(&f.ask(b"you").await), [b"zip you"]);
    f.stop().await;
}

#[tokio::test]
async fn a_lock_is_installed_once_and_exactly() {
    for (hash, word) in [(true, "locked"), (false, "other")] {
        let directory = tempfile::tempdir().expect("a directory");
        let script = format!(
            "{WHEEL}
digest = wheel('package/wheels', {word:?})
function('package/f.py')
digest = digest if {hash} else '0' * 64
open('package/requirements.lock', 'w').write(
    '--no-index\\n--find-links wheels\\ngreet==1.0 --hash=sha256:' + digest + '\\n')
",
            hash = if hash { "True" } else { "False" }
        );
        make(directory.path(), &script);
        let started = start(directory, "package").await;
        if !hash {
            let said = started.err().expect("refused");
            let Broken::Deployment { stderr_tail, .. } = said else {
                panic!("{said:?}")
            };
            assert!(stderr_tail.contains("requirements.lock"), "{stderr_tail}");
            continue;
        }
        let mut f = started.expect("starts");
        assert_eq!(payloads(&f.ask(b"you").await), [b"locked you"]);
        f.stop().await;
    }
}

/// An archive of sources is built by its own code, and by packages that no lock names.
#[tokio::test]
async fn a_lock_builds_nothing() {
    for lines in [
        "greet==1.0 --hash=sha256:%s",
        "--no-binary :all:\\ngreet==1.0 --hash=sha256:%s",
        "--prefer-binary --no-bin :all:\\ngreet==1.0 --hash=sha256:%s",
        "./wheels/greet-1.0.tar.gz --hash=sha256:%s",
        "greet @ file:wheels/greet-1.0.tar.gz --hash=sha256:%s",
        // Ends of lines, and an encoding, that pip sees.
        "# x\\x0c--no-binary greet\\ngreet==1.0 --hash=sha256:%s",
        "greet==1.0 --hash=sha256:%s # x\\u2028--no-binary greet",
        "# -*- coding: utf-7 -*-\\n# +AAo---no-binary greet\\ngreet==1.0 --hash=sha256:%s",
        // A comment that the next line belongs to.
        "greet==1.0 --hash=sha256:%s \\\\\\n # x \\\\\\n --no-binary greet",
    ] {
        let directory = tempfile::tempdir().expect("a directory");
        let script = format!(
            "import hashlib, io, os, tarfile
os.makedirs('package/wheels')
open('package/f.py', 'w').write('')
files = {{
    'pyproject.toml': '[build-system]\\nrequires = []\\nbuild-backend = \"b\"\\nbackend-path = [\".\"]\\n',
    'b.py': 'open(' + repr(os.path.abspath('ran')) + ', \"w\").close()\\n',
    'PKG-INFO': 'Metadata-Version: 2.1\\nName: greet\\nVersion: 1.0\\n',
}}
path = 'package/wheels/greet-1.0.tar.gz'
with tarfile.open(path, 'w:gz') as out:
    for name, text in files.items():
        entry = tarfile.TarInfo('greet-1.0/' + name)
        entry.size = len(text)
        out.addfile(entry, io.BytesIO(text.encode()))
digest = hashlib.sha256(open(path, 'rb').read()).hexdigest()
lines = '{lines}' % digest + '\\n--no-index\\n--find-links wheels\\n'
open('package/requirements.lock', 'w', encoding='utf-8').write(lines)
"
        );
        make(directory.path(), &script);
        let ran = directory.path().join("ran");
        let kept = directory.path().to_owned();
        let started = start(directory, "package").await;
        assert!(!ran.exists(), "{lines}: it was built in {}", kept.display());
        let Broken::Deployment { stderr_tail, .. } = started.err().expect("refused") else {
            panic!("{lines}")
        };
        assert!(stderr_tail.contains("requirements.lock"), "{stderr_tail}");
    }
}

#[tokio::test]
async fn what_is_not_locked_or_leads_out_is_refused() {
    for (script, why) in [
        (
            "import os\nos.mkdir('package')\nopen('package/f.py', 'w').write('')\n\
             open('package/requirements.txt', 'w').write('greet\\n')",
            "geminga lock",
        ),
        (
            "import zipfile\nwith zipfile.ZipFile('package', 'w') as out: out.writestr('../f.py', '')\n\
             import os; os.rename('package', 'package.zip')",
            "leads out of it",
        ),
    ] {
        let directory = tempfile::tempdir().expect("a directory");
        make(directory.path(), script);
        let zip = directory.path().join("package.zip").exists();
        let started = start(directory, if zip { "package.zip" } else { "package" }).await;
        let Broken::Deployment { stderr_tail, .. } = started.err().expect("refused") else {
            panic!("{why}")
        };
        assert!(stderr_tail.contains(why), "{stderr_tail}");
    }
}

/// Apache's Python examples are on no package registry. These are ours, in the same shapes: native and with the SDK,
/// user configuration, context, publishing, logging, state, metrics, SerDe classes.
#[tokio::test]
async fn functions_in_the_shapes_of_pulsars_examples_run() {
    let cases: &[(&str, &str, &str, &[&str])] = &[
        (
            "native exclamation",
            "f",
            "def process(input):\n    return input + '!'\n",
            &["hello!"],
        ),
        (
            "exclamation",
            "f.ExclamationFunction",
            "from pulsar import Function\nclass ExclamationFunction(Function):\n    def __init__(self): pass\n    \
             def process(self, input, context): return input + '!'\n",
            &["hello!"],
        ),
        (
            "user configuration",
            "f.F",
            "from pulsar import Function\nclass F(Function):\n    def process(self, input, context):\n        \
             if context.get_user_config_value('missing') is not None: return 'wrong'\n        \
             return context.get_user_config_value('word') + str(len(context.get_user_config_map()))\n",
            &["configured2"],
        ),
        (
            "context",
            "f.F",
            "from pulsar import Function\nclass F(Function):\n    def process(self, input, context):\n        \
             c = context\n        c.get_logger().info('in %s', c.get_current_message_topic_name())\n        \
             return '/'.join([c.get_function_tenant(), c.get_function_namespace(), c.get_function_name(), \
             str(c.get_instance_id()), c.get_function_version(), ','.join(c.get_input_topics()), \
             c.get_output_topic(), c.get_message_key(), c.get_message_properties()['p'], \
             str(c.get_message_eventtime()), str(c.get_partition_key())])\n",
            &[
                "public/default/f/0/7/persistent://public/default/in/persistent://public/default/out/k/v/9/k",
            ],
        ),
        (
            "publish",
            "f.F",
            "from pulsar import Function\nclass F(Function):\n    def process(self, input, context):\n        \
             done = []\n        context.publish('other', input + '?', properties={'a': 'b'}, \
             message_conf={'partition_key': 'x', 'event_timestamp': 5}, callback=lambda *a: done.append(a))\n        \
             return str(len(done))\n",
            &["1", "hello?"],
        ),
        (
            "word count",
            "f.F",
            "from pulsar import Function\nclass F(Function):\n    def process(self, input, context):\n        \
             for word in (input + ' hello').split(): context.incr_counter(word, 1)\n        \
             return '%s=%d' % (input, context.get_counter(input))\n",
            &["hello=2"],
        ),
        (
            "state",
            "f.F",
            "from pulsar import Function\nclass F(Function):\n    def process(self, input, context):\n        \
             before = context.get_state('k')\n        context.put_state('k', input)\n        \
             context.del_counter('gone')\n        context.record_metric('m', 2)\n        \
             return '%s %s' % (before, context.get_state('k').decode())\n",
            &["None hello"],
        ),
    ];
    for (what, class, code, outputs) in cases {
        let (directory, mut spec) = function(code, "f.py");
        spec.code.class_name = Some((*class).to_owned());
        spec.version = "7".into();
        spec.inputs = vec!["persistent://public/default/in".into()];
        spec.output = Some("persistent://public/default/out".into());
        spec.user_config.insert("word".into(), "configured".into());
        spec.user_config.insert("n".into(), 3.into());
        let started = start_spec(Kind::Python, directory, spec).await;
        let mut f = started.unwrap_or_else(|broken| panic!("{what}: {broken:?}"));
        f.send(Message {
            key: Some("k".into()),
            properties: vec![("p".into(), "v".into())],
            event_time: 9,
            ..text(b"hello")
        })
        .await;
        let outcome = f.outcomes(1).await.remove(0);
        let got: Vec<_> = payloads(&outcome)
            .iter()
            .map(|payload| String::from_utf8_lossy(payload).into_owned())
            .collect();
        assert_eq!(got, *outputs, "{what}: {outcome:?}");
        if *what == "publish" {
            let other = &outcome.outputs[1];
            assert_eq!(
                (other.key.as_deref(), other.event_time),
                (Some("x"), Some(5))
            );
        }
        f.stop().await;
    }
}

#[tokio::test]
async fn serde_classes_of_the_package_read_and_write() {
    let (directory, mut spec) = function(
        "from pulsar import Function, SerDe\n\
         class Pair(SerDe):\n    \
             def serialize(self, input): return ('%s,%s' % input).encode()\n    \
             def deserialize(self, input_bytes):\n        \
                 a, b = input_bytes.decode().split(',')\n        return (a, b)\n\
         class F(Function):\n    def process(self, input, context): return (input[1], input[0])\n",
        "f.py",
    );
    spec.code.class_name = Some("f.F".into());
    let topic = "persistent://public/default/in".to_owned();
    spec.input_serdes.insert(topic, "f.Pair".into());
    spec.output_serde = Some("f.Pair".into());
    let mut f = start_spec(Kind::Python, directory, spec)
        .await
        .expect("starts");
    assert_eq!(payloads(&f.ask(b"x,y").await), [b"y,x"]);
    f.stop().await;
}

/// Answers for one thread's question were thrown away by another's, which then waited for ever.
#[tokio::test]
async fn threads_may_ask_for_state() {
    let (directory, mut spec) = function(
        "import threading, time\n\
         from concurrent.futures import ThreadPoolExecutor\n\
         beside = []\n\
         def background(context):\n\
         \x20   for _ in range(200):\n\
         \x20       beside.append(context.get_state('k7'))\n\
         \x20       time.sleep(0.001)\n\
         def process(input, context):\n\
         \x20   if input == 'begin':\n\
         \x20       threading.Thread(target=background, args=(context,)).start()\n\
         \x20       return 'begun'\n\
         \x20   if input == 'end':\n\
         \x20       while len(beside) < 200: time.sleep(0.001)\n\
         \x20       return ' '.join(sorted({v.decode() for v in beside}))\n\
         \x20   with ThreadPoolExecutor(4) as pool:\n\
         \x20       values = pool.map(context.get_state, ['k%d' % i for i in range(40)])\n\
         \x20   return ' '.join(v.decode() if v else '-' for v in values)\n",
        "f.py",
    );
    spec.options.timeout_ms = 10_000;
    let mut f = start_spec(Kind::Python, directory, spec)
        .await
        .expect("starts");
    let expected: Vec<String> = (0..40)
        .map(|key| {
            if key % 3 == 0 {
                return "-".to_owned();
            }
            let mut state = f.seen.state.lock();
            state.insert(format!("k{key}"), format!("v{key}").into());
            format!("v{key}")
        })
        .collect();
    let expected = expected.join(" ");
    assert_eq!(payloads(&f.ask(b"begin").await), [b"begun"]);
    for _ in 0..20 {
        assert_eq!(payloads(&f.ask(b"pool").await), [expected.as_bytes()]);
    }
    // While a thread asks, the loop waits for messages.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(payloads(&f.ask(b"end").await), [b"v7"]);
    f.stop().await;
}

/// A thread's publication came between the count of a message's outputs and the outputs, or was thrown away.
#[tokio::test]
async fn threads_may_publish_while_messages_are_in_hand() {
    const COUNT: usize = 20_000;
    let (directory, mut spec) = function(
        "import sys, threading\n\
         sys.setswitchinterval(1e-6)\n\
         done = []\n\
         def background(context):\n\
         \x20   for n in range(20000): context.publish('side', str(n))\n\
         \x20   done.append(True)\n\
         def process(input, context):\n\
         \x20   if input == 'begin':\n\
         \x20       threading.Thread(target=background, args=(context,)).start()\n\
         \x20   if input == 'end':\n\
         \x20       while not done: pass\n\
         \x20   return input\n",
        "f.py",
    );
    spec.options.timeout_ms = 10_000;
    let mut f = start_spec(Kind::Python, directory, spec)
        .await
        .expect("starts");
    let mut got: Vec<Bytes> = Vec::new();
    let mut asked = vec!["begin".to_owned()];
    asked.extend((0..3000).map(|n| format!("m{n}")));
    asked.push("end".to_owned());
    for chunk in asked.chunks(100) {
        for message in chunk {
            f.send(text(message.as_bytes())).await;
        }
        for outcome in f.outcomes(chunk.len()).await {
            assert_eq!(outcome.verdict, Verdict::Done, "{:?}", outcome.verdict);
            let (own, side): (Vec<_>, Vec<_>) =
                outcome.outputs.into_iter().partition(|o| o.topic.is_none());
            assert_eq!(own.len(), 1);
            got.extend(side.into_iter().map(|o| o.payload));
        }
    }
    let seen = f.seen.clone();
    f.stop().await;
    assert_eq!(*seen.restarts.lock(), [""; 0]);
    got.extend(seen.published.lock().drain(..).map(|o| o.payload));
    let number = |payload: &Bytes| String::from_utf8_lossy(payload).parse::<usize>();
    let mut numbers: Vec<usize> = got.iter().map(|p| number(p).expect("a number")).collect();
    numbers.sort_unstable();
    assert!(
        numbers.iter().copied().eq(0..COUNT),
        "{} of {COUNT}",
        numbers.len()
    );
}

/// Values as Pulsar's types have them, and classes that bring their own.
#[tokio::test]
async fn schemas_read_and_write_and_are_declared() {
    let code = "class Word:\n    pass\n\
        class Info:\n    def __init__(self, name): self.own = name\n    def schema_type(self): return 'SchemaType.AVRO'\n    \
        def name(self): return self.own\n    def schema(self): return '{}'\n\
        class Own:\n    def __init__(self, record): self.record = record\n    \
        def encode(self, value): return b'<%d>' % value\n    def decode(self, data): return data.decode() + '!'\n    \
        def schema_info(self): return Info(self.record.__name__)\n\
        def process(input):\n    return len(input) if isinstance(input, str) else input + 1\n";
    for (schema, output, payload, wanted) in [
        (
            "int64",
            "int16",
            &7_i64.to_be_bytes()[..],
            &8_i16.to_be_bytes()[..],
        ),
        ("boolean", "double", &[1], &2_f64.to_be_bytes()),
        ("f.Own", "f.Own", b"abc", b"<4>"),
        ("auto_consume", "auto_publish", b"7", b"8"),
    ] {
        let (directory, mut spec) = function(code, "f.py");
        let topic = "persistent://public/default/in".to_owned();
        spec.inputs = vec![topic.clone()];
        spec.input_schemas.insert(topic.clone(), schema.into());
        spec.output_schema = Some(output.into());
        spec.input_type = Some("f.Word".into());
        spec.output_type = Some("f.Word".into());
        let started = start_spec(Kind::Python, directory, spec).await;
        let mut f = started.unwrap_or_else(|broken| panic!("{schema}: {broken:?}"));
        let mut message = text(payload);
        message.topic = topic.as_str().into();
        f.send(message).await;
        let outcome = f.outcomes(1).await.remove(0);
        assert_eq!(payloads(&outcome), [wanted], "{schema}");
        let declared = f.seen.declared.lock().clone();
        if schema == "f.Own" {
            let own = Schema::new(geminga_client::SchemaType::Avro, "Word", "{}", []);
            let both = [
                (SchemaOf::Input(topic), own.clone()),
                (SchemaOf::Output, own),
            ];
            assert_eq!(declared, both);
        } else {
            assert_eq!(declared, []);
        }
        f.stop().await;
    }
}
