//! Every field of `FunctionConfig` in every runtime whose functions are processes: `docs/functions-matrix.md`.
//! Those of WebAssembly have their test in the crate of that runtime.

use crate::column::code::code;
use crate::column::column;
use crate::stage::Stage;

async fn of(runtime: &'static str) {
    let stage = Stage::new().await;
    let code = code(&stage, runtime).await;
    column(stage, runtime, code).await;
}

#[tokio::test]
async fn of_bash() {
    of("bash").await;
}

#[tokio::test]
async fn of_python() {
    of("python").await;
}

#[tokio::test]
async fn of_exec() {
    of("exec").await;
}

#[tokio::test]
async fn of_go() {
    of("go").await;
}

#[tokio::test]
async fn of_java() {
    of("java").await;
}
