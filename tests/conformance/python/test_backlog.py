"""A large backlog: read whole and in order, by one consumer and by several."""

import pulsar

from support import eventually, read

MESSAGES = 100_000


def fill(client, topic, count=MESSAGES):
    producer = client.create_producer(topic, batching_enabled=True, block_if_queue_full=True, max_pending_messages=5000,
                                      batching_max_publish_delay_ms=1)
    failed = []
    for n in range(count):
        producer.send_async(b"%d" % n + b"." * 100, lambda result, _: result == pulsar.Result.Ok or failed.append(result))
    producer.flush()
    assert not failed
    producer.close()


def number(message):
    return int(message.data().rstrip(b"."))


def test_one_consumer_drains_it_in_order(client, admin, topic):
    client.subscribe(topic, "s").close()
    fill(client, topic)
    consumer = client.subscribe(topic, "s", receiver_queue_size=5000)
    for n in range(MESSAGES):
        message = consumer.receive(15_000)
        assert number(message) == n
        consumer.acknowledge_cumulative(message) if n % 1000 == 999 else None
    eventually(lambda: admin.backlog(topic, "s") == 0)


def test_shared_consumers_drain_it_once(client, admin, topic):
    client.subscribe(topic, "s", pulsar.ConsumerType.Shared).close()
    fill(client, topic, MESSAGES // 2)
    got = [[], []]

    def listen(index):
        def on_message(consumer, message):
            got[index].append(number(message))
            consumer.acknowledge(message)
        return on_message
    for index in range(2):
        client.subscribe(topic, "s", pulsar.ConsumerType.Shared, message_listener=listen(index))
    eventually(lambda: admin.backlog(topic, "s") == 0, seconds=30)
    assert got[0] and got[1]
    assert sorted(got[0] + got[1]) == list(range(MESSAGES // 2))


def test_a_late_reader_reads_it_all(client, topic):
    fill(client, topic, MESSAGES // 2)
    reader = client.create_reader(topic, pulsar.MessageId.earliest, receiver_queue_size=5000)
    for start in range(0, MESSAGES // 2, 1000):
        assert [number(m) for m in read(reader, 1000)] == list(range(start, start + 1000))
