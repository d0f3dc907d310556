"""Readers: from any position, several times, leaving nothing behind."""

import pulsar
import pytest

from support import assert_nothing, data, eventually, numbers, order, read, send_numbers


def test_earliest_and_latest(client, topic):
    producer = client.create_producer(topic)
    send_numbers(producer, 10)
    early = client.create_reader(topic, pulsar.MessageId.earliest)
    late = client.create_reader(topic, pulsar.MessageId.latest)
    send_numbers(producer, 1, start=10)
    assert numbers(read(early, 11)) == list(range(11))
    assert numbers(read(late, 1)) == [10]


@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
@pytest.mark.parametrize("at", [0, 7, 13])
def test_from_an_id(client, topic, batched, at):
    producer = client.create_producer(topic, batching_enabled=batched, batching_max_messages=10, batching_max_publish_delay_ms=10_000)
    ids = send_numbers(producer, 20)
    after = client.create_reader(topic, ids[at])
    assert numbers(read(after, 19 - at)) == list(range(at + 1, 20))
    inclusive = client.create_reader(topic, ids[at], start_message_id_inclusive=True)
    assert numbers(read(inclusive, 20 - at)) == list(range(at, 20))


def test_an_id_can_be_stored_and_used_later(client, topic):
    ids = send_numbers(client.create_producer(topic), 5)
    stored = ids[2].serialize()
    reader = client.create_reader(topic, pulsar.MessageId.deserialize(stored))
    assert numbers(read(reader, 2)) == [3, 4]


def test_has_message_available(client, topic):
    producer = client.create_producer(topic)
    reader = client.create_reader(topic, pulsar.MessageId.earliest)
    assert not reader.has_message_available()
    send_numbers(producer, 3)
    for n in range(3):
        assert reader.has_message_available()
        assert numbers(read(reader, 1)) == [n]
    assert not reader.has_message_available()
    send_numbers(producer, 1)
    assert reader.has_message_available()


def test_has_message_available_with_batches(client, topic):
    producer = client.create_producer(topic, batching_enabled=True, batching_max_messages=7, batching_max_publish_delay_ms=10_000)
    send_numbers(producer, 21)
    reader = client.create_reader(topic, pulsar.MessageId.earliest)
    got = []
    while reader.has_message_available():
        got += numbers(read(reader, 1))
    assert got == list(range(21))


def test_has_message_available_at_latest(client, topic):
    send_numbers(client.create_producer(topic), 3)
    assert not client.create_reader(topic, pulsar.MessageId.latest).has_message_available()
    assert client.create_reader(topic, pulsar.MessageId.latest, start_message_id_inclusive=True).has_message_available()


def test_latest_inclusive_gives_the_last_message(client, topic):
    send_numbers(client.create_producer(topic), 5)
    reader = client.create_reader(topic, pulsar.MessageId.latest, start_message_id_inclusive=True)
    if reader.has_message_available():
        assert numbers(read(reader, 1)) == [4]


def test_reader_seeks(client, topic):
    ids = send_numbers(client.create_producer(topic), 20)
    reader = client.create_reader(topic, pulsar.MessageId.earliest)
    assert numbers(read(reader, 20)) == list(range(20))
    reader.seek(ids[9])
    assert numbers(read(reader, 10)) == list(range(10, 20))
    reader.seek(pulsar.MessageId.earliest)
    assert numbers(read(reader, 20)) == list(range(20))
    reader.seek(pulsar.MessageId.latest)
    assert not reader.has_message_available()


def test_readers_leave_nothing_behind(client, admin, topic):
    send_numbers(client.create_producer(topic), 5)
    readers = [client.create_reader(topic, pulsar.MessageId.earliest) for _ in range(3)]
    for reader in readers:
        assert numbers(read(reader, 5)) == list(range(5))
        reader.close()
    eventually(lambda: admin.subscriptions(topic) == [])


def test_many_readers_at_different_places(client, topic):
    ids = send_numbers(client.create_producer(topic), 100)
    readers = [(n, client.create_reader(topic, ids[n])) for n in range(0, 99, 9)]
    for n, reader in readers:
        assert numbers(read(reader, 99 - n)) == list(range(n + 1, 100))


def test_reader_listener(client, topic):
    got = []
    client.create_reader(topic, pulsar.MessageId.earliest, reader_listener=lambda reader, message: got.append(message.data()))
    send_numbers(client.create_producer(topic), 50)
    eventually(lambda: len(got) == 50)
    assert got == [b"%d" % n for n in range(50)]


def test_reader_of_a_partitioned_topic(client, admin, topic):
    admin.create_partitioned(topic, 3)
    reader = client.create_reader(topic, pulsar.MessageId.earliest)
    send_numbers(client.create_producer(topic), 30)
    got = []
    while reader.has_message_available():
        got += numbers(read(reader, 1))
    assert sorted(got) == list(range(30))


def test_last_message_id(client, topic):
    consumer = client.subscribe(topic, "s")
    assert order(consumer.get_last_message_id())[:2] == (-1, -1)
    producer = client.create_producer(topic)
    ids = send_numbers(producer, 3)
    assert order(consumer.get_last_message_id())[:2] == order(ids[-1])[:2]
    batching = client.create_producer(topic, batching_enabled=True, batching_max_publish_delay_ms=10_000)
    ids = send_numbers(batching, 6)
    assert order(consumer.get_last_message_id()) == order(ids[-1])


def test_table_view(client, topic):
    from pulsar.schema import StringSchema
    producer = client.create_producer(topic, schema=StringSchema())
    for n in range(30):
        producer.send(f"v{n}", partition_key=f"k{n % 5}")
    table = client.create_table_view(topic, schema=StringSchema())
    assert {key: table.get(key) for key in ("k0", "k1", "k2", "k3", "k4", "none")} == {
        "k0": "v25", "k1": "v26", "k2": "v27", "k3": "v28", "k4": "v29", "none": None}
    producer.send("new", partition_key="k1")
    eventually(lambda: table.get("k1") == "new")
    seen = {}
    table.for_each(lambda key, value: seen.__setitem__(key, value))
    assert seen["k1"] == "new" and len(seen) == 5


def test_reader_at_the_end_waits(client, topic):
    producer = client.create_producer(topic)
    ids = send_numbers(producer, 3)
    reader = client.create_reader(topic, ids[-1])
    with pytest.raises(pulsar.Timeout):
        reader.read_next(200)
    producer.send(b"3")
    assert data(read(reader, 1)) == [b"3"]
    consumer = client.subscribe(topic, "s")
    assert_nothing(consumer, 50)
