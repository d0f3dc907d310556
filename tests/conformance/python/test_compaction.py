"""Compaction: the last message of each key, for readers that ask for it, and table views."""

import pulsar
import pytest

from server import Server, quiet_ports
from support import Admin, eventually, receive


def compact(admin, topic):
    admin.put(admin.topic(topic, "/compaction"))
    eventually(lambda: admin.get(admin.topic(topic, "/compaction"))["status"] == "SUCCESS", what="it is compacted")


def everything(client, topic, compacted=True):
    reader = client.create_reader(topic, pulsar.MessageId.earliest, is_read_compacted=compacted)
    found = []
    while reader.has_message_available():
        message = reader.read_next(10_000)
        found.append((message.partition_key(), message.data()))
    reader.close()
    return found


@pytest.mark.parametrize("batching", [False, True])
@pytest.mark.parametrize("compression", [pulsar.CompressionType.NONE, pulsar.CompressionType.LZ4, pulsar.CompressionType.ZSTD])
def test_the_last_of_each_key_is_kept(client, admin, topic, batching, compression):
    producer = client.create_producer(topic, batching_enabled=batching, batching_max_publish_delay_ms=20, compression_type=compression)
    for number in range(60):
        producer.send_async(b"%d" % number, None, partition_key=str(number % 7))
    producer.flush()
    for key in ("2", "5"):
        producer.send(b"", partition_key=key)
    assert len(everything(client, topic)) == 62
    compact(admin, topic)
    expected = {str(number % 7): b"%d" % number for number in range(60)}
    del expected["2"], expected["5"]
    found = everything(client, topic)
    assert dict(found) == expected
    assert len(found) == len(expected)
    assert len(everything(client, topic, compacted=False)) == 62
    producer.send(b"new", partition_key="1")
    assert everything(client, topic)[-1] == ("1", b"new")


def test_a_subscription_reads_compacted_and_goes_on(client, admin, topic):
    producer = client.create_producer(topic, batching_enabled=False)
    for number in range(20):
        producer.send(b"%d" % number, partition_key=str(number % 2))
    compact(admin, topic)
    consumer = client.subscribe(topic, "s", is_read_compacted=True, initial_position=pulsar.InitialPosition.Earliest)
    assert [message.data() for message in receive(consumer, 2)] == [b"18", b"19"]
    producer.send(b"20", partition_key="0")
    assert receive(consumer, 1)[0].data() == b"20"


def test_shared_cannot_read_compacted(client, topic):
    with pytest.raises(pulsar.PulsarException):
        client.subscribe(topic, "s", consumer_type=pulsar.ConsumerType.Shared, is_read_compacted=True)


def test_a_table_view_follows_the_topic(client, admin, topic):
    producer = client.create_producer(topic, batching_enabled=False)
    for number in range(30):
        producer.send(b"%d" % number, partition_key=str(number % 3))
    producer.send(b"", partition_key="1")
    compact(admin, topic)
    table = client.create_table_view(topic)
    assert (table.get("0"), table.get("1"), table.get("2")) == (b"27", None, b"29")
    producer.send(b"now", partition_key="1")
    eventually(lambda: table.get("1") == b"now", what="the table follows")
    table.close()


def test_chunked_messages_are_kept_whole(client, admin, topic):
    producer = client.create_producer(topic, chunking_enabled=True, batching_enabled=False)
    big = {key: bytes([key + 65]) * 11_000_000 for key in (0, 1)}
    for key in (0, 1, 0):
        producer.send(big[key], partition_key=str(key))
    producer.send(b"small", partition_key="2")
    compact(admin, topic)
    assert everything(client, topic) == [("1", big[1]), ("0", big[0]), ("2", b"small")]


@pytest.fixture
def quick_server(tmp_path):
    """One that looks at thresholds every second."""
    (tmp_path / "broker.conf").write_text("brokerServiceCompactionMonitorIntervalInSeconds=1\n")
    server = Server("--config", str(tmp_path / "broker.conf"), ports=quiet_ports()).start()
    yield server
    server.close()


@pytest.mark.own_server
@pytest.mark.parametrize("level", ["namespace", "topic"])
def test_a_threshold_begins_it(quick_server, new_client, level):
    admin, client, topic = Admin(quick_server.admin_url), new_client(quick_server.service_url), "threshold"
    producer = client.create_producer(topic, batching_enabled=False)
    where = "/admin/v2/namespaces/public/default" if level == "namespace" else admin.topic(topic)
    (admin.put if level == "namespace" else admin.post)(where + "/compactionThreshold", 1000)
    assert admin.get(where + "/compactionThreshold") == 1000
    for number in range(100):
        producer.send(b"%d" % number, partition_key=str(number % 3))
    def compaction():
        return admin.get(admin.topic(topic, "/stats"))["compaction"]
    eventually(lambda: compaction()["lastCompactionSucceedTimestamp"] > 0, what="a compaction by itself")
    assert compaction()["lastCompactionRemovedEventCount"] > 0
    assert admin.get(admin.topic(topic, "/internalStats"))["compactedLedger"]["entries"] == 3
    found = dict(everything(client, topic))
    assert found == {"0": b"99", "1": b"97", "2": b"98"}


@pytest.mark.own_server
def test_kill9_leaves_a_whole_view(own_server, new_client):
    admin = Admin(own_server.admin_url)
    expected = {}
    for kill in range(6):
        client = new_client(own_server.service_url)
        producer = client.create_producer("t", batching_enabled=kill % 2 == 0, batching_max_publish_delay_ms=5)
        for number in range(400):
            key = str((number * 7 + kill) % 90)
            producer.send_async(b"%d %d" % (kill, number), None, partition_key=key)
            expected[key] = b"%d %d" % (kill, number)
        producer.flush()
        if kill:
            assert dict(everything(client, "t")) == expected
        client.close()
        admin.put(admin.topic("t", "/compaction"))
        own_server.kill()       # at some point of the run
        own_server.start()
    client = new_client(own_server.service_url)
    assert dict(everything(client, "t")) == expected
    compact(admin, "t")
    found = everything(client, "t")
    assert dict(found) == expected and len(found) == len(expected)
