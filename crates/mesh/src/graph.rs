//! The graph of a mesh: who writes and who reads which topic. It follows from the topics alone.
//!
//! Pure, and indifferent to the order of its input.

pub mod draw;

use std::collections::{BTreeMap, BTreeSet};

use geminga_model::TopicName;
use regex::Regex;

use crate::load::{Component, Config};

/// Components and topics, by their places in the two lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Graph {
    pub nodes: Vec<GraphNode>,
    pub topics: Vec<GraphTopic>,
}

/// A component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphNode {
    pub name: String,
    /// `source`, `function` or `sink`.
    pub kind: &'static str,
    /// What runs it: `bash`, `file`.
    pub label: String,
    /// Topics it reads.
    pub reads: Vec<usize>,
    /// Topics it writes: its output.
    pub writes: Vec<usize>,
    /// Topics it writes on the side: logs and dead letters.
    pub side: Vec<usize>,
}

/// A topic, or a pattern of topics that nothing in the mesh writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphTopic {
    /// As people write it.
    pub name: String,
    pub is_pattern: bool,
    pub writers: Vec<usize>,
    pub readers: Vec<usize>,
}

impl GraphTopic {
    /// Whether nothing in the mesh writes it.
    pub fn is_external(&self) -> bool {
        self.writers.is_empty()
    }
}

/// What a component reads and writes.
struct Ends {
    reads: Vec<String>,
    patterns: Vec<String>,
    writes: Option<String>,
    side: Vec<String>,
    label: String,
}

fn ends(component: &Component) -> Ends {
    match &component.config {
        Config::Source(config) => Ends {
            reads: Vec::new(),
            patterns: Vec::new(),
            writes: config.topic_name.clone(),
            side: config.log_topic.iter().cloned().collect(),
            label: config.builtin().unwrap_or("connector").to_owned(),
        },
        Config::Function(config) => {
            let (patterns, reads) = split_patterns(config.all_inputs().unwrap_or_default());
            Ends {
                reads,
                patterns,
                writes: config.output.clone(),
                side: [&config.log_topic, &config.dead_letter_topic]
                    .into_iter()
                    .flatten()
                    .cloned()
                    .collect(),
                label: config
                    .runtime()
                    .map_or("function", |runtime| runtime.label())
                    .to_owned(),
            }
        }
        Config::Sink(config) => {
            let (patterns, reads) = split_patterns(config.all_inputs());
            Ends {
                reads,
                patterns,
                writes: None,
                side: [&config.log_topic, &config.dead_letter_topic]
                    .into_iter()
                    .flatten()
                    .cloned()
                    .collect(),
                label: config.builtin().unwrap_or("connector").to_owned(),
            }
        }
    }
}

fn split_patterns(
    inputs: BTreeMap<String, geminga_model::ConsumerConfig>,
) -> (Vec<String>, Vec<String>) {
    let (patterns, reads): (Vec<_>, Vec<_>) = inputs
        .into_iter()
        .partition(|(_, spec)| spec.regex_pattern == Some(true));
    let names = |list: Vec<(String, _)>| list.into_iter().map(|(name, _)| name).collect();
    (names(patterns), names(reads))
}

/// A topic's short name; what is no legal name stays as it is.
fn short(topic: &str) -> String {
    topic.parse::<TopicName>().map_or_else(
        |_| topic.to_owned(),
        |name| name.parent().short().to_owned(),
    )
}

/// The graph of some components. Side topics do not count as writing: a loop through them is none.
pub fn graph(components: &[Component]) -> Graph {
    let mut graph = Graph {
        nodes: Vec::new(),
        topics: Vec::new(),
    };
    let mut known = BTreeMap::new();
    let all: Vec<Ends> = components.iter().map(ends).collect();
    for (index, (component, ends)) in components.iter().zip(&all).enumerate() {
        let mut topic = |name: &str| graph_topic(&mut graph.topics, &mut known, short(name), false);
        let reads: BTreeSet<usize> = ends.reads.iter().map(|name| topic(name)).collect();
        let writes: Vec<usize> = ends.writes.iter().map(|name| topic(name)).collect();
        let side: Vec<usize> = ends.side.iter().map(|name| topic(name)).collect();
        for &read in &reads {
            graph.topics[read].readers.push(index);
        }
        for &written in writes.iter().chain(&side) {
            graph.topics[written].writers.push(index);
        }
        graph.nodes.push(GraphNode {
            name: component.name().to_owned(),
            kind: component.kind(),
            label: ends.label.clone(),
            reads: reads.into_iter().collect(),
            writes,
            side,
        });
    }
    for (index, ends) in all.iter().enumerate() {
        for pattern in &ends.patterns {
            let matching = matching(&graph.topics, pattern);
            let read = if matching.is_empty() {
                vec![graph_topic(
                    &mut graph.topics,
                    &mut known,
                    pattern.clone(),
                    true,
                )]
            } else {
                matching
            };
            for topic in read {
                graph.topics[topic].readers.push(index);
                graph.nodes[index].reads.push(topic);
            }
        }
        graph.nodes[index].reads.sort_unstable();
        graph.nodes[index].reads.dedup();
    }
    for topic in &mut graph.topics {
        topic.readers.sort_unstable();
        topic.readers.dedup();
        topic.writers.sort_unstable();
        topic.writers.dedup();
    }
    graph
}

fn graph_topic(
    topics: &mut Vec<GraphTopic>,
    known: &mut BTreeMap<String, usize>,
    name: String,
    is_pattern: bool,
) -> usize {
    *known.entry(name.clone()).or_insert_with(|| {
        topics.push(GraphTopic {
            name,
            is_pattern,
            writers: Vec::new(),
            readers: Vec::new(),
        });
        topics.len() - 1
    })
}

/// The written topics that a pattern means. It is matched against the whole full name.
fn matching(topics: &[GraphTopic], pattern: &str) -> Vec<usize> {
    let full = if pattern.contains("://") {
        pattern.to_owned()
    } else if pattern.matches('/').count() == 2 {
        format!("persistent://{pattern}")
    } else {
        format!("persistent://public/default/{pattern}")
    };
    let Ok(regex) = Regex::new(&format!("^(?:{full})$")) else {
        return Vec::new();
    };
    let fits = |topic: &GraphTopic| {
        !topic.is_pattern
            && !topic.is_external()
            && topic
                .name
                .parse::<TopicName>()
                .is_ok_and(|name| regex.is_match(name.as_str()))
    };
    (0..topics.len())
        .filter(|&index| fits(&topics[index]))
        .collect()
}

impl Graph {
    /// The nodes that read what `node` writes.
    pub fn next(&self, node: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let written = self.nodes[node].writes.iter().copied();
        written.flat_map(|topic| {
            self.topics[topic]
                .readers
                .iter()
                .map(move |&reader| (topic, reader))
        })
    }

    /// Every loop once: nodes in the order of the flow, the smallest first.
    pub fn cycles(&self) -> Vec<Vec<usize>> {
        #[derive(Clone, Copy, PartialEq)]
        enum Mark {
            New,
            Open,
            Done,
        }
        let mut marks = vec![Mark::New; self.nodes.len()];
        let mut found = BTreeSet::new();
        for start in 0..self.nodes.len() {
            if marks[start] != Mark::New {
                continue;
            }
            // The way from `start`, each step with what is left to try there.
            let mut way = vec![start];
            let mut rest = vec![self.next(start).map(|(_, node)| node).collect::<Vec<_>>()];
            marks[start] = Mark::Open;
            while let (Some(&here), Some(left)) = (way.last(), rest.last_mut()) {
                let Some(next) = left.pop() else {
                    marks[here] = Mark::Done;
                    way.pop();
                    rest.pop();
                    continue;
                };
                match marks[next] {
                    Mark::New => {
                        marks[next] = Mark::Open;
                        way.push(next);
                        rest.push(self.next(next).map(|(_, node)| node).collect());
                    }
                    Mark::Open => {
                        let from = way.iter().position(|&node| node == next).unwrap_or(0);
                        let mut cycle = way[from..].to_vec();
                        let smallest = (0..cycle.len()).min_by_key(|&at| cycle[at]).unwrap_or(0);
                        cycle.rotate_left(smallest);
                        found.insert(cycle);
                    }
                    Mark::Done => {}
                }
            }
        }
        found.into_iter().collect()
    }

    /// The topic that leads from one node to another, if one does.
    pub fn between(&self, from: usize, to: usize) -> Option<&GraphTopic> {
        self.next(from)
            .find(|&(_, node)| node == to)
            .map(|(topic, _)| &self.topics[topic])
    }

    /// All nodes, each after those it feeds: started in this order, nothing is missed. The nodes
    /// of a loop come in any order.
    pub fn start_order(&self) -> Vec<usize> {
        let mut order = Vec::with_capacity(self.nodes.len());
        let mut seen = vec![false; self.nodes.len()];
        for start in 0..self.nodes.len() {
            let mut stack = vec![(start, false)];
            while let Some((node, is_done)) = stack.pop() {
                if is_done {
                    order.push(node);
                } else if !std::mem::replace(&mut seen[node], true) {
                    stack.push((node, true));
                    stack.extend(self.next(node).map(|(_, next)| (next, false)));
                }
            }
        }
        order
    }

    /// For machines.
    pub fn to_json(&self) -> serde_json::Value {
        let names = |list: &[usize]| -> Vec<&str> {
            list.iter()
                .map(|&node| self.nodes[node].name.as_str())
                .collect()
        };
        let topics = |list: &[usize]| -> Vec<&str> {
            list.iter()
                .map(|&topic| self.topics[topic].name.as_str())
                .collect()
        };
        serde_json::json!({
            "nodes": self.nodes.iter().map(|node| serde_json::json!({
                "name": node.name, "kind": node.kind, "runtime": node.label,
                "reads": topics(&node.reads), "writes": topics(&node.writes), "side": topics(&node.side),
            })).collect::<Vec<_>>(),
            "topics": self.topics.iter().map(|topic| serde_json::json!({
                "name": topic.name, "pattern": topic.is_pattern, "external": topic.is_external(),
                "writers": names(&topic.writers), "readers": names(&topic.readers),
            })).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests;
