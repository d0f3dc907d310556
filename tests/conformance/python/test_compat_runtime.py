"""The runtime `compat`: programs and jars in Pulsar's own function instance, which brings a client of its own.

Go: a program with a stand-in for Pulsar's instance (`tests/conformance/go-instance`), since no module proxy has the real
one. Java: the real `JavaInstanceMain`, from the folder that `tests/conformance/pulsar` gives; without one these are skipped."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess

import pulsar
import pytest

from cli import create_function, geminga, status
from server import ROOT, Server, binary, is_outside
from support import Admin, data, eventually, receive

pytestmark = pytest.mark.skipif(is_outside(), reason="Geminga's own functions; this server is an outside one")

COMPAT = '{"runtime":"compat"}'
START_SECONDS = 90


def distribution():
    """A folder with Pulsar's own instance; skips, and says why, where there is none."""
    found = subprocess.run([ROOT / "tests/conformance/pulsar"], capture_output=True, text=True, timeout=600)
    if found.returncode:
        pytest.skip(found.stdout.strip() or found.stderr.strip())
    return pathlib.Path(found.stdout.strip())


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    if not shutil.which("go"):
        pytest.skip("no go here")
    path = tmp_path_factory.mktemp("go") / "exclaim"
    subprocess.run(["go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "./exclaim"], check=True,
                   cwd=ROOT / "tests/conformance/go-instance", env=dict(os.environ, CGO_ENABLED="0", GOWORK="off"), timeout=300)
    return path


@pytest.fixture
def name(topic):
    return re.sub(r"[^\w-]", "-", topic)


@pytest.fixture
def made(server, name):
    """Makes a function from `topic` to `topic`-out, and deletes it at the end."""
    names = []

    def make(language, code, *arguments):
        topic = name
        create_function(server, name, language, code, "--inputs", topic, "--output-topic", f"{topic}-out", "--subs-position",
                        "Earliest", *arguments)
        names.append(name)
        return topic
    yield make
    for each in names:
        geminga(server, "functions", "delete", "--name", each)


def ends(client, topic):
    out = client.subscribe(f"{topic}-out", "probe", initial_position=pulsar.InitialPosition.Earliest)
    return client.create_producer(topic), out


def instance(server, name):
    return status(server, name)["instances"][0]["status"]


def is_alive(pid):
    """One that ended and that nobody has waited for yet is not."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def commands(*words):
    """The processes whose command line has all of the words."""
    found = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_text(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if all(word in line for word in words):
            found[int(path.parent.name)] = line
    return found


def reads(server, topic):
    """Whether there is a consumer. One of Java brings the schema: a producer that was there before would have it refused, as
    by Pulsar, and the instance says that it runs before it reads."""
    admin = Admin(server.admin_url)
    return any(each["consumers"] for each in admin.get(admin.topic(topic, "/stats"))["subscriptions"].values())


def words(messages):
    return [each.decode() for each in data(messages)]


def test_a_go_program_with_pulsars_instance_runs_as_it_is(server, client, name, made, program):
    topic = made("--go", program, "--user-config", '{"suffix":"!"}', "--log-topic", f"{name}-log")
    log = client.subscribe(f"{topic}-log", "probe", initial_position=pulsar.InitialPosition.Earliest)
    producer, out = ends(client, topic)
    for word in ["one", "two"]:
        producer.send(word.encode())
    assert sorted(words(receive(out, 2))) == ["one!", "two!"]
    assert sorted(words(receive(log, 2))) == ["saw one", "saw two"]

    def counted():
        now = instance(server, name)
        return now["running"] and (now["numReceived"], now["numSuccessfullyProcessed"], now["numRestarts"]) == (2, 2, 0)
    eventually(counted, what=status(server, name))
    stats = json.loads(geminga(server, "functions", "stats", "--name", name, "-o", "json"))
    assert stats["processedSuccessfullyTotal"] == 2
    assert stats["instances"][0]["metrics"]["userMetrics"]["user_metric_words_sum"] == 2
    producer.send(b"pid")
    pid = int(words(receive(out, 1))[0])
    assert is_alive(pid)
    geminga(server, "functions", "stop", "--name", name)
    eventually(lambda: not is_alive(pid))
    geminga(server, "functions", "start", "--name", name)
    producer.send(b"pid")
    again = int(words(receive(out, 1))[0])
    assert again != pid and is_alive(again)
    geminga(server, "functions", "delete", "--name", name)
    assert not is_alive(again)
    create_function(server, name, "--go", program, "--inputs", topic, "--output-topic", f"{topic}-out")


def test_a_crash_starts_it_again(server, client, name, made, program, tmp_path):
    topic = made("--go", program, "--user-config", '{"suffix":"!"}')
    producer, out = ends(client, topic)
    producer.send(f"crash-once {tmp_path / 'marker'}".encode())
    assert words(receive(out, 1)) == ["survived"]

    def told():
        now = instance(server, name)
        said = "".join(one["exceptionString"] for one in now["latestSystemExceptions"])
        return now["running"] and now["numRestarts"] == 1 and "crashed as it was told" in said and "about to crash" in said
    eventually(told, what=status(server, name))
    eventually(lambda: instance(server, name)["numSuccessfullyProcessed"] == 1)


@pytest.mark.timeout(120)
def test_one_that_answers_no_more_is_ended_and_started_again(server, client, name, made, program):
    topic = made("--go", program)
    producer, out = ends(client, topic)
    producer.send(b"pid")
    pid = int(words(receive(out, 1))[0])
    # One that does not start has longer.
    eventually(lambda: instance(server, name)["running"])
    os.kill(pid, signal.SIGSTOP)

    def told():
        now = instance(server, name)
        said = "".join(one["exceptionString"] for one in now["latestSystemExceptions"])
        return now["numRestarts"] == 1 and now["running"] and "no answer to HealthCheck" in said
    eventually(told, 60, what="it is started again")
    assert not is_alive(pid)
    producer.send(b"pid")
    assert int(words(receive(out, 1))[0]) != pid


def test_a_flood_of_output_stops_nothing(server, client, name, made, program):
    producer, out = ends(client, made("--go", program, "--user-config", '{"suffix":"!"}'))
    # 30 MB, of which a quarter a second is kept.
    for word in ["flood", "after"]:
        producer.send(word.encode())
    assert words(receive(out, 2)) == ["flooded", "after!"]
    # It may answer messages before it was first asked how it is.
    eventually(lambda: instance(server, name)["running"])
    assert instance(server, name)["numRestarts"] == 0


def test_one_that_takes_too_much_memory_ends_and_its_status_says_so(server, client, name, made, program, tmp_path):
    producer, out = ends(client, made("--go", program, "--ram", "300000000"))
    producer.send(f"grow-once {tmp_path / 'marker'}".encode())
    assert words(receive(out, 1)) == ["survived"]
    said = "".join(one["exceptionString"] for one in instance(server, name)["latestSystemExceptions"])
    assert "resources.ram" in said or "out of memory" in said, said


def test_it_stays_behind_its_walls(server, client, name, made, program, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("treasure")
    producer, out = ends(client, made("--go", program, "--custom-runtime-options", '{"sandbox":{"files":"private"}}'))
    if "sandbox.files" in json.dumps(status(server, name).get("warnings", [])):
        pytest.skip("no Landlock here, and the status says so")
    producer.send(f"read {secret}".encode())
    assert "permission denied" in words(receive(out, 1))[0]


def test_what_pulsars_instance_passes_over_is_refused(server, name, program, tmp_path):
    def refused(*arguments, language="--go", code=program):
        return geminga(server, "functions", "create", "--name", name, language, code, "--inputs", name, *arguments, code=1)
    for field, *arguments in [
        ("secrets", "--secrets", '{"a":"b"}'),
        ("timeoutMs", "--timeout-ms", "1000"),
        ("skipToLatest", "--skip-to-latest", "true"),
        ("maxMessageRetries", "--max-message-retries", "3"),
        ("outputSchemaType", "--output", f"{name}-out", "--schema-type", "json"),
        ("windowConfig", "--window-length-count", "3"),
        ("processingGuarantees: MANUAL", "--processing-guarantees", "MANUAL"),
        ("window", "--custom-runtime-options", '{"window":3}'),
        ("sandbox.network: none", "--custom-runtime-options", '{"sandbox":{"network":"none"}}'),
    ]:
        assert f"`{field}`" in refused(*arguments), field
    script = tmp_path / "script.sh"
    script.write_text("cat\n")
    script.chmod(0o755)
    assert "Go programs and Java jars" in refused("--custom-runtime-options", COMPAT, language="--sh", code=script)


def test_it_ends_with_a_server_that_is_killed_and_runs_again_after(program, new_client, tmp_path):
    server = Server().start()
    try:
        create_function(server, "f", "--go", program, "--inputs", "in", "--output-topic", "in-out", "--subs-position", "Earliest")
        client = new_client(server.service_url)
        producer, out = ends(client, "in")
        producer.send(b"pid")
        pid = int(words(receive(out, 1))[0])
        client.close()
        server.restart()
        eventually(lambda: not is_alive(pid))
        client = new_client(server.service_url)
        producer, out = ends(client, "in")
        producer.send(b"pid")
        # The acknowledgement of the first may have been lost with the server.
        eventually(lambda: int(words(receive(out, 1))[0]) != pid)
    finally:
        server.close()


def test_it_shows_the_token_that_the_operator_gave_it(program, new_client, tmp_path):
    key, conf = tmp_path / "secret.key", tmp_path / "broker.conf"
    server = Server("--config", str(conf))
    subprocess.run([binary(), "tokens", "create-secret-key", "--file", key], check=True, capture_output=True)
    token = subprocess.run([binary(), "tokens", "create", "--secret-key", key, "--subject", "root"], check=True, capture_output=True,
                           text=True).stdout.strip()
    conf.write_text("authenticationEnabled=true\nauthorizationEnabled=true\nsuperUserRoles=root\n"
                    "authenticationProviders=org.apache.pulsar.broker.authentication.AuthenticationProviderToken\n"
                    f"tokenSecretKey=file://{key}\n")
    server.environment["GEMINGA_COMPAT_TOKEN"] = token
    server.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GEMINGA_TOKEN", token)
            create_function(server, "f", "--go", program, "--inputs", "in", "--output-topic", "in-out", "--user-config", '{"suffix":"!"}')
        client = new_client(server.service_url, authentication=pulsar.AuthenticationToken(token))
        producer, out = ends(client, "in")
        producer.send(b"a")
        assert words(receive(out, 1)) == ["a!"]
        children = commands("-instance-conf", server.service_url)
        assert children and token not in str(children), "the token is on a command line"
    finally:
        server.close()


@pytest.fixture(scope="module")
def with_java():
    home = distribution()
    server = Server()
    server.environment["GEMINGA_PULSAR_HOME"] = str(home)
    server.start()
    yield server, next((home / "lib").glob("pulsar-functions-api-examples-*.jar"))
    server.close()


@pytest.mark.timeout(240)
def test_java_runs_in_pulsars_own_instance(with_java, new_client):
    server, jar = with_java
    create_function(server, "f", "--jar", jar, "--classname", "org.apache.pulsar.functions.api.examples.ExclamationFunction",
                    "--inputs", "in", "--output-topic", "in-out", "--subs-position", "Earliest", "--custom-runtime-options", COMPAT)
    eventually(lambda: reads(server, "in") and instance(server, "f")["running"], START_SECONDS, what="the instance runs")
    client = new_client(server.service_url)
    producer, out = ends(client, "in")
    for word in ["one", "two"]:
        producer.send(word.encode())
    got = receive(out, 2, timeout=START_SECONDS * 1000)
    assert sorted(words(got)) == ["one!", "two!"]
    assert "__pfn_input_msg_id__" in got[0].properties()

    def counted():
        now = instance(server, "f")
        return now["running"] and (now["numReceived"], now["numSuccessfullyProcessed"]) == (2, 2)
    eventually(counted, START_SECONDS, what=status(server, "f"))
    assert geminga(server, "functions", "trigger", "--name", "f", "--trigger-value", "three").strip() == "three!"
    [pid] = commands("JavaInstanceMain", server.service_url)
    os.kill(pid, signal.SIGKILL)
    producer.send(b"four")
    # What it had not acknowledged yet comes again.
    after = set()
    while "four!" not in after:
        after.update(words(receive(out, 1, timeout=START_SECONDS * 1000)))
    assert after <= {"one!", "two!", "three!", "four!"} and "three!" in after
    # A JVM that does not start in time on a busy machine is started once more.
    assert instance(server, "f")["numRestarts"] >= 1
    geminga(server, "functions", "delete", "--name", "f")
    assert not commands("JavaInstanceMain", server.service_url)


@pytest.mark.timeout(240)
def test_java_has_its_secrets_user_config_and_log_topic(with_java, new_client):
    server, jar = with_java
    create_function(server, "g", "--jar", jar, "--classname", "org.apache.pulsar.functions.api.examples.UserConfigFunction",
                    "--inputs", "g", "--output-topic", "g-out", "--subs-position", "Earliest", "--custom-runtime-options", COMPAT,
                    "--user-config", '{"WhatToWrite":"hello"}', "--secrets", '{"password":"s3cret-value"}')
    eventually(lambda: reads(server, "g") and instance(server, "g")["running"], START_SECONDS, what="the instance runs")
    client = new_client(server.service_url)
    producer, out = ends(client, "g")
    producer.send(b"x")
    assert words(receive(out, 1, timeout=START_SECONDS * 1000)) == ["hello"]
    seen = commands("JavaInstanceMain", server.service_url)
    assert seen and "s3cret-value" not in str(seen)
    geminga(server, "functions", "delete", "--name", "g")
