use proptest::prelude::*;

use super::*;

fn one(text: &str) -> Node {
    let mut all = parse(Path::new("t.yaml"), text).expect(text);
    assert_eq!(all.len(), 1, "{text}");
    all.remove(0)
}

fn failure(text: &str) -> String {
    parse(Path::new("t.yaml"), text)
        .expect_err(text)
        .to_string()
}

/// The tree without places, as JSON-like text.
fn show(node: &Node) -> String {
    match &node.value {
        Value::List(items) => {
            format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(","))
        }
        Value::Map(entries) => {
            let shown: Vec<_> = entries
                .iter()
                .map(|(key, value)| format!("{}:{}", key.text, show(value)))
                .collect();
            format!("{{{}}}", shown.join(","))
        }
        Value::Text(text) => format!("{text:?}"),
        other => format!("{other:?}"),
    }
}

#[test]
fn scalars() {
    for (text, want) in [
        ("a: 1", "{a:Int(1)}"),
        ("a: -7", "{a:Int(-7)}"),
        ("a: 0x1F", "{a:Int(31)}"),
        ("a: 18446744073709551615", "{a:Uint(18446744073709551615)}"),
        ("a: 1.5e3", "{a:Float(1500.0)}"),
        ("a: -.inf", "{a:Float(-inf)}"),
        ("a: .5", "{a:Float(0.5)}"),
        ("a: 1.2.3", "{a:\"1.2.3\"}"),
        ("a: 2018-02-07", "{a:\"2018-02-07\"}"),
        ("a: .", "{a:\".\"}"),
        ("a: infinity", "{a:\"infinity\"}"),
        ("a: '1'", "{a:\"1\"}"),
        ("a: !!str 1", "{a:\"1\"}"),
        ("a: yes", "{a:\"yes\"}"),
        ("a: ~", "{a:Null}"),
        ("a:", "{a:Null}"),
        ("a: |\n  x\n  y\n", "{a:\"x\\ny\\n\"}"),
        ("a: [x, {b: true}]", "{a:[\"x\",{b:Bool(true)}]}"),
        ("{\"a\": [\"\\u00e9\"]}", "{a:[\"é\"]}"),
    ] {
        assert_eq!(show(&one(text)), want, "{text}");
    }
}

#[test]
fn aliases_and_merge_keys() {
    let text = "base: &b {x: 1, y: 2}\nown: {<<: *b, y: 3}\nsame: *b\n";
    assert_eq!(
        show(&one(text)),
        "{base:{x:Int(1),y:Int(2)},own:{y:Int(3),x:Int(1)},same:{x:Int(1),y:Int(2)}}"
    );
}

#[test]
fn places() {
    let node = one("spec:\n  name: f\n  inputs:\n    - quakes\n    - b\n");
    let at = |path: &[&str]| {
        let mark = node.locate(path);
        (mark.line, mark.column)
    };
    assert_eq!(at(&["spec", "name"]), (2, 9));
    assert_eq!(at(&["spec", "inputs", "1"]), (5, 7));
    assert_eq!(at(&["spec", "inputs", "quakes"]), (4, 7));
    assert_eq!(at(&["spec", "inputs"]), (3, 3));
    assert_eq!(at(&["spec", "absent"]), (1, 1));
}

#[test]
fn documents() {
    let all = parse(Path::new("t"), "---\na: 1\n---\n# nothing\n---\nb: 2\n").expect("parses");
    assert_eq!(
        all.iter().map(show).collect::<Vec<_>>(),
        ["{a:Int(1)}", "Null", "{b:Int(2)}"]
    );
}

#[test]
fn what_is_wrong_and_where() {
    for (text, want) in [
        (
            "a: 1\na: 2\n",
            "error[G0304]: `a` is given twice\n  --> t.yaml:2:1",
        ),
        (
            "a: !secret x\n",
            "error[G0304]: tags (`!name`) have no meaning here\n  --> t.yaml:1:12",
        ),
        (
            "? [a]\n: b\n",
            "error[G0304]: a key must be text\n  --> t.yaml:1:3",
        ),
        ("a: *nope\n", "error[G0304]: not valid YAML: "),
        ("a: [1\n", "error[G0304]: not valid YAML: "),
        ("a: &x [*x]\n", "error[G0304]: "),
        (
            "<<: 1\n",
            "error[G0304]: `<<` takes a map or a list of maps\n  --> t.yaml:1:1",
        ),
    ] {
        let said = failure(text);
        assert!(said.starts_with(want), "{text}: {said}");
    }
}

#[test]
fn hostile_input_is_bounded() {
    // A billion laughs: each line ten times the one before.
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..20 {
        let uses = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb.push_str(&format!("a{level}: &a{level} [{uses}]\n"));
    }
    assert!(failure(&bomb).contains("more than 200000 values"));

    let long = format!(
        "a: &a \"{}\"\nb: [{}]\n",
        "x".repeat(1 << 20),
        vec!["*a"; 5000].join(",")
    );
    assert!(failure(&long).contains("more than 200000 values"));

    let inner = "x, ".repeat(20_000);
    let nested = format!("{}{inner}{}", "&n [".repeat(60), "]".repeat(60));
    assert!(failure(&nested).contains("more than 200000 values"));

    assert!(
        failure(&format!("{}1{}", "[".repeat(100), "]".repeat(100)))
            .contains("nested more than 64")
    );
    assert!(failure(&"[".repeat(100_000)).starts_with("error[G030"));
    assert!(failure(&"- ".repeat(5000)).starts_with("error[G030"));
    let deep: String = (0..200)
        .map(|depth| format!("{}k:\n", " ".repeat(depth)))
        .collect();
    assert!(failure(&deep).contains("nested"));
}

proptest! {
    #[test]
    fn no_text_panics(text in "[-a:\\[\\]{}&*!|>'\"%#@`,?\\n \\t0-9.~<é\u{0}]{0,200}") {
        let _ = parse(Path::new("t"), &text);
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(Path::new("t"), &String::from_utf8_lossy(&bytes));
    }
}
