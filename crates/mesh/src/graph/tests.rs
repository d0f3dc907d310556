use proptest::prelude::*;

use super::*;

/// A graph of functions that read and write topics by number.
fn of(functions: &[(Vec<u8>, Option<u8>)]) -> Graph {
    let text: Vec<String> = functions
        .iter()
        .enumerate()
        .map(|(index, (reads, writes))| {
            let reads: Vec<String> = reads.iter().map(|topic| format!("t{topic}")).collect();
            let output = writes
                .map(|topic| format!("output: t{topic}\n"))
                .unwrap_or_default();
            format!(
                "name: f{index}\nsh: f.sh\ninputs: [{}]\n{output}",
                reads.join(", ")
            )
        })
        .collect();
    let path = std::path::Path::new("f.yaml");
    let loaded = crate::load::load(text.iter().map(|text| (path, text.as_str())));
    graph(&loaded.expect("legal").components)
}

fn any_functions() -> impl Strategy<Value = Vec<(Vec<u8>, Option<u8>)>> {
    let function = (
        prop::collection::vec(0..6u8, 1..3),
        prop::option::of(0..6u8),
    );
    prop::collection::vec(function, 1..9)
}

/// Whether `to` can be reached from `from` in one step or more: the slow, sure way.
fn reaches(graph: &Graph, from: usize, to: usize) -> bool {
    let mut seen = BTreeSet::new();
    let mut left = vec![from];
    while let Some(node) = left.pop() {
        for (_, next) in graph.next(node) {
            if next == to {
                return true;
            }
            if seen.insert(next) {
                left.push(next);
            }
        }
    }
    false
}

proptest! {
    #[test]
    fn a_cycle_is_found_exactly_when_there_is_one(functions in any_functions()) {
        let graph = of(&functions);
        let has_cycle = (0..graph.nodes.len()).any(|node| reaches(&graph, node, node));
        let cycles = graph.cycles();
        prop_assert_eq!(!cycles.is_empty(), has_cycle);
        for cycle in cycles {
            for (at, &node) in cycle.iter().enumerate() {
                prop_assert!(graph.between(node, cycle[(at + 1) % cycle.len()]).is_some());
            }
        }
    }

    #[test]
    fn who_reads_starts_before_who_writes(functions in any_functions()) {
        let graph = of(&functions);
        let order = graph.start_order();
        let mut sorted = order.clone();
        sorted.sort_unstable();
        prop_assert_eq!(sorted, (0..functions.len()).collect::<Vec<_>>());
        if graph.cycles().is_empty() {
            let at = |node: usize| order.iter().position(|&other| other == node);
            for node in 0..graph.nodes.len() {
                for (_, next) in graph.next(node) {
                    prop_assert!(at(next) < at(node));
                }
            }
        }
    }

    #[test]
    fn a_drawing_is_complete_and_never_too_wide(functions in any_functions(), width in 0..120usize) {
        let graph = of(&functions);
        let drawing = draw::draw(&graph, width);
        for line in drawing.lines() {
            prop_assert!(line.chars().count() <= width.max(24), "{line}");
        }
        let wide = draw::draw(&graph, 1000);
        for node in &graph.nodes {
            prop_assert!(wide.contains(&format!("│ {} ", node.name)), "{wide}");
        }
        for topic in &graph.topics {
            prop_assert!(wide.contains(&topic.name));
        }
    }
}

#[test]
fn a_pattern_reads_the_topics_that_match() {
    let text = [
        "name: a\nsh: a.sh\ninputs: [x]\noutput: logs-a",
        "name: b\nsh: b.sh\ntopicsPattern: logs-.*",
        "name: c\nsh: c.sh\ntopicsPattern: t/n/none.*",
    ];
    let path = std::path::Path::new("f.yaml");
    let loaded = crate::load::load(text.iter().map(|text| (path, *text))).expect("legal");
    let graph = graph(&loaded.components);
    let names = |list: &[usize]| -> Vec<&str> {
        list.iter()
            .map(|&topic| graph.topics[topic].name.as_str())
            .collect()
    };
    assert_eq!(names(&graph.nodes[1].reads), ["logs-a"]);
    assert_eq!(names(&graph.nodes[2].reads), ["t/n/none.*"]);
    assert!(graph.topics[graph.nodes[2].reads[0]].is_external());
}
