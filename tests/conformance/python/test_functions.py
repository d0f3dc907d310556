"""Functions as a user has them: made by the command line, fed and read by the official client."""

import concurrent.futures
import functools
import http.server
import os
import pathlib
import re
import signal
import ssl
import subprocess
import threading
import time
import urllib.request

import pulsar
import pytest

from cli import create_function, geminga, status
from server import ROOT, Server, has_functions
from support import assert_nothing, data, eventually, receive, send_numbers

pytestmark = pytest.mark.skipif(not has_functions(), reason="Geminga's own functions; this server is an outside one")

SAMPLES = ROOT / "examples"


@pytest.fixture
def name(topic):
    return re.sub(r"[^\w-]", "-", topic)


@pytest.fixture
def fresh(functions, name):
    """Makes a function and deletes it when the test ends; `fresh(language, code or file, *flags)`."""
    made = []

    def make(language, code, *arguments, as_name=name):
        create_function(functions, as_name, language, code, *arguments)
        made.append(as_name)
    yield make
    for each in made:
        geminga(functions, "functions", "delete", "--name", each)


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


def test_inputs_by_name_and_by_pattern_together(client, fresh, topic, tmp_path):
    client.create_producer(f"{topic}-in-a").close()
    # One topic is named and matches too.
    fresh("--sh", script(tmp_path, 'process() { emit "$MSG"; }\n'), "--inputs", f"{topic}-named,{topic}-in-b",
          "--topics-pattern", f"persistent://public/default/{topic}-in-.*", "--output-topic", f"{topic}-in-out", "--subs-position", "Earliest")
    consumer = client.subscribe(f"{topic}-in-out", "probe", initial_position=pulsar.InitialPosition.Earliest)
    # The last one joins when it is made; nobody reads the outputs, whose name matches.
    for name in ["named", "in-a", "in-b", "in-late"]:
        client.create_producer(f"{topic}-{name}").send(name.encode())
    assert sorted(data(receive(consumer, 4))) == [b"in-a", b"in-b", b"in-late", b"named"]
    assert_nothing(consumer)


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


def test_status_counts(client, functions, fresh, topic, name, tmp_path):
    fresh("--py", script(tmp_path, "def process(input):\n    return input\n", "same.py"), *wired(topic))
    through(client, topic, b"1", b"2", b"3")

    def counted():
        told = status(functions, name)
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
def test_a_bad_script_hurts_only_itself(client, functions, fresh, topic, name, tmp_path, kind):
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


def test_a_missing_script_is_refused(functions, name, topic, tmp_path):
    error = create_function(functions, name, "--sh", tmp_path / "nowhere.sh", *wired(topic), code=2)
    assert re.search(r"^error\[G\d{4}\]: .*nowhere\.sh", error, re.M) and "help:" in error


def test_a_script_with_a_syntax_error_is_refused_or_told(functions, fresh, topic, name, tmp_path):
    try:
        fresh("--sh", script(tmp_path, "process() { if; }\n"), *wired(topic))
    except AssertionError as refused:
        assert "error[G" in str(refused) and "syntax error" in str(refused)
        return
    eventually(lambda: "syntax error" in str(status(functions, name)), what="the status says what is wrong")


def test_the_same_name_twice_is_refused(functions, fresh, topic, name, tmp_path):
    path = script(tmp_path, 'process() { emit "$MSG"; }\n')
    fresh("--sh", path, *wired(topic))
    assert "already exists" in create_function(functions, name, "--sh", path, *wired(topic), code=4)


def test_deleting_ends_the_processes(client, functions, topic, name, tmp_path):
    create_function(functions, name, "--py", script(tmp_path, "import os\ndef process(input):\n    return str(os.getpid())\n", "pid.py"), *wired(topic))
    pid = int(through(client, topic, b"x")[0].data())
    assert os.path.exists(f"/proc/{pid}")
    geminga(functions, "functions", "delete", "--name", name)
    eventually(lambda: not os.path.exists(f"/proc/{pid}"))
    assert name not in geminga(functions, "functions", "list")


def test_a_killed_host_is_replaced(client, functions, fresh, topic, name, tmp_path):
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


def test_an_update_under_load_loses_nothing(client, functions, fresh, topic, name, tmp_path):
    """Each message is answered, by the old code or the new, in order where it is kept; the old code is gone afterwards."""
    def code(word):
        return script(tmp_path, f"def process(input):\n    return '{word} %s' % input\n", f"{word}.py")
    fresh("--py", code("old"), *wired(topic, "--retain-ordering"))
    consumer = client.subscribe(f"{topic}-out", "probe", initial_position=pulsar.InitialPosition.Earliest)
    producer = client.create_producer(topic, batching_enabled=False)
    stop, sent = threading.Event(), []

    def send():
        while not stop.is_set():
            producer.send(b"%d" % len(sent))
            sent.append(None)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        got = [receive(consumer, 1)[0].data().decode().split()]
        geminga(functions, "functions", "update", "--name", name, "--py", code("new"))
        while got[-1][0] != "new":
            got.append(receive(consumer, 1)[0].data().decode().split())
    finally:
        stop.set()
        sender.join()
    got += [m.data().decode().split() for m in receive(consumer, len(sent) - len(got))]
    assert [int(number) for _, number in got] == list(range(len(sent)))
    words = [word for word, _ in got]
    assert words == sorted(words, key=["old", "new"].index) and set(words) == {"old", "new"}
    assert_nothing(consumer)


def test_a_new_version_that_does_not_start_leaves_the_old_one(client, functions, fresh, topic, name, tmp_path):
    options = ["--custom-runtime-options", '{"onFailedUpdate": "rollback"}']
    fresh("--py", script(tmp_path, "def process(input):\n    return 'old %s' % input\n", "old.py"), *wired(topic, *options))
    assert data(through(client, topic, b"1")) == [b"old 1"]
    bad = script(tmp_path, "import no_such_module\n", "bad.py")
    said = geminga(functions, "functions", "update", "--name", name, "--py", bad, *options, code=1)
    assert "no_such_module" in said
    consumer = client.subscribe(f"{topic}-out", "probe")
    client.create_producer(topic).send(b"2")
    assert data(receive(consumer, 1)) == [b"old 2"]


def test_a_call_over_http_is_a_message_like_any_other(client, functions, fresh, topic, name, tmp_path):
    """Its answer is the function's output for it, also beside other messages, and both are on the topics for clients to read."""
    fresh("--py", script(tmp_path, "def process(input):\n    return input.upper()\n", "shout.py"), *wired(topic))
    given, answered = (client.subscribe(each, "probe", initial_position=pulsar.InitialPosition.Earliest) for each in (topic, f"{topic}-out"))
    producer = client.create_producer(topic)

    def call(number):
        request = urllib.request.Request(f"{functions.admin_url}/functions/public/default/{name}", data=b"call %d" % number, method="POST",
                                         headers={"X-Pulsar-Key": f"k{number}", "X-Pulsar-Property-colour": "red"})
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.headers["X-Pulsar-Property-colour"], response.read()
    with concurrent.futures.ThreadPoolExecutor(8) as callers:
        answers = callers.map(call, range(30))
        for number in range(30):
            producer.send(b"message %d" % number)
        assert list(answers) == [("red", b"CALL %d" % number) for number in range(30)]
    came = receive(given, 60)
    assert {m.partition_key() for m in came if m.data().startswith(b"call")} == {f"k{number}" for number in range(30)}
    assert all(m.properties()["colour"] == "red" for m in came if m.data().startswith(b"call"))
    assert sorted(data(receive(answered, 60))) == sorted(m.data().upper() for m in came)


@pytest.mark.own_server
def test_code_comes_over_tls_from_whom_the_machine_trusts(new_client, topic, tmp_path, monkeypatch):
    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=tmp_path)
    fresh_key = ["-newkey", "rsa:2048", "-nodes"]
    openssl("req", "-x509", *fresh_key, "-days", "2", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca")
    openssl("req", *fresh_key, "-keyout", "key.pem", "-out", "request", "-subj", "/CN=localhost")
    (tmp_path / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    openssl("x509", "-req", "-in", "request", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-out", "certificate.pem",
            "-extfile", "names")
    pages = tmp_path / "pages"
    pages.mkdir()
    script(pages, "def process(input):\n    return input + '!'\n", "bang.py")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=pages)
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    web.socket = context.wrap_socket(web.socket, server_side=True)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    url = f"https://127.0.0.1:{web.server_port}/bang.py"
    try:
        stranger = Server(ephemeral=True).start()
        try:
            said = create_function(stranger, "bang", "--py", url, *wired(topic), code=1)
        finally:
            stranger.close()
        assert "certificate" in said.lower(), said
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        trusting = Server(ephemeral=True).start()
        try:
            create_function(trusting, "bang", "--py", url, *wired(topic))
            assert data(through(new_client(trusting.service_url), topic, b"x")) == [b"x!"]
        finally:
            trusting.close()
    finally:
        web.shutdown()
