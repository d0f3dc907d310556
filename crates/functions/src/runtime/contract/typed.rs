//! Inputs and outputs with types, as each language has them; and the forms of functions.

use super::*;

async fn answers(kind: Kind, code: &str, name: &str, cases: &[(&str, Option<&str>)]) {
    let (directory, spec) = function(code, name);
    let mut f = start_spec(kind, directory, spec).await.expect("starts");
    for (given, wanted) in cases {
        let outcome = f.ask(given.as_bytes()).await;
        match wanted {
            Some(wanted) => {
                assert_eq!(
                    payloads(&outcome),
                    [wanted.as_bytes()],
                    "{code}\n{given}: {outcome:?}"
                );
            }
            // It can never be read.
            None => assert_eq!(failure(&outcome).kind, FailureKind::Data, "{code}\n{given}"),
        }
    }
    f.stop().await;
}

fn go(function: &str) -> String {
    format!(
        "package main\n\nimport \"github.com/apache/pulsar/pulsar-function-go/pf\"\n\n\
         type point struct {{ X, Y int; Name string `json:\"name\"` }}\n\nfunc main() {{ pf.Start({function}) }}\n"
    )
}

#[tokio::test]
async fn go_functions_take_text_numbers_and_objects() {
    for (code, cases) in [
        (
            "func(n int) (int, error) { return n * 2, nil }",
            &[("21", Some("42")), ("x", None)][..],
        ),
        (
            "func(s string) (string, error) { return s + \"!\", nil }",
            &[("ä", Some("ä!"))],
        ),
        (
            "func(p point) (*point, error) { p.X++; return &p, nil }",
            &[
                (r#"{"X":1,"name":"a"}"#, Some(r#"{"X":2,"Y":0,"name":"a"}"#)),
                ("[", None),
            ],
        ),
    ] {
        answers(Kind::Go, &go(code), "f.go", cases).await;
    }
}

/// What a function of each legal form does is told by what it prints.
#[tokio::test]
async fn go_functions_have_all_legal_forms_and_no_other() {
    let forms = [
        "func() { println(\"called\") }",
        "func() error { println(\"called\"); return nil }",
        "func() ([]byte, error) { println(\"called\"); return []byte(\"out\"), nil }",
        "func(in []byte) error { println(\"called\"); return nil }",
        "func(in []byte) ([]byte, error) { println(\"called\"); return []byte(\"out\"), nil }",
        "func(ctx context.Context) error { println(\"called\"); return nil }",
        "func(ctx context.Context) ([]byte, error) { println(\"called\"); return []byte(\"out\"), nil }",
        "func(ctx context.Context, in []byte) error { println(\"called\"); return nil }",
        "func(ctx context.Context, in []byte) ([]byte, error) { println(\"called\"); return []byte(\"out\"), nil }",
    ];
    let wrong = [
        ("3", "is no function"),
        (
            "func(a, b []byte) error { return nil }",
            "the first of two arguments is context.Context",
        ),
        (
            "func() (int, int, error) { return 0, 0, nil }",
            "it returns 3 values",
        ),
        (
            "func() int { return 0 }",
            "the last result is error, not int",
        ),
        (
            "func(in chan int) error { return nil }",
            "an input can not be chan int",
        ),
        ("func(in ...[]byte) error { return nil }", "it is variadic"),
    ];
    // One program for all: building is what costs.
    let cases: String = forms
        .iter()
        .chain(wrong.iter().map(|(form, _)| form))
        .enumerate()
        .map(|(number, form)| format!("\tcase \"{number}\":\n\t\tpf.Start({form})\n"))
        .collect();
    let code = format!(
        "package main\n\nimport (\n\t\"context\"\n\t\"fmt\"\n\n\
         \t\"github.com/apache/pulsar/pulsar-function-go/pf\"\n)\n\nvar _ context.Context\n\n\
         func main() {{\n\tswitch fmt.Sprint(pf.GetUserConfValue(\"form\")) {{\n{cases}\t}}\n}}\n"
    );
    for number in 0..forms.len() + wrong.len() {
        let (directory, mut spec) = function(&code, "f.go");
        spec.user_config.insert("form".into(), number.into());
        let started = start_spec(Kind::Go, directory, spec).await;
        if let Some((form, why)) = number.checked_sub(forms.len()).map(|at| wrong[at]) {
            let said = started.err().expect(form).to_string();
            assert!(said.contains(why), "{form}: {said}");
            continue;
        }
        let mut f = started.expect(forms[number]);
        let outcome = f.ask(b"in").await;
        assert_eq!(outcome.verdict, Verdict::Done, "{}", forms[number]);
        let gives = forms[number].contains("([]byte, error)");
        assert_eq!(
            payloads(&outcome).len(),
            usize::from(gives),
            "{}",
            forms[number]
        );
        f.until("called", |seen| {
            seen.logs.lock().iter().any(|line| line.text == "called")
        })
        .await;
        f.stop().await;
    }
}

/// Pulsar's client in a function: its types alone, where they are enough; else the client itself is built in.
#[tokio::test]
async fn go_functions_may_name_pulsars_client() {
    for (imports, body) in [
        (
            "\"github.com/apache/pulsar-client-go/pulsar\"",
            "fc, _ := pf.FromContext(ctx)\n\
             _, err := fc.NewOutputMessage(\"other\").Send(ctx, &pulsar.ProducerMessage{Payload: in, Key: \"k\"})\n\
             return in, err",
        ),
        (
            "\"github.com/apache/pulsar-client-go/pulsar\"",
            "if len(in) > 1000 {\n client, err := pulsar.NewClient(pulsar.ClientOptions{URL: \"pulsar://127.0.0.1:1\"})\n\
             if err != nil { return nil, err }\n client.Close()\n }\n return in, nil",
        ),
    ] {
        let code = format!(
            "package main\n\nimport (\n\t\"context\"\n\t{imports}\n\
             \t\"github.com/apache/pulsar/pulsar-function-go/pf\"\n)\n\n\
             func process(ctx context.Context, in []byte) ([]byte, error) {{\n{body}\n}}\n\n\
             func main() {{ pf.Start(process) }}\n"
        );
        let (directory, spec) = function(&code, "f.go");
        let mut f = start_spec(Kind::Go, directory, spec)
            .await
            .unwrap_or_else(|broken| panic!("{broken:?}"));
        let outcome = f.ask(b"in").await;
        assert_eq!(outcome.outputs[0].payload[..], b"in"[..], "{outcome:?}");
        if body.contains("Send") {
            let sent = &outcome.outputs[1];
            assert_eq!(
                (sent.topic.as_deref(), sent.key.as_deref()),
                (Some("other"), Some("k"))
            );
        }
        f.stop().await;
    }
}

#[tokio::test]
async fn java_functions_take_text_numbers_and_objects() {
    for (types, body, cases) in [
        (
            "Integer, Integer",
            "public Integer apply(Integer n) { return n * 2; }",
            &[("21", Some("42")), ("x", None), ("3000000000", None)][..],
        ),
        (
            "Long, Double",
            "public Double apply(Long n) { return n / 2.0; }",
            &[("3000000001", Some("1500000000.5".to_owned().leak() as &str))],
        ),
        (
            "F.Point, F.Point",
            "public static class Point { int x; String name; List<Long> all; }\n\
             public Point apply(Point p) { p.x++; return p; }",
            &[
                (
                    r#"{"x":1,"name":"a\"ä","all":[1,2]}"#,
                    Some(r#"{"x":2,"name":"a\"ä","all":[1,2]}"#),
                ),
                ("[", None),
            ],
        ),
        (
            "Map<String, Object>, List<String>",
            "public List<String> apply(Map<String, Object> m) { return new ArrayList<>(m.keySet()); }",
            &[(
                r#"{"a":1,"b":[true,null,{"c":-1.5}]}"#,
                Some(r#"["a","b"]"#),
            )],
        ),
        (
            "String, CompletableFuture<String>",
            "public CompletableFuture<String> apply(String in) {\n\
             return CompletableFuture.supplyAsync(() -> in + \"!\"); }",
            &[("later", Some("later!"))],
        ),
    ] {
        let code = format!(
            "import java.util.*;\nimport java.util.concurrent.*;\n\
             public class F implements java.util.function.Function<{types}> {{\n{body}\n}}\n"
        );
        // 1500000000.5 is printed as Java prints it.
        let cases: Vec<(&str, Option<&str>)> = cases
            .iter()
            .map(|(given, wanted)| {
                (
                    *given,
                    wanted.map(|w| {
                        if w == "1500000000.5" {
                            "1.5000000005E9"
                        } else {
                            w
                        }
                    }),
                )
            })
            .collect();
        answers(Kind::Java, &code, "F.java", &cases).await;
    }
}

#[tokio::test]
async fn java_types_of_the_configuration_are_those_of_the_class() {
    let code = "public class F implements java.util.function.Function<String, Integer> {\n\
                public Integer apply(String in) { return in.length(); } }\n";
    let (directory, mut spec) = function(code, "F.java");
    spec.input_type = Some("java.lang.String".into());
    spec.output_type = Some("java.lang.Integer".into());
    let mut f = start_spec(Kind::Java, directory, spec)
        .await
        .expect("starts");
    assert_eq!(payloads(&f.ask(b"four").await), [b"4"]);
    f.stop().await;
    let (directory, mut spec) = function(code, "F.java");
    spec.output_type = Some("java.lang.Long".into());
    let said = start_spec(Kind::Java, directory, spec)
        .await
        .err()
        .expect("refused");
    assert!(
        said.to_string()
            .contains("`outputTypeClassName` is java.lang.Long"),
        "{said}"
    );
}
