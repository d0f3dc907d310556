"""Too many, too fast, too slow, or gone without a word: what it costs is bounded, and honest clients go on.

A server of our own, with limits low enough to be reached in seconds."""

import os
import resource
import selectors
import socket
import struct
import time

import pulsar
import pytest

from server import Server
from support import Admin, eventually, numbers, receive, send_numbers
from test_bad_input import Bystander
from wire import CONNECT, FLOW, MESSAGE, PRODUCER, SEND, SUBSCRIBE, Connection, frame, payload

pytestmark = pytest.mark.own_server

CONNECTIONS = 10_000
UNACKED_MAX = 500
MIB = 1 << 10           # in KiB, as the system tells memory


def with_settings(folder, **settings):
    conf = folder / "broker.conf"
    conf.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    server = Server("--config", str(conf)).start()
    yield server
    server.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    yield from with_settings(tmp_path_factory.mktemp("storms"), maxUnackedMessagesPerConsumer=UNACKED_MAX)


@pytest.fixture(scope="module")
def impatient(tmp_path_factory):
    """Asks every second whether its clients live."""
    yield from with_settings(tmp_path_factory.mktemp("impatient"), keepAliveIntervalSeconds=1)


@pytest.fixture
def bystander(server, topic):
    with Bystander(server, topic + "-bystander") as bystander:
        yield bystander


def full(topic):
    return f"persistent://public/default/{topic}"


def sockets_of(server):
    folder = f"/proc/{server.process.pid}/fd"
    found = 0
    for name in os.listdir(folder):
        try:
            found += os.readlink(f"{folder}/{name}").startswith("socket:")
        except FileNotFoundError:
            pass        # closed meanwhile
    return found


def address(server):
    host, port = server.service_url.split("://")[1].rsplit(":", 1)
    return host, int(port)


@pytest.mark.timeout(120)
def test_ten_thousand_connections(server, bystander):
    """Each has introduced itself and answers its PINGs, then does nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < CONNECTIONS + 500:
        pytest.skip(f"only {hard} files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    before, files = server.rss_kib(), sockets_of(server)
    hello, pong = frame(CONNECT, {1: "crowd", 4: 21}), frame(19, {})
    ready, peers = selectors.DefaultSelector(), []
    introduced = set()

    def listen(seconds):
        """Takes what came: CONNECTED, and PINGs to be answered."""
        for key, _ in ready.select(seconds):
            data = key.fileobj.recv(4096)
            assert data, "the server closed an honest connection"
            if key.fileobj in introduced:
                key.fileobj.sendall(pong)
            introduced.add(key.fileobj)

    try:
        for number in range(CONNECTIONS):
            peer = socket.create_connection(address(server), timeout=10)
            peer.sendall(hello)
            ready.register(peer, selectors.EVENT_READ)
            peers.append(peer)
            if number % 100 == 99:
                listen(0)
        until = time.monotonic() + 30
        while len(introduced) < CONNECTIONS:
            listen(1)
            assert time.monotonic() < until, f"{len(introduced)} were let in"
        bystander.wait_for_progress()
        each = (server.rss_kib() - before) / CONNECTIONS
        assert each < 20, f"{each:.1f} KiB for each idle connection"
    finally:
        for peer in peers:
            peer.close()
        ready.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    eventually(lambda: sockets_of(server) <= files + 5, seconds=30, what="their sockets are closed")
    bystander.wait_for_progress()


@pytest.mark.timeout(120)
def test_a_reconnect_storm(server, bystander, topic):
    """Producers and consumers that come and vanish by reset, again and again, on the same few topics."""
    admin = Admin(server.admin_url)
    topics = [f"{topic}-{number}" for number in range(5)]
    before, files = None, sockets_of(server)
    for turn in range(15):
        peers = []
        for number in range(60):
            peer = socket.create_connection(address(server), timeout=10)
            name = full(topics[number % len(topics)])
            peer.sendall(frame(CONNECT, {1: "storm", 4: 21})
                         + frame(PRODUCER, {1: name, 2: 1, 3: 1, 4: f"storm-{number}"})
                         + frame(SUBSCRIBE, {1: name, 2: "s", 3: 1, 4: 1, 5: 2}) + frame(FLOW, {1: 1, 2: 10}))
            peers.append(peer)
        for peer in peers:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
        if turn == 4:
            before = server.rss_kib()       # what the topics themselves cost is there by now
    bystander.wait_for_progress()
    eventually(lambda: sockets_of(server) <= files + 5, what="sockets are closed")
    for name in topics:
        def is_empty():
            stats = admin.stats(name)
            return not stats["publishers"] and not stats["subscriptions"].get("s", {"consumers": []})["consumers"]
        eventually(is_empty, what=f"nobody is left on {name}")
    assert server.rss_kib() - before < 64 * MIB


def test_who_says_nothing_is_cut_off(impatient, topic):
    """Half-open: connected, and never a word; or introduced, and then no answer to any PING."""
    server = impatient
    dumb = [socket.create_connection(address(server), timeout=10) for _ in range(100)]
    gone = [Connection(server) for _ in range(100)]
    try:
        with Bystander(server, topic):
            for peer in dumb:
                assert peer.recv(100) == b"", "closed without a word"
        for connection in gone:
            connection.socket.settimeout(10)
            data = connection.buffer
            while True:
                try:
                    more = connection.socket.recv(4096)
                except ConnectionResetError:
                    break
                if not more:
                    break
                data += more
            assert data, "a PING came first"
    finally:
        for peer in [*dumb, *(connection.socket for connection in gone)]:
            peer.close()


def test_messages_of_a_peer_that_vanished_go_to_others(impatient, new_client, topic):
    server = impatient
    client = new_client(server.service_url)
    with Connection(server) as gone:
        gone.subscribe(full(topic), "s", kind=1)
        gone.send(FLOW, {1: 1, 2: 1000})
        send_numbers(client.create_producer(topic), 10)
        while gone.next()[0] != MESSAGE:
            pass
        # its socket stays open, and it never says anything again
        other = client.subscribe(topic, "s", pulsar.ConsumerType.Shared)
        assert sorted(numbers(receive(other, 10))) == list(range(10))


@pytest.mark.timeout(120)
def test_a_producer_that_floods_and_reads_no_receipts(server, bystander, topic):
    """Sends as much as goes into the socket; at some point the server stops reading it."""
    before = server.rss_kib()
    whole = frame(SEND, {1: 1, 2: 0}, payload(0, bytes(10_000)))
    with Connection(server) as flood:
        flood.producer(full(topic))
        flood.socket.settimeout(0.5)
        sent, until = 0, time.monotonic() + 5
        try:
            while time.monotonic() < until:
                flood.socket.sendall(whole * 50)
                sent += 50
        except OSError:
            pass        # the server has stopped reading, or has closed
        bystander.wait_for_progress()
        assert server.rss_kib() - before < 256 * MIB, f"after {sent} messages"
    bystander.wait_for_progress()


def test_a_flood_of_small_requests(server, bystander, topic):
    """A hundred thousand lookups on one connection, whose answers nobody reads."""
    before = server.rss_kib()
    question = frame(23, {1: full(topic), 2: 1})
    with Connection(server) as flood:
        flood.socket.settimeout(0.5)
        try:
            for _ in range(100):
                flood.socket.sendall(question * 1000)
        except OSError:
            pass
        bystander.wait_for_progress()
        assert server.rss_kib() - before < 64 * MIB


def test_who_never_acknowledges_is_stopped_and_others_go_on(server, bystander, new_client, topic):
    client = new_client(server.service_url)
    lazy = client.subscribe(topic, "s", pulsar.ConsumerType.Shared, receiver_queue_size=5000, consumer_name="lazy")
    send_numbers(client.create_producer(topic, block_if_queue_full=True), UNACKED_MAX * 3)
    held = receive(lazy, UNACKED_MAX, ack=False)
    stats = lambda: {consumer["consumerName"]: consumer for consumer in
                     Admin(server.admin_url).stats(topic)["subscriptions"]["s"]["consumers"]}
    eventually(lambda: stats()["lazy"]["blockedConsumerOnUnackedMsgs"], what="it is blocked")
    assert stats()["lazy"]["unackedMessages"] == UNACKED_MAX
    busy = client.subscribe(topic, "s", pulsar.ConsumerType.Shared)
    got = numbers(receive(busy, UNACKED_MAX * 2))
    assert not set(got) & set(numbers(held))
    for message in held:
        lazy.acknowledge(message)
    eventually(lambda: Admin(server.admin_url).backlog(topic, "s") == 0)


def test_a_slow_reader_holds_back_nobody(server, bystander, new_client, topic):
    """One consumer takes a byte now and then of 20 MB that wait for it; another subscription reads it all."""
    client = new_client(server.service_url)
    before = server.rss_kib()
    with Connection(server, seconds=1) as slow:
        slow.subscribe(full(topic), "slow")
        slow.send(FLOW, {1: 1, 2: 100_000})
        quick = client.subscribe(topic, "quick")
        producer = client.create_producer(topic, max_pending_messages=500, block_if_queue_full=True)
        for _ in range(200):
            producer.send_async(bytes(100_000), None)
            try:
                slow.socket.recv(10)
            except OSError:
                pass        # nothing yet, or cut off since it answers no PING
        producer.flush()
        assert len(receive(quick, 200)) == 200
        assert server.rss_kib() - before < 128 * MIB
