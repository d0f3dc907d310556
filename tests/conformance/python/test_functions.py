"""Functions as a user has them: made by the command line, fed and read by the official client."""

import os
import pathlib
import re
import signal
import time

import pulsar
import pytest

from cli import create_function, geminga, status
from server import ROOT, is_outside
from support import data, eventually, receive, send_numbers

pytestmark = pytest.mark.skipif(is_outside(), reason="Geminga's own functions; this server is an outside one")

SAMPLES = ROOT / "examples"


@pytest.fixture
def name(topic):
    return re.sub(r"[^\w-]", "-", topic)


@pytest.fixture
def fresh(server, name):
    """Makes a function and deletes it when the test ends; `fresh(language, code or file, *flags)`."""
    made = []

    def make(language, code, *arguments, as_name=name):
        create_function(server, as_name, language, code, *arguments)
        made.append(as_name)
    yield make
    for each in made:
        geminga(server, "functions", "delete", "--name", each)


def script(folder, text, file="script.sh", mode=0o755):
    path = folder / file
    path.write_text(text)
    path.chmod(mode)
    return path


def through(client, topic, *messages, count=None, **options):
    """Sends messages in, gives what comes out; the output subscription is made before anything is sent."""
    consumer = client.subscribe(f"{topic}-out", "probe", initial_position=pulsar.InitialPosition.Earliest)
    producer = client.create_producer(topic)
    for message in messages:
        producer.send(message, **options)
    got = receive(consumer, count or len(messages))
    consumer.close()
    return got


def wired(topic, *more):
    return ["--inputs", topic, "--output-topic", f"{topic}-out", "--subs-position", "Earliest", *more]


@pytest.mark.parametrize("mode", ["warm", "spawn"])
@pytest.mark.parametrize("sample,given,wanted", [
    ("exclamation.sh", b"hello", b"hello!"), ("reverse.sh", b"abc def", b"fed cba"), ("wordcount.sh", b"one two  three\nfour", b"4"),
], ids=["exclamation", "reverse", "wordcount"])
def test_the_samples_of_the_task_paper(client, fresh, topic, sample, given, wanted, mode):
    options = ["--custom-runtime-options", '{"mode": "spawn"}'] if mode == "spawn" else []
    fresh("--sh", SAMPLES / "bash" / sample, *wired(topic, *options))
    assert data(through(client, topic, given)) == [wanted]


def test_a_warm_bash_function_keeps_order(client, fresh, topic, tmp_path):
    fresh("--sh", script(tmp_path, 'process() { emit "$MSG!"; }\n'), *wired(topic, "--retain-ordering"))
    consumer = client.subscribe(f"{topic}-out", "probe", initial_position=pulsar.InitialPosition.Earliest)
    send_numbers(client.create_producer(topic, batching_enabled=True, max_pending_messages=2000), 2000)
    assert data(receive(consumer, 2000)) == [b"%d!" % n for n in range(2000)]


def test_a_python_module_function(client, fresh, topic, tmp_path):
    fresh("--py", script(tmp_path, "def process(input):\n    return input.upper()\n", "shout.py"), *wired(topic))
    assert data(through(client, topic, b"a", "ü".encode(), b"")) == [b"A", "Ü".encode(), b""]


PULSAR_FUNCTION = """\
from pulsar import Function

class Greeter(Function):
    def process(self, input, context):
        context.get_logger().info("greeting %s", input)
        if context.get_message_properties().get("aside"):
            context.publish(context.get_user_config_value("aside"), "aside: " + input)
        context.incr_counter("greeted", 1)
        return "%s %s, key %s, number %d" % (
            context.get_user_config_value("word"), input, context.get_message_key(), context.get_counter("greeted"))
"""


def test_a_pulsar_function_class_runs_unmodified(client, fresh, topic, tmp_path):
    config = f'{{"word": "ciao", "aside": "{topic}-aside"}}'
    fresh("--py", script(tmp_path, PULSAR_FUNCTION, "greeter.py"), *wired(topic, "--classname", "greeter.Greeter", "--user-config", config))
    aside = client.subscribe(f"{topic}-aside", "probe", initial_position=pulsar.InitialPosition.Earliest)
    got = through(client, topic, b"ada", b"bob", partition_key="k7", properties={"aside": "yes"})
    assert data(got) == [b"ciao ada, key k7, number 1", b"ciao bob, key k7, number 2"]
    assert {message.partition_key() for message in got} == {"k7"}
    assert data(receive(aside, 2)) == [b"aside: ada", b"aside: bob"]


def test_outputs_say_where_they_come_from(client, fresh, topic, tmp_path):
    fresh("--py", script(tmp_path, "def process(input):\n    return input\n", "same.py"), *wired(topic))
    (message,) = through(client, topic, b"x")
    assert message.properties()["__pfn_input_topic__"] == f"persistent://public/default/{topic}"
    assert message.properties()["__pfn_input_msg_id__"]


@pytest.mark.parametrize("language,file,code", [
    ("--sh", "bad.sh", 'process() { [ "$MSG" = bad ] && { echo "cannot do bad" >&2; return 3; }; emit "$MSG"; }\n'),
    ("--py", "bad.py", "def process(input):\n    if input == 'bad':\n        raise ValueError('cannot do bad')\n    return input\n"),
], ids=["bash", "python"])
def test_failures_are_retried_and_end_in_the_dead_letters(client, fresh, topic, tmp_path, language, file, code):
    letters = client.subscribe(f"{topic}-dead", "probe")
    fresh(language, script(tmp_path, code, file), *wired(topic, "--max-message-retries", "2", "--dead-letter-topic", f"{topic}-dead"))
    got = through(client, topic, b"good", b"bad", b"fine", count=2, properties={"mine": "kept"})
    assert sorted(data(got)) == [b"fine", b"good"]
    (letter,) = receive(letters, 1)
    assert letter.data() == b"bad"
    assert letter.properties()["mine"] == "kept"
    assert "cannot do bad" in " ".join(letter.properties().values()), letter.properties()


def test_status_counts(client, server, fresh, topic, name, tmp_path):
    fresh("--py", script(tmp_path, "def process(input):\n    return input\n", "same.py"), *wired(topic))
    through(client, topic, b"1", b"2", b"3")

    def counted():
        told = status(server, name)
        instance = told["instances"][0]["status"]
        return told["numRunning"] == 1 and instance["numReceived"] == 3 and instance["numSuccessfullyProcessed"] == 3
    eventually(counted)


def test_parallel_instances_keep_the_order_per_key(client, fresh, topic, tmp_path):
    fresh("--py", script(tmp_path, "def process(input):\n    return input\n", "same.py"),
          *wired(topic, "--parallelism", "3", "--retain-key-ordering"))
    consumer = client.subscribe(f"{topic}-out", "probe", initial_position=pulsar.InitialPosition.Earliest)
    producer = client.create_producer(topic, batching_enabled=True, batching_type=pulsar.BatchingType.KeyBased)
    for n in range(40):
        for key in range(25):
            producer.send_async(b"%d" % n, None, partition_key=f"k{key}")
    producer.flush()
    order = {}
    for message in receive(consumer, 1000):
        order.setdefault(message.partition_key(), []).append(int(message.data()))
    assert order == {f"k{key}": list(range(40)) for key in range(25)}


BAD = {
    "exits-1": "exit 1\n",
    "hangs": "sleep 1000\n",
    "prints-100-mb": "head -c 100000000 /dev/zero\n",
    "floods-stderr": "head -c 20000000 /dev/zero | tr '\\0' x >&2; exit 1\n",
    "kills-itself": "kill -9 $$\n",
    "forks": "sleep 1000 & sleep 1000 & exit 1\n",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_script_hurts_only_itself(client, server, fresh, topic, name, tmp_path, kind):
    """The message ends in the dead letters, a neighbour goes on, and no process stays behind."""
    letters = client.subscribe(f"{topic}-dead", "probe")
    mark = f"geminga-conformance-{os.getpid()}-{time.time_ns()}"
    fresh("--sh", script(tmp_path, f"#!/bin/bash\nexport MARK={mark}\n" + BAD[kind]),
          *wired(topic, "--custom-runtime-options", '{"mode": "spawn"}', "--timeout-ms", "1000", "--max-message-retries", "1",
                 "--dead-letter-topic", f"{topic}-dead"))
    good = f"{topic}-good"
    fresh("--sh", script(tmp_path, 'process() { emit "$MSG!"; }\n', "good.sh"), *wired(good), as_name=f"{name}-good")
    client.create_producer(topic).send(b"poison")
    assert data(through(client, good, b"1", b"2")) == [b"1!", b"2!"]
    (letter,) = receive(letters, 1)
    assert letter.data() == b"poison"
    eventually(lambda: not marked(mark), what="what the script started is ended")


def marked(mark):
    found = []
    for folder in pathlib.Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if mark.encode() in (folder / "environ").read_bytes():
                    found.append(folder.name)
            except OSError:
                pass
    return found


def test_a_missing_script_is_refused(server, name, topic, tmp_path):
    error = create_function(server, name, "--sh", tmp_path / "nowhere.sh", *wired(topic), code=2)
    assert re.search(r"^error\[G\d{4}\]: .*nowhere\.sh", error, re.M) and "help:" in error


def test_a_script_with_a_syntax_error_is_refused_or_told(server, fresh, topic, name, tmp_path):
    try:
        fresh("--sh", script(tmp_path, "process() { if; }\n"), *wired(topic))
    except AssertionError as refused:
        assert "error[G" in str(refused) and "syntax error" in str(refused)
        return
    eventually(lambda: "syntax error" in str(status(server, name)), what="the status says what is wrong")


def test_the_same_name_twice_is_refused(server, fresh, topic, name, tmp_path):
    path = script(tmp_path, 'process() { emit "$MSG"; }\n')
    fresh("--sh", path, *wired(topic))
    assert "already exists" in create_function(server, name, "--sh", path, *wired(topic), code=4)


def test_deleting_ends_the_processes(client, server, topic, name, tmp_path):
    create_function(server, name, "--py", script(tmp_path, "import os\ndef process(input):\n    return str(os.getpid())\n", "pid.py"), *wired(topic))
    pid = int(through(client, topic, b"x")[0].data())
    assert os.path.exists(f"/proc/{pid}")
    geminga(server, "functions", "delete", "--name", name)
    eventually(lambda: not os.path.exists(f"/proc/{pid}"))
    assert name not in geminga(server, "functions", "list")


def test_a_killed_host_is_replaced(client, server, fresh, topic, name, tmp_path):
    fresh("--py", script(tmp_path, "import os\ndef process(input):\n    return str(os.getpid())\n", "pid.py"), *wired(topic))
    consumer = client.subscribe(f"{topic}-out", "probe", initial_position=pulsar.InitialPosition.Earliest)
    producer = client.create_producer(topic)
    producer.send(b"1")
    first = int(receive(consumer, 1)[0].data())
    os.kill(first, signal.SIGKILL)
    producer.send(b"2")
    assert int(receive(consumer, 1)[0].data()) != first


@pytest.mark.own_server
def test_state_survives_kill(own_server, new_client, topic, tmp_path):
    code = "class Counter:\n    def process(self, input, context):\n        context.incr_counter('n', 1)\n        return str(context.get_counter('n'))\n"
    create_function(own_server, "counter", "--py", script(tmp_path, code, "counter.py"), *wired(topic, "--classname", "counter.Counter"))
    client = new_client(own_server.service_url)
    consumer = client.subscribe(f"{topic}-out", "probe", initial_position=pulsar.InitialPosition.Earliest)
    producer = client.create_producer(topic)
    for n in range(3):
        producer.send(b"x")
        assert int(receive(consumer, 1)[0].data()) == n + 1
    own_server.restart()
    producer.send(b"x")
    got = int(receive(consumer, 1)[0].data())
    while got < 4:                       # an output of before the crash may come again
        got = int(receive(consumer, 1)[0].data())
    assert got == 4
