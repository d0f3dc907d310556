"""The disk: full, read-only, of another version, damaged. What was acknowledged is there afterwards."""

import errno
import os
import pathlib
import shutil
import subprocess
import threading

import pulsar
import pytest

from cli import refused
from server import Server, binary, quiet_ports
from support import assert_nothing, data, eventually, receive, send_numbers

pytestmark = pytest.mark.own_server

MIB = 1 << 20


def mount(*arguments):
    """Mounts, or skips the test where this user may not."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mount {' '.join(map(str, arguments))}: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path):
    """`disk(bytes)` mounts a file system of that size."""
    made = []

    def make(size):
        place = tmp_path / f"disk{len(made)}"
        place.mkdir()
        mount("-t", "tmpfs", "-o", f"size={size}", "none", place)
        made.append(place)
        return place
    yield make
    for place in made:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture
def start():
    """`start(data folder)`: a server on it, stopped when the test ends."""
    running = []

    def make(folder, *options):
        server = Server(*options, ports=quiet_ports(), data=folder).start()
        running.append(server)
        return server
    yield make
    for server in running:
        server.close()


def fill(place, leave):
    """Takes all of the room but `leave` bytes; the file that does it. The server may take some at the same time."""
    path = pathlib.Path(place, "filler")
    with open(path, "ab") as file:
        while True:
            free = os.statvfs(place)
            more = free.f_bavail * free.f_frsize - leave
            if more <= 0:
                return path
            try:
                os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, more)
            except OSError as error:
                assert error.errno == errno.ENOSPC


def on(folder):
    return ["--port", 0, "--http-port", 0, "--data", folder, "-o", "json"]


@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
def test_a_read_only_directory(tmp_path, used):
    folder = tmp_path / "data"
    folder.mkdir()
    if used:
        Server(data=folder).start().close()
    before = sorted(os.listdir(folder))
    mount("--bind", folder, folder)
    try:
        mount("-o", "remount,bind,ro", folder)
        said = refused(*on(folder), code=1)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
    assert "error[G0103]" in said and str(folder) in said and "Read-only file system" in said
    assert sorted(os.listdir(folder)) == before


def test_a_directory_of_a_newer_version(tmp_path):
    Server(data=tmp_path / "data").start().close()
    (tmp_path / "data/FORMAT").write_text("geminga storage format 99\n")
    said = refused(*on(tmp_path / "data"), code=1)
    assert "error[G0104]" in said and "format 99" in said


def test_a_directory_that_is_full_from_the_start(disk):
    place = disk(MIB // 2)
    said = refused(*on(place / "data"), code=1)
    assert "error[G0106]" in said and str(place / "data") in said


def test_a_server_whose_disk_is_nearly_full_starts_and_says_so(disk, start, new_client, topic):
    place = disk(512 * MIB)
    server = start(place / "data")
    send_numbers(new_client(server.service_url).create_producer(topic), 10)
    server.stop()
    fill(place, 20 * MIB)
    server.start()
    assert "the disk is full" in server.log_tail()
    client = new_client(server.service_url)
    consumer = client.subscribe(topic, "s", initial_position=pulsar.InitialPosition.Earliest)
    assert data(receive(consumer, 10)) == [b"%d" % n for n in range(10)]


class Load:
    """Sends numbers one after another and notes which were acknowledged; goes on after errors. The messages are large:
    the server looks at the disk when it needs a new file."""

    SIZE = 200_000

    def __init__(self, client, topic):
        self.producer = client.create_producer(topic, send_timeout_millis=2000, batching_enabled=False)
        self.acknowledged, self.refused, self.stopping = [], 0, threading.Event()
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def _work(self):
        number = 0
        while not self.stopping.is_set():
            try:
                self.producer.send(b"%d".ljust(self.SIZE) % number)
                self.acknowledged.append(number)
            except pulsar.PulsarException:
                self.refused += 1
            number += 1

    def progress(self, more=50):
        goal = len(self.acknowledged) + more
        eventually(lambda: len(self.acknowledged) >= goal, 30, "sends are acknowledged")

    def stop(self):
        self.stopping.set()
        self.thread.join(20)


@pytest.mark.timeout(150)
@pytest.mark.parametrize("left", [100 * MIB, 0], ids=["below-the-threshold", "no-room-at-all"])
def test_a_disk_that_becomes_full_under_load(disk, start, new_client, topic, left):
    place = disk(600 * MIB)
    server = start(place / "data")
    client = new_client(server.service_url)
    backlog = f"{topic}-backlog"
    consumer = client.subscribe(backlog, "s", pulsar.ConsumerType.Shared)
    send_numbers(client.create_producer(backlog), 500)
    load = Load(client, topic)
    try:
        load.progress()
        filler = fill(place, left)
        eventually(lambda: load.refused > 0, 40, "sends are refused")
        before = len(load.acknowledged)
        # what is stored is consumed, and acks are kept, over a kill -9 too
        assert sorted(int(each) for each in data(receive(consumer, 500))) == list(range(500))
        eventually(lambda: "the disk is full" in server.log_tail(20_000), what="the log says so")
        filler.unlink()
        load.progress()
        assert len(load.acknowledged) > before
    finally:
        load.stop()
    consumer.close()
    server.restart()
    again = new_client(server.service_url).subscribe(topic, "all", initial_position=pulsar.InitialPosition.Earliest)
    stored = [int(message.data()) for message in receive(again, len(load.acknowledged))]
    # A send that timed out may have been stored: it is allowed to be there, but nothing that was acknowledged may miss.
    while not set(load.acknowledged) <= set(stored):
        stored.append(int(receive(again, 1)[0].data()))
    assert stored == sorted(stored)
    assert_nothing(new_client(server.service_url).subscribe(backlog, "s", pulsar.ConsumerType.Shared))


def test_damage_is_refused_and_repaired(tmp_path, start, new_client, topic):
    server = start(tmp_path / "data")
    producer = new_client(server.service_url).create_producer(topic, batching_enabled=False)
    ids = [producer.send(b"message-%03d" % n) for n in range(60)]
    assert len(ids) == 60
    server.kill()
    wanted = b"message-030"
    (path, content) = next((path, content) for path in (tmp_path / "data").iterdir() if path.is_file()
                           for content in [path.read_bytes()] if wanted in content)
    at = content.index(wanted)
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(bytes([content[at] ^ 0x20]))
    said = refused(*on(tmp_path / "data"), code=1)
    assert "error[G0105]" in said and f"--> {path}" in said and "at offset" in said
    help = next(line for line in said.splitlines() if "help:" in line)
    command = help.split("help: geminga ")[1].split()
    repaired = subprocess.run([binary(), *command], capture_output=True, text=True, timeout=60)
    assert repaired.returncode == 8, repaired.stderr
    assert topic in repaired.stdout
    server = start(command[-1])
    consumer = new_client(server.service_url).subscribe(topic, "all", initial_position=pulsar.InitialPosition.Earliest)
    assert data(receive(consumer, 59)) == [b"message-%03d" % n for n in range(60) if n != 30]
    shutil.rmtree(command[-1], ignore_errors=True)
