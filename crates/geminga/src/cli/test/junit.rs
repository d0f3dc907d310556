//! Results as JUnit's XML, which CI servers read.

use std::time::Duration;

use super::Ran;

/// The whole file.
pub(super) fn report(all: &[Ran]) -> String {
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let failed = all.iter().filter(|ran| ran.wrong.is_some()).count();
    let took = all.iter().map(|ran| ran.took).sum();
    text.push_str(&format!(
        "<testsuites tests=\"{}\" failures=\"{failed}\" time=\"{}\">\n",
        all.len(),
        seconds(took)
    ));
    let mut rest = all;
    while let Some(first) = rest.first() {
        let many = rest.iter().take_while(|ran| ran.file == first.file).count();
        let (suite, after) = rest.split_at(many);
        rest = after;
        let failed = suite.iter().filter(|ran| ran.wrong.is_some()).count();
        let took = suite.iter().map(|ran| ran.took).sum();
        let name = escaped(&first.file.display().to_string());
        text.push_str(&format!(
            "  <testsuite name=\"{name}\" tests=\"{many}\" failures=\"{failed}\" errors=\"0\" skipped=\"0\" \
             time=\"{}\">\n",
            seconds(took)
        ));
        for ran in suite {
            text.push_str(&format!(
                "    <testcase classname=\"{name}\" name=\"{}\" file=\"{name}\" line=\"{}\" time=\"{}\"",
                escaped(&ran.name),
                ran.line,
                seconds(ran.took)
            ));
            match &ran.wrong {
                None => text.push_str("/>\n"),
                Some(wrong) => text.push_str(&format!(
                    ">\n      <failure message=\"{}\">{}</failure>\n    </testcase>\n",
                    escaped(wrong.summary()),
                    escaped(wrong.text())
                )),
            }
        }
        text.push_str("  </testsuite>\n");
    }
    text.push_str("</testsuites>\n");
    text
}

fn seconds(took: Duration) -> String {
    format!("{:.3}", took.as_secs_f64())
}

/// Text as XML; characters that XML does not have are shown as `?`.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(c),
            c if u32::from(c) < 0x20 || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('?'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::Wrong;
    use super::*;

    #[test]
    fn results_are_well_formed() {
        let ran = |name: &str, wrong: Option<Wrong>| Ran {
            file: "a/f.test.yaml".into(),
            name: name.into(),
            line: 3,
            took: Duration::from_millis(12),
            wrong,
        };
        let text = report(&[
            ran("good", None),
            ran("a < \"b\"", Some(Wrong::Differs("-<x>\n+&\u{1}\n".into()))),
        ]);
        assert!(
            text.contains("<testsuites tests=\"2\" failures=\"1\" time=\"0.024\">"),
            "{text}"
        );
        assert!(text.contains("name=\"a &lt; &quot;b&quot;\""), "{text}");
        assert!(text.contains("-&lt;x&gt;\n+&amp;?\n</failure>"), "{text}");
        assert!(
            text.contains("name=\"good\" file=\"a/f.test.yaml\" line=\"3\" time=\"0.012\"/>"),
            "{text}"
        );
    }
}
