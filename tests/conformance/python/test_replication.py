"""Geo-replication, judged by the official client at both ends: between two Geminga clusters, and between Geminga and a
real Apache Pulsar, where REPLICATION_SERVICE_URL and REPLICATION_ADMIN_URL name one (it is given clusters, namespaces and
topics of this run's own names)."""

import json
import os
import threading
import time

import pulsar
import pytest
from pulsar.schema import AvroSchema, Integer, Record, String

from server import Server, quiet_ports
from support import Admin, eventually, receive

pytestmark = [pytest.mark.own_server, pytest.mark.timeout(180)]
PULSAR = "REPLICATION_SERVICE_URL"


class Cluster:
    """A cluster at one end, ours or not."""

    def __init__(self, name, service_url, admin_url, server=None):
        self.name, self.service_url, self.server = name, service_url, server
        self.admin = Admin(admin_url)
        self.data = {"serviceUrl": admin_url, "brokerServiceUrl": service_url}

    def know(self, *others):
        for other in others:
            self.admin.put(f"/admin/v2/clusters/{other.name}", other.data)
        tenant = self.admin.get("/admin/v2/tenants/public")
        allowed = set(tenant["allowedClusters"]) | {self.name} | {other.name for other in others}
        self.admin.post("/admin/v2/tenants/public", {"adminRoles": tenant["adminRoles"],
                                                     "allowedClusters": sorted(allowed)})

    def stats(self, topic):
        return self.admin.get("/admin/v2/" + topic.replace("://", "/") + "/stats")

    def replication(self, topic, other):
        return self.stats(topic)["replication"][other.name]


class Pair:
    def __init__(self, east, west, new_client):
        self.east, self.west, self.new_client = east, west, new_client
        self.namespaces = 0

    def namespace(self, replicated=True):
        """One of the same name at both ends; with deduplication, which exactly-once needs."""
        self.namespaces += 1
        name = f"public/r{os.getpid()}-{time.monotonic_ns()}"
        both = [self.east.name, self.west.name]
        for cluster in (self.east, self.west):
            cluster.admin.put(f"/admin/v2/namespaces/{name}")
            cluster.admin.post(f"/admin/v2/namespaces/{name}/deduplication", True)
        for cluster in (self.east, self.west):
            if replicated:
                cluster.admin.post(f"/admin/v2/namespaces/{name}/replication", both)
        return name

    def topic(self, name="t", **how):
        return f"persistent://{self.namespace(**how)}/{name}"

    def client(self, cluster):
        return self.new_client(cluster.service_url, operation_timeout_seconds=30)

    def both_ways(self):
        return [(self.east, self.west), (self.west, self.east)]


def started(tmp_path, name, ports=(0, 0)):
    conf = tmp_path / f"{name}.conf"
    conf.write_text(f"clusterName={name}\n")
    server = Server("--config", str(conf), ports=ports).start()
    return Cluster(name, server.service_url, server.admin_url, server)


def outside():
    admin_url = os.environ["REPLICATION_ADMIN_URL"].rstrip("/")
    name = next(name for name in Admin(admin_url).get("/admin/v2/clusters") if not name.startswith(("east", "global")))
    return Cluster(name, os.environ[PULSAR], admin_url)


@pytest.fixture(params=["geminga", "pulsar"])
def pair(request, tmp_path, new_client):
    if request.param == "pulsar" and PULSAR not in os.environ:
        pytest.skip(f"{PULSAR} names no Apache Pulsar")
    east = started(tmp_path, f"east-{os.getpid()}-{time.monotonic_ns()}", quiet_ports())
    west = outside() if request.param == "pulsar" else started(tmp_path, "west", quiet_ports())
    try:
        east.know(west)
        west.know(east)
        yield Pair(east, west, new_client)
        failed = getattr(request.node, "failed_call", False)
        if failed:
            print(east.server.log_tail())
    finally:
        for cluster in (east, west):
            if cluster.server:
                cluster.server.close()


def subscribe(client, topic, name="s", **how):
    return client.subscribe(topic, name, initial_position=pulsar.InitialPosition.Earliest, **how)


def ready(sender, receiver, topic):
    """Waits until the sender's replicator has its way: what is published before may still go, but later."""
    eventually(lambda: sender.replication(topic, receiver)["connected"], 60, what="connected")


def nothing_more(consumer):
    with pytest.raises(pulsar.Timeout):
        consumer.receive(1_000)


@pytest.mark.parametrize("batching", [False, True])
def test_messages_go_both_ways_once_and_as_they_are(pair, batching):
    topic = pair.topic()
    producers, consumers = {}, {}
    for cluster in (pair.east, pair.west):
        client = pair.client(cluster)
        consumers[cluster.name] = subscribe(client, topic)
        producers[cluster.name] = client.create_producer(
            topic, producer_name="p", batching_enabled=batching, batching_max_publish_delay_ms=5,
            compression_type=pulsar.CompressionType.LZ4)
    for sender, _ in pair.both_ways():
        for number in range(50):
            producers[sender.name].send_async(b"%d" % number, None, partition_key=f"k{number % 3}",
                                              properties={"from": sender.name, "n": str(number)},
                                              event_timestamp=1_000 + number)
        producers[sender.name].flush()
    for cluster in (pair.east, pair.west):
        got = {}
        for message in receive(consumers[cluster.name], 100):
            properties = message.properties()
            got.setdefault(properties["from"], []).append(int(message.data()))
            number = int(properties["n"])
            assert message.data() == b"%d" % number
            assert (message.partition_key(), message.event_timestamp()) == (f"k{number % 3}", 1_000 + number)
        assert got == {pair.east.name: list(range(50)), pair.west.name: list(range(50))}, cluster.name
        nothing_more(consumers[cluster.name])


def test_partitions_are_made_at_the_other_end(pair):
    for sender, receiver in pair.both_ways():
        topic = pair.topic("parted")
        path = "/admin/v2/" + topic.replace("://", "/") + "/partitions"
        sender.admin.put(path, 3)
        producer = pair.client(sender).create_producer(
            topic, message_routing_mode=pulsar.PartitionsRoutingMode.RoundRobinDistribution, batching_enabled=False)
        for number in range(30):
            producer.send(b"%d" % number)
        eventually(lambda: receiver.admin.get(path)["partitions"] == 3, 60, what="3 partitions there")
        consumer = subscribe(pair.client(receiver), topic)
        assert sorted(int(message.data()) for message in receive(consumer, 30)) == list(range(30))
        nothing_more(consumer)


def test_a_message_says_where_it_goes(pair):
    for sender, receiver in pair.both_ways():
        topic = pair.topic()
        here = subscribe(pair.client(sender), topic)
        there = subscribe(pair.client(receiver), topic)
        producer = pair.client(sender).create_producer(topic, batching_enabled=False)
        producer.send(b"stays", disable_replication=True)
        producer.send(b"elsewhere", replication_clusters=["nowhere"])
        producer.send(b"named", replication_clusters=[receiver.name])
        producer.send(b"all")
        assert [m.data() for m in receive(there, 2)] == [b"named", b"all"]
        assert len(receive(here, 4)) == 4
        nothing_more(there)
        # what was left out is no backlog
        eventually(lambda: sender.replication(topic, receiver)["replicationBacklog"] == 0, what="no backlog")


def test_one_topic_by_its_own_policy(pair):
    namespace = pair.namespace(replicated=False)
    both = [pair.east.name, pair.west.name]
    alone, shared = (f"persistent://{namespace}/{name}" for name in ("alone", "shared"))
    path = "/admin/v2/" + shared.replace("://", "/")
    for name in (alone, shared):
        pair.east.admin.put("/admin/v2/" + name.replace("://", "/"))
        pair.west.admin.put("/admin/v2/" + name.replace("://", "/"))
    pair.east.admin.post(path + "/replication", both)
    assert sorted(pair.east.admin.get(path + "/replication")) == sorted(both)
    east, west = pair.client(pair.east), pair.client(pair.west)
    consumers = {name: subscribe(west, name) for name in (alone, shared)}
    for name in (alone, shared):
        east.create_producer(name).send(name.encode())
    assert receive(consumers[shared], 1)[0].data() == shared.encode()
    nothing_more(consumers[alone])
    assert pair.east.stats(alone)["replication"] == {}
    pair.east.admin.delete(path + "/replication")
    assert not pair.east.admin.get(path + "/replication")
    eventually(lambda: pair.east.stats(shared)["replication"] == {}, what="the replicator is gone")


def versions():
    """Two records of one name, the second with a field more."""
    class Value(Record):
        a = Integer()
    one = Value

    class Value(Record):
        a = Integer()
        b = String(required_default=True)
    return one, Value


def test_schemas_go_along(pair):
    V1, V2 = versions()
    for sender, receiver in pair.both_ways():
        topic = pair.topic()
        client = pair.client(sender)
        one = client.create_producer(topic, schema=AvroSchema(V1))
        one.send(V1(a=1))
        two = client.create_producer(topic, schema=AvroSchema(V2))
        two.send(V2(a=2, b="two"))
        one.send(V1(a=3))
        path = "/admin/v2/schemas/" + topic.split("://")[1] + "/schemas"
        eventually(lambda: len(receiver.admin.get(path)["getSchemaResponses"]) == 2, 60, what="two versions there")
        consumer = subscribe(pair.client(receiver), topic, schema=AvroSchema(V2))
        got = [message.value() for message in receive(consumer, 3)]
        assert [value.a for value in got] == [1, 2, 3]
        assert got[1].b == "two"


def test_a_cut_way_is_seen_and_made_good(pair):
    """Ours is the receiver that is down: its sender keeps what it lacks, and says how much."""
    topic = pair.topic()
    path = pair.west.admin
    producer = pair.client(pair.west).create_producer(topic, batching_enabled=False)
    consumer = subscribe(pair.client(pair.east), topic)
    producer.send(b"0")
    receive(consumer, 1)
    ready(pair.west, pair.east, topic)
    pair.east.server.kill()
    eventually(lambda: not pair.west.replication(topic, pair.east)["connected"], 60, what="cut off")
    for number in range(1, 21):
        producer.send(b"%d" % number)
    assert pair.west.replication(topic, pair.east)["replicationBacklog"] >= 20
    assert path is pair.west.admin
    if pair.west.server:
        time.sleep(1.2)  # an age is told in whole seconds
        eventually(lambda: pair.west.replication(topic, pair.east)["replicationDelayInSeconds"] >= 1, what="delay")
        metrics = pair.west.admin.get("/metrics/", raw=True).decode()
        line = next(line for line in metrics.splitlines()
                    if line.startswith("pulsar_replication_backlog{") and f'remote_cluster="{pair.east.name}"' in line)
        assert line.endswith(" 20"), line
    pair.east.server.start()
    first = receive(consumer, 1, timeout=60_000)
    if first[0].data() == b"0":
        first = []  # its ack asked for no receipt, and was lost with the server
    got = first + receive(consumer, 20 - len(first))
    assert [int(message.data()) for message in got] == list(range(1, 21))
    nothing_more(consumer)
    eventually(lambda: pair.west.replication(topic, pair.east)["replicationBacklog"] == 0, what="caught up")


@pytest.mark.timeout(300)
def test_kill9_at_either_end_loses_and_doubles_nothing(pair, seed):
    """Producers at both ends, kills of whatever is ours at either end; in the end both have all of it, each once and in
    the order of its producer."""
    import random
    dice = random.Random(f"{seed} replication")
    topic = pair.topic()
    stopping = threading.Event()
    sent, acknowledged, threads, producers = {}, {}, [], {}
    for cluster in (pair.east, pair.west):
        producer = pair.client(cluster).create_producer(
            topic, producer_name=f"p-{cluster.name}", send_timeout_millis=0, block_if_queue_full=True,
            max_pending_messages=200, batching_enabled=True, batching_max_publish_delay_ms=2, batching_max_messages=20)
        sent[cluster.name], acknowledged[cluster.name], producers[cluster.name] = 0, [], producer

        def load(name=cluster.name, producer=producer):
            while not stopping.is_set():
                number = sent[name]
                producer.send_async(f"{name} {number}".encode(), lambda result, _: acknowledged[name].append(result),
                                    sequence_id=number)
                sent[name] += 1
                time.sleep(0.0005)

        threads.append(threading.Thread(target=load, daemon=True))
    for thread in threads:
        thread.start()
    ours = [cluster for cluster in (pair.east, pair.west) if cluster.server]
    for _ in range(6):
        victim = dice.choice(ours)
        before = len(acknowledged[victim.name])
        eventually(lambda: len(acknowledged[victim.name]) > before + 100, 60, what="sends are acknowledged")
        time.sleep(dice.random() * 0.3)
        victim.server.kill()
        time.sleep(dice.random() * 0.3)
        victim.server.start()
    stopping.set()
    for thread in threads:
        thread.join()
    for name, producer in producers.items():
        producer.flush()
        eventually(lambda: len(acknowledged[name]) == sent[name], 60, what="all is acknowledged")
        assert set(acknowledged[name]) == {pulsar.Result.Ok}
    for cluster in (pair.east, pair.west):
        reader = pair.client(cluster).create_reader(topic, pulsar.MessageId.earliest)
        expected = dict.fromkeys(sent, 0)
        while expected != sent:
            try:
                name, number = reader.read_next(60_000).data().decode().split()
            except pulsar.Timeout:
                raise AssertionError(f"at {cluster.name}: {expected} of {sent}") from None
            assert int(number) == expected[name], f"at {cluster.name} of {name}: each once, in order (seed {seed})"
            expected[name] += 1
        with pytest.raises(pulsar.Timeout):
            reader.read_next(1_000)


def test_clusters_by_rest(tmp_path):
    east = started(tmp_path, "east")
    try:
        admin = east.admin
        one = "/admin/v2/clusters/west"
        assert admin.get("/admin/v2/clusters") == ["east"]
        data = {"serviceUrl": "http://127.0.0.1:1", "brokerServiceUrl": "pulsar://127.0.0.1:1"}
        admin.put(one, {**data, "authenticationPlugin": "org.apache.pulsar.client.impl.auth.AuthenticationToken",
                        "authenticationParameters": "token:secret", "brokerClientTlsEnabled": False})
        assert admin.status("PUT", one, data) == 409
        assert admin.get("/admin/v2/clusters") == ["east", "west"]
        shown = admin.get(one)
        assert shown["brokerServiceUrl"] == data["brokerServiceUrl"] and "secret" not in json.dumps(shown)
        admin.post(one, {**data, "serviceUrl": "http://127.0.0.1:2"})
        assert admin.get(one)["serviceUrl"] == "http://127.0.0.1:2"
        for path, body, status in (
                (one + "x", data, 404),
                ("/admin/v2/namespaces/public/default/replication", ["east", "west"], 403),
                ("/admin/v2/namespaces/public/default/replication", ["east", "nowhere"], 403),
                ("/admin/v2/namespaces/public/default/replication", [], 412),
                ("/admin/v2/tenants/public", {"allowedClusters": ["nowhere"]}, 412)):
            assert admin.status("POST", path, body) == status, (path, body)
        admin.post("/admin/v2/tenants/public", {"adminRoles": [], "allowedClusters": ["east", "west"]})
        admin.post(one + "/peers", ["east"])
        assert admin.get(one + "/peers") == ["east"]
        assert admin.status("POST", "/admin/v2/namespaces/public/default/replication", ["east", "west"]) == 409
        admin.post(one + "/peers", [])
        admin.post("/admin/v2/namespaces/public/default/replication", ["east", "west"])
        assert admin.get("/admin/v2/namespaces/public/default/replication") == ["east", "west"]
        assert admin.get("/admin/v2/namespaces/public/default")["replication_clusters"] == ["east", "west"]
        assert admin.status("DELETE", one) == 412
        admin.post("/admin/v2/namespaces/public/default/replication", ["east"])
        admin.post("/admin/v2/tenants/public", {"adminRoles": [], "allowedClusters": ["east"]})
        admin.delete(one)
        assert admin.status("GET", one) == 404
    finally:
        east.server.close()


def test_replicated_subscriptions(pair):
    """What was acked at one end is not delivered again at the other; the last second may be."""
    for here, there in pair.both_ways():
        topic = pair.topic()
        client = pair.client(here)
        consumer = client.subscribe(topic, "s", initial_position=pulsar.InitialPosition.Earliest,
                                    replicate_subscription_state_enabled=True, receiver_queue_size=10)
        producer = client.create_producer(topic, batching_enabled=False)
        producer.send(b"0")
        ready(here, there, topic)
        # the way back too, or there is nobody who answers
        eventually(lambda: there.stats(topic), 60, what="the topic is there")
        ready(there, here, topic)
        sent, acked = 1, 0
        until = time.monotonic() + 60

        def moved():
            """How many are acked at the other end."""
            subscriptions = there.stats(topic)["subscriptions"]
            if "s" not in subscriptions:
                return False
            internal = there.admin.get("/admin/v2/" + topic.replace("://", "/") + "/internalStats")
            return internal["cursors"]["s"]["markDeletePosition"]

        while True:
            producer.send(b"%d" % sent)
            sent += 1
            for message in receive(consumer, sent - acked):
                acked = int(message.data()) + 1
            place = moved()
            if place and int(place.split(":")[1]) > 20:
                break
            assert time.monotonic() < until, f"the other end's subscription stays at {place}"
            time.sleep(0.05)
        assert there.stats(topic)["subscriptions"]["s"]["isReplicated"]
        consumer.close()
        producer.send(b"%d" % sent)
        other = pair.client(there).subscribe(topic, "s", initial_position=pulsar.InitialPosition.Earliest)
        first = int(receive(other, 1, timeout=30_000)[0].data())
        assert 5 < first <= sent, f"{first} of {sent}"
        other.close()


def test_replicated_status_by_rest(pair):
    topic = pair.topic()
    client = pair.client(pair.east)
    subscribe(client, topic).close()
    path = "/admin/v2/" + topic.replace("://", "/") + "/subscription/s/replicatedSubscriptionStatus"
    assert pair.east.admin.get(path) == {topic: False}
    pair.east.admin.post(path, True)
    assert pair.east.admin.get(path) == {topic: True}
    assert pair.east.stats(topic)["subscriptions"]["s"]["replicated"]
    assert pair.east.stats(topic)["subscriptions"]["s"]["subscriptionProperties"] == {}
    pair.east.admin.post(path, False)
    assert pair.east.admin.get(path) == {topic: False}
