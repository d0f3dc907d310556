"""Non-persistent topics: what nobody takes now is gone."""

import urllib.error

import pulsar
import pytest

from support import assert_nothing, data, drain, eventually, receive

DOMAIN = "non-persistent://public/default/"
KINDS = [pulsar.ConsumerType.Exclusive, pulsar.ConsumerType.Failover, pulsar.ConsumerType.Shared, pulsar.ConsumerType.KeyShared]


def path(topic, rest=""):
    return f"/admin/v2/non-persistent/public/default/{topic}{rest}"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_each_type_gets_what_is_sent_while_it_listens(client, topic, kind):
    producer = client.create_producer(DOMAIN + topic, batching_enabled=False)
    producer.send(b"before")
    consumer = client.subscribe(DOMAIN + topic, "s", consumer_type=kind)
    texts = [b"%d" % number for number in range(50)]
    for text in texts:
        producer.send(text, partition_key=text.decode())
    messages = receive(consumer, len(texts))
    assert data(messages) == texts
    assert {(m.message_id().ledger_id(), m.message_id().entry_id()) for m in messages} == {(0, 0)}
    consumer.close()
    producer.send(b"nobody is there")
    consumer = client.subscribe(DOMAIN + topic, "s", consumer_type=kind)
    producer.send(b"after")
    assert data(receive(consumer, 1)) == [b"after"]
    assert_nothing(consumer)


def test_receipts_name_no_position_and_batches_arrive(client, topic):
    consumer = client.subscribe(DOMAIN + topic, "s")
    producer = client.create_producer(DOMAIN + topic, batching_enabled=True, batching_max_publish_delay_ms=5)
    ids = []
    for number in range(20):
        producer.send_async(b"%d" % number, lambda result, message_id: ids.append((result, message_id)))
    producer.flush()
    assert data(receive(consumer, 20)) == [b"%d" % number for number in range(20)]
    eventually(lambda: len(ids) == 20)
    assert {result for result, _ in ids} == {pulsar.Result.Ok}
    assert {(message_id.ledger_id(), message_id.entry_id()) for _, message_id in ids} == {(0, 0)}


def test_shared_consumers_share(client, topic):
    consumers = [client.subscribe(DOMAIN + topic, "s", consumer_type=pulsar.ConsumerType.Shared) for _ in range(2)]
    producer = client.create_producer(DOMAIN + topic, batching_enabled=False)
    for number in range(100):
        producer.send(b"%d" % number)
    got = drain(consumers, 100)
    assert sorted(int(message.data()) for _, message in got) == list(range(100))
    assert {index for index, _ in got} == {0, 1}


def test_who_has_no_permits_misses_messages_and_stats_say_so(client, admin, topic):
    consumer = client.subscribe(DOMAIN + topic, "s", receiver_queue_size=5)
    producer = client.create_producer(DOMAIN + topic, batching_enabled=False)
    for number in range(100):
        producer.send(b"%d" % number)
    stats = admin.get(path(topic, "/stats"))
    assert stats["msgInCounter"] == 100
    assert stats["subscriptions"]["s"]["msgBacklog"] == 0
    assert stats["msgDropRate"] > 0
    assert stats["subscriptions"]["s"]["msgDropRate"] > 0
    assert stats["publishers"][0]["msgDropRate"] > 0
    assert data(receive(consumer, 5)) == [b"%d" % number for number in range(5)]
    # room again
    producer.send(b"later")
    assert data(receive(consumer, 1)) == [b"later"]


def test_only_live_ones_are_listed(client, admin, topic):
    producer = client.create_producer(DOMAIN + topic)
    assert DOMAIN + topic in admin.get("/admin/v2/non-persistent/public/default")
    assert DOMAIN + topic not in admin.get("/admin/v2/persistent/public/default")
    producer.close()


def test_partitioned(client, admin, topic):
    admin.put(path(topic, "/partitions"), 3)
    consumer = client.subscribe(DOMAIN + topic, "s")
    producer = client.create_producer(DOMAIN + topic, batching_enabled=False,
                                      message_routing_mode=pulsar.PartitionsRoutingMode.RoundRobinDistribution)
    for number in range(30):
        producer.send(b"%d" % number)
    messages = receive(consumer, 30)
    assert sorted(int(message.data()) for message in messages) == list(range(30))
    assert {message.message_id().partition() for message in messages} == {0, 1, 2}
    assert admin.get(path(topic, "/partitions"))["partitions"] == 3
    producer.close()
    consumer.close()
    admin.delete(path(topic, "/partitions"))


def test_what_needs_stored_messages_is_refused(client, admin, topic):
    consumer = client.subscribe(DOMAIN + topic, "s")
    with pytest.raises(pulsar.PulsarException):
        consumer.get_last_message_id()
    with pytest.raises(urllib.error.HTTPError):
        admin.post(path(topic, "/terminate"))
    producer = client.create_producer(DOMAIN + topic)
    producer.send(b"still there")
    assert data(receive(consumer, 1)) == [b"still there"]
