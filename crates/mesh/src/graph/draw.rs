//! The graph as a drawing for a terminal: boxes under one another, topics on the lines between.
//!
//! What must hold: no line is wider than asked for (down to 24 columns), every component and every
//! topic is drawn, and a component with several inputs is drawn once and referred to after.

use super::Graph;

const WIDTH_MIN: usize = 24;

/// Draws the graph at most `width` columns wide.
pub fn draw(graph: &Graph, width: usize) -> String {
    let mut drawing = Drawing {
        graph,
        width: width.max(WIDTH_MIN),
        lines: Vec::new(),
        is_drawn: vec![false; graph.nodes.len()],
    };
    // What comes from outside first: external topics, then whatever reads nothing.
    for (index, topic) in graph.topics.iter().enumerate() {
        if topic.is_external() && !topic.readers.is_empty() {
            let what = if topic.is_pattern {
                "external topics"
            } else {
                "external topic"
            };
            drawing.line("", &format!("({what})"));
            drawing.topic(index, "");
        }
    }
    for node in 0..graph.nodes.len() {
        if graph.nodes[node].reads.is_empty() {
            drawing.node(node, "", "");
        }
    }
    // Only the nodes of a loop are left.
    for node in 0..graph.nodes.len() {
        if !drawing.is_drawn[node] {
            drawing.node(node, "", "");
        }
    }
    drawing.lines.join("\n")
}

struct Drawing<'a> {
    graph: &'a Graph,
    width: usize,
    lines: Vec<String>,
    is_drawn: Vec<bool>,
}

impl Drawing<'_> {
    fn line(&mut self, prefix: &str, text: &str) {
        self.lines.push(
            clip(&format!("{prefix}{text}"), self.width)
                .trim_end()
                .to_owned(),
        );
    }

    /// A component's box; `first` stands before its middle, `rest` before what follows.
    fn node(&mut self, node: usize, first: &str, rest: &str) {
        let about = &self.graph.nodes[node];
        let room = self.width.saturating_sub(columns(rest));
        if std::mem::replace(&mut self.is_drawn[node], true) {
            self.line(first, &format!("{} (drawn above)", about.name));
            return;
        }
        let label = format!("{} · {}", about.label, about.kind);
        if room < 16 {
            // No room for a box: the name alone.
            self.line(first, &format!("{} [{}]", about.name, about.label));
        } else {
            let inner = (columns(&about.name) + columns(&label) + 5).clamp(12, room - 2);
            let text = clip(&format!(" {}   {label} ", about.name), inner);
            let has_more = !about.writes.is_empty() || !about.side.is_empty();
            let tail = "─".repeat(inner - 2);
            let corner = if has_more { "┬" } else { "─" };
            self.line(rest, &format!("╭{}╮", "─".repeat(inner)));
            self.line(
                first,
                &format!("│{text}{}│", " ".repeat(inner - columns(&text))),
            );
            self.line(rest, &format!("╰─{corner}{tail}╯"));
        }
        let inside = format!("{rest}  ");
        for (at, &topic) in about.side.iter().enumerate() {
            let is_last = about.writes.is_empty() && at + 1 == about.side.len();
            let branch = if is_last {
                "└┄┄▷ "
            } else {
                "├┄┄▷ "
            };
            self.line(
                &inside,
                &format!("{branch}{}", self.graph.topics[topic].name),
            );
        }
        for &topic in &about.writes {
            self.topic(topic, &inside);
        }
    }

    /// A topic's name on the line, and below it who reads it.
    fn topic(&mut self, topic: usize, inside: &str) {
        let about = &self.graph.topics[topic];
        let name = about.name.clone();
        let readers = about.readers.clone();
        if readers.is_empty() {
            self.line(inside, &format!("└──▷ {name}"));
            return;
        }
        self.line(inside, &format!("│ {name}"));
        for (at, &reader) in readers.iter().enumerate() {
            let is_last = at + 1 == readers.len();
            let (branch, bar) = if is_last {
                ("└──▶ ", "     ")
            } else {
                ("├──▶ ", "│    ")
            };
            // The arrow meets the middle of the box, the line passes its top.
            self.reader(reader, inside, branch, bar);
        }
    }

    fn reader(&mut self, reader: usize, inside: &str, branch: &str, bar: &str) {
        let top = self.lines.len();
        let rest = format!("{inside}{bar}");
        self.node(reader, &format!("{inside}{branch}"), &rest);
        // Above the arrow of the last reader the line still runs.
        if bar.starts_with(' ')
            && let Some(line) = self.lines.get_mut(top)
            && line.contains('╭')
        {
            let at: usize = inside.chars().count();
            *line = line
                .chars()
                .enumerate()
                .map(|(i, c)| if i == at { '│' } else { c })
                .collect();
        }
    }
}

/// Columns on the screen. Wide scripts count two.
fn columns(text: &str) -> usize {
    text.chars().map(char_columns).sum()
}

fn char_columns(c: char) -> usize {
    let wide = matches!(u32::from(c), 0x1100..=0x115f | 0x2e80..=0xa4cf | 0xac00..=0xd7a3 | 0xf900..=0xfaff | 0xfe30..=0xfe6f | 0xff00..=0xff60 | 0x1f300..=0x1faff | 0x20000..=0x3fffd);
    if c.is_control() {
        0
    } else {
        1 + usize::from(wide)
    }
}

/// `text` cut to `width` columns, with a sign that something is missing.
fn clip(text: &str, width: usize) -> String {
    if columns(text) <= width {
        return text.to_owned();
    }
    let mut kept = String::new();
    let mut used = 0;
    for c in text.chars() {
        if used + char_columns(c) + 1 > width {
            break;
        }
        used += char_columns(c);
        kept.push(c);
    }
    kept.push('…');
    kept
}
