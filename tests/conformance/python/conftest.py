"""Fixtures: a server (ours, or an outside one by SERVICE_URL and ADMIN_URL), clients, topic names."""

import importlib.metadata
import itertools
import os
import re
import sys
import urllib.error

import pulsar
import pytest

from server import OutsideServer, Server, Worker, binary, is_outside, quiet_ports
from support import Admin

_names = itertools.count()
# told to the worker processes too, where there are any
_seed = os.environ.setdefault("CONFORMANCE_SEED", str(int.from_bytes(os.urandom(4), "big")))
# Files are spread over the workers whole, in this order: those that take longest come first.
_LONGEST = ["test_expiry", "test_bad_commands", "test_security", "test_replication", "test_data_directory", "test_storms",
            "test_cut_network", "test_wasm", "test_policies", "test_functions"]


def pytest_report_header():
    target = os.environ["SERVICE_URL"] if is_outside() else binary()
    return (f"judge: pulsar-client {importlib.metadata.version('pulsar-client')} (PyPI), Python {sys.version.split()[0]}; "
            f"server: {target}; CONFORMANCE_SEED={_seed}")


def pytest_collection_modifyitems(items):
    def turn(item):
        name = item.path.stem
        return _LONGEST.index(name) if name in _LONGEST else len(_LONGEST)
    items.sort(key=turn)
    outside = is_outside()
    for item in items:
        if outside and item.get_closest_marker("own_server"):
            item.add_marker(pytest.mark.skip(reason="kills or restarts the server; this one is not ours"))


@pytest.fixture(autouse=True)
def _known_of_pulsar(request):
    """Differences of Apache Pulsar are visible in its own run, and never weaken ours."""
    for name in ("pulsar_loose", "pulsar_differs"):
        mark = request.node.get_closest_marker(name)
        if not mark or not is_outside():
            continue
        if not request.getfixturevalue("is_apache_pulsar"):
            continue
        if name == "pulsar_differs":
            pytest.skip("Apache Pulsar: " + mark.args[0])
        request.applymarker(pytest.mark.xfail(reason="Apache Pulsar: " + mark.args[0], strict=False))


@pytest.fixture(scope="session")
def seed():
    """Repeat a random test with CONFORMANCE_SEED=..., which the head of the run prints."""
    return _seed


@pytest.fixture(scope="session")
def server():
    server = OutsideServer() if is_outside() else Server().start()
    yield server
    server.close()


class Workers:
    """Makes workers of our own beside a server, and ends them. Those of one namespace share its functions."""

    def __init__(self, server):
        self.server, self.made = server, []

    def __call__(self, *options, namespace):
        try:
            Admin(self.server.admin_url).put(f"/admin/v2/namespaces/{namespace}", {})
        except urllib.error.HTTPError as error:
            assert error.code == 409
        worker = Worker(self.server, *options, namespace=namespace)
        self.made.append(worker)
        return worker.start()

    def close(self):
        for worker in self.made:
            worker.close()


@pytest.fixture
def new_worker(server):
    workers = Workers(server)
    yield workers
    workers.close()


@pytest.fixture(scope="session")
def functions(server):
    """Where functions are made: the server, or beside one that is not ours a worker that is."""
    workers = Workers(server)
    yield workers(namespace=f"public/functions-{os.getpid()}") if is_outside() else server
    workers.close()


@pytest.fixture(scope="session")
def is_apache_pulsar(server):
    """Apache Pulsar publishes metrics of its Java runtime; nobody else has those."""
    return b"jvm_memory_" in Admin(server.admin_url).get("/metrics/", raw=True)


@pytest.fixture
def own_server():
    """A fresh server that the test may kill."""
    server = Server(ports=quiet_ports()).start()
    yield server
    server.close()


@pytest.fixture(scope="session")
def admin(server):
    return Admin(server.admin_url)


@pytest.fixture
def topic(request):
    """A name that nobody used before; readable in the server's log."""
    name = re.sub(r"\W+", "-", request.node.name)[:60].strip("-")
    return f"{name}-{os.getpid()}-{next(_names)}"


class Clients:
    """Makes clients and closes them when the test ends."""

    def __init__(self):
        self.made = []

    def __call__(self, url, **options):
        options.setdefault("operation_timeout_seconds", 15)
        options.setdefault("logger", pulsar.ConsoleLogger(pulsar.LoggerLevel.Warn))
        client = pulsar.Client(url, **options)
        self.made.append(client)
        return client

    def close(self):
        for client in self.made:
            try:
                client.close()
            except pulsar.PulsarException:
                pass  # closed by the test itself, or its server is dead


@pytest.fixture
def new_client():
    clients = Clients()
    yield clients
    clients.close()


@pytest.fixture
def client(server, new_client):
    return new_client(server.service_url)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.when == "call" and report.failed:
        for name in ("own_server", "functions", "server"):
            if name in item.funcargs:
                report.sections.append((f"log of the {name}", item.funcargs[name].log_tail()))
                break
