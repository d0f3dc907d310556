"""Acknowledgements: what is acknowledged stays so, what is not comes again."""

import pulsar
import pytest

from support import eventually, numbers, receive, send_numbers

EXCLUSIVE, SHARED = pulsar.ConsumerType.Exclusive, pulsar.ConsumerType.Shared


def reopen(client, consumer, topic, kind=EXCLUSIVE, **options):
    consumer.close()
    return client.subscribe(topic, "s", kind, **options)


def test_cumulative(client, admin, topic):
    consumer = client.subscribe(topic, "s")
    send_numbers(client.create_producer(topic), 30)
    messages = receive(consumer, 30, ack=False)
    consumer.acknowledge_cumulative(messages[19])
    eventually(lambda: admin.backlog(topic, "s") == 10)
    consumer.acknowledge_cumulative(messages[4])          # below: no step back
    consumer = reopen(client, consumer, topic)
    assert numbers(receive(consumer, 10)) == list(range(20, 30))


def test_cumulative_is_refused_on_shared(client, topic):
    consumer = client.subscribe(topic, "s", SHARED)
    send_numbers(client.create_producer(topic), 2)
    (message, _) = receive(consumer, 2, ack=False)
    with pytest.raises(pulsar.PulsarException):
        consumer.acknowledge_cumulative(message)


@pytest.mark.parametrize("kind", [EXCLUSIVE, SHARED], ids=["Exclusive", "Shared"])
def test_individual_holes(client, admin, topic, kind):
    consumer = client.subscribe(topic, "s", kind)
    send_numbers(client.create_producer(topic), 60)
    for message in receive(consumer, 60, ack=False):
        if int(message.data()) % 3:
            consumer.acknowledge(message)
    eventually(lambda: admin.backlog(topic, "s") == 20)
    consumer = reopen(client, consumer, topic, kind)
    assert sorted(numbers(receive(consumer, 20))) == list(range(0, 60, 3))
    eventually(lambda: admin.backlog(topic, "s") == 0)


def test_individual_then_cumulative(client, admin, topic):
    consumer = client.subscribe(topic, "s")
    send_numbers(client.create_producer(topic), 20)
    messages = receive(consumer, 20, ack=False)
    consumer.acknowledge(messages[15])
    consumer.acknowledge_cumulative(messages[9])
    eventually(lambda: admin.backlog(topic, "s") == 9)
    consumer = reopen(client, consumer, topic)
    assert numbers(receive(consumer, 9)) == [10, 11, 12, 13, 14, 16, 17, 18, 19]


def test_by_id_from_another_connection(client, new_client, server, admin, topic):
    one = client.subscribe(topic, "s", SHARED, receiver_queue_size=100)
    two = new_client(server.service_url).subscribe(topic, "s", SHARED, receiver_queue_size=1)
    send_numbers(client.create_producer(topic), 10)
    ids = [m.message_id() for m in receive(one, 9, ack=False)]
    for message_id in ids:
        two.acknowledge(message_id)
    eventually(lambda: admin.backlog(topic, "s") == 1)


def test_whole_batch(client, admin, topic):
    consumer = client.subscribe(topic, "s")
    producer = client.create_producer(topic, batching_enabled=True, batching_max_messages=10, batching_max_publish_delay_ms=10_000)
    send_numbers(producer, 30)
    messages = receive(consumer, 30, ack=False)
    for message in messages[:10]:
        consumer.acknowledge(message)
    consumer.acknowledge(messages[25])       # one of ten: without batch index acks the whole batch comes again
    eventually(lambda: admin.backlog(topic, "s") == 2)
    consumer = reopen(client, consumer, topic)
    assert numbers(receive(consumer, 20)) == list(range(10, 30))


@pytest.mark.parametrize("kind", [EXCLUSIVE, SHARED], ids=["Exclusive", "Shared"])
def test_batch_index(client, topic, kind):
    consumer = client.subscribe(topic, "s", kind, batch_index_ack_enabled=True)
    producer = client.create_producer(topic, batching_enabled=True, batching_max_messages=10, batching_max_publish_delay_ms=10_000)
    send_numbers(producer, 30)
    for message in receive(consumer, 30, ack=False):
        if int(message.data()) % 2 == 0:
            consumer.acknowledge(message)
    consumer = reopen(client, consumer, topic, kind, batch_index_ack_enabled=True)
    got = receive(consumer, 15, ack=False)
    assert sorted(numbers(got)) == list(range(1, 30, 2))
    for message in got[:-1]:
        consumer.acknowledge(message)
    consumer = reopen(client, consumer, topic, kind, batch_index_ack_enabled=True)
    assert numbers(receive(consumer, 1)) == numbers(got[-1:])


def test_cumulative_within_a_batch(client, topic):
    consumer = client.subscribe(topic, "s", batch_index_ack_enabled=True)
    producer = client.create_producer(topic, batching_enabled=True, batching_max_messages=10, batching_max_publish_delay_ms=10_000)
    send_numbers(producer, 20)
    messages = receive(consumer, 20, ack=False)
    consumer.acknowledge_cumulative(messages[13])
    consumer = reopen(client, consumer, topic, batch_index_ack_enabled=True)
    assert numbers(receive(consumer, 6)) == list(range(14, 20))


def test_acknowledging_twice_is_harmless(client, admin, topic):
    consumer = client.subscribe(topic, "s")
    send_numbers(client.create_producer(topic), 5)
    messages = receive(consumer, 5, ack=False)
    for message in messages[:3] * 2:
        consumer.acknowledge(message)
    eventually(lambda: admin.backlog(topic, "s") == 2)
    consumer = reopen(client, consumer, topic)
    assert numbers(receive(consumer, 2)) == [3, 4]


def test_every_other_of_many(client, admin, topic):
    """Many separate ranges: the position is not one number."""
    consumer = client.subscribe(topic, "s", SHARED, receiver_queue_size=4000)
    producer = client.create_producer(topic, max_pending_messages=4000)
    send_numbers(producer, 4000)
    for message in receive(consumer, 4000, ack=False):
        if int(message.data()) % 2:
            consumer.acknowledge(message)
    eventually(lambda: admin.backlog(topic, "s") == 2000)
    consumer = reopen(client, consumer, topic, SHARED)
    assert sorted(numbers(receive(consumer, 2000))) == list(range(0, 4000, 2))
