//! A function in each language that does the same: it answers with the payload, the user config's
//! `greeting` and the secret `token`, logs what it saw, fails for `bad`, and for `wait:GATE` waits until
//! the gate is open. Guests in WebAssembly also answer `show` with their arguments and environment and
//! `count` with how many messages this instance saw, and take 256 MiB for `grow`.

use std::path::PathBuf;
use std::process::Command;

use crate::stage::{Stage, jar};

const BASH: &str = r#"process() {
  [[ $MSG != bad ]] || { echo "no luck" >&2; return 1; }
  if [[ $MSG == wait:* ]]; then until [[ -e ${MSG#wait:} ]]; do sleep 0.02; done; fi
  log WARN "saw $MSG"
  local token; token=$(secret token)
  emit "$MSG $(conf greeting none) ${token:-none}"
}"#;

const PYTHON: &str = r#"import os, time
from pulsar import Function, SerDe

class Echo(Function):
    def process(self, word, context):
        while isinstance(word, str) and word.startswith("wait:") and not os.path.exists(word[5:]):
            time.sleep(0.02)
        if isinstance(word, list):
            return " ".join(str(w) for w in word)
        if word == "bad":
            raise ValueError("no luck")
        context.get_logger().warning("saw %s", word)
        return "%s %s %s" % (word, context.get_user_config_value("greeting") or "none", context.get_secret("token") or "none")

class Marked(SerDe):
    def deserialize(self, data):
        return data.decode() + "<"

    def serialize(self, text):
        return (">" + text).encode()

class Word:
    pass

class Info:
    def __init__(self, name):
        self.own = name

    def schema_type(self):
        return "SchemaType.JSON"

    def name(self):
        return self.own

    def schema(self):
        return '{"type":"record","name":"%s","fields":[]}' % self.own

class Schema:
    def __init__(self, record):
        self.record = record

    def encode(self, text):
        return ("}" + text).encode()

    def decode(self, data):
        return data.decode() + "{"

    def schema_info(self):
        return Info(self.record.__name__)
"#;

const EXEC: &str = r#"#!/bin/bash
read -r MSG
[ "$MSG" != bad ] || { echo "no luck" >&2; exit 1; }
if [[ $MSG == wait:* ]]; then until [ -e "${MSG#wait:}" ]; do sleep 0.02; done; fi
echo "saw $MSG" >&2
while read -r more; do MSG="$MSG $more"; done
secret=none
[ -z "$GMG_SECRETS" ] || secret=$(cat "$GMG_SECRETS/token")
echo "$MSG ${GMG_CONF_greeting-none} $secret"
"#;

pub(crate) const GO: &str = r#"package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	log "github.com/apache/pulsar/pulsar-function-go/logutil"
	"github.com/apache/pulsar/pulsar-function-go/pf"
)

var (
	calls int
	big   []byte
)

// A guest sees no files.
func isOpen(fc *pf.FunctionContext, gate string) bool {
	if runtime.GOOS == "wasip1" {
		value, err := fc.GetState(gate)
		return err == nil && value != nil
	}
	_, err := os.Stat(gate)
	return err == nil
}

func process(ctx context.Context, in []byte) ([]byte, error) {
	if string(in) == "bad" {
		return nil, errors.New("no luck")
	}
	fc, _ := pf.FromContext(ctx)
	if gate, waits := strings.CutPrefix(string(in), "wait:"); waits {
		for !isOpen(fc, gate) {
			time.Sleep(20 * time.Millisecond)
		}
	}
	calls++
	switch string(in) {
	case "count":
		return fmt.Append(nil, calls), nil
	case "show":
		return fmt.Append(nil, os.Args, os.Environ()), nil
	case "grow":
		big = bytes.Repeat([]byte("x"), 256<<20)
	}
	log.Warnf("saw %s", in)
	greeting, secret := "none", "none"
	if value, ok := fc.GetUserConfMap()["greeting"]; ok {
		greeting = fmt.Sprint(value)
	}
	if value, err := fc.GetSecretValue("token"); err == nil && value != nil {
		secret = *value
	}
	return fmt.Appendf(nil, "%s %s %s", in, greeting, secret), nil
}

func main() { pf.Start(process) }
"#;

pub(crate) const GO_WINDOW: &str = r#"package main

import (
	"bytes"

	"github.com/apache/pulsar/pulsar-function-go/pf"
)

func process(in [][]byte) ([]byte, error) { return bytes.Join(in, []byte(" ")), nil }

func main() { pf.Start(process) }
"#;

const JAVA: &str = r#"
import org.apache.pulsar.functions.api.*;

public class Echo implements Function<String, String> {
    public String process(String in, Context context) throws Exception {
        while (in.startsWith("wait:") && !java.nio.file.Files.exists(java.nio.file.Path.of(in.substring(5)))) Thread.sleep(20);
        if (in.equals("bad")) throw new IllegalArgumentException("no luck");
        context.getLogger().warn("saw {}", in);
        String secret = context.getSecret("token");
        return in + " " + context.getUserConfigValueOrDefault("greeting", "none") + " " + (secret == null ? "none" : secret);
    }
}

class Marked implements SerDe<String> {
    public String deserialize(byte[] in) { return new String(in) + "<"; }
    public byte[] serialize(String out) { return (">" + out).getBytes(); }
}

class Window implements java.util.function.Function<java.util.Collection<String>, String> {
    public String apply(java.util.Collection<String> in) { return String.join(" ", in); }
}
"#;

/// The files of one that is a process: as it is, and for windows.
pub(crate) async fn code(stage: &Stage, runtime: &str) -> (PathBuf, PathBuf) {
    match runtime {
        "bash" => {
            let echo = stage.file("Echo.sh", BASH);
            let window = stage.file("Window.sh", "mapfile -t all; echo \"${all[*]}\"\n");
            (echo, window)
        }
        "python" => {
            let path = stage.file("Echo.py", PYTHON);
            (path.clone(), path)
        }
        "go" => {
            let (echo, window) = (
                stage.file("echo.go", GO),
                stage.file("window.go", GO_WINDOW),
            );
            (echo, window)
        }
        "exec" => {
            let path = stage.file("echo", EXEC);
            let made = Command::new("chmod").arg("+x").arg(&path).status();
            assert!(made.is_ok_and(|status| status.success()));
            (path.clone(), path)
        }
        _ => {
            let source = stage.file("Echo.java", JAVA);
            let jar = jar(&source).await;
            (jar.clone(), jar)
        }
    }
}
