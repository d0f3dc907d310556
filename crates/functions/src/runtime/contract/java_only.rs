//! What Java functions have beyond the others: futures, SerDe classes, schemas, records, NAR packages.

use super::*;

async fn java(code: &str, change: impl Fn(&mut HostSpec)) -> Started {
    let (directory, mut spec) = function(code, "F.java");
    spec.inputs = vec!["persistent://public/default/in".into()];
    change(&mut spec);
    start_spec(Kind::Java, directory, spec)
        .await
        .unwrap_or_else(|broken| panic!("{broken:?}\n{code}"))
}

/// What the JDK's tool makes of what is in a folder.
fn jar(how: &str, file: &std::path::Path, folder: &std::path::Path, what: &str) {
    let tool = std::process::Command::new(crate::runtime::java::tool("jar"))
        .arg(how)
        .arg(file)
        .arg("-C")
        .arg(folder)
        .arg(what)
        .status();
    assert!(tool.expect("a JDK is installed").success());
}

/// Two messages in hand: the later one ends first, and one fails. Each keeps its own state and record.
#[tokio::test]
async fn state_of_a_future_belongs_to_its_message() {
    let mut f = java(
        r#"import org.apache.pulsar.functions.api.*;
import java.util.concurrent.*;
public class F implements Function<String, CompletableFuture<String>> {
    static final CountDownLatch SECOND = new CountDownLatch(1);
    public CompletableFuture<String> process(String in, Context context) {
        context.incrCounter("begun-" + in, 1);
        return CompletableFuture.supplyAsync(() -> {
            try {
                if (in.equals("first")) SECOND.await(20, TimeUnit.SECONDS);
                context.incrCounter("done-" + in, 1);
                context.publish("side", in);
                if (in.equals("second")) throw new IllegalStateException("no luck");
                return in + " " + context.getCurrentRecord().getValue();
            } catch (InterruptedException error) {
                throw new CompletionException(error);
            } finally {
                if (in.equals("second")) SECOND.countDown();
            }
        });
    }
}
"#,
        |_| {},
    )
    .await;
    f.send(text(b"first")).await;
    f.send(text(b"second")).await;
    let all = f.outcomes(2).await;
    assert_eq!(
        payloads(&all[0]),
        [&b"first first"[..], b"first"],
        "{all:?}"
    );
    assert_eq!(failure(&all[1]).kind, FailureKind::User, "{all:?}");
    let keys: Vec<String> = f.seen.state.lock().keys().cloned().collect();
    assert_eq!(keys, ["begun-first", "done-first"]);
    f.stop().await;
}

#[tokio::test]
async fn serde_classes_read_and_write() {
    let code = r#"
import org.apache.pulsar.functions.api.*;
public class F implements Function<F.Pair, F.Pair> {
    static class Pair { String a, b; }
    public static class Comma implements SerDe<Pair> {
        public Pair deserialize(byte[] bytes) {
            String[] parts = new String(bytes).split(",");
            if (parts.length != 2) throw new IllegalArgumentException("no comma");
            Pair pair = new Pair();
            pair.a = parts[0];
            pair.b = parts[1];
            return pair;
        }
        public byte[] serialize(Pair pair) { return (pair.a + "," + pair.b).getBytes(); }
    }
    public Pair process(Pair in, Context context) {
        Pair out = new Pair();
        out.a = in.b;
        out.b = in.a;
        context.publish("other", in, "F$Comma");
        return out;
    }
}
"#;
    let mut f = java(code, |spec| {
        let topic = spec.inputs[0].clone();
        spec.input_serdes.insert(topic, "F$Comma".into());
        spec.output_serde = Some("F$Comma".into());
    })
    .await;
    assert_eq!(payloads(&f.ask(b"x,y").await), [b"y,x", b"x,y"]);
    let refused = f.ask(b"x").await;
    assert_eq!(failure(&refused).kind, FailureKind::Data);
    assert!(failure(&refused).reason.contains("no comma"), "{refused:?}");
    f.stop().await;
    let (directory, mut spec) = function(code, "F.java");
    spec.output_serde = Some("F$Pair".into());
    let said = start_spec(Kind::Java, directory, spec)
        .await
        .err()
        .expect("refused");
    assert!(said.to_string().contains("does not implement"), "{said}");
}

/// What one function writes by a schema another reads by it: Pulsar's own client encodes both.
#[tokio::test]
async fn schemas_follow_the_type_of_the_class() {
    for (schema, is_json) in [("avro", false), ("JSON", true)] {
        let point = "public static class Point { public int x; public String name; }";
        let mut writer = java(
            &format!(
                "public class F implements java.util.function.Function<String, F.Point> {{ {point}\n\
                 public Point apply(String in) {{ Point p = new Point(); p.x = in.length(); p.name = in; return p; }} }}\n"
            ),
            |spec| spec.output_schema = Some(schema.into()),
        )
        .await;
        let mut reader = java(
            &format!(
                "public class F implements java.util.function.Function<F.Point, String> {{ {point}\n\
                 public String apply(Point p) {{ return p.name + p.x; }} }}\n"
            ),
            |spec| {
                let topic = spec.inputs[0].clone();
                spec.input_schemas.insert(topic, schema.into());
            },
        )
        .await;
        let written = writer.ask("größe".as_bytes()).await;
        let payload = payloads(&written)[0].to_vec();
        assert_eq!(payload.starts_with(b"{"), is_json, "{payload:?}");
        assert_eq!(payloads(&reader.ask(&payload).await), ["größe5".as_bytes()]);
        assert_eq!(failure(&reader.ask(b"\xff").await).kind, FailureKind::Data);
        writer.stop().await;
        reader.stop().await;
    }
}

#[tokio::test]
async fn the_record_that_is_returned_keeps_its_schema_and_its_type() {
    let mut f = java(
        r#"import org.apache.pulsar.functions.api.*;
import org.apache.pulsar.client.api.Schema;
import java.util.*;
public class F implements Function<String, Record<Long>> {
    public Record<Long> process(String in, Context context) throws Exception {
        ((org.apache.pulsar.functions.api.state.CounterStateStore) context.getStateStore("f")).incrCounter("n", 2);
        return context.newOutputRecordBuilder(Schema.INT64).value((long) in.length()).key("k")
                .properties(Map.of("p", "v")).destinationTopic("other").build();
    }
}
"#,
        // The values of the records are what the configuration speaks of.
        |spec| spec.output_type = Some("java.lang.Long".into()),
    )
    .await;
    let outcome = f.ask(b"four").await;
    let output = &outcome.outputs[0];
    assert_eq!(output.payload[..], 4_i64.to_be_bytes());
    assert_eq!(
        (output.key.as_deref(), output.topic.as_deref()),
        (Some("k"), Some("other"))
    );
    let long = Schema::of(geminga_client::SchemaType::Int64);
    assert_eq!(output.schema.as_deref(), Some(&long));
    // The class says what comes in, and nothing of what goes out.
    let topic = SchemaOf::Input("persistent://public/default/in".into());
    assert_eq!(*f.seen.declared.lock(), [(topic, Schema::string())]);
    assert_eq!(outcome.state, [StateChange::Increment("n".into(), 2)]);
    f.stop().await;
}

/// A NAR: jars in a folder of the package, the class named by a file in it.
#[tokio::test]
async fn a_nar_names_its_class() {
    let (directory, spec) = function(
        "package deep; public class F implements java.util.function.Function<String, String> {\n\
         public String apply(String in) { return in + \"!\"; } }\n",
        "F.java",
    );
    let root = directory.path().join("nar");
    let bundled = root.join("META-INF/bundled-dependencies");
    let services = root.join("META-INF/services");
    std::fs::create_dir_all(&bundled).expect("made");
    std::fs::create_dir_all(&services).expect("made");
    std::fs::copy(&spec.code.path, bundled.join("f.jar")).expect("copied");
    let about = "name: f\ndescription: x\nfunctionClass: deep.F\n";
    std::fs::write(services.join("pulsar-io.yaml"), about).expect("written");
    let nar = directory.path().join("f.nar");
    jar("cf", &nar, &root, ".");
    let spec = HostSpec {
        code: Code {
            path: nar,
            class_name: None,
        },
        ..spec
    };
    let mut f = start_spec(Kind::Java, directory, spec)
        .await
        .expect("starts");
    assert_eq!(payloads(&f.ask(b"a").await), [b"a!"]);
    f.stop().await;
}

/// A NAR of 10 MB may unpack to 10 GB, and say that it does not.
#[tokio::test]
async fn a_nar_does_not_fill_the_disk() {
    let directory = tempfile::tempdir().expect("temporary");
    let root = directory.path().join("nar");
    std::fs::create_dir_all(&root).expect("made");
    std::fs::write(root.join("large"), vec![b'x'; 0x0003_0d40]).expect("written");
    // Of each run its own: what was unpacked once is kept.
    let seed = format!("{:?}", std::time::SystemTime::now());
    std::fs::write(root.join("small"), seed).expect("written");
    let nar = directory.path().join("f.nar");
    jar("cfM", &nar, &root, ".");
    // The size of the large one, as the list at the end has it, and a lie.
    let mut bytes = std::fs::read(&nar).expect("read");
    let size = 0x0003_0d40_u32.to_le_bytes();
    let at = bytes.windows(4).rposition(|window| window == size);
    let at = at.expect("its size");
    bytes[at..at + 4].copy_from_slice(&10_u32.to_le_bytes());
    let liar = directory.path().join("liar.nar");
    std::fs::write(&liar, &bytes).expect("written");
    let refused = |nar: PathBuf, files: u64, bytes: u64| async move {
        let unpacked = super::java::unpacked(&nar, files, bytes).await;
        let Err(Broken::Deployment {
            reason,
            stderr_tail,
        }) = unpacked
        else {
            panic!("taken: {unpacked:?}")
        };
        format!("{reason} {stderr_tail}")
    };
    // One entry, and fifty folders.
    let deep = directory.path().join("deep");
    let inside = ["d"; 50].join("/");
    std::fs::create_dir_all(deep.join(&inside)).expect("made");
    std::fs::write(deep.join(&inside).join("f"), "").expect("written");
    let folders = directory.path().join("folders.nar");
    jar("cfM", &folders, &deep, &format!("{inside}/f"));
    for (nar, files, bytes) in [
        (&folders, 20, 100_000),
        (&nar, 100, 100_000),
        (&liar, 100, 100_000),
        (&nar, 1, 1 << 30),
    ] {
        let said = refused(nar.clone(), files, bytes).await;
        let expected =
            format!("it unpacks to more than {files} files and folders or {bytes} bytes");
        assert!(said.contains(&expected), "{said}");
    }
    let kept = super::java::unpacked(&nar, 100, 1 << 30).await;
    let kept = kept.expect("within the bounds");
    assert_eq!(
        std::fs::metadata(kept.join("large")).expect("there").len(),
        200_000
    );
    std::fs::remove_dir_all(kept).expect("removed");
}

/// What is asked for, published, counted and logged without a message in hand counts too.
#[tokio::test]
async fn initialize_and_close_are_heard() {
    let mut f = java(
        r#"import org.apache.pulsar.client.api.Schema;
import org.apache.pulsar.functions.api.*;
public class F implements Function<String, String> {
    private Context context;
    private int seen;
    private void says(String when) throws Exception {
        context.incrCounter(when, 1 + context.getCounter("before"));
        context.newOutputMessage("side", Schema.STRING).value(when + " " + seen).send();
        context.recordMetric(when, 1);
        context.getLogger().info("it " + when);
    }
    public void initialize(Context given) throws Exception { context = given; says("begins"); }
    public String process(String in, Context context) { seen++; return in; }
    public void close() throws Exception {
        // Longer than a host that reads no more is waited for.
        Thread.sleep(700);
        says("ends");
    }
}
"#,
        |_| {},
    )
    .await;
    let seen = f.seen.clone();
    let counted = |key: &str| seen.state.lock().get(key).cloned();
    assert_eq!(counted("begins"), Some(super::counted(None, 1)));
    for message in ["a", "b"] {
        assert_eq!(
            payloads(&f.ask(message.as_bytes()).await),
            [message.as_bytes()]
        );
    }
    f.stop().await;
    assert_eq!(counted("ends"), Some(super::counted(None, 1)));
    let published: Vec<_> = seen
        .published
        .lock()
        .iter()
        .map(|o| o.payload.clone())
        .collect();
    assert_eq!(published, [&b"begins 0"[..], b"ends 2"]);
    let metrics: Vec<String> = seen
        .metrics
        .lock()
        .iter()
        .map(|(name, _)| name.clone())
        .collect();
    assert_eq!(metrics, ["begins", "ends"]);
    let logs = seen.logs.lock();
    for line in ["it begins", "it ends"] {
        assert!(
            logs.iter()
                .any(|log| log.text == line && log.message_id.is_none()),
            "{logs:?}"
        );
    }
}

/// What every book says to do with an interruption ends neither the host nor a question.
#[tokio::test]
async fn a_restored_interruption_ends_nothing() {
    let mut f = java(
        r#"import org.apache.pulsar.functions.api.*;
public class F implements Function<String, String> {
    public String process(String in, Context context) {
        boolean before = Thread.currentThread().isInterrupted();
        Thread.currentThread().interrupt();
        context.incrCounter("n", 1);
        long n = context.getCounter("n");
        return in + " " + n + " " + before + " " + Thread.currentThread().isInterrupted();
    }
}
"#,
        |_| {},
    )
    .await;
    for (n, message) in ["a", "b", "c"].iter().enumerate() {
        let wanted = format!("{message} {} false true", n + 1);
        assert_eq!(
            payloads(&f.ask(message.as_bytes()).await),
            [wanted.as_bytes()]
        );
    }
    assert_eq!(*f.seen.restarts.lock(), [""; 0]);
    f.stop().await;
}
