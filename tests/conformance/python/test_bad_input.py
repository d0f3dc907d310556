"""Garbage, oversize frames, commands out of order, peers that vanish: each costs its own connection at most.

In every test an honest client works beside it, and must not notice."""

import random
import socket
import struct
import threading
import urllib.parse

import pulsar
import pytest

from support import eventually, numbers, read
from wire import (ACK, CLOSED, CONNECT, FLOW, MAX_FRAME, PRODUCER, SEEK, SEND, SUBSCRIBE, UNSUBSCRIBE, Connection, frame,
                  message, payload)


class Bystander:
    """Sends and receives all the while; every message must come once and in order."""

    def __init__(self, server, topic):
        self.client = pulsar.Client(server.service_url, logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Error))
        self.consumer = self.client.subscribe(topic, "bystander")
        self.producer = self.client.create_producer(topic)
        self.sent, self.problem, self.stopping = 0, None, threading.Event()
        self.thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self):
        self.thread.start()
        self.wait_for_progress()
        return self

    def _work(self):
        try:
            while not self.stopping.is_set():
                self.producer.send(b"%d" % self.sent)
                got = self.consumer.receive(5000)
                assert int(got.data()) == self.sent, f"{got.data()} came, {self.sent} was due"
                self.consumer.acknowledge(got)
                self.sent += 1
        except Exception as error:        # told to the test, which is in another thread
            self.problem = error

    def wait_for_progress(self):
        goal = self.sent + 20
        eventually(lambda: self.sent >= goal or self.problem, what="the honest client makes progress")
        assert self.problem is None, self.problem

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                self.wait_for_progress()
        finally:
            self.stopping.set()
            self.thread.join(10)
            self.client.close()


@pytest.fixture
def bystander(server, topic):
    with Bystander(server, topic + "-bystander") as bystander:
        yield bystander


def full(topic):
    return f"persistent://public/default/{topic}"


GARBAGE = {
    "zeros": bytes(64),
    "ones": b"\xff" * 64,
    "http": b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "tls": bytes.fromhex("16030100f8010000f4030366") + bytes(240),
    "text": b"hello, is this the broker?\n" * 10,
    "length-of-2-gib": struct.pack(">I", 0x7FFFFFFF) + b"x" * 100,
    "length-of-4-gib": struct.pack(">I", 0xFFFFFFFF) + b"x" * 100,
    "just-over-the-limit": struct.pack(">II", MAX_FRAME + 1, 4) + b"x" * 100,
    "command-longer-than-frame": struct.pack(">II", 20, 2000) + bytes(16),
    "command-length-negative": struct.pack(">II", 20, 0xFFFFFFF0) + bytes(16),
    "frame-too-short": struct.pack(">I", 2) + b"xx",
    "not-protobuf": struct.pack(">II", 24, 20) + b"\xff" * 20,
}


@pytest.mark.parametrize("name", GARBAGE)
@pytest.mark.parametrize("connected", [False, True], ids=["first", "after-connect"])
def test_garbage_closes_the_connection(server, bystander, name, connected):
    with Connection(server, connect=connected) as connection:
        connection.raw(GARBAGE[name])
        # a half frame is not an error yet: the end of the stream makes it one
        connection.socket.shutdown(socket.SHUT_WR)
        connection.expect_closed()


@pytest.mark.parametrize("name", ["length-of-2-gib", "length-of-4-gib", "just-over-the-limit", "not-protobuf"])
def test_the_server_closes_without_being_asked(server, bystander, name):
    with Connection(server) as connection:
        connection.raw(GARBAGE[name])
        connection.expect_closed()


@pytest.mark.parametrize("command", ["producer", "subscribe", "send", "flow", "ack", "seek", "unsubscribe"])
def test_commands_before_connect_close_the_connection(server, bystander, topic, command):
    first = {"producer": frame(PRODUCER, {1: full(topic), 2: 1, 3: 1}),
             "subscribe": frame(SUBSCRIBE, {1: full(topic), 2: "s", 3: 0, 4: 1, 5: 1}),
             "send": frame(SEND, {1: 1, 2: 0}, payload(0, b"x")),
             "flow": frame(FLOW, {1: 1, 2: 1000}),
             "ack": frame(ACK, {1: 1, 2: 0, 3: {1: 0, 2: 0}}),
             "seek": frame(SEEK, {1: 1, 2: 1, 4: 0}),
             "unsubscribe": frame(UNSUBSCRIBE, {1: 1, 2: 1})}[command]
    with Connection(server, connect=False) as connection:
        connection.raw(first)
        connection.expect_closed()


def test_connect_twice(server, bystander):
    with Connection(server) as connection:
        connection.send(CONNECT, {1: "again", 4: 21})
        # Pulsar closes; whatever a server does, it answers or closes, and nobody else suffers
        connection.next()


def test_send_for_an_unknown_producer_closes(server, bystander):
    with Connection(server) as connection:
        connection.send(SEND, {1: 42, 2: 0}, payload(0, b"x"))
        connection.expect_closed()


def test_unknown_consumer_ids_are_survived(server, bystander):
    with Connection(server) as connection:
        connection.send(FLOW, {1: 42, 2: 1000})
        connection.send(ACK, {1: 42, 2: 0, 3: {1: 1, 2: 1}})
        connection.send(20, {1: 42, 2: [{1: 1, 2: 1}]})
        connection.send(SEEK, {1: 42, 2: 7, 4: 0})
        connection.send(UNSUBSCRIBE, {1: 42, 2: 8})
        assert connection.ping()


def test_odd_numbers_in_honest_commands(server, bystander, client, topic):
    with Connection(server) as connection:
        connection.subscribe(full(topic), "s", kind=1, consumer_id=1)
        connection.producer(full(topic), producer_id=2, request=2)
        connection.publish(b"1", producer_id=2)
        # acknowledging positions that do not exist, seeking to them, no permits and far too many
        connection.send(ACK, {1: 1, 2: 0, 3: [{1: 2**63 - 1, 2: 2**63 - 1}, {1: 2**64 - 1, 2: 2**64 - 1}, {1: 10**9, 2: 5}]})
        connection.send(FLOW, {1: 1, 2: 0})
        connection.send(FLOW, {1: 1, 2: 2**32 - 1})
        connection.send(SEEK, {1: 1, 2: 9, 3: {1: 10**9, 2: 10**9}})
        eventually(lambda: connection.next() == CLOSED or True)
    reader = client.create_reader(topic, pulsar.MessageId.earliest)
    assert numbers(read(reader, 1)) == [1]


@pytest.mark.parametrize("kind", ["metadata-longer-than-frame", "metadata-not-protobuf", "no-metadata", "empty"])
def test_broken_payloads(server, bystander, client, topic, kind):
    """Either an error for that message or a closed connection; the topic goes on."""
    tail = {"metadata-longer-than-frame": struct.pack(">I", 100_000) + b"short",
            "metadata-not-protobuf": payload(0, b"x", metadata=b"\xff" * 30),
            "no-metadata": struct.pack(">I", 0) + b"x",
            "empty": b""}[kind]
    with Connection(server) as connection:
        connection.producer(full(topic))
        connection.send(SEND, {1: 1, 2: 0}, tail)
        connection.socket.settimeout(3)
        try:
            connection.next()
        except TimeoutError:
            pass
    producer = client.create_producer(topic)
    last = producer.send(b"7")
    reader = client.create_reader(topic, last, start_message_id_inclusive=True)
    assert numbers(read(reader, 1)) == [7]


def test_half_a_message_and_away(server, bystander, topic):
    whole = frame(SEND, {1: 1, 2: 0}, payload(0, b"x" * 5000))
    for cut in (1, 4, 7, 20, 60, len(whole) - 1):
        with Connection(server) as connection:
            connection.producer(full(topic))
            connection.raw(whole[:cut])


def test_many_half_open_connections_cost_little(server, bystander):
    """Each announces a big frame and sends nothing of it: memory is for bytes that came, not for bytes announced."""
    before = server.rss_kib() if hasattr(server, "rss_kib") else None
    connections = [Connection(server) for _ in range(200)]
    try:
        for connection in connections:
            connection.raw(struct.pack(">II", 5 * (1 << 20), 20) + b"x")
        bystander.wait_for_progress()
        if before is not None:
            assert server.rss_kib() - before < 64 << 10, "KiB more for 200 half-open connections"
    finally:
        for connection in connections:
            connection.socket.close()


def test_a_peer_that_never_reads(server, bystander, client, topic):
    """10 MB wait for a consumer that gives permits and reads nothing: its problem alone."""
    producer = client.create_producer(topic, max_pending_messages=1000, block_if_queue_full=True)
    with Connection(server) as deaf:
        deaf.subscribe(full(topic), "s")
        deaf.send(FLOW, {1: 1, 2: 100_000})
        for _ in range(100):
            producer.send_async(bytes(100_000), None)
        producer.flush()
        bystander.wait_for_progress()


def test_random_bytes(server, bystander, seed):
    """Honest frames with a few bytes turned, and plain noise. CONFORMANCE_SEED repeats it."""
    source = random.Random(seed)
    honest = [frame(CONNECT, {1: "x", 4: 21}), frame(PRODUCER, {1: full("fuzz"), 2: 1, 3: 1}),
              frame(SUBSCRIBE, {1: full("fuzz"), 2: "s", 3: 1, 4: 1, 5: 2}), frame(FLOW, {1: 1, 2: 10}),
              frame(SEND, {1: 1, 2: 0}, payload(0, b"fuzz" * 20)), frame(ACK, {1: 1, 2: 0, 3: {1: 0, 2: 0}}),
              struct.pack(">II", 44, 40) + message({1: 6}) + source.randbytes(38)]
    for _ in range(150):
        with Connection(server, connect=source.random() < 0.7) as connection:
            for _ in range(source.randrange(1, 6)):
                data = bytearray(source.choice(honest))
                for _ in range(source.choice([0, 1, 1, 3, 8])):
                    data[source.randrange(len(data))] = source.randrange(256)
                if not connection.raw(bytes(data)):
                    break


def test_http_port_survives_garbage(server, admin, bystander):
    address = urllib.parse.urlparse(server.admin_url)
    for garbage in (*GARBAGE.values(), b"POST /admin/v2/persistent/public/default/x HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
                    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n"):
        with socket.create_connection((address.hostname, address.port), timeout=5) as raw:
            try:
                raw.sendall(garbage)
                raw.shutdown(socket.SHUT_WR)
                while raw.recv(4096):
                    pass
            except OSError:
                pass
    assert admin.get("/admin/v2/clusters")


@pytest.mark.parametrize("method,path,body", [
    ("PUT", "/admin/v2/persistent/public/default/{}/partitions", b"not a number"),
    ("PUT", "/admin/v2/persistent/public/default/{}/partitions", b"-3"),
    ("PUT", "/admin/v2/persistent/public/default/{}/partitions", b"0"),
    ("PUT", "/admin/v2/tenants/x%20y", b"{"),
    ("PUT", "/admin/v2/namespaces/nobody/ns", b""),
    ("POST", "/admin/v2/persistent/public/default/{}/subscription/s/skip/x", b""),
])
def test_bad_requests_are_client_errors(admin, topic, method, path, body):
    assert 400 <= admin.status(method, path.format(topic), body) < 500


BODIES = {
    "nothing": b"", "half": b'{"a":', "null": b"null", "list": b"[]", "text": b'"x"', "negative": b"-1", "fraction": b"0.5", "infinite": b"1e400",
    "beyond-64-bits": b"99999999999999999999999", "deep": b"[" * 5000, "deep-objects": b'{"a":' * 5000, "not-utf8": b'{"\xff\xfe": 1}',
    "nul": b'{"a\\u0000b": "\\u0000"}', "surrogate": b'"\\ud800"', "twice": b'{"policy":"x","policy":1}',
    "everything-wrong": b'{"limitSize":"x","policy":7,"retentionTimeInMinutes":[],"retentionSizeInMB":{},"active":3,"tickTime":"soon",'
                        b'"publishThrottlingRateInMsg":true,"dispatchThrottlingRateInMsg":null,"maxInactiveDurationSeconds":-9e99,"topicType":"round",'
                        b'"defaultNumPartitions":99999999999,"bookkeeperEnsemble":-1,"schema":7,"type":"AVRO","ledgerId":"x","entryId":1.5}',
    "large": b'{"a":"' + b"x" * 300_000 + b'"}',
}
OF_NAMESPACES = """publishRate backlogQuota messageTTL retention deduplication persistence dispatchRate subscriptionDispatchRate subscribeRate
    replicatorDispatchRate maxProducersPerTopic maxConsumersPerTopic maxConsumersPerSubscription maxSubscriptionsPerTopic
    maxUnackedMessagesPerConsumer maxUnackedMessagesPerSubscription inactiveTopicPolicies subscriptionTypesEnabled autoTopicCreation
    autoSubscriptionCreation delayedDelivery encryptionRequired schemaCompatibilityStrategy schemaValidationEnforced isAllowAutoUpdateSchema
    compactionThreshold offloadPolicies replication permissions/role subscriptionAuthMode properties entryFilters
    subscriptionExpirationTime deduplicationSnapshotInterval maxTopicsPerNamespace""".split()
OF_TOPICS = OF_NAMESPACES + """partitions subscription/s subscription/s/resetcursor subscription/s/skip/1 subscription/s/properties expireMessages/5
    terminate compaction offload maxMessageSize maxProducers maxConsumers properties schema createMissedPartitions truncate""".split()


@pytest.mark.pulsar_differs("it answers 500 to much that it cannot read")
@pytest.mark.parametrize("name", BODIES)
def test_bodies_that_mean_nothing_are_no_fault_of_the_server(admin, bystander, client, topic, name):
    """To every document that REST takes: refused, or taken where it can be read; never a failure within."""
    client.create_producer(topic).close()
    paths = ["/admin/v2/namespaces/public/bodies", "/admin/v2/tenants/bodies", "/admin/v2/clusters/bodies",
             *(f"/admin/v2/namespaces/public/bodies/{policy}" for policy in OF_NAMESPACES),
             *(admin.topic(topic, f"/{policy}") for policy in OF_TOPICS),
             f"/admin/v2/schemas/public/default/{topic}/schema", f"/admin/v2/schemas/public/default/{topic}/compatibility",
             "/admin/v2/brokers/configuration/maxMessageSize/x"]
    failed = []
    for path in paths:
        for method in ("PUT", "POST"):
            status = admin.status(method, path, BODIES[name])
            if status >= 500 and status != 501:
                failed.append(f"{method} {path}: {status}")
    assert not failed, "\n".join(failed)
