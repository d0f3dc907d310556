//! What functions in WebAssembly have of the worker, by the cases that the other runtimes have in `geminga-functions`.

use geminga_functions::runtime::go;
use geminga_wasm::runtime;
use serde_json::json;

#[path = "../../functions/tests/it/powers.rs"]
mod powers;
#[path = "../../functions/tests/it/stage.rs"]
#[allow(dead_code, reason = "shared with suites that use more of it")]
mod stage;

use self::stage::Stage;

async fn stage() -> Stage {
    Stage::with_wasm(runtime()).await
}

#[tokio::test]
async fn acknowledges_by_itself() {
    powers::acknowledges_by_itself(stage().await, "wasm").await;
}

#[tokio::test]
async fn is_called_once_at_most() {
    powers::is_called_once_at_most(stage().await, "wasm").await;
}

#[tokio::test]
async fn forgets_state() {
    powers::forgets_state(stage().await, "wasm").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn is_replaced_under_load() {
    powers::is_replaced_under_load(stage().await, "wasm").await;
}

/// A guest that says no, and one that traps.
#[tokio::test]
async fn gives_up_a_poison_alone() {
    for at_bad in ["return nil, never()", "panic(never())"] {
        let stage = stage().await;
        let code = POISON.replace("AT_BAD", at_bad);
        let guest = go::build_wasm(&stage.file("main.go", &code)).await;
        let code = json!({"wasm": guest.expect("Go is installed")});
        powers::gives_up_a_poison_alone(stage, code, true).await;
    }
}

const POISON: &str = r#"package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/apache/pulsar/pulsar-function-go/pf"
)

func process(in []byte) ([]byte, error) {
	if string(in) == "bad" {
		fmt.Fprintln(os.Stderr, "no luck")
		AT_BAD
	}
	return in, nil
}

func never() error { return errors.New("bad") }

func main() { pf.Start(process) }
"#;
