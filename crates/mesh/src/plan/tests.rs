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

/// Plain configurations name no mesh, or say it themselves; a name makes them one.
#[test]
fn plain_configurations_belong_to_the_mesh_that_is_named() {
    let plain = |text: &str| {
        let look = |_: &Path| FileKind::File;
        plan([(Path::new("f.yaml"), text)], &look, &|_| Vec::new())
    };
    let meshes = |plan: &Plan| -> Vec<Option<String>> {
        let all = plan.components.iter();
        all.map(|it| it.config.mesh().map(str::to_owned)).collect()
    };
    let two =
        "name: f\nsh: f.sh\ninputs: [a]\n---\nname: s\nsinkType: table\ninputs: [b]\nmesh: shop\n";
    let loose = plain(two).expect("good");
    assert_eq!(
        (loose.name.clone(), meshes(&loose)),
        (None, vec![None, Some("shop".to_owned())])
    );
    let named = loose.clone().named("shop").expect("one mesh");
    assert_eq!(named.name.as_deref(), Some("shop"));
    assert_eq!(meshes(&named), vec![Some("shop".to_owned()); 2]);
    let said = |found: Vec<Diagnostic>| found.iter().map(ToString::to_string).collect::<String>();
    assert_eq!(
        said(loose.named("other").expect_err("it is of `shop`")),
        "error[G0307]: sink `s` says that it is of the mesh `shop`, and is planned with the mesh `other`\n  \
         --> f.yaml:8:7\n  = help: a component is of one mesh at most"
    );
    let whole = "---\napiVersion: compute.functionmesh.io/v1alpha1\nkind: FunctionMesh\nmetadata: {name: whole}\n\
                 spec: {}\n";
    let found = plain(&format!("{two}{whole}")).expect_err("two meshes");
    assert!(said(found).contains("is planned with the mesh `whole`"));
    let named = plain(whole).expect("good").named("shop");
    assert!(
        said(named.expect_err("it has a name"))
            .contains("the files are the mesh `whole`, not `shop`")
    );
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

#[test]
fn a_plan_shows_no_secret() {
    let text = "name: f\ninputs: [in]\nsh: f.sh\nsecrets: {a: hunter2, b: {env: B}}\n";
    let look = |_: &Path| FileKind::File;
    let plan = |text: &str| super::plan([(Path::new("dir/f.yaml"), text)], &look, &|_| Vec::new());
    let good = plan(text).expect("good");
    let secrets = &good.to_json()["components"][0]["config"]["secrets"];
    assert_eq!(secrets, &json!({"a": "******", "b": {"env": "B"}}));
    // What is run and sent is whole.
    assert_eq!(
        good.components[0].config.to_json()["secrets"]["a"],
        "hunter2"
    );
    let wrong = text.replace("{a: hunter2, b: {env: B}}", "hunter2");
    for text in [wrong, text.replace("env: B", "evn: hunter2")] {
        let said = plan(&text).expect_err("refused")[0].to_string();
        assert!(
            said.contains("secrets") && !said.contains("hunter2"),
            "{said}"
        );
    }
}
