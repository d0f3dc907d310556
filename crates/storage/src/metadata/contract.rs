//! The contract of `MetadataStore` as tests that every implementation runs.

use super::{Expected, MetadataStore, Op, Version};
use crate::error::MetadataError;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

/// One imaginary machine; `crash` loses what was not durable and opens again.
pub(crate) trait Harness {
    fn open(&mut self) -> Arc<dyn MetadataStore>;
    fn crash(&mut self);
    /// Replaces the log by a snapshot, if the store has one.
    fn checkpoint(&mut self) {}
}

fn value(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

async fn text(store: &dyn MetadataStore, key: &str) -> Option<String> {
    let found = store.get(key).await.unwrap()?;
    Some(String::from_utf8(found.value.to_vec()).unwrap())
}

pub(crate) async fn check_all<H: Harness>(mut new: impl FnMut() -> H) {
    versions_and_conflicts(&mut new()).await;
    batches(&mut new()).await;
    listing(&mut new()).await;
    watching(&mut new()).await;
    limits(&mut new()).await;
    durability(&mut new()).await;
    many_at_once(&mut new()).await;
}

async fn versions_and_conflicts<H: Harness>(h: &mut H) {
    let store = h.open();
    assert_eq!(store.get("/a").await.unwrap(), None);
    let first = store.put("/a", value("1"), Expected::Absent).await.unwrap();
    let found = store.get("/a").await.unwrap().unwrap();
    assert_eq!((found.version, found.created), (first, first));
    let conflict = store.put("/a", value("x"), Expected::Absent).await;
    assert!(
        matches!(&conflict, Err(MetadataError::Conflict { found: Some(v), .. }) if *v == first)
    );
    let second = store
        .put("/a", value("2"), Expected::Is(first))
        .await
        .unwrap();
    assert!(second > first);
    assert!(
        store
            .put("/a", value("x"), Expected::Is(first))
            .await
            .is_err()
    );
    assert!(store.delete("/a", Expected::Is(first)).await.is_err());
    assert!(store.delete("/b", Expected::Is(first)).await.is_err());
    let found = store.get("/a").await.unwrap().unwrap();
    assert_eq!((found.version, found.created), (second, first));
    assert_eq!(found.value, "2");
    store.delete("/a", Expected::Is(second)).await.unwrap();
    store.delete("/a", Expected::Any).await.unwrap();
    assert_eq!(store.get("/a").await.unwrap(), None);
    let again = store.put("/a", value("3"), Expected::Absent).await.unwrap();
    assert!(again > second, "a version never returns");
    assert_eq!(store.get("/a").await.unwrap().unwrap().created, again);
}

async fn batches<H: Harness>(h: &mut H) {
    let store = h.open();
    let at = store.put("/a", value("1"), Expected::Any).await.unwrap();
    let put = |key: &str, expected| Op::Put {
        key: key.into(),
        value: value("batch"),
        expected,
    };
    let delete = |key: &str, expected| Op::Delete {
        key: key.into(),
        expected,
    };
    let refused = store
        .commit(vec![
            put("/b", Expected::Absent),
            delete("/a", Expected::Is(Version(at.0 + 1))),
        ])
        .await;
    assert!(matches!(refused, Err(MetadataError::Conflict { .. })));
    assert_eq!(text(&*store, "/b").await, None, "all or nothing");
    let version = store
        .commit(vec![
            put("/b", Expected::Absent),
            delete("/a", Expected::Is(at)),
        ])
        .await
        .unwrap();
    assert_eq!(text(&*store, "/b").await.as_deref(), Some("batch"));
    assert_eq!(text(&*store, "/a").await, None);
    assert_eq!(store.get("/b").await.unwrap().unwrap().version, version);
}

async fn listing<H: Harness>(h: &mut H) {
    let store = h.open();
    for key in [
        "/t/a", "/t/a/x", "/t/a/y/z", "/t/a.b", "/t/b/c", "/t0", "/t/c-d", "/u/a",
    ] {
        store.put(key, value(key), Expected::Any).await.unwrap();
    }
    assert_eq!(
        store.children("/t").await.unwrap(),
        ["a", "a.b", "b", "c-d"]
    );
    assert_eq!(store.children("/t/a").await.unwrap(), ["x", "y"]);
    assert_eq!(store.children("/").await.unwrap(), ["t", "t0", "u"]);
    assert!(store.children("/none").await.unwrap().is_empty());
    let keys = |found: Vec<(String, _)>| found.into_iter().map(|f| f.0).collect::<Vec<_>>();
    let found = keys(store.scan("/t", None, 3).await.unwrap());
    assert_eq!(found, ["/t/a", "/t/a.b", "/t/a/x"]);
    let found = keys(store.scan("/t", Some("/t/a/x"), 100).await.unwrap());
    assert_eq!(found, ["/t/a/y/z", "/t/b/c", "/t/c-d"]);
}

async fn watching<H: Harness>(h: &mut H) {
    let store = h.open();
    store
        .put("/w/0", value("before"), Expected::Any)
        .await
        .unwrap();
    let mut watcher = store.watch("/w/");
    store
        .put("/other", value("1"), Expected::Any)
        .await
        .unwrap();
    let put = store.put("/w/1", value("1"), Expected::Any).await.unwrap();
    assert!(
        store
            .put("/w/1", value("x"), Expected::Absent)
            .await
            .is_err()
    );
    store.delete("/w/1", Expected::Any).await.unwrap();
    let change = watcher.next().await.unwrap();
    assert_eq!(
        (&*change.key, change.version, change.deleted),
        ("/w/1", put, false)
    );
    let change = watcher.next().await.unwrap();
    assert_eq!((&*change.key, change.deleted), ("/w/1", true));
}

async fn limits<H: Harness>(h: &mut H) {
    let store = h.open();
    let long = format!("/{}", "k".repeat(super::KEY_BYTES_MAX));
    assert!(store.put(&long, value("1"), Expected::Any).await.is_err());
    let large = Bytes::from(vec![1; super::VALUE_BYTES_MAX + 1]);
    assert!(store.put("/a", large, Expected::Any).await.is_err());
    assert!(store.put("a", value("1"), Expected::Any).await.is_err());
    let large = Bytes::from(vec![1; super::VALUE_BYTES_MAX]);
    store.put("/a", large.clone(), Expected::Any).await.unwrap();
    h.crash();
    assert_eq!(h.open().get("/a").await.unwrap().unwrap().value, large);
}

async fn durability<H: Harness>(h: &mut H) {
    let mut model: BTreeMap<String, String> = BTreeMap::new();
    let mut last = Version(0);
    for round in 0..6 {
        let store = h.open();
        for (key, wanted) in &model {
            assert_eq!(text(&*store, key).await.as_ref(), Some(wanted));
        }
        for i in 0..20 {
            let (key, text) = (format!("/d/{i}"), format!("{round}-{i}"));
            let version = store.put(&key, value(&text), Expected::Any).await.unwrap();
            assert!(version > last, "versions rise over crashes");
            last = version;
            model.insert(key, text);
        }
        let gone = format!("/d/{round}");
        store.delete(&gone, Expected::Any).await.unwrap();
        model.remove(&gone);
        if round % 2 == 1 {
            h.checkpoint();
        }
        drop(store);
        h.crash();
    }
    let store = h.open();
    let names = store.children("/d").await.unwrap();
    assert_eq!(names.len(), model.len(), "what was deleted stays deleted");
}

async fn many_at_once<H: Harness>(h: &mut H) {
    let store = h.open();
    // Fired together, waited for together.
    let keys: Vec<String> = (0..2000).map(|i| format!("/m/{i}")).collect();
    let changes: Vec<_> = keys
        .iter()
        .map(|key| store.put(key, value(key), Expected::Absent))
        .collect();
    for change in changes {
        change.await.unwrap();
    }
    assert_eq!(store.children("/m").await.unwrap().len(), 2000);
}

mod embedded {
    use super::*;
    use crate::ledger::memory::{MemoryImage, MemoryStore};
    use crate::metadata::EmbeddedMetadata;
    use crate::state::State;

    #[derive(Default)]
    struct Machine {
        image: MemoryImage,
        store: Option<Arc<MemoryStore>>,
    }

    impl Harness for Machine {
        fn open(&mut self) -> Arc<dyn MetadataStore> {
            let state = Arc::new(State::new());
            let image = std::mem::take(&mut self.image);
            let store = MemoryStore::start(image, state.clone()).unwrap();
            self.store = Some(store.clone());
            Arc::new(EmbeddedMetadata::new(state, store))
        }
        fn crash(&mut self) {
            self.image = self.store.take().unwrap().crash(0);
        }
        fn checkpoint(&mut self) {
            self.store.as_ref().unwrap().checkpoint(5);
        }
    }

    #[tokio::test]
    async fn holds_the_contract() {
        check_all(Machine::default).await;
    }
}
