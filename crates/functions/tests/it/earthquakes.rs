//! The example mesh, over all its real events, compared with a computation that knows nothing of
//! Geminga.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use geminga_functions::Component;
use serde_json::{Value, json};

use crate::stage::Stage;

#[tokio::test]
async fn the_earthquakes_mesh_gives_the_right_answer_and_ends_by_itself() {
    let stage = Stage::new().await;
    let folder = PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../examples/earthquakes"
    ));
    let file = folder.join("mesh.yaml");
    let text = std::fs::read_to_string(&file).expect("the mesh");
    let loaded = geminga_mesh::load::load([(Path::new(&file), &*text)]).expect("a legal mesh");
    let out = stage.directory.path().to_path_buf();
    let mut ids = Vec::new();
    for component in loaded.components {
        let resolve = |path: &str| component.origin.resolve(path).display().to_string();
        let mut config = Component::from(component.config.clone());
        match &mut config {
            Component::Function(f) => {
                for code in [&mut f.sh, &mut f.py].into_iter().flatten() {
                    *code = resolve(code);
                }
            }
            Component::Source(s) => {
                let path = s
                    .configs
                    .as_mut()
                    .and_then(|c| c.get_mut("path"))
                    .expect("a path");
                *path = json!(resolve(path.as_str().expect("text")));
            }
            Component::Sink(s) => {
                if let Some(path) = s.configs.as_mut().and_then(|c| c.get_mut("path")) {
                    *path = json!(out.join(path.as_str().expect("text")));
                }
            }
        }
        // Topics of the mesh have short names that other tests use too.
        ids.push(stage.worker.create(config, None).await.expect("created"));
    }
    stage.drained().await;

    let events: Vec<Value> = std::fs::read_to_string(folder.join("data/earthquakes.jsonl"))
        .expect("the events")
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let strong = |e: &&Value| {
        e["properties"]["mag"]
            .as_f64()
            .is_some_and(|mag| mag >= 4.5)
    };
    let alerts: Vec<&str> = events
        .iter()
        .filter(strong)
        .filter_map(|e| e["id"].as_str())
        .collect();
    let written = std::fs::read_to_string(out.join("out/alerts.jsonl")).expect("alerts");
    let got: Vec<Value> = written
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect();
    let got: Vec<&str> = got
        .iter()
        .filter_map(|alert| alert["id"].as_str())
        .collect();
    assert_eq!(got, alerts);

    let mut wanted: BTreeMap<&str, u64> = BTreeMap::new();
    for event in &events {
        if event["properties"]["type"] == "earthquake" {
            let place = event["properties"]["place"].as_str().unwrap_or("unknown");
            let region = place.rsplit(", ").next().unwrap_or(place);
            *wanted
                .entry(if region == "CA" { "California" } else { region })
                .or_default() += 1;
        }
    }
    let written = std::fs::read_to_string(out.join("out/regions.jsonl")).expect("regions");
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for line in written.lines() {
        let row: Value = serde_json::from_str(line).expect("JSON");
        let region = row["region"].as_str().expect("a region").to_owned();
        counts.insert(region, row["quakes"].as_u64().expect("a number"));
    }
    let counts: BTreeMap<&str, u64> = counts.iter().map(|(k, v)| (&**k, *v)).collect();
    assert_eq!(counts, wanted);
    assert_eq!(stage.worker.tables()[0].1.render().1.len(), 12);
    assert!(stage.worker.progress().iter().all(|p| p.failed == 0));
    stage.end().await;
}
