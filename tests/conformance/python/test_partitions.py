"""Partitioned topics, several topics at once, and topics by pattern."""

import collections
import re
import urllib.error

import pulsar
import pytest

from support import drain, numbers, receive, send_numbers


def test_partitions_are_told_to_clients(client, admin, topic):
    admin.create_partitioned(topic, 4)
    full = f"persistent://public/default/{topic}"
    assert sorted(client.get_topic_partitions(topic)) == [f"{full}-partition-{n}" for n in range(4)]
    assert client.get_topic_partitions(f"{topic}-partition-2") == [f"{full}-partition-2"]
    assert admin.get(admin.topic(topic, "/partitions"))["partitions"] == 4
    with pytest.raises(urllib.error.HTTPError) as refused:
        admin.create_partitioned(topic, 4)
    assert refused.value.code == 409


def test_keys_go_to_one_partition_in_order(client, admin, topic):
    admin.create_partitioned(topic, 4)
    consumer = client.subscribe(topic, "s")
    producer = client.create_producer(topic)
    for n in range(20):
        for key in range(20):
            producer.send_async(b"%d" % n, None, partition_key=f"key-{key}")
    producer.flush()
    partitions, order = collections.defaultdict(set), collections.defaultdict(list)
    for message in receive(consumer, 400):
        partitions[message.partition_key()].add(message.message_id().partition())
        order[message.partition_key()].append(int(message.data()))
    assert all(len(p) == 1 for p in partitions.values())
    assert len(set.union(*partitions.values())) == 4
    assert all(numbers == list(range(20)) for numbers in order.values())


def test_without_keys_messages_go_round(client, admin, topic):
    admin.create_partitioned(topic, 4)
    consumer = client.subscribe(topic, "s")
    send_numbers(client.create_producer(topic), 80)
    shares = collections.Counter(m.message_id().partition() for m in receive(consumer, 80))
    assert shares == {0: 20, 1: 20, 2: 20, 3: 20}


def test_single_partition_routing(client, admin, topic):
    admin.create_partitioned(topic, 4)
    consumer = client.subscribe(topic, "s")
    producer = client.create_producer(topic, message_routing_mode=pulsar.PartitionsRoutingMode.UseSinglePartition)
    send_numbers(producer, 40)
    messages = receive(consumer, 40)
    assert len({m.message_id().partition() for m in messages}) == 1
    assert numbers(messages) == list(range(40))


def test_one_partition_can_be_used_alone(client, admin, topic):
    admin.create_partitioned(topic, 3)
    consumer = client.subscribe(f"{topic}-partition-1", "s")
    client.create_producer(f"{topic}-partition-1").send(b"1")
    assert numbers(receive(consumer, 1)) == [1]


def test_a_partitioned_topic_of_one(client, admin, topic):
    admin.create_partitioned(topic, 1)
    consumer = client.subscribe(topic, "s")
    send_numbers(client.create_producer(topic), 10)
    assert numbers(receive(consumer, 10)) == list(range(10))
    assert admin.subscriptions(f"{topic}-partition-0") == ["s"]


@pytest.mark.parametrize("kind", [pulsar.ConsumerType.Shared, pulsar.ConsumerType.KeyShared], ids=["Shared", "Key_Shared"])
def test_shared_types_over_partitions(client, admin, topic, kind):
    admin.create_partitioned(topic, 3)
    consumers = [client.subscribe(topic, "s", kind, consumer_name=f"c{n}") for n in range(2)]
    producer = client.create_producer(topic)
    for n in range(300):
        producer.send_async(b"%d" % n, None, partition_key=f"k{n % 30}")
    producer.flush()
    got = drain(consumers, 300)
    for index, message in got:
        consumers[index].acknowledge(message)
    assert sorted(int(m.data()) for _, m in got) == list(range(300))


def test_more_partitions_later(client, admin, topic):
    admin.create_partitioned(topic, 2)
    consumer = client.subscribe(topic, "s")
    admin.post(admin.topic(topic, "/partitions"), 4)
    assert len(client.get_topic_partitions(topic)) == 4
    consumer.close()
    consumer = client.subscribe(topic, "s")
    send_numbers(client.create_producer(topic), 40)
    assert {m.message_id().partition() for m in receive(consumer, 40)} == {0, 1, 2, 3}
    with pytest.raises(urllib.error.HTTPError):
        admin.post(admin.topic(topic, "/partitions"), 3)


def test_deleting_a_partitioned_topic(client, admin, topic):
    admin.create_partitioned(topic, 2)
    producer = client.create_producer(topic)
    producer.send(b"x")
    producer.close()
    admin.delete(admin.topic(topic, "/partitions"))
    listed = admin.get("/admin/v2/persistent/public/default")
    assert not [name for name in listed if topic in name]


def test_a_list_of_topics(client, topic):
    names = [f"{topic}-{n}" for n in range(3)]
    consumer = client.subscribe(names, "s")
    for n, name in enumerate(names):
        send_numbers(client.create_producer(name), 5, start=10 * n)
    messages = receive(consumer, 15)
    assert sorted(numbers(messages)) == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14, 20, 21, 22, 23, 24]
    assert {m.topic_name() for m in messages} == {f"persistent://public/default/{n}" for n in names}


def test_topics_by_pattern(client, admin, topic):
    """That topics are found when they appear later is in the Go suite: this client does not pass its
    `pattern_auto_discovery_period` on, and looks once a minute."""
    producers = [client.create_producer(f"{topic}-{n}-in") for n in range(3)]
    other = client.create_producer(f"{topic}-other")
    admin.create_partitioned(f"{topic}-p-in", 2)
    partitioned = client.create_producer(f"{topic}-p-in")
    consumer = client.subscribe(re.compile(f"persistent://public/default/{topic}-.*-in"), "s")
    for n, producer in enumerate(producers):
        send_numbers(producer, 3, start=10 * n)
    send_numbers(other, 3, start=90)
    send_numbers(partitioned, 4, start=50)
    assert sorted(numbers(receive(consumer, 13))) == [0, 1, 2, 10, 11, 12, 20, 21, 22, 50, 51, 52, 53]
