"""Negative acknowledgement, redelivery counts, dead letters."""

import pulsar
import pytest

from support import assert_nothing, eventually, numbers, receive, send_numbers

SHARED, KEY_SHARED, EXCLUSIVE = pulsar.ConsumerType.Shared, pulsar.ConsumerType.KeyShared, pulsar.ConsumerType.Exclusive


@pytest.mark.parametrize("kind", [SHARED, KEY_SHARED], ids=["Shared", "Key_Shared"])
def test_negative_ack_counts_redeliveries(client, topic, kind):
    consumer = client.subscribe(topic, "s", kind, negative_ack_redelivery_delay_ms=100)
    producer = client.create_producer(topic)
    producer.send(b"again", partition_key="k")
    for count in range(4):
        (message,) = receive(consumer, 1, ack=False)
        assert (message.data(), message.redelivery_count()) == (b"again", count)
        if count < 3:
            consumer.negative_acknowledge(message)
    consumer.acknowledge(message)
    producer.send(b"next", partition_key="k")
    (message,) = receive(consumer, 1)
    assert (message.data(), message.redelivery_count()) == (b"next", 0)


def test_negative_ack_on_exclusive_comes_again_uncounted(client, topic):
    consumer = client.subscribe(topic, "s", negative_ack_redelivery_delay_ms=100)
    send_numbers(client.create_producer(topic), 3)
    first = receive(consumer, 3, ack=False)
    consumer.acknowledge(first[0])
    consumer.negative_acknowledge(first[1])
    again = receive(consumer, 2)
    assert numbers(again) == [1, 2]
    assert {m.redelivery_count() for m in again} == {0}


def test_only_what_was_refused_comes_again(client, admin, topic):
    consumer = client.subscribe(topic, "s", SHARED, negative_ack_redelivery_delay_ms=100)
    send_numbers(client.create_producer(topic), 100)
    refused = []
    for message in receive(consumer, 100, ack=False):
        if int(message.data()) % 10 == 0:
            consumer.negative_acknowledge(message)
            refused.append(int(message.data()))
        else:
            consumer.acknowledge(message)
    again = receive(consumer, 10)
    assert sorted(numbers(again)) == sorted(refused)
    assert {m.redelivery_count() for m in again} == {1}
    eventually(lambda: admin.backlog(topic, "s") == 0)
    assert_nothing(consumer, 100)


def test_refused_message_goes_to_any_consumer(client, topic):
    refusing = client.subscribe(topic, "s", SHARED, negative_ack_redelivery_delay_ms=100, receiver_queue_size=1)
    producer = client.create_producer(topic)
    producer.send(b"hot")
    (message,) = receive(refusing, 1, ack=False)
    accepting = client.subscribe(topic, "s", SHARED, receiver_queue_size=100)
    for _ in range(20):
        refusing.negative_acknowledge(message)
        try:
            accepting.acknowledge(accepting.receive(300))
            return
        except pulsar.Timeout:
            (message,) = receive(refusing, 1, ack=False)
    raise AssertionError("the other consumer never got it")


def test_refused_message_of_a_batch(client, topic):
    """The entry is redelivered whole; the client hides what it acknowledged."""
    consumer = client.subscribe(topic, "s", SHARED, negative_ack_redelivery_delay_ms=100, batch_index_ack_enabled=True)
    producer = client.create_producer(topic, batching_enabled=True, batching_max_messages=10, batching_max_publish_delay_ms=10_000)
    send_numbers(producer, 10)
    for message in receive(consumer, 10, ack=False):
        if int(message.data()) in (3, 7):
            consumer.negative_acknowledge(message)
        else:
            consumer.acknowledge(message)
    again = receive(consumer, 2)
    assert sorted(numbers(again)) == [3, 7]
    assert {m.redelivery_count() for m in again} == {1}


def test_redeliver_all_on_shared(client, topic):
    consumer = client.subscribe(topic, "s", SHARED)
    send_numbers(client.create_producer(topic), 20)
    for message in receive(consumer, 20, ack=False)[:5]:
        consumer.acknowledge(message)
    consumer.redeliver_unacknowledged_messages()
    again = receive(consumer, 15)
    assert sorted(numbers(again)) == list(range(5, 20))
    assert {m.redelivery_count() for m in again} == {1}


def test_a_closed_consumer_does_not_raise_the_count(client, topic):
    one = client.subscribe(topic, "s", SHARED)
    send_numbers(client.create_producer(topic), 10)
    receive(one, 10, ack=False)
    two = client.subscribe(topic, "s", SHARED)
    one.close()
    assert {m.redelivery_count() for m in receive(two, 10)} == {0}


@pytest.mark.parametrize("kind", [SHARED, KEY_SHARED], ids=["Shared", "Key_Shared"])
def test_dead_letters(client, admin, topic, kind):
    policy = pulsar.ConsumerDeadLetterPolicy(2, initial_subscription_name="watch")
    consumer = client.subscribe(topic, "s", kind, negative_ack_redelivery_delay_ms=100, dead_letter_policy=policy)
    producer = client.create_producer(topic)
    producer.send(b"bad", properties={"mine": "kept"}, partition_key="k1")
    producer.send(b"good", partition_key="k2")
    attempts = 0
    while attempts < 3:
        (message,) = receive(consumer, 1, ack=False)
        if message.data() == b"good":
            consumer.acknowledge(message)
            continue
        assert message.redelivery_count() == attempts
        attempts += 1
        consumer.negative_acknowledge(message)
    dead = f"{topic}-s-DLQ"
    # nobody looked at the dead letters when they were written: the initial subscription keeps them.
    # The topic appears with the first letter, which the consumer writes when the message is due once more.
    eventually(lambda: dead_letters_wait(consumer, admin, dead))
    letters = client.subscribe(dead, "watch")
    (letter,) = receive(letters, 1)
    assert letter.data() == b"bad"
    assert letter.properties()["mine"] == "kept"
    assert letter.properties()["REAL_TOPIC"] == f"persistent://public/default/{topic}"
    assert letter.properties()["ORIGIN_MESSAGE_ID"]
    eventually(lambda: admin.backlog(topic, "s") == 0, what="the original is acknowledged")


def dead_letters_wait(consumer, admin, dead):
    import urllib.error
    try:
        consumer.receive(50)     # the client moves a message to the dead letters when it comes once too often
        raise AssertionError("a message came more often than allowed")
    except pulsar.Timeout:
        pass
    try:
        return admin.backlog(dead, "watch") == 1
    except (urllib.error.HTTPError, KeyError):
        return False


def test_dead_letter_topic_by_name(client, topic):
    policy = pulsar.ConsumerDeadLetterPolicy(1, dead_letter_topic=f"{topic}-grave")
    letters = client.subscribe(f"{topic}-grave", "watch")
    consumer = client.subscribe(topic, "s", SHARED, negative_ack_redelivery_delay_ms=100, dead_letter_policy=policy)
    send_numbers(client.create_producer(topic), 20)
    good = []
    while len(good) < 15:
        (message,) = receive(consumer, 1, ack=False)
        number = int(message.data())
        if number % 4 == 0:
            consumer.negative_acknowledge(message)
        else:
            consumer.acknowledge(message)
            good.append(number)

    def refuse_and_collect():
        try:
            consumer.negative_acknowledge(consumer.receive(20))
        except pulsar.Timeout:
            pass
        try:
            message = letters.receive(20)
            letters.acknowledge(message)
            dead.append(int(message.data()))
        except pulsar.Timeout:
            pass
        return len(dead) == 5
    dead = []
    eventually(refuse_and_collect)
    assert sorted(dead) == [0, 4, 8, 12, 16]
    assert sorted(good) == [n for n in range(20) if n % 4]


def test_retry_and_dead_letter_names_are_never_partitioned(client, admin, topic):
    for suffix in ("-DLQ", "-RETRY"):
        client.create_producer(topic + suffix).send(b"x")
        assert client.get_topic_partitions(topic + suffix) == [f"persistent://public/default/{topic}{suffix}"]
