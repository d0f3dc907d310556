//! Every field of `FunctionConfig` in the two kinds of WASM: their columns of `docs/functions-matrix.md`, made by the
//! cases that the other runtimes have in `geminga-functions`.

use std::path::PathBuf;

use geminga_functions::runtime::go;
use geminga_wasm::runtime;

#[path = "../../functions/tests/it/column.rs"]
#[allow(dead_code, reason = "shared with the runtimes that are processes")]
mod column;
#[path = "../../functions/tests/it/stage.rs"]
#[allow(dead_code, reason = "shared with suites that use more of it")]
mod stage;

use self::column::{code, column};
use self::stage::Stage;

/// Answers as the functions in `column/code.rs` do.
const ECHO: &str = include_str!("matrix/echo.wat");
/// Joins the messages of a window with blanks.
const WINDOW: &str = include_str!("matrix/window.wat");

async fn built(source: PathBuf) -> PathBuf {
    go::build_wasm(&source).await.expect("Go is installed")
}

#[tokio::test]
async fn of_wasm() {
    let stage = Stage::with_wasm(runtime()).await;
    let echo = built(stage.file("echo.go", code::GO)).await;
    let window = built(stage.file("window.go", code::GO_WINDOW)).await;
    column(stage, "wasm", (echo, window)).await;
}

#[tokio::test]
async fn of_component() {
    let stage = Stage::with_wasm(runtime()).await;
    let echo = stage.file("echo.wat", ECHO);
    let window = stage.file("window.wat", WINDOW);
    column(stage, "component", (echo, window)).await;
}
