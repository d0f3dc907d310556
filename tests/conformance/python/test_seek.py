"""Seek: by id and by time, on every type, from anywhere to anywhere."""

import time

import pulsar
import pytest

from support import eventually, numbers, receive, send_numbers

ALL = [pulsar.ConsumerType.Exclusive, pulsar.ConsumerType.Failover, pulsar.ConsumerType.Shared, pulsar.ConsumerType.KeyShared]
NAMES = ["Exclusive", "Failover", "Shared", "Key_Shared"]


@pytest.mark.parametrize("kind", ALL, ids=NAMES)
def test_by_id(client, topic, kind):
    consumer = client.subscribe(topic, "s", kind, start_message_id_inclusive=True)
    ids = send_numbers(client.create_producer(topic), 50)
    receive(consumer, 50)
    consumer.seek(ids[20])
    assert sorted(numbers(receive(consumer, 30))) == list(range(20, 50))
    consumer.seek(ids[45])
    assert sorted(numbers(receive(consumer, 5))) == list(range(45, 50))


def test_by_id_exclusive_start(client, topic):
    consumer = client.subscribe(topic, "s")
    ids = send_numbers(client.create_producer(topic), 10)
    receive(consumer, 10)
    consumer.seek(ids[5])
    assert numbers(receive(consumer, 4)) == [6, 7, 8, 9]


def test_into_a_batch(client, topic):
    consumer = client.subscribe(topic, "s", start_message_id_inclusive=True)
    producer = client.create_producer(topic, batching_enabled=True, batching_max_messages=10, batching_max_publish_delay_ms=10_000)
    ids = send_numbers(producer, 30)
    receive(consumer, 30)
    consumer.seek(ids[14])
    assert numbers(receive(consumer, 16)) == list(range(14, 30))


def test_earliest_and_latest(client, admin, topic):
    consumer = client.subscribe(topic, "s")
    producer = client.create_producer(topic)
    send_numbers(producer, 20)
    receive(consumer, 20)
    consumer.seek(pulsar.MessageId.earliest)
    assert numbers(receive(consumer, 20, ack=False)) == list(range(20))
    consumer.seek(pulsar.MessageId.latest)
    assert admin.backlog(topic, "s") == 0
    send_numbers(producer, 1, start=20)
    assert numbers(receive(consumer, 1)) == [20]


def test_skipping_ahead_acknowledges_what_is_skipped(client, admin, topic):
    consumer = client.subscribe(topic, "s", start_message_id_inclusive=True)
    ids = send_numbers(client.create_producer(topic), 30)
    consumer.seek(ids[25])
    assert numbers(receive(consumer, 1, ack=False)) == [25]
    assert admin.backlog(topic, "s") == 5


def test_by_time(client, topic):
    consumer = client.subscribe(topic, "s")
    producer = client.create_producer(topic)
    send_numbers(producer, 10)
    last = receive(consumer, 10)[-1].publish_timestamp()
    # the two halves must differ in their publish time, which has milliseconds
    eventually(lambda: time.time() * 1000 > last + 2)
    send_numbers(producer, 10, start=10)
    second = receive(consumer, 10)
    boundary = second[0].publish_timestamp()
    consumer.seek(boundary)
    assert numbers(receive(consumer, 10)) == list(range(10, 20))
    consumer.seek(boundary - 3_600_000)
    assert numbers(receive(consumer, 20)) == list(range(20))
    consumer.seek(int(time.time() * 1000) + 3_600_000)
    send_numbers(producer, 1, start=20)
    assert numbers(receive(consumer, 1)) == [20]


def test_with_unacknowledged_messages_in_flight(client, topic):
    consumer = client.subscribe(topic, "s", pulsar.ConsumerType.Shared, start_message_id_inclusive=True)
    ids = send_numbers(client.create_producer(topic), 40)
    receive(consumer, 20, ack=False)
    consumer.seek(ids[10])
    assert sorted(numbers(receive(consumer, 30))) == list(range(10, 40))


def test_all_consumers_of_the_subscription_are_attached_again(client, topic):
    one, two = (client.subscribe(topic, "s", pulsar.ConsumerType.Shared, receiver_queue_size=5) for _ in range(2))
    producer = client.create_producer(topic)
    ids = send_numbers(producer, 20)
    one.seek(pulsar.MessageId.latest)
    eventually(lambda: one.is_connected() and two.is_connected())
    send_numbers(producer, 40, start=20)
    got = numbers(receive(two, 35))          # `one` holds its 5 permits and does not receive
    got += numbers(receive(one, 5))
    assert sorted(got) == list(range(20, 60))
    assert len(ids) == 20


def test_partitioned_topic_by_time_and_earliest(client, admin, topic):
    admin.create_partitioned(topic, 3)
    consumer = client.subscribe(topic, "s")
    send_numbers(client.create_producer(topic), 30)
    receive(consumer, 30)
    consumer.seek(pulsar.MessageId.earliest)
    assert sorted(numbers(receive(consumer, 30))) == list(range(30))
    consumer.seek(int(time.time() * 1000) - 3_600_000)
    assert sorted(numbers(receive(consumer, 30))) == list(range(30))
