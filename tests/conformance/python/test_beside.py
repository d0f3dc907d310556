"""Geminga's worker beside Apache Pulsar's own on one cluster: `tests/pulsar/run`. Neither sees the other's functions, nor
touches its topics."""

import json
import os
import pathlib
import subprocess
import urllib.error

import pytest

import pulsar
from cli import FORM, create_function, geminga
from server import Worker, is_outside
from support import Admin, data, eventually, receive

OWN, THEIRS = "public/geminga", "public/functions"


@pytest.fixture(autouse=True)
def _pulsar_with_functions(request):
    if not is_outside() or not request.getfixturevalue("is_apache_pulsar") or not os.environ.get("PULSAR_DIST"):
        pytest.skip("needs an Apache Pulsar with its own functions worker: tests/pulsar/run")


def counts(admin):
    """How many messages each topic of Pulsar's workers holds."""
    topics = [name for name in admin.get(f"/admin/v2/persistent/{THEIRS}")]
    return {name: admin.get(f"/admin/v2/persistent/{THEIRS}/{name.rsplit('/', 1)[1]}/internalStats")["numberOfEntries"]
            for name in topics}


def subscriptions(admin, topic):
    try:
        return admin.get(f"/admin/v2/persistent/public/default/{topic}/subscriptions")
    except urllib.error.HTTPError as error:
        assert error.code == 404
        return []


def create_theirs(server, name, topic):
    """A function on Pulsar's own worker: one of the examples that Pulsar comes with, in Java."""
    jar = next(pathlib.Path(os.environ["PULSAR_DIST"], "lib").glob("pulsar-functions-api-examples-*.jar"))
    config = {"tenant": "public", "namespace": "default", "name": name, "inputs": [f"{topic}-in"], "output": f"{topic}-theirs",
              "className": "org.apache.pulsar.functions.api.examples.ExclamationFunction", "runtime": "JAVA", "parallelism": 1,
              "subscriptionPosition": "Earliest"}
    done = subprocess.run(["curl", "-sS", "-f", "-X", "POST", "-F", f"functionConfig={json.dumps(config)};type=application/json",
                           "-F", f"data=@{jar};type=application/octet-stream",
                           f"{server.admin_url}/admin/v3/functions/public/default/{name}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def refusal(server):
    """What a worker says that is not told where its own functions are, and so does not start."""
    worker = Worker(server)
    try:
        worker.launch()
        assert worker.process.wait(30) != 0, "it ended well"
        return worker.log_tail()
    finally:
        worker.close()


@pytest.mark.timeout(180)
def test_the_topic_of_pulsars_workers_is_refused_and_left_alone(server, admin, client, topic):
    """By its name as long as nothing is on it, and by what is on it then."""
    name = f"first-{topic.replace('_', '-')}"
    try:
        for step in "as it is", "with a function of theirs":
            if step != "as it is":
                create_theirs(server, name, topic)
                eventually(lambda: f"public/default/{name}" in subscriptions(admin, f"{topic}-in"), 90, "Pulsar's function subscribes")
            before = counts(admin)
            said = refusal(server)
            assert FORM.search(said), said
            assert "is for Apache Pulsar's own workers" in said and f"{THEIRS}/metadata" in said, said
            assert "--functions-namespace public/geminga" in said, said
            assert "panicked" not in said
            assert counts(admin) == before, f"nothing is written there, {step}"
        assert "what it holds is theirs" in said, said
        # Theirs work on.
        out = client.subscribe(f"{topic}-theirs", "probe")
        client.create_producer(f"{topic}-in").send(b"word")
        assert data(receive(out, 1, timeout=60_000)) == [b"word!"]
    finally:
        admin.delete(f"/admin/v3/functions/public/default/{name}")


@pytest.mark.timeout(180)
def test_functions_of_both_run_side_by_side(server, admin, client, topic, tmp_path):
    try:
        admin.put(f"/admin/v2/namespaces/{OWN}", {})
    except Exception as error:
        assert getattr(error, "code", None) == 409
    theirs = client.subscribe(f"{topic}-theirs", "probe")
    ours = client.subscribe(f"{topic}-ours", "probe")
    name = topic.replace("_", "-")
    create_theirs(server, f"theirs-{name}", topic)
    # First, since its subscription gives the topic its schema, which Pulsar takes on no topic in use.
    eventually(lambda: f"public/default/theirs-{name}" in subscriptions(admin, f"{topic}-in"), 90, "Pulsar's function subscribes")
    before = counts(admin)
    worker = Worker(server, namespace=OWN)
    try:
        worker.start()
        code = tmp_path / "f.py"
        code.write_text("def process(input):\n    return input + '?'\n")
        create_function(worker, f"ours-{name}", "--py", code, "--inputs", f"{topic}-in", "--output-topic", f"{topic}-ours",
                        "--subs-position", "Earliest")
        client.create_producer(f"{topic}-in").send(b"word")
        assert data(receive(ours, 1, timeout=30_000)) == [b"word?"]
        assert data(receive(theirs, 1, timeout=120_000)) == [b"word!"]
        listed = Admin(worker.admin_url).get("/admin/v3/functions/public/default")
        assert f"ours-{name}" in listed and f"theirs-{name}" not in listed
        listed = admin.get("/admin/v3/functions/public/default")
        assert f"theirs-{name}" in listed and f"ours-{name}" not in listed
        assert counts(admin) == before, "nothing is written to the topics of Pulsar's workers"
        # the same name on both
        create_function(worker, f"theirs-{name}", "--py", code, "--inputs", f"{topic}-other")
        geminga(worker, "functions", "delete", "--name", f"theirs-{name}")
        assert f"theirs-{name}" in admin.get("/admin/v3/functions/public/default")
        geminga(worker, "functions", "delete", "--name", f"ours-{name}")
        client.create_producer(f"{topic}-in").send(b"more")
        assert data(receive(theirs, 1)) == [b"more!"]
    finally:
        worker.close()
        admin.delete(f"/admin/v3/functions/public/default/theirs-{name}")
