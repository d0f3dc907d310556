use super::*;

fn example(name: &str) -> Plan {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../examples")
        .join(name);
    let text = std::fs::read_to_string(root.join("mesh.yaml")).expect("the example is there");
    let look = |path: &Path| match root.join(path.file_name().unwrap_or_default()) {
        _ if path.is_dir() => FileKind::Directory,
        _ if path.exists() => FileKind::File,
        _ => FileKind::Missing,
    };
    plan(
        [(root.join("mesh.yaml").as_path(), text.as_str())],
        &look,
        &|_| Vec::new(),
    )
    .expect("the example is good")
}

#[test]
fn the_earthquakes_are_drawn() {
    let plan = example("earthquakes");
    let names: Vec<_> = plan.components.iter().map(Component::name).collect();
    assert_eq!(names.len(), 6);
    assert_eq!((plan.warnings.len(), plan.kubernetes_only.len()), (0, 0));
    assert_eq!(
        format!("\n{}\n", crate::graph::draw::draw(&plan.graph, 80)),
        "
╭──────────────────────╮
│ week   file · source │
╰─┬────────────────────╯
  │ quakes
  │    ╭──────────────────────────╮
  ├──▶ │ strong   bash · function │
  │    ╰─┬────────────────────────╯
  │      ├┄┄▷ unreadable
  │      │ alerts
  │      │    ╭───────────────────────────╮
  │      └──▶ │ alerts-file   file · sink │
  │           ╰───────────────────────────╯
  │    ╭───────────────────────────────╮
  └──▶ │ by-region   python · function │
       ╰─┬─────────────────────────────╯
         ├┄┄▷ unreadable
         │ regions
         │    ╭────────────────────────────╮
         ├──▶ │ regions-file   file · sink │
         │    ╰────────────────────────────╯
         │    ╭──────────────────────────────╮
         └──▶ │ regions-table   table · sink │
              ╰──────────────────────────────╯
"
    );
}

#[test]
fn the_narrow_drawing_keeps_its_width() {
    let plan = example("earthquakes");
    let drawing = crate::graph::draw::draw(&plan.graph, 34);
    assert!(
        drawing.lines().all(|line| line.chars().count() <= 34),
        "{drawing}"
    );
}

#[test]
fn an_external_topic_is_drawn_as_one() {
    let plan = example("exclamation");
    assert_eq!(
        format!("\n{}\n", crate::graph::draw::draw(&plan.graph, 80)),
        "
(external topic)
│ said
│    ╭──────────────────────────╮
└──▶ │ once   python · function │
     ╰─┬────────────────────────╯
       │ said-louder
       │    ╭─────────────────────────╮
       └──▶ │ twice   bash · function │
            ╰─┬───────────────────────╯
              └──▷ shouted
"
    );
}

#[test]
fn paths_are_whole_and_the_mesh_is_named() {
    let plan = example("exclamation");
    let once = plan
        .components
        .iter()
        .find(|component| component.name() == "once")
        .expect("there");
    let Config::Function(config) = &once.config else {
        panic!("not a function")
    };
    assert!(
        config
            .py
            .as_deref()
            .is_some_and(|path| path.ends_with("examples/exclamation/exclamation.py"))
    );
    assert_eq!(config.mesh.as_deref(), Some("exclamation"));
    assert_eq!(config.cleanup_subscription, Some(false));
}
