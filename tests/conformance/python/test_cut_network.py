"""A peer behind a link that is cut: nothing says that it is gone, no FIN and no RST, and what is sent to it is lost.

The peer lives in a network namespace of its own, at the end of a pair of virtual interfaces; the server listens on the near one."""

import contextlib
import json
import os
import pathlib
import random
import subprocess
import sys
import threading

import pulsar
import pytest

from server import Server, binary
from support import Admin, eventually, numbers, receive, send_numbers
from test_storms import MIB, sockets_of

pytestmark = pytest.mark.own_server

HERE = pathlib.Path(__file__).parent
KEEP_ALIVE = 1
# far above twice the keep-alive time, and far below what TCP itself takes to give up (a quarter of an hour)
SECONDS = 20


def ip(*arguments):
    return subprocess.run(["ip", *map(str, arguments)], check=True, capture_output=True, text=True).stdout


class Link:
    """`near` is our end, `far` the one in the namespace. The addresses are of a range that is kept for tests (RFC 2544)."""

    def __init__(self):
        mark = f"{os.getpid() % 0x10000:x}{random.randrange(0x1000):x}"
        self.space, self.near_name, self.far_name = f"geminga-{mark}", f"gn{mark}", f"gf{mark}"
        net = f"198.{random.choice([18, 19])}.{random.randrange(256)}.{random.randrange(64) * 4}".rsplit(".", 1)
        self.near, self.far = (f"{net[0]}.{int(net[1]) + number}" for number in (1, 2))

    def make(self):
        ip("netns", "add", self.space)
        ip("link", "add", self.near_name, "type", "veth", "peer", "name", self.far_name, "netns", self.space)
        ip("addr", "add", f"{self.near}/30", "dev", self.near_name)
        ip("link", "set", self.near_name, "up")
        ip("-n", self.space, "addr", "add", f"{self.far}/30", "dev", self.far_name)
        ip("-n", self.space, "link", "set", "lo", "up")
        self.mend()

    def cut(self):
        """At the far end: at the near one, what is for the peer would go out by another way."""
        ip("-n", self.space, "link", "set", self.far_name, "down")

    def mend(self):
        ip("-n", self.space, "link", "set", self.far_name, "up")

    def command(self, *arguments):
        return ["ip", "netns", "exec", self.space, *map(str, arguments)]

    def remove(self):
        for what in (["link", "del", self.near_name], ["netns", "del", self.space]):
            with contextlib.suppress(subprocess.CalledProcessError):
                ip(*what)


@pytest.fixture
def link():
    link = Link()
    try:
        link.make()
    except FileNotFoundError:
        pytest.skip("there is no `ip` here: it comes with iproute2")
    except subprocess.CalledProcessError as error:
        link.remove()
        pytest.skip(f"this machine refuses network namespaces: {error.stderr.strip()}")
    yield link
    link.remove()


@pytest.fixture
def server(link, tmp_path):
    conf = tmp_path / "broker.conf"
    conf.write_text(f"keepAliveIntervalSeconds={KEEP_ALIVE}\n")
    server = Server("--config", str(conf), "--bind", link.near).start()
    yield server
    server.close()


@pytest.fixture
def admin(server):
    return Admin(server.admin_url)


class Far:
    """`far_peer.py` at the other end."""

    def __init__(self, link, server, topic):
        self.process = subprocess.Popen(link.command(sys.executable, HERE / "far_peer.py", server.service_url, topic),
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.answer() == "ready"

    def answer(self):
        line = self.process.stdout.readline()
        assert line, f"the far client ended with {self.process.wait()}"
        return json.loads(line)

    def tell(self, *words):
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()

    def ask(self, *words):
        self.tell(*words)
        return self.answer()

    def close(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def far(link, server, topic):
    far = Far(link, server, topic)
    yield far
    far.close()


def consumers(admin, topic):
    return [consumer["consumerName"] for consumer in admin.stats(topic)["subscriptions"]["s"]["consumers"]]


def producers(admin, topic):
    return [producer["producerName"] for producer in admin.stats(topic)["publishers"]]


def test_what_a_cut_peer_held_goes_to_others(server, admin, link, far, new_client, topic):
    """Its messages, its producer's name and exclusive place, and the memory for what it did not read."""
    client = new_client(server.service_url)
    send_numbers(client.create_producer(topic), 10)
    assert far.ask("take", 10) == list(range(10))
    assert far.ask("send", "before") == "sent"
    assert far.ask("flood") == "asked"
    def send_heavy(topic):
        """Far more than goes into a socket."""
        producer = client.create_producer(topic, max_pending_messages=100, block_if_queue_full=True)
        for _ in range(500):
            producer.send_async(bytes(100_000), None)
        producer.flush()
    # what the messages themselves cost, without anybody who waits for them, is there by now
    send_heavy(f"{topic}-alone")
    files, before = sockets_of(server), server.rss_kib()
    with pytest.raises(pulsar.ProducerBusy):
        client.create_producer(f"{topic}-out", producer_name="far")

    link.cut()
    send_heavy(f"{topic}-heavy")
    other = client.subscribe(topic, "s", pulsar.ConsumerType.Shared)
    assert sorted(numbers(receive(other, 10))) == list(range(10))

    def taken_over():
        try:
            return client.create_producer(f"{topic}-out", producer_name="far", access_mode=pulsar.ProducerAccessMode.Exclusive)
        except (pulsar.ProducerBusy, pulsar.ProducerFenced):
            return None
    producer = eventually(taken_over, SECONDS, "the name and the exclusive place are free")
    producer.send(b"between")
    eventually(lambda: consumers(admin, f"{topic}-heavy") == [], SECONDS)
    eventually(lambda: sockets_of(server) < files, SECONDS, "its socket is closed")
    eventually(lambda: server.rss_kib() - before < 32 * MIB, SECONDS, "what waited for it is forgotten")

    link.mend()
    # Somebody else had the place since: the old producer stays out, and a new one has to wait for its turn.
    assert far.ask("send_within", 3_000, "late") != "sent"
    producer.close()
    assert far.ask("open") == "opened"
    assert far.ask("send", "after") == "sent"
    eventually(lambda: sorted(consumers(admin, topic))[-1] == "far" and len(consumers(admin, topic)) == 2, SECONDS,
               "its consumer came back by itself")
    other.close()
    send_numbers(client.create_producer(topic), 10, start=10)
    assert far.ask("finish", 10) == list(range(10, 20))
    reader = client.create_reader(f"{topic}-out", pulsar.MessageId.earliest)
    assert [reader.read_next(5000).data() for _ in range(3)] == [b"before", b"between", b"after"]


def test_a_peer_that_comes_back_goes_on(server, admin, link, far, new_client, topic):
    """Nobody took its place: what it sent into the cut link is stored once, and what came meanwhile is delivered."""
    client = new_client(server.service_url)
    producer = client.create_producer(topic)
    send_numbers(producer, 5)
    assert far.ask("take", 5) == list(range(5))
    link.cut()
    far.tell("send", "into-the-dark")
    eventually(lambda: consumers(admin, topic) == [] and producers(admin, f"{topic}-out") == [], SECONDS,
               "the server has noticed")
    send_numbers(producer, 5, start=5)
    link.mend()
    assert far.answer() == "sent"
    assert far.ask("send", "in-the-light") == "sent"
    reader = client.create_reader(f"{topic}-out", pulsar.MessageId.earliest)
    assert [reader.read_next(5000).data() for _ in range(2)] == [b"into-the-dark", b"in-the-light"]
    assert not reader.has_message_available()
    # what it had and did not acknowledge comes again
    assert sorted(far.ask("finish", 10)) == list(range(10))
    eventually(lambda: admin.backlog(topic, "s") == 0)


def test_a_function_behind_a_cut_link_misses_nothing(server, admin, link, new_client, topic, tmp_path):
    """Our own client: `functions localrun` at the far end."""
    code = tmp_path / "f.py"
    code.write_text("def process(input):\n    return input\n")
    command = [binary(), "functions", "localrun", "--service-url", server.service_url, "--name", topic, "--inputs", topic,
               "--output-topic", f"{topic}-out", "--subs-position", "Earliest", "--py", code]
    client = new_client(server.service_url)
    producer = client.create_producer(topic)
    output = client.subscribe(f"{topic}-out", "probe")
    send_numbers(producer, 100)
    local = subprocess.Popen(link.command(*command), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                             stderr=subprocess.PIPE, text=True)
    said = []
    threading.Thread(target=lambda: said.extend(iter(local.stderr.readline, "")), daemon=True).start()
    try:
        seen = set(numbers(receive(output, 100)))
        link.cut()
        (subscription,) = admin.subscriptions(topic)
        eventually(lambda: not admin.stats(topic)["subscriptions"][subscription]["consumers"], SECONDS, "the server has noticed")
        send_numbers(producer, 100, start=100)
        link.mend()
        while len(seen) < 200:
            seen.update(numbers(receive(output, 1, timeout=40_000)))
        assert seen == set(range(200))
    except AssertionError as error:
        raise AssertionError(f"{error}; it said: {''.join(said)[-2000:]}") from None
    finally:
        local.kill()
        local.wait()
