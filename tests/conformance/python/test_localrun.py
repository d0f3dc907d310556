"""The worker without a server of its own: `functions localrun` and `run --service-url` against any broker.

Against Geminga in the ordinary run; `tests/pulsar/run` runs the same against Apache Pulsar."""

import random
import shutil
import signal
import subprocess
import sys
import threading

import pulsar
import pytest

from server import ROOT, binary
from support import assert_nothing, data, eventually, receive, send_numbers

READY_SECONDS = 20


class Local:
    """A `geminga functions localrun` and all that it said."""

    def __init__(self, server, *arguments):
        command = [binary(), "functions", "localrun", "--service-url", server.service_url, *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.said = []
        self.reader = threading.Thread(target=lambda: self.said.extend(iter(self.process.stderr.readline, "")), daemon=True)
        self.reader.start()
        try:
            eventually(lambda: self.process.poll() is not None or any("Ctrl-C ends it" in line for line in self.said), READY_SECONDS)
            assert self.process.poll() is None, self.text()
        except AssertionError:
            self.kill()
            raise

    def text(self):
        return "".join(self.said)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        """As Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)
        try:
            assert self.process.wait(10) == 0, self.text()
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"it did not end within 10 s of SIGINT: {self.text()}") from None


@pytest.fixture
def local(server, topic):
    """Runs a function from `topic` to `topic`-out; `local(flag, file, *more)`."""
    running = []

    def run(*arguments, name=topic, inputs=("--inputs", topic)):
        each = Local(server, "--name", name, *inputs, "--output-topic", f"{topic}-out", "--subs-position", "Earliest",
                     *arguments)
        running.append(each)
        return each
    yield run
    for each in running:
        if each.process.poll() is None:
            each.stop()


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return path


def output_of(client, topic):
    return client.subscribe(f"{topic}-out", "probe", initial_position=pulsar.InitialPosition.Earliest)


RUNTIMES = {
    "bash-warm": ("--sh", "f.sh", "#!/bin/bash\nread -r line; echo \"${line^^}\"\n", None),
    "bash-process": ("--sh", "f.sh", "process() { emit \"${MSG^^}\"; }\n", None),
    "bash-spawn": ("--sh", "f.sh", "#!/bin/bash\ntr a-z A-Z\n", '{"mode": "spawn"}'),
    "exec-spawn": ("--exec", "f", "#!/usr/bin/env python3\nimport sys\nprint(sys.stdin.read().upper(), end='')\n", '{"mode": "spawn"}'),
    "exec-stream": ("--exec", "f", "#!/bin/bash\nwhile read -r line; do echo \"${line^^}\"; done\n",
                    '{"mode": "stream", "framing": "line"}'),
    "exec-batch": ("--exec", "f", "#!/bin/bash\ntr a-z A-Z\n", '{"mode": "batch"}'),
    "python-function": ("--py", "f.py", "def process(input):\n    return input.upper()\n", None),
    "python-class": ("--py", "f.py", "from pulsar import Function\n\nclass Loud(Function):\n"
                     "    def process(self, input, context):\n        return input.upper()\n", None),
}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_each_runtime(client, local, topic, tmp_path, runtime):
    flag, name, code, options = RUNTIMES[runtime]
    more = ["--custom-runtime-options", options] if options else []
    if runtime == "python-class":
        more += ["--classname", "f.Loud"]
    consumer = output_of(client, topic)
    local(flag, write(tmp_path, name, code), *more)
    producer = client.create_producer(topic)
    words = [b"one", b"two", b"three"]
    for word in words:
        producer.send(word, partition_key="k", properties={"mine": "kept"})
    got = receive(consumer, 3)
    assert data(got) == [b"ONE", b"TWO", b"THREE"]
    if runtime != "exec-batch":       # there a line out is of no line in
        assert {message.properties()["__pfn_input_topic__"] for message in got} == {f"persistent://public/default/{topic}"}


def test_order_of_2000(client, local, topic, tmp_path):
    consumer = output_of(client, topic)
    send_numbers(client.create_producer(topic, batching_enabled=True, max_pending_messages=2000), 2000)
    local("--py", write(tmp_path, "f.py", "def process(input):\n    return input\n"), "--retain-ordering")
    assert data(receive(consumer, 2000)) == [b"%d" % n for n in range(2000)]


def test_partitions_and_instances(client, admin, local, topic, tmp_path):
    admin.create_partitioned(topic, 3)
    consumer = output_of(client, topic)
    local("--py", write(tmp_path, "f.py", "def process(input):\n    return input\n"), "--retain-key-ordering", "--parallelism", "2")
    producer = client.create_producer(topic, batching_enabled=True, batching_type=pulsar.BatchingType.KeyBased)
    for n in range(50):
        for key in range(10):
            producer.send_async(b"%d" % n, None, partition_key=f"k{key}")
    producer.flush()
    seen = {}
    for message in receive(consumer, 500):
        seen.setdefault(message.partition_key(), []).append(int(message.data()))
    assert seen == {f"k{key}": list(range(50)) for key in range(10)}


def test_failures_end_in_the_dead_letters(client, local, topic, tmp_path):
    letters = client.subscribe(f"{topic}-dead", "probe", initial_position=pulsar.InitialPosition.Earliest)
    consumer = output_of(client, topic)
    code = "def process(input):\n    if input == 'bad':\n        raise ValueError('cannot do bad')\n    return input\n"
    local("--py", write(tmp_path, "f.py", code), "--max-message-retries", "2", "--dead-letter-topic", f"{topic}-dead")
    producer = client.create_producer(topic)
    for word in (b"good", b"bad", b"fine"):
        producer.send(word, properties={"mine": "kept"})
    assert sorted(data(receive(consumer, 2))) == [b"fine", b"good"]
    (letter,) = receive(letters, 1)
    assert letter.data() == b"bad" and letter.properties()["mine"] == "kept"
    assert "cannot do bad" in " ".join(letter.properties().values()), letter.properties()


def test_state_config_and_side_outputs(client, local, topic, tmp_path):
    code = ("from pulsar import Function\n\nclass Count(Function):\n    def process(self, input, context):\n"
            "        context.incr_counter(input, 1)\n"
            "        context.publish(context.get_user_config_value('aside'), 'saw ' + input)\n"
            "        return '%s %d' % (input, context.get_counter(input))\n")
    consumer = output_of(client, topic)
    aside = client.subscribe(f"{topic}-aside", "probe", initial_position=pulsar.InitialPosition.Earliest)
    local("--py", write(tmp_path, "f.py", code), "--classname", "f.Count", "--user-config", f'{{"aside": "{topic}-aside"}}')
    producer = client.create_producer(topic)
    for word in (b"a", b"b", b"a"):
        producer.send(word)
    assert data(receive(consumer, 3)) == [b"a 1", b"b 1", b"a 2"]
    assert data(receive(aside, 3)) == [b"saw a", b"saw b", b"saw a"]


def test_nothing_is_missing_after_kill_9_of_the_worker(client, local, topic, tmp_path):
    consumer = output_of(client, topic)
    code = write(tmp_path, "f.py", "def process(input):\n    return input\n")
    send_numbers(client.create_producer(topic, batching_enabled=True, max_pending_messages=5000), 5000)
    first = local("--py", code)
    seen = {int(message.data()) for message in receive(consumer, 500)}
    first.kill()
    local("--py", code)
    while len(seen) < 5000:
        seen.add(int(receive(consumer, 1)[0].data()))


COUNT = """from pulsar import Function

class Count(Function):
    def process(self, input, context):
        key = 'k%d' % (int(input) % 7)
        context.incr_counter(key, 1)
        return '%s %d' % (input, context.get_counter(key))
"""


def test_state_goes_on_in_the_next_run(client, admin, local, topic, tmp_path):
    code = ("--py", write(tmp_path, "f.py", COUNT), "--classname", "f.Count")
    consumer = output_of(client, topic)
    producer = client.create_producer(topic)
    for run, end in enumerate(["stop", "kill", "stop"]):
        running = local(*code)
        producer.send(b"3")
        assert data(receive(consumer, 1)) == [b"3 %d" % (run + 1)]
        # State is on the broker before its message is acknowledged.
        eventually(lambda: admin.backlog(topic, f"public/default/{topic}") == 0)
        getattr(running, end)()


def test_effectively_once_over_kills(client, local, topic, tmp_path, seed):
    """Each output once and in order, and every counter as of one undisturbed run."""
    chance = random.Random(seed)
    code = ("--py", write(tmp_path, "f.py", COUNT), "--classname", "f.Count", "--processing-guarantees", "EFFECTIVELY_ONCE")
    consumer = output_of(client, topic)
    count = 1_500
    send_numbers(client.create_producer(topic, batching_enabled=True, max_pending_messages=2000), count)
    expected = [b"%d %d" % (n, n // 7 + 1) for n in range(count)]
    seen = []
    for kill in range(4):
        running = local(*code)
        wanted = chance.randrange(1, 250)
        seen += data(receive(consumer, min(wanted, count - len(seen)), timeout=40_000))
        assert seen == expected[:len(seen)], f"before kill {kill}"
        running.kill()
    local(*code)
    seen += data(receive(consumer, count - len(seen), timeout=40_000))
    assert seen == expected
    assert_nothing(consumer, 1_000)


def test_a_pattern_reads_every_topic_that_fits(client, local, topic, tmp_path):
    producers = [client.create_producer(f"{topic}-{name}") for name in ("in-0", "in-1", "other")]
    consumer = output_of(client, topic)
    for number, producer in enumerate(producers):
        producer.send(b"%d" % number)
    local("--py", write(tmp_path, "f.py", "def process(input):\n    return input\n"),
          inputs=("--topics-pattern", f"persistent://public/default/{topic}-in-.*"))
    assert sorted(data(receive(consumer, 2))) == [b"0", b"1"]
    assert_nothing(consumer)


def test_a_typed_output_has_its_schema(client, local, topic, tmp_path):
    consumer = client.subscribe(f"{topic}-out", "probe", schema=pulsar.schema.StringSchema())
    local("--py", write(tmp_path, "f.py", "def process(input):\n    return input.upper()\n"), "--schema-type", "STRING")
    client.create_producer(topic, schema=pulsar.schema.StringSchema()).send("words")
    message = consumer.receive(15_000)
    assert message.value() == "WORDS"
    consumer.acknowledge(message)


def test_logs_of_the_function_are_shown(client, local, topic, tmp_path):
    running = local("--sh", write(tmp_path, "f.sh", "process() { log info \"saw $MSG\"; emit x; }\n"))
    client.create_producer(topic).send(b"ada")
    eventually(lambda: any("saw ada" in line for line in running.said))


def test_it_works_on_with_a_broken_function_beside_it(client, local, topic, tmp_path):
    consumer = output_of(client, topic)
    local("--py", write(tmp_path, "f.py", "def process(input):\n    return input\n"))
    broken = write(tmp_path, "broken.py", "import sys\nsys.exit(3)\n")
    local("--py", broken, name=f"{topic}-broken")
    client.create_producer(topic).send(b"1")
    assert data(receive(consumer, 1)) == [b"1"]


def run_earthquakes(server, folder):
    done = subprocess.run([binary(), "run", "--service-url", server.service_url, "earthquakes/mesh.yaml"], cwd=folder,
                          capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    answer = subprocess.run([sys.executable, "earthquakes/check.py"], cwd=folder, capture_output=True, text=True)
    return done.stdout, answer


def test_the_earthquakes_mesh(server, tmp_path):
    shutil.copytree(ROOT / "examples/earthquakes", tmp_path / "earthquakes", ignore=shutil.ignore_patterns("out"))
    table, answer = run_earthquakes(server, tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "California             817       4.33" in table
    # State is kept on the broker: a second run counts on from the first, and reads nothing of it again.
    table, _ = run_earthquakes(server, tmp_path)
    assert "California            1634       4.33" in table


@pytest.mark.parametrize("words", [
    ["functions", "localrun", "--sh", ROOT / "examples/bash/reverse.sh", "--inputs", "a", "--output-topic", "b"],
    ["run", ROOT / "examples/earthquakes/mesh.yaml"], ["produce", "a", "-m", "x"], ["consume", "a", "-n", "1"],
], ids=["localrun", "run", "produce", "consume"])
def test_no_broker_is_one_error(words):
    done = subprocess.run([binary(), *map(str, words), "--service-url", "pulsar://127.0.0.1:1"],
                          capture_output=True, text=True, timeout=30)
    assert done.returncode == 6, done.stderr
    assert done.stderr.count("error[") == 1 and "help:" in done.stderr, done.stderr
