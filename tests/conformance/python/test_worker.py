"""A `geminga worker` by itself beside a broker: one program in every language, and what the broker has a part in.

Against Geminga in the ordinary run, in Python alone, as the suites of Rust have all languages there; `tests/pulsar/run` runs
all of it against Apache Pulsar."""

import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import urllib.error

import pulsar
import pytest
from pulsar.schema import JsonSchema, Record, String

from cli import create_function, geminga, status
from server import ROOT, is_outside
from support import Admin, assert_nothing, data, eventually, receive, send_numbers

pytestmark = pytest.mark.timeout(180)

# What a message says decides what the program does: count, put, get, drop, config, aside, log and bad; JSON passes, and any
# other text gets a mark.
BASH = r"""process() {
  local word=${MSG%% *} rest=${MSG#* } n=0
  case $word in
    count) if state get "n-$rest"; then n=$REPLY; fi
           state put "n-$rest" $((n + 1)); state incr "$rest"; emit "$rest $((n + 1))" ;;
    put) state put kept "$rest"; emit put ;;
    get) if state get kept; then emit "$REPLY"; else emit none; fi ;;
    drop) state del kept; emit dropped ;;
    config) conf greeting; emit "$REPLY" ;;
    aside) conf aside; emit -t "$REPLY" -k k -p colour=red "$rest"; emit published ;;
    log) log WARN "$rest"; emit told ;;
    bad) echo "no luck" >&2; return 3 ;;
    \{*) emit "$MSG" ;;
    *) emit "$MSG!" ;;
  esac
}
"""

# A process for each message: it changes state, and reads none.
EXEC = r"""#!/usr/bin/env bash
MSG=$(cat); word=${MSG%% *}; rest=${MSG#* }
case $word in
  count) echo "state incr $rest 1" >&4; echo "$rest" ;;
  put) echo "state put kept $rest" >&4; echo put ;;
  drop) echo "state del kept" >&4; echo dropped ;;
  config) echo "$GMG_CONF_greeting" ;;
  aside) printf '{"topic":"%s","key":"k","properties":{"colour":"red"},"payload":"%s"}\n' "$GMG_CONF_aside" "$rest" >&3; echo published ;;
  log) echo "log WARN $rest" >&4; echo told ;;
  bad) echo "no luck" >&2; exit 3 ;;
  \{*) printf %s "$MSG" ;;
  *) echo "$MSG!" ;;
esac
"""

PYTHON = """from pulsar import Function

class All(Function):
    def process(self, text, context):
        if isinstance(text, dict):      # a record
            return text
        text = str(text)                # a number is one here, as in Pulsar
        word, _, rest = text.partition(" ")
        if word == "count":
            context.incr_counter(rest, 1)
            return "%s %d" % (rest, context.get_counter(rest))
        if word == "put":
            context.put_state("kept", rest)
            return "put"
        if word == "get":
            kept = context.get_state("kept")
            return "none" if kept is None else kept.decode() if isinstance(kept, bytes) else kept
        if word == "drop":
            context.del_counter("kept")
            return "dropped"
        if word == "config":
            return context.get_user_config_value("greeting")
        if word == "aside":
            context.publish(context.get_user_config_value("aside"), rest, properties={"colour": "red"}, message_conf={"partition_key": "k"})
            return "published"
        if word == "log":
            context.get_logger().warning(rest)
            return "told"
        if word == "bad":
            raise ValueError("no luck")
        return text + "!"
"""

GO = """package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/apache/pulsar-client-go/pulsar"
	log "github.com/apache/pulsar/pulsar-function-go/logutil"
	"github.com/apache/pulsar/pulsar-function-go/pf"
)

func process(ctx context.Context, in []byte) ([]byte, error) {
	fc, _ := pf.FromContext(ctx)
	text := string(in)
	word, rest, _ := strings.Cut(text, " ")
	switch word {
	case "count":
		if err := fc.IncrCounter(rest, 1); err != nil {
			return nil, err
		}
		n, err := fc.GetCounter(rest)
		return fmt.Appendf(nil, "%s %d", rest, n), err
	case "put":
		return []byte("put"), fc.PutState("kept", []byte(rest))
	case "get":
		kept, err := fc.GetState("kept")
		if kept == nil {
			kept = []byte("none")
		}
		return kept, err
	case "drop":
		return []byte("dropped"), fc.DeleteState("kept")
	case "config":
		return []byte(fc.GetUserConfValue("greeting").(string)), nil
	case "aside":
		out := fc.NewOutputMessage(fc.GetUserConfValue("aside").(string))
		_, err := out.Send(ctx, &pulsar.ProducerMessage{Payload: []byte(rest), Key: "k", Properties: map[string]string{"colour": "red"}})
		return []byte("published"), err
	case "log":
		log.Warn(rest)
		return []byte("told"), nil
	case "bad":
		return nil, errors.New("no luck")
	}
	if strings.HasPrefix(text, "{") {
		return in, nil
	}
	return append(in, '!'), nil
}

func main() { pf.Start(process) }
"""

JAVA = """
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.Collection;
import org.apache.pulsar.client.api.Schema;
import org.apache.pulsar.functions.api.Context;
import org.apache.pulsar.functions.api.Function;
import org.apache.pulsar.functions.api.Record;
import org.apache.pulsar.functions.api.WindowContext;
import org.apache.pulsar.functions.api.WindowFunction;

public class All implements Function<String, String> {
    public String process(String text, Context context) throws Exception {
        String[] parts = text.split(" ", 2);
        String rest = parts[parts.length - 1];
        switch (parts[0]) {
            case "count":
                context.incrCounter(rest, 1);
                return rest + " " + context.getCounter(rest);
            case "put":
                context.putState("kept", ByteBuffer.wrap(rest.getBytes()));
                return "put";
            case "get":
                ByteBuffer kept = context.getState("kept");
                return kept == null ? "none" : StandardCharsets.UTF_8.decode(kept).toString();
            case "drop":
                context.deleteState("kept");
                return "dropped";
            case "config":
                return (String) context.getUserConfigValue("greeting").get();
            case "aside":
                context.newOutputMessage((String) context.getUserConfigValue("aside").get(), Schema.STRING)
                    .key("k").property("colour", "red").value(rest).sendAsync();
                return "published";
            case "log":
                context.getLogger().warn(rest);
                return "told";
            case "bad":
                throw new IllegalArgumentException("no luck");
            default:
                return text + "!";
        }
    }
}

class Join implements WindowFunction<String, String> {
    public String process(Collection<Record<String>> in, WindowContext context) {
        StringBuilder all = new StringBuilder();
        for (Record<String> one : in) all.append(all.length() == 0 ? "" : "+").append(one.getValue());
        return all.toString();
    }
}

class Same implements Function<Same.Report, Same.Report> {
    public static class Report { public String text; }
    public Report process(Report report, Context context) { return report; }
}
"""

GO_JOIN = """package main

import (
	"bytes"

	"github.com/apache/pulsar/pulsar-function-go/pf"
)

func process(in [][]byte) ([]byte, error) { return bytes.Join(in, []byte("+")), nil }

func main() { pf.Start(process) }
"""

SPAWN = ("--custom-runtime-options", '{"mode": "spawn"}')
# of each language: the flag for the code, the file, and what else the command says, for the program and for one of windows
LANGUAGES = {
    "bash": ("--sh", ("all.sh", BASH), ("join.sh", 'process() { local IFS=+ lines; mapfile -t lines <<<"$MSG"; echo "${lines[*]}"; }\n'), ()),
    "exec": ("--exec", ("all", EXEC), ("join", "#!/usr/bin/env bash\npaste -sd+ -\n"), SPAWN),
    "python": ("--py", ("all.py", PYTHON), ("join.py", "def process(values):\n    return '+'.join(map(str, values))\n"), ()),
    "go": ("--go", ("main.go", GO), ("join.go", GO_JOIN), ()),
    "java": ("--jar", ("All.java", JAVA), ("All.java", JAVA), ()),
    "wasm": ("--wasm", ("main.go", GO), ("join.go", GO_JOIN), ()),
}
CLASSES = {"python": "all.All", "java": "All"}
TOOLS = {"go": "go", "wasm": "go", "java": "javac"}
in_each_language = pytest.mark.parametrize("language", LANGUAGES if is_outside() else ["python"])


@pytest.fixture
def name(topic):
    return re.sub(r"[^\w-]", "-", topic)


class Maker:
    """Makes functions from `topic` to `topic`-out, and deletes them at the end."""

    def __init__(self, topic, name, folder):
        self.topic, self.name, self.folder, self.made = topic, name, folder, []

    def file(self, name, text):
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def create(self, worker, name, flag, code, *arguments, inputs=None):
        inputs = inputs or ("--inputs", self.topic)
        position = () if "--subs-position" in arguments else ("--subs-position", "Earliest")
        geminga(worker, "functions", "create", "--name", name, flag, code, *inputs, "--output-topic", f"{self.topic}-out",
                *position, *arguments, seconds=120)
        self.made.append((worker, name))

    def __call__(self, worker, language, *arguments, windows=False, classname=None, inputs=None):
        if language in TOOLS and not shutil.which(TOOLS[language]):
            pytest.skip(f"{TOOLS[language]} is not installed")
        flag, code, join, options = LANGUAGES[language]
        file, text = join if windows else code
        classname = classname or (CLASSES.get(language) if not windows else "Join" if language == "java" else None)
        if classname:
            options = (*options, "--classname", classname)
        self.create(worker, self.name, flag, self.file(file, text), *options, *arguments, inputs=inputs)


@pytest.fixture
def make(topic, name, tmp_path):
    maker = Maker(topic, name, tmp_path)
    yield maker
    for worker, made in maker.made:
        if worker.process is None or worker.process.poll() is None:
            geminga(worker, "functions", "delete", "--name", made)


class Line:
    """A function's two ends."""

    def __init__(self, client, topic):
        self.out = client.subscribe(f"{topic}-out", "probe", initial_position=pulsar.InitialPosition.Earliest)
        self.producer = client.create_producer(topic)

    def ask(self, text, **options):
        self.producer.send(text.encode(), **options)
        return receive(self.out, 1)[0].data().decode()


def subscriptions(admin, topic):
    try:
        return admin.subscriptions(topic)
    except urllib.error.HTTPError as error:
        assert error.code == 404
        return []


def value(worker, name, key):
    told = json.loads(geminga(worker, "functions", "querystate", "--name", name, "-k", key, "-o", "json"))
    return told.get("numberValue", told.get("stringValue"))


@in_each_language
def test_a_message_goes_through_and_nothing_stays_of_a_function_deleted(client, admin, functions, topic, name, make, language):
    make(functions, language, "--forward-source-message-property", "true")
    line = Line(client, topic)
    line.producer.send(b"hello", partition_key="k7", properties={"mine": "kept"})
    (message,) = receive(line.out, 1)
    assert (message.data(), message.partition_key()) == (b"hello!", "k7")
    assert message.properties()["mine"] == "kept"
    assert message.properties()["__pfn_input_topic__"] == f"persistent://public/default/{topic}"
    assert geminga(functions, "functions", "trigger", "--name", name, "--trigger-value", "triggered").strip() == "triggered!"
    assert data(receive(line.out, 1)) == [b"triggered!"]
    assert line.ask("put something") == "put"
    eventually(lambda: value(functions, name, "kept") == "something")
    assert f"public/default/{name}" in admin.subscriptions(topic)
    geminga(functions, "functions", "delete", "--name", name)
    make.made.clear()
    eventually(lambda: f"public/default/{name}" not in subscriptions(admin, topic), what="the subscription is gone")
    # One that is made anew has no state.
    make(functions, language, "--subs-position", "Latest")
    assert line.ask("anew") == "anew!"
    assert "G0" in geminga(functions, "functions", "querystate", "--name", name, "-k", "kept", code=3)


@in_each_language
def test_every_power_and_state_over_a_kill(client, topic, name, make, new_worker, language):
    worker = new_worker(namespace=f"public/{name[:40]}")
    aside, logs = (client.subscribe(f"{topic}-{each}", "probe", initial_position=pulsar.InitialPosition.Earliest) for each in ("aside", "log"))
    make(worker, language, "--user-config", json.dumps({"greeting": "ciao", "aside": f"persistent://public/default/{topic}-aside"}),
         "--log-topic", f"{topic}-log")
    line = Line(client, topic)
    reads = language != "exec"
    assert line.ask("config") == "ciao"
    assert line.ask("aside something") == "published"
    (message,) = receive(aside, 1)
    assert (message.data(), message.partition_key(), message.properties()["colour"]) == (b"something", "k", "red")
    assert line.ask("log very well") == "told"
    eventually(lambda: b"very well" in receive(logs, 1)[0].data())
    assert [line.ask("count a") for _ in range(3)] == (["a 1", "a 2", "a 3"] if reads else ["a", "a", "a"])
    assert line.ask("put something") == "put"
    eventually(lambda: (value(worker, name, "a"), value(worker, name, "kept")) == (3, "something"))
    worker.restart()
    # What was not acknowledged when it was killed comes again, and so does its output.
    line.producer.send(b"count a")
    eventually(lambda: receive(line.out, 1)[0].data() == (b"a 4" if reads else b"a"))
    eventually(lambda: value(worker, name, "a") == 4)
    if reads:
        assert line.ask("get") == "something"
    assert line.ask("drop") == "dropped"
    if reads:
        assert line.ask("get") == "none"
    eventually(lambda: "G0" in geminga(worker, "functions", "querystate", "--name", name, "-k", "kept", code=3))


@in_each_language
def test_effectively_once_over_kills(client, topic, name, make, new_worker, seed, language):
    """Words are counted while the worker is killed: each output once and in order, each counter as of one run."""
    chance = random.Random(f"{seed} {language}")
    words = [f"w{chance.randrange(20)}" for _ in range(300)]
    counts, expected = {}, []
    for word in words:
        counts[word] = counts.get(word, 0) + 1
        expected.append(f"{word} {counts[word]}" if language != "exec" else word)
    worker = new_worker("--lease", "2", namespace=f"public/{name[:40]}")
    make(worker, language, "--processing-guarantees", "EFFECTIVELY_ONCE")
    line = Line(client, topic)
    kills, seen = sorted(chance.sample(range(20, 280), 3)), []
    for word in words:
        line.producer.send_async(f"count {word}".encode(), None)
    line.producer.flush()
    for kill in kills:
        seen += [each.decode() for each in data(receive(line.out, kill - len(seen), timeout=40_000))]
        assert seen == expected[:len(seen)], f"before the kill at {kill}"
        worker.restart()
    seen += [each.decode() for each in data(receive(line.out, len(words) - len(seen), timeout=40_000))]
    assert seen == expected
    assert_nothing(line.out, 500)
    assert {word: value(worker, name, word) for word in counts} == counts
    assert status(worker, name)["instances"][0]["status"]["effectivelyOnce"] == "transactions"


def send_words(producer, *words):
    for word in words:
        producer.send(word.encode())


@in_each_language
def test_windows_of_so_many(client, functions, topic, make, language):
    make(functions, language, "--window-length-count", "3", "--retain-ordering", windows=True)
    line = Line(client, topic)
    send_words(line.producer, *"0123456")
    assert data(receive(line.out, 2)) == [b"0+1+2", b"3+4+5"]
    assert_nothing(line.out)


@in_each_language
def test_windows_of_so_long(client, functions, topic, make, language):
    make(functions, language, "--window-length-duration-ms", "400", "--retain-ordering", windows=True)
    line = Line(client, topic)
    send_words(line.producer, *"012")
    seen = []
    while len(seen) < 3:
        seen += receive(line.out, 1)[0].data().decode().split("+")
    assert seen == ["0", "1", "2"]


class Report(Record):
    text = String()


DEFINITION = '{"type":"record","name":"Report","fields":[{"name":"text","type":["null","string"],"default":null}]}'


@in_each_language
def test_json_in_and_out(client, admin, functions, topic, make, language):
    """By the class in Java, by the definition in the configuration elsewhere; the broker's registry has both."""
    def given(where):
        schema = {"schemaType": "json", "schemaProperties": {"schema": DEFINITION}}
        return json.dumps({where: json.dumps(schema)})
    if language == "java":
        make(functions, language, "--schema-type", "json", "--custom-schema-inputs", json.dumps({topic: json.dumps({"schemaType": "json"})}),
             classname="Same", inputs=())
    else:
        make(functions, language, "--custom-schema-inputs", given(topic), "--custom-schema-outputs", given(f"{topic}-out"), inputs=())
    for each in topic, f"{topic}-out":
        kept = eventually(lambda: schema(admin, each), what=f"{each} has a schema")
        assert (kept["type"], json.loads(kept["data"])["name"]) == ("JSON", "Report")
    out = client.subscribe(f"{topic}-out", "probe", schema=JsonSchema(Report), initial_position=pulsar.InitialPosition.Earliest)
    client.create_producer(topic, schema=JsonSchema(Report)).send(Report(text="small"))
    assert [message.value().text for message in receive(out, 1)] == ["small"]
    with pytest.raises(pulsar.PulsarException):
        client.create_producer(topic, schema=pulsar.schema.StringSchema())


def schema(admin, topic):
    try:
        return admin.get(f"/admin/v2/schemas/public/default/{topic}/schema")
    except urllib.error.HTTPError:
        return None


@in_each_language
def test_a_dead_letter_has_its_reason(client, functions, topic, make, language):
    letters = client.subscribe(f"{topic}-dead", "probe", initial_position=pulsar.InitialPosition.Earliest)
    make(functions, language, "--max-message-retries", "1", "--dead-letter-topic", f"{topic}-dead")
    line = Line(client, topic)
    for text in "good", "bad", "fine":
        line.producer.send(text.encode(), partition_key="k", properties={"mine": "kept"})
    assert sorted(data(receive(line.out, 2))) == [b"fine!", b"good!"]
    (letter,) = receive(letters, 1)
    told = letter.properties()
    assert (letter.data(), letter.partition_key(), told["mine"], told["geminga.attempts"]) == (b"bad", "k", "kept", "2")
    assert "no luck" in told["geminga.reason"] + told.get("geminga.stderr", ""), told


@in_each_language
def test_the_order_is_kept(client, functions, topic, make, language):
    make(functions, language, "--retain-ordering")
    line = Line(client, topic)
    send_numbers(line.producer, 300)
    assert data(receive(line.out, 300)) == [b"%d!" % n for n in range(300)]


@in_each_language
def test_the_order_is_kept_per_key_by_two_instances(client, functions, topic, make, language):
    make(functions, language, "--retain-key-ordering", "--parallelism", "2")
    out = client.subscribe(f"{topic}-out", "probe", initial_position=pulsar.InitialPosition.Earliest)
    producer = client.create_producer(topic, batching_enabled=True, batching_type=pulsar.BatchingType.KeyBased)
    for n in range(20):
        for key in range(10):
            producer.send_async(b"%d" % n, None, partition_key=f"k{key}")
    producer.flush()
    order = {}
    for message in receive(out, 200):
        order.setdefault(message.partition_key(), []).append(int(message.data()[:-1]))
    assert order == {f"k{key}": list(range(20)) for key in range(10)}


@in_each_language
def test_a_pattern_takes_in_a_topic_that_is_made_later(client, functions, topic, make, language):
    client.create_producer(f"{topic}-in-a").close()
    make(functions, language, inputs=("--topics-pattern", f"persistent://public/default/{topic}-in-.*"))
    out = client.subscribe(f"{topic}-out", "probe", initial_position=pulsar.InitialPosition.Earliest)
    # As the code has it in Java. Where nobody has a schema is a matter of crates/functions/tests/it/schemas.rs.
    is_text = language == "java"
    for each in "a", "later":
        producer = client.create_producer(f"{topic}-in-{each}", schema=pulsar.schema.StringSchema() if is_text else pulsar.schema.BytesSchema())
        producer.send(each if is_text else each.encode())
    assert sorted(data(receive(out, 2))) == [b"a!", b"later!"]
    client.create_producer(f"{topic}-other").send(b"other")
    assert_nothing(out)


@in_each_language
def test_one_worker_takes_over_from_another(client, admin, topic, name, make, new_worker, language):
    """Each is killed once while it runs a function with two instances over four partitions: nothing is missing, and what
    is seen first is in order."""
    namespace = f"public/{name[:40]}"
    workers = [new_worker("--lease", "2", namespace=namespace) for _ in range(2)]
    admin.create_partitioned(topic, 4)
    out = client.subscribe(f"{topic}-out", "probe", initial_position=pulsar.InitialPosition.Earliest)
    make(workers[0], language, "--retain-ordering", "--parallelism", "2")
    producer = client.create_producer(topic, batching_enabled=False)
    seen = {key: [] for key in range(8)}

    def send(first):
        for n in range(first, first + 25):
            for key in seen:
                producer.send_async(b"%d" % n, None, partition_key=f"k{key}")
        producer.flush()

    def take(until):
        while any(len(numbers) < until for numbers in seen.values()):
            (message,) = receive(out, 1, timeout=30_000)
            numbers, number = seen[int(message.partition_key()[1:])], int(message.data()[:-1])
            if number not in numbers:
                assert number == len(numbers), f"{message.partition_key()}: {number} after {numbers}"
                numbers.append(number)
    for turn in range(2):
        send(50 * turn)
        take(50 * turn + 5)
        running = next(each for each in workers if runs(each, name))
        running.kill()
        send(50 * turn + 25)
        take(50 * turn + 50)
        running.start()


def runs(worker, name):
    """Whether the function's instances are this worker's."""
    told = status(worker, name)
    return all(each["status"]["workerId"] == worker.told["workerId"] for each in told["instances"])


def test_a_program_with_pulsars_own_instance(client, functions, topic, make, tmp_path):
    """Of Go, by the stand-in that test_compat_runtime.py tells of."""
    if not is_outside() or not shutil.which("go"):
        pytest.skip("test_compat_runtime.py has it, or there is no Go")
    program = tmp_path / "exclaim"
    subprocess.run(["go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "./exclaim"], check=True,
                   cwd=ROOT / "tests/conformance/go-instance", env=dict(os.environ, CGO_ENABLED="0", GOWORK="off"), timeout=120)
    make.create(functions, make.name, "--go", program, "--user-config", '{"suffix":"!"}')
    line = Line(client, topic)
    assert line.ask("hello") == "hello!"
    eventually(lambda: status(functions, make.name)["instances"][0]["status"]["numSuccessfullyProcessed"] == 1)


def test_a_jar_in_pulsars_own_instance(client, admin, functions, topic, make):
    if not is_outside() or not os.environ.get("GEMINGA_PULSAR_HOME"):
        pytest.skip("test_compat_runtime.py has it, or there is no Pulsar's own instance")
    jar = next(pathlib.Path(os.environ["GEMINGA_PULSAR_HOME"], "lib").glob("pulsar-functions-api-examples-*.jar"))
    make.create(functions, make.name, "--jar", jar, "--classname", "org.apache.pulsar.functions.api.examples.ExclamationFunction",
                "--custom-runtime-options", '{"runtime":"compat"}')
    # It brings the topic its schema, which Pulsar takes on no topic in use; the subscription is there before.
    eventually(lambda: admin.stats(topic)["subscriptions"][f"public/default/{make.name}"]["consumers"], 90, "the instance reads")
    out = client.subscribe(f"{topic}-out", "probe", initial_position=pulsar.InitialPosition.Earliest)
    client.create_producer(topic).send(b"hello")
    assert data(receive(out, 1, timeout=90_000)) == [b"hello!"]


def test_without_transactions_it_is_said_what_is_not_covered(new_client, new_worker, make, topic, name, tmp_path, request):
    """Of an Apache Pulsar whose transactions are off: outputs once by their sequence ids where there is deduplication."""
    home = os.environ.get("PULSAR_DIST")
    if not home or not request.getfixturevalue("is_apache_pulsar"):
        pytest.skip("needs an Apache Pulsar to start: tests/pulsar/run")
    sys.path.insert(0, str(ROOT / "bench"))
    from servers import Pulsar
    Pulsar.HEAP = "512m"
    broker = Pulsar(tmp_path / "pulsar", home)
    settings = pathlib.Path(broker.folder, "standalone.conf")
    settings.write_text(settings.read_text().replace("transactionCoordinatorEnabled=true", "transactionCoordinatorEnabled=false")
                        + "brokerDeduplicationEnabled=true\n")
    try:
        broker.start()
        new_worker.server = broker
        worker = new_worker("--lease", "2", namespace="public/own")
        make(worker, "python", "--processing-guarantees", "EFFECTIVELY_ONCE")
        told = eventually(lambda: status(worker, name)["instances"][0]["status"].get("effectivelyOnce"))
        assert told.startswith("sequence ids, since the broker has no transactions") and "state may see a message again" in told
        line = Line(new_client(broker.service_url), topic)
        send_numbers(line.producer, 300)
        seen = data(receive(line.out, 100))
        worker.restart()
        seen += data(receive(line.out, 200, timeout=40_000))
        assert seen == [b"%d!" % n for n in range(300)]
        assert_nothing(line.out, 500)
    finally:
        for each in new_worker.made:
            each.close()
        new_worker.made.clear()
        make.made.clear()
        broker.stop()
