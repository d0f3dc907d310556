//! The powers of `powers.rs` in each language that is a process.

use crate::powers;
use crate::stage::Stage;

macro_rules! in_each {
    ($($language:ident),*) => {$(
        mod $language {
            use super::{Stage, powers};

            const LANGUAGE: &str = stringify!($language);

            #[tokio::test]
            async fn acknowledges_by_itself() {
                powers::acknowledges_by_itself(Stage::new().await, LANGUAGE).await;
            }

            #[tokio::test]
            async fn is_called_once_at_most() {
                powers::is_called_once_at_most(Stage::new().await, LANGUAGE).await;
            }

            #[tokio::test]
            async fn forgets_state() {
                powers::forgets_state(Stage::new().await, LANGUAGE).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn is_replaced_under_load() {
                powers::is_replaced_under_load(Stage::new().await, LANGUAGE).await;
            }
        }
    )*};
}

in_each!(bash, python, go, java, spawn);
