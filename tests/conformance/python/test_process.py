"""The server as a process: what it says when it cannot start, and how it ends."""

import os
import signal
import socket
import subprocess

import pytest

from cli import refused
from server import Server, binary, quiet_ports

pytestmark = pytest.mark.own_server


def test_broker_port_in_use(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert str(port) in refused("--port", port, "--http-port", 0, "--data", tmp_path / "d", "-o", "json")


def test_http_port_in_use(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert str(port) in refused("--port", 0, "--http-port", port, "--data", tmp_path / "d", "-o", "json")


def test_data_directory_in_use(own_server):
    assert own_server.data in refused("--port", 0, "--http-port", 0, "--data", own_server.data, "-o", "json")


def test_data_directory_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    assert str(tmp_path / "file") in refused("--port", 0, "--http-port", 0, "--data", tmp_path / "file", "-o", "json")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_data_directory_is_read_only(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    assert str(folder) in refused("--port", 0, "--http-port", 0, "--data", folder, "-o", "json")


@pytest.mark.parametrize("arguments", [["--port", "70000"], ["--port", "x"], ["--durability", "sometimes"], ["--dta", "x"],
                                       ["--data", "x", "--ephemeral"]], ids=" ".join)
def test_bad_usage(arguments):
    done = subprocess.run([binary(), "standalone", *arguments], capture_output=True, text=True, timeout=20)
    assert done.returncode == 2, done.stderr
    assert "error" in done.stderr and done.stdout == ""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_clean_stop(how):
    server = Server(ports=quiet_ports()).start()
    try:
        server.process.send_signal(how)
        assert server.process.wait(2) == 0
    finally:
        server.close()


def test_clean_stop_with_clients_at_work(new_client, topic):
    server = Server(ports=quiet_ports()).start()
    try:
        client = new_client(server.service_url)
        client.subscribe(topic, "s")
        producer = client.create_producer(topic, send_timeout_millis=1000)
        for n in range(100):
            producer.send_async(b"%d" % n, None)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(2) == 0
    finally:
        server.close()


def test_ephemeral_leaves_nothing_behind(tmp_path, new_client, topic):
    server = Server(ports=quiet_ports(), ephemeral=True)
    server.environment["TMPDIR"] = str(tmp_path)
    try:
        server.start()
        new_client(server.service_url).create_producer(topic).send(b"x")
    finally:
        server.close()
    assert os.listdir(tmp_path) == []


def test_ready_quickly():
    """Not a benchmark: a start that takes seconds is a broken start."""
    server = Server(ports=quiet_ports()).start()
    try:
        assert server.ready_seconds < 2
    finally:
        server.close()
