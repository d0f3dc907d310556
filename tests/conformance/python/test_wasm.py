"""Functions in WebAssembly: made by the command line, fed and read by the official client."""

import json
import re
import shutil
import time

import pulsar
import pytest

from cli import create_function, geminga, status
from server import ROOT, has_functions
from support import data, eventually, receive

pytestmark = pytest.mark.skipif(not has_functions(), reason="Geminga's own functions; this server is an outside one")

UPPER = ROOT / "examples/wasm/upper.wat"

# Everything that a Go function may ask: what it is told decides what it does.
ALL = """package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/apache/pulsar-client-go/pulsar"
	log "github.com/apache/pulsar/pulsar-function-go/logutil"
	"github.com/apache/pulsar/pulsar-function-go/pf"
)

func process(ctx context.Context, in []byte) ([]byte, error) {
	fc, _ := pf.FromContext(ctx)
	word, rest, _ := strings.Cut(string(in), " ")
	switch word {
	case "count":
		if err := fc.IncrCounter(rest, 1); err != nil {
			return nil, err
		}
		n, err := fc.GetCounter(rest)
		return fmt.Appendf(nil, "%d", n), err
	case "config":
		return []byte(fc.GetUserConfValue(rest).(string)), nil
	case "secret":
		value, err := fc.GetSecretValue(rest)
		if err != nil {
			return nil, err
		}
		return []byte(*value), nil
	case "publish":
		topic, text, _ := strings.Cut(rest, " ")
		out := fc.NewOutputMessage(topic)
		_, err := out.Send(ctx, &pulsar.ProducerMessage{Payload: []byte(text), Key: fc.GetCurrentRecord().Key(),
			Properties: map[string]string{"colour": fc.GetCurrentRecord().Properties()["colour"]}})
		return nil, err
	case "log":
		log.Warn(rest)
		fmt.Println("printed " + rest)
		fc.RecordMetric("told", 1)
		return []byte("told"), nil
	case "fail":
		fmt.Fprintln(os.Stderr, "said before it failed")
		return nil, errors.New(rest)
	case "bad":
		return nil, pf.BadData(errors.New(rest))
	case "exit":
		os.Exit(7)
	case "hang":
		for {
		}
	case "eat":
		var all [][]byte
		for {
			all = append(all, make([]byte, 1<<20))
			all[len(all)-1][0] = 1
		}
	case "read":
		content, err := os.ReadFile(rest)
		return content, err
	}
	return in, nil
}

func main() { pf.Start(process) }
"""


@pytest.fixture
def name(topic):
    return re.sub(r"[^\w-]", "-", topic)


@pytest.fixture
def fresh(functions, name):
    made = []

    def make(code, *arguments, as_name=name):
        create_function(functions, as_name, "--wasm", code, *arguments)
        made.append(as_name)
    yield make
    for each in made:
        geminga(functions, "functions", "delete", "--name", each)


@pytest.fixture(scope="module")
def go(tmp_path_factory):
    if shutil.which("go") is None:
        pytest.skip("no Go")
    path = tmp_path_factory.mktemp("go") / "all.go"
    path.write_text(ALL)
    return path


def wired(topic, *more):
    return ["--inputs", topic, "--output-topic", f"{topic}-out", "--subs-position", "Earliest", *more]


class Line:
    """A function's two ends."""

    def __init__(self, client, topic):
        self.out = client.subscribe(f"{topic}-out", "probe", initial_position=pulsar.InitialPosition.Earliest)
        self.producer = client.create_producer(topic)

    def ask(self, message, **options):
        self.producer.send(message, **options)
        return data(receive(self.out, 1))[0]


def test_a_component_by_text(client, fresh, topic):
    fresh(UPPER, *wired(topic))
    line = Line(client, topic)
    assert [line.ask(each) for each in [b"abc", b"", bytes(range(256))]] == [b"ABC", b"", bytes(range(256)).upper()]


def test_ten_thousand_messages_keep_their_order(client, fresh, topic):
    fresh(UPPER, *wired(topic, "--retain-ordering"))
    out = client.subscribe(f"{topic}-out", "probe", initial_position=pulsar.InitialPosition.Earliest)
    producer = client.create_producer(topic, block_if_queue_full=True)
    refused = []
    for n in range(10_000):
        producer.send_async(b"m%d" % n, lambda result, _: result == pulsar.Result.Ok or refused.append(result))
    producer.flush()
    assert not refused
    assert data(receive(out, 10_000)) == [b"M%d" % n for n in range(10_000)]


def test_a_go_function_has_every_power(functions, client, fresh, topic, go):
    other = client.subscribe(f"{topic}-other", "probe")
    logs = client.subscribe(f"{topic}-log", "probe")
    fresh(go, *wired(topic, "--user-config", json.dumps({"greeting": "hello"}), "--secrets", json.dumps({"token": "s3cret"}),
                     "--log-topic", f"{topic}-log"))
    line = Line(client, topic)
    assert [line.ask(b"count a"), line.ask(b"count a"), line.ask(b"count b")] == [b"1", b"2", b"1"]
    assert line.ask(b"config greeting") == b"hello"
    assert line.ask(b"secret token") == b"s3cret"
    line.producer.send(b"publish %s-other text" % topic.encode(), partition_key="k", properties={"colour": "red"})
    [got] = receive(other, 1)
    assert (got.data(), got.partition_key(), got.properties()["colour"]) == (b"text", "k", "red")
    assert line.ask(b"log something") == b"told"
    seen = set()
    eventually(lambda: seen.update(m.data().decode() for m in receive(logs, 1)) or
               {"something", "printed something"} <= {s.strip() for s in seen}, what="both lines in the log topic")


def test_failures_are_told_apart(functions, client, fresh, topic, go):
    letters = client.subscribe(f"{topic}-dead", "probe")
    fresh(go, *wired(topic, "--max-message-retries", "1", "--dead-letter-topic", f"{topic}-dead", "--timeout-ms", "800",
                     "--ram", str(64 << 20)))
    line = Line(client, topic)
    for message, kind in [(b"fail for a reason", "user"), (b"bad grammar", "data"), (b"exit", "crash"), (b"hang", "timeout"),
                          (b"eat", "limit")]:
        line.producer.send(message)
        [letter] = receive(letters, 1)
        assert letter.data() == message
        properties = letter.properties()
        assert properties["geminga.kind"] == kind, properties
        assert line.ask(b"still here") == b"still here"
    about = json.dumps(status(functions, re.sub(r"[^\w-]", "-", topic)))
    assert "resources.ram" in about, about


def test_the_machine_is_out_of_reach(client, fresh, topic, go):
    letters = client.subscribe(f"{topic}-dead", "probe")
    fresh(go, *wired(topic, "--max-message-retries", "0", "--dead-letter-topic", f"{topic}-dead"))
    line = Line(client, topic)
    for path in [b"/etc/passwd", b"../../etc/passwd", b"/proc/self/environ", b"/dev/fd/0"]:
        line.producer.send(b"read " + path)
        [letter] = receive(letters, 1)
        assert letter.data() == b"read " + path


def test_what_is_no_function_is_refused_by_name(functions, client, topic, tmp_path, name):
    for text, wanted in [("(module)", "_start"), ("(module (import \"env\" \"system\" (func)) (func (export \"_start\")))", "env::system"),
                         ("not wasm at all", "neither WebAssembly nor its text")]:
        code = tmp_path / "f.wat"
        code.write_text(text)
        create_function(functions, name, "--wasm", code, *wired(topic))
        eventually(lambda: wanted in json.dumps(status(functions, name)), what=wanted)
        geminga(functions, "functions", "delete", "--name", name)


@pytest.mark.own_server
def test_state_and_functions_survive_kill(own_server, new_client, topic, go):
    create_function(own_server, "counter", "--wasm", go, *wired(topic))
    line = Line(new_client(own_server.service_url), topic)
    assert line.ask(b"count n") == b"1"
    own_server.restart()
    line.producer.send(b"count n")
    eventually(lambda: data(receive(line.out, 1))[0] == b"2", what="the count of before the crash went on")


def test_an_update_takes_the_new_code(functions, client, fresh, topic, name, go):
    fresh(UPPER, *wired(topic))
    line = Line(client, topic)
    assert line.ask(b"abc") == b"ABC"
    geminga(functions, "functions", "update", "--name", name, "--wasm", go, seconds=60)
    eventually(lambda: line.ask(b"abc") == b"abc", what="the new code answers")


def test_many_functions_share_one_module(functions, client, topic, name):
    """Not the ten thousand of the benchmark, but each of a hundred answers."""
    count = 100
    since = time.monotonic()
    out = client.subscribe(f"{topic}-out", "probe", initial_position=pulsar.InitialPosition.Earliest)
    for n in range(count):
        create_function(functions, f"{name}-{n}", "--wasm", UPPER, "--inputs", f"{topic}-{n}", "--output-topic", f"{topic}-out")
    for n in range(count):
        producer = client.create_producer(f"{topic}-{n}")
        producer.send(b"m%d" % n)
        producer.close()
    assert sorted(data(receive(out, count))) == sorted(b"M%d" % n for n in range(count))
    print(f"{count} functions created and answering in {time.monotonic() - since:.1f} s")
    for n in range(count):
        geminga(functions, "functions", "delete", "--name", f"{name}-{n}")
